//! A vendor rejects a take: it sold the goods elsewhere before it was told of ours.

use serde_json::{Value, json};

use crate::support::{Shop, ShopOptions, eventually};

/// What was taken and returned for an order, by vendor, product, change and state.
fn updates(order: &Value) -> String {
    let mut lines: Vec<String> = order["updates"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|u| {
            format!(
                "{} {} {} {}",
                u["vendorId"], u["productId"], u["delta"], u["state"]
            )
        })
        .collect();
    lines.sort();
    lines.join("\n").replace('"', "")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_vendor_rejects_is_taken_from_another() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    shop.run_at("vendorA", "UPDATE products SET stock = 3 WHERE id = 'p2'")
        .await;
    let id = shop.order(&[("p2", 4)]).await;
    let order = shop.order_told(&id).await;
    assert_eq!(order["status"], "confirmed");
    insta::assert_snapshot!(updates(&order), @"
    vendorA p2 -4 rejected
    vendorB p2 -4 acknowledged
    ");
    assert_eq!(shop.stock_at("vendorA", "p2").await, 3);
    assert_eq!(shop.stock_at("vendorB", "p2").await, 1);
    // What we hold of vendorA's stock was proved wrong, so nothing is taken there until a sync has mended it.
    let id = shop.order(&[("p2", 2)]).await;
    let order = shop.order_with_status(&id, "rejected").await;
    insta::assert_json_snapshot!(order["reason"], @r#"
    {
      "available": 1,
      "code": "insufficient_stock",
      "productId": "p2",
      "requested": 2
    }
    "#);
    shop.sync().await;
    let id = shop.order(&[("p2", 2)]).await;
    let order = shop.order_told(&id).await;
    insta::assert_snapshot!(updates(&order), @"vendorA p2 -2 acknowledged");
    shop.sync().await;
    assert_eq!(shop.available("p2").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_product_is_passed_over_until_a_run_that_began_later() {
    let mut shop = Shop::with(ShopOptions {
        config: "[sync]\nchunk_rows = 1\n".into(),
        ..ShopOptions::default()
    })
    .await;
    shop.wait_long_for_locks();
    let _parts = shop.open().await;
    // A run whose snapshot is from before the vendor's own sale, held up before it writes p2.
    shop.run_at("vendorA", "UPDATE products SET name = 'renamed'")
        .await;
    let held = shop
        .hold_here("SELECT FROM stock WHERE product_id = 'p1' FOR UPDATE")
        .await;
    let sync = shop.start(&["sync", "--once", "--vendor", "vendorA"]);
    shop.held_up_here().await;
    shop.run_at("vendorA", "UPDATE products SET stock = 0 WHERE id = 'p2'")
        .await;
    let id = shop.order(&[("p2", 4)]).await;
    shop.order_told(&id).await;
    held.release().await;
    assert_eq!(sync.ended().await.code, Some(0));
    let id = shop.order(&[("p2", 2)]).await;
    let order = shop.order_with_status(&id, "rejected").await;
    assert_eq!(order["reason"]["available"], 1, "vendorB's alone: {order}");
    shop.run_at("vendorA", "UPDATE products SET stock = 9 WHERE id = 'p2'")
        .await;
    shop.sync().await;
    let id = shop.order(&[("p2", 2)]).await;
    shop.order_with_status(&id, "confirmed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_nobody_else_can_serve_is_cancelled_and_all_of_it_goes_back() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    shop.run_at("vendorA", "UPDATE products SET stock = 3 WHERE id = 'p1'")
        .await;
    let id = shop.order(&[("p1", 4), ("p2", 18), ("p3", 5)]).await;
    shop.order_with_status(&id, "cancelled").await;
    let order = shop.order_told(&id).await;
    insta::assert_json_snapshot!(order["reason"], @r#"
    {
      "code": "vendor_rejected",
      "productId": "p1"
    }
    "#);
    // A take that its return overtook is void, and otherwise both were applied: the stock is the same.
    let of_p1 = updates(&order);
    assert!(of_p1.contains("vendorA p1 -4 rejected"), "{of_p1}");
    eventually("the vendors have everything again", || async {
        let stock = (
            shop.stock_at("vendorA", "p1").await,
            shop.stock_at("vendorA", "p2").await,
            shop.stock_at("vendorB", "p2").await,
            shop.stock_at("vendorB", "p3").await,
        );
        (stock == (3, 15, 5, 20)).then_some(())
    })
    .await;
    shop.sync().await;
    for (product, available) in [("p1", 3), ("p2", 20), ("p3", 20)] {
        assert_eq!(shop.available(product).await, available, "{product}");
    }
    assert_eq!(
        shop.count("SELECT count(*) AS n FROM stock_updates WHERE closed_at IS NULL")
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_asks_for_a_sync_at_once() {
    let shop = Shop::with(ShopOptions {
        config: "[sync]\nschedule = \"0 0 0 1 1 *\"\n".into(),
        ..ShopOptions::default()
    })
    .await;
    let _parts = (shop.open().await, shop.sync_by_schedule());
    eventually("the loop has run at its start", || async {
        let runs = shop
            .count("SELECT min(completed_run) AS n FROM vendors")
            .await;
        (runs == 2).then_some(())
    })
    .await;
    shop.run_at("vendorA", "UPDATE products SET stock = 3 WHERE id = 'p1'")
        .await;
    let id = shop.order(&[("p1", 4)]).await;
    shop.order_with_status(&id, "cancelled").await;
    eventually("the figure is right again", || async {
        (shop.available("p1").await == 3).then_some(())
    })
    .await;
    let id = shop.order(&[("p1", 3)]).await;
    let order = shop.order_told(&id).await;
    assert_eq!(order["status"], json!("confirmed"));
}
