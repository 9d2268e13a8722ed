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
use crate::domain::webhooks::{MAX, OF_CALLER_MAX, SECRET_BYTES, Secret, Subscription};

/// The code of a refusal: there are as many as there may be.
pub const TOO_MANY: &str = "too_many_webhooks";

/// A secret of random bytes.
///
/// # Errors
/// The system gives none.
pub fn new_secret() -> Result<Secret, Error> {
    let mut random = [0; SECRET_BYTES];
    getrandom::fill(&mut random)
        .map_err(|error| Error::Broken(format!("the system gives no random bytes: {error}")))?;
    Ok(Secret::new(random))
}

/// Makes a subscription of a caller.
///
/// # Errors
/// There are too many; see [`Error`].
pub async fn create(
    context: &Context,
    caller: &Caller,
    url: String,
    filter: Filter,
    secret: Secret,
    now: DateTime<Utc>,
) -> Result<Subscription, Error> {
    let subscription = Subscription {
        id: WebhookId(Uuid::now_v7()),
        caller: Some(caller.name.clone()),
        name: None,
        url,
        filter,
        secret,
        // As it is kept.
        created_at: now.trunc_subsecs(6),
        disabled_at: None,
        failing_since: None,
        last_error: None,
    };
    with_deadline(TRANSACTION_DEADLINE, &context.database, async {
        let mut connection = context.database.get().await?;
        connection
            .transaction(async |connection| {
                let (all, of_caller) =
                    db::webhooks::lock_and_count(connection, &caller.name).await?;
                if of_caller >= OF_CALLER_MAX || all >= MAX {
                    let whose = if of_caller >= OF_CALLER_MAX {
                        format!("you have {of_caller} webhooks, and the limit is {OF_CALLER_MAX}")
                    } else {
                        format!("there are {all} webhooks, and the limit is {MAX}")
                    };
                    return Err(Error::Refused {
                        code: TOO_MANY,
                        detail: format!("{whose}; delete one that is not needed"),
                    });
                }
                Ok(db::webhooks::insert(connection, &subscription).await?)
            })
            .await
    })
    .await?;
    Ok(subscription)
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
