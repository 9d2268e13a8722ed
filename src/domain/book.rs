//! The book: the rows that a transaction has locked, and the rules that change them. Every flow loads the rows it
//! concerns, calls one rule, and saves [`Changes`]; nothing else moves stock. `open_delta` follows from the updates
//! here and nowhere else, so the two cannot part.

use std::collections::{BTreeMap, BTreeSet};

use super::allocation::{Offer, Part, allocate};
use super::ids::{OrderId, ProductId, UpdateId, VendorId};
use super::order::{Lines, Reason, Status};
use super::update::{Outcome, State, Update};

/// One product at one vendor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shelf {
    /// The vendor's name for the product; `None` where a flow has no use for it and did not load it.
    pub name: Option<String>,
    /// What the vendor's database said at the last sync.
    pub on_hand: i64,
    /// The updates that count and that `on_hand` does not include.
    pub open_delta: i64,
    /// The run that was current when the vendor rejected a take of it.
    pub blocked_run: Option<i64>,
}

impl Shelf {
    /// Units that may be taken; below 0 when the vendor sold what we had taken.
    #[must_use]
    pub fn available(&self) -> i64 {
        self.on_hand + self.open_delta
    }
}

/// Where a shelf stands.
pub type Place = (ProductId, VendorId);

/// A rule was asked for what cannot be: a row it needs was not loaded, or a status cannot follow another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// The flow did not load it.
    #[error("the book has no {0}")]
    NotLoaded(String),
    /// No order goes that way.
    #[error("order {order} cannot go from {from:?} to {to:?}")]
    Illegal {
        /// Which order.
        order: OrderId,
        /// Its status.
        from: Status,
        /// The status asked for.
        to: Status,
    },
}

/// How an order was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Its stock is taken.
    Confirmed,
    /// It cannot be served.
    Rejected(Reason),
    /// It was decided before, or is not pending: nothing to do.
    Settled,
    /// It would be rejected, but some vendor's stock is not known yet: to be tried again later.
    Undecidable,
}

/// What a vendor answered for one update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Which update.
    pub id: UpdateId,
    /// What its ledger holds.
    pub outcome: Outcome,
}

impl Answer {
    /// Whether recording it changes the update and nothing else, neither a figure nor a counterpart: an applied take is
    /// counted since it was made, and goes on being counted until a sync closes it.
    #[must_use]
    pub fn is_only_of(&self, update: &Update) -> bool {
        self.id == update.id && self.outcome == Outcome::Applied && update.delta < 0
    }
}

/// A product as the vendor's snapshot lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Which product.
    pub product_id: ProductId,
    /// The vendor's name for it.
    pub name: String,
    /// The vendor's stock.
    pub stock: i64,
}

/// How what a vendor lists differs from what is held of it, in the order of the products.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// The products that are held and that [`Book::reconcile`] has to look at.
    pub changed: Vec<ProductId>,
    /// Those of them that are listed.
    pub listed: Vec<Listed>,
    /// What is listed and not held. Nothing was ever taken of it, so there is nothing to reconcile.
    pub new: Vec<Listed>,
}

impl Difference {
    /// Compares what is held with what is listed, each in the order of the products, as [`Book::reconcile`] would in `run`.
    /// Products with updates to be closed differ too. Nearly all are as they were, so this looks at each once and keeps
    /// nothing of them.
    #[must_use]
    pub fn between(
        run: i64,
        held: &[(ProductId, Shelf)],
        listed: Vec<Listed>,
        is_closing: impl Fn(&ProductId) -> bool,
    ) -> Self {
        let is_unblocked = |shelf: &Shelf| shelf.blocked_run.is_some_and(|blocked| blocked < run);
        let mut difference = Self::default();
        let mut listed = listed.into_iter().peekable();
        for (product_id, shelf) in held {
            while let Some(new) = listed.next_if(|listed| listed.product_id < *product_id) {
                difference.new.push(new);
            }
            let now = listed.next_if(|listed| listed.product_id == *product_id);
            let differs = match &now {
                Some(now) => {
                    shelf.on_hand != now.stock || shelf.name.as_deref() != Some(now.name.as_str())
                }
                None => shelf.on_hand != 0,
            };
            if differs || is_unblocked(shelf) || is_closing(product_id) {
                difference.changed.push(product_id.clone());
                difference.listed.extend(now);
            }
        }
        difference.new.extend(listed);
        difference
    }
}

