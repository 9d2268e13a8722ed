//! What an audit reads of our database: everything in one snapshot, and again, fresh, what looked wrong.
//!
//! Whole tables are compared by sums, in one sequential scan of each table that PostgreSQL may run in parallel: an amount
//! times a hash of what it belongs to, under a seed drawn anew for each audit. What several sums need is computed once for
//! a row, below a fence (`OFFSET '0'`, which the planner does not look through; as a number it would keep it from using
//! more than one process). The sums are linear, so splits, reallocations and
//! returns need no grouping. Two sums that should be equal and are not send the exact query after the rows at fault;
//! that two wrong tables have equal sums happens to one audit in 2^31.

use chrono::{DateTime, Utc};
use diesel::sql_types::{
    Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid,
};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use uuid::Uuid;

use super::corrupt;
use super::updates::Page;
use crate::domain::audit::{Digest, Found, Held, SHOWN_MAX, Violation};
use crate::domain::ids::{UpdateId, VendorId};
use crate::domain::update::{Brief, State};
use crate::pg::{Error, Settings, open_long_read, prepared};

/// What an update adds to what is available: `domain::update::Update::effect`.
const EFFECT: &str = "CASE WHEN (delta < 0) = (turned_at IS NULL) THEN delta ELSE 0 END";
/// The states in which an update takes from its order's lines or gives back.
const EFFECTIVE: &str = "('open', 'acknowledged', 'applied')";
/// A product at a vendor, as 31 bits.
const PLACE: &str = "(hashtextextended(product_id, hashtextextended(vendor_id, $1)) & 2147483647)";

/// A sum of amounts times weights of 31 bits. Products of usual amounts fit a bigint, which is fast; the others do not,
/// and no figure, however wrong, may stop the audit.
fn weighted_sum(amount: &str, weight: &str) -> String {
    let is_usual = format!("{amount} BETWEEN -2147483648 AND 2147483647");
    format!(
        "coalesce(sum(CASE WHEN {is_usual} THEN ({amount}) * {weight} END), 0)
         + coalesce(sum(CASE WHEN NOT ({is_usual}) THEN ({amount})::numeric * {weight} END), 0)"
    )
}

/// The quantity of a line; NULL where it is no number.
fn quantity(line: &str) -> String {
    format!(
        "(CASE WHEN jsonb_typeof({line}->'quantity') = 'number' THEN ({line}->'quantity')::numeric END)"
    )
}

/// A product of an order, as 31 bits.
fn of_product(product_id: &str) -> String {
    format!(
        "(hashtextextended({product_id} COLLATE \"C\", uuid_hash_extended(id, $1)) & 2147483647)"
    )
}

/// Why an order contradicts itself; NULL when it does not. Nothing is said of when it was accepted, which is its
/// producer's word. Of two processes' times one may be younger by the wait for a lock and by their clocks.
const CONTRADICTION: &str = "CASE
    -- Nearly all, and asked first.
    WHEN status = 'confirmed' AND decided_at IS NOT NULL AND cancelled_at IS NULL AND reason IS NULL THEN NULL
    WHEN status IN ('pending', 'failed') AND decided_at IS NOT NULL
        THEN format('is %s, yet was decided at %s', status, decided_at)
    WHEN status IN ('confirmed', 'rejected') AND decided_at IS NULL
        THEN format('is %s, yet no time says when it was decided', status)
    WHEN status = 'cancelled' AND cancelled_at IS NULL
        THEN 'is cancelled, yet no time says when'
    WHEN status <> 'cancelled' AND cancelled_at IS NOT NULL
        THEN format('is %s, yet was cancelled at %s', status, cancelled_at)
    WHEN cancelled_at < decided_at - interval '5 minutes'
        THEN format('was cancelled at %s, before it was decided at %s', cancelled_at, decided_at)
    WHEN status IN ('pending', 'confirmed') AND reason IS NOT NULL
        THEN format('is %s, yet has the reason %s', status, reason)
    WHEN status = 'rejected'
            AND coalesce(reason->>'code', '') IN ('', 'processing_failed', 'vendor_rejected')
        OR status = 'failed' AND coalesce(reason->>'code', '') <> 'processing_failed'
        THEN format('is %s, and its reason is %s', status, coalesce(reason::text, 'none'))
    WHEN status = 'cancelled' AND reason->>'code' = 'vendor_rejected' AND decided_at IS NULL
        THEN 'a vendor refused it, yet it was never decided'
    WHEN status NOT IN ('pending', 'confirmed', 'rejected', 'failed', 'cancelled')
        THEN format('has the status %s', status)
    END";

