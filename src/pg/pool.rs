//! Connections: every one has a deadline for connecting, for a statement and for a silent peer, and a pool has a bound.

use std::time::Duration;

use diesel::{ConnectionError, ConnectionResult};
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod, deadpool,
};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use futures_util::FutureExt;

use super::Error;
use crate::metrics::{PoolFigures, PoolUse, watch_pool};

/// A pooled connection.
pub type Connection = deadpool::Object<AsyncPgConnection>;

/// How to reach a server, and how long to wait for it. It has no `Debug`, since the URL carries a password.
#[derive(Clone)]
pub struct Settings {
    /// `postgres://user:password@host:port/database`.
    pub url: String,
    /// Most connections of the pool.
    pub pool_size: usize,
    /// For a connection, and for a free one of the pool.
    pub connect_timeout: Duration,
    /// For one statement, enforced by the server.
    pub statement_timeout: Duration,
}

/// A transaction that its client left open keeps locks; the server ends it after this.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);
/// A peer that stops acknowledging what was sent is gone after this.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);
/// An idle connection is probed after this, so that a peer that vanished is noticed.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);

impl Settings {
    /// Host, port and database, for messages: no secret is in it.
    #[must_use]
    pub fn address(&self) -> String {
        match url::Url::parse(&self.url) {
            Ok(url) => format!(
                "{}:{}{}",
                url.host_str().unwrap_or("localhost"),
                url.port().unwrap_or(5432),
                url.path()
            ),
            Err(_) => "the configured address".into(),
        }
    }

    fn no_answer(&self) -> String {
        format!("no answer within {} ms", self.connect_timeout.as_millis())
    }

    fn unavailable(&self, problem: impl ToString) -> Error {
        Error::Unavailable {
            at: self.address(),
            problem: problem.to_string(),
        }
    }
}

/// What a pool's connections ask for is found by keys, a few hundred at a time. A prepared statement keeps the plan that
/// it got when a table was new and empty, which was to read it whole, until the server has counted the rows again; by then
/// there are a million. So here plans depend little on what was counted; see [`Pool::get`] for the rest.
///
/// Nor are the few rows worth further processes of the server, which it began for each page of orders.
const PLAN_BY_KEYS: &str = "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off -c jit=off \
     -c max_parallel_workers_per_gather=0";

/// A prepared statement has one plan for whatever it is executed with. The server would make one for each execution with few
/// values, since it takes any number of them for ten: with an order at a time, a fifth of the transaction that decides it
/// was planning.
const PLAN_ONCE: &str = "-c plan_cache_mode=force_generic_plan";

async fn establish(settings: &Settings, plan: &str) -> ConnectionResult<AsyncPgConnection> {
    let bad = |error: &dyn std::error::Error| {
        // tokio-postgres says only "error connecting to server"; its source says why.
        let source = error.source().map(|s| format!(": {s}")).unwrap_or_default();
        ConnectionError::BadConnection(format!("{error}{source}"))
    };
    let mut config: tokio_postgres::Config = settings
        .url
        .parse()
        .map_err(|error: tokio_postgres::Error| bad(&error))?;
    let options = format!(
        "{plan} {} -c statement_timeout={} -c idle_in_transaction_session_timeout={}",
        config.get_options().unwrap_or_default(),
        settings.statement_timeout.as_millis(),
        IDLE_IN_TRANSACTION_TIMEOUT.as_millis(),
    );
    config
        .options(options.trim())
        .connect_timeout(settings.connect_timeout)
        .tcp_user_timeout(TCP_USER_TIMEOUT)
        .keepalives_idle(KEEPALIVE_IDLE);
    if config.get_application_name().is_none() {
        config.application_name("stockctl");
    }
    let connecting = async {
        let (client, connection) = config
            .connect(tokio_postgres::NoTls)
            .await
            .map_err(|error| bad(&error))?;
        AsyncPgConnection::try_from_client_and_connection(client, connection).await
    };
    tokio::time::timeout(settings.connect_timeout, connecting)
        .await
        .unwrap_or_else(|_| Err(ConnectionError::BadConnection(settings.no_answer())))
}

/// Opens a connection outside any pool, for what a session holds: an advisory lock, a snapshot.
///
/// # Errors
/// The server cannot be reached.
pub async fn connect(settings: &Settings) -> Result<AsyncPgConnection, Error> {
    establish(settings, "")
        .await
        .map_err(|error| settings.unavailable(error))
}

/// Closes a connection whose statement was not answered: back in its pool, its next user would wait behind that.
pub fn discard(connection: Connection) {
    drop(Connection::take(connection));
}

