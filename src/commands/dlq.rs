//! `stockctl dlq`: dead letters, for whoever is on call.
//!
//! A look into a queue holds its letters back from others, so it has ended before anything is printed or asked: a pager
//! or a prompt may stay open for hours.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use uuid::Uuid;

use super::orders::order_id;
use super::table::{aligned, printable};
use super::{
    EXIT_CHECK_FAILED, EXIT_CONFIGURATION, EXIT_UNREACHABLE, EXIT_USAGE, Failure, broker_settings,
    context, failure, problem_of_schema, say,
};
use crate::app::dead_letters::{self, Act, Dropper, Found, Letter, LetterDocument, Report};
use crate::config::Config;
use crate::domain::dead_letter::{LETTERS_MAX, Selection, Subject};
use crate::domain::ids::OrderId;
use crate::mq::{Link, Publisher, Queue};

/// How long a replay waits for its connection: to reach a broker takes milliseconds, to find another node seconds.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Characters of an error in a list; `show` prints all of it.
const ERROR_CHARS: usize = 60;

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum Dlq {
    /// List letters of one queue or of all, and change nothing
    List {
        /// The queue; all of them unless said
        #[arg(value_name = "QUEUE", value_enum)]
        queue: Option<DeadLetterQueue>,
        /// Which letters.
        #[command(flatten)]
        filter: Filter,
        /// A JSON document on each line
        #[arg(long)]
        json: bool,
    },
    /// Show letters whole, with their headers, and change nothing
    Show {
        /// Which letters.
        #[command(flatten)]
        selecting: Selecting,
        /// A JSON document for each letter
        #[arg(long)]
        json: bool,
    },
    /// Send letters back to the queue that they came from, as if they were new
    Replay {
        /// Which letters.
        #[command(flatten)]
        selecting: Selecting,
        /// How.
        #[command(flatten)]
        acting: Acting,
    },
    /// Drop letters: their orders are cancelled, what was taken is returned, the letters are kept in the database
    Drop {
        /// Which letters.
        #[command(flatten)]
        selecting: Selecting,
        /// How.
        #[command(flatten)]
        acting: Acting,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// A dead-letter queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeadLetterQueue {
    /// Orders that could not be decided
    #[value(name = "orders_dlq")]
    Orders,
    /// Updates that a vendor could not be told
    #[value(name = "vendor_sync_dlq")]
    VendorSync,
    /// Events that a receiver of webhooks has not taken
    #[value(name = "webhooks_dlq")]
    Webhooks,
}

impl DeadLetterQueue {
    fn queue(self) -> Queue {
        match self {
            Self::Orders => Queue::OrdersDlq,
            Self::VendorSync => Queue::VendorSyncDlq,
            Self::Webhooks => Queue::WebhooksDlq,
        }
    }
}

/// Which letters of which queue.
#[derive(Debug, Args)]
pub struct Selecting {
    /// The queue
    #[arg(value_name = "QUEUE", value_enum)]
    queue: DeadLetterQueue,
    /// Which of its letters.
    #[command(flatten)]
    filter: Filter,
}

/// Which letters: all that is given must hold.
#[derive(Debug, Clone, Args)]
pub struct Filter {
    /// Only the letter with this message id; may be given more than once
    #[arg(long = "id", value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    ids: Vec<String>,
    /// Only letters with this reason, such as retries_exhausted, invalid_message, crash_loop, update_conflict,
    /// delivery_limit
    #[arg(long, value_name = "CODE", value_parser = NonEmptyStringValueParser::new())]
    reason: Option<String>,
    /// Only letters that concern this order
    #[arg(long, value_name = "ORDER", value_parser = order_id)]
    order: Option<Uuid>,
    /// At most so many, from the front of the queue: 1 to 10000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: Option<u16>,
}

impl Filter {
    fn selects(&self) -> bool {
        !self.ids.is_empty()
            || self.reason.is_some()
            || self.order.is_some()
            || self.limit.is_some()
    }

    fn selection(&self) -> Selection {
        Selection {
            message_ids: self.ids.iter().cloned().collect(),
            reason: self.reason.clone(),
            order: self.order.map(OrderId),
            after: None,
            limit: self.limit.map_or(LETTERS_MAX, usize::from),
            shown: None,
        }
    }
}

impl Selecting {
    fn selects(&self) -> bool {
        self.filter.selects()
    }

    fn selection(&self) -> Selection {
        self.filter.selection()
    }

    fn queue_name(&self) -> &'static str {
        self.queue.queue().base_name()
    }
}

