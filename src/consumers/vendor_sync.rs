//! Consumes `vendor_sync`. Each vendor has a lane of its own, so that one that hangs holds up only its own messages;
//! what waits in a lane is sent together.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Door, HOLD_MAX, Subject, Waited, suspects};
use crate::app::{Error, push};
use crate::db;
use crate::domain::ids::{UpdateId, VendorId};
use crate::domain::messages;
use crate::domain::retry::{self, Verdict};
use crate::mq::{Consumer, Delivery, Queue, Tag};

/// Bounds of this consumer.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Deliveries that are held at once, over all lanes.
    pub prefetch: u16,
    /// Updates sent in one call.
    pub updates_per_call_max: usize,
    /// For ending cleanly.
    pub shutdown_deadline: Duration,
}

/// A delivery and the updates that it names.
struct Addressed {
    delivery: Delivery,
    updates: Vec<UpdateId>,
}

/// What a lane tells the loop.
enum Report {
    Done(Vec<Tag>),
    GivenUp,
}

/// Consumes until the shutdown, then hands back what was not begun.
pub async fn run_until_stopped(door: Door, mut consumer: Consumer, limits: Limits) {
    // Room for as many reports as there can be deliveries: a lane never waits to report.
    let (reports, mut reported) = mpsc::channel(usize::from(limits.prefetch) + 1);
    let mut lanes = Lanes {
        door: door.clone(),
        limits,
        reports,
        senders: HashMap::new(),
        tasks: JoinSet::new(),
    };
    loop {
        tokio::select! {
            () = door.shutdown.begun() => break,
            report = reported.recv() => match report {
                Some(Report::Done(tags)) => consumer.ack(tags).await,
                Some(Report::GivenUp) | None => {
                    tracing::warn!("PostgreSQL or the broker is away for long; handing the messages back until it works");
                    consumer.hand_back().await;
                    if door.wait_for_store(None).await == Waited::Stopped {
                        break;
                    }
                    consumer.resume().await;
                }
            },
            batch = consumer.next_batch(usize::from(limits.prefetch)) => match batch {
                Some(batch) => {
                    let tags = lanes.route(batch).await;
                    consumer.ack(tags).await;
                }
                None => break,
            },
        }
    }
    consumer.stop().await;
    // What is on its way to a vendor is finished; what only waits in a lane goes back to the broker.
    lanes.senders.clear();
    let finished = async { while lanes.tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.shutdown_deadline, finished)
        .await
        .is_err()
    {
        tracing::warn!(
            "a vendor has not answered within the deadline; its message goes back to the broker"
        );
    }
    while let Ok(report) = reported.try_recv() {
        if let Report::Done(tags) = report {
            consumer.ack(tags).await;
        }
    }
    consumer.close(limits.shutdown_deadline).await;
}

/// The vendors' lanes, each begun with its first message.
struct Lanes {
    door: Door,
    limits: Limits,
    reports: mpsc::Sender<Report>,
    senders: HashMap<VendorId, mpsc::Sender<Addressed>>,
    tasks: JoinSet<()>,
}

impl Lanes {
    /// Sends each delivery to its vendor's lane, and returns those that are done already: they went to the dead-letter
    /// queue.
    async fn route(&mut self, batch: Vec<Delivery>) -> Vec<Tag> {
        let mut done = Vec::new();
        for delivery in batch {
            let read = messages::decode_updates(&delivery.body)
                .map_err(|error| error.to_string())
                .and_then(|message| {
                    if self.door.context.vendors.contains_key(&message.vendor_id) {
                        Ok(message)
                    } else {
                        Err(format!("no vendor {} is configured", message.vendor_id))
                    }
                });
            match read {
                Ok(message) => {
                    let updates = message.updates.iter().map(|update| update.id).collect();
                    self.send(message.vendor_id, Addressed { delivery, updates })
                        .await;
                }
                Err(error) => {
                    let verdict = Verdict::DeadLetter {
                        code: retry::INVALID_MESSAGE,
                        error,
                    };
                    let until = Instant::now() + HOLD_MAX;
                    let subject = Subject::Unreadable;
                    if self
                        .door
                        .carry_out_until(Queue::VendorSync, &delivery, &subject, &verdict, until)
                        .await
                    {
                        done.push(delivery.tag);
                    }
                }
            }
        }
        done
    }

