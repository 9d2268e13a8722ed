//! Dead letters: what one concerns, which of them an operator means, and what may be dropped.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::ids::{OrderId, ProductId, UpdateId, VendorId};
use super::messages::{self, UpdatesMessage};
use super::order::NewOrder;
use super::update::{State, Update};
use super::webhooks::Notification;

/// Most letters that one look into a queue reads, and so the most that one selection can name.
pub const LETTERS_MAX: usize = 10_000;

/// What a letter concerns, as far as it can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// Orders: one, unless RabbitMQ itself has put a message of several here.
    Orders(Vec<NewOrder>),
    /// Updates of one vendor's stock.
    Updates(UpdatesMessage),
    /// An event that a receiver of webhooks did not take.
    Notification(Notification),
    /// Nothing that this product knows.
    Unreadable,
}

impl Subject {
    /// Reads a letter of `orders_dlq`.
    #[must_use]
    pub fn of_order_letter(body: &[u8], message_id: Option<&str>, now: DateTime<Utc>) -> Self {
        messages::decode_orders(body, message_id, now).map_or(Self::Unreadable, Self::Orders)
    }

    /// Reads a letter of `vendor_sync_dlq`.
    #[must_use]
    pub fn of_updates_letter(body: &[u8]) -> Self {
        messages::decode_updates(body).map_or(Self::Unreadable, Self::Updates)
    }

    /// Reads a letter of `webhooks_dlq`.
    #[must_use]
    pub fn of_notification_letter(body: &[u8], message_id: Option<&str>) -> Self {
        Notification::decode(body, message_id).map_or(Self::Unreadable, Self::Notification)
    }
}

/// Where a letter stands in its queue. The same message may stand there twice, so its name alone does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The letter's name.
    pub name: Uuid,
    /// How many letters of that name stand before it.
    pub nth: u32,
}

/// Which letters an operator means: those for which all that is given holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Those with one of these message ids; any when empty.
    pub message_ids: BTreeSet<String>,
    /// Those with this reason.
    pub reason: Option<String>,
    /// Those that concern this order.
    pub order: Option<OrderId>,
    /// Those behind this letter, which need not be meant itself.
    pub after: Option<Place>,
    /// At most so many of them.
    pub limit: usize,
    /// Those with one of these names: what an operator was shown and has agreed to, and nothing that came later.
    pub shown: Option<BTreeSet<Uuid>>,
}

impl Selection {
    /// Whether the letter is meant. `updates_of_order` are those of the order that was asked for.
    #[must_use]
    pub fn takes(
        &self,
        name: Uuid,
        message_id: &str,
        reason: Option<&str>,
        subject: &Subject,
        updates_of_order: &BTreeSet<UpdateId>,
    ) -> bool {
        let concerns = |wanted: OrderId| match subject {
            Subject::Orders(orders) => orders.iter().any(|order| order.id == wanted),
            Subject::Updates(message) => message
                .updates
                .iter()
                .any(|update| updates_of_order.contains(&update.id)),
            Subject::Notification(notification) => notification.order() == Some(wanted),
            Subject::Unreadable => false,
        };
        (self.message_ids.is_empty() || self.message_ids.contains(message_id))
            && (self.reason.is_none() || self.reason.as_deref() == reason)
            && self.order.is_none_or(concerns)
            && self
                .shown
                .as_ref()
                .is_none_or(|shown| shown.contains(&name))
    }
}

/// The name of a letter among all that were ever in its queue. Its time is part of it: a message that is replayed and
/// dead-lettered again is another letter.
#[must_use]
pub fn name(queue: &str, message_id: &str, headers: &[Option<&str>], body: &[u8]) -> Uuid {
    const NAMESPACE: Uuid = Uuid::from_u128(0x2d5b_07aa_41c6_4f0e_9a53_c8e1_7b60_d492);
    let mut bytes = Vec::with_capacity(body.len() + 256);
    let mut part = |part: &[u8]| {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    };
    part(queue.as_bytes());
    part(message_id.as_bytes());
    for header in headers {
        part(header.unwrap_or_default().as_bytes());
    }
    part(body);
    Uuid::new_v5(&NAMESPACE, &bytes)
}

/// A letter carries a return that its vendor has not answered for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "it returns {units} of {product} to {vendor} (update {id}), which has not answered for it: dropped, that stock would \
     stay taken for ever; replay the letter instead, and drop it once the vendor has answered"
)]
pub struct ReturnWouldBeLost {
    id: UpdateId,
    vendor: VendorId,
    product: ProductId,
    units: i64,
}

