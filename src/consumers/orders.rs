//! Consumes `orders_queue`: whatever waits, up to a bound, is decided as one batch, or as two that do not wait for each
//! other.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;
use tracing::Instrument;

use super::pace::Pace;
use super::suspects::{self, Begun, begin_suspect};
use super::{Door, HOLD_MAX, Subject, Waited, Weighed};
use crate::app::{Error, decide, traced};
use crate::domain::book::Decision;
use crate::domain::messages;
use crate::domain::order::{NewOrder, Reason};
use crate::domain::retry::{self, Verdict};
use crate::fault_injection::{Bug, is_planted};
use crate::limit::Limit;
use crate::metrics::{self, DECIDING, FAULTS, Fault};
use crate::mq::{Consumer, Delivery, Queue, Tag};
use crate::traces::{Kind, Span};

/// About what an order of five lines takes in a message; a batch is measured by it before it is read, so that orders of
/// many lines make it no larger.
const ORDER_BYTES: usize = 450;

/// An order, and which of the deliveries of its step it came in.
type Part = (usize, NewOrder);

/// Consumes until the shutdown, then hands back what was not begun.
pub async fn run_until_stopped(
    door: Door,
    mut consumer: Consumer,
    batch_max: Limit,
    deadline: Duration,
) {
    let mut pace = Pace::default();
    loop {
        let batch_max = batch_max.get();
        let batch = tokio::select! {
            () = door.shutdown.begun() => break,
            batch = consumer.next_batch(batch_max, batch_max * ORDER_BYTES, pace.next()) => batch,
        };
        let Some(batch) = batch else { break };
        let begun = Instant::now();
        let is_early = is_planted(Bug::AcknowledgeBeforeCommit);
        if is_early {
            consumer.ack(batch.iter().map(|d| d.tag).collect()).await;
        }
        let Step {
            done,
            given_up,
            orders,
        } = step(&door, batch, batch_max).await;
        pace.note(begun, orders);
        if !is_early {
            consumer.ack(done).await;
        }
        if !given_up.is_empty() {
            tracing::warn!("a store is away for long; handing the orders back until it works");
            FAULTS.of(Fault::HandedBack).inc();
            consumer.hand_back().await;
            if door.wait_for_stores().await == Waited::Stopped {
                break;
            }
            for delivery in &given_up {
                suspects::end(&door, delivery).await;
            }
            consumer.resume().await;
        }
    }
    consumer.stop().await;
    consumer.close(deadline).await;
}

/// What a step has come to.
#[derive(Debug, Default)]
pub struct Step {
    /// What may be acknowledged.
    pub done: Vec<Tag>,
    /// What could not be handled for too long, and is the broker's still.
    pub given_up: Vec<Delivery>,
    /// How many orders were in them.
    pub orders: usize,
}

/// Handles deliveries: decides what can be decided, `batch_max` orders in a transaction, and carries out the verdicts on
/// the rest. A delivery is done when all its orders are.
pub async fn step(door: &Door, deliveries: Vec<Delivery>, batch_max: usize) -> Step {
    let until = Instant::now() + HOLD_MAX;
    let mut held = Vec::with_capacity(deliveries.len());
    let mut parts = Vec::with_capacity(deliveries.len());
    let now = Utc::now();
    for delivery in deliveries {
        let of = held.len();
        let (mut orders_in, mut is_given_up) = (0, false);
        match messages::decode_orders(&delivery.body, delivery.message_id.as_deref(), now) {
            Ok(orders) => {
                orders_in = orders.len();
                parts.extend(orders.into_iter().map(|order| (of, order)));
            }
            Err(error) => {
                let verdict = Verdict::DeadLetter {
                    code: retry::INVALID_MESSAGE,
                    error: error.to_string(),
                    cause: None,
                };
                is_given_up = !door
                    .carry_out(
                        Queue::Orders,
                        &delivery,
                        &Subject::Unreadable,
                        &verdict,
                        until,
                    )
                    .await;
            }
        }
        held.push(Held {
            delivery,
            orders: orders_in,
            is_given_up,
        });
    }
    if let [suspect] = held.as_mut_slice()
        && suspect.delivery.redeliveries > 0
        && !parts.is_empty()
    {
        parts = begin(door, suspect, parts, until).await;
    }
    let orders = parts.len();
    let [one, other] = lanes(parts);
    let (of_one, of_other) = tokio::join!(
        decide_lane(door, &held, &one, batch_max, until),
        decide_lane(door, &held, &other, batch_max, until),
    );
    for of in of_one.into_iter().chain(of_other) {
        held[of].is_given_up = true;
    }
    let mut step = Step {
        orders,
        ..Step::default()
    };
    for one in held {
        if one.is_given_up {
            step.given_up.push(one.delivery);
        } else {
            suspects::end(door, &one.delivery).await;
            step.done.push(one.delivery.tag);
        }
    }
    step
}

