//! The receivers' lanes: what waits in each, whether its receiver may be called, and what it must not keep. No waiting and
//! no I/O here: what is to be done comes out as a value.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::{Addressed, Limits, Notes, Said};
use crate::domain::breaker::{Breaker, Leave, Phase};
use crate::domain::ids::WebhookId;
use crate::metrics::WEBHOOKS;

/// What has waited in a lane for longer is put off. With the longest call and the time that a store may be away, it is
/// far from the 10 minutes for which a message may be held.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What is to be done now.
pub(super) enum Started {
    /// Tell this one.
    Call(Box<Addressed>),
    /// Copy these to a retry queue as they are.
    PutOff(PutOff),
}

/// Messages that come again later.
pub(super) struct PutOff {
    pub(super) messages: Vec<Addressed>,
    /// What their receiver failed with, where it is down; otherwise it is only slow.
    pub(super) down: Option<String>,
}

/// One receiver's messages.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<Addressed>,
    breaker: Breaker,
    /// Calls under way.
    calls: usize,
    last_error: Option<String>,
}

impl Lane {
    fn held(&self) -> usize {
        self.waiting.len() + self.calls
    }

    fn is_idle(&self) -> bool {
        self.held() == 0 && self.breaker == Breaker::default()
    }
}

/// The lanes of all receivers that there is something for.
pub(super) struct Lanes {
    lanes: BTreeMap<WebhookId, Lane>,
    limits: Limits,
    notes: Notes,
    /// Deliveries that are on their way to another queue.
    pub(super) copying: usize,
}

impl Lanes {
    pub(super) fn new(limits: Limits, notes: Notes) -> Self {
        Self {
            lanes: BTreeMap::new(),
            limits,
            notes,
            copying: 0,
        }
    }

    /// Puts a message into its receiver's lane.
    pub(super) fn add(&mut self, one: Addressed) {
        let lane = self.lanes.entry(one.notification.webhook_id).or_default();
        lane.waiting.push_back(one);
    }

    /// What is to be done now.
    pub(super) fn start(&mut self, now: Instant) -> Vec<Started> {
        let mut started = Vec::new();
        let mut slow = Vec::new();
        for (id, lane) in &mut self.lanes {
            // They wait in the order in which they came.
            let late = lane
                .waiting
                .iter()
                .take_while(|one| now >= one.arrived + WAIT_MAX)
                .count();
            if late > 0 {
                self.notes.hold(*id);
                slow.extend(lane.waiting.drain(..late));
            }
            while lane.calls < self.limits.calls_max && !lane.waiting.is_empty() {
                if lane.breaker.leave(now.into_std()) == Leave::Wait {
                    let messages = lane.waiting.drain(..).collect();
                    let down = Some(lane.last_error.clone().unwrap_or_default());
                    started.push(Started::PutOff(PutOff { messages, down }));
                    break;
                }
                lane.calls += 1;
                started.extend(lane.waiting.pop_front().map(Box::new).map(Started::Call));
            }
        }
        self.trim(&mut slow);
        if !slow.is_empty() {
            started.push(Started::PutOff(PutOff {
                messages: slow,
                down: None,
            }));
        }
        self.lanes.retain(|_, lane| !lane.is_idle());
        started
    }

    /// Takes from lanes what is beyond their equal parts, while nothing more can come: a receiver that is slow harms
    /// nobody as long as there is room.
    fn trim(&mut self, slow: &mut Vec<Addressed>) {
        let held: usize = self.lanes.values().map(Lane::held).sum();
        if held + self.copying + slow.len() < usize::from(self.limits.prefetch) {
            return;
        }
        let busy = self.lanes.values().filter(|lane| lane.held() > 0).count();
        // One more, for whoever has nothing here yet.
        let share = (usize::from(self.limits.prefetch) / (busy + 1)).max(1);
        for (id, lane) in &mut self.lanes {
            let excess = lane.held().saturating_sub(share).min(lane.waiting.len());
            if excess > 0 {
                self.notes.hold(*id);
                let kept = lane.waiting.len() - excess;
                slow.extend(lane.waiting.drain(kept..));
            }
        }
    }

    /// A call has ended. `was_failing`: the receiver is said to fail, by whichever process.
    pub(super) fn ended(&mut self, id: WebhookId, said: &Said, was_failing: bool) {
        let lane = self.lanes.entry(id).or_default();
        lane.calls = lane.calls.saturating_sub(1);
        let now = Instant::now().into_std();
        match said {
            Said::Nothing => lane.breaker.unused(now),
            Said::Taken => {
                let was_left_alone = lane.breaker.phase() != Phase::Ok;
                if was_left_alone {
                    tracing::info!(webhook = %id, "the receiver takes messages again");
                }
                if was_failing || was_left_alone {
                    self.notes.answering(id);
                }
                lane.breaker.answered();
                lane.last_error = None;
            }
            Said::Failed { error, retry_after } => {
                lane.last_error = Some(error.clone());
                let was_called = lane.breaker.phase() == Phase::Ok;
                let pause = lane.breaker.failed(now, *retry_after, fastrand::f64());
                if let Some(pause) = pause {
                    let for_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                    tracing::warn!(
                        webhook = %id, error, for_ms,
                        "the receiver fails and is not called for a while; its messages are put off without losing a retry"
                    );
                    if was_called {
                        WEBHOOKS.openings.inc();
                    }
                    self.notes.failing(id, error);
                }
            }
        }
    }