/// How to act on letters.
#[derive(Debug, Args)]
pub struct Acting {
    /// Every letter of the queue
    #[arg(long, conflicts_with_all = ["ids", "reason", "order", "limit"])]
    all: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Report as one JSON document
    #[arg(long)]
    json: bool,
}

impl Acting {
    fn act(&self) -> Act {
        if self.dry_run { Act::Rehearse } else { Act::Do }
    }
}

/// Runs it.
///
/// # Errors
/// See [`Failure`].
pub async fn run(config: &Config, command: Dlq) -> Result<(), Failure> {
    match command {
        Dlq::List {
            queue: Some(queue),
            filter,
            json,
        } => list(config, &Selecting { queue, filter }, json).await,
        Dlq::List {
            queue: None,
            filter,
            json,
        } => list_all(config, &filter, json).await,
        Dlq::Show { selecting, json } => show(config, &selecting, json).await,
        Dlq::Replay { selecting, acting } => replay(config, &selecting, &acting).await,
        Dlq::Drop {
            selecting,
            acting,
            yes,
        } => drop(config, &selecting, &acting, yes).await,
    }
}

async fn look(config: &Config, selecting: &Selecting) -> Result<Found, Failure> {
    let (context, broker) = (context(config)?, broker_settings(config));
    let (queue, selection) = (selecting.queue.queue(), selecting.selection());
    let found = dead_letters::list(&context, &broker, queue, &selection).await;
    found.map_err(|error| failure(&error))
}

async fn list(config: &Config, selecting: &Selecting, json: bool) -> Result<(), Failure> {
    let found = look(config, selecting).await?;
    if json {
        let lines: Vec<String> = found
            .letters
            .iter()
            .map(|letter| serde_json::to_string(&letter.document(false)))
            .collect::<Result<_, _>>()
            .map_err(Failure::bug)?;
        if !lines.is_empty() {
            say(&lines.join("\n"));
        }
    } else if found.letters.is_empty() {
        say(&none_found(selecting));
    } else {
        say(&table(selecting.queue, &found.letters));
    }
    tell_of_the_rest(found.not_looked_at);
    Ok(())
}

/// A letter of any queue, for programs.
#[derive(Serialize)]
struct OfQueue<'a> {
    queue: &'static str,
    #[serde(flatten)]
    letter: LetterDocument<'a>,
}

async fn list_all(config: &Config, filter: &Filter, json: bool) -> Result<(), Failure> {
    let mut found = Vec::new();
    for &queue in DeadLetterQueue::value_variants() {
        let filter = filter.clone();
        let selecting = Selecting { queue, filter };
        found.push((selecting.queue_name(), look(config, &selecting).await?));
    }
    if json {
        for (queue, found) in &found {
            for letter in &found.letters {
                let letter = letter.document(false);
                let line = serde_json::to_string(&OfQueue { queue, letter });
                say(&line.map_err(Failure::bug)?);
            }
        }
    } else if found.iter().all(|(_, found)| found.letters.is_empty()) {
        let what = if filter.selects() {
            "such letters"
        } else {
            "letters"
        };
        say(&format!("there are no {what} in any of the queues"));
    } else {
        let head = [
            "QUEUE", "ID", "REASON", "WHEN", "ATTEMPTS", "CONCERNS", "ERROR",
        ];
        let rows = found.iter().flat_map(|(queue, found)| {
            let of_queue = |letter| {
                let [id, reason, when, attempts, concerns, error] = cells(letter);
                let queue = (*queue).to_owned();
                [queue, id, reason, when, attempts, concerns, error]
            };
            found.letters.iter().map(of_queue)
        });
        let head = std::iter::once(head.map(str::to_owned));
        let rows: Vec<[String; 7]> = head.chain(rows).collect();
        say(&aligned(&rows));
    }
    for (queue, found) in &found {
        if found.not_looked_at > 0 {
            let rest = found.not_looked_at;
            let _ = writeln!(
                std::io::stderr(),
                "{rest} more of {queue} were not looked at"
            );
        }
    }
    Ok(())
}

