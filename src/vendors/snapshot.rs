//! One consistent look at a vendor's database, for a sync: which updates it includes, and its products in order.

use diesel::sql_types::{Array, BigInt, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use uuid::Uuid;

use crate::domain::book::Listed;
use crate::domain::ids::{ProductId, UpdateId};
use crate::pg::{Error, Settings, connect};

/// An open snapshot, on a connection of its own; dropping it ends it.
pub struct Snapshot {
    connection: AsyncPgConnection,
    rows_per_chunk: usize,
    skipped: usize,
}

#[derive(diesel::QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    stock: i64,
}

impl Snapshot {
    /// Opens a snapshot: what is committed at the vendor after this returns is not in it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn open(settings: &Settings, rows_per_chunk: usize) -> Result<Self, Error> {
        let mut connection = connect(settings).await?;
        // A vendor may have to sort its catalogue first, and waits while we write a chunk.
        // BEGIN alone opens no snapshot, the first query does. The cursor reads in the order of bytes, as we do.
        connection
            .batch_execute(
                "SET statement_timeout = '60s';
                 SET idle_in_transaction_session_timeout = '5min';
                 BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
                 SELECT 1;
                 DECLARE products_in_order NO SCROLL CURSOR FOR
                     SELECT id, coalesce(name, '') AS name, stock::bigint AS stock FROM products
                     ORDER BY id COLLATE \"C\"",
            )
            .await?;
        Ok(Self {
            connection,
            rows_per_chunk,
            skipped: 0,
        })
    }

    /// Of the given updates, those that the ledger holds as applied.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_applied(&mut self, ids: &[UpdateId]) -> Result<Vec<UpdateId>, Error> {
        #[derive(diesel::QueryableByName)]
        struct Id {
            #[diesel(sql_type = SqlUuid)]
            id: Uuid,
        }
        let rows: Vec<Id> = diesel::sql_query(
            "SELECT id FROM stock_ledger WHERE id = ANY($1) AND outcome = 'applied'",
        )
        .bind::<Array<SqlUuid>, _>(ids.iter().map(|id| id.0).collect::<Vec<_>>())
        .load(&mut self.connection)
        .await?;
        Ok(rows.into_iter().map(|row| UpdateId(row.id)).collect())
    }

    /// The next products, in the order of their ids; `None` after the last. A product whose id cannot be one of ours
    /// is passed over and counted.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn next_chunk(&mut self) -> Result<Option<Vec<Listed>>, Error> {
        loop {
            let rows: Vec<Row> = diesel::sql_query(format!(
                "FETCH {} FROM products_in_order",
                self.rows_per_chunk
            ))
            .load(&mut self.connection)
            .await?;
            if rows.is_empty() {
                return Ok(None);
            }
            let fetched = rows.len();
            let listed: Vec<Listed> = rows
                .into_iter()
                .filter_map(|row| {
                    Some(Listed {
                        product_id: ProductId::parse(row.id).ok()?,
                        name: row.name,
                        stock: row.stock,
                    })
                })
                .collect();
            self.skipped += fetched - listed.len();
            if !listed.is_empty() {
                return Ok(Some(listed));
            }
        }
    }

    /// How many products were passed over.
    #[must_use]
    pub fn skipped(&self) -> usize {
        self.skipped
    }
}
