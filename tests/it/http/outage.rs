//! Stores that cannot be reached: what can be accepted is, and what is not known is not denied.

use reqwest::Method;
use serde_json::json;
use stockctl::config;

use super::{JSON, ask, order_with_key, post_bytes, text};
use crate::support::{Process, Proxy, Running, Shop, eventually, reqwest_client};

/// Nothing listens there, and nothing that is not root can.
const NOBODY: &str = "127.0.0.1:1";

/// Serves with a configuration in which some servers have the address of nobody.
pub(super) async fn serve_without(shop: &mut Shop, postgresql: bool, rabbitmq: bool) -> Running {
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
        json!({"status": "ready", "postgresql": "down", "rabbitmq": "up", "consumers": "unknown"})
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
    // What RabbitMQ knows is told, without what PostgreSQL keeps of it.
    let (status, answer) = shop.get("/admin/queues").await;
    assert_eq!(status, 200, "{answer}");
    let queues = answer["queues"].as_array().expect("a list");
    assert!(
        queues
            .iter()
            .all(|queue| queue["perSecond"].is_null() && queue["ready"].is_number())
    );
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
            json!({"status": "ready", "postgresql": "up", "rabbitmq": "down", "consumers": "none"})
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
            json!({"status": "unavailable", "postgresql": "down", "rabbitmq": "down", "consumers": "unknown"})
        )
    );
    let ready = ask(&shop, Method::GET, "/readyz", &[], "").await;
    assert_eq!(
        (ready.status, ready.header("retry-after")),
        (503, Some("1"))
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

#[tokio::test(flavor = "multi_thread")]
async fn what_neither_store_takes_is_logged_with_a_request_that_met_it() {
    let shop = Shop::new().await;
    let file = shop.config_file.to_str().expect("UTF-8").to_owned();
    let variables = [
        ("STOCKCTL__DATABASE__URL", "postgres://u:p@127.0.0.1:1/d"),
        ("STOCKCTL__RABBITMQ__URL", "amqp://u:p@127.0.0.1:1/%2f"),
    ];
    let arguments = ["--config", &file, "serve"];
    let mut api = Process::start_with_socket(&arguments, shop.listener(), &variables);
    api.writes("\"message\":\"serving\"").await;
    let headers = [JSON, ("x-request-id", "checkout-4711")];
    let order = r#"{"productId":"p1","quantity":1}"#;
    let refused = ask(&shop, Method::POST, "/orders", &headers, order).await;
    assert_eq!(refused.problem(), "503 unavailable");
    let said = "neither PostgreSQL nor RabbitMQ takes orders";
    let log = api.writes(said).await;
    let line = log
        .lines()
        .find(|line| line.contains(said))
        .expect("a line");
    assert!(line.contains("\"request_id\":\"checkout-4711\""), "{line}");
    assert_eq!(api.terminate().await, Some(0));
}

/// Two processes serve one shop. A network parts one of them from PostgreSQL, and the other knows nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_another_process_has_accepted_through_the_broker_is_never_denied() {
    let mut shop = Shop::new().await;
    shop.sync().await;
    let _here = shop.serve().await;
    wait_for_rabbitmq(&shop).await;
    // The other process reaches PostgreSQL through the proxy.
    let own: url::Url = shop.own_database_url().parse().expect("a URL");
    let port = own.port().expect("a port");
    let proxy = Proxy::before(format!("127.0.0.1:{port}")).await;
    let (good, url) = (shop.config.clone(), shop.url.clone());
    let through = format!(":{}/", proxy.address.port());
    let file = shop.config_file_with("parted.toml", &format!(":{port}/"), &through);
    shop.config = config::load(Some(&file)).expect("a valid configuration");
    let _there = shop.serve_vendors();
    shop.url = format!("http://{}", shop.vendor_address());
    let ready = wait_for_rabbitmq(&shop).await;
    assert_eq!(ready["postgresql"], "up");
    shop.config = good;
    eventually("both vouch", || async {
        let vouching =
            "SELECT count(*) AS n FROM acceptors WHERE vouches_until > clock_timestamp()";
        (shop.count(vouching).await == 2).then_some(())
    })
    .await;

    proxy.cut();
    let there = shop.url.clone();
    let id = shop.order(&[("p1", 2)]).await;
    shop.url = url;
    let shown = ask(&shop, Method::GET, &format!("/orders/{id}"), &[], "").await;
    assert_eq!(shown.problem(), "503 not_yet_visible");
    let cancelled = ask(
        &shop,
        Method::POST,
        &format!("/orders/{id}/cancel"),
        &[],
        "",
    )
    .await;
    assert_eq!(cancelled.problem(), "503 not_yet_visible");

    let _work = shop.work();
    shop.order_with_status(&id, "confirmed").await;
    // As long as the other is out of sight it may have more.
    let unknown = format!("/orders/{}", uuid::Uuid::now_v7());
    let (status, _) = shop.get(&unknown).await;
    assert_eq!(status, 503);
    proxy.mend();
    shop.knows_what_is_unknown().await;
    let answer = reqwest_client().get(there + &unknown).send().await;
    assert_eq!(answer.expect("an answer").status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_that_has_just_come_back_takes_orders_when_the_broker_goes() {
    let mut shop = Shop::new().await;
    shop.sync().await;
    let own: url::Url = shop.own_database_url().parse().expect("a URL");
    let port = own.port().expect("a port");
    let database = Proxy::before(format!("127.0.0.1:{port}")).await;
    let amqp: url::Url = shop.config.rabbitmq.urls[0].expose().parse().expect("one");
    let address = format!("127.0.0.1:{}", amqp.port().expect("a port"));
    let broker = Proxy::before(address.clone()).await;
    let good = shop.config.clone();
    let through = format!(":{}/", database.address.port());
    let file = shop.config_file_with("parted.toml", &format!(":{port}/"), &through);
    let text = std::fs::read_to_string(&file).expect("written");
    let text = text.replace(&address, &broker.address.to_string());
    std::fs::write(&file, text).expect("written");
    shop.config = config::load(Some(&file)).expect("a valid configuration");
    let _api = shop.serve().await;
    shop.config = good;
    wait_for_rabbitmq(&shop).await;

    database.cut();
    let mut ids = vec![shop.order(&[("p1", 1)]).await];
    // The next one is answered at once; PostgreSQL would be tried again a second after it.
    ids.push(shop.order(&[("p1", 1)]).await);
    database.mend();
    broker.cut();
    eventually("the broker is known to be gone", || async {
        let (_, ready) = shop.get("/readyz").await;
        (ready["rabbitmq"] == "down").then_some(())
    })
    .await;
    let kept = shop.order(&[("p1", 2)]).await;
    let known = shop.text("SELECT id::text AS t FROM orders").await;
    assert_eq!(known, kept, "PostgreSQL has this one alone");

    broker.mend();
    let _work = shop.work();
    ids.push(kept);
    for id in ids {
        shop.order_with_status(&id, "confirmed").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_killed_is_forgotten_once_what_it_accepted_must_have_arrived() {
    let mut shop = Shop::new().await;
    shop.sync().await;
    let here = shop.config.http.listen.to_string();
    let file = shop.config_file_with("elsewhere.toml", &here, "127.0.0.1:0");
    let mut killed = Process::configured(&file, &["serve"]);
    eventually("it vouches", || async {
        let vouching = "SELECT count(*) AS n FROM acceptors WHERE vouches_until IS NOT NULL";
        (shop.count(vouching).await == 1).then_some(())
    })
    .await;
    killed.kill().await;
    eventually("its last word has run out", || async {
        let over = "SELECT count(*) AS n FROM acceptors WHERE vouches_until < clock_timestamp()";
        (shop.count(over).await == 1).then_some(())
    })
    .await;
    let api = shop.serve_vendors();
    shop.url = format!("http://{}", shop.vendor_address());
    let unknown = format!("/orders/{}", uuid::Uuid::now_v7());
    let (status, answer) = shop.get(&unknown).await;
    assert_eq!((status, &answer["code"]), (503, &json!("not_yet_visible")));
    // Ten minutes later.
    shop.run_here(
        "UPDATE acceptors SET seen_at = now() - interval '11 minutes' WHERE vouches_until < now() - interval '1 second'",
    )
    .await;
    // Started anew, so that it looks at once.
    api.stop().await;
    let _api = shop.serve_vendors();
    shop.knows_what_is_unknown().await;
    assert_eq!(shop.count("SELECT count(*) AS n FROM acceptors").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_holds_through_an_outage_between_two_requests() {
    let mut shop = Shop::new().await;
    shop.sync().await;
    let body = json!({"productId": "p1", "quantity": 2});
    let other = json!({"productId": "p1", "quantity": 3});
    let api = shop.serve().await;
    let first = order_with_key(&shop, "k", &body).await;
    assert_eq!(first.status, 202, "{}", first.body);
    api.stop().await;

    let api = serve_without(&mut shop, true, false).await;
    wait_for_rabbitmq(&shop).await;
    let again = order_with_key(&shop, "k", &body).await;
    assert_eq!((again.status, &again.body["id"]), (202, &first.body["id"]));
    // Whose key it is cannot be looked up now; the 202 promises a decision.
    let taken = order_with_key(&shop, "k", &other).await;
    assert_eq!(taken.status, 202, "{}", taken.body);
    assert_ne!(taken.body["id"], first.body["id"]);
    api.stop().await;

    let _parts = (shop.serve().await, shop.work());
    let id = text(&first.body["id"]);
    shop.order_with_status(&id, "confirmed").await;
    let refused = shop
        .order_with_status(&text(&taken.body["id"]), "rejected")
        .await;
    assert_eq!(refused["reason"]["code"], "idempotency_conflict");
    let again = order_with_key(&shop, "k", &body).await;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.body["id"], first.body["id"]);
    // That request is an order of its own since then, whatever became of it; any further one is refused.
    let same = order_with_key(&shop, "k", &other).await;
    assert_eq!(same.body["id"], taken.body["id"]);
    assert_eq!(same.body["status"], "rejected");
    let third = json!({"productId": "p1", "quantity": 4});
    let conflict = order_with_key(&shop, "k", &third).await;
    assert_eq!(conflict.problem(), "422 idempotency_conflict");
    assert_eq!(shop.available("p1").await, 8, "and it was sold once");
}
