//! How the connections of a pool plan.

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt};
use diesel_async::RunQueryDsl as _;
use stockctl::pg::{Pool, prepared};

use crate::support::Shop;

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
