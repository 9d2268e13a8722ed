//! `/orders`: place, show, list and cancel.

use actix_web::http::StatusCode;
use actix_web::http::header::LOCATION;
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::body::{Nothing, read_json, read_nothing};
use super::prefer::Wait;
use super::problem::{NOT_YET_VISIBLE, Problem};
use super::query::read_query;
use super::{BODY_BYTES_MAX, State, cursor_micros, detached, limit};
use super::{answer, auth};
use crate::app::accept::{self, Accepted};
use crate::app::orders::{self, WithUpdates};
use crate::app::outcome::Waited;
use crate::app::vouch::{self, Whereabouts};
use crate::app::{Error, Kind, cancel as use_case};
use crate::db::orders::{Filter, Order, Place};
use crate::db::updates::Shown;
use crate::domain::history::{Entry, Timed, Times, history};
use crate::domain::ids::{OrderId, ProductId, UpdateId, VendorId};
use crate::domain::keys::{Caller, LOCAL_CALLER};
use crate::domain::object::Object;
use crate::domain::order::{
    IDEMPOTENCY_KEY_CHARS_MAX, Invalid, Line, Lines, NewOrder, Reason, Status, check_reference,
    derive_id,
};
use crate::domain::update::State as UpdateState;

/// What is ordered: `lines`, or `productId` and `quantity` for one product.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct OrderRequest {
    /// Lines of the same product are summed.
    #[schema(value_type = Option<Vec<Line>>, min_items = 1, max_items = 100)]
    pub(super) lines: Option<Vec<Object<Line>>>,
    #[schema(nullable = true)]
    pub(super) product_id: Option<ProductId>,
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub(super) quantity: Option<i64>,
    /// Your own remark; it is given back wherever the order is shown.
    #[schema(max_length = 255, pattern = "^[^\\u0000]*$")]
    pub(super) reference: Option<String>,
}

impl OrderRequest {
    pub(super) fn parse(self) -> Result<(Lines, Option<String>), Problem> {
        let lines = match (self.lines, self.product_id, self.quantity) {
            (Some(lines), None, None) => {
                Lines::parse(lines.into_iter().map(|line| line.0).collect())
            }
            (None, Some(product_id), Some(quantity)) => Lines::parse(vec![Line {
                product_id,
                quantity,
            }])
            // The short form has no lines to point into.
            .map_err(|errors| {
                errors
                    .into_iter()
                    .map(|e| Invalid::new("/quantity", e.problem))
                    .collect()
            }),
            (None, Some(_), None) => Err(vec![Invalid::new("/quantity", "is missing")]),
            (None, None, Some(_)) => Err(vec![Invalid::new("/productId", "is missing")]),
            (None, None, None) => Err(vec![Invalid::new("/lines", "is missing")]),
            (Some(_), _, _) => Err(vec![Invalid::new(
                "/lines",
                "cannot be given beside productId and quantity",
            )]),
        };
        let mut errors = Vec::new();
        if let Some(Err(error)) = self.reference.as_deref().map(check_reference) {
            errors.push(error);
        }
        match lines {
            Ok(lines) if errors.is_empty() => Ok((lines, self.reference)),
            Ok(_) => Err(Problem::invalid_fields(errors)),
            Err(mut of_lines) => {
                of_lines.extend(errors);
                Err(Problem::invalid_fields(of_lines))
            }
        }
    }
}

/// The header by which a caller names a request.
pub(super) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The value of `Idempotency-Key`, quoted as a structured-field string or bare.
pub(super) fn idempotency_key(request: &HttpRequest) -> Result<Option<String>, Problem> {
    let mut values = request.headers().get_all(IDEMPOTENCY_KEY);
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let invalid = |detail: String| Problem::invalid_parameter("Idempotency-Key", detail);
    if values.next().is_some() {
        return Err(invalid("must be given once".into()));
    }
    let text = value
        .to_str()
        .ok()
        // Tabs pass for text in a header.
        .filter(|text| !text.contains('\t'))
        .ok_or_else(|| invalid("must be printable ASCII".into()))?
        .trim();
    let key = match text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
    {
        Some(quoted) => quoted.replace("\\\"", "\"").replace("\\\\", "\\"),
        None => text.to_owned(),
    };
    check_key(&key).map_err(invalid)?;
    Ok(Some(key))
}

