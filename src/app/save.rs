//! Writes what a rule has changed, and what has to leave for the broker, in the transaction that is open.

use chrono::{DateTime, Utc};
use diesel_async::AsyncPgConnection;
use uuid::Uuid;

use super::Error;
use crate::db;
use crate::db::outbox::Waiting;
use crate::domain::book::Changes;
use crate::domain::messages;

/// Writes the changes. Returns the outbox rows of the messages that tell the vendors of new updates.
pub(super) async fn save(
    connection: &mut AsyncPgConnection,
    changes: &Changes,
    now: DateTime<Utc>,
) -> Result<Vec<Waiting>, Error> {
    // First, so that what the updates name is looked up before it has a new version.
    db::updates::insert(connection, &changes.new_updates, now).await?;
    db::stock::insert_vendor_changes(connection, &changes.vendor_changes, now).await?;
    db::orders::save(connection, &changes.orders, now).await?;
    db::stock::save(connection, &changes.shelves, &changes.available, now).await?;
    db::updates::save(connection, &changes.updates, now).await?;
    // One that was closed in the transaction that made it has nothing to tell.
    let to_tell = changes
        .new_updates
        .iter()
        .filter(|update| !update.state.is_closed());
    let bodies = messages::updates_messages(to_tell)
        .iter()
        .map(|message| (Uuid::now_v7(), messages::encode_updates(message)))
        .collect();
    Ok(db::outbox::append_updates(connection, bodies).await?)
}
