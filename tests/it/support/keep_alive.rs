//! A client that keeps one connection open, obeys `Connection: close`, and repeats nothing: what goes wrong shows.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::DEADLINE;

/// The client. It connects when it has something to send.
pub(crate) struct KeepAlive {
    address: String,
    open: Option<SendRequest<Full<Bytes>>>,
    /// Connections opened so far.
    pub(crate) opened: usize,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
    /// It is the last one of its connection.
    pub(crate) is_last: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    /// There was no connection: nothing was sent.
    NotConnected(std::io::Error),
    /// A connection was there, and then no answer came on it.
    Broken(String),
}

impl KeepAlive {
    pub(crate) fn new(address: impl ToString) -> Self {
        Self {
            address: address.to_string(),
            open: None,
            opened: 0,
        }
    }

    /// Connects, unless it is.
    pub(crate) async fn connect(&mut self) -> Result<(), NoAnswer> {
        if self.open.is_some() {
            return Ok(());
        }
        let stream = TcpStream::connect(&self.address)
            .await
            .map_err(NoAnswer::NotConnected)?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| NoAnswer::Broken(format!("{error:?}")))?;
        // Its end shows in what is sent on it.
        tokio::spawn(connection);
        self.open = Some(sender);
        self.opened += 1;
        Ok(())
    }

    /// Sends a request once. `key` is its idempotency key.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: &str,
    ) -> Result<Answer, NoAnswer> {
        self.connect().await?;
        let mut sender = self.open.take().expect("connected");
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.address);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.to_owned())))
            .expect("a request");
        let exchange = async {
            // The connection's task may not have seen the end of the answer before.
            sender.ready().await?;
            let answer = sender.send_request(request).await?;
            let status = answer.status().as_u16();
            let is_last = answer
                .headers()
                .get(CONNECTION)
                .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
            let body = answer.into_body().collect().await?.to_bytes();
            Ok((status, is_last, body))
        };
        let (status, is_last, body) = match tokio::time::timeout(DEADLINE, exchange).await {
            Ok(exchanged) => {
                exchanged.map_err(|error: hyper::Error| NoAnswer::Broken(format!("{error:?}")))?
            }
            Err(_) => return Err(NoAnswer::Broken("no answer in time".into())),
        };
        if !is_last {
            self.open = Some(sender);
        }
        let body = serde_json::from_slice(&body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
        Ok(Answer {
            status,
            body,
            is_last,
        })
    }

    /// `GET`.
    pub(crate) async fn get(&mut self, path: &str) -> Result<Answer, NoAnswer> {
        self.send(Method::GET, path, None, "").await
    }
}
