//! 2-level event channels: delivery to vCPUs, and ports of in-process back ends.
//!
//! Order of delivery, as in Xen: set the port's pending bit; if that was clear
//! and the port is not masked, set its word's selector bit in the `vcpu_info`
//! of its vCPU; if that was clear, set `evtchn_upcall_pending`; if that was
//! clear, interrupt the vCPU. The guest undoes it in the opposite order with
//! atomic exchanges, so whoever of the two comes second sees the other.

mod op;
mod ports;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use xen_abi::errno::Errno;

pub(super) use op::op;
use ports::{Channel, Ports, State};

use super::atomic::{and_u64, load_u64, or_u32, or_u64};
use super::domain::{Domain, lock, read, write};
use super::shared_info::{At, Layout};
use crate::pages::{GuestRam, Width};

/// What a back end runs when the guest notifies it.
type OnSend = Arc<dyn Fn() + Send + Sync>;

/// The event channels of a domain.
pub(super) struct EventChannels {
    ports: Ports,
    /// Held by whoever changes a port's state; reading needs no lock.
    change: Mutex<()>,
    /// The far ends in domain 0: back end `n` has port `n + 1` there.
    backends: RwLock<Vec<Backend>>,
    domain_id: u16,
    delivered: AtomicU64,
}

struct Backend {
    on_send: OnSend,
    /// The guest's port as first given: the back end's name for it.
    handle: u32,
    /// The guest's port now, 0 while the guest has closed it.
    port: u32,
}

impl EventChannels {
    pub(super) fn new(domain_id: u16) -> Self {
        Self {
            ports: Ports::new(),
            change: Mutex::new(()),
            backends: RwLock::new(Vec::new()),
            domain_id,
            delivered: AtomicU64::new(0),
        }
    }
}

impl Domain {
    /// A port already bound to a back end in this process (console, store), for
    /// the guest to find in an HVM parameter. Its events go to vCPU 0 until the
    /// guest rebinds it. `on_send` runs on the notifying vCPU's thread, with no
    /// lock held.
    ///
    /// # Errors
    /// `ENOSPC` when no port is free.
    pub fn alloc_backend_port(&self, on_send: OnSend) -> Result<u32, Errno> {
        let _change = lock(&self.events.change);
        let mut backends = write(&self.events.backends);
        let index = u32::try_from(backends.len()).map_err(|_| Errno::ENOSPC)?;
        let limit = read(&self.layout).ports();
        let port = self.events.ports.find_free(limit).ok_or(Errno::ENOSPC)?;
        self.events.ports.set(port, Channel { vcpu: 0, state: State::Backend(index) });
        backends.push(Backend { on_send, handle: port, port });
        Ok(port)
    }

    /// Raises the event of a back end toward the guest. `port` is what
    /// [`Domain::alloc_backend_port`] gave, even after the guest closed that
    /// port and bound another to the same back end.
    pub fn notify_port(&self, port: u32) {
        let now_at = read(&self.events.backends)
            .iter()
            .find(|backend| backend.handle == port)
            .map_or(0, |backend| backend.port);
        let channel = self.events.ports.get(now_at);
        if matches!(channel.state, State::Backend(_)) {
            self.set_pending(now_at, channel.vcpu);
        }
    }

    /// Events that were set pending, each counted once until the guest takes it.
    pub fn events_delivered(&self) -> u64 {
        self.events.delivered.load(Ordering::Relaxed)
    }

    /// Raises a VIRQ of `vcpu`, if the guest bound it.
    pub(super) fn send_virq(&self, vcpu: u32, virq: u32) {
        let Some(state) = self.vcpu(vcpu) else { return };
        let slot = usize::try_from(virq).ok().and_then(|virq| state.virqs.get(virq));
        let port = slot.map_or(0, |slot| slot.load(Ordering::Acquire));
        let channel = self.events.ports.get(port);
        if channel.state == State::Virq(virq) {
            self.set_pending(port, channel.vcpu);
        }
    }

