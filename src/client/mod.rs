//! The HTTP API of this product, as its callers see it: what `stockctl orders` and `stockctl products` talk through.
//!
//! It knows nothing of the product but the API, so it works from any machine that reaches one; and it reads answers
//! leniently, since the server may be newer than this client.

mod answers;
mod repeat;

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, RequestBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::{Host, Url};
use uuid::Uuid;

use crate::outgoing;

pub use answers::{
    AtVendor, Event, FieldProblem, Line, Order, Page, Problem, Product, Reason, Update,
};
pub use repeat::{Repeated, repeat, unless_limited};

/// To reach a server takes milliseconds, over the world a second.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// A request without an answer for this long has none: the server's own deadlines are shorter.
const REQUEST_DEADLINE: Duration = Duration::from_secs(20);
/// Most bytes of an answer: 200 orders of 100 lines with an update or two for each are 10 MB.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// The longest wait that the API grants to one request.
pub const WAIT_MAX: Duration = Duration::from_secs(30);
/// Items of one page of a list: the most that the API gives.
pub const PAGE_MAX: usize = 200;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be used.
    #[error("{url} is no address of an HTTP API: {problem}")]
    Address {
        /// As given, without a password.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The API key cannot be sent.
    #[error("the API key has characters that none has")]
    Key,
    /// Nobody answers.
    #[error("the API at {at} cannot be reached: {problem}")]
    Unreachable {
        /// Its address.
        at: String,
        /// What happened.
        problem: String,
        /// Whether the request may have arrived, and only its answer is lost.
        may_have_arrived: bool,
    },
    /// An answer that is none of this product's.
    #[error(
        "{at} answered {status}, but not as stockctl's API does ({problem}); is the address right?"
    )]
    Nonsense {
        /// Its address.
        at: String,
        /// The status.
        status: u16,
        /// What is wrong with it.
        problem: String,
    },
    /// The client cannot be set up.
    #[error("no HTTP client can be set up: {0}")]
    Setup(reqwest::Error),
}

/// What the API has answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body, as it came.
    pub body: String,
    /// How long it asks not to be called again.
    pub retry_after: Option<Duration>,
    /// Whether it has waited for the outcome, as it was asked to.
    pub has_waited: bool,
    /// Whether the order had been accepted before.
    pub is_replayed: bool,
    at: String,
}

impl Answer {
    /// Whether it is what was asked for.
    #[must_use]
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Reads what was asked for.
    ///
    /// # Errors
    /// It is something else: [`Error::Nonsense`].
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_str(&self.body).map_err(|error| Error::Nonsense {
            at: self.at.clone(),
            status: self.status,
            problem: error.to_string(),
        })
    }

    /// Reads why it is not what was asked for; none where whoever answered does not say so as this product does.
    #[must_use]
    pub fn problem(&self) -> Option<Problem> {
        serde_json::from_str(&self.body).ok()
    }

    /// One without headers and body.
    #[cfg(test)]
    pub(crate) fn of_status(status: u16) -> Self {
        Self::new("nowhere", status, &HeaderMap::new(), String::new())
    }

    fn new(at: &str, status: u16, headers: &HeaderMap, body: String) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        Self {
            status,
            body,
            // A date instead of seconds is not what this API sends.
            retry_after: text(RETRY_AFTER.as_str())
                .and_then(|seconds| seconds.trim().parse().ok())
                .map(Duration::from_secs),
            has_waited: text("preference-applied").is_some_and(|value| value.contains("wait")),
            is_replayed: text("idempotent-replayed") == Some("true"),
            at: at.to_owned(),
        }
    }
}

