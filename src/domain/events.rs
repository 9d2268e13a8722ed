//! Events: what happened, in the order in which it can be told, and who hears of it.

use std::collections::BTreeSet;
use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::{OrderId, ProductId};
use super::keys::{Caller, Scope};
use super::order::{Line, Lines, Reason, Status};

/// What kind of thing happened.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
pub enum EventType {
    /// An order's stock is taken.
    #[serde(rename = "order.confirmed")]
    OrderConfirmed,
    /// An order cannot be served.
    #[serde(rename = "order.rejected")]
    OrderRejected,
    /// Processing an order gave up; it may be taken up again.
    #[serde(rename = "order.failed")]
    OrderFailed,
    /// An order was taken back.
    #[serde(rename = "order.cancelled")]
    OrderCancelled,
    /// Another number of a product is available.
    #[serde(rename = "stock.changed")]
    StockChanged,
}

impl EventType {
    /// Every type.
    pub const ALL: [EventType; 5] = [
        EventType::OrderConfirmed,
        EventType::OrderRejected,
        EventType::OrderFailed,
        EventType::OrderCancelled,
        EventType::StockChanged,
    ];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OrderConfirmed => "order.confirmed",
            Self::OrderRejected => "order.rejected",
            Self::OrderFailed => "order.failed",
            Self::OrderCancelled => "order.cancelled",
            Self::StockChanged => "stock.changed",
        }
    }

    /// The type of a name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Reads a list of names, separated by commas.
    ///
    /// # Errors
    /// Which one is unknown, and which there are.
    pub fn parse_list(text: &str) -> Result<BTreeSet<Self>, String> {
        text.split(',')
            .map(|name| {
                Self::parse(name.trim()).ok_or_else(|| {
                    let known = Self::ALL.map(Self::as_str).join(", ");
                    format!("must be a list of {known}, separated by commas")
                })
            })
            .collect()
    }

    /// The status that an order has by it.
    #[must_use]
    pub fn status(self) -> Option<Status> {
        match self {
            Self::OrderConfirmed => Some(Status::Confirmed),
            Self::OrderRejected => Some(Status::Rejected),
            Self::OrderFailed => Some(Status::Failed),
            Self::OrderCancelled => Some(Status::Cancelled),
            Self::StockChanged => None,
        }
    }
}

/// A place in the order of all events: of the transaction, of its row, and within the row. What is read up to a place
/// stays as it is: nothing appears before it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// The transaction.
    pub xid: i64,
    /// The row, from 1 on; 0 is before the first.
    pub row: i64,
    /// Within the row, from 0 on.
    pub index: i32,
}

impl Position {
    /// Before everything that a transaction and those after it tell.
    #[must_use]
    pub fn before(xid: i64) -> Self {
        Self {
            xid,
            ..Self::default()
        }
    }

    /// Reads what [`fmt::Display`] writes, and nothing else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let position = Self {
            xid: parts.next()?.parse().ok()?,
            row: parts.next()?.parse().ok()?,
            index: parts.next()?.parse().ok()?,
        };
        // A minus or a plus, zeros in front, or more than that was written by somebody else.
        (position.to_string() == text).then_some(position)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.xid, self.row, self.index)
    }
}

/// An event, as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Where it stands.
    pub position: Position,
    /// What kind it is.
    pub kind: EventType,
    /// Whose order it is about; nobody's where it is about stock.
    pub owner: Option<String>,
    /// The products that it is about.
    pub products: Vec<ProductId>,
    /// What is told, as JSON.
    pub data: String,
}

/// What is told of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Event)]
#[serde(rename_all = "camelCase")]
pub struct Document<'a> {
    /// What kind it is.
    pub r#type: EventType,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// The order that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub order: Option<OrderDocument<'a>>,
    /// The product that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub product_id: Option<&'a ProductId>,
    /// How much of the product is available when this is told: the newest event has the newest number.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub available: Option<i64>,
}

/// What is told of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = EventOrder)]
#[serde(rename_all = "camelCase")]
pub struct OrderDocument<'a> {
    /// Which order.
    pub id: OrderId,
    /// Whose it is; left out where it was placed without a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub caller: Option<&'a str>,
    /// Its status by this event; it may be another one by now.
    pub status: Status,
    /// Why, where there is a why.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reason: Option<Reason>,
    /// Its caller's remark.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reference: Option<&'a str>,
    /// What was ordered.
    #[schema(value_type = Vec<Line>)]
    pub lines: &'a Lines,
    /// When it was accepted.
    pub accepted_at: DateTime<Utc>,
}

/// What is told beside what happens.
#[derive(Serialize, ToSchema)]
#[schema(as = EventNotice)]
#[serde(rename_all = "camelCase")]
pub struct Notice<'a> {
    /// `reset`: events between the last one and the next are gone. `dropped`: the connection is closed.
    pub r#type: &'a str,
    /// Why, and what to do.
    pub detail: &'a str,
}

/// The type of a [`Notice`] that events are gone.
pub const RESET: &str = "reset";
/// The type of a [`Notice`] that the connection is closed.
pub const DROPPED: &str = "dropped";

