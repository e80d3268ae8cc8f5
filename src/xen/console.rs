//! The back end of the PV console: the ring in the guest's console page
//! (`io/console.h`), output and input.
//!
//! Both sides' indices lie in guest memory and are hostile: each is read once,
//! and a ring that claims to hold more than it can is left alone.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use vm_memory::{Bytes, GuestAddress};
use xen_abi::console::{XENCONS_IN_SIZE, XENCONS_OUT_SIZE, XenconsInterface};
use xen_abi::errno::Errno;
use xen_abi::hvm_params::HVM_PARAM_CONSOLE_EVTCHN;

use super::{Domain, RestoreError};
use crate::pages::GuestRam;

/// A domain's console, if it has one.
#[derive(Debug)]
pub struct Console {
    page: Option<GuestAddress>,
    port: OnceLock<u32>,
    /// Taken while output is read and printed, so that it comes out in order.
    /// Only the guest's own writes to its console wait for it.
    output: Mutex<()>,
    input: Mutex<()>,
}

impl Console {
    /// A console whose ring is at `page`. Without one all calls do nothing.
    #[must_use]
    pub fn new(page: Option<GuestAddress>) -> Self {
        Self { page, port: OnceLock::new(), output: Mutex::new(()), input: Mutex::new(()) }
    }

    /// The console of a restored domain has this event channel.
    pub(super) fn restore(&self, port: u32) {
        // Nobody has attached it yet.
        let _ = self.port.set(port);
    }

    /// The event channel that the console has with its guest.
    pub fn port(&self) -> Option<u32> {
        self.port.get().copied()
    }

    /// Takes what the guest wrote and hands it to `out` in at most two pieces.
    /// Answers whether the guest is to be notified, because there is room again.
    pub fn service(&self, memory: &GuestRam, out: &mut dyn FnMut(&[u8])) -> bool {
        let _order = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        self.take_output(memory, out).is_some()
    }

    fn take_output(&self, memory: &GuestRam, out: &mut dyn FnMut(&[u8])) -> Option<()> {
        let prod = self.index(OUT_PROD)?;
        let cons = self.index(OUT_CONS)?;
        // Acquire: partner of the guest's barrier between text and `out_prod`.
        let end: u32 = memory.load(prod, Ordering::Acquire).ok()?;
        let start: u32 = memory.load(cons, Ordering::Relaxed).ok()?;
        let len = held(end, start, XENCONS_OUT_SIZE)?;
        let mut text = [0; XENCONS_OUT_SIZE];
        let at = start as usize % XENCONS_OUT_SIZE;
        let first = len.min(XENCONS_OUT_SIZE - at);
        let (head, tail) = text[..len].split_at_mut(first);
        memory.read_slice(head, self.index(OUT + at)?).ok()?;
        memory.read_slice(tail, self.index(OUT)?).ok()?;
        // The guest may write over what it sees consumed: everything is read.
        fence(Ordering::SeqCst);
        memory.store(end, cons, Ordering::Release).ok()?;
        out(&text[..len]);
        Some(())
    }

    /// Puts as much of `bytes` as there is room for into the guest's input, and
    /// answers how much that was. The guest is to be notified unless it is 0.
    pub fn push_input(&self, memory: &GuestRam, bytes: &[u8]) -> usize {
        let _order = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        self.put_input(memory, bytes).unwrap_or(0)
    }

    fn put_input(&self, memory: &GuestRam, bytes: &[u8]) -> Option<usize> {
        let prod = self.index(IN_PROD)?;
        let end: u32 = memory.load(prod, Ordering::Relaxed).ok()?;
        // Acquire: partner of the guest's barrier between its reading and `in_cons`.
        let start: u32 = memory.load(self.index(IN_CONS)?, Ordering::Acquire).ok()?;
        let room = XENCONS_IN_SIZE.checked_sub(end.wrapping_sub(start) as usize)?;
        let bytes = &bytes[..bytes.len().min(room)];
        let at = end as usize % XENCONS_IN_SIZE;
        let (head, tail) = bytes.split_at(bytes.len().min(XENCONS_IN_SIZE - at));
        memory.write_slice(head, self.index(at)?).ok()?;
        memory.write_slice(tail, self.index(0)?).ok()?;
        let end = end.wrapping_add(u32::try_from(bytes.len()).ok()?);
        // Release: partner of the guest's barrier between `in_prod` and the text.
        memory.store(end, prod, Ordering::Release).ok()?;
        Some(bytes.len())
    }

