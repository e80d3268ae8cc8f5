//! Which interrupt tells a vCPU of its events.

use xen_abi::arch_x86::SharedInfo;

use super::super::shared_info;
use super::super::test_platform::{domain, get, put};
use super::*;

const PAGE: u64 = 0x5000;

/// The guest takes its upcall: clears pending and selector.
fn take(domain: &Domain, vcpu: u64) {
    put(domain, PAGE + vcpu * 64, &0u8);
    put(domain, PAGE + vcpu * 64 + 8, &0u64);
    put(domain, PAGE + 0x800, &[0u64; 64]);
}

#[test]
fn callback_values() {
    let cases = [
        (0, CallbackVia::None),
        (0x100, CallbackVia::None), // only 8 bits are the GSI
        (9, CallbackVia::Gsi(9)),
        (0x1ff, CallbackVia::Gsi(255)),
        (1 << 56 | 0x1801, CallbackVia::PciIntx(0x1801)),
        (2 << 56 | 0xf3, CallbackVia::Vector(0xf3)),
        (2 << 56 | 0x1_00f3, CallbackVia::Vector(0xf3)),
        (3 << 56 | 1, CallbackVia::None),
        (u64::MAX, CallbackVia::None),
    ];
    for (value, via) in cases {
        assert_eq!(decode(value), via, "{value:#x}");
    }
}

#[test]
fn a_vcpus_own_vector_comes_first() {
    let (domain, platform, _) = domain(2);
    shared_info::place(&domain, 0, PAGE >> 12).unwrap();
    assert_eq!(set_callback_via(&domain, 2 << 56 | 0xf3), Ok(()));
    assert_eq!(set_vector(&domain, 1, 0x0f), Err(Errno::EINVAL));
    assert_eq!(set_vector(&domain, 2, 0xf2), Err(Errno::ENOENT));
    assert_eq!(set_vector(&domain, 1, 0x10), Ok(()));
    domain.set_pending(1, 0);
    domain.set_pending(2, 1);
    let asked = platform.take();
    assert_eq!(asked.callbacks, [(0, 0xf3)]);
    assert_eq!(asked.vectors, [(1, 0x10)]);
    assert_eq!(asked.via, Some(CallbackVia::Vector(0xf3)));
}

#[test]
fn one_interrupt_until_it_is_taken() {
    let (domain, platform, _) = domain(1);
    shared_info::place(&domain, 0, PAGE >> 12).unwrap();
    set_vector(&domain, 0, 0xf3).unwrap();
    for port in [1, 2, 65, 2] {
        domain.set_pending(port, 0);
    }
    assert_eq!(platform.take().vectors, [(0, 0xf3)]);
    assert_eq!(domain.events_delivered(), 3);
    let page: SharedInfo = get(&domain, PAGE);
    assert_eq!((page.evtchn_pending[0], page.evtchn_pending[1]), (6, 2));
    assert_eq!(page.vcpu_info[0].evtchn_pending_sel, 3);
    take(&domain, 0);
    domain.set_pending(2, 0);
    assert_eq!(platform.take().vectors, [(0, 0xf3)]);
}

#[test]
fn events_that_came_first_are_told_of_once_there_is_a_way() {
    let (domain, platform, _) = domain(2);
    domain.set_pending(1, 0);
    assert_eq!(platform.take().vectors, []);
    set_vector(&domain, 0, 0xf3).unwrap();
    set_vector(&domain, 1, 0xf3).unwrap();
    assert_eq!(platform.take().vectors, [(0, 0xf3)]);
    domain.set_pending(2, 1);
    platform.take();
    set_callback_via(&domain, 2 << 56 | 0x40).unwrap();
    assert_eq!(platform.take().vectors, [(0, 0xf3), (1, 0xf3)], "their own vectors still");
}

#[test]
fn the_gsi_follows_vcpu_0() {
    let (domain, platform, _) = domain(2);
    shared_info::place(&domain, 0, PAGE >> 12).unwrap();
    set_callback_via(&domain, 9).unwrap();
    domain.set_pending(1, 1);
    assert_eq!(platform.take().gsis, [], "not for other vCPUs");
    domain.set_pending(2, 0);
    domain.before_entry(0);
    assert_eq!(platform.take().gsis, [(9, true)]);
    take(&domain, 0);
    domain.before_entry(1);
    assert_eq!(platform.take().gsis, [], "not another vCPU's business");
    domain.before_entry(0);
    domain.before_entry(0);
    assert_eq!(platform.take().gsis, [(9, false)]);
    domain.set_pending(3, 0);
    // Another way is chosen while the line is up.
    set_callback_via(&domain, 2 << 56 | 0xf3).unwrap();
    let asked = platform.take();
    assert_eq!(asked.gsis, [(9, true), (9, false)]);
    assert_eq!(asked.callbacks, [(0, 0xf3), (1, 0xf3)]);
}

#[test]
fn a_way_that_the_machine_refuses_changes_nothing() {
    let (domain, platform, _) = domain(1);
    set_callback_via(&domain, 2 << 56 | 0xf3).unwrap();
    platform.refuses.store(true, Ordering::SeqCst);
    assert_eq!(set_callback_via(&domain, 9), Err(Errno::EINVAL));
    domain.set_pending(1, 0);
    assert_eq!(platform.take().callbacks, [(0, 0xf3)]);
}

/// The guest ends the interrupt, and the machine lets go of the line: up again
/// if there is something new, and only then.
#[test]
fn the_gsi_after_the_end_of_its_interrupt() {
    let (domain, platform, _) = domain(1);
    shared_info::place(&domain, 0, PAGE >> 12).unwrap();
    set_callback_via(&domain, 9).unwrap();
    domain.set_pending(1, 0);
    assert_eq!(platform.take().gsis, [(9, true)]);
    take(&domain, 0);
    domain.callback_gsi_ended();
    assert_eq!(platform.take().gsis, [], "it is down already");
    domain.before_entry(0);
    assert_eq!(platform.take().gsis, []);
    domain.set_pending(1, 0);
    take(&domain, 0);
    // Between the guest's look at its events and the end of the interrupt.
    domain.set_pending(2, 0);
    assert_eq!(platform.take().gsis, [(9, true)], "still up for the first");
    domain.callback_gsi_ended();
    assert_eq!(platform.take().gsis, [(9, true)]);
    set_callback_via(&domain, 0).unwrap();
    platform.take();
    domain.callback_gsi_ended();
    assert_eq!(platform.take().gsis, [], "there is no such line any more");
}
