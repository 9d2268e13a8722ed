//! Answers to reading: with a version that the reader may keep, and compressed where that is worth it.

use std::io::Write;

use actix_web::HttpRequest;
use actix_web::HttpResponse;
use actix_web::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue,
    LINK, VARY,
};
use actix_web::web::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use uuid::Uuid;

use super::conditions::is_known;
use super::problem::Problem;

const JSON: &str = "application/json";

/// Smaller bodies fit into one packet with their headers, and gain nothing.
const COMPRESSED_BYTES_MIN: usize = 1024;
/// A reader may keep it, and asks whether it is still so before each use.
pub(super) const ASK_AGAIN: &str = "private, no-cache";

/// Answers 200 with what the reader may keep, or 304 if that is what it has. `version_of` is what makes the version: what
/// matters of the content.
pub(super) fn versioned<T: Serialize>(
    request: &HttpRequest,
    content: &T,
    version_of: &impl Serialize,
) -> Result<HttpResponse, Problem> {
    let version = version(&write(version_of)?);
    if is_known(request.headers(), &version) {
        return Ok(not_modified(&version, ASK_AGAIN));
    }
    let mut answer = with_body(request, JSON, write(content)?.into());
    let headers = answer.headers_mut();
    insert(headers, ETAG, &version);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(ASK_AGAIN));
    Ok(answer)
}

/// Answers 200 with what is so at this moment.
pub(super) fn json<T: Serialize>(
    request: &HttpRequest,
    content: &T,
) -> Result<HttpResponse, Problem> {
    Ok(with_body(request, JSON, write(content)?.into()))
}

fn write<T: Serialize>(content: &T) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(content).map_err(|error| {
        tracing::error!(%error, "an answer cannot be written");
        Problem::internal()
    })
}

/// Says where the next page of a list is (RFC 8288): the same request with the next cursor.
pub(super) fn link_next(request: &HttpRequest, answer: &mut HttpResponse, next: Option<&str>) {
    let Some(next) = next else { return };
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    let given = url::form_urlencoded::parse(request.query_string().as_bytes());
    query
        .extend_pairs(given.filter(|(name, _)| name != "cursor"))
        .append_pair("cursor", next);
    let link = format!("<{}?{}>; rel=\"next\"", request.path(), query.finish());
    insert(answer.headers_mut(), LINK, &link);
}

/// What a reader that has this version is answered.
pub(super) fn not_modified(version: &str, cache_control: &'static str) -> HttpResponse {
    let mut answer = HttpResponse::NotModified().finish();
    let headers = answer.headers_mut();
    insert(headers, ETAG, version);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(cache_control));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    answer
}

/// Answers 200 with a body, compressed if it is large and the reader takes that.
pub(super) fn with_body(
    request: &HttpRequest,
    media_type: &'static str,
    body: Bytes,
) -> HttpResponse {
    let mut answer = HttpResponse::Ok();
    answer.insert_header((CONTENT_TYPE, media_type));
    if body.len() < COMPRESSED_BYTES_MIN {
        return answer.body(body);
    }
    answer.insert_header((VARY, "Accept-Encoding"));
    if takes_gzip(request.headers())
        && let Some(compressed) = compress(&body)
    {
        answer.insert_header((CONTENT_ENCODING, "gzip"));
        return answer.body(compressed);
    }
    answer.body(body)
}

/// A version of content: weak, since it is the same whether it comes compressed or not.
pub(super) fn version(content: &[u8]) -> String {
    format!(
        "W/\"{}\"",
        Uuid::new_v5(&Uuid::NAMESPACE_OID, content).simple()
    )
}

/// Whether the reader takes gzip: it says so, and not with a weight of 0. What it says of gzip counts before what it says of
/// any other coding.
pub(super) fn takes_gzip(headers: &HeaderMap) -> bool {
    let mut of_any = false;
    let codings = headers
        .get_all(ACCEPT_ENCODING)
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    for coding in codings {
        let mut parts = coding.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let is_taken = !parts.any(|parameter| {
            parameter
                .strip_prefix("q=")
                .and_then(|weight| weight.parse::<f32>().ok())
                == Some(0.0)
        });
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            return is_taken;
        }
        of_any |= name == "*" && is_taken;
    }
    of_any
}

/// Quickly: it is on a thread that serves others too.
pub(super) fn compress(body: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok()
}

pub(super) fn insert(
    headers: &mut HeaderMap,
    name: actix_web::http::header::HeaderName,
    value: &str,
) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: actix_web::http::header::HeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).expect("a header"));
        headers
    }

    #[test]
    fn gzip_is_taken_where_it_is_named() {
        for (header, expected) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5, br", true),
            ("*", true),
            ("x-gzip", true),
            ("br", false),
            ("gzip;q=0", false),
            ("gzip;q=0.000, br", false),
            ("gzip;q=0, *", false),
            ("*, gzip;q=0", false),
            ("*;q=0, gzip", true),
            ("*;q=0", false),
            ("identity", false),
            ("", false),
        ] {
            assert_eq!(
                takes_gzip(&headers(ACCEPT_ENCODING, header)),
                expected,
                "{header}"
            );
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
