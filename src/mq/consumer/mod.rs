//! Consuming one queue: the async side. It shares a small record with the owner thread, so that handing
//! back, stopping and reading are right at once, whatever that thread is waiting for.

mod held;
mod session;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub(super) use session::until_cancelled;

use crossbeam_channel::Sender;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout, timeout_at},
};

use super::{
    link::Link,
    message::{Delivery, Tag},
    queues::{Queue, Settings},
};

/// How long handing back and stopping wait for the broker's answer. What they promise to the caller holds
/// without it, so this only keeps a silent broker from holding the caller up.
const SETTLE_DEADLINE: Duration = Duration::from_secs(5);

/// A consumer of one queue, with a connection and a thread of its own. Dropping it closes both.
///
/// A message that was delivered before may be one that crashes its consumer, and every crash counts
/// against all messages held. So such a message is only ever given out alone, while nothing else is
/// held, and consuming begins with one message at a time until a fresh one comes.
pub struct Consumer {
    shared: Arc<Shared>,
    wake: Sender<()>,
    link: watch::Receiver<Link>,
    reached: watch::Receiver<Wanted>,
    /// More than so many cannot wait here.
    prefetch: usize,
}

/// What the user wants the consumer to do, in the order in which it can only end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    /// Hold nothing and consume nothing, until told otherwise.
    HandedBack,
    Consuming,
    /// Nothing new, but what is held may still be worked on.
    Stopped,
    Closed,
}

struct Shared {
    record: Mutex<Record>,
    /// Wakes whoever waits for deliveries.
    arrived: Notify,
}

struct Record {
    wanted: Wanted,
    /// The number of the channel that the broker's tags belong to.
    epoch: u64,
    /// Given out to nobody yet. The prefetch bounds it: the broker sends no more unacknowledged.
    ready: VecDeque<Delivery>,
    /// Redelivered messages that the thread keeps until each can be given out alone.
    waiting_alone: usize,
    /// To be acknowledged by the thread; part of what is held, so just as bounded.
    acks: Vec<u64>,
    /// Everything held goes back, whatever is wanted by the time the thread sees it.
    must_let_go: bool,
    /// Nothing new can come.
    is_at_end: bool,
    /// Deliveries that the user was done with, since the consumer was started.
    finished: u64,
    /// How many messages wait at the broker, undelivered, as far as that is known.
    waiting: Option<u32>,
}

/// What a consumer does, for somebody else to watch.
#[derive(Clone)]
pub struct Pulse {
    shared: Arc<Shared>,
    link: watch::Receiver<Link>,
}

/// A consumer at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Beat {
    /// Deliveries acknowledged since it was started.
    pub finished: u64,
    /// How many messages wait at the broker; asked every few seconds while it consumes.
    pub waiting: Option<u32>,
    /// The state of its connection.
    pub link: Link,
}

impl Pulse {
    /// The consumer at this moment.
    #[must_use]
    pub fn beat(&self) -> Beat {
        let link = self.link.borrow().clone();
        let record = self.shared.lock();
        Beat {
            finished: record.finished,
            waiting: record.waiting,
            link,
        }
    }
}

impl Consumer {
    /// Starts consuming in the background. At most `prefetch` messages are held unacknowledged (one more
    /// for a moment, when the first fresh message opens the way).
    pub fn start(settings: Settings, queue: Queue, prefetch: u16) -> Consumer {
        let shared = Arc::new(Shared {
            record: Mutex::new(Record {
                wanted: Wanted::Consuming,
                epoch: 0,
                ready: VecDeque::new(),
                waiting_alone: 0,
                acks: Vec::new(),
                must_let_go: false,
                is_at_end: false,
                finished: 0,
                waiting: None,
            }),
            arrived: Notify::new(),
        });
        let (wake, woken) = crossbeam_channel::bounded(1);
        let (link_out, link) = watch::channel(Link::Connecting { error: None });
        let (reached_out, reached) = watch::channel(Wanted::Consuming);
        let failed = link_out.clone();
        let owner = session::Owner::new(
            settings,
            queue,
            prefetch,
            Arc::clone(&shared),
            woken,
            reached_out,
            link_out,
        );
        if let Err(error) = session::spawn(owner, queue) {
            failed.send_replace(Link::Connecting {
                error: Some(format!(
                    "the thread for RabbitMQ cannot be started: {error}"
                )),
            });
        }
        Consumer {
            shared,
            wake,
            link,
            reached,
            prefetch: usize::from(prefetch),
        }
    }

