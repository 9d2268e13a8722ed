//! Queries: parsed with the parameter named that is wrong.

use std::collections::BTreeSet;

use actix_web::HttpRequest;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use super::problem::Problem;

/// Reads the parameters of a query.
pub(super) fn read_query<T: DeserializeOwned>(request: &HttpRequest) -> Result<T, Problem> {
    let pairs = url::form_urlencoded::parse(request.query_string().as_bytes());
    let mut seen = BTreeSet::new();
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
        Problem::invalid_parameter(&parameter, error.into_inner().to_string())
    })
}
