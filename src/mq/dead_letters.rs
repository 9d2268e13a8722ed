//! An operator's session on one dead-letter queue: look at each message, remove some, leave the rest as
//! they are and in their order.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use amiquip::{Channel, ConsumerMessage, ConsumerOptions, QueueDeclareOptions};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

use super::{
    Error,
    consumer::until_cancelled,
    link::{dial_any, parse_addresses},
    message::{Delivery, Tag, received},
    queues::{Queue, Settings},
    trouble::{NOT_FOUND, RESOURCE_LOCKED, Trouble},
    wire::{TICK, Wire},
};

/// A look into a queue takes milliseconds; a silent broker is cut off by the watchdog of `wire` before.
const OPERATION_DEADLINE: Duration = Duration::from_secs(20);

/// How long `close` waits to see everything handed back; the thread goes on without it.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// Messages that a session reads, which bounds its memory, and its length while more come in.
const READ_MAX: u16 = 10_000;

/// How long a session waits for another to end: two at once would each see a part of the queue and take it for all, and
/// give it back in another order.
const ALONE_DEADLINE: Duration = Duration::from_secs(5);
/// How often it looks. Half of it is random, so that two that wait for each other do not go on so.
const ALONE_PAUSE: Duration = Duration::from_millis(200);

/// How long a session waits to see what it gave back in the queue, before it lets others look.
const RETURN_DEADLINE: Duration = Duration::from_secs(20);
const RETURN_PAUSE: Duration = Duration::from_millis(10);

/// How long the broker may take to bring the next message that it says is there.
const NEXT_DEADLINE: Duration = Duration::from_secs(10);

/// After such a pause the broker is asked whether anything is left.
const ARRIVAL_PAUSE: Duration = Duration::from_millis(100);

/// Its answer is believed after so long without a delivery: asked for the length of a quorum queue, a busy broker was
/// seen to answer 0 for one that is not empty.
const QUIET_AT_FIRST: Duration = Duration::from_millis(1000);
const QUIET_LATER: Duration = Duration::from_millis(300);

/// A session has one channel, so no delivery of another can be confused with its own.
const EPOCH: u64 = 0;

/// A session on one dead-letter queue. While it is open, the messages it has read are held back from
/// others; dropping it gives them back.
pub struct DeadLetters {
    commands: Sender<Command>,
    ended: watch::Receiver<()>,
}

enum Command {
    Next(oneshot::Sender<Result<Option<Delivery>, Error>>),
    StopReading(oneshot::Sender<Result<u32, Error>>),
    Ack(u64, oneshot::Sender<Result<(), Error>>),
}

impl DeadLetters {
    /// Connects, and waits until no other session is on the queue. Nothing is read before it is asked for.
    pub async fn open(
        settings: &Settings,
        queue: Queue,
        deadline: Duration,
    ) -> Result<DeadLetters, Error> {
        let name = queue.name(settings);
        if !queue.is_dead_letter() {
            return Err(Error::NotDeadLetters(name));
        }
        let (opened, is_open) = oneshot::channel();
        // One command waits for its answer at a time; the rest is room for callers that gave up waiting.
        let (commands, inbox) = crossbeam_channel::bounded(8);
        let (end, ended) = watch::channel(());
        let settings = settings.clone();
        spawn(move || {
            let _end = end;
            match open_wire(&settings) {
                Ok(wire) => serve(wire, &name, opened, &inbox),
                Err(error) => drop(opened.send(Err(error))),
            }
        })?;
        answer(is_open, deadline).await?;
        Ok(DeadLetters { commands, ended })
    }

    /// The next message, not removed. `None` when all were read that were there when the session began, or 10 000: what
    /// comes in meanwhile never makes a session endless.
    pub async fn next(&mut self) -> Result<Option<Delivery>, Error> {
        self.ask(Command::Next).await
    }

    /// Takes no more messages, and returns how many wait behind those that were read. What comes back to the queue while
    /// those are worked on is never taken for one of them.
    pub async fn stop_reading(&mut self) -> Result<u32, Error> {
        self.ask(Command::StopReading).await
    }

    /// Removes a message for good.
    pub async fn ack(&mut self, tag: Tag) -> Result<(), Error> {
        self.ask(|reply| Command::Ack(tag.number, reply)).await
    }

