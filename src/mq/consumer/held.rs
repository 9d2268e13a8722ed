//! What one channel holds unacknowledged, and which of it may be given out next. Pure: the handles by
//! which messages are acknowledged are opaque here.

use std::collections::{BTreeMap, VecDeque};

use crate::mq::message::Delivery;

/// The messages held, by the number of their delivery.
pub(super) struct Held<H> {
    handles: BTreeMap<u64, H>,
    /// Redelivered messages, each to be given out while nothing else is held.
    alone: VecDeque<Delivery>,
}

/// How to acknowledge in few frames.
#[derive(Debug, PartialEq)]
pub(super) struct Acks<H> {
    /// This one and everything before it.
    pub(super) up_to: Option<H>,
    /// These alone.
    pub(super) single: Vec<H>,
}

impl<H> Held<H> {
    pub(super) fn new() -> Held<H> {
        Held {
            handles: BTreeMap::new(),
            alone: VecDeque::new(),
        }
    }

    /// Notes a delivery; returns it if it may be given out with others.
    pub(super) fn arrived(&mut self, delivery: Delivery, handle: H) -> Option<Delivery> {
        self.handles.insert(delivery.tag.number, handle);
        if delivery.redeliveries == 0 {
            return Some(delivery);
        }
        self.alone.push_back(delivery);
        None
    }

    /// The next redelivered message, once nothing that was given out is unacknowledged.
    pub(super) fn next_alone(&mut self) -> Option<Delivery> {
        if self.handles.len() == self.alone.len() {
            self.alone.pop_front()
        } else {
            None
        }
    }

    pub(super) fn waiting_alone(&self) -> usize {
        self.alone.len()
    }

    pub(super) fn len(&self) -> usize {
        self.handles.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// Lets go of what is acknowledged. Numbers not held are ignored: the broker closes the channel over
    /// one that it does not know.
    pub(super) fn acked(&mut self, numbers: &[u64]) -> Acks<H> {
        let mut acked: BTreeMap<u64, H> = numbers
            .iter()
            .filter_map(|number| Some((*number, self.handles.remove(number)?)))
            .collect();
        let single = match self.handles.keys().next() {
            Some(oldest_left) => acked.split_off(oldest_left),
            None => BTreeMap::new(),
        };
        Acks {
            up_to: acked.pop_last().map(|(_, handle)| handle),
            single: single.into_values().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mq::{Headers, Tag};

    fn delivery(number: u64, redeliveries: u32) -> Delivery {
        Delivery {
            tag: Tag { epoch: 0, number },
            message_id: None,
            headers: Headers::new(),
            body: Vec::new(),
            redeliveries,
        }
    }

    fn held(count: u64) -> Held<u64> {
        let mut held = Held::new();
        for number in 1..=count {
            assert!(held.arrived(delivery(number, 0), number).is_some());
        }
        held
    }

    #[test]
    fn acknowledgements_are_joined_only_where_nothing_unacknowledged_lies_before() {
        let mut held = held(6);
        let acks = held.acked(&[2, 1, 4, 9]);
        assert_eq!(
            acks,
            Acks {
                up_to: Some(2),
                single: vec![4]
            }
        );
        let acks = held.acked(&[3, 4]);
        assert_eq!(
            acks,
            Acks {
                up_to: Some(3),
                single: vec![]
            }
        );
        let acks = held.acked(&[6]);
        assert_eq!(
            acks,
            Acks {
                up_to: None,
                single: vec![6]
            }
        );
        let acks = held.acked(&[5]);
        assert_eq!(
            acks,
            Acks {
                up_to: Some(5),
                single: vec![]
            }
        );
        assert!(held.is_empty());
    }

    #[test]
    fn a_redelivered_message_waits_until_nothing_else_is_held() {
        let mut held = held(1);
        assert!(held.arrived(delivery(2, 1), 2).is_none());
        assert!(held.arrived(delivery(3, 4), 3).is_none());
        assert!(held.next_alone().is_none(), "1 is unacknowledged");
        held.acked(&[1]);
        assert_eq!(
            held.next_alone().map(|delivery| delivery.tag.number),
            Some(2)
        );
        assert!(held.next_alone().is_none(), "2 is unacknowledged");
        held.acked(&[2]);
        assert_eq!(
            held.next_alone().map(|delivery| delivery.tag.number),
            Some(3)
        );
    }
}
