//! What a run is told by its environment.

use std::str::FromStr;

use crate::faults::Kind;

/// For every build: each kind once, in about three minutes.
const FAULTS: usize = Kind::ALL.len();
/// A fault takes about six seconds, in which a machine that builds beside accepts so many orders at least.
const ORDERS: usize = 1500;

/// One run.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Decides which fault comes when, and whom it hits.
    pub(crate) seed: u64,
    /// How many faults.
    pub(crate) faults: usize,
    /// How many orders have to be accepted at least; the load goes on until the last fault is over.
    pub(crate) orders: usize,
    /// Which faults are drawn.
    pub(crate) kinds: Vec<Kind>,
}

/// What was asked for.
#[derive(Debug)]
pub(crate) enum Asked {
    /// A run of the product as it is.
    Run(Settings),
    /// Each planted bug in turn, which has to be found; those that have `only` in their names.
    Mutants { seed: u64, only: String },
}

impl Asked {
    /// Reads `CHAOS_SEED`, `CHAOS_FAULTS`, `CHAOS_ORDERS`, `CHAOS_KINDS` and `CHAOS_MUTANTS`.
    pub(crate) fn from_environment() -> Result<Self, String> {
        let seed = number("CHAOS_SEED")?.unwrap_or_else(|| fastrand::u64(1..1_000_000));
        if let Ok(only) = std::env::var("CHAOS_MUTANTS") {
            let only = if only == "all" { String::new() } else { only };
            return Ok(Self::Mutants { seed, only });
        }
        let kinds = match std::env::var("CHAOS_KINDS") {
            Ok(names) => names.split(',').map(kind).collect::<Result<_, _>>()?,
            Err(_) => Kind::ALL.to_vec(),
        };
        Ok(Self::Run(Settings {
            seed,
            faults: number("CHAOS_FAULTS")?.unwrap_or(FAULTS),
            orders: number("CHAOS_ORDERS")?.unwrap_or(ORDERS),
            kinds,
        }))
    }
}

fn kind(name: &str) -> Result<Kind, String> {
    Kind::ALL
        .into_iter()
        .find(|kind| kind.name() == name.trim())
        .ok_or_else(|| {
            let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            format!(
                "CHAOS_KINDS: there is no fault {name:?}; there are {}",
                known.join(",")
            )
        })
}

fn number<T: FromStr>(name: &str) -> Result<Option<T>, String> {
    match std::env::var(name) {
        Err(_) => Ok(None),
        Ok(text) => text
            .parse()
            .map(Some)
            .map_err(|_| format!("{name} must be a whole number, is {text:?}")),
    }
}
