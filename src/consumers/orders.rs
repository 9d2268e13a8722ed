//! Consumes `orders_queue`: whatever waits, up to a bound, is decided as one batch.

use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;

use super::suspects::{self, Begun, begin_suspect};
use super::{Door, HOLD_MAX, Subject, Waited, Weighed};
use crate::app::{Error, decide};
use crate::domain::book::Decision;
use crate::domain::messages;
use crate::domain::order::NewOrder;
use crate::domain::retry::{self, Verdict};
use crate::fault_injection::{Bug, is_planted};
use crate::mq::{Consumer, Delivery, Queue, Tag};

/// What was given to a step and could be read.
type Readable = (Delivery, NewOrder);

/// Consumes until the shutdown, then hands back what was not begun.
pub async fn run_until_stopped(
    door: Door,
    mut consumer: Consumer,
    batch_max: usize,
    deadline: Duration,
) {
    loop {
        let batch = tokio::select! {
            () = door.shutdown.begun() => break,
            batch = consumer.next_batch(batch_max) => batch,
        };
        let Some(batch) = batch else { break };
        let is_early = is_planted(Bug::AcknowledgeBeforeCommit);
        if is_early {
            consumer.ack(batch.iter().map(|d| d.tag).collect()).await;
        }
        let Step { done, given_up } = step(&door, batch).await;
        if !is_early {
            consumer.ack(done).await;
        }
        if !given_up.is_empty() {
            tracing::warn!("a store is away for long; handing the orders back until it works");
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
}

/// Handles one batch: decides what can be decided, and carries out the verdicts on the rest.
pub async fn step(door: &Door, batch: Vec<Delivery>) -> Step {
    let until = Instant::now() + HOLD_MAX;
    let mut step = Step::default();
    let mut readable = Vec::with_capacity(batch.len());
    let now = Utc::now();
    for delivery in batch {
        match messages::decode_order(&delivery.body, delivery.message_id.as_deref(), now) {
            Ok(order) => readable.push((delivery, order)),
            Err(error) => {
                let verdict = Verdict::DeadLetter {
                    code: retry::INVALID_MESSAGE,
                    error: error.to_string(),
                };
                finish(
                    door,
                    &mut step,
                    delivery,
                    &Subject::Unreadable,
                    &verdict,
                    until,
                )
                .await;
            }
        }
    }
    if let [(delivery, _)] = readable.as_slice()
        && delivery.redeliveries > 0
    {
        match begin_suspect(door, delivery, until).await {
            Begun::Yes => {}
            Begun::TooOften(verdict) => {
                for (delivery, order) in readable {
                    finish(
                        door,
                        &mut step,
                        delivery,
                        &Subject::Order(&order),
                        &verdict,
                        until,
                    )
                    .await;
                }
                return step;
            }
            Begun::No => {
                step.given_up
                    .extend(readable.into_iter().map(|(delivery, _)| delivery));
                return step;
            }
        }
    }
    decide_batch(door, &mut step, readable, until).await;
    step
}

async fn decide_batch(door: &Door, step: &mut Step, batch: Vec<Readable>, until: Instant) {
    if batch.is_empty() {
        return;
    }
    let mut rounds = 0;
    let verdicts = loop {
        let error = match attempt(door, &batch).await {
            Ok(verdicts) => break verdicts,
            Err(error) => error,
        };
        tracing::warn!(%error, orders = batch.len(), "orders could not be decided");
        match door.weigh(&error, batch.len(), &mut rounds, until).await {
            Weighed::Again => {}
            Weighed::GiveUp => {
                step.given_up
                    .extend(batch.into_iter().map(|(delivery, _)| delivery));
                return;
            }
            Weighed::ItsOwn if batch.len() > 1 => {
                // One of them may be at fault: each is tried alone, so that the others are not held up by it.
                for one in batch {
                    if Instant::now() >= until || door.shutdown.is_begun() {
                        step.given_up.push(one.0);
                        continue;
                    }
                    Box::pin(decide_batch(door, step, vec![one], until)).await;
                }
                return;
            }
            Weighed::ItsOwn => {
                break batch
                    .iter()
                    .map(|(delivery, _)| door.judge(delivery, &error))
                    .collect();
            }
        }
    };
    for ((delivery, order), verdict) in batch.into_iter().zip(verdicts) {
        finish(
            door,
            step,
            delivery,
            &Subject::Order(&order),
            &verdict,
            until,
        )
        .await;
    }
}

/// Tries to decide a batch, and returns a verdict for each delivery.
async fn attempt(door: &Door, batch: &[Readable]) -> Result<Vec<Verdict>, Error> {
    let orders: Vec<NewOrder> = batch.iter().map(|(_, order)| order.clone()).collect();
    let decided = decide::decide(&door.context, &orders, Utc::now()).await?;
    door.relay.hand_over(decided.waiting);
    Ok(batch
        .iter()
        .zip(decided.decisions)
        .map(|((delivery, _), decision)| match decision {
            Decision::Confirmed | Decision::Rejected(_) | Decision::Settled => Verdict::Ack,
            Decision::Undecidable => door.judge(
                delivery,
                &Error::NotYet(
                    "a vendor was never synced, so whether its stock would do is not known".into(),
                ),
            ),
        })
        .collect())
}

async fn finish(
    door: &Door,
    step: &mut Step,
    delivery: Delivery,
    subject: &Subject<'_>,
    verdict: &Verdict,
    until: Instant,
) {
    if door
        .carry_out(Queue::Orders, &delivery, subject, verdict, until)
        .await
    {
        suspects::end(door, &delivery).await;
        step.done.push(delivery.tag);
    } else {
        step.given_up.push(delivery);
    }
}
