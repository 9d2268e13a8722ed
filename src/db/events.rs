//! Events: what `orders::save` and `stock::save` have noted of what they changed.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{
    Array, BigInt, Double, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid,
};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use super::orders::Order;
use super::{corrupt, orders, product_id, stock};
use crate::domain::events::{Document, Event, EventType, OrderDocument, Position};
use crate::domain::ids::{OrderId, ProductId, VendorId};
use crate::domain::keys::LOCAL_CALLER;
use crate::domain::order::Reason;
use crate::pg::{Error, prepared};

/// Rows that one look reads, however few events they have.
const ROWS_MAX: i64 = 200;

/// What is there to be told.
#[derive(Debug)]
pub struct Look {
    /// In their order.
    pub events: Vec<Event>,
    /// Up to where all has been told with them.
    pub until: Position,
    /// Whether there may be more already.
    pub is_full: bool,
    /// What came after the place was deleted, or the place is not of this database: nothing was read, and what there is
    /// begins at `until`.
    pub is_broken: bool,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    horizon: i64,
    #[diesel(sql_type = BigInt)]
    ceiling: i64,
    #[diesel(sql_type = BigInt)]
    deleted_xid: i64,
    #[diesel(sql_type = BigInt)]
    deleted_id: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    xid: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    id: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    kind: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Jsonb>)]
    reason: Option<serde_json::Value>,
    #[diesel(sql_type = Nullable<Integer>)]
    first: Option<i32>,
    #[diesel(sql_type = Nullable<Array<SqlUuid>>)]
    order_ids: Option<Vec<Uuid>>,
    #[diesel(sql_type = Nullable<Array<Text>>)]
    product_ids: Option<Vec<String>>,
}

/// Where those stand who hear what happens from now on.
///
/// # Errors
/// See [`Error`].
pub async fn now(connection: &mut AsyncPgConnection) -> Result<Position, Error> {
    #[derive(QueryableByName)]
    struct Horizon {
        #[diesel(sql_type = BigInt)]
        horizon: i64,
    }
    let row: Horizon = prepared(diesel::sql_query(
        "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon",
    ))
    .get_result(connection)
    .await?;
    Ok(Position::before(row.horizon))
}

