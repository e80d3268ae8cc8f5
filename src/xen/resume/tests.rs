//! A guest that suspended finds what its call's answer says.

use std::sync::Arc;

use vm_memory::GuestAddress;
use xen_abi::event_channel::{
    EVTCHNOP_BIND_IPI, EVTCHNOP_BIND_VIRQ, EvtchnBindIpi, EvtchnBindVirq,
};
use xen_abi::grant_table::GNTTAB_RESERVED_XENSTORE;
use xen_abi::hvm_params::{HVM_PARAM_CONSOLE_EVTCHN, HVM_PARAM_STORE_EVTCHN};
use xen_abi::hypercall::{
    HYPERVISOR_EVENT_CHANNEL_OP, HYPERVISOR_MEMORY_OP, HYPERVISOR_SCHED_OP, HYPERVISOR_VCPU_OP,
};
use xen_abi::memory::{
    AddToPhysmap, XENMAPSPACE_GRANT_TABLE, XENMAPSPACE_SHARED_INFO, XENMEM_ADD_TO_PHYSMAP,
};
use xen_abi::sched::{SCHEDOP_SHUTDOWN, SHUTDOWN_POWEROFF};
use xen_abi::vcpu::{VCPUOP_REGISTER_VCPU_INFO, VCPUOP_SET_SINGLESHOT_TIMER};
use xen_abi::xen::{DOMID_SELF, VIRQ_TIMER};

use super::*;
use crate::pages::Width;
use crate::xen::test_calls::{ARG, call, full_config, full_domain, outcome};
use crate::xen::test_platform::{FakeClock, FakePlatform, config, domain_with, get, put};
use crate::xen::{DomainConfig, Outcome, VcpuArea};

const SHARED_INFO: u64 = 0x20;
const GRANTS: u64 = 0x21;
const INFO: u64 = 0x22;
const STORE: u64 = 0x5000;
const VECTOR: u8 = 0xf3;

type Made = (Arc<Domain>, Arc<FakePlatform>, Arc<FakeClock>);

fn ask(domain: &Domain, number: u64, args: &[u64]) -> i64 {
    call(domain, Width::Bits64, number, args).unwrap()
}

/// What Linux sets up, at boot and after it was resumed anew.
fn set_up(domain: &Domain) {
    for (space, gpfn) in [(XENMAPSPACE_SHARED_INFO, SHARED_INFO), (XENMAPSPACE_GRANT_TABLE, GRANTS)]
    {
        put(domain, ARG, &AddToPhysmap { domid: DOMID_SELF, size: 0, space, idx: 0, gpfn });
        ask(domain, HYPERVISOR_MEMORY_OP, &[XENMEM_ADD_TO_PHYSMAP.into(), ARG]);
    }
    put(domain, ARG, &INFO);
    put(domain, ARG + 8, &0u64);
    ask(domain, HYPERVISOR_VCPU_OP, &[VCPUOP_REGISTER_VCPU_INFO.into(), 0, ARG]);
    upcall::set_vector(domain, 0, VECTOR).unwrap();
}

/// Binds the timer's VIRQ and an IPI; their ports.
fn bind(domain: &Domain) -> [u32; 2] {
    put(domain, ARG, &EvtchnBindVirq { virq: VIRQ_TIMER, vcpu: 0, port: 0 });
    ask(domain, HYPERVISOR_EVENT_CHANNEL_OP, &[EVTCHNOP_BIND_VIRQ.into(), ARG]);
    let virq = get::<EvtchnBindVirq>(domain, ARG).port;
    put(domain, ARG, &EvtchnBindIpi { vcpu: 0, port: 0 });
    ask(domain, HYPERVISOR_EVENT_CHANNEL_OP, &[EVTCHNOP_BIND_IPI.into(), ARG]);
    [virq, get::<EvtchnBindIpi>(domain, ARG).port]
}

/// A guest that suspended, and its ports.
fn suspended() -> (Made, [u32; 2]) {
    let made = domain_with(DomainConfig { store_page: Some(GuestAddress(STORE)), ..full_config() });
    let (domain, platform, clock) = &made;
    domain.attach_console().unwrap();
    domain.attach_xenstore("x").unwrap();
    set_up(domain);
    let ports = bind(domain);
    put(domain, ARG, &[5_000u64, 0]);
    ask(domain, HYPERVISOR_VCPU_OP, &[VCPUOP_SET_SINGLESHOT_TIMER.into(), 0, ARG]);
    assert_eq!(platform.timer_ns(0), Some(5_000));
    clock.set_ns(1000);
    put(domain, ARG, &SHUTDOWN_SUSPEND);
    let args = [SCHEDOP_SHUTDOWN.into(), ARG];
    let shut_down = outcome(domain, Width::Bits64, HYPERVISOR_SCHED_OP, &args);
    assert_eq!(shut_down, Outcome::Shutdown(SHUTDOWN_SUSPEND));
    assert!(domain.is_suspended());
    domain.vcpu_suspended(0);
    platform.take();
    (made, ports)
}

