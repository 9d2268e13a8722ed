//! The servers of a test run: one PostgreSQL and one RabbitMQ for all tests.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD as STANDARD;
use diesel_async::SimpleAsyncConnection;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use stockctl::pg;
use tokio::sync::{OnceCell, mpsc, oneshot};

use super::scratch;

/// The program under test.
pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_stockctl"))
}

/// Where the servers of this run are.
pub(crate) struct Servers {
    database_url: String,
    pub(crate) amqp_url: String,
    administrator: Administrator,
    /// What is said of how a template is copied.
    copy_options: &'static str,
    left: Mutex<Vec<String>>,
    /// Holds the servers: they end when its standard input closes, which the end of this process does, whatever ends it.
    holder: Option<Child>,
}

/// The template of each test's own database, and of its vendors'.
const ORDERS_TEMPLATE: &str = "template_orders";
const VENDOR_TEMPLATE: &str = "template_vendor";

/// So many databases that no test needs any more are left before they are dropped, together: each drop writes a checkpoint,
/// and only the first has much to write.
const LEFT_MAX: usize = 45;

/// What PostgreSQL need not do for a run that throws everything away at its end. What outlives a crash is proved on servers
/// that tests start for themselves.
const FOR_A_RUN: [&str; 4] = [
    // It would go through the hundreds of databases of a run, ten a second, each by a process of its own.
    "autovacuum = off",
    "fsync = off",
    "full_page_writes = off",
    // It compiles for longer than anything here takes.
    "jit = off",
];

/// How a template is copied, by a server that knows of other ways (PostgreSQL 15): by its files. Page by page, through the
/// buffers and the log, takes twice the processor's time; the checkpoints that this needs cost little where nothing is
/// synced to a disk.
const COPY_FILES: &str = "STRATEGY file_copy";
const KNOWS_OTHER_WAYS: i32 = 150_000;

/// Creates and drops databases, one at a time, since two copies of a template disturb each other: through one connection,
/// on a thread that outlives each test's runtime.
struct Administrator {
    jobs: mpsc::UnboundedSender<Job>,
}

struct Job {
    sql: Vec<String>,
    done: oneshot::Sender<()>,
}

impl Administrator {
    fn start(settings: pg::Settings) -> Self {
        let (jobs, mut coming) = mpsc::unbounded_channel::<Job>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let mut connection = pg::connect(&settings).await.expect("reachable");
                while let Some(job) = coming.recv().await {
                    for sql in job.sql {
                        if let Err(error) = connection.batch_execute(&sql).await {
                            panic!("{sql}: {error}");
                        }
                    }
                    // Whoever asked may be gone.
                    let _ = job.done.send(());
                }
            });
        });
        Self { jobs }
    }

    /// Begins to execute statements; what is returned ends with the last of them.
    fn begin(&self, sql: Vec<String>) -> oneshot::Receiver<()> {
        let (done, executed) = oneshot::channel();
        self.jobs.send(Job { sql, done }).expect("it lives");
        executed
    }

    async fn execute(&self, sql: Vec<String>) {
        self.begin(sql).await.expect("executed");
    }
}

