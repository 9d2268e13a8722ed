//! A vendor's HTTP API, as we call it.

use std::time::Duration;

use chrono::Utc;
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, HeaderValue, RETRY_AFTER};

use crate::domain::ids::UpdateId;
use crate::domain::messages::UpdateItem;
use crate::domain::trace::{TRACEPARENT, TRACESTATE};
use crate::domain::update::Update;
use crate::domain::vendor_answer::{self, Answers};
use crate::domain::vendor_api::{UpdatesRequest, retry_after};
use crate::outgoing;
use crate::traces;

/// Most bytes of an answer: a result is about 200 bytes, and a request has at most 1000 updates.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// As much of an answer that is none is shown to people.
const SHOWN_CHARS_MAX: usize = 300;

/// Why a call has no usable answer. The updates may have been applied all the same; their ids make repeating safe.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection, no answer in time, or the connection broke.
    #[error("the vendor's API at {url} cannot be reached: {problem}")]
    Unreachable {
        /// What was called.
        url: String,
        /// What happened.
        problem: String,
    },
    /// An answer other than 200.
    #[error("the vendor's API at {url} answered {status}: {body}")]
    Status {
        /// What was called.
        url: String,
        /// The status.
        status: u16,
        /// The beginning of the answer.
        body: String,
        /// How long the vendor asks not to be called, where it does.
        retry_after: Option<Duration>,
    },
    /// An answer that is none.
    #[error("the vendor's API at {url} answered nonsense: {problem}")]
    Nonsense {
        /// What was called.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// A client of one vendor's API.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    authorization: Option<HeaderValue>,
    url: String,
    /// As `url`, without what it may hold of a password.
    shown_url: String,
}

impl Client {
    /// Prepares a client; nothing is connected before the first call.
    ///
    /// # Errors
    /// The TLS library cannot be set up, or `api_ca` has no certificates in PEM.
    pub fn new(
        api_url: &str,
        api_key: Option<&str>,
        api_ca: Option<&[u8]>,
        timeout: Duration,
    ) -> Result<Self, reqwest::Error> {
        let mut http = outgoing::client(!api_url.starts_with("http:"))
            .timeout(timeout)
            .connect_timeout(timeout);
        if let Some(pem) = api_ca {
            http = http.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem)?);
        }
        let http = http.build()?;
        // The configuration lets no key through that a header cannot have.
        let authorization = api_key.and_then(|key| {
            let mut value = HeaderValue::try_from(format!("Bearer {key}")).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        let url = format!("{}/stock-updates", api_url.trim_end_matches('/'));
        let shown_url = url::Url::parse(&url).map_or_else(
            |_| "the configured address".to_owned(),
            |mut url| {
                // Both fail only for a URL that has no host, and so no password.
                let _ = url.set_password(None);
                let _ = url.set_username("");
                url.to_string()
            },
        );
        Ok(Self {
            http,
            authorization,
            url,
            shown_url,
        })
    }

    /// Sends updates and returns what the vendor holds for each.
    ///
    /// # Errors
    /// The vendor has no usable answer; see [`Error`].
    pub async fn send(&self, source: &str, updates: &[Update]) -> Result<Answers, Error> {
        let unreachable = |error| self.unreachable(error);
        let request = UpdatesRequest {
            source: Some(source.to_owned()),
            updates: updates.iter().map(UpdateItem::from).collect(),
        };
        let mut call = self.authorized(self.http.post(&self.url)).json(&request);
        if let Some(context) = traces::current() {
            call = call.header(TRACEPARENT, context.traceparent());
            if let Some(state) = context.tracestate() {
                call = call.header(TRACESTATE, state);
            }
        }
        let mut response = call.send().await.map_err(unreachable)?;
        let status = response.status();
        let retry_after = asked_pause(&response);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(self.nonsense(format!("more than {ANSWER_BYTES_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        if status != StatusCode::OK {
            return Err(Error::Status {
                url: self.shown_url.clone(),
                status: status.as_u16(),
                body: vendor_answer::shown(&String::from_utf8_lossy(&body), SHOWN_CHARS_MAX),
                retry_after,
            });
        }
        let sent: Vec<UpdateId> = updates.iter().map(|update| update.id).collect();
        vendor_answer::read(&sent, &body).map_err(|problem| self.nonsense(problem))
    }

    /// Looks whether the vendor's API is there, by HEAD, which changes nothing anywhere.
    ///
    /// # Errors
    /// It cannot be reached, or has answered something other than 200, which need not mean that it is down.
    pub async fn look(&self) -> Result<(), Error> {
        let call = self.authorized(self.http.head(&self.url));
        let response = call.send().await.map_err(|error| self.unreachable(error))?;
        if response.status() == StatusCode::OK {
            return Ok(());
        }
        Err(Error::Status {
            url: self.shown_url.clone(),
            status: response.status().as_u16(),
            body: String::new(),
            retry_after: asked_pause(&response),
        })
    }

    fn authorized(&self, call: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.authorization {
            Some(authorization) => call.header(AUTHORIZATION, authorization.clone()),
            None => call,
        }
    }

    fn unreachable(&self, error: reqwest::Error) -> Error {
        Error::Unreachable {
            url: self.shown_url.clone(),
            problem: outgoing::with_sources(&error.without_url()),
        }
    }

    fn nonsense(&self, problem: String) -> Error {
        Error::Nonsense {
            url: self.shown_url.clone(),
            problem,
        }
    }
}

/// How long the vendor asks not to be called.
fn asked_pause(response: &reqwest::Response) -> Option<Duration> {
    match response.status() {
        // Only these say by it when to come again; a redirection says something else.
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| retry_after(value.to_str().ok()?, Utc::now())),
        _ => None,
    }
}