/// Checks the length of an idempotency key, wherever it stood.
pub(super) fn check_key(key: &str) -> Result<(), String> {
    let length = key.chars().count();
    if (1..=IDEMPOTENCY_KEY_CHARS_MAX).contains(&length) {
        Ok(())
    } else {
        Err(format!(
            "must be 1 to {IDEMPOTENCY_KEY_CHARS_MAX} characters long, has {length}"
        ))
    }
}

/// An order as it is asked for now.
pub(super) fn new_order(
    caller: &Caller,
    key: Option<String>,
    lines: Lines,
    reference: Option<String>,
) -> NewOrder {
    let id = match &key {
        Some(key) => derive_id(&caller.name, key, &lines, reference.as_deref()),
        None => OrderId(Uuid::now_v7()),
    };
    NewOrder {
        id,
        caller: caller.name.clone(),
        idempotency_key: key,
        lines,
        reference,
        accepted_at: accept::now(),
    }
}

/// Place an order
///
/// It is accepted durably, and decided within moments: whole, or not at all. With an `Idempotency-Key` the same request is
/// the same order, however often it comes; without one, each request is a new order.
#[utoipa::path(
    post, path = "/orders", tag = "orders",
    params(("Idempotency-Key" = Option<String>, Header,
        description = "Your name for this request: 1 to 255 characters of printable ASCII, bare or in quotes",
        min_length = 1, max_length = 255, example = "checkout-4711"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: answer once the order is decided or failed, or after N seconds, 0 to 30", example = "wait=5")),
    request_body(content = OrderRequest, examples(
        ("several products" = (value = json!({"lines": [{"productId": "p1", "quantity": 2}, {"productId": "p3", "quantity": 1}], "reference": "cart 17"}))),
        ("one product" = (value = json!({"productId": "p2", "quantity": 18}))),
    )),
    responses((status = 200, description = "With `Prefer: wait=N`: accepted, and decided or failed", body = OrderResponse,
        headers(
            ("Location" = String, description = "Where the order is: /orders/{id}"),
            ("Idempotent-Replayed" = Option<String>, description = "`true` if this order had been accepted before"),
            ("Preference-Applied" = String, description = "`wait=N`"),
        ),
        example = json!({"id": "01a21584-8706-763e-b5e8-dd1039028028", "status": "confirmed", "vendorSync": "pending", "lines": [{"productId": "p2", "quantity": 18}],
            "updates": [{"id": "01a21584-878a-705c-8fe2-9b7561195789", "vendorId": "vendorA", "productId": "p2", "delta": -18, "state": "open"}],
            "acceptedAt": "2026-11-26T01:42:16.582834Z", "decidedAt": "2026-11-26T01:42:16.696737Z",
            "history": [{"at": "2026-11-26T01:42:16.582834Z", "event": "accepted"}, {"at": "2026-11-26T01:42:16.696737Z", "event": "confirmed", "updates": ["01a21584-878a-705c-8fe2-9b7561195789"]}]})),
        (status = 202, description = "Accepted. It is not decided yet, unless it had been accepted before: then it is shown as it is now", body = OrderResponse,
        headers(
            ("Location" = String, description = "Where the order is: /orders/{id}"),
            ("Idempotent-Replayed" = Option<String>, description = "`true` if this order had been accepted before"),
            ("Preference-Applied" = Option<String>, description = "`wait=N`, if it was waited for"),
        ), example = json!({"id": "01a21584-8706-763e-b5e8-dd1039028028", "status": "pending", "vendorSync": "none", "lines": [{"productId": "p2", "quantity": 18}], "updates": [], "acceptedAt": "2026-11-26T01:42:16.582834Z"})))
)]
pub(super) async fn place(
    request: HttpRequest,
    payload: Payload,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let caller = auth::caller(&request)?;
    let key = idempotency_key(&request)?;
    let wait = Wait::of(request.headers())?;
    let body: OrderRequest = read_json(&request, payload, BODY_BYTES_MAX).await?;
    let (lines, reference) = body.parse()?;
    let order = new_order(&caller, key, lines, reference);
    let id = order.id;
    let accepted = state.accept.accept(order.clone()).await?;
    let is_replayed = matches!(accepted, Accepted::Replayed(_));
    // Only what is in PostgreSQL can be waited for.
    let wait = wait.filter(|_| !matches!(accepted, Accepted::ThroughBroker));
    let waited = match wait {
        Some(wait) if accepted.is_decided() => Some((wait, Waited::Decided)),
        Some(wait) => Some((wait, state.outcomes.wait(&caller, id, wait.until()).await)),
        None => None,
    };
    let (mut response, body) = match (waited, accepted) {
        // With what has become of it, if that can be read; it is accepted, whatever happens to the reading.
        (Some((_, Waited::Decided)), _) => match find(&state, id, &caller).await {
            Ok(order) => (HttpResponse::Ok(), order),
            Err(_) => (
                HttpResponse::Accepted(),
                OrderResponse::new(accept::pending(order), &[]),
            ),
        },
        (_, Accepted::Replayed(order)) => {
            // As it is now: with what has been taken for it, which was not read when it was found.
            let now = orders::find_all(&state.context, &[id]).await?.pop();
            let order = now.map_or_else(|| OrderResponse::new(*order, &[]), OrderResponse::from);
            (HttpResponse::Accepted(), order)
        }
        (_, Accepted::New | Accepted::ThroughBroker) => (
            HttpResponse::Accepted(),
            OrderResponse::new(accept::pending(order), &[]),
        ),
    };
    response.insert_header((LOCATION, format!("/orders/{id}")));
    if is_replayed {
        response.insert_header(("Idempotent-Replayed", "true"));
    }
    let mut response = response.json(body);
    if let Some((wait, Waited::Decided | Waited::InVain)) = waited {
        wait.applied(&mut response);
    }
    Ok(response)
}

