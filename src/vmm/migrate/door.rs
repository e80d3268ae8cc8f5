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

use super::MigrateError;
use super::address::TcpAddress;
use super::handover::network::Verdict;
use super::handover::{Channel, refuse};
use super::link::TlsLink;
use super::receive::not_come;
use super::tls::{Tls, explain};
use crate::state::StateError;
use crate::vmm::config::MachineError;

/// Connections that have not said yet what they want; the oldest makes place for a
/// further one.
pub const MOST_STRANGERS: usize = 16;

/// How long others may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A connection, to show who it is and to say what it wants.
    pub stranger: Duration,
    /// The source of a guest that comes: between two pieces of it.
    pub silence: Duration,
    /// To ask for a guest that never came to run here.
    pub asked: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            stranger: Duration::from_secs(10),
            silence: Duration::from_secs(60),
            asked: Duration::from_secs(120),
        }
    }
}

/// What the threads share.
struct Shared {
    tls: Tls,
    limits: Limits,
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
        Self::listen(TcpListener::bind(at.host_and_port())?, tls, Limits::default())
    }

    /// Takes what comes to `listener`.
    ///
    /// # Errors
    /// The host's.
    pub fn listen(listener: TcpListener, tls: Tls, limits: Limits) -> io::Result<Self> {
        let address = listener.local_addr()?;
        // Any socket may be shut down, whatever it is.
        let end = TcpStream::from(OwnedFd::from(listener.try_clone()?));
        let (sender, came) = sync_channel(1);
        let (verdict, closed) = (Verdict::default(), AtomicBool::new(false));
        let strangers = Mutex::default();
        let shared = Arc::new(Shared { tls, limits, verdict, closed, strangers, came: sender });
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

    /// Waits for the one connection on which a guest comes.
    ///
    /// # Errors
    /// Where nobody listens any more.
    pub fn guest(&self) -> io::Result<TlsLink> {
        self.came.recv().map_err(|_| io::Error::other("the thread that accepts has ended"))
    }

    /// Takes the guest that comes on `link`, as `make` does. Back without an error when
    /// it is the caller's to run.
    ///
    /// # Errors
    /// [`MigrateError`]: the guest is the source's.
    pub fn take<T>(
        self,
        mut link: TlsLink,
        make: impl FnOnce(&mut TlsLink) -> Result<T, MachineError>,
    ) -> Result<T, MigrateError> {
        let Limits { silence, asked, .. } = self.shared.limits;
        let what = "setting a time limit";
        let limited = link.read_within(Some(silence));
        let made = limited.map_err(|error| StateError::Io { what, error }.into());
        match made.and_then(|()| make(&mut link)) {
            Ok(made) => match self.verdict().take_over(&mut link, silence) {
                Ok(()) => {
                    self.stay_until_told(link);
                    Ok(made)
                }
                Err(error) => {
                    drop(made);
                    tracing::warn!("the guest does not run here: {error}");
                    self.verdict().wait_told(Some(asked));
                    Err(error.into())
                }
            },
            Err(error) => {
                self.verdict().give_up();
                refuse(&mut link, &error.to_string());
                link.close();
                Err(not_come(error))
            }
        }
    }

    fn verdict(&self) -> &Verdict {
        &self.shared.verdict
    }

    /// The guest runs here: answers its source until that knows.
    fn stay_until_told(self, mut link: TlsLink) {
        let work = move || {
            self.verdict().hear_seen(&mut link, self.shared.limits.stranger);
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
        let until = Instant::now() + self.limits.stranger;
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
