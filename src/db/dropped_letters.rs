//! Dead letters that were dropped: all that is left of them.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::pg::{Error, prepared};

/// A letter as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Dropped<'a> {
    /// Its name, the same however often it is dropped.
    pub id: Uuid,
    /// The queue's name, without the prefix.
    pub queue: &'a str,
    /// The id that its producer gave it; empty where there was none.
    pub message_id: &'a str,
    /// Why it was dead-lettered.
    pub reason: Option<&'a str>,
    /// The error, for a person.
    pub error: Option<&'a str>,
    /// Its headers, an object.
    pub headers: serde_json::Value,
    /// The message.
    pub body: &'a [u8],
    /// When it was dropped.
    pub dropped_at: DateTime<Utc>,
    /// Who asked for it.
    pub dropped_by: &'a str,
}

/// Keeps a letter. One that is kept already stays as it is: its first dropping did not live to tell the broker.
///
/// # Errors
/// See [`Error`].
pub async fn keep(connection: &mut AsyncPgConnection, letter: &Dropped<'_>) -> Result<(), Error> {
    let (body, encoding) = written(letter.body);
    prepared(
        diesel::sql_query(
            "INSERT INTO dropped_letters
                 (id, queue, message_id, reason, error, headers, body, body_encoding, dropped_at, dropped_by)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (id) DO NOTHING",
        )
        .bind::<SqlUuid, _>(letter.id)
        .bind::<Text, _>(letter.queue)
        .bind::<Text, _>(without_nul(letter.message_id))
        .bind::<Nullable<Text>, _>(letter.reason.map(without_nul))
        .bind::<Nullable<Text>, _>(letter.error.map(without_nul))
        .bind::<Jsonb, _>(json_without_nul(&letter.headers))
        .bind::<Text, _>(body)
        .bind::<Text, _>(encoding)
        .bind::<Timestamptz, _>(letter.dropped_at)
        .bind::<Text, _>(letter.dropped_by),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A body as text, and how: what PostgreSQL cannot hold as text is written in hexadecimal, so that nothing of it is lost.
fn written(body: &[u8]) -> (String, &'static str) {
    match std::str::from_utf8(body) {
        Ok(text) if !text.contains('\0') => (text.to_owned(), "utf-8"),
        _ => {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
            let hex = body
                .iter()
                .flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]);
            (hex.collect(), "hex")
        }
    }
}

/// PostgreSQL's text cannot hold U+0000. In what is there for people, the replacement character says as much.
fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn json_without_nul(value: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::String(text) => Value::String(without_nul(text)),
        Value::Array(items) => items.iter().map(json_without_nul).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (without_nul(name), json_without_nul(value)))
            .collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_body_can_be_kept_and_read_back() {
        assert_eq!(written("é{}".as_bytes()), ("é{}".to_owned(), "utf-8"));
        assert_eq!(written(b"a\0"), ("6100".to_owned(), "hex"));
        assert_eq!(written(&[0xff, 0x0a]), ("ff0a".to_owned(), "hex"));
        assert_eq!(written(b""), (String::new(), "utf-8"));
    }
}
