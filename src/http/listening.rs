//! The listening socket: one of our own, or one that a supervisor passes on and keeps (systemd's socket activation).

use std::io;
use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;
use socket2::{SockFilter, SockRef};

/// A listening socket, and whose it is: that decides how it is given up.
#[derive(Debug)]
pub enum Listening {
    /// Ours alone: with the process it is gone, and what waits in its backlog is reset.
    Own(TcpListener),
    /// Somebody else holds it too: what waits in its backlog is accepted by the next process.
    Passed(TcpListener),
}

impl Listening {
    /// Takes an address.
    ///
    /// # Errors
    /// It is in use, or not ours.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        TcpListener::bind(address).map(Self::Own)
    }

    /// The first socket that was passed to this process, by the protocol of `sd_listen_fds`: `LISTEN_FDS` sockets from
    /// descriptor 3 on, if `LISTEN_PID` is this process. The variables are for one process and not for its children:
    /// with another `LISTEN_PID`, or none, nothing was passed.
    ///
    /// # Errors
    /// What was passed cannot be used; the text says what to do.
    pub fn passed() -> Result<Option<Self>, String> {
        let variable = |name| std::env::var(name).ok();
        if variable("LISTEN_PID").and_then(|pid| pid.parse().ok()) != Some(std::process::id()) {
            return Ok(None);
        }
        let Some(count) = variable("LISTEN_FDS") else {
            return Ok(None);
        };
        match count.parse::<u8>() {
            Ok(0) => return Ok(None),
            Ok(1) => {}
            _ => {
                return Err(format!(
                    "LISTEN_FDS is {count:?}, but exactly 1 socket can be passed; give each address a process of its own"
                ));
            }
        }
        let unusable = |problem: String| {
            format!(
                "the socket that was passed (LISTEN_FDS) cannot be used: {problem}; it must be a listening TCP stream \
                 socket, such as systemd's ListenStream=127.0.0.1:8080 with Accept=no"
            )
        };
        let listener = ListenFd::from_env()
            .take_tcp_listener(0)
            .map_err(|error| unusable(error.to_string()))?
            .ok_or_else(|| unusable("nothing is there".into()))?;
        match SockRef::from(&listener).is_listener() {
            Ok(true) => Ok(Some(Self::Passed(listener))),
            Ok(false) => Err(unusable("it does not listen".into())),
            Err(error) => Err(unusable(error.to_string())),
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// It is no socket of the internet any more.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Own(listener) | Self::Passed(listener) => listener.local_addr(),
        }
    }

    /// The listener, and, if it goes with us, what closes its door.
    pub(super) fn split(self) -> io::Result<(TcpListener, Option<Closing>)> {
        Ok(match self {
            Self::Passed(listener) => (listener, None),
            Self::Own(listener) => {
                let closing = Closing(listener.try_clone()?);
                (listener, Some(closing))
            }
        })
    }
}

/// Closes the door of a listening socket of our own, before the socket is closed.
#[derive(Debug)]
pub(super) struct Closing(TcpListener);

/// In the language of the kernel's packet filters: a TCP segment with SYN and without ACK is dropped, any other passes.
/// Sockets that are accepted inherit it, and are sent no such segment.
const DROP_NEW: [SockFilter; 5] = [
    // Load the byte of the flags, keep SYN and ACK, and compare with SYN.
    SockFilter::new(0x30, 0, 0, 13),
    SockFilter::new(0x54, 0, 0, 0x12),
    SockFilter::new(0x15, 0, 1, 0x02),
    SockFilter::new(0x06, 0, 0, 0),
    SockFilter::new(0x06, 0, 0, u32::MAX),
];

impl Closing {
    /// Lets nobody new in, and resets nobody: who asks for a connection hears nothing from now on, and asks again a
    /// second later, when the next process may listen; connections that are on their way come through.
    ///
    /// # Errors
    /// The kernel has no such filters, or does not let us.
    pub(super) fn keep_out_new(&self) -> io::Result<()> {
        SockRef::from(&self.0).attach_filter(&DROP_NEW)
    }
}
