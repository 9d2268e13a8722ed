//! The world of the protocol's test: our rows, the queues, the vendors, and the flows between them.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::vendor::Vendor;
use super::{Crash, PRODUCTS, Step, VENDORS, Ways};
use crate::domain::book::{Answer, Book, BookError, Changes, Listed, Place, Shelf};
use crate::domain::ids::{OrderId, ProductId, UpdateId, VendorId};
use crate::domain::ledger::Request;
use crate::domain::messages::updates_messages;
use crate::domain::order::{Line, Lines, Status};
use crate::domain::update::{Outcome, State, Update};

fn product(n: usize) -> ProductId {
    ProductId::parse(format!("p{n}")).expect("valid")
}

fn vendor(n: usize) -> VendorId {
    VendorId::parse(format!("v{n}")).expect("valid")
}

/// Runs that go on side by side.
const RUNS_MAX: usize = 2;
/// More than any history leaves to be delivered.
const ROUNDS_MAX: usize = 1000;

fn index(pick: usize, len: usize) -> Option<usize> {
    (len > 0).then(|| pick % len)
}

fn hold(is_so: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(what()) }
}

/// A message to a vendor, from the queue to what became of it.
#[derive(Clone)]
struct Push {
    updates: Vec<UpdateId>,
    on_its_way: OnItsWay,
}

#[derive(Clone)]
enum OnItsWay {
    /// In the queue.
    No,
    /// Sent; the run is what a worker that reads it too early has read.
    Sent(Vec<UpdateId>, i64),
    /// The vendor has answered.
    Answered(Vec<Answer>, i64),
}

/// A sync run between its steps.
#[derive(Clone)]
struct Run {
    vendor: VendorId,
    number: Option<i64>,
    /// What it saw before its snapshot, and what of ours was open then.
    early: Option<(Vendor, Vec<UpdateId>)>,
    snapshot: Option<Vendor>,
    /// Our updates, as they were listed: with a ledger those that are open, without one those that are acknowledged.
    listed: Option<Vec<UpdateId>>,
    /// Products still to be written, once all that is included is closed.
    left: Vec<ProductId>,
}

pub(super) struct World {
    ways: Ways,
    ledgerless: BTreeSet<VendorId>,
    shelves: BTreeMap<Place, Shelf>,
    /// What the vendor itself had added when the shelf's snapshot was taken.
    own_at_snapshot: BTreeMap<Place, i64>,
    /// What the syncs have noted of the vendors' own changes.
    vendor_changes: BTreeMap<Place, i64>,
    /// What was answered 202.
    accepted: BTreeMap<OrderId, Lines>,
    /// The rows of orders: one that came through the broker has none until it is decided.
    orders: BTreeMap<OrderId, Status>,
    updates: BTreeMap<UpdateId, Update>,
    current_run: BTreeMap<VendorId, i64>,
    vendors: BTreeMap<VendorId, Vendor>,
    initial: BTreeMap<Place, i64>,
    order_queue: Vec<OrderId>,
    order_letters: Vec<OrderId>,
    push_queue: Vec<Push>,
    push_letters: Vec<Vec<UpdateId>>,
    /// Requests whose sender is gone, still on their way.
    late: Vec<(VendorId, Vec<UpdateId>)>,
    runs: Vec<Run>,
    /// What a vendor had when it rejected a take, and the run that was current then.
    told: BTreeMap<Place, (i64, i64)>,
    sold_elsewhere: bool,
    next_id: u128,
}

