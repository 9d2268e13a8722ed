//! `stockctl audit`: checks on the live data that nothing was lost, applied twice or oversold.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use indicatif::ProgressBar;

use super::{
    EXIT_CHECK_FAILED, EXIT_UNREACHABLE, Failure, broker_settings, context, problem_of_schema,
};
use crate::app::audit::{self, Finding, Options, Report};
use crate::app::{Context, Kind};
use crate::config::Config;
use crate::domain::audit::Check;
use crate::shutdown::Shutdown;

/// A consumer takes a message and handles it within a second or so; what stays for longer is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

fn options(config: &Config) -> Options {
    Options {
        broker: broker_settings(config),
        patience: PATIENCE,
        vendor_timeout: config.vendor_sync.timeout,
    }
}

/// Checks everything once, and reports.
///
/// # Errors
/// Something is violated, or could not be looked at.
pub async fn run_once(config: &Config, json: bool) -> Result<(), Failure> {
    let report = look(config, &context(config)?).await?;
    if json {
        super::say(&document(&report)?);
    } else if !report.findings.is_empty() {
        super::say(&text(&report));
    }
    match report.failures.as_slice() {
        [] => verdict(report.violations(), report.failures()),
        failures => Err(Failure::new(EXIT_UNREACHABLE, failures.join("\n"))),
    }
}

/// Checks everything again and again until the shutdown; a line for each round.
///
/// # Errors
/// Something was violated in some round, or could not be looked at.
pub async fn watch(
    config: &Config,
    json: bool,
    every: Duration,
    shutdown: Shutdown,
) -> Result<(), Failure> {
    let context = context(config)?;
    let (mut violations, mut failures) = (0, 0);
    loop {
        let report = tokio::select! {
            // A round that is cut short says nothing.
            () = shutdown.begun() => break,
            report = look(config, &context) => report?,
        };
        violations += report.violations();
        failures += report.failures();
        let text = if json {
            document(&report)?
        } else {
            line(&report)
        };
        if !super::is_read(&text) {
            break;
        }
        tokio::select! {
            () = shutdown.begun() => break,
            () = tokio::time::sleep(every) => {}
        }
    }
    verdict(violations, failures)
}

/// One round. That our own database cannot be reached is a report too.
async fn look(config: &Config, context: &Context) -> Result<Report, Failure> {
    // Said with the way out, instead of in the server's words.
    if let Some(problem) = problem_of_schema(config).await {
        return Ok(Report::of_nothing(problem));
    }
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    bar.enable_steady_tick(Duration::from_millis(100));
    let report = audit::audit(context, &options(config), &|check: Check| {
        bar.set_message(check.as_str());
    })
    .await;
    bar.finish_and_clear();
    match report {
        Err(error) if error.kind() == Kind::Bug => Err(Failure::bug(error)),
        Err(error) => Ok(Report::of_nothing(error.to_string())),
        Ok(report) => {
            if let Err(error) = audit::note(context, &report).await {
                tracing::warn!(%error, "what was found cannot be noted, so /metrics shows an older audit");
            }
            Ok(report)
        }
    }
}

fn verdict(violations: u64, failures: usize) -> Result<(), Failure> {
    if violations > 0 {
        let what = if violations == 1 {
            "violation"
        } else {
            "violations"
        };
        return Err(Failure::new(
            EXIT_CHECK_FAILED,
            format!("the audit found {violations} {what}"),
        ));
    }
    if failures > 0 {
        return Err(Failure::new(
            EXIT_UNREACHABLE,
            "the audit could not look at everything",
        ));
    }
    Ok(())
}

fn document(report: &Report) -> Result<String, Failure> {
    serde_json::to_string(report).map_err(Failure::bug)
}

fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A round on one line: whether all is well, and otherwise which checks are not.
fn line(report: &Report) -> String {
    let milliseconds = report.duration.as_millis();
    if report.is_clean() {
        return format!("{} clean ({milliseconds} ms)", now());
    }
    let mut parts = report.failures.clone();
    for finding in &report.findings {
        let name = finding.check.as_str();
        if let Some(first) = finding.found.shown.first() {
            parts.push(format!(
                "{name}: {} violated, first {first}",
                finding.found.total
            ));
        }
        parts.extend(
            finding
                .failures
                .iter()
                .map(|text| format!("{name}: {text}")),
        );
    }
    format!("{} {} ({milliseconds} ms)", now(), parts.join("; "))
}

fn text(report: &Report) -> String {
    let mut lines = Vec::new();
    for finding in &report.findings {
        describe(finding, &mut lines);
    }
    lines.push(format!(
        "{} in {} ms",
        if report.is_clean() {
            "clean".to_owned()
        } else {
            format!(
                "{} violated, {} not checked,",
                report.violations(),
                report.failures()
            )
        },
        report.duration.as_millis()
    ));
    lines.join("\n")
}

fn describe(finding: &Finding, lines: &mut Vec<String>) {
    let state = match (finding.found.total, finding.failures.is_empty()) {
        (0, true) => "ok",
        (0, false) => "UNKNOWN",
        _ => "VIOLATED",
    };
    let mut line = format!("{:14}{state:9}", finding.check.as_str());
    for (index, (what, count)) in finding.looked_at.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let _ = write!(line, "{comma}{count} {}", what.replace('_', " "));
    }
    lines.push(line.trim_end().to_owned());
    let found = &finding.found;
    lines.extend(found.shown.iter().map(|one| format!("  {one}")));
    let hidden = found.total.saturating_sub(found.shown.len() as u64);
    if hidden > 0 {
        lines.push(format!("  and {hidden} more"));
    }
    lines.extend(
        finding
            .failures
            .iter()
            .map(|text| format!("  failed: {text}")),
    );
    lines.extend(finding.notes.iter().map(|text| format!("  note: {text}")));
}
