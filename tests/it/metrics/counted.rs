//! One shop, each part of it a process, and figures that are right to the unit.

use std::path::PathBuf;

use serde_json::json;
use stockctl::mq::Queue;

use super::files::assert_documented;
use super::promtool;
use crate::support::keep_alive::KeepAlive;
use crate::support::messages::publish_raw;
use crate::support::scrape::Scrape;
use crate::support::{Process, Proxy, Running, Shop, ShopOptions, eventually, reqwest_client};

/// A shop at work, behind proxies that a test can cut.
struct AtWork {
    shop: Shop,
    serve: Process,
    work: Process,
    sync: Process,
    before_postgresql: Proxy,
    before_rabbitmq: Proxy,
    before_vendors: Proxy,
    _vendors: Running,
}

/// A configuration with one part of its text replaced by another address.
fn write(shop: &Shop, name: &str, changes: &[(String, String)]) -> PathBuf {
    let mut text = std::fs::read_to_string(&shop.config_file).expect("readable");
    for (from, to) in changes {
        assert!(text.contains(from), "{from} is in {text}");
        text = text.replace(from, to);
    }
    let path = shop.config_file.with_file_name(name);
    std::fs::write(&path, text).expect("written");
    path
}

fn port(url: &str) -> u16 {
    let url: url::Url = url.parse().expect("a URL");
    url.port().expect("a port")
}

impl AtWork {
    async fn open() -> Self {
        let mut shop = Shop::with(ShopOptions {
            // Synced once, at its start, so that what is open stays so.
            config: "[orders]\nretry_delay_ms = 200\n[vendor_sync]\nretry_delay_ms = 200\ntimeout_ms = 20000\n\
                     [sync]\nschedule = \"0 0 0 1 1 *\"\n[metrics]\nlisten = \"127.0.0.1:0\"\n"
                .into(),
            ..ShopOptions::default()
        })
        .await;
        // While it ends, an idle connection of the test is patiently waited for.
        shop.reconfigure(|text| {
            text.replace("[http]\n", "[http]\nshutdown_deadline_ms = 120000\n")
        });
        let vendors = shop.serve_vendors();

        let (postgresql, rabbitmq) = (
            format!(":{}/", port(shop.own_database_url())),
            format!(":{}/", port(&shop.broker().urls[0])),
        );
        let server = |port: &str| format!("127.0.0.1{}", port.trim_end_matches('/'));
        let before_postgresql = Proxy::before(server(&postgresql)).await;
        let before_rabbitmq = Proxy::before(server(&rabbitmq)).await;
        let before_vendors = Proxy::before(shop.vendor_address().to_string()).await;
        let ours = shop.own_database_url().to_owned();
        let proxied = ours.replace(
            &postgresql,
            &format!(":{}/", before_postgresql.address.port()),
        );
        let for_serve = write(&shop, "serve.toml", &[(ours, proxied)]);
        let for_work = write(
            &shop,
            "work.toml",
            &[
                (rabbitmq, format!(":{}/", before_rabbitmq.address.port())),
                (
                    format!("http://{}/", shop.vendor_address()),
                    format!("http://{}/", before_vendors.address),
                ),
            ],
        );

        let sync = shop.start(&["sync"]);
        let work = Process::configured(&for_work, &["work"]);
        let file = for_serve.to_str().expect("UTF-8");
        let serve = Process::start_with_socket(&["--config", file, "serve"], shop.listener(), &[]);
        eventually("the vendors are synced", || async {
            let synced = "SELECT count(*) AS n FROM vendors WHERE completed_run > 0";
            (shop.count(synced).await == 2).then_some(())
        })
        .await;
        Self {
            shop,
            serve,
            work,
            sync,
            before_postgresql,
            before_rabbitmq,
            before_vendors,
            _vendors: vendors,
        }
    }

    /// Waits until a process shows a value.
    async fn shows(&self, process: &Process, series: &str, value: f64) -> Scrape {
        eventually(&format!("{series} is {value}"), || async {
            let scrape = process.scrape().await;
            (scrape.value(series) == value).then_some(scrape)
        })
        .await
    }

