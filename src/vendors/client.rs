//! A vendor's HTTP API, as we call it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::domain::book::Answer;
use crate::domain::ids::UpdateId;
use crate::domain::messages::UpdateItem;
use crate::domain::update::Update;
use crate::domain::vendor_api::{UpdateResult, UpdatesRequest, UpdatesResponse};

/// Most bytes of an answer: a result is about 200 bytes, and a request has at most 1000 updates.
const ANSWER_BYTES_MAX: usize = 1 << 20;

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

/// What a vendor answered.
#[derive(Debug, Default)]
pub struct Answers {
    /// The updates whose outcome its ledger holds.
    pub recorded: Vec<Answer>,
    /// The updates that it refused because it knows their id with another content.
    pub conflicts: Vec<UpdateId>,
    /// The updates that it left out of its answer.
    pub missing: Vec<UpdateId>,
}

/// A client of one vendor's API.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    /// As `url`, without what it may hold of a password.
    shown_url: String,
}

impl Client {
    /// Prepares a client; nothing is connected before the first call.
    ///
    /// # Errors
    /// The TLS library cannot be set up.
    pub fn new(api_url: &str, timeout: Duration) -> Result<Self, reqwest::Error> {
        // Fails only when a provider was set before, and any will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout)
            // A redirected POST would silently become a GET.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("stockctl/", env!("CARGO_PKG_VERSION")))
            .build()?;
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
            url,
            shown_url,
        })
    }

    /// Sends updates and returns what the vendor holds for each.
    ///
    /// # Errors
    /// The vendor has no usable answer; see [`Error`].
    pub async fn send(&self, source: &str, updates: &[Update]) -> Result<Answers, Error> {
        let unreachable = |error: reqwest::Error| Error::Unreachable {
            url: self.shown_url.clone(),
            problem: with_sources(&error.without_url()),
        };
        let request = UpdatesRequest {
            source: Some(source.to_owned()),
            updates: updates.iter().map(UpdateItem::from).collect(),
        };
        let mut response = self
            .http
            .post(&self.url)
            .json(&request)
            .send()
            .await
            .map_err(unreachable)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(self.nonsense(format!("more than {ANSWER_BYTES_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        if status != reqwest::StatusCode::OK {
            return Err(Error::Status {
                url: self.shown_url.clone(),
                status: status.as_u16(),
                body: String::from_utf8_lossy(&body).chars().take(300).collect(),
            });
        }
        let response: UpdatesResponse =
            serde_json::from_slice(&body).map_err(|error| self.nonsense(error.to_string()))?;
        Ok(sort(updates, response.results))
    }

    fn nonsense(&self, problem: String) -> Error {
        Error::Nonsense {
            url: self.shown_url.clone(),
            problem,
        }
    }
}

/// Sorts the results by what they mean for the updates that were sent; results for others are ignored.
fn sort(sent: &[Update], results: Vec<UpdateResult>) -> Answers {
    let by_id: BTreeMap<UpdateId, UpdateResult> = results
        .into_iter()
        .map(|result| (result.id, result))
        .collect();
    let mut answers = Answers::default();
    for update in sent {
        match by_id
            .get(&update.id)
            .map(|result| result.outcome.recorded())
        {
            None => answers.missing.push(update.id),
            Some(None) => answers.conflicts.push(update.id),
            Some(Some(outcome)) => answers.recorded.push(Answer {
                id: update.id,
                outcome,
            }),
        }
    }
    answers
}

/// An error with all that caused it: reqwest's own text says only "error sending request".
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
