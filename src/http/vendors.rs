//! `/vendors`: the vendors, and the API that a vendor offers for its own stock.

use std::ops::Bound;

use actix_web::http::header::{CACHE_CONTROL, ETAG};
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::answer;
use super::body::read_json;
use super::conditions::Conditions;
use super::problem::{PRECONDITION_FAILED, Problem};
use super::query::read_query;
use super::{
    BODY_BYTES_MAX, State, UPDATES_BODY_BYTES_MAX, detached, limit, product_id, vendor_id,
};
use crate::app::vendor_stock;
use crate::db;
use crate::domain::ids::{ProductId, VendorId};
use crate::domain::listing::{NAME_CHARS_MAX, STOCK_MAX};
use crate::domain::order::Invalid;
use crate::domain::vendor_api::{UpdatesRequest, UpdatesResponse};
use crate::vendors::database::Product;

/// A vendor, and how it takes what it is told.
#[derive(Serialize, ToSchema)]
#[schema(as = Vendor)]
#[serde(rename_all = "camelCase")]
struct VendorResponse {
    id: VendorId,
    /// Whether its database has the ledger of handled updates.
    ledger: bool,
    #[schema(required = true)]
    last_sync_at: Option<DateTime<Utc>>,
    /// Which kind of failure ended the newest sync, if one did, such as `database_unavailable`; the log has the rest.
    #[schema(required = true)]
    last_sync_error: Option<String>,
    /// Updates that are not closed.
    open_updates: i64,
    /// `ok`, `failing` (the last call failed; it is called as before), `open` (it is left alone for a while) or `probing`; null
    /// until it was first told of something.
    #[schema(required = true)]
    push_state: Option<String>,
    #[schema(required = true)]
    push_state_since: Option<DateTime<Utc>>,
    /// Why it could not be told, if so: `api_unreachable`, `api_answered_503` and the like.
    #[schema(required = true)]
    last_push_error: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// Items of one page.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<i64>,
    /// The `nextCursor` of the page before.
    cursor: Option<VendorId>,
}

/// A page of the configured vendors.
#[derive(Serialize, ToSchema)]
#[schema(as = VendorPage)]
#[serde(rename_all = "camelCase")]
struct ListResponse {
    vendors: Vec<VendorResponse>,
    /// Where the next page begins, if there may be one.
    #[schema(required = true)]
    next_cursor: Option<VendorId>,
}

/// Vendors, by id
///
/// Those that are configured.
#[utoipa::path(
    get, path = "/vendors", tag = "vendors", params(ListQuery),
    responses((status = 200, description = "A page",
        headers(("Link" = Option<String>, description = "`<…>; rel=\"next\"`, if there may be a next page")),
        body = ListResponse, example = json!({"vendors": [
        {"id": "vendorA", "ledger": true, "lastSyncAt": "2026-11-26T01:42:15.714631Z", "lastSyncError": null, "openUpdates": 1,
         "pushState": "ok", "pushStateSince": "2026-11-26T01:42:16.908346Z", "lastPushError": null}], "nextCursor": null})))
)]
pub(super) async fn list(
    request: HttpRequest,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let query: ListQuery = read_query(&request)?;
    let wanted = usize::try_from(limit(query.limit)?).unwrap_or(usize::MAX);
    let (rows, pushes) = state
        .context
        .with_connection(async |connection| {
            Ok((
                db::vendors::list(connection).await?,
                db::vendor_pushes::list(connection).await?,
            ))
        })
        .await?;
    let after = query.cursor.map_or(Bound::Unbounded, Bound::Excluded);
    let mut behind = state.context.vendors.range((after, Bound::Unbounded));
    let vendors: Vec<VendorResponse> = behind
        .by_ref()
        .take(wanted)
        .map(|(id, vendor)| {
            let row = rows.iter().find(|row| row.id == id.as_str());
            let push = pushes.iter().find(|push| push.vendor_id == id.as_str());
            VendorResponse {
                id: id.clone(),
                ledger: vendor.has_ledger,
                last_sync_at: row.and_then(|row| row.last_sync_at),
                last_sync_error: row.and_then(|row| row.last_sync_error.as_deref()).map(code),
                open_updates: row.map_or(0, |row| row.open_updates),
                push_state: push.map(|push| push.state.clone()),
                push_state_since: push.map(|push| push.since),
                last_push_error: push.and_then(|push| push.error.as_deref()).map(code),
            }
        })
        .collect();
    let last = vendors.last().filter(|_| behind.next().is_some());
    let list = ListResponse {
        next_cursor: last.map(|vendor| vendor.id.clone()),
        vendors,
    };
    let mut answer = answer::json(&request, &list)?;
    answer::link_next(
        &request,
        &mut answer,
        list.next_cursor.as_ref().map(VendorId::as_str),
    );
    Ok(answer)
}

