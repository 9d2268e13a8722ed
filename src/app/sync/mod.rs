//! Reconciles our view of one vendor's stock with the vendor's database. Each product's on hand and the set of updates
//! that it includes change together, so what is available is exact at every moment.

mod held;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel_async::{AsyncConnection, AsyncPgConnection};
use tokio::task::JoinSet;
use tracing::Instrument;

use self::held::{Differing, Held, find_differences};
use super::save::save;
use super::{Context, Error, TRANSACTION_DEADLINE};
use crate::db;
use crate::db::updates::{Listing, Page};
use crate::domain::book::{BookError, Difference, Listed};
use crate::domain::ids::{ProductId, UpdateId, VendorId};
use crate::domain::update::{Brief, State};
use crate::pg;
use crate::traces::{self, Kind, Span};
use crate::vendors::snapshot::{self, Recorded, Session, Snapshot};

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
    /// Products that were read: of the others a hash said that they are as we have them.
    pub read: u64,
    /// Rows that changed.
    pub written: u64,
    /// Updates that were found applied.
    pub closed: u64,
    /// Rows passed over because their id or stock cannot be ours.
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

/// Runs one sync of one vendor. `progress` is told how many rows were looked at: first their hashes, then what is read.
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
    let locking = async {
        let mut session = pg::connect(context.database.settings()).await?;
        let is_ours = db::vendors::try_lock_sync(&mut session, vendor_id).await?;
        Ok(is_ours.then_some(session))
    };
    let Some(mut session) = context.within(TRANSACTION_DEADLINE, locking).await? else {
        return Ok(Outcome::Busy);
    };
    let mut span = Span::begin("sync vendor", Kind::Internal, traces::current().as_slice());
    span.note("stockctl.vendor.id", vendor_id);
    let running = span.around(run(context, &mut session, vendor_id, options, progress));
    let result = running.instrument(span.for_log()).await;
    if let Ok(Outcome::Done(summary)) = &result {
        span.note("stockctl.sync.listed", summary.listed);
        span.note("stockctl.sync.read", summary.read);
        span.note("stockctl.sync.written", summary.written);
        span.note("stockctl.sync.closed", summary.closed);
    }
    if let Err(error) = &result {
        span.fail(error);
        note_failure(context, vendor_id, error).await;
    }
    // It would end with its session, but only once the server has seen that end: who syncs again at once would be told
    // that somebody else does.
    let unlocking = async { Ok(db::vendors::unlock_sync(&mut session, vendor_id).await?) };
    if let Err(error) = context.within(UNLOCK_DEADLINE, unlocking).await {
        tracing::debug!(vendor = %vendor_id, %error, "the lock of a sync ends with its session");
    }
    result
}

/// An error of the vendor's database is the vendor's, not ours: it must not look like our own being down. Whoever shows
/// the error of a run names the vendor; what is the configuration's to mend is told with its keys.
fn at_vendor(vendor_id: &VendorId, error: &snapshot::Error) -> Error {
    let (code, remedy) = match error {
        snapshot::Error::Database(_) => return Error::VendorDatabase(error.to_string()),
        snapshot::Error::Table { .. } => (
            "unreadable_table",
            format!(
                "check vendors.{vendor_id}.table, id_column, name_column and stock_column, and that its role has USAGE \
                 on the schema and SELECT on the table"
            ),
        ),
        snapshot::Error::Ledger { .. } => (
            "unreadable_ledger",
            format!(
                "run `stockctl migrate --vendors` and grant its role SELECT on it, or set vendors.{vendor_id}.ledger = false"
            ),
        ),
        snapshot::Error::Repeated { .. } => (
            "repeated_product",
            format!(
                "nothing tells which row counts: make the ids unique, or let vendors.{vendor_id}.table name a view that \
                 has each once"
            ),
        ),
    };
    Error::Refused {
        code,
        detail: format!("{error}; {remedy}"),
    }
}

