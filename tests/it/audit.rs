//! `stockctl audit`: it finds every kind of wrong, and nothing where all is right.

use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use stockctl::commands::work::WorkQueue;

use crate::support::{Shop, ShopOptions, eventually};

/// Runs it, and returns its exit code and its document without the durations.
async fn audit(shop: &Shop) -> (Option<i32>, Value) {
    let ended = shop.run(&["audit", "--json"]).await;
    let mut document: Value =
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    mask(&mut document);
    (ended.code, document)
}

fn mask(document: &mut Value) {
    document["duration_ms"] = json!("…");
    for check in document["checks"].as_array_mut().expect("a list") {
        check["duration_ms"] = json!("…");
    }
}

/// What was found, a line each: the check and the text that people read; ids are left out.
fn violations(document: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for check in document["checks"].as_array().expect("a list") {
        for violation in check["violations"].as_array().expect("a list") {
            let name = check["name"].as_str().expect("a name");
            lines.push(format!(
                "{name}: {}",
                violation["problem"].as_str().expect("a text")
            ));
        }
    }
    lines
}

fn check<'a>(document: &'a Value, name: &str) -> &'a Value {
    let checks = document["checks"].as_array().expect("a list");
    let found = checks.iter().find(|check| check["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {document}"))
}

async fn assert_clean(shop: &Shop) -> Value {
    let (code, document) = audit(shop).await;
    assert_eq!(
        (code, &document["clean"]),
        (Some(0), &json!(true)),
        "{document:#}"
    );
    document
}

/// Gives the shop a past, written by SQL: 600 orders of the last three weeks, some split, some rejected, some refused by
/// vendorA and served by vendorB, some cancelled, all settled and in the ledgers. The rules of the schema are taken away,
/// so that everything can be broken.
async fn with_past(options: ShopOptions) -> Shop {
    let shop = Shop::with(options).await;
    shop.sync().await;
    shop.run_here(
        "DO $$ DECLARE r record; BEGIN
             FOR r IN SELECT conrelid::regclass AS t, conname FROM pg_constraint
                      WHERE contype IN ('c', 'f') AND connamespace = 'public'::regnamespace
             LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', r.t, r.conname); END LOOP;
         END $$;
         CREATE FUNCTION id_at(at timestamptz, n int) RETURNS uuid IMMUTABLE LANGUAGE sql AS $$
             SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7000a000'
                 || lpad(to_hex(n), 12, '0'))::uuid $$;
         CREATE TABLE past AS SELECT n, now() - interval '20 days' + n * interval '40 minutes' AS at,
             CASE WHEN n % 10 = 3 THEN 'cancelled' WHEN n % 10 = 5 THEN 'rejected' ELSE 'confirmed' END AS status
             FROM generate_series(1, 600) n;
         CREATE FUNCTION o(order_number int) RETURNS uuid LANGUAGE sql AS $$
             SELECT id_at(at, n) FROM past WHERE n = order_number $$;
         CREATE FUNCTION u(order_number int, k int) RETURNS uuid LANGUAGE sql AS $$
             SELECT id_at(at, n * 10 + k) FROM past WHERE n = order_number $$;
         INSERT INTO orders (id, caller, lines, status, reason, accepted_at, decided_at, cancelled_at)
             SELECT id_at(at, n), 'past',
                 CASE WHEN n % 2 = 0 THEN '[{\"productId\": \"p1\", \"quantity\": 2}]'::jsonb
                 ELSE '[{\"productId\": \"p1\", \"quantity\": 1}, {\"productId\": \"p2\", \"quantity\": 3}]' END,
                 status, CASE WHEN status = 'rejected' THEN '{\"code\": \"unknown_product\"}'::jsonb END,
                 at, at + interval '1 s', CASE WHEN status = 'cancelled' THEN at + interval '1 minute' END
             FROM past;
         INSERT INTO stock_updates (id, order_id, product_id, vendor_id, delta, state, created_at, acknowledged_at, closed_at, turned_at)
             SELECT id_at(at, n * 10 + k), id_at(at, n), product, vendor, delta, state, at + interval '1 s',
                 CASE WHEN state = 'applied' THEN at + interval '2 s' END, at + interval '3 s',
                 CASE WHEN state = 'rejected' THEN at + interval '3 s' END
             FROM past, LATERAL (VALUES
                 (1, 'p1', 'vendorA', CASE WHEN n % 2 = 0 THEN -2 ELSE -1 END, 'applied', true),
                 (2, 'p2', 'vendorA', -1, 'applied', n % 2 = 1),
                 (3, 'p2', 'vendorB', -2, 'applied', n % 2 = 1 AND n % 7 > 0),
                 (4, 'p2', 'vendorA', -2, 'rejected', n % 2 = 1 AND n % 7 = 0),
                 (5, 'p2', 'vendorB', -2, 'applied', n % 2 = 1 AND n % 7 = 0)
             ) AS u(k, product, vendor, delta, state, is_there)
             WHERE is_there AND status <> 'rejected';
         INSERT INTO stock_updates (id, order_id, product_id, vendor_id, delta, reverses, state, created_at, acknowledged_at, closed_at, turned_at)
             SELECT id_at(created_at + interval '1 minute', (row_number() OVER (ORDER BY id))::int), order_id, product_id,
                 vendor_id, -delta, id, 'applied', created_at + interval '1 minute', created_at + interval '2 minutes',
                 created_at + interval '3 minutes', created_at + interval '2 minutes'
             FROM stock_updates u WHERE state = 'applied'
               AND EXISTS (SELECT FROM orders o WHERE o.id = u.order_id AND o.status = 'cancelled');
         UPDATE stock s SET first_on_hand = on_hand - (SELECT coalesce(sum(delta), 0) FROM stock_updates u
             WHERE (u.product_id, u.vendor_id) = (s.product_id, s.vendor_id) AND (delta < 0) = (turned_at IS NULL))",
    )
    .await;
    for vendor in ["vendorA", "vendorB"] {
        let entries = shop
            .text(&format!(
                "SELECT json_agg(json_build_object('id', id, 'source', (SELECT i.id::text FROM installation i),
                     'product_id', product_id, 'delta', delta, 'reverses', reverses, 'outcome', state,
                     'recorded_at', created_at))::text AS t
                 FROM stock_updates WHERE vendor_id = '{vendor}'"
            ))
            .await;
        shop.run_at(
            vendor,
            &format!(
                "INSERT INTO stock_ledger SELECT * FROM json_populate_recordset(NULL::stock_ledger, '{entries}');
                 DROP INDEX stock_ledger_reverses;
                 ALTER TABLE stock_ledger DROP CONSTRAINT stock_ledger_pkey;
                 CREATE INDEX ON stock_ledger (id)"
            ),
        )
        .await;
    }
    shop
}

