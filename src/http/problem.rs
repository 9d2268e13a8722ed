//! Errors as the caller sees them: `application/problem+json` (RFC 9457) with a stable `code`.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{ContentType, RETRY_AFTER};
use actix_web::{HttpRequest, HttpResponse, ResponseError, web};
use serde::Serialize;

use crate::app::accept::NotAccepted;
use crate::app::{self, Kind};
use crate::domain::ids::OrderId;
use crate::domain::order::Invalid;

/// A kind of problem: its code, its status and its title never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// Stable, for programs.
    pub code: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// For people, the same for every occurrence.
    pub title: &'static str,
}

const fn code(status: u16, code: &'static str, title: &'static str) -> Code {
    Code {
        code,
        status,
        title,
    }
}

/// The body is not JSON.
pub const MALFORMED_JSON: Code = code(400, "malformed_json", "The body is not valid JSON");
/// A parameter of the query or a header is not allowed.
pub const INVALID_PARAMETER: Code = code(400, "invalid_parameter", "A parameter is not valid");
/// There is nothing here.
pub const NOT_FOUND: Code = code(404, "not_found", "There is no such thing");
/// There is something here, but it does not answer this method.
pub const METHOD_NOT_ALLOWED: Code =
    code(405, "method_not_allowed", "The method is not allowed here");
/// The body took too long.
pub const REQUEST_TIMEOUT: Code = code(
    408,
    "request_timeout",
    "The request took too long to arrive",
);
/// The state of the order forbids it.
pub const NOT_CANCELLABLE: Code = code(409, "not_cancellable", "The order cannot be cancelled");
/// `If-Match` names another version.
pub const PRECONDITION_FAILED: Code = code(412, "precondition_failed", "It has changed meanwhile");
/// The body is too large.
pub const BODY_TOO_LARGE: Code = code(413, "body_too_large", "The body is too large");
/// The body is of another type.
pub const UNSUPPORTED_MEDIA_TYPE: Code = code(
    415,
    "unsupported_media_type",
    "The body must be application/json",
);
/// The body is JSON, but not what is expected here.
pub const VALIDATION_FAILED: Code = code(422, "validation_failed", "The request is not valid");
/// The key was used before, with another body.
pub const IDEMPOTENCY_CONFLICT: Code = code(
    422,
    "idempotency_conflict",
    "The idempotency key belongs to another request",
);
/// Ours to mend.
pub const INTERNAL: Code = code(500, "internal", "Something went wrong here");
/// A store that is needed is down.
pub const UNAVAILABLE: Code = code(503, "unavailable", "Temporarily unavailable");
/// Too many requests wait.
pub const BUSY: Code = code(503, "busy", "Too many orders are waiting");
/// It is not known whether the order was accepted.
pub const OUTCOME_UNKNOWN: Code = code(
    503,
    "outcome_unknown",
    "Whether the order was accepted is not known",
);
/// The order may exist without being visible.
pub const NOT_YET_VISIBLE: Code = code(503, "not_yet_visible", "The order may be on its way");

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldProblem {
    /// A JSON pointer into the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// A parameter of the query, or a header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// What is wrong, and what is allowed.
    pub detail: String,
}

/// One occurrence of a problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    code: Code,
    detail: String,
    errors: Vec<FieldProblem>,
    order_id: Option<OrderId>,
    retry_after_s: Option<u32>,
}

impl Problem {
    /// A problem with a text for this occurrence.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            order_id: None,
            retry_after_s: (code.status == 503).then_some(1),
        }
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
            problem.errors.push(FieldProblem {
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
        problem.errors.push(FieldProblem {
            pointer: None,
            parameter: Some(parameter.to_owned()),
            detail,
        });
        problem
    }

    /// Fields of the body are not valid.
    #[must_use]
    pub fn invalid_fields(fields: Vec<Invalid>) -> Self {
        let detail = fields
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ");
        let mut problem = Self::new(VALIDATION_FAILED, detail);
        problem.errors = fields
            .into_iter()
            .map(|invalid| FieldProblem {
                pointer: Some(invalid.field),
                parameter: None,
                detail: invalid.problem,
            })
            .collect();
        problem
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.code, self.detail)
    }
}

impl std::error::Error for Problem {}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldProblem],
    #[serde(skip_serializing_if = "Option::is_none")]
    order_id: Option<OrderId>,
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.code.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let body = Body {
            r#type: format!("urn:stockctl:problem:{}", self.code.code),
            title: self.code.title,
            status: self.code.status,
            detail: &self.detail,
            code: self.code.code,
            errors: &self.errors,
            order_id: self.order_id,
        };
        let mut response = HttpResponse::build(self.status_code());
        if let Some(seconds) = self.retry_after_s {
            response.insert_header((RETRY_AFTER, seconds.to_string()));
        }
        response
            .insert_header(ContentType(problem_json()))
            .body(serde_json::to_vec(&body).unwrap_or_default())
    }
}

#[expect(clippy::expect_used, reason = "the text is a constant")]
fn problem_json() -> mime::Mime {
    "application/problem+json".parse().expect("a media type")
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
            (Kind::Missing, _) => Self::not_found(error.to_string()),
            // Nothing is down, and its words say for what to wait.
            (_, app::Error::NotYet(detail)) => Self::new(UNAVAILABLE, detail),
            (Kind::Unavailable | Kind::Transient, _) => {
                tracing::warn!(%error, "answered 503");
                Self::new(
                    UNAVAILABLE,
                    "a database or the broker cannot be reached; try again later",
                )
            }
            (Kind::Refused | Kind::Bug, _) => {
                tracing::error!(%error, "answered 500");
                Self::new(INTERNAL, "this was logged and is ours to mend")
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
            NotAccepted::OutcomeUnknown(id) => Self {
                order_id: Some(id),
                ..Self::new(
                    OUTCOME_UNKNOWN,
                    "the order may have been accepted; repeat the request with the same Idempotency-Key, or look for \
                     the order by its id",
                )
            },
            NotAccepted::Bug(_) => Self::new(INTERNAL, "this was logged and is ours to mend"),
        }
    }
}

/// Makes the extractors of actix answer with problems too.
pub(super) fn problems_of_extractors(config: &mut web::ServiceConfig) {
    config.app_data(
        web::PathConfig::default().error_handler(|error, _: &HttpRequest| {
            Problem::not_found(format!("the path names nothing: {error}")).into()
        }),
    );
}
