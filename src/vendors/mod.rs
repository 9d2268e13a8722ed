//! A vendor, from both sides of its door: its HTTP API as we call it, and its database as its API, our sync and our audit
//! read it.

pub mod catalogue;
pub mod client;
pub mod database;
pub mod ledger;
pub mod snapshot;

use diesel_migrations::{EmbeddedMigrations, embed_migrations};

/// The schema of a vendor's database.
pub const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/vendor");
