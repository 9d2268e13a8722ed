//! Our own database, `ordersdb`: queries as free functions over a connection. Only `app` opens transactions; a function
//! whose name ends in `_for_update` locks what it returns, in the order that all flows share: vendor row, orders by id,
//! stock by (product, vendor), updates by id.

pub mod acceptors;
pub mod audit;
pub mod consumers;
pub mod dropped_letters;
pub mod events;
pub mod gauges;
pub mod keys;
pub mod movements;
pub mod orders;
pub mod outbox;
pub mod overview;
pub mod queue_rates;
pub mod stock;
pub mod suspects;
pub mod updates;
pub mod vendor_pushes;
pub mod vendors;
pub mod webhooks;

use diesel_async::{AsyncPgConnection, RunQueryDsl};
use diesel_migrations::{EmbeddedMigrations, embed_migrations};
use uuid::Uuid;

use crate::domain::ids::{IdError, ProductId, VendorId};
use crate::pg::{Error, prepared};

/// The schema of `ordersdb`. The old version runs on what a new one adds, so a migration adds only; the README has the
/// rules.
pub const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/orders");

/// Who this installation is in the vendors' ledgers.
///
/// # Errors
/// See [`Error`].
pub async fn installation_id(connection: &mut AsyncPgConnection) -> Result<Uuid, Error> {
    #[derive(diesel::QueryableByName)]
    struct Row {
        #[diesel(sql_type = diesel::sql_types::Uuid)]
        id: Uuid,
    }
    let row: Row = prepared(diesel::sql_query("SELECT id FROM installation"))
        .get_result(connection)
        .await?;
    Ok(row.id)
}

/// Writes a row, to see whether the server takes writes: one that is up but full or read-only does not.
///
/// # Errors
/// See [`Error`].
pub async fn probe(connection: &mut AsyncPgConnection) -> Result<(), Error> {
    prepared(diesel::sql_query(
        "UPDATE installation SET probed_at = now()",
    ))
    .execute(connection)
    .await?;
    Ok(())
}

/// What the schema's checks should have kept out.
fn corrupt(problem: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Refused(diesel::result::Error::DeserializationError(problem.into()))
}

fn product_id(text: String) -> Result<ProductId, Error> {
    ProductId::parse(text).map_err(|error: IdError| corrupt(error.to_string()))
}

fn vendor_id(text: String) -> Result<VendorId, Error> {
    VendorId::parse(text).map_err(|error: IdError| corrupt(error.to_string()))
}
