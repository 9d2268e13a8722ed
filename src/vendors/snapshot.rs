//! One consistent look at a vendor's database, for a sync: which updates it includes, and its products in order.

use diesel::sql_types::{Array, BigInt, Binary, Bool, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use uuid::Uuid;

use super::catalogue::Catalogue;
use crate::domain::book::Listed;
use crate::domain::difference::Buckets;
use crate::domain::ids::{ProductId, UpdateId};
use crate::domain::listing;
use crate::domain::update::Brief;
use crate::pg::{
    self, BLOCK_RANGES_SINCE, Hashes, LONG_READ_DEADLINE, ROW_HASH_SINCE, Settings, connect,
};

/// Why a vendor's database cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be reached, or refused something that it should not.
    #[error("its database: {0}")]
    Database(#[from] pg::Error),
    /// The table or one of its columns is not there, or may not be read.
    #[error("its table {table} cannot be read: {problem}")]
    Table {
        /// As configured.
        table: String,
        /// What the server said.
        problem: pg::Error,
    },
    /// The ledger is not there, or may not be read.
    #[error("its ledger, the table stock_ledger, cannot be read: {problem}")]
    Ledger {
        /// What the server said.
        problem: pg::Error,
    },
    /// Nothing tells which of two rows is the product.
    #[error("its table {table} has the id {id:?} more than once, or not in the order of bytes", id = .id.as_str())]
    Repeated {
        /// As configured.
        table: String,
        /// The first such id.
        id: ProductId,
    },
}

/// The server's own words, unless it went away.
fn refused(error: impl Into<pg::Error>, class: impl FnOnce(pg::Error) -> Error) -> Error {
    let error = error.into();
    if error.is_unavailable() {
        Error::Database(error)
    } else {
        class(error)
    }
}

fn unreadable(catalogue: &Catalogue, error: impl Into<pg::Error>) -> Error {
    refused(error, |problem| Error::Table {
        table: catalogue.to_string(),
        problem,
    })
}

/// Most rows that are told of, of those that were passed over.
const EXAMPLES_MAX: usize = 3;

/// Rows that list nothing we can sell.
#[derive(Debug, Default)]
pub struct PassedOver {
    /// How many.
    pub rows: u64,
    /// The first ones, and what is wrong with them.
    pub examples: Vec<listing::Unlistable>,
}

/// A connection of its own to a vendor's database; dropping it ends it.
pub struct Session {
    connection: AsyncPgConnection,
    catalogue: Catalogue,
    is_replica: bool,
    rows_per_chunk: usize,
}

/// An open snapshot; dropping it ends it.
pub struct Snapshot {
    session: Session,
    server: Server,
    last: Option<ProductId>,
    passed_over: PassedOver,
}

#[derive(diesel::QueryableByName)]
struct Row {
    #[diesel(sql_type = Nullable<Text>)]
    id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    name: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    stock: Option<String>,
}

#[derive(diesel::QueryableByName)]
struct Server {
    #[diesel(sql_type = Text)]
    encoding: String,
    #[diesel(sql_type = Integer)]
    version: i32,
    #[diesel(sql_type = Bool)]
    is_replica: bool,
    #[diesel(sql_type = Text)]
    stock_type: String,
    #[diesel(sql_type = Bool)]
    may_be_read_by_blocks: bool,
}

#[derive(diesel::QueryableByName)]
struct Recovery {
    #[diesel(sql_type = Bool)]
    is_replica: bool,
}

impl Server {
    /// Whether it hashes rows as we do. A stock of another type has other texts for the same number.
    fn hashes_rows(&self) -> bool {
        self.encoding == "UTF8"
            && self.version >= ROW_HASH_SINCE
            && matches!(self.stock_type.as_str(), "smallint" | "integer" | "bigint")
    }

    fn reads_by_blocks(&self) -> bool {
        self.may_be_read_by_blocks && self.version >= BLOCK_RANGES_SINCE
    }
}

impl Session {
    /// Connects. No snapshot is open yet.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn open(
        settings: &Settings,
        catalogue: &Catalogue,
        rows_per_chunk: usize,
    ) -> Result<Self, Error> {
        let mut connection = connect(settings).await?;
        connection
            .batch_execute("SET statement_timeout = '60s'")
            .await
            .map_err(|error| Error::Database(error.into()))?;
        let recovery: Recovery = diesel::sql_query("SELECT pg_is_in_recovery() AS is_replica")
            .get_result(&mut connection)
            .await
            .map_err(|error| Error::Database(error.into()))?;
        Ok(Self {
            connection,
            catalogue: catalogue.clone(),
            is_replica: recovery.is_replica,
            rows_per_chunk,
        })
    }

    /// Opens a snapshot: what is committed at the vendor after this returns is not in it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn begin_snapshot(mut self) -> Result<Snapshot, Error> {
        // A vendor may have to sort its catalogue first, and waits while we write a chunk. A stock of floating point is
        // written in full, whatever the role's default is.
        self.connection
            .batch_execute(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
                 SET LOCAL statement_timeout = '60s';
                 SET LOCAL idle_in_transaction_session_timeout = '5min';
                 SET LOCAL extra_float_digits = 1",
            )
            .await
            .map_err(|error| Error::Database(error.into()))?;
        // BEGIN alone opens no snapshot, the first query does.
        let server = diesel::sql_query(format!(
            "SELECT current_setting('server_encoding') AS encoding, current_setting('server_version_num')::integer AS version,
                 pg_is_in_recovery() AS is_replica, {} AS stock_type, {} AS may_be_read_by_blocks",
            self.catalogue.stock_type(),
            self.catalogue.may_be_read_by_blocks()
        ))
        .get_result::<Server>(&mut self.connection)
        .await
        .map_err(|error| unreadable(&self.catalogue, error))?;
        self.is_replica = server.is_replica;
        Ok(Snapshot {
            session: self,
            server,
            last: None,
            passed_over: PassedOver::default(),
        })
    }

    /// Whether the server only follows another one, and so may be behind what that one has answered for.
    #[must_use]
    pub fn is_replica(&self) -> bool {
        self.is_replica
    }

    /// Of the given updates, those that the ledger holds as applied, as it has them: in the snapshot that is open, or
    /// now.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_applied(&mut self, ids: &[UpdateId]) -> Result<Vec<Recorded>, Error> {
        #[derive(diesel::QueryableByName)]
        struct Entry {
            #[diesel(sql_type = SqlUuid)]
            id: Uuid,
            #[diesel(sql_type = Text)]
            product_id: String,
            #[diesel(sql_type = Bool)]
            is_take: bool,
            #[diesel(sql_type = Bool)]
            is_applied: bool,
        }
        const ENTRIES: &str =
            "SELECT id, product_id, delta < 0 AS is_take, outcome = 'applied' AS is_applied
             FROM stock_ledger WHERE";
        let unreadable = |error| refused(error, |problem| Error::Ledger { problem });
        let mut wanted: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        wanted.sort_unstable();
        // Also where nothing is wanted: a ledger that is not there shows by this.
        let end = |id: Option<&Uuid>| id.copied().unwrap_or_default();
        let (first, last) = (end(wanted.as_slice().first()), end(wanted.last()));
        // What was made at about the same time stands together, since the ids are of version 7. To read from the first to
        // the last takes a quarter of the time of looking for each; how much there may be of others is bounded.
        let read_max = wanted.len() * READ_PER_WANTED;
        let mut entries: Vec<Entry> = diesel::sql_query(format!(
            "{ENTRIES} id BETWEEN $1 AND $2 ORDER BY id LIMIT $3"
        ))
        .bind::<SqlUuid, _>(first)
        .bind::<SqlUuid, _>(last)
        .bind::<BigInt, _>(i64::try_from(read_max).unwrap_or(i64::MAX))
        .load(&mut self.connection)
        .await
        .map_err(unreadable)?;
        let rest = match entries.last() {
            Some(end) if entries.len() == read_max => {
                wanted.split_off(wanted.partition_point(|id| *id <= end.id))
            }
            _ => Vec::new(),
        };
        entries.retain(|entry| wanted.binary_search(&entry.id).is_ok());
        if !rest.is_empty() {
            let looked_up: Vec<Entry> = diesel::sql_query(format!("{ENTRIES} id = ANY($1)"))
                .bind::<Array<SqlUuid>, _>(rest)
                .load(&mut self.connection)
                .await
                .map_err(unreadable)?;
            entries.extend(looked_up);
        }
        Ok(entries
            .into_iter()
            .filter(|entry| entry.is_applied)
            .map(|entry| Recorded {
                id: UpdateId(entry.id),
                product_id: ProductId::parse(entry.product_id).ok(),
                is_take: entry.is_take,
            })
            .collect())
    }
}

