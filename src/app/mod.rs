//! The use cases. Each has one shape: begin, load and lock, call a pure rule, save, append to the outbox, commit.

pub mod accept;
pub mod audit;
mod batches;
pub mod cancel;
pub mod dead_letters;
pub mod decide;
mod error;
pub mod events;
pub mod gauges;
pub mod keys;
pub mod orders;
pub mod outcome;
pub mod overview;
pub mod places;
pub mod push;
pub mod relay;
mod save;
mod shortcut;
pub mod status;
pub mod sync;
pub mod traced;
pub mod vendor_stock;
pub mod vouch;
pub mod webhooks;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use diesel_async::AsyncPgConnection;
pub use error::{Error, Kind};
use uuid::Uuid;

use self::vendor_stock::Taking;
use crate::domain::book::Book;
use crate::domain::ids::{UpdateId, VendorId};
use crate::pg;
use crate::vendors::catalogue::Catalogue;
use crate::vendors::client::Client;

/// A transaction of ours takes milliseconds. One without an answer for this long has met a server that is open but
/// silent, which no timeout of that server can end.
pub const TRANSACTION_DEADLINE: Duration = Duration::from_secs(15);

/// A vendor, as configured.
#[derive(Clone)]
pub struct Vendor {
    /// Its database.
    pub database: pg::Pool,
    /// Where it lists its products there.
    pub catalogue: Catalogue,
    /// Its HTTP API.
    pub api: Client,
    /// Whether its database has the ledger.
    pub has_ledger: bool,
    /// How its API takes what it is asked for.
    pub taking: Taking,
}

/// What every use case works with: where the stores are, and who the vendors are.
#[derive(Clone)]
pub struct Context {
    /// `ordersdb`.
    pub database: pg::Pool,
    /// The vendors by id.
    pub vendors: BTreeMap<VendorId, Vendor>,
}

impl Context {
    /// The ids of the vendors.
    #[must_use]
    pub fn vendor_ids(&self) -> Vec<VendorId> {
        self.vendors.keys().cloned().collect()
    }

    /// A configured vendor.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn vendor(&self, id: &VendorId) -> Result<&Vendor, Error> {
        self.vendors
            .get(id)
            .ok_or_else(|| Error::Missing(format!("no vendor {id} is configured")))
    }

    /// Does something with a connection to our database, within a deadline.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn with_connection<T>(
        &self,
        work: impl AsyncFnOnce(&mut AsyncPgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.within(TRANSACTION_DEADLINE, async {
            let mut connection = self.database.get().await?;
            work(&mut connection).await
        })
        .await
    }

    /// Does something with our database, on whatever connection, within a deadline.
    async fn within<T>(
        &self,
        deadline: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        with_deadline(deadline, &self.database, work).await
    }

    /// Whether our database takes writes: one that is full or read-only answers, but does not.
    pub async fn store_works(&self, deadline: Duration) -> bool {
        with_deadline(deadline, &self.database, async {
            let mut connection = self.database.get().await?;
            Ok(crate::db::probe(&mut connection).await?)
        })
        .await
        .is_ok()
    }

    fn book(&self) -> Book {
        let ledgerless: BTreeSet<VendorId> = self
            .vendors
            .iter()
            .filter(|(_, vendor)| !vendor.has_ledger)
            .map(|(id, _)| id.clone())
            .collect();
        Book::new(self.vendors.keys().cloned().collect(), ledgerless)
    }
}

/// Ids in the order of time: neighbours in time are neighbours in the index.
fn new_update_id() -> UpdateId {
    UpdateId(Uuid::now_v7())
}

/// Waits for work on a database with a deadline; a server that stays silent counts as down. The connection that the
/// work held is broken by being left in the middle, and its pool drops it.
async fn with_deadline<T>(
    deadline: Duration,
    pool: &pg::Pool,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(deadline, work).await {
        Ok(Err(error)) if error.kind() == Kind::Unavailable => {
            pool.figures().unavailable.inc();
            pool.forget_idle();
            Err(error)
        }
        Ok(result) => result,
        Err(_) => {
            pool.figures().silent.inc();
            pool.forget_idle();
            Err(Error::Database(pg::Error::Unavailable {
                at: pool.settings().address(),
                problem: format!("no answer within {} s", deadline.as_secs()),
            }))
        }
    }
}
