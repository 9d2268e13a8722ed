//! A receiver of webhooks that a test watches: it checks each signature by code of its own, and answers as the test wants.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use actix_web::http::StatusCode;
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse, web};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::Utc;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::eventually;
use super::stub::Stub;

/// What came.
#[derive(Debug, Clone)]
pub(crate) struct Came {
    /// The path, by which a test tells its subscriptions apart.
    pub(crate) path: String,
    pub(crate) id: String,
    pub(crate) body: Value,
    pub(crate) at: Instant,
}

impl Came {
    pub(crate) fn kind(&self) -> &str {
        self.body["type"].as_str().expect("a type")
    }
}

/// What is answered: a status and headers, or nothing at all, for ever.
pub(crate) enum Reply {
    Status(u16),
    With(u16, &'static str, String),
    Nothing,
    /// A status, and a body that never ends.
    Endless(u16),
}

type Behaviour = dyn Fn(&Came) -> Reply + Send + Sync;
type State = (Arc<Mutex<Vec<Came>>>, Arc<Behaviour>);

/// The secret of every subscription of these tests, as people write it.
pub(crate) const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDeviBWMcjPyE=";

/// A receiver, until this is dropped.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    came: Arc<Mutex<Vec<Came>>>,
    server: Stub,
}

impl Receiver {
    /// One on a free port.
    pub(crate) fn start(behaviour: impl Fn(&Came) -> Reply + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0".parse().expect("an address"), behaviour)
    }

    /// One at an address.
    pub(crate) fn at(
        address: SocketAddr,
        behaviour: impl Fn(&Came) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let came = Arc::<Mutex<Vec<Came>>>::default();
        let behaviour: Arc<Behaviour> = Arc::new(behaviour);
        let state = Data::new((Arc::clone(&came), behaviour));
        let server = Stub::serve(listener, move |services| {
            services
                .app_data(state.clone())
                .default_service(web::to(answer));
        });
        Self {
            address,
            came,
            server,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What came to a path so far.
    pub(crate) fn at_path(&self, path: &str) -> Vec<Came> {
        let came = self.came.lock().expect("no panic");
        came.iter()
            .filter(|came| came.path == path)
            .cloned()
            .collect()
    }

    /// Waits until so much has come to a path.
    pub(crate) async fn came(&self, path: &str, count: usize) -> Vec<Came> {
        eventually(&format!("{count} messages at {path}"), || async {
            let came = self.at_path(path);
            (came.len() >= count).then_some(came)
        })
        .await
    }

    /// Ends it: from now on nobody listens there.
    pub(crate) async fn stop(self) {
        self.server.stop().await;
    }
}

async fn answer(request: HttpRequest, body: Bytes, state: Data<State>) -> HttpResponse {
    let came = match read(&request, &body) {
        Ok(came) => came,
        // Nobody is told something that is not signed.
        Err(problem) => panic!("{problem}: {request:?} {body:?}"),
    };
    state.0.lock().expect("no panic").push(came.clone());
    let status = |status: u16| StatusCode::from_u16(status).expect("a status");
    match (state.1)(&came) {
        Reply::Status(code) => HttpResponse::build(status(code)).body("thank you"),
        Reply::With(code, header, value) => HttpResponse::build(status(code))
            .insert_header((header, value))
            .finish(),
        Reply::Nothing => std::future::pending().await,
        Reply::Endless(code) => {
            HttpResponse::build(status(code)).streaming(futures_util::stream::repeat_with(|| {
                Ok::<_, actix_web::Error>(Bytes::from_static(&[b'x'; 8192]))
            }))
        }
    }
}

/// Checks a request, and takes what it says.
fn read(request: &HttpRequest, body: &Bytes) -> Result<Came, String> {
    let header = |name: &str| -> Result<String, String> {
        let mut values = request.headers().get_all(name);
        let value = values.next().ok_or(format!("no {name}"))?;
        if values.next().is_some() {
            return Err(format!("{name} comes twice"));
        }
        Ok(value
            .to_str()
            .map_err(|error| error.to_string())?
            .to_owned())
    };
    if request.method() != "POST" || header("content-type")? != "application/json" {
        return Err("no JSON".to_owned());
    }
    let (id, timestamp) = (header("webhook-id")?, header("webhook-timestamp")?);
    let sent: i64 = timestamp.parse().map_err(|_| "no time".to_owned())?;
    if (Utc::now().timestamp() - sent).abs() > 300 {
        return Err(format!("signed at {sent}"));
    }
    let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
    let key = STANDARD
        .decode(SECRET.trim_start_matches("whsec_"))
        .expect("base64");
    let expected = format!("v1,{}", STANDARD.encode(hmac_sha256(&key, &signed)));
    if header("webhook-signature")? != expected {
        return Err(format!("not signed with {expected}"));
    }
    Ok(Came {
        path: request.uri().to_string(),
        id,
        body: serde_json::from_slice(body).map_err(|error| error.to_string())?,
        at: Instant::now(),
    })
}

/// HMAC as RFC 2104 writes it down, for keys of at most a block.
fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let padded = |pad: u8| -> Vec<u8> {
        (0..64)
            .map(|at| key.get(at).copied().unwrap_or(0) ^ pad)
            .collect()
    };
    let inner = Sha256::digest([&padded(0x36), message].concat());
    Sha256::digest([&padded(0x5c), &inner[..]].concat()).into()
}

#[test]
fn the_checks_of_these_tests_know_what_the_specification_says() {
    let key = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    let message = br#"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}"#;
    assert_eq!(
        STANDARD.encode(hmac_sha256(&key.expect("base64"), message)),
        "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    );
}
