//! Which request it was: the name that its caller gave it, or one of ours. It is in the answer, and in every line of the
//! log that the request causes.

use std::fmt;
use std::ops::RangeInclusive;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

/// Where it stands, in the request and in the answer.
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A caller's name for a request is taken if it is so long in bytes: a UUID fits, and what proxies make.
const BYTES: RangeInclusive<usize> = 1..=64;

/// The name of a request: of A-Z a-z 0-9 - . _ ~ : = + @, so that it can stand in a header, in the log and in a URN.
///
/// It is kept as a header has it: that is cheap to clone, and every answer has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestId(HeaderValue);

impl RequestId {
    /// The caller's, if it can be used, or else a new one.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        headers
            .get(X_REQUEST_ID)
            .filter(|value| is_clean(value.as_bytes()))
            .cloned()
            .map_or_else(Self::new, Self)
    }

    /// A new one. It names, and keeps no secret, so a fast generator will do.
    pub(super) fn new() -> Self {
        let bytes = fastrand::u128(..).to_ne_bytes();
        let mut text = uuid::Uuid::encode_buffer();
        let id = uuid::Builder::from_random_bytes(bytes).into_uuid();
        let text: &str = id.hyphenated().encode_lower(&mut text);
        // It is of graphic ASCII only.
        Self(HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("-")))
    }

    /// As text.
    pub(super) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or("-")
    }

    /// As a header has it.
    pub(super) fn to_header(&self) -> HeaderValue {
        self.0.clone()
    }
}

fn is_clean(bytes: &[u8]) -> bool {
    BYTES.contains(&bytes.len())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-._~:=+@".contains(b))
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn of(value: &[u8]) -> String {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_bytes(value).expect("a header");
        headers.insert(X_REQUEST_ID, value);
        RequestId::of(&headers).to_string()
    }

    #[test]
    fn a_callers_name_is_taken_if_it_is_short_and_clean() {
        let long = "x".repeat(64);
        for name in [
            "a",
            "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001",
            "Root=1-67891233-abcdef012345678912345678",
            "web:42@eu+1~x_y.z",
            &long,
        ] {
            assert_eq!(of(name.as_bytes()), name);
        }
    }

    #[test]
    fn any_other_request_gets_a_name_of_its_own() {
        let long = "x".repeat(65);
        let none = RequestId::of(&HeaderMap::new()).to_string();
        let mut made = vec![none];
        for name in [
            "", "a b", "a\tb", "\"a\"", "a\u{e4}", "<script>", "a,b", "a/b", "{}", &long,
        ] {
            made.push(of(name.as_bytes()));
        }
        for name in &made {
            assert!(Uuid::try_parse(name).is_ok(), "{name}");
        }
        let different: std::collections::BTreeSet<&String> = made.iter().collect();
        assert_eq!(different.len(), made.len());
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_caller_sends_the_name_is_short_and_clean(value: Vec<u8>) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.insert(X_REQUEST_ID, value);
            }
            let name = RequestId::of(&headers);
            let text = name.to_string();
            proptest::prop_assert!(is_clean(text.as_bytes()), "{text}");
            let header = name.to_header();
            proptest::prop_assert_eq!(header.as_bytes(), text.as_bytes());
            if is_clean(&value) {
                proptest::prop_assert_eq!(text.as_bytes(), value);
            }
        }
    }
}
