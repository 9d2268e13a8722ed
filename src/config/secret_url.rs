//! URLs that may hold a password: checked when they are read, and shown without what is secret.

use std::fmt;

use url::Url;

/// A URL that may hold a password. `Debug` and `Display` leave out the password and the query, so it can stand in a
/// log line; [`SecretUrl::expose`] gives the whole of it, to connect with.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl {
    whole: String,
    shown: String,
}

impl SecretUrl {
    /// The URL as it was configured, with its password.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.whole
    }

    /// `postgres://` or `postgresql://`, with a host, and without the TLS that is not there yet.
    pub(super) fn postgres(text: &str) -> Result<Self, String> {
        let url = parse(text, &["postgres", "postgresql"])?;
        for (name, value) in url.query_pairs() {
            if name == "sslmode" && value != "disable" && value != "prefer" {
                return Err(
                    "encrypted connections to PostgreSQL are not supported yet, and without encryption \
                     the promise of this sslmode would be broken: only disable and prefer are possible"
                        .to_owned(),
                );
            }
        }
        Ok(Self::new(text, &url))
    }

    /// `amqp://`, with a host and at most one part after it, which is the virtual host.
    pub(super) fn amqp(text: &str) -> Result<Self, String> {
        if text.to_ascii_lowercase().starts_with("amqps:") {
            return Err(
                "amqps:// is not supported yet, and connecting without encryption instead would send \
                 the password in the clear: use amqp:// on a network that is trusted"
                    .to_owned(),
            );
        }
        let url = parse(text, &["amqp"])?;
        if url.path().get(1..).is_some_and(|name| name.contains('/')) {
            return Err("the virtual host contains a slash; write it as %2F".to_owned());
        }
        Ok(Self::new(text, &url))
    }

    /// `http://` or `https://`, a base to append a path to.
    pub(super) fn http(text: &str) -> Result<Self, String> {
        let url = parse(text, &["http", "https"])?;
        if url.query().is_some() {
            return Err("a path is appended to it, so it can have no query (?...)".to_owned());
        }
        Ok(Self::new(text.trim_end_matches('/'), &url))
    }

    /// `http://` or `https://`, with whatever is behind the host, which may be a token and is not shown.
    pub(super) fn receiver(text: &str) -> Result<Self, String> {
        let url = parse(text, &["http", "https"])?;
        let mut host = url.clone();
        host.set_path("");
        host.set_query(None);
        let mut receiver = Self::new(text, &host);
        // What is shown of no path is a slash.
        receiver
            .shown
            .truncate(receiver.shown.trim_end_matches('/').len());
        if url.path() != "/" || url.query().is_some() {
            receiver.shown.push_str("/***");
        }
        Ok(receiver)
    }

    fn new(text: &str, url: &Url) -> Self {
        let mut shown = format!("{}://", url.scheme());
        if !url.username().is_empty() || url.password().is_some() {
            shown.push_str(url.username());
            if url.password().is_some() {
                shown.push_str(":***");
            }
            shown.push('@');
        }
        shown.push_str(url.host_str().unwrap_or_default());
        if let Some(port) = url.port() {
            shown.push_str(&format!(":{port}"));
        }
        shown.push_str(url.path());
        // PostgreSQL takes a password in the query as well.
        if url.query().is_some() {
            shown.push_str("?***");
        }
        Self {
            whole: text.to_owned(),
            shown,
        }
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.shown)
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")
    }
}

/// The messages never repeat the text: while it is not understood, nobody knows which part of it is the password.
fn parse(text: &str, schemes: &[&str]) -> Result<Url, String> {
    let example = format!("{}://", schemes[0]);
    if text.is_empty() {
        return Err(format!("it is empty; a URL {example}... is needed"));
    }
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("it contains white space or a control character".to_owned());
    }
    let url = Url::parse(text).map_err(|error| {
        format!(
            "it is not a URL {example}... ({error}); special characters in a password \
             must be percent-encoded (@ is %40, / is %2F, a comma is %2C)"
        )
    })?;
    if !schemes.contains(&url.scheme()) {
        let wanted: Vec<String> = schemes.iter().map(|s| format!("{s}://")).collect();
        return Err(format!("it must begin with {}", wanted.join(" or ")));
    }
    if url.host_str().is_none_or(str::is_empty) || !text.contains("://") {
        return Err("it names no host".to_owned());
    }
    // With a / or # in its password, what follows is no part of the user's name to a parser but a path, and would be
    // shown.
    let after_host = url.path().contains('@') || url.query().is_some_and(|q| q.contains('@'));
    if after_host || url.fragment().is_some() {
        return Err(
            "it has an @ after the host, or a #; in a password these and / and ? must be \
             percent-encoded (@ is %40, # is %23, / is %2F, ? is %3F)"
                .to_owned(),
        );
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_receiver_nothing_behind_the_host_is_shown() {
        for (text, shown) in [
            ("https://crm.example", "https://crm.example"),
            ("https://crm.example/", "https://crm.example"),
            ("https://crm.example/SECRET", "https://crm.example/***"),
            (
                "https://u:SECRET@crm.example:81/hooks/SECRET?key=SECRET",
                "https://u:***@crm.example:81/***",
            ),
            ("https://crm.example?SECRET", "https://crm.example/***"),
        ] {
            let receiver = SecretUrl::receiver(text).expect("valid");
            assert_eq!(
                (receiver.to_string().as_str(), receiver.expose()),
                (shown, text)
            );
        }
    }
}
