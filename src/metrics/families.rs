//! Every metric by its name, and what it says. The README has the same as a table, with what to do.

use std::sync::LazyLock;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
};

use super::pools::POOLS;
use super::{
    Counters, Label, counter, counters_by, gauge, gauges_by, histogram, histograms_by, labels,
    seconds, seconds_by,
};

/// A commit takes milliseconds, a store that is away seconds.
const ACCEPT_SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Most orders are decided within a fraction of a second; one that is retried takes 5 s more each time.
const DECISION_SECONDS: [f64; 13] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
];
const CALL_SECONDS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0,
];
/// A small catalogue takes a fraction of a second, millions of products minutes.
const SYNC_SECONDS: [f64; 11] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 30.0, 60.0, 300.0];
/// Up to what one transaction takes.
const BATCH_ORDERS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 2000.0];

labels! {
    /// How an order was accepted.
    Via {
        /// It is in PostgreSQL.
        Database = ["database"],
        /// PostgreSQL was away, and the broker has it.
        Broker = ["broker"],
    }

    /// Why a span was not exported.
    SpanDropped {
        /// As many as may wait were waiting.
        QueueFull = ["queue_full"],
        /// The collector could not be reached or said that it could not take it, several times.
        CollectorAway = ["collector_away"],
        /// The collector does not want it.
        Refused = ["refused"],
    }

    /// Why an order was not accepted although there is nothing wrong with the request.
    Refused {
        /// As many requests as may wait are waiting.
        QueueFull = ["queue_full"],
        /// Neither store takes orders.
        Unavailable = ["unavailable"],
        /// Neither store has answered whether it took it.
        OutcomeUnknown = ["outcome_unknown"],
        /// Its idempotency key belongs to another request.
        KeyTaken = ["key_taken"],
        /// A contradiction of ours.
        Bug = ["bug"],
    }

    /// How an order was decided.
    Decision {
        /// Its stock is taken.
        Confirmed = ["confirmed", ""],
        /// There was too little.
        InsufficientStock = ["rejected", "insufficient_stock"],
        /// No vendor has ever listed it.
        UnknownProduct = ["rejected", "unknown_product"],
        /// It came through the broker, and its key belongs to another request.
        IdempotencyConflict = ["rejected", "idempotency_conflict"],
        /// For another reason.
        RejectedOtherwise = ["rejected", "other"],
        /// Its caller took it back.
        CancelledByCaller = ["cancelled", "requested"],
        /// A vendor had sold the goods elsewhere, and no other could serve them.
        CancelledByVendor = ["cancelled", "vendor_rejected"],
        /// An operator dropped its dead letter.
        Dropped = ["cancelled", "dropped"],
    }

    /// What the broker did with a message.
    Published {
        /// It has it.
        Confirmed = ["confirmed"],
        /// There was no connection that takes it.
        Unavailable = ["unavailable"],
        /// It has not answered.
        Unknown = ["unknown"],
        /// It refused it: the queue is full, or has no majority.
        Nacked = ["nacked"],
        /// Its queue does not exist.
        Unroutable = ["unroutable"],
        /// It can never be published.
        Invalid = ["invalid"],
    }

    /// How a call of a vendor's API ended.
    Call {
        /// With a usable answer.
        Answered = ["answered"],
        /// The vendor is down or overloaded.
        Down = ["down"],
        /// With an answer that is none, or an error about what it was sent.
        Unusable = ["unusable"],
    }

    /// What a vendor answered for an update.
    UpdateOutcome {
        /// Its stock has changed.
        Applied = ["applied"],
        /// It had too little.
        Rejected = ["rejected"],
        /// It came to nothing, for good.
        Void = ["void"],
        /// It knows the id with another content.
        Conflict = ["conflict"],
        /// Nothing that can be believed.
        Unusable = ["unusable"],
    }

    /// How a sync ended.
    SyncRun {
        /// The whole catalogue is written.
        Done = ["done"],
        /// Another process syncs the vendor.
        Busy = ["busy"],
        /// A newer run has begun meanwhile.
        Overtaken = ["overtaken"],
        /// It failed.
        Failed = ["failed"],
    }

    /// What a sync did with a row of the vendor's catalogue.
    SyncRow {
        /// The vendor has it.
        Listed = ["listed"],
        /// It was read whole; of the others a hash was.
        Read = ["read"],
        /// It had changed, and was written.
        Written = ["written"],
        /// Its id or its stock cannot be ours.
        Skipped = ["skipped"],
    }

    /// What became of an attempt to tell a receiver of webhooks something.
    Told {
        /// It has taken it.
        Delivered = ["delivered"],
        /// It could not be reached, did not answer in time, or answered with an error.
        Failed = ["failed"],
        /// It answered that it is gone, and is told no more.
        Gone = ["gone"],
        /// Its subscription was deleted or disabled meanwhile, so it was not asked.
        Discarded = ["discarded"],
    }

    /// Something that the product recovers from by itself, and that somebody should know of.
    Fault {
        /// An order was accepted through the broker since PostgreSQL was found away: counted once an outage.
        PostgresqlAway = ["postgresql_away"],
        /// A connection to RabbitMQ broke.
        RabbitmqLost = ["rabbitmq_lost"],
        /// RabbitMQ was silent for so long that its connection was given up.
        RabbitmqSilent = ["rabbitmq_silent"],
        /// RabbitMQ takes no messages: an alarm of its memory or its disk.
        RabbitmqBlocked = ["rabbitmq_blocked"],
        /// A queue exists with other properties than configured.
        QueueMisdeclared = ["queue_misdeclared"],
        /// The broker cancelled a consumer: its queue was deleted, or the node went down.
        ConsumerCancelled = ["consumer_cancelled"],
        /// A queue is missing: a message came back, or the queue was asked for in vain.
        QueueMissing = ["queue_missing"],
        /// The broker closed a channel over an error.
        ChannelClosed = ["channel_closed"],
        /// A store was away for so long that messages were handed back to the broker.
        HandedBack = ["handed_back"],
        /// A consumer finished nothing although messages waited and both stores worked; its process ends.
        ConsumerStalled = ["consumer_stalled"],
    }
}

