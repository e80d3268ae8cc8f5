//! Every sub-operation of `sched_op`, good and bad; polls and their wake-ups.

use std::cell::Cell;

use xen_abi::event_channel::{EVTCHNOP_BIND_IPI, EvtchnBindIpi};
use xen_abi::sched::{
    SHUTDOWN_CRASH, SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT, SHUTDOWN_SOFT_RESET, SHUTDOWN_SUSPEND,
};

use super::super::test_platform::{RAM_SIZE, domain, put, race, with_call, with_width};
use super::super::{event_channel, shared_info};
use super::*;

const ARG: u64 = 0x1000;
const PORTS: u64 = 0x2000;

fn call_op(domain: &Domain, vcpu: u32, cmd: u32, arg: u64) -> Result<Outcome, Errno> {
    with_call(domain, vcpu, |call| op(call, cmd.into(), arg))
}

fn call_poll(domain: &Domain, ports: &[u32], timeout: u64) -> Result<Outcome, Errno> {
    put(domain, PORTS, ports);
    let nr_ports = u32::try_from(ports.len()).unwrap();
    put(domain, ARG, &SchedPoll { ports: PORTS, nr_ports, timeout, ..Default::default() });
    call_op(domain, 0, SCHEDOP_POLL, ARG)
}

const DONE: Result<Outcome, Errno> = Ok(Outcome::Return(0));

#[test]
fn yield_and_unknown() {
    let (domain, ..) = domain(1);
    assert_eq!(call_op(&domain, 0, SCHEDOP_YIELD, 0), Ok(Outcome::Yield));
    assert_eq!(call_op(&domain, 0, 8, 0), Err(Errno::ENOSYS));
    assert_eq!(call_op(&domain, 0, u32::MAX, 0), Err(Errno::ENOSYS));
}

#[test]
fn unreadable_arguments() {
    let (domain, ..) = domain(1);
    for cmd in [
        SCHEDOP_SHUTDOWN,
        SCHEDOP_SHUTDOWN_CODE,
        SCHEDOP_POLL,
        SCHEDOP_REMOTE_SHUTDOWN,
        SCHEDOP_WATCHDOG,
    ] {
        assert_eq!(call_op(&domain, 0, cmd, RAM_SIZE as u64), Err(Errno::EFAULT), "{cmd}");
        assert_eq!(call_op(&domain, 0, cmd, u64::MAX), Err(Errno::EFAULT), "{cmd}");
    }
    assert_eq!(domain.shutdown_reason(), None);
}

#[test]
fn shutdown_takes_every_reason_and_keeps_the_first() {
    let reasons = [
        SHUTDOWN_POWEROFF,
        SHUTDOWN_REBOOT,
        SHUTDOWN_SUSPEND,
        SHUTDOWN_CRASH,
        SHUTDOWN_WATCHDOG,
        SHUTDOWN_SOFT_RESET,
        255,
    ];
    for reason in reasons {
        let (domain, platform, _) = domain(2);
        // Xen keeps 8 bits.
        put(&domain, ARG, &SchedShutdown { reason: reason | 0x100 });
        assert_eq!(call_op(&domain, 1, SCHEDOP_SHUTDOWN, ARG), Ok(Outcome::Shutdown(reason)));
        assert_eq!(domain.shutdown_reason(), Some(reason));
        assert_eq!(platform.take().kicked, [0, 1]);
        put(&domain, ARG, &SchedShutdown { reason: 1 });
        assert_eq!(call_op(&domain, 0, SCHEDOP_SHUTDOWN, ARG), Ok(Outcome::Shutdown(reason)));
    }
}

#[test]
fn an_announced_code_overrides_the_reason() {
    let (domain, ..) = domain(1);
    put(&domain, ARG, &SchedShutdown { reason: SHUTDOWN_CRASH });
    assert_eq!(call_op(&domain, 0, SCHEDOP_SHUTDOWN_CODE, ARG), DONE);
    assert_eq!(domain.shutdown_reason(), None, "announced only");
    put(&domain, ARG, &SchedShutdown { reason: SHUTDOWN_REBOOT });
    assert_eq!(call_op(&domain, 0, SCHEDOP_SHUTDOWN_CODE, ARG), DONE);
    let outcome = call_op(&domain, 0, SCHEDOP_SHUTDOWN, ARG);
    assert_eq!(outcome, Ok(Outcome::Shutdown(SHUTDOWN_CRASH)));
}

