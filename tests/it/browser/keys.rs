//! Logging in, where keys are required.

use chrono::Utc;
use serde_json::json;
use stockctl::app::keys;
use stockctl::commands::work::WorkQueue;
use stockctl::domain::keys::Scope;

use super::Page;
use super::page::ENTER;
use crate::support::Shop;

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_a_key_logs_in_and_no_script_can_read_it() {
    let mut shop = Shop::new().await;
    shop.reconfigure(|text| text.replace("[http]\n", "[http]\nrequire_keys = true\n"));
    shop.sync().await;
    let (context, now) = (shop.context_here(), Utc::now());
    let key = async |name: &str, scope| {
        let made = keys::create(&context, name.into(), [scope].into(), now, None);
        made.await.expect("made").1.reveal().to_string()
    };
    let (weak, strong) = (
        key("till", Scope::OrdersRead).await,
        key("boss", Scope::Admin).await,
    );
    // The vendors, who would refuse calls without a key, are not told.
    let parts = vec![shop.work_on(&[WorkQueue::Orders]), shop.serve().await];
    let page = Page::open(&shop).await;

    page.shows("dialog", "API key with the scope admin").await;
    page.looks_well("log-in").await;
    for (wrong, said) in [("stockctl_0", "key"), (weak.as_str(), "scope admin")] {
        page.fill("#key", wrong).await;
        page.keys(ENTER).await;
        page.shows("dialog .problem", said).await;
        assert_eq!(page.cookies().await, [] as [serde_json::Value; 0]);
    }
    page.looks_well("log-in-refused").await;
    // What was asked before, and is refused after somebody has logged in, does not ask for the key again.
    let hold =
        "const fetched = window.fetch, gate = new Promise((open) => { window.release = open; });
                window.held = 0;
                window.fetch = async (path, options) => {
                  const answer = await fetched(path, options);
                  if (answer.status === 401 && path !== '/login') { window.held += 1; await gate; }
                  return answer;
                };";
    page.js(hold, json!([])).await;
    let is_held = "return window.held > 0";
    page.until("an answer is on its way", is_held, json!([]))
        .await;
    page.fill("#key", &strong).await;
    page.keys(ENTER).await;
    page.shows_no("dialog", "").await;
    page.js("window.release()", json!([])).await;
    page.shows("[aria-label=Vendors]", "vendorA").await;
    page.shows_no("dialog", "").await;

    let cookies = page.cookies().await;
    assert_eq!(cookies.len(), 1, "{cookies:?}");
    assert_eq!(
        (
            &cookies[0]["value"],
            &cookies[0]["httpOnly"],
            &cookies[0]["sameSite"]
        ),
        (&json!(strong), &json!(true), &json!("Strict"))
    );
    let read = "return JSON.stringify([document.cookie, Object.values(localStorage), Object.values(sessionStorage)])";
    let read = page.js(read, json!([])).await.to_string();
    assert!(!read.contains("stockctl_"), "a script reads {read}");

    // What it is for: an order, as somebody who may.
    page.fill("input[name=product]", "p2").await;
    page.press_button("Place a test order").await;
    page.shows("main .badge", "confirmed").await;
    page.looks_well("logged-in").await;

    // At once, on whichever page, however seldom that looks again.
    page.go("#/dead-letters").await;
    page.shows("main", "Nothing here").await;
    page.press_button("Log out").await;
    let is_out = "return document.querySelector('#log-out').hidden";
    page.until("somebody is logged out", is_out, json!([]))
        .await;
    let left = page.js("return document.querySelector('main').innerText", json!([]));
    assert_eq!(left.await, "");
    page.shows("dialog", "API key with the scope admin").await;
    assert_eq!(page.cookies().await, [] as [serde_json::Value; 0]);
    page.shows_no("#log-out", "").await;
    // What was on the page is not left there for the next.
    page.shows_no("main", "p2").await;
    page.close(&["401 (Unauthorized)", "403 (Forbidden)"]).await;
    for part in parts {
        part.stop().await;
    }
}
