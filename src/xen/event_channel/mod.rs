//! Event channels: ports, what they are bound to, and how an event reaches its
//! vCPU, in the 2-level ABI or in the FIFO ABI.
//!
//! Raising an event takes no lock but `Domain::layout`, shared, and in the FIFO
//! ABI that of the event's queue. Binding and closing take `change`.

mod backends;
mod fifo;
mod op;
mod ports;
mod snapshot;
mod sources;
mod two_level;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};

pub(super) use fifo::Fifo;
pub(super) use op::op;
use ports::{Channel, Ports, State};
pub use snapshot::{BackendState, EventsState};

use backends::Backends;

use super::domain::{Domain, read};
use super::shared_info::At;
use fifo::Raised;

/// `d->nr_pirqs` of a small HVM guest: its GSIs and room for MSIs. On Xen it
/// depends on the host.
const NR_PIRQS: usize = 256;

/// The event channels of a domain.
pub(super) struct EventChannels {
    ports: Ports,
    /// Held by whoever changes a port's state; reading needs no lock.
    change: Mutex<()>,
    backends: RwLock<Backends>,
    /// The port of each PIRQ, 0 for none.
    pirqs: Box<[AtomicU32]>,
    domain_id: u16,
    delivered: AtomicU64,
}

impl EventChannels {
    pub(super) fn new(domain_id: u16) -> Self {
        Self {
            ports: Ports::new(),
            change: Mutex::new(()),
            backends: RwLock::new(Backends::default()),
            pirqs: (0..NR_PIRQS).map(|_| AtomicU32::new(0)).collect(),
            domain_id,
            delivered: AtomicU64::new(0),
        }
    }

    /// The number of ports that exist: on others every operation, polling too,
    /// fails with `EINVAL`. As in Xen it grows with the ports in use.
    pub(super) fn valid_ports(&self) -> u32 {
        self.ports.valid()
    }
}

impl Domain {
    /// Events that were set pending, each counted once until the guest takes it.
    pub fn events_delivered(&self) -> u64 {
        self.events.delivered.load(Ordering::Relaxed)
    }

    /// Sets `port` pending and tells `vcpu`, whatever it is bound to.
    #[cfg(test)]
    pub(super) fn set_pending(&self, port: u32, vcpu: u32) {
        self.raise_channel(port, Channel { vcpu, ..self.events.ports.get(port) });
    }

    /// Sets `port` pending, which is bound as `channel` says, and tells its vCPU.
    fn raise_channel(&self, port: u32, channel: Channel) {
        let vcpu = channel.vcpu;
        let (raised, upcall) = {
            let memory = self.memory();
            let layout = read(&self.layout);
            if port >= layout.ports() {
                return;
            }
            let info = layout.vcpu_info(vcpu, &memory, &self.private);
            if let Some(fifo) = &layout.fifo {
                let raised = fifo.set_pending(&memory, port, channel);
                (raised, raised.tell && mark_upcall(info))
            } else if port >= layout.ports() {
                // Bound while there were more of them.
                (Raised::default(), false)
            } else {
                let page = layout.shared_info(&memory, &self.private);
                let newly = two_level::set_pending(page, port);
                // Pending already: whoever set it has told, or the unmasking will.
                let tell = newly
                    && !two_level::is_masked(&layout, page, port)
                    && info.is_some_and(|info| two_level::select(layout.width, info, port));
                (Raised { newly, tell }, tell && mark_upcall(info))
            }
        };
        if raised.newly {
            self.events.delivered.fetch_add(1, Ordering::Relaxed);
        }
        if upcall {
            self.raise(vcpu);
        }
        if raised.newly {
            // A poller wants to know of masked ports too.
            self.wake_pollers(port);
        }
    }

    /// `EVTCHNOP_unmask`: clears the mask of `port`; if it is pending, tells its
    /// vCPU now. As in Xen nothing happens to a port that nobody can send to.
    fn unmask(&self, port: u32) {
        let channel = self.events.ports.get(port);
        if !channel.is_usable() {
            return;
        }
        let vcpu = channel.vcpu;
        let (raised, upcall) = {
            let memory = self.memory();
            let layout = read(&self.layout);
            let info = layout.vcpu_info(vcpu, &memory, &self.private);
            if let Some(fifo) = &layout.fifo {
                let raised = fifo.unmask(&memory, port, channel);
                (raised, raised.tell && mark_upcall(info))
            } else if port >= layout.ports() {
                // Bound while there were more of them.
                (Raised::default(), false)
            } else {
                let page = layout.shared_info(&memory, &self.private);
                let tell = two_level::unmask(&layout, page, port)
                    && info.is_some_and(|info| two_level::select(layout.width, info, port));
                (Raised::default(), tell && mark_upcall(info))
            }
        };
        if upcall {
            self.raise(vcpu);
        }
        if raised.newly {
            // The guest took it and it came again, all while it was unmasked.
            self.wake_pollers(port);
        }
    }

    fn clear_pending(&self, port: u32) {
        let memory = self.memory();
        let layout = read(&self.layout);
        if let Some(fifo) = &layout.fifo {
            fifo.clear_pending(&memory, port);
        } else if port < layout.ports() {
            two_level::clear_pending(layout.shared_info(&memory, &self.private), port);
        }
    }

    /// Whether `port` is pending.
    pub(super) fn event_pending(&self, port: u32) -> bool {
        if !self.events.ports.get(port).is_usable() {
            return false;
        }
        let memory = self.memory();
        let layout = read(&self.layout);
        match &layout.fifo {
            Some(fifo) => fifo.is_pending(&memory, port),
            None => {
                port < layout.ports()
                    && two_level::is_pending(&layout, &memory, &self.private, port)
            }
        }
    }

    /// Whether any port is pending, masked or not. In the FIFO ABI, in which no
    /// machine delivers events by itself, not looked at.
    pub(super) fn any_event_pending(&self) -> bool {
        let memory = self.memory();
        let layout = read(&self.layout);
        layout.fifo.is_none() && two_level::any_pending(&layout, &memory, &self.private)
    }

    /// The machine had its own idea of where the `vcpu_info` of `vcpu` lies, and
    /// has ours only now: events that it delivered meanwhile are told again.
    pub fn vcpu_info_moved(&self, vcpu: u32) {
        self.mark_all_pending(vcpu);
    }

    /// Has `vcpu` look at every port once: what was raised while its
    /// `vcpu_info` moved may be in the old one only.
    pub(super) fn mark_all_pending(&self, vcpu: u32) {
        let upcall = {
            let memory = self.memory();
            let layout = read(&self.layout);
            let info = layout.vcpu_info(vcpu, &memory, &self.private);
            info.is_some_and(|info| {
                two_level::select_all(layout.width, info);
                mark_upcall(Some(info))
            })
        };
        if upcall {
            self.raise(vcpu);
        }
    }
}

/// Sets the upcall of the vCPU whose `vcpu_info` is at `info`; whether to
/// interrupt it. A vCPU beyond 32 that has not registered one finds the event
/// later: registering marks everything pending.
fn mark_upcall(info: Option<At<'_>>) -> bool {
    info.is_some_and(Domain::mark_upcall)
}

#[cfg(test)]
mod tests;
