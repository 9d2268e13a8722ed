//! The main job, from an order to the vendors and back.

use serde_json::json;

use crate::support::Shop;

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_confirmed_split_over_vendors_and_reaches_them() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    let id = shop.order(&[("p2", 18)]).await;
    let order = shop.order_told(&id).await;
    assert_eq!(order["status"], "confirmed");
    let taken: Vec<_> = order["updates"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|update| (update["vendorId"].clone(), update["delta"].clone()))
        .collect();
    assert_eq!(
        taken,
        [
            (json!("vendorA"), json!(-15)),
            (json!("vendorB"), json!(-3))
        ]
    );
    assert_eq!(shop.stock_at("vendorA", "p2").await, 0);
    assert_eq!(shop.stock_at("vendorB", "p2").await, 2);
    assert_eq!(shop.available("p2").await, 2);
    shop.sync().await;
    assert_eq!(shop.available("p2").await, 2);
    assert_eq!(
        shop.count("SELECT count(*) AS n FROM stock_updates WHERE state = 'applied'")
            .await,
        2
    );
    assert_eq!(
        shop.count("SELECT sum(abs(open_delta))::bigint AS n FROM stock")
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_beyond_the_stock_is_rejected_with_the_figures() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    let id = shop.order(&[("p1", 11)]).await;
    let order = shop.order_with_status(&id, "rejected").await;
    insta::assert_json_snapshot!(order["reason"], @r#"
    {
      "available": 10,
      "code": "insufficient_stock",
      "productId": "p1",
      "requested": 11
    }
    "#);
    let id = shop.order(&[("p1", 1), ("nothing", 1)]).await;
    let order = shop.order_with_status(&id, "rejected").await;
    insta::assert_json_snapshot!(order["reason"], @r#"
    {
      "code": "unknown_product",
      "productId": "nothing"
    }
    "#);
    assert_eq!(
        shop.available("p1").await,
        10,
        "an order is never partly taken"
    );
}
