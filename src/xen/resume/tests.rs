//! A guest that suspended finds what its call's answer says.

use xen_abi::hvm_params::{HVM_PARAM_CONSOLE_EVTCHN, HVM_PARAM_STORE_EVTCHN};
use xen_abi::sched::SHUTDOWN_POWEROFF;

use super::*;
use crate::xen::event_channel;
use crate::xen::test_calls::full_domain;
use crate::xen::test_platform::{config, domain_with, with_call};
use crate::xen::{DomainConfig, VcpuArea};

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
    let (domain, platform, clock) = full_domain();
    let (at, area) = (domain.shared_info_address(), domain.time_page_address(0));
    assert!(at.is_some());
    platform.take();
    clock.set_ns(1000);
    lock(&clock.epoch).sec += 30;
    domain.shut_down(SHUTDOWN_SUSPEND);
    assert!(domain.is_suspended());
    domain.vcpu_suspended(0);
    domain.resume(Resumed::Cancelled).unwrap();
    domain.vcpu_resumed(0);
    assert!(!domain.is_suspended() && domain.shutdown_reason().is_none());
    assert_eq!((domain.shared_info_address(), domain.time_page_address(0)), (at, area));
    let epoch = *lock(&clock.epoch);
    assert_eq!(domain.wallclock_page(), Some(epoch), "UTC is right");
    assert!(platform.take().areas.is_empty());
}

#[test]
fn anew_takes_everything_away() {
    let (domain, platform, clock) = full_domain();
    with_call(&domain, 0, |call| {
        call.domain.change_timers(0, |timers| timers.set_singleshot(5_000));
    });
    let console = domain.console.port().unwrap();
    let ports = domain.events.valid_ports();
    clock.set_ns(1000);
    domain.shut_down(SHUTDOWN_SUSPEND);
    platform.take();
    domain.resume(Resumed::Anew).unwrap();
    assert_eq!(domain.shared_info_address(), None);
    assert_eq!(domain.time_page_address(0), None);
    assert_eq!(platform.timer_ns(0), None);
    assert_eq!(domain.runstate_times_ns(0), Some([0; 4]));
    assert_eq!(domain.hvm_params().get(HVM_PARAM_CONSOLE_EVTCHN), u64::from(console));
    assert_eq!(domain.hvm_params().get(HVM_PARAM_CALLBACK_IRQ), 0);
    assert_eq!(domain.hvm_params().get(HVM_PARAM_STORE_EVTCHN), 0, "it has no store");
    assert_eq!(domain.grants.version(), 1);
    let asked = platform.take();
    assert!(asked.areas.contains(&(0, VcpuArea::VcpuInfo, None)));
    assert_eq!(asked.shared_info, [(None, true)]);
    for port in 1..ports {
        let free = with_call(&domain, 0, |call| event_channel::op(call, 99, 0)).is_err();
        assert!(free);
        assert_eq!(domain.event_pending(port), false);
    }
    // The console still reaches its guest, at the same port.
    domain.notify_port(console);
    assert!(domain.event_pending(console));
}
