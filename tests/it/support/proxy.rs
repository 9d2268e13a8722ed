//! A TCP proxy that a test can cut or freeze: a network that parts one process from a server that the others still reach.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, PartialEq)]
enum Flow {
    Open,
    /// Connections stay and can be made, and nothing comes through.
    Frozen,
    Cut,
}

/// A proxy in front of one server. Clones are the same proxy.
#[derive(Clone)]
pub(crate) struct Proxy {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    flow: watch::Sender<Flow>,
}

impl Proxy {
    /// A proxy in front of `host:port`.
    pub(crate) async fn before(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (flow, seen) = watch::channel(Flow::Open);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *seen.borrow() == Flow::Cut {
                    continue;
                }
                let (target, mut seen) = (target.clone(), seen.clone());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(&target).await else {
                        return;
                    };
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    // The end of one side is the other's too, once it has come through.
                    tokio::select! {
                        () = carry(from_client, to_server, seen.clone()) => {}
                        () = carry(from_server, to_client, seen.clone()) => {}
                        _ = seen.wait_for(|flow| *flow == Flow::Cut) => {}
                    }
                });
            }
        });
        Self { address, flow }
    }

    /// Breaks every connection, and lets none be made.
    pub(crate) fn cut(&self) {
        self.flow.send_replace(Flow::Cut);
    }

    /// Lets nothing through any more; neither side is told.
    pub(crate) fn freeze(&self) {
        self.flow.send_replace(Flow::Frozen);
    }

    /// Lets through again what was held up.
    pub(crate) fn thaw(&self) {
        self.flow.send_replace(Flow::Open);
    }

    /// Lets connections be made again.
    pub(crate) fn mend(&self) {
        self.flow.send_replace(Flow::Open);
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut flow: watch::Receiver<Flow>) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        // Also the end of a connection waits.
        let passes = flow.wait_for(|flow| *flow != Flow::Frozen).await.is_ok();
        if read == 0 || !passes || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
