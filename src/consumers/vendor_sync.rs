//! Consumes `vendor_sync`. Each vendor has a lane of its own, so that one that hangs holds up only its own messages;
//! what waits in a lane is sent together.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::suspects::{self, Begun, begin_suspect};
use super::{Door, HOLD_MAX, Subject, Waited, Weighed};
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
    /// May be acknowledged.
    Done(Vec<Tag>),
    /// Could not be handled for too long, and is the broker's still.
    GivenUp(Vec<Delivery>),
}

/// Consumes until the shutdown, then hands back what was not begun.
pub async fn run_until_stopped(door: Door, mut consumer: Consumer, limits: Limits) {
    // Room for as many reports as there can be: two for each delivery that is held.
    let (reports, mut reported) = mpsc::channel(2 * usize::from(limits.prefetch) + 2);
    let mut lanes = Lanes {
        door: door.clone(),
        limits,
        reports,
        senders: HashMap::new(),
        tasks: JoinSet::new(),
    };
    loop {
        tokio::select! {
            biased;
            () = door.shutdown.begun() => break,
            // A lane ends before the shutdown only by a panic. Its messages would stay held, so this ends too, and with
            // it the process.
            Some(_) = lanes.tasks.join_next() => break,
            report = reported.recv() => match report {
                Some(Report::Done(tags)) => consumer.ack(tags).await,
                Some(Report::GivenUp(mut given_up)) => {
                    tracing::warn!("a store is away for long; handing the messages back until it works");
                    consumer.hand_back().await;
                    if door.wait_for_stores().await == Waited::Stopped {
                        break;
                    }
                    // The other lanes have given up for the same reason.
                    while let Ok(report) = reported.try_recv() {
                        if let Report::GivenUp(more) = report {
                            given_up.extend(more);
                        }
                    }
                    for delivery in &given_up {
                        suspects::end(&door, delivery).await;
                    }
                    consumer.resume().await;
                }
                None => break,
            },
            batch = consumer.next_batch(usize::from(limits.prefetch)) => match batch {
                Some(batch) => {
                    lanes.route(batch).await;
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
        match report {
            Report::Done(tags) => consumer.ack(tags).await,
            Report::GivenUp(given_up) => {
                for delivery in &given_up {
                    suspects::end(&door, delivery).await;
                }
            }
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
    /// Sends each delivery to its vendor's lane. What no lane is for goes to the dead-letter queue.
    async fn route(&mut self, batch: Vec<Delivery>) {
        for delivery in batch {
            let (error, updates) = match messages::decode_updates(&delivery.body) {
                Ok(message) => {
                    let updates: Vec<UpdateId> =
                        message.updates.iter().map(|update| update.id).collect();
                    if self.door.context.vendors.contains_key(&message.vendor_id) {
                        self.send(message.vendor_id, Addressed { delivery, updates })
                            .await;
                        continue;
                    }
                    (
                        format!("no vendor {} is configured", message.vendor_id),
                        Some(updates),
                    )
                }
                Err(error) => (error.to_string(), None),
            };
            let verdict = Verdict::DeadLetter {
                code: retry::INVALID_MESSAGE,
                error,
            };
            let subject = updates
                .as_deref()
                .map_or(Subject::Unreadable, Subject::Updates);
            let until = Instant::now() + HOLD_MAX;
            let done = self
                .door
                .carry_out(Queue::VendorSync, &delivery, &subject, &verdict, until)
                .await;
            let report = if done {
                Report::Done(vec![delivery.tag])
            } else {
                Report::GivenUp(vec![delivery])
            };
            // There is room for as many reports as deliveries.
            let _ = self.reports.try_send(report);
        }
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

/// What a step of a lane has come to.
#[derive(Default)]
struct Step {
    /// What may be acknowledged.
    done: Vec<Tag>,
    /// What could not be handled for too long, and is the broker's still.
    given_up: Vec<Delivery>,
    /// Why the vendor took nothing, where that is the vendor's own state and no message's.
    vendor_down: Option<Error>,
}

impl Step {
    fn given_up(batch: Vec<Addressed>) -> Self {
        Self {
            given_up: batch.into_iter().map(|one| one.delivery).collect(),
            ..Self::default()
        }
    }

    fn add(&mut self, other: Self) {
        self.done.extend(other.done);
        self.given_up.extend(other.given_up);
        self.vendor_down = self.vendor_down.take().or(other.vendor_down);
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
            let mut step = self.step(batch).await;
            if let Some(error) = &step.vendor_down {
                // What waits here would be held for as long again, call after call, and the broker gives a consumer only
                // so much time: it shares the verdict.
                let waiting: Vec<Addressed> =
                    std::iter::from_fn(|| receiver.try_recv().ok()).collect();
                let verdicts = self.judge(&waiting, error);
                let until = Instant::now() + HOLD_MAX;
                step.add(self.finish(waiting, verdicts, until).await);
            }
            let _ = reports.send(Report::Done(step.done)).await;
            if !step.given_up.is_empty() {
                let _ = reports.send(Report::GivenUp(step.given_up)).await;
            }
        }
    }

    fn judge(&self, batch: &[Addressed], error: &Error) -> Vec<Verdict> {
        batch
            .iter()
            .map(|one| self.door.judge(&one.delivery, error))
            .collect()
    }

    /// Pushes a batch.
    async fn step(&mut self, batch: Vec<Addressed>) -> Step {
        let until = Instant::now() + HOLD_MAX;
        if let [one] = batch.as_slice()
            && one.delivery.redeliveries > 0
        {
            match begin_suspect(&self.door, &one.delivery, until).await {
                Begun::Yes => {}
                Begun::TooOften(verdict) => return self.finish(batch, vec![verdict], until).await,
                Begun::No => return Step::given_up(batch),
            }
        }
        self.push(batch, until).await
    }

    async fn push(&mut self, batch: Vec<Addressed>, until: Instant) -> Step {
        let mut rounds = 0;
        let mut vendor_down = None;
        let verdicts = loop {
            let error = match self.attempt(&batch).await {
                Ok(verdicts) => break verdicts,
                Err(error) => error,
            };
            tracing::warn!(vendor = %self.vendor_id, %error, messages = batch.len(), "updates not taken");
            match self
                .door
                .weigh(&error, batch.len(), &mut rounds, until)
                .await
            {
                Weighed::Again => {}
                Weighed::GiveUp => return Step::given_up(batch),
                // A vendor that is down is down for all of them; another error may be one message's.
                Weighed::ItsOwn if batch.len() > 1 && !error.is_vendor_down() => {
                    let mut step = Step::default();
                    for one in batch {
                        if Instant::now() >= until || self.door.shutdown.is_begun() {
                            step.given_up.push(one.delivery);
                        } else {
                            step.add(Box::pin(self.push(vec![one], until)).await);
                        }
                    }
                    return step;
                }
                Weighed::ItsOwn => {
                    let verdicts = self.judge(&batch, &error);
                    vendor_down = error.is_vendor_down().then_some(error);
                    break verdicts;
                }
            }
        };
        Step {
            vendor_down,
            ..self.finish(batch, verdicts, until).await
        }
    }

    async fn finish(&self, batch: Vec<Addressed>, verdicts: Vec<Verdict>, until: Instant) -> Step {
        let mut step = Step::default();
        for (one, verdict) in batch.into_iter().zip(verdicts) {
            let subject = Subject::Updates(&one.updates);
            if self
                .door
                .carry_out(Queue::VendorSync, &one.delivery, &subject, &verdict, until)
                .await
            {
                suspects::end(&self.door, &one.delivery).await;
                step.done.push(one.delivery.tag);
            } else {
                step.given_up.push(one.delivery);
            }
        }
        step
    }

    async fn attempt(&mut self, batch: &[Addressed]) -> Result<Vec<Verdict>, Error> {
        let context = &self.door.context;
        let source = match self.source {
            Some(source) => source,
            None => {
                let found = context
                    .with_connection(async |connection| Ok(db::installation_id(connection).await?))
                    .await?;
                *self.source.insert(found)
            }
        };
        let ids: Vec<UpdateId> = batch
            .iter()
            .flat_map(|one| one.updates.iter().copied())
            .collect();
        let source = source.to_string();
        let pushed = push::push(
            context,
            &source,
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