/// One order
///
/// As it stands, with its history.
#[utoipa::path(
    get, path = "/orders/{id}", tag = "orders",
    params(("id" = OrderId, Path, description = "The order's id"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: answer once the order is decided or failed, or after N seconds, 0 to 30", example = "wait=5")),
    responses((status = 202, description = "With `Prefer: wait=N`: it is pending still", body = OrderResponse,
        headers(("Preference-Applied" = Option<String>, description = "`wait=N`, if it was waited for")),
        example = json!({"id": "01a21584-8706-763e-b5e8-dd1039028028", "status": "pending", "vendorSync": "none", "lines": [{"productId": "p2", "quantity": 18}], "updates": [],
            "acceptedAt": "2026-11-26T01:42:16.582834Z", "history": [{"at": "2026-11-26T01:42:16.582834Z", "event": "accepted"}]})),
        (status = 200, description = "The order",
        headers(("Preference-Applied" = Option<String>, description = "`wait=N`, if that was asked for")), body = OrderResponse, example = json!({
        "id": "01a21584-8706-763e-b5e8-dd1039028028", "status": "confirmed", "vendorSync": "done",
        "lines": [{"productId": "p2", "quantity": 18}],
        "updates": [{"id": "01a21584-878a-705c-8fe2-9b7561195789", "vendorId": "vendorA", "productId": "p2", "delta": -18, "state": "acknowledged"}],
        "acceptedAt": "2026-11-26T01:42:16.582834Z", "decidedAt": "2026-11-26T01:42:16.696737Z",
        "history": [
            {"at": "2026-11-26T01:42:16.582834Z", "event": "accepted"},
            {"at": "2026-11-26T01:42:16.696737Z", "event": "confirmed", "updates": ["01a21584-878a-705c-8fe2-9b7561195789"]},
            {"at": "2026-11-26T01:42:16.908346Z", "event": "pushed", "vendorId": "vendorA", "outcome": "applied", "updates": ["01a21584-878a-705c-8fe2-9b7561195789"]}
        ]})))
)]
pub(super) async fn show(
    request: HttpRequest,
    id: Path<String>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let caller = auth::caller(&request)?;
    let id = order_id(&id)?;
    let wait = Wait::of(request.headers())?;
    let mut order = find(&state, id, &caller).await?;
    let Some(wait) = wait else {
        return answer::json(&request, &order);
    };
    let mut is_applied = true;
    if order.status == Status::Pending {
        match state.outcomes.wait(&caller, id, wait.until()).await {
            Waited::Decided => order = find(&state, id, &caller).await?,
            Waited::InVain => {}
            Waited::NotAtAll => is_applied = false,
        }
    }
    let mut answer = answer::json(&request, &order)?;
    if order.status == Status::Pending {
        *answer.status_mut() = StatusCode::ACCEPTED;
    }
    if is_applied {
        wait.applied(&mut answer);
    }
    Ok(answer)
}