/// What a transaction has to write.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Orders whose status changed.
    pub orders: Vec<(OrderId, Status, Option<Reason>)>,
    /// Shelves that changed, with all they now hold.
    pub shelves: Vec<(Place, Shelf)>,
    /// Products of which another number is available at one of these shelves.
    pub available: BTreeSet<ProductId>,
    /// Updates that were loaded and whose state changed.
    pub updates: Vec<Update>,
    /// Updates to insert and to tell the vendors, in the order they were made: a take before its return.
    pub new_updates: Vec<Update>,
    /// What a sync found changed beside our updates.
    pub vendor_changes: Vec<VendorChange>,
}

/// What a vendor itself has changed of a product's stock between two syncs: its own sales and restocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VendorChange {
    /// Of which product, at which vendor.
    pub place: Place,
    /// The run that found it.
    pub run: i64,
    /// Units; never 0.
    pub delta: i64,
}

impl Changes {
    /// Nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The loaded rows, and what has become of them.
#[derive(Debug, Clone, Default)]
pub struct Book {
    shelves: BTreeMap<ProductId, BTreeMap<VendorId, Shelf>>,
    orders: BTreeMap<OrderId, Status>,
    reasons: BTreeMap<OrderId, Reason>,
    updates: BTreeMap<UpdateId, Update>,
    ledgerless: BTreeSet<VendorId>,
    sellers: BTreeSet<VendorId>,
    changed_orders: BTreeSet<OrderId>,
    /// With what was available there before.
    changed_shelves: BTreeMap<Place, i64>,
    changed_updates: BTreeSet<UpdateId>,
    new_updates: Vec<UpdateId>,
    vendor_changes: Vec<VendorChange>,
}

impl Book {
    /// An empty book. `sellers` are the vendors that stock may be taken from: one that is no longer configured can be
    /// told of nothing. `ledgerless` are those whose database has no ledger.
    #[must_use]
    pub fn new(sellers: BTreeSet<VendorId>, ledgerless: BTreeSet<VendorId>) -> Self {
        Self {
            sellers,
            ledgerless,
            ..Self::default()
        }
    }

    /// Adds a locked shelf.
    pub fn load_shelf(&mut self, product_id: ProductId, vendor_id: VendorId, shelf: Shelf) {
        self.shelves
            .entry(product_id)
            .or_default()
            .insert(vendor_id, shelf);
    }

    /// Adds a locked order.
    pub fn load_order(&mut self, id: OrderId, status: Status) {
        self.orders.insert(id, status);
    }

    /// Adds a locked update.
    pub fn load_update(&mut self, update: Update) {
        self.updates.insert(update.id, update);
    }

    /// Decides one order against what the orders before it have left.
    ///
    /// # Errors
    /// The order was not loaded.
    pub fn decide(
        &mut self,
        order: OrderId,
        lines: &Lines,
        every_vendor_known: bool,
        new_id: &mut dyn FnMut() -> UpdateId,
    ) -> Result<Decision, BookError> {
        if self.status(order)? != Status::Pending {
            return Ok(Decision::Settled);
        }
        let mut parts = Vec::with_capacity(lines.as_slice().len());
        for line in lines.as_slice() {
            match allocate(
                self.offers(&line.product_id, &BTreeSet::new()),
                line.quantity,
            ) {
                Some(of_line) => parts.push((&line.product_id, of_line)),
                None if !every_vendor_known => return Ok(Decision::Undecidable),
                None => {
                    let reason = if self.shelves.contains_key(&line.product_id) {
                        Reason::InsufficientStock {
                            product_id: line.product_id.clone(),
                            requested: line.quantity,
                            available: self
                                .offers(&line.product_id, &BTreeSet::new())
                                .iter()
                                .map(|offer| offer.available.max(0))
                                .sum(),
                        }
                    } else {
                        Reason::UnknownProduct {
                            product_id: line.product_id.clone(),
                        }
                    };
                    self.set_status(order, Status::Rejected, Some(reason.clone()))?;
                    return Ok(Decision::Rejected(reason));
                }
            }
        }
        self.set_status(order, Status::Confirmed, None)?;
        for (product_id, of_line) in parts {
            self.take(order, product_id, of_line, new_id)?;
        }
        Ok(Decision::Confirmed)
    }