/// Entries of a ledger that are read for each update that is looked for, at most: the others are looked up one by one.
const READ_PER_WANTED: usize = 2;

/// An update that a ledger has as applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The update.
    pub id: UpdateId,
    /// Which product the vendor has changed; nothing where that cannot be one of ours.
    pub product_id: Option<ProductId>,
    /// Whether the vendor has taken stock, and not given some back.
    pub is_take: bool,
}

impl Recorded {
    /// What it is, if it may be ours.
    #[must_use]
    pub fn brief(self) -> Option<Brief> {
        Some(Brief {
            id: self.id,
            product_id: self.product_id?,
            is_take: self.is_take,
        })
    }
}

impl Snapshot {
    /// The session that it is open in.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Begins to read the products in the order of their ids: all, or those in some buckets, by hashes with this seed.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn begin_products(&mut self, only: Option<(&Buckets, i64)>) -> Result<(), Error> {
        let condition =
            only.map(|(buckets, seed)| self.session.catalogue.is_in("$1", buckets.mask(), seed));
        let select = self
            .session
            .catalogue
            .select(&self.server.encoding, condition.as_deref());
        let cursor = format!("DECLARE products_in_order NO SCROLL CURSOR FOR {select}");
        // Few of many rows are sorted faster than they are found in the order of an index.
        let fraction = if only.is_some() { "1" } else { "DEFAULT" };
        self.session
            .connection
            .batch_execute(&format!("SET LOCAL cursor_tuple_fraction = {fraction}"))
            .await
            .map_err(|error| Error::Database(error.into()))?;
        let declared = match only {
            None => self.session.connection.batch_execute(&cursor).await,
            Some((buckets, _)) => diesel::sql_query(cursor)
                .bind::<Binary, _>(buckets.as_bytes())
                .execute(&mut self.session.connection)
                .await
                .map(drop),
        };
        declared.map_err(|error| unreadable(&self.session.catalogue, error))
    }

    /// Whether the vendor's database can hash its rows as ours does.
    #[must_use]
    pub fn hashes_rows(&self) -> bool {
        self.server.hashes_rows()
    }

    /// Whether the table has no row at all.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn is_empty(&mut self) -> Result<bool, Error> {
        #[derive(diesel::QueryableByName)]
        struct Answer {
            #[diesel(sql_type = Bool)]
            is_empty: bool,
        }
        let answer: Answer = diesel::sql_query(self.session.catalogue.select_is_empty())
            .get_result(&mut self.session.connection)
            .await
            .map_err(|error| unreadable(&self.session.catalogue, error))?;
        Ok(answer.is_empty)
    }

    /// Begins to read a hash of each row, in no order.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn hashes(&mut self, seed: i64) -> Result<Hashes<'_>, Error> {
        // Millions of rows come by one statement; each part of them has its deadline. To compile it takes longer than it
        // saves, and without scans by place each part would look at all rows.
        self.session
            .connection
            .batch_execute(&format!(
                "SET LOCAL statement_timeout = {};
                 SET LOCAL jit = off;
                 SET LOCAL enable_tidscan = on",
                LONG_READ_DEADLINE.as_millis()
            ))
            .await
            .map_err(|error| Error::Database(error.into()))?;
        let Session {
            connection,
            catalogue,
            ..
        } = &mut self.session;
        let begun = if self.server.reads_by_blocks() {
            let query = diesel::sql_query(catalogue.select_hashes_by_blocks(seed));
            Hashes::by_blocks(connection, query.into_boxed()).await
        } else {
            let query = diesel::sql_query(catalogue.select_hashes(seed));
            Hashes::by_rows(connection, query.into_boxed()).await
        };
        begun.map_err(|error| unreadable(catalogue, error))
    }

    /// The next products, each after the one before in the order of their ids; `None` after the last. A row that cannot
    /// be one of our products is passed over.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn next_chunk(&mut self) -> Result<Option<Vec<Listed>>, Error> {
        loop {
            let rows: Vec<Row> = diesel::sql_query(format!(
                "FETCH {} FROM products_in_order",
                self.session.rows_per_chunk
            ))
            .load(&mut self.session.connection)
            .await
            .map_err(|error| Error::Database(error.into()))?;
            if rows.is_empty() {
                return Ok(None);
            }
            let mut listed: Vec<Listed> = Vec::with_capacity(rows.len());
            for row in rows {
                match listing::read(row.id, row.name, row.stock.as_deref()) {
                    Ok(product) => {
                        let last = listed.last().map(|last| &last.product_id);
                        if last
                            .or(self.last.as_ref())
                            .is_some_and(|last| *last >= product.product_id)
                        {
                            return Err(Error::Repeated {
                                table: self.table(),
                                id: product.product_id,
                            });
                        }
                        listed.push(product);
                    }
                    Err(problem) => self.passed_over.add(problem),
                }
            }
            if let Some(last) = listed.last() {
                self.last = Some(last.product_id.clone());
                return Ok(Some(listed));
            }
        }
    }

    /// The rows that were passed over so far.
    #[must_use]
    pub fn passed_over(&self) -> &PassedOver {
        &self.passed_over
    }

    /// Whether the server only follows another one, and so may be behind what that one has answered for.
    #[must_use]
    pub fn is_replica(&self) -> bool {
        self.server.is_replica
    }

    /// The table, as configured.
    #[must_use]
    pub fn table(&self) -> String {
        self.session.catalogue.to_string()
    }
}

impl PassedOver {
    fn add(&mut self, problem: listing::Unlistable) {
        self.rows += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(problem);
        }
    }
}

impl std::fmt::Display for PassedOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, problem) in self.examples.iter().enumerate() {
            write!(f, "{}{problem}", if index > 0 { "; " } else { "" })?;
        }
        if self.rows > self.examples.len() as u64 {
            f.write_str("; …")?;
        }
        Ok(())
    }
}
