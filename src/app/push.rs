//! Tells a vendor of updates, and records what it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use chrono::{DateTime, Utc};
use diesel_async::{AsyncConnection, AsyncPgConnection};

use super::cancel::load_updates_of;
use super::save::save;
use super::{Context, Error, TRANSACTION_DEADLINE, Vendor, new_update_id, with_deadline};
use crate::db;
use crate::db::outbox::Waiting;
use crate::domain::book::Answer;
use crate::domain::ids::{OrderId, UpdateId, VendorId};
use crate::domain::order::Status;
use crate::domain::update::{Outcome, State, Update};
use crate::domain::vendor_answer::Answers;
use crate::fault_injection;
use crate::metrics::{Call, DECIDING, Decision, UpdateOutcome, VENDORS};
use crate::traces::{self, Span};

/// What a push has come to.
#[derive(Debug, Default)]
pub struct Pushed {
    /// The outbox rows of messages that followed: takes from other vendors, returns.
    pub waiting: Vec<Waiting>,
    /// Updates that the vendor refuses for good, since it knows their ids with another content.
    pub conflicts: Vec<UpdateId>,
    /// Updates that the vendor did not answer for in a way that can be believed, each with what is wrong.
    pub unusable: BTreeMap<UpdateId, String>,
    /// Whether the vendor was called at all: what is answered already is not sent again.
    pub was_called: bool,
    /// Whether the time was over before all were sent.
    pub is_cut_short: bool,
}

/// Sends those of the updates that have no answer yet, as they stand in our database, and records the answers. No call
/// begins after `until`.
///
/// # Errors
/// The vendor gave no usable answer, or it could not be recorded: the same updates may be pushed again.
pub async fn push(
    context: &Context,
    source: &str,
    vendor_id: &VendorId,
    ids: &[UpdateId],
    updates_per_call_max: usize,
    until: Instant,
) -> Result<Pushed, Error> {
    let vendor = context.vendor(vendor_id)?;
    let open = list_unanswered(context, vendor_id, ids).await?;
    for update in &open {
        fault_injection::swallow_update(update.product_id.as_str(), update.delta);
    }
    let mut pushed = Pushed::default();
    for updates in open.chunks(updates_per_call_max) {
        if Instant::now() >= until {
            pushed.is_cut_short = true;
            break;
        }
        let answers = call(vendor, source, vendor_id, updates).await?;
        pushed.was_called = true;
        let recorded = record(context, vendor_id, updates, &answers.recorded, Utc::now()).await?;
        pushed.waiting.extend(recorded.waiting);
        pushed.conflicts.extend(answers.conflicts);
        pushed.unusable.extend(answers.unusable);
        let disbelieved = recorded.disbelieved.into_iter();
        pushed
            .unusable
            .extend(disbelieved.map(|(id, why)| (id, why.to_owned())));
    }
    Ok(pushed)
}

/// Looks whether a vendor's API is there, without sending it anything. Whatever it answers, it is, unless that says that it
/// cannot serve.
///
/// # Errors
/// It is down.
pub async fn look(context: &Context, vendor_id: &VendorId) -> Result<(), Error> {
    let looked = context.vendor(vendor_id)?.api.look().await;
    match looked.map_err(Error::from) {
        Err(error) if error.is_vendor_down() => Err(error),
        _ => Ok(()),
    }
}

/// Calls the vendor's API, and counts what comes of it.
async fn call(
    vendor: &Vendor,
    source: &str,
    vendor_id: &VendorId,
    updates: &[Update],
) -> Result<Answers, Error> {
    let begun = Instant::now();
    let id = vendor_id.as_str();
    let mut span = Span::child("POST stock-updates", traces::Kind::Client);
    span.note("http.request.method", "POST");
    span.note("stockctl.vendor.id", id);
    span.note_count("stockctl.updates", updates.len());
    let call = span.around(vendor.api.send(source, updates));
    let answers = call.await.map_err(Error::from);
    if let Err(error) = &answers {
        span.fail(error);
    }
    drop(span);
    VENDORS
        .call_duration(id)
        .observe(begun.elapsed().as_secs_f64());
    let outcome = match &answers {
        Ok(_) => Call::Answered,
        Err(error) if error.is_vendor_down() => Call::Down,
        Err(_) => Call::Unusable,
    };
    VENDORS.call(id, outcome).inc();
    if let Ok(answers) = &answers {
        let recorded = |wanted| {
            let such = answers.recorded.iter();
            such.filter(|answer| answer.outcome == wanted).count()
        };
        for (outcome, count) in [
            (UpdateOutcome::Applied, recorded(Outcome::Applied)),
            (UpdateOutcome::Rejected, recorded(Outcome::Rejected)),
            (UpdateOutcome::Void, recorded(Outcome::Void)),
            (UpdateOutcome::Conflict, answers.conflicts.len()),
            (UpdateOutcome::Unusable, answers.unusable.len()),
        ] {
            VENDORS.updates(id, outcome).inc_by(count as u64);
        }
    }
    answers
}

