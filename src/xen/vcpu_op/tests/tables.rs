//! Every sub-operation of `vcpu_op`, good and bad, in both widths.

use std::sync::Arc;

use super::super::super::test_calls::{NOWHERE, WIDTHS};
use super::super::super::test_platform::FakePlatform;
use super::*;

/// A 32-bit guest has its structures in that layout, too.
fn domain_of(width: Width, config: DomainConfig) -> (Arc<Domain>, Arc<FakePlatform>) {
    let (domain, platform, _) = domain_with(config);
    shared_info::latch_width(&domain, width);
    let _ = platform.take();
    (domain, platform)
}

fn call_in(domain: &Domain, width: Width, cmd: u32, vcpu: u32, arg: u64) -> Reply {
    with_width(domain, 0, width, |call| op(call, cmd.into(), vcpu.into(), arg))
}

#[test]
fn unknown_commands_and_vcpus() {
    for width in WIDTHS {
        let (domain, _) = domain_of(width, config(2));
        for cmd in [16, 17, 64, 0x7fff_ffff, 1 << 31, u32::MAX] {
            assert_eq!(call_in(&domain, width, cmd, 0, ARG), Err(Errno::ENOSYS), "{cmd}");
        }
        // The vCPU is judged before the command.
        for cmd in (0..=16).chain([u32::MAX]) {
            for vcpu in [2, 128, u32::MAX] {
                let got = call_in(&domain, width, cmd, vcpu, NOWHERE);
                assert_eq!(got, Err(Errno::ENOENT), "{cmd} {vcpu} {width:?}");
            }
        }
        let wide = |cmd, vcpu| with_width(&domain, 0, width, |call| op(call, cmd, vcpu, 0));
        assert_eq!(wide(1 << 32, 0), Err(Errno::ENOSYS));
        assert_eq!(wide(3, 1 << 32), Err(Errno::ENOENT));
    }
}

#[test]
fn unreadable_arguments() {
    // (command, bytes in the 64-bit layout, in the 32-bit layout)
    let commands = [
        (VCPUOP_INITIALISE, 128, 128),
        (VCPUOP_GET_RUNSTATE_INFO, 48, 44),
        (VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, 8, 4),
        (VCPUOP_SET_PERIODIC_TIMER, 8, 8),
        (VCPUOP_SET_SINGLESHOT_TIMER, 16, 12),
        (VCPUOP_REGISTER_VCPU_INFO, 16, 16),
        (VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, 8, 4),
        (VCPUOP_REGISTER_RUNSTATE_PHYS_AREA, 8, 8),
        (VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA, 8, 8),
    ];
    for width in WIDTHS {
        let config = DomainConfig { xen_version: (4, 18), ..config(1) };
        let (domain, platform) = domain_of(width, config);
        for (cmd, wide, narrow) in commands {
            let size = if width == Width::Bits64 { wide } else { narrow };
            let end = RAM_SIZE as u64;
            for arg in [NOWHERE, end, end + 1 - size, u64::MAX - 3, u64::MAX] {
                let got = call_in(&domain, width, cmd, 0, arg);
                assert_eq!(got, Err(Errno::EFAULT), "{cmd} {arg:#x} {width:?}");
            }
            let asked = platform.take();
            assert!(asked.areas.is_empty() && asked.timers.is_empty(), "{cmd}: {asked:?}");
            put(&domain, end - 128, &[0u8; 128]);
            let whole = call_in(&domain, width, cmd, 0, end - size);
            assert_ne!(whole, Err(Errno::EFAULT), "{cmd} {width:?}");
            let _ = platform.take();
        }
    }
}

