//! Writes what a rule has changed, and what has to leave for the broker, in the transaction that is open.

use chrono::{DateTime, Utc};
use diesel_async::AsyncPgConnection;
use futures_util::join;
use uuid::Uuid;

use super::Error;
use crate::db;
use crate::db::outbox::Waiting;
use crate::domain::book::Changes;
use crate::domain::messages;

/// Writes the changes. Returns the outbox rows of the messages that tell the vendors of new updates.
pub(super) async fn save(
    connection: &AsyncPgConnection,
    changes: &Changes,
    now: DateTime<Utc>,
) -> Result<Vec<Waiting>, Error> {
    // One that was closed in the transaction that made it has nothing to tell.
    let to_tell = changes
        .new_updates
        .iter()
        .filter(|update| !update.state.is_closed());
    let bodies = messages::updates_messages(to_tell)
        .iter()
        .map(|message| (Uuid::now_v7(), messages::encode_updates(message)))
        .collect();
    let mut new_updates = changes.new_updates.as_slice();
    while let Some((some, rest)) = new_updates.split_at_checked(db::updates::INSERTED_MAX) {
        db::updates::insert(connection, some, now).await?;
        new_updates = rest;
    }
    // None needs another's answer, so all are sent at once. All but the last are one statement each, and the server carries
    // them out in this order: where one fails, it refuses those behind it, and what it says of the first is the reason.
    let (inserted, noted, orders, stock, updates, waiting) = join!(
        // First, so that what the updates name is looked up before it has a new version.
        db::updates::insert(connection, new_updates, now),
        db::stock::insert_vendor_changes(connection, &changes.vendor_changes, now),
        db::orders::save(connection, &changes.orders, now),
        db::stock::save(connection, &changes.shelves, &changes.available, now),
        db::updates::save(connection, &changes.updates, now),
        db::outbox::append_updates(connection, bodies),
    );
    inserted?;
    noted?;
    orders?;
    stock?;
    updates?;
    let waiting = waiting?;
    db::orders::note_failures(connection, &changes.orders, now).await?;
    Ok(waiting)
}
