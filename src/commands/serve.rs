//! `stockctl serve`: the HTTP API.

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{
    EXIT_CONFIGURATION, EXIT_UNREACHABLE, Failure, broker_settings, context, watch_queues,
};
use crate::app::Context;
use crate::app::accept::{self, Accept};
use crate::app::events::Events;
use crate::app::keys::KeyRing;
use crate::app::outcome::Outcomes;
use crate::app::overview::Overviews;
use crate::app::relay::{self, Relay};
use crate::config::{self, Config};
use crate::http::{self, Door, Ending, Listening, Probe, SideDoor, State};
use crate::mq::Publisher;
use crate::pg;
use crate::shutdown::Shutdown;
use crate::supervisor::Supervisor;

/// A server that has not answered its own probes for this long, on a machine that may be busy, is stuck.
const HTTP_SILENCE_MAX: Duration = Duration::from_secs(60);

/// Takes the socket that a supervisor has passed, or else the configured address.
///
/// # Errors
/// What was passed is no listening socket, or one that others can reach; the address is in use, or not ours.
pub fn bind(config: &Config) -> Result<Listening, Failure> {
    let passed =
        Listening::passed().map_err(|problem| Failure::new(EXIT_CONFIGURATION, problem))?;
    if let Some(listening) = passed {
        let address = listening.local_addr().map_err(Failure::bug)?;
        if !config.http.require_keys {
            config::reachable_from_here_only(address).map_err(|problem| {
                Failure::new(
                    EXIT_CONFIGURATION,
                    format!("the socket that was passed (LISTEN_FDS): {problem}"),
                )
            })?;
        }
        return Ok(listening);
    }
    let address = config.http.listen;
    Listening::bind(address).map_err(|error| {
        Failure::new(
            EXIT_UNREACHABLE,
            format!("cannot listen on {address} (http.listen): {error}"),
        )
    })
}

/// When the parts of a shutdown are over. `config/default.toml` says so to people.
struct Deadlines {
    /// A connection without a request is closed: a quarter of the whole.
    idle: Instant,
    /// Requests in hand are given up: three quarters; the rest is for publishing what they committed.
    requests: Instant,
    /// The process ends.
    end: Instant,
}

impl Deadlines {
    fn of(deadline: Duration) -> Self {
        let begun = Instant::now();
        Self {
            idle: begun + deadline / 4,
            requests: begun + deadline * 3 / 4,
            end: begun + deadline,
        }
    }
}

/// For accepting orders, a pool of its own: slow reads must not make PostgreSQL look down to those who order.
fn with_own_pool(context: &Context) -> Result<Context, Failure> {
    let settings = pg::Settings {
        // One more, so that its word does not wait for a transaction.
        pool_size: accept::TRANSACTIONS_MAX + 1,
        ..context.database.settings().clone()
    };
    Ok(Context {
        database: pg::Pool::new("accept", settings).map_err(Failure::bug)?,
        ..context.clone()
    })
}

/// Who is let in, with what keeps that up to date.
fn door(config: &Config, context: Context, shutdown: &Shutdown) -> (Door, JoinHandle<()>) {
    if !config.http.require_keys {
        return (
            Door::open(config.http.rates.clone()),
            tokio::spawn(std::future::pending()),
        );
    }
    let keys = KeyRing::default();
    let looking = keys.clone().look_until_stopped(context, shutdown.clone());
    (
        Door::with_keys(keys, config.http.rates.clone()),
        tokio::spawn(looking),
    )
}

/// Says that the server is ready once it has answered, and from then on that it gets on as long as it answers.
async fn vouch_for_http(probe: Probe, address: SocketAddr, supervisor: Supervisor) {
    let Some(every) = supervisor.look_every() else {
        return;
    };
    let mut answers = None;
    loop {
        if probe.is_answered().await {
            let answers = answers.get_or_insert_with(|| {
                supervisor.ready(&format!("serving on {address}"));
                supervisor.part("the HTTP server", HTTP_SILENCE_MAX)
            });
            answers.moved();
        }
        tokio::time::sleep(every).await;
    }
}

fn ended_by_itself(ended: Result<std::io::Result<()>, JoinError>) -> Failure {
    Failure::bug(match ended {
        Ok(Ok(())) => "the HTTP server ended by itself".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    })
}

/// Files beside the connections of callers: of both stores, of vendors, of the runtime.
const OTHER_FILES: u64 = 1_000;

/// Lets the process open as many files as its connections need, as far as it may. Not more: what it starts inherits that,
/// and some programs set aside room for each file that they might open.
fn make_room_for_connections(config: &Config) {
    let wanted = u64::try_from(config.http.connections_max)
        .unwrap_or(u64::MAX)
        .saturating_add(OTHER_FILES);
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let reached = wanted.min(hard).max(soft);
        if reached > soft {
            setrlimit(Resource::RLIMIT_NOFILE, reached, hard)?;
        }
        Ok(reached)
    });
    match raised {
        Ok(reached) if reached >= wanted => {}
        Ok(reached) => tracing::warn!(
            files = reached,
            "the process may not open as many files as http.connections_max needs: {wanted}; raise the limit of its \
             supervisor (LimitNOFILE), or lower that key"
        ),
        Err(error) => tracing::warn!(%error, "how many files may be open is not known"),
    }
}

