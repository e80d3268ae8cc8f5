//! The state machine, driven as a guest and as a machine drive it.

use vm_memory::Bytes;
use xen_abi::event_channel::{EVTCHNOP_BIND_VIRQ, EvtchnBindVirq};
use xen_abi::handover::{HANDOVER_FLAG_COUNTED, HandoverPage};
use xen_abi::hypercall::{
    HYPERVISOR_ARCH_7, HYPERVISOR_EVENT_CHANNEL_OP, HYPERVISOR_MULTICALL, HYPERVISOR_VCPU_OP,
};
use xen_abi::vcpu::VCPUOP_SEND_NMI;
use zerocopy::{FromBytes as _, IntoBytes as _};

use std::sync::Arc;

use super::super::test_calls::{ARG, WIDTHS, call};
use super::super::test_platform::{FakePlatform, RAM_SIZE, config, domain, domain_with, put};
use super::*;
use crate::pages::Width;

const FRAME: u64 = 0x20;
const NOW: Duration = Duration::ZERO;

fn handover(domain: &Domain, cmd: u32, arg: u64) -> Result<i64, Errno> {
    call(domain, Width::Bits64, HYPERVISOR_ARCH_7, &[cmd.into(), arg, 1])
}

fn page(domain: &Domain) -> HandoverPage {
    let mut bytes = [0; size_of::<HandoverPage>()];
    domain.memory().read_slice(&mut bytes, GuestAddress(FRAME * 4096)).unwrap();
    HandoverPage::read_from_bytes(&bytes).unwrap()
}

fn bind(domain: &Domain) {
    let args = EvtchnBindVirq { virq: HANDOVER_VIRQ, vcpu: 0, port: 0 };
    put(domain, ARG, &args);
    let args = [u64::from(EVTCHNOP_BIND_VIRQ), ARG];
    assert_eq!(call(domain, Width::Bits64, HYPERVISOR_EVENT_CHANNEL_OP, &args), Ok(0));
}

/// A guest that registered and listens, moved once before.
fn listening() -> (Arc<Domain>, Arc<FakePlatform>) {
    let (domain, platform, _) =
        domain_with(super::super::DomainConfig { incarnation: 2, ..config(2) });
    assert_eq!(handover(&domain, HANDOVER_REGISTER, FRAME), Ok(0));
    bind(&domain);
    (domain, platform)
}

fn moved() -> HandoverRecord {
    HandoverRecord { flags: HANDOVER_FLAG_COUNTED, tsc_delta: 5, ..HandoverRecord::default() }
}

#[test]
fn a_handover_from_asking_to_done() {
    let (domain, _) = listening();
    for round in 1..=3u32 {
        let ticket = domain.handover_ask().unwrap();
        assert_eq!(ticket, round);
        assert_eq!((page(&domain).request, page(&domain).go), (ticket, round - 1));
        assert_eq!(domain.handover_answer(ticket, NOW), HandoverAnswer::Late);
        let ticket = u64::from(ticket);
        assert_eq!(handover(&domain, HANDOVER_READY, ticket - 1), Err(Errno::ENOENT));
        assert_eq!(handover(&domain, HANDOVER_READY, ticket | 1 << 32), Err(Errno::ENOENT));
        assert_eq!(handover(&domain, HANDOVER_READY, ticket), Ok(0));
        assert_eq!(domain.handover_answer(round, NOW), HandoverAnswer::Ready);
        assert_eq!(handover(&domain, HANDOVER_READY, ticket), Err(Errno::EEXIST));
        assert_eq!(handover(&domain, HANDOVER_DONE, ticket), Err(Errno::EBUSY));
        assert_eq!(domain.handover_ask(), Err(HandoverError::Unfinished));
        // It waits.
        assert_ne!(page(&domain).go, round);
        domain.handover_moved(moved());
        let told = page(&domain);
        assert_eq!((told.request, told.go, told.seq_count), (0, round, 2 * round));
        assert_eq!((told.flags, told.move_count, told.tsc_delta), (0b111, 1, 5));
        assert_eq!(domain.handover_ask(), Err(HandoverError::Unfinished));
        assert_eq!(handover(&domain, HANDOVER_READY, ticket), Err(Errno::EEXIST));
        assert_eq!(handover(&domain, HANDOVER_DONE, ticket), Ok(0));
        assert_eq!(handover(&domain, HANDOVER_DONE, ticket), Err(Errno::ENOENT));
    }
}

