//! What happened to an order, in the order of time, put together from what its rows keep.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::ids::{UpdateId, VendorId};
use super::order::Status;
use super::update::{Outcome, State, Update};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = HistoryEntry)]
pub struct Entry {
    /// When, by the clock of the process that did it.
    pub at: DateTime<Utc>,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// What can happen to an order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[schema(as = HistoryEvent)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// It was accepted.
    Accepted,
    /// Its processing gave up; its message went to the dead-letter queue.
    Failed,
    /// Its message was replayed.
    Replayed,
    /// Its stock was taken.
    #[serde(rename_all = "camelCase")]
    Confirmed {
        /// The takes.
        updates: Vec<UpdateId>,
    },
    /// It could not be served.
    Rejected,
    /// A vendor was told.
    #[serde(rename_all = "camelCase")]
    Pushed {
        /// Which vendor.
        vendor_id: VendorId,
        /// What it answered.
        outcome: Outcome,
        /// For which updates.
        updates: Vec<UpdateId>,
    },
    /// What a vendor had refused was taken from others.
    #[serde(rename_all = "camelCase")]
    Reallocated {
        /// The new takes.
        updates: Vec<UpdateId>,
    },
    /// The vendor could not be told; its message went to the dead-letter queue.
    #[serde(rename_all = "camelCase")]
    PushFailed {
        /// Which vendor.
        vendor_id: VendorId,
    },
    /// The message to the vendor was replayed.
    #[serde(rename_all = "camelCase")]
    PushReplayed {
        /// Which vendor.
        vendor_id: VendorId,
    },
    /// The message to the vendor was dropped.
    #[serde(rename_all = "camelCase")]
    PushDropped {
        /// Which vendor.
        vendor_id: VendorId,
    },
    /// It was taken back.
    #[serde(rename_all = "camelCase")]
    Cancelled {
        /// The returns of what had been taken.
        updates: Vec<UpdateId>,
    },
}

/// The times of an order's row.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// When it was accepted.
    pub accepted_at: DateTime<Utc>,
    /// When it was confirmed or rejected.
    pub decided_at: Option<DateTime<Utc>>,
    /// When it was cancelled.
    pub cancelled_at: Option<DateTime<Utc>>,
}

/// An update with the times of its row.
#[derive(Debug, Clone)]
pub struct Timed {
    /// The update.
    pub update: Update,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When the vendor had answered that it is applied.
    pub acknowledged_at: Option<DateTime<Utc>>,
    /// When it was closed.
    pub closed_at: Option<DateTime<Utc>>,
}

impl Timed {
    /// When the vendor had handled it, as far as is known, and how.
    fn pushed(&self) -> Option<(DateTime<Utc>, Outcome)> {
        let outcome = match self.update.state {
            State::Open => return None,
            State::Acknowledged | State::Applied => Outcome::Applied,
            State::Rejected => Outcome::Rejected,
            State::Void => Outcome::Void,
        };
        // A sync may have seen it in the vendor's ledger before its answer was recorded.
        Some((self.acknowledged_at.or(self.closed_at)?, outcome))
    }
}

