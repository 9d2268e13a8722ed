//! Orders.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{
    Array, BigInt, Double, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid,
};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use super::outbox::{self, Waiting};
use super::{corrupt, vendor_id};
use crate::domain::history::{self, Event};
use crate::domain::ids::{OrderId, ProductId};
use crate::domain::messages::{encode_order, join_orders, share_messages};
use crate::domain::order::{Line, Lines, NewOrder, Reason, Status};
use crate::pg::{Error, prepared};

/// An order as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// What was asked for.
    pub request: NewOrder,
    /// Where it stands.
    pub status: Status,
    /// Why, where there is a why.
    pub reason: Option<Reason>,
    /// When it was confirmed or rejected.
    pub decided_at: Option<DateTime<Utc>>,
    /// When it was cancelled.
    pub cancelled_at: Option<DateTime<Utc>>,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    caller: String,
    #[diesel(sql_type = Nullable<Text>)]
    idempotency_key: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    reference: Option<String>,
    #[diesel(sql_type = Jsonb)]
    lines: serde_json::Value,
    #[diesel(sql_type = Text)]
    status: String,
    #[diesel(sql_type = Nullable<Jsonb>)]
    reason: Option<serde_json::Value>,
    #[diesel(sql_type = Timestamptz)]
    accepted_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    decided_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    cancelled_at: Option<DateTime<Utc>>,
}

impl TryFrom<Row> for Order {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self, Error> {
        Ok(Self {
            request: NewOrder {
                id: OrderId(row.id),
                caller: row.caller,
                idempotency_key: row.idempotency_key,
                lines: lines(row.lines)?,
                reference: row.reference,
                accepted_at: row.accepted_at,
            },
            status: Status::parse(&row.status)
                .ok_or_else(|| corrupt(format!("status {}", row.status)))?,
            reason: row
                .reason
                .map(serde_json::from_value)
                .transpose()
                .map_err(corrupt)?,
            decided_at: row.decided_at,
            cancelled_at: row.cancelled_at,
        })
    }
}

/// The columns of an order, in arrays as `unnest` takes them.
struct Columns {
    ids: Vec<Uuid>,
    callers: Vec<String>,
    keys: Vec<Option<String>>,
    references: Vec<Option<String>>,
    /// As JSON.
    lines: Vec<String>,
    accepted_at: Vec<DateTime<Utc>>,
}

impl Columns {
    fn new(orders: &[NewOrder]) -> Result<Self, Error> {
        Ok(Self {
            ids: orders.iter().map(|o| o.id.0).collect(),
            callers: orders.iter().map(|o| o.caller.clone()).collect(),
            keys: orders.iter().map(|o| o.idempotency_key.clone()).collect(),
            references: orders.iter().map(|o| o.reference.clone()).collect(),
            lines: orders
                .iter()
                .map(|o| serde_json::to_string(&o.lines))
                .collect::<Result<_, _>>()
                .map_err(corrupt)?,
            accepted_at: orders.iter().map(|o| o.accepted_at).collect(),
        })
    }
}

