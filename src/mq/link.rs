//! The state of one connection to the broker: what its users see, how long to wait before the next
//! attempt, and how little to log about an outage.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{
    address::Address,
    queues::Settings,
    topology::{self, Declared},
    trouble::Trouble,
    wire::Wire,
};
use crate::metrics::{FAULTS, Fault, RABBITMQ};

/// What a user of a connection sees of it.
#[derive(Clone, PartialEq, Debug)]
pub enum Link {
    /// Not connected, and trying.
    Connecting {
        /// What the last attempt or connection ended with.
        error: Option<String>,
    },
    /// Connected.
    Up,
    /// Connected, but the broker takes no messages at present (memory or disk alarm).
    Blocked {
        /// The broker's words.
        reason: String,
    },
    /// A queue exists with other properties than configured; nothing works until somebody decides.
    Misdeclared {
        /// Which queue, what differs, and the ways out.
        message: String,
    },
}

const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// A broker that comes back is noticed within this time.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long a queue found missing stays so before it is declared again. One that is there again at once
/// leaves other consumers of the old one without notice; see `consumer::session`.
pub(super) const REDECLARE_PAUSE: Duration = Duration::from_secs(1);
/// Nobody repairs a queue faster, and each check costs the broker a channel.
const MISDECLARED_RECHECK: Duration = Duration::from_secs(30);
/// A connection that lived so long was a good one: the next outage starts from the shortest pause. One
/// that breaks at once, again and again, must not be retried fast.
const STEADY: Duration = Duration::from_secs(10);
/// Why nothing is published for `topology::NEW_QUEUE_PAUSE`.
pub(super) const NEW_QUEUE: &str = "a queue may have been declared only now, and a crash would still take it away; a second later it is safe";
/// A long outage is told of so often.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Makes the connections of one owner thread, one after another.
pub(super) struct Dialer {
    name: String,
    /// What it is called among the metrics, whatever the prefix of the queues.
    counted_as: &'static str,
    settings: Settings,
    addresses: Result<Vec<Address>, String>,
    /// The node to begin with, so that one that failed is not the first to be asked again.
    first: usize,
    /// What to call the far end in messages.
    address: String,
    failures: u32,
    up_since: Option<Instant>,
    was_up: bool,
    outage: Option<Outage>,
    logged: Option<Instant>,
    link: watch::Sender<Link>,
}

struct Outage {
    began: Instant,
    told: bool,
}

impl Dialer {
    pub(super) fn new(
        name: &str,
        counted_as: &'static str,
        settings: &Settings,
        link: watch::Sender<Link>,
    ) -> Dialer {
        let addresses = parse_addresses(settings);
        RABBITMQ.connected(counted_as);
        RABBITMQ.blocked(counted_as);
        RABBITMQ.reconnections(counted_as);
        Dialer {
            name: name.to_owned(),
            counted_as,
            settings: settings.clone(),
            addresses,
            first: 0,
            address: "rabbitmq.url".to_owned(),
            failures: 0,
            up_since: None,
            was_up: false,
            outage: None,
            logged: None,
            link,
        }
    }

    /// Connects to the first node that answers, and declares the queues there.
    pub(super) fn dial(&mut self) -> Result<(Wire, Declared), Trouble> {
        let (wire, tried) = dial_any(&self.addresses, self.first);
        if let Some(address) = tried {
            self.address = address;
        }
        self.first = self.first.wrapping_add(1);
        let mut wire = wire?;
        match declare_queues(&mut wire, &self.settings) {
            Ok(declared) => Ok((wire, declared)),
            Err(trouble) => Err(wire.end(trouble)),
        }
    }

    /// The connection is ready for use.
    pub(super) fn up(&mut self) {
        let is_new = self.up_since.replace(Instant::now()).is_none();
        if is_new && std::mem::replace(&mut self.was_up, true) {
            RABBITMQ.reconnections(self.counted_as).inc();
        }
        RABBITMQ.connected(self.counted_as).set(1);
        match self.outage.take() {
            None => tracing::info!(
                link = self.name,
                address = self.address,
                "connected to RabbitMQ"
            ),
            Some(outage) if outage.told => {
                tracing::info!(
                    link = self.name,
                    address = self.address,
                    after_s = outage.began.elapsed().as_secs(),
                    "RabbitMQ is reachable again"
                );
            }
            Some(_) => {}
        }
        self.link.send_replace(Link::Up);
    }

    /// The connection is good, but a queue is too new to publish to: `up` follows.
    pub(super) fn settling(&self) {
        self.link.send_replace(Link::Connecting {
            error: Some(NEW_QUEUE.to_owned()),
        });
    }

    /// The connection is of no use any more; `down` follows once its end is known in full.
    pub(super) fn interrupted(&self, trouble: &Trouble) {
        self.link.send_replace(Link::Connecting {
            error: Some(trouble.to_string()),
        });
    }

