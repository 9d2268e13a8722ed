//! What every answer has, whatever it is about.

use reqwest::Method;

use stockctl::http::problem::CODES;

use super::{JSON, ask};
use crate::support::Shop;

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_names_its_request_and_is_kept_from_misuse() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let id = ("x-request-id", "checkout-4711");
    let order = r#"{"productId":"p1","quantity":1}"#;
    for (method, path, body, status) in [
        (Method::GET, "/healthz", "", 200),
        (Method::POST, "/orders", order, 202),
        (Method::POST, "/orders", "{", 400),
        (Method::GET, "/nowhere", "", 404),
        (Method::DELETE, "/orders", "", 405),
    ] {
        let answer = ask(&shop, method.clone(), path, &[JSON, id], body).await;
        assert_eq!(answer.status, status, "{method} {path}");
        if status >= 400 {
            answer.problem();
        }
        for (name, value) in [
            ("x-request-id", "checkout-4711"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            (
                "content-security-policy",
                "default-src 'none'; frame-ancestors 'none'",
            ),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{method} {path}: {name}");
        }
    }
    // One that cannot be written everywhere is not taken over, and each request has another one.
    let mut made = Vec::new();
    for given in ["a b", "{}", ""] {
        let answer = ask(
            &shop,
            Method::GET,
            "/healthz",
            &[("x-request-id", given)],
            "",
        )
        .await;
        let id = answer.header("x-request-id").expect("an id").to_owned();
        assert!(uuid::Uuid::try_parse(&id).is_ok(), "{id}");
        assert!(!made.contains(&id));
        made.push(id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_take_json_is_told_what_there_is() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    for accept in ["application/xml", "text/*", "application/json;q=0"] {
        let answer = ask(&shop, Method::GET, "/orders", &[("accept", accept)], "").await;
        assert_eq!(answer.problem(), "406 not_acceptable", "{accept}");
    }
    // Where there is no body, there is nothing to refuse; clients ask for what the description names, which is problems.
    let out = [("accept", "application/problem+json")];
    let out = ask(&shop, Method::POST, "/logout", &out, "").await;
    assert_eq!(out.status, 204);
    let placing = [JSON, ("accept", "text/html")];
    let order = r#"{"productId":"p1","quantity":1}"#;
    let answer = ask(&shop, Method::POST, "/orders", &placing, order).await;
    assert_eq!(answer.problem(), "406 not_acceptable");
    assert_eq!(super::orders_written(&shop).await, 0);
    for accept in [
        "*/*",
        "application/json, text/plain",
        "text/html, application/*;q=0.5",
    ] {
        let answer = ask(&shop, Method::GET, "/orders", &[("accept", accept)], "").await;
        assert_eq!(answer.status, 200, "{accept}");
    }
}

#[test]
fn the_readme_lists_every_kind_of_problem() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"))
        .expect("readable");
    let table: String = CODES
        .iter()
        .map(|code| {
            format!(
                "| `{}` | {} | {} | {} |\n",
                code.code, code.status, code.title, code.advice
            )
        })
        .collect();
    assert!(
        readme.contains(&table),
        "the README's table of problems should be:\n{table}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_describes_itself_and_has_a_page_to_try_it_that_needs_nobody_else() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let described = ask(&shop, Method::GET, "/openapi.json", &[], "").await;
    assert_eq!(described.body, stockctl::http::openapi::document());
    let printed = crate::support::Process::run(&["openapi"]).await;
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&printed.stdout).expect("JSON"),
        described.body
    );
    let version = described.header("etag").expect("a version");
    let known = [("if-none-match", version)];
    let again = ask(&shop, Method::GET, "/openapi.json", &known, "").await;
    assert_eq!((again.status, again.header("etag")), (304, Some(version)));

    let page = ask(&shop, Method::GET, "/docs", &[("accept", "text/html")], "").await;
    assert_eq!(
        (page.status, page.header("content-type")),
        (200, Some("text/html; charset=utf-8"))
    );
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(
        policy.contains("script-src 'self'") && policy.contains("connect-src 'self'"),
        "{policy}"
    );
    let html = super::text(&page.body);
    assert!(
        !html.contains("http://") && !html.contains("https://"),
        "{html}"
    );
    let script = "/docs/rapidoc-min.js";
    assert!(
        html.contains(script) && html.contains("spec-url=\"/openapi.json\""),
        "{html}"
    );
    let plain = ask(&shop, Method::GET, script, &[], "").await;
    assert_eq!(
        (plain.status, plain.header("content-encoding")),
        (200, None)
    );
    assert!(super::text(&plain.body).contains("RapiDoc 9.3.8"));
    let request = format!(
        "GET {script} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
    );
    let packed = super::send_raw(&shop, request.as_bytes())
        .await
        .to_lowercase();
    assert!(packed.contains("\r\ncontent-encoding: gzip\r\n"));
    assert!(packed.contains("\r\nvary: accept-encoding\r\n"));
    let version = plain.header("etag").expect("a version");
    let again = ask(
        &shop,
        Method::GET,
        script,
        &[("if-none-match", version)],
        "",
    )
    .await;
    assert_eq!(again.status, 304);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pages_of_a_configured_origin_may_call_from_a_browser() {
    let ours = "https://shop.example";
    let mut shop = Shop::new().await;
    let page = |origin| {
        [
            ("origin", origin),
            ("access-control-request-method", "POST"),
        ]
    };
    let closed = shop.serve().await;
    let refused = ask(&shop, Method::OPTIONS, "/orders", &page(ours), "").await;
    assert_eq!(refused.problem(), "405 method_not_allowed");
    assert_eq!(refused.header("access-control-allow-origin"), None);
    closed.stop().await;
    shop.reconfigure(|text| {
        text.replace(
            "[http]\n",
            &format!("[http]\ncors_origins = [\"{ours}\"]\n"),
        )
    });
    let _api = shop.serve().await;
    let asked = shop
        .http
        .request(Method::OPTIONS, format!("{}/orders", shop.url))
        .header("origin", ours)
        .header("access-control-request-method", "POST")
        .send()
        .await
        .expect("an answer");
    assert_eq!(asked.status(), 204);
    let header = |name: &str| asked.headers()[name].to_str().expect("a text").to_owned();
    assert_eq!(header("access-control-allow-origin"), ours);
    assert_eq!(
        header("access-control-allow-methods"),
        "GET, HEAD, POST, PUT, DELETE"
    );
    let may_send = header("access-control-allow-headers");
    for name in ["Idempotency-Key", "traceparent", "tracestate"] {
        assert!(may_send.contains(name), "{may_send}");
    }
    assert_eq!(header("vary"), "Origin");
    for (origin, allowed) in [
        (ours, Some(ours)),
        ("https://evil.example", None),
        ("null", None),
    ] {
        let answer = ask(&shop, Method::GET, "/nowhere", &[("origin", origin)], "").await;
        assert_eq!(
            answer.header("access-control-allow-origin"),
            allowed,
            "{origin}"
        );
        assert_eq!(answer.header("vary"), Some("Origin"), "{origin}");
    }
    let other = ask(
        &shop,
        Method::OPTIONS,
        "/orders",
        &page("https://evil.example"),
        "",
    )
    .await;
    assert_eq!(other.problem(), "405 method_not_allowed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_whose_name_was_made_to_mean_this_machine_is_not_answered() {
    let mut shop = Shop::new().await;
    shop.reconfigure(|text| text.replace("[http]\n", "[http]\nhosts = [\"shop.internal\"]\n"));
    let _api = shop.serve().await;
    let order = r#"{"productId":"p1","quantity":1}"#;
    let port = shop.config.http.listen.port();
    let called = |name: &str| {
        let host = format!("{name}:{port}");
        let origin = format!("http://{host}");
        [("host", host), ("origin", origin)]
    };
    for name in ["evil.example", "localhost.evil.example", "192.168.0.7"] {
        let [host, origin] = called(name);
        let page = [
            JSON,
            (host.0, &host.1),
            (origin.0, &origin.1),
            ("sec-fetch-site", "same-origin"),
        ];
        let placed = ask(&shop, Method::POST, "/orders", &page, order).await;
        assert_eq!(placed.problem(), "421 misdirected_request", "{name}");
        for path in ["/orders", "/", "/openapi.json", "/metrics"] {
            let read = ask(&shop, Method::GET, path, &page[1..2], "").await;
            assert_eq!(read.status, 421, "{name} {path}");
        }
        // Who asks whether it lives may say any name.
        for path in ["/healthz", "/readyz"] {
            let alive = ask(&shop, Method::GET, path, &page[1..2], "").await;
            assert_eq!(alive.status, 200, "{name} {path}");
        }
    }
    assert_eq!(super::orders_written(&shop).await, 0);
    for name in ["localhost", "127.0.0.1", "[::1]", "shop.internal"] {
        let [host, origin] = called(name);
        let page = [JSON, (host.0, &host.1), (origin.0, &origin.1)];
        let placed = ask(&shop, Method::POST, "/orders", &page, order).await;
        assert_eq!(placed.status, 202, "{name}: {}", placed.body);
    }
    // One that names no host comes from no browser.
    let old = super::send_raw(&shop, b"GET /vendors HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 "), "{old}");
    let by_address = format!(
        "GET http://evil.example:{port}/vendors HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    );
    let led_astray = super::send_raw(&shop, by_address.as_bytes()).await;
    assert!(led_astray.starts_with("HTTP/1.1 421 "), "{led_astray}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_changes_nothing() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let order = r#"{"productId":"p1","quantity":1}"#;
    let id = "/orders/0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001/cancel";
    let letters = r#"{"all":true}"#;
    let elsewhere = [
        ("sec-fetch-site", "cross-site"),
        ("origin", "https://evil.example"),
        ("origin", "null"),
    ];
    for (method, path, body) in [
        (Method::POST, "/orders", order),
        (Method::POST, "/order", order),
        (Method::POST, id, ""),
        (Method::PUT, "/vendors/vendorA/products/p1", "{}"),
        (Method::POST, "/admin/sync", ""),
        (
            Method::POST,
            "/admin/dead-letters/orders_dlq/replay",
            letters,
        ),
        (Method::POST, "/admin/dead-letters/orders_dlq/drop", letters),
    ] {
        for said in elsewhere {
            // A form can send this type without asking first.
            for kind in [JSON, ("content-type", "text/plain")] {
                let answer = ask(&shop, method.clone(), path, &[said, kind], body).await;
                assert_eq!(
                    answer.problem(),
                    "403 cross_origin",
                    "{method} {path} {said:?}"
                );
            }
        }
    }
    assert_eq!(super::orders_written(&shop).await, 0);
    let ours = format!("http://{}", shop.config.http.listen);
    for said in [
        ("origin", ours.as_str()),
        ("sec-fetch-site", "same-origin"),
        ("user-agent", "a program"),
    ] {
        let answer = ask(&shop, Method::POST, "/orders", &[said, JSON], order).await;
        assert_eq!(answer.status, 202, "{said:?}");
    }
    let looked = ask(&shop, Method::GET, "/orders", &[elsewhere[0]], "").await;
    assert_eq!(looked.status, 200);
}
