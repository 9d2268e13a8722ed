//! Peers that are there and silent, or take something away under us: each is said in the log and got over without
//! anybody's help, and no message loses an attempt by it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use stockctl::commands::work::WorkQueue;
use stockctl::config;
use stockctl::mq::{self, Queue};

use crate::support::messages::{ready, until_ready};
use crate::support::scrape::Scrape;
use crate::support::{Process, Proxy, Shop, ShopOptions, StubVendor, all_applied, eventually};

/// A silent PostgreSQL is given up after 15 s, a silent broker after two heartbeats; this is long for both.
const SILENCE: Duration = Duration::from_secs(60);
/// What the log says of a PostgreSQL that is silent.
const NO_ANSWER: &str = "no answer within 15 s";

/// A shop in which an attempt that is lost shows: there is no second one.
async fn strict_shop(config: &str) -> Shop {
    let shop = Shop::with(ShopOptions {
        config: format!("[orders]\nretries_max = 0\n{config}[metrics]\nlisten = \"127.0.0.1:0\"\n"),
        ..ShopOptions::default()
    })
    .await;
    shop.sync().await;
    shop
}

/// A proxy before our own PostgreSQL, and the shop's configuration with it.
async fn before_postgresql(shop: &Shop) -> (Proxy, PathBuf) {
    let mut url: url::Url = shop.own_database_url().parse().expect("a URL");
    let port = url.port().expect("a port");
    let proxy = Proxy::before(format!("127.0.0.1:{port}")).await;
    url.set_port(Some(proxy.address.port())).expect("settable");
    // The vendors' databases have names that begin as ours, and are not behind the proxy.
    let quoted = |url: &str| format!("\"{url}\"");
    let file = shop.config_file_with(
        "proxied.toml",
        &quoted(shop.own_database_url()),
        &quoted(url.as_str()),
    );
    let text = std::fs::read_to_string(&file).expect("readable");
    // Shorter than a test waits, and long enough for a busy machine.
    let text = text.replace("connect_timeout_ms = 10000", "connect_timeout_ms = 5000");
    std::fs::write(&file, text).expect("written");
    (proxy, file)
}

