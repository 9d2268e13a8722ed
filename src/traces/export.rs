//! Sends spans to a collector: a task with a bounded queue in front, so that nothing that is traced waits for it.

use std::time::Duration;

use reqwest::StatusCode;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::otlp::{self, Resource};
use super::{Finished, TRACER, Tracer};
use crate::metrics::{SpanDropped, TRACES};
use crate::outgoing;

/// Spans that wait: a few seconds' worth at full speed and a tenth of the traces. About half a kilobyte each.
const SPANS_WAITING_MAX: usize = 8192;
/// Spans of one request.
const BATCH_MAX: usize = 512;
/// A batch that is not full leaves after this.
const LINGER: Duration = Duration::from_secs(1);
/// A collector is near, and answers once it has the spans in memory.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// A batch that a collector could not take is sent again after these; it may be restarting. Meanwhile the queue fills.
const AGAIN_AFTER: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// What waits when the process ends has this long to leave.
const CLOSE_DEADLINE: Duration = Duration::from_secs(3);
/// As much of an answer is read, and of one that is none is shown.
const ANSWER_BYTES_MAX: usize = 64 << 10;
const SHOWN_CHARS_MAX: usize = 200;

/// Where spans go.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The base of the collector's address; `/v1/traces` is appended.
    pub endpoint: String,
    /// The address without what it may hold of a password.
    pub shown_endpoint: String,
    /// The share of traces that begin here and are recorded.
    pub sample_ratio: f64,
    /// What the process is called among others.
    pub service: String,
}

/// Exports until it is closed.
#[derive(Debug, Default)]
pub struct Exporting {
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

/// Begins to record spans in this process and to export them. Once in a process; again changes nothing.
///
/// # Errors
/// The TLS library cannot be set up.
pub fn export(settings: Settings) -> Result<Exporting, reqwest::Error> {
    let http = outgoing::client(!settings.endpoint.starts_with("http:"))
        .timeout(REQUEST_DEADLINE)
        .build()?;
    let (queue, waiting) = mpsc::channel(SPANS_WAITING_MAX);
    let tracer = Tracer {
        sample_ratio: settings.sample_ratio,
        queue,
    };
    if TRACER.set(tracer).is_err() {
        return Ok(Exporting::default());
    }
    let closing = CancellationToken::new();
    let exporter = Exporter {
        http,
        url: format!("{}/v1/traces", settings.endpoint),
        shown: settings.shown_endpoint,
        resource: Resource {
            service: settings.service,
            instance: uuid::Uuid::new_v4().to_string(),
        },
        closing: closing.clone(),
        is_away: false,
    };
    let task = tokio::spawn(exporter.run(waiting));
    Ok(Exporting {
        running: Some((closing, task)),
    })
}

impl Exporting {
    /// Sends what waits still, within a deadline.
    pub async fn close(self) {
        let Some((closing, task)) = self.running else {
            return;
        };
        closing.cancel();
        if timeout(CLOSE_DEADLINE, task).await.is_err() {
            tracing::warn!("not all spans have left for the collector of traces by the end");
        }
    }
}

struct Exporter {
    http: reqwest::Client,
    url: String,
    shown: String,
    resource: Resource,
    closing: CancellationToken,
    /// Said once, and not for each batch.
    is_away: bool,
}

/// Why a collector has not taken a batch.
struct NotTaken {
    problem: String,
    /// It may do so later.
    is_for_now: bool,
}

impl Exporter {
    async fn run(mut self, mut waiting: mpsc::Receiver<Finished>) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            tokio::select! {
                biased;
                taken = waiting.recv_many(&mut batch, BATCH_MAX) => if taken == 0 {
                    return;
                },
                () = self.closing.cancelled(), if !waiting.is_closed() => {
                    // What is in it is handed out still, and then it is at its end.
                    waiting.close();
                    continue;
                }
            }
            let until = Instant::now() + LINGER;
            while batch.len() < BATCH_MAX && !waiting.is_closed() {
                let room = BATCH_MAX - batch.len();
                let more = waiting.recv_many(&mut batch, room);
                tokio::select! {
                    () = self.closing.cancelled() => break,
                    more = timeout_at(until, more) => if more.is_err() {
                        break;
                    },
                }
            }
            self.send(&batch).await;
            batch.clear();
        }
    }

    /// Sends a batch, more than once where that may help.
    async fn send(&mut self, spans: &[Finished]) {
        let body = otlp::request(&self.resource, spans).to_string();
        let mut pauses = AGAIN_AFTER.iter();
        loop {
            let NotTaken {
                problem,
                is_for_now,
            } = match self.post(body.clone()).await {
                Ok(rejected) => {
                    let rejected = rejected.min(spans.len() as u64);
                    TRACES.exported.inc_by(spans.len() as u64 - rejected);
                    TRACES.dropped.of(SpanDropped::Refused).inc_by(rejected);
                    if std::mem::take(&mut self.is_away) {
                        tracing::info!(
                            collector = self.shown,
                            "the collector of traces takes spans again"
                        );
                    }
                    return;
                }
                Err(not_taken) => not_taken,
            };
            if !std::mem::replace(&mut self.is_away, true) {
                tracing::warn!(
                    collector = self.shown,
                    problem,
                    "the collector of traces takes no spans; until it does they are dropped, and nothing else is affected"
                );
            }
            let again = match pauses.next() {
                Some(pause) if is_for_now => *pause,
                _ => {
                    let reason = match is_for_now {
                        true => SpanDropped::CollectorAway,
                        false => SpanDropped::Refused,
                    };
                    TRACES.dropped.of(reason).inc_by(spans.len() as u64);
                    return;
                }
            };
            tokio::select! {
                () = tokio::time::sleep(again) => {}
                // The end is near: one more attempt.
                () = self.closing.cancelled() => pauses = [].iter(),
            }
        }
    }

    /// Returns how many of the spans the collector has refused.
    async fn post(&self, body: String) -> Result<u64, NotTaken> {
        let unreachable = |error: reqwest::Error| NotTaken {
            problem: outgoing::with_sources(&error.without_url()),
            is_for_now: true,
        };
        let request = self
            .http
            .post(&self.url)
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(body);
        let mut response = request.send().await.map_err(unreachable)?;
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            let room = ANSWER_BYTES_MAX.saturating_sub(answer.len());
            answer.extend_from_slice(&chunk[..room.min(chunk.len())]);
            if answer.len() >= ANSWER_BYTES_MAX {
                break;
            }
        }
        let status = response.status();
        if status.is_success() {
            return Ok(otlp::rejected(&answer));
        }
        let shown: String = String::from_utf8_lossy(&answer)
            .chars()
            .filter(|c| !c.is_control())
            .take(SHOWN_CHARS_MAX)
            .collect();
        Err(NotTaken {
            problem: format!("it answered {status}: {shown}"),
            // As the specification of OTLP says.
            is_for_now: [
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::BAD_GATEWAY,
                StatusCode::SERVICE_UNAVAILABLE,
                StatusCode::GATEWAY_TIMEOUT,
            ]
            .contains(&status),
        })
    }
}
