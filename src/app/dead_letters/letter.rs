//! A letter as an operator sees it, and the look into a queue that finds those that are meant.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::app::{Context, Error, traced};
use crate::db;
use crate::domain::dead_letter::{self, Place, Selection, Subject};
use crate::domain::ids::{OrderId, UpdateId};
use crate::domain::messages::{DEAD_ATTEMPTS, DEAD_CAUSE, DEAD_ERROR, DEAD_REASON, DEAD_TIME};
use crate::domain::passwords::masked;
use crate::domain::trace::TraceContext;
use crate::mq::{self, DeadLetters, Delivery, HeaderValue, Headers, Queue, Settings, Tag};

/// How long an operator's session may wait for the broker.
pub(super) const SESSION_DEADLINE: Duration = Duration::from_secs(10);
/// How long a look into a queue may take, however slowly the letters come.
const LOOK_DEADLINE: Duration = Duration::from_secs(120);
/// The bodies and headers of selected letters that are held at once. Behind these the look ends, and says so.
const SELECTED_BYTES_MAX: usize = 64 << 20;
/// Why RabbitMQ itself dead-lettered a message first.
const BROKERS_REASON: &str = "x-first-death-reason";

/// A dead letter.
#[derive(Debug, Clone)]
pub struct Letter {
    pub(super) tag: Tag,
    /// Its name among all that were ever in its queue.
    pub name: Uuid,
    /// The id that its producer gave the message; empty where there is none.
    pub message_id: String,
    /// Why it is here: one of our codes, or RabbitMQ's own, such as `delivery_limit`.
    pub reason: Option<String>,
    /// The error, for an operator; without passwords, as all headers.
    pub error: Option<String>,
    /// Which kind of failure it was, where the reason does not say that.
    pub cause: Option<String>,
    /// When it was put here.
    pub dead_lettered_at: Option<String>,
    /// How many attempts it had.
    pub attempts: Option<String>,
    /// What it concerns.
    pub subject: Subject,
    /// The orders that it concerns, as far as [`name_orders`] has found them.
    pub orders: Vec<OrderId>,
    /// Its headers, the broker's own among them.
    pub headers: BTreeMap<String, serde_json::Value>,
    /// What it is a part of.
    pub(super) trace: Option<TraceContext>,
    /// The message.
    pub body: Vec<u8>,
}

impl Letter {
    fn read(queue: Queue, delivery: Delivery) -> Self {
        let header = |name: &str| text(&delivery.headers, name);
        let message_id = delivery.message_id.clone().unwrap_or_default();
        let reason = header(DEAD_REASON).or_else(|| header(BROKERS_REASON));
        let (at, attempts) = (header(DEAD_TIME), header(DEAD_ATTEMPTS));
        let of_letter = [reason.as_deref(), at.as_deref(), attempts.as_deref()];
        Self {
            tag: delivery.tag,
            name: dead_letter::name(queue.base_name(), &message_id, &of_letter, &delivery.body),
            error: header(DEAD_ERROR).as_deref().map(masked),
            cause: header(DEAD_CAUSE),
            orders: Vec::new(),
            subject: match queue {
                Queue::VendorSyncDlq => Subject::of_updates_letter(&delivery.body),
                Queue::WebhooksDlq => {
                    Subject::of_notification_letter(&delivery.body, delivery.message_id.as_deref())
                }
                _ => Subject::of_order_letter(
                    &delivery.body,
                    delivery.message_id.as_deref(),
                    Utc::now(),
                ),
            },
            headers: delivery
                .headers
                .iter()
                .map(|(name, value)| (name.clone(), shown(value)))
                .collect(),
            trace: traced::context_of(&delivery.headers),
            message_id,
            reason,
            dead_lettered_at: at,
            attempts,
            body: delivery.body,
        }
    }

