//! A shop of a test's own: databases, queues, and the parts of the product that the test starts.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use diesel_async::pooled_connection::PoolableConnection;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_migrations::FileBasedMigrations;
use serde_json::{Value, json};
use stockctl::commands::work::WorkQueue;
use stockctl::commands::{self, Failure};
use stockctl::config::{self, Config};
use stockctl::http::Listening;
use stockctl::shutdown::Shutdown;
use stockctl::supervisor::Supervisor;
use stockctl::{mq, pg};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{DEADLINE, Ended, Process, Servers, eventually};

/// What a shop is like.
pub(crate) struct ShopOptions {
    /// The vendors, and what each has to sell: (product, stock).
    pub(crate) vendors: Vec<(&'static str, Vec<(&'static str, i64)>)>,
    /// Further lines of the configuration file, such as `[orders]\nretries_max = 1`.
    pub(crate) config: String,
}

impl Default for ShopOptions {
    /// The vendors of `stockctl up`, and retries that a test can wait for.
    fn default() -> Self {
        Self {
            vendors: vec![("vendorA", vec![("p1", 10), ("p2", 15)]), ("vendorB", vec![("p2", 5), ("p3", 20)])],
            config: "[orders]\nretry_delay_ms = 200\n[vendor_sync]\nretry_delay_ms = 200\ntimeout_ms = 20000\n".into(),
        }
    }
}

/// A part of the product that runs in this process, until it is stopped or dropped.
pub(crate) struct Running {
    shutdown: Shutdown,
    task: Option<JoinHandle<Result<(), Failure>>>,
}

impl Running {
    fn new(shutdown: Shutdown, task: JoinHandle<Result<(), Failure>>) -> Self {
        Self {
            shutdown,
            task: Some(task),
        }
    }

    /// Ends it as SIGTERM does, and waits for the end.
    pub(crate) async fn stop(mut self) {
        self.shutdown.begin();
        let task = self.task.take().expect("not stopped before");
        task.await.expect("no panic").expect("a clean end");
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(mut self) -> Result<(), Failure> {
        self.task
            .take()
            .expect("not stopped before")
            .await
            .expect("no panic")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.begin();
    }
}

/// A shop with databases and queues of its own.
pub(crate) struct Shop {
    /// The configuration of its parts.
    pub(crate) config: Config,
    /// The file it was read from, for parts that run as processes.
    pub(crate) config_file: PathBuf,
    /// The base of the API that [`Shop::serve`] serves.
    pub(crate) url: String,
    /// A client for it.
    pub(crate) http: reqwest::Client,
    servers: &'static Servers,
    databases: BTreeMap<String, String>,
    /// A connection to each of them, for questions; none where there was none yet, or the last one broke.
    asking: BTreeMap<String, tokio::sync::Mutex<Option<AsyncPgConnection>>>,
    listener: TcpListener,
    vendor_listener: TcpListener,
    _directory: tempfile::TempDir,
}

/// The name of our own database among [`Shop`]'s.
const ORDERS: &str = "orders";

impl Shop {
    /// A shop with the vendors of `stockctl up`; nothing of it runs yet.
    pub(crate) async fn new() -> Shop {
        Self::with(ShopOptions::default()).await
    }

