//! Decides orders, as many as were delivered together, in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use diesel_async::{AsyncConnection, AsyncPgConnection};

use super::save::save;
use super::{Context, Error, TRANSACTION_DEADLINE, new_update_id, with_deadline};
use crate::db;
use crate::db::outbox::Waiting;
use crate::domain::book::Decision;
use crate::domain::ids::{OrderId, ProductId};
use crate::domain::order::{NewOrder, Reason, Status};

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
    orders: &[NewOrder],
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
    orders: &[NewOrder],
    now: DateTime<Utc>,
) -> Result<Decided, Error> {
    let mut book = context.book();
    let unique: BTreeMap<OrderId, &NewOrder> =
        orders.iter().map(|order| (order.id, order)).collect();
    let conflicts = lock_or_insert(connection, &unique, &mut book).await?;

    let products: BTreeSet<&ProductId> = unique
        .values()
        .filter(|order| book.status(order.id) == Ok(Status::Pending))
        .flat_map(|order| order.lines.as_slice())
        .map(|line| &line.product_id)
        .collect();
    if !products.is_empty() {
        let products: Vec<ProductId> = products.into_iter().cloned().collect();
        for ((product_id, vendor_id), shelf) in
            db::stock::load_for_update(connection, &products).await?
        {
            // A vendor that is no longer configured can be told of nothing.
            if context.vendors.contains_key(&vendor_id) {
                book.load_shelf(product_id, vendor_id, shelf);
            }
        }
    }

    let mut every_vendor_known = None;
    let mut decisions = Vec::with_capacity(orders.len());
    for order in orders {
        if conflicts.contains(&order.id) {
            book.reject(order.id, Reason::IdempotencyConflict)?;
        }
        let mut decision = book.decide(
            order.id,
            &order.lines,
            every_vendor_known.unwrap_or(false),
            &mut new_update_id,
        )?;
        if decision == Decision::Undecidable && every_vendor_known.is_none() {
            // Asked only when a rejection is at stake.
            let unknown = db::vendors::list_never_synced(connection, &context.vendor_ids()).await?;
            every_vendor_known = Some(unknown.is_empty());
            if unknown.is_empty() {
                decision = book.decide(order.id, &order.lines, true, &mut new_update_id)?;
            }
        }
        decisions.push(decision);
    }
    let waiting = save(connection, &book.into_changes(), now).await?;
    Ok(Decided { decisions, waiting })
}

/// Locks the orders into the book, and inserts those that came through the broker while PostgreSQL was down. Returns
/// those among them whose idempotency key belongs to another request.
async fn lock_or_insert(
    connection: &mut AsyncPgConnection,
    orders: &BTreeMap<OrderId, &NewOrder>,
    book: &mut crate::domain::book::Book,
) -> Result<BTreeSet<OrderId>, Error> {
    let ids: Vec<OrderId> = orders.keys().copied().collect();
    let mut locked = db::orders::load_for_update(connection, &ids).await?;
    let mut conflicts = BTreeSet::new();
    if locked.len() < ids.len() {
        let missing = |locked: &[(OrderId, Status)]| -> Vec<NewOrder> {
            let known: BTreeSet<OrderId> = locked.iter().map(|(id, _)| *id).collect();
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
    for (id, status) in locked {
        book.load_order(id, status);
    }
    Ok(conflicts)
}
