//! Files that a crash never leaves half-written, and that nobody else can read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use nix::unistd::geteuid;

use super::error::Error;

/// Writes `path` whole or not at all, readable by its owner only, who is the owner
/// of the directory around it: root may write for the user that a server runs as.
pub(super) fn write_private(path: &Path, contents: &str) -> Result<(), Error> {
    write_and_rename(path, contents).map_err(Error::file("write", path))
}

fn write_and_rename(path: &Path, contents: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let unfinished = path.with_added_extension("unfinished");
    remove_if_there(&unfinished)?;
    // `create_new` and `rename` follow no link that the server's user may have
    // planted in its directory.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)?;
    if geteuid().is_root() {
        let owner = directory.metadata()?;
        fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    }
    file.write_all(contents.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    File::open(directory)?.sync_all()
}

/// Removes a file, a link or a directory with all it has; nothing if it is not there.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A password, or another name that nobody can guess: 32 hexadecimal digits.
pub(super) fn random_name() -> Result<String, Error> {
    let mut bytes = [0; 16];
    fill_random(&mut bytes).map_err(Error::file("read", Path::new("/dev/urandom")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(super) fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    File::open("/dev/urandom")?.read_exact(bytes)
}
