//! A schema is added to while this version runs: what the next version brings with it, here from a folder.

use std::path::Path;

use stockctl::pg::{self, MigrateError};

use super::load::Installation;
use crate::support::{Shop, eventually};

/// A migration of the next version: its name, its SQL, and whether it runs in a transaction.
type Next = (&'static str, &'static str, bool);

/// The expand step of a column: it may be NULL, so the old version need not know it.
const COLUMN: Next = (
    "2999-01-01-000000_channel",
    "ALTER TABLE orders ADD COLUMN channel text",
    true,
);
/// Its index, built while others write.
const INDEX: Next = (
    "2999-01-02-000000_channel_index",
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_channel ON orders (channel)",
    false,
);
/// An index on a column that is there already.
const INDEX_OF_REFERENCE: Next = (
    "2999-01-01-000000_reference_index",
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_reference ON orders (reference)",
    false,
);

/// The migrations of the next version: ours, and what it adds.
fn next_version(added: &[Next]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a directory");
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/orders");
    for migration in std::fs::read_dir(ours).expect("readable") {
        let migration = migration.expect("readable");
        let copy = folder.path().join(migration.file_name());
        std::fs::create_dir(&copy).expect("created");
        for file in std::fs::read_dir(migration.path()).expect("readable") {
            let file = file.expect("readable");
            std::fs::copy(file.path(), copy.join(file.file_name())).expect("copied");
        }
    }
    for (name, sql, in_transaction) in added {
        let migration = folder.path().join(name);
        std::fs::create_dir(&migration).expect("created");
        std::fs::write(migration.join("up.sql"), sql).expect("written");
        let metadata = format!("run_in_transaction = {in_transaction}\n");
        std::fs::write(migration.join("metadata.toml"), metadata).expect("written");
    }
    folder
}

/// Waits until another session of the shop's database is as the condition says.
async fn session_where(shop: &Shop, what: &str, condition: &str) {
    // Two may ask at the same time, and what a session asked last is shown until it asks again: the question itself names
    // what it looks for.
    let sql = format!(
        "SELECT count(*) AS n FROM pg_stat_activity
         WHERE datname = current_database() AND query NOT LIKE '%pg_stat_activity%' AND {condition}"
    );
    eventually(what, || async {
        (shop.count(&sql).await > 0).then_some(())
    })
    .await;
}

/// 1 when an index is there and usable.
async fn is_valid(shop: &Shop, index: &str) -> bool {
    let sql = format!(
        "SELECT count(*) AS n FROM pg_index WHERE indexrelid = to_regclass('{index}') AND indisvalid"
    );
    shop.count(&sql).await == 1
}

