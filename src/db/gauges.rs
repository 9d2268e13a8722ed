//! The figures that are looked at again and again while the tables grow: each statement reads an index from one end and
//! stops after a fixed number of rows, so it costs the same however many orders there are.

use diesel::sql_types::{Array, BigInt, Bool, Double, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::domain::ids::VendorId;
use crate::domain::order::Status;
use crate::pg::{Error, prepared};

/// Messages of the outbox that are counted. More are an alarm all the same.
const OUTBOX_MAX: i64 = 100_000;
/// Open updates of a vendor that are counted.
const UPDATES_MAX: i64 = 100_000;
/// No index knows which orders are pending (each decision would have to change it), so the newest are looked at.
const ORDERS_MAX: i64 = 10_000;

/// How many there are, and how old the oldest is.
#[derive(Debug, Clone, Copy, PartialEq, diesel::QueryableByName)]
pub struct Waiting {
    /// How many.
    #[diesel(sql_type = BigInt)]
    pub count: i64,
    /// The age of the oldest in seconds; 0 where there is none.
    #[diesel(sql_type = Double)]
    pub oldest_age: f64,
}

/// What concerns one vendor.
#[derive(Debug, Clone, PartialEq, diesel::QueryableByName)]
pub struct OfVendor {
    /// Its key in the configuration.
    #[diesel(sql_type = Text)]
    pub id: String,
    /// When its stock was last written whole, in seconds since 1970; 0 when it never was.
    #[diesel(sql_type = Double)]
    pub last_sync: f64,
    /// Whether its newest sync failed.
    #[diesel(sql_type = Bool)]
    pub is_sync_failing: bool,
    /// Updates that are not closed.
    #[diesel(sql_type = BigInt)]
    pub open_updates: i64,
    /// Those that it has not answered for, dead letters not counted.
    #[diesel(sql_type = BigInt)]
    pub unanswered: i64,
    /// Units that the open ones take.
    #[diesel(sql_type = BigInt)]
    pub open_units: i64,
    /// The age of the oldest that is not answered, in seconds; 0 where there is none.
    #[diesel(sql_type = Double)]
    pub lag: f64,
}

/// What the last audit found in one of its checks.
#[derive(Debug, Clone, PartialEq, diesel::QueryableByName)]
pub struct Audited {
    /// The check.
    #[diesel(sql_type = Text)]
    pub check_name: String,
    /// What is violated.
    #[diesel(sql_type = BigInt)]
    pub violations: i64,
    /// What could not be looked at.
    #[diesel(sql_type = BigInt)]
    pub failures: i64,
    /// When, in seconds since 1970.
    #[diesel(sql_type = Double)]
    pub audited_at: f64,
}

/// What waits in the outbox.
///
/// # Errors
/// See [`Error`].
pub async fn outbox(connection: &mut AsyncPgConnection) -> Result<Waiting, Error> {
    Ok(prepared(
        diesel::sql_query(
            "SELECT (SELECT count(*) FROM (SELECT FROM outbox ORDER BY id LIMIT $1) AS oldest) AS count,
                 coalesce((SELECT extract(epoch FROM now() - created_at) FROM outbox ORDER BY id LIMIT 1), 0)::float8 AS oldest_age",
        )
        .bind::<BigInt, _>(OUTBOX_MAX),
    )
    .get_result(connection)
    .await?)
}

/// The newest orders that are not decided yet.
///
/// # Errors
/// See [`Error`].
pub async fn pending(connection: &mut AsyncPgConnection) -> Result<Waiting, Error> {
    in_status(connection, Status::Pending).await
}

/// The newest orders that were given up, until somebody replays or drops their letters.
///
/// # Errors
/// See [`Error`].
pub async fn failed(connection: &mut AsyncPgConnection) -> Result<Waiting, Error> {
    in_status(connection, Status::Failed).await
}

async fn in_status(connection: &mut AsyncPgConnection, status: Status) -> Result<Waiting, Error> {
    Ok(prepared(
        diesel::sql_query(
            "SELECT count(*) AS count, coalesce(extract(epoch FROM now() - min(accepted_at)), 0)::float8 AS oldest_age
             FROM (SELECT status, accepted_at FROM orders ORDER BY accepted_at DESC, id DESC LIMIT $1) AS newest
             WHERE status = $2",
        )
        .bind::<BigInt, _>(ORDERS_MAX)
        .bind::<Text, _>(status.as_str()),
    )
    .get_result(connection)
    .await?)
}

/// The given vendors, as far as they were ever synced or told something.
///
/// # Errors
/// See [`Error`].
pub async fn vendors(
    connection: &mut AsyncPgConnection,
    vendors: &[VendorId],
) -> Result<Vec<OfVendor>, Error> {
    let ids: Vec<&str> = vendors.iter().map(VendorId::as_str).collect();
    Ok(prepared(
        diesel::sql_query(
            "SELECT v.id, coalesce(extract(epoch FROM v.last_sync_at), 0)::float8 AS last_sync,
                 v.last_sync_error IS NOT NULL AS is_sync_failing, u.open_updates, u.unanswered, u.open_units, u.lag
             FROM vendors v CROSS JOIN LATERAL (
                 SELECT count(*) AS open_updates,
                     count(*) FILTER (WHERE is_unanswered) AS unanswered,
                     coalesce(-sum(delta) FILTER (WHERE delta < 0), 0)::bigint AS open_units,
                     coalesce(extract(epoch FROM now() - min(created_at) FILTER (WHERE is_unanswered)), 0)::float8 AS lag
                 FROM (
                     SELECT delta, created_at, state = 'open' AND dead_lettered_at IS NULL AS is_unanswered
                     FROM unclosed_updates WHERE vendor_id = v.id ORDER BY listing LIMIT $2
                 ) AS oldest
             ) AS u WHERE v.id = ANY($1) ORDER BY v.id",
        )
        .bind::<Array<Text>, _>(ids)
        .bind::<BigInt, _>(UPDATES_MAX),
    )
    .load(connection)
    .await?)
}

/// What the last audit found.
///
/// # Errors
/// See [`Error`].
pub async fn audited(connection: &mut AsyncPgConnection) -> Result<Vec<Audited>, Error> {
    Ok(prepared(diesel::sql_query(
        "SELECT check_name, violations, failures, extract(epoch FROM audited_at)::float8 AS audited_at FROM audit_results",
    ))
    .load(connection)
    .await?)
}

/// Notes what an audit found: for each check the violations, and what could not be looked at.
///
/// # Errors
/// See [`Error`].
pub async fn note_audit(
    connection: &mut AsyncPgConnection,
    findings: &[(&str, u64, u64)],
) -> Result<(), Error> {
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let names: Vec<&str> = findings.iter().map(|(name, _, _)| *name).collect();
    let violations: Vec<i64> = findings
        .iter()
        .map(|(_, found, _)| number(*found))
        .collect();
    let failures: Vec<i64> = findings
        .iter()
        .map(|(_, _, failed)| number(*failed))
        .collect();
    prepared(
        diesel::sql_query(
            "INSERT INTO audit_results (check_name, violations, failures)
             SELECT * FROM unnest($1, $2, $3) ORDER BY 1
             ON CONFLICT (check_name) DO UPDATE SET violations = excluded.violations, failures = excluded.failures,
                 audited_at = excluded.audited_at",
        )
        .bind::<Array<Text>, _>(names)
        .bind::<Array<BigInt>, _>(violations)
        .bind::<Array<BigInt>, _>(failures),
    )
    .execute(connection)
    .await?;
    Ok(())
}
