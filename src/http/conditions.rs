//! Conditions of a request (RFC 9110, section 13): the versions that something must have, or must not have.

use actix_web::http::header::{EntityTag, HeaderMap, HeaderName, IF_MATCH, IF_NONE_MATCH};

use super::problem::Problem;
use super::quoted::split_outside_quotes;

/// Versions as a header names them, over all the headers of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Versions {
    /// Whichever it has.
    Any,
    /// One of these.
    Of(Vec<EntityTag>),
}

impl Versions {
    /// What the headers of a name say, if there are any. What is no entity tag among them names no version.
    fn of(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Self>, Problem> {
        let mut tags = None;
        let mut is_any = false;
        for value in headers.get_all(name) {
            let text = value
                .to_str()
                .map_err(|_| Problem::invalid_parameter(title(name), "must be printable ASCII"))?;
            is_any |= text.trim() == "*";
            tags.get_or_insert_with(Vec::new).extend(parse(text));
        }
        Ok(if is_any {
            Some(Self::Any)
        } else {
            tags.map(Self::Of)
        })
    }

    /// Whether what has this version is meant by the strong comparison: to the byte.
    fn name_strongly(&self, version: &str) -> bool {
        self.name(version, EntityTag::strong_eq)
    }

    /// Whether what has this version is meant by the weak comparison: it is as good as that.
    fn name_weakly(&self, version: &str) -> bool {
        self.name(version, EntityTag::weak_eq)
    }

    fn name(&self, version: &str, is_same: impl Fn(&EntityTag, &EntityTag) -> bool) -> bool {
        match (self, version.parse()) {
            (Self::Any, _) => true,
            (Self::Of(tags), Ok(held)) => tags.iter().any(|given| is_same(given, &held)),
            (Self::Of(_), Err(_)) => false,
        }
    }
}

/// As people write the name.
fn title(name: &HeaderName) -> &'static str {
    if name == IF_MATCH {
        "If-Match"
    } else {
        "If-None-Match"
    }
}

/// The entity tags of a list. A comma between quotes is a part of the tag, which actix takes for its end.
fn parse(text: &str) -> impl Iterator<Item = EntityTag> {
    // A backslash in a tag is nothing but that.
    split_outside_quotes(text, ',', None).filter_map(|tag| tag.trim().parse().ok())
}

/// Both conditions of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conditions {
    wanted: Option<Versions>,
    unwanted: Option<Versions>,
}

impl Conditions {
    /// Those of `If-Match` and `If-None-Match`.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        Ok(Self {
            wanted: Versions::of(headers, &IF_MATCH)?,
            unwanted: Versions::of(headers, &IF_NONE_MATCH)?,
        })
    }

    /// Whether it has one of the versions that it must have; what is not there has none.
    pub(super) fn is_as_wanted(&self, held: Option<&str>) -> bool {
        match (&self.wanted, held) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(wanted), Some(held)) => wanted.name_strongly(held),
        }
    }

    /// Whether it has one of the versions that it must not have: of a reader, one that it has already.
    pub(super) fn is_unwanted(&self, held: Option<&str>) -> bool {
        match (&self.unwanted, held) {
            (Some(unwanted), Some(held)) => unwanted.name_weakly(held),
            _ => false,
        }
    }
}

