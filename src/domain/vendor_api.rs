//! What a vendor's HTTP API is asked and answers: `POST …/stock-updates`. Both sides of it share these.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::{ProductId, UpdateId};
use super::ledger;
use super::messages::UpdateItem;
use super::object;
use super::order::{Invalid, QUANTITY_MAX};
use super::update::Outcome;

/// Most updates of one request.
pub const UPDATES_MAX: usize = 1000;
/// Most units of one update: an order's lines of one product, summed.
pub const DELTA_MAX: i64 = QUANTITY_MAX * 100;
/// Who sent an update that names no sender.
pub const UNNAMED_SOURCE: &str = "unnamed";
/// The longest name of a sender in bytes.
pub const SOURCE_BYTES_MAX: usize = 200;

/// A request for changes of a vendor's stock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = StockUpdatesRequest)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdatesRequest {
    /// The installation that sends them; several may share a vendor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 200, pattern = "^[^\\u0000]*$")]
    pub source: Option<String>,
    /// The changes; each id is applied at most once.
    #[serde(deserialize_with = "object::list")]
    #[schema(min_items = 1, max_items = 1000)]
    pub updates: Vec<UpdateItem>,
}

impl UpdatesRequest {
    /// Checks the changes.
    ///
    /// # Errors
    /// All that is wrong, each with a pointer to its field.
    pub fn parse(self) -> Result<(String, Vec<ledger::Request>), Vec<Invalid>> {
        let mut errors = Vec::new();
        if self.updates.is_empty() || self.updates.len() > UPDATES_MAX {
            errors.push(Invalid::new(
                "/updates",
                format!("must have 1 to {UPDATES_MAX} updates"),
            ));
        }
        let source = self.source.unwrap_or_else(|| UNNAMED_SOURCE.to_owned());
        if source.is_empty() || source.len() > SOURCE_BYTES_MAX || source.contains('\0') {
            let problem = format!("must be 1 to {SOURCE_BYTES_MAX} bytes long, without U+0000");
            errors.push(Invalid::new("/source", problem));
        }
        for (index, update) in self.updates.iter().enumerate() {
            // By its range: the absolute value of the lowest number does not exist.
            if update.delta == 0 || !(-DELTA_MAX..=DELTA_MAX).contains(&update.delta) {
                errors.push(Invalid::new(
                    format!("/updates/{index}/delta"),
                    format!(
                        "must be -{DELTA_MAX} to {DELTA_MAX} and not 0, is {}",
                        update.delta
                    ),
                ));
            } else if (update.delta > 0) != update.reverses.is_some() {
                errors.push(Invalid::new(
                    format!("/updates/{index}/reverses"),
                    "must name the take that a return (delta above 0) gives back; a take (below 0) has none",
                ));
            } else if update.reverses == Some(update.id) {
                errors.push(Invalid::new(
                    format!("/updates/{index}/reverses"),
                    "must be another update",
                ));
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let requests = self
            .updates
            .into_iter()
            .map(|update| ledger::Request {
                id: update.id,
                product_id: update.product_id,
                delta: update.delta,
                reverses: update.reverses,
            })
            .collect();
        Ok((source, requests))
    }
}

/// The answer: a result for each update, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = StockUpdatesResponse)]
#[serde(rename_all = "camelCase")]
pub struct UpdatesResponse {
    /// One for each update.
    pub results: Vec<UpdateResult>,
}

/// What has become of one update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = StockUpdateResult)]
#[serde(rename_all = "camelCase")]
pub struct UpdateResult {
    /// Which update.
    pub id: UpdateId,
    /// What the ledger holds for it, or that it was refused.
    pub outcome: ResultOutcome,
    /// Why, where it is not applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The product's stock after it; absent when the vendor does not list the product.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stock: Option<i64>,
}

/// An outcome, or a refusal that leaves no trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ResultOutcome {
    /// The stock was changed, now or by an earlier request with this id.
    Applied,
    /// Recorded as refused: there is not enough stock, or no such product.
    Rejected,
    /// Recorded as without effect: the take and its return close each other.
    Void,
    /// The id is known with another content; nothing was recorded.
    Conflict,
}

impl ResultOutcome {
    /// What the ledger holds, if anything.
    #[must_use]
    pub fn recorded(self) -> Option<Outcome> {
        match self {
            Self::Applied => Some(Outcome::Applied),
            Self::Rejected => Some(Outcome::Rejected),
            Self::Void => Some(Outcome::Void),
            Self::Conflict => None,
        }
    }
}

/// Handles updates against a loaded ledger, in order.
pub fn handle(ledger: &mut ledger::Ledger, requests: &[ledger::Request]) -> UpdatesResponse {
    let results = requests
        .iter()
        .map(|request| {
            let reply = ledger.handle(request);
            let (outcome, reason) = match reply {
                ledger::Reply::Recorded(Outcome::Applied) => (ResultOutcome::Applied, None),
                ledger::Reply::Recorded(Outcome::Rejected) if ledger.lists(&request.product_id) => {
                    (ResultOutcome::Rejected, Some("insufficient_stock"))
                }
                ledger::Reply::Recorded(Outcome::Rejected) => {
                    (ResultOutcome::Rejected, Some("unknown_product"))
                }
                ledger::Reply::Recorded(Outcome::Void) => {
                    (ResultOutcome::Void, Some("returned_before_taken"))
                }
                ledger::Reply::Conflict => {
                    (ResultOutcome::Conflict, Some("id_used_for_another_update"))
                }
            };
            UpdateResult {
                id: request.id,
                outcome,
                reason: reason.map(str::to_owned),
                stock: stock_of(ledger, &request.product_id),
            }
        })
        .collect();
    UpdatesResponse { results }
}

fn stock_of(ledger: &ledger::Ledger, product: &ProductId) -> Option<i64> {
    ledger.lists(product).then(|| ledger.stock(product))
}

/// What a `Retry-After` header asks for: a number of seconds, or a time. One that is over, or none at all, asks for
/// nothing.
#[must_use]
pub fn retry_after(header: &str, now: DateTime<Utc>) -> Option<Duration> {
    let header = header.trim();
    let wait = match header.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        // The dates of HTTP are those of mail, always in GMT.
        Err(_) => (DateTime::parse_from_rfc2822(header).ok()?.to_utc() - now)
            .to_std()
            .ok()?,
    };
    (!wait.is_zero()).then_some(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vendor_may_say_when_to_come_again_in_seconds_or_by_a_date() {
        let now = DateTime::parse_from_rfc3339("2026-11-25T10:00:00Z")
            .expect("a time")
            .to_utc();
        let cases = [
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("Wed, 25 Nov 2026 10:01:30 GMT", Some(90)),
            ("Wed, 25 Nov 2026 09:59:59 GMT", None),
            ("0", None),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
            ("99999999999999999999999999", None),
        ];
        for (header, seconds) in cases {
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(retry_after(header, now), expected, "{header:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_vendor_says_of_when_to_come_again_it_is_a_time_ahead(
            header in "[0-9]{1,25}|[A-Z][a-z]{2}, [0-9]{1,2} [A-Z][a-z]{2} [0-9]{2,6} [0-9:]{8} (GMT|[+-][0-9]{4})|\\PC{0,30}",
        ) {
            let now = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
            if let Some(wait) = retry_after(&header, now) {
                proptest::prop_assert!(!wait.is_zero());
            }
        }

        #[test]
        fn whatever_updates_are_asked_for_those_that_are_taken_are_within_the_bounds(
            source in proptest::option::of("[a-z\u{0}]{0,201}"),
            updates in proptest::collection::vec(
                (0_u128..3, -2_i64..3, proptest::option::of(0_u128..3), proptest::option::of(proptest::num::i64::ANY)),
                0..4,
            ),
        ) {
            let updates: Vec<UpdateItem> = updates
                .into_iter()
                .map(|(id, delta, reverses, other)| UpdateItem {
                    id: UpdateId(uuid::Uuid::from_u128(id)),
                    product_id: ProductId::parse("p1").expect("valid"),
                    delta: other.unwrap_or(delta),
                    reverses: reverses.map(|id| UpdateId(uuid::Uuid::from_u128(id))),
                })
                .collect();
            match (UpdatesRequest { source, updates: updates.clone() }).parse() {
                Ok((source, requests)) => {
                    proptest::prop_assert!((1..=SOURCE_BYTES_MAX).contains(&source.len()) && !source.contains('\0'));
                    proptest::prop_assert_eq!(requests.len(), updates.len());
                    for request in requests {
                        proptest::prop_assert!(request.delta != 0 && (-DELTA_MAX..=DELTA_MAX).contains(&request.delta));
                        proptest::prop_assert_eq!(request.reverses.is_some(), request.delta > 0);
                        proptest::prop_assert_ne!(request.reverses, Some(request.id));
                    }
                }
                Err(errors) => proptest::prop_assert!(errors.iter().all(|error| error.field.starts_with('/'))),
            }
        }
    }
}
