//! The aggregated stock: one row per product and vendor.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, BigInt, Nullable, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::{product_id, vendor_id};
use crate::domain::book::{Place, Shelf, VendorChange};
use crate::domain::ids::{ProductId, VendorId};
use crate::pg::{Error, prepared};

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
) -> Result<Vec<(Place, Shelf)>, Error> {
    let rows: Vec<Row> = prepared(
        diesel::sql_query(
            "SELECT product_id, vendor_id, name, on_hand, open_delta, blocked_run FROM stock
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

/// Writes locked rows.
///
/// # Errors
/// See [`Error`].
pub async fn save(
    connection: &mut AsyncPgConnection,
    shelves: &[(Place, Shelf)],
) -> Result<(), Error> {
    if shelves.is_empty() {
        return Ok(());
    }
    let columns = Columns::new(shelves);
    prepared(
        diesel::sql_query(
            "UPDATE stock SET name = coalesce(t.name, stock.name), on_hand = t.on_hand,
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
        .bind::<Array<Nullable<BigInt>>, _>(columns.blocked_run),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Inserts rows that did not exist.
///
/// # Errors
/// See [`Error`].
pub async fn insert(
    connection: &mut AsyncPgConnection,
    shelves: &[(Place, Shelf)],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    if shelves.is_empty() {
        return Ok(());
    }
    let columns = Columns::new(shelves);
    prepared(
        diesel::sql_query(
            "INSERT INTO stock (product_id, vendor_id, name, on_hand, open_delta, blocked_run, first_on_hand, first_listed_at)
             SELECT t.*, t.on_hand, $7
             FROM unnest($1, $2, $3, $4, $5, $6) AS t(product_id, vendor_id, name, on_hand, open_delta, blocked_run)",
        )
        .bind::<Array<Text>, _>(columns.products)
        .bind::<Array<Text>, _>(columns.vendors)
        .bind::<Array<Nullable<Text>>, _>(columns.names)
        .bind::<Array<BigInt>, _>(columns.on_hand)
        .bind::<Array<BigInt>, _>(columns.open_delta)
        .bind::<Array<Nullable<BigInt>>, _>(columns.blocked_run)
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
    connection: &mut AsyncPgConnection,
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
    .execute(connection)
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

/// Lists products by id with all their vendors: at most `limit` products after `after`.
///
/// # Errors
/// See [`Error`].
pub async fn list_products(
    connection: &mut AsyncPgConnection,
    after: Option<&ProductId>,
    limit: i64,
) -> Result<Vec<Shown>, Error> {
    Ok(prepared(
        diesel::sql_query(
            "SELECT s.product_id, s.vendor_id, s.name, s.on_hand, s.open_delta, v.last_sync_at
             FROM (SELECT DISTINCT product_id FROM stock WHERE product_id > coalesce($1, '')
                   ORDER BY product_id LIMIT $2) AS page
             JOIN stock s USING (product_id) JOIN vendors v ON v.id = s.vendor_id
             ORDER BY s.product_id, s.vendor_id",
        )
        .bind::<Nullable<Text>, _>(after.map(ProductId::as_str))
        .bind::<BigInt, _>(limit),
    )
    .load(connection)
    .await?)
}

/// Looks one product up at all its vendors; empty when no vendor has ever listed it.
///
/// # Errors
/// See [`Error`].
pub async fn find_product(
    connection: &mut AsyncPgConnection,
    product: &ProductId,
) -> Result<Vec<Shown>, Error> {
    Ok(prepared(
        diesel::sql_query(
            "SELECT s.product_id, s.vendor_id, s.name, s.on_hand, s.open_delta, v.last_sync_at
             FROM stock s JOIN vendors v ON v.id = s.vendor_id WHERE s.product_id = $1 ORDER BY s.vendor_id",
        )
        .bind::<Text, _>(product.as_str()),
    )
    .load(connection)
    .await?)
}
