//! What has become of the letters that an operator meant.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::letter::{Found, Letter};
use crate::app::{Error, Kind};
use crate::domain::dead_letter::Selection;
use crate::domain::ids::OrderId;
use crate::mq::DeadLetters;

/// The broker closes a channel that holds a message for 30 minutes; a session ends well before.
const RUN_DEADLINE: Duration = Duration::from_secs(600);

/// Told of each letter that is done with: how many are, and of how many.
pub type Progress<'a> = &'a (dyn Fn(usize, usize) + Send + Sync);

/// Whether to do it, or to say what doing it would come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Do it.
    Do,
    /// Change nothing.
    Rehearse,
}

/// What doing it came to for one letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// The letter's message id.
    pub message_id: String,
    /// Orders that changed with it: pending again by a replay, cancelled by a drop.
    pub orders: Vec<OrderId>,
}

/// A letter that was meant and stays in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = KeptDeadLetter)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    /// The letter's message id.
    pub message_id: String,
    /// Why, and what to do about it.
    pub why: String,
    /// Whether that is a contradiction in our own data, told in the words of the database.
    #[serde(skip)]
    pub is_bug: bool,
}

/// What has become of all that were meant.
#[derive(Debug, Default)]
pub struct Report {
    /// Those that left the queue, in its order.
    pub done: Vec<Effect>,
    /// Those that did not.
    pub kept: Vec<Kept>,
    /// Message ids that were asked for and not found.
    pub not_found: Vec<String>,
    /// Letters behind the last one that was looked at.
    pub not_looked_at: u32,
    /// Why it ended before all were done with. What is done stays so, and repeating it does the rest.
    pub stopped: Option<Error>,
}

/// A report as programs read it, over HTTP and on the command line.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeadLettersReport)]
#[serde(rename_all = "camelCase")]
pub struct Document<'a> {
    /// Nothing was done: this is what doing it would come to.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    /// Message ids that were sent again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    replayed: Option<Vec<&'a str>>,
    /// Message ids that were dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    dropped: Option<Vec<&'a str>>,
    /// Failed orders that are pending again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    revived_orders: Option<Vec<OrderId>>,
    /// Orders that are cancelled with what was dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    cancelled_orders: Option<Vec<OrderId>>,
    /// Those that stay, with the reason.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    kept: &'a [Kept],
    /// Message ids that were asked for and are not there.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_found: &'a [String],
    /// Letters behind the last one that was looked at.
    #[serde(skip_serializing_if = "is_zero")]
    not_looked_at: u32,
    /// Why it ended early.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    stopped: Option<String>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Report {
    fn ids(&self) -> Vec<&str> {
        self.done.iter().map(|d| d.message_id.as_str()).collect()
    }

    fn orders(&self) -> Vec<OrderId> {
        let orders = self.done.iter().flat_map(|d| d.orders.iter().copied());
        orders.collect()
    }

    fn document(&self, act: Act) -> Document<'_> {
        Document {
            dry_run: act == Act::Rehearse,
            replayed: None,
            dropped: None,
            revived_orders: None,
            cancelled_orders: None,
            kept: &self.kept,
            not_found: &self.not_found,
            not_looked_at: self.not_looked_at,
            stopped: self.stopped.as_ref().map(ToString::to_string),
        }
    }

    /// The report of a replay.
    #[must_use]
    pub fn of_replay(&self, act: Act) -> Document<'_> {
        Document {
            replayed: Some(self.ids()),
            revived_orders: Some(self.orders()),
            ..self.document(act)
        }
    }

    /// The report of a drop.
    #[must_use]
    pub fn of_drop(&self, act: Act) -> Document<'_> {
        Document {
            dropped: Some(self.ids()),
            cancelled_orders: Some(self.orders()),
            ..self.document(act)
        }
    }
}

/// Handles each letter that was found: `handle` makes its effect durable and returns the orders that changed, and only
/// then is the letter removed. One that is refused stays and does not keep back the others; any other error ends it all.
pub(super) async fn handle_each<F: Future<Output = Result<Vec<OrderId>, Error>>>(
    mut session: Option<DeadLetters>,
    found: Found,
    selection: &Selection,
    act: Act,
    progress: Progress<'_>,
    mut handle: impl FnMut(Letter) -> F,
) -> Report {
    let mut report = Report {
        not_looked_at: found.not_looked_at,
        not_found: not_found(selection, &found.letters),
        ..Report::default()
    };
    let until = Instant::now() + RUN_DEADLINE;
    let count = found.letters.len();
    // A rehearsal leaves no trace by which a later letter could know what an earlier one does.
    let mut changed = BTreeSet::new();
    for (index, letter) in found.letters.into_iter().enumerate() {
        if Instant::now() >= until {
            report.stopped = Some(Error::NotYet(format!(
                "{} of {count} letters were done with in {} s, for which a session holds them; repeat it for the others",
                index,
                RUN_DEADLINE.as_secs()
            )));
            break;
        }
        let (tag, message_id) = (letter.tag, letter.message_id.clone());
        match handle(letter).await {
            Ok(mut orders) => {
                orders.retain(|order| act == Act::Do || changed.insert(*order));
                if act == Act::Do
                    && let Some(session) = &mut session
                    && let Err(error) = session.ack(tag).await
                {
                    report.stopped = Some(error.into());
                    break;
                }
                report.done.push(Effect { message_id, orders });
            }
            // Something about this letter alone.
            Err(error) if matches!(error.kind(), Kind::Refused | Kind::Bug) => {
                report.kept.push(Kept {
                    message_id,
                    why: error.to_string(),
                    is_bug: error.kind() == Kind::Bug,
                });
            }
            Err(error) => {
                report.stopped = Some(error);
                break;
            }
        }
        progress(index + 1, count);
    }
    if let Some(session) = session {
        session.close().await;
    }
    report
}

/// A look that ended by its limit does not know what is behind it.
fn not_found(selection: &Selection, letters: &[Letter]) -> Vec<String> {
    if letters.len() >= selection.limit {
        return Vec::new();
    }
    let found: BTreeSet<&str> = letters.iter().map(|l| l.message_id.as_str()).collect();
    selection
        .message_ids
        .iter()
        .filter(|id| !found.contains(id.as_str()))
        .cloned()
        .collect()
}
