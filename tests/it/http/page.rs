//! The operator's page, as far as it can be seen without a browser.

use std::collections::BTreeSet;

use serde_json::json;
use stockctl::commands::work::WorkQueue;

use crate::support::Shop;

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_its_parts_come_from_here_and_a_browser_that_has_them_is_told_the_same() {
    let shop = Shop::new().await;
    let _serve = shop.serve().await;
    let mut seen = BTreeSet::new();
    for (path, content_type) in [
        ("/", "text/html"),
        ("/page/page.js", "text/javascript"),
        ("/page/page.css", "text/css"),
    ] {
        let url = format!("{}{path}", shop.url);
        let first = shop.http.get(&url).send().await.expect("an answer");
        assert_eq!(first.status(), 200);
        let header = |answer: &reqwest::Response, name: &str| {
            let value = answer
                .headers()
                .get(name)
                .unwrap_or_else(|| panic!("{path}: {name}"));
            value.to_str().expect("text").to_owned()
        };
        assert!(header(&first, "content-type").starts_with(content_type));
        let (etag, may) = (
            header(&first, "etag"),
            header(&first, "content-security-policy"),
        );
        assert!(may.contains("script-src 'self'"), "{may}");
        let text = first.text().await.expect("a body");
        // Every name in quotes that is a path of ours; nothing of it is elsewhere.
        assert!(!text.contains("https://"), "{path} loads nothing");
        seen.extend(
            text.split(['"', '\''])
                .filter(|part| part.starts_with("/page/"))
                .map(str::to_owned),
        );
        let request = shop.http.get(&url).header("if-none-match", &etag);
        let second = request.send().await.expect("an answer");
        assert_eq!(second.status(), 304);
        assert_eq!(header(&second, "content-security-policy"), may);
        assert_eq!(header(&second, "etag"), etag);
    }
    assert_eq!(
        seen.into_iter().collect::<Vec<_>>(),
        ["/page/page.css", "/page/page.js"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_has_what_waits_and_what_was_given_up_however_long_ago() {
    let shop = Shop::new().await;
    shop.sync().await;
    let _api = shop.serve().await;
    let waiting = shop.order(&[("p1", 1)]).await;
    let failed = shop.order(&[("p1", 2)]).await;
    let told = shop.order(&[("p2", 1)]).await;
    let work = shop.work_on(&[WorkQueue::Orders]);
    for id in [&waiting, &failed, &told] {
        shop.order_with_status(id, "confirmed").await;
    }
    work.stop().await;
    for (id, status, reason) in [
        (&waiting, "pending", "NULL"),
        (&failed, "failed", "'{\"code\": \"processing_failed\"}'"),
    ] {
        shop.run_here(&format!(
            "UPDATE orders SET status = '{status}', decided_at = NULL, reason = {reason}, accepted_at = accepted_at - interval '1 hour'
             WHERE id = '{id}'"
        ))
        .await;
    }
    let overview = crate::support::eventually("it is read again", || async {
        let (status, overview) = shop.get("/admin/overview").await;
        assert_eq!(status, 200, "{overview}");
        (overview["failed"]["orders"] == 1).then_some(overview)
    })
    .await;
    assert_eq!(overview["orders"]["confirmed"], 1, "{overview}");
    assert_eq!(overview["orders"]["pending"], 0, "{overview}");
    for standing in [&overview["pending"], &overview["failed"]] {
        assert_eq!(standing["orders"], 1, "{overview}");
        let oldest = standing["oldestSeconds"].as_f64().expect("a number");
        assert!((3600.0..3700.0).contains(&oldest), "{overview}");
    }
    let vendors = overview["vendors"].as_array().expect("a list");
    let unanswered: i64 = vendors
        .iter()
        .map(|vendor| vendor["unanswered"].as_i64().expect("a number"))
        .sum();
    assert_eq!(unanswered, 3, "{overview}");
    assert!(vendors[0]["lagSeconds"].as_f64() > Some(0.0), "{overview}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_sums_up_the_newest_orders() {
    let shop = Shop::new().await;
    let parts = shop.open().await;
    for quantity in [2, 3, 11] {
        let id = shop.order(&[("p1", quantity)]).await;
        shop.order_where(&id, "it is decided", |order| order["status"] != "pending")
            .await;
    }
    // What was read a moment ago is shown again for a second.
    let overview = crate::support::eventually("all three are in it", || async {
        let (status, overview) = shop.get("/admin/overview").await;
        assert_eq!(status, 200, "{overview}");
        let orders = &overview["orders"];
        let all = orders["confirmed"].as_i64()? + orders["rejected"].as_i64()?;
        (all == 3).then_some(overview)
    })
    .await;
    assert_eq!(
        overview["orders"],
        json!({"pending": 0, "confirmed": 2, "rejected": 1, "failed": 0, "cancelled": 0})
    );
    let in_buckets: i64 = overview["buckets"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|bucket| bucket["confirmed"].as_i64().expect("a number"))
        .sum();
    assert_eq!(in_buckets, 2);
    let (half, most) = (
        overview["decision"]["p50Ms"].as_f64(),
        overview["decision"]["p99Ms"].as_f64(),
    );
    assert!(half > Some(0.0) && half <= most, "{half:?} {most:?}");
    for part in parts {
        part.stop().await;
    }
}
