//! The HTTP door: a request comes in, a use case runs, an answer goes out.

mod admin;
mod answer;
mod auth;
mod batch;
mod body;
mod conditions;
mod cors;
mod dead_letters;
mod docs;
mod drain;
mod edge;
mod events;
mod heads;
mod health;
mod holding;
mod host;
mod listening;
mod metrics;
mod movements;
pub mod openapi;
mod orders;
mod page;
mod plain;
mod prefer;
mod probe;
pub mod problem;
mod products;
mod query;
mod quoted;
mod rate;
mod request_id;
mod routes;
mod stream;
mod tls;
mod unparsed;
mod unread;
mod vendors;
mod webhooks;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use actix_http::HttpService;
use actix_http::error::DispatchError;
use actix_server::GracefulShutdownSignal;
use actix_service::{
    IntoServiceFactory, ServiceFactory, ServiceFactoryExt, fn_service, map_config,
};
use actix_web::dev::AppConfig;
use actix_web::dev::Server;
use actix_web::{App, HttpRequest, HttpResponse, web};
use tokio::net::{TcpStream, UnixStream};

use crate::app::accept::Accept;
use crate::app::events::Events;
use crate::app::gauges::Gauges;
use crate::app::outcome::Outcomes;
use crate::app::overview::Overviews;
use crate::app::relay::Relay;
use crate::app::{self, Context};
use crate::domain::ids::{IdError, ProductId, VendorId};
use crate::domain::keys::Scope;
use crate::mq;
use crate::traces;
pub use auth::Door;
use auth::Needs::{self, AnyKey, Nothing};
pub use batch::BATCH_BODY_BYTES_MAX;
use cors::Cors;
use drain::Drain;
pub use drain::Ending;
use edge::Edge;
pub use listening::Listening;
pub use metrics::MetricsListener;
pub use probe::{Probe, SideDoor};
use problem::{Problem, problems_of_extractors};
use routes::{At, NOTHING};
use stream::Stream;
pub use tls::{Tls, TlsError, TlsFiles};
use tracing::Instrument;

/// Largest body of a request. An order with 100 lines of the longest product ids takes half of it.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Largest body of a request for stock updates: as many as one may have, with the longest product ids.
pub const UPDATES_BODY_BYTES_MAX: usize = 1024 * 1024;
/// A client has this long to send the head of a request, and as long again for its body.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// A client that takes nothing of what it is sent for so long is gone.
const TAKE_DEADLINE: Duration = Duration::from_secs(60);
/// An idle connection is kept this long.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Connections that wait to be served, as far as the kernel allows.
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
    /// Where callers wait for what becomes of their orders.
    pub outcomes: Outcomes,
    /// For those who listen to what happens.
    pub events: Events,
    /// For replays, and to see whether the broker is there.
    pub publisher: mq::Publisher,
    /// For an operator's own sessions with the broker.
    pub broker: mq::Settings,
    /// For people who look.
    pub overviews: Overviews,
    /// For `/metrics`.
    pub gauges: std::sync::Arc<Gauges>,
    /// Whether receivers of webhooks may be at private addresses.
    pub allows_private_receivers: bool,
}

