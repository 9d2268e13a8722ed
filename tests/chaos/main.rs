//! Chaos: the five promises under real faults, on real processes. Callers order and write down what they were answered,
//! while processes are killed, ended and paused, PostgreSQL and RabbitMQ stop and crash, networks break and freeze, and
//! vendors fail; then everything has to drain, and each answer and each unit of stock is checked.
//!
//! `make chaos` runs it; `CHAOS_SEED`, `CHAOS_FAULTS`, `CHAOS_ORDERS` and `CHAOS_KINDS` (names of faults, with commas)
//! say how. `make chaos-mutants` plants bugs in the product and expects each to be found.

mod books;
mod faults;
mod findings;
mod load;
mod mutants;
mod parts;
mod proxy;
mod report;
mod settings;
mod stage;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use books::Sums;
use faults::{Deck, Happened};
use findings::{Findings, say};
use load::Load;
use settings::{Asked, Settings};
use stage::Stage;
use tokio::signal::unix::{SignalKind, signal};

/// Orders before the first fault and after the last one.
const AT_PEACE: Duration = Duration::from_secs(3);
/// With everything at work, a busy machine accepts ten orders a second.
const SLOWEST_ORDER: Duration = Duration::from_millis(100);
/// How often it is looked at whether enough orders were accepted.
const LOOK_EVERY: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    // `cargo test` passes its filter to every target.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        say("chaos: test");
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    if !filters.is_empty()
        && !filters
            .iter()
            .any(|filter| "chaos".contains(filter.as_str()))
    {
        return ExitCode::SUCCESS;
    }
    let asked = match Asked::from_environment() {
        Ok(asked) => asked,
        Err(problem) => {
            say(&format!("error: {problem}"));
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("error: {error}"));
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        let done = tokio::select! {
            done = run(asked) => done,
            // Dropping what is under way ends the servers and the processes.
            signal = interrupted() => Err(signal),
        };
        match done {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                say(&format!("error: {error:#}"));
                ExitCode::FAILURE
            }
        }
    })
}

async fn interrupted() -> anyhow::Error {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    anyhow::anyhow!("interrupted")
}

/// Returns whether all is as it should be.
async fn run(asked: Asked) -> anyhow::Result<bool> {
    match asked {
        Asked::Run(settings) => {
            let (violations, _) = chaos(&settings, None).await?;
            if violations.is_empty() {
                say("\nThe promises were kept.");
            } else {
                let seed = settings.seed;
                say(&format!(
                    "\n{} violations; repeat them with CHAOS_SEED={seed} CHAOS_FAULTS={}:\n- {}",
                    violations.len(),
                    settings.faults,
                    violations.join("\n- ")
                ));
            }
            Ok(violations.is_empty())
        }
        Asked::Mutants { seed, only } => mutants::all_are_found(seed, &only).await,
    }
}

/// One run. Returns what was violated, and how far.
async fn chaos(
    settings: &Settings,
    planted: Option<&'static str>,
) -> anyhow::Result<(Vec<String>, Sums)> {
    let findings = Findings::new();
    findings.tell(&format!(
        "CHAOS_SEED={} CHAOS_FAULTS={} CHAOS_ORDERS={}",
        settings.seed, settings.faults, settings.orders
    ));
    let mut stage = Stage::set(&findings, planted).await?;
    let load = Load::start(&stage.addresses, &findings, settings.seed);
    let happened = suffer_all(&mut stage, settings).await?;
    let until = Instant::now() + SLOWEST_ORDER * u32::try_from(settings.orders)?;
    while load.accepted() < settings.orders {
        if Instant::now() > until {
            findings.violation(format!(
                "only {} of {} orders were accepted",
                load.accepted(),
                settings.orders
            ));
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    tokio::time::sleep(AT_PEACE).await;
    findings.tell("the callers stop; what is on its way drains");
    let record = load.stop().await;
    let mut sums = Sums::default();
    stage.drain(&mut sums).await?;
    stage.check(&record, &mut sums).await?;
    let footprints: Vec<String> = stage
        .parts
        .iter()
        .filter_map(parts::Part::check_footprint)
        .collect();
    let rate = report::one_store_down(&report::rates(&record, &happened));
    findings.check(rate.is_good(), || {
        format!("while exactly one store was down: {rate:?}, and 99.9 % have to be accepted")
    });
    stage.check_logs(&mut sums)?;
    stage.strike().await?;
    say("");
    say(&report::report(
        settings.seed,
        &record,
        &happened,
        &sums,
        &footprints,
    )?);
    Ok((findings.violations(), sums))
}

/// Lets the faults happen, one after another.
async fn suffer_all(stage: &mut Stage, settings: &Settings) -> anyhow::Result<Vec<Happened>> {
    let mut random = fastrand::Rng::with_seed(settings.seed);
    let mut deck = Deck::of(&settings.kinds);
    let mut happened = Vec::with_capacity(settings.faults);
    tokio::time::sleep(AT_PEACE).await;
    for _ in 0..settings.faults {
        let kind = deck.draw(&mut random);
        happened.push(stage.suffer(kind, &mut random).await?);
        for part in &stage.parts {
            part.note_footprint();
        }
    }
    Ok(happened)
}
