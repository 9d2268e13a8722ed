//! The description of the API (OpenAPI 3.1): what the handlers and their types say of themselves, and what is true of all.
//! A test holds that no route is missing; the integration tests hold every answer against it.

use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::problem::{self, CODES, Code, ProblemBody};

/// What the handlers say of themselves.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "stockctl",
        description = "One aggregated view of several vendors' stock, and orders against it, each decided exactly once.\n\n\
            - Whatever goes wrong is answered as `application/problem+json` (RFC 9457) with a stable `code`.\n\
            - `POST /orders` is safe to repeat with the same `Idempotency-Key`; a 202 is durable.\n\
            - Every path that answers GET answers HEAD; another method is answered 405 with `Allow`.\n\
            - Fields that are not described are refused. Times are RFC 3339, in UTC.\n\
            - Lists come in pages: `limit` is 1 to 200, and `nextCursor` leads to the next one, also as `Link: <…>; rel=\"next\"`.\n\
            - Bodies of requests have at most 64 KiB, unless an operation says otherwise. Answers to GET of 1 KiB and more \
            are compressed with gzip if `Accept-Encoding` takes it.",
    ),
    tags(
        (name = "orders", description = "Orders: placed, decided, told to the vendors"),
        (name = "products", description = "What can be ordered"),
        (name = "vendors", description = "The vendors, and their own stock"),
        (name = "operations", description = "For operators and supervisors"),
    ),
    paths(
        super::orders::place,
        super::batch::place_all,
        super::orders::list,
        super::orders::show,
        super::orders::cancel,
        super::products::list,
        super::products::show,
        super::movements::list,
        super::vendors::list,
        super::vendors::show_product,
        super::vendors::put_product,
        super::vendors::apply_updates,
        super::admin::sync,
        super::admin::queues,
        super::admin::overview,
        super::dead_letters::list,
        super::dead_letters::show,
        super::dead_letters::replay,
        super::dead_letters::drop,
        super::health::alive,
        super::health::ready,
        super::metrics::show,
        super::page::page,
        super::page::script,
        super::page::style,
        super::docs::description,
        super::docs::page,
        super::docs::script,
    ),
    components(schemas(ProblemBody<'static>))
)]
struct Handlers;

/// The whole description.
#[must_use]
pub fn document() -> Value {
    let mut document = serde_json::to_value(Handlers::openapi()).unwrap_or_default();
    // Which server it is, whoever reads it knows.
    if let Some(info) = document["info"].as_object_mut() {
        info.remove("contact");
    }
    what_cannot_be_derived(&mut document);
    older_path(&mut document);
    let examples: Map<String, Value> = CODES
        .iter()
        .map(|code| (code.code.to_owned(), json!({ "value": example_of(code) })))
        .collect();
    document["components"]["examples"] = Value::Object(examples);
    document["components"]["headers"] = json!({ "X-Request-Id": {
        "description": "Which request it was: its caller's name for it, or ours. It is in our log.",
        "schema": { "type": "string" },
    }});
    document["components"]["parameters"] = json!({ "X-Request-Id": {
        "name": "X-Request-Id", "in": "header", "required": false,
        "description": "Your name for this request, to find it in our log; another one is not taken over",
        "schema": { "type": "string", "pattern": "^[A-Za-z0-9._~:=+@-]{1,64}$" },
    }});
    let paths = document["paths"].as_object_mut();
    for (path, operations) in paths.into_iter().flatten() {
        for (method, operation) in operations.as_object_mut().into_iter().flatten() {
            operation["operationId"] = json!(operation_id(method, path));
            complete(path, method, operation);
        }
    }
    document
}

/// The body of an order has one of two forms, and what was summed is not bounded as what was asked for.
fn what_cannot_be_derived(document: &mut Value) {
    let schemas = &mut document["components"]["schemas"];
    schemas["Lines"]["items"] = json!({
        "type": "object",
        "required": ["productId", "quantity"],
        "properties": {
            "productId": { "$ref": "#/components/schemas/ProductId" },
            "quantity": { "type": "integer", "format": "int64", "minimum": 1, "description": "Units, summed" },
        },
    });
    for request in ["OrderRequest", "BatchOrder"] {
        schemas[request]["oneOf"] =
            json!([{ "required": ["lines"] }, { "required": ["productId", "quantity"] }]);
    }
}

