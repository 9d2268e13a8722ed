//! What the connections of a pool are set up for.

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Integer};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use stockctl::pg::{Pool, prepared};

use crate::support::Shop;

#[derive(QueryableByName)]
struct Backend {
    #[diesel(sql_type = Integer)]
    pid: i32,
}

async fn backend(connection: &mut AsyncPgConnection) -> i32 {
    let asked = diesel::sql_query("SELECT pg_backend_pid() AS pid");
    let backend: Backend = asked.get_result(connection).await.expect("a pid");
    backend.pid
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_that_was_used_last_is_used_next() {
    let shop = Shop::new().await;
    let mut settings = shop.context_here().database.settings().clone();
    settings.pool_size = 2;
    let pool = Pool::new("two", settings).expect("a pool");
    let mut first = pool.get().await.expect("a connection");
    let mut last = pool.get().await.expect("another");
    let pids = [backend(&mut first).await, backend(&mut last).await];
    drop(first);
    drop(last);
    for _ in 0..3 {
        let mut next = pool.get().await.expect("one that was there");
        assert_eq!(backend(&mut next).await, pids[1]);
    }
}

#[derive(QueryableByName, Debug, PartialEq)]
struct Plans {
    #[diesel(sql_type = BigInt)]
    once: i64,
    #[diesel(sql_type = BigInt)]
    anew: i64,
}

/// How a statement was planned that was executed ten times with a list of one.
async fn plans(pool: &Pool) -> Plans {
    let mut connection = pool.get().await.expect("a connection");
    for _ in 0..10 {
        let of_one = diesel::sql_query("SELECT FROM unnest($1) AS listed")
            .bind::<Array<BigInt>, _>(vec![1_i64]);
        let executed = prepared(of_one).execute(&mut connection).await;
        executed.expect("executed");
    }
    diesel::sql_query(
        "SELECT sum(generic_plans)::bigint AS once, sum(custom_plans)::bigint AS anew
         FROM pg_prepared_statements WHERE statement LIKE 'SELECT FROM unnest%'",
    )
    .get_result(&mut connection)
    .await
    .expect("counted")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_decided_in_batches_is_planned_once_for_any_number_of_them() {
    let shop = Shop::new().await;
    let settings = shop.context_here().database.settings().clone();
    let batches = Pool::for_batches("batches", settings.clone()).expect("a pool");
    assert_eq!(plans(&batches).await, Plans { once: 10, anew: 0 });
    let others = Pool::new("others", settings).expect("a pool");
    assert!(plans(&others).await.anew > 0, "the server may choose");
}
