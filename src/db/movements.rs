//! Every change of a product's available stock, with its cause. Nothing is written for them beside what the flows write
//! anyway: a take and its end, a return that began to count, what a sync found changed, and the first listing.

use chrono::{DateTime, Utc};
use diesel::sql_types::{BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::domain::ids::ProductId;
use crate::pg::{Error, prepared};

/// One change of what is available.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
pub struct Movement {
    /// When.
    #[diesel(sql_type = Timestamptz)]
    pub at: DateTime<Utc>,
    /// At which vendor.
    #[diesel(sql_type = Text)]
    pub vendor_id: String,
    /// Units.
    #[diesel(sql_type = BigInt)]
    pub delta: i64,
    /// `order`: taken for an order. `return`: an order was cancelled, and its units are there again. `rejection`: the
    /// vendor refused the take. `sync`: the vendor's own change, or its first listing.
    #[diesel(sql_type = Text)]
    pub cause: String,
    /// Whose order, where it was one.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub order_id: Option<Uuid>,
    /// By which update.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub update_id: Option<Uuid>,
    /// Its place among those of one time.
    #[diesel(sql_type = Text)]
    pub key: String,
}

/// Every cause of a movement.
pub const CAUSES: [&str; 4] = ["order", "return", "rejection", "sync"];

/// Lists the movements of a product, newest first: at most `limit` before the given one.
///
/// # Errors
/// See [`Error`].
pub async fn list(
    connection: &mut AsyncPgConnection,
    product: &ProductId,
    before: Option<(DateTime<Utc>, &str)>,
    limit: i64,
) -> Result<Vec<Movement>, Error> {
    let (at, key) = before.unwrap_or((DateTime::<Utc>::MAX_UTC, ""));
    // Later than anything, and within what PostgreSQL can hold.
    let at = at.min(DateTime::from_timestamp(253_402_300_799, 0).unwrap_or_default());
    Ok(prepared(
        diesel::sql_query(
            "SELECT at, vendor_id, delta, cause, order_id, update_id, key FROM (
                 (SELECT created_at AS at, vendor_id, delta, 'order' AS cause, order_id, id AS update_id,
                      id::text || ':made' COLLATE \"C\" AS key
                  FROM stock_updates
                  WHERE product_id = $1 AND delta < 0 AND created_at <= $2
                    AND (created_at, id::text || ':made' COLLATE \"C\") < ($2, $3)
                  ORDER BY at DESC, key DESC LIMIT $4)
                 UNION ALL
                 (SELECT turned_at, vendor_id, abs(delta),
                      CASE WHEN state = 'rejected' THEN 'rejection' ELSE 'return' END, order_id, id,
                      id::text || ':turned' COLLATE \"C\" AS key
                  FROM stock_updates
                  WHERE product_id = $1 AND turned_at <= $2
                    AND (turned_at, id::text || ':turned' COLLATE \"C\") < ($2, $3)
                  ORDER BY turned_at DESC, key DESC LIMIT $4)
                 UNION ALL
                 (SELECT at, vendor_id, delta, 'sync', NULL, NULL, vendor_id || ':' || run::text COLLATE \"C\" AS key
                  FROM vendor_changes
                  WHERE product_id = $1 AND at <= $2 AND (at, vendor_id || ':' || run::text COLLATE \"C\") < ($2, $3)
                  ORDER BY at DESC, key DESC LIMIT $4)
                 UNION ALL
                 (SELECT first_listed_at, vendor_id, first_on_hand, 'sync', NULL, NULL,
                      vendor_id || ':first' COLLATE \"C\" AS key
                  FROM stock
                  WHERE product_id = $1 AND (first_listed_at, vendor_id || ':first' COLLATE \"C\") < ($2, $3))
             ) AS movements
             ORDER BY at DESC, key DESC LIMIT $4",
        )
        .bind::<Text, _>(product.as_str())
        .bind::<Timestamptz, _>(at)
        .bind::<Text, _>(key)
        .bind::<BigInt, _>(limit),
    )
    .load(connection)
    .await?)
}
