//! `vcpu_op`: what its sub-operations do; their refusals are in `tables`.

mod tables;

use xen_abi::arch_x86::{VcpuInfo, VcpuTimeInfo};
use xen_abi::vcpu::VCPUOP_REGISTER_VCPU_INFO as REGISTER_INFO;
use xen_abi::vcpu::{VcpuRunstateInfo, VcpuRunstateInfo32};

use super::super::test_platform::{
    FakeVcpu, HIGH_RAM, RAM_SIZE, config, domain, domain_with, get, put, with_call, with_width,
};
use super::super::{DomainConfig, PageOwner, RunState, VcpuArea};
use super::*;

/// Where arguments are put.
const ARG: u64 = 0x1000;

fn call_op(domain: &Domain, caller: u32, cmd: u32, vcpu: u32, arg: u64) -> Reply {
    with_call(domain, caller, |call| op(call, cmd.into(), vcpu.into(), arg))
}

fn info_arg(mfn: u64, offset: u32) -> VcpuRegisterVcpuInfo {
    VcpuRegisterVcpuInfo { mfn, offset, rsvd: 0 }
}

#[test]
fn runstate_info_in_both_widths() {
    let (domain, _, clock) = domain(2);
    clock.set_ns(1000);
    domain.enter_runstate(0, RunState::Running);
    clock.set_ns(1700);
    assert_eq!(call_op(&domain, 1, VCPUOP_GET_RUNSTATE_INFO, 0, ARG), Ok(0));
    let info: VcpuRunstateInfo = get(&domain, ARG);
    assert_eq!((info.state, info.state_entry_time), (0, 1000));
    assert_eq!(info.time, [700, 0, 0, 1000]);
    let narrow_reply = with_width(&domain, 0, Width::Bits32, |call| {
        op(call, VCPUOP_GET_RUNSTATE_INFO.into(), 0, ARG + 256)
    });
    assert_eq!(narrow_reply, Ok(0));
    let info: VcpuRunstateInfo32 = get(&domain, ARG + 256);
    let (entry, time) = (info.state_entry_time, info.time);
    assert_eq!((entry, time), (1000, [700, 0, 0, 1000]));
    assert_eq!(get::<u32>(&domain, ARG + 256 + 44), 0, "44 bytes, not 48");
}

#[test]
fn runstate_area_by_virtual_address() {
    let (domain, _, clock) = domain(1);
    clock.set_ns(10);
    let register = |vcpu: &mut FakeVcpu, linear: u64| {
        put(&domain, ARG, &linear);
        let mut call = Call::new(&domain, vcpu, Width::Bits64);
        op(&mut call, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA.into(), 0, ARG)
    };
    let mut vcpu = FakeVcpu { holes: vec![0x30], moved: vec![(0x21, 0x40)], ..FakeVcpu::new(0) };
    assert_eq!(register(&mut vcpu, 0x2_0ff0), Ok(0), "its second page is elsewhere");
    domain.enter_runstate(0, RunState::Running);
    assert_eq!(get::<u32>(&domain, 0x2_0ff0), 0);
    assert_eq!(get::<u64>(&domain, 0x2_0ff8), 10);
    assert_eq!(get::<u64>(&domain, 0x4_0000 + 24), 10, "time[offline] behind the page's end");
    assert_eq!(register(&mut vcpu, 0x2_fff0), Err(Errno::EFAULT), "second page not mapped");
    assert_eq!(register(&mut vcpu, 0x3_0000), Err(Errno::EFAULT));
    assert_eq!(register(&mut vcpu, u64::MAX - 8), Err(Errno::EFAULT), "wraps");
    assert_eq!(register(&mut vcpu, 0x2_0001), Err(Errno::EINVAL), "misaligned");
    assert_eq!(register(&mut vcpu, 0), Ok(0), "removed");
    clock.set_ns(20);
    domain.enter_runstate(0, RunState::Blocked);
    assert_eq!(get::<u64>(&domain, 0x2_0ff8), 10);
}

