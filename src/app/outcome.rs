//! Waits for what becomes of orders, for all callers at once: while somebody waits, one query every few milliseconds asks
//! for all orders that are waited for, by primary key; while nobody does, nothing is asked.
//!
//! PostgreSQL's own LISTEN and NOTIFY would tell sooner, but a transaction that notifies takes a lock of the whole server
//! at its commit: every decision would pay for it, waited for or not, and decisions are made by the thousand.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

use super::Context;
use super::places::Places;
use crate::db;
use crate::domain::ids::OrderId;
use crate::domain::keys::Caller;
use crate::domain::tally::Tally;
use crate::shutdown::Shutdown;

/// Requests to one process that wait at once. More, of a caller or of all, do not wait, and hear at once that their order is
/// pending.
pub const WAITING_MAX: usize = 1_000;
/// Between two looks: a decision takes longer than this from order to order, and a look at 1000 ids a few milliseconds.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// After a look that failed.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The order is not pending any more.
    Decided,
    /// The time is over, or the process is about to end.
    InVain,
    /// Too many wait, so it was not waited for.
    NotAtAll,
}

/// Where callers wait. Clones share one place.
#[derive(Clone)]
pub struct Outcomes(Arc<Shared>);

struct Shared {
    places: Places,
    waiting: Mutex<Waiting>,
    /// Somebody waits where nobody did.
    awake: Notify,
}

#[derive(Default)]
struct Waiting {
    by_order: BTreeMap<OrderId, Vec<oneshot::Sender<()>>>,
    /// How many these are: those who wait, and those who have gone since they were pruned last.
    waiters: usize,
    is_over: bool,
}

impl Waiting {
    /// Forgets waiters that have gone.
    fn prune(&mut self) {
        self.by_order.retain(|_, waiters| {
            waiters.retain(|waiter| !waiter.is_closed());
            !waiters.is_empty()
        });
        self.waiters = self.by_order.values().map(Vec::len).sum();
    }
}

impl Outcomes {
    fn new() -> Self {
        Self(Arc::new(Shared {
            places: Places::new(WAITING_MAX),
            waiting: Mutex::default(),
            awake: Notify::new(),
        }))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        let waiting = self.0.waiting.lock();
        waiting.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the order is not pending any more, for as long as that.
    pub async fn wait(&self, caller: &Caller, id: OrderId, until: tokio::time::Instant) -> Waited {
        let Some(_place) = self.0.places.take(&caller.name) else {
            return Waited::NotAtAll;
        };
        let decided = {
            let mut waiting = self.waiting();
            if waiting.is_over {
                return Waited::InVain;
            }
            // No more wait than there are places, so this leaves room.
            if waiting.waiters >= WAITING_MAX {
                waiting.prune();
            }
            let (waiter, decided) = oneshot::channel();
            waiting.by_order.entry(id).or_default().push(waiter);
            waiting.waiters += 1;
            decided
        };
        self.0.awake.notify_one();
        match timeout_at(until, decided).await {
            Ok(Ok(())) => Waited::Decided,
            Ok(Err(_)) | Err(_) => Waited::InVain,
        }
    }

    /// Opens the place, with a task that looks for what is waited for until the shutdown.
    #[must_use]
    pub fn start(context: Context, shutdown: Shutdown) -> (Self, JoinHandle<()>) {
        let outcomes = Self::new();
        let looking = outcomes.clone().look_until_stopped(context, shutdown);
        (outcomes, tokio::spawn(looking))
    }

    /// Looks for them until the shutdown, which ends all waits.
    async fn look_until_stopped(self, context: Context, shutdown: Shutdown) {
        let looking = async {
            let mut failed = Tally::new();
            loop {
                let ids: Vec<OrderId> = {
                    let mut waiting = self.waiting();
                    waiting.prune();
                    waiting.by_order.keys().copied().collect()
                };
                if ids.is_empty() {
                    self.0.awake.notified().await;
                    continue;
                }
                let found = context
                    .with_connection(async |connection| {
                        Ok(db::orders::list_not_pending(connection, &ids).await?)
                    })
                    .await;
                let pause = match found {
                    Ok(decided) => {
                        self.tell(&decided);
                        LOOK_EVERY
                    }
                    Err(error) => {
                        if let Some(times) = failed.add(1, Instant::now()) {
                            tracing::warn!(times, %error, "could not look for the orders that callers wait for");
                        }
                        LOOK_AGAIN_AFTER
                    }
                };
                tokio::time::sleep(pause).await;
            }
        };
        tokio::select! {
            () = shutdown.begun() => {}
            () = looking => {}
        }
        let mut waiting = self.waiting();
        waiting.is_over = true;
        waiting.by_order.clear();
        waiting.waiters = 0;
    }

    fn tell(&self, decided: &[OrderId]) {
        let mut waiting = self.waiting();
        for id in decided {
            let waiters = waiting.by_order.remove(id).unwrap_or_default();
            waiting.waiters -= waiters.len();
            for waiter in waiters {
                let _ = waiter.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(n: u128) -> OrderId {
        OrderId(Uuid::from_u128(n))
    }

    fn far() -> tokio::time::Instant {
        tokio::time::Instant::now() + Duration::from_secs(3600)
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_for_an_order_are_told_and_nobody_else() {
        let (outcomes, local) = (Outcomes::new(), Caller::local());
        let soon = tokio::time::Instant::now() + Duration::from_secs(1);
        let telling = async {
            while outcomes.waiting().waiters < 4 {
                tokio::task::yield_now().await;
            }
            outcomes.tell(&[id(1), id(3)]);
        };
        let (first, second, other, late, ()) = tokio::join!(
            outcomes.wait(&local, id(1), far()),
            outcomes.wait(&local, id(1), far()),
            outcomes.wait(&local, id(2), soon),
            outcomes.wait(&local, id(3), soon),
            telling
        );
        assert_eq!([first, second, late], [Waited::Decided; 3]);
        assert_eq!(other, Waited::InVain);
        outcomes.waiting().prune();
        assert_eq!(outcomes.waiting().waiters, 0);
        assert!(outcomes.0.places.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_wait_and_who_has_gone_makes_room() {
        let (outcomes, local) = (Outcomes::new(), Caller::local());
        let mut waits: Vec<_> = (0..WAITING_MAX as u128)
            .map(|n| Box::pin(outcomes.wait(&local, id(n), far())))
            .collect();
        for wait in &mut waits {
            assert!(futures_util::poll!(wait.as_mut()).is_pending());
        }
        assert_eq!(outcomes.wait(&local, id(0), far()).await, Waited::NotAtAll);
        waits.pop();
        let mut next = Box::pin(outcomes.wait(&local, id(0), far()));
        assert!(futures_util::poll!(next.as_mut()).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_have_gone_are_not_kept() {
        let (outcomes, local) = (Outcomes::new(), Caller::local());
        for n in 0..3 * WAITING_MAX as u128 {
            let mut wait = Box::pin(outcomes.wait(&local, id(n), far()));
            assert!(futures_util::poll!(wait.as_mut()).is_pending());
        }
        assert!(outcomes.waiting().waiters <= WAITING_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn the_shutdown_ends_all_waits() {
        let (outcomes, local) = (Outcomes::new(), Caller::local());
        outcomes.waiting().is_over = true;
        assert_eq!(outcomes.wait(&local, id(1), far()).await, Waited::InVain);
    }
}
