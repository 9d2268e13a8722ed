//! The cases: what is measured, against what, and what it shall reach.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use stockctl::mq::{self, Headers, Message, Publisher, Queue};

use crate::reference::{self, INSERT_SCRIPT, Reading, order_script, pgbench, psql, seconds, shell};
use crate::say;
use crate::stack::Stack;

/// Products of the cases that place orders.
const PRODUCTS: u32 = 1000;
/// Connections that place orders.
const CONNECTIONS: &str = "256";
/// What a run may wait for the last orders.
const DRAIN_S: &str = "300";
/// Clients of pgbench that order, and that insert.
const ORDERING: u32 = 8;
const INSERTING: u32 = 32;

/// What was asked for.
pub(crate) struct Settings {
    cases: Option<Vec<String>>,
    pub(crate) rounds: usize,
    seconds: u64,
    products: u64,
    orders: u64,
}

impl Settings {
    pub(crate) fn from_environment() -> anyhow::Result<Self> {
        let number = |name: &str, default: u64| -> anyhow::Result<u64> {
            match std::env::var(name) {
                Ok(text) => text
                    .parse()
                    .ok()
                    .filter(|number| *number > 0)
                    .with_context(|| format!("{name} must be a number above 0, is {text}")),
                Err(_) => Ok(default),
            }
        };
        let cases = std::env::var("BENCH_CASES")
            .ok()
            .map(|names| names.split(',').map(str::to_owned).collect::<Vec<_>>());
        for name in cases.iter().flatten() {
            if !Case::ALL.iter().any(|case| case.name == name) {
                let known: Vec<&str> = Case::ALL.iter().map(|case| case.name).collect();
                bail!(
                    "BENCH_CASES: there is no case {name}; there are {}",
                    known.join(", ")
                );
            }
        }
        Ok(Self {
            cases,
            rounds: usize::try_from(number("BENCH_ROUNDS", 3)?)?,
            seconds: number("BENCH_SECONDS", 60)?,
            products: number("BENCH_PRODUCTS", 1_000_000)?,
            orders: number("BENCH_ORDERS", 10_000_000)?,
        })
    }

    pub(crate) fn wants(&self, case: &str) -> bool {
        self.cases
            .as_ref()
            .is_none_or(|cases| cases.iter().any(|name| name == case))
    }
}

/// What a ratio shall be.
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    pub(crate) fn is_met(&self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(least) => ratio >= *least,
            Self::AtMost(most) => ratio <= *most,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, ">= {least:.2}"),
            Self::AtMost(most) => write!(f, "<= {most:.2}"),
        }
    }
}

type Measured<'a> = Pin<Box<dyn Future<Output = anyhow::Result<(Reading, Reading)>> + 'a>>;

/// Something that is measured beside its reference.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) goal: Goal,
    /// One round: the reference's reading, and ours.
    pub(crate) run: for<'a> fn(&'a mut Stack, &'a Settings) -> Measured<'a>,
}

