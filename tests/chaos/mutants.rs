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

/// A planted bug, the faults that bring it to light, and what it does.
struct Mutant {
    bug: &'static str,
    faults: usize,
    kinds: &'static [Kind],
    shows: fn(&Sums) -> bool,
}

const MUTANTS: [Mutant; 3] = [
    Mutant {
        bug: "acknowledge-before-commit",
        faults: 3,
        kinds: &[Kind::WorkersKilledWithoutPostgres],
        shows: |sums| sums.lost > 0,
    },
    Mutant {
        bug: "publish-without-confirm",
        faults: 3,
        kinds: &[Kind::BrokerFrozenWithoutPostgres],
        shows: |sums| sums.lost > 0,
    },
    Mutant {
        bug: "decide-again",
        // Acknowledgements that do not arrive.
        faults: 6,
        kinds: &[Kind::FreezeBroker, Kind::CutBroker],
        shows: |sums| sums.duplicated > 0,
    },
];

/// Three deliveries, each with the end and the start of a process.
const POISONED_WITHIN: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Deliveries of a message before it is taken aside.
const DELIVERIES: usize = 3;

/// Runs each mutant whose name has `only` in it, and both kinds of poison. Returns whether all were found.
pub(crate) async fn all_are_found(seed: u64, only: &str) -> anyhow::Result<bool> {
    ensure!(
        cfg!(feature = "fault-injection"),
        "nothing can be planted in this build; use `make chaos-mutants`"
    );
    let mut missed = Vec::new();
    let chosen = MUTANTS.iter().filter(|mutant| mutant.bug.contains(only));
    for Mutant {
        bug,
        faults,
        kinds,
        shows,
    } in chosen
    {
        say(&format!("\n== planted: {bug}"));
        let settings = Settings {
            seed,
            faults: *faults,
            orders: 0,
            kinds: kinds.to_vec(),
        };
        let (violations, sums) = chaos(&settings, Some(bug)).await?;
        let (lost, duplicated) = (sums.lost, sums.duplicated);
        say(&format!(
            "== {bug}: {} violations, {lost} lost, {duplicated} duplicated",
            violations.len()
        ));
        // A violation of another kind would be a finding about something else.
        if violations.is_empty() || !shows(&sums) {
            missed.push(format!("{bug} was not found"));
        }
    }
    for poison in [Poison::Order, Poison::Update] {
        if !poison.name().contains(only) {
            continue;
        }
        say(&format!("\n== {}", poison.name()));
        let violations = poisoned(poison, seed).await?;
        say(&format!(
            "== {}: {} violations",
            poison.name(),
            violations.len()
        ));
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
    fn name(self) -> &'static str {
        match self {
            Self::Order => "poisonous-order",
            Self::Update => "poisonous-update",
        }
    }

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
    // Updates that are decided together travel in one message, and share its fate: the poison is decided alone.
    while poison == Poison::Update && status(&stage, &id).await?.as_deref() != Some("confirmed") {
        ensure!(
            since.elapsed() < POISONED_WITHIN,
            "the poison's order is not decided"
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let load = Load::start(&stage.addresses, &findings, seed);
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
    findings.check(status.as_deref() == Some(should), || {
        format!("the poison's order is {status:?}")
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

async fn status(stage: &Stage, id: &str) -> anyhow::Result<Option<String>> {
    let database = stage.addresses.connect(ORDERS).await?;
    let row = database
        .query_opt(
            "SELECT status FROM orders WHERE id = $1::text::uuid",
            &[&id],
        )
        .await?;
    Ok(row.map(|row| row.get(0)))
}