/// Whether an order's history tells of failures and replays as its status wants; counted, since the times of two
/// processes say nothing of what came first.
const HISTORY_AGREES: &str = "CASE o.status WHEN 'failed' THEN e.failed - e.replayed = 1
    WHEN 'cancelled' THEN e.failed - e.replayed BETWEEN 0 AND 1 ELSE e.failed = e.replayed END";
/// How often each order failed and was replayed.
const FAILURES: &str = "(SELECT order_id, count(*) FILTER (WHERE event = 'failed') AS failed,
        count(*) FILTER (WHERE event = 'replayed') AS replayed
    FROM order_events WHERE event IN ('failed', 'replayed') GROUP BY order_id)";

/// A sum as PostgreSQL's numeric has it; two are only ever compared.
fn sum(text: &str) -> Result<i128, Error> {
    text.parse()
        .map_err(|_| corrupt(format!("a sum of {text} is beyond any stock")))
}

/// The sums of all stock rows.
#[derive(Debug, Clone, Copy)]
pub struct OfStock {
    /// How many there are.
    pub rows: u64,
    /// Of `open_delta`.
    pub open: i128,
    /// Of what is available beyond the first listing.
    pub moved: i128,
}

/// The sums of all updates.
#[derive(Debug, Clone, Copy, Default)]
pub struct OfUpdates {
    /// How many there are.
    pub rows: u64,
    /// How many are not closed.
    pub unclosed: u64,
    /// How many give back, or have no effect: what no sum shows may be wrong with these.
    pub odd: u64,
    /// Of what those that are not closed count.
    pub open: i128,
    /// Of all effects.
    pub moved: i128,
    /// Of what was taken for orders, and not given back; by order and product.
    pub taken: i128,
}

/// The sums of all orders.
#[derive(Debug, Clone, Copy)]
pub struct OfOrders {
    /// How many there are.
    pub rows: u64,
    /// How many are failed.
    pub failed: u64,
    /// How many are pending.
    pub pending: u64,
    /// When the first of those was accepted.
    pub pending_since: Option<DateTime<Utc>>,
    /// How many contradict themselves.
    pub contradictory: u64,
    /// Of the lines of confirmed orders; by order and product.
    pub ordered: i128,
}

/// The part of the ids that a digest or a stream is about.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    /// The first id; from the beginning where there is none.
    pub from: Option<Uuid>,
    /// The first id that is not in it; to the end where there is none.
    pub until: Option<Uuid>,
}

/// The settled updates of one vendor in one part of the ids.
#[derive(Debug, Clone)]
pub struct Part {
    /// Whose.
    pub vendor_id: String,
    /// Which part: how many of the bounds are not above its ids.
    pub part: usize,
    /// What they are.
    pub digest: Digest,
    /// Whether all were closed so long ago that the ledger may have dropped them.
    pub may_be_gone: bool,
}

/// One consistent look at our database, on a connection of its own.
pub struct Snapshot {
    connection: AsyncPgConnection,
    seed: i64,
    at: DateTime<Utc>,
}

