//! Where the servers of a test run keep their files: in memory where there is room. A database is three hundred files, and
//! a run makes hundreds of databases; on a disk, making the files takes most of the server's time.

use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

/// The file system in memory that every Linux has; containers often give it a few MiB only.
const IN_MEMORY: &str = "/dev/shm";

/// A run takes less than half of it.
const FREE_MIB_MIN: u64 = 4096;

/// A directory for a name. It is the same in each run of the same checkout, so that a run finds what another has left.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let of_target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let free_mib = statvfs(IN_MEMORY).map_or(0, |space| {
        space.blocks_available() * space.fragment_size() / (1024 * 1024)
    });
    if free_mib < FREE_MIB_MIN {
        return of_target.join(name);
    }
    let checkout: String = of_target
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    Path::new(IN_MEMORY)
        .join(format!("stockctl-tests{checkout}"))
        .join(name)
}
