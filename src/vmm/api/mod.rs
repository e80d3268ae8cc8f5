//! The control socket: HTTP and JSON on a Unix socket, for `curl --unix-socket`.
//!
//! One thread accepts, one for each client answers, at most [`MOST_CLIENTS`] at
//! a time. Who may open the socket may do everything: it is its owner's alone.

pub mod http;
pub mod prometheus;
pub mod routes;
pub mod socket;

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::control::Control;
use http::{Connection, Limits, NoRequest, Response};
use socket::ApiSocket;

/// Clients at the same time; a further one is told 503.
pub const MOST_CLIENTS: usize = 16;

/// What the threads of one server share.
#[derive(Debug)]
struct Server {
    socket: ApiSocket,
    control: Arc<Control>,
    limits: Limits,
    stopping: AtomicBool,
    clients: Mutex<Clients>,
    /// Told when an answer is out.
    answered: Condvar,
}

/// The clients that are connected, to end their connections with the server.
#[derive(Debug, Default)]
struct Clients {
    next: u64,
    streams: BTreeMap<u64, UnixStream>,
    /// Requests that are being served.
    busy: u32,
}

/// A server that runs until it is dropped; its socket's file is gone then.
#[derive(Debug)]
pub struct ApiServer {
    server: Arc<Server>,
    acceptor: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Serves `control` on `socket`.
    ///
    /// # Errors
    /// Where no thread can be made.
    pub fn start(socket: ApiSocket, control: Arc<Control>, limits: Limits) -> io::Result<Self> {
        // Whoever may ask the guest to suspend itself will see to it that it goes on.
        control.suspender();
        let (stopping, clients) = (AtomicBool::new(false), Mutex::default());
        let answered = Condvar::new();
        let server = Arc::new(Server { socket, control, limits, stopping, clients, answered });
        let accepting = Arc::clone(&server);
        let acceptor =
            thread::Builder::new().name("api".to_owned()).spawn(move || accepting.accept())?;
        Ok(Self { server, acceptor: Some(acceptor) })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.server.stopping.store(true, Ordering::SeqCst);
        self.server.socket.close();
        if let Some(acceptor) = self.acceptor.take() {
            drop(acceptor.join());
        }
        // Whoever saved the machine, which has ended by that, is still to be told.
        let clients = self.server.clients();
        let waited = self.server.answered.wait_timeout_while(
            clients,
            self.server.limits.response,
            |clients| clients.busy > 0,
        );
        let clients = waited.unwrap_or_else(PoisonError::into_inner).0;
        for stream in clients.streams.values() {
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

impl Server {
    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>) {
        loop {
            let accepted = self.socket.listener().accept();
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            match accepted {
                Ok((stream, _)) => self.begin(stream),
                Err(error) => {
                    tracing::debug!(%error, "a client of the control socket is lost");
                    // Out of descriptors, most likely: not again at once.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Gives a client its thread, or tells it that there are too many.
    fn begin(self: &Arc<Self>, stream: UnixStream) {
        let Ok(second) = stream.try_clone() else { return };
        let mut connection = Connection::new(stream, self.limits);
        let id = {
            let mut clients = self.clients();
            if clients.streams.len() >= MOST_CLIENTS {
                drop(clients);
                let busy = Response::error(503, "16 clients are connected; try again");
                drop(connection.send(&busy, false, false));
                return;
            }
            clients.next += 1;
            let id = clients.next;
            clients.streams.insert(id, second);
            id
        };
        let server = Arc::clone(self);
        let thread = thread::Builder::new().name("api-client".to_owned()).spawn(move || {
            server.serve(&mut connection);
            server.clients().streams.remove(&id);
        });
        if let Err(error) = thread {
            tracing::debug!(%error, "no thread for a client of the control socket");
            self.clients().streams.remove(&id);
        }
    }

    fn serve(&self, connection: &mut Connection) {
        loop {
            match connection.receive() {
                Ok(request) => {
                    self.clients().busy += 1;
                    let response = routes::answer(&self.control, &request);
                    let head = request.method == "HEAD";
                    let sent = connection.send(&response, head, request.keep_alive);
                    self.clients().busy -= 1;
                    self.answered.notify_all();
                    if sent.is_err() || !request.keep_alive {
                        return;
                    }
                }
                Err(NoRequest::Refused(response)) => {
                    if connection.send(&response, false, false).is_ok() {
                        connection.linger();
                    }
                    return;
                }
                Err(NoRequest::Gone) => return,
            }
        }
    }
}
