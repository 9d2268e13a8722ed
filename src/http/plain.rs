//! What parsers say of a body or a parameter, in the words of whoever wrote it: there are lists and whole numbers in it, and
//! no sequences and no i64.

use super::LIMIT_MAX;
use crate::domain::listing::STOCK_MAX;
use crate::domain::order::QUANTITY_MAX;
use crate::domain::vendor_api::DELTA_MAX;

/// What a whole number may be, by the name of its field: the same name means the same everywhere.
const WHOLE_NUMBERS: [(&str, i64, i64); 4] = [
    ("limit", 1, LIMIT_MAX),
    ("quantity", 1, QUANTITY_MAX),
    ("stock", 0, STOCK_MAX),
    ("delta", -DELTA_MAX, DELTA_MAX),
];
/// What is shown of a value that is wrong: its caller has the rest.
const SHOWN_CHARS_MAX: usize = 80;

/// What is wrong, and with which field of the place where it was found, if not with that place itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told<'a> {
    pub(super) field: Option<&'a str>,
    pub(super) detail: String,
}

/// Says it plainly, where `field` is the name of what was read.
pub(super) fn plainly<'a>(field: &str, error: &'a str) -> Told<'a> {
    for (beginning, detail) in [
        ("missing field `", "is missing"),
        ("duplicate field `", "is given twice"),
    ] {
        let name = error.strip_prefix(beginning);
        if let Some(name) = name.and_then(|name| name.strip_suffix('`')) {
            return Told {
                field: Some(name),
                detail: detail.to_owned(),
            };
        }
    }
    Told {
        field: None,
        detail: mismatch(field, error)
            .or_else(|| choice(error))
            .or_else(|| of_parameter(field, error))
            .unwrap_or_else(|| error.to_owned()),
    }
}

/// A value of another kind.
fn mismatch(field: &str, error: &str) -> Option<String> {
    let what = ["invalid type: ", "invalid value: ", "invalid length "]
        .iter()
        .find_map(|beginning| error.strip_prefix(beginning))?;
    // The value comes first, and may be a text with anything in it.
    let (given, wanted) = what.rsplit_once(", expected ")?;
    Some(must_be(wanted_plainly(field, wanted), given_plainly(given)))
}

/// A name that is none of those there are.
fn choice(error: &str) -> Option<String> {
    let (given, wanted) = error
        .strip_prefix("unknown variant `")?
        .rsplit_once("`, expected ")?;
    Some(must_be(wanted.to_owned(), Some(format!("`{given}`"))))
}

fn must_be(wanted: String, given: Option<String>) -> String {
    match given.filter(|given| given.chars().count() <= SHOWN_CHARS_MAX) {
        Some(given) => format!("must be {wanted}, is {given}"),
        None => format!("must be {wanted}"),
    }
}

/// What the parsers of numbers and words say of a parameter, which is a text before.
fn of_parameter(field: &str, error: &str) -> Option<String> {
    match error {
        "invalid digit found in string"
        | "cannot parse integer from empty string"
        | "number too large to fit in target type"
        | "number too small to fit in target type" => {
            Some(format!("must be {}", whole_number(field)))
        }
        "provided string was not `true` or `false`" => Some("must be true or false".to_owned()),
        _ => None,
    }
}

fn wanted_plainly(field: &str, wanted: &str) -> String {
    match wanted {
        "i8" | "i16" | "i32" | "i64" | "u8" | "u16" | "u32" | "u64" | "usize" => {
            whole_number(field)
        }
        "a sequence" => "a list".to_owned(),
        "a map" => "an object".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "variant identifier" | "string or map" => "a string".to_owned(),
        wanted if wanted.starts_with("struct ") => "an object".to_owned(),
        wanted => wanted.to_owned(),
    }
}

fn whole_number(field: &str) -> String {
    let bounds = WHOLE_NUMBERS.iter().find(|(name, ..)| *name == field);
    match bounds {
        Some((_, least, most)) => format!("a whole number from {least} to {most}"),
        None => "a whole number".to_owned(),
    }
}