#[test]
fn others_may_not_be_shut_down_nor_vcpus_pinned() {
    let (domain, ..) = domain(1);
    for (domain_id, errno) in [(0, Errno::EPERM), (7, Errno::EPERM), (8, Errno::ESRCH)] {
        put(&domain, ARG, &SchedRemoteShutdown { domain_id, ..Default::default() });
        assert_eq!(call_op(&domain, 0, SCHEDOP_REMOTE_SHUTDOWN, ARG), Err(errno));
    }
    assert_eq!(call_op(&domain, 0, SCHEDOP_PIN_OVERRIDE, ARG), Err(Errno::EPERM));
    assert_eq!(call_op(&domain, 0, SCHEDOP_PIN_OVERRIDE, u64::MAX), Err(Errno::EPERM));
}

#[test]
fn watchdogs() {
    let (domain, platform, clock) = domain(2);
    let set = |id, timeout| {
        put(&domain, ARG, &SchedWatchdog { id, timeout });
        call_op(&domain, 1, SCHEDOP_WATCHDOG, ARG)
    };
    let second = 1_000_000_000;
    assert_eq!(set(1, 5), Err(Errno::EINVAL), "not taken");
    assert_eq!(set(3, 5), Err(Errno::EINVAL));
    assert_eq!(set(u32::MAX, 0), Err(Errno::EINVAL));
    assert_eq!(set(0, 5), Ok(Outcome::Return(1)));
    assert_eq!(set(0, 3), Ok(Outcome::Return(2)));
    assert_eq!(set(0, 9), Err(Errno::ENOSPC));
    assert_eq!(platform.timer_ns(0), Some(3 * second), "vCPU 0's deadline carries them");
    assert_eq!(set(2, 0), DONE);
    assert_eq!(platform.timer_ns(0), Some(5 * second));
    clock.set_ns(4 * second);
    assert_eq!(set(1, 5), DONE, "kicked");
    clock.set_ns(5 * second);
    domain.timer_expired(0);
    assert_eq!(domain.shutdown_reason(), None);
    clock.set_ns(9 * second);
    domain.timer_expired(0);
    assert_eq!(domain.shutdown_reason(), Some(SHUTDOWN_WATCHDOG));
    assert_eq!(platform.take().kicked, [0, 1]);
}

#[test]
fn poll_arguments() {
    let (domain, _, clock) = domain(1);
    clock.set_ns(1000);
    assert_eq!(call_poll(&domain, &[4096], 0), Err(Errno::EINVAL));
    assert_eq!(call_poll(&domain, &[1, u32::MAX], 0), Err(Errno::EINVAL));
    assert!(!domain.still_waiting(0));
    assert_eq!(call_poll(&domain, &[1; 129], 0), Err(Errno::EINVAL));
    assert_eq!(call_poll(&domain, &[1; 128], 0), Ok(Outcome::Wait { deadline_ns: None }));
    for ports in [RAM_SIZE as u64 - 2, u64::MAX - 1] {
        put(&domain, ARG, &SchedPoll { ports, nr_ports: 2, timeout: 0, ..Default::default() });
        assert_eq!(call_op(&domain, 0, SCHEDOP_POLL, ARG), Err(Errno::EFAULT));
    }
    // Absolute system time; past and negative ones are over at once.
    let wait = Ok(Outcome::Wait { deadline_ns: Some(1001) });
    assert_eq!(call_poll(&domain, &[1], 1001), wait);
    assert!(domain.still_waiting(0));
    domain.before_entry(0);
    assert!(!domain.still_waiting(0));
    for timeout in [1, 999, 1000, 1 << 63, u64::MAX] {
        assert_eq!(call_poll(&domain, &[1], timeout), DONE, "{timeout}");
        assert!(!domain.still_waiting(0));
    }
    put(&domain, ARG, &SchedPoll32 { ports: 0x2000, nr_ports: 1, timeout: 0 });
    let narrow = with_width(&domain, 0, Width::Bits32, |call| op(call, SCHEDOP_POLL.into(), ARG));
    assert_eq!(narrow, Ok(Outcome::Wait { deadline_ns: None }));
}

/// Binds ports 1 to `count`.
fn bind_ipis(domain: &Domain, vcpu: u32, count: u32) {
    for port in 1..=count {
        put(domain, ARG, &EvtchnBindIpi { vcpu, port: 0 });
        let bound = with_call(domain, 0, |call| {
            event_channel::op(call, EVTCHNOP_BIND_IPI.into(), ARG)?;
            call.read::<EvtchnBindIpi>(ARG)
        });
        assert_eq!(bound.unwrap().port, port);
    }
}

