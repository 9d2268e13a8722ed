//! Attempts at messages that may have killed a consumer, counted before they are begun.

use diesel::sql_types::{SmallInt, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::pg::{Error, prepared};

/// Counts an attempt that is about to begin, and returns how many have begun, this one included.
///
/// # Errors
/// See [`Error`].
pub async fn begin(connection: &mut AsyncPgConnection, fingerprint: Uuid) -> Result<u32, Error> {
    #[derive(diesel::QueryableByName)]
    struct Begun {
        #[diesel(sql_type = SmallInt)]
        begun: i16,
    }
    let row: Begun = prepared(
        diesel::sql_query(
            "INSERT INTO suspects (fingerprint, begun) VALUES ($1, 1)
             ON CONFLICT (fingerprint) DO UPDATE SET begun = least(suspects.begun + 1, 1000), begun_at = now()
             RETURNING begun",
        )
        .bind::<SqlUuid, _>(fingerprint),
    )
    .get_result(connection)
    .await?;
    Ok(u32::try_from(row.begun).unwrap_or(0))
}

/// Forgets a message that has been handled, and those that nobody has begun for a day.
///
/// # Errors
/// See [`Error`].
pub async fn forget(connection: &mut AsyncPgConnection, fingerprint: Uuid) -> Result<(), Error> {
    prepared(
        diesel::sql_query(
            "DELETE FROM suspects WHERE fingerprint = $1 OR begun_at < now() - interval '1 day'",
        )
        .bind::<SqlUuid, _>(fingerprint),
    )
    .execute(connection)
    .await?;
    Ok(())
}
