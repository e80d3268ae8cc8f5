//! A domain in full use is taken out and put back: the state is the same again,
//! and what was under way goes on.

use std::sync::atomic::{AtomicU32, Ordering};

use xen_abi::event_channel::{
    EVTCHNOP_ALLOC_UNBOUND, EVTCHNOP_BIND_IPI, EVTCHNOP_BIND_VIRQ, EVTCHNOP_EXPAND_ARRAY,
    EVTCHNOP_INIT_CONTROL, EvtchnAllocUnbound, EvtchnBindIpi, EvtchnBindVirq, EvtchnExpandArray,
    EvtchnInitControl,
};
use xen_abi::hvm_params::HVM_PARAM_CALLBACK_IRQ;
use xen_abi::xen::VIRQ_TIMER;
use zerocopy::{Immutable, IntoBytes};

use super::super::test_platform::{
    FakeClock, FakePlatform, config, domain_with, get, put, with_call,
};
use super::super::{RunState, event_channel, hvm_params, shared_info, upcall};
use super::*;
use crate::pages::{RunstateArea, Width};

const ARGS: u64 = 0x1000;

fn event<T: IntoBytes + Immutable>(domain: &Domain, op: u32, args: &T) {
    put(domain, ARGS, args);
    with_call(domain, 0, |call| event_channel::op(call, op.into(), ARGS)).unwrap();
}

fn busy_config() -> DomainConfig {
    let ram = |addr, size| MemoryMapEntry { addr, size, kind: 1 };
    DomainConfig {
        memory_map: vec![ram(0, 1 << 20), ram(16 << 20, 64 << 10)],
        console_page: Some(GuestAddress(0x5000)),
        ..config(3)
    }
}

/// Events in either ABI, timers of both kinds, areas, a console, a balloon.
fn busy(fifo: bool) -> (Arc<Domain>, Arc<FakePlatform>, Arc<FakeClock>) {
    let (domain, platform, clock) = domain_with(busy_config());
    clock.set_ns(1_000_000);
    domain.vcpu_started(0);
    domain.attach_console().unwrap();
    shared_info::place(&domain, 0, 0x10).unwrap();
    shared_info::register_vcpu_info(&domain, 1, 0x1_2340).unwrap();
    domain.time_area_placed(1, Some(0x1_3000)).unwrap();
    let area = RunstateArea::new(Width::Bits64, GuestAddress(0x1_4000), None).unwrap();
    domain.place_runstate(1, Some((area, true))).unwrap();
    domain.vcpu_started(1);
    if fifo {
        for vcpu in 0..3 {
            let gfn = u64::from(0x20 + vcpu);
            let args = EvtchnInitControl { control_gfn: gfn, vcpu, ..Default::default() };
            event(&domain, EVTCHNOP_INIT_CONTROL, &args);
        }
        event(&domain, EVTCHNOP_EXPAND_ARRAY, &EvtchnExpandArray { array_gfn: 0x30 });
    }
    let virq = EvtchnBindVirq { virq: VIRQ_TIMER, vcpu: 1, port: 0 };
    event(&domain, EVTCHNOP_BIND_VIRQ, &virq);
    event(&domain, EVTCHNOP_BIND_IPI, &EvtchnBindIpi { vcpu: 2, port: 0 });
    let unbound = EvtchnAllocUnbound { dom: 0x7ff0, remote_dom: 0, port: 0 };
    event(&domain, EVTCHNOP_ALLOC_UNBOUND, &unbound);
    upcall::set_vector(&domain, 1, 0xf3).unwrap();
    hvm_params::write(&domain, Width::Bits64, HVM_PARAM_CALLBACK_IRQ, 2 << 56 | 0xf4).unwrap();
    domain.change_timers(1, |timers| {
        timers.set_periodic(7_000_000, 1_000_000);
        timers.set_singleshot(3_000_000);
    });
    domain.params.set(17, 99);
    domain.physmap.remove(0x40).unwrap();
    domain.physmap.remove(0xff).unwrap();
    domain.physmap.add_unplaced(1).unwrap();
    clock.set_ns(2_000_000);
    domain.enter_runstate(1, RunState::Blocked);
    (domain, platform, clock)
}

