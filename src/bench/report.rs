//! What a run has come to.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::api::Order;
use super::measured::Latencies;
use super::plan::Plan;

/// Percentiles of a latency, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// Half of them were faster.
    pub p50_ms: f64,
    /// Nine of ten.
    pub p90_ms: f64,
    /// 99 of a hundred.
    pub p99_ms: f64,
    /// 999 of a thousand.
    pub p999_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

impl Latency {
    fn of(latencies: &Latencies) -> Option<Self> {
        let histogram = latencies.histogram();
        #[expect(clippy::cast_precision_loss, reason = "an hour in microseconds fits")]
        let ms = |us: u64| us as f64 / 1000.0;
        let at = |quantile: f64| ms(histogram.value_at_quantile(quantile));
        (latencies.len() > 0).then(|| Self {
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: ms(histogram.max()),
        })
    }
}

/// A stage that orders come through.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    /// Orders that came through it.
    pub orders: u64,
    /// Orders a second, from the first that was accepted to the last that came through.
    pub per_second: f64,
    /// From being accepted; for the first stage, from being sent.
    pub latency: Option<Latency>,
}

/// What a run has come to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Answered 202.
    pub accepted: Stage,
    /// Confirmed or rejected.
    pub decided: Stage,
    /// Whose vendors have answered, or that have none to be told. Its latency is that of a sample.
    pub told: Stage,
    /// Orders by their status in the end.
    pub by_status: BTreeMap<String, u64>,
    /// Refusals by code.
    pub refused: BTreeMap<String, u64>,
    /// Requests without an answer, by reason.
    pub failed: BTreeMap<String, u64>,
    /// Accepted, but not found decided and told when the time was over.
    pub unfinished: u64,
    /// Connections of the run.
    pub connections: usize,
    /// Lines of each order.
    pub lines: usize,
    /// How long it was measured.
    pub measured_s: f64,
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        took: Duration,
        accepted: &Latencies,
        refused: BTreeMap<String, u64>,
        failed: BTreeMap<String, u64>,
        ended: &[Order],
        samples: &[Order],
    ) -> Self {
        let first = ended.iter().map(|order| order.accepted_at).min();
        let mut by_status = BTreeMap::new();
        let mut decided = Latencies::default();
        let mut told_orders = 0;
        for order in ended {
            *by_status.entry(order.status.clone()).or_default() += 1;
            if let Some(at) = order.decided_at {
                decided.add(between(order.accepted_at, at));
            }
            told_orders += u64::from(order.status != "pending" && order.vendor_sync != "pending");
        }
        let mut told = Latencies::default();
        for order in samples {
            if let Some(at) = order.told_at() {
                told.add(between(order.accepted_at, at));
            }
        }
        let last_decided = ended.iter().filter_map(|order| order.decided_at).max();
        let last_told = samples.iter().filter_map(Order::told_at).max();
        Self {
            accepted: Stage {
                orders: accepted.len(),
                per_second: rate(accepted.len(), took),
                latency: Latency::of(accepted),
            },
            decided: Stage {
                orders: decided.len(),
                per_second: rate(decided.len(), span(first, last_decided)),
                latency: Latency::of(&decided),
            },
            told: Stage {
                orders: told_orders,
                per_second: rate(told_orders, span(first, last_told.max(last_decided))),
                latency: Latency::of(&told),
            },
            by_status,
            refused,
            failed,
            unfinished: accepted.len().saturating_sub(told_orders),
            connections: plan.connections,
            lines: plan.lines,
            measured_s: took.as_secs_f64(),
        }
    }
}

fn between(from: DateTime<Utc>, to: DateTime<Utc>) -> Duration {
    (to - from).to_std().unwrap_or_default()
}

fn span(from: Option<DateTime<Utc>>, to: Option<DateTime<Utc>>) -> Duration {
    from.zip(to)
        .map_or(Duration::ZERO, |(from, to)| between(from, to))
}

fn rate(count: u64, during: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "2^52 orders take long")]
    let count = count as f64;
    if during.is_zero() {
        0.0
    } else {
        count / during.as_secs_f64()
    }
}
