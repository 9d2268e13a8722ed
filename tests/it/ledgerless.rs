//! A vendor without a ledger: reading its one table is enough, and what is sold is exact all the same. Its API is its own.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use stockctl::commands::work::WorkQueue;

use crate::support::{ELSEWHERE, Elsewhere, Running, try_as_reader};

/// Our parts, after a first sync.
async fn open(elsewhere: &Elsewhere) -> (Running, Running) {
    elsewhere.shop.sync().await;
    (elsewhere.shop.serve().await, elsewhere.shop.work())
}

async fn cancel(elsewhere: &Elsewhere, order: &str) {
    let (status, answer) = elsewhere
        .shop
        .post(&format!("/orders/{order}/cancel"), json!({}))
        .await;
    assert_eq!(status, 200, "{answer}");
}

/// The states of an order's updates, takes first.
async fn states(elsewhere: &Elsewhere, order: &str) -> String {
    let (_, order) = elsewhere.shop.get(&format!("/orders/{order}")).await;
    let mut updates: Vec<&Value> = order["updates"]
        .as_array()
        .expect("a list")
        .iter()
        .collect();
    updates.sort_by_key(|update| update["delta"].as_i64());
    let states: Vec<String> = updates
        .iter()
        .map(|update| {
            format!(
                "{} {}",
                update["delta"],
                update["state"].as_str().unwrap_or("?")
            )
        })
        .collect();
    states.join(", ")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_that_reads_may_do_nothing_but_read_the_one_table() {
    let elsewhere = Elsewhere::with(&[("p1", 10)]).await;
    assert_eq!(
        try_as_reader(&elsewhere, "SELECT sku, title, quantity FROM shop.items").await,
        Ok(())
    );
    let mut answers = Vec::new();
    for sql in [
        "UPDATE shop.items SET quantity = 1",
        "INSERT INTO shop.items VALUES ('p2', '', 1)",
        "DELETE FROM shop.items",
        "SELECT FROM shop.items FOR UPDATE",
        "SELECT FROM shop.customers",
        "CREATE TABLE shop.stock_ledger (id uuid)",
        "CREATE SCHEMA ours",
        "CREATE TEMPORARY TABLE ours (id uuid)",
    ] {
        let answer = try_as_reader(&elsewhere, sql).await.expect_err(sql);
        // Without the name of the database, which is another at each run.
        let end = answer.find(" shop_").or(answer.find(" in database"));
        answers.push(answer[..end.unwrap_or(answer.len())].to_owned());
    }
    insta::assert_snapshot!(answers.join("\n"), @"
    permission denied for table items
    permission denied for table items
    permission denied for table items
    permission denied for table items
    permission denied for table customers
    permission denied for schema shop
    permission denied for database
    permission denied to create temporary tables
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_told_to_the_vendors_api_and_closed_by_the_next_sync() {
    let elsewhere = Elsewhere::with(&[("p1", 20)]).await;
    let _vendor = elsewhere.serve();
    let _parts = open(&elsewhere).await;
    let id = elsewhere.shop.order(&[("p1", 4)]).await;
    elsewhere.shop.order_told(&id).await;
    assert_eq!(elsewhere.quantity("p1").await, 16);
    assert_eq!(states(&elsewhere, &id).await, "-4 acknowledged");
    assert_eq!(
        elsewhere.figures("p1").await,
        "20 on hand, -4 open, 16 available, 0 short"
    );
    // Once closed it stays so, however many syncs follow.
    for _ in 0..3 {
        elsewhere.shop.sync().await;
        assert_eq!(states(&elsewhere, &id).await, "-4 applied");
        assert_eq!(
            elsewhere.figures("p1").await,
            "16 on hand, 0 open, 16 available, 0 short"
        );
    }
    let (_, answer) = elsewhere.shop.get("/vendors").await;
    let vendor = &answer["vendors"][0];
    assert_eq!(vendor["ledger"], false);
    assert_eq!(vendor["lastSyncError"], Value::Null);
    assert_eq!(vendor["openUpdates"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_vendor_was_not_told_of_stays_taken_through_every_sync() {
    let elsewhere = Elsewhere::with(&[("p1", 20)]).await;
    elsewhere.shop.sync().await;
    let _parts = (
        elsewhere.shop.serve().await,
        elsewhere.shop.work_on(&[WorkQueue::Orders]),
    );
    let id = elsewhere.shop.order(&[("p1", 8)]).await;
    elsewhere.shop.order_with_status(&id, "confirmed").await;
    let mut shown = Vec::new();
    for quantity in [20, 25, 9, 5] {
        elsewhere
            .run(&format!("UPDATE shop.items SET quantity = {quantity}"))
            .await;
        elsewhere.shop.sync().await;
        shown.push(elsewhere.figures("p1").await);
    }
    insta::assert_snapshot!(shown.join("\n"), @"
    20 on hand, -8 open, 12 available, 0 short
    25 on hand, -8 open, 17 available, 0 short
    9 on hand, -8 open, 1 available, 0 short
    5 on hand, -8 open, 0 available, 3 short
    ");
    // Told late, it is taken once.
    elsewhere.run("UPDATE shop.items SET quantity = 20").await;
    elsewhere.shop.sync().await;
    let _vendor = (
        elsewhere.serve(),
        elsewhere.shop.work_on(&[WorkQueue::VendorSync]),
    );
    elsewhere.shop.order_told(&id).await;
    elsewhere.shop.sync().await;
    assert_eq!(
        elsewhere.figures("p1").await,
        "12 on hand, 0 open, 12 available, 0 short"
    );
    assert_eq!(elsewhere.quantity("p1").await, 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_return_counts_only_once_a_sync_has_closed_it() {
    let elsewhere = Elsewhere::with(&[("p1", 20)]).await;
    let _vendor = elsewhere.serve();
    let _parts = open(&elsewhere).await;
    let closed_before = elsewhere.shop.order(&[("p1", 4)]).await;
    elsewhere.shop.order_told(&closed_before).await;
    elsewhere.shop.sync().await;
    let open_still = elsewhere.shop.order(&[("p1", 1)]).await;
    elsewhere.shop.order_told(&open_still).await;
    for id in [&closed_before, &open_still] {
        cancel(&elsewhere, id).await;
        elsewhere.shop.order_told(id).await;
    }
    // The vendor has everything again and has said so, but nothing tells which snapshot shows it.
    assert_eq!(elsewhere.quantity("p1").await, 20);
    assert_eq!(
        elsewhere.figures("p1").await,
        "16 on hand, -1 open, 15 available, 0 short"
    );
    assert_eq!(
        states(&elsewhere, &closed_before).await,
        "-4 applied, 4 acknowledged"
    );
    assert_eq!(
        states(&elsewhere, &open_still).await,
        "-1 acknowledged, 1 acknowledged"
    );
    elsewhere.shop.sync().await;
    assert_eq!(
        elsewhere.figures("p1").await,
        "20 on hand, 0 open, 20 available, 0 short"
    );
    assert_eq!(
        states(&elsewhere, &open_still).await,
        "-1 applied, 1 applied"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_came_after_the_snapshot_opened_is_left_to_the_next_sync() {
    let elsewhere = Elsewhere::with(&[("p1", 10)]).await;
    elsewhere.shop.sync().await;
    let _parts = (
        elsewhere.shop.serve().await,
        elsewhere.shop.work_on(&[WorkQueue::Orders]),
    );
    let id = elsewhere.shop.order(&[("p1", 3)]).await;
    elsewhere.shop.order_with_status(&id, "confirmed").await;
    // The snapshot is open, and older than all that follows, when the look at the products has to wait.
    let held = elsewhere
        .shop
        .hold_at(ELSEWHERE, "LOCK TABLE shop.items IN ACCESS EXCLUSIVE MODE")
        .await;
    let sync = elsewhere.shop.start(&["sync", "--once", "--json"]);
    elsewhere.shop.held_up_at(ELSEWHERE).await;
    sync.pause().await;
    held.release().await;
    let _vendor = (
        elsewhere.serve(),
        elsewhere.shop.work_on(&[WorkQueue::VendorSync]),
    );
    elsewhere.shop.order_told(&id).await;
    assert_eq!(elsewhere.quantity("p1").await, 7);
    sync.signal(Signal::SIGCONT);
    let sync = sync.ended().await;
    assert_eq!(sync.code, Some(0), "{sync:?}");
    // The snapshot says 10. Were the take closed with it, 3 would be sold a second time.
    assert_eq!(
        elsewhere.figures("p1").await,
        "10 on hand, -3 open, 7 available, 0 short"
    );
    assert_eq!(states(&elsewhere, &id).await, "-3 acknowledged");
    elsewhere.shop.sync().await;
    assert_eq!(
        elsewhere.figures("p1").await,
        "7 on hand, 0 open, 7 available, 0 short"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_vendor_sold_itself_is_rejected_by_its_api_and_mended_by_a_sync() {
    let elsewhere = Elsewhere::with(&[("p1", 10)]).await;
    let _vendor = elsewhere.serve();
    let _parts = open(&elsewhere).await;
    elsewhere.run("UPDATE shop.items SET quantity = 2").await;
    let id = elsewhere.shop.order(&[("p1", 5)]).await;
    let order = elsewhere.shop.order_with_status(&id, "cancelled").await;
    assert_eq!(order["reason"]["code"], "vendor_rejected", "{order}");
    assert_eq!(elsewhere.quantity("p1").await, 2);
    elsewhere.shop.sync().await;
    let id = elsewhere.shop.order(&[("p1", 2)]).await;
    elsewhere.shop.order_told(&id).await;
    assert_eq!(elsewhere.quantity("p1").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_and_syncs_at_the_same_time_leave_the_vendors_own_figure() {
    let elsewhere = Elsewhere::with(&[("p1", 60), ("p2", 60)]).await;
    let _vendor = elsewhere.serve();
    let _parts = open(&elsewhere).await;
    let ordering = async {
        let mut ids = Vec::new();
        for round in 0..20 {
            let id = elsewhere.shop.order(&[("p1", 2), ("p2", 1)]).await;
            if round % 4 == 0 {
                elsewhere.shop.order_with_status(&id, "confirmed").await;
                cancel(&elsewhere, &id).await;
            }
            ids.push(id);
        }
        for id in &ids {
            elsewhere.shop.order_told(id).await;
        }
    };
    let syncing = async {
        for _ in 0..10 {
            elsewhere.shop.sync().await;
        }
    };
    tokio::join!(ordering, syncing);
    elsewhere.shop.sync().await;
    for (product, left) in [("p1", 30), ("p2", 45)] {
        assert_eq!(elsewhere.quantity(product).await, left);
        assert_eq!(
            elsewhere.figures(product).await,
            format!("{left} on hand, 0 open, {left} available, 0 short")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_refused_since_it_may_not_show_yet_what_was_answered() {
    let elsewhere = Elsewhere::with(&[("p1", 10)]).await;
    // A function tells a replica, and this role finds another one of that name first.
    let role = &elsewhere.role;
    elsewhere
        .run(&format!(
            "CREATE FUNCTION shop.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true';
             ALTER ROLE {role} SET search_path = shop, pg_catalog"
        ))
        .await;
    let ended = elsewhere.shop.run(&["sync", "--once"]).await;
    assert_eq!(ended.code, Some(5), "{ended:?}");
    insta::assert_snapshot!(ended.stderr, @"error: vendor elsewhere: its database is a replica, which may not show yet what the vendor has acknowledged; set vendors.elsewhere.database_url to the primary, since it has no ledger");
    assert_eq!(
        elsewhere
            .shop
            .count("SELECT count(*) AS n FROM stock")
            .await,
        0
    );
    elsewhere
        .run(&format!("ALTER ROLE {role} RESET search_path"))
        .await;
    elsewhere.shop.sync().await;
    let _api = elsewhere.shop.serve().await;
    assert_eq!(elsewhere.shop.available("p1").await, 10);
}
