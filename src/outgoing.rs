//! What all that call others by HTTP have in common.

use std::error::Error;

/// A client that is prepared, and connects to nothing before its first call. It follows no redirect: one of a POST would
/// silently become a GET.
pub fn client(is_https: bool) -> reqwest::ClientBuilder {
    // Fails only when a provider was set before, and any will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("stockctl/", env!("CARGO_PKG_VERSION")));
    if is_https {
        return client;
    }
    // It would read all certificates of the machine, and is never asked to trust any.
    client.tls_certs_only([])
}

/// An error in words, with what it comes from.
#[must_use]
pub fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn an_error_is_told_with_what_it_comes_from() {
        let error = Outer(std::io::Error::other("inner"));
        assert_eq!(with_sources(&error), "outer: inner");
    }
}