/// A code, as this version writes them: an older one wrote the error itself, with hosts and statements.
fn code(text: &str) -> String {
    let is_code = text
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if is_code { text } else { "failed" }.to_owned()
}

/// Change a vendor's stock
///
/// Each id is applied at most once: one that was handled before gets its recorded outcome again, whatever the stock is now.
#[utoipa::path(
    post, path = "/vendors/{vendor}/stock-updates", tag = "vendors",
    params(("vendor" = VendorId, Path, description = "The vendor's id")),
    request_body(content = UpdatesRequest, example = json!({"updates": [{"id": "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001", "productId": "p1", "delta": -2}]})),
    responses((status = 200, description = "A result for each update, in the order of the request", body = UpdatesResponse,
        example = json!({"results": [{"id": "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001", "outcome": "applied", "stock": 8}]})))
)]
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

/// A vendor's own figure.
#[derive(Serialize, ToSchema)]
#[schema(as = VendorProduct)]
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

/// A vendor's own figure
///
/// Read from the vendor's database now.
#[utoipa::path(
    get, path = "/vendors/{vendor}/products/{id}", tag = "vendors",
    params(("vendor" = VendorId, Path, description = "The vendor's id"), ("id" = ProductId, Path, description = "The product's id"),
        ("If-Match" = Option<String>, Header, description = "An ETag that it must have, several with commas, or * for any", example = "\"8c2b1f0f6d6d5b0fb6a44a3f3f8a1d57\""),
        ("If-None-Match" = Option<String>, Header, description = "The ETag of what you have", example = "\"8c2b1f0f6d6d5b0fb6a44a3f3f8a1d57\"")),
    responses((status = 304, description = "You have it"), (status = 200, description = "The product there", body = ProductResponse,
        headers(("ETag" = String, description = "Its version, for If-Match")), example = json!({"id": "p2", "name": "Product 2", "stock": 2})))
)]
pub(super) async fn show_product(
    request: HttpRequest,
    path: Path<(String, String)>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let (vendor_id, product_id) = (vendor_id(&path.0)?, product_id(&path.1)?);
    let conditions = Conditions::of(request.headers())?;
    let product = vendor_stock::find_product(&state.context, &vendor_id, &product_id).await?;
    let version = version(&product);
    if !conditions.is_as_wanted(Some(&version)) {
        return Err(Problem::new(
            PRECONDITION_FAILED,
            format!("product {product_id} of vendor {vendor_id} is not what If-Match names"),
        ));
    }
    if conditions.is_unwanted(Some(&version)) {
        return Ok(answer::not_modified(&version, answer::ASK_AGAIN));
    }
    let mut response = HttpResponse::Ok();
    response.insert_header((CACHE_CONTROL, answer::ASK_AGAIN));
    Ok(product_response(response, product))
}

/// What a vendor is to list.
#[derive(Deserialize, ToSchema)]
#[schema(as = VendorProductRequest)]
#[serde(deny_unknown_fields)]
pub(super) struct ProductBody {
    /// Without U+0000.
    #[schema(max_length = 1000, pattern = "^[^\\u0000]*$")]
    name: String,
    #[schema(minimum = 0, maximum = 1_000_000_000_000_000_u64)]
    stock: i64,
}

impl ProductBody {
    fn check(self) -> Result<Self, Problem> {
        let mut errors = Vec::new();
        if !(0..=STOCK_MAX).contains(&self.stock) {
            errors.push(Invalid::new(
                "/stock",
                format!("must be 0 to {STOCK_MAX}, is {}", self.stock),
            ));
        }
        if self.name.chars().count() > NAME_CHARS_MAX || self.name.contains('\0') {
            let problem =
                format!("must be at most {NAME_CHARS_MAX} characters long, without U+0000");
            errors.push(Invalid::new("/name", problem));
        }
        if errors.is_empty() {
            Ok(self)
        } else {
            Err(Problem::invalid_fields(errors))
        }
    }
}

