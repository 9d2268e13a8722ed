//! An example of each parameter and each header, so that whoever reads the description sees what they look like.

use serde_json::{Value, json};

use super::super::problem::{self as p, Code};

const ORDER: &str = "01a21584-8706-763e-b5e8-dd1039028028";
const WEBHOOK: &str = "01a21a4e-52cf-7c07-a8b0-5f0f5d0ad3a5";
/// As a vendor's product has it, and as the aggregated view has it.
const STRONG: &str = "\"8c2b1f0f6d6d5b0fb6a44a3f3f8a1d57\"";
const WEAK: &str = "W/\"8c2b1f0f6d6d5b0fb6a44a3f3f8a1d57\"";

/// Gives an operation those that it lacks.
pub(super) fn complete(path: &str, operation: &mut Value) {
    let parameters = operation["parameters"].as_array_mut();
    for parameter in parameters.into_iter().flatten() {
        if parameter["$ref"].is_null() && parameter["example"].is_null() {
            let name = parameter["name"].as_str().unwrap_or_default();
            parameter["example"] = of_parameter(path, name);
        }
    }
    let responses = operation["responses"].as_object_mut();
    for (_, response) in responses.into_iter().flatten() {
        let headers = response["headers"].as_object_mut();
        for (name, header) in headers.into_iter().flatten() {
            if header["$ref"].is_null() {
                header["example"] = of_header(path, name);
            }
        }
    }
}

/// Of a parameter; null for one that nobody has thought of.
fn of_parameter(path: &str, name: &str) -> Value {
    match name {
        "id" if path.starts_with("/orders") => json!(ORDER),
        "id" if path.starts_with("/webhooks") => json!(WEBHOOK),
        "id" => json!("p1"),
        "messageId" | "orderId" => json!(ORDER),
        "vendor" => json!("vendorA"),
        "queue" => json!("orders_dlq"),
        "reason" => json!("retries_exhausted"),
        "status" => json!("confirmed"),
        "productId" => json!("p2"),
        "q" => json!("product"),
        "inStock" => json!(true),
        "limit" => json!(50),
        "cursor" => cursor(path),
        "If-Match" | "If-None-Match" => version(path),
        _ => Value::Null,
    }
}

fn cursor(path: &str) -> Value {
    match path {
        "/orders" | "/webhooks" => json!("1795657336582834.01a215848706763eb5e8dd1039028028"),
        "/products" => json!("p2"),
        "/vendors" => json!("vendorA"),
        "/admin/dead-letters/{queue}" => json!("5b0c9e0f6a1d4c7e8f2a3b4c5d6e7f80.0"),
        _ => json!("1795657336582834.01a21584-878a-705c-8fe2-9b7561195789:made"),
    }
}

fn version(path: &str) -> Value {
    if path.starts_with("/vendors") {
        json!(STRONG)
    } else {
        json!(WEAK)
    }
}

/// Of a header of an answer; null for one that nobody has thought of.
fn of_header(path: &str, name: &str) -> Value {
    match name {
        "Location" if path.starts_with("/webhooks") => json!(format!("/webhooks/{WEBHOOK}")),
        "Location" => json!(format!("/orders/{ORDER}")),
        "Idempotent-Replayed" => json!("true"),
        "X-Accel-Buffering" => json!("no"),
        "Preference-Applied" => json!("wait=5"),
        "ETag" => version(path),
        "Link" => {
            let cursor = cursor(path);
            let cursor = cursor.as_str().unwrap_or_default();
            json!(
                format!("<{path}?limit=50&cursor={cursor}>; rel=\"next\"")
                    .replace("{id}", "p1")
                    .replace("{queue}", "orders_dlq")
            )
        }
        "Set-Cookie" => json!(
            "stockctl_key=stockctl_ef0a46cc1d88_f60d…; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict"
        ),
        "Retry-After" => json!(1),
        "Allow" => json!("GET, HEAD"),
        "WWW-Authenticate" => json!("Bearer realm=\"stockctl\", error=\"invalid_token\""),
        _ => Value::Null,
    }
}

/// Of a kind of problem, with what only this kind has.
pub(super) fn of_problem(code: &Code) -> Value {
    let mut example = json!({
        "type": format!("urn:stockctl:problem:{}", code.code),
        "title": code.title,
        "status": code.status,
        "detail": code.advice,
        "instance": "urn:stockctl:request:9f1c3a52-6f0b-4a56-8d0e-1f1d7a1c2b3d",
        "code": code.code,
    });
    let more = match *code {
        p::VALIDATION_FAILED => json!({
            "detail": "/lines/0/quantity: must be 1 to 1000000, is 0",
            "errors": [{ "pointer": "/lines/0/quantity", "detail": "must be 1 to 1000000, is 0" }],
        }),
        p::MALFORMED_JSON => json!({
            "detail": "expected value at line 1 column 43",
            "errors": [{ "pointer": "/lines/0/quantity", "detail": "expected value at line 1 column 43" }],
        }),
        p::INVALID_PARAMETER => json!({
            "detail": "limit: must be 1 to 200, is 201",
            "errors": [{ "parameter": "limit", "detail": "must be 1 to 200, is 201" }],
        }),
        p::OUTCOME_UNKNOWN => json!({ "orderId": ORDER }),
        p::INSUFFICIENT_SCOPE => {
            json!({ "detail": "this needs an API key with the scope orders:write" })
        }
        _ => json!({}),
    };
    if let (Some(example), Value::Object(more)) = (example.as_object_mut(), more) {
        example.extend(more);
    }
    example
}
