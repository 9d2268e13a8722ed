//! Which user a server runs as. PostgreSQL refuses to run as root, so under root
//! each server gets its own system user; an ordinary user runs both itself.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{Uid, User, geteuid};

use super::error::Error;

/// A user to switch to before a server is executed.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Account {
    /// The user for a server whose directory is `home`: nobody else than ourselves
    /// unless we are root; then whoever owns the directory already, so that root
    /// can take over what an ordinary user has begun, and otherwise the system user.
    pub(super) fn for_home(home: &Path, system_user: &'static str) -> Result<Option<Self>, Error> {
        let owner = match home.metadata() {
            Ok(metadata) => Some((metadata.uid(), metadata.gid())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::file("look at", home)(error)),
        };
        let me = geteuid();
        match owner {
            Some((uid, _)) if !me.is_root() && uid != me.as_raw() => Err(Error::OtherOwner {
                path: home.to_owned(),
                owner: user_name(uid),
            }),
            // A directory of root's was made, but not handed over yet.
            Some((uid, gid)) if me.is_root() && uid != 0 => Ok(Some(Self {
                name: user_name(uid),
                uid,
                gid,
            })),
            _ => Self::system(system_user),
        }
    }

    /// The system user of a server if we are root; `None` for an ordinary user.
    pub(super) fn system(name: &'static str) -> Result<Option<Self>, Error> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let user = User::from_name(name)
            .ok()
            .flatten()
            .ok_or(Error::UserMissing {
                user: name,
                package: match name {
                    "postgres" => "postgresql",
                    _ => "rabbitmq-server",
                },
            })?;
        Ok(Some(Self {
            name: name.to_owned(),
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        }))
    }

    /// Makes `command` run as this user, without any of our groups.
    pub(super) fn apply(&self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// Whether this user can enter `directory`. The kernel is asked, by a process
    /// of that user which changes into it: it alone knows every rule, from the mode
    /// of each directory above to access lists.
    pub(super) fn can_enter(&self, directory: &Path) -> Result<bool, Error> {
        let mut command = Command::new("/bin/true");
        command.current_dir(directory).stdin(Stdio::null());
        self.apply(&mut command);
        match command.status() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
            Err(source) => Err(Error::Spawn {
                program: "/bin/true".into(),
                source,
            }),
        }
    }
}

/// The user's name, or the number of one without a name.
pub(super) fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}
