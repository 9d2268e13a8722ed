//! How the queues are declared, and what to say when they exist otherwise.
//!
//! Arguments of a queue cannot be changed later: the broker answers 406 to a declaration that differs.
//! In classic mode the broker promises less: an expired message whose target is missing is lost, and
//! deliveries are not counted.

use std::time::Duration;

use amiquip::{Channel, QueueDeclareOptions};

use super::{
    message::{HeaderValue, Headers, table},
    queues::{Queue, QueueType, Settings},
    trouble::{NOT_FOUND, PRECONDITION_FAILED, Trouble},
};

/// Every queue is bounded; a full one refuses publishes, which the publisher sees as a nack.
const MESSAGES_MAX: i64 = 1_000_000;

/// Backstop against a message that crashes whoever takes it before it can be counted: after so many
/// deliveries the broker dead-letters it. Consumers act earlier.
const WORK_DELIVERIES_MAX: i64 = 20;

/// Listing dead letters counts as delivering them. A small limit would drop what is looked at often, and
/// without one, a partial listing was seen to change the order.
const DEAD_LETTER_DELIVERIES_MAX: i64 = 1_000_000;

/// For how long nothing is published after a queue was declared that did not exist. RabbitMQ 3.10, killed within half
/// a second of declaring a quorum queue, was seen to come back without it and without the messages it had confirmed:
/// the queue's registration was not on disk yet.
pub(super) const NEW_QUEUE_PAUSE: Duration = Duration::from_secs(1);

/// What declaring has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Declared {
    /// Every queue existed.
    Known,
    /// One at least is new; what it confirms now, a crash of the broker may take.
    New,
}

/// The arguments with which a queue is declared.
///
/// - `x-queue-type`: said outright, so that a default of the virtual host cannot change it.
/// - `x-max-length` with `x-overflow = reject-publish`: a bound that refuses new messages; the default
///   would drop the oldest. At-least-once dead-lettering demands it too.
/// - `x-dead-letter-exchange = ""` with a routing key: straight to one queue, without exchanges that could
///   be missing.
/// - `x-dead-letter-strategy = at-least-once` (quorum): without it a message is lost when its target is
///   missing or full at that moment.
/// - `x-message-ttl` (retry queues): the pause before the next attempt.
/// - `x-delivery-limit` (quorum work queues and dead letters): see the constants above. A retry queue has
///   no consumers.
pub fn arguments(queue: Queue, settings: &Settings) -> Headers {
    let quorum = settings.queue_type == QueueType::Quorum;
    let text = |value: &str| HeaderValue::Text(value.to_owned());
    let mut arguments = Headers::new();
    let mut set = |name: &str, value| arguments.insert(name.to_owned(), value);

    set(
        "x-queue-type",
        text(if quorum { "quorum" } else { "classic" }),
    );
    set("x-max-length", HeaderValue::Int(MESSAGES_MAX));
    set("x-overflow", text("reject-publish"));

    let (target, delay) = match queue {
        Queue::Orders => (Some(Queue::OrdersDlq), None),
        Queue::OrdersRetry => (Some(Queue::Orders), Some(settings.orders_retry_delay)),
        Queue::VendorSync => (Some(Queue::VendorSyncDlq), None),
        Queue::VendorSyncRetry => (
            Some(Queue::VendorSync),
            Some(settings.vendor_sync_retry_delay),
        ),
        Queue::Webhooks => (Some(Queue::WebhooksDlq), None),
        Queue::WebhooksRetry1
        | Queue::WebhooksRetry2
        | Queue::WebhooksRetry3
        | Queue::WebhooksRetry4 => (Some(Queue::Webhooks), webhooks_delay(queue, settings)),
        Queue::OrdersDlq | Queue::VendorSyncDlq | Queue::WebhooksDlq => (None, None),
    };
    if let Some(target) = target {
        set("x-dead-letter-exchange", text(""));
        set(
            "x-dead-letter-routing-key",
            HeaderValue::Text(target.name(settings)),
        );
        if quorum {
            set("x-dead-letter-strategy", text("at-least-once"));
        }
    }
    if let Some(delay) = delay {
        let delay_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        set("x-message-ttl", HeaderValue::Int(delay_ms));
    }
    if quorum {
        let deliveries_max = match queue {
            Queue::Orders | Queue::VendorSync | Queue::Webhooks => Some(WORK_DELIVERIES_MAX),
            _ if queue.is_dead_letter() => Some(DEAD_LETTER_DELIVERIES_MAX),
            _ => None,
        };
        if let Some(deliveries_max) = deliveries_max {
            set("x-delivery-limit", HeaderValue::Int(deliveries_max));
        }
    }
    arguments
}

