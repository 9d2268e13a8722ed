//! The HTTP door: a request comes in, a use case runs, an answer goes out.

mod admin;
mod body;
mod dead_letters;
mod drain;
mod health;
mod listening;
mod metrics;
mod movements;
mod orders;
mod probe;
pub mod problem;
mod products;
mod query;
mod vendors;

use std::ops::RangeInclusive;
use std::time::Duration;

use actix_web::dev::{Server, Service};
use actix_web::http::header::{ALLOW, HeaderValue};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, ResponseError, Route, guard, web};

use crate::app::accept::Accept;
use crate::app::gauges::Gauges;
use crate::app::relay::Relay;
use crate::app::{self, Context};
use crate::domain::ids::{IdError, ProductId, VendorId};
use crate::mq;
use drain::Drain;
pub use drain::Ending;
pub use listening::Listening;
pub use metrics::MetricsListener;
pub use probe::{Probe, SideDoor};
use problem::{Problem, problems_of_extractors};

/// Largest body of a request. An order with 100 lines of the longest product ids takes half of it.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Largest body of a request for stock updates: as many as one message carries, with the longest product ids.
pub const UPDATES_BODY_BYTES_MAX: usize = 512 * 1024;
/// A client has this long to send the head of a request, and as long again for its body.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// An idle connection is kept this long.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Connections of one process that are served at once, and that wait to be.
const CONNECTIONS_MAX: usize = 10_000;
const BACKLOG: u32 = 1024;

/// What the handlers work with.
#[derive(Clone)]
pub struct State {
    /// Where the stores are.
    pub context: Context,
    /// Where orders are accepted.
    pub accept: Accept,
    /// For what a use case has committed.
    pub relay: Relay,
    /// For replays, and to see whether the broker is there.
    pub publisher: mq::Publisher,
    /// For an operator's own sessions with the broker.
    pub broker: mq::Settings,
    /// For `/metrics`.
    pub gauges: std::sync::Arc<Gauges>,
}

/// Prepares a server on a listening socket and a side door, its end, and what sees by the side door whether it answers.
/// It runs when it is awaited.
///
/// # Errors
/// The socket cannot be used.
pub fn server(
    listening: Listening,
    side_door: SideDoor,
    state: State,
    shutdown_deadline: Duration,
) -> std::io::Result<(Server, Ending, Probe)> {
    let (listener, closing) = listening.split()?;
    let gauges = web::Data::from(state.gauges.clone());
    let state = web::Data::new(state);
    let drain = Drain::default();
    let (for_app, for_connections) = (drain.clone(), drain.clone());
    let (side_door, probe) = side_door.split(drain.clone());
    let server = HttpServer::new(move || {
        let drain = for_app.clone();
        App::new()
            .app_data(state.clone())
            .app_data(gauges.clone())
            .app_data(web::Data::new(drain.clone()))
            .configure(configure)
            .wrap_fn(move |request, routes| {
                let drain = drain.clone();
                let answering = routes.call(request);
                async move {
                    let mut answer = answering.await?;
                    crate::metrics::HTTP.answered(answer.status().as_u16());
                    drain.count_answer();
                    drain.mark(answer.response_mut());
                    Ok(answer)
                }
            })
    })
    .on_connect(move |_, connection| {
        connection.insert(for_connections.connection());
    })
    .keep_alive(KEEP_ALIVE)
    .client_request_timeout(SEND_DEADLINE)
    .client_disconnect_timeout(SEND_DEADLINE)
    .max_connections(CONNECTIONS_MAX)
    .backlog(BACKLOG)
    .shutdown_timeout(shutdown_deadline.as_secs().max(1))
    // The process has its own signals.
    .disable_signals()
    .listen(listener)?
    .listen_uds(side_door)?
    .run();
    let ending = Ending::new(server.handle(), drain, closing);
    Ok((server, ending, probe))
}