/// Inserts accepted orders that are all new, and their messages' outbox rows, in one statement and so in one transaction.
/// Returns their messages. Each id is given once; in the order of [`insert_accepted`].
///
/// # Errors
/// See [`Error`]. One that exists, or whose key another has, is a unique violation: nothing is inserted.
pub async fn insert_new(
    connection: &mut AsyncPgConnection,
    orders: &[NewOrder],
) -> Result<Vec<Waiting>, Error> {
    let columns = Columns::new(orders)?;
    let encoded: Vec<String> = orders.iter().map(encode_order).collect();
    let mut bodies = BTreeMap::new();
    let (mut message_ids, mut firsts, mut lasts) = (Vec::new(), Vec::new(), Vec::new());
    let mut first = 0;
    for share in share_messages(&encoded).chunk_by(|a, b| a == b) {
        let until = first + share.len();
        let message_id = match share {
            [_] => columns.ids[first],
            _ => Uuid::now_v7(),
        };
        let of_message: Vec<&str> = encoded[first..until].iter().map(String::as_str).collect();
        bodies.insert(message_id, join_orders(&of_message));
        message_ids.push(message_id);
        // Places are counted from 1.
        firsts.push(i32::try_from(first + 1).map_err(corrupt)?);
        lasts.push(i32::try_from(until).map_err(corrupt)?);
        first = until;
    }
    // What is ordered stands in the orders' own rows, so the outbox names them only.
    let added: Vec<outbox::Added> = prepared(
        diesel::sql_query(
            "WITH inserted AS (
                 INSERT INTO orders (id, caller, idempotency_key, reference, lines, accepted_at)
                 SELECT id, caller, idempotency_key, reference, lines::jsonb, accepted_at
                 FROM unnest($1, $2, $3, $4, $5, $6) AS t(id, caller, idempotency_key, reference, lines, accepted_at)
                 ORDER BY caller, idempotency_key, id
             )
             INSERT INTO outbox (queue, message_id, order_ids)
             SELECT 'orders_queue', message_id, ($1)[first:last] FROM unnest($7, $8, $9) AS t(message_id, first, last)
             RETURNING id, message_id",
        )
        .bind::<Array<SqlUuid>, _>(columns.ids)
        .bind::<Array<Text>, _>(columns.callers)
        .bind::<Array<Nullable<Text>>, _>(columns.keys)
        .bind::<Array<Nullable<Text>>, _>(columns.references)
        .bind::<Array<Text>, _>(columns.lines)
        .bind::<Array<Timestamptz>, _>(columns.accepted_at)
        .bind::<Array<SqlUuid>, _>(message_ids)
        .bind::<Array<Integer>, _>(firsts)
        .bind::<Array<Integer>, _>(lasts),
    )
    .load(connection)
    .await?;
    Ok(outbox::with_bodies(added, "orders_queue", bodies))
}

/// Inserts accepted orders of which some may exist, and their messages' outbox rows, in one statement and so in one
/// transaction. Returns those that did not exist, and their messages. Each id is given once. [`insert_new`] costs less.
///
/// Rows are inserted in the order of their keys, and by id where there is none: two batches that meet in the same keys in
/// opposite order would deadlock, and the ids of two requests say nothing of the order of the key that both claim.
///
/// # Errors
/// See [`Error`].
pub async fn insert_accepted(
    connection: &mut AsyncPgConnection,
    orders: &[NewOrder],
) -> Result<(Vec<OrderId>, Vec<Waiting>), Error> {
    #[derive(QueryableByName)]
    struct Inserted {
        #[diesel(sql_type = BigInt)]
        id: i64,
        #[diesel(sql_type = SqlUuid)]
        message_id: Uuid,
        #[diesel(sql_type = Array<Integer>)]
        places: Vec<i32>,
    }
    let columns = Columns::new(orders)?;
    let encoded: Vec<String> = orders.iter().map(encode_order).collect();
    let shares: Vec<i32> = share_messages(&encoded)
        .into_iter()
        .map(|share| i32::try_from(share).map_err(corrupt))
        .collect::<Result<_, _>>()?;
    // What is ordered stands in the orders' own rows, so the outbox names them only.
    let rows: Vec<Inserted> = prepared(
        diesel::sql_query(
            "WITH input AS MATERIALIZED (
                 SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7) WITH ORDINALITY
                     AS t(id, caller, idempotency_key, reference, lines, accepted_at, share, place)
             ), inserted AS (
                 INSERT INTO orders (id, caller, idempotency_key, reference, lines, accepted_at)
                 SELECT id, caller, idempotency_key, reference, lines::jsonb, accepted_at FROM input
                 ORDER BY caller, idempotency_key, id
                 ON CONFLICT DO NOTHING RETURNING id
             ), messages AS (
                 SELECT share, array_agg(id ORDER BY place) AS order_ids, array_agg(place::integer ORDER BY place) AS places,
                     CASE count(*) WHEN 1 THEN (array_agg(id))[1] ELSE gen_random_uuid() END AS message_id
                 FROM inserted JOIN input USING (id) GROUP BY share
             ), written AS (
                 INSERT INTO outbox (queue, message_id, order_ids)
                 SELECT 'orders_queue', message_id, order_ids FROM messages ORDER BY share
                 RETURNING id, message_id
             )
             SELECT id, message_id, places FROM written JOIN messages USING (message_id) ORDER BY id",
        )
        .bind::<Array<SqlUuid>, _>(columns.ids)
        .bind::<Array<Text>, _>(columns.callers)
        .bind::<Array<Nullable<Text>>, _>(columns.keys)
        .bind::<Array<Nullable<Text>>, _>(columns.references)
        .bind::<Array<Text>, _>(columns.lines)
        .bind::<Array<Timestamptz>, _>(columns.accepted_at)
        .bind::<Array<Integer>, _>(shares),
    )
    .load(connection)
    .await?;
    let mut ids = Vec::with_capacity(orders.len());
    let mut waiting = Vec::with_capacity(rows.len());
    for row in rows {
        // Places are counted from 1.
        let places = || {
            row.places
                .iter()
                .filter_map(|place| usize::try_from(place - 1).ok())
        };
        ids.extend(places().filter_map(|place| Some(orders.get(place)?.id)));
        let of_message: Vec<&str> = places()
            .filter_map(|place| Some(encoded.get(place)?.as_str()))
            .collect();
        waiting.push(Waiting {
            id: row.id,
            queue: "orders_queue".to_owned(),
            message_id: row.message_id,
            body: join_orders(&of_message),
        });
    }
    Ok((ids, waiting))
}