#[test]
fn a_32_bit_handle_is_four_bytes() {
    let (domain, _, clock) = domain(1);
    clock.set_ns(10);
    // The last four bytes of RAM: eight could not be read.
    let end = RAM_SIZE as u64 - 4;
    put(&domain, end, &0x5000u32);
    for cmd in [VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA] {
        let reply = |width| with_width(&domain, 0, width, |call| op(call, cmd.into(), 0, end));
        assert_eq!(reply(Width::Bits64), Err(Errno::EFAULT));
        assert_eq!(reply(Width::Bits32), Ok(0));
        put(&domain, end, &0x6000u32);
    }
    assert_eq!(domain.time_area_address(0), Some(GuestAddress(0x6000)));
    assert_eq!(get::<u64>(&domain, 0x5008), 10, "the runstate in the domain's layout");
}

#[test]
fn time_area_is_filled_at_once_and_stable() {
    let (domain, platform, clock) = domain(1);
    clock.set_ns(5_000_000_000);
    let register = |linear: u64| {
        put(&domain, ARG, &linear);
        call_op(&domain, 0, VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, 0, ARG)
    };
    assert_eq!(register(0x8000), Ok(0));
    let time: VcpuTimeInfo = get(&domain, 0x8000);
    assert_eq!(time.version % 2, 0);
    assert_ne!((time.version, time.tsc_to_system_mul), (0, 0));
    assert_eq!(time.flags, 1, "PVCLOCK_TSC_STABLE_BIT");
    assert_eq!(domain.time_area_address(0), Some(GuestAddress(0x8000)));
    for (linear, expected) in [
        (0x8fe4, Err(Errno::EINVAL)),
        (0x8002, Err(Errno::EINVAL)),
        (RAM_SIZE as u64, Ok(0)), // nobody reads there; nothing is written
        (0, Ok(0)),
    ] {
        assert_eq!(register(linear), expected, "{linear:#x}");
    }
    assert_eq!(domain.time_area_address(0), None);
    assert_eq!(platform.take().areas.len(), 3);
    assert_eq!(domain.clock_page_rewrites(), 0);
}

#[test]
fn an_area_that_kvm_owns_is_left_alone() {
    let (domain, platform, _) = domain(1);
    platform.kvm_owns.store(true, Ordering::SeqCst);
    put(&domain, ARG, &0x8000u64);
    assert_eq!(call_op(&domain, 0, VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, 0, ARG), Ok(0));
    put(&domain, ARG, &info_arg(9, 0));
    assert_eq!(call_op(&domain, 0, REGISTER_INFO, 0, ARG), Ok(0));
    domain.request_clock_update(0);
    domain.before_entry(0);
    assert_eq!(get::<VcpuTimeInfo>(&domain, 0x8000), VcpuTimeInfo::default());
    assert_eq!(get::<VcpuInfo>(&domain, 0x9000).time, VcpuTimeInfo::default());
    let _: PageOwner = PageOwner::Kvm;
}

#[test]
fn vcpu_info_registration() {
    let (domain, platform, _) = domain(40);
    let register = |caller: u32, vcpu: u32, mfn: u64, offset: u32| {
        put(&domain, ARG, &info_arg(mfn, offset));
        call_op(&domain, caller, REGISTER_INFO, vcpu, ARG)
    };
    assert_eq!(register(0, 0, 9, 4096 - 64), Ok(0));
    let info: VcpuInfo = get(&domain, 0x9fc0);
    assert_eq!(info.evtchn_upcall_pending, 1, "nothing raised meanwhile is lost");
    assert_eq!(info.evtchn_pending_sel, u64::MAX);
    assert_eq!(info.time.flags, 1);
    assert_eq!(domain.time_page_address(0), Some(GuestAddress(0x9fe0)));
    assert_eq!(register(0, 0, 10, 0), Err(Errno::EINVAL), "twice");
    // Others: only while they are down.
    assert_eq!(register(0, 1, 11, 0), Ok(0));
    domain.vcpu_started(2);
    assert_eq!(register(0, 2, 12, 0), Err(Errno::EINVAL));
    assert_eq!(register(2, 2, 12, 0), Ok(0));
    // Beyond 32 there is no default place.
    assert_eq!(register(0, 39, 12, 64), Ok(0));
    assert_eq!(get::<VcpuInfo>(&domain, 0xc040).evtchn_upcall_pending, 1);
    // Refused by the machine: as if it had not been asked for.
    platform.refuses.store(true, Ordering::SeqCst);
    assert_eq!(register(0, 5, 13, 0), Err(Errno::EINVAL));
    platform.refuses.store(false, Ordering::SeqCst);
    assert_eq!(register(0, 5, 14, 0), Ok(0));
}

