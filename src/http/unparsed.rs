//! What the HTTP parser refuses before there is a request. It answers by itself, with a head and nothing else, and no layer
//! above it hears of that; so the answer is made a problem on its way out.

use super::edge::UNLESS_SAID;
use super::problem::{Code, HEADERS_TOO_LARGE, MALFORMED_REQUEST, Problem, REQUEST_TIMEOUT};
use super::request_id::RequestId;

/// As long as its heads are at most: a status, no length, a date, and that the connection ends.
const HEAD_BYTES_MAX: usize = 256;
const BEGIN: &[u8] = b"HTTP/1.1 ";
const END: &[u8] = b"\r\n\r\n";
/// Ours have it, all of them.
const OURS: &str = "x-request-id:";

/// Where an answer of the parser begins in what is about to be sent, if one ends it, and what it means.
pub(super) fn refusal_in(bytes: &[u8]) -> Option<(usize, Code)> {
    if !bytes.ends_with(END) {
        return None;
    }
    let tail_at = bytes.len().saturating_sub(HEAD_BYTES_MAX);
    let tail = &bytes[tail_at..];
    let at = tail
        .windows(BEGIN.len())
        .rposition(|window| window == BEGIN)?;
    let head = &tail[at..];
    let code = match head.get(BEGIN.len()..BEGIN.len() + 3)? {
        b"400" => MALFORMED_REQUEST,
        b"408" => REQUEST_TIMEOUT,
        b"431" => HEADERS_TOO_LARGE,
        _ => return None,
    };
    let head = std::str::from_utf8(head).ok()?.to_ascii_lowercase();
    let is_bare = head.contains("\r\ncontent-length: 0\r\n") && !head.contains(OURS);
    is_bare.then_some((tail_at + at, code))
}

/// A problem as a whole answer, after which the connection ends.
pub(super) fn last_answer(code: Code, detail: &str) -> Vec<u8> {
    let id = RequestId::new();
    tracing::debug!(request_id = %id, code = code.code, "refused before there was a request");
    crate::metrics::HTTP.answered(code.status);
    let problem = Problem::new(code, detail).of_request(id.clone());
    let body = serde_json::to_vec(&problem.body()).unwrap_or_default();
    let reason = actix_web::http::StatusCode::from_u16(code.status)
        .ok()
        .and_then(|status| status.canonical_reason());
    let mut answer = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n{OURS} {id}\r\n",
        code.status,
        reason.unwrap_or_default(),
        body.len()
    );
    for (name, value) in UNLESS_SAID {
        answer += &format!("{name}: {value}\r\n");
    }
    answer += "connection: close\r\n\r\n";
    let mut answer = answer.into_bytes();
    answer.extend(body);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\ndate: Fri, 27 Nov 2026 06:00:00 GMT\r\n\r\n";

    #[test]
    fn an_answer_of_the_parser_is_known_also_behind_others() {
        assert_eq!(refusal_in(BARE), Some((0, MALFORMED_REQUEST)));
        let before =
            b"HTTP/1.1 200 OK\r\nx-request-id: a\r\ncontent-length: 2\r\n\r\n{}".as_slice();
        let both = [before, BARE].concat();
        assert_eq!(refusal_in(&both), Some((before.len(), MALFORMED_REQUEST)));
        let many = [&before.repeat(100), BARE].concat();
        assert_eq!(
            refusal_in(&many),
            Some((100 * before.len(), MALFORMED_REQUEST))
        );
    }

    #[test]
    fn no_other_answer_is_taken_for_one() {
        let others: [&[u8]; 6] = [
            b"",
            b"\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nx-request-id: a\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nX-Request-Id: a\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 12\r\n\r\n",
        ];
        for other in others {
            assert_eq!(
                refusal_in(other),
                None,
                "{}",
                String::from_utf8_lossy(other)
            );
        }
        assert_eq!(refusal_in(&BARE[..BARE.len() - 1]), None);
        let told = last_answer(MALFORMED_REQUEST, "why");
        assert_eq!(refusal_in(&told), None);
        let head = told
            .split_inclusive(|byte| *byte == b'{')
            .next()
            .expect("a head");
        assert_eq!(refusal_in(&head[..head.len() - 1]), None);
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_sent_only_a_bare_head_at_its_end_is_one(
            before in proptest::collection::vec(proptest::num::u8::ANY, 0..400),
            is_refusal: bool,
        ) {
            let mut sent = before.clone();
            if is_refusal {
                sent.extend(BARE);
                proptest::prop_assert_eq!(refusal_in(&sent), Some((before.len(), MALFORMED_REQUEST)));
            } else {
                proptest::prop_assert_eq!(refusal_in(&sent), None);
            }
        }
    }
}
