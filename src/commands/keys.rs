//! `stockctl keys`: who may call the API. A key is shown once, when it is made.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use clap::Subcommand;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::Serialize;

use super::table::aligned;
use super::{EXIT_UNREACHABLE, Failure, context, failure, problem_of_schema, say};
use crate::app::keys;
use crate::config::Config;
use crate::domain::keys::{Key, KeyId, Scope, Standing, Token, check_caller};

/// Ten years; one that is meant to last longer has no end.
const DAYS_MAX: i64 = 3650;

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key, and show it: this once, since only its hash is kept
    Create {
        /// Whose it is: orders and idempotency keys belong to this name, whichever of its keys they come with
        #[arg(value_name = "CALLER", value_parser = caller)]
        caller: String,
        /// What it allows, admin everything; may be given more than once
        #[arg(long = "scope", value_name = "SCOPE", required = true, value_delimiter = ',', value_parser = scope())]
        scopes: Vec<Scope>,
        /// How long it is valid, such as 90d or 12h; for ever unless said
        #[arg(long, value_name = "TIME", value_parser = lifetime)]
        expires_in: Option<TimeDelta>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// List the keys, without their secrets, and when each was used last, to within five minutes
    List {
        /// Those that have ended, too
        #[arg(long)]
        all: bool,
        /// A JSON document on each line
        #[arg(long)]
        json: bool,
    },
    /// Make a key that takes the place of another, which ends after a while in which both open
    Rotate {
        /// The key's id, the part after stockctl_
        #[arg(value_name = "ID", value_parser = id)]
        id: KeyId,
        /// How long the old one is valid still
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = time)]
        overlap: TimeDelta,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Set when a key ceases to be valid
    Expire {
        /// The key's id, the part after stockctl_
        #[arg(value_name = "ID", value_parser = id)]
        id: KeyId,
        /// How long it is valid still, such as 1h
        #[arg(long = "in", value_name = "TIME", value_parser = time)]
        after: TimeDelta,
    },
    /// Take a key back: it opens nothing a second or two later
    Revoke {
        /// The key's id, the part after stockctl_
        #[arg(value_name = "ID", value_parser = id)]
        id: KeyId,
    },
}

fn caller(text: &str) -> Result<String, String> {
    check_caller(text).map(|()| text.to_owned())
}

/// Its values are known to completions as well.
fn scope() -> impl TypedValueParser<Value = Scope> {
    let names = Scope::ALL.map(Scope::as_str);
    PossibleValuesParser::new(names).try_map(|name| Scope::parse(&name).ok_or("it is no scope"))
}

fn id(text: &str) -> Result<KeyId, String> {
    KeyId::parse(text).ok_or_else(|| {
        "it is 12 characters of 0-9 and a-f, the part after stockctl_; `stockctl keys list` shows it"
            .to_owned()
    })
}

fn time(text: &str) -> Result<TimeDelta, String> {
    let time: Duration = humantime::parse_duration(text)
        .map_err(|_| "it is a number with a unit, such as 30m, 12h or 90d".to_owned())?;
    TimeDelta::from_std(time)
        .ok()
        .filter(|time| *time <= TimeDelta::days(DAYS_MAX))
        .ok_or_else(|| format!("it is {DAYS_MAX} days at most"))
}

/// How long a new key is valid, which is some time.
fn lifetime(text: &str) -> Result<TimeDelta, String> {
    let time = time(text)?;
    if time > TimeDelta::zero() {
        Ok(time)
    } else {
        Err("the key would never be valid".to_owned())
    }
}

/// A key, as it is shown.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    id: &'a str,
    caller: &'a str,
    scopes: Vec<&'static str>,
    standing: Standing,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<String>,
    /// Where it was made just now.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl<'a> Shown<'a> {
    fn new(key: &'a Key, token: Option<&Token>, now: DateTime<Utc>) -> Self {
        Self {
            id: key.id.as_str(),
            caller: &key.caller,
            scopes: key.scopes.iter().map(|scope| scope.as_str()).collect(),
            standing: key.standing(now),
            created_at: shown_time(key.created_at),
            expires_at: key.expires_at.map(shown_time),
            revoked_at: key.revoked_at.map(shown_time),
            last_used_at: key.last_used_at.map(shown_time),
            key: token.map(Token::reveal),
        }
    }
}

