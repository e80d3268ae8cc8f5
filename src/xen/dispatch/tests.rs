//! The table of hypercalls and the widths of registers.

mod hostile;
mod unknown;

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};
use xen_abi::hypercall::*;
use xen_abi::xen::DOMID_SELF;

use super::*;
use crate::xen::test_calls::{ARG, NOWHERE, WIDTHS, call};
use crate::xen::test_platform::{FakeVcpu, RAM_SIZE, domain, put};

#[test]
fn only_ring_0_calls() {
    let (domain, ..) = domain(1);
    for (cpl, expected) in [(0, 4 << 16 | 17), (1, -1), (2, -1), (3, -1)] {
        for width in WIDTHS {
            let request = Hypercall { number: HYPERVISOR_XEN_VERSION, args: [0; 6], width, cpl };
            let outcome = domain.hypercall(&mut FakeVcpu::new(0), &request);
            assert_eq!(outcome, Outcome::Return(expected), "ring {cpl}");
        }
    }
}

#[test]
fn numbers_that_hvm_guests_have_not_got() {
    let (domain, ..) = domain(1);
    let pv_only = [
        HYPERVISOR_SET_TRAP_TABLE,
        HYPERVISOR_MMU_UPDATE,
        HYPERVISOR_SET_GDT,
        HYPERVISOR_STACK_SWITCH,
        HYPERVISOR_SET_CALLBACKS,
        HYPERVISOR_FPU_TASKSWITCH,
        HYPERVISOR_SCHED_OP_COMPAT,
        HYPERVISOR_SET_DEBUGREG,
        HYPERVISOR_GET_DEBUGREG,
        HYPERVISOR_UPDATE_DESCRIPTOR,
        HYPERVISOR_UPDATE_VA_MAPPING,
        HYPERVISOR_EVENT_CHANNEL_OP_COMPAT,
        HYPERVISOR_PHYSDEV_OP_COMPAT,
        HYPERVISOR_UPDATE_VA_MAPPING_OTHERDOMAIN,
        HYPERVISOR_IRET,
        HYPERVISOR_SET_SEGMENT_BASE,
        HYPERVISOR_NMI_OP,
        HYPERVISOR_CALLBACK_OP,
        HYPERVISOR_XENOPROF_OP,
        HYPERVISOR_KEXEC_OP,
        HYPERVISOR_TMEM_OP,
        HYPERVISOR_ARCH_0,
    ];
    let without_anything_behind = [HYPERVISOR_XSM_OP, HYPERVISOR_ARGO_OP];
    let no_numbers = [11, 43, 47, 50, 54, 56, 63, 64, 4095, u64::from(u32::MAX), u64::MAX];
    for number in pv_only.into_iter().chain(without_anything_behind).chain(no_numbers) {
        for width in WIDTHS {
            assert_eq!(call(&domain, width, number, &[ARG]), Err(Errno::ENOSYS), "{number}");
        }
    }
}

