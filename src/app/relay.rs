//! From the outbox to the broker: what was committed is published, and its row deleted once its confirm has come. What
//! this process could not publish, or did not live to, a sweeper publishes later; what the broker has lost, a slow sweep
//! sends again. Consumers remove duplicates, so every doubt is settled by publishing.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use diesel_async::{AsyncConnection, AsyncPgConnection};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Context, Error, TRANSACTION_DEADLINE, traced, with_deadline};
use crate::db;
use crate::db::outbox::{Claimed, Waiting};
use crate::domain::ids::OrderId;
use crate::domain::messages;
use crate::domain::order::Status;
use crate::domain::trace::TraceContext;
use crate::metrics::MESSAGES;
use crate::mq::{Link, Message, PublishError, Publisher, Queue};
use crate::shutdown::Shutdown;
use crate::supervisor::Supervisor;
use crate::traces::{self, Kind, Span};

/// Batches that wait to be published at once; more are left to the sweeper.
const BATCHES_WAITING_MAX: usize = 256;
/// Messages published by one call.
const PUBLISH_BATCH_MAX: usize = 2000;
/// Rows left to the sweeper whose contexts are remembered; the oldest are forgotten first.
const CONTEXTS_MAX: usize = 10_000;
/// A confirm takes milliseconds; without one for this long, the sweeper tries again.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(10);
/// A sweep is bounded by its deadlines, which add up to less.
const SWEEP_MAX: Duration = Duration::from_secs(300);
/// The sweeper looks this often.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// What has waited for longer has been forgotten by the process that wrote it.
const SWEEP_AGE: Duration = Duration::from_secs(2);
/// Rows swept in one transaction, which is open while they are published; each may be a message of a hundred orders.
const SWEEP_BATCH_MAX: i64 = 200;
/// Orders that are read by one statement for their messages.
const COMPOSE_ORDERS_MAX: usize = 1000;
/// The slow sweep looks this often.
const SLOW_SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// A message without an effect for longer may be lost, with its queue.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);
/// Orders after which one slow sweep sends no more again.
const FORGOTTEN_ORDERS_MAX: usize = 2000;
/// Updates that one slow sweep sends again.
const FORGOTTEN_BATCH_MAX: i64 = 500;
/// Messages whose orders the slow sweep looks at in one transaction, each of a hundred orders at most; and how many such
/// looks it takes.
const LOOK_BATCH_MAX: usize = 20;
const LOOKS_MAX: usize = 5000;

/// Hands over what was committed, to be published now.
#[derive(Clone)]
pub struct Relay {
    batches: mpsc::Sender<Batch>,
    refused: Refused,
}

/// What was committed together, and the span of its publishing.
struct Batch {
    waiting: Vec<Waiting>,
    span: Span,
}

/// A message, and the context that it passes on.
type Traced = (Waiting, Option<TraceContext>);

/// What this process knows of rows that it could not publish.
#[derive(Clone, Default)]
struct Refused(Arc<Known>);

#[derive(Default)]
struct Known {
    /// The highest row that could not be published for want of a connection, since it was last asked for; 0 for none.
    highest: AtomicI64,
    /// The contexts of rows that are left to the sweeper, where they have one. Only as long as this process lives, and
    /// only if its own sweeper gets the row: a column of the outbox would be written with every order for these few.
    contexts: Mutex<BTreeMap<i64, TraceContext>>,
}

impl Refused {
    fn note(&self, id: i64) {
        self.0.highest.fetch_max(id, Ordering::Relaxed);
    }

    fn take(&self) -> i64 {
        self.0.highest.swap(0, Ordering::Relaxed)
    }

    fn contexts(&self) -> MutexGuard<'_, BTreeMap<i64, TraceContext>> {
        self.0
            .contexts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what a row that is left to the sweeper is a part of.
    fn remember(&self, id: i64, context: TraceContext) {
        let mut contexts = self.contexts();
        contexts.insert(id, context);
        if contexts.len() > CONTEXTS_MAX {
            contexts.pop_first();
        }
    }

    /// With what they are a part of, as far as that is known.
    fn traced(&self, rows: Vec<Waiting>) -> Vec<Traced> {
        let mut contexts = self.contexts();
        rows.into_iter()
            .map(|row| {
                let context = contexts.remove(&row.id);
                (row, context)
            })
            .collect()
    }
}

