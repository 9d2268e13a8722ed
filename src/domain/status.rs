//! What needs a hand, judged by what was seen of the whole. The bounds are those of the alerts.

use std::time::Duration;

use serde::Serialize;

/// What waits for longer, waits for somebody.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// A vendor that is left alone, or has not answered, for longer, is told of.
const VENDOR_SILENCE_MAX: Duration = Duration::from_secs(300);

/// A store, as seen now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Store {
    /// Where it is, without a password.
    pub address: String,
    /// Why it cannot be used, if it cannot.
    pub problem: Option<String>,
}

/// Things that wait for something.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// How many, as far as they are counted.
    pub count: i64,
    /// The age of the oldest.
    pub oldest_age_s: f64,
}

/// A queue, as the broker sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Queue {
    /// Its name, without the prefix of the installation.
    pub name: &'static str,
    /// What it is for.
    #[serde(skip)]
    pub purpose: Purpose,
    /// Messages that wait, and who consumes it; none where it does not exist yet.
    pub messages: Option<Messages>,
    /// How many messages in a second: of a work queue those that are finished, of another those that consumers send
    /// there. Not known without PostgreSQL.
    pub per_second: Option<f64>,
    /// Whether its consumers finish nothing although messages wait. Not known without PostgreSQL.
    pub is_stalled: Option<bool>,
}

/// What is in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Messages {
    /// Messages that wait.
    pub ready: u32,
    /// Who consumes it.
    pub consumers: u32,
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It is worked on.
    Work,
    /// Its messages come back after a while.
    Retry,
    /// Its messages wait for an operator.
    Dead,
}

/// A vendor, as our database and the consumers see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Vendor {
    /// Its key in the configuration.
    pub id: String,
    /// How long ago its stock was last written whole; none where it never was.
    pub last_sync_age_s: Option<f64>,
    /// Why its newest sync failed, if it did.
    pub last_sync_error: Option<String>,
    /// Updates that no sync has seen.
    pub open_updates: i64,
    /// Updates that it has not answered for, dead letters not counted.
    pub unanswered: Waiting,
    /// `ok`, `failing`, `open` or `probing`; none until it was first told of something.
    pub push_state: Option<String>,
    /// For how long it has been so.
    pub push_state_age_s: f64,
    /// What its API failed with.
    pub last_push_error: Option<String>,
}

/// Everything that was seen. What a store that is away knows is not there.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// Our database.
    pub postgresql: Store,
    /// The broker.
    pub rabbitmq: Store,
    /// Orders that are not decided.
    pub pending: Option<Waiting>,
    /// Messages that were not published.
    pub outbox: Option<Waiting>,
    /// The queues.
    pub queues: Option<Vec<Queue>>,
    /// The vendors of the configuration.
    pub vendors: Option<Vec<Vendor>>,
}

/// What needs a hand, and what to do about it; nothing when all is well. `sync_silence_max` is how old a vendor's stock
/// may be by the schedule.
#[must_use]
pub fn needs(seen: &Seen, sync_silence_max: Duration) -> Vec<String> {
    let mut needs = Vec::new();
    of_stores(seen, &mut needs);
    for queue in seen.queues.iter().flatten() {
        of_queue(queue, &mut needs);
    }
    for vendor in seen.vendors.iter().flatten() {
        of_vendor(vendor, sync_silence_max, &mut needs);
    }
    needs
}

fn of_stores(seen: &Seen, needs: &mut Vec<String>) {
    // Either store alone is enough to accept orders.
    match (&seen.postgresql.problem, &seen.rabbitmq.problem) {
        (None, None) => {}
        (Some(problem), None) => needs.push(format!(
            "{problem} (orders are accepted through RabbitMQ meanwhile, and wait)"
        )),
        (None, Some(problem)) => needs.push(format!(
            "{problem} (orders are accepted into PostgreSQL meanwhile, and wait)"
        )),
        (Some(one), Some(other)) => {
            needs.push(format!(
                "{one} (no order is accepted: both stores are away)"
            ));
            needs.push(other.clone());
        }
    }
    if let Some(pending) = seen.pending.filter(|of| is_over(of.oldest_age_s, WAIT_MAX)) {
        needs.push(format!(
            "{} pending, the oldest for {}: look whether `stockctl work --queue orders` runs, and what it logs",
            counted(pending.count, "order is", "orders are"),
            age(pending.oldest_age_s)
        ));
    }
    if let Some(outbox) = seen.outbox.filter(|of| is_over(of.oldest_age_s, WAIT_MAX)) {
        needs.push(format!(
            "{} in the outbox, the oldest for {}: RabbitMQ is away or refuses messages; look whether serve or work runs",
            counted(outbox.count, "message waits", "messages wait"),
            age(outbox.oldest_age_s)
        ));
    }
}