#[test]
fn requests_wait_for_the_guests_offer() {
    let page = Some(vm_memory::GuestAddress(0x5000));
    let (domain, _, _) = domain_with(DomainConfig { store_page: page, ..config(1) });
    domain.attach_xenstore("x").unwrap();
    let request = || domain.request_shutdown(ShutdownRequest::Suspend);
    assert_eq!(request(), Err(RenewError::NotOffered("suspend")));
    domain.store_write("control/feature-suspend", b"1").unwrap();
    assert_eq!(request(), Ok(()));
    assert_eq!(domain.store_read("control/shutdown"), Ok(b"suspend".to_vec()));
    assert_eq!(request(), Err(RenewError::Busy));
    domain.store_write("control/shutdown", b"").unwrap();
    let poweroff = domain.request_shutdown(ShutdownRequest::Poweroff);
    assert_eq!(poweroff, Err(RenewError::NotOffered("poweroff")));
}

#[test]
fn only_what_is_suspended_goes_on() {
    let (domain, _, _) = full_domain();
    assert_eq!(domain.resume(Resumed::Anew), Err(RenewError::NotSuspended));
    domain.shut_down(SHUTDOWN_POWEROFF);
    assert_eq!(domain.resume(Resumed::Cancelled), Err(RenewError::NotSuspended));
}

#[test]
fn cancelled_leaves_all_as_it_was() {
    let ((domain, platform, clock), ports) = suspended();
    lock(&clock.epoch).sec += 30;
    clock.set_ns(3_000);
    domain.resume(Resumed::Cancelled).unwrap();
    domain.vcpu_resumed(0);
    assert!(!domain.is_suspended() && domain.shutdown_reason().is_none());
    assert_eq!(domain.shared_info_address(), Some(GuestAddress(SHARED_INFO << 12)));
    assert_eq!(domain.time_page_address(0), Some(GuestAddress((INFO << 12) + 32)));
    let epoch = *lock(&clock.epoch);
    assert_eq!(domain.wallclock_page(), Some(epoch), "UTC is right");
    // Suspended since 1000: neither running nor stolen.
    assert_eq!(domain.runstate_times_ns(0).map(|times| times[3]), Some(2_000));
    assert!(platform.take().areas.is_empty());
    // It had taken what came before.
    put(&domain, INFO << 12, &[0u64; 2]);
    clock.set_ns(5_000);
    domain.timer_expired(0);
    assert!(domain.event_pending(ports[0]), "its timer is as it was");
    assert_eq!(platform.take().vectors, [(0, VECTOR)]);
}

#[test]
fn anew_takes_everything_away() {
    let ((domain, platform, clock), ports) = suspended();
    let (console, store) = (domain.console.port().unwrap(), domain.xenstore.port().unwrap());
    let pages = domain.physmap.pages();
    domain.resume(Resumed::Anew).unwrap();
    domain.vcpu_resumed(0);
    assert_eq!(domain.shared_info_address(), None);
    assert_eq!(domain.time_page_address(0), None);
    assert_eq!(platform.timer_ns(0), None);
    assert_eq!(domain.runstate_times_ns(0), Some([0; 4]));
    let params = domain.hvm_params();
    assert_eq!(params.get(HVM_PARAM_CONSOLE_EVTCHN), u64::from(console));
    assert_eq!(params.get(HVM_PARAM_STORE_EVTCHN), u64::from(store));
    assert_eq!(params.get(HVM_PARAM_CALLBACK_IRQ), 0);
    let asked = platform.take();
    assert!(asked.areas.contains(&(0, VcpuArea::VcpuInfo, None)));
    assert_eq!(asked.shared_info, [(None, true)]);
    assert!(!domain.physmap.is_present(SHARED_INFO) && !domain.physmap.is_present(GRANTS));
    assert_eq!(domain.physmap.pages(), pages, "the pages were Xen's");
    // Nothing reaches the guest, and its memory is left alone.
    domain.notify_port(console);
    domain.timer_expired(0);
    assert!(domain.event_pending(console) && !domain.event_pending(ports[0]));
    assert!(platform.take().vectors.is_empty());
    assert_eq!(get::<u64>(&domain, (SHARED_INFO << 12) + 0x800), 0);
    // It makes it all again, as at boot, and finds what came meanwhile.
    clock.set_ns(9_000);
    lock(&clock.epoch).sec += 8;
    set_up(&domain);
    assert_eq!(platform.take().vectors, [(0, VECTOR)]);
    assert_eq!(bind(&domain), ports, "the lowest that are free, as before");
    assert_eq!(domain.wallclock_page(), Some(*lock(&clock.epoch)));
    let mask: [u64; 65] = get(&domain, (SHARED_INFO << 12) + 0xa00);
    assert!(mask[..64].iter().all(|word| *word == u64::MAX) && mask[64] != u64::MAX);
    let grant = (GRANTS << 12) + u64::from(GNTTAB_RESERVED_XENSTORE) * 8;
    assert_eq!(get::<u32>(&domain, grant + 4), 5, "the store's page");
}

#[test]
fn anew_twice() {
    let ((domain, ..), ports) = suspended();
    for _ in 0..2 {
        domain.resume(Resumed::Anew).unwrap();
        set_up(&domain);
        assert_eq!(bind(&domain), ports);
        domain.shut_down(SHUTDOWN_SUSPEND);
    }
}