#[test]
fn control_domains_hypercalls_are_refused_in_xens_order() {
    let (domain, ..) = domain(1);
    let own = 7;
    // (number, the structure's first two words, the answer)
    let judged_by_version = [
        (HYPERVISOR_PLATFORM_OP, 0x0300_0001, Errno::EACCES),
        (HYPERVISOR_SYSCTL, 0x15, Errno::EACCES),
        (HYPERVISOR_DOMCTL, 0x15, Errno::EACCES),
    ];
    for width in WIDTHS {
        for (number, version, otherwise) in judged_by_version {
            put(&domain, ARG, &[3u32, version]);
            assert_eq!(call(&domain, width, number, &[ARG]), Err(Errno::EPERM), "{number}");
            put(&domain, ARG, &[3u32, version + 1]);
            assert_eq!(call(&domain, width, number, &[ARG]), Err(otherwise), "{number}");
            assert_eq!(call(&domain, width, number, &[NOWHERE]), Err(Errno::EFAULT), "{number}");
            // All of the structure is read, not only the words that matter.
            let cut_off = RAM_SIZE as u64 - 100;
            assert_eq!(call(&domain, width, number, &[cut_off]), Err(Errno::EFAULT), "{number}");
        }
        put(&domain, ARG, &[10u32, 0x15]);
        let shadow = call(&domain, width, HYPERVISOR_ARCH_1, &[ARG]);
        assert_eq!(shadow, Err(Errno::EPERM));
        put(&domain, ARG, &[9u32, 0x15]);
        let other = call(&domain, width, HYPERVISOR_ARCH_1, &[ARG]);
        assert_eq!(other, Err(Errno::EOPNOTSUPP));

        let table: &[(u64, &[u64], Errno)] = &[
            (HYPERVISOR_HYPFS_OP, &[0, 0, 0, 0, 0], Errno::EPERM),
            (HYPERVISOR_XENPMU_OP, &[0, ARG], Errno::EOPNOTSUPP),
            (HYPERVISOR_DM_OP, &[own, 3, ARG], Errno::E2BIG),
            (HYPERVISOR_DM_OP, &[own, 1, NOWHERE], Errno::EFAULT),
            (HYPERVISOR_DM_OP, &[own, 2, ARG], Errno::EPERM),
            (HYPERVISOR_DM_OP, &[0, 0, NOWHERE], Errno::EPERM),
            (HYPERVISOR_DM_OP, &[DOMID_SELF as u64, 1, ARG], Errno::ESRCH),
            (HYPERVISOR_DM_OP, &[9, 1, ARG], Errno::ESRCH),
            (HYPERVISOR_MMUEXT_OP, &[ARG, 1, 0, DOMID_SELF as u64], Errno::EINVAL),
            (HYPERVISOR_MMUEXT_OP, &[ARG, 1, 0, own], Errno::ESRCH),
            (HYPERVISOR_MMUEXT_OP, &[ARG, 1, 0, 0], Errno::EPERM),
            (HYPERVISOR_MMUEXT_OP, &[ARG, 1, 0, 0x1_0007], Errno::ESRCH),
            (HYPERVISOR_MMUEXT_OP, &[0, 0x8000_0000, 0, 0xffff_ffda], Errno::ENOSYS),
            (HYPERVISOR_PHYSDEV_OP, &[12, ARG], Errno::ENOSYS),
            (HYPERVISOR_PHYSDEV_OP, &[13, NOWHERE], Errno::ENOSYS),
            (HYPERVISOR_PHYSDEV_OP, &[23, ARG], Errno::ENOSYS),
        ];
        for (number, args, expected) in table {
            let got = call(&domain, width, *number, args);
            assert_eq!(got, Err(*expected), "{number} {args:x?} {width:?}");
        }
    }
}

#[test]
fn physical_interrupts_are_not_there() {
    let (domain, ..) = domain(1);
    for width in WIDTHS {
        for (cmd, arg) in
            (0..40).chain([u64::from(u32::MAX), u64::MAX]).zip([ARG, NOWHERE].into_iter().cycle())
        {
            let got = call(&domain, width, HYPERVISOR_PHYSDEV_OP, &[cmd, arg]);
            assert_eq!(got, Err(Errno::ENOSYS), "{cmd} {width:?}");
        }
    }
}

#[test]
fn a_32_bit_callers_high_halves_do_not_count() {
    let (domain, ..) = domain(1);
    let high = 0xdead_beef << 32;
    let number = HYPERVISOR_XEN_VERSION;
    assert_eq!(call(&domain, Width::Bits32, high | number, &[high, high]), Ok(4 << 16 | 17));
    assert_eq!(call(&domain, Width::Bits64, high | number, &[0]), Err(Errno::ENOSYS));
    // The command of xen_version is an int: in 64-bit mode, too.
    assert_eq!(call(&domain, Width::Bits64, number, &[high]), Ok(4 << 16 | 17));
    // A pointer is not.
    assert_eq!(call(&domain, Width::Bits32, number, &[8, high | ARG]), Ok(0));
    assert_eq!(call(&domain, Width::Bits64, number, &[8, high | ARG]), Err(Errno::EFAULT));
}

