//! What is told, to whom, and how it is signed.

use chrono::Utc;
use serde_json::{Value, json};
use stockctl::app::{dead_letters, keys, relay, webhooks};
use stockctl::commands::work::WorkQueue;
use stockctl::domain::ids::{OrderId, ProductId};
use stockctl::domain::keys::Scope;
use stockctl::domain::order::{Line, Lines, NewOrder};
use stockctl::domain::webhooks::Subscription;

use super::{names, products, shop_with, subscribe, tell_of, what_was_before_is_not_told};
use crate::support::receiver::{Came, Receiver, Reply, SECRET};
use crate::support::{Shop, eventually};

fn one_unit() -> Lines {
    let product_id = ProductId::parse("p1").expect("valid");
    let line = Line {
        product_id,
        quantity: 1,
    };
    Lines::parse(vec![line]).expect("valid")
}

async fn key(shop: &Shop, caller: &str, scopes: &[Scope]) -> String {
    let scopes = scopes.iter().copied().collect();
    let context = shop.context_here();
    let made = keys::create(&context, caller.into(), scopes, Utc::now(), None).await;
    format!("Bearer {}", made.expect("made").1.reveal())
}

async fn post(shop: &Shop, key: &str, path: &str, body: Value) -> Value {
    let request = shop.http.post(format!("{}{path}", shop.url)).json(&body);
    let (status, answer) = shop
        .send(
            request
                .header("authorization", key)
                .header("prefer", "wait=60"),
        )
        .await;
    assert!((200..300).contains(&status), "{status} {answer}");
    answer
}

