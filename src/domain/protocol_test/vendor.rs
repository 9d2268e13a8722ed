//! A vendor in memory: its stock, its ledger, and its own business.

use std::collections::BTreeMap;

use super::Ways;
use crate::domain::book::Answer;
use crate::domain::ids::{ProductId, UpdateId};
use crate::domain::ledger::{Entry, Ledger, Reply, Request};
use crate::domain::update::Outcome;

/// A vendor's database.
#[derive(Clone, Default)]
pub(super) struct Vendor {
    /// What it lists.
    pub(super) stock: BTreeMap<ProductId, i64>,
    entries: BTreeMap<UpdateId, Entry>,
    /// What the vendor itself added or took, per product.
    pub(super) own: BTreeMap<ProductId, i64>,
}

impl Vendor {
    pub(super) fn listing(stock: BTreeMap<ProductId, i64>) -> Self {
        Self {
            stock,
            ..Self::default()
        }
    }

    /// Handles updates as its API does.
    pub(super) fn handle(
        &mut self,
        requests: &[Request],
        ways: Ways,
    ) -> Result<Vec<Answer>, String> {
        if !ways.ledger_remembers {
            for request in requests {
                self.entries.remove(&request.id);
            }
        }
        let mut ledger = Ledger::new(self.stock.clone(), self.entries.values().cloned().collect());
        let mut answers = Vec::new();
        for request in requests {
            match ledger.handle(request) {
                Reply::Recorded(outcome) => answers.push(Answer {
                    id: request.id,
                    outcome,
                }),
                Reply::Conflict => return Err(format!("{request:?} was sent with two contents")),
            }
        }
        for entry in ledger.written() {
            // A product that is no longer listed has no stock for what comes back.
            let applied = entry.outcome == Outcome::Applied;
            if applied && !ledger.lists(&entry.request.product_id) {
                *self
                    .own
                    .entry(entry.request.product_id.clone())
                    .or_default() -= entry.request.delta;
            }
            self.entries.insert(entry.request.id, entry.clone());
        }
        self.stock = ledger.stocks().map(|(p, s)| (p.clone(), s)).collect();
        Ok(answers)
    }

    /// Whether its ledger has an update as applied.
    pub(super) fn applied(&self, id: UpdateId) -> bool {
        self.entries
            .get(&id)
            .is_some_and(|entry| entry.outcome == Outcome::Applied)
    }

    /// Sells elsewhere (below 0) or restocks. Returns whether there was enough to sell.
    pub(super) fn changes(&mut self, product: &ProductId, units: i64) -> bool {
        let Some(stock) = self.stock.get_mut(product).filter(|s| **s + units >= 0) else {
            return false;
        };
        *stock += units;
        *self.own.entry(product.clone()).or_default() += units;
        true
    }

    /// Lists a product no longer, or again, with nothing in stock.
    pub(super) fn toggles(&mut self, product: &ProductId) {
        match self.stock.remove(product) {
            Some(stock) => *self.own.entry(product.clone()).or_default() -= stock,
            None => {
                self.stock.insert(product.clone(), 0);
            }
        }
    }
}
