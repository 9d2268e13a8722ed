//! The aggregated stock: one row per product and vendor.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, BigInt, Binary, Bool, Json, Nullable, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use super::{product_id, vendor_id};
use crate::domain::book::{Listed, Place, Shelf, VendorChange};
use crate::domain::difference::{Buckets, ID_BITS};
use crate::domain::ids::{ProductId, VendorId};
use crate::pg::{Error, HashedColumns, Hashes, LONG_READ_DEADLINE, fits_in_buffers, prepared};

#[derive(diesel::QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    product_id: String,
    #[diesel(sql_type = Text)]
    vendor_id: String,
    #[diesel(sql_type = Nullable<Text>)]
    name: Option<String>,
    #[diesel(sql_type = BigInt)]
    on_hand: i64,
    #[diesel(sql_type = BigInt)]
    open_delta: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    blocked_run: Option<i64>,
}

/// A row of a vendor that is known.
#[derive(diesel::QueryableByName)]
struct HeldRow {
    #[diesel(sql_type = Text)]
    product_id: String,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    on_hand: i64,
    #[diesel(sql_type = BigInt)]
    open_delta: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    blocked_run: Option<i64>,
}

impl TryFrom<Row> for (Place, Shelf) {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self, Error> {
        Ok((
            (product_id(row.product_id)?, vendor_id(row.vendor_id)?),
            Shelf {
                name: row.name,
                on_hand: row.on_hand,
                open_delta: row.open_delta,
                blocked_run: row.blocked_run,
            },
        ))
    }
}

fn texts(products: &[ProductId]) -> Vec<&str> {
    products.iter().map(ProductId::as_str).collect()
}