impl Snapshot {
    /// Opens it. `seed` is drawn anew each time.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn open(settings: &Settings, seed: i64) -> Result<Self, Error> {
        #[derive(diesel::QueryableByName)]
        struct Now {
            #[diesel(sql_type = Timestamptz)]
            at: DateTime<Utc>,
        }
        let mut connection = open_long_read(settings).await?;
        let now: Now = diesel::sql_query("SELECT now() AS at")
            .get_result(&mut connection)
            .await?;
        Ok(Self {
            connection,
            seed,
            at: now.at,
        })
    }

    /// When it was opened, by the clock of the database.
    #[must_use]
    pub fn at(&self) -> DateTime<Utc> {
        self.at
    }

    /// The connection that the snapshot is open on.
    pub fn connection(&mut self) -> &mut AsyncPgConnection {
        &mut self.connection
    }

    /// Sums up the stock.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn sum_stock(&mut self) -> Result<OfStock, Error> {
        #[derive(diesel::QueryableByName)]
        struct Row {
            #[diesel(sql_type = BigInt)]
            rows: i64,
            #[diesel(sql_type = Text)]
            open: String,
            #[diesel(sql_type = Text)]
            moved: String,
        }
        let row: Row = diesel::sql_query(format!(
            "SELECT count(*) AS rows, ({})::text AS open,
                 coalesce(sum((on_hand::numeric + open_delta - first_on_hand) * {PLACE}), 0)::text AS moved
             FROM stock",
            weighted_sum("open_delta", PLACE)
        ))
        .bind::<BigInt, _>(self.seed)
        .get_result(&mut self.connection)
        .await?;
        Ok(OfStock {
            rows: row.rows.unsigned_abs(),
            open: sum(&row.open)?,
            moved: sum(&row.moved)?,
        })
    }

    /// Sums up the updates, in one scan for all checks that they concern. Of those below `until`, digests too: of all that
    /// are settled, by vendor and by the part of the ids that they are in. In a digest, what has no effect is told apart
    /// from what has; a return that came to nothing may never have been sent, and is left out. `recent` is when what was
    /// closed before it may be gone at the vendor.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn sum_updates(
        &mut self,
        bounds: &[Uuid],
        until: Uuid,
        recent: DateTime<Utc>,
    ) -> Result<(OfUpdates, Vec<Part>), Error> {
        let usual = |amount: &str| {
            format!(
                "coalesce(sum({amount}) FILTER (WHERE is_usual), 0)
                 + coalesce(sum({}) FILTER (WHERE NOT is_usual), 0)",
                amount.replacen(" *", "::numeric *", 1)
            )
        };
        let rows: Vec<UpdatesRow> = diesel::sql_query(format!(
            "SELECT vendor_id, part, count(*) AS rows, count(*) FILTER (WHERE is_unclosed) AS unclosed,
                 count(*) FILTER (WHERE delta > 0 OR state IN ('rejected', 'void')) AS odd,
                 ({})::text AS open, ({})::text AS moved, ({})::text AS taken,
                 count(*) FILTER (WHERE is_settled) AS settled,
                 coalesce(sum(hashtextextended(product_id, uuid_hash_extended(id, uuid_hash_extended(
                     coalesce(reverses, '00000000-0000-0000-0000-000000000000'),
                     hashint8extended(delta, CASE WHEN state IN ('acknowledged', 'applied') THEN $1 ELSE ~$1 END)
                 )))) FILTER (WHERE is_settled), 0)::text AS digest,
                 coalesce(bool_and(NOT is_unclosed AND closed_at < $4) FILTER (WHERE is_settled), false) AS may_be_gone
             FROM (
                 SELECT id, product_id, vendor_id, order_id, delta, reverses, state, closed_at,
                     closed_at IS NULL AS is_unclosed, delta BETWEEN -2147483648 AND 2147483647 AS is_usual,
                     id < $3 AND (state IN ('acknowledged', 'applied') OR delta < 0 AND state <> 'open') AS is_settled,
                     {EFFECT} AS effect, CASE WHEN closed_at IS NULL THEN {EFFECT} ELSE 0 END AS counted,
                     CASE WHEN state IN {EFFECTIVE} THEN delta ELSE 0 END AS taken,
                     {PLACE} AS place, width_bucket(id, $2) AS part
                 FROM stock_updates OFFSET '0'
             ) AS u GROUP BY 1, 2",
            usual("counted * place"),
            usual("effect * place"),
            usual(
                "taken * (hashtextextended(product_id, uuid_hash_extended(order_id, $1)) & 2147483647)"
            ),
        ))
        .bind::<BigInt, _>(self.seed)
        .bind::<Array<SqlUuid>, _>(bounds)
        .bind::<SqlUuid, _>(until)
        .bind::<Timestamptz, _>(recent)
        .load(&mut self.connection)
        .await?;
        let mut all = OfUpdates::default();
        let mut parts = Vec::with_capacity(rows.len());
        for row in rows {
            all.rows += row.rows.unsigned_abs();
            all.unclosed += row.unclosed.unsigned_abs();
            all.odd += row.odd.unsigned_abs();
            all.open += sum(&row.open)?;
            all.moved += sum(&row.moved)?;
            all.taken += sum(&row.taken)?;
            if row.settled > 0 {
                parts.push(Part {
                    vendor_id: row.vendor_id,
                    part: usize::try_from(row.part).unwrap_or(0),
                    digest: Digest {
                        rows: row.settled.unsigned_abs(),
                        sum: sum(&row.digest)?,
                    },
                    may_be_gone: row.may_be_gone,
                });
            }
        }
        Ok((all, parts))
    }

    /// Sums up the vendors' own changes, and says how many there are.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn sum_vendor_changes(&mut self) -> Result<(u64, i128), Error> {
        #[derive(diesel::QueryableByName)]
        struct Row {
            #[diesel(sql_type = BigInt)]
            rows: i64,
            #[diesel(sql_type = Text)]
            moved: String,
        }
        let row: Row = diesel::sql_query(format!(
            "SELECT count(*) AS rows, ({})::text AS moved FROM vendor_changes",
            weighted_sum("delta", PLACE)
        ))
        .bind::<BigInt, _>(self.seed)
        .get_result(&mut self.connection)
        .await?;
        Ok((row.rows.unsigned_abs(), sum(&row.moved)?))
    }

    /// Sums up the orders' lines, and counts the orders that contradict themselves.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn sum_orders(&mut self) -> Result<OfOrders, Error> {
        #[derive(diesel::QueryableByName)]
        struct Row {
            #[diesel(sql_type = BigInt)]
            rows: i64,
            #[diesel(sql_type = BigInt)]
            failed: i64,
            #[diesel(sql_type = BigInt)]
            pending: i64,
            #[diesel(sql_type = Nullable<Timestamptz>)]
            pending_since: Option<DateTime<Utc>>,
            #[diesel(sql_type = BigInt)]
            contradictory: i64,
            #[diesel(sql_type = BigInt)]
            several: i64,
            #[diesel(sql_type = Text)]
            ordered: String,
        }
        #[derive(diesel::QueryableByName)]
        struct Sum {
            #[diesel(sql_type = Text)]
            sum: String,
        }
        // The usual quantities without arithmetic of numerics, which takes longer than all the rest.
        let small: String = (1..=9).map(|n| format!(" WHEN '{n}' THEN {n}")).collect();
        let row: Row = diesel::sql_query(format!(
            "SELECT count(*) AS rows, count(*) FILTER (WHERE status = 'failed') AS failed,
                 count(*) FILTER (WHERE status = 'pending') AS pending,
                 min(accepted_at) FILTER (WHERE status = 'pending') AS pending_since,
                 count(*) FILTER (WHERE is_contradictory) AS contradictory,
                 count(*) FILTER (WHERE lines_to_take > 1) AS several,
                 (coalesce(sum(small * {}) FILTER (WHERE lines_to_take = 1), 0)
                  + coalesce(sum({} * {}) FILTER (WHERE lines_to_take = 1 AND small IS NULL), 0))::text AS ordered
             FROM (
                 SELECT id, status, accepted_at, lines, ({CONTRADICTION}) IS NOT NULL AS is_contradictory,
                     CASE WHEN status = 'confirmed' THEN jsonb_array_length(lines) END AS lines_to_take,
                     lines->0->>'productId' AS product_id, CASE lines->0->>'quantity'{small} END AS small
                 FROM orders OFFSET '0'
             ) AS o",
            of_product("product_id"),
            quantity("(lines->0)"),
            of_product("product_id"),
        ))
        .bind::<BigInt, _>(self.seed)
        .get_result(&mut self.connection)
        .await?;
        let mut ordered = sum(&row.ordered)?;
        if row.several > 0 {
            // Joined, and not a subquery in the sum above, which would keep PostgreSQL from using more than one process.
            let several: Sum = diesel::sql_query(format!(
                "SELECT coalesce(sum({} * {}), 0)::text AS sum FROM orders, jsonb_array_elements(lines) AS unnested(line)
                 WHERE status = 'confirmed' AND jsonb_array_length(lines) > 1",
                quantity("line"),
                of_product("line->>'productId'"),
            ))
            .bind::<BigInt, _>(self.seed)
            .get_result(&mut self.connection)
            .await?;
            ordered += sum(&several.sum)?;
        }
        Ok(OfOrders {
            rows: row.rows.unsigned_abs(),
            failed: row.failed.unsigned_abs(),
            pending: row.pending.unsigned_abs(),
            pending_since: row.pending_since,
            contradictory: row.contradictory.unsigned_abs(),
            ordered,
        })
    }

    /// How many failed orders have the history of one, and how many orders have one that contradicts their status.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn count_histories(&mut self) -> Result<(u64, u64), Error> {
        #[derive(diesel::QueryableByName)]
        struct Row {
            #[diesel(sql_type = BigInt)]
            failed: i64,
            #[diesel(sql_type = BigInt)]
            contradictory: i64,
        }
        let row: Row = diesel::sql_query(format!(
            "SELECT count(*) FILTER (WHERE o.status = 'failed') AS failed,
                 count(*) FILTER (WHERE NOT ({HISTORY_AGREES})) AS contradictory
             FROM {FAILURES} e JOIN orders o ON o.id = e.order_id"
        ))
        .get_result(&mut self.connection)
        .await?;
        Ok((row.failed.unsigned_abs(), row.contradictory.unsigned_abs()))
    }

    /// The stock rows whose `open_delta` is not that of their updates.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn find_open_figures_apart(&mut self) -> Result<Found, Error> {
        self.find(&format!(
            "SELECT NULL::uuid AS order_id, NULL::uuid AS update_id, product_id, vendor_id, NULL::bigint AS outbox_id,
                 CASE WHEN s.open_delta IS NULL
                     THEN format('there is no stock row, and open updates of %s', u.counted)
                     ELSE format('open_delta is %s, and its open updates add up to %s', s.open_delta, coalesce(u.counted, 0))
                 END AS problem
             FROM (SELECT product_id, vendor_id, open_delta FROM stock) s
             FULL JOIN (SELECT product_id, vendor_id, sum({EFFECT}) AS counted FROM stock_updates
                        WHERE closed_at IS NULL GROUP BY product_id, vendor_id) u USING (product_id, vendor_id)
             WHERE coalesce(s.open_delta, 0) <> coalesce(u.counted, 0)"
        ))
        .await
    }

    /// Counts the updates that are not closed and stand in the list of those.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn count_listed(&mut self) -> Result<u64, Error> {
        #[derive(diesel::QueryableByName)]
        struct Row {
            #[diesel(sql_type = BigInt)]
            updates: i64,
        }
        let row: Row =
            diesel::sql_query("SELECT count(DISTINCT id) AS updates FROM unclosed_updates")
                .get_result(&mut self.connection)
                .await?;
        Ok(row.updates.unsigned_abs())
    }

    /// The updates that are not closed and that no sync would look at.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn find_unlisted(&mut self) -> Result<Found, Error> {
        self.find(
            "SELECT order_id, id AS update_id, product_id, vendor_id, NULL::bigint AS outbox_id,
                 format('is %s, and does not stand in listed_updates: no sync will close it', state) AS problem
             FROM stock_updates u WHERE closed_at IS NULL
               AND NOT EXISTS (SELECT FROM unclosed_updates l WHERE l.id = u.id)",
        )
        .await
    }

    /// The stock rows at which something came or went that nothing tells of.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn find_movements_apart(&mut self) -> Result<Found, Error> {
        self.find(&format!(
            "SELECT NULL::uuid AS order_id, NULL::uuid AS update_id, product_id, vendor_id, NULL::bigint AS outbox_id,
                 CASE WHEN on_hand IS NULL
                     THEN format('there is no stock row, but the vendor''s changes %s and our updates %s make %s',
                         changed, updated, told)
                     ELSE format('on hand %s and open %s make %s, but first %s, the vendor''s changes %s and our updates %s make %s',
                         on_hand, open_delta, available, first_on_hand, changed, updated, told)
                 END AS problem
             FROM (SELECT product_id, vendor_id, s.on_hand, s.open_delta, s.first_on_hand,
                       coalesce(s.on_hand::numeric + s.open_delta, 0) AS available,
                       coalesce(c.changed, 0) AS changed, coalesce(u.updated, 0) AS updated,
                       coalesce(s.first_on_hand, 0) + coalesce(c.changed, 0) + coalesce(u.updated, 0) AS told
                   FROM (SELECT product_id, vendor_id, on_hand, open_delta, first_on_hand FROM stock) s
                   FULL JOIN (SELECT product_id, vendor_id, sum(delta) AS changed FROM vendor_changes
                              GROUP BY product_id, vendor_id) c USING (product_id, vendor_id)
                   FULL JOIN (SELECT product_id, vendor_id, sum({EFFECT}) AS updated FROM stock_updates
                              GROUP BY product_id, vendor_id) u USING (product_id, vendor_id)) AS both_sides
             WHERE available <> told"
        ))
        .await
    }

    /// The stock rows of which more was taken than there was. Only deciding keeps available at 0 or above: a vendor that
    /// sells what we took brings it below, and that far it may be.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn find_oversold(&mut self) -> Result<Found, Error> {
        self.find(
            "SELECT NULL::uuid AS order_id, NULL::uuid AS update_id, product_id, vendor_id, NULL::bigint AS outbox_id,
                 format('available is %s, and the vendor''s own changes explain no less than %s', available, explained) AS problem
             FROM (SELECT s.product_id, s.vendor_id, s.on_hand::numeric + s.open_delta AS available,
                       least(s.first_on_hand, 0) + coalesce((
                           SELECT sum(c.delta) FROM vendor_changes c
                           WHERE c.product_id = s.product_id AND c.vendor_id = s.vendor_id AND c.delta < 0
                       ), 0) AS explained
                   FROM stock s WHERE s.on_hand::numeric + s.open_delta < 0) AS below
             WHERE available < explained",
        )
        .await
    }

    /// The orders for which something else was taken than their lines say.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn find_lines_apart(&mut self) -> Result<Found, Error> {
        self.find(&format!(
            "SELECT order_id, NULL::uuid AS update_id, product_id, NULL::text AS vendor_id, NULL::bigint AS outbox_id,
                 format('it is %s: %s to be taken, %s taken', coalesce(o.status, 'unknown'),
                     coalesce(ordered.quantity, 0), coalesce(taken.quantity, 0)) AS problem
             FROM (SELECT id AS order_id, line->>'productId' COLLATE \"C\" AS product_id, sum({}) AS quantity
                   FROM orders, jsonb_array_elements(lines) AS unnested(line)
                   WHERE status = 'confirmed' GROUP BY 1, 2) ordered
             FULL JOIN (SELECT order_id, product_id, -sum(delta) AS quantity FROM stock_updates
                        WHERE state IN {EFFECTIVE} GROUP BY order_id, product_id) taken USING (order_id, product_id)
             LEFT JOIN orders o ON o.id = order_id
             WHERE coalesce(ordered.quantity, 0) <> coalesce(taken.quantity, 0)",
            quantity("line")
        ))
        .await
    }

    /// The updates that no sum shows, since they have no effect or undo each other, and whose order should not have them.
    /// What takes and is not given back is in the sums.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn find_stray_updates(&mut self) -> Result<Found, Error> {
        self.find(
            "SELECT u.order_id, u.id AS update_id, u.product_id, u.vendor_id, NULL::bigint AS outbox_id,
                 CASE WHEN o.id IS NULL THEN format('%s units, %s, for an order that is not there', u.delta, u.state)
                 WHEN u.delta > 0 AND o.status = 'confirmed' THEN format('gives back %s units of an order that is confirmed', u.delta)
                 WHEN o.status IN ('pending', 'rejected', 'failed') OR o.decided_at IS NULL
                     THEN format('%s units, %s, for an order that is %s and was never confirmed', u.delta, u.state, o.status)
                 ELSE format('gives back %s units, and its take %s', u.delta,
                     coalesce(format('is %s of %s at %s for order %s', t.delta, t.product_id, t.vendor_id, t.order_id), 'is not there'))
                 END AS problem
             FROM stock_updates u LEFT JOIN orders o ON o.id = u.order_id LEFT JOIN stock_updates t ON t.id = u.reverses
             WHERE (u.delta > 0 OR u.state IN ('rejected', 'void'))
               AND (o.id IS NULL OR o.status IN ('pending', 'rejected', 'failed') OR o.decided_at IS NULL
                    OR u.delta > 0 AND (o.status <> 'cancelled'
                        OR (t.order_id, t.product_id, t.vendor_id, t.delta)
                            IS DISTINCT FROM (u.order_id, u.product_id, u.vendor_id, -u.delta)))",
        )
        .await
    }

    /// The orders whose times, reason or history contradict their status.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn find_contradictory_orders(&mut self) -> Result<Found, Error> {
        self.find(&format!(
            "SELECT o.id AS order_id, NULL::uuid AS update_id, NULL::text AS product_id, NULL::text AS vendor_id,
                 NULL::bigint AS outbox_id, coalesce({CONTRADICTION}, format(
                     'is %s, and its history tells of %s failures and %s replays', o.status,
                     coalesce(e.failed, 0), coalesce(e.replayed, 0))) AS problem
             FROM orders o LEFT JOIN {FAILURES} e ON e.order_id = o.id
             WHERE ({CONTRADICTION}) IS NOT NULL OR NOT ({HISTORY_AGREES}) OR (o.status = 'failed' AND e.order_id IS NULL)"
        ))
        .await
    }

    async fn find(&mut self, query: &str) -> Result<Found, Error> {
        find(&mut self.connection, query).await
    }

    /// The lowest id of an update, if there is any.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn find_first_update(&mut self) -> Result<Option<Uuid>, Error> {
        let rows: Vec<Id> = diesel::sql_query("SELECT id FROM stock_updates ORDER BY id LIMIT 1")
            .load(&mut self.connection)
            .await?;
        Ok(rows.into_iter().next().map(|row| row.id))
    }

    /// Lists rows of a vendor's list of what is not closed, with about `limit` updates, after the row `after`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_unclosed(
        &mut self,
        vendor: &VendorId,
        after: i64,
        limit: usize,
    ) -> Result<Page, Error> {
        super::updates::list_unclosed(&mut self.connection, vendor, after, limit).await
    }

    /// Of updates, those without an answer.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn find_open(&mut self, ids: &[UpdateId]) -> Result<Vec<Brief>, Error> {
        super::updates::find_unclosed(&mut self.connection, ids, Some(State::Open)).await
    }

    /// Begins to read a vendor's updates of a part of the ids, in their order; what was begun before ends.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn open_stream(
        &mut self,
        vendor: &VendorId,
        range: Range,
        recent: DateTime<Utc>,
    ) -> Result<(), Error> {
        let bound = |sign: &str, id: Option<Uuid>| {
            id.map(|id| format!(" AND id {sign} '{id}'"))
                .unwrap_or_default()
        };
        // A vendor's id is letters, digits, '_' and '-'; a cursor takes no parameters.
        self.connection
            .batch_execute(&format!(
                "CLOSE ALL; DECLARE updates_in_order NO SCROLL CURSOR FOR
                 SELECT {} FROM stock_updates WHERE vendor_id = '{vendor}'{}{} ORDER BY id",
                held_columns(&format!("'{}'", recent.to_rfc3339())),
                bound(">=", range.from),
                bound("<", range.until),
            ))
            .await?;
        Ok(())
    }

    /// The next `limit` of them; none after the last.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn next_page(&mut self, limit: usize) -> Result<Vec<Held>, Error> {
        let rows: Vec<HeldRow> = diesel::sql_query(format!("FETCH {limit} FROM updates_in_order"))
            .load(&mut self.connection)
            .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }
}

