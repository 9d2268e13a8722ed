//! What the broker sends, made legible for amiquip.
//!
//! amiquip gives a connection up over a text that is no UTF-8, wherever it stands in a message's properties, and it takes
//! tables within tables apart by recursion, however deep they are. RabbitMQ passes both on. A message like that, which
//! anybody may publish, would end the connection each time it is delivered; among the dead letters it would end each listing
//! of them. So the frames that carry properties are read here first: an id that is no text becomes one, and any other value
//! that amiquip cannot read goes through as the bytes that it is.

use std::io::{self, Read, Write};

use amiquip::IoStream;
use mio::{Evented, Poll, PollOpt, Ready, Token};
use uuid::Uuid;

/// Read from the socket at once, at most.
const READ_MAX_BYTES: usize = 16 << 10;

/// Before a frame's payload stand its type, its channel and its size, after it stands a mark.
const HEAD_BYTES: usize = 7;
const MARK_BYTES: usize = 1;
/// The type of the frames that carry a message's properties.
const CONTENT_HEADER: u8 = 2;
/// Before the properties stand the class, a weight that is always 0, and the size of the body.
const BEFORE_PROPERTIES_BYTES: usize = 12;

/// Tables within tables are read so deep. Nothing that is read here has any in it.
const DEPTH_MAX: usize = 16;
/// An id of more bytes than these is longer in hexadecimal digits than a short string may be.
const HEX_MAX_BYTES: usize = 126;

/// A connection on which everything is legible.
pub(super) struct Legible<S> {
    stream: S,
    buffer: Box<[u8]>,
    mender: Mender,
}

impl<S> Legible<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: vec![0; READ_MAX_BYTES].into_boxed_slice(),
            mender: Mender::default(),
        }
    }
}

impl<S: Read> Read for Legible<S> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.mender.take(to);
            if read > 0 || to.is_empty() {
                return Ok(read);
            }
            match self.stream.read(&mut self.buffer)? {
                0 => return Ok(0),
                read => self.mender.push(&self.buffer[..read]),
            }
        }
    }
}

impl<S: Write> Write for Legible<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<S: Evented> Evented for Legible<S> {
    fn register(
        &self,
        poll: &Poll,
        token: Token,
        interest: Ready,
        opts: PollOpt,
    ) -> io::Result<()> {
        self.stream.register(poll, token, interest, opts)
    }

    fn reregister(
        &self,
        poll: &Poll,
        token: Token,
        interest: Ready,
        opts: PollOpt,
    ) -> io::Result<()> {
        self.stream.reregister(poll, token, interest, opts)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        self.stream.deregister(poll)
    }
}

impl<S: Read + Write + Evented + Send + 'static> IoStream for Legible<S> {}

/// Takes bytes as they come, and gives them on in whole frames where a frame may have to be mended.
#[derive(Default)]
struct Mender {
    /// So many bytes of the frame that has begun pass as they are.
    passing: usize,
    /// The head of a frame, and what follows it in one to be mended, as far as it has come.
    held: Vec<u8>,
    /// What may be taken, and how much of it was.
    ready: Vec<u8>,
    taken: usize,
}

