//! What an operator asks for, and what a supervisor does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use reqwest::Method;
use serde_json::{Value, json};
use stockctl::commands::sync::{self, Selection};
use stockctl::commands::work::WorkQueue;
use stockctl::shutdown::Shutdown;
use stockctl::supervisor::Supervisor;

use super::{ask, post_bytes, text};
use crate::support::{Shop, ShopOptions, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_is_asked_for_is_run_by_the_loop() {
    let defaults = ShopOptions::default();
    let shop = Shop::with(ShopOptions {
        // No tick comes while the test runs.
        config: format!(
            "{}[sync]\nschedule = \"0 0 0 1 1 * 2099\"\n",
            defaults.config
        ),
        ..defaults
    })
    .await;
    let _api = shop.serve().await;
    // Asked for before any loop runs, it waits for one.
    let (status, answer) = shop.post("/admin/sync", json!({})).await;
    assert_eq!(
        (status, answer),
        (202, json!({"requested": ["vendorA", "vendorB"]}))
    );
    let shutdown = Shutdown::new();
    let (config, until) = (shop.config.clone(), shutdown.clone());
    let syncing = tokio::spawn(async move {
        sync::run(&config, &Selection::default(), until, &Supervisor::none()).await
    });
    let runs = "SELECT min(completed_run) AS n FROM vendors WHERE NOT sync_requested";
    eventually("the first run is done", || async {
        let done =
            "SELECT count(*) AS n FROM vendors WHERE completed_run > 0 AND NOT sync_requested";
        (shop.count(done).await == 2).then_some(())
    })
    .await;
    let before = shop.count(runs).await;
    shop.run_at("vendorA", "UPDATE products SET stock = 77 WHERE id = 'p1'")
        .await;
    assert_eq!(shop.available("p1").await, 10);
    let (status, _) = shop.post("/admin/sync", json!({})).await;
    assert_eq!(status, 202);
    eventually("the vendor's new stock is seen", || async {
        (shop.available("p1").await == 77).then_some(())
    })
    .await;
    eventually("both vendors were synced again", || async {
        let since = format!("SELECT count(*) AS n FROM vendors WHERE completed_run > {before} AND NOT sync_requested");
        (shop.count(&since).await == 2).then_some(())
    })
    .await;
    shutdown.begin();
    syncing.await.expect("no panic").expect("a clean end");
}

/// Each queue with what is ready in it and how many consume it.
async fn queues(shop: &Shop) -> String {
    let (status, answer) = shop.get("/admin/queues").await;
    assert_eq!(status, 200, "{answer}");
    let queues = answer["queues"].as_array().expect("a list");
    let lines = queues.iter().map(|queue| {
        let name = text(&queue["name"]);
        format!("{name} {} {}", queue["ready"], queue["consumers"])
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queues_are_listed_with_what_waits_in_them() {
    let shop = Shop::new().await;
    shop.sync().await;
    let api = (shop.serve().await, shop.serve_vendors());
    let id = shop.order(&[("p1", 1)]).await;
    let waiting = eventually("an order waits", || async {
        let queues = queues(&shop).await;
        queues.contains("orders_queue 1 0").then_some(queues)
    })
    .await;
    insta::assert_snapshot!(waiting, @"
    orders_dlq 0 0
    orders_queue 1 0
    orders_retry_queue 0 0
    vendor_sync_dlq 0 0
    vendor_sync 0 0
    vendor_sync_retry 0 0
    ");
    let work = shop.work();
    shop.order_told(&id).await;
    eventually("both queues are empty and consumed", || async {
        let queues = queues(&shop).await;
        (queues.contains("orders_queue 0 1") && queues.contains("vendor_sync 0 1")).then_some(())
    })
    .await;
    drop((api, work));
}

/// A shop in which no order for p3 can be decided, for as long as its schema forbids it.
async fn shop_with_a_broken_product() -> Shop {
    let shop = Shop::with(ShopOptions {
        config: "[orders]\nretry_delay_ms = 100\nretries_max = 1\n".into(),
        ..ShopOptions::default()
    })
    .await;
    shop.run_here("ALTER TABLE stock_updates ADD CONSTRAINT broken CHECK (product_id <> 'p3')")
        .await;
    shop
}

/// How many messages of each queue go in a second.
async fn rates(shop: &Shop) -> BTreeMap<String, f64> {
    let (status, answer) = shop.get("/admin/queues").await;
    assert_eq!(status, 200, "{answer}");
    let queues = answer["queues"].as_array().expect("a list");
    let rates = queues.iter().map(|queue| {
        let rate = queue["perSecond"].as_f64();
        (
            text(&queue["name"]).to_owned(),
            rate.expect("PostgreSQL answers"),
        )
    });
    rates.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queues_are_listed_with_how_fast_messages_go_through_them() {
    let shop = shop_with_a_broken_product().await;
    let _parts = shop.open().await;
    assert!(rates(&shop).await.values().all(|rate| *rate == 0.0));
    let told = shop.order(&[("p1", 1)]).await;
    let dead = shop.order(&[("p3", 1)]).await;
    // What one process says every few seconds; a look of its own may fall between two queues.
    let moved = Mutex::new(BTreeMap::<String, f64>::new());
    eventually(
        "every queue that a message went through has moved",
        || async {
            let rates = rates(&shop).await;
            let mut moved = moved.lock().expect("whole");
            moved.extend(rates.into_iter().filter(|(_, rate)| *rate > 0.0));
            let through = [
                "orders_dlq",
                "orders_queue",
                "orders_retry_queue",
                "vendor_sync",
            ];
            moved.keys().eq(through).then_some(())
        },
    )
    .await;
    shop.order_told(&told).await;
    shop.order_with_status(&dead, "failed").await;
    shop.order(&[("p1", 1)]).await;
    eventually("something moves again", || async {
        (rates(&shop).await["orders_queue"] > 0.0).then_some(())
    })
    .await;
    let (code, status) = {
        let ended = shop.run(&["status", "--json"]).await;
        let status: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        (ended.code, status)
    };
    let in_status = status["queues"].as_array().expect("a list");
    let of_orders = in_status
        .iter()
        .find(|queue| queue["name"] == "orders_queue");
    let rate = of_orders.and_then(|queue| queue["perSecond"].as_f64());
    assert_eq!((code, rate.map(|rate| rate > 0.0)), (Some(5), Some(true)));
    eventually("all has come to rest", || async {
        rates(&shop)
            .await
            .values()
            .all(|rate| *rate == 0.0)
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_and_replayed_by_id_and_by_number() {
    let shop = shop_with_a_broken_product().await;
    let _parts = shop.open().await;
    let mut ids = BTreeSet::new();
    for quantity in 1..=4 {
        let id = shop.order(&[("p3", quantity)]).await;
        shop.order_with_status(&id, "failed").await;
        ids.insert(id);
    }
    let first = ids.first().expect("four").clone();
    let (_, failed) = shop.get(&format!("/orders/{first}")).await;
    assert_eq!(failed["reason"]["code"], "processing_failed");
    let letters = shop.dead_letters("orders_dlq", 4).await;
    let letter = letters
        .iter()
        .find(|letter| letter["messageId"] == first.as_str())
        .expect("its letter");
    assert_eq!(
        (&letter["reason"], &letter["attempts"]),
        (&json!("retries_exhausted"), &json!(2)),
        "{letter}"
    );
    assert_eq!(
        (&letter["body"]["id"], &letter["body"]["lines"]),
        (&json!(first), &failed["lines"])
    );
    assert_eq!(letter["cause"], "own_database_refused");
    // Whoever may see it is the operator, who is told the cause itself.
    let error = text(&letter["error"]);
    assert!(error.contains("constraint \"broken\""), "{error}");
    // Looked at in parts or whole, they stay as they are.
    let (_, two) = shop.get("/admin/dead-letters/orders_dlq?limit=2").await;
    assert_eq!(two["deadLetters"], json!(letters[..2]));
    let (_, by_id) = shop
        .get(&format!("/admin/dead-letters/orders_dlq?messageId={first}"))
        .await;
    assert_eq!(by_id["deadLetters"], json!([letter]));
    let (_, none) = shop
        .get("/admin/dead-letters/orders_dlq?messageId=nobody")
        .await;
    assert_eq!(none["deadLetters"], json!([]));
    assert_eq!(shop.dead_letters("orders_dlq", 4).await, letters);
    let (_, other) = shop.get("/admin/dead-letters/vendor_sync_dlq").await;
    assert_eq!(other["deadLetters"], json!([]));

    shop.run_here("ALTER TABLE stock_updates DROP CONSTRAINT broken")
        .await;
    let replay = "/admin/dead-letters/orders_dlq/replay";
    let (status, problem) = shop.post(replay, json!({"messageId": "nobody"})).await;
    assert_eq!((status, &problem["code"]), (404, &json!("not_found")));
    let rehearsed = shop
        .post(replay, json!({"messageId": first, "dryRun": true}))
        .await;
    assert_eq!(
        rehearsed,
        (
            200,
            json!({"dryRun": true, "replayed": [first], "revivedOrders": [first]})
        )
    );
    assert_eq!(shop.dead_letters("orders_dlq", 4).await, letters);
    assert_eq!(
        shop.post(replay, json!({"messageIds": [first, "nobody"]}))
            .await,
        (
            200,
            json!({"replayed": [first], "revivedOrders": [first], "notFound": ["nobody"]})
        )
    );
    shop.order_told(&first).await;
    let (status, answer) = shop.post(replay, json!({"limit": 2})).await;
    assert_eq!(
        (status, answer["replayed"].as_array().map(Vec::len)),
        (200, Some(2)),
        "{answer}"
    );
    let (_, rest) = shop.post(replay, json!({"all": true})).await;
    assert_eq!(rest["replayed"].as_array().map(Vec::len), Some(1), "{rest}");
    for id in &ids {
        assert_eq!(shop.order_told(id).await["status"], "confirmed");
    }
    assert_eq!(shop.available("p3").await, 10);
    assert_eq!(
        shop.get("/admin/dead-letters/orders_dlq").await.1,
        json!({"deadLetters": [], "notLookedAt": 0, "nextCursor": null})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_dead_letter_is_shown_whole_and_dropped() {
    let shop = shop_with_a_broken_product().await;
    let _parts = shop.open().await;
    let id = shop.order(&[("p3", 1)]).await;
    shop.order_with_status(&id, "failed").await;
    let letters = shop.dead_letters("orders_dlq", 1).await;
    let path = format!("/admin/dead-letters/orders_dlq/{id}");
    let (status, mut shown) = shop.get(&path).await;
    assert_eq!(status, 200, "{shown}");
    let headers = shown["headers"].take();
    assert_eq!(headers["x-dead-letter-reason"], "retries_exhausted");
    assert_eq!(headers["x-dead-letter-attempts"], 2);
    assert_eq!(headers["x-dead-letter-error"], shown["error"]);
    assert!(headers.to_string().contains("broken"), "{headers}");
    shown.as_object_mut().expect("an object").remove("headers");
    assert_eq!(shown, letters[0]);
    for path in [
        "/admin/dead-letters/orders_dlq/nobody".to_owned(),
        format!("/admin/dead-letters/vendor_sync_dlq/{id}"),
        format!("/admin/dead-letters/orders_queue/{id}"),
    ] {
        let answer = ask(&shop, Method::GET, &path, &[], "").await;
        assert_eq!(answer.problem(), "404 not_found", "{path}");
    }
    let of_order = format!("/admin/dead-letters/orders_dlq?orderId={id}&reason=retries_exhausted");
    assert_eq!(shop.get(&of_order).await.1["deadLetters"], json!(letters));
    let of_reason = "/admin/dead-letters/orders_dlq?reason=crash_loop";
    assert_eq!(shop.get(of_reason).await.1["deadLetters"], json!([]));

    let drop = "/admin/dead-letters/orders_dlq/drop";
    let report = json!({"dropped": [id], "cancelledOrders": [id]});
    let (status, rehearsed) = shop.post(drop, json!({"all": true, "dryRun": true})).await;
    assert_eq!((status, &rehearsed["dropped"]), (200, &report["dropped"]));
    assert_eq!(
        shop.get(&format!("/orders/{id}")).await.1["status"],
        "failed"
    );
    assert_eq!(shop.post(drop, json!({"orderId": id})).await, (200, report));
    shop.order_with_status(&id, "cancelled").await;
    let by = shop
        .text("SELECT dropped_by AS t FROM dropped_letters")
        .await;
    assert_eq!(by, "http:127.0.0.1");
    let (status, _) = shop.post(drop, json!({"messageId": id})).await;
    assert_eq!(status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_order_that_is_cancelled_stays_so_when_its_letter_is_replayed() {
    let shop = shop_with_a_broken_product().await;
    let _parts = shop.open().await;
    let id = shop.order(&[("p3", 1)]).await;
    shop.order_with_status(&id, "failed").await;
    let (status, cancelled) = shop.post(&format!("/orders/{id}/cancel"), json!({})).await;
    assert_eq!((status, &cancelled["status"]), (200, &json!("cancelled")));
    shop.run_here("ALTER TABLE stock_updates DROP CONSTRAINT broken")
        .await;
    shop.dead_letters("orders_dlq", 1).await;
    let (status, answer) = shop
        .post(
            "/admin/dead-letters/orders_dlq/replay",
            json!({"all": true}),
        )
        .await;
    assert_eq!(
        (status, answer),
        (200, json!({"replayed": [id], "revivedOrders": []}))
    );
    // It stands behind the replayed one in the queue.
    let next = shop.order(&[("p3", 1)]).await;
    shop.order_told(&next).await;
    assert_eq!(shop.get(&format!("/orders/{id}")).await.1, cancelled);
    assert_eq!(shop.available("p3").await, 19);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_act_on_dead_letters_that_is_not_valid_moves_nothing() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let replay = "/admin/dead-letters/orders_dlq/replay";
    let mut said = String::new();
    let drop = "/admin/dead-letters/vendor_sync_dlq/drop";
    for (path, body) in [
        (replay, ""),
        (replay, "[]"),
        (replay, "{}"),
        (drop, "{\"dryRun\":true}"),
        (drop, "{\"all\":false}"),
        (drop, "{\"all\":true,\"limit\":1}"),
        (replay, "{\"limit\":0}"),
        (replay, "{\"limit\":201}"),
        (replay, "{\"limit\":\"1\"}"),
        (replay, "{\"messageId\":1}"),
        (replay, "{\"messageId\":\"\"}"),
        (replay, "{\"messageIds\":[]}"),
        (drop, "{\"messageIds\":[],\"dryRun\":true}"),
        (drop, "{\"orderId\":\"x\"}"),
        (drop, "{\"yes\":true}"),
    ] {
        let answer = post_bytes(&shop, path, body).await;
        said.push_str(&format!("{body}: {}\n", answer.problem()));
    }
    insta::assert_snapshot!(said, @r#"
    : 400 malformed_json
    []: 422 validation_failed "" must be an object, is a list
    {}: 422 validation_failed "" must select letters by messageId, messageIds, reason, orderId or limit, or say "all": true
    {"dryRun":true}: 422 validation_failed "" must select letters by messageId, messageIds, reason, orderId or limit, or say "all": true
    {"all":false}: 422 validation_failed "" must select letters by messageId, messageIds, reason, orderId or limit, or say "all": true
    {"all":true,"limit":1}: 422 validation_failed "/all" means every letter, so it stands without messageId, messageIds, reason, orderId and limit
    {"limit":0}: 422 validation_failed "/limit" must be 1 to 200, is 0
    {"limit":201}: 422 validation_failed "/limit" must be 1 to 200, is 201
    {"limit":"1"}: 422 validation_failed "/limit" must be a whole number from 1 to 200, is "1"
    {"messageId":1}: 422 validation_failed "/messageId" must be a string, is 1
    {"messageId":""}: 422 validation_failed "/messageId" must not be empty
    {"messageIds":[]}: 422 validation_failed "/messageIds" must be 1 to 200, are 0
    {"messageIds":[],"dryRun":true}: 422 validation_failed "/messageIds" must be 1 to 200, are 0
    {"orderId":"x"}: 422 validation_failed "/orderId" must be a UUID with hyphens, is "x"
    {"yes":true}: 422 validation_failed "/yes" unknown field `yes`, expected one of `messageId`, `messageIds`, `reason`, `orderId`, `limit`, `all`, `dryRun`
    "#);
    let answer = post_bytes(&shop, "/admin/dead-letters/orders_queue/replay", "{}").await;
    assert_eq!(answer.problem(), "404 not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_can_accept_orders_says_so() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let alive = ask(&shop, Method::GET, "/healthz", &[], "").await;
    assert_eq!((alive.status, alive.body), (200, json!({"status": "ok"})));
    let ready: Value = eventually("both stores are up", || async {
        let (status, ready) = shop.get("/readyz").await;
        assert_eq!(status, 200, "{ready}");
        (ready["rabbitmq"] == "up").then_some(ready)
    })
    .await;
    assert_eq!(
        ready,
        json!({"status": "ready", "postgresql": "up", "rabbitmq": "up", "consumers": "none"})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_says_whether_both_work_queues_are_consumed() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let consumers_are = async |state: &str| {
        eventually(&format!("the consumers are {state}"), || async {
            let (status, ready) = shop.get("/readyz").await;
            assert_eq!(status, 200, "{ready}");
            (ready["consumers"] == state).then_some(())
        })
        .await;
    };
    let deciding = shop.work_on(&[WorkQueue::Orders]);
    eventually("one of them is seen", || async {
        (shop.count("SELECT count(*) AS n FROM consumers").await == 1).then_some(())
    })
    .await;
    consumers_are("none").await;
    let telling = shop.work_on(&[WorkQueue::VendorSync]);
    consumers_are("ok").await;
    shop.run_here("UPDATE consumers SET seen_at = seen_at + interval '1 minute', stalled_since = now() - interval '2 minutes' WHERE queue = 'vendor_sync'")
        .await;
    consumers_are("stalled").await;
    consumers_are("ok").await;
    deciding.stop().await;
    consumers_are("none").await;
    telling.stop().await;
    assert_eq!(shop.count("SELECT count(*) AS n FROM consumers").await, 0);
}
