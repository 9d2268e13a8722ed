//! Cancels an order and returns exactly what was taken for it.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use diesel_async::{AsyncConnection, AsyncPgConnection};

use super::save::save;
use super::{Context, Error, TRANSACTION_DEADLINE, new_update_id, with_deadline};
use crate::db;
use crate::db::outbox::Waiting;
use crate::domain::ids::{OrderId, ProductId};
use crate::domain::keys::Caller;
use crate::domain::order::Status;
use crate::metrics::{DECIDING, Decision};

/// Cancels a caller's order that is pending, failed or confirmed; one that is cancelled already stays so. Returns what has to
/// leave for the broker.
///
/// # Errors
/// The caller has no such order, or it was rejected.
pub async fn cancel(
    context: &Context,
    id: OrderId,
    caller: &Caller,
    now: DateTime<Utc>,
) -> Result<Vec<Waiting>, Error> {
    let cancelled = with_deadline(TRANSACTION_DEADLINE, &context.database, async {
        let mut connection = context.database.get().await?;
        connection
            .transaction(async |connection| transact(context, connection, id, caller, now).await)
            .await
    })
    .await?;
    if cancelled.is_some() {
        DECIDING.decided.of(Decision::CancelledByCaller).inc();
    }
    Ok(cancelled.unwrap_or_default())
}

/// Returns nothing where the order was cancelled before.
async fn transact(
    context: &Context,
    connection: &mut AsyncPgConnection,
    id: OrderId,
    caller: &Caller,
    now: DateTime<Utc>,
) -> Result<Option<Vec<Waiting>>, Error> {
    let mut book = context.book();
    let unknown = || Error::Missing(format!("there is no order {id}"));
    if let Some(name) = caller.only_its_own()
        && !db::orders::belongs_to(connection, id, name).await?
    {
        return Err(unknown());
    }
    let status = match db::orders::load_for_update(connection, &[id])
        .await?
        .first()
    {
        None => return Err(unknown()),
        Some((_, Status::Cancelled, _)) => return Ok(None),
        Some((_, Status::Rejected, _)) => {
            return Err(Error::Refused {
                code: "not_cancellable",
                detail: "the order was rejected: nothing was taken for it".into(),
            });
        }
        Some((_, status, _)) => *status,
    };
    book.load_order(id, status);
    load_updates_of(connection, &mut book, &[id], &[]).await?;
    book.cancel(id, None, &mut new_update_id)?;
    Ok(Some(save(connection, &book.into_changes(), now).await?))
}

/// Loads the updates of locked orders into the book, and their stock at all vendors, locked before them: whoever
/// changes updates holds their stock. `also` are further updates to load, with their counterparts.
pub(super) async fn load_updates_of(
    connection: &mut AsyncPgConnection,
    book: &mut crate::domain::book::Book,
    orders: &[OrderId],
    also: &[crate::domain::update::Update],
) -> Result<(), Error> {
    let of_orders = db::updates::list_of_orders(connection, orders).await?;
    let products: BTreeSet<ProductId> = of_orders
        .iter()
        .chain(also)
        .map(|u| u.product_id.clone())
        .collect();
    let products: Vec<ProductId> = products.into_iter().collect();
    for ((product_id, vendor_id), shelf) in
        db::stock::load_for_update(connection, &products).await?
    {
        book.load_shelf(product_id, vendor_id, shelf);
    }
    let ids: Vec<_> = of_orders.iter().chain(also).map(|u| u.id).collect();
    for update in db::updates::load_with_counterparts_for_update(connection, &ids).await? {
        book.load_update(update);
    }
    Ok(())
}
