//! The servers of a test run: one PostgreSQL and one RabbitMQ for all tests.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use diesel_async::SimpleAsyncConnection;
use stockctl::pg;
use tokio::sync::OnceCell;

/// The program under test.
pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_stockctl"))
}

/// Where the servers of this run are.
pub(crate) struct Servers {
    database_url: String,
    pub(crate) amqp_url: String,
    /// Holds the servers: they end when its standard input closes, which the end of this process does, whatever ends it.
    _holder: Option<Child>,
}

/// The template of each test's own database, and of its vendors'.
const ORDERS_TEMPLATE: &str = "template_orders";
const VENDOR_TEMPLATE: &str = "template_vendor";

impl Servers {
    /// The servers, started by the first test that asks; or those that the environment names.
    pub(crate) async fn get() -> &'static Servers {
        static SERVERS: OnceCell<Servers> = OnceCell::const_new();
        SERVERS
            .get_or_init(|| async {
                let servers = tokio::task::spawn_blocking(Self::find_or_start)
                    .await
                    .expect("the servers start");
                servers
                    .create_template(ORDERS_TEMPLATE, stockctl::db::MIGRATIONS)
                    .await;
                servers
                    .create_template(VENDOR_TEMPLATE, stockctl::vendors::MIGRATIONS)
                    .await;
                servers
            })
            .await
    }

    /// Servers of a test's own, which it may disturb.
    pub(crate) async fn of(own: &stockctl::local::Servers) -> Servers {
        let servers = Servers {
            database_url: own.database_url("postgres"),
            amqp_url: own.amqp_url(),
            _holder: None,
        };
        servers
            .create_template(ORDERS_TEMPLATE, stockctl::db::MIGRATIONS)
            .await;
        servers
            .create_template(VENDOR_TEMPLATE, stockctl::vendors::MIGRATIONS)
            .await;
        servers
    }

    fn find_or_start() -> Servers {
        let named = |name| std::env::var(name).ok();
        if let (Some(database_url), Some(amqp_url)) = (
            named("STOCKCTL_TEST_DATABASE_URL"),
            named("STOCKCTL_TEST_AMQP_URL"),
        ) {
            return Servers {
                database_url,
                amqp_url,
                _holder: None,
            };
        }
        let data_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("servers");
        // The servers of the run before this one may still be stopping.
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let mut holder = Command::new(binary())
                .args([
                    "up",
                    "--servers-only",
                    "--until-stdin-closes",
                    "--fresh",
                    "--data-dir",
                ])
                .arg(&data_dir)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("the program runs");
            let mut line = String::new();
            BufReader::new(holder.stdout.take().expect("piped"))
                .read_line(&mut line)
                .expect("readable");
            if let Ok(addresses) = serde_json::from_str::<serde_json::Value>(&line) {
                let address = |name: &str| addresses[name].as_str().expect("an address").to_owned();
                return Servers {
                    database_url: address("postgresql"),
                    amqp_url: address("rabbitmq"),
                    _holder: Some(holder),
                };
            }
            let _ = holder.wait();
            assert!(Instant::now() < until, "the servers do not start");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn settings(&self, database: &str) -> pg::Settings {
        pg::Settings {
            url: self.database_url(database),
            pool_size: 2,
            connect_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
        }
    }

    /// The URL of a database on the server.
    pub(crate) fn database_url(&self, database: &str) -> String {
        let mut url: url::Url = self.database_url.parse().expect("a URL");
        url.set_path(database);
        url.to_string()
    }

    async fn create_template(&self, name: &str, migrations: diesel_migrations::EmbeddedMigrations) {
        self.execute(&format!("DROP DATABASE IF EXISTS {name}"))
            .await;
        self.execute(&format!("CREATE DATABASE {name}")).await;
        pg::migrate(&self.settings(name), migrations, pg::LOCK_DEADLINE)
            .await
            .expect("migrates");
        // A template is copied only while nobody is connected to it, and the migration's connection ends by itself.
        self.execute(&format!(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"
        ))
        .await;
    }

    /// A new database with our schema, or a vendor's.
    pub(crate) async fn create_database(&self, name: &str, of_vendor: bool) -> String {
        // Two tests that copy a template at the same time would disturb each other.
        static COPYING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let _copying = COPYING.lock().await;
        let template = if of_vendor {
            VENDOR_TEMPLATE
        } else {
            ORDERS_TEMPLATE
        };
        self.execute(&format!("CREATE DATABASE {name} TEMPLATE {template}"))
            .await;
        self.database_url(name)
    }

    /// A new database without any schema.
    pub(crate) async fn create_empty_database(&self) -> String {
        self.create_empty_database_as("").await
    }

    /// A new database without any schema, with options of its own.
    pub(crate) async fn create_empty_database_as(&self, options: &str) -> String {
        let name = format!("empty_{}", uuid::Uuid::new_v4().simple());
        self.execute(&format!("CREATE DATABASE {name} {options}"))
            .await;
        self.database_url(&name)
    }

    async fn execute(&self, sql: &str) {
        let mut connection = pg::connect(&self.settings("postgres"))
            .await
            .expect("reachable");
        connection.batch_execute(sql).await.expect("executes");
    }
}
