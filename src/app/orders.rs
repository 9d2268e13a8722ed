//! Orders as they are read: with what was taken for them, all of it as it was at one moment.

use std::collections::BTreeMap;

use diesel_async::AsyncPgConnection;

use super::{Context, Error};
use crate::db;
use crate::db::orders::{Filter, Order};
use crate::db::updates::Shown;
use crate::domain::history::Entry;
use crate::domain::ids::OrderId;
use crate::domain::keys::Caller;
use crate::pg::snapshot;

/// Events of one order that are read beside what follows from its row and its updates: each is a person's act, or a
/// failure, so they are few.
const EVENTS_MAX: i64 = 200;

/// An order, and every change of stock that it caused.
#[derive(Debug, Clone)]
pub struct WithUpdates {
    /// The order.
    pub order: Order,
    /// In the order of their times.
    pub updates: Vec<Shown>,
}

/// A page of orders.
pub struct Page {
    /// At most as many as were asked for.
    pub orders: Vec<WithUpdates>,
    /// Where the next page begins, when there may be one: after this order.
    pub next: Option<db::orders::Place>,
}

/// One that a caller sees, with what no column of it keeps.
///
/// # Errors
/// See [`Error`].
pub async fn find(
    context: &Context,
    id: OrderId,
    caller: &Caller,
) -> Result<Option<(WithUpdates, Vec<Entry>)>, Error> {
    let reading = context.with_connection(async |connection| {
        snapshot(connection)
            .run(async |connection| {
                let found = db::orders::find_all(connection, &[id]).await?.pop();
                let Some(order) = found.filter(|order| caller.sees(&order.request.caller)) else {
                    return Ok(None);
                };
                let updates = db::updates::list_shown(connection, &[id]).await?;
                let events = db::orders::list_events(connection, id, EVENTS_MAX).await?;
                Ok(Some((WithUpdates { order, updates }, events)))
            })
            .await
    });
    reading.await
}

/// Those that exist, whoever's they are.
///
/// # Errors
/// See [`Error`].
pub async fn find_all(context: &Context, ids: &[OrderId]) -> Result<Vec<WithUpdates>, Error> {
    let reading = context.with_connection(async |connection| {
        snapshot(connection)
            .run(async |connection| {
                let orders = db::orders::find_all(connection, ids).await?;
                with_updates(connection, orders).await
            })
            .await
    });
    reading.await
}

/// A page of those that a filter lets through, the newest first.
///
/// # Errors
/// See [`Error`].
pub async fn list(context: &Context, filter: &Filter, limit: i64) -> Result<Page, Error> {
    let reading = context.with_connection(async |connection| {
        snapshot(connection)
            .run(async |connection| {
                let page = db::orders::list(connection, filter, limit).await?;
                let next = page.next;
                let orders = with_updates(connection, page.orders).await?;
                Ok(Page { orders, next })
            })
            .await
    });
    reading.await
}

async fn with_updates(
    connection: &mut AsyncPgConnection,
    orders: Vec<Order>,
) -> Result<Vec<WithUpdates>, Error> {
    let ids: Vec<OrderId> = orders.iter().map(|order| order.request.id).collect();
    let mut of_orders: BTreeMap<OrderId, Vec<Shown>> = BTreeMap::new();
    for shown in db::updates::list_shown(connection, &ids).await? {
        let order = shown.timed.update.order_id;
        of_orders.entry(order).or_default().push(shown);
    }
    let each = orders.into_iter().map(|order| {
        let updates = of_orders.remove(&order.request.id).unwrap_or_default();
        WithUpdates { order, updates }
    });
    Ok(each.collect())
}