impl World {
    pub(super) fn new(
        stock: [[i64; PRODUCTS]; VENDORS],
        ledgers: [bool; VENDORS],
        ways: Ways,
    ) -> Self {
        let mut world = Self {
            ways,
            ledgerless: (0..VENDORS).filter(|v| !ledgers[*v]).map(vendor).collect(),
            shelves: BTreeMap::new(),
            own_at_snapshot: BTreeMap::new(),
            vendor_changes: BTreeMap::new(),
            accepted: BTreeMap::new(),
            orders: BTreeMap::new(),
            updates: BTreeMap::new(),
            current_run: (0..VENDORS).map(|v| (vendor(v), 0)).collect(),
            vendors: BTreeMap::new(),
            initial: BTreeMap::new(),
            order_queue: Vec::new(),
            order_letters: Vec::new(),
            push_queue: Vec::new(),
            push_letters: Vec::new(),
            late: Vec::new(),
            runs: Vec::new(),
            told: BTreeMap::new(),
            sold_elsewhere: false,
            next_id: 0,
        };
        for (v, products) in stock.iter().enumerate() {
            for (p, stock) in products.iter().enumerate() {
                let place = (product(p), vendor(v));
                world.initial.insert(place.clone(), *stock);
                let shelf = Shelf {
                    name: Some("n".into()),
                    on_hand: *stock,
                    ..Shelf::default()
                };
                world.shelves.insert(place, shelf);
            }
            let listed = (0..PRODUCTS).map(|p| (product(p), products[p])).collect();
            world.vendors.insert(vendor(v), Vendor::listing(listed));
        }
        world
    }

    fn id(&mut self) -> Uuid {
        self.next_id += 1;
        Uuid::from_u128(self.next_id)
    }

    /// One transaction: load, rule, and save unless the process dies before it.
    fn transact<T>(
        &mut self,
        crash: Crash,
        rule: impl FnOnce(&mut Book, &mut dyn FnMut() -> UpdateId) -> Result<T, BookError>,
    ) -> Result<T, String> {
        let mut book = Book::new((0..VENDORS).map(vendor).collect(), self.ledgerless.clone());
        for ((product_id, vendor_id), shelf) in &self.shelves {
            book.load_shelf(product_id.clone(), vendor_id.clone(), shelf.clone());
        }
        for (id, status) in &self.orders {
            book.load_order(*id, *status);
        }
        for update in self.updates.values() {
            book.load_update(update.clone());
        }
        let mut next = self.next_id;
        let result = rule(&mut book, &mut || {
            next += 1;
            UpdateId(Uuid::from_u128(next))
        });
        self.next_id = next;
        if crash != Crash::BeforeCommit {
            self.save(book.into_changes())?;
        }
        result.map_err(|error| error.to_string())
    }

    fn save(&mut self, changes: Changes) -> Result<(), String> {
        for (id, status, _) in changes.orders {
            self.orders.insert(id, status);
        }
        for (place, shelf) in changes.shelves {
            self.shelves.insert(place, shelf);
        }
        for update in changes.updates {
            self.updates.insert(update.id, update);
        }
        for change in changes.vendor_changes {
            *self.vendor_changes.entry(change.place).or_default() += change.delta;
        }
        for message in updates_messages(&changes.new_updates) {
            self.push_queue.push(Push {
                updates: message.updates.iter().map(|item| item.id).collect(),
                on_its_way: OnItsWay::No,
            });
        }
        for update in changes.new_updates {
            let place = (update.product_id.clone(), update.vendor_id.clone());
            if let Some((had, _)) = self.told.get(&place) {
                hold(-update.delta <= *had, || {
                    format!("{update:?} is taken, and the vendor has just said it has {had}")
                })?;
            }
            self.updates.insert(update.id, update);
        }
        Ok(())
    }

    fn requests(&self, ids: &[UpdateId]) -> Vec<Request> {
        ids.iter()
            .map(|id| {
                let u = &self.updates[id];
                Request {
                    id: u.id,
                    product_id: u.product_id.clone(),
                    delta: u.delta,
                    reverses: u.reverses,
                }
            })
            .collect()
    }

    fn vendor_of(&self, ids: &[UpdateId]) -> VendorId {
        self.updates[&ids[0]].vendor_id.clone()
    }

