//! Dead letters: what a message's way into the dead-letter queue means for its order or its updates, and what an
//! operator may do with it there.
//!
//! An operator's session reads the letters that are meant, stops reading, and only then works on them: what comes back
//! to the queue meanwhile is never taken for one of them. Each letter's effect is committed before the letter is
//! acknowledged, so a session that dies at any moment leaves it in the queue, and the next one repeats the same.

mod drop;
mod letter;
mod replay;
mod report;

pub use self::drop::{Dropper, drop};
pub use letter::{Found, Letter, LetterDocument, find, list, name_orders};
pub use replay::replay;
pub use report::{Act, Document, Effect, Kept, Progress, Report};

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel_async::AsyncConnection;

use super::decide::lock_or_insert;
use super::save::save;
use super::{Context, Error, TRANSACTION_DEADLINE, with_deadline};
use crate::db;
use crate::db::updates::DeadLetter;
use crate::domain::ids::{OrderId, UpdateId};
use crate::domain::order::NewOrder;

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

/// Notes what has happened to the dead letter of updates. Returns the orders of which that is news.
///
/// # Errors
/// See [`Error`].
pub async fn mark_updates(
    context: &Context,
    ids: &[UpdateId],
    letter: DeadLetter,
    now: DateTime<Utc>,
) -> Result<Vec<OrderId>, Error> {
    with_deadline(TRANSACTION_DEADLINE, &context.database, async {
        let mut connection = context.database.get().await?;
        connection
            .transaction(async |connection| {
                Ok(db::updates::mark_dead_lettered(connection, ids, letter, now).await?)
            })
            .await
    })
    .await
}

/// How a transaction ended that was not committed.
enum RolledBack<T> {
    /// On purpose, with what it would have done.
    Rehearsed(T),
    Failed(Error),
}

impl<T> From<diesel::result::Error> for RolledBack<T> {
    fn from(error: diesel::result::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// The end of a transaction. A rehearsal does all that is to be done and is rolled back here, so what it says is what
/// would happen.
fn commit_unless_rehearsed<T>(act: Act, done: Result<T, Error>) -> Result<T, RolledBack<T>> {
    match (act, done) {
        (Act::Do, Ok(done)) => Ok(done),
        (Act::Rehearse, Ok(done)) => Err(RolledBack::Rehearsed(done)),
        (_, Err(error)) => Err(RolledBack::Failed(error)),
    }
}

/// What a transaction did, or would have done.
fn done_or_rehearsed<T>(ended: Result<T, RolledBack<T>>) -> Result<T, Error> {
    match ended {
        Ok(done) | Err(RolledBack::Rehearsed(done)) => Ok(done),
        Err(RolledBack::Failed(error)) => Err(error),
    }
}