    /// Waits for a delivery, then takes whatever else waits, up to `max`, and up to `bytes_max` of bodies unless one
    /// alone is larger. With `gather`, deliveries are left to gather until then, or until there are as many. A message
    /// that was delivered before comes alone. `None` once stopped and drained. Nothing is lost when the future is dropped.
    pub async fn next_batch(
        &mut self,
        max: usize,
        bytes_max: usize,
        gather: Option<Instant>,
    ) -> Option<Vec<Delivery>> {
        if let Some(until) = gather {
            let max = max.min(self.prefetch);
            let gathered = async {
                while !self.shared.lock().is_worth_taking(max, bytes_max) {
                    self.shared.arrived.notified().await;
                }
            };
            let _ = timeout_at(until, gathered).await;
        }
        loop {
            {
                let mut record = self.shared.lock();
                let batch = record.take(max, bytes_max);
                if !batch.is_empty() {
                    return Some(batch);
                }
                if record.is_at_end && record.waiting_alone == 0 {
                    return None;
                }
            }
            self.shared.arrived.notified().await;
        }
    }

    /// Acknowledges. Tags of an earlier channel are ignored: the broker has those messages back already.
    pub async fn ack(&self, tags: Vec<Tag>) {
        let mut record = self.shared.lock();
        let epoch = record.epoch;
        // Also those that are ignored: who watches asks whether work gets done.
        record.finished += tags.len() as u64;
        record.acks.extend(
            tags.iter()
                .filter(|tag| tag.epoch == epoch)
                .map(|tag| tag.number),
        );
        drop(record);
        self.wake();
    }

    /// Gives everything held back to the broker, also what was given out and not acknowledged, and
    /// consumes nothing until `resume`. The broker counts it as a delivery of each message held.
    ///
    /// After `stop` there is nothing to resume, so the consumer ends.
    pub async fn hand_back(&mut self) {
        let wanted = {
            let mut record = self.shared.lock();
            record.ready.clear();
            record.must_let_go = true;
            record.wanted = if record.wanted >= Wanted::Stopped {
                Wanted::Closed
            } else {
                Wanted::HandedBack
            };
            record.wanted
        };
        self.wake();
        self.wait_until(wanted, SETTLE_DEADLINE).await;
    }

    /// Consumes again after `hand_back`.
    pub async fn resume(&mut self) {
        {
            let mut record = self.shared.lock();
            if record.wanted == Wanted::HandedBack {
                record.wanted = Wanted::Consuming;
            }
        }
        self.wake();
    }

    /// Lets nothing new arrive. What has arrived can still be taken and acknowledged; what is not goes
    /// back to the broker with `close`.
    pub async fn stop(&mut self) {
        self.want(Wanted::Stopped);
        if !self.is_up() {
            // Without a connection nothing is held, and the thread may be busy connecting.
            self.shared.lock().is_at_end = true;
        }
        self.wait_until(Wanted::Stopped, SETTLE_DEADLINE).await;
    }

    /// Sends the acknowledgements that are due, gives back everything else, and closes the connection.
    pub async fn close(mut self, deadline: Duration) {
        self.want(Wanted::Closed);
        // The thread's end is what counts: its side of the channel is gone then.
        let _ = timeout(deadline, async {
            while self.reached.changed().await.is_ok() {}
        })
        .await;
    }

    /// The state of the connection.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// For somebody who watches whether it makes progress.
    pub fn pulse(&self) -> Pulse {
        Pulse {
            shared: Arc::clone(&self.shared),
            link: self.link.clone(),
        }
    }