/// A way to break something, and to mend it.
struct Plant {
    /// `here`, or a vendor.
    at: &'static str,
    break_it: &'static str,
    mend_it: &'static str,
    /// Each: the check, and the beginning of what it says.
    said: &'static [&'static str],
}

fn here(break_it: &'static str, mend_it: &'static str, said: &'static [&'static str]) -> Plant {
    Plant {
        at: "here",
        break_it,
        mend_it,
        said,
    }
}

fn plants_in_stock() -> Vec<Plant> {
    vec![
        here(
            "UPDATE stock SET open_delta = -1, on_hand = 21 WHERE product_id = 'p3'",
            "UPDATE stock SET open_delta = 0, on_hand = 20 WHERE product_id = 'p3'",
            &["open_figures: open_delta is -1, and its open updates add up to 0"],
        ),
        // What is missing at one place and too much at another shows in no total.
        here(
            "UPDATE stock SET open_delta = CASE WHEN product_id = 'p1' THEN -1 ELSE 1 END,
                 on_hand = CASE WHEN product_id = 'p1' THEN 11 ELSE 19 END WHERE product_id <> 'p2'",
            "UPDATE stock SET open_delta = 0, on_hand = CASE WHEN product_id = 'p1' THEN 10 ELSE 20 END WHERE product_id <> 'p2'",
            &[
                "open_figures: open_delta is -1, and its open updates add up to 0",
                "open_figures: open_delta is 1, and its open updates add up to 0",
            ],
        ),
        here(
            "UPDATE stock SET on_hand = 21 WHERE product_id = 'p3'",
            "UPDATE stock SET on_hand = 20 WHERE product_id = 'p3'",
            &["movements: on hand 21 and open 0 make 21, but first 20, the vendor's changes 0 and our updates 0 make 20"],
        ),
        here(
            "INSERT INTO vendor_changes VALUES ('p9', now(), 'vendorA', 1, 9)",
            "DELETE FROM vendor_changes WHERE product_id = 'p9'",
            &["movements: there is no stock row, but the vendor's changes 9 and our updates 0 make 9"],
        ),
        here(
            "UPDATE stock SET on_hand = -5 WHERE product_id = 'p3';
             INSERT INTO vendor_changes VALUES ('p3', now(), 'vendorB', 1, -4), ('p3', now(), 'vendorB', 2, 2)",
            "UPDATE stock SET on_hand = 20 WHERE product_id = 'p3';
             DELETE FROM vendor_changes WHERE product_id = 'p3'",
            &[
                "movements: on hand -5 and open 0 make -5, but first 20, the vendor's changes -2",
                "oversold: available is -5, and the vendor's own changes explain no less than -4",
            ],
        ),
        here(
            "UPDATE stock_updates SET vendor_id = 'vendorB' WHERE id = u(100, 1)",
            "UPDATE stock_updates SET vendor_id = 'vendorA' WHERE id = u(100, 1)",
            &[
                "movements: there is no stock row, but the vendor's changes 0 and our updates -2 make -2",
                "movements: on hand 10 and open 0 make 10",
                "ledgers: the ledger has it, but it is vendor vendorB's",
                "ledgers: it is applied here, and not in the ledger",
            ],
        ),
    ]
}

