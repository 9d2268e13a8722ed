//! The sync: what a vendor's database says comes in exactly, whatever happens at the same time.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use stockctl::commands::work::WorkQueue;
use uuid::Uuid;

use crate::support::{Ended, Servers, Shop, ShopOptions, eventually};

/// A schedule that does not come due while a test runs.
const NEVER: &str = "[sync]\nschedule = \"0 0 0 1 1 *\"\n";

async fn shop_of(products: Vec<(&'static str, i64)>, config: &str) -> Shop {
    Shop::with(ShopOptions {
        vendors: vec![("vendorA", products)],
        config: config.to_owned(),
    })
    .await
}

/// What we hold of vendorA's stock, a product a line.
async fn shelves(shop: &Shop) -> String {
    shop.text(
        "SELECT string_agg(format('%s %s: %s%s', product_id, name, on_hand,
             CASE WHEN open_delta <> 0 THEN format(' and %s open', open_delta) END), E'\\n' ORDER BY product_id) AS t
         FROM stock WHERE vendor_id = 'vendorA'",
    )
    .await
}

async fn sync_as_process(shop: &Shop, arguments: &[&str]) -> Ended {
    shop.run(&[&["sync", "--once", "--json"], arguments].concat())
        .await
}

fn report(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_follows_new_changed_renamed_removed_and_relisted_products() {
    let products = vec![
        ("a", 1),
        ("b", 2),
        ("c", 3),
        ("d", 4),
        ("e", 5),
        ("f", 6),
        ("g", 7),
    ];
    let shop = shop_of(products, "[sync]\nchunk_rows = 3\n").await;
    let ended = sync_as_process(&shop, &[]).await;
    assert_eq!(
        report(&ended),
        json!({"vendorId": "vendorA", "outcome": "done", "products": 7, "read": 7, "written": 7, "updatesClosed": 0, "skipped": 0})
    );
    // Removed at the beginning, at the bounds of chunks and at the end; new ones in the same places.
    shop.run_at(
        "vendorA",
        "DELETE FROM products WHERE id IN ('a', 'c', 'd', 'g');
         UPDATE products SET name = 'renamed' WHERE id = 'b';
         UPDATE products SET stock = 50 WHERE id = 'e';
         INSERT INTO products (id, name, stock) VALUES ('Z', 'first', 8), ('cc', 'between', 9), ('z', 'last', 10)",
    )
    .await;
    let ended = sync_as_process(&shop, &[]).await;
    assert_eq!(report(&ended)["written"], 9, "{ended:?}");
    insta::assert_snapshot!(shelves(&shop).await, @"
    Z first: 8
    a Product a: 0
    b renamed: 2
    c Product c: 0
    cc between: 9
    d Product d: 0
    e Product e: 50
    f Product f: 6
    g Product g: 0
    z last: 10
    ");
    shop.run_at(
        "vendorA",
        "INSERT INTO products (id, name, stock) VALUES ('a', 'again', 11), ('g', 'Product g', 12)",
    )
    .await;
    let ended = sync_as_process(&shop, &[]).await;
    assert_eq!(report(&ended)["written"], 2, "{ended:?}");
    insta::assert_snapshot!(shelves(&shop).await, @"
    Z first: 8
    a again: 11
    b renamed: 2
    c Product c: 0
    cc between: 9
    d Product d: 0
    e Product e: 50
    f Product f: 6
    g Product g: 12
    z last: 10
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_part_of_a_catalogue_is_listed_the_view_follows_it() {
    // In the order of bytes, which the order of no language is.
    let ids = ["B", "a", "a-", "a0", "aa", "b", "é"];
    let shop = shop_of(vec![], "[sync]\nchunk_rows = 2\n").await;
    let mut expected = BTreeMap::new();
    for mask in [
        0b000_1000, 0b111_1111, 0b001_1100, 0b110_0011, 0b100_0000, 0b000_0001, 0b010_1010,
        0b101_0101, 0b011_1111, 0b111_1110,
    ] {
        expected.values_mut().for_each(|stock| *stock = 0);
        let mut rows = Vec::new();
        for (index, id) in ids.into_iter().enumerate() {
            if mask & (1 << index) != 0 {
                expected.insert(id, mask);
                rows.push(format!("('{id}', 'name', {mask})"));
            }
        }
        let rows = rows.join(", ");
        shop.run_at(
            "vendorA",
            &format!("BEGIN; DELETE FROM products; INSERT INTO products (id, name, stock) VALUES {rows}; COMMIT"),
        )
        .await;
        shop.sync().await;
        let held = shop
            .text("SELECT jsonb_object_agg(product_id, on_hand)::text AS t FROM stock")
            .await;
        let held: Value = serde_json::from_str(&held).expect("JSON");
        assert_eq!(held, json!(expected), "{mask:b}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_writes_no_row_that_did_not_change() {
    let shop = shop_of(
        vec![("a", 1), ("b", 2), ("c", 3)],
        "[sync]\nchunk_rows = 2\n",
    )
    .await;
    // Which version of each row there is, and where it lies.
    let versions = async || {
        let text = shop
            .text(
                "SELECT jsonb_object_agg(product_id, format('%s %s', xmin, ctid))::text AS t FROM stock",
            )
            .await;
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    shop.sync().await;
    let first = versions().await;
    shop.sync().await;
    assert_eq!(versions().await, first);
    shop.run_at("vendorA", "UPDATE products SET stock = 20 WHERE id = 'b'")
        .await;
    shop.sync().await;
    let then = versions().await;
    assert_eq!(
        (&then["a"], &then["c"]),
        (&first["a"], &first["c"]),
        "{then}"
    );
    assert_ne!(then["b"], first["b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_lists_nothing_is_refused_unless_it_is_allowed() {
    let shop = shop_of(vec![("a", 1), ("b", 2)], "").await;
    shop.sync().await;
    shop.run_at("vendorA", "TRUNCATE products").await;
    let ended = sync_as_process(&shop, &[]).await;
    assert_eq!(ended.code, Some(5), "{ended:?}");
    insta::assert_snapshot!(ended.stderr, @"error: vendor vendorA: it lists no product at all, where it had stock before; if that is right, run `stockctl sync --once --vendor vendorA --allow-empty`");
    insta::assert_snapshot!(shelves(&shop).await, @"
    a Product a: 1
    b Product b: 2
    ");
    let ended = sync_as_process(&shop, &["--allow-empty"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    insta::assert_snapshot!(shelves(&shop).await, @"
    a Product a: 0
    b Product b: 0
    ");
    // Nothing is left that could be lost, so nothing is suspicious.
    let ended = sync_as_process(&shop, &[]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_whose_id_cannot_be_ours_is_passed_over() {
    let shop = shop_of(vec![("a", 1), ("c", 3)], "[sync]\nchunk_rows = 1\n").await;
    shop.run_at(
        "vendorA",
        "INSERT INTO products (id, name, stock) VALUES (E'\\tfirst', '', 1), (E'b\\nb', '', 2), (E'b\\nc', '', 2), (E'z\\u0085', '', 3)",
    )
    .await;
    let ended = sync_as_process(&shop, &[]).await;
    assert_eq!(
        report(&ended),
        json!({"vendorId": "vendorA", "outcome": "done", "products": 2, "read": 2, "written": 2, "updatesClosed": 0, "skipped": 4})
    );
    insta::assert_snapshot!(shelves(&shop).await, @"
    a Product a: 1
    c Product c: 3
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_whose_database_is_down_stops_no_other_and_is_shown() {
    let mut shop = Shop::new().await;
    let url = shop.database_url_of("vendorA").to_owned();
    // A port that nothing listens on.
    let nowhere = "postgres://someone:hush@127.0.0.1:1/vendoradb";
    shop.reconfigure(|text| text.replace(&url, nowhere));
    let ended = sync_as_process(&shop, &[]).await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    insta::assert_snapshot!(ended.stderr, @"error: vendor vendorA: its database: PostgreSQL at 127.0.0.1:1/vendoradb cannot be reached: error connecting to server: Connection refused (os error 111)");
    assert_eq!(report(&ended)["vendorId"], "vendorB");
    let _parts = shop.serve().await;
    let shown = async || {
        let (status, answer) = shop.get("/vendors").await;
        assert_eq!(status, 200, "{answer}");
        answer["vendors"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|vendor| {
                (
                    vendor["lastSyncAt"].is_string(),
                    vendor["lastSyncError"].clone(),
                )
            })
            .collect::<Vec<_>>()
    };
    let vendors = shown().await;
    assert_eq!(vendors[1], (true, Value::Null));
    insta::assert_json_snapshot!(vendors[0], @r#"
    [
      false,
      "database_unavailable"
    ]
    "#);
    assert_eq!(shop.available("p3").await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_syncs_of_one_vendor_at_a_time_one_is_busy() {
    let mut shop = shop_of(vec![("a", 1)], "").await;
    shop.wait_long_for_locks();
    shop.sync().await;
    shop.run_at("vendorA", "UPDATE products SET stock = 2")
        .await;
    let held = shop.hold_here("SELECT FROM stock FOR UPDATE").await;
    let first = shop.start(&["sync", "--once", "--json"]);
    shop.held_up_here().await;
    let second = sync_as_process(&shop, &[]).await;
    assert_eq!(
        (second.code, &report(&second)["outcome"]),
        (Some(0), &json!("busy"))
    );
    held.release().await;
    let first = first.ended().await;
    assert_eq!(
        (first.code, &report(&first)["outcome"]),
        (Some(0), &json!("done"))
    );
    insta::assert_snapshot!(shelves(&shop).await, @"a Product a: 2");
}

/// A run that stops with a snapshot that is older than the next change of the vendor's stock, loses its lock, and wakes up
/// when another run is through.
async fn wake_up_late(shop: &Shop) -> Ended {
    // The snapshot is open, and older than this change, when the look at the products has to wait for it.
    let held = shop
        .hold_at(
            "vendorA",
            "LOCK TABLE products IN ACCESS EXCLUSIVE MODE; UPDATE products SET stock = stock + 10",
        )
        .await;
    let late = shop.start(&["sync", "--once", "--json"]);
    shop.held_up_at("vendorA").await;
    late.pause().await;
    held.release().await;
    shop.run_here("SELECT pg_terminate_backend(pid, 5000) FROM pg_locks JOIN pg_database d ON d.oid = database WHERE locktype = 'advisory' AND datname = current_database()")
        .await;
    let newer = sync_as_process(shop, &[]).await;
    assert_eq!(report(&newer)["outcome"], "done");
    late.signal(Signal::SIGCONT);
    late.ended().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_lost_its_lock_and_wakes_up_late_writes_nothing() {
    let shop = shop_of(vec![("a", 1), ("b", 2)], "").await;
    let late = wake_up_late(&shop).await;
    assert_eq!(report(&late)["outcome"], "overtaken", "{late:?}");
    // Of a catalogue that is known the hashes are read by the session that held the lock.
    let late = wake_up_late(&shop).await;
    assert_eq!(late.code, Some(4), "{late:?}");
    insta::assert_snapshot!(shelves(&shop).await, @"
    a Product a: 21
    b Product b: 22
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_reaches_the_vendor_while_a_sync_holds_an_older_snapshot_is_counted_once() {
    let mut shop = shop_of(vec![("p1", 10)], "").await;
    shop.wait_long_for_locks();
    shop.sync().await;
    let _parts = (shop.serve().await, shop.work_on(&[WorkQueue::Orders]));
    let id = shop.order(&[("p1", 3)]).await;
    shop.order_with_status(&id, "confirmed").await;
    // A change of the name, so that the row has to be written.
    shop.run_at("vendorA", "UPDATE products SET name = 'renamed'")
        .await;
    let held = shop.hold_here("SELECT FROM stock FOR UPDATE").await;
    let sync = shop.start(&["sync", "--once", "--json"]);
    shop.held_up_here().await;
    // The vendor applies the take after the snapshot, and its answer has to wait as the sync does.
    let _vendors = (shop.serve_vendors(), shop.work_on(&[WorkQueue::VendorSync]));
    eventually("the vendor has applied it", || async {
        (shop.stock_at("vendorA", "p1").await == 7).then_some(())
    })
    .await;
    held.release().await;
    let sync = sync.ended().await;
    assert_eq!(report(&sync)["updatesClosed"], 0, "{sync:?}");
    shop.order_told(&id).await;
    insta::assert_snapshot!(shelves(&shop).await, @"p1 renamed: 10 and -3 open");
    shop.sync().await;
    insta::assert_snapshot!(shelves(&shop).await, @"p1 renamed: 7");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_decided_and_told_while_a_sync_is_between_chunks_is_counted_once() {
    let mut shop = shop_of(vec![("p1", 10), ("p2", 15)], "[sync]\nchunk_rows = 1\n").await;
    shop.wait_long_for_locks();
    let _parts = shop.open().await;
    shop.run_at("vendorA", "UPDATE products SET name = 'renamed'")
        .await;
    let held = shop
        .hold_here("SELECT FROM stock WHERE product_id = 'p1' FOR UPDATE")
        .await;
    let sync = shop.start(&["sync", "--once", "--json"]);
    shop.held_up_here().await;
    let id = shop.order(&[("p2", 4)]).await;
    shop.order_told(&id).await;
    assert_eq!(shop.stock_at("vendorA", "p2").await, 11);
    held.release().await;
    let sync = sync.ended().await;
    assert_eq!(report(&sync)["written"], 2, "{sync:?}");
    insta::assert_snapshot!(shelves(&shop).await, @"
    p1 renamed: 10
    p2 renamed: 15 and -4 open
    ");
    shop.sync().await;
    insta::assert_snapshot!(shelves(&shop).await, @"
    p1 renamed: 10
    p2 renamed: 11
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_closes_an_update_whose_answer_was_lost_and_the_late_answer_changes_nothing() {
    let shop = shop_of(vec![("p1", 10)], "").await;
    shop.sync().await;
    let _parts = (shop.serve().await, shop.work_on(&[WorkQueue::Orders]));
    let id = shop.order(&[("p1", 3)]).await;
    let order = shop.order_with_status(&id, "confirmed").await;
    let update = json!({"id": order["updates"][0]["id"], "productId": "p1", "delta": -3});
    let (status, answer) = shop
        .post(
            "/vendors/vendorA/stock-updates",
            json!({ "updates": [update] }),
        )
        .await;
    assert_eq!(
        (status, &answer["results"][0]["outcome"]),
        (200, &json!("applied"))
    );
    shop.sync().await;
    insta::assert_snapshot!(shelves(&shop).await, @"p1 Product p1: 7");
    assert_eq!(shop.order_told(&id).await["updates"][0]["state"], "applied");
    let queue_is_empty = async || {
        let (_, answer) = shop.get("/admin/queues").await;
        let queues = answer["queues"].as_array().expect("a list");
        let ready = |name| {
            queues
                .iter()
                .find(|q| q["name"] == name)
                .map(|q| q["ready"].clone())
        };
        (ready("vendor_sync") == Some(json!(0))).then_some(())
    };
    eventually("the message has arrived", || async {
        match queue_is_empty().await {
            None => Some(()),
            Some(()) => None,
        }
    })
    .await;
    let _vendors = (shop.serve_vendors(), shop.work_on(&[WorkQueue::VendorSync]));
    eventually("the message is handled", queue_is_empty).await;
    shop.sync().await;
    insta::assert_snapshot!(shelves(&shop).await, @"p1 Product p1: 7");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sold_is_closed_before_a_snapshot_of_the_vendor_opens() {
    let mut shop = shop_of(vec![("p1", 10)], "").await;
    shop.wait_long_for_locks();
    let _parts = shop.open().await;
    let kept = shop.order(&[("p1", 3)]).await;
    shop.order_told(&kept).await;
    let held = shop.hold_here("SELECT FROM stock FOR UPDATE").await;
    let sync = shop.start(&["sync", "--once", "--json"]);
    shop.held_up_here().await;
    // However long that takes, the vendor's database may clear away the old versions of its rows.
    let open = "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database()
                    AND backend_type = 'client backend' AND backend_xmin IS NOT NULL AND pid <> pg_backend_pid()";
    assert_eq!(shop.count_at("vendorA", open).await, 0);
    // The snapshot shows what happens until it opens.
    shop.run_at("vendorA", "UPDATE products SET stock = stock - 1")
        .await;
    held.release().await;
    let sync = sync.ended().await;
    assert_eq!(report(&sync)["updatesClosed"], 1, "{sync:?}");
    insta::assert_snapshot!(shelves(&shop).await, @"p1 Product p1: 6");
    // Takes and returns are closed in the same run.
    let cancelled = shop.order(&[("p1", 2)]).await;
    shop.order_told(&cancelled).await;
    let (status, _) = shop
        .post(&format!("/orders/{cancelled}/cancel"), json!({}))
        .await;
    assert_eq!(status, 200);
    shop.order_told(&cancelled).await;
    let sync = sync_as_process(&shop, &[]).await;
    assert_eq!(report(&sync)["updatesClosed"], 2, "{sync:?}");
    insta::assert_snapshot!(shelves(&shop).await, @"p1 Product p1: 6");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_closed_stays_listed_beside_what_is() {
    let shop = shop_of(vec![("p1", 10), ("p2", 10)], "").await;
    shop.sync().await;
    let _parts = (shop.serve().await, shop.work_on(&[WorkQueue::Orders]));
    let id = shop.order(&[("p1", 1), ("p2", 1)]).await;
    let order = shop.order_with_status(&id, "confirmed").await;
    let updates = order["updates"].as_array().expect("a list").clone();
    let rows = "SELECT count(*) AS n FROM listed_updates";
    assert_eq!(
        (updates.len(), shop.count(rows).await),
        (2, 1),
        "one row has both"
    );
    let listed =
        "SELECT coalesce(sum(cardinality(update_ids)), 0)::bigint AS n FROM listed_updates";
    for (update, left) in updates.iter().zip([1, 0]) {
        let update = json!({"id": update["id"], "productId": update["productId"], "delta": -1});
        let body = json!({ "updates": [update] });
        let (status, _) = shop.post("/vendors/vendorA/stock-updates", body).await;
        assert_eq!(status, 200);
        shop.sync().await;
        assert_eq!(shop.count(listed).await, left);
        let unclosed = "SELECT count(*) AS n FROM unclosed_updates";
        assert_eq!(shop.count(unclosed).await, left);
    }
    assert_eq!(shop.order_told(&id).await["updates"][1]["state"], "applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_which_product_an_update_is_a_ledger_may_have_wrong_and_the_view_is_exact() {
    let shop = shop_of(vec![("p1", 100), ("p2", 100)], "").await;
    let _parts = shop.open().await;
    shop.run_at(
        "vendorA",
        "ALTER TABLE stock_ledger DROP CONSTRAINT stock_ledger_product_id_check",
    )
    .await;
    let listed = "SELECT count(*) AS n FROM listed_updates";
    for (wrong, left) in [
        ("product_id = 'p2'", 97),
        ("product_id = 'unknown'", 94),
        ("product_id = ''", 91),
        ("delta = 3, reverses = gen_random_uuid()", 88),
    ] {
        let id = shop.order(&[("p1", 3)]).await;
        let update = shop.order_told(&id).await["updates"][0]["id"].clone();
        let mistaken = format!(
            "UPDATE stock_ledger SET {wrong} WHERE id::text = '{}'",
            update.as_str().expect("a text")
        );
        shop.run_at("vendorA", &mistaken).await;
        let sync = sync_as_process(&shop, &[]).await;
        assert_eq!(report(&sync)["updatesClosed"], 1, "{wrong}: {sync:?}");
        assert_eq!(
            shelves(&shop).await,
            format!("p1 Product p1: {left}\np2 Product p2: 100"),
            "{wrong}"
        );
        let order = shop.order_told(&id).await;
        assert_eq!(order["updates"][0]["state"], "applied", "{wrong}");
        assert_eq!(shop.count(listed).await, 0, "{wrong}");
    }
    // A return that the ledger has as a take.
    let id = shop.order(&[("p1", 2)]).await;
    shop.order_told(&id).await;
    let (status, _) = shop.post(&format!("/orders/{id}/cancel"), json!({})).await;
    assert_eq!(status, 200);
    shop.order_told(&id).await;
    shop.run_at(
        "vendorA",
        "UPDATE stock_ledger SET delta = -2, reverses = NULL WHERE delta = 2",
    )
    .await;
    let sync = sync_as_process(&shop, &[]).await;
    assert_eq!(report(&sync)["updatesClosed"], 2, "{sync:?}");
    let unclosed = "SELECT count(*) AS n FROM stock_updates WHERE closed_at IS NULL";
    assert_eq!(shop.count(unclosed).await, 0);
    // A run that ended before it took what it had closed out of the list is followed by one that finds it there.
    let id = shop.order(&[("p1", 1)]).await;
    shop.order_told(&id).await;
    shop.run_here(
        "UPDATE listed_updates SET update_ids = (SELECT array_agg(id) FROM stock_updates)",
    )
    .await;
    let sync = sync_as_process(&shop, &[]).await;
    assert_eq!(report(&sync)["updatesClosed"], 1, "{sync:?}");
    insta::assert_snapshot!(shelves(&shop).await, @"
    p1 Product p1: 87
    p2 Product p2: 100
    ");
    assert_eq!(shop.count(listed).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_have_between_ours_in_a_shared_ledger_hides_nothing_of_ours() {
    let shop = shop_of(vec![("p1", 10)], "").await;
    let _parts = shop.open().await;
    let mut ours = Vec::new();
    for _ in 0..3 {
        let id = shop.order(&[("p1", 1)]).await;
        shop.order_told(&id).await;
        ours.push(id);
        let others: String = (0..20)
            .map(|_| format!("('{}', 'another', 'p1', -1, 'applied')", Uuid::now_v7()))
            .collect::<Vec<_>>()
            .join(", ");
        let insert = "INSERT INTO stock_ledger (id, source, product_id, delta, outcome) VALUES";
        shop.run_at("vendorA", &format!("{insert} {others}")).await;
    }
    let sync = sync_as_process(&shop, &[]).await;
    assert_eq!(report(&sync)["updatesClosed"], 3, "{sync:?}");
    for id in ours {
        let order = shop.order_told(&id).await;
        assert_eq!(order["updates"][0]["state"], "applied");
    }
    insta::assert_snapshot!(shelves(&shop).await, @"p1 Product p1: 7");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_never_brings_back_stock_that_was_sold_but_has_not_reached_the_vendor() {
    let shop = shop_of(vec![("p1", 10)], "").await;
    shop.sync().await;
    let _parts = (shop.serve().await, shop.work_on(&[WorkQueue::Orders]));
    let id = shop.order(&[("p1", 8)]).await;
    shop.order_with_status(&id, "confirmed").await;
    for stock in [9, 12, 5] {
        shop.run_at("vendorA", &format!("UPDATE products SET stock = {stock}"))
            .await;
        shop.sync().await;
        assert_eq!(shop.available("p1").await, (stock - 8).max(0));
    }
    // The vendor itself has sold what we had taken.
    let (_, product) = shop.get("/products/p1").await;
    assert_eq!(
        (
            &product["vendors"][0]["onHand"],
            &product["vendors"][0]["open"]
        ),
        (&json!(5), &json!(-8))
    );
    // A product with an open take is delisted: what is open stays open.
    shop.run_at("vendorA", "DELETE FROM products").await;
    let ended = sync_as_process(&shop, &["--allow-empty"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    insta::assert_snapshot!(shelves(&shop).await, @"p1 Product p1: 0 and -8 open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delisted_product_keeps_its_row_and_its_updates_are_closed() {
    let shop = shop_of(vec![("p1", 10), ("p2", 15)], "").await;
    let _parts = shop.open().await;
    let id = shop.order(&[("p2", 4)]).await;
    shop.order_told(&id).await;
    shop.run_at("vendorA", "DELETE FROM products WHERE id = 'p2'")
        .await;
    shop.sync().await;
    insta::assert_snapshot!(shelves(&shop).await, @"
    p1 Product p1: 10
    p2 Product p2: 0
    ");
    let (_, order) = shop.get(&format!("/orders/{id}")).await;
    assert_eq!(order["updates"][0]["state"], "applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sync_loop_runs_at_its_start_and_when_it_is_asked_to() {
    let shop = shop_of(vec![("p1", 10)], NEVER).await;
    let (_api, _loop) = (shop.serve().await, shop.sync_by_schedule());
    let on_hand = async |stock: i64| {
        eventually(&format!("{stock} on hand"), || async {
            (shop
                .count("SELECT coalesce(sum(on_hand), 0)::bigint AS n FROM stock")
                .await
                == stock)
                .then_some(())
        })
        .await;
    };
    on_hand(10).await;
    shop.run_at("vendorA", "UPDATE products SET stock = 11")
        .await;
    let (status, answer) = shop
        .send(shop.http.post(format!("{}/admin/sync", shop.url)))
        .await;
    assert_eq!((status, answer), (202, json!({"requested": ["vendorA"]})));
    on_hand(11).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sync_loop_runs_at_every_tick() {
    let shop = shop_of(vec![("p1", 10)], "[sync]\nschedule = \"* * * * * *\"\n").await;
    let running = shop.sync_by_schedule();
    for stock in [10, 11, 12] {
        shop.run_at("vendorA", &format!("UPDATE products SET stock = {stock}"))
            .await;
        eventually("a tick has come", || async {
            (shop
                .count("SELECT coalesce(sum(on_hand), 0)::bigint AS n FROM stock")
                .await
                == stock)
                .then_some(())
        })
        .await;
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_without_a_ledger_is_synced_by_reading_alone_and_its_stock_is_exact() {
    let mut shop = Shop::new().await;
    // The vendor's own API writes; our look at its database may read the products and nothing else.
    let _vendors = shop.serve_vendors();
    let role = format!("reader_{}", uuid::Uuid::new_v4().simple());
    shop.run_at(
        "vendorB",
        &format!("CREATE ROLE {role} LOGIN PASSWORD 'read'; GRANT SELECT ON products TO {role}"),
    )
    .await;
    let url = shop.database_url_of("vendorB").to_owned();
    let mut read_only: url::Url = url.parse().expect("a URL");
    read_only.set_username(&role).expect("it has a host");
    read_only.set_password(Some("read")).expect("it has a host");
    shop.reconfigure(|text| {
        text.replace(
            &format!("database_url = \"{url}\""),
            &format!("database_url = \"{read_only}\"\nledger = false"),
        )
    });
    shop.sync().await;
    let _parts = (shop.serve().await, shop.work());
    let figures = async || {
        let (_, product) = shop.get("/products/p3").await;
        let at = product["vendors"][0].clone();
        (
            at["onHand"].clone(),
            at["open"].clone(),
            at["available"].clone(),
        )
    };
    let id = shop.order(&[("p3", 4)]).await;
    shop.order_told(&id).await;
    assert_eq!(shop.stock_at("vendorB", "p3").await, 16);
    assert_eq!(figures().await, (json!(20), json!(-4), json!(16)));
    shop.sync().await;
    assert_eq!(figures().await, (json!(16), json!(0), json!(16)));
    let (status, _) = shop
        .send(shop.http.post(format!("{}/orders/{id}/cancel", shop.url)))
        .await;
    assert_eq!(status, 200);
    eventually("the vendor has the goods again", || async {
        (shop.stock_at("vendorB", "p3").await == 20).then_some(())
    })
    .await;
    shop.order_told(&id).await;
    // Nothing tells whether a snapshot includes the return, so it counts once a later one surely does.
    assert_eq!(figures().await, (json!(16), json!(0), json!(16)));
    shop.sync().await;
    assert_eq!(figures().await, (json!(20), json!(0), json!(20)));
    let ended = shop.run(&["migrate", "--vendors"]).await;
    assert_eq!(
        ended.code,
        Some(0),
        "its schema is not ours to change: {ended:?}"
    );
    assert!(!ended.stdout.contains("vendorB"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_vendor_was_never_synced_only_what_can_be_confirmed_is_decided() {
    let shop = Shop::with(ShopOptions {
        config: "[orders]\nretry_delay_ms = 1000\nretries_max = 20\n".into(),
        ..ShopOptions::default()
    })
    .await;
    let _parts = (shop.serve().await, shop.serve_vendors(), shop.work());
    let of_unknown = shop.order(&[("p3", 20)]).await;
    let of_nothing = shop.order(&[("nothing", 1)]).await;
    let ended = sync_as_process(&shop, &["--vendor", "vendorA"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let of_known = shop.order(&[("p1", 3)]).await;
    shop.order_with_status(&of_known, "confirmed").await;
    for id in [&of_unknown, &of_nothing] {
        let (_, order) = shop.get(&format!("/orders/{id}")).await;
        assert_eq!(order["status"], "pending");
    }
    shop.sync().await;
    shop.order_with_status(&of_unknown, "confirmed").await;
    let order = shop.order_with_status(&of_nothing, "rejected").await;
    assert_eq!(order["reason"]["code"], "unknown_product");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_processes_migrate_empty_databases_at_the_same_time_and_each_migration_runs_once() {
    let mut shop = Shop::new().await;
    let servers = Servers::get().await;
    for url in [
        shop.own_database_url().to_owned(),
        shop.database_url_of("vendorA").to_owned(),
        shop.database_url_of("vendorB").to_owned(),
    ] {
        let empty = servers.create_empty_database().await;
        // With the quotes: the name of one database begins with that of another.
        shop.reconfigure(|text| text.replace(&format!("{url:?}"), &format!("{empty:?}")));
    }
    let processes: Vec<_> = (0..5)
        .map(|_| shop.start(&["migrate", "--vendors"]))
        .collect();
    let mut ran = 0;
    for process in processes {
        let ended = process.ended().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ran += ended.stdout.matches(": ran ").count();
    }
    assert_eq!(ran, 3, "once for each database");
    let ended = shop.run(&["migrate", "--vendors"]).await;
    assert_eq!(ended.stdout.matches(": up to date").count(), 3, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_statistics_are_gathered_of_what_stands_in_lists_and_documents() {
    let shop = Shop::new().await;
    let gathered = shop
        .count(
            "SELECT count(*) AS n FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
             WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
               AND (t.typcategory = 'A' OR t.typname = 'jsonb') AND a.attstattarget <> 0",
        )
        .await;
    assert_eq!(gathered, 0, "ANALYZE counts their elements each time");
}

/// An update that is refused.
const UPDATE: &str = "00000000-0000-0000-0000-000000000003";

/// What breaks the rules of our schema, with an order that is there.
fn broken_rules(order: &str) -> Vec<String> {
    let update = |columns: &str, values: &str| {
        format!(
            "INSERT INTO stock_updates (id, order_id, created_at, {columns}) VALUES ('{UPDATE}', '{order}', now(), {values})"
        )
    };
    let with_update = |sql: &str| {
        let taken = update("product_id, vendor_id, delta", "'p1', 'vendorA', -2");
        format!("{taken}; {sql}")
    };
    let with_return = |sql: &str| {
        let taken = update("product_id, vendor_id, delta", "'p1', 'vendorA', -2");
        let returned = update(
            "product_id, vendor_id, delta, reverses",
            &format!("'p1', 'vendorA', 2, '{UPDATE}'"),
        )
        .replace(&format!("VALUES ('{UPDATE}'"), "VALUES (gen_random_uuid()");
        format!("{taken}; {returned}; {sql}")
    };
    let nobodys_order = update("product_id, vendor_id, delta", "'p1', 'vendorA', -2")
        .replace(order, "00000000-0000-0000-0000-000000000002");
    vec![
        "INSERT INTO installation (singleton) VALUES (false)".to_owned(),
        "INSERT INTO vendors (id) VALUES ('a/b')".into(),
        "UPDATE vendors SET completed_run = current_run + 1".into(),
        "UPDATE vendors SET last_sync_at = NULL".into(),
        "INSERT INTO stock (product_id, vendor_id, name, on_hand, first_on_hand, first_listed_at)
         VALUES ('p1', 'nobody', '', 1, 1, now())".into(),
        "INSERT INTO stock (product_id, vendor_id, name, on_hand, first_on_hand, first_listed_at)
         VALUES ('', 'vendorA', '', 1, 1, now())".into(),
        "DELETE FROM stock WHERE product_id = 'p1'; DELETE FROM vendors".into(),
        "UPDATE vendors SET id = 'other' WHERE id = 'vendorA'".into(),
        "UPDATE orders SET status = 'lost'".into(),
        "UPDATE orders SET status = 'confirmed'".into(),
        "UPDATE orders SET status = 'rejected', decided_at = now()".into(),
        "UPDATE orders SET status = 'cancelled'".into(),
        "UPDATE orders SET lines = '[]'".into(),
        update("product_id, vendor_id, delta", "'p1', 'vendorA', 0"),
        update("product_id, vendor_id, delta", "'p1', 'vendorA', 2"),
        nobodys_order,
        update("product_id, vendor_id, delta", "'p1', 'vendorB', -2"),
        update("product_id, vendor_id, delta, state", "'p1', 'vendorA', -2, 'applied'"),
        update("product_id, vendor_id, delta, reverses", "'p1', 'vendorA', 2, '00000000-0000-0000-0000-000000000004'"),
        // A take that stays has not turned.
        update("product_id, vendor_id, delta, turned_at", "'p1', 'vendorA', -2, now()"),
        "UPDATE stock SET product_id = 'p0' WHERE product_id = 'p1'".into(),
        "UPDATE orders SET id = gen_random_uuid()".into(),
        with_update("DELETE FROM orders"),
        with_update("DELETE FROM stock"),
        with_return("DELETE FROM stock_updates WHERE reverses IS NULL"),
        with_update("UPDATE stock_updates SET order_id = gen_random_uuid()"),
        "INSERT INTO vendor_changes VALUES ('p1', now(), 'vendorA', 1, 0)".into(),
        format!("INSERT INTO order_events VALUES ('{order}', now(), 'lost')"),
        format!("INSERT INTO order_events VALUES ('{order}', now(), 'push_failed')"),
        "INSERT INTO outbox (queue, message_id, body) VALUES ('elsewhere', gen_random_uuid(), '{}')".into(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_refuses_what_breaks_its_rules() {
    let shop = Shop::new().await;
    shop.sync().await;
    let order = "00000000-0000-0000-0000-000000000001";
    shop.run_here(&format!(
        "INSERT INTO orders (id, caller, lines, accepted_at) VALUES ('{order}', 'c', '[1]', now())"
    ))
    .await;
    let ours = broken_rules(order);
    let mut answers = Vec::new();
    for sql in &ours {
        answers.push(shop.try_here(sql).await.expect_err(sql));
    }
    for sql in [
        "UPDATE products SET stock = -1",
        "INSERT INTO stock_ledger (id, source, product_id, delta, outcome) VALUES (gen_random_uuid(), 's', 'p', -1, 'lost')",
        "INSERT INTO stock_ledger (id, source, product_id, delta, outcome) VALUES (gen_random_uuid(), 's', 'p', 1, 'applied')",
        "INSERT INTO stock_ledger (id, source, product_id, delta, reverses, outcome)
         VALUES (gen_random_uuid(), 's', 'p', 1, gen_random_uuid(), 'rejected')",
        "INSERT INTO stock_ledger (id, source, product_id, delta, outcome)
         SELECT '00000000-0000-0000-0000-000000000001', 's', 'p', -1, 'applied' FROM generate_series(1, 2)",
    ] {
        answers.push(shop.try_at("vendorA", sql).await.expect_err(sql));
    }
    insta::assert_snapshot!(answers.join("\n"), @r#"
    new row for relation "installation" violates check constraint "installation_singleton_check"
    new row for relation "vendors" violates check constraint "vendors_id_check"
    new row for relation "vendors" violates check constraint "vendors_check"
    new row for relation "vendors" violates check constraint "vendors_check1"
    product p1 is at vendor nobody, which does not exist
    new row for relation "stock" violates check constraint "stock_product_id_check"
    a vendor that has products stays
    a row of vendors keeps its name
    new row for relation "orders" violates check constraint "orders_status_check"
    new row for relation "orders" violates check constraint "orders_check1"
    new row for relation "orders" violates check constraint "orders_check"
    new row for relation "orders" violates check constraint "orders_check2"
    new row for relation "orders" violates check constraint "orders_lines_check"
    new row for relation "stock_updates" violates check constraint "stock_updates_delta_check"
    new row for relation "stock_updates" violates check constraint "stock_updates_check"
    update 00000000-0000-0000-0000-000000000003 names order 00000000-0000-0000-0000-000000000002, which does not exist
    update 00000000-0000-0000-0000-000000000003 names product p1 at vendor vendorB, which is not in stock
    new row for relation "stock_updates" violates check constraint "stock_updates_check1"
    update 00000000-0000-0000-0000-000000000003 reverses update 00000000-0000-0000-0000-000000000004, which does not exist
    new row for relation "stock_updates" violates check constraint "stock_updates_check3"
    a row of stock keeps its name
    a row of orders keeps its name
    a row of orders that an update names stays
    a row of stock that an update names stays
    a row of stock_updates that an update names stays
    a row of stock_updates keeps its name
    new row for relation "vendor_changes" violates check constraint "vendor_changes_delta_check"
    new row for relation "order_events" violates check constraint "order_events_event_check"
    new row for relation "order_events" violates check constraint "order_events_check"
    new row for relation "outbox" violates check constraint "outbox_queue_check"
    new row for relation "products" violates check constraint "products_stock_check"
    new row for relation "stock_ledger" violates check constraint "stock_ledger_outcome_check"
    new row for relation "stock_ledger" violates check constraint "stock_ledger_check"
    new row for relation "stock_ledger" violates check constraint "stock_ledger_check1"
    duplicate key value violates unique constraint "stock_ledger_pkey"
    "#);
}
