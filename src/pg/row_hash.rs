//! A hash of a row that both sides of a comparison compute by themselves, in SQL.

use std::pin::Pin;

use diesel::pg::Pg;
use diesel::query_builder::{BoxedSqlQuery, SqlQuery};
use diesel::result::QueryResult;
use diesel::sql_types::BigInt;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use futures_util::{Stream, StreamExt};

use super::Error;

/// The first version of PostgreSQL that has these hashes, as `server_version_num` tells it.
pub const ROW_HASH_SINCE: i32 = 110_000;

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

#[derive(diesel::QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    hash: i64,
}

/// Hashes that are taken at a time.
const HASHES_PER_PAGE: usize = 10_000;

/// The hashes that a query has for its rows, as they come: the server computes on while they are counted, and waits where
/// nobody takes them.
pub struct Hashes<'a>(Pin<Box<dyn Stream<Item = QueryResult<Row>> + Send + 'a>>);

impl<'a> Hashes<'a> {
    /// Begins to read the column `hash` of a query.
    ///
    /// # Errors
    /// The server refuses it, or is gone.
    pub async fn load(
        connection: &'a mut AsyncPgConnection,
        query: BoxedSqlQuery<'a, Pg, SqlQuery>,
    ) -> Result<Self, Error> {
        // After its end it would say that the connection is closed.
        let rows = query.load_stream::<Row>(connection).await?.fuse();
        Ok(Self(Box::pin(rows)))
    }

    /// The next hashes; none after the last.
    ///
    /// # Errors
    /// The query failed, or the server is gone.
    pub async fn next_page(&mut self) -> Result<Vec<i64>, Error> {
        let mut page = Vec::with_capacity(HASHES_PER_PAGE);
        while page.len() < HASHES_PER_PAGE {
            match self.0.next().await {
                Some(row) => page.push(row?.hash),
                None => break,
            }
        }
        Ok(page)
    }
}
