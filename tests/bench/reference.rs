//! What the product is measured against: pgbench, COPY and a scan, on the same server.

use std::fmt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::process::Command;

use crate::stack::Stack;

/// A reading and its unit.
pub(crate) struct Reading {
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.value < 100.0 {
            write!(f, "{:.2} {}", self.value, self.unit)
        } else {
            write!(f, "{:.0} {}", self.value, self.unit)
        }
    }
}

/// PostgreSQL's own programs, of the newest version that is installed.
fn postgres_program(name: &str) -> anyhow::Result<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|versions| {
            versions
                .filter_map(|version| Some(version.ok()?.path().join("bin").join(name)))
                .filter(|program| program.exists())
                .collect()
        })
        .unwrap_or_default();
    found.sort();
    Ok(found.pop().unwrap_or_else(|| name.into()))
}

/// The reference's own tables, as anybody would make them.
pub(crate) async fn prepare(stack: &Stack) -> anyhow::Result<()> {
    stack
        .connect("reference")
        .await?
        .batch_execute(
            "DROP TABLE IF EXISTS products, orders;
             CREATE TABLE products (id integer PRIMARY KEY, name text NOT NULL, stock bigint NOT NULL) WITH (fillfactor = 50);
             INSERT INTO products SELECT n, 'Product ' || n, 1000000000 FROM generate_series(1, 1000) n;
             CREATE TABLE orders (
                 id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                 product_id integer NOT NULL, quantity integer NOT NULL, created_at timestamptz NOT NULL DEFAULT now()
             );
             CHECKPOINT",
        )
        .await?;
    stack
        .connect("reference")
        .await?
        .batch_execute("VACUUM ANALYZE")
        .await?;
    Ok(())
}

/// The bare transaction of an order, of some of so many products.
pub(crate) fn order_script(lines: usize, products: u32) -> String {
    use fmt::Write as _;
    let mut script = String::new();
    // In one order, or two of them deadlock.
    let span = products / u32::try_from(lines).unwrap_or(1);
    for line in 0..u32::try_from(lines).unwrap_or(1) {
        let _ = writeln!(
            script,
            "\\set p{line} random({}, {})",
            line * span + 1,
            (line + 1) * span
        );
    }
    script.push_str("BEGIN;\n");
    for line in 0..lines {
        let _ = writeln!(
            script,
            "SELECT stock FROM products WHERE id = :p{line} FOR UPDATE;\n\
             UPDATE products SET stock = stock - 1 WHERE id = :p{line};\n\
             INSERT INTO orders (product_id, quantity) VALUES (:p{line}, 1);"
        );
    }
    script.push_str("COMMIT;\n");
    script
}

/// A single row, inserted.
pub(crate) const INSERT_SCRIPT: &str =
    "\\set p random(1, 1000)\nINSERT INTO orders (product_id, quantity) VALUES (:p, 1);\n";

/// Transactions a second of a script.
pub(crate) async fn pgbench(
    stack: &Stack,
    script: &str,
    clients: u32,
    during: Duration,
) -> anyhow::Result<Reading> {
    let file = std::env::temp_dir().join(format!("stockctl-bench-{}.sql", std::process::id()));
    std::fs::write(&file, script)?;
    let output = Command::new(postgres_program("pgbench")?)
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=2"])
        .arg(format!("--client={clients}"))
        .arg(format!("--time={}", during.as_secs()))
        .arg(format!("--file={}", file.display()))
        .arg(stack.database_url("reference"))
        .stdin(Stdio::null())
        .output()
        .await
        .context("pgbench, of PostgreSQL's contributed programs, cannot be run")?;
    let _ = std::fs::remove_file(&file);
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "pgbench ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("tps = "))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("pgbench says nothing of its rate: {text}"))?;
    Ok(Reading {
        value,
        unit: "transactions/s",
    })
}

/// Seconds that a pipeline of psql takes.
pub(crate) async fn shell(pipeline: &str) -> anyhow::Result<Reading> {
    let begun = Instant::now();
    let output = Command::new("sh")
        .args(["-c", pipeline])
        .stdin(Stdio::null())
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(seconds(begun.elapsed()))
}

/// A time as a reading.
pub(crate) fn seconds(took: Duration) -> Reading {
    Reading {
        value: took.as_secs_f64(),
        unit: "s",
    }
}

/// psql for a database, as a word of a pipeline.
pub(crate) fn psql(stack: &Stack, database: &str) -> anyhow::Result<String> {
    Ok(format!(
        "{} --no-psqlrc --quiet --set=ON_ERROR_STOP=1 '{}'",
        postgres_program("psql")?.display(),
        stack.database_url(database)
    ))
}