#[test]
fn a_32_bit_deadline_comes_in_two_registers() {
    let (domain, platform, _) = domain(1);
    let deadline = 0x5_4000_0003u64;
    let [low, high] = [low(deadline), deadline >> 32];
    for (width, args) in [(Width::Bits64, [deadline, 99]), (Width::Bits32, [low, high])] {
        assert_eq!(call(&domain, width, HYPERVISOR_SET_TIMER_OP, &args), Ok(0));
        assert_eq!(platform.timer_ns(0), Some(deadline), "{width:?}");
        let _ = platform.take();
    }
}

#[test]
fn assists() {
    let table = [
        (0, 5, Ok(0), 1 << 5),
        (0, 5, Ok(0), 1 << 5),
        (2, 5, Err(Errno::ENOSYS), 1 << 5),
        (u64::MAX, 5, Err(Errno::ENOSYS), 1 << 5),
        (2, 4, Err(Errno::EINVAL), 1 << 5),
        (0, 0, Err(Errno::EINVAL), 1 << 5),
        (0, 31, Err(Errno::EINVAL), 1 << 5),
        (0, 32, Err(Errno::EINVAL), 1 << 5),
        (0, 37, Err(Errno::EINVAL), 1 << 5),
        (0, 64, Err(Errno::EINVAL), 1 << 5),
        (0, 69, Err(Errno::EINVAL), 1 << 5),
        (0, u64::MAX, Err(Errno::EINVAL), 1 << 5),
        (1, 4, Err(Errno::EINVAL), 1 << 5),
        (1, 5, Ok(0), 0),
        (1, 5, Ok(0), 0),
        // Both arguments are unsigned ints.
        (1 << 32, 1 << 32 | 5, Ok(0), 1 << 5),
        (1, 5, Ok(0), 0),
    ];
    for width in WIDTHS {
        let (domain, ..) = domain(1);
        for (step, &(cmd, kind, expected, flags)) in table.iter().enumerate() {
            let got = call(&domain, width, HYPERVISOR_VM_ASSIST, &[cmd, kind]);
            assert_eq!(got, expected, "step {step} {width:?}");
            assert_eq!(domain.vm_assist.load(Ordering::SeqCst), flags, "step {step} {width:?}");
        }
    }
}

#[test]
fn console_io_prints_and_reads_nothing() {
    for width in WIDTHS {
        let (domain, platform, _) = domain(1);
        let text: Vec<u8> = (0..=255).cycle().take(1000).collect();
        // Across a page boundary, in pieces.
        let at = ARG + 0xe00;
        domain.memory().write_slice(&text, GuestAddress(at)).unwrap();
        assert_eq!(call(&domain, width, HYPERVISOR_CONSOLE_IO, &[0, 1000, at]), Ok(0));
        assert_eq!(platform.take().console, text);

        let table = [
            ([0, 0, NOWHERE], Ok(0)),
            ([0, 1, NOWHERE], Err(Errno::EFAULT)),
            ([1, 10, ARG], Err(Errno::EPERM)),
            ([2, 10, ARG], Err(Errno::EPERM)),
            ([u64::from(u32::MAX), 10, ARG], Err(Errno::EPERM)),
        ];
        for (args, expected) in table {
            let got = call(&domain, width, HYPERVISOR_CONSOLE_IO, &args);
            assert_eq!(got, expected, "{args:x?}");
        }
        assert_eq!(platform.take().console, b"");
        // Four thousand million bytes are cut, not printed.
        let most = [0, u64::from(u32::MAX), 0];
        assert_eq!(call(&domain, width, HYPERVISOR_CONSOLE_IO, &most), Ok(0));
        assert_eq!(platform.take().console.len(), 64 << 10);
    }
}