/// Reads at most `limit` events after a place. A row may have more of them than that: it is read in parts.
///
/// # Errors
/// See [`Error`].
pub async fn list_after(
    connection: &mut AsyncPgConnection,
    vendors: &[VendorId],
    after: Position,
    limit: i64,
) -> Result<Look, Error> {
    let rows: Vec<Row> = prepared(
        diesel::sql_query(format!(
            "SELECT h.horizon::text::bigint AS horizon, h.ceiling::text::bigint AS ceiling,
                 h.xid::text::bigint AS deleted_xid, h.id AS deleted_id,
                 e.xid::text::bigint AS xid, e.id, e.kind, e.at, e.reason, e.first - 1 AS first,
                 e.order_ids[e.first : e.first - 1 + ($4 - e.before)::integer] AS order_ids,
                 e.product_ids[e.first : e.first - 1 + ($4 - e.before)::integer] AS product_ids
             FROM (
                 SELECT pg_snapshot_xmin(s) AS horizon, pg_snapshot_xmax(s) AS ceiling, d.xid, d.id
                 FROM pg_current_snapshot() AS s CROSS JOIN events_deleted AS d
             ) AS h
             LEFT JOIN LATERAL (
                 SELECT *, sum(size + 1 - first) OVER (ORDER BY xid, id) - (size + 1 - first) AS before
                 FROM (
                     -- An array begins at 1, a place within a row at 0.
                     SELECT *, coalesce(cardinality(order_ids), cardinality(product_ids)) AS size,
                         CASE WHEN xid = $1::text::xid8 AND id = $2 THEN $3 + 2 ELSE 1 END AS first
                     FROM events WHERE (xid, id) >= ($1::text::xid8, $2) AND xid < h.horizon
                     ORDER BY xid, id LIMIT {ROWS_MAX}
                 ) AS part
             ) AS e ON e.before < $4
             ORDER BY e.xid, e.id"
        ))
        .bind::<Text, _>(after.xid.to_string())
        .bind::<BigInt, _>(after.row)
        .bind::<Integer, _>(after.index.min(i32::MAX - 2))
        .bind::<BigInt, _>(limit),
    )
    .load(connection)
    .await?;
    let [first, ..] = rows.as_slice() else {
        return Err(corrupt("events_deleted has no row"));
    };
    let (horizon, ceiling) = (first.horizon, first.ceiling);
    let deleted = Position {
        xid: first.deleted_xid,
        row: first.deleted_id,
        index: i32::MAX,
    };
    let begins_at = if after < deleted {
        Some(deleted)
    } else {
        (after.xid > ceiling).then(|| Position::before(horizon))
    };
    if let Some(until) = begins_at {
        return Ok(Look {
            events: Vec::new(),
            until,
            is_full: true,
            is_broken: true,
        });
    }
    let rows_read = rows.iter().filter(|row| row.xid.is_some()).count();
    let told: Vec<Told> = rows
        .into_iter()
        .map(Told::of_row)
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect();
    let is_full = i64::try_from(told.len()).unwrap_or(i64::MAX) >= limit
        || i64::try_from(rows_read).unwrap_or(i64::MAX) >= ROWS_MAX;
    let last = told.last().map_or(after, |told| told.position);
    let until = if is_full {
        last
    } else {
        // What is not seen yet begins there.
        after.max(Position::before(horizon))
    };
    let events = complete(connection, vendors, told).await?;
    Ok(Look {
        events,
        until,
        is_full,
        is_broken: false,
    })
}

/// What a row says of one of its orders or products.
struct Told {
    position: Position,
    kind: EventType,
    at: DateTime<Utc>,
    reason: Option<Reason>,
    of: Of,
}

enum Of {
    Order(OrderId),
    Product(ProductId),
}

impl Told {
    fn of_row(row: Row) -> Result<Vec<Self>, Error> {
        let (Some(xid), Some(id), Some(kind), Some(at), Some(first)) =
            (row.xid, row.id, row.kind, row.at, row.first)
        else {
            return Ok(Vec::new());
        };
        let kind = EventType::parse(&kind).ok_or_else(|| corrupt(format!("event {kind}")))?;
        let reason: Option<Reason> = row
            .reason
            .map(serde_json::from_value)
            .transpose()
            .map_err(corrupt)?;
        let orders = row.order_ids.into_iter().flatten();
        let orders = orders.map(|id| Ok::<Of, Error>(Of::Order(OrderId(id))));
        let products = row.product_ids.into_iter().flatten();
        let products = products.map(|id| Ok(Of::Product(product_id(id)?)));
        let each = orders.chain(products).zip(first..);
        each.map(|(of, index): (Result<Of, Error>, i32)| {
            Ok(Self {
                position: Position {
                    xid,
                    row: id,
                    index,
                },
                kind,
                at,
                reason: reason.clone(),
                of: of?,
            })
        })
        .collect()
    }
}

/// Adds what stands in the rows of the orders and the stock.
async fn complete(
    connection: &mut AsyncPgConnection,
    vendors: &[VendorId],
    told: Vec<Told>,
) -> Result<Vec<Event>, Error> {
    let (mut ids, mut products) = (Vec::new(), Vec::new());
    for one in &told {
        match &one.of {
            Of::Order(id) => ids.push(*id),
            Of::Product(id) => products.push(id.clone()),
        }
    }
    let mut of_orders: BTreeMap<OrderId, Order> = BTreeMap::new();
    if !ids.is_empty() {
        let found = orders::find_all(connection, &ids).await?;
        of_orders.extend(found.into_iter().map(|order| (order.request.id, order)));
    }
    let mut available = BTreeMap::new();
    if !products.is_empty() {
        products.sort_unstable();
        products.dedup();
        available = stock::list_available(connection, vendors, &products).await?;
    }
    told.into_iter()
        .filter_map(|one| match &one.of {
            Of::Order(id) => Some(of_order(&one, of_orders.get(id)?)),
            Of::Product(id) => Some(of_stock(
                &one,
                id,
                available.get(id).copied().unwrap_or_default(),
            )),
        })
        .collect()
}