/// A bounded pool of connections to one database.
#[derive(Clone)]
pub struct Pool {
    settings: Settings,
    pool: deadpool::Pool<AsyncPgConnection>,
    figures: PoolFigures,
}

impl Pool {
    /// Prepares a pool, within the runtime that its connections will live on; nothing is connected before the first use.
    /// Its figures stand under `name`.
    ///
    /// # Errors
    /// The settings allow no connection.
    pub fn new(name: &str, settings: Settings) -> Result<Self, Error> {
        Self::planning(name, settings, PLAN_BY_KEYS.to_owned())
    }

    /// As [`Self::new`], for statements that are executed again and again with few values or with many, and of which none
    /// needs to be planned for what they are.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn for_batches(name: &str, settings: Settings) -> Result<Self, Error> {
        Self::planning(name, settings, format!("{PLAN_BY_KEYS} {PLAN_ONCE}"))
    }

    fn planning(name: &str, settings: Settings, plan: String) -> Result<Self, Error> {
        let figures = PoolFigures::of(name);
        let (for_setup, counted) = (settings.clone(), figures.clone());
        // A connection lives on the runtime that opened it. A worker of the HTTP server has one of its own, which ends
        // before what it has accepted is published.
        let runtime = tokio::runtime::Handle::current();
        let mut config = ManagerConfig::default();
        // A lost connection shows on its first use, and every use handles that; a probe would cost a round trip each.
        config.recycling_method = RecyclingMethod::Fast;
        config.custom_setup = Box::new(move |_| {
            let (settings, plan) = (for_setup.clone(), plan.clone());
            let opening = runtime.spawn(async move { establish(&settings, &plan).await });
            let counted = counted.clone();
            async move {
                let opened = opening
                    .await
                    .unwrap_or_else(|error| Err(ConnectionError::BadConnection(error.to_string())));
                match &opened {
                    Ok(_) => counted.opened.inc(),
                    Err(_) => counted.not_opened.inc(),
                }
                opened
            }
            .boxed()
        });
        let manager = AsyncDieselConnectionManager::<AsyncPgConnection>::new_with_config(
            settings.url.as_str(),
            config,
        );
        let pool = deadpool::Pool::builder(manager)
            .max_size(settings.pool_size)
            .runtime(::deadpool::Runtime::Tokio1)
            .wait_timeout(Some(settings.connect_timeout))
            .create_timeout(Some(settings.connect_timeout))
            .recycle_timeout(Some(settings.connect_timeout))
            .build()
            .map_err(|error| settings.unavailable(error))?;
        let weak = pool.weak();
        watch_pool(name, move || {
            let status = weak.upgrade()?.status();
            Some(PoolUse {
                in_use: status.size.saturating_sub(status.available),
                idle: status.available,
                max: status.max_size,
                waiting: status.waiting,
            })
        });
        Ok(Self {
            settings,
            pool,
            figures,
        })
    }

    /// A connection of the pool.
    ///
    /// # Errors
    /// None is free, or none can be opened, within the deadline.
    pub async fn get(&self) -> Result<Connection, Error> {
        let mut connection = self
            .pool
            .get()
            .await
            .map_err(|error| self.settings.unavailable(error))?;
        let uses = Connection::metrics(&connection).recycle_count;
        if uses.is_power_of_two()
            && let Err(error) = self.plan_anew(&mut connection).await
        {
            discard(connection);
            return Err(error);
        }
        Ok(connection)
    }

    /// Forgets the plans of a session. They are for tables of the size that the server took them to have, and may be to go
    /// through all of one that was nearly empty, whatever [`PLAN_BY_KEYS`] says: a join costs the same either way then. On a
    /// new system that got a burst of orders, one took more than the 15 s that a statement may take, within half a minute.
    ///
    /// What is written in one use has a bound, so a session that plans anew whenever it has been used twice as often keeps no
    /// plan for tables that were much smaller than they are, wherever uses of sessions are what fills them.
    async fn plan_anew(&self, connection: &mut Connection) -> Result<(), Error> {
        let forgetting = connection.batch_execute("DISCARD PLANS");
        let forgotten = tokio::time::timeout(self.settings.connect_timeout, forgetting).await;
        forgotten
            .map_err(|_| self.settings.unavailable(self.settings.no_answer()))?
            .map_err(|error| self.settings.unavailable(error))
    }

    /// What it counts.
    #[must_use]
    pub fn figures(&self) -> &PoolFigures {
        &self.figures
    }

    /// How the pool was set up.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Drops every idle connection: after one was lost, its neighbours usually are too.
    pub fn forget_idle(&self) {
        self.pool.retain(|_, _| false);
    }
}
