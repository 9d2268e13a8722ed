//! The end of a run: everything drains, and the books have to be right.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use stockctl::{commands, config, mq};

use crate::findings::Findings;
use crate::load::{Lines, Memory, Record, Told};
use crate::stage::{Addresses, INITIAL, ORDERS, Stage, VENDORS};

/// Below the 5 minutes after which the slow sweep sends again what was lost: needing that is losing.
const DRAINS_WITHIN: Duration = Duration::from_secs(150);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// It works again, but the machine may be busy.
const BROKER_ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// A letter that comes back as often is not one of an outage.
const REPLAYS_MAX: usize = 5;

/// Units and orders that went wrong, all of which have to be zero.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    /// Orders that were accepted and are not final.
    pub(crate) lost: usize,
    /// Orders that exist twice, and units that left a vendor more than once.
    pub(crate) duplicated: i64,
    /// Units that were promised and have not left a vendor.
    pub(crate) oversold: i64,
    /// How many dead letters there were, by queue and reason.
    pub(crate) letters: BTreeMap<String, usize>,
    /// Orders in the database, by status.
    pub(crate) statuses: BTreeMap<String, i64>,
    /// How often the slow sweep had to send something again: the last resort for what the broker has lost.
    pub(crate) slow_sweeps: usize,
    /// What `audit` said.
    pub(crate) audit: String,
}

/// An order as the database has it.
struct Stored {
    key: Option<String>,
    status: String,
    lines: Lines,
    reason: String,
}

impl Stage {
    /// Waits until nothing is on its way; replays what outages have brought into the dead-letter queues.
    pub(crate) async fn drain(&self, sums: &mut Sums) -> anyhow::Result<()> {
        let until = Instant::now() + DRAINS_WITHIN;
        let database = self.addresses.connect(ORDERS).await?;
        let mut replays = 0;
        loop {
            let row = database
                .query_one(
                    "SELECT (SELECT count(*) FROM orders WHERE status = 'pending'),
                            (SELECT count(*) FROM stock_updates WHERE state = 'open'),
                            (SELECT count(*) FROM outbox)",
                    &[],
                )
                .await?;
            let rows: [i64; 3] = [row.get(0), row.get(1), row.get(2)];
            let queues = self.queues().await?;
            let letters = queues
                .iter()
                .any(|(name, n)| name.ends_with("_dlq") && *n > 0);
            let on_the_way = queues
                .iter()
                .any(|(name, n)| !name.ends_with("_dlq") && *n > 0);
            if rows == [0, 0, 0] && !letters && !on_the_way {
                return Ok(());
            }
            if letters && !on_the_way && replays < REPLAYS_MAX {
                replays += 1;
                self.replay(sums).await?;
            }
            if Instant::now() > until {
                self.findings.violation(format!(
                    "not drained after {DRAINS_WITHIN:?}: {} orders pending, {} updates open, {} outbox rows, {queues:?}",
                    rows[0], rows[1], rows[2]
                ));
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The messages that wait, by queue.
    pub(crate) async fn queues(&self) -> anyhow::Result<BTreeMap<&'static str, u32>> {
        let config = config::load(Some(&self.addresses.config_file))?;
        let depths = mq::depths(&commands::broker_settings(&config), BROKER_ANSWERS_WITHIN).await?;
        Ok(depths
            .into_iter()
            .map(|depth| (depth.queue.base_name(), depth.messages_ready))
            .collect())
    }

    /// Sends dead letters back. Outages explain those to a vendor that was away, and those whose consumers were killed.
    async fn replay(&self, sums: &mut Sums) -> anyhow::Result<()> {
        for queue in ["orders_dlq", "vendor_sync_dlq"] {
            for (reason, count) in self.letters(queue).await? {
                let is_explained = reason == "crash_loop"
                    || queue == "vendor_sync_dlq" && reason == "retries_exhausted";
                self.findings.check(is_explained, || {
                    format!("{count} dead letters in {queue} with reason {reason}")
                });
                *sums.letters.entry(format!("{queue} {reason}")).or_default() += count;
            }
            let output = self
                .addresses
                .run(&["dlq", "replay", queue, "--all"])
                .await?;
            // A queue that is empty has nothing to replay, which is an exit code of its own.
            self.findings.tell(&format!(
                "replayed {queue}: {}",
                String::from_utf8_lossy(&output.stdout)
                    .lines()
                    .last()
                    .unwrap_or("nothing")
            ));
        }
        Ok(())
    }

    /// How many letters a queue has, by reason.
    pub(crate) async fn letters(&self, queue: &str) -> anyhow::Result<BTreeMap<String, usize>> {
        let listed = self
            .addresses
            .run_well(&["dlq", "list", queue, "--json"])
            .await?;
        let mut reasons = BTreeMap::new();
        for line in listed.lines() {
            let letter: Value = serde_json::from_str(line)?;
            let reason = letter["reason"].as_str().unwrap_or("none").to_owned();
            *reasons.entry(reason).or_default() += 1;
        }
        Ok(reasons)
    }

    /// Checks the five promises on what is there now.
    pub(crate) async fn check(&self, record: &Record, sums: &mut Sums) -> anyhow::Result<()> {
        self.addresses.run_well(&["sync", "--once"]).await?;
        let stored = stored_orders(&self.addresses).await?;
        for order in stored.values() {
            *sums.statuses.entry(order.status.clone()).or_default() += 1;
        }
        check_memories(&self.findings, record, &stored, sums);
        check_stock(&self.findings, &self.addresses, sums).await?;
        let helps = self.addresses.run(&["audit", "--help"]).await?;
        sums.audit = if helps.status.success() {
            let audit = self.addresses.run(&["audit"]).await?;
            self.findings.check(audit.status.success(), || {
                format!(
                    "audit ended with {}: {}{}",
                    audit.status,
                    String::from_utf8_lossy(&audit.stdout),
                    String::from_utf8_lossy(&audit.stderr)
                )
            });
            format!("ended with {}", audit.status)
        } else {
            "not in this build".to_owned()
        };
        Ok(())
    }

    /// A process that broke down inside has said so.
    pub(crate) fn check_logs(&self, sums: &mut Sums) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(self.addresses.directory.join("logs"))? {
            let path = entry?.path();
            let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
            for line in text.lines() {
                if line.contains("panicked at") {
                    self.findings
                        .violation(format!("{}: {line}", path.display()));
                }
                sums.slow_sweeps += usize::from(line.contains("sent messages again"));
            }
        }
        Ok(())
    }
}

async fn stored_orders(addresses: &Addresses) -> anyhow::Result<BTreeMap<String, Stored>> {
    let database = addresses.connect(ORDERS).await?;
    let rows = database
        .query(
            "SELECT id::text, idempotency_key, status, lines::text, coalesce(reason->>'code', '') FROM orders",
            &[],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let lines: Vec<Value> = serde_json::from_str(row.get(3))?;
            let lines = lines
                .iter()
                .filter_map(|line| {
                    Some((
                        line["productId"].as_str()?.to_owned(),
                        line["quantity"].as_i64()?,
                    ))
                })
                .collect();
            let stored = Stored {
                key: row.get(1),
                status: row.get(2),
                lines,
                reason: row.get(4),
            };
            Ok((row.get(0), stored))
        })
        .collect()
}