async fn show(config: &Config, selecting: &Selecting, json: bool) -> Result<(), Failure> {
    let found = look(config, selecting).await?;
    if found.letters.is_empty() {
        let none = match found.not_looked_at {
            0 => none_found(selecting),
            left => format!(
                "{} among the first {LETTERS_MAX}; {left} more behind them were not looked at",
                none_found(selecting)
            ),
        };
        return Err(Failure::new(EXIT_CHECK_FAILED, none));
    }
    for (index, letter) in found.letters.iter().enumerate() {
        if json {
            let document = letter.document(true);
            say(&serde_json::to_string_pretty(&document).map_err(Failure::bug)?);
        } else {
            let gap = if index > 0 { "\n" } else { "" };
            say(&format!("{gap}{}", whole(letter)?));
        }
    }
    tell_of_the_rest(found.not_looked_at);
    Ok(())
}

async fn replay(config: &Config, selecting: &Selecting, acting: &Acting) -> Result<(), Failure> {
    check_selection(selecting, acting, "replay")?;
    check_schema(config).await?;
    let (context, broker) = (context(config)?, broker_settings(config));
    let publisher = match acting.act() {
        Act::Do => Some(connect(config).await?),
        Act::Rehearse => None,
    };
    let bar = bar();
    let report = dead_letters::replay(
        &context,
        &broker,
        selecting.queue.queue(),
        &selecting.selection(),
        publisher.as_ref(),
        &|done, of| advance(&bar, done, of),
    )
    .await;
    bar.finish_and_clear();
    if let Some(publisher) = publisher {
        publisher.close(CONNECT_DEADLINE).await;
    }
    let report = report.map_err(|error| failure(&error))?;
    if acting.json {
        let document = report.of_replay(acting.act());
        say(&serde_json::to_string(&document).map_err(Failure::bug)?);
    } else {
        tell(&report, selecting, acting, &REPLAY);
    }
    end(&report, &REPLAY)
}

async fn drop(
    config: &Config,
    selecting: &Selecting,
    acting: &Acting,
    yes: bool,
) -> Result<(), Failure> {
    check_selection(selecting, acting, "drop")?;
    let may_ask = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    let asks = acting.act() == Act::Do && !yes;
    if asks && !may_ask {
        return Err(Failure::new(
            EXIT_USAGE,
            match selecting.queue {
                DeadLetterQueue::Webhooks => {
                    "what is dropped is never told, and there is no terminal to ask on: look with --dry-run what it would \
                     drop, and then give --yes"
                }
                DeadLetterQueue::Orders | DeadLetterQueue::VendorSync => {
                    "dropping letters cancels their orders, and there is no terminal to ask on: look with --dry-run what \
                     it would do, and then give --yes"
                }
            },
        ));
    }
    check_schema(config).await?;
    let (context, broker) = (context(config)?, broker_settings(config));
    let mut selection = selecting.selection();
    if asks {
        let found = look(config, selecting).await?;
        if found.letters.is_empty() {
            say(&none_found(selecting));
            return Ok(());
        }
        if !confirm(selecting, &found.letters).await? {
            return Err(Failure::new(EXIT_CHECK_FAILED, "nothing was dropped"));
        }
        // What has come since was not agreed to.
        selection.shown = Some(found.letters.iter().map(|letter| letter.name).collect());
    }
    let bar = bar();
    let by = format!("cli:{}", account());
    // What has to leave for the vendors stands in the outbox, and is sent by the sweepers of `serve` and `work`.
    let dropper = Dropper {
        by: &by,
        hand_over: &|_| (),
    };
    let report = dead_letters::drop(
        &context,
        &broker,
        selecting.queue.queue(),
        &selection,
        acting.act(),
        &|done, of| advance(&bar, done, of),
        dropper,
    )
    .await;
    bar.finish_and_clear();
    let report = report.map_err(|error| failure(&error))?;
    if acting.json {
        let document = report.of_drop(acting.act());
        say(&serde_json::to_string(&document).map_err(Failure::bug)?);
    } else {
        tell(&report, selecting, acting, &DROP);
    }
    end(&report, &DROP)
}

/// An operator must not act on a whole queue by a slip.
fn check_selection(selecting: &Selecting, acting: &Acting, verb: &str) -> Result<(), Failure> {
    if selecting.selects() || acting.all {
        return Ok(());
    }
    Err(Failure::new(
        EXIT_USAGE,
        format!(
            "say which letters to {verb}: select them by --id, --reason, --order or --limit, or give --all for every \
             letter of {}",
            selecting.queue_name()
        ),
    ))
}

async fn check_schema(config: &Config) -> Result<(), Failure> {
    match problem_of_schema(config).await {
        None => Ok(()),
        Some(problem) => Err(Failure::new(EXIT_UNREACHABLE, problem)),
    }
}

