//! Plumbing of every PostgreSQL edge, ours and the vendors': connecting with deadlines, pooling, errors, prepared
//! statements and migrations. It knows no table.

mod error;
mod migrate;
mod pool;
mod prepared;

pub use error::Error;
pub use migrate::{migrate, pending_migrations};
pub use pool::{Connection, Pool, Settings, connect, discard};
pub use prepared::{Prepared, prepared};
