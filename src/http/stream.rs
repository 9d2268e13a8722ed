//! A connection as the server reads and writes it, over TLS or not.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::drain::Connection;
use super::problem::{Problem, TLS_REQUIRED};
use super::request_id::RequestId;
use super::{SEND_DEADLINE, TAKE_DEADLINE};

/// How each handshake of TLS begins.
const HANDSHAKE: u8 = 22;
/// As much as a client sends before it reads that is read, so that the answer is not lost by what nobody has read.
const READ_OF_NOT_TLS: u64 = 64 * 1024;

/// An open connection.
pub(super) enum Stream {
    /// Of the network.
    Plain(
        TcpStream,
        #[expect(dead_code, reason = "counts by being there")] Connection,
    ),
    /// Of the network, encrypted.
    Tls(
        Box<TlsStream<TcpStream>>,
        #[expect(dead_code, reason = "counts by being there")] Connection,
    ),
    /// Of the side door.
    Local(
        UnixStream,
        #[expect(dead_code, reason = "counts by being there")] Connection,
    ),
}

impl Stream {
    /// Takes a connection of the network, with a handshake where TLS is spoken.
    pub(super) async fn of_network(
        mut stream: TcpStream,
        counted: Connection,
        tls: Option<TlsAcceptor>,
    ) -> io::Result<(Self, Option<SocketAddr>)> {
        let peer = stream.peer_addr().ok();
        give_up_what_takes_nothing(&stream, TAKE_DEADLINE);
        let Some(tls) = tls else {
            return Ok((Self::Plain(stream, counted), peer));
        };
        let handshake = async {
            let mut first = [0];
            stream.peek(&mut first).await?;
            if first[0] != HANDSHAKE {
                stream.write_all(&not_tls()).await?;
                stream.shutdown().await?;
                let mut rest = stream.take(READ_OF_NOT_TLS);
                tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
                return Err(io::ErrorKind::InvalidData.into());
            }
            tls.accept(stream).await
        };
        let stream = tokio::time::timeout(SEND_DEADLINE, handshake).await??;
        Ok((Self::Tls(Box::new(stream), counted), peer))
    }
}

/// What whoever speaks HTTP where TLS is spoken is told, before the connection is closed.
fn not_tls() -> Vec<u8> {
    let id = RequestId::new();
    let problem = Problem::new(TLS_REQUIRED, "TLS is spoken here").of_request(id.clone());
    let body = serde_json::to_vec(&problem.body()).unwrap_or_default();
    let mut answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\nX-Request-Id: {id}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend(body);
    answer
}

/// Lets the kernel close a connection whose peer is there and reads nothing for this long: the server itself would keep
/// it, and what it has for it, for ever.
fn give_up_what_takes_nothing(stream: &TcpStream, deadline: Duration) {
    if let Err(error) = SockRef::from(stream).set_tcp_user_timeout(Some(deadline)) {
        tracing::debug!(%error, "a connection has no deadline for what it is sent");
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream, _) => Pin::new(stream).poll_read(context, buffer),
            Self::Local(stream, _) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream, _) => Pin::new(stream).poll_write(context, bytes),
            Self::Local(stream, _) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream, _) => Pin::new(stream).poll_flush(context),
            Self::Local(stream, _) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream, _) => Pin::new(stream).poll_shutdown(context),
            Self::Local(stream, _) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_client_that_is_there_and_reads_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let client = TcpStream::connect(address).await.expect("connected");
        let (mut stream, _) = listener.accept().await.expect("accepted");
        give_up_what_takes_nothing(&stream, Duration::from_millis(500));
        // More than both kernels hold for a client that does not read.
        let answer = vec![b'a'; 1024 * 1024];
        let error = loop {
            let written = tokio::time::timeout(Duration::from_secs(30), stream.write_all(&answer));
            if let Err(error) = written.await.expect("given up in time") {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        drop(client);
    }
}
