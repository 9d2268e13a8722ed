//! Accepts orders: requests that come at the same time share one transaction. While PostgreSQL is down, an order is
//! accepted through the broker instead.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::Utc;
use tokio::sync::{mpsc, oneshot};

use super::batches::{self, Batches};
use super::relay::Relay;
use super::shortcut::Shortcut;
use super::vouch::{Voucher, Vouching};
use super::{Context, Error, Kind, traced, with_deadline};
use crate::db;
use crate::db::orders::Order;
use crate::domain::ids::OrderId;
use crate::domain::messages::encode_order;
use crate::domain::order::{NewOrder, Status};
use crate::domain::tally::Tally;
use crate::domain::trace::TraceContext;
use crate::metrics::{ACCEPTING, FAULTS, Fault, Refused, Via};
use crate::mq::{self, Message, PublishError, Publisher, Queue};
use crate::pg;
use crate::traces::{self, Span};

/// Requests that wait for a transaction; more are refused at once. A second's worth at full speed.
const REQUESTS_WAITING_MAX: usize = 10_000;
/// Transactions under way at once.
pub const TRANSACTIONS_MAX: usize = batches::UNDER_WAY_MAX;
/// After PostgreSQL was found down, orders go straight to the broker for this long before it is tried again.
const RETRY_STORE_AFTER: Duration = Duration::from_secs(1);
/// How long after a repeated request another one is likely.
const REPEATS_LIKELY: Duration = Duration::from_secs(60);
/// A confirm takes milliseconds; the caller is waiting.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(5);

/// How an order was accepted.
#[derive(Debug, Clone)]
pub enum Accepted {
    /// It is new.
    New,
    /// The same request was accepted before; this is what has become of it.
    Replayed(Box<Order>),
    /// PostgreSQL is down and the broker has it.
    ThroughBroker,
}

impl Accepted {
    /// Whether it is known to be decided, or failed, already.
    #[must_use]
    pub fn is_decided(&self) -> bool {
        matches!(self, Self::Replayed(order) if order.status != Status::Pending)
    }
}

/// Why an order was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    /// Too many requests wait.
    #[error("too many orders are waiting to be accepted")]
    Busy,
    /// The idempotency key belongs to another request.
    #[error("the idempotency key was used for another request, order {0}")]
    KeyTaken(OrderId),
    /// Neither store takes it: nothing was accepted.
    #[error("neither PostgreSQL nor RabbitMQ can take the order: {0}")]
    Unavailable(String),
    /// It was there already, and somebody has deleted it meanwhile: nothing was accepted.
    #[error("the order vanished while it was accepted")]
    Vanished,
    /// It may or may not have been accepted.
    #[error("neither PostgreSQL nor RabbitMQ has answered whether it took order {0}")]
    OutcomeUnknown(OrderId),
    /// A contradiction of ours.
    #[error("{0}")]
    Bug(String),
}

impl NotAccepted {
    fn counted_as(&self) -> Refused {
        match self {
            Self::Busy => Refused::QueueFull,
            Self::KeyTaken(_) => Refused::KeyTaken,
            Self::Unavailable(_) | Self::Vanished => Refused::Unavailable,
            Self::OutcomeUnknown(_) => Refused::OutcomeUnknown,
            Self::Bug(_) => Refused::Bug,
        }
    }
}

type Answer = Result<Accepted, NotAccepted>;

struct Request {
    order: NewOrder,
    answer: oneshot::Sender<Answer>,
    /// What it is a part of.
    trace: Option<TraceContext>,
}

/// Where requests go to be accepted.
#[derive(Clone)]
pub struct Accept {
    requests: mpsc::Sender<Request>,
    voucher: Voucher,
    /// Requests that neither store took.
    refused: Arc<Mutex<Tally>>,
}

impl Accept {
    /// Prepares the door, the part of it that commits, and the part that vouches for what was accepted.
    #[must_use]
    pub fn new(
        context: Context,
        publisher: Publisher,
        relay: Relay,
        broker: mq::Settings,
    ) -> (Self, Committing, Vouching) {
        let (requests, receiver) = mpsc::channel(REQUESTS_WAITING_MAX);
        let voucher = Voucher::default();
        let vouching = Vouching::new(context.clone(), broker, voucher.clone());
        let committer = Arc::new(Committer {
            context,
            publisher,
            relay,
            voucher: voucher.clone(),
            store_down_until: Mutex::new(None),
            all_new: Shortcut::new(REPEATS_LIKELY),
        });
        (
            Self {
                requests,
                voucher,
                refused: Arc::default(),
            },
            Committing {
                batches: Batches::new(receiver),
                committer,
            },
            vouching,
        )
    }

