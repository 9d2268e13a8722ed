//! The thread that owns a publisher's connection.
//!
//! Its sends do not block for long: what is outstanding is bounded below the point where amiquip stops
//! taking frames, also when the broker stops reading (an alarm, a stopped process). Its calls that wait
//! for an answer are ended by the watchdog of `wire`.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use amiquip::{Channel, Confirm, ConnectionBlockedNotification, Publish, Return};
use crossbeam_channel::{Receiver, Select, TryRecvError};
use tokio::sync::watch;

use super::{
    Inbox, PublishError, Request,
    in_flight::{InFlight, Sent},
};
use crate::fault_injection::{Bug, is_planted};
use crate::metrics::{FAULTS, Fault};
use crate::mq::{
    link::{Dialer, Link, NEW_QUEUE, REDECLARE_PAUSE, declare_queues},
    message::properties,
    queues::{Queue, Settings},
    topology::{Declared, NEW_QUEUE_PAUSE},
    trouble::Trouble,
    wire::{TICK, Wire},
};

/// Messages sent before the broker's answers are looked at again.
const BURST_MAX: usize = 64;

/// A broker that owes a confirm for so long will not give it (a quorum queue that lost its majority and
/// came back, say). Only a new channel frees the room that the message takes.
const CONFIRM_OVERDUE: Duration = Duration::from_secs(30);

pub(super) fn spawn(
    settings: Settings,
    name: &'static str,
    inbox: Inbox,
    link: watch::Sender<Link>,
) -> io::Result<()> {
    let dialer = Dialer::new(name, name, &settings, link);
    thread::Builder::new()
        .name(format!("mq-{name}"))
        .spawn(move || {
            Owner {
                dialer,
                inbox,
                closing: None,
                has_settled: false,
            }
            .run();
        })?;
    Ok(())
}

struct Owner {
    dialer: Dialer,
    inbox: Inbox,
    /// Set once nothing new is taken: until when to wait for the answers still due.
    closing: Option<Instant>,
    /// Every queue is known to have been there for `NEW_QUEUE_PAUSE`.
    has_settled: bool,
}

impl Owner {
    fn run(mut self) {
        while self.closing.is_none() {
            let trouble = match self.dialer.dial() {
                Ok((mut wire, declared)) => {
                    let mut in_flight = InFlight::default();
                    let ended = self.serve(&mut wire, &mut in_flight, declared);
                    let Err(trouble) = ended else {
                        // Closing it well or not makes no difference any more.
                        let _ = wire.close();
                        break;
                    };
                    // Closing a broken connection may take a moment in which callers need an answer.
                    self.dialer.interrupted(&trouble);
                    self.refuse_waiting(&trouble.to_string());
                    let trouble = wire.end(trouble);
                    in_flight.lost(&trouble.to_string());
                    trouble
                }
                Err(trouble) => trouble,
            };
            let pause = self.dialer.down(&trouble);
            self.refuse_for(pause, &trouble.to_string());
        }
        self.dialer.end();
    }

    /// Answers callers while there is no connection.
    fn refuse_for(&mut self, pause: Duration, reason: &str) {
        let until = Instant::now() + pause;
        loop {
            self.refuse_waiting(reason);
            let left = until.saturating_duration_since(Instant::now());
            if self.closing.is_some() || left.is_zero() {
                return;
            }
            let mut select = Select::new();
            select.recv(&self.inbox.requests);
            select.recv(&self.inbox.closes);
            let _ = select.ready_timeout(left);
        }
    }

    fn refuse_waiting(&mut self, reason: &str) {
        while let Some(request) = self.next_request() {
            request.refuse(reason);
        }
        self.take_close();
    }

