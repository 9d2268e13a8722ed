//! Holds every answer that the tests of the HTTP door get against the API's description: its status, its type, its form,
//! and, of a problem, its code.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use jsonschema::Validator;
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName};
use serde_json::{Value, json};
use stockctl::http::openapi;

static DOCUMENT: LazyLock<Value> = LazyLock::new(openapi::document);
/// By their place in the description: making one takes longer than using it.
static SCHEMAS: Mutex<BTreeMap<String, Validator>> = Mutex::new(BTreeMap::new());

/// Headers of HTTP itself, and for browsers alone.
const OF_ALL: [&str; 9] = [
    "connection",
    "content-length",
    "content-security-policy",
    "content-type",
    "date",
    "referrer-policy",
    "transfer-encoding",
    "x-content-type-options",
    "x-frame-options",
];

/// The operation that a request means, with its path as it is described.
fn operation(method: &Method, path: &str) -> Option<(String, &'static Value)> {
    let path = path.split('?').next().expect("a path");
    let given: Vec<&str> = path.split('/').collect();
    let matches = |described: &str| {
        let parts: Vec<&str> = described.split('/').collect();
        parts.len() == given.len()
            && parts
                .iter()
                .zip(&given)
                .all(|(part, given)| part.starts_with('{') || part == given)
    };
    let paths = DOCUMENT["paths"].as_object().expect("paths");
    // What is named beats what fits a parameter.
    let (described, operations) = paths
        .iter()
        .filter(|(described, _)| matches(described))
        .min_by_key(|(described, _)| described.matches('{').count())?;
    let operation = operations.get(method.as_str().to_lowercase())?;
    Some((described.clone(), operation))
}

/// Checks an answer.
pub(super) fn check(method: &Method, path: &str, status: u16, headers: &HeaderMap, body: &str) {
    let Some((described, operation)) = operation(method, path) else {
        assert!(
            [404, 405].contains(&status),
            "{method} {path} is not described and answered {status}"
        );
        return;
    };
    let what = format!("{method} {described} {status}");
    let response = &operation["responses"][status.to_string()];
    assert!(
        response.is_object(),
        "{what} is not described; the answer was {body}"
    );
    let described_headers = response["headers"].as_object().expect("headers");
    for name in headers.keys().map(HeaderName::as_str) {
        let is_described = described_headers
            .keys()
            .any(|described| described.eq_ignore_ascii_case(name));
        assert!(
            is_described || OF_ALL.contains(&name) || name.starts_with("access-control-"),
            "{what}: {name} is not described"
        );
    }
    let Some(contents) = response["content"].as_object() else {
        assert_eq!(body, "", "{what} has no body in the description");
        return;
    };
    let kind = headers["content-type"].to_str().expect("a type");
    let kind = kind.split(';').next().expect("a type");
    let content = contents
        .get(kind)
        .unwrap_or_else(|| panic!("{what}: {kind} is not described"));
    if !kind.ends_with("json") {
        return;
    }
    let body: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{what}: {e}: {body}"));
    let mut schemas = SCHEMAS.lock().unwrap_or_else(PoisonError::into_inner);
    let validator = schemas.entry(format!("{what} {kind}")).or_insert_with(|| {
        // The references lead into the components.
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "allOf": [content["schema"]],
            "components": DOCUMENT["components"],
        });
        jsonschema::validator_for(&schema).unwrap_or_else(|error| panic!("{what}: {error}"))
    });
    let errors: Vec<String> = validator
        .iter_errors(&body)
        .map(|error| format!("{} {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{what}: {errors:?} in {body}");
}

#[test]
fn the_examples_are_as_described() {
    let paths = DOCUMENT["paths"].as_object().expect("paths");
    let sent = DOCUMENT["webhooks"].as_object().expect("webhooks");
    for (path, operations) in paths.iter().chain(sent) {
        for (method, operation) in operations.as_object().expect("operations") {
            let requests = operation["requestBody"]["content"].as_object();
            let responses = operation["responses"].as_object().expect("responses");
            let contents = responses
                .values()
                .filter_map(|response| response["content"].as_object())
                .chain(requests)
                .flatten();
            for (kind, content) in contents.filter(|(kind, _)| kind.ends_with("json")) {
                let schema = json!({
                    "$schema": "https://json-schema.org/draft/2020-12/schema",
                    "allOf": [content["schema"]],
                    "components": DOCUMENT["components"],
                });
                let validator = jsonschema::validator_for(&schema).expect("a schema");
                let several = content["examples"].as_object().into_iter().flatten();
                let examples = several
                    .map(|(_, example)| match example["$ref"].as_str() {
                        Some(place) => {
                            let place = place.trim_start_matches('#');
                            &DOCUMENT.pointer(place).expect("there")["value"]
                        }
                        None => &example["value"],
                    })
                    .chain(content.get("example"));
                for example in examples {
                    let errors: Vec<String> = validator
                        .iter_errors(example)
                        .map(|error| format!("{} {error}", error.instance_path()))
                        .collect();
                    assert!(
                        errors.is_empty(),
                        "{method} {path} {kind}: {errors:?} in {example}"
                    );
                }
            }
        }
    }
}
