//! The network between the product and what it talks to: a TCP proxy that knows nothing of what it carries, and can be
//! cut, slowed, frozen half-open and mended; for HTTP it can answer for the server, or lose the server's answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, watch};

/// What the network does at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    /// It carries everything.
    Fair,
    /// Connections are broken, and none can be made.
    Cut,
    /// What is sent arrives this much later.
    Slow(Duration),
    /// Connections stay, new ones can be made, and nothing arrives.
    Frozen,
    /// Each request is answered 500 by the proxy.
    Errors,
    /// Requests arrive, and their connections break before an answer comes back.
    AnswersLost,
}

const ERROR_500: &[u8] =
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
/// As much as one read of a socket gives.
const BUFFER_BYTES: usize = 64 * 1024;

/// A proxy in front of one server, for as long as the run lasts.
pub(crate) struct Proxy {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    target: watch::Sender<String>,
    weather: watch::Sender<Weather>,
}

impl Proxy {
    /// A proxy in front of `host:port`.
    pub(crate) async fn before(target: String) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (weather, seen) = watch::channel(Weather::Fair);
        let (target, leads_to) = watch::channel(target);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *seen.borrow() != Weather::Cut {
                    tokio::spawn({
                        let target = leads_to.borrow().clone();
                        carry(client, target, seen.clone())
                    });
                }
            }
        });
        Ok(Self {
            address,
            target,
            weather,
        })
    }

    /// Changes where new connections lead.
    pub(crate) fn lead_to(&self, target: &str) {
        self.target.send_replace(target.to_owned());
    }

    /// Changes the weather, also for connections that are there.
    pub(crate) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Breaks the connections that are there; new ones can be made at once.
    pub(crate) async fn break_connections(&self) {
        self.set(Weather::Cut);
        // Each connection has a task that has to see it.
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.set(Weather::Fair);
    }
}

type Writer = Arc<Mutex<OwnedWriteHalf>>;

async fn carry(client: TcpStream, target: String, mut weather: watch::Receiver<Weather>) {
    let Ok(server) = TcpStream::connect(&target).await else {
        return;
    };
    // Every message would wait for the one before it to be acknowledged.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (to_client, to_server) = (
        Arc::new(Mutex::new(to_client)),
        Arc::new(Mutex::new(to_server)),
    );
    let up = requests(
        from_client,
        to_server,
        Arc::clone(&to_client),
        weather.clone(),
    );
    let down = answers(from_server, to_client, weather.clone());
    tokio::select! {
        _ = up => {}
        _ = down => {}
        _ = weather.wait_for(|now| *now == Weather::Cut) => {}
    }
}

/// Waits for the weather to let something pass. Returns what it is then; `None` at the end of the run.
async fn passes(weather: &mut watch::Receiver<Weather>) -> Option<Weather> {
    let now = *weather.wait_for(|now| *now != Weather::Frozen).await.ok()?;
    if let Weather::Slow(delay) = now {
        tokio::time::sleep(delay).await;
    }
    Some(now)
}

async fn requests(
    mut from: OwnedReadHalf,
    to: Writer,
    back: Writer,
    mut weather: watch::Receiver<Weather>,
) -> Option<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = from.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
        if passes(&mut weather).await? == Weather::Errors {
            return back.lock().await.write_all(ERROR_500).await.ok();
        }
        to.lock().await.write_all(&buffer[..read]).await.ok()?;
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    to: Writer,
    mut weather: watch::Receiver<Weather>,
) -> Option<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = from.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
        if passes(&mut weather).await? == Weather::AnswersLost {
            return None;
        }
        to.lock().await.write_all(&buffer[..read]).await.ok()?;
    }
}
