//! The data directory: one process at a time, nothing of anybody else's touched, and
//! a place for the servers' files that the servers' users can reach.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::statvfs::statvfs;

use super::account::{Account, user_name};
use super::error::Error;
use super::files::remove_if_there;
use super::home::{Home, Kind};
use super::processes::Processes;
use super::{postgres, rabbitmq};

/// The lock. It is also what says that the directory was made by us, so it stays
/// when everything else is removed.
const LOCK: &str = "stockctl.lock";

/// The directory of the servers' files, or a link to it.
const SERVERS: &str = "servers";

/// Where the servers' files are when their users cannot enter the data directory.
const ELSEWHERE: &str = "/var/lib/stockctl";

/// A new cluster and a new node take about 60 MiB, and RabbitMQ stops taking messages
/// when less than 50 MB are left; the rest is for the first data.
const FREE_MIB_MIN: u64 = 200;

/// Leftover servers are stopped cleanly, as their data is to be used again.
const LEFTOVERS_WITHIN: Duration = Duration::from_secs(20);

/// Both servers with the signal that asks each to stop now, but cleanly.
const KINDS: [(Kind, Signal); 2] = [
    (postgres::KIND, postgres::STOP_SIGNAL),
    (rabbitmq::KIND, rabbitmq::STOP_SIGNAL),
];

/// A data directory that nobody else uses as long as this value lives.
#[derive(Debug)]
pub(super) struct DataDirectory {
    path: PathBuf,
    // Not read again: dropping it releases the lock.
    _lock: File,
}