#[test]
fn events_end_a_poll_of_theirs() {
    let (domain, platform, _) = domain(2);
    domain.set_pending(5, 1);
    let waits = Ok(Outcome::Wait { deadline_ns: None });
    assert_eq!(call_poll(&domain, &[3, 5], 0), waits, "nobody has bound it");
    domain.before_entry(0);
    bind_ipis(&domain, 1, 12);
    domain.set_pending(5, 1);
    assert_eq!(call_poll(&domain, &[3, 5], 0), DONE, "pending already");
    assert_eq!(call_poll(&domain, &[6], 0), waits);
    domain.set_pending(7, 1);
    assert!(domain.still_waiting(0), "another port");
    domain.set_pending(6, 1);
    assert!(!domain.still_waiting(0));
    assert_eq!(platform.take().woken, [0]);
    domain.before_entry(0);
    // More than one port: any event ends it, as under Xen.
    assert_eq!(call_poll(&domain, &[8, 9], 0), waits);
    domain.set_pending(10, 1);
    assert!(!domain.still_waiting(0));
    domain.before_entry(0);
    // Its own upcall ends it too: the interrupt wants to be taken.
    assert_eq!(call_poll(&domain, &[11], 0), waits);
    domain.set_pending(12, 0);
    assert!(!domain.still_waiting(0));
    // And one that came since the last entry keeps it from waiting.
    assert_eq!(call_poll(&domain, &[11], 0), DONE);
    domain.before_entry(0);
    assert_eq!(call_poll(&domain, &[11], 0), waits);
    // So does the end of the domain.
    domain.shut_down(0);
    assert!(!domain.still_waiting(0));
}

#[test]
fn events_that_the_machine_delivers_are_looked_for() {
    let (domain, platform, _) = domain(1);
    shared_info::place(&domain, 0, 5).unwrap();
    bind_ipis(&domain, 0, 1);
    let pending = 0x5000 + shared_info::Layout::pending_offset(1);
    for (delivers, ports) in [(false, &[1][..]), (true, &[1]), (true, &[2, 3])] {
        platform.delivers.store(delivers, Ordering::SeqCst);
        put(&domain, pending, &0u64);
        let waits = Ok(Outcome::Wait { deadline_ns: None });
        assert_eq!(call_poll(&domain, ports, 0), waits);
        assert!(domain.still_waiting(0));
        put(&domain, pending, &2u64);
        assert_eq!(domain.still_waiting(0), !delivers, "{ports:?}");
        domain.before_entry(0);
    }
}

#[test]
fn block_waits_for_an_upcall() {
    let (domain, platform, clock) = domain(1);
    clock.set_ns(50);
    let waits = Ok(Outcome::Wait { deadline_ns: Some(50 + BLOCK_RECHECK_NS) });
    assert_eq!(call_op(&domain, 0, SCHEDOP_BLOCK, 0), waits);
    domain.set_pending(3, 0);
    assert!(!domain.still_waiting(0));
    assert_eq!(platform.take().woken, [0]);
    assert_eq!(call_op(&domain, 0, SCHEDOP_BLOCK, 0), DONE, "an upcall is pending");
}

#[test]
fn waiting_is_time_blocked() {
    let (domain, _, clock) = domain(1);
    domain.seen_running(0);
    clock.set_ns(100);
    assert!(matches!(call_poll(&domain, &[1], 500), Ok(Outcome::Wait { .. })));
    clock.set_ns(500);
    domain.before_entry(0);
    clock.set_ns(600);
    domain.before_entry(0);
    assert_eq!(domain.runstate_times_ns(0), Some([200, 0, 400, 0]));
}

/// A vCPU polls a masked port that another thread raises: the event must not
/// pass it by, whether it comes before, during or after its decision to wait.
#[test]
fn no_wake_up_is_lost() {
    const PAGE: u64 = 0x1_0000;
    let (domain, ..) = domain(2);
    shared_info::place(&domain, 0, PAGE >> 12).unwrap();
    bind_ipis(&domain, 1, 1);
    // Masked: no upcall, only the poll sees it.
    put(&domain, PAGE + 0xa00, &u64::MAX);
    // Many ports after the one that is raised: a long way from looking at it
    // to waiting.
    let ports: Vec<u32> = std::iter::once(1).chain((0..99).map(|n| 2 + n % 60)).collect();
    let waited = Cell::new(0);
    race(
        2000,
        1000,
        || match call_poll(&domain, &ports, 0) {
            Ok(Outcome::Wait { deadline_ns: None }) => waited.set(waited.get() + 1),
            outcome => assert_eq!(outcome, DONE),
        },
        || domain.set_pending(1, 1),
        |round| {
            assert!(!domain.still_waiting(0), "round {round}: asleep over a pending event");
            domain.before_entry(0);
            put(&domain, PAGE + 0x800, &0u64);
        },
    );
    println!("waited in {} of 2000 rounds", waited.get());
}
