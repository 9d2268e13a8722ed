//! Sends dead letters back to the queue that they came from, as if they were new.

use chrono::Utc;
use diesel_async::{AsyncConnection, AsyncPgConnection};

use super::letter::{Letter, SESSION_DEADLINE, select};
use super::report::{Act, Progress, Report, handle_each};
use super::{commit_unless_rehearsed, done_or_rehearsed, mark_updates};
use crate::app::save::save;
use crate::app::{Context, Error, TRANSACTION_DEADLINE, traced, with_deadline};
use crate::db;
use crate::domain::dead_letter::{Selection, Subject};
use crate::domain::ids::{OrderId, UpdateId};
use crate::mq::{Message, PublishError, Publisher, Queue, Settings};

/// Replays the letters that are meant. Whatever it dies of, the letter in hand stays in the queue: the next replay
/// repeats it, and consumers remove duplicates. Without a publisher it is a rehearsal.
///
/// # Errors
/// The letters could not be looked at; nothing was replayed.
pub async fn replay(
    context: &Context,
    settings: &Settings,
    queue: Queue,
    selection: &Selection,
    publisher: Option<&Publisher>,
    progress: Progress<'_>,
) -> Result<Report, Error> {
    let act = match publisher {
        Some(_) => Act::Do,
        None => Act::Rehearse,
    };
    let (session, found) = select(context, settings, queue, selection).await?;
    let to = match queue {
        Queue::VendorSyncDlq => Queue::VendorSync,
        Queue::WebhooksDlq => Queue::Webhooks,
        _ => Queue::Orders,
    };
    let handle = async |letter: Letter| {
        let revived = revive(context, &letter.subject, act).await?;
        if let Some(publisher) = publisher {
            publish(publisher, to, letter).await?;
        }
        Ok(revived)
    };
    Ok(handle_each(session, found, selection, act, progress, handle).await)
}

/// The order is pending again, the updates are on their way again, before the message is. Returns the orders that were
/// failed.
async fn revive(context: &Context, subject: &Subject, act: Act) -> Result<Vec<OrderId>, Error> {
    match subject {
        Subject::Unreadable | Subject::Notification(_) => Ok(Vec::new()),
        Subject::Updates(message) => {
            if act == Act::Do {
                let ids: Vec<UpdateId> = message.updates.iter().map(|update| update.id).collect();
                mark_updates(context, &ids, db::updates::DeadLetter::Replayed, Utc::now()).await?;
            }
            Ok(Vec::new())
        }
        Subject::Orders(orders) => {
            let ids: Vec<OrderId> = orders.iter().map(|order| order.id).collect();
            with_deadline(TRANSACTION_DEADLINE, &context.database, async {
                let mut connection = context.database.get().await?;
                let ended = connection
                    .transaction(async |connection| {
                        let revived = revive_orders(context, connection, &ids).await;
                        commit_unless_rehearsed(act, revived)
                    })
                    .await;
                done_or_rehearsed(ended)
            })
            .await
        }
    }
}

async fn revive_orders(
    context: &Context,
    connection: &mut AsyncPgConnection,
    ids: &[OrderId],
) -> Result<Vec<OrderId>, Error> {
    let mut book = context.book();
    for (id, status, _) in db::orders::load_for_update(connection, ids).await? {
        book.load_order(id, status);
        book.revive(id)?;
    }
    let changes = book.into_changes();
    save(connection, &changes, Utc::now()).await?;
    Ok(changes.orders.into_iter().map(|(id, _, _)| id).collect())
}

async fn publish(publisher: &Publisher, to: Queue, letter: Letter) -> Result<(), Error> {
    // Fresh headers but for its trace, and so a fresh count of retries: the broker drops silently what carries the x-death of a queue it
    // has been in.
    let message = Message {
        queue: to,
        message_id: letter.message_id,
        headers: traced::headers_of(letter.trace.as_ref()),
        body: letter.body,
    };
    for result in publisher.publish(vec![message], SESSION_DEADLINE).await {
        result.map_err(|error| match error {
            PublishError::Invalid(problem) => Error::Refused {
                code: "not_publishable",
                detail: format!("it cannot be published: {problem}"),
            },
            error => Error::Broker(error.to_string()),
        })?;
    }
    Ok(())
}
