//! Live events: each once and in order, whatever is cut; to whom they belong; and nobody who listens holds anything up.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::Utc;
use diesel_async::SimpleAsyncConnection;
use reqwest::Method;
use serde_json::{Value, json};
use stockctl::app::events::LISTENERS_MAX;
use stockctl::app::{dead_letters, keys, relay};
use stockctl::domain::events::Position;
use stockctl::domain::ids::{OrderId, ProductId};
use stockctl::domain::keys::Scope;
use stockctl::domain::order::{Line, Lines, NewOrder};
use stockctl::domain::retry::RETRIES_EXHAUSTED;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::keys::{is_let_in, key, require_keys};
use super::{Answer, JSON, ask, text};
use crate::support::{Proxy, Shop, eventually};

/// An event as it came.
#[derive(Debug, Clone, PartialEq)]
struct Heard {
    id: String,
    kind: String,
    data: Value,
}

impl Heard {
    fn position(&self) -> Position {
        Position::parse(&self.id).expect("an id")
    }

    fn product(&self) -> String {
        text(&self.data["productId"])
    }
}

/// What has come of a stream of events, read as a browser does.
#[derive(Default)]
struct Stream {
    unread: String,
    last_id: String,
}

impl Stream {
    /// The next event, if the whole of it has come. One without data only says up to where all was told.
    fn next(&mut self) -> Option<Heard> {
        loop {
            let (block, rest) = self.unread.split_once("\n\n")?;
            let (mut kind, mut data) = ("message", None);
            for line in block.lines().filter(|line| !line.starts_with(':')) {
                match line.split_once(": ").expect("a field") {
                    ("id", id) => self.last_id = id.to_owned(),
                    ("event", name) => kind = name,
                    ("data", json) => data = Some(serde_json::from_str(json).expect("JSON")),
                    (field, value) => assert_eq!((field, value), ("retry", "1000")),
                }
            }
            let heard = data.map(|data| Heard {
                id: self.last_id.clone(),
                kind: kind.to_owned(),
                data,
            });
            self.unread = rest.to_owned();
            if heard.is_some() {
                return heard;
            }
        }
    }
}

/// Somebody who listens.
struct Ear {
    response: reqwest::Response,
    stream: Stream,
}

impl Ear {
    /// Waits for the next event; none when the stream has ended.
    async fn next(&mut self) -> Option<Heard> {
        loop {
            if let Some(heard) = self.stream.next() {
                assert_eq!(heard.data["type"], heard.kind.as_str(), "{heard:?}");
                return Some(heard);
            }
            let chunk = self.response.chunk().await.expect("in time")?;
            let chunk = String::from_utf8(chunk.to_vec()).expect("UTF-8");
            self.stream.unread.push_str(&chunk);
        }
    }

    async fn hear(&mut self) -> Heard {
        self.next().await.expect("more")
    }

    async fn hear_all(&mut self, count: usize) -> Vec<Heard> {
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            all.push(self.hear().await);
        }
        all
    }
}

async fn request(shop: &Shop, query: &str, headers: &[(&str, &str)]) -> reqwest::Response {
    let mut request = shop.http.get(format!("{}/events{query}", shop.url));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.expect("an answer")
}

/// Waits until what is committed is behind the place from where on a listener hears: that is where the oldest transaction
/// that is open on the whole server has begun, and other tests have theirs.
async fn is_past(shop: &Shop) {
    let last = shop
        .text("SELECT coalesce(max(xid::text::bigint), 0)::text AS t FROM events")
        .await;
    let is_past = format!(
        "SELECT (pg_snapshot_xmin(pg_current_snapshot()) > '{last}')::integer::bigint AS n"
    );
    eventually("older transactions are over", || async {
        (shop.count(&is_past).await == 1).then_some(())
    })
    .await;
}

