//! Subscriptions to events by HTTP, and up to where each was told.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{
    Array, BigInt, Binary, Bool, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid,
};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use super::corrupt;
use crate::domain::events::{EventType, Filter, Position};
use crate::domain::ids::WebhookId;
use crate::domain::webhooks::{Secret, Subscription};
use crate::pg::{Error, prepared};

/// A place of a list, newest first.
pub type Cursor = (DateTime<Utc>, WebhookId);

/// A session that says nothing for this long has lost its process or its way: another one may feed.
const FEEDER_SILENCE_MAX: &str = "15s";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Nullable<Text>)]
    caller: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    name: Option<String>,
    #[diesel(sql_type = Text)]
    url: String,
    #[diesel(sql_type = Array<Text>)]
    types: Vec<String>,
    #[diesel(sql_type = Nullable<Text>)]
    orders_of: Option<String>,
    #[diesel(sql_type = Binary)]
    secret: Vec<u8>,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    disabled_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    failing_since: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Text>)]
    last_error: Option<String>,
}

impl From<Row> for Subscription {
    fn from(row: Row) -> Self {
        // A type of a later version is none that is told here.
        let types: BTreeSet<EventType> = row
            .types
            .iter()
            .filter_map(|name| EventType::parse(name))
            .collect();
        Self {
            id: WebhookId(row.id),
            caller: row.caller,
            name: row.name,
            url: row.url,
            filter: Filter::of(types, row.orders_of),
            secret: Secret::of_bytes(row.secret),
            created_at: row.created_at,
            disabled_at: row.disabled_at,
            failing_since: row.failing_since,
            last_error: row.last_error,
        }
    }
}

fn type_names(filter: &Filter) -> Vec<&'static str> {
    filter.types().iter().map(|kind| kind.as_str()).collect()
}

/// Locks all against others that would add some too, and counts them: in all, and a caller's.
///
/// # Errors
/// See [`Error`].
pub async fn lock_and_count(
    connection: &mut AsyncPgConnection,
    caller: &str,
) -> Result<(i64, i64), Error> {
    #[derive(QueryableByName)]
    struct Counts {
        #[diesel(sql_type = BigInt)]
        all: i64,
        #[diesel(sql_type = BigInt)]
        of_caller: i64,
    }
    // Against itself, and not against those that write how far each was told.
    diesel::sql_query("SELECT pg_advisory_xact_lock(hashtextextended('stockctl webhooks', 0))")
        .execute(connection)
        .await?;
    let counts: Counts = diesel::sql_query(
        "SELECT count(*) AS all, count(*) FILTER (WHERE caller = $1) AS of_caller FROM webhooks",
    )
    .bind::<Text, _>(caller)
    .get_result(connection)
    .await?;
    Ok((counts.all, counts.of_caller))
}