    /// Accepts one order.
    ///
    /// # Errors
    /// See [`NotAccepted`].
    pub async fn accept(&self, order: NewOrder) -> Answer {
        let begun = Instant::now();
        let mut span = Span::child("accept order", traces::Kind::Internal);
        span.note("stockctl.order.id", order.id);
        let answer = self.answer_to(order, span.context().cloned()).await;
        if let Err(error) = &answer {
            span.fail(error);
        }
        match &answer {
            Ok(Accepted::New | Accepted::ThroughBroker) => {
                ACCEPTING.duration.observe(begun.elapsed().as_secs_f64());
            }
            Ok(Accepted::Replayed(_)) => ACCEPTING.replayed.inc(),
            Err(error) => ACCEPTING.refused.of(error.counted_as()).inc(),
        }
        if let Err(NotAccepted::Unavailable(why)) = &answer {
            self.note_refused(why);
        }
        answer
    }

    /// Whoever calls is told each time; the log would drown in it. It is said here, among what one of the requests logs, so
    /// that the line names that one.
    fn note_refused(&self, why: &str) {
        let said = self
            .refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .add(1, Instant::now());
        if let Some(requests) = said {
            tracing::warn!(
                requests,
                why,
                "neither PostgreSQL nor RabbitMQ takes orders: so many requests were refused since this was last said; \
                 this is the newest"
            );
        }
    }

    async fn answer_to(&self, order: NewOrder, trace: Option<TraceContext>) -> Answer {
        let (answer, answered) = oneshot::channel();
        let id = order.id;
        self.requests
            .try_send(Request {
                order,
                answer,
                trace,
            })
            .map_err(|_| NotAccepted::Busy)?;
        answered
            .await
            .unwrap_or(Err(NotAccepted::OutcomeUnknown(id)))
    }

    /// What this process vouches for.
    #[must_use]
    pub fn voucher(&self) -> &Voucher {
        &self.voucher
    }
}

/// The committing end of an [`Accept`].
pub struct Committing {
    batches: Batches<Request>,
    committer: Arc<Committer>,
}

impl Committing {
    /// Accepts what is asked for until every [`Accept`] is dropped; then finishes what is in hand.
    pub async fn run(mut self) {
        while let Some((requests, place)) = self.batches.next().await {
            let waiting = i64::try_from(self.batches.waiting()).unwrap_or(i64::MAX);
            ACCEPTING.waiting.set(waiting);
            let committer = Arc::clone(&self.committer);
            tokio::spawn(async move {
                committer.accept(requests).await;
                drop(place);
            });
        }
        self.batches.finished().await;
    }
}

struct Committer {
    context: Context,
    publisher: Publisher,
    relay: Relay,
    voucher: Voucher,
    store_down_until: Mutex<Option<Instant>>,
    /// An insert that takes all of a batch for new: it costs less, and is in vain where an order exists already.
    all_new: Shortcut,
}

/// Requests by the order they ask for: several may ask for the same one at the same time.
type ByOrder = BTreeMap<OrderId, (NewOrder, Vec<oneshot::Sender<Answer>>)>;

/// What the broker has certainly not taken, and why.
#[derive(Default)]
struct Left {
    orders: ByOrder,
    why: String,
}

/// What the orders are a part of, where they are of any trace; the first request for an order counts.
type Traces = HashMap<OrderId, TraceContext>;

impl Committer {
    async fn accept(&self, requests: Vec<Request>) {
        let mut by_order = ByOrder::new();
        let mut traces = Traces::new();
        for Request {
            order,
            answer,
            trace,
        } in requests
        {
            if let Some(trace) = trace {
                traces.entry(order.id).or_insert(trace);
            }
            by_order
                .entry(order.id)
                .or_insert_with(|| (order, Vec::new()))
                .1
                .push(answer);
        }
        self.commit(by_order, &traces).await;
    }

