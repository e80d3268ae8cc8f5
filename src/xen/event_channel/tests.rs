//! Every sub-operation of `event_channel_op`, good and bad.

use std::sync::atomic::AtomicU32;

use xen_abi::event_channel::*;
use xen_abi::xen::{DOMID_SELF, VIRQ_ARCH_0, VIRQ_CONSOLE, VIRQ_DEBUG, VIRQ_TIMER};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::super::Reply;
use super::super::shared_info;
use super::super::test_platform::{RAM_SIZE, domain, get, put, with_call};
use super::*;

mod lost_events;

const ARG: u64 = 0x1000;
const OWN: u16 = 7;

fn call_op(domain: &Domain, cmd: u32, arg: u64) -> Reply {
    with_call(domain, 0, |call| op(call, cmd.into(), arg))
}

/// Calls with `args` and gives back what they became.
fn run<T: IntoBytes + FromBytes + Immutable>(
    domain: &Domain,
    cmd: u32,
    args: T,
) -> Result<T, Errno> {
    put(domain, ARG, &args);
    assert_eq!(call_op(domain, cmd, ARG)?, 0);
    Ok(get(domain, ARG))
}

fn bind_ipi(domain: &Domain, vcpu: u32) -> Result<u32, Errno> {
    let args = EvtchnBindIpi { vcpu, port: 0 };
    run(domain, EVTCHNOP_BIND_IPI, args).map(|args| args.port)
}

fn bind_virq(domain: &Domain, virq: u32, vcpu: u32) -> Result<u32, Errno> {
    let args = EvtchnBindVirq { virq, vcpu, port: 0 };
    run(domain, EVTCHNOP_BIND_VIRQ, args).map(|args| args.port)
}

fn bind_pirq(domain: &Domain, pirq: u32) -> Result<u32, Errno> {
    let args = EvtchnBindPirq { pirq, flags: 0, port: 0 };
    run(domain, EVTCHNOP_BIND_PIRQ, args).map(|args| args.port)
}

fn alloc_unbound(domain: &Domain, dom: u16, remote_dom: u16) -> Result<u32, Errno> {
    let args = EvtchnAllocUnbound { dom, remote_dom, port: 0 };
    run(domain, EVTCHNOP_ALLOC_UNBOUND, args).map(|args| args.port)
}

fn bind_interdomain(domain: &Domain, remote_dom: u16, remote_port: u32) -> Result<u32, Errno> {
    let args = EvtchnBindInterdomain { remote_dom, remote_port, ..Default::default() };
    run(domain, EVTCHNOP_BIND_INTERDOMAIN, args).map(|args| args.local_port)
}

fn close(domain: &Domain, port: u32) -> Reply {
    run(domain, EVTCHNOP_CLOSE, EvtchnClose { port }).map(|_| 0)
}

fn send(domain: &Domain, port: u32) -> Reply {
    run(domain, EVTCHNOP_SEND, EvtchnSend { port }).map(|_| 0)
}

fn bind_vcpu(domain: &Domain, port: u32, vcpu: u32) -> Reply {
    run(domain, EVTCHNOP_BIND_VCPU, EvtchnBindVcpu { port, vcpu }).map(|_| 0)
}

fn status(domain: &Domain, dom: u16, port: u32) -> Result<(u32, u32, u32, u32), Errno> {
    let args = EvtchnStatus { dom, port, ..Default::default() };
    run(domain, EVTCHNOP_STATUS, args).map(|args| (args.status, args.vcpu, args.u, args.u_port))
}

#[test]
fn unknown_commands_and_unreadable_arguments() {
    let (domain, ..) = domain(1);
    assert_eq!(call_op(&domain, 14, ARG), Err(Errno::ENOSYS));
    assert_eq!(call_op(&domain, u32::MAX, ARG), Err(Errno::ENOSYS));
    for cmd in 0..=13 {
        for arg in [RAM_SIZE as u64 - 1, u64::MAX] {
            assert_eq!(call_op(&domain, cmd, arg), Err(Errno::EFAULT), "{cmd} {arg:#x}");
        }
    }
}

#[test]
fn ports_are_handed_out_from_the_lowest() {
    let (domain, ..) = domain(2);
    assert_eq!(bind_ipi(&domain, 2), Err(Errno::ENOENT));
    assert_eq!(bind_ipi(&domain, u32::MAX), Err(Errno::ENOENT));
    for port in 1..4096 {
        assert_eq!(bind_ipi(&domain, 1), Ok(port));
    }
    assert_eq!(bind_ipi(&domain, 1), Err(Errno::ENOSPC));
    assert_eq!(bind_virq(&domain, VIRQ_TIMER, 0), Err(Errno::ENOSPC));
    assert_eq!(bind_pirq(&domain, 0), Err(Errno::ENOSPC));
    assert_eq!(alloc_unbound(&domain, DOMID_SELF, 0), Err(Errno::ENOSPC));
    assert!(matches!(domain.alloc_backend_port(Arc::new(|| {})), Err(Errno::ENOSPC)));
    assert_eq!(close(&domain, 77), Ok(0));
    assert_eq!(bind_ipi(&domain, 0), Ok(77));
}