fn order_id(text: &str) -> Result<OrderId, Problem> {
    OrderId::parse(text).ok_or_else(|| {
        Problem::not_found("no order can have that id: it is not a UUID with hyphens")
    })
}

/// Another caller's order is as unknown as one that nobody has placed.
async fn find(state: &State, id: OrderId, caller: &Caller) -> Result<OrderResponse, Problem> {
    match look_up(state, id, caller).await {
        Ok(Some(order)) => return Ok(order),
        Ok(None) => expect_arrived(state, id).await?,
        Err(error) => return Err(unless_awaited(state, id, error)),
    }
    match look_up(state, id, caller).await {
        Ok(Some(order)) => Ok(order),
        Ok(None) => Err(unknown(id)),
        Err(error) => Err(unless_awaited(state, id, error)),
    }
}

/// Of an order that was not found: an error, unless it has come in meanwhile.
async fn expect_arrived(state: &State, id: OrderId) -> Result<(), Problem> {
    match vouch::find_out(&state.context, state.accept.voucher(), id).await {
        Ok(Whereabouts::Arrived) => Ok(()),
        Ok(Whereabouts::Unknown) => Err(unknown(id)),
        Ok(Whereabouts::OnItsWay) => Err(not_yet_visible(id)),
        Err(error) => Err(unless_awaited(state, id, error)),
    }
}

/// While PostgreSQL is down, an order that only the broker has would not be there either if it were up.
fn unless_awaited(state: &State, id: OrderId, error: Error) -> Problem {
    if error.kind() == Kind::Unavailable && state.accept.voucher().awaits(id) {
        not_yet_visible(id)
    } else {
        error.into()
    }
}

fn unknown(id: OrderId) -> Problem {
    Problem::not_found(format!("there is no order {id}"))
}

async fn look_up(
    state: &State,
    id: OrderId,
    caller: &Caller,
) -> Result<Option<OrderResponse>, Error> {
    let found = orders::find(&state.context, id, caller).await?;
    Ok(found.map(|(found, events)| {
        let order = &found.order;
        let times = Times {
            accepted_at: order.request.accepted_at,
            decided_at: order.decided_at,
            cancelled_at: order.cancelled_at,
        };
        let timed: Vec<Timed> = found.updates.iter().map(|of| of.timed.clone()).collect();
        let history = history(order.status, times, &timed, events);
        OrderResponse {
            history: Some(history),
            ..found.into()
        }
    }))
}

