//! Traces, as a collector sees them that speaks OTLP over HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};
use stockctl::domain::trace::TraceContext;
use stockctl::mq::Queue;

use crate::support::scrape::Scrape;
use crate::support::stub::Stub;
use crate::support::{Process, Shop, ShopOptions, all_applied, eventually, messages};

/// A request that came.
#[derive(Clone)]
struct Came {
    traceparent: Option<String>,
    tracestate: Option<String>,
    body: Value,
}

/// A server that notes what comes: a collector of traces at `/v1/traces`, a vendor's API anywhere else.
struct Recorder {
    address: SocketAddr,
    came: Arc<Mutex<Vec<Came>>>,
    _server: Stub,
}

type Notes = Arc<Mutex<Vec<Came>>>;

async fn note(
    request: HttpRequest,
    body: web::Json<Value>,
    notes: web::Data<Notes>,
) -> HttpResponse {
    let header = |name: &str| {
        let value = request.headers().get(name)?;
        Some(value.to_str().expect("text").to_owned())
    };
    let answer = match request.path() {
        "/v1/traces" => json!({}),
        _ => all_applied(&body),
    };
    notes.lock().expect("no panic").push(Came {
        traceparent: header("traceparent"),
        tracestate: header("tracestate"),
        body: body.into_inner(),
    });
    HttpResponse::Ok().json(answer)
}

impl Recorder {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let came = Notes::default();
        let notes = web::Data::new(Arc::clone(&came));
        let server = Stub::serve(listener, move |services| {
            services
                .app_data(notes.clone())
                .app_data(web::JsonConfig::default().limit(4 << 20))
                .default_service(web::to(note));
        });
        Self {
            address,
            came,
            _server: server,
        }
    }

    fn came(&self) -> Vec<Came> {
        self.came.lock().expect("no panic").clone()
    }

    /// The spans that were exported so far.
    fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        for came in self.came() {
            for of_process in came.body["resourceSpans"].as_array().expect("a list") {
                let attributes = &of_process["resource"]["attributes"];
                let service = attribute(attributes, "service.name").expect("a name");
                for of_scope in of_process["scopeSpans"].as_array().expect("a list") {
                    let of_scope = of_scope["spans"].as_array().expect("a list");
                    spans.extend(of_scope.iter().map(|span| Span::read(&service, span)));
                }
            }
        }
        spans
    }
}

/// A span as the collector has it.
#[derive(Debug, Clone)]
struct Span {
    service: String,
    name: String,
    kind: u64,
    trace: String,
    id: String,
    parent: Option<String>,
    state: Option<String>,
    /// The traces that it has links to.
    links: Vec<String>,
    attributes: Value,
    is_failed: bool,
}

impl Span {
    fn read(service: &str, span: &Value) -> Self {
        let text = |name: &str| span[name].as_str().map(str::to_owned);
        let nanoseconds = |name: &str| {
            let number = text(name).expect("a number as a text");
            number.parse::<u64>().expect("a number")
        };
        assert!(nanoseconds("startTimeUnixNano") <= nanoseconds("endTimeUnixNano"));
        let links = span["links"].as_array().cloned().unwrap_or_default();
        Self {
            service: service.to_owned(),
            name: text("name").expect("a name"),
            kind: span["kind"].as_u64().expect("a number"),
            trace: text("traceId").expect("an id"),
            id: text("spanId").expect("an id"),
            parent: text("parentSpanId"),
            state: text("traceState"),
            links: links
                .iter()
                .map(|link| link["traceId"].as_str().expect("an id").to_owned())
                .collect(),
            attributes: span["attributes"].clone(),
            is_failed: span["status"]["code"] == 2,
        }
    }
}

fn attribute(attributes: &Value, name: &str) -> Option<String> {
    let mut all = attributes.as_array()?.iter();
    let value = &all.find(|one| one["key"] == name)?["value"];
    let value = value["stringValue"].as_str().or(value["intValue"].as_str());
    Some(value?.to_owned())
}

/// A shop whose `serve` is a process that serves the vendors as well, and whose processes export all that belongs to a
/// trace that is sampled, and nothing else.
async fn traced_shop(collector: &SocketAddr) -> Shop {
    let mut shop = Shop::with(ShopOptions {
        config: format!(
            "{}[telemetry]\notlp_endpoint = \"http://{collector}\"\nsample_ratio = 0.0\n[log]\nformat = \"json\"\n",
            ShopOptions::default().config
        ),
        ..ShopOptions::default()
    })
    .await;
    let (vendors, own) = (
        shop.vendor_address().to_string(),
        shop.config.http.listen.to_string(),
    );
    shop.reconfigure(|text| text.replace(&vendors, &own));
    shop.sync().await;
    shop
}