#[test]
fn who_answers_from_another_thread_is_heard() {
    let (domain, _) = listening();
    let ticket = domain.handover_ask().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| handover(&domain, HANDOVER_READY, ticket.into()).unwrap());
        let answer = domain.handover_answer(ticket, Duration::from_secs(60));
        assert_eq!(answer, HandoverAnswer::Ready);
    });
}

#[test]
fn a_guest_that_stays_is_let_go_without_a_move() {
    let (domain, _) = listening();
    let ticket = domain.handover_ask().unwrap();
    // Not gathered: nobody waits.
    domain.handover_stays();
    assert_eq!(page(&domain).go, 0);
    assert_eq!(handover(&domain, HANDOVER_READY, ticket.into()), Ok(0));
    domain.handover_stays();
    let told = page(&domain);
    assert_eq!((told.go, told.flags, told.move_count, told.tsc_delta), (ticket, 0b10, 1, 0));
    assert_eq!(handover(&domain, HANDOVER_DONE, ticket.into()), Ok(0));
}

#[test]
fn an_answer_that_comes_too_late_is_no_answer() {
    let (domain, _) = listening();
    let ticket = domain.handover_ask().unwrap();
    assert_eq!(domain.handover_withdraw(ticket), HandoverAnswer::Late);
    assert_eq!(page(&domain).request, 0);
    assert_eq!(handover(&domain, HANDOVER_READY, ticket.into()), Err(Errno::ENOENT));
    // A plain move is told too, and nobody is let go.
    domain.handover_moved(moved());
    assert_eq!((page(&domain).go, page(&domain).flags), (0, 0b101));
    // One that came just in time counts.
    let ticket = domain.handover_ask().unwrap();
    assert_eq!(handover(&domain, HANDOVER_READY, ticket.into()), Ok(0));
    assert_eq!(domain.handover_withdraw(ticket), HandoverAnswer::Ready);
    assert_eq!(domain.handover_withdraw(ticket + 1), HandoverAnswer::Declined);
}

#[test]
fn a_guest_declines_or_gives_up_its_page() {
    let (domain, _) = listening();
    let ticket = domain.handover_ask().unwrap();
    assert_eq!(handover(&domain, HANDOVER_DONE, ticket.into()), Ok(0));
    assert_eq!(domain.handover_answer(ticket, NOW), HandoverAnswer::Declined);
    assert_eq!(page(&domain).request, 0);
    for gathered in [false, true] {
        assert_eq!(handover(&domain, HANDOVER_REGISTER, FRAME), Ok(0));
        let ticket = domain.handover_ask().unwrap();
        assert_eq!(handover(&domain, HANDOVER_REGISTER, FRAME), Err(Errno::EBUSY));
        if gathered {
            assert_eq!(handover(&domain, HANDOVER_READY, ticket.into()), Ok(0));
        }
        assert_eq!(handover(&domain, HANDOVER_UNREGISTER, 0), Ok(0));
        assert_eq!(domain.handover_answer(ticket, NOW), HandoverAnswer::Declined);
        assert_eq!(domain.snapshot_handover(), None);
        // Its page is the guest's own again.
        let before = page(&domain);
        domain.handover_moved(moved());
        domain.handover_stays();
        assert_eq!(page(&domain), before);
        assert_eq!(handover(&domain, HANDOVER_UNREGISTER, 0), Err(Errno::ENOENT));
        assert_eq!(domain.handover_ask(), Err(HandoverError::NotRegistered));
    }
}

