//! `stockctl up`: everything on one machine, on a private PostgreSQL and a private RabbitMQ.

use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{EXIT_CONFIGURATION, EXIT_UNREACHABLE, Failure, say, seed};
use crate::app::sync;
use crate::config::{self, Config};
use crate::http::Listening;
use crate::local::{self, Servers};
use crate::shutdown::Shutdown;
use crate::supervisor::Supervisor;
use crate::telemetry;

/// What `up` was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the servers' data and the configuration live.
    pub data_dir: PathBuf,
    /// Remove what is there first.
    pub fresh: bool,
    /// The address of the HTTP API; port 8080, or a free one, when none is given.
    pub listen: Option<SocketAddr>,
    /// Start PostgreSQL and RabbitMQ and nothing else.
    pub servers_only: bool,
    /// End when standard input does: for a program that starts this one and may be killed.
    pub until_stdin_closes: bool,
}

/// The port of the HTTP API, unless it is taken.
const DEFAULT_PORT: u16 = 8080;

/// Runs until the shutdown, or until a part fails.
///
/// # Errors
/// See [`Failure`]. Nothing is left running.
pub async fn run(options: &Options, shutdown: Shutdown) -> Result<(), Failure> {
    if options.until_stdin_closes {
        begin_when_stdin_closes(shutdown.clone());
    }
    let listener = if options.servers_only {
        None
    } else {
        Some(bind(options.listen)?)
    };
    let mut progress = |step: &str| {
        telemetry::say(&format!("  {step}"));
    };
    let local_options = local::Options {
        data_dir: options.data_dir.clone(),
        fresh: options.fresh,
    };
    // A shutdown that comes meanwhile drops the start, which leaves nothing running.
    let mut servers = tokio::select! {
        started = local::start(&local_options, &mut progress) => {
            started.map_err(|error| Failure::new(EXIT_UNREACHABLE, error.to_string()))?
        }
        () = shutdown.begun() => return Ok(()),
    };
    let result = run_on(options, &mut servers, listener, &mut progress, &shutdown).await;
    shutdown.begin();
    progress("stopping PostgreSQL and RabbitMQ");
    let stopped = servers.stop().await;
    result.and(stopped.map_err(|error| Failure::new(EXIT_UNREACHABLE, error.to_string())))
}

/// Runs on servers that are there; the caller stops them, whatever this comes to.
async fn run_on(
    options: &Options,
    servers: &mut Servers,
    listener: Option<Listening>,
    progress: &mut (dyn FnMut(&str) + Send),
    shutdown: &Shutdown,
) -> Result<(), Failure> {
    let Some(listener) = listener else {
        say(&serde_json::json!({
            "postgresql": servers.database_url("postgres"), "rabbitmq": servers.amqp_url(),
        })
        .to_string());
        return tokio::select! {
            failure = watch(servers) => Err(failure),
            () = shutdown.begun() => Ok(()),
        };
    };
    let address = listener.local_addr().map_err(Failure::bug)?;
    let path = options.data_dir.join("config.toml");
    // It can be left at any point: a database gets its name when it is whole, and what a sync has written is right.
    let config = tokio::select! {
        biased;
        () = shutdown.begun() => return Ok(()),
        prepared = prepare(servers, address, &path, progress) => prepared?,
    };
    greet(servers, address, &path);
    let exporting = super::traces::export(&config, "up")?;
    let result = tokio::select! {
        result = run_parts(&config, listener, shutdown) => result,
        failure = watch(servers) => Err(failure),
    };
    exporting.close().await;
    result
}

