//! Runs migrations: from many processes at once if need be, and while others work on the database.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::sql_types::{Bool, Text};
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_migrations::MigrationHarness;

use super::{Error, Settings, connect};

/// One process migrates a database at a time; the others wait this long for it.
const TURN_DEADLINE: Duration = Duration::from_secs(120);
/// Who waits for its turn asks this often. It must not wait in the server: a statement that waits holds a snapshot, and
/// an index that is built concurrently waits for every snapshot older than itself, so the two would wait for each other.
const TURN_INTERVAL: Duration = Duration::from_millis(200);
/// The advisory lock of migrations ("stockctl" as bytes), in the database that is migrated.
const TURN_KEY: i64 = 0x7374_6f63_6b63_746c;
/// A migration may rewrite a table.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(3600);
/// A migration that waits for a table makes everybody wait who comes after it, readers too. It gives up after this,
/// which accepting an order can wait for, and tries again.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two tries, others get on.
const LOCK_PAUSE: Duration = Duration::from_secs(1);
/// So long the tries of one migration go on; what holds a table for longer is an operator's matter.
pub const LOCK_DEADLINE: Duration = Duration::from_secs(120);

/// What a run of migrations has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// The versions that ran.
    pub ran: Vec<String>,
    /// Versions that the database has and this program does not know.
    pub unknown: Vec<String>,
}

/// How the schema of a database compares with what a program knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    /// Versions that have not run yet: the program waits for them.
    pub missing: Vec<String>,
    /// Versions that the program does not know: it is older than the schema, and goes on, since a schema is only added to
    /// while an older version runs.
    pub unknown: Vec<String>,
}

/// Why a database is not migrated. What had run before stays.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The server cannot be reached, or refuses what every migration needs.
    #[error(transparent)]
    Store(#[from] Error),
    /// Somebody else is at it.
    #[error(
        "another process has been migrating {at} for {} s; run this again once that is over",
        TURN_DEADLINE.as_secs()
    )]
    NotOurTurn {
        /// Host, port and database.
        at: String,
    },
    /// Transactions that take long use its tables.
    #[error(
        "migration {version} has found no moment in {} s in which no transaction used its tables; nothing of it was done: \
         wait for long transactions or end them (pg_stat_activity shows them), and run this again",
        waited.as_secs()
    )]
    TablesInUse {
        /// The migration.
        version: String,
        /// For how long it was tried.
        waited: Duration,
    },
    /// It cannot run.
    #[error("migration {version} failed: {problem}")]
    Failed {
        /// The migration.
        version: String,
        /// What the server says.
        problem: String,
    },
    /// The migrations themselves cannot be read.
    #[error("the migrations cannot be read: {0}")]
    Unreadable(String),
}

impl From<diesel::result::Error> for MigrateError {
    fn from(error: diesel::result::Error) -> Self {
        Self::Store(error.into())
    }
}

impl MigrateError {
    /// Whether it may go well at another time.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Store(error) => error.is_unavailable(),
            Self::NotOurTurn { .. } | Self::TablesInUse { .. } => true,
            Self::Failed { .. } | Self::Unreadable(_) => false,
        }
    }
}

/// Runs what is pending, in order. Each migration tries for at most `lock_deadline` to get the tables that it changes.
///
/// # Errors
/// See [`MigrateError`].
pub async fn migrate<S>(
    settings: &Settings,
    migrations: S,
    lock_deadline: Duration,
) -> Result<Migrated, MigrateError>
where
    S: MigrationSource<Pg> + Send + 'static,
{
    let mut connection = connect(settings).await?;
    // The lock ends with the connection.
    if !take_turn(&mut connection).await? {
        return Err(MigrateError::NotOurTurn {
            at: settings.address(),
        });
    }
    let Schema { unknown, .. } = compare(&mut connection, &migrations).await?;
    let timeout = STATEMENT_DEADLINE.as_millis();
    connection
        .batch_execute(&format!("SET statement_timeout = {timeout}"))
        .await?;
    // Diesel's migrations are synchronous: they run on a thread that may block.
    let ran = tokio::task::spawn_blocking(move || {
        let mut connection = AsyncConnectionWrapper::from(connection);
        let pending = connection
            .pending_migrations(migrations)
            .map_err(|error| MigrateError::Unreadable(error.to_string()))?;
        let mut ran = Vec::new();
        for migration in pending {
            let version = migration.name().version().to_string();
            if migration.metadata().run_in_transaction() {
                run_in_transaction(&mut connection, &*migration, &version, lock_deadline)?;
            } else {
                run_outside(&mut connection, &*migration, &version)?;
            }
            ran.push(version);
        }
        Ok::<_, MigrateError>(ran)
    })
    .await
    .map_err(|error| MigrateError::Unreadable(error.to_string()))??;
    Ok(Migrated { ran, unknown })
}

/// Compares a database's schema with what is known here; it changes nothing.
///
/// # Errors
/// The server cannot be reached.
pub async fn schema(
    settings: &Settings,
    migrations: &impl MigrationSource<Pg>,
) -> Result<Schema, MigrateError> {
    let mut connection = connect(settings).await?;
    compare(&mut connection, migrations).await
}

