//! Whether an order that PostgreSQL does not know may be one that only the broker has.
//!
//! A process that accepts orders through the broker, since PostgreSQL is down, cannot tell the others there. So it is the
//! other way round: each process that accepts orders vouches, for a second at a time, that all it has accepted is in
//! PostgreSQL, and accepts through the broker only once its last word has run out. An id is unknown while all vouch. A
//! process that never reached PostgreSQL is the one gap: until its first word, nobody knows that it is there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Context, Error, with_deadline};
use crate::db;
use crate::domain::ids::OrderId;
use crate::mq::{self, Queue};

/// How long a word holds. Orders wait this long when PostgreSQL goes down, before they are accepted through the broker.
const VOUCH_FOR: Duration = Duration::from_secs(1);
/// For clocks that do not run alike.
const MARGIN: Duration = Duration::from_millis(100);
/// How often a word is given: one that comes late by a busy machine must not look like an outage.
const VOUCH_INTERVAL: Duration = Duration::from_millis(250);
/// Orders accepted through the broker whose arrival in PostgreSQL is still awaited. Beyond this, which ones is forgotten,
/// and nothing is vouched for until all that are remembered have arrived.
const AWAITED_MAX: usize = 100_000;
/// How many of them are looked up by one statement, and between two words.
const LOOK_UP_MAX: usize = 1000;
const LOOK_UPS_MAX: usize = 10;
/// A look-up takes milliseconds.
const LOOK_UP_DEADLINE: Duration = Duration::from_secs(2);
/// An order that has not arrived after this has been lost with its queue.
const CERTAIN_FOR: Duration = Duration::from_secs(24 * 3600);
/// One that the broker was not known to have taken has, after this, not been taken.
const POSSIBLE_FOR: Duration = Duration::from_secs(600);
/// A process that was not seen for this long has ended, and no consumer holds a message for longer.
const SILENCE_MAX: Duration = Duration::from_secs(600);
/// A word that is late by a busy machine comes within this time, and is waited for before an order is called a possible
/// one.
pub const FIND_OUT_MAX: Duration = Duration::from_secs(2);
const FIND_OUT_INTERVAL: Duration = Duration::from_millis(100);
/// How often processes that have ended are looked for.
const SILENT_INTERVAL: Duration = Duration::from_secs(30);
/// Asking for the depth of the queues takes milliseconds.
const DEPTHS_DEADLINE: Duration = Duration::from_secs(2);

/// Requests that wait at once for words that are late. Each asks PostgreSQL again and again, and what is unknown anybody
/// may ask for; beyond this, the answer comes at once.
const FINDING_OUT_MAX: usize = 32;

/// What this process vouches for.
#[derive(Clone)]
pub struct Voucher {
    state: Arc<Mutex<State>>,
    finding_out: Arc<Semaphore>,
}

impl Default for Voucher {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            finding_out: Arc::new(Semaphore::new(FINDING_OUT_MAX)),
        }
    }
}

#[derive(Default)]
struct State {
    /// Orders that only the broker has, as far as this process knows, and until when they are awaited.
    orders: HashMap<OrderId, Instant>,
    forgotten: bool,
    /// Calls under way that accept through the broker.
    publishing: usize,
    /// When the last word was given that others may have seen.
    vouched: Option<Instant>,
}

impl Voucher {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this process has accepted an order through the broker that has not been seen in PostgreSQL yet.
    #[must_use]
    pub fn awaits(&self, id: OrderId) -> bool {
        self.lock().orders.contains_key(&id)
    }

    /// Gives no word any more, and waits until the last one has run out. While the result lives, orders may be accepted
    /// through the broker.
    pub(super) async fn withdraw(&self) -> Withdrawn {
        let vouched = {
            let mut state = self.lock();
            state.publishing += 1;
            state.vouched
        };
        let withdrawn = Withdrawn {
            voucher: self.clone(),
        };
        if let Some(vouched) = vouched {
            tokio::time::sleep_until((vouched + VOUCH_FOR + MARGIN).into()).await;
        }
        withdrawn
    }

    /// The word that is to be given now: whether this process vouches. Others may see it from this moment on.
    fn word(&self) -> bool {
        let mut state = self.lock();
        let vouches = state.publishing == 0 && state.orders.is_empty() && !state.forgotten;
        if vouches {
            state.vouched = Some(Instant::now());
        }
        vouches
    }

