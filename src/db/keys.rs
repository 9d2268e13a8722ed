//! API keys.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Binary, Nullable, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::corrupt;
use crate::domain::keys::{Hash, Key, KeyId, Scope};
use crate::pg::{Error, prepared};

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Text)]
    caller: String,
    #[diesel(sql_type = Binary)]
    secret_sha256: Vec<u8>,
    #[diesel(sql_type = Array<Text>)]
    scopes: Vec<String>,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    expires_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    revoked_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    last_used_at: Option<DateTime<Utc>>,
}

impl TryFrom<Row> for Key {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self, Error> {
        let hash: [u8; 32] = row
            .secret_sha256
            .try_into()
            .map_err(|_| corrupt(format!("the hash of API key {}", row.id)))?;
        Ok(Self {
            id: KeyId::parse(&row.id).ok_or_else(|| corrupt(format!("API key {}", row.id)))?,
            caller: row.caller,
            hash: Hash::new(hash),
            // A scope of a later version allows nothing here.
            scopes: row.scopes.iter().filter_map(|s| Scope::parse(s)).collect(),
            created_at: row.created_at,
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
            last_used_at: row.last_used_at,
        })
    }
}

/// Inserts a key.
///
/// # Errors
/// See [`Error`].
pub async fn insert(connection: &mut AsyncPgConnection, key: &Key) -> Result<(), Error> {
    diesel::sql_query(
        "INSERT INTO api_keys (id, caller, secret_sha256, scopes, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind::<Text, _>(key.id.as_str())
    .bind::<Text, _>(&key.caller)
    .bind::<Binary, _>(key.hash.as_bytes())
    .bind::<Array<Text>, _>(key.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>())
    .bind::<Timestamptz, _>(key.created_at)
    .bind::<Nullable<Timestamptz>, _>(key.expires_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Lists keys, those that are valid longest first: whatever the limit leaves out has ended. With `ended_before`, without
/// those that ended before that.
///
/// # Errors
/// See [`Error`].
pub async fn list(
    connection: &mut AsyncPgConnection,
    ended_before: Option<DateTime<Utc>>,
    limit: i64,
) -> Result<Vec<Key>, Error> {
    let rows: Vec<Row> = prepared(
        diesel::sql_query(
            "SELECT id, caller, secret_sha256, scopes, created_at, expires_at, revoked_at, last_used_at FROM api_keys
             WHERE $1 IS NULL OR least(expires_at, revoked_at) IS NULL OR least(expires_at, revoked_at) >= $1
             ORDER BY least(expires_at, revoked_at) DESC NULLS FIRST, id LIMIT $2",
        )
        .bind::<Nullable<Timestamptz>, _>(ended_before)
        .bind::<BigInt, _>(limit),
    )
    .load(connection)
    .await?;
    rows.into_iter().map(Key::try_from).collect()
}

/// Locks all keys against others that would change them too, and counts those that are valid.
///
/// # Errors
/// See [`Error`].
pub async fn lock_and_count_valid(
    connection: &mut AsyncPgConnection,
    now: DateTime<Utc>,
) -> Result<i64, Error> {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        n: i64,
    }
    diesel::sql_query("LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE")
        .execute(connection)
        .await?;
    let count: Count = diesel::sql_query(
        "SELECT count(*) AS n FROM api_keys WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $1)",
    )
    .bind::<Timestamptz, _>(now)
    .get_result(connection)
    .await?;
    Ok(count.n)
}

/// Locks a key and reads it.
///
/// # Errors
/// See [`Error`].
pub async fn load_for_update(
    connection: &mut AsyncPgConnection,
    id: &KeyId,
) -> Result<Option<Key>, Error> {
    let rows: Vec<Row> = diesel::sql_query(
        "SELECT id, caller, secret_sha256, scopes, created_at, expires_at, revoked_at, last_used_at FROM api_keys WHERE id = $1 FOR UPDATE",
    )
    .bind::<Text, _>(id.as_str())
    .load(connection)
    .await?;
    rows.into_iter().next().map(Key::try_from).transpose()
}

/// Writes when a key ends.
///
/// # Errors
/// See [`Error`].
pub async fn save_end(connection: &mut AsyncPgConnection, key: &Key) -> Result<(), Error> {
    diesel::sql_query("UPDATE api_keys SET expires_at = $2, revoked_at = $3 WHERE id = $1")
        .bind::<Text, _>(key.id.as_str())
        .bind::<Nullable<Timestamptz>, _>(key.expires_at)
        .bind::<Nullable<Timestamptz>, _>(key.revoked_at)
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes when keys were used last. One that somebody else is writing is left to that.
///
/// # Errors
/// See [`Error`].
pub async fn note_uses(
    connection: &mut AsyncPgConnection,
    uses: &BTreeMap<KeyId, DateTime<Utc>>,
) -> Result<(), Error> {
    let ids: Vec<&str> = uses.keys().map(KeyId::as_str).collect();
    let times: Vec<DateTime<Utc>> = uses.values().copied().collect();
    prepared(
        diesel::sql_query(
            "WITH free AS MATERIALIZED (SELECT id FROM api_keys WHERE id = ANY($1) ORDER BY id FOR UPDATE SKIP LOCKED)
             UPDATE api_keys k SET last_used_at = greatest(k.last_used_at, used.at)
             FROM free JOIN unnest($1, $2) AS used (id, at) ON used.id = free.id WHERE k.id = free.id",
        )
        .bind::<Array<Text>, _>(ids)
        .bind::<Array<Timestamptz>, _>(times),
    )
    .execute(connection)
    .await?;
    Ok(())
}
