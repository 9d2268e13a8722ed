//! What is not taken comes again, later each time, and ends where an operator sees it; and whose receiver is down or hangs
//! is alone in its trouble.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use stockctl::commands::work::WorkQueue;
use stockctl::mq::Queue;

use super::{names, products, shop_with, subscribe, tell_of, webhook, webhook_with_status};
use crate::support::messages::ready;
use crate::support::receiver::{Receiver, Reply};
use crate::support::{Shop, eventually};

async fn letters(shop: &Shop, count: usize) -> Vec<serde_json::Value> {
    shop.dead_letters("webhooks_dlq", count).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_taken_comes_again_later_each_time_and_then_is_an_operators() {
    let mended = Arc::new(AtomicBool::new(false));
    let is_mended = Arc::clone(&mended);
    let receiver = Receiver::start(move |came| match came.body["productId"].as_str() {
        _ if is_mended.load(Ordering::SeqCst) => Reply::Status(200),
        // What it answers beside its status is nobody's.
        Some("moved") => Reply::With(302, "location", "http://127.0.0.1:1/elsewhere".into()),
        _ => Reply::Endless(500),
    });
    let shop = shop_with("retries_max = 2").await;
    let _parts = (shop.serve().await, shop.work_on(&[WorkQueue::Webhooks]));
    let id = subscribe(&shop, &receiver.url("/hook?token=hush"), &[]).await;
    tell_of(&shop, &["broken".to_owned()]).await;
    let came = receiver.came("/hook?token=hush", 3).await;
    let mut same = came.iter().map(|came| (&came.id, &came.body));
    assert!(same.all(|one| one == (&came[0].id, &came[0].body)));
    // As long as its queue says, and ten times as long.
    let waits: Vec<Duration> = came.windows(2).map(|two| two[1].at - two[0].at).collect();
    assert!(waits[0] >= Duration::from_millis(100), "{waits:?}");
    assert!(waits[1] >= Duration::from_millis(1000), "{waits:?}");

    let dead = letters(&shop, 1).await;
    assert_eq!(dead[0]["messageId"], came[0].id.as_str());
    assert_eq!(dead[0]["reason"], "retries_exhausted");
    assert_eq!(dead[0]["attempts"], 3);
    assert_eq!(dead[0]["error"], "it answered 500");
    assert_eq!(
        dead[0]["body"],
        json!({"webhookId": id, "event": came[0].body})
    );
    tell_of(&shop, &["moved".to_owned()]).await;
    let dead = letters(&shop, 2).await;
    assert_eq!(
        dead[1]["error"],
        "it answered 302, and redirects are not followed"
    );
    let (_, whole) = shop
        .get(&format!("/admin/dead-letters/webhooks_dlq/{}", came[0].id))
        .await;
    for shown in [&dead[0], &dead[1], &whole, &webhook(&shop, &id).await] {
        let shown = shown.to_string();
        assert!(!shown.contains("whsec"), "{shown}");
        assert!(!shown.contains("C2FVsBQIhrsc"), "{shown}");
        assert!(
            !shown.contains("thank you") && !shown.contains("xxxx"),
            "{shown}"
        );
    }
    assert!(!dead[0].to_string().contains("hush"), "{}", dead[0]);

    // By the command line: shown, replayed with the same id, and dropped for good.
    let ended = shop.run(&["dlq", "list", "webhooks_dlq"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stdout.contains(&id) && ended.stdout.contains("WEBHOOK"),
        "{ended:?}"
    );
    let drop = [
        "dlq",
        "drop",
        "webhooks_dlq",
        "--yes",
        "--json",
        "--id",
        &came[0].id,
    ];
    let moved = dead[1]["messageId"].as_str().expect("an id").to_owned();
    let ended = shop.run(&[&drop[..6], &[&moved]].concat()).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(
        shop.text("SELECT queue || ' ' || message_id AS t FROM dropped_letters")
            .await,
        format!("webhooks_dlq {moved}")
    );
    mended.store(true, Ordering::SeqCst);
    let replay = json!({"reason": "retries_exhausted"});
    let (status, report) = shop
        .post("/admin/dead-letters/webhooks_dlq/replay", replay)
        .await;
    assert_eq!((status, &report["replayed"]), (200, &json!([came[0].id])));
    let last = receiver.came("/hook?token=hush", came.len() + 4).await;
    let last = last.last().expect("one");
    assert_eq!((&last.id, &last.body), (&came[0].id, &came[0].body));
    eventually("nothing waits", || async {
        let broker = shop.broker();
        let waits =
            ready(&broker, Queue::Webhooks).await + ready(&broker, Queue::WebhooksDlq).await;
        (waits == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_receiver_that_hangs_and_one_that_is_down_are_nobody_elses_trouble() {
    let receiver = Receiver::start(|came| match came.path.as_str() {
        "/hangs" => Reply::Nothing,
        _ => Reply::Status(200),
    });
    let down = Receiver::start(|_| Reply::Status(200));
    let address = down.address;
    let shop = shop_with("timeout_ms = 500\nprefetch = 40").await;
    let _parts = (shop.serve().await, shop.work_on(&[WorkQueue::Webhooks]));
    let hanging = subscribe(&shop, &receiver.url("/hangs"), &[]).await;
    let of_down = subscribe(&shop, &down.url("/down"), &[]).await;
    let well = subscribe(&shop, &receiver.url("/well"), &[]).await;
    down.stop().await;
    tell_of(&shop, &names("p", 100)).await;
    let came = receiver.came("/well", 100).await;
    assert_eq!(products(&came).len(), 100);
    let failing = webhook_with_status(&shop, &of_down, "failing").await;
    let error = failing["lastError"].as_str().expect("an error");
    assert!(error.starts_with("it cannot be connected to"), "{error}");
    let failing = webhook_with_status(&shop, &hanging, "failing").await;
    assert_eq!(failing["lastError"], "no answer within 500 ms");
    assert_eq!(webhook(&shop, &well).await["status"], "active");
    // What happens meanwhile is told to the others, and kept for them.
    tell_of(&shop, &names("q", 50)).await;
    receiver.came("/well", 150).await;
    let back = Receiver::at(address, |_| Reply::Status(200));
    let all = eventually("everything has come to the one that was down", || async {
        let came = products(&back.at_path("/down"));
        (came.len() == 150).then_some(came)
    })
    .await;
    assert_eq!(all, products(&receiver.at_path("/well")));
    webhook_with_status(&shop, &of_down, "active").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_says_when_it_wants_to_be_asked_again_and_when_it_wants_no_more() {
    let asked = Arc::new(AtomicBool::new(false));
    let receiver = Receiver::start(move |came| match came.path.as_str() {
        "/later" if !asked.swap(true, Ordering::SeqCst) => {
            Reply::With(429, "retry-after", "2".into())
        }
        "/gone" => Reply::Status(410),
        _ => Reply::Status(202),
    });
    let shop = shop_with("").await;
    let _parts = (shop.serve().await, shop.work_on(&[WorkQueue::Webhooks]));
    let later = subscribe(&shop, &receiver.url("/later"), &[]).await;
    let gone = subscribe(&shop, &receiver.url("/gone"), &[]).await;
    tell_of(&shop, &["p1".to_owned()]).await;
    let disabled = webhook_with_status(&shop, &gone, "disabled").await;
    assert_eq!(
        disabled["lastError"],
        "it answered 410 Gone, so it is told no more"
    );
    assert!(disabled["disabledAt"].is_string());
    let came = receiver.came("/later", 2).await;
    assert_eq!(came[0].id, came[1].id);
    assert!(came[1].at - came[0].at >= Duration::from_secs(2));
    webhook_with_status(&shop, &later, "active").await;
    tell_of(&shop, &["p2".to_owned()]).await;
    receiver.came("/later", 3).await;
    assert_eq!(receiver.at_path("/gone").len(), 1, "it is told no more");
    let (_, letters) = shop.get("/admin/dead-letters/webhooks_dlq").await;
    assert_eq!(
        letters,
        json!({"deadLetters": [], "notLookedAt": 0, "nextCursor": null})
    );
}
