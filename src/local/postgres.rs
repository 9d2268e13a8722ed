//! The private PostgreSQL: its cluster, its start and its stop.

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::files::{random_name, remove_if_there, write_private};
use super::home::{CHILD_POLL, Home, Kind, exit_status, wait_for_exit};
use super::ports;
use super::processes;
use super::programs::Programs;

/// How the private PostgreSQL is called, and where it is.
pub(super) const KIND: Kind = Kind {
    program: "PostgreSQL",
    directory: "postgres",
    system_user: "postgres",
};

/// Fast shutdown: sessions are ended, and everything is written.
pub(super) const STOP_SIGNAL: Signal = Signal::SIGINT;

/// A start takes a second, but one after a crash first replays up to 1 GB of log.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// `initdb` takes two seconds, and is all waiting for the disk.
const CREATE_WITHIN: Duration = Duration::from_secs(120);

/// A fast shutdown writes one checkpoint.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// A port can be lost between its choice and the server's bind, but hardly thrice.
const PORT_TRIES: usize = 3;

/// The cluster's only role, a superuser.
const USER: &str = "stockctl";

/// The cluster's directory in the server's, there only when it is complete.
const CLUSTER: &str = "data";

/// The private PostgreSQL of one data directory.
#[derive(Debug)]
pub(super) struct Postgres {
    home: Home,
    server: PathBuf,
    initdb: PathBuf,
    settings: Settings,
    child: Option<Child>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Settings {
    port: u16,
    password: String,
}

impl Postgres {
    pub(super) fn open(home: Home, programs: &Programs) -> Result<Self, Error> {
        let settings = match home.load()? {
            Some(settings) => settings,
            None if home.path.join(CLUSTER).exists() => {
                return Err(home.damaged("it is missing, and with it the password"));
            }
            None => {
                let [port] = ports::choose()?;
                let password = random_name()?;
                let settings = Settings { port, password };
                home.save(&settings)?;
                settings
            }
        };
        Ok(Self {
            home,
            server: programs.postgres.clone(),
            initdb: programs.initdb.clone(),
            settings,
            child: None,
        })
    }

    pub(super) fn has_cluster(&self) -> bool {
        self.home.path.join(CLUSTER).exists()
    }

    pub(super) fn url(&self, database: &str) -> String {
        let Settings { port, password } = &self.settings;
        format!("postgres://{USER}:{password}@127.0.0.1:{port}/{database}")
    }

    /// Creates the cluster if there is none, and starts the server, on its port of last
    /// time if that is still free.
    pub(super) async fn start(&mut self, report: &(dyn Fn(&str) + Sync)) -> Result<(), Error> {
        self.home.begin_log()?;
        if !self.has_cluster() {
            report("creating the PostgreSQL cluster");
            self.create_cluster().await?;
        }
        let mut tries = 1;
        loop {
            if !ports::is_free(self.settings.port) {
                [self.settings.port] = ports::choose()?;
                self.home.save(&self.settings)?;
            }
            report(&format!(
                "starting PostgreSQL on port {}",
                self.settings.port
            ));
            match self.run().await {
                Ok(()) => break,
                // It is ended, so whoever has its port now took it away.
                Err(_) if tries < PORT_TRIES && !ports::is_free(self.settings.port) => tries += 1,
                Err(error) => return Err(error),
            }
        }
        report("PostgreSQL is ready");
        Ok(())
    }

    /// Starts the server on the port it has, and waits until it takes connections.
    pub(super) async fn run(&mut self) -> Result<(), Error> {
        if self
            .child
            .as_mut()
            .is_some_and(|child| exit_status(child).is_none())
        {
            return Ok(());
        }
        // Sessions can outlive a server that was killed, and keep the next from starting.
        self.kill().await?;
        let ready = self.spawn_and_wait().await;
        if ready.is_err() {
            self.kill().await?;
        }
        ready
    }

