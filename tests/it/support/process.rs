//! The program as a process: what it writes, how it ends.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{DEADLINE, binary, eventually};

/// What a process has left when it has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The program, running; killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    stdout: Written,
    stderr: Written,
}

/// What has been written to a pipe so far.
struct Written {
    text: Arc<Mutex<Vec<u8>>>,
    is_read: watch::Sender<bool>,
    reader: JoinHandle<()>,
}

impl Written {
    fn read(mut pipe: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let text = Arc::<Mutex<Vec<u8>>>::default();
        let into = Arc::clone(&text);
        let (is_read, mut may_read) = watch::channel(true);
        let reader = tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while may_read.wait_for(|may_read| *may_read).await.is_ok()
                && let Ok(read @ 1..) = pipe.read(&mut buffer).await
            {
                let mut text = into.lock().expect("no panic");
                text.extend_from_slice(&buffer[..read]);
            }
        });
        Self {
            text,
            is_read,
            reader,
        }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().expect("no panic")).into_owned()
    }
}

impl Process {
    /// Starts the program in a directory without a configuration and with an environment that holds `variables` only.
    pub(crate) fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = Self::command(binary());
        command
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::null());
        Self::spawn(command)
    }

    /// Starts the program as systemd starts a service with a socket: with `socket` as descriptor 3, and `LISTEN_FDS` and
    /// `LISTEN_PID` beside the `variables`, which may say otherwise.
    pub(crate) fn start_with_socket(
        arguments: &[&str],
        socket: impl Into<OwnedFd>,
        variables: &[(&str, &str)],
    ) -> Self {
        // The shell becomes the program, so the process id is the same.
        let script = "exec 3<&0 </dev/null; \
                      export LISTEN_PID=${LISTEN_PID-$$} LISTEN_FDS=${LISTEN_FDS-1}; exec \"$0\" \"$@\"";
        let mut command = Self::command(Path::new("sh"));
        command
            .args(["-c", script])
            .arg(binary())
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::from(socket.into()));
        Self::spawn(command)
    }

    fn command(program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .current_dir(Path::new(env!("CARGO_TARGET_TMPDIR")));
        command
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program runs");
        Self {
            stdout: Written::read(child.stdout.take().expect("piped")),
            stderr: Written::read(child.stderr.take().expect("piped")),
            child,
        }
    }

    /// Runs the program to its end.
    pub(crate) async fn run(arguments: &[&str]) -> Ended {
        Self::start(arguments, &[]).ended().await
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("not ended yet");
        kill(Pid::from_raw(pid.try_into().expect("a pid")), signal).expect("sent");
    }

    /// Pauses it. SIGSTOP is only sent: on a busy machine, a thread may go on for a while.
    pub(crate) async fn pause(&self) {
        self.signal(Signal::SIGSTOP);
        let threads = format!("/proc/{}/task", self.id());
        let is_stopped = |thread: &std::fs::DirEntry| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // "4711 (a name) T ...", and the name may be anything.
            let (_, state) = stat.rsplit_once(") ").unwrap_or_default();
            state.starts_with('T')
        };
        eventually("every thread is stopped", async || {
            let threads = std::fs::read_dir(&threads).expect("its threads");
            let all = threads.flatten().all(|thread| is_stopped(&thread));
            all.then_some(())
        })
        .await;
    }

    /// Starts the program with a configuration file.
    pub(crate) fn configured(config_file: &Path, arguments: &[&str]) -> Self {
        let file = config_file.to_str().expect("a path in UTF-8");
        Self::start(&[&["--config", file], arguments].concat(), &[])
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("not ended yet")
    }

    /// Reads what it writes to stderr, as is done from the start, or leaves it in the pipe from now on.
    pub(crate) fn read_stderr(&self, is_read: bool) {
        self.stderr.is_read.send_replace(is_read);
    }

    /// `kill -9`, and its end.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("ours to kill");
    }

    /// SIGTERM, and the exit code that it ends with.
    pub(crate) async fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        let ended = tokio::time::timeout(DEADLINE, self.child.wait()).await;
        ended.expect("ends in time").expect("ends").code()
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("asked").is_none()
    }

    /// Waits until it has written a text, to stdout or to stderr, and returns both as they are then.
    pub(crate) async fn writes(&self, text: &str) -> String {
        self.writes_within(text, DEADLINE).await
    }

    /// As [`Process::writes`], for what may take longer than anything else.
    pub(crate) async fn writes_within(&self, text: &str, deadline: Duration) -> String {
        let written = || self.stdout.so_far() + &self.stderr.so_far();
        let waiting = async {
            while !written().contains(text) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let came = tokio::time::timeout(deadline, waiting).await;
        let written = written();
        assert!(came.is_ok(), "{text:?} never came, but {written}");
        written
    }

    /// What it has written to stdout so far.
    pub(crate) fn stdout_so_far(&self) -> String {
        self.stdout.so_far()
    }

    /// Waits for its end.
    pub(crate) async fn ended(mut self) -> Ended {
        let ending = async {
            let status = self.child.wait().await.expect("ends");
            let _ = (&mut self.stdout.reader).await;
            let _ = (&mut self.stderr.reader).await;
            status.code()
        };
        let code = tokio::time::timeout(DEADLINE, ending).await;
        let (stdout, stderr) = (self.stdout.so_far(), self.stderr.so_far());
        Ended {
            code: code.unwrap_or_else(|_| panic!("does not end; it wrote {stdout}{stderr}")),
            stdout,
            stderr,
        }
    }
}
