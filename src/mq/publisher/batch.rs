//! The record of one `publish` call, shared by the caller and the owner thread. Whoever looks, it says
//! for each message whether it was begun and how it ended.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::{Message, PublishError};

type Outcome = Result<(), PublishError>;

pub(super) struct Batch {
    progress: Mutex<Progress>,
    settled: Notify,
}

struct Progress {
    outcomes: Vec<Option<Outcome>>,
    /// Messages below this index may have been sent.
    begun: usize,
    open: usize,
    /// The caller is gone, nothing more is to be sent.
    abandoned: bool,
}

impl Batch {
    pub(super) fn new(messages: &[Message]) -> Batch {
        let outcomes: Vec<_> = messages
            .iter()
            .map(|message| {
                message
                    .problem()
                    .map(|problem| Err(PublishError::Invalid(problem)))
            })
            .collect();
        let open = outcomes.iter().filter(|outcome| outcome.is_none()).count();
        let settled = Notify::new();
        if open == 0 {
            settled.notify_one();
        }
        Batch {
            progress: Mutex::new(Progress {
                outcomes,
                begun: 0,
                open,
                abandoned: false,
            }),
            settled,
        }
    }

    /// Asks whether a message is still to be sent. After a yes it counts as possibly sent.
    pub(super) fn begin(&self, index: usize) -> bool {
        let mut progress = self.lock();
        if progress.abandoned || progress.outcomes[index].is_some() {
            return false;
        }
        progress.begun = index + 1;
        true
    }

    /// Records how a message ended; the first word counts.
    pub(super) fn settle(&self, index: usize, outcome: Outcome) {
        self.lock().settle(index, outcome, &self.settled);
    }

    pub(super) fn refuse_unbegun(&self, reason: &str) {
        let mut progress = self.lock();
        for index in progress.begun..progress.outcomes.len() {
            progress.settle(
                index,
                Err(PublishError::Unavailable(reason.to_owned())),
                &self.settled,
            );
        }
    }

    /// Takes the whole batch back, if nothing of it can have been sent.
    pub(super) fn withdraw_unbegun(&self) -> bool {
        let mut progress = self.lock();
        let is_unbegun = progress.begun == 0;
        progress.abandoned |= is_unbegun;
        is_unbegun
    }

    pub(super) fn abandon(&self) {
        self.lock().abandoned = true;
    }

    /// Waits until every message has ended.
    pub(super) async fn all_settled(&self) {
        self.settled.notified().await;
    }

    /// Ends the batch and says how each message ended or stands.
    pub(super) fn close(&self, deadline: Duration) -> Vec<Outcome> {
        let mut progress = self.lock();
        progress.abandoned = true;
        let begun = progress.begun;
        std::mem::take(&mut progress.outcomes)
            .into_iter()
            .enumerate()
            .map(|(index, outcome)| {
                outcome.unwrap_or_else(|| {
                    Err(if index < begun {
                        PublishError::Unknown(format!("no confirm within {deadline:?}"))
                    } else {
                        PublishError::Unavailable(format!(
                            "its turn did not come within {deadline:?}"
                        ))
                    })
                })
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    fn settle(&mut self, index: usize, outcome: Outcome, settled: &Notify) {
        // A batch that was closed has no outcomes any more.
        if let Some(slot @ None) = self.outcomes.get_mut(index) {
            *slot = Some(outcome);
            self.open -= 1;
            if self.open == 0 {
                settled.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mq::{Headers, Queue};

    const DEADLINE: Duration = Duration::from_secs(1);

    fn batch(count: usize) -> Batch {
        let message = Message {
            queue: Queue::Orders,
            message_id: "m".to_owned(),
            headers: Headers::new(),
            body: Vec::new(),
        };
        Batch::new(&vec![message; count])
    }

    #[test]
    fn at_the_deadline_what_was_begun_is_unknown_and_the_rest_certainly_not_taken() {
        let batch = batch(3);
        assert!(batch.begin(0) && batch.begin(1));
        batch.settle(0, Ok(()));
        let outcomes = batch.close(DEADLINE);
        assert_eq!(outcomes[0], Ok(()));
        assert!(matches!(outcomes[1], Err(PublishError::Unknown(_))));
        assert!(matches!(outcomes[2], Err(PublishError::Unavailable(_))));
        assert!(
            !batch.begin(2),
            "nothing is sent after the answer was given"
        );
        batch.settle(1, Ok(()));
    }

    #[test]
    fn only_an_unbegun_batch_can_be_withdrawn() {
        let unbegun = batch(1);
        assert!(unbegun.withdraw_unbegun());
        assert!(!unbegun.begin(0));
        let begun = batch(1);
        assert!(begun.begin(0));
        assert!(!begun.withdraw_unbegun());
    }

    #[test]
    fn the_first_word_counts() {
        let batch = batch(1);
        assert!(batch.begin(0));
        batch.settle(0, Err(PublishError::Unroutable));
        batch.settle(0, Ok(()));
        assert_eq!(batch.close(DEADLINE), [Err(PublishError::Unroutable)]);
    }
}
