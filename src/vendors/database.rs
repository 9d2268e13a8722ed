//! A vendor's database as its API works on it: products and the ledger.

use std::collections::BTreeMap;

use diesel::sql_types::{Array, BigInt, Nullable, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::domain::ids::{ProductId, UpdateId};
use crate::domain::ledger::{Entry, Ledger, Request};
use crate::domain::update::Outcome;
use crate::pg::{Error, prepared};

#[derive(diesel::QueryableByName)]
struct EntryRow {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    product_id: String,
    #[diesel(sql_type = BigInt)]
    delta: i64,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    reverses: Option<Uuid>,
    #[diesel(sql_type = Text)]
    outcome: String,
}

/// A product as the vendor holds it.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
pub struct Product {
    /// Which product.
    #[diesel(sql_type = Text)]
    pub id: String,
    /// The vendor's name for it.
    #[diesel(sql_type = Text)]
    pub name: String,
    /// The vendor's stock.
    #[diesel(sql_type = BigInt)]
    pub stock: i64,
}

fn corrupt(problem: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Refused(diesel::result::Error::DeserializationError(problem.into()))
}

/// Locks the products that requests concern, then reads the ledger for their ids. In this order, and in two statements:
/// a request that waited for the lock must see what the one before it has recorded.
///
/// # Errors
/// See [`Error`].
pub async fn load_ledger_for_update(
    connection: &mut AsyncPgConnection,
    requests: &[Request],
) -> Result<Ledger, Error> {
    let products: Vec<&str> = requests
        .iter()
        .map(|request| request.product_id.as_str())
        .collect();
    let rows: Vec<Product> = prepared(
        diesel::sql_query(
            "SELECT id, name, stock FROM products WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE",
        )
        .bind::<Array<Text>, _>(products),
    )
    .load(connection)
    .await?;
    let mut stock = BTreeMap::new();
    for row in rows {
        stock.insert(
            ProductId::parse(row.id).map_err(|error| corrupt(error.to_string()))?,
            row.stock,
        );
    }
    let ids: Vec<Uuid> = requests
        .iter()
        .flat_map(|request| [Some(request.id), request.reverses])
        .flatten()
        .map(|id| id.0)
        .collect();
    let rows: Vec<EntryRow> = prepared(
        diesel::sql_query(
            "SELECT id, product_id, delta, reverses, outcome FROM stock_ledger
             WHERE id = ANY($1) OR reverses = ANY($1)",
        )
        .bind::<Array<SqlUuid>, _>(ids),
    )
    .load(connection)
    .await?;
    let entries = rows
        .into_iter()
        .map(|row| {
            Ok(Entry {
                request: Request {
                    id: UpdateId(row.id),
                    product_id: ProductId::parse(row.product_id)
                        .map_err(|error| corrupt(error.to_string()))?,
                    delta: row.delta,
                    reverses: row.reverses.map(UpdateId),
                },
                outcome: Outcome::parse(&row.outcome)
                    .ok_or_else(|| corrupt(row.outcome.clone()))?,
            })
        })
        .collect::<Result<_, Error>>()?;
    Ok(Ledger::new(stock, entries))
}

/// Takes stock and records it as applied, in one statement: it counts only where all takes are new, and each is of a product
/// that is listed with enough of it. Returns the products as they were before; nothing where it does not count, and then
/// the transaction has to be undone.
///
/// The products are locked first: a request that waits for them meets what the one before it has recorded, as a unique
/// violation. They are locked in the order of their ids, which [`load_ledger_for_update`] asks for and this does not: the plans
/// that a pool's connections get, nested loops, take them as they are given. With other plans two requests might deadlock,
/// and one of them come again.
///
/// # Errors
/// A unique violation where an id is recorded already; see [`Error`].
pub async fn take_at_once(
    connection: &mut AsyncPgConnection,
    source: &str,
    takes: &[Request],
) -> Result<Option<Ledger>, Error> {
    #[derive(diesel::QueryableByName)]
    struct Left {
        #[diesel(sql_type = Text)]
        id: String,
        #[diesel(sql_type = BigInt)]
        stock: i64,
    }
    let mut deltas: BTreeMap<&ProductId, i64> = BTreeMap::new();
    for take in takes {
        *deltas.entry(&take.product_id).or_default() += take.delta;
    }
    let rows: Vec<Left> = prepared(
        diesel::sql_query(
            "WITH taken AS (
                 UPDATE products SET stock = products.stock + t.delta FROM unnest($2, $3) AS t(id, delta)
                 WHERE products.id = t.id AND products.stock + t.delta >= 0 RETURNING products.id, products.stock
             ), recorded AS (
                 INSERT INTO stock_ledger (id, source, product_id, delta, outcome)
                 SELECT t.id, $1, t.product_id, t.delta, 'applied' FROM unnest($4, $5, $6) AS t(id, product_id, delta)
                 WHERE (SELECT count(*) FROM taken) = cardinality($2) ORDER BY t.id
             )
             SELECT id, stock FROM taken",
        )
        .bind::<Text, _>(source)
        .bind::<Array<Text>, _>(deltas.keys().map(|id| id.as_str()).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(deltas.values().copied().collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(takes.iter().map(|take| take.id.0).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(takes.iter().map(|take| take.product_id.as_str()).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(takes.iter().map(|take| take.delta).collect::<Vec<_>>()),
    )
    .load(connection)
    .await?;
    if rows.len() != deltas.len() {
        return Ok(None);
    }
    let mut stock = BTreeMap::new();
    for Left { id, stock: left } in rows {
        let id = ProductId::parse(id).map_err(|error| corrupt(error.to_string()))?;
        let Some(taken) = deltas.get(&id) else {
            return Err(corrupt(format!("product {id} was not asked for")));
        };
        let before = left - taken;
        stock.insert(id, before);
    }
    Ok(Some(Ledger::new(stock, Vec::new())))
}

/// Writes what has become of a ledger: its new entries and the stock.
///
/// # Errors
/// A unique violation when another request has recorded one of the ids meanwhile, which the lock on a product does not
/// keep out where the vendor does not list it; see [`Error`].
pub async fn save_ledger(
    connection: &mut AsyncPgConnection,
    source: &str,
    ledger: &Ledger,
) -> Result<(), Error> {
    let entries: Vec<&Entry> = ledger.written().collect();
    if entries.is_empty() {
        return Ok(());
    }
    prepared(
        diesel::sql_query(
            "INSERT INTO stock_ledger (id, source, product_id, delta, reverses, outcome)
             SELECT t.id, $1, t.product_id, t.delta, t.reverses, t.outcome
             FROM unnest($2, $3, $4, $5, $6) AS t(id, product_id, delta, reverses, outcome) ORDER BY t.id",
        )
        .bind::<Text, _>(source)
        .bind::<Array<SqlUuid>, _>(entries.iter().map(|e| e.request.id.0).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(entries.iter().map(|e| e.request.product_id.as_str()).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(entries.iter().map(|e| e.request.delta).collect::<Vec<_>>())
        .bind::<Array<Nullable<SqlUuid>>, _>(
            entries.iter().map(|e| e.request.reverses.map(|id| id.0)).collect::<Vec<_>>(),
        )
        .bind::<Array<Text>, _>(entries.iter().map(|e| e.outcome.as_str()).collect::<Vec<_>>()),
    )
    .execute(connection)
    .await?;
    let (products, stocks): (Vec<&str>, Vec<i64>) = ledger
        .stocks()
        .map(|(product, stock)| (product.as_str(), stock))
        .unzip();
    prepared(
        diesel::sql_query(
            "UPDATE products SET stock = t.stock FROM unnest($1, $2) AS t(id, stock)
             WHERE products.id = t.id AND products.stock <> t.stock",
        )
        .bind::<Array<Text>, _>(products)
        .bind::<Array<BigInt>, _>(stocks),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Looks a product up.
///
/// # Errors
/// See [`Error`].
pub async fn find_product(
    connection: &mut AsyncPgConnection,
    id: &ProductId,
) -> Result<Option<Product>, Error> {
    let rows: Vec<Product> = prepared(
        diesel::sql_query("SELECT id, name, stock FROM products WHERE id = $1")
            .bind::<Text, _>(id.as_str()),
    )
    .load(connection)
    .await?;
    Ok(rows.into_iter().next())
}

/// Locks a product.
///
/// # Errors
/// See [`Error`].
pub async fn load_product_for_update(
    connection: &mut AsyncPgConnection,
    id: &ProductId,
) -> Result<Option<Product>, Error> {
    let rows: Vec<Product> = prepared(
        diesel::sql_query("SELECT id, name, stock FROM products WHERE id = $1 FOR NO KEY UPDATE")
            .bind::<Text, _>(id.as_str()),
    )
    .load(connection)
    .await?;
    Ok(rows.into_iter().next())
}

/// Sets a product's name and stock, or lists it.
///
/// # Errors
/// See [`Error`].
pub async fn save_product(
    connection: &mut AsyncPgConnection,
    product: &Product,
) -> Result<(), Error> {
    prepared(
        diesel::sql_query(
            "INSERT INTO products (id, name, stock) VALUES ($1, $2, $3)
             ON CONFLICT (id) DO UPDATE SET name = excluded.name, stock = excluded.stock",
        )
        .bind::<Text, _>(&product.id)
        .bind::<Text, _>(&product.name)
        .bind::<BigInt, _>(product.stock),
    )
    .execute(connection)
    .await?;
    Ok(())
}
