//! `stockctl up` as a process. Each start takes seconds, so each test sees as much as it can in few of them; and since the
//! tests begin in the order of their names, these, which mostly wait, wait beside others and not after them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::receiver::{Receiver, Reply, SECRET};
use crate::support::scrape::Scrape;
use crate::support::{Process, eventually, reqwest_client, scratch};

/// Creating a cluster and starting both servers takes seconds, and many of them on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// A data directory of a test's own. It is named after the test, so that a run finds what another has left.
fn data_dir(name: &str) -> PathBuf {
    scratch(name)
}

/// Receivers of webhooks are on this machine, and what they do not take is soon a dead letter.
const WEBHOOKS: [(&str, &str); 3] = [
    ("STOCKCTL__WEBHOOKS__ALLOW_PRIVATE", "true"),
    ("STOCKCTL__WEBHOOKS__RETRY_DELAY_MS", "100"),
    ("STOCKCTL__WEBHOOKS__RETRIES_MAX", "2"),
];

/// Removes it after a test that is content.
fn remove(data_dir: &Path) {
    std::fs::remove_dir_all(data_dir).expect("removed");
}

/// Where servers of a data directory keep their files, as the marks on their command lines name it.
fn marks(data_dir: &Path) -> Vec<String> {
    ["postgres", "rabbitmq"]
        .iter()
        .filter_map(|server| data_dir.join("servers").join(server).metadata().ok())
        .map(|metadata| format!("stockctl-{:x}-{:x}", metadata.dev(), metadata.ino()))
        .collect()
}

/// How many processes run on a data directory.
fn processes_on(data_dir: &Path) -> usize {
    let marks = marks(data_dir);
    std::fs::read_dir("/proc")
        .expect("readable")
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|command_line| String::from_utf8_lossy(&command_line).into_owned())
        .filter(|command_line| marks.iter().any(|mark| command_line.contains(mark)))
        .count()
}

/// A running `stockctl up`.
struct Up {
    process: Process,
    url: String,
    http: reqwest::Client,
}

impl Up {
    async fn start(data_dir: &Path, arguments: &[&str]) -> Up {
        let data_dir = data_dir.to_str().expect("UTF-8");
        let arguments = [&["up", "--data-dir", data_dir], arguments].concat();
        let process = Process::start(&arguments, &WEBHOOKS);
        let written = process
            .writes_within("Ctrl-C stops everything", START_DEADLINE)
            .await;
        let printed = |name: &str| {
            let found = written
                .lines()
                .find_map(|line| line.trim().strip_prefix(name));
            found.expect("the address is printed").trim().to_owned()
        };
        let url = printed("HTTP API");
        assert_eq!(printed("Page"), format!("{url}/"));
        Up {
            process,
            url,
            http: reqwest_client(),
        }
    }

    async fn get(&self, path: &str) -> Value {
        let response = self.http.get(format!("{}{path}", self.url)).send().await;
        let text = response.expect("an answer").text().await.expect("a body");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Places an order, and returns it once it is decided and the vendors are told.
    async fn order(&self, product: &str, quantity: i64) -> Value {
        let response = self
            .http
            .post(format!("{}/orders", self.url))
            .json(&json!({"productId": product, "quantity": quantity}))
            .send()
            .await
            .expect("an answer");
        assert_eq!(response.status(), 202);
        let location = response.headers()["location"]
            .to_str()
            .expect("ASCII")
            .to_owned();
        eventually("the order is decided and told", || async {
            let order = self.get(&location).await;
            (order["status"] != "pending" && order["vendorSync"] != "pending").then_some(order)
        })
        .await
    }

    /// The products with what is available of each, once the first sync has brought them in.
    async fn products(&self) -> Value {
        eventually("the products are there", || async {
            let answer = self.get("/products").await;
            let products = answer["products"].as_array().expect("a list");
            (products.len() == 3).then(|| {
                products
                    .iter()
                    .map(|p| json!([p["id"], p["available"]]))
                    .collect()
            })
        })
        .await
    }

    /// Subscribes a receiver to what is confirmed.
    async fn subscribe(&self, url: &str) {
        let body = json!({"url": url, "types": ["order.confirmed"], "secret": SECRET});
        let request = self.http.post(format!("{}/webhooks", self.url)).json(&body);
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 201);
    }

    async fn stop(self) -> String {
        // Twice, as `timeout` does: that is one request.
        self.process.signal(Signal::SIGINT);
        self.process.signal(Signal::SIGINT);
        let ended = self.process.ended().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.stderr
    }
}

const SEEDED: fn() -> Value = || json!([["p1", 10], ["p2", 20], ["p3", 20]]);

