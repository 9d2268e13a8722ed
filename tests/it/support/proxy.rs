//! A TCP proxy that a test can cut: a network that parts one process from a server that the others still reach.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A proxy in front of one server.
pub(crate) struct Proxy {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    is_cut: watch::Sender<bool>,
}

impl Proxy {
    /// A proxy in front of `host:port`.
    pub(crate) async fn before(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (is_cut, cut) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *cut.borrow() {
                    continue;
                }
                let (target, mut cut) = (target.clone(), cut.clone());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(&target).await else {
                        return;
                    };
                    let (mut client, mut server) = (client, server);
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = cut.wait_for(|is_cut| *is_cut) => {}
                    }
                });
            }
        });
        Self { address, is_cut }
    }

    /// Breaks every connection, and lets none be made.
    pub(crate) fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    /// Lets connections be made again.
    pub(crate) fn mend(&self) {
        self.is_cut.send_replace(false);
    }
}