async fn compare(
    connection: &mut AsyncPgConnection,
    migrations: &impl MigrationSource<Pg>,
) -> Result<Schema, MigrateError> {
    #[derive(diesel::QueryableByName)]
    struct Applied {
        #[diesel(sql_type = Text)]
        version: String,
    }
    let mut missing: Vec<String> = migrations
        .migrations()
        .map_err(|error| MigrateError::Unreadable(error.to_string()))?
        .iter()
        .map(|migration| migration.name().version().to_string())
        .collect();
    missing.sort_unstable();
    let is_there = "SELECT to_regclass('__diesel_schema_migrations') IS NOT NULL AS yes";
    let mut unknown = Vec::new();
    if ask(connection, is_there).await? {
        let applied: Vec<Applied> =
            diesel::sql_query("SELECT version FROM __diesel_schema_migrations ORDER BY version")
                .load(connection)
                .await?;
        for Applied { version } in applied {
            match missing.iter().position(|known| *known == version) {
                Some(at) => drop(missing.remove(at)),
                None => unknown.push(version),
            }
        }
    }
    Ok(Schema { missing, unknown })
}

async fn ask(connection: &mut AsyncPgConnection, question: &str) -> Result<bool, Error> {
    #[derive(diesel::QueryableByName)]
    struct Answer {
        #[diesel(sql_type = Bool)]
        yes: bool,
    }
    let answer: Answer = diesel::sql_query(question).get_result(connection).await?;
    Ok(answer.yes)
}

async fn take_turn(connection: &mut AsyncPgConnection) -> Result<bool, Error> {
    let until = Instant::now() + TURN_DEADLINE;
    let question = format!("SELECT pg_try_advisory_lock({TURN_KEY}) AS yes");
    while !ask(connection, &question).await? {
        if Instant::now() >= until {
            return Ok(false);
        }
        tokio::time::sleep(TURN_INTERVAL).await;
    }
    Ok(true)
}

type Blocking = AsyncConnectionWrapper<AsyncPgConnection>;

/// Most of them: whole or not at all, and again while somebody is in the way.
fn run_in_transaction(
    connection: &mut Blocking,
    migration: &dyn Migration<Pg>,
    version: &str,
    deadline: Duration,
) -> Result<(), MigrateError> {
    let until = Instant::now() + deadline;
    let timeout = LOCK_TIMEOUT.as_millis();
    execute(connection, &format!("SET lock_timeout = {timeout}"))?;
    let mut has_said = false;
    loop {
        let Err(error) = connection.run_migration(migration) else {
            return Ok(());
        };
        let problem = error.to_string();
        if !LOCK_TROUBLE.iter().any(|text| problem.contains(text)) {
            return Err(MigrateError::Failed {
                version: version.to_owned(),
                problem,
            });
        }
        if Instant::now() + LOCK_PAUSE >= until {
            return Err(MigrateError::TablesInUse {
                version: version.to_owned(),
                waited: deadline,
            });
        }
        if !has_said {
            tracing::info!(
                version,
                "a migration waits for transactions that use its tables"
            );
            has_said = true;
        }
        std::thread::sleep(LOCK_PAUSE);
    }
}

/// What the server says to one that was in the way of others, or they in its (55P03, 40P01); diesel passes on no SQLSTATE.
const LOCK_TROUBLE: [&str; 2] = [
    "canceling statement due to lock timeout",
    "deadlock detected",
];

/// Those that cannot be in a transaction, such as an index that is built while others write. They wait for others, and
/// nobody for them. One that was interrupted is begun anew.
fn run_outside(
    connection: &mut Blocking,
    migration: &dyn Migration<Pg>,
    version: &str,
) -> Result<(), MigrateError> {
    execute(connection, "SET lock_timeout = 0")?;
    for index in invalid_indexes(connection)? {
        tracing::info!(
            index,
            "dropping an index that was not built to its end, to build it anew"
        );
        execute(
            connection,
            &format!("DROP INDEX CONCURRENTLY IF EXISTS {index}"),
        )?;
    }
    connection
        .run_migration(migration)
        .map(drop)
        .map_err(|error| MigrateError::Failed {
            version: version.to_owned(),
            problem: error.to_string(),
        })
}

/// Indexes that are there in name only: an interrupted build leaves one, and `IF NOT EXISTS` would be content with it.
/// One that is being built at this moment is somebody's work.
fn invalid_indexes(connection: &mut Blocking) -> Result<Vec<String>, Error> {
    #[derive(diesel::QueryableByName)]
    struct Index {
        #[diesel(sql_type = Text)]
        name: String,
    }
    let invalid: Vec<Index> = diesel::RunQueryDsl::load(
        diesel::sql_query(
            "SELECT format('%I.%I', n.nspname, c.relname) AS name
             FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE NOT i.indisvalid AND c.relkind = 'i' AND n.nspname = current_schema()
               AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid)",
        ),
        connection,
    )?;
    Ok(invalid.into_iter().map(|index| index.name).collect())
}

fn execute(connection: &mut Blocking, sql: &str) -> Result<(), Error> {
    SimpleConnection::batch_execute(connection, sql).map_err(Error::from)
}
