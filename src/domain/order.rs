//! What an order is: its lines, its status, and the id that makes a repeated request the same order.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::ids::{OrderId, ProductId};
use super::retry;

/// Most lines of one order; they are all decided in one transaction.
pub const LINES_MAX: usize = 100;
/// Most units of one line. With 100 lines of one product a sum stays far inside an `i64`.
pub const QUANTITY_MAX: i64 = 1_000_000;
/// The longest reference in characters.
pub const REFERENCE_CHARS_MAX: usize = 255;
/// The longest idempotency key in characters.
pub const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;

/// The namespace of ids derived from an idempotency key. Changing it would make every repeated request a new order.
const ID_NAMESPACE: Uuid = Uuid::from_u128(0x6c1d_3f52_94a8_5e0b_a3d7_0b52_f1c8_4e96);

/// How many units of one product.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Line {
    /// Which product.
    pub product_id: ProductId,
    /// How many units.
    #[schema(minimum = 1, maximum = 1_000_000, example = 2)]
    pub quantity: i64,
}

/// What is wrong with a request for an order; `field` is a JSON pointer into it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// A JSON pointer to the field.
    pub field: String,
    /// What is wrong with it, and what is allowed.
    pub problem: String,
}

impl Invalid {
    /// Names a field and its problem.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

/// The lines of an order: at least one, each product once, sorted by product.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(value_type = Vec<Line>)]
#[serde(transparent)]
pub struct Lines(Vec<Line>);

impl Lines {
    /// Checks the lines and sums those of the same product.
    ///
    /// # Errors
    /// All that is wrong, each with a pointer to its field.
    pub fn parse(lines: Vec<Line>) -> Result<Self, Vec<Invalid>> {
        if lines.is_empty() || lines.len() > LINES_MAX {
            return Err(vec![Invalid::new(
                "/lines",
                format!("must have 1 to {LINES_MAX} lines, has {}", lines.len()),
            )]);
        }
        let mut errors = Vec::new();
        let mut sums = BTreeMap::new();
        for (index, line) in lines.into_iter().enumerate() {
            if (1..=QUANTITY_MAX).contains(&line.quantity) {
                *sums.entry(line.product_id).or_insert(0) += line.quantity;
            } else {
                errors.push(Invalid::new(
                    format!("/lines/{index}/quantity"),
                    format!("must be 1 to {QUANTITY_MAX}, is {}", line.quantity),
                ));
            }
        }
        if errors.is_empty() {
            Ok(Self::from_sums(sums))
        } else {
            Err(errors)
        }
    }

    /// Lines that were summed before, as a message or a row carries them: a sum may exceed what one line may ask.
    ///
    /// # Errors
    /// What no sum of valid lines can be.
    pub fn parse_summed(lines: Vec<Line>) -> Result<Self, Invalid> {
        let sum_max = QUANTITY_MAX * 100;
        if lines.is_empty() || lines.len() > LINES_MAX {
            return Err(Invalid::new(
                "/lines",
                format!("must have 1 to {LINES_MAX} lines"),
            ));
        }
        let mut sums = BTreeMap::new();
        for line in lines {
            if !(1..=sum_max).contains(&line.quantity)
                || sums.insert(line.product_id, line.quantity).is_some()
            {
                return Err(Invalid::new(
                    "/lines",
                    "must name each product once, with a quantity above 0",
                ));
            }
        }
        Ok(Self::from_sums(sums))
    }

    fn from_sums(sums: BTreeMap<ProductId, i64>) -> Self {
        Self(
            sums.into_iter()
                .map(|(product_id, quantity)| Line {
                    product_id,
                    quantity,
                })
                .collect(),
        )
    }

    /// The lines, sorted by product.
    #[must_use]
    pub fn as_slice(&self) -> &[Line] {
        &self.0
    }
}

/// An order as accepted, before it is decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOrder {
    /// Derived from the key where there is one, otherwise drawn.
    pub id: OrderId,
    /// Who asked; idempotency keys are theirs alone.
    pub caller: String,
    /// The caller's name for this request.
    pub idempotency_key: Option<String>,
    /// What is ordered.
    pub lines: Lines,
    /// The caller's own remark, passed through.
    pub reference: Option<String>,
    /// When it was accepted.
    pub accepted_at: DateTime<Utc>,
}

/// Checks a reference.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_reference(reference: &str) -> Result<(), Invalid> {
    if reference.chars().count() > REFERENCE_CHARS_MAX {
        return Err(Invalid::new(
            "/reference",
            format!("must be at most {REFERENCE_CHARS_MAX} characters long"),
        ));
    }
    if reference.contains('\0') {
        return Err(Invalid::new("/reference", "must not contain U+0000"));
    }
    Ok(())
}

/// The id of the order that `caller` asks for with `key` and this body: the same request is the same order on every
/// path, also on one that cannot look it up, so that duplicates fall to the primary key. Each part goes in with its
/// length before it, so that no two requests share a name.
#[must_use]
pub fn derive_id(caller: &str, key: &str, lines: &Lines, reference: Option<&str>) -> OrderId {
    let mut name = Vec::with_capacity(256);
    let mut part = |bytes: &[u8]| {
        name.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        name.extend_from_slice(bytes);
    };
    part(caller.as_bytes());
    part(key.as_bytes());
    for line in lines.as_slice() {
        part(line.product_id.as_str().as_bytes());
        part(&line.quantity.to_be_bytes());
    }
    if let Some(reference) = reference {
        part(b"reference");
        part(reference.as_bytes());
    }
    OrderId(Uuid::new_v5(&ID_NAMESPACE, &name))
}

