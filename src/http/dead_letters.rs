//! `/admin/dead-letters`: what an operator does about messages that were given up on.

use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::body::read_json;
use super::problem::{LOGGED, Problem, UNAVAILABLE};
use super::query::read_query;
use super::{BODY_BYTES_MAX, State, check_limit, detached};
use super::{answer, auth};
use crate::app::dead_letters::{self, Act, Dropper, LetterDocument, Report};
use crate::domain::dead_letter::{LETTERS_MAX, Place, Selection};
use crate::domain::ids::OrderId;
use crate::domain::keys::{Caller, LOCAL_CALLER};
use crate::domain::order::Invalid;
use crate::mq::Queue;

/// Message ids that one request may name.
const IDS_MAX: usize = 200;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListQuery {
    /// Only the letter with this message id.
    message_id: Option<String>,
    /// Only letters with this reason, such as `retries_exhausted`.
    reason: Option<String>,
    /// Only letters that concern this order.
    order_id: Option<OrderId>,
    /// Letters at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<i64>,
    /// The `nextCursor` of the page before. It holds as long as the last letter of that page is in the queue: when that was
    /// replayed or dropped, the answer is 400, and the list begins anew.
    cursor: Option<String>,
}

/// Which letters are meant: all that is given must hold. Or `all`.
#[derive(Deserialize, ToSchema)]
#[schema(as = DeadLettersSelection)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ActRequest {
    /// A message id.
    #[schema(min_length = 1)]
    message_id: Option<String>,
    /// Message ids.
    #[schema(min_items = 1, max_items = 200)]
    message_ids: Option<Vec<String>>,
    reason: Option<String>,
    #[schema(nullable = true)]
    order_id: Option<OrderId>,
    #[schema(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    /// Every letter of the queue; it stands without the others.
    #[serde(default)]
    all: bool,
    /// Say what it would come to, and change nothing.
    #[serde(default)]
    dry_run: bool,
}

impl ActRequest {
    fn parse(self) -> Result<(Selection, Act), Vec<Invalid>> {
        let selects = self.message_id.is_some()
            || self.message_ids.is_some()
            || self.reason.is_some()
            || self.order_id.is_some()
            || self.limit.is_some();
        let mut errors = Vec::new();
        // Nothing is done to a whole queue by a field that was forgotten or misnamed.
        if selects && self.all {
            errors.push(Invalid::new(
                "/all",
                "means every letter, so it stands without messageId, messageIds, reason, orderId and limit",
            ));
        } else if !selects && !self.all {
            errors.push(Invalid::new(
                "",
                "must select letters by messageId, messageIds, reason, orderId or limit, or say \"all\": true",
            ));
        }
        // An empty list would mean any letter, and so all of them.
        if let Some(ids) = &self.message_ids
            && !(1..=IDS_MAX).contains(&ids.len())
        {
            let problem = format!("must be 1 to {IDS_MAX}, are {}", ids.len());
            errors.push(Invalid::new("/messageIds", problem));
        }
        let ids = self.message_ids.unwrap_or_default();
        let message_ids: std::collections::BTreeSet<String> =
            self.message_id.into_iter().chain(ids).collect();
        if message_ids.contains("") {
            errors.push(Invalid::new("/messageId", "must not be empty"));
        }
        let limit = match self.limit.map(|asked| check_limit(Some(asked))) {
            Some(Err(problem)) => {
                errors.push(Invalid::new("/limit", problem));
                0
            }
            Some(Ok(limit)) => usize::try_from(limit).unwrap_or_default(),
            None => LETTERS_MAX,
        };
        if !errors.is_empty() {
            return Err(errors);
        }
        let selection = Selection {
            message_ids,
            reason: self.reason,
            order: self.order_id,
            after: None,
            limit,
            shown: None,
        };
        let act = if self.dry_run { Act::Rehearse } else { Act::Do };
        Ok((selection, act))
    }
}

fn dead_letter_queue(name: &str) -> Result<Queue, Problem> {
    Queue::ALL
        .into_iter()
        .find(|queue| queue.is_dead_letter() && queue.base_name() == name)
        .ok_or_else(|| {
            Problem::not_found(
                "the dead-letter queues are orders_dlq, vendor_sync_dlq and webhooks_dlq",
            )
        })
}

