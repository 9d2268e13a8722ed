//! Whether a vendor is called at all. One that failed several times in a row for its own state is left alone for a
//! while, then tried with one call, so that neither its messages nor the other vendors' wait on a line that is dead.

use std::time::{Duration, Instant};

/// Calls in a row that failed for the vendor's own state, after which it is left alone. One more than a message has
/// attempts by default: a message that is alone in its trouble is dead-lettered as early as it ever was.
pub const OPEN_AFTER: u32 = 5;
/// How long a vendor is left alone first; each probe in vain doubles it.
pub const OPEN_MIN: Duration = Duration::from_secs(1);
/// A vendor that comes back is noticed within this time and one wait of the retry queue.
pub const OPEN_MAX: Duration = Duration::from_secs(30);
/// The longest wait that a vendor may ask for: a mistake of its own must not silence it for a day.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// What may be done with a vendor's messages now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Send them.
    Call,
    /// Send a few, to see whether the vendor is back.
    Probe,
    /// Send nothing.
    Wait,
}

/// What people are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It is called.
    Ok,
    /// It is left alone.
    Open,
    /// One call is under way that tells whether it is back.
    Probing,
}

impl Phase {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Open => "open",
            Self::Probing => "probing",
        }
    }
}

/// The breaker of one vendor's line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Breaker {
    state: State,
    /// Failures since the vendor last answered.
    failures: u32,
    /// How often it was opened since the vendor last answered.
    openings: u32,
    /// When the last call failed, or was looked whether the vendor is back since.
    failed_at: Option<Instant>,
    sight: Sight,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Closed,
    Open {
        until: Instant,
    },
    Probing,
}

/// What looks have told while nothing was to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Sight {
    #[default]
    Unseen,
    /// It is there. Whether it takes what it is sent, the next call shows, which is a probe.
    There,
    /// It was there, and took nothing all the same: looks tell nothing of it.
    Deceptive,
}

impl Breaker {
    /// What may be done now. [`Leave::Probe`] is given once, until its outcome is told.
    pub fn leave(&mut self, now: Instant) -> Leave {
        match self.state {
            State::Closed => Leave::Call,
            State::Open { until } if now >= until => {
                self.state = State::Probing;
                Leave::Probe
            }
            State::Open { .. } | State::Probing => Leave::Wait,
        }
    }

    /// Whether to look if a vendor is there for which nothing waits: it failed, and that it is back would show with its next
    /// message only, whenever that comes. Given once, until its outcome is told.
    pub fn is_to_look(&mut self, now: Instant) -> bool {
        if self.sight != Sight::Unseen {
            return false;
        }
        match self.state {
            State::Open { until } if now >= until => {
                self.state = State::Probing;
                true
            }
            State::Closed if self.failed_at.is_some_and(|at| now >= at + OPEN_MAX) => {
                self.failed_at = Some(now);
                true
            }
            State::Closed | State::Open { .. } | State::Probing => false,
        }
    }

    /// A look has found the vendor there.
    pub fn seen(&mut self, now: Instant) {
        self.sight = Sight::There;
        if self.state == State::Probing {
            self.state = State::Open { until: now };
        }
    }

    /// The vendor has answered, if only with an error about what it was sent.
    pub fn answered(&mut self) {
        *self = Self::default();
    }

