//! Compares our updates with the vendors' ledgers. The bulk is compared by digests, part by part; rows are read where
//! digests differ, and of the last minute, where much is on its way.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{Finding, READ_DEADLINE, within};
use crate::app::{Context, Error, Vendor};
use crate::db;
use crate::db::audit::{OfUpdates, Part, Range, Snapshot};
use crate::domain::audit::{
    Comparison, Digest, Held, Need, Pair, Violation, bounds, first_id_at, pair_up,
};
use crate::domain::ids::{UpdateId, VendorId};
use crate::pg;
use crate::vendors::ledger::{self, Entries};

/// Rows of a side that are held at once.
const ROWS_PER_PAGE: usize = 5000;
/// Into how many parts the ids are cut: each that differs is read row by row.
const PARTS: u32 = 256;
/// What is younger is compared row by row: it may have been recorded between the two snapshots.
const YOUNG: TimeDelta = TimeDelta::seconds(60);
/// A ledger may drop an entry so long after its update was closed here.
const KEPT: TimeDelta = TimeDelta::days(30);

/// What all vendors' comparisons share.
struct Ours<'a> {
    context: &'a Context,
    source: Uuid,
    bounds: Vec<Uuid>,
    /// Ids from here on are young.
    young: Uuid,
    /// What was closed before may be gone.
    recent: DateTime<Utc>,
}

/// Compares. Returns the sums of our updates, which are read here for all checks.
pub(super) async fn check(
    context: &Context,
    snapshot: &mut Snapshot,
    seed: i64,
    finding: &mut Finding,
) -> Result<OfUpdates, Error> {
    let source = within(db::installation_id(snapshot.connection())).await?;
    // Opened after ours and together, so that each has what ours has, and not much more.
    let mut opened = Vec::new();
    for (id, vendor) in &context.vendors {
        if !vendor.has_ledger {
            finding
                .notes
                .push(format!("vendor {id} has no ledger: not compared"));
            continue;
        }
        let settings = vendor.database.settings();
        match at_vendor(id, ledger::Snapshot::open(settings, source, seed)).await {
            Ok(theirs) => opened.push((id, vendor, theirs)),
            Err(failure) => finding.failures.push(failure),
        }
    }
    let young = first_id_at((snapshot.at() - YOUNG).timestamp_millis());
    let first = within(snapshot.find_first_update()).await?.unwrap_or(young);
    let ours = Ours {
        context,
        source,
        bounds: bounds(first, young, PARTS),
        young,
        recent: snapshot.at() - KEPT,
    };
    let mut parts = BTreeMap::<String, Vec<Part>>::new();
    let (updates, digests) = within(snapshot.sum_updates(&ours.bounds, young, ours.recent)).await?;
    if opened.is_empty() {
        return Ok(updates);
    }
    for part in digests {
        parts.entry(part.vendor_id.clone()).or_default().push(part);
    }
    let mut entries = 0;
    let vendors = opened.len() as u64;
    for (id, vendor, theirs) in opened {
        let of_vendor = parts.remove(id.as_str()).unwrap_or_default();
        let mut comparing = Comparing {
            ours: &ours,
            id,
            vendor,
            snapshot: &mut *snapshot,
            theirs,
            finding: &mut *finding,
            looked_at: 0,
            doubtful: BTreeSet::new(),
        };
        let ended = comparing.run(&of_vendor).await;
        entries += comparing.looked_at;
        match ended {
            Ok(()) => {}
            Err(Stop::Vendor(failure)) => finding.failures.push(failure),
            Err(Stop::Ours(error)) => return Err(error),
        }
    }
    for id in parts.keys() {
        if !context.vendors.keys().any(|known| known.as_str() == id) {
            finding.notes.push(format!(
                "vendor {id} has updates and is not configured: not compared"
            ));
        }
    }
    finding.count("vendors", vendors);
    finding.count("ledger_entries", entries);
    Ok(updates)
}