fn shown_time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Does it.
///
/// # Errors
/// There is no such key, it has ended, or the database cannot be reached.
pub async fn run(config: &Config, command: KeysCommand) -> Result<(), Failure> {
    if let Some(problem) = problem_of_schema(config).await {
        return Err(Failure::new(EXIT_UNREACHABLE, problem));
    }
    let context = context(config)?;
    let now = Utc::now();
    match command {
        KeysCommand::Create {
            caller,
            scopes,
            expires_in,
            json,
        } => {
            let scopes: BTreeSet<Scope> = scopes.into_iter().collect();
            let (key, token) = keys::create(&context, caller, scopes, now, expires_in)
                .await
                .map_err(|error| failure(&error))?;
            show_new(&key, &token, now, json)?;
        }
        KeysCommand::List { all, json } => {
            let keys = keys::list(&context)
                .await
                .map_err(|error| failure(&error))?;
            let shown: Vec<Shown<'_>> = keys
                .iter()
                .filter(|key| all || key.standing(now) == Standing::Valid)
                .map(|key| Shown::new(key, None, now))
                .collect();
            if json {
                for key in &shown {
                    say(&serde_json::to_string(key).map_err(Failure::bug)?);
                }
            } else {
                say(&table(&shown));
            }
        }
        KeysCommand::Rotate { id, overlap, json } => {
            let (key, token) = keys::rotate(&context, &id, now, overlap)
                .await
                .map_err(|error| failure(&error))?;
            show_new(&key, &token, now, json)?;
        }
        KeysCommand::Expire { id, after } => {
            let key = keys::expire(&context, &id, now, now + after)
                .await
                .map_err(|error| failure(&error))?;
            say(&format!(
                "key {id} of {} is valid until {}",
                key.caller,
                shown_time(now + after)
            ));
        }
        KeysCommand::Revoke { id } => {
            let key = keys::revoke(&context, &id, now)
                .await
                .map_err(|error| failure(&error))?;
            say(&format!("key {id} of {} is revoked", key.caller));
        }
    }
    // Where nobody asks for keys, they are made in vain.
    if !config.http.require_keys {
        tracing::warn!("http.require_keys is false in this configuration, so no key is asked for");
    }
    Ok(())
}

fn show_new(key: &Key, token: &Token, now: DateTime<Utc>, json: bool) -> Result<(), Failure> {
    if json {
        let shown = Shown::new(key, Some(token), now);
        say(&serde_json::to_string(&shown).map_err(Failure::bug)?);
        return Ok(());
    }
    let until = key.expires_at.map_or_else(
        || "for ever".to_owned(),
        |at| format!("until {}", shown_time(at)),
    );
    let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
    say(&format!(
        "{}\n\nThis is the only time that it is shown. It is {}'s, allows {}, and is valid {until}.",
        token.reveal(),
        key.caller,
        scopes.join(", "),
    ));
    Ok(())
}

fn table(keys: &[Shown<'_>]) -> String {
    if keys.is_empty() {
        return "there is no key; `stockctl keys create` makes one".to_owned();
    }
    let head = ["ID", "CALLER", "STANDING", "UNTIL", "LAST USED", "SCOPES"].map(str::to_owned);
    let rows = keys.iter().map(|key| {
        let standing = match key.standing {
            Standing::Valid => "valid",
            Standing::Expired => "expired",
            Standing::Revoked => "revoked",
        };
        let until = key.revoked_at.as_deref().or(key.expires_at.as_deref());
        let until = until.unwrap_or("for ever");
        let used = key.last_used_at.as_deref().unwrap_or("-");
        let scopes = key.scopes.join(", ");
        [key.id, key.caller, standing, until, used, &scopes].map(str::to_owned)
    });
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(rows).collect();
    aligned(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn whatever_is_said_of_a_key_what_is_taken_is_within_the_bounds(
            text in "[0-9]{1,20} ?(s|m|h|d|y|years|weeks)|[0-9a-f]{11,13}|[A-Za-z:]{1,12}|\\PC{0,20}",
        ) {
            if let Ok(time) = time(&text) {
                proptest::prop_assert!((TimeDelta::zero()..=TimeDelta::days(DAYS_MAX)).contains(&time));
            }
            if let Ok(time) = lifetime(&text) {
                proptest::prop_assert!(time > TimeDelta::zero());
            }
            if let Ok(id) = id(&text) {
                proptest::prop_assert_eq!(id.as_str(), &text);
            }
            if let Ok(caller) = caller(&text) {
                proptest::prop_assert_eq!(caller, text);
            }
        }
    }
}