/// Whether `If-None-Match` names the version that a reader has already. One that cannot be read names none.
pub(super) fn is_known(headers: &HeaderMap, version: &str) -> bool {
    matches!(Versions::of(headers, &IF_NONE_MATCH), Ok(Some(versions)) if versions.name_weakly(version))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;
    use proptest::prelude::*;

    use super::super::problem::INVALID_PARAMETER;
    use super::*;

    fn headers(name: &HeaderName, values: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            let value = HeaderValue::from_bytes(value).expect("a header");
            headers.append(name.clone(), value);
        }
        headers
    }

    #[test]
    fn a_version_is_known_by_its_name_however_weak() {
        for (given, expected) in [
            (&[r#"W/"v,1""#][..], true),
            (&[r#""v,1""#], true),
            (&[r#""a", W/"v,1""#], true),
            (&[r#""a""#, r#""v,1""#], true),
            (&["*"], true),
            (&[r#""a""#, "*"], true),
            (&[r#" , ,"a",,"v,1" ,"#], true),
            (&[r#""a""#], false),
            (&["v,1"], false),
            (&[r#"w/"v,1""#], false),
            (&[r#""v,1"x"#], false),
            (&[r#""v,1"#], false),
            (&[""], false),
            (&[], false),
        ] {
            let values: Vec<&[u8]> = given.iter().map(|value| value.as_bytes()).collect();
            let headers = headers(&IF_NONE_MATCH, &values);
            for version in [r#"W/"v,1""#, r#""v,1""#] {
                assert_eq!(is_known(&headers, version), expected, "{given:?}");
            }
        }
    }

    #[test]
    fn what_must_be_is_compared_to_the_byte() {
        for (given, held, expected) in [
            (&[r#""1""#][..], Some(r#""1""#), true),
            (&[r#""2""#, r#""1""#], Some(r#""1""#), true),
            (&[r#""2", "1""#], Some(r#""1""#), true),
            (&["*"], Some(r#""1""#), true),
            (&["*"], None, false),
            (&[r#""1""#], None, false),
            (&[r#"W/"1""#], Some(r#""1""#), false),
            (&[r#""1""#], Some(r#"W/"1""#), false),
            (&[""], Some(r#""1""#), false),
            (&[], None, true),
        ] {
            let values: Vec<&[u8]> = given.iter().map(|value| value.as_bytes()).collect();
            let conditions = Conditions::of(&headers(&IF_MATCH, &values)).expect("text");
            assert_eq!(
                conditions.is_as_wanted(held),
                expected,
                "{given:?} {held:?}"
            );
            assert!(!conditions.is_unwanted(held));
        }
    }

    proptest! {
        #[test]
        fn whatever_the_header_a_version_that_it_names_stands_in_it(
            values in proptest::collection::vec(prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..30),
                "((W/)?\"[a-c,]{0,2}\"[, ]{0,2}|[*W/\", a]){0,4}".prop_map(String::into_bytes),
            ], 0..3),
            opaque in "[a-c,]{0,2}",
            is_weak: bool,
        ) {
            let version = format!("{}\"{opaque}\"", if is_weak { "W/" } else { "" });
            if values.iter().any(|value| HeaderValue::from_bytes(value).is_err()) {
                return Ok(());
            }
            let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
            let mut sent = headers(&IF_MATCH, &values);
            for value in &values {
                sent.append(IF_NONE_MATCH, HeaderValue::from_bytes(value).expect("a header"));
            }
            let conditions = match Conditions::of(&sent) {
                Ok(conditions) => conditions,
                Err(problem) => {
                    prop_assert_eq!(problem.code(), INVALID_PARAMETER);
                    return Ok(());
                }
            };
            let quoted = format!("\"{opaque}\"");
            let is_in = values.iter().any(|value| {
                let text = String::from_utf8_lossy(value);
                text.trim() == "*" || text.contains(&quoted)
            });
            let names = conditions.is_unwanted(Some(&version));
            prop_assert!(is_in || !names, "{:?} {}", values, version);
            prop_assert_eq!(names, is_known(&sent, &version));
            // What is meant to the byte is meant at all.
            if !values.is_empty() && conditions.is_as_wanted(Some(&version)) {
                prop_assert!(names);
            }
            prop_assert!(!conditions.is_unwanted(None));
        }

        #[test]
        fn a_list_of_versions_is_read_as_it_was_written(
            tags in proptest::collection::vec((any::<bool>(), "[!#-~]{0,6}"), 0..5),
        ) {
            let text: Vec<String> = tags
                .iter()
                .map(|(is_weak, opaque)| format!("{}\"{opaque}\"", if *is_weak { "W/" } else { "" }))
                .collect();
            let read: Vec<(bool, String)> = parse(&text.join(", "))
                .map(|tag| (tag.weak, tag.tag().to_owned()))
                .collect();
            prop_assert_eq!(read, tags);
        }
    }
}
