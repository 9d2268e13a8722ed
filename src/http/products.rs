//! `/products`: the aggregated view.

use actix_web::web::{Data, Path};
use actix_web::{HttpRequest, HttpResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::query::read_query;
use super::{State, limit, product_id};
use crate::db;
use crate::db::stock::Shown;
use crate::domain::ids::ProductId;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProductResponse {
    id: String,
    name: String,
    available: i64,
    shortfall: i64,
    vendors: Vec<AtVendor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AtVendor {
    vendor_id: String,
    name: String,
    on_hand: i64,
    open: i64,
    available: i64,
    shortfall: i64,
    last_sync_at: Option<DateTime<Utc>>,
}

/// Groups rows, sorted by product and vendor, into products. A product's own name is that of its first vendor by id.
fn products(rows: Vec<Shown>) -> Vec<ProductResponse> {
    let mut products: Vec<ProductResponse> = Vec::new();
    for row in rows {
        // A vendor that sold what we had taken has nothing to give, and takes nothing from what the others have: what it
        // is short of is shown apart, and what another has does not make up for it.
        let left = row.on_hand + row.open_delta;
        let at_vendor = AtVendor {
            vendor_id: row.vendor_id,
            name: row.name.clone(),
            on_hand: row.on_hand,
            open: row.open_delta,
            available: left.max(0),
            shortfall: (-left).max(0),
            last_sync_at: row.last_sync_at,
        };
        match products.last_mut() {
            Some(product) if product.id == row.product_id => {
                product.available += at_vendor.available;
                product.shortfall += at_vendor.shortfall;
                product.vendors.push(at_vendor);
            }
            _ => products.push(ProductResponse {
                id: row.product_id,
                name: row.name,
                available: at_vendor.available,
                shortfall: at_vendor.shortfall,
                vendors: vec![at_vendor],
            }),
        }
    }
    products
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListQuery {
    limit: Option<i64>,
    cursor: Option<ProductId>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListResponse {
    products: Vec<ProductResponse>,
    next_cursor: Option<String>,
}

/// `GET /products`
pub(super) async fn list(
    request: HttpRequest,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let query: ListQuery = read_query(&request)?;
    let limit = limit(query.limit)?;
    let rows = state
        .context
        .with_connection(async |connection| {
            Ok(db::stock::list_products(connection, query.cursor.as_ref(), limit + 1).await?)
        })
        .await?;
    let mut products = products(rows);
    let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
    let has_more = products.len() > wanted;
    products.truncate(wanted);
    let next_cursor = products
        .last()
        .filter(|_| has_more)
        .map(|product| product.id.clone());
    Ok(HttpResponse::Ok().json(ListResponse {
        products,
        next_cursor,
    }))
}

/// `GET /products/{id}`
pub(super) async fn show(id: Path<String>, state: Data<State>) -> Result<HttpResponse, Problem> {
    let id = product_id(&id)?;
    let rows = state
        .context
        .with_connection(async |connection| Ok(db::stock::find_product(connection, &id).await?))
        .await?;
    match products(rows).into_iter().next() {
        Some(product) => Ok(HttpResponse::Ok().json(product)),
        None => Err(Problem::not_found(format!(
            "no vendor has ever listed product {id}"
        ))),
    }
}
