//! The vendors, and the runs of their syncs.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use super::vendor_id;
use crate::domain::ids::VendorId;
use crate::pg::{Error, prepared};

/// A vendor, as shown to people.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
pub struct Shown {
    /// Its key in the configuration.
    #[diesel(sql_type = Text)]
    pub id: String,
    /// When its stock was last written whole.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_sync_at: Option<DateTime<Utc>>,
    /// The kind of failure that ended the newest run, if one did.
    #[diesel(sql_type = Nullable<Text>)]
    pub last_sync_error: Option<String>,
    /// Updates that are not closed.
    #[diesel(sql_type = BigInt)]
    pub open_updates: i64,
}

fn texts(vendors: &[VendorId]) -> Vec<&str> {
    vendors.iter().map(VendorId::as_str).collect()
}

#[derive(diesel::QueryableByName)]
struct Run {
    #[diesel(sql_type = BigInt)]
    current_run: i64,
}

#[derive(diesel::QueryableByName)]
struct Id {
    #[diesel(sql_type = Text)]
    id: String,
}

/// Makes sure that the configured vendors have a row.
///
/// # Errors
/// See [`Error`].
pub async fn register(
    connection: &mut AsyncPgConnection,
    vendors: &[VendorId],
) -> Result<(), Error> {
    prepared(
        diesel::sql_query(
            "INSERT INTO vendors (id) SELECT unnest($1) ORDER BY 1 ON CONFLICT DO NOTHING",
        )
        .bind::<Array<Text>, _>(texts(vendors)),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Of the given vendors, those whose stock was never written whole.
///
/// # Errors
/// See [`Error`].
pub async fn list_never_synced(
    connection: &mut AsyncPgConnection,
    vendors: &[VendorId],
) -> Result<Vec<VendorId>, Error> {
    let rows: Vec<Id> = prepared(
        diesel::sql_query(
            "SELECT t.id FROM unnest($1) AS t(id) LEFT JOIN vendors v ON v.id = t.id COLLATE \"C\"
             WHERE coalesce(v.completed_run, 0) = 0 ORDER BY t.id",
        )
        .bind::<Array<Text>, _>(texts(vendors)),
    )
    .load(connection)
    .await?;
    rows.into_iter().map(|row| vendor_id(row.id)).collect()
}

/// Draws the number of a new run, which alone may write the vendor's stock from now on.
///
/// # Errors
/// See [`Error`].
pub async fn begin_run(
    connection: &mut AsyncPgConnection,
    vendor: &VendorId,
) -> Result<i64, Error> {
    let row: Run = prepared(
        diesel::sql_query(
            "UPDATE vendors SET current_run = current_run + 1, sync_requested = false WHERE id = $1
             RETURNING current_run",
        )
        .bind::<Text, _>(vendor.as_str()),
    )
    .get_result(connection)
    .await?;
    Ok(row.current_run)
}

/// The vendor's current run. The vendor's row is locked against a new run until the transaction ends.
///
/// # Errors
/// See [`Error`].
pub async fn current_run_for_share(
    connection: &mut AsyncPgConnection,
    vendor: &VendorId,
) -> Result<i64, Error> {
    let row: Run = prepared(
        diesel::sql_query("SELECT current_run FROM vendors WHERE id = $1 FOR SHARE")
            .bind::<Text, _>(vendor.as_str()),
    )
    .get_result(connection)
    .await?;
    Ok(row.current_run)
}

/// The vendor's current run.
///
/// # Errors
/// See [`Error`].
pub async fn find_current_run(
    connection: &mut AsyncPgConnection,
    vendor: &VendorId,
) -> Result<i64, Error> {
    let row: Run = prepared(
        diesel::sql_query("SELECT current_run FROM vendors WHERE id = $1")
            .bind::<Text, _>(vendor.as_str()),
    )
    .get_result(connection)
    .await?;
    Ok(row.current_run)
}

/// Notes that a run has written the whole catalogue. Returns whether it was still the current one.
///
/// # Errors
/// See [`Error`].
pub async fn complete_run(
    connection: &mut AsyncPgConnection,
    vendor: &VendorId,
    run: i64,
) -> Result<bool, Error> {
    let written = prepared(
        diesel::sql_query(
            "UPDATE vendors SET completed_run = $2, last_sync_at = now(), last_sync_error = NULL
             WHERE id = $1 AND current_run = $2",
        )
        .bind::<Text, _>(vendor.as_str())
        .bind::<BigInt, _>(run),
    )
    .execute(connection)
    .await?;
    Ok(written > 0)
}

/// Notes which kind of failure ended a sync.
///
/// # Errors
/// See [`Error`].
pub async fn note_failure(
    connection: &mut AsyncPgConnection,
    vendor: &VendorId,
    code: &str,
) -> Result<(), Error> {
    prepared(
        diesel::sql_query("UPDATE vendors SET last_sync_error = $2 WHERE id = $1")
            .bind::<Text, _>(vendor.as_str())
            .bind::<Text, _>(code),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Asks the sync loop for a run at once.
///
/// # Errors
/// See [`Error`].
pub async fn request_sync(
    connection: &mut AsyncPgConnection,
    vendors: &[VendorId],
) -> Result<(), Error> {
    prepared(
        diesel::sql_query(
            "WITH asked AS (SELECT id FROM vendors WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE)
             UPDATE vendors SET sync_requested = true FROM asked WHERE vendors.id = asked.id",
        )
        .bind::<Array<Text>, _>(texts(vendors)),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The vendors that a run was asked for and none has begun since.
///
/// # Errors
/// See [`Error`].
pub async fn list_requested(connection: &mut AsyncPgConnection) -> Result<Vec<VendorId>, Error> {
    let rows: Vec<Id> = prepared(diesel::sql_query(
        "SELECT id FROM vendors WHERE sync_requested ORDER BY id",
    ))
    .load(connection)
    .await?;
    rows.into_iter().map(|row| vendor_id(row.id)).collect()
}

/// Lists the vendors.
///
/// # Errors
/// See [`Error`].
pub async fn list(connection: &mut AsyncPgConnection) -> Result<Vec<Shown>, Error> {
    Ok(prepared(diesel::sql_query(
        "SELECT id, last_sync_at, last_sync_error,
             (SELECT count(*) FROM unclosed_updates u WHERE u.vendor_id = vendors.id) AS open_updates
         FROM vendors ORDER BY id",
    ))
    .load(connection)
    .await?)
}

/// Takes the lock of a vendor's sync on this session, or says that another process has it.
///
/// # Errors
/// See [`Error`].
pub async fn try_lock_sync(
    connection: &mut AsyncPgConnection,
    vendor: &VendorId,
) -> Result<bool, Error> {
    #[derive(diesel::QueryableByName)]
    struct Locked {
        #[diesel(sql_type = Bool)]
        locked: bool,
    }
    let row: Locked = diesel::sql_query(
        "SELECT pg_try_advisory_lock(hashtextextended('stockctl sync ' || $1, 0)) AS locked",
    )
    .bind::<Text, _>(vendor.as_str())
    .get_result(connection)
    .await?;
    Ok(row.locked)
}

/// Gives the lock of a vendor's sync back, if this session has it, whatever else the session was about to do.
///
/// # Errors
/// See [`Error`].
pub async fn unlock_sync(
    connection: &mut AsyncPgConnection,
    vendor: &VendorId,
) -> Result<(), Error> {
    let unlock =
        diesel::sql_query("SELECT pg_advisory_unlock(hashtextextended('stockctl sync ' || $1, 0))")
            .bind::<Text, _>(vendor.as_str());
    if unlock.clone().execute(connection).await.is_err() {
        // A transaction that failed takes nothing else.
        connection.batch_execute("ROLLBACK").await?;
        unlock.execute(connection).await?;
    }
    Ok(())
}