/// A delivery of a step.
struct Held {
    delivery: Delivery,
    /// How many came in it.
    orders: usize,
    /// Something of it could not be handled for too long.
    is_given_up: bool,
}

impl Held {
    /// The delivery as if one of its orders had come in a message of its own: that is how it is retried, and
    /// dead-lettered.
    fn single(&self, order: &NewOrder) -> Delivery {
        if self.orders <= 1 {
            return self.delivery.clone();
        }
        Delivery {
            message_id: Some(order.id.to_string()),
            body: messages::encode_order(order).into_bytes(),
            ..self.delivery.clone()
        }
    }
}

/// Begins with a delivery that came before and was not answered for. Returns what may be tried of it.
async fn begin(door: &Door, suspect: &mut Held, parts: Vec<Part>, until: Instant) -> Vec<Part> {
    if parts.len() > 1 {
        // One of its orders may be what killed the consumer: each goes on in a message of its own, and the others are
        // free of it.
        let singles = parts
            .iter()
            .map(|(_, order)| suspect.single(order))
            .collect();
        let (_, left) = door.put_off(Queue::Orders, singles, until).await;
        suspect.is_given_up = !left.is_empty();
        return Vec::new();
    }
    match begin_suspect(door, &suspect.delivery, until).await {
        Begun::Yes => parts,
        Begun::TooOften(verdict) => {
            for (_, order) in &parts {
                let subject = Subject::Order(order);
                suspect.is_given_up |= !door
                    .carry_out(Queue::Orders, &suspect.delivery, &subject, &verdict, until)
                    .await;
            }
            Vec::new()
        }
        Begun::No => {
            suspect.is_given_up = true;
            Vec::new()
        }
    }
}

/// So many orders are worth a second transaction.
const SHARED_BY_LANES: usize = 128;

/// Shares orders out to two transactions that run at the same time: a transaction waits for one statement after the other,
/// and meanwhile a processor has nothing to do. Whoever takes stock holds its row until the commit, so the orders of a
/// product go into the same one, and those of several products into the first: otherwise both would wait for each other's.
fn lanes(parts: Vec<Part>) -> [Vec<Part>; 2] {
    if parts.len() < SHARED_BY_LANES {
        return [parts, Vec::new()];
    }
    let (other, one) = parts.into_iter().partition(|(_, order)| {
        let [line] = order.lines.as_slice() else {
            return false;
        };
        let mut hasher = DefaultHasher::new();
        line.product_id.hash(&mut hasher);
        hasher.finish() % 2 == 1
    });
    [one, other]
}

/// Decides orders, `batch_max` in a transaction. Returns the places of the deliveries that could not be handled for too
/// long.
async fn decide_lane(
    door: &Door,
    held: &[Held],
    parts: &[Part],
    batch_max: usize,
    until: Instant,
) -> Vec<usize> {
    let mut given_up = Vec::new();
    for batch in parts.chunks(batch_max.max(1)) {
        given_up.extend(decide_batch(door, held, batch, until).await);
    }
    given_up
}

/// Decides a batch, or each of its orders alone. Returns the places of the deliveries that could not be handled for too
/// long.
async fn decide_batch(door: &Door, held: &[Held], batch: &[Part], until: Instant) -> Vec<usize> {
    let all = |batch: &[Part]| batch.iter().map(|(of, _)| *of).collect();
    let mut rounds = 0;
    let causes = traced::contexts_of(batch.iter().map(|(of, _)| &held[*of].delivery.headers));
    let verdicts = loop {
        let mut span = Span::begin("decide orders", Kind::Consumer, &causes);
        describe(&mut span, batch);
        let attempted = span.around(attempt(door, held, batch));
        let error = match attempted.instrument(span.for_log()).await {
            Ok(verdicts) => break verdicts,
            Err(error) => error,
        };
        span.fail(&error);
        span.for_log().in_scope(|| {
            // The only one of a batch is named.
            let one = batch.first().filter(|_| batch.len() == 1);
            let order = one.map(|(_, order)| order.id.to_string());
            let message_id = one.and_then(|(of, _)| held[*of].delivery.message_id.as_deref());
            tracing::warn!(%error, order, message_id, orders = batch.len(), "orders could not be decided");
        });
        drop(span);
        match door.weigh(&error, batch.len(), &mut rounds, until).await {
            Weighed::Again => {}
            Weighed::GiveUp => return all(batch),
            Weighed::ItsOwn if batch.len() > 1 => {
                // One of them may be at fault: each is tried alone, so that the others are not held up by it.
                let mut given_up = Vec::new();
                for one in batch.chunks(1) {
                    if Instant::now() >= until || door.shutdown.is_begun() {
                        given_up.extend(all(one));
                        continue;
                    }
                    given_up.extend(Box::pin(decide_batch(door, held, one, until)).await);
                }
                return given_up;
            }
            Weighed::ItsOwn => {
                break batch
                    .iter()
                    .map(|(of, _)| door.judge(&held[*of].delivery, &error))
                    .collect();
            }
        }
    };
    let mut given_up = Vec::new();
    for ((of, order), verdict) in batch.iter().zip(verdicts) {
        if verdict == Verdict::Ack {
            continue;
        }
        let single = held[*of].single(order);
        let is_carried_out = door
            .carry_out(
                Queue::Orders,
                &single,
                &Subject::Order(order),
                &verdict,
                until,
            )
            .await;
        if !is_carried_out {
            given_up.push(*of);
        }
    }
    given_up
}

