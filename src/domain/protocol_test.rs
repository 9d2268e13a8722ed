//! The whole protocol as a state machine: any interleaving of deciding, pushing, syncing, cancelling, the vendors' own
//! sales, lost answers, late requests, redelivery and crashes keeps stock exact. The rules are the real ones; the rows,
//! the queues and the vendors are held in memory.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use uuid::Uuid;

use super::book::{Answer, Book, Changes, Decision, Listed, Shelf};
use super::ids::{OrderId, ProductId, UpdateId, VendorId};
use super::ledger::{Ledger, Reply, Request};
use super::order::{Line, Lines, Status};
use super::update::{Outcome, State, Update};

const PRODUCTS: usize = 2;
const VENDORS: usize = 2;

fn product(n: usize) -> ProductId {
    ProductId::parse(format!("p{n}")).expect("valid")
}

fn vendor(n: usize) -> VendorId {
    VendorId::parse(format!("v{n}")).expect("valid")
}

/// One step of the adversary. Numbers choose among what is possible at that moment.
#[derive(Debug, Clone)]
enum Step {
    Accept {
        quantities: [i64; PRODUCTS],
    },
    Decide {
        pick: usize,
        acknowledged: bool,
    },
    Send {
        pick: usize,
    },
    Answer {
        pick: usize,
        arrives: bool,
        acknowledged: bool,
    },
    Cancel {
        pick: usize,
    },
    VendorSells {
        vendor: usize,
        product: usize,
    },
    VendorRestocks {
        vendor: usize,
        product: usize,
    },
    SyncBegins {
        vendor: usize,
    },
    SyncLooks {
        pick: usize,
    },
    SyncWrites {
        pick: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let pick = any::<prop::sample::Index>().prop_map(|i| i.index(1 << 20));
    let quantities =
        [0_i64..4, 0_i64..3].prop_filter("an order has a line", |q| q.iter().any(|q| *q > 0));
    prop_oneof![
        3 => quantities.prop_map(|quantities| Step::Accept { quantities }),
        4 => (pick.clone(), any::<bool>()).prop_map(|(pick, acknowledged)| Step::Decide { pick, acknowledged }),
        4 => pick.clone().prop_map(|pick| Step::Send { pick }),
        4 => (pick.clone(), prop::bool::weighted(0.8), prop::bool::weighted(0.8))
            .prop_map(|(pick, arrives, acknowledged)| Step::Answer { pick, arrives, acknowledged }),
        1 => pick.clone().prop_map(|pick| Step::Cancel { pick }),
        1 => (0..VENDORS, 0..PRODUCTS).prop_map(|(vendor, product)| Step::VendorSells { vendor, product }),
        1 => (0..VENDORS, 0..PRODUCTS).prop_map(|(vendor, product)| Step::VendorRestocks { vendor, product }),
        2 => (0..VENDORS).prop_map(|vendor| Step::SyncBegins { vendor }),
        3 => pick.clone().prop_map(|pick| Step::SyncLooks { pick }),
        3 => pick.prop_map(|pick| Step::SyncWrites { pick }),
    ]
}

/// A vendor's database.
#[derive(Clone, Default)]
struct Vendor {
    stock: BTreeMap<ProductId, i64>,
    entries: BTreeMap<UpdateId, super::ledger::Entry>,
    /// What the vendor itself added or took, per product.
    own: BTreeMap<ProductId, i64>,
}

impl Vendor {
    fn handle(&mut self, requests: &[Request]) -> Vec<Answer> {
        let mut ledger = Ledger::new(self.stock.clone(), self.entries.values().cloned().collect());
        let answers = requests
            .iter()
            .map(|request| match ledger.handle(request) {
                Reply::Recorded(outcome) => Answer {
                    id: request.id,
                    outcome,
                },
                Reply::Conflict => panic_in_test("no update is ever sent with two contents"),
            })
            .collect();
        for entry in ledger.written() {
            self.entries.insert(entry.request.id, entry.clone());
        }
        self.stock = ledger.stocks().map(|(p, s)| (p.clone(), s)).collect();
        answers
    }

