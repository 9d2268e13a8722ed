//! One change of one product's stock at one vendor, and when it counts towards what is available.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::{OrderId, ProductId, UpdateId, VendorId};

/// How far an update is known to have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[schema(as = OrderUpdateState)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The vendor has not answered for it.
    Open,
    /// The vendor has answered that it is applied; no sync has seen it yet.
    Acknowledged,
    /// Closed: the vendor's stock on hand, as we hold it, includes it.
    Applied,
    /// Closed: the vendor refused it.
    Rejected,
    /// Closed: a return reached the vendor before its take; neither has an effect.
    Void,
}

impl State {
    /// As stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Acknowledged => "acknowledged",
            Self::Applied => "applied",
            Self::Rejected => "rejected",
            Self::Void => "void",
        }
    }

    /// Reads [`State::as_str`] back.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "open" => Self::Open,
            "acknowledged" => Self::Acknowledged,
            "applied" => Self::Applied,
            "rejected" => Self::Rejected,
            "void" => Self::Void,
            _ => return None,
        })
    }

    /// Nothing will change it any more.
    #[must_use]
    pub fn is_closed(self) -> bool {
        matches!(self, Self::Applied | Self::Rejected | Self::Void)
    }
}

/// One signed change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Its name in the vendor's ledger.
    pub id: UpdateId,
    /// The order it belongs to.
    pub order_id: OrderId,
    /// Whose stock.
    pub vendor_id: VendorId,
    /// Which product.
    pub product_id: ProductId,
    /// Units; negative for a take, positive for a return.
    pub delta: i64,
    /// The take that a return gives back.
    pub reverses: Option<UpdateId>,
    /// How far it has come.
    pub state: State,
    /// Whether its effect has turned: a take's units are there again, or a return's have begun to count.
    pub turned: bool,
}

/// What has to be known of an update to close it as applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brief {
    /// The update.
    pub id: UpdateId,
    /// Which product.
    pub product_id: ProductId,
    /// Whether it takes stock, and does not return it.
    pub is_take: bool,
}

impl Update {
    /// What it adds to what is available. A take counts from the moment it is decided, until it comes to nothing. A
    /// return counts only once the vendor has acknowledged it: if it counted at once, a new take could reach the vendor
    /// before it and be refused there. Without a ledger nothing tells whether a snapshot already includes the return, so
    /// there it counts only by being closed.
    #[must_use]
    pub fn effect(&self) -> i64 {
        if (self.delta < 0) == self.turned {
            0
        } else {
            self.delta
        }
    }

    /// What it adds to `open_delta`: its effect, as long as the stock on hand does not include it.
    #[must_use]
    pub fn counted(&self) -> i64 {
        if self.state.is_closed() {
            0
        } else {
            self.effect()
        }
    }

    /// The same update, come to another state.
    #[must_use]
    pub fn come_to(self, state: State, vendor_has_ledger: bool) -> Self {
        let is_take = self.delta < 0;
        let turned = match state {
            State::Open => false,
            State::Acknowledged => !is_take && (vendor_has_ledger || self.turned),
            State::Applied => !is_take,
            State::Rejected | State::Void => is_take,
        };
        Self {
            state,
            turned,
            ..self
        }
    }
}

/// What the vendor's ledger holds for an update, and so what the vendor answers.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[schema(as = UpdateOutcome)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The stock was changed.
    Applied,
    /// There was not enough stock.
    Rejected,
    /// The take was returned before it arrived: neither has an effect.
    Void,
}

impl Outcome {
    /// As stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Rejected => "rejected",
            Self::Void => "void",
        }
    }

    /// Reads [`Outcome::as_str`] back.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "applied" => Self::Applied,
            "rejected" => Self::Rejected,
            "void" => Self::Void,
            _ => return None,
        })
    }
}
