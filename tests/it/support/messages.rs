//! Being another producer or consumer at a shop's queues.

use std::time::Duration;

use stockctl::mq::{self, Consumer, Delivery, Headers, Link, Message, Publisher, Queue, Tag};
use tokio::sync::watch;

use super::{DEADLINE, eventually};

/// Waits until a connection is as asked for, and returns what it is.
pub(crate) async fn link_is(
    mut link: watch::Receiver<Link>,
    is_so: impl Fn(&Link) -> bool,
) -> Link {
    tokio::time::timeout(DEADLINE, link.wait_for(|link| is_so(link)))
        .await
        .expect("the link comes to it")
        .expect("its thread lives")
        .clone()
}

/// A publisher that is connected.
pub(crate) async fn producer(settings: &mq::Settings) -> Publisher {
    let publisher = Publisher::start(settings.clone(), "test");
    link_is(publisher.link(), |link| *link == Link::Up).await;
    publisher
}

/// A message without headers.
pub(crate) fn message(queue: Queue, id: impl ToString, body: impl Into<Vec<u8>>) -> Message {
    Message {
        queue,
        message_id: id.to_string(),
        headers: Headers::new(),
        body: body.into(),
    }
}

/// Publishes, and sees every confirm.
pub(crate) async fn publish(publisher: &Publisher, messages: Vec<Message>) {
    for result in publisher.publish(messages, DEADLINE).await {
        result.expect("confirmed");
    }
}

/// The next deliveries.
pub(crate) async fn batch(consumer: &mut Consumer, max: usize) -> Vec<Delivery> {
    tokio::time::timeout(DEADLINE, consumer.next_batch(max, usize::MAX, None))
        .await
        .expect("a delivery comes")
        .expect("the consumer goes on")
}

/// Deliveries until there are so many, none acknowledged.
pub(crate) async fn hold(consumer: &mut Consumer, count: usize) -> Vec<Delivery> {
    let mut held = Vec::new();
    while held.len() < count {
        held.extend(batch(consumer, count - held.len()).await);
    }
    held
}

/// Every message of a queue until there are so many, each acknowledged.
pub(crate) async fn drain(consumer: &mut Consumer, count: usize) -> Vec<Delivery> {
    let mut drained = Vec::new();
    while drained.len() < count {
        let more = batch(consumer, count).await;
        consumer.ack(tags(&more)).await;
        drained.extend(more);
    }
    drained
}

/// What to acknowledge deliveries with.
pub(crate) fn tags(deliveries: &[Delivery]) -> Vec<Tag> {
    deliveries.iter().map(|delivery| delivery.tag).collect()
}

/// The ids of deliveries, in order of arrival.
pub(crate) fn ids(deliveries: &[Delivery]) -> Vec<String> {
    deliveries
        .iter()
        .map(|delivery| delivery.message_id.clone().unwrap_or_default())
        .collect()
}

/// How many messages wait in a queue, undelivered, once it exists.
pub(crate) async fn ready(settings: &mq::Settings, queue: Queue) -> u32 {
    eventually(&format!("{queue:?} exists"), || async {
        mq::depths(settings, Duration::from_secs(10))
            .await
            .expect("the broker answers")
            .into_iter()
            .find(|depth| depth.queue == queue)
    })
    .await
    .messages_ready
}

/// Waits until so many messages wait in a queue.
pub(crate) async fn until_ready(settings: &mq::Settings, queue: Queue, count: u32) {
    eventually(&format!("{count} wait in {queue:?}"), || async {
        (ready(settings, queue).await == count).then_some(())
    })
    .await;
}

/// Publishes as any AMQP client may: with the properties it likes, or none.
pub(crate) async fn publish_raw(
    settings: &mq::Settings,
    queue: Queue,
    properties: amiquip::AmqpProperties,
    body: &[u8],
) {
    let (settings, body) = (settings.clone(), body.to_vec());
    let published = tokio::task::spawn_blocking(move || -> amiquip::Result<()> {
        let mut connection = amiquip::Connection::insecure_open(&settings.urls[0])?;
        let channel = connection.open_channel(None)?;
        let name = queue.name(&settings);
        // The channel's close comes after the message, and is answered when the broker has taken it in.
        channel.basic_publish(
            "",
            amiquip::Publish::with_properties(&body, name, properties),
        )?;
        channel.close()?;
        connection.close()
    });
    published.await.expect("no panic").expect("published");
}
