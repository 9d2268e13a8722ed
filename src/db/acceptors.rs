//! The processes that accept orders, and until when each vouches that all it has accepted is here.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::sql_types::{Bool, Double, Nullable, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::pg::{Error, prepared};

/// Writes a process's word, or that it cannot give it. Returns the server's time.
///
/// # Errors
/// See [`Error`].
pub async fn vouch(
    connection: &mut AsyncPgConnection,
    instance: Uuid,
    until: Option<DateTime<Utc>>,
) -> Result<DateTime<Utc>, Error> {
    #[derive(diesel::QueryableByName)]
    struct Seen {
        #[diesel(sql_type = Timestamptz)]
        seen_at: DateTime<Utc>,
    }
    let row: Seen = prepared(
        diesel::sql_query(
            "INSERT INTO acceptors (instance, vouches_until, seen_at) VALUES ($1, $2, clock_timestamp())
             ON CONFLICT (instance) DO UPDATE SET vouches_until = excluded.vouches_until, seen_at = excluded.seen_at
             RETURNING seen_at",
        )
        .bind::<SqlUuid, _>(instance)
        .bind::<Nullable<Timestamptz>, _>(until),
    )
    .get_result(connection)
    .await?;
    Ok(row.seen_at)
}

/// Whether every process vouches for itself at this moment.
///
/// # Errors
/// See [`Error`].
pub async fn all_vouch(connection: &mut AsyncPgConnection) -> Result<bool, Error> {
    #[derive(diesel::QueryableByName)]
    struct All {
        #[diesel(sql_type = Bool)]
        all_vouch: bool,
    }
    let row: All = prepared(diesel::sql_query(
        "SELECT NOT EXISTS (
             SELECT FROM acceptors WHERE vouches_until IS NULL OR vouches_until < clock_timestamp()
         ) AS all_vouch",
    ))
    .get_result(connection)
    .await?;
    Ok(row.all_vouch)
}

/// Forgets a process that has ended with all it accepted in this database.
///
/// # Errors
/// See [`Error`].
pub async fn forget(connection: &mut AsyncPgConnection, instance: Uuid) -> Result<(), Error> {
    prepared(
        diesel::sql_query("DELETE FROM acceptors WHERE instance = $1").bind::<SqlUuid, _>(instance),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether there are processes that were not seen for `silence`.
///
/// # Errors
/// See [`Error`].
pub async fn has_silent(
    connection: &mut AsyncPgConnection,
    silence: Duration,
) -> Result<bool, Error> {
    #[derive(diesel::QueryableByName)]
    struct Any {
        #[diesel(sql_type = Bool)]
        any: bool,
    }
    let row: Any = prepared(
        diesel::sql_query(
            "SELECT EXISTS (
                 SELECT FROM acceptors WHERE seen_at < clock_timestamp() - make_interval(secs => $1)
             ) AS any",
        )
        .bind::<Double, _>(silence.as_secs_f64()),
    )
    .get_result(connection)
    .await?;
    Ok(row.any)
}

/// Forgets processes that were not seen for `silence` and that have nothing left in the queue: it is empty, as the caller
/// has seen, or an order that was accepted after they were last seen was decided long ago. Returns how many.
///
/// # Errors
/// See [`Error`].
pub async fn forget_silent(
    connection: &mut AsyncPgConnection,
    silence: Duration,
    queue_is_empty: bool,
) -> Result<usize, Error> {
    Ok(prepared(
        diesel::sql_query(
            "DELETE FROM acceptors
             WHERE seen_at < clock_timestamp() - make_interval(secs => $1)
               AND ($2 OR EXISTS (
                   SELECT FROM orders
                   WHERE decided_at IS NOT NULL AND accepted_at > acceptors.seen_at + interval '1 minute'
                     AND accepted_at < clock_timestamp() - make_interval(secs => $1 / 2)
               ))",
        )
        .bind::<Double, _>(silence.as_secs_f64())
        .bind::<Bool, _>(queue_is_empty),
    )
    .execute(connection)
    .await?)
}