/// `POST /order` is `POST /orders`.
fn older_path(document: &mut Value) {
    let mut place = document["paths"]["/orders"]["post"].clone();
    place["deprecated"] = json!(true);
    place["summary"] = json!("Place an order, by the older path");
    document["paths"]["/order"] = json!({ "post": place });
}

/// Unique, and stable as long as the route is: `getOrdersById`.
fn operation_id(method: &str, path: &str) -> String {
    let mut id = method.to_owned();
    for part in path.split(['/', '-', '.']).filter(|part| !part.is_empty()) {
        let (prefix, part) = match part.strip_prefix('{') {
            Some(parameter) => ("By", parameter.trim_end_matches('}')),
            None => ("", part),
        };
        id.push_str(prefix);
        let mut letters = part.chars();
        id.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        id.push_str(letters.as_str());
    }
    id
}

/// Adds what is true of every operation, or follows from its form.
fn complete(path: &str, method: &str, operation: &mut Value) {
    let mut of_status: std::collections::BTreeMap<u16, Vec<&Code>> = Default::default();
    for code in problems(path, method, operation) {
        of_status.entry(code.status).or_default().push(code);
    }
    for (status, codes) in of_status {
        add_problems(operation, status, &codes);
    }
    let responses = operation["responses"].as_object_mut();
    for (_, response) in responses.into_iter().flatten() {
        response["headers"]["X-Request-Id"] =
            json!({ "$ref": "#/components/headers/X-Request-Id" });
    }
    let parameter = json!({ "$ref": "#/components/parameters/X-Request-Id" });
    match operation["parameters"].as_array_mut() {
        Some(parameters) => parameters.push(parameter),
        None => operation["parameters"] = json!([parameter]),
    }
}

/// The problems that an operation can answer with.
fn problems(path: &str, method: &str, operation: &Value) -> Vec<&'static Code> {
    use problem as p;
    let has_parameter = |place: &str| {
        let parameters = operation["parameters"].as_array();
        parameters.is_some_and(|all| all.iter().any(|parameter| parameter["in"] == place))
    };
    let is_ours_alone = [
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/docs",
        "/page",
    ]
    .iter()
    .any(|ours| path == "/" || path.starts_with(ours));
    let mut codes = vec![p::NOT_ACCEPTABLE, p::INTERNAL];
    if !is_ours_alone {
        codes.push(p::UNAVAILABLE);
    }
    if has_parameter("path") {
        codes.push(p::NOT_FOUND);
    }
    if has_parameter("query") {
        codes.push(p::INVALID_PARAMETER);
    }
    if operation.get("requestBody").is_some() {
        codes.extend([
            p::MALFORMED_JSON,
            p::REQUEST_TIMEOUT,
            p::BODY_TOO_LARGE,
            p::UNSUPPORTED_MEDIA_TYPE,
            p::VALIDATION_FAILED,
        ]);
    }
    match (method, path) {
        ("post", "/orders" | "/order") => codes.extend([
            p::INVALID_PARAMETER,
            p::IDEMPOTENCY_CONFLICT,
            p::BUSY,
            p::OUTCOME_UNKNOWN,
        ]),
        ("post", "/orders/batch") => codes.push(p::BUSY),
        ("get", "/orders/{id}") => codes.extend([p::INVALID_PARAMETER, p::NOT_YET_VISIBLE]),
        ("post", "/orders/{id}/cancel") => codes.extend([p::NOT_CANCELLABLE, p::NOT_YET_VISIBLE]),
        ("put", "/vendors/{vendor}/products/{id}") => {
            codes.extend([p::INVALID_PARAMETER, p::PRECONDITION_FAILED]);
        }
        _ => {}
    }
    // In the order of the table.
    CODES.iter().filter(|code| codes.contains(code)).collect()
}