/// Inserts orders that came through the broker, where they do not exist yet; their messages are being handled now.
/// Each id is given once; in the order of [`insert_accepted`].
///
/// # Errors
/// See [`Error`].
pub async fn insert_delivered(
    connection: &mut AsyncPgConnection,
    orders: &[NewOrder],
) -> Result<(), Error> {
    let columns = Columns::new(orders)?;
    prepared(
        diesel::sql_query(
            "WITH inserted AS (
                 INSERT INTO orders (id, caller, idempotency_key, reference, lines, accepted_at)
                 SELECT id, caller, idempotency_key, reference, lines::jsonb, accepted_at
                 FROM unnest($1, $2, $3, $4, $5, $6) AS t(id, caller, idempotency_key, reference, lines, accepted_at)
                 ORDER BY caller, idempotency_key, id
                 ON CONFLICT DO NOTHING RETURNING id
             )
             INSERT INTO sent_orders (sent_at, order_ids) SELECT now(), array_agg(id) FROM inserted HAVING count(*) > 0",
        )
        .bind::<Array<SqlUuid>, _>(columns.ids)
        .bind::<Array<Text>, _>(columns.callers)
        .bind::<Array<Nullable<Text>>, _>(columns.keys)
        .bind::<Array<Nullable<Text>>, _>(columns.references)
        .bind::<Array<Text>, _>(columns.lines)
        .bind::<Array<Timestamptz>, _>(columns.accepted_at),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Locks orders, by id, and reads what they ask for. Those that do not exist are left out.
///
/// # Errors
/// See [`Error`].
pub async fn load_for_update(
    connection: &mut AsyncPgConnection,
    ids: &[OrderId],
) -> Result<Vec<(OrderId, Status, Lines)>, Error> {
    #[derive(QueryableByName)]
    struct Locked {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
        #[diesel(sql_type = Text)]
        status: String,
        #[diesel(sql_type = Jsonb)]
        lines: serde_json::Value,
    }
    let rows: Vec<Locked> = prepared(
        diesel::sql_query(
            "SELECT id, status, lines FROM orders WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE",
        )
        .bind::<Array<SqlUuid>, _>(ids.iter().map(|id| id.0).collect::<Vec<_>>()),
    )
    .load(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let status = Status::parse(&row.status)
                .ok_or_else(|| corrupt(format!("status {}", row.status)))?;
            Ok((OrderId(row.id), status, lines(row.lines)?))
        })
        .collect()
}

fn lines(json: serde_json::Value) -> Result<Lines, Error> {
    let lines: Vec<Line> = serde_json::from_value(json).map_err(corrupt)?;
    Lines::parse_summed(lines).map_err(corrupt)
}