    /// Cancels an order and returns all that was taken for it. All of a confirmed order's updates must be loaded.
    ///
    /// # Errors
    /// The order cannot be cancelled, or was not loaded.
    pub fn cancel(
        &mut self,
        order: OrderId,
        reason: Option<Reason>,
        new_id: &mut dyn FnMut() -> UpdateId,
    ) -> Result<(), BookError> {
        let was = self.status(order)?;
        self.set_status(order, Status::Cancelled, reason)?;
        if was != Status::Confirmed {
            return Ok(());
        }
        let takes: Vec<Update> = self
            .updates
            .values()
            .filter(|u| u.order_id == order && u.delta < 0)
            .filter(|u| !matches!(u.state, State::Rejected | State::Void))
            .cloned()
            .collect();
        for take in takes {
            self.add_update(Update {
                id: new_id(),
                delta: -take.delta,
                reverses: Some(take.id),
                state: State::Open,
                turned: false,
                ..take
            })?;
        }
        Ok(())
    }

    /// Rejects an order for a reason that no stock has a part in. One that is not pending stays as it is.
    ///
    /// # Errors
    /// The order was not loaded.
    pub fn reject(&mut self, order: OrderId, reason: Reason) -> Result<(), BookError> {
        if self.status(order)? == Status::Pending {
            self.set_status(order, Status::Rejected, Some(reason))?;
        }
        Ok(())
    }

    /// Gives an order up: its message is in the dead-letter queue. Only a pending one can fail.
    ///
    /// # Errors
    /// The order was not loaded.
    pub fn fail(&mut self, order: OrderId, error: String) -> Result<(), BookError> {
        if self.status(order)? == Status::Pending {
            self.set_status(
                order,
                Status::Failed,
                Some(Reason::ProcessingFailed { error }),
            )?;
        }
        Ok(())
    }

    /// Takes a failed order up again, before its message is replayed.
    ///
    /// # Errors
    /// The order was not loaded.
    pub fn revive(&mut self, order: OrderId) -> Result<(), BookError> {
        if self.status(order)? == Status::Failed {
            self.set_status(order, Status::Pending, None)?;
        }
        Ok(())
    }

    /// Records what a vendor answered. `run` is the vendor's current sync run, read after the answer had come.
    /// For a rejected take, its order and all the order's updates, and all shelves of the order's products must be
    /// loaded; for any other update, what it reverses and what reverses it.
    ///
    /// Returns the updates whose answer cannot be true, each with why: they stay as they are.
    ///
    /// # Errors
    /// A row that is needed was not loaded.
    pub fn record(
        &mut self,
        answers: &[Answer],
        run: i64,
        new_id: &mut dyn FnMut() -> UpdateId,
    ) -> Result<Vec<(UpdateId, &'static str)>, BookError> {
        let mut disbelieved = Vec::new();
        for answer in answers {
            let update = self.update(answer.id)?.clone();
            if update.state != State::Open {
                continue;
            }
            match answer.outcome {
                // A vendor that is let get away with either keeps goods that were sold, or takes none for what was.
                Outcome::Void if update.delta < 0 && !self.is_returned(update.id) => {
                    disbelieved.push((
                        update.id,
                        "a take is void only once it was returned, and nobody did",
                    ));
                }
                Outcome::Rejected if update.delta > 0 => {
                    disbelieved.push((update.id, "a return is applied or void, never rejected"));
                }
                Outcome::Applied => self.set_state(update.id, State::Acknowledged)?,
                Outcome::Void => {
                    self.set_state(update.id, State::Void)?;
                    // Both sides are void at the vendor, so neither is waited for any more.
                    match update.reverses {
                        Some(take) => self.void_if_open(take)?,
                        None => self.void_returns_of(update.id)?,
                    }
                }
                Outcome::Rejected => {
                    self.set_state(update.id, State::Rejected)?;
                    self.void_returns_of(update.id)?;
                    self.block(&update, run)?;
                    if update.delta < 0 && self.status(update.order_id)? == Status::Confirmed {
                        self.serve_elsewhere(&update, new_id)?;
                    }
                }
            }
        }
        Ok(disbelieved)
    }