/// Dead letters, in the order of their queue.
#[derive(Serialize, ToSchema)]
#[schema(as = DeadLetterList)]
#[serde(rename_all = "camelCase")]
struct LettersResponse<'a> {
    dead_letters: Vec<LetterDocument<'a>>,
    /// Letters behind the last of them, whether they are meant or not.
    not_looked_at: u32,
    /// Where the next page begins, if there may be one.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// Dead letters
///
/// With their errors whole, but for passwords: whoever may read them is the operator.
#[utoipa::path(
    get, path = "/admin/dead-letters/{queue}", tag = "operations",
    params(("queue" = String, Path, description = "`orders_dlq`, `vendor_sync_dlq` or `webhooks_dlq`"), ListQuery),
    responses((status = 200, description = "A page",
        headers(("Link" = Option<String>, description = "`<…>; rel=\"next\"`, if there may be a next page")),
        body = LettersResponse, example = json!({"deadLetters": [
        {"messageId": "01a214e7-89bc-76aa-b70f-9e5be0497308", "reason": "retries_exhausted", "error": "the vendor's API at http://127.0.0.1:9/vendors/vendorA/stock-updates cannot be reached: Connection refused (os error 111)", "cause": "api_unreachable",
         "deadLetteredAt": "2026-11-25T22:51:03.187Z", "attempts": 4,
         "body": {"vendorId": "vendorA", "updates": [{"id": "01a214e7-89a3-73a6-bfc3-f94863a97791", "productId": "p1", "delta": -2}]}}], "notLookedAt": 0, "nextCursor": null})))
)]
pub(super) async fn list(
    request: HttpRequest,
    queue: Path<String>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let queue = dead_letter_queue(&queue)?;
    let query: ListQuery = read_query(&request)?;
    let limit = super::limit(query.limit)?;
    let selection = Selection {
        message_ids: query.message_id.into_iter().collect(),
        reason: query.reason,
        order: query.order_id,
        after: query.cursor.as_deref().map(decode_cursor).transpose()?,
        limit: usize::try_from(limit).unwrap_or_default(),
        shown: None,
    };
    let mut found = dead_letters::list(&state.context, &state.broker, queue, &selection).await?;
    if found.is_place_gone {
        return Err(Problem::invalid_parameter(
            "cursor",
            "the letter at which that page ended is not in the queue any more; begin again without a cursor",
        ));
    }
    dead_letters::name_orders(&state.context, &mut found.letters).await;
    let list = LettersResponse {
        dead_letters: found
            .letters
            .iter()
            .map(|letter| letter.document(false))
            .collect(),
        not_looked_at: found.not_looked_at,
        next_cursor: found.last.map(encode_cursor),
    };
    let mut answer = answer::json(&request, &list)?;
    answer::link_next(&request, &mut answer, list.next_cursor.as_deref());
    Ok(answer)
}

fn encode_cursor(place: Place) -> String {
    format!("{}.{}", place.name.simple(), place.nth)
}

fn decode_cursor(text: &str) -> Result<Place, Problem> {
    text.split_once('.')
        .and_then(|(name, nth)| {
            Some(Place {
                name: Uuid::try_parse(name).ok()?,
                nth: nth.parse().ok()?,
            })
        })
        // Spelt as we spell it.
        .filter(|place| encode_cursor(*place) == text)
        .ok_or_else(|| {
            Problem::invalid_parameter("cursor", "must be a nextCursor of an earlier answer")
        })
}