fn not_yet_visible(id: OrderId) -> Problem {
    Problem::new(
        NOT_YET_VISIBLE,
        format!("order {id} was accepted, or may have been, while PostgreSQL was down"),
    )
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListQuery {
    /// Only orders that stand so.
    status: Option<Status>,
    /// Only orders with a line of this product.
    product_id: Option<ProductId>,
    /// Items of one page.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<i64>,
    /// The `nextCursor` of the page before.
    cursor: Option<String>,
}

/// A page of orders.
#[derive(Serialize, ToSchema)]
#[schema(as = OrderPage)]
#[serde(rename_all = "camelCase")]
struct ListResponse {
    /// Without their histories.
    orders: Vec<OrderResponse>,
    /// Where the next page begins, if there may be one.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// Orders, the newest first
///
/// With a filter, a page reads the newest 100 000 orders at most: it may be short or empty, and `nextCursor` goes on
/// behind them.
#[utoipa::path(
    get, path = "/orders", tag = "orders", params(ListQuery),
    responses((status = 200, description = "A page",
        headers(("Link" = Option<String>, description = "`<…>; rel=\"next\"`, if there may be a next page")),
        body = ListResponse, example = json!({
        "orders": [{"id": "01a21584-8b64-7602-b493-dd1c7fadafdb", "status": "rejected",
            "reason": {"code": "insufficient_stock", "productId": "p1", "requested": 11, "available": 10}, "vendorSync": "none",
            "lines": [{"productId": "p1", "quantity": 11}], "updates": [],
            "acceptedAt": "2026-11-26T01:42:17.700159Z", "decidedAt": "2026-11-26T01:42:17.720829Z"}],
        "nextCursor": null})))
)]
pub(super) async fn list(
    request: HttpRequest,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let caller = auth::caller(&request)?;
    let query: ListQuery = read_query(&request)?;
    let limit = limit(query.limit)?;
    let filter = Filter {
        status: query.status,
        product_id: query.product_id,
        caller: caller.only_its_own().map(str::to_owned),
        after: query.cursor.as_deref().map(decode_cursor).transpose()?,
    };
    let page = orders::list(&state.context, &filter, limit).await?;
    let list = ListResponse {
        orders: page.orders.into_iter().map(OrderResponse::from).collect(),
        next_cursor: page.next.map(encode_cursor),
    };
    let mut answer = answer::json(&request, &list)?;
    answer::link_next(&request, &mut answer, list.next_cursor.as_deref());
    Ok(answer)
}

fn encode_cursor((at, id): Place) -> String {
    format!("{}.{}", at.timestamp_micros(), id.0.simple())
}

fn decode_cursor(text: &str) -> Result<Place, Problem> {
    text.split_once('.')
        .and_then(|(micros, id)| {
            let at = DateTime::from_timestamp_micros(cursor_micros(micros)?)?;
            Some((at, OrderId(Uuid::try_parse(id).ok()?)))
        })
        // Spelt as we spell it.
        .filter(|cursor| encode_cursor(*cursor) == text)
        .ok_or_else(|| {
            Problem::invalid_parameter("cursor", "must be a nextCursor of an earlier answer")
        })
}