#[test]
fn a_32_bit_guest_has_1024_ports() {
    let (domain, ..) = domain(1);
    shared_info::latch_width(&domain, Width::Bits32);
    for port in 1..1024 {
        assert_eq!(bind_ipi(&domain, 0), Ok(port));
    }
    assert_eq!(bind_ipi(&domain, 0), Err(Errno::ENOSPC));
    assert_eq!(send(&domain, 1024), Err(Errno::EINVAL));
}

#[test]
fn virqs() {
    let (domain, ..) = domain(2);
    assert_eq!(bind_virq(&domain, 24, 0), Err(Errno::EINVAL));
    assert_eq!(bind_virq(&domain, u32::MAX, 0), Err(Errno::EINVAL));
    assert_eq!(bind_virq(&domain, VIRQ_CONSOLE, 1), Err(Errno::EINVAL), "global");
    assert_eq!(bind_virq(&domain, VIRQ_ARCH_0, 1), Err(Errno::EINVAL), "global");
    assert_eq!(bind_virq(&domain, VIRQ_TIMER, 2), Err(Errno::ENOENT));
    assert_eq!(bind_virq(&domain, VIRQ_TIMER, 1), Ok(1));
    assert_eq!(bind_virq(&domain, VIRQ_TIMER, 1), Err(Errno::EEXIST));
    assert_eq!(bind_virq(&domain, VIRQ_DEBUG, 1), Ok(2));
    assert_eq!(bind_virq(&domain, VIRQ_CONSOLE, 0), Ok(3));
    domain.send_virq(0, VIRQ_TIMER);
    domain.send_virq(7, VIRQ_TIMER);
    domain.send_virq(1, 99);
    assert_eq!(domain.events_delivered(), 0, "bound to nothing");
    domain.send_virq(1, VIRQ_TIMER);
    assert!(domain.event_pending(1));
    assert!(domain.upcall_pending(1) && !domain.upcall_pending(0));
    // A global one may move to another vCPU, and closes all the same.
    assert_eq!(bind_vcpu(&domain, 3, 1), Ok(0));
    assert_eq!(close(&domain, 3), Ok(0));
    assert_eq!(bind_virq(&domain, VIRQ_CONSOLE, 0), Ok(3));
    assert_eq!(close(&domain, 1), Ok(0));
    assert!(!domain.event_pending(1), "closing clears what was pending");
    domain.send_virq(1, VIRQ_TIMER);
    assert!(!domain.event_pending(1));
}

#[test]
fn pirqs() {
    let (domain, ..) = domain(1);
    assert_eq!(bind_pirq(&domain, 256), Err(Errno::EINVAL));
    assert_eq!(bind_pirq(&domain, u32::MAX), Err(Errno::EINVAL));
    assert_eq!(bind_pirq(&domain, 255), Ok(1));
    assert_eq!(bind_pirq(&domain, 255), Err(Errno::EEXIST));
    assert_eq!(close(&domain, 1), Ok(0));
    assert_eq!(bind_pirq(&domain, 255), Ok(1));
}

#[test]
fn unbound_ports_and_loops() {
    let (domain, ..) = domain(2);
    assert_eq!(alloc_unbound(&domain, 0, DOMID_SELF), Err(Errno::EPERM));
    assert_eq!(alloc_unbound(&domain, 8, DOMID_SELF), Err(Errno::ESRCH));
    let far = alloc_unbound(&domain, DOMID_SELF, OWN).unwrap();
    let foreign = alloc_unbound(&domain, OWN, 3).unwrap();
    assert_eq!(status(&domain, OWN, far), Ok((EVTCHNSTAT_UNBOUND, 0, OWN.into(), 0)));
    assert_eq!(status(&domain, OWN, foreign), Ok((EVTCHNSTAT_UNBOUND, 0, 3, 0)));
    assert_eq!(send(&domain, far), Ok(0), "dropped");
    assert_eq!(bind_interdomain(&domain, 3, 1), Err(Errno::ESRCH));
    assert_eq!(bind_interdomain(&domain, DOMID_SELF, 4096), Err(Errno::EINVAL));
    assert_eq!(bind_interdomain(&domain, DOMID_SELF, 99), Err(Errno::EINVAL), "free");
    assert_eq!(bind_interdomain(&domain, DOMID_SELF, foreign), Err(Errno::EINVAL));
    assert_eq!(bind_vcpu(&domain, far, 1), Ok(0));
    let near = bind_interdomain(&domain, OWN, far).unwrap();
    assert!(domain.event_pending(near), "what was sent meanwhile is looked for");
    assert_eq!(bind_interdomain(&domain, OWN, far), Err(Errno::EINVAL), "taken");
    assert_eq!(status(&domain, OWN, near), Ok((EVTCHNSTAT_INTERDOMAIN, 0, OWN.into(), far)));
    assert_eq!(status(&domain, OWN, far), Ok((EVTCHNSTAT_INTERDOMAIN, 1, OWN.into(), near)));
    assert_eq!(send(&domain, near), Ok(0));
    assert!(domain.event_pending(far) && domain.upcall_pending(1));
    assert_eq!(close(&domain, near), Ok(0));
    assert_eq!(status(&domain, OWN, far), Ok((EVTCHNSTAT_UNBOUND, 1, OWN.into(), 0)));
    assert_eq!(bind_interdomain(&domain, OWN, far), Ok(near), "and again");
}

