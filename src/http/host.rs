//! The name that the server is called by. Where no keys are asked for, all that protects it is that nobody else reaches a
//! loopback address. A browser on this machine does, for any page: one whose own name has been made to mean 127.0.0.1 (DNS
//! rebinding) is of the same origin as this server, as far as the browser can tell. Its name is not one of ours, so names
//! are what is looked at.

use std::net::IpAddr;
use std::sync::Arc;

use actix_web::dev::RequestHead;
use actix_web::http::header::HOST;
use actix_web::http::uri::Authority;

/// What answers to any name: those who ask whether the server lives send what they like, and are told nothing else.
const OF_ANY_NAME: [&str; 2] = ["/healthz", "/readyz"];

/// The names that the server is called by.
#[derive(Debug, Clone)]
pub(super) enum Hosts {
    /// Any: whoever calls has a key, which no page of another name has.
    Any,
    /// This machine's own, and these.
    OwnAnd(Arc<[String]>),
}

impl Hosts {
    /// Whether a request means this server, at whatever port. One that says no name comes from no browser.
    pub(super) fn are_meant_by(&self, request: &RequestHead) -> bool {
        let Self::OwnAnd(names) = self else {
            return true;
        };
        let is_ours = |authority: &Authority| {
            let host = authority.host();
            is_own(host) || names.iter().any(|name| name.eq_ignore_ascii_case(host))
        };
        // A name in the address itself counts instead of the header, by the standard; whoever reads only one of them may
        // not be led astray by the other.
        let in_address = request.uri.authority().is_none_or(is_ours);
        let in_headers = || {
            request.headers().get_all(HOST).all(|value| {
                Authority::try_from(value.as_bytes()).is_ok_and(|authority| is_ours(&authority))
            })
        };
        (in_address && in_headers()) || OF_ANY_NAME.contains(&request.uri.path())
    }
}

/// Whether this name means this machine, whoever is asked for it.
fn is_own(host: &str) -> bool {
    let address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;
    use actix_web::test::TestRequest;
    use proptest::prelude::*;

    use super::*;

    fn own_and_shop() -> Hosts {
        Hosts::OwnAnd(["shop.internal".to_owned()].into())
    }

    fn is_answered(hosts: &Hosts, uri: &str, names: &[&[u8]]) -> bool {
        let mut request = TestRequest::default().uri(uri);
        for name in names {
            let name = HeaderValue::from_bytes(name).expect("a header");
            request = request.append_header((HOST, name));
        }
        hosts.are_meant_by(request.to_http_request().head())
    }

    #[test]
    fn without_keys_the_server_answers_to_this_machines_names_and_configured_ones() {
        for (name, expected) in [
            ("127.0.0.1:8080", true),
            ("127.0.0.1", true),
            ("127.9.9.9:1", true),
            ("localhost:8080", true),
            ("LocalHost", true),
            ("[::1]:8080", true),
            ("[::ffff:127.0.0.1]", true),
            ("shop.internal", true),
            ("Shop.Internal:443", true),
            ("evil.example:8080", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("evil.shop.internal", false),
            ("127.0.0.1@evil.example", false),
            ("evil.example@127.0.0.1.example", false),
            ("192.168.0.7:8080", false),
            ("0.0.0.0:8080", false),
            ("[::2]:8080", false),
            ("2130706433", false),
            ("x", false),
            ("", false),
            ("a b", false),
        ] {
            let answered = is_answered(&own_and_shop(), "/orders", &[name.as_bytes()]);
            assert_eq!(answered, expected, "{name}");
            assert!(is_answered(&Hosts::Any, "/orders", &[name.as_bytes()]));
            assert!(is_answered(&own_and_shop(), "/healthz", &[name.as_bytes()]));
            let address = format!("http://{name}/orders");
            if address.parse::<actix_web::http::Uri>().is_ok() {
                let answered = is_answered(&own_and_shop(), &address, &[b"localhost"]);
                assert_eq!(answered, expected, "{address}");
            }
        }
        assert!(is_answered(&own_and_shop(), "/orders", &[]));
        let two: [&[u8]; 2] = [b"localhost", b"evil.example"];
        assert!(!is_answered(&own_and_shop(), "/orders", &two));
    }

    proptest! {
        #[test]
        fn whatever_the_name_one_that_is_taken_means_this_machine(
            name in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                "(localhost|127\\.[0-9]{1,4}\\.0\\.1|\\[::[0-9a-f:.]{0,12}\\]|[a-z.@:]{0,12}){1,2}(:[0-9]{0,6})?".prop_map(String::into_bytes),
            ],
        ) {
            if HeaderValue::from_bytes(&name).is_err() {
                return Ok(());
            }
            if is_answered(&Hosts::OwnAnd([].into()), "/orders", &[&name]) {
                // As a browser reads it.
                let url = format!("http://{}/", String::from_utf8(name).expect("text"));
                let Ok(url) = url::Url::parse(&url) else {
                    return Ok(());
                };
                let is_own = match url.host().expect("a host") {
                    url::Host::Domain(name) => name == "localhost",
                    url::Host::Ipv4(address) => address.is_loopback(),
                    url::Host::Ipv6(address) => IpAddr::V6(address).to_canonical().is_loopback(),
                };
                prop_assert!(is_own, "{url}");
            }
        }
    }
}
