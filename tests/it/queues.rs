//! Messages: what is no message, what comes twice, what fails, what is lost.

use std::collections::BTreeMap;
use std::time::Duration;

use amiquip::AmqpProperties;
use chrono::Utc;
use diesel_async::SimpleAsyncConnection;
use serde_json::{Value, json};
use stockctl::app::relay::{self, Relay};
use stockctl::commands::work::WorkQueue;
use stockctl::domain::ids::{OrderId, ProductId};
use stockctl::domain::messages;
use stockctl::domain::order::{Line, Lines, NewOrder};
use stockctl::metrics::MESSAGES;
use stockctl::mq::{Consumer, Queue};
use stockctl::{config, db};
use uuid::Uuid;

use crate::support::messages::{
    drain, hold, message, producer, publish, publish_raw, ready, until_ready,
};
use crate::support::{Process, Running, Shop, ShopOptions, eventually};

/// What the vendors of [`Shop::new`] have to sell.
const INITIAL: [(&str, &str, i64); 4] = [
    ("vendorA", "p1", 10),
    ("vendorA", "p2", 15),
    ("vendorB", "p2", 5),
    ("vendorB", "p3", 20),
];

fn named(id: &str) -> AmqpProperties {
    AmqpProperties::default().with_message_id(id.to_owned())
}

/// Waits until there are so many orders with a status.
async fn orders_with_status(shop: &Shop, status: &str, count: i64) {
    eventually(&format!("{count} orders are {status}"), || async {
        let is = shop
            .count(&format!(
                "SELECT count(*) AS n FROM orders WHERE status = '{status}'"
            ))
            .await;
        (is == count).then_some(())
    })
    .await;
}

