//! Callers who order and cancel, and write down what they were answered; and the vendors, who sell and restock on their
//! own meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::findings::Findings;
use crate::stage::{Addresses, PRODUCTS, VENDORS};

const CALLERS: usize = 6;
/// Between a caller's requests, so that the load leaves the machine to what is under test.
const PACE: Duration = Duration::from_millis(50);
/// The longest that an honest answer takes: 5 s for a commit, 5 s for a confirm, and a busy machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// A caller that was not accepted for so long gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two changes of the vendors' own.
const VENDOR_PACE: Duration = Duration::from_millis(100);

/// Units by product.
pub(crate) type Lines = BTreeMap<String, i64>;

/// What has become of a request from its caller's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// 202, with this id.
    Accepted(String),
    /// Each attempt was certainly refused.
    Refused,
    /// At least one attempt may have been accepted, and none was answered so.
    Unknown,
}

/// An order as its caller remembers it.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    pub(crate) key: String,
    pub(crate) lines: Lines,
    pub(crate) told: Told,
}

/// One request of an order.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) sent_at: Instant,
    /// What it was answered; nothing where it was accepted.
    pub(crate) refused: Option<String>,
}

/// All that the callers remember.
#[derive(Default)]
pub(crate) struct Record {
    pub(crate) orders: Vec<Memory>,
    pub(crate) attempts: Vec<Attempt>,
    /// Orders whose cancellation was answered 200.
    pub(crate) cancelled: BTreeSet<String>,
    /// Orders whose cancellation may have happened.
    pub(crate) maybe_cancelled: BTreeSet<String>,
}

impl Record {
    /// With an order that an operator has cancelled.
    pub(crate) fn with_maybe_cancelled(mut self, id: String) -> Self {
        self.maybe_cancelled.insert(id);
        self
    }
}

/// The answer to one request; with why, where it was not accepted.
enum Answer {
    Accepted(String),
    Refused(String),
    Unknown(String),
}

/// The callers and the vendors, at work.
pub(crate) struct Load {
    shared: Shared,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Clone)]
struct Shared {
    addresses: Addresses,
    record: Arc<Mutex<Record>>,
    accepted: Arc<AtomicUsize>,
    stop: CancellationToken,
    findings: Findings,
}

impl Load {
    /// Begins.
    pub(crate) fn start(addresses: &Addresses, findings: &Findings, seed: u64) -> Self {
        let shared = Shared {
            addresses: addresses.clone(),
            record: Arc::default(),
            accepted: Arc::default(),
            stop: CancellationToken::new(),
            findings: findings.clone(),
        };
        let mut tasks = Vec::new();
        for number in 0..CALLERS {
            let caller = Caller {
                shared: shared.clone(),
                http: client(),
                name: format!("{seed}-{number}"),
                random: fastrand::Rng::with_seed(seed ^ (number as u64) << 32),
            };
            tasks.push(tokio::spawn(caller.order_until_stopped()));
        }
        tasks.push(tokio::spawn(sell_elsewhere(shared.clone(), seed)));
        Self { shared, tasks }
    }

