//! What systemd is told of this process: that it is ready, what it is doing, that it ends, and, as long as that is true,
//! that it gets on. Nobody listens unless `NOTIFY_SOCKET` names a socket.
//!
//! A timer that says "alive" would also say so of a process that does nothing any more. So each part that must not stop
//! says when it has moved, and the watchdog is fed only while every one of them has moved within its patience. A store
//! that is away is no reason to be killed: whoever waits for it looks for it again and again, and each look is a move.

use std::collections::BTreeMap;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{env, io};

use tokio::time::Instant;

use crate::shutdown::Shutdown;

/// The watchdog is fed so many times within the time it allows: one that comes late is made good by the next.
const FEEDS: u32 = 4;

/// Where the supervisor listens, and how often it wants to hear that this process gets on.
struct Listener {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
}

#[derive(Default)]
struct Parts {
    next: u64,
    by_number: BTreeMap<u64, Progress>,
}

struct Progress {
    name: &'static str,
    patience: Duration,
    /// None while there is nothing to be expected of it.
    moved: Option<Instant>,
}

#[derive(Default)]
struct Shared {
    listener: Option<Listener>,
    parts: Mutex<Parts>,
    is_ending: AtomicBool,
}

/// Who has started this process and watches it, if anybody does. Clones share one state.
#[derive(Clone, Default)]
pub struct Supervisor(Arc<Shared>);

impl Supervisor {
    /// Nobody.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The one that the environment names, by the protocol of `sd_notify`.
    ///
    /// # Errors
    /// `NOTIFY_SOCKET` names nothing that can be a socket.
    pub fn from_environment() -> io::Result<Self> {
        let Some(name) = env::var_os("NOTIFY_SOCKET") else {
            return Ok(Self::none());
        };
        let name = name.into_vec();
        let address = match name.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(&name))?,
        };
        let socket = UnixDatagram::unbound()?;
        // A supervisor that does not read must hold up nobody.
        socket.set_nonblocking(true)?;
        let listener = Listener {
            socket,
            address,
            watchdog: watchdog(),
        };
        Ok(Self(Arc::new(Shared {
            listener: Some(listener),
            ..Shared::default()
        })))
    }

    /// Says that the process does what it was started for, and what that is.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={}", on_one_line(status)));
    }

    /// Says in a few words what the process is doing; `systemctl status` shows it.
    pub fn status(&self, status: &str) {
        self.tell(&format!("STATUS={}", on_one_line(status)));
    }

    fn tell(&self, text: &str) {
        let Some(listener) = &self.0.listener else {
            return;
        };
        if let Err(error) = listener
            .socket
            .send_to_addr(text.as_bytes(), &listener.address)
        {
            tracing::debug!(%error, "the supervisor does not hear");
        }
    }

    /// How often somebody who vouches for a part should look: never, where nobody listens.
    #[must_use]
    pub fn look_every(&self) -> Option<Duration> {
        /// Without a watchdog, `READY` is all that hangs on a look.
        const UNWATCHED: Duration = Duration::from_secs(15);
        let listener = self.0.listener.as_ref()?;
        Some(
            listener
                .watchdog
                .map_or(UNWATCHED, |allowed| allowed / FEEDS),
        )
    }

    /// A part that must not stop: it has just moved, and will again within its patience, until it rests or is dropped.
    #[must_use]
    pub fn part(&self, name: &'static str, patience: Duration) -> Part {
        let mut parts = self.parts();
        let number = parts.next;
        parts.next += 1;
        let progress = Progress {
            name,
            patience,
            moved: Some(Instant::now()),
        };
        parts.by_number.insert(number, progress);
        Part {
            supervisor: self.clone(),
            number,
        }
    }

    fn parts(&self) -> std::sync::MutexGuard<'_, Parts> {
        // What is behind it is whole after every statement.
        self.0.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The part that has not moved within its patience, if there is one, and since when.
    fn stuck(&self) -> Option<(&'static str, Duration)> {
        let now = Instant::now();
        self.parts().by_number.values().find_map(|part| {
            let silence = now - part.moved?;
            (silence > part.patience).then_some((part.name, silence))
        })
    }

    /// Says, the first time, that the process ends.
    pub fn ending(&self) {
        if !self.0.is_ending.swap(true, Ordering::Relaxed) {
            self.tell("STOPPING=1\nSTATUS=ending: finishing what is in hand");
        }
    }

    /// Feeds the watchdog while all parts get on, and says when the shutdown begins.
    pub async fn watch_until_stopped(self, shutdown: Shutdown) {
        let fed_every = self
            .0
            .listener
            .as_ref()
            .and_then(|listener| listener.watchdog)
            .map(|allowed| allowed / FEEDS);
        let mut was_stuck = false;
        loop {
            if fed_every.is_some() {
                match self.stuck() {
                    None => self.tell("WATCHDOG=1"),
                    Some((part, silence)) if !was_stuck => tracing::error!(
                        part,
                        silent_for_s = silence.as_secs(),
                        "a part of this process does not get on; the watchdog is not fed until it does"
                    ),
                    Some(_) => {}
                }
                was_stuck = self.stuck().is_some();
            }
            let next = async {
                match fed_every {
                    Some(every) => tokio::time::sleep(every).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = shutdown.begun() => break,
                () = next => {}
            }
        }
        self.ending();
    }
}