impl Mender {
    fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.passing > 0 {
                let (pass, rest) = bytes.split_at(self.passing.min(bytes.len()));
                self.ready.extend_from_slice(pass);
                self.passing -= pass.len();
                bytes = rest;
                continue;
            }
            let missing = self.frame_bytes().unwrap_or(HEAD_BYTES) - self.held.len();
            let (part, rest) = bytes.split_at(missing.min(bytes.len()));
            self.held.extend_from_slice(part);
            bytes = rest;
            match self.frame_bytes() {
                Some(frame) if self.held[0] != CONTENT_HEADER => {
                    self.passing = frame - self.held.len();
                    self.ready.append(&mut self.held);
                }
                Some(frame) if frame == self.held.len() => {
                    let mended = mend(&self.held);
                    self.ready.extend(mended.as_ref().unwrap_or(&self.held));
                    self.held.clear();
                }
                _ => {}
            }
        }
    }

    /// The size of the frame that is held, once its head has come.
    fn frame_bytes(&self) -> Option<usize> {
        let size = self.held.get(3..HEAD_BYTES)?.try_into().ok()?;
        Some(HEAD_BYTES + u32::from_be_bytes(size) as usize + MARK_BYTES)
    }

    fn take(&mut self, to: &mut [u8]) -> usize {
        let ready = &self.ready[self.taken..];
        let taking = ready.len().min(to.len());
        to[..taking].copy_from_slice(&ready[..taking]);
        self.taken += taking;
        if self.taken == self.ready.len() {
            self.ready.clear();
            self.taken = 0;
        }
        taking
    }
}

/// The kinds of a message's properties, in the order in which they stand in a frame and their flags in a word.
#[derive(Clone, Copy)]
enum Property {
    Short,
    Table,
    Fixed(usize),
}

const PROPERTIES: [Property; 14] = {
    use Property::{Fixed, Short, Table};
    [
        Short,    // content-type
        Short,    // content-encoding
        Table,    // headers
        Fixed(1), // delivery-mode
        Fixed(1), // priority
        Short,    // correlation-id
        Short,    // reply-to
        Short,    // expiration
        Short,    // message-id
        Fixed(8), // timestamp
        Short,    // type
        Short,    // user-id
        Short,    // app-id
        Short,    // cluster-id
    ]
};

/// The same frame, with everything legible. `None` where it is not built as AMQP 0-9-1 says: whoever reads it will say so.
fn mend(frame: &[u8]) -> Option<Vec<u8>> {
    let (head, payload) = frame.split_at_checked(HEAD_BYTES)?;
    let (payload, mark) = payload.split_at_checked(payload.len().checked_sub(MARK_BYTES)?)?;
    let mut from = Rest(payload);
    let mut to = head.to_vec();
    to.extend_from_slice(from.bytes(BEFORE_PROPERTIES_BYTES)?);
    let flags = from.bytes(2)?;
    to.extend_from_slice(flags);
    let flags = u16::from_be_bytes(flags.try_into().ok()?);
    for (place, property) in PROPERTIES.into_iter().enumerate() {
        if flags & (1 << (15 - place)) == 0 {
            continue;
        }
        match property {
            Property::Short => short(&mut from, &mut to)?,
            Property::Table => {
                let content = table(from.long()?, DEPTH_MAX)?;
                put_long(&mut to, &content)?;
            }
            Property::Fixed(bytes) => to.extend_from_slice(from.bytes(bytes)?),
        }
    }
    to.extend_from_slice(from.0);
    let size = u32::try_from(to.len() - HEAD_BYTES).ok()?;
    to[3..HEAD_BYTES].copy_from_slice(&size.to_be_bytes());
    to.extend_from_slice(mark);
    Some(to)
}

/// What is left to be read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    fn byte(&mut self) -> Option<u8> {
        self.bytes(1)?.first().copied()
    }

    /// What has its length before it, in four bytes.
    fn long(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_be_bytes(self.bytes(4)?.try_into().ok()?);
        self.bytes(length as usize)
    }
}

fn put_long(to: &mut Vec<u8>, content: &[u8]) -> Option<()> {
    to.extend_from_slice(&u32::try_from(content.len()).ok()?.to_be_bytes());
    to.extend_from_slice(content);
    Some(())
}

