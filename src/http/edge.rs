//! What every request has around it: a name, an answer even if its handler panics, problems that say which request they
//! are of, and headers that let no browser make something else of an answer.

use std::any::Any;
use std::future::Future;
use std::future::ready;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use actix_web::body::BoxBody;
use actix_web::dev::{Payload, Service, ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, HeaderValue,
    REFERRER_POLICY, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use actix_web::http::{ConnectionType, Uri};
use actix_web::{Error, HttpMessage, HttpResponse, ResponseError};
use futures_util::FutureExt;
use futures_util::future::Either;
use tracing::Instrument;

use super::BATCH_BODY_BYTES_MAX;
use super::body::check_length;
use super::cors::{self, Cors, is_preflight};
use super::drain::Drain;
use super::heads::Heads;
use super::host::Hosts;
use super::problem::{CROSS_ORIGIN, MISDIRECTED_REQUEST, Problem, URI_TOO_LONG};
use super::query::is_text;
use super::rate::{Counters, Standing};
use super::request_id::{RequestId, X_REQUEST_ID};
use super::unread::Held;
use crate::domain::trace::{TRACEPARENT, TRACESTATE, TraceContext};
use crate::traces::{Kind, Span};

/// What an answer has unless it says otherwise itself: it is data, for whoever asked, at that moment.
pub(super) const UNLESS_SAID: [(HeaderName, &str); 5] = [
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (REFERRER_POLICY, "no-referrer"),
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'",
    ),
    (CACHE_CONTROL, "no-store"),
];

/// What a page is told that may not.
const FOREIGN_CHANGE: &str = "the browser says that this comes from a page of another origin, and http.cors_origins does not \
                              name it";

/// What whoever called by a name of somebody else is told.
const NOT_OURS: &str = "without API keys this server answers to localhost, to loopback addresses and to the names in http.hosts";

/// What whoever calls by a path of other bytes is told.
const NOT_TEXT: &str = "the path names nothing: it cannot be read as UTF-8";

/// Bytes of an address: a path and a query of it have a few hundred, and proxies on the way take no more either.
const URI_BYTES_MAX: usize = 8 * 1024;

/// What is around every request.
#[derive(Clone)]
pub(super) struct Edge(Arc<Shared>);

struct Shared {
    drain: Drain,
    cors: Cors,
    hosts: Hosts,
    rates: Counters,
}

impl Edge {
    pub(super) fn new(drain: Drain, cors: Cors, hosts: Hosts, rates: Counters) -> Self {
        Self(Arc::new(Shared {
            drain,
            cors,
            hosts,
            rates,
        }))
    }

    /// What whoever waits to be told to send the body (`Expect: 100-continue`) is told instead, if it is too large for any
    /// route.
    pub(super) fn refuse_before_it_is_sent(
        &self,
        request: &actix_http::Request,
    ) -> Option<HttpResponse> {
        if let Some(heads) = request.conn_data::<Heads>() {
            heads.came();
        }
        let problem = check_length(request.headers(), BATCH_BODY_BYTES_MAX).err()?;
        let id = RequestId::of(request.headers());
        let mut answer = problem.of_request(id.clone()).error_response();
        finish(&mut answer, &id, &self.0.drain);
        // Whether the body comes all the same, nobody knows.
        answer.head_mut().set_connection_type(ConnectionType::Close);
        Some(answer)
    }

