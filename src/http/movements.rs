//! `/products/{id}/movements`: every change of what is available of a product, with its cause.

use std::ops::RangeInclusive;

use actix_web::web::{Data, Path};
use actix_web::{HttpRequest, HttpResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::problem::Problem;
use super::query::read_query;
use super::{CURSOR_MICROS, State, limit, product_id};
use crate::db;
use crate::db::movements::Movement;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListQuery {
    limit: Option<i64>,
    cursor: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MovementResponse {
    at: DateTime<Utc>,
    vendor_id: String,
    delta: i64,
    cause: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    order_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    update_id: Option<Uuid>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListResponse {
    movements: Vec<MovementResponse>,
    next_cursor: Option<String>,
}

/// `GET /products/{id}/movements`
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
    Ok(HttpResponse::Ok().json(ListResponse {
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
    }))
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
            let micros = micros.parse().ok().filter(|m| CURSOR_MICROS.contains(m))?;
            Some((DateTime::from_timestamp_micros(micros)?, key))
        })
        .ok_or_else(|| {
            Problem::invalid_parameter("cursor", "must be a nextCursor of an earlier answer")
        })
}
