//! vCPUs up and down, as one and from several threads.

use xen_abi::vcpu::{
    VCPUOP_DOWN, VCPUOP_INITIALISE, VCPUOP_IS_UP, VCPUOP_REGISTER_VCPU_INFO, VCPUOP_UP,
    VcpuRegisterVcpuInfo,
};

use super::super::test_platform::{RAM_SIZE, domain, put, race, with_width};
use super::super::vcpu_op::op;
use super::super::vcpu_start::tests::{context_32bit, good_32bit};
use super::*;
use crate::pages::Width;

const ARG: u64 = 0x1000;

fn call_width(domain: &Domain, width: Width, caller: u32, cmd: u32, vcpu: u32, arg: u64) -> Reply {
    with_width(domain, caller, width, |call| op(call, cmd.into(), vcpu.into(), arg))
}

fn call_op(domain: &Domain, caller: u32, cmd: u32, vcpu: u32, arg: u64) -> Reply {
    call_width(domain, Width::Bits64, caller, cmd, vcpu, arg)
}

#[test]
fn initialise_up_down() {
    for width in [Width::Bits64, Width::Bits32] {
        let (domain, platform, clock) = domain(3);
        domain.vcpu_started(0);
        let call = |cmd, vcpu, arg| call_width(&domain, width, 0, cmd, vcpu, arg);
        assert_eq!(call(VCPUOP_IS_UP, 0, 0), Ok(1));
        assert_eq!(call(VCPUOP_IS_UP, 1, 0), Ok(0));
        assert_eq!(call(VCPUOP_UP, 1, 0), Err(Errno::EINVAL), "never initialised");
        assert_eq!(call(VCPUOP_INITIALISE, 1, RAM_SIZE as u64 - 127), Err(Errno::EFAULT));
        put(&domain, ARG, &context_32bit(&Default::default()));
        assert_eq!(call(VCPUOP_INITIALISE, 1, ARG), Err(Errno::EINVAL), "null segments");
        assert_eq!(domain.take_vcpu_start(1), None);
        put(&domain, ARG, &context_32bit(&good_32bit()));
        assert_eq!(call(VCPUOP_INITIALISE, 0, ARG), Err(Errno::EEXIST), "it runs");
        assert_eq!(call(VCPUOP_INITIALISE, 1, ARG), Ok(0));
        assert_eq!(call(VCPUOP_INITIALISE, 1, ARG), Err(Errno::EEXIST));
        assert_eq!(call(VCPUOP_IS_UP, 1, 0), Ok(0), "initialised is not up");
        assert!(platform.take().kicked.is_empty());
        assert_eq!(call(VCPUOP_UP, 1, 0), Ok(0));
        assert_eq!(call(VCPUOP_UP, 1, 0), Ok(0), "again is nothing");
        assert_eq!(platform.take().kicked, [1]);
        assert!(domain.is_vcpu_up(1));
        assert_eq!(domain.take_vcpu_start(1).map(|start| start.rip), Some(0x10_0000));
        assert_eq!(domain.take_vcpu_start(1), None, "once");
        domain.enter_runstate(1, RunState::Running);
        clock.set_ns(100);
        assert_eq!(call(VCPUOP_DOWN, 1, 0), Ok(0));
        assert_eq!(call(VCPUOP_DOWN, 1, 0), Ok(0), "again is nothing");
        assert_eq!(platform.take().kicked, [1]);
        assert_eq!(call(VCPUOP_IS_UP, 1, 0), Ok(0));
        assert_eq!(call(VCPUOP_INITIALISE, 1, ARG), Err(Errno::EEXIST), "its registers are kept");
        assert_eq!(call(VCPUOP_UP, 1, 0), Ok(0));
        assert_eq!(domain.take_vcpu_start(1), None, "it goes on where it was");
        assert_eq!(domain.shutdown_reason(), None);
    }
}

#[test]
fn a_vcpu_that_goes_down_in_its_own_call() {
    let (domain, ..) = domain(2);
    domain.vcpu_started(1);
    assert_eq!(call_op(&domain, 1, VCPUOP_DOWN, 1, 0), Ok(0));
    assert!(!domain.is_vcpu_up(1));
    // Its next call finds it up only if somebody said so.
    assert_eq!(call_op(&domain, 1, VCPUOP_IS_UP, 1, 0), Ok(0));
}

