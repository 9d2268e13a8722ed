//! Reconciles our view of one vendor's stock with the vendor's database. Each product's on hand and the set of updates
//! that it includes change together, so what is available is exact at every moment.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use diesel_async::{AsyncConnection, AsyncPgConnection};

use super::save::save;
use super::{Context, Error, TRANSACTION_DEADLINE, Vendor, with_deadline};
use crate::db;
use crate::domain::book::{Changes, Listed};
use crate::domain::ids::{ProductId, UpdateId, VendorId};
use crate::pg;
use crate::vendors::snapshot::Snapshot;

/// How a sync is run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Products written in one transaction.
    pub chunk_rows: usize,
    /// Believe a snapshot that lists nothing where there was something.
    pub allow_empty: bool,
}

/// What a run has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Products that the vendor lists.
    pub listed: u64,
    /// Rows that changed.
    pub written: u64,
    /// Updates that were found applied.
    pub closed: u64,
    /// Products passed over because their ids cannot be ours.
    pub skipped: u64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The whole catalogue is written.
    Done(Summary),
    /// Another process syncs this vendor now.
    Busy,
    /// A newer run has begun meanwhile; it will write what this one has not.
    Overtaken,
}

/// Runs one sync of one vendor. `progress` is told how many products were read.
///
/// # Errors
/// Ours or the vendor's database failed; what was written before stays, and is right.
pub async fn sync(
    context: &Context,
    vendor_id: &VendorId,
    options: Options,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Outcome, Error> {
    // A session lock must not go back to a pool with its connection.
    let mut session = pg::connect(context.database.settings()).await?;
    if !db::vendors::try_lock_sync(&mut session, vendor_id).await? {
        return Ok(Outcome::Busy);
    }
    let result = run(context, vendor_id, options, progress).await;
    if let Err(error) = &result {
        note_failure(context, vendor_id, error).await;
    }
    // The lock ends with its session.
    drop(session);
    result
}

/// An error of the vendor's database is the vendor's, not ours: it must not look like our own being down. Whoever shows
/// the error of a run names the vendor.
fn at_vendor(error: pg::Error) -> Error {
    Error::NotYet(format!("its database: {error}"))
}

async fn run(
    context: &Context,
    vendor_id: &VendorId,
    options: Options,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Outcome, Error> {
    let vendor = context.vendor(vendor_id)?;
    let number = with_connection(context, async |connection| {
        db::vendors::register(connection, std::slice::from_ref(vendor_id)).await?;
        Ok(db::vendors::begin_run(connection, vendor_id).await?)
    })
    .await?;
    let (mut snapshot, mut applied) = look(context, vendor_id, vendor, options.chunk_rows).await?;
    let mut writer = Writer {
        context,
        vendor_id,
        run: number,
        summary: Summary::default(),
    };
    let mut after: Option<ProductId> = None;
    let mut chunk = at_vendor_within(snapshot.next_chunk()).await?;
    if chunk.is_none() && !options.allow_empty {
        refuse_if_emptied(context, vendor_id).await?;
    }
    loop {
        let listed = chunk.take().unwrap_or_default();
        let next = if listed.is_empty() {
            None
        } else {
            at_vendor_within(snapshot.next_chunk()).await?
        };
        // The last chunk reaches to the end, so that products after the vendor's last one are found delisted.
        let until = next
            .is_some()
            .then(|| listed.last().map(|p| p.product_id.clone()))
            .flatten();
        let here = split_until(&mut applied, until.as_ref());
        writer.summary.listed += listed.len() as u64;
        if !writer
            .write(&listed, after.as_ref(), until.as_ref(), &here)
            .await?
        {
            return Ok(Outcome::Overtaken);
        }
        progress(writer.summary.listed);
        match next {
            Some(next) => {
                after = until;
                chunk = Some(next);
            }
            None => break,
        }
    }
    writer.summary.skipped = snapshot.skipped() as u64;
    let current = with_connection(context, async |connection| {
        Ok(db::vendors::complete_run(connection, vendor_id, number).await?)
    })
    .await?;
    Ok(if current {
        Outcome::Done(writer.summary)
    } else {
        Outcome::Overtaken
    })
}

/// The updates that a snapshot includes, by product.
type Applied = BTreeMap<ProductId, Vec<UpdateId>>;

/// Opens the snapshot, and finds which of our updates it includes.
async fn look(
    context: &Context,
    vendor_id: &VendorId,
    vendor: &Vendor,
    chunk_rows: usize,
) -> Result<(Snapshot, Applied), Error> {
    // Without a ledger nothing tells what a snapshot includes, so what is known to be applied before it opens is what
    // it includes for certain. With one, what is listed after it opens and found in its ledger is exactly that.
    let mut included = if vendor.has_ledger {
        Vec::new()
    } else {
        list_unclosed(context, vendor_id, true).await?
    };
    let mut snapshot =
        at_vendor_within(Snapshot::open(vendor.database.settings(), chunk_rows)).await?;
    if vendor.has_ledger {
        let open = list_unclosed(context, vendor_id, false).await?;
        for chunk in open.chunks(UPDATES_PER_LOOKUP) {
            let ids: Vec<UpdateId> = chunk.iter().map(|(id, _)| *id).collect();
            let found = at_vendor_within(snapshot.list_applied(&ids)).await?;
            let found: BTreeSet<UpdateId> = found.into_iter().collect();
            included.extend(chunk.iter().filter(|(id, _)| found.contains(id)).cloned());
        }
    }
    let mut applied = Applied::new();
    for (id, product_id) in included {
        applied.entry(product_id).or_default().push(id);
    }
    Ok((snapshot, applied))
}

/// TRUNCATE shows in snapshots that are older than it, so an empty catalogue is more likely an accident than the truth.
async fn refuse_if_emptied(context: &Context, vendor_id: &VendorId) -> Result<(), Error> {
    let had_any = with_connection(context, async |connection| {
        Ok(db::stock::has_any(connection, vendor_id).await?)
    })
    .await?;
    if !had_any {
        return Ok(());
    }
    Err(Error::Refused {
        code: "empty_snapshot",
        detail: format!(
            "it lists no product at all, where it had stock before; if that is right, run \
             `stockctl sync --once --vendor {vendor_id} --allow-empty`"
        ),
    })
}

/// Takes out the part up to and including `until`; all of it when there is no bound.
fn split_until(applied: &mut Applied, until: Option<&ProductId>) -> Applied {
    let Some(until) = until else {
        return std::mem::take(applied);
    };
    let mut rest = applied.split_off(until);
    let at_bound = rest.remove_entry(until);
    let mut here = std::mem::replace(applied, rest);
    here.extend(at_bound);
    here
}

/// Updates looked up in a ledger by one statement.
const UPDATES_PER_LOOKUP: usize = 5000;

async fn with_connection<T>(
    context: &Context,
    work: impl AsyncFnOnce(&mut AsyncPgConnection) -> Result<T, Error>,
) -> Result<T, Error> {
    with_deadline(TRANSACTION_DEADLINE, &context.database, async {
        let mut connection = context.database.get().await?;
        work(&mut connection).await
    })
    .await
}

/// A vendor's database that stays silent ends its run, not the loop.
async fn at_vendor_within<T>(work: impl Future<Output = Result<T, pg::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(VENDOR_DEADLINE, work).await {
        Ok(result) => result.map_err(at_vendor),
        Err(_) => Err(Error::NotYet(format!(
            "its database: no answer within {} s",
            VENDOR_DEADLINE.as_secs()
        ))),
    }
}

/// A chunk is read in well under a second, unless the vendor has to sort its catalogue first.
const VENDOR_DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

async fn list_unclosed(
    context: &Context,
    vendor_id: &VendorId,
    only_acknowledged: bool,
) -> Result<Vec<(UpdateId, ProductId)>, Error> {
    let mut all = Vec::new();
    loop {
        let after = all.last().map(|(id, _)| *id);
        let page = with_connection(context, async |connection| {
            let limit = i64::try_from(UPDATES_PER_LOOKUP).unwrap_or(i64::MAX);
            Ok(
                db::updates::list_unclosed(connection, vendor_id, only_acknowledged, after, limit)
                    .await?,
            )
        })
        .await?;
        let is_last = page.len() < UPDATES_PER_LOOKUP;
        all.extend(page);
        if is_last {
            return Ok(all);
        }
    }
}

/// Writes chunks of one run.
struct Writer<'a> {
    context: &'a Context,
    vendor_id: &'a VendorId,
    run: i64,
    summary: Summary,
}

impl Writer<'_> {
    /// Brings the products after `after` up to `until` to what the vendor lists. Returns whether the run is still the
    /// current one.
    async fn write(
        &mut self,
        listed: &[Listed],
        after: Option<&ProductId>,
        until: Option<&ProductId>,
        applied: &Applied,
    ) -> Result<bool, Error> {
        let changed = self.list_changed(listed, after, until, applied).await?;
        if changed.is_empty() {
            return Ok(true);
        }
        let listed: Vec<Listed> = listed
            .iter()
            .filter(|p| changed.contains(&p.product_id))
            .cloned()
            .collect();
        let ids: Vec<UpdateId> = applied.values().flatten().copied().collect();
        let products: Vec<ProductId> = changed.into_iter().collect();
        let written = with_connection(self.context, async |connection| {
            connection
                .transaction(async |connection| {
                    self.transact(connection, &products, &listed, &ids, Utc::now())
                        .await
                })
                .await
        })
        .await?;
        let Some(changes) = written else {
            return Ok(false);
        };
        self.summary.written += (changes.shelves.len() + changes.new_shelves.len()) as u64;
        self.summary.closed += changes.updates.len() as u64;
        Ok(true)
    }

    /// The products that a run has to write, by a look without locks: only a run changes what it compares.
    async fn list_changed(
        &self,
        listed: &[Listed],
        after: Option<&ProductId>,
        until: Option<&ProductId>,
        applied: &Applied,
    ) -> Result<BTreeSet<ProductId>, Error> {
        let held = with_connection(self.context, async |connection| {
            Ok(db::stock::list_range(connection, self.vendor_id, after, until).await?)
        })
        .await?;
        let mut book = self.context.book();
        for ((product_id, vendor_id), shelf) in held {
            book.load_shelf(product_id, vendor_id, shelf);
        }
        book.reconcile(self.vendor_id, self.run, listed, &[])?;
        let Changes {
            shelves,
            new_shelves,
            ..
        } = book.into_changes();
        let mut changed: BTreeSet<ProductId> = shelves
            .into_iter()
            .chain(new_shelves)
            .map(|((product_id, _), _)| product_id)
            .collect();
        changed.extend(applied.keys().cloned());
        Ok(changed)
    }

    async fn transact(
        &self,
        connection: &mut AsyncPgConnection,
        products: &[ProductId],
        listed: &[Listed],
        applied: &[UpdateId],
        now: DateTime<Utc>,
    ) -> Result<Option<Changes>, Error> {
        if db::vendors::current_run_for_share(connection, self.vendor_id).await? != self.run {
            return Ok(None);
        }
        let mut book = self.context.book();
        for ((product_id, vendor_id), shelf) in
            db::stock::load_at_vendor_for_update(connection, self.vendor_id, products).await?
        {
            book.load_shelf(product_id, vendor_id, shelf);
        }
        for update in db::updates::load_for_update(connection, applied).await? {
            book.load_update(update);
        }
        book.reconcile(self.vendor_id, self.run, listed, applied)?;
        let changes = book.into_changes();
        save(connection, &changes, now).await?;
        Ok(Some(changes))
    }
}

async fn note_failure(context: &Context, vendor_id: &VendorId, error: &Error) {
    let text: String = error.to_string().chars().take(1000).collect();
    let noted = with_connection(context, async |connection| {
        Ok(db::vendors::note_failure(connection, vendor_id, &text).await?)
    })
    .await;
    if let Err(error) = noted {
        tracing::warn!(vendor = %vendor_id, %error, "could not note why the sync failed");
    }
}
