//! Asks a broker whether it can be used, by opening and closing one AMQP 0-9-1
//! connection. Written by hand: the client library belongs to another room, and
//! six fixed frames need none.

use std::io::{self, ErrorKind};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A booting broker answers late, but one that takes this long is asked anew.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);

/// The broker's largest frame here is its greeting, of about 500 bytes.
const FRAME_BYTES_MAX: u32 = 64 * 1024;

const PROTOCOL_HEADER: &[u8; 8] = b"AMQP\0\0\x09\x01";
const METHOD_FRAME: u8 = 1;
const FRAME_END: u8 = 0xCE;

/// Class and method of what is said, in this order.
const START: (u16, u16) = (10, 10);
const START_OK: (u16, u16) = (10, 11);
const TUNE: (u16, u16) = (10, 30);
const TUNE_OK: (u16, u16) = (10, 31);
const OPEN: (u16, u16) = (10, 40);
const OPEN_OK: (u16, u16) = (10, 41);
const CLOSE: (u16, u16) = (10, 50);
const CLOSE_OK: (u16, u16) = (10, 51);

/// Logs in on 127.0.0.1 and opens the virtual host `/`. A success says that the
/// broker is up, has its users and virtual host, and is ours: a stranger on that
/// port would not know the password.
pub(super) async fn check_login(port: u16, user: &str, password: &str) -> io::Result<()> {
    tokio::time::timeout(HANDSHAKE_WITHIN, handshake(port, user, password))
        .await
        .map_err(io::Error::from)?
}

async fn handshake(port: u16, user: &str, password: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(PROTOCOL_HEADER).await?;
    expect(&mut stream, START).await?;

    let mut start_ok = 0_u32.to_be_bytes().to_vec(); // no client properties
    start_ok.extend(b"\x05PLAIN");
    let response = format!("\0{user}\0{password}");
    start_ok.extend((response.len() as u32).to_be_bytes());
    start_ok.extend(response.as_bytes());
    start_ok.extend(b"\x05en_US");
    send(&mut stream, START_OK, &start_ok).await?;
    expect(&mut stream, TUNE).await?;

    // One channel (0 would ask for no limit, which is refused), frames of the
    // broker's default size, no heartbeat.
    let mut tune_ok = 1_u16.to_be_bytes().to_vec();
    tune_ok.extend(131_072_u32.to_be_bytes());
    tune_ok.extend(0_u16.to_be_bytes());
    send(&mut stream, TUNE_OK, &tune_ok).await?;
    send(&mut stream, OPEN, b"\x01/\0\0").await?;
    expect(&mut stream, OPEN_OK).await?;

    let mut close = 200_u16.to_be_bytes().to_vec();
    close.extend(b"\0\0\0\0\0"); // no text, caused by no method
    send(&mut stream, CLOSE, &close).await?;
    expect(&mut stream, CLOSE_OK).await
}

async fn send(stream: &mut TcpStream, method: (u16, u16), arguments: &[u8]) -> io::Result<()> {
    let mut frame = vec![METHOD_FRAME, 0, 0];
    frame.extend((arguments.len() as u32 + 4).to_be_bytes());
    frame.extend(method.0.to_be_bytes());
    frame.extend(method.1.to_be_bytes());
    frame.extend(arguments);
    frame.push(FRAME_END);
    stream.write_all(&frame).await
}

async fn expect(stream: &mut TcpStream, wanted: (u16, u16)) -> io::Result<()> {
    let frame_type = stream.read_u8().await?;
    let _channel = stream.read_u16().await?;
    let length = stream.read_u32().await?;
    if frame_type != METHOD_FRAME || !(4..=FRAME_BYTES_MAX).contains(&length) {
        return Err(io::Error::new(ErrorKind::InvalidData, "not a method frame"));
    }
    let mut payload = vec![0; length as usize + 1];
    stream.read_exact(&mut payload).await?;
    let method = (
        u16::from_be_bytes([payload[0], payload[1]]),
        u16::from_be_bytes([payload[2], payload[3]]),
    );
    if method != wanted || payload.last() != Some(&FRAME_END) {
        let problem = format!("expected the method {wanted:?}, got {method:?}");
        return Err(io::Error::new(ErrorKind::InvalidData, problem));
    }
    Ok(())
}