    fn applied(&self, id: UpdateId) -> bool {
        self.entries
            .get(&id)
            .is_some_and(|entry| entry.outcome == Outcome::Applied)
    }
}

#[expect(clippy::panic, reason = "a test's own failure")]
fn panic_in_test(why: &str) -> ! {
    panic!("{why}")
}

/// A sync run between its steps.
#[derive(Clone)]
struct Run {
    vendor: VendorId,
    number: i64,
    /// The snapshot, our open updates that it includes, and the products still to be written.
    seen: Option<(Vendor, Vec<UpdateId>, Vec<ProductId>)>,
}

/// A message to a vendor: in the queue, or with its request on the way.
#[derive(Clone)]
struct Push {
    updates: Vec<UpdateId>,
    sent: Option<Vec<UpdateId>>,
}

#[derive(Default)]
struct World {
    shelves: BTreeMap<(ProductId, VendorId), Shelf>,
    /// What the vendor itself had added when the shelf's snapshot was taken.
    own_at_snapshot: BTreeMap<(ProductId, VendorId), i64>,
    /// What the syncs have noted of the vendors' own changes.
    vendor_changes: BTreeMap<(ProductId, VendorId), i64>,
    orders: BTreeMap<OrderId, (Status, Lines)>,
    updates: BTreeMap<UpdateId, Update>,
    current_run: BTreeMap<VendorId, i64>,
    vendors: BTreeMap<VendorId, Vendor>,
    initial: BTreeMap<(ProductId, VendorId), i64>,
    order_queue: Vec<OrderId>,
    push_queue: Vec<Push>,
    /// Requests whose sender is gone, still on their way.
    late: Vec<(VendorId, Vec<UpdateId>)>,
    runs: Vec<Run>,
    /// What a vendor had when it rejected a take, and the run that was current then.
    told: BTreeMap<(ProductId, VendorId), (i64, i64)>,
    sold_elsewhere: bool,
    next_id: u128,
}

impl World {
    fn new(stock: [[i64; PRODUCTS]; VENDORS]) -> Self {
        let mut world = Self::default();
        for (v, products) in stock.iter().enumerate() {
            let mut database = Vendor::default();
            for (p, stock) in products.iter().enumerate() {
                database.stock.insert(product(p), *stock);
                world.initial.insert((product(p), vendor(v)), *stock);
                world.shelves.insert(
                    (product(p), vendor(v)),
                    Shelf {
                        name: Some("n".into()),
                        on_hand: *stock,
                        ..Shelf::default()
                    },
                );
            }
            world.vendors.insert(vendor(v), database);
            world.current_run.insert(vendor(v), 0);
        }
        world
    }

    fn id(&mut self) -> Uuid {
        self.next_id += 1;
        Uuid::from_u128(self.next_id)
    }

