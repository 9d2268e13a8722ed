//! `stockctl status`: the whole on one screen, and what needs a hand.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use serde::Serialize;

use super::style::{self, Colour};
use super::{EXIT_CHECK_FAILED, Failure, broker_settings, context, problem_of_schema};
use crate::app::{Context, status};
use crate::config::{Config, QueueType};
use crate::domain::status::{Messages, Seen, Store, Vendor, Waiting, age, needs};
use crate::shutdown::Shutdown;

/// Looking whether the database has its schema; one that takes longer does not answer.
const SCHEMA_DEADLINE: Duration = Duration::from_secs(5);
/// A vendor whose stock is older is told of, unless its schedule is rarer than that.
const SYNC_SILENCE: Duration = Duration::from_secs(300);

/// What was seen, and what it means.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    at: String,
    is_well: bool,
    needs: Vec<String>,
    notes: Vec<String>,
    #[serde(flatten)]
    seen: Seen,
}

/// Looks once, or again and again until the shutdown; on a terminal each look then replaces the one before.
///
/// # Errors
/// Something needed a hand at the last look.
pub async fn run(
    config: &Config,
    json: bool,
    every: Option<Duration>,
    shutdown: Shutdown,
) -> Result<(), Failure> {
    let context = context(config)?;
    let Some(every) = every else {
        let report = look(config, &context).await;
        show(&report, json)?;
        return verdict(&report.needs);
    };
    let mut needs = Vec::new();
    loop {
        let report = tokio::select! {
            () = shutdown.begun() => break,
            report = look(config, &context) => report,
        };
        if !json && std::io::stdout().is_terminal() {
            // Clears the screen, and begins at its top.
            super::say("\x1b[2J\x1b[H");
        }
        let is_read = show(&report, json)?;
        if !json && !std::io::stdout().is_terminal() {
            super::say("");
        }
        needs = report.needs;
        if !is_read {
            break;
        }
        tokio::select! {
            () = shutdown.begun() => break,
            () = tokio::time::sleep(every) => {}
        }
    }
    verdict(&needs)
}

async fn look(config: &Config, context: &Context) -> Report {
    // Said with the way out, instead of in the server's words.
    let problem = match tokio::time::timeout(SCHEMA_DEADLINE, problem_of_schema(config)).await {
        Ok(problem) => problem,
        Err(_) => Some(format!(
            "PostgreSQL does not answer within {} s",
            SCHEMA_DEADLINE.as_secs()
        )),
    };
    let nodes: Vec<String> = config
        .rabbitmq
        .urls
        .iter()
        .map(ToString::to_string)
        .collect();
    let seen = status::look(context, &broker_settings(config), nodes.join(", "), problem).await;
    let needs = needs(&seen, sync_silence_max(config));
    let mut notes = Vec::new();
    if config.rabbitmq.queue_type == QueueType::Classic {
        notes.push(
            "rabbitmq.queue_type is classic: a queue is on one node, and promises less than a quorum queue when that crashes"
                .to_owned(),
        );
    }
    Report {
        at: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
        is_well: needs.is_empty(),
        needs,
        notes,
        seen,
    }
}

/// Two ticks of the schedule may pass before somebody should look, and five minutes at least.
fn sync_silence_max(config: &Config) -> Duration {
    let ticks: Vec<_> = config.sync.schedule.upcoming(Utc).take(2).collect();
    let between = match ticks.as_slice() {
        [first, second] => (*second - *first).to_std().unwrap_or_default(),
        _ => Duration::MAX / 4,
    };
    SYNC_SILENCE.max(2 * between)
}

fn verdict(needs: &[String]) -> Result<(), Failure> {
    match needs.len() {
        0 => Ok(()),
        1 => Err(Failure::new(EXIT_CHECK_FAILED, "1 thing needs a hand")),
        many => Err(Failure::new(
            EXIT_CHECK_FAILED,
            format!("{many} things need a hand"),
        )),
    }
}

/// Returns whether somebody may still read.
fn show(report: &Report, json: bool) -> Result<bool, Failure> {
    let text = if json {
        serde_json::to_string(report).map_err(Failure::bug)?
    } else {
        text(report)
    };
    Ok(super::is_read(&text))
}