/// One dead letter
///
/// With its headers.
#[utoipa::path(
    get, path = "/admin/dead-letters/{queue}/{messageId}", tag = "operations",
    params(("queue" = String, Path, description = "`orders_dlq`, `vendor_sync_dlq` or `webhooks_dlq`"), ("messageId" = String, Path, description = "The message's id")),
    responses((status = 200, description = "The letter", body = LetterDocument<'_>, example = json!(
        {"messageId": "01a214e7-89bc-76aa-b70f-9e5be0497308", "reason": "retries_exhausted", "error": "the vendor's API at http://127.0.0.1:9/vendors/vendorA/stock-updates cannot be reached: Connection refused (os error 111)", "cause": "api_unreachable",
         "deadLetteredAt": "2026-11-25T22:51:03.187Z", "attempts": 4, "headers": {"x-dead-letter-reason": "retries_exhausted", "x-dead-letter-attempts": 4, "x-dead-letter-cause": "api_unreachable"},
         "body": {"vendorId": "vendorA", "updates": [{"id": "01a214e7-89a3-73a6-bfc3-f94863a97791", "productId": "p1", "delta": -2}]}})))
)]
pub(super) async fn show(
    request: HttpRequest,
    path: Path<(String, String)>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let (queue, message_id) = path.into_inner();
    let queue = dead_letter_queue(&queue)?;
    let mut letter = dead_letters::find(&state.context, &state.broker, queue, &message_id).await?;
    dead_letters::name_orders(&state.context, std::slice::from_mut(&mut letter)).await;
    answer::json(&request, &letter.document(true))
}

/// Replay dead letters
///
/// Each message is sent again as if it were new, and a failed order is pending again. It may be repeated at any moment.
#[utoipa::path(
    post, path = "/admin/dead-letters/{queue}/replay", tag = "operations",
    params(("queue" = String, Path, description = "`orders_dlq`, `vendor_sync_dlq` or `webhooks_dlq`")),
    request_body(content = ActRequest, example = json!({"reason": "retries_exhausted", "limit": 10})),
    responses((status = 200, description = "What it came to", body = dead_letters::Document<'_>, example = json!({"replayed": ["01a214e7-89bc-76aa-b70f-9e5be0497308"], "revivedOrders": []})))
)]
pub(super) async fn replay(
    request: HttpRequest,
    payload: Payload,
    queue: Path<String>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let queue = dead_letter_queue(&queue)?;
    let (selection, act) = read_selection(&request, payload).await?;
    let state = state.get_ref().clone();
    let report = detached(async move {
        dead_letters::replay(
            &state.context,
            &state.broker,
            queue,
            &selection,
            (act == Act::Do).then_some(&state.publisher),
            &|_, _| (),
        )
        .await
    })
    .await?;
    let report = check(report, queue)?;
    Ok(HttpResponse::Ok().json(report.of_replay(act)))
}

/// Drop dead letters
///
/// What each message asked for is taken back: its orders are cancelled, and everything taken for them is returned. What a
/// letter of `webhooks_dlq` tells is not told.
#[utoipa::path(
    post, path = "/admin/dead-letters/{queue}/drop", tag = "operations",
    params(("queue" = String, Path, description = "`orders_dlq`, `vendor_sync_dlq` or `webhooks_dlq`")),
    request_body(content = ActRequest, example = json!({"messageId": "01a214e7-8e0b-7046-85ff-c7c32ed18873", "dryRun": true})),
    responses((status = 200, description = "What it came to", body = dead_letters::Document<'_>, example = json!({"dryRun": true, "dropped": ["01a214e7-8e0b-7046-85ff-c7c32ed18873"], "cancelledOrders": ["01a214e7-8412-7133-8e9f-65c76be17ecc"]})))
)]
pub(super) async fn drop(
    request: HttpRequest,
    payload: Payload,
    queue: Path<String>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let queue = dead_letter_queue(&queue)?;
    let (selection, act) = read_selection(&request, payload).await?;
    let by = dropped_by(&request, &*auth::caller(&request)?);
    let state = state.get_ref().clone();
    let report = detached(async move {
        let dropper = Dropper {
            by: &by,
            hand_over: &|waiting| state.relay.hand_over(waiting),
        };
        dead_letters::drop(
            &state.context,
            &state.broker,
            queue,
            &selection,
            act,
            &|_, _| (),
            dropper,
        )
        .await
    })
    .await?;
    let report = check(report, queue)?;
    Ok(HttpResponse::Ok().json(report.of_drop(act)))
}

