//! Tells a receiver one message.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;

use super::Roster;
use crate::app::{Context, Error};
use crate::db;
use crate::domain::ids::WebhookId;
use crate::domain::webhooks::{Notification, Subscription};
use crate::metrics::{Told, WEBHOOKS};
use crate::receivers::{Answer, Client, Sent};

/// What is said of a subscription whose receiver has answered 410.
const GONE: &str = "it answered 410 Gone, so it is told no more";

/// Tells receivers. Clones share it.
#[derive(Clone)]
pub struct Teller {
    context: Context,
    roster: Roster,
    client: Arc<Client>,
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// It is told, or there is nobody to tell it to.
    Done {
        /// Whether a receiver has taken it.
        is_taken: bool,
    },
    /// It is not.
    Failed {
        /// What anybody may read of why.
        error: String,
        /// How long the receiver asks to be left alone, where it does.
        retry_after: Option<Duration>,
    },
}

impl Teller {
    /// One that knows who subscribes.
    #[must_use]
    pub fn new(context: Context, roster: Roster, client: Client) -> Self {
        Self {
            context,
            roster,
            client: Arc::new(client),
        }
    }

    /// Whether a receiver is said to fail, as it was known a moment ago.
    #[must_use]
    pub fn is_failing(&self, id: WebhookId) -> bool {
        self.roster
            .find(id)
            .is_some_and(|of| of.failing_since.is_some())
    }

    /// Makes an attempt.
    ///
    /// # Errors
    /// Our database cannot be read or written; nothing is known of the receiver by that.
    pub async fn tell(&self, notification: &Notification) -> Result<Tried, Error> {
        let Some(subscription) = self.subscription(notification.webhook_id).await? else {
            WEBHOOKS.told.of(Told::Discarded).inc();
            return Ok(Tried::Done { is_taken: false });
        };
        let began = Instant::now();
        let answer = self
            .client
            .send(Sent {
                url: &subscription.url,
                id: &notification.id,
                at: Utc::now(),
                secret: &subscription.secret,
                body: notification.body.get(),
            })
            .await;
        WEBHOOKS.duration.observe(began.elapsed().as_secs_f64());
        match answer {
            Answer::Taken => {
                WEBHOOKS.told.of(Told::Delivered).inc();
                Ok(Tried::Done { is_taken: true })
            }
            Answer::Gone => {
                let id = subscription.id;
                self.context
                    .with_connection(async |connection| {
                        Ok(db::webhooks::disable(connection, id, GONE).await?)
                    })
                    .await?;
                WEBHOOKS.told.of(Told::Gone).inc();
                tracing::warn!(webhook = %id, "the receiver answered 410 and is told no more");
                Ok(Tried::Done { is_taken: false })
            }
            Answer::Failed { error, retry_after } => {
                WEBHOOKS.told.of(Told::Failed).inc();
                Ok(Tried::Failed { error, retry_after })
            }
        }
    }

    /// One that is to be told. Who is not known here may have subscribed a moment ago.
    async fn subscription(&self, id: WebhookId) -> Result<Option<Arc<Subscription>>, Error> {
        let found = match self.roster.find(id) {
            Some(known) => Some(known),
            None => self
                .context
                .with_connection(async |connection| Ok(db::webhooks::find(connection, id).await?))
                .await?
                .map(Arc::new),
        };
        Ok(found.filter(|of| of.disabled_at.is_none()))
    }
}