/// What each caller was told has to be so.
fn check_memories(
    findings: &Findings,
    record: &Record,
    stored: &BTreeMap<String, Stored>,
    sums: &mut Sums,
) {
    let mut by_key: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
    for (id, order) in stored {
        if let Some(key) = &order.key {
            by_key.entry(key).or_default().push(id);
        }
    }
    for ids in by_key.values().filter(|ids| ids.len() > 1) {
        sums.duplicated += 1;
        findings.violation(format!("one key has several orders: {ids:?}"));
    }
    for Memory { key, lines, told } in &record.orders {
        let existing = by_key.get(key.as_str()).and_then(|ids| ids.first());
        match told {
            Told::Accepted(id) => {
                let found = stored.get(id);
                let is_final = found.is_some_and(|order| {
                    matches!(
                        order.status.as_str(),
                        "confirmed" | "rejected" | "cancelled"
                    )
                });
                if !is_final {
                    sums.lost += 1;
                    let status = found.map(|order| order.status.as_str());
                    findings.violation(format!("{id} was accepted, and is {status:?}"));
                }
                findings.check(found.is_none_or(|order| order.lines == *lines), || {
                    format!("{id} is not what was ordered")
                });
                findings.check(existing.is_none_or(|other| *other == id), || {
                    format!("{id} was answered, but its key has {existing:?}")
                });
            }
            Told::Refused => findings.check(existing.is_none(), || {
                format!(
                    "the order with key {key} was refused each time, and exists as {existing:?}"
                )
            }),
            Told::Unknown => {}
        }
    }
    for id in &record.cancelled {
        let status = stored.get(id).map(|order| order.status.as_str());
        findings.check(status == Some("cancelled"), || {
            format!("{id} was cancelled, and is {status:?}")
        });
    }
    for (id, order) in stored
        .iter()
        .filter(|(_, order)| order.status == "cancelled")
    {
        let was_asked = record.cancelled.contains(id) || record.maybe_cancelled.contains(id);
        findings.check(was_asked || order.reason == "vendor_rejected", || {
            format!(
                "{id} is cancelled ({}), and nobody asked for that",
                order.reason
            )
        });
    }
}