    /// Handles a request with all that is around it.
    pub(super) fn around<S>(
        &self,
        mut request: ServiceRequest,
        routes: &S,
    ) -> impl Future<Output = Result<ServiceResponse<BoxBody>, Error>> + use<S>
    where
        S: Service<ServiceRequest, Response = ServiceResponse<BoxBody>, Error = Error>,
    {
        let in_progress = request.conn_data::<Heads>().map(Heads::answering);
        let asks_to_upgrade = request.head().upgrade();
        if asks_to_upgrade {
            without_tunnel(&mut request);
        }
        let origin = self.0.cors.origin(request.headers());
        let is_asking = origin.is_some() && is_preflight(request.method(), request.headers());
        let is_foreign = self
            .0
            .cors
            .is_foreign_change(request.method(), request.headers());
        let refusal = if is_too_long(request.uri()) {
            Some(Problem::new(
                URI_TOO_LONG,
                format!("an address may have at most {URI_BYTES_MAX} bytes"),
            ))
        } else if !is_text(request.uri().path()) {
            Some(Problem::not_found(NOT_TEXT))
        } else if !self.0.hosts.are_meant_by(request.head()) {
            Some(Problem::new(MISDIRECTED_REQUEST, NOT_OURS))
        } else if is_foreign {
            Some(Problem::new(CROSS_ORIGIN, FOREIGN_CHANGE))
        } else {
            None
        };
        let answering = if is_asking || refusal.is_some() {
            let id = RequestId::of(request.headers());
            let mut answer = match refusal {
                Some(problem) => problem.of_request(id.clone()).error_response(),
                None => cors::preflight(),
            };
            finish(&mut answer, &id, &self.0.drain);
            Either::Left(ready(Ok(request.into_response(answer))))
        } else {
            Either::Right(answer(self.0.drain.clone(), request, routes))
        };
        let edge = self.clone();
        async move {
            let mut answer = answering.await?;
            if asks_to_upgrade {
                // Else the server would answer `Connection: upgrade`, which a client takes for a connection that goes on,
                // and close it.
                let head = answer.response_mut().head_mut();
                head.set_connection_type(ConnectionType::Close);
            }
            if !edge.0.rates.is_off() {
                let standing = answer.request().extensions().get::<Standing>().copied();
                if let Some(standing) = standing {
                    standing.say(answer.headers_mut());
                }
            }
            if edge.0.cors.is_on() {
                cors::vary(answer.headers_mut());
            }
            if let Some(origin) = origin {
                cors::allow(answer.headers_mut(), origin);
            }
            Ok(match in_progress {
                Some(in_progress) => in_progress.until_the_end_of(answer),
                None => answer,
            })
        }
    }
}

/// Another protocol is an offer, which no route here takes up. The server takes what follows the head of such a request
/// for its body, though no header says that there is one.
fn without_tunnel(request: &mut ServiceRequest) {
    let has_body = [CONTENT_LENGTH, TRANSFER_ENCODING]
        .iter()
        .any(|name| request.headers().contains_key(name));
    if !has_body {
        request.set_payload(Payload::None);
    }
}

fn is_too_long(uri: &Uri) -> bool {
    uri.path_and_query()
        .is_some_and(|text| text.as_str().len() > URI_BYTES_MAX)
}

fn answer<S>(
    drain: Drain,
    mut request: ServiceRequest,
    routes: &S,
) -> impl Future<Output = Result<ServiceResponse<BoxBody>, Error>> + use<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<BoxBody>, Error = Error>,
{
    let id = RequestId::of(request.headers());
    let mut trace = begin_trace(&request);
    let trace_id = trace
        .context()
        .map(|context| tracing::field::display(context.trace_id));
    // At the level of errors, so that whatever is logged at all has it. What is known is told at once: each further
    // time costs something.
    let none = tracing::field::Empty;
    let span = tracing::error_span!("request", request_id = id.as_str(), caller = none, trace_id);
    // For handlers that tell of problems inside their answers.
    request.extensions_mut().insert(id.clone());
    let unread = Held::of(&mut request);
    let answering = routes.call(request);
    async move {
        // What a handler shares with others are handles, which a panic leaves usable.
        let answered = trace
            .around(AssertUnwindSafe(answering).catch_unwind())
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
                describe(&mut trace, &answer);
                Ok(match unread {
                    Some(held) => held.by(answer),
                    None => answer,
                })
            }
            Err(panic) => {
                span.in_scope(|| tracing::error!(panic = text_of(&*panic), "a handler panicked"));
                let mut answer = Problem::internal().of_request(id.clone()).error_response();
                finish(&mut answer, &id, &drain);
                trace.fail("a handler panicked");
                // The request went with the handler, and an answer is made with its request or as an error.
                Err(InternalError::from_response("a handler panicked", answer).into())
            }
        }
    }
}

