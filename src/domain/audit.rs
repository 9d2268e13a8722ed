//! What an audit looks for, and the comparison of our updates with a vendor's ledger: two lists in the order of ids,
//! read page by page, of which nothing but the difference is kept.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;
use uuid::Uuid;

use super::ids::{UpdateId, VendorId};
use super::update::{Outcome, State};

/// Violations of one check that are shown; the others are counted.
pub const SHOWN_MAX: usize = 100;

/// What is checked. The names are a contract with whoever reads the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// `open_delta` of each stock row is the sum of what its updates count.
    OpenFigures,
    /// What is available is the first listing, the vendor's own changes and our updates.
    Movements,
    /// Available is below zero only by the vendor's own changes.
    Oversold,
    /// A confirmed order's updates add up to its lines, a cancelled one's to nothing; the others have none.
    OrderLines,
    /// Each order's times, reason and history agree with its status.
    OrderStatus,
    /// Each vendor's ledger and our updates agree.
    Ledgers,
    /// Nothing waits for longer than the queues explain.
    Overdue,
    /// What was decided leaves for the broker.
    Outbox,
}

impl Check {
    /// All of them, in the order in which they are reported.
    pub const ALL: [Self; 8] = [
        Self::OpenFigures,
        Self::Movements,
        Self::Oversold,
        Self::OrderLines,
        Self::OrderStatus,
        Self::Ledgers,
        Self::Overdue,
        Self::Outbox,
    ];

    /// Its stable name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpenFigures => "open_figures",
            Self::Movements => "movements",
            Self::Oversold => "oversold",
            Self::OrderLines => "order_lines",
            Self::OrderStatus => "order_status",
            Self::Ledgers => "ledgers",
            Self::Overdue => "overdue",
            Self::Outbox => "outbox",
        }
    }
}

/// Something that must not be. What it concerns is named as it is stored, since that may be what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Violation {
    /// Which order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_id: Option<Uuid>,
    /// Which update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_id: Option<Uuid>,
    /// Which product.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product_id: Option<String>,
    /// At which vendor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor_id: Option<String>,
    /// Which row of the outbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbox_id: Option<i64>,
    /// What is wrong with it, with the figures.
    pub problem: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |id: Option<Uuid>| id.map(|id| id.to_string());
        let subject: Vec<String> = [
            ("order", text(self.order_id)),
            ("update", text(self.update_id)),
            ("product", self.product_id.clone()),
            ("vendor", self.vendor_id.clone()),
            ("outbox row", self.outbox_id.map(|id| id.to_string())),
        ]
        .into_iter()
        .filter_map(|(name, id)| Some(format!("{name} {}", id?)))
        .collect();
        write!(f, "{}: {}", subject.join(", "), self.problem)
    }
}

/// The violations of a check: the first, and how many there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// How many there are.
    pub total: u64,
    /// At most [`SHOWN_MAX`].
    pub shown: Vec<Violation>,
}

impl Found {
    /// Counts one more, and keeps it where there is room.
    pub fn add(&mut self, violation: Violation) {
        self.total += 1;
        if self.shown.len() < SHOWN_MAX {
            self.shown.push(violation);
        }
    }

    /// Counts more, and keeps those for which there is room.
    pub fn append(&mut self, more: Self) {
        self.total += more.total;
        let room = SHOWN_MAX.saturating_sub(self.shown.len());
        self.shown.extend(more.shown.into_iter().take(room));
    }
}

impl Extend<Violation> for Found {
    fn extend<T: IntoIterator<Item = Violation>>(&mut self, violations: T) {
        violations.into_iter().for_each(|one| self.add(one));
    }
}

/// What a part of a list is, without its rows: two lists with equal digests are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest {
    /// How many rows.
    pub rows: u64,
    /// The sum of their hashes.
    pub sum: i128,
}

impl Digest {
    /// The digest without that of some of its rows.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self {
            rows: self.rows.saturating_sub(other.rows),
            sum: self.sum - other.sum,
        }
    }
}

