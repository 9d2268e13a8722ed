//! How the pools of connections to PostgreSQL are used: looked at on a scrape, for as long as a pool lives.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};

use super::{counters_by, gauges_by};

/// A pool at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolUse {
    /// Connections that somebody works with.
    pub in_use: usize,
    /// Connections that wait for work.
    pub idle: usize,
    /// Most connections that it may have.
    pub max: usize,
    /// Who waits for one.
    pub waiting: usize,
}

impl PoolUse {
    fn add(&mut self, other: Self) {
        self.in_use += other.in_use;
        self.idle += other.idle;
        self.max += other.max;
        self.waiting += other.waiting;
    }
}

/// What one pool counts.
#[derive(Clone)]
pub struct PoolFigures {
    /// Connections that were opened.
    pub opened: IntCounter,
    /// Connections that could not be opened.
    pub not_opened: IntCounter,
    /// Pieces of work that found the server away.
    pub unavailable: IntCounter,
    /// Pieces of work that were given up since the server stayed silent.
    pub silent: IntCounter,
}

impl PoolFigures {
    /// The figures under a pool's name.
    #[must_use]
    pub fn of(pool: &str) -> Self {
        let with = |family: &IntCounterVec, kind| family.with_label_values(&[pool, kind]);
        Self {
            opened: POOLS.opened.with_label_values(&[pool]),
            not_opened: with(&POOLS.failures, "not_connected"),
            unavailable: with(&POOLS.failures, "unavailable"),
            silent: with(&POOLS.failures, "silent"),
        }
    }
}

/// Tells how a pool is used, and nothing once it is gone.
type Look = Box<dyn Fn() -> Option<PoolUse> + Send + Sync>;

pub(super) struct Pools {
    opened: IntCounterVec,
    failures: IntCounterVec,
    connections: IntGaugeVec,
    max: IntGaugeVec,
    waiting: IntGaugeVec,
    watched: Mutex<Vec<(String, Look)>>,
}

pub(super) static POOLS: LazyLock<Pools> = LazyLock::new(|| Pools {
    opened: counters_by(
        "stockctl_postgresql_connections_opened_total",
        "Connections that a pool has opened to its PostgreSQL.",
        &["pool"],
    ),
    failures: counters_by(
        "stockctl_postgresql_failures_total",
        "What a pool's PostgreSQL did not do: no connection (not_connected), lost in the middle (unavailable), no answer by the deadline (silent).",
        &["pool", "kind"],
    ),
    connections: gauges_by(
        "stockctl_postgresql_pool_connections",
        "Connections of a pool, in use or idle.",
        &["pool", "state"],
    ),
    max: gauges_by(
        "stockctl_postgresql_pool_max_connections",
        "Most connections that a pool may have.",
        &["pool"],
    ),
    waiting: gauges_by(
        "stockctl_postgresql_pool_waiting",
        "Who waits for a connection of a pool.",
        &["pool"],
    ),
    watched: Mutex::default(),
});

/// Shows how a pool is used in each scrape from now on. Pools of one name, as of the parts of `up`, are added up.
pub fn watch_pool(name: &str, look: impl Fn() -> Option<PoolUse> + Send + Sync + 'static) {
    let mut watched = POOLS.watched.lock().unwrap_or_else(PoisonError::into_inner);
    // Those that are gone make room, also where nobody scrapes.
    watched.retain(|(_, look)| look().is_some());
    watched.push((name.to_owned(), Box::new(look)));
}

/// Looks at every pool.
pub(super) fn look() {
    let mut by_name: BTreeMap<&str, PoolUse> = BTreeMap::new();
    let mut watched = POOLS.watched.lock().unwrap_or_else(PoisonError::into_inner);
    watched.retain(|(_, look)| look().is_some());
    for (name, look) in &*watched {
        by_name
            .entry(name)
            .or_default()
            .add(look().unwrap_or_default());
    }
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    for (name, used) in by_name {
        let connections = |state| POOLS.connections.with_label_values(&[name, state]);
        connections("in_use").set(number(used.in_use));
        connections("idle").set(number(used.idle));
        POOLS.max.with_label_values(&[name]).set(number(used.max));
        POOLS
            .waiting
            .with_label_values(&[name])
            .set(number(used.waiting));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn pools_of_one_name_are_added_up_for_as_long_as_they_live() {
        let used = |in_use| PoolUse {
            in_use,
            idle: 1,
            max: 8,
            waiting: 0,
        };
        let (first, second) = (Arc::new(used(2)), Arc::new(used(3)));
        for pool in [&first, &second] {
            let pool = Arc::downgrade(pool);
            watch_pool("a test", move || pool.upgrade().map(|pool| *pool));
        }
        let in_use = || {
            look();
            POOLS
                .connections
                .with_label_values(&["a test", "in_use"])
                .get()
        };
        assert_eq!(in_use(), 5);
        drop(second);
        assert_eq!(in_use(), 2);
    }
}