    /// What is awaited, as much as is looked up at once.
    fn awaited(&self) -> Vec<OrderId> {
        let now = Instant::now();
        let mut state = self.lock();
        state.orders.retain(|_, until| *until > now);
        let ids: Vec<OrderId> = state
            .orders
            .keys()
            .take(LOOK_UP_MAX * LOOK_UPS_MAX)
            .copied()
            .collect();
        if ids.is_empty() {
            state.forgotten = false;
        }
        ids
    }

    fn arrived(&self, ids: &[OrderId]) {
        let mut state = self.lock();
        for id in ids {
            state.orders.remove(id);
        }
    }
}

/// The leave to accept orders through the broker.
pub(super) struct Withdrawn {
    voucher: Voucher,
}

impl Withdrawn {
    /// The broker has the order (or, not `certain`, may have it), and PostgreSQL has not.
    pub(super) fn await_arrival(&self, id: OrderId, certain: bool) {
        let mut state = self.voucher.lock();
        if state.orders.len() < AWAITED_MAX {
            let wait = if certain { CERTAIN_FOR } else { POSSIBLE_FOR };
            state.orders.insert(id, Instant::now() + wait);
        } else {
            state.forgotten = true;
        }
    }
}

impl Drop for Withdrawn {
    fn drop(&mut self) {
        self.voucher.lock().publishing -= 1;
    }
}

/// What is known of an order that was not found a moment ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// It has arrived in PostgreSQL.
    Arrived,
    /// There is no such order.
    Unknown,
    /// It was accepted through the broker, or may have been.
    OnItsWay,
}

/// Finds out whether an order that was not found a moment ago exists, which may take up to [`FIND_OUT_MAX`].
///
/// # Errors
/// PostgreSQL cannot be asked.
pub async fn find_out(
    context: &Context,
    voucher: &Voucher,
    id: OrderId,
) -> Result<Whereabouts, Error> {
    let patience = voucher.finding_out.try_acquire();
    let until = match patience {
        Ok(_) => Instant::now() + FIND_OUT_MAX,
        Err(_) => Instant::now(),
    };
    loop {
        let awaited = voucher.awaits(id);
        // Asked before the order is looked for: one that arrives in between is found.
        let (all_vouch, found) = context
            .with_connection(async |connection| {
                let all_vouch = db::acceptors::all_vouch(connection).await?;
                Ok((
                    all_vouch,
                    db::orders::list_existing(connection, &[id]).await?,
                ))
            })
            .await?;
        if !found.is_empty() {
            return Ok(Whereabouts::Arrived);
        }
        if awaited {
            return Ok(Whereabouts::OnItsWay);
        }
        if all_vouch {
            return Ok(Whereabouts::Unknown);
        }
        if Instant::now() >= until {
            return Ok(Whereabouts::OnItsWay);
        }
        tokio::time::sleep(FIND_OUT_INTERVAL).await;
    }
}

/// Gives this process's word, again and again, and sees to the arrival of what only the broker has.
pub struct Vouching {
    context: Context,
    broker: mq::Settings,
    voucher: Voucher,
    instance: Uuid,
}

impl Vouching {
    pub(super) fn new(context: Context, broker: mq::Settings, voucher: Voucher) -> Self {
        Self {
            context,
            broker,
            voucher,
            instance: Uuid::new_v4(),
        }
    }

    /// Vouches until `accepted_all`: nothing more will be accepted.
    pub async fn run(self, accepted_all: CancellationToken) {
        tokio::select! {
            () = accepted_all.cancelled() => {}
            () = self.vouch_for_ever() => {}
        }
        self.end().await;
    }

    async fn vouch_for_ever(&self) {
        let mut clock = None;
        let mut silent_at = Instant::now();
        loop {
            self.look_for_awaited().await;
            clock = self.vouch(clock).await;
            if clock.is_some() && Instant::now() >= silent_at {
                silent_at = Instant::now() + SILENT_INTERVAL;
                if let Err(error) = self.forget_silent().await {
                    tracing::debug!(%error, "could not look for processes that have ended; trying again");
                }
            }
            tokio::time::sleep(VOUCH_INTERVAL).await;
        }
    }

    /// Takes the row away at the end of the process, unless something is still awaited.
    async fn end(&self) {
        if !self.voucher.word() {
            return;
        }
        let ended = with_deadline(VOUCH_FOR, &self.context.database, async {
            let mut connection = self.context.database.get().await?;
            Ok(db::acceptors::forget(&mut connection, self.instance).await?)
        })
        .await;
        if let Err(error) = ended {
            tracing::debug!(%error, "could not say goodbye; unknown orders are answered as possible ones for ten minutes");
        }
    }

