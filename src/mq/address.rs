//! The address of one broker node, parsed from its URL. It shows itself without user and password.

use std::fmt;

use percent_encoding::percent_decode_str;
use url::Url;

const DEFAULT_PORT: u16 = 5672;

/// Where and as whom to connect.
#[derive(Clone, PartialEq)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) virtual_host: String,
    pub(super) username: String,
    pub(super) password: String,
}

impl Address {
    /// Reads `amqp://user:password@host:port/vhost`. The error never repeats the URL, which may hold
    /// a password.
    pub(super) fn parse(text: &str) -> Result<Address, String> {
        let url = Url::parse(text).map_err(|error| format!("it is not a URL ({error})"))?;
        match url.scheme() {
            "amqp" => {}
            "amqps" => {
                return Err("amqps is not supported, and connecting in the clear instead would betray the password".to_owned());
            }
            other => return Err(format!("its scheme is {other}, not amqp")),
        }
        if url.query().is_some() {
            return Err("parameters after ? are not supported".to_owned());
        }
        let host = match url.host_str() {
            // A bare IPv6 address has no brackets where it is resolved.
            Some(host) if !host.is_empty() => host.trim_matches(['[', ']']).to_owned(),
            _ => return Err("it names no host".to_owned()),
        };
        let virtual_host = match url.path() {
            "" | "/" => "/".to_owned(),
            path => decoded(&path[1..])?,
        };
        let (username, password) = match (url.username(), url.password()) {
            ("", None) => ("guest".to_owned(), "guest".to_owned()),
            (username, password) => (decoded(username)?, decoded(password.unwrap_or_default())?),
        };
        Ok(Address {
            host,
            port: url.port().unwrap_or(DEFAULT_PORT),
            virtual_host,
            username,
            password,
        })
    }
}

fn decoded(text: &str) -> Result<String, String> {
    percent_decode_str(text)
        .decode_utf8()
        .map(|text| text.into_owned())
        .map_err(|_| "a part of it is not UTF-8".to_owned())
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)?;
        if self.virtual_host != "/" {
            write!(f, " (vhost {})", self.virtual_host)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_and_shown_without_secrets() {
        let address = Address::parse("amqp://us%40er:p%3Aw@broker:5673/%2fa").unwrap();
        assert_eq!(address.username, "us@er");
        assert_eq!(address.password, "p:w");
        assert_eq!(address.to_string(), "broker:5673 (vhost /a)");
        for url in ["amqp://h", "amqp://h/", "amqp://h/%2f", "amqp://h:5672/%2F"] {
            let address = Address::parse(url).unwrap();
            assert_eq!(address.to_string(), "h:5672", "{url}");
            assert_eq!(address.username, "guest");
        }
        assert_eq!(Address::parse("amqp://[::1]:1").unwrap().host, "::1");
    }

    #[test]
    fn a_bad_url_is_refused_without_repeating_it() {
        for url in [
            "amqps://u:secret@h",
            "http://u:secret@h",
            "u:secret@h",
            "amqp://u:secret@h?heartbeat=1",
            "amqp://u:secret@h:notaport",
        ] {
            let Err(reason) = Address::parse(url) else {
                panic!("{url} was taken");
            };
            assert!(!reason.contains("secret"), "{reason}");
        }
    }
}
