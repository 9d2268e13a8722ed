//! The newest orders, summed up for people who look.

use std::time::Duration;

use diesel::sql_types::{BigInt, Double, Nullable};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::pg::{Error, prepared};

/// Orders by what has become of them, of those that were accepted within one span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, diesel::QueryableByName)]
pub struct Bucket {
    /// When the span begins, in seconds since 1970.
    #[diesel(sql_type = BigInt)]
    pub at: i64,
    /// Not decided yet.
    #[diesel(sql_type = BigInt)]
    pub pending: i64,
    /// Confirmed.
    #[diesel(sql_type = BigInt)]
    pub confirmed: i64,
    /// Rejected.
    #[diesel(sql_type = BigInt)]
    pub rejected: i64,
    /// Given up.
    #[diesel(sql_type = BigInt)]
    pub failed: i64,
    /// Cancelled.
    #[diesel(sql_type = BigInt)]
    pub cancelled: i64,
}

/// How long orders waited for their decision, in seconds; nothing where none was decided.
#[derive(Debug, Clone, Copy, PartialEq, diesel::QueryableByName)]
pub struct Waited {
    /// Half of them at most.
    #[diesel(sql_type = Nullable<Double>)]
    pub p50: Option<f64>,
    /// 95 % of them at most.
    #[diesel(sql_type = Nullable<Double>)]
    pub p95: Option<f64>,
    /// 99 % of them at most.
    #[diesel(sql_type = Nullable<Double>)]
    pub p99: Option<f64>,
}

/// Of the newest `orders_max` orders, those that are not older than `window`.
const RECENT: &str = "recent AS MATERIALIZED (
    SELECT accepted_at, decided_at, status FROM (
        SELECT accepted_at, decided_at, status FROM orders ORDER BY accepted_at DESC, id DESC LIMIT $1
    ) AS newest WHERE accepted_at > now() - make_interval(secs => $2)
)";

/// Sums up, by spans of `bucket`, of the newest `orders_max` orders those that are not older than `window`; the oldest
/// span first.
///
/// # Errors
/// See [`Error`].
pub async fn list_buckets(
    connection: &mut AsyncPgConnection,
    orders_max: i64,
    window: Duration,
    bucket: Duration,
) -> Result<Vec<Bucket>, Error> {
    Ok(prepared(
        diesel::sql_query(format!(
            "WITH {RECENT}
             SELECT (floor(extract(epoch FROM accepted_at)::float8 / $3) * $3)::bigint AS at,
                 count(*) FILTER (WHERE status = 'pending') AS pending,
                 count(*) FILTER (WHERE status = 'confirmed') AS confirmed,
                 count(*) FILTER (WHERE status = 'rejected') AS rejected,
                 count(*) FILTER (WHERE status = 'failed') AS failed,
                 count(*) FILTER (WHERE status = 'cancelled') AS cancelled
             FROM recent GROUP BY 1 ORDER BY 1"
        ))
        .bind::<BigInt, _>(orders_max)
        .bind::<Double, _>(window.as_secs_f64())
        .bind::<Double, _>(bucket.as_secs_f64()),
    )
    .load(connection)
    .await?)
}

/// How long the same orders waited for their decision.
///
/// # Errors
/// See [`Error`].
pub async fn find_waited(
    connection: &mut AsyncPgConnection,
    orders_max: i64,
    window: Duration,
) -> Result<Waited, Error> {
    Ok(prepared(
        diesel::sql_query(format!(
            "WITH {RECENT}, waited AS (
                 SELECT percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (
                     ORDER BY extract(epoch FROM decided_at - accepted_at)::float8
                 ) AS p FROM recent WHERE decided_at IS NOT NULL
             )
             SELECT p[1] AS p50, p[2] AS p95, p[3] AS p99 FROM waited"
        ))
        .bind::<BigInt, _>(orders_max)
        .bind::<Double, _>(window.as_secs_f64()),
    )
    .get_result(connection)
    .await?)
}
