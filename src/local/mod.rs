//! A private PostgreSQL and a private RabbitMQ as child processes, on free
//! loopback ports, with their data below one directory: what `stockctl up` and
//! the tests run on.
//!
//! No process is remembered by its pid. Each server carries a mark of its own
//! directory on its command line (`processes.rs`), so that whoever holds the lock
//! of a data directory can find and end whatever runs on it, after any crash.

mod account;
mod amqp;
mod directory;
mod error;
mod files;
mod home;
mod ports;
mod postgres;
mod processes;
mod programs;
mod rabbitmq;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

pub use error::{Error, LogTail};

use directory::DataDirectory;
use postgres::Postgres;
use rabbitmq::RabbitMq;

/// Where the servers live, and whether what is there already is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory that holds the lock, the servers' data and their logs.
    pub data_dir: PathBuf,
    /// Start over: remove the servers' data that an earlier start left.
    pub fresh: bool,
}

/// Both servers, running. Dropping the value kills them; [`Servers::stop`] stops
/// them cleanly.
#[derive(Debug)]
pub struct Servers {
    postgres: Postgres,
    rabbitmq: RabbitMq,
    is_new: bool,
    // Released last, when nothing runs on the directory any more.
    _directory: DataDirectory,
}

/// Starts both servers and waits until they can be used.
///
/// Servers that an earlier process left running on this directory are stopped
/// first. `progress` is called with short lines for a person to read. When this
/// fails, or the future is dropped, nothing is left running.
///
/// # Errors
/// See [`Error`]; for a server that did not start, it carries that server's own
/// last log lines.
pub async fn start(
    options: &Options,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Servers, Error> {
    let programs = programs::Programs::find()?;
    let directory = DataDirectory::open(&options.data_dir)?;
    directory.stop_leftovers(progress).await?;
    if options.fresh {
        progress("removing the data of earlier starts");
        directory.erase()?;
    }
    let (postgres_home, rabbitmq_home) = directory.prepare()?;
    let postgres = Postgres::open(postgres_home, &programs)?;
    let rabbitmq = RabbitMq::open(rabbitmq_home, &programs)?;
    let mut servers = Servers {
        is_new: !postgres.has_cluster(),
        postgres,
        rabbitmq,
        _directory: directory,
    };

    let progress = Mutex::new(progress);
    let report = |line: &str| {
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress(line);
    };
    let started = tokio::try_join!(
        servers.postgres.start(&report),
        servers.rabbitmq.start(&report)
    );
    match started {
        Ok(_) => Ok(servers),
        Err(error) => {
            // What came up so far holds nothing worth a clean stop, and the
            // caller wants the reason soon.
            let _ = tokio::join!(servers.postgres.kill(), servers.rabbitmq.kill());
            Err(error)
        }
    }
}

impl Servers {
    /// The URL of one database, `postgres://user:password@127.0.0.1:port/database`.
    #[must_use]
    pub fn database_url(&self, database: &str) -> String {
        self.postgres.url(database)
    }

    /// The URL of the broker, `amqp://user:password@127.0.0.1:port/%2f`.
    #[must_use]
    pub fn amqp_url(&self) -> String {
        self.rabbitmq.url()
    }

    /// Whether this start created the PostgreSQL cluster. A start that was
    /// interrupted later leaves a cluster without the caller's databases, so
    /// whoever fills it must still be ready to find some of its work missing.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Resolves when a server exits without having been asked to. Safe to use in
    /// `select!`. A server stopped through this value never resolves it.
    pub async fn failed(&mut self) -> Error {
        tokio::select! {
            error = self.postgres.exited() => error,
            error = self.rabbitmq.exited() => error,
        }
    }

    /// Stops both servers cleanly, and kills what does not stop in time. Does
    /// nothing when nothing runs.
    ///
    /// # Errors
    /// [`Error::Killed`] when a server had to be killed, [`Error::StillRunning`]
    /// when even that did not end it.
    pub async fn stop(&mut self) -> Result<(), Error> {
        let (postgres, rabbitmq) = tokio::join!(self.postgres.stop(), self.rabbitmq.stop());
        postgres.and(rabbitmq)
    }

    /// Stops PostgreSQL alone, cleanly.
    ///
    /// # Errors
    /// As [`Servers::stop`].
    pub async fn stop_postgres(&mut self) -> Result<(), Error> {
        self.postgres.stop().await
    }

    /// Ends PostgreSQL as a crash of its machine would: SIGKILL for each of its
    /// processes.
    ///
    /// # Errors
    /// [`Error::StillRunning`] when a process outlives its SIGKILL.
    pub async fn kill_postgres(&mut self) -> Result<(), Error> {
        self.postgres.kill().await
    }

    /// Starts PostgreSQL again, on the port it had.
    ///
    /// # Errors
    /// As [`start`].
    pub async fn start_postgres(&mut self) -> Result<(), Error> {
        self.postgres.run().await
    }

    /// Stops RabbitMQ alone, cleanly.
    ///
    /// # Errors
    /// As [`Servers::stop`].
    pub async fn stop_rabbitmq(&mut self) -> Result<(), Error> {
        self.rabbitmq.stop().await
    }

    /// Ends RabbitMQ as a crash of its machine would: SIGKILL for each of its
    /// processes.
    ///
    /// # Errors
    /// [`Error::StillRunning`] when a process outlives its SIGKILL.
    pub async fn kill_rabbitmq(&mut self) -> Result<(), Error> {
        self.rabbitmq.kill().await
    }

    /// Starts RabbitMQ again, on the ports it had.
    ///
    /// # Errors
    /// As [`start`].
    pub async fn start_rabbitmq(&mut self) -> Result<(), Error> {
        self.rabbitmq.run().await
    }

    /// Runs `rabbitmqctl` against this node and returns what it printed.
    ///
    /// # Errors
    /// [`Error::Rabbitmqctl`] when it fails or takes too long.
    pub async fn rabbitmqctl(&self, args: &[&str]) -> Result<String, Error> {
        self.rabbitmq.ctl(args).await
    }
}
