//! API keys: made, listed, rotated, expired and revoked; and the keys of the installation as a process knows them.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use diesel_async::{AsyncConnection, AsyncPgConnection};

use super::{Context, Error, TRANSACTION_DEADLINE, with_deadline};
use crate::db;
use crate::domain::keys::{
    Caller, ID_BYTES, Key, KeyId, Keys, Refusal, SECRET_BYTES, Scope, Standing, Token,
};
use crate::domain::tally::Tally;
use crate::shutdown::Shutdown;

/// Valid keys of an installation: each process reads all of them every second.
const VALID_MAX: i64 = 1_000;
/// Keys that are listed, ended ones among them.
const LISTED_MAX: i64 = 10_000;
/// Whoever comes with a key that has ended is told so for as long as this; then it is as unknown as any other.
const REMEMBERED: TimeDelta = TimeDelta::days(30);
/// Between two looks at the keys: a revocation takes effect within this and a query's time.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// While PostgreSQL cannot be reached, what was known last is good for so long: orders are accepted without it, and it is
/// the place where a key is revoked.
const GOOD_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes a key. The token is shown once, and to nobody again.
///
/// # Errors
/// There are too many keys; see [`Error`].
pub async fn create(
    context: &Context,
    caller: String,
    scopes: BTreeSet<Scope>,
    now: DateTime<Utc>,
    valid_for: Option<TimeDelta>,
) -> Result<(Key, Token), Error> {
    let (key, token) = new_key(caller, scopes, now, valid_for)?;
    let inserted = key.clone();
    with_deadline(TRANSACTION_DEADLINE, &context.database, async {
        let mut connection = context.database.get().await?;
        connection
            .transaction(async |connection| insert(connection, &inserted, now).await)
            .await
    })
    .await?;
    Ok((key, token))
}

/// Inserts one more, if there may be one: during its overlap, one that is rotated counts still.
async fn insert(
    connection: &mut AsyncPgConnection,
    key: &Key,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    if db::keys::lock_and_count_valid(connection, now).await? >= VALID_MAX {
        return Err(Error::Refused {
            code: "too_many_keys",
            detail: format!("there are {VALID_MAX} valid keys, which is the limit; revoke one"),
        });
    }
    Ok(db::keys::insert(connection, key).await?)
}

fn new_key(
    caller: String,
    scopes: BTreeSet<Scope>,
    now: DateTime<Utc>,
    valid_for: Option<TimeDelta>,
) -> Result<(Key, Token), Error> {
    let mut id = [0; ID_BYTES];
    let mut secret = [0; SECRET_BYTES];
    for bytes in [&mut id[..], &mut secret[..]] {
        getrandom::fill(bytes)
            .map_err(|error| Error::Broken(format!("the system gives no random bytes: {error}")))?;
    }
    let token = Token::new(KeyId::new(id), secret);
    let key = Key {
        id: token.id().clone(),
        caller,
        hash: token.hash(),
        scopes,
        created_at: now,
        expires_at: valid_for.map(|valid_for| now + valid_for),
        revoked_at: None,
        last_used_at: None,
    };
    Ok((key, token))
}

/// Every key, the oldest of a caller first.
///
/// # Errors
/// See [`Error`].
pub async fn list(context: &Context) -> Result<Vec<Key>, Error> {
    let mut keys = context
        .with_connection(async |connection| Ok(db::keys::list(connection, None, LISTED_MAX).await?))
        .await?;
    keys.sort_by(|one, other| {
        (&one.caller, one.created_at).cmp(&(&other.caller, other.created_at))
    });
    Ok(keys)
}

/// Makes a new key of the same caller, with the same scopes and for as long a time, and lets the old one end after a while
/// in which both open.
///
/// # Errors
/// There is no such key, or it opens no more.
pub async fn rotate(
    context: &Context,
    id: &KeyId,
    now: DateTime<Utc>,
    overlap: TimeDelta,
) -> Result<(Key, Token), Error> {
    with_deadline(TRANSACTION_DEADLINE, &context.database, async {
        let mut connection = context.database.get().await?;
        connection
            .transaction(async |connection| {
                let mut old = valid(db::keys::load_for_update(connection, id).await?, id, now)?;
                let valid_for = old.expires_at.map(|at| at - old.created_at);
                let (new, token) = new_key(old.caller.clone(), old.scopes.clone(), now, valid_for)?;
                let ends = now + overlap;
                old.expires_at = Some(old.expires_at.map_or(ends, |at| at.min(ends)));
                insert(connection, &new, now).await?;
                db::keys::save_end(connection, &old).await?;
                Ok::<_, Error>((new, token))
            })
            .await
    })
    .await
}

/// Sets the time at which a key ceases to be valid.
///
/// # Errors
/// There is no such key, or it opens no more.
pub async fn expire(
    context: &Context,
    id: &KeyId,
    now: DateTime<Utc>,
    at: DateTime<Utc>,
) -> Result<Key, Error> {
    change(context, id, |key| {
        let mut key = valid(Some(key), id, now)?;
        key.expires_at = Some(at);
        Ok(key)
    })
    .await
}