#[test]
fn sending_needs_a_far_end() {
    let (domain, ..) = domain(1);
    let timer = bind_virq(&domain, VIRQ_TIMER, 0).unwrap();
    let pirq = bind_pirq(&domain, 4).unwrap();
    for port in [0, timer, pirq, 100, 4095, 4096, u32::MAX] {
        assert_eq!(send(&domain, port), Err(Errno::EINVAL), "{port}");
    }
    for port in [0, 100, 4095, 4096, u32::MAX] {
        assert_eq!(close(&domain, port), Err(Errno::EINVAL), "{port}");
    }
    let ipi = bind_ipi(&domain, 0).unwrap();
    assert_eq!(send(&domain, ipi), Ok(0));
    assert!(domain.event_pending(ipi));
}

#[test]
fn status_of_each_kind() {
    let (domain, ..) = domain(2);
    for (dom, errno) in [(0, Errno::EPERM), (8, Errno::ESRCH), (0x7ff1, Errno::ESRCH)] {
        assert_eq!(status(&domain, dom, 1), Err(errno));
    }
    assert_eq!(status(&domain, DOMID_SELF, 4096), Err(Errno::EINVAL));
    assert_eq!(status(&domain, DOMID_SELF, 0), Ok((EVTCHNSTAT_CLOSED, 0, 0, 0)));
    assert_eq!(status(&domain, DOMID_SELF, 4095), Ok((EVTCHNSTAT_CLOSED, 0, 0, 0)));
    let virq = bind_virq(&domain, VIRQ_DEBUG, 1).unwrap();
    assert_eq!(status(&domain, DOMID_SELF, virq), Ok((EVTCHNSTAT_VIRQ, 1, VIRQ_DEBUG, 0)));
    let ipi = bind_ipi(&domain, 1).unwrap();
    assert_eq!(status(&domain, DOMID_SELF, ipi), Ok((EVTCHNSTAT_IPI, 1, 0, 0)));
    let pirq = bind_pirq(&domain, 9).unwrap();
    assert_eq!(status(&domain, DOMID_SELF, pirq), Ok((EVTCHNSTAT_PIRQ, 0, 9, 0)));
}

#[test]
fn rebinding_to_a_vcpu() {
    let (domain, ..) = domain(2);
    let pirq = bind_pirq(&domain, 9).unwrap();
    let ipi = bind_ipi(&domain, 0).unwrap();
    let timer = bind_virq(&domain, VIRQ_TIMER, 0).unwrap();
    assert_eq!(bind_vcpu(&domain, pirq, 1), Ok(0));
    assert_eq!(bind_vcpu(&domain, pirq, 2), Err(Errno::ENOENT));
    assert_eq!(bind_vcpu(&domain, 4096, 2), Err(Errno::ENOENT), "the vCPU is judged first");
    for port in [0, ipi, timer, 500, 4096] {
        assert_eq!(bind_vcpu(&domain, port, 1), Err(Errno::EINVAL), "{port}");
    }
}

