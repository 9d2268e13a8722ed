//! Where a vendor lists its products: a table and three of its columns, under names that are the vendor's.

use std::fmt;

use crate::domain::listing::{ID_CHARS_READ, NAME_CHARS_MAX, STOCK_CHARS_READ};

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
    /// All products as three texts, `id`, `name` and `stock`, in the order of the ids' bytes in UTF-8, as we have it.
    /// Each is cut off where it is longer than what we read, so that a row has a bound whatever the vendor keeps in it.
    pub(super) fn select(&self, server_encoding: &str) -> String {
        let id = format!("{}::text", quoted(&self.id_column));
        let order = match server_encoding {
            // An index in the order of bytes serves this one.
            "UTF8" | "SQL_ASCII" => format!("{id} COLLATE \"C\""),
            // Elsewhere the bytes are others: in WIN1252, the sign of the euro comes before é.
            _ => format!("convert_to({id}, 'UTF8')"),
        };
        let table = match &self.schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(&self.table)),
            None => quoted(&self.table),
        };
        format!(
            "SELECT left({id}, {ID_CHARS_READ}) AS id, left({}::text, {NAME_CHARS_MAX}) AS name, \
             left({}::text, {STOCK_CHARS_READ}) AS stock FROM {table} ORDER BY {order}",
            quoted(&self.name_column),
            quoted(&self.stock_column),
        )
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
        insta::assert_snapshot!(catalogue.select("UTF8"), @r#"SELECT left("sku"" , (SELECT 1) AS ""x"::text, 201) AS id, left("na me"::text, 1000) AS name, left("Qty"::text, 100) AS stock FROM "Shop""; --"."items""""" ORDER BY "sku"" , (SELECT 1) AS ""x"::text COLLATE "C""#);
        insta::assert_snapshot!(catalogue.to_string(), @r#"Shop"; --.items"""#);
    }
}
