//! API keys: who calls, and what they may do. A key's secret is shown once and kept as its hash only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::messages::BROKER_CALLER;

/// Who calls where no keys are required: whoever reaches a loopback address.
pub const LOCAL_CALLER: &str = "local";
/// The longest name of a key's caller in bytes.
const CALLER_BYTES_MAX: usize = 64;
/// Every key begins so, so that one that leaked is recognized for what it is.
const PREFIX: &str = "stockctl";
/// Random bytes of a key's id: so few keys at a time never meet in one.
pub const ID_BYTES: usize = 6;
/// Random bytes of a secret. Nobody guesses 256 bits, so a fast hash will do.
pub const SECRET_BYTES: usize = 32;

/// What a key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Place and cancel orders.
    OrdersWrite,
    /// Read orders.
    OrdersRead,
    /// Change vendors' stock.
    StockWrite,
    /// Everything, of every caller.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Scope; 4] = [
        Scope::OrdersWrite,
        Scope::OrdersRead,
        Scope::StockWrite,
        Scope::Admin,
    ];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OrdersWrite => "orders:write",
            Self::OrdersRead => "orders:read",
            Self::StockWrite => "stock:write",
            Self::Admin => "admin",
        }
    }

    /// The scope of a name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The caller of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Its name: a key's, which outlives the key.
    pub name: String,
    /// What it may do.
    scopes: BTreeSet<Scope>,
}

impl Caller {
    /// A caller with a key.
    #[must_use]
    pub fn new(name: String, scopes: BTreeSet<Scope>) -> Self {
        Self { name, scopes }
    }

    /// Whoever calls where no keys are required.
    #[must_use]
    pub fn local() -> Self {
        Self::new(LOCAL_CALLER.to_owned(), Scope::ALL.into())
    }

    /// Whether it may do what needs a scope.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }

    /// Whether it may see what belongs to a caller.
    #[must_use]
    pub fn sees(&self, owner: &str) -> bool {
        self.only_its_own().is_none_or(|name| name == owner)
    }

    /// Its name, if it sees only what is its own.
    #[must_use]
    pub fn only_its_own(&self) -> Option<&str> {
        (!self.may(Scope::Admin)).then_some(self.name.as_str())
    }
}

/// Checks the name of a key's caller.
///
/// # Errors
/// What is wrong with it.
pub fn check_caller(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-@".contains(c);
    if name.is_empty() || name.len() > CALLER_BYTES_MAX || !name.chars().all(is_plain) {
        return Err(format!(
            "a caller's name is 1 to {CALLER_BYTES_MAX} of A-Z a-z 0-9 _ . - @"
        ));
    }
    if [LOCAL_CALLER, BROKER_CALLER].contains(&name) {
        return Err(format!("{name} stands for those who need no key"));
    }
    Ok(())
}

/// The public part of a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct KeyId(String);

impl KeyId {
    /// Makes one of random bytes.
    #[must_use]
    pub fn new(random: [u8; ID_BYTES]) -> Self {
        Self(to_hex(&random))
    }

    /// Reads one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        is_hex(text, ID_BYTES).then(|| Self(text.to_owned()))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key as its holder has it: `stockctl_<id>_<secret>`. It is not printed by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: KeyId,
    secret: String,
}

impl Token {
    /// Makes one of a secret's random bytes.
    #[must_use]
    pub fn new(id: KeyId, secret: [u8; SECRET_BYTES]) -> Self {
        Self {
            id,
            secret: to_hex(&secret),
        }
    }

    /// Reads one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('_');
        let (prefix, id, secret) = (parts.next()?, parts.next()?, parts.next()?);
        let is_one = prefix == PREFIX && is_hex(secret, SECRET_BYTES) && parts.next().is_none();
        is_one.then_some(Self {
            id: KeyId::parse(id)?,
            secret: secret.to_owned(),
        })
    }

    /// The public part.
    #[must_use]
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// The whole, to be shown once.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{PREFIX}_{}_{}", self.id, self.secret)
    }

    /// What is kept of it.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash(Sha256::digest(self.secret.as_bytes()).into())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}_{}_***", self.id)
    }
}

/// What is kept of a secret.
#[derive(Debug, Clone, Copy)]
pub struct Hash([u8; 32]);