    /// The letter as an operator's programs read it; its headers only where they are asked for.
    #[must_use]
    pub fn document(&self, with_headers: bool) -> LetterDocument<'_> {
        LetterDocument {
            message_id: &self.message_id,
            reason: self.reason.as_deref(),
            error: self.error.as_deref(),
            cause: self.cause.as_deref(),
            // Whoever else wrote the letter may have put something else there, which the headers show.
            dead_lettered_at: self
                .dead_lettered_at
                .as_deref()
                .and_then(|at| Some(DateTime::parse_from_rfc3339(at).ok()?.to_utc())),
            attempts: self.attempts.as_deref().and_then(|n| n.parse().ok()),
            orders: &self.orders,
            headers: with_headers.then(|| self.headers_as_json()),
            body: self.body_as_json(),
        }
    }

    /// The message as JSON, or as text where it is none.
    #[must_use]
    pub fn body_as_json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| String::from_utf8_lossy(&self.body).into_owned().into())
    }

    /// Its headers as a JSON object.
    #[must_use]
    pub fn headers_as_json(&self) -> serde_json::Value {
        serde_json::Value::Object(self.headers.clone().into_iter().collect())
    }

    fn bytes(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.as_str().map_or(8, str::len))
            .sum();
        self.body.len() + headers
    }
}

/// A letter as programs read it, over HTTP and on the command line.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeadLetter)]
#[serde(rename_all = "camelCase")]
pub struct LetterDocument<'a> {
    /// The id that its producer gave the message; may be empty.
    message_id: &'a str,
    /// Why it is here, such as `retries_exhausted`.
    #[schema(required = true)]
    reason: Option<&'a str>,
    /// What went wrong, in the words of the server that said it; without passwords.
    #[schema(required = true)]
    error: Option<&'a str>,
    /// Which kind of failure it was, such as `api_unreachable`, `api_answered_503` or `own_database_refused`, where the
    /// reason does not say that.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    cause: Option<&'a str>,
    /// When it was put here.
    #[schema(required = true)]
    dead_lettered_at: Option<DateTime<Utc>>,
    /// How many attempts it had.
    #[schema(required = true)]
    attempts: Option<u32>,
    /// The orders that it concerns, as far as they are known.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    orders: &'a [OrderId],
    /// Its headers, the broker's own among them; only where one letter is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<std::collections::BTreeMap<String, serde_json::Value>>, nullable = false)]
    headers: Option<serde_json::Value>,
    /// The message: JSON, or a text where it is none.
    #[schema(value_type = serde_json::Value)]
    body: serde_json::Value,
}

fn text(headers: &Headers, name: &str) -> Option<String> {
    headers.get(name).map(|value| match value {
        HeaderValue::Text(text) => text.clone(),
        HeaderValue::Int(number) => number.to_string(),
    })
}

fn shown(value: &HeaderValue) -> serde_json::Value {
    match value {
        HeaderValue::Text(text) => masked(text).into(),
        HeaderValue::Int(number) => (*number).into(),
    }
}

/// Letters that were found, and what was not looked at.
#[derive(Debug, Default)]
pub struct Found {
    /// Those that are meant, in the order of the queue.
    pub letters: Vec<Letter>,
    /// How many letters stand behind the last one that was read.
    pub not_looked_at: u32,
    /// The last one that was read, where letters stand behind it.
    pub last: Option<Place>,
    /// The letter behind which they were to stand is not there any more, so none was found.
    pub is_place_gone: bool,
}

/// Lists letters without moving them.
///
/// # Errors
/// A store cannot be reached, or another session holds the queue.
pub async fn list(
    context: &Context,
    settings: &Settings,
    queue: Queue,
    selection: &Selection,
) -> Result<Found, Error> {
    let (session, found) = select(context, settings, queue, selection).await?;
    if let Some(session) = session {
        session.close().await;
    }
    Ok(found)
}

/// Finds the first letter with a message id.
///
/// # Errors
/// There is none, a store cannot be reached, or another session holds the queue.
pub async fn find(
    context: &Context,
    settings: &Settings,
    queue: Queue,
    message_id: &str,
) -> Result<Letter, Error> {
    let selection = Selection {
        message_ids: BTreeSet::from([message_id.to_owned()]),
        limit: 1,
        ..Selection::default()
    };
    let found = list(context, settings, queue, &selection).await?;
    found.letters.into_iter().next().ok_or_else(|| {
        Error::Missing(match found.not_looked_at {
            0 => format!("{} has no letter {message_id}", queue.base_name()),
            more => format!(
                "{} has no letter {message_id} at its front; {more} behind that were not looked at",
                queue.base_name()
            ),
        })
    })
}

