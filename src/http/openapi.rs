//! The description of the API (OpenAPI 3.1): what the handlers and their types say of themselves, and what is true of all.
//! A test holds that no route is missing; the integration tests hold every answer against it.

mod examples;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::auth::{self, Needs};
use super::cors;
use super::health::READY;
use super::problem::{self, CODES, Code, ProblemBody};
use crate::db::movements::CAUSES;
use crate::db::vendor_pushes::STATES;
use crate::domain::events::{DROPPED, RESET};

/// What the handlers say of themselves.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "stockctl",
        description = "One aggregated view of several vendors' stock, and orders against it, each decided exactly once.\n\n\
            - Whatever goes wrong is answered as `application/problem+json` (RFC 9457) with a stable `code`.\n\
            - `POST /orders` and `POST /webhooks` are safe to repeat with the same `Idempotency-Key`; a 202 is durable.\n\
            - Every path that answers GET answers HEAD, and browsers' preflights (OPTIONS) are answered where pages of other \
            origins may call (`http.cors_origins`); another method is answered 405 with `Allow`.\n\
            - Where the installation requires keys (`http.require_keys`), each request but those for `/healthz`, `/readyz` and \
            this description has one: `Authorization: Bearer …`, with the scope that the operation names; the scope `admin` \
            is all of them. Each caller sees and repeats only its own orders.\n\
            - Where the installation limits how much a caller may ask for, `RateLimit` says how it stands, and more is answered \
            429 with `Retry-After`; a batch counts as its orders.\n\
            - Fields and parameters that are not described are refused. Times are RFC 3339, in UTC.\n\
            - A field without a value is left out, unless it is described as `null`.\n\
            - Lists that grow come in pages: `limit` is 1 to 200, and `nextCursor` leads to the next one, also as `Link: <…>; rel=\"next\"`.\n\
            - Bodies of requests have at most 64 KiB, unless an operation says otherwise. Answers to GET of 1 KiB and more \
            are compressed with gzip if `Accept-Encoding` takes it.",
    ),
    tags(
        (name = "orders", description = "Orders: placed, decided, told to the vendors"),
        (name = "products", description = "What can be ordered"),
        (name = "vendors", description = "The vendors, and their own stock"),
        (name = "webhooks", description = "Being told of events by HTTP"),
        (name = "operations", description = "For operators and supervisors"),
    ),
    paths(
        super::orders::place,
        super::batch::place_all,
        super::orders::list,
        super::orders::show,
        super::orders::cancel,
        super::events::listen,
        super::webhooks::create,
        super::webhooks::list,
        super::webhooks::show,
        super::webhooks::delete,
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
        super::auth::log_in,
        super::auth::log_out,
        super::page::page,
        super::page::script,
        super::page::style,
        super::docs::description,
        super::docs::page,
        super::docs::script,
    ),
    components(schemas(ProblemBody<'static>, crate::domain::events::Document<'static>, crate::domain::events::Notice<'static>))
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
    links(&mut document);
    document["webhooks"] = what_receivers_are_sent();
    let examples: Map<String, Value> = CODES
        .iter()
        .map(|code| {
            (
                code.code.to_owned(),
                json!({ "value": examples::of_problem(code) }),
            )
        })
        .collect();
    document["components"]["examples"] = Value::Object(examples);
    document["components"]["headers"] = headers();
    document["components"]["parameters"] = parameters();
    document["components"]["securitySchemes"] = json!({
        "apiKey": {
            "type": "http", "scheme": "bearer",
            "description": "An API key, made by `stockctl keys create`. Needed where http.require_keys is set.",
        },
        "pageCookie": {
            "type": "apiKey", "in": "cookie", "name": auth::COOKIE,
            "description": "What `POST /login` sets: the key of who uses the operator's page. It counts where a page of this \
                server sends it, and no `Authorization` does.",
        },
    });
    let needs = needs();
    let paths = document["paths"].as_object_mut();
    for (path, operations) in paths.into_iter().flatten() {
        for (method, operation) in operations.as_object_mut().into_iter().flatten() {
            operation["operationId"] = json!(operation_id(method, path));
            let needs = needs.get(&(method.to_uppercase(), path.clone()));
            // Whoever forgets one claims too much.
            let needs = needs.copied().unwrap_or(Needs::AnyKey);
            operation["security"] = match needs {
                Needs::Nothing => json!([]),
                Needs::AnyKey => json!([{ "apiKey": [] }, { "pageCookie": [] }, {}]),
                Needs::Scope(scope) => {
                    json!([{ "apiKey": [scope.as_str()] }, { "pageCookie": [] }, {}])
                }
            };
            complete(path, method, needs, operation);
            name_examples(operation);
        }
    }
    document
}

/// An example of a body as one of several: of a single one, the page takes a field that is null for a mistake, and shows
/// nothing of the operation.
fn name_examples(operation: &mut Value) {
    let in_answers = operation["responses"]
        .as_object()
        .into_iter()
        .flat_map(|answers| answers.keys())
        .map(|status| format!("/responses/{status}/content"));
    let places: Vec<String> = in_answers
        .chain(["/requestBody/content".to_owned()])
        .collect();
    for place in places {
        let types = operation.pointer_mut(&place).and_then(Value::as_object_mut);
        for content in types.into_iter().flat_map(Map::values_mut) {
            let example = content.as_object_mut().and_then(|of| of.remove("example"));
            if let Some(example) = example {
                content["examples"]["example"] = json!({ "value": example });
            }
        }
    }
}

/// The headers that every answer has; the last two, and `Vary`, where that is so.
const OF_ALL: [&str; 9] = [
    "X-Request-Id",
    "Cache-Control",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "Referrer-Policy",
    "Content-Security-Policy",
    "Vary",
    "Access-Control-Allow-Origin",
    "Access-Control-Expose-Headers",
];

/// What many answers have.
fn headers() -> Value {
    let header = |description: &str, example: &str| {
        json!({
            "description": description,
            "schema": { "type": "string" },
            "example": example,
        })
    };
    json!({
        "X-Request-Id": header("Which request it was: its caller's name for it, or ours. It is in our log.", "checkout-4711"),
        "Cache-Control": header(
            "Whether the answer may be kept: `no-store`, but where it has an `ETag` or does not change",
            "no-store",
        ),
        "Vary": header(
            "What the answer depends on: `Accept-Encoding` where it may be compressed, `Origin` where pages of other origins may call",
            "Accept-Encoding",
        ),
        "X-Content-Type-Options": header("For browsers: it is what its `Content-Type` says", "nosniff"),
        "X-Frame-Options": header("For browsers: no page may show it within itself", "DENY"),
        "Referrer-Policy": header("For browsers: who is called from here is not told where from", "no-referrer"),
        "Content-Security-Policy": header(
            "For browsers: what it may load and run, which for all but our pages is nothing",
            "default-src 'none'; frame-ancestors 'none'",
        ),
        "Access-Control-Allow-Origin": header(
            "For pages of the origins that may call (`http.cors_origins`): theirs",
            "https://shop.example",
        ),
        "Access-Control-Expose-Headers": header(
            "For the same pages: which headers they may read",
            cors::MAY_READ,
        ),
        "Content-Encoding": header("`gzip`, where the answer is compressed", "gzip"),
        "RateLimit": header(
            "Where the installation limits callers: how many requests may still come at once (`r`), and the seconds after which all may again (`t`)",
            "\"caller\";r=4;t=3",
        ),
        "RateLimit-Policy": header(
            "Where the installation limits callers: how many requests may come at once (`q`), and the seconds in which so many come again (`w`)",
            "\"caller\";q=25;w=3",
        ),
    })
}

/// What every request may have.
fn parameters() -> Value {
    let parameter = |name: &str, description: &str, example: &str| {
        json!({
            "name": name, "in": "header", "required": false,
            "description": description,
            "schema": { "type": "string" },
            "example": example,
        })
    };
    json!({
        "X-Request-Id": parameter(
            "X-Request-Id",
            "Your name for this request, to find it in our log: 1 to 64 of A-Z a-z 0-9 - . _ ~ : = + @; another one is not taken over",
            "checkout-4711",
        ),
        "traceparent": parameter(
            "traceparent",
            "The trace that the request belongs to (W3C Trace Context); its parts here, in messages and at the vendors belong to it too. One that cannot be read is none",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        "tracestate": parameter(
            "tracestate",
            "What tracing systems say of that trace; it is passed on with it",
            "shop=7",
        ),
    })
}

/// What each operation needs, by its method and path.
fn needs() -> BTreeMap<(String, String), Needs> {
    let mut needs = BTreeMap::new();
    for at in super::routes() {
        let (path, methods) = at.methods();
        for (method, of_method) in methods {
            needs.insert((method.to_string(), path.to_owned()), *of_method);
        }
    }
    needs
}

/// What types do not say: which fields go together, how a cursor looks, and what was summed is not bounded as what was
/// asked for.
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
    schemas["ProductId"]["pattern"] = json!(WITHOUT_CONTROLS);
    for request in ["OrderRequest", "BatchOrder"] {
        in_two_forms(schemas, request);
    }
    when_of_each_event(schemas);
    closed_sets(schemas);
    for (field, schema) in [
        ("reference", json!({ "pattern": WITHOUT_NUL })),
        ("idempotencyKey", json!({ "pattern": KEY })),
    ] {
        for schemas in schemas.as_object_mut().into_iter().flatten() {
            let property = schemas.1.pointer_mut(&format!("/properties/{field}"));
            if let Some(property) = property.and_then(Value::as_object_mut) {
                property.extend(schema.as_object().cloned().unwrap_or_default());
            }
        }
    }
    let update = &mut schemas["StockUpdate"];
    update["if"] = json!({ "properties": { "delta": { "exclusiveMinimum": 0 } } });
    update["then"] =
        json!({ "required": ["reverses"], "properties": { "reverses": { "type": "string" } } });
    update["else"] = json!({ "properties": { "reverses": { "type": "null" } } });
    update["properties"]["delta"]["not"] = json!({ "const": 0 });
    let selecting = ["messageId", "messageIds", "reason", "orderId", "limit"];
    let none: Map<String, Value> = selecting
        .iter()
        .map(|field| ((*field).to_owned(), json!({ "type": "null" })))
        .collect();
    let some: Vec<Value> = selecting
        .iter()
        .map(|field| json!({ "required": [field], "properties": { *field: { "not": { "type": "null" } } } }))
        .collect();
    let selection = &mut schemas["DeadLettersSelection"];
    selection["if"] = json!({ "required": ["all"], "properties": { "all": { "const": true } } });
    selection["then"] = json!({ "properties": none });
    selection["else"] = json!({ "anyOf": some });
    selection["properties"]["messageIds"]["items"]["minLength"] = json!(1);
    for (path, schema) in [
        (
            "/orders",
            json!({ "type": "string", "pattern": "^(0|[1-9][0-9]{0,16})\\.[0-9a-f]{32}$" }),
        ),
        (
            "/webhooks",
            json!({ "type": "string", "pattern": "^(0|[1-9][0-9]{0,16})\\.[0-9a-f]{32}$" }),
        ),
        (
            "/admin/dead-letters/{queue}",
            json!({ "type": "string", "pattern": "^[0-9a-f]{32}\\.(0|[1-9][0-9]{0,9})$" }),
        ),
        (
            "/products",
            json!({ "$ref": "#/components/schemas/ProductId" }),
        ),
        (
            "/products/{id}/movements",
            json!({ "type": "string", "pattern": "^(0|[1-9][0-9]{0,16})\\.[!-~]{1,100}$" }),
        ),
    ] {
        set_parameter(&mut document["paths"][path]["get"], "cursor", &schema);
    }
    set_parameter(
        &mut document["paths"]["/products"]["get"],
        "q",
        &json!({ "type": "string", "minLength": 1, "maxLength": 100, "pattern": WITHOUT_NUL }),
    );
    let key = json!({ "type": "string", "minLength": 1, "maxLength": 255, "pattern": KEY });
    for path in ["/orders", "/webhooks"] {
        let operation = &mut document["paths"][path]["post"];
        set_parameter(operation, "Idempotency-Key", &key);
    }
    for path in ["/orders/{id}/cancel", "/admin/sync"] {
        document["paths"][path]["post"]["requestBody"]["required"] = json!(false);
    }
    let dead_letter_queues =
        json!({ "type": "string", "enum": ["orders_dlq", "vendor_sync_dlq", "webhooks_dlq"] });
    let paths = document["paths"].as_object_mut();
    for operation in paths
        .into_iter()
        .flatten()
        .flat_map(|(_, o)| o.as_object_mut().into_iter().flatten())
    {
        set_parameter(operation.1, "queue", &dead_letter_queues);
    }
}

/// As `ProductId` checks it.
const WITHOUT_CONTROLS: &str = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$";
/// An idempotency key: printable ASCII, without blanks around it.
const KEY: &str = "^[!-~]([ -~]*[!-~])?$";
/// What PostgreSQL can hold as text.
const WITHOUT_NUL: &str = "^[^\\u0000]*$";

fn set_parameter(operation: &mut Value, name: &str, schema: &Value) {
    let parameters = operation["parameters"].as_array_mut();
    for parameter in parameters.into_iter().flatten() {
        if parameter["name"] == name {
            parameter["schema"] = schema.clone();
        }
    }
}

/// What a text is one of.
fn closed_sets(schemas: &mut Value) {
    let codes: Vec<&str> = CODES.iter().map(|code| code.code).collect();
    for (schema, field, names) in [
        ("Problem", "code", codes.as_slice()),
        ("EventNotice", "type", &[RESET, DROPPED]),
        ("Movement", "cause", &CAUSES),
        ("Vendor", "pushState", &STATES),
    ]
    .into_iter()
    .chain(READY.map(|(field, names)| ("Ready", field, names)))
    {
        let property = &mut schemas[schema]["properties"][field];
        let mut names = json!(names);
        if property["type"].is_array()
            && let Some(names) = names.as_array_mut()
        {
            names.push(Value::Null);
        }
        property["enum"] = names;
    }
}

/// An entry is an event and its time: said of each kind of event, since generators of clients know no sum of a choice and
/// an object.
fn when_of_each_event(schemas: &mut Value) {
    let mut events = schemas["HistoryEvent"]["oneOf"].take();
    let at = schemas["HistoryEntry"]["allOf"][1]["properties"]["at"].take();
    for event in events.as_array_mut().into_iter().flatten() {
        event["properties"]["at"] = at.clone();
        if let Some(required) = event["required"].as_array_mut() {
            required.push(json!("at"));
        }
    }
    schemas["HistoryEntry"] = json!({ "description": "Something that happened.", "oneOf": events });
    if let Some(schemas) = schemas.as_object_mut() {
        schemas.remove("HistoryEvent");
    }
}

/// An order has one of two forms, each a schema with a name, so that generated clients have a type for each.
fn in_two_forms(schemas: &mut Value, request: &str) {
    let whole = schemas[request].clone();
    let form = |fields: &[&str], others: &[&str]| {
        let mut form = whole.clone();
        for field in fields {
            // A field that is meant is there, and is not null.
            let property = &mut form["properties"][*field];
            if property["type"].is_array() {
                property["type"] = property["type"][0].clone();
            } else {
                *property = property["oneOf"][0].clone();
            }
        }
        for field in others {
            form["properties"][*field] = json!({ "type": "null" });
        }
        form["required"] = json!(fields);
        form
    };
    let names = [
        format!("{request}OfLines"),
        format!("{request}OfOneProduct"),
    ];
    let references = names
        .each_ref()
        .map(|name| json!({ "$ref": format!("#/components/schemas/{name}") }));
    let [of_lines, of_one] = names;
    schemas[of_lines] = form(&["lines"], &["productId", "quantity"]);
    schemas[of_one] = form(&["productId", "quantity"], &["lines"]);
    schemas[request] = json!({ "description": whole["description"], "oneOf": references });
}

/// Where to go with an answer: to the order, and to its cancellation.
fn links(document: &mut Value) {
    let to =
        |operation: &str, id: &str| json!({ "operationId": operation, "parameters": { "id": id } });
    let of_one = json!({
        "theOrder": to("getOrdersById", "$response.body#/id"),
        "itsCancellation": to("postOrdersByIdCancel", "$response.body#/id"),
    });
    for (path, method, statuses) in [
        ("/orders", "post", &["200", "202"][..]),
        ("/order", "post", &["200", "202"]),
        ("/orders/{id}", "get", &["200", "202"]),
    ] {
        for status in statuses {
            document["paths"][path][method]["responses"][*status]["links"] = of_one.clone();
        }
    }
    document["paths"]["/webhooks"]["post"]["responses"]["201"]["links"] = json!({
        "theWebhook": to("getWebhooksById", "$response.body#/id"),
        "itsEnd": to("deleteWebhooksById", "$response.body#/id"),
    });
    document["paths"]["/orders"]["get"]["responses"]["200"]["links"] =
        json!({ "theNewest": to("getOrdersById", "$response.body#/orders/0/id") });
    document["paths"]["/products"]["get"]["responses"]["200"]["links"] =
        json!({ "theFirst": to("getProductsById", "$response.body#/products/0/id") });
}

/// What is sent to those who subscribe: each event, and the notice that some are gone.
fn what_receivers_are_sent() -> Value {
    let header = |name: &str, description: &str, example: &str| {
        json!({
            "name": name, "in": "header", "required": true, "description": description,
            "schema": { "type": "string", "examples": [example] },
        })
    };
    let event = json!({
        "type": "order.confirmed", "at": "2026-11-26T01:42:16.696737Z",
        "order": {
            "id": "01a21584-8706-763e-b5e8-dd1039028028", "status": "confirmed",
            "lines": [{ "productId": "p2", "quantity": 18 }], "acceptedAt": "2026-11-26T01:42:16.582834Z",
        },
    });
    let schema = json!({ "oneOf": [
        { "$ref": "#/components/schemas/Event" },
        { "$ref": "#/components/schemas/EventNotice" },
    ] });
    json!({ "event": { "post": {
        "operationId": "receiveEvent",
        "summary": "An event, as its subscribers are told",
        "description": "Signed as Standard Webhooks says: `webhook-signature` is `v1,` and the base64 of the HMAC-SHA256, with \
            the bytes of the secret, of `webhook-id`, `webhook-timestamp` and the body, joined by dots. Compare the id with those \
            that came before: a message whose answer was lost comes again. Messages may come in another order than events \
            happened in. A notice of the type `reset` says that events before it are gone.",
        "parameters": [
            header(crate::domain::webhooks::HEADER_ID, "The same at every attempt", "0d8f4f4c-6f6c-5a57-9d1b-20c751a3e96b"),
            header(crate::domain::webhooks::HEADER_TIMESTAMP, "When this attempt was made, in seconds since 1970", "1795657336"),
            header(crate::domain::webhooks::HEADER_SIGNATURE, "What it is signed with", "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="),
        ],
        "requestBody": { "required": true, "content": { "application/json": { "schema": schema, "example": event } } },
        "responses": {
            "2XX": { "description": "It is taken" },
            "410": { "description": "The receiver wants no more: its subscription is disabled" },
            "default": { "description": "It is not taken, and comes again: after `Retry-After`, where 429 or 503 say so" },
        },
    } } })
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
fn complete(path: &str, method: &str, needs: Needs, operation: &mut Value) {
    let mut of_status: BTreeMap<u16, Vec<&Code>> = BTreeMap::new();
    for code in problems(path, method, needs, operation) {
        of_status.entry(code.status).or_default().push(code);
    }
    for (status, codes) in of_status {
        add_problems(operation, status, &codes);
    }
    // A header has no way to be null: it is left out.
    let parameters = operation["parameters"].as_array_mut();
    for parameter in parameters.into_iter().flatten() {
        let Some(kind) = parameter.pointer_mut("/schema/type") else {
            continue;
        };
        if let Some([one, null]) = kind.as_array().map(Vec::as_slice)
            && null == "null"
        {
            *kind = one.clone();
        }
    }
    // Who has the page is told of the next one all the same.
    let link = operation["responses"]["200"]["headers"]
        .get("Link")
        .cloned();
    let responses = operation["responses"].as_object_mut();
    for (status, response) in responses.into_iter().flatten() {
        let mut names = OF_ALL.to_vec();
        if needs != Needs::Nothing {
            names.extend(["RateLimit", "RateLimit-Policy"]);
        }
        // Events leave as they come.
        if method == "get" && status.starts_with('2') && path != "/events" {
            names.push("Content-Encoding");
        }
        for name in names {
            let place = format!("#/components/headers/{name}");
            response["headers"][name] = json!({ "$ref": place });
        }
        if status == "304" {
            response["headers"]["ETag"] = json!({
                "description": "Its version: that of what you have",
                "schema": { "type": "string" },
            });
            if let Some(link) = &link {
                response["headers"]["Link"] = link.clone();
            }
        }
    }
    let of_all = ["X-Request-Id", "traceparent", "tracestate"]
        .map(|name| json!({ "$ref": format!("#/components/parameters/{name}") }));
    match operation["parameters"].as_array_mut() {
        Some(parameters) => parameters.extend(of_all),
        None => operation["parameters"] = json!(of_all),
    }
    examples::complete(path, operation);
}

/// The problems that an operation can answer with.
fn problems(path: &str, method: &str, needs: Needs, operation: &Value) -> Vec<&'static Code> {
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
        "/log",
    ]
    .iter()
    .any(|ours| path == "/" || path.starts_with(ours));
    let mut codes = vec![
        p::TLS_REQUIRED,
        p::MALFORMED_REQUEST,
        p::REQUEST_TIMEOUT,
        p::HEADERS_TOO_LARGE,
        p::METHOD_NOT_ALLOWED,
        p::URI_TOO_LONG,
        p::INTERNAL,
    ];
    // An answer without a body is taken by everybody.
    if method != "delete" && !["/login", "/logout"].contains(&path) {
        codes.push(p::NOT_ACCEPTABLE);
    }
    if !["/healthz", "/readyz"].contains(&path) {
        codes.push(p::MISDIRECTED_REQUEST);
    }
    if !is_ours_alone {
        codes.push(p::UNAVAILABLE);
    }
    if needs != Needs::Nothing {
        // The keys are not known.
        codes.extend([
            p::UNAUTHENTICATED,
            p::INVALID_KEY,
            p::RATE_LIMITED,
            p::UNAVAILABLE,
            // A parameter that there is not.
            p::INVALID_PARAMETER,
        ]);
    }
    if matches!(needs, Needs::Scope(_)) {
        codes.push(p::INSUFFICIENT_SCOPE);
    }
    if method != "get" {
        codes.push(p::CROSS_ORIGIN);
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
            p::INCOMPLETE_BODY,
            p::REQUEST_TIMEOUT,
            p::BODY_TOO_LARGE,
            p::UNSUPPORTED_MEDIA_TYPE,
            p::VALIDATION_FAILED,
        ]);
    }
    match (method, path) {
        ("post", "/login") => codes.extend([p::INVALID_KEY, p::INSUFFICIENT_SCOPE, p::UNAVAILABLE]),
        ("post", "/orders" | "/order") => codes.extend([
            p::INVALID_PARAMETER,
            p::IDEMPOTENCY_CONFLICT,
            p::BUSY,
            p::OUTCOME_UNKNOWN,
        ]),
        ("post", "/orders/batch") => codes.push(p::BUSY),
        ("post", "/webhooks") => codes.extend([
            p::INVALID_PARAMETER,
            p::INSUFFICIENT_SCOPE,
            p::TOO_MANY_WEBHOOKS,
            p::IDEMPOTENCY_CONFLICT,
            p::OUTCOME_UNKNOWN,
        ]),
        ("get", "/events") => codes.extend([p::INSUFFICIENT_SCOPE, p::TOO_MANY_LISTENERS]),
        ("get", "/orders/{id}") => codes.extend([p::INVALID_PARAMETER, p::NOT_YET_VISIBLE]),
        ("post", "/orders/{id}/cancel") => codes.extend([p::NOT_CANCELLABLE, p::NOT_YET_VISIBLE]),
        ("get", "/vendors/{vendor}/products/{id}") => {
            codes.extend([p::INVALID_PARAMETER, p::PRECONDITION_FAILED]);
        }
        ("put", "/vendors/{vendor}/products/{id}") => codes.extend([
            p::INVALID_PARAMETER,
            p::PRECONDITION_FAILED,
            p::OUTCOME_UNKNOWN,
        ]),
        ("delete", "/webhooks/{id}") => codes.push(p::WEBHOOK_CONFIGURED),
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
    if status == 405 {
        response["headers"]["Allow"] = json!({
            "description": "The methods that there are at this path",
            "schema": { "type": "string" },
        });
    }
    if status == 401 || names.contains(&problem::INSUFFICIENT_SCOPE.code) {
        response["headers"]["WWW-Authenticate"] = json!({
            "description": "`Bearer`, with what is wrong with the key that came, and the scope that it lacks",
            "schema": { "type": "string" },
        });
    }
    if status == 429 || status == 503 {
        response["headers"]["Retry-After"] = json!({
            "description": "Seconds after which to try again",
            "schema": { "type": "integer" },
        });
    }
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
                let methods = methods.iter().filter(|(method, _)| *method != "HEAD");
                methods
                    .map(|(method, _)| format!("{method} {path}"))
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

    /// Seen by people whenever it changes: whoever gives a route too little to ask for opens it.
    #[test]
    fn what_each_operation_needs_is_meant() {
        let lines: Vec<String> = needs()
            .into_iter()
            .filter(|((method, _), _)| method != "HEAD")
            .map(|((method, path), needs)| match needs {
                Needs::Nothing => format!("{method} {path}"),
                Needs::AnyKey => format!("{method} {path}: any key"),
                Needs::Scope(scope) => format!("{method} {path}: {scope}"),
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @"
        DELETE /webhooks/{id}: any key
        GET /
        GET /admin/dead-letters/{queue}: admin
        GET /admin/dead-letters/{queue}/{messageId}: admin
        GET /admin/overview: admin
        GET /admin/queues: admin
        GET /docs
        GET /docs/rapidoc-min.js
        GET /events: any key
        GET /healthz
        GET /metrics: admin
        GET /openapi.json
        GET /orders: orders:read
        GET /orders/{id}: orders:read
        GET /page/page.css
        GET /page/page.js
        GET /products: any key
        GET /products/{id}: any key
        GET /products/{id}/movements: admin
        GET /readyz
        GET /vendors: any key
        GET /vendors/{vendor}/products/{id}: any key
        GET /webhooks: any key
        GET /webhooks/{id}: any key
        POST /admin/dead-letters/{queue}/drop: admin
        POST /admin/dead-letters/{queue}/replay: admin
        POST /admin/sync: admin
        POST /login
        POST /logout
        POST /order: orders:write
        POST /orders: orders:write
        POST /orders/batch: orders:write
        POST /orders/{id}/cancel: orders:write
        POST /vendors/{vendor}/stock-updates: stock:write
        POST /webhooks: any key
        PUT /vendors/{vendor}/products/{id}: stock:write
        ");
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

    /// Each operation, with what to call it.
    fn operations(document: &Value) -> Vec<(String, &Value)> {
        let paths = document["paths"].as_object().expect("paths");
        paths
            .iter()
            .flat_map(|(path, operations)| {
                let operations = operations.as_object().expect("operations");
                operations
                    .iter()
                    .map(move |(method, operation)| (format!("{method} {path}"), operation))
            })
            .collect()
    }

    /// What stands there, or what it refers to.
    fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(place) => {
                let pointer = place.trim_start_matches('#');
                document.pointer(pointer).expect("it is there")
            }
            None => value,
        }
    }

    fn has_example(value: &Value) -> bool {
        value
            .get("example")
            .is_some_and(|example| !example.is_null())
            || value["examples"]
                .as_object()
                .is_some_and(|some| !some.is_empty())
    }

    /// Without the last of these, of a request or a response, nobody knows what it looks like.
    fn assert_shown(what: &str, contents: &Value) {
        for (kind, content) in contents.as_object().into_iter().flatten() {
            assert!(
                has_example(content) || kind.starts_with("text/"),
                "{what} has no example of {kind}"
            );
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
        for (what, operation) in operations(&document) {
            let id = operation["operationId"].as_str().expect("an id");
            assert!(ids.insert(id.to_owned()), "{what}: {id} comes twice");
            assert!(operation["summary"].is_string(), "{what} has no summary");
            assert!(operation["tags"][0].is_string(), "{what} has no tag");
            assert_shown(&what, &operation["requestBody"]["content"]);
            let mut names = BTreeSet::new();
            for parameter in operation["parameters"].as_array().expect("a list") {
                let parameter = resolved(&document, parameter);
                let name = parameter["name"].as_str().expect("a name");
                assert!(names.insert(name), "{what}: {name} comes twice");
                assert!(has_example(parameter), "{what} has no example of {name}");
                let kind = &parameter["schema"]["type"];
                assert!(
                    !kind.is_array(),
                    "{what}: {name} is {kind}, which cannot be sent"
                );
                assert!(
                    parameter["description"].is_string(),
                    "{what}: what is {name}?"
                );
            }
            for name in ["X-Request-Id", "traceparent", "tracestate"] {
                assert!(names.contains(name), "{what} does not take {name}");
            }
        }
        for code in CODES {
            let place = format!("#/components/examples/{}", code.code);
            assert!(referred.contains(&place), "nobody answers {}", code.code);
        }
    }

    #[test]
    fn each_answer_is_described_with_the_headers_that_it_has() {
        let document = document();
        for (what, operation) in operations(&document) {
            for (status, response) in operation["responses"].as_object().expect("responses") {
                let what = format!("{what} {status}");
                assert_shown(&what, &response["content"]);
                let headers = response["headers"].as_object().expect("headers");
                for (name, header) in headers {
                    let header = resolved(&document, header);
                    assert!(has_example(header), "{what} has no example of {name}");
                    assert!(header["description"].is_string(), "{what}: what is {name}?");
                }
                let codes = &response["content"]["application/problem+json"]["schema"];
                let codes = codes["properties"]["code"]["enum"].as_array();
                let may_be = |code: Code| codes.is_some_and(|all| all.contains(&json!(code.code)));
                let is_read = what.starts_with("get ")
                    && status.starts_with('2')
                    && !what.starts_with("get /events");
                for name in OF_ALL {
                    assert!(headers.contains_key(name), "{what}: {name}");
                }
                for (name, is_there) in [
                    ("Content-Encoding", is_read),
                    ("Allow", status == "405"),
                    ("Retry-After", ["429", "503"].contains(&status.as_str())),
                    (
                        "WWW-Authenticate",
                        status == "401" || may_be(problem::INSUFFICIENT_SCOPE),
                    ),
                ] {
                    assert!(headers.contains_key(name) || !is_there, "{what}: {name}");
                }
                assert!(
                    headers.contains_key("ETag") || status != "304",
                    "{what}: ETag"
                );
            }
            let method = &operation["responses"]["405"];
            assert!(method.is_object(), "{what} does not say 405");
        }
    }

    #[test]
    fn the_example_of_a_problem_has_what_that_kind_of_problem_has() {
        let document = document();
        let example = |code: Code| &document["components"]["examples"][code.code]["value"];
        for (code, place) in [
            (problem::VALIDATION_FAILED, "pointer"),
            (problem::INVALID_PARAMETER, "parameter"),
            (problem::MALFORMED_JSON, "pointer"),
        ] {
            let error = &example(code)["errors"][0];
            assert!(
                error[place].is_string() && error["detail"].is_string(),
                "{error}"
            );
        }
        let unknown = example(problem::OUTCOME_UNKNOWN);
        assert!(unknown["orderId"].is_string(), "{unknown}");
        let scope = example(problem::INSUFFICIENT_SCOPE)["detail"].as_str();
        let scope = scope.and_then(|detail| detail.rsplit(' ').next());
        let scopes = crate::domain::keys::Scope::ALL;
        assert!(
            scopes.iter().any(|known| Some(known.as_str()) == scope),
            "{scope:?}"
        );
    }
}
