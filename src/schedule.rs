//! The door of time: ticks of a cron schedule, and requests for a run at once, start the sync.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::app::sync::{self, Options, Outcome};
use crate::app::{Context, Error};
use crate::db;
use crate::domain::ids::VendorId;
use crate::limit::Limit;
use crate::metrics::{SYNCS, SyncRow, SyncRun};
use crate::shutdown::Shutdown;
use crate::supervisor::{Part, Supervisor};

/// How often requests for a run at once are looked for.
const REQUEST_INTERVAL: Duration = Duration::from_secs(1);
/// A sync of a large catalogue says how far it is after each so many products.
const PROGRESS_ROWS: u64 = 100_000;
/// A look for requests is over after 15 s, whatever PostgreSQL does.
const REQUEST_LOOK_MAX: Duration = Duration::from_secs(120);
/// Each step of a sync (its beginning, a chunk) has deadlines of its own, of minutes where they are configured so.
const SYNC_STEP_MAX: Duration = Duration::from_secs(30 * 60);

/// Syncs each vendor at once, then at every tick and on every request, until the shutdown. Each vendor has a loop of its
/// own, so that a slow one holds up none; a tick that comes while a run is going is skipped.
pub async fn run_until_stopped(
    context: Context,
    schedule: cron::Schedule,
    vendors: Vec<VendorId>,
    chunk_rows: Limit,
    allow_empty: bool,
    shutdown: Shutdown,
    supervisor: &Supervisor,
) {
    let wakes: BTreeMap<VendorId, Arc<Notify>> =
        vendors.into_iter().map(|id| (id, Arc::default())).collect();
    let mut loops = JoinSet::new();
    for (vendor_id, wake) in wakes.clone() {
        let (context, schedule, shutdown) = (context.clone(), schedule.clone(), shutdown.clone());
        let chunk_rows = chunk_rows.clone();
        let syncing = supervisor.part("the sync of a vendor", SYNC_STEP_MAX);
        loops.spawn(async move {
            while !shutdown.is_begun() {
                let options = Options {
                    chunk_rows: chunk_rows.get(),
                    allow_empty,
                };
                syncing.moved();
                tokio::select! {
                    // What is not written by then is written by the next run; what is, is right.
                    () = shutdown.begun() => return,
                    () = sync_once(&context, &vendor_id, options, &syncing) => {}
                }
                syncing.rests();
                tokio::select! {
                    () = shutdown.begun() => return,
                    () = next_tick(&schedule) => {}
                    () = wake.notified() => {}
                }
            }
        });
    }
    let looking = supervisor.part("the look for syncs that are asked for", REQUEST_LOOK_MAX);
    loop {
        looking.moved();
        tokio::select! {
            // First, since the loops end by it too.
            biased;
            () = shutdown.begun() => break,
            // A vendor that is never synced again must not look synced: the process ends instead.
            Some(_) = loops.join_next() => break,
            () = tokio::time::sleep(REQUEST_INTERVAL) => wake_requested(&context, &wakes).await,
        }
    }
    if shutdown.is_begun() {
        while loops.join_next().await.is_some() {}
    }
}

async fn next_tick(schedule: &cron::Schedule) {
    let now = Utc::now();
    match schedule.upcoming(Utc).next() {
        Some(tick) => tokio::time::sleep((tick - now).to_std().unwrap_or_default()).await,
        // The configuration refuses a schedule that never comes due; one that has ended comes due no more.
        None => std::future::pending().await,
    }
}

async fn wake_requested(context: &Context, wakes: &BTreeMap<VendorId, Arc<Notify>>) {
    let requested = context
        .with_connection(async |connection| Ok(db::vendors::list_requested(connection).await?))
        .await;
    if let Ok(requested) = requested {
        for vendor_id in requested {
            if let Some(wake) = wakes.get(&vendor_id) {
                wake.notify_one();
            }
        }
    }
}

async fn sync_once(context: &Context, vendor_id: &VendorId, options: Options, syncing: &Part) {
    let started = std::time::Instant::now();
    let progress = |rows: u64| {
        syncing.moved();
        if rows >= PROGRESS_ROWS && rows % PROGRESS_ROWS < options.chunk_rows as u64 {
            tracing::info!(vendor = %vendor_id, rows, "syncing");
        }
    };
    let outcome = sync::sync(context, vendor_id, options, &progress).await;
    count(vendor_id.as_str(), &outcome, started.elapsed());
    match outcome {
        Ok(Outcome::Done(summary)) => {
            let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            if summary.written > 0 || summary.closed > 0 {
                tracing::info!(
                    vendor = %vendor_id, products = summary.listed, read = summary.read, written = summary.written,
                    updates_closed = summary.closed, elapsed_ms, "synced"
                );
            } else {
                tracing::debug!(vendor = %vendor_id, products = summary.listed, elapsed_ms, "synced, nothing changed");
            }
        }
        Ok(Outcome::Busy) => tracing::debug!(vendor = %vendor_id, "another process syncs it"),
        Ok(Outcome::Overtaken) => {
            tracing::info!(vendor = %vendor_id, "a newer run has begun; it writes the rest")
        }
        Err(error) => {
            tracing::warn!(vendor = %vendor_id, %error, "sync failed; trying again at the next tick")
        }
    }
}

fn count(vendor: &str, outcome: &Result<Outcome, Error>, took: Duration) {
    let run = match outcome {
        Ok(Outcome::Done(_)) => SyncRun::Done,
        Ok(Outcome::Busy) => SyncRun::Busy,
        Ok(Outcome::Overtaken) => SyncRun::Overtaken,
        Err(_) => SyncRun::Failed,
    };
    SYNCS.runs(vendor, run).inc();
    if let Ok(Outcome::Done(summary)) = outcome {
        SYNCS.duration(vendor).observe(took.as_secs_f64());
        SYNCS.rows(vendor, SyncRow::Listed).inc_by(summary.listed);
        SYNCS.rows(vendor, SyncRow::Read).inc_by(summary.read);
        SYNCS.rows(vendor, SyncRow::Written).inc_by(summary.written);
        SYNCS.rows(vendor, SyncRow::Skipped).inc_by(summary.skipped);
        SYNCS.closed(vendor).inc_by(summary.closed);
    }
}