async fn run(
    context: &Context,
    session: &mut AsyncPgConnection,
    vendor_id: &VendorId,
    options: Options,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Outcome, Error> {
    let vendor = context.vendor(vendor_id)?;
    let (number, has_any) = context
        .with_connection(async |connection| {
            db::vendors::register(connection, std::slice::from_ref(vendor_id)).await?;
            let number = db::vendors::begin_run(connection, vendor_id).await?;
            Ok((number, db::stock::has_any(connection, vendor_id).await?))
        })
        .await?;
    let (acknowledged, listings) = if vendor.has_ledger {
        Default::default()
    } else {
        list_acknowledged(context, vendor_id).await?
    };
    let open = Session::open(
        vendor.database.settings(),
        &vendor.catalogue,
        options.chunk_rows,
    );
    let mut at_vendor = at_vendor_within(vendor_id, open).await?;
    let mut writer = Writer {
        context,
        vendor_id,
        run: Run {
            context: context.clone(),
            vendor_id: vendor_id.clone(),
            number,
        },
        under_way: JoinSet::new(),
        rows_max: options.chunk_rows,
        held: Held::All(context, vendor_id),
        summary: Summary::default(),
    };
    let looks_early = vendor.has_ledger && !at_vendor.is_replica();
    if looks_early && !writer.close_early(&mut at_vendor).await? {
        return Ok(Outcome::Overtaken);
    }
    let mut snapshot = at_vendor_within(vendor_id, at_vendor.begin_snapshot()).await?;
    if snapshot.session().is_replica() && (looks_early || !vendor.has_ledger) {
        return Err(follows_another(vendor_id, vendor.has_ledger));
    }
    // What the vendor has acknowledged is written product by product, whether its rows differ or not.
    let is_hashed = has_any
        && acknowledged.is_empty()
        && snapshot.hashes_rows()
        && !at_vendor_within(vendor_id, snapshot.is_empty()).await?;
    let mut first = None;
    if !is_hashed {
        first = begin_all(&mut snapshot, vendor_id).await?;
        if first.is_none() && !options.allow_empty && has_any {
            return Err(emptied(vendor_id));
        }
    }
    // Before anything is compared: closing an update changes what is on hand.
    if vendor.has_ledger && !writer.close_applied(snapshot.session()).await? {
        return Ok(Outcome::Overtaken);
    }
    let is_current = if is_hashed {
        let writing = writer.write_differing(&mut snapshot, session, progress);
        writing.await?
    } else {
        let writing = writer.write_all_listed(&mut snapshot, first, acknowledged, progress);
        writing.await?
    };
    if !is_current {
        return Ok(Outcome::Overtaken);
    }
    for listings in listings.chunks(LISTINGS_PER_STATEMENT) {
        writer.unlist_closed(listings).await?;
    }
    let passed_over = snapshot.passed_over();
    writer.summary.skipped = passed_over.rows;
    if passed_over.rows > 0 {
        tracing::warn!(
            vendor = %vendor_id, table = snapshot.table(), rows = passed_over.rows,
            "passed over, and nothing of them is sold: {passed_over}"
        );
    }
    let current = context
        .with_connection(async |connection| {
            Ok(db::vendors::complete_run(connection, vendor_id, number).await?)
        })
        .await?;
    Ok(if current {
        Outcome::Done(writer.summary)
    } else {
        Outcome::Overtaken
    })
}

/// Begins to read the whole catalogue; `None` where it is empty.
async fn begin_all(
    snapshot: &mut Snapshot,
    vendor_id: &VendorId,
) -> Result<Option<Vec<Listed>>, Error> {
    at_vendor_within(vendor_id, snapshot.begin_products(None)).await?;
    let first = at_vendor_within(vendor_id, snapshot.next_chunk()).await?;
    if first.is_none() {
        refuse_if_unreadable(vendor_id, snapshot)?;
    }
    Ok(first)
}

/// The chunk after one that was read; nothing comes after the last.
async fn following(
    vendor_id: &VendorId,
    snapshot: &mut Snapshot,
    read: Option<&Vec<Listed>>,
) -> Result<Option<Vec<Listed>>, Error> {
    match read {
        Some(_) => at_vendor_within(vendor_id, snapshot.next_chunk()).await,
        None => Ok(None),
    }
}

/// Updates by product.
type Applied = BTreeMap<ProductId, Vec<UpdateId>>;

/// Without a ledger nothing tells what a snapshot includes; what the vendor has acknowledged before it opens, it includes
/// for certain. Returns also the rows of the list of what is not closed in which they stand.
async fn list_acknowledged(
    context: &Context,
    vendor_id: &VendorId,
) -> Result<(Applied, Vec<i64>), Error> {
    let (mut acknowledged, mut listings) = (Applied::new(), Vec::new());
    let mut after = 0;
    loop {
        let page = list_unclosed(context, vendor_id, after).await?;
        after = page.end().unwrap_or(after);
        for update in find_unclosed(context, &page.updates(), Some(State::Acknowledged)).await? {
            let of_product = acknowledged.entry(update.product_id).or_default();
            of_product.push(update.id);
        }
        listings.extend(page.listings.iter().map(|listing| listing.id));
        if page.is_last {
            return Ok((acknowledged, listings));
        }
    }
}

/// Without a ledger a run relies on seeing what the vendor has acknowledged; a replica shows it late, and the run would
/// bring back what was sold. With one, it relies on seeing what it has closed.
fn follows_another(vendor_id: &VendorId, has_ledger: bool) -> Error {
    if has_ledger {
        return Error::NotYet(
            "its database has become a replica while it was read, which may not show yet what the ledger of the primary had"
                .to_owned(),
        );
    }
    Error::Refused {
        code: "replica",
        detail: format!(
            "its database is a replica, which may not show yet what the vendor has acknowledged; set \
             vendors.{vendor_id}.database_url to the primary, since it has no ledger"
        ),
    }
}

/// A catalogue of which no row can be read is a column that was mistaken for another, whatever else is allowed.
fn refuse_if_unreadable(vendor_id: &VendorId, snapshot: &Snapshot) -> Result<(), Error> {
    let passed_over = snapshot.passed_over();
    if passed_over.rows == 0 {
        return Ok(());
    }
    Err(Error::Refused {
        code: "unreadable_rows",
        detail: format!(
            "its table {} has no row that can be read, out of {}: {passed_over}; check vendors.{vendor_id}.id_column and \
             stock_column",
            snapshot.table(),
            passed_over.rows
        ),
    })
}

/// TRUNCATE shows in snapshots that are older than it, so an empty catalogue is more likely an accident than the truth.
fn emptied(vendor_id: &VendorId) -> Error {
    Error::Refused {
        code: "empty_snapshot",
        detail: format!(
            "it lists no product at all, where it had stock before; if that is right, run \
             `stockctl sync --once --vendor {vendor_id} --allow-empty`"
        ),
    }
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

/// A session that works answers at once; one that does not is closed.
const UNLOCK_DEADLINE: Duration = Duration::from_secs(1);
/// Updates looked up in a ledger by one statement, and closed by one transaction, during which no order of their products
/// can be decided.
const UPDATES_PER_PAGE: usize = 2000;
/// Rows of the list of what is not closed that are looked at by one statement; one has up to 100 updates.
const LISTINGS_PER_STATEMENT: usize = 100;
/// How often what is open is gone through before the snapshot opens: as long as much was closed, much was sold meanwhile.
const EARLY_PASSES_MAX: usize = 3;
/// So few updates are closed in no time, snapshot or not.
const EARLY_ENOUGH: u64 = UPDATES_PER_PAGE as u64;

/// A vendor's database that stays silent ends its run, not the loop.
async fn at_vendor_within<T>(
    vendor_id: &VendorId,
    work: impl Future<Output = Result<T, snapshot::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(VENDOR_DEADLINE, work).await {
        Ok(result) => result.map_err(|error| at_vendor(vendor_id, &error)),
        Err(_) => Err(Error::NotYet(format!(
            "its database: no answer within {} s",
            VENDOR_DEADLINE.as_secs()
        ))),
    }
}

/// A chunk is read in well under a second, unless the vendor has to sort its catalogue first.
const VENDOR_DEADLINE: Duration = Duration::from_secs(60);

async fn list_unclosed(context: &Context, vendor_id: &VendorId, after: i64) -> Result<Page, Error> {
    context
        .with_connection(async |connection| {
            let listing =
                db::updates::list_unclosed(connection, vendor_id, after, UPDATES_PER_PAGE);
            Ok(listing.await?)
        })
        .await
}

async fn find_unclosed(
    context: &Context,
    ids: &[UpdateId],
    state: Option<State>,
) -> Result<Vec<Brief>, Error> {
    context
        .with_connection(async |connection| {
            Ok(db::updates::find_unclosed(connection, ids, state).await?)
        })
        .await
}

/// Transactions that one run writes at a time. They are of other products each, so neither waits for the other, and while
/// one waits for the disk, or for an order that is decided, the other gets on.
const WRITES_AT_ONCE: usize = 2;

/// Writes chunks of one run.
struct Writer<'a> {
    context: &'a Context,
    vendor_id: &'a VendorId,
    run: Run,
    /// What is being written.
    under_way: JoinSet<Result<Written, Error>>,
    rows_max: usize,
    held: Held<'a>,
    summary: Summary,
}

impl<'a> Writer<'a> {
    /// Writes where the rows have other hashes than ours. Returns whether the run is still the current one.
    async fn write_differing(
        &mut self,
        snapshot: &mut Snapshot,
        session: &'a mut AsyncPgConnection,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<bool, Error> {
        let (context, vendor_id) = (self.context, self.vendor_id);
        let mut look = held::begin(context, session, vendor_id, self.run.number).await?;
        let finding = find_differences(
            context,
            vendor_id,
            snapshot,
            &mut look,
            self.run.number,
            progress,
        );
        let differences = finding.await?;
        let listed = differences.listed();
        let looked_at = |read| progress(listed + read);
        let Some(buckets) = differences.into_few_buckets() else {
            // Reading everything may take long.
            held::end(context, look).await?;
            let first = begin_all(snapshot, vendor_id).await?;
            return self
                .write_all_listed(snapshot, first, Applied::new(), &looked_at)
                .await;
        };
        let mut is_current = true;
        if !buckets.is_empty() {
            // Each side looks through all of its rows for these, so both do it at the same time.
            let listing = async {
                let begin = snapshot.begin_products(Some((&buckets, self.run.number)));
                at_vendor_within(vendor_id, begin).await?;
                at_vendor_within(vendor_id, snapshot.next_chunk()).await
            };
            let holding = Differing::begin(context, look, &buckets, self.rows_max);
            let (first, differing) = tokio::try_join!(listing, holding)?;
            self.held = Held::Differing(differing);
            is_current = self
                .write_read(snapshot, first, Applied::new(), &looked_at)
                .await?;
        }
        self.summary.listed = listed.saturating_sub(snapshot.passed_over().rows);
        Ok(is_current)
    }

    /// Writes the whole catalogue, from `first` on. Returns whether the run is still the current one.
    async fn write_all_listed(
        &mut self,
        snapshot: &mut Snapshot,
        first: Option<Vec<Listed>>,
        acknowledged: Applied,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<bool, Error> {
        let is_current = self
            .write_read(snapshot, first, acknowledged, progress)
            .await?;
        self.summary.listed = self.summary.read;
        Ok(is_current)
    }

    /// Writes what the snapshot goes on to list, from `chunk` on, and what it has not listed in between as gone. Returns
    /// whether the run is still the current one.
    async fn write_read(
        &mut self,
        snapshot: &mut Snapshot,
        mut chunk: Option<Vec<Listed>>,
        mut acknowledged: Applied,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<bool, Error> {
        let vendor_id = self.vendor_id;
        let mut after: Option<ProductId> = None;
        let mut next = following(vendor_id, snapshot, chunk.as_ref()).await?;
        loop {
            let listed = chunk.take().unwrap_or_default();
            // The last chunk reaches to the end, so that products after the vendor's last one are found delisted.
            let until = next
                .is_some()
                .then(|| listed.last().map(|p| p.product_id.clone()))
                .flatten();
            let here = split_until(&mut acknowledged, until.as_ref());
            self.summary.read += listed.len() as u64;
            // The vendor reads on meanwhile.
            let (is_current, after_next) = tokio::try_join!(
                self.write_range(listed, after.as_ref(), until.as_ref(), here),
                following(vendor_id, snapshot, next.as_ref()),
            )?;
            if !is_current {
                return Ok(false);
            }
            progress(self.summary.read);
            if next.is_none() {
                return self.settle(0).await;
            }
            after = until;
            chunk = std::mem::replace(&mut next, after_next);
        }
    }

    /// Closes what the ledger has before a snapshot opens. It takes seconds where much was sold, and an open snapshot would
    /// keep the vendor's database from clearing away the old versions of its rows all the while. Only a primary will do:
    /// what it shows, a later snapshot includes. Returns whether the run is still the current one.
    async fn close_early(&mut self, at_vendor: &mut Session) -> Result<bool, Error> {
        for _ in 0..EARLY_PASSES_MAX {
            let before = self.summary.closed;
            if !self.close_applied(at_vendor).await? {
                return Ok(false);
            }
            if self.summary.closed - before < EARLY_ENOUGH {
                break;
            }
        }
        Ok(true)
    }

    /// Closes the updates that the ledger has as applied, page by page, however many there are: of those that were open
    /// when this began. Returns whether the run is still the current one.
    async fn close_applied(&mut self, at_vendor: &mut Session) -> Result<bool, Error> {
        let mut after = 0;
        loop {
            let page = list_unclosed(self.context, self.vendor_id, after).await?;
            after = page.end().unwrap_or(after);
            let updates = page.updates();
            let looking = at_vendor.list_applied(&updates);
            let applied = at_vendor_within(self.vendor_id, looking).await?;
            let found: BTreeSet<UpdateId> = applied.iter().map(|update| update.id).collect();
            if !self.close(applied).await? {
                return Ok(false);
            }
            // What stood in the others was closed already or is so now, and stays so: nobody has to look.
            let (closed, looked_at): (Vec<Listing>, Vec<Listing>) = page
                .listings
                .into_iter()
                .partition(|listing| listing.updates.iter().all(|id| found.contains(id)));
            let ids = |listings: Vec<Listing>| -> Vec<i64> {
                listings.into_iter().map(|listing| listing.id).collect()
            };
            self.unlist(&ids(closed)).await?;
            self.unlist_closed(&ids(looked_at)).await?;
            if page.is_last {
                return Ok(true);
            }
        }
    }

    /// Closes updates that the ledger has as applied, whichever of them are not closed. Returns whether the run is still the
    /// current one.
    async fn close(&mut self, applied: Vec<Recorded>) -> Result<bool, Error> {
        let ids: Vec<UpdateId> = applied.iter().map(|update| update.id).collect();
        // The ledger says of which products they are, as a rule: then none has to be read before it is closed.
        if let Some(as_recorded) = applied.into_iter().map(Recorded::brief).collect() {
            let before = self.summary.closed;
            match self.close_known(as_recorded).await {
                Ok(false) => return Ok(false),
                Ok(true) if self.summary.closed - before == ids.len() as u64 => return Ok(true),
                // Some were closed before, or are something else here.
                Ok(true) | Err(Error::Rule(BookError::NotLoaded(_))) => {}
                Err(error) => return Err(error),
            }
        }
        let as_held = find_unclosed(self.context, &ids, None).await?;
        self.close_known(as_held).await
    }

    /// Closes updates of which it is known what they are. Returns whether the run is still the current one.
    async fn close_known(&mut self, updates: Vec<Brief>) -> Result<bool, Error> {
        // Each in a transaction of their own: both are locked in the order of their ids, but not together.
        let (takes, returns) = updates.into_iter().partition(|update| update.is_take);
        for work in [Work::closing_takes(takes), Work::closing(returns)] {
            self.spawn(work);
            if !self.settle(0).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes rows out of the list of what is not closed.
    async fn unlist(&self, listings: &[i64]) -> Result<(), Error> {
        self.context
            .with_connection(async |connection| {
                Ok(db::updates::unlist(connection, self.vendor_id, listings).await?)
            })
            .await
    }

    /// Takes what is closed out of the list of what is not.
    async fn unlist_closed(&self, listings: &[i64]) -> Result<(), Error> {
        self.context
            .with_connection(async |connection| {
                Ok(db::updates::unlist_closed(connection, self.vendor_id, listings).await?)
            })
            .await
    }

    /// Brings the products after `after` up to `until` to what the vendor lists. Some of it may be under way still. Returns
    /// whether the run is still the current one, as far as that is known.
    async fn write_range(
        &mut self,
        mut listed: Vec<Listed>,
        after: Option<&ProductId>,
        until: Option<&ProductId>,
        mut acknowledged: Applied,
    ) -> Result<bool, Error> {
        let mut after = after.cloned();
        loop {
            // What we hold may be more than what the vendor lists, when it has dropped much of its catalogue.
            let held = self.held.next(after.as_ref(), until, self.rows_max).await?;
            let is_last = held.len() < self.rows_max;
            let end = if is_last {
                until.cloned()
            } else {
                held.last().map(|(id, _)| id.clone())
            };
            let rest = match &end {
                Some(end) => {
                    listed.split_off(listed.partition_point(|product| product.product_id <= *end))
                }
                None => Vec::new(),
            };
            let close = split_until(&mut acknowledged, end.as_ref());
            // A look without locks: only a run changes what it compares, and adds to it.
            let difference = Difference::between(self.run.number, &held, listed, |product_id| {
                close.contains_key(product_id)
            });
            let work = Work {
                products: difference.changed,
                close: close.into_values().flatten().collect(),
                write: Write::Listed {
                    known: difference.listed,
                    new: difference.new,
                },
            };
            if !work.is_nothing() {
                if !self.settle(WRITES_AT_ONCE - 1).await? {
                    return Ok(false);
                }
                self.spawn(work);
            }
            if is_last {
                return Ok(true);
            }
            listed = rest;
            after = end;
        }
    }

    fn spawn(&mut self, work: Work) {
        // Its lines of the log are the run's.
        let write = self.run.clone().write(work).in_current_span();
        self.under_way.spawn(write);
    }

    /// Waits until no more than so many transactions are under way. Returns whether the run is still the current one, as far
    /// as those that have ended say.
    async fn settle(&mut self, under_way_max: usize) -> Result<bool, Error> {
        while self.under_way.len() > under_way_max {
            let Some(ended) = self.under_way.join_next().await else {
                break;
            };
            match ended.unwrap_or_else(|error| Err(Error::Broken(error.to_string())))? {
                Written::Rows { written, closed } => {
                    self.summary.written += written;
                    self.summary.closed += closed;
                }
                Written::Overtaken => return Ok(false),
            }
        }
        Ok(true)
    }
}

/// A run of a vendor's sync.
#[derive(Clone)]
struct Run {
    context: Context,
    vendor_id: VendorId,
    number: i64,
}

impl Run {
    /// One transaction.
    async fn write(self, work: Work) -> Result<Written, Error> {
        if work.is_nothing() {
            return Ok(Written::NOTHING);
        }
        self.context
            .with_connection(async |connection| {
                connection
                    .transaction(async |connection| {
                        self.transact(connection, &work, Utc::now()).await
                    })
                    .await
            })
            .await
    }

    async fn transact(
        &self,
        connection: &mut AsyncPgConnection,
        work: &Work,
        now: DateTime<Utc>,
    ) -> Result<Written, Error> {
        if db::vendors::current_run_for_share(connection, &self.vendor_id).await? != self.number {
            return Ok(Written::Overtaken);
        }
        let mut written = 0;
        if let Write::Listed { new, .. } = &work.write {
            db::stock::insert(connection, &self.vendor_id, new, now).await?;
            written += new.len();
        }
        if work.products.is_empty() && work.close.is_empty() {
            return Ok(Written::Rows {
                written: written as u64,
                closed: 0,
            });
        }
        let mut book = self.context.book();
        let locked =
            db::stock::load_at_vendor_for_update(connection, &self.vendor_id, &work.products);
        for ((product_id, vendor_id), shelf) in locked.await? {
            book.load_shelf(product_id, vendor_id, shelf);
        }
        for update in db::updates::load_for_update(connection, &work.close).await? {
            book.load_update(update);
        }
        let mut closed = 0;
        match &work.write {
            Write::Nothing => book.fold(&work.close)?,
            Write::Closed { takes } => {
                for of_product in db::updates::close_takes(connection, takes, now).await? {
                    let (product_id, delta) = (&of_product.product_id, of_product.delta);
                    book.fold_closed_takes(product_id, &self.vendor_id, delta)?;
                    closed += of_product.updates.unsigned_abs();
                }
            }
            Write::Listed { known, .. } => {
                book.reconcile(&self.vendor_id, self.number, known, &work.close)?;
            }
        }
        let changes = book.into_changes();
        save(connection, &changes, now).await?;
        if let Write::Listed { .. } = work.write {
            written += changes.shelves.len();
        }
        Ok(Written::Rows {
            written: written as u64,
            closed: closed + changes.updates.len() as u64,
        })
    }
}

/// What a transaction came to.
enum Written {
    /// It has changed so many rows, and closed so many updates.
    Rows { written: u64, closed: u64 },
    /// Nothing is written: the run is not the current one any more.
    Overtaken,
}

impl Written {
    const NOTHING: Self = Self::Rows {
        written: 0,
        closed: 0,
    };
}

/// What one transaction of a run is about.
struct Work {
    /// The products whose stock it locks: those that we hold.
    products: Vec<ProductId>,
    /// The updates that it reads and closes.
    close: Vec<UpdateId>,
    write: Write,
}

impl Work {
    fn closing(updates: Vec<Brief>) -> Self {
        let (products, close) = split(updates);
        Self {
            products,
            close,
            write: Write::Nothing,
        }
    }

    fn closing_takes(takes: Vec<Brief>) -> Self {
        let (products, takes) = split(takes);
        Self {
            products,
            close: Vec::new(),
            write: Write::Closed { takes },
        }
    }

    fn is_nothing(&self) -> bool {
        let adds_nothing = match &self.write {
            Write::Nothing => true,
            Write::Closed { takes } => takes.is_empty(),
            Write::Listed { new, .. } => new.is_empty(),
        };
        adds_nothing && self.products.is_empty() && self.close.is_empty()
    }
}

/// The products of updates, each once and in order, and the updates.
fn split(updates: Vec<Brief>) -> (Vec<ProductId>, Vec<UpdateId>) {
    let ids = updates.iter().map(|update| update.id).collect();
    let products: BTreeSet<ProductId> = updates.into_iter().map(|of| of.product_id).collect();
    (products.into_iter().collect(), ids)
}

/// What becomes of the stock on hand.
enum Write {
    /// It takes in the updates that are closed, and nothing else.
    Nothing,
    /// It takes in these takes, which are closed without being read before.
    Closed { takes: Vec<UpdateId> },
    /// It becomes what the vendor lists: of products that are locked, and of such that we did not hold yet.
    Listed {
        known: Vec<Listed>,
        new: Vec<Listed>,
    },
}

async fn note_failure(context: &Context, vendor_id: &VendorId, error: &Error) {
    // What is shown to callers; whoever runs the sync logs the error itself.
    let code = error.code();
    let noted = context
        .with_connection(async |connection| {
            Ok(db::vendors::note_failure(connection, vendor_id, &code).await?)
        })
        .await;
    if let Err(error) = noted {
        tracing::warn!(vendor = %vendor_id, %error, "could not note why the sync failed");
    }
}
