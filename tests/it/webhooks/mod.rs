//! Webhooks: whoever subscribes is told what happens, signed, again until it is taken, and nobody is held up by anybody
//! else's receiver.

mod addresses;
mod interrupted;
mod retried;
mod told;

use serde_json::{Value, json};

use crate::support::receiver::{Came, SECRET};
use crate::support::{Shop, ShopOptions, eventually};

/// A shop whose receivers are on this machine, and that tries again soon.
async fn shop_with(webhooks: &str) -> Shop {
    Shop::with(ShopOptions {
        config: format!(
            "[orders]\nretry_delay_ms = 200\n[vendor_sync]\nretry_delay_ms = 200\ntimeout_ms = 20000\n\
             [webhooks]\nallow_private = true\nretry_delay_ms = 100\n{webhooks}\n"
        ),
        ..ShopOptions::default()
    })
    .await
}

/// Subscribes, and returns the subscription's id.
async fn subscribe(shop: &Shop, url: &str, types: &[&str]) -> String {
    let types = (!types.is_empty()).then_some(types);
    let body = json!({"url": url, "types": types, "secret": SECRET});
    let (status, made) = shop.post("/webhooks", body).await;
    assert_eq!(status, 201, "{made}");
    made["id"].as_str().expect("an id").to_owned()
}

/// A subscription as it is listed.
async fn webhook(shop: &Shop, id: &str) -> Value {
    let (status, found) = shop.get(&format!("/webhooks/{id}")).await;
    assert_eq!(status, 200, "{found}");
    found
}

/// Waits until a subscription has a status, and returns it.
async fn webhook_with_status(shop: &Shop, id: &str, status: &str) -> Value {
    eventually(&format!("webhook {id} is {status}"), || async {
        let found = webhook(shop, id).await;
        (found["status"] == status).then_some(found)
    })
    .await
}

/// Waits until a subscription would begin after all that has happened. It begins with the oldest transaction that is open on
/// the server, which may be another test's, and older than what this one has done.
async fn what_was_before_is_not_told(shop: &Shop) {
    let later =
        "SELECT count(*) AS n FROM events WHERE xid >= pg_snapshot_xmin(pg_current_snapshot())";
    eventually("what has happened is before the horizon", || async {
        (shop.count(later).await == 0).then_some(())
    })
    .await;
}

/// Lets something happen: another number is available of products that nobody has.
async fn tell_of(shop: &Shop, products: &[String]) {
    let products: Vec<String> = products.iter().map(|of| format!("'{of}'")).collect();
    let products = products.join(", ");
    shop.run_here(&format!(
        "INSERT INTO events (kind, product_ids, at) VALUES ('stock.changed', ARRAY[{products}], now())"
    ))
    .await;
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n}")).collect()
}

/// The products that messages tell of, sorted, each once.
fn products(came: &[Came]) -> Vec<String> {
    let mut products: Vec<String> = came
        .iter()
        .map(|came| came.body["productId"].as_str().expect("stock").to_owned())
        .collect();
    products.sort();
    products.dedup();
    products
}