fn of_order(told: &Told, order: &Order) -> Result<Event, Error> {
    let status = told
        .kind
        .status()
        .ok_or_else(|| corrupt("an event of stock with orders"))?;
    // Only what failed can become something else and forget its reason; an event of that has its own.
    let of_row = order.reason.as_ref().filter(|_| order.status == status);
    let caller = order.request.caller.as_str();
    let document = Document {
        r#type: told.kind,
        at: told.at,
        order: Some(OrderDocument {
            id: order.request.id,
            caller: Some(caller).filter(|name| *name != LOCAL_CALLER),
            status,
            reason: told
                .reason
                .as_ref()
                .or(of_row)
                .cloned()
                .map(Reason::for_caller),
            reference: order.request.reference.as_deref(),
            lines: &order.request.lines,
            accepted_at: order.request.accepted_at,
        }),
        product_id: None,
        available: None,
    };
    let lines = order.request.lines.as_slice().iter();
    Ok(Event {
        position: told.position,
        kind: told.kind,
        owner: Some(order.request.caller.clone()),
        products: lines.map(|line| line.product_id.clone()).collect(),
        data: serde_json::to_string(&document).map_err(corrupt)?,
    })
}

fn of_stock(told: &Told, product: &ProductId, available: i64) -> Result<Event, Error> {
    let document = Document {
        r#type: told.kind,
        at: told.at,
        order: None,
        product_id: Some(product),
        available: Some(available),
    };
    Ok(Event {
        position: told.position,
        kind: told.kind,
        owner: None,
        products: vec![product.clone()],
        data: serde_json::to_string(&document).map_err(corrupt)?,
    })
}

/// Deletes at most `limit` rows that are older than that, the first in the order of events, and notes up to where. Where
/// another process does the same, nothing. Returns how many were deleted.
///
/// # Errors
/// See [`Error`].
pub async fn delete_older(
    connection: &mut AsyncPgConnection,
    age: Duration,
    limit: i64,
) -> Result<usize, Error> {
    #[derive(QueryableByName)]
    struct Deleted {
        #[diesel(sql_type = BigInt)]
        n: i64,
    }
    let row: Deleted = prepared(
        diesel::sql_query(
            "WITH turn AS MATERIALIZED (
                 SELECT FROM events_deleted FOR NO KEY UPDATE SKIP LOCKED
             ), oldest AS (
                 SELECT e.xid, e.id, e.at FROM turn CROSS JOIN LATERAL (
                     SELECT xid, id, at FROM events WHERE xid < pg_snapshot_xmin(pg_current_snapshot())
                     ORDER BY xid, id LIMIT $2
                 ) AS e
             ), gone AS (
                 DELETE FROM events USING oldest
                 WHERE events.xid = oldest.xid AND events.id = oldest.id
                     AND oldest.at < now() - make_interval(secs => $1)
                 RETURNING events.xid, events.id
             ), noted AS (
                 UPDATE events_deleted SET xid = last.xid, id = last.id
                 FROM (SELECT xid, id FROM gone ORDER BY xid DESC, id DESC LIMIT 1) AS last
                 WHERE (events_deleted.xid, events_deleted.id) < (last.xid, last.id)
             )
             SELECT count(*) AS n FROM gone",
        )
        .bind::<Double, _>(age.as_secs_f64())
        .bind::<BigInt, _>(limit),
    )
    .get_result(connection)
    .await?;
    Ok(usize::try_from(row.n).unwrap_or_default())
}
