//! Stores that cannot be reached: what can be accepted is, and what is not known is not denied.

use reqwest::Method;
use serde_json::json;
use stockctl::config;

use super::{ask, order_with_key, post_bytes, text};
use crate::support::{Running, Shop, eventually};

/// Nothing listens there, and nothing that is not root can.
const NOBODY: &str = "127.0.0.1:1";

/// Serves with a configuration in which some servers have the address of nobody.
async fn serve_without(shop: &mut Shop, postgresql: bool, rabbitmq: bool) -> Running {
    let good = shop.config.clone();
    let mut text = std::fs::read_to_string(&shop.config_file).expect("written before");
    let urls = [
        (
            postgresql,
            good.database.url.expose(),
            format!("postgres://u:p@{NOBODY}/d"),
        ),
        (
            rabbitmq,
            good.rabbitmq.urls[0].expose(),
            format!("amqp://u:p@{NOBODY}/%2f"),
        ),
    ];
    for (_, url, nobody) in urls.into_iter().filter(|(without, ..)| *without) {
        assert!(text.contains(url), "the file has {url}");
        text = text.replace(url, &nobody);
    }
    let file = shop.config_file.with_file_name("unreachable.toml");
    std::fs::write(&file, text).expect("written");
    shop.config = config::load(Some(&file)).expect("a valid configuration");
    let running = shop.serve().await;
    shop.config = good;
    running
}

async fn wait_for_rabbitmq(shop: &Shop) -> serde_json::Value {
    eventually("the broker is connected", || async {
        let (status, ready) = shop.get("/readyz").await;
        (status == 200 && ready["rabbitmq"] == "up").then_some(ready)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_accepted_through_the_broker_while_postgresql_cannot_be_reached() {
    let mut shop = Shop::new().await;
    shop.sync().await;
    let _api = serve_without(&mut shop, true, false).await;
    let ready = wait_for_rabbitmq(&shop).await;
    assert_eq!(
        ready,
        json!({"status": "ready", "postgresql": "down", "rabbitmq": "up"})
    );
    let body = json!({"productId": "p1", "quantity": 2, "reference": "in the dark"});
    let accepted = order_with_key(&shop, "k", &body).await;
    assert_eq!(
        (accepted.status, &accepted.body["status"]),
        (202, &json!("pending")),
        "{}",
        accepted.body
    );
    let id = text(&accepted.body["id"]);
    let again = order_with_key(&shop, "k", &body).await;
    assert_eq!((again.status, text(&again.body["id"])), (202, id.clone()));
    for (method, path) in [
        (Method::GET, format!("/orders/{id}")),
        (Method::POST, format!("/orders/{id}/cancel")),
    ] {
        let shown = ask(&shop, method, &path, &[], "").await;
        assert_eq!(shown.problem(), "503 not_yet_visible", "{path}");
        assert!(shown.header("retry-after").is_some());
    }
    // A failed look-up is no empty list, and no missing thing.
    for path in [
        "/orders",
        "/products",
        "/products/p1",
        "/vendors",
        "/orders/0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001",
    ] {
        let answer = ask(&shop, Method::GET, path, &[], "").await;
        assert_eq!(answer.problem(), "503 unavailable", "{path}");
        assert!(answer.header("retry-after").is_some());
    }
    let bad = post_bytes(&shop, "/orders", r#"{"productId":"p1","quantity":0}"#).await;
    assert_eq!(bad.status, 422, "{}", bad.body);
    // The worker that can reach PostgreSQL inserts it, once.
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 0);
    let _work = shop.work();
    eventually("the order is confirmed", || async {
        let confirmed = format!("SELECT count(*) AS n FROM orders WHERE id = '{id}' AND status = 'confirmed' AND reference = 'in the dark'");
        (shop.count(&confirmed).await == 1).then_some(())
    })
    .await;
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 1);
    assert_eq!(
        shop.count("SELECT sum(delta)::bigint AS n FROM stock_updates")
            .await,
        -2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_accepted_and_wait_while_the_broker_cannot_be_reached() {
    let mut shop = Shop::new().await;
    shop.sync().await;
    let api = serve_without(&mut shop, false, true).await;
    let (status, ready) = shop.get("/readyz").await;
    assert_eq!(
        (status, ready),
        (
            200,
            json!({"status": "ready", "postgresql": "up", "rabbitmq": "down"})
        )
    );
    let id = shop.order(&[("p1", 1)]).await;
    let (status, order) = shop.get(&format!("/orders/{id}")).await;
    assert_eq!((status, &order["status"]), (200, &json!("pending")));
    assert_eq!(shop.count("SELECT count(*) AS n FROM outbox").await, 1);
    for path in ["/admin/queues", "/admin/dead-letters/orders_dlq"] {
        let answer = ask(&shop, Method::GET, path, &[], "").await;
        assert_eq!(answer.problem(), "503 unavailable", "{path}");
    }
    api.stop().await;
    // Another process, which reaches both, sweeps it up.
    let _parts = (shop.serve().await, shop.work());
    shop.order_with_status(&id, "confirmed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_accepted_while_neither_store_can_be_reached() {
    let mut shop = Shop::new().await;
    let _api = serve_without(&mut shop, true, true).await;
    let (status, ready) = shop.get("/readyz").await;
    assert_eq!(
        (status, ready),
        (
            503,
            json!({"status": "unavailable", "postgresql": "down", "rabbitmq": "down"})
        )
    );
    let (status, alive) = shop.get("/healthz").await;
    assert_eq!((status, alive), (200, json!({"status": "ok"})));
    for _ in 0..2 {
        let refused = order_with_key(&shop, "k", &json!({"productId": "p1", "quantity": 1})).await;
        assert_eq!(refused.problem(), "503 unavailable");
        assert!(refused.header("retry-after").is_some());
        assert!(refused.body["orderId"].is_null(), "{}", refused.body);
    }
    // It is certain that the order is not there, but not which others are.
    let path = "/orders/0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001";
    assert_eq!(
        ask(&shop, Method::GET, path, &[], "").await.problem(),
        "503 unavailable"
    );
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 0);
}
