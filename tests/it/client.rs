//! `stockctl orders` and `stockctl products`, as processes, against a running API.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use crate::support::{Ended, Process, Shop, eventually};

/// What a command has printed as JSON.
fn document(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

/// What the API answers, as it comes.
async fn body(shop: &Shop, path: &str) -> String {
    let answer = shop.http.get(format!("{}{path}", shop.url)).send().await;
    answer.expect("an answer").text().await.expect("a body")
}

/// A text with its ids, times and addresses made alike.
fn alike(text: &str) -> String {
    let mut words = Vec::new();
    for line in text.lines() {
        let line: Vec<String> = line.split(' ').map(alike_word).collect();
        words.push(line.join(" "));
    }
    words.join("\n")
}

fn alike_word(word: &str) -> String {
    let bare = word.trim_matches(|c| "`:;,.".contains(c));
    let is_time = bare.len() == 12 && bare.as_bytes()[2] == b':' && bare.as_bytes()[8] == b'.';
    let is_date = bare.len() == 10 && bare.as_bytes()[4] == b'-' && bare.as_bytes()[7] == b'-';
    if Uuid::try_parse(bare).is_ok() {
        word.replace(bare, "[id]")
    } else if is_time {
        word.replace(bare, "[time]")
    } else if is_date {
        word.replace(bare, "[date]")
    } else if bare.starts_with("http://127.0.0.1:") {
        word.replace(bare, "[address]")
    } else {
        word.to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_placed_seen_confirmed_shown_and_cancelled() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    let arguments = ["orders", "place", "p1=2", "p3=1", "--reference", "cart 17"];
    let placed = shop
        .run(&[&arguments[..], &["--wait", "60", "--json"]].concat())
        .await;
    assert_eq!((placed.code, placed.stderr.as_str()), (Some(0), ""));
    let order = document(&placed);
    assert_eq!(order["status"], "confirmed");
    assert_eq!(order["reference"], "cart 17");
    assert_eq!(
        order["lines"],
        json!([{"productId": "p1", "quantity": 2}, {"productId": "p3", "quantity": 1}])
    );
    let id = order["id"].as_str().expect("an id");
    shop.order_told(id).await;

    let shown = shop.run(&["orders", "show", id]).await;
    assert_eq!((shown.code, shown.stderr.as_str()), (Some(0), ""));
    let first = alike(shown.stdout.split("\n\nWHEN").next().expect("a beginning"));
    insta::assert_snapshot!(first, @"
    order      [id]
    status     confirmed
    vendors    told
    reference  cart 17
    accepted   [date] [time] UTC
    decided    [date] [time] UTC

    PRODUCT  QUANTITY
    p1       2
    p3       1

    VENDOR   PRODUCT  CHANGE  STATE         UPDATE
    vendorA  p1       -2      acknowledged  [id]
    vendorB  p3       -1      acknowledged  [id]
    ");
    for event in [
        "accepted",
        "confirmed",
        "vendorA told: applied",
        "vendorB told: applied",
    ] {
        assert!(
            shown.stdout.contains(&format!("UTC  {event}\n")),
            "{}",
            shown.stdout
        );
    }
    let of_api = body(&shop, &format!("/orders/{id}")).await;
    let shown = shop.run(&["orders", "show", id, "--json"]).await;
    assert_eq!(shown.stdout, format!("{of_api}\n"), "unchanged");

    let cancelled = shop.run(&["orders", "cancel", id]).await;
    assert_eq!((cancelled.code, cancelled.stderr.as_str()), (Some(0), ""));
    assert!(
        cancelled.stdout.contains("status     cancelled\n"),
        "{}",
        cancelled.stdout
    );
    assert!(
        cancelled.stdout.contains("vendorB  p3       +1 "),
        "{}",
        cancelled.stdout
    );
    let again = shop.run(&["orders", "cancel", id, "--json"]).await;
    assert_eq!(again.code, Some(0), "it stays cancelled: {again:?}");
    assert_eq!(document(&again)["status"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_rejected_while_it_is_waited_for_ends_with_5_and_says_why() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    let placed = shop
        .run(&["orders", "place", "p1=11", "--wait", "60"])
        .await;
    assert_eq!(placed.code, Some(5));
    insta::assert_snapshot!(alike(&(placed.stdout + &placed.stderr)), @"
    order     [id]
    status    rejected
    because   11 of p1 were asked for, and 10 were available
    vendors   nothing to tell
    accepted  [date] [time] UTC
    decided   [date] [time] UTC

    PRODUCT  QUANTITY
    p1       11

    WHEN                         WHAT HAPPENED
    [date] [time] UTC  accepted
    [date] [time] UTC  rejected
    error: order [id] is rejected: 11 of p1 were asked for, and 10 were available
    ");

    let (_, list) = shop.get("/orders").await;
    let id = list["orders"][0]["id"].as_str().expect("an id").to_owned();
    let cancelled = shop.run(&["orders", "cancel", &id]).await;
    assert_eq!((cancelled.code, cancelled.stdout.as_str()), (Some(5), ""));
    insta::assert_snapshot!(cancelled.stderr, @"
    error: the order was rejected: nothing was taken for it (not_cancellable)
    `stockctl orders show` says how it stands
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_decided_in_time_ends_with_1_and_is_accepted_all_the_same() {
    let shop = Shop::new().await;
    shop.sync().await;
    let _serving = shop.serve().await;
    let placed = shop.run(&["orders", "place", "p1=1", "--wait", "1"]).await;
    assert_eq!(placed.code, Some(1));
    insta::assert_snapshot!(alike(&(placed.stdout + &placed.stderr)), @"
    order     [id]
    status    pending
    vendors   nothing to tell
    accepted  [date] [time] UTC

    PRODUCT  QUANTITY
    p1       1
    error: order [id] is pending still; it is accepted, and will be decided: `stockctl orders show [id]`
    ");
    let without_waiting = shop.run(&["orders", "place", "p1=1", "--json"]).await;
    assert_eq!(without_waiting.code, Some(0));
    assert_eq!(document(&without_waiting)["status"], "pending");
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_is_the_same_order_and_none_is_a_new_one() {
    let shop = Shop::new().await;
    let _serving = shop.serve().await;
    let place = async |product: &str, key: &[&str]| {
        shop.run(&[&["orders", "place", product], key].concat())
            .await
    };
    let key = ["--key", " a \"b\" \\c"];
    let first = place("p1=1", &key).await;
    let second = place("p1=1", &key).await;
    assert_eq!((first.code, second.code), (Some(0), Some(0)));
    let told = "note      it had been placed before, with this key\n";
    assert!(!first.stdout.contains(told), "{}", first.stdout);
    assert!(second.stdout.contains(told), "{}", second.stdout);
    let other = place("p1=2", &key).await;
    assert_eq!((other.code, other.stdout.as_str()), (Some(5), ""));
    insta::assert_snapshot!(other.stderr, @"
    error: this Idempotency-Key was used for a request with another body; use a new key for a new order (idempotency_conflict)
    give another --key, or none, for a new order
    ");
    place("p1=1", &[]).await;
    place("p1=1", &[]).await;
    let count = shop.count("SELECT count(*) AS n FROM orders").await;
    assert_eq!(count, 3, "one of the key, and two without");
    let keys = shop
        .text("SELECT string_agg(idempotency_key, '') AS t FROM orders WHERE idempotency_key LIKE ' a%'")
        .await;
    assert_eq!(keys, key[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_listed_newest_first_over_pages_and_filtered() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    // More than one page of 200.
    let orders: Vec<Value> = (0..210)
        .map(|n| json!({"productId": "p3", "quantity": 1 + n / 205, "reference": format!("n {n}")}))
        .collect();
    let (status, batch) = shop
        .post("/orders/batch", json!({ "orders": orders }))
        .await;
    assert_eq!(status, 202, "{batch}");
    let newest = shop.order(&[("p1", 11)]).await;
    shop.order_with_status(&newest, "rejected").await;
    eventually("nothing changes any more", || async {
        let orders = "SELECT count(*) AS n FROM orders WHERE status = 'pending'";
        let updates = "SELECT count(*) AS n FROM stock_updates WHERE state = 'open'";
        (shop.count(orders).await + shop.count(updates).await == 0).then_some(())
    })
    .await;

    let listed = shop
        .run(&["orders", "list", "--limit", "205", "--json"])
        .await;
    assert_eq!(listed.code, Some(0));
    let pages: Vec<Value> = listed
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("a document on each line"))
        .collect();
    let of_page = |page: &Value| page["orders"].as_array().expect("a list").len();
    assert_eq!(pages.iter().map(of_page).collect::<Vec<_>>(), [200, 5]);
    let ids: BTreeSet<&str> = pages
        .iter()
        .flat_map(|page| page["orders"].as_array().expect("a list"))
        .map(|order| order["id"].as_str().expect("an id"))
        .collect();
    assert_eq!(ids.len(), 205, "the second page goes on behind the first");
    assert_eq!(pages[0]["orders"][0]["id"], newest.as_str());
    let (_, of_api) = shop.get("/orders?limit=200").await;
    assert_eq!(pages[0]["orders"], of_api["orders"], "unchanged");
    assert_eq!(
        listed.stderr,
        "there may be more: a higher --limit lists them\n"
    );

    let rejected = shop
        .run(&["orders", "list", "--status", "rejected", "--product", "p1"])
        .await;
    assert_eq!((rejected.code, rejected.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(alike(&rejected.stdout), @"
    ID                                    STATUS    VENDORS          ACCEPTED                     LINES  REFERENCE
    [id]  rejected  nothing to tell  [date] [time] UTC  p1=11
    ");
    let none = shop.run(&["orders", "list", "--product", "nothing"]).await;
    assert_eq!(
        (none.code, none.stdout.as_str()),
        (Some(0), "there are no such orders\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn products_are_listed_filtered_and_shown() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    let mut texts = String::new();
    for arguments in [
        &["products", "list"][..],
        &[
            "products",
            "list",
            "--query",
            "PRODUCT P2",
            "--vendor",
            "vendorB",
            "--in-stock",
        ],
        &["products", "list", "--limit", "1"],
        &["products", "list", "--query", "nothing"],
        &["products", "show", "p2"],
    ] {
        let ended = shop.run(arguments).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let (command, written) = (arguments.join(" "), ended.stdout + &ended.stderr);
        texts.push_str(&format!("$ stockctl {command}\n{}\n", alike(&written)));
    }
    insta::assert_snapshot!(texts, @"
    $ stockctl products list
    ID  NAME        AVAILABLE  AT
    p1  Product p1  10         vendorA 10
    p2  Product p2  20         vendorA 15, vendorB 5
    p3  Product p3  20         vendorB 20
    $ stockctl products list --query PRODUCT P2 --vendor vendorB --in-stock
    ID  NAME        AVAILABLE  AT
    p2  Product p2  20         vendorA 15, vendorB 5
    $ stockctl products list --limit 1
    ID  NAME        AVAILABLE  AT
    p1  Product p1  10         vendorA 10
    there may be more: a higher --limit lists them
    $ stockctl products list --query nothing
    there are no such products
    $ stockctl products show p2
    id         p2
    name       Product p2
    available  20

    VENDOR   NAME        ON HAND  OPEN  AVAILABLE  SHORT OF  LAST SYNC
    vendorA  Product p2  15       0     15         0         [date] [time] UTC
    vendorB  Product p2  5        0     5          0         [date] [time] UTC
    ");
    let of_api = body(&shop, "/products/p2").await;
    let shown = shop.run(&["products", "show", "p2", "--json"]).await;
    assert_eq!(shown.stdout, format!("{of_api}\n"), "unchanged");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_refuses_ends_with_5_and_says_what_where_and_what_to_do() {
    let shop = Shop::new().await;
    let _serving = shop.serve().await;
    shop.knows_what_is_unknown().await;
    let (unknown, long) = (Uuid::nil().to_string(), "x".repeat(256));
    let mut texts = String::new();
    for arguments in [
        &["orders", "show", &unknown][..],
        &["orders", "cancel", &unknown],
        &[
            "orders",
            "place",
            "p1=0",
            "p2=1",
            "p3=1000001",
            "--reference",
            &long,
        ],
        &["orders", "place", "p1=1", "--key", &long],
        &["products", "show", "nothing"],
        &["products", "list", "--vendor", "nobody"],
    ] {
        let ended = shop.run(arguments).await;
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (Some(5), ""),
            "{ended:?}"
        );
        let command = arguments.join(" ").replace(&long, "[long]");
        texts.push_str(&format!("$ stockctl {command}\n{}\n", ended.stderr));
    }
    insta::assert_snapshot!(texts, @"
    $ stockctl orders show 00000000-0000-0000-0000-000000000000
    error: there is no order 00000000-0000-0000-0000-000000000000 (not_found)
    `stockctl orders list` lists the newest ones

    $ stockctl orders cancel 00000000-0000-0000-0000-000000000000
    error: there is no order 00000000-0000-0000-0000-000000000000 (not_found)
    `stockctl orders list` lists the newest ones

    $ stockctl orders place p1=0 p2=1 p3=1000001 --reference [long]
    error: The request is not valid (validation_failed)
      PRODUCT=QUANTITY number 1, quantity: must be 1 to 1000000, is 0
      PRODUCT=QUANTITY number 3, quantity: must be 1 to 1000000, is 1000001
      --reference: must be at most 255 characters long
    mend what is named, and run it again

    $ stockctl orders place p1=1 --key [long]
    error: A parameter is not valid (invalid_parameter)
      --key: must be 1 to 255 characters long, has 256
    mend what is named, and run it again

    $ stockctl products show nothing
    error: no vendor has ever listed product nothing (not_found)
    `stockctl products list` lists those there are

    $ stockctl products list --vendor nobody
    error: A parameter is not valid (invalid_parameter)
      --vendor: no vendor of that id is configured; GET /vendors lists them
    mend what is named, and run it again
    ");
    let ended = shop.run(&["orders", "show", &unknown, "--json"]).await;
    assert_eq!(ended.code, Some(5));
    assert_eq!(
        document(&ended)["code"],
        "not_found",
        "a program reads it too"
    );
}

#[tokio::test]
async fn a_wrong_line_key_or_address_ends_with_2() {
    for arguments in [
        &["orders", "place"][..],
        &["orders", "place", "p1"],
        &["orders", "place", "p1=many"],
        &["orders", "place", "p1=1", "--key", "Schlüssel"],
        &["orders", "show", "7"],
        &["orders", "list", "--status", "lost"],
        &["orders", "list", "--limit", "0"],
        &["products", "show", "..", "--url", "http://127.0.0.1:1"],
        &["products", "list", "--url", "127.0.0.1:8080"],
    ] {
        let ended = Process::run(arguments).await;
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (Some(2), ""),
            "{ended:?}"
        );
        assert!(ended.stderr.starts_with("error: "), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn an_api_that_is_not_there_ends_with_4_and_is_named() {
    // Nothing listens at port 1.
    let nowhere = [("STOCKCTL_URL", "http://me:hush-hush@127.0.0.1:1/")];
    let id = Uuid::nil().to_string();
    for arguments in [
        &["orders", "place", "p1=1", "--wait", "5"][..],
        &["orders", "show", &id],
        &["orders", "list"],
        &["orders", "cancel", &id],
        &["products", "list", "--json"],
        &["products", "show", "p1"],
    ] {
        let ended = Process::start(arguments, &nowhere).ended().await;
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (Some(4), ""),
            "{ended:?}"
        );
        let named = "error: the API at http://127.0.0.1:1 cannot be reached: ";
        assert!(ended.stderr.starts_with(named), "{}", ended.stderr);
        assert!(
            ended.stderr.contains("`stockctl serve`"),
            "{}",
            ended.stderr
        );
        assert!(!ended.stderr.contains("hush-hush"), "{}", ended.stderr);
        assert!(
            !ended.stderr.contains("not known"),
            "nothing was sent: {}",
            ended.stderr
        );
    }
}

#[tokio::test]
async fn without_an_address_the_configuration_is_asked_and_the_way_around_it_told() {
    let ended = Process::run(&["products", "list"]).await;
    assert_eq!(ended.code, Some(3));
    let hint =
        "or say where the HTTP API is, by --url or STOCKCTL_URL, and no configuration is needed\n";
    assert!(ended.stderr.ends_with(hint), "{}", ended.stderr);
}

#[tokio::test]
async fn what_is_no_api_of_ours_ends_with_1_and_its_words_do_not_steer_the_terminal() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        for answer in [
            "HTTP/1.1 500 Oh\r\nContent-Length: 9\r\nConnection: close\r\n\r\noh \x1b[2J\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>",
        ] {
            let (mut stream, _) = listener.accept().await.expect("a caller");
            read_request(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.expect("written");
        }
    });
    for _ in 0..2 {
        let ended = Process::run(&["products", "show", "p1", "--url", &url]).await;
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (Some(1), ""),
            "{ended:?}"
        );
        assert!(
            ended.stderr.contains("is the address right?"),
            "{}",
            ended.stderr
        );
        assert!(!ended.stderr.contains('\x1b'), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn who_asks_too_often_is_asked_for_again_when_there_may_be_more() {
    const LIMITED: &str =
        "HTTP/1.1 429 Slowly\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let of = |body: &str, status: u16| {
        format!(
            "HTTP/1.1 {status} OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    let order = r#"{"id":"01a21584-8706-763e-b5e8-dd1039028028","status":"pending","vendorSync":"none","lines":[],"acceptedAt":"2026-11-26T01:42:16Z"}"#;
    let script = [
        LIMITED.to_owned(),
        LIMITED.to_owned(),
        of(order, 202),
        LIMITED.to_owned(),
        of(r#"{"orders":[],"nextCursor":null}"#, 200),
    ];
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let asked = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in script {
            let (mut stream, _) = listener.accept().await.expect("a caller");
            asked.push(read_request(&mut stream).await);
            stream.write_all(answer.as_bytes()).await.expect("written");
        }
        asked
    });
    for arguments in [&["orders", "place", "p1=1"][..], &["orders", "list"]] {
        let ended = Process::run(&[arguments, &["--url", &url]].concat()).await;
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    }
    let asked = asked.await.expect("all were asked for");
    // The same order each time, whatever may have become of one before.
    let key = |request: &str| {
        let mut lines = request.lines().map(str::to_lowercase);
        lines.find(|line| line.starts_with("idempotency-key: "))
    };
    assert!(key(&asked[0]).is_some());
    assert!(
        asked[1..3]
            .iter()
            .all(|request| key(request) == key(&asked[0]))
    );
    assert!(asked[4].starts_with("GET /orders"), "{}", asked[4]);
}

/// Reads a request with its body, and returns it.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await.expect("readable");
        request.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .filter_map(|line| line.split_once(": "))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .map_or(0, |(_, length)| length.parse().expect("a length"));
            if body.len() >= length {
                return text;
            }
        }
        assert!(read > 0, "the request ended in the middle: {text}");
    }
}

/// In front of an API: passes each request on, and loses the answers to the first `lost` of them.
async fn losing_answers(target: String, lost: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        let mut passed = 0;
        while let Ok((mut caller, _)) = listener.accept().await {
            let request = read_request(&mut caller).await;
            let mut api = TcpStream::connect(&target).await.expect("the API is there");
            // So that the whole answer is what comes until the end.
            let request = request.replacen("\r\n", "\r\nConnection: close\r\n", 1);
            api.write_all(request.as_bytes()).await.expect("written");
            let mut answer = Vec::new();
            api.read_to_end(&mut answer).await.expect("an answer");
            passed += 1;
            if passed > lost {
                caller.write_all(&answer).await.expect("written");
            }
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_answer_is_lost_is_placed_once() {
    let shop = Shop::new().await;
    let _serving = shop.serve().await;
    let url = losing_answers(shop.config.http.listen.to_string(), 2).await;
    let placed = shop.run(&["orders", "place", "p1=1", "--url", &url]).await;
    assert_eq!((placed.code, placed.stderr.as_str()), (Some(0), ""));
    assert!(
        placed.stdout.contains("it had been placed before"),
        "{}",
        placed.stdout
    );
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_every_answer_is_lost_the_key_is_told_and_brings_the_same_order() {
    let shop = Shop::new().await;
    let _serving = shop.serve().await;
    let url = losing_answers(shop.config.http.listen.to_string(), 100).await;
    let lost = shop.run(&["orders", "place", "p1=1", "--url", &url]).await;
    assert_eq!((lost.code, lost.stdout.as_str()), (Some(4), ""));
    let (_, after) = lost.stderr.split_once("--key ").expect("the key is told");
    let key = after.split(' ').next().expect("a key");
    let placed = shop.run(&["orders", "place", "p1=1", "--key", key]).await;
    assert_eq!(placed.code, Some(0));
    assert!(
        placed.stdout.contains("it had been placed before"),
        "{}",
        placed.stdout
    );
    assert_eq!(shop.count("SELECT count(*) AS n FROM orders").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_outlasts_an_api_that_is_started_anew() {
    let shop = Shop::new().await;
    shop.sync().await;
    let serving = shop.serve().await;
    let placing = shop.start(&["orders", "place", "p1=1", "--wait", "100", "--json"]);
    eventually("the order is accepted", || async {
        let accepted = shop.count("SELECT count(*) AS n FROM orders").await;
        (accepted == 1).then_some(())
    })
    .await;
    serving.stop().await;
    let _parts = (shop.serve().await, shop.work());
    let placed = placing.ended().await;
    assert_eq!((placed.code, placed.stderr.as_str()), (Some(0), ""));
    assert_eq!(document(&placed)["status"], "confirmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_keys_are_required_the_variable_has_one() {
    let mut shop = Shop::new().await;
    shop.reconfigure(|text| text.replace("[http]\n", "[http]\nrequire_keys = true\n"));
    let _api = shop.serve().await;
    let made = shop.run(&["keys", "create", "shop", "--scope", "orders:read", "--json"]);
    let key = document(&made.await)["key"]
        .as_str()
        .expect("a key")
        .to_owned();
    let run = async |key: &str, arguments: &[&str]| {
        let variables = [
            ("STOCKCTL_URL", shop.url.as_str()),
            ("STOCKCTL_API_KEY", key),
        ];
        Process::start(arguments, &variables).ended().await
    };
    eventually("the key is known", || async {
        (run(&key, &["orders", "list"]).await.code == Some(0)).then_some(())
    })
    .await;
    for (key, arguments, said) in [
        (
            key.as_str(),
            &["orders", "place", "p1=1"][..],
            "this needs an API key with the scope orders:write",
        ),
        (
            "",
            &["orders", "list"],
            "send Authorization: Bearer and an API key",
        ),
        (
            "wrong",
            &["orders", "list"],
            "this API key is not known here",
        ),
    ] {
        let refused = run(key, arguments).await;
        assert_eq!(refused.code, Some(5), "{refused:?}");
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
}
