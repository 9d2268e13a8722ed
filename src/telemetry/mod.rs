//! Logging: one subscriber for the whole process, which writes to stderr as text for people or as JSON for machines.
//! Records of crates that use `log` instead of `tracing` are taken in as well. Whoever reads stderr holds up nobody.

mod fields;
mod queue;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, fmt, layer::SubscriberExt, reload};

use self::fields::Appended;
use self::queue::Lines;

/// At debug level this module of the broker's client writes its handshake out whole, with the password.
const WRITES_PASSWORDS: &str = "amiquip::io_loop::handshake_state";

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text when stderr is a terminal, JSON otherwise.
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

type ChangeLevel = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// What changes the level of the log that was started.
static CHANGE_LEVEL: OnceLock<ChangeLevel> = OnceLock::new();

/// The lines of the log that was started.
static LINES: OnceLock<Lines> = OnceLock::new();

/// What the last lines may take to be written when the process ends.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(1);

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is not a filter; the text says what is wrong with it.
    #[error("the log level is not understood: {0}")]
    Level(String),
    /// The operating system refuses what logging needs.
    #[error("logging cannot start: {0}")]
    Refused(#[from] io::Error),
    /// A second call in one process is a mistake in the program.
    #[error("logging was started twice in this process")]
    Started(#[source] TryInitError),
}

/// Starts logging to stderr for the rest of the process.
///
/// `level` is an [`EnvFilter`] directive such as `info` or `info,stockctl=debug`. Text has colour on a terminal only,
/// and not when `NO_COLOR` is set.
///
/// # Errors
/// When `level` is not understood, or when logging was started before.
pub fn init(format: Format, level: &str) -> Result<(), TelemetryError> {
    let (filter, handle) = reload::Layer::new(parse_level(level)?);
    let terminal = io::stderr().is_terminal();
    // Not through the handle of the standard library, whose lock would be held while a write waits.
    let queued = Lines::to(File::from(io::stderr().as_fd().try_clone_to_owned()?))?;
    let lines = fmt::layer().with_writer(queued.clone());
    let lines = match (format, terminal) {
        (Format::Json, _) | (Format::Auto, false) => lines
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .fmt_fields(Appended)
            .boxed(),
        (Format::Text, _) | (Format::Auto, true) => {
            lines.with_ansi(terminal && colour_is_wanted()).boxed()
        }
    };
    // The filter for passwords stands apart from the level, so that no directive can open it.
    tracing_subscriber::registry()
        .with(lines.with_filter(filter_fn(may_be_written)))
        .with(filter)
        .try_init()
        .map_err(TelemetryError::Started)?;
    let change = move |filter| handle.reload(filter).map_err(|error| error.to_string());
    // Set once, since starting fails the second time.
    let _ = CHANGE_LEVEL.set(Box::new(change));
    let _ = LINES.set(queued);
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured)
            .then(|| tracing::field::display(&backtrace));
        tracing::error!(backtrace, "{panic}");
    }));
    Ok(())
}

/// Writes a line for people to stderr: behind those of the log, and without waiting, once that was started.
pub fn say(line: &str) {
    match LINES.get() {
        Some(lines) => lines.add(format!("{line}\n").as_bytes()),
        None => {
            let _ = writeln!(io::stderr(), "{line}");
        }
    }
}

/// Writes the last words of the process for people, if it has any, and waits a moment for what was logged to be written.
/// Nothing is logged any more.
pub fn end(last_words: Option<&str>) {
    let last_words = last_words.map(|words| format!("{words}\n"));
    let last_words = last_words.as_deref().unwrap_or_default();
    match LINES.get() {
        Some(lines) => {
            lines.close_with(last_words.as_bytes());
            lines.flush(LAST_LINES_WITHIN);
        }
        None => {
            let _ = write!(io::stderr(), "{last_words}");
        }
    }
}

/// Another level from now on, in the whole process.
///
/// # Errors
/// When `level` is not understood, or logging was not started.
pub fn set_level(level: &str) -> Result<(), TelemetryError> {
    let filter = parse_level(level)?;
    let change = CHANGE_LEVEL.get().ok_or_else(|| {
        TelemetryError::Level("logging was not started in this process".to_owned())
    })?;
    change(filter).map_err(TelemetryError::Level)
}

/// Reads a level or a list of directives.
///
/// `EnvFilter` takes a word that is not a level for the name of a target, and shows all of that target and nothing
/// else: a mistyped `wran` would silence the log. Such a word is refused here.
///
/// # Errors
/// When it is empty or not understood.
pub fn parse_level(level: &str) -> Result<EnvFilter, TelemetryError> {
    let directives: Vec<&str> = level.split(',').map(str::trim).collect();
    if directives.iter().any(|directive| directive.is_empty()) {
        let problem = "it is empty, or has an empty part; write for example info";
        return Err(TelemetryError::Level(problem.to_owned()));
    }
    for directive in &directives {
        if directive.contains(['=', '[']) || directive.parse::<LevelFilter>().is_ok() {
            continue;
        }
        // Only a plain name is repeated: anything else may be a secret put in the wrong place.
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_:-".contains(c);
        let hint = match directive.chars().all(is_name) {
            true => format!("{directive} is no level; for a target write {directive}=info"),
            false => "it is neither a level nor a list such as info,stockctl=debug".to_owned(),
        };
        return Err(TelemetryError::Level(format!(
            "{hint} (the levels are off, error, warn, info, debug, trace)"
        )));
    }
    EnvFilter::builder()
        .parse(directives.join(","))
        .map_err(|error| TelemetryError::Level(error.to_string()))
}

fn may_be_written(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= LevelFilter::INFO || !metadata.target().starts_with(WRITES_PASSWORDS)
}

/// Whether `NO_COLOR` leaves colours on a terminal. By the convention of no-color.org an empty `NO_COLOR` counts as not set.
#[must_use]
pub fn colour_is_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::parse_level;

    #[test]
    fn a_level_or_directives_are_understood() {
        let understood = [
            "info",
            "INFO",
            "off",
            "info,stockctl=debug",
            "info, stockctl::mq=trace",
            "[step{order=1}]=debug",
            "[step]",
        ];
        for level in understood {
            assert!(parse_level(level).is_ok(), "{level}");
        }
    }

    #[test]
    fn a_mistyped_level_is_refused_rather_than_taken_for_a_target() {
        let messages: Vec<String> = [
            "wran",
            "",
            "info,",
            "info;debug",
            "a://u:hush@b",
            "stockctl=loud",
        ]
        .into_iter()
        .filter_map(|level| parse_level(level).err())
        .map(|error| error.to_string())
        .collect();
        insta::assert_snapshot!(messages.join("\n"), @r#"
        the log level is not understood: wran is no level; for a target write wran=info (the levels are off, error, warn, info, debug, trace)
        the log level is not understood: it is empty, or has an empty part; write for example info
        the log level is not understood: it is empty, or has an empty part; write for example info
        the log level is not understood: it is neither a level nor a list such as info,stockctl=debug (the levels are off, error, warn, info, debug, trace)
        the log level is not understood: it is neither a level nor a list such as info,stockctl=debug (the levels are off, error, warn, info, debug, trace)
        the log level is not understood: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5
        "#);
    }
}