/// How a server is to be.
pub struct Settings {
    /// Who is let in.
    pub door: Door,
    /// What TLS is spoken with; none where it is not.
    pub tls: Option<Tls>,
    /// Whose pages may call.
    pub cors_origins: Vec<String>,
    /// The names that it is called by beside this machine's own, where it asks for no keys.
    pub hosts: Vec<String>,
    /// Connections that are served at once.
    pub connections_max: usize,
    /// How long the end may take.
    pub shutdown_deadline: Duration,
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
    settings: Settings,
) -> std::io::Result<(Server, Ending, Probe)> {
    let (listener, closing) = listening.split()?;
    let drain = Drain::default();
    let workers = std::thread::available_parallelism().map_or(1, Into::into);
    // Each worker has its part, so that there may be a few more than are asked for.
    let of_each = settings.connections_max.div_ceil(workers);
    let (side_door, probe) = side_door.split(drain.clone(), workers, of_each * workers);
    let builder = Server::build()
        .workers(workers)
        .max_concurrent_connections(of_each)
        .backlog(BACKLOG)
        .shutdown_timeout(settings.shutdown_deadline.as_secs().max(1))
        // The process has its own signals.
        .disable_signals();
    let parts = Parts {
        gauges: web::Data::from(state.gauges.clone()),
        state: web::Data::new(state),
        edge: Edge::new(
            drain.clone(),
            Cors::new(settings.cors_origins),
            settings.door.hosts(settings.hosts),
            settings.door.counters(),
        ),
        door: web::Data::new(settings.door),
        drain: drain.clone(),
        ending: builder.graceful_shutdown_signal(),
    };
    let acceptor = settings.tls.map(|tls| tls.acceptor()).transpose()?;
    let (for_network, for_side_door) = (parts.clone(), parts);
    let server = builder
        .listen("the API", listener, move || {
            let (drain, acceptor) = (for_network.drain.clone(), acceptor.clone());
            fn_service(move |stream: TcpStream| {
                let (counted, acceptor) = (drain.connection(), acceptor.clone());
                async move {
                    let taken = Stream::of_network(stream, counted, acceptor).await;
                    taken.map_err(DispatchError::Io)
                }
            })
            .and_then(for_network.service())
        })?
        .listen_uds("the side door", side_door, move || {
            let drain = for_side_door.drain.clone();
            fn_service(move |stream: UnixStream| {
                let stream = Stream::of_side_door(stream, drain.connection());
                async move { Ok((stream, None)) }
            })
            .and_then(for_side_door.service())
        })?
        .run();
    let ending = Ending::new(server.handle(), drain, closing);
    Ok((server, ending, probe))
}

/// What each worker makes its part of the server of.
#[derive(Clone)]
struct Parts {
    state: web::Data<State>,
    gauges: web::Data<Gauges>,
    door: web::Data<Door>,
    edge: Edge,
    drain: Drain,
    ending: GracefulShutdownSignal,
}

impl Parts {
    /// Answers the requests of a connection.
    fn service(
        &self,
    ) -> impl ServiceFactory<
        (Stream, Option<SocketAddr>),
        Config = (),
        Response = (),
        Error = DispatchError,
        InitError = (),
    > + use<> {
        let edge = self.edge.clone();
        let app = App::new()
            .app_data(self.state.clone())
            .app_data(self.door.clone())
            .app_data(self.gauges.clone())
            .app_data(web::Data::new(self.drain.clone()))
            .configure(configure)
            .wrap_fn(move |request, routes| edge.around(request, routes))
            .into_factory()
            .map_err(|error: actix_web::Error| error.error_response());
        let (ending, edge) = (self.ending.clone(), self.edge.clone());
        HttpService::build()
            .on_connect_ext(|stream: &Stream, of_connection| {
                of_connection.insert(stream.heads());
            })
            .expect(move |request: actix_http::Request| {
                let refusal = edge.refuse_before_it_is_sent(&request);
                std::future::ready(match refusal {
                    Some(refusal) => Err(actix_http::Response::from(refusal)),
                    None => Ok(request),
                })
            })
            .graceful_shutdown_signal(move || {
                let ending = ending.clone();
                async move { ending.notified().await }
            })
            .keep_alive(KEEP_ALIVE)
            .client_request_timeout(SEND_DEADLINE)
            .client_disconnect_timeout(SEND_DEADLINE)
            .h1(map_config(app, |()| AppConfig::default()))
    }
}

fn configure(config: &mut web::ServiceConfig) {
    config.configure(problems_of_extractors);
    for at in routes() {
        config.service(at.into_service());
    }
    config.default_service(web::route().to(no_route));
}

