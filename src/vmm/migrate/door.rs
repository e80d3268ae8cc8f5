//! Where guests knock from other hosts: connections that have yet to show who they
//! are, few at a time and for a short time, until one that may brings a guest.

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::address::TcpAddress;
use super::handover::Channel;
use super::handover::network::Verdict;
use super::link::TlsLink;
use super::tls::{Tls, explain};

/// Connections that have not said yet what they want; the oldest makes place for a
/// further one.
pub const MOST_STRANGERS: usize = 16;
/// How long one may take to show who it is, and to say what it wants.
const WITHIN: Duration = Duration::from_secs(10);

/// What the threads share.
struct Shared {
    tls: Tls,
    verdict: Verdict,
    closed: AtomicBool,
    strangers: Mutex<Strangers>,
    came: SyncSender<TlsLink>,
}

#[derive(Default)]
struct Strangers {
    next: u64,
    streams: BTreeMap<u64, TcpStream>,
}

/// A port at which one guest is taken.
pub struct Door {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// The listening socket once more, to end its `accept`.
    end: TcpStream,
    acceptor: Option<JoinHandle<()>>,
    came: Receiver<TlsLink>,
}

impl Door {
    /// Listens at `at`, an address of this host.
    ///
    /// # Errors
    /// The host's.
    pub fn open(at: &TcpAddress, tls: Tls) -> io::Result<Self> {
        Self::listen(TcpListener::bind(at.host_and_port())?, tls)
    }

    /// Takes what comes to `listener`.
    ///
    /// # Errors
    /// The host's.
    pub fn listen(listener: TcpListener, tls: Tls) -> io::Result<Self> {
        let address = listener.local_addr()?;
        // Any socket may be shut down, whatever it is.
        let end = TcpStream::from(OwnedFd::from(listener.try_clone()?));
        let (sender, came) = sync_channel(1);
        let (verdict, closed) = (Verdict::default(), AtomicBool::new(false));
        let strangers = Mutex::default();
        let shared = Arc::new(Shared { tls, verdict, closed, strangers, came: sender });
        let accepting = Arc::clone(&shared);
        let acceptor = thread::Builder::new()
            .name("door".to_owned())
            .spawn(move || accepting.accept(&listener))?;
        Ok(Self { shared, address, end, acceptor: Some(acceptor), came })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What becomes of the guest.
    pub fn verdict(&self) -> &Verdict {
        &self.shared.verdict
    }

    /// Waits for the one connection on which a guest comes.
    ///
    /// # Errors
    /// Where nobody listens any more.
    pub fn guest(&self) -> io::Result<TlsLink> {
        self.came.recv().map_err(|_| io::Error::other("the thread that accepts has ended"))
    }

    /// The guest runs here: answers its source until that knows.
    pub fn stay_until_told(self, mut link: TlsLink) {
        let work = move || {
            self.verdict().hear_seen(&mut link, WITHIN);
            link.close();
            self.verdict().wait_told(None);
        };
        if let Err(error) = thread::Builder::new().name("handover".to_owned()).spawn(work) {
            tracing::warn!(%error, "the source may not learn that its guest runs here");
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        drop(self.end.shutdown(Shutdown::Both));
        if let Some(acceptor) = self.acceptor.take() {
            drop(acceptor.join());
        }
        for stream in self.shared.strangers().streams.values() {
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

impl Shared {
    fn strangers(&self) -> MutexGuard<'_, Strangers> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let accepted = listener.accept();
            if self.closed.load(Ordering::SeqCst) {
                return;
            }
            match accepted {
                Ok((stream, peer)) => self.begin(stream, peer),
                Err(error) => {
                    tracing::debug!(%error, "a connection is lost");
                    // Out of descriptors, most likely: not again at once.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Gives a connection a thread, and a place among those that may be anybody's.
    fn begin(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let Ok(second) = stream.try_clone() else { return };
        let id = {
            let mut strangers = self.strangers();
            if strangers.streams.len() >= MOST_STRANGERS
                && let Some((_, oldest)) = strangers.streams.pop_first()
            {
                drop(oldest.shutdown(Shutdown::Both));
            }
            strangers.next += 1;
            let id = strangers.next;
            strangers.streams.insert(id, second);
            id
        };
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name("stranger".to_owned()).spawn(move || {
            shared.meet(stream, peer, id);
            shared.strangers().streams.remove(&id);
        });
        if let Err(error) = thread {
            tracing::debug!(%error, "no thread for a connection");
            self.strangers().streams.remove(&id);
        }
    }

    fn meet(&self, stream: TcpStream, peer: SocketAddr, id: u64) {
        let until = Instant::now() + WITHIN;
        let mut link = match TlsLink::accept(stream, &self.tls, until) {
            Ok(link) => link,
            Err(error) => {
                tracing::warn!(%peer, "a connection is refused: {}", explain(&error));
                return;
            }
        };
        // No stranger any more: nobody's coming ends it.
        self.strangers().streams.remove(&id);
        let Ok(second) = link.second() else { return };
        let cut = move || drop(second.shutdown(Shutdown::Both));
        match self.verdict.hear(&mut link, cut) {
            Ok(true) => {
                link.until(None);
                drop(link.read_within(None));
                drop(self.came.send(link));
            }
            Ok(false) => link.close(),
            Err(error) => {
                tracing::warn!(%peer, "a connection is refused: {error}");
                link.close();
            }
        }
    }
}
