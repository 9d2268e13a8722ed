//! Processes are replaced under load, and nobody notices: not one request fails, and no order is lost or done twice.

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::Method;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::load::{Installation, PATIENT, start};
use crate::support::keep_alive::{KeepAlive, NoAnswer};
use crate::support::{Process, Shop, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn every_process_is_replaced_under_load_without_one_failed_request_and_without_a_duplicate() {
    let mut installation = Installation::open().await;
    for _ in 0..2 {
        installation.roll().await;
    }
    let last_answers = installation.close().await;
    assert!(last_answers > 0, "the old server sent its clients on");
}

/// A server whose shutdown takes as long as a test likes, on a socket that the shop holds.
async fn serve_patiently(shop: &mut Shop, deadline: &str) -> Process {
    shop.reconfigure(|text| text.replace("[http]\n", &format!("[http]\n{deadline}\n")));
    start(shop, &["serve"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_connected_when_the_shutdown_begins_has_one_more_answer() {
    let mut shop = Shop::new().await;
    shop.sync().await;
    let process = serve_patiently(&mut shop, PATIENT).await;
    let address = shop.config.http.listen;
    let mut clients: Vec<KeepAlive> = (0..4).map(|_| KeepAlive::new(address)).collect();
    let (mut probe, mut late) = (KeepAlive::new(address), KeepAlive::new(address));
    // From now on the broker is there, and what is accepted does not have to wait for the next process.
    eventually("the broker is connected", || async {
        let ready = KeepAlive::new(address)
            .get("/readyz")
            .await
            .expect("an answer");
        (ready.body["rabbitmq"] == "up").then_some(())
    })
    .await;
    // Connected, all of them: who comes after the signal is the next process's.
    for client in clients.iter_mut().chain([&mut probe, &mut late]) {
        let answer = client.get("/readyz").await.expect("an answer");
        assert_eq!((answer.status, answer.is_last), (200, false));
    }
    // Who says nothing at first is not waited for long, so this comes late.
    let mut never_used = tokio::net::TcpStream::connect(address)
        .await
        .expect("it listens");
    process.signal(Signal::SIGTERM);
    // Whoever asks before the signal has arrived is answered as before, and may ask again on the same connection. The last
    // of these answers may have been made before, and only have left after it.
    while !probe.get("/readyz").await.expect("an answer").is_last {}
    let said = late.get("/readyz").await.expect("an answer");
    assert!(said.is_last);
    assert_eq!((probe.opened, late.opened), (1, 1));
    assert_eq!(
        (said.status, &said.body["status"]),
        (503, &json!("draining"))
    );
    assert_eq!(said.body["postgresql"], "up");

    // Also on a connection on which nothing had come yet.
    never_used
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .expect("open");
    let mut answer = String::new();
    never_used
        .read_to_string(&mut answer)
        .await
        .expect("an answer, and the end");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");

    let order = json!({"productId": "p1", "quantity": 1}).to_string();
    let mut ids = BTreeSet::new();
    for client in &mut clients {
        let answer = client
            .send(Method::POST, "/orders", None, &order)
            .await
            .expect("an answer");
        assert_eq!((answer.status, answer.is_last), (202, true), "{answer:?}");
        ids.insert(answer.body["id"].to_string());
        assert_eq!(client.opened, 1, "on the connection that was open");
    }
    assert_eq!(ids.len(), clients.len());
    // Nobody is connected any more: it does not wait for its deadline, and what it accepted is published.
    let ended = process.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(shop.count("SELECT count(*) AS n FROM outbox").await, 0);
    let inserted = shop.count("SELECT count(*) AS n FROM orders").await;
    assert_eq!(inserted, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_holds_up_the_end_for_longer_than_the_deadline() {
    let mut shop = Shop::new().await;
    shop.wait_long_for_locks();
    let process = serve_patiently(&mut shop, "shutdown_deadline_ms = 1000").await;
    let address = shop.config.http.listen;
    // One that says nothing, one that says half of something, and one whose request waits for a lock.
    let connect = || async {
        tokio::net::TcpStream::connect(address)
            .await
            .expect("it listens")
    };
    let mut silent = connect().await;
    let mut half = connect().await;
    half.write_all(b"POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Le")
        .await
        .expect("open");
    let held = shop
        .hold_at(
            "vendorA",
            "SELECT 1 FROM products WHERE id = 'p1' FOR UPDATE",
        )
        .await;
    let mut waiting = KeepAlive::new(address);
    let waiting = tokio::spawn(async move {
        let body = json!({"name": "Product p1", "stock": 3}).to_string();
        waiting
            .send(Method::PUT, "/vendors/vendorA/products/p1", None, &body)
            .await
    });
    shop.held_up_at("vendorA").await;
    process.signal(Signal::SIGTERM);
    let ended = process.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("in hand"), "{ended:?}");
    // It is told that it is not known, or nothing at all.
    match waiting.await.expect("no panic") {
        Ok(answer) => assert_eq!(answer.status, 503, "{answer:?}"),
        Err(NoAnswer::Broken(_)) => {}
        Err(NoAnswer::NotConnected(error)) => panic!("{error}"),
    }
    let mut rest = Vec::new();
    silent
        .read_to_end(&mut rest)
        .await
        .expect("closed, not reset");
    assert!(rest.is_empty());
    drop((held, half));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_socket_of_its_own_answers_whoever_it_lets_connect() {
    let shop = Shop::new().await;
    shop.sync().await;
    for _ in 0..3 {
        // The listener of the shop stays: port 0 takes another.
        let listen = format!("listen = \"{}\"", shop.config.http.listen);
        let file = shop.config_file_with("own.toml", &listen, "listen = \"127.0.0.1:0\"");
        let mut process = Process::configured(&file, &["serve"]);
        let written = process.writes("\"serving\"").await;
        let address = written
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .find_map(|line| Some(line["address"].as_str()?.to_owned()))
            .unwrap_or_else(|| panic!("it says where it serves: {written}"));
        let answered = Arc::new(AtomicUsize::new(0));
        let mut clients = JoinSet::new();
        for _ in 0..8 {
            let (address, answered) = (address.clone(), Arc::clone(&answered));
            clients.spawn(async move {
                // A connection for each request, until there is nobody to connect to.
                loop {
                    match KeepAlive::new(&address).get("/healthz").await {
                        Ok(answer) => assert_eq!(answer.status, 200),
                        Err(NoAnswer::NotConnected(error)) => return error.kind(),
                        Err(NoAnswer::Broken(error)) => panic!("connected, and then {error}"),
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        eventually("requests are answered", || async {
            (answered.load(Ordering::Relaxed) > 200).then_some(())
        })
        .await;
        assert_eq!(process.terminate().await, Some(0));
        while let Some(ended) = clients.join_next().await {
            let kind = ended.expect("no request was lost");
            assert_eq!(kind, std::io::ErrorKind::ConnectionRefused);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_cannot_be_served_on_is_refused() {
    let shop = Shop::new().await;
    let file = shop.config_file.to_str().expect("UTF-8");
    let serve = ["--config", file, "serve"];
    let here = || TcpListener::bind("127.0.0.1:0").expect("a free port");
    let everywhere = TcpListener::bind("0.0.0.0:0").expect("a free port");
    let port = everywhere.local_addr().expect("bound").port().to_string();
    let listener = here();
    let connected = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
    let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let no_socket = std::fs::File::open("/dev/null").expect("it is there");
    let mut texts = String::new();
    for (socket, variables) in [
        (OwnedFd::from(everywhere), &[][..]),
        (OwnedFd::from(connected), &[]),
        (OwnedFd::from(datagrams), &[]),
        (OwnedFd::from(no_socket), &[]),
        (OwnedFd::from(here()), &[("LISTEN_FDS", "2")]),
        (OwnedFd::from(here()), &[("LISTEN_FDS", "many")]),
    ] {
        let ended = Process::start_with_socket(&serve, socket, variables)
            .ended()
            .await;
        assert_eq!(ended.code, Some(3), "{ended:?}");
        texts.push_str(&ended.stderr.replace(&port, "PORT"));
    }
    insta::assert_snapshot!(texts, @r#"
    error: the socket that was passed (LISTEN_FDS): 0.0.0.0:PORT can be reached from other machines, and without API keys whoever reaches it could order, cancel and change stock; set http.require_keys = true and make keys with `stockctl keys create`, or listen on a loopback address such as 127.0.0.1:8080
    error: the socket that was passed (LISTEN_FDS) cannot be used: it does not listen; it must be a listening TCP stream socket, such as systemd's ListenStream=127.0.0.1:8080 with Accept=no
    error: the socket that was passed (LISTEN_FDS) cannot be used: fd 3 is not a valid tcp socket; it must be a listening TCP stream socket, such as systemd's ListenStream=127.0.0.1:8080 with Accept=no
    error: the socket that was passed (LISTEN_FDS) cannot be used: fd 3 is not a socket; it must be a listening TCP stream socket, such as systemd's ListenStream=127.0.0.1:8080 with Accept=no
    error: LISTEN_FDS is "2", but exactly 1 socket can be passed; give each address a process of its own
    error: LISTEN_FDS is "many", but exactly 1 socket can be passed; give each address a process of its own
    "#);
    // Variables for another process, such as a parent, are none of ours; and the harness listens at our address.
    for variables in [&[("LISTEN_PID", "1")][..], &[("LISTEN_FDS", "0")]] {
        let ended = Process::start_with_socket(&serve, here(), variables)
            .ended()
            .await;
        assert_eq!(ended.code, Some(4), "{ended:?}");
        assert!(ended.stderr.contains("http.listen"), "{ended:?}");
    }
}
