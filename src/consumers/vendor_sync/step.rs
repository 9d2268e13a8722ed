//! One step of a lane: a batch goes to its vendor, and each message gets its verdict.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::Instant;
use tracing::Instrument;

use super::Addressed;
use crate::app::push::{self, Pushed};
use crate::app::{Error, traced};
use crate::consumers::suspects::{self, Begun, begin_suspect};
use crate::consumers::{Door, HOLD_MAX, Subject, Weighed, retry_count};
use crate::db;
use crate::domain::ids::{UpdateId, VendorId};
use crate::domain::messages::{self, UpdateItem, UpdatesMessage};
use crate::domain::retry::{self, Verdict};
use crate::limit::Limit;
use crate::mq::{Delivery, Queue, Tag};
use crate::traces::{Kind, Span};

/// What a step has come to.
#[derive(Default)]
pub(super) struct Step {
    /// What may be acknowledged.
    pub(super) done: Vec<Tag>,
    /// What could not be handled for too long since a store is away, and is the broker's still.
    pub(super) given_up: Vec<Delivery>,
    /// What was not sent, since the vendor went down before its turn came.
    pub(super) unspent: Vec<Addressed>,
    /// What the vendor has let us know of itself.
    pub(super) said: Said,
}

/// What the last call has told of the vendor's own state.
#[derive(Debug, Default)]
pub(super) enum Said {
    /// There was no call.
    #[default]
    Nothing,
    /// It answers, if only with an error about what it was sent, whose kind is told then.
    Answer { fault: Option<String> },
    /// It is there again, as far as can be told without sending it anything.
    There,
    /// It cannot be reached, or says itself that it cannot serve.
    Down {
        error: String,
        /// What anybody may read of it.
        code: String,
        retry_after: Option<Duration>,
    },
}

impl Said {
    fn by(error: &Error) -> Self {
        match error {
            _ if error.is_vendor_down() => Self::Down {
                error: error.to_string(),
                code: error.code(),
                retry_after: error.retry_after(),
            },
            Error::Vendor(_) => Self::Answer {
                fault: Some(error.code()),
            },
            _ => Self::Nothing,
        }
    }
}

impl Step {
    fn given_up(batch: Vec<Addressed>) -> Self {
        Self {
            given_up: batch.into_iter().map(|one| one.delivery).collect(),
            ..Self::default()
        }
    }

    /// Adds what came after.
    fn add(&mut self, later: Self) {
        self.done.extend(later.done);
        self.given_up.extend(later.given_up);
        self.unspent.extend(later.unspent);
        if !matches!(later.said, Said::Nothing) {
            self.said = later.said;
        }
    }
}

/// A message of several updates, as a message for each.
fn apart(delivery: &Delivery) -> Option<Vec<Delivery>> {
    let message = messages::decode_updates(&delivery.body).ok()?;
    if message.updates.len() < 2 {
        return None;
    }
    let single = |update: UpdateItem| Delivery {
        message_id: Some(update.id.to_string()),
        body: messages::encode_updates(&UpdatesMessage {
            vendor_id: message.vendor_id.clone(),
            updates: vec![update],
        })
        .into_bytes(),
        ..delivery.clone()
    };
    Some(message.updates.iter().cloned().map(single).collect())
}

/// Says what a batch is.
fn describe(span: &mut Span, vendor_id: &VendorId, batch: &[Addressed]) {
    if !span.is_recorded() {
        return;
    }
    span.note("messaging.system", "rabbitmq");
    span.note("messaging.operation.type", "process");
    span.note("messaging.destination.name", Queue::VendorSync.base_name());
    span.note_count("messaging.batch.message_count", batch.len());
    span.note("stockctl.vendor.id", vendor_id);
}

/// Sends to vendors. Clones share what they have learnt.
#[derive(Clone)]
pub(super) struct Vendor {
    door: Door,
    updates_per_call_max: Limit,
    /// Who we are in the vendors' ledgers, once it is known.
    source: Arc<OnceCell<String>>,
}

