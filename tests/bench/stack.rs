//! The servers, and the product as processes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stockctl::local;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_postgres::{Client, NoTls};

/// A process is ready within this, and ends within it.
const PROCESS_DEADLINE: Duration = Duration::from_secs(60);
/// A command that reads or writes millions of rows ends within this.
const COMMAND_DEADLINE: Duration = Duration::from_secs(1800);

/// Where everything is.
pub(crate) struct Stack {
    servers: local::Servers,
    config_file: PathBuf,
    pub(crate) api: String,
    processes: BTreeMap<&'static str, Child>,
    /// The most memory that each process had, in KiB.
    peaks: BTreeMap<&'static str, u64>,
    started_within: Option<Duration>,
    /// Rates that were measured while the tables were empty.
    pub(crate) empty_rates: Vec<f64>,
}

/// One request, answered with 200.
async fn ask(address: &str) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_stockctl"))
}

impl Stack {
    /// Starts the servers, and makes the databases; no process of the product runs yet.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench");
        std::fs::create_dir_all(&directory)?;
        let options = local::Options {
            data_dir: directory.join("servers"),
            fresh: true,
        };
        crate::say("starting PostgreSQL and RabbitMQ");
        let servers = local::start(&options, &mut |_| {}).await?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let api = format!("http://127.0.0.1:{port}");
        let config_file = directory.join("config.toml");
        let vendor = |id: &str| {
            format!(
                "[vendors.{id}]\ndatabase_url = \"{}\"\napi_url = \"{api}/vendors/{id}\"\n",
                servers.database_url(&id.to_lowercase())
            )
        };
        let text = format!(
            "[http]\nlisten = \"127.0.0.1:{port}\"\n[database]\nurl = \"{}\"\n[rabbitmq]\nurl = \"{}\"\n{}{}",
            servers.database_url("ordersdb"),
            servers.amqp_url(),
            vendor("vendorA"),
            vendor("vendorB")
        );
        std::fs::write(&config_file, text)?;
        let mut stack = Self {
            servers,
            config_file,
            api,
            processes: BTreeMap::new(),
            peaks: BTreeMap::new(),
            started_within: None,
            empty_rates: Vec::new(),
        };
        let server = stack.connect("postgres").await?;
        for database in ["ordersdb", "vendora", "vendorb", "reference"] {
            server
                .batch_execute(&format!("CREATE DATABASE {database}"))
                .await?;
        }
        stack.run(&["migrate", "--vendors"]).await?;
        Ok(stack)
    }

    /// Connects to a database.
    pub(crate) async fn connect(&self, database: &str) -> anyhow::Result<Client> {
        let url = self.database_url(database);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// How to reach the broker.
    pub(crate) fn broker(&self) -> anyhow::Result<stockctl::mq::Settings> {
        let config = stockctl::config::load(Some(&self.config_file))?;
        Ok(stockctl::commands::broker_settings(&config))
    }

    /// The URL of a database.
    pub(crate) fn database_url(&self, database: &str) -> String {
        self.servers.database_url(database)
    }

    /// Runs a subcommand to its end, and returns what it wrote and how much memory it took at most.
    pub(crate) async fn run(&mut self, arguments: &[&str]) -> anyhow::Result<String> {
        let child = self.spawn(arguments, Stdio::piped())?;
        let pid = child.id();
        let ending = child.wait_with_output();
        tokio::pin!(ending);
        let until = Instant::now() + COMMAND_DEADLINE;
        let output = loop {
            tokio::select! {
                output = &mut ending => break output?,
                () = tokio::time::sleep(Duration::from_millis(100)) => {
                    let name = match arguments.first() {
                        Some(&"sync") => Some("sync --once"),
                        Some(&"audit") => Some("audit"),
                        _ => None,
                    };
                    if let (Some(pid), Some(name)) = (pid, name) {
                        self.note_peak(name, pid);
                    }
                }
            }
            ensure!(Instant::now() < until, "{arguments:?} does not end");
        };
        ensure!(
            output.status.success(),
            "{arguments:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    fn spawn(&self, arguments: &[&str], stdout: Stdio) -> anyhow::Result<Child> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.config_file.with_file_name("log"))?;
        Ok(Command::new(program())
            .arg("--config")
            .arg(&self.config_file)
            .args(arguments)
            .env_clear()
            .current_dir(env!("CARGO_TARGET_TMPDIR"))
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?)
    }

    /// Lets exactly these subcommands run.
    pub(crate) async fn let_run(&mut self, names: &[&'static str]) -> anyhow::Result<()> {
        let running: Vec<&'static str> = self.processes.keys().copied().collect();
        for name in running {
            if !names.contains(&name) {
                self.end(name).await?;
            }
        }
        for name in names {
            if !self.processes.contains_key(name) {
                let begun = Instant::now();
                let child = self.spawn(&[name], Stdio::null())?;
                self.processes.insert(name, child);
                if *name == "serve" {
                    self.wait_until_it_answers().await?;
                    self.started_within.get_or_insert(begun.elapsed());
                }
            }
        }
        Ok(())
    }

    async fn wait_until_it_answers(&self) -> anyhow::Result<()> {
        let until = Instant::now() + PROCESS_DEADLINE;
        let address = self.api.trim_start_matches("http://");
        while ask(address).await.is_err() {
            ensure!(Instant::now() < until, "serve does not answer");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    async fn end(&mut self, name: &'static str) -> anyhow::Result<()> {
        self.note_peaks();
        let Some(mut child) = self.processes.remove(name) else {
            return Ok(());
        };
        let pid = child.id().context("it runs")?;
        kill(Pid::from_raw(pid.try_into()?), Signal::SIGTERM)?;
        let status = tokio::time::timeout(PROCESS_DEADLINE, child.wait()).await??;
        ensure!(status.success(), "{name} ended with {status}");
        Ok(())
    }

    /// Looks at the memory that each process has had at most.
    pub(crate) fn note_peaks(&mut self) {
        let pids: Vec<(&'static str, u32)> = self
            .processes
            .iter()
            .filter_map(|(name, child)| Some((*name, child.id()?)))
            .collect();
        for (name, pid) in pids {
            self.note_peak(name, pid);
        }
    }

    fn note_peak(&mut self, name: &'static str, pid: u32) {
        let peak: Option<u64> = std::fs::read_to_string(format!("/proc/{pid}/status"))
            .ok()
            .and_then(|status| {
                let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
                line.split_whitespace().nth(1)?.parse().ok()
            });
        if let Some(peak) = peak {
            let most = self.peaks.entry(name).or_default();
            *most = peak.max(*most);
        }
    }

    /// The memory that each process has had at most so far.
    pub(crate) fn peaks(&self) -> String {
        let peaks = self.peaks.iter();
        let peaks = peaks.map(|(name, kib)| format!("{name} {:.1}", kib_to_mib(*kib)));
        let peaks: Vec<String> = peaks.collect();
        format!("memory in MiB at most: {}", peaks.join(", "))
    }

    /// What is worth saying of the processes in the end.
    pub(crate) fn footprints(&self) -> Vec<String> {
        let mut lines = vec![self.peaks()];
        if let Some(within) = self.started_within {
            lines.push(format!(
                "serve answers its first request within {} ms of its start",
                within.as_millis()
            ));
        }
        if let Ok(metadata) = std::fs::metadata(program()) {
            lines.push(format!(
                "the program has {:.1} MB",
                f64::from(u32::try_from(metadata.len()).unwrap_or(u32::MAX)) / 1e6
            ));
        }
        lines
    }

    /// Ends everything.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.let_run(&[]).await?;
        self.servers.stop().await?;
        Ok(())
    }
}

fn kib_to_mib(kib: u64) -> f64 {
    f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0
}