#[test]
fn what_no_guest_may_ask() {
    let (domain, ..) = domain(1);
    let past_ram = RAM_SIZE as u64 / 4096;
    for frame in [past_ram, 1 << 40, u64::MAX >> 12, 1 << 52, u64::MAX] {
        let refused = handover(&domain, HANDOVER_REGISTER, frame);
        assert_eq!(refused, Err(Errno::EFAULT), "{frame:#x}");
    }
    for version in [0, 2, u64::from(u32::MAX)] {
        let args = [u64::from(HANDOVER_REGISTER), FRAME, version];
        let refused = call(&domain, Width::Bits64, HYPERVISOR_ARCH_7, &args);
        assert_eq!(refused, Err(Errno::EOPNOTSUPP));
    }
    for ticket in [0, 1, u64::from(u32::MAX), u64::MAX] {
        assert_eq!(handover(&domain, HANDOVER_READY, ticket), Err(Errno::ENOENT));
        assert_eq!(handover(&domain, HANDOVER_DONE, ticket), Err(Errno::ENOENT));
    }
    for width in WIDTHS {
        for cmd in [4, 5, 255, u64::from(u32::MAX)] {
            let refused = call(&domain, width, HYPERVISOR_ARCH_7, &[cmd, FRAME, 1]);
            assert_eq!(refused, Err(Errno::ENOSYS), "{cmd}");
        }
    }
    assert_eq!(domain.handover_phase(), None);
    // Registered, and deaf.
    assert_eq!(handover(&domain, HANDOVER_REGISTER, FRAME), Ok(0));
    assert_eq!(domain.handover_ask(), Err(HandoverError::NotBound));
    assert_eq!(
        (page(&domain).request, domain.handover_phase()),
        (0, Some((HandoverPhase::Idle, 1)))
    );
}

#[test]
fn a_32_bit_guest_and_a_multicall() {
    let (domain, ..) = domain(1);
    let high = 0xdead_beef << 32;
    let args = [high | u64::from(HANDOVER_REGISTER), high | FRAME, high | 1];
    assert_eq!(call(&domain, Width::Bits32, HYPERVISOR_ARCH_7, &args), Ok(0));
    assert_eq!(page(&domain).size, 0x68);
    let entry = [HYPERVISOR_ARCH_7, 0, u64::from(HANDOVER_UNREGISTER), 0, 0, 0, 0, 0];
    domain.memory().write_slice(entry.as_bytes(), GuestAddress(ARG)).unwrap();
    assert_eq!(call(&domain, Width::Bits64, HYPERVISOR_MULTICALL, &[ARG, 1]), Ok(0));
    assert_eq!(domain.handover_phase(), None);
}

#[test]
fn nmis_wait_for_the_end_of_a_handover() {
    let (domain, platform) = listening();
    let send = |vcpu: u64| {
        let args = [u64::from(VCPUOP_SEND_NMI), vcpu, 0];
        call(&domain, Width::Bits64, HYPERVISOR_VCPU_OP, &args)
    };
    let nmis = || platform.take().nmis;
    assert_eq!((send(1), nmis()), (Ok(0), vec![1]));
    let ticket = domain.handover_ask().unwrap();
    assert_eq!((send(1), send(0), send(1), nmis()), (Ok(0), Ok(0), Ok(0), vec![]));
    assert_eq!(handover(&domain, HANDOVER_READY, ticket.into()), Ok(0));
    domain.handover_moved(moved());
    assert!(nmis().is_empty());
    assert_eq!(handover(&domain, HANDOVER_DONE, ticket.into()), Ok(0));
    assert_eq!(nmis(), [0, 1], "each vCPU's once");
    assert_eq!((send(0), nmis()), (Ok(0), vec![0]));
    // Nobody waits any more: they come.
    let ticket = domain.handover_ask().unwrap();
    assert_eq!((send(1), nmis()), (Ok(0), vec![]));
    assert_eq!(domain.handover_withdraw(ticket), HandoverAnswer::Late);
    assert_eq!(nmis(), [1]);
}

