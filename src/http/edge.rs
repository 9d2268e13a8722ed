//! What every request has around it: a name, an answer even if its handler panics, problems that say which request they
//! are of, and headers that let no browser make something else of an answer.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;

use actix_web::body::BoxBody;
use actix_web::dev::{Service, ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use actix_web::{Error, HttpMessage, HttpResponse, ResponseError};
use futures_util::FutureExt;
use tracing::Instrument;

use super::drain::Drain;
use super::problem::{INTERNAL, LOGGED, Problem};
use super::request_id::{RequestId, X_REQUEST_ID};

/// What an answer has unless it says otherwise itself: it is data, for whoever asked, at that moment.
const UNLESS_SAID: [(HeaderName, &str); 5] = [
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (REFERRER_POLICY, "no-referrer"),
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'",
    ),
    (CACHE_CONTROL, "no-store"),
];

/// Handles a request with all that is around it.
pub(super) fn around<S>(
    drain: &Drain,
    request: ServiceRequest,
    routes: &S,
) -> impl Future<Output = Result<ServiceResponse<BoxBody>, Error>> + use<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<BoxBody>, Error = Error>,
{
    let drain = drain.clone();
    let id = RequestId::of(request.headers());
    // At the level of errors, so that whatever is logged at all has it.
    let span = tracing::error_span!("request", request_id = %id);
    // For handlers that tell of problems inside their answers.
    request.extensions_mut().insert(id.clone());
    let answering = routes.call(request);
    async move {
        // What a handler shares with others are handles, which a panic leaves usable.
        let answered = AssertUnwindSafe(answering)
            .catch_unwind()
            .instrument(span.clone())
            .await;
        match answered {
            Ok(answer) => {
                let mut answer = answer?;
                if let Some(problem) = span.in_scope(|| problem_of(&answer)) {
                    let problem = problem.of_request(id.clone()).error_response();
                    answer = answer.into_response(problem);
                }
                finish(answer.response_mut(), &id, &drain);
                Ok(answer)
            }
            Err(panic) => {
                span.in_scope(|| tracing::error!(panic = text_of(&*panic), "a handler panicked"));
                let mut answer = Problem::new(INTERNAL, LOGGED)
                    .of_request(id.clone())
                    .error_response();
                finish(&mut answer, &id, &drain);
                // The request went with the handler, and an answer is made with its request or as an error.
                Err(InternalError::from_response("a handler panicked", answer).into())
            }
        }
    }
}

/// The problem that an answer tells of; what the server itself refuses becomes one.
fn problem_of(answer: &ServiceResponse) -> Option<Problem> {
    let status = answer.status();
    if !status.is_client_error() && !status.is_server_error() {
        return None;
    }
    let error = answer.response().error()?;
    Some(match error.as_error::<Problem>() {
        Some(problem) => problem.clone(),
        None => {
            if status.is_server_error() {
                tracing::error!(%error, "answered {status}");
            }
            Problem::of_status(status)
        }
    })
}

fn finish(answer: &mut HttpResponse, id: &RequestId, drain: &Drain) {
    let headers: &mut HeaderMap = answer.headers_mut();
    headers.insert(X_REQUEST_ID, id.to_header());
    for (name, value) in UNLESS_SAID {
        if !headers.contains_key(&name) {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    drain.mark(answer);
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a text")
}

#[cfg(test)]
mod tests {
    use actix_web::http::StatusCode;
    use actix_web::{App, test, web};
    use serde_json::{Value, json};

    use super::*;

    /// What a server answers whose handlers are broken in this way and that.
    async fn answer(path: &str) -> (StatusCode, HeaderMap, Value) {
        #[expect(clippy::panic, reason = "that is what is tested")]
        async fn panicking() -> HttpResponse {
            panic!("by intention")
        }
        async fn typed(id: web::Path<u8>) -> String {
            id.to_string()
        }
        async fn without_data(_: web::Data<u8>) -> &'static str {
            "never"
        }
        let drain = Drain::default();
        let app = App::new()
            .route("/panic", web::get().to(panicking))
            .route("/typed/{id}", web::get().to(typed))
            .route("/without-data", web::get().to(without_data))
            .wrap_fn(move |request, routes| around(&drain, request, routes));
        let app = test::init_service(app).await;
        let request = test::TestRequest::get()
            .uri(path)
            .insert_header(("x-request-id", "r-1"))
            .to_request();
        // As the server does with an error.
        let response = match test::try_call_service(&app, request).await {
            Ok(response) => response.into_parts().1,
            Err(error) => error.error_response(),
        };
        let (status, headers) = (response.status(), response.headers().clone());
        let body = actix_web::body::to_bytes(response.into_body())
            .await
            .expect("a body");
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        (status, headers, body)
    }

    #[actix_web::test]
    async fn a_handler_that_panics_or_is_broken_is_answered_for_with_a_problem() {
        for path in ["/panic", "/without-data"] {
            let (status, headers, body) = answer(path).await;
            assert_eq!(status, 500, "{path}");
            assert_eq!(
                body,
                json!({
                    "type": "urn:stockctl:problem:internal",
                    "title": INTERNAL.title,
                    "status": 500,
                    "detail": LOGGED,
                    "instance": "urn:stockctl:request:r-1",
                    "code": "internal",
                }),
                "{path}"
            );
            assert_eq!(headers.get("x-request-id").expect("its id"), "r-1");
            assert_eq!(
                headers.get("content-type").expect("a type"),
                "application/problem+json"
            );
            assert_eq!(headers.get("cache-control").expect("a rule"), "no-store");
        }
    }

    #[actix_web::test]
    async fn what_the_server_refuses_by_itself_is_a_problem_too() {
        let (status, _, body) = answer("/typed/x").await;
        assert_eq!((status.as_u16(), &body["code"]), (404, &json!("not_found")));
        assert_eq!(body["instance"], "urn:stockctl:request:r-1");
    }
}