#[tokio::test(flavor = "multi_thread")]
async fn data_survives_a_signal_at_any_time_a_stop_and_a_kill_beside_others_and_fresh_starts_over()
{
    let (directory, other) = (data_dir("up-survives"), data_dir("up-other"));
    let listen = ["--listen", "127.0.0.1:0"];
    a_start_that_is_interrupted_leaves_nothing_running(&directory).await;

    // Each finds an address by itself.
    let (up, beside) = tokio::join!(Up::start(&directory, &[]), Up::start(&other, &["--fresh"]));
    assert_eq!(up.products().await, SEEDED());
    let hook = Hook::of(&up).await;
    let order = up.order("p2", 18).await;
    assert_eq!(order["status"], "confirmed");
    hook.is_told_of(&order).await;
    assert_eq!(
        taken(&order),
        [json!(["vendorA", -15]), json!(["vendorB", -3])]
    );
    for (vendor, stock) in [("vendorA", 0), ("vendorB", 2)] {
        let product = up.get(&format!("/vendors/{vendor}/products/p2")).await;
        assert_eq!(product["stock"], stock, "{vendor}");
    }
    let rejected = up.order("p1", 11).await;
    assert_eq!(
        rejected["reason"],
        json!({"code": "insufficient_stock", "productId": "p1", "requested": 11, "available": 10})
    );
    another_runs_beside_it_and_one_never_twice(&up, &directory, beside, &other).await;
    all_parts_count_together(&up).await;
    let on_hand = |product: &Value| -> Vec<Value> {
        let vendors = product["vendors"].as_array().expect("a list");
        vendors.iter().map(|v| v["onHand"].clone()).collect()
    };
    let synced = async |up: &Up| {
        eventually("a sync has seen what was taken", || async {
            let product = up.get("/products/p2").await;
            assert_eq!(product["available"], 2, "before and after the sync");
            (on_hand(&product) == [json!(0), json!(2)]).then_some(())
        })
        .await;
    };
    let response = up.http.post(format!("{}/admin/sync", up.url)).send().await;
    assert_eq!(response.expect("an answer").status(), 202);
    synced(&up).await;
    let config = directory.join("config.toml");
    let mode = config.metadata().expect("it is written").mode();
    assert_eq!(mode & 0o777, 0o600, "it holds passwords");
    // The other subcommands read it.
    let config = config.to_str().expect("UTF-8").to_owned();
    let ended = Process::run(&["--config", &config, "sync", "--once", "--vendor", "vendorB"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(processes_on(&directory) > 0);
    up.stop().await;
    assert_eq!(processes_on(&directory), 0);

    let up = Up::start(&directory, &listen).await;
    synced(&up).await;
    let orders = up.get("/orders").await["orders"].clone();
    assert_eq!(orders.as_array().map(Vec::len), Some(2), "{orders}");
    let second = up.order("p1", 4).await;
    assert_eq!(second["status"], "confirmed");
    hook.is_told_of(&second).await;
    up.process.signal(Signal::SIGKILL);
    up.process.ended().await;
    assert!(
        processes_on(&directory) > 0,
        "nobody has stopped its servers"
    );

    let up = Up::start(&directory, &listen).await;
    assert_eq!(up.get("/products/p1").await["available"], 6);
    let third = up.order("p1", 6).await;
    assert_eq!(third["status"], "confirmed");
    hook.gets_all(&up, &[&order, &second, &third]).await;
    up.process.signal(Signal::SIGINT);
    up.process.writes("stopping PostgreSQL and RabbitMQ").await;
    // The first ones come too soon to mean anything else than the one before them; RabbitMQ takes longer to stop.
    let mut up = up;
    while up.process.is_running() {
        up.process.signal(Signal::SIGINT);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let ended = up.process.ended().await;
    assert_eq!(ended.code, Some(130), "{ended:?}");

    // Whatever the second signal has left running is found and stopped.
    let up = Up::start(&directory, &[&["--fresh"][..], &listen].concat()).await;
    assert_eq!(up.products().await, SEEDED());
    assert_eq!(up.get("/orders").await["orders"], json!([]));
    up.stop().await;
    assert_eq!(processes_on(&directory), 0);

    a_server_that_does_not_start_is_told_of(&directory).await;
    remove(&directory);
    remove(&other);
}

/// What an order takes of each vendor.
fn taken(order: &Value) -> Vec<Value> {
    let updates = order["updates"].as_array().expect("a list");
    let mut taken: Vec<Value> = updates
        .iter()
        .map(|u| json!([u["vendorId"], u["delta"]]))
        .collect();
    taken.sort_by_key(ToString::to_string);
    taken
}

/// After two orders: all parts are one process.
async fn all_parts_count_together(up: &Up) {
    let address = up.url.trim_start_matches("http://");
    assert_eq!(
        Scrape::of(address).await.values([
            "stockctl_orders_accepted_total{via=\"database\"}",
            "stockctl_orders_decided_total{outcome=\"confirmed\",reason=\"\"}",
            "stockctl_orders_decided_total{outcome=\"rejected\",reason=\"insufficient_stock\"}",
            "stockctl_vendor_updates_total{outcome=\"applied\",vendor=\"vendorA\"}",
            "stockctl_rabbitmq_connected{connection=\"serve\"}",
            "stockctl_rabbitmq_connected{connection=\"work\"}",
        ]),
        [2.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    );
}

/// A receiver of webhooks that takes nothing of what it is told until the end: all of it waits at RabbitMQ.
struct Hook {
    receiver: Receiver,
    takes: Arc<AtomicBool>,
}

impl Hook {
    const PATH: &str = "/hook";

    /// One that has subscribed.
    async fn of(up: &Up) -> Self {
        let takes = Arc::new(AtomicBool::new(false));
        let does_take = Arc::clone(&takes);
        let receiver = Receiver::start(move |_| match does_take.load(Ordering::SeqCst) {
            true => Reply::Status(200),
            false => Reply::Status(500),
        });
        up.subscribe(&receiver.url(Self::PATH)).await;
        Self { receiver, takes }
    }

    /// The orders that it was told of, from a message on.
    fn told(&self, from: usize) -> Vec<Value> {
        let came = self.receiver.at_path(Self::PATH);
        let orders = came[from..].iter().map(|came| &came.body["order"]["id"]);
        orders.cloned().collect()
    }

    async fn is_told_of(&self, order: &Value) {
        eventually("it is told of an order", || async {
            self.told(0).contains(&order["id"]).then_some(())
        })
        .await;
    }

    /// It takes what comes from now on: whatever it has refused, however often RabbitMQ was stopped and killed since.
    async fn gets_all(&self, up: &Up, orders: &[&Value]) {
        let refused = self.told(0).len();
        self.takes.store(true, Ordering::SeqCst);
        let replay = format!("{}/admin/dead-letters/webhooks_dlq/replay", up.url);
        eventually("everything has come", || async {
            let request = up.http.post(&replay).json(&json!({"all": true}));
            let response = request.send().await.expect("an answer");
            assert_eq!(response.status(), 200);
            let told = self.told(refused);
            let are_told = orders.iter().all(|order| told.contains(&order["id"]));
            are_told.then_some(())
        })
        .await;
    }
}

async fn a_start_that_is_interrupted_leaves_nothing_running(directory: &Path) {
    let path = directory.to_str().expect("UTF-8");
    let process = Process::start(&["up", "--data-dir", path, "--fresh"], &[]);
    process
        .writes_within("starting RabbitMQ", START_DEADLINE)
        .await;
    process.signal(Signal::SIGINT);
    let ended = process.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.stdout.contains("stockctl is up"), "{ended:?}");
    assert_eq!(processes_on(directory), 0, "nothing is left running");
}

/// Beside what runs on one data directory, something runs on another, whatever happened on the first one; and nothing on the
/// same.
async fn another_runs_beside_it_and_one_never_twice(
    first: &Up,
    first_directory: &Path,
    second: Up,
    second_directory: &Path,
) {
    assert_ne!(first.url, second.url);
    assert_eq!(second.products().await, SEEDED());
    let before = processes_on(first_directory);
    let path = first_directory.to_str().expect("UTF-8");
    let again = Process::run(&["up", "--data-dir", path]).await;
    assert_eq!(again.code, Some(4), "{again:?}");
    assert!(
        again.stderr.contains("in use by another stockctl (pid "),
        "{again:?}"
    );
    assert_eq!(processes_on(first_directory), before);

    second.stop().await;
    assert_eq!(processes_on(second_directory), 0);
    assert_eq!(first.get("/products/p2").await["available"], 2);
}

/// A server that does not start: its own last words, and nothing left of the other one either.
async fn a_server_that_does_not_start_is_told_of(directory: &Path) {
    let version = directory.join("servers/postgres/data/PG_VERSION");
    std::fs::write(&version, "9.1\n").expect("written");
    let path = directory.to_str().expect("UTF-8");
    let broken = Process::run(&["up", "--data-dir", path]).await;
    assert_eq!(broken.code, Some(4), "{broken:?}");
    assert!(
        broken
            .stderr
            .contains("is not compatible with this version"),
        "{broken:?}"
    );
    assert_eq!(processes_on(directory), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_in_use_ends_it_with_4_and_nothing_left() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let parent = tempfile::tempdir().expect("a directory");
    let directory = parent.path().join("data");
    let path = directory.to_str().expect("UTF-8");
    let ended = Process::run(&["up", "--data-dir", path, "--listen", &address]).await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    insta::assert_snapshot!(ended.stderr.replace(&address, "ADDRESS"), @"error: cannot listen on ADDRESS (--listen): Address already in use (os error 98)");
    assert_eq!(ended.stdout, "");
    assert!(!directory.exists());
}
