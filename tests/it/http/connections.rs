//! Many connections, and slow ones: none keeps the others from ordering.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::ask;
use crate::support::{DEADLINE, Process, Shop, eventually};

const IDLE: usize = 10_000;
/// Connections from one address of this machine to the same port are limited by the ports that there are.
const OF_ONE_ADDRESS: usize = 2_500;
/// Opened at once: the backlog is not to overflow.
const AT_ONCE: usize = 100;
/// Requests on each open connection while another one waits to be let in.
const TURNS: usize = 50;
const ALIVE: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn configure(shop: &mut Shop, connections_max: usize) {
    shop.reconfigure(|text| {
        text.replace(
            "[http]\n",
            &format!("[http]\nconnections_max = {connections_max}\n"),
        )
    });
}

fn serve(shop: &Shop) -> Process {
    let file = shop.config_file.to_str().expect("UTF-8");
    Process::start_with_socket(&["--config", file, "serve"], shop.listener(), &[])
}

/// Opens a connection from an address, has one request answered, and leaves it open.
async fn idle(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from((from, 0))).expect("bound");
    let mut stream = socket.connect(to).await.expect("connects");
    ask_again(&mut stream).await;
    stream
}

/// Has one more request answered on a connection.
async fn ask_again(stream: &mut TcpStream) {
    stream.write_all(ALIVE).await.expect("sent");
    let mut answer = Vec::with_capacity(1024);
    while !answer.ends_with(b"{\"status\":\"ok\"}") {
        let read = stream.read_buf(&mut answer).await.expect("read");
        assert_ne!(read, 0, "it is closed");
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"), "not alive");
}

/// Whether the process at the other end has taken a connection, or the kernel still holds it for that: such a one belongs
/// to nobody there, and has no inode.
fn is_accepted(stream: &TcpStream) -> bool {
    let hex = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => {
            format!("{:08X}:{:04X}", u32::from(*v4.ip()).swap_bytes(), v4.port())
        }
        SocketAddr::V6(_) => panic!("{address} is not of version 4"),
    };
    let there = hex(stream.peer_addr().expect("connected"));
    let here = hex(stream.local_addr().expect("connected"));
    let table = std::fs::read_to_string("/proc/net/tcp").expect("readable");
    let lines = table.lines().map(|line| line.split_whitespace().collect());
    let fields: Vec<&str> = lines
        .into_iter()
        .find(|fields: &Vec<&str>| fields[1] == there && fields[2] == here)
        .expect("the other end is of this machine");
    fields[9] != "0"
}

/// All that is answered until the server closes the connection.
async fn to_its_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    let ended = tokio::time::timeout(DEADLINE, reading).await;
    ended.expect("it is closed").ok();
    String::from_utf8_lossy(&answer).into_owned()
}