    /// Notes an attempt that failed or a connection that broke, and says how long to wait.
    pub(super) fn down(&mut self, trouble: &Trouble) -> Duration {
        let up_since = self.up_since.take();
        RABBITMQ.connected(self.counted_as).set(0);
        RABBITMQ.blocked(self.counted_as).set(0);
        match trouble {
            Trouble::Lost(_) if up_since.is_some() => FAULTS.of(Fault::RabbitmqLost).inc(),
            Trouble::Misdeclared(_) => FAULTS.of(Fault::QueueMisdeclared).inc(),
            // The first is no loss; the second was counted where it was noticed.
            Trouble::Lost(_) | Trouble::QueueGone(_) => {}
        }
        let was_steady = up_since.is_some_and(|since| since.elapsed() >= STEADY);
        if was_steady {
            self.failures = 0;
        }
        let due = self
            .logged
            .is_none_or(|logged| logged.elapsed() >= LOG_EVERY);
        let begins = self.outage.is_none();
        let outage = self.outage.get_or_insert_with(|| Outage {
            began: Instant::now(),
            told: false,
        });
        if due || (begins && was_steady) {
            outage.told = true;
            self.logged = Some(Instant::now());
            tracing::warn!(
                link = self.name,
                address = self.address,
                error = %trouble,
                for_s = outage.began.elapsed().as_secs(),
                "no connection to RabbitMQ; trying again until there is one"
            );
        }
        match trouble {
            Trouble::Lost(error) => {
                self.link.send_replace(Link::Connecting {
                    error: Some(format!("{}: {error}", self.address)),
                });
                let pause = backoff(self.failures);
                self.failures = self.failures.saturating_add(1);
                jittered(pause)
            }
            Trouble::QueueGone(error) => {
                self.link.send_replace(Link::Connecting {
                    error: Some(error.clone()),
                });
                REDECLARE_PAUSE
            }
            Trouble::Misdeclared(message) => {
                self.link.send_replace(Link::Misdeclared {
                    message: message.clone(),
                });
                MISDECLARED_RECHECK
            }
        }
    }

    /// The broker takes no messages, or takes them again.
    pub(super) fn blocked(&self, reason: Option<String>) {
        match reason {
            Some(reason) => {
                FAULTS.of(Fault::RabbitmqBlocked).inc();
                RABBITMQ.blocked(self.counted_as).set(1);
                tracing::warn!(
                    link = self.name,
                    address = self.address,
                    reason,
                    "RabbitMQ blocks publishing; free its memory or disk"
                );
                self.link.send_replace(Link::Blocked { reason });
            }
            None => {
                RABBITMQ.blocked(self.counted_as).set(0);
                tracing::info!(
                    link = self.name,
                    address = self.address,
                    "RabbitMQ takes messages again"
                );
                self.link.send_replace(Link::Up);
            }
        }
    }

    /// Nothing will be connected any more.
    pub(super) fn end(&self) {
        RABBITMQ.connected(self.counted_as).set(0);
        self.link.send_replace(Link::Connecting {
            error: Some("closed on our side".to_owned()),
        });
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }
}

pub(super) fn parse_addresses(settings: &Settings) -> Result<Vec<Address>, String> {
    if settings.urls.is_empty() {
        return Err("rabbitmq.url names no node".to_owned());
    }
    settings
        .urls
        .iter()
        .enumerate()
        .map(|(index, url)| {
            Address::parse(url).map_err(|reason| {
                format!(
                    "address {} of rabbitmq.url is not usable: {reason}",
                    index + 1
                )
            })
        })
        .collect()
}

/// Tries each node once. Returns the name of the node that was asked last, too.
pub(super) fn dial_any(
    addresses: &Result<Vec<Address>, String>,
    first: usize,
) -> (Result<Wire, Trouble>, Option<String>) {
    let addresses = match addresses {
        Ok(addresses) => addresses,
        Err(reason) => return (Err(Trouble::Lost(reason.clone())), None),
    };
    let mut last = (
        Err(Trouble::Lost("rabbitmq.url names no node".to_owned())),
        None,
    );
    for turn in 0..addresses.len() {
        let address = &addresses[(first % addresses.len() + turn) % addresses.len()];
        let wire = Wire::open(address);
        let is_open = wire.is_ok();
        last = (wire, Some(address.to_string()));
        if is_open {
            break;
        }
    }
    last
}

/// Declares the queues on channels of their own, since the broker closes one over a queue that is missing or that it
/// refuses.
pub(super) fn declare_queues(wire: &mut Wire, settings: &Settings) -> Result<Declared, Trouble> {
    let channel = wire.open_channel()?;
    let (channel, declared) = if topology::all_exist(&channel, settings)? {
        (channel, Declared::Known)
    } else {
        (wire.open_channel()?, Declared::New)
    };
    topology::declare(&channel, settings, || wire.feed())?;
    channel.close()?;
    Ok(declared)
}

fn backoff(failures: u32) -> Duration {
    BACKOFF_MIN
        .saturating_mul(1 << failures.min(10))
        .min(BACKOFF_MAX)
}

/// Half of the pause is random, so that many processes do not come back at the same moment.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit() {
        let pauses_ms: Vec<_> = (0..8)
            .map(|failures| backoff(failures).as_millis())
            .collect();
        assert_eq!(pauses_ms, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
        for _ in 0..100 {
            let pause = jittered(Duration::from_secs(2));
            assert!((Duration::from_secs(1)..=Duration::from_secs(2)).contains(&pause));
        }
    }
}