/// An update, as we hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its name in the ledger.
    pub id: UpdateId,
    /// Whose order.
    pub order_id: Uuid,
    /// Whose stock.
    pub vendor_id: String,
    /// Which product.
    pub product_id: String,
    /// Units.
    pub delta: i64,
    /// The take that a return gives back.
    pub reverses: Option<UpdateId>,
    /// How far it has come.
    pub state: State,
    /// It was closed so long ago that the vendor's ledger may have dropped it.
    pub may_be_gone: bool,
}

/// An update, as a vendor's ledger holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Its name.
    pub id: UpdateId,
    /// Which product.
    pub product_id: String,
    /// Units.
    pub delta: i64,
    /// The take that a return gives back.
    pub reverses: Option<UpdateId>,
    /// What became of it, in the ledger's words.
    pub outcome: String,
}

/// What both sides hold of one update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Which update.
    pub id: UpdateId,
    /// Ours.
    pub held: Option<Held>,
    /// The ledger's; more than one where nothing keeps an id from being there twice.
    pub recorded: Vec<Recorded>,
}

impl Pair {
    /// It has no answer here.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(&self.held, Some(held) if held.state == State::Open)
    }

    /// The ledger has it as a return without an effect.
    #[must_use]
    pub fn is_in_vain(&self) -> bool {
        let applied = Outcome::Applied.as_str();
        let in_vain = |row: &Recorded| row.delta > 0 && row.outcome != applied;
        !self.recorded.is_empty() && self.recorded.iter().all(in_vain)
    }

    /// What contradicts what, if anything does.
    #[must_use]
    pub fn problem(&self, vendor: &VendorId) -> Option<String> {
        let (held, recorded) = match (&self.held, self.recorded.as_slice()) {
            (_, [_, _, ..]) => {
                return Some(format!("the ledger has it {} times", self.recorded.len()));
            }
            (None, []) => return None,
            (None, [recorded]) => {
                return Some(format!(
                    "the ledger has it as {} ({} of {}), and we know no such update",
                    recorded.outcome, recorded.delta, recorded.product_id
                ));
            }
            (Some(held), []) => return missing(held, vendor),
            (Some(held), [recorded]) => (held, recorded),
        };
        if held.vendor_id != vendor.as_str() {
            return Some(format!(
                "the ledger has it, but it is vendor {}'s",
                held.vendor_id
            ));
        }
        if (held.product_id.as_str(), held.delta, held.reverses)
            != (
                recorded.product_id.as_str(),
                recorded.delta,
                recorded.reverses,
            )
        {
            return Some(format!(
                "it is {}, in the ledger {}",
                content(&held.product_id, held.delta, held.reverses),
                content(&recorded.product_id, recorded.delta, recorded.reverses)
            ));
        }
        (!agree(held, &recorded.outcome)).then(|| {
            format!(
                "it is {} here, in the ledger {}",
                held.state.as_str(),
                recorded.outcome
            )
        })
    }
}

fn content(product: &str, delta: i64, reverses: Option<UpdateId>) -> String {
    match reverses {
        None => format!("{delta} of {product}"),
        Some(take) => format!("{delta} of {product} for take {take}"),
    }
}

fn agree(held: &Held, outcome: &str) -> bool {
    match (Outcome::parse(outcome), held.state) {
        (None, _) => false,
        // It will be told, or is being told right now.
        (Some(_), State::Open) => true,
        (Some(Outcome::Applied), state) => matches!(state, State::Acknowledged | State::Applied),
        // The answer to a take was lost, and then its return was answered as void: here both are void, and neither has
        // an effect anywhere.
        (Some(Outcome::Rejected), State::Void) => held.delta < 0,
        (Some(Outcome::Rejected), state) => state == State::Rejected,
        (Some(Outcome::Void), state) => state == State::Void,
    }
}

