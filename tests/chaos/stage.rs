//! What a run happens on: private servers, a proxy before each, databases with something to sell, and the product as
//! processes on one configuration file.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stockctl::local;
use tokio::process::Command;
use tokio_postgres::{Client, NoTls};

use crate::findings::Findings;
use crate::parts::{Part, Spec, program};
use crate::proxy::Proxy;

/// What each vendor has to sell at first: products that last, and products that are soon sold out.
pub(crate) const INITIAL: [(&str, &str, i64); 9] = [
    ("vendorA", "p0", 1_000_000),
    ("vendorA", "p1", 1_000_000),
    ("vendorA", "p2", 150),
    ("vendorA", "p3", 400),
    ("vendorA", POISON, 10),
    ("vendorB", "p1", 1_000_000),
    ("vendorB", "p2", 100),
    ("vendorB", "p4", 200),
    ("vendorB", PROBE, 1_000_000),
];
/// What callers ask for, what lasts more often.
pub(crate) const PRODUCTS: [&str; 10] =
    ["p0", "p0", "p0", "p0", "p1", "p1", "p1", "p2", "p3", "p4"];
/// What only the harness orders, to see whether everything is at work again.
pub(crate) const PROBE: &str = "probe";
/// What only the poisonous message asks for.
pub(crate) const POISON: &str = "poison";
pub(crate) const VENDORS: [&str; 2] = ["vendorA", "vendorB"];

/// One command of the program takes seconds on a busy machine.
const COMMAND_WITHIN: Duration = Duration::from_secs(120);
const CONNECT_WITHIN: Duration = Duration::from_secs(20);

/// The servers and their addresses.
pub(crate) struct Stage {
    pub(crate) servers: local::Servers,
    pub(crate) network: Network,
    pub(crate) parts: Vec<Part>,
    pub(crate) addresses: Addresses,
    pub(crate) findings: Findings,
}

/// The proxies, one before each thing that the product talks to.
pub(crate) struct Network {
    pub(crate) database: Proxy,
    pub(crate) vendor_database: Proxy,
    pub(crate) broker: Proxy,
    pub(crate) vendor_api: Proxy,
}

/// Where what is, for whoever goes there past the proxies.
#[derive(Clone)]
pub(crate) struct Addresses {
    /// The HTTP API, once for each `serve`.
    pub(crate) api: Vec<String>,
    /// The server's URL without a database.
    database: url::Url,
    pub(crate) config_file: PathBuf,
    pub(crate) directory: PathBuf,
}

impl Addresses {
    /// Connects to our database, or to a vendor's, past the proxies.
    pub(crate) async fn connect(&self, database: &str) -> anyhow::Result<Client> {
        let mut url = self.database.clone();
        url.set_path(&database.to_lowercase());
        let connecting = tokio_postgres::connect(url.as_str(), NoTls);
        let (client, connection) = tokio::time::timeout(CONNECT_WITHIN, connecting).await??;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs a subcommand to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let running = Command::new(program())
            .arg("--config")
            .arg(&self.config_file)
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .current_dir(env!("CARGO_TARGET_TMPDIR"))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(COMMAND_WITHIN, running)
            .await
            .with_context(|| format!("{arguments:?} did not end within {COMMAND_WITHIN:?}"))??;
        Ok(output)
    }