async fn nothing_was_dead_lettered(broker: &mq::Settings) {
    for queue in [Queue::OrdersDlq, Queue::VendorSyncDlq] {
        assert_eq!(ready(broker, queue).await, 0, "{queue:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_accepted_through_the_broker_while_postgresql_is_silent() {
    let mut shop = strict_shop("").await;
    let (proxy, file) = before_postgresql(&shop).await;
    let direct = std::mem::replace(&mut shop.config, config::load(Some(&file)).expect("valid"));
    let _api = shop.serve().await;
    shop.broker_is_connected().await;
    let before = shop.order(&[("p1", 1)]).await;
    proxy.freeze();
    let accept = || async {
        let request = shop
            .http
            .post(format!("{}/orders", shop.url))
            .header("Idempotency-Key", "silence")
            .json(&json!({"productId": "p1", "quantity": 2}));
        let (status, answer) = shop.send(request).await;
        // Only what had begun is left open; the caller repeats it.
        assert!(
            status == 202 || answer["code"] == "outcome_unknown",
            "{status} {answer}"
        );
        (status == 202).then(|| answer["id"].as_str().expect("an id").to_owned())
    };
    let id = eventually("the order is accepted", accept).await;
    let (status, ready) = shop.get("/readyz").await;
    assert_eq!((status, &ready["postgresql"]), (200, &json!("down")));
    proxy.thaw();
    shop.config = direct;
    let _parts = (shop.work(), shop.serve_vendors());
    for id in [before, id] {
        shop.order_told(&id).await;
    }
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 2);
    nothing_was_dead_lettered(&shop.broker()).await;
}

/// Whether its commit was the last that got through, nobody here knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_whose_making_was_not_answered_is_said_to_be_made_or_not_unless_it_can_be_repeated()
 {
    let mut shop = strict_shop("").await;
    let (proxy, file) = before_postgresql(&shop).await;
    shop.config = config::load(Some(&file)).expect("valid");
    let _api = shop.serve().await;
    let make = async |key: Option<&str>| {
        let held = shop
            .hold_here("SELECT pg_advisory_xact_lock(hashtextextended('stockctl webhooks', 0))")
            .await;
        let mut request = shop
            .http
            .post(format!("{}/webhooks", shop.url))
            .json(&json!({"url": "https://receiver.example/"}));
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let breaking = async {
            shop.held_up_here().await;
            proxy.cut();
        };
        let ((status, answer), ()) = tokio::join!(shop.send(request), breaking);
        proxy.mend();
        held.release().await;
        (status, answer["code"].as_str().map(str::to_owned))
    };
    assert_eq!(make(None).await, (503, Some("outcome_unknown".to_owned())));
    assert_eq!(
        make(Some("again")).await,
        (503, Some("unavailable".to_owned()))
    );
    // What was not begun was not done.
    proxy.cut();
    let request = shop
        .http
        .post(format!("{}/webhooks", shop.url))
        .json(&json!({"url": "https://receiver.example/"}));
    let (status, answer) = shop.send(request).await;
    assert_eq!((status, &answer["code"]), (503, &json!("unavailable")));
}

/// Set again, a vendor's stock would be what it was before the sales in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_vendors_stock_whose_setting_was_not_answered_is_said_to_be_set_or_not() {
    let mut shop = strict_shop("").await;
    let mut url: url::Url = shop.database_url_of("vendorA").parse().expect("a URL");
    let port = url.port().expect("a port");
    let proxy = Proxy::before(format!("127.0.0.1:{port}")).await;
    url.set_port(Some(proxy.address.port())).expect("settable");
    let file = shop.config_file_with(
        "proxied.toml",
        shop.database_url_of("vendorA"),
        url.as_str(),
    );
    shop.config = config::load(Some(&file)).expect("valid");
    let _api = shop.serve().await;
    let set = || {
        let url = format!("{}/vendors/vendorA/products/p1", shop.url);
        let body = json!({"name": "Product 1", "stock": 30});
        shop.send(shop.http.put(url).json(&body))
    };
    let held = shop
        .hold_at("vendorA", "SELECT FROM products WHERE id = 'p1' FOR UPDATE")
        .await;
    let breaking = async {
        shop.held_up_at("vendorA").await;
        proxy.cut();
    };
    let ((status, answer), ()) = tokio::join!(set(), breaking);
    assert_eq!((status, &answer["code"]), (503, &json!("outcome_unknown")));
    let (status, answer) = set().await;
    assert_eq!(
        (status, &answer["code"]),
        (503, &json!("unavailable")),
        "it was not begun"
    );
    held.release().await;
    proxy.mend();
    eventually("the vendor's database is there again", || async {
        let (status, _) = set().await;
        (status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_in_which_postgresql_falls_silent_is_made_again_once_it_speaks() {
    // Another order waits at the broker meanwhile, and that is no reason to end: a store is away.
    let mut shop = strict_shop("prefetch = 1\n[work]\nstalled_after_ms = 8000\n").await;
    shop.wait_long_for_locks();
    let (proxy, file) = before_postgresql(&shop).await;
    let _api = shop.serve().await;
    let mut orders = Vec::new();
    for _ in 0..3 {
        orders.push(shop.order(&[("p1", 1)]).await);
    }
    until_ready(&shop.broker(), Queue::Orders, 3).await;
    let held = shop
        .hold_here("SELECT FROM stock WHERE product_id = 'p1' FOR UPDATE")
        .await;
    let mut work = Process::configured(&file, &["work", "--queue", "orders"]);
    shop.held_up_here().await;
    proxy.freeze();
    held.release().await;
    work.writes_within(NO_ANSWER, SILENCE).await;
    assert!(work.is_running());
    let silent = "stockctl_postgresql_failures_total{kind=\"silent\",pool=\"orders\"}";
    assert!(work.scrape().await.value(silent) >= 1.0);
    proxy.thaw();
    for id in &orders {
        shop.order_with_status(id, "confirmed").await;
    }
    assert_eq!(work.terminate().await, Some(0));
    assert_eq!(shop.available("p1").await, 7);
    nothing_was_dead_lettered(&shop.broker()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_a_vendor_that_postgresql_is_too_silent_to_hear_is_asked_for_again() {
    let shop = strict_shop("[vendor_sync]\nretries_max = 0\n").await;
    let (proxy, file) = before_postgresql(&shop).await;
    let (freezing, is_first) = (proxy.clone(), Arc::new(AtomicBool::new(true)));
    let vendor = StubVendor::start(move |request| {
        if is_first.swap(false, Ordering::SeqCst) {
            freezing.freeze();
        }
        Some((200, all_applied(request)))
    });
    let (ours, stub) = (
        shop.vendor_address().to_string(),
        vendor.address.to_string(),
    );
    // Only the process that tells the vendors is behind the proxy.
    let text = std::fs::read_to_string(&file).expect("readable");
    std::fs::write(&file, text.replace(&ours, &stub)).expect("written");
    let _deciding = shop.work_on(&[WorkQueue::Orders]);
    let _api = shop.serve().await;
    let mut work = Process::configured(&file, &["work", "--queue", "vendor-sync"]);
    let id = shop.order(&[("p1", 1)]).await;
    // Its connection is silent; or another task has that one just now, and a new one cannot be opened.
    work.writes_within("updates not taken", SILENCE).await;
    proxy.thaw();
    shop.order_told(&id).await;
    assert_eq!(work.terminate().await, Some(0));
    let calls = vendor.calls();
    assert!(calls.len() >= 2 && calls.windows(2).all(|two| two[0] == two[1]));
    nothing_was_dead_lettered(&shop.broker()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_in_which_postgresql_falls_silent_fails_and_the_next_one_follows() {
    let mut shop = strict_shop("[sync]\nschedule = \"* * * * * *\"\n").await;
    shop.wait_long_for_locks();
    let (proxy, file) = before_postgresql(&shop).await;
    let held = shop.hold_here("SELECT FROM vendors FOR UPDATE").await;
    let mut sync = Process::configured(&file, &["sync"]);
    shop.held_up_here().await;
    proxy.freeze();
    held.release().await;
    sync.writes_within(NO_ANSWER, SILENCE).await;
    proxy.thaw();
    shop.run_at("vendorA", "UPDATE products SET stock = 77 WHERE id = 'p1'")
        .await;
    eventually("the next run sees what has changed", || async {
        let on_hand = "SELECT on_hand AS n FROM stock WHERE product_id = 'p1'";
        (shop.count(on_hand).await == 77).then_some(())
    })
    .await;
    assert_eq!(sync.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_looks_at_our_stock_when_postgresql_falls_silent_ends() {
    let mut shop = strict_shop("").await;
    // Without a ledger, that look is the first thing after the vendor's snapshot.
    shop.reconfigure(|text| text.replace("[vendors.vendorA]", "[vendors.vendorA]\nledger = false"));
    shop.wait_long_for_locks();
    let (proxy, file) = before_postgresql(&shop).await;
    let held = shop
        .hold_at("vendorA", "LOCK TABLE products IN ACCESS EXCLUSIVE MODE")
        .await;
    let sync = Process::configured(&file, &["sync", "--once", "--vendor", "vendorA"]);
    shop.held_up_at("vendorA").await;
    proxy.freeze();
    held.release().await;
    sync.writes_within(NO_ANSWER, SILENCE).await;
    assert_eq!(sync.ended().await.code, Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_falls_silent_is_given_up_and_found_again() {
    let shop = strict_shop("").await;
    let url: url::Url = shop.broker().urls[0].parse().expect("a URL");
    let broker = format!("127.0.0.1:{}", url.port().expect("a port"));
    let proxy = Proxy::before(broker.clone()).await;
    let there = format!("@{}/", proxy.address);
    let file = shop.config_file_with("proxied.toml", &format!("@{broker}/"), &there);
    let _parts = (shop.serve().await, shop.serve_vendors());
    let mut work = Process::configured(&file, &["work"]);
    let id = shop.order(&[("p1", 1)]).await;
    shop.order_told(&id).await;
    proxy.freeze();
    let id = shop.order(&[("p1", 1)]).await;
    work.writes_within("no connection to RabbitMQ", SILENCE)
        .await;
    let silent = "stockctl_faults_total{fault=\"rabbitmq_silent\"}";
    eventually("the silence is counted", || async {
        (work.scrape().await.value(silent) >= 1.0).then_some(())
    })
    .await;
    proxy.thaw();
    shop.order_told(&id).await;
    assert_eq!(work.terminate().await, Some(0));
    nothing_was_dead_lettered(&shop.broker()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_that_are_deleted_under_their_consumers_are_declared_again() {
    let shop = strict_shop("").await;
    let _parts = (shop.serve().await, shop.serve_vendors());
    let mut work = shop.start(&["work"]);
    let id = shop.order(&[("p1", 1)]).await;
    shop.order_told(&id).await;
    let settings = shop.broker();
    let deleting = tokio::task::spawn_blocking(move || -> amiquip::Result<()> {
        let mut connection = amiquip::Connection::insecure_open(&settings.urls[0])?;
        let channel = connection.open_channel(None)?;
        for queue in [Queue::Orders, Queue::VendorSync] {
            let options = amiquip::QueueDeleteOptions::default();
            channel.queue_delete(queue.name(&settings), options)?;
        }
        channel.close()?;
        connection.close()
    });
    deleting.await.expect("no panic").expect("deleted");
    work.writes("cancelled the consumer").await;
    let id = shop.order(&[("p1", 1)]).await;
    shop.order_told(&id).await;
    // Whichever is noticed first: that the consumer is cancelled, or that the queue is not there.
    let seen = work.scrape().await;
    let [cancelled, missing] = seen.values([
        "stockctl_faults_total{fault=\"consumer_cancelled\"}",
        "stockctl_faults_total{fault=\"queue_missing\"}",
    ]);
    assert!(cancelled + missing >= 2.0, "{}", seen.text);
    assert_eq!(work.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_postgresql_costs_no_order_and_no_attempt() {
    let shop = strict_shop("").await;
    let (_api, _vendors) = (shop.serve().await, shop.serve_vendors());
    let work = shop.start(&["work"]);
    let before = shop.order(&[("p1", 1)]).await;
    shop.order_told(&before).await;
    shop.run_here(
        "CREATE FUNCTION no_space() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
         END $$;
         CREATE TRIGGER full1 BEFORE INSERT OR UPDATE ON orders EXECUTE FUNCTION no_space();
         CREATE TRIGGER full2 BEFORE INSERT OR UPDATE ON stock_updates EXECUTE FUNCTION no_space();
         CREATE TRIGGER full3 BEFORE UPDATE ON installation EXECUTE FUNCTION no_space()",
    )
    .await;
    let id = shop.order(&[("p1", 1)]).await;
    let (status, ready) = shop.get("/readyz").await;
    assert_eq!((status, &ready["postgresql"]), (200, &json!("down")));
    work.writes("No space left on device").await;
    shop.run_here("DROP FUNCTION no_space CASCADE").await;
    shop.order_told(&id).await;
    nothing_was_dead_lettered(&shop.broker()).await;
    drop(work);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_full_for_one_statement_costs_no_attempt() {
    let shop = strict_shop("").await;
    let (_api, _vendors) = (shop.serve().await, shop.serve_vendors());
    // By the time it is asked, the server works again. A sequence remembers what is rolled back.
    shop.run_here(
        "CREATE SEQUENCE attempts;
         CREATE FUNCTION no_space_at_first() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF nextval('attempts') % 2 = 1 THEN
                 RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
             END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER full_at_first BEFORE INSERT OR UPDATE ON stock_updates
             FOR EACH ROW EXECUTE FUNCTION no_space_at_first()",
    )
    .await;
    let work = shop.work();
    let id = shop.order(&[("p1", 1)]).await;
    shop.order_told(&id).await;
    nothing_was_dead_lettered(&shop.broker()).await;
    drop(work);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_finishes_nothing_although_all_works_says_so_and_ends() {
    let mut shop = strict_shop("prefetch = 1\n[work]\nstalled_after_ms = 1000\n").await;
    shop.wait_long_for_locks();
    let _api = shop.serve().await;
    for _ in 0..3 {
        shop.order(&[("p1", 1)]).await;
    }
    until_ready(&shop.broker(), Queue::Orders, 3).await;
    let held = shop
        .hold_here("SELECT FROM stock WHERE product_id = 'p1' FOR UPDATE")
        .await;
    let ended = shop.run(&["work", "--queue", "orders"]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let last = ended.stderr.lines().last().expect("last words");
    assert!(
        last.starts_with(
            "error: the consumer of orders_queue has finished nothing for 1 s although"
        ),
        "{last}"
    );
    held.release().await;
    // Its supervisor starts it anew.
    let _work = shop.work();
    eventually("all are decided", || async {
        let decided = "SELECT count(*) AS n FROM orders WHERE status = 'confirmed'";
        (shop.count(decided).await == 3).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_holds_up_nothing() {
    let shop = Shop::with(ShopOptions {
        config: "[log]\nlevel = \"trace\"\n".to_owned(),
        ..ShopOptions::default()
    })
    .await;
    shop.sync().await;
    let file = shop.config_file.to_str().expect("a path in UTF-8");
    let mut serve = Process::start_with_socket(&["--config", file, "serve"], shop.listener(), &[]);
    serve.writes("serving").await;
    let address = shop.url.trim_start_matches("http://");
    let lost = async || {
        Scrape::of(address)
            .await
            .value("stockctl_log_lines_lost_total")
    };
    let order_until_more_is_lost = async |than: f64| {
        eventually("lines are lost", || async {
            shop.order(&[("p1", 1)]).await;
            (lost().await > than).then_some(())
        })
        .await;
    };
    assert_eq!(lost().await, 0.0);
    serve.read_stderr(false);
    order_until_more_is_lost(0.0).await;
    serve.read_stderr(true);
    serve.writes("lines of the log are lost").await;
    serve.read_stderr(false);
    order_until_more_is_lost(lost().await).await;
    assert_eq!(serve.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_that_is_there_again_is_seen_though_nothing_waits_for_it() {
    // It says that it cannot serve what it is sent, and answers whoever only looks.
    let vendor = StubVendor::start(|_| Some((503, json!({}))));
    let mut shop = Shop::with(ShopOptions {
        config: "[vendor_sync]\nretries_max = 0\n".to_owned(),
        ..ShopOptions::default()
    })
    .await;
    let ours = shop.vendor_address().to_string();
    let stub = vendor.address.to_string();
    shop.reconfigure(|text| text.replace(&ours, &stub));
    shop.sync().await;
    let api = shop.serve().await;
    let work = shop.work();
    let id = shop.order(&[("p1", 1)]).await;
    shop.dead_letters("vendor_sync_dlq", 1).await;
    let shown = || async { shop.get("/vendors").await.1["vendors"][0]["pushState"].clone() };
    eventually("its failure is shown", || async {
        (shown().await == "failing").then_some(())
    })
    .await;
    eventually("it is shown as there again", || async {
        (shown().await == "ok").then_some(())
    })
    .await;
    assert_eq!(vendor.calls().len(), 1, "nothing was sent to find that out");
    let (_, order) = shop.get(&format!("/orders/{id}")).await;
    assert_eq!(order["vendorSync"], "failed");
    work.stop().await;
    api.stop().await;
}
