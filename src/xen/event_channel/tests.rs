//! Every sub-operation of `event_channel_op`, good and bad.

use std::sync::Arc;

use xen_abi::errno::Errno;
use xen_abi::event_channel::*;
use xen_abi::xen::{DOMID_SELF, VIRQ_ARCH_0, VIRQ_CONSOLE, VIRQ_DEBUG, VIRQ_TIMER};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::super::shared_info;
use super::super::test_calls::WIDTHS;
use super::super::test_platform::{
    FakePlatform, RAM_SIZE, config, domain, domain_with, get, put, with_width,
};
use super::super::{DomainConfig, Reply};
use super::*;
use crate::pages::Width;

mod backends;
mod fifo;
mod lost_events;
mod lost_fifo;
mod random;
mod tables;

const ARG: u64 = 0x1000;
const OWN: u16 = 7;

/// Calls in the width that the domain has latched.
fn call_op(domain: &Domain, cmd: u32, arg: u64) -> Reply {
    let width = read(&domain.layout).width;
    with_width(domain, 0, width, |call| op(call, cmd.into(), arg))
}

/// A domain of a 64-bit guest, and one of a 32-bit guest.
fn both(vcpus: u32) -> [Arc<Domain>; 2] {
    WIDTHS.map(|width| {
        let (domain, ..) = domain(vcpus);
        shared_info::latch_width(&domain, width);
        domain
    })
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
    for domain in both(1) {
        assert_eq!(call_op(&domain, 15, ARG), Err(Errno::ENOSYS));
        assert_eq!(call_op(&domain, u32::MAX, ARG), Err(Errno::ENOSYS));
        for cmd in 0..=14 {
            for arg in [RAM_SIZE as u64 - 1, u64::MAX] {
                assert_eq!(call_op(&domain, cmd, arg), Err(Errno::EFAULT), "{cmd} {arg:#x}");
            }
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
        // Ports are made 64 at a time; others are not even closed.
        let made = port / 64 * 64 + 64;
        assert!(status(&domain, OWN, made - 1).is_ok(), "{port}");
        assert_eq!(status(&domain, OWN, made), Err(Errno::EINVAL), "{port}");
    }
    assert_eq!(bind_ipi(&domain, 1), Err(Errno::ENOSPC));
    assert_eq!(bind_interdomain(&domain, OWN, 1), Err(Errno::ENOSPC), "before the far end");
    assert_eq!(bind_interdomain(&domain, 5, 1), Err(Errno::ESRCH));
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
    for domain in both(2) {
        assert_eq!(bind_virq(&domain, 24, 0), Err(Errno::EINVAL));
        assert_eq!(bind_virq(&domain, u32::MAX, 0), Err(Errno::EINVAL));
        assert_eq!(bind_virq(&domain, VIRQ_CONSOLE, 1), Err(Errno::EINVAL), "global");
        assert_eq!(bind_virq(&domain, VIRQ_ARCH_0, 1), Err(Errno::EINVAL), "global");
        assert_eq!(bind_virq(&domain, VIRQ_TIMER, 2), Err(Errno::ENOENT));
        assert_eq!(bind_virq(&domain, VIRQ_TIMER, 1), Ok(1));
        assert_eq!(bind_virq(&domain, VIRQ_TIMER, 1), Err(Errno::EEXIST));
        assert_eq!(bind_virq(&domain, VIRQ_DEBUG, 1), Ok(2));
        assert_eq!(bind_virq(&domain, VIRQ_CONSOLE, 0), Ok(3));
        assert!(!domain.raise_virq(0, VIRQ_TIMER));
        assert!(!domain.raise_virq(7, VIRQ_TIMER));
        assert!(!domain.raise_virq(1, 99));
        assert_eq!(domain.events_delivered(), 0, "bound to nothing");
        assert!(domain.raise_virq(1, VIRQ_TIMER));
        assert!(domain.event_pending(1));
        assert!(domain.upcall_pending(1) && !domain.upcall_pending(0));
        // A global one may move to another vCPU, and closes all the same.
        assert_eq!(bind_vcpu(&domain, 3, 1), Ok(0));
        assert!(domain.raise_virq(9, VIRQ_CONSOLE), "whoever is named");
        assert!(domain.event_pending(3));
        assert_eq!(close(&domain, 3), Ok(0));
        assert!(!domain.raise_virq(0, VIRQ_CONSOLE));
        assert_eq!(bind_virq(&domain, VIRQ_CONSOLE, 0), Ok(3));
        assert_eq!(close(&domain, 1), Ok(0));
        assert!(!domain.event_pending(1), "closing clears what was pending");
        domain.raise_virq(1, VIRQ_TIMER);
        assert!(!domain.event_pending(1));
    }
}

#[test]
fn pirqs() {
    for domain in both(1) {
        assert_eq!(bind_pirq(&domain, 256), Err(Errno::EINVAL));
        assert_eq!(bind_pirq(&domain, u32::MAX), Err(Errno::EINVAL));
        assert_eq!(bind_pirq(&domain, 255), Ok(1));
        assert_eq!(bind_pirq(&domain, 255), Err(Errno::EEXIST));
        assert_eq!(close(&domain, 1), Ok(0));
        assert_eq!(bind_pirq(&domain, 255), Ok(1));
        bind_vcpu(&domain, 1, 0).unwrap();
        assert!(!domain.raise_pirq(254) && !domain.raise_pirq(256) && !domain.raise_pirq(u32::MAX));
        assert!(domain.raise_pirq(255) && domain.event_pending(1));
    }
}

#[test]
fn unbound_ports_and_loops() {
    for domain in both(2) {
        assert_eq!(alloc_unbound(&domain, 0, DOMID_SELF), Err(Errno::EPERM));
        assert_eq!(alloc_unbound(&domain, 8, DOMID_SELF), Err(Errno::ESRCH));
        let far = alloc_unbound(&domain, DOMID_SELF, OWN).unwrap();
        let foreign = alloc_unbound(&domain, OWN, 3).unwrap();
        assert_eq!(status(&domain, OWN, far), Ok((EVTCHNSTAT_UNBOUND, 0, OWN.into(), 0)));
        assert_eq!(status(&domain, OWN, foreign), Ok((EVTCHNSTAT_UNBOUND, 0, 3, 0)));
        assert_eq!(send(&domain, far), Ok(0), "dropped");
        assert_eq!(bind_interdomain(&domain, 3, 1), Err(Errno::ESRCH));
        assert_eq!(bind_interdomain(&domain, DOMID_SELF, 4096), Err(Errno::EINVAL));
        assert_eq!(bind_interdomain(&domain, DOMID_SELF, 60), Err(Errno::EINVAL), "free");
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
}

#[test]
fn sending_needs_a_far_end() {
    for domain in both(1) {
        let timer = bind_virq(&domain, VIRQ_TIMER, 0).unwrap();
        let pirq = bind_pirq(&domain, 4).unwrap();
        for port in [0, timer, pirq, 60, 64, 4096, u32::MAX] {
            assert_eq!(send(&domain, port), Err(Errno::EINVAL), "{port}");
        }
        for port in [0, 60, 64, 4096, u32::MAX] {
            assert_eq!(close(&domain, port), Err(Errno::EINVAL), "{port}");
        }
        let ipi = bind_ipi(&domain, 0).unwrap();
        assert_eq!(send(&domain, ipi), Ok(0));
        assert!(domain.event_pending(ipi));
    }
}

#[test]
fn status_of_each_kind() {
    for domain in both(2) {
        for (dom, errno) in [(0, Errno::EPERM), (8, Errno::ESRCH), (0x7ff1, Errno::ESRCH)] {
            assert_eq!(status(&domain, dom, 1), Err(errno));
        }
        assert_eq!(status(&domain, DOMID_SELF, 4096), Err(Errno::EINVAL));
        assert_eq!(status(&domain, DOMID_SELF, 0), Ok((EVTCHNSTAT_CLOSED, 0, 0, 0)));
        assert_eq!(status(&domain, DOMID_SELF, 63), Ok((EVTCHNSTAT_CLOSED, 0, 0, 0)));
        assert_eq!(status(&domain, DOMID_SELF, 64), Err(Errno::EINVAL));
        let virq = bind_virq(&domain, VIRQ_DEBUG, 1).unwrap();
        assert_eq!(status(&domain, DOMID_SELF, virq), Ok((EVTCHNSTAT_VIRQ, 1, VIRQ_DEBUG, 0)));
        let ipi = bind_ipi(&domain, 1).unwrap();
        assert_eq!(status(&domain, DOMID_SELF, ipi), Ok((EVTCHNSTAT_IPI, 1, 0, 0)));
        let pirq = bind_pirq(&domain, 9).unwrap();
        assert_eq!(status(&domain, DOMID_SELF, pirq), Ok((EVTCHNSTAT_PIRQ, 0, 9, 0)));
    }
}

#[test]
fn rebinding_to_a_vcpu() {
    for domain in both(2) {
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
    for domain in both(1) {
        let reset = |dom| run(&domain, EVTCHNOP_RESET, EvtchnReset { dom }).map(|_| 0);
        for _ in 0..10 {
            bind_ipi(&domain, 0).unwrap();
        }
        bind_virq(&domain, VIRQ_TIMER, 0).unwrap();
        assert_eq!(reset(0), Err(Errno::EPERM));
        assert_eq!(reset(9), Err(Errno::ESRCH));
        let go_on = |dom| run(&domain, EVTCHNOP_RESET_CONT, EvtchnReset { dom }).map(|_| 0);
        assert_eq!(go_on(0), Err(Errno::EPERM));
        assert_eq!(go_on(9), Err(Errno::ESRCH));
        assert_eq!(go_on(DOMID_SELF), Err(Errno::EBUSY), "there is none to go on with");
        assert_eq!(reset(DOMID_SELF), Ok(0));
        assert_eq!(bind_virq(&domain, VIRQ_TIMER, 0), Ok(1));
    }
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
