//! The databases of `up`, and what its vendors have to sell at first.

use diesel::sql_types::{Bool, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_migrations::EmbeddedMigrations;

use crate::domain::ids::ProductId;
use crate::local::Servers;
use crate::pg;
use crate::vendors::database::{Product, save_product};
use crate::{db, vendors};

/// Our database.
pub(super) const ORDERS_DATABASE: &str = "ordersdb";

/// A vendor of `up`.
pub(super) struct SeedVendor {
    /// Its id.
    pub(super) id: &'static str,
    /// Its database.
    pub(super) database: &'static str,
    products: &'static [(&'static str, &'static str, i64)],
}

/// The vendors of `up`.
pub(super) const VENDORS: [SeedVendor; 2] = [
    SeedVendor {
        id: "vendorA",
        database: "vendoradb",
        products: &[("p1", "Product 1", 10), ("p2", "Product 2", 15)],
    },
    SeedVendor {
        id: "vendorB",
        database: "vendorbdb",
        products: &[("p2", "Product 2", 5), ("p3", "Product 3", 20)],
    },
];

/// How to reach one database of the private server.
fn settings(servers: &Servers, database: &str) -> pg::Settings {
    pg::Settings {
        url: servers.database_url(database),
        pool_size: 1,
        connect_timeout: std::time::Duration::from_secs(10),
        statement_timeout: std::time::Duration::from_secs(60),
    }
}

/// Creates what is missing, and brings the rest up to date. A database gets its name only once it is filled, so one that
/// exists is whole, also after a crash in the middle.
pub(super) async fn prepare(servers: &Servers) -> Result<(), pg::MigrateError> {
    let mut server = pg::connect(&settings(servers, "postgres")).await?;
    prepare_one(servers, &mut server, ORDERS_DATABASE, db::MIGRATIONS, &[]).await?;
    for vendor in VENDORS {
        prepare_one(
            servers,
            &mut server,
            vendor.database,
            vendors::MIGRATIONS,
            vendor.products,
        )
        .await?;
    }
    Ok(())
}

async fn prepare_one(
    servers: &Servers,
    server: &mut AsyncPgConnection,
    name: &str,
    migrations: EmbeddedMigrations,
    products: &[(&str, &str, i64)],
) -> Result<(), pg::MigrateError> {
    if exists(server, name).await? {
        pg::migrate(&settings(servers, name), migrations, pg::LOCK_DEADLINE).await?;
        return Ok(());
    }
    let unfinished = format!("{name}_unfinished");
    server
        .batch_execute(&format!(
            "DROP DATABASE IF EXISTS {unfinished} WITH (FORCE)"
        ))
        .await?;
    server
        .batch_execute(&format!("CREATE DATABASE {unfinished}"))
        .await?;
    pg::migrate(
        &settings(servers, &unfinished),
        migrations,
        pg::LOCK_DEADLINE,
    )
    .await?;
    if !products.is_empty() {
        let mut connection = pg::connect(&settings(servers, &unfinished)).await?;
        for (id, product_name, stock) in products {
            debug_assert!(ProductId::parse(*id).is_ok());
            let product = Product {
                id: (*id).to_owned(),
                name: (*product_name).to_owned(),
                stock: *stock,
            };
            save_product(&mut connection, &product).await?;
        }
    }
    // The connections above end asynchronously, and a database in use cannot be renamed.
    server
        .batch_execute(&format!(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{unfinished}'"
        ))
        .await?;
    server
        .batch_execute(&format!("ALTER DATABASE {unfinished} RENAME TO {name}"))
        .await?;
    Ok(())
}

async fn exists(server: &mut AsyncPgConnection, name: &str) -> Result<bool, pg::Error> {
    #[derive(diesel::QueryableByName)]
    struct Exists {
        #[diesel(sql_type = Bool)]
        exists: bool,
    }
    let row: Exists =
        diesel::sql_query("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1) AS exists")
            .bind::<Text, _>(name)
            .get_result(server)
            .await?;
    Ok(row.exists)
}
