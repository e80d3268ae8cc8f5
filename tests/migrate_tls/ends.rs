//! The two ends of a move: a destination that waits, and a source with a state that
//! stands for any.

use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_xen::vmm::migrate::address::MoveAddress;
use kvm_xen::vmm::migrate::door::{Door, Limits};
use kvm_xen::vmm::migrate::handover::HandoverError;
use kvm_xen::vmm::migrate::handover::network::{self, Asker, Session};
use kvm_xen::vmm::migrate::link::TlsLink;
use kvm_xen::vmm::migrate::receive::read;
use kvm_xen::vmm::migrate::tls::{Tls, explain};

use super::certs::{Authority, Fault};

pub const SESSION: Session = *b"a guest of tests";
pub const LIMITS: Limits = Limits {
    stranger: Duration::from_secs(4),
    silence: Duration::from_secs(2),
    asked: Duration::from_secs(3),
};
pub const SOON: Duration = Duration::from_secs(2);

pub fn state() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guest-v2.state");
    fs::read(path).expect("a fixture")
}

/// One line that says something.
pub fn one_line(text: &str) -> String {
    assert!(!text.is_empty() && !text.contains('\n') && text.len() < 600, "{text:?}");
    text.to_owned()
}

/// A destination, and whether it came to have the guest.
pub struct Destination {
    pub address: SocketAddr,
    pub thread: JoinHandle<Result<(), String>>,
}

pub fn destination(tls: &Tls) -> Destination {
    destination_at("127.0.0.1:0", tls)
}

pub fn destination_at(at: &str, tls: &Tls) -> Destination {
    let listener = TcpListener::bind(at).expect("a port");
    let door = Door::listen(listener, tls.clone(), LIMITS).expect("a door");
    let address = door.address();
    let thread = thread::spawn(move || {
        let link = door.guest().map_err(|error| error.to_string())?;
        let took = door.take(link, |link| read(link).map(drop));
        took.map_err(|error| one_line(&error.to_string()))
    });
    Destination { address, thread }
}

/// What a source says of its guest.
#[derive(Debug)]
pub enum Sent {
    /// It runs at the destination.
    There,
    /// It goes on here: why.
    Here(String),
    /// It went on here by order, after so many questions that nobody answered.
    TakenBack,
}

pub fn connect(at: SocketAddr, name: &str, tls: &Tls) -> io::Result<TlsLink> {
    let text = format!("tcp:{name}:{}", at.port());
    let Ok(MoveAddress::Tcp(address)) = text.parse() else { panic!("{text}") };
    TlsLink::connect(&address, tls, SOON)
}

/// All that a source does, with a state that stands for any.
pub fn send(at: SocketAddr, tls: &Tls) -> Sent {
    send_to(at, "127.0.0.1", tls)
}

pub fn send_to(at: SocketAddr, name: &str, tls: &Tls) -> Sent {
    let questions = AtomicU32::new(0);
    let asker = Asker {
        connect: &|| connect(at, name, tls),
        taken_back: &|| questions.fetch_add(1, Ordering::SeqCst) >= 12,
        answer: Duration::from_millis(700),
        pause: Duration::from_millis(40),
    };
    let sent = || -> Result<(), Sent> {
        let here = |error: io::Error| Sent::Here(one_line(&explain(&error)));
        let mut link = connect(at, name, tls).map_err(here)?;
        link.write_within(Some(SOON));
        network::offer(&mut link, SESSION, SOON).map_err(|error| match error {
            HandoverError::Io { error, .. } => here(error),
            other => Sent::Here(one_line(&other.to_string())),
        })?;
        link.write_all(&state()).and_then(|()| link.flush()).map_err(here)?;
        network::hand_over(&mut link, SESSION, SOON, &asker).map_err(|error| match error {
            HandoverError::TakenBack => Sent::TakenBack,
            other => Sent::Here(one_line(&other.to_string())),
        })
    };
    sent().err().unwrap_or(Sent::There)
}

pub fn good(authority: &Authority) -> Tls {
    authority.unchecked(Some(&authority.identity(Fault::None)))
}
