//! The door of the queues: a delivery comes in, a use case handles it, a verdict goes out. Whatever happens, a message
//! ends acknowledged after its effect is committed, or as a confirmed copy in the retry or the dead-letter queue.

pub mod orders;
mod suspects;
pub mod vendor_sync;

use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use tokio::time::Instant;

use crate::app::relay::Relay;
use crate::app::{Context, Error, Kind, dead_letters};
use crate::db;
use crate::domain::ids::UpdateId;
use crate::domain::messages::{DEAD_ATTEMPTS, DEAD_ERROR, DEAD_REASON, DEAD_TIME, RETRY_COUNT};
use crate::domain::order::NewOrder;
use crate::domain::retry::{self, Verdict};
use crate::mq::{Delivery, HeaderValue, Headers, Message, Publisher, Queue};
use crate::shutdown::Shutdown;

/// The longest error text in a header; a frame has room for more, a person's screen does not.
const ERROR_CHARS_MAX: usize = 1000;
/// Deliveries are held while a store is away, and handed back after this: the broker closes a channel that holds one
/// for 30 minutes.
const HOLD_MAX: Duration = Duration::from_secs(120);
/// A store that is away is probed this often.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// A probe without an answer for this long has none.
const PROBE_DEADLINE: Duration = Duration::from_secs(3);
/// A copy of a message is confirmed in milliseconds.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(10);

/// What all consumers work with.
#[derive(Clone)]
pub struct Door {
    /// Where the stores are.
    pub context: Context,
    /// For the copies that go to the retry and the dead-letter queues.
    pub publisher: Publisher,
    /// For what a use case has committed.
    pub relay: Relay,
    /// Retries after the first attempt.
    pub retries_max: u32,
    /// Ends the loops.
    pub shutdown: Shutdown,
}

