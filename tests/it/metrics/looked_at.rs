//! What is read on a scrape, and the door of orders when it is full.

use std::time::Duration;

use futures_util::FutureExt;
use serde_json::Value;
use stockctl::app::Context;
use stockctl::app::accept::{Accept, NotAccepted};
use stockctl::app::gauges::Gauges;
use stockctl::app::relay::Relay;
use stockctl::domain::ids::OrderId;
use stockctl::domain::messages::decode_orders;
use stockctl::metrics::{ACCEPTING, Refused};
use stockctl::mq::{self, Publisher};
use stockctl::pg;

use crate::support::Shop;
use crate::support::scrape::Scrape;

const OUTBOX: &str = "stockctl_outbox_messages";

async fn look(gauges: &Gauges) -> Scrape {
    Scrape::read(gauges.scrape().await.expect("rendered"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stores_are_asked_once_in_a_while_and_what_they_said_last_stays_while_they_are_away() {
    let shop = Shop::new().await;
    let (context, broker) = (shop.context_here(), shop.broker());
    let seldom = Gauges::new(&context, broker.clone(), Duration::from_secs(3600)).expect("a pool");
    assert_eq!(look(&seldom).await.value(OUTBOX), 0.0);
    shop.run_here(
        "INSERT INTO outbox (queue, message_id, body, created_at)
         VALUES ('vendor_sync', gen_random_uuid(), '{}', now() - interval '1 hour'), ('vendor_sync', gen_random_uuid(), '{}', now())",
    )
    .await;
    let all = futures_util::future::join_all((0..20).map(|_| look(&seldom))).await;
    assert!(all.iter().all(|scrape| scrape.value(OUTBOX) == 0.0));

    let always = Gauges::new(&context, broker, Duration::ZERO).expect("a pool");
    let seen = look(&always).await;
    assert_eq!(
        seen.values([OUTBOX, "stockctl_postgresql_up", "stockctl_rabbitmq_up"]),
        [2.0, 1.0, 1.0]
    );
    let age = seen.value("stockctl_outbox_oldest_age_seconds");
    assert!((3600.0..7200.0).contains(&age), "{age}");

    let nowhere = |scheme: &str| format!("{scheme}://u:secret@127.0.0.1:9/x");
    let away = Context {
        database: pg::Pool::new(
            "orders",
            pg::Settings {
                url: nowhere("postgres"),
                ..context.database.settings().clone()
            },
        )
        .expect("a pool"),
        ..context
    };
    let broker = mq::Settings {
        urls: vec![nowhere("amqp")],
        ..shop.broker()
    };
    let in_vain = Gauges::new(&away, broker, Duration::ZERO).expect("a pool");
    let seen = look(&in_vain).await;
    assert_eq!(
        seen.values([OUTBOX, "stockctl_postgresql_up", "stockctl_rabbitmq_up"]),
        [2.0, 0.0, 0.0]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_find_the_door_full_are_refused_and_counted() {
    let shop = Shop::new().await;
    let context = shop.context_here();
    let publisher = Publisher::start(shop.broker(), "test");
    let (relay, _publishing) = Relay::new(context.clone(), publisher.clone());
    // Nobody takes what waits.
    let (accept, _committing, _vouching) = Accept::new(context, publisher, relay, shop.broker());
    let body: Value = serde_json::json!({"productId": "p1", "quantity": 1});
    let order = decode_orders(body.to_string().as_bytes(), Some("m"), chrono::Utc::now())
        .expect("an order")
        .remove(0);
    let refused = || ACCEPTING.refused.of(Refused::QueueFull).get();
    let before = refused();
    let mut waiting = Vec::new();
    for number in 0..10_000 {
        let mut order = order.clone();
        order.id = OrderId(uuid::Uuid::from_u128(number));
        let mut request = Box::pin(accept.accept(order));
        assert!((&mut request).now_or_never().is_none(), "{number} waits");
        waiting.push(request);
    }
    for _ in 0..3 {
        let answer = accept.accept(order.clone()).now_or_never();
        assert!(matches!(answer, Some(Err(NotAccepted::Busy))), "{answer:?}");
    }
    assert_eq!(refused() - before, 3);
}