#[test]
fn masks() {
    let (domain, platform, _) = domain(1);
    shared_info::place(&domain, 0, 5).unwrap();
    super::super::upcall::set_vector(&domain, 0, 0xf3).unwrap();
    let unmask = |port| run(&domain, EVTCHNOP_UNMASK, EvtchnUnmask { port }).map(|_| 0);
    assert_eq!(unmask(4096), Err(Errno::EINVAL));
    let port = bind_ipi(&domain, 0).unwrap();
    put(&domain, 0x5a00, &(1u64 << port));
    send(&domain, port).unwrap();
    assert_eq!(platform.take().vectors, [], "masked");
    assert!(domain.event_pending(port));
    assert_eq!(get::<u64>(&domain, 0x5008), 0);
    assert_eq!(unmask(port), Ok(0));
    assert_eq!(platform.take().vectors, [(0, 0xf3)]);
    assert_eq!(get::<u64>(&domain, 0x5008), 1);
    assert_eq!(get::<u64>(&domain, 0x5a00), 0);
    put(&domain, 0x5000, &[0u64; 2]);
    assert_eq!(unmask(port), Ok(0));
    assert_eq!(platform.take().vectors, [], "it was not masked");
}

#[test]
fn reset_closes_all() {
    let (domain, ..) = domain(1);
    let reset = |dom| run(&domain, EVTCHNOP_RESET, EvtchnReset { dom }).map(|_| 0);
    for _ in 0..10 {
        bind_ipi(&domain, 0).unwrap();
    }
    bind_virq(&domain, VIRQ_TIMER, 0).unwrap();
    assert_eq!(reset(0), Err(Errno::EPERM));
    assert_eq!(reset(9), Err(Errno::ESRCH));
    assert_eq!(reset(DOMID_SELF), Ok(0));
    assert_eq!(bind_virq(&domain, VIRQ_TIMER, 0), Ok(1));
}

#[test]
fn no_fifo() {
    let (domain, ..) = domain(1);
    let init = run(&domain, EVTCHNOP_INIT_CONTROL, EvtchnInitControl::default());
    assert_eq!(init, Err(Errno::EOPNOTSUPP));
    let expand = run(&domain, EVTCHNOP_EXPAND_ARRAY, EvtchnExpandArray::default());
    assert_eq!(expand, Err(Errno::EOPNOTSUPP));
    let args = EvtchnSetPriority { port: 4096, priority: 0 };
    assert_eq!(run(&domain, EVTCHNOP_SET_PRIORITY, args), Err(Errno::EINVAL));
    let args = EvtchnSetPriority { port: 1, priority: 0 };
    assert_eq!(run(&domain, EVTCHNOP_SET_PRIORITY, args), Err(Errno::ENOSYS));
}

#[test]
fn back_ends() {
    let (domain, ..) = domain(2);
    let heard = Arc::new(AtomicU32::new(0));
    let count = heard.clone();
    let handle = domain
        .alloc_backend_port(Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        }))
        .unwrap();
    assert_eq!(status(&domain, DOMID_SELF, handle), Ok((EVTCHNSTAT_INTERDOMAIN, 0, 0, 1)));
    assert_eq!(send(&domain, handle), Ok(0));
    assert_eq!(heard.load(Ordering::SeqCst), 1);
    assert!(!domain.event_pending(handle));
    bind_vcpu(&domain, handle, 1).unwrap();
    domain.notify_port(handle);
    assert!(domain.event_pending(handle) && domain.upcall_pending(1));
    assert_eq!(bind_interdomain(&domain, 0, 1), Err(Errno::EINVAL), "still bound");
    // The guest resets its ports and binds to the same back end again.
    assert_eq!(close(&domain, handle), Ok(0));
    domain.notify_port(handle);
    assert!(!domain.event_pending(handle), "nobody listens");
    let other = bind_ipi(&domain, 0).unwrap();
    assert_eq!(other, handle, "the number is free for others");
    for port in [0, 2, u32::MAX] {
        assert_eq!(bind_interdomain(&domain, 0, port), Err(Errno::EINVAL), "{port}");
    }
    let again = bind_interdomain(&domain, 0, 1).unwrap();
    assert!(domain.event_pending(again));
    super::super::atomic::and_u64(&domain.memory(), 0, 0);
    domain.clear_pending(again);
    domain.notify_port(handle);
    assert!(domain.event_pending(again) && !domain.event_pending(other));
    assert_eq!(send(&domain, again), Ok(0));
    assert_eq!(heard.load(Ordering::SeqCst), 2);
    domain.notify_port(999);
}

#[test]
fn a_vcpu_beyond_32_finds_its_events_on_registering() {
    let (domain, platform, _) = domain(34);
    shared_info::place(&domain, 0, 5).unwrap();
    super::super::upcall::set_vector(&domain, 33, 0xf3).unwrap();
    let port = bind_ipi(&domain, 33).unwrap();
    send(&domain, port).unwrap();
    assert_eq!(platform.take().vectors, []);
    shared_info::register_vcpu_info(&domain, 33, 0x8000).unwrap();
    domain.mark_all_pending(33);
    assert_eq!(platform.take().vectors, [(33, 0xf3)]);
    assert_eq!(get::<u64>(&domain, 0x8008), u64::MAX);
}
