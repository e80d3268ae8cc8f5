//! `event_channel_op`: the guest makes, uses and closes ports.

use std::sync::atomic::Ordering;

use xen_abi::errno::Errno;
use xen_abi::event_channel::*;
use xen_abi::xen::{DOMID_SELF, VIRQ_DEBUG, VIRQ_TIMER, VIRQ_XENOPROF, VIRQ_XENPMU};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::super::domain::{Domain, lock, read, write};
use super::super::vcpu::NR_VIRQS;
use super::super::{Call, Reply};
use super::ports::{Channel, State};

/// `d->nr_pirqs` of a small HVM guest: its GSIs and room for MSIs.
const NR_PIRQS: u32 = 256;

/// `event_channel_op`.
///
/// # Errors
/// `EFAULT` for an argument that can not be read or written, `ENOSYS` for an
/// unknown command, otherwise as each command states.
pub(in super::super) fn op(call: &mut Call<'_>, cmd: u64, arg: u64) -> Reply {
    let domain = call.domain;
    match u32::try_from(cmd).map_err(|_| Errno::ENOSYS)? {
        EVTCHNOP_ALLOC_UNBOUND => update(call, arg, |args: &mut EvtchnAllocUnbound| {
            args.port = alloc_unbound(domain, args.dom, args.remote_dom)?;
            Ok(())
        }),
        EVTCHNOP_BIND_INTERDOMAIN => update(call, arg, |args: &mut EvtchnBindInterdomain| {
            args.local_port = bind_interdomain(domain, args.remote_dom, args.remote_port)?;
            Ok(())
        }),
        EVTCHNOP_BIND_VIRQ => update(call, arg, |args: &mut EvtchnBindVirq| {
            args.port = bind_virq(domain, args.virq, args.vcpu)?;
            if args.virq == VIRQ_TIMER {
                domain.platform.timer_port(args.vcpu, args.port);
            }
            Ok(())
        }),
        EVTCHNOP_BIND_PIRQ => update(call, arg, |args: &mut EvtchnBindPirq| {
            args.port = bind_pirq(domain, args.pirq)?;
            Ok(())
        }),
        EVTCHNOP_BIND_IPI => update(call, arg, |args: &mut EvtchnBindIpi| {
            domain.vcpu(args.vcpu).ok_or(Errno::ENOENT)?;
            args.port = take_port(domain, Channel { vcpu: args.vcpu, state: State::Ipi })?;
            domain.platform.ipi_port(args.port, Some(args.vcpu));
            Ok(())
        }),
        EVTCHNOP_STATUS => update(call, arg, |args: &mut EvtchnStatus| status(domain, args)),
        EVTCHNOP_CLOSE => {
            let args: EvtchnClose = call.read(arg)?;
            close(domain, args.port)
        }
        EVTCHNOP_SEND => {
            let args: EvtchnSend = call.read(arg)?;
            send(domain, args.port)
        }
        EVTCHNOP_BIND_VCPU => {
            let args: EvtchnBindVcpu = call.read(arg)?;
            bind_vcpu(domain, args.port, args.vcpu)
        }
        EVTCHNOP_UNMASK => {
            let args: EvtchnUnmask = call.read(arg)?;
            check_port(domain, args.port)?;
            domain.unmask(args.port, domain.events.ports.get(args.port).vcpu);
            Ok(0)
        }
        EVTCHNOP_RESET => {
            let args: EvtchnReset = call.read(arg)?;
            check_own(domain, args.dom)?;
            // Read before the loop, whose own look would wait behind a writer.
            let limit = read(&domain.layout).ports();
            for port in 1..limit {
                // A port that is free answers EINVAL, which is no failure here.
                let _ = close(domain, port);
            }
            Ok(0)
        }
        // A Xen built without FIFO event channels: guests stay with 2 levels.
        EVTCHNOP_INIT_CONTROL => {
            call.read::<EvtchnInitControl>(arg)?;
            Err(Errno::EOPNOTSUPP)
        }
        EVTCHNOP_EXPAND_ARRAY => {
            call.read::<EvtchnExpandArray>(arg)?;
            Err(Errno::EOPNOTSUPP)
        }
        EVTCHNOP_SET_PRIORITY => {
            let args: EvtchnSetPriority = call.read(arg)?;
            check_port(domain, args.port)?;
            Err(Errno::ENOSYS)
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// Reads the argument, works on it, writes it back if that went well. As in
/// Xen, a port that could not be told to the guest stays bound.
fn update<T: FromBytes + IntoBytes + FromZeros + Immutable>(
    call: &mut Call<'_>,
    arg: u64,
    work: impl FnOnce(&mut T) -> Result<(), Errno>,
) -> Reply {
    let mut args: T = call.read(arg)?;
    work(&mut args)?;
    call.write(arg, &args)?;
    Ok(0)
}

/// Whether `domid` names the caller.
fn is_own(domain: &Domain, domid: u16) -> bool {
    domid == DOMID_SELF || domid == domain.events.domain_id
}

/// The caller's own domain, or Xen's answer for another: domain 0 is there but
/// not the guest's to touch, others are not there.
fn check_own(domain: &Domain, domid: u16) -> Result<(), Errno> {
    match domid {
        _ if is_own(domain, domid) => Ok(()),
        0 => Err(Errno::EPERM),
        _ => Err(Errno::ESRCH),
    }
}

fn check_port(domain: &Domain, port: u32) -> Result<(), Errno> {
    let valid = port < read(&domain.layout).ports();
    valid.then_some(()).ok_or(Errno::EINVAL)
}

/// Puts `channel` on the lowest free port.
fn take_port(domain: &Domain, channel: Channel) -> Result<u32, Errno> {
    let _change = lock(&domain.events.change);
    take_port_locked(domain, channel)
}

fn take_port_locked(domain: &Domain, channel: Channel) -> Result<u32, Errno> {
    let limit = read(&domain.layout).ports();
    let port = domain.events.ports.find_free(limit).ok_or(Errno::ENOSPC)?;
    domain.events.ports.set(port, channel);
    Ok(port)
}

fn alloc_unbound(domain: &Domain, domid: u16, remote: u16) -> Result<u32, Errno> {
    check_own(domain, domid)?;
    let remote = if remote == DOMID_SELF { domain.events.domain_id } else { remote };
    take_port(domain, Channel { vcpu: 0, state: State::Unbound(remote) })
}

/// Binds to a port of the domain's own, or to a back end that the guest closed.
fn bind_interdomain(domain: &Domain, remote: u16, remote_port: u32) -> Result<u32, Errno> {
    let events = &domain.events;
    let local = {
        let _change = lock(&events.change);
        if is_own(domain, remote) {
            check_port(domain, remote_port)?;
            let far = events.ports.get(remote_port);
            if far.state != State::Unbound(events.domain_id) {
                return Err(Errno::EINVAL);
            }
            let near = Channel { vcpu: 0, state: State::Loop(remote_port) };
            let local = take_port_locked(domain, near)?;
            events.ports.set(remote_port, Channel { state: State::Loop(local), ..far });
            local
        } else if remote == 0 {
            let index = remote_port.checked_sub(1).ok_or(Errno::EINVAL)?;
            let mut backends = write(&events.backends);
            let slot = usize::try_from(index).ok().and_then(|slot| backends.get_mut(slot));
            let backend = slot.filter(|backend| backend.port == 0).ok_or(Errno::EINVAL)?;
            let near = Channel { vcpu: 0, state: State::Backend(index) };
            backend.port = take_port_locked(domain, near)?;
            backend.port
        } else {
            return Err(Errno::ESRCH);
        }
    };
    // What the far end sent while it was unbound is lost; look once.
    domain.set_pending(local, 0);
    Ok(local)
}

/// Per-vCPU VIRQs; every other is global and belongs to vCPU 0.
fn is_global(virq: u32) -> bool {
    !matches!(virq, VIRQ_TIMER | VIRQ_DEBUG | VIRQ_XENOPROF | VIRQ_XENPMU)
}

fn bind_virq(domain: &Domain, virq: u32, vcpu: u32) -> Result<u32, Errno> {
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
    let port = take_port_locked(domain, Channel { vcpu, state: State::Virq(virq) })?;
    // Release: partner of the Acquire in `send_virq`, which then sees the port.
    slot.store(port, Ordering::Release);
    Ok(port)
}

/// An HVM guest may bind any pirq in range; nothing raises one here.
fn bind_pirq(domain: &Domain, pirq: u32) -> Result<u32, Errno> {
    if pirq >= NR_PIRQS {
        return Err(Errno::EINVAL);
    }
    let _change = lock(&domain.events.change);
    if domain.events.ports.find(State::Pirq(pirq)).is_some() {
        return Err(Errno::EEXIST);
    }
    take_port_locked(domain, Channel { vcpu: 0, state: State::Pirq(pirq) })
}

fn close(domain: &Domain, port: u32) -> Reply {
    check_port(domain, port)?;
    let events = &domain.events;
    let change = lock(&events.change);
    let channel = events.ports.get(port);
    match channel.state {
        State::Free | State::Reserved => return Err(Errno::EINVAL),
        State::Unbound(_) | State::Ipi | State::Pirq(_) => {}
        State::Loop(far_port) => {
            let far = events.ports.get(far_port);
            let unbound = State::Unbound(events.domain_id);
            events.ports.set(far_port, Channel { state: unbound, ..far });
        }
        State::Backend(index) => {
            let mut backends = write(&events.backends);
            let slot = usize::try_from(index).ok().and_then(|slot| backends.get_mut(slot));
            if let Some(backend) = slot {
                backend.port = 0;
            }
        }
        State::Virq(virq) => {
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
    drop(change);
    // The machine may wait for its own. Whoever takes the port meanwhile is at
    // worst served here.
    match channel.state {
        State::Ipi => domain.platform.ipi_port(port, None),
        State::Virq(VIRQ_TIMER) => domain.platform.timer_port(channel.vcpu, 0),
        _ => {}
    }
    Ok(0)
}

fn send(domain: &Domain, port: u32) -> Reply {
    check_port(domain, port)?;
    let channel = domain.events.ports.get(port);
    match channel.state {
        State::Loop(far) => {
            let vcpu = domain.events.ports.get(far).vcpu;
            domain.set_pending(far, vcpu);
        }
        State::Backend(index) => {
            let on_send = {
                let backends = read(&domain.events.backends);
                let slot = usize::try_from(index).ok().and_then(|slot| backends.get(slot));
                slot.map(|backend| backend.on_send.clone())
            };
            if let Some(on_send) = on_send {
                on_send();
            }
        }
        State::Ipi => domain.set_pending(port, channel.vcpu),
        // Nobody there yet: dropped, and made good by the bind.
        State::Unbound(_) => {}
        State::Free | State::Reserved | State::Virq(_) | State::Pirq(_) => {
            return Err(Errno::EINVAL);
        }
    }
    Ok(0)
}

fn status(domain: &Domain, args: &mut EvtchnStatus) -> Result<(), Errno> {
    check_own(domain, args.dom)?;
    check_port(domain, args.port)?;
    let channel = domain.events.ports.get(args.port);
    let own = u32::from(domain.events.domain_id);
    let (status, u, u_port) = match channel.state {
        State::Free | State::Reserved => (EVTCHNSTAT_CLOSED, args.u, args.u_port),
        State::Unbound(remote) => (EVTCHNSTAT_UNBOUND, u32::from(remote), args.u_port),
        State::Loop(far) => (EVTCHNSTAT_INTERDOMAIN, own, far),
        State::Backend(index) => (EVTCHNSTAT_INTERDOMAIN, 0, index.saturating_add(1)),
        State::Pirq(pirq) => (EVTCHNSTAT_PIRQ, pirq, args.u_port),
        State::Virq(virq) => (EVTCHNSTAT_VIRQ, virq, args.u_port),
        State::Ipi => (EVTCHNSTAT_IPI, args.u, args.u_port),
    };
    (args.status, args.u, args.u_port) = (status, u, u_port);
    args.vcpu = channel.vcpu;
    Ok(())
}

fn bind_vcpu(domain: &Domain, port: u32, vcpu: u32) -> Reply {
    domain.vcpu(vcpu).ok_or(Errno::ENOENT)?;
    check_port(domain, port)?;
    let _change = lock(&domain.events.change);
    let channel = domain.events.ports.get(port);
    match channel.state {
        State::Virq(virq) if is_global(virq) => {}
        State::Unbound(_) | State::Loop(_) | State::Backend(_) | State::Pirq(_) => {}
        State::Free | State::Reserved | State::Virq(_) | State::Ipi => return Err(Errno::EINVAL),
    }
    domain.events.ports.set(port, Channel { vcpu, ..channel });
    Ok(0)
}