#[test]
fn refused_places_of_a_vcpu_info() {
    for width in WIDTHS {
        let (domain, platform) = domain_of(width, config(3));
        let register = |vcpu, mfn, offset| {
            put(&domain, ARG, &info_arg(mfn, offset));
            call_in(&domain, width, REGISTER_INFO, vcpu, ARG)
        };
        let ram_end = RAM_SIZE as u64 >> 12;
        // The alignment is that of an `unsigned long`, in the domain's layout.
        let fours = if width == Width::Bits64 { Err(Errno::ENXIO) } else { Ok(0) };
        let table = [
            (9, 1, Err(Errno::ENXIO)),
            (9, 2, Err(Errno::ENXIO)),
            (9, 4096 - 63, Err(Errno::ENXIO)),
            (9, 4096 - 56, Err(Errno::ENXIO)),
            (9, 4096, Err(Errno::ENXIO)),
            (9, u32::MAX - 7, Err(Errno::ENXIO)),
            // The place in the page is judged before the page.
            (u64::MAX, 1, Err(Errno::ENXIO)),
            (ram_end, 0, Err(Errno::EINVAL)),
            (1 << 40, 0, Err(Errno::EINVAL)),
            (1 << 52, 0, Err(Errno::EINVAL)),
            (u64::MAX, 0, Err(Errno::EINVAL)),
            (u64::from(u32::MAX), 0, Err(Errno::EINVAL)),
        ];
        for (mfn, offset, expected) in table {
            let got = register(0, mfn, offset);
            assert_eq!(got, expected, "{mfn:#x} + {offset} {width:?}");
        }
        assert!(platform.take().areas.is_empty());
        assert_eq!(register(0, 9, 4096 - 64), Ok(0));
        assert_eq!(register(0, 10, 0), Err(Errno::EINVAL), "twice");
        assert_eq!(register(0, 10, 1), Err(Errno::ENXIO), "twice, and misaligned");
        assert_eq!(register(1, 10, 4), fours, "{width:?}");
        domain.vcpu_started(2);
        assert_eq!(register(2, 11, 0), Err(Errno::EINVAL), "another one that is up");
    }
}

#[test]
fn timers() {
    // (command, vCPU, its structure's words, the answer, vCPU 0's deadline then)
    type Row = (u32, u32, [u64; 2], Reply, Option<u64>);
    let future = u64::from(VCPU_SSHOTTMR_FUTURE);
    let table: &[Row] = &[
        (VCPUOP_SET_SINGLESHOT_TIMER, 0, [5000, future], Ok(0), Some(5000)),
        (VCPUOP_SET_SINGLESHOT_TIMER, 1, [6000, 0], Err(Errno::EINVAL), Some(5000)),
        (VCPUOP_STOP_SINGLESHOT_TIMER, 1, [0, 0], Err(Errno::EINVAL), Some(5000)),
        (VCPUOP_SET_SINGLESHOT_TIMER, 0, [999, future], Err(Errno::ETIME), Some(5000)),
        (VCPUOP_SET_SINGLESHOT_TIMER, 0, [0, future], Err(Errno::ETIME), Some(5000)),
        // Bits that mean nothing are not looked at.
        (VCPUOP_SET_SINGLESHOT_TIMER, 0, [7000, 0xffff_fffe], Ok(0), Some(7000)),
        (VCPUOP_SET_SINGLESHOT_TIMER, 0, [999, 0], Ok(0), None),
        (VCPUOP_SET_SINGLESHOT_TIMER, 0, [8000, future], Ok(0), Some(8000)),
        (VCPUOP_STOP_SINGLESHOT_TIMER, 0, [0, 0], Ok(0), None),
        (VCPUOP_STOP_SINGLESHOT_TIMER, 0, [0, 0], Ok(0), None),
        (VCPUOP_SET_PERIODIC_TIMER, 0, [0, 0], Err(Errno::EINVAL), None),
        (VCPUOP_SET_PERIODIC_TIMER, 0, [1, 0], Err(Errno::EINVAL), None),
        (VCPUOP_SET_PERIODIC_TIMER, 0, [MIN_PERIOD_NS - 1, 0], Err(Errno::EINVAL), None),
        (VCPUOP_SET_PERIODIC_TIMER, 0, [MAX_PERIOD_NS + 1, 0], Err(Errno::EINVAL), None),
        (VCPUOP_SET_PERIODIC_TIMER, 0, [u64::MAX, 0], Err(Errno::EINVAL), None),
        (VCPUOP_SET_PERIODIC_TIMER, 1, [MIN_PERIOD_NS, 0], Ok(0), None),
        (VCPUOP_STOP_PERIODIC_TIMER, 1, [0, 0], Ok(0), None),
        (VCPUOP_STOP_PERIODIC_TIMER, 1, [0, 0], Ok(0), None),
        // From the last event of the kind on, which at time 0 has been.
        (VCPUOP_SET_PERIODIC_TIMER, 0, [MIN_PERIOD_NS, 0], Ok(0), Some(MIN_PERIOD_NS)),
        (VCPUOP_SET_PERIODIC_TIMER, 0, [MAX_PERIOD_NS, 0], Ok(0), Some(MAX_PERIOD_NS)),
        (VCPUOP_STOP_PERIODIC_TIMER, 0, [0, 0], Ok(0), None),
    ];
    for width in WIDTHS {
        let (domain, platform, clock) = domain(2);
        clock.set_ns(1000);
        for (step, (cmd, vcpu, [time, flags], expected, deadline)) in table.iter().enumerate() {
            put(&domain, ARG, &[*time, *flags]);
            let got = call_in(&domain, width, *cmd, *vcpu, ARG);
            assert_eq!(got, *expected, "step {step} {width:?}");
            assert_eq!(platform.timer_ns(0), *deadline, "step {step} {width:?}");
        }
    }
}