    async fn send(&mut self, vendor_id: VendorId, addressed: Addressed) {
        let sender = self.senders.entry(vendor_id.clone()).or_insert_with(|| {
            // The broker holds back more than the prefetch, so a lane with room for that much is never full.
            let (sender, receiver) = mpsc::channel(usize::from(self.limits.prefetch) + 1);
            let lane = Lane {
                door: self.door.clone(),
                vendor_id,
                updates_per_call_max: self.limits.updates_per_call_max,
                source: None,
            };
            self.tasks.spawn(lane.run(receiver, self.reports.clone()));
            sender
        });
        // A closed lane has panicked; its messages stay the broker's.
        let _ = sender.send(addressed).await;
    }
}

/// One vendor's messages, sent one call at a time.
struct Lane {
    door: Door,
    vendor_id: VendorId,
    updates_per_call_max: usize,
    source: Option<Uuid>,
}

impl Lane {
    async fn run(mut self, mut receiver: mpsc::Receiver<Addressed>, reports: mpsc::Sender<Report>) {
        while let Some(first) = receiver.recv().await {
            if self.door.shutdown.is_begun() {
                return;
            }
            let mut updates = first.updates.len();
            let mut batch = vec![first];
            while updates < self.updates_per_call_max {
                let Ok(next) = receiver.try_recv() else { break };
                updates += next.updates.len();
                batch.push(next);
            }
            let report = match self.step(batch).await {
                (done, true) => {
                    let _ = reports.send(Report::Done(done)).await;
                    Report::GivenUp
                }
                (done, false) => Report::Done(done),
            };
            let _ = reports.send(report).await;
        }
    }

    /// Pushes a batch. Returns what may be acknowledged, and whether the rest was given up.
    async fn step(&mut self, batch: Vec<Addressed>) -> (Vec<Tag>, bool) {
        let until = Instant::now() + HOLD_MAX;
        let verdicts = loop {
            match self.attempt(&batch).await {
                Ok(verdicts) => break verdicts,
                Err(error) if self.door.is_outage(&error).await => {
                    tracing::warn!(vendor = %self.vendor_id, %error, "waiting for PostgreSQL with updates in hand");
                    if self.door.wait_for_store(Some(until)).await != Waited::Back {
                        return (Vec::new(), true);
                    }
                }
                // The vendor's own failure is the same for all of them; another error may be one message's.
                Err(error) if batch.len() > 1 && !matches!(error, Error::Vendor(_)) => {
                    tracing::warn!(vendor = %self.vendor_id, %error, "a batch failed; trying each message alone");
                    let mut done = Vec::new();
                    let mut given_up = false;
                    for one in batch {
                        let (tags, failed) = Box::pin(self.step(vec![one])).await;
                        done.extend(tags);
                        given_up |= failed;
                    }
                    return (done, given_up);
                }
                Err(error) => {
                    tracing::warn!(vendor = %self.vendor_id, %error, messages = batch.len(), "updates not taken");
                    break batch
                        .iter()
                        .map(|one| self.door.judge(&one.delivery, &error))
                        .collect();
                }
            }
        };
        let mut done = Vec::new();
        let mut given_up = false;
        for (one, verdict) in batch.iter().zip(verdicts) {
            let subject = Subject::Updates(&one.updates);
            if self
                .door
                .carry_out_until(Queue::VendorSync, &one.delivery, &subject, &verdict, until)
                .await
            {
                suspects::end(&self.door, &one.delivery).await;
                done.push(one.delivery.tag);
            } else {
                given_up = true;
            }
        }
        (done, given_up)
    }

    async fn attempt(&mut self, batch: &[Addressed]) -> Result<Vec<Verdict>, Error> {
        if let [one] = batch
            && let Some(verdict) = suspects::begin(&self.door, &one.delivery).await?
        {
            return Ok(vec![verdict]);
        }
        let context = &self.door.context;
        let source = match self.source {
            Some(source) => source,
            None => {
                let mut connection = context.database.get().await?;
                *self
                    .source
                    .insert(db::installation_id(&mut connection).await?)
            }
        };
        let ids: Vec<UpdateId> = batch
            .iter()
            .flat_map(|one| one.updates.iter().copied())
            .collect();
        let pushed = push::push(
            context,
            &source.to_string(),
            &self.vendor_id,
            &ids,
            self.updates_per_call_max,
        )
        .await?;
        self.door.relay.hand_over(pushed.waiting);
        Ok(batch
            .iter()
            .map(
                |one| match one.updates.iter().find(|id| pushed.conflicts.contains(id)) {
                    None => Verdict::Ack,
                    Some(id) => Verdict::DeadLetter {
                        code: retry::UPDATE_CONFLICT,
                        error: format!(
                            "vendor {} knows update {id} with another content",
                            self.vendor_id
                        ),
                    },
                },
            )
            .collect())
    }
}
