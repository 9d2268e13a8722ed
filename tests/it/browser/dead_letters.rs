//! Dead letters: seen, understood, and replayed or dropped.

use serde_json::json;
use stockctl::mq::Queue;

use super::Page;
use crate::support::messages::{message, producer, publish};
use crate::support::{Shop, ShopOptions};

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_read_replayed_and_dropped_after_a_dry_run() {
    let shop = Shop::with(ShopOptions {
        config: "[orders]\nretries_max = 0\nretry_delay_ms = 200\n".into(),
        ..ShopOptions::default()
    })
    .await;
    shop.run_here("ALTER TABLE stock_updates ADD CONSTRAINT broken CHECK (product_id <> 'p3')")
        .await;
    let parts = shop.open().await;
    let page = Page::open(&shop).await;
    page.go("#/dead-letters").await;
    page.shows("main", "Nothing here: every message was handled.")
        .await;

    let (replayed, dropped) = (
        shop.order(&[("p3", 2)]).await,
        shop.order(&[("p3", 1)]).await,
    );
    for id in [&replayed, &dropped] {
        shop.order_with_status(id, "failed").await;
    }
    let nonsense = message(
        Queue::Orders,
        "nonsense",
        r#"{"productId":"p1","quantity":"many <b>bold</b>"}"#,
    );
    publish(&producer(&shop.broker()).await, vec![nonsense]).await;
    shop.dead_letters("orders_dlq", 3).await;

    // By the reason, each with its error, and what it is about for who asks.
    page.shows("main h3", "retries exhausted (2)").await;
    page.shows("main h3", "invalid message (1)").await;
    page.shows(
        "[aria-label='retries_exhausted'] td",
        "the database refused a statement",
    )
    .await;
    page.press_button("nonsense").await;
    page.shows("main pre", "many <b>bold</b>").await;
    // No order has such an id.
    page.shows_no("main a", "To the order").await;
    page.looks_well("dead-letters").await;
    page.press_button("nonsense").await;
    page.shows_no("main pre", "").await;
    page.press_button("Replay the chosen…").await;
    page.shows("#toast", "Choose letters first.").await;

    // The overview and the order lead here.
    page.go(&format!("#/orders/{replayed}")).await;
    page.shows("section[aria-label=Order] .badge", "failed")
        .await;
    page.looks_well("order-failed").await;
    page.click("//a[text()='Its dead letter says why']").await;
    page.shows("main", "Show all").await;
    page.shows("main h3", "retries exhausted (1)").await;

    // A dry run says what would be; who leaves it leaves it.
    page.click(&format!("input[id='choose-{replayed}']")).await;
    page.press_button("Replay the chosen…").await;
    page.shows("dialog", "orders that become pending again: 1")
        .await;
    page.shows("dialog", &replayed).await;
    page.looks_well("dead-letter-replay").await;
    page.press_button("Leave it").await;
    shop.order_with_status(&replayed, "failed").await;
    assert_eq!(shop.dead_letters("orders_dlq", 3).await.len(), 3);
    shop.run_here("ALTER TABLE stock_updates DROP CONSTRAINT broken")
        .await;
    page.press_button("Replay the chosen…").await;
    page.press_button("Replay 1").await;
    page.shows("#toast", "Replayed: 1.").await;
    page.shows("main", "Nothing here").await;
    page.go(&format!("#/orders/{replayed}")).await;
    page.shows("main .badge", "confirmed").await;

    // What is dropped is asked for twice, and its order is cancelled.
    page.go("#/dead-letters/orders_dlq").await;
    page.click("input[id='all-retries_exhausted']").await;
    page.press_button("Drop the chosen…").await;
    page.shows("dialog", "orders that are cancelled: 1").await;
    page.looks_well("dead-letter-drop").await;
    page.press_button("Drop 1").await;
    page.shows("#toast", "Dropped: 1.").await;
    page.shows_no("main h3", "retries exhausted").await;
    page.shows("main h3", "invalid message (1)").await;
    page.go(&format!("#/orders/{dropped}")).await;
    page.shows("main .badge", "cancelled").await;
    page.shows("ol.history li", "cancelled").await;
    page.click("//a[text()='Dead letters']").await;
    page.click("//nav/a[text()='vendor_sync_dlq']").await;
    page.shows("main", "Nothing here").await;
    assert_eq!(
        page.js(
            "return document.querySelectorAll('main b').length",
            json!([])
        )
        .await,
        0
    );
    page.close(&[]).await;
    for part in parts {
        part.stop().await;
    }
}
