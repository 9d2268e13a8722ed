//! The door of the queues: a delivery comes in, a use case handles it, a verdict goes out. Whatever happens, a message
//! ends acknowledged after its effect is committed, or as a confirmed copy in the retry or the dead-letter queue.

pub mod orders;
mod pace;
pub mod push_states;
mod suspects;
pub mod vendor_sync;
pub mod watchdog;
pub mod webhooks;

use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use tokio::time::Instant;
use tracing::Instrument;

use crate::app::relay::Relay;
use crate::app::{Context, Error, Kind, dead_letters, traced};
use crate::db::updates::DeadLetter;
use crate::domain::ids::{OrderId, UpdateId};
use crate::domain::messages::{
    DEAD_ATTEMPTS, DEAD_CAUSE, DEAD_ERROR, DEAD_REASON, DEAD_TIME, RETRY_COUNT,
};
use crate::domain::order::NewOrder;
use crate::domain::retry::{self, Verdict};
use crate::metrics::MESSAGES;
use crate::mq::{Delivery, HeaderValue, Headers, Link, Message, Publisher, Queue};
use crate::shutdown::Shutdown;
use crate::traces;

/// The longest error text in a header; a frame has room for more, a person's screen does not.
const ERROR_CHARS_MAX: usize = 1000;
/// A line of the log names this many orders.
const ORDERS_TOLD_MAX: usize = 20;
/// Deliveries are held while a store is away, and handed back after this: the broker closes a channel that holds one
/// for 30 minutes.
const HOLD_MAX: Duration = Duration::from_secs(120);
/// A store that is away is probed this often.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// A probe without an answer for this long has none.
const PROBE_DEADLINE: Duration = Duration::from_secs(3);
/// Attempts at a batch that lost their connection although the store works; after these each message is tried alone.
const ROUNDS_TOGETHER_MAX: u32 = 3;
/// The same for one message, over ten seconds: a server that restarts again and again is still nobody's fault, but a
/// message that takes the server down each time is.
const ROUNDS_ALONE_MAX: u32 = 20;
/// Attempts that the store refused although it works when it is asked; the next one counts.
const ROUNDS_REFUSED_MAX: u32 = 1;
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
    /// An event that somebody is told: nothing of ours depends on it.
    Event,
}

impl Subject<'_> {
    /// The order, for the log.
    fn order(&self) -> Option<String> {
        match self {
            Self::Order(order) => Some(order.id.to_string()),
            Self::Unreadable | Self::Updates(_) | Self::Event => None,
        }
    }

    /// The first of the updates, for the log.
    fn update(&self) -> Option<String> {
        match self {
            Self::Updates(ids) => ids.first().map(ToString::to_string),
            Self::Unreadable | Self::Order(_) | Self::Event => None,
        }
    }
}

/// How waiting for PostgreSQL ended.
#[derive(Debug, PartialEq, Eq)]
enum Waited {
    Back,
    TooLong,
    Stopped,
}

/// What an attempt's failure means.
#[derive(Debug, PartialEq, Eq)]
enum Weighed {
    /// Try the same again.
    Again,
    /// The store is away for too long, or the process is to end: the broker may have it back.
    GiveUp,
    /// Something about the messages themselves.
    ItsOwn,
}

impl Door {
    /// Waits until PostgreSQL takes writes, until the shutdown, or until a time.
    async fn wait_for_store(&self, until: Option<Instant>) -> Waited {
        loop {
            // Asked first: a store that works, but not for what is in hand, must not be tried for ever.
            if until.is_some_and(|until| Instant::now() >= until) {
                return Waited::TooLong;
            }
            if self.store_works().await {
                return Waited::Back;
            }
            tokio::select! {
                () = self.shutdown.begun() => return Waited::Stopped,
                () = tokio::time::sleep(PROBE_INTERVAL) => {}
            }
        }
    }

    /// Waits, after messages were handed back, until PostgreSQL takes writes and the broker takes copies: one that is
    /// blocked still delivers, and each delivery in vain counts against the message.
    async fn wait_for_stores(&self) -> Waited {
        loop {
            if self.wait_for_store(None).await == Waited::Stopped {
                return Waited::Stopped;
            }
            if *self.publisher.link().borrow() == Link::Up {
                return Waited::Back;
            }
            tokio::select! {
                () = self.shutdown.begun() => return Waited::Stopped,
                () = tokio::time::sleep(PROBE_INTERVAL) => {}
            }
        }
    }