    fn next_request(&mut self) -> Option<Request> {
        match self.inbox.requests.try_recv() {
            Ok(request) => Some(request),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                // The last publisher was dropped, and nobody waits for an answer any more.
                self.closing.get_or_insert_with(Instant::now);
                None
            }
        }
    }

    fn take_close(&mut self) {
        if let Ok(until) = self.inbox.closes.try_recv() {
            self.closing.get_or_insert(until);
        }
    }

    /// Lets queues that are new get old enough to be published to. The link is told before what waits is refused:
    /// `Publisher::publish` relies on that order.
    fn settle(&mut self) {
        self.dialer.settling();
        self.refuse_for(NEW_QUEUE_PAUSE, NEW_QUEUE);
        self.has_settled = true;
    }

    /// Publishes over one connection until it breaks or the publisher is closed.
    fn serve(
        &mut self,
        wire: &mut Wire,
        in_flight: &mut InFlight,
        declared: Declared,
    ) -> Result<(), Trouble> {
        let mut session = Session::open(wire, in_flight, self.dialer.settings().clone())?;
        // On the first connection a queue that is known may be one that somebody else has declared just now.
        if declared == Declared::New || !self.has_settled {
            self.settle();
        }
        self.dialer.up();
        loop {
            wire.feed();
            session.take_answers()?;
            self.take_notes(wire, &mut session)?;
            self.take_close();
            if let Some(until) = self.closing {
                session.current = None;
                if session.in_flight.is_empty() || Instant::now() >= until {
                    return Ok(());
                }
            } else if session.is_blocked {
                self.refuse_waiting("RabbitMQ blocks publishing");
            } else {
                if session.is_redeclare_due()
                    && declare_queues(wire, self.dialer.settings())? == Declared::New
                {
                    self.settle();
                    self.dialer.up();
                }
                if session.current.is_none() {
                    session.current = self.next_request();
                }
            }
            session.check_overdue()?;
            match session.send_burst()? {
                Burst::More => {}
                Burst::Full => self.wait(wire, &session, false),
                Burst::Done => self.wait(wire, &session, true),
            }
        }
    }

    /// Alarms of the broker, and whether the connection still lives.
    fn take_notes(&mut self, wire: &Wire, session: &mut Session<'_>) -> Result<(), Trouble> {
        loop {
            let reason = match wire.notes().try_recv() {
                Ok(ConnectionBlockedNotification::Blocked(reason)) => Some(reason),
                Ok(ConnectionBlockedNotification::Unblocked) => None,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(ended()),
            };
            session.is_blocked = reason.is_some();
            // The link is told before what waits is refused: `Publisher::publish` relies on that order.
            self.dialer.blocked(reason);
            if session.is_blocked
                && let Some(request) = session.current.take()
            {
                request.refuse("RabbitMQ blocks publishing");
            }
        }
    }

    /// Waits for something to do. Requests stay where they are bounded until there is room for them.
    fn wait(&self, wire: &Wire, session: &Session<'_>, takes_requests: bool) {
        let mut select = Select::new();
        select.recv(&session.confirms);
        select.recv(wire.notes());
        // While closing, both of these may be ready for good.
        if self.closing.is_none() {
            select.recv(&self.inbox.closes);
            if takes_requests {
                select.recv(&self.inbox.requests);
            }
        }
        let _ = select.ready_timeout(TICK);
    }
}

fn ended() -> Trouble {
    Trouble::Lost("the connection ended".to_owned())
}

/// How far a burst came.
enum Burst {
    /// There is more to send.
    More,
    /// There is no room until the broker answers.
    Full,
    /// Everything asked for was sent.
    Done,
}

/// One confirm-mode channel.
struct Session<'a> {
    settings: Settings,
    in_flight: &'a mut InFlight,
    returns: Receiver<Return>,
    confirms: Receiver<Confirm>,
    channel: Channel,
    current: Option<Request>,
    is_blocked: bool,
    /// When the first message came back since the queues were declared: one is missing.
    missing_since: Option<Instant>,
}

