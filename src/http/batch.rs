//! `/orders/batch`: many orders in one request, each by itself.

use std::collections::{BTreeMap, HashSet};

use actix_web::http::StatusCode;
use actix_web::http::header::RETRY_AFTER;
use actix_web::web::{Data, Payload};
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::body::{parse, read_json};
use super::orders::{IDEMPOTENCY_KEY, OrderRequest, OrderResponse, check_key, new_order};
use super::problem::{BUSY, Problem, ProblemBody, UNAVAILABLE};
use super::request_id::RequestId;
use super::{State, answer, auth};
use crate::app::accept::{self, Accepted};
use crate::app::orders;
use crate::domain::ids::{OrderId, ProductId};
use crate::domain::keys::Caller;
use crate::domain::object::Object;
use crate::domain::order::{Invalid, Line, NewOrder};

/// Orders of one request: as many as one transaction accepts.
const ORDERS_MAX: usize = 500;
/// Largest body of a request: 500 orders of a dozen lines each.
pub const BATCH_BODY_BYTES_MAX: usize = 1024 * 1024;

/// Orders, each by itself: one that is not valid, or not accepted, fails no other.
#[derive(Deserialize, ToSchema)]
#[schema(as = OrderBatchRequest)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchRequest {
    #[schema(value_type = Vec<BatchOrder>, min_items = 1, max_items = 500)]
    orders: Vec<Box<RawValue>>,
}

/// One of them.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct BatchOrder {
    /// Lines of the same product are summed.
    #[schema(value_type = Option<Vec<Line>>, min_items = 1, max_items = 100)]
    lines: Option<Vec<Object<Line>>>,
    #[schema(nullable = true)]
    product_id: Option<ProductId>,
    #[schema(minimum = 1, maximum = 1_000_000)]
    quantity: Option<i64>,
    /// Your own remark; it is given back wherever the order is shown.
    #[schema(max_length = 255, pattern = "^[^\\u0000]*$")]
    reference: Option<String>,
    /// As the header `Idempotency-Key`: 1 to 255 characters of printable ASCII.
    #[schema(min_length = 1, max_length = 255)]
    idempotency_key: Option<String>,
}

impl BatchOrder {
    fn parse(self, caller: &Caller) -> Result<NewOrder, Problem> {
        let key = self.idempotency_key;
        let problem = key.as_deref().and_then(|key| {
            // What no header could carry would be another order there.
            let is_printable = key.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
            match check_key(key) {
                Ok(()) if is_printable && key.trim() == key => None,
                Ok(()) => Some("must be printable ASCII, without blanks around it".to_owned()),
                Err(problem) => Some(problem),
            }
        });
        if let Some(problem) = problem {
            let invalid = Invalid::new("/idempotencyKey", problem);
            return Err(Problem::invalid_fields(vec![invalid]));
        }
        let request = OrderRequest {
            lines: self.lines,
            product_id: self.product_id,
            quantity: self.quantity,
            reference: self.reference,
        };
        let (lines, reference) = request.parse()?;
        Ok(new_order(caller, key, lines, reference))
    }
}

/// What has become of one order.
#[derive(Serialize, ToSchema)]
#[schema(as = OrderBatchResult)]
struct BatchResult<'a> {
    /// As `POST /orders` would have answered it: 202, or the problem's.
    status: u16,
    /// It had been accepted before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    replayed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    order: Option<&'a OrderResponse>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    problem: Option<ProblemBody<'a>>,
}

/// A result for each order, in their order.
#[derive(Serialize, ToSchema)]
#[schema(as = OrderBatchResponse)]
struct BatchResponse<'a> {
    /// Orders that were accepted, now or before.
    accepted: usize,
    /// Orders that were not.
    failed: usize,
    results: Vec<BatchResult<'a>>,
}

