//! Errors as the caller sees them: `application/problem+json` (RFC 9457) with a stable `code`.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, ContentType, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpRequest, HttpResponse, ResponseError, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::request_id::RequestId;
use crate::app::accept::NotAccepted;
use crate::app::{self, Kind};
use crate::domain::ids::OrderId;
use crate::domain::order::Invalid;
use crate::domain::tally::Tally;

/// A kind of problem: its code, its status and its title never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// Stable, for programs.
    pub code: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// For people, the same for every occurrence.
    pub title: &'static str,
    /// What its caller does about it.
    pub advice: &'static str,
}

/// Makes a constant of each kind, and the table of all of them.
macro_rules! codes {
    ($($name:ident = $status:literal $code:literal, $title:literal, $advice:literal;)*) => {
        $(
            #[doc = $title]
            pub const $name: Code = Code {
                code: $code,
                status: $status,
                title: $title,
                advice: $advice,
            };
        )*
        /// Every kind of problem there is, by status.
        pub const CODES: &[Code] = &[$($name),*];
    };
}

codes! {
    MALFORMED_JSON = 400 "malformed_json", "The body is not valid JSON",
        "Mend the body; the pointer says how far it could be read.";
    MALFORMED_REQUEST = 400 "malformed_request", "The request is not valid HTTP",
        "Mend the program that sent it, or use another HTTP client; nothing was done.";
    INCOMPLETE_BODY = 400 "incomplete_body", "The body did not arrive whole",
        "Send it again; nothing was done.";
    INVALID_PARAMETER = 400 "invalid_parameter", "A parameter is not valid",
        "Mend the parameter of the query or the header that is named.";
    TLS_REQUIRED = 400 "tls_required", "TLS is spoken here",
        "Use https: instead of http: in the address.";
    UNAUTHENTICATED = 401 "unauthenticated", "An API key is needed",
        "Send Authorization: Bearer and a key; stockctl keys create makes one.";
    INVALID_KEY = 401 "invalid_key", "The API key opens nothing",
        "Use another key: this one is unknown, has expired or was revoked.";
    CROSS_ORIGIN = 403 "cross_origin", "A page of another origin may not do that",
        "Call from a page of this server, from an origin in http.cors_origins, or from a program.";
    INSUFFICIENT_SCOPE = 403 "insufficient_scope", "The API key does not allow that",
        "Use a key with the scope that is named.";
    NOT_FOUND = 404 "not_found", "There is no such thing",
        "Check the path and the id.";
    METHOD_NOT_ALLOWED = 405 "method_not_allowed", "The method is not allowed here",
        "Use one of the methods in the header Allow.";
    NOT_ACCEPTABLE = 406 "not_acceptable", "It cannot be had in that form",
        "Accept the media type that is named.";
    REQUEST_TIMEOUT = 408 "request_timeout", "The request took too long to arrive",
        "Send it again, faster; nothing was done.";
    NOT_CANCELLABLE = 409 "not_cancellable", "The order cannot be cancelled",
        "Look at the order's status.";
    WEBHOOK_CONFIGURED = 409 "webhook_configured", "The configuration has this webhook",
        "Take it out of the configuration file, and restart `work`.";
    TOO_MANY_WEBHOOKS = 409 "too_many_webhooks", "There are as many webhooks as there may be",
        "Delete one that is not needed.";
    PRECONDITION_FAILED = 412 "precondition_failed", "It has changed meanwhile",
        "Read it again, and repeat the request with the new ETag.";
    BODY_TOO_LARGE = 413 "body_too_large", "The body is too large",
        "Send less at once; the limit is named.";
    URI_TOO_LONG = 414 "uri_too_long", "The address is too long",
        "Ask for less; the limit is named.";
    UNSUPPORTED_MEDIA_TYPE = 415 "unsupported_media_type", "The body must be application/json",
        "Send JSON, as Content-Type: application/json.";
    MISDIRECTED_REQUEST = 421 "misdirected_request", "The request is for another host",
        "Call by localhost, by a loopback address, or by a name in http.hosts.";
    VALIDATION_FAILED = 422 "validation_failed", "The request is not valid",
        "Mend the fields that the pointers name.";
    IDEMPOTENCY_CONFLICT = 422 "idempotency_conflict", "The idempotency key belongs to another request",
        "Use a new key for a new request.";
    HEADERS_TOO_LARGE = 431 "headers_too_large", "The headers are too large",
        "Send fewer or shorter headers: 96, and 128 KiB in all, are allowed.";
    RATE_LIMITED = 429 "rate_limited", "Too many requests of this caller",
        "Nothing was done; repeat it after Retry-After, and more slowly.";
    INTERNAL = 500 "internal", "Something went wrong here",
        "Ours to mend: it is in the log under the request's id.";
    UNAVAILABLE = 503 "unavailable", "Temporarily unavailable",
        "Repeat it after Retry-After; nothing happens twice by that.";
    BUSY = 503 "busy", "Too many orders are waiting",
        "Nothing was accepted; repeat it after Retry-After, and more slowly.";
    TOO_MANY_LISTENERS = 503 "too_many_listeners", "Too many listen to events",
        "Connect again after Retry-After, or to another process.";
    OUTCOME_UNKNOWN = 503 "outcome_unknown", "Whether it was done is not known",
        "Repeat it with the same Idempotency-Key or If-Match, or look whether it was: an order by orderId, a webhook in the list.";
    NOT_YET_VISIBLE = 503 "not_yet_visible", "The order may be on its way",
        "Ask again after Retry-After.";
}

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldProblem {
    /// A JSON pointer into the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub pointer: Option<String>,
    /// A parameter of the query, or a header.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub parameter: Option<String>,
    /// What is wrong, and what is allowed.
    pub detail: String,
}

