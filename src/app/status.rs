//! A look at the whole for somebody on call, for as long as nothing but one of the stores is there to be looked at.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::gauges::{CONSUMER_SILENCE_MAX, CONSUMER_STALLED_AFTER, QueueRates, RATE_SILENCE_MAX};
use super::{Context, Error};
use crate::db;
use crate::domain::status::{Messages, Purpose, Queue, Seen, Store, Vendor, Waiting};
use crate::mq::{self, Depth};

/// A store without an answer for this long has none; whoever asks sits before the screen.
const DEADLINE: Duration = Duration::from_secs(5);

/// What our database says.
struct OfDatabase {
    pending: Waiting,
    outbox: Waiting,
    stalled: Vec<String>,
    rates: QueueRates,
    vendors: Vec<Vendor>,
    /// Whether somebody is to be told of events.
    has_webhooks: bool,
}

/// Looks at both stores at once. `broker_address` is shown as it is, so without a
/// password; `database_problem` is what keeps our database from being used, where that is known.
pub async fn look(
    context: &Context,
    broker: &mq::Settings,
    broker_address: String,
    database_problem: Option<String>,
) -> Seen {
    let reading = async {
        if let Some(problem) = database_problem {
            return Err(problem);
        }
        match tokio::time::timeout(DEADLINE, read_database(context)).await {
            Ok(read) => read.map_err(|error| error.to_string()),
            Err(_) => Err(format!(
                "PostgreSQL does not answer within {} s",
                DEADLINE.as_secs()
            )),
        }
    };
    let (database, depths) = tokio::join!(reading, mq::depths(broker, DEADLINE));
    let (database, database_problem) = apart(database);
    let (depths, broker_problem) = apart(depths.map_err(|error| error.to_string()));
    let queues = depths.map(|depths| queues(&depths, database.as_ref()));
    Seen {
        postgresql: Store {
            address: context.database.settings().address(),
            problem: database_problem,
        },
        rabbitmq: Store {
            address: broker_address,
            problem: broker_problem,
        },
        pending: database.as_ref().map(|of| of.pending),
        outbox: database.as_ref().map(|of| of.outbox),
        queues,
        vendors: database.map(|of| of.vendors),
    }
}

fn apart<T>(result: Result<T, String>) -> (Option<T>, Option<String>) {
    match result {
        Ok(value) => (Some(value), None),
        Err(problem) => (None, Some(problem)),
    }
}

fn queues(depths: &[Depth], database: Option<&OfDatabase>) -> Vec<Queue> {
    let has_webhooks = database.is_some_and(|of| of.has_webhooks);
    let queue = |queue: mq::Queue| {
        let name = queue.base_name();
        let found = depths.iter().find(|depth| depth.queue == queue);
        Queue {
            name,
            purpose: match queue {
                mq::Queue::Orders | mq::Queue::VendorSync | mq::Queue::Webhooks => Purpose::Work,
                _ if queue.is_dead_letter() => Purpose::Dead,
                _ => Purpose::Retry,
            },
            messages: found.map(|depth| Messages {
                ready: depth.messages_ready,
                consumers: depth.consumers,
            }),
            per_second: database.map(|of| of.rates.of(queue)),
            is_stalled: database.map(|of| of.stalled.iter().any(|of| of == name)),
        }
    };
    // Those of webhooks are there only once somebody has subscribed to events; then they have to be.
    let is_shown = |queue: &mq::Queue| {
        !queue.is_of_webhooks()
            || depths.iter().any(|depth| depth.queue == *queue)
            || has_webhooks && *queue == mq::Queue::Webhooks
    };
    let shown = mq::Queue::ALL.into_iter().filter(is_shown);
    shown.map(queue).collect()
}

async fn read_database(context: &Context) -> Result<OfDatabase, Error> {
    let ids = context.vendor_ids();
    let mut connection = context.database.get().await?;
    let connection = &mut connection;
    let waiting = |of: db::gauges::Waiting| Waiting {
        count: of.count,
        oldest_age_s: of.oldest_age,
    };
    let pending = waiting(db::gauges::pending(connection).await?);
    let outbox = waiting(db::gauges::outbox(connection).await?);
    let consumers =
        db::consumers::list(connection, CONSUMER_SILENCE_MAX, CONSUMER_STALLED_AFTER).await?;
    let figures = db::gauges::vendors(connection, &ids).await?;
    let synced = db::vendors::list(connection).await?;
    let told = db::vendor_pushes::list(connection).await?;
    let webhooks = db::webhooks::figures(connection).await?;
    let now = Utc::now();
    let vendors = ids
        .iter()
        .map(|id| {
            let figures = figures.iter().find(|of| of.id == id.as_str());
            let synced = synced.iter().find(|of| of.id == id.as_str());
            let told = told.iter().find(|of| of.vendor_id == id.as_str());
            Vendor {
                id: id.to_string(),
                last_sync_age_s: synced.and_then(|of| Some(seconds_since(of.last_sync_at?, now))),
                last_sync_error: synced.and_then(|of| of.last_sync_error.clone()),
                open_updates: figures.map_or(0, |of| of.open_updates),
                unanswered: Waiting {
                    count: figures.map_or(0, |of| of.unanswered),
                    oldest_age_s: figures.map_or(0.0, |of| of.lag),
                },
                push_state: told.map(|of| of.state.clone()),
                push_state_age_s: told.map_or(0.0, |of| seconds_since(of.since, now)),
                last_push_error: told.and_then(|of| of.error.clone()),
            }
        })
        .collect();
    Ok(OfDatabase {
        rates: QueueRates(db::queue_rates::list(connection, RATE_SILENCE_MAX).await?),
        pending,
        outbox,
        has_webhooks: webhooks.active + webhooks.failing > 0,
        stalled: consumers
            .into_iter()
            .filter(|of| of.is_stalled)
            .map(|of| of.queue)
            .collect(),
        vendors,
    })
}

/// Our clock and the database's may differ by a little.
fn seconds_since(then: DateTime<Utc>, now: DateTime<Utc>) -> f64 {
    (now - then).as_seconds_f64().max(0.0)
}
