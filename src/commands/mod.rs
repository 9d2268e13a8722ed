//! One file per subcommand: it wires the parts and owns their lifetime.

mod api;
pub mod audit;
pub mod bench;
pub mod completions;
pub mod configuration;
pub mod dlq;
pub mod keys;
pub mod man;
mod metrics;
pub mod migrate;
pub mod openapi;
pub mod orders;
pub mod products;
pub mod reload;
mod seed;
pub mod serve;
pub mod status;
mod style;
pub mod sync;
mod table;
pub mod traces;
pub mod up;
mod webhooks;
pub mod work;

use std::io::Write;
use std::time::Duration;

use crate::app::vendor_stock::Taking;
use crate::app::{self, Context, Kind, TRANSACTION_DEADLINE, Vendor};
use crate::config::{self, Config};
use crate::domain::ids::VendorId;
use crate::domain::webhooks::delay;
use crate::mq::{self, Link};
use crate::shutdown::Shutdown;
use crate::supervisor::Supervisor;
use crate::vendors::catalogue::Catalogue;
use crate::vendors::client::Client;
use crate::{db, pg};

/// A bug of this program.
pub const EXIT_BUG: u8 = 1;
/// The command line asks for what cannot be done so.
pub const EXIT_USAGE: u8 = 2;
/// The configuration is not valid, or contradicts what it is used on.
pub const EXIT_CONFIGURATION: u8 = 3;
/// A server that is needed cannot be reached, or did not start.
pub const EXIT_UNREACHABLE: u8 = 4;
/// A check found what it looks for.
pub const EXIT_CHECK_FAILED: u8 = 5;

/// Why a command ends without success: what to tell the user, and the exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// One of the exit codes.
    pub code: u8,
    /// What happened, and what to do.
    pub message: String,
}

impl Failure {
    /// A failure with its code.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// Something that should not be.
    pub fn bug(error: impl std::fmt::Display) -> Self {
        Self::new(EXIT_BUG, error.to_string())
    }
}

/// Why a use case that an operator has asked for was in vain.
fn failure(error: &app::Error) -> Failure {
    let code = match error.kind() {
        Kind::Unavailable | Kind::Transient => EXIT_UNREACHABLE,
        Kind::Refused | Kind::Missing => EXIT_CHECK_FAILED,
        Kind::Bug => EXIT_BUG,
    };
    Failure::new(code, error.to_string())
}

/// Most connections of a vendor's pool: its API handles one call per process at a time, and people look now and then.
const VENDOR_POOL_SIZE: usize = 4;
/// A database that is not ready is looked at this often.
const READY_INTERVAL: Duration = Duration::from_secs(2);
/// Such a look has the deadlines of the configuration, of minutes where they are configured so.
const SCHEMA_LOOK_MAX: Duration = Duration::from_secs(15 * 60);

fn database_settings(config: &Config) -> pg::Settings {
    pg::Settings {
        url: config.database.url.expose().to_owned(),
        pool_size: config.database.pool_size,
        connect_timeout: config.database.connect_timeout,
        statement_timeout: config.database.statement_timeout,
    }
}

fn vendor_settings(config: &Config, vendor: &config::Vendor) -> pg::Settings {
    pg::Settings {
        url: vendor.database_url.expose().to_owned(),
        pool_size: VENDOR_POOL_SIZE,
        ..database_settings(config)
    }
}

/// Where the stores of a configuration are, and who its vendors are. Nothing is connected before the first use.
///
/// # Errors
/// The configuration allows no connection.
pub fn context(config: &Config) -> Result<Context, Failure> {
    context_with(config, pg::Pool::new)
}

/// As [`context`], for who decides and tells what was decided.
///
/// # Errors
/// As [`context`].
fn context_for_batches(config: &Config) -> Result<Context, Failure> {
    context_with(config, pg::Pool::for_batches)
}

fn context_with(
    config: &Config,
    pool: fn(&str, pg::Settings) -> Result<pg::Pool, pg::Error>,
) -> Result<Context, Failure> {
    crate::metrics::begin();
    let vendors = config
        .vendors
        .iter()
        .map(|(id, vendor)| {
            let id = VendorId::parse(id.as_str()).map_err(|error| {
                Failure::new(EXIT_CONFIGURATION, format!("vendors.{id}: the id {error}"))
            })?;
            let of_vendor = Vendor {
                database: pg::Pool::new(&format!("vendor/{id}"), vendor_settings(config, vendor))
                    .map_err(Failure::bug)?,
                catalogue: catalogue(&vendor.catalogue),
                api: Client::new(
                    vendor.api_url.expose(),
                    vendor.api_key.as_ref().map(config::Secret::expose),
                    authorities(&id, vendor)?.as_deref(),
                    config.vendor_sync.timeout,
                )
                .map_err(|error| {
                    Failure::new(
                        EXIT_CONFIGURATION,
                        format!("vendors.{id}.api_url or api_ca: {error:#}"),
                    )
                })?,
                has_ledger: vendor.ledger,
                taking: Taking::default(),
            };
            crate::metrics::VENDORS.configured(id.as_str());
            Ok((id, of_vendor))
        })
        .collect::<Result<_, Failure>>()?;
    Ok(Context {
        database: pool("orders", database_settings(config)).map_err(Failure::bug)?,
        vendors,
    })
}

