//! Every sub-operation of `sched_op`, good and bad, in both widths.

use super::super::super::test_calls::{NOWHERE, WIDTHS};
use super::super::super::test_platform::{HIGH_RAM, get};
use super::*;

/// The caller's own number, that of `test_platform::config`.
const OWN: u32 = 7;

fn call_in(domain: &Domain, width: Width, cmd: u64, arg: u64) -> Result<Outcome, Errno> {
    with_width(domain, 0, width, |call| op(call, cmd, arg))
}

/// Polls `nr_ports` ports at `ports`, until an event comes.
fn poll_at(domain: &Domain, width: Width, ports: u64, nr_ports: u32) -> Result<Outcome, Errno> {
    match width {
        Width::Bits64 => put(domain, ARG, &SchedPoll { ports, nr_ports, ..Default::default() }),
        Width::Bits32 => {
            let ports = u32::try_from(ports).unwrap();
            put(domain, ARG, &SchedPoll32 { ports, nr_ports, timeout: 0 });
        }
    }
    call_in(domain, width, SCHEDOP_POLL.into(), ARG)
}

#[test]
fn every_command() {
    // (command, its structure's words, the answer)
    let table: &[(u32, &[u32], Result<Outcome, Errno>)] = &[
        (SCHEDOP_YIELD, &[], Ok(Outcome::Yield)),
        (SCHEDOP_SHUTDOWN_CODE, &[SHUTDOWN_CRASH], DONE),
        (SCHEDOP_SHUTDOWN_CODE, &[0x1ff], DONE),
        (SCHEDOP_REMOTE_SHUTDOWN, &[0, SHUTDOWN_CRASH], Err(Errno::EPERM)),
        (SCHEDOP_REMOTE_SHUTDOWN, &[OWN, SHUTDOWN_CRASH], Err(Errno::EPERM)),
        (SCHEDOP_REMOTE_SHUTDOWN, &[OWN + 1, SHUTDOWN_CRASH], Err(Errno::ESRCH)),
        // A number of 16 bits, and `DOMID_SELF` is none here.
        (SCHEDOP_REMOTE_SHUTDOWN, &[1 << 16 | OWN, SHUTDOWN_CRASH], Err(Errno::EPERM)),
        (SCHEDOP_REMOTE_SHUTDOWN, &[0x7ff0, SHUTDOWN_CRASH], Err(Errno::ESRCH)),
        (SCHEDOP_WATCHDOG, &[1, 5], Err(Errno::EINVAL)),
        (SCHEDOP_WATCHDOG, &[1, 0], Err(Errno::EINVAL)),
        (SCHEDOP_WATCHDOG, &[3, 5], Err(Errno::EINVAL)),
        (SCHEDOP_WATCHDOG, &[u32::MAX, 0], Err(Errno::EINVAL)),
        (SCHEDOP_WATCHDOG, &[0, 5], Ok(Outcome::Return(1))),
        (SCHEDOP_WATCHDOG, &[0, u32::MAX], Ok(Outcome::Return(2))),
        (SCHEDOP_WATCHDOG, &[0, 5], Err(Errno::ENOSPC)),
        (SCHEDOP_WATCHDOG, &[2, 9], DONE),
        (SCHEDOP_WATCHDOG, &[2, 0], DONE),
        (SCHEDOP_WATCHDOG, &[2, 0], Err(Errno::EINVAL)),
        (SCHEDOP_WATCHDOG, &[0, 5], Ok(Outcome::Return(2))),
        (SCHEDOP_PIN_OVERRIDE, &[0], Err(Errno::EPERM)),
        (8, &[], Err(Errno::ENOSYS)),
        (64, &[], Err(Errno::ENOSYS)),
        (u32::MAX, &[], Err(Errno::ENOSYS)),
    ];
    for width in WIDTHS {
        let (domain, platform, _) = domain(1);
        for (step, (cmd, words, expected)) in table.iter().enumerate() {
            put(&domain, ARG, *words);
            let got = call_in(&domain, width, (*cmd).into(), ARG);
            assert_eq!(got, *expected, "step {step}: {cmd} {words:x?} {width:?}");
        }
        assert_eq!(platform.timer_ns(0), Some(5_000_000_000), "the first watchdog's");
        assert_eq!(domain.shutdown_reason(), None);
        assert!(!domain.still_waiting(0));
        // Announced first, and 8 bits of it, in either width.
        put(&domain, ARG, &0xffff_ff00u32);
        let down = call_in(&domain, width, SCHEDOP_SHUTDOWN.into(), ARG);
        assert_eq!(down, Ok(Outcome::Shutdown(SHUTDOWN_CRASH)), "{width:?}");
        assert_eq!(domain.shutdown_reason(), Some(SHUTDOWN_CRASH));
    }
}