/// Says what a batch is.
fn describe(span: &mut Span, batch: &[Part]) {
    if !span.is_recorded() {
        return;
    }
    span.note("messaging.system", "rabbitmq");
    span.note("messaging.operation.type", "process");
    span.note("messaging.destination.name", Queue::Orders.base_name());
    span.note_count("stockctl.orders", batch.len());
    if let [(_, order)] = batch {
        span.note("stockctl.order.id", order.id);
    }
}

/// Tries to decide a batch, and returns a verdict for each order.
async fn attempt(door: &Door, held: &[Held], batch: &[Part]) -> Result<Vec<Verdict>, Error> {
    let orders: Vec<&NewOrder> = batch.iter().map(|(_, order)| order).collect();
    let begun = std::time::Instant::now();
    let decided = decide::decide(&door.context, &orders, Utc::now()).await?;
    count(&orders, &decided.decisions, begun.elapsed());
    door.relay.hand_over(decided.waiting);
    Ok(batch
        .iter()
        .zip(decided.decisions)
        .map(|((of, _), decision)| match decision {
            Decision::Confirmed | Decision::Rejected(_) | Decision::Settled => Verdict::Ack,
            Decision::Undecidable => door.judge(
                &held[*of].delivery,
                &Error::NotYet(
                    "a vendor was never synced, so whether its stock would do is not known".into(),
                ),
            ),
        })
        .collect())
}

/// Counts what a transaction has decided. What is in a batch twice, or was decided before, is counted once.
fn count(orders: &[&NewOrder], decisions: &[Decision], took: Duration) {
    DECIDING.duration.observe(took.as_secs_f64());
    DECIDING.batch.observe(orders.len() as f64);
    let now = Utc::now();
    for (order, decision) in orders.iter().zip(decisions) {
        let counted_as = match decision {
            Decision::Confirmed => metrics::Decision::Confirmed,
            Decision::Rejected(Reason::InsufficientStock { .. }) => {
                metrics::Decision::InsufficientStock
            }
            Decision::Rejected(Reason::UnknownProduct { .. }) => metrics::Decision::UnknownProduct,
            Decision::Rejected(Reason::IdempotencyConflict) => {
                metrics::Decision::IdempotencyConflict
            }
            Decision::Rejected(_) => metrics::Decision::RejectedOtherwise,
            Decision::Settled | Decision::Undecidable => continue,
        };
        DECIDING.decided.of(counted_as).inc();
        // Another machine's clock may be ahead of ours.
        let waited = (now - order.accepted_at).to_std().unwrap_or_default();
        DECIDING.latency.observe(waited.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;

    use super::*;
    use crate::domain::ids::{OrderId, ProductId};
    use crate::domain::order::{Line, Lines};

    fn order(products: &[usize]) -> NewOrder {
        let lines = products.iter().map(|n| Line {
            product_id: ProductId::parse(format!("p{n}")).expect("valid"),
            quantity: 1,
        });
        NewOrder {
            id: OrderId(Uuid::now_v7()),
            caller: "c".into(),
            idempotency_key: None,
            lines: Lines::parse(lines.collect()).expect("valid"),
            reference: None,
            accepted_at: Utc::now(),
        }
    }

    #[test]
    fn the_orders_of_a_product_keep_together_and_in_their_order() {
        let parts: Vec<Part> = (0..SHARED_BY_LANES * 4)
            .map(|n| match n % 4 {
                0 => (n, order(&[n % 9, 9])),
                _ => (n, order(&[n % 9])),
            })
            .collect();
        let few = lanes(parts[..SHARED_BY_LANES - 1].to_vec());
        assert_eq!(few.map(|lane| lane.len()), [SHARED_BY_LANES - 1, 0]);

        let [one, other] = lanes(parts.clone());
        assert_eq!(one.len() + other.len(), parts.len());
        let mut lane_of = BTreeMap::new();
        for (lane, parts) in [(1, &one), (2, &other)] {
            assert!(parts.is_sorted_by_key(|(of, _)| *of));
            for (_, order) in parts {
                match order.lines.as_slice() {
                    [line] => {
                        let first = lane_of.entry(line.product_id.clone()).or_insert(lane);
                        assert_eq!(*first, lane);
                    }
                    _ => assert_eq!(lane, 1),
                }
            }
        }
        assert_eq!(lane_of.len(), 9);
        assert!(lane_of.values().any(|lane| *lane == 2));
    }
}
