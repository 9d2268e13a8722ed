//! Our side of the comparison with a vendor's catalogue: first the hashes of the rows of both, then, of those that may
//! differ, the rows.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use diesel_async::AsyncPgConnection;

use super::at_vendor_within;
use crate::app::{Context, Error, TRANSACTION_DEADLINE};
use crate::db;
use crate::db::stock::Look;
use crate::domain::book::Shelf;
use crate::domain::difference::{Buckets, Differences};
use crate::domain::ids::{ProductId, VendorId};
use crate::pg;
use crate::vendors::snapshot::Snapshot;

/// The first products come when all rows were looked at, and those that may differ are sorted.
const FIRST_PRODUCTS_WITHIN: Duration = Duration::from_secs(60);

/// A look at our stock that has to get on.
async fn look_within<T>(
    context: &Context,
    deadline: Duration,
    look: impl Future<Output = Result<T, pg::Error>>,
) -> Result<T, Error> {
    context.within(deadline, async { Ok(look.await?) }).await
}

/// Compares the hashes of all rows. Both databases compute theirs at the same time.
pub(super) async fn find_differences(
    context: &Context,
    vendor_id: &VendorId,
    snapshot: &mut Snapshot,
    look: &mut Look<'_>,
    run: i64,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Differences, Error> {
    let differences = Mutex::new(Differences::default());
    let counted = |count: &dyn Fn(&mut Differences)| {
        let mut differences = differences.lock().unwrap_or_else(PoisonError::into_inner);
        count(&mut differences);
        differences.listed()
    };
    let count_listed = async {
        let mut hashes = at_vendor_within(vendor_id, snapshot.hashes(run)).await?;
        loop {
            let page = async { Ok(hashes.next_page().await?) };
            let page = at_vendor_within(vendor_id, page).await?;
            if page.is_empty() {
                return Ok::<_, Error>(());
            }
            progress(counted(&|differences| {
                page.iter().for_each(|hash| differences.add_listed(*hash));
            }));
        }
    };
    let count_held = async {
        let mut hashes = look_within(context, TRANSACTION_DEADLINE, look.hashes()).await?;
        loop {
            let page = look_within(context, TRANSACTION_DEADLINE, hashes.next_page()).await?;
            if page.is_empty() {
                return Ok(());
            }
            counted(&|differences| page.iter().for_each(|hash| differences.add_held(*hash)));
        }
    };
    tokio::try_join!(count_listed, count_held)?;
    Ok(differences
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner))
}

/// Begins to look.
pub(super) async fn begin<'a>(
    context: &Context,
    session: &'a mut AsyncPgConnection,
    vendor_id: &'a VendorId,
    run: i64,
) -> Result<Look<'a>, Error> {
    let begin = Look::begin(session, vendor_id, run);
    look_within(context, TRANSACTION_DEADLINE, begin).await
}

/// Ends a look before its session does, which ends it too.
pub(super) async fn end(context: &Context, look: Look<'_>) -> Result<(), Error> {
    look_within(context, TRANSACTION_DEADLINE, look.end()).await
}

/// What we hold of a vendor's products, in the order of their ids.
pub(super) enum Held<'a> {
    /// All of them, looked up range by range.
    All(&'a Context, &'a VendorId),
    /// Those that may differ, read one after the other.
    Differing(Differing<'a>),
}

/// Products that are read in order, with those that were read beyond what was asked for.
pub(super) struct Differing<'a> {
    context: &'a Context,
    look: Look<'a>,
    read: VecDeque<(ProductId, Shelf)>,
    is_end: bool,
}

impl<'a> Differing<'a> {
    /// Begins to read the products in some buckets, and reads the first of them, at most `limit`.
    pub(super) async fn begin(
        context: &'a Context,
        mut look: Look<'a>,
        buckets: &Buckets,
        limit: usize,
    ) -> Result<Self, Error> {
        look_within(context, TRANSACTION_DEADLINE, look.begin_products(buckets)).await?;
        let mut differing = Self {
            context,
            look,
            read: VecDeque::new(),
            is_end: false,
        };
        differing.read(limit).await?;
        Ok(differing)
    }

    async fn read(&mut self, limit: usize) -> Result<(), Error> {
        let next = self.look.next_products(limit);
        let more = look_within(self.context, FIRST_PRODUCTS_WITHIN, next).await?;
        self.is_end = more.len() < limit;
        self.read.extend(more);
        Ok(())
    }

    async fn next(
        &mut self,
        until: Option<&ProductId>,
        limit: usize,
    ) -> Result<Vec<(ProductId, Shelf)>, Error> {
        if self.read.len() < limit && !self.is_end {
            self.read(limit).await?;
        }
        let here = match until {
            Some(until) => self.read.partition_point(|(id, _)| id <= until),
            None => self.read.len(),
        };
        Ok(self.read.drain(..here.min(limit)).collect())
    }
}

impl Held<'_> {
    /// The next products after `after`, which is where the last ones ended, up to and including `until`: at most `limit`, and
    /// fewer only where there are no more.
    pub(super) async fn next(
        &mut self,
        after: Option<&ProductId>,
        until: Option<&ProductId>,
        limit: usize,
    ) -> Result<Vec<(ProductId, Shelf)>, Error> {
        match self {
            Self::Differing(differing) => differing.next(until, limit).await,
            Self::All(context, vendor_id) => {
                let limit = i64::try_from(limit).unwrap_or(i64::MAX);
                context
                    .with_connection(async |connection| {
                        Ok(
                            db::stock::list_range(connection, vendor_id, after, until, limit)
                                .await?,
                        )
                    })
                    .await
            }
        }
    }
}
