//! Subscribing: what is taken, what is refused, what is shown to whom; the secret is shown once.

use reqwest::Method;
use serde_json::{Value, json};
use stockctl::domain::keys::Scope;

use super::keys::{ask_with, is_let_in, key, require_keys};
use super::{Answer, JSON, ask, text};
use crate::support::Shop;

async fn create(shop: &Shop, body: Value) -> Answer {
    ask(shop, Method::POST, "/webhooks", &[JSON], body.to_string()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_is_made_listed_shown_without_its_secret_and_deleted() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let made = create(&shop, json!({"url": "https://shop.example/hook?a=b"})).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let secret = text(&made.body["secret"]);
    assert!(
        secret.starts_with("whsec_") && secret.len() == 50,
        "{secret}"
    );
    assert_eq!(made.header("cache-control"), Some("no-store"));
    let place = made.header("location").expect("a place").to_owned();
    assert_eq!(place, format!("/webhooks/{}", text(&made.body["id"])));
    let mut shown = made.body.clone();
    shown.as_object_mut().expect("an object").remove("secret");
    assert_eq!(
        (&shown["caller"], &shown["status"], &shown["url"]),
        (
            &json!("local"),
            &json!("active"),
            &json!("https://shop.example/hook?a=b")
        )
    );
    assert_eq!(shown["types"].as_array().map(Vec::len), Some(5));
    let found = ask(&shop, Method::GET, &place, &[], "").await;
    assert_eq!((found.status, &found.body), (200, &shown));
    // One with a secret of its caller's own, which is kept as it is.
    let own = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let body = json!({"url": "https://shop.example/", "types": ["stock.changed"], "secret": own});
    let second = create(&shop, body).await;
    assert_eq!(second.body["secret"], own);
    assert_eq!(second.body["types"], json!(["stock.changed"]));

    // In pages, the newest first, without secrets.
    let first_page = ask(&shop, Method::GET, "/webhooks?limit=1", &[], "").await;
    let cursor = text(&first_page.body["nextCursor"]);
    assert_eq!(first_page.body["webhooks"][0]["id"], second.body["id"]);
    let link = format!("</webhooks?limit=1&cursor={cursor}>; rel=\"next\"");
    assert_eq!(first_page.header("link"), Some(link.as_str()));
    let path = format!("/webhooks?limit=1&cursor={cursor}");
    let last_page = ask(&shop, Method::GET, &path, &[], "").await;
    assert_eq!(
        last_page.body,
        json!({"webhooks": [shown], "nextCursor": null})
    );
    assert!(!first_page.body.to_string().contains("whsec_"));

    let deleted = ask(&shop, Method::DELETE, &place, &[], "").await;
    assert_eq!((deleted.status, deleted.body), (204, json!("")));
    for method in [Method::GET, Method::DELETE] {
        let answer = ask(&shop, method, &place, &[], "").await;
        assert_eq!(answer.problem(), "404 not_found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_is_asked_for_again_with_its_key_is_the_same_one() {
    let mut shop = Shop::new().await;
    require_keys(&mut shop);
    let _api = shop.serve().await;
    let (_, one) = key(&shop, "one", &[Scope::OrdersRead]).await;
    let (_, other) = key(&shop, "other", &[Scope::OrdersRead]).await;
    is_let_in(&shop, &other).await;
    let plain = json!({"url": "https://shop.example/"});
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let with_secret = json!({"url": "https://shop.example/", "secret": secret});
    let subscribe = async |who: &str, named: &str, body: &Value| {
        let headers = [JSON, ("authorization", who), ("idempotency-key", named)];
        let body = body.to_string();
        ask(&shop, Method::POST, "/webhooks", &headers, body).await
    };
    // At once, as a caller does whose first attempt hangs.
    let same = (0..4).map(|_| subscribe(&one, "key-1", &plain));
    let made = futures_util::future::join_all(same).await;
    for answer in &made {
        assert_eq!(answer.status, 201, "{}", answer.body);
        // Whoever missed the first answer needs its secret.
        assert_eq!(answer.body, made[0].body);
        assert_eq!(answer.header("location"), made[0].header("location"));
    }
    let again = |answer: &&Answer| answer.header("idempotent-replayed") == Some("true");
    assert_eq!(made.iter().filter(again).count(), 3);
    let of_other = subscribe(&other, "key-1", &plain).await;
    assert_eq!(of_other.header("idempotent-replayed"), None);
    assert_ne!(of_other.body["id"], made[0].body["id"]);
    let given = subscribe(&one, "key-2", &with_secret).await;
    assert_eq!((given.status, &given.body["secret"]), (201, &json!(secret)));
    let given_again = subscribe(&one, "\"key-2\"", &with_secret).await;
    assert_eq!(given_again.body, given.body);
    // The key of another request shows nobody a secret.
    for (named, body) in [
        ("key-1", json!({"url": "https://shop.example/other"})),
        (
            "key-1",
            json!({"url": "https://shop.example/", "types": ["order.failed"]}),
        ),
        ("key-1", with_secret.clone()),
        ("key-2", plain.clone()),
        (
            "key-2",
            json!({"url": "https://shop.example/", "secret": "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}),
        ),
    ] {
        let refused = subscribe(&one, named, &body).await;
        assert_eq!(refused.problem(), "422 idempotency_conflict", "{body}");
        assert!(!refused.body.to_string().contains("whsec_"));
    }
    let refused = subscribe(&one, "", &plain).await;
    let expected =
        "400 invalid_parameter \"Idempotency-Key\" must be 1 to 255 characters long, has 0";
    assert_eq!(refused.problem(), expected);
    assert_eq!(shop.count("SELECT count(*) AS n FROM webhooks").await, 3);
    // One that was deleted is made anew.
    let place = made[0].header("location").expect("a place");
    let deleted = ask_with(&shop, &one, Method::DELETE, place, "").await;
    assert_eq!(deleted.status, 204);
    let anew = subscribe(&one, "key-1", &plain).await;
    assert_eq!(
        (anew.status, anew.header("idempotent-replayed")),
        (201, None)
    );
    assert_ne!(anew.body["secret"], made[0].body["secret"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_subscription_is_told_with_what_is_wrong_and_there_is_a_bound() {
    let shop = Shop::new().await;
    let _api = shop.serve().await;
    let mut told = Vec::new();
    for body in [
        json!({"url": "http://shop.example/"}),
        json!({"url": "https://127.0.0.1/hook"}),
        json!({"url": "https://[::1]/hook"}),
        json!({"url": "https://user:hush@shop.example/", "types": [], "secret": "hush"}),
        json!({"url": "https://shop.example/", "types": ["order.lost"]}),
        json!({"url": "https://shop.example/", "colour": "red"}),
        json!({}),
    ] {
        let answer = create(&shop, body).await;
        let problem = answer.problem();
        assert!(!problem.contains("hush"), "{problem}");
        told.push(problem);
    }
    for path in ["/webhooks?cursor=1.2", "/webhooks?limit=0"] {
        told.push(ask(&shop, Method::GET, path, &[], "").await.problem());
    }
    insta::assert_snapshot!(told.join("\n"), @r#"
    422 validation_failed "/url" must begin with https://
    422 validation_failed "/url" 127.0.0.1 is a private, local or reserved address, which is not called unless webhooks.allow_private is set
    422 validation_failed "/url" ::1 is a private, local or reserved address, which is not called unless webhooks.allow_private is set
    422 validation_failed "/url" must not contain a user or a password; messages are signed instead | "/types" must name one at least, or be left out | "/secret" must be whsec_ and the base64 of 24 to 64 random bytes
    422 validation_failed "/types/0" must be one of `order.confirmed`, `order.rejected`, `order.failed`, `order.cancelled`, `stock.changed`, is `order.lost`
    422 validation_failed "/colour" unknown field `colour`, expected one of `url`, `types`, `secret`
    422 validation_failed "/url" is missing
    400 invalid_parameter "cursor" must be a nextCursor of an earlier answer
    400 invalid_parameter "limit" must be 1 to 200, is 0
    "#);

    for _ in 0..20 {
        assert_eq!(
            create(&shop, json!({"url": "https://shop.example/"}))
                .await
                .status,
            201
        );
    }
    let answer = create(&shop, json!({"url": "https://shop.example/"})).await;
    assert_eq!(answer.problem(), "409 too_many_webhooks");
    assert_eq!(
        answer.body["detail"],
        "you have 20 webhooks, and the limit is 20; delete one that is not needed"
    );
    shop.run_here(
        "INSERT INTO webhooks (id, caller, url, types, secret, created_at)
         SELECT gen_random_uuid(), 'other' || n, 'https://shop.example/', ARRAY['stock.changed'], decode(repeat('00', 24), 'hex'), now()
         FROM generate_series(1, 500) AS n; DELETE FROM webhooks WHERE caller = 'local'",
    )
    .await;
    let answer = create(&shop, json!({"url": "https://shop.example/"})).await;
    assert_eq!(answer.problem(), "409 too_many_webhooks");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_caller_has_its_own_subscriptions_and_hears_no_more_than_it_may() {
    let mut shop = Shop::new().await;
    require_keys(&mut shop);
    let _api = shop.serve().await;
    let (_, one) = key(&shop, "one", &[Scope::OrdersRead]).await;
    let (_, other) = key(&shop, "other", &[Scope::StockWrite]).await;
    let (_, admin) = key(&shop, "boss", &[Scope::Admin]).await;
    is_let_in(&shop, &admin).await;
    let body = json!({"url": "https://shop.example/"}).to_string();
    let of_one = ask_with(&shop, &one, Method::POST, "/webhooks", &body).await;
    let of_other = ask_with(&shop, &other, Method::POST, "/webhooks", &body).await;
    assert_eq!(of_one.body["types"].as_array().map(Vec::len), Some(5));
    assert_eq!(of_other.body["types"], json!(["stock.changed"]));
    let orders = json!({"url": "https://shop.example/", "types": ["order.failed"]}).to_string();
    let refused = ask_with(&shop, &other, Method::POST, "/webhooks", &orders).await;
    assert_eq!(refused.problem(), "403 insufficient_scope");
    shop.run_here(
        "INSERT INTO webhooks (id, name, url, types, secret, created_at)
         VALUES (gen_random_uuid(), 'crm', 'https://crm.example/', ARRAY['stock.changed'], decode(repeat('00', 24), 'hex'), now())",
    )
    .await;
    let listed = async |key: &str| {
        let page = ask_with(&shop, key, Method::GET, "/webhooks", "").await;
        let webhooks = page.body["webhooks"].as_array().cloned().expect("a list");
        let whose = |webhook: &Value| match webhook["caller"].as_str() {
            Some(caller) => caller.to_owned(),
            None => format!("configuration's {}", text(&webhook["name"])),
        };
        webhooks.iter().map(whose).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(listed(&one).await, "one");
    assert_eq!(listed(&other).await, "other");
    assert_eq!(listed(&admin).await, "configuration's crm, other, one");
    let path = format!("/webhooks/{}", text(&of_one.body["id"]));
    for method in [Method::GET, Method::DELETE] {
        let answer = ask_with(&shop, &other, method, &path, "").await;
        assert_eq!(answer.problem(), "404 not_found");
    }
    let crm = shop
        .text("SELECT id::text AS t FROM webhooks WHERE name = 'crm'")
        .await;
    let answer = ask_with(&shop, &one, Method::GET, &format!("/webhooks/{crm}"), "").await;
    assert_eq!(answer.problem(), "404 not_found");
    let answer = ask_with(&shop, &admin, Method::DELETE, &path, "").await;
    assert_eq!(answer.status, 204);
}
