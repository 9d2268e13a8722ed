//! Consumes `vendor_sync`. Each vendor has a lane of its own; what waits in a lane is sent together, one call at a time:
//! a call carries hundreds of updates, and a vendor's own locks would make calls wait for each other anyway.
//!
//! What the broker hands out ahead is shared by all vendors, so no lane may keep more than its part of it while its
//! vendor is slow, and none at all while its vendor is down. What a lane cannot keep is *put off*: it goes to the retry
//! queue as it came, with the same `x-retry-count`, and costs its message nothing. An attempt, which is counted, is a
//! call that carried the message's updates, and nothing else. A vendor that failed and for which nothing waits is looked for
//! now and then, so that what is shown of it is true.

mod lanes;
mod step;

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use self::lanes::{Lanes, Started};
use self::step::{Step, Vendor};
use super::push_states::PushStates;
use super::suspects;
use super::{Door, HOLD_MAX, Subject, Waited};
use crate::domain::ids::{UpdateId, VendorId};
use crate::domain::messages;
use crate::domain::retry::{self, Verdict};
use crate::limit::Limit;
use crate::metrics::{FAULTS, Fault};
use crate::mq::{Consumer, Delivery, Queue};

/// How often lanes are looked at in which nothing happens.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Bounds of this consumer.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Deliveries that are held at once, over all lanes.
    pub prefetch: u16,
    /// Updates sent in one call.
    pub updates_per_call_max: Limit,
    /// For ending cleanly.
    pub shutdown_deadline: Duration,
}

/// How many deliveries to ask the broker for: with fewer than two for each vendor, one that hangs would leave nothing to
/// the others.
#[must_use]
pub fn prefetch(configured: u16, vendors: usize) -> u16 {
    configured.max(u16::try_from(2 * vendors).unwrap_or(u16::MAX))
}

/// A delivery and the updates that it names.
struct Addressed {
    delivery: Delivery,
    updates: Vec<UpdateId>,
    arrived: Instant,
}

/// What a task of the loop has come to.
struct Ended {
    /// Whose call it was, if it was one.
    vendor_id: Option<VendorId>,
    /// How many deliveries it had in hand.
    count: usize,
    /// Under which [`Parts::generation`] they came.
    generation: u64,
    step: Step,
}

/// Consumes until the shutdown, then hands back what was not begun.
pub async fn run_until_stopped(
    door: Door,
    mut consumer: Consumer,
    states: PushStates,
    limits: Limits,
) {
    let mut parts = Parts {
        lanes: Lanes::new(door.context.vendor_ids(), limits.clone(), states),
        vendor: Vendor::new(door.clone(), limits.updates_per_call_max.clone()),
        door,
        tasks: JoinSet::new(),
        generation: 0,
    };
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        parts.start();
        tokio::select! {
            biased;
            () = parts.door.shutdown.begun() => break,
            Some(ended) = parts.tasks.join_next() => {
                // A task ends without a result only by a panic. Its messages would stay held, so this ends too, and
                // with it the process.
                let Ok(ended) = ended else { break };
                if !parts.finish(ended, &mut consumer).await {
                    break;
                }
            }
            batch = consumer.next_batch(usize::from(limits.prefetch), usize::MAX, None) => match batch {
                Some(batch) => parts.route(batch),
                None => break,
            },
            _ = look.tick() => {}
        }
    }
    consumer.stop().await;
    // What is on its way to a vendor is finished; what only waits in a lane goes back to the broker.
    let finishing = async {
        while let Some(ended) = parts.tasks.join_next().await {
            let Ok(ended) = ended else { continue };
            consumer.ack(ended.step.done).await;
            parts.forget_suspects(&ended.step.given_up).await;
        }
    };
    if tokio::time::timeout(limits.shutdown_deadline, finishing)
        .await
        .is_err()
    {
        tracing::warn!(
            "a vendor has not answered within the deadline; its message goes back to the broker"
        );
    }
    consumer.close(limits.shutdown_deadline).await;
}

/// What the loop works with.
struct Parts {
    door: Door,
    lanes: Lanes,
    vendor: Vendor,
    /// Calls, and copies to other queues. Each delivery that is held is in a lane or in one of these.
    tasks: JoinSet<Ended>,
    /// Grows whenever everything was handed back: what came before is not ours any more.
    generation: u64,
}

