//! What the API answers, as much of it as is shown. What a newer server adds is passed over; words are kept as texts,
//! since a newer one may know more of them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A line of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// The product.
    pub product_id: String,
    /// Units.
    pub quantity: i64,
}

/// An order.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// Its id.
    pub id: Uuid,
    /// Whose it is, if it was placed with a key.
    pub caller: Option<String>,
    /// Where it stands.
    pub status: String,
    /// Why it is rejected, failed or cancelled.
    pub reason: Option<Reason>,
    /// How far the vendors have been told.
    pub vendor_sync: String,
    /// What was ordered.
    pub lines: Vec<Line>,
    /// The remark of whoever ordered.
    pub reference: Option<String>,
    /// What was taken where, and returned.
    #[serde(default)]
    pub updates: Vec<Update>,
    /// When it was accepted.
    pub accepted_at: DateTime<Utc>,
    /// When it was confirmed or rejected.
    pub decided_at: Option<DateTime<Utc>>,
    /// When it was cancelled.
    pub cancelled_at: Option<DateTime<Utc>>,
    /// What happened, oldest first.
    #[serde(default)]
    pub history: Vec<Event>,
}

/// Why an order is rejected, failed or cancelled.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reason {
    /// Which reason.
    pub code: String,
    /// The product that it is about.
    pub product_id: Option<String>,
    /// Units asked for.
    pub requested: Option<i64>,
    /// Units that were available.
    pub available: Option<i64>,
    /// What went wrong.
    pub error: Option<String>,
}

/// One change of one product's stock at one vendor.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Update {
    /// Its id.
    pub id: Uuid,
    /// Where.
    pub vendor_id: String,
    /// Of what.
    pub product_id: String,
    /// Units; negative takes, positive returns.
    pub delta: i64,
    /// How far it has come.
    pub state: String,
}

/// Something that happened to an order.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// When.
    pub at: DateTime<Utc>,
    /// What.
    pub event: String,
    /// At which vendor.
    pub vendor_id: Option<String>,
    /// What it answered.
    pub outcome: Option<String>,
}

/// A page of a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// What is on it.
    #[serde(alias = "orders", alias = "products")]
    pub items: Vec<T>,
    /// Where the next page begins, if there may be one.
    pub next_cursor: Option<String>,
}

/// A product, over all its vendors.
#[derive(Debug, Clone, Deserialize)]
pub struct Product {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Units that can be ordered now.
    pub available: i64,
    /// Units that vendors lack of what had been taken.
    pub shortfall: i64,
    /// At its vendors.
    pub vendors: Vec<AtVendor>,
}

/// A product at one vendor.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AtVendor {
    /// Which vendor.
    pub vendor_id: String,
    /// Its name there.
    pub name: String,
    /// What the vendor's database said at the last sync.
    pub on_hand: i64,
    /// The sum of changes that `on_hand` does not include yet.
    pub open: i64,
    /// Units that can be ordered now.
    pub available: i64,
    /// Units that the vendor lacks.
    pub shortfall: i64,
    /// When the vendor was last read.
    pub last_sync_at: Option<DateTime<Utc>>,
}

/// What went wrong (RFC 9457).
#[derive(Debug, Clone, Deserialize)]
pub struct Problem {
    /// Of which kind, for programs.
    pub code: String,
    /// Of which kind, for people.
    pub title: String,
    /// Of this occurrence.
    pub detail: String,
    /// Which request it was.
    pub instance: Option<String>,
    /// The fields and parameters at fault.
    #[serde(default)]
    pub errors: Vec<FieldProblem>,
}

/// What is wrong with one field or parameter.
#[derive(Debug, Clone, Deserialize)]
pub struct FieldProblem {
    /// A JSON pointer into the body.
    pub pointer: Option<String>,
    /// A parameter of the query, or a header.
    pub parameter: Option<String>,
    /// What is wrong, and what is allowed.
    pub detail: String,
}
