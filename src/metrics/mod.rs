//! What this process counts, for Prometheus: one registry, and everything in it made of constants, so that each scrape
//! has every name from the first moment on, with 0 where nothing has happened yet.
//!
//! Counting is cheap enough to stand in the way of an order: each counter is found when the program is written and not
//! when it runs, so an order costs an atomic addition or two, and a batch is counted at once. Only what happens once a
//! call, a sync or a fault is looked up by its vendor's name. Labels are closed lists of this file's neighbours, and the
//! vendors of the configuration; no product, order, path or address is ever one.

mod families;
mod pools;

use std::marker::PhantomData;
use std::sync::LazyLock;

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use families::{
    ACCEPTING, Accepting, Call, Connections, DECIDING, Deciding, Decision, EVENTS, Events, FAULTS,
    Fault, HTTP, Http, LOG_LINES_LOST, MESSAGES, Messages, Published, RABBITMQ, Refused, SEEN,
    SYNCS, Seen, SeenVendor, SpanDropped, SyncRow, SyncRun, Syncs, TRACES, Told, Traces,
    UpdateOutcome, VENDORS, Vendors, Via, WEBHOOKS, Webhooks,
};
pub use pools::{PoolFigures, PoolUse, watch_pool};

/// The type of what [`render`] returns.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);

/// Makes every figure be there from now on.
pub fn begin() {
    families::touch();
}

/// All of it, in the text format of Prometheus.
///
/// # Errors
/// A figure contradicts its own description.
pub fn render() -> Result<String, String> {
    begin();
    pools::look();
    TextEncoder::new()
        .encode_to_string(&REGISTRY.gather())
        .map_err(|error| error.to_string())
}

/// A closed list of values of one or more labels.
pub trait Label: Copy + 'static {
    /// Every value, in the order of [`Label::index`].
    const ALL: &'static [Self];
    /// As it is written, one text for each label.
    fn texts(self) -> &'static [&'static str];
    /// Its place in [`Label::ALL`].
    fn index(self) -> usize;
}

/// Defines an enumeration that is a [`Label`].
macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = [$($text:literal),+],)+ })+) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$of])* $variant,)+ }

        impl $crate::metrics::Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn texts(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &[$($text),+],)+ }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    )+ };
}
use labels;

/// One counter for each value of a [`Label`], all of them there from the beginning.
pub struct Counters<K> {
    each: Vec<IntCounter>,
    label: PhantomData<K>,
}

impl<K: Label> Counters<K> {
    fn new(name: &str, help: &str, labels: &[&str]) -> Self {
        let family = counters_by(name, help, labels);
        Self {
            each: K::ALL
                .iter()
                .map(|value| family.with_label_values(value.texts()))
                .collect(),
            label: PhantomData,
        }
    }

    /// The counter of one value.
    #[must_use]
    pub fn of(&self, value: K) -> &IntCounter {
        &self.each[value.index()]
    }
}

#[expect(
    clippy::expect_used,
    reason = "names, labels and helps are constants, and every one is made once: what is wrong with them shows in any test"
)]
fn registered<T: Collector + Clone + 'static>(made: prometheus::Result<T>) -> T {
    let made = made.expect("a good name");
    REGISTRY
        .register(Box::new(made.clone()))
        .expect("a name of its own");
    made
}

fn counter(name: &str, help: &str) -> IntCounter {
    registered(IntCounter::new(name, help))
}

fn counters_by(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    registered(IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauge(name: &str, help: &str) -> IntGauge {
    registered(IntGauge::new(name, help))
}

fn seconds(name: &str, help: &str) -> Gauge {
    registered(Gauge::new(name, help))
}

fn gauges_by(name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    registered(IntGaugeVec::new(Opts::new(name, help), labels))
}

fn seconds_by(name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    registered(GaugeVec::new(Opts::new(name, help), labels))
}

fn histogram(name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    registered(Histogram::with_opts(options))
}

fn histograms_by(name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    registered(HistogramVec::new(options, labels))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_scrape_has_every_name_from_the_first_moment_on() {
        let scrape = render().expect("rendered");
        let names: BTreeSet<&str> = scrape
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
            .collect();
        for name in [
            "stockctl_orders_accepted_total",
            "stockctl_orders_decided_total",
            "stockctl_messages_dead_lettered_total",
            "stockctl_faults_total",
        ] {
            assert!(names.contains(name), "{name} is in {scrape}");
        }
        assert!(
            scrape.contains(
                "stockctl_orders_decided_total{outcome=\"rejected\",reason=\"insufficient_stock\"}"
            ),
            "{scrape}"
        );
    }

    #[test]
    fn a_value_of_a_label_has_the_counter_at_its_own_place() {
        for (place, value) in Fault::ALL.iter().enumerate() {
            assert_eq!(value.index(), place);
        }
        let distinct: BTreeSet<_> = Fault::ALL.iter().map(|value| value.texts()).collect();
        assert_eq!(distinct.len(), Fault::ALL.len());
    }
}