/// The memory of a process that is in use, in KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("readable");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.expect("a line").trim().trim_end_matches(" kB");
    number.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_connections_keep_nobody_from_ordering() {
    let shop = Shop::new().await;
    let mut api = serve(&shop);
    eventually("the API is alive", || async {
        let asked = shop.http.get(format!("{}/healthz", shop.url)).send();
        asked.await.ok()
    })
    .await;
    let (address, before) = (shop.config.http.listen, resident_kib(api.id()));
    let mut open = Vec::with_capacity(IDLE);
    while open.len() < IDLE {
        let from = u8::try_from(open.len() / OF_ONE_ADDRESS).expect("few") + 2;
        let from = Ipv4Addr::new(127, 0, 0, from);
        let more = (0..AT_ONCE).map(|_| idle(from, address));
        open.extend(futures_util::future::join_all(more).await);
    }
    let (status, order) = shop
        .post("/orders", json!({"productId": "p1", "quantity": 1}))
        .await;
    assert_eq!(status, 202, "{order}");
    // Still open: the server closes none of them to make room.
    for stream in open.iter_mut().rev().take(10) {
        stream.write_all(ALIVE).await.expect("sent");
    }
    let of_each = resident_kib(api.id()).saturating_sub(before) / u64::try_from(IDLE).expect("few");
    assert!(of_each < 40, "{of_each} KiB for each");
    drop(open);
    assert_eq!(api.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_when_all_connections_are_taken_waits_for_one_to_close() {
    let mut shop = Shop::new().await;
    let workers = std::thread::available_parallelism().expect("known").get();
    configure(&mut shop, workers);
    let mut api = serve(&shop);
    let address = shop.config.http.listen;
    let mut open = Vec::new();
    for _ in 0..workers {
        open.push(idle(Ipv4Addr::LOCALHOST, address).await);
    }
    let mut waiting = TcpStream::connect(address).await.expect("connects");
    waiting.write_all(ALIVE).await.expect("sent");
    let mut begin = [0; 12];
    // A server that took it in would do so in one of these turns of its workers.
    for _ in 0..TURNS {
        for stream in &mut open {
            ask_again(stream).await;
        }
    }
    assert!(!is_accepted(&waiting), "nobody has closed one yet");
    let early = waiting.try_read(&mut begin).map_err(|error| error.kind());
    assert_eq!(early, Err(ErrorKind::WouldBlock), "{begin:?}");
    open.pop();
    let answered = tokio::time::timeout(DEADLINE, waiting.read_exact(&mut begin)).await;
    answered.expect("in time").expect("answered");
    assert_eq!(&begin, b"HTTP/1.1 200");
    drop((open, waiting));
    assert_eq!(api.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_or_a_body_that_does_not_come_is_not_waited_for() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let head = "POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let body = format!("{head}Content-Length: 31\r\n\r\n{{\"productId\":");
    let chunks = format!("{head}Transfer-Encoding: chunked\r\n\r\n1f\r\n{{\"pro");
    let slow = ["", "GET", head, &body, &chunks].map(|sent| {
        let sent = sent.to_owned();
        let address = shop.config.http.listen;
        async move {
            let mut stream = TcpStream::connect(address).await.expect("connects");
            stream.write_all(sent.as_bytes()).await.expect("sent");
            (to_its_end(&mut stream).await, sent)
        }
    });
    for (answer, sent) in futures_util::future::join_all(slow).await {
        assert!(answer.starts_with("HTTP/1.1 408 "), "{sent:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{sent:?}: {answer}");
        assert!(
            answer.contains(r#""code":"request_timeout""#),
            "{sent:?}: {answer}"
        );
    }
    assert_eq!(super::orders_written(&shop).await, 0);
}

/// It has as long as the first, also when it comes a byte at a time, and behind requests of each kind.
#[tokio::test(flavor = "multi_thread")]
async fn a_later_head_of_a_connection_that_does_not_come_is_not_waited_for_either() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let address = shop.config.http.listen;
    let body = r#"{"productId":"p1","quantity":1}"#;
    let order = format!(
        "POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let asked = [order.as_bytes(), ALIVE].concat();
    let slow = [("GET", None), ("GET /healthz HTTP/1.1\r\nHost:", Some(" "))];
    let ended = slow.map(|(sent, dribbled)| {
        let asked = asked.clone();
        async move {
            let mut stream = TcpStream::connect(address).await.expect("connects");
            stream.write_all(&asked).await.expect("sent");
            let mut answers = Vec::new();
            while !answers.ends_with(b"{\"status\":\"ok\"}") {
                let read = stream.read_buf(&mut answers).await.expect("read");
                assert_ne!(read, 0, "it is closed");
            }
            let (mut reading, mut writing) = stream.into_split();
            writing.write_all(sent.as_bytes()).await.expect("sent");
            let dribbling = async {
                while let Some(byte) = dribbled {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    if writing.write_all(byte.as_bytes()).await.is_err() {
                        break;
                    }
                }
                std::future::pending::<()>().await;
            };
            let mut last = String::new();
            tokio::select! {
                read = tokio::time::timeout(DEADLINE, reading.read_to_string(&mut last)) => {
                    // Who still sends to what is closed may be told so by a reset, behind the answer.
                    read.expect("it is closed").ok();
                }
                () = dribbling => {}
            }
            last
        }
    });
    for last in futures_util::future::join_all(ended).await {
        assert!(last.starts_with("HTTP/1.1 408 "), "{last}");
        assert_eq!(last.matches("HTTP/1.").count(), 1, "{last}");
        assert!(last.contains(r#""code":"request_timeout""#), "{last}");
    }
}

/// What a listener sends while it is told is the head of its next request, which may wait until it has heard enough.
#[tokio::test(flavor = "multi_thread")]
async fn who_listens_and_sends_something_goes_on_being_told() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let mut stream = TcpStream::connect(shop.config.http.listen)
        .await
        .expect("connects");
    let listen = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(listen).await.expect("sent");
    let mut told = Vec::new();
    // The second one comes later than any head may.
    for beats in 1..=2 {
        while String::from_utf8_lossy(&told)
            .matches(": still here\n")
            .count()
            < beats
        {
            let read = tokio::time::timeout(DEADLINE, stream.read_buf(&mut told)).await;
            let read = read.expect("it is told").expect("read");
            let text = String::from_utf8_lossy(&told);
            assert!(read > 0 && !text.contains(" 408 "), "{text}");
        }
        stream.write_all(b"GET /he").await.expect("sent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_too_long_is_told_so() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let path = |length: usize| format!("/products?q={}", "a".repeat(length - "/products?q=".len()));
    let answer = ask(&shop, Method::GET, &path(8 * 1024 + 1), &[], "").await;
    assert_eq!(answer.problem(), "414 uri_too_long");
    let answer = ask(&shop, Method::GET, &path(8 * 1024), &[], "").await;
    assert!(answer.problem().starts_with("400 invalid_parameter"));
}
