//! Webhooks: subscriptions, made and listed; what happens, put into the broker for each (`feed`); and each message, told
//! to its receiver (`tell`).
//!
//! Up to where each subscription was told stands in our database and moves once the broker has confirmed what is told
//! by that. Whatever dies meanwhile, what comes after that place is read again, and told again with the same ids. A
//! receiver that is down or slow is fed next to nothing: the table of events keeps what it has not heard, for as long as it
//! keeps anything.

mod feed;
mod roster;
mod tell;

pub use self::feed::Feeder;
pub use self::roster::Roster;
pub use self::tell::{Teller, Tried};

use std::collections::BTreeSet;

use chrono::{DateTime, SubsecRound, Utc};
use diesel_async::AsyncConnection;
use uuid::Uuid;

use super::{Context, Error, TRANSACTION_DEADLINE, with_deadline};
use crate::db;
use crate::db::webhooks::Cursor;
use crate::domain::events::{EventType, Filter};
use crate::domain::ids::WebhookId;
use crate::domain::keys::Caller;
use crate::domain::webhooks::{MAX, OF_CALLER_MAX, SECRET_BYTES, Secret, Subscription, derive_id};

/// The code of a refusal: there are as many as there may be.
pub const TOO_MANY: &str = "too_many_webhooks";

/// A secret of random bytes.
///
/// # Errors
/// The system gives none.
fn new_secret() -> Result<Secret, Error> {
    let mut random = [0; SECRET_BYTES];
    getrandom::fill(&mut random)
        .map_err(|error| Error::Broken(format!("the system gives no random bytes: {error}")))?;
    Ok(Secret::new(random))
}

/// The code of a refusal: the key belongs to a request for another subscription.
pub const KEY_TAKEN: &str = "webhook_key_taken";

/// The code of a refusal: the configuration has it.
pub const CONFIGURED: &str = "webhook_configured";

/// What a caller subscribes to.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Where the receiver is.
    pub url: String,
    /// What it hears.
    pub filter: Filter,
    /// What its messages are to be signed with; one is made where there is none.
    pub secret: Option<Secret>,
    /// The caller's name for the request.
    pub key: Option<String>,
}

/// Makes a subscription of a caller. Asked for again with the same key, it is the one that was made, with its secret, and
/// true says so; once it was deleted, that makes a new one.
///
/// # Errors
/// There are too many, or the key was used for another one; see [`Error`].
pub async fn create(
    context: &Context,
    caller: &Caller,
    asked: Asked,
    now: DateTime<Utc>,
) -> Result<(Subscription, bool), Error> {
    let has_secret = asked.secret.is_some();
    let derived = |has_secret| {
        let key = asked.key.as_deref()?;
        Some(derive_id(&caller.name, key, has_secret))
    };
    let (this, other) = (derived(has_secret), derived(!has_secret));
    let subscription = Subscription {
        id: this.unwrap_or_else(|| WebhookId(Uuid::now_v7())),
        caller: Some(caller.name.clone()),
        name: None,
        url: asked.url,
        filter: asked.filter,
        secret: match asked.secret {
            Some(secret) => secret,
            None => new_secret()?,
        },
        // As it is kept.
        created_at: now.trunc_subsecs(6),
        disabled_at: None,
        failing_since: None,
        last_error: None,
    };
    let is_repeatable = this.is_some();
    let mut is_begun = false;
    let made = with_deadline(TRANSACTION_DEADLINE, &context.database, async {
        let mut connection = context.database.get().await?;
        is_begun = true;
        connection
            .transaction(async |connection| {
                // Under its lock two with the same key come one after the other.
                let counts = db::webhooks::lock_and_count(connection, &caller.name).await?;
                for id in this.into_iter().chain(other) {
                    if let Some(made) = db::webhooks::find(connection, id).await? {
                        return replay(made, &subscription, has_secret);
                    }
                }
                check_room(counts)?;
                db::webhooks::insert(connection, &subscription).await?;
                Ok((subscription, false))
            })
            .await
    })
    .await;
    // With a key it can be asked for again.
    made.map_err(|error| error.unsure_once(is_begun && !is_repeatable))
}

/// What was made with this key, if that was asked for in the same way.
fn replay(
    made: Subscription,
    asked: &Subscription,
    has_secret: bool,
) -> Result<(Subscription, bool), Error> {
    let is_same = made.id == asked.id
        && made.url == asked.url
        && made.filter == asked.filter
        && (!has_secret || made.secret == asked.secret);
    if is_same {
        return Ok((made, true));
    }
    Err(Error::Refused {
        code: KEY_TAKEN,
        detail:
            "this Idempotency-Key was used for another subscription; use a new key for a new one"
                .to_owned(),
    })
}