impl Hash {
    /// Of its bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A key as it is kept.
#[derive(Debug, Clone)]
pub struct Key {
    /// Its public part.
    pub id: KeyId,
    /// Whose it is.
    pub caller: String,
    /// Of its secret.
    pub hash: Hash,
    /// What it allows.
    pub scopes: BTreeSet<Scope>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it ceases to be valid.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When somebody came with it last, as far as that was noted: see [`Keys::uses_to_note`].
    pub last_used_at: Option<DateTime<Utc>>,
}

/// Where a key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It opens.
    Valid,
    /// Its time is over.
    Expired,
    /// It was taken back.
    Revoked,
}

impl Key {
    /// Where it stands.
    #[must_use]
    pub fn standing(&self, now: DateTime<Utc>) -> Standing {
        if self.revoked_at.is_some() {
            Standing::Revoked
        } else if self.expires_at.is_some_and(|at| at <= now) {
            Standing::Expired
        } else {
            Standing::Valid
        }
    }
}

/// Why a token opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is none, or its secret is wrong.
    #[error("this API key is not known here")]
    Unknown,
    /// It was one.
    #[error("this API key has expired")]
    Expired,
    /// It was one.
    #[error("this API key was revoked")]
    Revoked,
}

/// A use is noted when the one that was noted is older than this: a key is written at most so often, however many requests
/// come with it.
pub const USE_NOTED_AFTER: TimeDelta = TimeDelta::minutes(5);

/// The keys of an installation, each with its caller: every request asks for one.
#[derive(Debug, Default)]
pub struct Keys(HashMap<KeyId, Held>);

#[derive(Debug)]
struct Held {
    key: Key,
    caller: Arc<Caller>,
    /// The second of the newest use, or [`NEVER`]; the same place before and after the keys are read again.
    used_at: Arc<AtomicI64>,
}

/// Before any use.
const NEVER: i64 = i64::MIN;

impl Keys {
    /// These.
    #[must_use]
    pub fn new(keys: impl IntoIterator<Item = Key>) -> Self {
        let with_caller = |key: Key| {
            let caller = Caller::new(key.caller.clone(), key.scopes.clone());
            let held = Held {
                caller: Arc::new(caller),
                used_at: Arc::new(AtomicI64::new(NEVER)),
                key,
            };
            (held.key.id.clone(), held)
        };
        Self(keys.into_iter().map(with_caller).collect())
    }

    /// These, of which those that were known before go on counting their uses where they did.
    #[must_use]
    pub fn after(mut self, before: &Self) -> Self {
        for (id, held) in &mut self.0 {
            if let Some(known) = before.0.get(id) {
                held.used_at = Arc::clone(&known.used_at);
            }
        }
        self
    }

    /// Uses that are to be noted, by id: those of keys of which none was, or none of the last minutes
    /// ([`USE_NOTED_AFTER`]).
    #[must_use]
    pub fn uses_to_note(&self) -> BTreeMap<KeyId, DateTime<Utc>> {
        let newer = |held: &Held| {
            let used_at = DateTime::from_timestamp(held.used_at.load(Ordering::Relaxed), 0)?;
            let noted = held.key.last_used_at;
            let is_new = noted.is_none_or(|noted| used_at - noted >= USE_NOTED_AFTER);
            is_new.then(|| (held.key.id.clone(), used_at))
        };
        self.0.values().filter_map(newer).collect()
    }

    /// Whose a token is. Only who has its secret is told where a key stands.
    ///
    /// # Errors
    /// It opens nothing.
    pub fn caller(&self, token: &str, now: DateTime<Utc>) -> Result<Arc<Caller>, Refusal> {
        let token = Token::parse(token).ok_or(Refusal::Unknown)?;
        let held = self.0.get(token.id()).ok_or(Refusal::Unknown)?;
        let key = &held.key;
        if !bool::from(token.hash().0.ct_eq(&key.hash.0)) {
            return Err(Refusal::Unknown);
        }
        match key.standing(now) {
            Standing::Valid => {
                let second = now.timestamp();
                // All requests with the key share the place, so it is written once a second only.
                if held.used_at.load(Ordering::Relaxed) < second {
                    held.used_at.store(second, Ordering::Relaxed);
                }
                Ok(Arc::clone(&held.caller))
            }
            Standing::Expired => Err(Refusal::Expired),
            Standing::Revoked => Err(Refusal::Revoked),
        }
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_hex(text: &str, bytes: usize) -> bool {
    text.len() == 2 * bytes
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).expect("a time")
    }

    fn token(number: u8) -> Token {
        Token::new(KeyId::new([number; ID_BYTES]), [number; SECRET_BYTES])
    }

    fn key(token: &Token, scopes: &[Scope]) -> Key {
        Key {
            id: token.id().clone(),
            caller: "shop".into(),
            hash: token.hash(),
            scopes: scopes.iter().copied().collect(),
            created_at: at(0),
            expires_at: Some(at(10)),
            revoked_at: None,
            last_used_at: None,
        }
    }

