//! What a person does on the page, and sees there.

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as STANDARD;
use reqwest::Method;
use serde_json::{Value, json};

use super::driver::{Browser, NotDone};
use crate::support::{DEADLINE, Shop};

/// How WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// Keys, as WebDriver names them.
pub(super) const TAB: &str = "\u{E004}";
pub(super) const ENTER: &str = "\u{E007}";

/// A desktop's window, and a phone's.
const WINDOWS: [(&str, u32, u32); 2] = [("wide", 1280, 800), ("phone", 360, 780)];

/// Between two looks at what the page shows.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// The page in a browser of its own.
pub(super) struct Page {
    browser: Browser,
}

impl Page {
    /// Opens a shop's page.
    pub(super) async fn open(shop: &Shop) -> Self {
        Self::open_at(shop, "/").await
    }

    /// Opens what a shop has at a path.
    pub(super) async fn open_at(shop: &Shop, path: &str) -> Self {
        let page = Self {
            browser: Browser::start().await,
        };
        page.wear("wide", "light").await;
        let body = json!({"url": format!("{}{path}", shop.url)});
        page.done(
            "it opens",
            page.browser.command(Method::POST, "/url", body).await,
        )
        .await;
        // Gone once the page is loaded again, which nothing here may need.
        page.js("window.isTheFirst = true", json!([])).await;
        page
    }

    /// Follows a link of the page, as from a bookmark.
    pub(super) async fn go(&self, hash: &str) {
        self.js("location.hash = arguments[0]", json!([hash])).await;
    }

    /// Waits until the page shows a text within what a selector names.
    pub(super) async fn shows(&self, selector: &str, text: &str) {
        let script = "return [...document.querySelectorAll(arguments[0])].some((e) => e.checkVisibility() && e.innerText.includes(arguments[1]))";
        self.until(
            &format!("{selector} shows {text:?}"),
            script,
            json!([selector, text]),
        )
        .await;
    }

    /// Waits until the page shows nothing that a selector names, or not that text in it.
    pub(super) async fn shows_no(&self, selector: &str, text: &str) {
        let script = "return ![...document.querySelectorAll(arguments[0])].some((e) => e.checkVisibility() && e.innerText.includes(arguments[1]))";
        self.until(
            &format!("{selector} does not show {text:?}"),
            script,
            json!([selector, text]),
        )
        .await;
    }

    /// Waits until a table shows something in a row and a column: the row is named by its first cell, and the cell begins
    /// with the text.
    pub(super) async fn shows_cell(&self, row: &str, column: &str, text: &str) {
        let script = "const row = [...document.querySelectorAll('main tr')].find((row) => row.cells[0].innerText.trim() === arguments[0]);
                      return row?.querySelector(`td[data-label='${arguments[1]}']`).innerText.trim().startsWith(arguments[2]) ?? false";
        self.until(
            &format!("{column} of {row} is {text}"),
            script,
            json!([row, column, text]),
        )
        .await;
    }

    /// Waits until a script says so.
    pub(super) async fn until(&self, what: &str, script: &str, arguments: Value) {
        self.eventually(what, async || {
            let said = self.try_js(script, arguments.clone()).await?;
            if said == true {
                Ok(())
            } else {
                Err(not_yet(&said.to_string()))
            }
        })
        .await;
    }

    /// Runs a script, and returns what it returns.
    pub(super) async fn js(&self, script: &str, arguments: Value) -> Value {
        let said = self.try_js(script, arguments).await;
        self.done(script, said).await
    }

    async fn try_js(&self, script: &str, arguments: Value) -> Result<Value, NotDone> {
        let body = json!({"script": script, "args": arguments});
        self.browser
            .command(Method::POST, "/execute/sync", body)
            .await
    }

    /// Clicks on something, by a CSS selector or an `XPath`, once it can be.
    pub(super) async fn click(&self, what: &str) {
        self.eventually(&format!("a click on {what}"), async || {
            let element = self.find(what).await?;
            let path = format!("/element/{element}/click");
            self.browser.command(Method::POST, &path, json!({})).await
        })
        .await;
    }

    /// Clicks on a button by what is written on it.
    pub(super) async fn press_button(&self, words: &str) {
        self.click(&format!(
            "//button[normalize-space()='{words}' and not(@hidden)]"
        ))
        .await;
    }

    /// Writes into a field, instead of what is there.
    pub(super) async fn fill(&self, what: &str, text: &str) {
        self.eventually(&format!("{text:?} in {what}"), async || {
            let element = self.find(what).await?;
            let clear = format!("/element/{element}/clear");
            self.browser
                .command(Method::POST, &clear, json!({}))
                .await?;
            let value = format!("/element/{element}/value");
            self.browser
                .command(Method::POST, &value, json!({"text": text}))
                .await
        })
        .await;
    }

    async fn find(&self, what: &str) -> Result<String, NotDone> {
        let using = if what.starts_with("//") {
            "xpath"
        } else {
            "css selector"
        };
        let body = json!({"using": using, "value": what});
        let found = self.browser.command(Method::POST, "/element", body).await?;
        Ok(found[ELEMENT].as_str().expect("an element").to_owned())
    }