/// Of the updates, those that the vendor has not answered for.
async fn list_unanswered(
    context: &Context,
    vendor_id: &VendorId,
    ids: &[UpdateId],
) -> Result<Vec<Update>, Error> {
    with_deadline(TRANSACTION_DEADLINE, &context.database, async {
        let mut connection = context.database.get().await?;
        let known = db::updates::find_all(&mut connection, ids).await?;
        let mut unknown: BTreeSet<UpdateId> = ids.iter().copied().collect();
        known.iter().for_each(|update| {
            unknown.remove(&update.id);
        });
        if let Some(id) = unknown.first() {
            return Err(Error::Missing(format!(
                "update {id} is not in our database"
            )));
        }
        if let Some(update) = known.iter().find(|update| update.vendor_id != *vendor_id) {
            return Err(Error::Refused {
                code: crate::domain::retry::INVALID_MESSAGE,
                detail: format!(
                    "update {} is vendor {}'s, not {vendor_id}'s",
                    update.id, update.vendor_id
                ),
            });
        }
        Ok(known
            .into_iter()
            .filter(|update| update.state == State::Open)
            .collect())
    })
    .await
}

/// What recording answers has come to.
#[derive(Debug, Default)]
struct Recorded {
    waiting: Vec<Waiting>,
    /// Updates whose answer cannot be true.
    disbelieved: Vec<(UpdateId, &'static str)>,
}

async fn record(
    context: &Context,
    vendor_id: &VendorId,
    sent: &[Update],
    answers: &[Answer],
    now: DateTime<Utc>,
) -> Result<Recorded, Error> {
    let by_id: BTreeMap<UpdateId, &Update> =
        sent.iter().map(|update| (update.id, update)).collect();
    // Nearly all: they need no lock but their own, so they wait for nobody who decides or syncs.
    let (plain, others): (Vec<&Answer>, Vec<&Answer>) = answers.iter().partition(|answer| {
        by_id
            .get(&answer.id)
            .is_some_and(|update| answer.is_only_of(update))
    });
    if !plain.is_empty() {
        let ids: Vec<UpdateId> = plain.iter().map(|answer| answer.id).collect();
        context
            .with_connection(async |connection| {
                Ok(db::updates::acknowledge_takes(connection, &ids, now).await?)
            })
            .await?;
    }
    if others.is_empty() {
        return Ok(Recorded::default());
    }
    let answers: Vec<Answer> = others.into_iter().cloned().collect();
    let sent: Vec<Update> = answers
        .iter()
        .filter_map(|answer| by_id.get(&answer.id).map(|update| (*update).clone()))
        .collect();
    record_others(context, vendor_id, &sent, &answers, now).await
}

/// Records answers that change more than their updates.
async fn record_others(
    context: &Context,
    vendor_id: &VendorId,
    sent: &[Update],
    answers: &[Answer],
    now: DateTime<Utc>,
) -> Result<Recorded, Error> {
    let rejected: BTreeSet<UpdateId> = answers
        .iter()
        .filter(|answer| answer.outcome == Outcome::Rejected)
        .map(|answer| answer.id)
        .collect();
    let orders: BTreeSet<OrderId> = sent
        .iter()
        .filter(|update| rejected.contains(&update.id))
        .map(|update| update.order_id)
        .collect();
    let orders: Vec<OrderId> = orders.into_iter().collect();
    let (recorded, cancelled) = with_deadline(TRANSACTION_DEADLINE, &context.database, async {
        let mut connection = context.database.get().await?;
        connection
            .transaction(async |connection| {
                record_in_transaction(context, connection, vendor_id, sent, answers, &orders, now)
                    .await
            })
            .await
    })
    .await?;
    DECIDING
        .decided
        .of(Decision::CancelledByVendor)
        .inc_by(cancelled);
    if !orders.is_empty() {
        request_sync(context, vendor_id).await;
    }
    Ok(recorded)
}

/// Returns also how many orders were cancelled.
async fn record_in_transaction(
    context: &Context,
    connection: &mut AsyncPgConnection,
    vendor_id: &VendorId,
    sent: &[Update],
    answers: &[Answer],
    orders: &[OrderId],
    now: DateTime<Utc>,
) -> Result<(Recorded, u64), Error> {
    let mut book = context.book();
    for (id, status, _) in db::orders::load_for_update(connection, orders).await? {
        book.load_order(id, status);
    }
    load_updates_of(connection, &mut book, orders, sent).await?;
    // Read after the vendor has answered, so that any later run has seen what it answered.
    let run = db::vendors::find_current_run(connection, vendor_id).await?;
    let disbelieved = book.record(answers, run, &mut new_update_id)?;
    let changes = book.into_changes();
    let cancelled = changes.orders.iter();
    let cancelled = cancelled.filter(|(_, status, _)| *status == Status::Cancelled);
    let cancelled = cancelled.count() as u64;
    let recorded = Recorded {
        waiting: save(connection, &changes, now).await?,
        disbelieved,
    };
    Ok((recorded, cancelled))
}

/// A rejection proved our figure stale, so the sync should not wait for its next tick. In a transaction of its own: the
/// vendor's row comes first in the order of locks. Should it be lost, the next tick comes soon.
async fn request_sync(context: &Context, vendor_id: &VendorId) {
    let requested = with_deadline(TRANSACTION_DEADLINE, &context.database, async {
        let mut connection = context.database.get().await?;
        Ok(db::vendors::request_sync(&mut connection, std::slice::from_ref(vendor_id)).await?)
    })
    .await;
    if let Err(error) = requested {
        tracing::warn!(vendor = %vendor_id, %error, "could not ask for a sync at once; the next one is scheduled anyway");
    }
}
