//! `/events`: what happens, as server-sent events.

use actix_web::http::Method;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;
use utoipa::{IntoParams, ToSchema};

use super::problem::{Problem, TOO_MANY_LISTENERS};
use super::query::read_query;
use super::{State, TAKE_DEADLINE, auth};
use crate::app::events::{LISTENERS_MAX, Listener, Told};
use crate::domain::events::{DROPPED, EventType, Filter, Notice, Position, RESET};
use crate::domain::ids::ProductId;
use crate::metrics::EVENTS;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Proxies that gather an answer before they pass it on are told not to.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// What a browser waits before it connects again, in milliseconds.
const RETRY_MS: u32 = 1_000;
/// Chunks that wait for a connection that takes nothing.
const CHUNKS_WAITING_MAX: usize = 2;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListenQuery {
    /// Only events of these types, separated by commas: `order.confirmed`, `order.rejected`, `order.failed`,
    /// `order.cancelled`, `stock.changed`. Without it, all that the key may hear.
    #[param(
        pattern = "^(order[.](confirmed|rejected|failed|cancelled)|stock[.]changed)(, *(order[.](confirmed|rejected|failed|cancelled)|stock[.]changed))*$",
        example = "order.confirmed,stock.changed"
    )]
    r#type: Option<String>,
    /// Only events about this product: its stock, and orders with a line of it.
    product_id: Option<ProductId>,
}

/// An event, by the fields with which it is sent.
#[derive(ToSchema)]
#[expect(dead_code, reason = "a description")]
struct SentEvent {
    /// What to go on from, as `Last-Event-ID`.
    #[schema(example = "7301-42-0")]
    id: String,
    /// Its type, that of `data`.
    #[schema(example = "order.confirmed")]
    event: String,
    /// An Event, or, of the types `reset` and `dropped`, an EventNotice.
    #[schema(content_media_type = "application/json")]
    data: String,
}

/// Listen to what happens
///
/// Server-sent events, each as `data` with its type as `event` and an `id`. Whoever connects again with the last `id` as
/// `Last-Event-ID`, as browsers do by themselves, hears all that came between, once and in order; without it, what happens
/// from now on. Orders are told of as they are decided, fail or are cancelled, and stock when another number is available;
/// `available` is the number when it is told.
///
/// A key with `orders:read` hears of its caller's own orders, one with `admin` of all; every key hears of stock. Every 15 s
/// comes a comment, with the `id` up to where all was told. An event `reset` says that events after `Last-Event-ID` are no
/// longer kept (`events.kept_for_ms`, a day unless configured otherwise): look at the orders and the stock anew. An event
/// `dropped` says that the connection was too slow, or its key is no longer good; it is the last one.
#[utoipa::path(
    get, path = "/events", tag = "operations",
    params(ListenQuery, ("Last-Event-ID" = Option<String>, Header, description = "The id up to which you have heard all",
        pattern = "^((0|[1-9][0-9]{0,17})-(0|[1-9][0-9]{0,17})-(0|[1-9][0-9]{0,8}))?$", example = "7301-42-0")),
    responses((status = 200, description = "Events, for as long as the connection is there; `data` is an Event, or, of the types `reset` and `dropped`, an EventNotice",
        headers(("X-Accel-Buffering" = String, description = "`no`: a proxy in between passes events on as they come")),
        body = SentEvent, content_type = "text/event-stream",
        example = "retry: 1000\nid: 7301-0-0\n\nid: 7301-42-0\nevent: order.confirmed\ndata: {\"type\":\"order.confirmed\",\"at\":\"2026-11-26T01:42:16.696737Z\",\"order\":{\"id\":\"01a21584-8706-763e-b5e8-dd1039028028\",\"status\":\"confirmed\",\"lines\":[{\"productId\":\"p2\",\"quantity\":18}],\"acceptedAt\":\"2026-11-26T01:42:16.582834Z\"}}\n\n"))
)]
pub(super) async fn listen(
    request: HttpRequest,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let caller = auth::caller(&request)?;
    let query: ListenQuery = read_query(&request)?;
    let types = query.r#type.as_deref().map(EventType::parse_list);
    let types = types
        .transpose()
        .map_err(|problem| Problem::invalid_parameter("type", problem))?;
    let after = last_event_id(&request)?;
    let filter = Filter::new(&caller, types, query.product_id).map_err(auth::lacks)?;
    let mut answer = HttpResponse::Ok();
    answer
        .insert_header((CONTENT_TYPE, "text/event-stream"))
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header((X_ACCEL_BUFFERING, "no"))
        // It ends when the server does, and nothing comes after it.
        .force_close();
    if request.method() == Method::HEAD {
        return Ok(answer.finish());
    }
    let Some(listener) = state.events.listen(&caller, filter, after).await? else {
        let detail = format!(
            "{} connections of this caller, or {LISTENERS_MAX} in all, listen to this process; try again later",
            state.events.listeners_of(&caller)
        );
        return Err(Problem::new(TOO_MANY_LISTENERS, detail));
    };
    let (chunks, coming) = mpsc::channel(CHUNKS_WAITING_MAX);
    actix_web::rt::spawn(tell(listener, chunks, request));
    let body = futures_util::stream::unfold(coming, async |mut coming: mpsc::Receiver<Bytes>| {
        let chunk = coming.recv().await?;
        Some((Ok::<Bytes, actix_web::Error>(chunk), coming))
    });
    Ok(answer.streaming(body))
}

