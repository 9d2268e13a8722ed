//! Puts what happens into the broker, for each subscription that hears it. One process does that for all of them: whoever
//! has the lock, on the very connection that it reads by, so that it knows no later than the others that it has lost it.
//! Should two feed for a moment all the same, what they put there twice has the same ids, and the place that either of them
//! moves is one that it has seen.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::time::Duration;

use diesel_async::AsyncPgConnection;
use tokio::time::Instant;

use super::Roster;
use crate::app::{Context, Error, TRANSACTION_DEADLINE, with_deadline};
use crate::db;
use crate::db::events::Look;
use crate::db::webhooks::{Place, Step};
use crate::domain::events::{Event, Position};
use crate::domain::ids::{VendorId, WebhookId};
use crate::domain::tally::Tally;
use crate::domain::webhooks::Notification;
use crate::metrics::WEBHOOKS;
use crate::mq::{Headers, Link, Message, Publisher, Queue};
use crate::pg;
use crate::shutdown::Shutdown;

/// Between two looks at what has happened.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Between two looks of who has not got the lock, or could not look.
const WAIT_EVERY: Duration = Duration::from_secs(1);
/// Events of one look.
const LOOK_MAX: i64 = 500;
/// Messages that are made in one round, unless one look alone makes more.
const ROUND_MESSAGES_MAX: usize = 2_000;
/// Messages that are published together.
const PUBLISH_MAX: usize = 1_000;
/// A confirm takes milliseconds; without one for this long, the place stays.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(10);
/// A receiver that fails is sent one message so often, so that it shows whether it is back.
const PROBE_AFTER: Duration = Duration::from_secs(30);
/// A round has a few statements, each with a deadline of its own, and what it publishes.
const ROUND_DEADLINE: Duration = Duration::from_secs(120);
/// Whoever watches gives up on a feeder after this.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(300);

/// Who feeds.
pub struct Feeder {
    context: Context,
    publisher: Publisher,
    roster: Roster,
    /// The connection that has the lock, or asks for it.
    session: Option<AsyncPgConnection>,
    has_lock: bool,
    /// Up to where was looked in vain, by who was fed last: it is written down with what comes next, and nothing is
    /// written while nothing happens.
    looked: HashMap<WebhookId, (Position, Position)>,
}

impl Feeder {
    /// The longest that one that is well says nothing to who watches it.
    pub const SILENCE_MAX: Duration = SILENCE_MAX;

    /// Prepares to feed; `publisher` is one that has declared the queues of webhooks.
    #[must_use]
    pub fn new(context: Context, publisher: Publisher, roster: Roster) -> Self {
        Self {
            context,
            publisher,
            roster,
            session: None,
            has_lock: false,
            looked: HashMap::new(),
        }
    }