/// The orders to cancel when a letter to `vendor` is dropped. `updates` are those that it names, as they stand: locked,
/// and without those that are not in our database, which no order has.
///
/// Only what the vendor has not answered for needs the letter. An update that is acknowledged or closed has had its
/// effect, whatever its letter says, and its order goes on. One of another vendor than the letter's was never this
/// letter's to tell: its own message does.
///
/// A take is dropped by cancelling its order, which makes a return; the return reaches the vendor by a message of its
/// own, and over a take that never came the vendor records both as void. A return has nothing that could stand in for
/// it: its order is cancelled already, and a second return of the same take is not allowed. So a letter with an open
/// one is kept, whole.
///
/// # Errors
/// The letter must be kept.
pub fn orders_to_cancel(
    vendor: &VendorId,
    updates: &[Update],
) -> Result<BTreeSet<OrderId>, ReturnWouldBeLost> {
    let open = || {
        updates
            .iter()
            .filter(|update| update.vendor_id == *vendor && update.state == State::Open)
    };
    if let Some(lost) = open().find(|update| update.delta > 0) {
        return Err(ReturnWouldBeLost {
            id: lost.id,
            vendor: vendor.clone(),
            product: lost.product_id.clone(),
            units: lost.delta,
        });
    }
    Ok(open().map(|update| update.order_id).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vendor(id: &str) -> VendorId {
        VendorId::parse(id).expect("valid")
    }

    fn update(n: u128, delta: i64, state: State) -> Update {
        Update {
            id: UpdateId(Uuid::from_u128(n)),
            order_id: OrderId(Uuid::from_u128(100 + n)),
            vendor_id: vendor("a"),
            product_id: ProductId::parse("p1").expect("valid"),
            delta,
            reverses: (delta > 0).then_some(UpdateId(Uuid::nil())),
            state,
            turned: false,
        }
    }

    #[test]
    fn only_orders_with_a_take_that_has_no_answer_are_cancelled() {
        let updates = [
            update(1, -1, State::Open),
            update(2, -1, State::Acknowledged),
            update(3, -1, State::Applied),
            update(4, -1, State::Rejected),
            update(5, -1, State::Void),
            update(6, 1, State::Acknowledged),
            update(7, 1, State::Applied),
        ];
        let cancelled = orders_to_cancel(&vendor("a"), &updates);
        assert_eq!(
            cancelled,
            Ok(BTreeSet::from([OrderId(Uuid::from_u128(101))]))
        );
        // A letter that names another vendor's updates was never theirs.
        assert_eq!(
            orders_to_cancel(&vendor("b"), &updates),
            Ok(BTreeSet::new())
        );
    }

    #[test]
    fn a_letter_with_a_return_without_an_answer_is_kept_whole() {
        let updates = [update(1, -1, State::Open), update(2, 3, State::Open)];
        let error = orders_to_cancel(&vendor("a"), &updates).expect_err("kept");
        insta::assert_snapshot!(error, @"it returns 3 of p1 to a (update 00000000-0000-0000-0000-000000000002), which has not answered for it: dropped, that stock would stay taken for ever; replay the letter instead, and drop it once the vendor has answered");
    }

    #[test]
    fn a_selection_takes_what_meets_all_that_it_names() {
        let nil = Uuid::nil();
        let subject = Subject::of_updates_letter(
            br#"{"vendorId":"a","updates":[{"id":"00000000-0000-0000-0000-000000000001","productId":"p1","delta":-1}]}"#,
        );
        let of_order = BTreeSet::from([UpdateId(Uuid::from_u128(1))]);
        let takes = |selection: &Selection, of_order: &BTreeSet<UpdateId>| {
            selection.takes(nil, "m1", Some("crash_loop"), &subject, of_order)
        };
        let nothing = BTreeSet::new();
        let all = Selection::default();
        assert!(takes(&all, &nothing));
        let narrow = Selection {
            message_ids: ["m1".to_owned(), "m2".to_owned()].into(),
            reason: Some("crash_loop".into()),
            order: Some(OrderId(nil)),
            shown: Some([nil].into()),
            ..Selection::default()
        };
        assert!(takes(&narrow, &of_order));
        assert!(!takes(&narrow, &nothing), "another order's updates");
        for other in [
            Selection {
                message_ids: ["m2".to_owned()].into(),
                ..narrow.clone()
            },
            Selection {
                reason: Some("invalid_message".into()),
                ..narrow.clone()
            },
            Selection {
                shown: Some(BTreeSet::new()),
                ..narrow
            },
        ] {
            assert!(!takes(&other, &of_order), "{other:?}");
        }
        let of_an_order = Selection {
            order: Some(OrderId(nil)),
            ..all
        };
        assert!(!of_an_order.takes(nil, "m1", None, &Subject::Unreadable, &of_order));
    }

    #[test]
    fn a_letter_is_another_one_when_any_part_of_it_is() {
        let first = name("q", "m", &[Some("t"), None], b"body");
        assert_eq!(first, name("q", "m", &[Some("t"), None], b"body"));
        for other in [
            name("q2", "m", &[Some("t"), None], b"body"),
            name("q", "m2", &[Some("t"), None], b"body"),
            name("q", "m", &[Some("t2"), None], b"body"),
            name("q", "m", &[None, Some("t")], b"body"),
            name("q", "m", &[Some("t"), None], b"body2"),
        ] {
            assert_ne!(first, other);
        }
    }
}