/// Which events somebody hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    types: BTreeSet<EventType>,
    product: Option<ProductId>,
    /// Only this caller's orders.
    owner: Option<String>,
}

impl Filter {
    /// What a caller hears: of its own orders, if it may read orders, and of all stock. Without types, all that it may.
    ///
    /// # Errors
    /// The scope that it lacks for a type that it asks for.
    pub fn new(
        caller: &Caller,
        types: Option<BTreeSet<EventType>>,
        product: Option<ProductId>,
    ) -> Result<Self, Scope> {
        let may_orders = caller.may(Scope::OrdersRead);
        let is_allowed = |kind: &EventType| may_orders || kind.status().is_none();
        let types = match types {
            Some(types) if !types.iter().all(is_allowed) => return Err(Scope::OrdersRead),
            Some(types) => types,
            None => EventType::ALL.into_iter().filter(is_allowed).collect(),
        };
        Ok(Self {
            types,
            product,
            owner: caller.only_its_own().map(str::to_owned),
        })
    }

    /// One as it was, put together from its parts.
    #[must_use]
    pub fn of(types: BTreeSet<EventType>, owner: Option<String>) -> Self {
        Self {
            types,
            product: None,
            owner,
        }
    }

    /// The types that it lets through.
    #[must_use]
    pub fn types(&self) -> &BTreeSet<EventType> {
        &self.types
    }

    /// Whose orders alone it lets through, if it is so.
    #[must_use]
    pub fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    /// Whether an event is one of them.
    #[must_use]
    pub fn lets_through(&self, event: &Event) -> bool {
        let is_of = |owner: &String| event.owner.as_ref().is_none_or(|of| of == owner);
        self.types.contains(&event.kind)
            && self.owner.as_ref().is_none_or(is_of)
            && self
                .product
                .as_ref()
                .is_none_or(|product| event.products.contains(product))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn product(id: &str) -> ProductId {
        ProductId::parse(id).expect("valid")
    }

    fn event(kind: EventType, owner: Option<&str>, of: &[&str]) -> Event {
        Event {
            position: Position::default(),
            kind,
            owner: owner.map(str::to_owned),
            products: of.iter().map(|id| product(id)).collect(),
            data: String::new(),
        }
    }

    fn caller(scopes: &[Scope]) -> Caller {
        Caller::new("shop".into(), scopes.iter().copied().collect())
    }

    #[test]
    fn each_caller_hears_of_its_own_orders_and_of_all_stock() {
        let own = event(EventType::OrderConfirmed, Some("shop"), &["p1"]);
        let others = event(EventType::OrderConfirmed, Some("other"), &["p1"]);
        let stock = event(EventType::StockChanged, None, &["p1"]);
        let hears = |scope, types| {
            let filter = Filter::new(&caller(&[scope]), types, None).expect("allowed");
            [&own, &others, &stock].map(|event| filter.lets_through(event))
        };
        assert_eq!(hears(Scope::OrdersRead, None), [true, false, true]);
        assert_eq!(hears(Scope::Admin, None), [true, true, true]);
        assert_eq!(hears(Scope::StockWrite, None), [false, false, true]);
        let confirmed = EventType::parse_list("order.confirmed").expect("known");
        assert_eq!(
            hears(Scope::Admin, Some(confirmed.clone())),
            [true, true, false]
        );
        assert_eq!(
            Filter::new(&caller(&[Scope::OrdersWrite]), Some(confirmed), None),
            Err(Scope::OrdersRead)
        );
        let filter = Filter::new(&Caller::local(), None, Some(product("p2"))).expect("allowed");
        assert!(!filter.lets_through(&own));
        assert!(filter.lets_through(&event(EventType::OrderFailed, Some("x"), &["p1", "p2"])));
    }

    #[test]
    fn a_type_that_is_unknown_is_told_with_those_that_are() {
        let problem = EventType::parse_list("order.confirmed,stock").expect_err("unknown");
        insta::assert_snapshot!(problem, @"must be a list of order.confirmed, order.rejected, order.failed, order.cancelled, stock.changed, separated by commas");
        assert_eq!(
            EventType::parse_list("stock.changed, order.failed").map(|types| types.len()),
            Ok(2)
        );
        for kind in EventType::ALL {
            let written = serde_json::to_value(kind).expect("serializes");
            assert_eq!(written, kind.as_str());
        }
    }

    proptest! {
        #[test]
        fn a_position_is_read_as_it_was_written_and_in_no_other_way(
            xid in 0..i64::MAX, row in 0..i64::MAX, index in 0..i32::MAX,
            text in "[0-9+-]{0,12}(-[0-9]{1,5}){0,3}",
        ) {
            let position = Position { xid, row, index };
            prop_assert_eq!(Position::parse(&position.to_string()), Some(position));
            if let Some(position) = Position::parse(&text) {
                prop_assert_eq!(position.to_string(), text);
                prop_assert!(position >= Position::default());
            }
        }
    }
}