    fn want(&self, wanted: Wanted) {
        {
            let mut record = self.shared.lock();
            record.wanted = record.wanted.max(wanted);
        }
        self.wake();
    }

    fn wake(&self) {
        // One that is full means that the thread is being woken already.
        let _ = self.wake.try_send(());
    }

    fn is_up(&self) -> bool {
        *self.link.borrow() == Link::Up
    }

    async fn wait_until(&mut self, wanted: Wanted, deadline: Duration) {
        if !self.is_up() {
            return;
        }
        let is_reached = |reached: &Wanted| *reached == wanted || *reached == Wanted::Closed;
        let _ = timeout(deadline, self.reached.wait_for(is_reached)).await;
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.want(Wanted::Closed);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    /// The deliveries that may be worked on together.
    fn take(&mut self, max: usize, bytes_max: usize) -> Vec<Delivery> {
        let mut bytes = 0;
        let fresh = self.ready.iter().take_while(|delivery| {
            bytes += delivery.body.len();
            delivery.redeliveries == 0 && bytes <= bytes_max
        });
        let count = fresh.take(max.max(1)).count();
        // None fresh in front: the one there, if any, goes alone.
        let count = count.max(1).min(self.ready.len());
        self.ready.drain(..count).collect()
    }

    /// Whether waiting for more would not make a larger batch.
    fn is_worth_taking(&self, max: usize, bytes_max: usize) -> bool {
        let mut bytes = 0;
        let fresh = self.ready.iter().take(max).take_while(|delivery| {
            bytes += delivery.body.len();
            delivery.redeliveries == 0
        });
        let fresh = fresh.count();
        self.is_at_end || fresh >= max || bytes >= bytes_max || fresh < self.ready.len()
    }

    /// The channel is gone, and with it everything held.
    fn start_epoch(&mut self) {
        self.epoch += 1;
        self.ready.clear();
        self.waiting_alone = 0;
        self.acks.clear();
        self.must_let_go = false;
        self.waiting = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mq::Headers;

    fn record(redeliveries: &[u32]) -> Record {
        let ready = redeliveries
            .iter()
            .zip(1..)
            .map(|(&redeliveries, number)| Delivery {
                tag: Tag { epoch: 0, number },
                message_id: None,
                headers: Headers::new(),
                body: Vec::new(),
                redeliveries,
            })
            .collect();
        Record {
            wanted: Wanted::Consuming,
            epoch: 0,
            ready,
            waiting_alone: 0,
            acks: Vec::new(),
            must_let_go: false,
            is_at_end: false,
            finished: 0,
            waiting: None,
        }
    }

    #[test]
    fn a_batch_never_mixes_a_redelivered_message_with_another() {
        let mut record = record(&[0, 0, 1, 2, 0]);
        let sizes: Vec<_> = std::iter::repeat_with(|| record.take(10, usize::MAX).len())
            .take(5)
            .collect();
        assert_eq!(sizes, [2, 1, 1, 1, 0]);
    }

    #[test]
    fn what_gathers_is_taken_when_it_would_not_grow() {
        let is_worth = |redeliveries: &[u32], max| record(redeliveries).is_worth_taking(max, 1);
        assert!(!is_worth(&[], 2));
        assert!(!is_worth(&[0], 2));
        assert!(is_worth(&[0, 0], 2), "as many as are asked for");
        assert!(is_worth(&[0, 1], 9), "the next one comes alone");
        assert!(is_worth(&[1], 9), "and so does this");
        let mut at_end = record(&[0]);
        at_end.is_at_end = true;
        assert!(at_end.is_worth_taking(9, 1));
        let mut large = record(&[0, 0]);
        large.ready[0].body = vec![0; 100];
        assert!(large.is_worth_taking(9, 100));
        assert!(!large.is_worth_taking(9, 101));
    }

    #[test]
    fn a_batch_is_bounded() {
        let mut record = record(&[0; 5]);
        assert_eq!(record.take(3, usize::MAX).len(), 3);
        assert_eq!(record.take(0, usize::MAX).len(), 1);
    }
}