/// A text that has its length before it, in one byte. What is none becomes one of its own, whatever else is made into one: it
/// may be the id by which messages are told apart.
fn short(from: &mut Rest<'_>, to: &mut Vec<u8>) -> Option<()> {
    let length = from.byte()?;
    let bytes = from.bytes(length.into())?;
    let made;
    let bytes = match std::str::from_utf8(bytes) {
        Ok(_) => bytes,
        Err(_) if bytes.len() <= HEX_MAX_BYTES => {
            made = bytes
                .iter()
                .fold("0x".to_owned(), |hex, byte| format!("{hex}{byte:02x}"));
            made.as_bytes()
        }
        Err(_) => {
            made = Uuid::new_v5(&Uuid::NAMESPACE_OID, bytes).to_string();
            made.as_bytes()
        }
    };
    to.push(u8::try_from(bytes.len()).ok()?);
    to.extend_from_slice(bytes);
    Some(())
}

fn table(content: &[u8], depth: usize) -> Option<Vec<u8>> {
    let (mut from, mut to) = (Rest(content), Vec::with_capacity(content.len()));
    while !from.0.is_empty() {
        short(&mut from, &mut to)?;
        value(&mut from, &mut to, depth)?;
    }
    Some(to)
}

fn array(content: &[u8], depth: usize) -> Option<Vec<u8>> {
    let (mut from, mut to) = (Rest(content), Vec::with_capacity(content.len()));
    while !from.0.is_empty() {
        value(&mut from, &mut to, depth)?;
    }
    Some(to)
}

