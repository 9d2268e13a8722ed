//! The vendor's side: what becomes of an update there, by its ledger and its stock. Each id is applied at most once.

use std::collections::BTreeMap;

use super::ids::{ProductId, UpdateId};
use super::update::Outcome;

/// An update as a vendor is asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its name in the ledger.
    pub id: UpdateId,
    /// Which product.
    pub product_id: ProductId,
    /// Units; negative takes, positive returns.
    pub delta: i64,
    /// The take that a return gives back; a return has one, a take has none.
    pub reverses: Option<UpdateId>,
}

/// A line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What was asked for.
    pub request: Request,
    /// What became of it.
    pub outcome: Outcome,
}

/// The answer for one update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// What the ledger holds for it, now or since an earlier request.
    Recorded(Outcome),
    /// The id was used for another product, delta or take; nothing was done.
    Conflict,
}

/// The part of a vendor's database that a request concerns, and what it has become.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    stock: BTreeMap<ProductId, i64>,
    entries: BTreeMap<UpdateId, Entry>,
    /// The return of each take that has one.
    returns: BTreeMap<UpdateId, UpdateId>,
    written: Vec<UpdateId>,
}

impl Ledger {
    /// The locked products, the entries of all ids that the requests name, and those of returns of the same takes.
    #[must_use]
    pub fn new(stock: BTreeMap<ProductId, i64>, entries: Vec<Entry>) -> Self {
        Self {
            stock,
            returns: entries
                .iter()
                .filter_map(|entry| Some((entry.request.reverses?, entry.request.id)))
                .collect(),
            entries: entries
                .into_iter()
                .map(|entry| (entry.request.id, entry))
                .collect(),
            written: Vec::new(),
        }
    }

    /// Handles one update: what the ledger holds is answered again; otherwise it is applied, rejected, or void.
    pub fn handle(&mut self, request: &Request) -> Reply {
        if let Some(entry) = self.entries.get(&request.id) {
            return if entry.request == *request {
                Reply::Recorded(entry.outcome)
            } else {
                Reply::Conflict
            };
        }
        let outcome = match request.reverses {
            None => self.take(request),
            // A take is returned once, whatever the return is called.
            Some(take) if self.returns.contains_key(&take) => return Reply::Conflict,
            Some(take) => match self.entries.get(&take) {
                Some(entry)
                    if entry.request.product_id != request.product_id
                        || entry.request.delta != -request.delta =>
                {
                    return Reply::Conflict;
                }
                Some(entry) if entry.outcome == Outcome::Applied => {
                    // A product that the vendor no longer lists has no stock to go back to.
                    if let Some(stock) = self.stock.get_mut(&request.product_id) {
                        *stock += request.delta;
                    }
                    Outcome::Applied
                }
                Some(_) => Outcome::Void,
                None => {
                    // The take has not arrived; should it, it must find that it was returned already.
                    self.write(
                        Request {
                            id: take,
                            product_id: request.product_id.clone(),
                            delta: -request.delta,
                            reverses: None,
                        },
                        Outcome::Void,
                    );
                    Outcome::Void
                }
            },
        };
        self.write(request.clone(), outcome);
        Reply::Recorded(outcome)
    }

    fn take(&mut self, request: &Request) -> Outcome {
        match self.stock.get_mut(&request.product_id) {
            Some(stock) if *stock + request.delta >= 0 => {
                *stock += request.delta;
                Outcome::Applied
            }
            _ => Outcome::Rejected,
        }
    }

    fn write(&mut self, request: Request, outcome: Outcome) {
        self.written.push(request.id);
        if let Some(take) = request.reverses {
            self.returns.insert(take, request.id);
        }
        self.entries.insert(request.id, Entry { request, outcome });
    }

    /// The stock of a product; 0 when the vendor does not list it.
    #[must_use]
    pub fn stock(&self, product: &ProductId) -> i64 {
        self.stock.get(product).copied().unwrap_or(0)
    }

    /// Whether the vendor lists the product.
    #[must_use]
    pub fn lists(&self, product: &ProductId) -> bool {
        self.stock.contains_key(product)
    }

