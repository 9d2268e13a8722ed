//! The listener for `/metrics` of a process that has no HTTP API, or wants one apart from it.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{EXIT_UNREACHABLE, Failure, broker_settings};
use crate::app::Context;
use crate::app::gauges::{Gauges, LOOK_EVERY};
use crate::config::Config;
use crate::http::{Listening, MetricsListener};

/// Ports that are tried, the configured one first: as many processes on one machine share a configuration.
const PORTS: u16 = 16;

/// What is read on a scrape.
///
/// # Errors
/// The configuration allows no connection.
pub(super) fn gauges(config: &Config, context: &Context) -> Result<Arc<Gauges>, Failure> {
    Gauges::new(context, broker_settings(config), LOOK_EVERY).map_err(Failure::bug)
}

/// Listens where the configuration says, if it does, until what is returned is dropped.
///
/// # Errors
/// No port is free there.
pub(super) fn listen(
    config: &Config,
    gauges: &Arc<Gauges>,
) -> Result<Option<MetricsListener>, Failure> {
    let Some(first) = config.metrics.listen else {
        return Ok(None);
    };
    let listening = bind(first)?;
    let listener = MetricsListener::start(listening, Arc::clone(gauges), &config.http.hosts)
        .map_err(Failure::bug)?;
    tracing::info!(address = %listener.address(), "metrics at /metrics");
    Ok(Some(listener))
}

fn bind(first: SocketAddr) -> Result<Listening, Failure> {
    let last = first.port().saturating_add(PORTS - 1);
    let ports = match first.port() {
        // The system chooses one that is free.
        0 => 0..=0,
        port => port..=last,
    };
    let mut taken = None;
    for port in ports {
        let address = SocketAddr::new(first.ip(), port);
        match Listening::bind(address) {
            Ok(listening) => return Ok(listening),
            Err(error) if error.kind() == ErrorKind::AddrInUse => taken = Some(error),
            Err(error) => return Err(cannot(address, &error.to_string())),
        }
    }
    let problem = taken.map_or_else(String::new, |error| error.to_string());
    Err(cannot(
        first,
        &format!("{problem}, and so are the ports up to {last}; give this process another one"),
    ))
}

fn cannot(address: SocketAddr, problem: &str) -> Failure {
    Failure::new(
        EXIT_UNREACHABLE,
        format!("cannot listen on {address} (metrics.listen): {problem}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_one_configuration_take_neighbouring_ports() {
        let mut held = vec![bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port")];
        let first = held[0].local_addr().expect("bound");
        let last = first.port().saturating_add(PORTS - 1);
        // Others on this machine may have some of them.
        loop {
            match bind(first) {
                Ok(next) => {
                    let next_port = next.local_addr().expect("bound").port();
                    assert!((first.port() + 1..=last).contains(&next_port));
                    held.push(next);
                }
                Err(failure) => {
                    assert_eq!(failure.code, EXIT_UNREACHABLE);
                    let told = format!("cannot listen on {first} (metrics.listen): ");
                    assert!(failure.message.starts_with(&told), "{failure}");
                    return;
                }
            }
            assert!(held.len() <= usize::from(PORTS));
        }
    }
}