impl Parts {
    /// Sends each delivery to its vendor's lane. What no lane is for goes to the dead-letter queue.
    fn route(&mut self, batch: Vec<Delivery>) {
        let arrived = Instant::now();
        for delivery in batch {
            let message = match messages::decode_updates(&delivery.body) {
                Ok(message) => message,
                Err(error) => {
                    self.refuse(delivery, error.to_string(), None);
                    continue;
                }
            };
            let one = Addressed {
                delivery,
                updates: message.updates.iter().map(|update| update.id).collect(),
                arrived,
            };
            if let Some(one) = self.lanes.add(&message.vendor_id, one) {
                let error = format!("no vendor {} is configured", message.vendor_id);
                self.refuse(one.delivery, error, Some(one.updates));
            }
        }
    }

    fn refuse(&mut self, delivery: Delivery, error: String, updates: Option<Vec<UpdateId>>) {
        let door = self.door.clone();
        self.spawn(None, 1, async move {
            let verdict = Verdict::DeadLetter {
                code: retry::INVALID_MESSAGE,
                error,
                cause: None,
            };
            let subject = updates
                .as_deref()
                .map_or(Subject::Unreadable, Subject::Updates);
            let until = Instant::now() + HOLD_MAX;
            let mut step = Step::default();
            if door
                .carry_out(Queue::VendorSync, &delivery, &subject, &verdict, until)
                .await
            {
                step.done.push(delivery.tag);
            } else {
                step.given_up.push(delivery);
            }
            step
        });
    }

    /// Begins the calls that may begin, and puts off what must not be kept.
    fn start(&mut self) {
        for started in self.lanes.start(Instant::now()) {
            match started {
                Started::Call(vendor_id, batch) => {
                    let vendor = self.vendor.clone();
                    let whose = vendor_id.clone();
                    self.spawn(Some(whose), batch.len(), async move {
                        vendor.step(&vendor_id, batch).await
                    });
                }
                Started::Look(vendor_id) => {
                    let vendor = self.vendor.clone();
                    let whose = vendor_id.clone();
                    let look = async move { vendor.look(&vendor_id).await };
                    self.spawn(Some(whose), 0, look);
                }
                Started::PutOff(waiting) => {
                    let vendor = self.vendor.clone();
                    self.spawn(
                        None,
                        waiting.len(),
                        async move { vendor.put_off(waiting).await },
                    );
                }
            }
        }
    }

    fn spawn(
        &mut self,
        vendor_id: Option<VendorId>,
        count: usize,
        step: impl Future<Output = Step> + Send + 'static,
    ) {
        if vendor_id.is_none() {
            self.lanes.copying += count;
        }
        let generation = self.generation;
        self.tasks.spawn(async move {
            Ended {
                vendor_id,
                count,
                generation,
                step: step.await,
            }
        });
    }

    /// Takes in what a task has come to. Returns whether to go on.
    async fn finish(&mut self, ended: Ended, consumer: &mut Consumer) -> bool {
        let given_up = self.take_in(ended, consumer).await;
        if given_up.is_empty() {
            return true;
        }
        tracing::warn!("a store is away for long; handing the messages back until it works");
        FAULTS.of(Fault::HandedBack).inc();
        consumer.hand_back().await;
        self.generation += 1;
        self.lanes.clear();
        if self.door.wait_for_stores().await == Waited::Stopped {
            return false;
        }
        self.forget_suspects(&given_up).await;
        consumer.resume().await;
        true
    }

    /// Returns what must be handed back.
    async fn take_in(&mut self, ended: Ended, consumer: &Consumer) -> Vec<Delivery> {
        let Ended {
            vendor_id,
            count,
            generation,
            step,
        } = ended;
        let is_ours = generation == self.generation;
        match vendor_id {
            Some(vendor_id) => {
                let unspent = if is_ours { step.unspent } else { Vec::new() };
                self.lanes.ended(&vendor_id, unspent, &step.said);
            }
            None => self.lanes.copying -= count,
        }
        consumer.ack(step.done).await;
        if is_ours {
            return step.given_up;
        }
        // Handed back already, with all the others.
        self.forget_suspects(&step.given_up).await;
        Vec::new()
    }

    async fn forget_suspects(&self, deliveries: &[Delivery]) {
        for delivery in deliveries {
            suspects::end(&self.door, delivery).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::prefetch;

    #[test]
    fn the_broker_is_asked_for_two_messages_for_each_vendor_at_least() {
        assert_eq!(prefetch(512, 3), 512);
        assert_eq!(prefetch(1, 3), 6);
    }
}
