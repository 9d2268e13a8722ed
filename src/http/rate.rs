//! How much each caller may ask for: a bucket for each, filled at a constant rate (GCRA), and headers that say how it
//! stands (draft-ietf-httpapi-ratelimit-headers-10).

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use super::problem::{Problem, RATE_LIMITED};
use crate::domain::order::Invalid;
use crate::limit::{Rate, RateLimits, Rates};

/// Callers who are remembered. There are half as many valid keys at most; the rest is room for those that have ended
/// while their buckets were not full again.
const CALLERS_MAX: usize = 2_000;
/// Who asks when so many others are remembered; no caller has this name.
const ANYBODY_ELSE: &str = "";

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The buckets of all callers with one rate.
type Buckets<C> = RateLimiter<String, HashMapStateStore<String>, C, StateInformationMiddleware>;

/// Counts what each caller asks for. Clones share it.
#[derive(Clone)]
pub(super) struct Counters<C: Clock = DefaultClock>(Arc<Shared<C>>);

struct Shared<C: Clock> {
    limits: RateLimits,
    clock: C,
    /// The version of the limits in which nobody has one.
    off_in: AtomicU64,
    current: RwLock<Arc<Counting<C>>>,
}

/// The buckets of one version of the limits. With the next one all are full.
struct Counting<C: Clock> {
    version: u64,
    is_off: bool,
    of_each: Option<(Rate, Buckets<C>)>,
    of_caller: BTreeMap<String, (Rate, Buckets<C>)>,
}

/// How a caller stands after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    rate: Rate,
    /// What may be asked for at once, still.
    remaining: u32,
}

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// It may come again after this.
    For(Duration, Standing),
    /// It is more than may ever come at once.
    Always(Rate),
}

impl Counters {
    /// Counters that keep to limits, and follow when they change.
    pub(super) fn new(limits: RateLimits) -> Self {
        Self::with_clock(limits, DefaultClock::default())
    }
}

impl<C: Clock + Clone> Counters<C> {
    fn with_clock(limits: RateLimits, clock: C) -> Self {
        let counting: Counting<C> = Counting::new(&limits, &clock);
        Self(Arc::new(Shared {
            limits,
            clock,
            off_in: AtomicU64::new(counting.off_in()),
            current: RwLock::new(Arc::new(counting)),
        }))
    }

    /// Whether nobody has a limit: two loads, so that what is not used costs nothing.
    pub(super) fn is_off(&self) -> bool {
        self.0.off_in.load(Ordering::Relaxed) == self.0.limits.version()
    }

    /// Counts what a caller asks for, if it has a limit: all of it, or nothing where that is too much. It is a part of
    /// `in_all`, which has to come at once.
    pub(super) fn count(
        &self,
        caller: &str,
        amount: NonZeroU32,
        in_all: NonZeroU32,
    ) -> Result<Option<Standing>, Over> {
        if self.is_off() {
            return Ok(None);
        }
        let counting = self.counting();
        let Some((rate, buckets)) = counting.of(caller) else {
            return Ok(None);
        };
        let rate = *rate;
        if in_all > rate.burst {
            return Err(Over::Always(rate));
        }
        if buckets.len() >= CALLERS_MAX {
            // A bucket that is full is as good as none.
            buckets.retain_recent();
        }
        let caller = if buckets.len() < CALLERS_MAX {
            caller
        } else {
            ANYBODY_ELSE
        };
        match buckets.check_key_n(&caller.to_owned(), amount) {
            Ok(Ok(state)) => Ok(Some(Standing {
                rate,
                remaining: state.remaining_burst_capacity(),
            })),
            Ok(Err(not_until)) => Err(Over::For(
                // What comes again comes whole: what was counted before, too.
                not_until.wait_time_from(self.0.clock.now())
                    + rate.time_for(in_all.get() - amount.get()),
                // What is left is too little for this one, and said to be nothing.
                Standing { rate, remaining: 0 },
            )),
            Err(_) => Err(Over::Always(rate)),
        }
    }

    fn counting(&self) -> Arc<Counting<C>> {
        let shared = &*self.0;
        let version = shared.limits.version();
        {
            let current = shared
                .current
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            if current.version == version {
                return Arc::clone(&current);
            }
        }
        let mut current = shared
            .current
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have been here meanwhile.
        if current.version != version {
            let newer: Counting<C> = Counting::new(&shared.limits, &shared.clock);
            shared.off_in.store(newer.off_in(), Ordering::Relaxed);
            *current = Arc::new(newer);
        }
        Arc::clone(&current)
    }
}