/// Kinds with what each is about, sorted.
fn told(came: &[Came]) -> Vec<String> {
    let mut told: Vec<String> = came
        .iter()
        .map(|came| {
            let about = [&came.body["order"]["id"], &came.body["productId"]];
            let about = about.iter().find_map(|id| id.as_str()).expect("an id");
            format!("{} {about}", came.kind())
        })
        .collect();
    told.sort();
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_of_the_configuration_shows_no_token_and_is_taken_out_there() {
    let receiver = Receiver::start(|_| Reply::Status(200));
    let shop = shop_with(&format!(
        "[webhooks.crm]\nurl = \"{}\"\nsecret = \"{SECRET}\"",
        receiver.url("/crm?token=hush")
    ))
    .await;
    let _parts = (shop.serve().await, shop.work());
    let configured = eventually("it is there", || async {
        let (_, listed) = shop.get("/webhooks").await;
        listed["webhooks"].get(0).cloned()
    })
    .await;
    assert_eq!(configured["url"], receiver.url("/***"));
    let id = configured["id"].as_str().expect("an id");
    let delete = shop.http.delete(format!("{}/webhooks/{id}", shop.url));
    let (status, answer) = shop.send(delete).await;
    assert_eq!(
        (status, &answer["code"]),
        (409, &json!("webhook_configured"))
    );
    let (status, _) = shop.get(&format!("/webhooks/{id}")).await;
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_the_configuration_that_has_ended_begins_anew_elsewhere_or_when_it_was_taken_out() {
    let shop = Shop::new().await;
    let context = shop.context_here();
    let crm = |path: &str| {
        let url = format!("https://receiver.example/{path}");
        webhooks::configured("crm", &url, &[], SECRET, false, Utc::now()).expect("valid")
    };
    let configure = async |all: &[Subscription]| {
        let configured = webhooks::configure(&context, all).await;
        configured.expect("written");
        let ended =
            "SELECT count(*) AS n FROM webhooks WHERE name = 'crm' AND disabled_at IS NOT NULL";
        let there = "SELECT count(*) AS n FROM webhooks WHERE name = 'crm'";
        (shop.count(there).await, shop.count(ended).await)
    };
    let end = async || {
        shop.run_here("UPDATE webhooks SET disabled_at = now()")
            .await
    };
    assert_eq!(configure(&[crm("a")]).await, (1, 0));
    end().await;
    assert_eq!(configure(&[crm("a")]).await, (1, 1), "as it was");
    assert_eq!(configure(&[crm("b")]).await, (1, 0), "elsewhere");
    end().await;
    assert_eq!(configure(&[]).await, (0, 0), "taken out");
    assert_eq!(configure(&[crm("b")]).await, (1, 0), "begun anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_hears_what_it_may_of_each_type_signed_and_as_listeners_do() {
    let receiver = Receiver::start(|_| Reply::Status(200));
    let mut shop = shop_with(&format!(
        "[webhooks.crm]\nurl = \"{}\"\ntypes = [\"order.confirmed\", \"order.failed\"]\nsecret = \"{SECRET}\"",
        receiver.url("/crm")
    ))
    .await;
    shop.reconfigure(|text| text.replace("[http]\n", "[http]\nrequire_keys = true\n"));
    shop.sync().await;
    let both = [Scope::OrdersRead, Scope::OrdersWrite];
    let one = key(&shop, "one", &both).await;
    let other = key(&shop, "other", &both).await;
    let stocker = key(&shop, "stocker", &[Scope::StockWrite]).await;
    let boss = key(&shop, "boss", &[Scope::Admin]).await;
    let _parts = (shop.serve().await, shop.work());
    eventually("the keys are known", || async {
        let request = shop.http.get(format!("{}/products", shop.url));
        let (status, _) = shop.send(request.header("authorization", &boss)).await;
        (status == 200).then_some(())
    })
    .await;
    eventually("the configuration's is there", || async {
        let named = "SELECT count(*) AS n FROM webhooks WHERE name = 'crm'";
        (shop.count(named).await == 1).then_some(())
    })
    .await;
    what_was_before_is_not_told(&shop).await;
    for (key, path, types) in [
        (&one, "/one", None),
        (&one, "/one/cancelled", Some(["order.cancelled"])),
        (&other, "/other", None),
        (&stocker, "/stocker", None),
        (&boss, "/boss", None),
    ] {
        let body = json!({"url": receiver.url(path), "types": types, "secret": SECRET});
        post(&shop, key, "/webhooks", body).await;
    }

    let order = json!({"lines": [{"productId": "p1", "quantity": 2}], "reference": "cart 17"});
    let confirmed = post(&shop, &one, "/orders", order).await;
    let id = confirmed["id"].as_str().expect("an id");
    let short = json!({"productId": "p3", "quantity": 100});
    let rejected = post(&shop, &other, "/orders", short).await;
    post(&shop, &one, &format!("/orders/{id}/cancel"), json!({})).await;
    let failed = NewOrder {
        id: OrderId(uuid::Uuid::now_v7()),
        caller: "one".into(),
        idempotency_key: None,
        lines: one_unit(),
        reference: None,
        accepted_at: Utc::now(),
    };
    let context = shop.context_here();
    dead_letters::fail_order(&context, &failed, "by intention", Utc::now())
        .await
        .expect("failed");

    let (c, r, f) = (id, rejected["id"].as_str().expect("an id"), failed.id);
    let of_order = |kind: &str, id: &str| format!("order.{kind} {id}");
    let of_one = [
        of_order("cancelled", c),
        of_order("confirmed", c),
        of_order("failed", &f.to_string()),
    ];
    // What was given back counts once its vendor has it, and no vendor is there.
    let stock = ["stock.changed p1".to_owned()];
    let all = |of: &[&[String]]| {
        let mut all: Vec<String> = of.concat();
        all.sort();
        all
    };
    assert_eq!(
        told(&receiver.came("/one", 4).await),
        all(&[&of_one, &stock])
    );
    assert_eq!(told(&receiver.came("/one/cancelled", 1).await), of_one[..1]);
    let of_other = [of_order("rejected", r)];
    assert_eq!(
        told(&receiver.came("/other", 2).await),
        all(&[&of_other, &stock])
    );
    assert_eq!(told(&receiver.came("/stocker", 1).await), stock);
    assert_eq!(
        told(&receiver.came("/boss", 5).await),
        all(&[&of_one, &of_other, &stock])
    );
    assert_eq!(
        told(&receiver.came("/crm", 2).await),
        [of_order("confirmed", c), of_order("failed", &f.to_string())]
    );
    // As those hear it who listen.
    let came = receiver.at_path("/one");
    let first = came.iter().find(|came| came.kind() == "order.confirmed");
    let first = &first.expect("it came").body;
    assert!(first["at"].is_string() && first["order"]["acceptedAt"].is_string());
    let mut order = first["order"].clone();
    order
        .as_object_mut()
        .expect("an order")
        .remove("acceptedAt");
    assert_eq!(
        order,
        json!({"id": c, "caller": "one", "status": "confirmed", "reference": "cart 17", "lines": [{"productId": "p1", "quantity": 2}]})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_behind_for_longer_than_events_are_kept_is_told_so_and_goes_on() {
    let receiver = Receiver::start(|_| Reply::Status(204));
    let shop = shop_with("").await;
    let _api = shop.serve().await;
    subscribe(&shop, &receiver.url("/hook"), &["stock.changed"]).await;
    tell_of(&shop, &names("lost", 3)).await;
    // A transaction that is open anywhere on the server keeps events from being deleted.
    eventually("the events are deleted", || async {
        let context = shop.context_here();
        let swept = relay::sweep_events(&context, std::time::Duration::ZERO).await;
        (swept.expect("swept") > 0).then_some(())
    })
    .await;
    let _work = shop.work_on(&[WorkQueue::Webhooks]);
    let reset = receiver.came("/hook", 1).await;
    assert_eq!(reset[0].kind(), "reset");
    assert!(reset[0].body["detail"].is_string());
    tell_of(&shop, &names("next", 2)).await;
    let came = receiver.came("/hook", 3).await;
    assert_eq!(products(&came[1..]), ["next0", "next1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_subscribes_to_nothing_costs_nothing_and_one_transaction_may_tell_of_much() {
    let receiver = Receiver::start(|_| Reply::Status(200));
    let shop = shop_with("").await;
    let _parts = (shop.serve().await, shop.work_on(&[WorkQueue::Webhooks]));
    // Told before somebody subscribes: to nobody. And nothing of webhooks is at the broker.
    tell_of(&shop, &names("before", 2)).await;
    let (_, queues) = shop.get("/admin/queues").await;
    let queues = queues["queues"].as_array().cloned().expect("a list");
    assert!(
        queues.iter().all(|queue| !queue["name"]
            .as_str()
            .expect("a name")
            .starts_with("webhooks")),
        "{queues:?}"
    );
    let (status, letters) = shop.get("/admin/dead-letters/webhooks_dlq").await;
    assert_eq!(
        (status, &letters),
        (
            200,
            &json!({"deadLetters": [], "notLookedAt": 0, "nextCursor": null})
        )
    );
    // Of that transaction nothing is told: wait until it is behind all that are open.
    eventually("older transactions are over", || async {
        let behind = "SELECT (pg_snapshot_xmin(pg_current_snapshot()) > max(xid))::integer::bigint AS n FROM events";
        (shop.count(behind).await == 1).then_some(())
    })
    .await;
    subscribe(&shop, &receiver.url("/hook"), &[]).await;
    let many = names("p", 1_200);
    tell_of(&shop, &many).await;
    let came = receiver.came("/hook", many.len()).await;
    assert_eq!(products(&came).len(), many.len());
    let ids: std::collections::BTreeSet<&str> = came.iter().map(|came| came.id.as_str()).collect();
    assert_eq!(ids.len(), many.len(), "each has an id of its own");
}
