//! What one worker has seen, and what all have.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Longer than any request may take; a histogram holds no more.
const LATENCY_MAX_US: u64 = 3_600_000_000;
/// Three digits of every figure are right.
const DIGITS: u8 = 3;

/// Latencies, in microseconds.
pub(super) struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        // These bounds are always possible.
        let histogram = Histogram::new_with_bounds(1, LATENCY_MAX_US, DIGITS)
            .unwrap_or_else(|_| unreachable!("the bounds are constant"));
        Self(histogram)
    }
}

impl Latencies {
    pub(super) fn add(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_MAX_US);
        self.0.saturating_record(us.max(1));
    }

    pub(super) fn add_all(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.0.add(&other.0);
    }

    pub(super) fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }

    pub(super) fn len(&self) -> u64 {
        self.0.len()
    }
}

/// What came of the requests.
#[derive(Default)]
pub(super) struct Measured {
    /// Latencies of those that were accepted.
    pub(super) accepted: Latencies,
    /// Refusals by code.
    pub(super) refused: BTreeMap<String, u64>,
    /// Requests without an answer.
    pub(super) failed: BTreeMap<String, u64>,
    /// Orders to look at one by one.
    pub(super) samples: Vec<String>,
    /// What marks the orders of this run.
    pub(super) reference: String,
    /// How long it was measured.
    pub(super) took: Duration,
}

impl Measured {
    pub(super) fn add_all(&mut self, other: Self) {
        self.accepted.add_all(&other.accepted);
        for (code, count) in other.refused {
            *self.refused.entry(code).or_default() += count;
        }
        for (problem, count) in other.failed {
            *self.failed.entry(problem).or_default() += count;
        }
        self.samples.extend(other.samples);
    }
}