/// Why a comparison ends early.
enum Stop {
    /// Our own database failed: so does the audit.
    Ours(Error),
    /// The vendor's did: the others are compared.
    Vendor(String),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

/// What fails at a vendor's database is told with its name.
async fn at_vendor<T>(
    id: &VendorId,
    read: impl Future<Output = Result<T, pg::Error>>,
) -> Result<T, String> {
    let problem = match tokio::time::timeout(READ_DEADLINE, read).await {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", READ_DEADLINE.as_secs()),
    };
    Err(format!(
        "vendor {id}: its ledger was not compared: {problem}"
    ))
}

/// The comparison with one vendor.
struct Comparing<'a> {
    ours: &'a Ours<'a>,
    id: &'a VendorId,
    vendor: &'a Vendor,
    snapshot: &'a mut Snapshot,
    theirs: ledger::Snapshot,
    finding: &'a mut Finding,
    looked_at: u64,
    /// What the two snapshots disagree on, until it is looked at again.
    doubtful: BTreeSet<UpdateId>,
}

impl Comparing<'_> {
    async fn theirs<T>(
        id: &VendorId,
        read: impl Future<Output = Result<T, pg::Error>>,
    ) -> Result<T, Stop> {
        at_vendor(id, read).await.map_err(Stop::Vendor)
    }

    async fn run(&mut self, parts: &[Part]) -> Result<(), Stop> {
        let (bounds, young) = (&self.ours.bounds, self.ours.young);
        let mut recorded = BTreeMap::<usize, Digest>::new();
        let digests = Self::theirs(self.id, self.theirs.digest(bounds, young, None)).await?;
        let in_vain: u64 = digests.iter().map(|part| part.in_vain).sum();
        for part in digests {
            self.looked_at += part.digest.rows;
            recorded.insert(part.part, part.digest);
        }
        self.compare_open(&mut recorded).await?;
        for (from, until) in differing(parts, &recorded, bounds.len()) {
            let from = from.checked_sub(1).and_then(|n| bounds.get(n)).copied();
            let until = bounds.get(until).copied().unwrap_or(young);
            self.compare_rows(from, Some(until)).await?;
        }
        if in_vain > 0 {
            self.compare_vain_returns().await?;
        }
        self.looked_at += self.compare_rows(Some(young), None).await?;
        self.look_again().await
    }

    /// What has no answer here may or may not be in the ledger: it is compared by itself, and taken out of the digests.
    async fn compare_open(&mut self, recorded: &mut BTreeMap<usize, Digest>) -> Result<(), Stop> {
        let (bounds, young) = (&self.ours.bounds, self.ours.young);
        let mut after = 0;
        loop {
            let listed = self.snapshot.list_unclosed(self.id, after, ROWS_PER_PAGE);
            let listed = within(listed).await?;
            after = listed.end().unwrap_or(after);
            let page: Vec<UpdateId> = within(self.snapshot.find_open(&listed.updates()))
                .await?
                .into_iter()
                .map(|update| update.id)
                .filter(|id| id.0 < young)
                .collect();
            let of_these = self.theirs.digest(bounds, young, Some(&page));
            for part in Self::theirs(self.id, of_these).await? {
                recorded
                    .entry(part.part)
                    .and_modify(|all| *all = all.without(part.digest));
            }
            self.compare_ids(&page).await?;
            if listed.is_last {
                return Ok(());
            }
        }
    }

    /// Returns without an effect are in no digest, since here they may be void without ever having been sent.
    async fn compare_vain_returns(&mut self) -> Result<(), Stop> {
        let entries = Entries::VainReturnsBelow(self.ours.young);
        Self::theirs(self.id, self.theirs.open_stream(entries)).await?;
        loop {
            let page = Self::theirs(self.id, self.theirs.next_page(ROWS_PER_PAGE)).await?;
            if page.is_empty() {
                break;
            }
            self.looked_at += page.len() as u64;
            let ids: Vec<UpdateId> = page.iter().map(|row| row.id).collect();
            let mut pairs = pair_up(self.held(&ids).await?, page);
            pairs.retain(|pair| !pair.is_open());
            self.judge(pairs).await?;
        }
        Ok(())
    }

    async fn held(&mut self, ids: &[UpdateId]) -> Result<Vec<Held>, Stop> {
        let recent = self.ours.recent;
        let found = db::audit::find_held(self.snapshot.connection(), ids, recent);
        Ok(within(found).await?)
    }

    async fn compare_ids(&mut self, ids: &[UpdateId]) -> Result<(), Stop> {
        let held = self.held(ids).await?;
        let recorded = Self::theirs(self.id, self.theirs.find(ids)).await?;
        self.judge(pair_up(held, recorded)).await
    }

    /// Reads both sides of a part of the ids. Returns how many entries the ledger has there.
    async fn compare_rows(&mut self, from: Option<Uuid>, until: Option<Uuid>) -> Result<u64, Stop> {
        let range = Range { from, until };
        within(self.snapshot.open_stream(self.id, range, self.ours.recent)).await?;
        let entries = Entries::Between(from, until);
        Self::theirs(self.id, self.theirs.open_stream(entries)).await?;
        let mut entries = 0;
        let mut comparison = Comparison::default();
        while let Some(need) = comparison.needs() {
            match need {
                Need::Held => {
                    comparison.add_held(within(self.snapshot.next_page(ROWS_PER_PAGE)).await?);
                }
                Need::Recorded => {
                    let page = Self::theirs(self.id, self.theirs.next_page(ROWS_PER_PAGE)).await?;
                    entries += page.len() as u64;
                    comparison.add_recorded(page);
                }
            }
            let mut pairs = comparison.take_pairs();
            if until.is_some() {
                // Of what is not young, these are compared by themselves.
                pairs.retain(|pair| !pair.is_open() && !pair.is_in_vain());
            }
            self.judge(pairs).await?;
        }
        Ok(entries)
    }

    async fn judge(&mut self, pairs: Vec<Pair>) -> Result<(), Stop> {
        for pair in pairs {
            if pair.problem(self.id).is_some() {
                self.doubtful.insert(pair.id);
            }
        }
        if self.doubtful.len() >= ROWS_PER_PAGE {
            self.look_again().await?;
        }
        Ok(())
    }

    /// What the two snapshots disagree on may have been on its way between them. It is looked at again, ours first: what
    /// is settled here by then, the ledger must have.
    async fn look_again(&mut self) -> Result<(), Stop> {
        let doubtful: Vec<UpdateId> = std::mem::take(&mut self.doubtful).into_iter().collect();
        if doubtful.is_empty() {
            return Ok(());
        }
        let (source, recent) = (self.ours.source, self.ours.recent);
        let ours = async {
            let mut connection = pg::connect(self.ours.context.database.settings()).await?;
            db::audit::find_held(&mut connection, &doubtful, recent).await
        };
        let held = within(ours).await?;
        let theirs = async {
            let mut connection = pg::connect(self.vendor.database.settings()).await?;
            ledger::find_recorded(&mut connection, source, &doubtful).await
        };
        let recorded = Self::theirs(self.id, theirs).await?;
        for pair in pair_up(held, recorded) {
            if let Some(problem) = pair.problem(self.id) {
                self.finding.found.add(violation(self.id, pair, problem));
            }
        }
        Ok(())
    }
}