/// The context that a request came with: of one traceparent, since two contradict each other.
fn context_of(headers: &HeaderMap) -> Option<TraceContext> {
    let mut parents = headers.get_all(TRACEPARENT);
    let parent = parents.next().filter(|_| parents.next().is_none())?;
    let mut states = headers.get_all(TRACESTATE);
    // They may come in several headers, which are one list.
    let state = match (states.next(), states.next()) {
        (None, _) => None,
        (Some(only), None) => Some(only.as_bytes().to_vec()),
        _ => {
            let all: Vec<&[u8]> = headers
                .get_all(TRACESTATE)
                .map(HeaderValue::as_bytes)
                .collect();
            Some(all.join(&b','))
        }
    };
    TraceContext::parse(parent.as_bytes(), state.as_deref())
}

/// Paths that machines ask for again and again: unless they belong to a trace, they are none.
const PROBES: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

fn begin_trace(request: &ServiceRequest) -> Span {
    let context = context_of(request.headers());
    if context.is_none() && PROBES.contains(&request.path()) {
        return Span::none();
    }
    Span::begin("HTTP", Kind::Server, context.as_slice())
}

/// Names what was asked for as the API's description does: what stands in the path in its place is no name.
fn describe(trace: &mut Span, answer: &ServiceResponse) {
    if !trace.is_recorded() {
        return;
    }
    let method = answer.request().method();
    let status = answer.status();
    trace.note("http.request.method", method);
    trace.note_count("http.response.status_code", usize::from(status.as_u16()));
    if let Some(route) = answer.request().match_pattern() {
        trace.rename(|| format!("{method} {route}"));
        trace.note("http.route", route);
    } else {
        trace.rename(|| method.to_string());
    }
    if status.is_server_error() {
        trace.fail(status);
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
    crate::metrics::HTTP.answered(answer.status().as_u16());
    drain.count_answer();
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

    use super::super::problem::{INTERNAL, LOGGED};
    use super::*;
    use crate::limit::{RateLimits, Rates};

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
        let edge = Edge::new(
            Drain::default(),
            Cors::default(),
            Hosts::Any,
            Counters::new(RateLimits::new(Rates::default())),
        );
        let app = App::new()
            .route("/panic", web::get().to(panicking))
            .route("/typed/{id}", web::get().to(typed))
            .route("/without-data", web::get().to(without_data))
            .wrap_fn(move |request, routes| edge.around(request, routes));
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

    /// What is written to the log.
    #[derive(Clone, Default)]
    struct Written(Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("whole").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[actix_web::test]
    async fn every_line_of_the_log_names_its_request_also_those_of_what_it_leaves_running() {
        async fn logging() -> HttpResponse {
            tracing::warn!("in the handler");
            let use_case = async {
                tracing::warn!("in a use case");
                Ok(())
            };
            let done = crate::http::detached(use_case).await;
            assert!(done.is_ok());
            HttpResponse::Ok().finish()
        }
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_max_level(tracing::Level::WARN)
            .with_writer(move || writer.clone())
            .finish();
        let _logging = tracing::subscriber::set_default(subscriber);
        let edge = Edge::new(
            Drain::default(),
            Cors::default(),
            Hosts::Any,
            Counters::new(RateLimits::new(Rates::default())),
        );
        let app = App::new()
            .route("/", web::get().to(logging))
            .wrap_fn(move |request, routes| edge.around(request, routes));
        let app = test::init_service(app).await;
        let request = test::TestRequest::get()
            .insert_header(("x-request-id", "r-2"))
            .insert_header((
                "traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ));
        test::call_service(&app, request.to_request()).await;
        let log = String::from_utf8(written.0.lock().expect("whole").clone()).expect("text");
        let lines: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("in the handler") || line.contains("in a use case"))
            .collect();
        assert_eq!(lines.len(), 2, "{log}");
        for line in lines {
            assert!(line.contains("\"request_id\":\"r-2\""), "{line}");
            let trace = "\"trace_id\":\"0af7651916cd43dd8448eb211c80319c\"";
            assert!(line.contains(trace), "{line}");
        }
    }

    #[actix_web::test]
    async fn what_the_server_refuses_by_itself_is_a_problem_too() {
        let (status, _, body) = answer("/typed/x").await;
        assert_eq!((status.as_u16(), &body["code"]), (404, &json!("not_found")));
        assert_eq!(body["instance"], "urn:stockctl:request:r-1");
    }
}