async fn connect(config: &Config) -> Result<Publisher, Failure> {
    let publisher = Publisher::start(broker_settings(config), "dlq");
    let mut link = publisher.link();
    let connected = |link: &Link| matches!(link, Link::Up | Link::Misdeclared { .. });
    let waited = tokio::time::timeout(CONNECT_DEADLINE, link.wait_for(connected)).await;
    std::mem::drop(waited);
    let now = link.borrow().clone();
    let problem = match now {
        Link::Up => return Ok(publisher),
        Link::Misdeclared { message } => {
            return Err(Failure::new(EXIT_CONFIGURATION, message));
        }
        Link::Blocked { reason } => format!("RabbitMQ blocks publishing: {reason}"),
        Link::Connecting { error } => format!(
            "no connection to RabbitMQ within {} s: {}",
            CONNECT_DEADLINE.as_secs(),
            error.unwrap_or_else(|| "no answer".to_owned())
        ),
    };
    Err(Failure::new(EXIT_UNREACHABLE, problem))
}

/// Who asks, as far as the environment tells; behind sudo, the person and not root.
fn account() -> String {
    ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .map_or_else(
            || "unknown".to_owned(),
            |name| name.chars().filter(|c| !c.is_control()).take(60).collect(),
        )
}

/// Says what is about to be dropped, and asks.
async fn confirm(selecting: &Selecting, letters: &[Letter]) -> Result<bool, Failure> {
    let question = format!(
        "Drop {} of {} ({})? {} [y/N] ",
        counted(letters.len()),
        selecting.queue_name(),
        reasons(letters),
        match selecting.queue {
            DeadLetterQueue::Webhooks => "What they tell is never told to their receivers.",
            DeadLetterQueue::Orders | DeadLetterQueue::VendorSync =>
                "What they ordered is cancelled, and what was taken for it is returned.",
        }
    );
    let ask = move || -> std::io::Result<bool> {
        let mut terminal = std::io::stderr();
        terminal.write_all(question.as_bytes())?;
        terminal.flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    };
    tokio::task::spawn_blocking(ask)
        .await
        .map_err(Failure::bug)?
        .map_err(Failure::bug)
}

fn reasons(letters: &[Letter]) -> String {
    let mut counts = BTreeMap::new();
    for letter in letters {
        *counts
            .entry(letter.reason.as_deref().unwrap_or("-"))
            .or_insert(0) += 1;
    }
    let parts: Vec<String> = counts
        .into_iter()
        .map(|(reason, count): (&str, u32)| format!("{count} {}", printable(reason)))
        .collect();
    parts.join(", ")
}

fn counted(letters: usize) -> String {
    match letters {
        1 => "1 letter".to_owned(),
        more => format!("{more} letters"),
    }
}

fn none_found(selecting: &Selecting) -> String {
    let what = if selecting.selects() {
        "has no such letter"
    } else {
        "has no letters"
    };
    format!("{} {what}", selecting.queue_name())
}

/// How a deed is spoken of.
struct Words {
    done: &'static str,
    would_be_done: &'static str,
    to_order: &'static str,
}

const REPLAY: Words = Words {
    done: "replayed",
    would_be_done: "would replay",
    to_order: "is pending again",
};
const DROP: Words = Words {
    done: "dropped",
    would_be_done: "would drop",
    to_order: "is cancelled",
};

fn tell(report: &Report, selecting: &Selecting, acting: &Acting, words: &Words) {
    let verb = match acting.act() {
        Act::Do => words.done,
        Act::Rehearse => words.would_be_done,
    };
    let mut lines = Vec::new();
    for effect in &report.done {
        let orders: Vec<String> = effect
            .orders
            .iter()
            .map(|order| format!(": order {order} {}", words.to_order))
            .collect();
        lines.push(format!(
            "{verb} {}{}",
            name(&effect.message_id),
            orders.concat()
        ));
    }
    for kept in &report.kept {
        lines.push(format!("kept {}: {}", name(&kept.message_id), kept.why));
    }
    if lines.is_empty() {
        lines.push(none_found(selecting));
    } else {
        lines.push(format!("{verb} {}", counted(report.done.len())));
    }
    say(&lines.join("\n"));
    tell_of_the_rest(report.not_looked_at);
}