/// A value of a table or an array, with its type before it. The types are RabbitMQ's
/// (<https://www.rabbitmq.com/amqp-0-9-1-errata>, section 3).
fn value(from: &mut Rest<'_>, to: &mut Vec<u8>, depth: usize) -> Option<()> {
    /// Bytes that are no text, with their length before them as texts, tables and arrays have it.
    const BYTES: u8 = b'x';
    let kind = from.byte()?;
    let fixed = match kind {
        b't' | b'b' | b'B' => 1,
        b's' | b'u' | b'U' => 2,
        b'i' | b'I' | b'f' => 4,
        b'l' | b'L' | b'd' | b'T' => 8,
        b'D' => 5,
        b'V' => 0,
        b'S' | b'x' | b'F' | b'A' => {
            let content = from.long()?;
            let inner = match kind {
                b'F' if depth > 0 => Some(table(content, depth - 1)?),
                b'A' if depth > 0 => Some(array(content, depth - 1)?),
                _ => None,
            };
            let is_legible = match kind {
                b'S' => std::str::from_utf8(content).is_ok(),
                b'F' | b'A' => inner.is_some(),
                _ => true,
            };
            to.push(if is_legible { kind } else { BYTES });
            return put_long(to, inner.as_deref().unwrap_or(content));
        }
        _ => return None,
    };
    to.push(kind);
    to.extend_from_slice(from.bytes(fixed)?);
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 1];
        put_long(&mut frame, payload).expect("short");
        frame.push(0xce);
        frame
    }

    /// A frame with headers and a message-id.
    fn properties(headers: &[u8], message_id: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4];
        payload.extend([0b0010_0000, 0b1000_0000]);
        put_long(&mut payload, headers).expect("short");
        payload.push(u8::try_from(message_id.len()).expect("short"));
        payload.extend(message_id);
        frame(CONTENT_HEADER, &payload)
    }

    fn header(name: &[u8], kind: u8, content: &[u8]) -> Vec<u8> {
        let mut header = vec![u8::try_from(name.len()).expect("short")];
        header.extend(name);
        header.push(kind);
        put_long(&mut header, content).expect("short");
        header
    }

    /// What is read of what comes, in parts of so many bytes.
    fn read(bytes: &[u8], parts: usize) -> Vec<u8> {
        struct Parts<'a>(std::slice::Chunks<'a, u8>);
        impl Read for Parts<'_> {
            fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
                let part = self.0.next().unwrap_or_default();
                to[..part.len()].copy_from_slice(part);
                Ok(part.len())
            }
        }
        let mut legible = Legible::new(Parts(bytes.chunks(parts)));
        let mut all = Vec::new();
        legible.read_to_end(&mut all).expect("no error");
        all
    }

    #[test]
    fn what_is_legible_passes_as_it_is_however_it_is_cut() {
        let mut headers = header("größe".as_bytes(), b'S', "groß".as_bytes());
        headers.extend(header(b"bytes", b'x', &[0xff]));
        headers.extend(header(
            b"table",
            b'F',
            &header(b"a", b'A', &[b't', 1, b'V']),
        ));
        headers.extend(b"\x01nl\0\0\0\0\0\0\0\x07");
        let all = [
            b"AMQP\0\0\x09\x01".to_vec(),
            frame(1, b"a method"),
            properties(&headers, b"id"),
            frame(3, &[0xff; 100]),
            frame(8, b""),
            properties(b"", b""),
        ];
        for some in [&all[..1], &all[1..]] {
            let some = some.concat();
            for parts in [1, 2, 7, 50, some.len()] {
                assert_eq!(read(&some, parts), some, "{parts}");
            }
        }
    }

    #[test]
    fn what_is_not_legible_comes_as_text_or_as_bytes() {
        let of =
            |name: &[u8], kind, content: &[u8]| properties(&header(name, kind, content), b"id");
        for (illegible, legible) in [
            (properties(b"", &[0xff, 0x01]), properties(b"", b"0xff01")),
            (
                properties(b"", &[0xfe; 255]),
                properties(
                    b"",
                    Uuid::new_v5(&Uuid::NAMESPACE_OID, &[0xfe; 255])
                        .to_string()
                        .as_bytes(),
                ),
            ),
            (of(b"a", b'S', &[0xff]), of(b"a", b'x', &[0xff])),
            (of(&[0xff], b'S', b"a"), of(b"0xff", b'S', b"a")),
            (
                of(b"a", b'F', &header(b"b", b'S', &[0xff])),
                of(b"a", b'F', &header(b"b", b'x', &[0xff])),
            ),
        ] {
            let followed = [illegible, frame(3, b"body")].concat();
            assert_eq!(read(&followed, 10), [legible, frame(3, b"body")].concat());
        }
    }

    #[test]
    fn tables_in_tables_are_bytes_from_some_depth_on() {
        let nested = |depth: usize, innermost: u8| {
            let inner = header(b"t", innermost, b"");
            (0..depth).fold(inner, |inner, _| header(b"t", b'F', &inner))
        };
        let well = properties(&nested(DEPTH_MAX - 1, b'F'), b"id");
        assert_eq!(read(&well, well.len()), well);
        let deep = properties(&nested(2_000, b'F'), b"id");
        let read = read(&deep, 1000);
        assert_eq!(read.len(), deep.len());
        let changed: Vec<(u8, u8)> = deep
            .iter()
            .zip(&read)
            .filter(|(a, b)| a != b)
            .map(|(a, b)| (*a, *b))
            .collect();
        assert_eq!(changed, [(b'F', b'x')]);
    }

    proptest! {
        /// Nothing that comes stops a connection here, and of frames that cannot be taken apart nothing is changed.
        #[test]
        fn whatever_comes_goes_through(payload in prop::collection::vec(any::<u8>(), 0..200), parts in 1..300_usize) {
            let comes = [frame(CONTENT_HEADER, &payload), frame(1, b"next")].concat();
            let goes = read(&comes, parts);
            prop_assert!(goes.ends_with(&frame(1, b"next")));
            let first = &goes[..goes.len() - frame(1, b"next").len()];
            prop_assert_eq!(u32::from_be_bytes([first[3], first[4], first[5], first[6]]) as usize, first.len() - HEAD_BYTES - MARK_BYTES);
        }

        #[test]
        fn ids_that_differ_stay_different(one in prop::collection::vec(any::<u8>(), 0..=255), other in prop::collection::vec(any::<u8>(), 0..=255)) {
            let as_read = |id: &[u8]| read(&properties(b"", id), 1000);
            prop_assert_eq!(one == other, as_read(&one) == as_read(&other));
        }
    }
}