/// Locks the stock of products at all vendors. It reads the locked rows' own columns only: an aggregate beside the lock
/// would be computed from before the wait for it. Names are not loaded.
///
/// # Errors
/// See [`Error`].
pub async fn load_for_update(
    connection: &mut AsyncPgConnection,
    products: &[ProductId],
) -> Result<Vec<(Place, Shelf)>, Error> {
    let rows: Vec<Row> = prepared(
        diesel::sql_query(
            "SELECT product_id, vendor_id, NULL AS name, on_hand, open_delta, blocked_run FROM stock
             WHERE product_id = ANY($1) ORDER BY product_id, vendor_id FOR NO KEY UPDATE",
        )
        .bind::<Array<Text>, _>(texts(products)),
    )
    .load(connection)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Locks the stock of products at one vendor.
///
/// # Errors
/// See [`Error`].
pub async fn load_at_vendor_for_update(
    connection: &mut AsyncPgConnection,
    vendor: &VendorId,
    products: &[ProductId],
) -> Result<Vec<(Place, Shelf)>, Error> {
    let rows: Vec<Row> = prepared(
        diesel::sql_query(
            "SELECT product_id, vendor_id, name, on_hand, open_delta, blocked_run FROM stock
             WHERE vendor_id = $1 AND product_id = ANY($2) ORDER BY product_id FOR NO KEY UPDATE",
        )
        .bind::<Text, _>(vendor.as_str())
        .bind::<Array<Text>, _>(texts(products)),
    )
    .load(connection)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Reads, without locking, a vendor's stock of at most `limit` products after `after` up to and including `until`, where
/// those are given.
///
/// # Errors
/// See [`Error`].
pub async fn list_range(
    connection: &mut AsyncPgConnection,
    vendor: &VendorId,
    after: Option<&ProductId>,
    until: Option<&ProductId>,
    limit: i64,
) -> Result<Vec<(ProductId, Shelf)>, Error> {
    let rows: Vec<HeldRow> = prepared(
        diesel::sql_query(
            "SELECT product_id, name, on_hand, open_delta, blocked_run FROM stock
             WHERE vendor_id = $1 AND product_id > coalesce($2, '') AND ($3 IS NULL OR product_id <= $3)
             ORDER BY product_id LIMIT $4",
        )
        .bind::<Text, _>(vendor.as_str())
        .bind::<Nullable<Text>, _>(after.map(ProductId::as_str))
        .bind::<Nullable<Text>, _>(until.map(ProductId::as_str))
        .bind::<BigInt, _>(limit),
    )
    .load(connection)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

impl TryFrom<HeldRow> for (ProductId, Shelf) {
    type Error = Error;

    fn try_from(row: HeldRow) -> Result<Self, Error> {
        let shelf = Shelf {
            name: Some(row.name),
            on_hand: row.on_hand,
            open_delta: row.open_delta,
            blocked_run: row.blocked_run,
        };
        Ok((product_id(row.product_id)?, shelf))
    }
}

/// The columns that a vendor's catalogue has too.
const HASHED: HashedColumns<'static> = HashedColumns {
    id: "product_id",
    name: "name",
    stock: "on_hand",
};

/// Every order asks for stock, so that it may well have half of the server's buffers.
const PART_OF_BUFFERS: u32 = 2;

/// A look at one vendor's stock, without locks, on a connection that has no other use meanwhile. It is one transaction, so
/// it should be short: what it may still see cannot be vacuumed.
pub struct Look<'a> {
    connection: &'a mut AsyncPgConnection,
    vendor: &'a VendorId,
    run: i64,
}

impl<'a> Look<'a> {
    /// Begins it. Rows are hashed with the number of the run as their seed.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn begin(
        connection: &'a mut AsyncPgConnection,
        vendor: &'a VendorId,
        run: i64,
    ) -> Result<Self, Error> {
        // A vendor may take long for its part. Of a cursor everything is read. To compile takes longer than it saves, and
        // without scans by place each part would look at all rows.
        connection
            .batch_execute(&format!(
                "BEGIN READ ONLY;
                 SET LOCAL statement_timeout = {};
                 SET LOCAL cursor_tuple_fraction = 1;
                 SET LOCAL jit = off;
                 SET LOCAL enable_tidscan = on;
                 SET LOCAL idle_in_transaction_session_timeout = '5min'",
                LONG_READ_DEADLINE.as_millis()
            ))
            .await?;
        Ok(Self {
            connection,
            vendor,
            run,
        })
    }

    /// Begins to read a hash of each row, in no order; a row that this run has to unblock has one that no vendor's row has.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn hashes(&mut self) -> Result<Hashes<'_>, Error> {
        let is_to_unblock = format!("blocked_run < {}", self.run);
        let (condition, other) = ("vendor_id = $1", Some(is_to_unblock.as_str()));
        let by_blocks = self.is_read_by_blocks().await?;
        let query = if by_blocks {
            HASHED.select_hashes_by_blocks("stock", Some(condition), other, self.run, ID_BITS)
        } else {
            let from = format!("stock WHERE {condition}");
            HASHED.select_hashes(&from, other, self.run, ID_BITS)
        };
        let query = diesel::sql_query(query)
            .into_boxed()
            .bind::<Text, _>(self.vendor.as_str());
        if by_blocks {
            Hashes::by_blocks(self.connection, query).await
        } else {
            Hashes::by_rows(self.connection, query).await
        }
    }

    /// Whether all vendors' rows are read for this one's, and may be read by blocks. How many are whose is for the server to
    /// say.
    async fn is_read_by_blocks(&mut self) -> Result<bool, Error> {
        #[derive(diesel::QueryableByName)]
        struct Fits {
            #[diesel(sql_type = Bool)]
            fits: bool,
        }
        let fits: Fits = diesel::sql_query(format!(
            "SELECT {} AS fits",
            fits_in_buffers("stock", PART_OF_BUFFERS)
        ))
        .get_result(self.connection)
        .await?;
        if !fits.fits {
            return Ok(false);
        }
        #[derive(diesel::QueryableByName)]
        struct Explained {
            #[diesel(sql_type = Json, column_name = "QUERY PLAN")]
            plan: serde_json::Value,
        }
        let explained: Explained =
            diesel::sql_query("EXPLAIN (FORMAT JSON) SELECT name FROM stock WHERE vendor_id = $1")
                .bind::<Text, _>(self.vendor.as_str())
                .get_result(self.connection)
                .await?;
        let node = explained.plan.pointer("/0/Plan/Node Type");
        Ok(node.is_some_and(|node| node == "Seq Scan"))
    }

    /// Begins to read the products in some buckets, in the order of their ids.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn begin_products(&mut self, buckets: &Buckets) -> Result<(), Error> {
        let is_in = HASHED.is_in("$2", buckets.mask(), self.run);
        diesel::sql_query(format!(
            "DECLARE products_in_order NO SCROLL CURSOR FOR
             SELECT product_id, name, on_hand, open_delta, blocked_run FROM stock WHERE vendor_id = $1 AND {is_in}
             ORDER BY product_id"
        ))
        .bind::<Text, _>(self.vendor.as_str())
        .bind::<Binary, _>(buckets.as_bytes())
        .execute(self.connection)
        .await?;
        Ok(())
    }

    /// The next `limit` of them, or those that are left.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn next_products(&mut self, limit: usize) -> Result<Vec<(ProductId, Shelf)>, Error> {
        let rows: Vec<HeldRow> = diesel::sql_query(format!("FETCH {limit} FROM products_in_order"))
            .load(self.connection)
            .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// Ends it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn end(self) -> Result<(), Error> {
        Ok(self.connection.batch_execute("COMMIT").await?)
    }
}

