//! A hash of a row that both sides of a comparison compute by themselves, in SQL.

use std::pin::Pin;

use diesel::pg::Pg;
use diesel::query_builder::{BoxedSqlQuery, SqlQuery};
use diesel::result::QueryResult;
use diesel::sql_types::{Array, BigInt};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use futures_util::{Stream, StreamExt};

use super::Error;

/// The first version of PostgreSQL that has these hashes, as `server_version_num` tells it.
pub const ROW_HASH_SINCE: i32 = 110_000;

/// The first version of PostgreSQL that finds the rows of some blocks without looking at all others, as
/// `server_version_num` tells it.
pub const BLOCK_RANGES_SINCE: i32 = 140_000;

/// Blocks whose rows come together: some ten thousand rows, of which an array of hashes is a few hundred kilobytes.
const BLOCKS_PER_PART: u32 = 128;
/// What stands for such blocks in a query: no table has this name, and no column of one is meant.
const PART: &str = "stockctl_part";

/// The columns that are hashed, as SQL: none may be NULL.
#[derive(Debug, Clone, Copy)]
pub struct HashedColumns<'a> {
    /// A text.
    pub id: &'a str,
    /// A text.
    pub name: &'a str,
    /// A `bigint`.
    pub stock: &'a str,
}

impl HashedColumns<'_> {
    /// A query of the hash of each row of `from`, a `bigint`, as `hash`: its lowest `id_bits` bits are those of
    /// [`Self::id_hash`], the others are of all columns; where the condition `other` holds, they are those that no row with
    /// these columns has. PostgreSQL promises the same hashes only within one major version and one byte order; where two
    /// servers have different ones, every row differs.
    #[must_use]
    pub fn select_hashes(
        &self,
        from: &str,
        other: Option<&str>,
        seed: i64,
        id_bits: u32,
    ) -> String {
        let mask = (1_i64 << id_bits) - 1;
        let Self { name, stock, .. } = self;
        let (column, turned) = match other {
            Some(condition) => (
                format!(", {condition} AS other"),
                format!(" # CASE WHEN other THEN {} ELSE 0 END", !mask),
            ),
            None => Default::default(),
        };
        // Without OFFSET the id would be hashed twice, where it is used.
        format!(
            "SELECT ((id_hash & {mask}) | (hashtextextended(name, id_hash # stock) & {others})){turned} AS hash FROM (\
             SELECT {id_hash} AS id_hash, ({name}) COLLATE \"C\" AS name, {stock} AS stock{column} FROM {from} OFFSET 0\
             ) AS hashed",
            others = !mask,
            id_hash = self.id_hash(seed)
        )
    }

    /// The same of the rows of a table, those that meet a condition where there is one, as arrays `hashes` of `bigint`, each
    /// of some blocks: to send a row for each hash, and to take it apart again, costs more than the hash. It is for tables
    /// of [`fits_in_buffers`], on servers since [`BLOCK_RANGES_SINCE`].
    #[must_use]
    pub fn select_hashes_by_blocks(
        &self,
        table: &str,
        condition: Option<&str>,
        other: Option<&str>,
        seed: i64,
        id_bits: u32,
    ) -> String {
        let of_part = format!(
            "{table} WHERE ctid >= {PART}.first AND ctid < {PART}.after{}",
            condition
                .map(|condition| format!(" AND {condition}"))
                .unwrap_or_default()
        );
        // The last part has no end: that there are no more blocks is only what was seen a moment ago.
        format!(
            "SELECT ARRAY({hashes}) AS hashes FROM (\
             SELECT format('(%s,0)', block)::tid AS first, \
             format('(%s,0)', CASE WHEN block + {BLOCKS_PER_PART} > blocks THEN {end} ELSE block + {BLOCKS_PER_PART} END)::tid \
             AS after \
             FROM (SELECT pg_relation_size({relation}) / current_setting('block_size')::bigint AS blocks) AS size, \
             generate_series(0, blocks, {BLOCKS_PER_PART}) AS block) AS {PART}",
            hashes = self.select_hashes(&of_part, other, seed, id_bits),
            relation = regclass(table),
            end = u32::MAX
        )
    }

    /// SQL of the hash of a row's id, a `bigint`.
    #[must_use]
    pub fn id_hash(&self, seed: i64) -> String {
        format!("hashtextextended(({}) COLLATE \"C\", {seed})", self.id)
    }

    /// SQL of whether the bucket of a row's id, its hash under `mask`, is among the bits of `buckets`, SQL of a `bytea`.
    #[must_use]
    pub fn is_in(&self, buckets: &str, mask: usize, seed: i64) -> String {
        format!(
            "get_bit({buckets}, ({} & {mask})::integer) = 1",
            self.id_hash(seed)
        )
    }
}