    async fn vouch(&self, clock: Option<Clock>) -> Option<Clock> {
        // Until the server's time is known there is no end to name.
        let Some(known) = clock else {
            return self.give_word(None).await;
        };
        let until = self
            .voucher
            .word()
            .then(|| known.at_least_now() + TimeDelta::from_std(VOUCH_FOR).unwrap_or_default());
        self.give_word(until).await
    }

    async fn give_word(&self, until: Option<DateTime<Utc>>) -> Option<Clock> {
        let given = with_deadline(VOUCH_FOR, &self.context.database, async {
            let mut connection = self.context.database.get().await?;
            Ok(db::acceptors::vouch(&mut connection, self.instance, until).await?)
        })
        .await;
        match given {
            Ok(server_time) => Some(Clock {
                server_time,
                read: Instant::now(),
            }),
            Err(error) => {
                tracing::debug!(%error, "could not vouch for what was accepted; trying again");
                None
            }
        }
    }

    /// Looks for awaited orders, and forgets those that have arrived, or never will.
    async fn look_for_awaited(&self) {
        for ids in self.voucher.awaited().chunks(LOOK_UP_MAX) {
            let found = with_deadline(LOOK_UP_DEADLINE, &self.context.database, async {
                let mut connection = self.context.database.get().await?;
                Ok(db::orders::list_existing(&mut connection, ids).await?)
            })
            .await;
            match found {
                Ok(found) => self.voucher.arrived(&found),
                Err(_) => return,
            }
        }
    }

    async fn forget_silent(&self) -> Result<(), Error> {
        let any = self
            .context
            .with_connection(async |connection| {
                Ok(db::acceptors::has_silent(connection, SILENCE_MAX).await?)
            })
            .await?;
        if !any {
            return Ok(());
        }
        let queue_is_empty = self.queue_is_empty().await;
        let forgotten = self
            .context
            .with_connection(async |connection| {
                Ok(db::acceptors::forget_silent(connection, SILENCE_MAX, queue_is_empty).await?)
            })
            .await?;
        if forgotten > 0 {
            tracing::info!(
                processes = forgotten,
                "processes that accepted orders have ended without a word; what they accepted has arrived"
            );
        }
        Ok(())
    }

    async fn queue_is_empty(&self) -> bool {
        let waits = |depth: &mq::Depth| {
            matches!(depth.queue, Queue::Orders | Queue::OrdersRetry) && depth.messages_ready > 0
        };
        mq::depths(&self.broker, DEPTHS_DEADLINE)
            .await
            .is_ok_and(|depths| !depths.iter().any(waits))
    }
}

/// The server's time, as it was read.
#[derive(Clone, Copy)]
struct Clock {
    server_time: DateTime<Utc>,
    read: Instant,
}

impl Clock {
    /// The server's time now is this or later: it was read a little before it came here.
    fn at_least_now(&self) -> DateTime<Utc> {
        self.server_time + TimeDelta::from_std(self.read.elapsed()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> OrderId {
        OrderId(Uuid::from_u128(n))
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_goes_through_the_broker_before_the_last_word_has_run_out() {
        let voucher = Voucher::default();
        assert!(voucher.word());
        let before = tokio::time::Instant::now();
        let withdrawn = voucher.withdraw().await;
        assert!(before.elapsed() >= VOUCH_FOR);
        assert!(!voucher.word(), "no word is given meanwhile");
        withdrawn.await_arrival(id(1), true);
        drop(withdrawn);
        assert!(!voucher.word(), "nor while an order is awaited");
        assert!(voucher.awaits(id(1)));
        voucher.arrived(&voucher.awaited());
        assert!(voucher.word());
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_gave_no_word_has_none_to_wait_for() {
        let before = tokio::time::Instant::now();
        let _withdrawn = Voucher::default().withdraw().await;
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn what_is_forgotten_keeps_the_word_back_until_all_that_is_remembered_has_arrived() {
        let voucher = Voucher::default();
        let withdrawn = voucher.withdraw().await;
        for n in 0..=AWAITED_MAX {
            withdrawn.await_arrival(id(n as u128), true);
        }
        drop(withdrawn);
        assert!(!voucher.word());
        loop {
            let awaited = voucher.awaited();
            if awaited.is_empty() {
                break;
            }
            voucher.arrived(&awaited);
        }
        assert!(voucher.word());
    }
}
