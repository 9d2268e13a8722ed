//! What a run has shown, for a person.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::books::Sums;
use crate::faults::{Happened, Kind};
use crate::load::{Record, Told};

/// Of a thousand requests that come while exactly one store is down, one may be refused.
pub(crate) const ACCEPTED_PER_MILLE_MIN: usize = 999;

/// Requests that were sent while something was down.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) sent: usize,
    pub(crate) accepted: usize,
}

impl Rate {
    fn percent(self) -> String {
        if self.sent == 0 {
            return "-".to_owned();
        }
        #[expect(clippy::cast_precision_loss, reason = "a percentage for a person")]
        let percent = self.accepted as f64 * 100.0 / self.sent as f64;
        format!("{percent:.2} %")
    }

    pub(crate) fn is_good(self) -> bool {
        self.accepted * 1000 >= self.sent * ACCEPTED_PER_MILLE_MIN
    }
}

/// The rate during each kind of fault.
pub(crate) fn rates(record: &Record, happened: &[Happened]) -> BTreeMap<Kind, Rate> {
    let mut rates = BTreeMap::<Kind, Rate>::new();
    for fault in happened {
        let rate = rates.entry(fault.kind).or_default();
        for attempt in &record.attempts {
            if (fault.from..fault.until).contains(&attempt.sent_at) {
                rate.sent += 1;
                rate.accepted += usize::from(attempt.refused.is_none());
            }
        }
    }
    rates
}

/// The rate while exactly one store was down.
pub(crate) fn one_store_down(rates: &BTreeMap<Kind, Rate>) -> Rate {
    rates
        .iter()
        .filter(|(kind, _)| kind.takes_one_store())
        .fold(Rate::default(), |sum, (_, rate)| Rate {
            sent: sum.sent + rate.sent,
            accepted: sum.accepted + rate.accepted,
        })
}

/// Requests shown of those that were refused while exactly one store was down.
const REFUSED_SHOWN: usize = 20;

/// What was refused while exactly one store was down, and why: a line each.
pub(crate) fn refused_with_one_store_down(record: &Record, happened: &[Happened]) -> String {
    let during = |sent_at| {
        happened.iter().find(|fault| {
            fault.kind.takes_one_store() && (fault.from..fault.until).contains(&sent_at)
        })
    };
    let refused = record.attempts.iter().filter_map(|attempt| {
        let (why, fault) = (attempt.refused.as_ref()?, during(attempt.sent_at)?);
        let after = attempt.sent_at.duration_since(fault.from).as_secs_f32();
        Some(format!(
            "\n  {} after {after:.2} s: {why}",
            fault.kind.name()
        ))
    });
    refused.take(REFUSED_SHOWN).collect()
}

/// The whole report.
pub(crate) fn report(
    seed: u64,
    record: &Record,
    happened: &[Happened],
    sums: &Sums,
    footprints: &[String],
) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let rates = rates(record, happened);
    let told = |what: fn(&Told) -> bool| record.orders.iter().filter(|o| what(&o.told)).count();
    writeln!(text, "seed                 {seed}")?;
    writeln!(text, "faults               {}", happened.len())?;
    writeln!(
        text,
        "orders               {} accepted, {} refused, {} unknown to their callers",
        told(|t| matches!(t, Told::Accepted(_))),
        told(|t| *t == Told::Refused),
        told(|t| *t == Told::Unknown),
    )?;
    writeln!(text, "in the database      {:?}", sums.statuses)?;
    writeln!(text, "dead letters         {:?}", sums.letters)?;
    writeln!(text, "slow sweeps          {}", sums.slow_sweeps)?;
    writeln!(text, "audit                {}", sums.audit)?;
    let rate = one_store_down(&rates);
    writeln!(
        text,
        "one store down       {} of {} requests accepted, {}{}",
        rate.accepted,
        rate.sent,
        rate.percent(),
        refused_with_one_store_down(record, happened),
    )?;
    writeln!(
        text,
        "lost {}, duplicated {}, oversold {}",
        sums.lost, sums.duplicated, sums.oversold
    )?;
    writeln!(
        text,
        "\n{:<34}{:>5}{:>10}{:>10}{:>16}{:>16}",
        "fault", "times", "requests", "accepted", "recovery, mean", "recovery, max"
    )?;
    for (kind, rate) in rates {
        let times: Vec<Duration> = happened
            .iter()
            .filter(|fault| fault.kind == kind)
            .map(|fault| fault.recovered_in)
            .collect();
        let count = u32::try_from(times.len()).unwrap_or(u32::MAX).max(1);
        let mean = times.iter().sum::<Duration>() / count;
        let max = times.iter().max().copied().unwrap_or_default();
        writeln!(
            text,
            "{:<34}{:>5}{:>10}{:>10}{:>14.1} s{:>14.1} s",
            kind.name(),
            times.len(),
            rate.sent,
            rate.percent(),
            mean.as_secs_f32(),
            max.as_secs_f32()
        )?;
    }
    if !footprints.is_empty() {
        writeln!(
            text,
            "\nsince warm           {}",
            footprints.join("\n                     ")
        )?;
    }
    Ok(text)
}