impl Case {
    pub(crate) const ALL: [Self; 10] = [
        Self {
            name: "flow",
            what: "orders told to their vendors, 1000 products; pgbench's bare transaction, 8 clients",
            goal: Goal::AtLeast(2.0),
            run: |stack, settings| Box::pin(flow(stack, settings.seconds, "uniform", 1)),
        },
        Self {
            name: "hot",
            what: "the same, all for one product; pgbench on that one row",
            goal: Goal::AtLeast(8.0),
            run: |stack, settings| Box::pin(flow(stack, third(settings.seconds), "hot", 1)),
        },
        Self {
            name: "accept",
            what: "orders accepted, nobody at work, 64 connections; pgbench's INSERT of a row, 32 clients",
            goal: Goal::AtLeast(1.0),
            run: |stack, settings| Box::pin(accept(stack, third(settings.seconds))),
        },
        Self {
            name: "five-lines",
            what: "orders of 5 lines told to their vendors; pgbench's bare transaction of 5 products",
            goal: Goal::AtLeast(2.0),
            run: |stack, settings| Box::pin(flow(stack, third(settings.seconds), "uniform", 5)),
        },
        Self {
            name: "idle-latency",
            what: "an order on an idle system, accepted to decided; one confirmed publish and one commit",
            goal: Goal::AtMost(3.0),
            run: |stack, settings| Box::pin(idle_latency(stack, third(settings.seconds))),
        },
        Self {
            name: "sync-first",
            what: "first sync of a catalogue; COPY out, piped into COPY in with the primary key",
            goal: Goal::AtMost(2.0),
            run: |stack, settings| Box::pin(sync_first(stack, settings.products)),
        },
        Self {
            name: "sync-same",
            what: "sync of a catalogue that did not change; COPY out",
            goal: Goal::AtMost(1.5),
            run: |stack, settings| Box::pin(sync_same(stack, settings.products)),
        },
        Self {
            name: "sync-changed",
            what: "sync with 1 % changed; sync with nothing changed",
            goal: Goal::AtMost(2.0),
            run: |stack, settings| Box::pin(sync_changed(stack, settings.products)),
        },
        Self {
            name: "audit",
            what: "audit of old orders; a sequential scan of the same tables",
            goal: Goal::AtMost(3.0),
            run: |stack, settings| Box::pin(audit(stack, settings)),
        },
        Self {
            name: "grown",
            what: "orders told, with old orders and a large catalogue; the same on empty tables",
            goal: Goal::AtLeast(0.85),
            run: |stack, settings| Box::pin(grown(stack, settings)),
        },
    ];
}

fn third(of: u64) -> u64 {
    (of / 3).max(1)
}

/// Everything of ours is empty again, and the vendors list the products that are ordered.
async fn reset(stack: &mut Stack) -> anyhow::Result<()> {
    stack.let_run(&[]).await?;
    stack
        .connect("ordersdb")
        .await?
        .batch_execute(
            "TRUNCATE orders, stock_updates, listed_updates, order_events, vendor_changes, stock, sent_orders, outbox;
             UPDATE vendors SET current_run = 0, completed_run = 0, last_sync_at = NULL",
        )
        .await?;
    for (vendor, rest) in [("vendora", 0), ("vendorb", 1)] {
        stack
            .connect(vendor)
            .await?
            .batch_execute(&format!(
                "TRUNCATE products, stock_ledger;
                 INSERT INTO products SELECT 'a' || lpad(n::text, 7, '0'), 'Product ' || n, 1000000000
                 FROM generate_series(1, {PRODUCTS}) n WHERE n % 2 = {rest}"
            ))
            .await?;
    }
    stack.run(&["sync", "--once"]).await?;
    tidy(stack).await
}

/// What autovacuum would do, so that it does not begin in the middle of a measurement.
async fn tidy(stack: &Stack) -> anyhow::Result<()> {
    for database in ["ordersdb", "vendora", "vendorb"] {
        let connection = stack.connect(database).await?;
        connection.batch_execute("VACUUM ANALYZE").await?;
        connection.batch_execute("CHECKPOINT").await?;
    }
    Ok(())
}

/// Places orders with all of the product at work, and returns the rate at which vendors were told of them.
async fn place(
    stack: &mut Stack,
    during: u64,
    distribution: &str,
    lines: usize,
) -> anyhow::Result<Reading> {
    stack.let_run(&["serve", "sync", "work"]).await?;
    let report = bench(
        stack,
        &[
            "--connections",
            CONNECTIONS,
            "--duration",
            &during.to_string(),
            "--warm-up",
            "3",
            "--drain",
            DRAIN_S,
            "--products",
            &PRODUCTS.to_string(),
            "--distribution",
            distribution,
            "--lines",
            &lines.to_string(),
        ],
    )
    .await?;
    ensure!(report["unfinished"] == 0, "not all was told: {report}");
    ensure!(
        report["by_status"]["confirmed"] == report["accepted"]["orders"],
        "not all was confirmed: {report}"
    );
    stack.note_peaks();
    Ok(Reading {
        value: number(&report["told"]["per_second"])?,
        unit: "orders/s",
    })
}

async fn bench(stack: &mut Stack, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
    let url = stack.api.clone();
    let all = [&["bench", "--json", "--url", &url], arguments].concat();
    Ok(serde_json::from_str(&stack.run(&all).await?)?)
}

fn number(value: &serde_json::Value) -> anyhow::Result<f64> {
    value
        .as_f64()
        .with_context(|| format!("{value} is no number"))
}

