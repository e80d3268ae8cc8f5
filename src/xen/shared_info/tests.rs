//! Placing, moving and filling the shared page.

use xen_abi::arch_x86::{SharedInfo, VcpuInfo};
use xen_abi::hvm_op::{HVMOP_SET_PARAM, HvmParam};
use xen_abi::hvm_params::HVM_PARAM_CALLBACK_IRQ;
use xen_abi::hypercall::{HYPERVISOR_HVM_OP, HYPERVISOR_MEMORY_OP};
use xen_abi::memory::{AddToPhysmap32, XENMEM_ADD_TO_PHYSMAP};
use xen_abi::xen::DOMID_SELF;

use super::super::VcpuArea;
use super::super::test_calls::call;
use super::super::test_platform::{
    HIGH_RAM, HIGH_RAM_SIZE, RAM_SIZE, domain, get, is_dirty, put, race,
};
use super::*;

fn map(domain: &Domain, gfn: u64) -> Result<(), Errno> {
    place(domain, 0, gfn)
}

#[test]
fn mapping_fills_the_clocks_at_once() {
    let (domain, platform, clock) = domain(40);
    clock.set_ns(123);
    assert_eq!(map(&domain, 5), Ok(()));
    let page: SharedInfo = get(&domain, 0x5000);
    assert_eq!((page.wc_sec, page.wc_sec_hi, page.wc_nsec), (1_700_000_000, 0, 5));
    assert_eq!(page.wc_version % 2, 0);
    let time = page.vcpu_info[31].time;
    assert_eq!((time.version % 2, time.flags), (0, 1));
    // The line's base, so that every publication says the same.
    assert_eq!((time.tsc_timestamp, time.system_time), (0, 0));
    assert!(page.vcpu_info.iter().all(|info| info.time == time));
    assert!(is_dirty(&domain, 0x5000));
    assert_eq!(domain.shared_info_address(), Some(GuestAddress(0x5000)));
    assert_eq!(domain.time_page_address(0), Some(GuestAddress(0x5020)));
    assert_eq!(domain.time_page_address(32), None, "no default place beyond 32");
    let asked = platform.take();
    assert_eq!(asked.shared_info, [(Some(GuestAddress(0x5000)), true)]);
    assert_eq!(asked.areas.len(), 32);
    assert_eq!(asked.areas[31], (31, VcpuArea::VcpuInfo, Some(GuestAddress(0x57c0))));
    assert_eq!(domain.clock_page_rewrites(), 0);
}

#[test]
fn events_before_the_mapping_are_found_after_it() {
    let (domain, ..) = domain(2);
    domain.set_pending(130, 1);
    assert_eq!(map(&domain, 5), Ok(()));
    let page: SharedInfo = get(&domain, 0x5000);
    assert_eq!(page.evtchn_pending[2], 4);
    assert_eq!(page.vcpu_info[1].evtchn_pending_sel, 4);
    assert_eq!(page.vcpu_info[1].evtchn_upcall_pending, 1);
}

#[test]
fn the_contents_move_along() {
    let (domain, ..) = domain(1);
    assert_eq!(map(&domain, 5), Ok(()));
    domain.set_pending(9, 0);
    assert_eq!(map(&domain, HIGH_RAM >> 12), Ok(()));
    let old: SharedInfo = get(&domain, 0x5000);
    let new: SharedInfo = get(&domain, HIGH_RAM);
    assert_eq!(new, old, "and the clock did not need to be written anew");
    domain.set_pending(10, 0);
    assert_eq!(get::<SharedInfo>(&domain, 0x5000), old, "nobody writes there any more");
    assert_eq!(get::<SharedInfo>(&domain, HIGH_RAM).evtchn_pending[0], 0x600);
    assert_eq!(map(&domain, HIGH_RAM >> 12), Ok(()), "where it is already");
    assert_eq!(get::<SharedInfo>(&domain, HIGH_RAM).evtchn_pending[0], 0x600);
}

#[test]
fn frames_that_can_not_be() {
    let (domain, platform, _) = domain(1);
    let hole = RAM_SIZE as u64 >> 12;
    let beyond = (HIGH_RAM + HIGH_RAM_SIZE as u64) >> 12;
    for gfn in [hole, beyond, MAX_GFN - 1, MAX_GFN, u64::MAX] {
        assert_eq!(map(&domain, gfn), Err(Errno::EINVAL), "{gfn:#x}");
    }
    let backed = platform.take().backed;
    assert_eq!(backed.len(), 3, "the machine is asked for frames that may exist: {backed:?}");
    platform.refuses.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(map(&domain, 5), Err(Errno::EINVAL));
    assert_eq!(domain.shared_info_address(), None);
}

#[test]
fn a_registered_vcpu_info_stays_when_the_page_moves() {
    let (domain, platform, _) = domain(2);
    map(&domain, 5).unwrap();
    domain.set_pending(70, 1);
    register_vcpu_info(&domain, 1, 0x8040).unwrap();
    let info: VcpuInfo = get(&domain, 0x8040);
    assert_eq!((info.evtchn_pending_sel, info.evtchn_upcall_pending), (2, 1), "moved along");
    platform.take();
    map(&domain, 6).unwrap();
    let expected = (0, VcpuArea::VcpuInfo, Some(GuestAddress(0x6000)));
    assert_eq!(platform.take().areas, [expected], "only the slot that is in the page");
    assert_eq!(domain.time_page_address(1), Some(GuestAddress(0x8060)));
    assert_eq!(register_vcpu_info(&domain, 1, 0x9000), Err(Errno::EINVAL));
    assert_eq!(register_vcpu_info(&domain, 0, RAM_SIZE as u64 - 32), Err(Errno::EINVAL));
}

