//! Names of receivers: what one means is looked at when it is connected to and at no other time, so a name that means a
//! public address while it is looked at and a private one afterwards has no afterwards.

use std::net::{IpAddr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::domain::webhooks::{is_public, not_called};

/// A name means no address that is called.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refused(String);

/// Resolves as the system does, and leaves out what is not called.
pub(super) struct Resolver {
    allow_private: bool,
}

impl Resolver {
    pub(super) fn new(allow_private: bool) -> Self {
        Self { allow_private }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            // The port is put in by whoever connects.
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let addresses = allowed(found.collect(), allow_private)?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Those that are called.
fn allowed(found: Vec<SocketAddr>, allow_private: bool) -> Result<Vec<SocketAddr>, Refused> {
    let first: Option<IpAddr> = found.first().map(SocketAddr::ip);
    let kept: Vec<SocketAddr> = found
        .into_iter()
        .filter(|address| allow_private || is_public(address.ip()))
        .collect();
    match (kept.is_empty(), first) {
        (true, Some(address)) => Err(Refused(not_called(address))),
        _ => Ok(kept),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_name_means_only_what_is_public_is_connected_to() {
        let found = |addresses: &[&str]| -> Vec<SocketAddr> {
            let parse = |text: &&str| SocketAddr::new(text.parse().expect("an address"), 0);
            addresses.iter().map(parse).collect()
        };
        let mixed = || found(&["10.0.0.1", "93.184.215.14", "::1"]);
        let kept = allowed(mixed(), false).expect("one is left");
        assert_eq!(kept, found(&["93.184.215.14"]));
        assert_eq!(allowed(mixed(), true).expect("all"), mixed());
        let error = allowed(found(&["127.0.0.1", "::1"]), false).expect_err("none is left");
        assert!(error.to_string().starts_with("127.0.0.1 is a private"));
        assert!(allowed(Vec::new(), false).expect("none").is_empty());
    }
}
