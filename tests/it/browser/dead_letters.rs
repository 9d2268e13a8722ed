//! Dead letters: seen, understood, and replayed or dropped.

use serde_json::json;
use stockctl::commands::work::WorkQueue;
use stockctl::domain::messages::{DEAD_ERROR, DEAD_REASON};
use stockctl::mq::{HeaderValue, Queue};

use super::Page;
use super::page::ENTER;
use crate::support::messages::{message, producer, publish, publish_raw, until_ready};
use crate::support::{Shop, ShopOptions};

/// As the protocol writes the key.
const ESCAPE: &str = "\u{e00c}";

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
        "violates check constraint \"broken\"",
    )
    .await;
    page.press_button("nonsense").await;
    page.shows("main pre", "many <b>bold</b>").await;
    // Whole, with what the list does not have.
    page.shows("main pre", "x-dead-letter-attempts: 1").await;
    // No order has such an id.
    page.shows_no("[aria-label='invalid_message'] a", "").await;
    page.looks_well("dead-letters").await;
    page.press_button("nonsense").await;
    page.shows_no("main pre", "").await;
    page.press_button("Replay the chosen…").await;
    page.shows("#toast", "Choose letters first.").await;

    the_overview_and_the_order_lead_to_the_letter(&page, &replayed).await;

    // A dry run says what would be; who leaves it leaves it.
    page.click(&format!("input[id='choose-{replayed}']")).await;
    page.press_button("Replay the chosen…").await;
    page.shows("dialog", "orders that become pending again: 1")
        .await;
    page.shows("dialog", &replayed).await;
    page.looks_well("dead-letter-replay").await;
    page.keys(ESCAPE).await;
    page.shows_no("dialog[open]", "").await;
    // Whoever works by keyboard goes on from where they were.
    let focused = page.js("return document.activeElement.id", json!([])).await;
    assert_eq!(focused, "replay-chosen");
    shop.order_with_status(&replayed, "failed").await;
    assert_eq!(shop.dead_letters("orders_dlq", 3).await.len(), 3);
    shop.run_here("ALTER TABLE stock_updates DROP CONSTRAINT broken")
        .await;
    page.press_button("Replay the chosen…").await;
    page.press_button("Replay 1").await;
    page.shows("#toast", "Replayed: 1.").await;
    page.shows("main", "Nothing here").await;
    page.click("#toast a").await;
    page.shows("main .badge", "confirmed").await;

    // What is dropped is asked for twice, and its order is cancelled.
    page.go("#/dead-letters/orders_dlq").await;
    page.click("input[id='all-retries_exhausted']").await;
    page.press_button("Drop the chosen…").await;
    page.shows("dialog", "orders that are cancelled: 1").await;
    page.looks_well("dead-letter-drop").await;
    a_drop_is_thought_over(&page).await;
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

/// From where something is seen to have failed to why, and to what can be done about it.
async fn the_overview_and_the_order_lead_to_the_letter(page: &Page, order: &str) {
    page.go(&format!("#/orders/{order}")).await;
    page.shows("section[aria-label=Order] .badge", "failed")
        .await;
    page.shows(
        "section[aria-label=Order] .problem",
        "violates check constraint \"broken\"",
    )
    .await;
    page.looks_well("order-failed").await;
    page.go("#/").await;
    page.shows(".standing", "Processing gave up on 2 orders.")
        .await;
    let colours = "const fill = (kind) => getComputedStyle(document.querySelector(`.legend rect.${kind}`)).fill; return fill('failed') !== fill('rejected')";
    assert_eq!(page.js(colours, json!([])).await, true);
    page.go(&format!("#/orders/{order}")).await;
    page.click("//a[text()='its dead letter']").await;
    page.shows("main", "Show all").await;
    page.shows("main a code", order).await;
    page.shows("main h3", "retries exhausted (1)").await;
}

/// With its dialog open, nothing is dropped by a slip, and what goes wrong is said where somebody looks.
async fn a_drop_is_thought_over(page: &Page) {
    // Enter does nothing that cannot be undone.
    page.keys(ENTER).await;
    page.shows_no("dialog", "").await;
    page.press_button("Drop the chosen…").await;
    page.shows("dialog", "orders that are cancelled: 1").await;
    // What goes wrong is said where somebody looks.
    let fails = "window.fetched = window.fetch; window.fetch = (path, options) => options.method === 'POST' ? Promise.reject(new Error('by intention')) : window.fetched(path, options)";
    page.js(fails, json!([])).await;
    page.press_button("Drop 1").await;
    page.shows("dialog .problem", "by intention").await;
    page.js("window.fetch = window.fetched", json!([])).await;
}

/// A letter that nobody can read, of which a page shows the beginning.
fn unreadable(number: usize) -> stockctl::mq::Message {
    let mut letter = message(Queue::OrdersDlq, format!("letter-{number}"), "no order");
    for (name, text) in [
        (DEAD_REASON, "invalid_message"),
        (DEAD_ERROR, "it is no JSON"),
    ] {
        let text = HeaderValue::Text(text.to_owned());
        letter.headers.insert(name.to_owned(), text);
    }
    letter
}