/// An order to place.
#[derive(Debug, Clone, Serialize)]
pub struct NewOrder {
    /// What is ordered.
    pub lines: Vec<Line>,
    /// A remark of whoever orders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// Which orders.
#[derive(Debug, Clone, Default)]
pub struct OrderFilter {
    /// Only those that stand so.
    pub status: Option<String>,
    /// Only those with a line of this product.
    pub product: Option<String>,
}

/// Which products.
#[derive(Debug, Clone, Default)]
pub struct ProductFilter {
    /// Only those with this in their id or name.
    pub text: Option<String>,
    /// Only those that this vendor has listed.
    pub vendor: Option<String>,
    /// Only those that are available.
    pub in_stock: bool,
}

/// A client of one API.
#[derive(Debug, Clone)]
pub struct Api {
    http: reqwest::Client,
    key: Option<HeaderValue>,
    base: Url,
    /// As `base`, without what it may hold of a password.
    shown: String,
}

impl Api {
    /// Prepares a client; nothing is connected before the first call.
    ///
    /// # Errors
    /// The address, or the certificates, cannot be used.
    pub fn new(address: &str, authorities: Option<&[u8]>) -> Result<Self, Error> {
        let base = parse(address)?;
        let mut http = outgoing::client(base.scheme() == "https").connect_timeout(CONNECT_DEADLINE);
        if let Some(pem) = authorities {
            let certificates = reqwest::Certificate::from_pem_bundle(pem).map_err(Error::Setup)?;
            http = http.tls_certs_merge(certificates);
        }
        if is_this_machine(&base) {
            // A proxy would look for it on a machine of its own.
            http = http.no_proxy();
        }
        Ok(Self {
            http: http.build().map_err(Error::Setup)?,
            key: None,
            shown: without_password(&base),
            base,
        })
    }

    /// The same client, with an API key.
    ///
    /// # Errors
    /// No header can have that key.
    pub fn with_key(mut self, key: &str) -> Result<Self, Error> {
        let mut value = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| Error::Key)?;
        value.set_sensitive(true);
        self.key = Some(value);
        Ok(self)
    }

    /// Its address, as it may be shown.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.shown
    }

    /// Places an order. With the same key and the same order it is the same order, however often it is placed.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn place(
        &self,
        order: &NewOrder,
        key: &str,
        wait: Option<Duration>,
    ) -> Result<Answer, Error> {
        let request = self
            .request(Method::POST, &["orders"], &[])
            // Quoted, as the header's definition has it, so that a key may begin or end with a space.
            .header("Idempotency-Key", quoted(key))
            .json(order);
        self.send(request, wait).await
    }

    /// One order; with `wait`, once it is decided or so much time has gone by.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn order(&self, id: Uuid, wait: Option<Duration>) -> Result<Answer, Error> {
        let request = self.request(Method::GET, &["orders", &id.to_string()], &[]);
        self.send(request, wait).await
    }

    /// Takes an order back.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn cancel(&self, id: Uuid) -> Result<Answer, Error> {
        let path = ["orders", &id.to_string(), "cancel"];
        self.send(self.request(Method::POST, &path, &[]), None)
            .await
    }

    /// A page of orders, the newest first.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn orders(
        &self,
        filter: &OrderFilter,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<Answer, Error> {
        let query = [
            ("status", filter.status.as_deref()),
            ("productId", filter.product.as_deref()),
            ("limit", Some(&*limit.to_string())),
            ("cursor", cursor),
        ];
        self.send(self.request(Method::GET, &["orders"], &query), None)
            .await
    }

    /// A page of products, by id.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn products(
        &self,
        filter: &ProductFilter,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<Answer, Error> {
        let query = [
            ("q", filter.text.as_deref()),
            ("vendor", filter.vendor.as_deref()),
            ("inStock", filter.in_stock.then_some("true")),
            ("limit", Some(&*limit.to_string())),
            ("cursor", cursor),
        ];
        self.send(self.request(Method::GET, &["products"], &query), None)
            .await
    }

    /// One product.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn product(&self, id: &str) -> Result<Answer, Error> {
        self.send(self.request(Method::GET, &["products", id], &[]), None)
            .await
    }

    fn request(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, Option<&str>)],
    ) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        for (name, value) in query {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        let request = self.http.request(method, url);
        match &self.key {
            Some(key) => request.header(AUTHORIZATION, key.clone()),
            None => request,
        }
    }

    async fn send(
        &self,
        mut request: RequestBuilder,
        wait: Option<Duration>,
    ) -> Result<Answer, Error> {
        let mut deadline = REQUEST_DEADLINE;
        if let Some(wait) = wait {
            let wait_s = whole_seconds(wait.min(WAIT_MAX));
            request = request.header("Prefer", format!("wait={wait_s}"));
            deadline += Duration::from_secs(wait_s);
        }
        let unreachable = |error: reqwest::Error| Error::Unreachable {
            at: self.shown.clone(),
            may_have_arrived: !error.is_connect(),
            problem: outgoing::with_sources(&error.without_url()),
        };
        let mut response = request
            .timeout(deadline)
            .send()
            .await
            .map_err(unreachable)?;
        let status = response.status().as_u16();
        let nonsense = |problem: String| Error::Nonsense {
            at: self.shown.clone(),
            status,
            problem,
        };
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(nonsense(format!("more than {ANSWER_BYTES_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        let body = String::from_utf8(body).map_err(|error| nonsense(error.to_string()))?;
        Ok(Answer::new(&self.shown, status, response.headers(), body))
    }
}

/// A wait in the whole seconds that the API counts in, and not a shorter one.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// A string of structured fields (RFC 9651).
fn quoted(key: &str) -> String {
    format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""))
}