fn plants_in_lines() -> Vec<Plant> {
    const MEND: &str =
        "UPDATE orders SET lines = '[{\"productId\": \"p1\", \"quantity\": 2}]' WHERE id = o(100)";
    vec![
        here(
            "UPDATE orders SET lines = '[{\"productId\": \"p1\", \"quantity\": 3}]' WHERE id = o(100)",
            MEND,
            &["order_lines: it is confirmed: 3 to be taken, 2 taken"],
        ),
        here(
            "UPDATE orders SET lines = '[{\"productId\": \"p2\", \"quantity\": 2}]' WHERE id = o(100)",
            MEND,
            &[
                "order_lines: it is confirmed: 0 to be taken, 2 taken",
                "order_lines: it is confirmed: 2 to be taken, 0 taken",
            ],
        ),
        // More than any number of ours can hold, and no number at all.
        here(
            "UPDATE orders SET lines = '[{\"productId\": \"p1\", \"quantity\": 13000000000000000000}]' WHERE id = o(100)",
            MEND,
            &["order_lines: it is confirmed: 13000000000000000000 to be taken, 2 taken"],
        ),
        here(
            "UPDATE orders SET lines = '[{\"productId\": \"p1\", \"quantity\": \"two\"}]' WHERE id = o(100)",
            MEND,
            &["order_lines: it is confirmed: 0 to be taken, 2 taken"],
        ),
        // Taken for one order instead of another.
        here(
            "UPDATE stock_updates SET order_id = o(102) WHERE id = u(100, 1)",
            "UPDATE stock_updates SET order_id = o(100) WHERE id = u(100, 1)",
            &[
                "order_lines: it is confirmed: 2 to be taken, 0 taken",
                "order_lines: it is confirmed: 2 to be taken, 4 taken",
            ],
        ),
        here(
            "UPDATE stock_updates SET delta = -9000000000000 WHERE id = u(101, 3)",
            "UPDATE stock_updates SET delta = -2 WHERE id = u(101, 3)",
            &[
                "movements: on hand 5 and open 0 make 5",
                "order_lines: it is confirmed: 3 to be taken, 9000000000001 taken",
                "ledgers: it is -9000000000000 of p2, in the ledger -2 of p2",
            ],
        ),
        here(
            "UPDATE orders SET status = 'confirmed', cancelled_at = NULL WHERE id = o(103)",
            "UPDATE orders SET status = 'cancelled', cancelled_at = decided_at WHERE id = o(103)",
            &[
                "order_lines: it is confirmed: 1 to be taken, 0 taken",
                "order_lines: it is confirmed: 3 to be taken, 0 taken",
                "order_lines: gives back 1 units of an order that is confirmed",
                "order_lines: gives back 1 units of an order that is confirmed",
                "order_lines: gives back 2 units of an order that is confirmed",
            ],
        ),
        // Its updates undo each other, so that no sum shows them.
        here(
            "UPDATE orders SET status = 'rejected', cancelled_at = NULL, reason = '{\"code\": \"unknown_product\"}' WHERE id = o(103)",
            "UPDATE orders SET status = 'cancelled', cancelled_at = decided_at, reason = NULL WHERE id = o(103)",
            &[
                "order_lines: 1 units, applied, for an order that is rejected and was never confirmed",
                "order_lines: 1 units, applied, for an order that is rejected and was never confirmed",
                "order_lines: 2 units, applied, for an order that is rejected and was never confirmed",
            ],
        ),
        here(
            "UPDATE stock_updates SET reverses = u(100, 1) WHERE reverses = u(103, 3)",
            "UPDATE stock_updates SET reverses = u(103, 3) WHERE reverses = u(100, 1)",
            &[
                "order_lines: gives back 2 units, and its take is -2 of p1 at vendorA for order",
                "ledgers: it is 2 of p2 for take",
            ],
        ),
        here(
            "UPDATE orders SET id = gen_random_uuid(), reference = '203' WHERE id = o(203)",
            "UPDATE orders SET id = o(203) WHERE reference = '203'",
            &[
                "order_lines: 1 units, applied, for an order that is not there",
                "order_lines: 1 units, applied, for an order that is not there",
                "order_lines: -2 units, rejected, for an order that is not there",
                "order_lines: 2 units, applied, for an order that is not there",
            ],
        ),
    ]
}

fn plants_in_statuses() -> Vec<Plant> {
    vec![
        here(
            "UPDATE orders SET decided_at = NULL WHERE id = o(100)",
            "UPDATE orders SET decided_at = accepted_at WHERE id = o(100)",
            &["order_status: is confirmed, yet no time says when it was decided"],
        ),
        here(
            "UPDATE orders SET cancelled_at = now() WHERE id = o(100)",
            "UPDATE orders SET cancelled_at = NULL WHERE id = o(100)",
            &["order_status: is confirmed, yet was cancelled at"],
        ),
        here(
            "UPDATE orders SET cancelled_at = decided_at - interval '1 hour' WHERE id = o(103)",
            "UPDATE orders SET cancelled_at = decided_at WHERE id = o(103)",
            &["order_status: was cancelled at"],
        ),
        here(
            "UPDATE orders SET cancelled_at = NULL WHERE id = o(103)",
            "UPDATE orders SET cancelled_at = decided_at WHERE id = o(103)",
            &["order_status: is cancelled, yet no time says when"],
        ),
        here(
            "UPDATE orders SET reason = NULL WHERE id = o(105)",
            "UPDATE orders SET reason = '{\"code\": \"unknown_product\"}' WHERE id = o(105)",
            &["order_status: is rejected, and its reason is none"],
        ),
        here(
            "UPDATE orders SET reason = '{\"code\": \"unknown_product\"}' WHERE id = o(100)",
            "UPDATE orders SET reason = NULL WHERE id = o(100)",
            &["order_status: is confirmed, yet has the reason"],
        ),
        here(
            "UPDATE orders SET status = 'done' WHERE id = o(105)",
            "UPDATE orders SET status = 'rejected' WHERE id = o(105)",
            &["order_status: has the status done"],
        ),
        // A pending one that was decided.
        here(
            "UPDATE orders SET status = 'pending', accepted_at = now(), reason = NULL WHERE id = o(105)",
            "UPDATE orders SET status = 'rejected', reason = '{\"code\": \"unknown_product\"}' WHERE id = o(105)",
            &["order_status: is pending, yet was decided at"],
        ),
        // It failed, and no history tells of it.
        here(
            "UPDATE orders SET status = 'failed', decided_at = NULL, reason = '{\"code\": \"processing_failed\"}' WHERE id = o(105)",
            "UPDATE orders SET status = 'rejected', decided_at = accepted_at, reason = '{\"code\": \"unknown_product\"}' WHERE id = o(105)",
            &["order_status: is failed, and its history tells of 0 failures and 0 replays"],
        ),
        here(
            "INSERT INTO order_events VALUES (o(100), now(), 'failed')",
            "DELETE FROM order_events",
            &["order_status: is confirmed, and its history tells of 1 failures and 0 replays"],
        ),
    ]
}

