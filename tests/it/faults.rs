//! What breaks: each process is killed and ended under load, and the books are right all the same.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use stockctl::mq::Queue;

use crate::support::messages::ready;
use crate::support::{Process, Shop, ShopOptions, eventually, reqwest_client};

/// More than the load can sell, so that most orders are confirmed; p9 is soon sold out, so that some are rejected.
const INITIAL: [(&str, &str, i64); 4] = [
    ("vendorA", "p1", 1_000_000),
    ("vendorA", "p2", 1_000_000),
    ("vendorB", "p2", 1_000_000),
    ("vendorB", "p9", 50),
];

/// Callers that order at the same time.
const CALLERS: usize = 4;
/// Between a caller's orders, so that the load leaves the machine to other tests.
const PACE: Duration = Duration::from_millis(40);
/// Orders to be accepted in each state of things before the next thing breaks.
const ORDERS_PER_STATE: usize = 20;

/// Callers who order until told to stop, and repeat what was not answered with the same key.
struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    accepted: Arc<Mutex<BTreeSet<String>>>,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(url: &str) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            count: Arc::default(),
            accepted: Arc::default(),
            callers: Vec::new(),
        };
        for caller in 0..CALLERS {
            let (stop, count) = (Arc::clone(&load.stop), Arc::clone(&load.count));
            let (accepted, url) = (Arc::clone(&load.accepted), format!("{url}/orders"));
            load.callers.push(tokio::spawn(async move {
                let http = reqwest_client();
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let product = ["p1", "p2", "p9"][number % 3];
                    let body = json!({"lines": [
                        {"productId": product, "quantity": number % 4 + 1},
                        {"productId": "p2", "quantity": 1},
                    ]});
                    // The order is this caller's until it is accepted, whatever happens meanwhile.
                    loop {
                        let request = http
                            .post(&url)
                            .header("Idempotency-Key", format!("{caller}-{number}"))
                            .timeout(Duration::from_secs(15))
                            .json(&body);
                        tokio::time::sleep(PACE).await;
                        let Ok(response) = request.send().await else {
                            continue;
                        };
                        let status = response.status().as_u16();
                        let Ok(answer) = response.json::<serde_json::Value>().await else {
                            continue;
                        };
                        if status == 202 {
                            let id = answer["id"].as_str().expect("an id").to_owned();
                            accepted.lock().expect("not poisoned").insert(id);
                            count.fetch_add(1, Ordering::Relaxed);
                            break;
                        }
                        assert_eq!(status, 503, "{answer}");
                    }
                }
            }));
        }
        load
    }

    /// Waits until so many more orders were accepted as things are now.
    async fn goes_on(&self, while_what: &str) {
        let target = self.count.load(Ordering::Relaxed) + ORDERS_PER_STATE;
        eventually(&format!("orders are accepted {while_what}"), || async {
            (self.count.load(Ordering::Relaxed) >= target).then_some(())
        })
        .await;
    }

    async fn stop(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.expect("no panic");
        }
        Arc::into_inner(self.accepted)
            .expect("the callers are gone")
            .into_inner()
            .expect("not poisoned")
    }
}

/// An address below the ports that systems give out for outgoing connections: it must be there again for a process that
/// is started anew.
fn steady_address() -> String {
    (0..)
        .map(|_| format!("127.0.0.1:{}", fastrand::u16(10_000..20_000)))
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("a free port")
}

/// The parts of the product, each as its process, on one configuration file.
const PARTS: [&[&str]; 4] = [
    &["work", "--queue", "orders"],
    &["work", "--queue", "vendor-sync"],
    &["sync"],
    &["serve"],
];

fn start(file: &Path, part: usize) -> Process {
    Process::configured(file, PARTS[part])
}

