//! The thread that owns a consumer's connection.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use amiquip::{Channel, ConsumerMessage, ConsumerOptions};
use crossbeam_channel::{Receiver, Select, TryRecvError};
use tokio::sync::watch;

use super::{Shared, Wanted, held::Held};
use crate::metrics::{FAULTS, Fault};
use crate::mq::{
    link::{Dialer, Link},
    message::{Delivery, received},
    queues::{Queue, Settings},
    trouble::{NOT_FOUND, Trouble},
    wire::{TICK, Wire},
};

/// Deliveries handed over under one lock, before acknowledgements are looked at again.
const HAND_OVER_MAX: usize = 256;

/// amiquip's own thread gives the note microseconds after the answer; it can only fail to come with the
/// connection.
const CANCEL_NOTE_DEADLINE: Duration = Duration::from_secs(5);

/// A quorum queue that is deleted and declared again at once keeps its consumers in name, but was seen to
/// send them its first messages in vain, without a word (RabbitMQ 3.10). Those stay unacknowledged until
/// the channel closes, so one on which nothing happens is replaced.
const RENEW_AFTER_IDLE: Duration = Duration::from_secs(30);

/// After so long without a delivery, none is taken to be under way.
const ARRIVAL_QUIET: Duration = Duration::from_millis(50);

/// A slow stream of new messages must not keep a redelivered one waiting for long.
const ARRIVAL_MAX: Duration = Duration::from_secs(1);

/// How often the broker is asked what else waits. It costs one small question on the channel that is there.
const ASK_INTERVAL: Duration = Duration::from_secs(3);

/// One message at a time: nothing else is held beside a message that may be dangerous.
const CAREFUL_PREFETCH: u16 = 1;

pub(super) fn spawn(owner: Owner, queue: Queue) -> io::Result<()> {
    thread::Builder::new()
        .name(format!("mq-{}", queue.base_name()))
        .spawn(move || owner.run())?;
    Ok(())
}

pub(super) struct Owner {
    dialer: Dialer,
    queue_name: String,
    prefetch: u16,
    shared: Arc<Shared>,
    wake: Receiver<()>,
    /// What has been done of what is wanted.
    reached: watch::Sender<Wanted>,
}

/// Whatever ends the thread, a panic too, ends the waiting for it.
impl Drop for Owner {
    fn drop(&mut self) {
        {
            let mut record = self.shared.lock();
            record.start_epoch();
            record.wanted = Wanted::Closed;
            record.is_at_end = true;
        }
        self.shared.arrived.notify_one();
        self.dialer.end();
        self.reached.send_replace(Wanted::Closed);
    }
}

impl Owner {
    pub(super) fn new(
        settings: Settings,
        queue: Queue,
        prefetch: u16,
        shared: Arc<Shared>,
        wake: Receiver<()>,
        reached: watch::Sender<Wanted>,
        link: watch::Sender<Link>,
    ) -> Owner {
        let queue_name = queue.name(&settings);
        Owner {
            dialer: Dialer::new(&queue_name, queue.base_name(), &settings, link),
            queue_name,
            // To the broker, zero means no limit.
            prefetch: prefetch.max(1),
            shared,
            wake,
            reached,
        }
    }

    fn run(mut self) {
        loop {
            match self.wanted() {
                Wanted::Closed => return,
                // Nothing is held, and nothing new is wanted: there is no reason to connect.
                Wanted::Stopped => {
                    self.at_end();
                    self.sleep(TICK);
                    continue;
                }
                Wanted::Consuming | Wanted::HandedBack => {}
            }
            let trouble = match self.dialer.dial() {
                // A queue that is new is no matter here: what a crash takes with it was published by others.
                Ok((mut wire, _)) => {
                    let ended = self.serve(&mut wire);
                    self.shared.lock().start_epoch();
                    let Err(trouble) = ended else {
                        // Closing it well or not makes no difference any more.
                        let _ = wire.close();
                        return;
                    };
                    self.dialer.interrupted(&trouble);
                    wire.end(trouble)
                }
                Err(trouble) => trouble,
            };
            let pause = self.dialer.down(&trouble);
            self.pause(pause);
        }
    }

