//! Closing ports: one, or all of them.

use std::sync::atomic::Ordering;

use xen_abi::errno::Errno;
use xen_abi::xen::VIRQ_TIMER;

use super::super::super::domain::{Domain, lock, write};
use super::super::super::{Call, Reply};
use super::super::{Channel, State};
use super::{check_port, spend_ports};

/// `EVTCHNOP_close`.
///
/// # Errors
/// `EINVAL` for a port that is not bound.
pub(super) fn close(domain: &Domain, port: u32) -> Reply {
    check_port(domain, port)?;
    let _change = lock(&domain.events.change);
    close_locked(domain, port)
}

/// `EVTCHNOP_reset`: closes all, and leaves the FIFO ABI.
///
/// # Errors
/// `E2BIG` in a multicall that has done much already.
pub(super) fn reset(call: &mut Call<'_>) -> Reply {
    let domain = call.domain;
    let valid = domain.events.valid_ports();
    spend_ports(call, valid)?;
    let _change = lock(&domain.events.change);
    close_all(domain, valid);
    Ok(0)
}

/// Closes all ports below `valid` and leaves the FIFO ABI. Under `change`.
fn close_all(domain: &Domain, valid: u32) {
    for port in 1..valid {
        // A port that is free answers EINVAL, which is no failure here.
        let _ = close_locked(domain, port);
    }
    domain.leave_fifo();
}

impl Domain {
    /// Event channels as of a domain that has just been made: those of the back
    /// ends that were there before the guest (console, store) at the ports that
    /// they had then, and no others.
    pub(in super::super::super) fn renew_ports(&self) {
        let _change = lock(&self.events.change);
        close_all(self, self.events.valid_ports());
        let mut backends = write(&self.events.backends);
        for (index, port) in backends.first_ports() {
            self.events.ports.set(port, Channel::new(0, State::Backend(index)));
            backends.guest_bound(index, port);
        }
    }
}

fn close_locked(domain: &Domain, port: u32) -> Reply {
    let events = &domain.events;
    let channel = events.ports.get(port);
    match channel.state {
        State::Free | State::Reserved => return Err(Errno::EINVAL),
        State::Unbound(_) => {}
        State::Ipi => domain.platform.ipi_port(port, None),
        State::Pirq(pirq) => {
            let slot = usize::try_from(pirq).ok().and_then(|pirq| events.pirqs.get(pirq));
            if let Some(slot) = slot {
                slot.store(0, Ordering::Release);
            }
        }
        State::Loop(far_port) => {
            let far = events.ports.get(far_port);
            let unbound = State::Unbound(events.domain_id);
            events.ports.set(far_port, Channel { state: unbound, ..far });
        }
        State::Backend(index) => write(&events.backends).guest_closed(index),
        State::Virq(virq) => {
            if virq == VIRQ_TIMER {
                domain.platform.timer_port(channel.vcpu, 0);
            }
            // A global VIRQ may have been rebound: its slot stays vCPU 0's.
            for slot in domain.vcpu_ids().filter_map(|vcpu| domain.vcpu(vcpu)) {
                let slot = usize::try_from(virq).ok().and_then(|virq| slot.virqs.get(virq));
                if let Some(slot) = slot.filter(|slot| slot.load(Ordering::Relaxed) == port) {
                    slot.store(0, Ordering::Release);
                }
            }
        }
    }
    domain.clear_pending(port);
    // Last: a port that is free can be taken by another bind.
    events.ports.set(port, Channel::FREE);
    Ok(0)
}