/// One occurrence of a problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem(Box<Occurrence>);

/// What there is to say about one. In a box, so that what may fail is no larger by it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Occurrence {
    code: Code,
    detail: String,
    errors: Vec<FieldProblem>,
    order_id: Option<OrderId>,
    retry_after_s: Option<u32>,
    allow: Option<String>,
    /// What would be let in.
    challenge: Option<String>,
    /// Which request it was: the edge knows.
    request_id: Option<RequestId>,
}

impl Problem {
    /// A problem with a text for this occurrence.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self(Box::new(Occurrence {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            order_id: None,
            retry_after_s: (code.status == 503).then_some(1),
            allow: None,
            challenge: None,
            request_id: None,
        }))
    }

    /// The method is not among those that are allowed here.
    pub fn method_not_allowed(detail: impl Into<String>, allow: String) -> Self {
        let mut problem = Self::new(METHOD_NOT_ALLOWED, detail);
        problem.0.allow = Some(allow);
        problem
    }

    /// The same problem, with the value of `WWW-Authenticate`.
    pub(super) fn challenging(mut self, challenge: String) -> Self {
        self.0.challenge = Some(challenge);
        self
    }

    /// The same problem, which is over after so many seconds.
    pub(super) fn after(mut self, seconds: u32) -> Self {
        self.0.retry_after_s = Some(seconds);
        self
    }

    /// A mistake of ours, which is in the log.
    pub(super) fn internal() -> Self {
        Self::new(INTERNAL, LOGGED)
    }

    /// What the server itself answered with a status only.
    pub(super) fn of_status(status: StatusCode) -> Self {
        match CODES.iter().find(|code| code.status == status.as_u16()) {
            Some(code) if status.is_client_error() => Self::new(*code, code.advice),
            None if status.is_client_error() => Self::new(
                INVALID_PARAMETER,
                "the request cannot be understood as it stands",
            ),
            _ => Self::internal(),
        }
    }

    /// The same problem of a part of the body: its pointers begin where that part is.
    pub(super) fn within(mut self, place: &str) -> Self {
        for error in &mut self.0.errors {
            if let Some(pointer) = &mut error.pointer {
                pointer.insert_str(0, place);
            }
        }
        if self.0.code == VALIDATION_FAILED {
            self.0.detail = told(&self.0.errors);
        }
        self
    }

    /// What it says.
    pub(super) fn body(&self) -> ProblemBody<'_> {
        ProblemBody {
            r#type: format!("urn:stockctl:problem:{}", self.0.code.code),
            title: self.0.code.title,
            status: self.0.code.status,
            detail: &self.0.detail,
            instance: self
                .0
                .request_id
                .as_ref()
                .map(|id| format!("urn:stockctl:request:{id}")),
            code: self.0.code.code,
            errors: &self.0.errors,
            order_id: self.0.order_id,
        }
    }

    /// Of which kind it is.
    pub(super) fn code(&self) -> Code {
        self.0.code
    }

    /// The same problem, met by this request.
    #[must_use]
    pub(super) fn of_request(&self, id: RequestId) -> Self {
        let mut problem = self.clone();
        problem.0.request_id = Some(id);
        problem
    }

    /// There is no such thing.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(NOT_FOUND, detail)
    }

    /// The body is not JSON; the pointer says how far it could be read.
    pub fn malformed(pointer: String, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let mut problem = Self::new(MALFORMED_JSON, detail.clone());
        if !pointer.is_empty() {
            problem.0.errors.push(FieldProblem {
                pointer: Some(pointer),
                parameter: None,
                detail,
            });
        }
        problem
    }

    /// A parameter of the query or a header is not allowed.
    pub fn invalid_parameter(parameter: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let mut problem = Self::new(INVALID_PARAMETER, format!("{parameter}: {detail}"));
        problem.0.errors.push(FieldProblem {
            pointer: None,
            parameter: Some(parameter.to_owned()),
            detail,
        });
        problem
    }

    /// Fields of the body are not valid.
    #[must_use]
    pub fn invalid_fields(fields: Vec<Invalid>) -> Self {
        let errors: Vec<FieldProblem> = fields
            .into_iter()
            .map(|invalid| FieldProblem {
                pointer: Some(invalid.field),
                parameter: None,
                detail: invalid.problem,
            })
            .collect();
        let mut problem = Self::new(VALIDATION_FAILED, told(&errors));
        problem.0.errors = errors;
        problem
    }
}