/// The exit of an act: not all that was meant is done with.
fn end(report: &Report, words: &Words) -> Result<(), Failure> {
    if let Some(error) = &report.stopped {
        let failure = failure(error);
        return Err(Failure::new(
            failure.code,
            format!(
                "it ended after {} were {}, and repeating it does the rest: {error}",
                counted(report.done.len()),
                words.done
            ),
        ));
    }
    let mut problems = Vec::new();
    if !report.kept.is_empty() {
        problems.push(format!("{} had to be kept", counted(report.kept.len())));
    }
    if !report.not_found.is_empty() {
        let ids: Vec<String> = report.not_found.iter().map(|id| name(id)).collect();
        problems.push(format!("there is no letter {}", ids.join(", ")));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(EXIT_CHECK_FAILED, problems.join("; ")))
    }
}

/// Letters that no one looked at are told of beside the output, which a program may read.
fn tell_of_the_rest(not_looked_at: u32) {
    if not_looked_at > 0 {
        let _ = writeln!(
            std::io::stderr(),
            "{not_looked_at} more behind them were not looked at"
        );
    }
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {human_pos} of {human_len} ({elapsed})")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

fn advance(bar: &ProgressBar, done: usize, of: usize) {
    bar.set_length(of as u64);
    bar.set_position(done as u64);
}

fn name(message_id: &str) -> String {
    if message_id.is_empty() {
        "(no id)".to_owned()
    } else {
        printable(message_id)
    }
}

fn concerns(letter: &Letter) -> String {
    match &letter.subject {
        Subject::Orders(orders) => match orders.as_slice() {
            [order] => order.id.to_string(),
            several => format!("{} orders", several.len()),
        },
        Subject::Updates(message) => match message.updates.len() {
            1 => format!("{}, 1 update", message.vendor_id),
            more => format!("{}, {more} updates", message.vendor_id),
        },
        Subject::Notification(notification) => notification.webhook_id.to_string(),
        Subject::Unreadable => "-".to_owned(),
    }
}

/// The first line of an error, as much of it as a list has room for.
fn beginning(error: &str) -> String {
    let line = error.lines().next().unwrap_or_default();
    let mut short: String = printable(line).chars().take(ERROR_CHARS).collect();
    if error.chars().count() > short.chars().count() {
        short.push('…');
    }
    short
}

fn table(queue: DeadLetterQueue, letters: &[Letter]) -> String {
    let about = match queue {
        DeadLetterQueue::Orders => "ORDER",
        DeadLetterQueue::VendorSync => "VENDOR",
        DeadLetterQueue::Webhooks => "WEBHOOK",
    };
    let head = ["ID", "REASON", "WHEN", "ATTEMPTS", about, "ERROR"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head)
        .chain(letters.iter().map(cells))
        .collect();
    aligned(&rows)
}

/// A letter in a list.
fn cells(letter: &Letter) -> [String; 6] {
    let text = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), printable);
    [
        name(&letter.message_id),
        text(&letter.reason),
        text(&letter.dead_lettered_at),
        text(&letter.attempts),
        concerns(letter),
        letter
            .error
            .as_deref()
            .map_or_else(|| "-".to_owned(), beginning),
    ]
}

/// A letter whole: what it is, its headers, its body.
fn whole(letter: &Letter) -> Result<String, Failure> {
    let text = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), printable);
    let facts = [
        ["id".to_owned(), name(&letter.message_id)],
        ["reason".to_owned(), text(&letter.reason)],
        ["when".to_owned(), text(&letter.dead_lettered_at)],
        ["attempts".to_owned(), text(&letter.attempts)],
        ["concerns".to_owned(), concerns(letter)],
        ["error".to_owned(), text(&letter.error)],
    ];
    let headers: Vec<[String; 2]> = letter
        .headers
        .iter()
        .map(|(name, value)| {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            [format!("  {}", printable(name)), printable(&value)]
        })
        .collect();
    let body = match letter.body_as_json() {
        serde_json::Value::String(text) => text,
        json => serde_json::to_string_pretty(&json).map_err(Failure::bug)?,
    };
    let body: Vec<String> = body
        .lines()
        .map(|line| format!("  {}", printable(line)))
        .collect();
    Ok(format!(
        "{}\nheaders\n{}\nbody\n{}",
        aligned(&facts),
        aligned(&headers),
        body.join("\n")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_has_a_name_that_does_not_steer_the_terminal() {
        assert_eq!(name("a\u{1b}[2Jb"), "a\u{fffd}[2Jb");
        assert_eq!(name(""), "(no id)");
    }

    #[test]
    fn a_list_has_the_beginning_of_an_error() {
        assert_eq!(beginning("short"), "short");
        assert_eq!(beginning("first\nsecond"), "first…");
        let long = beginning(&"é".repeat(100));
        assert_eq!(long, format!("{}…", "é".repeat(60)));
    }
}