impl<C: Clock + Clone> Counting<C> {
    fn new(limits: &RateLimits, clock: &C) -> Self {
        // In this order: rates that are newer than the version are read again at the next look.
        let version = limits.version();
        let rates = limits.get();
        let is_off = rates.is_off();
        let Rates { of_each, of_caller } = rates;
        let with_buckets = |rate: Rate| {
            let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
            let store = HashMapStateStore::default();
            (rate, Buckets::new(quota, store, clock.clone()))
        };
        Self {
            version,
            is_off,
            of_each: of_each.map(with_buckets),
            of_caller: of_caller
                .into_iter()
                .map(|(name, rate)| (name, with_buckets(rate)))
                .collect(),
        }
    }

    /// The version in which nobody has a limit, if this is one; otherwise one that never comes.
    fn off_in(&self) -> u64 {
        if self.is_off { self.version } else { u64::MAX }
    }

    fn of(&self, caller: &str) -> Option<&(Rate, Buckets<C>)> {
        self.of_caller.get(caller).or(self.of_each.as_ref())
    }
}

impl Standing {
    /// Says it in an answer.
    pub(super) fn say(self, headers: &mut HeaderMap) {
        let Rate { per_second, burst } = self.rate;
        let in_all = burst.get().div_ceil(per_second.get());
        let until_full = (burst.get() - self.remaining.min(burst.get())).div_ceil(per_second.get());
        let policy = format!("\"caller\";q={burst};w={in_all}");
        let standing = format!("\"caller\";r={};t={until_full}", self.remaining);
        for (name, value) in [(RATELIMIT_POLICY, policy), (RATELIMIT, standing)] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
    }
}

impl Over {
    /// How the caller stands.
    pub(super) fn standing(self) -> Option<Standing> {
        match self {
            Self::For(_, standing) => Some(standing),
            Self::Always(_) => None,
        }
    }

