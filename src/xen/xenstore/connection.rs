//! What the store keeps of its guest: bytes under way, watches, transactions.

use std::collections::{BTreeMap, HashSet, VecDeque};

use xen_abi::errno::Errno;
use xen_abi::xs_wire::{XENSTORE_PAYLOAD_MAX, XS_ERROR, XS_WATCH_EVENT, XsdSockmsg};
use zerocopy::{FromBytes, IntoBytes};

use super::node::{Caller, READ};
use super::path;
use super::transaction::Transaction;
use super::tree::{Change, Tree};

/// Watches that an unprivileged domain may have.
pub(super) const MAX_WATCHES: usize = 128;
/// Transactions that an unprivileged domain may have under way.
pub(super) const MAX_TRANSACTIONS: usize = 10;
/// Answers that wait to be read; requests are left alone while there are more.
pub(super) const MAX_WAITING: usize = 64 << 10;
/// Events that wait on top of that. What a guest that reads none of so many
/// misses, it has to look up.
const MAX_EVENTS: usize = 1 << 20;
/// Bytes of a header.
pub(super) const HEADER: usize = size_of::<XsdSockmsg>();

/// A watch of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Watch {
    pub path: String,
    pub token: Vec<u8>,
    /// It was named relative to the guest's home, and its events are too.
    pub relative: bool,
}

impl Watch {
    /// Its event's body if `change` concerns it.
    fn event(&self, change: &Change, caller: &Caller) -> Option<Vec<u8>> {
        let hit = if change.exact {
            change.path == self.path
        } else {
            path::is_within(&change.path, &self.path)
        };
        hit.then(|| self.body(&change.path, caller))
    }

    pub(super) fn body(&self, path: &str, caller: &Caller) -> Vec<u8> {
        let below = path.strip_prefix(caller.home.as_str()).and_then(|rest| rest.strip_prefix('/'));
        let name = below.filter(|_| self.relative).unwrap_or(path);
        let mut body = name.as_bytes().to_vec();
        body.push(0);
        body.extend_from_slice(&self.token);
        body.push(0);
        body
    }
}

/// A message from the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub kind: u32,
    pub request: u32,
    pub transaction: u32,
    pub body: Vec<u8>,
}

/// The guest's connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub caller: Caller,
    /// What came of a message so far.
    pub input: Vec<u8>,
    /// Messages for the guest, the first maybe without its beginning.
    pub output: VecDeque<Vec<u8>>,
    /// The events among `output` of which nothing is in the ring: one that is to
    /// be told again is told once.
    pub queued: HashSet<Vec<u8>>,
    /// Bytes in `output`.
    pub waiting: usize,
    /// Bytes of the first of `output` that are in the ring.
    pub sent: usize,
    pub watches: Vec<Watch>,
    pub transactions: BTreeMap<u32, Transaction>,
    pub last_transaction: u32,
    /// It broke the protocol: it is heard again after it reconnects.
    pub ignored: bool,
}