    async fn spawn_and_wait(&mut self) -> Result<(), Error> {
        self.remove_misleading_pid_file()?;
        let mut command = self.home.command(&self.server);
        command.arg("-D").arg(self.home.path.join(CLUSTER));
        for setting in [
            // Shown in the title of each of its processes.
            format!("cluster_name={}", self.home.processes.mark()),
            format!("port={}", self.settings.port),
            "listen_addresses=127.0.0.1".to_owned(),
            // A socket's path is limited to 107 bytes, which a data directory can exceed.
            "unix_socket_directories=".to_owned(),
            "max_connections=200".to_owned(),
            // A quarter of 2 GiB: that part of a machine's memory is what PostgreSQL's manual has as a beginning. With the
            // default, 128 MB, tables that orders come into fast are written out again and again.
            "shared_buffers=512MB".to_owned(),
            "fsync=on".to_owned(),
            "log_destination=stderr".to_owned(),
            "logging_collector=off".to_owned(),
        ] {
            command.arg("-c").arg(setting);
        }
        let child = self.child.insert(self.home.spawn(command)?);
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Some(status) = exit_status(child) {
                return Err(self.home.exited(KIND.program, status));
            }
            if is_ready(&self.home, child.id()) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.home.not_ready(READY_WITHIN));
            }
            tokio::time::sleep(CHILD_POLL).await;
        }
    }

    /// Makes the cluster aside and gives it its name when it is complete, so that an
    /// interrupted `initdb` leaves nothing that looks like a cluster.
    async fn create_cluster(&self) -> Result<(), Error> {
        self.home.remove_all_but(CLUSTER)?;
        // The mark makes a leftover `initdb` known as ours.
        let unfinished = self.home.path.join(self.home.processes.mark());
        let password_file = self.home.path.join("password");
        write_private(&password_file, &self.settings.password)?;
        let mut command = self.home.command(&self.initdb);
        command
            .arg("--pgdata")
            .arg(&unfinished)
            .arg("--username")
            .arg(USER)
            .arg("--pwfile")
            .arg(&password_file)
            .args(["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"])
            .args(["--data-checksums", "--no-instructions"]);
        let mut child = self.home.spawn(command)?;
        let Ok(status) = tokio::time::timeout(CREATE_WITHIN, wait_for_exit(&mut child)).await
        else {
            self.home.processes.kill().await?;
            return Err(self.home.not_ready(CREATE_WITHIN));
        };
        remove_if_there(&password_file).map_err(Error::file("remove", &password_file))?;
        if !child.try_wait().ok().flatten().is_some_and(|s| s.success()) {
            return Err(self.home.exited("initdb", status));
        }
        fs::rename(&unfinished, self.home.path.join(CLUSTER))
            .map_err(Error::file("rename", &unfinished))
    }

    /// A crash leaves `postmaster.pid`. PostgreSQL sees that it is stale, except when
    /// another process has got that pid since. None of ours runs, so any is another.
    fn remove_misleading_pid_file(&self) -> Result<(), Error> {
        let path = pid_file(&self.home);
        let pid = fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.lines().next()?.trim().parse().ok());
        if pid.is_some_and(processes::is_running) {
            remove_if_there(&path).map_err(Error::file("remove", &path))?;
        }
        Ok(())
    }

    /// Resolves when the server exits without having been asked to.
    pub(super) async fn exited(&mut self) -> Error {
        let Some(child) = &mut self.child else {
            return std::future::pending().await;
        };
        let status = wait_for_exit(child).await;
        let error = self.home.exited(KIND.program, status);
        // Whatever this cannot end, the next start or stop reports.
        let _ = self.kill().await;
        error
    }

    pub(super) async fn stop(&mut self) -> Result<(), Error> {
        let stopped = self.home.processes.stop(STOP_SIGNAL, STOP_WITHIN).await;
        self.reap();
        stopped
    }

    pub(super) async fn kill(&mut self) -> Result<(), Error> {
        let killed = self.home.processes.kill().await;
        self.reap();
        killed
    }

    /// Collects the status of the child, which has ended.
    fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = exit_status(&mut child);
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.home.processes.kill_now();
        self.reap();
    }
}

/// PostgreSQL writes its pid into the first line of this file, and its state into the
/// eighth; `pg_ctl` waits for the same. Unlike an answer on the port, this cannot come
/// from a stranger.
fn is_ready(home: &Home, pid: u32) -> bool {
    let text = fs::read_to_string(pid_file(home)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.first() == Some(&pid.to_string().as_str()) && lines.get(7) == Some(&"ready")
}

fn pid_file(home: &Home) -> PathBuf {
    home.path.join(CLUSTER).join("postmaster.pid")
}
