//! The vendor's side: what its HTTP API does with its database.

use std::sync::Arc;
use std::time::Duration;

use diesel_async::AsyncConnection;

use super::shortcut::Shortcut;
use super::{Context, Error, TRANSACTION_DEADLINE};
use crate::domain::ids::{ProductId, VendorId};
use crate::domain::ledger::Request;
use crate::domain::vendor_api::{self, UpdatesResponse};
use crate::pg;
use crate::vendors::database::{self, Product};

/// Two requests with an id in common that concern no listed product are kept apart by the primary key alone; the second
/// one, begun again, finds what the first has recorded.
const ATTEMPTS_MAX: usize = 3;

/// How long after a take that is rejected, or known already, another one is likely. To find out that none is costs one
/// transaction that is undone, and the usual is what counts.
const UNUSUAL_FOR: Duration = Duration::from_secs(5);

/// How a vendor's API takes what it is asked for. Clones share it.
#[derive(Debug, Clone)]
pub struct Taking {
    /// One statement for takes that are new and that there is enough for, as nearly all are.
    at_once: Arc<Shortcut>,
}

impl Default for Taking {
    fn default() -> Self {
        Self {
            at_once: Arc::new(Shortcut::new(UNUSUAL_FOR)),
        }
    }
}

/// Applies updates, each id at most once, and answers for each.
///
/// # Errors
/// Nothing was recorded.
pub async fn apply(
    context: &Context,
    vendor_id: &VendorId,
    source: &str,
    requests: &[Request],
) -> Result<UpdatesResponse, Error> {
    let at_once = &context.vendor(vendor_id)?.taking.at_once;
    if at_once.is_open() && requests.iter().all(|request| request.reverses.is_none()) {
        if let Some(response) = take_at_once(context, vendor_id, source, requests).await? {
            return Ok(response);
        }
        at_once.was_in_vain();
    }
    for attempt in 1.. {
        match apply_once(context, vendor_id, source, requests).await {
            Err(Error::Database(error))
                if error.is_unique_violation() && attempt < ATTEMPTS_MAX => {}
            result => return result,
        }
    }
    unreachable!("the last attempt returns")
}

/// Applies takes of which each is new and has enough stock. Where one is not, nothing is recorded, and nothing returned.
async fn take_at_once(
    context: &Context,
    vendor_id: &VendorId,
    source: &str,
    takes: &[Request],
) -> Result<Option<UpdatesResponse>, Error> {
    let taken = with_vendor(context, vendor_id, async |connection| {
        connection
            .transaction(async |connection| {
                let taken = database::take_at_once(connection, source, takes).await?;
                Ok(taken.ok_or_else(pg::Error::undone)?)
            })
            .await
    })
    .await;
    match taken {
        Ok(mut ledger) => Ok(Some(vendor_api::handle(&mut ledger, takes))),
        Err(Error::Database(error)) if error.is_undone() || error.is_constraint_violation() => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn apply_once(
    context: &Context,
    vendor_id: &VendorId,
    source: &str,
    requests: &[Request],
) -> Result<UpdatesResponse, Error> {
    with_vendor(context, vendor_id, async |connection| {
        connection
            .transaction(async |connection| {
                let mut ledger = database::load_ledger_for_update(connection, requests).await?;
                let response = vendor_api::handle(&mut ledger, requests);
                database::save_ledger(connection, source, &ledger).await?;
                Ok(response)
            })
            .await
    })
    .await
}

/// Looks up what the vendor itself says of a product.
///
/// # Errors
/// The vendor does not list it, or cannot be asked.
pub async fn find_product(
    context: &Context,
    vendor_id: &VendorId,
    id: &ProductId,
) -> Result<Product, Error> {
    with_vendor(context, vendor_id, async |connection| {
        database::find_product(connection, id)
            .await?
            .ok_or_else(|| not_listed(vendor_id, id))
    })
    .await
}

/// Sets a product's name and stock at the vendor: a restock, or a new product. `matches` says whether the product, as it
/// stands, is what the caller believes; it is asked under the lock. Returns whether the product is new.
///
/// # Errors
/// It is not what the caller believes, and nothing was changed; or it may have been changed, and to repeat that would undo
/// what was sold since.
pub async fn put_product(
    context: &Context,
    vendor_id: &VendorId,
    product: &Product,
    matches: impl Fn(Option<&Product>) -> bool + Send + Sync,
) -> Result<bool, Error> {
    let id = ProductId::parse(product.id.as_str()).map_err(|error| Error::Refused {
        code: "validation_failed",
        detail: error.to_string(),
    })?;
    let mut is_begun = false;
    let put = with_vendor(context, vendor_id, async |connection| {
        is_begun = true;
        connection
            .transaction(async |connection| {
                let held = database::load_product_for_update(connection, &id).await?;
                if !matches(held.as_ref()) {
                    return Err(Error::Refused {
                        code: "precondition_failed",
                        detail: format!(
                            "product {id} of vendor {vendor_id} is not as If-Match or If-None-Match asks for; read it again"
                        ),
                    });
                }
                database::save_product(connection, product).await?;
                Ok(held.is_none())
            })
            .await
    })
    .await;
    put.map_err(|error| error.unsure_once(is_begun))
}

fn not_listed(vendor_id: &VendorId, id: &ProductId) -> Error {
    Error::Missing(format!("vendor {vendor_id} does not list product {id}"))
}

async fn with_vendor<T>(
    context: &Context,
    vendor_id: &VendorId,
    work: impl AsyncFnOnce(&mut diesel_async::AsyncPgConnection) -> Result<T, Error>,
) -> Result<T, Error> {
    let vendor = context.vendor(vendor_id)?;
    if !vendor.has_ledger {
        return Err(Error::Missing(format!(
            "vendor {vendor_id} has no ledger (vendors.{vendor_id}.ledger = false): its stock is not ours to show or change"
        )));
    }
    let pool: &pg::Pool = &vendor.database;
    super::with_deadline(TRANSACTION_DEADLINE, pool, async {
        let mut connection = pool.get().await?;
        work(&mut connection).await
    })
    .await
}
