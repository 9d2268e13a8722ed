//! Checks what must always hold on the live data, in one consistent snapshot per database, without locks and in bounded
//! memory. What is compared across databases, or with the broker, may have been on its way: it is looked at again before
//! it counts.

mod ledgers;
mod waiting;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::{Context, Error};
use crate::db;
use crate::db::audit::{OfOrders, OfStock, OfUpdates, Snapshot};
use crate::domain::audit::{Check, Found, Violation};
use crate::mq;
use crate::pg;

/// One statement has the time that the server gives it, and the way there and back.
const READ_DEADLINE: Duration = pg::LONG_READ_DEADLINE.saturating_add(Duration::from_secs(30));

/// How an audit is run.
#[derive(Clone)]
pub struct Options {
    /// The broker, which is asked what waits in its queues.
    pub broker: mq::Settings,
    /// How long what seems stuck is watched before it counts.
    pub patience: Duration,
    /// How long a call of a vendor may take: as long, an update may be on its way outside any queue.
    pub vendor_timeout: Duration,
}

/// What one check has come to.
#[derive(Debug, Clone)]
pub struct Finding {
    /// Which check.
    pub check: Check,
    /// What was looked at, and how much of it.
    pub looked_at: Vec<(&'static str, u64)>,
    /// What must not be.
    pub found: Found,
    /// What whoever reads this should know.
    pub notes: Vec<String>,
    /// What could not be looked at, and why.
    pub failures: Vec<String>,
    /// How long it took.
    pub duration: Duration,
}

impl Finding {
    fn new(check: Check) -> Self {
        Self {
            check,
            looked_at: Vec::new(),
            found: Found::default(),
            notes: Vec::new(),
            failures: Vec::new(),
            duration: Duration::ZERO,
        }
    }

    fn count(&mut self, what: &'static str, count: u64) {
        self.looked_at.push((what, count));
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let looked_at: BTreeMap<&str, u64> = self.looked_at.iter().copied().collect();
        let violations: &[Violation] = &self.found.shown;
        let mut map = serializer.serialize_map(Some(7))?;
        map.serialize_entry("name", &self.check)?;
        map.serialize_entry("looked_at", &looked_at)?;
        map.serialize_entry("violations_total", &self.found.total)?;
        map.serialize_entry("violations", violations)?;
        map.serialize_entry("notes", &self.notes)?;
        map.serialize_entry("failures", &self.failures)?;
        map.serialize_entry("duration_ms", &milliseconds(self.duration))?;
        map.end()
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What an audit has come to.
#[derive(Debug, Clone)]
pub struct Report {
    /// One for each check, in their order; none when nothing could be looked at.
    pub findings: Vec<Finding>,
    /// Why nothing could be looked at.
    pub failures: Vec<String>,
    /// How long it took.
    pub duration: Duration,
}

impl Report {
    /// Nothing could be looked at.
    #[must_use]
    pub fn of_nothing(why: String) -> Self {
        Self {
            findings: Vec::new(),
            failures: vec![why],
            duration: Duration::ZERO,
        }
    }

    /// How many violations there are.
    #[must_use]
    pub fn violations(&self) -> u64 {
        self.findings.iter().map(|one| one.found.total).sum()
    }

    /// How many things could not be looked at.
    #[must_use]
    pub fn failures(&self) -> usize {
        let of_checks = self.findings.iter().map(|one| one.failures.len());
        self.failures.len() + of_checks.sum::<usize>()
    }

    /// Everything was looked at, and is as it must be.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.violations() == 0 && self.failures() == 0
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(4))?;
        map.serialize_entry("clean", &self.is_clean())?;
        map.serialize_entry("checks", &self.findings)?;
        map.serialize_entry("failures", &self.failures)?;
        map.serialize_entry("duration_ms", &milliseconds(self.duration))?;
        map.end()
    }
}

/// Runs every check once. `progress` is told which one has begun.
///
/// # Errors
/// Our own database cannot be read. A vendor's that cannot is a failure in the report, and the rest is checked.
pub async fn audit(
    context: &Context,
    options: &Options,
    progress: &(dyn Fn(Check) + Send + Sync),
) -> Result<Report, Error> {
    let begun = Instant::now();
    let mut findings = Vec::with_capacity(Check::ALL.len());
    let seed = fastrand::i64(..);
    let mut snapshot = within(Snapshot::open(context.database.settings(), seed)).await?;
    // First, since the vendors' snapshots are open for as long.
    progress(Check::Ledgers);
    let (updates, ledgers) = timed(Check::Ledgers, async |finding| {
        ledgers::check(context, &mut snapshot, seed, finding).await
    })
    .await?;
    progress(Check::OpenFigures);
    let (stock, finding) = timed(Check::OpenFigures, async |finding| {
        let stock = within(snapshot.sum_stock()).await?;
        open_figures(&mut snapshot, stock, updates, finding).await?;
        Ok(stock)
    })
    .await?;
    findings.push(finding);
    progress(Check::Movements);
    let ((), finding) = timed(Check::Movements, async |finding| {
        movements(&mut snapshot, stock, updates, finding).await
    })
    .await?;
    findings.push(finding);
    progress(Check::Oversold);
    let ((), finding) = timed(Check::Oversold, async |finding| {
        finding.count("stock_rows", stock.rows);
        finding.found = within(snapshot.find_oversold()).await?;
        Ok(())
    })
    .await?;
    findings.push(finding);
    progress(Check::OrderLines);
    let (orders, finding) = timed(Check::OrderLines, async |finding| {
        let orders = within(snapshot.sum_orders()).await?;
        order_lines(&mut snapshot, orders, updates, finding).await?;
        Ok(orders)
    })
    .await?;
    findings.push(finding);
    progress(Check::OrderStatus);
    let ((), finding) = timed(Check::OrderStatus, async |finding| {
        order_status(&mut snapshot, orders, finding).await
    })
    .await?;
    findings.push(finding);
    // What follows is about now, and nobody's old rows need to be kept for it.
    drop(snapshot);
    findings.push(ledgers);
    progress(Check::Overdue);
    let ((), finding) = timed(Check::Overdue, async |finding| {
        waiting::overdue(context, options, orders, finding).await
    })
    .await?;
    findings.push(finding);
    progress(Check::Outbox);
    let ((), finding) = timed(Check::Outbox, async |finding| {
        waiting::outbox(context, options, finding).await
    })
    .await?;
    findings.push(finding);
    Ok(Report {
        findings,
        failures: Vec::new(),
        duration: begun.elapsed(),
    })
}

/// Notes what was found, for processes that go on longer than an audit does.
///
/// # Errors
/// Our own database takes no writes, or not from this role.
pub async fn note(context: &Context, report: &Report) -> Result<(), Error> {
    let findings: Vec<(&str, u64, u64)> = report
        .findings
        .iter()
        .map(|one| {
            let failures = one.failures.len() as u64;
            (one.check.as_str(), one.found.total, failures)
        })
        .collect();
    context
        .with_connection(
            async |connection| Ok(db::gauges::note_audit(connection, &findings).await?),
        )
        .await
}

/// A check, and what it has learnt for those after it: a scan that several need is made, and timed, by the first.
async fn timed<T>(
    check: Check,
    work: impl AsyncFnOnce(&mut Finding) -> Result<T, Error>,
) -> Result<(T, Finding), Error> {
    let begun = Instant::now();
    let mut finding = Finding::new(check);
    let learnt = work(&mut finding).await?;
    finding.duration = begun.elapsed();
    Ok((learnt, finding))
}

/// A server that is open but silent ends no statement by itself.
async fn within<T>(read: impl Future<Output = Result<T, pg::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(READ_DEADLINE, read).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Error::NotYet(format!(
            "PostgreSQL has not answered within {} s",
            READ_DEADLINE.as_secs()
        ))),
    }
}

