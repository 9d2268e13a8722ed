//! What the subcommands that call the HTTP API have in common: where it is, and what it refuses, in words.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::style::Ink;
use super::table::printable;
use super::{EXIT_BUG, EXIT_CHECK_FAILED, EXIT_UNREACHABLE, EXIT_USAGE, Failure};
use crate::client::{Answer, Api, Error, FieldProblem, PAGE_MAX, Page, Problem};
use crate::config::Config;
use crate::http::problem::CODES;

/// Which API, and how its answers are printed.
#[derive(Debug, Clone, Args)]
pub(super) struct Calling {
    /// Base of the HTTP API [default: http.listen of the configuration, with https:// where it has TLS]
    #[arg(
        long,
        value_name = "URL",
        global = true,
        env = "STOCKCTL_URL",
        hide_env_values = true
    )]
    url: Option<String>,
    /// PEM file of authorities that are trusted beside the system's, for https:
    #[arg(
        long,
        value_name = "FILE",
        global = true,
        env = "STOCKCTL_CA",
        hide_env_values = true
    )]
    ca: Option<PathBuf>,
    /// Print the API's own answers, a line each
    #[arg(long, global = true)]
    json: bool,
}

/// Where the API key is.
const KEY_VARIABLE: &str = "STOCKCTL_API_KEY";
/// Pages are read for so long: with a filter that matches little, there may be thousands.
const LIST_DEADLINE: Duration = Duration::from_secs(60);
/// Characters of what is no answer of this API that are shown of it.
const FOREIGN_CHARS: usize = 200;

impl Calling {
    /// A client of the API; the configuration is read only where nothing else says where that is.
    pub(super) fn api(
        &self,
        load: impl FnOnce() -> Result<Config, Failure>,
    ) -> Result<Api, Failure> {
        let address = match &self.url {
            Some(url) => url.clone(),
            None => {
                let config = load().map_err(|failure| {
                    let hint = "or say where the HTTP API is, by --url or STOCKCTL_URL, and no configuration is needed";
                    Failure::new(failure.code, format!("{}\n{hint}", failure.message))
                })?;
                if config.http.listen.port() == 0 {
                    return Err(Failure::new(
                        EXIT_USAGE,
                        "http.listen has port 0, which is another one at each start: say where the HTTP API is, by --url or \
                         STOCKCTL_URL",
                    ));
                }
                let scheme = if config.http.tls.is_some() {
                    "https"
                } else {
                    "http"
                };
                format!("{scheme}://{}", config.http.listen)
            }
        };
        let authorities = self.ca.as_deref().map(std::fs::read).transpose();
        let authorities = authorities
            .map_err(|error| Failure::new(EXIT_USAGE, format!("--ca (STOCKCTL_CA): {error}")))?;
        let api = Api::new(&address, authorities.as_deref()).map_err(failure)?;
        // A variable and no argument, which everybody on the machine could read.
        match std::env::var(KEY_VARIABLE) {
            Ok(key) if !key.trim().is_empty() => api.with_key(key.trim()).map_err(failure),
            _ => Ok(api),
        }
    }

    /// Prints an answer: as it came, or as a text made of it.
    pub(super) fn print(&self, answer: &Answer, text: impl FnOnce(Ink) -> String) {
        if self.json {
            super::say(answer.body.trim_end());
        } else {
            super::say(&text(Ink::of_stdout()));
        }
    }

    /// An answer that is what was asked for; another one as a failure, after it has been printed for a program.
    pub(super) fn expect(
        &self,
        answer: Result<Answer, Error>,
        api: &Api,
        not_found: &str,
    ) -> Result<Answer, Failure> {
        let answer = answer.map_err(failure)?;
        if answer.is_success() {
            return Ok(answer);
        }
        if self.json && answer.problem().is_some() {
            super::say(answer.body.trim_end());
        }
        Err(refusal(&answer, api.address(), not_found))
    }

