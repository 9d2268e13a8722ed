//! What waits for longer than anything explains. The database tells what waits, the broker whether a message for it is
//! there; a message that is being handled right now is in neither, so what looks stuck is watched for a while.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{TimeDelta, Utc};

use super::{Finding, Options};
use crate::app::{Context, Error};
use crate::db;
use crate::db::audit::OfOrders;
use crate::domain::audit::{Found, Violation};
use crate::mq::{self, Queue};

/// A message held by a consumer goes back within ten minutes; the slow sweep sends what was lost again after five.
const OVERDUE_S: u64 = 900;
/// By how much our clock may be behind the database's.
const CLOCKS_APART_MAX: TimeDelta = TimeDelta::minutes(5);
/// The sweeper publishes within seconds of having a connection.
const OLD_S: u64 = 600;
/// The broker has this long to say what waits in its queues.
const BROKER_DEADLINE: Duration = Duration::from_secs(10);
/// What looks stuck is looked at this often.
const INTERVAL: Duration = Duration::from_secs(1);

/// What may be overdue, and the queues that a message for it may be in.
#[derive(Clone, Copy)]
enum Kind {
    Orders,
    Updates,
}

impl Kind {
    fn queues(self) -> [Queue; 2] {
        match self {
            Self::Orders => [Queue::Orders, Queue::OrdersRetry],
            Self::Updates => [Queue::VendorSync, Queue::VendorSyncRetry],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Orders => "pending orders",
            Self::Updates => "open updates",
        }
    }

    async fn find(self, context: &Context) -> Result<Found, Error> {
        context
            .with_connection(async |connection| {
                Ok(match self {
                    Self::Orders => db::audit::find_overdue_orders(connection, OVERDUE_S).await?,
                    Self::Updates => db::audit::find_overdue_updates(connection, OVERDUE_S).await?,
                })
            })
            .await
    }
}

/// `orders` is what the snapshot had: looking for orders that are pending takes a scan of all, so it is only made if there
/// was one that is overdue by now.
pub(super) async fn overdue(
    context: &Context,
    options: &Options,
    orders: OfOrders,
    finding: &mut Finding,
) -> Result<(), Error> {
    let open_updates = context
        .with_connection(async |connection| Ok(db::audit::count_open_updates(connection).await?))
        .await?;
    finding.count("pending_orders", orders.pending);
    finding.count("open_updates", open_updates);
    let overdue = TimeDelta::seconds(OVERDUE_S.cast_signed());
    let may_be_overdue = orders
        .pending_since
        .is_some_and(|since| since < Utc::now() - overdue + CLOCKS_APART_MAX);
    let of_orders = async {
        if may_be_overdue {
            weigh(context, options, Kind::Orders).await
        } else {
            Ok(Weighed::Stuck(Found::default()))
        }
    };
    // Side by side, since either may take its time.
    let (orders, updates) = tokio::try_join!(of_orders, weigh(context, options, Kind::Updates))?;
    for weighed in [orders, updates] {
        match weighed {
            Weighed::Late(note) => finding.notes.push(note),
            Weighed::Stuck(found) => add(finding, found),
        }
    }
    Ok(())
}

/// What it means that something is overdue.
enum Weighed {
    /// A message for it waits, or that is not known.
    Late(String),
    /// No message for it is left; nothing where nothing is overdue.
    Stuck(Found),
}

/// What stays while no message for it waits anywhere is violated; what goes, or has a message, is only late.
async fn weigh(context: &Context, options: &Options, kind: Kind) -> Result<Weighed, Error> {
    let mut found = kind.find(context).await?;
    let patience = match kind {
        Kind::Orders => options.patience,
        Kind::Updates => options.patience + options.vendor_timeout,
    };
    let until = tokio::time::Instant::now() + patience;
    while found.total > 0 {
        let late = format!(
            "{} over {} minutes old: {}",
            kind.name(),
            OVERDUE_S / 60,
            found.total
        );
        match waiting(context, options, kind).await? {
            Err(problem) => {
                return Ok(Weighed::Late(format!(
                    "{late}; whether messages for them wait is not known: {problem}"
                )));
            }
            Ok(0) => {}
            Ok(messages) => {
                return Ok(Weighed::Late(format!(
                    "{late}; messages that wait: {messages}"
                )));
            }
        }
        if tokio::time::Instant::now() >= until {
            break;
        }
        tokio::time::sleep(INTERVAL).await;
        found = keep(&found, kind.find(context).await?);
    }
    Ok(Weighed::Stuck(found))
}

/// How many messages wait in the queues and in the outbox; or why the broker does not say.
async fn waiting(
    context: &Context,
    options: &Options,
    kind: Kind,
) -> Result<Result<u64, String>, Error> {
    let depths = match mq::depths(&options.broker, BROKER_DEADLINE).await {
        Ok(depths) => depths,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let [queue, retry] = kind.queues();
    let queued: u64 = depths
        .iter()
        .filter(|depth| depth.queue == queue || depth.queue == retry)
        .map(|depth| u64::from(depth.messages_ready))
        .sum();
    let in_outbox = context
        .with_connection(async |connection| {
            Ok(db::audit::count_outbox(connection, queue.base_name()).await?)
        })
        .await?;
    Ok(Ok(queued + in_outbox))
}

/// Of what was found before, what is still there. What is not shown cannot be told apart, and counts as long as something
/// that is shown does.
fn keep(before: &Found, now: Found) -> Found {
    let known: BTreeSet<_> = before.shown.iter().map(key).collect();
    let shown: Vec<Violation> = now
        .shown
        .into_iter()
        .filter(|one| known.contains(&key(one)))
        .collect();
    let total = if shown.is_empty() {
        0
    } else {
        now.total.min(before.total)
    };
    Found { total, shown }
}

fn key(one: &Violation) -> (Option<uuid::Uuid>, Option<uuid::Uuid>, Option<i64>) {
    (one.order_id, one.update_id, one.outbox_id)
}

fn add(finding: &mut Finding, found: Found) {
    finding.found.total += found.total.saturating_sub(found.shown.len() as u64);
    finding.found.extend(found.shown);
}

pub(super) async fn outbox(
    context: &Context,
    options: &Options,
    finding: &mut Finding,
) -> Result<(), Error> {
    let find = async || {
        context
            .with_connection(async |connection| {
                Ok(db::audit::find_old_outbox_rows(connection, OLD_S).await?)
            })
            .await
    };
    let rows = context
        .with_connection(async |connection| Ok(db::audit::count_outbox_rows(connection).await?))
        .await?;
    finding.count("outbox_rows", rows);
    let mut now = find().await?;
    let late = |total: u64| {
        format!(
            "messages in the outbox for over {} minutes: {total}",
            OLD_S / 60
        )
    };
    let until = tokio::time::Instant::now() + options.patience;
    while now.total > 0 {
        if let Err(error) = mq::depths(&options.broker, BROKER_DEADLINE).await {
            finding.notes.push(format!(
                "{}; the broker cannot be reached: {error}",
                late(now.total)
            ));
            return Ok(());
        }
        if tokio::time::Instant::now() >= until {
            add(finding, now);
            return Ok(());
        }
        tokio::time::sleep(INTERVAL).await;
        let shown = now.shown.len();
        now = keep(&now, find().await?);
        // The oldest go first: a broker that has come back is being served.
        if now.total > 0 && now.shown.len() < shown {
            finding
                .notes
                .push(format!("{}; they are being published", late(now.total)));
            return Ok(());
        }
    }
    Ok(())
}