    async fn commit(&self, mut by_order: ByOrder, traces: &Traces) {
        let mut not_taken = None;
        if self.store_is_down() {
            let left = self.publish(by_order, false, traces).await;
            if left.orders.is_empty() {
                return;
            }
            // Where the broker is no way either, PostgreSQL is tried before its time: it may be back.
            by_order = left.orders;
            not_taken = Some(left.why);
        }
        let orders: Vec<NewOrder> = by_order.values().map(|(order, _)| order.clone()).collect();
        match self.insert(&orders, traces).await {
            Ok(inserted) => self.answer(by_order, &inserted).await,
            Err(Insert::NotBegun(error)) => {
                self.note_down(&error);
                let left = match not_taken {
                    Some(why) => Left {
                        orders: by_order,
                        why,
                    },
                    None => self.publish(by_order, false, traces).await,
                };
                refuse(left.orders, &NotAccepted::Unavailable(left.why));
            }
            Err(Insert::Unknown(error)) => {
                self.note_down(&error);
                self.publish(by_order, true, traces).await;
            }
            // One bad order must not fail its neighbours.
            Err(Insert::Refused(_)) if by_order.len() > 1 => {
                for (id, entry) in by_order {
                    Box::pin(self.commit(ByOrder::from([(id, entry)]), traces)).await;
                }
            }
            Err(Insert::Refused(error)) => {
                let order = by_order.keys().next();
                let trace = order.and_then(|order| traces.get(order));
                traces::for_log(trace)
                    .in_scope(|| tracing::error!(?order, %error, "an order cannot be inserted"));
                refuse(by_order, &NotAccepted::Bug(error));
            }
        }
    }

