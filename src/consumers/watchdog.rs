//! Notices a consumer that is alive and no longer consumes: messages wait, both stores work, and nothing is finished.
//! Whatever the reason is, another process may not have it, so this one says so and ends.
//!
//! Not taken for that: a store that is away or blocked, and a vendor that is down (what is put off is finished, too).
//! A batch or a redelivered message in hand takes less than the time allowed. Time is counted by looks that were made,
//! so a process that was stopped for an hour wakes up with as much patience as it had.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::app::Context;
use crate::db;
use crate::metrics::{FAULTS, Fault};
use crate::mq::{Beat, Link, Publisher, Pulse, Queue};
use crate::shutdown::Shutdown;
use crate::supervisor::Supervisor;

/// How often is looked, at most; each look writes one row a consumer.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// The first look comes sooner, so that `/readyz` soon says that somebody consumes.
const FIRST_LOOK_AFTER: Duration = Duration::from_secs(1);
/// A store without an answer for this long does not work.
const PROBE_DEADLINE: Duration = Duration::from_secs(3);
/// Saying goodbye must not keep a process from its end.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(1);
/// A look at both consumers takes 40 s where PostgreSQL is open and silent, and nothing elsewhere. Who takes longer is
/// stuck itself.
const LOOK_MAX: Duration = Duration::from_secs(180);

/// A consumer that no longer consumes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the consumer of {queue} has finished nothing for {} s although {waiting} messages wait and both stores work; this process ends, so that its supervisor starts it anew",
    .stalled_for.as_secs()
)]
pub struct Stalled {
    /// Its queue.
    pub queue: &'static str,
    /// How many messages wait.
    pub waiting: u32,
    /// For how long nothing was finished.
    pub stalled_for: Duration,
}

/// How fast the messages of one queue go.
#[derive(Debug)]
struct Pace {
    queue: Queue,
    counted: u64,
    /// Whether somebody was told that they go.
    is_told: bool,
}

impl Pace {
    fn of(queue: Queue) -> Self {
        Self {
            queue,
            counted: 0,
            is_told: false,
        }
    }

    /// Takes in how many there were in all, and returns how many in a second that are since the last look; nothing while
    /// nothing goes, once that was told.
    fn look(&mut self, counted: u64, since: Duration) -> Option<f64> {
        let new = counted.saturating_sub(self.counted);
        self.counted = counted;
        let was_told = std::mem::replace(&mut self.is_told, new > 0);
        (new > 0 || was_told).then(|| new as f64 / since.as_secs_f64().max(f64::EPSILON))
    }
}

/// What one consumer was seen to do.
#[derive(Debug, Default)]
struct Progress {
    finished: u64,
    stalled_for: Duration,
}

impl Progress {
    /// Takes in a look. Returns whether, as far as the broker goes, there is something to do and none of it is done.
    fn is_suspicious(&mut self, beat: &Beat) -> bool {
        let is_moving = beat.finished != self.finished;
        self.finished = beat.finished;
        !is_moving && beat.link == Link::Up && beat.waiting.is_some_and(|waiting| waiting > 0)
    }

    fn note(&mut self, is_stalled: bool, interval: Duration) {
        self.stalled_for = if is_stalled {
            self.stalled_for + interval
        } else {
            Duration::ZERO
        };
    }
}

/// Watches consumers.
pub struct Watchdog {
    context: Context,
    publisher: Publisher,
    consumers: Vec<(Queue, Pulse, Progress)>,
    paces: Vec<Pace>,
    looked_at: Instant,
    stalled_after: Duration,
    instance: Uuid,
}

impl Watchdog {
    /// Prepares to watch; `publisher` is what copies of messages leave by.
    #[must_use]
    pub fn new(
        context: Context,
        publisher: Publisher,
        consumers: Vec<(Queue, Pulse)>,
        stalled_after: Duration,
    ) -> Self {
        let queues = consumers.iter().map(|(queue, _)| *queue);
        let paces = queues
            .flat_map(|queue| std::iter::once(queue).chain(queue.beside().iter().copied()))
            .map(Pace::of)
            .collect();
        let consumers = consumers
            .into_iter()
            .map(|(queue, pulse)| (queue, pulse, Progress::default()))
            .collect();
        Self {
            context,
            publisher,
            consumers,
            paces,
            looked_at: Instant::now(),
            stalled_after,
            instance: Uuid::new_v4(),
        }
    }

