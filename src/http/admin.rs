//! `/admin`: what an operator asks for.

use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};

use super::body::read_json;
use super::problem::Problem;
use super::query::read_query;
use super::{BODY_BYTES_MAX, State, check_limit, detached};
use crate::app::Error;
use crate::app::dead_letters::{self, Selection};
use crate::db;
use crate::domain::messages::{DEAD_ATTEMPTS, DEAD_ERROR, DEAD_REASON, DEAD_TIME};
use crate::domain::order::Invalid;
use crate::mq::{self, Delivery, HeaderValue, Queue};

/// Asking the broker for the depth of six queues takes milliseconds.
const DEPTHS_DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);

#[derive(Serialize)]
struct SyncResponse {
    requested: Vec<String>,
}

/// `POST /admin/sync`
pub(super) async fn sync(state: Data<State>) -> Result<HttpResponse, Problem> {
    let vendors = state.context.vendor_ids();
    state
        .context
        .with_connection(async |connection| {
            db::vendors::register(connection, &vendors).await?;
            Ok(db::vendors::request_sync(connection, &vendors).await?)
        })
        .await?;
    Ok(HttpResponse::Accepted().json(SyncResponse {
        requested: vendors.iter().map(ToString::to_string).collect(),
    }))
}

#[derive(Serialize)]
struct QueueResponse {
    name: &'static str,
    ready: u32,
    consumers: u32,
}

#[derive(Serialize)]
struct QueuesResponse {
    queues: Vec<QueueResponse>,
}

/// `GET /admin/queues`
pub(super) async fn queues(state: Data<State>) -> Result<HttpResponse, Problem> {
    let depths = mq::depths(&state.broker, DEPTHS_DEADLINE)
        .await
        .map_err(Error::from)?;
    Ok(HttpResponse::Ok().json(QueuesResponse {
        queues: depths
            .into_iter()
            .map(|depth| QueueResponse {
                name: depth.queue.base_name(),
                ready: depth.messages_ready,
                consumers: depth.consumers,
            })
            .collect(),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SelectionQuery {
    id: Option<String>,
    limit: Option<i64>,
}

impl SelectionQuery {
    /// The error says what is wrong with the limit.
    fn parse(self) -> Result<Selection, String> {
        Ok(Selection {
            message_id: self.id,
            limit: usize::try_from(check_limit(self.limit)?).unwrap_or_default(),
        })
    }
}

fn dead_letter_queue(name: &str) -> Result<Queue, Problem> {
    Queue::ALL
        .into_iter()
        .find(|queue| queue.is_dead_letter() && queue.base_name() == name)
        .ok_or_else(|| {
            Problem::not_found("the dead-letter queues are orders_dlq and vendor_sync_dlq")
        })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeadLetterResponse {
    message_id: Option<String>,
    reason: Option<String>,
    error: Option<String>,
    dead_lettered_at: Option<String>,
    attempts: Option<String>,
    /// The message as JSON, or as text where it is none.
    body: serde_json::Value,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeadLettersResponse {
    dead_letters: Vec<DeadLetterResponse>,
}

fn header(delivery: &Delivery, name: &str) -> Option<String> {
    delivery.headers.get(name).map(|value| match value {
        HeaderValue::Text(text) => text.clone(),
        HeaderValue::Int(number) => number.to_string(),
    })
}

/// `GET /admin/dead-letters/{queue}`
pub(super) async fn list_dead_letters(
    request: HttpRequest,
    queue: Path<String>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let queue = dead_letter_queue(&queue)?;
    let selection = read_query::<SelectionQuery>(&request)?
        .parse()
        .map_err(|problem| Problem::invalid_parameter("limit", problem))?;
    let found = dead_letters::list(&state.broker, queue, &selection).await?;
    Ok(HttpResponse::Ok().json(DeadLettersResponse {
        dead_letters: found
            .into_iter()
            .map(|delivery| DeadLetterResponse {
                reason: header(&delivery, DEAD_REASON),
                error: header(&delivery, DEAD_ERROR),
                dead_lettered_at: header(&delivery, DEAD_TIME),
                attempts: header(&delivery, DEAD_ATTEMPTS),
                body: serde_json::from_slice(&delivery.body).unwrap_or_else(|_| {
                    serde_json::Value::String(String::from_utf8_lossy(&delivery.body).into_owned())
                }),
                message_id: delivery.message_id,
            })
            .collect(),
    }))
}

#[derive(Serialize)]
struct ReplayResponse {
    replayed: Vec<String>,
}

/// `POST /admin/dead-letters/{queue}/replay`
pub(super) async fn replay(
    request: HttpRequest,
    payload: Payload,
    queue: Path<String>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let queue = dead_letter_queue(&queue)?;
    let selection = read_json::<SelectionQuery>(&request, payload, BODY_BYTES_MAX)
        .await?
        .parse()
        .map_err(|problem| Problem::invalid_fields(vec![Invalid::new("/limit", problem)]))?;
    let state = state.get_ref().clone();
    let replayed = detached(async move {
        dead_letters::replay(
            &state.context,
            &state.broker,
            &state.publisher,
            queue,
            &selection,
        )
        .await
    })
    .await?;
    Ok(HttpResponse::Ok().json(ReplayResponse { replayed }))
}
