//! The HTTP door: what it takes, what it refuses and how it says so.

mod bad_input;
mod batch;
mod cancel;
mod connections;
mod described;
mod edge;
mod events;
mod history;
mod hostile;
mod idempotency;
mod keys;
mod listing;
mod operations;
mod outage;
mod page;
mod rates;
mod tls;
mod vendors;
mod waiting;
mod webhooks;

use reqwest::{Method, header::HeaderMap};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::Shop;

/// An answer with its headers.
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Checks that this is problem details with a status that says whose mistake it is, and writes what it says on one
    /// line.
    fn problem(&self) -> String {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{} {}",
            self.status,
            self.body
        );
        assert_eq!(self.body["status"], self.status);
        let code = self.body["code"].as_str().expect("a code");
        assert_eq!(self.body["type"], format!("urn:stockctl:problem:{code}"));
        let id = self.header("x-request-id").expect("a request id");
        assert_eq!(
            self.body["instance"],
            format!("urn:stockctl:request:{id}"),
            "{}",
            self.body
        );
        let errors = self.body["errors"].as_array().cloned().unwrap_or_default();
        let places: Vec<String> = errors
            .iter()
            .map(|error| {
                let place = error["pointer"].as_str().or(error["parameter"].as_str());
                let detail = error["detail"].as_str().expect("a detail");
                format!("{:?} {detail}", place.expect("a place"))
            })
            .collect();
        format!("{} {code} {}", self.status, places.join(" | "))
            .trim()
            .to_owned()
    }
}

/// Sends a request.
async fn ask(
    shop: &Shop,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<reqwest::Body>,
) -> Answer {
    let described_method = method.clone();
    let mut request = shop
        .http
        .request(method, format!("{}{path}", shop.url))
        .body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.expect("a body");
    described::check(&described_method, path, status, &headers, &text);
    Answer {
        status,
        headers,
        body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
    }
}

const JSON: (&str, &str) = ("content-type", "application/json");

/// `POST`s bytes that claim to be JSON.
async fn post_bytes(shop: &Shop, path: &str, body: impl Into<reqwest::Body>) -> Answer {
    ask(shop, Method::POST, path, &[JSON], body).await
}

/// Orders one unit or so, with an `Idempotency-Key`.
async fn order_with_key(shop: &Shop, key: &str, body: &Value) -> Answer {
    let headers = [JSON, ("idempotency-key", key)];
    ask(shop, Method::POST, "/orders", &headers, body.to_string()).await
}

/// Sends bytes that no proper client would, and returns all that is answered until the server closes.
async fn send_raw(shop: &Shop, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(shop.config.http.listen)
        .await
        .expect("connects");
    stream.write_all(bytes).await.expect("sent");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// How many orders there are, and messages of orders.
async fn orders_written(shop: &Shop) -> i64 {
    shop.count("SELECT (SELECT count(*) FROM orders) + (SELECT count(*) FROM outbox) AS n")
        .await
}

/// An order as it is shown among others: its history is only shown where it is alone.
fn among_others(mut order: Value) -> Value {
    let alone = order.as_object_mut().expect("an order");
    alone.remove("history").expect("a history");
    order
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}