fn text(report: &Report) -> String {
    let seen = &report.seen;
    let mut lines = vec![match report.is_well {
        true => format!(
            "{}  {}",
            style::painted(Colour::Green, "all is well"),
            report.at
        ),
        false => format!(
            "{}  {}",
            style::painted(Colour::Red, "needs a hand"),
            report.at
        ),
    }];
    lines.extend(report.needs.iter().map(|need| format!("  - {need}")));
    lines.extend(report.notes.iter().map(|note| format!("  note: {note}")));
    lines.push(String::new());
    lines.push(store("PostgreSQL", &seen.postgresql));
    lines.push(store("RabbitMQ", &seen.rabbitmq));
    lines.push(format!("orders      {}", waiting(seen.pending, "pending")));
    lines.push(format!(
        "outbox      {}",
        waiting(seen.outbox, "to be published")
    ));
    lines.push(String::new());
    lines.push(format!(
        "{:20}{:>8}{:>10}{:>11}",
        "QUEUE", "READY", "RATE", "CONSUMERS"
    ));
    match &seen.queues {
        None => lines.push("not known while RabbitMQ is away".into()),
        Some(queues) => lines.extend(queues.iter().map(|queue| {
            let figures = match queue.messages {
                Some(Messages { ready, consumers }) => {
                    format!("{ready:>8}{:>10}{consumers:>11}", rate(queue.per_second))
                }
                None => "  does not exist".into(),
            };
            let stalled = if queue.is_stalled == Some(true) {
                "  stalled"
            } else {
                ""
            };
            format!("{:20}{figures}{stalled}", queue.name)
        })),
    }
    lines.push(String::new());
    match &seen.vendors {
        None => lines.push("VENDOR\nnot known while PostgreSQL is away".into()),
        Some(vendors) => table_of(vendors, &mut lines),
    }
    lines.join("\n")
}

fn rate(per_second: Option<f64>) -> String {
    match per_second {
        None => "?".to_owned(),
        Some(rate) if rate < 0.05 => "-".to_owned(),
        Some(rate) => format!("{rate:.1}/s"),
    }
}

fn table_of(vendors: &[Vendor], lines: &mut Vec<String>) {
    let widest = vendors
        .iter()
        .map(|of| of.id.len())
        .max()
        .unwrap_or(0)
        .max(6)
        + 2;
    lines.push(format!(
        "{:widest$}{:>12}{:>8}{:>12}{:>9}  API",
        "VENDOR", "LAST SYNC", "OPEN", "UNANSWERED", "OLDEST"
    ));
    for vendor in vendors {
        let synced = vendor
            .last_sync_age_s
            .map_or_else(|| "never".into(), |seconds| format!("{} ago", age(seconds)));
        let oldest = match vendor.unanswered.count {
            0 => "-".into(),
            _ => age(vendor.unanswered.oldest_age_s),
        };
        let api = match vendor.push_state.as_deref() {
            None => "never called".to_owned(),
            Some("ok") => "ok".to_owned(),
            Some("failing") => format!("failing for {}", age(vendor.push_state_age_s)),
            Some(_) => format!("down for {}", age(vendor.push_state_age_s)),
        };
        lines.push(format!(
            "{:widest$}{synced:>12}{:>8}{:>12}{oldest:>9}  {api}",
            vendor.id, vendor.open_updates, vendor.unanswered.count
        ));
        for (what, error) in [
            ("the newest sync failed", &vendor.last_sync_error),
            ("its API", &vendor.last_push_error),
        ] {
            if let Some(error) = error {
                lines.push(format!("  {what}: {error}"));
            }
        }
    }
}

fn store(name: &str, store: &Store) -> String {
    let mut line = format!("{name:12}");
    let _ = match store.problem {
        None => write!(
            line,
            "{}    {}",
            style::painted(Colour::Green, "up"),
            store.address
        ),
        Some(_) => write!(
            line,
            "{}  {}",
            style::painted(Colour::Red, "down"),
            store.address
        ),
    };
    line
}

fn waiting(of: Option<Waiting>, what: &str) -> String {
    match of {
        None => "not known while PostgreSQL is away".into(),
        Some(Waiting { count: 0, .. }) => format!("none {what}"),
        Some(Waiting {
            count,
            oldest_age_s,
        }) => {
            format!("{count} {what}, the oldest for {}", age(oldest_age_s))
        }
    }
}