fn of_queue(queue: &Queue, needs: &mut Vec<String>) {
    let name = queue.name;
    match (queue.purpose, queue.messages) {
        (Purpose::Work, None) => needs.push(format!(
            "{name} does not exist: start `stockctl serve` or `stockctl work`, which declare it"
        )),
        (Purpose::Work, Some(Messages { consumers: 0, .. })) => needs.push(format!(
            "{name} has no consumer: start `stockctl work`"
        )),
        (Purpose::Dead, Some(Messages { ready, .. })) if ready > 0 => needs.push(format!(
            "{name} has {}: see why with `stockctl dlq list {name}`, put it right, then `stockctl dlq replay {name} --all`",
            counted(ready.into(), "letter", "letters")
        )),
        _ => {}
    }
    if queue.is_stalled == Some(true) {
        needs.push(format!(
            "a consumer of {name} finishes nothing although messages wait: look for a transaction that holds locks for long \
             (pg_stat_activity); it ends by itself after work.stalled_after_ms"
        ));
    }
}

fn of_vendor(vendor: &Vendor, sync_silence_max: Duration, needs: &mut Vec<String>) {
    let id = &vendor.id;
    let why = |error: &Option<String>| match error {
        Some(error) => format!(": {error}"),
        None => String::new(),
    };
    match vendor.last_sync_age_s {
        None => needs.push(format!(
            "the stock of {id} was never read, so nothing is rejected for good: look whether `stockctl sync` runs{}",
            why(&vendor.last_sync_error)
        )),
        Some(silence) if is_over(silence, sync_silence_max) => needs.push(format!(
            "the stock of {id} was last read {} ago: look whether `stockctl sync` runs{}",
            age(silence),
            why(&vendor.last_sync_error)
        )),
        Some(_) => {}
    }
    let state = vendor.push_state.as_deref().filter(|state| *state != "ok");
    if let Some(state) = state
        && is_over(vendor.push_state_age_s, VENDOR_SILENCE_MAX)
    {
        let what = if state == "failing" {
            "has failed"
        } else {
            "is down"
        };
        needs.push(format!(
            "the API of {id} {what} for {}: tell the vendor; it is tried again by itself{}",
            age(vendor.push_state_age_s),
            why(&vendor.last_push_error)
        ));
    } else if is_over(vendor.unanswered.oldest_age_s, VENDOR_SILENCE_MAX) {
        needs.push(format!(
            "{id} has not answered for {}, the oldest {} old: look whether `stockctl work --queue vendor-sync` runs, and \
             what it logs",
            counted(vendor.unanswered.count, "update", "updates"),
            age(vendor.unanswered.oldest_age_s)
        ));
    }
}

fn is_over(seconds: f64, most: Duration) -> bool {
    seconds > most.as_secs_f64()
}