    /// Seven orders: five that are confirmed, and two that are rejected. One of them comes again, once as it was and
    /// once with another body, and what is no order is refused.
    async fn trade(&self) {
        let keyed = async |quantity: i64| {
            let request = self
                .shop
                .http
                .post(format!("{}/orders", self.shop.url))
                .header("Idempotency-Key", "k")
                .json(&json!({"productId": "p1", "quantity": quantity}));
            self.shop.send(request).await
        };
        let (status, first) = keyed(1).await;
        assert_eq!(status, 202, "{first}");
        assert_eq!(keyed(1).await.1["id"], first["id"]);
        assert_eq!(keyed(2).await.0, 422);
        let (status, _) = self
            .shop
            .post("/orders", json!({"productId": "p1", "quantity": 0}))
            .await;
        assert_eq!(status, 422);
        let mut told = vec![first["id"].as_str().expect("an id").to_owned()];
        for (product, quantity) in [("p1", 1), ("p1", 1), ("p3", 2), ("p3", 2)] {
            told.push(self.shop.order(&[(product, quantity)]).await);
        }
        for id in &told {
            self.shop.order_told(id).await;
        }
        for product in ["p1", "nothing"] {
            let id = self.shop.order(&[(product, 1000)]).await;
            self.shop.order_with_status(&id, "rejected").await;
        }
    }

    async fn assert_decided(&self) {
        let work = self.work.scrape().await;
        let decided = |outcome, reason| {
            work.value(&format!(
                "stockctl_orders_decided_total{{outcome=\"{outcome}\",reason=\"{reason}\"}}"
            ))
        };
        assert_eq!(decided("confirmed", ""), 5.0);
        assert_eq!(decided("rejected", "insufficient_stock"), 1.0);
        assert_eq!(decided("rejected", "unknown_product"), 1.0);
        assert_eq!(work.sum("stockctl_orders_decided_total"), 7.0);
        assert_eq!(
            work.values([
                "stockctl_order_decision_duration_seconds_count",
                "stockctl_order_decision_duration_seconds_bucket{le=\"+Inf\"}",
                "stockctl_decide_batch_orders_sum",
                "stockctl_vendor_updates_total{outcome=\"applied\",vendor=\"vendorA\"}",
                "stockctl_vendor_updates_total{outcome=\"applied\",vendor=\"vendorB\"}",
                "stockctl_vendor_breaker_open{vendor=\"vendorA\"}",
                "stockctl_orders_accepted_total{via=\"database\"}",
            ]),
            [7.0, 7.0, 7.0, 3.0, 2.0, 0.0, 0.0]
        );
        assert_eq!(
            work.value("stockctl_decide_batch_orders_count"),
            work.value("stockctl_decide_transaction_duration_seconds_count")
        );
        for vendor in ["vendorA", "vendorB"] {
            let calls =
                format!("stockctl_vendor_calls_total{{outcome=\"answered\",vendor=\"{vendor}\"}}");
            let timed =
                format!("stockctl_vendor_call_duration_seconds_count{{vendor=\"{vendor}\"}}");
            assert!(work.value(&calls) >= 1.0);
            assert_eq!(work.value(&calls), work.value(&timed));
        }
        // Orders decided together are told together, so five are told in five messages at most; the sweeper publishes besides
        // what has waited in the outbox, of whichever process.
        let published = work.value("stockctl_messages_published_total{result=\"confirmed\"}");
        let swept = work.value("stockctl_outbox_swept_total");
        assert!(published >= 2.0, "{published}");
        assert!(published - swept <= 5.0, "{published} {swept}");
        // What is decided before this process is connected to RabbitMQ is tried in vain, and left to the sweeper.
        let early = work.value("stockctl_messages_published_total{result=\"unavailable\"}");
        let tried = work.sum("stockctl_messages_published_total");
        assert_eq!(tried, published + early);
    }

