//! The broker's edge: what publishing, consuming and listing promise.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use stockctl::local;
use stockctl::metrics::{FAULTS, Fault};
use stockctl::mq::{
    self, Consumer, DeadLetters, Delivery, Error, HeaderValue, Headers, Link, Message,
    PublishError, Publisher, Queue, QueueType, Settings,
};
use uuid::Uuid;

use crate::support::amqp_proxy::{NO_TEXT, before_which_text_is_none};
use crate::support::messages::{
    batch, drain, hold, ids, link_is, message, producer, publish, publish_raw, ready, tags,
    until_ready,
};
use crate::support::{DEADLINE, Servers, eventually, scratch};

/// Queues of a test's own on a broker.
fn queues_at(amqp_url: &str) -> Settings {
    Settings {
        urls: vec![amqp_url.to_owned()],
        queue_prefix: format!("{}.", Uuid::new_v4().simple()),
        queue_type: QueueType::Quorum,
        orders_retry_delay: Duration::from_millis(200),
        vendor_sync_retry_delay: Duration::from_millis(200),
        webhooks_retry_delays: [Duration::from_millis(200); 4],
        with_webhooks: false,
    }
}

async fn queues() -> Settings {
    queues_at(&Servers::get().await.amqp_url)
}

fn numbered(queue: Queue, numbers: std::ops::Range<u32>) -> Vec<Message> {
    numbers.map(|n| message(queue, n, n.to_string())).collect()
}

