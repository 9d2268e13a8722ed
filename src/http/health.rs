//! `/healthz`: alive. `/readyz`: able to accept orders, with the state of each dependency.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::Serialize;

use super::State;
use crate::mq::Link;

/// A probe without an answer for this long has none.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Alive {
    status: &'static str,
}

/// `GET /healthz`
pub(super) async fn alive() -> HttpResponse {
    HttpResponse::Ok().json(Alive { status: "ok" })
}

#[derive(Serialize)]
struct Ready {
    status: &'static str,
    postgresql: &'static str,
    rabbitmq: &'static str,
}

/// `GET /readyz`: either store can accept an order.
pub(super) async fn ready(state: Data<State>) -> HttpResponse {
    let postgresql = state.context.store_works(PROBE_DEADLINE).await;
    let rabbitmq = match *state.publisher.link().borrow() {
        Link::Up => "up",
        Link::Connecting { .. } => "down",
        Link::Blocked { .. } => "blocked",
        Link::Misdeclared { .. } => "misdeclared",
    };
    let is_ready = postgresql || rabbitmq == "up";
    let body = Ready {
        status: if is_ready { "ready" } else { "unavailable" },
        postgresql: if postgresql { "up" } else { "down" },
        rabbitmq,
    };
    if is_ready {
        HttpResponse::Ok().json(body)
    } else {
        HttpResponse::ServiceUnavailable().json(body)
    }
}