    /// A shop; nothing of it runs yet.
    pub(crate) async fn with(options: ShopOptions) -> Shop {
        let servers = Servers::get().await;
        let id = Uuid::new_v4().simple().to_string();
        let mut databases = BTreeMap::new();
        let (own_url, vendor_urls) = servers
            .create_databases(&format!("shop_{id}"), options.vendors.len())
            .await;
        databases.insert(ORDERS.to_owned(), own_url);
        // Bound now, so that the addresses stay ours until something serves them; until then callers wait in the
        // backlog, or are refused once the listener is dropped.
        let bind = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (listener, vendor_listener) = (bind(), bind());
        let vendor_address = vendor_listener.local_addr().expect("bound");
        // A server that is down refuses at once; only one on a busy machine takes its time.
        let mut text = format!(
            "[http]\nlisten = \"{}\"\n[database]\nurl = \"{}\"\nconnect_timeout_ms = 10000\n[rabbitmq]\nurl = \"{}\"\nqueue_prefix = \"{id}.\"\n{}\n",
            listener.local_addr().expect("bound"),
            databases[ORDERS],
            servers.amqp_url,
            options.config,
        );
        for ((vendor, _), url) in options.vendors.iter().zip(vendor_urls) {
            text.push_str(&format!(
                "[vendors.{vendor}]\ndatabase_url = \"{url}\"\napi_url = \"http://{vendor_address}/vendors/{vendor}\"\n"
            ));
            databases.insert((*vendor).to_owned(), url);
        }
        let directory = tempfile::tempdir().expect("a directory");
        let config_file = directory.path().join("config.toml");
        std::fs::write(&config_file, text).expect("written");
        let config = config::load(Some(&config_file)).unwrap_or_else(|error| panic!("{error}"));
        let asking = databases
            .keys()
            .map(|name| (name.clone(), tokio::sync::Mutex::default()));
        let shop = Shop {
            url: format!("http://{}", config.http.listen),
            config,
            config_file,
            http: reqwest_client(),
            asking: asking.collect(),
            servers,
            databases,
            listener,
            vendor_listener,
            _directory: directory,
        };
        for (vendor, products) in options.vendors {
            let rows = products
                .iter()
                .map(|(product, stock)| format!("('{product}', 'Product {product}', {stock})"));
            let rows = rows.collect::<Vec<_>>().join(", ");
            if !rows.is_empty() {
                shop.run_at(
                    vendor,
                    &format!("INSERT INTO products (id, name, stock) VALUES {rows}"),
                )
                .await;
            }
        }
        shop
    }

    /// Starts the HTTP API, and waits until it answers.
    pub(crate) async fn serve(&self) -> Running {
        let running = self.serve_on(self.listener.try_clone().expect("cloned"));
        eventually("the API is alive", || async {
            self.http
                .get(format!("{}/healthz", self.url))
                .send()
                .await
                .ok()
        })
        .await;
        running
    }

    /// Starts the vendors' own API, at the address that the configuration names for it.
    pub(crate) fn serve_vendors(&self) -> Running {
        self.serve_on(self.vendor_listener())
    }

    fn serve_on(&self, listener: TcpListener) -> Running {
        let shutdown = Shutdown::new();
        let (config, until) = (self.config.clone(), shutdown.clone());
        // The shop holds it too.
        let listening = Listening::Passed(listener);
        let task = tokio::spawn(async move {
            commands::serve::run(&config, listening, until, &Supervisor::none()).await
        });
        Running::new(shutdown, task)
    }

    /// Starts the consumers.
    pub(crate) fn work(&self) -> Running {
        self.work_on(&[])
    }

    /// Starts some of the consumers.
    pub(crate) fn work_on(&self, queues: &[WorkQueue]) -> Running {
        let shutdown = Shutdown::new();
        let (config, until, queues) = (self.config.clone(), shutdown.clone(), queues.to_vec());
        let task = tokio::spawn(async move {
            commands::work::run(&config, &queues, until, &Supervisor::none()).await
        });
        Running::new(shutdown, task)
    }

    /// Syncs all vendors once.
    pub(crate) async fn sync(&self) {
        self.try_sync()
            .await
            .unwrap_or_else(|failure| panic!("{failure}"));
    }

    /// Syncs all vendors once.
    pub(crate) async fn try_sync(&self) -> Result<(), Failure> {
        commands::sync::run_once(&self.config, &commands::sync::Selection::default(), false).await
    }

    /// Starts the sync loop.
    pub(crate) fn sync_by_schedule(&self) -> Running {
        let shutdown = Shutdown::new();
        let (config, until) = (self.config.clone(), shutdown.clone());
        let selection = commands::sync::Selection::default();
        let task = tokio::spawn(async move {
            commands::sync::run(&config, &selection, until, &Supervisor::none()).await
        });
        Running::new(shutdown, task)
    }

    /// Starts a subcommand as a process, with this shop's configuration.
    pub(crate) fn start(&self, arguments: &[&str]) -> Process {
        Process::configured(&self.config_file, arguments)
    }

