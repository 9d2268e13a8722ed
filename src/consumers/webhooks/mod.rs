//! Consumes `webhooks`. Each receiver has a lane of its own, with a few calls at once: one that hangs, fails or is slow
//! keeps its own part of what the broker hands out ahead, and no more. What a lane cannot keep is put off: it goes to a
//! retry queue as it came and costs no retry, and until that is over nothing more is put into the broker for that receiver
//! (`app::webhooks` has the rest of it in the table of events).

mod lanes;
mod notes;

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::Instrument;

use self::lanes::{Lanes, PutOff, Started};
pub use self::notes::Notes;
use super::suspects::{self, Begun, begin_suspect};
use super::{Door, HOLD_MAX, Subject, Waited, Weighed, retry_count};
use crate::app::webhooks::{Teller, Tried};
use crate::app::{Error, traced};
use crate::domain::ids::WebhookId;
use crate::domain::messages::WAITING_SINCE;
use crate::domain::retry::{self, Verdict};
use crate::domain::webhooks::{self, Notification};
use crate::metrics::{FAULTS, Fault};
use crate::mq::{Consumer, Delivery, HeaderValue, Headers, Queue, Tag};
use crate::traces::{Kind, Span};

/// How often lanes are looked at in which nothing happens.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Bounds of this consumer.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Deliveries that are held at once, over all lanes.
    pub prefetch: u16,
    /// Calls of one receiver at once.
    pub calls_max: usize,
    /// For how long a message is put off whose receiver is down.
    pub patience: Duration,
    /// For ending cleanly.
    pub shutdown_deadline: Duration,
}

/// A delivery, and what it says.
struct Addressed {
    delivery: Delivery,
    notification: Notification,
    arrived: Instant,
}

/// What a call has told of the receiver's own state.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    /// There was no call, or nobody to be called.
    Nothing,
    /// It takes what it is told.
    Taken,
    /// It does not.
    Failed {
        error: String,
        retry_after: Option<Duration>,
    },
}

/// What a step has come to.
struct Step {
    /// What may be acknowledged.
    done: Vec<Tag>,
    /// What is the broker's still, since a store is away.
    given_up: Vec<Delivery>,
    said: Said,
}

/// What a task of the loop has come to.
struct Ended {
    /// Whose call it was, if it was one.
    webhook_id: Option<WebhookId>,
    /// How many deliveries it had in hand.
    count: usize,
    /// Under which [`Parts::generation`] they came.
    generation: u64,
    step: Step,
}

/// The retry queue of a message with so many retries.
pub(super) fn retry_queue(verdict: &Verdict) -> Queue {
    let number = match verdict {
        Verdict::Retry { retry_count } => usize::try_from(*retry_count).unwrap_or(usize::MAX),
        Verdict::Ack | Verdict::DeadLetter { .. } => 1,
    };
    let last = Queue::WEBHOOKS_RETRY.len();
    Queue::WEBHOOKS_RETRY[number.clamp(1, last) - 1]
}

/// The header that says since when a message has not been taken; from now on, where it has none.
pub(super) fn waiting_since(delivery: &Delivery) -> Headers {
    let since = read_waiting_since(delivery).unwrap_or_else(Utc::now);
    let since = HeaderValue::Int(since.timestamp_millis());
    Headers::from([(WAITING_SINCE.to_owned(), since)])
}

fn read_waiting_since(delivery: &Delivery) -> Option<DateTime<Utc>> {
    match delivery.headers.get(WAITING_SINCE)? {
        HeaderValue::Int(ms) => DateTime::from_timestamp_millis(*ms),
        HeaderValue::Text(_) => None,
    }
}

/// Consumes until the shutdown, then hands back what was not begun.
pub async fn run_until_stopped(
    door: Door,
    mut consumer: Consumer,
    teller: Teller,
    notes: Notes,
    limits: Limits,
) {
    let mut parts = Parts {
        lanes: Lanes::new(limits.clone(), notes),
        receivers: Receivers {
            door: door.clone(),
            teller,
            patience: limits.patience,
        },
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
    // What is on its way to a receiver is finished; what only waits in a lane goes back to the broker.
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
            "a receiver of webhooks has not answered within the deadline; its message goes back to the broker"
        );
    }
    consumer.close(limits.shutdown_deadline).await;
}

