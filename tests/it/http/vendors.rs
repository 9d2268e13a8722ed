//! A vendor's own figures, and the API that a vendor offers for them.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Answer, JSON, ask};
use crate::support::Shop;

const P1: &str = "/vendors/vendorA/products/p1";

async fn put(shop: &Shop, path: &str, body: &Value, if_match: Option<&str>) -> Answer {
    let mut headers = vec![JSON];
    headers.extend(if_match.map(|version| ("if-match", version)));
    ask(shop, Method::PUT, path, &headers, body.to_string()).await
}

async fn version(shop: &Shop, path: &str) -> String {
    let shown = ask(shop, Method::GET, path, &[], "").await;
    shown.header("etag").expect("a version").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn vendors_are_listed_with_their_last_sync() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let (status, before) = shop.get("/vendors").await;
    assert_eq!(status, 200);
    insta::assert_json_snapshot!(before, @r#"
    {
      "nextCursor": null,
      "vendors": [
        {
          "id": "vendorA",
          "lastPushError": null,
          "lastSyncAt": null,
          "lastSyncError": null,
          "ledger": true,
          "openUpdates": 0,
          "pushState": null,
          "pushStateSince": null
        },
        {
          "id": "vendorB",
          "lastPushError": null,
          "lastSyncAt": null,
          "lastSyncError": null,
          "ledger": true,
          "openUpdates": 0,
          "pushState": null,
          "pushStateSince": null
        }
      ]
    }
    "#);
    shop.sync().await;
    let (_, after) = shop.get("/vendors").await;
    for vendor in after["vendors"].as_array().expect("a list") {
        assert!(
            vendor["lastSyncAt"].is_string() && vendor["lastSyncError"].is_null(),
            "{after}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_is_set_only_over_the_version_that_was_read() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let (status, shown) = shop.get(P1).await;
    assert_eq!(
        (status, shown),
        (200, json!({"id": "p1", "name": "Product p1", "stock": 10}))
    );
    let first = version(&shop, P1).await;
    let restocked = json!({"name": "Product p1", "stock": 25});
    let answer = put(&shop, P1, &restocked, Some(&first)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let second = version(&shop, P1).await;
    assert_eq!(answer.header("etag"), Some(second.as_str()));
    assert_ne!(first, second);
    // The version that was read is no longer the product's, and nothing is lost by it.
    let stale = put(&shop, P1, &json!({"name": "x", "stock": 1}), Some(&first)).await;
    assert_eq!(stale.problem(), "412 precondition_failed");
    for odd in ["", "x", "\"x\"", &second[1..], &format!("W/{second}")] {
        let answer = put(&shop, P1, &json!({"name": "x", "stock": 1}), Some(odd)).await;
        assert_eq!(answer.problem(), "412 precondition_failed", "{odd:?}");
    }
    assert_eq!(shop.stock_at("vendorA", "p1").await, 25);
    // Whose answer was lost asks for the same again, with what it had read, and is answered that it is so.
    let again = put(&shop, P1, &restocked, Some(&first)).await;
    assert_eq!(
        (again.status, again.header("etag")),
        (200, Some(second.as_str()))
    );
    // One of a list is enough, and any version, and none asked for.
    for if_match in [Some(format!("{first}, {second}")), Some("*".into()), None] {
        let answer = put(&shop, P1, &restocked, if_match.as_deref()).await;
        assert_eq!(answer.status, 200, "{if_match:?}: {}", answer.body);
    }
    let not_ascii = put(&shop, P1, &restocked, Some("\"ü\"")).await;
    assert_eq!(not_ascii.status, 400, "{}", not_ascii.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_product_is_listed_by_its_vendor_and_sold_after_the_next_sync() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    let path = "/vendors/vendorB/products/new%2F%C3%BC";
    assert_eq!(
        ask(&shop, Method::GET, path, &[], "").await.problem(),
        "404 not_found"
    );
    let body = json!({"name": "New \u{1f980}", "stock": 3});
    for version in ["*", "\"x\""] {
        let answer = put(&shop, path, &body, Some(version)).await;
        assert_eq!(
            answer.problem(),
            "412 precondition_failed",
            "there is no version of it"
        );
    }
    let answer = put(&shop, path, &body, None).await;
    assert_eq!(
        (answer.status, &answer.body["id"]),
        (201, &json!("new/ü")),
        "{}",
        answer.body
    );
    assert_eq!(put(&shop, path, &body, None).await.status, 200);
    assert_eq!(shop.get(path).await.0, 200);
    shop.sync().await;
    assert_eq!(shop.available("new%2F%C3%BC").await, 3);
    let id = shop.order(&[("new/ü", 3)]).await;
    shop.order_told(&id).await;
    assert_eq!(shop.stock_at("vendorB", "new/ü").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_are_kept_to_however_they_are_written() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let held = version(&shop, P1).await;
    let body = json!({"name": "x", "stock": 1}).to_string();
    let asking = async |method: Method, headers: &[(&str, &str)]| {
        let headers: Vec<(&str, &str)> = headers.iter().copied().chain([JSON]).collect();
        ask(&shop, method, P1, &headers, body.clone()).await
    };
    // Who wants to make a new one makes none of one that is there.
    for unwanted in ["*", &held, &format!("\"x\", W/{held}")] {
        let refused = asking(Method::PUT, &[("if-none-match", unwanted)]).await;
        assert_eq!(refused.problem(), "412 precondition_failed", "{unwanted}");
    }
    assert_eq!(shop.stock_at("vendorA", "p1").await, 10);
    let new = "/vendors/vendorA/products/new";
    for status in [201, 412] {
        let headers = [JSON, ("if-none-match", "*")];
        let made = ask(&shop, Method::PUT, new, &headers, body.clone()).await;
        assert_eq!(made.status, status, "{}", made.body);
    }
    // Who has it is told so, and who means another one too.
    for known in ["*", &held, &format!("W/{held}"), &format!("\"x\", {held}")] {
        let answer = asking(Method::GET, &[("if-none-match", known)]).await;
        assert_eq!(
            (answer.status, answer.header("etag")),
            (304, Some(held.as_str())),
            "{known}"
        );
        assert_eq!(answer.header("cache-control"), Some("private, no-cache"));
    }
    for (headers, status) in [
        (&[("if-none-match", "\"x\"")][..], 200),
        (&[("if-none-match", "\"x\""), ("if-none-match", &held)], 304),
        (&[("if-match", "\"x\"")], 412),
        (&[("if-match", "\"x\""), ("if-match", &held)], 200),
        (&[("if-match", &held), ("if-none-match", &held)], 304),
        (&[("if-none-match", "\"ü\"")], 400),
    ] {
        let answer = asking(Method::GET, headers).await;
        assert_eq!(answer.status, status, "{headers:?}");
    }
    // Each of several headers counts.
    let several = [("if-match", "\"x\""), ("if-match", held.as_str())];
    let set = asking(Method::PUT, &several).await;
    assert_eq!(set.status, 200, "{}", set.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_writers_that_read_the_same_version_one_wins() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let read = version(&shop, P1).await;
    let bodies: Vec<Value> = (100..112)
        .map(|stock| json!({"name": "p", "stock": stock}))
        .collect();
    let answers = join_all(bodies.iter().map(|body| put(&shop, P1, body, Some(&read)))).await;
    let won: Vec<&Answer> = answers
        .iter()
        .filter(|answer| answer.status == 200)
        .collect();
    assert_eq!(won.len(), 1);
    assert_eq!(won[0].body["stock"], shop.stock_at("vendorA", "p1").await);
    let lost = answers.iter().filter(|answer| answer.status == 412).count();
    assert_eq!(lost, 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_is_applied_once_however_often_it_comes_at_once() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let take = "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001";
    let body = json!({"updates": [
        {"id": take, "productId": "p1", "delta": -4},
        {"id": take, "productId": "p1", "delta": -4},
        {"id": "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a002", "productId": "p1", "delta": -7},
        {"id": "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a003", "productId": "nothing", "delta": -1},
        {"id": "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a004", "productId": "p1", "delta": 4, "reverses": "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a009"},
        {"id": take, "productId": "p1", "delta": -5},
    ]});
    let path = "/vendors/vendorA/stock-updates";
    let answers = join_all((0..12).map(|_| shop.post(path, body.clone()))).await;
    assert!(
        answers.iter().all(|answer| answer == &answers[0]),
        "{answers:?}"
    );
    assert_eq!(answers[0].0, 200);
    insta::assert_json_snapshot!(answers[0].1, @r#"
    {
      "results": [
        {
          "id": "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001",
          "outcome": "applied",
          "stock": 6
        },
        {
          "id": "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001",
          "outcome": "applied",
          "stock": 6
        },
        {
          "id": "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a002",
          "outcome": "rejected",
          "reason": "insufficient_stock",
          "stock": 6
        },
        {
          "id": "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a003",
          "outcome": "rejected",
          "reason": "unknown_product"
        },
        {
          "id": "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a004",
          "outcome": "void",
          "reason": "returned_before_taken",
          "stock": 6
        },
        {
          "id": "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001",
          "outcome": "conflict",
          "reason": "id_used_for_another_update",
          "stock": 6
        }
      ]
    }
    "#);
    assert_eq!(shop.stock_at("vendorA", "p1").await, 6);
}
