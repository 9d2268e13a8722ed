//! How things go right now, for people who look: read once for all of them, and of the newest orders only, so that it
//! costs the same however many there are.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Context, Error, accept};
use crate::db;
use crate::db::gauges::{OfVendor, Waiting};
use crate::db::overview::{Bucket, Waited};

/// Who looks more often sees the same figures again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What is older is not how things go right now.
pub const WINDOW: Duration = Duration::from_secs(120);
/// How finely the window is divided.
pub const BUCKET: Duration = Duration::from_secs(2);
/// Orders that are read. At a high rate they reach back less far than the window.
const ORDERS_MAX: i64 = 10_000;
/// The newest spans of which the rate is taken.
const RATE_OF: Duration = Duration::from_secs(10);

/// How things go.
#[derive(Debug, Clone)]
pub struct Overview {
    /// When it was looked at.
    pub at: DateTime<Utc>,
    /// Orders by the time at which they were accepted; spans that are read whole, the oldest first.
    pub buckets: Vec<Bucket>,
    /// Orders accepted in a second, over the last seconds.
    pub accepted_per_second: f64,
    /// How long these orders waited for their decision.
    pub waited: Waited,
    /// Orders that are not decided, however long they wait.
    pub pending: Waiting,
    /// Orders that were given up and that nobody has replayed or dropped.
    pub failed: Waiting,
    /// What waits in the outbox.
    pub outbox: Waiting,
    /// What the vendors have not answered for.
    pub vendors: Vec<OfVendor>,
}

/// When it was read, and what.
type Read = (Instant, Arc<Overview>);

/// Where people look.
#[derive(Clone)]
pub struct Overviews {
    context: Context,
    newest: Arc<Mutex<Option<Read>>>,
}

impl Overviews {
    /// Prepares to look.
    #[must_use]
    pub fn new(context: Context) -> Self {
        Self {
            context,
            newest: Arc::default(),
        }
    }

    /// How things go, or went a moment ago.
    ///
    /// # Errors
    /// Our database cannot be read.
    pub async fn look(&self) -> Result<Arc<Overview>, Error> {
        // Whoever comes meanwhile waits for the same look.
        let mut newest = self.newest.lock().await;
        if let Some((at, overview)) = &*newest
            && at.elapsed() < LOOK_EVERY
        {
            return Ok(Arc::clone(overview));
        }
        let overview = Arc::new(self.read().await?);
        *newest = Some((Instant::now(), Arc::clone(&overview)));
        Ok(overview)
    }

    async fn read(&self) -> Result<Overview, Error> {
        let vendors = self.context.vendor_ids();
        self.context
            .with_connection(async |connection| {
                let buckets =
                    db::overview::list_buckets(connection, ORDERS_MAX, WINDOW, BUCKET).await?;
                let at = accept::now();
                let (buckets, accepted_per_second) = judge(buckets, at.timestamp());
                Ok(Overview {
                    at,
                    buckets,
                    accepted_per_second,
                    waited: db::overview::find_waited(connection, ORDERS_MAX, WINDOW).await?,
                    pending: db::gauges::pending(connection).await?,
                    failed: db::gauges::failed(connection).await?,
                    outbox: db::gauges::outbox(connection).await?,
                    vendors: db::gauges::vendors(connection, &vendors).await?,
                })
            })
            .await
    }
}

fn accepted(bucket: &Bucket) -> i64 {
    bucket.pending + bucket.confirmed + bucket.rejected + bucket.failed + bucket.cancelled
}

/// Leaves out a first span of which only a part was read, and takes the rate of those that are over.
fn judge(mut buckets: Vec<Bucket>, now: i64) -> (Vec<Bucket>, f64) {
    let span = i64::try_from(BUCKET.as_secs()).unwrap_or(1);
    let window = i64::try_from(WINDOW.as_secs()).unwrap_or(i64::MAX);
    let is_cut = buckets.iter().map(accepted).sum::<i64>() >= ORDERS_MAX
        || buckets
            .first()
            .is_some_and(|oldest| oldest.at < now - window);
    if is_cut && buckets.len() > 1 {
        buckets.remove(0);
    }
    let begun = now - now.rem_euclid(span);
    let of = i64::try_from(RATE_OF.as_secs()).unwrap_or(1);
    let since = match buckets.first() {
        // It is not known what was before.
        Some(oldest) if is_cut => oldest.at.max(begun - of),
        _ => begun - of,
    };
    let over: i64 = buckets
        .iter()
        .filter(|bucket| (since..begun).contains(&bucket.at))
        .map(accepted)
        .sum();
    let rate = if begun > since {
        over as f64 / (begun - since) as f64
    } else {
        // Not even one span that is over was read whole.
        buckets.iter().map(accepted).sum::<i64>() as f64 / span as f64
    };
    (buckets, rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(at: i64, confirmed: i64) -> Bucket {
        Bucket {
            at,
            confirmed,
            pending: 1,
            rejected: 0,
            failed: 0,
            cancelled: 0,
        }
    }

    #[test]
    fn the_rate_is_that_of_the_spans_that_are_over() {
        let (buckets, rate) = judge(vec![bucket(80, 99), bucket(94, 9), bucket(100, 49)], 101);
        assert_eq!(buckets.len(), 3);
        assert!((rate - 1.0).abs() < 1e-9, "10 orders in 10 s, not {rate}");
        assert!(judge(Vec::new(), 101).1.abs() < 1e-9);
    }

    #[test]
    fn a_span_that_was_read_in_part_is_left_out_and_the_rate_is_of_what_was_read() {
        let newest = vec![bucket(94, 998), bucket(96, 3999), bucket(98, 4999)];
        let (buckets, rate) = judge(newest, 100);
        assert_eq!(
            buckets.iter().map(|b| b.at).collect::<Vec<_>>(),
            [94, 96, 98]
        );
        assert!((rate - 999.9).abs() < 1e-9, "not {rate}");
        let newest = vec![bucket(94, 999), bucket(96, 4000), bucket(98, 4999)];
        let (buckets, rate) = judge(newest, 100);
        assert_eq!(buckets.iter().map(|b| b.at).collect::<Vec<_>>(), [96, 98]);
        assert!((rate - 2250.25).abs() < 1e-9, "not {rate}");
    }
}
