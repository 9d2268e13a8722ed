//! The outbox: what was decided in a transaction and has to reach the broker after it.

use std::time::Duration;

use diesel::sql_types::{Array, BigInt, Double, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::pg::{Error, prepared};

/// A message that waits for its confirm.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
pub struct Waiting {
    /// The row.
    #[diesel(sql_type = BigInt)]
    pub id: i64,
    /// The queue's name, without the prefix.
    #[diesel(sql_type = Text)]
    pub queue: String,
    /// The message's name.
    #[diesel(sql_type = SqlUuid)]
    pub message_id: Uuid,
    /// The message.
    #[diesel(sql_type = Text)]
    pub body: String,
}

/// Adds messages for one queue, and returns their rows in the same order.
///
/// # Errors
/// See [`Error`].
pub async fn append(
    connection: &mut AsyncPgConnection,
    queue: &'static str,
    messages: Vec<(Uuid, String)>,
) -> Result<Vec<Waiting>, Error> {
    if messages.is_empty() {
        return Ok(Vec::new());
    }
    let (ids, bodies): (Vec<Uuid>, Vec<String>) = messages.into_iter().unzip();
    Ok(prepared(
        diesel::sql_query(
            "INSERT INTO outbox (queue, message_id, body) SELECT $1, * FROM unnest($2, $3)
             RETURNING id, queue, message_id, body",
        )
        .bind::<Text, _>(queue)
        .bind::<Array<SqlUuid>, _>(ids)
        .bind::<Array<Text>, _>(bodies),
    )
    .load(connection)
    .await?)
}

/// Removes messages whose confirm has come.
///
/// # Errors
/// See [`Error`].
pub async fn delete(connection: &mut AsyncPgConnection, ids: &[i64]) -> Result<(), Error> {
    prepared(
        diesel::sql_query("DELETE FROM outbox WHERE id = ANY($1)").bind::<Array<BigInt>, _>(ids),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Locks the oldest messages after the row `after` that have waited for longer than `age`, or that are not above the row
/// `whatever_age`, passing over those that another sweeper holds.
///
/// # Errors
/// See [`Error`].
pub async fn claim(
    connection: &mut AsyncPgConnection,
    after: i64,
    whatever_age: i64,
    age: Duration,
    limit: i64,
) -> Result<Vec<Waiting>, Error> {
    Ok(prepared(
        diesel::sql_query(
            "SELECT id, queue, message_id, body FROM outbox
             WHERE id > $1 AND (id <= $2 OR created_at < now() - make_interval(secs => $3))
             ORDER BY id LIMIT $4 FOR UPDATE SKIP LOCKED",
        )
        .bind::<BigInt, _>(after)
        .bind::<BigInt, _>(whatever_age)
        .bind::<Double, _>(age.as_secs_f64())
        .bind::<BigInt, _>(limit),
    )
    .load(connection)
    .await?)
}