/// What the door of orders counts.
pub struct Accepting {
    /// New orders.
    pub accepted: Counters<Via>,
    /// Requests that were accepted before.
    pub replayed: IntCounter,
    /// Requests that were not accepted.
    pub refused: Counters<Refused>,
    /// From the request to the answer, of new orders.
    pub duration: Histogram,
    /// Orders of one transaction.
    pub batch: Histogram,
    /// Requests that wait for a transaction, as it was when the last one began.
    pub waiting: IntGauge,
}

/// What the door of orders counts.
pub static ACCEPTING: LazyLock<Accepting> = LazyLock::new(|| Accepting {
    accepted: Counters::new(
        "stockctl_orders_accepted_total",
        "New orders answered 202, by the store that has them: PostgreSQL (database), or RabbitMQ while PostgreSQL is away (broker).",
        &["via"],
    ),
    replayed: counter(
        "stockctl_orders_replayed_total",
        "Requests answered with the order that the same request had made before.",
    ),
    refused: Counters::new(
        "stockctl_orders_refused_total",
        "Valid requests that were not accepted, by reason; queue_full, unavailable and outcome_unknown were answered 503.",
        &["reason"],
    ),
    duration: histogram(
        "stockctl_order_accept_duration_seconds",
        "From a valid request to its answer, for new orders.",
        &ACCEPT_SECONDS,
    ),
    batch: histogram(
        "stockctl_accept_batch_orders",
        "Orders accepted in one transaction.",
        &BATCH_ORDERS,
    ),
    waiting: gauge(
        "stockctl_accept_requests_waiting",
        "Requests that waited for a transaction when the last one began; above 10000 they are refused.",
    ),
});

/// What deciding counts.
pub struct Deciding {
    /// Orders by what became of them.
    pub decided: Counters<Decision>,
    /// From the acceptance to the decision.
    pub latency: Histogram,
    /// Orders of one transaction.
    pub batch: Histogram,
    /// How long the transaction took.
    pub duration: Histogram,
}

/// What deciding counts.
pub static DECIDING: LazyLock<Deciding> = LazyLock::new(|| Deciding {
    decided: Counters::new(
        "stockctl_orders_decided_total",
        "Orders confirmed, rejected or cancelled, with the reason. One that is confirmed and then cancelled counts in both.",
        &["outcome", "reason"],
    ),
    latency: histogram(
        "stockctl_order_decision_duration_seconds",
        "From the acceptance of an order to its decision.",
        &DECISION_SECONDS,
    ),
    batch: histogram(
        "stockctl_decide_batch_orders",
        "Orders decided in one transaction.",
        &BATCH_ORDERS,
    ),
    duration: histogram(
        "stockctl_decide_transaction_duration_seconds",
        "How long a transaction that decides takes.",
        &ACCEPT_SECONDS,
    ),
});

