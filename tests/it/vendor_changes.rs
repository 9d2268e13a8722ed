//! What a vendor does with its own stock, and what becomes of it here: also while updates of ours are open.

use serde_json::{Value, json};
use stockctl::commands::work::WorkQueue;

use crate::support::{Running, Shop, ShopOptions};

async fn shop_of(vendors: Vec<(&'static str, Vec<(&'static str, i64)>)>) -> Shop {
    Shop::with(ShopOptions {
        vendors,
        ..ShopOptions::default()
    })
    .await
}

/// A shop that decides and tells nobody, with an order of 4 of p1 open at vendorA, which has 10.
async fn shop_with_an_open_take() -> (Shop, String, (Running, Running)) {
    let shop = shop_of(vec![("vendorA", vec![("p1", 10), ("p2", 1)])]).await;
    shop.sync().await;
    let parts = (shop.serve().await, shop.work_on(&[WorkQueue::Orders]));
    let id = shop.order(&[("p1", 4)]).await;
    shop.order_with_status(&id, "confirmed").await;
    (shop, id, parts)
}

/// What `GET /products/{id}` shows, a line for the product and one for each vendor.
async fn shown(shop: &Shop, product: &str) -> String {
    let (status, product) = shop.get(&format!("/products/{product}")).await;
    assert_eq!(status, 200, "{product}");
    let mut lines = vec![format!(
        "{}: {} available, {} short",
        product["name"], product["available"], product["shortfall"]
    )];
    for at in product["vendors"].as_array().expect("a list") {
        lines.push(format!(
            "{} {}: {} on hand, {} open, {} available, {} short",
            at["vendorId"], at["name"], at["onHand"], at["open"], at["available"], at["shortfall"]
        ));
    }
    // A list shows a product as it is shown alone.
    let (_, list) = shop.get("/products?limit=200").await;
    let products = list["products"].as_array().expect("a list");
    assert!(products.contains(&product), "{list}");
    lines.join("\n").replace('"', "")
}

