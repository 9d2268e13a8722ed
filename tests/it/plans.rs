//! That a session asks by keys, whatever the server had counted of a table when the session planned.

use std::time::Duration;

use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use serde_json::json;
use stockctl::db::updates;
use stockctl::domain::ids::{UpdateId, VendorId};
use stockctl::pg;
use uuid::Uuid;

use crate::support::{Shop, eventually};

/// Old orders, each with an update of its own that was closed long ago. Their ids are before any new one.
const OLD: i64 = 20_000;
/// Nothing waits for so long.
const LONG: Duration = Duration::from_secs(3600);
/// More than the server waits between two reports of a session of what it has read.
const COUNTED_WITHIN: Duration = Duration::from_millis(1500);
/// What statements for a few orders may read: a tenth of what is there.
const READ_MAX: i64 = OLD / 10;

/// A shop in which all is counted when there is next to nothing. One session of each part does everything.
async fn counted_too_early() -> Shop {
    let mut shop = Shop::new().await;
    shop.reconfigure(|text| text.replace("[database]\n", "[database]\npool_size = 1\n"));
    let parts = shop.open().await;
    let id = shop.order(&[("p2", 1)]).await;
    shop.order_told(&id).await;
    for part in parts {
        part.stop().await;
    }
    shop.run_here("VACUUM ANALYZE").await;
    shop
}

/// Places a few orders that are told, and cancels one of them.
async fn trade(shop: &Shop) {
    let mut ids = vec![shop.order(&[("p2", 1), ("p3", 1)]).await];
    for product in ["p2", "p3"] {
        ids.push(shop.order(&[(product, 1)]).await);
    }
    for id in &ids {
        shop.order_told(id).await;
    }
    let (status, _) = shop
        .post(&format!("/orders/{}/cancel", ids[0]), json!({}))
        .await;
    assert_eq!(status, 200);
    shop.order_told(&ids[0]).await;
}

/// What is asked for now and then, and new updates of the newest orders.
async fn look(shop: &Shop, connection: &mut AsyncPgConnection) {
    let vendor_id = VendorId::parse("vendorA").expect("an id");
    let newest: Uuid = shop
        .text("SELECT id::text AS t FROM stock_updates ORDER BY id DESC LIMIT 1")
        .await
        .parse()
        .expect("an id");
    let listing = shop
        .count("SELECT max(id) AS n FROM listed_updates WHERE vendor_id = 'vendorA'")
        .await;
    updates::load_with_counterparts_for_update(connection, &[UpdateId(newest)])
        .await
        .expect("updates");
    updates::claim_forgotten(connection, LONG, 10)
        .await
        .expect("updates");
    updates::unlist_closed(connection, &vendor_id, &[listing])
        .await
        .expect("done");
    connection
        .batch_execute(
            "INSERT INTO stock_updates (id, order_id, product_id, vendor_id, delta, state, created_at)
             SELECT gen_random_uuid(), id, 'p2', 'vendorA', -1, 'open', now()
             FROM (SELECT id FROM orders ORDER BY id DESC LIMIT 3) AS newest",
        )
        .await
        .expect("written");
}

/// Makes thousands of the handful, so that nothing is counted again.
async fn write_thousands(shop: &Shop) {
    let mut connection = shop.connection_here().await;
    // Without a table of its own: what is planned anywhere would be planned anew after that.
    let (id, old) = (
        "lpad(to_hex(n), 32, '0')::uuid",
        format!("generate_series(1, {OLD}) n"),
    );
    let thousands = format!(
        "INSERT INTO orders (id, caller, status, lines, accepted_at, decided_at)
         SELECT {id}, 'old', 'confirmed', '[{{\"productId\": \"p2\", \"quantity\": 1}}]', now(), now() FROM {old};
         INSERT INTO stock (product_id, vendor_id, name, on_hand, first_on_hand, first_listed_at)
         SELECT 'old ' || n, 'vendorA', 'old', 0, 0, now() FROM {old};
         INSERT INTO stock_updates (id, order_id, product_id, vendor_id, delta, state, created_at, acknowledged_at, closed_at)
         SELECT {id}, {id}, 'old ' || n, 'vendorA', -1, 'applied', now(), now(), now() FROM {old}"
    );
    connection.batch_execute(&thousands).await.expect("written");
    drop(connection);
    are_over(shop, "query LIKE '%FROM generate_series(1, %'").await;
}

/// What was read more of than a few orders take, since the server counts what is read; all other sessions have to end.
async fn much_read(shop: &Shop) -> String {
    are_over(shop, "true").await;
    let read = format!(
        "SELECT coalesce(string_agg(what, ', '), 'little') AS t FROM (
                    SELECT format('%s of %s', idx_tup_read, indexrelname) AS what FROM pg_stat_user_indexes
                    WHERE idx_tup_read > {READ_MAX}
                    UNION ALL
                    SELECT format('%s of %s', seq_tup_read, relname) FROM pg_stat_user_tables WHERE seq_tup_read > {READ_MAX}
                ) AS much"
    );
    shop.text(&read).await
}

/// Waits for the end of sessions: what they have read is counted then, at the latest.
async fn are_over(shop: &Shop, which: &str) {
    let sessions = format!(
        "SELECT count(*) AS n FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND {which}"
    );
    eventually("the sessions are over", async || {
        (shop.count(&sessions).await == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_planned_over_a_handful_reads_no_more_of_thousands() {
    let shop = counted_too_early().await;
    let parts = shop.open().await;
    trade(&shop).await;
    for part in parts {
        part.stop().await;
    }
    let context = shop.context_here();
    let mut connection = context.database.get().await.expect("a connection");
    look(&shop, &mut connection).await;
    write_thousands(&shop).await;
    shop.run_here("SELECT pg_stat_reset()").await;
    look(&shop, &mut connection).await;
    pg::discard(connection);
    assert_eq!(much_read(&shop).await, "little");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_plans_anew_before_it_has_been_used_twice_as_often() {
    let shop = counted_too_early().await;
    let parts = shop.open().await;
    trade(&shop).await;
    write_thousands(&shop).await;
    for _ in 0..3 {
        trade(&shop).await;
    }
    // A session tells what it has read at the end of a transaction, once a second at most.
    tokio::time::sleep(COUNTED_WITHIN).await;
    trade(&shop).await;
    shop.run_here("SELECT pg_stat_reset()").await;
    trade(&shop).await;
    for part in parts {
        part.stop().await;
    }
    assert_eq!(much_read(&shop).await, "little");
}