    /// Feeds until the shutdown, and says `moved` now and then.
    pub async fn run_until_stopped(mut self, shutdown: Shutdown, moved: impl Fn()) {
        let mut failed = Tally::new();
        loop {
            moved();
            let pause = tokio::select! {
                () = shutdown.begun() => return,
                turn = tokio::time::timeout(ROUND_DEADLINE, self.turn()) => match turn {
                    Ok(Ok(pause)) => pause,
                    other => {
                        self.forget();
                        let error = match other {
                            Ok(Err(error)) => error.to_string(),
                            _ => "no end in time".to_owned(),
                        };
                        if let Some(times) = failed.add(1, std::time::Instant::now()) {
                            tracing::warn!(times, error, "could not put events into the queue of webhooks; trying again");
                        }
                        WAIT_EVERY
                    }
                },
            };
            tokio::select! {
                () = shutdown.begun() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn forget(&mut self) {
        self.session = None;
        self.has_lock = false;
        self.looked.clear();
    }

    /// Does what there is to do, and returns how long to wait.
    async fn turn(&mut self) -> Result<Duration, Error> {
        if self.roster.is_empty() {
            // Nobody is there to be fed, so nothing is read and no connection is kept.
            self.forget();
            return Ok(WAIT_EVERY);
        }
        // What is read could not leave.
        if *self.publisher.link().borrow() != Link::Up {
            // Another process may reach the broker.
            self.forget();
            return Ok(WAIT_EVERY);
        }
        let mut session = match self.session.take() {
            Some(session) => session,
            None => pg::connect(self.context.database.settings()).await?,
        };
        if !self.has_lock {
            let locking =
                self.within(async { Ok(db::webhooks::try_lock_feeding(&mut session).await?) });
            self.has_lock = locking.await?;
            if !self.has_lock {
                self.session = Some(session);
                return Ok(WAIT_EVERY);
            }
            tracing::info!("this process feeds the queue of webhooks");
        }
        let is_more = self.round(&mut session).await?;
        // Only now: one that failed in the middle is left.
        self.session = Some(session);
        Ok(if is_more { Duration::ZERO } else { LOOK_EVERY })
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        with_deadline(TRANSACTION_DEADLINE, &self.context.database, work).await
    }

    /// Returns whether there may be more already.
    async fn round(&mut self, session: &mut AsyncPgConnection) -> Result<bool, Error> {
        let vendors = self.context.vendor_ids();
        let places = self
            .within(async {
                let limit = 2 * crate::domain::webhooks::MAX;
                Ok(db::webhooks::list_places(session, PROBE_AFTER, limit).await?)
            })
            .await?;
        let groups = self.groups(places);
        let mut round = Round::default();
        let until = Instant::now() + ROUND_DEADLINE / 4;
        let looked = self
            .look(session, &vendors, groups, &mut round, until)
            .await?;
        self.publish(&mut round).await;
        let steps: Vec<Step> = round
            .parts
            .iter()
            .filter(|part| !part.is_refused && (part.is_told || part.messages_count > 0))
            .map(|part| Step {
                id: part.id,
                from: part.from,
                to: part.until,
                is_fed: part.messages_count > 0,
            })
            .collect();
        self.within(async { Ok(db::webhooks::advance(session, &steps).await?) })
            .await?;
        self.looked.clear();
        for part in round.parts.iter().filter(|part| !part.is_refused) {
            let told = if part.is_told || part.messages_count > 0 {
                part.until
            } else {
                part.from
            };
            self.looked.insert(part.id, (told, part.until));
        }
        Ok(looked.is_more && !round.parts.iter().any(|part| part.is_refused))
    }

    /// Those that are at the same place look together.
    fn groups(&self, places: Vec<Place>) -> BTreeMap<Position, Vec<Place>> {
        let mut groups: BTreeMap<Position, Vec<Place>> = BTreeMap::new();
        for place in places {
            let at = match self.looked.get(&place.id) {
                Some((told, looked)) if *told == place.told => *looked,
                _ => place.told,
            };
            groups.entry(at).or_default().push(place);
        }
        groups
    }

    /// Looks for each group at what comes after its place: all of them at the same moment, so that those who have heard
    /// everything are at the same place afterwards, and look together from then on.
    async fn look(
        &self,
        session: &mut AsyncPgConnection,
        vendors: &[VendorId],
        groups: BTreeMap<Position, Vec<Place>>,
        round: &mut Round,
        until: Instant,
    ) -> Result<Looked, Error> {
        self.within(async {
            pg::snapshot(session)
                .run(async |connection| {
                    let mut is_more = false;
                    for (at, group) in groups {
                        if round.messages.len() >= ROUND_MESSAGES_MAX || Instant::now() >= until {
                            is_more = true;
                            break;
                        }
                        let look =
                            db::events::list_after(connection, vendors, at, LOOK_MAX).await?;
                        is_more |= look.is_full;
                        for place in group {
                            round.add(&place, &look)?;
                        }
                    }
                    Ok::<_, Error>(Looked { is_more })
                })
                .await
        })
        .await
    }

    /// Publishes what was made, and notes who has to look again since not all of it is confirmed.
    async fn publish(&self, round: &mut Round) {
        let mut messages = std::mem::take(&mut round.messages).into_iter().peekable();
        while messages.peek().is_some() {
            let (parts, batch): (Vec<usize>, Vec<Message>) =
                messages.by_ref().take(PUBLISH_MAX).unzip();
            let results = self.publisher.publish(batch, PUBLISH_DEADLINE).await;
            for (part, result) in parts.into_iter().zip(results) {
                match result {
                    Ok(()) => WEBHOOKS.fed.inc(),
                    Err(error) => {
                        tracing::debug!(%error, webhook = %round.parts[part].id, "an event was not put into the queue");
                        round.parts[part].is_refused = true;
                    }
                }
            }
        }
    }
}

struct Looked {
    is_more: bool,
}

/// What one round tells whom.
#[derive(Default)]
struct Round {
    parts: Vec<Part>,
    /// Each with the part that it belongs to.
    messages: Vec<(usize, Message)>,
}

/// What one subscription is told in a round.
struct Part {
    id: WebhookId,
    from: Position,
    until: Position,
    /// There was something to be told, whether it hears it or not.
    is_told: bool,
    messages_count: usize,
    is_refused: bool,
}

impl Round {
    fn add(&mut self, place: &Place, look: &Look) -> Result<(), Error> {
        let broken = |error: serde_json::Error| Error::Broken(format!("an event: {error}"));
        let mut part = Part {
            id: place.id,
            from: place.told,
            until: look.until,
            // A place at an event, and not before a transaction, would be taken for one before which events are gone, once
            // that event is deleted.
            is_told: !look.events.is_empty() || look.is_full || place.told.row > 0,
            messages_count: 0,
            is_refused: false,
        };
        let mut told = Vec::new();
        if look.is_broken {
            WEBHOOKS.resets.inc();
            tracing::warn!(webhook = %place.id, "it was behind for longer than events are kept, and is told so");
            told.push(Notification::of_reset(place.id, look.until).map_err(broken)?);
        }
        for event in heard(place, &look.events) {
            told.push(Notification::of_event(place.id, event).map_err(broken)?);
            // One is enough to see whether it is back.
            if place.is_failing {
                part.until = event.position;
                break;
            }
        }
        part.messages_count = told.len();
        let index = self.parts.len();
        self.messages.extend(told.into_iter().map(|notification| {
            let body = notification.encode().into_bytes();
            let message = Message {
                queue: Queue::Webhooks,
                message_id: notification.id,
                headers: Headers::new(),
                body,
            };
            (index, message)
        }));
        self.parts.push(part);
        Ok(())
    }
}

fn heard<'a>(place: &'a Place, events: &'a [Event]) -> impl Iterator<Item = &'a Event> {
    events
        .iter()
        .filter(|event| place.filter.lets_through(event))
}
