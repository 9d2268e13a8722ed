//! Where a vendor lists its products: a table and three of its columns, under names that are the vendor's.

use std::fmt;

use crate::domain::difference::ID_BITS;
use crate::domain::listing::{ID_CHARS_READ, NAME_CHARS_MAX, STOCK_CHARS_READ};
use crate::pg::{HashedColumns, fits_in_buffers, regclass};

/// A vendor's buffers are for what the vendor asks for.
const PART_OF_BUFFERS: u32 = 4;

/// A table with its columns. The names are as PostgreSQL keeps them: without quotes, and their case counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    /// The schema; without one, the search path of the role finds the table.
    pub schema: Option<String>,
    /// The table, or a view.
    pub table: String,
    /// The column of the products' ids, of any type.
    pub id_column: String,
    /// The column of their names.
    pub name_column: String,
    /// The column of their stock: whole numbers, of any type.
    pub stock_column: String,
}

impl fmt::Display for Catalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{schema}.")?;
        }
        f.write_str(&self.table)
    }
}

impl Catalogue {
    /// All products as three texts, `id`, `name` and `stock`, in the order of the ids' bytes in UTF-8, as we have it;
    /// with a condition, those it holds for. Each is cut off where it is longer than what we read, so that a row has a
    /// bound whatever the vendor keeps in it.
    pub(super) fn select(&self, server_encoding: &str, condition: Option<&str>) -> String {
        let id = format!("{}::text", quoted(&self.id_column));
        let order = match server_encoding {
            // An index in the order of bytes serves this one.
            "UTF8" | "SQL_ASCII" => format!("{id} COLLATE \"C\""),
            // Elsewhere the bytes are others: in WIN1252, the sign of the euro comes before é.
            _ => format!("convert_to({id}, 'UTF8')"),
        };
        format!(
            "SELECT left({id}, {ID_CHARS_READ}) AS id, left({}::text, {NAME_CHARS_MAX}) AS name, \
             left({}::text, {STOCK_CHARS_READ}) AS stock FROM {}{} ORDER BY {order}",
            quoted(&self.name_column),
            quoted(&self.stock_column),
            self.table(),
            condition
                .map(|condition| format!(" WHERE {condition}"))
                .unwrap_or_default(),
        )
    }

    /// The type of the column of the stock, an expression.
    pub(super) fn stock_type(&self) -> String {
        format!(
            "pg_typeof((SELECT {} FROM {} LIMIT 0))::text",
            quoted(&self.stock_column),
            self.table()
        )
    }

    /// Whether there is no row, as `is_empty`.
    pub(super) fn select_is_empty(&self) -> String {
        format!(
            "SELECT NOT EXISTS (SELECT FROM {}) AS is_empty",
            self.table()
        )
    }

    /// The hash of each row, as `hash`, in any order. A row that lists nothing we can sell has one that no product of ours
    /// has. The stock must be of a type of integers.
    pub(super) fn select_hashes(&self, seed: i64) -> String {
        self.with_columns(|columns| columns.select_hashes(&self.table(), None, seed, ID_BITS))
    }

    /// The same as arrays `hashes`, each of some blocks.
    pub(super) fn select_hashes_by_blocks(&self, seed: i64) -> String {
        self.with_columns(|columns| {
            columns.select_hashes_by_blocks(&self.table(), None, None, seed, ID_BITS)
        })
    }

    /// Whether it is a table that may be read by blocks, an expression. A view has none, and a partitioned table or one that
    /// others inherit from has those of several; where a policy chooses the rows, the server may not ask for their place
    /// before it.
    pub(super) fn may_be_read_by_blocks(&self) -> String {
        let table = self.table();
        format!(
            "EXISTS (SELECT FROM pg_class c JOIN pg_am am ON am.oid = c.relam WHERE c.oid = {} AND c.relkind = 'r' \
             AND NOT c.relhassubclass AND NOT c.relrowsecurity AND am.amname = 'heap' AND {})",
            regclass(&table),
            fits_in_buffers(&table, PART_OF_BUFFERS)
        )
    }

    /// Whether a row is in one of these buckets, an expression.
    pub(super) fn is_in(&self, buckets: &str, mask: usize, seed: i64) -> String {
        self.with_columns(|columns| columns.is_in(buckets, mask, seed))
    }