fn parse(address: &str) -> Result<Url, Error> {
    let unusable = |url: String, problem: &str| Error::Address {
        url,
        problem: format!("{problem}; write for example http://127.0.0.1:8080"),
    };
    // What cannot be read as a URL may hold a password anywhere, and is not repeated.
    let url = Url::parse(address.trim())
        .map_err(|error| unusable("what was given".to_owned(), &error.to_string()))?;
    let shown = without_password(&url);
    if !["http", "https"].contains(&url.scheme()) {
        return Err(unusable(shown, "it must begin with http:// or https://"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(unusable(shown, "it must end with the path"));
    }
    Ok(url)
}

fn without_password(url: &Url) -> String {
    let mut url = url.clone();
    // Both fail only for a URL that has no host, and so no password.
    let _ = url.set_password(None);
    let _ = url.set_username("");
    url.as_str().trim_end_matches('/').to_owned()
}

fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_http_and_shown_without_its_password() {
        for (address, shown) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
            (
                "https://me:hush@shop.example/stock/",
                "https://shop.example/stock",
            ),
            (" http://[::1]:80 ", "http://[::1]"),
        ] {
            assert_eq!(Api::new(address, None).expect("usable").address(), shown);
        }
        for (address, problem) in [
            (
                "",
                "what was given is no address of an HTTP API: relative URL",
            ),
            (
                "127.0.0.1:8080",
                "what was given is no address of an HTTP API: ",
            ),
            ("localhost:8080", "it must begin with http:// or https://"),
            (
                "ftp://me:hush@shop.example",
                "ftp://shop.example is no address",
            ),
            ("http://shop.example/?a=b", "it must end with the path"),
        ] {
            let error = Api::new(address, None).expect_err(address).to_string();
            assert!(error.contains(problem), "{address}: {error}");
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn whatever_an_id_holds_the_path_has_one_part_for_it() {
        let api = Api::new("http://127.0.0.1:8080/stock", None).expect("usable");
        for (id, path) in [
            ("p1", "/stock/products/p1"),
            ("a/b?c#d", "/stock/products/a%2Fb%3Fc%23d"),
            ("50% é", "/stock/products/50%25%20%C3%A9"),
        ] {
            let request = api.request(Method::GET, &["products", id], &[]);
            assert_eq!(request.build().expect("a request").url().path(), path);
        }
        let query = [("q", Some("a&b=c")), ("vendor", None), ("limit", Some("5"))];
        let request = api.request(Method::GET, &["products"], &query);
        let url = request.build().expect("a request").url().to_string();
        assert_eq!(
            url,
            "http://127.0.0.1:8080/stock/products?q=a%26b%3Dc&limit=5"
        );
    }

    #[test]
    fn a_key_is_quoted_and_a_wait_is_not_shortened() {
        assert_eq!(quoted("checkout-4711"), "\"checkout-4711\"");
        assert_eq!(quoted(r#"a "b" \c"#), r#""a \"b\" \\c""#);
        assert_eq!(whole_seconds(Duration::ZERO), 0);
        assert_eq!(whole_seconds(Duration::from_secs(5)), 5);
        assert_eq!(whole_seconds(Duration::from_millis(4001)), 5);
    }

    #[test]
    fn only_this_machine_is_reached_past_a_proxy() {
        for (address, expected) in [
            ("http://127.0.0.1:8080", true),
            ("http://[::1]:8080", true),
            ("http://localhost", true),
            ("http://localhost.example", false),
            ("http://10.0.0.1", false),
        ] {
            let url = Url::parse(address).expect("a URL");
            assert_eq!(is_this_machine(&url), expected, "{address}");
        }
    }
}