impl Session<'_> {
    fn open<'a>(
        wire: &mut Wire,
        in_flight: &'a mut InFlight,
        settings: Settings,
    ) -> Result<Session<'a>, Trouble> {
        let channel = wire.open_channel()?;
        let session = Session {
            settings,
            in_flight,
            // amiquip discards returns and confirms without a listener, so these come before any message.
            returns: channel.listen_for_returns()?,
            confirms: channel.listen_for_publisher_confirms()?,
            channel,
            current: None,
            is_blocked: false,
            missing_since: None,
        };
        session.channel.enable_publisher_confirms()?;
        Ok(session)
    }

    /// Takes in what the broker answered. A confirm counts only after the returns that came before it:
    /// amiquip hands both over in the broker's order, so those are all here once the confirm is.
    fn take_answers(&mut self) -> Result<(), Trouble> {
        loop {
            let confirm = self.confirms.try_recv();
            for returned in self.returns.try_iter() {
                self.missing_since.get_or_insert_with(Instant::now);
                let message_id = returned
                    .properties
                    .message_id()
                    .as_deref()
                    .unwrap_or_default();
                let is_queue = |queue: Queue| returned.routing_key == queue.name(&self.settings);
                self.in_flight.returned(is_queue, message_id);
            }
            match confirm {
                Ok(Confirm::Ack(ack)) => {
                    self.in_flight
                        .confirmed(ack.delivery_tag, ack.multiple, &Ok(()))
                }
                Ok(Confirm::Nack(nack)) => {
                    self.in_flight.confirmed(
                        nack.delivery_tag,
                        nack.multiple,
                        &Err(PublishError::Nacked),
                    );
                }
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(self.reason()),
            }
        }
    }

    /// The channel or the connection is gone; a call on a closed channel tells why.
    fn reason(&self) -> Trouble {
        let Err(error) = self.channel.qos(0, 0, false) else {
            return ended();
        };
        if matches!(error, amiquip::Error::ServerClosedChannel { .. }) {
            FAULTS.of(Fault::ChannelClosed).inc();
        }
        Trouble::from(error)
    }

    fn is_redeclare_due(&mut self) -> bool {
        let is_due = self
            .missing_since
            .is_some_and(|since| since.elapsed() >= REDECLARE_PAUSE);
        if is_due {
            self.missing_since = None;
            FAULTS.of(Fault::QueueMissing).inc();
            tracing::warn!(
                "RabbitMQ returned a message, so a queue is missing; all are declared again"
            );
        }
        is_due
    }

    fn check_overdue(&self) -> Result<(), Trouble> {
        match self.in_flight.oldest_age() {
            // A blocked broker answers when its alarm is over.
            Some(age) if age > CONFIRM_OVERDUE && !self.is_blocked => Err(Trouble::Lost(format!(
                "the broker has owed a confirm for {age:.0?}; a queue may have lost its majority"
            ))),
            _ => Ok(()),
        }
    }

    fn send_burst(&mut self) -> Result<Burst, Trouble> {
        let Some(request) = &mut self.current else {
            return Ok(Burst::Done);
        };
        for _ in 0..BURST_MAX {
            let Some(message) = request.messages.as_slice().first() else {
                self.current = None;
                return Ok(Burst::Done);
            };
            let bytes = message.wire_bytes();
            if !self.in_flight.has_room_for(bytes) {
                return Ok(Burst::Full);
            }
            let Some(message) = request.messages.next() else {
                return Ok(Burst::More);
            };
            let index = request.next;
            request.next += 1;
            if !request.batch.begin(index) {
                continue;
            }
            let publish = Publish {
                body: &message.body,
                routing_key: message.queue.name(&self.settings),
                mandatory: true,
                immediate: false,
                properties: properties(&message.message_id, &message.headers),
            };
            if is_planted(Bug::PublishWithoutConfirm) {
                request.batch.settle(index, Ok(()));
            }
            // Noted before it is sent: whatever happens from here on, it may be there.
            self.in_flight.add(Sent {
                batch: request.batch.clone(),
                index,
                queue: message.queue,
                message_id: message.message_id,
                bytes,
                at: Instant::now(),
            });
            self.channel.basic_publish("", publish)?;
        }
        Ok(Burst::More)
    }
}
