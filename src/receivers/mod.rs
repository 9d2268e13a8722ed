//! Receivers of webhooks, as we call them: wherever somebody has said they are, so each address is looked at before it is
//! connected to, and what they answer is hardly read.

mod resolver;

use std::error::Error as _;
use std::sync::OnceLock;
use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};

use self::resolver::{Refused, Resolver};
use crate::domain::vendor_api::retry_after;
use crate::domain::webhooks::{HEADER_ID, HEADER_SIGNATURE, HEADER_TIMESTAMP, Secret, check_host};
use crate::outgoing;

/// So much of an answer is read, so that its connection can be used again; with a longer one it is closed.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The status is the answer. Its body is waited for no longer than this.
const BODY_DEADLINE: Duration = Duration::from_secs(1);
/// Connections that are kept for a receiver that is told nothing.
const IDLE_CONNECTIONS_MAX: usize = 4;
/// And for how long.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// What a receiver answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It has it.
    Taken,
    /// It wants no more.
    Gone,
    /// It has not, and what anybody may read of why: nothing of a body is in it, since who subscribes need not be who may
    /// read what is there.
    Failed {
        /// For a person.
        error: String,
        /// How long it asks to be left alone, where it does.
        retry_after: Option<Duration>,
    },
}

impl Answer {
    fn failed(error: impl Into<String>) -> Self {
        Self::Failed {
            error: error.into(),
            retry_after: None,
        }
    }
}

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub struct Sent<'a> {
    /// Where to.
    pub url: &'a str,
    /// The message's id.
    pub id: &'a str,
    /// When, which is signed too.
    pub at: DateTime<Utc>,
    /// What it is signed with.
    pub secret: &'a Secret,
    /// The message.
    pub body: &'a str,
}

/// A client of all receivers. Nothing is prepared before the first call.
pub struct Client {
    allow_private: bool,
    timeout: Duration,
    of_http: OnceLock<reqwest::Client>,
    of_https: OnceLock<reqwest::Client>,
}

impl Client {
    /// A client that calls private addresses, and http:, or not; each call may take as long as that.
    #[must_use]
    pub fn new(allow_private: bool, timeout: Duration) -> Self {
        Self {
            allow_private,
            timeout,
            of_http: OnceLock::new(),
            of_https: OnceLock::new(),
        }
    }

    /// Sends a message.
    pub async fn send(&self, sent: Sent<'_>) -> Answer {
        let Ok(url) = Url::parse(sent.url) else {
            return Answer::failed("its address is none");
        };
        if let Err(problem) = check_host(&url, self.allow_private) {
            return Answer::failed(problem);
        }
        let client = match self.client(&url) {
            Ok(client) => client,
            Err(problem) => return Answer::failed(problem),
        };
        let timestamp = sent.at.timestamp();
        let called = client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header(HEADER_ID, sent.id)
            .header(HEADER_TIMESTAMP, timestamp)
            .header(
                HEADER_SIGNATURE,
                sent.secret.sign(sent.id, timestamp, sent.body),
            )
            .body(sent.body.to_owned())
            .send()
            .await;
        match called {
            Ok(response) => {
                let answer = judge(&response, sent.at);
                // Whatever comes of it, the status has been said.
                let _ = tokio::time::timeout(BODY_DEADLINE, read_to_end(response)).await;
                answer
            }
            Err(error) => Answer::failed(self.told(&error)),
        }
    }

    fn client(&self, url: &Url) -> Result<&reqwest::Client, String> {
        let is_https = url.scheme() == "https";
        if !is_https && !self.allow_private {
            return Err(
                "its address must begin with https: unless webhooks.allow_private is set"
                    .to_owned(),
            );
        }
        let place = if is_https {
            &self.of_https
        } else {
            &self.of_http
        };
        if let Some(client) = place.get() {
            return Ok(client);
        }
        let built = self.build(is_https).map_err(|error| {
            tracing::error!(%error, "no client for receivers of webhooks can be made");
            "no TLS can be spoken here".to_owned()
        })?;
        Ok(place.get_or_init(|| built))
    }

    fn build(&self, is_https: bool) -> Result<reqwest::Client, reqwest::Error> {
        outgoing::client(is_https)
            .timeout(self.timeout)
            .connect_timeout(self.timeout)
            // One from the environment would connect in our place, to whatever it is told.
            .no_proxy()
            .dns_resolver(Resolver::new(self.allow_private))
            .https_only(is_https)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .pool_idle_timeout(IDLE_MAX)
            .build()
    }

    /// An error in words that anybody may read: the path and what is behind it may be a secret.
    fn told(&self, error: &reqwest::Error) -> String {
        let mut source = error.source();
        let mut innermost = None;
        while let Some(cause) = source {
            if let Some(refused) = cause.downcast_ref::<Refused>() {
                return refused.to_string();
            }
            innermost = Some(cause.to_string());
            source = cause.source();
        }
        if error.is_timeout() {
            return format!("no answer within {} ms", self.timeout.as_millis());
        }
        let what = if error.is_connect() {
            "it cannot be connected to"
        } else {
            "the connection broke"
        };
        match innermost {
            Some(cause) => format!("{what}: {cause}"),
            None => what.to_owned(),
        }
    }
}

fn judge(response: &Response, now: DateTime<Utc>) -> Answer {
    let status = response.status();
    if status.is_success() {
        return Answer::Taken;
    }
    let retry_after = match status {
        StatusCode::GONE => return Answer::Gone,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| retry_after(value.to_str().ok()?, now)),
        _ => None,
    };
    let also = if status.is_redirection() {
        ", and redirects are not followed"
    } else {
        ""
    };
    Answer::Failed {
        error: format!("it answered {}{also}", status.as_u16()),
        retry_after,
    }
}

async fn read_to_end(mut response: Response) {
    let mut bytes = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        bytes += chunk.len();
        if bytes > ANSWER_BYTES_MAX {
            return;
        }
    }
}
