//! Bounds that an operator may change while the process runs.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// How many there may be. Clones share it, and whoever keeps to it asks anew each time, so that a change counts from the
/// next batch on.
#[derive(Clone)]
pub struct Limit(Arc<AtomicUsize>);

impl Limit {
    /// A bound.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(most)))
    }

    /// What it is now.
    #[must_use]
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Changes it for everybody. Returns whether it was another one.
    pub fn set(&self, most: usize) -> bool {
        self.0.swap(most, Ordering::Relaxed) != most
    }
}

impl fmt::Debug for Limit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(out)
    }
}

impl PartialEq for Limit {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

/// How much a caller may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// On average, in each second.
    pub per_second: NonZeroU32,
    /// At once, by a caller who was silent before.
    pub burst: NonZeroU32,
}

impl Rate {
    /// The time in which so much may be asked for, on average.
    #[must_use]
    pub fn time_for(self, amount: u32) -> Duration {
        Duration::from_secs(1) / self.per_second.get() * amount
    }
}

/// The rates of all callers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rates {
    /// Each caller's, if there is a limit.
    pub of_each: Option<Rate>,
    /// Of those with a rate of their own, by their names.
    pub of_caller: BTreeMap<String, Rate>,
}

impl Rates {
    /// Whether nobody has a limit.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.of_each.is_none() && self.of_caller.is_empty()
    }
}

/// Rates that may change. Clones share them; whoever keeps to them asks for the version, which costs nothing, and looks
/// again only where it is another one.
#[derive(Clone)]
pub struct RateLimits(Arc<Shared>);

struct Shared {
    version: AtomicU64,
    rates: RwLock<Rates>,
}

impl RateLimits {
    /// Rates, in the first version.
    #[must_use]
    pub fn new(rates: Rates) -> Self {
        Self(Arc::new(Shared {
            version: AtomicU64::new(0),
            rates: RwLock::new(rates),
        }))
    }

    /// How often they have changed.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.version.load(Ordering::Acquire)
    }

    /// What they are now.
    #[must_use]
    pub fn get(&self) -> Rates {
        let rates = self.0.rates.read().unwrap_or_else(PoisonError::into_inner);
        rates.clone()
    }

    /// Changes them for everybody. Returns whether they were others.
    pub fn set(&self, newer: Rates) -> bool {
        let mut rates = self.0.rates.write().unwrap_or_else(PoisonError::into_inner);
        let is_changed = *rates != newer;
        if is_changed {
            *rates = newer;
            // While the lock is held: whoever sees the version reads these rates, or later ones.
            self.0.version.fetch_add(1, Ordering::Release);
        }
        is_changed
    }
}

impl fmt::Debug for RateLimits {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(out)
    }
}

impl PartialEq for RateLimits {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}
