//! Where nobody is called: what is inside the network of who calls must not be reached by whoever may name an address.

use stockctl::app::webhooks;
use stockctl::commands::work::WorkQueue;
use stockctl::domain::events::{EventType, Filter};
use stockctl::domain::keys::Caller;
use stockctl::domain::webhooks::Secret;

use super::{names, shop_with, subscribe, tell_of, webhook_with_status};
use crate::support::authority::Authority;
use crate::support::receiver::{Receiver, Reply, SECRET};
use crate::support::{Process, Shop, ShopOptions};

#[tokio::test(flavor = "multi_thread")]
async fn a_private_address_is_not_called_by_whichever_name() {
    // Whoever connects there is noticed.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("set");
    let port = listener.local_addr().expect("bound").port();
    let shop = Shop::with(ShopOptions {
        config: "[webhooks]\nretries_max = 0\nretry_delay_ms = 100\n".into(),
        ..ShopOptions::default()
    })
    .await;
    // As somebody may have subscribed while it was allowed, or before a name came to mean another address.
    let context = shop.context_here();
    let mut ids = Vec::new();
    for url in [
        format!("https://127.0.0.1:{port}/"),
        format!("https://[::ffff:127.0.0.1]:{port}/"),
        format!("https://localhost:{port}/"),
        format!("http://127.0.0.1:{port}/"),
    ] {
        let filter = Filter::of([EventType::StockChanged].into(), None);
        let secret = Secret::parse(SECRET).expect("a secret");
        let caller = Caller::local();
        let asked = webhooks::Asked {
            url,
            filter,
            secret: Some(secret),
            key: None,
        };
        let made = webhooks::create(&context, &caller, asked, chrono::Utc::now()).await;
        ids.push(made.expect("made").0.id.to_string());
    }
    let _parts = (shop.serve().await, shop.work_on(&[WorkQueue::Webhooks]));
    // Five in a row show in the listing.
    tell_of(&shop, &super::names("p", 5)).await;
    let letters = shop.dead_letters("webhooks_dlq", 20).await;
    // What a name means here is not told.
    let by_name = "its name leads to no public address";
    let is_told = |error: &str| error == by_name || error.contains("webhooks.allow_private");
    for letter in &letters {
        let error = letter["error"].as_str().expect("an error");
        assert!(is_told(error), "{error}");
    }
    for id in ids {
        let shown = webhook_with_status(&shop, &id, "failing").await;
        let error = shown["lastError"].as_str().expect("an error");
        assert!(is_told(error), "{error}");
        assert_eq!(
            error == by_name,
            shown["url"].as_str().expect("a URL").contains("localhost")
        );
    }
    let nobody = listener.accept().expect_err("nobody has connected");
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_with_tls_is_told_if_its_certificate_is_trusted_and_only_then() {
    let receiver = Receiver::start(|_| Reply::Status(200));
    let authority = Authority::new();
    let port = authority.before(receiver.address).await;
    let shop = shop_with("").await;
    let _api = shop.serve().await;
    let id = subscribe(&shop, &format!("https://127.0.0.1:{port}/hook"), &[]).await;
    let file = shop.config_file.to_str().expect("UTF-8");
    let arguments = ["--config", file, "work", "--queue", "webhooks"];
    let ca = authority.path("ca.pem");
    let mut trusting = Process::start(&arguments, &[("SSL_CERT_FILE", &ca)]);
    trusting.writes("feeds the queue of webhooks").await;
    tell_of(&shop, &["p1".to_owned()]).await;
    receiver.came("/hook", 1).await;
    trusting.kill().await;
    let other = Process::start(&arguments, &[]);
    other.writes("feeds the queue of webhooks").await;
    tell_of(&shop, &names("other", 5)).await;
    let failing = webhook_with_status(&shop, &id, "failing").await;
    let error = failing["lastError"].as_str().expect("an error");
    assert!(error.contains("certificate"), "{error}");
    assert_eq!(receiver.at_path("/hook").len(), 1);
}