    async fn insert(&self, orders: &[NewOrder], traces: &Traces) -> Result<Vec<OrderId>, Insert> {
        let pool = &self.context.database;
        let mut connection = pool
            .get()
            .await
            .map_err(|error| Insert::NotBegun(error.to_string()))?;
        let inserted = with_deadline(self.commit_deadline(), pool, async {
            if self.all_new.is_open() {
                match db::orders::insert_new(&mut connection, orders).await {
                    Ok(waiting) => {
                        return Ok((orders.iter().map(|order| order.id).collect(), waiting));
                    }
                    Err(error) if error.is_unique_violation() => self.all_new.was_in_vain(),
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(db::orders::insert_accepted(&mut connection, orders).await?)
        })
        .await;
        if matches!(&inserted, Err(error) if error.kind() == Kind::Unavailable) {
            pg::discard(connection);
        }
        let inserted = inserted.map_err(|error| match error.kind() {
            Kind::Unavailable => Insert::Unknown(error.to_string()),
            Kind::Bug => Insert::Refused(error.to_string()),
            // The server answered, so nothing is committed; and one that is full, read-only or without its schema is as
            // good as down.
            _ => Insert::NotBegun(error.to_string()),
        })?;
        let (inserted, waiting) = inserted;
        // Their messages are of the transaction, and so of all its orders.
        let causes: Vec<TraceContext> = match traces.is_empty() {
            true => Vec::new(),
            false => {
                let of = inserted.iter().filter_map(|id| traces.get(id));
                of.cloned().collect()
            }
        };
        self.relay.hand_over_for(&causes, waiting);
        Ok(inserted)
    }

    /// Answers after a commit: the new ones at once, and the others once it is known what they are.
    async fn answer(&self, mut by_order: ByOrder, inserted: &[OrderId]) {
        ACCEPTING.batch.observe(by_order.len() as f64);
        ACCEPTING
            .accepted
            .of(Via::Database)
            .inc_by(inserted.len() as u64);
        for id in inserted {
            let Some((order, answers)) = by_order.remove(id) else {
                continue;
            };
            let mut answers = answers.into_iter();
            if let Some(first) = answers.next() {
                let _ = first.send(Ok(Accepted::New));
            }
            for repeated in answers {
                let _ = repeated.send(Ok(Accepted::Replayed(Box::new(pending(order.clone())))));
            }
        }
        if by_order.is_empty() {
            return;
        }
        // In a statement of its own: the one that inserted may neither have inserted them nor have seen them.
        match self.look_up(&by_order).await {
            Ok((existing, taken)) => {
                for (id, (order, answers)) in by_order {
                    let key = order
                        .idempotency_key
                        .clone()
                        .map(|key| (order.caller.clone(), key));
                    let answer = if let Some(order) = existing.get(&id) {
                        Ok(Accepted::Replayed(Box::new(order.clone())))
                    } else if let Some(other) = key.and_then(|key| taken.get(&key)) {
                        Err(NotAccepted::KeyTaken(*other))
                    } else {
                        tracing::warn!(order = %id, "an order vanished while it was accepted");
                        Err(NotAccepted::Vanished)
                    };
                    for sender in answers {
                        let _ = sender.send(answer.clone());
                    }
                }
            }
            Err(error) => {
                for (id, (_, answers)) in by_order {
                    tracing::warn!(order = %id, %error, "could not look up an order that exists");
                    for sender in answers {
                        let _ = sender.send(Err(NotAccepted::OutcomeUnknown(id)));
                    }
                }
            }
        }
    }

    async fn look_up(
        &self,
        by_order: &ByOrder,
    ) -> Result<(HashMap<OrderId, Order>, HashMap<(String, String), OrderId>), Error> {
        let ids: Vec<OrderId> = by_order.keys().copied().collect();
        let keys: Vec<(String, String)> = by_order
            .values()
            .filter_map(|(order, _)| Some((order.caller.clone(), order.idempotency_key.clone()?)))
            .collect();
        with_deadline(self.commit_deadline(), &self.context.database, async {
            let mut connection = self.context.database.get().await?;
            let existing = db::orders::find_all(&mut connection, &ids).await?;
            let taken = db::orders::list_by_keys(&mut connection, &keys).await?;
            Ok((
                existing
                    .into_iter()
                    .map(|order| (order.request.id, order))
                    .collect(),
                taken
                    .into_iter()
                    .map(|(caller, key, id)| ((caller, key), id))
                    .collect(),
            ))
        })
        .await
    }

    /// Accepts through the broker, and returns what it has certainly not taken, to be answered by the caller.
    /// `maybe_committed` says that PostgreSQL may have them as well; then nothing is left.
    async fn publish(&self, by_order: ByOrder, maybe_committed: bool, traces: &Traces) -> Left {
        let mut left = Left::default();
        // It costs a second to take back what this process vouches for.
        if let (false, Err(why)) = (maybe_committed, self.publisher.usable()) {
            left.orders = by_order;
            left.why = why;
            return left;
        }
        let messages = by_order
            .values()
            .map(|(order, _)| Message {
                queue: Queue::Orders,
                message_id: order.id.to_string(),
                headers: traced::headers_of(traces.get(&order.id)),
                body: encode_order(order).into_bytes(),
            })
            .collect();
        let withdrawn = self.voucher.withdraw().await;
        let results = self.publisher.publish(messages, PUBLISH_DEADLINE).await;
        for ((id, (order, answers)), result) in by_order.into_iter().zip(results) {
            let answer = match result {
                Ok(()) => {
                    ACCEPTING.accepted.of(Via::Broker).inc();
                    withdrawn.await_arrival(id, true);
                    Ok(Accepted::ThroughBroker)
                }
                Err(error) if maybe_committed || matches!(error, PublishError::Unknown(_)) => {
                    withdrawn.await_arrival(id, false);
                    Err(NotAccepted::OutcomeUnknown(id))
                }
                Err(error) => {
                    left.orders.insert(id, (order, answers));
                    left.why = error.to_string();
                    continue;
                }
            };
            for sender in answers {
                let _ = sender.send(answer.clone());
            }
        }
        left
    }

    /// A commit takes milliseconds. PostgreSQL without an answer for this long counts as down, as it does without a
    /// connection, and the broker is asked.
    fn commit_deadline(&self) -> Duration {
        self.context.database.settings().connect_timeout
    }

    fn store_is_down(&self) -> bool {
        let until = *self
            .store_down_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    fn note_down(&self, error: &str) {
        let mut until = self
            .store_down_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if until.is_none_or(|until| until + RETRY_STORE_AFTER * 10 < Instant::now()) {
            FAULTS.of(Fault::PostgresqlAway).inc();
            tracing::warn!(
                error,
                "PostgreSQL is down; orders are accepted through RabbitMQ until it is back"
            );
        }
        *until = Some(Instant::now() + RETRY_STORE_AFTER);
    }
}

/// Why an insert has not answered with what it inserted.
enum Insert {
    /// No connection: nothing was sent.
    NotBegun(String),
    /// It was sent; the commit may have happened.
    Unknown(String),
    /// The server refused it: nothing was committed.
    Refused(String),
}

fn refuse(by_order: ByOrder, error: &NotAccepted) {
    for (_, answers) in by_order.into_values() {
        for sender in answers {
            let _ = sender.send(Err(error.clone()));
        }
    }
}

/// An order as it is right after it was accepted.
#[must_use]
pub fn pending(request: NewOrder) -> Order {
    Order {
        request,
        status: Status::Pending,
        reason: None,
        decided_at: None,
        cancelled_at: None,
    }
}

/// The time at which a request is accepted, as PostgreSQL will keep it: to the microsecond.
#[must_use]
pub fn now() -> chrono::DateTime<Utc> {
    use chrono::SubsecRound;
    Utc::now().trunc_subsecs(6)
}
