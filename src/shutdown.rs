//! Shutdown: a token that every part of the process holds, and the signals that begin it.
//!
//! The first SIGTERM or SIGINT begins the shutdown: whoever waits for [`Shutdown::begun`] stops taking new work and
//! finishes what is in hand within its own deadline. A second signal, once a moment has passed, exits at once.

use std::time::{Duration, Instant};
use std::{io, process, thread};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code after a second SIGINT: 128 and the signal's number, as shells have it.
pub const EXIT_INTERRUPTED: i32 = 130;
/// Exit code after a second SIGTERM: 128 and the signal's number, as shells have it.
pub const EXIT_TERMINATED: i32 = 143;

/// Signals that come this soon after the first are the same request: `timeout`, for one, signals its child and then the
/// child's group, and nobody presses a key twice as fast.
const SAME_REQUEST: Duration = Duration::from_millis(300);

/// Tells every part of the process that it should end. Clones share one state, which never goes back.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// A shutdown that has not begun.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins the shutdown. Doing it again changes nothing.
    pub fn begin(&self) {
        self.0.cancel();
    }

    /// Whether the shutdown has begun.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until the shutdown begins; returns at once when it has. Cancel-safe.
    pub async fn begun(&self) {
        self.0.cancelled().await;
    }
}

/// Lets SIGTERM and SIGINT begin `shutdown`, from the moment this returns; a second signal that is not
/// part of the same request ends the process at once.
///
/// The signals are waited for on a thread of their own: the second one has to work also when every thread of the main
/// runtime is stuck, or when that runtime is gone and waits for blocking work to end. That thread logs nothing, since
/// a log that nobody reads any more would hold it up; who has waited for [`Shutdown::begun`] may say so.
///
/// # Errors
/// When the operating system refuses the handlers or the thread.
pub fn on_signal(shutdown: &Shutdown) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let mut signals = {
        // Registered here and not on the thread, so that no signal between now and its start goes unheard.
        let _registration = runtime.enter();
        Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        }
    };
    let shutdown = shutdown.clone();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                signals.next().await;
                shutdown.begin();
                let begun = Instant::now();
                loop {
                    let code = signals.next().await;
                    if begun.elapsed() >= SAME_REQUEST {
                        process::exit(code);
                    }
                }
            });
        })?;
    Ok(())
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Waits for the next signal, and returns the exit code that belongs to it.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => EXIT_TERMINATED,
            _ = self.interrupt.recv() => EXIT_INTERRUPTED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Shutdown;

    #[tokio::test]
    async fn every_clone_learns_that_the_shutdown_began() {
        let shutdown = Shutdown::new();
        let part = shutdown.clone();
        let waiting = tokio::spawn(async move { part.begun().await });
        assert!(!shutdown.is_begun());
        shutdown.begin();
        shutdown.begin();
        assert!(waiting.await.is_ok());
        assert!(shutdown.is_begun());
    }

    #[tokio::test]
    async fn who_asks_late_does_not_wait() {
        let shutdown = Shutdown::new();
        shutdown.begin();
        shutdown.begun().await;
    }
}
