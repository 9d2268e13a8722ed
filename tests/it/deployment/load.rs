//! An installation at work: every part as a process, and clients that order without a pause and repeat nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::Method;
use serde_json::json;
use stockctl::mq::Queue;
use tokio::task::JoinSet;

use crate::support::keep_alive::{Answer, KeepAlive, NoAnswer};
use crate::support::messages::ready;
use crate::support::{Process, Shop, ShopOptions, eventually};

/// More than the load can sell, so that most orders are confirmed; p9 is soon sold out, so that some are rejected.
const INITIAL: [(&str, &str, i64); 4] = [
    ("vendorA", "p1", 1_000_000),
    ("vendorA", "p2", 1_000_000),
    ("vendorB", "p2", 1_000_000),
    ("vendorB", "p9", 50),
];
const CLIENTS: usize = 8;
/// Between a client's requests, so that the load leaves the machine to other tests.
const PACE: Duration = Duration::from_millis(40);
/// Orders to be accepted in each state of things.
const ORDERS_PER_STATE: usize = 30;
/// So that a client that this machine makes wait between two requests is not idle for too long: a quarter of it counts.
pub(super) const PATIENT: &str = "shutdown_deadline_ms = 120000";

/// A shop whose vendors' API is behind the same address as its own, and whose messages have one attempt each.
async fn shop_behind_one_address() -> Shop {
    let mut shop = Shop::with(ShopOptions {
        vendors: vec![
            ("vendorA", vec![("p1", 1_000_000), ("p2", 1_000_000)]),
            ("vendorB", vec![("p2", 1_000_000), ("p9", 50)]),
        ],
        config: "[orders]\nretries_max = 0\n[vendor_sync]\nretries_max = 0\ntimeout_ms = 20000\n\
                 [sync]\nschedule = \"*/2 * * * * *\"\n"
            .into(),
    })
    .await;
    shop.sync().await;
    let (ours, vendors) = (
        shop.config.http.listen.to_string(),
        shop.vendor_address().to_string(),
    );
    shop.reconfigure(|text| {
        text.replace(&vendors, &ours)
            .replace("[http]\n", &format!("[http]\n{PATIENT}\n"))
    });
    shop
}

/// The parts of the product, each as its process.
pub(super) const PARTS: [&[&str]; 4] = [
    &["serve"],
    &["work", "--queue", "orders"],
    &["work", "--queue", "vendor-sync"],
    &["sync"],
];

/// Starts a part, and waits until it is at work.
pub(super) async fn start(shop: &Shop, part: &[&str]) -> Process {
    let file = shop.config_file.to_str().expect("UTF-8");
    let arguments = [&["--config", file], part].concat();
    let process = match part {
        ["serve"] => Process::start_with_socket(&arguments, shop.listener(), &[]),
        _ => Process::start(
            &arguments,
            &[("STOCKCTL__LOG__LEVEL", "info,stockctl::schedule=debug")],
        ),
    };
    let says = match part {
        ["serve"] => "serving",
        ["sync"] => "stockctl::schedule",
        _ => "working",
    };
    process.writes(says).await;
    process
}

/// What the clients share.
#[derive(Default)]
struct Load {
    is_over: AtomicBool,
    accepted: AtomicUsize,
}

/// What one client has seen.
#[derive(Default)]
struct Seen {
    orders: BTreeSet<String>,
    requests: usize,
    /// Answers after which it had to connect anew.
    last_answers: usize,
    failures: Vec<String>,
}

impl Seen {
    /// Notes an answer, and returns the id of an order that was accepted.
    fn note(
        &mut self,
        what: &str,
        expected: u16,
        result: Result<Answer, NoAnswer>,
    ) -> Option<String> {
        self.requests += 1;
        match result {
            Ok(answer) => {
                self.last_answers += usize::from(answer.is_last);
                if answer.status != expected {
                    self.failures
                        .push(format!("{what}: {} {}", answer.status, answer.body));
                }
                (answer.status == 202)
                    .then(|| answer.body["id"].as_str().expect("an id").to_owned())
            }
            Err(error) => {
                self.failures.push(format!("{what}: {error:?}"));
                None
            }
        }
    }
}