    /// Whether a return of a take was made, whatever has become of it.
    fn is_returned(&self, take: UpdateId) -> bool {
        self.updates.values().any(|u| u.reverses == Some(take))
    }

    /// A vendor refused a take of a confirmed order: another serves it, or the order is cancelled.
    fn serve_elsewhere(
        &mut self,
        rejected: &Update,
        new_id: &mut dyn FnMut() -> UpdateId,
    ) -> Result<(), BookError> {
        let refused_by: BTreeSet<VendorId> = self
            .updates
            .values()
            .filter(|u| u.order_id == rejected.order_id && u.product_id == rejected.product_id)
            .filter(|u| u.state == State::Rejected)
            .map(|u| u.vendor_id.clone())
            .collect();
        match allocate(
            self.offers(&rejected.product_id, &refused_by),
            -rejected.delta,
        ) {
            Some(parts) => self.take(rejected.order_id, &rejected.product_id, parts, new_id),
            None => self.cancel(
                rejected.order_id,
                Some(Reason::VendorRejected {
                    product_id: rejected.product_id.clone(),
                }),
                new_id,
            ),
        }
    }

    /// Moves updates that the vendor is known to have applied from what is open to what is on hand. What is available
    /// stays as it is, so this is exact at any moment, whatever snapshot is written next; only a return without an
    /// answer, which did not count before, begins to. It needs a ledger: without one, what is on hand may include an
    /// update that is still open.
    ///
    /// # Errors
    /// An update or its shelf was not loaded.
    pub fn fold(&mut self, applied: &[UpdateId]) -> Result<(), BookError> {
        for id in applied {
            let update = self.update(*id)?.clone();
            if !update.state.is_closed() {
                self.shelf_mut(&update.product_id, &update.vendor_id)?
                    .on_hand += update.delta;
                self.set_state(*id, State::Applied)?;
            }
        }
        Ok(())
    }

    /// As [`Self::fold`], for takes of one shelf that are closed already, and came to `delta` together.
    ///
    /// # Errors
    /// The shelf was not loaded.
    pub fn fold_closed_takes(
        &mut self,
        product: &ProductId,
        vendor: &VendorId,
        delta: i64,
    ) -> Result<(), BookError> {
        let shelf = self.shelf_mut(product, vendor)?;
        shelf.on_hand += delta;
        // A take counts from when it is made until it is closed.
        shelf.open_delta -= delta;
        Ok(())
    }

    /// Brings the loaded shelves of one vendor to what `run`'s snapshot lists; a loaded shelf that it does not list has
    /// nothing on hand. `applied` are the updates that the snapshot includes; those of products that are not loaded
    /// must not be among them.
    ///
    /// # Errors
    /// A product in `listed` or an update in `applied` was not loaded.
    pub fn reconcile(
        &mut self,
        vendor: &VendorId,
        run: i64,
        listed: &[Listed],
        applied: &[UpdateId],
    ) -> Result<(), BookError> {
        for product in listed {
            let place = (product.product_id.clone(), vendor.clone());
            let held = self.shelves.get_mut(&product.product_id);
            let shelf = held
                .and_then(|at| at.get_mut(vendor))
                .ok_or_else(|| BookError::NotLoaded(format!("{} at {vendor}", place.0)))?;
            if shelf.name.as_deref() != Some(product.name.as_str()) {
                shelf.name = Some(product.name.clone());
                let before = shelf.available();
                self.changed_shelves.entry(place).or_insert(before);
            }
        }
        let mut included = BTreeMap::<ProductId, i64>::new();
        for id in applied {
            let update = self.update(*id)?;
            if !update.state.is_closed() {
                *included.entry(update.product_id.clone()).or_default() += update.delta;
                self.set_state(*id, State::Applied)?;
            }
        }
        let stock: BTreeMap<&ProductId, i64> =
            listed.iter().map(|p| (&p.product_id, p.stock)).collect();
        for (product_id, at) in &mut self.shelves {
            let Some(shelf) = at.get_mut(vendor) else {
                continue;
            };
            let now = stock.get(product_id).copied().unwrap_or(0);
            // A rejection proved an older snapshot wrong; this run began after it.
            let unblocked = shelf.blocked_run.is_some_and(|blocked| blocked < run);
            let place = (product_id.clone(), vendor.clone());
            let ours = included.get(product_id).copied().unwrap_or(0);
            let delta = now - shelf.on_hand - ours;
            if delta != 0 {
                self.vendor_changes.push(VendorChange {
                    place: place.clone(),
                    run,
                    delta,
                });
            }
            if shelf.on_hand != now || unblocked {
                let before = shelf.available();
                self.changed_shelves.entry(place).or_insert(before);
                shelf.on_hand = now;
                if unblocked {
                    shelf.blocked_run = None;
                }
            }
        }
        Ok(())
    }