/// The servers' ends are the business of `tests/chaos`; here each process ends in both ways while the others work.
#[tokio::test(flavor = "multi_thread")]
async fn whichever_process_ends_under_load_no_order_is_lost_and_none_is_applied_twice() {
    let mut shop = Shop::with(ShopOptions {
        vendors: vec![
            ("vendorA", vec![("p1", 1_000_000), ("p2", 1_000_000)]),
            ("vendorB", vec![("p2", 1_000_000), ("p9", 50)]),
        ],
        // An order that loses an attempt is failed at once, and seen. The vendors' API ends with `serve`, and that
        // is for the retries.
        config:
            "[orders]\nretries_max = 0\n[vendor_sync]\nretries_max = 20\nretry_delay_ms = 1000\n\
                 [sync]\nschedule = \"*/2 * * * * *\"\n"
                .into(),
    })
    .await;
    shop.sync().await;
    // All of it behind one address, that of `serve`.
    let address = steady_address();
    shop.config_file =
        shop.config_file_with("own.toml", &shop.config.http.listen.to_string(), &address);
    shop.config_file =
        shop.config_file_with("steady.toml", &shop.vendor_address().to_string(), &address);
    shop.url = format!("http://{address}");
    let file = shop.config_file.clone();
    let mut parts: Vec<Process> = (0..PARTS.len()).map(|part| start(&file, part)).collect();
    let load = Load::start(&shop.url);
    load.goes_on("at all").await;

    for (part, process) in parts.iter_mut().enumerate() {
        process.kill().await;
        if PARTS[part] != ["serve"] {
            load.goes_on(&format!("without {:?}", PARTS[part])).await;
        }
        *process = start(&file, part);
        load.goes_on(&format!("after {:?} was killed", PARTS[part]))
            .await;
        an_order_goes_all_the_way(&shop).await;
    }

    for (part, process) in parts.iter_mut().enumerate() {
        let code = process.terminate().await;
        assert_eq!(code, Some(0), "SIGTERM of {:?}", PARTS[part]);
        *process = start(&file, part);
        load.goes_on(&format!("after {:?} was ended", PARTS[part]))
            .await;
    }

    let accepted = load.stop().await;
    shop.settled().await;
    check(&shop, &accepted).await;
    for (part, process) in parts.iter_mut().enumerate() {
        assert_eq!(
            process.terminate().await,
            Some(0),
            "SIGTERM of {:?}",
            PARTS[part]
        );
    }
    shop.in_step(&INITIAL).await;
}

/// Everything is at work again, and what broke next breaks in the middle of work.
async fn an_order_goes_all_the_way(shop: &Shop) {
    let id = shop.order(&[("p1", 1)]).await;
    shop.order_told(&id).await;
}

/// Every order that was answered 202 is final, and decided by what there was.
async fn check(shop: &Shop, accepted: &BTreeSet<String>) {
    let ids: Vec<String> = accepted.iter().map(|id| format!("'{id}'")).collect();
    let found = shop
        .count(&format!(
            "SELECT count(*) AS n FROM orders WHERE status IN ('confirmed', 'rejected') AND id IN ({})",
            ids.join(", ")
        ))
        .await;
    assert_eq!(
        usize::try_from(found).expect("few"),
        accepted.len(),
        "every 202 is decided"
    );
    let other = shop
        .count("SELECT count(*) AS n FROM orders WHERE status NOT IN ('confirmed', 'rejected')")
        .await;
    assert_eq!(other, 0, "no order was failed: none lost an attempt");
    let wrong = shop
        .count(
            "SELECT count(*) AS n FROM orders WHERE status = 'rejected'
             AND reason->>'productId' IS DISTINCT FROM 'p9'",
        )
        .await;
    assert_eq!(wrong, 0, "only what was sold out was rejected");
    for queue in [
        Queue::Orders,
        Queue::OrdersRetry,
        Queue::OrdersDlq,
        Queue::VendorSyncDlq,
    ] {
        assert_eq!(ready(&shop.broker(), queue).await, 0, "{queue:?}");
    }
    shop.check_books(&INITIAL).await;
}
