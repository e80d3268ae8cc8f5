//! Binding ports. As in Xen, which port it will be is decided before the far
//! end is looked at: a domain without a free port learns of that first.

use std::sync::atomic::Ordering;

use xen_abi::errno::Errno;
use xen_abi::xen::VIRQ_TIMER;

use super::super::super::Call;
use super::super::super::domain::{Domain, lock, read, write};
use super::super::super::vcpu::NR_VIRQS;
use super::super::sources::is_global;
use super::super::{Channel, State};
use super::{check_own, check_port, is_own, spend_ports};

/// What binding an IPI counts as, in steps of a long operation.
const IPI_WORK: u64 = 64;

/// The lowest free port; `EventChannels::change` is held.
fn free_port(call: &mut Call<'_>) -> Result<u32, Errno> {
    let domain = call.domain;
    let limit = read(&domain.layout).ports();
    let busy = |port| domain.port_is_busy(port);
    let found = domain.events.ports.find_free(limit, busy).ok_or(Errno::ENOSPC)?;
    // A sender that saw the port before it was closed may have come late.
    domain.clear_pending(found.port);
    spend_ports(call, found.steps)?;
    Ok(found.port)
}

/// Binds the lowest free port.
fn take_port(call: &mut Call<'_>, channel: Channel) -> Result<u32, Errno> {
    let _change = lock(&call.domain.events.change);
    let port = free_port(call)?;
    call.domain.events.ports.set(port, channel);
    Ok(port)
}

/// # Errors
/// `EPERM` for a port of domain 0, `ESRCH` for one of a domain that is not
/// there, `ENOSPC`. Whether `remote` is there is not looked at.
pub(super) fn alloc_unbound(call: &mut Call<'_>, domid: u16, remote: u16) -> Result<u32, Errno> {
    check_own(call.domain, domid)?;
    let own = call.domain.events.domain_id;
    let remote = if is_own(call.domain, remote) { own } else { remote };
    take_port(call, Channel::new(0, State::Unbound(remote)))
}

/// Binds to a port of the domain's own, or to a back end that the guest closed.
///
/// # Errors
/// `ESRCH` for a domain that is not there, `ENOSPC`, `EINVAL` for a port that
/// does not wait for this domain.
pub(super) fn interdomain(
    call: &mut Call<'_>,
    remote: u16,
    remote_port: u32,
) -> Result<u32, Errno> {
    let domain = call.domain;
    let events = &domain.events;
    let channel = {
        let _change = lock(&events.change);
        let own = is_own(domain, remote);
        if !own && remote != 0 {
            return Err(Errno::ESRCH);
        }
        let local = free_port(call)?;
        let near = if own {
            check_port(domain, remote_port)?;
            let far = events.ports.get(remote_port);
            if far.state != State::Unbound(events.domain_id) {
                return Err(Errno::EINVAL);
            }
            events.ports.set(remote_port, Channel { state: State::Loop(local), ..far });
            Channel::new(0, State::Loop(remote_port))
        } else {
            let index = remote_port.checked_sub(1).ok_or(Errno::EINVAL)?;
            let mut backends = write(&events.backends);
            if !backends.is_unbound(index) {
                return Err(Errno::EINVAL);
            }
            backends.guest_bound(index, local);
            Channel::new(0, State::Backend(index))
        };
        events.ports.set(local, near);
        (local, near)
    };
    // What the far end sent while it was unbound is lost; look once.
    domain.raise_channel(channel.0, channel.1);
    Ok(channel.0)
}

/// # Errors
/// `EINVAL` for a VIRQ that is not there or a global one on another vCPU than
/// 0, `ENOENT` for a vCPU that is not there, `EEXIST`, `ENOSPC`.
pub(super) fn virq(call: &mut Call<'_>, virq: u32, vcpu: u32) -> Result<u32, Errno> {
    let domain = call.domain;
    let index = usize::try_from(virq).ok().filter(|&index| index < NR_VIRQS);
    let index = index.ok_or(Errno::EINVAL)?;
    if is_global(virq) && vcpu != 0 {
        return Err(Errno::EINVAL);
    }
    let state = domain.vcpu(vcpu).ok_or(Errno::ENOENT)?;
    let slot = state.virqs.get(index).ok_or(Errno::EINVAL)?;
    let _change = lock(&domain.events.change);
    if slot.load(Ordering::Relaxed) != 0 {
        return Err(Errno::EEXIST);
    }
    let port = free_port(call)?;
    domain.events.ports.set(port, Channel::new(vcpu, State::Virq(virq)));
    // Release: partner of the Acquire in `raise_virq`, which then sees the port.
    slot.store(port, Ordering::Release);
    if virq == VIRQ_TIMER {
        domain.platform.timer_port(vcpu, port);
    }
    Ok(port)
}

/// # Errors
/// `ENOENT` for a vCPU that is not there, `ENOSPC`.
pub(super) fn ipi(call: &mut Call<'_>, vcpu: u32) -> Result<u32, Errno> {
    let domain = call.domain;
    domain.vcpu(vcpu).ok_or(Errno::ENOENT)?;
    // The machine may take long to let go of a port that is bound and closed.
    call.spend_many(IPI_WORK)?;
    let _change = lock(&domain.events.change);
    let port = free_port(call)?;
    domain.events.ports.set(port, Channel::new(vcpu, State::Ipi));
    domain.platform.ipi_port(port, Some(vcpu));
    Ok(port)
}

/// An HVM guest may bind any PIRQ in range, mapped or not, and whatever its
/// flags: permissions and sharing are PV's.
///
/// # Errors
/// `EINVAL` for a PIRQ that is not there, `EEXIST`, `ENOSPC`.
pub(super) fn pirq(call: &mut Call<'_>, pirq: u32) -> Result<u32, Errno> {
    let domain: &Domain = call.domain;
    let slot = usize::try_from(pirq).ok().and_then(|index| domain.events.pirqs.get(index));
    let slot = slot.ok_or(Errno::EINVAL)?;
    let _change = lock(&domain.events.change);
    if slot.load(Ordering::Relaxed) != 0 {
        return Err(Errno::EEXIST);
    }
    let port = free_port(call)?;
    domain.events.ports.set(port, Channel::new(0, State::Pirq(pirq)));
    // Release: partner of the Acquire in `raise_pirq`.
    slot.store(port, Ordering::Release);
    Ok(port)
}
