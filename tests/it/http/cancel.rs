//! Cancelling: what was taken is returned, once, here and at the vendors.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Answer, JSON, ask, text};
use crate::support::{Shop, ShopOptions, eventually};

async fn cancel(shop: &Shop, id: &str) -> Answer {
    ask(shop, Method::POST, &format!("/orders/{id}/cancel"), &[], "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_order_that_is_cancelled_is_never_decided() {
    let shop = Shop::new().await;
    shop.sync().await;
    let _api = shop.serve().await;
    let _vendors = shop.serve_vendors();
    let id = shop.order(&[("p1", 1)]).await;
    let cancelled = cancel(&shop, &id).await;
    assert_eq!(
        (cancelled.status, &cancelled.body["status"]),
        (200, &Value::from("cancelled"))
    );
    assert!(cancelled.body["cancelledAt"].is_string() && cancelled.body["decidedAt"].is_null());
    let _work = shop.work();
    // It stands behind the other in the queue.
    let next = shop.order(&[("p1", 1)]).await;
    shop.order_told(&next).await;
    let (_, order) = shop.get(&format!("/orders/{id}")).await;
    assert_eq!(order, cancelled.body);
    assert_eq!(shop.available("p1").await, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmed_order_that_is_cancelled_gives_its_stock_back_once() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    let id = shop.order(&[("p2", 18), ("p3", 1)]).await;
    shop.order_told(&id).await;
    assert_eq!(shop.stock_at("vendorA", "p2").await, 0);
    let answers = join_all((0..10).map(|_| cancel(&shop, &id))).await;
    for answer in answers {
        assert_eq!(
            (answer.status, &answer.body["status"]),
            (200, &Value::from("cancelled")),
            "{}",
            answer.body
        );
    }
    let told = shop.order_told(&id).await;
    let mut updates: Vec<String> = told["updates"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|u| {
            let (vendor, product) = (text(&u["vendorId"]), text(&u["productId"]));
            format!("{vendor} {product} {} {}", u["delta"], text(&u["state"]))
        })
        .collect();
    updates.sort();
    insta::assert_snapshot!(updates.join("\n"), @"
    vendorA p2 -15 acknowledged
    vendorA p2 15 acknowledged
    vendorB p2 -3 acknowledged
    vendorB p2 3 acknowledged
    vendorB p3 -1 acknowledged
    vendorB p3 1 acknowledged
    ");
    for (vendor, product, stock) in [
        ("vendorA", "p2", 15),
        ("vendorB", "p2", 5),
        ("vendorB", "p3", 20),
    ] {
        assert_eq!(
            shop.stock_at(vendor, product).await,
            stock,
            "{vendor} {product}"
        );
    }
    assert_eq!(
        (shop.available("p2").await, shop.available("p3").await),
        (20, 20)
    );
    shop.sync().await;
    assert_eq!(
        (shop.available("p2").await, shop.available("p3").await),
        (20, 20)
    );
    assert_eq!(
        shop.count("SELECT sum(abs(open_delta))::bigint AS n FROM stock")
            .await,
        0
    );
    assert_eq!(
        shop.count("SELECT count(*) AS n FROM stock_updates WHERE closed_at IS NULL")
            .await,
        0
    );
    let again = cancel(&shop, &id).await;
    assert_eq!(
        (again.status, &again.body["cancelledAt"]),
        (200, &told["cancelledAt"])
    );
    assert_eq!(
        shop.count("SELECT count(*) AS n FROM stock_updates").await,
        6
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_cancelled_before_its_vendor_knows_of_it_leaves_the_vendor_as_it_was() {
    let shop = Shop::new().await;
    shop.sync().await;
    let _api = shop.serve().await;
    // The orders are decided, and nobody tells the vendors yet.
    let _deciding = shop.work_on(&[stockctl::commands::work::WorkQueue::Orders]);
    let id = shop.order(&[("p1", 4)]).await;
    shop.order_with_status(&id, "confirmed").await;
    assert_eq!(cancel(&shop, &id).await.status, 200);
    let _vendors = shop.serve_vendors();
    let _telling = shop.work_on(&[stockctl::commands::work::WorkQueue::VendorSync]);
    shop.order_told(&id).await;
    eventually("the stock is available again", || async {
        shop.sync().await;
        (shop.available("p1").await == 10).then_some(())
    })
    .await;
    assert_eq!(shop.stock_at("vendorA", "p1").await, 10);
    assert_eq!(
        shop.count("SELECT sum(abs(open_delta))::bigint AS n FROM stock")
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_races_with_the_decision_comes_before_or_after_it() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    let one = async || {
        let id = shop.order(&[("p3", 1)]).await;
        // Twice at the same time is once.
        join_all([cancel(&shop, &id), cancel(&shop, &id)]).await;
        id
    };
    let ids = join_all((0..15).map(|_| one())).await;
    for id in &ids {
        let order = shop
            .order_where(id, "it is over", |order| order["vendorSync"] != "pending")
            .await;
        assert_eq!(order["status"], "cancelled");
        let sum: i64 = order["updates"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|update| update["state"] != "void")
            .map(|update| update["delta"].as_i64().expect("a number"))
            .sum();
        assert_eq!(sum, 0, "all of it or nothing: {order}");
    }
    shop.settled().await;
    shop.in_step(&[("vendorB", "p3", 20)]).await;
    assert_eq!(shop.available("p3").await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_take_in_the_dead_letter_queue_stays_without_effect_once_its_order_is_cancelled() {
    let shop = Shop::with(ShopOptions {
        config: "[vendor_sync]\nretries_max = 0\ntimeout_ms = 300\n".into(),
        ..ShopOptions::default()
    })
    .await;
    shop.sync().await;
    let _api = shop.serve().await;
    let work = shop.work();
    let id = shop.order(&[("p1", 4)]).await;
    shop.dead_letters("vendor_sync_dlq", 1).await;
    assert_eq!(cancel(&shop, &id).await.status, 200);
    // The return goes the same way, and both come back, the take after what had overtaken it.
    shop.dead_letters("vendor_sync_dlq", 2).await;
    work.stop().await;
    let _parts = (shop.serve_vendors(), shop.work());
    let (status, answer) = shop
        .post(
            "/admin/dead-letters/vendor_sync_dlq/replay",
            json!({"all": true}),
        )
        .await;
    assert_eq!(status, 200, "{answer}");
    shop.order_told(&id).await;
    shop.settled().await;
    shop.in_step(&[("vendorA", "p1", 10)]).await;
    assert_eq!(shop.available("p1").await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_cancelled_is_told_why() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    let id = shop.order(&[("p1", 11)]).await;
    let order = shop.order_with_status(&id, "rejected").await;
    assert_eq!(cancel(&shop, &id).await.problem(), "409 not_cancellable");
    assert_eq!(shop.get(&format!("/orders/{id}")).await.1, order);
    shop.knows_what_is_unknown().await;
    for unknown in ["0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001", "x"] {
        assert_eq!(cancel(&shop, unknown).await.problem(), "404 not_found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_by_an_address_is_refused_with_a_body_that_means_more() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let id = shop.order(&[("p1", 3)]).await;
    let order = format!("/orders/{id}/cancel");
    let partly = r#"{"lines":[{"productId":"p1","quantity":1}]}"#;
    for path in [order.as_str(), "/admin/sync"] {
        let refused = ask(&shop, Method::POST, path, &[JSON], partly).await;
        assert_eq!(
            refused.problem(),
            "422 validation_failed \"/lines\" unknown field `lines`, there are no fields",
            "{path}"
        );
        let refused = ask(&shop, Method::POST, path, &[JSON], "{").await;
        assert_eq!(refused.body["code"], "malformed_json", "{path}");
        let text = [("content-type", "text/plain")];
        let refused = ask(&shop, Method::POST, path, &text, "please").await;
        assert_eq!(refused.body["code"], "unsupported_media_type", "{path}");
    }
    let (_, shown) = shop.get(&format!("/orders/{id}")).await;
    assert_eq!(shown["status"], "pending");
    // Some clients always send an object.
    for (path, status) in [(order.as_str(), 200), ("/admin/sync", 202)] {
        let done = ask(&shop, Method::POST, path, &[JSON], "{}").await;
        assert_eq!(done.status, status, "{path}: {}", done.body);
    }
}
