//! How fast messages go through the queues, told by each process that consumes.

use std::time::Duration;

use diesel::sql_types::{Array, Double, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::pg::{Error, prepared};

/// The messages of one queue.
#[derive(Debug, Clone, PartialEq, diesel::QueryableByName)]
pub struct OfQueue {
    /// The queue's name.
    #[diesel(sql_type = Text)]
    pub queue: String,
    /// How many in a second, over all processes.
    #[diesel(sql_type = Double)]
    pub per_second: f64,
}

/// Says how fast a process moves the messages of its queues.
///
/// # Errors
/// See [`Error`].
pub async fn note(
    connection: &mut AsyncPgConnection,
    instance: Uuid,
    rates: &[(&str, f64)],
) -> Result<(), Error> {
    let (queues, per_second): (Vec<&str>, Vec<f64>) = rates.iter().copied().unzip();
    prepared(
        diesel::sql_query(
            "INSERT INTO queue_rates (instance, queue, per_second)
             SELECT $1, of.queue, of.per_second FROM unnest($2, $3) AS of (queue, per_second)
             ON CONFLICT (instance, queue) DO UPDATE SET seen_at = excluded.seen_at, per_second = excluded.per_second",
        )
        .bind::<SqlUuid, _>(instance)
        .bind::<Array<Text>, _>(queues)
        .bind::<Array<Double>, _>(per_second),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The queues through which messages go, as it was said within `silence`.
///
/// # Errors
/// See [`Error`].
pub async fn list(
    connection: &mut AsyncPgConnection,
    silence: Duration,
) -> Result<Vec<OfQueue>, Error> {
    Ok(prepared(
        diesel::sql_query(
            "SELECT queue, sum(per_second) AS per_second FROM queue_rates
             WHERE seen_at > now() - make_interval(secs => $1) GROUP BY queue ORDER BY queue",
        )
        .bind::<Double, _>(silence.as_secs_f64()),
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
            "DELETE FROM queue_rates WHERE instance = $1 OR seen_at < now() - interval '1 day'",
        )
        .bind::<SqlUuid, _>(instance),
    )
    .execute(connection)
    .await?;
    Ok(())
}
