//! The harness is tested itself: bugs are planted in the product, one at a time, and each has to be found. The switches
//! for that exist only with the cargo feature `fault-injection`; see `src/fault_injection.rs`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::books::Sums;
use crate::chaos;
use crate::faults::Kind;
use crate::findings::{Findings, say};
use crate::load::{Load, client};
use crate::settings::Settings;
use crate::stage::{ORDERS, POISON, PROBE, Stage};

/// A planted bug, and the faults that bring it to light.
const MUTANTS: [(&str, &[Kind]); 3] = [
    (
        "acknowledge-before-commit",
        &[Kind::WorkersKilledWithoutPostgres],
    ),
    (
        "publish-without-confirm",
        &[Kind::BrokerFrozenWithoutPostgres],
    ),
    ("decide-again", &[Kind::FreezeBroker, Kind::KillProcess]),
];

/// Three deliveries, each with the end and the start of a process.
const POISONED_WITHIN: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Deliveries of a message before it is taken aside.
const DELIVERIES: usize = 3;

/// Runs each mutant, and both kinds of poison. Returns whether all were found.
pub(crate) async fn all_are_found(seed: u64) -> anyhow::Result<bool> {
    ensure!(
        cfg!(feature = "fault-injection"),
        "nothing can be planted in this build; use `make chaos-mutants`"
    );
    let mut missed = Vec::new();
    for (bug, kinds) in MUTANTS {
        say(&format!("\n== planted: {bug}"));
        let settings = Settings {
            seed,
            faults: 3,
            orders: 0,
            kinds: kinds.to_vec(),
        };
        match chaos(&settings, Some(bug)).await?.first() {
            Some(violation) => say(&format!("== {bug} was found: {violation}")),
            None => missed.push(bug.to_owned()),
        }
    }
    for poison in [Poison::Order, Poison::Update] {
        say(&format!("\n== {poison:?} that kills its consumer"));
        let violations = poisoned(poison, seed).await?;
        missed.extend(violations);
    }
    if missed.is_empty() {
        say("\nEvery planted bug was found, and every poison taken aside.");
    } else {
        say(&format!("\nNot as expected:\n- {}", missed.join("\n- ")));
    }
    Ok(missed.is_empty())
}

/// A message that kills each process that handles it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Poison {
    Order,
    Update,
}

impl Poison {
    fn queue(self) -> &'static str {
        match self {
            Self::Order => "orders_dlq",
            Self::Update => "vendor_sync_dlq",
        }
    }

    fn order(self) -> Value {
        match self {
            Self::Order => {
                json!({"productId": PROBE, "quantity": 1, "reference": "fault-injection: abort"})
            }
            Self::Update => json!({"productId": POISON, "quantity": 1}),
        }
    }
}

/// One poisonous message among healthy ones: it ends in the dead-letter queue, alone, after three deliveries.
async fn poisoned(poison: Poison, seed: u64) -> anyhow::Result<Vec<String>> {
    let findings = Findings::new();
    let stage = Stage::set(&findings, Some("poison")).await?;
    let load = Load::start(&stage.addresses, &findings, seed);
    let api = stage.addresses.api.first().context("an address")?;
    let url = format!("http://{api}/orders");
    let since = Instant::now();
    let order = loop {
        let request = client().post(&url).json(&poison.order());
        match request.send().await {
            Ok(response) if response.status() == 202 => break response.json::<Value>().await?,
            // It is just starting.
            _ => ensure!(since.elapsed() < POISONED_WITHIN, "no order is accepted"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let id = order["id"].as_str().context("an id")?.to_owned();
    while stage.queues().await?.get(poison.queue()).copied() != Some(1) {
        if since.elapsed() > POISONED_WITHIN {
            findings.violation(format!(
                "the poison is not in {} after {POISONED_WITHIN:?}",
                poison.queue()
            ));
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let letters = stage.letters(poison.queue()).await?;
    findings.check(
        letters.len() == 1 && letters.get("crash_loop") == Some(&1),
        || format!("the letters are {letters:?}, not the poison alone"),
    );
    let aborts: usize = stage
        .parts
        .iter()
        .map(|part| part.aborts.load(std::sync::atomic::Ordering::Relaxed))
        .sum();
    findings.check(aborts == DELIVERIES, || {
        format!("{aborts} processes died of the poison, not {DELIVERIES}")
    });
    let status = status(&stage, &id).await?;
    let should = if poison == Poison::Order {
        "failed"
    } else {
        "confirmed"
    };
    findings.check(status == should, || {
        format!("the poison's order is {status}")
    });
    // Its neighbours go their way: what was healthy drains, and the books are right without it.
    let record = load.stop().await;
    stage
        .addresses
        .run_well(&["dlq", "drop", poison.queue(), "--all", "--yes"])
        .await?;
    let mut sums = Sums::default();
    stage.drain(&mut sums).await?;
    stage
        .check(&record.with_maybe_cancelled(id), &mut sums)
        .await?;
    stage.strike().await?;
    Ok(findings.violations())
}

async fn status(stage: &Stage, id: &str) -> anyhow::Result<String> {
    let database = stage.addresses.connect(ORDERS).await?;
    let row = database
        .query_one(
            "SELECT status FROM orders WHERE id = $1::text::uuid",
            &[&id],
        )
        .await?;
    Ok(row.get(0))
}