    /// Reads the pages of a list up to a limit, and prints them as they come for a program.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        api: &Api,
        limit: usize,
        page: impl AsyncFn(usize, Option<String>) -> Result<Answer, Error>,
    ) -> Result<Listed<T>, Failure> {
        let until = Instant::now() + LIST_DEADLINE;
        let mut items = Vec::new();
        let mut cursor = None;
        loop {
            let answer = page(PAGE_MAX.min(limit - items.len()), cursor).await;
            let answer = self.expect(answer, api, "`--help` says what can be asked for")?;
            let read: Page<T> = answer.read().map_err(failure)?;
            if self.json {
                super::say(answer.body.trim_end());
            }
            items.extend(read.items);
            cursor = read.next_cursor;
            let is_late = Instant::now() >= until;
            if cursor.is_none() || items.len() >= limit || is_late {
                let rest = match (cursor, items.len() >= limit) {
                    (None, _) => Rest::None,
                    (Some(_), true) => Rest::OverTheLimit,
                    (Some(_), false) => Rest::NotLookedAt,
                };
                return Ok(Listed { items, rest });
            }
        }
    }

    /// Prints a list for people, and tells of the rest of it.
    pub(super) fn print_list<T>(
        &self,
        listed: &Listed<T>,
        none: &str,
        text: impl FnOnce(&[T], Ink) -> String,
    ) -> Result<(), Failure> {
        if !self.json {
            let text = match listed.items.as_slice() {
                [] => none.to_owned(),
                items => text(items, Ink::of_stdout()),
            };
            super::say(&text);
        }
        match listed.rest {
            Rest::None => Ok(()),
            Rest::OverTheLimit => {
                // Beside the output, which a program may read.
                let _ = writeln!(
                    std::io::stderr(),
                    "there may be more: a higher --limit lists them"
                );
                Ok(())
            }
            Rest::NotLookedAt => Err(Failure::new(
                EXIT_BUG,
                format!(
                    "the end was not reached within {} s: there may be more than these {}; ask for less at once",
                    LIST_DEADLINE.as_secs(),
                    listed.items.len()
                ),
            )),
        }
    }
}

/// What was found.
pub(super) struct Listed<T> {
    items: Vec<T>,
    rest: Rest,
}

/// What was not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    None,
    OverTheLimit,
    NotLookedAt,
}

/// No answer, as a failure.
pub(super) fn failure(error: Error) -> Failure {
    let code = match error {
        Error::Address { .. } | Error::Key => EXIT_USAGE,
        Error::Unreachable { .. } => EXIT_UNREACHABLE,
        Error::Nonsense { .. } | Error::Setup(_) => EXIT_BUG,
    };
    let what_next = match error {
        Error::Unreachable { .. } => {
            "\nstart it by `stockctl serve` or `stockctl up`, or say where it is, by --url or STOCKCTL_URL"
        }
        _ => "",
    };
    Failure::new(code, format!("{error}{what_next}"))
}

/// An answer that is not what was asked for, as a failure.
pub(super) fn refusal(answer: &Answer, address: &str, not_found: &str) -> Failure {
    let code = match answer.status {
        503 => EXIT_UNREACHABLE,
        400..500 => EXIT_CHECK_FAILED,
        _ => EXIT_BUG,
    };
    let text = match answer.problem() {
        Some(problem) => in_words(&problem, not_found),
        None => {
            let body: String = answer.body.chars().take(FOREIGN_CHARS).collect();
            format!(
                "{address} answered {}, but not as stockctl's API does; is the address right? It said: {}",
                answer.status,
                printable(&body)
            )
        }
    };
    Failure::new(code, text)
}

/// What went wrong, where, and what to do.
fn in_words(problem: &Problem, not_found: &str) -> String {
    let is_told_below = !problem.errors.is_empty()
        && problem
            .errors
            .iter()
            .all(|e| problem.detail.contains(&e.detail));
    let what = if is_told_below {
        &problem.title
    } else {
        &problem.detail
    };
    let mut lines = vec![format!(
        "{} ({})",
        printable(what),
        printable(&problem.code)
    )];
    for error in &problem.errors {
        let detail = printable(&error.detail);
        lines.push(match place(error) {
            Some(place) => format!("  {place}: {detail}"),
            None => format!("  {detail}"),
        });
    }
    if let Some(advice) = advice(problem, not_found) {
        lines.push(advice);
    }
    lines.join("\n")
}

/// Where on the command line that is.
fn place(error: &FieldProblem) -> Option<String> {
    if let Some(parameter) = &error.parameter {
        return Some(match parameter.as_str() {
            "q" => "--query".to_owned(),
            "productId" => "--product".to_owned(),
            "Idempotency-Key" => "--key".to_owned(),
            "Prefer" => "--wait".to_owned(),
            name @ ("vendor" | "status" | "limit") => format!("--{name}"),
            other => printable(other),
        });
    }
    let pointer = error.pointer.as_deref()?;
    let parts: Vec<&str> = pointer.split('/').skip(1).collect();
    Some(match parts.as_slice() {
        [] => return None,
        ["reference"] => "--reference".to_owned(),
        ["lines"] => "PRODUCT=QUANTITY".to_owned(),
        ["lines", index, rest @ ..] if index.parse::<usize>().is_ok() => {
            let number = index.parse::<usize>().unwrap_or_default() + 1;
            let field = match rest {
                ["productId"] => ", product".to_owned(),
                [] => String::new(),
                more => format!(", {}", printable(&more.join("/"))),
            };
            format!("PRODUCT=QUANTITY number {number}{field}")
        }
        _ => printable(pointer),
    })
}

