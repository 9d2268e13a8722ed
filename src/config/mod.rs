//! Configuration: the defaults in `config/default.toml`, then one file, then variables `STOCKCTL__SECTION__KEY`, read
//! into plain structs. What is wrong is reported all at once, by key and by the file or variable it stands in.

mod error;
mod layers;
mod limits;
mod reader;
mod secret;
mod secret_url;
mod sections;
mod shown;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::error::{ConfigError, Origin, Problem};
pub use self::secret::Secret;
pub use self::secret_url::SecretUrl;
pub use self::shown::{Shown, list_from};
use crate::limit::{Limit, RateLimits};
use crate::telemetry;

/// The files of which the first that is there is read when none is named: what `stockctl up` writes here, and what a package
/// installs for the whole machine.
const DEFAULT_FILES: [&str; 2] = [".stockctl/config.toml", "/etc/stockctl/stockctl.toml"];
/// All variables of this program begin like this; the others are none of its business.
const OUR_VARIABLES: &str = "STOCKCTL_";

/// The whole configuration, checked. `config/default.toml` describes every key with its bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The HTTP API.
    pub http: Http,
    /// The database of stockctl itself.
    pub database: Database,
    /// The broker.
    pub rabbitmq: RabbitMq,
    /// How orders are decided.
    pub orders: Orders,
    /// How the vendors are told.
    pub vendor_sync: VendorSync,
    /// The consumers' process.
    pub work: Work,
    /// What is kept for those who listen.
    pub events: Events,
    /// Who is told of events by HTTP, and how.
    pub webhooks: Webhooks,
    /// How the vendors' stock is read.
    pub sync: Sync,
    /// Where the metrics are, beside the HTTP API.
    pub metrics: Metrics,
    /// Where traces go.
    pub telemetry: Telemetry,
    /// The vendors by their ids: at least one, and no two ids that differ in case only.
    pub vendors: BTreeMap<String, Vendor>,
    /// What is logged and how.
    pub log: Log,
}

/// Section `http`.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// Where the API listens; a loopback address unless keys are required.
    pub listen: SocketAddr,
    /// How long the end may take once the shutdown has begun: requests in hand have three quarters of it.
    pub shutdown_deadline: Duration,
    /// The origins whose pages may call the API from a browser.
    pub cors_origins: Vec<String>,
    /// The names that the API is called by beside this machine's own; where keys are required, any will do.
    pub hosts: Vec<String>,
    /// Whether whoever calls needs an API key.
    pub require_keys: bool,
    /// How much each caller may ask for.
    pub rates: RateLimits,
    /// Connections that are served at once.
    pub connections_max: usize,
    /// What TLS is spoken with; none where it is not.
    pub tls: Option<TlsFiles>,
}

/// PEM files of section `http`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Section `database`.
#[derive(Clone, Debug, PartialEq)]
pub struct Database {
    /// Where PostgreSQL is.
    pub url: SecretUrl,
    /// Connections that the process keeps at most.
    pub pool_size: usize,
    /// How long opening a connection may take.
    pub connect_timeout: Duration,
    /// How long one statement may run.
    pub statement_timeout: Duration,
}

/// Section `rabbitmq`.
#[derive(Clone, Debug, PartialEq)]
pub struct RabbitMq {
    /// The nodes of the broker, to be tried in turn; at least one.
    pub urls: Vec<SecretUrl>,
    /// Written in front of every queue's name; may be empty.
    pub queue_prefix: String,
    /// The type that every queue is declared with.
    pub queue_type: QueueType,
}

/// How the broker keeps a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueType {
    /// Replicated, and counts how often a message was delivered.
    Quorum,
    /// On one node; promises less when that node crashes.
    Classic,
}

/// Section `orders`.
#[derive(Clone, Debug, PartialEq)]
pub struct Orders {
    /// Retries after the first attempt.
    pub retries_max: u32,
    /// Wait before each retry.
    pub retry_delay: Duration,
    /// Orders decided in one transaction.
    pub batch_max: Limit,
    /// Messages handed out ahead of their acknowledgement.
    pub prefetch: u16,
}

/// Section `vendor_sync`.
#[derive(Clone, Debug, PartialEq)]
pub struct VendorSync {
    /// Retries after the first attempt.
    pub retries_max: u32,
    /// Wait before each retry.
    pub retry_delay: Duration,
    /// Messages handed out ahead of their acknowledgement.
    pub prefetch: u16,
    /// How long one call of a vendor's API may take.
    pub timeout: Duration,
    /// Stock updates sent in one call.
    pub updates_per_call_max: Limit,
}

/// Section `work`.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// How long messages may wait without one being finished, while both stores work.
    pub stalled_after: Duration,
}

/// Section `events`.
#[derive(Clone, Debug, PartialEq)]
pub struct Events {
    /// How long events are kept, so that who lost its connection hears of them.
    pub kept_for: Duration,
}