fn missing(held: &Held, vendor: &VendorId) -> Option<String> {
    let is_due = match held.state {
        State::Open => false,
        State::Acknowledged | State::Applied | State::Rejected => true,
        // A return whose take came to nothing is void without being sent.
        State::Void => held.delta < 0,
    };
    (is_due && !held.may_be_gone && held.vendor_id == vendor.as_str())
        .then(|| format!("it is {} here, and not in the ledger", held.state.as_str()))
}

/// One side of a comparison, as far as it was read.
#[derive(Debug)]
struct Side<T> {
    rows: VecDeque<T>,
    last: Option<UpdateId>,
    ended: bool,
}

impl<T> Default for Side<T> {
    fn default() -> Self {
        Self {
            rows: VecDeque::new(),
            last: None,
            ended: false,
        }
    }
}

/// Of which side the next page is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Ours.
    Held,
    /// The ledger's.
    Recorded,
}

/// Both sides of a comparison, each read in the order of ids, page by page.
#[derive(Debug, Default)]
pub struct Comparison {
    held: Side<Held>,
    recorded: Side<Recorded>,
}

impl Comparison {
    /// The side that is behind; `None` when both have ended.
    #[must_use]
    pub fn needs(&self) -> Option<Need> {
        match (self.held.ended, self.recorded.ended) {
            (true, true) => None,
            (true, false) => Some(Need::Recorded),
            (false, true) => Some(Need::Held),
            (false, false) if self.held.last <= self.recorded.last => Some(Need::Held),
            (false, false) => Some(Need::Recorded),
        }
    }

    /// Adds the next page of ours; an empty one ends them.
    pub fn add_held(&mut self, page: Vec<Held>) {
        self.held.ended = page.is_empty();
        self.held.last = page.last().map(|row| row.id).or(self.held.last);
        self.held.rows.extend(page);
    }

    /// Adds the next page of the ledger's; an empty one ends them.
    pub fn add_recorded(&mut self, page: Vec<Recorded>) {
        self.recorded.ended = page.is_empty();
        self.recorded.last = page.last().map(|row| row.id).or(self.recorded.last);
        self.recorded.rows.extend(page);
    }

    /// Takes out what no later page can add to, in the order of ids.
    pub fn take_pairs(&mut self) -> Vec<Pair> {
        // An id may go on in the next page, where a side has not ended.
        let open = [
            (!self.held.ended).then_some(self.held.last),
            (!self.recorded.ended).then_some(self.recorded.last),
        ];
        let until = open.into_iter().flatten().min();
        let is_complete = |id: UpdateId| until.is_none_or(|until| Some(id) < until);
        let mut pairs = BTreeMap::<UpdateId, Pair>::new();
        let of = |id| Pair {
            id,
            held: None,
            recorded: Vec::new(),
        };
        while let Some(row) = self.held.rows.pop_front_if(|row| is_complete(row.id)) {
            let pair = pairs.entry(row.id).or_insert_with(|| of(row.id));
            pair.held = Some(row);
        }
        while let Some(row) = self.recorded.rows.pop_front_if(|row| is_complete(row.id)) {
            let pair = pairs.entry(row.id).or_insert_with(|| of(row.id));
            pair.recorded.push(row);
        }
        pairs.into_values().collect()
    }
}

/// Pairs rows that were looked up by their ids, in any order.
#[must_use]
pub fn pair_up(held: Vec<Held>, recorded: Vec<Recorded>) -> Vec<Pair> {
    let mut comparison = Comparison::default();
    comparison.add_held(held);
    comparison.add_recorded(recorded);
    comparison.add_held(Vec::new());
    comparison.add_recorded(Vec::new());
    comparison.take_pairs()
}

/// An id below every id (UUIDv7) drawn from that millisecond on, and above every one drawn before.
#[must_use]
pub fn first_id_at(unix_ms: i64) -> Uuid {
    let ms = u128::try_from(unix_ms).unwrap_or(0).min((1 << 48) - 1);
    Uuid::from_u128(ms << 80)
}

