//! Decides orders, as many as were delivered together, in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use diesel_async::{AsyncConnection, AsyncPgConnection};

use super::save::save;
use super::{Context, Error, TRANSACTION_DEADLINE, new_update_id, with_deadline};
use crate::db;
use crate::db::outbox::Waiting;
use crate::domain::book::{Book, Decision};
use crate::domain::ids::{OrderId, ProductId};
use crate::domain::order::{Lines, NewOrder, Reason, Status};
use crate::fault_injection::{self, Bug};

/// How each order was decided, in the order they were given, and what has to leave for the broker.
#[derive(Debug)]
pub struct Decided {
    /// One for each order.
    pub decisions: Vec<Decision>,
    /// The outbox rows of the messages to the vendors.
    pub waiting: Vec<Waiting>,
}

/// Decides a batch. An order may be in it more than once, and may have been decided before.
///
/// # Errors
/// Nothing of the batch is decided.
pub async fn decide(
    context: &Context,
    orders: &[&NewOrder],
    now: DateTime<Utc>,
) -> Result<Decided, Error> {
    with_deadline(TRANSACTION_DEADLINE, &context.database, async {
        let mut connection = context.database.get().await?;
        connection
            .transaction(async |connection| transact(context, connection, orders, now).await)
            .await
    })
    .await
}

async fn transact(
    context: &Context,
    connection: &mut AsyncPgConnection,
    orders: &[&NewOrder],
    now: DateTime<Utc>,
) -> Result<Decided, Error> {
    for order in orders {
        fault_injection::swallow_order(order.reference.as_deref());
    }
    let mut book = context.book();
    let unique: BTreeMap<OrderId, &NewOrder> =
        orders.iter().map(|order| (order.id, *order)).collect();
    let Locked { lines, conflicts } = lock_or_insert(connection, &unique, &mut book).await?;

    let products: BTreeSet<&ProductId> = lines
        .iter()
        .filter(|(id, _)| book.status(**id) == Ok(Status::Pending))
        .flat_map(|(_, lines)| lines.as_slice())
        .map(|line| &line.product_id)
        .collect();
    if !products.is_empty() {
        let products: Vec<ProductId> = products.into_iter().cloned().collect();
        for ((product_id, vendor_id), shelf) in
            db::stock::load_for_update(connection, &products).await?
        {
            book.load_shelf(product_id, vendor_id, shelf);
        }
    }

    let mut every_vendor_known = None;
    let mut decisions = Vec::with_capacity(orders.len());
    for order in orders {
        if conflicts.contains(&order.id) {
            book.reject(order.id, Reason::IdempotencyConflict)?;
        }
        // What the row says is decided, not what this copy of the message says.
        let lines = lines.get(&order.id).unwrap_or(&order.lines);
        let known = every_vendor_known.unwrap_or(false);
        let mut decision = book.decide(order.id, lines, known, &mut new_update_id)?;
        if decision == Decision::Undecidable && every_vendor_known.is_none() {
            // Asked only when a rejection is at stake.
            let unknown = db::vendors::list_never_synced(connection, &context.vendor_ids()).await?;
            every_vendor_known = Some(unknown.is_empty());
            if unknown.is_empty() {
                decision = book.decide(order.id, lines, true, &mut new_update_id)?;
            }
        }
        decisions.push(decision);
    }
    let waiting = save(connection, &book.into_changes(), now).await?;
    Ok(Decided { decisions, waiting })
}

/// What the locked orders ask for.
pub(super) struct Locked {
    lines: BTreeMap<OrderId, Lines>,
    /// Those whose idempotency key belongs to another request.
    conflicts: BTreeSet<OrderId>,
}

/// Locks the orders into the book, and inserts those that came through the broker while PostgreSQL was down.
pub(super) async fn lock_or_insert(
    connection: &mut AsyncPgConnection,
    orders: &BTreeMap<OrderId, &NewOrder>,
    book: &mut Book,
) -> Result<Locked, Error> {
    let ids: Vec<OrderId> = orders.keys().copied().collect();
    let mut locked = db::orders::load_for_update(connection, &ids).await?;
    let mut conflicts = BTreeSet::new();
    if locked.len() < ids.len() {
        let missing = |locked: &[(OrderId, Status, Lines)]| -> Vec<NewOrder> {
            let known: BTreeSet<OrderId> = locked.iter().map(|(id, _, _)| *id).collect();
            orders
                .values()
                .filter(|order| !known.contains(&order.id))
                .map(|order| (*order).clone())
                .collect()
        };
        db::orders::insert_delivered(connection, &missing(&locked)).await?;
        locked = db::orders::load_for_update(connection, &ids).await?;
        let mut keyless = missing(&locked);
        if !keyless.is_empty() {
            // The 202 promised a decision, so the order exists; the key stays with the request that has it.
            for order in &mut keyless {
                order.idempotency_key = None;
                conflicts.insert(order.id);
            }
            db::orders::insert_delivered(connection, &keyless).await?;
            locked = db::orders::load_for_update(connection, &ids).await?;
        }
    }
    let mut lines = BTreeMap::new();
    for (id, mut status, of_order) in locked {
        if fault_injection::is_planted(Bug::DecideAgain) {
            status = Status::Pending;
        }
        book.load_order(id, status);
        lines.insert(id, of_order);
    }
    Ok(Locked { lines, conflicts })
}