/// Each vendor's stock is what it had, with its own changes, without what was confirmed; and ours says the same.
async fn check_stock(
    findings: &Findings,
    addresses: &Addresses,
    sums: &mut Sums,
) -> anyhow::Result<()> {
    let database = addresses.connect(ORDERS).await?;
    let apart = database
        .query(
            "SELECT id::text, product, o.quantity::bigint, u.quantity::bigint FROM
               (SELECT id, line->>'productId' AS product, sum((line->>'quantity')::bigint) AS quantity
                FROM orders, jsonb_array_elements(lines) line WHERE status = 'confirmed' GROUP BY 1, 2) o
             FULL JOIN
               (SELECT order_id AS id, product_id AS product, -sum(delta) AS quantity
                FROM stock_updates WHERE state IN ('acknowledged', 'applied') GROUP BY 1, 2
                HAVING sum(delta) <> 0) u
             USING (id, product) WHERE o.quantity IS DISTINCT FROM u.quantity",
            &[],
        )
        .await?;
    for row in &apart {
        let (id, product): (String, String) = (row.get(0), row.get(1));
        let (ordered, taken): (Option<i64>, Option<i64>) = (row.get(2), row.get(3));
        let more = taken.unwrap_or(0) - ordered.unwrap_or(0);
        sums.duplicated += more.max(0);
        sums.oversold += (-more).max(0);
        findings.violation(format!(
            "of {product} for {id}, {ordered:?} are confirmed and {taken:?} taken"
        ));
    }
    for vendor in VENDORS {
        let client = addresses.connect(vendor).await?;
        let products: Vec<_> = INITIAL.iter().filter(|(of, _, _)| *of == vendor).collect();
        for (_, product, initial) in products {
            let row = client
                .query_one(
                    "SELECT stock, (SELECT coalesce(sum(delta), 0)::bigint FROM own_changes WHERE product_id = id)
                     FROM products WHERE id = $1",
                    &[product],
                )
                .await?;
            let (stock, own): (i64, i64) = (row.get(0), row.get(1));
            let row = database
                .query_one(
                    "SELECT coalesce(-sum(delta) FILTER (WHERE u.state IN ('acknowledged', 'applied')), 0)::bigint,
                            (SELECT on_hand + open_delta FROM stock WHERE vendor_id = $1 AND product_id = $2)
                     FROM stock_updates u WHERE vendor_id = $1 AND product_id = $2",
                    &[&vendor, product],
                )
                .await?;
            let (taken, available): (i64, Option<i64>) = (row.get(0), row.get(1));
            let should = initial + own - taken;
            sums.duplicated += (should - stock).max(0);
            sums.oversold += (stock - should).max(0);
            findings.check(stock == should, || {
                format!("{vendor} has {stock} of {product}: {initial} at first, {own} of its own, {taken} taken make {should}")
            });
            findings.check(available == Some(stock), || {
                format!("{vendor} has {stock} of {product}, and we say {available:?}")
            });
        }
        check_ledger(findings, &database, &client, vendor).await?;
    }
    Ok(())
}

/// The vendor's ledger and our updates name the same changes.
async fn check_ledger(
    findings: &Findings,
    database: &tokio_postgres::Client,
    client: &tokio_postgres::Client,
    vendor: &str,
) -> anyhow::Result<()> {
    let names = |rows: Vec<tokio_postgres::Row>| -> BTreeSet<String> {
        rows.iter().map(|row| row.get(0)).collect()
    };
    let ours = database
        .query(
            "SELECT concat_ws(' ', id, product_id, delta) FROM stock_updates
             WHERE vendor_id = $1 AND state IN ('acknowledged', 'applied')",
            &[&vendor],
        )
        .await?;
    let theirs = client
        .query(
            "SELECT concat_ws(' ', id, product_id, delta) FROM stock_ledger WHERE outcome = 'applied'",
            &[],
        )
        .await?;
    let (ours, theirs) = (names(ours), names(theirs));
    findings.check(ours == theirs, || {
        let apart: Vec<_> = ours.symmetric_difference(&theirs).take(5).collect();
        format!("the ledger of {vendor} and our updates differ, first in {apart:?}")
    });
    Ok(())
}
