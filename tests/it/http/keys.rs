//! API keys: every route asks for one, each caller has what is its own, and what is revoked opens nothing.

use std::collections::BTreeSet;
use std::future::Future;

use chrono::{TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use stockctl::app::keys;
use stockctl::config;
use stockctl::db::orders::READ_FOR_PAGE_MAX;
use stockctl::domain::keys::{KeyId, Scope};
use stockctl::http::openapi;

use super::outage::serve_without;
use super::{Answer, JSON, ask, text};
use crate::support::{Proxy, Shop, ShopOptions, eventually};

/// A shop that asks for keys.
async fn shop() -> Shop {
    let mut shop = Shop::new().await;
    require_keys(&mut shop);
    shop
}

pub(super) fn require_keys(shop: &mut Shop) {
    shop.reconfigure(|text| text.replace("[http]\n", "[http]\nrequire_keys = true\n"));
}

/// A new key's id, and the header that has it.
pub(super) async fn key(shop: &Shop, caller: &str, scopes: &[Scope]) -> (KeyId, String) {
    let scopes = scopes.iter().copied().collect();
    let context = shop.context_here();
    let made = keys::create(&context, caller.into(), scopes, Utc::now(), None);
    let (key, token) = made.await.expect("made");
    (key.id, format!("Bearer {}", token.reveal()))
}

pub(super) async fn ask_with(
    shop: &Shop,
    authorization: &str,
    method: Method,
    path: &str,
    body: &str,
) -> Answer {
    let headers = [JSON, ("authorization", authorization)];
    ask(shop, method, path, &headers, body.to_owned()).await
}

/// Waits until the server knows of what was changed.
async fn becomes<F: Future<Output = Answer>>(what: &str, ask: impl Fn() -> F, status: u16) {
    eventually(what, || async {
        (ask().await.status == status).then_some(())
    })
    .await;
}

pub(super) async fn is_let_in(shop: &Shop, authorization: &str) {
    let ask = || ask_with(shop, authorization, Method::GET, "/products", "");
    becomes("the key is known", ask, 200).await;
}

/// Every operation that is described, and what it needs; none where it needs nothing.
fn operations() -> Vec<(Method, String, Option<Vec<String>>)> {
    let document = openapi::document();
    let mut operations = Vec::new();
    for (path, of_path) in document["paths"].as_object().expect("paths") {
        let path = path
            .replace("{queue}", "orders_dlq")
            .replace("{vendor}", "vendorA")
            .replace("{messageId}", "m-1")
            .replace("{id}", "00000000-0000-7000-8000-000000000000");
        // Whoever is let in there would be told for ever.
        let path = match path.as_str() {
            "/events" => "/events?type=none".to_owned(),
            _ => path,
        };
        for (method, operation) in of_path.as_object().expect("operations") {
            let method = method.to_uppercase().parse().expect("a method");
            let security = operation["security"].as_array().expect("a list");
            let scopes = security.first().map(|first| {
                let scopes = first["apiKey"].as_array().expect("scopes");
                scopes.iter().map(text).collect()
            });
            operations.push((method, path.clone(), scopes));
        }
    }
    operations
}

/// What needs no key.
const OPEN: [&str; 10] = [
    "GET /",
    "GET /docs",
    "GET /docs/rapidoc-min.js",
    "GET /healthz",
    "GET /openapi.json",
    "GET /page/page.css",
    "GET /page/page.js",
    "GET /readyz",
    "POST /login",
    "POST /logout",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_route_asks_for_a_key_and_for_its_scope() {
    let shop = shop().await;
    let _api = shop.serve().await;
    let context = shop.context_here();
    let (ended, now) = (TimeDelta::seconds(1), Utc::now());
    let (_, token) = keys::create(
        &context,
        "late".into(),
        [Scope::Admin].into(),
        now - ended * 2,
        Some(ended),
    )
    .await
    .expect("made");
    let expired = format!("Bearer {}", token.reveal());
    let (id, revoked) = key(&shop, "gone", &[Scope::Admin]).await;
    keys::revoke(&context, &id, now).await.expect("revoked");
    let (id, _) = key(&shop, "shop", &[Scope::Admin]).await;
    let wrong = format!("Bearer stockctl_{id}_{}", "0".repeat(64));
    let mut of_scope = Vec::new();
    for scope in Scope::ALL {
        of_scope.push((
            scope,
            key(
                &shop,
                scope.as_str().split(':').next().expect("one"),
                &[scope],
            )
            .await
            .1,
        ));
    }
    // The last that was made; those before it are known with it.
    is_let_in(&shop, &of_scope[3].1).await;

    let mut open = BTreeSet::new();
    for (method, path, needs) in operations() {
        let what = format!("{method} {path}");
        let without = ask(&shop, method.clone(), &path, &[JSON], "").await;
        let Some(needs) = needs else {
            assert!(![401, 403].contains(&without.status), "{what}");
            open.insert(what);
            continue;
        };
        assert_eq!(without.problem(), "401 unauthenticated", "{what}");
        assert_eq!(
            without.header("www-authenticate"),
            Some("Bearer realm=\"stockctl\"")
        );
        for (authorization, detail) in [
            (&wrong, "this API key is not known here"),
            (&expired, "this API key has expired"),
            (&revoked, "this API key was revoked"),
        ] {
            let refused = ask_with(&shop, authorization, method.clone(), &path, "").await;
            assert_eq!(refused.problem(), "401 invalid_key", "{what}");
            assert_eq!(refused.body["detail"], detail, "{what}");
            assert_eq!(
                refused.header("www-authenticate"),
                Some("Bearer realm=\"stockctl\", error=\"invalid_token\"")
            );
        }
        for (scope, authorization) in &of_scope {
            let answer = ask_with(&shop, authorization, method.clone(), &path, "").await;
            let may = needs.is_empty() || needs == [scope.as_str()] || *scope == Scope::Admin;
            if may {
                assert!(
                    ![401, 403].contains(&answer.status),
                    "{what} with {scope}: {}",
                    answer.body
                );
            } else {
                assert_eq!(
                    answer.problem(),
                    "403 insufficient_scope",
                    "{what} with {scope}"
                );
                let named = answer.header("www-authenticate").expect("a challenge");
                assert!(
                    named.ends_with(&format!("scope=\"{}\"", needs[0])),
                    "{what}: {named}"
                );
            }
        }
    }
    assert_eq!(open.iter().map(String::as_str).collect::<Vec<_>>(), OPEN);
    for authorization in ["Basic dTpw", "Bearer", "stockctl_1_2", ""] {
        let answer = ask_with(&shop, authorization, Method::GET, "/products", "").await;
        assert_eq!(answer.problem(), "401 unauthenticated", "{authorization:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_every_scope_but_the_one_that_is_needed_is_not_enough() {
    let shop = shop().await;
    let _api = shop.serve().await;
    // All but one, and but the one that allows everything.
    let mut all_but = Vec::new();
    for missing in Scope::ALL {
        let mut scopes = BTreeSet::from(Scope::ALL);
        scopes.retain(|scope| ![missing, Scope::Admin].contains(scope));
        let scopes: Vec<Scope> = scopes.into_iter().collect();
        all_but.push((missing, key(&shop, "most", &scopes).await.1));
    }
    is_let_in(&shop, &all_but[3].1).await;
    for (method, path, needs) in operations() {
        let Some(needs) = needs else { continue };
        for (missing, authorization) in &all_but {
            let answer = ask_with(&shop, authorization, method.clone(), &path, "").await;
            let lacks = needs == [missing.as_str()] || needs == [Scope::Admin.as_str()];
            assert_eq!(
                answer.status == 403,
                lacks,
                "{method} {path} without {missing}: {}",
                answer.body
            );
        }
    }
}

/// However many others place: its own are found behind them, and no page tells of where the others' are.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_lists_its_own_orders_behind_any_number_of_others() {
    let shop = shop().await;
    let _api = shop.serve().await;
    let (_, own) = key(&shop, "shop", &[Scope::OrdersRead]).await;
    shop.run_here(&format!(
        "INSERT INTO orders (id, caller, lines, accepted_at)
         SELECT gen_random_uuid(), CASE WHEN n < 5 THEN 'shop' ELSE 'other' END,
             jsonb_build_array(jsonb_build_object('productId', 'p' || n, 'quantity', 1)),
             timestamptz '2026-01-01' + n * interval '1 second'
         FROM generate_series(0, {}) n",
        READ_FOR_PAGE_MAX + 10
    ))
    .await;
    is_let_in(&shop, &own).await;
    let list = async |query: &str| {
        let path = format!("/orders{query}");
        let page = ask_with(&shop, &own, Method::GET, &path, "").await;
        let orders = page.body["orders"].as_array().expect("a list").iter();
        let products = orders.map(|order| text(&order["lines"][0]["productId"]));
        let next = page.body["nextCursor"].as_str().map(str::to_owned);
        (products.collect::<Vec<_>>(), next)
    };
    assert_eq!(list("?limit=5").await.0, ["p4", "p3", "p2", "p1", "p0"]);
    let mut cursor = String::new();
    let mut listed = Vec::new();
    loop {
        let (products, next) = list(&format!("?limit=2{cursor}")).await;
        listed.extend(products);
        let Some(next) = next else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(listed, ["p4", "p3", "p2", "p1", "p0"]);
    assert_eq!(list("?productId=p1").await, (vec!["p1".to_owned()], None));
    assert_eq!(list("?productId=p7").await, (vec![], None));
    assert_eq!(list("?status=confirmed").await, (vec![], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_caller_sees_cancels_and_repeats_only_what_is_its_own() {
    let shop = shop().await;
    shop.sync().await;
    let _api = shop.serve().await;
    let both = [Scope::OrdersWrite, Scope::OrdersRead];
    let (one_id, one) = key(&shop, "one", &both).await;
    let (_, other) = key(&shop, "other", &both).await;
    let (_, admin) = key(&shop, "boss", &[Scope::Admin]).await;
    is_let_in(&shop, &admin).await;
    let order = async |authorization: &str| {
        let headers = [
            JSON,
            ("authorization", authorization),
            ("idempotency-key", "k"),
        ];
        let body = json!({"productId": "p1", "quantity": 1}).to_string();
        let answer = ask(&shop, Method::POST, "/orders", &headers, body).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        (
            text(&answer.body["id"]),
            answer.header("idempotent-replayed").is_some(),
        )
    };
    let (of_one, _) = order(&one).await;
    assert_eq!(order(&one).await, (of_one.clone(), true));
    // The same key of another caller, and the same body, is another order.
    let (of_other, replayed) = order(&other).await;
    assert!(of_other != of_one && !replayed);

    let listed = async |authorization: &str| {
        let answer = ask_with(&shop, authorization, Method::GET, "/orders", "").await;
        let orders = answer.body["orders"].as_array().expect("a list").clone();
        orders
            .iter()
            .map(|order| text(&order["id"]))
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(listed(&one).await, BTreeSet::from([of_one.clone()]));
    assert_eq!(listed(&other).await, BTreeSet::from([of_other.clone()]));
    assert_eq!(
        listed(&admin).await,
        BTreeSet::from([of_one.clone(), of_other.clone()])
    );

    // It is as unknown as one that was never placed, also to whoever waits for it.
    eventually("unknown orders are known as such", || async {
        let path = format!("/orders/{}", uuid::Uuid::now_v7());
        (ask_with(&shop, &one, Method::GET, &path, "").await.status == 404).then_some(())
    })
    .await;
    let path = format!("/orders/{of_one}");
    for (method, path) in [
        (Method::GET, path.clone()),
        (Method::POST, format!("{path}/cancel")),
    ] {
        let headers = [("authorization", other.as_str()), ("prefer", "wait=1")];
        let answer = ask(&shop, method, &path, &headers, "").await;
        assert_eq!(answer.problem(), "404 not_found");
        assert_eq!(answer.body["detail"], format!("there is no order {of_one}"));
    }
    let shown = ask_with(&shop, &admin, Method::GET, &path, "").await;
    assert_eq!(
        (&shown.body["status"], &shown.body["caller"]),
        (&json!("pending"), &json!("one"))
    );

    // A key that took the place of another is the same caller's.
    let context = shop.context_here();
    let (_, token) = keys::rotate(&context, &one_id, Utc::now(), TimeDelta::zero())
        .await
        .expect("rotated");
    let rotated = format!("Bearer {}", token.reveal());
    is_let_in(&shop, &rotated).await;
    becomes(
        "the old one has ended",
        || ask_with(&shop, &one, Method::GET, "/orders", ""),
        401,
    )
    .await;
    assert_eq!(order(&rotated).await, (of_one.clone(), true));
    let cancelled = ask_with(&shop, &rotated, Method::POST, &format!("{path}/cancel"), "").await;
    assert_eq!(cancelled.body["status"], "cancelled", "{}", cancelled.body);

    let batch = json!({"orders": [{"productId": "p1", "quantity": 1, "idempotencyKey": "k"}]});
    let placed = ask_with(
        &shop,
        &other,
        Method::POST,
        "/orders/batch",
        &batch.to_string(),
    )
    .await;
    assert_eq!(placed.body["results"][0]["order"]["id"], of_other);
    assert_eq!(placed.body["results"][0]["replayed"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_listed_rotated_expired_and_revoked_from_the_command_line() {
    let shop = shop().await;
    let _api = shop.serve().await;
    let run = async |arguments: &[&str]| {
        let ended = shop.run(&[&["keys"], arguments].concat()).await;
        (ended.code, ended.stdout, ended.stderr)
    };
    assert_eq!(
        run(&["list"]).await.1,
        "there is no key; `stockctl keys create` makes one\n"
    );
    let made = run(&[
        "create",
        "shop",
        "--scope",
        "orders:read,orders:write",
        "--expires-in",
        "90d",
        "--json",
    ])
    .await;
    assert_eq!(made.0, Some(0), "{made:?}");
    let made: Value = serde_json::from_str(&made.1).expect("JSON");
    assert_eq!(made["scopes"], json!(["orders:write", "orders:read"]));
    let (id, secret) = (text(&made["id"]), text(&made["key"]));
    let bearer = format!("Bearer {secret}");
    is_let_in(&shop, &bearer).await;
    // Nothing of it can be found again.
    let kept = "SELECT string_agg(k::text, ' ') AS t FROM api_keys k";
    let hidden = secret.rsplit('_').next().expect("the secret");
    assert!(!shop.text(kept).await.contains(hidden));

    let rotated = run(&["rotate", &id, "--overlap", "1h", "--json"]).await;
    assert_eq!(rotated.0, Some(0), "{rotated:?}");
    let rotated: Value = serde_json::from_str(&rotated.1).expect("JSON");
    assert_eq!(
        (&rotated["caller"], &rotated["scopes"]),
        (&made["caller"], &made["scopes"])
    );
    let new = format!("Bearer {}", text(&rotated["key"]));
    is_let_in(&shop, &new).await;
    is_let_in(&shop, &bearer).await;
    let listed = run(&["list", "--json"]).await.1;
    let listed: Vec<Value> = listed
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let ids: Vec<&Value> = listed.iter().map(|key| &key["id"]).collect();
    assert_eq!(ids, [&made["id"], &rotated["id"]]);
    assert!(
        listed
            .iter()
            .all(|key| key["key"].is_null() && key["standing"] == "valid")
    );

    let in_the_list = async || {
        let listed = run(&["list", "--json"]).await.1;
        let mut keys = listed.lines().map(serde_json::from_str::<Value>);
        let key = keys.find_map(|key| key.ok().filter(|key| key["id"] == id.as_str()));
        key.expect("it is listed")
    };
    let used = eventually("its use is noted", || async {
        let used = in_the_list().await["lastUsedAt"].take();
        used.is_string().then_some(used)
    })
    .await;
    let table = run(&["list"]).await.1;
    assert!(
        table.contains("LAST USED") && table.contains(&text(&used)),
        "{table}"
    );
    // The next is of the same minutes: the row is not written again, although the keys were looked at since.
    let version = format!("SELECT xmin::text AS t FROM api_keys WHERE id = '{id}'");
    let written = shop.text(&version).await;
    is_let_in(&shop, &bearer).await;
    let (later, bearer_of_later) = key(&shop, "later", &[Scope::Admin]).await;
    is_let_in(&shop, &bearer_of_later).await;
    let of_later = format!("SELECT count(last_used_at) AS n FROM api_keys WHERE id = '{later}'");
    eventually("the next look was noted", || async {
        (shop.count(&of_later).await == 1).then_some(())
    })
    .await;
    assert_eq!(shop.text(&version).await, written);

    let ended = run(&["expire", &id, "--in", "0s"]).await;
    assert_eq!(ended.0, Some(0), "{ended:?}");
    becomes(
        "it has expired",
        || ask_with(&shop, &bearer, Method::GET, "/products", ""),
        401,
    )
    .await;
    let new_id = text(&rotated["id"]);
    let revoked = run(&["revoke", &new_id]).await;
    assert_eq!(
        (revoked.0, revoked.1),
        (Some(0), format!("key {new_id} of shop is revoked\n"))
    );
    becomes(
        "it is revoked",
        || ask_with(&shop, &new, Method::GET, "/products", ""),
        401,
    )
    .await;
    let all = run(&["list", "--all"]).await.1;
    assert!(all.contains("expired") && all.contains("revoked"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_with_a_key_is_said() {
    let shop = shop().await;
    let context = shop.context_here();
    let (id, _) = key(&shop, "shop", &[Scope::Admin]).await;
    let now = Utc::now();
    keys::expire(&context, &id, now, now)
        .await
        .expect("expired");
    let id = id.as_str();
    for (arguments, code, said) in [
        (
            &["rotate", id][..],
            5,
            "has expired; make a new one for shop",
        ),
        (
            &["revoke", "000000000000"],
            5,
            "there is no key 000000000000",
        ),
        (
            &["create", "local", "--scope", "admin"],
            2,
            "local stands for those who need no key",
        ),
        (
            &["create", "shop", "--scope", "orders"],
            2,
            "[possible values: orders:write, orders:read, stock:write, admin]",
        ),
        (
            &["create", "shop", "--scope", "admin", "--expires-in", "soon"],
            2,
            "a number with a unit, such as 30m, 12h or 90d",
        ),
        (&["create", "shop"], 2, "--scope"),
    ] {
        let refused = shop.run(&[&["keys"], arguments].concat()).await;
        assert_eq!(refused.code, Some(code), "{refused:?}");
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_that_asks_for_a_key_is_told_with_the_one_of_the_configuration() {
    let mut shop = Shop::with(ShopOptions::default()).await;
    require_keys(&mut shop);
    let (_, bearer) = key(&shop, "told", &[Scope::StockWrite]).await;
    let (_, caller) = key(&shop, "shop", &[Scope::OrdersRead, Scope::OrdersWrite]).await;
    let secret = bearer.trim_start_matches("Bearer ").to_owned();
    shop.reconfigure(|text| {
        text.replace(
            "]\ndatabase_url",
            &format!("]\napi_key = \"{secret}\"\ndatabase_url"),
        )
    });
    shop.sync().await;
    let _parts = (shop.serve_vendors(), shop.work(), shop.serve().await);
    is_let_in(&shop, &caller).await;
    eventually("the vendors' own server knows the key, too", || async {
        let products = format!("http://{}/products", shop.vendor_address());
        let answer = shop.http.get(products).bearer_auth(&secret).send().await;
        (answer.ok()?.status() == 200).then_some(())
    })
    .await;
    let body = json!({"productId": "p2", "quantity": 18}).to_string();
    let placed = ask_with(&shop, &caller, Method::POST, "/orders", &body).await;
    let path = format!("/orders/{}", text(&placed.body["id"]));
    eventually("both vendors are told", || async {
        let order = ask_with(&shop, &caller, Method::GET, &path, "").await.body;
        (order["vendorSync"] == "done").then_some(())
    })
    .await;
    assert_eq!(shop.stock_at("vendorA", "p2").await, 0);
    // Whoever looks at the configuration does not see it.
    let shown = shop.run(&["config", "show"]).await;
    assert!(
        shown.stdout.contains("vendors.vendorA.api_key = \"***\""),
        "{}",
        shown.stdout
    );
    assert!(!shown.stdout.contains(&secret));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_has_never_seen_the_keys_lets_nobody_in_and_says_so() {
    let mut shop = shop().await;
    let (_, bearer) = key(&shop, "shop", &[Scope::Admin]).await;
    let _api = serve_without(&mut shop, true, false).await;
    let body = json!({"productId": "p1", "quantity": 1}).to_string();
    let refused = ask_with(&shop, &bearer, Method::POST, "/orders", &body).await;
    assert_eq!(refused.problem(), "503 unavailable");
    assert!(refused.header("retry-after").is_some());
    let without = ask(&shop, Method::POST, "/orders", &[JSON], body).await;
    assert_eq!(without.problem(), "401 unauthenticated");
    // So nobody should be sent here, though the broker could take their orders.
    let ready = eventually("the broker is connected", || async {
        let (status, ready) = shop.get("/readyz").await;
        (ready["rabbitmq"] == "up").then_some((status, ready))
    });
    let (status, ready) = ready.await;
    assert_eq!((status, &ready["status"]), (503, &json!("unavailable")));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgresql_is_away_the_keys_known_last_stay_good_and_no_others() {
    let mut shop = shop().await;
    let (_, bearer) = key(&shop, "shop", &[Scope::OrdersWrite]).await;
    let own: url::Url = shop.own_database_url().parse().expect("a URL");
    let port = own.port().expect("a port");
    let proxy = Proxy::before(format!("127.0.0.1:{port}")).await;
    let through = format!(":{}/", proxy.address.port());
    let file = shop.config_file_with("parted.toml", &format!(":{port}/"), &through);
    shop.config = config::load(Some(&file)).expect("a valid configuration");
    let _api = shop.serve().await;
    is_let_in(&shop, &bearer).await;
    proxy.cut();
    let body = json!({"productId": "p1", "quantity": 1}).to_string();
    eventually("an order is accepted through the broker", || async {
        let placed = ask_with(&shop, &bearer, Method::POST, "/orders", &body).await;
        // What was under way when it was cut, or came before RabbitMQ was there.
        (placed.status == 202).then_some(())
    })
    .await;
    let scope = ask_with(&shop, &bearer, Method::GET, "/orders", "").await;
    assert_eq!(scope.problem(), "403 insufficient_scope");
    let wrong = format!("Bearer stockctl_{}_{}", "1".repeat(12), "0".repeat(64));
    let refused = ask_with(&shop, &wrong, Method::POST, "/orders", &body).await;
    assert_eq!(refused.problem(), "401 invalid_key");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_has_logged_in_keeps_the_key_for_the_page_of_this_server_alone() {
    let shop = shop().await;
    let _api = shop.serve().await;
    let (_, bearer) = key(&shop, "boss", &[Scope::Admin]).await;
    let (_, reader) = key(&shop, "reader", &[Scope::OrdersRead]).await;
    is_let_in(&shop, &reader).await;
    let log_in = async |bearer: &str| {
        let body = json!({ "key": bearer.trim_start_matches("Bearer ") }).to_string();
        ask(&shop, Method::POST, "/login", &[JSON], body).await
    };
    let wrong = format!("stockctl_{}_{}", "1".repeat(12), "0".repeat(64));
    assert_eq!(log_in(&wrong).await.problem(), "401 invalid_key");
    assert_eq!(log_in(&reader).await.problem(), "403 insufficient_scope");
    let answer = log_in(&bearer).await;
    assert_eq!(answer.status, 204);
    let (cookie, attributes) = answer
        .header("set-cookie")
        .and_then(|value| value.split_once("; "))
        .expect("a cookie");
    assert_eq!(
        attributes,
        "Path=/; Max-Age=43200; HttpOnly; SameSite=Strict"
    );

    let with = async |method: Method, path: &str, more: &[(&str, &str)]| {
        let headers = [&[JSON, ("cookie", cookie)], more].concat();
        ask(&shop, method, path, &headers, "{}").await
    };
    for more in [
        &[][..],
        &[
            ("sec-fetch-site", "same-origin"),
            ("origin", shop.url.as_str()),
        ],
    ] {
        assert_eq!(with(Method::GET, "/admin/overview", more).await.status, 200);
        let placed = with(Method::POST, "/orders", more).await;
        assert_eq!(
            placed.problem(),
            "422 validation_failed \"/lines\" is missing"
        );
    }
    // A page of another origin reads nothing and changes nothing by it.
    for more in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("origin", "https://shop.example"),
        ("origin", "null"),
    ] {
        let read = with(Method::GET, "/admin/overview", &[more]).await;
        assert_eq!(read.problem(), "401 unauthenticated", "{more:?}");
        let changed = with(Method::POST, "/admin/sync", &[more]).await;
        assert_eq!(changed.problem(), "403 cross_origin", "{more:?}");
    }
    // What a program says of itself counts, whatever else comes with it.
    let header = [("authorization", reader.as_str())];
    let refused = with(Method::GET, "/admin/overview", &header).await;
    assert_eq!(refused.problem(), "403 insufficient_scope");
    let out = with(Method::POST, "/logout", &[]).await;
    assert_eq!(
        out.header("set-cookie"),
        Some("stockctl_key=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict")
    );
    // Behind a proxy that speaks TLS with the browser.
    let origin = shop.url.replace("http:", "https:");
    let out = with(Method::POST, "/logout", &[("origin", &origin)]).await;
    assert_eq!(
        out.header("set-cookie"),
        Some("stockctl_key=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict; Secure")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_a_bound_of_keys_and_what_is_valid_is_known_however_many_have_ended() {
    let shop = shop().await;
    let context = shop.context_here();
    let many = |count: u32, expires: &str| {
        format!(
            "INSERT INTO api_keys (id, caller, secret_sha256, scopes, created_at, expires_at)
             SELECT substr(md5('{count}' || n), 1, 12), 'a', sha256('x'), ARRAY['admin'], now() - interval '2 days', {expires}
             FROM generate_series(1, {count}) AS n"
        )
    };
    shop.run_here(&many(10_001, "now() - interval '1 day'"))
        .await;
    shop.run_here(&many(998, "NULL")).await;
    let (id, last) = key(&shop, "z", &[Scope::Admin]).await;
    let _api = shop.serve().await;
    is_let_in(&shop, &last).await;
    let now = Utc::now();
    let hour = TimeDelta::hours(1);
    keys::rotate(&context, &id, now, hour)
        .await
        .expect("the thousandth");
    let refused = [
        keys::rotate(&context, &id, now, hour).await.map(|_| ()),
        keys::create(&context, "z".into(), [Scope::Admin].into(), now, None)
            .await
            .map(|_| ()),
    ];
    for refused in refused {
        let error = refused.expect_err("too many").to_string();
        assert_eq!(
            error,
            "there are 1000 valid keys, which is the limit; revoke one"
        );
    }
    keys::revoke(&context, &id, now).await.expect("revoked");
    key(&shop, "z", &[Scope::Admin]).await;
}