    /// What the caller is told who asked for so much.
    pub(super) fn problem(self, amount: NonZeroU32) -> Problem {
        match self {
            Self::For(wait, Standing { rate, .. }) => {
                let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                let seconds = u32::try_from(seconds).unwrap_or(u32::MAX).max(1);
                Problem::new(
                    RATE_LIMITED,
                    format!(
                        "this caller may ask for {} in a second, and for {} at once; come again in {seconds} s",
                        rate.per_second, rate.burst
                    ),
                )
                .after(seconds)
            }
            // No wait mends that.
            Self::Always(rate) => Problem::invalid_fields(vec![Invalid::new(
                "/orders",
                format!(
                    "has {amount} orders, and this caller may place at most {} at once",
                    rate.burst
                ),
            )]),
        }
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    const ONE: NonZeroU32 = NonZeroU32::MIN;

    fn number(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).expect("not 0")
    }

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate {
            per_second: number(per_second),
            burst: number(burst),
        }
    }

    fn of_each(per_second: u32, burst: u32) -> Rates {
        Rates {
            of_each: Some(rate(per_second, burst)),
            of_caller: BTreeMap::new(),
        }
    }

    fn counters(rates: Rates) -> (Counters<FakeRelativeClock>, RateLimits, FakeRelativeClock) {
        let (limits, clock) = (RateLimits::new(rates), FakeRelativeClock::default());
        (
            Counters::with_clock(limits.clone(), clock.clone()),
            limits,
            clock,
        )
    }

    fn remaining(counted: Result<Option<Standing>, Over>) -> Option<u32> {
        counted.expect("let in").map(|standing| standing.remaining)
    }

    #[test]
    fn a_caller_has_its_burst_and_then_its_rate_and_nobody_elses() {
        let (counters, _, clock) = counters(of_each(2, 3));
        for left in [2, 1, 0] {
            assert_eq!(remaining(counters.count("one", ONE, ONE)), Some(left));
        }
        let over = counters.count("one", ONE, ONE).expect_err("no more");
        let standing = Standing {
            rate: rate(2, 3),
            remaining: 0,
        };
        assert_eq!(over, Over::For(Duration::from_millis(500), standing));
        assert_eq!(remaining(counters.count("other", ONE, ONE)), Some(2));
        clock.advance(Duration::from_millis(500));
        assert_eq!(remaining(counters.count("one", ONE, ONE)), Some(0));
        counters.count("one", ONE, ONE).expect_err("it was one");
        clock.advance(Duration::from_secs(60));
        assert_eq!(
            remaining(counters.count("one", number(3), number(3))),
            Some(0)
        );
    }

    #[test]
    fn what_is_too_much_takes_nothing_and_what_is_always_too_much_is_told_apart() {
        let (counters, _, _) = counters(of_each(1, 5));
        assert_eq!(
            remaining(counters.count("one", number(3), number(3))),
            Some(2)
        );
        let over = counters
            .count("one", number(4), number(4))
            .expect_err("2 are left");
        assert!(matches!(over, Over::For(wait, _) if wait == Duration::from_secs(2)));
        assert_eq!(over.problem(number(4)).code(), RATE_LIMITED);
        assert_eq!(
            remaining(counters.count("one", number(2), number(2))),
            Some(0),
            "nothing was taken"
        );
        let over = counters
            .count("one", number(6), number(6))
            .expect_err("never");
        assert_eq!(over, Over::Always(rate(1, 5)));
        assert_eq!(over.problem(number(6)).code().status, 422);
    }

    #[test]
    fn who_comes_again_after_the_wait_gets_in_with_all_that_comes_at_once() {
        for (per_second, burst) in [(1, 5), (3, 7), (1000, 500), (7, 500)] {
            let (counters, _, clock) = counters(of_each(per_second, burst));
            // A request is counted as one when its head has come, and as the rest when its body has.
            let come = |n: u32| match counters.count("one", ONE, ONE) {
                Err(over) => Err(over),
                Ok(_) if n == 1 => Ok(None),
                Ok(_) => counters.count("one", number(n - 1), number(n)),
            };
            assert_eq!(remaining(come(burst)), Some(0));
            for n in [burst, 2, burst - 1, 1, burst] {
                // The head does not say how many come behind it.
                let mut waits = 0;
                while let Err(over) = come(n) {
                    let Over::For(wait, _) = over else {
                        unreachable!("{n} of {burst} may come at once");
                    };
                    clock.advance(wait);
                    waits += 1;
                    assert!(waits <= 2, "{n} of {burst}");
                }
                assert!(waits >= 1, "{n} of {burst}: nothing was left");
            }
        }
    }

    #[test]
    fn a_rate_may_be_a_callers_own_or_there_is_none_at_all() {
        let mut rates = Rates::default();
        let (off, limits, _) = counters(rates.clone());
        assert!(off.is_off());
        assert_eq!(remaining(off.count("one", ONE, ONE)), None);
        rates.of_caller.insert("one".to_owned(), rate(1, 1));
        assert!(limits.set(rates.clone()));
        assert!(!limits.set(rates), "nothing has changed");
        assert!(!off.is_off());
        assert_eq!(remaining(off.count("one", ONE, ONE)), Some(0));
        off.count("one", ONE, ONE).expect_err("no more");
        assert_eq!(remaining(off.count("other", ONE, ONE)), None);
        assert!(limits.set(of_each(1, 9)));
        assert_eq!(remaining(off.count("one", ONE, ONE)), Some(8));
        assert!(limits.set(Rates::default()));
        assert_eq!(remaining(off.count("one", ONE, ONE)), None);
        assert!(off.is_off());
    }

    #[test]
    fn so_many_callers_are_remembered_and_no_more() {
        let (counters, _, clock) = counters(of_each(1, 1));
        let ask = |n: usize| counters.count(&format!("caller-{n}"), ONE, ONE);
        let remembered = || counters.counting().of("any").expect("a rate").1.len();
        for n in 0..CALLERS_MAX {
            ask(n).expect("each is another one");
        }
        // The last places are taken: who comes now shares one bucket with the others who do.
        ask(CALLERS_MAX).expect("the first of them");
        ask(CALLERS_MAX + 1).expect_err("the second");
        assert!(remembered() <= CALLERS_MAX + 1);
        clock.advance(Duration::from_secs(2));
        ask(CALLERS_MAX + 2).expect("all of them are as new");
        assert_eq!(remembered(), 1);
    }

    #[test]
    fn the_headers_say_what_there_is_and_when_there_is_all_of_it() {
        let mut headers = HeaderMap::new();
        Standing {
            rate: rate(10, 25),
            remaining: 4,
        }
        .say(&mut headers);
        assert_eq!(
            headers.get("ratelimit-policy").expect("said"),
            "\"caller\";q=25;w=3"
        );
        assert_eq!(
            headers.get("ratelimit").expect("said"),
            "\"caller\";r=4;t=3"
        );
    }
}
