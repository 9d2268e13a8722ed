//! Dropping is a business act: what was asked for is taken back, and what the letter was is kept.

use std::process::Stdio;

use serde_json::{Value, json};
use stockctl::mq::Queue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::{dlq, impatient_shop, letter, listed, report, work_without_vendors};
use crate::support::amqp_proxy::{BASIC_ACK, StoppingProxy};
use crate::support::messages::{message, producer, publish, ready, until_ready};
use crate::support::{DEADLINE, Process, Shop, binary, eventually};

/// What the vendors have to sell.
const INITIAL: [(&str, &str, i64); 4] = [
    ("vendorA", "p1", 10),
    ("vendorA", "p2", 15),
    ("vendorB", "p2", 5),
    ("vendorB", "p3", 20),
];

/// What was kept of the dropped letters.
async fn kept(shop: &Shop) -> Vec<Value> {
    let text = shop
        .text(
            "SELECT json_agg(json_build_array(queue, message_id, reason, error, body, body_encoding, dropped_by)
                             ORDER BY message_id)::text AS t FROM dropped_letters",
        )
        .await;
    serde_json::from_str(&text).unwrap_or_default()
}

/// Waits until nothing is on its way, and checks that our figures and the vendors' are one.
async fn all_is_back(shop: &Shop) {
    shop.settled().await;
    shop.in_step(&INITIAL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_an_orders_letter_cancels_the_order_and_keeps_the_letter() {
    let shop = impatient_shop().await;
    let broker = shop.broker();
    let _parts = shop.open().await;
    let id = shop.order(&[("p3", 1)]).await;
    shop.order_with_status(&id, "failed").await;
    until_ready(&broker, Queue::OrdersDlq, 1).await;
    let drop_it = ["drop", "orders_dlq", "--id", &id, "--yes"];
    let rehearsed = report(&shop, &[&drop_it[..], &["--dry-run"]].concat(), 0).await;
    let expected = json!({"dropped": [id], "cancelledOrders": [id]});
    assert_eq!(rehearsed["cancelledOrders"], expected["cancelledOrders"]);
    assert_eq!(rehearsed["dryRun"], json!(true));
    assert_eq!(
        shop.get(&format!("/orders/{id}")).await.1["status"],
        "failed"
    );
    assert_eq!(kept(&shop).await, Vec::<Value>::new());
    assert_eq!(listed(&shop, &["orders_dlq"]).await, [id.as_str()]);

    assert_eq!(report(&shop, &drop_it, 0).await, expected);
    let (_, order) = shop.get(&format!("/orders/{id}")).await;
    assert_eq!(
        (&order["status"], &order["reason"]),
        (&json!("cancelled"), &json!({"code": "dropped"}))
    );
    let letters = kept(&shop).await;
    let [letter] = letters.as_slice() else {
        panic!("one is kept, not {letters:?}");
    };
    assert_eq!(letter[0], "orders_dlq");
    assert_eq!(letter[1], json!(id));
    assert_eq!(letter[2], "retries_exhausted");
    assert!(letter[3].as_str().expect("text").contains("broken"));
    let body: Value = serde_json::from_str(letter[4].as_str().expect("text")).expect("JSON");
    assert_eq!(body["id"], json!(id));
    assert_eq!(
        (&letter[5], &letter[6]),
        (&json!("utf-8"), &json!("cli:unknown"))
    );
    assert_eq!(ready(&broker, Queue::OrdersDlq).await, 0);
    all_is_back(&shop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_that_is_killed_before_the_ack_is_repeated_and_kept_once() {
    let shop = impatient_shop().await;
    let broker = shop.broker();
    let _parts = shop.open().await;
    let id = shop.order(&[("p3", 1)]).await;
    shop.order_with_status(&id, "failed").await;
    until_ready(&broker, Queue::OrdersDlq, 1).await;
    let proxy = StoppingProxy::start(&shop, &[BASIC_ACK]).await;
    let file = proxy.config_file(&shop);
    let drop_all = ["dlq", "drop", "orders_dlq", "--all", "--yes"];
    let mut dropping = Process::configured(&file, &drop_all);
    proxy.stopped().await;
    shop.order_with_status(&id, "cancelled").await;
    dropping.kill().await;
    until_ready(&broker, Queue::OrdersDlq, 1).await;
    let repeated = report(&shop, &drop_all[1..], 0).await;
    assert_eq!(repeated, json!({"dropped": [id], "cancelledOrders": []}));
    assert_eq!(kept(&shop).await.len(), 1);
    assert_eq!(ready(&broker, Queue::OrdersDlq).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_only_the_broker_had_is_cancelled_and_what_is_decided_or_unreadable_is_only_kept()
 {
    let shop = impatient_shop().await;
    let broker = shop.broker();
    let _parts = shop.open().await;
    let confirmed = shop.order(&[("p1", 1)]).await;
    shop.order_told(&confirmed).await;
    let only_here = "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001";
    let body = |id: &str| {
        format!(
            r#"{{"id":"{id}","caller":"local","lines":[{{"productId":"p1","quantity":1}}],"acceptedAt":"2026-11-24T09:00:00Z"}}"#
        )
    };
    let dlq_letter = |id, body: &str| letter(Queue::OrdersDlq, id, "crash_loop", body);
    let mut binary = dlq_letter("c-binary", "");
    binary.body = vec![0xff, 0x00];
    let letters = vec![
        dlq_letter("a-only", &body(only_here)),
        dlq_letter("b-decided", &body(&confirmed)),
        binary,
        dlq_letter("d-text", "no json"),
    ];
    publish(&producer(&broker).await, letters).await;
    let done = report(&shop, &["drop", "orders_dlq", "--all", "--yes"], 0).await;
    assert_eq!(
        done,
        json!({"dropped": ["a-only", "b-decided", "c-binary", "d-text"], "cancelledOrders": [only_here]})
    );
    let (_, order) = shop.get(&format!("/orders/{only_here}")).await;
    assert_eq!(order["status"], "cancelled", "{order}");
    let (_, order) = shop.get(&format!("/orders/{confirmed}")).await;
    assert_eq!(order["status"], "confirmed", "{order}");
    let bodies: Vec<Value> = kept(&shop)
        .await
        .iter()
        .skip(2)
        .map(|letter| json!([letter[4], letter[5]]))
        .collect();
    assert_eq!(
        bodies,
        [json!(["ff00", "hex"]), json!(["no json", "utf-8"])]
    );
    assert_eq!(shop.available("p1").await, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_vendors_letter_cancels_its_orders_and_nothing_stays_taken() {
    let mut shop = impatient_shop().await;
    let broker = shop.broker();
    shop.sync().await;
    let (_api, work) = (shop.serve().await, work_without_vendors(&mut shop));
    // A part of it from each vendor, and neither can be told.
    let id = shop.order(&[("p2", 18)]).await;
    until_ready(&broker, Queue::VendorSyncDlq, 2).await;
    assert_eq!(shop.available("p2").await, 2);
    let letters = listed(&shop, &["vendor_sync_dlq"]).await;
    let one = ["drop", "vendor_sync_dlq", "--yes", "--id", &letters[0]];
    let rehearsed = report(&shop, &[&one[..], &["--dry-run"]].concat(), 0).await;
    assert_eq!(rehearsed["cancelledOrders"], json!([id]));
    let updates = "SELECT count(*) AS n FROM stock_updates";
    assert_eq!(shop.count(updates).await, 2, "nothing was returned yet");

    work.stop().await;
    let _parts = (shop.serve_vendors(), shop.work());
    let done = report(&shop, &one, 0).await;
    assert_eq!(
        done,
        json!({"dropped": [letters[0]], "cancelledOrders": [id]})
    );
    let order = shop.order_told(&id).await;
    assert_eq!(
        (&order["status"], &order["reason"]["code"]),
        (&json!("cancelled"), &json!("dropped"))
    );
    // The takes never came, so the returns settle them as void; the other letter has nothing left to tell.
    let voids = "SELECT count(*) AS n FROM stock_updates WHERE state = 'void'";
    assert_eq!(shop.count(voids).await, 4);
    let rest = report(&shop, &["drop", "vendor_sync_dlq", "--all", "--yes"], 0).await;
    assert_eq!(
        rest,
        json!({"dropped": [letters[1]], "cancelledOrders": []})
    );
    assert_eq!(kept(&shop).await.len(), 2);
    all_is_back(&shop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_take_that_the_vendor_has_applied_is_returned_when_its_letter_is_dropped() {
    let mut shop = impatient_shop().await;
    let broker = shop.broker();
    shop.sync().await;
    let (_api, work) = (shop.serve().await, work_without_vendors(&mut shop));
    let id = shop.order(&[("p1", 4)]).await;
    until_ready(&broker, Queue::VendorSyncDlq, 1).await;
    work.stop().await;
    // The vendor had applied it, and its answer was lost.
    let take = shop.text("SELECT id::text AS t FROM stock_updates").await;
    let source = shop.text("SELECT id::text AS t FROM installation").await;
    shop.run_at(
        "vendorA",
        &format!(
            "UPDATE products SET stock = stock - 4 WHERE id = 'p1';
             INSERT INTO stock_ledger (id, source, product_id, delta, outcome) VALUES ('{take}', '{source}', 'p1', -4, 'applied')"
        ),
    )
    .await;
    let _parts = (shop.serve_vendors(), shop.work());
    let done = report(&shop, &["drop", "vendor_sync_dlq", "--all", "--yes"], 0).await;
    assert_eq!(done["cancelledOrders"], json!([id]));
    eventually("the return has arrived", || async {
        (shop.stock_at("vendorA", "p1").await == 10).then_some(())
    })
    .await;
    let dead = "SELECT count(*) AS n FROM stock_updates WHERE dead_lettered_at IS NOT NULL";
    assert_eq!(shop.count(dead).await, 0, "the take may be asked for again");
    shop.sync().await;
    all_is_back(&shop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_still_needs_the_letter_is_cancelled() {
    let mut shop = impatient_shop().await;
    let broker = shop.broker();
    let publisher = producer(&broker).await;
    shop.sync().await;
    let (_api, _vendors, work) = (shop.serve().await, shop.serve_vendors(), shop.work());
    let told = shop.order(&[("p1", 1)]).await;
    shop.order_told(&told).await;
    work.stop().await;
    let work = work_without_vendors(&mut shop);
    let untold = shop.order(&[("p1", 2)]).await;
    until_ready(&broker, Queue::VendorSyncDlq, 1).await;
    let cancelled = shop.order(&[("p1", 3)]).await;
    until_ready(&broker, Queue::VendorSyncDlq, 2).await;
    shop.post(&format!("/orders/{cancelled}/cancel"), json!({}))
        .await;
    until_ready(&broker, Queue::VendorSyncDlq, 3).await;
    let takes = shop
        .text(
            "SELECT json_agg(json_build_object('id', id, 'productId', product_id, 'delta', delta))::text AS t
             FROM stock_updates WHERE delta < 0",
        )
        .await;
    let mut takes: Vec<Value> = serde_json::from_str(&takes).expect("JSON");
    assert_eq!(takes.len(), 3);
    takes.push(
        json!({"id": "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001", "productId": "p1", "delta": -1}),
    );
    let mixed = json!({"vendorId": "vendorA", "updates": takes}).to_string();
    let elsewhere = json!({"vendorId": "vendorB", "updates": takes}).to_string();
    let letters = vec![
        message(Queue::VendorSyncDlq, "elsewhere", elsewhere),
        message(Queue::VendorSyncDlq, "mixed", mixed),
    ];
    publish(&publisher, letters).await;
    let drop_it = |id| ["drop", "vendor_sync_dlq", "--yes", "--id", id];
    // Vendor A's takes are not vendor B's letter's to give up.
    let done = report(&shop, &drop_it("elsewhere"), 0).await;
    assert_eq!(done["cancelledOrders"], json!([]));
    let done = report(&shop, &drop_it("mixed"), 0).await;
    assert_eq!(done["cancelledOrders"], json!([untold]));
    assert_eq!(
        shop.get(&format!("/orders/{told}")).await.1["status"],
        "confirmed"
    );
    // The returns that could not be told wait for their replay.
    work.stop().await;
    let _work = shop.work();
    eventually("every return is told", || async {
        report(&shop, &["replay", "vendor_sync_dlq", "--all"], 0).await;
        let open = "SELECT count(*) AS n FROM stock_updates WHERE state = 'open'";
        (shop.count(open).await == 0).then_some(())
    })
    .await;
    shop.settled().await;
    shop.in_step(&INITIAL).await;
    assert_eq!(shop.available("p1").await, 9, "only the told one is sold");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_return_is_never_dropped_before_the_vendor_has_answered_for_it() {
    let mut shop = impatient_shop().await;
    let broker = shop.broker();
    let publisher = producer(&broker).await;
    shop.sync().await;
    let (_api, _vendors, work) = (shop.serve().await, shop.serve_vendors(), shop.work());
    let id = shop.order(&[("p1", 4)]).await;
    shop.order_told(&id).await;
    work.stop().await;
    let work = work_without_vendors(&mut shop);
    shop.post(&format!("/orders/{id}/cancel"), json!({})).await;
    until_ready(&broker, Queue::VendorSyncDlq, 1).await;
    let text = letter(Queue::VendorSyncDlq, "unreadable", "invalid_message", "x");
    publish(&publisher, vec![text]).await;
    let letters = listed(&shop, &["vendor_sync_dlq"]).await;
    let shown = dlq(
        &shop,
        &["show", "vendor_sync_dlq", "--limit", "1", "--json"],
        0,
    )
    .await;
    let shown: Value = serde_json::from_str(&shown.stdout).expect("a document");

    let drop_all = ["drop", "vendor_sync_dlq", "--all", "--yes"];
    let ended = dlq(&shop, &drop_all, 5).await;
    let update = shop
        .text("SELECT id::text AS t FROM stock_updates WHERE delta > 0")
        .await;
    let said = format!("{}{}", ended.stdout, ended.stderr)
        .replace(&letters[0], "LETTER")
        .replace(&update, "UPDATE");
    insta::assert_snapshot!(said, @"
    dropped unreadable
    kept LETTER: it returns 4 of p1 to vendorA (update UPDATE), which has not answered for it: dropped, that stock would stay taken for ever; replay the letter instead, and drop it once the vendor has answered
    dropped 1 letter
    error: 1 letter had to be kept
    ");
    assert_eq!(listed(&shop, &["vendor_sync_dlq"]).await, letters[..1]);
    let names: Vec<Value> = kept(&shop).await.iter().map(|k| k[1].clone()).collect();
    assert_eq!(names, ["unreadable"]);

    work.stop().await;
    let _work = shop.work();
    dlq(&shop, &["replay", "vendor_sync_dlq", "--all"], 0).await;
    shop.order_told(&id).await;
    // A copy of it tells nothing new.
    let copy = message(Queue::VendorSyncDlq, "copy", shown["body"].to_string());
    publish(&publisher, vec![copy]).await;
    let done = report(&shop, &drop_all, 0).await;
    assert_eq!(done, json!({"dropped": ["copy"], "cancelledOrders": []}));
    all_is_back(&shop).await;
}

/// Runs `stockctl dlq` on a terminal of its own up to its question, does something meanwhile, and then answers. Returns
/// what was written and the exit code.
async fn on_a_terminal(
    shop: &Shop,
    arguments: &str,
    meanwhile: impl AsyncFnOnce(),
    answer: &str,
) -> (String, Option<i32>) {
    let file = shop.config_file.to_str().expect("UTF-8");
    let command = format!("{} --config {file} dlq {arguments}", binary().display());
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("script (of util-linux) runs");
    let mut input = child.stdin.take().expect("piped");
    let mut output = child.stdout.take().expect("piped");
    let session = async {
        let mut written = Vec::new();
        while !String::from_utf8_lossy(&written).contains("[y/N]") {
            let read = output.read_buf(&mut written).await.expect("readable");
            assert!(read > 0, "it ended: {}", String::from_utf8_lossy(&written));
        }
        meanwhile().await;
        input.write_all(answer.as_bytes()).await.expect("typed");
        output.read_to_end(&mut written).await.expect("readable");
        let status = child.wait().await.expect("ends");
        let written = String::from_utf8_lossy(&written).into_owned();
        (written, status.code())
    };
    tokio::time::timeout(DEADLINE, session)
        .await
        .expect("asks and ends in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_a_drop_asks_and_drops_only_what_it_asked_for() {
    let shop = Shop::new().await;
    let publisher = producer(&shop.broker()).await;
    let dlq_letter = |id, reason| letter(Queue::OrdersDlq, id, reason, "x");
    let letters = vec![
        dlq_letter("a", "invalid_message"),
        dlq_letter("b", "crash_loop"),
        dlq_letter("c", "invalid_message"),
    ];
    publish(&publisher, letters).await;
    let nothing = async || {};
    let (written, code) = on_a_terminal(&shop, "drop orders_dlq --all", nothing, "n\n").await;
    assert!(
        written.contains("Drop 3 letters of orders_dlq (1 crash_loop, 2 invalid_message)?"),
        "{written}"
    );
    assert_eq!(code, Some(5), "{written}");
    assert_eq!(listed(&shop, &["orders_dlq"]).await, ["a", "b", "c"]);
    assert_eq!(kept(&shop).await.len(), 0);
    // While it asks, it holds nothing, and what comes meanwhile was not agreed to.
    let meanwhile = async || {
        assert_eq!(listed(&shop, &["orders_dlq"]).await.len(), 3);
        publish(&publisher, vec![dlq_letter("d", "invalid_message")]).await;
    };
    let of_reason = "drop orders_dlq --reason invalid_message";
    let (written, code) = on_a_terminal(&shop, of_reason, meanwhile, "y\n").await;
    assert_eq!(code, Some(0), "{written}");
    assert_eq!(listed(&shop, &["orders_dlq"]).await, ["b", "d"]);
    assert_eq!(kept(&shop).await.len(), 2);
}