    fn queue_gone(&self) -> Trouble {
        Trouble::QueueGone(format!(
            "the broker cancelled the consumer of {}: the queue was deleted, or its node went down",
            self.queue_name
        ))
    }

    fn wanted(&self) -> Wanted {
        self.shared.lock().wanted
    }

    /// Nothing is held and nothing will arrive.
    fn at_end(&self) {
        self.shared.lock().is_at_end = true;
        self.shared.arrived.notify_one();
        self.reached.send_replace(Wanted::Stopped);
    }

    fn sleep(&self, limit: Duration) {
        let _ = self.wake.recv_timeout(limit);
    }

    /// Waits before the next attempt. Nothing is held meanwhile, so handing back has nothing to wait for.
    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        loop {
            let wanted = self.wanted();
            if wanted == Wanted::HandedBack {
                self.reached.send_replace(wanted);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || wanted >= Wanted::Stopped {
                return;
            }
            self.sleep(left);
        }
    }

    /// Does what is wanted over one connection until it breaks or the consumer is closed.
    fn serve(&mut self, wire: &mut Wire) -> Result<(), Trouble> {
        let mut is_told = false;
        loop {
            match self.wanted() {
                Wanted::Closed => return Ok(()),
                Wanted::Consuming => self.consume(wire, &mut is_told)?,
                wanted @ (Wanted::HandedBack | Wanted::Stopped) => {
                    if !std::mem::replace(&mut is_told, true) {
                        self.dialer.up();
                    }
                    if wanted == Wanted::Stopped {
                        self.at_end();
                    } else {
                        self.reached.send_replace(wanted);
                    }
                    self.wait(wire, None)?;
                }
            }
        }
    }

    /// Waits until something happened, at most a tick.
    fn wait(
        &self,
        wire: &Wire,
        deliveries: Option<&Receiver<ConsumerMessage>>,
    ) -> Result<(), Trouble> {
        wire.feed();
        let mut select = Select::new();
        select.recv(&self.wake);
        select.recv(wire.notes());
        if let Some(deliveries) = deliveries {
            select.recv(deliveries);
        }
        let _ = select.ready_timeout(TICK);
        let _ = self.wake.try_recv();
        match wire.notes().try_recv() {
            Err(TryRecvError::Disconnected) => {
                Err(Trouble::Lost("the connection ended".to_owned()))
            }
            // Alarms concern connections that publish.
            Ok(_) | Err(TryRecvError::Empty) => Ok(()),
        }
    }

    /// Consumes on one channel, until something else is wanted.
    fn consume(&mut self, wire: &mut Wire, is_told: &mut bool) -> Result<(), Trouble> {
        let channel = wire.open_channel()?;
        self.reached.send_replace(Wanted::Consuming);
        let epoch = self.shared.lock().epoch;
        let mut intake = Intake {
            owner: self,
            channel: &channel,
            epoch,
            held: Held::new(),
            mode: Mode::Paused,
            saw_fresh: false,
            idle_since: Instant::now(),
            asked: None,
        };
        intake.consume(Pace::Careful)?;
        if !std::mem::replace(is_told, true) {
            intake.owner.dialer.up();
        }
        loop {
            intake.send_acks()?;
            let (wanted, must_let_go) = {
                let record = intake.owner.shared.lock();
                (record.wanted, record.must_let_go)
            };
            match wanted {
                _ if must_let_go => break,
                Wanted::Consuming => {}
                Wanted::Stopped => intake.stop()?,
                Wanted::HandedBack | Wanted::Closed => break,
            }
            intake.take_deliveries()?;
            intake.choose_pace(wanted)?;
            if wanted == Wanted::Consuming {
                intake.ask_what_waits()?;
            }
            if wanted == Wanted::Consuming && intake.is_idle_for_long() {
                intake.pause()?;
                // What came in the last moment is worked on before the channel is closed over it.
                if intake.held.is_empty() {
                    break;
                }
            }
            intake.wait(wire)?;
        }
        // Nothing is nacked: the broker takes everything held back when the channel closes.
        intake.pause()?;
        intake.send_acks()?;
        drop(intake);
        wire.feed();
        channel.close()?;
        self.shared.lock().start_epoch();
        Ok(())
    }
}