/// The place to go on from; one that is none of ours would skip or repeat who knows what.
fn last_event_id(request: &HttpRequest) -> Result<Option<Position>, Problem> {
    let Some(value) = request.headers().get(LAST_EVENT_ID) else {
        return Ok(None);
    };
    let position = match value.to_str().map(str::trim) {
        // A browser that has heard no id yet.
        Ok("") => return Ok(None),
        Ok(text) => Position::parse(text),
        Err(_) => None,
    };
    position.map(Some).ok_or_else(|| {
        let detail = "must be the id of an event as it came, such as 7301-42-0";
        Problem::invalid_parameter("Last-Event-ID", detail)
    })
}

/// Tells a listener what there is until it has gone, is too slow, or the server ends.
async fn tell(mut listener: Listener, chunks: mpsc::Sender<Bytes>, request: HttpRequest) {
    let mut chunk = format!("retry: {RETRY_MS}\n");
    loop {
        let told = tokio::select! {
            () = chunks.closed() => return,
            told = listener.next() => told,
        };
        let mut is_last = false;
        match told {
            Told::Events(events) => {
                for event in &events {
                    write(
                        &mut chunk,
                        event.position,
                        Some((event.kind.as_str(), &event.data)),
                    );
                }
            }
            Told::Beat(position) if auth::has_ended(&request) => {
                notice(
                    &mut chunk,
                    position,
                    DROPPED,
                    "the API key is no longer good; connect again with another one and this id",
                );
                is_last = true;
            }
            Told::Beat(position) => {
                chunk.push_str(": still here\n");
                write(&mut chunk, position, None);
            }
            Told::Missed(position) => notice(
                &mut chunk,
                position,
                RESET,
                "events after your Last-Event-ID are no longer kept; look at the orders and the stock anew",
            ),
            Told::TooSlow(position) => {
                EVENTS.too_slow.inc();
                notice(
                    &mut chunk,
                    position,
                    DROPPED,
                    "you read too slowly; connect again with this id as Last-Event-ID",
                );
                is_last = true;
            }
            Told::Over(position) => {
                write(&mut chunk, position, None);
                is_last = true;
            }
        }
        let told = Bytes::from(std::mem::take(&mut chunk));
        if !matches!(timeout(TAKE_DEADLINE, chunks.send(told)).await, Ok(Ok(()))) || is_last {
            return;
        }
    }
}

/// An event, or only up to where all was told. What is written has no line breaks: JSON has none, and types are ours.
fn write(chunk: &mut String, position: Position, event: Option<(&str, &str)>) {
    use std::fmt::Write;

    // A text takes whatever is written.
    let _ = writeln!(chunk, "id: {position}");
    if let Some((kind, data)) = event {
        let _ = writeln!(chunk, "event: {kind}\ndata: {data}");
    }
    chunk.push('\n');
}

fn notice(chunk: &mut String, position: Position, kind: &str, detail: &str) {
    let notice = Notice {
        r#type: kind,
        detail,
    };
    let data = serde_json::to_string(&notice).unwrap_or_default();
    write(chunk, position, Some((kind, &data)));
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;
    use actix_web::test::TestRequest;
    use proptest::prelude::*;

    use super::super::problem::INVALID_PARAMETER;
    use super::*;

    proptest! {
        #[test]
        fn whatever_was_heard_last_a_place_that_is_taken_is_one_of_ours(
            value in prop_oneof![proptest::collection::vec(any::<u8>(), 0..40), " ?[0-9]{1,20}-[+0-9]{1,20}-[0-9]{1,11} ?".prop_map(String::into_bytes)],
        ) {
            let Ok(header) = HeaderValue::from_bytes(&value) else {
                return Ok(());
            };
            let request = TestRequest::default().insert_header((LAST_EVENT_ID, header)).to_http_request();
            match last_event_id(&request) {
                Ok(Some(position)) => prop_assert_eq!(position.to_string().into_bytes(), value.trim_ascii()),
                Ok(None) => {}
                Err(problem) => prop_assert_eq!(problem.code(), INVALID_PARAMETER),
            }
        }
    }
}