/// All that is served.
fn routes() -> Vec<At> {
    const READ: Needs = Needs::Scope(Scope::OrdersRead);
    const ORDER: Needs = Needs::Scope(Scope::OrdersWrite);
    const STOCK: Needs = Needs::Scope(Scope::StockWrite);
    const ADMIN: Needs = Needs::Scope(Scope::Admin);
    let mut routes = vec![
        At::new("/orders")
            .get_with_query(READ, orders::list)
            .post(ORDER, orders::place),
        At::new("/order").post(ORDER, orders::place),
        At::new("/orders/batch").post(ORDER, batch::place_all),
        At::new("/orders/{id}").get(READ, orders::show),
        At::new("/orders/{id}/cancel").post(ORDER, orders::cancel),
        At::new("/events")
            .of_type("text/event-stream")
            .get_with_query(AnyKey, events::listen),
        At::new("/webhooks")
            .get_with_query(AnyKey, webhooks::list)
            .post(AnyKey, webhooks::create),
        At::new("/webhooks/{id}")
            .get(AnyKey, webhooks::show)
            .delete(AnyKey, webhooks::delete),
        At::new("/products").get_with_query(AnyKey, products::list),
        At::new("/products/{id}").get(AnyKey, products::show),
        At::new("/products/{id}/movements").get_with_query(ADMIN, movements::list),
        At::new("/vendors").get_with_query(AnyKey, vendors::list),
        At::new("/vendors/{vendor}/products/{id}")
            .get(AnyKey, vendors::show_product)
            .put(STOCK, vendors::put_product),
        At::new("/vendors/{vendor}/stock-updates").post(STOCK, vendors::apply_updates),
        At::new("/admin/sync").post(ADMIN, admin::sync),
        At::new("/admin/queues").get(ADMIN, admin::queues),
        At::new("/admin/overview").get(ADMIN, admin::overview),
        At::new("/admin/dead-letters/{queue}").get_with_query(ADMIN, dead_letters::list),
        At::new("/admin/dead-letters/{queue}/replay").post(ADMIN, dead_letters::replay),
        At::new("/admin/dead-letters/{queue}/drop").post(ADMIN, dead_letters::drop),
        At::new("/admin/dead-letters/{queue}/{messageId}").get(ADMIN, dead_letters::show),
        At::new("/healthz").get(Nothing, health::alive),
        At::new("/readyz").get(Nothing, health::ready),
        metrics::at(ADMIN),
        At::new("/login")
            .of_type(NOTHING)
            .post(Nothing, auth::log_in),
        At::new("/logout")
            .of_type(NOTHING)
            .post(Nothing, auth::log_out),
        At::new("/openapi.json").get(Nothing, docs::description),
        At::new("/docs")
            .of_type("text/html")
            .get(Nothing, docs::page),
        At::new("/docs/rapidoc-min.js")
            .of_type("text/javascript")
            .get(Nothing, docs::script),
    ];
    routes.extend(page::at());
    routes
}

async fn no_route(request: HttpRequest) -> Result<HttpResponse, Problem> {
    Err(Problem::not_found(format!(
        "there is nothing at {}",
        request.path()
    )))
}

/// Runs a use case to its end, also when the caller goes away meanwhile: one that is dropped in the middle of its
/// transaction would keep its locks until the server notices.
async fn detached<T: Send + 'static>(
    use_case: impl Future<Output = Result<T, app::Error>> + Send + 'static,
) -> Result<T, app::Error> {
    // Its lines of the log are the request's, and so is its trace.
    tokio::spawn(traces::within(traces::current(), use_case).in_current_span())
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

/// The time in a cursor, as we write it and in no other way: a cursor is taken from an answer, not made.
fn cursor_micros(text: &str) -> Option<i64> {
    let micros: i64 = text.parse().ok()?;
    (CURSOR_MICROS.contains(&micros) && micros.to_string() == text).then_some(micros)
}

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
