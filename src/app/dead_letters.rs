//! What a message's way into the dead-letter queue and out of it means for its order or its updates.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel_async::AsyncConnection;

use super::decide::lock_or_insert;
use super::save::save;
use super::{Context, Error, TRANSACTION_DEADLINE, with_deadline};
use crate::db;
use crate::domain::ids::{OrderId, UpdateId};
use crate::domain::messages;
use crate::domain::order::NewOrder;
use crate::mq::{DeadLetters, Delivery, Headers, Message, Publisher, Queue, Settings};

/// An order's message is in the dead-letter queue: the order, inserted if only the broker had it, is failed.
///
/// # Errors
/// See [`Error`].
pub async fn fail_order(
    context: &Context,
    order: &NewOrder,
    error: &str,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    with_deadline(TRANSACTION_DEADLINE, &context.database, async {
        let mut connection = context.database.get().await?;
        connection
            .transaction(async |connection| {
                let mut book = context.book();
                lock_or_insert(connection, &BTreeMap::from([(order.id, order)]), &mut book).await?;
                book.fail(order.id, error.chars().take(1000).collect())?;
                save(connection, &book.into_changes(), now).await?;
                Ok(())
            })
            .await
    })
    .await
}

/// Updates whose message is in the dead-letter queue, or (`false`) is no longer.
///
/// # Errors
/// See [`Error`].
pub async fn mark_updates(
    context: &Context,
    ids: &[UpdateId],
    dead: bool,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    with_deadline(TRANSACTION_DEADLINE, &context.database, async {
        let mut connection = context.database.get().await?;
        connection
            .transaction(async |connection| {
                Ok(db::updates::mark_dead_lettered(connection, ids, dead, now).await?)
            })
            .await
    })
    .await
}

async fn revive_order(context: &Context, id: OrderId) -> Result<(), Error> {
    with_deadline(TRANSACTION_DEADLINE, &context.database, async {
        let mut connection = context.database.get().await?;
        connection
            .transaction(async |connection| {
                let mut book = context.book();
                for (id, status, _) in db::orders::load_for_update(connection, &[id]).await? {
                    book.load_order(id, status);
                    book.revive(id)?;
                }
                save(connection, &book.into_changes(), Utc::now()).await?;
                Ok(())
            })
            .await
    })
    .await
}

/// How long an operator's session may wait for the broker.
const SESSION_DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);

/// Which dead letters an operator means.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Only this message.
    pub message_id: Option<String>,
    /// At most so many.
    pub limit: usize,
}

impl Selection {
    fn takes(&self, delivery: &Delivery) -> bool {
        self.message_id.is_none() || self.message_id == delivery.message_id
    }
}

/// Lists dead letters without moving them.
///
/// # Errors
/// The broker cannot be reached.
pub async fn list(
    settings: &Settings,
    queue: Queue,
    selection: &Selection,
) -> Result<Vec<Delivery>, Error> {
    let mut session = DeadLetters::open(settings, queue, SESSION_DEADLINE).await?;
    let mut found = Vec::new();
    while found.len() < selection.limit {
        match session.next().await? {
            Some(delivery) if selection.takes(&delivery) => found.push(delivery),
            Some(_) => {}
            None => break,
        }
    }
    session.close().await;
    Ok(found)
}

/// Sends dead letters back to the queue they came from, as if they were new, and returns the ids of those that went.
/// What it stands in the middle of when it fails is replayed by the next call: consumers remove duplicates.
///
/// # Errors
/// A store cannot be reached. What was replayed before stays so.
pub async fn replay(
    context: &Context,
    settings: &Settings,
    publisher: &Publisher,
    queue: Queue,
    selection: &Selection,
) -> Result<Vec<String>, Error> {
    let mut session = DeadLetters::open(settings, queue, SESSION_DEADLINE).await?;
    let mut replayed = Vec::new();
    while replayed.len() < selection.limit {
        let Some(delivery) = session.next().await? else {
            break;
        };
        if !selection.takes(&delivery) {
            continue;
        }
        let to = match queue {
            Queue::VendorSyncDlq => Queue::VendorSync,
            _ => Queue::Orders,
        };
        revive(context, to, &delivery).await?;
        let message_id = delivery.message_id.clone().unwrap_or_default();
        // Fresh headers: the broker drops silently what carries the x-death of a queue it has been in.
        let message = Message {
            queue: to,
            message_id: message_id.clone(),
            headers: Headers::new(),
            body: delivery.body,
        };
        for result in publisher.publish(vec![message], SESSION_DEADLINE).await {
            result.map_err(|error| Error::Broker(error.to_string()))?;
        }
        session.ack(delivery.tag).await?;
        replayed.push(message_id);
    }
    session.close().await;
    Ok(replayed)
}

/// The order is pending again, the updates are on their way again, before the message is.
async fn revive(context: &Context, to: Queue, delivery: &Delivery) -> Result<(), Error> {
    if to == Queue::VendorSync {
        if let Ok(message) = messages::decode_updates(&delivery.body) {
            let ids: Vec<UpdateId> = message.updates.iter().map(|update| update.id).collect();
            mark_updates(context, &ids, false, Utc::now()).await?;
        }
    } else if let Ok(order) =
        messages::decode_order(&delivery.body, delivery.message_id.as_deref(), Utc::now())
    {
        revive_order(context, order.id).await?;
    }
    Ok(())
}
