//! Why a connection could not be made, or came to its end.

/// AMQP's reply code for a queue that does not exist.
pub(super) const NOT_FOUND: u16 = 404;
/// AMQP's reply code for a queue that is another connection's alone.
pub(super) const RESOURCE_LOCKED: u16 = 405;
/// AMQP's reply code for a declaration that differs from what exists.
pub(super) const PRECONDITION_FAILED: u16 = 406;

/// Why a connection could not be made or came to its end.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum Trouble {
    /// It can be tried again soon.
    #[error("{0}")]
    Lost(String),
    /// A queue was deleted under us.
    #[error("{0}")]
    QueueGone(String),
    /// Only a person can put it right.
    #[error("{0}")]
    Misdeclared(String),
}

impl From<amiquip::Error> for Trouble {
    fn from(error: amiquip::Error) -> Trouble {
        Trouble::Lost(error.to_string())
    }
}
