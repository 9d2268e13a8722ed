//! `stockctl status` and `stockctl config`: what somebody on call sees first.

use serde_json::{Value, json};
use stockctl::mq::Queue;

use crate::support::messages::{message, producer, publish};
use crate::support::{Ended, Process, Shop, eventually};

/// The document of `stockctl status --json`, and its exit code.
async fn status(shop: &Shop) -> (Option<i32>, Value) {
    let ended = shop.run(&["status", "--json"]).await;
    let document = serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended:?}"));
    (ended.code, document)
}

fn needs(document: &Value) -> String {
    let needs = document["needs"].as_array().expect("a list");
    let texts: Vec<&str> = needs
        .iter()
        .map(|need| need.as_str().expect("a text"))
        .collect();
    texts.join("\n")
}

/// A text with its figures and addresses made alike.
fn alike(text: &str, shop: &Shop) -> String {
    let mut text = text.to_owned();
    for address in [
        shop.own_database_url()
            .rsplit('@')
            .next()
            .expect("an address")
            .to_owned(),
        shop.config.rabbitmq.urls[0].to_string(),
    ] {
        text = text.replace(&address, "[address]");
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_from_the_first_start_to_a_dead_letter_what_needs_a_hand() {
    let shop = Shop::new().await;
    let (code, document) = status(&shop).await;
    assert_eq!((code, &document["isWell"]), (Some(5), &json!(false)));
    insta::assert_snapshot!(needs(&document), @"
    orders_queue does not exist: start `stockctl serve` or `stockctl work`, which declare it
    vendor_sync does not exist: start `stockctl serve` or `stockctl work`, which declare it
    the stock of vendorA was never read, so nothing is rejected for good: look whether `stockctl sync` runs
    the stock of vendorB was never read, so nothing is rejected for good: look whether `stockctl sync` runs
    ");

    let _parts = shop.open().await;
    let order = shop.order(&[("p1", 2)]).await;
    shop.order_told(&order).await;
    let document = eventually("all is well", || async {
        let (code, document) = status(&shop).await;
        (code == Some(0)).then_some(document)
    })
    .await;
    assert_eq!(needs(&document), "");
    assert_eq!(document["pending"]["count"], 0);
    let vendor = &document["vendors"][0];
    assert_eq!(
        (
            &vendor["id"],
            &vendor["openUpdates"],
            &vendor["unanswered"]["count"]
        ),
        (&json!("vendorA"), &json!(1), &json!(0))
    );

    let broken = message(Queue::Orders, "broken", "not an order");
    publish(&producer(&shop.broker()).await, vec![broken]).await;
    let document = eventually("the letter is told", || async {
        let (code, document) = status(&shop).await;
        (code == Some(5)).then_some(document)
    })
    .await;
    insta::assert_snapshot!(needs(&document), @"orders_dlq has 1 letter: see why with `stockctl dlq list orders_dlq`, put it right, then `stockctl dlq replay orders_dlq --all`");
    let Ended {
        code,
        stdout,
        stderr,
    } = shop.run(&["status"]).await;
    assert_eq!(
        (code, stderr.as_str()),
        (Some(5), "error: 1 thing needs a hand\n")
    );
    let without_times: Vec<String> = alike(&stdout, &shop)
        .lines()
        .map(|line| match line.starts_with("needs a hand") {
            true => "needs a hand  [time]".to_owned(),
            false => line.to_owned(),
        })
        .map(
            |line| match line.split_whitespace().collect::<Vec<_>>()[..] {
                [queue, ready, rate, consumers] if rate == "-" || rate.ends_with("/s") => {
                    format!("{queue:20}{ready:>8}{:>10}{consumers:>11}", "[rate]")
                }
                _ => line,
            },
        )
        .map(|line| match line.split_once(" ago ") {
            Some((vendor, after)) => {
                let id = vendor.split(' ').next().unwrap_or_default();
                format!("{id} [time] ago {after}")
            }
            None => line,
        })
        .collect();
    insta::assert_snapshot!(without_times.join("\n"), @"
    needs a hand  [time]
      - orders_dlq has 1 letter: see why with `stockctl dlq list orders_dlq`, put it right, then `stockctl dlq replay orders_dlq --all`

    PostgreSQL  up    [address]
    RabbitMQ    up    [address]
    orders      none pending
    outbox      none to be published

    QUEUE                  READY      RATE  CONSUMERS
    orders_dlq                 1    [rate]          0
    orders_queue               0    [rate]          1
    orders_retry_queue         0    [rate]          0
    vendor_sync_dlq            0    [rate]          0
    vendor_sync                0    [rate]          1
    vendor_sync_retry          0    [rate]          0

    VENDOR      LAST SYNC    OPEN  UNANSWERED   OLDEST  API
    vendorA [time] ago       1           0        -  ok
    vendorB [time] ago       0           0        -  never called
    ");

    let watching = shop.start(&["status", "--watch", "1", "--json"]);
    watching.writes("}\n{").await;
    watching.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(watching.ended().await.code, Some(5));
}

const SECRET: &str = "hush-hush";

fn configuration(more: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("shop.toml");
    let text = format!(
        "[database]\nurl = \"postgres://u:{SECRET}@127.0.0.1:1/ordersdb\"\n\
         [rabbitmq]\nurl = [\"amqp://u:{SECRET}@127.0.0.1:2/%2f\", \"amqp://u:{SECRET}@127.0.0.1:3/%2f\"]\n\
         [vendors.vendorA]\ndatabase_url = \"postgres://127.0.0.1:3/vendoradb?password={SECRET}\"\n\
         api_url = \"http://u:{SECRET}@127.0.0.1:4/\"\n{more}"
    );
    std::fs::write(&file, text).expect("written");
    let file = file.to_str().expect("UTF-8").to_owned();
    (directory, file)
}

#[tokio::test]
async fn status_works_while_both_stores_are_away_and_says_so() {
    let (_directory, file) = configuration("");
    let ended = Process::run(&["--config", &file, "status"]).await;
    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert!(!(ended.stdout.clone() + &ended.stderr).contains(SECRET));
    for told in [
        "  - PostgreSQL at 127.0.0.1:1/ordersdb cannot be reached: ",
        "(no order is accepted: both stores are away)\n",
        "  - RabbitMQ at 127.0.0.1:",
        "PostgreSQL  down  127.0.0.1:1/ordersdb",
        "RabbitMQ    down  amqp://u:***@127.0.0.1:2/%2f, amqp://u:***@127.0.0.1:3/%2f",
        "orders      not known while PostgreSQL is away",
        "not known while RabbitMQ is away",
    ] {
        assert!(ended.stdout.contains(told), "{told}: {}", ended.stdout);
    }
    assert!(!ended.stdout.contains('\x1b'), "no colour in a pipe");
}

#[tokio::test]
async fn the_configuration_is_shown_with_origins_and_without_secrets() {
    let (_directory, file) = configuration(&format!(
        "[orders]\nbatch_max = 7\n[webhooks.crm]\nurl = \"https://crm.example:8443/{SECRET}?a={SECRET}\"\n\
         secret = \"whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDeviBWMcjPyE=\"\n"
    ));
    let variables = [
        ("STOCKCTL__SYNC__CHUNK_ROWS", "8"),
        ("STOCKCTL__VENDORS__VENDORA__LEDGER", "false"),
    ];
    let shown = Process::start(&["--config", &file, "config", "show"], &variables)
        .ended()
        .await;
    assert_eq!((shown.code, shown.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(shown.stdout.replace(&file, "shop.toml"), @r#"
    database.connect_timeout_ms = 2000                            # built-in default
    database.pool_size = 8                                        # built-in default
    database.statement_timeout_ms = 5000                          # built-in default
    database.url = "postgres://u:***@127.0.0.1:1/ordersdb"        # shop.toml, line 2
    events.kept_for_ms = 86400000                                 # built-in default
    http.connections_max = 20000                                  # built-in default
    http.cors_origins = []                                        # built-in default
    http.hosts = []                                               # built-in default
    http.listen = "127.0.0.1:8080"                                # built-in default
    http.rate_limit_overrides = []                                # built-in default
    http.require_keys = false                                     # built-in default
    http.shutdown_deadline_ms = 10000                             # built-in default
    log.format = "auto"                                           # built-in default
    log.level = "info,actix_server=warn,amiquip=error"            # built-in default
    orders.batch_max = 7                                          # shop.toml, line 9
    orders.prefetch = 64                                          # built-in default
    orders.retries_max = 3                                        # built-in default
    orders.retry_delay_ms = 5000                                  # built-in default
    rabbitmq.queue_prefix = ""                                    # built-in default
    rabbitmq.queue_type = "quorum"                                # built-in default
    rabbitmq.url = ["amqp://u:***@127.0.0.1:2/%2f","amqp://u:***@127.0.0.1:3/%2f"]  # shop.toml, line 4
    sync.chunk_rows = 8                                           # STOCKCTL__SYNC__CHUNK_ROWS
    sync.schedule = "*/30 * * * * *"                              # built-in default
    telemetry.sample_ratio = 0.1                                  # built-in default
    vendor_sync.prefetch = 64                                     # built-in default
    vendor_sync.retries_max = 3                                   # built-in default
    vendor_sync.retry_delay_ms = 5000                             # built-in default
    vendor_sync.timeout_ms = 5000                                 # built-in default
    vendor_sync.updates_per_call_max = 1000                       # built-in default
    vendors.vendorA.api_url = "http://u:***@127.0.0.1:4/"         # shop.toml, line 7
    vendors.vendorA.database_url = "postgres://127.0.0.1:3/vendoradb?***"  # shop.toml, line 6
    vendors.vendorA.id_column = "id"                              # built-in default
    vendors.vendorA.ledger = false                                # STOCKCTL__VENDORS__VENDORA__LEDGER
    vendors.vendorA.name_column = "name"                          # built-in default
    vendors.vendorA.stock_column = "stock"                        # built-in default
    vendors.vendorA.table = "products"                            # built-in default
    webhooks.allow_private = false                                # built-in default
    webhooks.calls_max = 4                                        # built-in default
    webhooks.crm.secret = "***"                                   # shop.toml, line 12
    webhooks.crm.url = "https://crm.example:8443/***"             # shop.toml, line 11
    webhooks.prefetch = 200                                       # built-in default
    webhooks.retries_max = 4                                      # built-in default
    webhooks.retry_delay_ms = 5000                                # built-in default
    webhooks.timeout_ms = 10000                                   # built-in default
    work.stalled_after_ms = 300000                                # built-in default
    "#);
    let shown = Process::start(&["--config", &file, "config", "show", "--json"], &variables)
        .ended()
        .await;
    assert!(!shown.stdout.contains(SECRET), "{}", shown.stdout);
    let document: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    assert_eq!(
        document["sync.chunk_rows"],
        json!({"value": 8, "origin": "STOCKCTL__SYNC__CHUNK_ROWS"})
    );

    let checked = Process::start(&["--config", &file, "config", "check"], &variables)
        .ended()
        .await;
    assert_eq!(checked.code, Some(0));
    insta::assert_snapshot!(checked.stdout.replace(&file, "shop.toml"), @"the configuration will do: vendors vendorA; from the defaults, shop.toml, STOCKCTL__SYNC__CHUNK_ROWS, STOCKCTL__VENDORS__VENDORA__LEDGER");
    let (_directory, file) = configuration("[orders]\nbatchmax = 7\n");
    for what in ["check", "show"] {
        let refused = Process::run(&["--config", &file, "config", what]).await;
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(3), ""));
        assert!(
            refused
                .stderr
                .contains("the nearest one is orders.batch_max"),
            "{refused:?}"
        );
    }
}
