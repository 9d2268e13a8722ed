//! A vendor's API that behaves as a test wants it to.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use actix_web::dev::ServerHandle;
use actix_web::http::StatusCode;
use actix_web::{App, HttpResponse, HttpServer, web};
use serde_json::Value;

/// What it answers to a request: a status and a body, or nothing at all, for ever.
type Behaviour = dyn Fn(&Value) -> Option<(u16, Value)> + Send + Sync;

/// A vendor's API, until this is dropped.
pub(crate) struct StubVendor {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    calls: Arc<Mutex<Vec<Value>>>,
    server: ServerHandle,
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
        let server = HttpServer::new(move || {
            App::new()
                .app_data(state.clone())
                .app_data(web::JsonConfig::default().limit(1 << 20))
                .default_service(web::to(answer))
        })
        .workers(1)
        .disable_signals()
        .listen(listener)
        .expect("bound before")
        .run();
        let handle = server.handle();
        tokio::spawn(server);
        Self {
            address,
            calls,
            server: handle,
        }
    }

    /// The bodies of the requests that came so far.
    pub(crate) fn calls(&self) -> Vec<Value> {
        self.calls.lock().expect("no panic").clone()
    }
}

impl Drop for StubVendor {
    fn drop(&mut self) {
        // The server has got the word when this returns; its end needs nobody to wait.
        drop(self.server.stop(false));
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