impl Vendor {
    pub(super) fn new(door: Door, updates_per_call_max: Limit) -> Self {
        Self {
            door,
            updates_per_call_max,
            source: Arc::default(),
        }
    }

    /// Looks whether the vendor is there, for which nothing waits.
    pub(super) async fn look(&self, vendor_id: &VendorId) -> Step {
        let said = match push::look(&self.door.context, vendor_id).await {
            Ok(()) => Said::There,
            Err(error) => Said::by(&error),
        };
        Step {
            said,
            ..Step::default()
        }
    }

    /// Sends a batch.
    pub(super) async fn step(&self, vendor_id: &VendorId, batch: Vec<Addressed>) -> Step {
        let until = Instant::now() + HOLD_MAX;
        if let [one] = batch.as_slice()
            && one.delivery.redeliveries > 0
        {
            if let Some(singles) = apart(&one.delivery) {
                return self.take_apart(batch, singles, until).await;
            }
            match begin_suspect(&self.door, &one.delivery, until).await {
                Begun::Yes => {}
                Begun::TooOften(verdict) => return self.finish(batch, vec![verdict], until).await,
                Begun::No => return Step::given_up(batch),
            }
        }
        self.push(vendor_id, batch, until).await
    }

    /// One of a message's updates may be what killed its consumer: each goes on in a message of its own, and the others
    /// are free of it.
    async fn take_apart(
        &self,
        batch: Vec<Addressed>,
        singles: Vec<Delivery>,
        until: Instant,
    ) -> Step {
        let (_, left) = self.door.put_off(Queue::VendorSync, singles, until).await;
        if !left.is_empty() {
            return Step::given_up(batch);
        }
        Step {
            done: batch.into_iter().map(|one| one.delivery.tag).collect(),
            ..Step::default()
        }
    }

    /// Copies messages to the retry queue as they came: that costs them no retry.
    pub(super) async fn put_off(&self, messages: Vec<Addressed>) -> Step {
        let until = Instant::now() + HOLD_MAX;
        let deliveries = messages.into_iter().map(|one| one.delivery).collect();
        let (copied, given_up) = self
            .door
            .put_off(Queue::VendorSyncRetry, deliveries, until)
            .await;
        let mut step = Step {
            given_up,
            ..Step::default()
        };
        for delivery in copied {
            suspects::end(&self.door, &delivery).await;
            step.done.push(delivery.tag);
        }
        step
    }

    async fn push(&self, vendor_id: &VendorId, batch: Vec<Addressed>, until: Instant) -> Step {
        let mut rounds = 0;
        let causes = traced::contexts_of(batch.iter().map(|one| &one.delivery.headers));
        let (verdicts, said) = loop {
            let mut span = Span::begin("push updates", Kind::Consumer, &causes);
            describe(&mut span, vendor_id, &batch);
            let attempted = span.around(self.attempt(vendor_id, &batch, until));
            let error = match attempted.instrument(span.for_log()).await {
                Ok((verdicts, was_called)) => {
                    let said = if was_called {
                        Said::Answer { fault: None }
                    } else {
                        Said::Nothing
                    };
                    break (verdicts, said);
                }
                Err(error) => error,
            };
            span.fail(&error);
            span.for_log().in_scope(|| {
                // The only one of a batch is named.
                let one = batch.first().filter(|_| batch.len() == 1);
                let message_id = one.and_then(|one| one.delivery.message_id.as_deref());
                tracing::warn!(vendor = %vendor_id, %error, message_id, messages = batch.len(), "updates not taken");
            });
            drop(span);
            match self
                .door
                .weigh(&error, batch.len(), &mut rounds, until)
                .await
            {
                Weighed::Again => {}
                Weighed::GiveUp => return Step::given_up(batch),
                // A vendor that is down is down for all of them; another error may be one message's.
                Weighed::ItsOwn if batch.len() > 1 && !error.is_vendor_down() => {
                    return self
                        .push_each(vendor_id, batch, Said::by(&error), until)
                        .await;
                }
                Weighed::ItsOwn => {
                    let verdicts = batch
                        .iter()
                        .map(|one| self.door.judge(&one.delivery, &error))
                        .collect();
                    break (verdicts, Said::by(&error));
                }
            }
        };
        Step {
            said,
            ..self.finish(batch, verdicts, until).await
        }
    }

