//! `/products`: the aggregated view.

use actix_web::web::{Data, Path};
use actix_web::{HttpRequest, HttpResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::answer;
use super::problem::Problem;
use super::query::read_query;
use super::{State, limit, product_id};
use crate::app::Context;
use crate::db;
use crate::db::stock::{Filter, Shown};
use crate::domain::ids::{ProductId, VendorId};

/// A product, over all its vendors.
#[derive(Clone, Serialize, ToSchema)]
#[schema(as = Product)]
#[serde(rename_all = "camelCase")]
struct ProductResponse {
    id: String,
    /// That of its first vendor by id.
    name: String,
    /// Units that can be ordered now.
    available: i64,
    /// Units that vendors lack of what we had taken when they sold it themselves.
    shortfall: i64,
    vendors: Vec<AtVendor>,
}

/// A product at one vendor.
#[derive(Clone, Serialize, ToSchema)]
#[schema(as = ProductAtVendor)]
#[serde(rename_all = "camelCase")]
struct AtVendor {
    vendor_id: String,
    name: String,
    /// What the vendor's database said at the last sync.
    on_hand: i64,
    /// The sum of our changes that `onHand` does not include yet.
    open: i64,
    available: i64,
    shortfall: i64,
    #[schema(required = true)]
    last_sync_at: Option<DateTime<Utc>>,
}

/// What matters of products: all but when they were looked at, which every sync changes.
fn version_of(products: &[ProductResponse]) -> Vec<ProductResponse> {
    let mut products = products.to_vec();
    for at_vendor in products.iter_mut().flat_map(|product| &mut product.vendors) {
        at_vendor.last_sync_at = None;
    }
    products
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

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListQuery {
    /// Only products with this in their id or in a name of theirs, in upper or lower case.
    #[param(min_length = 1, max_length = 100)]
    q: Option<String>,
    /// Only products that this vendor has listed.
    vendor: Option<VendorId>,
    /// Only products that are available, or that are not; with `vendor`, at that vendor.
    in_stock: Option<bool>,
    /// Items of one page.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<i64>,
    /// The `nextCursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<ProductId>,
}

/// The longest text that is searched for, in characters.
const Q_CHARS_MAX: usize = 100;

impl ListQuery {
    fn filter(self, context: &Context) -> Result<Filter, Problem> {
        if let Some(q) = &self.q
            && (q.is_empty() || q.chars().count() > Q_CHARS_MAX || q.contains('\0'))
        {
            let detail = format!("must be 1 to {Q_CHARS_MAX} characters, without U+0000");
            return Err(Problem::invalid_parameter("q", detail));
        }
        if let Some(vendor) = &self.vendor
            && !context.vendors.contains_key(vendor)
        {
            let detail = "no vendor of that id is configured; GET /vendors lists them";
            return Err(Problem::invalid_parameter("vendor", detail));
        }
        Ok(Filter {
            vendors: context.vendor_ids(),
            vendor: self.vendor,
            text: self.q,
            in_stock: self.in_stock,
            after: self.cursor,
        })
    }
}

/// A page of products.
#[derive(Serialize, ToSchema)]
#[schema(as = ProductPage)]
#[serde(rename_all = "camelCase")]
struct ListResponse {
    products: Vec<ProductResponse>,
    /// Where the next page begins, if there may be one.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// Products, by id
///
/// With a filter, a page reads the next 20 000 rows (a product at a vendor) at most: it may be short or empty, and `nextCursor` goes
/// on behind them.
#[utoipa::path(
    get, path = "/products", tag = "products",
    params(ListQuery, ("If-None-Match" = Option<String>, Header, description = "The ETag of what you have; a sync that finds everything as it was does not change it")),
    responses((status = 304, description = "You have it"), (status = 200, description = "A page", headers(
        ("ETag" = String, description = "Its version"),
        ("Link" = Option<String>, description = "`<…>; rel=\"next\"`, if there may be a next page"),
    ), body = ListResponse, example = json!({"products": [{
        "id": "p2", "name": "Product 2", "available": 20, "shortfall": 0, "vendors": [
            {"vendorId": "vendorA", "name": "Product 2", "onHand": 15, "open": 0, "available": 15, "shortfall": 0, "lastSyncAt": "2026-11-26T01:42:15.714631Z"},
            {"vendorId": "vendorB", "name": "Product 2", "onHand": 5, "open": 0, "available": 5, "shortfall": 0, "lastSyncAt": "2026-11-26T01:42:15.715971Z"}]}],
        "nextCursor": null})))
)]
pub(super) async fn list(
    request: HttpRequest,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let query: ListQuery = read_query(&request)?;
    let limit = limit(query.limit)?;
    let filter = query.filter(&state.context)?;
    let page = state
        .context
        .with_connection(async |connection| {
            Ok(db::stock::list_products(connection, &filter, limit).await?)
        })
        .await?;
    let list = ListResponse {
        products: products(page.rows),
        next_cursor: page.next.map(|last| last.to_string()),
    };
    let version_of = (version_of(&list.products), &list.next_cursor);
    let mut answer = answer::versioned(&request, &list, &version_of)?;
    answer::link_next(&request, &mut answer, list.next_cursor.as_deref());
    Ok(answer)
}

/// One product
///
/// What is available of it, and at which vendors.
#[utoipa::path(
    get, path = "/products/{id}", tag = "products",
    params(("id" = ProductId, Path, description = "The product's id"),
        ("If-None-Match" = Option<String>, Header, description = "The ETag of what you have")),
    responses((status = 304, description = "You have it"), (status = 200, description = "The product",
        headers(("ETag" = String, description = "Its version")), body = ProductResponse, example = json!({
        "id": "p1", "name": "Product 1", "available": 10, "shortfall": 0, "vendors": [
            {"vendorId": "vendorA", "name": "Product 1", "onHand": 10, "open": 0, "available": 10, "shortfall": 0, "lastSyncAt": "2026-11-26T01:42:15.714631Z"}]})))
)]
pub(super) async fn show(
    request: HttpRequest,
    id: Path<String>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let id = product_id(&id)?;
    let vendors = state.context.vendor_ids();
    let rows = state
        .context
        .with_connection(async |connection| {
            Ok(db::stock::find_product(connection, &vendors, &id).await?)
        })
        .await?;
    match products(rows).into_iter().next() {
        Some(product) => {
            let version_of = version_of(std::slice::from_ref(&product));
            answer::versioned(&request, &product, &version_of)
        }
        None => Err(Problem::not_found(format!(
            "no vendor has ever listed product {id}"
        ))),
    }
}
