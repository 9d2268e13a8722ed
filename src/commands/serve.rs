//! `stockctl serve`: the HTTP API.

use std::net::TcpListener;

use tokio_util::sync::CancellationToken;

use super::{EXIT_UNREACHABLE, Failure, broker_settings, context, watch_queues};
use crate::app::Context;
use crate::app::accept::{self, Accept};
use crate::app::relay::{self, Relay};
use crate::config::Config;
use crate::http::{self, State};
use crate::mq::Publisher;
use crate::pg;
use crate::shutdown::Shutdown;

/// Takes the configured address.
///
/// # Errors
/// It is in use, or not ours.
pub fn bind(config: &Config) -> Result<TcpListener, Failure> {
    let address = config.http.listen;
    TcpListener::bind(address).map_err(|error| {
        Failure::new(
            EXIT_UNREACHABLE,
            format!("cannot listen on {address} (http.listen): {error}"),
        )
    })
}

/// Serves until the shutdown.
///
/// # Errors
/// See [`Failure`].
pub async fn run(
    config: &Config,
    listener: TcpListener,
    shutdown: Shutdown,
) -> Result<(), Failure> {
    let context = context(config)?;
    let publisher = Publisher::start(broker_settings(config), "serve");
    let (relay, publishing) = Relay::new(context.clone(), publisher.clone());
    let mut publishing = tokio::spawn(publishing.run());
    // A pool of its own: slow reads must not make PostgreSQL look down to those who order.
    let for_accept = Context {
        database: pg::Pool::new(pg::Settings {
            // One more, so that its word does not wait for a transaction.
            pool_size: accept::TRANSACTIONS_MAX + 1,
            ..context.database.settings().clone()
        })
        .map_err(Failure::bug)?,
        ..context.clone()
    };
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
        shutdown.clone(),
    ));
    // Orders are accepted also while PostgreSQL is down; this only says so.
    let warning = tokio::spawn({
        let (config, shutdown) = (config.clone(), shutdown.clone());
        async move { super::wait_for_schema(&config, &shutdown).await }
    });

    let state = State {
        context,
        accept,
        relay,
        publisher: publisher.clone(),
        broker: broker_settings(config),
    };
    let address = listener.local_addr().map_err(Failure::bug)?;
    let server =
        http::server(listener, state, config.http.shutdown_deadline).map_err(Failure::bug)?;
    let handle = server.handle();
    let mut serving = tokio::spawn(server);
    tracing::info!(%address, "serving");

    let result = tokio::select! {
        // First, since the others end by it too.
        biased;
        () = shutdown.begun() => Ok(()),
        failure = watch_queues(publisher.link()) => Err(failure),
        // Without one of these the process would look alive and do nothing.
        _ = &mut committing => Err(Failure::bug("the part that accepts orders ended by itself")),
        _ = &mut publishing => Err(Failure::bug("the part that publishes ended by itself")),
        _ = &mut sweeping => Err(Failure::bug("the sweeper ended by itself")),
        _ = &mut vouching => Err(Failure::bug("the part that vouches ended by itself")),
        ended = &mut serving => Err(Failure::bug(match ended {
            Ok(Ok(())) => "the HTTP server ended by itself".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        })),
    };
    if result.is_err() {
        shutdown.begin();
        return result;
    }
    // In this order: no new requests, those in hand are answered, what they committed is published.
    let ending = async {
        handle.stop(true).await;
        let _ = serving.await;
        warning.abort();
        let _ = committing.await;
        // Until now, something could still have been accepted through the broker.
        accepted_all.cancel();
        let _ = vouching.await;
        let _ = sweeping.await;
        let _ = publishing.await;
    };
    if tokio::time::timeout(config.http.shutdown_deadline * 2, ending)
        .await
        .is_err()
    {
        tracing::warn!(
            "not all was finished within the deadline; what was committed is published by the next process"
        );
    }
    publisher.close(config.http.shutdown_deadline).await;
    result
}
