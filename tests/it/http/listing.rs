//! Lists: in pages that neither repeat nor leave out, and filtered.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use stockctl::db::orders::READ_FOR_PAGE_MAX;
use stockctl::db::stock;
use stockctl::mq::Queue;

use super::{among_others, ask, send_raw, text};
use crate::dead_letters::letter;
use crate::support::messages::{producer, publish};
use crate::support::{Shop, ShopOptions};

/// Reads all pages, and returns the items of each; the header `Link` leads to the same next page as the cursor.
async fn pages(shop: &Shop, path: &str, list: &str) -> Vec<Vec<Value>> {
    let mut pages = Vec::new();
    let mut cursor = String::new();
    loop {
        let answer = ask(shop, Method::GET, &format!("{path}{cursor}"), &[], "").await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        pages.push(answer.body[list].as_array().expect("a list").clone());
        let link = answer.header("link");
        match answer.body["nextCursor"].as_str() {
            Some(next) => {
                cursor = format!("&cursor={}", encoded(next));
                let expected = format!("<{path}{cursor}>; rel=\"next\"");
                assert_eq!(link, Some(expected.as_str()));
            }
            None => {
                assert_eq!(link, None);
                return pages;
            }
        }
    }
}

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
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
    let encoded = encoded(odd);
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