    async fn store_works(&self) -> bool {
        self.context.store_works(PROBE_DEADLINE).await
    }

    /// Whether an attempt that failed is to be made again as it was. A store that is away is waited for and nobody's
    /// fault; one that works, and took the connection away again and again, is not what is wrong.
    async fn weigh(
        &self,
        error: &Error,
        messages: usize,
        rounds: &mut u32,
        until: Instant,
    ) -> Weighed {
        let of_store = matches!(error, Error::Database(_));
        if !of_store || !matches!(error.kind(), Kind::Unavailable | Kind::Transient) {
            return Weighed::ItsOwn;
        }
        // A server that is full or read-only answers every statement with an error of its own, so it is asked.
        if !self.store_works().await {
            return match self.wait_for_store(Some(until)).await {
                Waited::Back => Weighed::Again,
                Waited::TooLong | Waited::Stopped => Weighed::GiveUp,
            };
        }
        if self.shutdown.is_begun() || Instant::now() >= until {
            return Weighed::GiveUp;
        }
        *rounds += 1;
        let rounds_max = match error.kind() {
            Kind::Unavailable if messages > 1 => ROUNDS_TOGETHER_MAX,
            Kind::Unavailable => ROUNDS_ALONE_MAX,
            // It may work again since it refused: a disk was full for a moment.
            _ => ROUNDS_REFUSED_MAX,
        };
        if *rounds > rounds_max {
            return Weighed::ItsOwn;
        }
        tokio::time::sleep(PROBE_INTERVAL).await;
        Weighed::Again
    }

    /// The verdict for one message whose use case failed for a reason of its own.
    fn judge(&self, delivery: &Delivery, error: &Error) -> Verdict {
        let text = error.to_string();
        match error.kind() {
            Kind::Refused | Kind::Missing => Verdict::DeadLetter {
                code: retry::INVALID_MESSAGE,
                error: text,
                cause: None,
            },
            Kind::Transient | Kind::Unavailable | Kind::Bug => {
                retry::after_transient(retry_count(delivery), self.retries_max, &text, error.code())
            }
        }
    }

    /// Does what a verdict asks for, up to where the delivery may be acknowledged, however long a store is away, up to a
    /// time. Returns whether it is done; otherwise the delivery is still the broker's.
    async fn carry_out(
        &self,
        from: Queue,
        delivery: &Delivery,
        subject: &Subject<'_>,
        verdict: &Verdict,
        until: Instant,
    ) -> bool {
        let (dlq, retry_queue) = match from {
            Queue::VendorSync => (Queue::VendorSyncDlq, Queue::VendorSyncRetry),
            Queue::Webhooks => (Queue::WebhooksDlq, webhooks::retry_queue(verdict)),
            _ => (Queue::OrdersDlq, Queue::OrdersRetry),
        };
        // One that came without a trace has begun one, which its copies stay in.
        let context = traced::context_of(&delivery.headers).unwrap_or_else(traces::root);
        let span = traces::for_log(Some(&context));
        let within = |mut headers: Headers| {
            headers.extend(traced::headers_of(Some(&context)));
            headers
        };
        match verdict {
            Verdict::Ack => true,
            Verdict::Retry { retry_count } => {
                span.in_scope(|| {
                    tracing::info!(
                        queue = from.base_name(),
                        message_id = delivery.message_id,
                        order = subject.order(),
                        update = subject.update(),
                        retry_count,
                        "to be retried"
                    )
                });
                let headers = within(headers_again(from, delivery, *retry_count));
                let is_copied = self.copy_to(retry_queue, delivery, &headers, until).await;
                if is_copied {
                    // One that comes again with as many retries as it had was not tried to its end.
                    let costs_a_retry = *retry_count > self::retry_count(delivery);
                    let counter = match costs_a_retry {
                        true => MESSAGES.retried(from.base_name()),
                        false => MESSAGES.put_off(from.base_name()),
                    };
                    counter.inc();
                }
                is_copied
            }
            Verdict::DeadLetter { code, error, cause } => {
                span.in_scope(|| {
                    tracing::warn!(
                        queue = from.base_name(),
                        message_id = delivery.message_id,
                        order = subject.order(),
                        update = subject.update(),
                        code,
                        error,
                        "dead-lettered"
                    )
                });
                // The copy first: an order that says it failed must have a letter to be replayed from.
                let headers = dead_letter_headers(delivery, code, error, cause.as_deref());
                let is_copied = self.copy_to(dlq, delivery, &within(headers), until).await;
                if is_copied {
                    MESSAGES.dead_lettered(from.base_name(), code).inc();
                }
                is_copied && self.note_dead(subject, code, until).instrument(span).await
            }
        }
    }

