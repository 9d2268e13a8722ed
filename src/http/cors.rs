//! Pages of other origins: none may call the API from a browser unless the configuration names it. CORS keeps such a page
//! from reading an answer, but not from sending a simple request; that one is refused by what the browser says of it.

use actix_web::HttpResponse;
use actix_web::http::Method;
use actix_web::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HOST,
    HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};

/// What a page may send, and what it may read of an answer, beyond what browsers allow by themselves.
const MAY_SEND: &str = "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, Prefer, traceparent, tracestate, X-Request-Id";
pub(super) const MAY_READ: &str = "Allow, ETag, Idempotent-Replayed, Link, Location, Preference-Applied, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate, X-Request-Id";
const METHODS: &str = "GET, HEAD, POST, PUT, DELETE";
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

    /// Whether a browser says that a page of another origin would change something. Programs send neither header.
    pub(super) fn is_foreign_change(&self, method: &Method, headers: &HeaderMap) -> bool {
        if method.is_safe() || self.origin(headers).is_some() {
            return false;
        }
        !is_from_here(headers)
    }

    /// Whether answers depend on who asks.
    pub(super) fn is_on(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Whether a request comes from a page of this server, as far as the browser says, or from no page at all.
pub(super) fn is_from_here(headers: &HeaderMap) -> bool {
    headers
        .get_all(SEC_FETCH_SITE)
        // `none` is a person, who typed the address.
        .all(|site| matches!(site.as_bytes(), b"same-origin" | b"none"))
        && headers
            .get_all(ORIGIN)
            .all(|origin| is_ours(origin, headers))
}

/// Where a browser says whose page sends a request.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether an origin is the server that was asked, by the name that it was asked by.
fn is_ours(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST) else {
        return false;
    };
    [&b"http://"[..], b"https://"]
        .iter()
        .filter_map(|scheme| origin.as_bytes().strip_prefix(*scheme))
        .any(|named| named.eq_ignore_ascii_case(host.as_bytes()))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn is_refused(method: &Method, sent: &[(&'static str, &'static str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in [("host", "127.0.0.1:8080")].iter().chain(sent) {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        Cors::new(vec!["https://shop.example".to_owned()]).is_foreign_change(method, &headers)
    }

    #[test]
    fn only_our_own_and_configured_pages_and_programs_change_anything() {
        for (sent, refused) in [
            (&[][..], false),
            (&[("origin", "http://127.0.0.1:8080")], false),
            (&[("origin", "https://shop.example")], false),
            (
                &[
                    ("origin", "https://shop.example"),
                    ("sec-fetch-site", "cross-site"),
                ],
                false,
            ),
            (&[("sec-fetch-site", "same-origin")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("sec-fetch-site", "cross-site")], true),
            (&[("sec-fetch-site", "same-site")], true),
            (&[("origin", "null")], true),
            (&[("origin", "http://127.0.0.1:8081")], true),
            (&[("origin", "http://127.0.0.1")], true),
            (&[("origin", "http://127.0.0.1:8080.evil.example")], true),
            (&[("origin", "https://shop.example.evil.example")], true),
            (&[("origin", "ftp://127.0.0.1:8080")], true),
            (
                &[
                    ("origin", "http://127.0.0.1:8080"),
                    ("origin", "https://evil.example"),
                ],
                true,
            ),
        ] {
            for method in [Method::POST, Method::PUT, Method::DELETE] {
                assert_eq!(is_refused(&method, sent), refused, "{method} {sent:?}");
            }
            for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
                assert!(!is_refused(&method, sent), "{method} {sent:?}");
            }
        }
    }
}