    /// A call failed for the vendor's own state. `retry_after` is what the vendor asked for, if it did; `jitter`, 0 to
    /// 1, keeps many processes from coming back at the same moment. Returns for how long it is left alone now, if it is.
    pub fn failed(
        &mut self,
        now: Instant,
        retry_after: Option<Duration>,
        jitter: f64,
    ) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        self.failed_at = Some(now);
        if self.sight == Sight::There {
            self.sight = Sight::Deceptive;
        }
        // A vendor that says when to come again is taken at its word at once.
        if self.state == State::Closed && self.failures < OPEN_AFTER && retry_after.is_none() {
            return None;
        }
        let doubled = OPEN_MIN.saturating_mul(1 << self.openings.min(10));
        let pause = doubled
            .min(OPEN_MAX)
            .mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
            .max(retry_after.unwrap_or_default().min(RETRY_AFTER_MAX));
        self.openings = self.openings.saturating_add(1);
        self.state = State::Open { until: now + pause };
        Some(pause)
    }

    /// A leave was used for nothing that says anything of the vendor: another may have it.
    pub fn unused(&mut self, now: Instant) {
        if self.state == State::Probing {
            self.state = State::Open { until: now };
        }
    }

    /// What people are shown.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Closed => Phase::Ok,
            State::Open { .. } if self.sight == Sight::There => Phase::Ok,
            State::Open { .. } => Phase::Open,
            State::Probing => Phase::Probing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails until the line is open.
    fn open(breaker: &mut Breaker, now: Instant) -> Duration {
        std::iter::repeat_with(|| breaker.failed(now, None, 1.0))
            .take(5)
            .find_map(|pause| pause)
            .expect("open after five")
    }

    #[test]
    fn a_vendor_for_which_nothing_waits_is_looked_for_and_the_next_call_is_a_probe_still() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        assert!(!breaker.is_to_look(now + OPEN_MAX), "it never failed");
        // One that is called still is looked for once it was quiet for a while.
        breaker.failed(now, None, 1.0);
        assert!(!breaker.is_to_look(now));
        assert!(breaker.is_to_look(now + OPEN_MAX));
        assert!(
            !breaker.is_to_look(now + OPEN_MAX),
            "that look is under way"
        );
        breaker.answered();
        open(&mut breaker, now);
        let over = now + OPEN_MIN;
        assert!(!breaker.is_to_look(now) && breaker.is_to_look(over));
        assert!(!breaker.is_to_look(over) && breaker.leave(over) == Leave::Wait);
        // In vain: it is left alone for longer.
        let pause = breaker.failed(over, None, 1.0).expect("open still");
        assert_eq!(pause, OPEN_MIN * 2);
        let over = over + pause;
        assert!(breaker.is_to_look(over));
        breaker.seen(over);
        assert_eq!(breaker.phase(), Phase::Ok);
        assert!(!breaker.is_to_look(over + OPEN_MAX));
        assert_eq!(breaker.leave(over), Leave::Probe);
        // What answers looks and takes nothing is judged by calls alone.
        breaker.failed(over, None, 1.0);
        assert_eq!(breaker.phase(), Phase::Open);
        assert!(!breaker.is_to_look(over + OPEN_MAX * 2));
        breaker.answered();
        assert_eq!(breaker, Breaker::default());
    }

    #[test]
    fn a_message_that_is_alone_has_all_its_attempts_before_the_line_opens() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _attempt in 0..4 {
            assert_eq!(breaker.leave(now), Leave::Call);
            assert_eq!(breaker.failed(now, None, 1.0), None);
        }
        assert_eq!(breaker.phase(), Phase::Ok);
        assert_eq!(breaker.failed(now, None, 1.0), Some(OPEN_MIN));
        assert_eq!(breaker.leave(now), Leave::Wait);
    }

    #[test]
    fn an_answer_ends_the_row_of_failures() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _round in 0..10 {
            for _ in 0..4 {
                assert_eq!(breaker.failed(now, None, 1.0), None);
            }
            breaker.answered();
        }
        assert_eq!(breaker.leave(now), Leave::Call);
    }

    #[test]
    fn each_probe_in_vain_doubles_the_wait_up_to_a_limit_and_an_answer_starts_over() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        let mut pauses = vec![open(&mut breaker, now)];
        for _ in 0..6 {
            now += pauses.last().copied().unwrap_or_default();
            assert_eq!(breaker.leave(now), Leave::Probe);
            assert_eq!(breaker.phase(), Phase::Probing);
            assert_eq!(breaker.leave(now), Leave::Wait, "one probe at a time");
            pauses.extend(breaker.failed(now, None, 1.0));
        }
        let seconds: Vec<u64> = pauses.iter().map(Duration::as_secs).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
        now += OPEN_MAX;
        assert_eq!(breaker.leave(now), Leave::Probe);
        breaker.answered();
        assert_eq!(
            (breaker.phase(), breaker.leave(now)),
            (Phase::Ok, Leave::Call)
        );
        assert_eq!(open(&mut breaker, now), OPEN_MIN);
    }

    #[test]
    fn half_of_the_wait_is_random() {
        let now = Instant::now();
        let pause = |jitter| {
            let mut breaker = Breaker {
                failures: 4,
                ..Breaker::default()
            };
            breaker.failed(now, None, jitter)
        };
        assert_eq!(pause(0.0), Some(OPEN_MIN / 2));
        assert_eq!(pause(1.0), Some(OPEN_MIN));
    }

    #[test]
    fn a_vendor_that_says_when_to_come_again_is_not_called_before_but_cannot_silence_itself_for_long()
     {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let asked = Duration::from_secs(40);
        assert_eq!(
            breaker.failed(now, Some(asked), 1.0),
            Some(asked),
            "at its first failure"
        );
        assert_eq!(breaker.leave(now + asked - OPEN_MIN), Leave::Wait);
        assert_eq!(breaker.leave(now + asked), Leave::Probe);
        let day = Duration::from_secs(86_400);
        assert_eq!(breaker.failed(now, Some(day), 1.0), Some(RETRY_AFTER_MAX));
    }

    #[test]
    fn a_probe_that_was_never_made_leaves_its_place_to_the_next() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let pause = open(&mut breaker, now);
        assert_eq!(breaker.leave(now + pause), Leave::Probe);
        breaker.unused(now + pause);
        assert_eq!(breaker.phase(), Phase::Open);
        assert_eq!(breaker.leave(now + pause), Leave::Probe);
    }
}