fn plants_at_vendors() -> Vec<Plant> {
    let at = |at, break_it, mend_it, said| Plant {
        at,
        ..here(break_it, mend_it, said)
    };
    vec![
        at(
            "vendorA",
            "CREATE TABLE aside AS SELECT * FROM stock_ledger WHERE outcome = 'applied' ORDER BY id LIMIT 3;
             DELETE FROM stock_ledger WHERE id IN (SELECT id FROM aside)",
            "INSERT INTO stock_ledger SELECT * FROM aside; DROP TABLE aside",
            &["ledgers: it is applied here, and not in the ledger"; 3],
        ),
        at(
            "vendorA",
            "INSERT INTO stock_ledger SELECT * FROM stock_ledger ORDER BY id DESC LIMIT 1",
            "DELETE FROM stock_ledger a USING stock_ledger b WHERE a.id = b.id AND a.ctid > b.ctid",
            &["ledgers: the ledger has it 2 times"],
        ),
        at(
            "vendorB",
            "INSERT INTO stock_ledger SELECT '01900000-0000-7000-8000-000000000001', source, 'p2', -7, NULL, 'applied'
                 FROM stock_ledger LIMIT 1",
            "DELETE FROM stock_ledger WHERE delta = -7",
            &["ledgers: the ledger has it as applied (-7 of p2), and we know no such update"],
        ),
        // A return in vain is in no digest.
        at(
            "vendorB",
            "INSERT INTO stock_ledger SELECT '01900000-0000-7000-8000-000000000001', source, 'p2', 7,
                 '01900000-0000-7000-8000-000000000002', 'void' FROM stock_ledger LIMIT 1",
            "DELETE FROM stock_ledger WHERE delta = 7",
            &["ledgers: the ledger has it as void (7 of p2), and we know no such update"],
        ),
        at(
            "vendorA",
            "UPDATE stock_ledger SET delta = -3 WHERE id = (SELECT id FROM stock_ledger WHERE delta = -1 ORDER BY id LIMIT 1)",
            "UPDATE stock_ledger SET delta = -1 WHERE delta = -3",
            &["ledgers: it is -1 of p1, in the ledger -3 of p1"],
        ),
        at(
            "vendorA",
            "UPDATE stock_ledger SET product_id = 'p7' WHERE id = (SELECT id FROM stock_ledger WHERE product_id = 'p1' ORDER BY id LIMIT 1)",
            "UPDATE stock_ledger SET product_id = 'p1' WHERE product_id = 'p7'",
            &["ledgers: it is -1 of p1, in the ledger -1 of p7"],
        ),
        at(
            "vendorA",
            "UPDATE stock_ledger SET outcome = 'applied', source = source, recorded_at = 'epoch' WHERE id = (SELECT id FROM stock_ledger WHERE outcome = 'rejected' ORDER BY id LIMIT 1)",
            "UPDATE stock_ledger SET outcome = 'rejected', recorded_at = now() WHERE recorded_at = 'epoch'",
            &["ledgers: it is rejected here, in the ledger applied"],
        ),
        at(
            "vendorA",
            "UPDATE stock_ledger SET outcome = 'void', recorded_at = 'epoch' WHERE id = (SELECT id FROM stock_ledger WHERE outcome = 'applied' AND delta < 0 ORDER BY id LIMIT 1)",
            "UPDATE stock_ledger SET outcome = 'applied', recorded_at = now() WHERE recorded_at = 'epoch'",
            &["ledgers: it is applied here, in the ledger void"],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_clean_run_says() {
    let shop = with_past(ShopOptions::default()).await;
    let ended = shop.run(&["audit"]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    let text: Vec<&str> = ended.stdout.lines().collect();
    let (last, checks) = text.split_last().expect("some lines");
    insta::assert_snapshot!(checks.join("\n"), @"
    open_figures  ok       4 stock rows, 0 unclosed updates
    movements     ok       4 stock rows, 0 vendor changes, 1234 updates
    oversold      ok       4 stock rows
    order_lines   ok       600 orders, 1234 updates
    order_status  ok       600 orders
    ledgers       ok       2 vendors, 1234 ledger entries
    overdue       ok       0 pending orders, 0 open updates
    outbox        ok       0 outbox rows
    ");
    assert!(
        last.starts_with("clean in ") && last.ends_with(" ms"),
        "{last}"
    );
    let mut document = assert_clean(&shop).await;
    // A line for each check, and one for what is beside them.
    let checks = std::mem::replace(&mut document["checks"], json!([]));
    let checks = checks.as_array().expect("a list").iter();
    let lines: Vec<String> = checks.chain([&document]).map(Value::to_string).collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    {"duration_ms":"…","failures":[],"looked_at":{"stock_rows":4,"unclosed_updates":0},"name":"open_figures","notes":[],"violations":[],"violations_total":0}
    {"duration_ms":"…","failures":[],"looked_at":{"stock_rows":4,"updates":1234,"vendor_changes":0},"name":"movements","notes":[],"violations":[],"violations_total":0}
    {"duration_ms":"…","failures":[],"looked_at":{"stock_rows":4},"name":"oversold","notes":[],"violations":[],"violations_total":0}
    {"duration_ms":"…","failures":[],"looked_at":{"orders":600,"updates":1234},"name":"order_lines","notes":[],"violations":[],"violations_total":0}
    {"duration_ms":"…","failures":[],"looked_at":{"orders":600},"name":"order_status","notes":[],"violations":[],"violations_total":0}
    {"duration_ms":"…","failures":[],"looked_at":{"ledger_entries":1234,"vendors":2},"name":"ledgers","notes":[],"violations":[],"violations_total":0}
    {"duration_ms":"…","failures":[],"looked_at":{"open_updates":0,"pending_orders":0},"name":"overdue","notes":[],"violations":[],"violations_total":0}
    {"duration_ms":"…","failures":[],"looked_at":{"outbox_rows":0},"name":"outbox","notes":[],"violations":[],"violations_total":0}
    {"checks":[],"clean":true,"duration_ms":"…","failures":[]}
    "#);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_wrong_is_found_and_named() {
    let shop = with_past(ShopOptions::default()).await;
    let document = assert_clean(&shop).await;
    assert_eq!(check(&document, "order_lines")["looked_at"]["orders"], 600);
    let updates = shop.count("SELECT count(*) AS n FROM stock_updates").await;
    let compared = &check(&document, "ledgers")["looked_at"]["ledger_entries"];
    assert_eq!(compared, updates, "all of it was compared");
    let plants = [
        plants_in_stock(),
        plants_in_lines(),
        plants_in_statuses(),
        plants_at_vendors(),
    ];
    let mut wrong = Vec::new();
    shop.run_here(
        "ALTER TABLE stock_updates DISABLE TRIGGER name_stays; ALTER TABLE orders DISABLE TRIGGER name_stays;
         ALTER TABLE stock DISABLE TRIGGER name_stays",
    )
    .await;
    for plant in plants.into_iter().flatten() {
        let run = async |sql: &str| match plant.at {
            "here" => shop.run_here(sql).await,
            vendor => shop.run_at(vendor, sql).await,
        };
        run(plant.break_it).await;
        let (code, document) = audit(&shop).await;
        run(plant.mend_it).await;
        let found = violations(&document);
        let mut more = found.clone();
        let is_said = |said: &&str| {
            let at = more.iter().position(|text| text.starts_with(said));
            at.map(|at| more.remove(at)).is_some()
        };
        let all_said = plant.said.iter().all(is_said);
        if code != Some(5) || document["clean"] != false || !all_said || !more.is_empty() {
            wrong.push(format!(
                "{}\nends with {code:?}: {found:#?}",
                plant.break_it
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_clean(&shop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_violation_carries_the_ids_of_what_it_concerns_and_their_number_is_bounded() {
    let shop = with_past(ShopOptions::default()).await;
    let id = shop.text("SELECT u(100, 1)::text AS t").await;
    shop.run_at(
        "vendorA",
        &format!("DELETE FROM stock_ledger WHERE id = '{id}'"),
    )
    .await;
    let (_, document) = audit(&shop).await;
    let order = shop.text("SELECT o(100)::text AS t").await;
    assert_eq!(
        check(&document, "ledgers")["violations"],
        json!([{
            "order_id": order, "update_id": id, "product_id": "p1", "vendor_id": "vendorA",
            "problem": "it is applied here, and not in the ledger",
        }])
    );
    let ended = shop.run(&["audit"]).await;
    assert_eq!(ended.code, Some(5));
    assert_eq!(ended.stderr, "error: the audit found 1 violation\n");
    let line = format!(
        "  order {order}, update {id}, product p1, vendor vendorA: it is applied here, and not in the ledger"
    );
    assert!(
        ended.stdout.lines().any(|one| one == line),
        "{}",
        ended.stdout
    );

    shop.run_at("vendorA", "DELETE FROM stock_ledger").await;
    shop.run_here("UPDATE orders SET decided_at = NULL").await;
    let (code, document) = audit(&shop).await;
    assert_eq!(code, Some(5));
    let missing = shop
        .count("SELECT count(*) AS n FROM stock_updates WHERE vendor_id = 'vendorA'")
        .await;
    for (name, total) in [("ledgers", missing), ("order_status", 600 - 60)] {
        let found = check(&document, name);
        assert_eq!(found["violations_total"], total, "{name}");
        assert_eq!(found["violations"].as_array().expect("a list").len(), 100);
    }
    let ended = shop.run(&["audit"]).await;
    let more = format!("  and {} more", missing - 100);
    assert!(
        ended.stdout.lines().any(|one| one == more),
        "{}",
        ended.stdout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_may_drop_what_was_closed_over_30_days_ago_and_nothing_younger() {
    let shop = with_past(ShopOptions::default()).await;
    // The older half, and with it parts of which all and parts of which some are dropped.
    shop.run_here(
        "UPDATE stock_updates SET closed_at = now() - interval '31 days'
         WHERE created_at < now() - interval '10 days'",
    )
    .await;
    let dropped = shop
        .text("SELECT string_agg(quote_literal(id), ',') AS t FROM stock_updates WHERE closed_at < now() - interval '30 days'")
        .await;
    for vendor in ["vendorA", "vendorB"] {
        shop.run_at(
            vendor,
            &format!("DELETE FROM stock_ledger WHERE id IN ({dropped})"),
        )
        .await;
    }
    assert_clean(&shop).await;
    shop.run_here(
        "UPDATE stock_updates SET closed_at = now() - interval '29 days' WHERE id = (SELECT min(id::text)::uuid FROM stock_updates)",
    )
    .await;
    let (code, document) = audit(&shop).await;
    assert_eq!(code, Some(5));
    assert_eq!(
        violations(&document),
        ["ledgers: it is applied here, and not in the ledger"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_installations_entries_are_its_own_business() {
    let shop = with_past(ShopOptions::default()).await;
    shop.run_at(
        "vendorA",
        "INSERT INTO stock_ledger (id, source, product_id, delta, outcome)
         SELECT gen_random_uuid(), 'another', 'p1', -1, 'applied' FROM generate_series(1, 50);
         INSERT INTO stock_ledger SELECT id, 'another', product_id, delta, reverses, outcome, recorded_at
         FROM stock_ledger WHERE source <> 'another' LIMIT 1",
    )
    .await;
    assert_clean(&shop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_answer_yet_may_be_in_the_ledger_or_not() {
    let shop = with_past(ShopOptions::default()).await;
    // Of the past, so that it is among what is compared by digests; the message is in the dead-letter queue.
    let open = "state = 'open', closed_at = NULL, acknowledged_at = NULL, dead_lettered_at = now()";
    shop.run_here(&format!(
        "UPDATE stock_updates SET {open} WHERE id IN (u(100, 1), u(102, 1));
         INSERT INTO listed_updates (vendor_id, update_ids) VALUES ('vendorA', ARRAY[u(100, 1), u(102, 1)]);
         UPDATE stock SET open_delta = -4, on_hand = on_hand + 4 WHERE product_id = 'p1'"
    ))
    .await;
    let one = shop.text("SELECT u(100, 1)::text AS t").await;
    shop.run_at(
        "vendorA",
        &format!("DELETE FROM stock_ledger WHERE id = '{one}'"),
    )
    .await;
    assert_clean(&shop).await;
    shop.run_at(
        "vendorA",
        "UPDATE stock_ledger SET delta = -5 WHERE delta = -2 AND product_id = 'p1'",
    )
    .await;
    let (code, document) = audit(&shop).await;
    assert_eq!(code, Some(5));
    let of_open = shop.text("SELECT u(102, 1)::text AS t").await;
    let text = check(&document, "ledgers").to_string();
    assert!(text.contains(&of_open), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_is_clean_after_all_that_can_happen_to_it() {
    let mut shop = Shop::with(ShopOptions {
        config: "[orders]\nretries_max = 0\nretry_delay_ms = 200\n\
                 [vendor_sync]\nretries_max = 0\nretry_delay_ms = 200\ntimeout_ms = 300\n"
            .into(),
        ..ShopOptions::default()
    })
    .await;
    let (_api, work) = (shop.serve().await, shop.work());
    // An order that fails, since nothing was synced; its replay, whose push fails, since no vendor answers; its replay.
    let id = shop.order(&[("p1", 1)]).await;
    shop.order_with_status(&id, "failed").await;
    let stays_failed = shop.order(&[("p1", 1)]).await;
    shop.order_with_status(&stays_failed, "failed").await;
    assert_clean(&shop).await;
    shop.sync().await;
    replay(&shop, "orders_dlq").await;
    let is_failed = |order: &Value| order["vendorSync"] == "failed";
    shop.order_where(&id, "its push fails", is_failed).await;
    assert_clean(&shop).await;
    // From here on, what a busy machine delays is tried again.
    work.stop().await;
    shop.reconfigure(|text| text.replace("retries_max = 0", "retries_max = 20"));
    shop.reconfigure(|text| text.replace("timeout_ms = 300", "timeout_ms = 2000"));
    let (_vendors, _work) = (shop.serve_vendors(), shop.work());
    replay(&shop, "vendor_sync_dlq").await;
    shop.order_told(&id).await;
    // A split, cancelled; rejections for want of stock and of a product.
    let split = shop.order(&[("p2", 18)]).await;
    shop.order_told(&split).await;
    cancel(&shop, &split).await;
    shop.order_told(&split).await;
    for line in [("p1", 100), ("nothing", 1)] {
        let rejected = shop.order(&[line]).await;
        shop.order_with_status(&rejected, "rejected").await;
    }
    shop.sync().await;
    // The vendor sold what we take: another serves it, and then nobody can.
    shop.run_at("vendorA", "UPDATE products SET stock = 2 WHERE id = 'p2'")
        .await;
    let elsewhere = shop.order(&[("p2", 4)]).await;
    shop.order_told(&elsewhere).await;
    assert_clean(&shop).await;
    shop.run_at("vendorA", "UPDATE products SET stock = 0 WHERE id = 'p1'")
        .await;
    let nowhere = shop.order(&[("p1", 3), ("p3", 2)]).await;
    shop.order_with_status(&nowhere, "cancelled").await;
    shop.order_told(&nowhere).await;
    // The vendor sells below what we hold, delists, and restocks.
    let held = shop.order(&[("p3", 5)]).await;
    shop.order_told(&held).await;
    shop.run_at("vendorB", "UPDATE products SET stock = 0 WHERE id = 'p3'")
        .await;
    shop.sync().await;
    assert_clean(&shop).await;
    shop.run_at("vendorB", "DELETE FROM products WHERE id = 'p3'")
        .await;
    shop.sync().await;
    shop.run_at("vendorB", "INSERT INTO products VALUES ('p3', 'p3', 50)")
        .await;
    shop.sync().await;
    shop.settled().await;
    assert_clean(&shop).await;
}

async fn replay(shop: &Shop, queue: &str) {
    shop.dead_letters(queue, 1).await;
    let path = format!("/admin/dead-letters/{queue}/replay");
    let (status, answer) = shop.post(&path, json!({"limit": 1})).await;
    assert_eq!(status, 200, "{answer}");
}

async fn cancel(shop: &Shop, id: &str) {
    let (status, answer) = shop.post(&format!("/orders/{id}/cancel"), json!({})).await;
    assert!(status == 200 || status == 409, "{status} {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_at_work_raises_no_false_alarm() {
    /// At least so many, and until it was looked at so often meanwhile.
    const ORDERS: usize = 600;
    const ROUNDS: usize = 4;
    const CALLERS: usize = 4;
    let shop = Shop::with(ShopOptions {
        vendors: vec![
            ("vendorA", vec![("p1", 100_000), ("p2", 40)]),
            ("vendorB", vec![("p2", 100_000), ("p3", 60)]),
        ],
        config: "[orders]\nretry_delay_ms = 200\n[vendor_sync]\nretry_delay_ms = 200\n[sync]\nschedule = \"* * * * * *\"\n"
            .into(),
    })
    .await;
    let _parts = (shop.open().await, shop.sync_by_schedule());
    let watch = shop.start(&["audit", "--json", "--watch", "1"]);
    let ordered = AtomicUsize::new(0);
    let caller = async || {
        loop {
            let n = ordered.fetch_add(1, Ordering::Relaxed);
            if n >= ORDERS && watch.stdout_so_far().lines().count() >= ROUNDS {
                return;
            }
            assert!(n < 100 * ORDERS, "nobody looks");
            let lines: &[(&str, i64)] = match n % 5 {
                0 => &[("p1", 1)],
                1 => &[("p1", 1), ("p2", 2)],
                2 => &[("p2", 3)],
                3 => &[("p3", 1)],
                _ => &[("p1", 2), ("p2", 1), ("p3", 1)],
            };
            let id = shop.order(lines).await;
            if n.is_multiple_of(4) {
                cancel(&shop, &id).await;
            }
            // The vendors sell and restock what we take.
            if n.is_multiple_of(50) {
                shop.run_at(
                    "vendorA",
                    "UPDATE products SET stock = CASE WHEN stock < 20 THEN stock + 30 ELSE stock / 2 END WHERE id = 'p2'",
                )
                .await;
                shop.run_at(
                    "vendorB",
                    "UPDATE products SET stock = stock * 9 / 10 WHERE id = 'p3'",
                )
                .await;
            }
        }
    };
    let callers: [_; CALLERS] = std::array::from_fn(|_| caller());
    futures_util::future::join_all(callers).await;
    shop.settled().await;
    watch.signal(Signal::SIGTERM);
    let ended = watch.ended().await;
    let rounds: Vec<Value> = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("a document a line"))
        .collect();
    for round in &rounds {
        assert_eq!(round["clean"], true, "{round:#}");
    }
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(rounds.len() > 1, "it looked while there was work");
    assert_clean(&shop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_without_a_ledger_is_passed_over_and_that_is_said() {
    let mut shop = Shop::new().await;
    // The vendor's own API writes one all the same.
    let _vendors = shop.serve_vendors();
    let url = shop.database_url_of("vendorB").to_owned();
    shop.reconfigure(|text| {
        let key = format!("database_url = \"{url}\"");
        text.replace(&key, &format!("{key}\nledger = false"))
    });
    shop.sync().await;
    let _parts = (shop.serve().await, shop.work());
    let id = shop.order(&[("p2", 18)]).await;
    shop.order_told(&id).await;
    shop.run_at("vendorB", "DROP TABLE stock_ledger").await;
    let document = assert_clean(&shop).await;
    let ledgers = check(&document, "ledgers");
    assert_eq!(
        (&ledgers["notes"], &ledgers["looked_at"]["vendors"]),
        (
            &json!(["vendor vendorB has no ledger: not compared"]),
            &json!(1)
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_that_cannot_be_reached_ends_with_4_and_the_rest_is_checked() {
    let mut shop = with_past(ShopOptions::default()).await;
    let url = shop.database_url_of("vendorA").to_owned();
    shop.reconfigure(|text| text.replace(&url, "postgres://u:p@127.0.0.1:1/vendoradb"));
    let (code, document) = audit(&shop).await;
    assert_eq!(
        (code, &document["clean"]),
        (Some(4), &json!(false)),
        "{document:#}"
    );
    let ledgers = check(&document, "ledgers");
    insta::assert_json_snapshot!(ledgers["failures"], @r#"
    [
      "vendor vendorA: its ledger was not compared: PostgreSQL at 127.0.0.1:1/vendoradb cannot be reached: error connecting to server: Connection refused (os error 111)"
    ]
    "#);
    assert_eq!(ledgers["looked_at"]["vendors"], 1);
    assert!(ledgers["looked_at"]["ledger_entries"].as_u64() > Some(100));
    // A violation says more than what could not be looked at.
    shop.run_at(
        "vendorB",
        "DELETE FROM stock_ledger WHERE id IN (SELECT id FROM stock_ledger LIMIT 1)",
    )
    .await;
    let (code, _) = audit(&shop).await;
    assert_eq!(code, Some(5));
    // A vendor that answers, and has not what is asked for.
    shop.run_at("vendorB", "DROP TABLE stock_ledger").await;
    let (code, document) = audit(&shop).await;
    assert_eq!(code, Some(4));
    insta::assert_json_snapshot!(check(&document, "ledgers")["failures"][1], @r#""vendor vendorB: its ledger was not compared: PostgreSQL refused a statement: relation \"stock_ledger\" does not exist""#);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_our_own_database_nothing_is_known() {
    let mut shop = Shop::new().await;
    let url = shop.own_database_url().to_owned();
    shop.reconfigure(|text| text.replace(&url, "postgres://u:p@127.0.0.1:1/ordersdb"));
    let ended = shop.run(&["audit"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(4), ""));
    insta::assert_snapshot!(ended.stderr, @"error: PostgreSQL at 127.0.0.1:1/ordersdb cannot be reached: error connecting to server: Connection refused (os error 111)");
    let (code, document) = audit(&shop).await;
    assert_eq!(code, Some(4));
    insta::assert_json_snapshot!(document, @r#"
    {
      "checks": [],
      "clean": false,
      "duration_ms": "…",
      "failures": [
        "PostgreSQL at 127.0.0.1:1/ordersdb cannot be reached: error connecting to server: Connection refused (os error 111)"
      ]
    }
    "#);
    let watch = shop.start(&["audit", "--watch", "1"]);
    watch.writes("127.0.0.1:1/ordersdb cannot be reached").await;
    watch.signal(Signal::SIGINT);
    assert_eq!(watch.ended().await.code, Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_saw_a_violation_ends_with_5_though_it_was_mended() {
    let shop = with_past(ShopOptions::default()).await;
    shop.run_here("UPDATE stock SET on_hand = on_hand + 1 WHERE product_id = 'p3'")
        .await;
    let watch = shop.start(&["audit", "--watch", "1"]);
    watch
        .writes("movements: 1 violated, first product p3, vendor vendorB: on hand 21")
        .await;
    shop.run_here("UPDATE stock SET on_hand = on_hand - 1 WHERE product_id = 'p3'")
        .await;
    watch.writes(" clean (").await;
    watch.signal(Signal::SIGTERM);
    assert_eq!(watch.ended().await.code, Some(5));
}

/// An order and an update that nobody works on, and whose messages are gone.
async fn with_forgotten() -> Shop {
    let shop = Shop::new().await;
    shop.sync().await;
    let api = shop.serve().await;
    let work = shop.work_on(&[WorkQueue::Orders]);
    let id = shop.order(&[("p1", 3)]).await;
    shop.order_with_status(&id, "confirmed").await;
    work.stop().await;
    shop.order(&[("p1", 1)]).await;
    eventually("the outbox is empty", || async {
        (shop.count("SELECT count(*) AS n FROM outbox").await == 0).then_some(())
    })
    .await;
    api.stop().await;
    shop.run_here(
        "UPDATE orders SET accepted_at = now() - interval '16 minutes' WHERE status = 'pending';
         UPDATE stock_updates SET created_at = now() - interval '16 minutes'",
    )
    .await;
    shop
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_update_that_no_sync_would_look_at_is_found() {
    let shop = with_forgotten().await;
    shop.run_here("CREATE TABLE kept AS SELECT * FROM listed_updates; DELETE FROM listed_updates")
        .await;
    let (code, document) = audit(&shop).await;
    assert_eq!(code, Some(5), "{document:#}");
    assert_eq!(
        violations(&document),
        ["open_figures: is open, and does not stand in listed_updates: no sync will close it"]
    );
    shop.run_here(
        "INSERT INTO listed_updates (vendor_id, update_ids) SELECT vendor_id, update_ids FROM kept",
    )
    .await;
    assert_clean(&shop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_overdue_once_no_message_for_it_is_left() {
    use crate::support::messages::{drain, until_ready};
    use stockctl::mq::{Consumer, Queue};
    let mut shop = with_forgotten().await;
    for queue in [Queue::Orders, Queue::VendorSync] {
        until_ready(&shop.broker(), queue, 1).await;
    }
    let document = assert_clean(&shop).await;
    insta::assert_json_snapshot!(check(&document, "overdue")["notes"], @r#"
    [
      "pending orders over 15 minutes old: 1; messages that wait: 1",
      "open updates over 15 minutes old: 1; messages that wait: 1"
    ]
    "#);
    for queue in [Queue::Orders, Queue::VendorSync] {
        let mut taker = Consumer::start(shop.broker(), queue, 10);
        drain(&mut taker, 1).await;
        taker.close(crate::support::DEADLINE).await;
        until_ready(&shop.broker(), queue, 0).await;
    }
    let (code, document) = audit(&shop).await;
    assert_eq!(code, Some(5), "{document:#}");
    let overdue = check(&document, "overdue");
    let found = overdue["violations"].as_array().expect("a list");
    assert_eq!(overdue["violations_total"], 2, "{overdue:#}");
    assert!(
        found[0]["update_id"].is_null() && found[1]["update_id"].is_string(),
        "{overdue:#}"
    );
    // A dead-lettered one waits for an operator.
    shop.run_here(
        "UPDATE stock_updates SET dead_lettered_at = now(); UPDATE orders SET accepted_at = now() WHERE status = 'pending'",
    )
    .await;
    assert_clean(&shop).await;
    shop.run_here(
        "UPDATE orders SET accepted_at = now() - interval '16 minutes' WHERE status = 'pending'",
    )
    .await;
    let file = shop.config_file_with(
        "nobroker.toml",
        shop.config.rabbitmq.urls[0].expose(),
        "amqp://u:p@127.0.0.1:2/%2f",
    );
    shop.config_file = file;
    let document = assert_clean(&shop).await;
    let note = check(&document, "overdue")["notes"][0].to_string();
    assert!(
        note.contains(
            "pending orders over 15 minutes old: 1; whether messages for them wait is not known"
        ),
        "{note}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stays_in_the_outbox_is_stuck_unless_the_broker_is_away() {
    let mut shop = Shop::new().await;
    shop.sync().await;
    shop.run_here(
        "INSERT INTO outbox (queue, message_id, body, created_at)
         SELECT 'orders_queue', gen_random_uuid(), '{}', now() - n * interval '1 minute' FROM generate_series(5, 15) n",
    )
    .await;
    let (code, document) = audit(&shop).await;
    assert_eq!(code, Some(5), "{document:#}");
    let outbox = check(&document, "outbox");
    // Whatever the clock does between the two statements, the one of ten minutes is among them.
    assert_eq!(outbox["violations_total"], 6, "{outbox:#}");
    assert!(
        outbox["violations"][0]["outbox_id"].is_number(),
        "{outbox:#}"
    );
    let file = shop.config_file_with(
        "nobroker.toml",
        shop.config.rabbitmq.urls[0].expose(),
        "amqp://u:p@127.0.0.1:2/%2f",
    );
    shop.config_file = file;
    let document = assert_clean(&shop).await;
    let note = check(&document, "outbox")["notes"][0].to_string();
    assert!(
        note.contains(
            "messages in the outbox for over 10 minutes: 6; the broker cannot be reached"
        ),
        "{note}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_waits_for_no_lock_of_the_flows_and_holds_none_against_them() {
    let shop = with_past(ShopOptions::default()).await;
    let rows = "SELECT FROM stock FOR UPDATE; UPDATE stock SET name = 'held'; UPDATE orders SET resent = 1";
    let held = shop.hold_here(rows).await;
    assert_clean(&shop).await;
    held.release().await;
}