#[test]
fn started_by_its_local_apic() {
    let (domain, ..) = domain(3);
    domain.vcpu_started(1);
    assert_eq!(call_op(&domain, 0, VCPUOP_IS_UP, 1, 0), Ok(1));
    put(&domain, ARG, &context_32bit(&good_32bit()));
    assert_eq!(call_op(&domain, 0, VCPUOP_INITIALISE, 1, ARG), Err(Errno::EEXIST));
    domain.vcpu_reset(1);
    assert_eq!(call_op(&domain, 0, VCPUOP_INITIALISE, 1, ARG), Err(Errno::EEXIST), "it is up");
    assert_eq!(call_op(&domain, 0, VCPUOP_DOWN, 1, 0), Ok(0));
    domain.vcpu_reset(1);
    assert_eq!(call_op(&domain, 0, VCPUOP_UP, 1, 0), Err(Errno::EINVAL), "INIT took its state");
    assert_eq!(call_op(&domain, 0, VCPUOP_INITIALISE, 1, ARG), Ok(0));
    domain.vcpu_started(1);
    assert_eq!(domain.take_vcpu_start(1), None, "SIPI came first");
    // Making a call is proof of being up.
    assert_eq!(call_op(&domain, 2, VCPUOP_IS_UP, 2, 0), Ok(1));
}

#[test]
fn all_128_with_a_place_for_their_vcpu_info() {
    let (domain, platform, _) = domain(128);
    domain.vcpu_started(0);
    put(&domain, ARG, &context_32bit(&good_32bit()));
    for vcpu in 1..128u32 {
        if vcpu >= 32 {
            let early = call_op(&domain, 0, VCPUOP_INITIALISE, vcpu, ARG);
            assert_eq!(early, Err(Errno::EINVAL), "vCPU {vcpu} has no vcpu_info");
            let place = VcpuRegisterVcpuInfo {
                mfn: 16 + u64::from(vcpu) / 64,
                offset: vcpu % 64 * 64,
                rsvd: 0,
            };
            put(&domain, 0x2000, &place);
            let placed = call_op(&domain, 0, VCPUOP_REGISTER_VCPU_INFO, vcpu, 0x2000);
            assert_eq!(placed, Ok(0), "vCPU {vcpu}");
        }
        assert_eq!(call_op(&domain, 0, VCPUOP_INITIALISE, vcpu, ARG), Ok(0), "vCPU {vcpu}");
        assert_eq!(call_op(&domain, 0, VCPUOP_UP, vcpu, 0), Ok(0));
        assert_eq!(call_op(&domain, vcpu, VCPUOP_IS_UP, vcpu, 0), Ok(1));
    }
    assert_eq!(call_op(&domain, 0, VCPUOP_INITIALISE, 128, ARG), Err(Errno::ENOENT));
    assert_eq!(platform.take().kicked, (1..128).collect::<Vec<u32>>());
    for vcpu in (1..128).rev() {
        assert_eq!(call_op(&domain, vcpu, VCPUOP_DOWN, vcpu, 0), Ok(0));
        assert_eq!(domain.shutdown_reason(), None, "vCPU {vcpu}");
    }
    assert_eq!(call_op(&domain, 0, VCPUOP_DOWN, 0, 0), Ok(0));
    assert_eq!(domain.shutdown_reason(), Some(SHUTDOWN_POWEROFF));
}

#[test]
fn the_last_vcpu_down_takes_the_domain_down() {
    let (domain, platform, _) = domain(2);
    assert_eq!(call_op(&domain, 0, VCPUOP_DOWN, 0, 0), Ok(0));
    assert_eq!(domain.shutdown_reason(), Some(SHUTDOWN_POWEROFF));
    assert_eq!(platform.take().kicked, [0, 1]);
}

/// Two go down at once: one of them is the last.
#[test]
fn two_that_go_down_together() {
    for _ in 0..200 {
        let (domain, ..) = domain(2);
        domain.vcpu_started(1);
        let down = |vcpu| call_op(&domain, vcpu, VCPUOP_DOWN, vcpu, 0).unwrap();
        let gone = |vcpu| assert_eq!(down(vcpu), 0);
        race(1, 50, || gone(0), || gone(1), |_| ());
        assert_eq!(domain.shutdown_reason(), Some(SHUTDOWN_POWEROFF));
    }
}
