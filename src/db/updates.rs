//! Updates: the signed changes that the vendors are told.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{
    Array, BigInt, Bool, Double, Nullable, Text, Timestamptz, Uuid as SqlUuid,
};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use super::{corrupt, product_id, vendor_id};
use crate::domain::history::Timed;
use crate::domain::ids::{OrderId, ProductId, UpdateId, VendorId};
use crate::domain::update::{Brief, State, Update};
use crate::pg::{Error, prepared};

#[derive(diesel::QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    order_id: Uuid,
    #[diesel(sql_type = Text)]
    product_id: String,
    #[diesel(sql_type = Text)]
    vendor_id: String,
    #[diesel(sql_type = BigInt)]
    delta: i64,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    reverses: Option<Uuid>,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Bool)]
    turned: bool,
}

/// The columns of a [`Row`].
const COLUMNS: &str =
    "id, order_id, product_id, vendor_id, delta, reverses, state, turned_at IS NOT NULL AS turned";

impl TryFrom<Row> for Update {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self, Error> {
        Ok(Self {
            id: UpdateId(row.id),
            order_id: OrderId(row.order_id),
            vendor_id: vendor_id(row.vendor_id)?,
            product_id: product_id(row.product_id)?,
            delta: row.delta,
            reverses: row.reverses.map(UpdateId),
            state: State::parse(&row.state)
                .ok_or_else(|| corrupt(format!("state {}", row.state)))?,
            turned: row.turned,
        })
    }
}

fn uuids(ids: &[UpdateId]) -> Vec<Uuid> {
    ids.iter().map(|id| id.0).collect()
}

