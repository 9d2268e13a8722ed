//! The six queues, their names, and the settings that everything in this room is started with.

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
}

impl Queue {
    /// Every queue, the targets of dead-lettering before the queues that dead-letter to them, so that
    /// declaring in this order never leaves a queue without its target.
    pub const ALL: [Queue; 6] = [
        Queue::OrdersDlq,
        Queue::Orders,
        Queue::OrdersRetry,
        Queue::VendorSyncDlq,
        Queue::VendorSync,
        Queue::VendorSyncRetry,
    ];

    /// The name without the installation's prefix.
    pub fn base_name(self) -> &'static str {
        match self {
            Queue::Orders => "orders_queue",
            Queue::OrdersRetry => "orders_retry_queue",
            Queue::OrdersDlq => "orders_dlq",
            Queue::VendorSync => "vendor_sync",
            Queue::VendorSyncRetry => "vendor_sync_retry",
            Queue::VendorSyncDlq => "vendor_sync_dlq",
        }
    }

    /// The name at the broker.
    pub fn name(self, settings: &Settings) -> String {
        format!("{}{}", settings.queue_prefix, self.base_name())
    }

    /// Whether messages here are final, for an operator to look at.
    pub fn is_dead_letter(self) -> bool {
        matches!(self, Queue::OrdersDlq | Queue::VendorSyncDlq)
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
}
