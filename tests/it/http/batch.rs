//! Many orders in one request, each by itself.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use reqwest::Method;
use serde_json::json;

use super::outage::serve_without;
use super::{Answer, JSON, ask, order_with_key, orders_written, post_bytes, text};
use crate::support::Shop;

const BATCH: &str = "/orders/batch";

/// What became of each order, a line for each, with its problem's places.
fn results(answer: &Answer) -> String {
    let mut lines = format!(
        "{}: {} accepted, {} failed\n",
        answer.status, answer.body["accepted"], answer.body["failed"]
    );
    let id = answer.header("x-request-id").expect("an id");
    for result in answer.body["results"].as_array().expect("results") {
        write!(lines, "{}", result["status"]).expect("written");
        if result["replayed"] == true {
            lines.push_str(" replayed");
        }
        if let Some(problem) = result["problem"].as_object() {
            assert_eq!(problem["instance"], format!("urn:stockctl:request:{id}"));
            assert_eq!(problem["status"], result["status"]);
            write!(
                lines,
                " {} {}",
                text(&problem["code"]),
                text(&problem["detail"])
            )
            .expect("written");
        }
        lines.push('\n');
    }
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn each_order_of_a_batch_is_accepted_or_refused_by_itself() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    let key_taken =
        order_with_key(&shop, "taken", &json!({"productId": "p1", "quantity": 1})).await;
    let body = json!({"orders": [
        {"productId": "p1", "quantity": 2, "idempotencyKey": "a", "reference": "first"},
        {"productId": "p1", "quantity": 0},
        {"lines": [{"productId": "p2", "quantity": 1}, {"productId": "p3", "quantity": 1}], "idempotencyKey": "b"},
        {"lines": [{"productId": "p2", "quantity": 1, "price": 3}]},
        [null, "p1", 1],
        {"productId": "p1", "quantity": 2, "idempotencyKey": "a", "reference": "first"},
        {"productId": "p1", "quantity": 9, "idempotencyKey": "taken"},
        {"productId": "p1", "quantity": 1, "idempotencyKey": ""},
        {"productId": "p1", "quantity": 1, "idempotencyKey": "schl\u{fc}ssel"},
        {"productId": "p1", "quantity": 1, "quantity2": 1},
        {"productId": "p1", "quantity": 1},
    ]});
    let first = post_bytes(&shop, BATCH, body.to_string()).await;
    insta::assert_snapshot!(results(&first), @r#"
    207: 4 accepted, 7 failed
    202
    422 validation_failed /orders/1/quantity: must be 1 to 1000000, is 0
    202
    422 validation_failed /orders/3/lines/0/price: unknown field `price`, expected `productId` or `quantity`
    422 validation_failed /orders/4: must be an object, is a list
    202 replayed
    422 idempotency_conflict this Idempotency-Key was used for a request with another body; use a new key for a new order
    422 validation_failed /orders/7/idempotencyKey: must be 1 to 255 characters long, has 0
    422 validation_failed /orders/8/idempotencyKey: must be printable ASCII, without blanks around it
    422 validation_failed /orders/9/quantity2: unknown field `quantity2`, expected one of `lines`, `productId`, `quantity`, `reference`, `idempotencyKey`
    202
    "#);
    let results_of = |answer: &Answer| answer.body["results"].as_array().expect("results").clone();
    let placed = results_of(&first);
    let id = |index: usize| text(&placed[index]["order"]["id"]);
    assert_eq!(id(0), id(5));
    for index in [0, 2, 10] {
        shop.order_with_status(&id(index), "confirmed").await;
    }
    // One at a time or many, the same key is the same order.
    let alone = json!({"productId": "p1", "quantity": 2, "reference": "first"});
    let alone = order_with_key(&shop, "a", &alone).await;
    assert_eq!(
        (alone.header("idempotent-replayed"), text(&alone.body["id"])),
        (Some("true"), id(0))
    );
    // Repeated, those with a key are the same, as they stand now.
    let again = json!({"orders": [body["orders"][0], body["orders"][2]]});
    let again = post_bytes(&shop, BATCH, again.to_string()).await;
    assert_eq!(
        results(&again),
        "202: 2 accepted, 0 failed\n202 replayed\n202 replayed\n"
    );
    let again = results_of(&again);
    assert_eq!(
        (
            text(&again[0]["order"]["id"]),
            text(&again[1]["order"]["id"])
        ),
        (id(0), id(2))
    );
    assert_eq!(again[0]["order"]["status"], "confirmed");
    assert_eq!(
        again[0]["order"]["updates"].as_array().map(Vec::len),
        Some(1),
        "{again:?}"
    );
    assert_eq!(
        again[1]["order"]["updates"].as_array().map(Vec::len),
        Some(2),
        "{again:?}"
    );
    assert_eq!(key_taken.status, 202);
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_orders_are_a_batch_and_none_or_more_are_refused() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let of = |count: usize| {
        json!({"orders": vec![json!({"productId": "p1", "quantity": 1}); count]}).to_string()
    };
    for count in [0, 501] {
        let answer = post_bytes(&shop, BATCH, of(count)).await;
        assert_eq!(
            answer.problem(),
            format!("422 validation_failed \"/orders\" must have 1 to 500 orders, has {count}")
        );
    }
    let large = format!(
        "{}{}",
        of(1),
        " ".repeat(stockctl::http::BATCH_BODY_BYTES_MAX)
    );
    assert_eq!(
        post_bytes(&shop, BATCH, large).await.problem(),
        "413 body_too_large"
    );
    assert_eq!(
        post_bytes(&shop, BATCH, "{\"orders\":[{]}").await.status,
        400
    );
    assert_eq!(orders_written(&shop).await, 0);
    let answer = post_bytes(&shop, BATCH, of(500)).await;
    assert_eq!(
        (answer.status, &answer.body["accepted"]),
        (202, &json!(500))
    );
    let results = answer.body["results"].as_array().expect("results");
    let ids: BTreeSet<String> = results
        .iter()
        .map(|result| text(&result["order"]["id"]))
        .collect();
    assert_eq!(ids.len(), 500);
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_no_store_takes_is_no_success() {
    let mut shop = Shop::new().await;
    let _api = serve_without(&mut shop, true, true).await;
    let good = json!({"productId": "p1", "quantity": 1});
    let all = post_bytes(&shop, BATCH, json!({"orders": [good, good]}).to_string()).await;
    assert_eq!(all.problem(), "503 unavailable");
    assert!(all.header("retry-after").is_some());
    // What is the caller's to mend stays so.
    let bad = json!({"productId": "p1", "quantity": 0});
    let some = post_bytes(&shop, BATCH, json!({"orders": [good, bad]}).to_string()).await;
    assert_eq!((some.status, some.header("retry-after")), (207, Some("1")));
    insta::assert_snapshot!(results(&some), @"
    207: 0 accepted, 2 failed
    503 unavailable neither PostgreSQL nor RabbitMQ takes orders now; nothing was accepted
    422 validation_failed /orders/1/quantity: must be 1 to 1000000, is 0
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_for_a_whole_batch_is_refused() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let orders = r#"{"orders":[{"productId":"p1","quantity":1}]}"#;
    let key = ("idempotency-key", "nightly-42");
    let refused = ask(&shop, Method::POST, BATCH, &[JSON, key], orders).await;
    assert_eq!(
        refused.problem(),
        "400 invalid_parameter \"Idempotency-Key\" is of one order: give each order of a batch an idempotencyKey of its own"
    );
    assert_eq!(orders_written(&shop).await, 0);
}