    /// Notes of an order or of updates that their message is in the dead-letter queue. The order gets the code only: the
    /// error is an operator's, and its caller reads the order. Returns whether that is done, or can never be.
    async fn note_dead(&self, subject: &Subject<'_>, code: &str, until: Instant) -> bool {
        let mut rounds = 0;
        loop {
            let noted = match subject {
                Subject::Unreadable | Subject::Event => return true,
                Subject::Order(order) => {
                    dead_letters::fail_order(&self.context, order, code, Utc::now()).await
                }
                Subject::Updates(ids) => {
                    let written = DeadLetter::Written;
                    dead_letters::mark_updates(&self.context, ids, written, Utc::now())
                        .await
                        .map(|orders| tell_of(&orders, subject))
                }
            };
            let Err(error) = noted else { return true };
            match self.weigh(&error, 1, &mut rounds, until).await {
                Weighed::Again => {}
                Weighed::GiveUp => return false,
                Weighed::ItsOwn => {
                    // The letter is safe, and says why; another copy of it would say no more.
                    tracing::error!(order = subject.order(), update = subject.update(), %error, "the state of a dead-lettered message cannot be written");
                    return true;
                }
            }
        }
    }

    /// Publishes a copy and waits for its confirm, again and again up to a time. Its headers are new: the broker drops
    /// silently what carries the `x-death` of a queue it has been in.
    async fn copy_to(
        &self,
        queue: Queue,
        delivery: &Delivery,
        headers: &Headers,
        until: Instant,
    ) -> bool {
        loop {
            let results = self
                .publisher
                .publish(vec![copy(queue, delivery, headers)], PUBLISH_DEADLINE)
                .await;
            match results.into_iter().next() {
                Some(Err(error)) => {
                    tracing::debug!(queue = queue.base_name(), %error, "a copy cannot be published yet");
                }
                _ => return true,
            }
            if Instant::now() >= until || self.shutdown.is_begun() {
                return false;
            }
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
    }
}

/// Names the orders whose updates an operator has in hand now: their message names none.
fn tell_of(orders: &[OrderId], subject: &Subject<'_>) {
    if orders.is_empty() {
        return;
    }
    let told = orders.iter().take(ORDERS_TOLD_MAX).map(ToString::to_string);
    tracing::warn!(
        update = subject.update(),
        orders = told.collect::<Vec<_>>().join(" "),
        count = orders.len(),
        "the vendor has not confirmed the updates of these orders; they wait for an operator"
    );
}

impl Door {
    /// Publishes copies of deliveries that come again as they are, and waits for their confirms, again and again up to a
    /// time. Returns those that may be acknowledged, and those that are still the broker's.
    async fn put_off(
        &self,
        queue: Queue,
        mut deliveries: Vec<Delivery>,
        until: Instant,
    ) -> (Vec<Delivery>, Vec<Delivery>) {
        let from = work_queue(queue);
        let mut copied = Vec::with_capacity(deliveries.len());
        while !deliveries.is_empty() {
            let messages = deliveries
                .iter()
                .map(|delivery| {
                    let headers = headers_again(from, delivery, retry_count(delivery));
                    copy(queue, delivery, &headers)
                })
                .collect();
            let results = self.publisher.publish(messages, PUBLISH_DEADLINE).await;
            let mut left = Vec::new();
            for (delivery, result) in deliveries.into_iter().zip(results) {
                match result {
                    Ok(()) => {
                        MESSAGES.put_off(from.base_name()).inc();
                        copied.push(delivery);
                    }
                    Err(error) => {
                        tracing::debug!(queue = queue.base_name(), %error, "a copy cannot be published yet");
                        left.push(delivery);
                    }
                }
            }
            deliveries = left;
            if deliveries.is_empty() || Instant::now() >= until || self.shutdown.is_begun() {
                break;
            }
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
        (copied, deliveries)
    }
}

/// What a message of a work queue says of itself when it comes again.
fn headers_again(from: Queue, delivery: &Delivery, retry_count: u32) -> Headers {
    let mut headers = retry_headers(retry_count);
    if from == Queue::Webhooks {
        headers.extend(webhooks::waiting_since(delivery));
    }
    headers
}

/// Whose messages they are that are copied to a queue.
fn work_queue(copied_to: Queue) -> Queue {
    match copied_to {
        Queue::Orders | Queue::OrdersRetry | Queue::OrdersDlq => Queue::Orders,
        Queue::VendorSync | Queue::VendorSyncRetry | Queue::VendorSyncDlq => Queue::VendorSync,
        Queue::Webhooks
        | Queue::WebhooksRetry1
        | Queue::WebhooksRetry2
        | Queue::WebhooksRetry3
        | Queue::WebhooksRetry4
        | Queue::WebhooksDlq => Queue::Webhooks,
    }
}

/// A copy stays in its trace.
fn copy(queue: Queue, delivery: &Delivery, headers: &Headers) -> Message {
    let mut headers = headers.clone();
    headers.extend(traced::headers_of(
        traced::context_of(&delivery.headers).as_ref(),
    ));
    Message {
        queue,
        message_id: delivery.message_id.clone().unwrap_or_default(),
        headers,
        body: delivery.body.clone(),
    }
}

fn retry_headers(retry_count: u32) -> Headers {
    let count = HeaderValue::Int(i64::from(retry_count));
    Headers::from([(RETRY_COUNT.to_owned(), count)])
}

fn dead_letter_headers(
    delivery: &Delivery,
    code: &str,
    error: &str,
    cause: Option<&str>,
) -> Headers {
    let text = |text: String| HeaderValue::Text(text);
    let mut headers = Headers::from([
        (DEAD_REASON.to_owned(), text(code.to_owned())),
        (
            DEAD_ERROR.to_owned(),
            text(error.chars().take(ERROR_CHARS_MAX).collect()),
        ),
        (
            DEAD_TIME.to_owned(),
            text(Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)),
        ),
        (
            DEAD_ATTEMPTS.to_owned(),
            HeaderValue::Int(i64::from(retry_count(delivery)) + 1),
        ),
    ]);
    headers.extend(cause.map(|cause| (DEAD_CAUSE.to_owned(), text(cause.to_owned()))));
    headers
}

/// How many retries a message has had.
fn retry_count(delivery: &Delivery) -> u32 {
    match delivery.headers.get(RETRY_COUNT) {
        Some(HeaderValue::Int(count)) => u32::try_from(*count).unwrap_or(0),
        Some(HeaderValue::Text(text)) => text.parse().unwrap_or(0),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn delivery(headers: Headers) -> Delivery {
        Delivery {
            tag: crate::mq::Tag::default(),
            message_id: None,
            headers,
            body: Vec::new(),
            redeliveries: 0,
        }
    }

    proptest! {
        #[test]
        fn whatever_a_message_says_of_its_retries_it_ends(
            said in prop_oneof![
                any::<i64>().prop_map(HeaderValue::Int),
                (0_i64..9).prop_map(HeaderValue::Int),
                "-?[0-9]{1,12}|\\PC{0,9}".prop_map(HeaderValue::Text),
            ],
            retries_max in 0_u32..9,
        ) {
            let mut one = delivery(Headers::from([(RETRY_COUNT.to_owned(), said)]));
            let mut attempts = 1;
            while let Verdict::Retry { retry_count } = retry::after_transient(retry_count(&one), retries_max, "down", "out".into()) {
                prop_assert!((1..=retries_max).contains(&retry_count));
                one = delivery(retry_headers(retry_count));
                attempts += 1;
            }
            prop_assert!(attempts <= retries_max + 1);
            let dead = dead_letter_headers(&one, retry::RETRIES_EXHAUSTED, &"é".repeat(2000), Some("out"));
            let kept = HeaderValue::Text("é".repeat(ERROR_CHARS_MAX));
            prop_assert_eq!(&dead[DEAD_ERROR], &kept);
        }
    }
}