/// Takes a key back, at once. One that is revoked already stays so, with its time.
///
/// # Errors
/// There is no such key.
pub async fn revoke(context: &Context, id: &KeyId, now: DateTime<Utc>) -> Result<Key, Error> {
    change(context, id, |mut key| {
        key.revoked_at = Some(key.revoked_at.unwrap_or(now));
        Ok(key)
    })
    .await
}

async fn change(
    context: &Context,
    id: &KeyId,
    change: impl FnOnce(Key) -> Result<Key, Error> + Send,
) -> Result<Key, Error> {
    with_deadline(TRANSACTION_DEADLINE, &context.database, async {
        let mut connection = context.database.get().await?;
        connection
            .transaction(async |connection| {
                let key = db::keys::load_for_update(connection, id).await?;
                let key = change(key.ok_or_else(|| missing(id))?)?;
                db::keys::save_end(connection, &key).await?;
                Ok::<_, Error>(key)
            })
            .await
    })
    .await
}

fn missing(id: &KeyId) -> Error {
    Error::Missing(format!("there is no key {id}"))
}

fn valid(key: Option<Key>, id: &KeyId, now: DateTime<Utc>) -> Result<Key, Error> {
    let key = key.ok_or_else(|| missing(id))?;
    let ended = match key.standing(now) {
        Standing::Valid => return Ok(key),
        Standing::Expired => "has expired",
        Standing::Revoked => "was revoked",
    };
    Err(Error::Refused {
        code: "key_ended",
        detail: format!("key {id} {ended}; make a new one for {}", key.caller),
    })
}

/// Why a token is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAdmitted {
    /// It opens nothing.
    Refused(Refusal),
    /// This process does not know the keys: PostgreSQL has not been reached yet, or not for too long.
    KeysUnknown,
}

/// The keys as this process knows them. Clones share one place.
#[derive(Clone, Default)]
pub struct KeyRing(Arc<RwLock<Option<Known>>>);

struct Known {
    keys: Keys,
    at: Instant,
}

impl KeyRing {
    /// Whose a token is.
    ///
    /// # Errors
    /// It is not let in.
    pub fn caller(&self, token: &str, now: DateTime<Utc>) -> Result<Arc<Caller>, NotAdmitted> {
        self.caller_at(token, now, Instant::now())
    }

    /// Whether this process knows the keys, so that it can let anybody in.
    #[must_use]
    pub fn is_known(&self) -> bool {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let is_good = |known: &Known| known.at.elapsed() < GOOD_FOR;
        known.as_ref().is_some_and(is_good)
    }

    fn caller_at(
        &self,
        token: &str,
        now: DateTime<Utc>,
        at: Instant,
    ) -> Result<Arc<Caller>, NotAdmitted> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some(known) if at.saturating_duration_since(known.at) < GOOD_FOR => {
                known.keys.caller(token, now).map_err(NotAdmitted::Refused)
            }
            _ => Err(NotAdmitted::KeysUnknown),
        }
    }

    /// Looks at the keys until the shutdown: the requests that are in hand then are answered by what was known last.
    pub async fn look_until_stopped(self, context: Context, shutdown: Shutdown) {
        let mut failed = Tally::new();
        loop {
            match self.look(&context).await {
                Ok(()) => {
                    if let Err(error) = self.note_uses(&context).await {
                        // They are noted after the next look.
                        tracing::debug!(%error, "when API keys were used last cannot be noted");
                    }
                }
                Err(error) => {
                    if let Some(times) = failed.add(1, Instant::now()) {
                        tracing::warn!(times, %error, "could not look at the API keys; those known last stay good");
                    }
                }
            }
            tokio::select! {
                () = shutdown.begun() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn look(&self, context: &Context) -> Result<(), Error> {
        let at = Instant::now();
        let since = Utc::now() - REMEMBERED;
        let keys = context
            .with_connection(async |connection| {
                Ok(db::keys::list(connection, Some(since), LISTED_MAX).await?)
            })
            .await?;
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let before = known.take().map(|known| known.keys).unwrap_or_default();
        *known = Some(Known {
            keys: Keys::new(keys).after(&before),
            at,
        });
        Ok(())
    }

    /// Writes when keys were used last, of those for which that is due.
    async fn note_uses(&self, context: &Context) -> Result<(), Error> {
        let uses = match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            Some(known) => known.keys.uses_to_note(),
            None => return Ok(()),
        };
        if uses.is_empty() {
            return Ok(());
        }
        context
            .with_connection(async |connection| Ok(db::keys::note_uses(connection, &uses).await?))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_known_last_is_good_for_a_day() {
        let (now, at) = (Utc::now(), Instant::now());
        let made = new_key("shop".into(), [Scope::OrdersRead].into(), now, None);
        let (key, token) = made.expect("random bytes");
        let ring = KeyRing::default();
        let caller = |after| {
            let caller = ring.caller_at(&token.reveal(), now, at + after);
            caller.map(|caller| caller.name.clone())
        };
        assert_eq!(caller(Duration::ZERO), Err(NotAdmitted::KeysUnknown));
        let keys = Keys::new([key]);
        *ring.0.write().expect("whole") = Some(Known { keys, at });
        let almost = GOOD_FOR - Duration::from_secs(1);
        assert_eq!(caller(almost), Ok("shop".to_owned()));
        assert_eq!(caller(GOOD_FOR), Err(NotAdmitted::KeysUnknown));
    }
}
