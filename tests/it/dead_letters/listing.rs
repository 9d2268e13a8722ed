//! Looking at dead letters changes nothing.

use serde_json::json;
use stockctl::domain::dead_letter::LETTERS_MAX;
use stockctl::mq::{self, Consumer, DeadLetters, Queue};

use super::{dlq, impatient_shop, letter, listed};
use crate::support::amqp_proxy::{BASIC_CONSUME, QUEUE_DECLARE, StoppingProxy};
use crate::support::messages::{drain, ids, producer, publish, publish_raw, until_ready};
use crate::support::{DEADLINE, Ended, Process, Shop};

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_loses_and_reorders_nothing_also_when_it_is_killed_in_the_middle() {
    let shop = Shop::new().await;
    let broker = shop.broker();
    let numbered: Vec<String> = (0..60).map(|n| format!("letter-{n}")).collect();
    let letters = numbered
        .iter()
        .map(|id| letter(Queue::OrdersDlq, id, "invalid_message", "{}"));
    publish(&producer(&broker).await, letters.collect()).await;

    for _ in 0..2 {
        assert_eq!(listed(&shop, &["orders_dlq"]).await, numbered);
        let front = listed(&shop, &["orders_dlq", "--limit", "7"]).await;
        assert_eq!(front, numbered[..7]);
    }
    // Its question whether that is all is never answered: it holds every letter.
    let proxy = StoppingProxy::start(&shop, &[BASIC_CONSUME, QUEUE_DECLARE, QUEUE_DECLARE]).await;
    let file = proxy.config_file(&shop);
    let mut listing = Process::configured(&file, &["dlq", "list", "orders_dlq"]);
    proxy.stopped().await;
    until_ready(&broker, Queue::OrdersDlq, 0).await;
    listing.kill().await;
    until_ready(&broker, Queue::OrdersDlq, 60).await;
    assert_eq!(listed(&shop, &["orders_dlq"]).await, numbered);

    dlq(&shop, &["replay", "orders_dlq", "--all"], 0).await;
    let mut consumer = Consumer::start(broker.clone(), Queue::Orders, 100);
    let replayed = drain(&mut consumer, 60).await;
    assert_eq!(ids(&replayed), numbered);
    until_ready(&broker, Queue::OrdersDlq, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_queue_is_looked_at_up_to_a_bound_and_what_is_left_is_told() {
    let shop = Shop::new().await;
    let broker = shop.broker();
    let numbered = |n: usize| letter(Queue::OrdersDlq, &n.to_string(), "invalid_message", "{}");
    let letters = (0..LETTERS_MAX + 50).map(numbered);
    publish(&producer(&broker).await, letters.collect()).await;
    let ended = dlq(&shop, &["list", "orders_dlq", "--json"], 0).await;
    assert_eq!(ended.stdout.lines().count(), LETTERS_MAX);
    assert_eq!(ended.stderr, "50 more behind them were not looked at\n");
    let last = LETTERS_MAX.to_string();
    let ended = dlq(&shop, &["show", "orders_dlq", "--id", &last], 5).await;
    assert_eq!(
        ended.stderr,
        "error: orders_dlq has no such letter among the first 10000; 50 more behind them were not looked at\n"
    );
    let front = listed(&shop, &["orders_dlq", "--limit", "2"]).await;
    assert_eq!(front, ["0", "1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_another_session_holds_is_not_shown_as_empty() {
    let shop = Shop::new().await;
    let broker = shop.broker();
    let one = letter(Queue::OrdersDlq, "one", "invalid_message", "{}");
    publish(&producer(&broker).await, vec![one]).await;
    let proxy = StoppingProxy::start(&shop, &[BASIC_CONSUME, QUEUE_DECLARE, QUEUE_DECLARE]).await;
    let file = proxy.config_file(&shop);
    let mut holding = Process::configured(&file, &["dlq", "list", "orders_dlq"]);
    proxy.stopped().await;
    let ended = dlq(&shop, &["list", "orders_dlq"], 4).await;
    assert_eq!(ended.stdout, "");
    let said = ended
        .stderr
        .replace(&shop.config.rabbitmq.queue_prefix, "PREFIX.");
    insta::assert_snapshot!(said, @"error: queue PREFIX.orders_dlq is being looked at by another session, which holds its messages meanwhile; try again when that has ended");
    let _api = shop.serve().await;
    let (status, problem) = shop.get("/admin/dead-letters/orders_dlq").await;
    assert_eq!((status, &problem["code"]), (503, &json!("unavailable")));
    let detail = problem["detail"].as_str().expect("a text");
    assert!(detail.contains("another session"), "{problem}");
    holding.kill().await;
    until_ready(&broker, Queue::OrdersDlq, 1).await;
    assert_eq!(listed(&shop, &["orders_dlq"]).await, ["one"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_works_on_what_was_read_keeps_others_out_and_what_is_given_back_keeps_its_place() {
    let shop = Shop::new().await;
    let broker = shop.broker();
    let publisher = producer(&broker).await;
    let numbered: Vec<String> = (0..60).map(|n| format!("letter-{n}")).collect();
    let letter = |id: &String| letter(Queue::OrdersDlq, id, "invalid_message", "{}");
    publish(&publisher, numbered.iter().map(letter).collect()).await;
    let open = || DeadLetters::open(&broker, Queue::OrdersDlq, DEADLINE);

    let mut working = open().await.expect("opened");
    for _ in 0..3 {
        working.next().await.expect("read").expect("a letter");
    }
    // It consumes no more, and holds everything still.
    let left = working.stop_reading().await.expect("stopped");
    assert_eq!(left, 57);
    let late = "late".to_owned();
    publish(&publisher, vec![letter(&late)]).await;
    until_ready(&broker, Queue::OrdersDlq, 1).await;
    let refused = open().await.err().expect("refused");
    assert!(matches!(refused, mq::Error::Busy(_)), "{refused}");
    working.close().await;

    // Whoever comes next sees all of it at once, in its order.
    let expected: Vec<&str> = numbered.iter().chain([&late]).map(String::as_str).collect();
    let mut next = open().await.expect("opened");
    for id in expected {
        let read = next.next().await.expect("read").expect("a letter");
        assert_eq!(read.message_id.as_deref(), Some(id));
    }
    next.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_before_it_has_read_anything_leaves_the_queue_in_its_order() {
    let shop = Shop::new().await;
    let broker = shop.broker();
    let publisher = producer(&broker).await;
    let letter = |id: &String| letter(Queue::OrdersDlq, id, "invalid_message", "{}");
    let mut expected: Vec<String> = (0..300).map(|n| format!("letter-{n}")).collect();
    publish(&publisher, expected.iter().map(letter).collect()).await;
    for round in 0..6 {
        let open = || DeadLetters::open(&broker, Queue::OrdersDlq, DEADLINE);
        // The broker is about to bring it everything.
        drop(open().await.expect("opened"));
        let late = format!("late-{round}");
        publish(&publisher, vec![letter(&late)]).await;
        expected.push(late);
        let mut next = open().await.expect("opened");
        let mut read = Vec::new();
        while let Some(delivery) = next.next().await.expect("read") {
            read.extend(delivery.message_id);
        }
        next.close().await;
        assert_eq!(read, expected, "in round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "most of it is the text")]
async fn what_is_listed_and_shown_for_people_and_for_programs() {
    let shop = Shop::new().await;
    let publisher = producer(&shop.broker()).await;
    let order = "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001";
    let body = format!(
        r#"{{"id":"{order}","caller":"local","lines":[{{"productId":"p1","quantity":2}}],"acceptedAt":"2026-11-24T09:00:00Z"}}"#
    );
    let mut steering = letter(
        Queue::OrdersDlq,
        "m\u{1b}[2J",
        "invalid_message",
        "\u{1b}[2Jno json\nat all",
    );
    steering.headers.insert(
        "x-dead-letter-error".into(),
        stockctl::mq::HeaderValue::Text(format!("{}\nmore", "long ".repeat(20))),
    );
    let letters = vec![
        letter(Queue::OrdersDlq, order, "retries_exhausted", &body),
        steering,
        letter(
            Queue::VendorSyncDlq,
            "u1",
            "update_conflict",
            r#"{"vendorId":"vendorA","updates":[{"id":"0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a002","productId":"p1","delta":-2}]}"#,
        ),
    ];
    publish(&publisher, letters).await;
    let mut text = String::new();
    for arguments in [
        &["list", "orders_dlq"][..],
        &["list", "vendor_sync_dlq"],
        &["list", "orders_dlq", "--json"],
        &["list", "orders_dlq", "--reason", "crash_loop"],
        &["show", "orders_dlq", "--order", order],
        &["show", "orders_dlq", "--reason", "invalid_message"],
        &["show", "vendor_sync_dlq", "--id", "u1", "--json"],
    ] {
        let ended = dlq(&shop, arguments, 0).await;
        assert_eq!(ended.stderr, "");
        text.push_str(&format!("$ {}\n{}\n", arguments.join(" "), ended.stdout));
    }
    insta::assert_snapshot!(text, @r##"
    $ list orders_dlq
    ID                                    REASON             WHEN                      ATTEMPTS  ORDER                                 ERROR
    0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001  retries_exhausted  2026-11-24T10:00:00.000Z  4         0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001  the error of 0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001
    m�[2J                                 invalid_message    2026-11-24T10:00:00.000Z  4         -                                     long long long long long long long long long long long long …

    $ list vendor_sync_dlq
    ID  REASON           WHEN                      ATTEMPTS  VENDOR             ERROR
    u1  update_conflict  2026-11-24T10:00:00.000Z  4         vendorA, 1 update  the error of u1

    $ list orders_dlq --json
    {"messageId":"0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001","reason":"retries_exhausted","error":"the error of 0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001","deadLetteredAt":"2026-11-24T10:00:00Z","attempts":4,"body":{"acceptedAt":"2026-11-24T09:00:00Z","caller":"local","id":"0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001","lines":[{"productId":"p1","quantity":2}]}}
    {"messageId":"m\u001b[2J","reason":"invalid_message","error":"long long long long long long long long long long long long long long long long long long long long \nmore","deadLetteredAt":"2026-11-24T10:00:00Z","attempts":4,"body":"\u001b[2Jno json\nat all"}

    $ list orders_dlq --reason crash_loop
    orders_dlq has no such letter

    $ show orders_dlq --order 0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001
    id        0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001
    reason    retries_exhausted
    when      2026-11-24T10:00:00.000Z
    attempts  4
    concerns  0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001
    error     the error of 0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001
    headers
      x-dead-letter-attempts  4
      x-dead-letter-error     the error of 0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001
      x-dead-letter-reason    retries_exhausted
      x-dead-letter-time      2026-11-24T10:00:00.000Z
      x-delivery-count        3
    body
      {
        "acceptedAt": "2026-11-24T09:00:00Z",
        "caller": "local",
        "id": "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001",
        "lines": [
          {
            "productId": "p1",
            "quantity": 2
          }
        ]
      }

    $ show orders_dlq --reason invalid_message
    id        m�[2J
    reason    invalid_message
    when      2026-11-24T10:00:00.000Z
    attempts  4
    concerns  -
    error     long long long long long long long long long long long long long long long long long long long long �more
    headers
      x-dead-letter-attempts  4
      x-dead-letter-error     long long long long long long long long long long long long long long long long long long long long �more
      x-dead-letter-reason    invalid_message
      x-dead-letter-time      2026-11-24T10:00:00.000Z
      x-delivery-count        4
    body
      �[2Jno json
      at all

    $ show vendor_sync_dlq --id u1 --json
    {
      "messageId": "u1",
      "reason": "update_conflict",
      "error": "the error of u1",
      "deadLetteredAt": "2026-11-24T10:00:00Z",
      "attempts": 4,
      "headers": {
        "x-dead-letter-attempts": 4,
        "x-dead-letter-error": "the error of u1",
        "x-dead-letter-reason": "update_conflict",
        "x-dead-letter-time": "2026-11-24T10:00:00.000Z",
        "x-delivery-count": 1
      },
      "body": {
        "updates": [
          {
            "delta": -2,
            "id": "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a002",
            "productId": "p1"
          }
        ],
        "vendorId": "vendorA"
      }
    }
    "##);
    let ended = dlq(&shop, &["show", "orders_dlq", "--id", "nobody"], 5).await;
    insta::assert_snapshot!(ended.stderr, @"error: orders_dlq has no such letter");
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_all_queues_are_listed_where_none_is_named_and_no_password_in_them() {
    let shop = Shop::new().await;
    let none = dlq(&shop, &["list", "--reason", "crash_loop"], 4).await;
    assert!(none.stderr.contains("orders_dlq"), "{none:?}");
    let publisher = producer(&shop.broker()).await;
    let none = dlq(&shop, &["list", "--reason", "crash_loop"], 0).await;
    assert_eq!(
        none.stdout,
        "there are no such letters in any of the queues\n"
    );
    let mut with_password = letter(Queue::VendorSyncDlq, "u1", "update_conflict", "no json");
    with_password.headers.insert(
        "x-dead-letter-error".into(),
        stockctl::mq::HeaderValue::Text("http://u:hush@vendor/ is away".into()),
    );
    let letters = vec![
        letter(Queue::OrdersDlq, "o1", "invalid_message", "no json"),
        letter(Queue::OrdersDlq, "o2", "crash_loop", "no json"),
        with_password,
    ];
    publish(&publisher, letters).await;
    until_ready(&shop.broker(), Queue::OrdersDlq, 2).await;
    until_ready(&shop.broker(), Queue::VendorSyncDlq, 1).await;
    let mut text = String::new();
    for arguments in [
        &["list"][..],
        &["list", "--limit", "1", "--json"],
        &["list", "--reason", "crash_loop"],
        &["show", "vendor_sync_dlq"],
    ] {
        let Ended { stdout, stderr, .. } = dlq(&shop, arguments, 0).await;
        text.push_str(&format!("$ {}\n{stderr}{stdout}\n", arguments.join(" ")));
    }
    insta::assert_snapshot!(text, @r#"
    $ list
    QUEUE            ID  REASON           WHEN                      ATTEMPTS  CONCERNS  ERROR
    orders_dlq       o1  invalid_message  2026-11-24T10:00:00.000Z  4         -         the error of o1
    orders_dlq       o2  crash_loop       2026-11-24T10:00:00.000Z  4         -         the error of o2
    vendor_sync_dlq  u1  update_conflict  2026-11-24T10:00:00.000Z  4         -         http://u:***@vendor/ is away

    $ list --limit 1 --json
    1 more of orders_dlq were not looked at
    {"queue":"orders_dlq","messageId":"o1","reason":"invalid_message","error":"the error of o1","deadLetteredAt":"2026-11-24T10:00:00Z","attempts":4,"body":"no json"}
    {"queue":"vendor_sync_dlq","messageId":"u1","reason":"update_conflict","error":"http://u:***@vendor/ is away","deadLetteredAt":"2026-11-24T10:00:00Z","attempts":4,"body":"no json"}

    $ list --reason crash_loop
    QUEUE       ID  REASON      WHEN                      ATTEMPTS  CONCERNS  ERROR
    orders_dlq  o2  crash_loop  2026-11-24T10:00:00.000Z  4         -         the error of o2

    $ show vendor_sync_dlq
    id        u1
    reason    update_conflict
    when      2026-11-24T10:00:00.000Z
    attempts  4
    concerns  -
    error     http://u:***@vendor/ is away
    headers
      x-dead-letter-attempts  4
      x-dead-letter-error     http://u:***@vendor/ is away
      x-dead-letter-reason    update_conflict
      x-dead-letter-time      2026-11-24T10:00:00.000Z
      x-delivery-count        3
    body
      no json
    "#);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rabbitmq_itself_dead_lettered_is_told_by_its_reason_and_can_be_replayed() {
    let shop = impatient_shop().await;
    let broker = shop.broker();
    drop(producer(&broker).await);
    let id = amiquip::AmqpProperties::default().with_message_id("worn out".to_owned());
    publish_raw(
        &broker,
        Queue::Orders,
        id,
        br#"{"productId":"p1","quantity":1}"#,
    )
    .await;
    until_ready(&broker, Queue::Orders, 1).await;
    // Handed back until the queue has had enough of it.
    let (settings, name) = (broker.clone(), Queue::Orders.name(&broker));
    tokio::task::spawn_blocking(move || -> amiquip::Result<()> {
        let mut connection = amiquip::Connection::insecure_open(&settings.urls[0])?;
        let channel = connection.open_channel(None)?;
        channel.qos(0, 1, false)?;
        let consumer = channel.basic_consume(&name, amiquip::ConsumerOptions::default())?;
        for _ in 0..21 {
            match consumer.receiver().recv() {
                Ok(amiquip::ConsumerMessage::Delivery(delivery)) => {
                    consumer.nack(delivery, true)?
                }
                other => panic!("a delivery, not {other:?}"),
            }
        }
        channel.queue_declare_passive(&name)?;
        connection.close()
    })
    .await
    .expect("no panic")
    .expect("handed back");
    until_ready(&broker, Queue::OrdersDlq, 1).await;
    let ended = dlq(&shop, &["list", "orders_dlq"], 0).await;
    assert!(ended.stdout.contains("delivery_limit"), "{ended:?}");
    let of_reason = ["orders_dlq", "--reason", "delivery_limit"];
    assert_eq!(listed(&shop, &of_reason).await, ["worn out"]);
    let shown = super::dlq(&shop, &["show", "orders_dlq", "--limit", "1"], 0).await;
    assert!(shown.stdout.contains("x-first-death-queue"), "{shown:?}");
    let replay = [&["replay"], &of_reason[..]].concat();
    dlq(&shop, &replay, 0).await;
    let mut consumer = Consumer::start(broker.clone(), Queue::Orders, 10);
    let replayed = drain(&mut consumer, 1).await;
    assert_eq!(ids(&replayed), ["worn out"]);
    assert!(replayed[0].headers.is_empty(), "{replayed:?}");
}