/// The guest announced a body longer than any may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Connection {
    pub(super) fn new(caller: Caller) -> Self {
        Self {
            caller,
            input: Vec::new(),
            output: VecDeque::new(),
            queued: HashSet::new(),
            waiting: 0,
            sent: 0,
            watches: Vec::new(),
            transactions: BTreeMap::new(),
            last_transaction: 0,
            ignored: false,
        }
    }

    /// Forgets watches, transactions and all bytes.
    pub(super) fn reset(&mut self) {
        let last_transaction = self.last_transaction;
        *self = Self { last_transaction, ..Self::new(self.caller.clone()) };
    }

    /// Hears nothing any more.
    pub(super) fn ignore(&mut self) {
        self.reset();
        self.ignored = true;
    }

    /// The next whole message of what came; the rest stays.
    pub(super) fn next_message(&mut self) -> Result<Option<Message>, TooLong> {
        let Ok((header, rest)) = XsdSockmsg::read_from_prefix(&self.input) else { return Ok(None) };
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        if len > XENSTORE_PAYLOAD_MAX {
            return Err(TooLong);
        }
        let Some(body) = rest.get(..len) else { return Ok(None) };
        let message = Message {
            kind: header.type_,
            request: header.req_id,
            transaction: header.tx_id,
            body: body.to_vec(),
        };
        self.input.drain(..HEADER + len);
        Ok(Some(message))
    }

    /// Bytes that are still missing of the message under way: no more are taken
    /// from the ring.
    pub(super) fn wanted(&self) -> usize {
        match XsdSockmsg::read_from_prefix(&self.input) {
            Err(_) => HEADER - self.input.len(),
            Ok((header, rest)) => {
                let len = usize::try_from(header.len).unwrap_or(usize::MAX);
                len.min(XENSTORE_PAYLOAD_MAX).saturating_sub(rest.len())
            }
        }
    }

    pub(super) fn reply(&mut self, to: &Message, answer: Result<Vec<u8>, Errno>) {
        let too_big = |body: &Vec<u8>| body.len() > XENSTORE_PAYLOAD_MAX;
        let (kind, body) = match answer {
            Ok(body) if too_big(&body) => (XS_ERROR, error_text(Errno::E2BIG)),
            Ok(body) => (to.kind, body),
            Err(errno) => (XS_ERROR, error_text(errno)),
        };
        self.push(kind, to.request, to.transaction, &body);
    }

    pub(super) fn event(&mut self, body: &[u8]) {
        if self.ignored || self.waiting > MAX_EVENTS {
            return;
        }
        let message = message(XS_WATCH_EVENT, 0, 0, body);
        if self.queued.insert(message.clone()) {
            self.waiting += message.len();
            self.output.push_back(message);
        }
    }

    fn push(&mut self, kind: u32, request: u32, transaction: u32, body: &[u8]) {
        let message = message(kind, request, transaction, body);
        self.waiting += message.len();
        self.output.push_back(message);
    }

    /// Tells the guest's watches of what changed, where it may know.
    pub(super) fn fire(&mut self, tree: &Tree, changes: &[Change]) {
        for change in changes {
            let events: Vec<_> =
                self.watches.iter().filter_map(|watch| watch.event(change, &self.caller)).collect();
            if !events.is_empty() && self.may_know(tree, change) {
                events.iter().for_each(|body| self.event(body));
            }
        }
    }

    /// Whether the guest may read the node, or could, or may list what is above.
    fn may_know(&self, tree: &Tree, change: &Change) -> bool {
        let readable = |path| tree.get(path).is_some_and(|node| self.caller.may(READ, &node.perms));
        readable(&change.path)
            || change.before.as_ref().is_some_and(|perms| self.caller.may(READ, perms))
            || path::parent(&change.path).is_some_and(readable)
    }
}

fn message(kind: u32, request: u32, transaction: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap_or(0);
    let header = XsdSockmsg { type_: kind, req_id: request, tx_id: transaction, len };
    let mut message = header.as_bytes().to_vec();
    message.extend_from_slice(body);
    message
}

/// The name of an error; one that the protocol has not is `EINVAL`.
fn error_text(errno: Errno) -> Vec<u8> {
    let known = matches!(
        errno,
        Errno::EINVAL
            | Errno::EACCES
            | Errno::EEXIST
            | Errno::EISDIR
            | Errno::ENOENT
            | Errno::ENOMEM
            | Errno::ENOSPC
            | Errno::EIO
            | Errno::ENOTEMPTY
            | Errno::ENOSYS
            | Errno::EROFS
            | Errno::EBUSY
            | Errno::EAGAIN
            | Errno::EISCONN
            | Errno::E2BIG
            | Errno::EPERM
    );
    let name = errno.name().filter(|_| known).unwrap_or("EINVAL");
    let mut text = name.as_bytes().to_vec();
    text.push(0);
    text
}