fn webhooks_delay(queue: Queue, settings: &Settings) -> Option<Duration> {
    let each = Queue::WEBHOOKS_RETRY
        .into_iter()
        .zip(settings.webhooks_retry_delays);
    each.filter(|(of, _)| *of == queue)
        .map(|(_, delay)| delay)
        .next()
}

/// Whether every queue exists. A declaration does not tell: its answer is the same for a queue that was there. The
/// broker closes the channel over one that is missing.
pub(super) fn all_exist(channel: &Channel, settings: &Settings) -> Result<bool, Trouble> {
    for queue in settings.declared() {
        match channel.queue_declare_passive(queue.name(settings)) {
            Ok(_) => {}
            Err(amiquip::Error::ServerClosedChannel {
                code: NOT_FOUND, ..
            }) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Declares every queue. The broker closes the channel over one that it refuses.
pub(super) fn declare(
    channel: &Channel,
    settings: &Settings,
    mut progress: impl FnMut(),
) -> Result<(), Trouble> {
    for queue in settings.declared() {
        let name = queue.name(settings);
        let options = QueueDeclareOptions {
            durable: true,
            arguments: table(&arguments(queue, settings)),
            ..QueueDeclareOptions::default()
        };
        channel
            .queue_declare(name.as_str(), options)
            .map_err(|error| match error {
                amiquip::Error::ServerClosedChannel {
                    code: PRECONDITION_FAILED,
                    message,
                    ..
                } => Trouble::Misdeclared(format!(
                    "queue {name} exists with other properties than configured: {message}; give back the old \
                     setting, or drain and delete that queue, or choose another rabbitmq.queue_prefix"
                )),
                other => Trouble::from(other),
            })?;
        progress();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn settings(queue_type: QueueType) -> Settings {
        Settings {
            urls: Vec::new(),
            queue_prefix: "p.".to_owned(),
            queue_type,
            orders_retry_delay: Duration::from_secs(5),
            vendor_sync_retry_delay: Duration::from_secs(7),
            webhooks_retry_delays: [1, 2, 3, 4].map(Duration::from_secs),
            with_webhooks: false,
        }
    }

    #[test]
    fn a_retry_queue_hands_back_to_its_work_queue() {
        let arguments = arguments(Queue::VendorSyncRetry, &settings(QueueType::Quorum));
        let text = |value: &str| HeaderValue::Text(value.to_owned());
        let expected = [
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text("p.vendor_sync")),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-max-length", HeaderValue::Int(1_000_000)),
            ("x-message-ttl", HeaderValue::Int(7_000)),
            ("x-overflow", text("reject-publish")),
            ("x-queue-type", text("quorum")),
        ];
        assert_eq!(
            arguments,
            expected
                .map(|(name, value)| (name.to_owned(), value))
                .into()
        );
    }

    #[test]
    fn each_retry_queue_of_webhooks_has_a_delay_of_its_own_and_hands_back_to_their_work_queue() {
        let settings = settings(QueueType::Quorum);
        for (queue, delay_ms) in Queue::WEBHOOKS_RETRY
            .into_iter()
            .zip([1000, 2000, 3000, 4000])
        {
            let arguments = arguments(queue, &settings);
            assert_eq!(arguments["x-message-ttl"], HeaderValue::Int(delay_ms));
            let target = HeaderValue::Text("p.webhooks".to_owned());
            assert_eq!(arguments["x-dead-letter-routing-key"], target);
        }
    }

    #[test]
    fn the_queues_of_webhooks_are_declared_only_where_they_are_used() {
        let without = settings(QueueType::Quorum);
        assert_eq!(without.declared().count(), 6);
        assert!(!without.declared().any(Queue::is_of_webhooks));
        let with = Settings {
            with_webhooks: true,
            ..without
        };
        assert!(with.declared().eq(Queue::ALL));
    }

    #[test]
    fn classic_mode_has_no_argument_that_classic_queues_refuse() {
        for queue in Queue::ALL {
            let arguments = arguments(queue, &settings(QueueType::Classic));
            assert!(!arguments.contains_key("x-delivery-limit"));
            assert!(!arguments.contains_key("x-dead-letter-strategy"));
        }
    }
}
