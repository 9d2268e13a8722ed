//! A caller's mistakes: each is a 4xx that names its place, and nothing is written.

use std::fmt::Write as _;

use reqwest::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{JSON, ask, orders_written, post_bytes, send_raw};
use crate::support::{Shop, ShopOptions};

/// Posts each body, and lists what was answered: one line for a body.
async fn answers(shop: &Shop, path: &str, bodies: &[(&str, Vec<u8>)]) -> String {
    let mut lines = String::new();
    for (name, body) in bodies {
        let answer = post_bytes(shop, path, body.clone()).await;
        assert!(
            (400..500).contains(&answer.status),
            "{name}: {answer_status} {body}",
            answer_status = answer.status,
            body = answer.body
        );
        writeln!(lines, "{name}: {}", answer.problem()).expect("written");
    }
    lines
}

fn lines_of(count: usize) -> Vec<u8> {
    let lines = vec![r#"{"productId":"p1","quantity":1}"#; count].join(",");
    format!(r#"{{"lines":[{lines}]}}"#).into_bytes()
}

fn of_product(id: &str) -> Vec<u8> {
    format!(r#"{{"lines":[{{"productId":"{id}","quantity":1}}]}}"#).into_bytes()
}

fn of_quantity(quantity: &str) -> Vec<u8> {
    format!(r#"{{"lines":[{{"productId":"p1","quantity":1}},{{"productId":"p1","quantity":{quantity}}}]}}"#).into_bytes()
}

fn with_reference(reference: &str) -> Vec<u8> {
    format!(r#"{{"productId":"p1","quantity":1,"reference":"{reference}"}}"#).into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_no_json_is_refused() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let mut invalid_utf8 = of_product("?");
    let mark = invalid_utf8.iter().position(|b| *b == b'?').expect("there");
    invalid_utf8[mark] = 0xff;
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", b"".to_vec()),
        ("blanks", b" \n".to_vec()),
        ("cut off", br#"{"productId":"p1","quantity":1"#.to_vec()),
        (
            "trailing garbage",
            br#"{"productId":"p1","quantity":1} x"#.to_vec(),
        ),
        (
            "a second document",
            br#"{"productId":"p1","quantity":1}{"productId":"p1","quantity":1}"#.to_vec(),
        ),
        ("single quotes", b"{'productId':'p1','quantity':1}".to_vec()),
        (
            "a byte order mark",
            "\u{feff}{\"productId\":\"p1\",\"quantity\":1}".into(),
        ),
        ("a leading zero", of_quantity("01")),
        ("not a number", of_quantity("NaN")),
        ("beyond any float", of_quantity("1e400")),
        ("invalid UTF-8", invalid_utf8),
        ("a lone surrogate", of_product(r"\ud800")),
        ("a bare control character", of_product("p\u{1}")),
        ("a bare NUL", of_product("p\0")),
        (
            "deep nesting",
            [br#"{"lines":"#.to_vec(), vec![b'['; 10_000]].concat(),
        ),
        (
            "deep nesting of objects",
            br#"{"lines":[{"productId":"#.repeat(1000),
        ),
    ];
    insta::assert_snapshot!(answers(&shop, "/orders", &bodies).await, @r#"
    nothing: 400 malformed_json
    blanks: 400 malformed_json
    cut off: 400 malformed_json
    trailing garbage: 400 malformed_json
    a second document: 400 malformed_json
    single quotes: 400 malformed_json
    a byte order mark: 400 malformed_json
    a leading zero: 400 malformed_json "/lines/1/quantity" invalid number at line 1 column 73
    not a number: 400 malformed_json "/lines/1/quantity" expected value at line 1 column 72
    beyond any float: 400 malformed_json "/lines/1/quantity" number out of range at line 1 column 76
    invalid UTF-8: 400 malformed_json "/lines/0/productId" invalid unicode code point at line 1 column 25
    a lone surrogate: 400 malformed_json "/lines/0/productId" unexpected end of hex escape at line 1 column 31
    a bare control character: 400 malformed_json "/lines/0/productId" control character (\u0000-\u001F) found while parsing a string at line 1 column 26
    a bare NUL: 400 malformed_json "/lines/0/productId" control character (\u0000-\u001F) found while parsing a string at line 1 column 26
    deep nesting: 422 validation_failed "/lines/0" must be an object, is a list
    deep nesting of objects: 422 validation_failed "/lines/0/productId" must be a string, is an object
    "#);
    assert_eq!(orders_written(&shop).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_in_the_callers_words() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let mut lines = String::new();
    for body in [
        "",
        "[]",
        "null",
        r#"{"lines":[{"productId":"p1","quantity"#,
        r#"{"lines":[{}]}"#,
    ] {
        let answer = post_bytes(&shop, "/orders", body).await;
        answer.problem();
        writeln!(lines, "{body}: {}", super::text(&answer.body["detail"])).expect("written");
    }
    insta::assert_snapshot!(lines, @r#"
    : the body is empty
    []: the body must be an object, is a list
    null: the body must be an object, is null
    {"lines":[{"productId":"p1","quantity: the body ends within a string at line 1 column 37
    {"lines":[{}]}: /lines/0/productId: is missing
    "#);
    // A connection that ends within the body, and chunks that are none.
    let head = "POST /orders HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n";
    let chunks = format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\n{{\"lin\r\n");
    let mut stream = TcpStream::connect(shop.config.http.listen)
        .await
        .expect("connects");
    stream.write_all(chunks.as_bytes()).await.expect("sent");
    stream.shutdown().await.expect("ended");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("closed");
    let answer = String::from_utf8_lossy(&answer);
    if !answer.is_empty() {
        assert!(answer.contains("\"code\":\"incomplete_body\""), "{answer}");
        assert!(!answer.contains("payload"), "{answer}");
    }
    let answer = send_raw(&shop, format!("{chunks}xyz\r\n").as_bytes()).await;
    assert!(answer.contains("\"code\":\"incomplete_body\""), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_of_another_shape_is_refused() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let body = |text: &str| text.as_bytes().to_vec();
    let bodies = vec![
        ("null", body("null")),
        ("a number", body("1")),
        ("a list", body(r#"[null,"p1",1,null]"#)),
        ("an empty object", body("{}")),
        ("no quantity", body(r#"{"productId":"p1"}"#)),
        ("no product", body(r#"{"quantity":1}"#)),
        (
            "both forms",
            body(r#"{"lines":[{"productId":"p1","quantity":1}],"productId":"p1","quantity":1}"#),
        ),
        (
            "both forms, half",
            body(r#"{"lines":[{"productId":"p1","quantity":1}],"quantity":1}"#),
        ),
        (
            "an unknown field",
            body(r#"{"productId":"p1","quantity":1,"price":1}"#),
        ),
        (
            "an unknown field of a line",
            body(r#"{"lines":[{"productId":"p1","quantity":1,"a/b~c":1}]}"#),
        ),
        (
            "a field twice",
            body(r#"{"productId":"p1","quantity":1,"quantity":2}"#),
        ),
        (
            "a field of a line twice",
            body(r#"{"lines":[{"productId":"p1","productId":"p2","quantity":1}]}"#),
        ),
        ("lines as an object", body(r#"{"lines":{}}"#)),
        ("a line as a number", body(r#"{"lines":[1]}"#)),
        ("a line as a list", body(r#"{"lines":[["p1",1]]}"#)),
        (
            "a line without a product",
            body(r#"{"lines":[{"productId":"p1","quantity":1},{"quantity":1}]}"#),
        ),
        (
            "a line without a quantity",
            body(r#"{"lines":[{"productId":"p1"}]}"#),
        ),
    ];
    insta::assert_snapshot!(answers(&shop, "/orders", &bodies).await, @r#"
    null: 422 validation_failed "" must be an object, is null
    a number: 422 validation_failed "" must be an object, is 1
    a list: 422 validation_failed "" must be an object, is a list
    an empty object: 422 validation_failed "/lines" is missing
    no quantity: 422 validation_failed "/quantity" is missing
    no product: 422 validation_failed "/productId" is missing
    both forms: 422 validation_failed "/lines" cannot be given beside productId and quantity
    both forms, half: 422 validation_failed "/lines" cannot be given beside productId and quantity
    an unknown field: 422 validation_failed "/price" unknown field `price`, expected one of `lines`, `productId`, `quantity`, `reference`
    an unknown field of a line: 422 validation_failed "/lines/0/a~1b~0c" unknown field `a/b~c`, expected `productId` or `quantity`
    a field twice: 422 validation_failed "/quantity" is given twice
    a field of a line twice: 422 validation_failed "/lines/0/productId" is given twice
    lines as an object: 422 validation_failed "/lines" must be a list, is an object
    a line as a number: 422 validation_failed "/lines/0" must be an object, is 1
    a line as a list: 422 validation_failed "/lines/0" must be an object, is a list
    a line without a product: 422 validation_failed "/lines/1/productId" is missing
    a line without a quantity: 422 validation_failed "/lines/0/quantity" is missing
    "#);
    assert_eq!(orders_written(&shop).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_with_impossible_lines_or_texts_is_refused() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let body = |text: &str| text.as_bytes().to_vec();
    let bodies = vec![
        ("no lines", lines_of(0)),
        ("101 lines", lines_of(101)),
        (
            "a product as a number",
            body(r#"{"productId":1,"quantity":1}"#),
        ),
        ("a product without a name", of_product("")),
        ("a product with NUL", of_product(r"\u0000")),
        ("a product with a line break", of_product(r"p\n1")),
        ("a product of 201 bytes", of_product(&"p".repeat(201))),
        ("a product of 10 KB", of_product(&"p".repeat(10_240))),
        (
            "a reference as a number",
            body(r#"{"productId":"p1","quantity":1,"reference":5}"#),
        ),
        (
            "a reference of 256 characters",
            with_reference(&"ä".repeat(256)),
        ),
        ("a reference with NUL", with_reference(r"\u0000")),
        (
            "a reference and a quantity",
            body(r#"{"productId":"p1","quantity":0,"reference":"\u0000"}"#),
        ),
    ];
    insta::assert_snapshot!(answers(&shop, "/orders", &bodies).await, @r#"
    no lines: 422 validation_failed "/lines" must have 1 to 100 lines, has 0
    101 lines: 422 validation_failed "/lines" must have 1 to 100 lines, has 101
    a product as a number: 422 validation_failed "/productId" must be a string, is 1
    a product without a name: 422 validation_failed "/lines/0/productId" must not be empty
    a product with NUL: 422 validation_failed "/lines/0/productId" must not contain control characters
    a product with a line break: 422 validation_failed "/lines/0/productId" must not contain control characters
    a product of 201 bytes: 422 validation_failed "/lines/0/productId" must be at most 200 bytes long, has 201
    a product of 10 KB: 422 validation_failed "/lines/0/productId" must be at most 200 bytes long, has 10240
    a reference as a number: 422 validation_failed "/reference" must be a string, is 5
    a reference of 256 characters: 422 validation_failed "/reference" must be at most 255 characters long
    a reference with NUL: 422 validation_failed "/reference" must not contain U+0000
    a reference and a quantity: 422 validation_failed "/quantity" must be 1 to 1000000, is 0 | "/reference" must not contain U+0000
    "#);
    assert_eq!(orders_written(&shop).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_of_an_impossible_quantity_is_refused() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let quantities = [
        "0",
        "-1",
        "1000001",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775809",
        "1.5",
        "1.0",
        "1e30",
        "\"1\"",
        "true",
        "null",
        "[1]",
        "{}",
    ];
    let bodies: Vec<(&str, Vec<u8>)> = quantities.iter().map(|q| (*q, of_quantity(q))).collect();
    insta::assert_snapshot!(answers(&shop, "/order", &bodies).await, @r#"
    0: 422 validation_failed "/lines/1/quantity" must be 1 to 1000000, is 0
    -1: 422 validation_failed "/lines/1/quantity" must be 1 to 1000000, is -1
    1000001: 422 validation_failed "/lines/1/quantity" must be 1 to 1000000, is 1000001
    9223372036854775807: 422 validation_failed "/lines/1/quantity" must be 1 to 1000000, is 9223372036854775807
    9223372036854775808: 422 validation_failed "/lines/1/quantity" must be a whole number from 1 to 1000000, is 9223372036854775808
    -9223372036854775809: 422 validation_failed "/lines/1/quantity" must be a whole number from 1 to 1000000, is -9.223372036854776e+18
    1.5: 422 validation_failed "/lines/1/quantity" must be a whole number from 1 to 1000000, is 1.5
    1.0: 422 validation_failed "/lines/1/quantity" must be a whole number from 1 to 1000000, is 1.0
    1e30: 422 validation_failed "/lines/1/quantity" must be a whole number from 1 to 1000000, is 1e+30
    "1": 422 validation_failed "/lines/1/quantity" must be a whole number from 1 to 1000000, is "1"
    true: 422 validation_failed "/lines/1/quantity" must be a whole number from 1 to 1000000, is true
    null: 422 validation_failed "/lines/1/quantity" must be a whole number from 1 to 1000000, is null
    [1]: 422 validation_failed "/lines/1/quantity" must be a whole number from 1 to 1000000, is a list
    {}: 422 validation_failed "/lines/1/quantity" must be a whole number from 1 to 1000000, is an object
    "#);
    let short = [("0", br#"{"productId":"p1","quantity":0}"#.to_vec())];
    insta::assert_snapshot!(answers(&shop, "/order", &short).await, @r#"0: 422 validation_failed "/quantity" must be 1 to 1000000, is 0"#);
    assert_eq!(orders_written(&shop).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_at_the_limits_is_accepted() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let bodies = [
        lines_of(100),
        of_product(&"p".repeat(200)),
        of_product("Ä/%2F ü\u{1f980}"),
        of_quantity("1000000"),
        with_reference(&"\u{1f980}".repeat(255)),
        br#"{"lines":null,"productId":"p1","quantity":1,"reference":null}"#.to_vec(),
    ];
    for body in &bodies {
        let answer = post_bytes(&shop, "/order", body.clone()).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        let shown = shop.get(answer.header("location").expect("a place")).await;
        assert_eq!(shown.0, 200);
        assert_eq!(shown.1["lines"], answer.body["lines"]);
        assert_eq!(shown.1["reference"], answer.body["reference"]);
    }
    let orders = shop.count("SELECT count(*) AS n FROM orders").await;
    assert_eq!(orders, i64::try_from(bodies.len()).expect("few"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_another_type_or_too_large_is_refused() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let good = r#"{"productId":"p1","quantity":1}"#;
    for types in [
        &[][..],
        &[("content-type", "text/plain")],
        &[("content-type", "application/problem+json")],
        &[("content-type", "application/x-www-form-urlencoded")],
        &[JSON, JSON],
        &[JSON, ("content-type", "text/plain")],
        &[("content-type", "application/json; charset=utf-16")],
        &[("content-type", "application/json;Charset=\"iso-8859-1\"")],
        &[("content-type", "application/json, text/plain")],
        &[JSON, ("content-encoding", "gzip")],
        &[JSON, ("content-encoding", "identity, gzip")],
        &[
            JSON,
            ("content-encoding", "identity"),
            ("content-encoding", "br"),
        ],
    ] {
        let answer = ask(&shop, Method::POST, "/orders", types, good).await;
        assert_eq!(answer.problem(), "415 unsupported_media_type", "{types:?}");
    }
    let limit = stockctl::http::BODY_BYTES_MAX;
    let padded = |bytes: usize| format!("{good}{}", " ".repeat(bytes - good.len()));
    for path in ["/orders", "/order"] {
        for bytes in [limit + 1, limit * 2, 8_000_000] {
            let answer = post_bytes(&shop, path, padded(bytes)).await;
            assert_eq!(answer.problem(), "413 body_too_large", "{bytes}");
        }
    }
    // Without a Content-Length the size shows only while it is read.
    let mut chunked = b"POST /orders HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let body = padded(limit + 1);
    chunked.extend(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).into_bytes());
    let answer = send_raw(&shop, &chunked).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
    assert_eq!(orders_written(&shop).await, 0);

    let answer = post_bytes(&shop, "/orders", padded(limit)).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    for types in [
        &[("content-type", "Application/JSON; charset=utf-8")][..],
        &[("content-type", "application/json;charset=\"UTF-8\"")],
        &[JSON, ("content-encoding", "identity")],
    ] {
        let answer = ask(&shop, Method::POST, "/orders", types, good).await;
        assert_eq!(answer.status, 202, "{types:?}: {}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_beforehand_that_it_is_too_much_is_not_waited_for() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    for (path, limit) in [
        ("/orders", stockctl::http::BODY_BYTES_MAX),
        (
            "/vendors/vendorA/stock-updates",
            stockctl::http::UPDATES_BODY_BYTES_MAX,
        ),
        ("/orders/batch", stockctl::http::BATCH_BODY_BYTES_MAX),
    ] {
        // Nothing of the body is ever sent, so only what is decided by its length is answered 413.
        for expect in ["", "Expect: 100-continue\r\n"] {
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{expect}Content-Length: {}\r\n\r\n",
                limit + 1
            );
            let answer = send_raw(&shop, head.as_bytes()).await;
            assert!(answer.contains("HTTP/1.1 413 "), "{path}: {answer}");
            let is_told_to_send = answer.contains(" 100 Continue");
            let may_be = !expect.is_empty() && path != "/orders/batch";
            assert!(may_be || !is_told_to_send, "{path}: {answer}");
            assert!(
                answer.contains("\"code\":\"body_too_large\""),
                "{path}: {answer}"
            );
        }
    }
}

/// It takes the 5 s that a client has to send a body; there is no key to shorten them.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_given_up() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let mut stream = TcpStream::connect(shop.config.http.listen)
        .await
        .expect("connects");
    stream
        .write_all(b"POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 31\r\n\r\n{\"productId\":")
        .await
        .expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("closed");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\"code\":\"request_timeout\""), "{answer}");
    assert_eq!(orders_written(&shop).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_that_is_not_allowed_is_named() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let long = format!("/orders?productId={}", "p".repeat(5_120));
    let paths = [
        "/orders?limit=0",
        "/orders?limit=201",
        "/orders?limit=-1",
        "/orders?limit=x",
        "/orders?limit=1.5",
        "/orders?limit=",
        "/orders?limit=99999999999999999999",
        "/orders?limit=1&limit=2",
        "/orders?status=lost",
        "/orders?status=Pending",
        "/orders?productId=",
        "/orders?productId=%00",
        "/orders?cursor=x",
        "/orders?cursor=1.x",
        "/orders?cursor=%00",
        "/orders?cursor=99999999999999999999.0191b6c4d1b87b0ea0b9d3f7c9c9a001",
        "/orders?cursor=-8000000000000000000.0191b6c4d1b87b0ea0b9d3f7c9c9a001",
        "/orders?cursor=8000000000000000000.0191b6c4d1b87b0ea0b9d3f7c9c9a001",
        "/orders?page=2",
        "/orders?=1",
        "/products?limit=0",
        "/products?limit=1000",
        "/products?cursor=",
        "/products?cursor=%00",
        "/products?q=%FF",
        "/products?limit=1&%C3%28=2",
        "/products?status=pending",
        "/admin/dead-letters/orders_dlq?limit=0",
        "/admin/dead-letters/orders_dlq?count=1",
        long.as_str(),
    ];
    let mut lines = String::new();
    for path in paths {
        let answer = ask(&shop, Method::GET, path, &[], "").await;
        let name = if path.len() > 200 {
            "/orders?productId=5 KB"
        } else {
            path
        };
        assert_eq!(answer.status, 400, "{name}: {}", answer.body);
        writeln!(lines, "{name}: {}", answer.problem()).expect("written");
    }
    insta::assert_snapshot!(lines, @r#"
    /orders?limit=0: 400 invalid_parameter "limit" must be 1 to 200, is 0
    /orders?limit=201: 400 invalid_parameter "limit" must be 1 to 200, is 201
    /orders?limit=-1: 400 invalid_parameter "limit" must be 1 to 200, is -1
    /orders?limit=x: 400 invalid_parameter "limit" must be a whole number from 1 to 200
    /orders?limit=1.5: 400 invalid_parameter "limit" must be a whole number from 1 to 200
    /orders?limit=: 400 invalid_parameter "limit" must be a whole number from 1 to 200
    /orders?limit=99999999999999999999: 400 invalid_parameter "limit" must be a whole number from 1 to 200
    /orders?limit=1&limit=2: 400 invalid_parameter "limit" must be given once
    /orders?status=lost: 400 invalid_parameter "status" must be one of `pending`, `confirmed`, `rejected`, `failed`, `cancelled`, is `lost`
    /orders?status=Pending: 400 invalid_parameter "status" must be one of `pending`, `confirmed`, `rejected`, `failed`, `cancelled`, is `Pending`
    /orders?productId=: 400 invalid_parameter "productId" must not be empty
    /orders?productId=%00: 400 invalid_parameter "productId" must not contain control characters
    /orders?cursor=x: 400 invalid_parameter "cursor" must be a nextCursor of an earlier answer
    /orders?cursor=1.x: 400 invalid_parameter "cursor" must be a nextCursor of an earlier answer
    /orders?cursor=%00: 400 invalid_parameter "cursor" must be a nextCursor of an earlier answer
    /orders?cursor=99999999999999999999.0191b6c4d1b87b0ea0b9d3f7c9c9a001: 400 invalid_parameter "cursor" must be a nextCursor of an earlier answer
    /orders?cursor=-8000000000000000000.0191b6c4d1b87b0ea0b9d3f7c9c9a001: 400 invalid_parameter "cursor" must be a nextCursor of an earlier answer
    /orders?cursor=8000000000000000000.0191b6c4d1b87b0ea0b9d3f7c9c9a001: 400 invalid_parameter "cursor" must be a nextCursor of an earlier answer
    /orders?page=2: 400 invalid_parameter "page" unknown parameter `page`, expected one of `status`, `productId`, `limit`, `cursor`
    /orders?=1: 400 invalid_parameter "" unknown parameter ``, expected one of `status`, `productId`, `limit`, `cursor`
    /products?limit=0: 400 invalid_parameter "limit" must be 1 to 200, is 0
    /products?limit=1000: 400 invalid_parameter "limit" must be 1 to 200, is 1000
    /products?cursor=: 400 invalid_parameter "cursor" must not be empty
    /products?cursor=%00: 400 invalid_parameter "cursor" must not contain control characters
    /products?q=%FF: 400 invalid_parameter "q" must be UTF-8, percent-encoded
    /products?limit=1&%C3%28=2: 400 invalid_parameter "�(" must be UTF-8, percent-encoded
    /products?status=pending: 400 invalid_parameter "status" unknown parameter `status`, expected one of `q`, `vendor`, `inStock`, `limit`, `cursor`
    /admin/dead-letters/orders_dlq?limit=0: 400 invalid_parameter "limit" must be 1 to 200, is 0
    /admin/dead-letters/orders_dlq?count=1: 400 invalid_parameter "count" unknown parameter `count`, expected one of `messageId`, `reason`, `orderId`, `limit`, `cursor`
    /orders?productId=5 KB: 400 invalid_parameter "productId" must be at most 200 bytes long, has 5120
    "#);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_nowhere_is_not_found() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let long = format!("/products/{}", "p".repeat(5_120));
    let id = "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001";
    let of_vendor = |v: &str, p: &str| format!("/vendors/{v}/products/{p}");
    let paths = [
        "/page/".to_owned(),
        "/nothing".into(),
        "/orders/".into(),
        "/Orders".into(),
        "//orders".into(),
        "/orders/x".into(),
        "/orders/%00".into(),
        "/orders/%ff".into(),
        "/orders/%".into(),
        "/orders/1".into(),
        format!("/orders/{id}"),
        format!("/orders/{id}/"),
        format!("/orders/{id}/cancel/x"),
        "/products/".into(),
        "/products/nothing".into(),
        "/products/%00".into(),
        "/products/a%00b".into(),
        "/products/%FF".into(),
        "/products/%C3%28".into(),
        of_vendor("vendorA", "%FF"),
        "/products/%2e%2e".into(),
        "/products/a%2Fb".into(),
        "/products/%zz".into(),
        "/products/a/b".into(),
        long,
        "/vendors/".into(),
        of_vendor("nobody", "p1"),
        of_vendor("vendorA", "nothing"),
        of_vendor("vendorA", "%00"),
        of_vendor("%00", "p1"),
        of_vendor("vendora", "p1"),
        of_vendor("a%2Fb", "p1"),
        of_vendor(&"v".repeat(65), "p1"),
        "/admin/dead-letters/orders_queue".into(),
        "/admin/dead-letters/%00".into(),
        "/admin/dead-letters/nothing".into(),
    ];
    shop.knows_what_is_unknown().await;
    for path in &paths {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = send_raw(&shop, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
        assert!(
            answer.contains("application/problem+json"),
            "{path}: {answer}"
        );
        assert!(
            answer.contains("\"code\":\"not_found\""),
            "{path}: {answer}"
        );
    }
    for path in [
        format!("/orders/{id}/cancel"),
        "/orders/x/cancel".into(),
        "/orders/%00/cancel".into(),
    ] {
        let answer = ask(&shop, Method::POST, &path, &[], "").await;
        assert_eq!(answer.problem(), "404 not_found", "{path}");
    }
    // Other bytes make no other name, and no new one.
    let path = of_vendor("vendorA", "%FF");
    let made = ask(
        &shop,
        Method::PUT,
        &path,
        &[JSON],
        r#"{"name":"x","stock":1}"#,
    )
    .await;
    assert_eq!(made.problem(), "404 not_found");
    // What is no HTTP at all gets no further than the parser.
    for line in [
        "GET /orders/\0 HTTP/1.1",
        "GET /orders/\u{1} HTTP/1.1",
        "GET  HTTP/1.1",
        "\0\0\0\0",
    ] {
        let answer = send_raw(
            &shop,
            format!("{line}\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{line:?}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_written_in_one_way_wherever_it_stands() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let order = post_bytes(&shop, "/orders", r#"{"productId":"p1","quantity":1}"#).await;
    let webhook = post_bytes(&shop, "/webhooks", r#"{"url":"https://shop.example/"}"#).await;
    for (path, made) in [("/orders", order), ("/webhooks", webhook)] {
        let id = super::text(&made.body["id"]);
        for (written, status) in [
            (id.clone(), 200),
            (id.to_uppercase(), 200),
            (id.replace('-', ""), 404),
            (format!("%7B{id}%7D"), 404),
            (format!("urn:uuid:{id}"), 404),
        ] {
            let shown = ask(&shop, Method::GET, &format!("{path}/{written}"), &[], "").await;
            assert_eq!(shown.status, status, "{path}/{written}: {}", shown.body);
        }
    }
    let bare = A.replace('-', "");
    let update = format!(r#"{{"updates":[{{"id":"{bare}","productId":"p1","delta":-1}}]}}"#);
    let refused = post_bytes(&shop, "/vendors/vendorA/stock-updates", update).await;
    assert_eq!(
        refused.problem(),
        format!(
            "422 validation_failed \"/updates/0/id\" must be a UUID with hyphens, is \"{bare}\""
        )
    );
    let path = format!("/admin/dead-letters/orders_dlq?orderId={bare}");
    let refused = ask(&shop, Method::GET, &path, &[], "").await;
    assert_eq!(
        refused.problem(),
        format!("400 invalid_parameter \"orderId\" must be a UUID with hyphens, is \"{bare}\"")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_where_there_are_none_was_meant_for_something() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let order = r#"{"productId":"p1","quantity":1}"#;
    let product = "/vendors/vendorA/products/p1";
    for (method, path, body) in [
        (Method::GET, "/admin/overview", ""),
        (Method::GET, "/products/p1", ""),
        (Method::GET, product, ""),
        (Method::PUT, product, r#"{"name":"p","stock":1}"#),
        (Method::POST, "/orders", order),
        (
            Method::POST,
            "/webhooks",
            r#"{"url":"https://shop.example/"}"#,
        ),
        (Method::POST, "/admin/sync", ""),
        (Method::GET, "/admin/queues", ""),
    ] {
        let path = format!("{path}?wait=5");
        let refused = ask(&shop, method.clone(), &path, &[JSON], body).await;
        assert_eq!(
            refused.problem(),
            "400 invalid_parameter \"wait\" unknown parameter; there are none here",
            "{method} {path}"
        );
    }
    assert_eq!(orders_written(&shop).await, 0);
    // Probes and pages may have one, so that what is between does not answer.
    for path in [
        "/healthz",
        "/readyz",
        "/metrics",
        "/",
        "/docs",
        "/openapi.json",
    ] {
        let path = format!("{path}?now=1");
        let answer = ask(&shop, Method::GET, &path, &[], "").await;
        assert_eq!(answer.status, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_is_not_there_is_told_which_are() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let mut lines = String::new();
    for (method, path) in [
        (Method::DELETE, "/orders"),
        (Method::GET, "/order"),
        (Method::PUT, "/orders/0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001"),
        (Method::GET, "/orders/x/cancel"),
        (Method::POST, "/products"),
        (Method::PATCH, "/products/p1"),
        (Method::POST, "/vendors"),
        (Method::DELETE, "/vendors/vendorA/products/p1"),
        (Method::GET, "/vendors/vendorA/stock-updates"),
        (Method::GET, "/admin/sync"),
        (Method::POST, "/admin/queues"),
        (Method::DELETE, "/admin/dead-letters/orders_dlq"),
        (Method::GET, "/admin/dead-letters/orders_dlq/replay"),
        (Method::POST, "/healthz"),
        (Method::OPTIONS, "/readyz"),
        (Method::from_bytes(b"BREW").expect("a method"), "/orders"),
    ] {
        let answer = ask(&shop, method.clone(), path, &[], "").await;
        assert_eq!(
            answer.problem(),
            "405 method_not_allowed",
            "{method} {path}"
        );
        let allow = answer.header("allow").unwrap_or("nothing");
        writeln!(lines, "{method} {path}: {allow}").expect("written");
    }
    insta::assert_snapshot!(lines, @"
    DELETE /orders: GET, HEAD, POST
    GET /order: POST
    PUT /orders/0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001: GET, HEAD
    GET /orders/x/cancel: POST
    POST /products: GET, HEAD
    PATCH /products/p1: GET, HEAD
    POST /vendors: GET, HEAD
    DELETE /vendors/vendorA/products/p1: GET, HEAD, PUT
    GET /vendors/vendorA/stock-updates: POST
    GET /admin/sync: POST
    POST /admin/queues: GET, HEAD
    DELETE /admin/dead-letters/orders_dlq: GET, HEAD
    GET /admin/dead-letters/orders_dlq/replay: POST
    POST /healthz: GET, HEAD
    OPTIONS /readyz: GET, HEAD
    BREW /orders: GET, HEAD, POST
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn head_answers_as_get_does_without_the_body() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    shop.sync().await;
    for path in [
        "/orders",
        "/products",
        "/products/p1",
        "/vendors",
        "/vendors/vendorA/products/p1",
        "/admin/queues",
        "/healthz",
        "/readyz",
        "/products/nothing",
        "/orders?limit=0",
    ] {
        let get = ask(&shop, Method::GET, path, &[], "").await;
        let request =
            format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let head = send_raw(&shop, request.as_bytes()).await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {} ", get.status)),
            "{path}: {head}"
        );
        assert!(head.ends_with("\r\n\r\n"), "{path} has a body: {head}");
        assert_eq!(
            get.header("etag").is_some(),
            head.to_lowercase().contains("\r\netag: "),
            "{path}: {head}"
        );
    }
}

const A: &str = "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001";
const B: &str = "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a002";

fn good_update() -> String {
    format!(r#"{{"id":"{B}","productId":"p1","delta":-1}}"#)
}

/// Requests in which the second update is wrong, or the whole.
fn invalid_updates() -> Vec<(&'static str, Vec<u8>)> {
    let good = good_update();
    let second = |update: String| format!(r#"{{"updates":[{good},{update}]}}"#).into_bytes();
    let of_delta = |delta: &str| {
        second(format!(
            r#"{{"id":"{A}","productId":"p1","delta":{delta}}}"#
        ))
    };
    let with = |more: &str| {
        second(format!(
            r#"{{"id":"{A}","productId":"p1","delta":-1,{more}}}"#
        ))
    };
    let of_source =
        |source: &str| format!(r#"{{"source":"{source}","updates":[{good}]}}"#).into_bytes();
    vec![
        ("no JSON", b"{".to_vec()),
        ("a list", format!("[null,[{good}]]").into_bytes()),
        ("no updates", b"{}".to_vec()),
        ("an empty list", br#"{"updates":[]}"#.to_vec()),
        (
            "1001 updates",
            format!(r#"{{"updates":[{}]}}"#, vec![good.as_str(); 1001].join(",")).into_bytes(),
        ),
        (
            "an update as a list",
            second(format!(r#"["{A}","p1",-1,null]"#)),
        ),
        ("delta 0", of_delta("0")),
        ("delta 1.5", of_delta("1.5")),
        ("delta 1e30", of_delta("1e30")),
        ("delta beyond the limit", of_delta("-100000001")),
        ("the least delta", of_delta("-9223372036854775808")),
        ("delta beyond an integer", of_delta("-9223372036854775809")),
        ("a return of nothing", of_delta("1")),
        (
            "a take that reverses",
            with(&format!(r#""reverses":"{B}""#)),
        ),
        (
            "a return of itself",
            second(format!(
                r#"{{"id":"{A}","productId":"p1","delta":1,"reverses":"{A}"}}"#
            )),
        ),
        ("an unknown field", with(r#""x":1"#)),
        ("a field twice", with(r#""delta":-1"#)),
        (
            "an id that is none",
            second(r#"{"id":"x","productId":"p1","delta":-1}"#.into()),
        ),
        ("no id", second(r#"{"productId":"p1","delta":-1}"#.into())),
        (
            "a product with NUL",
            second(format!(r#"{{"id":"{A}","productId":"\u0000","delta":-1}}"#)),
        ),
        ("a source without a name", of_source("")),
        ("a source with NUL", of_source(r"\u0000")),
        ("a source of 201 bytes", of_source(&"s".repeat(201))),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_updates_that_are_not_valid_change_nothing() {
    let shop = Shop::with(ShopOptions {
        vendors: vec![("vendorA", vec![("p1", 10)])],
        ..ShopOptions::default()
    })
    .await;
    let _api = shop.serve().await;
    let said = answers(&shop, "/vendors/vendorA/stock-updates", &invalid_updates()).await;
    insta::assert_snapshot!(said, @r#"
    no JSON: 400 malformed_json
    a list: 422 validation_failed "" must be an object, is a list
    no updates: 422 validation_failed "/updates" is missing
    an empty list: 422 validation_failed "/updates" must have 1 to 1000 updates
    1001 updates: 422 validation_failed "/updates" must have 1 to 1000 updates
    an update as a list: 422 validation_failed "/updates/1" must be an object, is a list
    delta 0: 422 validation_failed "/updates/1/delta" must be -100000000 to 100000000 and not 0, is 0
    delta 1.5: 422 validation_failed "/updates/1/delta" must be a whole number from -100000000 to 100000000, is 1.5
    delta 1e30: 422 validation_failed "/updates/1/delta" must be a whole number from -100000000 to 100000000, is 1e+30
    delta beyond the limit: 422 validation_failed "/updates/1/delta" must be -100000000 to 100000000 and not 0, is -100000001
    the least delta: 422 validation_failed "/updates/1/delta" must be -100000000 to 100000000 and not 0, is -9223372036854775808
    delta beyond an integer: 422 validation_failed "/updates/1/delta" must be a whole number from -100000000 to 100000000, is -9.223372036854776e+18
    a return of nothing: 422 validation_failed "/updates/1/reverses" must name the take that a return (delta above 0) gives back; a take (below 0) has none
    a take that reverses: 422 validation_failed "/updates/1/reverses" must name the take that a return (delta above 0) gives back; a take (below 0) has none
    a return of itself: 422 validation_failed "/updates/1/reverses" must be another update
    an unknown field: 422 validation_failed "/updates/1/x" unknown field `x`, expected one of `id`, `productId`, `delta`, `reverses`
    a field twice: 422 validation_failed "/updates/1/delta" is given twice
    an id that is none: 422 validation_failed "/updates/1/id" must be a UUID with hyphens, is "x"
    no id: 422 validation_failed "/updates/1/id" is missing
    a product with NUL: 422 validation_failed "/updates/1/productId" must not contain control characters
    a source without a name: 422 validation_failed "/source" must be 1 to 200 bytes long, without U+0000
    a source with NUL: 422 validation_failed "/source" must be 1 to 200 bytes long, without U+0000
    a source of 201 bytes: 422 validation_failed "/source" must be 1 to 200 bytes long, without U+0000
    "#);
    let good = good_update();
    let limit = stockctl::http::UPDATES_BODY_BYTES_MAX;
    let large = format!(r#"{{"updates":[{good}]}}{}"#, " ".repeat(limit));
    let answer = post_bytes(&shop, "/vendors/vendorA/stock-updates", large).await;
    assert_eq!(answer.problem(), "413 body_too_large");
    for vendor in ["nobody", "vendora", "%00"] {
        let path = format!("/vendors/{vendor}/stock-updates");
        let body = format!(r#"{{"updates":[{good}]}}"#);
        assert_eq!(
            post_bytes(&shop, &path, body).await.problem(),
            "404 not_found"
        );
    }
    assert_eq!(shop.stock_at("vendorA", "p1").await, 10);
    assert_eq!(
        shop.count_at("vendorA", "SELECT count(*) AS n FROM stock_ledger")
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_that_is_not_valid_is_not_put() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let long = format!(r#"{{"name":"{}","stock":1}}"#, "n".repeat(1001));
    let mut lines = String::new();
    for (name, body) in [
        ("nothing", ""),
        ("a list", r#"["p",1]"#),
        ("no name", r#"{"stock":1}"#),
        ("no stock", r#"{"name":"p"}"#),
        ("a name as a number", r#"{"name":1,"stock":1}"#),
        ("a name with NUL", r#"{"name":"\u0000","stock":1}"#),
        ("a name of 1001 characters", &long),
        ("negative stock", r#"{"name":"p","stock":-1}"#),
        ("fractional stock", r#"{"name":"p","stock":1.5}"#),
        (
            "stock beyond the limit",
            r#"{"name":"p","stock":1000000000000001}"#,
        ),
        (
            "stock beyond an integer",
            r#"{"name":"p","stock":9223372036854775808}"#,
        ),
        ("an unknown field", r#"{"name":"p","stock":1,"price":1}"#),
        ("a field twice", r#"{"name":"p","stock":1,"stock":2}"#),
        ("both wrong", r#"{"name":"\u0000","stock":-1}"#),
    ] {
        let answer = ask(
            &shop,
            Method::PUT,
            "/vendors/vendorA/products/p1",
            &[JSON],
            body.to_owned(),
        )
        .await;
        writeln!(lines, "{name}: {}", answer.problem()).expect("written");
    }
    insta::assert_snapshot!(lines, @r#"
    nothing: 400 malformed_json
    a list: 422 validation_failed "" must be an object, is a list
    no name: 422 validation_failed "/name" is missing
    no stock: 422 validation_failed "/stock" is missing
    a name as a number: 422 validation_failed "/name" must be a string, is 1
    a name with NUL: 422 validation_failed "/name" must be at most 1000 characters long, without U+0000
    a name of 1001 characters: 422 validation_failed "/name" must be at most 1000 characters long, without U+0000
    negative stock: 422 validation_failed "/stock" must be 0 to 1000000000000000, is -1
    fractional stock: 422 validation_failed "/stock" must be a whole number from 0 to 1000000000000000, is 1.5
    stock beyond the limit: 422 validation_failed "/stock" must be 0 to 1000000000000000, is 1000000000000001
    stock beyond an integer: 422 validation_failed "/stock" must be a whole number from 0 to 1000000000000000, is 9223372036854775808
    an unknown field: 422 validation_failed "/price" unknown field `price`, expected `name` or `stock`
    a field twice: 422 validation_failed "/stock" is given twice
    both wrong: 422 validation_failed "/stock" must be 0 to 1000000000000000, is -1 | "/name" must be at most 1000 characters long, without U+0000
    "#);
    let good = r#"{"name":"p","stock":1}"#;
    let long = format!("/vendors/vendorA/products/{}", "p".repeat(201));
    for path in [
        "/vendors/nobody/products/p1",
        "/vendors/vendorA/products/%00",
        &long,
    ] {
        let answer = ask(&shop, Method::PUT, path, &[JSON], good).await;
        assert_eq!(answer.problem(), "404 not_found", "{path}");
    }
    assert_eq!(shop.stock_at("vendorA", "p1").await, 10);
    assert_eq!(
        shop.count_at("vendorA", "SELECT count(*) AS n FROM products")
            .await,
        2
    );
}