/// Writes what has become of locked orders, and the events that tell of it. What of it no column keeps is for
/// [`note_failures`].
///
/// # Errors
/// See [`Error`].
pub async fn save(
    mut connection: &AsyncPgConnection,
    orders: &[(OrderId, Status, Option<Reason>)],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    if orders.is_empty() {
        return Ok(());
    }
    let reasons: Vec<Option<serde_json::Value>> = orders
        .iter()
        .map(|(_, _, reason)| reason.as_ref().map(serde_json::to_value).transpose())
        .collect::<Result<_, _>>()
        .map_err(corrupt)?;
    prepared(
        diesel::sql_query(
            "WITH t AS MATERIALIZED (
                 SELECT * FROM unnest($1, $2, $3) AS t(id, status, reason)
             ), told AS (
                 INSERT INTO events (kind, order_ids, reason, at)
                 SELECT 'order.' || status, array_agg(id), CASE WHEN status = 'failed' THEN reason END AS kept, $4
                 FROM t WHERE status <> 'pending' GROUP BY status, kept
             )
             UPDATE orders SET status = t.status, reason = t.reason,
                 decided_at = CASE WHEN t.status IN ('confirmed', 'rejected') THEN $4 ELSE decided_at END,
                 cancelled_at = CASE WHEN t.status = 'cancelled' THEN $4 END
             FROM t WHERE orders.id = t.id",
        )
        .bind::<Array<SqlUuid>, _>(orders.iter().map(|(id, _, _)| id.0).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(orders.iter().map(|(_, s, _)| s.as_str()).collect::<Vec<_>>())
        .bind::<Array<Nullable<Jsonb>>, _>(reasons)
        .bind::<Timestamptz, _>(now),
    )
    .execute(&mut connection)
    .await?;
    Ok(())
}

/// Notes which of the orders have failed or are taken up again: that may happen more than once, so no column keeps it.
///
/// # Errors
/// See [`Error`].
pub async fn note_failures(
    mut connection: &AsyncPgConnection,
    orders: &[(OrderId, Status, Option<Reason>)],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let event = |status: &Status| match status {
        Status::Failed => Some("failed"),
        Status::Pending => Some("replayed"),
        Status::Confirmed | Status::Rejected | Status::Cancelled => None,
    };
    let (ids, events): (Vec<Uuid>, Vec<&str>) = orders
        .iter()
        .filter_map(|(id, status, _)| Some((id.0, event(status)?)))
        .unzip();
    if ids.is_empty() {
        return Ok(());
    }
    prepared(
        diesel::sql_query(
            "INSERT INTO order_events (order_id, at, event) SELECT id, $3, event FROM unnest($1, $2) AS t(id, event)",
        )
        .bind::<Array<SqlUuid>, _>(ids)
        .bind::<Array<Text>, _>(events)
        .bind::<Timestamptz, _>(now),
    )
    .execute(&mut connection)
    .await?;
    let pending: Vec<Uuid> = orders
        .iter()
        .filter(|(_, status, _)| *status == Status::Pending)
        .map(|(id, _, _)| id.0)
        .collect();
    if pending.is_empty() {
        return Ok(());
    }
    // Their message is sent by whoever takes them up again.
    prepared(
        diesel::sql_query("INSERT INTO sent_orders (sent_at, order_ids) VALUES ($1, $2)")
            .bind::<Timestamptz, _>(now)
            .bind::<Array<SqlUuid>, _>(pending),
    )
    .execute(&mut connection)
    .await?;
    Ok(())
}

