//! Queries: parsed with the parameter named that is wrong.

use std::collections::BTreeSet;

use actix_web::HttpRequest;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use super::plain::plainly;
use super::problem::Problem;

/// Reads the parameters of a query.
pub(super) fn read_query<T: DeserializeOwned>(request: &HttpRequest) -> Result<T, Problem> {
    let pairs = url::form_urlencoded::parse(request.query_string().as_bytes());
    let mut seen = BTreeSet::new();
    let wrong = request
        .query_string()
        .split('&')
        .find(|pair| !is_text(pair));
    if let Some(pair) = wrong {
        let name = pair.split('=').next().unwrap_or_default();
        let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
        return Err(Problem::invalid_parameter(
            &name,
            "must be UTF-8, percent-encoded",
        ));
    }
    for (name, _) in pairs {
        if seen.contains(&name) {
            return Err(Problem::invalid_parameter(&name, "must be given once"));
        }
        seen.insert(name);
    }
    serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs)).map_err(|error| {
        let parameter = match error.path().iter().next() {
            Some(Segment::Map { key }) => key.clone(),
            _ => "query".to_owned(),
        };
        let text = error.into_inner().to_string();
        // What a body calls a field is a parameter here.
        let text = match text.strip_prefix("unknown field ") {
            Some(rest) => format!("unknown parameter {rest}"),
            None => text,
        };
        let told = plainly(&parameter, &text);
        Problem::invalid_parameter(told.field.unwrap_or(&parameter), told.detail)
    })
}

/// Whether a part of an address is text, once it is decoded. What is not would be taken for another text: each wrong byte is
/// read as the same sign.
pub(super) fn is_text(encoded: &str) -> bool {
    let decoded = percent_encoding::percent_decode_str(encoded);
    decoded.decode_utf8().is_ok()
}

/// Refuses parameters where there are none.
pub(super) fn refuse_query(request: &HttpRequest) -> Result<(), Problem> {
    let query = request.query_string().as_bytes();
    match url::form_urlencoded::parse(query).next() {
        Some((name, _)) => Err(Problem::invalid_parameter(
            &name,
            "unknown parameter; there are none here",
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::super::problem::INVALID_PARAMETER;
    use super::*;
    use crate::domain::ids::ProductId;
    use crate::domain::order::Status;

    /// One of each kind of parameter that there is.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Query {
        limit: Option<i64>,
        cursor: Option<ProductId>,
        in_stock: Option<bool>,
        status: Option<Status>,
        q: Option<String>,
    }

    proptest! {
        #[test]
        fn whatever_the_query_what_is_taken_was_said_once_and_what_is_not_is_told_with_its_name(
            query in "((limit|cursor|inStock|status|q|[a-z]{1,5})=(-?[0-9]{1,20}|true|pending|[a-z%0-9+]{0,9})&?){0,4}|[!-\"$-;=?-~]{0,40}",
        ) {
            let Ok(uri) = format!("/products?{query}").parse::<actix_web::http::Uri>() else {
                return Ok(());
            };
            let request = TestRequest::default().uri(&uri.to_string()).to_http_request();
            match read_query::<Query>(&request) {
                Ok(read) => {
                    let given = [
                        read.limit.is_some(), read.cursor.is_some(), read.in_stock.is_some(), read.status.is_some(), read.q.is_some(),
                    ];
                    let pairs = url::form_urlencoded::parse(query.as_bytes()).count();
                    prop_assert_eq!(given.into_iter().filter(|is_given| *is_given).count(), pairs);
                    if let Some(cursor) = read.cursor {
                        prop_assert!(ProductId::parse(cursor.as_str()).is_ok());
                    }
                }
                Err(problem) => prop_assert_eq!(problem.code(), INVALID_PARAMETER),
            }
        }
    }
}