    /// How many orders were accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Lets the callers finish what they are at, and returns what they remember.
    pub(crate) async fn stop(self) -> Record {
        self.shared.stop.cancel();
        for task in self.tasks {
            if let Err(error) = task.await {
                self.shared
                    .findings
                    .violation(format!("a caller of the harness broke down: {error}"));
            }
        }
        std::mem::take(&mut *lock(&self.shared.record))
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A client of the HTTP API.
pub(crate) fn client() -> reqwest::Client {
    // Another test of this process may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .timeout(ANSWER_WITHIN)
        .build()
        .expect("a client")
}

struct Caller {
    shared: Shared,
    http: reqwest::Client,
    name: String,
    random: fastrand::Rng,
}

impl Caller {
    async fn order_until_stopped(mut self) {
        let mut number = 0;
        let mut mine: Vec<String> = Vec::new();
        while !self.shared.stop.is_cancelled() {
            number += 1;
            let memory = self.order(format!("{}-{number}", self.name)).await;
            if let Told::Accepted(id) = &memory.told {
                mine.push(id.clone());
                self.shared.accepted.fetch_add(1, Ordering::Relaxed);
            }
            lock(&self.shared.record).orders.push(memory);
            match self.random.u8(0..40) {
                0..2 => self.cancel_one_of(&mine).await,
                2..4 => self.look_at_one_of(&mine).await,
                4 => self.ask_for_nonsense().await,
                _ => {}
            }
        }
    }

    /// One order, repeated with its key until it is accepted or its caller gives up.
    async fn order(&mut self, key: String) -> Memory {
        let mut lines = Lines::new();
        for _ in 0..self.random.usize(1..=3) {
            let product = *self.random.choice(&PRODUCTS).expect("one at least");
            *lines.entry(product.to_owned()).or_default() += self.random.i64(1..=3);
        }
        let body = json!({"lines": lines.iter()
            .map(|(product, quantity)| json!({"productId": product, "quantity": quantity}))
            .collect::<Vec<_>>()});
        // One in ten does not insist.
        let insists = self.random.u8(0..10) > 0;
        let since = Instant::now();
        let mut told = Told::Refused;
        loop {
            tokio::time::sleep(PACE).await;
            match self.ask(&key, &body).await {
                Answer::Accepted(id) => {
                    told = Told::Accepted(id);
                    break;
                }
                // One attempt whose outcome is unknown stays so, whatever the next one is answered.
                Answer::Refused(_) => {}
                Answer::Unknown(_) => told = Told::Unknown,
            }
            if !insists || since.elapsed() > PATIENCE {
                break;
            }
        }
        Memory { key, lines, told }
    }

    async fn ask(&mut self, key: &str, body: &Value) -> Answer {
        let sent_at = Instant::now();
        let door = self.door();
        let request = self
            .http
            .post(format!("http://{door}/orders"))
            .header("Idempotency-Key", key)
            .json(body);
        let answer = match request.send().await {
            // A door that is closed took nothing.
            Err(error) if error.is_connect() => Answer::Refused(error.to_string()),
            Err(error) => Answer::Unknown(error.to_string()),
            Ok(response) => {
                let status = response.status().as_u16();
                match response.json::<Value>().await {
                    Err(error) => Answer::Unknown(error.to_string()),
                    Ok(answer) => self.read(status, &answer),
                }
            }
        };
        let refused = match &answer {
            Answer::Accepted(_) => None,
            Answer::Refused(why) | Answer::Unknown(why) => Some(format!("{door}: {why}")),
        };
        let attempt = Attempt { sent_at, refused };
        lock(&self.shared.record).attempts.push(attempt);
        answer
    }

    fn read(&self, status: u16, answer: &Value) -> Answer {
        match (status, answer["id"].as_str(), answer["code"].as_str()) {
            (202, Some(id), _) => Answer::Accepted(id.to_owned()),
            (503, _, Some("outcome_unknown")) => Answer::Unknown(answer.to_string()),
            (503, _, Some("unavailable" | "busy")) => Answer::Refused(answer.to_string()),
            _ => {
                self.shared
                    .findings
                    .violation(format!("an order was answered {status}: {answer}"));
                Answer::Unknown(answer.to_string())
            }
        }
    }

    /// A balancer that knows nothing.
    fn door(&mut self) -> String {
        let addresses = &self.shared.addresses.api;
        self.random.choice(addresses).expect("one at least").clone()
    }

    async fn cancel_one_of(&mut self, mine: &[String]) {
        let Some(id) = self.random.choice(mine).cloned() else {
            return;
        };
        let url = format!("http://{}/orders/{id}/cancel", self.door());
        let Ok(response) = self.http.post(url).json(&json!({})).send().await else {
            lock(&self.shared.record).maybe_cancelled.insert(id);
            return;
        };
        let status = response.status().as_u16();
        let mut record = lock(&self.shared.record);
        match status {
            200 => {
                record.cancelled.insert(id);
            }
            // Rejected before, or on its way.
            409 => {}
            503 => {
                record.maybe_cancelled.insert(id);
            }
            _ => self.shared.findings.violation(format!(
                "the cancellation of {id}, which was accepted, was answered {status}"
            )),
        }
    }

    /// What was accepted is never denied.
    async fn look_at_one_of(&mut self, mine: &[String]) {
        let Some(id) = self.random.choice(mine).cloned() else {
            return;
        };
        let url = format!("http://{}/orders/{id}", self.door());
        if let Ok(response) = self.http.get(url).send().await {
            let status = response.status().as_u16();
            self.shared.findings.check(matches!(status, 200 | 503), || {
                format!("{id}, which was accepted, was shown as {status}")
            });
        }
    }

    /// The caller's own mistake is told so, whatever is down.
    async fn ask_for_nonsense(&mut self) {
        let door = self.door();
        let request = self
            .http
            .post(format!("http://{door}/orders"))
            .json(&json!({"productId": "p0", "quantity": 0}));
        if let Ok(response) = request.send().await {
            let status = response.status().as_u16();
            self.shared.findings.check(status == 422, || {
                format!("an order of 0 units was answered {status}, not 422")
            });
        }
    }
}

/// The vendors' own sales and restocks, past the proxies.
async fn sell_elsewhere(shared: Shared, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed.wrapping_add(1));
    let mut clients: BTreeMap<&str, tokio_postgres::Client> = BTreeMap::new();
    while !shared.stop.is_cancelled() {
        tokio::time::sleep(VENDOR_PACE).await;
        let vendor = VENDORS[random.usize(..VENDORS.len())];
        let product = PRODUCTS[random.usize(..PRODUCTS.len())];
        let units = [-5_i64, -3, -1, 4, 6][random.usize(..5)];
        if clients
            .get(vendor)
            .is_none_or(tokio_postgres::Client::is_closed)
        {
            clients.remove(vendor);
            // While the server is away, so is the vendor's own business.
            if let Ok(client) = shared.addresses.connect(vendor).await {
                clients.insert(vendor, client);
            }
        }
        if let Some(client) = clients.get(vendor) {
            let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&product, &units];
            let changing = client.execute(
                "WITH changed AS (UPDATE products SET stock = stock + $2
                                  WHERE id = $1 AND stock + $2 >= 0 RETURNING id)
                 INSERT INTO own_changes SELECT id, $2 FROM changed",
                &parameters,
            );
            let _ = tokio::time::timeout(ANSWER_WITHIN, changing).await;
        }
    }
}
