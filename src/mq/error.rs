//! Why an operator's look at the broker failed.

use std::time::Duration;

use super::trouble::Trouble;

/// What went wrong, to which thing, and what to do about it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// No node of the broker could be connected to.
    #[error(
        "RabbitMQ at {address} cannot be reached: {reason}; check that it runs and rabbitmq.url"
    )]
    Unreachable {
        /// Host and port of the node tried last.
        address: String,
        /// What the attempt ended with.
        reason: String,
    },
    /// The connection broke in the middle of the work.
    #[error(
        "the connection to RabbitMQ at {address} was lost ({reason}); what was not removed is still in its queue"
    )]
    Lost {
        /// Host and port of the node.
        address: String,
        /// What the connection ended with.
        reason: String,
    },
    /// The broker did not answer in time.
    #[error("RabbitMQ did not answer within {0:?}; check the broker and try again")]
    Late(Duration),
    /// The queue is not there.
    #[error("queue {0} does not exist at the broker; it is declared when serve or work starts")]
    MissingQueue(String),
    /// Only dead-letter queues may be listed: listing counts as a delivery for each message held.
    #[error(
        "queue {0} is not a dead-letter queue, and listing another would disturb its consumers"
    )]
    NotDeadLetters(String),
    /// Somebody else holds messages of the queue: what is there cannot be told, nor in which order.
    #[error(
        "queue {0} is being looked at by another session, which holds its messages meanwhile; try again when that has ended"
    )]
    Busy(String),
    /// The message is not held by this session.
    #[error("that message is not held by this session any more; list the queue again")]
    NotHeld,
}

impl Error {
    pub(super) fn lost(address: &str, trouble: &Trouble) -> Error {
        Error::Lost {
            address: address.to_owned(),
            reason: trouble.to_string(),
        }
    }
}