/// Set a product at a vendor
///
/// A new product, a restock or a correction; with `If-Match`, only if it is still the version that was read; with
/// `If-None-Match: *`, only if it is new.
#[utoipa::path(
    put, path = "/vendors/{vendor}/products/{id}", tag = "vendors",
    params(("vendor" = VendorId, Path, description = "The vendor's id"), ("id" = ProductId, Path, description = "The product's id"),
        ("If-Match" = Option<String>, Header, description = "An ETag that it must have, several with commas, or * for any", example = "\"8c2b1f0f6d6d5b0fb6a44a3f3f8a1d57\""),
        ("If-None-Match" = Option<String>, Header, description = "An ETag that it must not have, several with commas, or * for a product that must be new", example = "*")),
    request_body(content = ProductBody, example = json!({"name": "Product 1", "stock": 10})),
    responses(
        (status = 200, description = "Set", body = ProductResponse, headers(("ETag" = String, description = "Its new version")), example = json!({"id": "p1", "name": "Product 1", "stock": 10})),
        (status = 201, description = "New, and set", body = ProductResponse, headers(("ETag" = String, description = "Its version")), example = json!({"id": "p9", "name": "Product 9", "stock": 10})),
    )
)]
pub(super) async fn put_product(
    request: HttpRequest,
    payload: Payload,
    path: Path<(String, String)>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let (vendor_id, product_id) = (vendor_id(&path.0)?, product_id(&path.1)?);
    let conditions = Conditions::of(request.headers())?;
    let body: ProductBody = read_json(&request, payload, BODY_BYTES_MAX).await?;
    let body = body.check()?;
    let product = Product {
        id: product_id.to_string(),
        name: body.name,
        stock: body.stock,
    };
    let asked = product.clone();
    let matches = move |held: Option<&Product>| {
        let version = held.map(version);
        // What is as asked for already was set by a request whose answer was lost (RFC 9110, section 13.1.1).
        let is_wanted = conditions.is_as_wanted(version.as_deref()) || held == Some(&asked);
        is_wanted && !conditions.is_unwanted(version.as_deref())
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::body;
    use super::super::problem::{MALFORMED_JSON, VALIDATION_FAILED};
    use super::*;
    use crate::domain::ids::UpdateId;
    use crate::domain::messages::UpdateItem;
    use crate::domain::vendor_api::{DELTA_MAX, SOURCE_BYTES_MAX, UPDATES_MAX};

    #[test]
    fn the_longest_updates_that_may_be_sent_fit_into_a_body() {
        let id = UpdateId(uuid::Uuid::max());
        let longest = UpdateItem {
            id,
            // Of a character that takes two in JSON.
            product_id: crate::domain::ids::ProductId::parse("\\".repeat(200)).expect("valid"),
            delta: DELTA_MAX,
            reverses: Some(id),
        };
        let request = UpdatesRequest {
            source: Some("\\".repeat(SOURCE_BYTES_MAX)),
            updates: vec![longest; UPDATES_MAX],
        };
        let body = serde_json::to_vec(&request).expect("JSON");
        assert!(body.len() <= UPDATES_BODY_BYTES_MAX, "{}", body.len());
    }

    proptest! {
        #[test]
        fn whatever_is_to_be_set_what_is_taken_can_be_kept(
            body in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..60),
                ("\\PC{0,20}|\\x00|(ab){499,502}", any::<i64>(), 0_i64..1000, any::<bool>(), proptest::option::of("[a-z]{1,4}"))
                    .prop_map(|(name, any, small, is_small, other)| {
                        let mut body = json!({ "name": name, "stock": if is_small { small } else { any } });
                        if let Some(other) = other {
                            body[other] = json!(1);
                        }
                        body.to_string().into_bytes()
                    }),
            ],
        ) {
            match body::parse::<ProductBody>(&body).and_then(ProductBody::check) {
                Ok(product) => {
                    prop_assert!((0..=STOCK_MAX).contains(&product.stock));
                    prop_assert!(product.name.chars().count() <= NAME_CHARS_MAX);
                    prop_assert!(!product.name.contains('\0'));
                }
                Err(problem) => {
                    prop_assert!([MALFORMED_JSON, VALIDATION_FAILED].contains(&problem.code()));
                }
            }
        }
    }
}