    /// Runs a subcommand that has to succeed, and returns what it wrote.
    pub(crate) async fn run_well(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.run(arguments).await?;
        ensure!(
            output.status.success(),
            "{arguments:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// Our own database.
pub(crate) const ORDERS: &str = "ordersdb";

impl Stage {
    /// Starts everything, and waits for the first sync.
    pub(crate) async fn set(
        findings: &Findings,
        planted: Option<&'static str>,
    ) -> anyhow::Result<Self> {
        // Apart, so that both can run at the same time.
        let name = if planted.is_some() {
            "chaos-mutants"
        } else {
            "chaos"
        };
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let logs = directory.join("logs");
        if logs.exists() {
            std::fs::remove_dir_all(&logs)?;
        }
        std::fs::create_dir_all(&logs)?;
        let options = local::Options {
            data_dir: directory.join("servers"),
            fresh: true,
        };
        findings.tell("starting PostgreSQL and RabbitMQ");
        let servers = local::start(&options, &mut |_| {}).await?;
        let network = Network::before(&servers).await?;
        let addresses = Addresses {
            api: vec![steady_address()?, steady_address()?],
            database: servers.database_url("postgres").parse()?,
            config_file: directory.join("config.toml"),
            directory: directory.clone(),
        };
        let vendor_api = steady_address()?;
        network
            .write_configuration(&servers, &addresses, &vendor_api)
            .await?;
        fill(&addresses).await?;
        let specs = specs(&addresses, &vendor_api, &logs, planted);
        let parts = specs
            .into_iter()
            .map(|spec| Part::start(spec, findings.clone(), planted.is_some()))
            .collect();
        Ok(Self {
            servers,
            network,
            parts,
            addresses,
            findings: findings.clone(),
        })
    }

    /// A part by its name.
    pub(crate) fn part(&self, name: &str) -> &Part {
        self.parts
            .iter()
            .find(|part| part.name == name)
            .expect("a part of that name")
    }

    /// Ends everything.
    pub(crate) async fn strike(mut self) -> anyhow::Result<()> {
        let ending: Vec<_> = self.parts.drain(..).map(Part::stop).collect();
        futures_util::future::join_all(ending).await;
        self.servers.stop().await?;
        Ok(())
    }
}

impl Network {
    async fn before(servers: &local::Servers) -> anyhow::Result<Self> {
        let target = |url: &str| -> anyhow::Result<String> {
            let url: url::Url = url.parse()?;
            let port = url.port().context("a port")?;
            Ok(format!("127.0.0.1:{port}"))
        };
        let postgres = target(&servers.database_url("postgres"))?;
        Ok(Self {
            database: Proxy::before(postgres.clone()).await?,
            vendor_database: Proxy::before(postgres).await?,
            broker: Proxy::before(target(&servers.amqp_url())?).await?,
            // Its target is known once an address was chosen for it.
            vendor_api: Proxy::before(String::new()).await?,
        })
    }

    async fn write_configuration(
        &self,
        servers: &local::Servers,
        addresses: &Addresses,
        vendor_api: &str,
    ) -> anyhow::Result<()> {
        self.vendor_api.lead_to(vendor_api);
        let through = |url: String, proxy: &Proxy| -> anyhow::Result<String> {
            let mut url: url::Url = url.parse()?;
            ensure!(
                url.set_port(Some(proxy.address.port())).is_ok(),
                "the URL takes a port"
            );
            Ok(url.to_string())
        };
        let api = addresses.api.first().context("an address")?;
        let mut text = format!(
            // A server that is down refuses at once; only one on a busy machine takes its time.
            "[http]\nlisten = \"{api}\"\n[database]\nurl = \"{}\"\nconnect_timeout_ms = 5000\n[rabbitmq]\nurl = \"{}\"\n\
             [orders]\nretry_delay_ms = 1000\n[vendor_sync]\nretry_delay_ms = 1000\ntimeout_ms = 2000\n\
             [sync]\nschedule = \"*/2 * * * * *\"\n",
            through(servers.database_url(ORDERS), &self.database)?,
            through(servers.amqp_url(), &self.broker)?,
        );
        for vendor in VENDORS {
            write!(
                text,
                "[vendors.{vendor}]\ndatabase_url = \"{}\"\napi_url = \"http://{}/vendors/{vendor}\"\n",
                through(
                    servers.database_url(&vendor.to_lowercase()),
                    &self.vendor_database
                )?,
                self.vendor_api.address,
            )?;
        }
        std::fs::write(&addresses.config_file, text)?;
        Ok(())
    }
}

/// Creates the databases, and gives the vendors something to sell. The vendors' own changes are recorded in a table of
/// their own, in the statement that makes them: whatever dies, the record and the stock are the same.
async fn fill(addresses: &Addresses) -> anyhow::Result<()> {
    let server = addresses.connect("postgres").await?;
    for database in [ORDERS, "vendora", "vendorb"] {
        server
            .batch_execute(&format!("CREATE DATABASE {database}"))
            .await?;
    }
    addresses.run_well(&["migrate", "--vendors"]).await?;
    for vendor in VENDORS {
        let client = addresses.connect(vendor).await?;
        client
            .batch_execute(
                "CREATE TABLE own_changes (product_id text NOT NULL, delta bigint NOT NULL)",
            )
            .await?;
    }
    for (vendor, product, stock) in INITIAL {
        let client = addresses.connect(vendor).await?;
        client
            .execute(
                "INSERT INTO products (id, name, stock) VALUES ($1, $1, $2)",
                &[&product, &stock],
            )
            .await?;
    }
    addresses.run_well(&["sync", "--once"]).await?;
    Ok(())
}

/// The processes; `vendors` is the vendors' own server, which happens to be the same program.
fn specs(
    addresses: &Addresses,
    vendor_api: &str,
    logs: &Path,
    planted: Option<&'static str>,
) -> Vec<Spec> {
    let processes: [(&'static str, &[&str], Option<&str>); 7] = [
        (
            "serve-1",
            &["serve"],
            addresses.api.first().map(String::as_str),
        ),
        (
            "serve-2",
            &["serve"],
            addresses.api.last().map(String::as_str),
        ),
        ("vendors", &["serve"], Some(vendor_api)),
        ("sync", &["sync"], None),
        ("orders-1", &["work", "--queue", "orders"], None),
        ("orders-2", &["work", "--queue", "orders"], None),
        ("vendor-sync", &["work", "--queue", "vendor-sync"], None),
    ];
    processes
        .into_iter()
        .map(|(name, arguments, listen)| {
            let config = addresses.config_file.to_string_lossy().into_owned();
            let mut variables = Vec::new();
            if let Some(listen) = listen {
                variables.push(("STOCKCTL__HTTP__LISTEN".to_owned(), listen.to_owned()));
            }
            if let Some(bug) = planted {
                variables.push(("STOCKCTL_FAULT_INJECTION".to_owned(), bug.to_owned()));
            }
            Spec {
                name,
                arguments: ["--config".to_owned(), config]
                    .into_iter()
                    .chain(arguments.iter().map(|a| (*a).to_owned()))
                    .collect(),
                variables,
                log: logs.join(format!("{name}.log")),
            }
        })
        .collect()
}

/// An address below the ports that systems give out for outgoing connections: it must be there again for a process that
/// is started anew.
fn steady_address() -> anyhow::Result<String> {
    (0..1000)
        .map(|_| format!("127.0.0.1:{}", fastrand::u16(10_000..20_000)))
        .find(|address| TcpListener::bind(address).is_ok())
        .context("no port is free")
}
