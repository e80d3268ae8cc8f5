//! The store (XenStore): a tree of small values through which a guest, its back
//! ends and whoever runs it talk, and the daemon that serves it to the guest.
//!
//! One store for one guest, served on the thread of the vCPU that notifies. The
//! answers are those of xenstored 4.17 to an unprivileged domain. Back ends and
//! the toolstack are in this process; they act as domain 0, by the methods of
//! [`Domain`] that begin with `store_`.

mod connection;
mod contents;
mod node;
mod path;
mod request;
mod ring;
mod snapshot;
mod store;
#[cfg(test)]
mod tests;
mod transaction;
mod tree;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use vm_memory::GuestAddress;
use xen_abi::errno::Errno;
use xen_abi::hvm_params::{HVM_PARAM_STORE_EVTCHN, HVM_PARAM_STORE_PFN};
use xen_abi::memory::E820_RAM;
use xen_abi::xs_wire::{XENSTORE_ERROR_PROTO, XENSTORE_ERROR_RINGIDX};

use super::Domain;
use super::domain::lock;
use crate::pages::GuestRam;
use connection::MAX_WAITING;
use contents::Identity;
use ring::{Broken, Ring};
use store::{Calls, Store};
use tree::View;

pub use node::StorePerm;
pub use snapshot::{
    StoreChangeState, StoreNodeState, StoreStateError, StoreTouchedState, StoreTransactionState,
    StoreWatchState, XenstoreState,
};

/// Bytes of requests that are served at one go. A guest that keeps the ring full
/// for longer is let run in between.
const MOST_AT_ONCE: usize = 16 << 10;

/// A domain's store, if it has one. One lock, with no other inside it.
pub struct Xenstore {
    ring: Option<Ring>,
    port: OnceLock<u32>,
    store: Mutex<Store>,
    /// A vCPU is to go on serving.
    unfinished: AtomicBool,
}

/// What serving came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Served {
    /// The guest is to look at the ring.
    notify: bool,
    /// There is more to do.
    unfinished: bool,
}

impl Xenstore {
    pub(super) fn new(domid: u16, page: Option<GuestAddress>) -> Self {
        Self {
            ring: page.map(Ring),
            port: OnceLock::new(),
            store: Mutex::new(Store::new(domid)),
            unfinished: AtomicBool::new(false),
        }
    }

    /// The event channel that the store has with its guest.
    pub fn port(&self) -> Option<u32> {
        self.port.get().copied()
    }
}

/// Moves what there is between ring and store.
fn pump(store: &mut Store, ring: Ring, memory: &GuestRam, calls: &mut Calls) -> Served {
    let mut served = Served::default();
    if ring.wants_reconnect(memory) {
        store.guest.reset();
        served.notify = ring.reset(memory).is_ok();
    }
    let mut left = MOST_AT_ONCE;
    while !store.guest.ignored {
        let moved = match pump_once(store, ring, memory, left, calls) {
            Ok(moved) => moved,
            Err(error) => {
                ring.set_error(memory, error);
                store.guest.ignore();
                tracing::debug!(error, "the guest's connection to the store is broken");
                served.notify = true;
                break;
            }
        };
        served.notify |= moved.any;
        left -= moved.read;
        if left == 0 {
            served.unfinished = true;
            break;
        }
        if !moved.any {
            break;
        }
    }
    served
}

struct Moved {
    any: bool,
    read: usize,
}

fn pump_once(
    store: &mut Store,
    ring: Ring,
    memory: &GuestRam,
    most: usize,
    calls: &mut Calls,
) -> Result<Moved, u32> {
    let broken = |Broken| XENSTORE_ERROR_RINGIDX;
    let written = send(store, ring, memory).map_err(broken)?;
    let mut read = 0;
    if store.guest.waiting <= MAX_WAITING {
        let most = most.min(store.guest.wanted());
        read = ring.read(memory, most, &mut store.guest.input).map_err(broken)?;
        store.serve_input(calls).map_err(|_| XENSTORE_ERROR_PROTO)?;
    }
    Ok(Moved { any: written || read > 0, read })
}

/// Sends what waits for the guest, as far as there is room.
fn send(store: &mut Store, ring: Ring, memory: &GuestRam) -> Result<bool, Broken> {
    let mut any = false;
    let guest = &mut store.guest;
    while let Some(message) = guest.output.front() {
        if guest.sent == 0 {
            guest.queued.remove(message);
        }
        let rest = message.get(guest.sent..).unwrap_or_default();
        let (left, len) = (rest.len(), ring.write(memory, rest)?);
        guest.sent += len;
        guest.waiting = guest.waiting.saturating_sub(len);
        any |= len > 0;
        if len < left {
            break;
        }
        guest.output.pop_front();
        guest.sent = 0;
    }
    Ok(any)
}

impl Domain {
    /// Connects the store to its guest: fills in what `libxl` would write for a
    /// guest called `name`, allocates the event channel, and puts its number
    /// into `HVM_PARAM_STORE_EVTCHN`. Call it once, before the guest runs and
    /// after [`Domain::attach_console`]; without a page it does nothing.
    ///
    /// # Errors
    /// As [`Domain::alloc_backend_port`]; `EFAULT` where the page is no memory.
    pub fn attach_xenstore(self: &Arc<Self>, name: &str) -> Result<(), Errno> {
        let (Some(ring), None) = (self.xenstore.ring, self.xenstore.port()) else { return Ok(()) };
        ring.reset(&self.memory()).map_err(|Broken| Errno::EFAULT)?;
        let domain = Arc::downgrade(self);
        let port = self.alloc_backend_port(Arc::new(move || {
            if let Some(domain) = domain.upgrade() {
                domain.service_xenstore();
            }
        }))?;
        // A second attachment at the same time keeps the first one's port.
        let port = *self.xenstore.port.get_or_init(|| port);
        self.params.set(HVM_PARAM_STORE_EVTCHN, port.into());
        let ram = self.config.memory_map.iter().filter(|entry| entry.kind == E820_RAM);
        let console = self.config.console_page.zip(self.console.port());
        let identity = Identity {
            domid: self.config.domain_id,
            uuid: self.config.uuid,
            name: name.to_owned(),
            vcpus: self.config.vcpus,
            memory_kib: ram.map(|entry| entry.size >> 10).sum(),
            console: console.map(|(page, port)| (page.0 >> 12, port)),
            store: (ring.0.0 >> 12, port),
        };
        contents::fill(&mut lock(&self.xenstore.store), &identity)
    }