/// The queues that are worked on, and the reasons of dead letters; others count as `other`.
const WORK_QUEUES: [&str; 3] = ["orders_queue", "vendor_sync", "webhooks"];
const DEAD_REASONS: [&str; 5] = [
    "invalid_message",
    "retries_exhausted",
    "crash_loop",
    "update_conflict",
    "other",
];

/// What happens to messages.
pub struct Messages {
    retried: IntCounterVec,
    put_off: IntCounterVec,
    dead: IntCounterVec,
    /// Results of publishing.
    pub published: Counters<Published>,
    /// Messages that the sweeper has published.
    pub swept: IntCounter,
    /// Messages that had no effect for minutes, and were sent again.
    pub sent_again: IntCounter,
}

impl Messages {
    /// Messages of a queue whose attempt failed, and that have another.
    pub fn retried(&self, queue: &str) -> IntCounter {
        self.retried.with_label_values(&[queue])
    }

    /// Messages of a queue that come again and have lost no attempt.
    pub fn put_off(&self, queue: &str) -> IntCounter {
        self.put_off.with_label_values(&[queue])
    }

    /// Messages of a queue that ended in its dead-letter queue.
    pub fn dead_lettered(&self, queue: &str, reason: &str) -> IntCounter {
        let known = DEAD_REASONS.iter().find(|known| **known == reason);
        self.dead
            .with_label_values(&[queue, known.unwrap_or(&"other")])
    }
}

/// What happens to messages.
pub static MESSAGES: LazyLock<Messages> = LazyLock::new(|| {
    let messages = Messages {
        retried: counters_by(
            "stockctl_messages_retried_total",
            "Messages sent to the retry queue after an attempt that failed.",
            &["queue"],
        ),
        put_off: counters_by(
            "stockctl_messages_put_off_total",
            "Messages that come again later without having lost an attempt: their vendor is down or slow, or they were taken apart.",
            &["queue"],
        ),
        dead: counters_by(
            "stockctl_messages_dead_lettered_total",
            "Messages sent to the dead-letter queue, by reason.",
            &["queue", "reason"],
        ),
        published: Counters::new(
            "stockctl_messages_published_total",
            "Messages given to RabbitMQ, by what it did with them.",
            &["result"],
        ),
        swept: counter(
            "stockctl_outbox_swept_total",
            "Messages that had waited in the outbox and were published by the sweeper.",
        ),
        sent_again: counter(
            "stockctl_messages_sent_again_total",
            "Messages that had no effect for 5 minutes and were sent again; RabbitMQ may have lost them.",
        ),
    };
    for queue in WORK_QUEUES {
        messages.retried(queue);
        messages.put_off(queue);
        for reason in DEAD_REASONS {
            messages.dead_lettered(queue, reason);
        }
    }
    messages
});

/// What telling the vendors counts. The vendors are those of the configuration.
pub struct Vendors {
    calls: IntCounterVec,
    call_duration: HistogramVec,
    updates: IntCounterVec,
    breaker: IntGaugeVec,
    openings: IntCounterVec,
}

impl Vendors {
    /// Makes the figures of a vendor of the configuration be there from the beginning.
    pub fn configured(&self, vendor: &str) {
        for outcome in Call::ALL {
            self.call(vendor, *outcome);
        }
        self.call_duration(vendor);
        for outcome in UpdateOutcome::ALL {
            self.updates(vendor, *outcome);
        }
        self.breaker(vendor);
        self.openings(vendor);
        SYNCS.configured(vendor);
        SEEN.vendor(vendor, &SeenVendor::default());
    }

    /// Calls of its API.
    pub fn call(&self, vendor: &str, outcome: Call) -> IntCounter {
        with(&self.calls, vendor, outcome)
    }

    /// How long its API takes.
    pub fn call_duration(&self, vendor: &str) -> Histogram {
        self.call_duration.with_label_values(&[vendor])
    }

    /// Updates that it answered for.
    pub fn updates(&self, vendor: &str, outcome: UpdateOutcome) -> IntCounter {
        with(&self.updates, vendor, outcome)
    }

    /// 1 while this process leaves it alone.
    pub fn breaker(&self, vendor: &str) -> IntGauge {
        self.breaker.with_label_values(&[vendor])
    }

