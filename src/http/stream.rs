//! A connection as the server reads and writes it, over TLS or not.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::drain::Connection;
use super::heads::{Deadline, Heads};
use super::problem::{REQUEST_TIMEOUT, TLS_REQUIRED};
use super::unparsed::{last_answer, refusal_in};
use super::{SEND_DEADLINE, TAKE_DEADLINE};

/// How each handshake of TLS begins.
const HANDSHAKE: u8 = 22;
/// As much as a client sends before it reads that is read, so that the answer is not lost by what nobody has read.
const READ_OF_NOT_TLS: u64 = 64 * 1024;

/// An open connection.
pub(super) struct Stream {
    socket: Socket,
    /// Sent in place of what the parser has answered.
    instead: Option<Instead>,
    /// Of the head that is coming.
    head: Deadline,
    /// Whether something is written that may not have been sent.
    is_unsent: bool,
    /// Whether what comes is not read any more.
    is_over: bool,
    #[expect(dead_code, reason = "counts by being there")]
    counted: Connection,
}

enum Socket {
    /// Of the network.
    Plain(TcpStream),
    /// Of the network, encrypted.
    Tls(Box<TlsStream<TcpStream>>),
    /// Of the side door.
    Local(UnixStream),
}

struct Instead {
    answer: Vec<u8>,
    sent: usize,
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
            return Ok((Self::new(Socket::Plain(stream), counted), peer));
        };
        let handshake = async {
            let mut first = [0];
            stream.peek(&mut first).await?;
            if first[0] != HANDSHAKE {
                let answer = last_answer(TLS_REQUIRED, "TLS is spoken here");
                stream.write_all(&answer).await?;
                stream.shutdown().await?;
                let mut rest = stream.take(READ_OF_NOT_TLS);
                tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
                return Err(io::ErrorKind::InvalidData.into());
            }
            tls.accept(stream).await
        };
        let stream = tokio::time::timeout(SEND_DEADLINE, handshake).await??;
        Ok((Self::new(Socket::Tls(Box::new(stream)), counted), peer))
    }

    /// Takes a connection of the side door.
    pub(super) fn of_side_door(stream: UnixStream, counted: Connection) -> Self {
        Self::new(Socket::Local(stream), counted)
    }

    fn new(socket: Socket, counted: Connection) -> Self {
        Self {
            socket,
            instead: None,
            head: Deadline::default(),
            is_unsent: false,
            is_over: false,
            counted,
        }
    }

    /// What its requests let it know.
    pub(super) fn heads(&self) -> Heads {
        self.head.heads().clone()
    }

    /// Answers a head that has not come in time, as far as the kernel takes that at once, and lets the server close.
    fn give_up_head(&mut self, context: &mut Context<'_>) {
        self.is_over = true;
        // In the middle of another answer this would be taken for a part of it.
        if !self.is_unsent {
            let answer = last_answer(REQUEST_TIMEOUT, REQUEST_TIMEOUT.advice);
            let _ = self.socket.poll_write(context, &answer);
        }
    }
}

impl Socket {
    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Local(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }
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
        let this = self.get_mut();
        if this.is_over {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = match &mut this.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Socket::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Socket::Local(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        if read.is_ready() {
            if buffer.filled().len() > before {
                this.head.bytes_came();
            }
            return read;
        }
        ready!(this.head.poll_passed(context));
        this.give_up_head(context);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self {
            socket,
            instead,
            is_unsent,
            ..
        } = self.get_mut();
        *is_unsent = true;
        if instead.is_none() {
            match refusal_in(bytes) {
                None => return socket.poll_write(context, bytes),
                Some((at @ 1.., _)) => return socket.poll_write(context, &bytes[..at]),
                Some((0, code)) => {
                    *instead = Some(Instead {
                        answer: last_answer(code, code.advice),
                        sent: 0,
                    });
                }
            }
        }
        while let Some(Instead { answer, sent }) = instead
            && *sent < answer.len()
        {
            match ready!(socket.poll_write(context, &answer[*sent..]))? {
                0 => return Poll::Ready(Ok(0)),
                more => *sent += more,
            }
        }
        // It was the last answer, and it is all there.
        *instead = None;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = match &mut this.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_flush(context),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(context),
            Socket::Local(stream) => Pin::new(stream).poll_flush(context),
        };
        if flushed.is_ready() {
            this.is_unsent = false;
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Socket::Local(stream) => Pin::new(stream).poll_shutdown(context),
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