/// Where an order stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[schema(as = OrderStatus)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Accepted, not decided yet.
    Pending,
    /// Its stock is taken.
    Confirmed,
    /// It cannot be served.
    Rejected,
    /// Processing gave up; its message is in the dead-letter queue.
    Failed,
    /// Taken back; its stock is returned.
    Cancelled,
}

impl Status {
    /// Every status, in the order in which an order may come to them.
    pub const ALL: [Self; 5] = [
        Self::Pending,
        Self::Confirmed,
        Self::Rejected,
        Self::Failed,
        Self::Cancelled,
    ];

    /// As stored and as shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Confirmed => "confirmed",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Reads [`Status::as_str`] back.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "pending" => Self::Pending,
            "confirmed" => Self::Confirmed,
            "rejected" => Self::Rejected,
            "failed" => Self::Failed,
            "cancelled" => Self::Cancelled,
            _ => return None,
        })
    }
}

/// Why an order is rejected, failed or cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = OrderReason)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Reason {
    /// Fewer units are available than asked for.
    #[serde(rename_all = "camelCase")]
    InsufficientStock {
        /// The first product that falls short.
        product_id: ProductId,
        /// Units asked for.
        requested: i64,
        /// Units that were available, over all vendors.
        available: i64,
    },
    /// No vendor has ever listed it.
    #[serde(rename_all = "camelCase")]
    UnknownProduct {
        /// The first product that is unknown.
        product_id: ProductId,
    },
    /// Accepted while its idempotency key could not be looked up; it belongs to another request.
    IdempotencyConflict,
    /// A vendor had sold the goods elsewhere, and no other could serve them.
    #[serde(rename_all = "camelCase")]
    VendorRejected {
        /// The product that the vendor refused.
        product_id: ProductId,
    },
    /// Processing gave up, and an operator dropped the message.
    Dropped,
    /// Processing gave up.
    #[serde(rename_all = "camelCase")]
    ProcessingFailed {
        /// In a word: `retries_exhausted`, `invalid_message` or `crash_loop`. Its dead letter says more.
        error: String,
    },
}

impl Reason {
    /// As its caller may read it. Orders that failed long ago have kept the words of the server that refused them, with
    /// statements and all.
    #[must_use]
    pub fn for_caller(self) -> Self {
        match self {
            Self::ProcessingFailed { error } if !retry::CODES.contains(&error.as_str()) => {
                Self::ProcessingFailed {
                    error: "its dead letter says why".to_owned(),
                }
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(product: &str, quantity: i64) -> Line {
        Line {
            product_id: ProductId::parse(product).expect("a valid id"),
            quantity,
        }
    }

    fn lines(of: &[(&str, i64)]) -> Lines {
        Lines::parse(of.iter().map(|(p, q)| line(p, *q)).collect()).expect("valid lines")
    }

    #[test]
    fn lines_of_one_product_are_summed_and_sorted() {
        assert_eq!(
            lines(&[("p2", 1), ("p1", 5), ("p2", 2)]).as_slice(),
            [line("p1", 5), line("p2", 3)]
        );
    }

    #[test]
    fn every_bad_quantity_is_named() {
        let errors = Lines::parse(vec![line("p1", 0), line("p2", 1), line("p3", 1_000_001)])
            .expect_err("invalid");
        let fields: Vec<_> = errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(fields, ["/lines/0/quantity", "/lines/2/quantity"]);
        assert!(Lines::parse(vec![]).is_err());
        assert!(Lines::parse(vec![line("p1", 1); 101]).is_err());
    }

    #[test]
    fn the_id_is_the_request() {
        let id = |caller, key, lines: &Lines, reference| derive_id(caller, key, lines, reference);
        let a = lines(&[("p1", 1)]);
        assert_eq!(
            id("c", "k", &a, None),
            id("c", "k", &lines(&[("p1", 1)]), None)
        );
        for other in [
            id("c2", "k", &a, None),
            id("c", "k2", &a, None),
            id("ck", "", &a, None),
            id("c", "k", &lines(&[("p1", 2)]), None),
            id("c", "k", &lines(&[("p1", 1), ("p2", 1)]), None),
            id("c", "k", &a, Some("")),
        ] {
            assert_ne!(id("c", "k", &a, None), other);
        }
    }

    #[test]
    fn the_id_never_changes_between_versions() {
        let a = lines(&[("p1", 2)]);
        insta::assert_snapshot!(derive_id("local", "order-1", &a, Some("r")), @"089ac9cf-2b77-5621-b06d-cbca30a9bae7");
    }

    #[test]
    fn a_reason_reads_as_documented() {
        let reason = Reason::InsufficientStock {
            product_id: ProductId::parse("p1").expect("valid"),
            requested: 11,
            available: 10,
        };
        insta::assert_snapshot!(
            serde_json::to_string(&reason).expect("serializes"),
            @r#"{"code":"insufficient_stock","productId":"p1","requested":11,"available":10}"#
        );
    }
}