/// Hashes that are taken at a time, at least.
const HASHES_PER_PAGE: usize = 10_000;

/// SQL of whether a table may be read by blocks without harm to whatever else the server has in its buffers: it takes no
/// more than one `part`th of them. A sequential scan of a larger table has a few buffers to itself, a scan of some blocks
/// has not; of a table that takes no more than a quarter, neither has (PostgreSQL's `initscan`).
#[must_use]
pub fn fits_in_buffers(table: &str, part: u32) -> String {
    format!(
        "pg_relation_size({}) * {part} <= pg_size_bytes(current_setting('shared_buffers'))",
        regclass(table)
    )
}

/// SQL of a table as a `regclass`.
#[must_use]
pub fn regclass(table: &str) -> String {
    format!("'{}'::regclass", table.replace('\'', "''"))
}

#[derive(diesel::QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    hash: i64,
}

#[derive(diesel::QueryableByName)]
struct Part {
    #[diesel(sql_type = Array<BigInt>)]
    hashes: Vec<i64>,
}

type Coming<'a, T> = Pin<Box<dyn Stream<Item = QueryResult<T>> + Send + 'a>>;

/// The hashes that a query has for its rows, as they come: the server computes on while they are counted, and waits where
/// nobody takes them.
pub struct Hashes<'a>(By<'a>);

enum By<'a> {
    Rows(Coming<'a, Row>),
    Blocks(Coming<'a, Part>),
}

impl<'a> Hashes<'a> {
    /// Begins to read what [`HashedColumns::select_hashes`] selects.
    ///
    /// # Errors
    /// The server refuses it, or is gone.
    pub async fn by_rows(
        connection: &'a mut AsyncPgConnection,
        query: BoxedSqlQuery<'a, Pg, SqlQuery>,
    ) -> Result<Self, Error> {
        Ok(Self(By::Rows(begin(connection, query).await?)))
    }

    /// Begins to read what [`HashedColumns::select_hashes_by_blocks`] selects.
    ///
    /// # Errors
    /// The server refuses it, or is gone.
    pub async fn by_blocks(
        connection: &'a mut AsyncPgConnection,
        query: BoxedSqlQuery<'a, Pg, SqlQuery>,
    ) -> Result<Self, Error> {
        Ok(Self(By::Blocks(begin(connection, query).await?)))
    }

    /// The next hashes; none after the last.
    ///
    /// # Errors
    /// The query failed, or the server is gone.
    pub async fn next_page(&mut self) -> Result<Vec<i64>, Error> {
        let mut page = Vec::with_capacity(HASHES_PER_PAGE);
        while page.len() < HASHES_PER_PAGE {
            match &mut self.0 {
                By::Rows(rows) => match rows.next().await {
                    Some(row) => page.push(row?.hash),
                    None => break,
                },
                By::Blocks(parts) => match parts.next().await {
                    Some(part) => page.append(&mut part?.hashes),
                    None => break,
                },
            }
        }
        Ok(page)
    }
}

async fn begin<'a, T>(
    connection: &'a mut AsyncPgConnection,
    query: BoxedSqlQuery<'a, Pg, SqlQuery>,
) -> Result<Coming<'a, T>, Error>
where
    T: diesel::deserialize::QueryableByName<Pg> + Send + 'static,
{
    // After its end it would say that the connection is closed.
    let rows = query.load_stream::<T>(connection).await?.fuse();
    Ok(Box::pin(rows))
}
