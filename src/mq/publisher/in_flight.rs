//! The messages sent and not yet answered on one channel: pure bookkeeping of the broker's confirms
//! and returns.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{PublishError, batch::Batch};
use crate::mq::queues::Queue;

/// Measured: 500 outstanding reach the broker's full rate; this leaves room for slower disks.
const MESSAGES_MAX: usize = 4_096;

/// Well below the point where amiquip's sends begin to block (`wire::UNSENT_MAX_BYTES`), with room for one
/// message of the greatest size on top.
const BYTES_MAX: usize = 16 << 20;

/// Messages by the number under which the broker confirms them: 1, 2, 3 … on each channel.
#[derive(Default)]
pub(super) struct InFlight {
    sent: BTreeMap<u64, Sent>,
    last_number: u64,
    bytes: usize,
}

/// One message on its way. Dropped without an answer, it ends as unknown.
pub(super) struct Sent {
    pub(super) batch: Arc<Batch>,
    pub(super) index: usize,
    pub(super) queue: Queue,
    pub(super) message_id: String,
    pub(super) bytes: usize,
    pub(super) at: Instant,
}

impl Drop for Sent {
    fn drop(&mut self) {
        // The first word counts, so this one only does where nothing better was said.
        let unknown =
            PublishError::Unknown("the connection to RabbitMQ ended before the confirm".to_owned());
        self.batch.settle(self.index, Err(unknown));
    }
}

impl InFlight {
    /// Whether a message of this size may be sent now.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.sent.len() < MESSAGES_MAX && (self.bytes + bytes <= BYTES_MAX || self.sent.is_empty())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Notes the next message of the channel.
    pub(super) fn add(&mut self, sent: Sent) {
        self.last_number += 1;
        self.bytes += sent.bytes;
        self.sent.insert(self.last_number, sent);
    }

    /// How long the broker has owed the oldest answer.
    pub(super) fn oldest_age(&self) -> Option<Duration> {
        self.sent.values().next().map(|sent| sent.at.elapsed())
    }

    /// A message came back. All with that queue and id end as unroutable: a return does not carry the
    /// number, and calling a message lost that is there only costs a duplicate.
    pub(super) fn returned(&mut self, is_queue: impl Fn(Queue) -> bool, message_id: &str) {
        for sent in self.sent.values() {
            if sent.message_id == message_id && is_queue(sent.queue) {
                sent.batch.settle(sent.index, Err(PublishError::Unroutable));
            }
        }
    }

    /// The broker answered for `number`, or for all up to it.
    pub(super) fn confirmed(
        &mut self,
        number: u64,
        multiple: bool,
        outcome: &Result<(), PublishError>,
    ) {
        if multiple {
            // Zero stands for all that were sent.
            let later = match number {
                0 => BTreeMap::new(),
                number => self.sent.split_off(&(number + 1)),
            };
            for sent in std::mem::replace(&mut self.sent, later).into_values() {
                self.settle(&sent, outcome);
            }
        } else if let Some(sent) = self.sent.remove(&number) {
            self.settle(&sent, outcome);
        }
    }

    fn settle(&mut self, sent: &Sent, outcome: &Result<(), PublishError>) {
        self.bytes -= sent.bytes;
        sent.batch.settle(sent.index, outcome.clone());
    }

    /// The channel is gone; nothing more will be answered.
    pub(super) fn lost(self, reason: &str) {
        for sent in self.sent.values() {
            let unknown = PublishError::Unknown(format!(
                "the connection was lost before the confirm ({reason})"
            ));
            sent.batch.settle(sent.index, Err(unknown));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mq::{Headers, Message};

    fn flight(ids: &[&str]) -> (InFlight, Arc<Batch>) {
        let messages: Vec<_> = ids
            .iter()
            .map(|id| Message {
                queue: Queue::Orders,
                message_id: (*id).to_owned(),
                headers: Headers::new(),
                body: Vec::new(),
            })
            .collect();
        let batch = Arc::new(Batch::new(&messages));
        let mut in_flight = InFlight::default();
        for (index, message) in messages.into_iter().enumerate() {
            assert!(batch.begin(index));
            in_flight.add(Sent {
                batch: Arc::clone(&batch),
                index,
                queue: message.queue,
                message_id: message.message_id,
                bytes: 10,
                at: Instant::now(),
            });
        }
        (in_flight, batch)
    }

    fn outcomes(batch: &Batch) -> String {
        batch
            .close(Duration::ZERO)
            .into_iter()
            .map(|outcome| match outcome {
                Ok(()) => 'o',
                Err(PublishError::Unroutable) => 'r',
                Err(PublishError::Nacked) => 'n',
                Err(_) => '?',
            })
            .collect()
    }

    #[test]
    fn a_confirm_of_multiple_covers_all_before_it_and_none_after() {
        let (mut in_flight, batch) = flight(&["a", "b", "c", "d"]);
        in_flight.confirmed(2, false, &Err(PublishError::Nacked));
        in_flight.confirmed(3, true, &Ok(()));
        assert!(!in_flight.is_empty());
        assert_eq!(outcomes(&batch), "ono?");
        assert_eq!(in_flight.bytes, 10);
    }

    #[test]
    fn a_returned_message_stays_unroutable_when_its_confirm_comes() {
        let (mut in_flight, batch) = flight(&["a", "b", "a"]);
        in_flight.returned(|queue| queue == Queue::Orders, "a");
        in_flight.returned(|queue| queue == Queue::VendorSync, "b");
        in_flight.confirmed(0, true, &Ok(()));
        assert!(in_flight.is_empty());
        assert_eq!(outcomes(&batch), "ror");
    }

    #[test]
    fn a_message_dropped_unanswered_is_unknown_not_lost() {
        let (in_flight, batch) = flight(&["a"]);
        drop(in_flight);
        assert!(matches!(
            batch.close(Duration::ZERO)[0],
            Err(PublishError::Unknown(_))
        ));
    }

    #[test]
    fn room_is_bounded_by_bytes_but_one_great_message_passes() {
        let (mut in_flight, _batch) = flight(&["a"]);
        assert!(in_flight.has_room_for(BYTES_MAX - 10));
        assert!(!in_flight.has_room_for(BYTES_MAX - 9));
        in_flight.confirmed(1, false, &Ok(()));
        assert!(in_flight.has_room_for(BYTES_MAX * 2));
    }
}