/// Place many orders
///
/// Up to 500 orders in a body of at most 1 MiB, each with a result of its own: one that is not valid, or not accepted, fails
/// no other. It is 202 if each was accepted, and 207 otherwise: look at each `status`. If none was accepted because neither
/// store takes orders now, it is 503. With an `idempotencyKey` for each order the whole may be repeated as it is.
#[utoipa::path(
    post, path = "/orders/batch", tag = "orders",
    request_body(content = BatchRequest, example = json!({"orders": [
        {"productId": "p1", "quantity": 1, "idempotencyKey": "import-1"},
        {"lines": [{"productId": "p2", "quantity": 3}], "reference": "cart 18", "idempotencyKey": "import-2"}]})),
    responses(
        (status = 202, description = "Each was accepted", body = BatchResponse<'_>, example = json!({"accepted": 1, "failed": 0, "results": [
            {"status": 202, "order": {"id": "01a21584-8706-763e-b5e8-dd1039028028", "status": "pending", "vendorSync": "none", "lines": [{"productId": "p1", "quantity": 1}], "updates": [], "acceptedAt": "2026-11-26T01:42:16.582834Z"}}]})),
        (status = 207, description = "Some were not accepted",
            headers(("Retry-After" = Option<i64>, description = "If some may be accepted later: seconds after which to try again")),
            body = BatchResponse<'_>, example = json!({"accepted": 0, "failed": 1, "results": [
                {"status": 422, "problem": {"type": "urn:stockctl:problem:validation_failed", "title": "The request is not valid", "status": 422,
                    "detail": "/orders/0/lines/0/quantity: must be 1 to 1000000, is 0", "instance": "urn:stockctl:request:9f1c3a52-6f0b-4a56-8d0e-1f1d7a1c2b3d",
                    "code": "validation_failed", "errors": [{"pointer": "/orders/0/lines/0/quantity", "detail": "must be 1 to 1000000, is 0"}]}}]})),
    )
)]
pub(super) async fn place_all(
    request: HttpRequest,
    payload: Payload,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let caller = auth::caller(&request)?;
    if request.headers().contains_key(IDEMPOTENCY_KEY) {
        // One for all would have to hold for each subset of them that was accepted.
        let detail = "is of one order: give each order of a batch an idempotencyKey of its own";
        return Err(Problem::invalid_parameter("Idempotency-Key", detail));
    }
    let body: BatchRequest = read_json(&request, payload, BATCH_BODY_BYTES_MAX).await?;
    let count = body.orders.len();
    if count == 0 || count > ORDERS_MAX {
        let problem = format!("must have 1 to {ORDERS_MAX} orders, has {count}");
        return Err(Problem::invalid_fields(vec![Invalid::new(
            "/orders", problem,
        )]));
    }
    auth::count_as(&request, count)?;
    let orders = body.orders.iter().enumerate().map(|(index, text)| {
        parse(text.get().as_bytes())
            .and_then(|order: BatchOrder| order.parse(&caller))
            .map_err(|problem| problem.within(&format!("/orders/{index}")))
    });
    let outcomes = accept_all(&state, orders.collect()).await;
    let replayed: Vec<OrderId> = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Ok((_, Accepted::Replayed(order))) => Some(order.request.id),
            _ => None,
        })
        .collect();
    // As they are now, all at one moment.
    let replayed = match replayed.as_slice() {
        [] => Ok(BTreeMap::new()),
        ids => orders::find_all(&state.context, ids)
            .await
            .map(|found| {
                let found = found.into_iter();
                found
                    .map(|of| (of.order.request.id, OrderResponse::from(of)))
                    .collect()
            })
            .map_err(Problem::from),
    };
    let id = request.extensions().get::<RequestId>().cloned();
    let outcomes = outcomes
        .into_iter()
        .map(|outcome| match outcome? {
            (order, Accepted::Replayed(_)) => {
                let replayed: &BTreeMap<OrderId, OrderResponse> =
                    replayed.as_ref().map_err(Clone::clone)?;
                let order = replayed
                    .get(&order.id)
                    .cloned()
                    .ok_or_else(Problem::internal)?;
                Ok((order, true))
            }
            (order, _) => Ok((OrderResponse::new(accept::pending(order), &[]), false)),
        })
        .map(|outcome: Outcome| {
            outcome.map_err(|problem| match &id {
                Some(id) => problem.of_request(id.clone()),
                None => problem,
            })
        })
        .collect::<Vec<_>>();
    respond(&request, &outcomes)
}