    /// Watches until the shutdown, and lets others see who consumes.
    ///
    /// # Errors
    /// A consumer is stalled.
    pub async fn run_until_stopped(
        mut self,
        shutdown: Shutdown,
        supervisor: &Supervisor,
    ) -> Result<(), Stalled> {
        let watching = supervisor.part("the watch over the consumers", LOOK_MAX);
        let interval = LOOK_INTERVAL.min(self.stalled_after / 4);
        let mut wait = FIRST_LOOK_AFTER.min(interval);
        let ended = loop {
            tokio::select! {
                () = shutdown.begun() => break Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
            let looked = self.look(wait).await;
            self.tell_paces().await;
            watching.moved();
            wait = interval;
            if let Some(stalled) = looked {
                tracing::error!("{stalled}");
                FAULTS.of(Fault::ConsumerStalled).inc();
                break Err(stalled);
            }
        };
        let goodbye = self.context.with_connection(async |connection| {
            db::consumers::forget(connection, self.instance).await?;
            Ok(db::queue_rates::forget(connection, self.instance).await?)
        });
        // Otherwise it is seen by its silence.
        let _ = tokio::time::timeout(GOODBYE_DEADLINE, goodbye).await;
        ended
    }

    async fn look(&mut self, interval: Duration) -> Option<Stalled> {
        let copies_leave = *self.publisher.link().borrow() == Link::Up;
        let mut stalled = None;
        for (queue, pulse, progress) in &mut self.consumers {
            let beat = pulse.beat();
            let is_stalled = progress.is_suspicious(&beat)
                && copies_leave
                && self.context.store_works(PROBE_DEADLINE).await;
            progress.note(is_stalled, interval);
            let waiting = beat.waiting.unwrap_or(0);
            if is_stalled && progress.stalled_for == interval {
                tracing::debug!(
                    queue = queue.base_name(),
                    waiting,
                    "nothing was finished since the last look"
                );
            }
            if progress.stalled_for >= self.stalled_after {
                stalled = Some(Stalled {
                    queue: queue.base_name(),
                    waiting,
                    stalled_for: progress.stalled_for,
                });
            }
            // Who is not connected consumes nothing, and is not counted.
            if beat.link == Link::Up {
                let stalled_for = is_stalled.then_some(progress.stalled_for);
                let noted = self
                    .context
                    .with_connection(async |connection| {
                        Ok(db::consumers::note(
                            connection,
                            self.instance,
                            queue.base_name(),
                            stalled_for,
                        )
                        .await?)
                    })
                    .await;
                if let Err(error) = noted {
                    tracing::debug!(%error, "could not say that this process consumes; trying again");
                }
            }
        }
        stalled
    }

    /// Lets others see how fast messages go.
    async fn tell_paces(&mut self) {
        let since = std::mem::replace(&mut self.looked_at, Instant::now()).elapsed();
        let mut rates = Vec::new();
        for pace in &mut self.paces {
            let consumed = self
                .consumers
                .iter()
                .find(|(queue, ..)| *queue == pace.queue);
            let counted = match consumed {
                Some((_, pulse, _)) => pulse.beat().finished,
                None => self.publisher.confirmed(pace.queue),
            };
            rates.extend(
                pace.look(counted, since)
                    .map(|rate| (pace.queue.base_name(), rate)),
            );
        }
        if rates.is_empty() {
            return;
        }
        let told = self.context.with_connection(async |connection| {
            Ok(db::queue_rates::note(connection, self.instance, &rates).await?)
        });
        if let Err(error) = told.await {
            tracing::debug!(%error, "could not say how fast messages go; the next look will");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_secs(5);

    fn beat(finished: u64, waiting: Option<u32>, link: Link) -> Beat {
        Beat {
            finished,
            waiting,
            link,
        }
    }

    #[test]
    fn only_a_consumer_that_finishes_nothing_of_what_waits_is_suspicious() {
        let mut progress = Progress::default();
        assert!(progress.is_suspicious(&beat(0, Some(1), Link::Up)));
        assert!(
            !progress.is_suspicious(&beat(1, Some(1), Link::Up)),
            "it moves"
        );
        assert!(progress.is_suspicious(&beat(1, Some(1), Link::Up)));
        assert!(!progress.is_suspicious(&beat(1, Some(0), Link::Up)), "idle");
        assert!(
            !progress.is_suspicious(&beat(1, None, Link::Up)),
            "not known"
        );
        let away = Link::Connecting { error: None };
        assert!(!progress.is_suspicious(&beat(1, Some(1), away)));
    }

    #[test]
    fn a_pace_is_told_while_messages_go_and_once_when_they_do_not() {
        let mut pace = Pace::of(Queue::Orders);
        let told = [0, 10, 15, 15, 15, 16].map(|counted| pace.look(counted, TICK));
        assert_eq!(
            told,
            [None, Some(2.0), Some(1.0), Some(0.0), None, Some(0.2)]
        );
    }

    #[test]
    fn time_is_counted_by_looks_and_begins_anew_with_any_excuse() {
        let mut progress = Progress::default();
        for _ in 0..3 {
            progress.note(true, TICK);
        }
        assert_eq!(progress.stalled_for, 3 * TICK);
        progress.note(false, TICK);
        assert_eq!(progress.stalled_for, Duration::ZERO);
    }
}