/// The same domain on another machine, over the same memory.
fn moved(from: &Domain) -> (Arc<Domain>, Arc<FakePlatform>, Arc<FakeClock>) {
    let state = from.snapshot().unwrap();
    let mut cbor = Vec::new();
    ciborium::into_writer(&state, &mut cbor).unwrap();
    let read: DomainState = ciborium::from_reader(cbor.as_slice()).unwrap();
    assert_eq!(read, state);
    let (_, platform, clock) = domain_with(config(1));
    let config = read.config.config(1_000_000, 2);
    let domain =
        Domain::restore(config, from.memory.clone(), clock.clone(), platform.clone(), &read);
    let domain = Arc::new(domain.unwrap());
    assert_eq!(domain.snapshot().unwrap(), state, "taken out again");
    (domain, platform, clock)
}

#[test]
fn a_new_domain_comes_back() {
    for vcpus in [1, 2, 128] {
        let (domain, ..) = domain_with(config(vcpus));
        moved(&domain);
    }
}

#[test]
fn timers_keep_their_deadlines_and_phase() {
    for fifo in [false, true] {
        let (from, ..) = busy(fifo);
        let (domain, platform, clock) = moved(&from);
        clock.set_ns(2_500_000);
        domain.go_on(0);
        assert_eq!(platform.timer_ns(1), Some(3_000_000));
        clock.set_ns(3_000_001);
        domain.timer_expired(1);
        assert!(platform.take().vectors.contains(&(1, 0xf3)), "VIRQ_TIMER by its vector");
        clock.set_ns(50_000_000);
        domain.timer_expired(1);
        let next_ns = platform.timer_ns(1).unwrap();
        from.change_timers(1, |timers| {
            assert_eq!(timers.snapshot().period_ns, 7_000_000);
            let last_ns = timers.snapshot().last_tick_ns;
            assert_eq!((next_ns - last_ns) % 7_000_000, 0, "on the old grid");
        });
    }
}

#[test]
fn events_go_where_they_went() {
    for fifo in [false, true] {
        let (from, ..) = busy(fifo);
        let ipi = from.snapshot_events().ports.iter().find(|port| port.vcpu == 2).unwrap().port;
        let (domain, platform, _) = moved(&from);
        domain.raise_channel_of(ipi);
        assert_eq!(platform.take().callbacks, [(2, 0xf4)], "fifo {fifo}");
        assert!(domain.event_pending(ipi));
        assert!(domain.events_delivered() > 0);
    }
}

impl Domain {
    fn raise_channel_of(&self, port: u32) {
        self.set_pending(port, 2);
    }
}

#[test]
fn clock_pages_are_not_written_again() {
    let (from, ..) = busy(false);
    let place = from.time_page_address(1).unwrap();
    let version: u32 = get(&from, place.0);
    let rewrites = from.clock_page_rewrites();
    let (domain, _, clock) = moved(&from);
    clock.set_ns(9_000_000);
    domain.go_on(7_000_000);
    assert_eq!(get::<u32>(&domain, place.0), version);
    assert_eq!(domain.clock_page_rewrites(), rewrites);
    assert_eq!(domain.time_area_address(1), Some(GuestAddress(0x1_3000)));
    domain.request_clock_update(1);
    domain.before_entry(1);
    assert_eq!(domain.clock_page_rewrites(), rewrites, "and says the same if it is");
}

#[test]
fn a_gap_is_stolen_time() {
    let (from, ..) = busy(false);
    let before = from.runstate_times_ns(1).unwrap();
    let (domain, _, clock) = moved(&from);
    clock.set_ns(2_000_000 + 5_000_000);
    domain.go_on(5_000_000);
    let after = domain.runstate_times_ns(1).unwrap();
    assert_eq!(after[1], before[1] + 5_000_000, "{before:?} {after:?}");
    assert_eq!(after.iter().sum::<u64>(), 7_000_000);
    // In the guest's own area too, and nothing for one that is down.
    let area = RunstateArea::new(Width::Bits64, GuestAddress(0x1_4000), None).unwrap();
    let read = crate::pages::read_runstate(&domain.memory(), &area).unwrap();
    assert_eq!(read.time_ns[1], after[1]);
    assert_eq!(domain.runstate_times_ns(2).unwrap()[1], 0);
}

