//! A browser of a test's own. WebDriver is JSON over HTTP, and ten of its commands are all that is needed, so the client
//! that the tests have speaks it: the crates for it bring two dozen others, or give the program under test another
//! `serde_json` than users get (`preserve_order`).

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

use crate::support::{reqwest_client, scratch};

/// Browsers that run at once; each takes a good part of a core while it shows something new.
const BROWSERS_MAX: usize = 2;

/// Chromium without anything around what it shows, which Debian has as a package of its own: it starts and opens the page in
/// a third of the processor's time.
const SHELL: &str = "chromium-headless-shell";

/// What a browser is asked for by: the shell where it is installed, and otherwise what chromedriver finds by itself.
fn browser_name() -> (&'static str, Option<PathBuf>) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let shell = std::env::split_paths(&path).map(|directory| directory.join(SHELL));
    match shell.into_iter().find(|program| program.is_file()) {
        Some(shell) => ("chrome-headless-shell", Some(shell)),
        None => ("chrome", None),
    }
}

/// The chromedriver of a test run, which starts the browsers.
struct ChromeDriver {
    url: String,
    profiles: PathBuf,
    free: Semaphore,
    /// Holds chromedriver: it ends when its standard input closes, which the end of this process does, whatever ends it.
    /// The browsers end with chromedriver, by whose pipe they are driven.
    _holder: Child,
    /// It would be ended by what it writes, were nobody there to read it.
    _said: BufReader<ChildStdout>,
}

impl ChromeDriver {
    /// Started by the first test that asks.
    async fn get() -> &'static ChromeDriver {
        static DRIVER: OnceCell<ChromeDriver> = OnceCell::const_new();
        DRIVER
            .get_or_init(|| async {
                tokio::task::spawn_blocking(Self::start)
                    .await
                    .expect("chromedriver starts")
            })
            .await
    }

    fn start() -> Self {
        let profiles = scratch(&format!("browsers-{}", std::process::id()));
        std::fs::create_dir_all(&profiles).expect("a directory");
        // A browser whose test has failed may still write while it ends.
        let mut holder = Command::new("sh")
            .args([
                "-c",
                "chromedriver --port=0 --log-path=\"$1/chromedriver.log\" & driver=$!; cat >/dev/null; exec 2>/dev/null; kill $driver; wait $driver; \
                 for _ in 1 2 3 4 5 6 7 8 9; do rm -rf \"$1\" && break; sleep 0.2; done",
                "chromedriver",
            ])
            .arg(&profiles)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut said = BufReader::new(holder.stdout.take().expect("piped"));
        let mut all = String::new();
        let port = loop {
            let from = all.len();
            let read = said.read_line(&mut all).expect("readable");
            assert!(
                read > 0,
                "chromedriver does not start; `make setup SETUP_BROWSER=yes` installs it and Chromium. It said: {all}"
            );
            // "ChromeDriver was started successfully on port 38551."
            if let Some((_, port)) = all[from..].split_once("successfully on port ") {
                break port.trim().trim_end_matches('.').to_owned();
            }
        };
        Self {
            url: format!("http://127.0.0.1:{port}"),
            profiles,
            free: Semaphore::new(BROWSERS_MAX),
            _holder: holder,
            _said: said,
        }
    }
}

/// Why a command was not done.
#[derive(Debug)]
pub(super) struct NotDone {
    /// By the standard: `no such element`, `stale element reference`, …
    pub(super) error: String,
    pub(super) message: String,
}

/// A browser with a profile of its own.
pub(super) struct Browser {
    url: String,
    http: reqwest::Client,
    _profile: tempfile::TempDir,
    _permit: SemaphorePermit<'static>,
}

impl Browser {
    /// Starts one.
    pub(super) async fn start() -> Self {
        let driver = ChromeDriver::get().await;
        let permit = driver.free.acquire().await.expect("never closed");
        let profile = tempfile::tempdir_in(&driver.profiles).expect("a directory");
        let directory = format!("--user-data-dir={}", profile.path().display());
        let arguments = [
            "--headless",
            // It shows our own page only, and tests often run as root in a container, where there can be none.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-extensions",
            "--no-first-run",
            "--lang=en",
            // Not a port: it ends with who drives it.
            "--remote-debugging-pipe",
            &directory,
        ];
        let (name, program) = browser_name();
        let mut options = json!({"args": arguments});
        if let Some(program) = program {
            options["binary"] = json!(program);
        }
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": name,
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let http = reqwest_client();
        let mut browser = Self {
            url: format!("{}/session", driver.url),
            http,
            _profile: profile,
            _permit: permit,
        };
        let made = browser.command(Method::POST, "", wanted).await;
        let made = made.unwrap_or_else(|why| panic!("the browser does not start: {why:?}"));
        let id = made["sessionId"].as_str().expect("a session");
        browser.url = format!("{}/{id}", browser.url);
        browser
    }

    /// A command of WebDriver's.
    pub(super) async fn command(
        &self,
        method: Method,
        path: &str,
        body: Value,
    ) -> Result<Value, NotDone> {
        let mut request = self
            .http
            .request(method.clone(), format!("{}{path}", self.url));
        if method == Method::POST {
            request = request.json(&body);
        }
        let response = request.send().await.expect("chromedriver answers");
        let is_done = response.status().is_success();
        let mut answer: Value = response.json().await.expect("JSON");
        let value = answer["value"].take();
        if is_done {
            return Ok(value);
        }
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        Err(NotDone {
            error: text("error"),
            message: text("message"),
        })
    }

    /// A command of the DevTools protocol.
    pub(super) async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({"cmd": command, "params": parameters});
        let done = self.command(Method::POST, "/goog/cdp/execute", body);
        done.await
            .unwrap_or_else(|why| panic!("{command}: {why:?}"))
    }

    /// Ends it.
    pub(super) async fn end(self) {
        let ended = self.command(Method::DELETE, "", Value::Null).await;
        ended.unwrap_or_else(|why| panic!("the browser does not end: {why:?}"));
    }
}
