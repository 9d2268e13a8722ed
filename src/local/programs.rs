//! Where the servers' programs are installed.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::Error;

/// Debian keeps PostgreSQL's server programs here, a directory per version, off PATH.
const POSTGRES_VERSIONS: &str = "/usr/lib/postgresql";

/// Debian's `/usr/sbin/rabbitmq-server` insists on the user root or rabbitmq and
/// on the machine's own node; the scripts here do not.
const RABBITMQ_SCRIPTS: &str = "/usr/lib/rabbitmq/bin";

/// Looked in after PATH, which a service or root may have cut short.
const USUAL_DIRECTORIES: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// The programs that were found, and the PATH to run them with.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) postgres: PathBuf,
    pub(super) initdb: PathBuf,
    pub(super) rabbitmq_server: PathBuf,
    pub(super) rabbitmqctl: PathBuf,
    pub(super) epmd: PathBuf,
}

impl Programs {
    pub(super) fn find() -> Result<Self, Error> {
        let postgres_directory = search_path()
            .into_iter()
            .chain(newest_first(Path::new(POSTGRES_VERSIONS)))
            .find(|directory| {
                directory.join("postgres").is_file() && directory.join("initdb").is_file()
            })
            .ok_or(Error::ProgramMissing {
                program: "postgres and initdb",
                package: "postgresql",
            })?;
        let rabbitmq_directory = [PathBuf::from(RABBITMQ_SCRIPTS)]
            .into_iter()
            .chain(search_path())
            .find(|directory| {
                directory.join("rabbitmq-server").is_file()
                    && directory.join("rabbitmqctl").is_file()
            })
            .ok_or(Error::ProgramMissing {
                program: "rabbitmq-server",
                package: "rabbitmq-server",
            })?;
        let epmd = search_path()
            .into_iter()
            .map(|directory| directory.join("epmd"))
            .find(|program| program.is_file())
            .ok_or(Error::ProgramMissing {
                program: "epmd",
                package: "erlang-base",
            })?;
        Ok(Self {
            postgres: postgres_directory.join("postgres"),
            initdb: postgres_directory.join("initdb"),
            rabbitmq_server: rabbitmq_directory.join("rabbitmq-server"),
            rabbitmqctl: rabbitmq_directory.join("rabbitmqctl"),
            epmd,
        })
    }
}

/// The PATH for the servers: ours, then the usual directories.
pub(super) fn path_variable() -> OsString {
    // A directory with a colon in its name cannot have come from PATH.
    env::join_paths(search_path()).unwrap_or_default()
}

fn search_path() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .chain(USUAL_DIRECTORIES.map(PathBuf::from))
        .collect()
}

fn newest_first(versions: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir(versions)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, directory)| directory).collect()
}
