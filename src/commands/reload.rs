//! What changes while a process runs: on SIGHUP it reads its configuration again, and takes from it the log's level, the
//! rates of callers and the bounds of its batches. Anything else waits for the next start, and a configuration that will not do changes nothing.

use std::io::IsTerminal;
use std::path::PathBuf;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;
use crate::config::{self, Config};
use crate::telemetry;

/// Reads the configuration again on each SIGHUP, from where it came from the first time; from the moment this returns,
/// SIGHUP does not end the process. Somebody's terminal that is closed sends it, too, and ends what was started in it, so
/// with one nothing is changed.
///
/// # Errors
/// The operating system refuses the handler.
pub fn on_hangup(path: Option<PathBuf>, config: &Config) -> Result<(), Failure> {
    let Some(mut hangups) = hangups()? else {
        return Ok(());
    };
    let mut current = config.clone();
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            match config::load(path.as_deref()) {
                Ok(newer) => take(&mut current, &newer),
                Err(error) => tracing::error!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "the configuration was not reloaded; what was valid before still is"
                ),
            }
        }
    });
    Ok(())
}

/// Each SIGHUP, where it means to reload.
///
/// # Errors
/// The operating system refuses the handler.
pub(super) fn hangups() -> Result<Option<Signal>, Failure> {
    if std::io::stdin().is_terminal() {
        return Ok(None);
    }
    signal(SignalKind::hangup()).map(Some).map_err(Failure::bug)
}

/// Takes from a newer configuration what can be changed, and says what was.
fn take(current: &mut Config, newer: &Config) {
    let mut changed = Vec::new();
    if current.log.level != newer.log.level {
        match telemetry::set_level(&newer.log.level) {
            Ok(()) => {
                current.log.level.clone_from(&newer.log.level);
                changed.push("log.level");
            }
            Err(error) => tracing::error!(%error, "the level of the log stays as it was"),
        }
    }
    for (key, limit, newer) in [
        (
            "orders.batch_max",
            &current.orders.batch_max,
            &newer.orders.batch_max,
        ),
        (
            "vendor_sync.updates_per_call_max",
            &current.vendor_sync.updates_per_call_max,
            &newer.vendor_sync.updates_per_call_max,
        ),
        (
            "sync.chunk_rows",
            &current.sync.chunk_rows,
            &newer.sync.chunk_rows,
        ),
    ] {
        if limit.set(newer.get()) {
            changed.push(key);
        }
    }
    if current.http.rates.set(newer.http.rates.get()) {
        changed.push("http.rate_limit");
    }
    tracing::info!(
        changed = changed.join(", "),
        "the configuration was reloaded"
    );
    if current != newer {
        tracing::warn!(
            "other keys have changed, too; they count from the next start of this process on"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(text: &str) -> Config {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("config.toml");
        let text = format!(
            "[database]\nurl = \"postgres://u@h/d\"\n[rabbitmq]\nurl = \"amqp://h\"\n\
             [vendors.v]\ndatabase_url = \"postgres://u@h/v\"\napi_url = \"http://h\"\n{text}"
        );
        std::fs::write(&file, text).expect("written");
        config::load_from(Some(&file), &file, []).expect("valid")
    }

    #[test]
    fn the_bounds_change_for_all_who_share_them_and_nothing_else_does() {
        let mut current = configuration("");
        let in_use = current.clone();
        let newer = configuration(
            "[orders]\nbatch_max = 7\nprefetch = 9\n[vendor_sync]\nupdates_per_call_max = 8\n[sync]\nchunk_rows = 6\n",
        );
        take(&mut current, &newer);
        let bounds = (
            in_use.orders.batch_max.get(),
            in_use.vendor_sync.updates_per_call_max.get(),
            in_use.sync.chunk_rows.get(),
        );
        assert_eq!(bounds, (7, 8, 6));
        assert_eq!(current.orders.prefetch, 64, "it waits for the next start");
    }
}