impl Relay {
    /// Prepares a relay, and the part of it that publishes.
    #[must_use]
    pub fn new(context: Context, publisher: Publisher) -> (Self, Publishing) {
        let (batches, receiver) = mpsc::channel(BATCHES_WAITING_MAX);
        let refused = Refused::default();
        let publishing = Publishing {
            context,
            publisher,
            receiver,
            refused: refused.clone(),
        };
        (Self { batches, refused }, publishing)
    }

    /// Publishes rows of the outbox soon, as a part of what this task is doing. Never waits: when too much is under way,
    /// the sweeper has them.
    pub fn hand_over(&self, waiting: Vec<Waiting>) {
        self.hand_over_for(traces::current().as_slice(), waiting);
    }

    /// As [`Self::hand_over`], for what is done in the traces `causes`.
    pub fn hand_over_for(&self, causes: &[TraceContext], waiting: Vec<Waiting>) {
        let Some(first) = waiting.first() else { return };
        let mut span = match causes {
            [] => Span::none(),
            causes => Span::begin("publish", Kind::Producer, causes),
        };
        if span.is_recorded() {
            span.rename(|| format!("publish {}", first.queue));
            span.note("messaging.system", "rabbitmq");
            span.note("messaging.operation.type", "send");
            span.note("messaging.destination.name", &first.queue);
            span.note_count("messaging.batch.message_count", waiting.len());
        }
        if let Err(error) = self.batches.try_send(Batch { waiting, span }) {
            let mut batch = error.into_inner();
            batch
                .span
                .fail("too much is under way; left to the sweeper");
            if let Some(context) = batch.span.context() {
                for row in &batch.waiting {
                    self.refused.remember(row.id, context.clone());
                }
            }
        }
    }
}

/// The publishing end of a [`Relay`].
pub struct Publishing {
    context: Context,
    publisher: Publisher,
    receiver: mpsc::Receiver<Batch>,
    refused: Refused,
}

impl Publishing {
    /// Publishes what is handed over until every [`Relay`] is dropped.
    pub async fn run(mut self) {
        let (mut batch, mut spans) = (Vec::new(), Vec::new());
        let add = |batch: &mut Vec<Traced>, spans: &mut Vec<Span>, more: Batch| {
            let context = more.span.context();
            batch.extend(more.waiting.into_iter().map(|row| (row, context.cloned())));
            if more.span.is_recorded() {
                spans.push(more.span);
            }
        };
        while let Some(first) = self.receiver.recv().await {
            add(&mut batch, &mut spans, first);
            while batch.len() < PUBLISH_BATCH_MAX {
                let Ok(more) = self.receiver.try_recv() else {
                    break;
                };
                add(&mut batch, &mut spans, more);
            }
            let published = self.publish(std::mem::take(&mut batch), &mut spans).await;
            if let Err(error) = published {
                tracing::debug!(%error, "published, but the outbox rows stay: they will be published again");
            }
        }
    }

    async fn publish(&self, waiting: Vec<Traced>, spans: &mut Vec<Span>) -> Result<(), Error> {
        let all = waiting.len();
        let confirmed = publish_confirmed(&self.publisher, waiting, &self.refused).await;
        if confirmed.len() < all {
            let failed = all - confirmed.len();
            spans.iter_mut().for_each(|span| {
                span.fail(format!(
                    "{failed} of {all} messages that left together have no confirm; left to the sweeper"
                ));
            });
        }
        // They end with the confirms, and not with the deletion of the rows.
        spans.clear();
        if confirmed.is_empty() {
            return Ok(());
        }
        with_deadline(TRANSACTION_DEADLINE, &self.context.database, async {
            let mut connection = self.context.database.get().await?;
            Ok(db::outbox::delete(&mut connection, &confirmed).await?)
        })
        .await
    }
}

