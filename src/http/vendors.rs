//! `/vendors`: the vendors, and the API that a vendor offers for its own stock.

use actix_web::http::header::{ETAG, IF_MATCH};
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::body::read_json;
use super::problem::Problem;
use super::{BODY_BYTES_MAX, State, UPDATES_BODY_BYTES_MAX, detached, product_id, vendor_id};
use crate::app::vendor_stock;
use crate::db;
use crate::domain::listing::{NAME_CHARS_MAX, STOCK_MAX};
use crate::domain::order::Invalid;
use crate::domain::vendor_api::UpdatesRequest;
use crate::vendors::database::Product;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VendorResponse {
    id: String,
    ledger: bool,
    last_sync_at: Option<DateTime<Utc>>,
    last_sync_error: Option<String>,
    open_updates: i64,
    /// `ok`, `open` or `probing`; absent until it was first told of something.
    push_state: Option<String>,
    push_state_since: Option<DateTime<Utc>>,
    last_push_error: Option<String>,
}

#[derive(Serialize)]
struct ListResponse {
    vendors: Vec<VendorResponse>,
}

/// `GET /vendors`
pub(super) async fn list(state: Data<State>) -> Result<HttpResponse, Problem> {
    let (rows, pushes) = state
        .context
        .with_connection(async |connection| {
            Ok((
                db::vendors::list(connection).await?,
                db::vendor_pushes::list(connection).await?,
            ))
        })
        .await?;
    let vendors = state
        .context
        .vendors
        .iter()
        .map(|(id, vendor)| {
            let row = rows.iter().find(|row| row.id == id.as_str());
            let push = pushes.iter().find(|push| push.vendor_id == id.as_str());
            VendorResponse {
                id: id.to_string(),
                ledger: vendor.has_ledger,
                last_sync_at: row.and_then(|row| row.last_sync_at),
                last_sync_error: row.and_then(|row| row.last_sync_error.clone()),
                open_updates: row.map_or(0, |row| row.open_updates),
                push_state: push.map(|push| push.state.clone()),
                push_state_since: push.map(|push| push.since),
                last_push_error: push.and_then(|push| push.error.clone()),
            }
        })
        .collect();
    Ok(HttpResponse::Ok().json(ListResponse { vendors }))
}

/// `POST /vendors/{vendor}/stock-updates`
pub(super) async fn apply_updates(
    request: HttpRequest,
    payload: Payload,
    path: Path<String>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let vendor_id = vendor_id(&path)?;
    let body: UpdatesRequest = read_json(&request, payload, UPDATES_BODY_BYTES_MAX).await?;
    let (source, requests) = body.parse().map_err(Problem::invalid_fields)?;
    let context = state.context.clone();
    let response =
        detached(
            async move { vendor_stock::apply(&context, &vendor_id, &source, &requests).await },
        )
        .await?;
    Ok(HttpResponse::Ok().json(response))
}

#[derive(Serialize)]
struct ProductResponse {
    id: String,
    name: String,
    stock: i64,
}

fn product_response(
    mut response: actix_web::HttpResponseBuilder,
    product: Product,
) -> HttpResponse {
    response
        .insert_header((ETAG, version(&product)))
        .json(ProductResponse {
            id: product.id,
            name: product.name,
            stock: product.stock,
        })
}

/// A product's version is its content: the same name and stock are the same version.
fn version(product: &Product) -> String {
    let content = format!("{}\0{}\0{}", product.id, product.stock, product.name);
    format!(
        "\"{}\"",
        Uuid::new_v5(&Uuid::NAMESPACE_OID, content.as_bytes()).simple()
    )
}

/// `GET /vendors/{vendor}/products/{id}`
pub(super) async fn show_product(
    path: Path<(String, String)>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let (vendor_id, product_id) = (vendor_id(&path.0)?, product_id(&path.1)?);
    let product = vendor_stock::find_product(&state.context, &vendor_id, &product_id).await?;
    Ok(product_response(HttpResponse::Ok(), product))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProductBody {
    name: String,
    stock: i64,
}

/// `PUT /vendors/{vendor}/products/{id}`
pub(super) async fn put_product(
    request: HttpRequest,
    payload: Payload,
    path: Path<(String, String)>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let (vendor_id, product_id) = (vendor_id(&path.0)?, product_id(&path.1)?);
    let body: ProductBody = read_json(&request, payload, BODY_BYTES_MAX).await?;
    let mut errors = Vec::new();
    if !(0..=STOCK_MAX).contains(&body.stock) {
        errors.push(Invalid::new(
            "/stock",
            format!("must be 0 to {STOCK_MAX}, is {}", body.stock),
        ));
    }
    if body.name.chars().count() > NAME_CHARS_MAX || body.name.contains('\0') {
        let problem = format!("must be at most {NAME_CHARS_MAX} characters long, without U+0000");
        errors.push(Invalid::new("/name", problem));
    }
    if !errors.is_empty() {
        return Err(Problem::invalid_fields(errors));
    }
    let expected = request
        .headers()
        .get(IF_MATCH)
        .map(|value| value.to_str().map(str::to_owned))
        .transpose()
        .map_err(|_| Problem::invalid_parameter("If-Match", "must be printable ASCII"))?;
    let matches = move |held: Option<&Product>| match (expected.as_deref(), held) {
        (None, _) | (Some("*"), Some(_)) => true,
        (Some(_), None) => false,
        (Some(versions), Some(held)) => versions
            .split(',')
            .any(|given| given.trim() == version(held)),
    };
    let product = Product {
        id: product_id.to_string(),
        name: body.name,
        stock: body.stock,
    };
    let (context, wanted) = (state.context.clone(), product.clone());
    let is_new =
        detached(
            async move { vendor_stock::put_product(&context, &vendor_id, &wanted, matches).await },
        )
        .await?;
    let response = if is_new {
        HttpResponse::Created()
    } else {
        HttpResponse::Ok()
    };
    Ok(product_response(response, product))
}
