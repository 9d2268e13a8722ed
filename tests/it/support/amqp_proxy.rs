//! What stands between a process and RabbitMQ and reads what the process sends: a broker that stops listening at a moment of
//! the test's choosing, and a client that writes what the real one could not.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{DEADLINE, Shop};

/// A method, by its class and its number.
pub(crate) type Method = (u8, u8);
pub(crate) const QUEUE_DECLARE: Method = (50, 10);
pub(crate) const BASIC_CONSUME: Method = (60, 20);
pub(crate) const BASIC_ACK: Method = (60, 80);

/// Stands before the broker; each connection stops at the last of the given methods, once it has sent them in turn.
pub(crate) struct StoppingProxy {
    address: SocketAddr,
    stopped: watch::Receiver<bool>,
}

impl StoppingProxy {
    /// Begins to listen.
    pub(crate) async fn start(shop: &Shop, stop_at: &'static [Method]) -> StoppingProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let broker = Self::broker(shop);
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&broker).await.expect("the broker is up");
                tokio::spawn(carry(client, server, stop_at, stop.clone()));
            }
        });
        StoppingProxy { address, stopped }
    }

    fn broker(shop: &Shop) -> String {
        let url: url::Url = shop.broker().urls[0].parse().expect("a URL");
        format!("127.0.0.1:{}", url.port().expect("a port"))
    }

    /// The shop's configuration with this in place of its broker.
    pub(crate) fn config_file(&self, shop: &Shop) -> std::path::PathBuf {
        let from = format!("@{}/", Self::broker(shop));
        shop.config_file_with("proxied.toml", &from, &format!("@{}/", self.address))
    }

    /// Waits until a connection has stopped.
    pub(crate) async fn stopped(&self) {
        let mut stopped = self.stopped.clone();
        tokio::time::timeout(DEADLINE, stopped.wait_for(|stopped| *stopped))
            .await
            .expect("it comes so far")
            .expect("the proxy lives");
    }
}

async fn carry(
    client: TcpStream,
    server: TcpStream,
    stop_at: &[Method],
    stop: watch::Sender<bool>,
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
    });
    let _ = carry_frames(&mut from_client, &mut to_server, stop_at, &stop).await;
    // The end of the process is the end of its connection, at the broker too.
    back.abort();
}

async fn carry_frames(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    stop_at: &[Method],
    stop: &watch::Sender<bool>,
) -> std::io::Result<()> {
    // The protocol's name and version come first.
    let mut header = [0; 8];
    from.read_exact(&mut header).await?;
    to.write_all(&header).await?;
    let mut left = stop_at;
    loop {
        let (head, rest) = frame(from).await?;
        if head[0] == 1 && left.first() == Some(&(rest[1], rest[3])) {
            left = &left[1..];
        }
        if left.is_empty() {
            stop.send_replace(true);
            let mut unheard = [0; 4096];
            while from.read(&mut unheard).await? > 0 {}
            return Ok(());
        }
        to.write_all(&head).await?;
        to.write_all(&rest).await?;
    }
}

/// Reads a frame: type, channel and length, then the payload and the end mark.
async fn frame(from: &mut OwnedReadHalf) -> std::io::Result<([u8; 7], Vec<u8>)> {
    let mut head = [0; 7];
    from.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    let mut rest = vec![0; length as usize + 1];
    from.read_exact(&mut rest).await?;
    Ok((head, rest))
}

/// The placeholder that a client sends for bytes that are no text.
pub(crate) const NO_TEXT: &str = "NO-TEXT";

/// Stands before a broker, and writes as many bytes of 0xff wherever a client sends the placeholder. Returns its address.
pub(crate) async fn before_which_text_is_none(broker: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&broker).await.expect("the broker is up");
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move {
                let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
            });
            tokio::spawn(async move { rewrite(&mut from_client, &mut to_server).await });
        }
    });
    address
}

async fn rewrite(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) -> std::io::Result<()> {
    let mut header = [0; 8];
    from.read_exact(&mut header).await?;
    to.write_all(&header).await?;
    let placeholder = NO_TEXT.as_bytes();
    loop {
        let (head, mut rest) = frame(from).await?;
        for at in 0..rest.len().saturating_sub(placeholder.len()) {
            if rest[at..].starts_with(placeholder) {
                rest[at..at + placeholder.len()].fill(0xff);
            }
        }
        to.write_all(&head).await?;
        to.write_all(&rest).await?;
    }
}
