//! Calls of a vendor's API that do not go well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use stockctl::commands::work::WorkQueue;
use stockctl::mq::{Consumer, HeaderValue, Queue};

use crate::support::messages::{drain, ready, until_ready};
use crate::support::{
    Raw, RawVendor, Running, Shop, ShopOptions, StubVendor, all_applied, eventually,
};

/// Puts an address in the place of a vendor's own API.
fn point(shop: &mut Shop, vendor: &str, address: impl std::fmt::Display) {
    let ours = format!("http://{}/vendors/{vendor}", shop.vendor_address());
    shop.reconfigure(|text| {
        assert!(text.contains(&ours), "{ours} is in {text}");
        text.replace(&ours, &format!("http://{address}/{vendor}"))
    });
}

/// Decides an order of one unit for each product, so that as many messages wait for the vendors.
async fn with_messages(shop: &Shop, products: &[&str]) -> Running {
    shop.sync().await;
    let api = shop.serve().await;
    let work = shop.work_on(&[WorkQueue::Orders]);
    let before = ready(&shop.broker(), Queue::VendorSync).await;
    for product in products {
        let id = shop.order(&[(product, 1)]).await;
        shop.order_with_status(&id, "confirmed").await;
    }
    let waiting = before + u32::try_from(products.len()).expect("few");
    until_ready(&shop.broker(), Queue::VendorSync, waiting).await;
    work.stop().await;
    api
}

