//! Lists: in pages that neither repeat nor leave out, and filtered.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::{Value, json};

use stockctl::db::orders::READ_FOR_PAGE_MAX;

use super::{among_others, text};
use crate::support::{Shop, ShopOptions};

/// Reads all pages, and returns the items of each.
async fn pages(shop: &Shop, path: &str, list: &str) -> Vec<Vec<Value>> {
    let mut pages = Vec::new();
    let mut cursor = String::new();
    loop {
        let (status, page) = shop.get(&format!("{path}{cursor}")).await;
        assert_eq!(status, 200, "{page}");
        pages.push(page[list].as_array().expect("a list").clone());
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return pages,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_listed_newest_first_each_once_while_new_ones_come() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let before: BTreeSet<String> = join_all((0..60).map(|_| shop.order(&[("p1", 1)])))
        .await
        .into_iter()
        .collect();
    let reading = pages(&shop, "/orders?limit=7", "orders");
    let coming = async {
        for _ in 0..5 {
            join_all((0..8).map(|_| shop.order(&[("p2", 1)]))).await;
        }
    };
    let (pages, ()) = tokio::join!(reading, coming);
    let (last, full) = pages.split_last().expect("a page");
    assert!(full.iter().all(|page| page.len() == 7) && (1..=7).contains(&last.len()));
    let listed: Vec<Value> = pages.into_iter().flatten().collect();
    let ids: BTreeSet<String> = listed.iter().map(|order| text(&order["id"])).collect();
    assert_eq!(ids.len(), listed.len(), "no order twice");
    assert!(ids.is_superset(&before), "no order is left out");
    let places: Vec<(chrono::DateTime<chrono::Utc>, String)> = listed
        .iter()
        .map(|order| {
            (
                text(&order["acceptedAt"]).parse().expect("a time"),
                text(&order["id"]),
            )
        })
        .collect();
    assert!(places.is_sorted_by(|a, b| a > b), "newest first");
    assert_eq!(
        shop.get("/orders?limit=200").await.1["nextCursor"],
        Value::Null
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_of_one_moment_are_paged_apart() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let ids: BTreeSet<String> = join_all((0..9).map(|_| shop.order(&[("p1", 1)])))
        .await
        .into_iter()
        .collect();
    shop.run_here("UPDATE orders SET accepted_at = '2026-01-01 00:00:00.123456Z'")
        .await;
    let pages = pages(&shop, "/orders?limit=3", "orders").await;
    assert_eq!(pages.len(), 3);
    let listed: BTreeSet<String> = pages
        .iter()
        .flatten()
        .map(|order| text(&order["id"]))
        .collect();
    assert_eq!(listed, ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_listed_by_status_and_product() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    let odd = "p\"}] 'ü";
    let confirmed = shop.order(&[("p1", 1), ("p3", 1)]).await;
    let rejected = shop.order(&[("p1", 11)]).await;
    let unknown = shop.order(&[(odd, 1)]).await;
    let taken_back = shop.order(&[("p2", 1)]).await;
    let order = shop.order_told(&confirmed).await;
    shop.order_with_status(&rejected, "rejected").await;
    shop.order_with_status(&unknown, "rejected").await;
    shop.order_with_status(&taken_back, "confirmed").await;
    let (status, _) = shop
        .post(&format!("/orders/{taken_back}/cancel"), json!({}))
        .await;
    assert_eq!(status, 200);
    let encoded: String = url::form_urlencoded::byte_serialize(odd.as_bytes()).collect();
    for (query, expected) in [
        (
            String::new(),
            vec![&taken_back, &unknown, &rejected, &confirmed],
        ),
        ("?status=confirmed".into(), vec![&confirmed]),
        ("?status=rejected".into(), vec![&unknown, &rejected]),
        ("?status=cancelled".into(), vec![&taken_back]),
        ("?status=pending".into(), vec![]),
        ("?status=failed".into(), vec![]),
        ("?productId=p1".into(), vec![&rejected, &confirmed]),
        ("?productId=p1&status=rejected".into(), vec![&rejected]),
        ("?productId=p".into(), vec![]),
        (format!("?productId={encoded}"), vec![&unknown]),
        ("?productId=p1&limit=1".into(), vec![&rejected]),
    ] {
        let (status, page) = shop.get(&format!("/orders{query}")).await;
        assert_eq!(status, 200, "{page}");
        let listed: Vec<String> = page["orders"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|o| text(&o["id"]))
            .collect();
        let expected: Vec<String> = expected.into_iter().cloned().collect();
        assert_eq!(listed, expected, "{query}");
    }
    // A list shows an order as it is shown alone.
    let (_, page) = shop.get("/orders?status=confirmed").await;
    assert_eq!(page["orders"][0], among_others(order));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_filtered_orders_reads_so_many_and_says_where_the_next_one_goes_on() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    // The oldest is what is asked for, and so is the newest; a page and a bit lie between.
    shop.run_here(&format!(
        "INSERT INTO orders (id, caller, lines, accepted_at)
         SELECT gen_random_uuid(), 'local',
             jsonb_build_array(jsonb_build_object('productId', CASE WHEN n IN (0, {last}) THEN 'rare' ELSE 'p1' END, 'quantity', 1)),
             timestamptz '2026-01-01' + n * interval '1 second'
         FROM generate_series(0, {last}) n",
        last = READ_FOR_PAGE_MAX + 10
    ))
    .await;
    let pages = pages(&shop, "/orders?productId=rare&status=pending", "orders").await;
    let sizes: Vec<usize> = pages.iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, 1]);
    assert_eq!(pages[0][0]["lines"][0]["productId"], "rare");
    assert!(text(&pages[0][0]["acceptedAt"]) > text(&pages[1][0]["acceptedAt"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn products_are_listed_in_pages_with_all_their_vendors() {
    let shop = Shop::with(ShopOptions {
        vendors: vec![
            (
                "vendorA",
                vec![("a", 1), ("b", 2), ("B", 3), ("ä", 4), ("c/d", 5)],
            ),
            ("vendorB", vec![("a", 10), ("b", 20), ("z", 0)]),
        ],
        ..ShopOptions::default()
    })
    .await;
    let _api = shop.serve().await;
    assert_eq!(
        shop.get("/products").await,
        (200, json!({"products": [], "nextCursor": null}))
    );
    shop.sync().await;
    let pages = pages(&shop, "/products?limit=2", "products").await;
    let listed: Vec<(String, i64, usize)> = pages
        .iter()
        .flatten()
        .map(|p| {
            (
                text(&p["id"]),
                p["available"].as_i64().expect("a number"),
                p["vendors"].as_array().expect("a list").len(),
            )
        })
        .collect();
    let expected = [
        ("B", 3, 1),
        ("a", 11, 2),
        ("b", 22, 2),
        ("c/d", 5, 1),
        ("z", 0, 1),
        ("ä", 4, 1),
    ];
    assert_eq!(
        listed,
        expected.map(|(id, available, vendors)| (id.to_owned(), available, vendors))
    );
    assert_eq!(pages.len(), 3);
    for (path, id) in [("/products/c%2Fd", "c/d"), ("/products/%C3%A4", "ä")] {
        let (status, shown) = shop.get(path).await;
        assert_eq!((status, &shown["id"]), (200, &json!(id)), "{shown}");
    }
    let (_, mut shown) = shop.get("/products/a").await;
    for vendor in shown["vendors"].as_array_mut().expect("a list") {
        assert!(vendor["lastSyncAt"].is_string());
        vendor["lastSyncAt"] = json!("[time]");
    }
    insta::assert_json_snapshot!(shown, @r#"
    {
      "available": 11,
      "id": "a",
      "name": "Product a",
      "shortfall": 0,
      "vendors": [
        {
          "available": 1,
          "lastSyncAt": "[time]",
          "name": "Product a",
          "onHand": 1,
          "open": 0,
          "shortfall": 0,
          "vendorId": "vendorA"
        },
        {
          "available": 10,
          "lastSyncAt": "[time]",
          "name": "Product a",
          "onHand": 10,
          "open": 0,
          "shortfall": 0,
          "vendorId": "vendorB"
        }
      ]
    }
    "#);
}
