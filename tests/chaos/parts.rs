//! The product as processes, and who starts them again: a supervisor, as systemd is one.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::findings::Findings;

/// A supervisor waits for so long.
const RESTART_AFTER: Duration = Duration::from_millis(500);
/// A process has opened what it opens after so long at work.
const WARM_AFTER: Duration = Duration::from_secs(8);
/// SIGTERM lets a process finish for three times its deadline of 10 s at most.
const ENDS_WITHIN: Duration = Duration::from_secs(45);
/// Connections that a pool may open later than at first, and those on their way.
const MORE_FDS_MAX: usize = 48;
/// What an allocator keeps after a backlog; a leak of a busy process grows beyond it.
const MORE_RSS_MIB_MAX: u64 = 150;

/// What a process is and how it is started.
#[derive(Clone)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) arguments: Vec<String>,
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) log: PathBuf,
}

/// One life of a process.
#[derive(Debug, Clone, Copy)]
struct Life {
    number: usize,
    pid: Option<i32>,
    since: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Footprint {
    fds: usize,
    rss_mib: u64,
}

/// A process under supervision.
pub(crate) struct Part {
    pub(crate) name: &'static str,
    life: watch::Receiver<Life>,
    /// The signal that was sent to end it; an end without one is the process's own.
    doom: Arc<Mutex<Option<Signal>>>,
    /// Ends by SIGABRT so far: what a poisonous message does.
    pub(crate) aborts: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    warm: Mutex<Option<(usize, Footprint)>>,
    supervisor: JoinHandle<()>,
    findings: Findings,
}

/// The program under test: that of this build, or another one that `CHAOS_PROGRAM` names.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("CHAOS_PROGRAM")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_stockctl").into())
        .into()
}

impl Spec {
    fn spawn(&self) -> std::io::Result<Child> {
        let log: File = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        Command::new(program())
            .args(&self.arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(self.variables.iter().cloned())
            .current_dir(env!("CARGO_TARGET_TMPDIR"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
    }
}

impl Part {
    /// Starts a process, and starts it again whenever it ends.
    pub(crate) fn start(spec: Spec, findings: Findings, may_abort: bool) -> Self {
        let (lives, life) = watch::channel(Life {
            number: 0,
            pid: None,
            since: Instant::now(),
        });
        let mut part = Self {
            name: spec.name,
            life,
            doom: Arc::default(),
            aborts: Arc::default(),
            is_over: Arc::default(),
            warm: Mutex::default(),
            supervisor: tokio::spawn(async {}),
            findings,
        };
        let watcher = Watcher {
            doom: Arc::clone(&part.doom),
            aborts: Arc::clone(&part.aborts),
            is_over: Arc::clone(&part.is_over),
            may_abort,
            findings: part.findings.clone(),
        };
        part.supervisor = tokio::spawn(watcher.supervise(spec, lives));
        part
    }

    fn now(&self) -> Life {
        *self.life.borrow()
    }

    fn send(&self, signal: Signal) {
        if let Some(pid) = self.now().pid {
            // It may have ended in this moment, which its supervisor sees.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// `kill -9`; its supervisor starts it again.
    pub(crate) async fn kill(&self) {
        self.end(Signal::SIGKILL).await;
    }

    /// SIGTERM; it has to end by itself, with exit code 0.
    pub(crate) async fn terminate(&self) {
        self.end(Signal::SIGTERM).await;
    }

    async fn end(&self, signal: Signal) {
        let mut life = self.life.clone();
        let before = *life.borrow_and_update();
        if before.pid.is_none() {
            // It is between two lives already.
            return;
        }
        *self.doom.lock().expect("no panic") = Some(signal);
        self.send(signal);
        let ended = life.wait_for(|now| now.number > before.number || now.pid.is_none());
        if tokio::time::timeout(ENDS_WITHIN, ended).await.is_err() {
            let name = self.name;
            self.findings.violation(format!(
                "{name} does not end within {ENDS_WITHIN:?} of {signal}"
            ));
            self.send(Signal::SIGKILL);
        }
    }

    /// Stops its execution.
    pub(crate) fn pause(&self) {
        self.send(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.send(Signal::SIGCONT);
    }

    /// Notes what the process uses, once it is warm.
    pub(crate) fn note_footprint(&self) {
        let life = self.now();
        let Some(pid) = life.pid.filter(|_| life.since.elapsed() >= WARM_AFTER) else {
            return;
        };
        let mut warm = self.warm.lock().expect("no panic");
        if warm.is_none_or(|(number, _)| number != life.number)
            && let Some(footprint) = footprint(pid)
        {
            *warm = Some((life.number, footprint));
        }
    }

    /// Compares what the process uses with what it used when it was warm. Returns a line for the report.
    pub(crate) fn check_footprint(&self) -> Option<String> {
        let life = self.now();
        let (number, then) = (*self.warm.lock().expect("no panic"))?;
        let now = footprint(life.pid?)?;
        if number != life.number {
            return None;
        }
        let line = format!(
            "{}: {} -> {} descriptors, {} -> {} MiB",
            self.name, then.fds, now.fds, then.rss_mib, now.rss_mib
        );
        self.findings.check(
            now.fds <= then.fds + MORE_FDS_MAX && now.rss_mib <= then.rss_mib + MORE_RSS_MIB_MAX,
            || format!("a leak: {line}"),
        );
        Some(line)
    }

    /// Ends it cleanly, for good.
    pub(crate) async fn stop(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.terminate().await;
        let _ = tokio::time::timeout(RESTART_AFTER * 4, self.supervisor).await;
    }
}

/// What a supervisor needs to know.
struct Watcher {
    doom: Arc<Mutex<Option<Signal>>>,
    aborts: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    may_abort: bool,
    findings: Findings,
}

impl Watcher {
    async fn supervise(self, spec: Spec, lives: watch::Sender<Life>) {
        while !self.is_over.load(Ordering::Relaxed) {
            let mut child = match spec.spawn() {
                Ok(child) => child,
                Err(error) => {
                    self.findings
                        .violation(format!("{} cannot be started: {error}", spec.name));
                    return;
                }
            };
            let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
            lives.send_modify(|life| {
                *life = Life {
                    number: life.number + 1,
                    pid,
                    since: Instant::now(),
                };
            });
            let status = child.wait().await;
            let doom = self.doom.lock().expect("no panic").take();
            if let Ok(status) = status {
                self.judge(spec.name, doom, status);
            }
            lives.send_modify(|life| life.pid = None);
            tokio::time::sleep(RESTART_AFTER).await;
        }
    }

    fn judge(&self, name: &str, doom: Option<Signal>, status: ExitStatus) {
        if status.signal() == Some(Signal::SIGABRT as i32) && self.may_abort {
            self.aborts.fetch_add(1, Ordering::Relaxed);
            return;
        }
        match doom {
            Some(Signal::SIGKILL) => {}
            Some(signal) => self.findings.check(status.code() == Some(0), || {
                format!("{name} ended after {signal} with {status}, not with 0")
            }),
            None => self
                .findings
                .violation(format!("{name} ended by itself: {status}")),
        }
    }
}

fn footprint(pid: i32) -> Option<Footprint> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .ok()?;
    Some(Footprint {
        fds,
        rss_mib: kib / 1024,
    })
}