impl DataDirectory {
    /// Locks the directory at `path`, which is made if it is not there.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        fs::create_dir_all(path).map_err(Error::file("create", path))?;
        let path = path.canonicalize().map_err(Error::file("resolve", path))?;
        if !rabbitmq_can_live_in(&path) {
            return Err(Error::OddPath { path });
        }
        let lock_path = path.join(LOCK);
        let mut entries = fs::read_dir(&path).map_err(Error::file("list", &path))?;
        if entries.next().is_some() && !lock_path.exists() {
            return Err(Error::NotOurs { path });
        }
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|error| cannot_open(&lock_path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Without the name of its holder, the lock is as taken.
                let _ = lock.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "pid unknown".to_owned(),
                    pid => format!("pid {pid}"),
                };
                return Err(Error::InUse { path, holder });
            }
            Err(TryLockError::Error(error)) => {
                return Err(Error::file("lock", &lock_path)(error));
            }
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(Error::file("write", &lock_path))?;
        let directory = Self { path, _lock: lock };
        directory.remove_discarded()?;
        Ok(directory)
    }

    /// Stops the servers that an earlier process has left running here: it was killed,
    /// or it would hold the lock.
    pub(super) async fn stop_leftovers(
        &self,
        progress: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), Error> {
        for servers in self.own_places()? {
            for (kind, signal) in KINDS {
                let leftover = Processes::of(kind.program, &servers.join(kind.directory))?;
                if !leftover.any() {
                    continue;
                }
                progress(&format!("stopping a leftover {}", kind.program));
                match leftover.stop(signal, LEFTOVERS_WITHIN).await {
                    // Killed is stopped, too: the server's next start recovers.
                    Ok(()) | Err(Error::Killed { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Removes the servers' data. Nothing may run on it.
    pub(super) fn erase(&self) -> Result<(), Error> {
        for servers in self.own_places()? {
            discard(&servers)?;
        }
        let link = self.path.join(SERVERS);
        remove_if_there(&link).map_err(Error::file("remove", &link))
    }

    /// Makes what is missing, and opens the directories of both servers.
    pub(super) fn prepare(&self) -> Result<(Home, Home), Error> {
        let servers = self.servers()?;
        let homes = (
            Home::open(postgres::KIND, &servers)?,
            Home::open(rabbitmq::KIND, &servers)?,
        );
        require_space(&servers)?;
        Ok(homes)
    }

    /// The directory of the servers' files, which is made if it is not there.
    fn servers(&self) -> Result<PathBuf, Error> {
        let servers = self.path.join(SERVERS);
        let elsewhere = self.elsewhere();
        match fs::symlink_metadata(&servers) {
            Ok(metadata) if metadata.is_symlink() => {
                let target = fs::read_link(&servers).map_err(Error::file("read", &servers))?;
                if target != elsewhere {
                    let link = servers;
                    return Err(Error::Moved { link, target });
                }
                make_directory(&elsewhere)?;
                Ok(elsewhere)
            }
            Ok(_) => Ok(servers),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Data there without a link here is of a data directory that was deleted.
                discard(&elsewhere)?;
                if self.servers_users_can_enter()? {
                    make_directory(&servers)?;
                    return Ok(servers);
                }
                // The link first: without it, what is there would not be found again.
                symlink(&elsewhere, &servers).map_err(Error::file("create", &servers))?;
                make_directory(&elsewhere)?;
                Ok(elsewhere)
            }
            Err(error) => Err(Error::file("look at", &servers)(error)),
        }
    }

    fn servers_users_can_enter(&self) -> Result<bool, Error> {
        for (kind, _) in KINDS {
            if let Some(account) = Account::system(kind.system_user)?
                && !account.can_enter(&self.path)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where servers of this directory may be: here, unless that is a link, and elsewhere.
    fn own_places(&self) -> Result<Vec<PathBuf>, Error> {
        let servers = self.path.join(SERVERS);
        let elsewhere = self.elsewhere();
        Ok(match fs::symlink_metadata(&servers) {
            Ok(metadata) if metadata.is_symlink() => vec![elsewhere],
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::file("look at", &servers)(error));
            }
            _ => vec![servers, elsewhere],
        })
    }

    /// The place outside that is this directory's, by its canonical path.
    fn elsewhere(&self) -> PathBuf {
        let name = format!("{:016x}", fnv1a(self.path.as_os_str().as_bytes()));
        Path::new(ELSEWHERE).join(name)
    }

    /// Ends a removal that was interrupted.
    fn remove_discarded(&self) -> Result<(), Error> {
        for servers in [self.path.join(SERVERS), self.elsewhere()] {
            let discarded = discarded_name(&servers);
            remove_if_there(&discarded).map_err(Error::file("remove", &discarded))?;
        }
        Ok(())
    }
}

/// RabbitMQ hands its paths to a shell, and never finishes its start where that reads
/// them otherwise than they were meant.
fn rabbitmq_can_live_in(path: &Path) -> bool {
    path.to_str().is_some_and(|text| {
        !text
            .chars()
            .any(|character| character.is_control() || "'\"\\`$".contains(character))
    })
}

fn cannot_open(lock: &Path, error: io::Error) -> Error {
    match lock.metadata() {
        Ok(metadata) if error.kind() == io::ErrorKind::PermissionDenied => Error::OtherOwner {
            path: lock.to_owned(),
            owner: user_name(metadata.uid()),
        },
        _ => Error::file("open", lock)(error),
    }
}

/// Removes a directory so that an interruption leaves it whole or gone.
fn discard(directory: &Path) -> Result<(), Error> {
    let discarded = discarded_name(directory);
    match fs::rename(directory, &discarded) {
        Ok(()) => remove_if_there(&discarded).map_err(Error::file("remove", &discarded)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::file("remove", directory)(error)),
    }
}

fn discarded_name(directory: &Path) -> PathBuf {
    directory.with_added_extension("discarded")
}

/// Other users have to pass through to what is theirs; the files have modes of their own.
fn make_directory(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(Error::file("create", path))
}

fn require_space(servers: &Path) -> Result<(), Error> {
    let space = statvfs(servers).map_err(|errno| Error::file("look at", servers)(errno.into()))?;
    let free_mib = space.blocks_available() * space.fragment_size() / (1024 * 1024);
    if free_mib < FREE_MIB_MIN {
        return Err(Error::NoSpace {
            path: servers.to_owned(),
            free_mib,
            needed_mib: FREE_MIB_MIN,
        });
    }
    Ok(())
}

/// A hash that stays the same in every build, unlike the standard library's.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_in_a_path_are_refused_but_spaces_and_accents_are_not() {
        assert!(rabbitmq_can_live_in(Path::new("/srv/été & co/.stockctl")));
        for odd in ["/a'b", "/a\"b", "/a\\b", "/a`b", "/a$b", "/a\nb"] {
            assert!(!rabbitmq_can_live_in(Path::new(odd)), "{odd}");
        }
    }

    #[test]
    fn the_hash_is_fnv1a() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
