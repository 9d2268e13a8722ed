//! The queues, their names, and the settings that everything in this room is started with.

use std::time::Duration;

/// One of the queues this product owns. The names are a contract with operators and other producers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Queue {
    /// New orders to be decided.
    Orders,
    /// Orders waiting for their next attempt.
    OrdersRetry,
    /// Orders that processing gave up on.
    OrdersDlq,
    /// Updates to be told to vendors.
    VendorSync,
    /// Vendor updates waiting for their next attempt.
    VendorSyncRetry,
    /// Vendor updates that were given up on.
    VendorSyncDlq,
    /// Events to be told to receivers of webhooks.
    Webhooks,
    /// Those that wait for their second attempt.
    WebhooksRetry1,
    /// For their third.
    WebhooksRetry2,
    /// For their fourth.
    WebhooksRetry3,
    /// For their last.
    WebhooksRetry4,
    /// Events that their receivers did not take.
    WebhooksDlq,
}

impl Queue {
    /// Every queue, the targets of dead-lettering before the queues that dead-letter to them, so that
    /// declaring in this order never leaves a queue without its target.
    pub const ALL: [Queue; 12] = [
        Queue::OrdersDlq,
        Queue::Orders,
        Queue::OrdersRetry,
        Queue::VendorSyncDlq,
        Queue::VendorSync,
        Queue::VendorSyncRetry,
        Queue::WebhooksDlq,
        Queue::Webhooks,
        Queue::WebhooksRetry1,
        Queue::WebhooksRetry2,
        Queue::WebhooksRetry3,
        Queue::WebhooksRetry4,
    ];

    /// The queues in which messages of webhooks wait for their next attempt, each for longer than the one before.
    pub const WEBHOOKS_RETRY: [Queue; 4] = [
        Queue::WebhooksRetry1,
        Queue::WebhooksRetry2,
        Queue::WebhooksRetry3,
        Queue::WebhooksRetry4,
    ];

    /// Where the messages of a work queue go that could not be handled.
    pub fn beside(self) -> &'static [Queue] {
        match self {
            Queue::Orders => &[Queue::OrdersRetry, Queue::OrdersDlq],
            Queue::VendorSync => &[Queue::VendorSyncRetry, Queue::VendorSyncDlq],
            Queue::Webhooks => &[
                Queue::WebhooksRetry1,
                Queue::WebhooksRetry2,
                Queue::WebhooksRetry3,
                Queue::WebhooksRetry4,
                Queue::WebhooksDlq,
            ],
            _ => &[],
        }
    }

    /// Whether the queue is there only once somebody has subscribed to events.
    pub fn is_of_webhooks(self) -> bool {
        matches!(self, Queue::WebhooksDlq | Queue::Webhooks) || Self::WEBHOOKS_RETRY.contains(&self)
    }

    /// The name without the installation's prefix.
    pub fn base_name(self) -> &'static str {
        match self {
            Queue::Orders => "orders_queue",
            Queue::OrdersRetry => "orders_retry_queue",
            Queue::OrdersDlq => "orders_dlq",
            Queue::VendorSync => "vendor_sync",
            Queue::VendorSyncRetry => "vendor_sync_retry",
            Queue::VendorSyncDlq => "vendor_sync_dlq",
            Queue::Webhooks => "webhooks",
            Queue::WebhooksRetry1 => "webhooks_retry_1",
            Queue::WebhooksRetry2 => "webhooks_retry_2",
            Queue::WebhooksRetry3 => "webhooks_retry_3",
            Queue::WebhooksRetry4 => "webhooks_retry_4",
            Queue::WebhooksDlq => "webhooks_dlq",
        }
    }

    /// The name at the broker.
    pub fn name(self, settings: &Settings) -> String {
        format!("{}{}", settings.queue_prefix, self.base_name())
    }

    /// Whether messages here are final, for an operator to look at.
    pub fn is_dead_letter(self) -> bool {
        matches!(
            self,
            Queue::OrdersDlq | Queue::VendorSyncDlq | Queue::WebhooksDlq
        )
    }
}

/// How the broker keeps a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueType {
    /// Replicated and counting deliveries: the default.
    Quorum,
    /// For brokers without quorum queues; promises less, see `topology`.
    Classic,
}

/// What publishers, consumers and operators' sessions are started with. It has no `Debug`, since the
/// URLs carry passwords.
#[derive(Clone)]
pub struct Settings {
    /// The nodes of the broker (`amqp://user:password@host:port/vhost`), tried in turn.
    pub urls: Vec<String>,
    /// Stands in front of every queue's name, so that several installations can share a broker.
    pub queue_prefix: String,
    /// How the queues are kept.
    pub queue_type: QueueType,
    /// How long an order waits in its retry queue.
    pub orders_retry_delay: Duration,
    /// How long a vendor's message waits in its retry queue.
    pub vendor_sync_retry_delay: Duration,
    /// How long a message of webhooks waits in each of its retry queues.
    pub webhooks_retry_delays: [Duration; 4],
    /// Whether the queues of webhooks are declared, too: nobody else has a use for them.
    pub with_webhooks: bool,
}

impl Settings {
    /// The queues that are declared, in the order of [`Queue::ALL`].
    pub(super) fn declared(&self) -> impl Iterator<Item = Queue> + use<> {
        let with_webhooks = self.with_webhooks;
        let queues = Queue::ALL.into_iter();
        queues.filter(move |queue| with_webhooks || !queue.is_of_webhooks())
    }
}
