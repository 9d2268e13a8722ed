//! A connection that reads for long without getting into anybody's way.

use std::time::Duration;

use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};

use super::{Error, Settings, connect};

/// What one statement of a long read may take: a table of a hundred million rows is read in less.
pub const LONG_READ_DEADLINE: Duration = Duration::from_secs(1800);
/// A reader waits for a migration only, and gives way to it: whoever queues behind a waiting reader waits too.
const LOCK_DEADLINE: Duration = Duration::from_secs(5);
/// What one sort or hash may hold in memory before it goes to disk.
const WORK_MEM: &str = "64MB";

/// Opens a consistent, read-only snapshot on a connection of its own; dropping the connection ends it. What is committed
/// after this returns is not in it.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub async fn open_long_read(settings: &Settings) -> Result<AsyncPgConnection, Error> {
    let mut connection = connect(settings).await?;
    // Of a reader that is gone, the server should learn before its statement ends; servers before 14 cannot.
    connection
        .batch_execute(&format!(
            "SET statement_timeout = {read};
             SET lock_timeout = {lock};
             SET idle_in_transaction_session_timeout = {read};
             SET work_mem = '{WORK_MEM}';
             SELECT set_config(name, '1000', false) FROM pg_settings
                 WHERE name = 'client_connection_check_interval'",
            read = LONG_READ_DEADLINE.as_millis(),
            lock = LOCK_DEADLINE.as_millis(),
        ))
        .await?;
    // BEGIN alone opens no snapshot, the first query does.
    connection
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1")
        .await?;
    Ok(connection)
}
