//! `/webhooks`: who is told of events by HTTP.

use std::collections::BTreeSet;

use actix_web::http::header::{CACHE_CONTROL, LOCATION};
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::body::read_json;
use super::orders::idempotency_key;
use super::problem::Problem;
use super::query::read_query;
use super::{BODY_BYTES_MAX, State, answer, auth, cursor_micros, detached, limit};
use crate::app::webhooks;
use crate::db::webhooks::Cursor;
use crate::domain::events::{EventType, Filter};
use crate::domain::ids::WebhookId;
use crate::domain::order::Invalid;
use crate::domain::webhooks::{Secret, Standing, Subscription, check_url, without_path};

/// A subscription to make.
#[derive(Deserialize, ToSchema)]
#[schema(as = WebhookRequest)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CreateRequest {
    /// Where the receiver is: `https:`, at a public address, without a user or a password.
    #[schema(max_length = 2048, pattern = "^https?://")]
    url: String,
    /// What it is told: types of events. All that the key may hear, where none are given.
    #[schema(min_items = 1, nullable = true)]
    types: Option<Vec<EventType>>,
    /// What its messages are signed with, if it is to be one that is there already: `whsec_` and the base64 of 24 to 64
    /// random bytes.
    #[schema(pattern = "^whsec_[A-Za-z0-9+/]{32,86}={0,2}$", nullable = true)]
    secret: Option<String>,
}

/// A subscription.
#[derive(Serialize, ToSchema)]
#[schema(as = Webhook)]
#[serde(rename_all = "camelCase")]
struct WebhookResponse {
    id: WebhookId,
    /// Whose it is; it hears of its orders, or of everybody's, if it was made with the scope `admin`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    caller: Option<String>,
    /// What the configuration calls it, where it is the configuration's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    name: Option<String>,
    /// Where it is told; of the configuration's, without what is behind the host.
    url: String,
    types: BTreeSet<EventType>,
    /// `failing`: it has failed several times in a row, and is tried now and then. `disabled`: it has answered 410, and is
    /// told no more.
    status: Standing,
    created_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    failing_since: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    disabled_at: Option<DateTime<Utc>>,
    /// What it failed with last, while it fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    last_error: Option<String>,
    /// What its messages are signed with; only in the answer to the request that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    secret: Option<String>,
}

impl From<Subscription> for WebhookResponse {
    fn from(of: Subscription) -> Self {
        Self {
            status: of.standing(),
            id: of.id,
            caller: of.caller,
            url: match of.name {
                // Written by who configures, for nobody else: what is behind the host may be a token.
                Some(_) => without_path(&of.url),
                None => of.url,
            },
            name: of.name,
            types: of.filter.types().clone(),
            created_at: of.created_at,
            failing_since: of.failing_since.filter(|_| of.disabled_at.is_none()),
            disabled_at: of.disabled_at,
            last_error: of.last_error,
            secret: None,
        }
    }
}

/// Subscribe to events
///
/// Each event from now on is sent to `url` by POST, signed as Standard Webhooks says, until the receiver answers 2xx: after
/// 5 s, 50 s, 8 and 83 minutes again, unless configured otherwise. A key with `orders:read` hears of its caller's own orders,
/// one with `admin` of all, every key of stock. The subscription is the caller's, and outlives the key. With an
/// `Idempotency-Key` the same request is the same subscription, however often it comes, until it is deleted; the secret is
/// shown to that request alone.
#[utoipa::path(
    post, path = "/webhooks", tag = "webhooks",
    params(("Idempotency-Key" = Option<String>, Header,
        description = "Your name for this request: 1 to 255 characters of printable ASCII, bare or in quotes",
        min_length = 1, max_length = 255, example = "subscribe-1")),
    request_body(content = CreateRequest, example = json!({"url": "https://shop.example/hooks/stockctl", "types": ["order.confirmed", "order.cancelled"]})),
    responses((status = 201, description = "Made; the secret is shown here and nowhere else", headers(
            ("Location" = String, description = "Where the subscription is: /webhooks/{id}"),
            ("Idempotent-Replayed" = Option<String>, description = "`true` if this subscription had been made before")),
        body = WebhookResponse, example = json!({"id": "01a21a4e-52cf-7c07-a8b0-5f0f5d0ad3a5", "caller": "webshop", "url": "https://shop.example/hooks/stockctl",
        "types": ["order.confirmed", "order.cancelled"], "status": "active", "createdAt": "2026-11-26T23:59:01.583Z",
        "secret": "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDeviBWMcjPyE="})))
)]
pub(super) async fn create(
    request: HttpRequest,
    payload: Payload,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let caller = auth::caller(&request)?;
    let key = idempotency_key(&request)?;
    let asked: CreateRequest = read_json(&request, payload, BODY_BYTES_MAX).await?;
    let (url, types, secret) = parse(asked, state.allows_private_receivers)?;
    let filter = Filter::new(&caller, types, None).map_err(auth::lacks)?;
    let asked = webhooks::Asked {
        url,
        filter,
        secret,
        key,
    };
    let context = state.context.clone();
    let making =
        detached(async move { webhooks::create(&context, &caller, asked, Utc::now()).await });
    let (made, is_replayed) = making.await?;
    let mut answer = HttpResponse::Created();
    answer
        .insert_header((LOCATION, format!("/webhooks/{}", made.id)))
        .insert_header((CACHE_CONTROL, "no-store"));
    if is_replayed {
        answer.insert_header(("Idempotent-Replayed", "true"));
    }
    Ok(answer.json(WebhookResponse {
        // Who repeats the request has not seen the answer to it.
        secret: Some(made.secret.reveal()),
        ..made.into()
    }))
}

