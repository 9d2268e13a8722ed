//! `Prefer: wait=N` (RFC 7240): the caller would rather wait for the outcome of an order than ask for it.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

use super::problem::Problem;
use super::quoted::split_outside_quotes;

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The longest wait in seconds: proxies between give up after a minute, many after half of one. Who asks for more gets
/// this, and is told.
const WAIT_S_MAX: u32 = 30;

/// How long a caller would wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wait(u32);

impl Wait {
    /// Reads the preference, if there is one. Other preferences are none of ours.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let mut wait = None;
        for value in headers.get_all(PREFER) {
            // What is no text asks for nothing that is known.
            let text = value.to_str().unwrap_or_default();
            for preference in split_outside_quotes(text, ',', Some('\\')) {
                let mut parts = split_outside_quotes(preference, ';', Some('\\'));
                let first = parts.next().unwrap_or_default();
                let (name, value) = first.split_once('=').unwrap_or((first, ""));
                // Of several, the first counts.
                if name.trim().eq_ignore_ascii_case("wait") && wait.is_none() {
                    let value = value.trim().trim_matches('"');
                    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
                        let detail = format!("wait must be 0 to {WAIT_S_MAX} whole seconds");
                        return Err(Problem::invalid_parameter("Prefer", detail));
                    }
                    // However many digits: more than the most counts as that.
                    wait = Some(Self(value.parse().unwrap_or(WAIT_S_MAX).min(WAIT_S_MAX)));
                }
            }
        }
        Ok(wait)
    }

    pub(super) fn until(self) -> tokio::time::Instant {
        tokio::time::Instant::now() + Duration::from_secs(self.0.into())
    }

    /// Says in the answer that it was waited for.
    pub(super) fn applied(self, answer: &mut HttpResponse) {
        if let Ok(value) = HeaderValue::from_str(&format!("wait={}", self.0)) {
            answer.headers_mut().insert(PREFERENCE_APPLIED, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::strategy::Strategy;

    use super::*;

    fn read(values: &[&str]) -> Result<Option<Wait>, Problem> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(PREFER, HeaderValue::from_str(value).expect("a header"));
        }
        Wait::of(&headers)
    }

    #[test]
    fn a_wait_is_found_among_other_preferences() {
        for (values, expected) in [
            (&[][..], None),
            (&["wait=5"], Some(5)),
            (&["Wait = 0"], Some(0)),
            (&["respond-async, wait=\"7\""], Some(7)),
            (&["return=minimal; wait=3"], None),
            (&["return=minimal", "wait=3;x=y"], Some(3)),
            (&["wait=3, wait=9"], Some(3)),
            (&["foo=\"a, wait=5\""], None),
            (&["foo=\"a\\\", wait=5\", wait=2; bar=\";\""], Some(2)),
            (&["wait=31"], Some(30)),
            (&["wait=99999999999999999999"], Some(30)),
        ] {
            assert_eq!(read(values), Ok(expected.map(Wait)), "{values:?}");
        }
    }

    #[test]
    fn a_wait_of_no_seconds_is_told() {
        for value in [
            "wait",
            "wait=",
            "wait=soon",
            "wait=-1",
            "wait=1.5",
            "wait=+5",
        ] {
            assert!(read(&[value]).is_err(), "{value}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_preferred_no_wait_is_longer_than_the_longest(
            values in proptest::collection::vec(
                proptest::prop_oneof![
                    proptest::collection::vec(proptest::num::u8::ANY, 0..40),
                    "[Ww]ait ?= ?\"?[0-9]{0,12}\"?[;,a-z= ]{0,12}".prop_map(String::into_bytes),
                ],
                0..4,
            ),
        ) {
            let mut headers = HeaderMap::new();
            for value in values.iter().filter_map(|value| HeaderValue::from_bytes(value).ok()) {
                headers.append(PREFER, value);
            }
            match Wait::of(&headers) {
                Ok(Some(Wait(seconds))) => proptest::prop_assert!(seconds <= WAIT_S_MAX),
                Ok(None) => {}
                Err(problem) => {
                    let told = problem.to_string();
                    proptest::prop_assert!(told.starts_with("invalid_parameter: Prefer: "), "{told}");
                }
            }
        }
    }
}