/// What the loop works with.
struct Parts {
    door: Door,
    lanes: Lanes,
    receivers: Receivers,
    /// Calls, and copies to other queues. Each delivery that is held is in a lane or in one of these.
    tasks: JoinSet<Ended>,
    /// Grows whenever everything was handed back: what came before is not ours any more.
    generation: u64,
}

impl Parts {
    /// Sends each delivery to its receiver's lane. What cannot be read goes to the dead-letter queue.
    fn route(&mut self, batch: Vec<Delivery>) {
        let arrived = Instant::now();
        for delivery in batch {
            let read = Notification::decode(&delivery.body, delivery.message_id.as_deref());
            match read {
                Ok(notification) => self.lanes.add(Addressed {
                    delivery,
                    notification,
                    arrived,
                }),
                Err(error) => {
                    let receivers = self.receivers.clone();
                    let verdict = Verdict::DeadLetter {
                        code: retry::INVALID_MESSAGE,
                        error: error.to_string(),
                        cause: None,
                    };
                    self.spawn(None, 1, async move {
                        let until = Instant::now() + HOLD_MAX;
                        receivers
                            .finish(delivery, &verdict, until, Said::Nothing)
                            .await
                    });
                }
            }
        }
    }

    /// Begins the calls that may begin, and puts off what must not be kept.
    fn start(&mut self) {
        for started in self.lanes.start(Instant::now()) {
            let receivers = self.receivers.clone();
            match started {
                Started::Call(one) => {
                    let whose = one.notification.webhook_id;
                    self.spawn(Some(whose), 1, async move { receivers.step(*one).await });
                }
                Started::PutOff(waiting) => {
                    self.spawn(None, waiting.messages.len(), async move {
                        receivers.put_off(waiting).await
                    });
                }
            }
        }
    }