/// The history of an order, oldest first. `events` are those that no column keeps.
#[must_use]
pub fn history(status: Status, times: Times, updates: &[Timed], events: Vec<Entry>) -> Vec<Entry> {
    let made = |is_take: bool| {
        let mut made = BTreeMap::<DateTime<Utc>, Vec<UpdateId>>::new();
        for timed in updates.iter().filter(|t| (t.update.delta < 0) == is_take) {
            made.entry(timed.created_at)
                .or_default()
                .push(timed.update.id);
        }
        made
    };
    let mut takes = made(true);
    let returns = made(false);
    let mut entries = vec![Entry {
        at: times.accepted_at,
        event: Event::Accepted,
    }];
    entries.extend(events);
    if let Some(at) = times.decided_at {
        // What is decided and what is taken for it share one time; only a rejection takes nothing.
        let first = takes.remove(&at);
        let event = match first {
            None if status == Status::Rejected => Event::Rejected,
            first => Event::Confirmed {
                updates: first.unwrap_or_default(),
            },
        };
        entries.push(Entry { at, event });
    }
    for (at, updates) in takes {
        entries.push(Entry {
            at,
            event: Event::Reallocated { updates },
        });
    }
    if let Some(at) = times.cancelled_at {
        let updates = returns.into_values().flatten().collect();
        entries.push(Entry {
            at,
            event: Event::Cancelled { updates },
        });
    }
    let mut pushed = BTreeMap::<(DateTime<Utc>, VendorId, Outcome), Vec<UpdateId>>::new();
    for timed in updates {
        if let Some((at, outcome)) = timed.pushed() {
            pushed
                .entry((at, timed.update.vendor_id.clone(), outcome))
                .or_default()
                .push(timed.update.id);
        }
    }
    for ((at, vendor_id, outcome), updates) in pushed {
        entries.push(Entry {
            at,
            event: Event::Pushed {
                vendor_id,
                outcome,
                updates,
            },
        });
    }
    // At one time, in the order in which these follow from each other.
    entries.sort_by(|a, b| (a.at, &a.event).cmp(&(b.at, &b.event)));
    entries
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::ids::{OrderId, ProductId};

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).expect("a time")
    }

    fn update(n: u128, vendor: &str, delta: i64, state: State, times: [i64; 3]) -> Timed {
        let time = |second| (second > 0).then(|| at(second));
        Timed {
            update: Update {
                id: UpdateId(Uuid::from_u128(n)),
                order_id: OrderId(Uuid::nil()),
                vendor_id: VendorId::parse(vendor).expect("valid"),
                product_id: ProductId::parse("p").expect("valid"),
                delta,
                reverses: None,
                state,
                turned: false,
            },
            created_at: at(times[0]),
            acknowledged_at: time(times[1]),
            closed_at: time(times[2]),
        }
    }

    fn told(entries: &[Entry]) -> Vec<String> {
        entries
            .iter()
            .map(|entry| {
                let event = serde_json::to_value(&entry.event).expect("serializes");
                let mut words = vec![(entry.at - at(0)).num_seconds().to_string()];
                let texts = ["event", "vendorId", "outcome"].map(|key| event[key].as_str());
                words.extend(texts.into_iter().flatten().map(str::to_owned));
                words.extend(event["updates"].as_array().map(|u| format!("x{}", u.len())));
                words.join(" ")
            })
            .collect()
    }

    #[test]
    fn a_refused_take_is_reallocated_and_in_the_end_all_of_it_returned() {
        let updates = [
            update(1, "a", -5, State::Rejected, [2, 0, 3]),
            update(2, "b", -1, State::Applied, [2, 3, 9]),
            update(3, "b", -5, State::Acknowledged, [3, 4, 0]),
            update(4, "b", 1, State::Open, [6, 0, 0]),
            update(5, "b", 5, State::Applied, [6, 0, 9]),
        ];
        let times = Times {
            accepted_at: at(1),
            decided_at: Some(at(2)),
            cancelled_at: Some(at(6)),
        };
        let b = VendorId::parse("b").expect("valid");
        let events = vec![Entry {
            at: at(5),
            event: Event::PushFailed { vendor_id: b },
        }];
        assert_eq!(
            told(&history(Status::Cancelled, times, &updates, events)),
            [
                "1 accepted",
                "2 confirmed x2",
                "3 pushed a rejected x1",
                "3 pushed b applied x1",
                "3 reallocated x1",
                "4 pushed b applied x1",
                "5 push_failed b",
                "6 cancelled x2",
                "9 pushed b applied x1",
            ]
        );
    }

    #[test]
    fn a_failed_order_that_was_replayed_may_still_be_rejected() {
        let times = Times {
            accepted_at: at(1),
            decided_at: Some(at(4)),
            cancelled_at: None,
        };
        let event = |second, event| Entry {
            at: at(second),
            event,
        };
        let events = vec![event(2, Event::Failed), event(3, Event::Replayed)];
        assert_eq!(
            told(&history(Status::Rejected, times, &[], events)),
            ["1 accepted", "2 failed", "3 replayed", "4 rejected"]
        );
    }
}
