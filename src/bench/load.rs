//! Sends the orders.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::api::Api;
use super::connection::{Answer, Connection};
use super::measured::Measured;
use super::plan::{Chooser, Pace, Plan};

/// Orders that each worker names to be looked at one by one, beside its last.
const SAMPLES_OF_EACH: usize = 20;
/// A worker that cannot connect tries again after this.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// Sends orders as the plan says, and returns what came back.
pub(super) async fn generate(api: &Api, plan: &Plan, chooser: Chooser) -> Measured {
    let start = Instant::now();
    let run = Arc::new(Run {
        api: api.clone(),
        plan: plan.clone(),
        chooser,
        reference: format!("bench {}", uuid::Uuid::new_v4().simple()),
        warm_until: start + plan.warm_up,
        end: start + plan.warm_up + plan.duration,
        start,
        tickets: AtomicU64::new(0),
    });
    let mut workers = JoinSet::new();
    for _ in 0..plan.connections {
        workers.spawn(Arc::clone(&run).work());
    }
    let mut measured = Measured::default();
    while let Some(worker) = workers.join_next().await {
        if let Ok(of_worker) = worker {
            measured.add_all(of_worker);
        }
    }
    measured.reference.clone_from(&run.reference);
    measured.took = run.warm_until.elapsed();
    measured
}

struct Run {
    api: Api,
    plan: Plan,
    chooser: Chooser,
    reference: String,
    start: Instant,
    warm_until: Instant,
    end: Instant,
    /// Requests begun, of all workers.
    tickets: AtomicU64,
}

#[derive(Serialize)]
struct Order<'a> {
    lines: Vec<Line<'a>>,
    reference: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    product_id: &'a str,
    quantity: i64,
}

#[derive(Deserialize)]
struct Accepted {
    id: String,
}

#[derive(Deserialize)]
struct Refused {
    code: String,
}

impl Run {
    async fn work(self: Arc<Self>) -> Measured {
        let mut measured = Measured::default();
        let mut connection = None;
        let mut last = None;
        while let Some(begun) = self.next_start().await {
            let is_measured = begun >= self.warm_until;
            let answer = self.order(&mut connection, is_measured).await;
            let latency = begun.elapsed();
            if !is_measured {
                continue;
            }
            match answer {
                Ok(answer) if (200..300).contains(&answer.status) => {
                    measured.accepted.add(latency);
                    let Ok(Accepted { id }) = serde_json::from_slice(&answer.body) else {
                        continue;
                    };
                    if measured.samples.len() < SAMPLES_OF_EACH {
                        measured.samples.push(id.clone());
                    }
                    last = Some(id);
                }
                Ok(answer) => {
                    let code = serde_json::from_slice(&answer.body).map_or_else(
                        |_| answer.status.to_string(),
                        |refused: Refused| refused.code,
                    );
                    *measured.refused.entry(code).or_default() += 1;
                }
                Err(problem) => {
                    *measured.failed.entry(problem).or_default() += 1;
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                }
            }
        }
        measured.samples.extend(last);
        measured
    }

    /// When the next request is meant to start, once it is time; none at the end.
    async fn next_start(&self) -> Option<Instant> {
        let begun = match self.plan.pace {
            Pace::Closed => Instant::now(),
            Pace::Open(rate) => {
                let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
                #[expect(clippy::cast_precision_loss, reason = "2^52 requests take long")]
                let after = Duration::from_secs_f64(ticket as f64 / rate);
                let at = self.start + after;
                if at < self.end {
                    tokio::time::sleep_until(at.into()).await;
                }
                at
            }
        };
        (begun < self.end).then_some(begun)
    }

    async fn order(
        &self,
        connection: &mut Option<Connection>,
        is_measured: bool,
    ) -> Result<Answer, String> {
        let order = Order {
            lines: (0..self.plan.lines)
                .map(|_| Line {
                    product_id: self.chooser.at(fastrand::f64()),
                    quantity: self.plan.quantity,
                })
                .collect(),
            // Those of the warm-up are nobody's.
            reference: if is_measured {
                &self.reference
            } else {
                "bench"
            },
        };
        let body = serde_json::to_vec(&order).map_err(|error| error.to_string())?;
        let mut open = match connection.take() {
            Some(open) => open,
            None => self
                .api
                .connect()
                .await
                .map_err(|error| error.to_string())?,
        };
        let answer = open.send("POST", &self.api.path("/orders"), &body).await?;
        if answer.goes_on {
            *connection = Some(open);
        }
        Ok(answer)
    }
}
