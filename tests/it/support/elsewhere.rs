//! A vendor with a system of its own: a database with a schema of its own, of which we may read one table and do nothing
//! else, and an HTTP API that remembers what it has handled where we cannot see it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix_web::web::{Data, Json, post};
use actix_web::{App, HttpServer};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use serde_json::{Value, json};
use stockctl::pg;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::{Shop, ShopOptions};

/// The id of the vendor.
pub(crate) const ELSEWHERE: &str = "elsewhere";

/// The vendor's table and its columns, and how the configuration names them.
const TABLE: &str = "CREATE TABLE shop.items (sku varchar(40) PRIMARY KEY, title varchar(80), quantity integer NOT NULL);
     CREATE TABLE shop.customers (name text)";
const NAMES: &str = "table = \"shop.items\"\nid_column = \"sku\"\nname_column = \"title\"\nstock_column = \"quantity\"\n";

/// A shop with this vendor only.
pub(crate) struct Elsewhere {
    pub(crate) shop: Shop,
    /// The URL by which we read its database.
    pub(crate) reader_url: String,
    /// The role of that URL.
    pub(crate) role: String,
}

impl Elsewhere {
    /// A vendor without any table yet, and a role that may read what its schema `shop` will have. `config` are further
    /// lines of the configuration file.
    pub(crate) async fn empty(config: &str) -> Self {
        let mut shop = Shop::with(ShopOptions {
            vendors: vec![(ELSEWHERE, vec![])],
            config: config.to_owned(),
        })
        .await;
        let role = format!("reader_{}", uuid::Uuid::new_v4().simple());
        shop.run_at(
            ELSEWHERE,
            &format!(
                "DROP SCHEMA public CASCADE; CREATE SCHEMA shop;
                 DO $$ BEGIN EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database()); END $$;
                 CREATE ROLE {role} LOGIN PASSWORD 'read';
                 DO $$ BEGIN EXECUTE format('GRANT CONNECT ON DATABASE %I TO {role}', current_database()); END $$;
                 GRANT USAGE ON SCHEMA shop TO {role}"
            ),
        )
        .await;
        let owner_url = shop.database_url_of(ELSEWHERE).to_owned();
        let mut reader_url: url::Url = owner_url.parse().expect("a URL");
        reader_url.set_username(&role).expect("it has a host");
        reader_url
            .set_password(Some("read"))
            .expect("it has a host");
        let reader_url = reader_url.to_string();
        shop.reconfigure(|text| {
            text.replace(
                &format!("[vendors.{ELSEWHERE}]\ndatabase_url = \"{owner_url}\"\n"),
                &format!(
                    "[vendors.{ELSEWHERE}]\ndatabase_url = \"{reader_url}\"\nledger = false\n{NAMES}"
                ),
            )
        });
        Self {
            shop,
            reader_url,
            role,
        }
    }

    /// A vendor that has something to sell.
    pub(crate) async fn with(products: &[(&str, i64)]) -> Self {
        let elsewhere = Self::empty("[vendor_sync]\nretry_delay_ms = 200\n").await;
        elsewhere.create(TABLE).await;
        for (sku, quantity) in products {
            elsewhere
                .run(&format!(
                    "INSERT INTO shop.items VALUES ('{sku}', 'Item {sku}', {quantity})"
                ))
                .await;
        }
        elsewhere
    }

    /// Creates `shop.items` anew, and lets us read it.
    pub(crate) async fn create(&self, table: &str) {
        self.run(&format!(
            "DROP TABLE IF EXISTS shop.items CASCADE; {table}; GRANT SELECT ON shop.items TO {}",
            self.role
        ))
        .await;
    }

    /// Executes SQL as the vendor's own business.
    pub(crate) async fn run(&self, sql: &str) {
        self.shop.run_at(ELSEWHERE, sql).await;
    }

    /// The vendor's own stock of a product.
    pub(crate) async fn quantity(&self, sku: &str) -> i64 {
        let sql = format!("SELECT quantity::bigint AS n FROM shop.items WHERE sku = '{sku}'");
        self.shop.count_at(ELSEWHERE, &sql).await
    }

    /// What `GET /products/{id}` shows of the vendor: on hand, open, available and shortfall.
    pub(crate) async fn figures(&self, product: &str) -> String {
        let (status, shown) = self.shop.get(&format!("/products/{product}")).await;
        assert_eq!(status, 200, "{shown}");
        let at = &shown["vendors"][0];
        assert_eq!(
            (&shown["available"], &shown["shortfall"]),
            (&at["available"], &at["shortfall"]),
            "of one vendor: {shown}"
        );
        format!(
            "{} on hand, {} open, {} available, {} short",
            at["onHand"], at["open"], at["available"], at["shortfall"]
        )
    }

    /// Starts the vendor's API, at the address that the configuration names for it.
    pub(crate) fn serve(&self) -> ServingElsewhere {
        let books = Data::new(Books {
            settings: pg::Settings {
                url: self.shop.database_url_of(ELSEWHERE).to_owned(),
                pool_size: 1,
                connect_timeout: Duration::from_secs(10),
                statement_timeout: Duration::from_secs(30),
            },
            handled: Mutex::default(),
        });
        let into_app = Arc::clone(&books);
        let server = HttpServer::new(move || {
            App::new()
                .app_data(Data::from(Arc::clone(&into_app)))
                .route("/vendors/elsewhere/stock-updates", post().to(handle))
        })
        .workers(1)
        .disable_signals()
        .listen(self.shop.vendor_listener())
        .expect("listens")
        .run();
        ServingElsewhere(tokio::spawn(async move {
            server.await.expect("serves");
        }))
    }
}

