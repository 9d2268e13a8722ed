//! The vendor's side, `POST /vendors/{v}/stock-updates`: each update at most once, and its recorded outcome for ever.

use futures_util::future::join_all;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Shop, ShopOptions};

/// A shop of one vendor, which serves its API.
async fn vendor_with(products: Vec<(&'static str, i64)>) -> (Shop, crate::support::Running) {
    let shop = Shop::with(ShopOptions {
        vendors: vec![("vendorA", products)],
        config: String::new(),
    })
    .await;
    let serving = shop.serve().await;
    (shop, serving)
}

fn new_id() -> String {
    Uuid::now_v7().to_string()
}

fn take(id: &str, product: &str, units: i64) -> Value {
    json!({"id": id, "productId": product, "delta": -units})
}

fn give_back(id: &str, of: &str, product: &str, units: i64) -> Value {
    json!({"id": id, "productId": product, "delta": units, "reverses": of})
}

/// Sends updates, and returns for each its outcome, the reason and the stock.
async fn send(shop: &Shop, updates: &[Value]) -> Vec<String> {
    let (status, answer) = shop
        .post(
            "/vendors/vendorA/stock-updates",
            json!({ "updates": updates }),
        )
        .await;
    assert_eq!(status, 200, "{answer}");
    let results = answer["results"].as_array().expect("a list");
    let sent: Vec<&Value> = updates.iter().map(|update| &update["id"]).collect();
    let answered: Vec<&Value> = results.iter().map(|result| &result["id"]).collect();
    assert_eq!(answered, sent, "a result for each update, in their order");
    results
        .iter()
        .map(|result| {
            let stock = result.get("stock").map_or("-".into(), Value::to_string);
            let reason = result["reason"].as_str().unwrap_or("-");
            let outcome = result["outcome"].as_str().expect("a text");
            format!("{outcome} {reason} {stock}")
        })
        .collect()
}

fn outcome(result: &str) -> &str {
    result.split(' ').next().unwrap_or_default()
}

async fn entries(shop: &Shop) -> i64 {
    shop.count_at("vendorA", "SELECT count(*) AS n FROM stock_ledger")
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_comes_many_times_at_once_is_applied_once() {
    let (shop, _serving) = vendor_with(vec![("p1", 10)]).await;
    let id = new_id();
    let updates = [take(&id, "p1", 3)];
    let answers = join_all((0..20).map(|_| send(&shop, &updates))).await;
    assert!(answers.iter().all(|a| *a == ["applied - 7"]), "{answers:?}");
    assert_eq!(shop.stock_at("vendorA", "p1").await, 7);
    assert_eq!(entries(&shop).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn takes_that_can_all_be_met_are_answered_as_if_each_came_alone() {
    let (shop, _serving) = vendor_with(vec![("p1", 10), ("p2", 5)]).await;
    let met = [
        take(&new_id(), "p1", 3),
        take(&new_id(), "p2", 1),
        take(&new_id(), "p1", 4),
    ];
    let answers = send(&shop, &met).await;
    assert_eq!(answers, ["applied - 7", "applied - 4", "applied - 3"]);
    assert_eq!(shop.stock_at("vendorA", "p1").await, 3);
    assert_eq!(entries(&shop).await, 3);
    // One of these cannot, and one was taken before: neither holds up its neighbours, nor is anything taken twice.
    let not_all = [
        take(&new_id(), "p2", 1),
        take(&new_id(), "p1", 4),
        met[1].clone(),
    ];
    let answers = send(&shop, &not_all).await;
    assert_eq!(
        answers,
        [
            "applied - 3",
            "rejected insufficient_stock 3",
            "applied - 3"
        ]
    );
    assert_eq!(shop.stock_at("vendorA", "p2").await, 3);
    assert_eq!(entries(&shop).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recorded_outcome_is_answered_again_whatever_the_stock_is_now() {
    let (shop, _serving) = vendor_with(vec![("p1", 10)]).await;
    let updates = [
        take(&new_id(), "p1", 11),
        take(&new_id(), "p1", 3),
        take(&new_id(), "p9", 1),
    ];
    insta::assert_debug_snapshot!(send(&shop, &updates).await, @r#"
    [
        "rejected insufficient_stock 10",
        "applied - 7",
        "rejected unknown_product -",
    ]
    "#);
    shop.run_at(
        "vendorA",
        "UPDATE products SET stock = 100; INSERT INTO products VALUES ('p9', 'new', 5)",
    )
    .await;
    insta::assert_debug_snapshot!(send(&shop, &updates).await, @r#"
    [
        "rejected insufficient_stock 100",
        "applied - 100",
        "rejected insufficient_stock 5",
    ]
    "#);
    shop.run_at("vendorA", "UPDATE products SET stock = 0")
        .await;
    insta::assert_debug_snapshot!(send(&shop, &updates).await, @r#"
    [
        "rejected insufficient_stock 0",
        "applied - 0",
        "rejected insufficient_stock 0",
    ]
    "#);
    shop.run_at("vendorA", "DELETE FROM products").await;
    let again = send(&shop, &updates).await;
    let again: Vec<&str> = again.iter().map(|result| outcome(result)).collect();
    assert_eq!(again, ["rejected", "applied", "rejected"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_id_with_another_content_is_refused_and_its_neighbours_are_not() {
    let (shop, _serving) = vendor_with(vec![("p1", 10), ("p2", 15)]).await;
    let (known, returned) = (new_id(), new_id());
    send(
        &shop,
        &[take(&known, "p1", 1), give_back(&returned, &known, "p1", 1)],
    )
    .await;
    let results = send(
        &shop,
        &[
            take(&known, "p1", 2),
            take(&new_id(), "p1", 4),
            take(&known, "p2", 1),
            give_back(&known, &new_id(), "p1", 1),
            give_back(&returned, &new_id(), "p1", 1),
            // A return of another amount, and of another product, than was taken.
            give_back(&new_id(), &known, "p1", 5),
            give_back(&new_id(), &known, "p2", 1),
            take(&known, "p1", 1),
        ],
    )
    .await;
    insta::assert_debug_snapshot!(results, @r#"
    [
        "conflict id_used_for_another_update 10",
        "applied - 6",
        "conflict id_used_for_another_update 15",
        "conflict id_used_for_another_update 6",
        "conflict id_used_for_another_update 6",
        "conflict id_used_for_another_update 6",
        "conflict id_used_for_another_update 15",
        "applied - 6",
    ]
    "#);
    assert_eq!(entries(&shop).await, 3);
    assert_eq!(shop.stock_at("vendorA", "p2").await, 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_return_gives_back_only_what_was_applied() {
    let (shop, _serving) = vendor_with(vec![("p1", 10)]).await;
    let (applied, rejected, unseen) = (new_id(), new_id(), new_id());
    let takes = [take(&applied, "p1", 3), take(&rejected, "p1", 30)];
    insta::assert_debug_snapshot!(send(&shop, &takes).await, @r#"
    [
        "applied - 7",
        "rejected insufficient_stock 7",
    ]
    "#);
    let returns = [
        give_back(&new_id(), &applied, "p1", 3),
        give_back(&new_id(), &rejected, "p1", 30),
        give_back(&new_id(), &unseen, "p1", 2),
    ];
    insta::assert_debug_snapshot!(send(&shop, &returns).await, @r#"
    [
        "applied - 10",
        "void returned_before_taken 10",
        "void returned_before_taken 10",
    ]
    "#);
    assert_eq!(
        send(&shop, &[take(&unseen, "p1", 2)]).await,
        ["void returned_before_taken 10"],
        "the take that comes late is never applied"
    );
    assert_eq!(entries(&shop).await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_twice_in_one_request_is_one_update() {
    let (shop, _serving) = vendor_with(vec![("p1", 10)]).await;
    let (id, late, back) = (new_id(), new_id(), new_id());
    let results = send(
        &shop,
        &[
            take(&id, "p1", 3),
            take(&id, "p1", 3),
            take(&id, "p1", 4),
            give_back(&back, &id, "p1", 3),
            give_back(&back, &id, "p1", 3),
            give_back(&new_id(), &late, "p1", 2),
            take(&late, "p1", 2),
        ],
    )
    .await;
    insta::assert_debug_snapshot!(results, @r#"
    [
        "applied - 7",
        "applied - 7",
        "conflict id_used_for_another_update 7",
        "applied - 10",
        "applied - 10",
        "void returned_before_taken 10",
        "void returned_before_taken 10",
    ]
    "#);
    assert_eq!(shop.stock_at("vendorA", "p1").await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_never_goes_below_zero_whoever_takes_at_the_same_time() {
    let (shop, _serving) = vendor_with(vec![("p1", 20), ("p2", 20)]).await;
    // Half of the requests name the products in the other order.
    let requests = (0..30_i64).map(|n| {
        let mut updates = vec![
            take(&new_id(), "p1", n % 3 + 1),
            take(&new_id(), "p2", n % 2 + 1),
        ];
        if n % 2 == 0 {
            updates.reverse();
        }
        let shop = &shop;
        async move { (send(shop, &updates).await, updates) }
    });
    let mut taken = std::collections::BTreeMap::from([("p1", 0), ("p2", 0)]);
    for (results, updates) in join_all(requests).await {
        for (result, update) in results.iter().zip(updates) {
            let product = if update["productId"] == "p1" {
                "p1"
            } else {
                "p2"
            };
            if outcome(result) == "applied" {
                *taken.entry(product).or_default() -= update["delta"].as_i64().expect("a number");
            } else {
                assert_eq!(outcome(result), "rejected");
            }
        }
    }
    for product in ["p1", "p2"] {
        let stock = shop.stock_at("vendorA", product).await;
        assert!(stock >= 0);
        assert_eq!(taken[product], 20 - stock, "{product}");
        assert!(stock < 3, "what was rejected was more than there is");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_take_and_its_return_at_the_same_time_leave_the_stock_as_it_was() {
    let (shop, _serving) = vendor_with(vec![("p1", 100)]).await;
    let pairs = (0..15).map(|_| {
        let (id, back) = (new_id(), new_id());
        let shop = &shop;
        async move {
            let (taking, returning) = ([take(&id, "p1", 2)], [give_back(&back, &id, "p1", 2)]);
            let (taken, returned) = tokio::join!(send(shop, &taking), send(shop, &returning));
            assert_eq!(outcome(&taken[0]), outcome(&returned[0]));
        }
    });
    join_all(pairs).await;
    assert_eq!(shop.stock_at("vendorA", "p1").await, 100);
    assert_eq!(entries(&shop).await, 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_id_for_two_products_at_the_same_time_is_recorded_once() {
    // No lock on a product keeps these apart: they concern two, of which the vendor may list none.
    let (shop, _serving) = vendor_with(vec![("p1", 100), ("p2", 100)]).await;
    for (one, other, recorded) in [("p1", "p2", "applied"), ("p8", "p9", "rejected")] {
        for _ in 0..10 {
            let id = new_id();
            let (a, b) = ([take(&id, one, 1)], [take(&id, other, 1)]);
            let (a, b) = tokio::join!(send(&shop, &a), send(&shop, &b));
            let mut outcomes = [outcome(&a[0]), outcome(&b[0])];
            outcomes.sort_unstable();
            let mut expected = [recorded, "conflict"];
            expected.sort_unstable();
            assert_eq!(outcomes, expected);
        }
    }
    let left = shop.stock_at("vendorA", "p1").await + shop.stock_at("vendorA", "p2").await;
    assert_eq!(left, 190);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_cannot_be_one_is_refused_with_all_of_its_request() {
    let (shop, _serving) = vendor_with(vec![("p1", 10)]).await;
    let id = new_id();
    for (update, pointer) in [
        (
            json!({"id": new_id(), "productId": "p1", "delta": 0}),
            "/updates/1/delta",
        ),
        (
            json!({"id": new_id(), "productId": "p1", "delta": i64::MIN}),
            "/updates/1/delta",
        ),
        (
            json!({"id": new_id(), "productId": "p1", "delta": i64::MAX, "reverses": new_id()}),
            "/updates/1/delta",
        ),
        (
            json!({"id": new_id(), "productId": "p1", "delta": -0.5}),
            "/updates/1/delta",
        ),
        (
            json!({"id": new_id(), "productId": "p1", "delta": 1}),
            "/updates/1/reverses",
        ),
        (
            json!({"id": new_id(), "productId": "p1", "delta": -1, "reverses": new_id()}),
            "/updates/1/reverses",
        ),
        (give_back(&id, &id, "p1", 1), "/updates/1/reverses"),
        (
            json!({"id": "7", "productId": "p1", "delta": -1}),
            "/updates/1/id",
        ),
        (
            json!({"id": new_id(), "productId": "a\u{0}b", "delta": -1}),
            "/updates/1/productId",
        ),
        (
            json!({"id": new_id(), "productId": "p1", "delta": -1, "extra": 1}),
            "/updates/1/extra",
        ),
    ] {
        let body = json!({"updates": [take(&new_id(), "p1", 1), update]});
        let (status, problem) = shop.post("/vendors/vendorA/stock-updates", body).await;
        assert_eq!(status, 422, "{problem}");
        let text = problem.to_string();
        assert!(text.contains(&format!("{pointer}\"")), "{pointer}: {text}");
    }
    let (status, _) = shop
        .post(
            "/vendors/nobody/stock-updates",
            json!({"updates": [take(&id, "p1", 1)]}),
        )
        .await;
    assert_eq!(status, 404);
    assert_eq!(shop.stock_at("vendorA", "p1").await, 10);
    assert_eq!(entries(&shop).await, 0);
}