    /// Sets `port` pending and tells `vcpu`.
    pub(super) fn set_pending(&self, port: u32, vcpu: u32) {
        let upcall = {
            let memory = self.memory();
            let layout = read(&self.layout);
            if port >= layout.ports() {
                return;
            }
            let page = layout.shared_info(&memory, &self.private);
            let bit = 1u64 << (port % 64);
            if or_u64(page.memory, page.gpa + Layout::pending_offset(port), bit) & bit != 0 {
                return; // whoever set it has told, or the unmasking will
            }
            self.events.delivered.fetch_add(1, Ordering::Relaxed);
            let masked = load_u64(page.memory, page.gpa + layout.mask_offset(port)) & bit != 0;
            !masked && self.select(&layout, &memory, port, vcpu)
        };
        if upcall {
            self.raise(vcpu);
        }
        // A poller wants to know of masked ports too.
        self.wake_pollers(port);
    }

    /// `EVTCHNOP_unmask`: clears the mask of `port`; if it was pending all the
    /// while, tells `vcpu` now.
    fn unmask(&self, port: u32, vcpu: u32) {
        let upcall = {
            let memory = self.memory();
            let layout = read(&self.layout);
            let page = layout.shared_info(&memory, &self.private);
            let bit = 1u64 << (port % 64);
            let was = and_u64(page.memory, page.gpa + layout.mask_offset(port), !bit);
            // In this order: `set_pending` sets pending, then reads the mask.
            let pending = load_u64(page.memory, page.gpa + Layout::pending_offset(port));
            was & pending & bit != 0 && self.select(&layout, &memory, port, vcpu)
        };
        if upcall {
            self.raise(vcpu);
        }
    }

    fn clear_pending(&self, port: u32) {
        let memory = self.memory();
        let layout = read(&self.layout);
        let page = layout.shared_info(&memory, &self.private);
        and_u64(page.memory, page.gpa + Layout::pending_offset(port), !(1u64 << (port % 64)));
    }

    /// Whether `port` is pending.
    pub(super) fn event_pending(&self, port: u32) -> bool {
        let memory = self.memory();
        let layout = read(&self.layout);
        let page = layout.shared_info(&memory, &self.private);
        let word = load_u64(page.memory, page.gpa + Layout::pending_offset(port));
        port < layout.ports() && word >> (port % 64) & 1 != 0
    }

    /// Sets the selector bit of `port` and the upcall of `vcpu`; whether to
    /// interrupt it.
    fn select(&self, layout: &Layout, memory: &GuestRam, port: u32, vcpu: u32) -> bool {
        let Some(info) = layout.vcpu_info(vcpu, memory, &self.private) else {
            // Beyond 32 and not registered yet: registering sets every
            // selector bit, so the event is found then.
            return false;
        };
        let selected = match layout.width {
            Width::Bits64 => {
                let bit = 1u64 << (port / 64 % 64);
                or_u64(info.memory, info.gpa + SELECTOR_OFFSET, bit) & bit != 0
            }
            Width::Bits32 => {
                let bit = 1u32 << (port / 32 % 32);
                or_u32(info.memory, info.gpa + SELECTOR_OFFSET32, bit) & bit != 0
            }
        };
        !selected && Self::mark_upcall(info)
    }

    /// Has `vcpu` look at every port once: what was raised while its
    /// `vcpu_info` moved may be in the old one only.
    pub(super) fn mark_all_pending(&self, vcpu: u32) {
        let upcall = {
            let memory = self.memory();
            let layout = read(&self.layout);
            let info: Option<At<'_>> = layout.vcpu_info(vcpu, &memory, &self.private);
            info.is_some_and(|info| {
                match layout.width {
                    Width::Bits64 => {
                        or_u64(info.memory, info.gpa + SELECTOR_OFFSET, u64::MAX);
                    }
                    Width::Bits32 => {
                        or_u32(info.memory, info.gpa + SELECTOR_OFFSET32, u32::MAX);
                    }
                }
                Self::mark_upcall(info)
            })
        };
        if upcall {
            self.raise(vcpu);
        }
    }
}

/// `offsetof(struct vcpu_info, evtchn_pending_sel)`.
const SELECTOR_OFFSET: u64 = 8;
/// The same in the 32-bit layout.
const SELECTOR_OFFSET32: u64 = 4;

#[cfg(test)]
mod tests;