    /// How often this process began to leave it alone.
    pub fn openings(&self, vendor: &str) -> IntCounter {
        self.openings.with_label_values(&[vendor])
    }
}

fn with(family: &IntCounterVec, vendor: &str, value: impl Label) -> IntCounter {
    family.with_label_values(&[&[vendor], value.texts()].concat())
}

/// What telling the vendors counts.
pub static VENDORS: LazyLock<Vendors> = LazyLock::new(|| Vendors {
    calls: counters_by(
        "stockctl_vendor_calls_total",
        "Calls of a vendor's API by their end: answered, down (no answer, 429, 502, 503, 504), unusable (any other).",
        &["vendor", "outcome"],
    ),
    call_duration: histograms_by(
        "stockctl_vendor_call_duration_seconds",
        "How long a call of a vendor's API takes, whatever its end.",
        &["vendor"],
        &CALL_SECONDS,
    ),
    updates: counters_by(
        "stockctl_vendor_updates_total",
        "Updates that a vendor answered for.",
        &["vendor", "outcome"],
    ),
    breaker: gauges_by(
        "stockctl_vendor_breaker_open",
        "1 while this process leaves a vendor alone that failed several times in a row, or tries whether it is back.",
        &["vendor"],
    ),
    openings: counters_by(
        "stockctl_vendor_breaker_openings_total",
        "How often this process began to leave a vendor alone.",
        &["vendor"],
    ),
});

/// What the sync counts. The vendors are those of the configuration.
pub struct Syncs {
    runs: IntCounterVec,
    duration: HistogramVec,
    rows: IntCounterVec,
    closed: IntCounterVec,
}

impl Syncs {
    fn configured(&self, vendor: &str) {
        for outcome in SyncRun::ALL {
            self.runs(vendor, *outcome);
        }
        self.duration(vendor);
        for kind in SyncRow::ALL {
            self.rows(vendor, *kind);
        }
        self.closed(vendor);
    }

    /// Runs by their end.
    pub fn runs(&self, vendor: &str, outcome: SyncRun) -> IntCounter {
        with(&self.runs, vendor, outcome)
    }

    /// How long a run takes that writes the whole catalogue.
    pub fn duration(&self, vendor: &str) -> Histogram {
        self.duration.with_label_values(&[vendor])
    }

    /// Rows of the vendor's catalogue.
    pub fn rows(&self, vendor: &str, kind: SyncRow) -> IntCounter {
        with(&self.rows, vendor, kind)
    }

    /// Updates that were found applied.
    pub fn closed(&self, vendor: &str) -> IntCounter {
        self.closed.with_label_values(&[vendor])
    }
}

/// What the sync counts.
pub static SYNCS: LazyLock<Syncs> = LazyLock::new(|| Syncs {
    runs: counters_by(
        "stockctl_sync_runs_total",
        "Syncs of a vendor's stock by their end.",
        &["vendor", "outcome"],
    ),
    duration: histograms_by(
        "stockctl_sync_duration_seconds",
        "How long a sync takes that writes the whole catalogue.",
        &["vendor"],
        &SYNC_SECONDS,
    ),
    rows: counters_by(
        "stockctl_sync_rows_total",
        "Rows of a vendor's catalogue: there (listed), of these read whole and not by their hash alone (read), changed (written), passed over since their id or stock cannot be ours (skipped).",
        &["vendor", "kind"],
    ),
    closed: counters_by(
        "stockctl_sync_updates_closed_total",
        "Updates that a sync found applied by the vendor.",
        &["vendor"],
    ),
});

/// The connections to the broker, by their owner's name: `serve`, `work`, or the queue that is consumed.
pub struct Connections {
    connected: IntGaugeVec,
    blocked: IntGaugeVec,
    reconnections: IntCounterVec,
}

impl Connections {
    /// 1 while it is connected.
    pub fn connected(&self, connection: &str) -> IntGauge {
        self.connected.with_label_values(&[connection])
    }

    /// 1 while the broker takes no messages on it.
    pub fn blocked(&self, connection: &str) -> IntGauge {
        self.blocked.with_label_values(&[connection])
    }

    /// How often it was made again.
    pub fn reconnections(&self, connection: &str) -> IntCounter {
        self.reconnections.with_label_values(&[connection])
    }
}