#[test]
fn areas_by_virtual_address() {
    let end = RAM_SIZE as u64;
    for width in WIDTHS {
        let (domain, platform) = domain_of(width, config(2));
        let size = runstate_size(width);
        // (handle, the answer to a runstate area, to a time area)
        let table = [
            (0x5000, Ok(0), Ok(0)),
            (0x5004, Ok(0), Ok(0)),
            (0x5001, Err(Errno::EINVAL), Err(Errno::EINVAL)),
            (0x5fe0, Ok(0), Ok(0)),
            (0x5fe4, Ok(0), Err(Errno::EINVAL)),
            (0x6_0000, Err(Errno::EFAULT), Err(Errno::EFAULT)),
            (0x6_0000 - 8, Err(Errno::EFAULT), Err(Errno::EINVAL)),
            (0x6_0000 - size, Ok(0), Ok(0)),
            (end, Ok(0), Ok(0)),
            (0, Ok(0), Ok(0)),
        ];
        for (linear, runstate, time) in table {
            // What lies above a 32-bit handle is not of it.
            let above = if width == Width::Bits64 { 0 } else { 0xdead << 32 };
            put(&domain, ARG, &(above | linear));
            let mut vcpu = FakeVcpu { holes: vec![0x60], ..FakeVcpu::new(0) };
            let mut register =
                |cmd: u32| op(&mut Call::new(&domain, &mut vcpu, width), cmd.into(), 1, ARG);
            let got = register(VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA);
            assert_eq!(got, runstate, "runstate at {linear:#x} {width:?}");
            let got = register(VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA);
            assert_eq!(got, time, "time at {linear:#x} {width:?}");
        }
        assert_eq!(domain.time_area_address(1), None);
        // Refused by the machine.
        platform.refuses.store(true, Ordering::SeqCst);
        put(&domain, ARG, &0x5000u64);
        let got = call_in(&domain, width, VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, 1, ARG);
        assert_eq!((got, domain.time_area_address(1)), (Err(Errno::EINVAL), None));
    }
}

