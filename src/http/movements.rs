//! `/products/{id}/movements`: every change of what is available of a product, with its cause.

use std::ops::RangeInclusive;

use actix_web::web::{Data, Path};
use actix_web::{HttpRequest, HttpResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::answer;
use super::problem::Problem;
use super::query::read_query;
use super::{State, cursor_micros, limit, product_id};
use crate::db;
use crate::db::movements::Movement;
use crate::domain::ids::ProductId;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListQuery {
    /// Items of one page.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<i64>,
    /// The `nextCursor` of the page before.
    cursor: Option<String>,
}

/// One change of what is available of a product.
#[derive(Serialize, ToSchema)]
#[schema(as = Movement)]
#[serde(rename_all = "camelCase")]
struct MovementResponse {
    at: DateTime<Utc>,
    vendor_id: String,
    /// Units more, or less.
    delta: i64,
    /// `order` (taken), `return`, `rejection` (the vendor did not take it) or `sync` (the vendor's own change).
    cause: String,
    /// The order whose change it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    order_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    update_id: Option<Uuid>,
}

/// A page of movements.
#[derive(Serialize, ToSchema)]
#[schema(as = MovementPage)]
#[serde(rename_all = "camelCase")]
struct ListResponse {
    movements: Vec<MovementResponse>,
    /// Where the next page begins, if there may be one.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// What has become of a product's stock
///
/// Every change of what is available, newest first, with its cause.
#[utoipa::path(
    get, path = "/products/{id}/movements", tag = "products",
    params(("id" = ProductId, Path, description = "The product's id"), ListQuery),
    responses((status = 200, description = "A page",
        headers(("Link" = Option<String>, description = "`<…>; rel=\"next\"`, if there may be a next page")), body = ListResponse, example = json!({"movements": [
        {"at": "2026-11-26T01:42:16.696737Z", "vendorId": "vendorB", "delta": -3, "cause": "order", "orderId": "01a21584-8706-763e-b5e8-dd1039028028", "updateId": "01a21584-878a-705c-8fe2-9b76992cd5d3"},
        {"at": "2026-11-26T01:42:15.715971Z", "vendorId": "vendorB", "delta": 5, "cause": "sync"}],
        "nextCursor": null})))
)]
pub(super) async fn list(
    request: HttpRequest,
    id: Path<String>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let id = product_id(&id)?;
    let query: ListQuery = read_query(&request)?;
    let limit = limit(query.limit)?;
    let before = query.cursor.as_deref().map(decode_cursor).transpose()?;
    let mut movements = state
        .context
        .with_connection(async |connection| {
            Ok(db::movements::list(connection, &id, before, limit + 1).await?)
        })
        .await?;
    // What was ever listed has its first listing at the end of its movements.
    if movements.is_empty() && before.is_none() {
        return Err(Problem::not_found(format!(
            "no vendor has ever listed product {id}"
        )));
    }
    let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
    let has_more = movements.len() > wanted;
    movements.truncate(wanted);
    let next_cursor = movements.last().filter(|_| has_more).map(encode_cursor);
    let list = ListResponse {
        movements: movements
            .into_iter()
            .map(|movement| MovementResponse {
                at: movement.at,
                vendor_id: movement.vendor_id,
                delta: movement.delta,
                cause: movement.cause,
                order_id: movement.order_id,
                update_id: movement.update_id,
            })
            .collect(),
        next_cursor,
    };
    let mut answer = answer::json(&request, &list)?;
    answer::link_next(&request, &mut answer, list.next_cursor.as_deref());
    Ok(answer)
}

/// A key is an update's or a vendor's id, and a word or a number.
const KEY_BYTES: RangeInclusive<usize> = 1..=100;

fn encode_cursor(movement: &Movement) -> String {
    format!("{}.{}", movement.at.timestamp_micros(), movement.key)
}

fn decode_cursor(text: &str) -> Result<(DateTime<Utc>, &str), Problem> {
    text.split_once('.')
        .filter(|(_, key)| {
            KEY_BYTES.contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic())
        })
        .and_then(|(micros, key)| {
            Some((
                DateTime::from_timestamp_micros(cursor_micros(micros)?)?,
                key,
            ))
        })
        .ok_or_else(|| {
            Problem::invalid_parameter("cursor", "must be a nextCursor of an earlier answer")
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::problem::INVALID_PARAMETER;
    use super::*;

    proptest! {
        #[test]
        fn a_cursor_is_taken_as_it_was_written_and_in_no_other_spelling(
            text in "\\PC{0,50}|[+0-9-]{1,20}\\.[!-~ ]{0,102}|[1-9][0-9]{0,15}\\.[0-9a-f-]{36}\\.[a-z]{1,6}",
        ) {
            match decode_cursor(&text) {
                Ok((at, key)) => {
                    let movement = Movement {
                        at,
                        key: key.to_owned(),
                        vendor_id: String::new(),
                        delta: 0,
                        cause: String::new(),
                        order_id: None,
                        update_id: None,
                    };
                    prop_assert_eq!(encode_cursor(&movement), text);
                }
                Err(problem) => prop_assert_eq!(problem.code(), INVALID_PARAMETER),
            }
        }
    }
}