/// The value as JSON has it; none where there is no word for it.
fn given_plainly(given: &str) -> Option<String> {
    let plain = match given {
        "map" => "an object",
        "sequence" => "a list",
        "null" | "unit value" => "null",
        given => {
            let number = ["integer `", "floating point `", "boolean `"]
                .iter()
                .find_map(|kind| given.strip_prefix(kind)?.strip_suffix('`'));
            number.or_else(|| given.strip_prefix("string "))?
        }
    };
    Some(plain.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::openapi;
    use super::*;

    #[test]
    fn what_is_wrong_is_said_in_words_of_json() {
        let long = format!("invalid type: string {:?}, expected i64", "x".repeat(100));
        for (field, error, expected) in [
            (
                "quantity",
                "invalid type: string \"1\", expected i64",
                "must be a whole number from 1 to 1000000, is \"1\"",
            ),
            (
                "x",
                "invalid type: floating point `1.5`, expected u32",
                "must be a whole number, is 1.5",
            ),
            (
                "lines",
                "invalid type: map, expected a sequence",
                "must be a list, is an object",
            ),
            (
                "",
                "invalid type: sequence, expected an object",
                "must be an object, is a list",
            ),
            (
                "x",
                "invalid type: string \", expected i64\", expected a boolean",
                "must be true or false, is \", expected i64\"",
            ),
            (
                "x",
                "invalid type: newtype struct, expected struct Line",
                "must be an object",
            ),
            (
                "status",
                "unknown variant `lost`, expected one of `a`, `b`",
                "must be one of `a`, `b`, is `lost`",
            ),
            (
                "limit",
                "invalid digit found in string",
                "must be a whole number from 1 to 200",
            ),
            (
                "inStock",
                "provided string was not `true` or `false`",
                "must be true or false",
            ),
            (
                "quantity",
                long.as_str(),
                "must be a whole number from 1 to 1000000",
            ),
            ("name", "must not be empty", "must not be empty"),
        ] {
            let told = plainly(field, error);
            assert_eq!(
                (told.field, told.detail.as_str()),
                (None, expected),
                "{error}"
            );
        }
        for (error, field, detail) in [
            ("missing field `productId`", "productId", "is missing"),
            ("duplicate field `delta`", "delta", "is given twice"),
        ] {
            let told = plainly("", error);
            assert_eq!((told.field, told.detail.as_str()), (Some(field), detail));
        }
    }

    #[test]
    fn what_is_said_of_a_whole_number_is_what_is_described() {
        let document = openapi::document();
        let schemas = document["components"]["schemas"]
            .as_object()
            .expect("schemas");
        let parameters = document["paths"].as_object().expect("paths").values();
        let parameters = parameters
            .flat_map(|of_path| of_path.as_object().expect("operations").values())
            .flat_map(|operation| operation["parameters"].as_array().into_iter().flatten())
            .map(|parameter| {
                (
                    parameter["name"].as_str().unwrap_or_default(),
                    &parameter["schema"],
                )
            });
        let fields = schemas
            .values()
            .flat_map(|schema| schema["properties"].as_object().into_iter().flatten())
            .map(|(name, schema)| (name.as_str(), schema));
        let described: Vec<(&str, i64, i64)> = fields
            .chain(parameters)
            .filter_map(|(name, schema)| {
                Some((
                    name,
                    schema["minimum"].as_i64()?,
                    schema["maximum"].as_i64()?,
                ))
            })
            .collect();
        for bounds in &WHOLE_NUMBERS {
            assert!(described.contains(bounds), "{bounds:?} in {described:?}");
        }
        for bounds in &described {
            assert!(WHOLE_NUMBERS.contains(bounds), "{bounds:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_parser_says_something_is_told(field in "\\PC{0,20}", error in "((invalid type: |unknown variant `|missing field `)?\\PC{0,40}(`?, expected )?\\PC{0,20}`?)") {
            let told = plainly(&field, &error);
            prop_assert!(!told.detail.is_empty() || error.is_empty());
        }
    }
}