/// Everything a cancelled consumer still gets. amiquip puts its note of the cancellation last, after
/// the call has returned already, and breaks the connection when nobody is there to take it.
pub(in crate::mq) fn until_cancelled(consumer: &amiquip::Consumer<'_>) -> Vec<ConsumerMessage> {
    let mut under_way = Vec::new();
    while let Ok(message) = consumer.receiver().recv_timeout(CANCEL_NOTE_DEADLINE) {
        if let ConsumerMessage::ClientCancelled = message {
            break;
        }
        under_way.push(message);
    }
    under_way
}

/// How many messages are asked for at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Pace {
    /// One, until a fresh one shows that the redelivered ones are over.
    Careful,
    /// The whole prefetch.
    Full,
}

enum Mode<'c> {
    Consuming(Pace, amiquip::Consumer<'c>),
    /// Cancelled; what is held stays held.
    Paused,
}

/// The deliveries of one channel.
struct Intake<'c> {
    owner: &'c mut Owner,
    channel: &'c Channel,
    epoch: u64,
    held: Held<amiquip::Delivery>,
    mode: Mode<'c>,
    /// A fresh message came since consuming began.
    saw_fresh: bool,
    /// Nothing has been held since.
    idle_since: Instant,
    /// When the broker was last asked what waits.
    asked: Option<Instant>,
}

