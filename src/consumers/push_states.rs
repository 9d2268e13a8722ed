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
/// What cannot be written is tried again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The state of one vendor.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    phase: Phase,
    /// The kind of failure; the log has the rest.
    error: Option<String>,
}

/// The newest state of each vendor. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct PushStates(watch::Sender<BTreeMap<VendorId, State>>);

impl PushStates {
    /// Notes a vendor's state. Without an error the last one stays, unless all is well.
    pub(super) fn show(&self, vendor_id: &VendorId, phase: Phase, error: Option<&str>) {
        self.0.send_if_modified(|states| {
            let error = match (error, phase) {
                (_, Phase::Ok) => None,
                (Some(error), _) => Some(error.to_owned()),
                (None, _) => states.get(vendor_id).and_then(|state| state.error.clone()),
            };
            let state = State { phase, error };
            let is_new = states.get(vendor_id) != Some(&state);
            if is_new {
                states.insert(vendor_id.clone(), state);
            }
            is_new
        });
    }

    /// Writes what changes until the shutdown.
    pub async fn write_until_stopped(self, context: Context, shutdown: Shutdown) {
        let mut changes = self.0.subscribe();
        // The receiver must see what was noted before it was there.
        changes.mark_changed();
        let mut written = BTreeMap::new();
        loop {
            tokio::select! {
                () = shutdown.begun() => return,
                // Its sender is ours, so it cannot be closed.
                _ = changes.changed() => {}
            }
            let states = changes.borrow_and_update().clone();
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
    states: &BTreeMap<VendorId, State>,
    written: &mut BTreeMap<VendorId, State>,
) -> Result<(), Error> {
    let changed: BTreeSet<&VendorId> = states
        .iter()
        .filter(|(vendor_id, state)| written.get(*vendor_id) != Some(*state))
        .map(|(vendor_id, _)| vendor_id)
        .collect();
    for vendor_id in changed {
        let state = &states[vendor_id];
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
        written.insert(vendor_id.clone(), state.clone());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_error_stays_while_the_vendor_is_probed_and_goes_when_it_answers() {
        let states = PushStates::default();
        let mut changes = states.0.subscribe();
        let vendor_id = VendorId::parse("a").expect("an id");
        let mut seen = Vec::new();
        for (phase, error) in [
            (Phase::Open, Some("refused")),
            (Phase::Probing, None),
            (Phase::Probing, None),
            (Phase::Ok, None),
            (Phase::Ok, None),
        ] {
            states.show(&vendor_id, phase, error);
            if changes.has_changed().expect("open") {
                let state = changes.borrow_and_update()[&vendor_id].clone();
                seen.push((state.phase, state.error));
            }
        }
        assert_eq!(
            seen,
            [
                (Phase::Open, Some("refused".to_owned())),
                (Phase::Probing, Some("refused".to_owned())),
                (Phase::Ok, None),
            ]
        );
    }
}
