//! Live events, for all who listen at once: while somebody does, one query every tenth of a second asks for what has
//! happened since, and what comes is handed to everybody through one ring of bounded size. Who is too slow for the ring
//! is told so and let go; the database has what it missed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, Semaphore, broadcast};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::places::{Place, Places};
use super::{Context, Error};
use crate::db;
use crate::db::events::Look;
use crate::domain::events::{Event, Filter, Position};
use crate::domain::keys::Caller;
use crate::domain::tally::Tally;
use crate::metrics::EVENTS;
use crate::shutdown::Shutdown;

/// Who listens to one process at once: each has a connection, and hears whatever happens.
pub const LISTENERS_MAX: usize = 500;
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After a look that failed.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Events of one look.
const LOOK_MAX: i64 = 1_000;
/// Events of one page of the ring have so many bytes, or are one event.
const PAGE_BYTES_MAX: usize = 64 * 1024;
/// Pages that the ring keeps: 4 MiB that are there for who is behind, however many listen.
const PAGES_MAX: usize = 64;
/// Listeners that read the database themselves at a time, since they resume from earlier: requests share its connections.
const CATCHING_UP_MAX: usize = 2;
/// A listener that hears nothing is told that often that it is still connected: proxies cut what is silent for a minute,
/// many for half of one.
const BEAT_EVERY: Duration = Duration::from_secs(15);

/// What happens, handed out. Clones share one place.
#[derive(Clone)]
pub struct Events(Arc<Shared>);

struct Shared {
    context: Context,
    shutdown: Shutdown,
    ring: broadcast::Sender<Arc<Page>>,
    /// Up to where the ring was told; nothing where nobody listens. Held while a page is added, so that whoever joins
    /// knows from where on it hears.
    told: Mutex<Option<Position>>,
    listeners: Places,
    /// Somebody listens where nobody did.
    awake: Notify,
    catching_up: Semaphore,
}

/// What happened next, up to a place.
struct Page {
    events: Vec<Event>,
    until: Position,
    is_broken: bool,
}

impl Events {
    /// Opens the place, with a task that looks for what happens until the shutdown.
    #[must_use]
    pub fn start(context: Context, shutdown: Shutdown) -> (Self, JoinHandle<()>) {
        let events = Self(Arc::new(Shared {
            context,
            shutdown,
            ring: broadcast::Sender::new(PAGES_MAX),
            told: Mutex::default(),
            listeners: Places::new(LISTENERS_MAX),
            awake: Notify::new(),
            catching_up: Semaphore::new(CATCHING_UP_MAX),
        }));
        let looking = events.clone().look_until_stopped();
        (events, tokio::spawn(looking))
    }

    fn told(&self) -> MutexGuard<'_, Option<Position>> {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to listen: to what comes after a position, or to what happens from now on. Nothing where too many do, of this
    /// caller or of all.
    ///
    /// # Errors
    /// Where now is cannot be read.
    pub async fn listen(
        &self,
        caller: &Caller,
        filter: Filter,
        after: Option<Position>,
    ) -> Result<Option<Listener>, Error> {
        let Some(place) = self.0.listeners.take(&caller.name) else {
            return Ok(None);
        };
        EVENTS.listeners.inc();
        let listening = Listening(place);
        self.0.awake.notify_one();
        let position = match after {
            Some(after) => after,
            None => {
                let context = &self.0.context;
                context
                    .with_connection(async |connection| Ok(db::events::now(connection).await?))
                    .await?
            }
        };
        Ok(Some(Listener {
            events: self.clone(),
            filter,
            position,
            joined: None,
            beat_at: Instant::now(),
            _listening: listening,
        }))
    }

    /// How many connections of a caller may listen at once.
    #[must_use]
    pub fn listeners_of(&self, caller: &Caller) -> usize {
        self.0.listeners.of_caller(&caller.name)
    }

    async fn look(&self, after: Position) -> Result<Look, Error> {
        let vendors = self.0.context.vendor_ids();
        self.0
            .context
            .with_connection(async |connection| {
                Ok(db::events::list_after(connection, &vendors, after, LOOK_MAX).await?)
            })
            .await
    }

    async fn look_until_stopped(self) {
        let looking = async {
            let mut failed = Tally::new();
            loop {
                if self.0.listeners.is_empty() {
                    *self.told() = None;
                    self.0.awake.notified().await;
                    continue;
                }
                let pause = match self.look_once().await {
                    Ok(true) => Duration::ZERO,
                    Ok(false) => LOOK_EVERY,
                    Err(error) => {
                        if let Some(times) = failed.add(1, std::time::Instant::now()) {
                            tracing::warn!(times, %error, "could not look for the events that callers listen to");
                        }
                        LOOK_AGAIN_AFTER
                    }
                };
                tokio::time::sleep(pause).await;
            }
        };
        tokio::select! {
            () = self.0.shutdown.begun() => {}
            () = looking => {}
        }
    }