    /// Sends each message of a batch alone, so that one that is at fault fails alone. Those whose turn does not come in
    /// time, or before the vendor goes down, are as they were.
    async fn push_each(
        &self,
        vendor_id: &VendorId,
        batch: Vec<Addressed>,
        said: Said,
        until: Instant,
    ) -> Step {
        let mut step = Step {
            said,
            ..Step::default()
        };
        let mut waiting = batch.into_iter();
        while Instant::now() < until
            && !self.door.shutdown.is_begun()
            && !matches!(step.said, Said::Down { .. })
            && step.given_up.is_empty()
            && let Some(one) = waiting.next()
        {
            step.add(Box::pin(self.push(vendor_id, vec![one], until)).await);
        }
        step.unspent.extend(waiting);
        step
    }

    async fn finish(&self, batch: Vec<Addressed>, verdicts: Vec<Verdict>, until: Instant) -> Step {
        let mut step = Step::default();
        for (one, verdict) in batch.into_iter().zip(verdicts) {
            let subject = Subject::Updates(&one.updates);
            if self
                .door
                .carry_out(Queue::VendorSync, &one.delivery, &subject, &verdict, until)
                .await
            {
                suspects::end(&self.door, &one.delivery).await;
                step.done.push(one.delivery.tag);
            } else {
                step.given_up.push(one.delivery);
            }
        }
        step
    }

    /// Returns a verdict for each message, and whether the vendor was called.
    async fn attempt(
        &self,
        vendor_id: &VendorId,
        batch: &[Addressed],
        until: Instant,
    ) -> Result<(Vec<Verdict>, bool), Error> {
        let context = &self.door.context;
        let source = self
            .source
            .get_or_try_init(async || {
                let id = context
                    .with_connection(async |connection| Ok(db::installation_id(connection).await?))
                    .await?;
                Ok::<_, Error>(id.to_string())
            })
            .await?;
        let ids: Vec<UpdateId> = batch
            .iter()
            .flat_map(|one| one.updates.iter().copied())
            .collect();
        let mut pushed = push::push(
            context,
            source,
            vendor_id,
            &ids,
            self.updates_per_call_max.get(),
            until.into_std(),
        )
        .await?;
        self.door
            .relay
            .hand_over(std::mem::take(&mut pushed.waiting));
        let verdicts = batch
            .iter()
            .map(|one| self.verdict(vendor_id, one, &pushed))
            .collect();
        Ok((verdicts, pushed.was_called))
    }

    fn verdict(&self, vendor_id: &VendorId, one: &Addressed, pushed: &Pushed) -> Verdict {
        if let Some(id) = one.updates.iter().find(|id| pushed.conflicts.contains(id)) {
            return Verdict::DeadLetter {
                code: retry::UPDATE_CONFLICT,
                error: format!("vendor {vendor_id} knows update {id} with another content"),
                cause: None,
            };
        }
        let unusable = one
            .updates
            .iter()
            .find_map(|id| Some((id, pushed.unusable.get(id)?)));
        match unusable {
            Some((id, problem)) => self.door.judge(
                &one.delivery,
                &Error::NotYet(format!(
                    "vendor {vendor_id} answered nonsense for update {id}: {problem}"
                )),
            ),
            // What was sent is answered, so the rest costs nothing.
            None if pushed.is_cut_short => retry::put_off(retry_count(&one.delivery)),
            None => Verdict::Ack,
        }
    }
}
