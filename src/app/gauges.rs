//! What is read on a scrape: how much waits, and for how long. It is read at most once in a while however many scrape,
//! over a connection of its own, so that no order waits for it; and what cannot be read is said and keeps nobody waiting.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Context, Error};
use crate::db;
use crate::db::gauges::{Audited, OfVendor, Waiting};
use crate::metrics::{self, SEEN, SeenVendor};
use crate::mq::{self, Depth};
use crate::pg;

/// Who scrapes more often sees the same figures again.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Each statement takes milliseconds, and Prometheus gives up after 10 s.
const DATABASE_DEADLINE: Duration = Duration::from_secs(3);
/// The broker answers for all queues in milliseconds.
const BROKER_DEADLINE: Duration = Duration::from_secs(3);
/// Reading is done by one at a time.
const CONNECTIONS_MAX: usize = 1;

/// A consumer says every few seconds that it is there.
pub const CONSUMER_SILENCE_MAX: Duration = Duration::from_secs(30);
/// What has finished nothing for this long although messages wait is called stalled; a slow vendor's call is over by then.
pub const CONSUMER_STALLED_AFTER: Duration = Duration::from_secs(90);

/// Who consumes says it every few seconds how fast; after this it is no longer so.
pub const RATE_SILENCE_MAX: Duration = Duration::from_secs(15);

/// How many messages of each queue go in a second: of a work queue, those that are finished; of another, those that
/// consumers send there.
#[derive(Debug, Clone)]
pub struct QueueRates(pub Vec<db::queue_rates::OfQueue>);

impl QueueRates {
    /// Those of a queue.
    #[must_use]
    pub fn of(&self, queue: mq::Queue) -> f64 {
        let name = queue.base_name();
        let told = self.0.iter().find(|of| of.queue == name);
        told.map_or(0.0, |of| of.per_second)
    }
}

/// How fast messages go, unless our database does not answer.
pub async fn queue_rates(context: &Context) -> Option<QueueRates> {
    let reading = context.with_connection(async |connection| {
        Ok(db::queue_rates::list(connection, RATE_SILENCE_MAX).await?)
    });
    let read = tokio::time::timeout(DATABASE_DEADLINE, reading).await;
    Some(QueueRates(read.ok()?.ok()?))
}

/// Where the figures are read.
pub struct Gauges {
    context: Context,
    broker: mq::Settings,
    every: Duration,
    looked: Mutex<Option<Instant>>,
}

/// What was read of our database.
struct OfDatabase {
    outbox: Waiting,
    pending: Waiting,
    vendors: Vec<OfVendor>,
    consumers: Vec<db::consumers::OfQueue>,
    audited: Vec<Audited>,
    webhooks: db::webhooks::Figures,
}

impl Gauges {
    /// Prepares to read, at most once in `every`. Nothing is connected before the first scrape.
    ///
    /// # Errors
    /// The settings allow no connection.
    pub fn new(
        context: &Context,
        broker: mq::Settings,
        every: Duration,
    ) -> Result<Arc<Self>, Error> {
        let database = pg::Pool::new(
            "metrics",
            pg::Settings {
                pool_size: CONNECTIONS_MAX,
                ..context.database.settings().clone()
            },
        )?;
        Ok(Arc::new(Self {
            context: Context {
                database,
                ..context.clone()
            },
            broker,
            every,
            looked: Mutex::default(),
        }))
    }

    /// Everything that this process counts and sees, as Prometheus reads it.
    ///
    /// # Errors
    /// A figure contradicts its own description.
    pub async fn scrape(&self) -> Result<String, Error> {
        {
            // Whoever comes meanwhile waits for the same look.
            let mut looked = self.looked.lock().await;
            if looked.is_none_or(|at| at.elapsed() >= self.every) {
                self.look().await;
                *looked = Some(Instant::now());
            }
        }
        metrics::render().map_err(Error::Broken)
    }

    async fn look(&self) {
        let (database, broker) = tokio::join!(
            tokio::time::timeout(DATABASE_DEADLINE, self.read_database()),
            mq::depths(&self.broker, BROKER_DEADLINE),
        );
        match database {
            Ok(Ok(of)) => {
                SEEN.postgresql_up.set(1);
                show(&of);
            }
            other => {
                SEEN.postgresql_up.set(0);
                self.context.database.forget_idle();
                let why = other.map_or_else(
                    |_| "no answer in time".to_owned(),
                    |read| {
                        read.err()
                            .map(|error| error.to_string())
                            .unwrap_or_default()
                    },
                );
                tracing::debug!(why, "the figures of the database cannot be read");
            }
        }
        match broker {
            Ok(depths) => {
                SEEN.rabbitmq_up.set(1);
                for Depth {
                    queue,
                    messages_ready,
                    consumers,
                } in depths
                {
                    SEEN.queue(queue.base_name(), messages_ready, consumers);
                }
            }
            Err(error) => {
                SEEN.rabbitmq_up.set(0);
                tracing::debug!(%error, "the depths of the queues cannot be read");
            }
        }
    }

    async fn read_database(&self) -> Result<OfDatabase, Error> {
        let vendors = self.context.vendor_ids();
        let mut connection = self.context.database.get().await?;
        Ok(OfDatabase {
            outbox: db::gauges::outbox(&mut connection).await?,
            pending: db::gauges::pending(&mut connection).await?,
            vendors: db::gauges::vendors(&mut connection, &vendors).await?,
            consumers: db::consumers::list(
                &mut connection,
                CONSUMER_SILENCE_MAX,
                CONSUMER_STALLED_AFTER,
            )
            .await?,
            audited: db::gauges::audited(&mut connection).await?,
            webhooks: db::webhooks::figures(&mut connection).await?,
        })
    }
}

fn show(of: &OfDatabase) {
    SEEN.outbox.set(of.outbox.count);
    SEEN.outbox_age.set(of.outbox.oldest_age);
    SEEN.pending.set(of.pending.count);
    SEEN.pending_age.set(of.pending.oldest_age);
    for vendor in &of.vendors {
        let seen = SeenVendor {
            last_sync: vendor.last_sync,
            is_sync_failing: vendor.is_sync_failing,
            open_updates: vendor.open_updates,
            unanswered: vendor.unanswered,
            open_units: vendor.open_units,
            lag: vendor.lag,
        };
        SEEN.vendor(&vendor.id, &seen);
    }
    for queue in [
        mq::Queue::Orders,
        mq::Queue::VendorSync,
        mq::Queue::Webhooks,
    ] {
        let is_stalled = of
            .consumers
            .iter()
            .any(|one| one.queue == queue.base_name() && one.is_stalled);
        SEEN.stalled(queue.base_name(), is_stalled);
    }
    let webhooks = &of.webhooks;
    SEEN.webhooks(webhooks.active, webhooks.failing, webhooks.disabled);
    SEEN.webhook_lag.set(webhooks.lag);
    for check in &of.audited {
        SEEN.audited(&check.check_name, check.violations, check.failures);
        SEEN.audited_at.set(check.audited_at);
    }
}