/// What a message was, as far as it could be read; its dead letter concerns this.
enum Subject<'a> {
    Unreadable,
    Order(&'a NewOrder),
    Updates(&'a [UpdateId]),
}

/// How waiting for PostgreSQL ended.
#[derive(Debug, PartialEq, Eq)]
enum Waited {
    Back,
    TooLong,
    Stopped,
}

impl Door {
    /// Waits until PostgreSQL takes writes, until the shutdown, or until a time.
    async fn wait_for_store(&self, until: Option<Instant>) -> Waited {
        loop {
            if self.store_works().await {
                return Waited::Back;
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Waited::TooLong;
            }
            tokio::select! {
                () = self.shutdown.begun() => return Waited::Stopped,
                () = tokio::time::sleep(PROBE_INTERVAL) => {}
            }
        }
    }

    async fn store_works(&self) -> bool {
        let probe = async {
            let mut connection = self.context.database.get().await?;
            db::probe(&mut connection).await
        };
        matches!(
            tokio::time::timeout(PROBE_DEADLINE, probe).await,
            Ok(Ok(()))
        )
    }

    /// Whether an error is nobody's attempt. One that may pass is asked of the store itself: a server that is full or
    /// read-only answers every statement with an error of its own.
    async fn is_outage(&self, error: &Error) -> bool {
        match error.kind() {
            Kind::Unavailable => true,
            Kind::Transient => matches!(error, Error::Database(_)) && !self.store_works().await,
            Kind::Refused | Kind::Missing | Kind::Bug => false,
        }
    }

    /// The verdict for one message whose use case failed for a reason of its own.
    fn judge(&self, delivery: &Delivery, error: &Error) -> Verdict {
        let text = error.to_string();
        match error.kind() {
            Kind::Refused | Kind::Missing => Verdict::DeadLetter {
                code: retry::INVALID_MESSAGE,
                error: text,
            },
            Kind::Transient | Kind::Unavailable | Kind::Bug => {
                retry::after_transient(retry_count(delivery), self.retries_max, &text)
            }
        }
    }

    /// Does what a verdict asks for, up to where the delivery may be acknowledged.
    async fn carry_out(
        &self,
        from: Queue,
        delivery: &Delivery,
        subject: &Subject<'_>,
        verdict: &Verdict,
    ) -> Result<(), Error> {
        let (dlq, retry_queue) = match from {
            Queue::VendorSync => (Queue::VendorSyncDlq, Queue::VendorSyncRetry),
            _ => (Queue::OrdersDlq, Queue::OrdersRetry),
        };
        match verdict {
            Verdict::Ack => Ok(()),
            Verdict::Retry { retry_count } => {
                tracing::info!(
                    queue = from.base_name(),
                    message_id = delivery.message_id,
                    retry_count,
                    "to be retried"
                );
                let headers = Headers::from([(
                    RETRY_COUNT.to_owned(),
                    HeaderValue::Int(i64::from(*retry_count)),
                )]);
                self.copy_to(retry_queue, delivery, headers).await
            }
            Verdict::DeadLetter { code, error } => {
                tracing::warn!(
                    queue = from.base_name(),
                    message_id = delivery.message_id,
                    code,
                    error,
                    "dead-lettered"
                );
                let attempts = i64::from(retry_count(delivery)) + 1;
                let headers = Headers::from([
                    (
                        DEAD_REASON.to_owned(),
                        HeaderValue::Text((*code).to_owned()),
                    ),
                    (
                        DEAD_ERROR.to_owned(),
                        HeaderValue::Text(error.chars().take(ERROR_CHARS_MAX).collect()),
                    ),
                    (
                        DEAD_TIME.to_owned(),
                        HeaderValue::Text(Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)),
                    ),
                    (DEAD_ATTEMPTS.to_owned(), HeaderValue::Int(attempts)),
                ]);
                // The copy first: an order that says it failed must have a letter to be replayed from.
                self.copy_to(dlq, delivery, headers).await?;
                match subject {
                    Subject::Unreadable => Ok(()),
                    Subject::Order(order) => {
                        dead_letters::fail_order(
                            &self.context,
                            order,
                            &format!("{code}: {error}"),
                            Utc::now(),
                        )
                        .await
                    }
                    Subject::Updates(ids) => {
                        dead_letters::mark_updates(&self.context, ids, true).await
                    }
                }
            }
        }
    }

    /// Publishes a copy and waits for its confirm. Its headers are new: the broker drops silently what carries the
    /// `x-death` of a queue it has been in.
    async fn copy_to(
        &self,
        queue: Queue,
        delivery: &Delivery,
        headers: Headers,
    ) -> Result<(), Error> {
        let message = Message {
            queue,
            message_id: delivery.message_id.clone().unwrap_or_default(),
            headers,
            body: delivery.body.clone(),
        };
        for result in self
            .publisher
            .publish(vec![message], PUBLISH_DEADLINE)
            .await
        {
            result.map_err(|error| Error::Broker(format!("{}: {error}", queue.base_name())))?;
        }
        Ok(())
    }

    /// Carries a verdict out however long a store is away, up to a time. Returns whether it is done; otherwise the
    /// delivery is still the broker's.
    async fn carry_out_until(
        &self,
        from: Queue,
        delivery: &Delivery,
        subject: &Subject<'_>,
        verdict: &Verdict,
        until: Instant,
    ) -> bool {
        loop {
            match self.carry_out(from, delivery, subject, verdict).await {
                Ok(()) => return true,
                Err(error) => {
                    tracing::debug!(%error, "a verdict cannot be carried out yet");
                    if Instant::now() >= until || self.shutdown.is_begun() {
                        return false;
                    }
                    tokio::time::sleep(PROBE_INTERVAL).await;
                }
            }
        }
    }
}

/// How many retries a message has had.
fn retry_count(delivery: &Delivery) -> u32 {
    match delivery.headers.get(RETRY_COUNT) {
        Some(HeaderValue::Int(count)) => u32::try_from(*count).unwrap_or(0),
        Some(HeaderValue::Text(text)) => text.parse().unwrap_or(0),
        None => 0,
    }
}