    /// Serves what the guest has put into the store's ring, and hands it what
    /// waits for it.
    pub fn service_xenstore(&self) {
        self.with_store(|_, _| ());
    }

    /// Goes on where [`Domain::service_xenstore`] let the guest run.
    pub(super) fn finish_xenstore(&self) {
        if self.xenstore.unfinished.load(Ordering::Relaxed)
            && self.xenstore.unfinished.swap(false, Ordering::Relaxed)
        {
            self.service_xenstore();
        }
    }

    /// The connection of a new domain; the nodes stay.
    ///
    /// # Errors
    /// `EFAULT` where the page is no memory any more.
    pub(super) fn renew_xenstore(&self) -> Result<(), Errno> {
        let mut store = lock(&self.xenstore.store);
        store.guest.reset();
        if let (Some(ring), Some(port)) = (self.xenstore.ring, self.xenstore.port()) {
            ring.reset(&self.memory()).map_err(|Broken| Errno::EFAULT)?;
            self.params.set(HVM_PARAM_STORE_PFN, ring.0.0 >> 12);
            self.params.set(HVM_PARAM_STORE_EVTCHN, port.into());
        }
        Ok(())
    }

    /// Does something with the store, then serves the ring, tells the guest and
    /// the back ends; those with nothing locked.
    fn with_store<T>(&self, work: impl FnOnce(&mut Store, &mut Calls) -> T) -> T {
        let mut calls = Calls::new();
        let (result, served) = {
            let mut store = lock(&self.xenstore.store);
            let result = work(&mut store, &mut calls);
            let served = match self.xenstore.ring {
                Some(ring) => pump(&mut store, ring, &self.memory(), &mut calls),
                None => Served::default(),
            };
            (result, served)
        };
        if let (true, Some(port)) = (served.notify, self.xenstore.port()) {
            self.notify_port(port);
        }
        if served.unfinished {
            self.xenstore.unfinished.store(true, Ordering::Relaxed);
            // Its thread comes out, and serves before it enters again.
            self.platform.kick(0);
        }
        for (on_change, path) in calls {
            on_change(&path);
        }
        result
    }

    /// The value of a node, read as domain 0. Names that do not begin with `/`
    /// are below the guest's home, here and in all calls that follow.
    ///
    /// # Errors
    /// `ENOENT` where there is no such node, `EINVAL` for a name that is none.
    pub fn store_read(&self, name: &str) -> Result<Vec<u8>, Errno> {
        self.with_store(|store, calls| store.as_back_end(name, calls, request::read))
    }

    /// Writes a node as domain 0, and makes it where it is not there: domain
    /// 0's own, with the permissions of the node above.
    ///
    /// # Errors
    /// `EINVAL` for a name that is none.
    pub fn store_write(&self, name: &str, value: &[u8]) -> Result<(), Errno> {
        let work = |view: &mut View<'_>, path: &str| request::write(view, path, value).map(drop);
        self.with_store(|store, calls| store.as_back_end(name, calls, work))
    }

    /// Removes a node with all below. One that is not there is as good as gone,
    /// if the one above is there.
    ///
    /// # Errors
    /// `ENOENT` where the node above is missing, `EINVAL` for a name that is none.
    pub fn store_remove(&self, name: &str) -> Result<(), Errno> {
        let work = |view: &mut View<'_>, path: &str| request::remove(view, path).map(drop);
        self.with_store(|store, calls| store.as_back_end(name, calls, work))
    }

    /// The names of a node's children, in order.
    ///
    /// # Errors
    /// As [`Domain::store_read`].
    pub fn store_list(&self, name: &str) -> Result<Vec<String>, Errno> {
        let list = self.with_store(|store, calls| store.as_back_end(name, calls, request::list))?;
        let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
    }

    /// Sets a node's permissions: its owner, who may all, with the rights of
    /// everybody else; then those of single domains.
    ///
    /// # Errors
    /// As [`Domain::store_read`], and `EINVAL` for no permissions at all.
    pub fn store_set_perms(&self, name: &str, perms: &[StorePerm]) -> Result<(), Errno> {
        let work = |view: &mut View<'_>, path: &str| {
            request::change_perms(view, path, perms.to_vec()).map(drop)
        };
        self.with_store(|store, calls| store.as_back_end(name, calls, work))
    }

    /// Calls `on_change` with the full name of each node that changes, at or
    /// below `name`; and once at once. It runs on the thread of whoever makes
    /// the change, a vCPU's for instance, with nothing locked. The answer is
    /// what [`Domain::store_unwatch`] takes.
    ///
    /// # Errors
    /// `EINVAL` for a name that is none.
    pub fn store_watch(
        &self,
        name: &str,
        on_change: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Result<u64, Errno> {
        self.with_store(|store, calls| store.watch(name, on_change, calls))
    }

    /// Ends a watch. A call of it that has begun may still run.
    pub fn store_unwatch(&self, id: u64) {
        lock(&self.xenstore.store).unwatch(id);
    }
}