async fn open_figures(
    snapshot: &mut Snapshot,
    stock: OfStock,
    updates: OfUpdates,
    finding: &mut Finding,
) -> Result<(), Error> {
    finding.count("stock_rows", stock.rows);
    finding.count("unclosed_updates", updates.unclosed);
    if stock.open != updates.open {
        finding.found = within(snapshot.find_open_figures_apart()).await?;
    }
    if within(snapshot.count_listed()).await? != updates.unclosed {
        let unlisted = within(snapshot.find_unlisted()).await?;
        finding.found.append(unlisted);
    }
    Ok(())
}

async fn movements(
    snapshot: &mut Snapshot,
    stock: OfStock,
    updates: OfUpdates,
    finding: &mut Finding,
) -> Result<(), Error> {
    let (changes, changed) = within(snapshot.sum_vendor_changes()).await?;
    finding.count("stock_rows", stock.rows);
    finding.count("vendor_changes", changes);
    finding.count("updates", updates.rows);
    if stock.moved != changed + updates.moved {
        finding.found = within(snapshot.find_movements_apart()).await?;
    }
    Ok(())
}

async fn order_lines(
    snapshot: &mut Snapshot,
    orders: OfOrders,
    updates: OfUpdates,
    finding: &mut Finding,
) -> Result<(), Error> {
    finding.count("orders", orders.rows);
    finding.count("updates", updates.rows);
    // What is taken is negative.
    if orders.ordered + updates.taken != 0 {
        finding.found = within(snapshot.find_lines_apart()).await?;
    }
    if updates.odd > 0 {
        let stray = within(snapshot.find_stray_updates()).await?;
        let counted = stray.total.saturating_sub(stray.shown.len() as u64);
        finding.found.extend(stray.shown);
        finding.found.total += counted;
    }
    Ok(())
}

async fn order_status(
    snapshot: &mut Snapshot,
    orders: OfOrders,
    finding: &mut Finding,
) -> Result<(), Error> {
    finding.count("orders", orders.rows);
    let (failed, contradictory) = within(snapshot.count_histories()).await?;
    if orders.contradictory > 0 || contradictory > 0 || failed != orders.failed {
        finding.found = within(snapshot.find_contradictory_orders()).await?;
    }
    Ok(())
}
