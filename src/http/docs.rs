//! `/openapi.json`: the description of the API. `/docs`: a page to read it and to try it.
//!
//! The page is RapiDoc 9.3.8 (MIT, npm `rapidoc`, `dist/rapidoc-min.js`), which is in the executable and loads nothing
//! from elsewhere. Of what can try a request it is the smallest, compressed: RapiDoc 213 KiB, Swagger UI 474 KiB, Scalar
//! 966 KiB; Redoc, 319 KiB, only shows.

use std::io::Read;
use std::sync::LazyLock;

use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, VARY,
};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse};
use flate2::read::GzDecoder;

use super::answer::{self, not_modified, takes_gzip, version};
use super::conditions::is_known;
use super::openapi;
use super::problem::Problem;

/// As it is sent.
static SCRIPT: &[u8] = include_bytes!("docs/rapidoc-min.js.gz");
static SCRIPT_VERSION: LazyLock<String> = LazyLock::new(|| version(SCRIPT));
/// It changes with a new version of this program only.
const KEEP_FOR_A_DAY: &str = "public, max-age=86400";

const PAGE: &str = include_str!("docs/page.html");
/// What the page may do: run its script, style itself, and call this API.
const PAGE_MAY: &str = "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src data:; \
                        connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

static DESCRIPTION: LazyLock<Bytes> = LazyLock::new(|| openapi::document().to_string().into());
static DESCRIPTION_VERSION: LazyLock<String> = LazyLock::new(|| version(&DESCRIPTION));

/// This description
///
/// OpenAPI 3.1, the same that `stockctl openapi` prints.
#[utoipa::path(get, path = "/openapi.json", tag = "operations",
    params(("If-None-Match" = Option<String>, Header, description = "The ETag of what you have")),
    responses(
        (status = 200, description = "The description", body = serde_json::Value, headers(("ETag" = String, description = "Its version")), example = json!({"openapi": "3.1.0"})),
        (status = 304, description = "You have it")))]
pub(super) async fn description(request: HttpRequest) -> HttpResponse {
    if is_known(request.headers(), &DESCRIPTION_VERSION) {
        return not_modified(&DESCRIPTION_VERSION, answer::ASK_AGAIN);
    }
    let mut answer = answer::with_body(&request, "application/json", DESCRIPTION.clone());
    let headers = answer.headers_mut();
    for (name, value) in [
        (ETAG, DESCRIPTION_VERSION.as_str()),
        (CACHE_CONTROL, answer::ASK_AGAIN),
    ] {
        if let Ok(value) = value.parse() {
            headers.insert(name, value);
        }
    }
    answer
}

/// Read and try
///
/// A page for people.
#[utoipa::path(get, path = "/docs", tag = "operations",
    responses((status = 200, description = "The page", content_type = "text/html", body = String)))]
pub(super) async fn page() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/html; charset=utf-8"))
        .insert_header((CONTENT_SECURITY_POLICY, PAGE_MAY))
        .body(PAGE)
}

/// The page's script
#[utoipa::path(get, path = "/docs/rapidoc-min.js", tag = "operations",
    params(("If-None-Match" = Option<String>, Header, description = "The ETag of what you have")),
    responses(
        (status = 200, description = "The script", content_type = "text/javascript", body = String,
            headers(("ETag" = String, description = "Its version"))),
        (status = 304, description = "You have it")))]
pub(super) async fn script(request: HttpRequest) -> Result<HttpResponse, Problem> {
    if is_known(request.headers(), &SCRIPT_VERSION) {
        return Ok(not_modified(&SCRIPT_VERSION, KEEP_FOR_A_DAY));
    }
    let mut answer = HttpResponse::Ok();
    answer
        .insert_header((CONTENT_TYPE, "text/javascript; charset=utf-8"))
        .insert_header((CACHE_CONTROL, KEEP_FOR_A_DAY))
        .insert_header((ETAG, SCRIPT_VERSION.as_str()))
        .insert_header((VARY, "Accept-Encoding"));
    if takes_gzip(request.headers()) {
        return Ok(answer
            .insert_header((CONTENT_ENCODING, "gzip"))
            .body(SCRIPT));
    }
    let mut plain = Vec::new();
    GzDecoder::new(SCRIPT)
        .read_to_end(&mut plain)
        .map_err(|error| {
            tracing::error!(%error, "the script of /docs cannot be read");
            Problem::internal()
        })?;
    Ok(answer.body(plain))
}
