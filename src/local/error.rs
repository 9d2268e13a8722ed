//! What can go wrong with the private servers, told for the person who typed
//! `stockctl up`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why the private servers could not be started, stopped or asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A server's program is not installed.
    #[error(
        "cannot find {program}: install it (Debian, Ubuntu: apt-get install {package}), or add its directory to PATH"
    )]
    ProgramMissing {
        /// The program that was looked for.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// Running as root, and the server's own system user does not exist.
    #[error(
        "the system user {user} does not exist, and {user} must not run as root: install its package (Debian, Ubuntu: apt-get install {package}), or run as an ordinary user"
    )]
    UserMissing {
        /// The system user that was looked for.
        user: &'static str,
        /// The package that creates it.
        package: &'static str,
    },
    /// The data directory has content that this program did not put there.
    #[error(
        "{path} is not empty and was not made by stockctl: name another --data-dir, or empty it yourself", path = path.display()
    )]
    NotOurs {
        /// The data directory.
        path: PathBuf,
    },
    /// The path of the data directory has characters that RabbitMQ cannot work with.
    #[error(
        "RabbitMQ cannot work in {path:?}: name a --data-dir without quotes, backslashes, dollar signs and control characters in its path"
    )]
    OddPath {
        /// The data directory.
        path: PathBuf,
    },
    /// Another process holds the data directory.
    #[error(
        "{path} is in use by another stockctl ({holder}): stop that one first, or name another --data-dir", path = path.display()
    )]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// The process that holds it, as far as it is known.
        holder: String,
    },
    /// The servers' files lie elsewhere, and belong to another data directory.
    #[error(
        "{link} leads to {target}, which belongs to the directory that this one was moved or copied from: put it back, or start over with --fresh", link = link.display(), target = target.display()
    )]
    Moved {
        /// The link in the data directory.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// The user that a server runs as cannot enter its directory.
    #[error(
        "the user {user} cannot enter {path}, where its server's files are: give search permission (chmod o+x) to that directory and each one above it, or name another --data-dir", path = path.display()
    )]
    Unreachable {
        /// The directory.
        path: PathBuf,
        /// The user the server runs as.
        user: String,
    },
    /// A server's files belong to another user.
    #[error(
        "{path} belongs to the user {owner}: run as that user or as root, or name another --data-dir", path = path.display()
    )]
    OtherOwner {
        /// The server's directory.
        path: PathBuf,
        /// Who owns it.
        owner: String,
    },
    /// A file that the server's data cannot be used without is missing or broken.
    #[error("{path} cannot be used ({problem}): start over with --fresh, which removes the servers' data", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Too little space to start with.
    #[error(
        "only {free_mib} MiB are free where {path} is, and the servers need {needed_mib} MiB to start: free some space, or name another --data-dir", path = path.display()
    )]
    NoSpace {
        /// The servers' directory.
        path: PathBuf,
        /// What is free.
        free_mib: u64,
        /// What has to be free.
        needed_mib: u64,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// No free port, or none could be looked for.
    #[error("cannot find a free port on 127.0.0.1: {source}")]
    Ports {
        /// What the system answered.
        source: io::Error,
    },
    /// A program could not be executed at all.
    #[error("cannot run {program}: {source}", program = program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A server, or the program that creates its data, exited by itself.
    #[error("{program} has exited unasked ({status}){log}")]
    Exited {
        /// Which program.
        program: &'static str,
        /// How it ended.
        status: String,
        /// What it wrote last.
        log: LogTail,
    },
    /// A server runs, but could not be used in time.
    #[error("{program} was not ready within {} s{log}", within.as_secs())]
    NotReady {
        /// Which program.
        program: &'static str,
        /// How long it was given.
        within: Duration,
        /// What it wrote last.
        log: LogTail,
    },
    /// A server did not stop by itself; it was killed and recovers at its next start.
    #[error(
        "{program} did not stop within {} s and was killed; it recovers its data at the next start", within.as_secs()
    )]
    Killed {
        /// Which server.
        program: &'static str,
        /// How long it was given.
        within: Duration,
    },
    /// Processes of a server are there even after SIGKILL.
    #[error("{program} is still running after SIGKILL, as {pids:?}: end these processes by hand")]
    StillRunning {
        /// Which server.
        program: &'static str,
        /// Its processes.
        pids: Vec<i32>,
    },
    /// `rabbitmqctl` failed.
    #[error("rabbitmqctl {arguments} failed: {output}")]
    Rabbitmqctl {
        /// How it was called.
        arguments: String,
        /// What it printed, or why it could not run.
        output: String,
    },
}

impl Error {
    /// For `map_err`: a file operation on `path` failed.
    pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// The last lines of a server's log.
#[derive(Debug, Clone)]
pub struct LogTail {
    /// The log file.
    pub path: PathBuf,
    /// Its last lines, oldest first.
    pub lines: Vec<String>,
}

impl fmt::Display for LogTail {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lines.is_empty() {
            return write!(formatter, "; it wrote nothing to {}", self.path.display());
        }
        write!(formatter, "; the end of {}:", self.path.display())?;
        for line in &self.lines {
            write!(formatter, "\n  {line}")?;
        }
        Ok(())
    }
}
