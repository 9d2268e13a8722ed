//! `/metrics`: what this process counts and sees, for Prometheus. A process without the API has a small listener for it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::guard::fn_guard;
use actix_web::web::Data;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};

use super::auth::Needs;
use super::host::Hosts;
use super::listening::Listening;
use super::problem::{MISDIRECTED_REQUEST, Problem};
use super::routes::At;
use super::{detached, no_route};
use crate::app::gauges::Gauges;
use crate::metrics;

/// Somebody looks every few seconds; a thread of one core does.
const WORKERS: usize = 1;
/// Connections that are served at once, and that wait to be: a few who scrape, each with one.
const CONNECTIONS_MAX: usize = 64;
const BACKLOG: u32 = 64;
/// A client has this long to send its request.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// Longer than the usual interval of a scrape.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// What whoever calls it by another name is told.
const NOT_OURS: &str =
    "this listener answers to localhost, to loopback addresses and to the names in http.hosts";

/// Figures for Prometheus
///
/// What this process counts and sees, in Prometheus's text format 0.0.4.
#[utoipa::path(get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "All figures", content_type = "text/plain", body = String)))]
pub(super) async fn show(gauges: Data<Gauges>) -> Result<HttpResponse, Problem> {
    let gauges = gauges.into_inner();
    // To its end, also when the caller goes away: the look belongs to all who scrape.
    let text = detached(async move { gauges.scrape().await }).await?;
    Ok(HttpResponse::Ok()
        .content_type(metrics::CONTENT_TYPE)
        .body(text))
}

/// The route.
pub(super) fn at(needs: Needs) -> At {
    // Whoever scrapes may be configured to send parameters.
    At::new("/metrics")
        .of_type("text/plain")
        .get_with_query(needs, show)
}

/// Tells what is wrong with a request for anything else, or by another name.
async fn not_served(request: HttpRequest, hosts: Data<Hosts>) -> Result<HttpResponse, Problem> {
    if hosts.are_meant_by(request.head()) {
        no_route(request).await
    } else {
        Err(Problem::new(MISDIRECTED_REQUEST, NOT_OURS))
    }
}

/// A listener for `/metrics` alone, until this is dropped.
pub struct MetricsListener {
    address: SocketAddr,
    server: ServerHandle,
}

impl MetricsListener {
    /// Begins to answer on a listening socket, called by this machine's names or by one of `hosts`.
    ///
    /// # Errors
    /// The socket cannot be used.
    pub fn start(
        listening: Listening,
        gauges: std::sync::Arc<Gauges>,
        hosts: &[String],
    ) -> io::Result<Self> {
        let address = listening.local_addr()?;
        let (listener, _) = listening.split()?;
        let gauges = Data::from(gauges);
        let hosts = Data::new(Hosts::OwnAnd(hosts.into()));
        let server = HttpServer::new(move || {
            let meant = hosts.clone();
            let by_our_name = fn_guard(move |request| meant.are_meant_by(request.head()));
            App::new()
                .app_data(gauges.clone())
                .app_data(hosts.clone())
                // It can be reached from this machine only.
                .service(at(Needs::Nothing).into_service().guard(by_our_name))
                .default_service(web::route().to(not_served))
        })
        .workers(WORKERS)
        .max_connections(CONNECTIONS_MAX)
        .backlog(BACKLOG)
        .keep_alive(KEEP_ALIVE)
        .client_request_timeout(SEND_DEADLINE)
        .client_disconnect_timeout(SEND_DEADLINE)
        .disable_signals()
        .listen(listener)?
        .run();
        let handle = server.handle();
        tokio::spawn(server);
        Ok(Self {
            address,
            server: handle,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsListener {
    fn drop(&mut self) {
        // The server has got the word when this returns, and ends by itself.
        drop(self.server.stop(false));
    }
}
