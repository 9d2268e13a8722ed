//! What a use case can fail with, and the one classification from which HTTP derives a status, a consumer its verdict
//! and `main` the exit code.

use std::time::Duration;

use crate::domain::book::BookError;
use crate::mq;
use crate::pg;
use crate::vendors::client;

/// An error of a use case.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Ours or a vendor's PostgreSQL.
    #[error(transparent)]
    Database(#[from] pg::Error),
    /// A vendor's HTTP API.
    #[error(transparent)]
    Vendor(#[from] client::Error),
    /// A vendor's database failed: its own trouble, not ours.
    #[error("{0}")]
    VendorDatabase(String),
    /// RabbitMQ.
    #[error("{0}")]
    Broker(String),
    /// A rule was asked for what cannot be.
    #[error(transparent)]
    Rule(#[from] BookError),
    /// What was asked for does not exist.
    #[error("{0}")]
    Missing(String),
    /// The request contradicts the state of things.
    #[error("{detail}")]
    Refused {
        /// A stable code.
        code: &'static str,
        /// For a person.
        detail: String,
    },
    /// It ended by a panic.
    #[error("a use case broke: {0}")]
    Broken(String),
    /// It may succeed later.
    #[error("{0}")]
    NotYet(String),
    /// It may have been done: the answer to it was lost, and to repeat it would do it again.
    #[error("{0}")]
    Unsure(String),
}

/// What an error means to whoever handles it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The caller's to mend: repeating the same cannot help.
    Refused,
    /// There is no such thing.
    Missing,
    /// Our own PostgreSQL or RabbitMQ cannot be reached: nobody's attempt.
    Unavailable,
    /// May pass: worth a retry of this one thing.
    Transient,
    /// A contradiction: ours to mend.
    Bug,
}

impl Error {
    /// The classification.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Database(error) if error.is_unavailable() => Kind::Unavailable,
            Self::Database(error) if error.is_constraint_violation() => Kind::Bug,
            Self::Database(_) | Self::Vendor(_) | Self::VendorDatabase(_) | Self::NotYet(_) => {
                Kind::Transient
            }
            Self::Broker(_) | Self::Unsure(_) => Kind::Unavailable,
            Self::Rule(BookError::Illegal { .. }) | Self::Refused { .. } => Kind::Refused,
            Self::Rule(BookError::NotLoaded(_)) | Self::Broken(_) => Kind::Bug,
            Self::Missing(_) => Kind::Missing,
        }
    }
}

impl Error {
    /// Which kind of failure it is, in a word that anybody may read: the rest of it (hosts, statements, versions) is for the
    /// log.
    #[must_use]
    pub fn code(&self) -> String {
        match self {
            Self::Database(error) if error.is_unavailable() => {
                "own_database_unavailable".to_owned()
            }
            Self::Unsure(_) => "own_database_unavailable".to_owned(),
            Self::Database(_) => "own_database_refused".to_owned(),
            Self::VendorDatabase(_) => "database_unavailable".to_owned(),
            Self::Vendor(client::Error::Unreachable { .. }) => "api_unreachable".to_owned(),
            Self::Vendor(client::Error::Status { status, .. }) => format!("api_answered_{status}"),
            Self::Vendor(client::Error::Nonsense { .. }) => "api_answered_nonsense".to_owned(),
            Self::Broker(_) => "broker_unavailable".to_owned(),
            Self::Refused { code, .. } => (*code).to_owned(),
            Self::NotYet(_) => "not_yet".to_owned(),
            Self::Missing(_) => "missing".to_owned(),
            Self::Rule(_) | Self::Broken(_) => "internal".to_owned(),
        }
    }

    /// Whether a vendor is down, or overloaded: that says nothing about what it was sent. Another 5xx may be what it was
    /// sent.
    #[must_use]
    pub fn is_vendor_down(&self) -> bool {
        match self {
            Self::Vendor(client::Error::Unreachable { .. }) => true,
            Self::Vendor(client::Error::Status { status, .. }) => {
                matches!(status, 429 | 502 | 503 | 504)
            }
            _ => false,
        }
    }

    /// How long a vendor asks not to be called, where it does.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Vendor(client::Error::Status { retry_after, .. }) => *retry_after,
            _ => None,
        }
    }
}

impl Error {
    /// The error of what must not be repeated blindly: once it is begun, what was lost may be the answer to its commit.
    pub(super) fn unsure_once(self, is_begun: bool) -> Self {
        match self.kind() {
            Kind::Unavailable if is_begun => Self::Unsure(self.to_string()),
            _ => self,
        }
    }
}

impl From<diesel::result::Error> for Error {
    fn from(error: diesel::result::Error) -> Self {
        Self::Database(error.into())
    }
}

impl From<mq::Error> for Error {
    fn from(error: mq::Error) -> Self {
        match error {
            mq::Error::Busy(_) => Self::NotYet(error.to_string()),
            _ => Self::Broker(error.to_string()),
        }
    }
}
