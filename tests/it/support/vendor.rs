//! A vendor's API that behaves as a test wants it to.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::stub::Stub;

/// What it answers to a request: a status and a body, or nothing at all, for ever.
type Behaviour = dyn Fn(&Value) -> Option<(u16, Value)> + Send + Sync;

/// A vendor's API, until this is dropped.
pub(crate) struct StubVendor {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    calls: Arc<Mutex<Vec<Value>>>,
    _server: Stub,
}

impl StubVendor {
    /// Starts it on a free port.
    pub(crate) fn start(
        behaviour: impl Fn(&Value) -> Option<(u16, Value)> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let calls = Arc::<Mutex<Vec<Value>>>::default();
        let behaviour: Arc<Behaviour> = Arc::new(behaviour);
        let state = web::Data::new((Arc::clone(&calls), behaviour));
        let server = Stub::serve(listener, move |services| {
            services
                .app_data(state.clone())
                .app_data(web::JsonConfig::default().limit(1 << 20))
                .default_service(web::to(answer));
        });
        Self {
            address,
            calls,
            _server: server,
        }
    }

    /// The bodies of the requests that came so far.
    pub(crate) fn calls(&self) -> Vec<Value> {
        self.calls.lock().expect("no panic").clone()
    }
}

type State = (Arc<Mutex<Vec<Value>>>, Arc<Behaviour>);

async fn answer(request: web::Json<Value>, state: web::Data<State>) -> HttpResponse {
    state.0.lock().expect("no panic").push(request.0.clone());
    match (state.1)(&request) {
        Some((status, body)) => {
            HttpResponse::build(StatusCode::from_u16(status).expect("a status")).json(body)
        }
        None => std::future::pending().await,
    }
}

/// The answer of a vendor that applies everything it is asked for.
pub(crate) fn all_applied(request: &Value) -> Value {
    let results: Vec<Value> = request["updates"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|update| serde_json::json!({"id": update["id"], "outcome": "applied"}))
        .collect();
    serde_json::json!({ "results": results })
}

/// What a [`RawVendor`] writes for an answer, head and body: it may be no HTTP at all.
pub(crate) enum Raw {
    /// This, and then the end of the connection.
    Bytes(Vec<u8>),
    /// This, and then byte after byte for ever.
    Trickle(Vec<u8>),
}

impl Raw {
    /// An answer with a status line, such as `200 OK`, further headers and a body.
    pub(crate) fn answer(status: &str, headers: &str, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let head = format!(
            "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        Self::Bytes([head.into_bytes(), body].concat())
    }
}

/// A vendor's API that answers what no decent one would.
pub(crate) struct RawVendor {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    calls: Arc<Mutex<Vec<Value>>>,
    listening: tokio::task::JoinHandle<()>,
}

impl RawVendor {
    /// Starts it on a free port.
    pub(crate) async fn start(behaviour: impl Fn(&Value) -> Raw + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("bound");
        let calls = Arc::<Mutex<Vec<Value>>>::default();
        let (noted, behaviour) = (Arc::clone(&calls), Arc::new(behaviour));
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (noted, behaviour) = (Arc::clone(&noted), Arc::clone(&behaviour));
                // Whoever hangs up in the middle has had enough.
                tokio::spawn(async move {
                    let _ = answer_raw(client, &noted, &*behaviour).await;
                });
            }
        });
        Self {
            address,
            calls,
            listening,
        }
    }

    /// The bodies of the requests that came so far.
    pub(crate) fn calls(&self) -> Vec<Value> {
        self.calls.lock().expect("no panic").clone()
    }
}

impl Drop for RawVendor {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn answer_raw(
    mut client: TcpStream,
    calls: &Mutex<Vec<Value>>,
    behaviour: &(dyn Fn(&Value) -> Raw + Send + Sync),
) -> std::io::Result<()> {
    let mut request = Vec::new();
    let body = loop {
        if client.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
        if let Some(body) = body_of(&request) {
            break body;
        }
    };
    calls.lock().expect("no panic").push(body.clone());
    match behaviour(&body) {
        Raw::Bytes(bytes) => client.write_all(&bytes).await,
        Raw::Trickle(bytes) => {
            client.write_all(&bytes).await?;
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                client.write_all(b" ").await?;
            }
        }
    }
}

/// The body of a request, once it is there: JSON is whole when it can be read.
fn body_of(request: &[u8]) -> Option<Value> {
    let head = request.windows(4).position(|end| end == b"\r\n\r\n")?;
    serde_json::from_slice(&request[head + 4..]).ok()
}