    /// What is to be written.
    #[must_use]
    pub fn into_changes(self) -> Changes {
        let shelf = |place: &Place| self.shelves.get(&place.0)?.get(&place.1).cloned();
        let changed = || self.changed_shelves.iter();
        Changes {
            orders: self
                .changed_orders
                .iter()
                .filter_map(|id| Some((*id, *self.orders.get(id)?, self.reasons.get(id).cloned())))
                .collect(),
            available: changed()
                .filter(|(place, before)| {
                    shelf(place).is_some_and(|shelf| shelf.available() != **before)
                })
                .map(|(place, _)| place.0.clone())
                .collect(),
            shelves: changed()
                .filter_map(|(place, _)| Some((place.clone(), shelf(place)?)))
                .collect(),
            updates: self
                .changed_updates
                .iter()
                .filter_map(|id| self.updates.get(id).cloned())
                .collect(),
            new_updates: self
                .new_updates
                .iter()
                .filter_map(|id| self.updates.get(id).cloned())
                .collect(),
            vendor_changes: self.vendor_changes,
        }
    }

    /// The status of a loaded order.
    ///
    /// # Errors
    /// It was not loaded.
    pub fn status(&self, order: OrderId) -> Result<Status, BookError> {
        self.orders
            .get(&order)
            .copied()
            .ok_or_else(|| BookError::NotLoaded(format!("order {order}")))
    }

    fn update(&self, id: UpdateId) -> Result<&Update, BookError> {
        self.updates
            .get(&id)
            .ok_or_else(|| BookError::NotLoaded(format!("update {id}")))
    }

    fn shelf_mut(
        &mut self,
        product: &ProductId,
        vendor: &VendorId,
    ) -> Result<&mut Shelf, BookError> {
        let shelf = self
            .shelves
            .get_mut(product)
            .and_then(|at| at.get_mut(vendor))
            .ok_or_else(|| BookError::NotLoaded(format!("stock of {product} at {vendor}")))?;
        let before = shelf.available();
        self.changed_shelves
            .entry((product.clone(), vendor.clone()))
            .or_insert(before);
        Ok(shelf)
    }

    /// What the vendors can give of a product. A vendor that rejected a take of it is passed over until a later sync
    /// run has written it: what we hold of its stock was proved wrong.
    fn offers(&self, product: &ProductId, without: &BTreeSet<VendorId>) -> Vec<Offer<'_>> {
        self.shelves
            .get(product)
            .into_iter()
            .flatten()
            .filter(|(vendor, shelf)| {
                self.sellers.contains(*vendor)
                    && shelf.blocked_run.is_none()
                    && !without.contains(*vendor)
            })
            .map(|(vendor_id, shelf)| Offer {
                vendor_id,
                available: shelf.available(),
            })
            .collect()
    }

    fn take(
        &mut self,
        order_id: OrderId,
        product_id: &ProductId,
        parts: Vec<Part>,
        new_id: &mut dyn FnMut() -> UpdateId,
    ) -> Result<(), BookError> {
        for part in parts {
            self.add_update(Update {
                id: new_id(),
                order_id,
                vendor_id: part.vendor_id,
                product_id: product_id.clone(),
                delta: -part.quantity,
                reverses: None,
                state: State::Open,
                turned: false,
            })?;
        }
        Ok(())
    }