#[test]
fn a_32_bit_vcpu_info_needs_4_bytes_of_alignment() {
    let (domain, ..) = domain(1);
    shared_info::latch_width(&domain, Width::Bits32);
    put(&domain, ARG, &info_arg(9, 4));
    assert_eq!(call_op(&domain, 0, REGISTER_INFO, 0, ARG), Ok(0));
    assert_eq!(get::<u8>(&domain, 0x9004), 1);
    assert_eq!(get::<u32>(&domain, 0x9008), u32::MAX);
}

#[test]
fn singleshot_timer() {
    let (domain, platform, clock) = domain(2);
    clock.set_ns(1000);
    let set = |caller, vcpu, timeout_abs_ns, flags| {
        put(&domain, ARG, &VcpuSetSingleshotTimer { timeout_abs_ns, flags, ..Default::default() });
        call_op(&domain, caller, VCPUOP_SET_SINGLESHOT_TIMER, vcpu, ARG)
    };
    assert_eq!(set(0, 0, 5000, VCPU_SSHOTTMR_FUTURE), Ok(0));
    assert_eq!(platform.timer_ns(0), Some(5000));
    assert_eq!(set(0, 1, 5000, 0), Err(Errno::EINVAL), "of another vCPU");
    assert_eq!(set(0, 0, 999, VCPU_SSHOTTMR_FUTURE), Err(Errno::ETIME));
    assert_eq!(platform.timer_ns(0), Some(5000), "the timer stays as it was");
    assert_eq!(set(0, 0, 1000, VCPU_SSHOTTMR_FUTURE), Ok(0));
    assert_eq!(platform.timer_ns(0), None, "due at once");
    assert_eq!(set(0, 0, 999, 0), Ok(0));
    assert_eq!(set(0, 0, 6000, 0), Ok(0));
    assert_eq!(call_op(&domain, 0, VCPUOP_STOP_SINGLESHOT_TIMER, 1, 0), Err(Errno::EINVAL));
    assert_eq!(call_op(&domain, 0, VCPUOP_STOP_SINGLESHOT_TIMER, 0, 0), Ok(0));
    assert_eq!(platform.timer_ns(0), None);
    // The 32-bit structure is 12 bytes: the last of RAM are enough.
    let end = RAM_SIZE as u64 - 12;
    put(&domain, end, &7000u64);
    let narrow_reply = with_width(&domain, 0, Width::Bits32, |call| {
        op(call, VCPUOP_SET_SINGLESHOT_TIMER.into(), 0, end)
    });
    assert_eq!((narrow_reply, platform.timer_ns(0)), (Ok(0), Some(7000)));
}

#[test]
fn periodic_timer() {
    let (domain, platform, clock) = domain(2);
    let set = |vcpu, period_ns| {
        put(&domain, ARG, &VcpuSetPeriodicTimer { period_ns });
        call_op(&domain, 0, VCPUOP_SET_PERIODIC_TIMER, vcpu, ARG)
    };
    for period_ns in [0, 1, MIN_PERIOD_NS - 1, MAX_PERIOD_NS + 1, u64::MAX] {
        assert_eq!(set(0, period_ns), Err(Errno::EINVAL), "{period_ns}");
    }
    assert_eq!(set(1, MIN_PERIOD_NS), Ok(0), "of any vCPU");
    assert_eq!(platform.timer_ns(1), Some(MIN_PERIOD_NS));
    clock.set_ns(MIN_PERIOD_NS * 3 + 1);
    domain.timer_expired(1);
    assert_eq!(platform.timer_ns(1), Some(MIN_PERIOD_NS * 4));
    assert_eq!(call_op(&domain, 0, VCPUOP_STOP_PERIODIC_TIMER, 1, 0), Ok(0));
    assert_eq!(platform.timer_ns(1), None);
    assert_eq!(set(0, MAX_PERIOD_NS), Ok(0));
}
