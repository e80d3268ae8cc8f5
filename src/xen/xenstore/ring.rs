//! The page that carries the messages (`io/xs_wire.h`).
//!
//! All four indices lie in guest memory, ours too. Each is read once for each
//! piece that is moved; two that are further apart than the ring is long end the
//! connection, as in xenstored.

use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress};
use xen_abi::xs_wire::{
    XENSTORE_CONNECTED, XENSTORE_ERROR_NONE, XENSTORE_RECONNECT, XENSTORE_RING_SIZE,
    XENSTORE_SERVER_FEATURE_ERROR, XENSTORE_SERVER_FEATURE_RECONNECTION, XenstoreDomainInterface,
};

use crate::pages::GuestRam;

const REQ: usize = std::mem::offset_of!(XenstoreDomainInterface, req);
const RSP: usize = std::mem::offset_of!(XenstoreDomainInterface, rsp);
pub(super) const REQ_CONS: usize = std::mem::offset_of!(XenstoreDomainInterface, req_cons);
pub(super) const REQ_PROD: usize = std::mem::offset_of!(XenstoreDomainInterface, req_prod);
pub(super) const RSP_CONS: usize = std::mem::offset_of!(XenstoreDomainInterface, rsp_cons);
pub(super) const RSP_PROD: usize = std::mem::offset_of!(XenstoreDomainInterface, rsp_prod);
pub(super) const FEATURES: usize = std::mem::offset_of!(XenstoreDomainInterface, server_features);
pub(super) const CONNECTION: usize = std::mem::offset_of!(XenstoreDomainInterface, connection);
pub(super) const ERROR: usize = std::mem::offset_of!(XenstoreDomainInterface, error);

/// The indices are no ring's, or the page has no memory behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// The ring in the page at an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring(pub GuestAddress);

impl Ring {
    fn at(self, offset: usize) -> GuestAddress {
        GuestAddress(self.0.0.wrapping_add(offset as u64))
    }

    fn load(self, memory: &GuestRam, offset: usize) -> Result<u32, Broken> {
        memory.load(self.at(offset), Ordering::Acquire).map_err(|_| Broken)
    }

    fn store(self, memory: &GuestRam, offset: usize, value: u32) -> Result<(), Broken> {
        memory.store(value, self.at(offset), Ordering::Release).map_err(|_| Broken)
    }

    /// An empty ring of a server that can reconnect and tells of errors.
    pub(super) fn reset(self, memory: &GuestRam) -> Result<(), Broken> {
        for offset in [REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD] {
            self.store(memory, offset, 0)?;
        }
        let features = XENSTORE_SERVER_FEATURE_RECONNECTION | XENSTORE_SERVER_FEATURE_ERROR;
        self.store(memory, FEATURES, features)?;
        self.store(memory, ERROR, XENSTORE_ERROR_NONE)?;
        // Last: the guest waits for this.
        self.store(memory, CONNECTION, XENSTORE_CONNECTED)
    }

    /// Whether the guest asks for a new connection.
    pub(super) fn wants_reconnect(self, memory: &GuestRam) -> bool {
        self.load(memory, CONNECTION) == Ok(XENSTORE_RECONNECT)
    }

    /// Tells the guest why it is not heard any more.
    pub(super) fn set_error(self, memory: &GuestRam, error: u32) {
        // Without memory there is nobody to tell.
        let _ = self.store(memory, ERROR, error);
    }

    /// Takes at most `most` bytes of the guest's requests.
    pub(super) fn read(
        self,
        memory: &GuestRam,
        most: usize,
        to: &mut Vec<u8>,
    ) -> Result<usize, Broken> {
        let cons = self.load(memory, REQ_CONS)?;
        // Acquire: partner of the guest's barrier between its bytes and `req_prod`.
        let prod = self.load(memory, REQ_PROD)?;
        let len = held(prod, cons)?.min(most);
        let mut bytes = [0; XENSTORE_RING_SIZE];
        let at = cons as usize % XENSTORE_RING_SIZE;
        let (head, tail) = bytes[..len].split_at_mut(len.min(XENSTORE_RING_SIZE - at));
        memory.read_slice(head, self.at(REQ + at)).map_err(|_| Broken)?;
        memory.read_slice(tail, self.at(REQ)).map_err(|_| Broken)?;
        to.extend_from_slice(&bytes[..len]);
        self.store(memory, REQ_CONS, advance(cons, len))?;
        // The guest tells us of new bytes only if it sees the old ones consumed:
        // the next look at `req_prod` comes after this.
        fence(Ordering::SeqCst);
        Ok(len)
    }

    /// Puts as much of `bytes` into the ring as there is room for.
    pub(super) fn write(self, memory: &GuestRam, bytes: &[u8]) -> Result<usize, Broken> {
        let prod = self.load(memory, RSP_PROD)?;
        let cons = self.load(memory, RSP_CONS)?;
        let len = bytes.len().min(XENSTORE_RING_SIZE - held(prod, cons)?);
        let at = prod as usize % XENSTORE_RING_SIZE;
        let (head, tail) = bytes[..len].split_at(len.min(XENSTORE_RING_SIZE - at));
        memory.write_slice(head, self.at(RSP + at)).map_err(|_| Broken)?;
        memory.write_slice(tail, self.at(RSP)).map_err(|_| Broken)?;
        // Release: partner of the guest's barrier between `rsp_prod` and the bytes.
        self.store(memory, RSP_PROD, advance(prod, len))?;
        // As above, for the guest's word that there is room.
        fence(Ordering::SeqCst);
        Ok(len)
    }
}

fn held(prod: u32, cons: u32) -> Result<usize, Broken> {
    let len = prod.wrapping_sub(cons) as usize;
    if len <= XENSTORE_RING_SIZE { Ok(len) } else { Err(Broken) }
}

/// Indices wrap at 2^32. At most a ring's length is added.
fn advance(index: u32, len: usize) -> u32 {
    index.wrapping_add(u32::try_from(len).unwrap_or(0))
}