/// Whether anything is on hand at a vendor.
///
/// # Errors
/// See [`Error`].
pub async fn has_any(connection: &mut AsyncPgConnection, vendor: &VendorId) -> Result<bool, Error> {
    #[derive(diesel::QueryableByName)]
    struct Any {
        #[diesel(sql_type = diesel::sql_types::Bool)]
        any: bool,
    }
    let row: Any = prepared(
        diesel::sql_query(
            "SELECT EXISTS (SELECT FROM stock WHERE vendor_id = $1 AND on_hand <> 0) AS any",
        )
        .bind::<Text, _>(vendor.as_str()),
    )
    .get_result(connection)
    .await?;
    Ok(row.any)
}

/// Writes locked rows, and the event that tells of the products of which another number is `available`.
///
/// # Errors
/// See [`Error`].
pub async fn save(
    mut connection: &AsyncPgConnection,
    shelves: &[(Place, Shelf)],
    available: &BTreeSet<ProductId>,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    if shelves.is_empty() {
        return Ok(());
    }
    let columns = Columns::new(shelves);
    prepared(
        diesel::sql_query(
            "WITH told AS (
                 INSERT INTO events (kind, product_ids, at) SELECT 'stock.changed', $8, $7 WHERE cardinality($8) > 0
             )
             UPDATE stock SET name = coalesce(t.name, stock.name), on_hand = t.on_hand,
                 open_delta = t.open_delta, blocked_run = t.blocked_run
             FROM unnest($1, $2, $3, $4, $5, $6)
                 AS t(product_id, vendor_id, name, on_hand, open_delta, blocked_run)
             WHERE stock.product_id = t.product_id AND stock.vendor_id = t.vendor_id",
        )
        .bind::<Array<Text>, _>(columns.products)
        .bind::<Array<Text>, _>(columns.vendors)
        .bind::<Array<Nullable<Text>>, _>(columns.names)
        .bind::<Array<BigInt>, _>(columns.on_hand)
        .bind::<Array<BigInt>, _>(columns.open_delta)
        .bind::<Array<Nullable<BigInt>>, _>(columns.blocked_run)
        .bind::<Timestamptz, _>(now)
        .bind::<Array<Text>, _>(available.iter().map(ProductId::as_str).collect::<Vec<_>>()),
    )
    .execute(&mut connection)
    .await?;
    Ok(())
}