/// Publishes, and returns the rows whose confirm has come.
async fn publish_confirmed(
    publisher: &Publisher,
    waiting: Vec<Traced>,
    refused: &Refused,
) -> Vec<i64> {
    let mut rows = Vec::with_capacity(waiting.len());
    let mut messages = Vec::with_capacity(waiting.len());
    for (row, context) in waiting {
        messages.push(Message {
            queue: if row.queue == Queue::Orders.base_name() {
                Queue::Orders
            } else {
                Queue::VendorSync
            },
            message_id: row.message_id.to_string(),
            headers: traced::headers_of(context.as_ref()),
            body: row.body.into_bytes(),
        });
        rows.push((row.id, context));
    }
    let results = publisher.publish(messages, PUBLISH_DEADLINE).await;
    let mut confirmed = Vec::with_capacity(rows.len());
    for ((id, context), result) in rows.into_iter().zip(results) {
        match (&result, context) {
            (Ok(()), _) | (_, None) => {}
            (Err(_), Some(context)) => refused.remember(id, context),
        }
        match result {
            Ok(()) => confirmed.push(id),
            Err(PublishError::Invalid(problem)) => {
                tracing::error!(
                    outbox_id = id,
                    problem,
                    "an outbox row can never be published; look at it in the database"
                );
            }
            Err(PublishError::Unavailable(_)) => refused.note(id),
            Err(_) => {}
        }
    }
    confirmed
}

/// Sweeps until the shutdown: what was forgotten here or by a process that is gone, and what the broker has lost.
pub async fn sweep_until_stopped(
    context: Context,
    publisher: Publisher,
    relay: Relay,
    shutdown: Shutdown,
    supervisor: Supervisor,
) {
    let sweeping = supervisor.part("the sweeper of the outbox", SWEEP_MAX);
    let mut link = publisher.link();
    let mut slow_sweep_at = tokio::time::Instant::now() + SLOW_SWEEP_INTERVAL;
    let mut after = 0;
    let mut wait = SWEEP_INTERVAL;
    let mut was_up = false;
    let mut is_gone = false;
    loop {
        sweeping.moved();
        tokio::select! {
            () = shutdown.begun() => return,
            () = tokio::time::sleep(wait) => {}
            changed = link.changed(), if !was_up && !is_gone => is_gone = changed.is_err(),
        }
        wait = SWEEP_INTERVAL;
        // A sweep that cannot publish would only lock rows.
        if *link.borrow_and_update() != Link::Up {
            was_up = false;
            continue;
        }
        // What was refused for want of a connection goes at once when there is one, however young it is.
        let refused = if was_up { 0 } else { relay.refused.take() };
        was_up = true;
        match sweep(&context, &publisher, &relay, after, refused).await {
            Ok(swept) => {
                if swept.confirmed > 0 {
                    MESSAGES.swept.inc_by(swept.confirmed as u64);
                    tracing::info!(
                        messages = swept.confirmed,
                        "published what had waited in the outbox"
                    );
                    // A backlog is worked off without a pause; fresh messages take their own way meanwhile.
                    wait = Duration::ZERO;
                }
                // Rows that the broker refuses, since their queue is full, must not stand in the way of the others.
                after = swept.last.unwrap_or(0);
            }
            Err(error) => tracing::debug!(%error, "could not sweep the outbox; trying again"),
        }
        if tokio::time::Instant::now() >= slow_sweep_at {
            slow_sweep_at = tokio::time::Instant::now() + SLOW_SWEEP_INTERVAL;
            match sweep_forgotten(&context, &relay, FORGOTTEN_AFTER).await {
                Ok(0) => {}
                Ok(sent) => {
                    MESSAGES.sent_again.inc_by(sent as u64);
                    tracing::warn!(sent, "sent messages again that had no effect for minutes")
                }
                Err(error) => {
                    tracing::debug!(%error, "could not look for forgotten messages; trying again")
                }
            }
        }
    }
}

/// What a sweep has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Swept {
    /// Rows whose message is in the broker now.
    confirmed: usize,
    /// The last row looked at; none at the end of the outbox.
    last: Option<i64>,
}

/// Publishes the oldest rows of the outbox after the row `after` that have waited for [`SWEEP_AGE`], or that are not
/// above the row `refused`.
///
/// # Errors
/// See [`Error`]; the rows stay.
async fn sweep(
    context: &Context,
    publisher: &Publisher,
    relay: &Relay,
    after: i64,
    refused: i64,
) -> Result<Swept, Error> {
    with_deadline(
        PUBLISH_DEADLINE + TRANSACTION_DEADLINE,
        &context.database,
        async {
            let mut connection = context.database.get().await?;
            connection
                .transaction(async |connection| {
                    let waiting =
                        db::outbox::claim(connection, after, refused, SWEEP_AGE, SWEEP_BATCH_MAX)
                            .await?;
                    let Some(last) = waiting.last().map(|row| row.id) else {
                        return Ok(Swept::default());
                    };
                    let (waiting, needless) = compose(connection, waiting).await?;
                    let waiting = relay.refused.traced(waiting);
                    let confirmed = publish_confirmed(publisher, waiting, &relay.refused).await;
                    db::outbox::delete(connection, &confirmed).await?;
                    db::outbox::delete(connection, &needless).await?;
                    Ok(Swept {
                        confirmed: confirmed.len(),
                        last: Some(last),
                    })
                })
                .await
        },
    )
    .await
}