#[test]
fn back_ends_are_attached_again() {
    let (from, ..) = busy(false);
    let heard = Arc::new(AtomicU32::new(0));
    let handle = from.alloc_backend_port(Arc::new(|| {})).unwrap();
    let (domain, platform, _) = moved(&from);
    let count = Arc::clone(&heard);
    let hears = move || {
        count.fetch_add(1, Ordering::SeqCst);
    };
    domain.reattach_backend(handle, Arc::new(hears)).unwrap();
    assert_eq!(heard.load(Ordering::SeqCst), 1, "once at once");
    assert!(domain.reattach_backend(77, Arc::new(|| {})).is_err());
    put(&domain, 0x5000 + 1024, b"still here");
    let prod = std::mem::offset_of!(xen_abi::console::XenconsInterface, out_prod);
    put(&domain, 0x5000 + prod as u64, &10u32);
    domain.reattach_console().unwrap();
    assert_eq!(platform.take().console, b"still here");
    platform.take();
    domain.notify_port(handle);
    assert!(domain.event_pending(handle));
}

#[test]
fn shared_info_that_is_not_mapped_goes_along() {
    let (from, ..) = domain_with(config(1));
    for _ in 0..2 {
        event(&from, EVTCHNOP_BIND_IPI, &EvtchnBindIpi { vcpu: 0, port: 0 });
    }
    from.set_pending(2, 0);
    let (domain, ..) = moved(&from);
    assert!(domain.event_pending(2) && !domain.event_pending(1));
}

#[test]
fn states_that_no_domain_has_are_refused() {
    let (from, ..) = busy(true);
    let good = from.snapshot().unwrap();
    type Spoil = fn(&mut DomainState);
    let spoils: [(&str, Spoil); 17] = [
        ("vCPUs", |state| drop(state.vcpus.pop())),
        ("more vCPUs", |state| state.vcpus.push(state.vcpus[0].clone())),
        ("registered", |state| state.layout.registered.clear()),
        ("VIRQ", |state| state.vcpus[0].virqs.push((24, 1))),
        ("valid", |state| state.events.valid = 65),
        ("valid beyond", |state| state.events.valid = 1 << 20),
        ("port", |state| state.events.ports[1].port = 1 << 16),
        ("port's vCPU", |state| state.events.ports[1].vcpu = 3),
        ("priority", |state| state.events.ports[1].priority = 16),
        ("PIRQ", |state| state.events.pirqs.push((256, 1))),
        ("array", |state| state.events.fifo.as_mut().unwrap().array = vec![0; 129]),
        ("control", |state| state.events.fifo.as_mut().unwrap().control.clear()),
        ("queue", |state| state.events.fifo.as_mut().unwrap().tails.push((48, 1))),
        ("last queue", |state| {
            state.events.fifo.as_mut().unwrap().ports.push((1, 48, false));
        }),
        ("grant version", |state| state.grants.version = 3),
        ("grant frames", |state| state.grants.shared.clear()),
        ("holes", |state| state.physmap.unplaced = 3),
    ];
    for (what, spoil) in spoils {
        let mut state = good.clone();
        spoil(&mut state);
        let (_, platform, clock) = domain_with(config(1));
        let config = good.config.config(1_000_000, 2);
        let restored = Domain::restore(config, from.memory.clone(), clock, platform, &state);
        assert!(restored.is_err(), "{what}");
    }
}

#[test]
fn pages_that_kvm_owns_can_not_be_saved() {
    let (domain, platform, _) = domain_with(config(1));
    platform.kvm_owns.store(true, Ordering::SeqCst);
    shared_info::place(&domain, 0, 0x10).unwrap();
    let error = domain.snapshot().unwrap_err().to_string();
    assert!(error.contains("--clock owned"), "{error}");
}

#[test]
fn a_suspended_domain_is_restored_suspended_and_goes_on_anew() {
    let (domain, _, clock) = busy(true);
    clock.set_ns(7_000);
    domain.shut_down(xen_abi::sched::SHUTDOWN_SUSPEND);
    clock.set_ns(9_000);
    let (restored, ..) = moved(&domain);
    assert_eq!(restored.suspended_since_ns(), Some(7_000));
    restored.resume(crate::xen::Resumed::Anew).unwrap();
    assert_eq!((restored.suspended_since_ns(), restored.shutdown_reason()), (None, None));
    assert_eq!(restored.shared_info_address(), None, "it maps it again");
}