/// A dead letter without what is never the same, which is checked to be there.
fn without_time(mut letter: Value) -> Value {
    let at = letter["deadLetteredAt"].take();
    let at = at.as_str().expect("a time");
    assert!(chrono::DateTime::parse_from_rfc3339(at).is_ok(), "{at}");
    letter
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_order_is_dead_lettered_and_its_neighbours_are_processed() {
    let shop = Shop::new().await;
    let broker = shop.broker();
    drop(producer(&broker).await);
    let order = br#"{"productId":"p1","quantity":1}"#;
    publish_raw(&broker, Queue::Orders, named("good 1"), order).await;
    publish_raw(&broker, Queue::Orders, named("bad 1"), b"{no json").await;
    publish_raw(&broker, Queue::Orders, named("good 2"), order).await;
    publish_raw(&broker, Queue::Orders, named("bad 2"), &[0xff, 0]).await;
    publish_raw(
        &broker,
        Queue::Orders,
        named("bad 3"),
        br#"{"productId":"p\u00001","quantity":1}"#,
    )
    .await;
    publish_raw(&broker, Queue::Orders, AmqpProperties::default(), order).await;
    publish_raw(&broker, Queue::Orders, named("good 3"), order).await;
    let _parts = shop.open().await;
    orders_with_status(&shop, "confirmed", 3).await;
    let letters = shop.dead_letters("orders_dlq", 4).await;
    let letters: Vec<Value> = letters.into_iter().map(without_time).collect();
    insta::assert_json_snapshot!(letters, @r#"
    [
      {
        "attempts": 1,
        "body": "{no json",
        "deadLetteredAt": null,
        "error": "the body is not a message of this queue: key must be a string at line 1 column 2",
        "messageId": "bad 1",
        "reason": "invalid_message"
      },
      {
        "attempts": 1,
        "body": "�\u0000",
        "deadLetteredAt": null,
        "error": "the body is not a message of this queue: expected value at line 1 column 1",
        "messageId": "bad 2",
        "reason": "invalid_message"
      },
      {
        "attempts": 1,
        "body": {
          "productId": "p\u00001",
          "quantity": 1
        },
        "deadLetteredAt": null,
        "error": "the body is not a message of this queue: must not contain control characters at line 1 column 23",
        "messageId": "bad 3",
        "reason": "invalid_message"
      },
      {
        "attempts": 1,
        "body": {
          "productId": "p1",
          "quantity": 1
        },
        "deadLetteredAt": null,
        "error": "an order without an \"id\" needs the AMQP property message-id, so that it is not ordered twice",
        "messageId": "",
        "reason": "invalid_message"
      }
    ]
    "#);
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 3);
    assert_eq!(shop.available("p1").await, 7);
    assert_eq!(ready(&broker, Queue::Orders).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_update_is_dead_lettered_and_its_neighbours_are_processed() {
    let shop = Shop::new().await;
    let broker = shop.broker();
    drop(producer(&broker).await);
    publish_raw(&broker, Queue::VendorSync, named("bad 1"), b"no json").await;
    publish_raw(
        &broker,
        Queue::VendorSync,
        named("bad 2"),
        br#"{"vendorId":"nobody","updates":[{"id":"00000000-0000-0000-0000-000000000001","productId":"p1","delta":-1}]}"#,
    )
    .await;
    // Well formed, but nothing of ours: whoever may write to the queue must not change a vendor's stock past the orders.
    publish_raw(
        &broker,
        Queue::VendorSync,
        named("bad 3"),
        br#"{"vendorId":"vendorA","updates":[{"id":"00000000-0000-0000-0000-000000000001","productId":"p1","delta":-1}]}"#,
    )
    .await;
    let _parts = shop.open().await;
    let id = shop.order(&[("p1", 1)]).await;
    shop.order_told(&id).await;
    let letters = shop.dead_letters("vendor_sync_dlq", 3).await;
    let mut letters: Vec<Value> = letters
        .into_iter()
        .map(without_time)
        .map(|letter| {
            json!([
                letter["messageId"],
                letter["reason"],
                letter["error"],
                letter["attempts"]
            ])
        })
        .collect();
    // Two of them waited in the vendor's lane or for the route: either may be written first.
    letters.sort_by_key(ToString::to_string);
    insta::assert_json_snapshot!(letters, @r#"
    [
      [
        "bad 1",
        "invalid_message",
        "the body is not a message of this queue: expected ident at line 1 column 2",
        1
      ],
      [
        "bad 2",
        "invalid_message",
        "no vendor nobody is configured",
        1
      ],
      [
        "bad 3",
        "invalid_message",
        "update 00000000-0000-0000-0000-000000000001 is not in our database",
        1
      ]
    ]
    "#);
    shop.in_step(&INITIAL).await;
    assert_eq!(shop.stock_at("vendorA", "p1").await, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_producers_message_is_one_order_however_often_it_is_published() {
    let shop = Shop::new().await;
    let broker = shop.broker();
    let _parts = shop.open().await;
    drop(producer(&broker).await);
    let order = br#"{"productId":"p3","quantity":2}"#;
    for id in ["m1", "m2", "m1", "m1"] {
        publish_raw(&broker, Queue::Orders, named(id), order).await;
    }
    // The same name for another content is not the same order, and its producer was promised nothing for it.
    publish_raw(
        &broker,
        Queue::Orders,
        named("m1"),
        br#"{"productId":"p3","quantity":5}"#,
    )
    .await;
    orders_with_status(&shop, "confirmed", 2).await;
    orders_with_status(&shop, "rejected", 1).await;
    shop.settled().await;
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 3);
    let (_, rejected) = shop.get("/orders?status=rejected").await;
    assert_eq!(
        rejected["orders"][0]["reason"]["code"],
        "idempotency_conflict"
    );
    shop.in_step(&INITIAL).await;
    assert_eq!(shop.stock_at("vendorB", "p3").await, 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_sold_while_a_vendor_is_down_stays_sold_and_is_told_once_by_a_replay() {
    let shop = Shop::with(ShopOptions {
        // A vendor that nobody serves lets its callers wait.
        config: "[vendor_sync]\nretry_delay_ms = 200\ntimeout_ms = 1500\n".into(),
        ..ShopOptions::default()
    })
    .await;
    shop.sync().await;
    let (_api, _work) = (shop.serve().await, shop.work());
    let id = shop.order(&[("p2", 18)]).await;
    let order = shop.order_with_status(&id, "confirmed").await;
    assert_eq!(order["vendorSync"], "pending");
    for _ in 0..3 {
        shop.sync().await;
        assert_eq!(shop.available("p2").await, 2, "what is sold stays sold");
    }
    let letters = shop.dead_letters("vendor_sync_dlq", 2).await;
    for letter in letters {
        assert_eq!(letter["reason"], "retries_exhausted");
        assert_eq!(letter["attempts"], 4, "the first and three retries");
        let error = letter["error"].as_str().expect("text");
        assert!(error.contains("cannot be reached"), "{error}");
        without_time(letter);
    }
    let told = |order: &Value| order["vendorSync"] == "failed";
    shop.order_where(&id, "the order says that the vendors were not told", told)
        .await;
    shop.sync().await;
    assert_eq!(shop.available("p2").await, 2);

    let _vendors = shop.serve_vendors();
    let (status, answer) = shop
        .post(
            "/admin/dead-letters/vendor_sync_dlq/replay",
            json!({"all": true}),
        )
        .await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["replayed"].as_array().map(Vec::len), Some(2));
    shop.order_told(&id).await;
    assert_eq!(shop.stock_at("vendorA", "p2").await, 0);
    assert_eq!(shop.stock_at("vendorB", "p2").await, 2);
    shop.in_step(&INITIAL).await;
    assert_eq!(shop.available("p2").await, 2);
    assert_eq!(ready(&shop.broker(), Queue::VendorSyncDlq).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_of_any_message_changes_nothing() {
    let shop = Shop::new().await;
    let broker = shop.broker();
    shop.sync().await;
    let (_vendors, _api) = (shop.serve_vendors(), shop.serve().await);
    let publisher = producer(&broker).await;
    for lines in [
        vec![("p2", 18)],
        vec![("p1", 3), ("p3", 4)],
        vec![("p1", 99)],
    ] {
        shop.order(&lines).await;
    }

    // Each message twice beside its copy, and once as one that a consumer died with.
    let double = async |queue: Queue, count: usize| {
        let mut taker = Consumer::start(broker.clone(), queue, 10);
        let taken = hold(&mut taker, count).await;
        let copies: Vec<_> = taken
            .iter()
            .chain(&taken)
            .map(|delivery| {
                let id = delivery.message_id.clone().unwrap_or_default();
                message(queue, id, delivery.body.clone())
            })
            .collect();
        publish(&publisher, copies.clone()).await;
        drop(taker);
        until_ready(&broker, queue, u32::try_from(3 * count).expect("few")).await;
        copies
    };
    let orders = double(Queue::Orders, 3).await;
    let deciding = shop.work_on(&[WorkQueue::Orders]);
    orders_with_status(&shop, "confirmed", 2).await;
    until_ready(&broker, Queue::Orders, 0).await;
    deciding.stop().await;
    let waiting = ready(&broker, Queue::VendorSync).await;
    let updates = double(Queue::VendorSync, usize::try_from(waiting).expect("few")).await;
    let _work = shop.work();
    shop.settled().await;
    let decided = "SELECT sum(hashtext(concat(id, status, decided_at, reason))::bigint)::bigint AS n FROM orders";
    let before = shop.count(decided).await;
    publish(&publisher, orders).await;
    publish(&publisher, updates).await;
    let id = shop.order(&[("p3", 1)]).await;
    shop.order_told(&id).await;
    until_ready(&broker, Queue::Orders, 0).await;
    until_ready(&broker, Queue::VendorSync, 0).await;
    let after = shop.count(&format!("{decided} WHERE id <> '{id}'")).await;
    assert_eq!(after, before, "what was decided stays as it was");
    shop.in_step(&INITIAL).await;
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 4);
    for queue in [Queue::OrdersDlq, Queue::VendorSyncDlq] {
        assert_eq!(ready(&broker, queue).await, 0);
    }
}

/// A worker that decides orders waits for a lock that the test holds, and is killed over it.
async fn die_over_the_lock(shop: &Shop) {
    let mut worker = Process::configured(&shop.config_file, &["work", "--queue", "orders"]);
    let waiting = "SELECT count(*) AS n FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("the worker has it in hand", || async {
        (shop.count(waiting).await == 1).then_some(())
    })
    .await;
    worker.kill().await;
    // The server would notice the death only once the lock is given up.
    shop.run_here(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
         WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_kills_its_consumer_is_set_aside_and_its_neighbours_survive() {
    let shop = Shop::new().await;
    let broker = shop.broker();
    shop.sync().await;
    let _api = shop.serve().await;
    drop(producer(&broker).await);
    let deadly = shop.order(&[("p1", 1)]).await;
    // Published in this order: the deadly one stands in front.
    until_ready(&broker, Queue::Orders, 1).await;
    for _ in 0..3 {
        shop.order(&[("p3", 1)]).await;
    }
    until_ready(&broker, Queue::Orders, 4).await;

    // Whoever decides the deadly order waits for this lock, and is killed over it.
    let mut lock = shop.connection_here().await;
    lock.batch_execute("BEGIN; SELECT FROM stock WHERE product_id = 'p1' FOR UPDATE")
        .await
        .expect("locked");
    for death in 0..3 {
        die_over_the_lock(&shop).await;
        // A neighbour may have been decided before the deadly one came; nothing else is missing.
        eventually("what the dead worker held is back", || async {
            let pending = shop
                .count("SELECT count(*) AS n FROM orders WHERE status = 'pending'")
                .await;
            (i64::from(ready(&broker, Queue::Orders).await) == pending).then_some(())
        })
        .await;
        let begun = shop
            .count("SELECT coalesce(max(begun), 0)::bigint AS n FROM suspects")
            .await;
        assert_eq!(begun, death, "the first death was in company");
    }
    let set_aside = || MESSAGES.dead_lettered("orders_queue", "crash_loop").get();
    let before = set_aside();
    let work = shop.work_on(&[WorkQueue::Orders]);
    let letters = shop.dead_letters("orders_dlq", 1).await;
    assert_eq!(letters[0]["reason"], "crash_loop");
    assert_eq!(letters[0]["messageId"], deadly.as_str());
    assert!(set_aside() > before, "it is counted");
    orders_with_status(&shop, "confirmed", 3).await;
    let order = shop.order_with_status(&deadly, "failed").await;
    assert_eq!(order["reason"]["code"], "processing_failed");
    until_ready(&broker, Queue::Orders, 0).await;

    // It was the circumstances, and a replay under better ones succeeds.
    lock.batch_execute("ROLLBACK").await.expect("unlocked");
    let (status, answer) = shop
        .post(
            "/admin/dead-letters/orders_dlq/replay",
            json!({"all": true}),
        )
        .await;
    assert_eq!(
        (status, answer["replayed"][0].as_str()),
        (200, Some(deadly.as_str()))
    );
    shop.order_with_status(&deadly, "confirmed").await;
    work.stop().await;
    assert_eq!(shop.count("SELECT count(*) AS n FROM suspects").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_came_in_one_message_are_taken_apart_when_it_kills_its_consumer() {
    let shop = Shop::new().await;
    let broker = shop.broker();
    shop.sync().await;
    let _api = shop.serve().await;
    let producer = producer(&broker).await;
    let ids: Vec<String> = (0..4).map(|_| Uuid::now_v7().to_string()).collect();
    let orders: Vec<_> = ids
        .iter()
        .zip(["p3", "p1", "p3", "p3"])
        .map(|(id, product)| {
            json!({
                "id": id, "caller": "local", "acceptedAt": "2026-11-26T00:00:00Z",
                "lines": [{"productId": product, "quantity": 1}],
            })
        })
        .collect();
    let deadly = &ids[1];
    let body = json!({ "orders": orders }).to_string();
    publish(&producer, vec![message(Queue::Orders, "together", body)]).await;

    let mut lock = shop.connection_here().await;
    lock.batch_execute("BEGIN; SELECT FROM stock WHERE product_id = 'p1' FOR UPDATE")
        .await
        .expect("locked");
    // Together, then each in a message of its own, then alone.
    for (death, begun_alone) in [0, 0, 1, 2].into_iter().enumerate() {
        die_over_the_lock(&shop).await;
        eventually("what the dead worker held is back", || async {
            let confirmed = shop
                .count("SELECT count(*) AS n FROM orders WHERE status = 'confirmed'")
                .await;
            let held = if death == 0 { 1 } else { 4 - confirmed };
            (i64::from(ready(&broker, Queue::Orders).await) == held).then_some(())
        })
        .await;
        let begun = shop
            .count("SELECT coalesce(max(begun), 0)::bigint AS n FROM suspects")
            .await;
        assert_eq!(begun, begun_alone, "after death {death}");
    }
    let work = shop.work_on(&[WorkQueue::Orders]);
    let letters = shop.dead_letters("orders_dlq", 1).await;
    assert_eq!(letters[0]["reason"], "crash_loop");
    assert_eq!(letters[0]["messageId"], deadly.as_str());
    assert_eq!(letters[0]["body"]["id"], deadly.as_str());
    for id in ids.iter().filter(|id| *id != deadly) {
        shop.order_with_status(id, "confirmed").await;
    }
    shop.order_with_status(deadly, "failed").await;
    until_ready(&broker, Queue::Orders, 0).await;

    lock.batch_execute("ROLLBACK").await.expect("unlocked");
    shop.post(
        "/admin/dead-letters/orders_dlq/replay",
        json!({"all": true}),
    )
    .await;
    shop.order_with_status(deadly, "confirmed").await;
    work.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_that_came_in_one_message_are_taken_apart_when_it_comes_again() {
    let shop = Shop::with(ShopOptions {
        // A vendor that nobody serves lets its callers wait.
        config: "[vendor_sync]\nretries_max = 0\nretry_delay_ms = 200\ntimeout_ms = 1500\n".into(),
        ..ShopOptions::default()
    })
    .await;
    let broker = shop.broker();
    shop.sync().await;
    let _api = shop.serve().await;
    let deciding = shop.work_on(&[WorkQueue::Orders]);
    let id = shop.order(&[("p1", 1), ("p2", 1)]).await;
    shop.order_with_status(&id, "confirmed").await;
    until_ready(&broker, Queue::VendorSync, 1).await;
    deciding.stop().await;
    let mut dying = Consumer::start(broker.clone(), Queue::VendorSync, 10);
    let held = hold(&mut dying, 1).await;
    let together = messages::decode_updates(&held[0].body).expect("updates");
    assert_eq!(together.updates.len(), 2);
    dying.close(Duration::from_secs(5)).await;
    until_ready(&broker, Queue::VendorSync, 1).await;

    // The vendor cannot be reached, so each message ends as a letter.
    let telling = shop.work_on(&[WorkQueue::VendorSync]);
    let letters = shop.dead_letters("vendor_sync_dlq", 2).await;
    let mut alone: Vec<Value> = letters
        .iter()
        .flat_map(|letter| {
            let updates = letter["body"]["updates"]
                .as_array()
                .expect("updates")
                .clone();
            assert_eq!(updates.len(), 1, "{letter}");
            assert_eq!(letter["messageId"], updates[0]["id"]);
            updates
        })
        .collect();
    alone.sort_by_key(|update| update["id"].to_string());
    let mut updates: Vec<Value> = together
        .updates
        .iter()
        .map(|update| serde_json::to_value(update).expect("JSON"))
        .collect();
    updates.sort_by_key(|update| update["id"].to_string());
    assert_eq!(alone, updates);
    let _vendors = shop.serve_vendors();
    shop.post(
        "/admin/dead-letters/vendor_sync_dlq/replay",
        json!({"all": true}),
    )
    .await;
    shop.order_told(&id).await;
    telling.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_come_together_leave_in_one_message() {
    let shop = Shop::new().await;
    let broker = shop.broker();
    shop.sync().await;
    drop(producer(&broker).await);
    let orders: Vec<NewOrder> = (0..150)
        .map(|_| NewOrder {
            id: OrderId(Uuid::now_v7()),
            caller: "local".into(),
            idempotency_key: None,
            lines: Lines::parse(vec![Line {
                product_id: ProductId::parse("p3").expect("valid"),
                quantity: 1,
            }])
            .expect("valid"),
            reference: None,
            accepted_at: Utc::now(),
        })
        .collect();
    let mut connection = shop.connection_here().await;
    let waiting = db::orders::insert_new(&mut connection, &orders[..120])
        .await
        .expect("inserted");
    assert_eq!(waiting.len(), 2, "a hundred go into one message");
    let error = db::orders::insert_new(&mut connection, &orders[119..])
        .await
        .expect_err("one exists");
    assert!(error.is_unique_violation(), "{error}");
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 120);
    let (inserted, rest) = db::orders::insert_accepted(&mut connection, &orders)
        .await
        .expect("inserted");
    assert_eq!(
        inserted,
        orders[120..]
            .iter()
            .map(|order| order.id)
            .collect::<Vec<_>>()
    );
    let in_messages: usize = waiting
        .iter()
        .chain(&rest)
        .map(|row| {
            messages::decode_orders(row.body.as_bytes(), None, Utc::now())
                .expect("orders")
                .len()
        })
        .sum();
    assert_eq!((rest.len(), in_messages), (1, 150));
    let (again, nothing) = db::orders::insert_accepted(&mut connection, &orders)
        .await
        .expect("inserted before");
    assert_eq!((again.len(), nothing.len()), (0, 0));

    // Whoever committed them is gone: the sweeper makes the messages anew, of what is pending.
    shop.run_here(&format!(
        "UPDATE outbox SET created_at = now() - interval '1 minute';
         UPDATE orders SET status = 'cancelled', cancelled_at = now() WHERE id = '{}'",
        orders[0].id
    ))
    .await;
    let _api = shop.serve().await;
    until_ready(&broker, Queue::Orders, 3).await;
    let mut consumer = Consumer::start(broker.clone(), Queue::Orders, 10);
    let deliveries = hold(&mut consumer, 3).await;
    let mut sent: Vec<OrderId> = deliveries
        .iter()
        .flat_map(|delivery| {
            messages::decode_orders(&delivery.body, None, Utc::now()).expect("orders")
        })
        .map(|order| order.id)
        .collect();
    sent.sort();
    let mut pending: Vec<OrderId> = orders[1..].iter().map(|order| order.id).collect();
    pending.sort();
    assert_eq!(sent, pending);
    consumer.hand_back().await;
    let work = shop.work_on(&[WorkQueue::Orders]);
    orders_with_status(&shop, "confirmed", 20).await;
    orders_with_status(&shop, "rejected", 129).await;
    work.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_in_the_middle_of_a_decision_is_nobodys_attempt() {
    let shop = Shop::with(ShopOptions {
        config: "[orders]\nretries_max = 0\n[vendor_sync]\nretries_max = 0\n".into(),
        ..ShopOptions::default()
    })
    .await;
    let broker = shop.broker();
    shop.sync().await;
    let _api = shop.serve().await;
    drop(producer(&broker).await);
    let redelivered = shop.order(&[("p1", 1)]).await;
    let mut taker = Consumer::start(broker.clone(), Queue::Orders, 1);
    hold(&mut taker, 1).await;
    drop(taker);
    until_ready(&broker, Queue::Orders, 1).await;
    let fresh = shop.order(&[("p3", 1)]).await;
    until_ready(&broker, Queue::Orders, 2).await;
    // The server goes away under each of the first decisions, as far as its client can tell.
    shop.run_here(
        "CREATE SEQUENCE decisions;
         CREATE FUNCTION go_away() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF nextval('decisions') % 6 <> 0 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
             RETURN NULL;
         END $$;
         CREATE TRIGGER go_away BEFORE INSERT ON stock_updates EXECUTE FUNCTION go_away()",
    )
    .await;
    let (_work, _vendors) = (shop.work(), shop.serve_vendors());
    for id in [redelivered, fresh] {
        let order = shop
            .order_where(&id, "it is decided", |order| order["status"] != "pending")
            .await;
        assert_eq!(order["status"], "confirmed", "{order}");
        shop.order_told(&id).await;
    }
    assert_eq!(
        shop.count("SELECT last_value AS n FROM decisions").await,
        12
    );
    shop.in_step(&INITIAL).await;
    assert_eq!(ready(&broker, Queue::OrdersDlq).await, 0);
    assert_eq!(shop.count("SELECT count(*) AS n FROM suspects").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_has_lost_is_sent_again() {
    let shop = Shop::new().await;
    let broker = shop.broker();
    shop.sync().await;
    let (_vendors, api) = (shop.serve_vendors(), shop.serve().await);
    let publisher = producer(&broker).await;
    let (relay, publishing) = Relay::new(shop.context_here(), publisher);
    let publishing = tokio::spawn(publishing.run());
    let sweep_after = async |wait| {
        relay::sweep_forgotten(&shop.context_here(), &relay, wait)
            .await
            .expect("swept")
    };
    let sweep = async || sweep_after(Duration::ZERO).await;
    let lose = async |queue: Queue, count: usize| {
        let mut loser = Consumer::start(broker.clone(), queue, 10);
        drain(&mut loser, count).await;
        loser.close(Duration::from_secs(5)).await;
        until_ready(&broker, queue, 0).await;
    };
    let id = shop.order(&[("p2", 18)]).await;
    lose(Queue::Orders, 1).await;
    // Its row goes right after the confirm; until then the sweeper has it.
    eventually("the outbox is empty", || async {
        (shop.count("SELECT count(*) AS n FROM outbox").await == 0).then_some(())
    })
    .await;
    assert_eq!(sweep().await, 1);
    let deciding = shop.work_on(&[WorkQueue::Orders]);
    shop.order_with_status(&id, "confirmed").await;
    until_ready(&broker, Queue::VendorSync, 2).await;
    deciding.stop().await;
    lose(Queue::VendorSync, 2).await;
    shop.run_here("DELETE FROM outbox").await;
    let five_minutes = Duration::from_secs(300);
    assert_eq!(
        sweep_after(five_minutes).await,
        0,
        "they may be on their way"
    );
    shop.run_here(
        "UPDATE stock_updates SET created_at = now() - interval '6 minutes';
         UPDATE listed_updates SET listed_at = now() - interval '6 minutes'",
    )
    .await;
    assert_eq!(
        sweep_after(five_minutes).await,
        2,
        "a message for each vendor"
    );
    assert_eq!(
        sweep_after(five_minutes).await,
        0,
        "the next time it waits twice as long"
    );
    let _work = shop.work();
    shop.order_told(&id).await;
    shop.settled().await;
    shop.in_step(&INITIAL).await;
    assert_eq!(sweep().await, 0, "what has had its effect is left alone");
    api.stop().await;
    drop(relay);
    publishing.await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_accepted_while_the_broker_is_away_leaves_through_the_outbox() {
    let mut shop = Shop::new().await;
    shop.sync().await;
    let reachable = shop.config.clone();
    let amqp_url = reachable.rabbitmq.urls[0].expose().to_owned();
    let file = shop.config_file_with("broker-away.toml", &amqp_url, "amqp://127.0.0.1:1");
    shop.config = config::load(Some(&file)).expect("valid");
    let api = shop.serve().await;
    let id = shop.order(&[("p1", 2)]).await;
    let (status, order) = shop.get(&format!("/orders/{id}")).await;
    assert_eq!((status, order["status"].as_str()), (200, Some("pending")));
    assert_eq!(shop.count("SELECT count(*) AS n FROM outbox").await, 1);
    api.stop().await;

    // Whichever process sweeps first finds it.
    shop.config = reachable;
    let _parts = (shop.serve_vendors(), shop.work(), shop.serve().await);
    shop.order_told(&id).await;
    shop.settled().await;
    shop.in_step(&INITIAL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_that_exist_otherwise_end_work_and_serve_with_the_way_out() {
    let mut shop = Shop::new().await;
    drop(producer(&shop.broker()).await);
    shop.config_file =
        shop.config_file_with("other.toml", "retry_delay_ms = 200", "retry_delay_ms = 300");
    // The address in the file is this test's own.
    let listen = format!("listen = \"{}\"", shop.config.http.listen);
    shop.config_file = shop.config_file_with("free.toml", &listen, "listen = \"127.0.0.1:0\"");
    shop.config = config::load(Some(&shop.config_file)).expect("valid");
    let work: Running = shop.work();
    let failure = work.ended().await.expect_err("nothing to wait for");
    let mut last_words = vec![format!("error: {failure}")];
    for command in ["work", "serve"] {
        let ended = shop.run(&[command]).await;
        assert_eq!(ended.code, Some(3), "{}", ended.stderr);
        let last = ended.stderr.lines().last().expect("a message");
        last_words.push(last.to_owned());
    }
    last_words.dedup();
    let last_words = last_words
        .join("\n")
        .replace(&shop.config.rabbitmq.queue_prefix, "PREFIX.");
    insta::assert_snapshot!(last_words, @"error: queue PREFIX.orders_retry_queue exists with other properties than configured: PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'PREFIX.orders_retry_queue' in vhost '/': received '300' but current is '200'; give back the old setting, or drain and delete that queue, or choose another rabbitmq.queue_prefix");
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_write_of_an_order_is_refused_its_letter_has_the_reason_of_that_one() {
    let shop = Shop::with(ShopOptions {
        config: "[orders]\nretries_max = 0\n".into(),
        ..ShopOptions::default()
    })
    .await;
    // They are sent together, and the server refuses all behind the first that it refuses, with a reason of its own.
    shop.run_here(
        r#"ALTER TABLE stock_updates ADD CONSTRAINT no_1 CHECK (delta <> -1);
           ALTER TABLE orders ADD CONSTRAINT no_2 CHECK (status <> 'confirmed' OR lines @> '[{"quantity": 2}]' IS FALSE);
           ALTER TABLE stock ADD CONSTRAINT no_3 CHECK (open_delta <> -3);
           ALTER TABLE outbox ADD CONSTRAINT no_4 CHECK (body NOT LIKE '%"delta":-4}%')"#,
    )
    .await;
    let _parts = shop.open().await;
    let mut refused = BTreeMap::new();
    for quantity in 1..=4 {
        let id = shop.order(&[("p3", quantity)]).await;
        shop.order_with_status(&id, "failed").await;
        refused.insert(id, quantity);
    }
    for letter in shop.dead_letters("orders_dlq", refused.len()).await {
        let quantity = refused[letter["messageId"].as_str().expect("an id")];
        let error = letter["error"].as_str().expect("a text");
        let constraint = format!("constraint \"no_{quantity}\"");
        assert!(error.contains(&constraint), "{quantity}: {error}");
    }
    let told = shop.order(&[("p3", 5)]).await;
    shop.order_told(&told).await;
    assert_eq!(shop.available("p3").await, 15, "the others took nothing");
}