    /// Forgets everything that waits: it was handed back.
    pub(super) fn clear(&mut self) {
        for lane in self.lanes.values_mut() {
            lane.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use uuid::Uuid;

    use super::*;
    use crate::domain::webhooks::Notification;
    use crate::mq::{Delivery, Headers, Tag};

    fn lanes() -> Lanes {
        let limits = Limits {
            prefetch: 20,
            calls_max: 2,
            patience: Duration::from_secs(1),
            shutdown_deadline: Duration::from_secs(1),
        };
        Lanes::new(limits, Notes::default())
    }

    fn id(n: u128) -> WebhookId {
        WebhookId(Uuid::from_u128(n))
    }

    fn fill(lanes: &mut Lanes, n: u128, count: usize, arrived: Instant) {
        for _ in 0..count {
            lanes.add(Addressed {
                delivery: Delivery {
                    tag: Tag::default(),
                    message_id: None,
                    headers: Headers::new(),
                    body: Vec::new(),
                    redeliveries: 0,
                },
                notification: Notification {
                    id: "m".to_owned(),
                    webhook_id: id(n),
                    body: RawValue::NULL.to_owned(),
                },
                arrived,
            });
        }
    }

    /// Calls by receiver, and how many messages were put off: of those that are slow, and of those that are down.
    fn start(lanes: &mut Lanes, now: Instant) -> (Vec<u128>, usize, usize) {
        let (mut calls, mut slow, mut down) = (Vec::new(), 0, 0);
        for started in lanes.start(now) {
            match started {
                Started::Call(one) => calls.push(one.notification.webhook_id.0.as_u128()),
                Started::PutOff(off) if off.down.is_some() => down += off.messages.len(),
                Started::PutOff(off) => slow += off.messages.len(),
            }
        }
        (calls, slow, down)
    }

    fn failed() -> Said {
        Said::Failed {
            error: "it answered 500".to_owned(),
            retry_after: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_has_so_many_calls_at_once_and_one_that_hangs_leaves_room_for_others() {
        let (mut lanes, now) = (lanes(), Instant::now());
        fill(&mut lanes, 1, 15, now);
        assert_eq!(start(&mut lanes, now), (vec![1, 1], 0, 0));
        fill(&mut lanes, 1, 5, now);
        assert_eq!(start(&mut lanes, now), (vec![], 10, 0), "beyond its half");
        assert!(lanes.notes.held().contains(&id(1)), "it is fed no more");
        fill(&mut lanes, 2, 1, now);
        assert_eq!(start(&mut lanes, now), (vec![2], 0, 0));
        lanes.ended(id(1), &Said::Taken, false);
        assert_eq!(start(&mut lanes, now).0, [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_kept_for_a_receiver_that_is_down_and_one_call_shows_whether_it_is_back() {
        let (mut lanes, now) = (lanes(), Instant::now());
        for _ in 0..5 {
            fill(&mut lanes, 1, 1, now);
            assert_eq!(start(&mut lanes, now), (vec![1], 0, 0));
            lanes.ended(id(1), &failed(), false);
        }
        assert_eq!(lanes.notes.is_failing(id(1)), Some(true));
        fill(&mut lanes, 1, 3, now);
        fill(&mut lanes, 2, 1, now);
        assert_eq!(start(&mut lanes, now), (vec![2], 0, 3));
        let later = now + Duration::from_secs(1);
        fill(&mut lanes, 1, 3, later);
        assert_eq!(start(&mut lanes, later), (vec![1], 0, 2), "one at a time");
        lanes.ended(id(1), &Said::Taken, false);
        assert_eq!(lanes.notes.is_failing(id(1)), Some(false));
        fill(&mut lanes, 1, 3, later);
        assert_eq!(start(&mut lanes, later), (vec![1, 1], 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_nothing_is_in_is_forgotten_and_what_waits_for_long_is_put_off() {
        let (mut lanes, now) = (lanes(), Instant::now());
        fill(&mut lanes, 1, 3, now);
        assert_eq!(start(&mut lanes, now).0.len(), 2);
        assert_eq!(start(&mut lanes, now + WAIT_MAX), (vec![], 1, 0));
        for _ in 0..2 {
            lanes.ended(id(1), &Said::Taken, false);
        }
        start(&mut lanes, now + WAIT_MAX);
        assert!(lanes.lanes.is_empty());
    }
}
