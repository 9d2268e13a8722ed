//! `stockctl bench`: how fast an installation is.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use super::{EXIT_UNREACHABLE, EXIT_USAGE, Failure, say};
use crate::bench::{self, Distribution, Error, Latency, Pace, Plan, Report};

/// What was asked for.
#[derive(Clone, clap::Args)]
pub struct Options {
    /// Base of the HTTP API
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// An API key with the scopes orders:write and orders:read; better in the variable, since everybody on the machine can
    /// read arguments
    #[arg(
        long,
        value_name = "KEY",
        env = "STOCKCTL_API_KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,
    /// Connections, each with one request at a time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Orders a second, whatever the answers take; without it each connection waits for its answer
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Seconds that are measured
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration: u64,
    /// Seconds before that which are not
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=3600))]
    warm_up: u64,
    /// Seconds to wait in the end for what was accepted to be decided and told
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    drain: u64,
    /// Products to order: the first so many by id
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    products: u32,
    /// Which products are ordered how often: uniform, zipf, or hot (all orders for one)
    #[arg(long, value_name = "NAME", default_value = "uniform")]
    distribution: DistributionName,
    /// The exponent of zipf: the k-th product is ordered in proportion to 1 / k^S
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    zipf_exponent: f64,
    /// Lines of each order
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    lines: u32,
    /// Units of each line
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    quantity: i64,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// Without the key.
impl std::fmt::Debug for Options {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Options")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum DistributionName {
    Uniform,
    Zipf,
    Hot,
}

impl Options {
    fn plan(&self) -> Result<Plan, Failure> {
        if !(0.0..=10.0).contains(&self.zipf_exponent) {
            return Err(Failure::new(
                EXIT_USAGE,
                format!("--zipf-exponent must be 0 to 10, is {}", self.zipf_exponent),
            ));
        }
        let usize_of = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        Ok(Plan {
            url: self.url.clone(),
            api_key: self
                .api_key
                .as_deref()
                .map(str::trim)
                .filter(|key| !key.is_empty())
                .map(str::to_owned),
            connections: usize_of(self.connections),
            pace: self
                .rate
                .map_or(Pace::Closed, |rate| Pace::Open(rate.into())),
            duration: Duration::from_secs(self.duration),
            warm_up: Duration::from_secs(self.warm_up),
            drain: Duration::from_secs(self.drain),
            products_max: usize_of(self.products),
            distribution: match self.distribution {
                DistributionName::Uniform => Distribution::Uniform,
                DistributionName::Zipf => Distribution::Zipf(self.zipf_exponent),
                DistributionName::Hot => Distribution::Hot,
            },
            lines: usize_of(self.lines),
            quantity: self.quantity,
        })
    }
}

/// Orders at full speed or at a rate, and reports.
///
/// # Errors
/// See [`Failure`].
pub async fn run(options: &Options) -> Result<(), Failure> {
    let plan = options.plan()?;
    let progress = |line: &str| {
        let _ = writeln!(std::io::stderr(), "{line}");
    };
    let report = bench::run(&plan, &progress).await.map_err(|error| {
        let code = match error {
            Error::Address { .. } | Error::Key => EXIT_USAGE,
            _ => EXIT_UNREACHABLE,
        };
        Failure::new(code, error.to_string())
    })?;
    if options.json {
        say(&serde_json::to_string(&report).map_err(Failure::bug)?);
    } else {
        say(table(&report).trim_end());
    }
    Ok(())
}

fn table(report: &Report) -> String {
    let mut text = format!(
        "{:<10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}\n",
        "", "orders", "orders/s", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms"
    );
    for (name, stage) in [
        ("accepted", &report.accepted),
        ("decided", &report.decided),
        ("told", &report.told),
    ] {
        let _ = write!(
            text,
            "{name:<10} {:>10} {:>10.0}",
            stage.orders, stage.per_second
        );
        if let Some(Latency {
            p50_ms,
            p90_ms,
            p99_ms,
            p999_ms,
            max_ms,
        }) = stage.latency
        {
            for ms in [p50_ms, p90_ms, p99_ms, p999_ms, max_ms] {
                let _ = write!(text, " {ms:>10.1}");
            }
        }
        text.push('\n');
    }
    for (title, counts) in [
        ("by status", &report.by_status),
        ("refused", &report.refused),
        ("no answer", &report.failed),
    ] {
        if !counts.is_empty() {
            let counts: Vec<String> = counts
                .iter()
                .map(|(what, count)| format!("{what} {count}"))
                .collect();
            let _ = writeln!(text, "{title}: {}", counts.join(", "));
        }
    }
    if report.unfinished > 0 {
        let _ = writeln!(
            text,
            "{} orders were not decided and told when the time was over",
            report.unfinished
        );
    }
    text
}
