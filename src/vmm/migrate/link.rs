//! A connection between source and destination: a Unix socket, or TLS on TCP.
//!
//! Every use of it ends in time: by the limit of one read or write, and by a
//! deadline for all of them where one is set.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConnection, ServerConnection, StreamOwned};

use super::address::TcpAddress;
use super::handover::Channel;
use super::tls::Tls;

/// A TCP connection whose reads and writes end in time.
#[derive(Debug)]
pub struct Paced {
    stream: TcpStream,
    read_within: Cell<Option<Duration>>,
    write_within: Cell<Option<Duration>>,
    until: Cell<Option<Instant>>,
}

impl Paced {
    fn new(stream: TcpStream) -> io::Result<Self> {
        // Messages are short and wait for answers.
        stream.set_nodelay(true)?;
        let (read_within, write_within) = (Cell::default(), Cell::default());
        Ok(Self { stream, read_within, write_within, until: Cell::default() })
    }

    /// What one operation may take.
    fn limit(&self, within: Option<Duration>) -> io::Result<Option<Duration>> {
        let Some(until) = self.until.get() else { return Ok(within) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(within.map_or(left, |within| within.min(left))))
    }
}

impl Read for Paced {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.limit(self.read_within.get())?)?;
        self.stream.read(to)
    }
}

impl Write for Paced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.limit(self.write_within.get())?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// TLS on TCP, its handshake behind it.
pub enum TlsLink {
    /// At a source.
    Client(Box<StreamOwned<ClientConnection, Paced>>),
    /// At a destination.
    Server(Box<StreamOwned<ServerConnection, Paced>>),
}

/// How long all addresses of a name together may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

impl TlsLink {
    /// Connects to a destination, and both show who they are.
    ///
    /// # Errors
    /// The host's, or an [`io::Error`] around a [`rustls::Error`]:
    /// [`explain`](super::tls::explain) reads both.
    pub fn connect(to: &TcpAddress, tls: &Tls, within: Duration) -> io::Result<Self> {
        let stream = connect_any(to.host_and_port().to_socket_addrs()?, CONNECT)?;
        let paced = Paced::new(stream)?;
        paced.until.set(Instant::now().checked_add(within));
        let client = ClientConnection::new(Arc::clone(&tls.client), to.name().clone())
            .map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(client, paced);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        stream.sock.until.set(None);
        Ok(Self::Client(Box::new(stream)))
    }

    /// The same at a destination, to which `stream` was made.
    ///
    /// # Errors
    /// As [`TlsLink::connect`].
    pub fn accept(stream: TcpStream, tls: &Tls, until: Instant) -> io::Result<Self> {
        let paced = Paced::new(stream)?;
        paced.until.set(Some(until));
        let server = ServerConnection::new(Arc::clone(&tls.server)).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(server, paced);
        while stream.conn.is_handshaking() {
            if let Err(error) = stream.conn.complete_io(&mut stream.sock) {
                // The alert that says why. It may be lost, as any.
                drop(stream.conn.complete_io(&mut stream.sock));
                return Err(error);
            }
        }
        Ok(Self::Server(Box::new(stream)))
    }

    fn paced(&self) -> &Paced {
        match self {
            Self::Client(stream) => &stream.sock,
            Self::Server(stream) => &stream.sock,
        }
    }

    /// All uses together have to end by then.
    pub fn until(&self, deadline: Option<Instant>) {
        self.paced().until.set(deadline);
    }

    /// How long a write may take that makes no progress.
    pub fn write_within(&self, within: Option<Duration>) {
        self.paced().write_within.set(within);
    }

    /// To end it from another thread, by [`Shutdown::Both`].
    ///
    /// # Errors
    /// The host's.
    pub fn second(&self) -> io::Result<TcpStream> {
        self.paced().stream.try_clone()
    }

    /// Says that nothing more comes, in a way that nobody between can.
    pub fn close(mut self) {
        let closed = match &mut self {
            Self::Client(stream) => {
                stream.conn.send_close_notify();
                stream.flush()
            }
            Self::Server(stream) => {
                stream.conn.send_close_notify();
                stream.flush()
            }
        };
        if let Err(error) = closed.and_then(|()| self.paced().stream.shutdown(Shutdown::Write)) {
            tracing::debug!(%error, "the other side does not hear that this one is through");
        }
    }
}

/// The first address that answers.
fn connect_any(
    addresses: impl Iterator<Item = SocketAddr>,
    within: Duration,
) -> io::Result<TcpStream> {
    let end = Instant::now() + within;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for address in addresses {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Read for TlsLink {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let read = match self {
            Self::Client(stream) => stream.read(to),
            Self::Server(stream) => stream.read(to),
        };
        // An end without TLS's own mark. Nobody here takes an end for a good one: a state
        // and a handover have their own last words.
        read.or_else(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Ok(0),
            _ => Err(error),
        })
    }
}

impl Write for TlsLink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Client(stream) => stream.write(bytes),
            Self::Server(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Client(stream) => stream.flush(),
            Self::Server(stream) => stream.flush(),
        }
    }
}

impl Channel for TlsLink {
    fn read_within(&self, within: Option<Duration>) -> io::Result<()> {
        self.paced().read_within.set(within);
        Ok(())
    }
}

/// Either of them.
pub enum Link {
    /// Between two processes of one host.
    Unix(UnixStream),
    /// Between two hosts.
    Tls(TlsLink),
}

impl Link {
    /// How long a write may take that makes no progress.
    ///
    /// # Errors
    /// The host's.
    pub fn write_within(&self, within: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_write_timeout(Some(within)),
            Self::Tls(link) => {
                link.write_within(Some(within));
                Ok(())
            }
        }
    }
}

impl Read for Link {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(to),
            Self::Tls(link) => link.read(to),
        }
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tls(link) => link.write(bytes),
        };
        written.map_err(stalled)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = match self {
            Self::Unix(stream) => stream.flush(),
            Self::Tls(link) => link.flush(),
        };
        flushed.map_err(stalled)
    }
}

/// The limit of a write, which the socket tells as if it were asked to try again.
fn stalled(error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::WouldBlock {
        return error;
    }
    let what = "the other side takes nothing any more: see whether it and the network are up";
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl Channel for Link {
    fn read_within(&self, within: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.read_within(within),
            Self::Tls(link) => link.read_within(within),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_nothing_is_told_in_words() {
        let (here, _there) = UnixStream::pair().unwrap();
        let mut link = Link::Unix(here);
        link.write_within(Duration::from_millis(20)).unwrap();
        let error = loop {
            if let Err(error) = link.write(&[0; 1 << 16]) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("takes nothing any more"), "{error}");
    }
}