/// One round of a backfill: few rows, in the order of their ids, and none that somebody is working on.
const BACKFILL: &str = "UPDATE orders SET channel = 'web' WHERE id IN (
    SELECT id FROM orders WHERE channel IS NULL ORDER BY id LIMIT 100 FOR NO KEY UPDATE SKIP LOCKED)";

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_is_expanded_under_load_while_this_version_runs() {
    let mut installation = Installation::open().await;
    let next = next_version(&[COLUMN, INDEX]);
    // Somebody looks at the orders for long, as an audit does, and the migration has to wait: the orders do not.
    let held = installation
        .shop
        .hold_here("SELECT count(*) FROM orders")
        .await;
    let migrating = installation
        .shop
        .migrate_from(next.path(), pg::LOCK_DEADLINE);
    let meanwhile = async {
        let waits = "query LIKE 'ALTER TABLE orders%' AND wait_event_type = 'Lock'";
        session_where(&installation.shop, "the migration waits", waits).await;
        installation.goes_on("while the migration waits").await;
        drop(held);
    };
    let (migrated, ()) = tokio::join!(migrating, meanwhile);
    let migrated = migrated.expect("migrated");
    assert_eq!(migrated.ran, ["29990101000000", "29990102000000"]);
    assert!(is_valid(&installation.shop, "orders_channel").await);
    installation.goes_on("on the new schema").await;
    installation.shop.run_here(BACKFILL).await;

    // This version starts, too, on a schema that it does not know all of; and migrate does no harm.
    installation.roll().await;
    installation
        .each_writes("\"unknown\":\"29990101000000, 29990102000000\"")
        .await;
    let ended = installation.shop.run(&["migrate"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stdout.ends_with(
            ": up to date; it is newer than this version, which does not know 29990101000000, 29990102000000\n"
        ),
        "{ended:?}"
    );
    eventually("the backfill is done", || async {
        installation.shop.run_here(BACKFILL).await;
        let left = "SELECT count(*) AS n FROM orders WHERE channel IS NULL AND accepted_at < now() - interval '1 second'";
        (installation.shop.count(left).await == 0).then_some(())
    })
    .await;
    installation.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_migrate_while_an_index_is_built_and_none_waits_for_ever() {
    let shop = Shop::new().await;
    let next = next_version(&[INDEX_OF_REFERENCE]);
    // The index waits for whoever writes.
    let held = shop
        .hold_here("LOCK TABLE orders IN ROW EXCLUSIVE MODE")
        .await;
    let first = shop.migrate_from(next.path(), pg::LOCK_DEADLINE);
    let meanwhile = async {
        let builds = "query LIKE 'CREATE INDEX CONCURRENTLY%' AND wait_event_type = 'Lock'";
        session_where(&shop, "the index is being built", builds).await;
        let second = shop.migrate_from(next.path(), pg::LOCK_DEADLINE);
        let release = async {
            // The first one's turn was its session's first question; this is not its last one any more.
            let waits = "query LIKE '%advisory_lock%'";
            session_where(&shop, "the second waits for its turn", waits).await;
            drop(held);
        };
        tokio::join!(second, release).0
    };
    let (first, second) = tokio::join!(first, meanwhile);
    assert_eq!(first.expect("migrated").ran, ["29990101000000"]);
    assert!(second.expect("migrated").ran.is_empty());
    assert!(is_valid(&shop, "orders_reference").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_whose_building_was_interrupted_is_built_anew() {
    let shop = Shop::new().await;
    shop.run_here(
        "INSERT INTO orders (id, caller, reference, lines, accepted_at)
         SELECT gen_random_uuid(), 'c', 'the same', '[1]', now() FROM generate_series(1, 2)",
    )
    .await;
    // It fails at its end, which leaves it as any interruption would.
    let unique = "CREATE UNIQUE INDEX CONCURRENTLY orders_reference ON orders (reference)";
    assert!(shop.try_here(unique).await.is_err());
    assert!(!is_valid(&shop, "orders_reference").await);
    let next = next_version(&[INDEX_OF_REFERENCE]);
    shop.migrate_from(next.path(), pg::LOCK_DEADLINE)
        .await
        .expect("migrated");
    assert!(is_valid(&shop, "orders_reference").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_whose_table_is_in_use_says_what_to_do_and_has_done_nothing() {
    let shop = Shop::new().await;
    let next = next_version(&[COLUMN]);
    let held = shop.hold_here("SELECT count(*) FROM orders").await;
    let error = shop
        .migrate_from(next.path(), std::time::Duration::from_secs(1))
        .await
        .expect_err("the table is in use");
    assert!(matches!(error, MigrateError::TablesInUse { .. }));
    assert!(error.is_passing());
    insta::assert_snapshot!(error, @"migration 29990101000000 has found no moment in 1 s in which no transaction used its tables; nothing of it was done: wait for long transactions or end them (pg_stat_activity shows them), and run this again");
    let column = "SELECT count(*) AS n FROM pg_attribute WHERE attrelid = 'orders'::regclass AND attname = 'channel'";
    assert_eq!(shop.count(column).await, 0);
    drop(held);
    shop.migrate_from(next.path(), pg::LOCK_DEADLINE)
        .await
        .expect("migrated");
    assert_eq!(shop.count(column).await, 1);
    // What can never run is another matter.
    let broken = next_version(&[("2999-01-03-000000_broken", "SELECT nonsense", true)]);
    let error = shop
        .migrate_from(broken.path(), pg::LOCK_DEADLINE)
        .await
        .expect_err("it cannot run");
    assert!(!error.is_passing());
    insta::assert_snapshot!(error, @r#"migration 29990103000000 failed: Failed to run 2999-01-03-000000_broken with: column "nonsense" does not exist"#);
}
