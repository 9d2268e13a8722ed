//! What an operator does with dead letters, by the command line and by HTTP: nothing is lost, reordered, or done twice.

mod dropping;
mod listing;
mod replaying;

use serde_json::Value;
use stockctl::config;
use stockctl::domain::messages::{DEAD_ATTEMPTS, DEAD_ERROR, DEAD_REASON, DEAD_TIME};
use stockctl::mq::{HeaderValue, Headers, Message, Queue};

use crate::support::messages::message;
use crate::support::{Ended, Running, Shop, ShopOptions};

/// A letter as a consumer leaves it, always of the same moment.
pub(crate) fn letter(queue: Queue, id: &str, reason: &str, body: &str) -> Message {
    let text = |text: &str| HeaderValue::Text(text.to_owned());
    Message {
        headers: Headers::from([
            (DEAD_REASON.to_owned(), text(reason)),
            (DEAD_ERROR.to_owned(), text(&format!("the error of {id}"))),
            (DEAD_TIME.to_owned(), text("2026-11-24T10:00:00.000Z")),
            (DEAD_ATTEMPTS.to_owned(), HeaderValue::Int(4)),
        ]),
        ..message(queue, id, body)
    }
}

/// A shop that gives up at once: on orders of p3, for as long as its schema forbids them, and on vendors.
async fn impatient_shop() -> Shop {
    let shop = Shop::with(ShopOptions {
        config: "[orders]\nretries_max = 0\nretry_delay_ms = 200\n\
                 [vendor_sync]\nretries_max = 0\nretry_delay_ms = 200\n"
            .into(),
        ..ShopOptions::default()
    })
    .await;
    shop.run_here("ALTER TABLE stock_updates ADD CONSTRAINT broken CHECK (product_id <> 'p3')")
        .await;
    shop
}

async fn mend(shop: &Shop) {
    shop.run_here("ALTER TABLE stock_updates DROP CONSTRAINT broken")
        .await;
}

/// Starts consumers that find no vendor at the other end: what they tell never arrives, not even late.
fn work_without_vendors(shop: &mut Shop) -> Running {
    let vendors = shop.vendor_address().to_string();
    let file = shop.config_file_with("without-vendors.toml", &vendors, "127.0.0.1:1");
    let reachable = std::mem::replace(&mut shop.config, config::load(Some(&file)).expect("valid"));
    let work = shop.work();
    shop.config = reachable;
    work
}

/// Runs `stockctl dlq` and checks its exit code.
async fn dlq(shop: &Shop, arguments: &[&str], code: i32) -> Ended {
    let ended = shop.run(&[&["dlq"], arguments].concat()).await;
    assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
    ended
}

/// The message ids of a queue's letters, as the command line lists them.
async fn listed(shop: &Shop, arguments: &[&str]) -> Vec<String> {
    let arguments = [&["list", "--json"], arguments].concat();
    let ended = dlq(shop, &arguments, 0).await;
    let lines = ended.stdout.lines();
    lines
        .map(|line| {
            let letter: Value = serde_json::from_str(line).expect("a document on each line");
            letter["messageId"].as_str().expect("an id").to_owned()
        })
        .collect()
}

/// The report of a replay or a drop.
async fn report(shop: &Shop, arguments: &[&str], code: i32) -> Value {
    let arguments = [arguments, &["--json"]].concat();
    let ended = dlq(shop, &arguments, code).await;
    serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("one document: {ended:?}"))
}