/// Fills the servers, and reads the configuration that it writes for all subcommands.
async fn prepare(
    servers: &Servers,
    address: SocketAddr,
    path: &Path,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Config, Failure> {
    progress("preparing the databases");
    seed::prepare(servers)
        .await
        .map_err(|error| Failure::new(EXIT_UNREACHABLE, error.to_string()))?;
    write_config(path, servers, address).map_err(|error| {
        Failure::new(
            EXIT_UNREACHABLE,
            format!("cannot write {}: {error}", path.display()),
        )
    })?;
    let mut config = config::load(Some(path))
        .map_err(|error| Failure::new(EXIT_CONFIGURATION, error.to_string()))?;
    telemetry::init(config.log.format, &config.log.level).map_err(Failure::bug)?;
    // One process has one set of figures, and they are at the HTTP address.
    config.metrics.listen = None;
    // Its vendors are called at the address that it has just written down.
    config.http.tls = None;
    progress("reading the vendors' stock");
    read_stock(&config).await?;
    Ok(config)
}

/// So that the first look shows what there is to sell.
async fn read_stock(config: &Config) -> Result<(), Failure> {
    let context = super::context(config)?;
    let options = sync::Options {
        chunk_rows: config.sync.chunk_rows.get(),
        allow_empty: false,
    };
    for vendor_id in context.vendor_ids() {
        if let Err(error) = sync::sync(&context, &vendor_id, options, &|_| {}).await {
            // The sync loop tries again, and says so.
            tracing::warn!(vendor = %vendor_id, %error, "the vendor's stock is not known yet");
        }
    }
    Ok(())
}

/// A server that ends by itself ends everything.
async fn watch(servers: &mut Servers) -> Failure {
    Failure::new(EXIT_UNREACHABLE, servers.failed().await.to_string())
}

async fn run_parts(
    config: &Config,
    listener: Listening,
    shutdown: &Shutdown,
) -> Result<(), Failure> {
    let selection = super::sync::Selection::default();
    // It is for trying out, from a terminal.
    let nobody = Supervisor::none();
    let (served, synced, worked) = tokio::join!(
        ending(
            super::serve::run(config, listener, shutdown.clone(), &nobody),
            shutdown
        ),
        ending(
            super::sync::run(config, &selection, shutdown.clone(), &nobody),
            shutdown
        ),
        ending(
            super::work::run(config, &[], shutdown.clone(), &nobody),
            shutdown
        ),
    );
    served.and(synced).and(worked)
}

/// One part's end is the end of all.
async fn ending<T>(part: impl Future<Output = T>, shutdown: &Shutdown) -> T {
    let result = part.await;
    shutdown.begin();
    result
}

fn bind(listen: Option<SocketAddr>) -> Result<Listening, Failure> {
    let in_use = |address: SocketAddr| {
        move |error: std::io::Error| {
            Failure::new(
                EXIT_UNREACHABLE,
                format!("cannot listen on {address} (--listen): {error}"),
            )
        }
    };
    match listen {
        Some(address) => Listening::bind(address).map_err(in_use(address)),
        None => {
            let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            Listening::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)))
                .or_else(|_| Listening::bind(free))
                .map_err(in_use(free))
        }
    }
}

/// Writes the configuration that the other subcommands read; it holds passwords, so it is the owner's alone.
fn write_config(path: &Path, servers: &Servers, address: SocketAddr) -> std::io::Result<()> {
    let mut text = format!(
        "# Written by `stockctl up` at each start.\n\n[http]\nlisten = \"{address}\"\n\n[database]\nurl = \"{}\"\n\n\
         [rabbitmq]\nurl = \"{}\"\n",
        servers.database_url(seed::ORDERS_DATABASE),
        servers.amqp_url(),
    );
    for vendor in seed::VENDORS {
        text.push_str(&format!(
            "\n[vendors.{id}]\ndatabase_url = \"{}\"\napi_url = \"http://{address}/vendors/{id}\"\n",
            servers.database_url(vendor.database),
            id = vendor.id,
        ));
    }
    let unfinished = path.with_extension("toml.unfinished");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(unfinished, path)
}

fn greet(servers: &Servers, address: SocketAddr, config: &Path) {
    let (bold, plain) = if std::io::stdout().is_terminal() && telemetry::colour_is_wanted() {
        ("\x1b[1m", "\x1b[0m")
    } else {
        ("", "")
    };
    say(&format!(
        "\n{bold}stockctl is up{plain}\n\
         \x20 Page           http://{address}/\n\
         \x20 HTTP API       http://{address}\n\
         \x20 PostgreSQL     {}\n\
         \x20 RabbitMQ       {}\n\
         \x20 configuration  {}\n\n\
         Try it:\n\
         \x20 curl -s http://{address}/products\n\
         \x20 curl -s http://{address}/orders -H 'Content-Type: application/json' -d '{{\"productId\":\"p2\",\"quantity\":18}}'\n\
         \x20 curl -s http://{address}/orders\n\n\
         Ctrl-C stops everything; the data stays.\n",
        servers.database_url(seed::ORDERS_DATABASE),
        servers.amqp_url(),
        config.display(),
    ));
}

fn begin_when_stdin_closes(shutdown: Shutdown) {
    // A thread, since a blocked read of standard input would hold up the runtime's end.
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        shutdown.begin();
    });
}