/// Inserts what a vendor lists and we did not hold yet, and the event that tells of it.
///
/// # Errors
/// See [`Error`].
pub async fn insert(
    connection: &mut AsyncPgConnection,
    vendor: &VendorId,
    listed: &[Listed],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    if listed.is_empty() {
        return Ok(());
    }
    let products: Vec<&str> = listed.iter().map(|new| new.product_id.as_str()).collect();
    let names: Vec<&str> = listed.iter().map(|new| new.name.as_str()).collect();
    let stocks: Vec<i64> = listed.iter().map(|new| new.stock).collect();
    prepared(
        diesel::sql_query(
            "WITH inserted AS (
                 INSERT INTO stock (product_id, vendor_id, name, on_hand, open_delta, first_on_hand, first_listed_at)
                 SELECT t.product_id, $4, t.name, t.stock, 0, t.stock, $5
                 FROM unnest($1, $2, $3) AS t(product_id, name, stock)
             )
             INSERT INTO events (kind, product_ids, at) VALUES ('stock.changed', $1, $5)",
        )
        .bind::<Array<Text>, _>(products)
        .bind::<Array<Text>, _>(names)
        .bind::<Array<BigInt>, _>(stocks)
        .bind::<Text, _>(vendor.as_str())
        .bind::<Timestamptz, _>(now),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes what a sync found changed by the vendors themselves.
///
/// # Errors
/// See [`Error`].
pub async fn insert_vendor_changes(
    mut connection: &AsyncPgConnection,
    changes: &[VendorChange],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    if changes.is_empty() {
        return Ok(());
    }
    prepared(
        diesel::sql_query(
            "INSERT INTO vendor_changes (product_id, at, vendor_id, run, delta)
             SELECT product_id, $5, vendor_id, run, delta
             FROM unnest($1, $2, $3, $4) AS t(product_id, vendor_id, run, delta)",
        )
        .bind::<Array<Text>, _>(
            changes
                .iter()
                .map(|c| c.place.0.as_str())
                .collect::<Vec<_>>(),
        )
        .bind::<Array<Text>, _>(
            changes
                .iter()
                .map(|c| c.place.1.as_str())
                .collect::<Vec<_>>(),
        )
        .bind::<Array<BigInt>, _>(changes.iter().map(|c| c.run).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(changes.iter().map(|c| c.delta).collect::<Vec<_>>())
        .bind::<Timestamptz, _>(now),
    )
    .execute(&mut connection)
    .await?;
    Ok(())
}

struct Columns<'a> {
    products: Vec<&'a str>,
    vendors: Vec<&'a str>,
    names: Vec<Option<&'a str>>,
    on_hand: Vec<i64>,
    open_delta: Vec<i64>,
    blocked_run: Vec<Option<i64>>,
}

impl<'a> Columns<'a> {
    fn new(shelves: &'a [(Place, Shelf)]) -> Self {
        Self {
            products: shelves.iter().map(|(place, _)| place.0.as_str()).collect(),
            vendors: shelves.iter().map(|(place, _)| place.1.as_str()).collect(),
            names: shelves
                .iter()
                .map(|(_, shelf)| shelf.name.as_deref())
                .collect(),
            on_hand: shelves.iter().map(|(_, shelf)| shelf.on_hand).collect(),
            open_delta: shelves.iter().map(|(_, shelf)| shelf.open_delta).collect(),
            blocked_run: shelves.iter().map(|(_, shelf)| shelf.blocked_run).collect(),
        }
    }
}

/// A product at one vendor, as shown to people.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
pub struct Shown {
    /// Which product.
    #[diesel(sql_type = Text)]
    pub product_id: String,
    /// Whose.
    #[diesel(sql_type = Text)]
    pub vendor_id: String,
    /// The vendor's name for it.
    #[diesel(sql_type = Text)]
    pub name: String,
    /// What the vendor's database said.
    #[diesel(sql_type = BigInt)]
    pub on_hand: i64,
    /// What `on_hand` does not include yet.
    #[diesel(sql_type = BigInt)]
    pub open_delta: i64,
    /// When the vendor was last synced.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_sync_at: Option<DateTime<Utc>>,
}

/// Rows that are read for one page of products, whatever the filter leaves of them. An index for what is searched for
/// would be written anew by every decision and every sync; reading so many takes a tenth of a second.
pub const READ_FOR_PAGE_MAX: i64 = 20_000;

/// Which products to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// The vendors that count.
    pub vendors: Vec<VendorId>,
    /// Only what this one lists.
    pub vendor: Option<VendorId>,
    /// Only products with this in their id or a name of theirs, in upper or lower case.
    pub text: Option<String>,
    /// Only what is available, or is not: at the one vendor, where one is given.
    pub in_stock: Option<bool>,
    /// Only those after this one.
    pub after: Option<ProductId>,
}

/// Products of one page.
pub struct Page {
    /// Each product with all its vendors, sorted by both.
    pub rows: Vec<Shown>,
    /// After which product the next page begins, when there may be one.
    pub next: Option<ProductId>,
}