/// What was noticed, and is got over.
pub static FAULTS: LazyLock<Counters<Fault>> = LazyLock::new(|| {
    Counters::new(
        "stockctl_faults_total",
        "What this process noticed, and recovers from by itself; each has a line in the log.",
        &["fault"],
    )
});

/// The connections to the broker.
pub static RABBITMQ: LazyLock<Connections> = LazyLock::new(|| Connections {
    connected: gauges_by(
        "stockctl_rabbitmq_connected",
        "1 while a connection to RabbitMQ is there.",
        &["connection"],
    ),
    blocked: gauges_by(
        "stockctl_rabbitmq_blocked",
        "1 while RabbitMQ takes no messages on a connection.",
        &["connection"],
    ),
    reconnections: counters_by(
        "stockctl_rabbitmq_reconnections_total",
        "How often a connection to RabbitMQ that was lost was made again.",
        &["connection"],
    ),
});

/// What those who listen to events are told.
pub struct Events {
    /// Who listens now.
    pub listeners: IntGauge,
    /// Events told, each as often as it was.
    pub sent: IntCounter,
    /// Listeners that were too slow.
    pub too_slow: IntCounter,
}

/// What those who listen to events are told.
pub static EVENTS: LazyLock<Events> = LazyLock::new(|| Events {
    listeners: gauge(
        "stockctl_event_listeners",
        "Connections that listen to GET /events; above 500 of a process they are refused.",
    ),
    sent: counter(
        "stockctl_events_sent_total",
        "Events told to those who listen, each as often as it was told.",
    ),
    too_slow: counter(
        "stockctl_event_listeners_too_slow_total",
        "Listeners that were let go since they did not read what they were told.",
    ),
});

/// What receivers of webhooks are told.
pub struct Webhooks {
    /// Attempts, by their end.
    pub told: Counters<Told>,
    /// How long a receiver takes, whatever its end.
    pub duration: Histogram,
    /// Events put into the queue, each as often as it was for a subscription.
    pub fed: IntCounter,
    /// Subscriptions that were told that events are gone.
    pub resets: IntCounter,
    /// How often this process began to leave a receiver alone.
    pub openings: IntCounter,
}

/// What receivers of webhooks are told.
pub static WEBHOOKS: LazyLock<Webhooks> = LazyLock::new(|| Webhooks {
    told: Counters::new(
        "stockctl_webhook_attempts_total",
        "Messages to receivers of webhooks by what became of them: delivered (2xx), failed, gone (410), or discarded since the subscription is no more.",
        &["outcome"],
    ),
    duration: histogram(
        "stockctl_webhook_call_duration_seconds",
        "How long a receiver of webhooks takes, whatever its answer.",
        &CALL_SECONDS,
    ),
    fed: counter(
        "stockctl_webhook_events_total",
        "Events put into the queue of webhooks, each once for each subscription that hears it.",
    ),
    resets: counter(
        "stockctl_webhook_resets_total",
        "How often a subscription was behind for longer than events are kept, and was told so.",
    ),
    openings: counter(
        "stockctl_webhook_breaker_openings_total",
        "How often this process began to leave a receiver of webhooks alone that failed several times in a row.",
    ),
});

/// What the HTTP API answers.
pub struct Http {
    answers: Vec<IntCounter>,
}

impl Http {
    /// Answers with such a status.
    pub fn answered(&self, status: u16) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.answers[class].inc();
    }
}

/// What the HTTP API answers.
pub static HTTP: LazyLock<Http> = LazyLock::new(|| {
    let answers = counters_by(
        "stockctl_http_answers_total",
        "Answers of the HTTP API by the class of their status.",
        &["class"],
    );
    Http {
        answers: ["1xx", "2xx", "3xx", "4xx", "5xx"]
            .map(|class| answers.with_label_values(&[class]))
            .to_vec(),
    }
});

