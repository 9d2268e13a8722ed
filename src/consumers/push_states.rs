//! How each vendor takes what it is told, for people who ask another process: written when it changes, and by a task of
//! its own, so that no message waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::watch;

use crate::app::{Context, Error};
use crate::db;
use crate::domain::breaker::Phase;
use crate::domain::ids::VendorId;
use crate::shutdown::Shutdown;

/// Between two writes: what changes more often is not worth more.
const WRITE_INTERVAL: Duration = Duration::from_millis(100);
/// A vendor that is called goes on being written so often: another process may have seen it fail, and have ended since.
const SAY_AGAIN_INTERVAL: Duration = Duration::from_secs(30);
/// What cannot be written is tried again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The state of one vendor.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    phase: Phase,
    /// The kind of failure of the last call; the log has the rest.
    error: Option<String>,
}

/// A vendor's state, and how often it was noted: what another process has written meanwhile is put right by the next call.
#[derive(Debug, Clone)]
struct Noted {
    state: State,
    times: u64,
}

/// The newest state of each vendor. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct PushStates(watch::Sender<BTreeMap<VendorId, Noted>>);

impl PushStates {
    /// Notes a vendor's state. Without an error the last one stays, unless all is well.
    pub(super) fn show(&self, vendor_id: &VendorId, phase: Phase, error: Option<&str>) {
        self.0.send_if_modified(|noted| {
            let before = noted.get(vendor_id);
            let error = match (error, phase) {
                (Some(error), _) => Some(error.to_owned()),
                (None, Phase::Ok) => None,
                (None, _) => before.and_then(|noted| noted.state.error.clone()),
            };
            let state = State { phase, error };
            let is_new = before.is_none_or(|noted| noted.state != state);
            let times = before.map_or(0, |noted| noted.times).wrapping_add(1);
            noted.insert(vendor_id.clone(), Noted { state, times });
            is_new
        });
    }

    /// Writes what changes until the shutdown.
    pub async fn write_until_stopped(self, context: Context, shutdown: Shutdown) {
        let mut changes = self.0.subscribe();
        // The receiver must see what was noted before it was there.
        changes.mark_changed();
        let mut written = BTreeMap::new();
        let mut again = tokio::time::interval(SAY_AGAIN_INTERVAL);
        loop {
            let says_again = tokio::select! {
                () = shutdown.begun() => return,
                // Its sender is ours, so it cannot be closed.
                _ = changes.changed() => false,
                _ = again.tick() => true,
            };
            let states = changes.borrow_and_update().clone();
            if says_again {
                written.retain(|vendor_id, written: &mut Noted| {
                    states
                        .get(vendor_id)
                        .is_some_and(|noted| noted.times == written.times)
                });
            }
            let wait = match write(&context, &states, &mut written).await {
                Ok(()) => WRITE_INTERVAL,
                Err(error) => {
                    tracing::debug!(%error, "could not write how the vendors take updates; trying again");
                    changes.mark_changed();
                    AGAIN_AFTER
                }
            };
            tokio::select! {
                () = shutdown.begun() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

async fn write(
    context: &Context,
    states: &BTreeMap<VendorId, Noted>,
    written: &mut BTreeMap<VendorId, Noted>,
) -> Result<(), Error> {
    let changed: BTreeSet<&VendorId> = states
        .iter()
        .filter(|(vendor_id, noted)| {
            written
                .get(*vendor_id)
                .is_none_or(|written| written.state != noted.state)
        })
        .map(|(vendor_id, _)| vendor_id)
        .collect();
    for vendor_id in changed {
        let noted = &states[vendor_id];
        let state = &noted.state;
        context
            .with_connection(async |connection| {
                Ok(db::vendor_pushes::note(
                    connection,
                    vendor_id,
                    state.phase.name(),
                    state.error.as_deref(),
                )
                .await?)
            })
            .await?;
        written.insert(vendor_id.clone(), noted.clone());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_error_is_shown_from_the_first_on_stays_while_the_vendor_is_probed_and_goes_when_it_answers()
     {
        let states = PushStates::default();
        let mut changes = states.0.subscribe();
        let vendor_id = VendorId::parse("a").expect("an id");
        let mut seen = Vec::new();
        for (phase, error) in [
            (Phase::Ok, None),
            (Phase::Ok, Some("refused")),
            (Phase::Ok, Some("refused")),
            (Phase::Open, Some("refused")),
            (Phase::Probing, None),
            (Phase::Probing, None),
            (Phase::Ok, None),
            (Phase::Ok, None),
        ] {
            states.show(&vendor_id, phase, error);
            if changes.has_changed().expect("open") {
                let state = changes.borrow_and_update()[&vendor_id].state.clone();
                seen.push((state.phase, state.error));
            }
        }
        assert_eq!(
            seen,
            [
                (Phase::Ok, None),
                (Phase::Ok, Some("refused".to_owned())),
                (Phase::Open, Some("refused".to_owned())),
                (Phase::Probing, Some("refused".to_owned())),
                (Phase::Ok, None),
            ]
        );
    }
}