fn configure(config: &mut web::ServiceConfig) {
    config
        .configure(problems_of_extractors)
        .configure(metrics::configure)
        .service(
            web::resource("/orders")
                .post(orders::place)
                .route(get().to(orders::list))
                .default_service(only("GET, HEAD, POST")),
        )
        .service(
            web::resource("/order")
                .post(orders::place)
                .default_service(only("POST")),
        )
        .service(
            web::resource("/orders/{id}")
                .route(get().to(orders::show))
                .default_service(only("GET, HEAD")),
        )
        .service(
            web::resource("/orders/{id}/cancel")
                .post(orders::cancel)
                .default_service(only("POST")),
        )
        .service(
            web::resource("/products")
                .route(get().to(products::list))
                .default_service(only("GET, HEAD")),
        )
        .service(
            web::resource("/products/{id}")
                .route(get().to(products::show))
                .default_service(only("GET, HEAD")),
        )
        .service(
            web::resource("/products/{id}/movements")
                .route(get().to(movements::list))
                .default_service(only("GET, HEAD")),
        )
        .service(
            web::resource("/vendors")
                .route(get().to(vendors::list))
                .default_service(only("GET, HEAD")),
        )
        .service(
            web::resource("/vendors/{vendor}/products/{id}")
                .route(get().to(vendors::show_product))
                .put(vendors::put_product)
                .default_service(only("GET, HEAD, PUT")),
        )
        .service(
            web::resource("/vendors/{vendor}/stock-updates")
                .post(vendors::apply_updates)
                .default_service(only("POST")),
        )
        .service(
            web::resource("/admin/sync")
                .post(admin::sync)
                .default_service(only("POST")),
        )
        .service(
            web::resource("/admin/queues")
                .route(get().to(admin::queues))
                .default_service(only("GET, HEAD")),
        )
        .service(
            web::resource("/admin/dead-letters/{queue}")
                .route(get().to(dead_letters::list))
                .default_service(only("GET, HEAD")),
        )
        .service(
            web::resource("/admin/dead-letters/{queue}/replay")
                .post(dead_letters::replay)
                .default_service(only("POST")),
        )
        .service(
            web::resource("/admin/dead-letters/{queue}/drop")
                .post(dead_letters::drop)
                .default_service(only("POST")),
        )
        .service(
            web::resource("/admin/dead-letters/{queue}/{message_id}")
                .route(get().to(dead_letters::show))
                .default_service(only("GET, HEAD")),
        )
        .service(
            web::resource("/healthz")
                .route(get().to(health::alive))
                .default_service(only("GET, HEAD")),
        )
        .service(
            web::resource("/readyz")
                .route(get().to(health::ready))
                .default_service(only("GET, HEAD")),
        )
        .default_service(web::route().to(no_route));
}

async fn no_route(request: HttpRequest) -> Result<HttpResponse, Problem> {
    Err(Problem::not_found(format!(
        "there is nothing at {}",
        request.path()
    )))
}

/// A GET, and the HEAD that goes with it: the server leaves the body of its answer out.
fn get() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

/// The answer to every method but those that are allowed.
fn only(allowed: &'static str) -> Route {
    web::route().to(move |request: HttpRequest| {
        let detail = format!("{} does not answer {}", request.path(), request.method());
        let mut response = Problem::new(problem::METHOD_NOT_ALLOWED, detail).error_response();
        let headers = response.headers_mut();
        headers.insert(ALLOW, HeaderValue::from_static(allowed));
        std::future::ready(response)
    })
}

/// Runs a use case to its end, also when the caller goes away meanwhile: one that is dropped in the middle of its
/// transaction would keep its locks until the server notices.
async fn detached<T: Send + 'static>(
    use_case: impl Future<Output = Result<T, app::Error>> + Send + 'static,
) -> Result<T, app::Error> {
    tokio::spawn(use_case)
        .await
        .unwrap_or_else(|error| Err(app::Error::Broken(error.to_string())))
}

/// A name in a path that cannot be one names nothing.
fn named<T>(
    kind: &str,
    text: &str,
    parse: impl Fn(String) -> Result<T, IdError>,
) -> Result<T, Problem> {
    parse(text.to_owned())
        .map_err(|error| Problem::not_found(format!("no {kind} can have that id: it {error}")))
}

fn product_id(text: &str) -> Result<ProductId, Problem> {
    named("product", text, ProductId::parse)
}

fn vendor_id(text: &str) -> Result<VendorId, Problem> {
    named("vendor", text, VendorId::parse)
}

/// Times that a cursor can name, in microseconds: 1970 to 9999. PostgreSQL refuses some that a cursor could spell.
const CURSOR_MICROS: RangeInclusive<i64> = 0..=253_402_300_799_999_999;

/// Items of one page of a list.
const LIMIT_DEFAULT: i64 = 50;
const LIMIT_MAX: i64 = 200;

fn limit(asked: Option<i64>) -> Result<i64, Problem> {
    check_limit(asked).map_err(|problem| Problem::invalid_parameter("limit", problem))
}

/// The limit, or what is wrong with it, wherever it stood.
fn check_limit(asked: Option<i64>) -> Result<i64, String> {
    let limit = asked.unwrap_or(LIMIT_DEFAULT);
    if (1..=LIMIT_MAX).contains(&limit) {
        Ok(limit)
    } else {
        Err(format!("must be 1 to {LIMIT_MAX}, is {limit}"))
    }
}
