//! Drops dead letters, which is a business act: what they asked for is taken back, and what they were is kept.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use diesel_async::{AsyncConnection, AsyncPgConnection};

use super::letter::{Letter, select};
use super::report::{Act, Progress, Report, handle_each};
use super::{commit_unless_rehearsed, done_or_rehearsed};
use crate::app::cancel::load_updates_of;
use crate::app::decide::lock_or_insert;
use crate::app::save::save;
use crate::app::{Context, Error, TRANSACTION_DEADLINE, new_update_id, with_deadline};
use crate::db;
use crate::db::dropped_letters::Dropped;
use crate::db::outbox::Waiting;
use crate::domain::dead_letter::{self, Selection, Subject};
use crate::domain::ids::{OrderId, UpdateId};
use crate::domain::messages::UpdatesMessage;
use crate::domain::order::{NewOrder, Reason, Status};
use crate::metrics::{DECIDING, Decision};
use crate::mq::{Queue, Settings};

/// Who drops, and what goes on from there.
#[derive(Clone, Copy)]
pub struct Dropper<'a> {
    /// A name, to be kept with the letters.
    pub by: &'a str,
    /// Is given what has to leave for the broker.
    pub hand_over: &'a (dyn Fn(Vec<Waiting>) + Send + Sync),
}

/// Drops the letters that are meant: an order's letter cancels the order, a letter to a vendor those
/// orders whose takes the vendor has not answered for, and a letter to a receiver of webhooks changes nothing but that it
/// is not told. The letter is kept in our database in the same transaction, and
/// only then removed from the queue.
///
/// # Errors
/// The letters could not be looked at; nothing was dropped.
pub async fn drop(
    context: &Context,
    settings: &Settings,
    queue: Queue,
    selection: &Selection,
    act: Act,
    progress: Progress<'_>,
    dropper: Dropper<'_>,
) -> Result<Report, Error> {
    let (session, found) = select(context, settings, queue, selection).await?;
    let handle = async |letter: Letter| {
        let (cancelled, waiting) = with_deadline(TRANSACTION_DEADLINE, &context.database, async {
            let mut connection = context.database.get().await?;
            let ended = connection
                .transaction(async |connection| {
                    let dropped =
                        transact(context, connection, queue, &letter, dropper.by, Utc::now());
                    commit_unless_rehearsed(act, dropped.await)
                })
                .await;
            done_or_rehearsed(ended)
        })
        .await?;
        if act == Act::Do {
            let orders = cancelled.len() as u64;
            DECIDING.decided.of(Decision::Dropped).inc_by(orders);
            (dropper.hand_over)(waiting);
        }
        Ok(cancelled)
    };
    Ok(handle_each(session, found, selection, act, progress, handle).await)
}

/// Returns the orders that it cancelled, and what has to leave for the broker.
async fn transact(
    context: &Context,
    connection: &mut AsyncPgConnection,
    queue: Queue,
    letter: &Letter,
    by: &str,
    now: DateTime<Utc>,
) -> Result<(Vec<OrderId>, Vec<Waiting>), Error> {
    let effect = match &letter.subject {
        Subject::Unreadable | Subject::Notification(_) => (Vec::new(), Vec::new()),
        Subject::Orders(orders) => cancel_orders(context, connection, orders, now).await?,
        Subject::Updates(message) => cancel_orders_of(context, connection, message, now).await?,
    };
    let dropped = Dropped {
        id: letter.name,
        queue: queue.base_name(),
        message_id: &letter.message_id,
        reason: letter.reason.as_deref(),
        error: letter.error.as_deref(),
        headers: letter.headers_as_json(),
        body: &letter.body,
        dropped_at: now,
        dropped_by: by,
    };
    db::dropped_letters::keep(connection, &dropped).await?;
    Ok(effect)
}

/// Cancels orders that wait for this letter: failed, or pending where it was never noted as failed. One that only the
/// broker had is inserted first, since its 202 promised a final status. One that another copy of the message has
/// decided, or that is cancelled, has no use for the letter, and goes on as it is.
async fn cancel_orders(
    context: &Context,
    connection: &mut AsyncPgConnection,
    orders: &[NewOrder],
    now: DateTime<Utc>,
) -> Result<(Vec<OrderId>, Vec<Waiting>), Error> {
    let mut book = context.book();
    let orders: BTreeMap<OrderId, &NewOrder> =
        orders.iter().map(|order| (order.id, order)).collect();
    lock_or_insert(connection, &orders, &mut book).await?;
    let mut cancelled = Vec::new();
    for id in orders.into_keys() {
        if matches!(book.status(id)?, Status::Pending | Status::Failed) {
            book.cancel(id, Some(Reason::Dropped), &mut new_update_id)?;
            cancelled.push(id);
        }
    }
    let waiting = save(connection, &book.into_changes(), now).await?;
    Ok((cancelled, waiting))
}

/// Cancels the orders whose takes would never reach the vendor without this letter. See
/// [`dead_letter::orders_to_cancel`].
async fn cancel_orders_of(
    context: &Context,
    connection: &mut AsyncPgConnection,
    message: &UpdatesMessage,
    now: DateTime<Utc>,
) -> Result<(Vec<OrderId>, Vec<Waiting>), Error> {
    let ids: Vec<UpdateId> = message.updates.iter().map(|update| update.id).collect();
    // Not locked yet, and used for nothing but to know what to lock: an update never changes its order or its shelf.
    let named = db::updates::find_all(connection, &ids).await?;
    let orders: BTreeSet<OrderId> = named.iter().map(|update| update.order_id).collect();
    let orders: Vec<OrderId> = orders.into_iter().collect();
    let mut book = context.book();
    for (id, status, _) in db::orders::load_for_update(connection, &orders).await? {
        book.load_order(id, status);
    }
    load_updates_of(connection, &mut book, &orders, &named).await?;
    // As they stand now that nobody else changes them.
    let updates = db::updates::find_all(connection, &ids).await?;
    let to_cancel =
        dead_letter::orders_to_cancel(&message.vendor_id, &updates).map_err(|lost| {
            Error::Refused {
                code: "return_would_be_lost",
                detail: lost.to_string(),
            }
        })?;
    let mut cancelled = Vec::new();
    for order in to_cancel {
        // One that is cancelled has its return already, which settles the take.
        if book.status(order)? == Status::Confirmed {
            book.cancel(order, Some(Reason::Dropped), &mut new_update_id)?;
            cancelled.push(order);
        }
    }
    let waiting = save(connection, &book.into_changes(), now).await?;
    // They are in the dead-letter queue no more. Should the vendor have applied a take whose answer was lost, the slow
    // sweep asks for it again, and a vendor without a ledger has no other way to tell.
    db::updates::mark_dead_lettered(connection, &ids, db::updates::DeadLetter::Dropped, now)
        .await?;
    Ok((cancelled, waiting))
}