    pub(super) fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Accept {
                quantities,
                through_broker,
            } => self.accept(quantities, *through_broker),
            Step::Repeat(pick) => {
                if let Some(at) = index(*pick, self.accepted.len()) {
                    self.order_queue.extend(self.accepted.keys().nth(at));
                }
            }
            Step::Decide { picks, crash } => self.decide(picks, *crash)?,
            Step::GiveUpOrder(pick, crash) => self.give_up_order(*pick, *crash)?,
            Step::ReplayOrder(pick, crash) => self.replay_order(*pick, *crash)?,
            Step::Send(pick) => self.send(*pick),
            Step::VendorHandles(pick) => self.vendor_handles(*pick)?,
            Step::LoseWorker(pick) => self.lose_worker(*pick),
            Step::LateRequestArrives(pick) => {
                if let Some(at) = index(*pick, self.late.len()) {
                    let (to, ids) = self.late.remove(at);
                    self.handle_at(&to, &ids)?;
                }
            }
            Step::Record(pick, crash) => self.record(*pick, *crash)?,
            Step::GiveUpPush(pick) => {
                let waiting = |push: &Push| matches!(push.on_its_way, OnItsWay::No);
                if let Some(at) = self.pick_push(*pick, waiting) {
                    let push = self.push_queue.remove(at);
                    self.push_letters.push(push.updates);
                }
            }
            Step::ReplayPush(pick) => {
                if let Some(at) = index(*pick, self.push_letters.len()) {
                    let updates = self.push_letters.remove(at);
                    self.push_queue.push(Push {
                        updates,
                        on_its_way: OnItsWay::No,
                    });
                }
            }
            Step::Cancel(pick) => self.cancel(*pick)?,
            Step::VendorSells(v, p) => self.vendor_changes(*v, *p, -1),
            Step::VendorRestocks(v, p) => self.vendor_changes(*v, *p, 2),
            Step::VendorDelistsOrLists(v, p) => {
                let database = self.vendors.get_mut(&vendor(*v)).expect("there");
                database.toggles(&product(*p));
                self.sold_elsewhere = true;
            }
            Step::OrderGoesThrough {
                quantities,
                recorded,
            } => self.order_goes_through(quantities, *recorded)?,
            // More at once would only be in each other's way.
            Step::SyncBegins(_) if self.runs.len() >= RUNS_MAX => {}
            Step::SyncBegins(v) => self.begin_run(*v),
            Step::SyncLooksEarly(pick) => self.sync_looks_early(*pick)?,
            Step::SyncGoesOn(pick) => self.sync_goes_on(*pick)?,
            Step::SyncWhole(v) => {
                let others = self.runs.len();
                self.begin_run(*v);
                while self.runs.len() > others {
                    self.sync_goes_on(others)?;
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, quantities: &[i64; PRODUCTS], through_broker: bool) {
        let lines = (0..PRODUCTS)
            .filter(|p| quantities[*p] > 0)
            .map(|p| Line {
                product_id: product(p),
                quantity: quantities[p],
            })
            .collect();
        let id = OrderId(self.id());
        self.accepted
            .insert(id, Lines::parse(lines).expect("valid"));
        if !through_broker {
            self.orders.insert(id, Status::Pending);
        }
        self.order_queue.push(id);
    }

    fn order_goes_through(
        &mut self,
        quantities: &[i64; PRODUCTS],
        recorded: bool,
    ) -> Result<(), String> {
        self.accept(quantities, false);
        let pushes = self.push_queue.len();
        self.decide(&[self.order_queue.len() - 1], Crash::Never)?;
        for at in pushes..self.push_queue.len() {
            let ids = self.push_queue[at].updates.clone();
            let of = self.vendor_of(&ids);
            let answers = self.handle_at(&of, &ids)?;
            self.push_queue[at].on_its_way = OnItsWay::Answered(answers, self.current_run[&of]);
        }
        while recorded && self.push_queue.len() > pushes {
            let last = self.push_queue.len() - 1;
            self.record_at(last, Crash::Never)?;
            // What follows from a rejection goes its own way.
            if self.push_queue.len() > last {
                break;
            }
        }
        Ok(())
    }

    fn begin_run(&mut self, v: usize) {
        self.runs.push(Run {
            vendor: vendor(v),
            number: None,
            early: None,
            snapshot: None,
            listed: None,
            left: (0..PRODUCTS).map(product).collect(),
        });
    }

    /// Inserts what only the broker had, as the consumer does.
    fn insert_delivered(&mut self, id: OrderId, crash: Crash) {
        if crash != Crash::BeforeCommit {
            self.orders.entry(id).or_insert(Status::Pending);
        }
    }

    fn decide(&mut self, picks: &[usize], crash: Crash) -> Result<(), String> {
        let mut batch = Vec::new();
        for pick in picks {
            if let Some(at) = index(*pick, self.order_queue.len()) {
                batch.push(self.order_queue.remove(at));
            }
        }
        if !self.ways.ack_after_commit && crash == Crash::BeforeCommit {
            return Ok(());
        }
        if !self.ways.batch_knows_copies {
            self.decide_each_copy(&batch)?;
            return Ok(());
        }
        for id in &batch {
            self.insert_delivered(*id, crash);
        }
        let known: Vec<_> = batch
            .iter()
            .filter(|id| self.orders.contains_key(id))
            .map(|id| (*id, self.accepted[id].clone()))
            .collect();
        self.transact(crash, |book, new_id| {
            known
                .iter()
                .try_for_each(|(id, lines)| book.decide(*id, lines, true, new_id).map(|_| ()))
        })?;
        if crash != Crash::Never {
            self.order_queue.extend(batch);
        }
        Ok(())
    }

    /// The wrong way: each copy finds the order as it was before the batch.
    fn decide_each_copy(&mut self, batch: &[OrderId]) -> Result<(), String> {
        for id in batch {
            self.insert_delivered(*id, Crash::Never);
        }
        let before = self.orders.clone();
        for id in batch {
            let lines = self.accepted[id].clone();
            self.orders.insert(*id, before[id]);
            self.transact(Crash::Never, |book, new_id| {
                book.decide(*id, &lines, true, new_id).map(|_| ())
            })?;
        }
        Ok(())
    }

    fn give_up_order(&mut self, pick: usize, crash: Crash) -> Result<(), String> {
        let Some(at) = index(pick, self.order_queue.len()) else {
            return Ok(());
        };
        let id = self.order_queue[at];
        let fail = |world: &mut Self| {
            world.insert_delivered(id, Crash::Never);
            world.transact(Crash::Never, |book, _| book.fail(id, "e".into()))
        };
        if self.ways.letter_before_failed {
            self.order_letters.push(id);
            if crash == Crash::BeforeCommit {
                return Ok(());
            }
            fail(self)?;
        } else {
            fail(self)?;
            if crash == Crash::BeforeCommit {
                return Ok(());
            }
            self.order_letters.push(id);
        }
        if crash == Crash::Never {
            self.order_queue.remove(at);
        }
        Ok(())
    }

    fn replay_order(&mut self, pick: usize, crash: Crash) -> Result<(), String> {
        let Some(at) = index(pick, self.order_letters.len()) else {
            return Ok(());
        };
        let id = self.order_letters[at];
        if self.orders.contains_key(&id) {
            self.transact(Crash::Never, |book, _| book.revive(id))?;
        }
        if crash == Crash::BeforeCommit {
            return Ok(());
        }
        self.order_queue.push(id);
        if crash == Crash::Never {
            self.order_letters.remove(at);
        }
        Ok(())
    }

    fn pick_push(&self, pick: usize, is_so: impl Fn(&Push) -> bool) -> Option<usize> {
        let fitting: Vec<usize> = (0..self.push_queue.len())
            .filter(|at| is_so(&self.push_queue[*at]))
            .collect();
        Some(fitting[index(pick, fitting.len())?])
    }

    fn send(&mut self, pick: usize) {
        let waiting = |push: &Push| matches!(push.on_its_way, OnItsWay::No);
        let Some(at) = self.pick_push(pick, waiting) else {
            return;
        };
        let open: Vec<_> = self.push_queue[at]
            .updates
            .iter()
            .copied()
            .filter(|id| self.updates[id].state == State::Open)
            .collect();
        if open.is_empty() {
            self.push_queue.remove(at);
        } else {
            let run = self.current_run[&self.vendor_of(&open)];
            self.push_queue[at].on_its_way = OnItsWay::Sent(open, run);
        }
    }

    fn handle_at(&mut self, to: &VendorId, ids: &[UpdateId]) -> Result<Vec<Answer>, String> {
        let requests = self.requests(ids);
        let ways = self.ways;
        let answers = self
            .vendors
            .get_mut(to)
            .expect("there")
            .handle(&requests, ways)?;
        for answer in &answers {
            hold(
                answer.outcome != Outcome::Rejected || self.sold_elsewhere,
                || format!("a vendor rejects {answer:?} although nobody sold elsewhere"),
            )?;
        }
        Ok(answers)
    }

    fn vendor_handles(&mut self, pick: usize) -> Result<(), String> {
        let sent = |push: &Push| matches!(push.on_its_way, OnItsWay::Sent(..));
        let Some(at) = self.pick_push(pick, sent) else {
            return Ok(());
        };
        if let OnItsWay::Sent(ids, run) = self.push_queue[at].on_its_way.clone() {
            let to = self.vendor_of(&ids);
            let answers = self.handle_at(&to, &ids)?;
            // What it has at that moment is what it will be known to have had.
            self.push_queue[at].on_its_way = OnItsWay::Answered(answers, run);
        }
        Ok(())
    }

    fn lose_worker(&mut self, pick: usize) {
        let sent = |push: &Push| !matches!(push.on_its_way, OnItsWay::No);
        if let Some(at) = self.pick_push(pick, sent) {
            let was = std::mem::replace(&mut self.push_queue[at].on_its_way, OnItsWay::No);
            if let OnItsWay::Sent(ids, _) = was {
                self.late.push((self.vendor_of(&ids), ids));
            }
        }
    }

    fn record(&mut self, pick: usize, crash: Crash) -> Result<(), String> {
        let answered = |push: &Push| matches!(push.on_its_way, OnItsWay::Answered(..));
        match self.pick_push(pick, answered) {
            Some(at) => self.record_at(at, crash),
            None => Ok(()),
        }
    }

    fn record_at(&mut self, at: usize, crash: Crash) -> Result<(), String> {
        let was = std::mem::replace(&mut self.push_queue[at].on_its_way, OnItsWay::No);
        let OnItsWay::Answered(answers, run_when_sent) = was else {
            return Ok(());
        };
        if !self.ways.ack_after_commit && crash == Crash::BeforeCommit {
            self.push_queue.remove(at);
            return Ok(());
        }
        let of = self.updates[&answers[0].id].vendor_id.clone();
        let run = if self.ways.run_after_answer {
            self.current_run[&of]
        } else {
            run_when_sent
        };
        if crash != Crash::BeforeCommit {
            for answer in answers.iter().filter(|a| a.outcome == Outcome::Rejected) {
                let update = &self.updates[&answer.id];
                if update.state == State::Open {
                    let place = (update.product_id.clone(), of.clone());
                    let had = self.vendors[&of].stock.get(&place.0).copied().unwrap_or(0);
                    self.told.insert(place, (had, self.current_run[&of]));
                }
            }
        }
        self.transact(crash, |book, new_id| {
            let disbelieved = book.record(&answers, run, new_id)?;
            assert_eq!(disbelieved, [], "these vendors do not lie");
            Ok(())
        })?;
        if crash == Crash::Never {
            self.push_queue.remove(at);
        }
        Ok(())
    }

    fn cancel(&mut self, pick: usize) -> Result<(), String> {
        let Some(at) = index(pick, self.orders.len()) else {
            return Ok(());
        };
        let Some((id, status)) = self.orders.iter().nth(at).map(|(id, s)| (*id, *s)) else {
            return Ok(());
        };
        if matches!(status, Status::Pending | Status::Confirmed | Status::Failed) {
            self.transact(Crash::Never, |book, new_id| book.cancel(id, None, new_id))?;
        }
        Ok(())
    }

    fn vendor_changes(&mut self, v: usize, p: usize, units: i64) {
        let database = self.vendors.get_mut(&vendor(v)).expect("there");
        if database.changes(&product(p), units) {
            self.sold_elsewhere |= units < 0;
        }
    }

    fn draw_number(&mut self, at: usize) {
        let of = self.runs[at].vendor.clone();
        let current = self.current_run.get_mut(&of).expect("there");
        *current += 1;
        self.runs[at].number = Some(*current);
    }

    fn list(&mut self, at: usize) {
        let listed = self.list_unclosed(&self.runs[at].vendor);
        self.runs[at].listed = Some(listed);
    }

    fn list_unclosed(&self, of: &VendorId) -> Vec<UpdateId> {
        let has_ledger = !self.ledgerless.contains(of);
        self.updates
            .values()
            .filter(|u| u.vendor_id == *of && !u.state.is_closed())
            .filter(|u| has_ledger || u.state == State::Acknowledged)
            .map(|u| u.id)
            .collect()
    }

    /// A run with a number looks at the ledger before its snapshot, and closes what it saw there, one by one.
    fn sync_looks_early(&mut self, pick: usize) -> Result<(), String> {
        let Some(at) = index(pick, self.runs.len()) else {
            return Ok(());
        };
        let run = &mut self.runs[at];
        let Some(number) = run
            .number
            .filter(|_| !self.ledgerless.contains(&run.vendor))
        else {
            return Ok(());
        };
        if let Some((seen, listed)) = &mut run.early {
            let is_current = !self.ways.fence || self.current_run[&run.vendor] == number;
            if let Some(id) = listed.pop()
                && is_current
                && seen.applied(id)
            {
                self.transact(Crash::Never, |book, _| book.fold(&[id]))?;
            }
        } else if run.snapshot.is_none() || !self.ways.look_before_snapshot {
            let of = run.vendor.clone();
            let early = (self.vendors[&of].clone(), self.list_unclosed(&of));
            self.runs[at].early = Some(early);
        }
        Ok(())
    }

    /// The next step of a run: number, snapshot and list in the order of its ways, then what the snapshot includes is
    /// closed, one by one, then the products are written, one by one.
    fn sync_goes_on(&mut self, pick: usize) -> Result<(), String> {
        let Some(at) = index(pick, self.runs.len()) else {
            return Ok(());
        };
        let has_ledger = !self.ledgerless.contains(&self.runs[at].vendor);
        let lists_first = if has_ledger {
            !self.ways.list_after_snapshot
        } else {
            self.ways.list_acknowledged_before
        };
        let run = &self.runs[at];
        if run.number.is_none() && (self.ways.number_before_snapshot || run.snapshot.is_some()) {
            self.draw_number(at);
        } else if run.listed.is_none() && (lists_first || run.snapshot.is_some()) {
            self.list(at);
        } else if run.snapshot.is_none() {
            self.runs[at].snapshot = Some(self.vendors[&run.vendor].clone());
        } else {
            self.write(at, has_ledger)?;
        }
        Ok(())
    }

    fn write(&mut self, at: usize, has_ledger: bool) -> Result<(), String> {
        let run = self.runs[at].clone();
        let (Some(number), Some(snapshot), Some(mut listed)) =
            (run.number, run.snapshot, run.listed)
        else {
            return Ok(());
        };
        let is_current = !self.ways.fence || self.current_run[&run.vendor] == number;
        let mut left = run.left;
        if !is_current {
            left.clear();
        } else if has_ledger && !listed.is_empty() {
            let id = listed.pop().expect("not empty");
            if snapshot.applied(id) && self.ways.sync_closes_included {
                self.transact(Crash::Never, |book, _| book.fold(&[id]))?;
            }
        } else if let Some(chunk) = left.pop() {
            self.write_product(&run.vendor, number, &snapshot, &chunk, &mut listed)?;
        }
        if left.is_empty() {
            self.runs.remove(at);
        } else {
            self.runs[at].listed = Some(listed);
            self.runs[at].left = left;
        }
        Ok(())
    }

    fn write_product(
        &mut self,
        of: &VendorId,
        number: i64,
        snapshot: &Vendor,
        chunk: &ProductId,
        listed: &mut Vec<UpdateId>,
    ) -> Result<(), String> {
        let products: Vec<Listed> = snapshot
            .stock
            .get(chunk)
            .map(|stock| Listed {
                product_id: chunk.clone(),
                name: "n".into(),
                stock: *stock,
            })
            .into_iter()
            .collect();
        // Without a ledger, what was acknowledged before the snapshot is closed with its product.
        let (close, rest) = listed
            .iter()
            .partition(|id| self.updates[id].product_id == *chunk);
        *listed = rest;
        let place = (chunk.clone(), of.clone());
        let mut book = Book::new((0..VENDORS).map(vendor).collect(), self.ledgerless.clone());
        book.load_shelf(chunk.clone(), of.clone(), self.shelves[&place].clone());
        let close: Vec<UpdateId> = close;
        for id in &close {
            book.load_update(self.updates[id].clone());
        }
        book.reconcile(of, number, &products, &close)
            .map_err(|error| error.to_string())?;
        self.save(book.into_changes())?;
        if self.told.get(&place).is_some_and(|(_, run)| *run < number) {
            self.told.remove(&place);
        }
        let own = snapshot.own.get(chunk).copied().unwrap_or(0);
        self.own_at_snapshot.insert(place, own);
        Ok(())
    }

    /// Delivers everything, also from the dead-letter queues, then syncs twice.
    pub(super) fn drain(&mut self) -> Result<(), String> {
        let mut rounds = 0;
        while !(self.order_queue.is_empty()
            && self.push_queue.is_empty()
            && self.late.is_empty()
            && self.order_letters.is_empty()
            && self.push_letters.is_empty())
        {
            rounds += 1;
            hold(rounds < ROUNDS_MAX, || "the queues never run empty".into())?;
            for step in [
                Step::ReplayOrder(0, Crash::Never),
                Step::ReplayPush(0),
                Step::Decide {
                    picks: vec![0],
                    crash: Crash::Never,
                },
                Step::LateRequestArrives(0),
                Step::Send(0),
                Step::VendorHandles(0),
                Step::Record(0, Crash::Never),
            ] {
                self.step(&step)?;
                self.check()?;
            }
        }
        self.runs.clear();
        for _ in 0..2 {
            for v in 0..VENDORS {
                self.step(&Step::SyncWhole(v))?;
                self.check()?;
            }
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), String> {
        for (place, shelf) in &self.shelves {
            self.check_shelf(place, shelf)?;
        }
        for (id, status) in &self.orders {
            for line in self.accepted[id].as_slice() {
                let net: i64 = self
                    .updates
                    .values()
                    .filter(|u| u.order_id == *id && u.product_id == line.product_id)
                    .filter(|u| !matches!(u.state, State::Rejected | State::Void))
                    .map(|u| u.delta)
                    .sum();
                let wanted = if *status == Status::Confirmed {
                    -line.quantity
                } else {
                    0
                };
                hold(net == wanted, || {
                    format!("the updates of {status:?} order {id} come to {net}, not {wanted}")
                })?;
            }
        }
        Ok(())
    }

    fn check_shelf(&self, place: &Place, shelf: &Shelf) -> Result<(), String> {
        let (product_id, vendor_id) = place;
        let here = || {
            self.updates
                .values()
                .filter(|u| u.product_id == *product_id && u.vendor_id == *vendor_id)
        };
        let open: i64 = here().map(Update::counted).sum();
        hold(shelf.open_delta == open, || {
            format!(
                "the open delta of {place:?} is {}, not {open}",
                shelf.open_delta
            )
        })?;
        let initial = self.initial[place];
        let noted = self.vendor_changes.get(place).copied().unwrap_or(0);
        let moved = initial + noted + here().map(Update::effect).sum::<i64>();
        hold(shelf.available() == moved, || {
            format!(
                "{} of {place:?} are available, and its movements come to {moved}",
                shelf.available()
            )
        })?;
        // Without a ledger a snapshot may include what nobody here knows to be applied: less is available then, not more.
        if !self.ledgerless.contains(vendor_id) {
            let closed: i64 = here()
                .filter(|u| u.state == State::Applied)
                .map(|u| u.delta)
                .sum();
            let own = self.own_at_snapshot.get(place).copied().unwrap_or(0);
            hold(shelf.on_hand == initial + own + closed, || {
                format!(
                    "on hand of {place:?} is {}, with {own} of its own and {closed} closed",
                    shelf.on_hand
                )
            })?;
            hold(self.sold_elsewhere || shelf.available() >= 0, || {
                format!("{} of {place:?} are available", shelf.available())
            })?;
        }
        // Nothing is sold that the vendor does not have, as long as it sells nothing elsewhere.
        let has = self.vendors[vendor_id]
            .stock
            .get(product_id)
            .copied()
            .unwrap_or(0);
        let to_come: i64 = here()
            .filter(|u| u.delta < 0 && !matches!(u.state, State::Rejected | State::Void))
            .filter(|u| !self.vendors[vendor_id].applied(u.id))
            .map(|u| u.delta)
            .sum();
        hold(
            self.sold_elsewhere || shelf.available() <= has + to_come,
            || {
                format!(
                    "{} of {place:?} are available, of {has} there and {to_come} still to be taken",
                    shelf.available()
                )
            },
        )?;
        for update in here() {
            let applied = self.vendors[vendor_id].applied(update.id);
            let agrees = match update.state {
                State::Applied | State::Acknowledged => applied,
                State::Rejected | State::Void => !applied,
                State::Open => true,
            };
            hold(agrees, || {
                format!("the vendor's ledger contradicts {update:?}")
            })?;
        }
        Ok(())
    }

    pub(super) fn check_drained(&self) -> Result<(), String> {
        for (id, lines) in &self.accepted {
            let status = self.orders.get(id).copied();
            let is_final = matches!(
                status,
                Some(Status::Confirmed | Status::Rejected | Status::Cancelled)
            );
            hold(is_final, || format!("{id} was accepted, and is {status:?}"))?;
            for line in lines.as_slice() {
                let moved: i64 = self
                    .updates
                    .values()
                    .filter(|u| u.order_id == *id && u.product_id == line.product_id)
                    .filter(|u| self.vendors[&u.vendor_id].applied(u.id))
                    .map(|u| u.delta)
                    .sum();
                let wanted = if status == Some(Status::Confirmed) {
                    -line.quantity
                } else {
                    0
                };
                hold(moved == wanted, || {
                    format!("{status:?} order {id} moved {moved} at the vendors, not {wanted}")
                })?;
            }
        }
        for (place, shelf) in &self.shelves {
            let (product_id, vendor_id) = place;
            let has = self.vendors[vendor_id]
                .stock
                .get(product_id)
                .copied()
                .unwrap_or(0);
            hold(
                shelf.open_delta == 0 && shelf.on_hand == has && shelf.blocked_run.is_none(),
                || format!("the vendor has {has} of {place:?} in the end, and we hold {shelf:?}"),
            )?;
            // What the vendor has is what it had, its own changes and ours: each once.
            let ours: i64 = self
                .updates
                .values()
                .filter(|u| u.product_id == *product_id && u.vendor_id == *vendor_id)
                .filter(|u| self.vendors[vendor_id].applied(u.id))
                .map(|u| u.delta)
                .sum();
            let own = self.vendors[vendor_id]
                .own
                .get(product_id)
                .copied()
                .unwrap_or(0);
            let wanted = self.initial[place] + own + ours;
            hold(has == wanted, || {
                format!("the vendor has {has} of {place:?}, not {wanted}")
            })?;
        }
        Ok(())
    }
}