/// The updates of one vendor in one part of the ids.
#[derive(diesel::QueryableByName)]
struct UpdatesRow {
    #[diesel(sql_type = Text)]
    vendor_id: String,
    #[diesel(sql_type = Integer)]
    part: i32,
    #[diesel(sql_type = BigInt)]
    rows: i64,
    #[diesel(sql_type = BigInt)]
    unclosed: i64,
    #[diesel(sql_type = BigInt)]
    odd: i64,
    #[diesel(sql_type = Text)]
    open: String,
    #[diesel(sql_type = Text)]
    moved: String,
    #[diesel(sql_type = Text)]
    taken: String,
    #[diesel(sql_type = BigInt)]
    settled: i64,
    #[diesel(sql_type = Text)]
    digest: String,
    #[diesel(sql_type = Bool)]
    may_be_gone: bool,
}

#[derive(diesel::QueryableByName)]
struct Id {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
}

#[derive(diesel::QueryableByName)]
struct HeldRow {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    order_id: Uuid,
    #[diesel(sql_type = Text)]
    vendor_id: String,
    #[diesel(sql_type = Text)]
    product_id: String,
    #[diesel(sql_type = BigInt)]
    delta: i64,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    reverses: Option<Uuid>,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Bool)]
    may_be_gone: bool,
}