/// Cancel an order
///
/// A pending, failed or confirmed order is taken back whole, and its stock is returned. One that is cancelled stays so, and
/// is answered the same: it is safe to repeat.
#[utoipa::path(
    post, path = "/orders/{id}/cancel", tag = "orders",
    params(("id" = OrderId, Path, description = "The order's id")),
    request_body(content = Nothing, description = "None, or an empty object", example = json!({})),
    responses((status = 200, description = "Cancelled", body = OrderResponse, example = json!({
        "id": "01a21584-8706-763e-b5e8-dd1039028028", "status": "cancelled", "vendorSync": "none",
        "lines": [{"productId": "p2", "quantity": 18}], "updates": [],
        "acceptedAt": "2026-11-26T01:42:16.582834Z", "cancelledAt": "2026-11-26T01:42:16.696737Z",
        "history": [{"at": "2026-11-26T01:42:16.582834Z", "event": "accepted"}, {"at": "2026-11-26T01:42:16.696737Z", "event": "cancelled", "updates": []}]})))
)]
pub(super) async fn cancel(
    request: HttpRequest,
    payload: Payload,
    id: Path<String>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let caller = auth::caller(&request)?;
    let id = order_id(&id)?;
    read_nothing(&request, payload).await?;
    let cancel = || {
        let (context, caller) = (state.context.clone(), caller.clone());
        detached(async move { use_case::cancel(&context, id, &caller, Utc::now()).await })
    };
    let mut cancelled = cancel().await;
    if let Err(Error::Missing(_)) = cancelled {
        expect_arrived(&state, id).await?;
        cancelled = cancel().await;
    }
    match cancelled {
        Ok(waiting) => state.relay.hand_over(waiting),
        Err(error) => return Err(unless_awaited(&state, id, error)),
    }
    Ok(HttpResponse::Ok().json(find(&state, id, &caller).await?))
}

/// How far the vendors have been told of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum VendorSync {
    None,
    Pending,
    Done,
    Failed,
}

/// An order.
#[derive(Clone, Serialize, ToSchema)]
#[schema(as = Order)]
#[serde(rename_all = "camelCase")]
pub(super) struct OrderResponse {
    id: OrderId,
    /// Whose it is; left out where it was placed without a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    caller: Option<String>,
    status: Status,
    /// Why it is rejected, failed or cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<Reason>,
    vendor_sync: VendorSync,
    /// Sorted by product, each once.
    lines: Lines,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reference: Option<String>,
    /// What was taken where, and returned.
    updates: Vec<UpdateResponse>,
    accepted_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    decided_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    cancelled_at: Option<DateTime<Utc>>,
    /// What happened, oldest first; only where one order is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    history: Option<Vec<Entry>>,
}

/// One change of one product's stock at one vendor.
#[derive(Clone, Serialize, ToSchema)]
#[schema(as = OrderUpdate)]
#[serde(rename_all = "camelCase")]
struct UpdateResponse {
    id: UpdateId,
    vendor_id: VendorId,
    product_id: ProductId,
    /// Units; negative takes, positive returns.
    delta: i64,
    /// `open`, until the vendor has answered `acknowledged`, `rejected` or `void`; `applied` once a sync has seen it there.
    state: UpdateState,
    /// The take that a return gives back.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reverses: Option<UpdateId>,
}

impl From<WithUpdates> for OrderResponse {
    fn from(read: WithUpdates) -> Self {
        Self::new(read.order, &read.updates)
    }
}