    fn add_update(&mut self, update: Update) -> Result<(), BookError> {
        let counted = update.counted();
        if counted != 0 {
            self.shelf_mut(&update.product_id, &update.vendor_id)?
                .open_delta += counted;
        }
        self.new_updates.push(update.id);
        self.updates.insert(update.id, update);
        Ok(())
    }

    /// The one place where an update changes its state, and with it its shelf.
    fn set_state(&mut self, id: UpdateId, state: State) -> Result<(), BookError> {
        let before = self.update(id)?.clone();
        let has_ledger = !self.ledgerless.contains(&before.vendor_id);
        let after = before.clone().come_to(state, has_ledger);
        let difference = after.counted() - before.counted();
        if difference != 0 {
            self.shelf_mut(&before.product_id, &before.vendor_id)?
                .open_delta += difference;
        }
        self.updates.insert(id, after);
        if !self.new_updates.contains(&id) {
            self.changed_updates.insert(id);
        }
        Ok(())
    }

    fn void_if_open(&mut self, id: UpdateId) -> Result<(), BookError> {
        if self.update(id)?.state == State::Open {
            self.set_state(id, State::Void)?;
        }
        Ok(())
    }

    fn void_returns_of(&mut self, take: UpdateId) -> Result<(), BookError> {
        let returns: Vec<UpdateId> = self
            .updates
            .values()
            .filter(|u| u.reverses == Some(take))
            .map(|u| u.id)
            .collect();
        returns.into_iter().try_for_each(|id| self.void_if_open(id))
    }

    fn block(&mut self, rejected: &Update, run: i64) -> Result<(), BookError> {
        self.shelf_mut(&rejected.product_id, &rejected.vendor_id)?
            .blocked_run = Some(run);
        Ok(())
    }