    /// The sync's process has accepted, decided and told nothing; what it sees is the installation's.
    async fn assert_seen(&self) {
        let sync = self.sync.scrape().await;
        for vendor in ["vendorA", "vendorB"] {
            let of = |name: &str| sync.value(&format!("{name}{{vendor=\"{vendor}\"}}"));
            let rows = |kind: &str| {
                sync.value(&format!(
                    "stockctl_sync_rows_total{{kind=\"{kind}\",vendor=\"{vendor}\"}}"
                ))
            };
            let runs = |outcome: &str| {
                sync.value(&format!(
                    "stockctl_sync_runs_total{{outcome=\"{outcome}\",vendor=\"{vendor}\"}}"
                ))
            };
            assert_eq!((runs("done"), runs("failed")), (1.0, 0.0));
            assert_eq!(
                (
                    rows("listed"),
                    rows("read"),
                    rows("written"),
                    rows("skipped")
                ),
                (2.0, 2.0, 2.0, 0.0)
            );
            assert_eq!(of("stockctl_sync_duration_seconds_count"), 1.0);
            assert!(of("stockctl_vendor_last_sync_timestamp_seconds") > 1_700_000_000.0);
            assert_eq!(of("stockctl_vendor_sync_failing"), 0.0);
            assert_eq!(of("stockctl_vendor_unanswered_updates"), 0.0);
            assert_eq!(of("stockctl_vendor_lag_seconds"), 0.0);
        }
        assert_eq!(
            sync.values([
                "stockctl_vendor_open_units{vendor=\"vendorA\"}",
                "stockctl_vendor_open_units{vendor=\"vendorB\"}",
                "stockctl_vendor_open_updates{vendor=\"vendorA\"}",
                "stockctl_vendor_open_updates{vendor=\"vendorB\"}",
                "stockctl_postgresql_up",
                "stockctl_rabbitmq_up",
                "stockctl_orders_pending",
                "stockctl_outbox_messages",
                "stockctl_queue_messages_ready{queue=\"orders_queue\"}",
                "stockctl_queue_consumers{queue=\"orders_queue\"}",
                "stockctl_queue_consumers{queue=\"vendor_sync\"}",
                "stockctl_queue_stalled{queue=\"orders_queue\"}",
                "stockctl_audit_timestamp_seconds",
                "stockctl_orders_decided_total{outcome=\"confirmed\",reason=\"\"}",
            ]),
            [
                3.0, 4.0, 3.0, 2.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0
            ]
        );
        assert_eq!(
            sync.value("stockctl_postgresql_pool_max_connections{pool=\"orders\"}"),
            8.0
        );
    }

    /// PostgreSQL is lost to `serve`, which accepts an order through the broker; its figures are there all the same.
    async fn lose_postgresql(&self) {
        self.before_postgresql.cut();
        let id = self.shop.order(&[("p1", 1)]).await;
        let serve = self.serve.scrape().await;
        assert_eq!(
            serve.values([
                "stockctl_orders_accepted_total{via=\"database\"}",
                "stockctl_orders_accepted_total{via=\"broker\"}",
                "stockctl_orders_replayed_total",
                "stockctl_orders_refused_total{reason=\"key_taken\"}",
                "stockctl_orders_refused_total{reason=\"queue_full\"}",
                "stockctl_order_accept_duration_seconds_count",
                // The request that came again, and the one whose key was taken, had a transaction too.
                "stockctl_accept_batch_orders_sum",
                "stockctl_http_answers_total{class=\"4xx\"}",
                "stockctl_faults_total{fault=\"postgresql_away\"}",
                "stockctl_postgresql_up",
                "stockctl_rabbitmq_up",
            ]),
            [7.0, 1.0, 1.0, 1.0, 0.0, 8.0, 9.0, 2.0, 1.0, 0.0, 1.0]
        );
        assert!(
            serve.value(
                "stockctl_postgresql_failures_total{kind=\"not_connected\",pool=\"accept\"}"
            ) >= 1.0
        );
        self.before_postgresql.mend();
        self.shows(&self.serve, "stockctl_postgresql_up", 1.0).await;
        self.shop.order_told(&id).await;
    }

    /// RabbitMQ is lost to `work`, which finds it again.
    async fn lose_rabbitmq(&self) {
        let connections = ["work", "orders_queue", "vendor_sync"];
        self.before_rabbitmq.cut();
        for connection in connections {
            let connected = format!("stockctl_rabbitmq_connected{{connection=\"{connection}\"}}");
            self.shows(&self.work, &connected, 0.0).await;
        }
        self.before_rabbitmq.mend();
        for connection in connections {
            let again =
                format!("stockctl_rabbitmq_reconnections_total{{connection=\"{connection}\"}}");
            let scrape = self.shows(&self.work, &again, 1.0).await;
            assert_eq!(
                scrape.values([
                    &format!("stockctl_rabbitmq_connected{{connection=\"{connection}\"}}"),
                    "stockctl_faults_total{fault=\"rabbitmq_lost\"}",
                ]),
                [1.0, 3.0]
            );
        }
    }

    /// What is no order is dead-lettered.
    async fn send_nonsense(&self) {
        publish_raw(
            &self.shop.broker(),
            Queue::Orders,
            amiquip::AmqpProperties::default(),
            b"nonsense",
        )
        .await;
        let dead = "stockctl_messages_dead_lettered_total{queue=\"orders_queue\",reason=\"invalid_message\"}";
        self.shows(&self.work, dead, 1.0).await;
    }

