//! How fast, against what PostgreSQL itself can do: each case is measured beside a reference on the same servers in turn
//! (reference, product, reference, product, …), and the table shows their ratios, which mean something on a noisy machine
//! too.
//!
//! `make bench` runs it. `BENCH_CASES` (names, with commas), `BENCH_ROUNDS`, `BENCH_SECONDS` (of the case called flow;
//! the others take a third of it), `BENCH_PRODUCTS` (of the syncs) and `BENCH_ORDERS` (of the old ones) say how.

mod cases;
mod reference;
mod stack;

use std::io::Write as _;
use std::process::ExitCode;

use cases::{Case, Settings};
use stack::Stack;
use stockctl::shutdown::{Shutdown, on_signal};

/// Says something to whoever waits, at once.
pub(crate) fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}");
    let _ = stdout.flush();
}

fn main() -> ExitCode {
    // `cargo test --all-targets` starts it too; only `cargo bench` means it.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("error: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let settings = Settings::from_environment()?;
    let interrupted = Shutdown::new();
    on_signal(&interrupted)?;
    let mut rows = Vec::new();
    // Dropping what is under way ends the servers and the processes. What was measured until then is worth something.
    let measured = tokio::select! {
        measured = measure(&settings, &mut rows) => measured,
        () = interrupted.begun() => Err(anyhow::anyhow!("interrupted")),
    };
    if !rows.is_empty() {
        say_table(&rows);
    }
    for line in measured? {
        say(&line);
    }
    Ok(())
}

/// A case, and its ratios in ascending order.
type Row = (Case, Vec<f64>);

/// Measures the cases one after the other. Returns what else there is to say at the end.
async fn measure(settings: &Settings, rows: &mut Vec<Row>) -> anyhow::Result<Vec<String>> {
    let mut stack = Stack::start().await?;
    for case in Case::ALL {
        if settings.wants(case.name) {
            say(&format!("{}: {}", case.name, case.what));
            let mut ratios = Vec::with_capacity(settings.rounds);
            for round in 1..=settings.rounds {
                let (reference, ours) = (case.run)(&mut stack, settings).await?;
                let ratio = ours.value / reference.value;
                say(&format!("  {round}: {reference}, {ours}: {ratio:.2} of it"));
                ratios.push(ratio);
            }
            say(&format!("  {}", stack.peaks()));
            ratios.sort_by(f64::total_cmp);
            rows.push((case, ratios));
        }
    }
    let footprints = stack.footprints();
    stack.stop().await?;
    Ok(footprints)
}

fn say_table(rows: &[Row]) {
    say("");
    say("case             goal       minimum   median  maximum  what");
    for (case, ratios) in rows {
        let median = ratios[ratios.len() / 2];
        say(&format!(
            "{:<16} {:<9} {:>8.2} {:>8.2} {:>8.2}  {}{}",
            case.name,
            case.goal.to_string(),
            ratios[0],
            median,
            ratios[ratios.len() - 1],
            case.what,
            if case.goal.is_met(median) {
                ""
            } else {
                " (missed)"
            }
        ));
    }
    say("");
}