fn counted(count: i64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// A time for people: `12 s`, `5 min`, `3 h`, `2 days`.
#[must_use]
pub fn age(seconds: f64) -> String {
    // Its largest unit of which there are at least two, so that nothing is off by half.
    for (unit, length) in [("days", 86_400.0), ("h", 3600.0), ("min", 60.0)] {
        if seconds >= 2.0 * length {
            return format!("{:.0} {unit}", (seconds / length).floor());
        }
    }
    format!("{:.0} s", seconds.max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> Store {
        Store {
            address: "127.0.0.1:1".into(),
            problem: None,
        }
    }

    const NOTHING: Waiting = Waiting {
        count: 0,
        oldest_age_s: 0.0,
    };

    fn well() -> Seen {
        let queue = |name, purpose, consumers| Queue {
            name,
            purpose,
            messages: Some(Messages {
                ready: 0,
                consumers,
            }),
            per_second: Some(0.0),
            is_stalled: Some(false),
        };
        Seen {
            postgresql: store(),
            rabbitmq: store(),
            pending: Some(NOTHING),
            outbox: Some(NOTHING),
            queues: Some(vec![
                queue("orders_queue", Purpose::Work, 1),
                queue("orders_retry_queue", Purpose::Retry, 0),
                queue("orders_dlq", Purpose::Dead, 0),
            ]),
            vendors: Some(vec![Vendor {
                id: "vendorA".into(),
                last_sync_age_s: Some(30.0),
                last_sync_error: None,
                open_updates: 3,
                unanswered: NOTHING,
                push_state: Some("ok".into()),
                push_state_age_s: 1e6,
                last_push_error: None,
            }]),
        }
    }

    fn of(change: impl FnOnce(&mut Seen)) -> String {
        let mut seen = well();
        change(&mut seen);
        needs(&seen, Duration::from_secs(300)).join("\n")
    }

    fn queue(seen: &mut Seen, at: usize) -> &mut Queue {
        &mut seen.queues.as_mut().expect("queues")[at]
    }

    fn vendor(seen: &mut Seen) -> &mut Vendor {
        &mut seen.vendors.as_mut().expect("vendors")[0]
    }

    #[test]
    fn all_is_well() {
        assert_eq!(of(|_| {}), "");
    }

    #[test]
    fn what_waits_within_the_bounds_needs_nobody() {
        let busy = Waiting {
            count: 9000,
            oldest_age_s: 60.0,
        };
        let needs = of(|seen| {
            seen.pending = Some(busy);
            seen.outbox = Some(busy);
            vendor(seen).unanswered = busy;
            vendor(seen).push_state = Some("open".into());
            vendor(seen).push_state_age_s = 300.0;
            vendor(seen).last_sync_error = Some("once".into());
            queue(seen, 0).messages = Some(Messages {
                ready: 9000,
                consumers: 1,
            });
            queue(seen, 1).messages = Some(Messages {
                ready: 9000,
                consumers: 0,
            });
        });
        assert_eq!(needs, "");
    }

    #[test]
    fn each_trouble_says_what_to_do() {
        let late = Waiting {
            count: 1,
            oldest_age_s: 301.0,
        };
        let all = [
            of(|seen| seen.postgresql.problem = Some("it is away".into())),
            of(|seen| seen.rabbitmq.problem = Some("it is away".into())),
            of(|seen| {
                seen.postgresql.problem = Some("it is away".into());
                seen.rabbitmq.problem = Some("the other, too".into());
            }),
            of(|seen| seen.pending = Some(late)),
            of(|seen| seen.outbox = Some(late)),
            of(|seen| queue(seen, 0).messages = None),
            of(|seen| {
                queue(seen, 0).messages = Some(Messages {
                    ready: 0,
                    consumers: 0,
                });
            }),
            of(|seen| {
                queue(seen, 2).messages = Some(Messages {
                    ready: 2,
                    consumers: 0,
                });
            }),
            of(|seen| queue(seen, 0).is_stalled = Some(true)),
            of(|seen| vendor(seen).last_sync_age_s = None),
            of(|seen| {
                vendor(seen).last_sync_age_s = Some(301.0);
                vendor(seen).last_sync_error = Some("no such table".into());
            }),
            of(|seen| {
                vendor(seen).push_state = Some("probing".into());
                vendor(seen).push_state_age_s = 301.0;
                vendor(seen).last_push_error = Some("refused".into());
            }),
            of(|seen| {
                vendor(seen).push_state = Some("failing".into());
                vendor(seen).push_state_age_s = 301.0;
                vendor(seen).last_push_error = Some("api_answered_500".into());
            }),
            of(|seen| vendor(seen).unanswered = late),
        ];
        insta::assert_snapshot!(all.join("\n"), @"
        it is away (orders are accepted through RabbitMQ meanwhile, and wait)
        it is away (orders are accepted into PostgreSQL meanwhile, and wait)
        it is away (no order is accepted: both stores are away)
        the other, too
        1 order is pending, the oldest for 5 min: look whether `stockctl work --queue orders` runs, and what it logs
        1 message waits in the outbox, the oldest for 5 min: RabbitMQ is away or refuses messages; look whether serve or work runs
        orders_queue does not exist: start `stockctl serve` or `stockctl work`, which declare it
        orders_queue has no consumer: start `stockctl work`
        orders_dlq has 2 letters: see why with `stockctl dlq list orders_dlq`, put it right, then `stockctl dlq replay orders_dlq --all`
        a consumer of orders_queue finishes nothing although messages wait: look for a transaction that holds locks for long (pg_stat_activity); it ends by itself after work.stalled_after_ms
        the stock of vendorA was never read, so nothing is rejected for good: look whether `stockctl sync` runs
        the stock of vendorA was last read 5 min ago: look whether `stockctl sync` runs: no such table
        the API of vendorA is down for 5 min: tell the vendor; it is tried again by itself: refused
        the API of vendorA has failed for 5 min: tell the vendor; it is tried again by itself: api_answered_500
        vendorA has not answered for 1 update, the oldest 5 min old: look whether `stockctl work --queue vendor-sync` runs, and what it logs
        ");
    }

    #[test]
    fn an_age_is_told_in_a_unit_that_fits() {
        let told = [
            0.4, 59.6, 119.0, 120.0, 7199.0, 7200.0, 172_799.0, 172_800.0,
        ]
        .map(age);
        assert_eq!(
            told.join(", "),
            "0 s, 60 s, 119 s, 2 min, 119 min, 2 h, 47 h, 2 days"
        );
    }
}