#[tokio::test(flavor = "multi_thread")]
async fn products_are_found_by_text_vendor_and_stock_at_the_vendors_that_are_configured() {
    let mut shop = Shop::with(ShopOptions {
        vendors: vec![
            (
                "vendorA",
                vec![("bolt-1", 3), ("bolt-2", 0), ("nut_1", 0), ("screw", 4)],
            ),
            ("vendorB", vec![("bolt-2", 7), ("nut_1", 0), ("NUT%2", 1)]),
            ("vendorC", vec![("bolt-1", 5), ("only-c", 9)]),
        ],
        ..ShopOptions::default()
    })
    .await;
    shop.run_at(
        "vendorB",
        "UPDATE products SET name = 'Sechskant M8' WHERE id = 'bolt-2'",
    )
    .await;
    shop.sync().await;
    let api = shop.serve().await;
    let found = async |shop: &Shop, query: &str| {
        let (status, page) = shop.get(&format!("/products{query}")).await;
        assert_eq!(status, 200, "{query}: {page}");
        let products = page["products"].as_array().expect("a list").clone();
        let ids: Vec<String> = products
            .iter()
            .map(|product| text(&product["id"]))
            .collect();
        ids.join(" ")
    };
    for (query, expected) in [
        ("", "NUT%2 bolt-1 bolt-2 nut_1 only-c screw"),
        ("?q=nut", "NUT%2 nut_1"),
        ("?q=%25", "NUT%2"),
        ("?q=_", "nut_1"),
        ("?q=sechskant%20m", "bolt-2"),
        ("?q=PRODUCT%20S", "screw"),
        ("?vendor=vendorB", "NUT%2 bolt-2 nut_1"),
        ("?inStock=true", "NUT%2 bolt-1 bolt-2 only-c screw"),
        ("?inStock=false", "nut_1"),
        ("?vendor=vendorA&inStock=false", "bolt-2 nut_1"),
        ("?vendor=vendorA&inStock=true&q=o", "bolt-1 screw"),
        ("?q=nothing", ""),
    ] {
        assert_eq!(found(&shop, query).await, expected, "{query}");
    }
    let in_pages = pages(&shop, "/products?q=o&limit=2", "products").await;
    assert_eq!(in_pages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2]);
    for (query, problem) in [
        (
            "?vendor=vendorX",
            "\"vendor\" no vendor of that id is configured; GET /vendors lists them",
        ),
        ("?q=", "\"q\" must be 1 to 100 characters, without U+0000"),
        (
            "?q=%00",
            "\"q\" must be 1 to 100 characters, without U+0000",
        ),
        ("?inStock=yes", "\"inStock\" must be true or false"),
    ] {
        let answer = ask(&shop, Method::GET, &format!("/products{query}"), &[], "").await;
        assert_eq!(answer.problem(), format!("400 invalid_parameter {problem}"));
    }
    api.stop().await;
    // Nobody can order what a vendor has that is not configured any more.
    shop.reconfigure(|text| {
        let (before, after) = text.split_once("[vendors.vendorC]\n").expect("its section");
        let rest = after.find("[").map_or("", |end| &after[end..]);
        format!("{before}{rest}")
    });
    let _api = shop.serve().await;
    assert_eq!(found(&shop, "").await, "NUT%2 bolt-1 bolt-2 nut_1 screw");
    let (_, bolt) = shop.get("/products/bolt-1").await;
    assert_eq!(
        (&bolt["available"], bolt["vendors"].as_array().map(Vec::len)),
        (&json!(3), Some(1))
    );
    assert_eq!(shop.get("/products/only-c").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_filtered_products_reads_so_many_and_says_where_the_next_one_goes_on() {
    let shop = Shop::new().await;
    shop.sync().await;
    let _api = shop.serve().await;
    // Two rows for each product, so that a page ends in the middle of one: it is the next page's, whole.
    shop.run_here(&format!(
        "INSERT INTO stock (product_id, vendor_id, name, on_hand, first_on_hand, first_listed_at)
         SELECT to_char(n, 'FM0000000'), vendor, CASE WHEN n IN (0, {middle}, {last}) THEN 'rare' ELSE 'usual' END,
             CASE WHEN vendor = 'vendorB' THEN 1 ELSE 0 END, 0, now()
         FROM generate_series(0, {last}) n, unnest(ARRAY['vendorA', 'vendorB']) vendor
         WHERE (n, vendor) <> (1, 'vendorA')",
        middle = stock::READ_FOR_PAGE_MAX / 2,
        last = stock::READ_FOR_PAGE_MAX / 2 + 10,
    ))
    .await;
    let rare = pages(&shop, "/products?q=rare", "products").await;
    let listed: Vec<Vec<(String, usize)>> = rare
        .iter()
        .map(|page| {
            page.iter()
                .map(|product| {
                    (
                        text(&product["id"]),
                        product["vendors"].as_array().map_or(0, Vec::len),
                    )
                })
                .collect()
        })
        .collect();
    let of = |n: i64| (format!("{n:07}"), 2);
    let middle = stock::READ_FOR_PAGE_MAX / 2;
    assert_eq!(listed, [vec![of(0)], vec![of(middle), of(middle + 10)]]);
    // All of these are in stock at the vendor whose row may be on the other side.
    let none = pages(&shop, "/products?inStock=false", "products").await;
    assert_eq!(none.iter().flatten().count(), 0, "{none:?}");
    let of_one = pages(&shop, "/products?vendor=vendorB&q=rare", "products").await;
    assert_eq!(of_one.iter().map(Vec::len).collect::<Vec<_>>(), [3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_the_newest_is_told_so_and_large_answers_are_compressed() {
    let products: Vec<(&'static str, i64)> = vec![
        ("a", 1),
        ("b", 2),
        ("c", 3),
        ("d", 4),
        ("e", 5),
        ("f", 6),
        ("g", 7),
    ];
    let shop = Shop::with(ShopOptions {
        vendors: vec![("vendorA", products)],
        ..ShopOptions::default()
    })
    .await;
    shop.sync().await;
    let _api = shop.serve().await;
    for path in ["/products/a", "/products?limit=3"] {
        shop.sync().await;
        let first = ask(&shop, Method::GET, path, &[], "").await;
        let version = first.header("etag").expect("a version").to_owned();
        assert_eq!(first.header("cache-control"), Some("private, no-cache"));
        let known = [("if-none-match", version.as_str())];
        let same = ask(&shop, Method::GET, path, &known, "").await;
        assert_eq!(
            (same.status, same.header("etag")),
            (304, Some(version.as_str())),
            "{path}"
        );
        let other = ask(&shop, Method::GET, path, &[("if-none-match", "\"x\"")], "").await;
        assert_eq!((other.status, &other.body), (200, &first.body));
        // A sync that finds everything as it was is nothing to load it all again for.
        shop.sync().await;
        let synced = ask(&shop, Method::GET, path, &known, "").await;
        assert_eq!(synced.status, 304, "{path}");
        let shown = ask(&shop, Method::GET, path, &[], "").await;
        assert_ne!(shown.body, first.body, "{path} has the time of the sync");
        assert_eq!(shown.header("etag"), Some(version.as_str()));
        shop.run_here("UPDATE stock SET on_hand = on_hand + 1 WHERE product_id = 'a'")
            .await;
        let changed = ask(&shop, Method::GET, path, &known, "").await;
        assert_eq!(changed.status, 200, "{path}");
        assert_ne!(changed.header("etag"), Some(version.as_str()));
    }
    let head = async |path: &str, encoding: &str| {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: {encoding}\r\nConnection: close\r\n\r\n"
        );
        let answer = send_raw(&shop, request.as_bytes()).await;
        answer
            .split("\r\n\r\n")
            .next()
            .expect("a head")
            .to_lowercase()
    };
    let packed = head("/products", "br, gzip;q=0.8").await;
    assert!(
        packed.contains("content-encoding: gzip") && packed.contains("vary: accept-encoding"),
        "{packed}"
    );
    let plain = head("/products", "br").await;
    assert!(
        !plain.contains("content-encoding") && plain.contains("vary: accept-encoding"),
        "{plain}"
    );
    let tiny = head("/products/a", "gzip").await;
    assert!(!tiny.contains("content-encoding"), "{tiny}");
}

#[tokio::test(flavor = "multi_thread")]
async fn vendors_are_listed_in_pages() {
    let of = |id| (id, vec![("p1", 1)]);
    let shop = Shop::with(ShopOptions {
        vendors: ["vendorA", "vendorB", "vendorC"].map(of).into(),
        ..ShopOptions::default()
    })
    .await;
    let _api = shop.serve().await;
    for (limit, expected) in [(1, vec![1, 1, 1]), (2, vec![2, 1]), (3, vec![3])] {
        let pages = pages(&shop, &format!("/vendors?limit={limit}"), "vendors").await;
        let sizes: Vec<usize> = pages.iter().map(Vec::len).collect();
        assert_eq!(sizes, expected);
        let ids: Vec<String> = pages.iter().flatten().map(|v| text(&v["id"])).collect();
        assert_eq!(ids, ["vendorA", "vendorB", "vendorC"]);
    }
    let beyond = ask(&shop, Method::GET, "/vendors?cursor=x", &[], "").await;
    assert_eq!(beyond.body, json!({"vendors": [], "nextCursor": null}));
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_in_pages_each_once_also_those_that_are_alike() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let letters = [
        ("a", "invalid_message"),
        ("b", "crash_loop"),
        ("b", "crash_loop"),
        ("c", "invalid_message"),
        ("b", "crash_loop"),
        ("d", "invalid_message"),
    ];
    let publisher = producer(&shop.broker()).await;
    let sent = letters.map(|(id, reason)| letter(Queue::OrdersDlq, id, reason, "{}"));
    publish(&publisher, sent.into()).await;
    let queue = "/admin/dead-letters/orders_dlq";
    let ids = |letters: &[Value]| -> Vec<String> {
        let ids = letters.iter().map(|letter| text(&letter["messageId"]));
        ids.collect()
    };
    for limit in [1, 2, 4, 6] {
        let pages = pages(&shop, &format!("{queue}?limit={limit}"), "deadLetters").await;
        assert_eq!(ids(&pages.concat()), letters.map(|(id, _)| id));
    }
    let filtered = format!("{queue}?limit=2&reason=crash_loop");
    let filtered = pages(&shop, &filtered, "deadLetters").await;
    assert_eq!(ids(&filtered.concat()), ["b", "b", "b"]);

    // What stood before the place is gone: it goes on at the same place. The place itself is: it is told.
    let (_, page) = shop.get(&format!("{queue}?limit=4")).await;
    let behind = format!("{queue}?cursor={}", text(&page["nextCursor"]));
    let (status, _) = shop
        .post(&format!("{queue}/drop"), json!({"messageId": "a"}))
        .await;
    assert_eq!(status, 200);
    let (_, rest) = shop.get(&behind).await;
    assert_eq!(
        ids(rest["deadLetters"].as_array().expect("a list")),
        ["b", "d"]
    );
    let (status, _) = shop
        .post(&format!("{queue}/drop"), json!({"messageId": "c"}))
        .await;
    assert_eq!(status, 200);
    let gone = ask(&shop, Method::GET, &behind, &[], "").await;
    insta::assert_snapshot!(gone.problem(), @r#"400 invalid_parameter "cursor" the letter at which that page ended is not in the queue any more; begin again without a cursor"#);
    let odd = format!("{queue}?cursor=x");
    let odd = ask(&shop, Method::GET, &odd, &[], "").await;
    insta::assert_snapshot!(odd.problem(), @r#"400 invalid_parameter "cursor" must be a nextCursor of an earlier answer"#);
}