/// One client: orders, looks at the order, and at a product, again and again. It repeats nothing.
async fn call(load: Arc<Load>, address: String, client: usize) -> Seen {
    let mut http = KeepAlive::new(address);
    let mut seen = Seen::default();
    let mut number = 0;
    while !load.is_over.load(Ordering::Relaxed) {
        number += 1;
        let product = ["p1", "p2", "p9"][number % 3];
        let body = json!({"lines": [
            {"productId": product, "quantity": number % 4 + 1},
            {"productId": "p2", "quantity": 1},
        ]})
        .to_string();
        let key = format!("{client}-{number}");
        let answer = http.send(Method::POST, "/orders", Some(&key), &body).await;
        if let Some(id) = seen.note("POST /orders", 202, answer) {
            load.accepted.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PACE).await;
            let answer = http.get(&format!("/orders/{id}")).await;
            seen.note("GET /orders/{id}", 200, answer);
            assert!(seen.orders.insert(id), "each key is an order of its own");
        }
        tokio::time::sleep(PACE).await;
        let answer = http.get(&format!("/products/{product}")).await;
        seen.note("GET /products/{id}", 200, answer);
        tokio::time::sleep(PACE).await;
    }
    seen
}

/// Everything at work.
pub(super) struct Installation {
    pub(super) shop: Shop,
    /// One of each of [`PARTS`].
    processes: Vec<Process>,
    load: Arc<Load>,
    clients: JoinSet<Seen>,
}

impl Installation {
    /// Starts everything, and waits until orders are accepted.
    pub(super) async fn open() -> Self {
        let shop = shop_behind_one_address().await;
        let mut processes = Vec::new();
        for part in PARTS {
            processes.push(start(&shop, part).await);
        }
        let load = Arc::<Load>::default();
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let address = shop.config.http.listen.to_string();
            clients.spawn(call(Arc::clone(&load), address, client));
        }
        let installation = Self {
            shop,
            processes,
            load,
            clients,
        };
        installation.goes_on("at all").await;
        installation
    }

    /// Waits until so many more orders were accepted as things are now.
    pub(super) async fn goes_on(&self, while_what: &str) {
        let accepted = &self.load.accepted;
        let target = accepted.load(Ordering::Relaxed) + ORDERS_PER_STATE;
        eventually(&format!("orders are accepted {while_what}"), || async {
            (accepted.load(Ordering::Relaxed) >= target).then_some(())
        })
        .await;
    }

    /// Replaces each process by a new one, one after another.
    pub(super) async fn roll(&mut self) {
        for (index, part) in PARTS.iter().enumerate() {
            let new = start(&self.shop, part).await;
            let mut old = std::mem::replace(&mut self.processes[index], new);
            self.goes_on(&format!("by two of {part:?}")).await;
            assert_eq!(old.terminate().await, Some(0), "{part:?}");
            self.goes_on(&format!("by the new {part:?}")).await;
        }
    }

    /// Waits until each process has written a text.
    pub(super) async fn each_writes(&self, text: &str) {
        for process in &self.processes {
            process.writes(text).await;
        }
    }

    /// Ends the clients, then everything, and checks that no request failed, and that each order is final, once, and
    /// right to the unit at the vendors. Returns how many answers were the last of their connection.
    pub(super) async fn close(mut self) -> usize {
        self.load.is_over.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        while let Some(seen) = self.clients.join_next().await {
            let seen = seen.expect("no panic");
            all.requests += seen.requests;
            all.last_answers += seen.last_answers;
            all.failures.extend(seen.failures);
            for id in seen.orders {
                assert!(all.orders.insert(id), "no order is two clients'");
            }
        }
        assert!(
            all.failures.is_empty(),
            "{} of {} requests failed: {:#?}",
            all.failures.len(),
            all.requests,
            all.failures
        );
        self.shop.settled().await;
        check_orders(&self.shop, &all.orders).await;
        // The server last: the others keep connections to it, on which nothing comes any more.
        for (part, process) in PARTS.iter().zip(&mut self.processes).rev() {
            assert_eq!(process.terminate().await, Some(0), "{part:?}");
        }
        self.shop.in_step(&INITIAL).await;
        all.last_answers
    }
}

/// Each order that was accepted is there, once, and final; and nothing lost an attempt.
async fn check_orders(shop: &Shop, accepted: &BTreeSet<String>) {
    let ids: Vec<String> = accepted.iter().map(|id| format!("'{id}'")).collect();
    let final_ones = format!(
        "SELECT count(*) AS n FROM orders WHERE status IN ('confirmed', 'rejected') AND id IN ({})",
        ids.join(", ")
    );
    let count = i64::try_from(accepted.len()).expect("few");
    assert_eq!(shop.count(&final_ones).await, count, "all are final");
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, count);
    let wrong = "SELECT count(*) AS n FROM orders
                 WHERE status = 'rejected' AND reason->>'productId' IS DISTINCT FROM 'p9'";
    assert_eq!(shop.count(wrong).await, 0, "only what was sold out");
    for queue in [Queue::OrdersDlq, Queue::VendorSyncDlq] {
        assert_eq!(ready(&shop.broker(), queue).await, 0, "{queue:?}");
    }
}