    /// One transaction: load, rule, save. `None` from the rule rolls back.
    fn transact<T>(
        &mut self,
        rule: impl FnOnce(&mut Book, &mut dyn FnMut() -> UpdateId) -> T,
    ) -> T {
        let mut book = Book::new((0..VENDORS).map(vendor).collect(), BTreeSet::new());
        for ((product_id, vendor_id), shelf) in &self.shelves {
            book.load_shelf(product_id.clone(), vendor_id.clone(), shelf.clone());
        }
        for (id, (status, _)) in &self.orders {
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
        self.save(book.into_changes());
        result
    }

    fn save(&mut self, changes: Changes) {
        for (id, status, _) in changes.orders {
            self.orders.get_mut(&id).expect("loaded").0 = status;
        }
        for (place, shelf) in changes.shelves.into_iter().chain(changes.new_shelves) {
            self.shelves.insert(place, shelf);
        }
        for update in changes.updates {
            self.updates.insert(update.id, update);
        }
        for change in changes.vendor_changes {
            *self.vendor_changes.entry(change.place).or_default() += change.delta;
        }
        for message in super::messages::updates_messages(&changes.new_updates) {
            let updates = message.updates.iter().map(|item| item.id).collect();
            self.push_queue.push(Push {
                updates,
                sent: None,
            });
        }
        for update in changes.new_updates {
            let place = (update.product_id.clone(), update.vendor_id.clone());
            if let Some((had, _)) = self.told.get(&place) {
                let taken = -update.delta;
                assert!(
                    taken <= *had,
                    "{taken} taken at {place:?}, which has just said it has {had}"
                );
            }
            self.updates.insert(update.id, update);
        }
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

    fn step(&mut self, step: &Step) {
        match step {
            Step::Accept { quantities } => {
                let lines = (0..PRODUCTS)
                    .filter(|p| quantities[*p] > 0)
                    .map(|p| Line {
                        product_id: product(p),
                        quantity: quantities[p],
                    })
                    .collect();
                let id = OrderId(self.id());
                self.orders
                    .insert(id, (Status::Pending, Lines::parse(lines).expect("valid")));
                self.order_queue.push(id);
            }
            Step::Decide { pick, acknowledged } => {
                let Some(index) = index(*pick, self.order_queue.len()) else {
                    return;
                };
                let order = self.order_queue[index];
                let lines = self.orders[&order].1.clone();
                self.transact(|book, new_id| book.decide(order, &lines, true, new_id))
                    .expect("loaded");
                if *acknowledged {
                    self.order_queue.remove(index);
                }
            }
            Step::Send { pick } => {
                let Some(index) = index(*pick, self.push_queue.len()) else {
                    return;
                };
                let push = self.push_queue[index].clone();
                if push.sent.is_some() {
                    return;
                }
                let open: Vec<_> = push
                    .updates
                    .into_iter()
                    .filter(|id| self.updates[id].state == State::Open)
                    .collect();
                if open.is_empty() {
                    self.push_queue.remove(index);
                } else {
                    self.push_queue[index].sent = Some(open);
                }
            }
            Step::Answer {
                pick,
                arrives,
                acknowledged,
            } => self.answer(*pick, *arrives, *acknowledged),
            Step::Cancel { pick } => {
                let Some(index) = index(*pick, self.orders.len()) else {
                    return;
                };
                let order = *self.orders.keys().nth(index).expect("in range");
                if matches!(self.orders[&order].0, Status::Pending | Status::Confirmed) {
                    self.transact(|book, new_id| book.cancel(order, None, new_id))
                        .expect("legal");
                }
            }
            Step::VendorSells {
                vendor: v,
                product: p,
            } => self.vendor_changes(*v, *p, -1),
            Step::VendorRestocks {
                vendor: v,
                product: p,
            } => self.vendor_changes(*v, *p, 2),
            Step::SyncBegins { vendor: v } => {
                let number = self.current_run.get_mut(&vendor(*v)).expect("there");
                *number += 1;
                self.runs.push(Run {
                    vendor: vendor(*v),
                    number: *number,
                    seen: None,
                });
            }
            Step::SyncLooks { pick } => {
                let Some(index) = index(*pick, self.runs.len()) else {
                    return;
                };
                let of = self.runs[index].vendor.clone();
                if self.runs[index].seen.is_none() {
                    let snapshot = self.vendors[&of].clone();
                    let applied = self
                        .updates
                        .values()
                        .filter(|u| {
                            u.vendor_id == of && !u.state.is_closed() && snapshot.applied(u.id)
                        })
                        .map(|u| u.id)
                        .collect();
                    self.runs[index].seen =
                        Some((snapshot, applied, (0..PRODUCTS).map(product).collect()));
                }
            }
            Step::SyncWrites { pick } => self.sync_writes(*pick),
        }
    }

    fn vendor_changes(&mut self, v: usize, p: usize, units: i64) {
        let database = self.vendors.get_mut(&vendor(v)).expect("there");
        let stock = database.stock.get_mut(&product(p)).expect("there");
        if *stock + units >= 0 {
            *stock += units;
            *database.own.entry(product(p)).or_default() += units;
            self.sold_elsewhere |= units < 0;
        }
    }

    fn answer(&mut self, pick: usize, arrives: bool, acknowledged: bool) {
        let Some(index) = index(pick, self.push_queue.len() + self.late.len()) else {
            return;
        };
        if index >= self.push_queue.len() {
            let (to, ids) = self.late.remove(index - self.push_queue.len());
            let requests = self.requests(&ids);
            self.vendors.get_mut(&to).expect("there").handle(&requests);
            return;
        }
        let Some(sent) = self.push_queue[index].sent.take() else {
            return;
        };
        let to = self.updates[&sent[0]].vendor_id.clone();
        if !arrives {
            // The worker is gone; its request is not.
            self.late.push((to, sent));
            return;
        }
        let requests = self.requests(&sent);
        let answers = self.vendors.get_mut(&to).expect("there").handle(&requests);
        let run = self.current_run[&to];
        for answer in answers.iter().filter(|a| a.outcome == Outcome::Rejected) {
            assert!(
                self.sold_elsewhere,
                "a vendor rejects {answer:?} although nobody sold elsewhere"
            );
            if self.updates[&answer.id].state == State::Open {
                let product_id = self.updates[&answer.id].product_id.clone();
                let had = self.vendors[&to].stock[&product_id];
                self.told.insert((product_id, to.clone()), (had, run));
            }
        }
        self.transact(|book, new_id| book.record(&answers, run, new_id))
            .expect("loaded");
        if acknowledged {
            self.push_queue.remove(index);
        }
    }

    fn sync_writes(&mut self, pick: usize) {
        let Some(index) = index(pick, self.runs.len()) else {
            return;
        };
        let Run {
            vendor: of,
            number,
            seen,
        } = self.runs[index].clone();
        let Some((snapshot, mut applied, mut left)) = seen else {
            return;
        };
        let is_current = self.current_run[&of] == number;
        if let Some(id) = applied.pop() {
            if is_current {
                self.transact(|book, _| book.fold(&[id])).expect("loaded");
            }
        } else if let Some(chunk) = left.pop()
            // The fence: only the vendor's current run writes.
            && is_current
        {
            let listed = [Listed {
                product_id: chunk.clone(),
                name: "n".into(),
                stock: snapshot.stock[&chunk],
            }];
            let mut book = Book::new((0..VENDORS).map(vendor).collect(), BTreeSet::new());
            let place = (chunk.clone(), of.clone());
            book.load_shelf(chunk.clone(), of.clone(), self.shelves[&place].clone());
            book.reconcile(&of, number, &listed, &[]).expect("loaded");
            self.save(book.into_changes());
            if self.told.get(&place).is_some_and(|(_, run)| *run < number) {
                self.told.remove(&place);
            }
            let own = snapshot.own.get(&chunk).copied().unwrap_or(0);
            self.own_at_snapshot.insert(place, own);
        }
        if left.is_empty() {
            self.runs.remove(index);
        } else {
            self.runs[index].seen = Some((snapshot, applied, left));
        }
    }

    /// Delivers everything, then syncs twice.
    fn drain(&mut self) {
        while !(self.order_queue.is_empty() && self.push_queue.is_empty() && self.late.is_empty()) {
            self.step(&Step::Decide {
                pick: 0,
                acknowledged: true,
            });
            self.step(&Step::Send { pick: 0 });
            self.step(&Step::Answer {
                pick: 0,
                arrives: true,
                acknowledged: true,
            });
            self.check();
        }
        self.runs.clear();
        for v in 0..VENDORS {
            self.step(&Step::SyncBegins { vendor: v });
            self.step(&Step::SyncLooks { pick: 0 });
            while !self.runs.is_empty() {
                self.step(&Step::SyncWrites { pick: 0 });
            }
            self.check();
        }
    }

    fn check(&self) {
        for ((product_id, vendor_id), shelf) in &self.shelves {
            let here = || {
                self.updates
                    .values()
                    .filter(|u| u.product_id == *product_id && u.vendor_id == *vendor_id)
            };
            let place = (product_id.clone(), vendor_id.clone());
            let open: i64 = here().map(|u| u.counted()).sum();
            assert_eq!(shelf.open_delta, open, "open delta of {place:?}");
            let closed: i64 = here()
                .filter(|u| u.state == State::Applied)
                .map(|u| u.delta)
                .sum();
            let own = self.own_at_snapshot.get(&place).copied().unwrap_or(0);
            assert_eq!(
                shelf.on_hand,
                self.initial[&place] + own + closed,
                "on hand of {place:?} and what it includes"
            );
            let noted = self.vendor_changes.get(&place).copied().unwrap_or(0);
            assert_eq!(
                shelf.available(),
                self.initial[&place] + noted + here().map(Update::effect).sum::<i64>(),
                "the movements of {place:?}"
            );
            if !self.sold_elsewhere {
                assert!(
                    shelf.available() >= 0,
                    "available of {place:?} is {}",
                    shelf.available()
                );
            }
            for update in here() {
                let applied = self.vendors[vendor_id].applied(update.id);
                match update.state {
                    State::Applied | State::Acknowledged => {
                        assert!(applied, "{update:?} was never applied")
                    }
                    State::Rejected | State::Void => assert!(!applied, "{update:?} was applied"),
                    State::Open => {}
                }
            }
        }
        for (id, (status, lines)) in &self.orders {
            for line in lines.as_slice() {
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
                assert_eq!(net, wanted, "updates of {status:?} order {id}");
            }
        }
    }

    fn check_drained(&self) {
        for (id, (status, lines)) in &self.orders {
            assert!(
                matches!(
                    status,
                    Status::Confirmed | Status::Rejected | Status::Cancelled
                ),
                "{id} is {status:?}"
            );
            for line in lines.as_slice() {
                let moved: i64 = self
                    .updates
                    .values()
                    .filter(|u| u.order_id == *id && u.product_id == line.product_id)
                    .filter(|u| self.vendors[&u.vendor_id].applied(u.id))
                    .map(|u| u.delta)
                    .sum();
                let wanted = if *status == Status::Confirmed {
                    -line.quantity
                } else {
                    0
                };
                assert_eq!(
                    moved, wanted,
                    "what {status:?} order {id} moved at the vendors"
                );
            }
        }
        for ((product_id, vendor_id), shelf) in &self.shelves {
            assert_eq!(shelf.open_delta, 0, "nothing stays open");
            assert_eq!(
                shelf.on_hand, self.vendors[vendor_id].stock[product_id],
                "we hold the vendor's stock"
            );
            assert_eq!(shelf.blocked_run, None, "nothing stays blocked");
        }
    }
}

fn index(pick: usize, len: usize) -> Option<usize> {
    (len > 0).then(|| pick % len)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn stock_is_exact_under_any_interleaving(
        stock in [[0_i64..5, 0_i64..5], [0_i64..5, 0_i64..5]],
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new(stock);
        for step in &steps {
            world.step(step);
            world.check();
        }
        world.drain();
        world.check_drained();
    }
}

#[test]
fn a_decision_is_made_once_however_often_its_message_comes() {
    let mut world = World::new([[5, 0], [0, 0]]);
    world.step(&Step::Accept { quantities: [2, 0] });
    let order = world.order_queue[0];
    let lines = world.orders[&order].1.clone();
    let decide = |world: &mut World| {
        world
            .transact(|book, new_id| book.decide(order, &lines, true, new_id))
            .expect("loaded")
    };
    assert_eq!(decide(&mut world), Decision::Confirmed);
    assert_eq!(decide(&mut world), Decision::Settled);
    assert_eq!(world.updates.len(), 1);
}

#[test]
fn an_update_is_taken_into_what_is_on_hand_once() {
    let mut world = World::new([[5, 0], [0, 0]]);
    world.step(&Step::Accept { quantities: [2, 0] });
    world.step(&Step::Decide {
        pick: 0,
        acknowledged: true,
    });
    let id = *world.updates.keys().next().expect("a take");
    for _ in 0..2 {
        world.transact(|book, _| book.fold(&[id])).expect("loaded");
        let shelf = &world.shelves[&(product(0), vendor(0))];
        assert_eq!((shelf.on_hand, shelf.open_delta), (3, 0));
    }
}