    #[test]
    fn a_key_is_known_by_its_secret_until_it_expires_or_is_revoked() {
        let (ours, other) = (token(1), token(2));
        let revoked = Key {
            revoked_at: Some(at(5)),
            ..key(&other, &[Scope::Admin])
        };
        let keys = Keys::new([key(&ours, &[Scope::OrdersRead]), revoked]);
        let caller = keys.caller(&ours.reveal(), at(9)).expect("it is valid");
        assert_eq!(caller.name, "shop");
        assert!(caller.may(Scope::OrdersRead) && !caller.may(Scope::OrdersWrite));
        assert_eq!(keys.caller(&ours.reveal(), at(10)), Err(Refusal::Expired));
        assert_eq!(keys.caller(&other.reveal(), at(1)), Err(Refusal::Revoked));
        // Another's secret does not open it, whatever its standing.
        let mixed = Token::new(other.id().clone(), [1; SECRET_BYTES]);
        assert_eq!(keys.caller(&mixed.reveal(), at(1)), Err(Refusal::Unknown));
        assert_eq!(
            keys.caller(&token(3).reveal(), at(1)),
            Err(Refusal::Unknown)
        );
    }

    #[test]
    fn a_use_is_noted_unless_one_of_the_last_minutes_is() {
        let token = token(1);
        let mut kept = key(&token, &[Scope::OrdersRead]);
        kept.expires_at = None;
        let keys = Keys::new([kept.clone()]);
        assert!(keys.uses_to_note().is_empty(), "it was never used");
        for wrong in ["", &token.reveal().replace("_01", "_02")] {
            assert!(keys.caller(wrong, at(1)).is_err());
        }
        assert!(keys.uses_to_note().is_empty(), "it was not let in");
        let used = |keys: &Keys, second| {
            keys.caller(&token.reveal(), at(second)).expect("valid");
            keys.uses_to_note().into_values().collect::<Vec<_>>()
        };
        assert_eq!(used(&keys, 7), [at(7)]);
        assert_eq!(used(&keys, 6), [at(7)], "a clock that was set back");
        // As it is read back, by whichever process it was noted.
        kept.last_used_at = Some(at(7));
        let keys = Keys::new([kept.clone()]).after(&keys);
        let minutes = USE_NOTED_AFTER.num_seconds();
        assert!(used(&keys, 6 + minutes).is_empty());
        assert_eq!(used(&keys, 7 + minutes), [at(7 + minutes)]);
        // Uses are counted on where the keys were read meanwhile.
        let reread = Keys::new([kept]).after(&keys);
        assert_eq!(used(&keys, 9 + minutes), [at(9 + minutes)]);
        assert_eq!(reread.uses_to_note(), keys.uses_to_note());
    }

    #[test]
    fn an_administrator_may_everything_and_sees_everybodys() {
        let of = |scope| Caller::new("shop".into(), [scope].into());
        let admin = of(Scope::Admin);
        assert!(Scope::ALL.into_iter().all(|scope| admin.may(scope)));
        assert!(admin.sees("another") && admin.only_its_own().is_none());
        let reader = of(Scope::OrdersRead);
        assert!(reader.sees("shop") && !reader.sees("another"));
        assert!(Caller::local().may(Scope::Admin));
    }

    #[test]
    fn a_token_is_never_printed_whole_unless_it_is_meant() {
        let token = token(0xab);
        assert_eq!(format!("{token:?}"), "stockctl_abababababab_***");
        insta::assert_snapshot!(token.reveal(), @"stockctl_abababababab_abababababababababababababababababababababababababababababababab");
        assert_eq!(Token::parse(&token.reveal()), Some(token));
    }

    #[test]
    fn a_caller_has_a_plain_name_that_nobody_else_has() {
        for name in ["shop", "a.b_c-d@e", &"x".repeat(64)] {
            assert_eq!(check_caller(name), Ok(()), "{name}");
        }
        for name in ["", "a b", "sh\u{f6}p", &"x".repeat(65), "local", "amqp"] {
            assert!(check_caller(name).is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_text_what_is_taken_for_a_token_is_spelt_as_one(
            text in "\\PC{0,120}|stockctl_[0-9a-fA-F]{11,13}_[0-9a-f]{63,65}(_)?",
        ) {
            if let Some(token) = Token::parse(&text) {
                prop_assert_eq!(token.reveal(), text);
            }
        }
    }
}
