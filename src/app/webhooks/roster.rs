//! All subscriptions, as a process knows them: read every second, so that telling them reads nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::app::{Context, Error};
use crate::db;
use crate::domain::ids::WebhookId;
use crate::domain::tally::Tally;
use crate::domain::webhooks::Subscription;
use crate::shutdown::Shutdown;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Those that are read; there may be a few more than callers may make, of the configuration.
const READ_MAX: i64 = 2 * crate::domain::webhooks::MAX;

type All = HashMap<WebhookId, Arc<Subscription>>;

/// What is known of all subscriptions. Clones share it.
#[derive(Clone, Default)]
pub struct Roster(watch::Sender<Arc<All>>);

impl Roster {
    /// Looks until the shutdown.
    pub async fn look_until_stopped(self, context: Context, shutdown: Shutdown) {
        let mut failed = Tally::new();
        loop {
            match read(&context).await {
                Ok(all) => {
                    self.0.send_if_modified(|known| {
                        let is_new = **known != all;
                        if is_new {
                            *known = Arc::new(all);
                        }
                        is_new
                    });
                }
                Err(error) => {
                    if let Some(times) = failed.add(1, std::time::Instant::now()) {
                        tracing::warn!(times, %error, "could not look who subscribes to webhooks");
                    }
                }
            }
            tokio::select! {
                () = shutdown.begun() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Whether anybody subscribes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Waits until somebody subscribes.
    pub async fn somebody(&self) {
        let mut changes = self.0.subscribe();
        // Its sender is ours, so it cannot be closed.
        let _ = changes.wait_for(|all| !all.is_empty()).await;
    }

    /// One, as it was a moment ago.
    #[must_use]
    pub fn find(&self, id: WebhookId) -> Option<Arc<Subscription>> {
        self.0.borrow().get(&id).cloned()
    }
}

async fn read(context: &Context) -> Result<All, Error> {
    let all = context
        .with_connection(async |connection| {
            Ok(db::webhooks::list(connection, None, None, READ_MAX).await?)
        })
        .await?;
    Ok(all.into_iter().map(|one| (one.id, Arc::new(one))).collect())
}