async fn flow(
    stack: &mut Stack,
    during: u64,
    distribution: &str,
    lines: usize,
) -> anyhow::Result<(Reading, Reading)> {
    reset(stack).await?;
    reference::prepare(stack).await?;
    let products = if distribution == "hot" { 1 } else { PRODUCTS };
    let script = order_script(lines, products);
    let reference = pgbench(stack, &script, ORDERING, Duration::from_secs(third(during))).await?;
    let ours = place(stack, during, distribution, lines).await?;
    Ok((reference, ours))
}

async fn accept(stack: &mut Stack, during: u64) -> anyhow::Result<(Reading, Reading)> {
    reset(stack).await?;
    reference::prepare(stack).await?;
    let reference = pgbench(stack, INSERT_SCRIPT, INSERTING, Duration::from_secs(during)).await?;
    stack.let_run(&["serve"]).await?;
    let report = bench(
        stack,
        &[
            "--connections",
            "64",
            "--duration",
            &during.to_string(),
            "--warm-up",
            "2",
            "--drain",
            "1",
        ],
    )
    .await?;
    let ours = Reading {
        value: number(&report["accepted"]["per_second"])?,
        unit: "orders/s",
    };
    // What was promised is kept, before the tables are emptied.
    stack.let_run(&["serve", "sync", "work"]).await?;
    let orders = stack.connect("ordersdb").await?;
    let until = Instant::now() + Duration::from_secs(300);
    loop {
        let pending: i64 = orders
            .query_one("SELECT count(*) FROM orders WHERE status = 'pending'", &[])
            .await?
            .get(0);
        if pending == 0 {
            break;
        }
        ensure!(Instant::now() < until, "{pending} orders stay pending");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    stack.note_peaks();
    Ok((reference, ours))
}

/// Orders that are placed each second on an idle system, so that each finds it as it is when nothing is done.
const IDLE_RATE: u64 = 20;

async fn idle_latency(stack: &mut Stack, during: u64) -> anyhow::Result<(Reading, Reading)> {
    reset(stack).await?;
    reference::prepare(stack).await?;
    let ms = |value| Reading { value, unit: "ms" };
    // Each by itself and without a pause: the least that they take.
    let commits = pgbench(stack, INSERT_SCRIPT, 1, Duration::from_secs(during)).await?;
    let publisher = reference_publisher(stack)?;
    let publish_ms = confirmed_publish_ms(&publisher).await?;
    let reference = ms(1000.0 / commits.value + publish_ms);
    let idle = ms(commit_and_publish_ms(stack, &publisher, during).await?);
    publisher.close(Duration::from_secs(5)).await;
    say(&format!(
        "  the commit and the publish one after the other, on an idle system too: {idle}"
    ));
    stack.let_run(&["serve", "sync", "work"]).await?;
    let report = bench(
        stack,
        &[
            "--connections",
            "4",
            "--rate",
            &IDLE_RATE.to_string(),
            "--duration",
            &during.to_string(),
            "--warm-up",
            "2",
        ],
    )
    .await?;
    let ours = number(&report["decided"]["latency"]["p50_ms"])?;
    Ok((reference, ms(ours)))
}

fn reference_publisher(stack: &Stack) -> anyhow::Result<Publisher> {
    let settings = mq::Settings {
        queue_prefix: "reference.".into(),
        ..stack.broker()?
    };
    Ok(Publisher::start(settings, "reference"))
}

async fn publish_once(publisher: &Publisher) -> bool {
    let message = Message {
        queue: Queue::Orders,
        message_id: "reference".to_owned(),
        headers: Headers::new(),
        body: vec![b'x'; 200],
    };
    let results = publisher
        .publish(vec![message], Duration::from_secs(5))
        .await;
    results.iter().all(Result::is_ok)
}

/// The median of some confirmed publishes, each right after the one before.
async fn confirmed_publish_ms(publisher: &Publisher) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    let until = Instant::now() + Duration::from_secs(60);
    while times.len() < 200 {
        ensure!(Instant::now() < until, "the broker confirms nothing");
        let begun = Instant::now();
        if publish_once(publisher).await {
            times.push(begun.elapsed().as_secs_f64() * 1000.0);
        } else {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(median(times))
}

/// The median of a commit of one row with a confirmed publish after it, as often as orders are placed.
async fn commit_and_publish_ms(
    stack: &Stack,
    publisher: &Publisher,
    during: u64,
) -> anyhow::Result<f64> {
    let database = stack.connect("reference").await?;
    let insert = database
        .prepare("INSERT INTO orders (product_id, quantity) VALUES ($1, 1)")
        .await?;
    let mut times = Vec::new();
    for _ in 0..(during * IDLE_RATE) {
        tokio::time::sleep(Duration::from_millis(1000 / IDLE_RATE)).await;
        let begun = Instant::now();
        database.execute(&insert, &[&1_i32]).await?;
        ensure!(publish_once(publisher).await, "a publish has no confirm");
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(median(times))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// vendorA lists so many products, besides those that are ordered.
async fn list_products(stack: &Stack, products: u64) -> anyhow::Result<()> {
    let vendor = stack.connect("vendora").await?;
    vendor
        .batch_execute(&format!(
            "INSERT INTO products SELECT 'm' || lpad(n::text, 9, '0'), 'Product of the catalogue ' || n, n % 1000
             FROM generate_series(1, {products}) n ON CONFLICT DO NOTHING"
        ))
        .await?;
    vendor.batch_execute("VACUUM ANALYZE").await?;
    Ok(())
}

async fn sync_once(stack: &mut Stack) -> anyhow::Result<Reading> {
    let begun = Instant::now();
    stack
        .run(&["sync", "--once", "--vendor", "vendorA"])
        .await?;
    Ok(seconds(begun.elapsed()))
}

async fn sync_first(stack: &mut Stack, products: u64) -> anyhow::Result<(Reading, Reading)> {
    reset(stack).await?;
    list_products(stack, products).await?;
    stack
        .connect("reference")
        .await?
        .batch_execute(
            "DROP TABLE IF EXISTS copied;
             CREATE TABLE copied (id text COLLATE \"C\" PRIMARY KEY, name text NOT NULL, stock bigint NOT NULL)",
        )
        .await?;
    let reference = shell(&format!(
        "{} -c 'COPY (SELECT id, name, stock FROM products) TO STDOUT' | {} -c 'COPY copied FROM STDIN'",
        psql(stack, "vendora")?,
        psql(stack, "reference")?
    ))
    .await?;
    let ours = sync_once(stack).await?;
    Ok((reference, ours))
}

/// The catalogue is listed and synced.
async fn with_catalogue(stack: &mut Stack, products: u64) -> anyhow::Result<()> {
    let known: i64 = stack
        .connect("ordersdb")
        .await?
        .query_one("SELECT count(*) FROM stock", &[])
        .await?
        .get(0);
    if known.unsigned_abs() < products {
        reset(stack).await?;
        list_products(stack, products).await?;
        sync_once(stack).await?;
        tidy(stack).await?;
    }
    stack.let_run(&[]).await
}

async fn sync_same(stack: &mut Stack, products: u64) -> anyhow::Result<(Reading, Reading)> {
    with_catalogue(stack, products).await?;
    let reference = shell(&format!(
        "{} -c 'COPY (SELECT id, name, stock FROM products) TO STDOUT' > /dev/null",
        psql(stack, "vendora")?
    ))
    .await?;
    let ours = sync_once(stack).await?;
    Ok((reference, ours))
}

async fn sync_changed(stack: &mut Stack, products: u64) -> anyhow::Result<(Reading, Reading)> {
    with_catalogue(stack, products).await?;
    let reference = sync_once(stack).await?;
    // Others each time.
    let changed = stack
        .connect("vendora")
        .await?
        .execute(
            "UPDATE products SET stock = stock + 1 WHERE hashtextextended(id, txid_current()) % 100 = 0",
            &[],
        )
        .await?;
    anyhow::ensure!(
        changed > products / 200,
        "only {changed} of {products} products changed"
    );
    let ours = sync_once(stack).await?;
    Ok((reference, ours))
}

/// Old orders, all of them confirmed and closed, for products of the catalogue; the books stay right.
async fn with_old_orders(stack: &mut Stack, settings: &Settings) -> anyhow::Result<()> {
    with_catalogue(stack, settings.products).await?;
    let orders = stack.connect("ordersdb").await?;
    let known: i64 = orders
        .query_one(
            "SELECT reltuples::bigint FROM pg_class WHERE oid = 'orders'::regclass",
            &[],
        )
        .await?
        .get(0);
    if known.unsigned_abs() >= settings.orders / 2 {
        return Ok(());
    }
    say(&format!("  writing {} old orders", settings.orders));
    let id = |first: char| {
        format!(
            "('019{first}' || lpad(to_hex(n), 8, '0') || '7' || lpad(to_hex(n % 4096), 3, '0') || '8' \
             || lpad(to_hex(n), 15, '0'))::uuid"
        )
    };
    let (order, update) = (id('0'), id('1'));
    let product = format!("'m' || lpad((1 + n % {})::text, 9, '0')", settings.products);
    let all = format!("generate_series(1::bigint, {}) n", settings.orders);
    let at = "timestamptz '2026-01-01' + n * interval '1 millisecond'";
    orders
        .batch_execute(&format!(
            "SET session_replication_role = replica;
             INSERT INTO orders (id, caller, lines, status, accepted_at, decided_at)
             SELECT {order}, 'bench', jsonb_build_array(jsonb_build_object('productId', {product}, 'quantity', 1)),
                 'confirmed', {at}, {at} FROM {all};
             INSERT INTO stock_updates
                 (id, order_id, product_id, vendor_id, delta, state, created_at, acknowledged_at, closed_at)
             SELECT {update}, {order}, {product}, 'vendorA', -1, 'applied', {at}, {at}, {at} FROM {all};
             UPDATE stock s SET first_on_hand = first_on_hand + taken.units FROM (
                 SELECT {product} AS product_id, count(*) AS units FROM {all} GROUP BY 1
             ) AS taken WHERE s.product_id = taken.product_id AND s.vendor_id = 'vendorA'"
        ))
        .await?;
    let source: String = orders
        .query_one("SELECT id::text FROM installation", &[])
        .await?
        .get(0);
    stack
        .connect("vendora")
        .await?
        .batch_execute(&format!(
            "INSERT INTO stock_ledger (id, source, product_id, delta, outcome, recorded_at)
             SELECT {update}, '{source}', {product}, -1, 'applied', {at} FROM {all}"
        ))
        .await?;
    tidy(stack).await
}

async fn audit(stack: &mut Stack, settings: &Settings) -> anyhow::Result<(Reading, Reading)> {
    with_old_orders(stack, settings).await?;
    let scan = |tables: &[&str]| -> String {
        let counts: Vec<String> = tables
            .iter()
            .map(|table| format!("SELECT count(*) FROM {table}"))
            .collect();
        format!(
            "SET max_parallel_workers_per_gather = 0; SET enable_indexonlyscan = off; SET enable_bitmapscan = off; {}",
            counts.join("; ")
        )
    };
    let reference = shell(&format!(
        "{} -c '{}' > /dev/null && {} -c '{}' > /dev/null",
        psql(stack, "ordersdb")?,
        scan(&["orders", "stock_updates", "stock"]),
        psql(stack, "vendora")?,
        scan(&["stock_ledger"])
    ))
    .await?;
    let begun = Instant::now();
    stack.run(&["audit", "--json"]).await?;
    Ok((reference, seconds(begun.elapsed())))
}

async fn grown(stack: &mut Stack, settings: &Settings) -> anyhow::Result<(Reading, Reading)> {
    // Filled tables cannot be emptied and filled again for each round, so the empty ones come first, all at once.
    let during = third(settings.seconds);
    if stack.empty_rates.is_empty() {
        for _ in 0..settings.rounds {
            reset(stack).await?;
            let rate = place(stack, during, "uniform", 1).await?;
            stack.empty_rates.push(rate.value);
        }
    }
    with_old_orders(stack, settings).await?;
    let empty = stack.empty_rates.pop().context("a rate for each round")?;
    let ours = place(stack, during, "uniform", 1).await?;
    stack.let_run(&[]).await?;
    tidy(stack).await?;
    if stack.empty_rates.is_empty() {
        // Nothing is left for another case to trip over.
        reset(stack).await?;
    }
    Ok((
        Reading {
            value: empty,
            unit: "orders/s",
        },
        ours,
    ))
}