/// Section `webhooks`.
#[derive(Clone, Debug, PartialEq)]
pub struct Webhooks {
    /// Whether private addresses are called, and http: is.
    pub allow_private: bool,
    /// Retries after the first attempt; there is a queue for each of at most four.
    pub retries_max: u32,
    /// Wait before the first retry; each other is ten times as long as the one before.
    pub retry_delay: Duration,
    /// How long one call may take.
    pub timeout: Duration,
    /// Messages handed out ahead of their acknowledgement.
    pub prefetch: u16,
    /// Calls of one receiver at once.
    pub calls_max: usize,
    /// Those of the configuration, by their names.
    pub of_name: BTreeMap<String, Webhook>,
}

/// Section `webhooks.<name>`.
#[derive(Clone, Debug, PartialEq)]
pub struct Webhook {
    /// Where its receiver is. It may hold a token.
    pub url: Secret,
    /// What it hears, by the names of the types; all where none are given.
    pub types: Vec<String>,
    /// What its messages are signed with, as people write it.
    pub secret: Secret,
}

/// Section `sync`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sync {
    /// When the vendors' stock is read, in UTC.
    pub schedule: cron::Schedule,
    /// Products written in one transaction.
    pub chunk_rows: Limit,
}

/// Section `metrics`.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Where a listener for `/metrics` alone begins to look for a free port, if there is to be one; always a loopback
    /// address.
    pub listen: Option<SocketAddr>,
}

/// Section `telemetry`.
#[derive(Clone, Debug, PartialEq)]
pub struct Telemetry {
    /// The base of the address of a collector of traces that speaks OTLP over HTTP, if there is to be one.
    pub otlp_endpoint: Option<SecretUrl>,
    /// The share of the traces that begin here and are recorded, 0 to 1.
    pub sample_ratio: f64,
}

/// Section `vendors.<id>`.
#[derive(Clone, Debug, PartialEq)]
pub struct Vendor {
    /// Where the vendor's own PostgreSQL is.
    pub database_url: SecretUrl,
    /// The base of the vendor's API without a slash at its end; `/stock-updates` is appended.
    pub api_url: SecretUrl,
    /// What its HTTP API lets us in by.
    pub api_key: Option<Secret>,
    /// The certificates of authorities that its HTTP API is trusted by, beside the system's.
    pub api_ca: Option<PathBuf>,
    /// Whether the vendor's database has the ledger of handled updates.
    pub ledger: bool,
    /// Where the vendor lists its products.
    pub catalogue: Catalogue,
}

/// The table of a vendor's products: names as PostgreSQL keeps them, each of a length that PostgreSQL does not cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalogue {
    /// The table, with its schema in front where one is given.
    pub table: TableName,
    /// The column of the products' ids.
    pub id_column: String,
    /// The column of their names.
    pub name_column: String,
    /// The column of their stock.
    pub stock_column: String,
}

/// The name of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableName {
    /// The schema, where one is given.
    pub schema: Option<String>,
    /// The table itself.
    pub table: String,
}

/// Section `log`.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// How a line is written.
    pub format: telemetry::Format,
    /// A level or directives, known to be understood by [`telemetry::init`].
    pub level: String,
}

/// Checks that an address can be reached from this machine only, where no API keys are required.
///
/// # Errors
/// With what it means, and what to do.
pub fn reachable_from_here_only(address: SocketAddr) -> Result<(), String> {
    if !address.ip().to_canonical().is_loopback() {
        return Err(format!(
            "{address} can be reached from other machines, and without API keys whoever reaches it could order, \
             cancel and change stock; set http.require_keys = true and make keys with `stockctl keys create`, or listen \
             on a loopback address such as 127.0.0.1:8080"
        ));
    }
    Ok(())
}

/// Reads the configuration of this process. `explicit` is the file of `--config`.
///
/// # Errors
/// When a file that was named cannot be read, when one is not TOML, or with every problem of the values at once.
pub fn load(explicit: Option<&Path>) -> Result<Config, ConfigError> {
    let default = first_there(DEFAULT_FILES.map(Path::new));
    load_from(explicit, default, our_variables()?)
}

/// Reads the configuration of this process, and lists what it is made of.
///
/// # Errors
/// As [`load`].
pub fn list(explicit: Option<&Path>) -> Result<(Config, Vec<Shown>), ConfigError> {
    let default = first_there(DEFAULT_FILES.map(Path::new));
    list_from(explicit, default, our_variables()?)
}

/// One that is there and cannot be read is there, too: who meant it has to know.
fn first_there(files: [&Path; 2]) -> &Path {
    let [first, second] = files;
    if !first.exists() && second.exists() {
        second
    } else {
        first
    }
}

fn our_variables() -> Result<Vec<(String, String)>, ConfigError> {
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else {
            continue;
        };
        if !name.starts_with(OUR_VARIABLES) {
            continue;
        }
        match value.into_string() {
            Ok(value) => variables.push((name, value)),
            Err(_) => return Err(ConfigError::NotUnicode { variable: name }),
        }
    }
    Ok(variables)
}

/// Reads the configuration from what is given only: the file `explicit`, else the one that `STOCKCTL_CONFIG` names
/// among the `variables`, else `fallback` if it is there; and over it the variables.
///
/// # Errors
/// As [`load`].
pub fn load_from(
    explicit: Option<&Path>,
    fallback: &Path,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let layers = layers::Layers::read(explicit, fallback, variables)?;
    let mut reader = reader::Reader::new(layers);
    let config = sections::config(&mut reader);
    reader.finish(config)
}
