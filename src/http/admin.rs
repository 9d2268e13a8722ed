//! `/admin`: what an operator asks for.

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::Serialize;

use super::State;
use super::problem::Problem;
use crate::app::Error;
use crate::db;
use crate::mq;

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
