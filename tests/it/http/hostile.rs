//! Requests that mean to be read in two ways, and texts that mean to be code: none is more than it says.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use stockctl::domain::keys::Scope;

use super::keys::{is_let_in, key, require_keys};
use super::{JSON, ask, orders_written, send_raw};
use crate::support::Shop;

const HEAD: &str = "POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
const BODY: &str = r#"{"productId":"p1","quantity":1}"#;
/// What would be smuggled in: it is answered 200 by whoever takes it for a request.
const SECOND: &str = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
/// A server that waits for more instead of refusing would wait as long as it keeps idle connections.
const LONG_ENOUGH: Duration = Duration::from_secs(30);

/// Where one reader may see the end of the request, and another may not.
fn ambiguous() -> Vec<(&'static str, String)> {
    let length = format!("Content-Length: {}\r\n", BODY.len());
    let chunks = format!("\r\n{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len());
    let of_length = |headers: &str| format!("{HEAD}{headers}\r\n{BODY}");
    let chunked = |headers: &str| format!("{HEAD}{headers}{chunks}");
    let te = "Transfer-Encoding: chunked\r\n";
    vec![
        (
            "a length and chunks",
            format!("{HEAD}{length}{te}\r\n0\r\n\r\n"),
        ),
        ("chunks and a length", chunked(&format!("{te}{length}"))),
        (
            "two lengths",
            of_length(&format!("{length}Content-Length: 5\r\n")),
        ),
        ("a length twice", of_length(&format!("{length}{length}"))),
        ("a list of lengths", of_length("Content-Length: 31, 31\r\n")),
        ("a length with a sign", of_length("Content-Length: +31\r\n")),
        ("a negative length", of_length("Content-Length: -1\r\n")),
        (
            "a hexadecimal length",
            of_length("Content-Length: 0x1f\r\n"),
        ),
        (
            "a length that overflows",
            of_length("Content-Length: 18446744073709551647\r\n"),
        ),
        (
            "a folded header",
            of_length(&format!("{length}X-A: b\r\n c\r\n")),
        ),
        ("a folded length", of_length("Content-Length:\r\n 31\r\n")),
        (
            "a bare CR",
            of_length(&format!("X-A: b\rX-B: c\r\n{length}")),
        ),
        (
            "a blank before the colon",
            of_length("Content-Length : 31\r\n"),
        ),
        (
            "a blank before the colon of chunks",
            chunked("Transfer-Encoding : chunked\r\n"),
        ),
        (
            "an unknown coding",
            chunked("Transfer-Encoding: xchunked\r\n"),
        ),
        (
            "chunks that are not last",
            chunked("Transfer-Encoding: chunked, identity\r\n"),
        ),
        (
            "two codings",
            chunked(&format!("{te}Transfer-Encoding: identity\r\n")),
        ),
        (
            "identity beside a length",
            of_length(&format!("Transfer-Encoding: identity\r\n{length}")),
        ),
        (
            "chunks in HTTP/1.0",
            chunked(te).replace("HTTP/1.1", "HTTP/1.0"),
        ),
        (
            "a chunk with a prefix",
            chunked(te).replace("\r\n1f\r\n", "\r\n0x1f\r\n"),
        ),
        (
            "a negative chunk",
            chunked(te).replace("\r\n1f\r\n", "\r\n-1\r\n"),
        ),
        (
            "a chunk that overflows",
            chunked(te).replace("\r\n1f\r\n", "\r\nfffffffffffffffff1f\r\n"),
        ),
        (
            "chunks with bare LF",
            chunked(te).replace("\r\n1f\r\n", "\r\n1f\n"),
        ),
        (
            "a bare LF in a chunk's extension",
            chunked(te).replace("\r\n1f\r\n", "\r\n1f;a=\n\r\n"),
        ),
        (
            "chunks beside a list of codings",
            chunked("Transfer-Encoding: identity, chunked\r\nContent-Length: 0\r\n"),
        ),
        (
            "NUL in a header",
            of_length(&format!("X-A: \0\r\n{length}")),
        ),
    ]
}

/// Heads that lack something, or have too much.
fn broken_heads() -> Vec<(&'static str, String)> {
    vec![
        ("no host", "GET /healthz HTTP/1.1\r\n\r\n".to_owned()),
        (
            "two hosts",
            "GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(),
        ),
        (
            "201 headers",
            format!(
                "GET /healthz HTTP/1.1\r\nHost: localhost\r\n{}\r\n",
                "X-A: a\r\n".repeat(200)
            ),
        ),
        (
            "a URL of 200 kB",
            format!(
                "GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n",
                "a".repeat(200_000)
            ),
        ),
        (
            "a header of 200 kB",
            format!(
                "GET / HTTP/1.1\r\nHost: localhost\r\nX-A: {}\r\n\r\n",
                "a".repeat(200_000)
            ),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_could_be_read_in_two_ways_is_refused_and_the_connection_closed() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    for (name, request) in ambiguous().into_iter().chain(broken_heads()) {
        let sent = format!("{request}{SECOND}");
        let answer = tokio::time::timeout(LONG_ENOUGH, send_raw(&shop, sent.as_bytes()))
            .await
            .unwrap_or_else(|_| panic!("{name}: the connection was kept"));
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{name}: {answer}");
        // Of what is wrong in the body, its reader tells.
        let (status, codes) = match request.len() > 1000 {
            true => (431, ["headers_too_large", ""]),
            false => (400, ["malformed_request", "incomplete_body"]),
        };
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{name}: {answer}"
        );
        let head = head.to_ascii_lowercase();
        assert!(
            head.contains("\r\ncontent-type: application/problem+json\r\n"),
            "{name}: {head}"
        );
        assert!(
            head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())),
            "{name}: {head}"
        );
        let problem: Value = serde_json::from_str(body).expect("a problem");
        assert_eq!(problem["status"], status, "{name}");
        let code = problem["code"].as_str().expect("a code");
        assert!(codes.contains(&code), "{name}: {code}");
        let id = problem["instance"]
            .as_str()
            .expect("a request")
            .rsplit(':')
            .next()
            .expect("an id");
        assert!(
            head.contains(&format!("\r\nx-request-id: {id}\r\n")),
            "{name}: {head}"
        );
    }
    assert_eq!(orders_written(&shop).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_offers_another_protocol_is_answered_in_this_one_and_told_that_the_connection_ends() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let order = r#"{"productId":"p1","quantity":1}"#;
    let with_body = format!(
        "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{order}",
        order.len()
    );
    // The server would wait for what no header announces.
    let without = "Content-Type: application/json\r\n\r\n";
    // As Java's client does by itself over plain HTTP, and `curl --http2`.
    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n";
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let mut accepted = 0;
    let ordered = ("POST /orders", with_body.as_str(), 202);
    for (offer, order) in [(h2c, Some(ordered)), (websocket, None)] {
        let others = [
            ("GET /vendors", "\r\n", 200),
            ("POST /orders", without, 400),
        ];
        for (line, rest, expected) in others.into_iter().chain(order) {
            let request = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{offer}{rest}");
            let answer = tokio::time::timeout(LONG_ENOUGH, send_raw(&shop, request.as_bytes()))
                .await
                .unwrap_or_else(|_| panic!("{request}: the connection was kept"));
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {expected} ")),
                "{request}: {answer}"
            );
            assert_eq!(answer.matches("HTTP/1.").count(), 1, "{request}: {answer}");
            let head = answer.to_ascii_lowercase();
            assert!(
                head.contains("\r\nconnection: close\r\n"),
                "{request}: {answer}"
            );
            accepted += i64::from(expected == 202);
        }
    }
    assert_eq!(
        shop.count("SELECT count(*) AS n FROM orders").await,
        accepted
    );
}