async fn at_vendor_a(shop: &Shop, sql: &str) {
    shop.run_at("vendorA", sql).await;
    shop.sync().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restock_is_sold_after_the_next_sync_and_what_is_open_stays_taken() {
    let (shop, id, _parts) = shop_with_an_open_take().await;
    at_vendor_a(&shop, "UPDATE products SET stock = 25 WHERE id = 'p1'").await;
    insta::assert_snapshot!(shown(&shop, "p1").await, @"
    Product p1: 21 available, 0 short
    vendorA Product p1: 25 on hand, -4 open, 21 available, 0 short
    ");
    let more = shop.order(&[("p1", 21)]).await;
    shop.order_with_status(&more, "confirmed").await;
    let _vendor = (shop.serve_vendors(), shop.work_on(&[WorkQueue::VendorSync]));
    shop.order_told(&id).await;
    shop.order_told(&more).await;
    shop.sync().await;
    assert_eq!(shop.stock_at("vendorA", "p1").await, 0);
    insta::assert_snapshot!(shown(&shop, "p1").await, @"
    Product p1: 0 available, 0 short
    vendorA Product p1: 0 on hand, 0 open, 0 available, 0 short
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_vendor_sells_elsewhere_is_not_sold_here_again() {
    let (shop, id, _parts) = shop_with_an_open_take().await;
    at_vendor_a(
        &shop,
        "UPDATE products SET stock = stock - 5 WHERE id = 'p1'",
    )
    .await;
    insta::assert_snapshot!(shown(&shop, "p1").await, @"
    Product p1: 1 available, 0 short
    vendorA Product p1: 5 on hand, -4 open, 1 available, 0 short
    ");
    let too_much = shop.order(&[("p1", 2)]).await;
    let order = shop.order_with_status(&too_much, "rejected").await;
    assert_eq!(order["reason"]["available"], 1, "{order}");
    let _vendor = (shop.serve_vendors(), shop.work_on(&[WorkQueue::VendorSync]));
    shop.order_told(&id).await;
    shop.sync().await;
    assert_eq!(shop.stock_at("vendorA", "p1").await, 1);
    insta::assert_snapshot!(shown(&shop, "p1").await, @"
    Product p1: 1 available, 0 short
    vendorA Product p1: 1 on hand, 0 open, 1 available, 0 short
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_below_what_is_open_shows_nothing_available_and_by_how_much_it_is_short() {
    let shop = shop_of(vec![
        ("vendorA", vec![("p1", 10)]),
        ("vendorB", vec![("p1", 3)]),
        ("vendorC", vec![("p1", 3)]),
    ])
    .await;
    shop.sync().await;
    let _parts = (shop.serve().await, shop.work_on(&[WorkQueue::Orders]));
    for quantity in [10, 3] {
        let id = shop.order(&[("p1", quantity)]).await;
        shop.order_with_status(&id, "confirmed").await;
    }
    shop.run_at("vendorB", "UPDATE products SET stock = 1")
        .await;
    at_vendor_a(&shop, "UPDATE products SET stock = 3").await;
    // What vendorC has left does not make up for what the others are short of.
    insta::assert_snapshot!(shown(&shop, "p1").await, @"
    Product p1: 3 available, 9 short
    vendorA Product p1: 3 on hand, -10 open, 0 available, 7 short
    vendorB Product p1: 1 on hand, -3 open, 0 available, 2 short
    vendorC Product p1: 3 on hand, 0 open, 3 available, 0 short
    ");
    let id = shop.order(&[("p1", 4)]).await;
    let order = shop.order_with_status(&id, "rejected").await;
    assert_eq!(order["reason"]["available"], 3, "{order}");
    at_vendor_a(&shop, "UPDATE products SET stock = 11").await;
    insta::assert_snapshot!(shown(&shop, "p1").await, @"
    Product p1: 4 available, 2 short
    vendorA Product p1: 11 on hand, -10 open, 1 available, 0 short
    vendorB Product p1: 1 on hand, -3 open, 0 available, 2 short
    vendorC Product p1: 3 on hand, 0 open, 3 available, 0 short
    ");
    // A vendor that counts below zero is short of it, whoever took it.
    shop.run_at(
        "vendorC",
        "ALTER TABLE products DROP CONSTRAINT products_stock_check; UPDATE products SET stock = -2",
    )
    .await;
    shop.sync().await;
    insta::assert_snapshot!(shown(&shop, "p1").await, @"
    Product p1: 1 available, 4 short
    vendorA Product p1: 11 on hand, -10 open, 1 available, 0 short
    vendorB Product p1: 1 on hand, -3 open, 0 available, 2 short
    vendorC Product p1: -2 on hand, 0 open, 0 available, 2 short
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_that_is_renamed_keeps_its_id_and_what_is_open() {
    let (shop, id, _parts) = shop_with_an_open_take().await;
    at_vendor_a(
        &shop,
        "UPDATE products SET name = 'New \u{1f980}' WHERE id = 'p1'",
    )
    .await;
    insta::assert_snapshot!(shown(&shop, "p1").await, @"
    New 🦀: 6 available, 0 short
    vendorA New 🦀: 10 on hand, -4 open, 6 available, 0 short
    ");
    let _vendor = (shop.serve_vendors(), shop.work_on(&[WorkQueue::VendorSync]));
    shop.order_told(&id).await;
    shop.sync().await;
    insta::assert_snapshot!(shown(&shop, "p1").await, @"
    New 🦀: 6 available, 0 short
    vendorA New 🦀: 6 on hand, 0 open, 6 available, 0 short
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_that_is_removed_and_listed_again_has_not_forgotten_what_is_open() {
    let (shop, id, _parts) = shop_with_an_open_take().await;
    at_vendor_a(&shop, "DELETE FROM products WHERE id = 'p1'").await;
    insta::assert_snapshot!(shown(&shop, "p1").await, @"
    Product p1: 0 available, 4 short
    vendorA Product p1: 0 on hand, -4 open, 0 available, 4 short
    ");
    let none = shop.order(&[("p1", 1)]).await;
    let order = shop.order_with_status(&none, "rejected").await;
    assert_eq!(order["reason"]["code"], "insufficient_stock", "{order}");
    at_vendor_a(
        &shop,
        "INSERT INTO products (id, name, stock) VALUES ('p1', 'Again', 9)",
    )
    .await;
    insta::assert_snapshot!(shown(&shop, "p1").await, @"
    Again: 5 available, 0 short
    vendorA Again: 9 on hand, -4 open, 5 available, 0 short
    ");
    let _vendor = (shop.serve_vendors(), shop.work_on(&[WorkQueue::VendorSync]));
    shop.order_told(&id).await;
    shop.sync().await;
    assert_eq!(shop.stock_at("vendorA", "p1").await, 5);
    insta::assert_snapshot!(shown(&shop, "p1").await, @"
    Again: 5 available, 0 short
    vendorA Again: 5 on hand, 0 open, 5 available, 0 short
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_that_is_removed_before_the_vendor_is_told_cancels_the_order() {
    let (shop, id, _parts) = shop_with_an_open_take().await;
    shop.run_at("vendorA", "DELETE FROM products WHERE id = 'p1'")
        .await;
    let _vendor = (shop.serve_vendors(), shop.work_on(&[WorkQueue::VendorSync]));
    let order = shop.order_with_status(&id, "cancelled").await;
    assert_eq!(
        order["reason"],
        json!({"code": "vendor_rejected", "productId": "p1"})
    );
    at_vendor_a(
        &shop,
        "INSERT INTO products (id, name, stock) VALUES ('p1', 'Again', 9)",
    )
    .await;
    insta::assert_snapshot!(shown(&shop, "p1").await, @"
    Again: 9 available, 0 short
    vendorA Again: 9 on hand, 0 open, 9 available, 0 short
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_bears_the_name_of_its_first_vendor_and_beside_it_each_vendors_own() {
    // Listed in another order than that of their ids, and synced in another one.
    let shop = shop_of(vec![
        ("b", vec![("p1", 1)]),
        ("a", vec![("p1", 2)]),
        ("Z", vec![("p2", 3)]),
    ])
    .await;
    for (vendor, name) in [("b", "Of b"), ("a", "Of a"), ("Z", "Of Z")] {
        shop.run_at(vendor, &format!("UPDATE products SET name = '{name}'"))
            .await;
        assert_eq!(
            shop.run(&["sync", "--once", "--vendor", vendor]).await.code,
            Some(0)
        );
    }
    let _api = shop.serve().await;
    insta::assert_snapshot!(shown(&shop, "p1").await, @"
    Of a: 3 available, 0 short
    a Of a: 2 on hand, 0 open, 2 available, 0 short
    b Of b: 1 on hand, 0 open, 1 available, 0 short
    ");
    // The order is that of bytes: a capital comes first.
    shop.run_at(
        "Z",
        "INSERT INTO products (id, name, stock) VALUES ('p1', 'Of Z', 4)",
    )
    .await;
    shop.sync().await;
    insta::assert_snapshot!(shown(&shop, "p1").await, @"
    Of Z: 7 available, 0 short
    Z Of Z: 4 on hand, 0 open, 4 available, 0 short
    a Of a: 2 on hand, 0 open, 2 available, 0 short
    b Of b: 1 on hand, 0 open, 1 available, 0 short
    ");
    // A vendor that no longer lists it still has it in its books, and its name stays.
    shop.run_at("Z", "DELETE FROM products WHERE id = 'p1'")
        .await;
    shop.sync().await;
    let (_, product) = shop.get("/products/p1").await;
    assert_eq!(product["name"], Value::from("Of Z"));
    assert_eq!(product["available"], 3);
}
