//! `stockctl sync`: brings the vendors' stock in, by a schedule or once.

use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::task::JoinSet;

use super::{
    EXIT_CHECK_FAILED, EXIT_CONFIGURATION, EXIT_UNREACHABLE, Failure, context, problem_of_schema,
    wait_for_schema,
};
use crate::app::sync::{self, Options, Outcome};
use crate::app::{Context, Error};
use crate::config::Config;
use crate::domain::ids::VendorId;
use crate::schedule;
use crate::shutdown::Shutdown;
use crate::supervisor::Supervisor;

/// What to sync.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Only these vendors; all when empty.
    pub vendors: Vec<String>,
    /// Believe a vendor that lists nothing where there was something.
    pub allow_empty: bool,
}

fn select(context: &Context, selection: &Selection) -> Result<Vec<VendorId>, Failure> {
    let configured = context.vendor_ids();
    for wanted in &selection.vendors {
        if !configured.iter().any(|id| id.as_str() == wanted) {
            let known: Vec<&str> = configured.iter().map(VendorId::as_str).collect();
            return Err(Failure::new(
                EXIT_CONFIGURATION,
                format!(
                    "no vendor {wanted:?} is configured; there are: {}",
                    known.join(", ")
                ),
            ));
        }
    }
    Ok(configured
        .into_iter()
        .filter(|id| {
            selection.vendors.is_empty()
                || selection.vendors.iter().any(|wanted| wanted == id.as_str())
        })
        .collect())
}

/// Syncs by the schedule until the shutdown.
///
/// # Errors
/// See [`Failure`].
pub async fn run(
    config: &Config,
    selection: &Selection,
    shutdown: Shutdown,
    supervisor: &Supervisor,
) -> Result<(), Failure> {
    let context = context(config)?;
    let vendors = select(&context, selection)?;
    let gauges = super::metrics::gauges(config, &context)?;
    let _metrics = super::metrics::listen(config, &gauges)?;
    supervisor.ready("starting");
    if !wait_for_schema(config, &shutdown, supervisor).await {
        return Ok(());
    }
    let names: Vec<&str> = vendors.iter().map(VendorId::as_str).collect();
    supervisor.status(&format!("syncing {}", names.join(", ")));
    schedule::run_until_stopped(
        context,
        config.sync.schedule.clone(),
        vendors,
        config.sync.chunk_rows.clone(),
        selection.allow_empty,
        shutdown.clone(),
        supervisor,
    )
    .await;
    if shutdown.is_begun() {
        Ok(())
    } else {
        Err(Failure::bug("the sync of a vendor ended by itself"))
    }
}

fn options(config: &Config, selection: &Selection) -> Options {
    Options {
        chunk_rows: config.sync.chunk_rows.get(),
        allow_empty: selection.allow_empty,
    }
}

/// Syncs once, the vendors side by side, and reports.
///
/// # Errors
/// A vendor failed; the others were synced all the same.
pub async fn run_once(config: &Config, selection: &Selection, json: bool) -> Result<(), Failure> {
    let context = context(config)?;
    let vendors = select(&context, selection)?;
    // Said once, and with the way out, instead of by each vendor's run in the server's words.
    if let Some(problem) = problem_of_schema(config).await {
        return Err(Failure::new(EXIT_UNREACHABLE, problem));
    }
    let options = options(config, selection);
    let bars = MultiProgress::new();
    let mut runs = JoinSet::new();
    for vendor_id in vendors {
        let context = context.clone();
        let bar = bars.add(bar(&vendor_id));
        runs.spawn(async move {
            let outcome = sync::sync(&context, &vendor_id, options, &|listed| {
                bar.set_position(listed)
            })
            .await;
            bar.finish_and_clear();
            (vendor_id, outcome)
        });
    }
    let mut failures = Vec::new();
    let mut code = EXIT_CHECK_FAILED;
    while let Some(ended) = runs.join_next().await {
        let (vendor_id, outcome) = ended.map_err(Failure::bug)?;
        match outcome {
            Ok(outcome) => super::say(&line(&vendor_id, outcome, json)),
            Err(error) => {
                if !matches!(error, Error::Refused { .. }) {
                    code = EXIT_UNREACHABLE;
                }
                failures.push(format!("vendor {vendor_id}: {error}"));
            }
        }
    }
    if failures.is_empty() {
        Ok(())
    } else {
        failures.sort();
        Err(Failure::new(code, failures.join("\n")))
    }
}

/// A spinner that shows itself only on a terminal.
fn bar(vendor_id: &VendorId) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "{spinner} {prefix}: {human_pos} products ({per_sec}, {elapsed})",
    )
    .unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = ProgressBar::new_spinner()
        .with_style(style)
        .with_prefix(vendor_id.to_string());
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    bar
}

fn line(vendor_id: &VendorId, outcome: Outcome, json: bool) -> String {
    let (state, summary) = match outcome {
        Outcome::Done(summary) => ("done", summary),
        Outcome::Busy => ("busy", sync::Summary::default()),
        Outcome::Overtaken => ("overtaken", sync::Summary::default()),
    };
    if json {
        return serde_json::json!({
            "vendorId": vendor_id, "outcome": state, "products": summary.listed, "read": summary.read, "written": summary.written,
            "updatesClosed": summary.closed, "skipped": summary.skipped,
        })
        .to_string();
    }
    match outcome {
        Outcome::Done(summary) => format!(
            "{vendor_id}: {} products, {} written, {} updates found applied{}",
            summary.listed,
            summary.written,
            summary.closed,
            if summary.skipped > 0 {
                format!(
                    ", {} passed over because their id or stock cannot be ours",
                    summary.skipped
                )
            } else {
                String::new()
            }
        ),
        Outcome::Busy => format!("{vendor_id}: another process is syncing it now"),
        Outcome::Overtaken => {
            format!("{vendor_id}: a newer run has begun meanwhile and writes the rest")
        }
    }
}