/// The API as a process of its own.
async fn serve(shop: &Shop) -> Process {
    let file = shop.config_file.to_str().expect("UTF-8").to_owned();
    let serving = Process::start_with_socket(&["--config", &file, "serve"], shop.listener(), &[]);
    eventually("the API is alive", || async {
        let asked = shop.http.get(format!("{}/healthz", shop.url));
        asked.send().await.ok()
    })
    .await;
    serving
}

/// Places an order in a trace.
async fn order_in(shop: &Shop, product: &str, traceparent: &str) -> String {
    let request = shop
        .http
        .post(format!("{}/orders", shop.url))
        .header("traceparent", traceparent)
        .header("tracestate", "shop=7")
        .json(&json!({"productId": product, "quantity": 1}));
    let (status, order) = shop.send(request).await;
    assert_eq!(status, 202, "{order}");
    order["id"].as_str().expect("an id").to_owned()
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn sampled() -> String {
    format!("00-{TRACE}-{CALLER}-01")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_one_trace_from_the_request_to_the_vendors_api() {
    let collector = Recorder::start();
    let shop = traced_shop(&collector.address).await;
    let mut serving = serve(&shop).await;
    let mut working = shop.start(&["work"]);
    // What is published before RabbitMQ is connected fails at first, and then leaves by the sweeper.
    let first = shop.order(&[("p1", 1)]).await;
    shop.order_told(&first).await;
    let id = order_in(&shop, "p1", &sampled()).await;
    shop.order_told(&id).await;
    let at_vendor = eventually("the span of the vendor's API is exported", || async {
        let spans = collector.spans();
        spans
            .into_iter()
            .find(|span| span.name == "POST /vendors/{vendor}/stock-updates")
    })
    .await;
    // What was still open is exported at the end.
    assert_eq!(serving.terminate().await, Some(0));
    assert_eq!(working.terminate().await, Some(0));
    let spans = collector.spans();
    let of_id: BTreeMap<&str, &Span> = spans.iter().map(|span| (span.id.as_str(), span)).collect();
    let mut way = Vec::new();
    let mut next = Some(&at_vendor);
    let mut above = None;
    while let Some(span) = next {
        assert_eq!(span.trace, TRACE);
        assert_eq!(span.state.as_deref(), Some("shop=7"));
        assert!(!span.is_failed, "{span:?}");
        way.push(format!("{} {}: {}", span.service, span.kind, span.name));
        above = span.parent.clone();
        next = of_id.get(above.as_deref().unwrap_or_default()).copied();
    }
    insta::assert_snapshot!(way.join("\n"), @"
    stockctl-serve 2: POST /vendors/{vendor}/stock-updates
    stockctl-work 3: POST stock-updates
    stockctl-work 5: push updates
    stockctl-work 4: publish vendor_sync
    stockctl-work 5: decide orders
    stockctl-serve 4: publish orders_queue
    stockctl-serve 1: accept order
    stockctl-serve 2: POST /orders
    ");
    assert_eq!(above.as_deref(), Some(CALLER), "below the caller's own");
    let accepting = spans.iter().find(|span| span.name == "accept order");
    let accepting = accepting.expect("exported");
    assert_eq!(
        attribute(&accepting.attributes, "stockctl.order.id"),
        Some(id)
    );
    let status = attribute(&at_vendor.attributes, "http.response.status_code");
    assert_eq!(status.as_deref(), Some("200"));
    assert!(
        spans.iter().all(|span| span.trace == TRACE),
        "what begins here is not sampled, and probes are no traces: {spans:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_for_many_orders_at_once_has_links_to_the_trace_of_each() {
    let collector = Recorder::start();
    let shop = traced_shop(&collector.address).await;
    let _serving = serve(&shop).await;
    let _working = shop.start(&["work"]);
    let first = order_in(&shop, "p2", &sampled()).await;
    shop.order_told(&first).await;
    // The next one is held up while it is decided, and meanwhile the others come.
    let held = shop.hold_here("LOCK TABLE stock IN EXCLUSIVE MODE").await;
    order_in(&shop, "p2", &format!("00-{:032x}-{CALLER}-01", 1)).await;
    shop.held_up_here().await;
    let traces: Vec<String> = (2..12).map(|n| format!("{n:032x}")).collect();
    let mut ids = Vec::new();
    for trace in &traces {
        ids.push(order_in(&shop, "p2", &format!("00-{trace}-{CALLER}-01")).await);
    }
    eventually("all of them have left for the broker", || async {
        let waiting = shop.count("SELECT count(*) AS n FROM outbox").await;
        (waiting == 0).then_some(())
    })
    .await;
    messages::until_ready(&shop.broker(), Queue::Orders, 0).await;
    held.release().await;
    for id in &ids {
        shop.order_told(id).await;
    }
    // From each trace, by the links, one comes to a vendor's API.
    for trace in &traces {
        eventually("the trace leads to a vendor", || async {
            let spans = collector.spans();
            let mut reached = BTreeSet::from([trace.as_str()]);
            loop {
                let before = reached.len();
                let linked = spans
                    .iter()
                    .filter(|span| span.links.iter().any(|to| reached.contains(to.as_str())));
                reached.extend(linked.map(|span| span.trace.as_str()).collect::<Vec<_>>());
                if reached.len() == before {
                    break;
                }
            }
            let is_there = spans.iter().any(|span| {
                span.name == "POST /vendors/{vendor}/stock-updates"
                    && reached.contains(span.trace.as_str())
            });
            is_there.then_some(())
        })
        .await;
    }
    let spans = collector.spans();
    let batch = spans
        .iter()
        .find(|span| span.name == "decide orders" && span.links.len() > 1)
        .unwrap_or_else(|| panic!("several were decided together: {spans:?}"));
    assert!(batch.parent.is_none(), "it is of none of them: {batch:?}");
    assert!(batch.links.iter().all(|link| traces.contains(link)));
    // It ends, and is exported, after the call that it makes.
    eventually("its message carries its own context", || async {
        let follows = collector
            .spans()
            .iter()
            .any(|span| span.name == "push updates" && span.trace == batch.trace);
        follows.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_is_exported_a_trace_comes_to_the_vendor_as_it_was() {
    let vendor = Recorder::start();
    let mut shop = Shop::new().await;
    let (ours, stub) = (
        shop.vendor_address().to_string(),
        vendor.address.to_string(),
    );
    shop.sync().await;
    shop.reconfigure(|text| text.replace(&ours, &stub));
    let (_api, _work) = (shop.serve().await, shop.work());
    shop.broker_is_connected().await;
    let not_sampled = sampled().replace("-01", "-00");
    let id = order_in(&shop, "p1", &not_sampled).await;
    shop.order_told(&id).await;
    for malformed in [
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "nothing of the kind",
    ] {
        let id = order_in(&shop, "p1", malformed).await;
        shop.order_told(&id).await;
    }
    let came: Vec<_> = vendor
        .came()
        .into_iter()
        .map(|came| (came.traceparent, came.tracestate))
        .collect();
    let (passed_on, own) = came.split_first().expect("four calls");
    assert_eq!(*passed_on, (Some(not_sampled), Some("shop=7".to_owned())));
    // Each of the others has begun a trace of its own, which nobody records.
    let mut traces = BTreeSet::new();
    for (traceparent, tracestate) in own {
        let traceparent = traceparent.as_deref().expect("a trace begins here");
        let context = TraceContext::parse(traceparent.as_bytes(), None).expect("a well-formed one");
        assert!(!context.is_sampled(), "{traceparent}");
        assert_eq!(*tracestate, None);
        traces.insert(context.trace_id);
    }
    assert_eq!(traces.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_of_the_log_that_belong_to_a_message_name_its_trace_and_its_order() {
    let mut shop = Shop::with(ShopOptions {
        config: "[orders]\nretries_max = 0\n[vendor_sync]\nretries_max = 1\nretry_delay_ms = 200\n[log]\nformat = \"json\"\n".into(),
        ..ShopOptions::default()
    })
    .await;
    // Never synced, so that what cannot be confirmed cannot be rejected, and goes to the dead letters.
    let vendor = crate::support::StubVendor::start(|_| Some((500, json!({"oops": true}))));
    let (ours, stub) = (
        shop.vendor_address().to_string(),
        vendor.address.to_string(),
    );
    shop.reconfigure(|text| text.replace(&ours, &stub));
    let _api = shop.serve().await;
    shop.broker_is_connected().await;
    let working = shop.start(&["work"]);
    let undecidable = order_in(&shop, "p1", &sampled()).await;
    shop.order_with_status(&undecidable, "failed").await;
    shop.sync().await;
    let refused = order_in(&shop, "p1", &sampled()).await;
    shop.order_where(&refused, "a dead letter", |order| {
        order["vendorSync"] == "failed"
    })
    .await;
    let log = working.writes("has not confirmed the updates").await;
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &Value| {
            ["dead-lettered", "to be retried", "updates not taken"]
                .contains(&line["message"].as_str().unwrap_or_default())
        })
        .collect();
    for said in ["dead-lettered", "to be retried", "updates not taken"] {
        assert!(
            lines.iter().any(|line| line["message"] == said),
            "{said} in {log}"
        );
    }
    for line in &lines {
        assert_eq!(line["span"]["trace_id"], TRACE, "{line}");
        assert!(line["message_id"].is_string(), "{line}");
    }
    let of_order = lines.iter().find(|line| line["queue"] == "orders_queue");
    assert_eq!(of_order.expect("dead-lettered")["order"], undecidable);
    let of_update = lines.iter().filter(|line| line["queue"] == "vendor_sync");
    let updates: BTreeSet<&str> = of_update
        .filter_map(|line| line["update"].as_str())
        .collect();
    let order = shop.get(&format!("/orders/{refused}")).await.1;
    assert_eq!(
        updates,
        BTreeSet::from([order["updates"][0]["id"].as_str().expect("an id")])
    );
    let told = log.lines().last().expect("what was waited for");
    let told: Value = serde_json::from_str(told).expect("a line");
    assert_eq!(told["orders"], refused, "{told}");
    assert_eq!(told["span"]["trace_id"], TRACE, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_without_a_trace_has_one_in_the_log_and_in_its_letter() {
    let shop = Shop::with(ShopOptions {
        config: "[orders]\nretries_max = 1\nretry_delay_ms = 200\n[log]\nformat = \"json\"\n"
            .into(),
        ..ShopOptions::default()
    })
    .await;
    let _api = shop.serve().await;
    let working = shop.start(&["work"]);
    // One by somebody who knows nothing of traces, and one that cannot be decided before the first sync.
    let producer = messages::producer(&shop.broker()).await;
    let message = messages::message(Queue::Orders, "by-hand", "no JSON");
    messages::publish(&producer, vec![message]).await;
    let order = shop.order(&[("p1", 1)]).await;
    shop.order_with_status(&order, "failed").await;
    let mut traces = BTreeSet::new();
    for id in ["by-hand", &order] {
        let (status, letter) = shop
            .get(&format!("/admin/dead-letters/orders_dlq/{id}"))
            .await;
        assert_eq!(status, 200, "{letter}");
        let carried = letter["headers"]["traceparent"].as_str();
        let context = TraceContext::parse(carried.expect("a trace").as_bytes(), None);
        traces.insert(context.expect("a well-formed one").trace_id.to_string());
    }
    assert_eq!(traces.len(), 2, "each has its own: {traces:?}");
    let log = working.writes("dead-lettered").await;
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| {
            ["dead-lettered", "to be retried"]
                .iter()
                .any(|said| line["message"] == *said)
        });
    let told: Vec<String> = lines
        .map(|line| {
            let trace = line["span"]["trace_id"].as_str().unwrap_or_default();
            assert!(traces.contains(trace), "{line} is of none of {traces:?}");
            format!(
                "{}: {}",
                line["message_id"].as_str().unwrap_or_default(),
                line["message"]
            )
        })
        .collect();
    let expected = ["dead-lettered", "to be retried"].map(|said| format!("{order}: \"{said}\""));
    assert!(expected.iter().all(|line| told.contains(line)), "{told:?}");
    assert!(
        told.contains(&"by-hand: \"dead-lettered\"".to_owned()),
        "{told:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_its_spans_and_one_line() {
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("bound")
    };
    let shop = traced_shop(&gone).await;
    let mut serving = serve(&shop).await;
    let address = shop.config.http.listen.to_string();
    let lost = |count: f64| {
        let address = address.clone();
        async move {
            eventually("spans are dropped and counted", || async {
                let scrape = Scrape::of(&address).await;
                let series = "stockctl_spans_dropped_total{reason=\"collector_away\"}";
                (scrape.value(series) >= count).then_some(())
            })
            .await;
        }
    };
    // An order is three spans, and the second one comes in another batch.
    order_in(&shop, "p1", &sampled()).await;
    lost(3.0).await;
    order_in(&shop, "p1", &sampled()).await;
    lost(6.0).await;
    assert_eq!(serving.terminate().await, Some(0));
    let log = serving.ended().await.stderr;
    assert_eq!(
        log.matches("the collector of traces takes no spans")
            .count(),
        1,
        "{log}"
    );
}
