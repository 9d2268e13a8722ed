//! The load generator, against a shop: what it reports is what happened.

use serde_json::Value;

use crate::support::{Process, Shop, ShopOptions};

async fn report(shop: &Shop, arguments: &[&str]) -> Value {
    let fixed = ["bench", "--url", &shop.url, "--json", "--warm-up", "0"];
    let ended = Process::run(&[&fixed, arguments].concat()).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_reports_is_what_really_ended() {
    let shop = Shop::with(ShopOptions {
        vendors: vec![("vendorA", vec![("p1", 30), ("p2", 1_000_000)])],
        ..ShopOptions::default()
    })
    .await;
    let _parts = shop.open().await;
    let closed = report(
        &shop,
        &["--duration", "1", "--connections", "4", "--lines", "2"],
    )
    .await;
    let orders = |report: &Value, stage: &str| report[stage]["orders"].as_i64().expect("a number");
    let accepted = orders(&closed, "accepted");
    assert!(accepted > 0, "{closed}");
    for stage in ["decided", "told"] {
        assert_eq!(orders(&closed, stage), accepted, "{closed}");
        assert!(closed[stage]["per_second"].as_f64() > Some(0.0), "{closed}");
    }
    assert_eq!(closed["unfinished"], 0, "{closed}");
    // Where p1 is sold out by then, what was rejected is decided too.
    for status in ["confirmed", "rejected"] {
        let count = shop
            .count(&format!(
                "SELECT count(*) AS n FROM orders WHERE status = '{status}' AND reference LIKE 'bench%'"
            ))
            .await;
        let reported = closed["by_status"][status].as_i64().unwrap_or(0);
        assert_eq!(reported, count, "{status} in {closed}");
    }

    // At a rate it sends as many as were asked for, and no more.
    let open = report(
        &shop,
        &["--duration", "2", "--rate", "20", "--distribution", "hot"],
    )
    .await;
    assert_eq!(orders(&open, "accepted"), 40, "{open}");
    let of_hot = "SELECT count(*) AS n FROM orders WHERE lines @> '[{\"productId\": \"p2\"}]' AND jsonb_array_length(lines) = 1
                  AND accepted_at > (SELECT max(accepted_at) - interval '2 seconds' FROM orders)";
    assert_eq!(shop.count(of_hot).await, 0, "the hot one is the first");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_keys_are_required_it_measures_with_one() {
    let mut shop = Shop::new().await;
    shop.reconfigure(|text| text.replace("[http]\n", "[http]\nrequire_keys = true\n"));
    let arguments = [
        "keys",
        "create",
        "bench",
        "--scope",
        "orders:write,orders:read",
    ];
    let made = shop.run(&arguments).await;
    let key = made.stdout.lines().next().expect("a key").to_owned();
    shop.sync().await;
    // Its vendors' API asks for a key too, so nothing is told.
    let _parts = (shop.serve().await, shop.work());
    let fixed = [
        "bench",
        "--url",
        &shop.url,
        "--json",
        "--warm-up",
        "0",
        "--duration",
        "1",
        // So many are enough to see who is let in.
        "--rate",
        "10",
    ];
    let refused = Process::run(&[&fixed[..], &["--drain", "1"]].concat()).await;
    assert_eq!(refused.code, Some(4), "{refused:?}");
    assert!(refused.stderr.contains("401"), "{refused:?}");
    crate::support::eventually("the key is known", || async {
        let asked = shop
            .http
            .get(format!("{}/orders", shop.url))
            .bearer_auth(&key);
        let answer = asked.send().await.ok()?;
        (answer.status() == 200).then_some(())
    })
    .await;
    for (argument, variables) in [
        (&["--api-key", key.as_str()][..], &[][..]),
        (&[], &[("STOCKCTL_API_KEY", key.as_str())]),
    ] {
        let arguments = [&fixed[..], &["--drain", "1"], argument].concat();
        let ended = Process::start(&arguments, variables).ended().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        assert!(report["accepted"]["orders"].as_i64() > Some(0), "{report}");
        assert!(!ended.stderr.contains(&key), "{ended:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_measured_is_told_why() {
    for (arguments, code, text) in [
        (["--url", "http://127.0.0.1:1"], 4, "cannot be reached"),
        (
            ["--url", "https://127.0.0.1:1"],
            2,
            "only http:// is spoken",
        ),
        (["--zipf-exponent", "11"], 2, "must be 0 to 10"),
        (["--connections", "0"], 2, "1..=10000"),
    ] {
        let ended = Process::run(&[&["bench"], arguments.as_slice()].concat()).await;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(ended.stderr.contains(text), "{ended:?}");
        assert_eq!(ended.stdout, "");
    }
}
