//! Publishing with confirms: the async side. A `publish` is answered by what the batch's shared record
//! says, so its answer is right whatever the owner thread is doing, and comes by its deadline.

mod batch;
mod in_flight;
mod session;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};

use self::batch::Batch;
use super::{
    link::Link,
    message::Message,
    queues::{Queue, Settings},
};
use crate::metrics::{MESSAGES, Published};

/// Messages that may wait for their turn to be sent, over all callers. At full speed that is a third of
/// a second; more would only wait for its deadline.
const WAITING_MAX: u32 = 16_384;

/// Why a message is not known to be in its queue.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PublishError {
    /// Certainly not taken by the broker.
    #[error("not published: {0}")]
    Unavailable(String),
    /// It was sent and not answered: it may or may not be there.
    #[error("published without an answer: {0}")]
    Unknown(String),
    /// The broker refused it: its queue is full, or has no majority.
    #[error("RabbitMQ refused the message; its queue is full or lacks a majority")]
    Nacked,
    /// Its queue does not exist. The queues are declared again within two seconds.
    #[error("RabbitMQ returned the message; its queue does not exist")]
    Unroutable,
    /// It can never be published.
    #[error("the message cannot be published at all: {0}")]
    Invalid(String),
}

/// A connection for publishing, shared by its clones. Its thread ends when the last clone is dropped.
#[derive(Clone)]
pub struct Publisher {
    requests: Sender<Request>,
    closes: Sender<Instant>,
    room: Arc<Semaphore>,
    link: watch::Receiver<Link>,
    confirmed: Arc<[AtomicU64; Queue::ALL.len()]>,
}

/// Messages to be sent in order, and where their results go.
struct Request {
    batch: Arc<Batch>,
    messages: std::vec::IntoIter<Message>,
    /// The index of the next message.
    next: usize,
    /// Held until the last message was sent: this is what bounds the messages that wait.
    _room: OwnedSemaphorePermit,
}

/// What the owner thread listens to.
struct Inbox {
    requests: Receiver<Request>,
    closes: Receiver<Instant>,
}

impl Publisher {
    /// Starts the owner thread, which connects in the background. `name` stands in the log and names the
    /// thread. A thread that cannot be started shows in the link.
    pub fn start(settings: Settings, name: &'static str) -> Publisher {
        let (requests, requests_in) = crossbeam_channel::bounded(WAITING_MAX as usize);
        let (closes, closes_in) = crossbeam_channel::bounded(1);
        let (link_out, link) = watch::channel(Link::Connecting { error: None });
        let inbox = Inbox {
            requests: requests_in,
            closes: closes_in,
        };
        let failed = link_out.clone();
        if let Err(error) = session::spawn(settings, name, inbox, link_out) {
            failed.send_replace(Link::Connecting {
                error: Some(thread_error(&error)),
            });
        }
        Publisher {
            requests,
            closes,
            room: Arc::new(Semaphore::new(WAITING_MAX as usize)),
            link,
            confirmed: Arc::default(),
        }
    }

    /// Publishes the messages in order and returns a result for each, in the same order, by the deadline.
    ///
    /// Without a usable connection the answer comes at once, so that the caller can go another way.
    /// When the future is dropped, what has not been sent yet is not sent any more.
    pub async fn publish(
        &self,
        messages: Vec<Message>,
        deadline: Duration,
    ) -> Vec<Result<(), PublishError>> {
        let queues: Vec<Queue> = messages.iter().map(|message| message.queue).collect();
        let results = self.results_of(messages, deadline).await;
        count(&results);
        for (queue, result) in queues.into_iter().zip(&results) {
            if result.is_ok() {
                self.confirmed[queue as usize].fetch_add(1, Ordering::Relaxed);
            }
        }
        results
    }

    /// How many messages the broker has taken for a queue since this was started.
    pub fn confirmed(&self, queue: Queue) -> u64 {
        self.confirmed[queue as usize].load(Ordering::Relaxed)
    }

    async fn results_of(
        &self,
        messages: Vec<Message>,
        deadline: Duration,
    ) -> Vec<Result<(), PublishError>> {
        let count = messages.len();
        if count == 0 {
            return Vec::new();
        }
        let refused = |reason| vec![Err(PublishError::Unavailable(reason)); count];
        if let Err(reason) = self.usable() {
            return refused(reason);
        }
        let permits = u32::try_from(count).unwrap_or(u32::MAX).min(WAITING_MAX);
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(permits) else {
            return refused(format!("{WAITING_MAX} messages wait to be sent already"));
        };
        let batch = Arc::new(Batch::new(&messages));
        let request = Request {
            batch: Arc::clone(&batch),
            messages: messages.into_iter(),
            next: 0,
            _room: room,
        };
        let waiting = Waiting { batch };
        if self.requests.try_send(request).is_err() {
            return refused("the publisher has been closed".to_owned());
        }
        // The link may have broken between the look at it and the sending, and its thread may be busy
        // connecting. It tells the link before it refuses what waits, so one of the two looks sees it.
        if let Err(reason) = self.usable()
            && waiting.batch.withdraw_unbegun()
        {
            return refused(reason);
        }
        let _ = timeout(deadline, waiting.batch.all_settled()).await;
        waiting.batch.close(deadline)
    }

    /// The state of the connection.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// Refuses new messages, waits for what has been sent to be answered, and closes the connection.
    pub async fn close(&self, deadline: Duration) {
        // A second close has nothing to add.
        let _ = self.closes.try_send(Instant::now() + deadline);
        let mut link = self.link.clone();
        let _ = timeout(deadline, async { while link.changed().await.is_ok() {} }).await;
    }

    /// Whether the broker takes messages now, as far as is known.
    ///
    /// # Errors
    /// Why it does not.
    pub fn usable(&self) -> Result<(), String> {
        match &*self.link.borrow() {
            Link::Up => Ok(()),
            Link::Connecting { error: None } => Err("RabbitMQ is being connected to".to_owned()),
            Link::Connecting { error: Some(error) } => {
                Err(format!("no connection to RabbitMQ ({error})"))
            }
            Link::Blocked { reason } => Err(format!("RabbitMQ blocks publishing ({reason})")),
            Link::Misdeclared { message } => Err(message.clone()),
        }
    }
}

fn count(results: &[Result<(), PublishError>]) {
    let confirmed = results.iter().filter(|result| result.is_ok()).count();
    MESSAGES
        .published
        .of(Published::Confirmed)
        .inc_by(confirmed as u64);
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        let counted_as = match error {
            PublishError::Unavailable(_) => Published::Unavailable,
            PublishError::Unknown(_) => Published::Unknown,
            PublishError::Nacked => Published::Nacked,
            PublishError::Unroutable => Published::Unroutable,
            PublishError::Invalid(_) => Published::Invalid,
        };
        MESSAGES.published.of(counted_as).inc();
    }
}

fn thread_error(error: &io::Error) -> String {
    format!("the thread for RabbitMQ cannot be started: {error}")
}

/// A caller that waits; once it is gone, nothing more is sent for it.
struct Waiting {
    batch: Arc<Batch>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.batch.abandon();
    }
}

impl Request {
    /// The messages that were not sent end here: certainly not taken.
    fn refuse(self, reason: &str) {
        self.batch.refuse_unbegun(reason);
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // Nothing is left of a request that was sent whole, and one refused has its reason already.
        self.batch
            .refuse_unbegun("there is no connection to RabbitMQ");
    }
}