#[tokio::test(flavor = "multi_thread")]
async fn more_letters_than_are_shown_are_told_of_and_a_group_is_acted_on_whole() {
    let shop = Shop::new().await;
    let api = shop.serve().await;
    let publisher = producer(&shop.broker()).await;
    publish(&publisher, (0..303).map(unreadable).collect()).await;
    // One of the same reason has no id.
    let mut headers = amiquip::FieldTable::default();
    let reason = amiquip::AmqpValue::LongString("invalid_message".to_owned());
    headers.insert(DEAD_REASON.to_owned(), reason);
    let properties = amiquip::AmqpProperties::default().with_headers(headers);
    publish_raw(
        &shop.broker(),
        Queue::OrdersDlq,
        properties,
        b"without an id",
    )
    .await;
    until_ready(&shop.broker(), Queue::OrdersDlq, 304).await;

    let page = Page::open(&shop).await;
    page.go("#/dead-letters").await;
    page.shows("main h3", "invalid message (200 shown)").await;
    page.shows(
        "main",
        "104 letters further back in the queue are not shown.",
    )
    .await;
    page.press_button("Show 200 more").await;
    page.shows("main h3", "invalid message (304)").await;
    page.shows(
        "main",
        "1 letter without an id: to act on them, choose all with this reason.",
    )
    .await;
    page.shows_no("#more-letters", "").await;

    // What is gone is not chosen any more.
    page.click("input[id='choose-letter-0']").await;
    page.click("input[id='choose-letter-1']").await;
    let drop = "/admin/dead-letters/orders_dlq/drop";
    let (status, _) = shop.post(drop, json!({"messageId": "letter-0"})).await;
    assert_eq!(status, 200);
    page.shows("main h3", "invalid message (303)").await;
    page.press_button("Drop the chosen…").await;
    page.shows("dialog", "letters: 1").await;
    page.press_button("Leave it").await;

    // A group is meant whole, and nothing that comes meanwhile.
    page.click("input[id='all-invalid_message']").await;
    page.press_button("Drop the chosen…").await;
    page.shows("dialog", "letters: 303").await;
    publish(&publisher, vec![unreadable(1000)]).await;
    until_ready(&shop.broker(), Queue::OrdersDlq, 304).await;
    page.press_button("Drop 303").await;
    page.shows("#toast", "Dropped: 303.").await;
    page.shows("main h3", "invalid message (1)").await;
    page.shows("main td", "letter-1000").await;
    // On a busy machine a look may find somebody else's act still under way, or the letter gone with which its first page
    // ended: it begins anew then.
    let gone = "orders_dlq?limit=200&cursor=";
    page.close(&["503 (Service Unavailable)", gone]).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_has_to_be_kept_is_said_with_why_and_one_to_a_vendor_names_it_and_its_order()
{
    let shop = Shop::new().await;
    shop.sync().await;
    let parts = vec![shop.serve().await, shop.work_on(&[WorkQueue::Orders])];
    // Nobody tells the vendor, neither of the order nor of its return.
    let order = shop.order(&[("p1", 2)]).await;
    shop.order_with_status(&order, "confirmed").await;
    let (status, _) = shop
        .post(&format!("/orders/{order}/cancel"), json!({}))
        .await;
    assert_eq!(status, 200);
    let id = shop
        .text("SELECT id::text AS t FROM stock_updates WHERE delta > 0")
        .await;
    let body =
        json!({"vendorId": "vendorA", "updates": [{"id": id, "productId": "p1", "delta": 2}]});
    let letter = message(Queue::VendorSyncDlq, "to-be-kept", body.to_string());
    publish(&producer(&shop.broker()).await, vec![letter]).await;

    let page = Page::open(&shop).await;
    page.shows_cell("vendorA", "Unanswered", "2").await;
    let untold = "1 message to vendors could not be delivered. The dead letter says why.";
    page.shows("main", untold).await;
    // Whoever names no queue is led to the one that has letters.
    page.go("#/dead-letters").await;
    page.shows("main nav a[aria-current]", "vendor_sync_dlq (1)")
        .await;
    page.shows("main td", "vendorA, 1 update").await;
    page.shows("main td a", &order).await;
    page.click("input[id='choose-to-be-kept']").await;
    page.press_button("Drop the chosen…").await;
    page.shows("dialog h2", "Nothing to drop").await;
    page.shows("dialog", "Kept: 1").await;
    page.shows("dialog", "replay the letter instead").await;
    page.looks_well("dead-letter-kept").await;
    page.press_button("Close").await;
    page.press_button("Replay the chosen…").await;
    page.press_button("Replay 1").await;
    page.shows("#toast", "Replayed: 1.").await;
    page.close(&[]).await;
    for part in parts {
        part.stop().await;
    }
}
