//! `/healthz`: alive. `/readyz`: able to accept orders, with the state of each dependency.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::header::RETRY_AFTER;
use actix_web::web::Data;
use serde::Serialize;
use utoipa::ToSchema;

use super::State;
use super::auth::Door;
use super::drain::Drain;
use crate::app::Context;
use crate::app::gauges::{CONSUMER_SILENCE_MAX, CONSUMER_STALLED_AFTER};
use crate::db;
use crate::mq::{Link, Queue};

/// Who is sent elsewhere looks again after so many seconds.
const RETRY_AFTER_S: &str = "1";
/// A probe without an answer for this long has none.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// The process is alive.
#[derive(Serialize, ToSchema)]
struct Alive {
    status: &'static str,
}

/// Alive?
#[utoipa::path(get, path = "/healthz", tag = "operations",
    responses((status = 200, description = "Alive", body = Alive, example = json!({"status": "ok"}))))]
pub(super) async fn alive() -> HttpResponse {
    HttpResponse::Ok().json(Alive { status: "ok" })
}

/// Whether orders can be accepted, with the state of each dependency.
#[derive(Serialize, ToSchema)]
struct Ready {
    /// `ready`, `draining` (this process is about to end) or `unavailable`.
    status: &'static str,
    /// `up` or `down`.
    postgresql: &'static str,
    /// `up`, `down`, `blocked` (an alarm) or `misdeclared` (its queues have other arguments).
    rabbitmq: &'static str,
    /// Of both work queues, in whichever process: `ok`, `stalled`, `none`, or `unknown` without PostgreSQL.
    consumers: &'static str,
}

/// What each of its fields may say.
pub(super) const READY: [(&str, &[&str]); 4] = [
    ("status", &["ready", "draining", "unavailable"]),
    ("postgresql", &["up", "down"]),
    ("rabbitmq", &["up", "down", "blocked", "misdeclared"]),
    ("consumers", &["ok", "stalled", "none", "unknown"]),
];

/// Able to accept orders?
///
/// Either store can accept one, and this process goes on; one that requires keys and has never reached PostgreSQL knows none,
/// and is `unavailable`. Whoever probes reads the checks, so they are the body of a 503 too.
#[utoipa::path(get, path = "/readyz", tag = "operations", responses(
    (status = 200, description = "Ready", body = Ready, example = json!({"status": "ready", "postgresql": "up", "rabbitmq": "up", "consumers": "ok"})),
    (status = 503, description = "Not ready", headers(("Retry-After" = i64, description = "Seconds after which to try again")), body = Ready, example = json!({"status": "draining", "postgresql": "up", "rabbitmq": "up", "consumers": "ok"})),
))]
pub(super) async fn ready(
    state: Data<State>,
    drain: Data<Drain>,
    door: Data<Door>,
) -> HttpResponse {
    let postgresql = state.context.store_works(PROBE_DEADLINE).await;
    let rabbitmq = match *state.publisher.link().borrow() {
        Link::Up => "up",
        Link::Connecting { .. } => "down",
        Link::Blocked { .. } => "blocked",
        Link::Misdeclared { .. } => "misdeclared",
    };
    // Orders are accepted without them, so they make nobody unready.
    let consumers = if postgresql {
        consumers(&state.context).await
    } else {
        "unknown"
    };
    // What comes on an open connection is accepted all the same; this is for who chooses where to send the next. Looked at
    // last, since the end may begin meanwhile.
    let can_accept = (postgresql || rabbitmq == "up") && door.can_open();
    let status = match (drain.is_begun(), can_accept) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "unavailable",
    };
    let body = Ready {
        status,
        postgresql: if postgresql { "up" } else { "down" },
        rabbitmq,
        consumers,
    };
    if status == "ready" {
        HttpResponse::Ok().json(body)
    } else {
        HttpResponse::ServiceUnavailable()
            .insert_header((RETRY_AFTER, RETRY_AFTER_S))
            .json(body)
    }
}

async fn consumers(context: &Context) -> &'static str {
    let listing = context.with_connection(async |connection| {
        Ok(db::consumers::list(connection, CONSUMER_SILENCE_MAX, CONSUMER_STALLED_AFTER).await?)
    });
    let Ok(Ok(listed)) = tokio::time::timeout(PROBE_DEADLINE, listing).await else {
        return "unknown";
    };
    let is_consumed = |queue: Queue| listed.iter().any(|of| of.queue == queue.base_name());
    if listed.iter().any(|of| of.is_stalled) {
        "stalled"
    } else if is_consumed(Queue::Orders) && is_consumed(Queue::VendorSync) {
        "ok"
    } else {
        "none"
    }
}
