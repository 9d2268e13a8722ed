//! How much each caller may ask for.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use stockctl::domain::keys::Scope;

use super::keys::{ask_with, is_let_in, key, require_keys};
use super::{Answer, JSON, ask};
use crate::support::{Process, Shop, ShopOptions, eventually};

const ORDER: &str = r#"{"productId":"p1","quantity":1}"#;

/// A shop whose callers have a limit: so slow that nothing comes back while a test runs.
async fn shop(limit: &str) -> Shop {
    let mut shop = Shop::new().await;
    limited(&mut shop, limit);
    shop
}

fn limited(shop: &mut Shop, limit: &str) {
    shop.reconfigure(|text| text.replace("[http]\n", &format!("[http]\n{limit}\n")));
}

/// What is left, as an answer says it.
fn left(answer: &Answer) -> Option<u32> {
    let text = answer.header("ratelimit")?;
    let left = text.strip_prefix("\"caller\";r=")?.split(';').next()?;
    left.parse().ok()
}

fn batch(orders: usize) -> String {
    let order: Value = serde_json::from_str(ORDER).expect("JSON");
    json!({ "orders": vec![order; orders] }).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_caller_may_ask_for_so_much_and_is_told_how_it_stands() {
    let mut shop = shop(
        "rate_limit_per_second = 1\nrate_limit_burst = 800\nrate_limit_overrides = [\"slow=1/600\"]",
    )
    .await;
    require_keys(&mut shop);
    let (_, one) = key(&shop, "webshop", &[Scope::OrdersWrite, Scope::OrdersRead]).await;
    let (_, same) = key(&shop, "webshop", &[Scope::OrdersWrite, Scope::OrdersRead]).await;
    let (_, slow) = key(&shop, "slow", &[Scope::OrdersWrite, Scope::OrdersRead]).await;
    let _api = shop.serve().await;
    for key in [&one, &same, &slow] {
        is_let_in(&shop, key).await;
    }
    let placed = ask_with(&shop, &one, Method::POST, "/orders", ORDER).await;
    assert_eq!(placed.status, 202);
    assert_eq!(
        placed.header("ratelimit-policy"),
        Some("\"caller\";q=800;w=800")
    );
    let before = left(&placed).expect("said");
    // A batch counts as its orders, whichever of the caller's keys sends it.
    let placed = ask_with(&shop, &same, Method::POST, "/orders/batch", &batch(400)).await;
    assert_eq!(placed.status, 202);
    let after = left(&placed).expect("said");
    assert!(
        (before - 400..before - 300).contains(&after),
        "{before} {after}"
    );
    // All of it or nothing.
    let orders = super::orders_written(&shop).await;
    let over = ask_with(&shop, &one, Method::POST, "/orders/batch", &batch(500)).await;
    assert_eq!(over.problem(), "429 rate_limited");
    let told = super::text(&over.body["detail"]);
    assert!(told.contains("800 at once; come again in "), "{told}");
    let wait: u64 = over
        .header("retry-after")
        .expect("when")
        .parse()
        .expect("s");
    assert!((1..=500).contains(&wait), "{wait}");
    assert_eq!(left(&over), Some(0));
    let now = super::orders_written(&shop).await;
    assert!(now <= orders, "nothing is accepted of it: {orders} {now}");
    // Somebody else has its own, and what can never come at once is told apart.
    let since = Instant::now();
    let other = ask_with(&shop, &slow, Method::GET, "/orders", "").await;
    assert_eq!(
        other.header("ratelimit-policy"),
        Some("\"caller\";q=600;w=600")
    );
    assert!(left(&other).expect("said") > 500);
    // What asks for too much in the wrong scope counts, and what needs no key does not.
    let before = left(&other).expect("said");
    let asked = (0..20).map(|_| ask_with(&shop, &slow, Method::GET, "/admin/queues", ""));
    let refused = futures_util::future::join_all(asked).await;
    for refused in &refused {
        assert_eq!(refused.problem(), "403 insufficient_scope");
    }
    // One comes back each second, which a request may take; what is said leaves out parts of one.
    let back = u32::try_from(since.elapsed().as_secs()).expect("seconds") + 2;
    let least = refused.iter().filter_map(left).min().expect("said");
    assert!(least + 20 < before + back, "{before} {least} {back}");
    let alive = ask(&shop, Method::GET, "/healthz", &[], "").await;
    assert_eq!((alive.status, alive.header("ratelimit")), (200, None));
    let unknown = ask(&shop, Method::GET, "/orders", &[JSON], "").await;
    assert_eq!(unknown.problem(), "401 unauthenticated");
    assert_eq!(unknown.header("ratelimit"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_can_never_come_at_once_is_told_so() {
    let shop = shop("rate_limit_per_second = 1\nrate_limit_burst = 3").await;
    let _api = shop.serve().await;
    let over = ask(&shop, Method::POST, "/orders/batch", &[JSON], batch(4)).await;
    assert_eq!(
        over.problem(),
        "422 validation_failed \"/orders\" has 4 orders, and this caller may place at most 3 at once"
    );
    assert_eq!(super::orders_written(&shop).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_has_a_limit_nothing_is_said_of_one() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let placed = ask(&shop, Method::POST, "/orders/batch", &[JSON], batch(500)).await;
    assert_eq!(placed.status, 202);
    for name in ["ratelimit", "ratelimit-policy"] {
        assert_eq!(placed.header(name), None, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_change_by_a_reload() {
    let mut shop = Shop::with(ShopOptions::default()).await;
    let file = shop.config_file.to_str().expect("UTF-8").to_owned();
    let arguments = ["--config", &file, "serve"];
    let mut api = Process::start_with_socket(&arguments, shop.listener(), &[]);
    let is_alive = || async {
        let answer = ask(&shop, Method::GET, "/orders", &[], "").await;
        (answer.status == 200).then_some(answer)
    };
    let free = eventually("the API answers", is_alive).await;
    assert_eq!(free.header("ratelimit"), None);
    limited(
        &mut shop,
        "rate_limit_per_second = 1\nrate_limit_burst = 100",
    );
    api.signal(Signal::SIGHUP);
    api.writes("\"changed\":\"http.rate_limit\"").await;
    let over = ask(&shop, Method::POST, "/orders/batch", &[JSON], batch(101)).await;
    assert_eq!(over.status, 422, "{}", over.body);
    let placed = ask(&shop, Method::POST, "/orders", &[JSON], ORDER).await;
    assert!(left(&placed).is_some());
    shop.reconfigure(|text| {
        text.replace("rate_limit_per_second = 1\nrate_limit_burst = 100\n", "")
    });
    api.signal(Signal::SIGHUP);
    eventually("there is no limit", || async {
        let answer = ask(&shop, Method::GET, "/orders", &[], "").await;
        answer.header("ratelimit").is_none().then_some(())
    })
    .await;
    assert_eq!(api.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_waits_as_long_as_it_is_told_gets_in() {
    let shop = shop("rate_limit_per_second = 1\nrate_limit_burst = 3").await;
    let _api = shop.serve().await;
    let place = || ask(&shop, Method::POST, "/orders/batch", &[JSON], batch(3));
    assert_eq!(place().await.status, 202);
    let mut waits = 0;
    loop {
        let again = place().await;
        if again.status == 202 {
            break;
        }
        assert_eq!(again.problem(), "429 rate_limited");
        waits += 1;
        // One wait for its head, and one for what the head does not say.
        assert!(waits <= 2, "{waits} waits, the last: {}", again.body);
        let seconds = again.header("retry-after").expect("when").parse();
        tokio::time::sleep(Duration::from_secs(seconds.expect("s"))).await;
    }
    assert!(waits >= 1);
}