/// Texts that would be code where they were put into SQL, a page, a header or a path as they are.
const CODE: [&str; 7] = [
    "'; DROP TABLE orders; --",
    "p1' OR '1'='1",
    "\" OR 1=1 --",
    "$1 %s {} \\x00 \\' E'\\\\'",
    "x</script><script>alert(1)</script>",
    "%0d%0aSet-Cookie: a=b",
    "../../etc/passwd",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_means_to_be_code_is_a_text() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    shop.knows_what_is_unknown().await;
    for (n, text) in CODE.into_iter().enumerate() {
        let body = json!({ "productId": text, "quantity": 1, "reference": text }).to_string();
        let headers = [JSON, ("idempotency-key", text), ("x-request-id", text)];
        let placed = ask(&shop, Method::POST, "/orders", &headers, body.clone()).await;
        assert_eq!(placed.status, 202, "{text}: {}", placed.body);
        assert_eq!(placed.header("set-cookie"), None);
        assert_ne!(placed.header("x-request-id"), Some(text));
        let place = placed.header("location").expect("a place");
        let shown = ask(&shop, Method::GET, place, &[], "").await;
        assert_eq!(shown.body["lines"][0]["productId"], text);
        assert_eq!(shown.body["reference"], text);
        let again = ask(&shop, Method::POST, "/orders", &headers, body).await;
        assert_eq!(again.header("idempotent-replayed"), Some("true"), "{text}");
        let named: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
        let path_segment = named.replace('+', "%20");
        for path in [
            format!("/products?q={named}"),
            format!("/products?cursor={named}"),
            format!("/orders?productId={named}"),
            format!("/orders?cursor={named}"),
            format!("/orders?status={named}"),
            format!("/products?vendor={named}"),
            format!("/products/{path_segment}"),
            format!("/products/{path_segment}/movements?cursor={named}"),
            format!("/vendors/{path_segment}/products/{path_segment}"),
            format!("/vendors/vendorA/products/{path_segment}"),
            format!("/orders/{path_segment}"),
        ] {
            let answer = ask(&shop, Method::GET, &path, &[], "").await;
            assert!(answer.status < 500, "{path}: {}", answer.body);
            assert_eq!(answer.header("set-cookie"), None, "{path}");
        }
        let found = ask(
            &shop,
            Method::GET,
            &format!("/orders?productId={named}"),
            &[],
            "",
        )
        .await;
        assert_eq!(
            found.body["orders"].as_array().map(Vec::len),
            Some(1),
            "{text}"
        );
        let orders = shop.count("SELECT count(*) AS n FROM orders").await;
        assert_eq!(orders, i64::try_from(n + 1).expect("few"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_means_to_be_code_is_one_at_a_vendor_in_a_batch_and_in_a_header_too() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    for (n, text) in CODE.into_iter().enumerate() {
        let one =
            json!({"productId": text, "quantity": 1, "reference": text, "idempotencyKey": text});
        let batch = json!({ "orders": [one] }).to_string();
        let placed = ask(&shop, Method::POST, "/orders/batch", &[JSON], batch.clone()).await;
        let order = &placed.body["results"][0]["order"];
        assert_eq!(order["lines"][0]["productId"], text, "{}", placed.body);
        assert_eq!(order["reference"], text);
        let again = ask(&shop, Method::POST, "/orders/batch", &[JSON], batch).await;
        assert_eq!(again.body["results"][0]["order"]["id"], order["id"]);

        // The name of a product, of whoever changes its stock, and the product itself.
        let path = format!("/vendors/vendorA/products/named-{n}");
        let body = json!({"name": text, "stock": 5}).to_string();
        let put = ask(&shop, Method::PUT, &path, &[JSON], body).await;
        assert_eq!((put.status, &put.body["name"]), (201, &json!(text)));
        let body = json!({"name": text, "stock": 6}).to_string();
        let stale = ask(&shop, Method::PUT, &path, &[JSON, ("if-match", text)], body).await;
        assert_eq!(stale.problem(), "412 precondition_failed", "{text}");
        let shown = ask(&shop, Method::GET, &path, &[], "").await;
        assert_eq!(shown.body["name"], text);
        let updates = [format!("named-{n}"), text.to_owned()]
            .map(|product| json!({"id": uuid::Uuid::now_v7(), "productId": product, "delta": -1}));
        let body = json!({"source": text, "updates": updates}).to_string();
        let path = "/vendors/vendorA/stock-updates";
        let applied = ask(&shop, Method::POST, path, &[JSON], body).await;
        let outcomes = [0, 1].map(|at| super::text(&applied.body["results"][at]["outcome"]));
        assert_eq!(outcomes, ["applied", "rejected"], "{}", applied.body);

        for (path, header, expected) in [
            ("/events?type=order.failed", "last-event-id", 400),
            ("/products", "if-none-match", 200),
            ("/products", "accept-encoding", 200),
            ("/products", "authorization", 200),
            ("/products", "cookie", 200),
            ("/products", "traceparent", 200),
        ] {
            let answer = ask(&shop, Method::GET, path, &[(header, text)], "").await;
            assert_eq!(answer.status, expected, "{header}: {text}");
            assert_eq!(answer.header("set-cookie"), None, "{header}: {text}");
        }
        let named: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
        let answer = ask(
            &shop,
            Method::GET,
            &format!("/events?type={named}"),
            &[],
            "",
        )
        .await;
        assert_eq!(answer.status, 400, "{text}");
        let orders = shop.count("SELECT count(*) AS n FROM orders").await;
        assert_eq!(orders, i64::try_from(n + 1).expect("few"), "{text}");
    }
    // The broker is asked each time, so it is tried with one of them.
    let (text, queue) = (CODE[0], "/admin/dead-letters/orders_dlq");
    let named: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
    let path = format!("{queue}?messageId={named}&reason={named}");
    let listed = ask(&shop, Method::GET, &path, &[], "").await;
    assert_eq!(
        listed.body,
        json!({"deadLetters": [], "notLookedAt": 0, "nextCursor": null})
    );
    let body = json!({"messageIds": [text], "reason": text}).to_string();
    let path = format!("{queue}/drop");
    let dropped = ask(&shop, Method::POST, &path, &[JSON], body).await;
    assert_eq!(dropped.problem(), "404 not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_means_to_be_code_is_one_to_webhooks_and_to_who_logs_in_too() {
    const BREAK: &str = "x\r\nSet-Cookie: a=b\r\n\r\n<html>";
    let mut shop = Shop::new().await;
    require_keys(&mut shop);
    let (_, admin) = key(&shop, "boss", &[Scope::Admin]).await;
    let _api = shop.serve().await;
    is_let_in(&shop, &admin).await;
    let who = ("authorization", admin.as_str());
    let mut made = 0;
    for text in CODE.into_iter().chain([BREAK]) {
        // In an address it is percent-encoded, or refused.
        let named: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
        for url in [
            format!("https://shop.example/{named}?a={named}"),
            format!("https://shop.example/{text}"),
            format!("https://{text}/"),
            text.to_owned(),
        ] {
            let body = json!({ "url": url }).to_string();
            let answer = ask(&shop, Method::POST, "/webhooks", &[JSON, who], body).await;
            assert_eq!(answer.header("set-cookie"), None, "{url}");
            if answer.status == 201 {
                assert_eq!(answer.body["url"], url.as_str());
                let place = answer.header("location").expect("a place");
                let shown = ask(&shop, Method::GET, place, &[who], "").await;
                assert_eq!(shown.body["url"], url.as_str());
                let deleted = ask(&shop, Method::DELETE, place, &[who], "").await;
                assert_eq!(deleted.status, 204);
                made += 1;
            } else {
                let problem = answer.problem();
                assert!(
                    problem.starts_with("422 validation_failed \"/url\""),
                    "{url}: {problem}"
                );
            }
        }
        let body = json!({"url": "https://shop.example/", "secret": text}).to_string();
        let refused = ask(&shop, Method::POST, "/webhooks", &[JSON, who], body).await;
        assert_eq!(
            refused.problem(),
            "422 validation_failed \"/secret\" must be whsec_ and the base64 of 24 to 64 random bytes"
        );
        let body = json!({"url": "https://shop.example/", "types": [text]}).to_string();
        let refused = ask(&shop, Method::POST, "/webhooks", &[JSON, who], body).await;
        assert!(
            refused
                .problem()
                .starts_with("422 validation_failed \"/types/0\""),
            "{text}"
        );
        let path = format!("/webhooks?cursor={named}");
        let refused = ask(&shop, Method::GET, &path, &[who], "").await;
        assert_eq!(
            refused.problem(),
            "400 invalid_parameter \"cursor\" must be a nextCursor of an earlier answer"
        );
        let segment = named.replace('+', "%20");
        for method in [Method::GET, Method::DELETE] {
            let missing = ask(&shop, method, &format!("/webhooks/{segment}"), &[who], "").await;
            assert_eq!(missing.status, 404, "{text}");
        }
        // What is no key becomes no cookie either.
        let body = json!({ "key": text }).to_string();
        let refused = ask(&shop, Method::POST, "/login", &[JSON], body).await;
        assert_eq!(refused.problem(), "401 invalid_key", "{text}");
        assert_eq!(refused.header("set-cookie"), None, "{text}");
    }
    assert!(made >= CODE.len(), "{made}");
    assert_eq!(shop.count("SELECT count(*) AS n FROM webhooks").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_break_in_a_text_ends_no_header() {
    const BREAK: &str = "x\r\nSet-Cookie: a=b\r\n\r\n<html>";
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let body = json!({"name": BREAK, "stock": 5}).to_string();
    for id in ["broken-1", "broken-2"] {
        let path = format!("/vendors/vendorA/products/{id}");
        let put = ask(&shop, Method::PUT, &path, &[JSON], body.clone()).await;
        assert_eq!(put.status, 201, "{}", put.body);
    }
    shop.sync().await;
    // What was asked for stands in the header that leads to the next page.
    let named: String = url::form_urlencoded::byte_serialize(BREAK.as_bytes()).collect();
    for path in [
        format!("/products?q={named}&limit=1"),
        // As a proxy may have written it.
        format!("/products?q={}&limit=1", named.replace('+', "%20")),
    ] {
        let page = ask(&shop, Method::GET, &path, &[], "").await;
        assert_eq!(page.body["products"].as_array().map(Vec::len), Some(1));
        let link = page.header("link").expect("a next page");
        assert!(link.contains("%0D%0ASet-Cookie"), "{link}");
        assert!(link.ends_with(">; rel=\"next\""), "{link}");
        assert_eq!(page.header("set-cookie"), None);
    }
    let order = json!({"productId": "p1", "quantity": 1, "reference": BREAK}).to_string();
    let placed = ask(&shop, Method::POST, "/orders", &[JSON], order).await;
    assert_eq!(placed.body["reference"], BREAK);
    assert_eq!(placed.header("set-cookie"), None);
    for (name, path) in [
        ("cursor", format!("/orders?cursor={named}")),
        ("status", format!("/orders?status={named}")),
        ("cursor", format!("/products?cursor={named}")),
        ("type", format!("/events?type={named}")),
    ] {
        let refused = ask(&shop, Method::GET, &path, &[], "").await;
        assert!(
            refused
                .problem()
                .starts_with(&format!("400 invalid_parameter \"{name}\"")),
            "{path}: {}",
            refused.body
        );
        assert_eq!(refused.header("set-cookie"), None, "{path}");
    }
}
