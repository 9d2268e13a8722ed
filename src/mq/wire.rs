//! One connection to a broker node, with the deadlines that amiquip itself does not have.

use std::{
    io,
    net::{Shutdown, TcpStream, ToSocketAddrs},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use amiquip::{
    Auth, Channel, Connection, ConnectionBlockedNotification, ConnectionOptions, ConnectionTuning,
};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::{address::Address, legible::Legible, trouble::Trouble};
use crate::metrics::{FAULTS, Fault};

/// A node that does not even complete a TCP handshake in this time is not going to.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Both sides send something at least so often; after two intervals of silence amiquip gives the
/// connection up. Shorter ones were seen elsewhere to fail on a busy machine.
const HEARTBEAT_S: u16 = 10;

/// The kernel asks a silent machine for a sign of life after this time, also where a broker was
/// configured without heartbeats.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// An owner thread that has not come round for so long is stuck in a call of amiquip's, none of which
/// has a deadline. It must be well above the slowest honest answer (declaring a quorum queue on a busy
/// broker takes seconds).
const STUCK_AFTER: Duration = Duration::from_secs(15);

/// How often the watchdog looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// How often an owner thread comes round when nothing happens, to feed the watchdog.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// Frames on their way to amiquip's I/O thread. A publish takes three; more room means fewer wake-ups.
const FRAMES_QUEUED_MAX: usize = 512;

/// amiquip stops taking frames above this many unsent bytes. The publisher keeps less outstanding
/// (`publisher::in_flight`), so that its sends never block on a broker that stops reading.
const UNSENT_MAX_BYTES: usize = 64 << 20;

pub(super) struct Wire {
    // The order matters on drop: closing the connection may need the watchdog.
    connection: Connection,
    notes: Receiver<ConnectionBlockedNotification>,
    watchdog: Watchdog,
    address: String,
}

impl Wire {
    pub(super) fn open(address: &Address) -> Result<Wire, Trouble> {
        let stream =
            connect(address).map_err(|error| Trouble::Lost(format!("cannot connect: {error}")))?;
        let watchdog = stream
            .try_clone()
            .and_then(Watchdog::start)
            .map_err(|error| {
                Trouble::Lost(format!("cannot start a thread for the connection: {error}"))
            })?;
        let stream = mio_stream(stream)
            .map_err(|error| Trouble::Lost(format!("cannot set up the socket: {error}")))?;
        let options = ConnectionOptions::default()
            .auth(Auth::Plain {
                username: address.username.clone(),
                password: address.password.clone(),
            })
            .virtual_host(address.virtual_host.as_str())
            .heartbeat(HEARTBEAT_S)
            .connection_timeout(Some(CONNECT_DEADLINE));
        let tuning = ConnectionTuning::default()
            .mem_channel_bound(FRAMES_QUEUED_MAX)
            .buffered_writes_high_water(UNSENT_MAX_BYTES);
        // Opened by URL, amiquip leaves Nagle's algorithm on, which costs 40 ms per confirm.
        let stream = Legible::new(stream);
        let mut connection = Connection::insecure_open_stream(stream, options, tuning)?;
        let notes = connection.listen_for_connection_blocked()?;
        Ok(Wire {
            connection,
            notes,
            watchdog,
            address: address.to_string(),
        })
    }

    pub(super) fn open_channel(&mut self) -> Result<Channel, Trouble> {
        self.feed();
        Ok(self.connection.open_channel(None)?)
    }

    /// Blocked and unblocked, and closed when the connection is gone.
    pub(super) fn notes(&self) -> &Receiver<ConnectionBlockedNotification> {
        &self.notes
    }

    /// Tells the watchdog that the owner is not stuck.
    pub(super) fn feed(&self) {
        self.watchdog.feed();
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Closes the connection after `trouble`, and returns what was the matter in truth: users of a dead
    /// connection only see that it is gone, its own thread knows why.
    pub(super) fn end(self, trouble: Trouble) -> Trouble {
        match (self.close(), trouble) {
            (Err(reason), Trouble::Lost(_)) => {
                if matches!(reason, amiquip::Error::MissedServerHeartbeats) {
                    FAULTS.of(Fault::RabbitmqSilent).inc();
                }
                Trouble::from(reason)
            }
            (_, trouble) => trouble,
        }
    }

    pub(super) fn close(self) -> amiquip::Result<()> {
        let Wire {
            connection,
            watchdog,
            ..
        } = self;
        watchdog.feed();
        connection.close()
    }
}

fn connect(address: &Address) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for socket in (address.host.as_str(), address.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&socket, CONNECT_DEADLINE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn mio_stream(stream: TcpStream) -> io::Result<mio::net::TcpStream> {
    let stream = mio::net::TcpStream::from_stream(stream)?;
    stream.set_nodelay(true)?;
    stream.set_keepalive(Some(KEEPALIVE))?;
    Ok(stream)
}

/// Cuts the socket under an owner thread that is stuck, which makes whatever it waits for fail.
struct Watchdog {
    fed: Arc<Mutex<Instant>>,
    _end: Sender<()>,
}

impl Watchdog {
    fn start(stream: TcpStream) -> io::Result<Watchdog> {
        let fed = Arc::new(Mutex::new(Instant::now()));
        let (end, ended) = crossbeam_channel::bounded(0);
        let watched = Arc::clone(&fed);
        thread::Builder::new()
            .name("mq-watchdog".to_owned())
            .spawn(move || {
                while ended.recv_timeout(WATCH_EVERY) == Err(RecvTimeoutError::Timeout) {
                    let hungry_for = watched
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .elapsed();
                    if hungry_for >= STUCK_AFTER {
                        FAULTS.of(Fault::RabbitmqSilent).inc();
                        tracing::warn!(
                            "RabbitMQ has not answered for {hungry_for:?}; the connection is cut"
                        );
                        // A socket that is closed already is just as good.
                        let _ = stream.shutdown(Shutdown::Both);
                        return;
                    }
                }
            })?;
        Ok(Watchdog { fed, _end: end })
    }

    fn feed(&self) {
        *self.fed.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}