fn advice(problem: &Problem, not_found: &str) -> Option<String> {
    Some(match problem.code.as_str() {
        "not_found" => not_found.to_owned(),
        "validation_failed" | "invalid_parameter" => {
            "mend what is named, and run it again".to_owned()
        }
        "not_cancellable" => "`stockctl orders show` says how it stands".to_owned(),
        "idempotency_conflict" => "give another --key, or none, for a new order".to_owned(),
        "unavailable" | "busy" | "not_yet_visible" | "rate_limited" => {
            "run it again in a moment".to_owned()
        }
        // The caller knows the key.
        "outcome_unknown" => return None,
        "internal" => {
            let request = problem.instance.as_deref()?.rsplit(':').next()?;
            format!(
                "the server's log says more of request {}",
                printable(request)
            )
        }
        code => CODES
            .iter()
            .find(|known| known.code == code)?
            .advice
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(problem: &str) -> String {
        let problem = serde_json::from_str(problem).expect("a problem");
        in_words(&problem, "`stockctl orders list` lists the newest")
    }

    #[test]
    fn a_refusal_says_what_where_and_what_to_do() {
        let invalid = words(
            r#"{"type":"t","title":"The request is not valid","status":422,"code":"validation_failed",
            "detail":"/lines/1/quantity: must be 1 to 1000000, is 0; /reference: must be at most 255 characters long",
            "errors":[{"pointer":"/lines/1/quantity","detail":"must be 1 to 1000000, is 0"},
            {"pointer":"/reference","detail":"must be at most 255 characters long"}]}"#,
        );
        insta::assert_snapshot!(invalid, @"
        The request is not valid (validation_failed)
          PRODUCT=QUANTITY number 2, quantity: must be 1 to 1000000, is 0
          --reference: must be at most 255 characters long
        mend what is named, and run it again
        ");
        let unknown = words(r#"{"title":"t","detail":"there is no order 7","code":"not_found"}"#);
        insta::assert_snapshot!(unknown, @"
        there is no order 7 (not_found)
        `stockctl orders list` lists the newest
        ");
        let bug = words(
            r#"{"title":"t","detail":"this was logged","code":"internal","instance":"urn:stockctl:request:checkout-7"}"#,
        );
        insta::assert_snapshot!(bug, @"
        this was logged (internal)
        the server's log says more of request checkout-7
        ");
        let newer = words(r#"{"title":"t","detail":"new \u001b[2J","code":"newer"}"#);
        insta::assert_snapshot!(newer, @"new �[2J (newer)");
    }

    #[test]
    fn a_place_is_named_as_it_was_given() {
        let place = |pointer: Option<&str>, parameter: Option<&str>| {
            place(&FieldProblem {
                pointer: pointer.map(str::to_owned),
                parameter: parameter.map(str::to_owned),
                detail: String::new(),
            })
        };
        for (pointer, expected) in [
            ("/lines", "PRODUCT=QUANTITY"),
            ("/lines/0/productId", "PRODUCT=QUANTITY number 1, product"),
            ("/lines/9", "PRODUCT=QUANTITY number 10"),
            ("/lines/x", "/lines/x"),
            ("/newer", "/newer"),
        ] {
            assert_eq!(place(Some(pointer), None).as_deref(), Some(expected));
        }
        assert_eq!(place(None, Some("q")).as_deref(), Some("--query"));
        assert_eq!(place(None, Some("status")).as_deref(), Some("--status"));
        assert_eq!(place(Some(""), None), None);
        assert_eq!(place(None, None), None);
    }

    #[test]
    fn the_exit_code_says_whose_turn_it_is() {
        for (status, code) in [
            (503, EXIT_UNREACHABLE),
            (404, EXIT_CHECK_FAILED),
            (422, EXIT_CHECK_FAILED),
            (500, EXIT_BUG),
            (302, EXIT_BUG),
        ] {
            let answer = Answer::of_status(status);
            assert_eq!(refusal(&answer, "here", "").code, code, "{status}");
        }
    }
}