    /// A vendor that is down for longer than a message has attempts is left alone, until it answers.
    async fn lose_a_vendor(&self) {
        self.before_vendors.cut();
        self.shop.order(&[("p3", 1)]).await;
        let dead = "stockctl_messages_dead_lettered_total{queue=\"vendor_sync\",reason=\"retries_exhausted\"}";
        let work = self.shows(&self.work, dead, 1.0).await;
        assert_eq!(
            work.values([
                "stockctl_messages_retried_total{queue=\"vendor_sync\"}",
                "stockctl_vendor_calls_total{outcome=\"down\",vendor=\"vendorB\"}",
                "stockctl_vendor_breaker_openings_total{vendor=\"vendorB\"}",
            ]),
            [3.0, 4.0, 0.0]
        );
        let id = self.shop.order(&[("p3", 1)]).await;
        let open = "stockctl_vendor_breaker_open{vendor=\"vendorB\"}";
        self.shows(&self.work, open, 1.0).await;
        self.before_vendors.mend();
        self.shop.order_told(&id).await;
        let work = self.shows(&self.work, open, 0.0).await;
        assert_eq!(
            work.values([
                "stockctl_vendor_breaker_openings_total{vendor=\"vendorB\"}",
                "stockctl_vendor_breaker_openings_total{vendor=\"vendorA\"}",
                dead,
            ]),
            [1.0, 0.0, 1.0]
        );
    }

    async fn audit(&self) {
        let ended = self.shop.run(&["audit"]).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let scrape = eventually("the audit is seen", || async {
            let scrape = self.sync.scrape().await;
            (scrape.value("stockctl_audit_timestamp_seconds") > 0.0).then_some(scrape)
        })
        .await;
        assert_eq!(
            scrape.value("stockctl_audit_violations{check=\"oversold\"}"),
            0.0
        );
        assert_eq!(
            scrape.value("stockctl_audit_failures{check=\"ledgers\"}"),
            0.0
        );
    }

    /// While `serve` finishes what is in hand it goes on showing what it counts, on open connections and on its listener.
    async fn end(mut self) {
        // Its client keeps connections open, which would be waited for.
        self.shop.http = reqwest_client();
        let address = self.shop.config.http.listen;
        let (mut idle, mut asking) = (KeepAlive::new(address), KeepAlive::new(address));
        // Connected before the end begins: who comes later is the next process's.
        for client in [&mut idle, &mut asking] {
            client.get("/healthz").await.expect("answered");
        }
        let listener = self.serve.metrics_address().await;
        self.serve.signal(nix::sys::signal::Signal::SIGTERM);
        loop {
            let answer = asking.get("/metrics").await.expect("answered");
            assert_eq!(answer.status, 200);
            if answer.is_last {
                break;
            }
        }
        // It waits for the idle connection still.
        let scrape = Scrape::of(&listener).await;
        assert!(scrape.sum("stockctl_orders_accepted_total") >= 8.0);
        drop(idle);
        let Self {
            serve, work, sync, ..
        } = &mut self;
        for process in [serve, work, sync] {
            assert_eq!(process.terminate().await, Some(0));
        }
    }
}

/// Its listener asks for no key: a page whose own name was made to mean this machine gets nothing.
async fn assert_kept_from_other_names(listener: &str) {
    let request = reqwest_client()
        .get(format!("http://{listener}/metrics"))
        .header("host", "evil.example");
    let answer = request.send().await.expect("answered");
    assert_eq!(answer.status(), 421);
    let problem: serde_json::Value = answer.json().await.expect("a problem");
    assert_eq!(problem["code"], "misdirected_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_process_counts_what_it_does_and_what_goes_wrong_to_the_unit() {
    let at_work = AtWork::open().await;
    at_work.trade().await;
    at_work.assert_decided().await;
    at_work.assert_seen().await;
    at_work.lose_postgresql().await;
    at_work.lose_rabbitmq().await;
    at_work.send_nonsense().await;
    at_work.lose_a_vendor().await;
    at_work.audit().await;

    let mut names = std::collections::BTreeSet::new();
    for process in [&at_work.serve, &at_work.work, &at_work.sync] {
        let scrape = process.scrape().await;
        names.extend(scrape.names());
        assert_kept_from_other_names(&process.metrics_address().await).await;
        let (is_content, said) = promtool(&["check", "metrics"], &scrape.text).await;
        assert!(is_content && said.is_empty(), "{said}{}", scrape.text);
        // No order, product or address is ever a label.
        for word in ["p1", "127.0.0.1", "/orders/"] {
            assert!(!scrape.text.contains(word), "{word} is in {}", scrape.text);
        }
    }
    assert_documented(&names);
    at_work.end().await;
}