fn check_room((all, of_caller): (i64, i64)) -> Result<(), Error> {
    let whose = if of_caller >= OF_CALLER_MAX {
        format!("you have {of_caller} webhooks, and the limit is {OF_CALLER_MAX}")
    } else if all >= MAX {
        format!("there are {all} webhooks, and the limit is {MAX}")
    } else {
        return Ok(());
    };
    Err(Error::Refused {
        code: TOO_MANY,
        detail: format!("{whose}; delete one that is not needed"),
    })
}

/// Writes those of the configuration: new ones hear of what happens from now on, and those that it names no more are
/// deleted.
///
/// # Errors
/// See [`Error`].
pub async fn configure(context: &Context, configured: &[Subscription]) -> Result<(), Error> {
    let names: Vec<&str> = configured
        .iter()
        .filter_map(|subscription| subscription.name.as_deref())
        .collect();
    with_deadline(TRANSACTION_DEADLINE, &context.database, async {
        let mut connection = context.database.get().await?;
        connection
            .transaction(async |connection| {
                db::webhooks::keep_configured(connection, &names).await?;
                for subscription in configured {
                    db::webhooks::put_configured(connection, subscription).await?;
                }
                Ok(())
            })
            .await
    })
    .await
}

/// A subscription as the configuration has it.
///
/// # Errors
/// What is wrong with it.
pub fn configured(
    name: &str,
    url: &str,
    types: &[String],
    secret: &str,
    allow_private: bool,
    now: DateTime<Utc>,
) -> Result<Subscription, String> {
    crate::domain::webhooks::check_url(url, allow_private)
        .map_err(|problem| format!("webhooks.{name}.url: it {problem}"))?;
    let types: BTreeSet<EventType> = match types {
        [] => EventType::ALL.into(),
        types => EventType::parse_list(&types.join(","))
            .map_err(|problem| format!("webhooks.{name}.types: it {problem}"))?,
    };
    let secret =
        Secret::parse(secret).map_err(|problem| format!("webhooks.{name}.secret: it {problem}"))?;
    Ok(Subscription {
        id: WebhookId(Uuid::now_v7()),
        caller: None,
        name: Some(name.to_owned()),
        url: url.to_owned(),
        filter: Filter::of(types, None),
        secret,
        created_at: now,
        disabled_at: None,
        failing_since: None,
        last_error: None,
    })
}

/// A page of those that a caller sees, the newest first.
///
/// # Errors
/// See [`Error`].
pub async fn list(
    context: &Context,
    caller: &Caller,
    after: Option<Cursor>,
    limit: i64,
) -> Result<Vec<Subscription>, Error> {
    let only_of = caller.only_its_own();
    context
        .with_connection(async |connection| {
            Ok(db::webhooks::list(connection, only_of, after, limit).await?)
        })
        .await
}

/// One that a caller sees.
///
/// # Errors
/// There is none; see [`Error`].
pub async fn find(
    context: &Context,
    caller: &Caller,
    id: WebhookId,
) -> Result<Subscription, Error> {
    let found = context
        .with_connection(async |connection| Ok(db::webhooks::find(connection, id).await?))
        .await?;
    found
        .filter(|of| match &of.caller {
            Some(owner) => caller.sees(owner),
            None => caller.only_its_own().is_none(),
        })
        .ok_or_else(|| missing(id))
}

/// Deletes one that a caller sees. What waits for it is told to nobody.
///
/// # Errors
/// There is none; see [`Error`].
pub async fn delete(context: &Context, caller: &Caller, id: WebhookId) -> Result<(), Error> {
    let found = find(context, caller, id).await?;
    if let Some(name) = found.name {
        return Err(Error::Refused {
            code: CONFIGURED,
            detail: format!(
                "it is the configuration's (webhooks.{name}), and would come back with the next start of `work`: take it out there"
            ),
        });
    }
    let only_of = caller.only_its_own();
    let is_deleted = context
        .with_connection(
            async |connection| Ok(db::webhooks::delete(connection, id, only_of).await?),
        )
        .await?;
    if is_deleted { Ok(()) } else { Err(missing(id)) }
}

fn missing(id: WebhookId) -> Error {
    Error::Missing(format!("there is no webhook {id}"))
}
