//! How the vendors' APIs take what they are told, as the consumers have seen it.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Nullable, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::domain::ids::VendorId;
use crate::pg::{Error, prepared};

/// A vendor's state.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
pub struct Shown {
    /// Its key in the configuration.
    #[diesel(sql_type = Text)]
    pub vendor_id: String,
    /// `ok`, `failing` (the last call failed, and it is called as before), `open` or `probing`.
    #[diesel(sql_type = Text)]
    pub state: String,
    /// When it began to answer, to fail, or to be left alone.
    #[diesel(sql_type = Timestamptz)]
    pub since: DateTime<Utc>,
    /// What the last call failed with, if it did.
    #[diesel(sql_type = Nullable<Text>)]
    pub error: Option<String>,
}

/// Every state of a vendor.
pub const STATES: [&str; 4] = ["ok", "failing", "open", "probing"];

/// Notes a vendor's state. What was well and is well is not written again.
///
/// # Errors
/// See [`Error`].
pub async fn note(
    connection: &mut AsyncPgConnection,
    vendor_id: &VendorId,
    state: &str,
    error: Option<&str>,
) -> Result<(), Error> {
    prepared(
        diesel::sql_query(
            "INSERT INTO vendor_pushes AS held (vendor_id, state, error, failing_since)
                 VALUES ($1, $2, $3, CASE WHEN $3 IS NOT NULL THEN now() END)
             ON CONFLICT (vendor_id) DO UPDATE SET
                 state = excluded.state,
                 -- A probe in vain, or another process that finds the same, begins nothing new.
                 since = CASE WHEN (held.state = 'ok') = (excluded.state = 'ok') THEN held.since ELSE now() END,
                 error = excluded.error,
                 -- A version before this column has left it empty.
                 failing_since = CASE WHEN excluded.error IS NULL THEN NULL WHEN held.error IS NULL THEN now()
                                      ELSE coalesce(held.failing_since, held.since) END,
                 seen_at = now()
             WHERE held.state <> 'ok' OR excluded.state <> 'ok' OR held.error IS DISTINCT FROM excluded.error",
        )
        .bind::<Text, _>(vendor_id.as_str())
        .bind::<Text, _>(state)
        .bind::<Nullable<Text>, _>(error),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Lists the vendors of which something was noted.
///
/// # Errors
/// See [`Error`].
pub async fn list(connection: &mut AsyncPgConnection) -> Result<Vec<Shown>, Error> {
    Ok(prepared(diesel::sql_query(
        "SELECT vendor_id, error,
             CASE WHEN is_failing THEN 'failing' ELSE state END AS state,
             CASE WHEN is_failing THEN coalesce(failing_since, since) ELSE since END AS since
         FROM vendor_pushes CROSS JOIN LATERAL (SELECT state = 'ok' AND error IS NOT NULL AS is_failing) AS judged
         ORDER BY vendor_id",
    ))
    .load(connection)
    .await?)
}