/// What comes after a line's end would be read as another variable.
fn on_one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// What `WATCHDOG_USEC` allows, if it is meant for this process.
fn watchdog() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    let is_ours = match env::var_os("WATCHDOG_PID") {
        Some(_) => number("WATCHDOG_PID") == Some(std::process::id().into()),
        None => true,
    };
    let allowed = number("WATCHDOG_USEC").filter(|usec| *usec > 0 && is_ours)?;
    Some(Duration::from_micros(allowed))
}

/// A part of the process that must not stop, as seen by its own moves.
pub struct Part {
    supervisor: Supervisor,
    number: u64,
}

impl Part {
    /// Says that it has moved.
    pub fn moved(&self) {
        self.note(Some(Instant::now()));
    }

    /// Says that it has nothing to do for now, however long that takes.
    pub fn rests(&self) {
        self.note(None);
    }

    fn note(&self, moved: Option<Instant>) {
        if let Some(progress) = self.supervisor.parts().by_number.get_mut(&self.number) {
            progress.moved = moved;
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.supervisor.parts().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A supervisor that hears, and what it has heard so far.
    fn listening(name: &str, watchdog: Option<Duration>) -> (Supervisor, UnixDatagram) {
        let name = format!("stockctl-test-{}-{name}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let heard = UnixDatagram::bind_addr(&address).expect("bound");
        heard.set_nonblocking(true).expect("set");
        let socket = UnixDatagram::unbound().expect("a socket");
        // One that is fed too often fails, and does not wait for somebody to read.
        socket.set_nonblocking(true).expect("set");
        let listener = Listener {
            socket,
            address,
            watchdog,
        };
        let shared = Shared {
            listener: Some(listener),
            ..Shared::default()
        };
        (Supervisor(Arc::new(shared)), heard)
    }

    fn heard(socket: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 1024];
        std::iter::from_fn(|| {
            let length = socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })
        .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_does_not_move_is_stuck_until_it_moves_rests_or_is_over() {
        let supervisor = Supervisor::none();
        let part = supervisor.part("one", PATIENCE);
        let other = supervisor.part("other", 10 * PATIENCE);
        tokio::time::advance(PATIENCE).await;
        assert_eq!(supervisor.stuck(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(
            supervisor.stuck(),
            Some(("one", PATIENCE + Duration::from_secs(1)))
        );
        other.moved();
        assert!(
            supervisor.stuck().is_some(),
            "another part vouches for none"
        );
        part.moved();
        assert_eq!(supervisor.stuck(), None);
        part.rests();
        tokio::time::advance(2 * PATIENCE).await;
        assert_eq!(supervisor.stuck(), None);
        drop(part);
        tokio::time::advance(20 * PATIENCE).await;
        assert_eq!(supervisor.stuck().map(|(name, _)| name), Some("other"));
        drop(other);
        assert_eq!(supervisor.stuck(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_while_all_parts_move_and_hears_of_the_end() {
        let (supervisor, socket) = listening("fed", Some(Duration::from_secs(40)));
        let part = supervisor.part("one", PATIENCE);
        let shutdown = Shutdown::new();
        let watching = tokio::spawn(supervisor.clone().watch_until_stopped(shutdown.clone()));
        tokio::time::sleep(Duration::from_secs(25)).await;
        assert_eq!(heard(&socket), ["WATCHDOG=1"; 3]);
        tokio::time::sleep(PATIENCE).await;
        let while_patient = heard(&socket).len();
        tokio::time::sleep(10 * PATIENCE).await;
        assert_eq!(heard(&socket), [""; 0], "after {while_patient}");
        part.moved();
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert!(!heard(&socket).is_empty());
        shutdown.begin();
        watching.await.expect("no panic");
        let last = heard(&socket);
        assert_eq!(
            last,
            ["STOPPING=1\nSTATUS=ending: finishing what is in hand"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_watchdog_nothing_is_fed() {
        let (supervisor, socket) = listening("unwatched", None);
        let shutdown = Shutdown::new();
        let watching = tokio::spawn(supervisor.clone().watch_until_stopped(shutdown.clone()));
        supervisor.ready("serving");
        tokio::time::sleep(PATIENCE).await;
        assert_eq!(heard(&socket), ["READY=1\nSTATUS=serving"]);
        shutdown.begin();
        watching.await.expect("no panic");
    }
}
