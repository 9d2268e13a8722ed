//! `/admin`: what an operator asks for.

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::Serialize;
use utoipa::ToSchema;

use super::State;
use super::problem::Problem;
use crate::app::Error;
use crate::db;
use crate::mq;

/// Asking the broker for the depth of six queues takes milliseconds.
const DEPTHS_DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);

/// The vendors whose sync was asked for.
#[derive(Serialize, ToSchema)]
#[schema(as = SyncRequested)]
struct SyncResponse {
    requested: Vec<String>,
}

/// Sync all vendors now
#[utoipa::path(
    post, path = "/admin/sync", tag = "operations",
    responses((status = 202, description = "Asked for; the sync loop does it", body = SyncResponse, example = json!({"requested": ["vendorA", "vendorB"]})))
)]
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

/// A queue.
#[derive(Serialize, ToSchema)]
#[schema(as = Queue)]
struct QueueResponse {
    name: &'static str,
    /// Messages that wait; one may hold a hundred orders that were accepted together.
    ready: u32,
    consumers: u32,
}

/// The queues.
#[derive(Serialize, ToSchema)]
#[schema(as = QueueList)]
struct QueuesResponse {
    queues: Vec<QueueResponse>,
}

/// What waits in the queues
#[utoipa::path(
    get, path = "/admin/queues", tag = "operations",
    responses((status = 200, description = "All queues", body = QueuesResponse, example = json!({"queues": [{"name": "orders_queue", "ready": 0, "consumers": 1}]})))
)]
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