/// What is looked at on a scrape. It concerns the installation, not the process: every process shows the same.
pub struct Seen {
    /// 1 when PostgreSQL answered the last look.
    pub postgresql_up: IntGauge,
    /// 1 when RabbitMQ answered the last look.
    pub rabbitmq_up: IntGauge,
    /// Rows of the outbox.
    pub outbox: IntGauge,
    /// The age of the oldest.
    pub outbox_age: Gauge,
    /// Orders that are not decided.
    pub pending: IntGauge,
    /// The age of the oldest of them.
    pub pending_age: Gauge,
    ready: IntGaugeVec,
    consumers: IntGaugeVec,
    stalled: IntGaugeVec,
    last_sync: GaugeVec,
    sync_failing: IntGaugeVec,
    open_updates: IntGaugeVec,
    unanswered: IntGaugeVec,
    open_units: IntGaugeVec,
    lag: GaugeVec,
    violations: IntGaugeVec,
    not_checked: IntGaugeVec,
    /// When the last audit ended, in seconds since 1970.
    pub audited_at: Gauge,
    webhooks: IntGaugeVec,
    /// The age of the oldest event that is not in the broker for a subscription that hears it.
    pub webhook_lag: Gauge,
}

/// What is looked at of one vendor.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SeenVendor {
    /// When its stock was last written whole, in seconds since 1970; 0 when it never was.
    pub last_sync: f64,
    /// Whether its newest sync failed.
    pub is_sync_failing: bool,
    /// Its updates that are not closed.
    pub open_updates: i64,
    /// Those without an answer.
    pub unanswered: i64,
    /// The units that the open ones take.
    pub open_units: i64,
    /// The age of the oldest update without an answer, in seconds.
    pub lag: f64,
}

impl Seen {
    /// Shows what was seen of a vendor of the configuration.
    pub fn vendor(&self, vendor: &str, seen: &SeenVendor) {
        let of = &[vendor];
        self.last_sync.with_label_values(of).set(seen.last_sync);
        let is_failing = i64::from(seen.is_sync_failing);
        self.sync_failing.with_label_values(of).set(is_failing);
        self.open_updates
            .with_label_values(of)
            .set(seen.open_updates);
        self.unanswered.with_label_values(of).set(seen.unanswered);
        self.open_units.with_label_values(of).set(seen.open_units);
        self.lag.with_label_values(of).set(seen.lag);
    }

    /// Shows what waits in a queue, and how many consume it.
    pub fn queue(&self, queue: &str, ready: u32, consumers: u32) {
        let of = &[queue];
        self.ready.with_label_values(of).set(i64::from(ready));
        self.consumers
            .with_label_values(of)
            .set(i64::from(consumers));
    }

    /// Shows whether a consumer of a queue finishes nothing.
    pub fn stalled(&self, queue: &str, is_stalled: bool) {
        self.stalled
            .with_label_values(&[queue])
            .set(i64::from(is_stalled));
    }

    /// Shows how many subscriptions are told, fail, and are told no more.
    pub fn webhooks(&self, active: i64, failing: i64, disabled: i64) {
        for (state, count) in [
            ("active", active),
            ("failing", failing),
            ("disabled", disabled),
        ] {
            self.webhooks.with_label_values(&[state]).set(count);
        }
    }

    /// Shows what the last audit found in one of its checks.
    pub fn audited(&self, check: &str, violations: i64, failures: i64) {
        self.violations.with_label_values(&[check]).set(violations);
        self.not_checked.with_label_values(&[check]).set(failures);
    }
}

/// What is looked at on a scrape.
pub static SEEN: LazyLock<Seen> = LazyLock::new(|| {
    let seen = seen();
    for queue in WORK_QUEUES {
        seen.stalled(queue, false);
    }
    seen.webhooks(0, 0, 0);
    seen
});

