//! What happened to an order, and every movement of a product's stock.

use reqwest::Method;
use serde_json::{Value, json};
use stockctl::commands::work::WorkQueue;
use stockctl::mq::{Consumer, Queue};

use super::{JSON, ask, text};
use crate::support::messages::drain;
use crate::support::{DEADLINE, Shop, ShopOptions, eventually};

/// The history of an order, an event a line, without times and ids.
fn told(order: &Value) -> String {
    let mut last = String::new();
    let events: Vec<String> = order["history"]
        .as_array()
        .expect("a history")
        .iter()
        .map(|entry| {
            let at = entry["at"].as_str().expect("a time").to_owned();
            assert!(at >= last, "in the order of time: {order}");
            last = at;
            let text = |key: &str| entry[key].as_str().map(|text| format!(" {text}"));
            format!(
                "{}{}{}",
                entry["event"].as_str().expect("a name"),
                text("vendorId").unwrap_or_default(),
                text("outcome").unwrap_or_default(),
            )
        })
        .collect();
    events.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_tells_what_happened_to_it() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    let split = shop.order(&[("p2", 18)]).await;
    let order = shop.order_told(&split).await;
    // The vendors are told side by side.
    let mut events: Vec<_> = told(&order).lines().map(str::to_owned).collect();
    events[2..].sort_unstable();
    assert_eq!(
        events,
        [
            "accepted",
            "confirmed",
            "pushed vendorA applied",
            "pushed vendorB applied"
        ]
    );
    let take = &order["history"][1]["updates"];
    assert_eq!(take[0], order["updates"][0]["id"]);
    let (status, cancelled) = shop
        .post(&format!("/orders/{split}/cancel"), json!({}))
        .await;
    assert_eq!(status, 200, "{cancelled}");
    // What comes after it is the vendors' answers: on a busy machine they have heard of it already.
    assert_eq!(
        told(&cancelled).lines().nth(4),
        Some("cancelled"),
        "{cancelled}"
    );
    let order = shop.order_told(&split).await;
    assert_eq!(told(&order).lines().count(), 7, "{order}");

    let rejected = shop.order(&[("p1", 11)]).await;
    let order = shop.order_with_status(&rejected, "rejected").await;
    assert_eq!(told(&order), "accepted\nrejected");
    let (_, listed) = shop.get("/orders").await;
    assert!(
        listed["orders"][0]["history"].is_null(),
        "only of one order"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_vendor_rejects_shows_with_where_it_was_taken_instead() {
    let shop = Shop::new().await;
    let (_vendors, _api) = (shop.serve_vendors(), shop.serve().await);
    shop.sync().await;
    // vendorA has sold all of it elsewhere, and nobody here knows.
    shop.run_at("vendorA", "UPDATE products SET stock = 0")
        .await;
    let id = shop.order(&[("p2", 4)]).await;
    let _work = shop.work();
    let order = shop
        .order_where(&id, "it is served elsewhere", |order| {
            order["vendorSync"] == "done"
        })
        .await;
    assert_eq!(
        told(&order),
        "accepted\nconfirmed\npushed vendorA rejected\nreallocated\npushed vendorB applied"
    );
    let id = shop.order(&[("p1", 1)]).await;
    let order = shop.order_with_status(&id, "cancelled").await;
    assert_eq!(
        told(&order),
        "accepted\nconfirmed\npushed vendorA rejected\ncancelled"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_and_replays_stay_in_the_history() {
    let shop = Shop::with(ShopOptions {
        config: "[orders]\nretries_max = 0\n[vendor_sync]\nretries_max = 0\ntimeout_ms = 300\n"
            .into(),
        ..ShopOptions::default()
    })
    .await;
    let _api = shop.serve().await;
    // Nothing was ever synced, so the order can be decided neither way.
    let _work = shop.work();
    let id = shop.order(&[("p1", 1)]).await;
    shop.order_with_status(&id, "failed").await;
    shop.sync().await;
    let replay = async |queue: &str| {
        shop.dead_letters(queue, 1).await;
        let path = format!("/admin/dead-letters/{queue}/replay");
        let (status, answer) = shop.post(&path, json!({"limit": 10})).await;
        assert_eq!(status, 200, "{answer}");
    };
    replay("orders_dlq").await;
    let is_failed = |order: &Value| order["vendorSync"] == "failed";
    shop.order_where(&id, "its push fails", is_failed).await;
    let _vendors = shop.serve_vendors();
    replay("vendor_sync_dlq").await;
    let order = shop.order_told(&id).await;
    assert_eq!(
        told(&order),
        "accepted\nfailed\nreplayed\nconfirmed\npush_failed vendorA\npush_replayed vendorA\npushed vendorA applied"
    );
}

/// All movements of a product, newest first, a page at a time.
async fn movements(shop: &Shop, product: &str, limit: usize) -> Vec<Value> {
    let mut all = Vec::new();
    let mut query = format!("limit={limit}");
    loop {
        let (status, page) = shop
            .get(&format!("/products/{product}/movements?{query}"))
            .await;
        assert_eq!(status, 200, "{page}");
        let of_page = page["movements"].as_array().expect("a list").clone();
        assert!(of_page.len() <= limit);
        all.extend(of_page);
        match page["nextCursor"].as_str() {
            Some(cursor) => query = format!("limit={limit}&cursor={cursor}"),
            None => return all,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_movement_of_a_product_is_told_with_its_cause_and_adds_up() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    // An order, its return, a rejection with its reallocation, the vendor's own sales and restocks.
    let taken = shop.order(&[("p2", 18)]).await;
    shop.order_told(&taken).await;
    shop.sync().await;
    let (status, _) = shop
        .post(&format!("/orders/{taken}/cancel"), json!({}))
        .await;
    assert_eq!(status, 200);
    shop.order_told(&taken).await;
    shop.sync().await;
    shop.run_at("vendorA", "UPDATE products SET stock = 2 WHERE id = 'p2'")
        .await;
    let refused = shop.order(&[("p2", 4)]).await;
    shop.order_told(&refused).await;
    shop.sync().await;
    shop.run_at(
        "vendorA",
        "UPDATE products SET stock = stock + 7 WHERE id = 'p2'",
    )
    .await;
    shop.sync().await;

    let all = movements(&shop, "p2", 100).await;
    let told: Vec<String> = all
        .iter()
        .map(|m| {
            format!(
                "{} {} {}",
                m["cause"].as_str().expect("a cause"),
                m["vendorId"].as_str().expect("one"),
                m["delta"]
            )
        })
        .collect();
    // What happened at one time has no order of its own.
    let mut expected = vec![
        "sync vendorA 15",
        "sync vendorB 5",
        "order vendorA -15",
        "order vendorB -3",
        "return vendorA 15",
        "return vendorB 3",
        "order vendorA -4",
        "rejection vendorA 4",
        "order vendorB -4",
        "sync vendorA -13",
        "sync vendorA 7",
    ];
    let mut sorted = told.clone();
    sorted.sort_unstable();
    expected.sort_unstable();
    assert_eq!(sorted, expected, "{told:?}");
    assert_eq!(told[0], "sync vendorA 7", "the newest first");
    let sum: i64 = all
        .iter()
        .map(|m| m["delta"].as_i64().expect("a number"))
        .sum();
    assert_eq!(sum, shop.available("p2").await);
    let returned = all.iter().find(|m| m["cause"] == "return").expect("one");
    assert_eq!(returned["orderId"], taken.as_str());
    for limit in [1, 2, 3] {
        assert_eq!(
            movements(&shop, "p2", limit).await,
            all,
            "in pages of {limit}"
        );
    }

    for (path, problem) in [
        ("/products/p9/movements", "404 not_found"),
        ("/products/p2/movements?limit=0", "400 invalid_parameter"),
        ("/products/p2/movements?cursor=x", "400 invalid_parameter"),
        ("/products/p2/movements?cursor=1.", "400 invalid_parameter"),
        ("/products/p2/movements?colour=red", "400 invalid_parameter"),
    ] {
        let answer = ask(&shop, Method::GET, path, &[], "").await;
        assert!(
            answer.problem().starts_with(problem),
            "{path}: {}",
            answer.problem()
        );
    }
}

/// The movements are told also of what has come to nothing before it reached its vendor.
#[tokio::test(flavor = "multi_thread")]
async fn a_take_that_was_returned_before_it_arrived_moves_there_and_back() {
    let shop = Shop::new().await;
    shop.sync().await;
    let (_vendors, _api) = (shop.serve_vendors(), shop.serve().await);
    let decides = shop.work_on(&[WorkQueue::Orders]);
    let id = shop.order(&[("p1", 3)]).await;
    shop.order_with_status(&id, "confirmed").await;
    // The take's message is lost, so the return arrives alone.
    decides.stop().await;
    shop.run_here("UPDATE stock_updates SET dead_lettered_at = now()")
        .await;
    lose_the_message(&shop).await;
    let (status, _) = shop.post(&format!("/orders/{id}/cancel"), json!({})).await;
    assert_eq!(status, 200);
    let _work = shop.work();
    eventually("both are void", || async {
        let void = shop
            .count("SELECT count(*) AS n FROM stock_updates WHERE state = 'void'")
            .await;
        (void == 2).then_some(())
    })
    .await;
    let told: Vec<Value> = movements(&shop, "p1", 100)
        .await
        .iter()
        .map(|m| json!([m["cause"], m["delta"]]))
        .collect();
    assert_eq!(
        told,
        [
            json!(["return", 3]),
            json!(["order", -3]),
            json!(["sync", 10])
        ]
    );
    shop.sync().await;
    assert_eq!(shop.available("p1").await, 10);
}

/// Takes away what waits for the vendors.
async fn lose_the_message(shop: &Shop) {
    let mut taker = Consumer::start(shop.broker(), Queue::VendorSync, 10);
    drain(&mut taker, 1).await;
    taker.close(DEADLINE).await;
}

/// An order is read by several statements: all of them see what was at one moment.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_decided_while_it_is_read_is_shown_as_before_or_as_after() {
    let shop = Shop::new().await;
    shop.sync().await;
    let _api = shop.serve().await;
    let line = json!({"productId": "p1", "quantity": 1});
    let named = json!({"productId": "p1", "quantity": 1, "idempotencyKey": "one"});
    let (alone, among) = (line.to_string(), json!({"orders": [named]}).to_string());
    let key = [JSON, ("idempotency-key", "one")];
    let id = ask(&shop, Method::POST, "/orders", &key, alone.clone()).await;
    let id = id.body["id"].as_str().expect("an id").to_owned();
    let path = format!("/orders/{id}");
    let reads = [
        (Method::GET, path.as_str(), "", ""),
        (Method::GET, "/orders", "", "/orders/0"),
        (Method::POST, "/orders", alone.as_str(), ""),
        (
            Method::POST,
            "/orders/batch",
            among.as_str(),
            "/results/0/order",
        ),
    ];
    for (method, path, body, at) in reads {
        // Who only reads has seen the order pending when it comes to what is locked.
        let held = shop
            .hold_here(&format!(
                "LOCK TABLE stock_updates IN ACCESS EXCLUSIVE MODE;
                 INSERT INTO stock_updates (id, order_id, product_id, vendor_id, delta, created_at)
                 VALUES (gen_random_uuid(), '{id}', 'p1', 'vendorA', -1, now());
                 UPDATE orders SET status = 'confirmed', decided_at = now()"
            ))
            .await;
        // In a batch each order has its own.
        let headers = if path.ends_with("batch") {
            &key[..1]
        } else {
            &key
        };
        let read = ask(&shop, method.clone(), path, headers, body.to_owned());
        let release = async {
            shop.held_up_here().await;
            held.release().await;
        };
        let (read, ()) = tokio::join!(read, release);
        let order = read
            .body
            .pointer(at)
            .unwrap_or_else(|| panic!("{path}: {}", read.body));
        let taken = order["updates"].as_array().map(Vec::len);
        // What writes first waits for who decides, and sees it.
        let seen = match method {
            Method::GET => ("pending", "none", Some(0)),
            _ => ("confirmed", "pending", Some(1)),
        };
        let (status, told) = (text(&order["status"]), text(&order["vendorSync"]));
        assert_eq!((&*status, &*told, taken), seen, "{method} {path}");
        assert!(!order.to_string().contains("reallocated"), "{order}");
        shop.run_here(
            "DELETE FROM stock_updates; UPDATE orders SET status = 'pending', decided_at = NULL",
        )
        .await;
    }
}
