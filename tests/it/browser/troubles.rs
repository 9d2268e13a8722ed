//! What is away is said on the page, and what is back is not; the page goes on by itself.

use std::path::PathBuf;

use super::Page;
use crate::support::{Process, Proxy, Shop};

/// A proxy before a server, and a configuration in which it is found through it.
async fn before(shop: &Shop, name: &str, url: &str) -> (Proxy, PathBuf) {
    let mut url_through: url::Url = url.parse().expect("a URL");
    let host_and_port = format!("127.0.0.1:{}", url_through.port().expect("a port"));
    let proxy = Proxy::before(host_and_port).await;
    url_through
        .set_port(Some(proxy.address.port()))
        .expect("settable");
    let file = shop.config_file_with(name, url, url_through.as_str());
    (proxy, file)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_away_is_said_on_the_page_and_what_is_back_is_not() {
    let mut shop = Shop::new().await;
    shop.reconfigure(|text| {
        text.replace("connect_timeout_ms = 10000", "connect_timeout_ms = 5000")
    });
    let vendors = shop.serve_vendors();
    let api = format!("http://{}/vendors/vendorA", shop.vendor_address());
    let (vendor_api, for_work) = before(&shop, "work.toml", &api).await;
    let own = shop.own_database_url().to_owned();
    let (postgresql, for_serve) = before(&shop, "serve.toml", &own).await;
    let of_vendor = shop.database_url_of("vendorB").to_owned();
    let (vendor_database, for_sync) = before(&shop, "sync.toml", &of_vendor).await;
    // The API is behind two.
    let amqp = shop.broker().urls[0].clone();
    let mut amqp_through: url::Url = amqp.parse().expect("a URL");
    let rabbitmq = Proxy::before(format!(
        "127.0.0.1:{}",
        amqp_through.port().expect("a port")
    ))
    .await;
    amqp_through
        .set_port(Some(rabbitmq.address.port()))
        .expect("settable");
    let text = std::fs::read_to_string(&for_serve).expect("readable");
    std::fs::write(&for_serve, text.replace(&amqp, amqp_through.as_str())).expect("written");
    shop.sync().await;

    let file = for_serve.to_str().expect("UTF-8");
    let mut serve = Process::start_with_socket(&["--config", file, "serve"], shop.listener(), &[]);
    let page = Page::open(&shop).await;
    page.shows("#banner", "Nobody consumes the work queues")
        .await;
    let mut work = Process::configured(&for_work, &["work"]);
    page.shows_no("#banner", "").await;

    // A vendor's database is away, then its API.
    vendor_database.cut();
    let synced = Process::configured(&for_sync, &["sync", "--once"])
        .ended()
        .await;
    assert_ne!(synced.code, Some(0), "{synced:?}");
    page.shows("[aria-label=Vendors] tr .badge.bad", "").await;
    vendor_api.cut();
    shop.order(&[("p1", 1)]).await;
    page.shows_cell("vendorA", "Takes updates", "failing").await;
    for _ in 0..6 {
        shop.order(&[("p1", 1)]).await;
    }
    page.shows_cell("vendorA", "Takes updates", "left alone")
        .await;
    page.looks_well("vendors-away").await;
    vendor_api.mend();
    vendor_database.mend();
    page.shows_cell("vendorA", "Takes updates", "yes").await;
    let synced = Process::configured(&for_sync, &["sync", "--once"])
        .ended()
        .await;
    assert_eq!(synced.code, Some(0), "{synced:?}");
    page.shows_cell("vendorB", "Last sync", "ok").await;

    // One store, the other, both.
    rabbitmq.cut();
    page.shows(
        "#banner",
        "RabbitMQ is down. Orders are accepted and wait in the outbox",
    )
    .await;
    page.looks_well("rabbitmq-away").await;
    rabbitmq.mend();
    page.shows_no("#banner", "").await;
    page.fill("input[name=product]", "p3").await;
    postgresql.cut();
    page.shows(
        "#banner",
        "PostgreSQL is down. Orders are accepted through RabbitMQ",
    )
    .await;
    // Figures that are old are not taken for new ones.
    page.shows("#trouble", "What is shown is of ").await;
    page.looks_well("postgresql-away").await;
    page.press_button("Place a test order").await;
    page.shows("section[aria-label=Order] .problem", "").await;
    page.looks_well("order-on-its-way").await;
    rabbitmq.cut();
    page.shows("#banner", "PostgreSQL and RabbitMQ are both down")
        .await;
    rabbitmq.mend();
    postgresql.mend();
    page.shows("main .badge", "confirmed").await;
    page.shows_no("#banner", "").await;
    page.shows_no("main .problem", "").await;

    // The server itself.
    assert_eq!(serve.terminate().await, Some(0));
    page.shows(
        "#live",
        "No answer from the server; trying again. What is shown is of ",
    )
    .await;
    page.looks_well("server-away").await;
    let mut serve = Process::start_with_socket(&["--config", file, "serve"], shop.listener(), &[]);
    page.shows("#live", "Live").await;
    page.close(&["503 (Service Unavailable)", "net::ERR_"])
        .await;
    assert_eq!(serve.terminate().await, Some(0));
    assert_eq!(work.terminate().await, Some(0));
    vendors.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_wait_are_shown_however_long_ago_they_came_also_while_rabbitmq_is_away() {
    let shop = Shop::new().await;
    shop.sync().await;
    let amqp = shop.broker().urls[0].clone();
    let (rabbitmq, file) = before(&shop, "serve.toml", &amqp).await;
    let file = file.to_str().expect("UTF-8");
    let mut serve = Process::start_with_socket(&["--config", file, "serve"], shop.listener(), &[]);
    let page = Page::open(&shop).await;
    page.shows("#banner", "Nobody consumes the work queues")
        .await;
    rabbitmq.cut();
    page.shows("#banner", "RabbitMQ is down.").await;
    // Nobody could, whoever runs.
    page.shows_no("#banner", "Nobody consumes").await;
    shop.order(&[("p1", 1)]).await;
    shop.run_here("UPDATE orders SET accepted_at = accepted_at - interval '10 minutes'")
        .await;
    page.shows(".standing", "1 order pending, the oldest for 10 min.")
        .await;
    page.shows("main", "No orders in the last two minutes.")
        .await;
    page.shows("[aria-label=Queues]", "The queues cannot be looked at")
        .await;
    page.shows_cell("outbox (PostgreSQL)", "Waiting", "1").await;
    page.looks_well("orders-wait").await;
    rabbitmq.mend();
    page.shows_cell("outbox (PostgreSQL)", "Waiting", "0").await;
    page.close(&["503 (Service Unavailable)"]).await;
    assert_eq!(serve.terminate().await, Some(0));
}
