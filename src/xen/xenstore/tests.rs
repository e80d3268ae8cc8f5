//! The store through its ring, as a guest uses it.

mod backends;
mod hostile;
mod model;
mod operations;
mod quotas;
mod state;
mod transactions;

use std::collections::VecDeque;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use xen_abi::xs_wire::{
    XENSTORE_RING_SIZE, XS_DIRECTORY, XS_ERROR, XS_MKDIR, XS_READ, XS_RM, XS_TRANSACTION_END,
    XS_TRANSACTION_START, XS_WATCH, XS_WATCH_EVENT, XS_WRITE, XsdSockmsg,
};
use zerocopy::{FromBytes, IntoBytes};

use super::StorePerm;
use super::ring::{REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD};
use crate::xen::test_platform::{config, domain_with, get, put};
use crate::xen::{Domain, DomainConfig};

pub(super) const PAGE: u64 = 0x5000;

/// A guest's driver of the store.
pub(super) struct Guest {
    pub domain: Arc<Domain>,
    received: Vec<u8>,
    /// Events that came: path and token.
    pub events: VecDeque<(String, String)>,
    next_id: u32,
    /// Bytes that the driver writes at once, at most.
    pub piece: usize,
}

/// A reply: the kind of message and its body.
pub(super) type Reply = Result<Vec<u8>, String>;

pub(super) fn new_domain() -> Arc<Domain> {
    let config = DomainConfig { store_page: Some(GuestAddress(PAGE)), ..config(2) };
    let (domain, _, _) = domain_with(config);
    domain.attach_xenstore("test").unwrap();
    domain
}

pub(super) fn guest() -> Guest {
    Guest::on(new_domain())
}

/// Strings, each with its end.
pub(super) fn joined(strings: &[&str]) -> Vec<u8> {
    strings.iter().flat_map(|text| text.bytes().chain([0])).collect()
}

impl Guest {
    pub(super) fn on(domain: Arc<Domain>) -> Self {
        Self {
            domain,
            received: Vec::new(),
            events: VecDeque::new(),
            next_id: 1,
            piece: usize::MAX,
        }
    }

    pub(super) fn index(&self, offset: usize) -> u32 {
        get(&self.domain, PAGE + offset as u64)
    }

    pub(super) fn set_index(&self, offset: usize, value: u32) {
        put(&self.domain, PAGE + offset as u64, &value);
    }

    /// Puts bytes into the ring, as far as there is room.
    fn put_some(&self, bytes: &[u8]) -> usize {
        let (prod, cons) = (self.index(REQ_PROD), self.index(REQ_CONS));
        let room = XENSTORE_RING_SIZE - prod.wrapping_sub(cons) as usize;
        let len = bytes.len().min(room).min(self.piece);
        for (index, byte) in (0u32..).zip(&bytes[..len]) {
            let at = prod.wrapping_add(index) as usize % XENSTORE_RING_SIZE;
            self.domain.memory().write_obj(*byte, GuestAddress(PAGE + at as u64)).unwrap();
        }
        self.set_index(REQ_PROD, prod.wrapping_add(u32::try_from(len).unwrap()));
        len
    }

    /// Takes what there is of answers.
    pub(super) fn take(&mut self) -> usize {
        let (mut cons, prod) = (self.index(RSP_CONS), self.index(RSP_PROD));
        let len = prod.wrapping_sub(cons) as usize;
        while cons != prod {
            let at = 1024 + cons as usize % XENSTORE_RING_SIZE;
            let byte: u8 = self.domain.memory().read_obj(GuestAddress(PAGE + at as u64)).unwrap();
            self.received.push(byte);
            cons = cons.wrapping_add(1);
        }
        self.set_index(RSP_CONS, cons);
        len
    }

    /// The next whole message.
    pub(super) fn message(&mut self) -> Option<(XsdSockmsg, Vec<u8>)> {
        let (header, rest) = XsdSockmsg::read_from_prefix(&self.received).ok()?;
        let len = header.len as usize;
        let body = rest.get(..len)?.to_vec();
        self.received.drain(..16 + len);
        Some((header, body))
    }

    pub(super) fn kick(&self) {
        self.domain.service_xenstore();
    }