    /// Runs a subcommand as a process, with this shop's configuration.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ended {
        self.start(arguments).ended().await
    }

    /// Changes the text of the configuration file. What runs already keeps what it has.
    pub(crate) fn reconfigure(&mut self, change: impl FnOnce(String) -> String) {
        let text = std::fs::read_to_string(&self.config_file).expect("readable");
        std::fs::write(&self.config_file, change(text)).expect("written");
        self.config = config::load(Some(&self.config_file)).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Lets statements of what is started from now on wait for the locks that a test holds.
    pub(crate) fn wait_long_for_locks(&mut self) {
        self.reconfigure(|text| {
            text.replace("[database]\n", "[database]\nstatement_timeout_ms = 14000\n")
        });
    }

    /// The URL of a vendor's database.
    pub(crate) fn database_url_of(&self, vendor: &str) -> &str {
        &self.databases[vendor]
    }

    /// The URL of our own database.
    pub(crate) fn own_database_url(&self) -> &str {
        &self.databases[ORDERS]
    }

    /// Everything at work, and the vendors synced once.
    pub(crate) async fn open(&self) -> Vec<Running> {
        self.sync().await;
        vec![self.serve_vendors(), self.work(), self.serve().await]
    }

    /// Sends a request, and returns the status and the body.
    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let response = request.send().await.expect("an answer");
        let status = response.status().as_u16();
        let text = response.text().await.expect("a body");
        (
            status,
            serde_json::from_str(&text).unwrap_or(Value::String(text)),
        )
    }

