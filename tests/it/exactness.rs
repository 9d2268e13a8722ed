//! Stock is exact to the unit while everything happens at once: callers order and cancel, the vendors sell and restock
//! on their own, and syncs never stop.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use stockctl::app::sync::{self, Options};
use stockctl::commands;
use tokio::task::JoinSet;

use crate::support::{Shop, ShopOptions, eventually};

const CALLERS: usize = 32;
const ORDERS_OF_EACH: usize = 640;
const PRODUCTS: [&str; 5] = ["p0", "p1", "p2", "p3", "p4"];
const VENDORS: [&str; 2] = ["vendorA", "vendorB"];
/// Less than what is asked for, so that every kind of decision is made.
const STOCK: i64 = 2500;
const SYNC_INTERVAL: Duration = Duration::from_millis(100);
const VENDOR_INTERVAL: Duration = Duration::from_millis(20);

/// Sends a request again as long as it is answered that it may be: on a busy machine somebody may wait for a lock for
/// longer than a statement may take.
async fn patiently(shop: &Shop, request: reqwest::RequestBuilder) -> (u16, Value) {
    eventually("an answer that is final", || async {
        let request = request.try_clone().expect("its body is here");
        let (status, answer) = shop.send(request).await;
        (status != 503).then_some((status, answer))
    })
    .await
}

/// One caller: orders one after another, repeats some requests, cancels some orders.
async fn call(shop: Arc<Shop>, caller: usize) {
    let mut ids: Vec<String> = Vec::new();
    for n in 0..ORDERS_OF_EACH {
        let lines: Vec<Value> = (0..fastrand::usize(1..=3))
            .map(|_| json!({"productId": fastrand::choice(PRODUCTS), "quantity": fastrand::u8(1..=3)}))
            .collect();
        let repeats = if fastrand::u8(0..20) == 0 { 2 } else { 1 };
        for _ in 0..repeats {
            let request = shop
                .http
                .post(format!("{}/orders", shop.url))
                .header("idempotency-key", format!("{caller}-{n}"))
                .json(&json!({ "lines": lines }));
            let (status, order) = patiently(&shop, request).await;
            assert_eq!(status, 202, "{order}");
            let id = order["id"].as_str().expect("an id").to_owned();
            if ids.last() != Some(&id) {
                ids.push(id);
            }
        }
        if fastrand::u8(0..12) == 0 {
            let id = fastrand::choice(&ids).expect("one at least");
            let request = shop.http.post(format!("{}/orders/{id}/cancel", shop.url));
            let (status, answer) = patiently(&shop, request).await;
            assert!(
                status == 200 || answer["code"] == "not_cancellable",
                "{answer}"
            );
        }
    }
    assert_eq!(ids.len(), ORDERS_OF_EACH, "each request is one order");
}

/// What the vendors themselves have added.
type Own = BTreeMap<(&'static str, &'static str), i64>;

/// The vendors' own business, until it is over.
async fn sell_elsewhere(shop: Arc<Shop>, is_over: Arc<AtomicBool>, own: Arc<Mutex<Own>>) {
    while !is_over.load(Ordering::Relaxed) {
        let vendor = fastrand::choice(VENDORS).expect("one");
        let product = fastrand::choice(PRODUCTS).expect("one");
        let units = fastrand::choice([-5_i64, -3, -1, 4, 6]).expect("one");
        let changed = shop
            .count_at(
                vendor,
                &format!(
                    "WITH changed AS (UPDATE products SET stock = stock + {units}
                                      WHERE id = '{product}' AND stock + {units} >= 0 RETURNING 1)
                     SELECT count(*) AS n FROM changed"
                ),
            )
            .await;
        *own.lock()
            .expect("no panic")
            .entry((vendor, product))
            .or_default() += units * changed;
        tokio::time::sleep(VENDOR_INTERVAL).await;
    }
}

async fn sync_again_and_again(shop: Arc<Shop>, is_over: Arc<AtomicBool>) -> u64 {
    let context = commands::context(&shop.config).expect("a context");
    // Small chunks, so that a run has many transactions for others to come between.
    let options = Options {
        chunk_rows: 2,
        allow_empty: false,
    };
    let mut runs = 0;
    while !is_over.load(Ordering::Relaxed) {
        for vendor in context.vendor_ids() {
            sync::sync(&context, &vendor, options, &|_| {})
                .await
                .expect("synced");
            runs += 1;
        }
        tokio::time::sleep(SYNC_INTERVAL).await;
    }
    runs
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_orders_with_everything_else_at_once_are_exact_to_the_unit() {
    let listed: Vec<(&str, i64)> = PRODUCTS.iter().map(|p| (*p, STOCK)).collect();
    let shop = Shop::with(ShopOptions {
        vendors: VENDORS.iter().map(|v| (*v, listed.clone())).collect(),
        ..ShopOptions::default()
    })
    .await;
    let parts = shop.open().await;
    let shop = Arc::new(shop);
    let is_over = Arc::new(AtomicBool::new(false));
    let own = Arc::<Mutex<Own>>::default();
    let selling = tokio::spawn(sell_elsewhere(
        Arc::clone(&shop),
        Arc::clone(&is_over),
        Arc::clone(&own),
    ));
    let syncing = tokio::spawn(sync_again_and_again(
        Arc::clone(&shop),
        Arc::clone(&is_over),
    ));
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        callers.spawn(call(Arc::clone(&shop), caller));
    }
    while let Some(ended) = callers.join_next().await {
        ended.expect("no panic");
    }
    is_over.store(true, Ordering::Relaxed);
    selling.await.expect("no panic");
    let runs = syncing.await.expect("no panic");
    assert!(runs > 20, "only {runs} syncs came between");
    shop.settled().await;

    let own = own.lock().expect("no panic").clone();
    let initial: Vec<(&str, &str, i64)> = VENDORS
        .iter()
        .flat_map(|v| PRODUCTS.iter().map(move |p| (*v, *p)))
        .map(|(v, p)| (v, p, STOCK + own.get(&(v, p)).copied().unwrap_or(0)))
        .collect();
    shop.check_books(&initial).await;
    shop.in_step(&initial).await;
    let orders = i64::try_from(CALLERS * ORDERS_OF_EACH).expect("fits");
    for (what, count) in [
        ("confirmed", 1),
        ("rejected", 1),
        ("cancelled", 1),
        ("pending", 0),
        ("failed", 0),
    ] {
        let is = shop
            .count(&format!(
                "SELECT count(*) AS n FROM orders WHERE status = '{what}'"
            ))
            .await;
        assert!(is >= count && (count > 0 || is == 0), "{is} are {what}");
    }
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, orders);

    // The statistics of a connection are complete once it is closed.
    for part in parts {
        part.stop().await;
    }
    let deadlocks =
        "SELECT deadlocks AS n FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(shop.count(deadlocks).await, 0, "by the order of locks");
    for vendor in VENDORS {
        assert_eq!(shop.count_at(vendor, deadlocks).await, 0, "at {vendor}");
    }
}