    /// Gives back, in order, everything not removed.
    pub async fn close(self) {
        let DeadLetters {
            commands,
            mut ended,
        } = self;
        drop(commands);
        // The thread drops its side when it is done.
        let _ = timeout(CLOSE_DEADLINE, ended.changed()).await;
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command,
    ) -> Result<T, Error> {
        let (reply, answered) = oneshot::channel();
        if self.commands.try_send(command(reply)).is_err() {
            return Err(Error::Late(OPERATION_DEADLINE));
        }
        answer(answered, OPERATION_DEADLINE).await
    }
}

/// Runs blocking work on a thread of its own: it may outlive its deadline, which a pool would suffer from.
pub(super) fn spawn(work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    thread::Builder::new()
        .name("mq-operator".to_owned())
        .spawn(work)
        .map(drop)
        .map_err(|error| Error::Unreachable {
            address: "rabbitmq.url".to_owned(),
            reason: format!("a thread cannot be started: {error}"),
        })
}

/// Waits for the thread's answer. A thread that ended without one is as good as one that is late.
pub(super) async fn answer<T>(
    reply: oneshot::Receiver<Result<T, Error>>,
    deadline: Duration,
) -> Result<T, Error> {
    match timeout(deadline, reply).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) | Err(_) => Err(Error::Late(deadline)),
    }
}

/// Connects without declaring anything: who only looks changes nothing.
pub(super) fn open_wire(settings: &Settings) -> Result<Wire, Error> {
    let (wire, tried) = dial_any(&parse_addresses(settings), 0);
    wire.map_err(|trouble| Error::Unreachable {
        address: tried.unwrap_or_else(|| "rabbitmq.url".to_owned()),
        reason: trouble.to_string(),
    })
}

/// Answers commands over one connection until the operator is done, and closes it.
fn serve(
    mut wire: Wire,
    name: &str,
    opened: oneshot::Sender<Result<(), Error>>,
    inbox: &Receiver<Command>,
) {
    let until = Instant::now() + ALONE_DEADLINE;
    let mut opened = Some(opened);
    // Whoever stopped waiting needs no answer.
    let mut tell = |answer| {
        if let Some(opened) = opened.take() {
            let _ = opened.send(answer);
        }
    };
    loop {
        let address = wire.address().to_owned();
        let channel = match wire.open_channel() {
            Ok(channel) => channel,
            Err(trouble) => return tell(Err(Error::lost(&address, &trouble))),
        };
        let (refused, back) = match Session::open(&wire, &channel, name) {
            Ok(session) => {
                tell(Ok(()));
                (None, session.serve(inbox))
            }
            Err(error) => (Some(error), None),
        };
        wire.feed();
        // Everything held goes back with the channel, and with the connection at the latest.
        let _ = channel.close();
        if let Some(ready) = back {
            await_return(&mut wire, name, ready);
        }
        match refused {
            Some(Error::Busy(_)) if Instant::now() < until => {}
            Some(error) => break tell(Err(error)),
            None => break,
        }
        thread::sleep(ALONE_PAUSE.mul_f64(0.5 + fastrand::f64() / 2.0));
    }
    let _ = wire.close();
}

/// Waits until a queue has so many messages: the broker answers that a channel is closed before it has taken back what
/// that held, and whoever looked meanwhile would see the rest and take it for all.
fn await_return(wire: &mut Wire, name: &str, ready: u32) {
    let Ok(channel) = wire.open_channel() else {
        return;
    };
    let until = Instant::now() + RETURN_DEADLINE;
    let is_back = || match channel.queue_declare_passive(name) {
        Ok(queue) => queue.declared_message_count().unwrap_or_default() >= ready,
        Err(_) => true,
    };
    while !is_back() {
        if Instant::now() >= until {
            tracing::warn!(
                queue = name,
                "the broker has not taken back all of what was looked at; the next look may see it in another order"
            );
            break;
        }
        wire.feed();
        thread::sleep(RETURN_PAUSE);
    }
    let _ = channel.close();
}

/// The name of the queue by which a session keeps others out. It is exclusive, so it is one connection's alone, and gone
/// with it.
fn lock_of(name: &str) -> String {
    format!("{name}_session")
}