    fn with_columns<T>(&self, work: impl FnOnce(HashedColumns<'_>) -> T) -> T {
        // As `domain::listing::read` takes NULL; no product has an empty id.
        work(HashedColumns {
            id: &format!("coalesce({}::text, '')", quoted(&self.id_column)),
            name: &format!("coalesce({}::text, '')", quoted(&self.name_column)),
            stock: &format!("coalesce({}::bigint, 0)", quoted(&self.stock_column)),
        })
    }

    fn table(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(&self.table)),
            None => quoted(&self.table),
        }
    }
}

/// An identifier that stands for itself, whatever is in it.
fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_so_that_none_is_more_than_a_name() {
        let catalogue = Catalogue {
            schema: Some("Shop\"; --".into()),
            table: "items\"\"".into(),
            id_column: "sku\" , (SELECT 1) AS \"x".into(),
            name_column: "na me".into(),
            stock_column: "Qty".into(),
        };
        insta::assert_snapshot!(catalogue.select("UTF8", None), @r#"SELECT left("sku"" , (SELECT 1) AS ""x"::text, 201) AS id, left("na me"::text, 1000) AS name, left("Qty"::text, 100) AS stock FROM "Shop""; --"."items""""" ORDER BY "sku"" , (SELECT 1) AS ""x"::text COLLATE "C""#);
        insta::assert_snapshot!(catalogue.select("UTF8", Some(&catalogue.is_in("$1", 7, 5))), @r#"SELECT left("sku"" , (SELECT 1) AS ""x"::text, 201) AS id, left("na me"::text, 1000) AS name, left("Qty"::text, 100) AS stock FROM "Shop""; --"."items""""" WHERE get_bit($1, (hashtextextended((coalesce("sku"" , (SELECT 1) AS ""x"::text, '')) COLLATE "C", 5) & 7)::integer) = 1 ORDER BY "sku"" , (SELECT 1) AS ""x"::text COLLATE "C""#);
        insta::assert_snapshot!(catalogue.select_is_empty(), @r#"SELECT NOT EXISTS (SELECT FROM "Shop""; --"."items""""") AS is_empty"#);
        insta::assert_snapshot!(catalogue.select_hashes(5), @r#"SELECT ((id_hash & 1048575) | (hashtextextended(name, id_hash # stock) & -1048576)) AS hash FROM (SELECT hashtextextended((coalesce("sku"" , (SELECT 1) AS ""x"::text, '')) COLLATE "C", 5) AS id_hash, (coalesce("na me"::text, '')) COLLATE "C" AS name, coalesce("Qty"::bigint, 0) AS stock FROM "Shop""; --"."items""""" OFFSET 0) AS hashed"#);
        insta::assert_snapshot!(catalogue.select_hashes_by_blocks(5), @r#"SELECT ARRAY(SELECT ((id_hash & 1048575) | (hashtextextended(name, id_hash # stock) & -1048576)) AS hash FROM (SELECT hashtextextended((coalesce("sku"" , (SELECT 1) AS ""x"::text, '')) COLLATE "C", 5) AS id_hash, (coalesce("na me"::text, '')) COLLATE "C" AS name, coalesce("Qty"::bigint, 0) AS stock FROM "Shop""; --"."items""""" WHERE ctid >= stockctl_part.first AND ctid < stockctl_part.after OFFSET 0) AS hashed) AS hashes FROM (SELECT format('(%s,0)', block)::tid AS first, format('(%s,0)', CASE WHEN block + 128 > blocks THEN 4294967295 ELSE block + 128 END)::tid AS after FROM (SELECT pg_relation_size('"Shop""; --"."items"""""'::regclass) / current_setting('block_size')::bigint AS blocks) AS size, generate_series(0, blocks, 128) AS block) AS stockctl_part"#);
        insta::assert_snapshot!(catalogue.may_be_read_by_blocks(), @r#"EXISTS (SELECT FROM pg_class c JOIN pg_am am ON am.oid = c.relam WHERE c.oid = '"Shop""; --"."items"""""'::regclass AND c.relkind = 'r' AND NOT c.relhassubclass AND NOT c.relrowsecurity AND am.amname = 'heap' AND pg_relation_size('"Shop""; --"."items"""""'::regclass) * 4 <= pg_size_bytes(current_setting('shared_buffers')))"#);
        insta::assert_snapshot!(catalogue.stock_type(), @r#"pg_typeof((SELECT "Qty" FROM "Shop""; --"."items""""" LIMIT 0))::text"#);
        insta::assert_snapshot!(catalogue.to_string(), @r#"Shop"; --.items"""#);
    }
}