    /// What was recorded for an update.
    #[must_use]
    pub fn outcome(&self, id: UpdateId) -> Option<Outcome> {
        self.entries.get(&id).map(|entry| entry.outcome)
    }

    /// The entries to insert, each take before its return.
    pub fn written(&self) -> impl Iterator<Item = &Entry> {
        self.written.iter().filter_map(|id| self.entries.get(id))
    }

    /// The stock as it is now, of all products that were loaded.
    pub fn stocks(&self) -> impl Iterator<Item = (&ProductId, i64)> {
        self.stock.iter().map(|(product, stock)| (product, *stock))
    }

    /// The vendor's own business: it sells or restocks a product.
    pub fn set_stock(&mut self, product: ProductId, stock: i64) {
        self.stock.insert(product, stock);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn p1() -> ProductId {
        ProductId::parse("p1").expect("valid")
    }

    fn take(id: u128, units: i64) -> Request {
        Request {
            id: UpdateId(Uuid::from_u128(id)),
            product_id: p1(),
            delta: -units,
            reverses: None,
        }
    }

    fn give_back(id: u128, of: u128, units: i64) -> Request {
        Request {
            id: UpdateId(Uuid::from_u128(id)),
            product_id: p1(),
            delta: units,
            reverses: Some(UpdateId(Uuid::from_u128(of))),
        }
    }

    fn ledger(stock: i64) -> Ledger {
        Ledger::new(BTreeMap::from([(p1(), stock)]), vec![])
    }

    #[test]
    fn an_update_is_applied_once_and_its_outcome_remembered() {
        let mut ledger = ledger(3);
        assert_eq!(
            ledger.handle(&take(1, 2)),
            Reply::Recorded(Outcome::Applied)
        );
        assert_eq!(
            ledger.handle(&take(1, 2)),
            Reply::Recorded(Outcome::Applied)
        );
        assert_eq!(ledger.stock(&p1()), 1);
        assert_eq!(
            ledger.handle(&take(2, 2)),
            Reply::Recorded(Outcome::Rejected)
        );
        ledger.set_stock(p1(), 100);
        assert_eq!(
            ledger.handle(&take(2, 2)),
            Reply::Recorded(Outcome::Rejected)
        );
        assert_eq!(ledger.stock(&p1()), 100);
    }

    #[test]
    fn an_id_means_one_update_for_ever() {
        let mut ledger = ledger(3);
        ledger.handle(&take(1, 2));
        assert_eq!(ledger.handle(&take(1, 1)), Reply::Conflict);
        assert_eq!(ledger.handle(&give_back(2, 1, 1)), Reply::Conflict);
        assert_eq!(ledger.stock(&p1()), 1);
    }

    #[test]
    fn a_return_gives_back_only_what_was_applied() {
        let mut ledger = ledger(3);
        ledger.handle(&take(1, 2));
        assert_eq!(
            ledger.handle(&give_back(2, 1, 2)),
            Reply::Recorded(Outcome::Applied)
        );
        assert_eq!(ledger.stock(&p1()), 3);
        ledger.handle(&take(3, 9));
        assert_eq!(
            ledger.handle(&give_back(4, 3, 9)),
            Reply::Recorded(Outcome::Void)
        );
        assert_eq!(ledger.stock(&p1()), 3);
    }

    #[test]
    fn a_take_is_returned_once() {
        let mut ledger = ledger(3);
        ledger.handle(&take(1, 2));
        ledger.handle(&give_back(2, 1, 2));
        assert_eq!(ledger.handle(&give_back(3, 1, 2)), Reply::Conflict);
        assert_eq!(
            ledger.handle(&give_back(2, 1, 2)),
            Reply::Recorded(Outcome::Applied)
        );
        assert_eq!(ledger.stock(&p1()), 3);
    }

    #[test]
    fn a_return_that_overtakes_its_take_voids_both() {
        let mut ledger = ledger(3);
        assert_eq!(
            ledger.handle(&give_back(2, 1, 2)),
            Reply::Recorded(Outcome::Void)
        );
        assert_eq!(ledger.handle(&take(1, 2)), Reply::Recorded(Outcome::Void));
        assert_eq!(ledger.stock(&p1()), 3);
        assert_eq!(ledger.written().count(), 2);
    }
}
