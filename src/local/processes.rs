//! The processes of one server, found in `/proc` by the mark that each carries on
//! its command line, and ended.
//!
//! The mark names the server's directory by device and inode: it follows a directory
//! that is moved, and a copy has another. What is needed for it is readable by
//! everybody, so it also works for a root without the right to trace processes, as in
//! a container. Nothing is written down, so there is no moment at which a process runs
//! and is not known, and no pid that could have become somebody else's.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::Error;

/// How often the processes are looked at while they are expected to end.
const POLL: Duration = Duration::from_millis(50);

/// SIGKILL needs no consent; a process that is there after this long hangs in the kernel.
const KILL_WITHIN: Duration = Duration::from_secs(5);

/// The same in `Drop`, which blocks its thread.
const KILL_NOW_WITHIN: Duration = Duration::from_secs(2);

/// The names that processes of the servers have; a `grep` for a mark has another.
/// The shell scripts `rabbitmq-server` and `erl` become `erlexec`, then `beam.smp`.
const NAMES: [&str; 7] = [
    "postgres",
    "initdb",
    "rabbitmq-server",
    "erl",
    "erlexec",
    "beam.smp",
    EPMD,
];

/// Erlang's name registry holds nothing worth keeping, but a stopping node uses it.
const EPMD: &str = "epmd";

/// The processes that belong to one server's directory, whoever started them.
#[derive(Debug)]
pub(super) struct Processes {
    program: &'static str,
    home: PathBuf,
    mark: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    name: String,
    state: char,
    parent: i32,
    // With the pid, this says which process it is: a pid alone may be used again.
    started_ticks: u64,
}

impl Processes {
    /// The processes of `program` on the directory `home`, which need not exist.
    pub(super) fn of(program: &'static str, home: &Path) -> Result<Self, Error> {
        let mark = match home.metadata() {
            Ok(metadata) => Some(format!(
                "stockctl-{:x}-{:x}",
                metadata.dev(),
                metadata.ino()
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::file("look at", home)(error)),
        };
        Ok(Self {
            program,
            home: home.to_owned(),
            mark,
        })
    }

    /// What has to stand on the command line of each process started on this directory.
    pub(super) fn mark(&self) -> &str {
        self.mark.as_deref().unwrap_or_default()
    }

    pub(super) fn any(&self) -> bool {
        !self.list().is_empty()
    }

    /// Asks the server to stop with `signal`, and kills it when it has not within
    /// `within`.
    pub(super) async fn stop(&self, signal: Signal, within: Duration) -> Result<(), Error> {
        let listed = self.list();
        let pids: HashSet<i32> = listed.iter().map(|process| process.pid).collect();
        for process in &listed {
            // A server looks after its own children.
            if !pids.contains(&process.parent) && process.name != EPMD {
                process.signal(signal);
            }
        }
        let deadline = Instant::now() + within;
        while self.list().iter().any(|process| process.name != EPMD) {
            if Instant::now() > deadline {
                self.kill().await?;
                return Err(Error::Killed {
                    program: self.program,
                    within,
                });
            }
            tokio::time::sleep(POLL).await;
        }
        self.kill().await
    }

    /// Ends every process with SIGKILL, and returns when none is left.
    pub(super) async fn kill(&self) -> Result<(), Error> {
        let deadline = Instant::now() + KILL_WITHIN;
        loop {
            let left = self.kill_listed();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::StillRunning {
                    program: self.program,
                    pids: left,
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// As [`Processes::kill`], blocking, for `Drop`.
    pub(super) fn kill_now(&self) {
        let deadline = Instant::now() + KILL_NOW_WITHIN;
        while !self.kill_listed().is_empty() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
    }

    /// Sends SIGKILL to what is there, and returns what that was. A process may have
    /// forked meanwhile, so this is repeated until nothing is found.
    fn kill_listed(&self) -> Vec<i32> {
        let listed = self.list();
        for process in &listed {
            process.signal(Signal::SIGKILL);
        }
        listed.iter().map(|process| process.pid).collect()
    }

    /// The server's processes with all their descendants.
    fn list(&self) -> Vec<Process> {
        let all = running();
        let mut ours: HashSet<i32> = all
            .iter()
            .filter(|process| NAMES.contains(&process.name.as_str()) && self.is_ours(process))
            .map(|process| process.pid)
            .collect();
        let mut known = 0;
        while known < ours.len() {
            known = ours.len();
            let children = all.iter().filter(|process| ours.contains(&process.parent));
            ours.extend(children.map(|process| process.pid).collect::<Vec<_>>());
        }
        all.into_iter()
            .filter(|process| ours.contains(&process.pid))
            .collect()
    }

    fn is_ours(&self, process: &Process) -> bool {
        let command_line = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        let marked = self.mark.as_deref().is_some_and(|mark| {
            command_line
                .split(|byte| *byte == 0)
                .any(|argument| has_mark(&String::from_utf8_lossy(argument), mark))
        });
        // Finds the servers of a directory that was deleted under them, where we may look.
        marked
            || fs::read_link(format!("/proc/{}/cwd", process.pid))
                .is_ok_and(|directory| is_within(&directory, &self.home))
    }
}

impl Process {
    /// Signals the process if it still is the one that was listed.
    fn signal(&self, signal: Signal) {
        let is_same = read_process(self.pid)
            .is_some_and(|process| process.started_ticks == self.started_ticks);
        if is_same {
            // One that ended by itself in this instant is as good as signalled.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// Whether some process has this pid now.
pub(super) fn is_running(pid: i32) -> bool {
    read_process(pid).is_some()
}

/// All processes but zombies, which only wait for their parent to notice.
fn running() -> Vec<Process> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(read_process)
        .filter(|process| !matches!(process.state, 'Z' | 'X'))
        .collect()
}

fn read_process(pid: i32) -> Option<Process> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&stat))
}

/// `pid (name) state parent …`, where the name may hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    Some(Process {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        started_ticks: fields.get(19)?.parse().ok()?,
    })
}