/// Inserts one, which is told of what happens from now on.
///
/// # Errors
/// See [`Error`].
pub async fn insert(
    connection: &mut AsyncPgConnection,
    subscription: &Subscription,
) -> Result<(), Error> {
    diesel::sql_query(
        "INSERT INTO webhooks (id, caller, name, url, types, orders_of, secret, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind::<SqlUuid, _>(subscription.id.0)
    .bind::<Nullable<Text>, _>(subscription.caller.as_deref())
    .bind::<Nullable<Text>, _>(subscription.name.as_deref())
    .bind::<Text, _>(&subscription.url)
    .bind::<Array<Text>, _>(type_names(&subscription.filter))
    .bind::<Nullable<Text>, _>(subscription.filter.owner())
    .bind::<Binary, _>(subscription.secret.as_bytes())
    .bind::<Timestamptz, _>(subscription.created_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Inserts one of the configuration, or writes what has changed of it. At another address it begins anew: what it
/// failed with was the old one's.
///
/// # Errors
/// See [`Error`].
pub async fn put_configured(
    connection: &mut AsyncPgConnection,
    subscription: &Subscription,
) -> Result<(), Error> {
    diesel::sql_query(
        "INSERT INTO webhooks AS w (id, name, url, types, secret, created_at) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (name) DO UPDATE SET url = excluded.url, types = excluded.types, secret = excluded.secret,
             disabled_at = CASE WHEN w.url = excluded.url THEN w.disabled_at END,
             failing_since = CASE WHEN w.url = excluded.url THEN w.failing_since END,
             last_error = CASE WHEN w.url = excluded.url THEN w.last_error END
         WHERE (w.url, w.types, w.secret) IS DISTINCT FROM (excluded.url, excluded.types, excluded.secret)",
    )
    .bind::<SqlUuid, _>(subscription.id.0)
    .bind::<Nullable<Text>, _>(subscription.name.as_deref())
    .bind::<Text, _>(&subscription.url)
    .bind::<Array<Text>, _>(type_names(&subscription.filter))
    .bind::<Binary, _>(subscription.secret.as_bytes())
    .bind::<Timestamptz, _>(subscription.created_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes those of the configuration that it does not name any more.
///
/// # Errors
/// See [`Error`].
pub async fn keep_configured(
    connection: &mut AsyncPgConnection,
    names: &[&str],
) -> Result<(), Error> {
    // Callers' have no name, and of an empty list anything is true.
    diesel::sql_query("DELETE FROM webhooks WHERE name IS NOT NULL AND name <> ALL($1)")
        .bind::<Array<Text>, _>(names)
        .execute(connection)
        .await?;
    Ok(())
}

/// Lists those that a caller sees, the newest first: its own, or all.
///
/// # Errors
/// See [`Error`].
pub async fn list(
    connection: &mut AsyncPgConnection,
    only_of: Option<&str>,
    after: Option<Cursor>,
    limit: i64,
) -> Result<Vec<Subscription>, Error> {
    let (at, id) = after.unzip();
    let rows: Vec<Row> = prepared(
        diesel::sql_query(
            "SELECT id, caller, name, url, types, orders_of, secret, created_at, disabled_at, failing_since, last_error
             FROM webhooks WHERE ($1 IS NULL OR caller = $1) AND ($2 IS NULL OR (created_at, id) < ($2, $3))
             ORDER BY created_at DESC, id DESC LIMIT $4",
        )
        .bind::<Nullable<Text>, _>(only_of)
        .bind::<Nullable<Timestamptz>, _>(at)
        .bind::<Nullable<SqlUuid>, _>(id.map(|id| id.0))
        .bind::<BigInt, _>(limit),
    )
    .load(connection)
    .await?;
    Ok(rows.into_iter().map(Subscription::from).collect())
}

/// Finds one.
///
/// # Errors
/// See [`Error`].
pub async fn find(
    connection: &mut AsyncPgConnection,
    id: WebhookId,
) -> Result<Option<Subscription>, Error> {
    let rows: Vec<Row> = prepared(
        diesel::sql_query(
            "SELECT id, caller, name, url, types, orders_of, secret, created_at, disabled_at, failing_since, last_error
             FROM webhooks WHERE id = $1",
        )
        .bind::<SqlUuid, _>(id.0),
    )
    .load(connection)
    .await?;
    Ok(rows.into_iter().next().map(Subscription::from))
}

/// Deletes one that a caller sees. Returns whether there was one.
///
/// # Errors
/// See [`Error`].
pub async fn delete(
    connection: &mut AsyncPgConnection,
    id: WebhookId,
    only_of: Option<&str>,
) -> Result<bool, Error> {
    let deleted =
        diesel::sql_query("DELETE FROM webhooks WHERE id = $1 AND ($2 IS NULL OR caller = $2)")
            .bind::<SqlUuid, _>(id.0)
            .bind::<Nullable<Text>, _>(only_of)
            .execute(connection)
            .await?;
    Ok(deleted > 0)
}

/// Takes the lock of who feeds on this session, or says that another process has it. The server ends a session that is
/// silent, and the lock with it: one whose process hangs does not keep it for ever.
///
/// # Errors
/// See [`Error`].
pub async fn try_lock_feeding(connection: &mut AsyncPgConnection) -> Result<bool, Error> {
    #[derive(QueryableByName)]
    struct Lock {
        #[diesel(sql_type = Bool)]
        locked: bool,
    }
    let row: Lock = diesel::sql_query(format!(
        "SELECT pg_try_advisory_lock(hashtextextended('stockctl webhooks feeder', 0)) AS locked,
             set_config('idle_session_timeout', '{FEEDER_SILENCE_MAX}', false)"
    ))
    .get_result(connection)
    .await?;
    Ok(row.locked)
}

/// Up to where one was told, and what may be put into the broker for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Whose place it is.
    pub id: WebhookId,
    /// What it hears.
    pub filter: Filter,
    /// Up to where it was told.
    pub told: Position,
    /// It fails: one event now and then will show whether it is back.
    pub is_failing: bool,
}

/// The places of all that may be fed now. One that fails may after a while.
///
/// # Errors
/// See [`Error`].
pub async fn list_places(
    connection: &mut AsyncPgConnection,
    probe_after: Duration,
    limit: i64,
) -> Result<Vec<Place>, Error> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
        #[diesel(sql_type = Array<Text>)]
        types: Vec<String>,
        #[diesel(sql_type = Nullable<Text>)]
        orders_of: Option<String>,
        #[diesel(sql_type = BigInt)]
        xid: i64,
        #[diesel(sql_type = BigInt)]
        told_row: i64,
        #[diesel(sql_type = Integer)]
        told_index: i32,
        #[diesel(sql_type = Bool)]
        is_failing: bool,
    }
    let rows: Vec<Row> = prepared(
        diesel::sql_query(
            "SELECT id, types, orders_of, told_xid::text::bigint AS xid, told_row, told_index,
                 failing_since IS NOT NULL AS is_failing
             FROM webhooks
             WHERE disabled_at IS NULL AND coalesce(held_until <= now(), true)
                 AND (failing_since IS NULL OR coalesce(fed_at < now() - make_interval(secs => $1), true))
             ORDER BY id LIMIT $2",
        )
        .bind::<Double, _>(probe_after.as_secs_f64())
        .bind::<BigInt, _>(limit),
    )
    .load(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Place {
            id: WebhookId(row.id),
            filter: Filter::of(
                row.types
                    .iter()
                    .filter_map(|name| EventType::parse(name))
                    .collect(),
                row.orders_of,
            ),
            told: Position {
                xid: row.xid,
                row: row.told_row,
                index: row.told_index,
            },
            is_failing: row.is_failing,
        })
        .collect())
}

/// A step of one's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Whose.
    pub id: WebhookId,
    /// Where it was.
    pub from: Position,
    /// Where it is.
    pub to: Position,
    /// Whether anything was put into the broker for it.
    pub is_fed: bool,
}

