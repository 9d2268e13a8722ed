//! A message that was delivered before without an answer may have killed its consumer. It comes alone, and each attempt
//! at it is counted in PostgreSQL before it begins: the broker's own count grows for every message that a dying
//! consumer held, and would condemn the neighbours with it.

use tokio::time::Instant;
use uuid::Uuid;

use super::{Door, Weighed};
use crate::db;
use crate::domain::messages::fingerprint;
use crate::domain::retry::{CRASH_LOOP, SUSPECT_ATTEMPTS_MAX, Verdict};
use crate::mq::Delivery;

/// Whether an attempt at a suspect may begin.
pub(super) enum Begun {
    /// It is counted.
    Yes,
    /// There were too many; this is the verdict.
    TooOften(Verdict),
    /// It could not be counted for too long.
    No,
}

/// Counts an attempt at a delivery that is about to begin: once for each delivery, however often its use case is tried.
pub(super) async fn begin_suspect(door: &Door, delivery: &Delivery, until: Instant) -> Begun {
    let mut rounds = 0;
    loop {
        let begun = door
            .context
            .with_connection(async |connection| {
                Ok(db::suspects::begin(connection, name(delivery)).await?)
            })
            .await;
        let error = match begun {
            Ok(begun) if begun > SUSPECT_ATTEMPTS_MAX => {
                return Begun::TooOften(Verdict::DeadLetter {
                    code: CRASH_LOOP,
                    error: format!(
                        "its consumer ended without an answer in each of {begun} deliveries"
                    ),
                    cause: None,
                });
            }
            Ok(_) => return Begun::Yes,
            Err(error) => error,
        };
        match door.weigh(&error, 1, &mut rounds, until).await {
            Weighed::Again => {}
            Weighed::GiveUp => return Begun::No,
            Weighed::ItsOwn => {
                tracing::error!(%error, "an attempt at a suspect message cannot be counted");
                return Begun::Yes;
            }
        }
    }
}

/// Forgets the attempts at a message that was answered for, or handed back in good order. Should it fail, they are
/// forgotten after a day.
pub(super) async fn end(door: &Door, delivery: &Delivery) {
    if delivery.redeliveries == 0 {
        return;
    }
    let forgotten = door
        .context
        .with_connection(async |connection| {
            Ok(db::suspects::forget(connection, name(delivery)).await?)
        })
        .await;
    if let Err(error) = forgotten {
        tracing::debug!(%error, "could not forget the attempts at a message");
    }
}

fn name(delivery: &Delivery) -> Uuid {
    fingerprint(delivery.message_id.as_deref(), &delivery.body)
}