impl OrderResponse {
    pub(super) fn new(order: Order, updates: &[Shown]) -> Self {
        let vendor_sync = if updates.is_empty() {
            VendorSync::None
        } else if updates.iter().any(|update| update.dead) {
            VendorSync::Failed
        } else if updates
            .iter()
            .any(|shown| shown.timed.update.state == UpdateState::Open)
        {
            VendorSync::Pending
        } else {
            VendorSync::Done
        };
        Self {
            id: order.request.id,
            caller: Some(order.request.caller).filter(|caller| caller != LOCAL_CALLER),
            status: order.status,
            reason: order.reason.map(Reason::for_caller),
            vendor_sync,
            lines: order.request.lines,
            reference: order.request.reference,
            updates: updates
                .iter()
                .map(|shown| &shown.timed.update)
                .map(|update| UpdateResponse {
                    id: update.id,
                    vendor_id: update.vendor_id.clone(),
                    product_id: update.product_id.clone(),
                    delta: update.delta,
                    state: update.state,
                    reverses: update.reverses,
                })
                .collect(),
            accepted_at: order.request.accepted_at,
            decided_at: order.decided_at,
            cancelled_at: order.cancelled_at,
            history: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;
    use proptest::prelude::*;

    use super::super::body::parse;
    use super::super::problem::{INVALID_PARAMETER, MALFORMED_JSON, VALIDATION_FAILED};
    use super::*;

    /// Bytes, and what looks like an order but for a place or two.
    fn bodies() -> impl Strategy<Value = Vec<u8>> {
        let value = prop_oneof![
            "[0-9.eE+-]{1,9}",
            "\"[^\"\\\\]{0,20}\"",
            (-2_i64..1_000_002).prop_map(|number| number.to_string()),
            Just("null".to_owned()),
        ];
        let pair = (value.clone(), value.clone());
        let line = pair.prop_map(|(product, quantity)| {
            format!(r#"{{"productId":{product},"quantity":{quantity}}}"#)
        });
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..60),
            line.clone().prop_map(String::into_bytes),
            (proptest::collection::vec(line, 0..4), value).prop_map(|(lines, reference)| {
                format!(
                    r#"{{"lines":[{}],"reference":{reference}}}"#,
                    lines.join(",")
                )
                .into_bytes()
            }),
        ]
    }

    proptest! {
        #[test]
        fn whatever_the_body_an_order_that_is_taken_is_within_the_limits(body in bodies()) {
            match parse::<OrderRequest>(&body).and_then(OrderRequest::parse) {
                Ok((lines, reference)) => {
                    let lines = lines.as_slice();
                    prop_assert!((1..=100).contains(&lines.len()));
                    prop_assert!(lines.iter().all(|line| line.quantity >= 1));
                    prop_assert!(lines.is_sorted_by(|a, b| a.product_id < b.product_id));
                    let reference = reference.unwrap_or_default();
                    prop_assert!(reference.chars().count() <= 255 && !reference.contains('\0'));
                }
                Err(problem) => prop_assert!([MALFORMED_JSON, VALIDATION_FAILED].contains(&problem.code()), "{problem}"),
            }
        }

        #[test]
        fn whatever_the_key_one_that_is_taken_is_printable_and_not_long(
            value in prop_oneof![proptest::collection::vec(any::<u8>(), 0..300), "\"?[ -~]{0,258}\"?".prop_map(String::into_bytes)],
        ) {
            let request = TestRequest::default();
            let Ok(value) = actix_web::http::header::HeaderValue::from_bytes(&value) else {
                return Ok(());
            };
            let request = request.insert_header(("idempotency-key", value)).to_http_request();
            match idempotency_key(&request) {
                Ok(key) => {
                    let key = key.expect("there is one");
                    prop_assert!((1..=IDEMPOTENCY_KEY_CHARS_MAX).contains(&key.len()));
                    prop_assert!(key.bytes().all(|byte| (0x20..=0x7e).contains(&byte)));
                }
                Err(problem) => {
                    prop_assert!(problem.to_string().starts_with("invalid_parameter: Idempotency-Key: "), "{problem}");
                }
            }
        }

        #[test]
        fn a_key_in_quotes_is_read_as_it_was_meant(key in "[ -~]{1,40}") {
            let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
            let request = TestRequest::default().insert_header(("idempotency-key", quoted)).to_http_request();
            prop_assert_eq!(idempotency_key(&request), Ok(Some(key)));
        }

        #[test]
        fn a_cursor_is_taken_as_it_was_written_and_in_no_other_spelling(
            text in "\\PC{0,50}|[+0-9-]{1,20}\\.[0-9a-fA-F-]{30,38}|[1-9][0-9]{0,15}\\.[0-9a-f]{32}",
        ) {
            match decode_cursor(&text) {
                Ok(cursor) => prop_assert_eq!(encode_cursor(cursor), text),
                Err(problem) => prop_assert_eq!(problem.code(), INVALID_PARAMETER),
            }
        }
    }
}
