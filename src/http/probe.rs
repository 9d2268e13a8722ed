//! Whether the server answers, asked by the process itself. Not by its address: several processes may share one, and another
//! would answer for it. So the same workers also listen at a side door, which nobody else knows.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use uuid::Uuid;

use super::drain::Drain;

/// `/healthz` takes a millisecond; a worker that keeps it waiting for so long is taken for stuck.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// What asks: with it comes back the whole answer, and then the end.
const QUESTION: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
/// How an answer begins that is one.
const GOOD: &[u8] = b"HTTP/1.1 200 ";

/// A listening socket without a place in the file system, under a name that cannot be guessed.
pub struct SideDoor {
    name: String,
    listener: UnixListener,
}

impl SideDoor {
    /// Opens one.
    ///
    /// # Errors
    /// The system has no more sockets.
    pub fn open() -> io::Result<Self> {
        let name = format!("stockctl-{}", Uuid::new_v4());
        let address = SocketAddr::from_abstract_name(&name)?;
        let listener = UnixListener::bind_addr(&address)?;
        Ok(Self { name, listener })
    }

    pub(super) fn split(
        self,
        drain: Drain,
        workers: usize,
        connections_max: usize,
    ) -> (UnixListener, Probe) {
        let probe = Probe {
            // So the runtime's sockets are told a name that is no path.
            address: format!("\0{}", self.name),
            workers,
            connections_max,
            drain,
            answers_seen: Arc::default(),
        };
        (self.listener, probe)
    }
}

/// Asks a server of this process whether it answers.
pub struct Probe {
    address: String,
    /// Connections are dealt to the workers in turn, so as many questions meet each of them, as a rule.
    workers: usize,
    connections_max: usize,
    drain: Drain,
    answers_seen: Arc<AtomicU64>,
}

impl Probe {
    /// Whether the workers answer. Where all the connections are taken that there may be, nobody new is let in, and it is
    /// enough that somebody was answered since the last look.
    pub async fn is_answered(&self) -> bool {
        let asked = join_all((0..self.workers).map(|_| self.ask())).await;
        let answers = self.drain.answers();
        let others_are_answered = self.answers_seen.swap(answers, Ordering::Relaxed) != answers;
        asked.into_iter().all(|good| good)
            || (self.drain.open() >= self.connections_max && others_are_answered)
    }

    async fn ask(&self) -> bool {
        let asking = async {
            let mut stream = UnixStream::connect(&self.address).await?;
            stream.write_all(QUESTION).await?;
            let mut answer = Vec::new();
            stream.take(4096).read_to_end(&mut answer).await?;
            Ok::<bool, io::Error>(answer.starts_with(GOOD))
        };
        matches!(
            tokio::time::timeout(ANSWER_DEADLINE, asking).await,
            Ok(Ok(true))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECTIONS_MAX: usize = 10;

    fn probe() -> (UnixListener, Probe) {
        let (listener, probe) =
            SideDoor::open()
                .expect("a socket")
                .split(Drain::default(), 2, CONNECTIONS_MAX);
        listener.set_nonblocking(true).expect("set");
        (listener, probe)
    }

    /// Answers each question with a text, and counts them.
    fn answering(listener: UnixListener, text: &'static str) -> Arc<AtomicU64> {
        let count = Arc::<AtomicU64>::default();
        let asked = Arc::clone(&count);
        let listener = tokio::net::UnixListener::from_std(listener).expect("listens");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut question = [0; 1024];
                let length = stream.read(&mut question).await.expect("a question");
                assert_eq!(&question[..length], QUESTION);
                count.fetch_add(1, Ordering::Relaxed);
                stream.write_all(text.as_bytes()).await.expect("answered");
            }
        });
        asked
    }

    #[tokio::test]
    async fn each_worker_is_asked_and_has_to_answer() {
        let (listener, probe) = probe();
        let asked = answering(listener, "HTTP/1.1 200 OK\r\n\r\n{}");
        assert!(probe.is_answered().await);
        assert_eq!(asked.load(Ordering::Relaxed), probe.workers as u64);
    }

    #[tokio::test]
    async fn an_error_is_no_answer() {
        let (listener, probe) = probe();
        answering(listener, "HTTP/1.1 503 Service Unavailable\r\n\r\n");
        assert!(!probe.is_answered().await);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_no_answer_unless_nobody_new_is_let_in_and_others_are_answered() {
        let (_open_and_silent, probe) = probe();
        probe.drain.count_answer();
        assert!(!probe.is_answered().await, "there is room for who asks");
        let open: Vec<_> = (0..CONNECTIONS_MAX)
            .map(|_| probe.drain.connection())
            .collect();
        assert!(!probe.is_answered().await, "nobody was answered since");
        probe.drain.count_answer();
        assert!(probe.is_answered().await);
        drop(open);
    }
}
