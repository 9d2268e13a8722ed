//! A message that was delivered before without an answer may have killed its consumer. It comes alone, and each attempt
//! at it is counted in PostgreSQL before it begins: the broker's own count grows for every message that a dying
//! consumer held, and would condemn the neighbours with it.

use uuid::Uuid;

use super::Door;
use crate::app::Error;
use crate::db;
use crate::domain::messages::fingerprint;
use crate::domain::retry::{CRASH_LOOP, SUSPECT_ATTEMPTS_MAX, Verdict};
use crate::mq::Delivery;

/// Counts an attempt at a message that is about to begin. Returns the verdict when there were too many.
pub(super) async fn begin(door: &Door, delivery: &Delivery) -> Result<Option<Verdict>, Error> {
    if delivery.redeliveries == 0 {
        return Ok(None);
    }
    let mut connection = door.context.database.get().await?;
    let begun = db::suspects::begin(&mut connection, name(delivery)).await?;
    Ok((begun > SUSPECT_ATTEMPTS_MAX).then(|| Verdict::DeadLetter {
        code: CRASH_LOOP,
        error: format!("its consumer ended without an answer in each of {begun} deliveries"),
    }))
}

/// Forgets the attempts at a message that has been handled. Should it fail, they are forgotten after a day.
pub(super) async fn end(door: &Door, delivery: &Delivery) {
    if delivery.redeliveries == 0 {
        return;
    }
    let forgotten = async {
        let mut connection = door.context.database.get().await?;
        db::suspects::forget(&mut connection, name(delivery)).await
    };
    if let Err(error) = forgotten.await {
        tracing::debug!(%error, "could not forget the attempts at a message");
    }
}

fn name(delivery: &Delivery) -> Uuid {
    fingerprint(delivery.message_id.as_deref(), &delivery.body)
}
