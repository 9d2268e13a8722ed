//! RabbitMQ: the queues, publishing with confirms, consuming, and the dead letters.
//!
//! This is the only place that names amiquip. amiquip blocks and does not recover, so one thread owns
//! each connection, reconnects it, and talks to async code through bounded channels and shared state
//! that stays correct whatever that thread is doing (`publisher`, `consumer`, `dead_letters`).
//!
//! What was read in amiquip 0.4.2 and shapes everything here:
//! - Its calls have no deadline, and so have its `Drop`s. `wire` cuts the socket under a thread that is
//!   stuck in one, which makes every such call return.
//! - A broken connection shows as a closed listener; the reason is told only by closing the connection.
//! - Listeners are unbounded queues, so what may be outstanding is bounded here: publishes by count and
//!   bytes, deliveries by the prefetch.
//! - What it cannot read ends the connection, also what another producer has written. `legible` mends it first.
//! - Its I/O thread may panic while a connection is being closed by the broker. That is seen as a lost
//!   connection, which needs `panic = "unwind"`.

mod address;
mod consumer;
mod dead_letters;
mod depths;
mod error;
mod legible;
mod link;
mod message;
mod publisher;
mod queues;
mod topology;
mod trouble;
mod wire;

pub use consumer::{Beat, Consumer, Pulse};
pub use dead_letters::DeadLetters;
pub use depths::{Depth, depths};
pub use error::Error;
pub use link::Link;
pub use message::{Delivery, HeaderValue, Headers, Message, Tag};
pub use publisher::{PublishError, Publisher};
pub use queues::{Queue, QueueType, Settings};
pub use topology::arguments;
