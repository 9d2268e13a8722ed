//! Calls of a vendor's API that do not go well.

use serde_json::{Value, json};
use stockctl::commands::work::WorkQueue;
use stockctl::mq::Queue;

use crate::support::messages::until_ready;
use crate::support::{Shop, ShopOptions, StubVendor, all_applied, eventually};

/// A shop with one vendor, that stub, and as many messages waiting for it as there are products.
async fn with_messages_for(vendor: &StubVendor, config: &str, products: &[&'static str]) -> Shop {
    let mut shop = Shop::with(ShopOptions {
        vendors: vec![("vendorA", products.iter().map(|p| (*p, 10)).collect())],
        config: config.into(),
    })
    .await;
    let (ours, stub) = (
        shop.vendor_address().to_string(),
        vendor.address.to_string(),
    );
    shop.reconfigure(|text| text.replace(&ours, &stub));
    shop.sync().await;
    let api = shop.serve().await;
    let work = shop.work_on(&[WorkQueue::Orders]);
    for product in products {
        let id = shop.order(&[(product, 1)]).await;
        shop.order_with_status(&id, "confirmed").await;
    }
    let waiting = u32::try_from(products.len()).expect("few");
    until_ready(&shop.broker(), Queue::VendorSync, waiting).await;
    work.stop().await;
    api.stop().await;
    shop
}

async fn count_dead(shop: &Shop) -> i64 {
    shop.count("SELECT count(*) AS n FROM stock_updates WHERE dead_lettered_at IS NOT NULL")
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_vendor_that_hangs_is_not_held_call_after_call() {
    let vendor = StubVendor::start(|_| None);
    let products = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let config = "[vendor_sync]\nretries_max = 0\ntimeout_ms = 1000\nupdates_per_call_max = 1\n";
    let shop = with_messages_for(&vendor, config, &products).await;
    let work = shop.work_on(&[WorkQueue::VendorSync]);
    eventually("all are in the dead-letter queue", || async {
        (count_dead(&shop).await == 10).then_some(())
    })
    .await;
    work.stop().await;
    // The first call, and at most a few more for what had not arrived when it began.
    let calls = vendor.calls().len();
    assert!(calls <= 3, "{calls} calls for 10 messages");
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
    let shop = with_messages_for(&vendor, config, &["a", "b", "c", "d"]).await;
    let work = shop.work_on(&[WorkQueue::VendorSync]);
    eventually(
        "one is in the dead-letter queue, and the others are told",
        || async {
            let told = shop
                .count("SELECT count(*) AS n FROM stock_updates WHERE state = 'acknowledged'")
                .await;
            (told == 3 && count_dead(&shop).await == 1).then_some(())
        },
    )
    .await;
    work.stop().await;
    let dead = shop
        .text("SELECT product_id AS t FROM stock_updates WHERE dead_lettered_at IS NOT NULL")
        .await;
    assert_eq!(dead, "b");
}
