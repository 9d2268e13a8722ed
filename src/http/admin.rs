//! `/admin`: what an operator asks for.

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::body::{Nothing, read_nothing};
use super::problem::Problem;
use super::{State, answer, detached};
use crate::app::Error;
use crate::app::gauges;
use crate::app::overview::BUCKET;
use crate::db;
use crate::db::gauges::Waiting;
use crate::db::overview::Bucket;
use crate::mq;

/// Asking the broker for the depth of all queues takes milliseconds.
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
    request_body(content = Nothing, description = "None, or an empty object", example = json!({})),
    responses((status = 202, description = "Asked for; the sync loop does it", body = SyncResponse, example = json!({"requested": ["vendorA", "vendorB"]})))
)]
pub(super) async fn sync(
    request: HttpRequest,
    payload: Payload,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    read_nothing(&request, payload).await?;
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
#[serde(rename_all = "camelCase")]
#[schema(as = Queue)]
struct QueueResponse {
    name: &'static str,
    /// Messages that wait; one may hold a hundred orders that were accepted together.
    ready: u32,
    consumers: u32,
    /// How many messages in a second, over the last seconds: of a queue that is worked on those that were finished, of
    /// another those that consumers sent there. Null while PostgreSQL, which keeps it, does not answer.
    per_second: Option<f64>,
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
    responses((status = 200, description = "All queues", body = QueuesResponse, example = json!({"queues": [{"name": "orders_queue", "ready": 0, "consumers": 1, "perSecond": 12.5}]})))
)]
pub(super) async fn queues(state: Data<State>) -> Result<HttpResponse, Problem> {
    let (depths, rates) = tokio::join!(
        mq::depths(&state.broker, DEPTHS_DEADLINE),
        gauges::queue_rates(&state.context)
    );
    let depths = depths.map_err(Error::from)?;
    Ok(HttpResponse::Ok().json(QueuesResponse {
        queues: depths
            .into_iter()
            .map(|depth| QueueResponse {
                name: depth.queue.base_name(),
                ready: depth.messages_ready,
                consumers: depth.consumers,
                per_second: rates.as_ref().map(|rates| rates.of(depth.queue)),
            })
            .collect(),
    }))
}

/// How things go right now.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Overview)]
struct OverviewResponse {
    at: DateTime<Utc>,
    /// Orders accepted in a second, over the last ten seconds.
    accepted_per_second: f64,
    /// Seconds that the buckets reach back.
    span_seconds: i64,
    orders: Counts,
    decision: Latency,
    /// Orders that are not decided, however old; of the newest 10 000.
    pending: Standing,
    /// Orders that were given up, until their dead letters are replayed or dropped, however old; of the newest 10 000.
    failed: Standing,
    outbox: Outbox,
    vendors: Vec<VendorResponse>,
    bucket_seconds: u64,
    /// Of the newest 10 000 orders those of the last two minutes, by the time at which they were accepted; the oldest
    /// first. Spans without an order are left out.
    buckets: Vec<BucketResponse>,
}

/// Orders by status.
#[derive(Serialize, ToSchema, Default, Clone, Copy)]
struct Counts {
    pending: i64,
    confirmed: i64,
    rejected: i64,
    failed: i64,
    cancelled: i64,
}

/// From acceptance to decision; null where nothing was decided.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Latency {
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
}

/// Orders that wait for something.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Standing {
    orders: i64,
    oldest_seconds: f64,
}

impl From<Waiting> for Standing {
    fn from(waiting: Waiting) -> Self {
        Self {
            orders: waiting.count,
            oldest_seconds: waiting.oldest_age,
        }
    }
}

/// What a vendor has not answered for, dead letters not counted.
#[derive(Serialize, ToSchema)]
#[schema(as = VendorLag)]
#[serde(rename_all = "camelCase")]
struct VendorResponse {
    id: String,
    unanswered: i64,
    /// The age of the oldest; 0 where there is none.
    lag_seconds: f64,
}

/// Messages that wait in PostgreSQL for the broker.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Outbox {
    messages: i64,
    oldest_seconds: f64,
}

/// The orders of one span of time.
#[derive(Serialize, ToSchema)]
struct BucketResponse {
    at: DateTime<Utc>,
    #[serde(flatten)]
    orders: Counts,
}

impl From<&Bucket> for Counts {
    fn from(bucket: &Bucket) -> Self {
        Self {
            pending: bucket.pending,
            confirmed: bucket.confirmed,
            rejected: bucket.rejected,
            failed: bucket.failed,
            cancelled: bucket.cancelled,
        }
    }
}

/// How things go
///
/// The newest orders summed up, read at most once a second however many look.
#[utoipa::path(
    get, path = "/admin/overview", tag = "operations",
    responses((status = 200, description = "How things go", body = OverviewResponse, example = json!({
        "at": "2026-11-26T01:42:20.5Z", "acceptedPerSecond": 0.2, "spanSeconds": 4,
        "orders": {"pending": 0, "confirmed": 1, "rejected": 1, "failed": 0, "cancelled": 0},
        "decision": {"p50Ms": 41.5, "p95Ms": 66.7, "p99Ms": 68.9}, "pending": {"orders": 0, "oldestSeconds": 0.0}, "failed": {"orders": 0, "oldestSeconds": 0.0}, "outbox": {"messages": 0, "oldestSeconds": 0.0},
        "vendors": [{"id": "vendorA", "unanswered": 0, "lagSeconds": 0.0}], "bucketSeconds": 2,
        "buckets": [{"at": "2026-11-26T01:42:16Z", "pending": 0, "confirmed": 1, "rejected": 1, "failed": 0, "cancelled": 0}]})))
)]
pub(super) async fn overview(
    request: HttpRequest,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let overviews = state.overviews.clone();
    // To its end, also when the caller goes away: the look belongs to all who look.
    let overview = detached(async move { overviews.look().await }).await?;
    let mut orders = Counts::default();
    for bucket in &overview.buckets {
        orders.pending += bucket.pending;
        orders.confirmed += bucket.confirmed;
        orders.rejected += bucket.rejected;
        orders.failed += bucket.failed;
        orders.cancelled += bucket.cancelled;
    }
    let since = overview.buckets.first().map(|bucket| bucket.at);
    let ms = |seconds: Option<f64>| seconds.map(|seconds| (seconds * 10_000.0).round() / 10.0);
    answer::json(
        &request,
        &OverviewResponse {
            at: overview.at,
            accepted_per_second: overview.accepted_per_second,
            span_seconds: since.map_or(0, |since| overview.at.timestamp() - since),
            orders,
            decision: Latency {
                p50_ms: ms(overview.waited.p50),
                p95_ms: ms(overview.waited.p95),
                p99_ms: ms(overview.waited.p99),
            },
            pending: overview.pending.into(),
            failed: overview.failed.into(),
            vendors: overview
                .vendors
                .iter()
                .map(|vendor| VendorResponse {
                    id: vendor.id.clone(),
                    unanswered: vendor.unanswered,
                    lag_seconds: vendor.lag,
                })
                .collect(),
            outbox: Outbox {
                messages: overview.outbox.count,
                oldest_seconds: overview.outbox.oldest_age,
            },
            bucket_seconds: BUCKET.as_secs(),
            buckets: overview
                .buckets
                .iter()
                .map(|bucket| BucketResponse {
                    at: DateTime::from_timestamp(bucket.at, 0).unwrap_or_default(),
                    orders: bucket.into(),
                })
                .collect(),
        },
    )
}
