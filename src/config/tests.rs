//! The configuration as its readers meet it: which layer wins, and what is said when something is wrong.

#![expect(clippy::unwrap_used, reason = "a test may end at the first surprise")]

use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::ConfigError;
use super::{Config, QueueType, SecretUrl, layers, limits, load_from};
use crate::telemetry::Format;

/// What has no default.
const REQUIRED: &str = r#"
[database]
url = "postgres://stockctl:hush@db/ordersdb"
[rabbitmq]
url = "amqp://stockctl:hush@mq/%2f"
[vendors.vendorA]
database_url = "postgres://stockctl:hush@db/vendoradb"
api_url = "http://127.0.0.1:8080/vendors/vendorA"
"#;

fn load_text(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.toml");
    fs::write(&path, text).unwrap();
    load_from(Some(&path), Path::new("/nonexistent"), owned(variables))
}

fn owned(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// What a person is told, with the file's name in place of its path.
fn told(result: Result<Config, ConfigError>) -> String {
    let error = result.unwrap_err();
    let mut text = error.to_string();
    if let ConfigError::Unreadable { source, .. } = &error {
        write!(text, ": {source}").unwrap();
    }
    text.split(' ')
        .map(|word| match word.rfind("/test.toml") {
            Some(at) if word.starts_with('(') => format!("({}", &word[at + 1..]),
            Some(at) => word[at + 1..].to_owned(),
            None => word.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// What is said about each change of one key, a line each.
fn told_of_each(changes: &[(&str, &str)]) -> String {
    let mut lines = String::new();
    for change in changes {
        match load_text(REQUIRED, &[*change]) {
            Ok(_) => writeln!(lines, "{} = {}: accepted", change.0, change.1).unwrap(),
            Err(ConfigError::Invalid { problems }) => {
                for problem in problems {
                    writeln!(lines, "{problem}").unwrap();
                }
            }
            Err(other) => writeln!(lines, "{other}").unwrap(),
        }
    }
    lines
}

#[test]
fn what_is_not_set_has_its_default() {
    let config = load_text(REQUIRED, &[]).unwrap();
    assert_eq!(config.sync.schedule.to_string(), "*/30 * * * * *");
    assert_eq!(config.sync.chunk_rows.get(), 5000);
    let lines = [
        format!("{:?}", config.http),
        format!("{:?}", config.database),
        format!("{:?}", config.rabbitmq),
        format!("{:?}", config.orders),
        format!("{:?}", config.vendor_sync),
        format!("{:?}", config.work),
        format!("{:?}", config.metrics),
        format!("{:?}", config.telemetry),
        format!("{:?}", config.vendors),
        format!("{:?}", config.log),
    ];
    insta::assert_snapshot!(lines.join("\n"), @r#"
    Http { listen: 127.0.0.1:8080, shutdown_deadline: 10s, cors_origins: [], hosts: [], require_keys: false, rates: Rates { of_each: None, of_caller: {} }, connections_max: 20000, tls: None }
    Database { url: postgres://stockctl:***@db/ordersdb, pool_size: 8, connect_timeout: 2s, statement_timeout: 5s }
    RabbitMq { urls: [amqp://stockctl:***@mq/%2f], queue_prefix: "", queue_type: Quorum }
    Orders { retries_max: 3, retry_delay: 5s, batch_max: 1500, prefetch: 64 }
    VendorSync { retries_max: 3, retry_delay: 5s, prefetch: 64, timeout: 5s, updates_per_call_max: 1000 }
    Work { stalled_after: 300s }
    Metrics { listen: None }
    Telemetry { otlp_endpoint: None, sample_ratio: 0.1 }
    {"vendorA": Vendor { database_url: postgres://stockctl:***@db/vendoradb, api_url: http://127.0.0.1:8080/vendors/vendorA, api_key: None, api_ca: None, ledger: true, catalogue: Catalogue { table: TableName { schema: None, table: "products" }, id_column: "id", name_column: "name", stock_column: "stock" } }}
    Log { format: Auto, level: "info,actix_server=warn,amiquip=error" }
    "#);
}

#[test]
fn a_variable_goes_before_the_file_and_the_file_before_the_default() {
    let file = format!("{REQUIRED}[orders]\nretries_max = 7\nretry_delay_ms = 700\n");
    let config = load_text(&file, &[("STOCKCTL__ORDERS__RETRY_DELAY_MS", " 800 ")]).unwrap();
    assert_eq!(config.orders.retries_max, 7);
    assert_eq!(config.orders.retry_delay, Duration::from_millis(800));
    assert_eq!(config.orders.batch_max.get(), 1500);
}

#[test]
fn one_file_is_read_the_flag_before_the_variable_before_the_default_place() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, retries: u32| -> PathBuf {
        let path = directory.path().join(name);
        fs::write(
            &path,
            format!("{REQUIRED}[orders]\nretries_max = {retries}\n"),
        )
        .unwrap();
        path
    };
    let (flag, variable, fallback) = (file("flag", 1), file("variable", 2), file("fallback", 3));
    let variables = owned(&[("STOCKCTL_CONFIG", variable.to_str().unwrap())]);
    let empty = owned(&[("STOCKCTL_CONFIG", "")]);
    let retries = |config: Result<Config, ConfigError>| config.unwrap().orders.retries_max;
    assert_eq!(
        retries(load_from(Some(&flag), &fallback, variables.clone())),
        1
    );
    assert_eq!(retries(load_from(None, &fallback, variables)), 2);
    assert_eq!(retries(load_from(None, &fallback, empty)), 3);
    let missing = file("flag", 1).with_file_name("missing");
    for (files, read) in [
        ([fallback.as_path(), &flag], &fallback),
        ([&missing, &flag], &flag),
        ([&missing, &missing], &missing),
    ] {
        assert_eq!(super::first_there(files), read);
    }
}

#[test]
fn variables_alone_are_enough() {
    let variables = owned(&[
        ("STOCKCTL__DATABASE__URL", "postgres://db/ordersdb"),
        ("STOCKCTL__RABBITMQ__URL", "amqp://mq1, amqp://mq2:5673/%2f"),
        ("STOCKCTL__RABBITMQ__QUEUE_TYPE", "classic"),
        (
            "STOCKCTL__VENDORS__north_1__DATABASE_URL",
            "postgresql://db/north?sslmode=prefer",
        ),
        (
            "STOCKCTL__VENDORS__north_1__API_URL",
            "https://north.example/api/",
        ),
        ("STOCKCTL__VENDORS__north_1__LEDGER", "False"),
        ("STOCKCTL__LOG__FORMAT", "json"),
        ("STOCKCTL_TEST_DATABASE_URL", "another program's"),
    ]);
    let config = load_from(None, Path::new("/nonexistent"), variables).unwrap();
    let urls: Vec<&str> = config.rabbitmq.urls.iter().map(SecretUrl::expose).collect();
    assert_eq!(urls, ["amqp://mq1", "amqp://mq2:5673/%2f"]);
    assert_eq!(config.rabbitmq.queue_type, QueueType::Classic);
    assert_eq!(
        config.vendors["north_1"].api_url.expose(),
        "https://north.example/api"
    );
    assert!(!config.vendors["north_1"].ledger);
    assert_eq!(config.log.format, Format::Json);
}

#[test]
fn a_variable_finds_the_vendor_of_the_file_whatever_the_case() {
    let file = format!(
        "{REQUIRED}[vendors.b__B_]\ndatabase_url = \"postgres://db/b\"\napi_url = \"http://b\"\n"
    );
    let config = load_text(
        &file,
        &[
            ("STOCKCTL__VENDORS__VENDORA__LEDGER", "false"),
            ("STOCKCTL__VENDORS__B__B___LEDGER", "false"),
        ],
    )
    .unwrap();
    let ids: Vec<&String> = config.vendors.keys().collect();
    assert_eq!(ids, ["b__B_", "vendorA"]);
    assert!(config.vendors.values().all(|vendor| !vendor.ledger));
}

#[test]
fn a_list_of_the_file_is_taken_as_it_is() {
    let file = REQUIRED.replace(
        "\"amqp://stockctl:hush@mq/%2f\"",
        "[\"amqp://u:a,b@mq1\", \"amqp://mq2\"]",
    );
    let config = load_text(&file, &[]).unwrap();
    assert_eq!(config.rabbitmq.urls[0].expose(), "amqp://u:a,b@mq1");
    assert_eq!(config.rabbitmq.urls.len(), 2);
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_one() {
    let file = format!(
        "listen = \"127.0.0.1:1\"\n{REQUIRED}api_ur = \"x\"\n[htpp]\nlisten = \"127.0.0.1:1\"\n\
         [orders]\nretry_delay = 5\n[orders.deep]\ner = 1\n[sinc]\n[http]\n"
    );
    let variables = [
        ("STOCKCTL__ORDERS__BATCHMAX", "5"),
        ("STOCKCTL__VENDORS__LEDGER", "true"),
    ];
    insta::assert_snapshot!(told(load_text(&file, &variables)), @"
    the configuration will not do:
      htpp.listen (test.toml, line 12): there is no such key; the nearest one is http.listen
      listen (test.toml, line 1): there is no such key; the nearest one is http.listen
      orders.batchmax (STOCKCTL__ORDERS__BATCHMAX): there is no such key; the nearest one is orders.batch_max, set by STOCKCTL__ORDERS__BATCH_MAX
      orders.deep.er (test.toml, line 16): there is no such key; the nearest one is database.url
      orders.retry_delay (test.toml, line 14): there is no such key; the nearest one is orders.retry_delay_ms
      sinc (test.toml, line 17): there is no such section; the nearest one is sync
      vendors.ledger (STOCKCTL__VENDORS__LEDGER): there is no such key; the nearest one is vendors.vendorA.ledger, set by STOCKCTL__VENDORS__VENDORA__LEDGER
      vendors.vendorA.api_ur (test.toml, line 10): there is no such key; the nearest one is vendors.vendorA.api_url
    ");
}

#[test]
fn a_section_is_not_a_value_and_a_value_is_not_a_section() {
    insta::assert_snapshot!(
        told(load_text("http = 1\nvendors.vendorA = 2\n[log.level]\n[database.pool_size]\nx = 1", &[])),
        @"
    the configuration will not do:
      database.url: it is required and not set; set it in test.toml, or set STOCKCTL__DATABASE__URL
      rabbitmq.url: it is required and not set; set it in test.toml, or set STOCKCTL__RABBITMQ__URL
      vendors: at least one vendor is required; add a section [vendors.<id>] with database_url and api_url
      log.level (test.toml, line 3): it must be a text, not a section
      database.pool_size.x (test.toml, line 5): there is no such key; the nearest one is database.pool_size
      http (test.toml, line 1): it is a section with keys of its own, not a value
      vendors.vendorA (test.toml, line 2): there is no such key; the nearest one is vendors.<id>.ledger
    "
    );
}

#[test]
fn everything_that_is_missing_is_told_at_once() {
    let nothing = load_from(None, Path::new("/nonexistent"), []);
    insta::assert_snapshot!(told(nothing), @"
    the configuration will not do:
      database.url: it is required and not set; no file was found, so name one with --config, or set STOCKCTL__DATABASE__URL
      rabbitmq.url: it is required and not set; no file was found, so name one with --config, or set STOCKCTL__RABBITMQ__URL
      vendors: at least one vendor is required; add a section [vendors.<id>] with database_url and api_url
    ");
    insta::assert_snapshot!(told(load_text("[vendors.vendorA]\n[vendor.b]\napi_url = 1", &[])), @"
    the configuration will not do:
      database.url: it is required and not set; set it in test.toml, or set STOCKCTL__DATABASE__URL
      rabbitmq.url: it is required and not set; set it in test.toml, or set STOCKCTL__RABBITMQ__URL
      vendors.vendorA.database_url: it is required and not set; set it in test.toml, or set STOCKCTL__VENDORS__VENDORA__DATABASE_URL
      vendors.vendorA.api_url: it is required and not set; set it in test.toml, or set STOCKCTL__VENDORS__VENDORA__API_URL
      vendor.b.api_url (test.toml, line 3): there is no such key; the nearest one is vendors.vendorA.api_url
    ");
}

#[test]
fn the_rates_of_callers_are_read_and_what_is_no_rate_is_told() {
    let config = load_text(
        &format!(
            "[http]\nrate_limit_per_second = 10\nrate_limit_overrides = [\"a=5/50\", \"b = 7\"]\n{REQUIRED}"
        ),
        &[],
    )
    .unwrap();
    let rates = config.http.rates.get();
    let of = |rate: crate::limit::Rate| (rate.per_second.get(), rate.burst.get());
    assert_eq!(rates.of_each.map(of), Some((10, 10)));
    assert_eq!(of(rates.of_caller["a"]), (5, 50));
    assert_eq!(of(rates.of_caller["b"]), (7, 7));
    for (text, problem) in [
        ("rate_limit_burst = 10", "a burst alone is no limit"),
        ("rate_limit_per_second = 0", "from 1 to 100000"),
        ("rate_limit_overrides = [\"a\"]", "such as webshop=500/1000"),
        (
            "rate_limit_overrides = [\"=5\"]",
            "such as webshop=500/1000",
        ),
        (
            "rate_limit_overrides = [\"a=0/1\"]",
            "such as webshop=500/1000",
        ),
        (
            "rate_limit_overrides = [\"a=1/1000001\"]",
            "such as webshop=500/1000",
        ),
        (
            "rate_limit_overrides = [\"a=1\", \"a=2\"]",
            "it names a twice",
        ),
    ] {
        let told = told(load_text(&format!("[http]\n{text}\n{REQUIRED}"), &[]));
        assert!(told.contains(problem), "{text}: {told}");
    }
}

#[test]
fn the_metrics_are_for_this_machine_alone() {
    insta::assert_snapshot!(told_of_each(&[
        ("STOCKCTL__METRICS__LISTEN", "127.0.0.1:9464"),
        ("STOCKCTL__METRICS__LISTEN", "[::1]:0"),
        ("STOCKCTL__METRICS__LISTEN", "0.0.0.0:9464"),
        ("STOCKCTL__METRICS__LISTEN", "9464"),
    ]), @r#"
    STOCKCTL__METRICS__LISTEN = 127.0.0.1:9464: accepted
    STOCKCTL__METRICS__LISTEN = [::1]:0: accepted
    metrics.listen (STOCKCTL__METRICS__LISTEN): 0.0.0.0:9464 can be reached from other machines, and no API key is asked for there; only loopback addresses such as 127.0.0.1:9464 are possible, with an agent or a proxy on this machine
    metrics.listen (STOCKCTL__METRICS__LISTEN): it must be an IP address and a port such as 127.0.0.1:9464, not "9464"
    "#);
}

#[test]
fn a_value_that_will_not_do_is_told_with_what_would() {
    insta::assert_snapshot!(told_of_each(&[
        ("STOCKCTL__HTTP__LISTEN", "0.0.0.0:8080"),
        ("STOCKCTL__HTTP__LISTEN", "[::]:8080"),
        ("STOCKCTL__HTTP__LISTEN", "localhost:8080"),
        ("STOCKCTL__HTTP__LISTEN", "[::1]:0"),
        ("STOCKCTL__HTTP__LISTEN", "[::ffff:127.0.0.1]:80"),
        ("STOCKCTL__DATABASE__POOL_SIZE", "0"),
        ("STOCKCTL__DATABASE__POOL_SIZE", "101"),
        ("STOCKCTL__DATABASE__POOL_SIZE", "-1"),
        ("STOCKCTL__DATABASE__POOL_SIZE", "many"),
        ("STOCKCTL__DATABASE__POOL_SIZE", ""),
        ("STOCKCTL__RABBITMQ__QUEUE_PREFIX", "a/b"),
        ("STOCKCTL__RABBITMQ__QUEUE_PREFIX", &"x".repeat(65)),
        ("STOCKCTL__RABBITMQ__QUEUE_PREFIX", ""),
        ("STOCKCTL__RABBITMQ__QUEUE_TYPE", "Quorum"),
        ("STOCKCTL__SYNC__SCHEDULE", "*/5 * * * *"),
        ("STOCKCTL__SYNC__SCHEDULE", "61 * * * * *"),
        ("STOCKCTL__SYNC__SCHEDULE", "0 0 0 30 2 *"),
        ("STOCKCTL__SYNC__SCHEDULE", "@hourly"),
        ("STOCKCTL__VENDORS__VENDORA__LEDGER", "yes"),
        ("STOCKCTL__LOG__FORMAT", "xml"),
        ("STOCKCTL__LOG__LEVEL", "wran"),
    ]), @r#"
    http.listen (STOCKCTL__HTTP__LISTEN): 0.0.0.0:8080 can be reached from other machines, and without API keys whoever reaches it could order, cancel and change stock; set http.require_keys = true and make keys with `stockctl keys create`, or listen on a loopback address such as 127.0.0.1:8080
    http.listen (STOCKCTL__HTTP__LISTEN): [::]:8080 can be reached from other machines, and without API keys whoever reaches it could order, cancel and change stock; set http.require_keys = true and make keys with `stockctl keys create`, or listen on a loopback address such as 127.0.0.1:8080
    http.listen (STOCKCTL__HTTP__LISTEN): it must be an IP address and a port such as 127.0.0.1:8080, not "localhost:8080"
    STOCKCTL__HTTP__LISTEN = [::1]:0: accepted
    STOCKCTL__HTTP__LISTEN = [::ffff:127.0.0.1]:80: accepted
    database.pool_size (STOCKCTL__DATABASE__POOL_SIZE): it must be a whole number from 1 to 100, not 0
    database.pool_size (STOCKCTL__DATABASE__POOL_SIZE): it must be a whole number from 1 to 100, not 101
    database.pool_size (STOCKCTL__DATABASE__POOL_SIZE): it must be a whole number from 1 to 100, not -1
    database.pool_size (STOCKCTL__DATABASE__POOL_SIZE): it must be a whole number from 1 to 100, not "many"
    database.pool_size (STOCKCTL__DATABASE__POOL_SIZE): it must be a whole number from 1 to 100, not ""
    rabbitmq.queue_prefix (STOCKCTL__RABBITMQ__QUEUE_PREFIX): it may have at most 64 characters, of A-Z a-z 0-9 . _ - only; it is "a/b"
    rabbitmq.queue_prefix (STOCKCTL__RABBITMQ__QUEUE_PREFIX): it may have at most 64 characters, of A-Z a-z 0-9 . _ - only; it is "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"...
    STOCKCTL__RABBITMQ__QUEUE_PREFIX = : accepted
    rabbitmq.queue_type (STOCKCTL__RABBITMQ__QUEUE_TYPE): it must be quorum or classic, not "Quorum"
    sync.schedule (STOCKCTL__SYNC__SCHEDULE): "*/5 * * * *" is not a cron expression of six fields, the seconds first, such as "*/30 * * * * *"
    sync.schedule (STOCKCTL__SYNC__SCHEDULE): "61 * * * * *" is not a cron expression of six fields, the seconds first, such as "*/30 * * * * *": Seconds must be less than 59. ('61' specified.)
    sync.schedule (STOCKCTL__SYNC__SCHEDULE): "0 0 0 30 2 *" never comes due, so no vendor would ever be synced
    STOCKCTL__SYNC__SCHEDULE = @hourly: accepted
    vendors.vendorA.ledger (STOCKCTL__VENDORS__VENDORA__LEDGER): it must be true or false, not "yes"
    log.format (STOCKCTL__LOG__FORMAT): it must be auto, text or json, not "xml"
    log.level (STOCKCTL__LOG__LEVEL): the log level is not understood: wran is no level; for a target write wran=info (the levels are off, error, warn, info, debug, trace)
    "#);
}

#[test]
fn a_url_that_will_not_do_is_told_without_its_password() {
    let changes = [
        (
            "STOCKCTL__DATABASE__URL",
            "postgres://u:hush@db/x?sslmode=require",
        ),
        (
            "STOCKCTL__DATABASE__URL",
            "postgres://u:hush@db/x?ssl%6dode=verify-full",
        ),
        (
            "STOCKCTL__DATABASE__URL",
            "postgres://u:hush@db/x?sslmode=disable",
        ),
        ("STOCKCTL__DATABASE__URL", "mysql://u:hush@db/x"),
        ("STOCKCTL__DATABASE__URL", "host=db password=hush"),
        ("STOCKCTL__DATABASE__URL", "postgres:u:hush@db/x"),
        ("STOCKCTL__DATABASE__URL", "postgres:///x"),
        ("STOCKCTL__DATABASE__URL", "postgres://u:hu/sh@db/x"),
        ("STOCKCTL__DATABASE__URL", "postgres://u:12/hush@db/x"),
        ("STOCKCTL__DATABASE__URL", "postgres://u:12#hush@db/x"),
        ("STOCKCTL__DATABASE__URL", "postgres://u:12?hush@db/x"),
        ("STOCKCTL__DATABASE__URL", ""),
        ("STOCKCTL__RABBITMQ__URL", "amqps://u:hush@mq"),
        ("STOCKCTL__RABBITMQ__URL", "AMQPS://u:hush@mq"),
        ("STOCKCTL__RABBITMQ__URL", "amqp://mq,amqps://u:hush@mq"),
        ("STOCKCTL__RABBITMQ__URL", "amqp://u:hu,sh@mq"),
        ("STOCKCTL__RABBITMQ__URL", "amqp://u:hush@mq//"),
        ("STOCKCTL__RABBITMQ__URL", "amqp://u:hush@mq/a/b"),
        ("STOCKCTL__VENDORS__VENDORA__API_URL", "ftp://u:hush@vendor"),
        (
            "STOCKCTL__VENDORS__VENDORA__API_URL",
            "http://vendor/?key=hush",
        ),
        (
            "STOCKCTL__VENDORS__VENDORA__DATABASE_URL",
            "http://u:hush@vendor",
        ),
        ("STOCKCTL__LOG__LEVEL", "postgres://u:hush@db/x"),
        ("STOCKCTL__HTTP__LISTEN", "postgres://u:hush@db/x"),
    ];
    let told = told_of_each(&changes)
        .lines()
        .map(|line| {
            if line.ends_with("accepted") {
                "accepted"
            } else {
                line
            }
        })
        .collect::<Vec<_>>()
        .join("\n");
    assert!(!told.contains("hush"), "{told}");
    insta::assert_snapshot!(told, @"
    database.url (STOCKCTL__DATABASE__URL): encrypted connections to PostgreSQL are not supported yet, and without encryption the promise of this sslmode would be broken: only disable and prefer are possible
    database.url (STOCKCTL__DATABASE__URL): encrypted connections to PostgreSQL are not supported yet, and without encryption the promise of this sslmode would be broken: only disable and prefer are possible
    accepted
    database.url (STOCKCTL__DATABASE__URL): it must begin with postgres:// or postgresql://
    database.url (STOCKCTL__DATABASE__URL): it contains white space or a control character
    database.url (STOCKCTL__DATABASE__URL): it names no host
    database.url (STOCKCTL__DATABASE__URL): it names no host
    database.url (STOCKCTL__DATABASE__URL): it is not a URL postgres://... (invalid port number); special characters in a password must be percent-encoded (@ is %40, / is %2F, a comma is %2C)
    database.url (STOCKCTL__DATABASE__URL): it has an @ after the host, or a #; in a password these and / and ? must be percent-encoded (@ is %40, # is %23, / is %2F, ? is %3F)
    database.url (STOCKCTL__DATABASE__URL): it has an @ after the host, or a #; in a password these and / and ? must be percent-encoded (@ is %40, # is %23, / is %2F, ? is %3F)
    database.url (STOCKCTL__DATABASE__URL): it has an @ after the host, or a #; in a password these and / and ? must be percent-encoded (@ is %40, # is %23, / is %2F, ? is %3F)
    database.url (STOCKCTL__DATABASE__URL): it is empty; a URL postgres://... is needed
    rabbitmq.url (STOCKCTL__RABBITMQ__URL): amqps:// is not supported yet, and connecting without encryption instead would send the password in the clear: use amqp:// on a network that is trusted
    rabbitmq.url (STOCKCTL__RABBITMQ__URL): amqps:// is not supported yet, and connecting without encryption instead would send the password in the clear: use amqp:// on a network that is trusted
    rabbitmq.url (STOCKCTL__RABBITMQ__URL): number 2 of the list: amqps:// is not supported yet, and connecting without encryption instead would send the password in the clear: use amqp:// on a network that is trusted
    rabbitmq.url (STOCKCTL__RABBITMQ__URL): number 1 of the list: it is not a URL amqp://... (invalid port number); special characters in a password must be percent-encoded (@ is %40, / is %2F, a comma is %2C)
    rabbitmq.url (STOCKCTL__RABBITMQ__URL): the virtual host contains a slash; write it as %2F
    rabbitmq.url (STOCKCTL__RABBITMQ__URL): the virtual host contains a slash; write it as %2F
    vendors.vendorA.api_url (STOCKCTL__VENDORS__VENDORA__API_URL): it must begin with http:// or https://
    vendors.vendorA.api_url (STOCKCTL__VENDORS__VENDORA__API_URL): a path is appended to it, so it can have no query (?...)
    vendors.vendorA.database_url (STOCKCTL__VENDORS__VENDORA__DATABASE_URL): it must begin with postgres:// or postgresql://
    log.level (STOCKCTL__LOG__LEVEL): the log level is not understood: it is neither a level nor a list such as info,stockctl=debug (the levels are off, error, warn, info, debug, trace)
    http.listen (STOCKCTL__HTTP__LISTEN): it must be an IP address and a port such as 127.0.0.1:8080, not a URL
    ");
}

#[test]
fn values_of_the_wrong_type_are_told() {
    let file = r#"
        database = { url = 5, pool_size = "8", connect_timeout_ms = 1.5, statement_timeout_ms = 0xfffffffffffffffff }
        rabbitmq = { url = ["amqp://mq", 5], queue_type = true }
        sync.schedule = 2026-01-01
        vendors.v = { database_url = ["postgres://db/v"], api_url = "http://v", ledger = "true" }
    "#;
    insta::assert_snapshot!(told(load_text(file, &[])), @"
    the configuration will not do:
      database.url (test.toml, line 2): it must be a text, not a number
      database.pool_size (test.toml, line 2): it must be a whole number from 1 to 100, not a text
      database.connect_timeout_ms (test.toml, line 2): it must be a whole number from 100 to 60000, not a number with a fraction
      database.statement_timeout_ms (test.toml, line 2): it must be a whole number from 100 to 300000, not a number beyond all bounds
      rabbitmq.url (test.toml, line 3): the list must be of texts, not of a number
      rabbitmq.queue_type (test.toml, line 3): it must be a text, not true or false
      sync.schedule (test.toml, line 4): it must be a text, not a date or time
      vendors.v.database_url (test.toml, line 5): it must be a text, not a list
      vendors.v.ledger (test.toml, line 5): it must be true or false, not a text
    ");
    insta::assert_snapshot!(
        told(load_text(&REQUIRED.replace("\"amqp://stockctl:hush@mq/%2f\"", "[]"), &[])),
        @"
    the configuration will not do:
      rabbitmq.url (test.toml, line 5): the list is empty
    "
    );
}

#[test]
fn vendor_ids_are_checked() {
    let vendor = "database_url = \"postgres://db/v\"\napi_url = \"http://v\"\n";
    let long = "v".repeat(65);
    let mut file = REQUIRED.to_owned();
    for id in ["vendora", "\"a b\"", "\"new\\nline\"", "\"\"", &long] {
        write!(file, "[vendors.{id}]\n{vendor}").unwrap();
    }
    insta::assert_snapshot!(told(load_text(&file, &[])), @r"
    the configuration will not do:
      vendors. (test.toml, line 20): a vendor's id has 1 to 64 characters, of A-Z a-z 0-9 _ - only
      vendors.a b (test.toml, line 14): a vendor's id has 1 to 64 characters, of A-Z a-z 0-9 _ - only
      vendors.new\nline (test.toml, line 17): a vendor's id has 1 to 64 characters, of A-Z a-z 0-9 _ - only
      vendors.vendora (test.toml, line 11): it differs from vendors.vendorA in case only; rename one
      vendors.vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv (test.toml, line 23): a vendor's id has 1 to 64 characters, of A-Z a-z 0-9 _ - only
    ");
}

#[test]
fn a_vendor_without_a_ledger_names_its_table_and_columns_and_none_is_taken_that_cannot_be_one() {
    let file =
        format!("{REQUIRED}ledger = false\ntable = \"shop.items\"\nid_column = \"SKU \\\" no\"\n");
    let variables = [("STOCKCTL__VENDORS__VENDORA__STOCK_COLUMN", "quantity")];
    let config = load_text(&file, &variables).unwrap();
    insta::assert_debug_snapshot!(config.vendors["vendorA"].catalogue, @r#"
    Catalogue {
        table: TableName {
            schema: Some(
                "shop",
            ),
            table: "items",
        },
        id_column: "SKU \" no",
        name_column: "name",
        stock_column: "quantity",
    }
    "#);
    let of_63 = "é".repeat(31) + "x";
    let file = |table: &str| format!("{REQUIRED}ledger = false\ntable = \"{table}\"\n");
    for table in [of_63.clone(), format!("{of_63}.{of_63}")] {
        load_text(&file(&table), &[]).unwrap();
    }
    let mut lines = String::new();
    for table in [
        "",
        ".items",
        "shop.",
        "db.shop.items",
        "a\\u0000b",
        "shop.a\\u0000b",
        &format!("shop.{of_63}x"),
        &format!("{of_63}x.items"),
    ] {
        writeln!(lines, "{}", told(load_text(&file(table), &[]))).unwrap();
    }
    let columns = "id_column = \"\"\nname_column = \"a\\u0000b\"\nstock_column = 5\n";
    let file = format!("{REQUIRED}ledger = false\n{columns}");
    writeln!(lines, "{}", told(load_text(&file, &[]))).unwrap();
    insta::assert_snapshot!(lines, @r#"
    the configuration will not do:
      vendors.vendorA.table (test.toml, line 10): a name in PostgreSQL has 1 to 63 bytes, and no U+0000; "" has 0
    the configuration will not do:
      vendors.vendorA.table (test.toml, line 10): a name in PostgreSQL has 1 to 63 bytes, and no U+0000; "" has 0
    the configuration will not do:
      vendors.vendorA.table (test.toml, line 10): a name in PostgreSQL has 1 to 63 bytes, and no U+0000; "" has 0
    the configuration will not do:
      vendors.vendorA.table (test.toml, line 10): it must be a table or schema.table, not "db.shop.items": the database is that of database_url
    the configuration will not do:
      vendors.vendorA.table (test.toml, line 10): a name in PostgreSQL has 1 to 63 bytes, and no U+0000; "a\0b" has 3
    the configuration will not do:
      vendors.vendorA.table (test.toml, line 10): a name in PostgreSQL has 1 to 63 bytes, and no U+0000; "a\0b" has 3
    the configuration will not do:
      vendors.vendorA.table (test.toml, line 10): a name in PostgreSQL has 1 to 63 bytes, and no U+0000; "éééééééééééééééééééééééééééééééxx" has 64
    the configuration will not do:
      vendors.vendorA.table (test.toml, line 10): a name in PostgreSQL has 1 to 63 bytes, and no U+0000; "éééééééééééééééééééééééééééééééxx" has 64
    the configuration will not do:
      vendors.vendorA.id_column (test.toml, line 10): a name in PostgreSQL has 1 to 63 bytes, and no U+0000; "" has 0
      vendors.vendorA.name_column (test.toml, line 11): a name in PostgreSQL has 1 to 63 bytes, and no U+0000; "a\0b" has 3
      vendors.vendorA.stock_column (test.toml, line 12): it must be a text, not a number
    "#);
}

#[test]
fn a_vendor_with_a_ledger_has_the_table_of_our_schema() {
    let own = "table = \"products\"\nid_column = \"id\"\nname_column = \"name\"\nstock_column = \"stock\"\n";
    let config = load_text(&format!("{REQUIRED}{own}"), &[]).unwrap();
    assert_eq!(config, load_text(REQUIRED, &[]).unwrap());
    let others = "table = \"public.products\"\nid_column = \"sku\"\nname_column = \"title\"\nstock_column = \"qty\"\n";
    insta::assert_snapshot!(told(load_text(&format!("{REQUIRED}{others}"), &[])), @"
    the configuration will not do:
      vendors.vendorA.table (test.toml, line 9): a vendor with a ledger has its products where `stockctl migrate --vendors` puts them, in the table products (id, name, stock); set vendors.vendorA.ledger = false, or make products a view of the other table
      vendors.vendorA.id_column (test.toml, line 10): a vendor with a ledger has its products where `stockctl migrate --vendors` puts them, in the table products (id, name, stock); set vendors.vendorA.ledger = false, or make products a view of the other table
      vendors.vendorA.name_column (test.toml, line 11): a vendor with a ledger has its products where `stockctl migrate --vendors` puts them, in the table products (id, name, stock); set vendors.vendorA.ledger = false, or make products a view of the other table
      vendors.vendorA.stock_column (test.toml, line 12): a vendor with a ledger has its products where `stockctl migrate --vendors` puts them, in the table products (id, name, stock); set vendors.vendorA.ledger = false, or make products a view of the other table
    ");
}

#[test]
fn two_variables_for_one_key_are_refused() {
    let variables = [
        ("STOCKCTL__LOG__LEVEL", "info"),
        ("STOCKCTL__log__level", "debug"),
    ];
    insta::assert_snapshot!(told(load_text(REQUIRED, &variables)), @"
    the configuration will not do:
      log.level (STOCKCTL__log__level): STOCKCTL__LOG__LEVEL sets the same key; unset one of them
    ");
}

#[test]
fn a_file_that_is_not_toml_is_told_without_the_line_itself() {
    let broken = "[database]\nurl = \"postgres://u:hush@db/x\n";
    insta::assert_snapshot!(told(load_text(broken, &[])), @r#"the configuration file test.toml, line 2, is not TOML: invalid basic string, expected `"`"#);
    let unquoted = "[database]\nurl = postgres://u:hush@db/x\n";
    insta::assert_snapshot!(told(load_text(unquoted, &[])), @"the configuration file test.toml, line 2, is not TOML: string values must be quoted, expected literal string");
    let twice = "[log]\nlevel = \"info\"\nlevel = \"debug\"\n";
    insta::assert_snapshot!(told(load_text(twice, &[])), @"the configuration file test.toml, line 3, is not TOML: duplicate key");
}

#[test]
fn a_file_that_was_named_must_be_readable() {
    let missing = Path::new("/nonexistent/test.toml");
    let variables = owned(&[("STOCKCTL_CONFIG", "/nonexistent/test.toml")]);
    insta::assert_snapshot!(told(load_from(Some(missing), missing, [])), @"the configuration file test.toml (named by --config) cannot be read: No such file or directory (os error 2)");
    insta::assert_snapshot!(told(load_from(None, missing, variables)), @"the configuration file test.toml (named by STOCKCTL_CONFIG) cannot be read: No such file or directory (os error 2)");
    // The default place may be empty, but what is there and cannot be read is not passed over.
    let directory = load_from(None, Path::new("/"), []).unwrap_err();
    assert!(directory.source().is_some(), "{directory}");
}

#[test]
fn passwords_are_not_shown() {
    let file = format!(
        "{REQUIRED}[vendors.b]\ndatabase_url = \"postgres://db/b?user=x&password=hush\"\n\
         api_url = \"https://token:hush@b:8443/api\"\n"
    );
    let config = load_text(&file, &[]).unwrap();
    let shown = format!("{config:?} {config:#?} {}", config.database.url);
    assert!(!shown.contains("hush"), "{shown}");
    assert_eq!(
        config.database.url.expose(),
        "postgres://stockctl:hush@db/ordersdb"
    );
    let urls = [
        &config.database.url,
        &config.rabbitmq.urls[0],
        &config.vendors["b"].database_url,
        &config.vendors["b"].api_url,
        &config.vendors["vendorA"].api_url,
    ];
    insta::assert_snapshot!(urls.map(ToString::to_string).join("\n"), @"
    postgres://stockctl:***@db/ordersdb
    amqp://stockctl:***@mq/%2f
    postgres://db/b?***
    https://token:***@b:8443/api
    http://127.0.0.1:8080/vendors/vendorA
    ");
}

/// Every key with the text of its description in `config/default.toml`.
fn descriptions() -> Vec<(String, String)> {
    let mut described = Vec::new();
    let (mut section, mut comment) = (String::new(), String::new());
    for line in layers::DEFAULTS.lines() {
        let text = line.trim_start_matches('#');
        let is_setting = !line.starts_with("# ") && text.contains(" = ");
        if let Some(name) = text
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'))
        {
            name.clone_into(&mut section);
            comment.clear();
        } else if is_setting {
            let name = text.split(" = ").next().unwrap_or_default();
            described.push((format!("{section}.{name}"), std::mem::take(&mut comment)));
        } else {
            comment.push_str(text);
        }
    }
    described
}

#[test]
fn the_default_file_describes_every_key() {
    let described: Vec<String> = descriptions()
        .into_iter()
        .filter(|(_, comment)| !comment.is_empty())
        .map(|(key, _)| key)
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.toml");
    let webhook = "[webhooks.crm]\nurl = \"https://crm.example/\"\nsecret = \"whsec_\"\n";
    fs::write(&path, format!("{REQUIRED}{webhook}")).unwrap();
    let layers = layers::Layers::read(Some(&path), Path::new("/nonexistent"), []).unwrap();
    let mut reader = super::reader::Reader::new(layers);
    super::sections::config(&mut reader).unwrap();
    assert_eq!(described, reader.known_keys());
}

#[test]
fn the_default_file_names_the_bounds() {
    fn bounds<T: std::fmt::Display>(range: std::ops::RangeInclusive<T>) -> String {
        format!("{} to {}", range.start(), range.end())
    }
    let expected = [
        (
            "http.shutdown_deadline_ms",
            bounds(limits::SHUTDOWN_DEADLINE_MS),
        ),
        (
            "http.rate_limit_per_second",
            bounds(limits::RATE_PER_SECOND),
        ),
        ("http.rate_limit_burst", bounds(limits::RATE_BURST)),
        ("http.connections_max", bounds(limits::CONNECTIONS)),
        ("database.pool_size", bounds(limits::POOL_SIZE)),
        (
            "database.connect_timeout_ms",
            bounds(limits::CONNECT_TIMEOUT_MS),
        ),
        (
            "database.statement_timeout_ms",
            bounds(limits::STATEMENT_TIMEOUT_MS),
        ),
        ("orders.retries_max", bounds(limits::RETRIES)),
        ("orders.retry_delay_ms", bounds(limits::RETRY_DELAY_MS)),
        ("orders.batch_max", bounds(limits::ORDER_BATCH)),
        ("orders.prefetch", bounds(limits::PREFETCH)),
        ("vendor_sync.retries_max", bounds(limits::RETRIES)),
        ("vendor_sync.retry_delay_ms", bounds(limits::RETRY_DELAY_MS)),
        ("vendor_sync.prefetch", bounds(limits::PREFETCH)),
        ("vendor_sync.timeout_ms", bounds(limits::VENDOR_TIMEOUT_MS)),
        ("telemetry.sample_ratio", bounds(limits::SAMPLE_RATIO)),
        (
            "vendor_sync.updates_per_call_max",
            bounds(limits::UPDATES_PER_CALL),
        ),
        ("work.stalled_after_ms", bounds(limits::STALLED_AFTER_MS)),
        ("events.kept_for_ms", bounds(limits::EVENTS_KEPT_FOR_MS)),
        ("webhooks.retries_max", bounds(limits::WEBHOOK_RETRIES)),
        (
            "webhooks.retry_delay_ms",
            bounds(limits::WEBHOOK_RETRY_DELAY_MS),
        ),
        ("webhooks.timeout_ms", bounds(limits::VENDOR_TIMEOUT_MS)),
        ("webhooks.prefetch", bounds(limits::PREFETCH)),
        ("webhooks.calls_max", bounds(limits::WEBHOOK_CALLS)),
        ("sync.chunk_rows", bounds(limits::CHUNK_ROWS)),
    ];
    let described = descriptions();
    for (key, bounds) in expected {
        let comment = &described.iter().find(|(name, _)| name == key).unwrap().1;
        assert!(comment.contains(&format!(": {bounds}.")), "{key}: {bounds}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]

    #[test]
    fn whatever_the_file_and_the_variables_hold_it_is_a_configuration_or_told(
        text in proptest::prop_oneof![
            "\\PC{0,60}",
            "(\\[(http|database|vendors\\.[a-z.]{0,5})\\]\n)?(listen|url|[a-z_.]{1,8}) ?= ?(\"[^\"]{0,12}\"|-?[0-9]{1,20}|\\[\\]|\\{\\})\n",
        ],
        name in "STOCKCTL__(HTTP|DATABASE|SYNC|VENDORS__A|[A-Z_]{0,6})__[A-Z_]{0,8}",
        value in "\\PC{0,30}",
    ) {
        match load_text(&format!("{text}\n{REQUIRED}"), &[(&name, &value)]) {
            Ok(config) => {
                proptest::prop_assert!(
                    config.http.require_keys || super::reachable_from_here_only(config.http.listen).is_ok()
                );
                proptest::prop_assert!(!config.vendors.is_empty());
            }
            Err(error) => {
                let told = error.to_string();
                proptest::prop_assert!(!told.contains("hush"), "{told}");
            }
        }
    }
}