    /// `GET` a path.
    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.send(self.http.get(format!("{}{path}", self.url)))
            .await
    }

    /// `POST` a JSON body to a path.
    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.send(self.http.post(format!("{}{path}", self.url)).json(&body))
            .await
    }

    /// Orders, and returns the order's id.
    pub(crate) async fn order(&self, lines: &[(&str, i64)]) -> String {
        let lines: Vec<Value> = lines
            .iter()
            .map(|(p, q)| json!({"productId": p, "quantity": q}))
            .collect();
        let (status, order) = self.post("/orders", json!({ "lines": lines })).await;
        assert_eq!(status, 202, "{order}");
        order["id"].as_str().expect("an id").to_owned()
    }

    /// Waits until an order has a status, and returns the order.
    pub(crate) async fn order_with_status(&self, id: &str, status: &str) -> Value {
        self.order_where(id, &format!("order {id} is {status}"), |order| {
            order["status"] == status
        })
        .await
    }

    /// Waits until all vendors have answered for an order, and returns it.
    pub(crate) async fn order_told(&self, id: &str) -> Value {
        self.order_where(id, &format!("the vendors are told of {id}"), |order| {
            order["vendorSync"] == "done"
        })
        .await
    }

    /// Waits until an order is as asked for.
    pub(crate) async fn order_where(
        &self,
        id: &str,
        what: &str,
        is_so: impl Fn(&Value) -> bool,
    ) -> Value {
        eventually(what, || async {
            let (status, order) = self.get(&format!("/orders/{id}")).await;
            (status == 200 && is_so(&order)).then_some(order)
        })
        .await
    }

    /// Waits until the API is connected to the broker. What it accepts before, it cannot publish itself: the sweeper does so,
    /// later and without its trace.
    pub(crate) async fn broker_is_connected(&self) {
        eventually("the broker is connected", || async {
            (self.get("/readyz").await.1["rabbitmq"] == "up").then_some(())
        })
        .await;
    }

    /// Waits until an unknown order is answered as such: until then another process may have accepted it through the
    /// broker.
    pub(crate) async fn knows_what_is_unknown(&self) {
        let path = format!("/orders/{}", Uuid::now_v7());
        eventually("an unknown order is unknown", || async {
            let (status, answer) = self.get(&path).await;
            if status == 503 {
                assert_eq!(answer["code"], "not_yet_visible");
            }
            (status == 404).then_some(())
        })
        .await;
    }

    /// How many units of a product are available.
    pub(crate) async fn available(&self, product: &str) -> i64 {
        let (status, shown) = self.get(&format!("/products/{product}")).await;
        assert_eq!(status, 200, "{shown}");
        shown["available"].as_i64().expect("a number")
    }

    /// A vendor's own stock of a product.
    pub(crate) async fn stock_at(&self, vendor: &str, product: &str) -> i64 {
        self.number(
            vendor,
            &format!("SELECT stock AS n FROM products WHERE id = '{product}'"),
        )
        .await
    }

    /// A text from our database; empty where there is none.
    pub(crate) async fn text(&self, sql: &str) -> String {
        self.text_at(ORDERS, sql).await
    }

    /// A text from a vendor's database; empty where there is none.
    pub(crate) async fn text_at(&self, database: &str, sql: &str) -> String {
        #[derive(diesel::QueryableByName)]
        struct Text {
            #[diesel(sql_type = diesel::sql_types::Nullable<diesel::sql_types::Text>)]
            t: Option<String>,
        }
        let row: Text = self.row(database, sql).await;
        row.t.unwrap_or_default()
    }

    /// A number from a vendor's database.
    pub(crate) async fn count_at(&self, vendor: &str, sql: &str) -> i64 {
        self.number(vendor, sql).await
    }

    /// A number from our database.
    pub(crate) async fn count(&self, sql: &str) -> i64 {
        self.number(ORDERS, sql).await
    }

    async fn number(&self, database: &str, sql: &str) -> i64 {
        #[derive(diesel::QueryableByName)]
        struct Number {
            #[diesel(sql_type = diesel::sql_types::BigInt)]
            n: i64,
        }
        let row: Number = self.row(database, sql).await;
        row.n
    }

    /// The row that a question is answered with. Questions come by hundreds, and go through one connection where none of
    /// them waits: opening one takes the server more time than most answers.
    async fn row<T>(&self, database: &str, sql: &str) -> T
    where
        T: diesel::QueryableByName<diesel::pg::Pg> + Send + 'static,
    {
        let Ok(mut kept) = self.asking[database].try_lock() else {
            let mut connection = self.connect(database).await;
            return diesel::sql_query(sql)
                .get_result(&mut connection)
                .await
                .expect("a row");
        };
        if let Some(connection) = kept.as_mut()
            && let Ok(row) = diesel::sql_query(sql).get_result(connection).await
        {
            return row;
        }
        // Its server may have ended meanwhile.
        let connection = kept.insert(self.connect(database).await);
        diesel::sql_query(sql)
            .get_result(connection)
            .await
            .expect("a row")
    }

    async fn connect(&self, database: &str) -> AsyncPgConnection {
        pg::connect(&self.settings(database))
            .await
            .expect("reachable")
    }

    /// Executes SQL at a vendor, as the vendor's own business.
    pub(crate) async fn run_at(&self, vendor: &str, sql: &str) {
        // As for questions, through the one that is kept, where it is free.
        let mut kept = self.asking[vendor].try_lock().ok();
        let mut free = kept.as_mut().and_then(|kept| kept.take());
        if free.as_mut().is_some_and(PoolableConnection::is_broken) {
            free = None;
        }
        let mut connection = match free {
            Some(connection) => connection,
            None => self.connect(vendor).await,
        };
        connection.batch_execute(sql).await.expect("executes");
        if let Some(kept) = &mut kept {
            **kept = Some(connection);
        }
    }

    /// Executes SQL in our database.
    pub(crate) async fn run_here(&self, sql: &str) {
        self.run_at(ORDERS, sql).await;
    }

    /// The address of the vendors' own API in the configuration.
    pub(crate) fn vendor_address(&self) -> std::net::SocketAddr {
        self.vendor_listener.local_addr().expect("bound")
    }

    /// The listener of that address, for a test that serves a vendor's API itself.
    pub(crate) fn vendor_listener(&self) -> TcpListener {
        self.vendor_listener.try_clone().expect("cloned")
    }

    /// Migrates our database from a folder, as another version of the program would from its own.
    pub(crate) async fn migrate_from(
        &self,
        folder: &Path,
        lock_deadline: Duration,
    ) -> Result<pg::Migrated, pg::MigrateError> {
        let migrations = FileBasedMigrations::from_path(folder).expect("migrations");
        pg::migrate(&self.settings(ORDERS), migrations, lock_deadline).await
    }

    /// The listener of our own address, for a test that passes it on.
    pub(crate) fn listener(&self) -> TcpListener {
        self.listener.try_clone().expect("cloned")
    }

    /// A connection to our database, for a test that holds locks.
    pub(crate) async fn connection_here(&self) -> AsyncPgConnection {
        self.connect(ORDERS).await
    }

    /// What the use cases that concern only our own database work with.
    pub(crate) fn context_here(&self) -> stockctl::app::Context {
        stockctl::app::Context {
            database: pg::Pool::new("orders", self.settings(ORDERS)).expect("a pool"),
            vendors: BTreeMap::new(),
        }
    }

    /// The configuration file with something replaced in it, as a file of its own.
    pub(crate) fn config_file_with(&self, name: &str, from: &str, to: &str) -> PathBuf {
        let text = std::fs::read_to_string(&self.config_file).expect("readable");
        assert!(text.contains(from), "{from} is in {text}");
        let path = self.config_file.with_file_name(name);
        std::fs::write(&path, text.replace(from, to)).expect("written");
        path
    }

    /// What the server answers to SQL in our database.
    pub(crate) async fn try_here(&self, sql: &str) -> Result<(), String> {
        self.try_at(ORDERS, sql).await
    }

    /// What the server answers to SQL in a vendor's database.
    pub(crate) async fn try_at(&self, vendor: &str, sql: &str) -> Result<(), String> {
        let mut connection = self.connect(vendor).await;
        connection
            .batch_execute(sql)
            .await
            .map_err(|error| error.to_string())
    }

    /// Begins a transaction in our database, which holds its locks until it is released.
    pub(crate) async fn hold_here(&self, sql: &str) -> Held {
        self.hold_at(ORDERS, sql).await
    }

    /// Begins a transaction in a vendor's database, which holds its locks until it is released.
    pub(crate) async fn hold_at(&self, vendor: &str, sql: &str) -> Held {
        let mut connection = self.connect(vendor).await;
        connection
            .batch_execute(&format!("BEGIN; {sql}"))
            .await
            .expect("executes");
        Held(connection)
    }

    /// Waits until somebody waits for a lock in our database.
    pub(crate) async fn held_up_here(&self) {
        self.held_up_at(ORDERS).await;
    }

    /// Waits until somebody waits for a lock in a vendor's database.
    pub(crate) async fn held_up_at(&self, vendor: &str) {
        let sql = "SELECT count(*) AS n FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
        eventually("somebody waits for a lock", || async {
            (self.number(vendor, sql).await > 0).then_some(())
        })
        .await;
    }

    fn settings(&self, database: &str) -> pg::Settings {
        pg::Settings {
            url: self.databases[database].clone(),
            pool_size: 1,
            connect_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
        }
    }

    /// How to reach the broker, for a test that is a producer or a consumer itself.
    pub(crate) fn broker(&self) -> mq::Settings {
        commands::broker_settings(&self.config)
    }

    /// The dead letters of a queue, once there are so many.
    pub(crate) async fn dead_letters(&self, queue: &str, count: usize) -> Vec<Value> {
        eventually(&format!("{count} dead letters in {queue}"), || async {
            let (status, answer) = self
                .get(&format!("/admin/dead-letters/{queue}?limit=200"))
                .await;
            // One session looks at a time, and one that has just ended may still be there for the broker.
            if status == 503 {
                return None;
            }
            assert_eq!(status, 200, "{answer}");
            let letters = answer["deadLetters"].as_array().expect("a list").clone();
            (letters.len() >= count).then_some(letters)
        })
        .await
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.servers.leave(self.databases.values());
    }
}

/// A transaction that a test holds open; it is rolled back when this is dropped.
pub(crate) struct Held(AsyncPgConnection);

impl Held {
    /// Commits it.
    pub(crate) async fn release(mut self) {
        self.0.batch_execute("COMMIT").await.expect("commits");
    }
}

/// A client of the HTTP API.
pub(crate) fn reqwest_client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .timeout(DEADLINE)
        // What it asks speaks no TLS, and each client would read all certificates of the machine.
        .tls_certs_only([])
        .build()
        .expect("a client")
}
