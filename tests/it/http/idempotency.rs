//! The same request is the same order, however often and from wherever it comes; and orders that come together do not
//! stand in each other's way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use diesel_async::SimpleAsyncConnection;
use futures_util::future::join_all;
use serde_json::{Value, json};
use stockctl::domain::ids::ProductId;
use stockctl::domain::order::{Line, Lines, NewOrder, derive_id};
use stockctl::{db, pg};

use super::{JSON, among_others, ask, order_with_key, post_bytes, text};
use crate::support::{Shop, ShopOptions, eventually};

fn one(product: &str) -> Value {
    json!({"productId": product, "quantity": 1})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_the_same_order_as_it_is_now() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    let first = order_with_key(&shop, "k-1", &one("p1")).await;
    assert_eq!(first.status, 202, "{}", first.body);
    assert_eq!(first.header("idempotent-replayed"), None);
    assert_eq!(first.body["status"], "pending");
    let id = text(&first.body["id"]);
    let now = among_others(shop.order_told(&id).await);
    let lines = json!({"lines": [{"productId": "p1", "quantity": 1}]});
    // Quoted or bare, and in either form, it is the same request.
    for (key, body) in [("k-1", one("p1")), ("\"k-1\"", one("p1")), (" k-1 ", lines)] {
        let again = order_with_key(&shop, key, &body).await;
        assert_eq!(again.status, 202, "{}", again.body);
        assert_eq!(again.header("idempotent-replayed"), Some("true"));
        assert_eq!(
            again.header("location"),
            Some(format!("/orders/{id}").as_str())
        );
        assert_eq!(again.body, now);
    }
    let older_path = [JSON, ("idempotency-key", "k-1")];
    let again = ask(
        &shop,
        reqwest::Method::POST,
        "/order",
        &older_path,
        one("p1").to_string(),
    )
    .await;
    assert_eq!(again.body, now);
    for body in [
        one("p2"),
        json!({"productId": "p1", "quantity": 2}),
        json!({"productId": "p1", "quantity": 1, "reference": ""}),
    ] {
        let other = order_with_key(&shop, "k-1", &body).await;
        assert_eq!(other.problem(), "422 idempotency_conflict");
    }
    let another = order_with_key(&shop, "k-2", &one("p1")).await;
    assert_ne!(text(&another.body["id"]), id);
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_be_one_is_refused() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let mut said = String::new();
    for key in [
        "",
        " ",
        "\"\"",
        &"k".repeat(256),
        &format!("\"{}\"", "k".repeat(256)),
        "schlüssel",
        "a\tb",
    ] {
        let answer = order_with_key(&shop, key, &one("p1")).await;
        said.push_str(&answer.problem());
        said.push('\n');
    }
    let twice = [JSON, ("idempotency-key", "a"), ("idempotency-key", "a")];
    let answer = ask(
        &shop,
        reqwest::Method::POST,
        "/orders",
        &twice,
        one("p1").to_string(),
    )
    .await;
    said.push_str(&answer.problem());
    insta::assert_snapshot!(said, @r#"
    400 invalid_parameter "Idempotency-Key" must be 1 to 255 characters long, has 0
    400 invalid_parameter "Idempotency-Key" must be 1 to 255 characters long, has 0
    400 invalid_parameter "Idempotency-Key" must be 1 to 255 characters long, has 0
    400 invalid_parameter "Idempotency-Key" must be 1 to 255 characters long, has 256
    400 invalid_parameter "Idempotency-Key" must be 1 to 255 characters long, has 256
    400 invalid_parameter "Idempotency-Key" must be printable ASCII
    400 invalid_parameter "Idempotency-Key" must be printable ASCII
    400 invalid_parameter "Idempotency-Key" must be given once
    "#);
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 0);
    for key in [
        "k".repeat(255),
        format!("\"{}\"", "q".repeat(255)),
        "\"".into(),
    ] {
        let answer = order_with_key(&shop, &key, &one("p1")).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_fifty_times_at_once_is_one_order() {
    let shop = Shop::new().await;
    let parts = shop.open().await;
    // A second process on the same address takes its share of the connections.
    let second = shop.serve().await;
    let body = one("p3");
    let answers = join_all((0..50).map(|_| order_with_key(&shop, "storm", &body))).await;
    let ids: BTreeSet<String> = answers.iter().map(|a| text(&a.body["id"])).collect();
    assert_eq!(ids.len(), 1);
    assert!(answers.iter().all(|answer| answer.status == 202));
    let new = answers
        .iter()
        .filter(|answer| answer.header("idempotent-replayed").is_none())
        .count();
    assert_eq!(new, 1, "one of them made the order");
    let id = ids.first().expect("one");
    shop.order_with_status(id, "confirmed").await;
    assert_eq!(shop.available("p3").await, 19);
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 1);
    drop((parts, second));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_different_requests_with_one_key_at_once_one_is_accepted() {
    let shop = Shop::new().await;
    let first = shop.serve().await;
    let second = shop.serve().await;
    let bodies: Vec<Value> = (1..=50)
        .map(|n| json!({"productId": "p1", "quantity": n}))
        .collect();
    let answers = join_all(
        bodies
            .iter()
            .map(|body| order_with_key(&shop, "one key", body)),
    )
    .await;
    let accepted = answers.iter().filter(|answer| answer.status == 202).count();
    assert_eq!(accepted, 1);
    for answer in answers.iter().filter(|answer| answer.status != 202) {
        assert_eq!(answer.problem(), "422 idempotency_conflict");
    }
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 1);
    drop((first, second));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_that_sends_the_same_keys_in_another_order_gets_the_same_orders() {
    let shop = Shop::new().await;
    let first = shop.serve().await;
    let second = shop.serve().await;
    let keys: Vec<String> = (0..40).map(|n| format!("k{n}")).collect();
    let body = one("p1");
    let clients = (0..6).map(|client| {
        let mut keys = keys.clone();
        if client % 2 == 1 {
            keys.reverse();
        }
        let (shop, body) = (&shop, &body);
        async move {
            let ask = keys.into_iter().map(|key| async move {
                let answer = order_with_key(shop, &key, body).await;
                assert_eq!(answer.status, 202, "{}", answer.body);
                (key, text(&answer.body["id"]))
            });
            join_all(ask).await.into_iter().collect::<BTreeMap<_, _>>()
        }
    });
    let ids = join_all(clients).await;
    assert!(ids.iter().all(|of_client| of_client == &ids[0]));
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 40);
    drop((first, second));
}

/// An order that `key` asks for, with a quantity of its own.
fn keyed(key: &str, quantity: i64) -> NewOrder {
    let product_id = ProductId::parse("p1").expect("valid");
    let lines = Lines::parse(vec![Line {
        product_id,
        quantity,
    }])
    .expect("valid");
    NewOrder {
        id: derive_id("local", key, &lines, None),
        caller: "local".into(),
        idempotency_key: Some(key.into()),
        lines,
        reference: None,
        accepted_at: stockctl::app::accept::now(),
    }
}

/// The request for `key` whose order has the least, or the greatest, id of some.
fn keyed_at(key: &str, greatest: bool) -> NewOrder {
    let of = (1..100).map(|quantity| keyed(key, quantity));
    let found = if greatest {
        of.max_by_key(|o| o.id)
    } else {
        of.min_by_key(|o| o.id)
    };
    found.expect("some")
}

/// The keys of two batches collide though no order of one is in the other: their ids say nothing of the keys' order.
#[tokio::test(flavor = "multi_thread")]
async fn batches_with_the_same_keys_for_other_requests_do_not_deadlock() {
    let shop = Shop::new().await;
    let settings = pg::Settings {
        url: shop.config.database.url.expose().to_owned(),
        pool_size: 1,
        connect_timeout: Duration::from_secs(10),
        statement_timeout: Duration::from_secs(30),
    };
    let connect = async || pg::connect(&settings).await.expect("reachable");
    let sorted = |mut orders: Vec<NewOrder>| {
        orders.sort_by_key(|order| order.id);
        orders
    };
    // By id: a, gate, b in one batch and b, gate, a in the other.
    let gate = (1..100).map(|n| keyed("gate", n)).nth(50).expect("some");
    let batches = [
        sorted(vec![
            keyed_at("a", false),
            gate.clone(),
            keyed_at("b", true),
        ]),
        sorted(vec![
            keyed_at("b", false),
            gate.clone(),
            keyed_at("a", true),
        ]),
    ];
    let mut keeper = connect().await;
    keeper.batch_execute("BEGIN").await.expect("begins");
    db::orders::insert_accepted(&mut keeper, &[gate])
        .await
        .expect("inserted");
    let inserting = batches.map(|orders| {
        let settings = settings.clone();
        tokio::spawn(async move {
            let mut connection = pg::connect(&settings).await.expect("reachable");
            db::orders::insert_accepted(&mut connection, &orders)
                .await
                .map(|(inserted, _)| inserted.len())
        })
    });
    eventually("both batches wait at the gate", || async {
        let waiting = "SELECT count(*) AS n FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                       WHERE NOT l.granted AND a.datname = current_database()";
        (shop.count(waiting).await == 2).then_some(())
    })
    .await;
    keeper.batch_execute("ROLLBACK").await.expect("rolled back");
    let inserted = join_all(inserting).await;
    let inserted: Vec<_> = inserted
        .into_iter()
        .map(|ended| ended.expect("no panic"))
        .collect();
    assert!(inserted.iter().all(Result::is_ok), "{inserted:?}");
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_order_never_fails_its_neighbours() {
    let shop = Shop::new().await;
    // No request gets past the door that the schema refuses, so this shop's schema refuses more.
    shop.run_here("ALTER TABLE orders ADD CHECK (reference <> 'bad')")
        .await;
    let _api = shop.serve().await;
    let answers = join_all((0..200).map(|n| {
        let reference = if n % 20 == 7 {
            "bad".to_owned()
        } else {
            format!("good {n}")
        };
        let body = json!({"productId": "p1", "quantity": 1, "reference": reference}).to_string();
        let shop = &shop;
        async move { (reference, post_bytes(shop, "/orders", body).await) }
    }))
    .await;
    for (reference, answer) in &answers {
        if reference == "bad" {
            assert_eq!(answer.problem(), "500 internal");
        } else {
            assert_eq!(answer.status, 202, "{reference}: {}", answer.body);
        }
    }
    assert_eq!(
        shop.count("SELECT count(DISTINCT reference) AS n FROM orders")
            .await,
        190
    );
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 190);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_order_of_a_rush_is_decided_once_and_none_is_sold_twice() {
    let shop = Shop::with(ShopOptions {
        vendors: vec![("vendorA", vec![("p1", 30)]), ("vendorB", vec![("p1", 20)])],
        ..ShopOptions::default()
    })
    .await;
    let parts = shop.open().await;
    let second = shop.serve().await;
    let other_workers = shop.work();
    let body = one("p1").to_string();
    let answers = join_all((0..300).map(|_| post_bytes(&shop, "/orders", body.clone()))).await;
    let ids: BTreeSet<String> = answers
        .iter()
        .inspect(|answer| assert_eq!(answer.status, 202, "{}", answer.body))
        .map(|answer| text(&answer.body["id"]))
        .collect();
    assert_eq!(ids.len(), 300);
    let decided = "SELECT count(*) AS n FROM orders WHERE status IN ('confirmed', 'rejected')";
    eventually("all are decided", || async {
        (shop.count(decided).await == 300).then_some(())
    })
    .await;
    for (sql, expected) in [
        (
            "SELECT count(*) AS n FROM orders WHERE status = 'confirmed'",
            50,
        ),
        (
            "SELECT count(*) AS n FROM stock_updates WHERE delta = -1",
            50,
        ),
        (
            "SELECT count(DISTINCT order_id) AS n FROM stock_updates",
            50,
        ),
        (
            "SELECT sum(on_hand + open_delta)::bigint AS n FROM stock",
            0,
        ),
    ] {
        assert_eq!(shop.count(sql).await, expected, "{sql}");
    }
    eventually("the vendors are told", || async {
        let left = shop.stock_at("vendorA", "p1").await + shop.stock_at("vendorB", "p1").await;
        (left == 0).then_some(())
    })
    .await;
    drop((parts, second, other_workers));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_neither_inserted_nor_there_is_not_accepted() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let line = one("p1");
    // While requests are repeated, orders may turn out to exist already.
    for replayed in [None, Some("true")] {
        let first = order_with_key(&shop, "first", &line).await;
        assert_eq!(first.header("idempotent-replayed"), replayed);
    }
    // As if somebody deleted it between the two looks.
    shop.run_here(
        "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE TRIGGER lose BEFORE INSERT ON orders FOR EACH ROW WHEN (NEW.idempotency_key = 'lost') EXECUTE FUNCTION lose()",
    )
    .await;
    let (lost, kept) = tokio::join!(
        order_with_key(&shop, "lost", &line),
        order_with_key(&shop, "kept", &line),
    );
    assert_eq!(lost.problem(), "503 unavailable");
    assert_eq!(lost.header("retry-after"), Some("1"));
    assert_eq!(kept.status, 202, "{}", kept.body);
    let orders = "SELECT count(*) AS n FROM orders";
    assert_eq!(shop.count(orders).await, 2);
    shop.run_here("DROP TRIGGER lose ON orders").await;
    let again = order_with_key(&shop, "lost", &line).await;
    assert_eq!(again.status, 202, "{}", again.body);
    assert_eq!(again.header("idempotent-replayed"), None);
}
