//! The directory of one server: who it runs as, its settings and its log.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::account::Account;
use super::error::{Error, LogTail};
use super::files::{remove_if_there, write_private};
use super::processes::Processes;
use super::programs::path_variable;

/// How many of a server's last log lines an error shows: a reason and what led to it.
const LOG_LINES: usize = 15;

/// How much of the log's end is read for them.
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// How often a child is asked whether it has exited. Asking works on any runtime and
/// in none, which a signal-driven wait does not.
pub(super) const CHILD_POLL: Duration = Duration::from_millis(50);

/// A server by its name in files and in messages, and the system user it has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) program: &'static str,
    pub(super) directory: &'static str,
    pub(super) system_user: &'static str,
}

/// Where one server has its files. The log and the settings stand beside its
/// directory rather than in it, where the server's user could put links in their place.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) path: PathBuf,
    pub(super) processes: Processes,
    kind: Kind,
    account: Option<Account>,
    log: PathBuf,
    settings: PathBuf,
}

impl Home {
    /// Opens the server's directory below `servers`, or makes it.
    pub(super) fn open(kind: Kind, servers: &Path) -> Result<Self, Error> {
        let path = servers.join(kind.directory);
        let account = Account::for_home(&path, kind.system_user)?;
        if let Some(account) = &account
            && !account.can_enter(servers)?
        {
            return Err(Error::Unreachable {
                path: servers.to_owned(),
                user: account.name.clone(),
            });
        }
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::file("create", &path)(error));
            }
            _ => {}
        }
        if let Some(account) = &account {
            lchown(&path, Some(account.uid), Some(account.gid))
                .map_err(Error::file("change the owner of", &path))?;
        }
        Ok(Self {
            processes: Processes::of(kind.program, &path)?,
            log: servers.join(kind.directory).with_extension("log"),
            settings: servers.join(kind.directory).with_extension("json"),
            path,
            kind,
            account,
        })
    }

    /// What an earlier start saved; `None` if there was none.
    pub(super) fn load<Settings: DeserializeOwned>(&self) -> Result<Option<Settings>, Error> {
        let text = match fs::read_to_string(&self.settings) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file("read", &self.settings)(error)),
        };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| self.damaged(&error.to_string()))
    }

    pub(super) fn save<Settings: Serialize>(&self, settings: &Settings) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(settings)
            .map_err(|error| self.damaged(&error.to_string()))?;
        write_private(&self.settings, &text)
    }

    /// The settings are unusable, or missing where there is data.
    pub(super) fn damaged(&self, problem: &str) -> Error {
        Error::Damaged {
            path: self.settings.clone(),
            problem: problem.to_owned(),
        }
    }

    /// A command that runs as the server's user in the server's directory, with an
    /// environment that has nothing of ours.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", path_variable())
            .env("HOME", &self.path)
            .env("LANG", "C.UTF-8")
            .current_dir(&self.path)
            .stdin(Stdio::null());
        if let Some(account) = &self.account {
            account.apply(&mut command);
        }
        command
    }

    /// Begins a new log; the one before is kept as `….log.old`.
    pub(super) fn begin_log(&self) -> Result<(), Error> {
        match fs::rename(&self.log, self.log.with_added_extension("old")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::file("rename", &self.log)(error))
            }
            _ => Ok(()),
        }
    }

    /// Starts `command` with its output going to the log, in a process group of its
    /// own, so that Ctrl-C on the terminal reaches us only and we stop the servers in
    /// our order.
    pub(super) fn spawn(&self, mut command: Command) -> Result<Child, Error> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.log)
            .map_err(Error::file("open", &self.log))?;
        let errors = log.try_clone().map_err(Error::file("open", &self.log))?;
        command
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(|source| Error::Spawn {
                program: command.get_program().into(),
                source,
            })
    }

    /// The error for a child that has exited with `status`.
    pub(super) fn exited(&self, program: &'static str, status: String) -> Error {
        Error::Exited {
            program,
            status,
            log: self.log_tail(),
        }
    }

    /// The error for a server that runs, but cannot be used after `within`.
    pub(super) fn not_ready(&self, within: Duration) -> Error {
        Error::NotReady {
            program: self.kind.program,
            within,
            log: self.log_tail(),
        }
    }

    fn log_tail(&self) -> LogTail {
        LogTail {
            path: self.log.clone(),
            lines: last_lines(&self.log).unwrap_or_default(),
        }
    }

    /// Removes what is in the directory but `keep`.
    pub(super) fn remove_all_but(&self, keep: &str) -> Result<(), Error> {
        let entries = fs::read_dir(&self.path).map_err(Error::file("list", &self.path))?;
        for entry in entries.flatten() {
            if entry.file_name() != keep {
                remove_if_there(&entry.path()).map_err(Error::file("remove", &entry.path()))?;
            }
        }
        Ok(())
    }
}

/// How a child ended, once it has; `None` while it runs.
pub(super) fn exit_status(child: &mut Child) -> Option<String> {
    match child.try_wait() {
        Ok(status) => status.map(|status| status.to_string()),
        // Somebody else has waited for it, so it is gone.
        Err(error) => Some(error.to_string()),
    }
}

/// Waits until a child exits, and says how.
pub(super) async fn wait_for_exit(child: &mut Child) -> String {
    loop {
        if let Some(status) = exit_status(child) {
            return status;
        }
        tokio::time::sleep(CHILD_POLL).await;
    }
}

fn last_lines(log: &Path) -> io::Result<Vec<String>> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut end = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut end)?;
    let end = String::from_utf8_lossy(&end);
    let lines: Vec<&str> = end
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    let first = lines.len().saturating_sub(LOG_LINES);
    Ok(lines[first..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect())
}
