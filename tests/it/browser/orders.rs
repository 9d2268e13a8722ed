//! Orders and products, from a system that is empty to an order that is cancelled.

use serde_json::json;

use super::Page;
use super::page::{ENTER, TAB};
use crate::support::{Shop, ShopOptions};

/// Synced once, when the loop starts, and when somebody asks.
const SYNCED_WHEN_ASKED: &str = "[orders]\nretry_delay_ms = 200\n[vendor_sync]\nretry_delay_ms = 200\n\
                                 [sync]\nschedule = \"0 0 0 1 1 *\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_placed_by_keyboard_and_followed_to_its_end_without_reloading() {
    let shop = Shop::with(ShopOptions {
        config: SYNCED_WHEN_ASKED.to_owned(),
        ..ShopOptions::default()
    })
    .await;
    let mut parts = vec![shop.serve_vendors(), shop.work(), shop.serve().await];
    let page = Page::open(&shop).await;

    // Nothing is there yet, and each place says what to do about it.
    page.shows("main", "No orders in the last two minutes")
        .await;
    page.shows("[aria-label=Vendors]", "not synced yet").await;
    page.shows("[aria-label=Queues]", "orders_queue").await;
    page.shows("#live", "Live").await;
    page.shows_no("#banner", "").await;
    page.looks_well("overview-empty").await;
    page.go("#/orders").await;
    page.shows("main", "No orders yet. Place a test order on the overview")
        .await;
    page.go("#/products").await;
    page.shows("main", "No products yet. They come with the first sync")
        .await;
    page.looks_well("products-empty").await;

    // The products come by themselves with the first sync, and the vendor's own business with the next.
    parts.push(shop.sync_by_schedule());
    page.shows_cell("p1", "Available", "10").await;
    shop.run_at("vendorA", "UPDATE products SET stock = 12 WHERE id = 'p1'")
        .await;
    page.go("#/").await;
    page.press_button("Sync now").await;
    page.shows("#toast", "Asked for a sync of vendorA, vendorB.")
        .await;
    page.go("#/products").await;
    page.shows_cell("p1", "Available", "12").await;

    // By keyboard, from the top of the page, without a look at the mouse.
    page.go("#/").await;
    page.shows("[aria-label=Vendors]", "ok").await;
    page.tab_to("input[name=product]").await;
    page.keys("p1").await;
    page.tab_to("input[name=quantity]").await;
    page.keys("\u{E013}\u{E013}").await;
    page.keys(TAB).await;
    page.keys(ENTER).await;
    page.shows("section[aria-label=Order] .badge", "confirmed")
        .await;
    page.shows("main", "3 × p1").await;
    for event in ["accepted", "confirmed", "pushed vendorA applied"] {
        page.shows("ol.history li", event).await;
    }
    page.shows("main td .badge", "acknowledged").await;
    page.looks_well("order").await;
    let id = page
        .js("return location.hash.split('/').pop()", json!([]))
        .await;
    let id = id.as_str().expect("an id").to_owned();
    assert_eq!(
        shop.order_told(&id).await["lines"],
        json!([{"productId": "p1", "quantity": 3}])
    );

    keeps_the_focus(&page, &shop, &id).await;

    // Stock falls while somebody looks, whoever orders.
    page.go("#/products").await;
    page.shows_cell("p1", "Available", "9").await;
    shop.order(&[("p1", 4)]).await;
    page.shows_cell("p1", "Available", "5").await;
    let rejected = shop.order(&[("p1", 50)]).await;
    shop.order(&[("p3", 20)]).await;
    page.fill("#product-search", "PRODUCT P").await;
    page.press_button("Search").await;
    page.shows("main tbody", "p3").await;
    page.click("input[name=inStock]").await;
    page.press_button("Search").await;
    page.shows_no("main tbody", "p3").await;
    page.shows("main tbody", "p2").await;
    page.looks_well("products").await;
    page.fill("#product-search", "p9").await;
    page.press_button("Search").await;
    page.shows("main", "Nothing is like that.").await;

    finds_orders(&page, &rejected).await;

    // It is cancelled after a second thought only, and the stock is there again.
    page.go(&format!("#/orders/{id}")).await;
    page.press_button("Cancel the order…").await;
    page.shows("dialog", "Cancel this order?").await;
    page.looks_well("order-cancel").await;
    page.press_button("Leave it").await;
    page.shows("main .badge", "confirmed").await;
    page.press_button("Cancel the order…").await;
    page.press_button("Cancel the order").await;
    page.shows("main .badge", "cancelled").await;
    page.shows_no("main", "Cancel the order…").await;
    page.go("#/products").await;
    page.shows_cell("p1", "Available", "8").await;
    page.go("#/").await;
    page.shows(".figures", "cancelled").await;
    page.shows("main", "Of the last 5 orders").await;
    page.looks_well("overview").await;
    // What is no encoding of anything is no order either.
    page.go("#/orders/%zz").await;
    page.shows("main", "no order can have that id").await;
    // An id that is none, and one of no order, were answered as the callers' mistakes.
    page.close(&["/orders/01a21584-0000", "/orders/4711", "/orders/%25zz"])
        .await;
    for part in parts {
        part.stop().await;
    }
}

/// Whoever has come to an order by keyboard stays there while others come.
async fn keeps_the_focus(page: &Page, shop: &Shop, id: &str) {
    page.go("#/orders").await;
    page.shows("main td a", id).await;
    let focus = "const link = document.querySelector(`main td a[href='#/orders/${arguments[0]}']`); link.focus(); link.isTheFirst = true";
    page.js(focus, json!([id])).await;
    let another = shop.order(&[("p2", 1)]).await;
    page.shows("main td a", &another).await;
    let there = "return [document.activeElement.getAttribute('href'), document.activeElement.isTheFirst ?? false]";
    assert_eq!(
        page.js(there, json!([])).await,
        json!([format!("#/orders/{id}"), false])
    );
}

/// An order is found by its id, and one that is none is said to be none.
async fn finds_orders(page: &Page, rejected: &str) {
    page.go("#/orders").await;
    page.shows("main tbody tr:nth-child(5)", "p1").await;
    page.looks_well("orders").await;
    page.click("#order-status option[value=failed]").await;
    page.shows("main", "No order is failed.").await;
    page.click("#order-status option[value=rejected]").await;
    page.shows_no("main tbody .badge", "confirmed").await;
    page.fill("input[name=id]", &format!(" {rejected} ")).await;
    page.press_button("Find").await;
    page.shows(
        "main .problem",
        "Not enough stock: 50 of p1 asked for, 5 available.",
    )
    .await;
    page.go("#/orders").await;
    page.fill("input[name=id]", "01a21584-0000-7000-8000-000000000000")
        .await;
    page.press_button("Find").await;
    page.shows("main .problem", "there is no order").await;
    page.go("#/orders").await;
    page.fill("input[name=id]", "4711").await;
    page.press_button("Find").await;
    page.shows("main .problem", "id").await;
    page.looks_well("order-missing").await;
}