/// Begins to listen to what happens from now on, and returns once the place is known from where on it hears.
async fn listen(shop: &Shop, query: &str, headers: &[(&str, &str)]) -> Ear {
    is_past(shop).await;
    begin_to_listen(shop, query, headers).await
}

/// As [`listen`], where nothing has happened yet.
async fn begin_to_listen(shop: &Shop, query: &str, headers: &[(&str, &str)]) -> Ear {
    let response = request(shop, query, headers).await;
    assert_eq!(response.status(), 200, "{query}");
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut ear = Ear {
        response,
        stream: Stream::default(),
    };
    while ear.stream.last_id.is_empty() {
        let chunk = ear.response.chunk().await.expect("in time").expect("more");
        ear.stream
            .unread
            .push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
        if let Some((block, _)) = ear.stream.unread.split_once("\n\n") {
            let id = block.lines().find_map(|line| line.strip_prefix("id: "));
            ear.stream.last_id = id.expect("an id").to_owned();
        }
    }
    ear
}

async fn resume(shop: &Shop, query: &str, id: &str) -> Ear {
    listen(shop, query, &[("last-event-id", id)]).await
}

/// SQL that tells of the stock of some products.
fn stock_event(products: &str) -> String {
    format!(
        "INSERT INTO events (kind, product_ids, at) VALUES ('stock.changed', {products}, now())"
    )
}