#[test]
fn areas_by_physical_address_came_with_4_18() {
    const RUNSTATE: u32 = VCPUOP_REGISTER_RUNSTATE_PHYS_AREA;
    const TIME: u32 = VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA;
    for width in WIDTHS {
        let (before, _) = domain_of(width, config(1));
        put(&before, ARG, &HIGH_RAM);
        for cmd in [RUNSTATE, TIME] {
            assert_eq!(call_in(&before, width, cmd, 0, ARG), Err(Errno::ENOSYS));
            assert_eq!(call_in(&before, width, cmd, 0, NOWHERE), Err(Errno::ENOSYS));
        }
        let config = DomainConfig { xen_version: (4, 18), ..config(1) };
        let (domain, platform) = domain_of(width, config);
        let ram_end = RAM_SIZE as u64;
        // Alignment and size of the runstate are the caller's: 8 and 48, 4 and 44.
        let fours = if width == Width::Bits64 { Err(Errno::ENXIO) } else { Ok(0) };
        let table = [
            (HIGH_RAM, Ok(0), Ok(0)),
            (HIGH_RAM + 4, fours, fours),
            (HIGH_RAM + 2, Err(Errno::ENXIO), Err(Errno::ENXIO)),
            (HIGH_RAM + 0xfd0, Ok(0), Ok(0)),
            (HIGH_RAM + 0xfd4, fours, fours),
            (HIGH_RAM + 0xfd8, Err(Errno::ENXIO), Ok(0)),
            (HIGH_RAM + 0xfe0, Err(Errno::ENXIO), Ok(0)),
            (HIGH_RAM + 0xfe8, Err(Errno::ENXIO), Err(Errno::ENXIO)),
            (ram_end, Err(Errno::EINVAL), Err(Errno::EINVAL)),
            (u64::MAX - 7, Err(Errno::ENXIO), Err(Errno::ENXIO)),
            (u64::MAX - 0xfff, Err(Errno::EINVAL), Err(Errno::EINVAL)),
            (u64::MAX, Ok(0), Ok(0)),
        ];
        let mut placed = Vec::new();
        for (gpa, runstate, time) in table {
            put(&domain, ARG, &gpa);
            let got = call_in(&domain, width, RUNSTATE, 0, ARG);
            assert_eq!(got, runstate, "runstate at {gpa:#x} {width:?}");
            assert_eq!(call_in(&domain, width, TIME, 0, ARG), time, "time at {gpa:#x} {width:?}");
            if time.is_ok() {
                let gpa = Some(gpa).filter(|&gpa| gpa != u64::MAX).map(GuestAddress);
                placed.push((0, VcpuArea::TimeInfo, gpa));
            }
        }
        assert_eq!(platform.take().areas, placed);
    }
}

#[test]
fn nmi_and_physical_number() {
    for width in WIDTHS {
        let (domain, platform) = domain_of(width, config(2));
        // Its argument is to be null, mapped or not.
        for arg in [1, ARG, NOWHERE] {
            assert_eq!(call_in(&domain, width, VCPUOP_SEND_NMI, 1, arg), Err(Errno::EINVAL));
        }
        assert_eq!(platform.take().nmis, [0; 0]);
        assert_eq!(call_in(&domain, width, VCPUOP_SEND_NMI, 1, 0), Ok(0));
        assert_eq!(call_in(&domain, width, VCPUOP_SEND_NMI, 0, 0), Ok(0), "itself");
        assert_eq!(platform.take().nmis, [1, 0]);
        // A machine that can not raise one.
        platform.refuses.store(true, Ordering::SeqCst);
        assert_eq!(call_in(&domain, width, VCPUOP_SEND_NMI, 1, 0), Err(Errno::ENOSYS));
        assert_eq!(call_in(&domain, width, VCPUOP_SEND_NMI, 1, ARG), Err(Errno::EINVAL));
        for arg in [0, ARG, NOWHERE] {
            assert_eq!(call_in(&domain, width, VCPUOP_GET_PHYSID, 0, arg), Err(Errno::EINVAL));
        }
    }
}