/// The same guest on another machine, moved once more.
fn elsewhere(from: &Domain) -> (Arc<Domain>, Arc<FakePlatform>) {
    let (state, handover) = (from.snapshot().unwrap(), from.snapshot_handover().unwrap());
    let mut cbor = Vec::new();
    ciborium::into_writer(&handover, &mut cbor).unwrap();
    let handover: HandoverState = ciborium::from_reader(cbor.as_slice()).unwrap();
    let (_, platform, clock) = domain_with(config(1));
    let incarnation = from.config().incarnation + 1;
    let config = super::super::DomainConfig { incarnation, ..from.config().clone() };
    let memory = from.memory.clone();
    let domain = Domain::restore(config, memory, clock, platform.clone(), &state).unwrap();
    domain.restore_handover(&handover).unwrap();
    assert_eq!(domain.snapshot_handover(), Some(handover));
    (Arc::new(domain), platform)
}

#[test]
fn a_guest_restored_in_the_middle_finishes() {
    let (from, _) = listening();
    let ticket = from.handover_ask().unwrap();
    let nmi = [u64::from(VCPUOP_SEND_NMI), 1, 0];
    assert_eq!(call(&from, Width::Bits64, HYPERVISOR_VCPU_OP, &nmi), Ok(0));
    assert_eq!(handover(&from, HANDOVER_READY, ticket.into()), Ok(0));
    let (domain, platform) = elsewhere(&from);
    domain.handover_moved(moved());
    let told = page(&domain);
    assert_eq!((told.go, told.flags, told.move_count), (ticket, 0b111, 2));
    // Moved again before it said so: the newest record, and it is not asked.
    let (domain, platform) = {
        assert!(platform.take().nmis.is_empty());
        elsewhere(&domain)
    };
    domain.handover_moved(moved());
    let told = page(&domain);
    assert_eq!((told.go, told.flags, told.move_count, told.seq_count), (ticket, 0b101, 3, 4));
    assert_eq!(domain.handover_ask(), Err(HandoverError::Unfinished));
    assert_eq!(handover(&domain, HANDOVER_DONE, ticket.into()), Ok(0));
    assert_eq!(platform.take().nmis, [1]);
    assert_eq!(domain.handover_ask(), Ok(ticket + 1));
    // Asked, and restored where nobody asks.
    let (domain, _) = elsewhere(&domain);
    domain.handover_moved(moved());
    let told = page(&domain);
    assert_eq!((told.request, told.go, told.flags, told.move_count), (0, ticket, 0b101, 4));
    assert_eq!(handover(&domain, HANDOVER_READY, u64::from(ticket) + 1), Err(Errno::ENOENT));
    assert_eq!(domain.handover_ask(), Ok(ticket + 2));
}

#[test]
fn a_saved_handover_that_no_guest_has_is_refused() {
    let (domain, _) = listening();
    let good = domain.snapshot_handover().unwrap();
    let bad = [
        HandoverState { page: 0x2_0004, ..good.clone() },
        HandoverState { page: 1 << 40, ..good.clone() },
        HandoverState { page: u64::MAX << 12, ..good.clone() },
        HandoverState { held_nmis: vec![0, 2], ..good.clone() },
    ];
    for bad in bad {
        assert!(domain.restore_handover(&bad).is_err(), "{bad:?}");
    }
    assert_eq!(domain.snapshot_handover(), Some(good));
}

#[test]
fn tickets_wrap_past_0() {
    let (domain, _) = listening();
    let last = HandoverState { ticket: u32::MAX, ..domain.snapshot_handover().unwrap() };
    domain.restore_handover(&last).unwrap();
    assert_eq!(domain.handover_ask(), Ok(1));
}