impl Servers {
    /// The servers, started by the first test that asks; or those that the environment names.
    pub(crate) async fn get() -> &'static Servers {
        static SERVERS: OnceCell<Servers> = OnceCell::const_new();
        SERVERS
            .get_or_init(|| async {
                let mut servers = tokio::task::spawn_blocking(Self::find_or_start)
                    .await
                    .expect("the servers start");
                if servers.are_for_this_run() && servers.version().await >= KNOWS_OTHER_WAYS {
                    servers.copy_options = COPY_FILES;
                }
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

    fn find_or_start() -> Servers {
        let named = |name| std::env::var(name).ok();
        if let (Some(database_url), Some(amqp_url)) = (
            named("STOCKCTL_TEST_DATABASE_URL"),
            named("STOCKCTL_TEST_AMQP_URL"),
        ) {
            return Self::at(database_url, amqp_url, None);
        }
        let data_dir = scratch("servers");
        // The servers of the run before this one may still be stopping.
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            // What they wrote goes with them: it may be in memory.
            let mut holder = Command::new("sh")
                .args([
                    "-c",
                    "\"$0\" up --servers-only --until-stdin-closes --fresh --data-dir \"$1\"; code=$?; rm -rf \"$1\"; exit $code",
                ])
                .arg(binary())
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
                let servers = Self::at(address("postgresql"), address("rabbitmq"), Some(holder));
                let settings = FOR_A_RUN.map(|setting| format!("ALTER SYSTEM SET {setting}"));
                let others = [
                    "SELECT pg_reload_conf()".to_owned(),
                    servers.cheaper_logins(),
                ];
                let _first = servers
                    .administrator
                    .begin(settings.into_iter().chain(others).collect());
                return servers;
            }
            let _ = holder.wait();
            assert!(Instant::now() < until, "the servers do not start");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn at(database_url: String, amqp_url: String, holder: Option<Child>) -> Self {
        Self {
            administrator: Administrator::start(Self::settings(database_url.clone())),
            database_url,
            amqp_url,
            copy_options: "",
            left: Mutex::default(),
            holder,
        }
    }

    /// Gives our role the password that it has, in one round of hashing where 4096 are usual: whoever logs in goes through
    /// as many, which makes it costly to guess what a password was, and there are thousands of logins in a run. The form is
    /// PostgreSQL's (RFC 5803), made as RFC 5802 has it.
    fn cheaper_logins(&self) -> String {
        const SALT: &[u8] = b"of a run of tests";
        let keyed = |key: &[u8], text: &[u8]| {
            let mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
            mac.chain_update(text).finalize().into_bytes()
        };
        let url: url::Url = self.database_url.parse().expect("a URL");
        let password = url.password().expect("it has one");
        let salted = keyed(password.as_bytes(), &[SALT, &[0, 0, 0, 1]].concat());
        let stored = Sha256::digest(keyed(&salted, b"Client Key"));
        let [salt, stored, of_server] =
            [SALT, &stored, &keyed(&salted, b"Server Key")].map(|part| STANDARD.encode(part));
        let role = url.username();
        format!("ALTER ROLE {role} PASSWORD 'SCRAM-SHA-256$1:{salt}${stored}:{of_server}'")
    }

    /// Whether nobody else uses them, and nothing on them is to last.
    fn are_for_this_run(&self) -> bool {
        self.holder.is_some()
    }

    /// The version of the PostgreSQL server, as `server_version_num` has it.
    async fn version(&self) -> i32 {
        #[derive(diesel::QueryableByName)]
        struct Version {
            #[diesel(sql_type = diesel::sql_types::Integer)]
            n: i32,
        }
        let settings = Self::settings(self.database_url.clone());
        let mut connection = pg::connect(&settings).await.expect("reachable");
        let asked = diesel::sql_query("SELECT current_setting('server_version_num')::int AS n");
        // Not as a method: the administrator has some of the same names.
        let asked = diesel_async::RunQueryDsl::get_result(asked, &mut connection).await;
        let version: Version = asked.expect("a version");
        version.n
    }

    fn settings(url: String) -> pg::Settings {
        pg::Settings {
            url,
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
        self.administrator
            .execute(vec![
                format!("DROP DATABASE IF EXISTS {name}"),
                format!("CREATE DATABASE {name}"),
            ])
            .await;
        let settings = Self::settings(self.database_url(name));
        pg::migrate(&settings, migrations, pg::LOCK_DEADLINE)
            .await
            .expect("migrates");
        // A template is copied only while nobody is connected to it, and the migration's connection ends by itself.
        self.administrator
            .execute(vec![format!(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"
            )])
            .await;
    }

    /// A new database with our schema, and one for each of some vendors; returns their URLs.
    pub(crate) async fn create_databases(
        &self,
        name: &str,
        vendors: usize,
    ) -> (String, Vec<String>) {
        let of_vendors: Vec<String> = (0..vendors)
            .map(|index| format!("{name}_{index}"))
            .collect();
        let copy = |name: &String, template| {
            format!(
                "CREATE DATABASE {name} TEMPLATE {template} {}",
                self.copy_options
            )
        };
        let mut sql = vec![copy(&name.to_owned(), ORDERS_TEMPLATE)];
        sql.extend(of_vendors.iter().map(|name| copy(name, VENDOR_TEMPLATE)));
        self.administrator.execute(sql).await;
        let urls = of_vendors.iter().map(|name| self.database_url(name));
        (self.database_url(name), urls.collect())
    }

    /// Takes databases, by URL, that are not needed any more, to be dropped some time.
    pub(crate) fn leave<'a>(&self, databases: impl IntoIterator<Item = &'a String>) {
        let name = |url: &'a String| url.rsplit('/').next().unwrap_or_default().to_owned();
        let mut left = self.left.lock().expect("no panic");
        left.extend(databases.into_iter().map(name));
        if left.len() >= LEFT_MAX {
            // Parts of a test that is over may still be connected.
            let drop = left
                .drain(..)
                .map(|name| format!("DROP DATABASE {name} WITH (FORCE)"));
            let _not_waited_for = self.administrator.begin(drop.collect());
        }
    }

    /// A new database without any schema.
    pub(crate) async fn create_empty_database(&self) -> String {
        self.create_empty_database_as("").await
    }

    /// A new database without any schema, with options of its own.
    pub(crate) async fn create_empty_database_as(&self, options: &str) -> String {
        let name = format!("empty_{}", uuid::Uuid::new_v4().simple());
        self.administrator
            .execute(vec![format!("CREATE DATABASE {name} {options}")])
            .await;
        self.database_url(&name)
    }
}