    fn set_status(
        &mut self,
        order: OrderId,
        to: Status,
        reason: Option<Reason>,
    ) -> Result<(), BookError> {
        let from = self.status(order)?;
        let legal = match from {
            Status::Pending => matches!(
                to,
                Status::Confirmed | Status::Rejected | Status::Cancelled | Status::Failed
            ),
            Status::Confirmed => to == Status::Cancelled,
            Status::Failed => matches!(to, Status::Pending | Status::Cancelled),
            Status::Rejected | Status::Cancelled => false,
        };
        if !legal {
            return Err(BookError::Illegal { order, from, to });
        }
        self.orders.insert(order, to);
        self.changed_orders.insert(order);
        match reason {
            Some(reason) => self.reasons.insert(order, reason),
            None => self.reasons.remove(&order),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    proptest! {
        #[test]
        fn what_differs_is_what_a_reconciliation_changes(
            held in prop::collection::btree_map(0..9_u8, ("[ab]", 0..3_i64, prop::option::of(0..4_i64)), 0..9),
            listed in prop::collection::btree_map(0..9_u8, ("[ab]", 0..3_i64), 0..9),
            closing in prop::collection::btree_set(0..9_u8, 0..3),
        ) {
            let vendor = VendorId::parse("a").expect("an id");
            let product = |n: u8| ProductId::parse(format!("p{n}")).expect("an id");
            let held: Vec<(ProductId, Shelf)> = held
                .into_iter()
                .map(|(n, (name, on_hand, blocked_run))| {
                    let shelf = Shelf { name: Some(name), on_hand, open_delta: -1, blocked_run };
                    (product(n), shelf)
                })
                .collect();
            let listed: Vec<Listed> = listed
                .into_iter()
                .map(|(n, (name, stock))| Listed { product_id: product(n), name, stock })
                .collect();
            let is_held = |listed: &Listed| held.iter().any(|(id, _)| *id == listed.product_id);
            let (known, new): (Vec<Listed>, Vec<Listed>) = listed.iter().cloned().partition(is_held);
            let mut book = Book::new(BTreeSet::from([vendor.clone()]), BTreeSet::new());
            for (product_id, shelf) in &held {
                book.load_shelf(product_id.clone(), vendor.clone(), shelf.clone());
            }
            book.reconcile(&vendor, 2, &known, &[]).expect("loaded");
            let changed: BTreeSet<ProductId> =
                book.into_changes().shelves.into_iter().map(|((product_id, _), _)| product_id).collect();
            let is_closing = |id: &ProductId| closing.iter().any(|n| product(*n) == *id);
            let expected: Vec<ProductId> = held
                .iter()
                .map(|(id, _)| id.clone())
                .filter(|id| changed.contains(id) || is_closing(id))
                .collect();
            let listed_of_those =
                known.into_iter().filter(|listed| expected.contains(&listed.product_id)).collect();
            prop_assert_eq!(
                Difference::between(2, &held, listed, is_closing),
                Difference { changed: expected, listed: listed_of_those, new }
            );
        }
    }

    fn id(n: u128) -> UpdateId {
        UpdateId(Uuid::from_u128(n))
    }

    /// An open take of 2, and where `returned` an open return of it.
    fn book(returned: bool) -> Book {
        let vendor = VendorId::parse("a").expect("an id");
        let product = ProductId::parse("p").expect("an id");
        let order = OrderId(Uuid::from_u128(9));
        let mut book = Book::new(BTreeSet::from([vendor.clone()]), BTreeSet::new());
        book.load_order(order, Status::Cancelled);
        let shelf = Shelf {
            name: None,
            on_hand: 5,
            open_delta: -2,
            blocked_run: None,
        };
        book.load_shelf(product.clone(), vendor.clone(), shelf);
        let take = Update {
            id: id(1),
            order_id: order,
            vendor_id: vendor,
            product_id: product,
            delta: -2,
            reverses: None,
            state: State::Open,
            turned: false,
        };
        if returned {
            book.load_update(Update {
                id: id(2),
                delta: 2,
                reverses: Some(id(1)),
                ..take.clone()
            });
        }
        book.load_update(take);
        book
    }

    fn record(book: &mut Book, n: u128, outcome: Outcome) -> Vec<UpdateId> {
        let answers = [Answer { id: id(n), outcome }];
        let disbelieved = book.record(&answers, 1, &mut || id(3)).expect("loaded");
        disbelieved.into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn an_answer_that_cannot_be_true_is_not_believed_and_changes_nothing() {
        let mut with_no_return = book(false);
        assert_eq!(record(&mut with_no_return, 1, Outcome::Void), [id(1)]);
        assert!(with_no_return.into_changes().is_empty());
        let mut with_a_return = book(true);
        assert_eq!(record(&mut with_a_return, 2, Outcome::Rejected), [id(2)]);
        assert!(with_a_return.into_changes().is_empty());
    }

    #[test]
    fn a_take_that_was_returned_before_it_arrived_is_void_with_its_return() {
        let mut book = book(true);
        assert_eq!(record(&mut book, 1, Outcome::Void), []);
        let states: Vec<State> = [1, 2]
            .map(|n| book.update(id(n)).expect("loaded").state)
            .into();
        assert_eq!(states, [State::Void, State::Void]);
    }

    #[test]
    fn takes_that_are_closed_already_move_to_what_is_on_hand_like_any_that_are_applied() {
        let mut one_by_one = book(false);
        one_by_one.fold(&[id(1)]).expect("loaded");
        let mut together = book(false);
        let (place, _) = one_by_one.into_changes().shelves.remove(0);
        together
            .fold_closed_takes(&place.0, &place.1, -2)
            .expect("loaded");
        let changes = together.into_changes();
        let mut one_by_one = book(false);
        one_by_one.fold(&[id(1)]).expect("loaded");
        assert_eq!(changes.shelves, one_by_one.into_changes().shelves);
        assert!(changes.available.is_empty() && changes.updates.is_empty());
    }

    #[test]
    fn another_number_is_available_only_where_it_differs_from_what_was_loaded() {
        let mut folded = book(false);
        folded.fold(&[id(1)]).expect("loaded");
        let changes = folded.into_changes();
        assert_eq!((changes.shelves.len(), changes.available.len()), (1, 0));
        let mut rejected = book(false);
        assert_eq!(record(&mut rejected, 1, Outcome::Rejected), []);
        let changes = rejected.into_changes();
        assert_eq!((changes.shelves.len(), changes.available.len()), (1, 1));
    }
}
