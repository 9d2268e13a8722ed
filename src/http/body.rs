//! Bodies: read within bounds of size and time, then parsed with the field named that is wrong.

use actix_web::HttpRequest;
use actix_web::http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue,
};
use actix_web::web::{BytesMut, Payload};
use futures_util::StreamExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use utoipa::ToSchema;

use super::plain::plainly;
use super::problem::{
    BODY_TOO_LARGE, INCOMPLETE_BODY, MALFORMED_JSON, Problem, REQUEST_TIMEOUT,
    UNSUPPORTED_MEDIA_TYPE,
};
use super::{BODY_BYTES_MAX, SEND_DEADLINE};
use crate::domain::object::Object;
use crate::domain::order::Invalid;

/// Reads a JSON body of at most `bytes_max`.
pub(super) async fn read_json<T: DeserializeOwned>(
    request: &HttpRequest,
    payload: Payload,
    bytes_max: usize,
) -> Result<T, Problem> {
    check_content_type(request.headers())?;
    parse(&read_within(request, payload, bytes_max).await?)
}

/// A body that says nothing: what is asked for stands in the address.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// Reads the body of a request that needs none: nothing, or an empty object, which some clients send always. Whoever says
/// more means something that would not be done.
pub(super) async fn read_nothing(request: &HttpRequest, payload: Payload) -> Result<(), Problem> {
    let body = read_within(request, payload, BODY_BYTES_MAX).await?;
    if body.is_empty() {
        return Ok(());
    }
    check_content_type(request.headers())?;
    parse(&body).map(|Nothing {}| ())
}

async fn read_within(
    request: &HttpRequest,
    payload: Payload,
    bytes_max: usize,
) -> Result<BytesMut, Problem> {
    check_length(request.headers(), bytes_max)?;
    tokio::time::timeout(SEND_DEADLINE, read(payload, bytes_max))
        .await
        .map_err(|_| {
            Problem::new(
                REQUEST_TIMEOUT,
                format!("the body took over {} s", SEND_DEADLINE.as_secs()),
            )
        })?
}

/// One type, that of JSON in UTF-8, as it is: what two readers could take for two things is none.
fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let refused = |detail: String| Err(Problem::new(UNSUPPORTED_MEDIA_TYPE, detail));
    let mut types = headers.get_all(CONTENT_TYPE);
    let given = types
        .next()
        .map_or("", |value| value.to_str().unwrap_or("?"));
    if types.next().is_some() {
        return refused("send Content-Type once".to_owned());
    }
    let mut parts = given.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    if !essence.eq_ignore_ascii_case("application/json") {
        return refused(format!(
            "send Content-Type: application/json, not {given:?}"
        ));
    }
    let is_other_charset = |parameter: &str| {
        let charset = parameter.split_once('=').filter(|(name, _)| {
            let name = name.trim();
            name.eq_ignore_ascii_case("charset")
        });
        charset.is_some_and(|(_, charset)| {
            let charset = charset.trim().trim_matches('"');
            !charset.eq_ignore_ascii_case("utf-8") && !charset.eq_ignore_ascii_case("utf8")
        })
    };
    if parts.any(is_other_charset) {
        return refused(format!("JSON is UTF-8; it cannot be {given:?}"));
    }
    let is_coded = |value: &HeaderValue| {
        let is_identity = |text: &str| text.trim().eq_ignore_ascii_case("identity");
        !value.to_str().is_ok_and(is_identity)
    };
    if headers.get_all(CONTENT_ENCODING).any(is_coded) {
        return refused("send the body as it is, without Content-Encoding".to_owned());
    }
    Ok(())
}

/// Refuses a body that says beforehand that it is too large. What is no length the server refuses before.
pub(super) fn check_length(headers: &HeaderMap, bytes_max: usize) -> Result<(), Problem> {
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match length {
        Some(length) if usize::try_from(length).map_or(true, |length| length > bytes_max) => {
            Err(too_large(bytes_max))
        }
        _ => Ok(()),
    }
}

fn too_large(bytes_max: usize) -> Problem {
    Problem::new(
        BODY_TOO_LARGE,
        format!("a body may have at most {bytes_max} bytes"),
    )
}

async fn read(mut payload: Payload, bytes_max: usize) -> Result<BytesMut, Problem> {
    let mut body = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| {
            // Its words are the server's own, for us.
            tracing::debug!(%error, "a body did not arrive");
            Problem::new(
                INCOMPLETE_BODY,
                "the connection ended within the body, or its chunks cannot be read",
            )
        })?;
        if body.len() + chunk.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Parses what was read.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    // To know at each step where it is costs half as much again, and is of use only where something is wrong.
    if let Ok(Object(value)) = serde_json::from_slice(body) {
        return Ok(value);
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let Object(value) = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let pointer = pointer(error.path());
        let field = field(error.path());
        let inner = error.into_inner();
        match inner.classify() {
            serde_json::error::Category::Data => {
                Problem::invalid_fields(vec![invalid(pointer, &field, &without_position(&inner))])
            }
            serde_json::error::Category::Eof if body.trim_ascii().is_empty() => {
                Problem::malformed(pointer, "the body is empty")
            }
            _ => Problem::malformed(pointer, broken_off(&inner)),
        }
    })?;
    deserializer
        .end()
        .map_err(|error| Problem::new(MALFORMED_JSON, error.to_string()))?;
    Ok(value)
}

/// What is wrong with a field, with a pointer to the field itself, also where it is what is missing.
fn invalid(mut pointer: String, field: &str, error: &str) -> Invalid {
    let told = plainly(field, error);
    if let Some(below) = told.field {
        pointer.push_str(&step(below));
    }
    Invalid::new(pointer, told.detail)
}

/// Where the text ends too early, in the words of who wrote it.
fn broken_off(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.strip_prefix("EOF while parsing ") {
        Some(what) => format!("the body ends within {what}"),
        None => text,
    }
}

/// The pointer says where; the line and the column of a body that a program wrote say nothing to anybody.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// A path as a JSON pointer (RFC 6901).
fn pointer(path: &serde_path_to_error::Path) -> String {
    path.iter()
        // Where the text breaks off inside an object, what follows has no name.
        .take_while(|segment| !matches!(segment, Segment::Unknown))
        .map(|segment| match segment {
            Segment::Seq { index } => format!("/{index}"),
            Segment::Map { key } => step(key),
            Segment::Enum { variant } => format!("/{variant}"),
            Segment::Unknown => String::new(),
        })
        .collect()
}

fn step(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// The name of the field that a path leads to.
fn field(path: &serde_path_to_error::Path) -> String {
    match path.iter().next_back() {
        Some(Segment::Map { key }) => key.clone(),
        _ => String::new(),
    }
}