fn told(errors: &[FieldProblem]) -> String {
    errors
        .iter()
        .map(|error| match error.pointer.as_deref() {
            Some("") | None => format!("the body {}", error.detail),
            Some(place) => format!("{place}: {}", error.detail),
        })
        .collect::<Vec<_>>()
        .join("; ")
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code.code, self.0.detail)
    }
}

impl std::error::Error for Problem {}

/// What went wrong (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProblemBody<'a> {
    /// `urn:stockctl:problem:` and the code.
    r#type: String,
    /// Of this kind of problem, for people.
    title: &'static str,
    status: u16,
    /// Of this occurrence, for people.
    detail: &'a str,
    /// `urn:stockctl:request:` and the request's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    instance: Option<String>,
    /// Of this kind of problem, for programs: it never changes.
    code: &'static str,
    /// The fields and parameters at fault.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldProblem],
    /// The order that the problem is about, where that is not said otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    order_id: Option<OrderId>,
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.0.code.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        if let Some(seconds) = self.0.retry_after_s {
            response.insert_header((RETRY_AFTER, seconds.to_string()));
        }
        if let Some(allow) = &self.0.allow {
            response.insert_header((ALLOW, allow.as_str()));
        }
        if let Some(challenge) = &self.0.challenge {
            response.insert_header((WWW_AUTHENTICATE, challenge.as_str()));
        }
        response
            .insert_header(ContentType(problem_json()))
            .body(serde_json::to_vec(&self.body()).unwrap_or_default())
    }
}