fn held_columns(recent: &str) -> String {
    format!(
        "id, order_id, vendor_id, product_id, delta, reverses, state, coalesce(closed_at < {recent}, false) AS may_be_gone"
    )
}

impl TryFrom<HeldRow> for Held {
    type Error = Error;

    fn try_from(row: HeldRow) -> Result<Self, Error> {
        Ok(Self {
            id: UpdateId(row.id),
            order_id: row.order_id,
            vendor_id: row.vendor_id,
            product_id: row.product_id,
            delta: row.delta,
            reverses: row.reverses.map(UpdateId),
            state: State::parse(&row.state)
                .ok_or_else(|| corrupt(format!("state {}", row.state)))?,
            may_be_gone: row.may_be_gone,
        })
    }
}

/// Looks updates up by their ids, whosever they are.
///
/// # Errors
/// See [`Error`].
pub async fn find_held(
    connection: &mut AsyncPgConnection,
    ids: &[UpdateId],
    recent: DateTime<Utc>,
) -> Result<Vec<Held>, Error> {
    let rows: Vec<HeldRow> = prepared(
        diesel::sql_query(format!(
            "SELECT {} FROM stock_updates WHERE id = ANY($1) ORDER BY id",
            held_columns("$2")
        ))
        .bind::<Array<SqlUuid>, _>(ids.iter().map(|id| id.0).collect::<Vec<_>>())
        .bind::<Timestamptz, _>(recent),
    )
    .load(connection)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

#[derive(diesel::QueryableByName)]
struct FoundRow {
    #[diesel(sql_type = Nullable<SqlUuid>)]
    order_id: Option<Uuid>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    update_id: Option<Uuid>,
    #[diesel(sql_type = Nullable<Text>)]
    product_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    vendor_id: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    outbox_id: Option<i64>,
    #[diesel(sql_type = Text)]
    problem: String,
    #[diesel(sql_type = BigInt)]
    total: i64,
}

/// Runs a query whose rows are violations; they stay with the server but for the first, which come in the order of ids.
async fn find(connection: &mut AsyncPgConnection, query: &str) -> Result<Found, Error> {
    let rows: Vec<FoundRow> = diesel::sql_query(format!(
        "SELECT found.*, count(*) OVER () AS total FROM ({query}) AS found
         ORDER BY outbox_id, order_id, update_id, product_id, vendor_id LIMIT {SHOWN_MAX}"
    ))
    .load(connection)
    .await?;
    Ok(Found {
        total: rows
            .as_slice()
            .first()
            .map_or(0, |row| row.total.unsigned_abs()),
        shown: rows
            .into_iter()
            .map(|row| Violation {
                order_id: row.order_id,
                update_id: row.update_id,
                product_id: row.product_id,
                vendor_id: row.vendor_id,
                outbox_id: row.outbox_id,
                problem: row.problem,
            })
            .collect(),
    })
}

/// The orders that were accepted over `age_s` seconds ago and are pending.
///
/// # Errors
/// See [`Error`].
pub async fn find_overdue_orders(
    connection: &mut AsyncPgConnection,
    age_s: u64,
) -> Result<Found, Error> {
    find(
        connection,
        &format!(
            "SELECT id AS order_id, NULL::uuid AS update_id, NULL::text AS product_id, NULL::text AS vendor_id,
                 NULL::bigint AS outbox_id, format('pending since %s', accepted_at) AS problem
             FROM orders WHERE status = 'pending' AND accepted_at < now() - interval '{age_s} s'"
        ),
    )
    .await
}

/// The updates that were made over `age_s` seconds ago, have no answer and are not known to be dead-lettered.
///
/// # Errors
/// See [`Error`].
pub async fn find_overdue_updates(
    connection: &mut AsyncPgConnection,
    age_s: u64,
) -> Result<Found, Error> {
    find(
        connection,
        &format!(
            "SELECT order_id, id AS update_id, product_id, vendor_id, NULL::bigint AS outbox_id,
                 format('open since %s', created_at) AS problem
             FROM unclosed_updates
             WHERE state = 'open' AND dead_lettered_at IS NULL
               AND created_at < now() - interval '{age_s} s'"
        ),
    )
    .await
}

/// The rows of the outbox that were written over `age_s` seconds ago.
///
/// # Errors
/// See [`Error`].
pub async fn find_old_outbox_rows(
    connection: &mut AsyncPgConnection,
    age_s: u64,
) -> Result<Found, Error> {
    find(
        connection,
        &format!(
            "SELECT NULL::uuid AS order_id, NULL::uuid AS update_id, NULL::text AS product_id, NULL::text AS vendor_id,
                 id AS outbox_id, format('message %s for %s waits since %s', message_id, queue, created_at) AS problem
             FROM outbox WHERE created_at < now() - interval '{age_s} s'"
        ),
    )
    .await
}

/// How many updates have no answer.
///
/// # Errors
/// See [`Error`].
pub async fn count_open_updates(connection: &mut AsyncPgConnection) -> Result<u64, Error> {
    count(
        connection,
        "SELECT count(*) AS rows FROM unclosed_updates WHERE state = 'open'",
    )
    .await
}

/// How many messages wait in the outbox.
///
/// # Errors
/// See [`Error`].
pub async fn count_outbox_rows(connection: &mut AsyncPgConnection) -> Result<u64, Error> {
    count(connection, "SELECT count(*) AS rows FROM outbox").await
}

async fn count(connection: &mut AsyncPgConnection, query: &'static str) -> Result<u64, Error> {
    let row: Count = prepared(diesel::sql_query(query))
        .get_result(connection)
        .await?;
    Ok(row.rows.unsigned_abs())
}

#[derive(diesel::QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    rows: i64,
}

/// How many messages for a queue wait in the outbox.
///
/// # Errors
/// See [`Error`].
pub async fn count_outbox(
    connection: &mut AsyncPgConnection,
    queue: &'static str,
) -> Result<u64, Error> {
    let row: Count = prepared(
        diesel::sql_query("SELECT count(*) AS rows FROM outbox WHERE queue = $1")
            .bind::<Text, _>(queue),
    )
    .get_result(connection)
    .await?;
    Ok(row.rows.unsigned_abs())
}
