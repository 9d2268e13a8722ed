//! The outbox: what was decided in a transaction and has to reach the broker after it.

use std::collections::BTreeMap;
use std::time::Duration;

use diesel::sql_types::{Array, BigInt, Double, Nullable, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::domain::ids::OrderId;
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

/// A row of the outbox, locked. It has the message, or names the orders that the message is made of.
#[derive(Debug, diesel::QueryableByName)]
pub struct Claimed {
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
    #[diesel(sql_type = Nullable<Text>)]
    pub body: Option<String>,
    /// The orders of the message.
    #[diesel(sql_type = Nullable<Array<SqlUuid>>)]
    pub order_ids: Option<Vec<Uuid>>,
}

/// A row that was added, whose message is at hand.
#[derive(diesel::QueryableByName)]
pub(super) struct Added {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = SqlUuid)]
    message_id: Uuid,
}

/// Rows that were added, with their messages: nothing has to come back from the database that has just gone there.
pub(super) fn with_bodies(
    added: Vec<Added>,
    queue: &str,
    mut bodies: BTreeMap<Uuid, String>,
) -> Vec<Waiting> {
    added
        .into_iter()
        .filter_map(|row| {
            Some(Waiting {
                id: row.id,
                queue: queue.to_owned(),
                message_id: row.message_id,
                body: bodies.remove(&row.message_id)?,
            })
        })
        .collect()
}

/// Messages to vendors of one statement. A message has up to 500 updates, and a connection keeps what its largest
/// statement took.
const UPDATES_MESSAGES_MAX: usize = 4;

/// Adds messages to vendors, and returns their rows in the same order.
///
/// # Errors
/// See [`Error`].
pub async fn append_updates(
    mut connection: &AsyncPgConnection,
    messages: Vec<(Uuid, String)>,
) -> Result<Vec<Waiting>, Error> {
    let mut rows = Vec::with_capacity(messages.len());
    for messages in messages.chunks(UPDATES_MESSAGES_MAX) {
        let (ids, bodies): (Vec<Uuid>, Vec<&str>) = messages
            .iter()
            .map(|(id, body)| (*id, body.as_str()))
            .unzip();
        let added: Vec<Added> = prepared(
            diesel::sql_query(
                "INSERT INTO outbox (queue, message_id, body) SELECT 'vendor_sync', * FROM unnest($1, $2)
                 RETURNING id, message_id",
            )
            .bind::<Array<SqlUuid>, _>(ids)
            .bind::<Array<Text>, _>(bodies),
        )
        .load(&mut connection)
        .await?;
        rows.extend(added);
    }
    Ok(with_bodies(
        rows,
        "vendor_sync",
        messages.into_iter().collect(),
    ))
}

/// Adds messages of orders, each with the orders in it, and returns their rows.
///
/// # Errors
/// See [`Error`].
pub async fn append_orders(
    connection: &mut AsyncPgConnection,
    messages: Vec<(OrderId, String)>,
) -> Result<Vec<Waiting>, Error> {
    if messages.is_empty() {
        return Ok(Vec::new());
    }
    let (ids, bodies): (Vec<Uuid>, Vec<String>) =
        messages.into_iter().map(|(id, body)| (id.0, body)).unzip();
    Ok(prepared(
        diesel::sql_query(
            "INSERT INTO outbox (queue, message_id, body, order_ids)
             SELECT 'orders_queue', id, body, ARRAY[id] FROM unnest($1, $2) AS t(id, body)
             RETURNING id, queue, message_id, body",
        )
        .bind::<Array<SqlUuid>, _>(ids)
        .bind::<Array<Text>, _>(bodies),
    )
    .load(connection)
    .await?)
}

/// Removes messages whose confirm has come. Their orders are remembered, to be looked at later.
///
/// # Errors
/// See [`Error`].
pub async fn delete(connection: &mut AsyncPgConnection, ids: &[i64]) -> Result<(), Error> {
    prepared(
        diesel::sql_query(
            "WITH gone AS (DELETE FROM outbox WHERE id = ANY($1) RETURNING order_ids)
             INSERT INTO sent_orders (sent_at, order_ids) SELECT now(), order_ids FROM gone WHERE order_ids IS NOT NULL",
        )
        .bind::<Array<BigInt>, _>(ids),
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
) -> Result<Vec<Claimed>, Error> {
    Ok(prepared(
        diesel::sql_query(
            "SELECT id, queue, message_id, body, order_ids FROM outbox
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