fn add_problems(operation: &mut Value, status: u16, codes: &[&Code]) {
    let lines: Vec<String> = codes
        .iter()
        .map(|code| format!("`{}`: {}. {}", code.code, code.title, code.advice))
        .collect();
    let names: Vec<&str> = codes.iter().map(|code| code.code).collect();
    let examples: Map<String, Value> = names
        .iter()
        .map(|name| {
            let place = format!("#/components/examples/{name}");
            ((*name).to_owned(), json!({ "$ref": place }))
        })
        .collect();
    let content = json!({
        "schema": {
            "allOf": [{ "$ref": "#/components/schemas/Problem" }],
            "properties": { "code": { "enum": names }, "status": { "const": status } },
        },
        "examples": examples,
    });
    let response = &mut operation["responses"][status.to_string()];
    if response.is_null() {
        *response = json!({ "description": lines.join("\n\n") });
    }
    response["content"]["application/problem+json"] = content;
    if status == 503 {
        response["headers"]["Retry-After"] = json!({
            "description": "Seconds after which to try again",
            "schema": { "type": "integer" },
        });
    }
}

fn example_of(code: &Code) -> Value {
    json!({
        "type": format!("urn:stockctl:problem:{}", code.code),
        "title": code.title,
        "status": code.status,
        "detail": code.advice,
        "instance": "urn:stockctl:request:9f1c3a52-6f0b-4a56-8d0e-1f1d7a1c2b3d",
        "code": code.code,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::http::routes;

    #[test]
    fn every_route_is_described_and_nothing_else_is() {
        let served: BTreeSet<String> = routes()
            .iter()
            .flat_map(|at| {
                let (path, methods) = at.methods();
                // A HEAD goes with each GET.
                let methods = methods.iter().filter(|method| *method != "HEAD");
                methods
                    .map(|method| format!("{method} {path}"))
                    .collect::<Vec<_>>()
            })
            .collect();
        let document = document();
        let described: BTreeSet<String> = document["paths"]
            .as_object()
            .expect("paths")
            .iter()
            .flat_map(|(path, operations)| {
                let methods = operations.as_object().expect("operations").keys();
                methods.map(move |method| format!("{} {path}", method.to_uppercase()))
            })
            .collect();
        assert_eq!(described, served);
    }

    /// All that an object refers to, however deep.
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) => {
                for (key, value) in object {
                    match (key.as_str(), value) {
                        ("$ref", Value::String(place)) => {
                            found.insert(place.clone());
                        }
                        _ => references(value, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn the_description_is_whole() {
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        let mut referred = BTreeSet::new();
        references(&document, &mut referred);
        for place in &referred {
            let pointer = place.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{place} is missing");
        }
        let mut ids = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().expect("paths") {
            for (method, operation) in operations.as_object().expect("operations") {
                let what = format!("{method} {path}");
                let id = operation["operationId"].as_str().expect("an id");
                assert!(ids.insert(id.to_owned()), "{what}: {id} comes twice");
                assert!(operation["summary"].is_string(), "{what} has no summary");
                assert!(operation["tags"][0].is_string(), "{what} has no tag");
                for (status, response) in operation["responses"].as_object().expect("responses") {
                    assert!(
                        response["headers"]["X-Request-Id"].is_object(),
                        "{what} {status}"
                    );
                    for (kind, content) in response["content"].as_object().into_iter().flatten() {
                        let has_example =
                            content.get("example").is_some() || content.get("examples").is_some();
                        assert!(
                            has_example || kind.starts_with("text/"),
                            "{what} {status} has no example of {kind}"
                        );
                    }
                }
                for content in operation["requestBody"]["content"]
                    .as_object()
                    .into_iter()
                    .flat_map(Map::values)
                {
                    let has_example =
                        content.get("example").is_some() || content.get("examples").is_some();
                    assert!(has_example, "{what} has no example of its body");
                }
            }
        }
        // Every kind of problem is met somewhere, but for the method that no operation has.
        for code in CODES
            .iter()
            .filter(|code| **code != problem::METHOD_NOT_ALLOWED)
        {
            let place = format!("#/components/examples/{}", code.code);
            assert!(referred.contains(&place), "nobody answers {}", code.code);
        }
    }
}
