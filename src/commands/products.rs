//! `stockctl products`: what is available, as the HTTP API says.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use super::api::{Calling, failure};
use super::style::{Colour, Ink};
use super::table::{aligned, moment, printable};
use super::{EXIT_USAGE, Failure};
use crate::client::{AtVendor, Product, ProductFilter, unless_limited};
use crate::config::Config;

/// Looking at products.
#[derive(Debug, Args)]
pub struct Products {
    #[command(flatten)]
    calling: Calling,
    #[command(subcommand)]
    command: ProductsCommand,
}

/// What to do with products.
#[derive(Debug, Subcommand)]
enum ProductsCommand {
    /// List products, by id
    List {
        /// Only products with this in their id or a name, in upper or lower case
        #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
        query: Option<String>,
        /// Only products that this vendor has listed
        #[arg(long, value_name = "VENDOR", value_parser = NonEmptyStringValueParser::new())]
        vendor: Option<String>,
        /// Only products that are available; with --vendor, at that vendor
        #[arg(long)]
        in_stock: bool,
        /// At most so many: 1 to 10000
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=10_000))]
        limit: u16,
    },
    /// Show a product, at each of its vendors
    Show {
        /// The product's id
        #[arg(value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
        id: String,
    },
}

/// Runs it; the configuration is loaded only where it has to say where the API is.
///
/// # Errors
/// See [`Failure`].
pub async fn run(
    products: Products,
    load: impl FnOnce() -> Result<Config, Failure>,
) -> Result<(), Failure> {
    let calling = products.calling;
    match products.command {
        ProductsCommand::List {
            query,
            vendor,
            in_stock,
            limit,
        } => {
            let api = calling.api(load)?;
            let filter = ProductFilter {
                text: query,
                vendor,
                in_stock,
            };
            let page = async |limit, cursor: Option<String>| {
                unless_limited(async || api.products(&filter, limit, cursor.as_deref()).await).await
            };
            let listed = calling.list(&api, limit.into(), page).await?;
            calling.print_list(&listed, "there are no such products", table)
        }
        ProductsCommand::Show { id } => {
            if [".", ".."].contains(&id.as_str()) {
                // A step within the path, to whatever writes one; it would show something else.
                let problem =
                    format!("the product {id} cannot be named in a path: `products list` shows it");
                return Err(Failure::new(EXIT_USAGE, problem));
            }
            let api = calling.api(load)?;
            let not_found = "`stockctl products list` lists those there are";
            let answer = calling.expect(
                unless_limited(async || api.product(&id).await).await,
                &api,
                not_found,
            )?;
            let product: Product = answer.read().map_err(failure)?;
            calling.print(&answer, |ink| whole(&product, ink));
            Ok(())
        }
    }
}

fn available(units: i64, ink: Ink) -> String {
    match units {
        0 => ink.painted(Colour::Red, "0"),
        some => some.to_string(),
    }
}

fn table(products: &[Product], ink: Ink) -> String {
    let head = ["ID", "NAME", "AVAILABLE", "AT"].map(str::to_owned);
    let rows = products.iter().map(|product| {
        [
            printable(&product.id),
            printable(&product.name),
            available(product.available, ink),
            product
                .vendors
                .iter()
                .map(at_vendor)
                .collect::<Vec<_>>()
                .join(", "),
        ]
    });
    let rows: Vec<[String; 4]> = std::iter::once(head).chain(rows).collect();
    aligned(&rows)
}

fn at_vendor(at: &AtVendor) -> String {
    let short = match at.shortfall {
        0 => String::new(),
        units => format!(" (short of {units})"),
    };
    format!("{} {}{short}", printable(&at.vendor_id), at.available)
}

fn whole(product: &Product, ink: Ink) -> String {
    let mut facts = vec![
        ["id".to_owned(), printable(&product.id)],
        ["name".to_owned(), printable(&product.name)],
        ["available".to_owned(), available(product.available, ink)],
    ];
    if product.shortfall != 0 {
        let short = ink.painted(Colour::Red, &product.shortfall.to_string());
        facts.push(["short of".to_owned(), short]);
    }
    let head = [
        "VENDOR",
        "NAME",
        "ON HAND",
        "OPEN",
        "AVAILABLE",
        "SHORT OF",
        "LAST SYNC",
    ]
    .map(str::to_owned);
    let rows = product.vendors.iter().map(|at| {
        [
            printable(&at.vendor_id),
            printable(&at.name),
            at.on_hand.to_string(),
            at.open.to_string(),
            available(at.available, ink),
            at.shortfall.to_string(),
            at.last_sync_at.map_or_else(|| "never".to_owned(), moment),
        ]
    });
    let rows: Vec<[String; 7]> = std::iter::once(head).chain(rows).collect();
    format!("{}\n\n{}", aligned(&facts), aligned(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(json: &str) -> Product {
        serde_json::from_str(json).expect("a product")
    }

    fn two_vendors() -> Product {
        product(
            r#"{"id":"p2","name":"Product 2","available":2,"shortfall":3,"newer":1,"vendors":[
            {"vendorId":"vendorA","name":"Product 2","onHand":15,"open":-18,"available":0,"shortfall":3,"lastSyncAt":"2026-11-26T01:42:15.714631Z"},
            {"vendorId":"vendorB","name":"Product\u001b[2J","onHand":5,"open":-3,"available":2,"shortfall":0,"lastSyncAt":null}]}"#,
        )
    }

    #[test]
    fn a_list_says_what_is_available_and_where() {
        let sold_out = product(
            r#"{"id":"p1","name":"One","available":0,"shortfall":0,"vendors":[{"vendorId":"vendorA","name":"One","onHand":0,"open":0,"available":0,"shortfall":0,"lastSyncAt":null}]}"#,
        );
        let products = [sold_out, two_vendors()];
        insta::assert_snapshot!(table(&products, Ink::Plain), @"
        ID  NAME       AVAILABLE  AT
        p1  One        0          vendorA 0
        p2  Product 2  2          vendorA 0 (short of 3), vendorB 2
        ");
        let coloured = table(&products[..1], Ink::Coloured);
        insta::assert_snapshot!(coloured.replace('\x1b', "ESC"), @"
        ID  NAME  AVAILABLE  AT
        p1  One   ESC[1;31m0ESC[0m          vendorA 0
        ");
    }

    #[test]
    fn a_product_is_shown_at_each_vendor() {
        insta::assert_snapshot!(whole(&two_vendors(), Ink::Plain), @"
        id         p2
        name       Product 2
        available  2
        short of   3

        VENDOR   NAME         ON HAND  OPEN  AVAILABLE  SHORT OF  LAST SYNC
        vendorA  Product 2    15       -18   0          3         2026-11-26 01:42:15.714 UTC
        vendorB  Product�[2J  5        -3    2          0         never
        ");
    }
}
