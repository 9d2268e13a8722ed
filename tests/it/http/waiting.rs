//! Callers that would rather wait for the outcome of an order than ask for it.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use super::outage::serve_without;
use super::{Answer, JSON, ask, text};
use crate::support::{Shop, eventually};

/// Orders, and waits.
async fn order(shop: &Shop, wait: &str, quantity: i64) -> Answer {
    let body = json!({"productId": "p1", "quantity": quantity}).to_string();
    ask(
        shop,
        Method::POST,
        "/orders",
        &[JSON, ("prefer", wait)],
        body,
    )
    .await
}

/// Its status, that of the order, and what is said of the wait.
fn outcome(answer: &Answer) -> (u16, String, Option<&str>) {
    (
        answer.status,
        text(&answer.body["status"]),
        answer.header("preference-applied"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_answered_once_the_order_is_decided_by_whatever_process() {
    let shop = Shop::new().await;
    shop.sync().await;
    let api = shop.serve().await;
    // Nobody decides yet.
    let pending = order(&shop, "wait=0", 1).await;
    assert_eq!(
        outcome(&pending),
        (202, "pending".to_owned(), Some("wait=0"))
    );
    let path = format!("/orders/{}", text(&pending.body["id"]));
    let shown = ask(&shop, Method::GET, &path, &[("prefer", "wait=1")], "").await;
    assert_eq!(outcome(&shown), (202, "pending".to_owned(), Some("wait=1")));
    // Without a wait, it is shown as ever.
    assert_eq!(ask(&shop, Method::GET, &path, &[], "").await.status, 200);

    let mut working = shop.start(&["work"]);
    let asking = [("prefer", "wait=30")];
    let (confirmed, rejected, shown, shown_too) = tokio::join!(
        order(&shop, "wait=30", 2),
        order(&shop, "wait=30, return=minimal", 100),
        ask(&shop, Method::GET, &path, &asking, ""),
        ask(&shop, Method::GET, &path, &asking, ""),
    );
    let several = [confirmed, rejected, shown, shown_too];
    let outcomes: Vec<_> = several.iter().map(outcome).collect();
    let applied = Some("wait=30");
    assert_eq!(
        outcomes,
        [
            (200, "confirmed".to_owned(), applied),
            (200, "rejected".to_owned(), applied),
            (200, "confirmed".to_owned(), applied),
            (200, "confirmed".to_owned(), applied),
        ]
    );
    assert!(several[0].header("location").is_some());
    assert_eq!(
        several[0].body["history"][1]["event"], "confirmed",
        "{}",
        several[0].body
    );
    // There is nothing to wait for any more, however short the wait.
    let body = json!({"productId": "p1", "quantity": 1}).to_string();
    let repeated = |wait| {
        let headers = [JSON, ("idempotency-key", "again"), ("prefer", wait)];
        let (shop, body) = (&shop, body.clone());
        async move { ask(shop, Method::POST, "/orders", &headers, body).await }
    };
    for wait in ["wait=30", "wait=0"] {
        let answer = repeated(wait).await;
        let expected = (200, "confirmed".to_owned(), Some(wait));
        assert_eq!(outcome(&answer), expected, "{}", answer.body);
    }
    // What is decided is not waited for.
    let again = ask(&shop, Method::GET, &path, &[("prefer", "wait=99")], "").await;
    assert_eq!(outcome(&again), (200, "confirmed".to_owned(), applied));
    let wrong = order(&shop, "wait=long", 1).await;
    assert_eq!(
        wrong.problem(),
        "400 invalid_parameter \"Prefer\" wait must be 0 to 30 whole seconds"
    );
    working.kill().await;

    // A shutdown does not wait for who waits.
    let waiting = order(&shop, "wait=30", 1);
    let ending = async {
        eventually("the order is there", || async {
            let pending = "SELECT count(*) AS n FROM orders WHERE status = 'pending'";
            (shop.count(pending).await == 1).then_some(())
        })
        .await;
        api.stop().await;
    };
    let (waited, ()) = tokio::join!(waiting, ending);
    assert_eq!(
        (waited.status, text(&waited.body["status"])),
        (202, "pending".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_query_at_a_time_asks_for_all_who_wait() {
    let shop = Shop::new().await;
    shop.sync().await;
    let api = shop.serve().await;
    assert!(shop.config.database.pool_size > 1, "more could ask at once");
    // p1 has 10.
    let waiting = join_all((0..30).map(|_| order(&shop, "wait=30", 1)));
    let meanwhile = async {
        eventually("all are accepted", || async {
            let accepted = shop.count("SELECT count(*) AS n FROM orders").await;
            (accepted == 30).then_some(())
        })
        .await;
        let held = shop
            .hold_here("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
            .await;
        shop.held_up_here().await;
        // As long as many looks.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let asking = "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database()
                      AND wait_event_type = 'Lock' AND query LIKE 'SELECT id FROM orders WHERE id = ANY%'";
        assert_eq!(shop.count(asking).await, 1);
        held.release().await;
        shop.work()
    };
    let (answers, work) = tokio::join!(waiting, meanwhile);
    let confirmed = answers
        .iter()
        .filter(|answer| text(&answer.body["status"]) == "confirmed");
    assert_eq!(confirmed.count(), 10);
    assert!(answers.iter().all(|answer| answer.status == 200));
    drop((api, work));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_broker_has_is_not_waited_for() {
    let mut shop = Shop::new().await;
    let _api = serve_without(&mut shop, true, false).await;
    shop.broker_is_connected().await;
    let accepted = order(&shop, "wait=30", 1).await;
    assert_eq!(outcome(&accepted), (202, "pending".to_owned(), None));
}
