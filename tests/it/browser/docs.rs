//! The page of the API's description: it is there, and what it says can be tried.

use serde_json::json;

use super::Page;
use crate::support::Shop;

/// An operation on the page.
const FIND: &str = "const of = [...document.querySelector('rapi-doc')?.shadowRoot?.querySelectorAll('api-request') ?? []]
    .find((of) => of.method === 'get' && of.path === arguments[0])?.shadowRoot;";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_described_can_be_tried_as_it_is_opened() {
    let shop = Shop::new().await;
    let _parts = shop.open().await;
    let page = Page::open_at(&shop, "/docs").await;
    // Nothing is filled in by examples that name what is not here.
    for (operation, told) in [
        ("/healthz", "ok"),
        ("/products", "p3"),
        ("/orders", "nextCursor"),
        ("/vendors", "vendorA"),
    ] {
        let is_there = format!("{FIND} return !!of?.querySelector('[part~=btn-try]')");
        page.until(
            &format!("{operation} is there"),
            &is_there,
            json!([operation]),
        )
        .await;
        let press = format!("{FIND} of.querySelector('[part~=btn-try]').click()");
        page.js(&press, json!([operation])).await;
        let answered = format!(
            "{FIND} return of.textContent.includes(':200') && of.textContent.includes(arguments[1])"
        );
        page.until(
            &format!("{operation} is tried"),
            &answered,
            json!([operation, told]),
        )
        .await;
    }
    page.close(&[]).await;
}