    pub(super) fn send(&mut self, kind: u32, transaction: u32, body: &[u8]) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        let len = u32::try_from(body.len()).unwrap();
        let header = XsdSockmsg { type_: kind, req_id: id, tx_id: transaction, len };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(body);
        let mut rest = bytes.as_slice();
        for _ in 0..20_000 {
            let len = self.put_some(rest);
            rest = &rest[len..];
            self.kick();
            if rest.is_empty() {
                return id;
            }
            self.take();
        }
        panic!("the ring does not move");
    }

    pub(super) fn drain(&mut self) {
        while self.take() > 0 {
            self.kick();
        }
        while let Some((header, body)) = self.message() {
            assert_eq!(header.type_, XS_WATCH_EVENT);
            self.event(&header, &body);
        }
    }

    fn event(&mut self, header: &XsdSockmsg, body: &[u8]) {
        assert_eq!((header.req_id, header.tx_id), (0, 0));
        let mut parts = body.strip_suffix(&[0]).unwrap().split(|byte| *byte == 0);
        let mut part = || String::from_utf8(parts.next().unwrap().to_vec()).unwrap();
        self.events.push_back((part(), part()));
        assert!(parts.next().is_none());
    }

    pub(super) fn request(&mut self, kind: u32, transaction: u32, body: &[u8]) -> Reply {
        let id = self.send(kind, transaction, body);
        for _ in 0..1000 {
            while let Some((header, body)) = self.message() {
                if header.type_ == XS_WATCH_EVENT {
                    self.event(&header, &body);
                    continue;
                }
                assert_eq!((header.req_id, header.tx_id), (id, transaction));
                if header.type_ == XS_ERROR {
                    let text = body.strip_suffix(&[0]).unwrap();
                    return Err(String::from_utf8(text.to_vec()).unwrap());
                }
                assert_eq!(header.type_, kind);
                return Ok(body);
            }
            self.take();
            self.kick();
        }
        panic!("no answer to {kind}");
    }

    /// A request of strings outside transactions.
    pub(super) fn ask(&mut self, kind: u32, strings: &[&str]) -> Reply {
        self.request(kind, 0, &joined(strings))
    }

    pub(super) fn read(&mut self, path: &str) -> Result<String, String> {
        self.ask(XS_READ, &[path]).map(|body| String::from_utf8(body).unwrap())
    }

    pub(super) fn write_in(&mut self, transaction: u32, path: &str, value: &str) -> Reply {
        let mut body = joined(&[path]);
        body.extend_from_slice(value.as_bytes());
        self.request(XS_WRITE, transaction, &body)
    }

    pub(super) fn write(&mut self, path: &str, value: &str) -> Reply {
        self.write_in(0, path, value)
    }

    pub(super) fn list(&mut self, path: &str) -> Result<Vec<String>, String> {
        let body = self.ask(XS_DIRECTORY, &[path])?;
        let names = body.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect())
    }

    pub(super) fn remove(&mut self, path: &str) -> Reply {
        self.ask(XS_RM, &[path])
    }

    pub(super) fn mkdir(&mut self, path: &str) -> Reply {
        self.ask(XS_MKDIR, &[path])
    }

    pub(super) fn watch(&mut self, path: &str, token: &str) -> Reply {
        self.ask(XS_WATCH, &[path, token])
    }

    pub(super) fn start(&mut self) -> u32 {
        let body = self.ask(XS_TRANSACTION_START, &[""]).unwrap();
        String::from_utf8(body[..body.len() - 1].to_vec()).unwrap().parse().unwrap()
    }

    pub(super) fn end(&mut self, transaction: u32, how: &str) -> Reply {
        self.request(XS_TRANSACTION_END, transaction, &joined(&[how]))
    }

    pub(super) fn take_events(&mut self) -> Vec<(String, String)> {
        self.kick();
        self.drain();
        self.events.drain(..).collect()
    }
}

/// The answer of a request that did what was asked.
pub(super) fn ok() -> Reply {
    Ok(b"OK\0".to_vec())
}

pub(super) fn error<T>(name: &str) -> Result<T, String> {
    Err(name.to_owned())
}

pub(super) fn event(path: &str, token: &str) -> (String, String) {
    (path.to_owned(), token.to_owned())
}