fn assert_in_order(heard: &[Heard]) {
    for pair in heard.windows(2) {
        assert!(pair[0].position() < pair[1].position(), "{pair:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_listens_hears_what_becomes_of_orders_and_of_stock() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    let mut all = listen(&shop, "", &[]).await;
    let mut some = listen(
        &shop,
        "?type=order.confirmed,stock.changed&productId=p3",
        &[],
    )
    .await;
    let mut orders = listen(
        &shop,
        "?type=order.confirmed,order.rejected,order.failed,order.cancelled",
        &[],
    )
    .await;
    let confirmed = shop.order(&[("p1", 2), ("p3", 1)]).await;
    shop.order_told(&confirmed).await;
    let rejected = shop.order(&[("p2", 100)]).await;
    shop.order_with_status(&rejected, "rejected").await;
    let path = format!("/orders/{confirmed}/cancel");
    let (status, answer) = shop.post(&path, json!({})).await;
    assert_eq!(status, 200, "{answer}");
    // One that could not be processed, and is taken up again: its event keeps the reason.
    let failed = NewOrder {
        id: OrderId(uuid::Uuid::now_v7()),
        caller: "local".into(),
        idempotency_key: None,
        lines: Lines::parse(vec![Line {
            product_id: ProductId::parse("p1").expect("valid"),
            quantity: 1,
        }])
        .expect("valid"),
        reference: Some("cart 17".into()),
        accepted_at: Utc::now(),
    };
    let context = shop.context_here();
    dead_letters::fail_order(&context, &failed, RETRIES_EXHAUSTED, Utc::now())
        .await
        .expect("failed");
    let given_up = json!({"code": "processing_failed", "error": "retries_exhausted"});
    let shown = shop.get(&format!("/orders/{}", failed.id)).await.1;
    assert_eq!(shown["reason"], given_up);
    shop.run_here("UPDATE orders SET status = 'pending', reason = NULL WHERE status = 'failed'")
        .await;

    let heard = orders.hear_all(4).await;
    assert_in_order(&heard);
    let short: Vec<Value> = heard
        .iter()
        .map(|heard| {
            let order = &heard.data["order"];
            assert!(heard.data["at"].is_string() && order["acceptedAt"].is_string());
            json!([
                heard.kind,
                order["id"],
                order["status"],
                order["reason"],
                order["reference"],
                order["lines"]
            ])
        })
        .collect();
    let lines = json!([{"productId": "p1", "quantity": 2}, {"productId": "p3", "quantity": 1}]);
    let short_of_stock =
        json!({"code": "insufficient_stock", "productId": "p2", "requested": 100, "available": 20});
    assert_eq!(
        short,
        [
            json!(["order.confirmed", confirmed, "confirmed", null, null, lines]),
            json!(["order.rejected", rejected, "rejected", short_of_stock, null, [{"productId": "p2", "quantity": 100}]]),
            json!(["order.cancelled", confirmed, "cancelled", null, null, lines]),
            json!(["order.failed", failed.id, "failed", given_up, "cart 17", [{"productId": "p1", "quantity": 1}]]),
        ]
    );
    // The stock that was taken, and that was given back once its vendor had it.
    let of_p3 = some.hear_all(3).await;
    let kinds: BTreeSet<&str> = of_p3.iter().map(|heard| heard.kind.as_str()).collect();
    assert_eq!(kinds, BTreeSet::from(["order.confirmed", "stock.changed"]));
    assert_eq!(of_p3[2].data["available"], 20, "{of_p3:?}");
    // Another number of p1 and p3, taken and given back; of the rejected order nothing changed.
    let everything = all.hear_all(8).await;
    assert_in_order(&everything);
    let of_stock = everything
        .iter()
        .filter(|heard| heard.kind == "stock.changed");
    let products: Vec<String> = of_stock.map(Heard::product).collect();
    assert_eq!(products.len(), 4, "{everything:?}");
    assert!(products.iter().all(|product| product != "p2"));

    // A sync that finds what the vendor has sold itself tells of that, and one that finds nothing new of nothing.
    let mut stock = listen(&shop, "?type=stock.changed", &[]).await;
    shop.sync().await;
    shop.run_at(
        "vendorB",
        "UPDATE products SET stock = stock - 1 WHERE id = 'p2'",
    )
    .await;
    shop.sync().await;
    let heard = stock.hear().await;
    assert_eq!(
        (heard.product().as_str(), &heard.data["available"]),
        ("p2", &json!(19))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_skipped_or_told_twice_when_connections_are_cut_and_transactions_overlap() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let mut ear = listen(&shop, "", &[]).await;

    // The earlier transaction commits later: what the later one tells waits for it.
    let earlier = shop
        .hold_here(&stock_event("ARRAY['first', 'second']"))
        .await;
    shop.run_here(&stock_event("ARRAY['third']")).await;
    earlier.release().await;
    let heard = ear.hear_all(3).await;
    let products: Vec<String> = heard.iter().map(Heard::product).collect();
    assert_eq!(products, ["first", "second", "third"]);
    // In the middle of a transaction's events, too.
    let mut again = resume(&shop, "", &heard[0].id).await;
    assert_eq!(again.hear_all(2).await, heard[1..]);

    const WRITERS: usize = 8;
    const TRANSACTIONS: usize = 60;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let mut connection = shop.connection_here().await;
        writers.spawn(async move {
            for n in 0..TRANSACTIONS {
                let of = format!("w{writer}-{n}");
                let sql = format!(
                    "BEGIN; {}; SELECT pg_sleep({}); {}; COMMIT",
                    stock_event(&format!("ARRAY['{of}-a', '{of}-b']")),
                    (writer * n % 5) as f64 / 1000.0,
                    stock_event(&format!("ARRAY['{of}-c']")),
                );
                connection.batch_execute(&sql).await.expect("committed");
            }
        });
    }
    let expected = WRITERS * TRANSACTIONS * 3;
    let mut heard = Vec::with_capacity(expected);
    let mut cuts = 0;
    while heard.len() < expected {
        heard.push(ear.hear().await);
        if heard.len().is_multiple_of(37) {
            cuts += 1;
            ear = resume(&shop, "", &heard.last().expect("one").id).await;
        }
    }
    while writers
        .join_next()
        .await
        .transpose()
        .expect("no panic")
        .is_some()
    {}
    assert_in_order(&heard);
    assert!(cuts > 30);
    let products: BTreeSet<String> = heard.iter().map(Heard::product).collect();
    assert_eq!(products.len(), expected, "each once");
    // And nothing more: the next is what happens next.
    shop.run_here(&stock_event("ARRAY['last']")).await;
    assert_eq!(ear.hear().await.product(), "last");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_transaction_may_tell_of_more_than_anybody_is_told_at_once() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let mut ear = listen(&shop, "", &[]).await;
    let many = "(SELECT array_agg('p' || n ORDER BY n) FROM generate_series(1, 20000) AS n)";
    shop.run_here(&stock_event(many)).await;
    let heard = ear.hear_all(20_000).await;
    assert_in_order(&heard);
    assert_eq!(heard[19_999].product(), "p20000");
    let mut again = resume(&shop, "", &heard[12_344].id).await;
    assert_eq!(again.hear_all(7_655).await, heard[12_345..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_caller_hears_of_its_own_orders_for_as_long_as_its_key_is_good() {
    let mut shop = Shop::new().await;
    shop.reconfigure(|text| text.replace("[http]\n", "[http]\nrequire_keys = true\n"));
    shop.sync().await;
    let context = shop.context_here();
    let key = async |caller: &str, scopes: &[Scope]| {
        let scopes = scopes.iter().copied().collect();
        let made = keys::create(&context, caller.into(), scopes, Utc::now(), None).await;
        let (key, token) = made.expect("made");
        (key.id, format!("Bearer {}", token.reveal()))
    };
    let both = [Scope::OrdersRead, Scope::OrdersWrite];
    let (one_id, one) = key("one", &both).await;
    let (_, other) = key("other", &both).await;
    let (_, stocker) = key("stocker", &[Scope::StockWrite]).await;
    let (_, admin) = key("boss", &[Scope::Admin]).await;
    let _parts = (shop.serve().await, shop.work());
    eventually("the keys are known", || async {
        let answer = ask(
            &shop,
            Method::GET,
            "/products",
            &[("authorization", &admin)],
            "",
        )
        .await;
        (answer.status == 200).then_some(())
    })
    .await;
    let with =
        async |authorization: &str| listen(&shop, "", &[("authorization", authorization)]).await;
    let (mut ear, mut others, mut stock, mut all) = (
        with(&one).await,
        with(&other).await,
        with(&stocker).await,
        with(&admin).await,
    );
    let place = async |authorization: &str| {
        let headers = [
            JSON,
            ("authorization", authorization),
            ("prefer", "wait=30"),
        ];
        let body = json!({"productId": "p1", "quantity": 1}).to_string();
        let answer: Answer = ask(&shop, Method::POST, "/orders", &headers, body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        text(&answer.body["id"])
    };
    let (of_one, of_other) = (place(&one).await, place(&other).await);
    let orders_of = |heard: &[Heard]| -> BTreeSet<String> {
        let orders = heard.iter().filter(|heard| heard.kind != "stock.changed");
        orders
            .map(|heard| text(&heard.data["order"]["id"]))
            .collect()
    };
    // Two takes of stock for everybody, and the orders for whom they concern.
    let both_orders = BTreeSet::from([of_one.clone(), of_other.clone()]);
    assert_eq!(orders_of(&ear.hear_all(3).await), BTreeSet::from([of_one]));
    assert_eq!(
        orders_of(&others.hear_all(3).await),
        BTreeSet::from([of_other])
    );
    assert_eq!(orders_of(&stock.hear_all(2).await), BTreeSet::new());
    let heard = all.hear_all(4).await;
    assert_eq!(orders_of(&heard), both_orders);
    let callers = heard
        .iter()
        .filter_map(|heard| heard.data["order"]["caller"].as_str());
    assert_eq!(
        callers.collect::<BTreeSet<_>>(),
        BTreeSet::from(["one", "other"])
    );

    let asking = [("authorization", stocker.as_str())];
    let refused = ask(&shop, Method::GET, "/events?type=order.failed", &asking, "").await;
    assert_eq!(refused.problem(), "403 insufficient_scope");
    // A key that is revoked in the middle of it.
    keys::revoke(&context, &one_id, Utc::now())
        .await
        .expect("revoked");
    let heard = ear.hear().await;
    assert_eq!(heard.kind, "dropped", "{heard:?}");
    assert_eq!(ear.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_too_much_goes_on_hearing_what_happens() {
    let mut shop = Shop::new().await;
    require_keys(&mut shop);
    shop.reconfigure(|text| {
        let limit = "rate_limit_per_second = 1\nrate_limit_burst = 8";
        text.replace("[http]\n", &format!("[http]\n{limit}\n"))
    });
    let (_, key) = key(&shop, "webshop", &[Scope::OrdersRead]).await;
    let _api = shop.serve().await;
    is_let_in(&shop, &key).await;
    let asking = [("authorization", key.as_str())];
    let mut ear = listen(&shop, "", &asking).await;
    // What comes back to it in a second is asked for at once, so that there is nothing left at any moment.
    let ask_on = async {
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        loop {
            pace.tick().await;
            ask(&shop, Method::GET, "/vendors", &asking, "").await;
        }
    };
    let beats = async {
        let mut heard = String::new();
        while heard.matches(": still here").count() < 2 {
            let chunk = ear.response.chunk().await.expect("in time");
            let chunk = chunk.unwrap_or_else(|| panic!("it has ended: {heard}"));
            heard.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
        }
    };
    tokio::select! {
        () = ask_on => {}
        () = beats => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_wrongly_is_told() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    for (query, header, expected) in [
        (
            "?type=order.lost",
            "",
            "400 invalid_parameter \"type\" must be a list of order.confirmed, order.rejected, order.failed, order.cancelled, stock.changed, separated by commas",
        ),
        (
            "",
            "1-2",
            "400 invalid_parameter \"Last-Event-ID\" must be the id of an event as it came, such as 7301-42-0",
        ),
        (
            "",
            "01-2-3",
            "400 invalid_parameter \"Last-Event-ID\" must be the id of an event as it came, such as 7301-42-0",
        ),
    ] {
        let headers = [("last-event-id", header)];
        let answer = ask(&shop, Method::GET, &format!("/events{query}"), &headers, "").await;
        assert_eq!(answer.problem(), expected);
    }
    // What is no text is no beginning either.
    let no_text = reqwest::header::HeaderValue::from_bytes(b"\xc2\x84").expect("a header");
    let asked = shop.http.get(format!("{}/events", shop.url));
    let answer = asked.header("last-event-id", no_text).send().await;
    assert_eq!(answer.expect("an answer").status(), 400);
    let json = [("accept", "application/json")];
    let answer = ask(&shop, Method::GET, "/events", &json, "").await;
    assert_eq!(answer.problem(), "406 not_acceptable");
    // What is asked of the answer without its body ends.
    let head = shop.http.head(format!("{}/events", shop.url)).send().await;
    assert_eq!(head.expect("an answer").status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_too_late_is_told_that_it_missed_something() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let mut ear = listen(&shop, "", &[]).await;
    shop.run_here(&stock_event("ARRAY['a', 'b', 'c']")).await;
    let heard = ear.hear_all(3).await;
    shop.run_here("UPDATE events SET at = now() - interval '2 hours'")
        .await;
    shop.run_here(&stock_event("ARRAY['d']")).await;
    let last = ear.hear().await;
    let context = shop.context_here();
    let deleted = relay::sweep_events(&context, Duration::from_secs(3600)).await;
    assert_eq!(deleted.expect("swept"), 1);
    assert_eq!(shop.count("SELECT count(*) AS n FROM events").await, 1);

    // From before what is deleted, in the middle of it, and from a database that was another.
    for (id, follows) in [
        ("1-0-0", true),
        (heard[1].id.as_str(), true),
        ("9223372036854775807-1-0", false),
    ] {
        let mut late = resume(&shop, "", id).await;
        assert_eq!(late.hear().await.kind, "reset", "{id}");
        if follows {
            assert_eq!(late.hear().await, last, "{id}");
        }
        shop.run_here(&stock_event("ARRAY['e']")).await;
        assert_eq!(late.hear().await.product(), "e");
        // What it has now is good to resume from.
        let mut again = resume(&shop, "", &late.stream.last_id).await;
        shop.run_here(&stock_event("ARRAY['f']")).await;
        assert_eq!(again.hear().await.product(), "f");
        shop.run_here("DELETE FROM events WHERE product_ids <> ARRAY['d']")
            .await;
    }
    let mut in_time = resume(&shop, "", &last.id).await;
    shop.run_here(&stock_event("ARRAY['g']")).await;
    assert_eq!(in_time.hear().await.product(), "g");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_too_slowly_is_told_so_and_misses_nothing_by_it() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let mut quick = listen(&shop, "?productId=last", &[]).await;
    let start = quick.stream.last_id.clone();
    let socket =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(16 * 1024).expect("set");
    socket
        .connect(&shop.config.http.listen.into())
        .expect("connects");
    socket.set_nonblocking(true).expect("set");
    let mut slow = tokio::net::TcpStream::from_std(socket.into()).expect("a stream");
    let head = format!("GET /events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: {start}\r\n\r\n");
    slow.write_all(head.as_bytes()).await.expect("sent");
    // It has caught up, and hears of what happens with the others.
    let mut came = Vec::new();
    for n in 0..5 {
        shop.run_here(&stock_event(&format!("ARRAY['ready-{n}']")))
            .await;
        let heard = format!("\"ready-{n}\"");
        while !String::from_utf8_lossy(&came).contains(&heard) {
            assert_ne!(slow.read_buf(&mut came).await.expect("open"), 0);
        }
    }
    // More than the ring and all that is between has room for.
    const ROWS: usize = 60;
    const EACH: usize = 1_000;
    for row in 0..ROWS {
        let many = format!(
            "(SELECT array_agg('{row}-' || n || repeat('x', 150) ORDER BY n) FROM generate_series(1, {EACH}) AS n)"
        );
        shop.run_here(&stock_event(&many)).await;
    }
    shop.run_here(&stock_event("ARRAY['last']")).await;
    assert_eq!(quick.hear().await.product(), "last");

    slow.read_to_end(&mut came).await.expect("an end");
    let mut stream = Stream {
        unread: body_of(std::str::from_utf8(&came).expect("UTF-8")),
        last_id: String::new(),
    };
    let mut heard: Vec<Heard> = std::iter::from_fn(|| stream.next()).collect();
    let dropped = heard.pop().expect("events");
    assert_eq!(dropped.kind, "dropped", "after {} events", heard.len());
    let expected = 5 + ROWS * EACH + 1;
    assert!(heard.len() < expected);
    let mut again = resume(&shop, "", &dropped.id).await;
    while heard.len() < expected {
        heard.push(again.hear().await);
    }
    assert_in_order(&heard);
    assert_eq!(heard[expected - 1].product(), "last");
}

/// The body of an answer in chunks.
fn body_of(answer: &str) -> String {
    let (head, mut rest) = answer.split_once("\r\n\r\n").expect("a body");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    let mut body = String::new();
    loop {
        let (size, chunk) = rest.split_once("\r\n").expect("a size");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            return body;
        }
        body.push_str(&chunk[..size]);
        rest = chunk[size..].strip_prefix("\r\n").expect("its end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_postgresql_delays_what_is_told_and_loses_nothing() {
    let mut shop = Shop::new().await;
    let url = shop.own_database_url().to_owned();
    let address = url::Url::parse(&url).expect("a URL");
    let (host, port) = (
        address.host_str().expect("a host"),
        address.port().expect("a port"),
    );
    let proxy = Proxy::before(format!("{host}:{port}")).await;
    let by_proxy = url.replace(&format!("{host}:{port}"), &proxy.address.to_string());
    shop.reconfigure(|text| text.replace(&url, &by_proxy));
    let _api = shop.serve().await;
    let mut ear = listen(&shop, "", &[]).await;
    shop.run_here(&stock_event("ARRAY['before']")).await;
    let before = ear.hear().await;
    assert_eq!(before.product(), "before");
    proxy.cut();
    for during in ["during", "too"] {
        shop.run_here(&stock_event(&format!("ARRAY['{during}']")))
            .await;
    }
    // Nobody begins to listen meanwhile: where now is cannot be known.
    let answer = ask(&shop, Method::GET, "/events", &[], "").await;
    assert_eq!(answer.problem(), "503 unavailable");
    // Who knows where it was has time, and waits.
    let mut resumed = resume(&shop, "", &before.id).await;
    proxy.mend();
    for ear in [&mut ear, &mut resumed] {
        let products: Vec<String> = ear.hear_all(2).await.iter().map(Heard::product).collect();
        assert_eq!(products, ["during", "too"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_does_not_wait_for_who_listens_and_costs_no_event() {
    let mut shop = Shop::new().await;
    // Without a deadline that would end it.
    shop.reconfigure(|text| text.replace("[http]\n", "[http]\nshutdown_deadline_ms = 300000\n"));
    let api = shop.serve().await;
    let mut ear = listen(&shop, "", &[]).await;
    shop.run_here(&stock_event("ARRAY['before']")).await;
    assert_eq!(ear.hear().await.product(), "before");
    let (ended, ()) = tokio::join!(ear.next(), api.stop());
    assert_eq!(ended, None);
    shop.run_here(&stock_event("ARRAY['meanwhile']")).await;
    let _api = shop.serve().await;
    let mut again = resume(&shop, "", &ear.stream.last_id).await;
    assert_eq!(again.hear().await.product(), "meanwhile");
}

/// Listeners that come together.
const AT_ONCE: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_listen_and_who_has_gone_makes_room() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let mut ears = Vec::new();
    while ears.len() < LISTENERS_MAX {
        let more = AT_ONCE.min(LISTENERS_MAX - ears.len());
        let more = (0..more).map(|_| begin_to_listen(&shop, "", &[]));
        ears.extend(futures_util::future::join_all(more).await);
    }
    let refused = ask(&shop, Method::GET, "/events", &[], "").await;
    assert_eq!(refused.problem(), "503 too_many_listeners");
    assert_eq!(refused.header("retry-after"), Some("1"));
    shop.run_here(&stock_event("ARRAY['for all']")).await;
    for ear in &mut ears {
        assert_eq!(ear.hear().await.product(), "for all");
    }
    ears.pop();
    eventually("there is room", || async {
        (request(&shop, "", &[]).await.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_takes_a_part_of_the_places_and_leaves_the_others_theirs() {
    let mut shop = Shop::new().await;
    require_keys(&mut shop);
    let _api = shop.serve().await;
    let (_, greedy) = key(&shop, "greedy", &[Scope::OrdersRead]).await;
    let (_, other) = key(&shop, "other", &[Scope::OrdersRead]).await;
    is_let_in(&shop, &greedy).await;
    is_let_in(&shop, &other).await;
    let header = [("authorization", greedy.as_str())];
    let mut ears = Vec::new();
    while ears.len() < LISTENERS_MAX / 5 {
        let more = (0..AT_ONCE).map(|_| begin_to_listen(&shop, "", &header));
        ears.extend(futures_util::future::join_all(more).await);
    }
    let refused = ask(&shop, Method::GET, "/events", &header, "").await;
    assert_eq!(refused.problem(), "503 too_many_listeners");
    begin_to_listen(&shop, "", &[("authorization", &other)]).await;
}
