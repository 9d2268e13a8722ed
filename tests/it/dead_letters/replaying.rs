//! Replays are exact, and repeatable whatever they die of.

use diesel_async::SimpleAsyncConnection;
use serde_json::json;
use stockctl::mq::{Consumer, Queue};

use super::{dlq, impatient_shop, letter, listed, mend, report, work_without_vendors};
use crate::support::amqp_proxy::{BASIC_ACK, StoppingProxy};
use crate::support::messages::{drain, ids, producer, publish, ready, until_ready};
use crate::support::{Process, Shop, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_takes_what_was_selected_and_nothing_else() {
    let shop = Shop::new().await;
    let broker = shop.broker();
    let body = |order: u8| {
        format!(
            r#"{{"id":"00000000-0000-0000-0000-00000000000{order}","caller":"local","lines":[{{"productId":"p1","quantity":1}}],"acceptedAt":"2026-11-24T09:00:00Z"}}"#
        )
    };
    let dlq_letter = |id: &str, reason: &str, order| {
        let mut letter = letter(Queue::OrdersDlq, id, reason, &body(order));
        letter
            .headers
            .insert("x-retry-count".into(), stockctl::mq::HeaderValue::Int(3));
        letter
    };
    let letters = vec![
        dlq_letter("a", "crash_loop", 1),
        dlq_letter("b", "retries_exhausted", 2),
        dlq_letter("c", "crash_loop", 3),
        dlq_letter("d", "retries_exhausted", 4),
        dlq_letter("e", "retries_exhausted", 4),
        dlq_letter("f", "retries_exhausted", 6),
        dlq_letter("g", "crash_loop", 7),
    ];
    publish(&producer(&broker).await, letters).await;
    let mut consumer = Consumer::start(broker.clone(), Queue::Orders, 10);
    let order = "00000000-0000-0000-0000-000000000004";
    let mut left = vec!["a", "b", "c", "d", "e", "f", "g"];
    for (arguments, replayed) in [
        (&["--id", "b", "--id", "f"][..], &["b", "f"][..]),
        (&["--reason", "crash_loop", "--limit", "1"], &["a"]),
        (&["--order", order], &["d", "e"]),
        (&["--limit", "1"], &["c"]),
        (&["--all"], &["g"]),
    ] {
        let rehearsed = report(
            &shop,
            &[&["replay", "orders_dlq", "--dry-run"], arguments].concat(),
            0,
        )
        .await;
        assert_eq!(
            (&rehearsed["replayed"], &rehearsed["dryRun"]),
            (&json!(replayed), &json!(true))
        );
        assert_eq!(listed(&shop, &["orders_dlq"]).await, left);
        let done = report(&shop, &[&["replay", "orders_dlq"], arguments].concat(), 0).await;
        assert_eq!(done["replayed"], json!(replayed), "{done}");
        let arrived = drain(&mut consumer, replayed.len()).await;
        assert_eq!(ids(&arrived), replayed);
        for delivery in arrived {
            assert!(delivery.headers.is_empty(), "as if new: {delivery:?}");
        }
        left.retain(|id| !replayed.contains(id));
        assert_eq!(listed(&shop, &["orders_dlq"]).await, left);
    }
    assert_eq!(ready(&broker, Queue::Orders).await, 0);
    let missing = report(&shop, &["replay", "orders_dlq", "--id", "b"], 5).await;
    assert_eq!(
        missing,
        json!({"replayed": [], "revivedOrders": [], "notFound": ["b"]})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_comes_back_at_once_is_replayed_once() {
    let shop = Shop::new().await;
    let broker = shop.broker();
    let bad = letter(Queue::OrdersDlq, "bad", "invalid_message", "no json");
    publish(&producer(&broker).await, vec![bad]).await;
    let _work = shop.work();
    for _ in 0..2 {
        let done = report(&shop, &["replay", "orders_dlq", "--all"], 0).await;
        assert_eq!(done["replayed"], json!(["bad"]), "{done}");
        until_ready(&broker, Queue::OrdersDlq, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_killed_between_publish_and_ack_is_repeated_and_decides_once() {
    let shop = impatient_shop().await;
    let broker = shop.broker();
    let _parts = shop.open().await;
    let id = shop.order(&[("p3", 2)]).await;
    shop.order_with_status(&id, "failed").await;
    until_ready(&broker, Queue::OrdersDlq, 1).await;
    mend(&shop).await;
    let proxy = StoppingProxy::start(&shop, &[BASIC_ACK]).await;
    let file = proxy.config_file(&shop);
    let mut replay = Process::configured(&file, &["dlq", "replay", "orders_dlq", "--all"]);
    proxy.stopped().await;
    shop.order_told(&id).await;
    replay.kill().await;
    until_ready(&broker, Queue::OrdersDlq, 1).await;

    let repeated = report(&shop, &["replay", "orders_dlq", "--all"], 0).await;
    assert_eq!(
        repeated,
        json!({"replayed": [id], "revivedOrders": []}),
        "it was decided by the first"
    );
    // It stands behind the repeated one.
    let next = shop.order(&[("p3", 1)]).await;
    shop.order_told(&next).await;
    assert_eq!(shop.stock_at("vendorB", "p3").await, 17);
    assert_eq!(ready(&broker, Queue::OrdersDlq).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_killed_in_the_middle_has_replayed_what_it_said_and_holds_nothing() {
    let shop = impatient_shop().await;
    let broker = shop.broker();
    let _parts = shop.open().await;
    let mut orders = Vec::new();
    for count in 1..=3 {
        let id = shop.order(&[("p3", 1)]).await;
        shop.order_with_status(&id, "failed").await;
        until_ready(&broker, Queue::OrdersDlq, count).await;
        orders.push(id);
    }
    mend(&shop).await;
    let mut lock = shop.connection_here().await;
    lock.batch_execute(&format!(
        "BEGIN; SELECT FROM orders WHERE id = '{}' FOR UPDATE",
        orders[1]
    ))
    .await
    .expect("locked");
    let mut replay = shop.start(&["dlq", "replay", "orders_dlq", "--all"]);
    shop.order_told(&orders[0]).await;
    shop.held_up_here().await;
    replay.kill().await;
    until_ready(&broker, Queue::OrdersDlq, 2).await;
    lock.batch_execute("ROLLBACK").await.expect("unlocked");
    assert_eq!(listed(&shop, &["orders_dlq"]).await, orders[1..]);
    let rest = eventually("the dead process's lock is gone", || async {
        let rest = shop
            .run(&["dlq", "replay", "orders_dlq", "--all", "--json"])
            .await;
        (rest.code == Some(0)).then_some(rest)
    })
    .await;
    let rest: serde_json::Value = serde_json::from_str(&rest.stdout).expect("a document");
    assert_eq!(rest["replayed"], json!(orders[1..]));
    for id in &orders {
        assert_eq!(shop.order_told(id).await["status"], "confirmed");
    }
    assert_eq!(shop.stock_at("vendorB", "p3").await, 17);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orders_status_follows_its_letter_and_a_vendors_letter_is_found_by_its_order() {
    let mut shop = impatient_shop().await;
    let broker = shop.broker();
    shop.sync().await;
    let (_api, work) = (shop.serve().await, work_without_vendors(&mut shop));
    let first = shop.order(&[("p1", 1)]).await;
    until_ready(&broker, Queue::VendorSyncDlq, 1).await;
    let second = shop.order(&[("p1", 2)]).await;
    until_ready(&broker, Queue::VendorSyncDlq, 2).await;
    let failed = |order: &serde_json::Value| order["vendorSync"] == "failed";
    shop.order_where(&second, "the vendor was not told", failed)
        .await;
    let of_second = ["vendor_sync_dlq", "--order", &second];
    let letters = listed(&shop, &of_second).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(listed(&shop, &["vendor_sync_dlq"]).await[1..], letters);
    work.stop().await;
    let (_vendors, _work) = (shop.serve_vendors(), shop.work());
    let done = report(&shop, &[&["replay"], &of_second[..]].concat(), 0).await;
    assert_eq!(done["replayed"], json!(letters));
    shop.order_told(&second).await;
    assert_eq!(shop.stock_at("vendorA", "p1").await, 8);
    let (_, waiting) = shop.get(&format!("/orders/{first}")).await;
    assert_eq!(waiting["vendorSync"], "failed");

    let broken = shop.order(&[("p3", 1)]).await;
    shop.order_with_status(&broken, "failed").await;
    until_ready(&broker, Queue::OrdersDlq, 1).await;
    let rehearsed = dlq(&shop, &["replay", "orders_dlq", "--all", "--dry-run"], 0).await;
    assert_eq!(
        rehearsed.stdout,
        format!("would replay {broken}: order {broken} is pending again\nwould replay 1 letter\n")
    );
    let (_, order) = shop.get(&format!("/orders/{broken}")).await;
    assert_eq!(order["status"], "failed");
    mend(&shop).await;
    let done = dlq(&shop, &["replay", "orders_dlq", "--order", &broken], 0).await;
    assert_eq!(
        done.stdout,
        format!("replayed {broken}: order {broken} is pending again\nreplayed 1 letter\n")
    );
    shop.order_with_status(&broken, "confirmed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_queue_is_acted_on_only_when_that_is_said() {
    let shop = Shop::new().await;
    let broker = shop.broker();
    let one = letter(Queue::OrdersDlq, "one", "invalid_message", "{}");
    publish(&producer(&broker).await, vec![one]).await;
    let mut said = String::new();
    for arguments in [
        &["replay", "orders_dlq"][..],
        &["drop", "vendor_sync_dlq", "--yes"],
        &["replay", "orders_dlq", "--dry-run"],
        &["drop", "orders_dlq", "--all"],
    ] {
        let ended = dlq(&shop, arguments, 2).await;
        assert_eq!(ended.stdout, "");
        said.push_str(&format!("$ {}\n{}", arguments.join(" "), ended.stderr));
    }
    insta::assert_snapshot!(said, @"
    $ replay orders_dlq
    error: say which letters to replay: select them by --id, --reason, --order or --limit, or give --all for every letter of orders_dlq
    $ drop vendor_sync_dlq --yes
    error: say which letters to drop: select them by --id, --reason, --order or --limit, or give --all for every letter of vendor_sync_dlq
    $ replay orders_dlq --dry-run
    error: say which letters to replay: select them by --id, --reason, --order or --limit, or give --all for every letter of orders_dlq
    $ drop orders_dlq --all
    error: dropping letters cancels their orders, and there is no terminal to ask on: look with --dry-run what it would do, and then give --yes
    ");
    for arguments in [
        &["replay", "orders_dlq", "--all", "--limit", "1"][..],
        &["replay", "orders_dlq", "--limit", "0"],
        &["replay", "orders_dlq", "--limit", "10001"],
        &["replay", "orders_dlq", "--id", ""],
        &["replay", "orders_dlq", "--order", "x"],
        &["replay", "orders_queue", "--all"],
        &["show"],
        &["list", "orders_queue"],
        &["list", "orders_dlq", "--all"],
        &["show", "orders_dlq", "--dry-run"],
    ] {
        let ended = dlq(&shop, arguments, 2).await;
        assert!(ended.stderr.contains("--help"), "{ended:?}");
    }
    assert_eq!(listed(&shop, &["orders_dlq"]).await, ["one"]);
}
