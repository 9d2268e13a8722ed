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
    /// `ok`, `open` or `probing`.
    #[diesel(sql_type = Text)]
    pub state: String,
    /// When it began to answer, or ceased to.
    #[diesel(sql_type = Timestamptz)]
    pub since: DateTime<Utc>,
    /// Why it is not called, if it is not.
    #[diesel(sql_type = Nullable<Text>)]
    pub error: Option<String>,
}

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
            "INSERT INTO vendor_pushes AS held (vendor_id, state, error) VALUES ($1, $2, $3)
             ON CONFLICT (vendor_id) DO UPDATE SET
                 state = excluded.state,
                 -- A probe in vain, or another process that finds the same, begins nothing new.
                 since = CASE WHEN (held.state = 'ok') = (excluded.state = 'ok') THEN held.since ELSE now() END,
                 error = excluded.error,
                 seen_at = now()
             WHERE held.state <> 'ok' OR excluded.state <> 'ok'",
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
        "SELECT vendor_id, state, since, error FROM vendor_pushes ORDER BY vendor_id",
    ))
    .load(connection)
    .await?)
}