/// Makes messages of what was claimed, of orders as they stand. Returns also the rows of which nothing is left to say:
/// their orders are decided, so the message was sent and its confirm was lost.
async fn compose(
    connection: &mut AsyncPgConnection,
    claimed: Vec<Claimed>,
) -> Result<(Vec<Waiting>, Vec<i64>), Error> {
    let ids: Vec<OrderId> = claimed
        .iter()
        .filter(|row| row.body.is_none())
        .flat_map(|row| row.order_ids.iter().flatten().copied().map(OrderId))
        .collect();
    let mut pending = HashMap::new();
    for chunk in ids.chunks(COMPOSE_ORDERS_MAX) {
        for order in db::orders::find_all(connection, chunk).await? {
            if order.status == Status::Pending {
                pending.insert(order.request.id, messages::encode_order(&order.request));
            }
        }
    }
    let (mut waiting, mut needless) = (Vec::with_capacity(claimed.len()), Vec::new());
    for row in claimed {
        let of_orders = || {
            let encoded: Vec<&str> = row
                .order_ids
                .iter()
                .flatten()
                .filter_map(|id| pending.get(&OrderId(*id)).map(String::as_str))
                .collect();
            (!encoded.is_empty()).then(|| messages::join_orders(&encoded))
        };
        match row.body.clone().or_else(of_orders) {
            Some(body) => waiting.push(Waiting {
                id: row.id,
                queue: row.queue,
                message_id: row.message_id,
                body,
            }),
            None => needless.push(row.id),
        }
    }
    Ok((waiting, needless))
}

/// Sends again what has had no effect for `after`: orders still pending, updates still without an answer. Returns how
/// many messages that makes.
///
/// # Errors
/// See [`Error`].
pub async fn sweep_forgotten(
    context: &Context,
    relay: &Relay,
    after: Duration,
) -> Result<usize, Error> {
    let mut sent = 0;
    // Most of what was sent is decided, and only looked at.
    for _ in 0..LOOKS_MAX {
        let (waiting, messages) = with_deadline(TRANSACTION_DEADLINE, &context.database, async {
            let mut connection = context.database.get().await?;
            connection
                .transaction(async |connection| append_forgotten_orders(connection, after).await)
                .await
        })
        .await?;
        sent += waiting.len();
        relay.hand_over(waiting);
        // A queue that was lost whole is sent again in portions, so that fresh orders are not behind all of it.
        if messages < LOOK_BATCH_MAX || sent >= FORGOTTEN_ORDERS_MAX {
            break;
        }
    }
    let waiting = with_deadline(TRANSACTION_DEADLINE, &context.database, async {
        let mut connection = context.database.get().await?;
        connection
            .transaction(async |connection| append_forgotten_updates(connection, after).await)
            .await
    })
    .await?;
    sent += waiting.len();
    relay.hand_over(waiting);
    Ok(sent)
}

/// Returns what has to be sent, and how many messages were looked at.
async fn append_forgotten_orders(
    connection: &mut AsyncPgConnection,
    after: Duration,
) -> Result<(Vec<Waiting>, usize), Error> {
    let limit = i64::try_from(LOOK_BATCH_MAX).unwrap_or(i64::MAX);
    let looked = db::orders::claim_forgotten(connection, after, limit).await?;
    let bodies = looked
        .forgotten
        .iter()
        .map(|order| (order.id, messages::encode_order(order)))
        .collect();
    let waiting = db::outbox::append_orders(connection, bodies).await?;
    Ok((waiting, looked.messages))
}

async fn append_forgotten_updates(
    connection: &mut AsyncPgConnection,
    after: Duration,
) -> Result<Vec<Waiting>, Error> {
    let updates = db::updates::claim_forgotten(connection, after, FORGOTTEN_BATCH_MAX).await?;
    let bodies = messages::updates_messages(&updates)
        .iter()
        .map(|message| (Uuid::now_v7(), messages::encode_updates(message)))
        .collect();
    Ok(db::outbox::append_updates(connection, bodies).await?)
}
