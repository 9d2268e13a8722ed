//! Runs embedded migrations, from many processes at once if need be.

use std::time::Duration;

use diesel_async::{AsyncMigrationHarness, AsyncPgConnection, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness};

use super::{Error, Settings, connect};

/// One process migrates a database at a time; the others wait this long for it.
const LOCK_DEADLINE: Duration = Duration::from_secs(120);
/// A migration may rewrite a table.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(3600);
/// The advisory lock of migrations ("stockctl" as bytes), in the database that is migrated.
const LOCK_KEY: i64 = 0x7374_6f63_6b63_746c;

/// Runs what is pending and returns its versions.
///
/// # Errors
/// The server cannot be reached, or a migration failed; what had run before it stays.
pub async fn migrate(
    settings: &Settings,
    migrations: EmbeddedMigrations,
) -> Result<Vec<String>, Error> {
    let mut connection = connect(settings).await?;
    connection
        .batch_execute(&format!(
            "SET statement_timeout = {}; SELECT pg_advisory_lock({LOCK_KEY}); SET statement_timeout = {}",
            LOCK_DEADLINE.as_millis(),
            STATEMENT_DEADLINE.as_millis(),
        ))
        .await?;
    // The lock ends with the connection.
    with_harness(connection, move |harness| {
        harness
            .run_pending_migrations(migrations)
            .map(|versions| versions.iter().map(ToString::to_string).collect())
    })
    .await
}

/// How many migrations have not run yet.
///
/// # Errors
/// The server cannot be reached.
pub async fn pending_migrations(
    settings: &Settings,
    migrations: EmbeddedMigrations,
) -> Result<usize, Error> {
    let connection = connect(settings).await?;
    with_harness(connection, move |harness| {
        harness
            .pending_migrations(migrations)
            .map(|pending| pending.len())
    })
    .await
}

/// Diesel's migrations are synchronous: they run on a thread that may block.
async fn with_harness<T: Send + 'static>(
    connection: AsyncPgConnection,
    work: impl FnOnce(&mut AsyncMigrationHarness<AsyncPgConnection>) -> diesel::migration::Result<T>
    + Send
    + 'static,
) -> Result<T, Error> {
    let result = tokio::task::spawn_blocking(move || {
        let mut harness = AsyncMigrationHarness::new(connection);
        work(&mut harness).map_err(|error| error.to_string())
    })
    .await;
    let text = match result {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(text)) => text,
        Err(join) => join.to_string(),
    };
    Err(Error::Refused(diesel::result::Error::QueryBuilderError(
        format!("a migration failed: {text}").into(),
    )))
}