/// All ask at once, and so share one transaction, as requests of their own would. Those whose key an earlier one of the
/// batch has ask after it: who of two that ask at once comes first is left to chance.
async fn accept_all(
    state: &State,
    orders: Vec<Result<NewOrder, Problem>>,
) -> Vec<Result<(NewOrder, Accepted), Problem>> {
    let ask = async |(index, order): (usize, Result<NewOrder, Problem>)| {
        let accepted = async {
            let order = order?;
            let accepted = state.accept.accept(order.clone()).await?;
            Ok((order, accepted))
        };
        (index, accepted.await)
    };
    let mut keys = HashSet::new();
    let (first, repeated): (Vec<_>, Vec<_>) =
        orders.into_iter().enumerate().partition(|(_, order)| {
            let key = order
                .as_ref()
                .ok()
                .and_then(|order| order.idempotency_key.clone());
            key.is_none_or(|key| keys.insert(key))
        });
    let mut outcomes = join_all(first.into_iter().map(ask)).await;
    outcomes.extend(join_all(repeated.into_iter().map(ask)).await);
    outcomes.sort_unstable_by_key(|(index, _)| *index);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

/// An accepted order as it is shown, and whether it had been accepted before.
type Outcome = Result<(OrderResponse, bool), Problem>;

fn respond(request: &HttpRequest, outcomes: &[Outcome]) -> Result<HttpResponse, Problem> {
    let problems = || outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    let failed = problems().count();
    let accepted = outcomes.len() - failed;
    // Nothing at all was accepted, and the whole may be repeated: that is no success, whoever looks only at the status.
    let is_nothing = |problem: &Problem| [UNAVAILABLE, BUSY].contains(&problem.code());
    if accepted == 0
        && problems().all(is_nothing)
        && let Some(problem) = problems().next()
    {
        return Err(problem.clone());
    }
    let is_for_later = problems().any(|problem| problem.code().status == 503);
    let body = BatchResponse {
        accepted,
        failed,
        results: outcomes
            .iter()
            .map(|outcome| match outcome {
                Ok((order, replayed)) => BatchResult {
                    status: 202,
                    replayed: *replayed,
                    order: Some(order),
                    problem: None,
                },
                Err(problem) => BatchResult {
                    status: problem.code().status,
                    replayed: false,
                    order: None,
                    problem: Some(problem.body()),
                },
            })
            .collect(),
    };
    let mut answer = answer::json(request, &body)?;
    *answer.status_mut() = if failed == 0 {
        StatusCode::ACCEPTED
    } else {
        StatusCode::MULTI_STATUS
    };
    if is_for_later {
        answer.headers_mut().insert(
            RETRY_AFTER,
            actix_web::http::header::HeaderValue::from_static("1"),
        );
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_the_body_a_key_that_is_taken_could_stand_in_a_header(
            bytes: Vec<u8>,
            key in "\\PC{0,20}|[ -~]{0,300}",
            quantity in -1_i64..3,
        ) {
            let _ = parse::<BatchRequest>(&bytes);
            let order = serde_json::json!({ "productId": "p1", "quantity": quantity, "idempotencyKey": key });
            let body = serde_json::json!({ "orders": [order] }).to_string();
            let batch: BatchRequest = parse(body.as_bytes()).expect("one order");
            prop_assert_eq!(batch.orders.len(), 1);
            let parsed: Result<BatchOrder, Problem> = parse(batch.orders[0].get().as_bytes());
            if let Ok(order) = parsed.and_then(|order| order.parse(&Caller::local())) {
                prop_assert!(quantity >= 1);
                prop_assert!((1..=255).contains(&key.len()) && key.trim() == key);
                prop_assert!(key.bytes().all(|byte| (0x20..=0x7e).contains(&byte)));
                prop_assert_eq!(order.idempotency_key, Some(key));
            }
        }
    }
}