#[test]
fn shutdown_and_block_in_both_widths() {
    for width in WIDTHS {
        let (domain, _, clock) = domain(1);
        clock.set_ns(50);
        // Neither the argument of yield nor that of block is looked at.
        let block = call_in(&domain, width, SCHEDOP_BLOCK.into(), NOWHERE);
        assert_eq!(block, Ok(Outcome::Wait { deadline_ns: Some(50 + BLOCK_RECHECK_NS) }));
        assert_eq!(call_in(&domain, width, SCHEDOP_YIELD.into(), NOWHERE), Ok(Outcome::Yield));
        domain.set_pending(3, 0);
        assert_eq!(call_in(&domain, width, SCHEDOP_BLOCK.into(), NOWHERE), DONE, "upcall pending");
        // The last four bytes of RAM are all of the structure.
        let end = RAM_SIZE as u64 - 4;
        put(&domain, end, &0x101u32);
        let down = call_in(&domain, width, SCHEDOP_SHUTDOWN.into(), end);
        assert_eq!(down, Ok(Outcome::Shutdown(SHUTDOWN_REBOOT)), "{width:?}");
    }
}

#[test]
fn unreadable_arguments() {
    // (command, bytes in the 64-bit layout, in the 32-bit layout)
    let commands = [
        (SCHEDOP_SHUTDOWN, 4, 4),
        (SCHEDOP_SHUTDOWN_CODE, 4, 4),
        (SCHEDOP_POLL, 24, 16),
        (SCHEDOP_REMOTE_SHUTDOWN, 8, 8),
        (SCHEDOP_WATCHDOG, 8, 8),
    ];
    for width in WIDTHS {
        let (domain, ..) = domain(1);
        for (cmd, wide, narrow) in commands {
            let size = if width == Width::Bits64 { wide } else { narrow };
            let end = RAM_SIZE as u64;
            for arg in [NOWHERE, end, end + 1 - size, u64::MAX, u64::MAX - size] {
                let got = call_in(&domain, width, cmd.into(), arg);
                assert_eq!(got, Err(Errno::EFAULT), "{cmd} {arg:#x} {width:?}");
            }
            if cmd != SCHEDOP_SHUTDOWN {
                let whole = call_in(&domain, width, cmd.into(), end - size);
                assert_ne!(whole, Err(Errno::EFAULT), "{cmd} {width:?}");
            }
            domain.before_entry(0);
        }
        // Refused before the argument is looked at.
        let pin = call_in(&domain, width, SCHEDOP_PIN_OVERRIDE.into(), NOWHERE);
        assert_eq!(pin, Err(Errno::EPERM));
        assert_eq!(call_in(&domain, width, 1 << 32 | 7, ARG), Err(Errno::ENOSYS));
        assert_eq!(domain.shutdown_reason(), None);
    }
}