    /// Returns whether there may be more already.
    async fn look_once(&self) -> Result<bool, Error> {
        let told = *self.told();
        let Some(after) = told else {
            let now = self
                .0
                .context
                .with_connection(async |connection| Ok(db::events::now(connection).await?));
            let now = now.await?;
            *self.told() = Some(now);
            return Ok(true);
        };
        let look = self.look(after).await?;
        let is_full = look.is_full;
        for page in pages(look) {
            let mut told = self.told();
            *told = Some(page.until);
            if !page.events.is_empty() || page.is_broken {
                // Nobody may be there to hear it.
                let _ = self.0.ring.send(Arc::new(page));
            }
        }
        Ok(is_full)
    }
}

/// Cuts what was looked at into pages. There is one at least, which says up to where all is told.
fn pages(look: Look) -> Vec<Page> {
    let mut pages = vec![Page {
        events: Vec::new(),
        until: look.until,
        is_broken: look.is_broken,
    }];
    let mut bytes = 0;
    for event in look.events {
        let size = event.data.len()
            + event
                .products
                .iter()
                .map(|product| product.as_str().len())
                .sum::<usize>();
        if bytes > 0 && bytes + size > PAGE_BYTES_MAX {
            bytes = 0;
            pages.push(Page {
                events: Vec::new(),
                until: look.until,
                is_broken: false,
            });
        }
        bytes += size;
        if let Some(page) = pages.last_mut() {
            page.events.push(event);
        }
    }
    // All but the last end with what they tell last.
    let full = pages.len() - 1;
    for page in &mut pages[..full] {
        if let Some(last) = page.events.last() {
            page.until = last.position;
        }
    }
    pages
}

/// The place of one who listens, which the figures count too.
struct Listening(#[expect(dead_code, reason = "it is enough that it is there")] Place);

impl Drop for Listening {
    fn drop(&mut self) {
        EVENTS.listeners.dec();
    }
}

/// Somebody who listens. It holds no more than the page that it is at.
pub struct Listener {
    events: Events,
    filter: Filter,
    /// Up to where it was told.
    position: Position,
    /// Once it has read by itself all that the ring was told before.
    joined: Option<broadcast::Receiver<Arc<Page>>>,
    beat_at: Instant,
    _listening: Listening,
}

/// What a listener is told next.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// What happened.
    Events(Vec<Event>),
    /// That it is still connected, and up to where it was told.
    Beat(Position),
    /// That what comes next does not follow on what it had: what was between is deleted.
    Missed(Position),
    /// That it is too slow, and where to resume.
    TooSlow(Position),
    /// That the process is about to end, and where to resume.
    Over(Position),
}

impl Listener {
    /// Waits for what it is told next. The first is a beat, so that it can resume from where it began.
    pub async fn next(&mut self) -> Told {
        loop {
            if self.events.0.shutdown.is_begun() {
                return Told::Over(self.position);
            }
            if Instant::now() >= self.beat_at {
                return self.beat();
            }
            let told = match self.joined.take() {
                Some(ring) => self.hear(ring).await,
                None => self.catch_up().await,
            };
            if let Some(told) = told {
                return told;
            }
        }
    }

    fn beat(&mut self) -> Told {
        self.beat_at = Instant::now() + BEAT_EVERY;
        if let Some(ring) = &self.joined {
            // All that the ring was told is told to it, too, so it is as far as that.
            let told = self.events.told();
            if let Some(until) = told.filter(|_| ring.is_empty()) {
                self.position = self.position.max(until);
            }
        }
        Told::Beat(self.position)
    }

    async fn hear(&mut self, mut ring: broadcast::Receiver<Arc<Page>>) -> Option<Told> {
        let heard = tokio::select! {
            () = self.events.0.shutdown.begun() => None,
            () = tokio::time::sleep_until(self.beat_at) => None,
            heard = ring.recv() => Some(heard),
        };
        self.joined = Some(ring);
        match heard? {
            Ok(page) => self.take(&page.events, page.until, page.is_broken),
            // It never ends, since this has a part in it.
            Err(RecvError::Closed) => Some(Told::Over(self.position)),
            Err(RecvError::Lagged(_)) => Some(Told::TooSlow(self.position)),
        }
    }

    /// Reads by itself, and joins those who hear of the ring as soon as it has read as far as that was told.
    async fn catch_up(&mut self) -> Option<Told> {
        let look = {
            let _turn = self.events.0.catching_up.acquire().await;
            self.events.look(self.position).await
        };
        let Ok(look) = look else {
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
            return None;
        };
        let told = self.take(&look.events, look.until, look.is_broken);
        let is_begun = {
            let of_ring = self.events.told();
            if of_ring.is_some_and(|until| self.position >= until) {
                self.joined = Some(self.events.0.ring.subscribe());
            }
            of_ring.is_some()
        };
        if !is_begun && told.is_none() && !look.is_full {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        told
    }

    /// What is for it of what is told up to a place.
    fn take(&mut self, events: &[Event], until: Position, is_broken: bool) -> Option<Told> {
        if is_broken {
            self.position = until;
            return Some(Told::Missed(until));
        }
        let after = self.position;
        let heard: Vec<Event> = events
            .iter()
            .filter(|event| event.position > after && self.filter.lets_through(event))
            .cloned()
            .collect();
        self.position = after.max(until);
        EVENTS.sent.inc_by(heard.len() as u64);
        (!heard.is_empty()).then_some(Told::Events(heard))
    }
}
