//! What this process has seen of receivers, for whoever feeds them and for people who ask: written now and then and by a
//! task of its own, so that no message waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::app::{Context, Error};
use crate::db;
use crate::domain::ids::WebhookId;
use crate::shutdown::Shutdown;

/// Between two writes.
const WRITE_EVERY: Duration = Duration::from_millis(200);
/// What cannot be written is tried again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Enough waits here; nothing more is put into the broker for as long.
const HELD_FOR: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Noted {
    /// Of which enough waits.
    held: BTreeSet<WebhookId>,
    /// What each failed with, or nothing where it answers again.
    standing: BTreeMap<WebhookId, Option<String>>,
}

/// What was seen and is not written yet. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Notes(Arc<Mutex<Noted>>);

impl Notes {
    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn hold(&self, id: WebhookId) {
        self.lock().held.insert(id);
    }

    pub(super) fn failing(&self, id: WebhookId, error: &str) {
        self.lock().standing.insert(id, Some(error.to_owned()));
    }

    pub(super) fn answering(&self, id: WebhookId) {
        self.lock().standing.insert(id, None);
    }

    /// Writes what is noted until the shutdown.
    pub async fn write_until_stopped(self, context: Context, shutdown: Shutdown) {
        let mut wait = WRITE_EVERY;
        loop {
            tokio::select! {
                () = shutdown.begun() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let noted = std::mem::take(&mut *self.lock());
            wait = match write(&context, &noted).await {
                Ok(()) => WRITE_EVERY,
                Err(error) => {
                    tracing::debug!(%error, "could not write how receivers of webhooks take messages; trying again");
                    self.put_back(noted);
                    AGAIN_AFTER
                }
            };
        }
    }

    /// What was noted since is newer.
    fn put_back(&self, noted: Noted) {
        let mut newer = self.lock();
        newer.held.extend(noted.held);
        for (id, standing) in noted.standing {
            newer.standing.entry(id).or_insert(standing);
        }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> BTreeSet<WebhookId> {
        self.lock().held.clone()
    }

    #[cfg(test)]
    pub(super) fn is_failing(&self, id: WebhookId) -> Option<bool> {
        self.lock().standing.get(&id).map(Option::is_some)
    }
}

async fn write(context: &Context, noted: &Noted) -> Result<(), Error> {
    if noted.held.is_empty() && noted.standing.is_empty() {
        return Ok(());
    }
    let mut failing = Vec::new();
    let mut answering = Vec::new();
    for (id, standing) in &noted.standing {
        match standing {
            Some(error) => failing.push((*id, error.clone())),
            None => answering.push(*id),
        }
    }
    let held: Vec<WebhookId> = noted.held.iter().copied().collect();
    context
        .with_connection(async |connection| {
            if !answering.is_empty() {
                db::webhooks::note_answering(connection, &answering).await?;
            }
            if !failing.is_empty() {
                db::webhooks::note_failing(connection, &failing).await?;
            }
            if !held.is_empty() {
                db::webhooks::hold(connection, &held, HELD_FOR).await?;
            }
            Ok(())
        })
        .await
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_could_not_be_written_does_not_go_before_what_is_newer() {
        let (notes, id) = (Notes::default(), WebhookId(Uuid::nil()));
        notes.failing(id, "down");
        let noted = std::mem::take(&mut *notes.lock());
        notes.answering(id);
        notes.put_back(noted);
        assert_eq!(notes.is_failing(id), Some(false));
        let noted = std::mem::take(&mut *notes.lock());
        notes.put_back(noted);
        assert_eq!(notes.is_failing(id), Some(false));
    }
}