/// Reads what TLS is spoken with, and again on each SIGHUP, whatever else the configuration says then.
fn tls(config: &Config) -> Result<Option<http::Tls>, Failure> {
    let Some(files) = &config.http.tls else {
        return Ok(None);
    };
    let files = http::TlsFiles {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
    };
    let tls = http::Tls::read(files)
        .map_err(|error| Failure::new(EXIT_CONFIGURATION, error.to_string()))?;
    if let Some(mut hangups) = super::reload::hangups()? {
        let tls = tls.clone();
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                match tls.read_again() {
                    Ok(()) => tracing::info!("the certificate was read again"),
                    Err(error) => tracing::error!(
                        %error,
                        "the certificate was not read again; the one from before is shown still"
                    ),
                }
            }
        });
    }
    Ok(Some(tls))
}

fn settings(config: &Config, door: Door, tls: Option<http::Tls>) -> http::Settings {
    http::Settings {
        door: door.secured(tls.is_some()),
        tls,
        cors_origins: config.http.cors_origins.clone(),
        hosts: config.http.hosts.clone(),
        connections_max: config.http.connections_max,
        shutdown_deadline: config.http.shutdown_deadline,
    }
}

/// Lets the requests that are in hand be answered.
async fn drain(draining: &mut Ending, deadlines: &Deadlines) {
    draining.drain(deadlines.idle).await;
    let all_closed = timeout_at(deadlines.requests, draining.all_closed()).await;
    if all_closed.is_err() {
        tracing::warn!(
            "requests are in hand still after three quarters of http.shutdown_deadline_ms; their connections are closed"
        );
    }
}

/// Serves until the shutdown.
///
/// # Errors
/// See [`Failure`].
pub async fn run(
    config: &Config,
    listening: Listening,
    shutdown: Shutdown,
    supervisor: &Supervisor,
) -> Result<(), Failure> {
    let tls = tls(config)?;
    make_room_for_connections(config);
    let context = context(config)?;
    let gauges = super::metrics::gauges(config, &context)?;
    // To the end: also while the last requests are answered.
    let _metrics = super::metrics::listen(config, &gauges)?;
    let publisher = Publisher::start(broker_settings(config), "serve");
    let (relay, publishing) = Relay::new(context.clone(), publisher.clone());
    let mut publishing = tokio::spawn(publishing.run());
    let for_accept = with_own_pool(&context)?;
    let (accept, committing, vouching) = Accept::new(
        for_accept,
        publisher.clone(),
        relay.clone(),
        broker_settings(config),
    );
    let accepted_all = CancellationToken::new();
    let mut vouching = tokio::spawn(vouching.run(accepted_all.clone()));
    let mut committing = tokio::spawn(committing.run());
    let mut sweeping = tokio::spawn(relay::sweep_until_stopped(
        context.clone(),
        publisher.clone(),
        relay.clone(),
        config.events.kept_for,
        shutdown.clone(),
        supervisor.clone(),
    ));
    // Orders are accepted also while PostgreSQL is down; this only says so.
    let warning = tokio::spawn({
        let (config, shutdown) = (config.clone(), shutdown.clone());
        async move { super::wait_for_schema(&config, &shutdown, &Supervisor::none()).await }
    });

    let (outcomes, mut looking) = Outcomes::start(context.clone(), shutdown.clone());
    let (events, mut following) = Events::start(context.clone(), shutdown.clone());
    let for_keys = context.clone();
    let state = State {
        overviews: Overviews::new(context.clone()),
        context,
        accept,
        outcomes,
        events,
        relay,
        publisher: publisher.clone(),
        broker: broker_settings(config),
        gauges,
        allows_private_receivers: config.webhooks.allow_private,
    };
    let address = listening.local_addr().map_err(Failure::bug)?;
    let side_door = SideDoor::open().map_err(Failure::bug)?;
    let (door, mut looking_at_keys) = door(config, for_keys, &shutdown);
    let (server, mut draining, probe) =
        http::server(listening, side_door, state, settings(config, door, tls))
            .map_err(Failure::bug)?;
    let mut serving = tokio::spawn(server);
    tracing::info!(%address, "serving");
    let vouching_for_http = tokio::spawn(vouch_for_http(probe, address, supervisor.clone()));

    let result = tokio::select! {
        // First, since the others end by it too.
        biased;
        () = shutdown.begun() => Ok(()),
        failure = watch_queues(publisher.link()) => Err(failure),
        // Without one of these the process would look alive and do nothing.
        _ = &mut committing => Err(Failure::bug("the part that accepts orders ended by itself")),
        _ = &mut publishing => Err(Failure::bug("the part that publishes ended by itself")),
        _ = &mut sweeping => Err(Failure::bug("the sweeper ended by itself")),
        _ = &mut looking => Err(Failure::bug("the part that looks for outcomes ended by itself")),
        _ = &mut following => Err(Failure::bug("the part that looks for events ended by itself")),
        _ = &mut vouching => Err(Failure::bug("the part that vouches ended by itself")),
        _ = &mut looking_at_keys => Err(Failure::bug("the part that looks at the API keys ended by itself")),
        ended = &mut serving => Err(ended_by_itself(ended)),
    };
    vouching_for_http.abort();
    looking_at_keys.abort();
    if result.is_err() {
        shutdown.begin();
        return result;
    }
    let deadlines = Deadlines::of(config.http.shutdown_deadline);
    // In this order: no new requests, those in hand are answered, what they committed is published.
    let ending = async {
        drain(&mut draining, &deadlines).await;
        serving.abort();
        let _ = serving.await;
        warning.abort();
        let _ = committing.await;
        // Until now, something could still have been accepted through the broker.
        accepted_all.cancel();
        let _ = vouching.await;
        let _ = sweeping.await;
        let _ = publishing.await;
    };
    if timeout_at(deadlines.end, ending).await.is_err() {
        tracing::warn!(
            "not all was finished within the deadline; what was committed is published by the next process"
        );
    }
    publisher
        .close(deadlines.end.saturating_duration_since(Instant::now()))
        .await;
    result
}