type Parsed = (String, Option<BTreeSet<EventType>>, Option<Secret>);

fn parse(asked: CreateRequest, allow_private: bool) -> Result<Parsed, Problem> {
    let mut errors = Vec::new();
    if let Err(problem) = check_url(&asked.url, allow_private) {
        errors.push(Invalid::new("/url", problem));
    }
    if asked.types.as_ref().is_some_and(Vec::is_empty) {
        errors.push(Invalid::new(
            "/types",
            "must name one at least, or be left out",
        ));
    }
    let secret = match asked.secret.as_deref().map(Secret::parse) {
        Some(Err(problem)) => {
            errors.push(Invalid::new("/secret", problem));
            None
        }
        Some(Ok(secret)) => Some(secret),
        None => None,
    };
    if !errors.is_empty() {
        return Err(Problem::invalid_fields(errors));
    }
    let types = asked.types.map(|types| types.into_iter().collect());
    Ok((asked.url, types, secret))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// Items of one page.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<i64>,
    /// The `nextCursor` of the page before.
    cursor: Option<String>,
}

/// A page of subscriptions.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookPage)]
#[serde(rename_all = "camelCase")]
struct ListResponse {
    webhooks: Vec<WebhookResponse>,
    /// Where the next page begins, if there may be one.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// Subscriptions, the newest first
///
/// The caller's own; with the scope `admin` all, those of the configuration among them.
#[utoipa::path(
    get, path = "/webhooks", tag = "webhooks", params(ListQuery),
    responses((status = 200, description = "A page",
        headers(("Link" = Option<String>, description = "`<…>; rel=\"next\"`, if there may be a next page")),
        body = ListResponse, example = json!({"webhooks": [{"id": "01a21a4e-52cf-7c07-a8b0-5f0f5d0ad3a5", "caller": "webshop",
        "url": "https://shop.example/hooks/stockctl", "types": ["order.confirmed"], "status": "failing", "createdAt": "2026-11-26T23:59:01.583Z",
        "failingSince": "2026-11-27T00:12:44.1Z", "lastError": "it answered 500"}], "nextCursor": null})))
)]
pub(super) async fn list(
    request: HttpRequest,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let caller = auth::caller(&request)?;
    let query: ListQuery = read_query(&request)?;
    let limit = limit(query.limit)?;
    let after = query.cursor.as_deref().map(decode_cursor).transpose()?;
    let mut found = webhooks::list(&state.context, &caller, after, limit + 1).await?;
    let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
    let has_more = found.len() > wanted;
    found.truncate(wanted);
    let last = found.last().filter(|_| has_more);
    let list = ListResponse {
        next_cursor: last.map(|last| encode_cursor((last.created_at, last.id))),
        webhooks: found.into_iter().map(WebhookResponse::from).collect(),
    };
    let mut answer = answer::json(&request, &list)?;
    answer::link_next(&request, &mut answer, list.next_cursor.as_deref());
    Ok(answer)
}

/// One subscription
#[utoipa::path(
    get, path = "/webhooks/{id}", tag = "webhooks",
    params(("id" = WebhookId, Path, description = "The subscription's id")),
    responses((status = 200, description = "The subscription", body = WebhookResponse, example = json!(
        {"id": "01a21a4e-52cf-7c07-a8b0-5f0f5d0ad3a5", "caller": "webshop", "url": "https://shop.example/hooks/stockctl",
        "types": ["order.confirmed"], "status": "disabled", "createdAt": "2026-11-26T23:59:01.583Z", "disabledAt": "2026-11-27T00:12:44.1Z",
        "lastError": "it answered 410 Gone, so it is told no more"})))
)]
pub(super) async fn show(
    request: HttpRequest,
    id: Path<String>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let caller = auth::caller(&request)?;
    let found = webhooks::find(&state.context, &caller, webhook_id(&id)?).await?;
    answer::json(&request, &WebhookResponse::from(found))
}

