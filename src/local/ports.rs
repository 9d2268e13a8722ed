//! Free TCP ports on the loopback interface.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

use super::error::Error;
use super::files::fill_random;

/// Below are ports of well-known services, also of this machine's own PostgreSQL
/// (5432) and RabbitMQ (5672, 15672), which may be started later.
const LOWEST: u16 = 20_000;

/// Where Linux begins to take ports for outgoing connections, unless configured.
const LOCAL_RANGE_START: u16 = 32_768;

/// Random tries; with a thousand ports in use, all of them would fail once in 10^100.
const TRIES: usize = 200;

/// What this process has chosen so far. A server that is down for a moment, as while it
/// starts again, has its port all the same, though nobody listens on it.
static CHOSEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Whether nobody listens on `port` of 127.0.0.1 or of all addresses.
pub(super) fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// Chooses free ports, all different, and none that was chosen before.
///
/// They lie below the range that the kernel gives to outgoing connections: a port
/// of that range is lost as soon as some client happens to get it while the server
/// is down, even the one that tries to reach that server (TCP lets a socket connect
/// to itself).
pub(super) fn choose<const COUNT: usize>() -> Result<[u16; COUNT], Error> {
    try_choose().map_err(|source| Error::Ports { source })
}

fn try_choose<const COUNT: usize>() -> io::Result<[u16; COUNT]> {
    let end = local_range_start();
    let mut chosen = CHOSEN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut held = Vec::new();
    for _ in 0..TRIES {
        let mut random = [0; 2];
        fill_random(&mut random)?;
        let port = if end > LOWEST {
            LOWEST + u16::from_ne_bytes(random) % (end - LOWEST)
        } else {
            0 // the kernel leaves nothing below its range, so it may choose
        };
        // Held until all are found, so that none is found twice.
        let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) else {
            continue;
        };
        let port = listener.local_addr()?.port();
        if chosen.contains(&port) {
            continue;
        }
        held.push((port, listener));
        if held.len() == COUNT {
            let mut ports = [0; COUNT];
            for (place, (port, _)) in ports.iter_mut().zip(&held) {
                *place = *port;
            }
            chosen.extend(ports);
            return Ok(ports);
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

fn local_range_start() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .unwrap_or(LOCAL_RANGE_START)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn chosen_ports_are_different_and_free() {
        let [a, b, c] = choose::<3>().unwrap();
        assert!(a != b && b != c && a != c);
        assert!(is_free(a) && is_free(b) && is_free(c));
    }

    #[test]
    fn a_port_is_chosen_once() {
        let mut all = BTreeSet::new();
        for _ in 0..500 {
            for port in choose::<3>().unwrap() {
                assert!(all.insert(port), "{port}");
            }
        }
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_not_free() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        assert!(!is_free(listener.local_addr().unwrap().port()));
    }
}
