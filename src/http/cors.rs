//! Pages of other origins (CORS): none may call the API from a browser unless the configuration names it.

use actix_web::HttpResponse;
use actix_web::http::Method;
use actix_web::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};

/// What a page may send, and what it may read of an answer, beyond what browsers allow by themselves.
const MAY_SEND: &str =
    "Content-Type, Idempotency-Key, If-Match, If-None-Match, Prefer, X-Request-Id";
const MAY_READ: &str =
    "ETag, Idempotent-Replayed, Link, Location, Preference-Applied, Retry-After, X-Request-Id";
const METHODS: &str = "GET, HEAD, POST, PUT";
/// A browser asks again after ten minutes.
const ASK_AGAIN_AFTER_S: &str = "600";

/// Whose pages may call.
#[derive(Debug, Clone, Default)]
pub(super) struct Cors(Vec<String>);

impl Cors {
    pub(super) fn new(origins: Vec<String>) -> Self {
        Self(origins)
    }

    /// The page's origin, if it is one that may call.
    pub(super) fn origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if self.0.is_empty() {
            return None;
        }
        let origin = headers.get(ORIGIN)?;
        let is_known = self
            .0
            .iter()
            .any(|known| known.as_bytes() == origin.as_bytes());
        is_known.then(|| origin.clone())
    }

    /// Whether answers depend on who asks.
    pub(super) fn is_on(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Whether a browser asks what a page may do, before it does it.
pub(super) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// What a browser is answered that asks.
pub(super) fn preflight() -> HttpResponse {
    let mut answer = HttpResponse::NoContent();
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (ACCESS_CONTROL_ALLOW_HEADERS, MAY_SEND),
        (ACCESS_CONTROL_MAX_AGE, ASK_AGAIN_AFTER_S),
    ] {
        answer.insert_header((name, value));
    }
    answer.finish()
}

/// Lets a page of that origin read an answer.
pub(super) fn allow(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(
        ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static(MAY_READ),
    );
}

/// Says to caches that an answer depends on the origin.
pub(super) fn vary(headers: &mut HeaderMap) {
    let name: HeaderName = VARY;
    headers.append(name, HeaderValue::from_static("Origin"));
}
