//! The consumers that are there, in whichever process, and whether they make progress.

use std::time::Duration;

use diesel::sql_types::{Bool, Double, Nullable, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::pg::{Error, prepared};

/// The consumers of one queue.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
pub struct OfQueue {
    /// The queue's name.
    #[diesel(sql_type = Text)]
    pub queue: String,
    /// Whether one of them has finished nothing for long although messages wait.
    #[diesel(sql_type = Bool)]
    pub is_stalled: bool,
}

/// Says that a process consumes a queue, and for how long it has finished nothing although messages wait, if so.
///
/// # Errors
/// See [`Error`].
pub async fn note(
    connection: &mut AsyncPgConnection,
    instance: Uuid,
    queue: &str,
    stalled_for: Option<Duration>,
) -> Result<(), Error> {
    prepared(
        diesel::sql_query(
            "INSERT INTO consumers (instance, queue, seen_at, stalled_since)
             VALUES ($1, $2, now(), now() - make_interval(secs => $3))
             ON CONFLICT (instance, queue) DO UPDATE SET seen_at = excluded.seen_at, stalled_since = excluded.stalled_since",
        )
        .bind::<SqlUuid, _>(instance)
        .bind::<Text, _>(queue)
        .bind::<Nullable<Double>, _>(stalled_for.map(|time| time.as_secs_f64())),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The queues that are consumed: by somebody who was seen within `silence`. One that has finished nothing for
/// `stalled_after` is stalled.
///
/// # Errors
/// See [`Error`].
pub async fn list(
    connection: &mut AsyncPgConnection,
    silence: Duration,
    stalled_after: Duration,
) -> Result<Vec<OfQueue>, Error> {
    Ok(prepared(
        diesel::sql_query(
            "SELECT queue, bool_or(stalled_since IS NOT NULL AND stalled_since <= now() - make_interval(secs => $2)) AS is_stalled
             FROM consumers WHERE seen_at > now() - make_interval(secs => $1) GROUP BY queue ORDER BY queue",
        )
        .bind::<Double, _>(silence.as_secs_f64())
        .bind::<Double, _>(stalled_after.as_secs_f64()),
    )
    .load(connection)
    .await?)
}

/// Forgets a process that ends, and those that have ended without a word a day ago.
///
/// # Errors
/// See [`Error`].
pub async fn forget(connection: &mut AsyncPgConnection, instance: Uuid) -> Result<(), Error> {
    prepared(
        diesel::sql_query(
            "DELETE FROM consumers WHERE instance = $1 OR seen_at < now() - interval '1 day'",
        )
        .bind::<SqlUuid, _>(instance),
    )
    .execute(connection)
    .await?;
    Ok(())
}