fn numbers(deliveries: &[Delivery]) -> Vec<u32> {
    ids(deliveries)
        .iter()
        .map(|id| id.parse().expect("a number"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_arrives_with_its_headers_and_comes_back_from_the_retry_queue() {
    for queue_type in [QueueType::Quorum, QueueType::Classic] {
        let settings = Settings {
            queue_type,
            ..queues().await
        };
        let publisher = producer(&settings).await;
        let sent = Message {
            headers: Headers::from([
                ("x-retry-count".to_owned(), HeaderValue::Int(2)),
                ("error".to_owned(), HeaderValue::Text("übel".to_owned())),
            ]),
            ..message(Queue::Orders, "x1", "{}")
        };
        let retried = message(Queue::VendorSyncRetry, "x2", "{}");
        publish(&publisher, vec![sent.clone(), retried]).await;
        let mut consumer = Consumer::start(settings.clone(), Queue::Orders, 10);
        let got = drain(&mut consumer, 1).await;
        assert_eq!(
            (&got[0].body, &got[0].headers, got[0].redeliveries),
            (&sent.body, &sent.headers, 0)
        );
        let mut other = Consumer::start(settings.clone(), Queue::VendorSync, 10);
        let got = drain(&mut other, 1).await;
        assert_eq!((ids(&got), got[0].redeliveries), (vec!["x2".to_owned()], 0));
        for consumer in [consumer, other] {
            consumer.close(DEADLINE).await;
        }
        publisher.close(DEADLINE).await;
        let refused = publisher.publish(vec![sent], DEADLINE).await;
        assert!(matches!(refused[0], Err(PublishError::Unavailable(_))));
        let depths = mq::depths(&settings, DEADLINE).await.expect("answered");
        assert_eq!(depths.len(), 6);
        assert!(
            depths
                .iter()
                .all(|depth| (depth.messages_ready, depth.consumers) == (0, 0)),
            "{depths:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_can_never_go_is_refused_alone() {
    let settings = queues().await;
    let publisher = producer(&settings).await;
    let error = |bytes| Headers::from([("error".to_owned(), HeaderValue::Text("e".repeat(bytes)))]);
    let bad = Message {
        headers: error(100_000),
        ..message(Queue::Orders, 2, "{}")
    };
    // As large as is let through: the broker must take it.
    let large = Message {
        headers: error(65_000),
        body: vec![b'x'; 16 << 20],
        ..message(Queue::Orders, 3, "")
    };
    let good = message(Queue::Orders, 1, "{}");
    let results = publisher
        .publish(vec![good.clone(), bad, large, good], DEADLINE)
        .await;
    assert!(
        matches!(
            results[..],
            [Ok(()), Err(PublishError::Invalid(_)), Ok(()), Ok(())]
        ),
        "{results:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redelivered_message_comes_alone_and_fresh_ones_together() {
    for queue_type in [QueueType::Quorum, QueueType::Classic] {
        let settings = Settings {
            queue_type,
            ..queues().await
        };
        let publisher = producer(&settings).await;
        publish(&publisher, numbered(Queue::Orders, 0..5)).await;
        let mut consumer = Consumer::start(settings.clone(), Queue::Orders, 100);
        hold(&mut consumer, 5).await;
        consumer.close(DEADLINE).await;
        publish(&publisher, numbered(Queue::Orders, 5..30)).await;
        until_ready(&settings, Queue::Orders, 30).await;

        let mut consumer = Consumer::start(settings.clone(), Queue::Orders, 100);
        let mut seen = BTreeSet::new();
        for _ in 0..5 {
            let got = batch(&mut consumer, 100).await;
            assert_eq!((got.len(), got[0].redeliveries), (1, 1), "{got:?}");
            seen.extend(numbers(&got));
            consumer.ack(tags(&got)).await;
        }
        let fresh = hold(&mut consumer, 25).await;
        assert!(fresh.iter().all(|delivery| delivery.redeliveries == 0));
        seen.extend(numbers(&fresh));
        consumer.ack(tags(&fresh)).await;
        assert_eq!(seen, (0..30).collect());
        consumer.close(DEADLINE).await;
        until_ready(&settings, Queue::Orders, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_back_is_the_brokers_again_and_its_tags_are_worth_nothing() {
    let settings = queues().await;
    let publisher = producer(&settings).await;
    publish(&publisher, numbered(Queue::Orders, 0..20)).await;
    let mut consumer = Consumer::start(settings.clone(), Queue::Orders, 50);
    let old = hold(&mut consumer, 10).await;
    consumer.ack(tags(&old[..2])).await;
    consumer.hand_back().await;
    until_ready(&settings, Queue::Orders, 18).await;
    consumer.resume().await;
    consumer.ack(tags(&old)).await;
    let mut seen = numbers(&drain(&mut consumer, 18).await);
    seen.sort_unstable();
    let acknowledged = numbers(&old[..2]);
    let left: Vec<u32> = (0..20).filter(|n| !acknowledged.contains(n)).collect();
    assert_eq!(seen, left);
    consumer.close(DEADLINE).await;
    until_ready(&settings, Queue::Orders, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_stop_what_has_arrived_can_be_finished_and_the_rest_goes_back() {
    let settings = queues().await;
    let publisher = producer(&settings).await;
    publish(&publisher, numbered(Queue::Orders, 0..40)).await;
    let mut consumer = Consumer::start(settings.clone(), Queue::Orders, 10);
    let first = hold(&mut consumer, 2).await;
    consumer.stop().await;
    consumer.ack(tags(&first)).await;
    let mut finished = first.len();
    while let Some(more) = tokio::time::timeout(DEADLINE, consumer.next_batch(3, usize::MAX, None))
        .await
        .expect("it ends")
    {
        finished += more.len();
        consumer.ack(tags(&more)).await;
    }
    assert!((2..=11).contains(&finished), "{finished}");
    consumer.close(DEADLINE).await;
    let left = u32::try_from(40 - finished).expect("few");
    until_ready(&settings, Queue::Orders, left).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_of_dead_letters_keeps_their_order_and_removes_only_what_is_told() {
    let settings = queues().await;
    let publisher = producer(&settings).await;
    let open = async || {
        DeadLetters::open(&settings, Queue::OrdersDlq, DEADLINE)
            .await
            .expect("opened")
    };
    publish(&publisher, numbered(Queue::OrdersDlq, 0..60)).await;
    // A part, then all, and again: none of it changes what the next one sees.
    for limit in [30, 100, 30, 100] {
        let mut session = open().await;
        let mut seen = Vec::new();
        while seen.len() < limit
            && let Some(delivery) = session.next().await.expect("answered")
        {
            seen.extend(numbers(&[delivery]));
        }
        let count = u32::try_from(limit.min(60)).expect("few");
        assert_eq!(seen, (0..count).collect::<Vec<_>>());
        session.close().await;
    }
    let mut session = open().await;
    while let Some(delivery) = session.next().await.expect("answered") {
        if numbers(std::slice::from_ref(&delivery)) == [5] {
            session.ack(delivery.tag).await.expect("removed");
            assert_eq!(session.ack(delivery.tag).await, Err(Error::NotHeld));
        }
    }
    session.close().await;
    until_ready(&settings, Queue::OrdersDlq, 59).await;
    let work_queue = DeadLetters::open(&settings, Queue::Orders, DEADLINE).await;
    assert!(matches!(work_queue, Err(Error::NotDeadLetters(_))));
    let nowhere = queues().await;
    let missing = DeadLetters::open(&nowhere, Queue::OrdersDlq, DEADLINE).await;
    assert!(matches!(missing, Err(Error::MissingQueue(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_does_not_work_is_named_without_its_password() {
    let good = queues().await;
    let wrong_password = {
        let mut url: url::Url = good.urls[0].parse().expect("a URL");
        url.set_password(Some("wrongsecret")).expect("settable");
        url.to_string()
    };
    for url in [
        wrong_password,
        "amqp://u:wrongsecret@127.0.0.1:1".to_owned(),
        "amqps://u:wrongsecret@127.0.0.1:1".to_owned(),
    ] {
        let settings = Settings {
            urls: vec![url],
            ..good.clone()
        };
        let publisher = Publisher::start(settings, "test");
        let link = link_is(publisher.link(), |link| {
            matches!(link, Link::Connecting { error: Some(_) })
        })
        .await;
        assert!(!format!("{link:?}").contains("wrongsecret"), "{link:?}");
    }
    // One node that is away does not keep us from the others.
    let urls = vec!["amqp://127.0.0.1:1".to_owned(), good.urls[0].clone()];
    producer(&Settings { urls, ..good }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_producer_writes_into_headers_breaks_nothing() {
    use amiquip::{AmqpProperties, AmqpValue, FieldTable};
    let settings = queues().await;
    let publisher = producer(&settings).await;
    let headers = FieldTable::from([
        ("x-delivery-count".to_owned(), AmqpValue::LongLongInt(9)),
        ("flag".to_owned(), AmqpValue::Boolean(true)),
        ("table".to_owned(), AmqpValue::FieldTable(FieldTable::new())),
        ("short".to_owned(), AmqpValue::ShortInt(7)),
        ("double".to_owned(), AmqpValue::Double(1.5)),
    ]);
    let properties = AmqpProperties::default().with_headers(headers);
    publish_raw(&settings, Queue::Orders, properties, b"body").await;
    let mut consumer = Consumer::start(settings.clone(), Queue::Orders, 10);
    let got = drain(&mut consumer, 1).await;
    assert_eq!((got[0].redeliveries, &got[0].message_id), (0, &None));
    assert_eq!(got[0].headers.get("short"), Some(&HeaderValue::Int(7)));
    publish(&publisher, numbered(Queue::Orders, 1..2)).await;
    assert_eq!(numbers(&drain(&mut consumer, 1).await), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_text_ends_neither_a_consumer_nor_a_listing() {
    use amiquip::{AmqpProperties, AmqpValue, FieldTable};
    let settings = queues().await;
    let publisher = producer(&settings).await;
    let mut url: url::Url = settings.urls[0].parse().expect("a URL");
    let broker = format!("127.0.0.1:{}", url.port().expect("a port"));
    let proxy = before_which_text_is_none(broker).await;
    url.set_port(Some(proxy.port())).expect("it has a host");
    let through_proxy = Settings {
        urls: vec![url.into()],
        ..settings.clone()
    };
    let headers = FieldTable::from([
        (NO_TEXT.to_owned(), AmqpValue::LongLongInt(7)),
        ("text".to_owned(), AmqpValue::LongString(NO_TEXT.to_owned())),
    ]);
    let properties = AmqpProperties::default()
        .with_content_type(NO_TEXT.to_owned())
        .with_message_id(NO_TEXT.to_owned())
        .with_headers(headers);
    let hex = "0xffffffffffffff";
    for queue in [Queue::Orders, Queue::OrdersDlq] {
        publish_raw(&through_proxy, queue, properties.clone(), b"body").await;
    }
    publish(&publisher, numbered(Queue::Orders, 1..2)).await;
    let mut consumer = Consumer::start(settings.clone(), Queue::Orders, 10);
    let got = drain(&mut consumer, 2).await;
    assert_eq!(
        (got[0].redeliveries, &got[0].message_id),
        (0, &Some(hex.to_owned()))
    );
    assert_eq!(got[0].headers.get(hex), Some(&HeaderValue::Int(7)));
    let text = HeaderValue::Text("\u{fffd}".repeat(NO_TEXT.len()));
    assert_eq!(got[0].headers.get("text"), Some(&text));
    assert_eq!(got[0].body, b"body");
    assert_eq!(numbers(&got[1..]), [1]);

    let mut session = DeadLetters::open(&settings, Queue::OrdersDlq, DEADLINE)
        .await
        .expect("opened");
    let letter = session.next().await.expect("answered").expect("a letter");
    assert_eq!(letter.message_id.as_deref(), Some(hex));
    session.ack(letter.tag).await.expect("removed");
    session.close().await;
}

/// One broker for what cannot be seen on a shared one: it is asked on the server's side, filled, and killed. One test,
/// since a broker takes seconds to start.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_keeps_what_it_confirmed_through_its_death_and_refuses_what_it_cannot_keep() {
    let options = local::Options {
        data_dir: scratch("broker"),
        fresh: true,
    };
    let mut servers = local::start(&options, &mut |_| {}).await.expect("started");
    let url = servers.amqp_url();
    the_queues_have_the_arguments_that_are_meant(&servers, &url).await;
    a_full_queue_refuses_what_comes(&servers, &url).await;
    a_queue_that_was_deleted_is_declared_again(&servers, &url).await;
    tags_of_a_connection_that_was_lost_are_ignored(&servers, &url).await;
    a_memory_alarm_blocks_publishing_and_nothing_else(&servers, &url).await;
    a_channel_that_the_broker_closes_is_opened_again(&servers, &url).await;
    queues_declared_a_moment_ago_survive_a_crash(&mut servers, &url).await;
    servers.stop().await.expect("stopped");
    std::fs::remove_dir_all(options.data_dir).expect("removed");
}

async fn the_queues_have_the_arguments_that_are_meant(servers: &local::Servers, url: &str) {
    let quorum = Settings {
        with_webhooks: true,
        ..queues_at(url)
    };
    let classic = Settings {
        queue_type: QueueType::Classic,
        with_webhooks: true,
        ..queues_at(url)
    };
    tokio::join!(producer(&quorum), producer(&classic));
    let columns = ["name", "durable", "type", "arguments"];
    let listed = servers
        .rabbitmqctl(&[&["list_queues", "--formatter", "json"][..], &columns].concat())
        .await
        .expect("listed");
    let listed: Vec<Value> = serde_json::from_str(&listed).expect("JSON");
    for (settings, kind) in [(&quorum, "quorum"), (&classic, "classic")] {
        for queue in Queue::ALL {
            let row = listed
                .iter()
                .find(|row| row["name"] == queue.name(settings).as_str())
                .expect("listed");
            assert_eq!(row["durable"], true);
            assert_eq!(row["type"], kind);
            let reported: Headers = row["arguments"]
                .as_array()
                .expect("a list")
                .iter()
                .map(|argument| {
                    let value = match &argument[2] {
                        Value::Number(number) => HeaderValue::Int(number.as_i64().expect("whole")),
                        other => HeaderValue::Text(other.as_str().expect("text").to_owned()),
                    };
                    (argument[0].as_str().expect("a name").to_owned(), value)
                })
                .collect();
            assert_eq!(reported, mq::arguments(queue, settings), "{queue:?}");
        }
    }
}

async fn a_full_queue_refuses_what_comes(servers: &local::Servers, url: &str) {
    let settings = queues_at(url);
    let publisher = producer(&settings).await;
    let name = Queue::VendorSyncDlq.name(&settings);
    let pattern = format!("^{}$", name.replace('.', "\\."));
    servers
        .rabbitmqctl(&["set_policy", &name, &pattern, r#"{"max-length":10}"#])
        .await
        .expect("set");
    // A quorum queue tells publishers a moment after it is full.
    eventually("a message is refused", || {
        let publishing = publisher.publish(numbered(Queue::VendorSyncDlq, 0..20), DEADLINE);
        async {
            let results = publishing.await;
            let nacked = Err(PublishError::Nacked);
            assert!(
                results
                    .iter()
                    .all(|result| result.is_ok() || *result == nacked),
                "{results:?}"
            );
            results.contains(&nacked).then_some(())
        }
    })
    .await;
    let confirmed = ready(&settings, Queue::VendorSyncDlq).await;
    assert!(confirmed >= 10, "what was there stays: {confirmed}");
}

async fn a_queue_that_was_deleted_is_declared_again(servers: &local::Servers, url: &str) {
    let settings = queues_at(url);
    let publisher = producer(&settings).await;
    servers
        .rabbitmqctl(&["delete_queue", &Queue::VendorSyncDlq.name(&settings)])
        .await
        .expect("deleted");
    let both = vec![
        message(Queue::VendorSyncDlq, 1, "{}"),
        message(Queue::Orders, 1, "{}"),
    ];
    let results = publisher.publish(both, DEADLINE).await;
    assert_eq!(results, [Err(PublishError::Unroutable), Ok(())]);
    eventually("it is there again", || {
        let publishing = publisher.publish(numbered(Queue::VendorSyncDlq, 2..3), DEADLINE);
        async {
            let result = publishing.await.remove(0);
            assert_ne!(result, Err(PublishError::Nacked));
            result.ok()
        }
    })
    .await;
    assert_eq!(ready(&settings, Queue::VendorSyncDlq).await, 1);
}

async fn tags_of_a_connection_that_was_lost_are_ignored(servers: &local::Servers, url: &str) {
    let settings = queues_at(url);
    let publisher = producer(&settings).await;
    publish(&publisher, numbered(Queue::Orders, 0..5)).await;
    let mut consumer = Consumer::start(settings.clone(), Queue::Orders, 10);
    let old = hold(&mut consumer, 5).await;
    servers
        .rabbitmqctl(&["close_all_connections", "test"])
        .await
        .expect("closed");
    let mut seen = Vec::new();
    for _ in 0..5 {
        let got = batch(&mut consumer, 10).await;
        assert_eq!((got.len(), got[0].redeliveries), (1, 1), "{got:?}");
        consumer.ack(tags(&old)).await;
        seen.extend(numbers(&got));
        consumer.ack(tags(&got)).await;
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3, 4]);
    consumer.close(DEADLINE).await;
    until_ready(&settings, Queue::Orders, 0).await;
}

async fn a_memory_alarm_blocks_publishing_and_nothing_else(servers: &local::Servers, url: &str) {
    let settings = queues_at(url);
    let publisher = producer(&settings).await;
    publish(&publisher, numbered(Queue::Orders, 0..5)).await;
    let watermark = async |fraction: &str| {
        servers
            .rabbitmqctl(&["set_vm_memory_high_watermark", fraction])
            .await
            .expect("set");
    };
    let blocked = || FAULTS.of(Fault::RabbitmqBlocked).get();
    let before = blocked();
    watermark("0.0000001").await;
    // The broker says so to whoever publishes.
    let refused = publisher.publish(numbered(Queue::Orders, 5..6), Duration::from_secs(1));
    assert!(refused.await[0].is_err(), "not confirmed");
    link_is(publisher.link(), |link| {
        matches!(link, Link::Blocked { .. })
    })
    .await;
    assert!(blocked() > before, "it is counted");
    let again = publisher.publish(numbered(Queue::Orders, 6..7), DEADLINE);
    let refused = again.await.remove(0).expect_err("at once");
    assert!(matches!(refused, PublishError::Unavailable(_)), "{refused}");
    let mut consumer = Consumer::start(settings.clone(), Queue::Orders, 10);
    let seen = numbers(&drain(&mut consumer, 5).await);
    assert_eq!(seen, [0, 1, 2, 3, 4]);
    watermark("0.4").await;
    link_is(publisher.link(), |link| *link == Link::Up).await;
    publish(&publisher, numbered(Queue::Orders, 7..8)).await;
    // The first one was on its way when the alarm came, and may have arrived after all.
    let last = |seen: &[Delivery]| numbers(seen).contains(&7);
    while !last(&drain(&mut consumer, 1).await) {}
    consumer.close(DEADLINE).await;
}

async fn a_channel_that_the_broker_closes_is_opened_again(servers: &local::Servers, url: &str) {
    // It closes the channel of whoever holds a message for too long; half an hour, otherwise.
    let set = ["consumer_timeout", "channel_tick_interval"]
        .map(|setting| format!("application:set_env(rabbit, {setting}, 1000)"))
        .join(", ");
    servers
        .rabbitmqctl(&["eval", &format!("{set}.")])
        .await
        .expect("set");
    let settings = queues_at(url);
    let publisher = producer(&settings).await;
    publish(&publisher, numbered(Queue::Orders, 0..1)).await;
    let mut consumer = Consumer::start(settings.clone(), Queue::Orders, 10);
    let held = hold(&mut consumer, 1).await;
    let closed = || FAULTS.of(Fault::ChannelClosed).get();
    let before = closed();
    let again = batch(&mut consumer, 1).await;
    assert_eq!((numbers(&again), again[0].redeliveries), (vec![0], 1));
    assert!(closed() > before, "it is counted");
    consumer.ack(tags(&held)).await;
    consumer.ack(tags(&again)).await;
    consumer.close(DEADLINE).await;
    until_ready(&settings, Queue::Orders, 0).await;
}

async fn queues_declared_a_moment_ago_survive_a_crash(servers: &mut local::Servers, url: &str) {
    let settings = queues_at(url);
    let publisher = producer(&settings).await;
    // Declared last of those that keep what they get.
    publish(&publisher, numbered(Queue::VendorSync, 0..20)).await;
    servers.kill_rabbitmq().await.expect("killed");
    servers.start_rabbitmq().await.expect("started");
    let mut consumer = Consumer::start(settings.clone(), Queue::VendorSync, 20);
    let mut seen = numbers(&drain(&mut consumer, 20).await);
    seen.sort_unstable();
    assert_eq!(seen, (0..20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_published_to_only_once_a_crash_would_not_take_it_away() {
    let settings = queues().await;
    let waiting = |link: &Link| matches!(link, Link::Connecting { error: Some(_) });
    let first = Publisher::start(settings.clone(), "test");
    let link = link_is(first.link(), |link| *link == Link::Up || waiting(link)).await;
    assert!(
        matches!(&link, Link::Connecting { error: Some(error) } if error.contains("declared only now")),
        "{link:?}"
    );
    let refused = first.publish(numbered(Queue::Orders, 0..1), DEADLINE).await;
    assert!(
        matches!(&refused[0], Err(PublishError::Unavailable(reason)) if reason.contains("declared only now")),
        "{refused:?}"
    );
    // Another one finds the queues there, and cannot tell since when.
    let second = Publisher::start(settings, "test");
    let link = link_is(second.link(), |link| *link == Link::Up || waiting(link)).await;
    assert!(
        matches!(&link, Link::Connecting { error: Some(error) } if error.contains("declared only now")),
        "{link:?}"
    );
    for publisher in [first, second] {
        link_is(publisher.link(), |link| *link == Link::Up).await;
        publish(&publisher, numbered(Queue::Orders, 0..1)).await;
    }
}
