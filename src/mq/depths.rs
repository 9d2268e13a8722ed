//! How full the queues are, for status pages.

use std::time::Duration;

use amiquip::Channel;
use tokio::sync::oneshot;

use super::{
    Error,
    dead_letters::{answer, open_wire, spawn},
    queues::{Queue, Settings},
    trouble::{NOT_FOUND, Trouble},
    wire::Wire,
};

/// What the broker says about one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// The queue.
    pub queue: Queue,
    /// Messages that wait to be delivered.
    pub messages_ready: u32,
    /// Who consumes it.
    pub consumers: u32,
}

/// Asks the broker about every queue. One that does not exist (yet) is not in the answer.
pub async fn depths(settings: &Settings, deadline: Duration) -> Result<Vec<Depth>, Error> {
    let (reply, answered) = oneshot::channel();
    let settings = settings.clone();
    spawn(move || {
        let depths = open_wire(&settings).and_then(|mut wire| {
            let address = wire.address().to_owned();
            let depths =
                read(&mut wire, &settings).map_err(|trouble| Error::lost(&address, &trouble));
            // The answer is what counts.
            let _ = wire.close();
            depths
        });
        let _ = reply.send(depths);
    })?;
    answer(answered, deadline).await
}

fn read(wire: &mut Wire, settings: &Settings) -> Result<Vec<Depth>, Trouble> {
    let mut depths = Vec::with_capacity(Queue::ALL.len());
    let mut channel: Option<Channel> = None;
    let mut has_webhooks = true;
    for queue in Queue::ALL {
        if queue.is_of_webhooks() && !has_webhooks {
            continue;
        }
        let current = match channel.take() {
            Some(channel) => channel,
            None => wire.open_channel()?,
        };
        let counted = current
            .queue_declare_passive(queue.name(settings))
            .map(|found| {
                (
                    found.declared_message_count(),
                    found.declared_consumer_count(),
                )
            });
        match counted {
            Ok((messages, consumers)) => {
                depths.push(Depth {
                    queue,
                    messages_ready: messages.unwrap_or_default(),
                    consumers: consumers.unwrap_or_default(),
                });
                channel = Some(current);
            }
            // The broker has closed this channel over it; the next queue needs another.
            Err(amiquip::Error::ServerClosedChannel {
                code: NOT_FOUND, ..
            }) => {
                // It is declared before the others of webhooks, and never goes: without it there are none.
                has_webhooks &= queue != Queue::WebhooksDlq;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(depths)
}