/// Who drops: the key's caller, and from where; where no keys are required, there is nothing but the address.
fn dropped_by(request: &HttpRequest, caller: &Caller) -> String {
    let address = match request.peer_addr() {
        Some(address) => address.ip().to_string(),
        None => "unknown".to_owned(),
    };
    match caller.name.as_str() {
        LOCAL_CALLER => format!("http:{address}"),
        name => format!("{name} (http:{address})"),
    }
}

async fn read_selection(
    request: &HttpRequest,
    payload: Payload,
) -> Result<(Selection, Act), Problem> {
    read_json::<ActRequest>(request, payload, BODY_BYTES_MAX)
        .await?
        .parse()
        .map_err(Problem::invalid_fields)
}

/// The report as a caller may read it, unless it is no success: nothing of what was named is there, or not all was done
/// with.
fn check(mut report: Report, queue: Queue) -> Result<Report, Problem> {
    if let Some(error) = &report.stopped {
        tracing::warn!(%error, done = report.done.len(), "work on dead letters ended early");
        return Err(Problem::new(
            UNAVAILABLE,
            format!(
                "it ended early, after {} letters were done with: a database or the broker cannot be reached, or took too \
                 long; what is done stays so, and repeating the request does the rest",
                report.done.len()
            ),
        ));
    }
    if report.done.is_empty() && report.kept.is_empty() && !report.not_found.is_empty() {
        return Err(Problem::not_found(format!(
            "{} has no letter {}",
            queue.base_name(),
            report.not_found.join(", ")
        )));
    }
    for kept in &mut report.kept {
        if kept.is_bug {
            tracing::error!(
                message_id = kept.message_id,
                error = kept.why,
                "a dead letter had to be kept"
            );
            kept.why = LOGGED.to_owned();
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::body::parse;
    use super::super::problem::{INVALID_PARAMETER, MALFORMED_JSON, VALIDATION_FAILED};
    use super::*;

    /// Bytes, and what looks like a selection but for a place or two.
    fn bodies() -> impl Strategy<Value = Vec<u8>> {
        let value = "-?[0-9]{1,4}|\"[a-z\u{0}]{0,3}\"|true|false|null|\\[(\"[a-z]?\")?\\]|\\{\\}";
        let field = (
            "messageId|messageIds|reason|orderId|limit|all|dryRun|[a-z]{0,2}",
            value,
        )
            .prop_map(|(name, value)| format!("\"{name}\":{value}"));
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40),
            proptest::collection::vec(field, 0..4).prop_map(|fields| format!(
                "{{{}}}",
                fields.join(",")
            )
            .into_bytes()),
        ]
    }

    proptest! {
        #[test]
        fn a_cursor_is_taken_as_it_was_written_and_in_no_other_spelling(
            text in "[0-9a-f]{32}\\.[0-9]{1,11}|[0-9a-fA-F-]{30,36}\\.[+-]?0?[0-9]{1,3}|.{0,40}",
        ) {
            match decode_cursor(&text) {
                Ok(place) => prop_assert_eq!(encode_cursor(place), text),
                Err(problem) => prop_assert_eq!(problem.code(), INVALID_PARAMETER),
            }
        }

        #[test]
        fn whatever_the_body_nothing_is_done_to_a_whole_queue_unless_it_is_said(body in bodies()) {
            let parsed = parse::<ActRequest>(&body)
                .and_then(|request| request.parse().map_err(Problem::invalid_fields));
            match parsed {
                Ok((selection, _)) => {
                    let says_all = serde_json::from_slice::<serde_json::Value>(&body)
                        .is_ok_and(|body| body["all"] == true);
                    let selects = !selection.message_ids.is_empty()
                        || selection.reason.is_some()
                        || selection.order.is_some()
                        || selection.limit < LETTERS_MAX;
                    prop_assert!(selects != says_all, "{}", String::from_utf8_lossy(&body));
                    prop_assert!((1..=LETTERS_MAX).contains(&selection.limit));
                    prop_assert!(selection.message_ids.len() <= IDS_MAX + 1);
                }
                Err(problem) => prop_assert!([MALFORMED_JSON, VALIDATION_FAILED].contains(&problem.code()), "{problem}"),
            }
        }
    }
}