/// Whether `mark` stands in `argument` with nothing that would make it another mark.
fn has_mark(argument: &str, mark: &str) -> bool {
    argument.match_indices(mark).any(|(start, _)| {
        let next = argument[start + mark.len()..].chars().next();
        !next.is_some_and(|character| character.is_ascii_hexdigit())
    })
}

/// The kernel adds ` (deleted)` to a working directory that is gone.
fn is_within(directory: &Path, home: &Path) -> bool {
    let text = directory.to_string_lossy();
    let text = text.strip_suffix(" (deleted)").unwrap_or(&text);
    Path::new(text).starts_with(home)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 3 7 7 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9";
        let process = parse_stat(stat).unwrap();
        assert_eq!(process.name, "a) b (c");
        assert_eq!((process.pid, process.parent), (7, 3));
        assert_eq!(process.started_ticks, 4711);
    }

    #[test]
    fn a_mark_is_not_found_in_a_longer_one() {
        assert!(has_mark("stockctl-fe00-12", "stockctl-fe00-12"));
        assert!(has_mark(
            "cluster_name=stockctl-fe00-12",
            "stockctl-fe00-12"
        ));
        assert!(has_mark(
            "postgres: stockctl-fe00-12: checkpointer",
            "stockctl-fe00-12"
        ));
        assert!(!has_mark("stockctl-fe00-123", "stockctl-fe00-12"));
    }

    #[test]
    fn a_deleted_working_directory_still_tells_where_it_was() {
        let home = Path::new("/x/servers/rabbitmq");
        assert!(is_within(Path::new("/x/servers/rabbitmq (deleted)"), home));
        assert!(is_within(
            Path::new("/x/servers/rabbitmq/data (deleted)"),
            home
        ));
        assert!(!is_within(Path::new("/x/servers/rabbitmq2"), home));
        assert!(!is_within(Path::new("/y/x/servers/rabbitmq"), home));
    }

    #[test]
    fn this_process_is_listed_as_running() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(is_running(pid));
        assert!(running().iter().any(|process| process.pid == pid));
    }
}