/// Unsubscribe
///
/// What is on its way to the receiver may still come; what waits is not sent.
#[utoipa::path(
    delete, path = "/webhooks/{id}", tag = "webhooks",
    params(("id" = WebhookId, Path, description = "The subscription's id")),
    responses((status = 204, description = "There is no such subscription any more"))
)]
pub(super) async fn delete(
    request: HttpRequest,
    id: Path<String>,
    state: Data<State>,
) -> Result<HttpResponse, Problem> {
    let caller = auth::caller(&request)?;
    let id = webhook_id(&id)?;
    let context = state.context.clone();
    detached(async move { webhooks::delete(&context, &caller, id).await }).await?;
    Ok(HttpResponse::NoContent().finish())
}

fn webhook_id(text: &str) -> Result<WebhookId, Problem> {
    WebhookId::parse(text).ok_or_else(|| {
        Problem::not_found("no webhook can have that id: it is not a UUID with hyphens")
    })
}

fn encode_cursor((at, id): Cursor) -> String {
    format!("{}.{}", at.timestamp_micros(), id.0.simple())
}

fn decode_cursor(text: &str) -> Result<Cursor, Problem> {
    text.split_once('.')
        .and_then(|(micros, id)| {
            let at = DateTime::from_timestamp_micros(cursor_micros(micros)?)?;
            Some((at, WebhookId(Uuid::try_parse(id).ok()?)))
        })
        // Spelt as we spell it.
        .filter(|cursor| encode_cursor(*cursor) == text)
        .ok_or_else(|| {
            Problem::invalid_parameter("cursor", "must be a nextCursor of an earlier answer")
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::body;
    use super::super::problem::{INVALID_PARAMETER, MALFORMED_JSON, VALIDATION_FAILED};
    use super::*;

    proptest! {
        #[test]
        fn a_cursor_is_taken_as_it_was_written_and_in_no_other_spelling(
            text in "\\PC{0,50}|[+0-9-]{1,20}\\.[0-9a-fA-F-]{30,36}|[0-9]{1,16}\\.[0-9a-fA-F]{32}",
        ) {
            match decode_cursor(&text) {
                Ok(cursor) => prop_assert_eq!(encode_cursor(cursor), text),
                Err(problem) => prop_assert_eq!(problem.code(), INVALID_PARAMETER),
            }
        }

        #[test]
        fn a_cursor_leads_to_where_it_was_made(micros in 0_i64..=253_402_300_799_999_999, id: u128) {
            let at = DateTime::from_timestamp_micros(micros).expect("a time");
            let cursor = (at, WebhookId(Uuid::from_u128(id)));
            prop_assert_eq!(decode_cursor(&encode_cursor(cursor)), Ok(cursor));
        }

        #[test]
        fn whatever_is_subscribed_to_what_is_taken_can_be_told_and_what_is_not_is_named(
            body in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..60),
                (
                    prop_oneof![Just("https://shop.example/hook".to_owned()), "(https?|ftp)://[a-z.@:\\[\\]0-9]{0,20}(/\\PC{0,5})?", "\\PC{0,20}"],
                    proptest::option::of(proptest::collection::vec("order.confirmed|stock.changed|[a-z.]{0,8}", 0..3)),
                    proptest::option::of("whsec_[A-Za-z0-9+/]{30,88}={0,2}|\\PC{0,40}"),
                    proptest::option::of("[a-z]{1,4}"),
                ).prop_map(|(url, types, secret, other)| {
                    let mut body = json!({ "url": url });
                    if let Some(types) = types {
                        body["types"] = json!(types);
                    }
                    if let Some(secret) = secret {
                        body["secret"] = json!(secret);
                    }
                    if let Some(other) = other {
                        body[other] = json!(1);
                    }
                    body.to_string().into_bytes()
                }),
            ],
            allow_private: bool,
        ) {
            let parsed = body::parse::<CreateRequest>(&body)
                .and_then(|asked| super::parse(asked, allow_private));
            match parsed {
                Ok((url, types, secret)) => {
                    prop_assert!(check_url(&url, allow_private).is_ok());
                    prop_assert!(types.is_none_or(|types| !types.is_empty()));
                    if let Some(secret) = secret {
                        prop_assert_eq!(Secret::parse(&secret.reveal()), Ok(secret));
                    }
                }
                Err(problem) => {
                    prop_assert!([MALFORMED_JSON, VALIDATION_FAILED].contains(&problem.code()));
                    // What was meant to be a secret is not told on.
                    prop_assert!(!problem.to_string().contains("whsec_") || problem.to_string().contains("must be whsec_"));
                }
            }
        }
    }
}