/// Lists what happened to an order beside what its columns keep, oldest first: at most `limit`, the newest of them.
///
/// # Errors
/// See [`Error`].
pub async fn list_events(
    connection: &mut AsyncPgConnection,
    id: OrderId,
    limit: i64,
) -> Result<Vec<history::Entry>, Error> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Timestamptz)]
        at: DateTime<Utc>,
        #[diesel(sql_type = Text)]
        event: String,
        #[diesel(sql_type = Nullable<Text>)]
        vendor_id: Option<String>,
    }
    let rows: Vec<Row> = prepared(
        diesel::sql_query(
            "SELECT * FROM (
                 SELECT at, event, vendor_id FROM order_events WHERE order_id = $1 ORDER BY at DESC LIMIT $2
             ) AS newest ORDER BY at",
        )
        .bind::<SqlUuid, _>(id.0)
        .bind::<BigInt, _>(limit),
    )
    .load(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let vendor = row.vendor_id.map(vendor_id).transpose()?;
            let event = match (row.event.as_str(), vendor) {
                ("failed", None) => Event::Failed,
                ("replayed", None) => Event::Replayed,
                ("push_failed", Some(vendor_id)) => Event::PushFailed { vendor_id },
                ("push_replayed", Some(vendor_id)) => Event::PushReplayed { vendor_id },
                ("push_dropped", Some(vendor_id)) => Event::PushDropped { vendor_id },
                _ => return Err(corrupt(format!("event {}", row.event))),
            };
            Ok(history::Entry { at: row.at, event })
        })
        .collect()
}

const COLUMNS: &str = "id, caller, idempotency_key, reference, lines, status, reason, accepted_at, decided_at, cancelled_at";

/// Looks orders up by their ids.
///
/// # Errors
/// See [`Error`].
pub async fn find_all(
    connection: &mut AsyncPgConnection,
    ids: &[OrderId],
) -> Result<Vec<Order>, Error> {
    let rows: Vec<Row> = prepared(
        diesel::sql_query(format!("SELECT {COLUMNS} FROM orders WHERE id = ANY($1)"))
            .bind::<Array<SqlUuid>, _>(ids.iter().map(|id| id.0).collect::<Vec<_>>()),
    )
    .load(connection)
    .await?;
    rows.into_iter().map(Order::try_from).collect()
}

