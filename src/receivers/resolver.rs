//! Names of receivers: what one means is looked at when it is connected to and at no other time, so a name that means a
//! public address while it is looked at and a private one afterwards has no afterwards.

use std::net::{IpAddr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::domain::webhooks::{is_public, not_called};

/// A name means no address that is called. What it means instead, or whether anything, is not told: whoever may name an
/// address here would learn the names and addresses of this network from it.
#[derive(Debug, thiserror::Error)]
#[error("its name leads to no public address")]
pub(super) struct Refused;

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
            let found = match tokio::net::lookup_host((name.as_str(), 0)).await {
                Ok(found) => found.collect(),
                Err(error) if allow_private => return Err(error.into()),
                Err(error) => {
                    tracing::info!(host = name.as_str(), %error, "the name of a webhook's receiver is not found");
                    return Err(Refused.into());
                }
            };
            let addresses = allowed(name.as_str(), found, allow_private)?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Those that are called.
fn allowed(
    host: &str,
    found: Vec<SocketAddr>,
    allow_private: bool,
) -> Result<Vec<SocketAddr>, Refused> {
    let first: Option<IpAddr> = found.first().map(SocketAddr::ip);
    let kept: Vec<SocketAddr> = found
        .into_iter()
        .filter(|address| allow_private || is_public(address.ip()))
        .collect();
    match (kept.is_empty(), first) {
        (true, Some(address)) => {
            tracing::info!(
                host,
                "the receiver of a webhook is not called: {}",
                not_called(address)
            );
            Err(Refused)
        }
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
        let kept = allowed("mixed", mixed(), false).expect("one is left");
        assert_eq!(kept, found(&["93.184.215.14"]));
        assert_eq!(allowed("mixed", mixed(), true).expect("all"), mixed());
        allowed("inside", found(&["127.0.0.1", "::1"]), false).expect_err("none is left");
        assert!(
            allowed("nothing", Vec::new(), false)
                .expect("none")
                .is_empty()
        );
    }
}
