//! Plumbing of every PostgreSQL edge, ours and the vendors': connecting with deadlines, pooling, errors, prepared
//! statements and migrations. It knows no table.

mod error;
mod long_read;
mod migrate;
mod pool;
mod prepared;
mod row_hash;
mod snapshot;

pub use error::Error;
pub use long_read::{LONG_READ_DEADLINE, open_long_read};
pub use migrate::{LOCK_DEADLINE, MigrateError, Migrated, Schema, migrate, schema};
pub use pool::{Connection, Pool, Settings, connect, discard};
pub use prepared::{Prepared, prepared};
pub use row_hash::{
    BLOCK_RANGES_SINCE, HashedColumns, Hashes, ROW_HASH_SINCE, fits_in_buffers, regclass,
};
pub use snapshot::snapshot;