/// The authorities that a vendor's API is trusted by, beside the system's.
fn authorities(id: &VendorId, vendor: &config::Vendor) -> Result<Option<Vec<u8>>, Failure> {
    let Some(file) = &vendor.api_ca else {
        return Ok(None);
    };
    let problem = |problem: &str| {
        let text = format!("vendors.{id}.api_ca ({}): {problem}", file.display());
        Failure::new(EXIT_CONFIGURATION, text)
    };
    let pem = std::fs::read(file).map_err(|error| problem(&error.to_string()))?;
    let marker = b"-----BEGIN CERTIFICATE-----";
    if !pem.windows(marker.len()).any(|part| part == marker) {
        return Err(problem("there is no certificate in it; it must be PEM"));
    }
    Ok(Some(pem))
}

fn catalogue(config: &config::Catalogue) -> Catalogue {
    Catalogue {
        schema: config.table.schema.clone(),
        table: config.table.table.clone(),
        id_column: config.id_column.clone(),
        name_column: config.name_column.clone(),
        stock_column: config.stock_column.clone(),
    }
}

/// How to reach the broker.
#[must_use]
pub fn broker_settings(config: &Config) -> mq::Settings {
    mq::Settings {
        urls: config
            .rabbitmq
            .urls
            .iter()
            .map(|url| url.expose().to_owned())
            .collect(),
        queue_prefix: config.rabbitmq.queue_prefix.clone(),
        queue_type: match config.rabbitmq.queue_type {
            config::QueueType::Quorum => mq::QueueType::Quorum,
            config::QueueType::Classic => mq::QueueType::Classic,
        },
        orders_retry_delay: config.orders.retry_delay,
        vendor_sync_retry_delay: config.vendor_sync.retry_delay,
        webhooks_retry_delays: [1, 2, 3, 4].map(|retry| delay(config.webhooks.retry_delay, retry)),
        with_webhooks: false,
    }
}

/// What keeps our database from being used, if anything: it cannot be reached, or lacks its schema.
async fn problem_of_schema(config: &Config) -> Option<String> {
    look_at_schema(config).await.err()
}

/// The migrations that our database has and that are not known here; or what keeps it from being used.
async fn look_at_schema(config: &Config) -> Result<Vec<String>, String> {
    let settings = database_settings(config);
    let schema = pg::schema(&settings, &db::MIGRATIONS);
    // A server may be open and silent.
    let schema = tokio::time::timeout(TRANSACTION_DEADLINE, schema)
        .await
        .map_err(|_| {
            let seconds = TRANSACTION_DEADLINE.as_secs();
            format!(
                "the database {}: no answer within {seconds} s",
                settings.address()
            )
        })?
        .map_err(|error| error.to_string())?;
    match schema.missing.len() {
        0 => Ok(schema.unknown),
        missing => Err(format!(
            "the database {} lacks {missing} {}; run `stockctl migrate`",
            settings.address(),
            if missing == 1 {
                "migration"
            } else {
                "migrations"
            },
        )),
    }
}

/// Waits until our database can be reached and has its schema, saying what is missing. One that is newer will do: while
/// an older version runs, a schema is only added to. Returns whether it is so; the shutdown may come first.
async fn wait_for_schema(config: &Config, shutdown: &Shutdown, supervisor: &Supervisor) -> bool {
    let waiting = supervisor.part("the wait for the database", SCHEMA_LOOK_MAX);
    let mut said = String::new();
    loop {
        waiting.moved();
        let problem = match look_at_schema(config).await {
            Ok(unknown) => {
                if !unknown.is_empty() {
                    tracing::info!(
                        unknown = unknown.join(", "),
                        "the database's schema is newer than this version, which goes on with what it knows of it"
                    );
                }
                return true;
            }
            Err(problem) => problem,
        };
        if problem != said {
            tracing::warn!("waiting: {problem}");
            supervisor.status(&format!("waiting: {problem}"));
            said = problem;
        }
        tokio::select! {
            () = shutdown.begun() => return false,
            () = tokio::time::sleep(READY_INTERVAL) => {}
        }
    }
}

/// Ends the process when the queues at the broker contradict the configuration: no waiting mends that.
async fn watch_queues(mut link: tokio::sync::watch::Receiver<Link>) -> Failure {
    loop {
        if let Link::Misdeclared { message } = &*link.borrow_and_update() {
            return Failure::new(EXIT_CONFIGURATION, message.clone());
        }
        if link.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Writes for the user. Whoever closed the pipe does not want to read it.
pub fn say(text: &str) {
    let _ = is_read(text);
}

/// Writes for the user, and returns whether somebody may still read: who writes again and again has an end then.
fn is_read(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    !matches!(written, Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
}
