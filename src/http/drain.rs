//! The end of a server, without one request lost.
//!
//! Left to itself, the server closes every idle connection at once, and drops requests that it has read and not begun:
//! a client that sends its next request at that moment loses it, and cannot know whether it had an effect. So the server
//! goes on for a while first: whoever sends a request is answered, with `Connection: close`, and comes back by a new
//! connection, which the next process accepts. Only who sends nothing in all that time is closed while idle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::dev::ServerHandle;
use actix_web::http::ConnectionType;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::listening::Closing;

/// A connection is accepted by one thread and counted by another. So long after the last one has closed, none can be on
/// its way between the two, nor in the middle of its handshake.
const QUIET: Duration = Duration::from_millis(100);

/// What the parts of a server know of its end. Clones share one state.
#[derive(Clone, Debug, Default)]
pub(super) struct Drain(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    is_begun: AtomicBool,
    /// Connections that are open.
    open: watch::Sender<usize>,
    answers: AtomicU64,
}

impl Drain {
    /// Whether the server is about to end.
    pub(super) fn is_begun(&self) -> bool {
        self.0.is_begun.load(Ordering::Relaxed)
    }

    fn begin(&self) {
        self.0.is_begun.store(true, Ordering::Relaxed);
    }

    /// Once the server is about to end, an answer is the last one of its connection, and says so.
    pub(super) fn mark<B>(&self, answer: &mut HttpResponse<B>) {
        if self.is_begun() {
            answer.head_mut().set_connection_type(ConnectionType::Close);
        }
    }

    /// Counts a connection until this is dropped.
    pub(super) fn connection(&self) -> Connection {
        self.0.open.send_modify(|open| *open += 1);
        Connection(self.clone())
    }

    /// How many connections are open.
    pub(super) fn open(&self) -> usize {
        *self.0.open.borrow()
    }

    /// Counts an answer.
    pub(super) fn count_answer(&self) {
        self.0.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// How many answers there were.
    pub(super) fn answers(&self) -> u64 {
        self.0.answers.load(Ordering::Relaxed)
    }

    /// Waits until no connection is open.
    async fn all_closed(&self) {
        // The sender lives as long as this does.
        let _ = self.0.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// Waits until no connection has been open for a moment.
    async fn quiet(&self) {
        let mut open = self.0.open.subscribe();
        loop {
            let _ = open.wait_for(|open| *open == 0).await;
            if tokio::time::timeout(QUIET, open.changed()).await.is_err() {
                return;
            }
        }
    }
}

/// An open connection.
pub(super) struct Connection(Drain);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.0.open.send_modify(|open| *open -= 1);
    }
}

/// How a server ends.
pub struct Ending {
    server: ServerHandle,
    drain: Drain,
    closing: Option<Closing>,
}

impl Ending {
    pub(super) fn new(server: ServerHandle, drain: Drain, closing: Option<Closing>) -> Self {
        Self {
            server,
            drain,
            closing,
        }
    }

    /// Waits until every connection is closed: the server looks for that once a second only.
    pub async fn all_closed(&self) {
        self.drain.all_closed().await;
    }

    /// Begins the end, and returns at `idle_until`, or as soon as nobody is connected any more: new connections are the
    /// next process's, and each open one has its last answer. Then the server itself closes what is idle, waits for what
    /// is not, and ends.
    pub async fn drain(&mut self, idle_until: Instant) {
        self.drain.begin();
        match &self.closing {
            None => self.server.pause().await,
            Some(closing) => {
                if let Err(error) = closing.keep_out_new() {
                    tracing::debug!(%error, "connections are accepted to the end");
                }
            }
        }
        let _ = timeout_at(idle_until, self.drain.quiet()).await;
        // The socket goes with the server.
        self.closing = None;
        // The server has got the word when this returns; who runs it sees its end.
        drop(self.server.stop(true));
    }
}