    fn spawn(
        &mut self,
        webhook_id: Option<WebhookId>,
        count: usize,
        step: impl Future<Output = Step> + Send + 'static,
    ) {
        if webhook_id.is_none() {
            self.lanes.copying += count;
        }
        let generation = self.generation;
        self.tasks.spawn(async move {
            Ended {
                webhook_id,
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
        tracing::warn!("a store is away for long; handing the webhooks back until it works");
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
        match ended.webhook_id {
            Some(id) => {
                let was_failing = self.receivers.teller.is_failing(id);
                self.lanes.ended(id, &ended.step.said, was_failing);
            }
            None => self.lanes.copying -= ended.count,
        }
        consumer.ack(ended.step.done).await;
        if ended.generation == self.generation {
            return ended.step.given_up;
        }
        // Handed back already, with all the others.
        self.forget_suspects(&ended.step.given_up).await;
        Vec::new()
    }

    async fn forget_suspects(&self, deliveries: &[Delivery]) {
        for delivery in deliveries {
            suspects::end(&self.door, delivery).await;
        }
    }
}

/// Tells receivers, and copies what they have not taken. Clones share it.
#[derive(Clone)]
struct Receivers {
    door: Door,
    teller: Teller,
    patience: Duration,
}

impl Receivers {
    /// Tells one message.
    async fn step(&self, one: Addressed) -> Step {
        let until = Instant::now() + HOLD_MAX;
        let Addressed {
            delivery,
            notification,
            ..
        } = one;
        if delivery.redeliveries > 0 {
            match begin_suspect(&self.door, &delivery, until).await {
                Begun::Yes => {}
                Begun::TooOften(verdict) => {
                    return self.finish(delivery, &verdict, until, Said::Nothing).await;
                }
                Begun::No => return Step::given_up(delivery),
            }
        }
        let (verdict, said) = match self.try_until(&delivery, &notification, until).await {
            Ok(Tried::Done { is_taken: true }) => (Verdict::Ack, Said::Taken),
            Ok(Tried::Done { is_taken: false }) => (Verdict::Ack, Said::Nothing),
            Ok(Tried::Failed { error, retry_after }) => {
                tracing::info!(
                    webhook = %notification.webhook_id,
                    message_id = notification.id,
                    error,
                    "the receiver has not taken it"
                );
                let retries = retry_count(&delivery);
                let verdict = retry::after_transient(
                    retries,
                    self.door.retries_max,
                    &error,
                    retry::RECEIVER_FAILED.to_owned(),
                );
                (verdict, Said::Failed { error, retry_after })
            }
            Err(None) => return Step::given_up(delivery),
            Err(Some(error)) => (self.door.judge(&delivery, &error), Said::Nothing),
        };
        self.finish(delivery, &verdict, until, said).await
    }

    /// Tries, also while our own database is away for a moment: that is no attempt. Nothing where it is away for long.
    async fn try_until(
        &self,
        delivery: &Delivery,
        notification: &Notification,
        until: Instant,
    ) -> Result<Tried, Option<Error>> {
        let causes = traced::contexts_of(std::iter::once(&delivery.headers));
        let mut rounds = 0;
        loop {
            let mut span = Span::begin("tell a receiver", Kind::Consumer, &causes);
            span.note("stockctl.webhook.id", notification.webhook_id);
            let telling = span.around(self.teller.tell(notification));
            let error = match telling.instrument(span.for_log()).await {
                Ok(tried) => return Ok(tried),
                Err(error) => error,
            };
            span.fail(&error);
            drop(span);
            match self.door.weigh(&error, 1, &mut rounds, until).await {
                Weighed::Again => {}
                Weighed::GiveUp => return Err(None),
                Weighed::ItsOwn => return Err(Some(error)),
            }
        }
    }

    async fn finish(
        &self,
        delivery: Delivery,
        verdict: &Verdict,
        until: Instant,
        said: Said,
    ) -> Step {
        let is_done = self
            .door
            .carry_out(Queue::Webhooks, &delivery, &Subject::Event, verdict, until)
            .await;
        if !is_done {
            return Step {
                said,
                ..Step::given_up(delivery)
            };
        }
        suspects::end(&self.door, &delivery).await;
        Step {
            done: vec![delivery.tag],
            given_up: Vec::new(),
            said,
        }
    }

    /// Copies messages to a retry queue as they came: that costs them no retry. What has been put off for as long as all
    /// retries take goes to the dead-letter queue.
    async fn put_off(&self, waiting: PutOff) -> Step {
        let until = Instant::now() + HOLD_MAX;
        let now = Utc::now();
        let mut step = Step::nothing();
        let mut again = Vec::with_capacity(waiting.messages.len());
        for one in waiting.messages {
            let delivery = one.delivery;
            let verdict = match &waiting.down {
                Some(error) => webhooks::put_off(
                    retry_count(&delivery),
                    read_waiting_since(&delivery),
                    now,
                    self.patience,
                    error,
                ),
                None => retry::put_off(retry_count(&delivery)),
            };
            if matches!(verdict, Verdict::Retry { .. }) {
                again.push(delivery);
            } else {
                let ended = self.finish(delivery, &verdict, until, Said::Nothing).await;
                step.done.extend(ended.done);
                step.given_up.extend(ended.given_up);
            }
        }
        // One whose receiver is down needs not come back within seconds.
        let queue = match waiting.down {
            Some(_) => Queue::WebhooksRetry2,
            None => Queue::WebhooksRetry1,
        };
        let (copied, left) = self.door.put_off(queue, again, until).await;
        for delivery in copied {
            suspects::end(&self.door, &delivery).await;
            step.done.push(delivery.tag);
        }
        step.given_up.extend(left);
        step
    }
}

impl Step {
    fn nothing() -> Self {
        Self {
            done: Vec::new(),
            given_up: Vec::new(),
            said: Said::Nothing,
        }
    }

    fn given_up(delivery: Delivery) -> Self {
        Self {
            given_up: vec![delivery],
            ..Self::nothing()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_retry_waits_in_a_queue_of_its_own() {
        let queues =
            [1, 2, 3, 4, 9].map(|retry_count| retry_queue(&Verdict::Retry { retry_count }));
        assert_eq!(queues[..4], Queue::WEBHOOKS_RETRY);
        assert_eq!(queues[4], Queue::WebhooksRetry4);
    }
}