/// The runs of parts, each from the first up to and including the last, in which the two sides differ. What the ledger
/// may have dropped, and has, is no difference.
fn differing(
    parts: &[Part],
    recorded: &BTreeMap<usize, Digest>,
    last: usize,
) -> Vec<(usize, usize)> {
    let held: BTreeMap<usize, &Part> = parts.iter().map(|part| (part.part, part)).collect();
    let mut runs = Vec::<(usize, usize)>::new();
    for part in 0..=last {
        let ours = held.get(&part).map(|part| part.digest).unwrap_or_default();
        let theirs = recorded.get(&part).copied().unwrap_or_default();
        let is_dropped = theirs.rows == 0 && held.get(&part).is_some_and(|p| p.may_be_gone);
        if ours == theirs || is_dropped {
            continue;
        }
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == part => *end = part,
            _ => runs.push((part, part)),
        }
    }
    runs
}

fn violation(vendor: &VendorId, pair: Pair, problem: String) -> Violation {
    let product = pair.recorded.into_iter().next().map(|row| row.product_id);
    Violation {
        order_id: pair.held.as_ref().map(|held| held.order_id),
        update_id: Some(pair.id.0),
        product_id: pair.held.map(|held| held.product_id).or(product),
        vendor_id: Some(vendor.to_string()),
        outbox_id: None,
        problem,
    }
}