    /// Presses keys, one after the other, wherever the focus is.
    pub(super) async fn keys(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| {
                ["keyDown", "keyUp"].map(|act| json!({"type": act, "value": key.to_string()}))
            })
            .collect();
        let body = json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]});
        let pressed = self.browser.command(Method::POST, "/actions", body).await;
        self.done("keys", pressed).await;
    }

    /// Goes on by Tab until the focus is on something, and sees on the way that it can always be seen where it is.
    pub(super) async fn tab_to(&self, selector: &str) {
        // More than there are elements with a focus.
        for _ in 0..60 {
            self.keys(TAB).await;
            let unseen = self.js(include_str!("focus.js"), json!([])).await;
            assert_eq!(unseen, Value::Null, "the focus cannot be seen");
            let script = "return document.activeElement.matches(arguments[0])";
            if self.js(script, json!([selector])).await == true {
                return;
            }
        }
        panic!("Tab does not come to {selector}");
    }

    /// Looks at all of it as it is now: on a desktop and on a phone, by day and by night, and leaves a picture of the desktop
    /// by day and of the phone by night; of all four where `SCREENSHOTS` asks for them, since painting and packing them
    /// takes a good part of what a browser does here.
    /// Every text has the contrast that WCAG AA asks for, nothing is cut off, and everything has a name.
    pub(super) async fn looks_well(&self, name: &str) {
        for (window, width, height) in WINDOWS {
            for scheme in ["light", "dark"] {
                self.wear(window, scheme).await;
                let poor = self.js(include_str!("looks.js"), json!([width])).await;
                let is_kept = matches!((window, scheme), ("wide", "light") | ("phone", "dark"));
                if is_kept || std::env::var_os("SCREENSHOTS").is_some() {
                    self.picture(&format!("{name}-{window}-{scheme}"), width, height)
                        .await;
                }
                assert_eq!(poor, json!([]), "{name}, {window}, {scheme}");
            }
        }
        self.wear("wide", "light").await;
    }

    /// Sets the window and the colour scheme.
    async fn wear(&self, window: &str, scheme: &str) {
        let sizes = WINDOWS.iter().find(|(name, ..)| *name == window);
        let (_, width, height) = sizes.expect("one of them");
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": window == "phone"});
        self.browser
            .devtools("Emulation.setDeviceMetricsOverride", metrics)
            .await;
        let media = json!({"features": [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]});
        self.browser
            .devtools("Emulation.setEmulatedMedia", media)
            .await;
    }

    /// Leaves a picture of the whole page, or of what a dialog hides the rest with.
    async fn picture(&self, name: &str, width: u32, height: u32) {
        let tall = "return document.querySelector('dialog[open]') ? 0 : document.documentElement.scrollHeight";
        let tall = self.js(tall, json!([])).await.as_u64().unwrap_or_default();
        let clip =
            json!({"x": 0, "y": 0, "width": width, "height": tall.max(height.into()), "scale": 1});
        let parameters = json!({"format": "png", "captureBeyondViewport": true, "clip": clip, "optimizeForSpeed": true});
        let taken = self
            .browser
            .devtools("Page.captureScreenshot", parameters)
            .await;
        write_picture(name, taken["data"].as_str().expect("a picture"));
    }

    /// The cookies that the browser has for the page, those included that no script sees.
    pub(super) async fn cookies(&self) -> Vec<Value> {
        let found = self
            .browser
            .command(Method::GET, "/cookie", Value::Null)
            .await;
        let found = self.done("cookies", found).await;
        found.as_array().expect("a list").clone()
    }

    /// Sees that the page was never loaded again and that the browser had nothing to say against it, but for what the
    /// test expects, and ends the browser.
    pub(super) async fn close(self, expected: &[&str]) {
        assert_eq!(self.js("return window.isTheFirst", json!([])).await, true);
        let unexpected: Vec<String> = self
            .console()
            .await
            .into_iter()
            .filter(|said| !expected.iter().any(|expected| said.contains(expected)))
            .collect();
        assert!(
            unexpected.is_empty(),
            "the browser's console: {unexpected:#?}"
        );
        self.browser.end().await;
    }

    /// What the browser has said of the page since this was last asked: errors, refusals by the page's policy, and what
    /// was answered with an error.
    async fn console(&self) -> Vec<String> {
        let body = json!({"type": "browser"});
        let said = self.browser.command(Method::POST, "/se/log", body).await;
        let said = said.expect("the log");
        let entries = said.as_array().expect("a list").iter();
        entries
            .map(|entry| format!("{} {}", entry["level"], entry["message"]))
            .collect()
    }

    /// Tries until it is done, and says what the page shows where it never is.
    async fn eventually<T>(&self, what: &str, attempt: impl AsyncFn() -> Result<T, NotDone>) -> T {
        let until = tokio::time::Instant::now() + DEADLINE;
        loop {
            match attempt().await {
                Ok(value) => return value,
                Err(_) if tokio::time::Instant::now() < until => {
                    tokio::time::sleep(ASK_EVERY).await;
                }
                failed => return self.done(what, failed).await,
            }
        }
    }

    async fn done<T>(&self, what: &str, result: Result<T, NotDone>) -> T {
        match result {
            Ok(value) => value,
            Err(why) => {
                let text = self
                    .try_js("return document.body.innerText", json!([]))
                    .await;
                let text = text.map(|text| text.as_str().unwrap_or_default().to_owned());
                let console = self.console().await;
                panic!(
                    "{what}: {} ({})\nThe page: {text:?}\nThe console: {console:#?}",
                    why.error, why.message
                )
            }
        }
    }
}

fn not_yet(said: &str) -> NotDone {
    NotDone {
        error: "never came".to_owned(),
        message: said.to_owned(),
    }
}

fn write_picture(name: &str, base64: &str) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("screenshots");
    std::fs::create_dir_all(&directory).expect("a directory");
    let png = STANDARD.decode(base64).expect("base64");
    std::fs::write(directory.join(format!("{name}.png")), png).expect("written");
}
