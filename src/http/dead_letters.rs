//! `/admin/dead-letters`: what an operator does about messages that were given up on.

use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};

use super::body::read_json;
use super::problem::{Problem, UNAVAILABLE};
use super::query::read_query;
use super::{BODY_BYTES_MAX, State, check_limit, detached};
use crate::app::dead_letters::{self, Act, Dropper, LetterDocument, Report};
use crate::domain::dead_letter::{LETTERS_MAX, Selection};
use crate::domain::ids::OrderId;
use crate::domain::order::Invalid;
use crate::mq::Queue;

/// Message ids that one request may name.
const IDS_MAX: usize = 200;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    id: Option<String>,
    reason: Option<String>,
    order: Option<OrderId>,
    limit: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ActRequest {
    id: Option<String>,
    ids: Option<Vec<String>>,
    reason: Option<String>,
    order: Option<OrderId>,
    limit: Option<i64>,
    #[serde(default)]
    all: bool,
    #[serde(default)]
    dry_run: bool,
}

impl ActRequest {
    fn parse(self) -> Result<(Selection, Act), Vec<Invalid>> {
        let selects = self.id.is_some()
            || self.ids.is_some()
            || self.reason.is_some()
            || self.order.is_some()
            || self.limit.is_some();
        let mut errors = Vec::new();
        // Nothing is done to a whole queue by a field that was forgotten or misnamed.
        if selects && self.all {
            errors.push(Invalid::new(
                "/all",
                "means every letter, so it stands without id, ids, reason, order and limit",
            ));
        } else if !selects && !self.all {
            errors.push(Invalid::new(
                "",
                "select letters by id, ids, reason, order or limit, or say \"all\": true",
            ));
        }
        let ids = self.ids.unwrap_or_default();
        if ids.len() > IDS_MAX {
            let problem = format!("must be at most {IDS_MAX}, are {}", ids.len());
            errors.push(Invalid::new("/ids", problem));
        }
        let message_ids: std::collections::BTreeSet<String> =
            self.id.into_iter().chain(ids).collect();
        if message_ids.contains("") {
            errors.push(Invalid::new("/id", "must not be empty"));
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
            order: self.order,
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
            Problem::not_found("the dead-letter queues are orders_dlq and vendor_sync_dlq")
        })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LettersResponse<'a> {
    dead_letters: Vec<LetterDocument<'a>>,
}

/// `GET /admin/dead-letters/{queue}`
pub(super) async fn list(
    request: HttpRequest,
    queue: Path<String>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let queue = dead_letter_queue(&queue)?;
    let query: ListQuery = read_query(&request)?;
    let limit = super::limit(query.limit)?;
    let selection = Selection {
        message_ids: query.id.into_iter().collect(),
        reason: query.reason,
        order: query.order,
        limit: usize::try_from(limit).unwrap_or_default(),
        shown: None,
    };
    let found = dead_letters::list(&state.context, &state.broker, queue, &selection).await?;
    Ok(HttpResponse::Ok().json(LettersResponse {
        dead_letters: found.letters.iter().map(|l| l.document(false)).collect(),
    }))
}

/// `GET /admin/dead-letters/{queue}/{messageId}`
pub(super) async fn show(
    path: Path<(String, String)>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let (queue, message_id) = path.into_inner();
    let queue = dead_letter_queue(&queue)?;
    let letter = dead_letters::find(&state.context, &state.broker, queue, &message_id).await?;
    Ok(HttpResponse::Ok().json(letter.document(true)))
}

/// `POST /admin/dead-letters/{queue}/replay`
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
    check(&report, queue)?;
    Ok(HttpResponse::Ok().json(report.of_replay(act)))
}

/// `POST /admin/dead-letters/{queue}/drop`
pub(super) async fn drop(
    request: HttpRequest,
    payload: Payload,
    queue: Path<String>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let queue = dead_letter_queue(&queue)?;
    let (selection, act) = read_selection(&request, payload).await?;
    let by = match request.peer_addr() {
        Some(address) => format!("http:{}", address.ip()),
        None => "http:unknown".to_owned(),
    };
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
    check(&report, queue)?;
    Ok(HttpResponse::Ok().json(report.of_drop(act)))
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

/// A report that is no success: nothing of what was named is there, or not all was done with.
fn check(report: &Report, queue: Queue) -> Result<(), Problem> {
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
    Ok(())
}
