//! TLS at the door: what is spoken, what is shown, and what becomes of it when the files change.

use std::path::Path;

use nix::sys::signal::Signal;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::authority::Authority;
use crate::support::{Process, Shop, eventually};

/// What a server shows.
fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    let chain = stream.get_ref().1.peer_certificates();
    chain.expect("shown")[0].clone().into_owned()
}

/// A shop with TLS.
async fn shop(authority: &Authority) -> Shop {
    let mut shop = Shop::new().await;
    let keys = authority.keys();
    shop.reconfigure(|text| text.replace("[http]\n", &format!("[http]\n{keys}\n")));
    shop
}

fn serve(shop: &Shop) -> Process {
    let arguments = ["--config", file(&shop.config_file), "serve"];
    Process::start_with_socket(&arguments, shop.listener(), &[])
}

fn file(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Asks on an open connection, which stays open.
async fn is_alive(stream: &mut TlsStream<TcpStream>) {
    let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(request).await.expect("sent");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("answered");
    assert_eq!(&answer, b"HTTP/1.1 200");
    let mut rest = vec![0; 64 * 1024];
    // To its end, so that the next answer begins at its beginning.
    let mut text = String::new();
    while !text.ends_with('}') {
        let read = stream.read(&mut rest).await.expect("answered");
        text.push_str(&String::from_utf8_lossy(&rest[..read]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_speaks_tls_and_tells_whoever_does_not() {
    let authority = Authority::new();
    let shop = shop(&authority).await;
    let mut api = serve(&shop);
    api.writes("serving").await;
    let url = shop.url.replace("http:", "https:");
    for version in [
        reqwest::tls::Version::TLS_1_2,
        reqwest::tls::Version::TLS_1_3,
    ] {
        let client = authority
            .client()
            .tls_version_min(version)
            .tls_version_max(version)
            .build()
            .expect("a client");
        let order = json!({"productId": "p1", "quantity": 1});
        let placed = client
            .post(format!("{url}/orders"))
            .json(&order)
            .send()
            .await;
        let placed = placed.expect("an answer");
        assert_eq!(placed.status(), 202, "{version:?}");
        assert_eq!(placed.headers().get("strict-transport-security"), None);
        let out = client
            .post(format!("{url}/logout"))
            .send()
            .await
            .expect("an answer");
        let cookie = out.headers()["set-cookie"].to_str().expect("text");
        assert!(
            cookie.ends_with("; HttpOnly; SameSite=Strict; Secure"),
            "{cookie}"
        );
    }
    // The two at once, so that the one is known to be there still.
    let told = super::send_raw(&shop, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let (head, body) = told.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 400 "), "{told}");
    assert!(
        head.contains(&format!("content-length: {}\r\n", body.len())),
        "{told}"
    );
    let mut problem: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let id = head
        .lines()
        .find_map(|line| line.strip_prefix("x-request-id: "));
    let instance = problem["instance"].take();
    assert_eq!(
        Some(instance.as_str().expect("a name")),
        id.map(|id| format!("urn:stockctl:request:{id}")).as_deref()
    );
    insta::assert_json_snapshot!(problem, @r#"
    {
      "code": "tls_required",
      "detail": "TLS is spoken here",
      "instance": null,
      "status": 400,
      "title": "TLS is spoken here",
      "type": "urn:stockctl:problem:tls_required"
    }
    "#);
    let garbage = super::send_raw(&shop, b"\x16\x03\x01\xff\xff\x00garbage").await;
    assert!(!garbage.contains("HTTP"), "{garbage}");

    let ca = authority.path("ca.pem");
    let listed = shop.run(&["orders", "list", "--ca", &ca, "--json"]).await;
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    assert!(listed.stdout.contains("\"p1\""), "{}", listed.stdout);
    let distrusted = shop.run(&["orders", "list"]).await;
    assert_eq!(distrusted.code, Some(4), "{}", distrusted.stderr);
    assert!(
        distrusted.stderr.contains("certificate"),
        "{}",
        distrusted.stderr
    );
    assert_eq!(api.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_shown_from_a_reload_on_and_a_bad_one_never() {
    let authority = Authority::new();
    let shop = shop(&authority).await;
    let mut api = serve(&shop);
    api.writes("serving").await;
    let mut old = authority.connect(&shop).await;
    let first = authority.certificate();
    assert_eq!(shown(&old), first);
    is_alive(&mut old).await;

    authority.certify();
    api.signal(Signal::SIGHUP);
    api.writes("the certificate was read again").await;
    let second = authority.certificate();
    assert_ne!(first, second);
    assert_eq!(shown(&authority.connect(&shop).await), second);
    is_alive(&mut old).await;

    // A key of another certificate.
    let other = KeyPair::generate().expect("a key");
    authority.write("tls.key", &other.serialize_pem());
    api.signal(Signal::SIGHUP);
    let log = api.writes("the certificate was not read again").await;
    assert!(log.contains("http.tls_key ("), "{log}");
    assert!(
        log.contains("it is not the key of the certificate"),
        "{log}"
    );
    assert_eq!(shown(&authority.connect(&shop).await), second);
    is_alive(&mut old).await;
    drop(old);
    assert_eq!(api.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_will_not_do_are_named_at_the_start() {
    let authority = Authority::new();
    let shop = shop(&authority).await;
    let key = std::fs::read_to_string(authority.path("tls.key")).expect("readable");
    let certificate = std::fs::read_to_string(authority.path("tls.crt")).expect("readable");
    let other = KeyPair::generate().expect("a key").serialize_pem();
    let broken = certificate.replacen("MII", "AAA", 1);
    for (name, text, expected) in [
        ("tls.key", other.as_str(), "http.tls_key ("),
        ("tls.key", "", "there is no private key in it"),
        (
            "tls.key",
            certificate.as_str(),
            "there is no private key in it",
        ),
        ("tls.crt", "", "there is no certificate in it"),
        ("tls.crt", key.as_str(), "there is no certificate in it"),
        ("tls.crt", broken.as_str(), "http.tls_certificate ("),
    ] {
        authority.write("tls.key", &key);
        authority.write("tls.crt", &certificate);
        authority.write(name, text);
        let ended = serve(&shop).ended().await;
        assert_eq!(ended.code, Some(3), "{}", ended.stderr);
        assert!(
            ended.stderr.contains(expected),
            "{expected}: {}",
            ended.stderr
        );
    }
    std::fs::remove_file(authority.path("tls.crt")).expect("removed");
    let ended = serve(&shop).ended().await;
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("http.tls_certificate ("),
        "{}",
        ended.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_behind_a_certificate_of_its_own_is_told() {
    let authority = Authority::new();
    let mut shop = shop(&authority).await;
    let vendors = shop.vendor_address();
    let ca = authority.path("ca.pem");
    shop.reconfigure(|text| {
        text.replace(
            "api_url = \"http:",
            &format!("api_ca = \"{ca}\"\napi_url = \"https:"),
        )
    });
    shop.sync().await;
    let _parts = (shop.serve_vendors(), shop.work());
    let client = authority.client().build().expect("a client");
    let url = format!("https://{vendors}/orders");
    let order = json!({"productId": "p1", "quantity": 2});
    let placed = client
        .post(&url)
        .json(&order)
        .send()
        .await
        .expect("an answer");
    let placed: serde_json::Value = placed.json().await.expect("JSON");
    let one = format!("{url}/{}", placed["id"].as_str().expect("an id"));
    eventually("the vendor is told", || async {
        let order: serde_json::Value = client.get(&one).send().await.ok()?.json().await.ok()?;
        (order["vendorSync"] == "done").then_some(())
    })
    .await;
    assert_eq!(shop.stock_at("vendorA", "p1").await, 8);
}