#[expect(clippy::expect_used, reason = "the text is a constant")]
fn problem_json() -> mime::Mime {
    "application/problem+json".parse().expect("a media type")
}

/// What a caller is told of a mistake of ours: the rest is nobody else's.
pub(super) const LOGGED: &str = "this was logged under the request's id, and is ours to mend";

/// Whoever asks is told each time; the log would drown in it.
fn note_unavailable(error: &app::Error) {
    static ANSWERED: Mutex<Tally> = Mutex::new(Tally::new());
    let said = ANSWERED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .add(1, Instant::now());
    if let Some(answers) = said {
        tracing::warn!(
            answers,
            %error,
            "answered 503 so many times since this was last said; this is the newest cause"
        );
    }
}

impl From<app::Error> for Problem {
    fn from(error: app::Error) -> Self {
        match (error.kind(), &error) {
            (
                _,
                app::Error::Refused {
                    code: "precondition_failed",
                    detail,
                },
            ) => Self::new(PRECONDITION_FAILED, detail),
            (
                _,
                app::Error::Refused {
                    code: "not_cancellable",
                    detail,
                },
            ) => Self::new(NOT_CANCELLABLE, detail),
            (
                _,
                app::Error::Refused {
                    code: app::webhooks::TOO_MANY,
                    detail,
                },
            ) => Self::new(TOO_MANY_WEBHOOKS, detail),
            (
                _,
                app::Error::Refused {
                    code: app::webhooks::CONFIGURED,
                    detail,
                },
            ) => Self::new(WEBHOOK_CONFIGURED, detail),
            (
                _,
                app::Error::Refused {
                    code: app::webhooks::KEY_TAKEN,
                    detail,
                },
            ) => Self::new(IDEMPOTENCY_CONFLICT, detail),
            (Kind::Missing, _) => Self::not_found(error.to_string()),
            // Nothing is down, and its words say for what to wait.
            (_, app::Error::NotYet(detail)) => Self::new(UNAVAILABLE, detail),
            (_, app::Error::Unsure(_)) => {
                note_unavailable(&error);
                Self::new(
                    OUTCOME_UNKNOWN,
                    "the answer of the database was lost, and it may have been done: look before you repeat it",
                )
            }
            (Kind::Unavailable | Kind::Transient, _) => {
                note_unavailable(&error);
                Self::new(
                    UNAVAILABLE,
                    "a database or the broker cannot be reached; try again later",
                )
            }
            (Kind::Refused | Kind::Bug, _) => {
                tracing::error!(%error, "answered 500");
                Self::internal()
            }
        }
    }
}

impl From<NotAccepted> for Problem {
    fn from(error: NotAccepted) -> Self {
        let detail = error.to_string();
        match error {
            NotAccepted::Busy => Self::new(BUSY, detail),
            NotAccepted::KeyTaken(_) => Self::new(
                IDEMPOTENCY_CONFLICT,
                "this Idempotency-Key was used for a request with another body; use a new key for a new order",
            ),
            NotAccepted::Unavailable(_) => Self::new(
                UNAVAILABLE,
                "neither PostgreSQL nor RabbitMQ takes orders now; nothing was accepted",
            ),
            NotAccepted::Vanished => Self::new(
                UNAVAILABLE,
                "the order vanished while it was accepted; repeat the request",
            ),
            NotAccepted::OutcomeUnknown(id) => {
                let mut problem = Self::new(
                    OUTCOME_UNKNOWN,
                    "the order may have been accepted; repeat the request with the same Idempotency-Key, or look for \
                     the order by its id",
                );
                problem.0.order_id = Some(id);
                problem
            }
            NotAccepted::Bug(_) => Self::internal(),
        }
    }
}

/// Makes the extractors of actix answer with problems too.
pub(super) fn problems_of_extractors(config: &mut web::ServiceConfig) {
    config.app_data(
        web::PathConfig::default().error_handler(|_, _: &HttpRequest| {
            Problem::not_found("the path names nothing: it cannot be read").into()
        }),
    );
}