impl Intake<'_> {
    fn consume(&mut self, pace: Pace) -> Result<(), Trouble> {
        let prefetch = match pace {
            Pace::Careful => CAREFUL_PREFETCH,
            Pace::Full => self.owner.prefetch,
        };
        self.saw_fresh = false;
        // Quorum queues know no prefetch of the whole channel; this one holds for the next consumer.
        self.channel.qos(0, prefetch, false)?;
        let consumer = self
            .channel
            .basic_consume(self.owner.queue_name.as_str(), ConsumerOptions::default())?;
        tracing::debug!(queue = self.owner.queue_name, ?pace, prefetch, "consuming");
        self.mode = Mode::Consuming(pace, consumer);
        Ok(())
    }

    fn ask_what_waits(&mut self) -> Result<(), Trouble> {
        if self
            .asked
            .is_some_and(|asked| asked.elapsed() < ASK_INTERVAL)
        {
            return Ok(());
        }
        let found = self
            .channel
            .queue_declare_passive(self.owner.queue_name.as_str())
            .map_err(|error| match error {
                amiquip::Error::ServerClosedChannel {
                    code: NOT_FOUND, ..
                } => {
                    FAULTS.of(Fault::QueueMissing).inc();
                    self.owner.queue_gone()
                }
                other => Trouble::from(other),
            })?;
        self.owner.shared.lock().waiting = found.declared_message_count();
        self.asked = Some(Instant::now());
        Ok(())
    }

    fn is_idle_for_long(&mut self) -> bool {
        if !self.held.is_empty() {
            self.idle_since = Instant::now();
        }
        self.idle_since.elapsed() >= RENEW_AFTER_IDLE
    }

    /// Cancels the consumer and takes in what was under way.
    fn pause(&mut self) -> Result<(), Trouble> {
        if let Mode::Consuming(_, consumer) = std::mem::replace(&mut self.mode, Mode::Paused) {
            consumer.cancel()?;
            self.take(until_cancelled(&consumer))?;
        }
        Ok(())
    }

    /// Waits for what is under way from the broker. Fresh messages published while a consumer was being
    /// cancelled were seen to come back counted as redelivered (RabbitMQ 3.10: in 22 of 60 runs, with this
    /// wait in none), and a message counted often is taken for one that crashes its consumers. Nothing is
    /// acknowledged meanwhile, so the prefetch ends the wait at the latest.
    fn let_arrive(&mut self) -> Result<(), Trouble> {
        let until = Instant::now() + ARRIVAL_MAX;
        while let Mode::Consuming(_, consumer) = &self.mode
            && self.held.len() <= usize::from(self.owner.prefetch)
            && Instant::now() < until
            && let Ok(message) = consumer.receiver().recv_timeout(ARRIVAL_QUIET)
        {
            self.take(vec![message])?;
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), Trouble> {
        self.pause()?;
        self.owner.at_end();
        Ok(())
    }

    fn take_deliveries(&mut self) -> Result<(), Trouble> {
        let arrived: Vec<_> = match &self.mode {
            Mode::Consuming(_, consumer) => {
                consumer.receiver().try_iter().take(HAND_OVER_MAX).collect()
            }
            Mode::Paused => Vec::new(),
        };
        self.take(arrived)
    }

    fn take(&mut self, arrived: Vec<ConsumerMessage>) -> Result<(), Trouble> {
        let mut fresh = Vec::with_capacity(arrived.len());
        let mut end = Ok(());
        for message in arrived {
            match message {
                ConsumerMessage::Delivery(mut handle) => {
                    let delivery = received(&mut handle, self.epoch);
                    self.saw_fresh |= delivery.redeliveries == 0;
                    fresh.extend(self.held.arrived(delivery, handle));
                }
                ConsumerMessage::ServerCancelled => {
                    FAULTS.of(Fault::ConsumerCancelled).inc();
                    end = Err(self.owner.queue_gone());
                }
                ConsumerMessage::ServerClosedChannel(error)
                | ConsumerMessage::ServerClosedConnection(error) => {
                    if matches!(error, amiquip::Error::ServerClosedChannel { .. }) {
                        FAULTS.of(Fault::ChannelClosed).inc();
                    }
                    end = Err(Trouble::from(error));
                }
                ConsumerMessage::ClientCancelled
                | ConsumerMessage::ClientClosedChannel
                | ConsumerMessage::ClientClosedConnection => {
                    end = Err(Trouble::Lost("the channel was closed".to_owned()));
                }
            }
        }
        end?;
        self.hand_over(fresh);
        Ok(())
    }

    fn hand_over(&mut self, deliveries: Vec<Delivery>) {
        let is_any = !deliveries.is_empty();
        {
            let mut record = self.owner.shared.lock();
            record.waiting_alone = self.held.waiting_alone();
            // What was handed back meanwhile returns to the broker with the channel.
            if !record.must_let_go && record.wanted != Wanted::Closed {
                record.ready.extend(deliveries);
            }
        }
        if is_any {
            self.owner.shared.arrived.notify_one();
        }
    }

    fn send_acks(&mut self) -> Result<(), Trouble> {
        let numbers = std::mem::take(&mut self.owner.shared.lock().acks);
        if numbers.is_empty() {
            return Ok(());
        }
        let acks = self.held.acked(&numbers);
        if let Some(last) = acks.up_to {
            last.ack_multiple(self.channel)?;
        }
        for handle in acks.single {
            handle.ack(self.channel)?;
        }
        Ok(())
    }

    /// Goes from careful to full and back, and gives out redelivered messages one by one.
    fn choose_pace(&mut self, wanted: Wanted) -> Result<(), Trouble> {
        match self.mode {
            Mode::Consuming(Pace::Careful, _) if self.saw_fresh => {
                self.pause()?;
                if self.held.waiting_alone() == 0 {
                    self.consume(Pace::Full)?;
                }
            }
            Mode::Consuming(Pace::Full, _) if self.held.waiting_alone() > 0 => {
                tracing::info!(
                    queue = self.owner.queue_name,
                    "a message was redelivered; taking one at a time until a fresh one comes"
                );
                self.let_arrive()?;
                self.pause()?;
            }
            Mode::Paused if self.held.is_empty() && wanted == Wanted::Consuming => {
                self.consume(Pace::Careful)?
            }
            Mode::Consuming(..) | Mode::Paused => {}
        }
        if let Some(delivery) = self.held.next_alone() {
            self.hand_over(vec![delivery]);
        }
        Ok(())
    }

    fn wait(&self, wire: &Wire) -> Result<(), Trouble> {
        let deliveries = match &self.mode {
            Mode::Consuming(_, consumer) => Some(consumer.receiver()),
            Mode::Paused => None,
        };
        self.owner.wait(wire, deliveries)
    }
}
