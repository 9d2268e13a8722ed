//! Whatever is cut or killed in the middle of it, nothing is lost, and what comes twice has the same id.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{names, products, shop_with, subscribe, tell_of};
use crate::support::receiver::{Came, Receiver, Reply};
use crate::support::{Process, Proxy, eventually};

/// That each product has come with one id, however often.
fn assert_one_id_each(came: &[Came]) {
    let mut ids = BTreeMap::new();
    for came in came {
        let product = came.body["productId"].to_string();
        let first = ids.entry(product).or_insert_with(|| came.id.clone());
        assert_eq!(*first, came.id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_leaves_what_it_had_to_the_next_and_its_log_has_no_secret() {
    let hangs = Arc::new(AtomicBool::new(true));
    let does_hang = Arc::clone(&hangs);
    let receiver = Receiver::start(move |_| match does_hang.load(Ordering::SeqCst) {
        true => Reply::Nothing,
        false => Reply::Status(200),
    });
    let mut shop = shop_with("timeout_ms = 60000").await;
    shop.reconfigure(|text| {
        format!("{text}[log]\nlevel = \"info,stockctl=trace,reqwest=trace,hyper_util=trace\"\n")
    });
    let _api = shop.serve().await;
    subscribe(&shop, &receiver.url("/hook?token=hush"), &[]).await;
    let mut first = shop.start(&["work", "--queue", "webhooks"]);
    first.writes("feeds the queue of webhooks").await;
    tell_of(&shop, &["p1".to_owned()]).await;
    let begun = receiver.came("/hook?token=hush", 1).await;
    first.kill().await;
    hangs.store(false, Ordering::SeqCst);
    let mut second = shop.start(&["work", "--queue", "webhooks"]);
    let came = receiver.came("/hook?token=hush", 2).await;
    assert_eq!((&came[1].id, &came[1].body), (&begun[0].id, &begun[0].body));
    // The other one feeds now.
    tell_of(&shop, &["p2".to_owned()]).await;
    // The first one may have put p1 into the broker without living to note it: then that comes once more.
    let came = eventually("it is told of p2 as well", || async {
        let came = receiver.at_path("/hook?token=hush");
        (products(&came) == ["p1", "p2"]).then_some(came)
    })
    .await;
    assert_one_id_each(&came);
    second.writes("feeds the queue of webhooks").await;
    // One that put events into the broker and did not live to note it does so again.
    shop.run_here("UPDATE webhooks SET told_xid = '3', told_row = 0, told_index = 0")
        .await;
    let before = came.len();
    second.kill().await;
    let third = shop.start(&["work", "--queue", "webhooks"]);
    let came = receiver.came("/hook?token=hush", before + 2).await;
    assert_one_id_each(&came);
    let log = third.writes("feeds the queue of webhooks").await;
    assert!(!log.contains("C2FVsBQIhrsc"), "{log}");
    assert!(!log.contains("whsec_"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stands_still_with_its_connections_as_they_were_does_not_keep_others_from_feeding()
 {
    let receiver = Receiver::start(|_| Reply::Status(200));
    let mut shop = shop_with("").await;
    shop.reconfigure(|text| format!("{text}[log]\nlevel = \"debug\"\n"));
    let _api = shop.serve().await;
    subscribe(&shop, &receiver.url("/hook"), &[]).await;
    let stopped = shop.start(&["work", "--queue", "webhooks"]);
    stopped.writes("feeds the queue of webhooks").await;
    stopped.pause().await;
    let other = shop.start(&["work", "--queue", "webhooks"]);
    other.writes("feeds the queue of webhooks").await;
}

fn port(url: &str) -> u16 {
    let url: url::Url = url.parse().expect("a URL");
    url.port().expect("a port")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_and_a_database_that_go_away_in_between_cost_no_event() {
    let receiver = Receiver::start(|_| Reply::Status(200));
    let shop = shop_with("").await;
    let _api = shop.serve().await;
    subscribe(&shop, &receiver.url("/hook"), &[]).await;
    // The worker alone is cut off, so that other tests keep their servers.
    let broker = format!(":{}/", port(&shop.broker().urls[0]));
    let before_broker = Proxy::before(format!("127.0.0.1{}", broker.trim_end_matches('/'))).await;
    let database = format!(":{}/", port(shop.own_database_url()));
    let before_database =
        Proxy::before(format!("127.0.0.1{}", database.trim_end_matches('/'))).await;
    let file = shop.config_file_with(
        "worker.toml",
        &broker,
        &format!(":{}/", before_broker.address.port()),
    );
    let text = std::fs::read_to_string(&file).expect("readable");
    let proxied = format!(":{}/", before_database.address.port());
    std::fs::write(&file, text.replace(&database, &proxied)).expect("written");
    let worker = Process::configured(&file, &["work", "--queue", "webhooks"]);
    worker.writes("feeds the queue of webhooks").await;
    let mut expected = 0;
    for (round, proxy) in [&before_broker, &before_database, &before_broker]
        .iter()
        .enumerate()
    {
        for part in 0..5 {
            tell_of(&shop, &names(&format!("r{round}-{part}-"), 20)).await;
            if part == 1 {
                proxy.cut();
            }
            if part == 3 {
                proxy.mend();
            }
        }
        expected += 100;
        eventually("everything has come", || async {
            (products(&receiver.at_path("/hook")).len() == expected).then_some(())
        })
        .await;
    }
    assert_one_id_each(&receiver.at_path("/hook"));
}
