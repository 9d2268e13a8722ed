//! `/`: a page for operators. It is in the executable, loads nothing from elsewhere, and asks this API as any other
//! program does.

use std::sync::LazyLock;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, ETAG};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse};

use super::answer::{self, not_modified, version};
use super::auth::Needs;
use super::conditions::is_known;
use super::routes::At;

/// A part of the page.
struct Part {
    content_type: &'static str,
    text: &'static str,
    version: LazyLock<String>,
}

static PAGE: Part = Part {
    content_type: "text/html; charset=utf-8",
    text: include_str!("page/index.html"),
    version: LazyLock::new(|| version(PAGE.text.as_bytes())),
};
static SCRIPT: Part = Part {
    content_type: "text/javascript; charset=utf-8",
    text: include_str!("page/page.js"),
    version: LazyLock::new(|| version(SCRIPT.text.as_bytes())),
};
static STYLE: Part = Part {
    content_type: "text/css; charset=utf-8",
    text: include_str!("page/page.css"),
    version: LazyLock::new(|| version(STYLE.text.as_bytes())),
};

/// What the page may do: run its script, wear its style, and call this API.
const PAGE_MAY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; \
                        base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

impl Part {
    fn answer(&self, request: &HttpRequest) -> HttpResponse {
        // Asked for again each time, so that a new version of this program is seen at once. What a 304 says replaces what
        // the browser has kept, so it has to say the same.
        let mut answer = if is_known(request.headers(), &self.version) {
            not_modified(&self.version, answer::ASK_AGAIN)
        } else {
            let body = Bytes::from_static(self.text.as_bytes());
            answer::with_body(request, self.content_type, body)
        };
        let headers = answer.headers_mut();
        for (name, value) in [
            (CONTENT_SECURITY_POLICY, PAGE_MAY),
            (CACHE_CONTROL, answer::ASK_AGAIN),
            (ETAG, &self.version),
        ] {
            if let Ok(value) = value.parse() {
                headers.insert(name, value);
            }
        }
        answer
    }
}

/// The operator's page
///
/// For people: what goes on, orders and their history, products, dead letters.
#[utoipa::path(get, path = "/", tag = "operations",
    params(("If-None-Match" = Option<String>, Header, description = "The ETag of what you have")),
    responses(
        (status = 200, description = "The page", content_type = "text/html", body = String, headers(("ETag" = String, description = "Its version"))),
        (status = 304, description = "You have it")))]
pub(super) async fn page(request: HttpRequest) -> HttpResponse {
    PAGE.answer(&request)
}

/// The operator's page's script
#[utoipa::path(get, path = "/page/page.js", tag = "operations",
    params(("If-None-Match" = Option<String>, Header, description = "The ETag of what you have")),
    responses(
        (status = 200, description = "The script", content_type = "text/javascript", body = String, headers(("ETag" = String, description = "Its version"))),
        (status = 304, description = "You have it")))]
pub(super) async fn script(request: HttpRequest) -> HttpResponse {
    SCRIPT.answer(&request)
}

/// The operator's page's style
#[utoipa::path(get, path = "/page/page.css", tag = "operations",
    params(("If-None-Match" = Option<String>, Header, description = "The ETag of what you have")),
    responses(
        (status = 200, description = "The style", content_type = "text/css", body = String, headers(("ETag" = String, description = "Its version"))),
        (status = 304, description = "You have it")))]
pub(super) async fn style(request: HttpRequest) -> HttpResponse {
    STYLE.answer(&request)
}

/// Where they are.
pub(super) fn at() -> [At; 3] {
    [
        At::new("/").of_type("text/html").get(Needs::Nothing, page),
        At::new("/page/page.js")
            .of_type("text/javascript")
            .get(Needs::Nothing, script),
        At::new("/page/page.css")
            .of_type("text/css")
            .get(Needs::Nothing, style),
    ]
}