/// The vendor's API, until it is dropped.
pub(crate) struct ServingElsewhere(JoinHandle<()>);

impl Drop for ServingElsewhere {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the vendor's API works on.
struct Books {
    settings: pg::Settings,
    /// The outcome of each update by its id: a ledger, but not one that we could read.
    handled: Mutex<BTreeMap<String, &'static str>>,
}

impl Books {
    /// Adds to a product's quantity, unless that would bring it below zero. Returns whether it has.
    async fn change(&self, update: &Value) -> bool {
        let mut connection = pg::connect(&self.settings).await.expect("reachable");
        let changed = diesel::sql_query(
            "UPDATE shop.items SET quantity = quantity + $1 WHERE sku = $2 AND quantity + $1 >= 0",
        )
        .bind::<diesel::sql_types::BigInt, _>(update["delta"].as_i64().expect("a number"))
        .bind::<diesel::sql_types::Text, _>(update["productId"].as_str().expect("a text"))
        .execute(&mut connection)
        .await
        .expect("executes");
        changed == 1
    }
}

/// `POST …/stock-updates`: each id at most once, one request after the other.
async fn handle(books: Data<Books>, request: Json<Value>) -> Json<Value> {
    let mut handled = books.handled.lock().await;
    let mut results = Vec::new();
    for update in request["updates"].as_array().expect("a list") {
        let id = update["id"].as_str().expect("an id").to_owned();
        let outcome = match handled.get(&id) {
            Some(outcome) => outcome,
            None => match update["reverses"].as_str() {
                None if books.change(update).await => "applied",
                None => "rejected",
                Some(take) if handled.get(take) == Some(&"applied") => {
                    books.change(update).await;
                    "applied"
                }
                Some(take) => {
                    handled.entry(take.to_owned()).or_insert("void");
                    "void"
                }
            },
        };
        handled.insert(id.clone(), outcome);
        results.push(json!({"id": id, "outcome": outcome}));
    }
    Json(json!({ "results": results }))
}

/// What the server answers when we try something with the role that reads.
pub(crate) async fn try_as_reader(elsewhere: &Elsewhere, sql: &str) -> Result<(), String> {
    let settings = pg::Settings {
        url: elsewhere.reader_url.clone(),
        pool_size: 1,
        connect_timeout: Duration::from_secs(10),
        statement_timeout: Duration::from_secs(30),
    };
    let mut connection = pg::connect(&settings).await.expect("reachable");
    connection
        .batch_execute(sql)
        .await
        .map_err(|error| error.to_string())
}