/// The messages come by a consumer, not by `basic.get`: to a quorum queue each get is a consumer of its
/// own, and on the channel's end it was seen to take their messages back in the order of those consumers'
/// names (1, 10, 2, …). What one consumer holds goes back in its order.
struct Session<'a> {
    wire: &'a Wire,
    channel: &'a Channel,
    consumer: amiquip::Consumer<'a>,
    name: &'a str,
    held: BTreeMap<u64, amiquip::Delivery>,
    /// Messages that were there when it began and were not removed since: nobody else takes any.
    left_at_least: u32,
    /// Whether that is known: a busy broker says 0.
    is_counted: bool,
    unread_max: u16,
    is_reading: bool,
    /// Messages that came after reading was stopped, and are held like the others.
    under_way: u32,
}

/// What the broker says about the queue.
struct Waiting {
    /// Undelivered messages.
    ready: u32,
    /// Consumers beside this session.
    others: u32,
}

impl<'a> Session<'a> {
    fn open(wire: &'a Wire, channel: &'a Channel, name: &'a str) -> Result<Session<'a>, Error> {
        let lost = |error| Error::lost(wire.address(), &Trouble::from(error));
        match channel.queue_declare_passive(name) {
            Ok(queue) if queue.declared_consumer_count().unwrap_or_default() > 0 => {
                return Err(Error::Busy(name.to_owned()));
            }
            Ok(_) => {}
            Err(amiquip::Error::ServerClosedChannel {
                code: NOT_FOUND, ..
            }) => {
                return Err(Error::MissingQueue(name.to_owned()));
            }
            Err(error) => return Err(lost(error)),
        }
        // Consumers alone do not tell: one that has read what it works on consumes no more, and of two that began at the
        // same moment each would have taken a part before it saw the other.
        let exclusive = QueueDeclareOptions {
            exclusive: true,
            ..QueueDeclareOptions::default()
        };
        match channel.queue_declare(lock_of(name), exclusive) {
            Ok(_) => {}
            Err(amiquip::Error::ServerClosedChannel {
                code: RESOURCE_LOCKED,
                ..
            }) => {
                return Err(Error::Busy(name.to_owned()));
            }
            Err(error) => return Err(lost(error)),
        }
        let there = channel.queue_declare_passive(name).map_err(lost)?;
        let there = there.declared_message_count().unwrap_or_default();
        // As many as there are, so that none of those that come meanwhile is on its way when the consumer is cancelled: a
        // quorum queue takes such a one back by itself, and was seen to put it before all that the channel holds.
        let unread_max = match u16::try_from(there) {
            Ok(0) | Err(_) => READ_MAX,
            Ok(there) => there.min(READ_MAX),
        };
        channel.qos(0, unread_max, false).map_err(lost)?;
        let consumer = channel
            .basic_consume(name, ConsumerOptions::default())
            .map_err(lost)?;
        let session = Session {
            wire,
            channel,
            consumer,
            name,
            held: BTreeMap::new(),
            left_at_least: there,
            is_counted: there > 0,
            unread_max,
            is_reading: true,
            under_way: 0,
        };
        // One of an older version may have begun at the same moment; then both stand back.
        match session.waiting()? {
            Some(Waiting { others: 1.., .. }) => Err(Error::Busy(name.to_owned())),
            _ => Ok(session),
        }
    }

    /// Answers commands until the operator is done. Returns how many messages the queue has once those that are held are
    /// back, if that can be told.
    fn serve(mut self, inbox: &Receiver<Command>) -> Option<u32> {
        loop {
            self.wire.feed();
            match inbox.recv_timeout(TICK) {
                Ok(command) => self.answer(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // The connection is closed next in any case.
        self.stop_reading().ok()?;
        let held = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        let behind = self.waiting().ok()??.ready + self.under_way;
        // Of one that ends as it has begun, the broker may have messages that it had not brought yet.
        Some(behind.saturating_add(held).max(self.left_at_least))
    }

    fn answer(&mut self, command: Command) {
        // Whoever stopped waiting needs no answer.
        match command {
            Command::Next(reply) => {
                let _ = reply.send(self.next());
            }
            Command::StopReading(reply) => {
                let left = self.stop_reading().and_then(|()| {
                    let ready = self.waiting()?.map_or(0, |waiting| waiting.ready);
                    Ok(ready + self.under_way)
                });
                let _ = reply.send(left);
            }
            Command::Ack(number, reply) => {
                let _ = reply.send(self.ack(number));
            }
        }
    }

    fn next(&mut self) -> Result<Option<Delivery>, Error> {
        if self.unread_max == 0 {
            return Ok(None);
        }
        let began = Instant::now();
        let quiet = if self.unread_max == READ_MAX {
            QUIET_AT_FIRST
        } else {
            QUIET_LATER
        };
        loop {
            let lost = |trouble| Err(Error::lost(self.wire.address(), &trouble));
            self.wire.feed();
            match self.consumer.receiver().recv_timeout(ARRIVAL_PAUSE) {
                Ok(ConsumerMessage::Delivery(mut handle)) => {
                    self.unread_max -= 1;
                    let delivery = received(&mut handle, EPOCH);
                    self.held.insert(delivery.tag.number, handle);
                    return Ok(Some(delivery));
                }
                Ok(
                    ConsumerMessage::ServerClosedChannel(error)
                    | ConsumerMessage::ServerClosedConnection(error),
                ) => {
                    return lost(Trouble::from(error));
                }
                Ok(_) => return lost(Trouble::Lost("the broker ended the listing".to_owned())),
                Err(RecvTimeoutError::Disconnected) => {
                    return lost(Trouble::Lost("the connection ended".to_owned()));
                }
                Err(RecvTimeoutError::Timeout) if began.elapsed() >= NEXT_DEADLINE => {
                    return Err(Error::Late(NEXT_DEADLINE));
                }
                Err(RecvTimeoutError::Timeout) if began.elapsed() >= quiet => {
                    match self.waiting()? {
                        // Whoever came later has been given a part of what arrived since: that is not all there is.
                        Some(Waiting { others: 1.., .. }) => {
                            return Err(Error::Busy(self.name.to_owned()));
                        }
                        Some(Waiting { ready: 0, .. })
                            if !self.is_counted && self.consumer.receiver().is_empty() =>
                        {
                            self.unread_max = 0;
                            return Ok(None);
                        }
                        _ => {}
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn ack(&mut self, number: u64) -> Result<(), Error> {
        let handle = self.held.remove(&number).ok_or(Error::NotHeld)?;
        handle.ack(self.channel).map_err(|error| self.lost(error))?;
        self.left_at_least = self.left_at_least.saturating_sub(1);
        // An acknowledgement has no answer. The answer to a later question on the same channel says that
        // the broker has taken it in.
        self.waiting().map(drop)
    }

    /// Asks the broker about the queue. `None` when its answer is none: one that is too busy to look says 0 for
    /// everything, and does not count even this session.
    fn waiting(&self) -> Result<Option<Waiting>, Error> {
        let queue = self
            .channel
            .queue_declare_passive(self.name)
            .map_err(|error| self.lost(error))?;
        let consumers = queue.declared_consumer_count().unwrap_or_default();
        if self.is_reading && consumers == 0 {
            return Ok(None);
        }
        Ok(Some(Waiting {
            ready: queue.declared_message_count().unwrap_or_default(),
            others: consumers.saturating_sub(1),
        }))
    }

    fn lost(&self, error: amiquip::Error) -> Error {
        Error::lost(self.wire.address(), &Trouble::from(error))
    }

    /// Cancels the consumer, and counts the messages that were on their way to it.
    fn stop_reading(&mut self) -> Result<(), Error> {
        if !self.is_reading {
            return Ok(());
        }
        self.take_under_way()?;
        self.unread_max = 0;
        self.is_reading = false;
        self.consumer.cancel().map_err(|error| self.lost(error))?;
        let under_way = until_cancelled(&self.consumer)
            .into_iter()
            .filter(|message| matches!(message, ConsumerMessage::Delivery(_)))
            .count();
        self.under_way += u32::try_from(under_way).unwrap_or(u32::MAX);
        Ok(())
    }

    /// Waits for what the broker has for the consumer already, so that none of it is on its way when that is cancelled.
    fn take_under_way(&mut self) -> Result<(), Error> {
        if !self.is_counted {
            while let Some(delivery) = self.next()? {
                self.held.remove(&delivery.tag.number);
                self.under_way += 1;
            }
            return Ok(());
        }
        let held = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        let until = Instant::now() + NEXT_DEADLINE;
        while held + self.under_way < self.left_at_least.min(READ_MAX.into()) {
            self.wire.feed();
            match self.consumer.receiver().recv_timeout(ARRIVAL_PAUSE) {
                Ok(ConsumerMessage::Delivery(_)) => self.under_way += 1,
                Err(RecvTimeoutError::Timeout) if Instant::now() < until => {}
                // The cancellation will tell.
                _ => break,
            }
        }
        Ok(())
    }
}