    fn index(&self, offset: usize) -> Option<GuestAddress> {
        self.page.map(|page| GuestAddress(page.0.wrapping_add(offset as u64)))
    }
}

const OUT: usize = std::mem::offset_of!(XenconsInterface, out);
const IN_CONS: usize = std::mem::offset_of!(XenconsInterface, in_cons);
const IN_PROD: usize = std::mem::offset_of!(XenconsInterface, in_prod);
const OUT_CONS: usize = std::mem::offset_of!(XenconsInterface, out_cons);
const OUT_PROD: usize = std::mem::offset_of!(XenconsInterface, out_prod);

/// What a ring of `size` holds from `start` to `end`: `None` when that is
/// nothing, or more than it can.
fn held(end: u32, start: u32, size: usize) -> Option<usize> {
    let len = end.wrapping_sub(start) as usize;
    (1..=size).contains(&len).then_some(len)
}

impl Domain {
    /// Connects the console to its guest: allocates the event channel and puts
    /// its number into `HVM_PARAM_CONSOLE_EVTCHN`. Call it once, before the
    /// guest runs; without a console page it does nothing.
    ///
    /// # Errors
    /// As [`Domain::alloc_backend_port`].
    pub fn attach_console(self: &Arc<Self>) -> Result<(), Errno> {
        if self.config.console_page.is_none() || self.console.port().is_some() {
            return Ok(());
        }
        let domain = Arc::downgrade(self);
        let port = self.alloc_backend_port(Arc::new(move || {
            if let Some(domain) = domain.upgrade() {
                domain.service_console();
            }
        }))?;
        // A second attachment at the same time keeps the first one's port.
        let port = *self.console.port.get_or_init(|| port);
        self.params.set(HVM_PARAM_CONSOLE_EVTCHN, port.into());
        Ok(())
    }

    /// Tells a guest that begins anew where its console is. The ring stays as
    /// it is: nothing that was typed or printed is lost.
    pub(super) fn renew_console(&self) {
        if let Some(port) = self.console.port() {
            self.params.set(HVM_PARAM_CONSOLE_EVTCHN, port.into());
        }
    }

    /// Connects the console of a restored domain again, and prints what the guest
    /// wrote before it was saved.
    ///
    /// # Errors
    /// [`RestoreError::Value`] where its event channel is none of a back end.
    pub fn reattach_console(self: &Arc<Self>) -> Result<(), RestoreError> {
        let Some(port) = self.console.port() else { return Ok(()) };
        let domain = Arc::downgrade(self);
        self.reattach_backend(
            port,
            Arc::new(move || {
                if let Some(domain) = domain.upgrade() {
                    domain.service_console();
                }
            }),
        )
    }

    /// Prints what the guest wrote to its console.
    pub fn service_console(&self) {
        let memory = self.memory();
        let room_again =
            self.console.service(&memory, &mut |text| self.platform.console_output(text));
        if let (true, Some(port)) = (room_again, self.console.port()) {
            self.notify_port(port);
        }
    }

    /// Types `bytes` at the guest's console and answers how many of them there
    /// was room for.
    pub fn console_input(&self, bytes: &[u8]) -> usize {
        let taken = self.console.push_input(&self.memory(), bytes);
        if let (1.., Some(port)) = (taken, self.console.port()) {
            self.notify_port(port);
        }
        taken
    }
}

#[cfg(test)]
mod tests;