/// Lists products by id with all their vendors: at most `limit`, and as many of the next [`READ_FOR_PAGE_MAX`] rows as the
/// filter lets through.
///
/// # Errors
/// See [`Error`].
pub async fn list_products(
    connection: &mut AsyncPgConnection,
    filter: &Filter,
    limit: i64,
) -> Result<Page, Error> {
    // With one vendor, its own index has them in order.
    let of_vendor = match filter.vendor {
        Some(_) => "AND vendor_id = $3",
        None => "AND ($3 IS NULL)",
    };
    // The page is an array and no join, which leaves the server nothing but to look its products up.
    let mut rows: Vec<Shown> = prepared(
        diesel::sql_query(format!(
            "SELECT s.product_id, s.vendor_id, s.name, s.on_hand, s.open_delta, v.last_sync_at
             FROM stock s JOIN vendors v ON v.id = s.vendor_id
             WHERE s.vendor_id = ANY($2) AND s.product_id = ANY(ARRAY(
                 SELECT product_id FROM (
                     SELECT product_id, vendor_id, name, on_hand + open_delta AS remaining FROM stock
                     WHERE product_id > $1 {of_vendor} ORDER BY product_id LIMIT {READ_FOR_PAGE_MAX}
                 ) AS read
                 WHERE vendor_id = ANY($2)
                 GROUP BY product_id
                 HAVING ($4 IS NULL OR bool_or(strpos(lower(product_id COLLATE \"default\"), lower($4)) > 0
                                            OR strpos(lower(name), lower($4)) > 0))
                    AND ($5 IS NULL OR bool_or(remaining > 0) = $5)
                 ORDER BY product_id LIMIT $6
             ))
             ORDER BY s.product_id, s.vendor_id"
        ))
        .bind::<Text, _>(filter.after.as_ref().map_or("", ProductId::as_str))
        .bind::<Array<Text>, _>(vendor_texts(&filter.vendors))
        .bind::<Nullable<Text>, _>(filter.vendor.as_ref().map(VendorId::as_str))
        .bind::<Nullable<Text>, _>(filter.text.as_deref())
        .bind::<Nullable<Bool>, _>(filter.in_stock)
        // One more says whether there is a next page.
        .bind::<BigInt, _>(limit + 1),
    )
    .load(connection)
    .await?;
    let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut found = rows.chunk_by(|a, b| a.product_id == b.product_id);
    let last = found.by_ref().take(wanted).last();
    if let (Some(last), Some(_)) = (last, found.next()) {
        let next = last[0].product_id.clone();
        rows.retain(|row| row.product_id <= next);
        return Ok(Page {
            rows,
            next: Some(product_id(next)?),
        });
    }
    // The page is not full: there is more only behind what was read. Of the product at that place, some rows may not have
    // been, so it is the next page's.
    let bound: Option<Id> = prepared(
        diesel::sql_query(format!(
            "SELECT product_id FROM stock WHERE product_id > $1 {of_vendor_here}
             ORDER BY product_id OFFSET {READ_FOR_PAGE_MAX} LIMIT 1",
            of_vendor_here = of_vendor.replace("$3", "$2")
        ))
        .bind::<Text, _>(filter.after.as_ref().map_or("", ProductId::as_str))
        .bind::<Nullable<Text>, _>(filter.vendor.as_ref().map(VendorId::as_str)),
    )
    .load(connection)
    .await?
    .pop();
    let Some(Id { product_id: bound }) = bound else {
        return Ok(Page { rows, next: None });
    };
    rows.retain(|row| row.product_id < bound);
    let before: Option<Id> = prepared(
        diesel::sql_query(
            "SELECT product_id FROM stock WHERE product_id < $1 ORDER BY product_id DESC LIMIT 1",
        )
        .bind::<Text, _>(&bound),
    )
    .load(connection)
    .await?
    .pop();
    let next = before.map(|id| product_id(id.product_id)).transpose()?;
    Ok(Page { rows, next })
}

#[derive(diesel::QueryableByName)]
struct Id {
    #[diesel(sql_type = Text)]
    product_id: String,
}

fn vendor_texts(vendors: &[VendorId]) -> Vec<&str> {
    vendors.iter().map(VendorId::as_str).collect()
}

/// How much of each product is available over these vendors; products that none of them has ever listed are left out.
///
/// # Errors
/// See [`Error`].
pub async fn list_available(
    connection: &mut AsyncPgConnection,
    vendors: &[VendorId],
    products: &[ProductId],
) -> Result<BTreeMap<ProductId, i64>, Error> {
    #[derive(diesel::QueryableByName)]
    struct Available {
        #[diesel(sql_type = Text)]
        product_id: String,
        #[diesel(sql_type = BigInt)]
        available: i64,
    }
    let rows: Vec<Available> = prepared(
        diesel::sql_query(
            "SELECT product_id, sum(greatest(on_hand + open_delta, 0))::bigint AS available FROM stock
             WHERE product_id = ANY($1) AND vendor_id = ANY($2) GROUP BY product_id",
        )
        .bind::<Array<Text>, _>(texts(products))
        .bind::<Array<Text>, _>(vendor_texts(vendors)),
    )
    .load(connection)
    .await?;
    rows.into_iter()
        .map(|row| Ok((product_id(row.product_id)?, row.available)))
        .collect()
}

/// Looks one product up at these vendors; empty when none of them has ever listed it.
///
/// # Errors
/// See [`Error`].
pub async fn find_product(
    connection: &mut AsyncPgConnection,
    vendors: &[VendorId],
    product: &ProductId,
) -> Result<Vec<Shown>, Error> {
    Ok(prepared(
        diesel::sql_query(
            "SELECT s.product_id, s.vendor_id, s.name, s.on_hand, s.open_delta, v.last_sync_at
             FROM stock s JOIN vendors v ON v.id = s.vendor_id
             WHERE s.product_id = $1 AND s.vendor_id = ANY($2) ORDER BY s.vendor_id",
        )
        .bind::<Text, _>(product.as_str())
        .bind::<Array<Text>, _>(vendor_texts(vendors)),
    )
    .load(connection)
    .await?)
}
