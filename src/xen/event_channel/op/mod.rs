//! `event_channel_op`: the guest makes, uses and closes ports.

mod bind;
mod close;

use xen_abi::errno::Errno;
use xen_abi::event_channel::*;
use xen_abi::xen::DOMID_SELF;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::super::domain::{Domain, lock, read};
use super::super::{Call, Reply};
use super::sources::is_global;
use super::{Channel, State, fifo};

/// `event_channel_op`.
///
/// # Errors
/// `EFAULT` for an argument that can not be read or written, `ENOSYS` for an
/// unknown command, otherwise as each command states.
pub(in super::super) fn op(call: &mut Call<'_>, cmd: u64, arg: u64) -> Reply {
    let domain = call.domain;
    match u32::try_from(cmd).map_err(|_| Errno::ENOSYS)? {
        EVTCHNOP_ALLOC_UNBOUND => update(call, arg, |call, args: &mut EvtchnAllocUnbound| {
            args.port = bind::alloc_unbound(call, args.dom, args.remote_dom)?;
            Ok(())
        }),
        EVTCHNOP_BIND_INTERDOMAIN => update(call, arg, |call, args: &mut EvtchnBindInterdomain| {
            args.local_port = bind::interdomain(call, args.remote_dom, args.remote_port)?;
            Ok(())
        }),
        EVTCHNOP_BIND_VIRQ => update(call, arg, |call, args: &mut EvtchnBindVirq| {
            args.port = bind::virq(call, args.virq, args.vcpu)?;
            Ok(())
        }),
        EVTCHNOP_BIND_PIRQ => update(call, arg, |call, args: &mut EvtchnBindPirq| {
            args.port = bind::pirq(call, args.pirq)?;
            Ok(())
        }),
        EVTCHNOP_BIND_IPI => update(call, arg, |call, args: &mut EvtchnBindIpi| {
            args.port = bind::ipi(call, args.vcpu)?;
            Ok(())
        }),
        EVTCHNOP_STATUS => update(call, arg, |_, args: &mut EvtchnStatus| status(domain, args)),
        EVTCHNOP_CLOSE => {
            let args: EvtchnClose = call.read(arg)?;
            close::close(domain, args.port)
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
            domain.unmask(args.port);
            Ok(0)
        }
        EVTCHNOP_RESET => {
            let args: EvtchnReset = call.read(arg)?;
            check_own(domain, args.dom)?;
            close::reset(call)
        }
        EVTCHNOP_RESET_CONT => {
            // Xen's continuation of a long reset. Here a reset is done when it
            // returns, so there is never one to go on with.
            let args: EvtchnReset = call.read(arg)?;
            check_own(domain, args.dom)?;
            Err(Errno::EBUSY)
        }
        // As a Xen from before the FIFO ABI: guests stay with 2 levels.
        EVTCHNOP_INIT_CONTROL | EVTCHNOP_EXPAND_ARRAY | EVTCHNOP_SET_PRIORITY
            if !domain.config.fifo_events =>
        {
            Err(Errno::ENOSYS)
        }
        EVTCHNOP_INIT_CONTROL => update(call, arg, |call, args: &mut EvtchnInitControl| {
            spend_ports(call, domain.events.valid_ports())?;
            fifo::init_control(domain, args)
        }),
        EVTCHNOP_EXPAND_ARRAY => {
            let args: EvtchnExpandArray = call.read(arg)?;
            spend_ports(call, 1024)?;
            fifo::expand_array(domain, &args).map(|()| 0)
        }
        EVTCHNOP_SET_PRIORITY => {
            let args: EvtchnSetPriority = call.read(arg)?;
            fifo::set_priority(domain, &args).map(|()| 0)
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// Reads the argument, works on it, writes it back if that went well. As in
/// Xen, a port that could not be told to the guest stays bound.
fn update<T: FromBytes + IntoBytes + FromZeros + Immutable>(
    call: &mut Call<'_>,
    arg: u64,
    work: impl FnOnce(&mut Call<'_>, &mut T) -> Result<(), Errno>,
) -> Reply {
    let mut args: T = call.read(arg)?;
    work(call, &mut args)?;
    call.write(arg, &args)?;
    Ok(0)
}

/// Accounts for a look at this many ports; some 64 are as a page copied.
fn spend_ports(call: &mut Call<'_>, ports: u32) -> Result<(), Errno> {
    call.spend_many(u64::from(ports / 64))
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

/// That the port exists, bound or not.
pub(super) fn check_port(domain: &Domain, port: u32) -> Result<(), Errno> {
    let valid = port < domain.events.valid_ports();
    valid.then_some(()).ok_or(Errno::EINVAL)
}

fn send(domain: &Domain, port: u32) -> Reply {
    check_port(domain, port)?;
    let channel = domain.events.ports.get(port);
    match channel.state {
        State::Loop(far) => {
            let far_end = domain.events.ports.get(far);
            // Closed meanwhile: dropped, as if it had come before the closing.
            if far_end.state == State::Loop(port) {
                domain.raise_channel(far, far_end);
            }
        }
        State::Backend(index) => {
            let on_send = read(&domain.events.backends).on_send(index);
            if let Some(on_send) = on_send {
                on_send();
            }
        }
        State::Ipi => domain.raise_channel(port, channel),
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
    // A domain's number is 16 bits of the union's first word; Xen leaves the
    // rest of it, and what a state does not use, as the guest had it.
    let dom = |id: u16| args.u & 0xffff_0000 | u32::from(id);
    let (status, u, u_port) = match channel.state {
        State::Free | State::Reserved => (EVTCHNSTAT_CLOSED, args.u, args.u_port),
        State::Unbound(remote) => (EVTCHNSTAT_UNBOUND, dom(remote), args.u_port),
        State::Loop(far) => (EVTCHNSTAT_INTERDOMAIN, dom(domain.events.domain_id), far),
        State::Backend(index) => (EVTCHNSTAT_INTERDOMAIN, dom(0), index.saturating_add(1)),
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
