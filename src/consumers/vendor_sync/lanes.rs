//! The vendors' lanes: what waits in each, whether its vendor may be called, and what it must not keep. No waiting and
//! no I/O here: what is to be done comes out as a value.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::step::Said;
use super::{Addressed, Limits};
use crate::consumers::push_states::PushStates;
use crate::domain::breaker::{Breaker, Leave, Phase};
use crate::domain::ids::VendorId;
use crate::metrics::VENDORS;

/// A vendor whose call has taken longer is slow: it keeps its own part of what is held, and no more.
const SLOW_AFTER: Duration = Duration::from_millis(200);
/// What has waited in a lane for longer is put off. With the longest call and the time that a store may be away, it is
/// far from the 10 minutes for which a message may be held.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// A vendor is looked for once its lane was empty for this long: messages that come back from the retry queue meanwhile are
/// probes themselves.
const QUIET_AFTER: Duration = Duration::from_secs(60);
/// Messages that a probe carries: each has an attempt less afterwards, and a vendor that comes back is not met by a
/// crowd.
const PROBE_MESSAGES_MAX: usize = 10;

/// What is to be done now.
pub(super) enum Started {
    /// Send these to their vendor.
    Call(VendorId, Vec<Addressed>),
    /// Look whether the vendor is there.
    Look(VendorId),
    /// Copy these to the retry queue as they are.
    PutOff(Vec<Addressed>),
}

/// One vendor's messages.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<Addressed>,
    breaker: Breaker,
    /// The call under way: how many messages it has in hand, and since when.
    call: Option<(usize, Instant)>,
    /// When the last message came.
    came: Option<Instant>,
}

impl Lane {
    fn held(&self) -> usize {
        self.waiting.len() + self.call.map_or(0, |(count, _)| count)
    }

    fn is_slow(&self, now: Instant) -> bool {
        self.call
            .is_some_and(|(_, since)| now >= since + SLOW_AFTER)
    }
}

/// The lanes of all vendors.
pub(super) struct Lanes {
    lanes: BTreeMap<VendorId, Lane>,
    limits: Limits,
    states: PushStates,
    /// Deliveries that are on their way to another queue.
    pub(super) copying: usize,
}

impl Lanes {
    pub(super) fn new(vendors: Vec<VendorId>, limits: Limits, states: PushStates) -> Self {
        let lanes = vendors
            .into_iter()
            .map(|vendor_id| (vendor_id, Lane::default()))
            .collect();
        Self {
            lanes,
            limits,
            states,
            copying: 0,
        }
    }

    /// Puts a delivery into its vendor's lane. Gives it back where there is none.
    pub(super) fn add(&mut self, vendor_id: &VendorId, one: Addressed) -> Option<Addressed> {
        let Some(lane) = self.lanes.get_mut(vendor_id) else {
            return Some(one);
        };
        lane.came = Some(one.arrived);
        lane.waiting.push_back(one);
        None
    }

    /// A lane's part of what is held at once: as much as is left to it while all others hang.
    fn share(&self) -> usize {
        (usize::from(self.limits.prefetch) / self.lanes.len().max(1)).max(1)
    }

    /// What is to be done now.
    pub(super) fn start(&mut self, now: Instant) -> Vec<Started> {
        let share = self.share();
        let updates_max = self.limits.updates_per_call_max.get();
        let mut started = Vec::new();
        let mut put_off = Vec::new();
        for (vendor_id, lane) in &mut self.lanes {
            // They wait in the order in which they came.
            let late = lane
                .waiting
                .iter()
                .take_while(|one| now >= one.arrived + WAIT_MAX)
                .count();
            put_off.extend(lane.waiting.drain(..late));
            let is_quiet =
                lane.waiting.is_empty() && lane.came.is_some_and(|came| now >= came + QUIET_AFTER);
            if lane.call.is_none() && is_quiet && lane.breaker.is_to_look(now.into_std()) {
                lane.call = Some((0, now));
                started.push(Started::Look(vendor_id.clone()));
            }
            if lane.call.is_none() && !lane.waiting.is_empty() {
                let messages_max = match lane.breaker.leave(now.into_std()) {
                    Leave::Call => share,
                    Leave::Probe => {
                        self.states.show(vendor_id, Phase::Probing, None);
                        share.min(PROBE_MESSAGES_MAX)
                    }
                    Leave::Wait => {
                        put_off.extend(lane.waiting.drain(..));
                        continue;
                    }
                };
                let batch = take_batch(&mut lane.waiting, messages_max, updates_max);
                lane.call = Some((batch.len(), now));
                started.push(Started::Call(vendor_id.clone(), batch));
            }
        }
        let held: usize = self.lanes.values().map(Lane::held).sum();
        // Only while nothing more can come: a vendor that is slow harms nobody as long as there is room.
        if held + self.copying + put_off.len() >= usize::from(self.limits.prefetch) {
            for lane in self.lanes.values_mut().filter(|lane| lane.is_slow(now)) {
                let excess = lane.held().saturating_sub(share).min(lane.waiting.len());
                let kept = lane.waiting.len() - excess;
                put_off.extend(lane.waiting.drain(kept..));
            }
        }
        if !put_off.is_empty() {
            started.push(Started::PutOff(put_off));
        }
        started
    }