/// A shop with one vendor, that address, and as many messages waiting for it as there are products.
async fn with_messages_for(
    address: impl std::fmt::Display,
    config: &str,
    products: &[&'static str],
) -> (Shop, Running) {
    let mut shop = Shop::with(ShopOptions {
        vendors: vec![("vendorA", products.iter().map(|p| (*p, 10)).collect())],
        config: config.into(),
    })
    .await;
    point(&mut shop, "vendorA", address);
    let api = with_messages(&shop, products).await;
    (shop, api)
}

async fn count_dead(shop: &Shop) -> i64 {
    shop.count("SELECT count(*) AS n FROM stock_updates WHERE dead_lettered_at IS NOT NULL")
        .await
}

async fn count_told(shop: &Shop) -> i64 {
    shop.count("SELECT count(*) AS n FROM stock_updates WHERE state = 'acknowledged'")
        .await
}

/// Waits until a vendor's pushes are in a state, and returns what is shown of it.
async fn pushes_are(shop: &Shop, vendor: &str, state: &str) -> Value {
    eventually(&format!("pushes to {vendor} are {state}"), || async {
        let (status, answer) = shop.get("/vendors").await;
        assert_eq!(status, 200, "{answer}");
        let vendors = answer["vendors"].as_array().expect("a list").clone();
        vendors
            .into_iter()
            .find(|shown| shown["id"] == vendor && shown["pushState"] == state)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_that_hangs_holds_up_nobody_else_and_its_messages_lose_nothing_by_it() {
    let hanging = StubVendor::start(|_| None);
    let well = StubVendor::start(|request| Some((200, all_applied(request))));
    let products = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    let mut shop = Shop::with(ShopOptions {
        vendors: vec![
            ("vendorA", products.iter().map(|p| (*p, 10)).collect()),
            ("vendorB", vec![("z", 10)]),
        ],
        // Longer than the test: all of it happens while the first call hangs.
        config: "[vendor_sync]\nprefetch = 4\ntimeout_ms = 60000\nretry_delay_ms = 500\n".into(),
    })
    .await;
    point(&mut shop, "vendorA", hanging.address);
    point(&mut shop, "vendorB", well.address);
    shop.reconfigure(|text| text.replace("[http]\n", "[http]\nshutdown_deadline_ms = 500\n"));
    let _api = with_messages(&shop, &products).await;
    let work = shop.work();
    // Behind all the others in the queue, and three times as many as may be held at once.
    let id = shop.order(&[("z", 1)]).await;
    shop.order_told(&id).await;
    assert_eq!(hanging.calls().len(), 1, "the first call hangs still");
    work.stop().await;
    let mut taker = Consumer::start(shop.broker(), Queue::VendorSync, 100);
    let messages = drain(&mut taker, products.len()).await;
    for message in messages {
        let retries = message.headers.get("x-retry-count");
        assert!(
            matches!(retries, None | Some(HeaderValue::Int(0))),
            "{retries:?}"
        );
    }
    assert_eq!(count_dead(&shop).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_that_is_down_is_left_alone_and_only_calls_that_were_made_are_attempts() {
    let is_back = Arc::new(AtomicBool::new(false));
    let back = Arc::clone(&is_back);
    let vendor = StubVendor::start(move |request| {
        Some(if back.load(Ordering::SeqCst) {
            (200, all_applied(request))
        } else {
            (503, json!({"oops": true}))
        })
    });
    let products = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    // Without a retry, each call in vain costs its one message; those that are not called for are not lost.
    let config = "[vendor_sync]\nretries_max = 0\nretry_delay_ms = 200\nupdates_per_call_max = 1\n";
    let (shop, _api) = with_messages_for(vendor.address, config, &products).await;
    let work = shop.work_on(&[WorkQueue::VendorSync]);
    let shown = pushes_are(&shop, "vendorA", "open").await;
    assert!(shown["pushStateSince"].is_string(), "{shown}");
    assert_eq!(shown["lastPushError"], "api_answered_503", "{shown}");
    let failed = vendor.calls().len();
    assert!((5..10).contains(&failed), "{failed} calls");
    is_back.store(true, Ordering::SeqCst);
    let shown = pushes_are(&shop, "vendorA", "ok").await;
    assert_eq!(shown["lastPushError"], Value::Null);
    eventually("each is told or dead-lettered", || async {
        (count_told(&shop).await + count_dead(&shop).await == 10).then_some(())
    })
    .await;
    work.stop().await;
    let dead = usize::try_from(count_dead(&shop).await).expect("few");
    assert_eq!(
        dead,
        vendor.calls().len() - usize::try_from(count_told(&shop).await).expect("few"),
        "a dead letter for each call in vain"
    );
    assert!((5..10).contains(&dead), "{dead} dead letters");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_whose_only_call_has_failed_is_shown_as_failing_until_one_does_not() {
    let is_back = Arc::new(AtomicBool::new(false));
    for (answer, error) in [(503, "api_answered_503"), (500, "api_answered_500")] {
        is_back.store(false, Ordering::SeqCst);
        let back = Arc::clone(&is_back);
        let vendor = StubVendor::start(move |request| {
            Some(if back.load(Ordering::SeqCst) {
                (200, all_applied(request))
            } else {
                (answer, json!({"oops": true}))
            })
        });
        let config = "[vendor_sync]\nretries_max = 0\nretry_delay_ms = 200\n";
        let (shop, _api) = with_messages_for(vendor.address, config, &["a"]).await;
        let work = shop.work();
        let shown = pushes_are(&shop, "vendorA", "failing").await;
        assert_eq!(shown["lastPushError"], error, "{shown}");
        assert_eq!(vendor.calls().len(), 1, "{:?}", vendor.calls());
        let since = shown["pushStateSince"].clone();
        eventually("its update is given up", || async {
            (count_dead(&shop).await == 1).then_some(())
        })
        .await;
        // Another failure begins nothing new.
        let id = shop.order(&[("a", 1)]).await;
        shop.order_with_status(&id, "confirmed").await;
        eventually("the other one, too", || async {
            (count_dead(&shop).await == 2).then_some(())
        })
        .await;
        let shown = pushes_are(&shop, "vendorA", "failing").await;
        assert_eq!(shown["pushStateSince"], since, "{shown}");
        let status = shop.run(&["status"]).await.stdout;
        assert!(status.contains("  failing for "), "{status}");
        assert!(status.contains(&format!("its API: {error}")), "{status}");
        is_back.store(true, Ordering::SeqCst);
        let id = shop.order(&[("a", 1)]).await;
        shop.order_told(&id).await;
        let shown = pushes_are(&shop, "vendorA", "ok").await;
        assert_eq!(shown["lastPushError"], Value::Null);
        work.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_that_says_when_to_come_again_is_not_called_before() {
    let vendor = RawVendor::start(|_| {
        Raw::answer("429 Too Many Requests", "Retry-After: 3600\r\n", "slower")
    })
    .await;
    let config = "[vendor_sync]\nretry_delay_ms = 200\n";
    let (shop, _api) = with_messages_for(vendor.address, config, &["a"]).await;
    let work = shop.work_on(&[WorkQueue::VendorSync]);
    pushes_are(&shop, "vendorA", "open").await;
    // It comes again and again meanwhile, each time from the retry queue.
    for _ in 0..3 {
        until_ready(&shop.broker(), Queue::VendorSyncRetry, 1).await;
        until_ready(&shop.broker(), Queue::VendorSyncRetry, 0).await;
    }
    assert_eq!(vendor.calls().len(), 1);
    assert_eq!(count_dead(&shop).await, 0);
    work.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_breaks_the_vendor_is_dead_lettered_alone() {
    let vendor = StubVendor::start(|request: &Value| {
        let is_poison = |update: &Value| update["productId"] == "b";
        let updates = request["updates"].as_array().expect("a list");
        Some(if updates.iter().any(is_poison) {
            (500, json!({"oops": true}))
        } else {
            (200, all_applied(request))
        })
    });
    let config = "[vendor_sync]\nretries_max = 1\nretry_delay_ms = 200\n";
    let (shop, _api) = with_messages_for(vendor.address, config, &["a", "b", "c", "d"]).await;
    let work = shop.work_on(&[WorkQueue::VendorSync]);
    eventually(
        "one is in the dead-letter queue, and the others are told",
        || async { (count_told(&shop).await == 3 && count_dead(&shop).await == 1).then_some(()) },
    )
    .await;
    work.stop().await;
    let dead = shop
        .text("SELECT product_id AS t FROM stock_updates WHERE dead_lettered_at IS NOT NULL")
        .await;
    assert_eq!(dead, "b");
}

/// An answer in which the result for an update is as given, and any other is applied.
fn with_result_for(request: &Value, product: &str, results: impl Fn(&Value) -> Vec<Value>) -> Raw {
    let updates = request["updates"].as_array().expect("a list");
    let results: Vec<Value> = updates
        .iter()
        .flat_map(|update| {
            if update["productId"] == product {
                results(&update["id"])
            } else {
                vec![json!({"id": update["id"], "outcome": "applied"})]
            }
        })
        .collect();
    Raw::answer("200 OK", "", json!({ "results": results }).to_string())
}

/// Vendors that answer nonsense, each with what it answers for its product of the same name.
async fn nonsensical_vendors() -> Vec<(&'static str, RawVendor)> {
    vec![
        (
            "html",
            RawVendor::start(|_| Raw::answer("200 OK", "", "<html>\0hello")).await,
        ),
        (
            "large",
            RawVendor::start(|_| Raw::answer("200 OK", "", vec![b' '; 3 << 20])).await,
        ),
        (
            "moved",
            RawVendor::start(|_| Raw::answer("302 Found", "Location: /elsewhere\r\n", "")).await,
        ),
        (
            "bad",
            RawVendor::start(|_| Raw::answer("400 Bad Request", "", "no\0 idea")).await,
        ),
        (
            "noise",
            RawVendor::start(|_| Raw::Bytes(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec())).await,
        ),
        (
            "trickle",
            RawVendor::start(|_| {
                Raw::Trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{".to_vec())
            })
            .await,
        ),
        (
            "unknown",
            RawVendor::start(|request| {
                with_result_for(request, "unknown", |id| {
                    vec![json!({"id": id, "outcome": "perhaps"})]
                })
            })
            .await,
        ),
        (
            "torn",
            RawVendor::start(|request| {
                with_result_for(request, "torn", |id| {
                    vec![
                        json!({"id": id, "outcome": "applied"}),
                        json!({"id": id, "outcome": "rejected"}),
                    ]
                })
            })
            .await,
        ),
        (
            "missing",
            RawVendor::start(|request| with_result_for(request, "missing", |_| vec![])).await,
        ),
        (
            "other",
            RawVendor::start(|request| {
                with_result_for(request, "other", |_| {
                    vec![json!({"id": uuid::Uuid::new_v4(), "outcome": "applied"})]
                })
            })
            .await,
        ),
        (
            "void",
            RawVendor::start(|request| {
                with_result_for(request, "void", |id| {
                    vec![json!({"id": id, "outcome": "void"})]
                })
            })
            .await,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_retried_and_dead_lettered_for_the_updates_concerned_and_never_believed() {
    let vendors = nonsensical_vendors().await;
    // Beside its nonsense, those that answer at all have one update in the same call that they answer well.
    let beside = ["unknown2", "torn2", "missing2", "other2", "void2"];
    let mut shop = Shop::with(ShopOptions {
        vendors: vendors
            .iter()
            .map(|(name, _)| {
                let mut products = vec![(*name, 10)];
                products.extend(
                    beside
                        .iter()
                        .filter(|product| product.starts_with(name))
                        .map(|product| (*product, 10)),
                );
                (*name, products)
            })
            .collect(),
        config: "[vendor_sync]\nretries_max = 1\nretry_delay_ms = 200\ntimeout_ms = 1500\n".into(),
    })
    .await;
    for (name, vendor) in &vendors {
        point(&mut shop, name, vendor.address);
    }
    let products: Vec<&str> = vendors
        .iter()
        .map(|(name, _)| *name)
        .chain(beside)
        .collect();
    let _api = with_messages(&shop, &products).await;
    let work = shop.work_on(&[WorkQueue::VendorSync]);
    // What an answer of ours keeps to itself stands in the letters.
    let mut taker = Consumer::start(shop.broker(), Queue::VendorSyncDlq, 100);
    let letters = drain(&mut taker, vendors.len()).await;
    eventually("what was answered well is told", || async {
        (count_told(&shop).await == 5).then_some(())
    })
    .await;
    work.stop().await;
    let mut told: Vec<String> = letters
        .iter()
        .map(|letter| {
            let header = |name: &str| match &letter.headers[name] {
                HeaderValue::Text(text) => text.clone(),
                HeaderValue::Int(number) => number.to_string(),
            };
            assert_eq!(header("x-dead-letter-attempts"), "2");
            assert_eq!(header("x-dead-letter-reason"), "retries_exhausted");
            let body: Value = serde_json::from_slice(&letter.body).expect("JSON");
            let vendor = body["vendorId"].as_str().expect("a vendor");
            let update = body["updates"][0]["id"].as_str().expect("an id");
            let mut error = header("x-dead-letter-error").replace(update, "ID");
            for (_, stub) in &vendors {
                error = error.replace(&stub.address.to_string(), "ADDRESS");
            }
            format!("{vendor}: {error}")
        })
        .collect();
    told.sort();
    insta::assert_snapshot!(told.join("\n"), @"
    bad: the vendor's API at http://ADDRESS/bad/stock-updates answered 400: no  idea
    html: the vendor's API at http://ADDRESS/html/stock-updates answered nonsense: expected value at line 1 column 1
    large: the vendor's API at http://ADDRESS/large/stock-updates answered nonsense: more than 1048576 bytes
    missing: vendor missing answered nonsense for update ID: no result
    moved: the vendor's API at http://ADDRESS/moved/stock-updates answered 302: 
    noise: the vendor's API at http://ADDRESS/noise/stock-updates cannot be reached: error sending request: client error (SendRequest): invalid HTTP version parsed
    other: vendor other answered nonsense for update ID: no result
    torn: vendor torn answered nonsense for update ID: two outcomes that contradict each other, Applied and Rejected
    trickle: the vendor's API at http://ADDRESS/trickle/stock-updates cannot be reached: error decoding response body: request or response body error: operation timed out
    unknown: vendor unknown answered nonsense for update ID: a result that cannot be read: unknown variant `perhaps`, expected one of `applied`, `rejected`, `void`, `conflict`
    void: vendor void answered nonsense for update ID: a take is void only once it was returned, and nobody did
    ");
    let open = shop
        .text("SELECT string_agg(product_id, ' ' ORDER BY product_id) AS t FROM stock_updates WHERE state = 'open'")
        .await;
    assert_eq!(
        open,
        "bad html large missing moved noise other torn trickle unknown void"
    );
    for (name, vendor) in &vendors {
        let of_product = |call: &&Value| {
            let updates = call["updates"].as_array().expect("a list");
            updates.iter().any(|update| update["productId"] == *name)
        };
        let calls = vendor.calls().iter().filter(of_product).count();
        assert!(
            (2..=3).contains(&calls),
            "{name}: {calls} calls for two attempts"
        );
    }
}