/// Reads updates, without locking them.
///
/// # Errors
/// See [`Error`].
pub async fn find_all(
    connection: &mut AsyncPgConnection,
    ids: &[UpdateId],
) -> Result<Vec<Update>, Error> {
    let rows: Vec<Row> = prepared(
        diesel::sql_query(format!(
            "SELECT {COLUMNS} FROM stock_updates WHERE id = ANY($1)"
        ))
        .bind::<Array<SqlUuid>, _>(uuids(ids)),
    )
    .load(connection)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Reads all updates of orders, without locking them: their orders or their stock must be locked for them to stay so.
///
/// # Errors
/// See [`Error`].
pub async fn list_of_orders(
    connection: &mut AsyncPgConnection,
    orders: &[OrderId],
) -> Result<Vec<Update>, Error> {
    let rows: Vec<Row> = prepared(
        diesel::sql_query(format!(
            "SELECT {COLUMNS} FROM stock_updates WHERE order_id = ANY($1) ORDER BY id"
        ))
        .bind::<Array<SqlUuid>, _>(orders.iter().map(|id| id.0).collect::<Vec<_>>()),
    )
    .load(connection)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Locks updates, by id. Their stock must be locked before.
///
/// # Errors
/// See [`Error`].
pub async fn load_for_update(
    connection: &mut AsyncPgConnection,
    ids: &[UpdateId],
) -> Result<Vec<Update>, Error> {
    let rows: Vec<Row> = prepared(
        diesel::sql_query(format!(
            "SELECT {COLUMNS} FROM stock_updates WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE"
        ))
        .bind::<Array<SqlUuid>, _>(uuids(ids)),
    )
    .load(connection)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Locks updates, by id, with those that they reverse and that reverse them. Their stock must be locked before.
///
/// # Errors
/// See [`Error`].
pub async fn load_with_counterparts_for_update(
    connection: &mut AsyncPgConnection,
    ids: &[UpdateId],
) -> Result<Vec<Update>, Error> {
    let rows: Vec<Row> = prepared(
        diesel::sql_query(format!(
            "SELECT {COLUMNS} FROM stock_updates
             WHERE id = ANY(ARRAY(
                 SELECT unnest($1)
                 UNION SELECT reverses FROM stock_updates WHERE id = ANY($1) AND reverses IS NOT NULL
                 UNION SELECT id FROM stock_updates WHERE reverses = ANY($1)
             )) ORDER BY id FOR NO KEY UPDATE"
        ))
        .bind::<Array<SqlUuid>, _>(uuids(ids)),
    )
    .load(connection)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// A row of the list of what is not closed.
#[derive(Debug)]
pub struct Listing {
    /// The row.
    pub id: i64,
    /// What stands in it. Some of that may be closed by now: it is taken out afterwards.
    pub updates: Vec<UpdateId>,
}

/// Some rows of a vendor's list of what is not closed.
#[derive(Debug)]
pub struct Page {
    /// The rows, in their order.
    pub listings: Vec<Listing>,
    /// Whether these are the last ones that there were.
    pub is_last: bool,
}

impl Page {
    /// What stands in its rows.
    #[must_use]
    pub fn updates(&self) -> Vec<UpdateId> {
        self.listings
            .iter()
            .flat_map(|listing| listing.updates.iter().copied())
            .collect()
    }

    /// After which row the next page begins.
    #[must_use]
    pub fn end(&self) -> Option<i64> {
        self.listings.last().map(|listing| listing.id)
    }
}

/// Where the rows of the list have fewer ids than that, less comes than the limit allows: not more rows are read for it.
const FEW_IDS: usize = 20;

/// Lists the next rows of a vendor's list of what is not closed after the row `after`, with about `limit` updates. The
/// updates themselves are not looked at.
///
/// # Errors
/// See [`Error`].
pub async fn list_unclosed(
    connection: &mut AsyncPgConnection,
    vendor: &VendorId,
    after: i64,
    limit: usize,
) -> Result<Page, Error> {
    #[derive(diesel::QueryableByName)]
    struct Listed {
        #[diesel(sql_type = BigInt)]
        id: i64,
        #[diesel(sql_type = Array<SqlUuid>)]
        update_ids: Vec<Uuid>,
    }
    let rows_max = limit.div_ceil(FEW_IDS);
    let rows: Vec<Listed> = prepared(
        diesel::sql_query(
            "SELECT id, update_ids FROM (
                 SELECT id, update_ids, sum(cardinality(update_ids)) OVER (ORDER BY id) - cardinality(update_ids) AS before
                 FROM (SELECT id, update_ids FROM listed_updates
                       WHERE vendor_id = $1 AND id > $2 ORDER BY id LIMIT $4) AS next
             ) AS counted WHERE before < $3 ORDER BY id",
        )
        .bind::<Text, _>(vendor.as_str())
        .bind::<BigInt, _>(after)
        .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind::<BigInt, _>(i64::try_from(rows_max).unwrap_or(i64::MAX)),
    )
    .load(connection)
    .await?;
    let listed: usize = rows.iter().map(|row| row.update_ids.len()).sum();
    Ok(Page {
        is_last: listed < limit && rows.len() < rows_max,
        listings: rows
            .into_iter()
            .map(|row| Listing {
                id: row.id,
                updates: row.update_ids.into_iter().map(UpdateId).collect(),
            })
            .collect(),
    })
}

/// Of updates, those that are not closed; only those in one state, where that is given.
///
/// # Errors
/// See [`Error`].
pub async fn find_unclosed(
    connection: &mut AsyncPgConnection,
    ids: &[UpdateId],
    state: Option<State>,
) -> Result<Vec<Brief>, Error> {
    #[derive(diesel::QueryableByName)]
    struct Found {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
        #[diesel(sql_type = Text)]
        product_id: String,
        #[diesel(sql_type = Bool)]
        is_take: bool,
    }
    let rows: Vec<Found> = prepared(
        diesel::sql_query(
            "SELECT id, product_id, delta < 0 AS is_take FROM stock_updates
             WHERE id = ANY($1) AND closed_at IS NULL AND ($2 IS NULL OR state = $2) ORDER BY id",
        )
        .bind::<Array<SqlUuid>, _>(uuids(ids))
        .bind::<Nullable<Text>, _>(state.map(State::as_str)),
    )
    .load(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Brief {
                id: UpdateId(row.id),
                product_id: product_id(row.product_id)?,
                is_take: row.is_take,
            })
        })
        .collect()
}

/// Takes rows out of the list of what is not closed, of which everything is closed.
///
/// # Errors
/// See [`Error`].
pub async fn unlist(
    connection: &mut AsyncPgConnection,
    vendor: &VendorId,
    listings: &[i64],
) -> Result<(), Error> {
    if listings.is_empty() {
        return Ok(());
    }
    prepared(
        diesel::sql_query("DELETE FROM listed_updates WHERE vendor_id = $1 AND id = ANY($2)")
            .bind::<Text, _>(vendor.as_str())
            .bind::<Array<BigInt>, _>(listings.to_vec()),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes what is closed out of rows of the list of what is not. What is closed stays so, so nobody has to wait for anybody.
///
/// # Errors
/// See [`Error`].
pub async fn unlist_closed(
    connection: &mut AsyncPgConnection,
    vendor: &VendorId,
    listings: &[i64],
) -> Result<(), Error> {
    if listings.is_empty() {
        return Ok(());
    }
    prepared(
        diesel::sql_query(
            "WITH looked AS MATERIALIZED (
                 SELECT l.id, cardinality(l.update_ids) AS before, (
                     SELECT array_agg(u.id) FROM stock_updates u
                     WHERE u.id = ANY(l.update_ids) AND u.closed_at IS NULL
                 ) AS remaining
                 FROM listed_updates l WHERE l.vendor_id = $1 AND l.id = ANY($2)
             ), gone AS (
                 DELETE FROM listed_updates
                 WHERE vendor_id = $1 AND id = ANY(ARRAY(SELECT id FROM looked WHERE remaining IS NULL))
             )
             UPDATE listed_updates l SET update_ids = looked.remaining FROM looked
             WHERE l.vendor_id = $1 AND l.id = ANY($2) AND l.id = looked.id
                 AND cardinality(looked.remaining) < looked.before",
        )
        .bind::<Text, _>(vendor.as_str())
        .bind::<Array<BigInt>, _>(listings.to_vec()),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The most of one [`insert`]: a connection keeps what its largest statement took.
pub const INSERTED_MAX: usize = 2000;

/// Inserts at most [`INSERTED_MAX`] updates, in the order of their ids: the index of those grows at its end then.
///
/// # Errors
/// See [`Error`].
pub async fn insert(
    mut connection: &AsyncPgConnection,
    updates: &[Update],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    if updates.is_empty() {
        return Ok(());
    }
    prepared(
        diesel::sql_query(
            "INSERT INTO stock_updates
                 (id, order_id, product_id, vendor_id, delta, reverses, state, created_at, turned_at, closed_at)
             SELECT id, order_id, product_id, vendor_id, delta, reverses, state, $9, CASE WHEN turned THEN $9 END,
                 CASE WHEN state IN ('applied', 'rejected', 'void') THEN $9 END
             FROM unnest($1, $2, $3, $4, $5, $6, $7, $8)
                 AS t(id, order_id, product_id, vendor_id, delta, reverses, state, turned)
             ORDER BY id",
        )
        .bind::<Array<SqlUuid>, _>(updates.iter().map(|u| u.id.0).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(updates.iter().map(|u| u.order_id.0).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(updates.iter().map(|u| u.product_id.as_str()).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(updates.iter().map(|u| u.vendor_id.as_str()).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(updates.iter().map(|u| u.delta).collect::<Vec<_>>())
        .bind::<Array<Nullable<SqlUuid>>, _>(updates.iter().map(|u| u.reverses.map(|id| id.0)).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(updates.iter().map(|u| u.state.as_str()).collect::<Vec<_>>())
        .bind::<Array<Bool>, _>(updates.iter().map(|u| u.turned).collect::<Vec<_>>())
        .bind::<Timestamptz, _>(now),
    )
    .execute(&mut connection)
    .await?;
    Ok(())
}

/// Writes the states of locked updates. A closed one never opens again, whatever is asked for.
///
/// # Errors
/// See [`Error`].
pub async fn save(
    mut connection: &AsyncPgConnection,
    updates: &[Update],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    if updates.is_empty() {
        return Ok(());
    }
    prepared(
        diesel::sql_query(
            "UPDATE stock_updates SET state = t.state,
                 acknowledged_at = CASE WHEN t.state = 'acknowledged' THEN $4 ELSE acknowledged_at END,
                 turned_at = CASE WHEN t.turned THEN coalesce(turned_at, $4) END,
                 closed_at = CASE WHEN t.state IN ('applied', 'rejected', 'void') THEN $4 END,
                 dead_lettered_at = NULL
             FROM unnest($1, $2, $3) AS t(id, state, turned)
             WHERE stock_updates.id = t.id AND stock_updates.closed_at IS NULL",
        )
        .bind::<Array<SqlUuid>, _>(updates.iter().map(|u| u.id.0).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(updates.iter().map(|u| u.state.as_str()).collect::<Vec<_>>())
        .bind::<Array<Bool>, _>(updates.iter().map(|u| u.turned).collect::<Vec<_>>())
        .bind::<Timestamptz, _>(now),
    )
    .execute(&mut connection)
    .await?;
    Ok(())
}

/// Writes that takes were applied at their vendor; those that are not open any more stay as they are. Their stock need
/// not be locked: no figure depends on it. They are locked in the order of their ids all the same, as by everybody.
///
/// # Errors
/// See [`Error`].
pub async fn acknowledge_takes(
    connection: &mut AsyncPgConnection,
    ids: &[UpdateId],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    if ids.is_empty() {
        return Ok(());
    }
    prepared(
        diesel::sql_query("SELECT acknowledge_takes($1, $2)")
            .bind::<Array<SqlUuid>, _>(uuids(ids))
            .bind::<Timestamptz, _>(now),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes of one product that were closed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedTakes {
    /// Of which product.
    pub product_id: ProductId,
    /// What they take together; below 0.
    pub delta: i64,
    /// How many they are.
    pub updates: i64,
}

/// Closes takes that their vendor's ledger has as applied, and returns which were not closed before. Their stock must be
/// locked before, and what they take has to move from what is open to what is on hand.
///
/// # Errors
/// See [`Error`].
pub async fn close_takes(
    connection: &mut AsyncPgConnection,
    ids: &[UpdateId],
    now: DateTime<Utc>,
) -> Result<Vec<ClosedTakes>, Error> {
    #[derive(diesel::QueryableByName)]
    struct Closed {
        #[diesel(sql_type = Text)]
        product_id: String,
        #[diesel(sql_type = BigInt)]
        delta: i64,
        #[diesel(sql_type = BigInt)]
        updates: i64,
    }
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<Closed> = prepared(
        diesel::sql_query("SELECT product_id, delta, updates FROM close_takes($1, $2)")
            .bind::<Array<SqlUuid>, _>(uuids(ids))
            .bind::<Timestamptz, _>(now),
    )
    .load(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(ClosedTakes {
                product_id: product_id(row.product_id)?,
                delta: row.delta,
                updates: row.updates,
            })
        })
        .collect()
}

/// What happens to the dead letter of updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadLetter {
    /// It is there now.
    Written,
    /// It is on its way again.
    Replayed,
    /// An operator has dropped it.
    Dropped,
}

/// Notes of updates without an answer whether their message is in the dead-letter queue, and of their orders that this
/// happened. Returns these orders.
///
/// # Errors
/// See [`Error`].
pub async fn mark_dead_lettered(
    connection: &mut AsyncPgConnection,
    ids: &[UpdateId],
    letter: DeadLetter,
    now: DateTime<Utc>,
) -> Result<Vec<OrderId>, Error> {
    #[derive(diesel::QueryableByName)]
    struct Of {
        #[diesel(sql_type = SqlUuid)]
        order_id: Uuid,
    }
    let event = match letter {
        DeadLetter::Written => "push_failed",
        DeadLetter::Replayed => "push_replayed",
        DeadLetter::Dropped => "push_dropped",
    };
    let of: Vec<Of> = prepared(
        diesel::sql_query(
            "WITH open AS (
                 SELECT id FROM stock_updates
                 WHERE id = ANY($1) AND state = 'open' AND (dead_lettered_at IS NULL) = $2
                 ORDER BY id FOR NO KEY UPDATE
             ), marked AS (
                 UPDATE stock_updates u SET dead_lettered_at = CASE WHEN $2 THEN $3 END FROM open WHERE u.id = open.id
                 RETURNING u.order_id, u.vendor_id
             )
             INSERT INTO order_events (order_id, at, event, vendor_id)
             SELECT DISTINCT order_id, $3, $4, vendor_id FROM marked
             RETURNING order_id",
        )
        .bind::<Array<SqlUuid>, _>(uuids(ids))
        .bind::<Bool, _>(letter == DeadLetter::Written)
        .bind::<Timestamptz, _>(now)
        .bind::<Text, _>(event),
    )
    .load(connection)
    .await?;
    Ok(of.into_iter().map(|row| OrderId(row.order_id)).collect())
}

/// Locks updates whose message may be lost: without an answer for a time that doubles with each sending, not in the
/// dead-letter queue and without a row in the outbox. Returns them, and counts the sending that follows.
///
/// # Errors
/// See [`Error`].
pub async fn claim_forgotten(
    connection: &mut AsyncPgConnection,
    first_wait: std::time::Duration,
    limit: i64,
) -> Result<Vec<Update>, Error> {
    let rows: Vec<Row> = prepared(
        diesel::sql_query(
            "WITH listed AS (
                 SELECT unnest(l.update_ids) AS id FROM listed_updates l
                 -- What was listed lately was made lately: most need no look.
                 WHERE l.listed_at < now() - make_interval(secs => $1)
                   -- What a vendor that is down is to be told comes again and again, and is late, not lost. A word that
                   -- is old is nobody's any more.
                   AND NOT EXISTS (
                       SELECT FROM vendor_pushes p WHERE p.vendor_id = l.vendor_id
                           AND (p.state <> 'ok' AND p.seen_at > now() - interval '15 minutes'
                                OR p.since > now() - make_interval(secs => least($1, 300)))
                   )
                   -- While the outbox itself has a backlog, nothing is lost that is only late.
                   AND (SELECT count(*) FROM (SELECT FROM outbox WHERE queue = 'vendor_sync' LIMIT 1000) b) < 1000
             ), forgotten AS (
                 SELECT id FROM stock_updates
                 WHERE id = ANY(ARRAY(SELECT id FROM listed))
                   AND closed_at IS NULL AND state = 'open' AND dead_lettered_at IS NULL
                   AND created_at < now() - make_interval(secs => $1 * 2 ^ resent)
                 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
             )
             UPDATE stock_updates u SET resent = least(resent + 1, 30) FROM forgotten WHERE u.id = forgotten.id
             RETURNING u.id, u.order_id, u.product_id, u.vendor_id, u.delta, u.reverses, u.state,
                 u.turned_at IS NOT NULL AS turned",
        )
        .bind::<Double, _>(first_wait.as_secs_f64())
        .bind::<BigInt, _>(limit),
    )
    .load(connection)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// An update, as shown to people.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The update and its times.
    pub timed: Timed,
    /// Whether its message is in the dead-letter queue.
    pub dead: bool,
}

#[derive(diesel::QueryableByName)]
struct ShownRow {
    #[diesel(embed)]
    update: Row,
    #[diesel(sql_type = Bool)]
    dead: bool,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    acknowledged_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    closed_at: Option<DateTime<Utc>>,
}

/// Lists the updates of orders, to be shown: by order, then in the order in which they were made.
///
/// # Errors
/// See [`Error`].
pub async fn list_shown(
    connection: &mut AsyncPgConnection,
    orders: &[OrderId],
) -> Result<Vec<Shown>, Error> {
    let rows: Vec<ShownRow> = prepared(
        diesel::sql_query(format!(
            "SELECT {COLUMNS}, state = 'open' AND dead_lettered_at IS NOT NULL AS dead,
                 created_at, acknowledged_at, closed_at
             FROM stock_updates WHERE order_id = ANY($1) ORDER BY order_id, created_at, vendor_id, product_id, id"
        ))
        .bind::<Array<SqlUuid>, _>(orders.iter().map(|id| id.0).collect::<Vec<_>>()),
    )
    .load(connection)
    .await?;
    rows.into_iter()
        .map(|shown| {
            Ok(Shown {
                timed: Timed {
                    update: shown.update.try_into()?,
                    created_at: shown.created_at,
                    acknowledged_at: shown.acknowledged_at,
                    closed_at: shown.closed_at,
                },
                dead: shown.dead,
            })
        })
        .collect()
}