fn seen() -> Seen {
    Seen {
        postgresql_up: gauge(
            "stockctl_postgresql_up",
            "1 when PostgreSQL answered the last look; with 0, what is read from it is as old as the last answer.",
        ),
        rabbitmq_up: gauge(
            "stockctl_rabbitmq_up",
            "1 when RabbitMQ answered the last look; with 0, the queues are as they were then.",
        ),
        outbox: gauge(
            "stockctl_outbox_messages",
            "Messages that wait in the outbox for their confirm, counted up to 100000.",
        ),
        outbox_age: seconds(
            "stockctl_outbox_oldest_age_seconds",
            "The age of the oldest message in the outbox; 0 when it is empty.",
        ),
        pending: gauge(
            "stockctl_orders_pending",
            "Orders that are not decided yet, among the newest 10000.",
        ),
        pending_age: seconds(
            "stockctl_orders_pending_oldest_age_seconds",
            "The age of the oldest of them; 0 when there is none.",
        ),
        ready: gauges_by(
            "stockctl_queue_messages_ready",
            "Messages that wait in a queue.",
            &["queue"],
        ),
        consumers: gauges_by(
            "stockctl_queue_consumers",
            "Consumers of a queue.",
            &["queue"],
        ),
        stalled: gauges_by(
            "stockctl_queue_stalled",
            "1 when a consumer of a queue has finished nothing for 90 s although messages wait.",
            &["queue"],
        ),
        last_sync: seconds_by(
            "stockctl_vendor_last_sync_timestamp_seconds",
            "When a vendor's stock was last written whole; 0 when it never was.",
            &["vendor"],
        ),
        sync_failing: gauges_by(
            "stockctl_vendor_sync_failing",
            "1 when the newest sync of a vendor failed.",
            &["vendor"],
        ),
        open_updates: gauges_by(
            "stockctl_vendor_open_updates",
            "Updates of a vendor that no sync has seen yet, counted up to 100000.",
            &["vendor"],
        ),
        unanswered: gauges_by(
            "stockctl_vendor_unanswered_updates",
            "Those of them that the vendor has not answered for, dead letters not counted.",
            &["vendor"],
        ),
        open_units: gauges_by(
            "stockctl_vendor_open_units",
            "Units taken from a vendor that no sync has seen yet, over as many updates.",
            &["vendor"],
        ),
        lag: seconds_by(
            "stockctl_vendor_lag_seconds",
            "The age of the oldest update that a vendor has not answered for, dead letters not counted; 0 when there is none.",
            &["vendor"],
        ),
        violations: gauges_by(
            "stockctl_audit_violations",
            "What the last `stockctl audit` found violated, by check.",
            &["check"],
        ),
        not_checked: gauges_by(
            "stockctl_audit_failures",
            "What the last `stockctl audit` could not look at, by check.",
            &["check"],
        ),
        audited_at: seconds(
            "stockctl_audit_timestamp_seconds",
            "When the last `stockctl audit` ended; 0 when none was seen.",
        ),
        webhooks: gauges_by(
            "stockctl_webhooks",
            "Subscriptions to webhooks that are told (active), fail (failing), or have answered 410 (disabled).",
            &["state"],
        ),
        webhook_lag: seconds(
            "stockctl_webhook_lag_seconds",
            "The age of the oldest event that some subscription to webhooks has not been fed; 0 when there is none.",
        ),
    }
}

/// Traces.
pub struct Traces {
    /// Spans that the collector has taken.
    pub exported: IntCounter,
    /// Spans that it has not.
    pub dropped: Counters<SpanDropped>,
}

/// Spans of traces, where they are exported.
pub static TRACES: LazyLock<Traces> = LazyLock::new(|| Traces {
    exported: counter(
        "stockctl_spans_exported_total",
        "Spans of traces that the collector has taken.",
    ),
    dropped: Counters::new(
        "stockctl_spans_dropped_total",
        "Spans of traces that were recorded and are lost.",
        &["reason"],
    ),
});

/// Lines of the log that were lost.
pub static LOG_LINES_LOST: LazyLock<IntCounter> = LazyLock::new(|| {
    counter(
        "stockctl_log_lines_lost_total",
        "Lines of the log that were lost since stderr was read too slowly, or not at all.",
    )
});

struct Process {
    started: Gauge,
    build: IntGaugeVec,
}

static PROCESS: LazyLock<Process> = LazyLock::new(|| {
    let process = Process {
        started: seconds(
            "process_start_time_seconds",
            "When the process began to count, in seconds since 1970.",
        ),
        build: gauges_by("stockctl_build_info", "1, with the version.", &["version"]),
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    process.started.set(now.unwrap_or_default().as_secs_f64());
    process
        .build
        .with_label_values(&[env!("CARGO_PKG_VERSION")])
        .set(1);
    process
});

/// Makes every family be there.
pub(super) fn touch() {
    LazyLock::force(&PROCESS);
    LazyLock::force(&ACCEPTING);
    LazyLock::force(&DECIDING);
    LazyLock::force(&MESSAGES);
    LazyLock::force(&VENDORS);
    LazyLock::force(&SYNCS);
    LazyLock::force(&FAULTS);
    LazyLock::force(&RABBITMQ);
    LazyLock::force(&HTTP);
    LazyLock::force(&EVENTS);
    LazyLock::force(&WEBHOOKS);
    LazyLock::force(&SEEN);
    LazyLock::force(&TRACES);
    LazyLock::force(&LOG_LINES_LOST);
    LazyLock::force(&POOLS);
}
