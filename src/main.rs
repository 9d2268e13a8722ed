//! The executable: parses the command line, runs a command, and says why it failed.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use stockctl::cli::{Cli, Command};
use stockctl::commands::{self, EXIT_CONFIGURATION, Failure};
use stockctl::config::{self, Config};
use stockctl::shutdown::{self, Shutdown};
use stockctl::supervisor::Supervisor;
use stockctl::telemetry;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Failure::bug)
        .and_then(|runtime| {
            let result = runtime.block_on(run(cli));
            // A broker's thread that does not end must not keep the process.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => {
            telemetry::end(None);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            let label = if std::io::stderr().is_terminal() && telemetry::colour_is_wanted() {
                "\x1b[1;31merror:\x1b[0m"
            } else {
                "error:"
            };
            telemetry::end(Some(&format!("{label} {failure}")));
            ExitCode::from(failure.code)
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let shutdown = Shutdown::new();
    let load = || load(cli.config.as_deref());
    let until_signal = || shutdown::on_signal(&shutdown).map_err(Failure::bug);
    let supervised = |config: &Config| -> Result<Supervisor, Failure> {
        until_signal()?;
        supervise(cli.config.clone(), config, &shutdown)
    };
    match cli.command {
        Command::Up {
            data_dir,
            fresh,
            listen,
            servers_only,
            until_stdin_closes,
        } => {
            until_signal()?;
            let options = commands::up::Options {
                data_dir,
                fresh,
                listen,
                servers_only,
                until_stdin_closes,
            };
            commands::up::run(&options, shutdown).await
        }
        Command::Serve => {
            let config = load()?;
            let supervisor = supervised(&config)?;
            let listener = commands::serve::bind(&config)?;
            let serving = commands::serve::run(&config, listener, shutdown.clone(), &supervisor);
            to_the_end(&config, "serve", &supervisor, serving).await
        }
        Command::Sync {
            once,
            vendors,
            allow_empty,
            json,
        } => {
            let config = load()?;
            let selection = commands::sync::Selection {
                vendors,
                allow_empty,
            };
            if once {
                commands::sync::run_once(&config, &selection, json).await
            } else {
                let supervisor = supervised(&config)?;
                let syncing =
                    commands::sync::run(&config, &selection, shutdown.clone(), &supervisor);
                to_the_end(&config, "sync", &supervisor, syncing).await
            }
        }
        Command::Work { queues } => {
            let config = load()?;
            let supervisor = supervised(&config)?;
            let working = commands::work::run(&config, &queues, shutdown.clone(), &supervisor);
            to_the_end(&config, "work", &supervisor, working).await
        }
        Command::Config { command } => {
            commands::configuration::run(cli.config.as_deref(), &command)
        }
        Command::Status { json, watch } => {
            let config = load()?;
            let every = watch.map(std::time::Duration::from_secs);
            if every.is_some() {
                until_signal()?;
            }
            commands::status::run(&config, json, every, shutdown).await
        }
        Command::Migrate { vendors } => commands::migrate::run(&load()?, vendors).await,
        Command::Orders(orders) => commands::orders::run(orders, load).await,
        Command::Products(products) => commands::products::run(products, load).await,
        Command::Openapi => {
            commands::openapi::run();
            Ok(())
        }
        Command::Completions { shell } => commands::completions::run(Cli::command(), shell),
        Command::Man { directory } => commands::man::run(Cli::command(), directory.as_deref()),
        Command::Bench(options) => commands::bench::run(&options).await,
        Command::Keys { command } => commands::keys::run(&load()?, command).await,
        Command::Dlq { command } => commands::dlq::run(&load()?, command).await,
        Command::Audit { json, watch } => {
            let config = load()?;
            match watch {
                None => commands::audit::run_once(&config, json).await,
                Some(seconds) => {
                    until_signal()?;
                    let every = std::time::Duration::from_secs(seconds);
                    commands::audit::watch(&config, json, every, shutdown).await
                }
            }
        }
    }
}

/// Runs a part whose spans are exported where the configuration says so; the last of them leave when it has ended.
async fn to_the_end(
    config: &Config,
    command: &str,
    supervisor: &Supervisor,
    running: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let exporting = commands::traces::export(config, command)?;
    let result = running.await;
    supervisor.ending();
    exporting.close().await;
    result
}

/// Reads the configuration, and begins to log as it says.
fn load(file: Option<&Path>) -> Result<Config, Failure> {
    let config = config::load(file).map_err(|error| {
        Failure::new(
            EXIT_CONFIGURATION,
            format!("{:#}", anyhow::Error::new(error)),
        )
    })?;
    telemetry::init(config.log.format, &config.log.level).map_err(Failure::bug)?;
    Ok(config)
}

/// For a process that runs until it is told to end: it reloads its configuration, and says to its supervisor how it is.
fn supervise(
    file: Option<PathBuf>,
    config: &Config,
    shutdown: &Shutdown,
) -> Result<Supervisor, Failure> {
    commands::reload::on_hangup(file, config)?;
    let supervisor = Supervisor::from_environment().map_err(|error| {
        let message = format!("NOTIFY_SOCKET names no socket: {error}");
        Failure::new(EXIT_CONFIGURATION, message)
    })?;
    tokio::spawn(supervisor.clone().watch_until_stopped(shutdown.clone()));
    Ok(supervisor)
}
