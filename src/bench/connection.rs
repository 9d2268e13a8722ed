//! A connection to the API: plain HTTP/1.1, one request at a time.
//!
//! Whoever makes the load sits on the machine that is measured, so it is to take little of it. A client library has a task
//! for each connection and hands it each request, and each answer back; without it a request takes two fifths less of the
//! generator's time.

use std::io::Write as _;
use std::time::Duration;

use httparse::{EMPTY_HEADER, Header, Status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A request without an answer for this long has none.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// Headers of an answer.
const HEADERS_MAX: usize = 64;
/// Bytes of an answer's head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Bytes of an answer: a page of orders of a hundred lines each has a tenth of it.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// An open connection.
pub(super) struct Connection {
    stream: TcpStream,
    /// Those lines of a head that are the same in each.
    lines: String,
    sent: Vec<u8>,
    received: Vec<u8>,
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    /// Whether another request may follow on the connection.
    pub(super) goes_on: bool,
}

impl Connection {
    /// Connects to `authority`, a host and a port. `authorization` is the value of that header, where there is one.
    pub(super) async fn open(authority: &str, authorization: Option<&str>) -> Result<Self, String> {
        let opening = async {
            let stream = TcpStream::connect(authority).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let stream = tokio::time::timeout(REQUEST_DEADLINE, opening)
            .await
            .map_err(|_| "no connection in time".to_owned())?
            .map_err(|error: std::io::Error| error.to_string())?;
        let authorization = authorization
            .map(|value| format!("Authorization: {value}\r\n"))
            .unwrap_or_default();
        Ok(Self {
            stream,
            lines: format!(
                "Host: {authority}\r\nContent-Type: application/json\r\n{authorization}"
            ),
            sent: Vec::new(),
            received: Vec::new(),
        })
    }

    /// Sends a request and reads the whole answer. The error says why there is none; nothing more can be sent then.
    pub(super) async fn send(
        &mut self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<Answer, String> {
        tokio::time::timeout(REQUEST_DEADLINE, self.exchange(method, path, body))
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", REQUEST_DEADLINE.as_secs())))
    }

    async fn exchange(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Answer, String> {
        let (lines, length) = (&self.lines, body.len());
        self.sent.clear();
        write!(
            self.sent,
            "{method} {path} HTTP/1.1\r\n{lines}Content-Length: {length}\r\n\r\n"
        )
        .map_err(|error| error.to_string())?;
        self.sent.extend_from_slice(body);
        self.stream
            .write_all(&self.sent)
            .await
            .map_err(|error| error.to_string())?;
        self.received.clear();
        loop {
            let count = self
                .stream
                .read_buf(&mut self.received)
                .await
                .map_err(|error| error.to_string())?;
            let is_end = count == 0;
            if let Some(answer) = read_answer(&self.received, is_end)? {
                return Ok(answer);
            }
            if is_end {
                return Err("the connection was closed before the answer was whole".to_owned());
            }
            check_length(self.received.len())?;
        }
    }
}

/// Reads an answer; none while it is not whole. `is_end` says that nothing more comes.
fn read_answer(received: &[u8], is_end: bool) -> Result<Option<Answer>, String> {
    let mut rest = received;
    loop {
        let mut headers = [EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Response::new(&mut headers);
        let length = match head.parse(rest) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) if rest.len() > HEAD_BYTES_MAX => {
                return Err(format!("a head of more than {HEAD_BYTES_MAX} bytes"));
            }
            Ok(Status::Partial) => return Ok(None),
            Err(error) => return Err(format!("what is no HTTP/1.1: {error}")),
        };
        rest = &rest[length..];
        let status = head.code.unwrap_or_default();
        if status < 200 {
            // The answer follows.
            continue;
        }
        let is_close = has_token(head.headers, "connection", "close");
        let (body, after, has_end) = if status == 204 || status == 304 {
            (Vec::new(), rest, true)
        } else if has_token(head.headers, "transfer-encoding", "chunked") {
            match read_chunks(rest)? {
                Some((body, after)) => (body, after, true),
                None => return Ok(None),
            }
        } else if let Some(length) = content_length(head.headers)? {
            match rest.split_at_checked(length) {
                Some((body, after)) => (body.to_vec(), after, true),
                None => return Ok(None),
            }
        } else if is_end {
            (rest.to_vec(), &[][..], false)
        } else {
            return Ok(None);
        };
        return Ok(Some(Answer {
            status,
            body,
            goes_on: head.version == Some(1) && !is_close && has_end && after.is_empty(),
        }));
    }
}

fn values<'a>(headers: &'a [Header<'a>], name: &str) -> impl Iterator<Item = &'a [u8]> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| header.value)
}

/// Whether a header, which is a list, has this in it.
fn has_token(headers: &[Header<'_>], name: &str, token: &str) -> bool {
    values(headers, name)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

fn content_length(headers: &[Header<'_>]) -> Result<Option<usize>, String> {
    let Some(value) = values(headers, "content-length").next() else {
        return Ok(None);
    };
    let length = str::from_utf8(value)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| {
            let value = String::from_utf8_lossy(value);
            format!("a Content-Length that is no number: {value}")
        })?;
    check_length(length)?;
    Ok(Some(length))
}

fn check_length(length: usize) -> Result<(), String> {
    if length > ANSWER_BYTES_MAX {
        return Err(format!("more than {ANSWER_BYTES_MAX} bytes"));
    }
    Ok(())
}

/// A body, and what comes after it.
type Unchunked<'a> = (Vec<u8>, &'a [u8]);

/// Reads a body that comes in chunks; none while it is not whole.
fn read_chunks(received: &[u8]) -> Result<Option<Unchunked<'_>>, String> {
    let mut body = Vec::new();
    let mut rest = received;
    loop {
        let (start, size) = match httparse::parse_chunk_size(rest) {
            Ok(Status::Complete(chunk)) => chunk,
            Ok(Status::Partial) => return Ok(None),
            Err(_) => return Err("a chunk whose size is no number".to_owned()),
        };
        rest = &rest[start..];
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        check_length(size.saturating_add(body.len()))?;
        if size == 0 {
            let mut trailers = [EMPTY_HEADER; HEADERS_MAX];
            return match httparse::parse_headers(rest, &mut trailers) {
                Ok(Status::Complete((length, _))) => Ok(Some((body, &rest[length..]))),
                Ok(Status::Partial) => Ok(None),
                Err(error) => Err(format!("trailers that are no HTTP/1.1: {error}")),
            };
        }
        // Each chunk ends with a line's end.
        match rest.split_at_checked(size + 2) {
            Some((chunk, after)) if chunk.ends_with(b"\r\n") => {
                body.extend_from_slice(&chunk[..size]);
                rest = after;
            }
            Some(_) => return Err("a chunk that is longer than it says".to_owned()),
            None => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// What is read of an answer once all of it is there, and that nothing is while it is not.
    fn read(answer: &str) -> Option<(u16, String, bool)> {
        for length in 0..answer.len() {
            assert_eq!(
                read_answer(&answer.as_bytes()[..length], false),
                Ok(None),
                "{length}"
            );
        }
        let answer = read_answer(answer.as_bytes(), false).expect("it is well formed")?;
        let body = String::from_utf8(answer.body).expect("text");
        Some((answer.status, body, answer.goes_on))
    }

    #[test]
    fn an_answer_is_read_once_it_is_whole() {
        let all = [
            "HTTP/1.1 202 Accepted\r\ncontent-length: 8\r\n\r\n{\"id\":1}",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n3\r\nabc\r\n10;x=y\r\n0123456789abcdef\r\n0\r\nT: 1\r\n\r\n",
            "HTTP/1.1 503 \r\nConnection: keep-alive, Close\r\nContent-Length: 2\r\n\r\n{}",
            "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            "HTTP/1.1 204 No Content\r\n\r\n",
        ];
        let read = all.map(|answer| format!("{:?}", read(answer)));
        insta::assert_snapshot!(read.join("\n"), @r#"
        Some((202, "{\"id\":1}", true))
        Some((200, "", true))
        Some((200, "abc0123456789abcdef", true))
        Some((503, "{}", false))
        Some((200, "{}", false))
        Some((204, "", true))
        "#);
    }

    #[test]
    fn a_body_without_a_length_ends_with_its_connection() {
        let answer = b"HTTP/1.1 200 OK\r\n\r\nabc";
        assert_eq!(read_answer(answer, false), Ok(None));
        let whole = read_answer(answer, true).expect("it is well formed");
        let expected = Answer {
            status: 200,
            body: b"abc".to_vec(),
            goes_on: false,
        };
        assert_eq!(whole, Some(expected));
    }

    #[test]
    fn nothing_is_asked_on_a_connection_that_has_said_more_than_its_answer() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab";
        let answer = read_answer(answer, false).expect("well formed");
        assert_eq!(answer.map(|answer| answer.goes_on), Some(false));
    }

    #[test]
    fn what_is_no_answer_says_why() {
        let long = format!("HTTP/1.1 200 OK\r\nA: {}", "a".repeat(HEAD_BYTES_MAX));
        let problems = [
            "SSH-2.0-OpenSSH_9.2\r\n",
            &long,
            "HTTP/1.1 200 OK\r\nContent-Length: some\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
        ]
        .map(|answer| read_answer(answer.as_bytes(), false).expect_err("no answer"));
        insta::assert_snapshot!(problems.join("\n"), @"
        what is no HTTP/1.1: invalid HTTP version
        a head of more than 65536 bytes
        a Content-Length that is no number: some
        more than 67108864 bytes
        a chunk whose size is no number
        more than 67108864 bytes
        a chunk that is longer than it says
        ");
    }

    #[tokio::test]
    async fn a_request_is_sent_with_what_the_server_has_to_know() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let authority = listener.local_addr().expect("an address").to_string();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut asked = vec![0; 1000];
            let length = stream.read(&mut asked).await.expect("a request");
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            stream.write_all(answer).await.expect("sent");
            asked.truncate(length);
            String::from_utf8(asked).expect("text")
        });
        let mut connection = Connection::open(&authority, Some("Bearer k"))
            .await
            .expect("open");
        let answer = connection.send("POST", "/orders", b"{}").await;
        assert_eq!(answer.map(|answer| answer.body), Ok(b"ok".to_vec()));
        let asked = serving.await.expect("it has ended");
        assert_eq!(
            asked,
            format!(
                "POST /orders HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\n\
                 Authorization: Bearer k\r\nContent-Length: 2\r\n\r\n{{}}"
            )
        );
        let ended = connection.send("GET", "/orders", b"").await;
        assert!(ended.is_err(), "{ended:?}");
    }
}