#[test]
fn the_list_of_a_poll() {
    let waits = Ok(Outcome::Wait { deadline_ns: None });
    let end = RAM_SIZE as u64;
    for width in WIDTHS {
        let (domain, ..) = domain(2);
        bind_ipis(&domain, 0, 3);
        domain.set_pending(2, 1);
        // (ports, the answer): bound are 1, 2 and 3, pending is 2.
        let table: &[(&[u32], Result<Outcome, Errno>)] = &[
            (&[1], waits),
            (&[1, 3], waits),
            (&[1; 128], waits),
            (&[1; 129], Err(Errno::EINVAL)),
            (&[2], DONE),
            (&[1, 2], DONE),
            // What comes after one that is pending is not looked at.
            (&[2, u32::MAX], DONE),
            (&[1, u32::MAX, 2], Err(Errno::EINVAL)),
            // Port 0, one that is free, those beyond the last.
            (&[0], Err(Errno::EINVAL)),
            (&[4], Err(Errno::EINVAL)),
            (&[63], Err(Errno::EINVAL)),
            (&[64], Err(Errno::EINVAL)),
            (&[4096], Err(Errno::EINVAL)),
            (&[1 << 17], Err(Errno::EINVAL)),
            (&[u32::MAX], Err(Errno::EINVAL)),
            (&[1, 4], Err(Errno::EINVAL)),
        ];
        for (ports, expected) in table {
            put(&domain, PORTS, *ports);
            let count = u32::try_from(ports.len()).unwrap();
            let got = poll_at(&domain, width, PORTS, count);
            assert_eq!(got, *expected, "{ports:x?} {width:?}");
            assert_eq!(domain.still_waiting(0), got == waits, "{ports:x?} {width:?}");
            domain.before_entry(0);
        }
        // (where, how many, the answer): the last ports of RAM are 1 and 3.
        put(&domain, end - 8, &[1u32, 3]);
        put(&domain, HIGH_RAM, &[2u32]);
        let table = [
            (end - 8, 2, waits),
            (end - 8, 3, Err(Errno::EFAULT)),
            (end - 2, 1, Err(Errno::EFAULT)),
            (NOWHERE, 1, Err(Errno::EFAULT)),
            (HIGH_RAM, 2, DONE),
            // None at all: nothing is read, and any event ends it.
            (NOWHERE, 0, waits),
            // Too many is judged first.
            (NOWHERE, 129, Err(Errno::EINVAL)),
            (NOWHERE, u32::MAX, Err(Errno::EINVAL)),
            (u32::MAX.into(), 1, Err(Errno::EFAULT)),
        ];
        for (at, count, expected) in table {
            let got = poll_at(&domain, width, at, count);
            assert_eq!(got, expected, "{count} at {at:#x} {width:?}");
            assert_eq!(domain.still_waiting(0), got == waits, "{count} at {at:#x} {width:?}");
            domain.before_entry(0);
        }
        if width == Width::Bits64 {
            for at in [u64::MAX - 1, u64::MAX - 3] {
                assert_eq!(poll_at(&domain, width, at, 2), Err(Errno::EFAULT), "wraps");
            }
        }
        assert_eq!(get::<[u32; 2]>(&domain, end - 8), [1, 3], "nothing is written");
    }
}

/// A port that is free can not be polled, whatever the guest left in its bits.
#[test]
fn a_free_port_is_not_polled_though_its_bit_is_set() {
    const PAGE: u64 = 0x1_0000;
    for width in WIDTHS {
        let (domain, ..) = domain(1);
        shared_info::latch_width(&domain, width);
        shared_info::place(&domain, 0, PAGE >> 12).unwrap();
        put(&domain, PAGE + 0x800, &0x10u8);
        put(&domain, PORTS, &4u32);
        assert_eq!(poll_at(&domain, width, PORTS, 1), Err(Errno::EINVAL), "{width:?}");
        bind_ipis(&domain, 0, 4);
        put(&domain, PAGE + 0x800, &0x10u8);
        assert_eq!(poll_at(&domain, width, PORTS, 1), DONE, "bound, it is {width:?}");
    }
}