#[test]
fn mapping_latches_no_width() {
    let (domain, platform, _) = domain(1);
    let map = AddToPhysmap32 { domid: DOMID_SELF, gpfn: 5, ..Default::default() };
    put(&domain, 0x2000, &map);
    let args = [u64::from(XENMEM_ADD_TO_PHYSMAP), 0x2000];
    assert_eq!(call(&domain, Width::Bits32, HYPERVISOR_MEMORY_OP, &args), Ok(0));
    // The caller is 32-bit, and yet Xen keeps the 64-bit layout until it latches.
    assert_eq!(platform.take().shared_info, [(Some(GuestAddress(0x5000)), true)]);
    assert_eq!(get::<u32>(&domain, 0x5c04), 1_700_000_000);
    assert_eq!(get::<u32>(&domain, 0x5904), 0);
    assert_eq!(read(&domain.layout).ports(), 4096);
    let param = HvmParam { domid: DOMID_SELF, index: HVM_PARAM_CALLBACK_IRQ, ..Default::default() };
    put(&domain, 0x2000, &param);
    let args = [u64::from(HVMOP_SET_PARAM), 0x2000];
    assert_eq!(call(&domain, Width::Bits32, HYPERVISOR_HVM_OP, &args), Ok(0));
    assert_eq!(get::<u32>(&domain, 0x5904), 1_700_000_000);
    assert_eq!(read(&domain.layout).ports(), 1024);
}

#[test]
fn width_can_be_latched_later() {
    let (domain, _, _) = domain(1);
    assert_eq!(place(&domain, 0, 5), Ok(()));
    latch_width(&domain, Width::Bits32);
    assert_eq!(get::<u32>(&domain, 0x5904), 1_700_000_000);
    assert_eq!(read(&domain.layout).ports(), 1024);
    // 32-bit layout: mask behind 128 bytes of pending bits, selector at 4.
    domain.set_pending(33, 0);
    assert_eq!(get::<u32>(&domain, 0x5804), 2);
    assert_eq!(get::<u32>(&domain, 0x5004), 2);
    domain.set_pending(1023, 0);
    assert_eq!(get::<u32>(&domain, 0x5004), 2 | 1 << 31);
    domain.set_pending(1024, 0);
    assert_eq!(get::<u64>(&domain, 0x5880), 0, "no port there");
}

#[test]
fn updates_on_request_are_counted_only_if_they_change_something() {
    let (domain, platform, clock) = domain(2);
    map(&domain, 5).unwrap();
    platform.take();
    let before: SharedInfo = get(&domain, 0x5000);
    clock.set_ns(1 << 40);
    domain.request_clock_update(1);
    assert_eq!(platform.take().kicked, [1]);
    domain.before_entry(0);
    domain.before_entry(1);
    assert_eq!(get::<SharedInfo>(&domain, 0x5000), before, "the line holds");
    assert_eq!(domain.clock_page_rewrites(), 0);
    // Somebody scribbled on it: put right, on that vCPU's own thread.
    put(&domain, 0x5060 + 24, &7u32);
    domain.request_clock_update(1);
    domain.before_entry(0);
    assert_eq!(get::<u32>(&domain, 0x5060 + 24), 7);
    domain.before_entry(1);
    assert_ne!(get::<u32>(&domain, 0x5060 + 24), 7);
    assert_eq!(domain.clock_page_rewrites(), 1);
    domain.request_clock_update(9);
    domain.before_entry(9);
}

#[test]
fn the_wallclock_follows_its_epoch() {
    let (domain, _, clock) = domain(1);
    domain.refresh_wallclock();
    map(&domain, 5).unwrap();
    clock.epoch.lock().unwrap().sec = 1 << 32 | 9;
    domain.refresh_wallclock();
    let page: SharedInfo = get(&domain, 0x5000);
    assert_eq!((page.wc_sec, page.wc_sec_hi, page.wc_version % 2), (9, 1, 0));
}

/// Events that are raised while the page moves are in it afterwards.
#[test]
fn none_is_lost_on_the_move() {
    let (domain, ..) = domain(1);
    map(&domain, 5).unwrap();
    race(
        1500,
        200,
        || {
            let other = if domain.shared_info_address().unwrap().0 == 0x5000 { 6 } else { 5 };
            map(&domain, other).unwrap();
        },
        || domain.set_pending(77, 0),
        |round| {
            let page = domain.shared_info_address().unwrap().0;
            assert_eq!(get::<u64>(&domain, page + 0x808), 1 << 13, "round {round}");
            assert_eq!(get::<[u64; 2]>(&domain, page), [1, 2], "round {round}");
            put(&domain, page, &[0u64; 2]);
            put(&domain, page + 0x808, &0u64);
        },
    );
    assert_eq!(domain.events_delivered(), 1500);
}