    /// A call has ended.
    pub(super) fn ended(&mut self, vendor_id: &VendorId, unspent: Vec<Addressed>, said: &Said) {
        let Some(lane) = self.lanes.get_mut(vendor_id) else {
            return;
        };
        lane.call = None;
        for one in unspent.into_iter().rev() {
            lane.waiting.push_front(one);
        }
        let now = Instant::now().into_std();
        match said {
            Said::Nothing => {
                lane.breaker.unused(now);
                if lane.breaker.phase() == Phase::Open {
                    self.states.show(vendor_id, Phase::Open, None);
                }
            }
            Said::There => {
                tracing::info!(vendor = %vendor_id, "the vendor is there again");
                VENDORS.breaker(vendor_id.as_str()).set(0);
                lane.breaker.seen(now);
                self.states.show(vendor_id, Phase::Ok, None);
            }
            Said::Answer { fault } => {
                if lane.breaker.phase() != Phase::Ok {
                    tracing::info!(vendor = %vendor_id, "the vendor answers again");
                    VENDORS.breaker(vendor_id.as_str()).set(0);
                }
                lane.breaker.answered();
                self.states.show(vendor_id, Phase::Ok, fault.as_deref());
            }
            Said::Down {
                error,
                code,
                retry_after,
            } => {
                let was_called = lane.breaker.phase() == Phase::Ok;
                let pause = lane.breaker.failed(now, *retry_after, fastrand::f64());
                if let Some(pause) = pause {
                    let for_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                    tracing::warn!(
                        vendor = %vendor_id, error, for_ms,
                        "the vendor is down and not called for a while; its messages are put off without losing a retry"
                    );
                    if was_called {
                        VENDORS.openings(vendor_id.as_str()).inc();
                    }
                    VENDORS.breaker(vendor_id.as_str()).set(1);
                }
                // From the first failure on, also while it is still called.
                self.states
                    .show(vendor_id, lane.breaker.phase(), Some(code));
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

/// What one call carries: at least one message, then as many as fit.
fn take_batch(
    waiting: &mut VecDeque<Addressed>,
    messages_max: usize,
    updates_max: usize,
) -> Vec<Addressed> {
    let mut updates = 0;
    let fit = waiting
        .iter()
        .take(messages_max)
        .take_while(|one| {
            updates += one.updates.len();
            updates <= updates_max
        })
        .count();
    waiting.drain(..fit.max(1).min(waiting.len())).collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::ids::UpdateId;
    use crate::limit::Limit;
    use crate::mq::{Delivery, Headers};

    fn limits() -> Limits {
        Limits {
            prefetch: 20,
            updates_per_call_max: Limit::new(100),
            shutdown_deadline: Duration::from_secs(1),
        }
    }

    fn vendor(id: &str) -> VendorId {
        VendorId::parse(id).expect("an id")
    }

    fn two_lanes() -> Lanes {
        Lanes::new(
            vec![vendor("a"), vendor("b")],
            limits(),
            PushStates::default(),
        )
    }

    fn addressed(updates: usize, arrived: Instant) -> Addressed {
        Addressed {
            delivery: Delivery {
                tag: crate::mq::Tag::default(),
                message_id: None,
                headers: Headers::new(),
                body: Vec::new(),
                redeliveries: 0,
            },
            updates: vec![UpdateId(Uuid::nil()); updates],
            arrived,
        }
    }

    fn fill(lanes: &mut Lanes, id: &str, count: usize, arrived: Instant) {
        for _ in 0..count {
            assert!(lanes.add(&vendor(id), addressed(1, arrived)).is_none());
        }
    }

    /// What was started: calls as (vendor, messages), and how many messages were put off.
    fn start(lanes: &mut Lanes, now: Instant) -> (Vec<(String, usize)>, usize) {
        let (mut calls, mut put_off) = (Vec::new(), 0);
        for started in lanes.start(now) {
            match started {
                Started::Call(id, batch) => calls.push((id.to_string(), batch.len())),
                Started::Look(_) => {}
                Started::PutOff(messages) => put_off += messages.len(),
            }
        }
        (calls, put_off)
    }

    fn down() -> Said {
        Said::Down {
            error: "refused".into(),
            code: "api_unreachable".into(),
            retry_after: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_vendor_keeps_its_part_of_what_is_held_and_only_while_that_harms_nobody_more() {
        let (mut lanes, now) = (two_lanes(), Instant::now());
        fill(&mut lanes, "a", 15, now);
        assert_eq!(start(&mut lanes, now), (vec![("a".into(), 10)], 0));
        let slow = now + SLOW_AFTER;
        assert_eq!(start(&mut lanes, slow), (vec![], 0), "there is room");
        fill(&mut lanes, "a", 5, slow);
        assert_eq!(start(&mut lanes, now), (vec![], 0), "a fast call frees it");
        assert_eq!(start(&mut lanes, slow), (vec![], 10), "all beyond its half");
        fill(&mut lanes, "b", 10, slow);
        assert_eq!(start(&mut lanes, slow), (vec![("b".into(), 10)], 0));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_kept_for_a_vendor_that_is_down_and_a_probe_carries_little() {
        let (mut lanes, now) = (two_lanes(), Instant::now());
        fill(&mut lanes, "a", 1, now);
        for _ in 0..5 {
            assert_eq!(start(&mut lanes, now).0.len(), 1);
            lanes.ended(&vendor("a"), vec![addressed(1, now)], &down());
        }
        fill(&mut lanes, "a", 9, now);
        fill(&mut lanes, "b", 1, now);
        assert_eq!(start(&mut lanes, now), (vec![("b".into(), 1)], 10));
        let over = now + Duration::from_secs(1);
        fill(&mut lanes, "a", 15, over);
        assert_eq!(start(&mut lanes, over).0, [("a".to_owned(), 10)]);
        lanes.ended(&vendor("a"), Vec::new(), &Said::Answer { fault: None });
        assert_eq!(start(&mut lanes, over), (vec![("a".into(), 5)], 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_vendor_that_is_down_is_looked_for_while_nothing_waits_for_it() {
        let (mut lanes, now) = (two_lanes(), Instant::now());
        let looks = |lanes: &mut Lanes, now| {
            let started = lanes.start(now);
            started
                .iter()
                .filter(|s| matches!(s, Started::Look(_)))
                .count()
        };
        fill(&mut lanes, "a", 1, now);
        for _ in 0..5 {
            assert_eq!(start(&mut lanes, now).0.len(), 1);
            lanes.ended(&vendor("a"), vec![addressed(1, now)], &down());
        }
        assert_eq!(
            start(&mut lanes, now),
            (vec![], 1),
            "nothing waits any more"
        );
        let over = now + QUIET_AFTER;
        let soon = now + Duration::from_secs(1);
        assert_eq!((looks(&mut lanes, soon), looks(&mut lanes, over)), (0, 1));
        // What comes meanwhile waits for that.
        fill(&mut lanes, "a", 15, over);
        assert_eq!(start(&mut lanes, over), (vec![], 0));
        lanes.ended(&vendor("a"), Vec::new(), &Said::There);
        assert_eq!(start(&mut lanes, over).0, [("a".to_owned(), 10)]);
        lanes.ended(&vendor("a"), Vec::new(), &Said::Answer { fault: None });
        assert_eq!(start(&mut lanes, over), (vec![("a".into(), 5)], 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_waited_for_long_is_put_off() {
        let (mut lanes, now) = (two_lanes(), Instant::now());
        fill(&mut lanes, "a", 12, now);
        assert_eq!(start(&mut lanes, now).0, [("a".to_owned(), 10)]);
        fill(&mut lanes, "a", 1, now + Duration::from_secs(1));
        assert_eq!(start(&mut lanes, now + WAIT_MAX), (vec![], 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_carries_what_fits_and_one_message_at_least() {
        let now = Instant::now();
        let mut waiting: VecDeque<Addressed> = [150, 60, 40, 1]
            .map(|updates| addressed(updates, now))
            .into();
        let sizes: Vec<usize> = std::iter::repeat_with(|| take_batch(&mut waiting, 9, 100).len())
            .take(3)
            .collect();
        assert_eq!(sizes, [1, 2, 1]);
    }
}