/// Of the given ids, those that exist.
///
/// # Errors
/// See [`Error`].
pub async fn list_existing(
    connection: &mut AsyncPgConnection,
    ids: &[OrderId],
) -> Result<Vec<OrderId>, Error> {
    #[derive(QueryableByName)]
    struct Existing {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    let rows: Vec<Existing> = prepared(
        diesel::sql_query("SELECT id FROM orders WHERE id = ANY($1)")
            .bind::<Array<SqlUuid>, _>(ids.iter().map(|id| id.0).collect::<Vec<_>>()),
    )
    .load(connection)
    .await?;
    Ok(rows.into_iter().map(|row| OrderId(row.id)).collect())
}

/// Of the given orders, those that are there and not pending.
///
/// # Errors
/// See [`Error`].
pub async fn list_not_pending(
    connection: &mut AsyncPgConnection,
    ids: &[OrderId],
) -> Result<Vec<OrderId>, Error> {
    #[derive(QueryableByName)]
    struct Decided {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    let rows: Vec<Decided> = prepared(
        diesel::sql_query("SELECT id FROM orders WHERE id = ANY($1) AND status <> 'pending'")
            .bind::<Array<SqlUuid>, _>(ids.iter().map(|id| id.0).collect::<Vec<_>>()),
    )
    .load(connection)
    .await?;
    Ok(rows.into_iter().map(|row| OrderId(row.id)).collect())
}

/// Orders that are read for one page of a list, whatever the filter leaves of them: an index for each filter would cost
/// every order more than its row does.
pub const READ_FOR_PAGE_MAX: i64 = 100_000;

/// Whether an order is there, and a caller's.
///
/// # Errors
/// See [`Error`].
pub async fn belongs_to(
    connection: &mut AsyncPgConnection,
    id: OrderId,
    caller: &str,
) -> Result<bool, Error> {
    #[derive(QueryableByName)]
    struct Belongs {
        #[diesel(sql_type = diesel::sql_types::Bool)]
        yes: bool,
    }
    let belongs: Belongs = prepared(
        diesel::sql_query(
            "SELECT EXISTS (SELECT FROM orders WHERE id = $1 AND caller = $2) AS yes",
        )
        .bind::<SqlUuid, _>(id.0)
        .bind::<Text, _>(caller),
    )
    .get_result(connection)
    .await?;
    Ok(belongs.yes)
}

/// The place of an order in the list.
pub type Place = (DateTime<Utc>, OrderId);

/// Which orders to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those with this status.
    pub status: Option<Status>,
    /// Only those with a line of this product.
    pub product_id: Option<ProductId>,
    /// Only this caller's.
    pub caller: Option<String>,
    /// Only those after this one, in the order of the list.
    pub after: Option<Place>,
}

/// Orders of one page.
pub struct Page {
    /// At most as many as were asked for.
    pub orders: Vec<Order>,
    /// Where the next page begins, when there may be one: after this order.
    pub next: Option<Place>,
}

/// Lists orders, newest first: at most `limit`, and as many of the newest [`READ_FOR_PAGE_MAX`] as the filter lets
/// through, of the caller's if the filter names one. Its statements have to see the same orders, and settings of its own
/// last until the end of the transaction: it is for a [snapshot](crate::pg::snapshot).
///
/// # Errors
/// See [`Error`].
pub async fn list(
    connection: &mut AsyncPgConnection,
    filter: &Filter,
    limit: i64,
) -> Result<Page, Error> {
    let product = filter
        .product_id
        .as_ref()
        .map(|id| serde_json::json!([{ "productId": id }]));
    let (after_at, after_id) = filter.after.map(|(at, id)| (at, id.0)).unzip();
    // Read in the order of an index, from its place on. A plan that sorts is cheaper where a caller has a few orders, and is
    // kept until it has a million.
    prepared(diesel::sql_query(
        "SELECT set_config(name, 'off', true) FROM unnest(ARRAY['enable_bitmapscan', 'enable_sort']) AS name",
    ))
    .execute(connection)
    .await?;
    // As it stands in the index of callers' orders, which leaves out those of nobody in particular: who needs no key sees all.
    let of_caller = match filter.caller.as_deref() {
        None => "$3 IS NULL",
        Some(_) => "caller = $3 AND caller <> 'local'",
    };
    // An order without one before it is behind the end of time: so a plan for either begins at its place in the index.
    let newest = format!(
        "FROM orders WHERE {of_caller}
             AND (accepted_at, id) < (coalesce($1, 'infinity'), coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
         ORDER BY accepted_at DESC, id DESC"
    );
    let rows: Vec<Row> = prepared(
        diesel::sql_query(format!(
            "SELECT {COLUMNS} FROM (SELECT {COLUMNS} {newest} LIMIT {READ_FOR_PAGE_MAX}) AS newest
             WHERE ($4 IS NULL OR status = $4) AND ($5 IS NULL OR lines @> $5)
             ORDER BY accepted_at DESC, id DESC LIMIT $6"
        ))
        .bind::<Nullable<Timestamptz>, _>(after_at)
        .bind::<Nullable<SqlUuid>, _>(after_id)
        .bind::<Nullable<Text>, _>(filter.caller.as_deref())
        .bind::<Nullable<Text>, _>(filter.status.map(Status::as_str))
        .bind::<Nullable<Jsonb>, _>(product)
        // One more says whether there is a next page.
        .bind::<BigInt, _>(limit + 1),
    )
    .load(connection)
    .await?;
    let mut orders = rows
        .into_iter()
        .map(Order::try_from)
        .collect::<Result<Vec<_>, _>>()?;
    let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
    let next = if orders.len() > wanted {
        orders.truncate(wanted);
        orders
            .last()
            .map(|order| (order.request.accepted_at, order.request.id))
    } else if filter.status.is_some() || filter.product_id.is_some() {
        let last_read: Vec<Key> = prepared(
            diesel::sql_query(format!(
                "SELECT accepted_at, id {newest} OFFSET {READ_FOR_PAGE_MAX} - 1 LIMIT 1"
            ))
            .bind::<Nullable<Timestamptz>, _>(after_at)
            .bind::<Nullable<SqlUuid>, _>(after_id)
            .bind::<Nullable<Text>, _>(filter.caller.as_deref()),
        )
        .load(connection)
        .await?;
        last_read
            .as_slice()
            .first()
            .map(|key| (key.accepted_at, OrderId(key.id)))
    } else {
        None
    };
    Ok(Page { orders, next })
}

#[derive(QueryableByName)]
struct Key {
    #[diesel(sql_type = Timestamptz)]
    accepted_at: DateTime<Utc>,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
}

/// Of a caller's idempotency keys, those that are taken, with the order that has each.
///
/// # Errors
/// See [`Error`].
pub async fn list_by_keys(
    connection: &mut AsyncPgConnection,
    keys: &[(String, String)],
) -> Result<Vec<(String, String, OrderId)>, Error> {
    #[derive(QueryableByName)]
    struct Taken {
        #[diesel(sql_type = Text)]
        caller: String,
        #[diesel(sql_type = Text)]
        idempotency_key: String,
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    let rows: Vec<Taken> = prepared(
        diesel::sql_query(
            "SELECT o.caller, o.idempotency_key, o.id FROM unnest($1, $2) AS t(caller, idempotency_key)
             JOIN orders o ON o.caller = t.caller AND o.idempotency_key = t.idempotency_key",
        )
        .bind::<Array<Text>, _>(keys.iter().map(|(caller, _)| caller.as_str()).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(keys.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>()),
    )
    .load(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.caller, row.idempotency_key, OrderId(row.id)))
        .collect())
}

/// Orders to be sent again, of those that were looked at.
pub struct Looked {
    /// Whole, oldest first; the sending that follows is counted.
    pub forgotten: Vec<NewOrder>,
    /// How many messages were looked at.
    pub messages: usize,
}

/// Looks at the orders of at most `limit` messages that were sent over `first_wait` ago. Those that are pending for a
/// time that doubles with each sending are locked and returned, since their message may be lost; others that are pending
/// are looked at again later. Whoever sends them has to write them into the outbox in the same transaction.
///
/// # Errors
/// See [`Error`].
pub async fn claim_forgotten(
    connection: &mut AsyncPgConnection,
    first_wait: std::time::Duration,
    limit: i64,
) -> Result<Looked, Error> {
    #[derive(QueryableByName)]
    struct Sent {
        #[diesel(sql_type = Array<SqlUuid>)]
        order_ids: Vec<Uuid>,
    }
    let sent: Vec<Sent> = prepared(
        diesel::sql_query(
            "DELETE FROM sent_orders USING (
                 SELECT id FROM sent_orders WHERE sent_at <= now() - make_interval(secs => $1)
                 ORDER BY sent_at LIMIT $2 FOR UPDATE SKIP LOCKED
             ) AS oldest
             WHERE sent_orders.id = oldest.id RETURNING order_ids",
        )
        .bind::<Double, _>(first_wait.as_secs_f64())
        .bind::<BigInt, _>(limit),
    )
    .load(connection)
    .await?;
    let messages = sent.len();
    let ids: Vec<Uuid> = sent.into_iter().flat_map(|sent| sent.order_ids).collect();
    if ids.is_empty() {
        let forgotten = Vec::new();
        return Ok(Looked {
            forgotten,
            messages,
        });
    }
    let rows: Vec<Row> = prepared(
        diesel::sql_query(format!(
            "WITH pending AS (
                 SELECT id, accepted_at + make_interval(secs => $2 * 2 ^ resent) AS due_at FROM orders
                 WHERE id = ANY($1) AND status = 'pending' ORDER BY id FOR NO KEY UPDATE
             ), early AS (
                 INSERT INTO sent_orders (sent_at, order_ids)
                 SELECT min(due_at) - make_interval(secs => $2), array_agg(id) FROM pending WHERE due_at > now()
                 HAVING count(*) > 0
             )
             UPDATE orders SET resent = least(resent + 1, 30) FROM pending
             WHERE orders.id = pending.id AND pending.due_at <= now()
             RETURNING {}",
            COLUMNS
                .split(", ")
                .map(|column| format!("orders.{column}"))
                .collect::<Vec<_>>()
                .join(", ")
        ))
        .bind::<Array<SqlUuid>, _>(ids)
        .bind::<Double, _>(first_wait.as_secs_f64()),
    )
    .load(connection)
    .await?;
    let mut forgotten = rows
        .into_iter()
        .map(|row| Order::try_from(row).map(|order| order.request))
        .collect::<Result<Vec<_>, _>>()?;
    forgotten.sort_by_key(|order| (order.accepted_at, order.id));
    Ok(Looked {
        forgotten,
        messages,
    })
}