/// Names the orders that letters concern. Those of updates are not known while our database cannot be read.
pub async fn name_orders(context: &Context, letters: &mut [Letter]) {
    let of_letter = |letter: &Letter| match &letter.subject {
        Subject::Updates(message) => message.updates.iter().map(|update| update.id).collect(),
        _ => Vec::new(),
    };
    let ids: Vec<UpdateId> = letters.iter().flat_map(of_letter).collect();
    let mut orders = BTreeMap::new();
    if !ids.is_empty() {
        let found = context
            .with_connection(async |connection| Ok(db::updates::find_all(connection, &ids).await?));
        for update in found.await.unwrap_or_default() {
            orders.insert(update.id, update.order_id);
        }
    }
    for letter in letters {
        let concerned: BTreeSet<OrderId> = match &letter.subject {
            Subject::Orders(of) => of.iter().map(|order| order.id).collect(),
            Subject::Updates(_) => of_letter(letter)
                .iter()
                .filter_map(|id| orders.get(id).copied())
                .collect(),
            Subject::Notification(notification) => notification.order().into_iter().collect(),
            Subject::Unreadable => BTreeSet::new(),
        };
        letter.orders = concerned.into_iter().collect();
    }
}

/// Reads the letters that are meant, and leaves them held by a session that reads no more. There is none where nobody has
/// subscribed to events yet: then the queue of their letters does not exist.
pub(super) async fn select(
    context: &Context,
    settings: &Settings,
    queue: Queue,
    selection: &Selection,
) -> Result<(Option<DeadLetters>, Found), Error> {
    let updates = updates_of_order(context, queue, selection).await?;
    let mut session = match DeadLetters::open(settings, queue, SESSION_DEADLINE).await {
        Err(mq::Error::MissingQueue(_)) if queue.is_of_webhooks() => {
            return Ok((None, Found::default()));
        }
        opened => opened?,
    };
    let until = Instant::now() + LOOK_DEADLINE;
    let (mut letters, mut bytes) = (Vec::new(), 0);
    let mut times: HashMap<Uuid, u32> = HashMap::new();
    let mut is_passing = selection.after.is_some();
    let mut last = None;
    while letters.len() < selection.limit && bytes < SELECTED_BYTES_MAX && Instant::now() < until {
        let Some(delivery) = session.next().await? else {
            break;
        };
        let letter = Letter::read(queue, delivery);
        let times = times.entry(letter.name).or_default();
        let place = Place {
            name: letter.name,
            nth: *times,
        };
        *times += 1;
        if is_passing {
            is_passing = selection.after != Some(place);
            continue;
        }
        last = Some(place);
        let reason = letter.reason.as_deref();
        if selection.takes(
            letter.name,
            &letter.message_id,
            reason,
            &letter.subject,
            &updates,
        ) {
            bytes += letter.bytes();
            letters.push(letter);
        }
    }
    let not_looked_at = session.stop_reading().await?;
    let found = Found {
        letters,
        not_looked_at,
        last: last.filter(|_| not_looked_at > 0),
        is_place_gone: is_passing,
    };
    Ok((Some(session), found))
}

/// The updates of the order that is asked for, where letters are of updates.
async fn updates_of_order(
    context: &Context,
    queue: Queue,
    selection: &Selection,
) -> Result<BTreeSet<UpdateId>, Error> {
    let (Queue::VendorSyncDlq, Some(order)) = (queue, selection.order) else {
        return Ok(BTreeSet::new());
    };
    context
        .with_connection(async |connection| {
            let updates = db::updates::list_of_orders(connection, &[order]).await?;
            Ok(updates.into_iter().map(|update| update.id).collect())
        })
        .await
}