/// Bounds that cut the ids from `first` to `end` into about `count` parts of the same width. There is always one, and
/// they ascend.
#[must_use]
pub fn bounds(first: Uuid, end: Uuid, count: u32) -> Vec<Uuid> {
    let (first, end) = (first.as_u128(), end.as_u128());
    let step = end.saturating_sub(first) / u128::from(count.max(1));
    if step == 0 {
        return vec![Uuid::from_u128(first)];
    }
    (0..u128::from(count))
        .map(|n| Uuid::from_u128(first + n * step))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VENDOR: &str = "vendorA";

    fn id(n: u128) -> UpdateId {
        UpdateId(Uuid::from_u128(n))
    }

    fn held(n: u128, delta: i64, state: State) -> Held {
        Held {
            id: id(n),
            order_id: Uuid::nil(),
            vendor_id: VENDOR.into(),
            product_id: "p".into(),
            delta,
            reverses: (delta > 0).then(|| id(1)),
            state,
            may_be_gone: false,
        }
    }

    fn recorded(n: u128, delta: i64, outcome: &str) -> Recorded {
        Recorded {
            id: id(n),
            product_id: "p".into(),
            delta,
            reverses: (delta > 0).then(|| id(1)),
            outcome: outcome.into(),
        }
    }

    fn problem(held: Option<Held>, recorded: &[Recorded]) -> Option<String> {
        let pair = Pair {
            id: id(7),
            held,
            recorded: recorded.to_vec(),
        };
        pair.problem(&VendorId::parse(VENDOR).expect("valid"))
    }

    #[test]
    fn what_the_two_sides_may_hold_of_one_update() {
        use State::{Acknowledged, Applied, Open, Rejected, Void};
        let mut table = String::new();
        for state in [Open, Acknowledged, Applied, Rejected, Void] {
            for outcome in ["applied", "rejected", "void", "-", "?"] {
                let verdict = |delta| {
                    let rows = [recorded(7, delta, outcome)];
                    let rows = if outcome == "-" { &[] } else { &rows[..] };
                    match problem(Some(held(7, delta, state)), rows) {
                        None => "fine",
                        Some(_) => "WRONG",
                    }
                };
                table.push_str(&format!(
                    "{:12} {outcome:9} take {:6} return {}\n",
                    state.as_str(),
                    verdict(-2),
                    verdict(2)
                ));
            }
        }
        insta::assert_snapshot!(table, @"
        open         applied   take fine   return fine
        open         rejected  take fine   return fine
        open         void      take fine   return fine
        open         -         take fine   return fine
        open         ?         take WRONG  return WRONG
        acknowledged applied   take fine   return fine
        acknowledged rejected  take WRONG  return WRONG
        acknowledged void      take WRONG  return WRONG
        acknowledged -         take WRONG  return WRONG
        acknowledged ?         take WRONG  return WRONG
        applied      applied   take fine   return fine
        applied      rejected  take WRONG  return WRONG
        applied      void      take WRONG  return WRONG
        applied      -         take WRONG  return WRONG
        applied      ?         take WRONG  return WRONG
        rejected     applied   take WRONG  return WRONG
        rejected     rejected  take fine   return fine
        rejected     void      take WRONG  return WRONG
        rejected     -         take WRONG  return WRONG
        rejected     ?         take WRONG  return WRONG
        void         applied   take WRONG  return WRONG
        void         rejected  take fine   return WRONG
        void         void      take fine   return fine
        void         -         take WRONG  return fine
        void         ?         take WRONG  return WRONG
        ");
    }

    #[test]
    fn what_is_wrong_is_said_with_both_sides() {
        let take = || Some(held(7, -2, State::Applied));
        let same = recorded(7, -2, "applied");
        let of = |change: fn(&mut Held)| {
            let mut held = held(7, -2, State::Applied);
            change(&mut held);
            Some(held)
        };
        let problems: Vec<String> = [
            problem(None, std::slice::from_ref(&same)),
            problem(take(), &[]),
            problem(take(), &[same.clone(), same.clone()]),
            problem(take(), &[recorded(7, -3, "applied")]),
            problem(take(), &[recorded(7, 2, "applied")]),
            problem(take(), &[recorded(7, -2, "rejected")]),
            problem(
                of(|h| h.vendor_id = "vendorB".into()),
                std::slice::from_ref(&same),
            ),
            problem(
                of(|h| h.product_id = "q".into()),
                std::slice::from_ref(&same),
            ),
        ]
        .into_iter()
        .map(|problem| problem.expect("a problem"))
        .collect();
        insta::assert_snapshot!(problems.join("\n"), @"
        the ledger has it as applied (-2 of p), and we know no such update
        it is applied here, and not in the ledger
        the ledger has it 2 times
        it is -2 of p, in the ledger -3 of p
        it is -2 of p, in the ledger 2 of p for take 00000000-0000-0000-0000-000000000001
        it is applied here, in the ledger rejected
        the ledger has it, but it is vendor vendorB's
        it is -2 of q, in the ledger -2 of p
        ");
        assert_eq!(problem(of(|h| h.may_be_gone = true), &[]), None);
        assert_eq!(problem(of(|h| h.vendor_id = "vendorB".into()), &[]), None);
        assert_eq!(problem(None, &[]), None);
    }

    #[test]
    fn ids_are_cut_into_parts_by_their_time() {
        assert!(first_id_at(1_800_000_000_000) < drawn_at(1_800_000_000_000));
        assert!(first_id_at(1_800_000_000_001) > drawn_at(1_800_000_000_000));
        let cut = bounds(Uuid::from_u128(100), Uuid::from_u128(1100), 4);
        let cut: Vec<u128> = cut.iter().map(Uuid::as_u128).collect();
        assert_eq!(cut, [100, 350, 600, 850]);
        assert_eq!(bounds(Uuid::max(), Uuid::nil(), 4), [Uuid::max()]);
        assert_eq!(bounds(Uuid::nil(), Uuid::nil(), 4), [Uuid::nil()]);
    }

    fn drawn_at(ms: u64) -> Uuid {
        uuid::Builder::from_unix_timestamp_millis(ms, &[0x5a; 10]).into_uuid()
    }

    proptest! {
        /// Whatever the pages are, each id comes out once, in order, with all that both sides hold of it.
        #[test]
        fn pages_compare_as_the_whole_does(
            ours in proptest::collection::btree_set(0u128..40, 0..30),
            theirs in proptest::collection::vec(0u128..40, 0..40),
            page in 1usize..7,
        ) {
            let mut theirs = theirs;
            theirs.sort_unstable();
            let held_rows: Vec<Held> = ours.iter().map(|n| held(*n, -1, State::Open)).collect();
            let recorded_rows: Vec<Recorded> = theirs.iter().map(|n| recorded(*n, -1, "applied")).collect();
            let whole = pair_up(held_rows.clone(), recorded_rows.clone());

            let (mut held_pages, mut recorded_pages) = (held_rows.chunks(page), recorded_rows.chunks(page));
            let mut comparison = Comparison::default();
            let mut pairs = Vec::new();
            while let Some(need) = comparison.needs() {
                match need {
                    Need::Held => comparison.add_held(held_pages.next().unwrap_or_default().to_vec()),
                    Need::Recorded => comparison.add_recorded(recorded_pages.next().unwrap_or_default().to_vec()),
                }
                pairs.extend(comparison.take_pairs());
            }
            prop_assert_eq!(&pairs, &whole);
            let ids: std::collections::BTreeSet<u128> = ours.iter().chain(&theirs).copied().collect();
            prop_assert_eq!(pairs.iter().map(|pair| pair.id.0.as_u128()).collect::<Vec<_>>(), ids.into_iter().collect::<Vec<_>>());
            for pair in pairs {
                let n = pair.id.0.as_u128();
                prop_assert_eq!(pair.held.is_some(), ours.contains(&n));
                prop_assert_eq!(pair.recorded.len(), theirs.iter().filter(|id| **id == n).count());
            }
        }
    }
}