/// Moves places. One that is not where it was thought to be stays: another process has moved it.
///
/// # Errors
/// See [`Error`].
pub async fn advance(connection: &mut AsyncPgConnection, steps: &[Step]) -> Result<(), Error> {
    if steps.is_empty() {
        return Ok(());
    }
    let xids = |of: fn(&Step) -> Position| -> Vec<String> {
        steps.iter().map(|step| of(step).xid.to_string()).collect()
    };
    let rows =
        |of: fn(&Step) -> Position| -> Vec<i64> { steps.iter().map(|step| of(step).row).collect() };
    let indexes = |of: fn(&Step) -> Position| -> Vec<i32> {
        steps.iter().map(|step| of(step).index).collect()
    };
    prepared(
        diesel::sql_query(
            "UPDATE webhooks AS w SET told_xid = s.to_xid::xid8, told_row = s.to_row, told_index = s.to_index,
                 fed_at = CASE WHEN s.is_fed THEN now() ELSE w.fed_at END
             FROM unnest($1, $2, $3, $4, $5, $6, $7, $8)
                 AS s (id, from_xid, from_row, from_index, to_xid, to_row, to_index, is_fed)
             WHERE w.id = s.id
                 AND (w.told_xid, w.told_row, w.told_index) = (s.from_xid::xid8, s.from_row, s.from_index)",
        )
        .bind::<Array<SqlUuid>, _>(steps.iter().map(|step| step.id.0).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(xids(|step| step.from))
        .bind::<Array<BigInt>, _>(rows(|step| step.from))
        .bind::<Array<Integer>, _>(indexes(|step| step.from))
        .bind::<Array<Text>, _>(xids(|step| step.to))
        .bind::<Array<BigInt>, _>(rows(|step| step.to))
        .bind::<Array<Integer>, _>(indexes(|step| step.to))
        .bind::<Array<Bool>, _>(steps.iter().map(|step| step.is_fed).collect::<Vec<_>>()),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that receivers fail, each with what it failed with.
///
/// # Errors
/// See [`Error`].
pub async fn note_failing(
    connection: &mut AsyncPgConnection,
    failing: &[(WebhookId, String)],
) -> Result<(), Error> {
    let (ids, errors): (Vec<Uuid>, Vec<&str>) = failing
        .iter()
        .map(|(id, error)| (id.0, error.as_str()))
        .unzip();
    prepared(
        diesel::sql_query(
            "UPDATE webhooks AS w SET failing_since = coalesce(failing_since, now()), last_error = f.error
             FROM unnest($1, $2) AS f (id, error) WHERE w.id = f.id",
        )
        .bind::<Array<SqlUuid>, _>(ids)
        .bind::<Array<Text>, _>(errors),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that receivers answer.
///
/// # Errors
/// See [`Error`].
pub async fn note_answering(
    connection: &mut AsyncPgConnection,
    ids: &[WebhookId],
) -> Result<(), Error> {
    prepared(
        diesel::sql_query(
            "UPDATE webhooks SET failing_since = NULL, last_error = NULL, held_until = NULL
             WHERE id = ANY($1) AND failing_since IS NOT NULL",
        )
        .bind::<Array<SqlUuid>, _>(ids.iter().map(|id| id.0).collect::<Vec<_>>()),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Lets nothing more be put into the broker for these for a while.
///
/// # Errors
/// See [`Error`].
pub async fn hold(
    connection: &mut AsyncPgConnection,
    ids: &[WebhookId],
    pause: Duration,
) -> Result<(), Error> {
    prepared(
        diesel::sql_query(
            "UPDATE webhooks SET held_until = now() + make_interval(secs => $2) WHERE id = ANY($1)",
        )
        .bind::<Array<SqlUuid>, _>(ids.iter().map(|id| id.0).collect::<Vec<_>>())
        .bind::<Double, _>(pause.as_secs_f64()),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Tells one no more, and why.
///
/// # Errors
/// See [`Error`].
pub async fn disable(
    connection: &mut AsyncPgConnection,
    id: WebhookId,
    error: &str,
) -> Result<(), Error> {
    prepared(
        diesel::sql_query(
            "UPDATE webhooks SET disabled_at = now(), last_error = $2 WHERE id = $1 AND disabled_at IS NULL",
        )
        .bind::<SqlUuid, _>(id.0)
        .bind::<Text, _>(error),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// How they stand, and how far the last of them is behind.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Figures {
    /// Those that are told.
    pub active: i64,
    /// Those that fail.
    pub failing: i64,
    /// Those that are told no more.
    pub disabled: i64,
    /// The age of the oldest event that is not in the broker for one of them, in seconds.
    pub lag: f64,
}

/// Reads the figures. Where there are no subscriptions, no event is looked at.
///
/// # Errors
/// See [`Error`].
pub async fn figures(connection: &mut AsyncPgConnection) -> Result<Figures, Error> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        active: i64,
        #[diesel(sql_type = BigInt)]
        failing: i64,
        #[diesel(sql_type = BigInt)]
        disabled: i64,
        #[diesel(sql_type = Double)]
        lag: f64,
    }
    let row: Row = prepared(diesel::sql_query(
        "SELECT count(*) FILTER (WHERE disabled_at IS NULL AND failing_since IS NULL) AS active,
             count(*) FILTER (WHERE disabled_at IS NULL AND failing_since IS NOT NULL) AS failing,
             count(disabled_at) AS disabled,
             coalesce(extract(epoch FROM now() - min((
                 SELECT e.at FROM events AS e
                 WHERE disabled_at IS NULL AND (e.xid, e.id) > (told_xid, told_row)
                 ORDER BY e.xid, e.id LIMIT 1
             ))), 0)::float8 AS lag
         FROM webhooks",
    ))
    .get_result(connection)
    .await?;
    if row.lag.is_nan() {
        return Err(corrupt("the age of an event is no number"));
    }
    Ok(Figures {
        active: row.active,
        failing: row.failing,
        disabled: row.disabled,
        lag: row.lag.max(0.0),
    })
}
