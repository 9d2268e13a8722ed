//! Stock is exact to the unit while everything happens at once: callers order and cancel, the vendors sell and restock
//! on their own, and syncs never stop.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use stockctl::app::sync::{self, Options};
use stockctl::commands;
use tokio::task::JoinSet;

use crate::support::{Shop, ShopOptions, eventually};

const CALLERS: usize = 32;
/// Orders at least, unless `EXACTNESS_ORDERS` says otherwise; callers go on until so many syncs came between.
const ORDERS: usize = 5120;
const SYNCS: u64 = 20;
const PRODUCTS: [&str; 5] = ["p0", "p1", "p2", "p3", "p4"];
const VENDORS: [&str; 2] = ["vendorA", "vendorB"];
/// Orders for each unit that a vendor has of a product: more is asked for than there is, so that every kind of decision is
/// made.
const ORDERS_PER_UNIT: usize = 8;
const SYNC_INTERVAL: Duration = Duration::from_millis(25);
const VENDOR_INTERVAL: Duration = Duration::from_millis(5);

/// How many orders each caller places.
fn orders_of_each() -> usize {
    let orders = match std::env::var("EXACTNESS_ORDERS") {
        Ok(number) => number.parse().expect("EXACTNESS_ORDERS is a number"),
        Err(_) => ORDERS,
    };
    assert!(orders >= CALLERS, "EXACTNESS_ORDERS: one for each caller");
    orders / CALLERS
}

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

/// One caller: orders one after another, repeats some requests, cancels some orders. Returns how many orders these were.
async fn call(shop: Arc<Shop>, caller: usize, orders: usize, syncs: Arc<AtomicU64>) -> usize {
    let mut ids: Vec<String> = Vec::new();
    let mut n = 0;
    while n < orders || syncs.load(Ordering::Relaxed) <= SYNCS {
        assert!(n < 20 * orders, "syncs do not come to an end");
        n += 1;
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
    assert_eq!(ids.len(), n, "each request is one order");
    n
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

async fn sync_again_and_again(shop: Arc<Shop>, is_over: Arc<AtomicBool>, syncs: Arc<AtomicU64>) {
    let context = commands::context(&shop.config).expect("a context");
    // Small chunks, so that a run has many transactions for others to come between.
    let options = Options {
        chunk_rows: 2,
        allow_empty: false,
    };
    while !is_over.load(Ordering::Relaxed) {
        for vendor in context.vendor_ids() {
            sync::sync(&context, &vendor, options, &|_| {})
                .await
                .expect("synced");
            syncs.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(SYNC_INTERVAL).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_orders_with_everything_else_at_once_are_exact_to_the_unit() {
    let orders_of_each = orders_of_each();
    let stock = i64::try_from(CALLERS * orders_of_each / ORDERS_PER_UNIT).expect("fits");
    let listed: Vec<(&str, i64)> = PRODUCTS.iter().map(|p| (*p, stock)).collect();
    let shop = Shop::with(ShopOptions {
        vendors: VENDORS.iter().map(|v| (*v, listed.clone())).collect(),
        ..ShopOptions::default()
    })
    .await;
    let parts = shop.open().await;
    let shop = Arc::new(shop);
    let is_over = Arc::new(AtomicBool::new(false));
    let own = Arc::<Mutex<Own>>::default();
    let syncs = Arc::<AtomicU64>::default();
    let selling = tokio::spawn(sell_elsewhere(
        Arc::clone(&shop),
        Arc::clone(&is_over),
        Arc::clone(&own),
    ));
    let syncing = tokio::spawn(sync_again_and_again(
        Arc::clone(&shop),
        Arc::clone(&is_over),
        Arc::clone(&syncs),
    ));
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        callers.spawn(call(
            Arc::clone(&shop),
            caller,
            orders_of_each,
            Arc::clone(&syncs),
        ));
    }
    let mut orders = 0;
    while let Some(ended) = callers.join_next().await {
        orders += i64::try_from(ended.expect("no panic")).expect("fits");
    }
    is_over.store(true, Ordering::Relaxed);
    selling.await.expect("no panic");
    syncing.await.expect("no panic");
    shop.settled().await;

    let own = own.lock().expect("no panic").clone();
    let initial: Vec<(&str, &str, i64)> = VENDORS
        .iter()
        .flat_map(|v| PRODUCTS.iter().map(move |p| (*v, *p)))
        .map(|(v, p)| (v, p, stock + own.get(&(v, p)).copied().unwrap_or(0)))
        .collect();
    shop.check_books(&initial).await;
    shop.in_step(&initial).await;
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
