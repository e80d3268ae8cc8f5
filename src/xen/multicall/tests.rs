//! Lists of hypercalls, in both widths.

use xen_abi::hypercall::*;
use xen_abi::sched::{SCHEDOP_SHUTDOWN, SCHEDOP_YIELD, SHUTDOWN_POWEROFF};

use super::super::call::WORK;
use super::*;
use crate::pages::Width;
use crate::xen::Domain;
use crate::xen::test_calls::{ARG, NOWHERE, WIDTHS, call, outcome};
use crate::xen::test_platform::{RAM_SIZE, domain, get, put};

const UNTOUCHED: u32 = 0x5555_5555;

fn put_list(domain: &Domain, width: Width, at: u64, list: &[(u64, [u64; 2])]) {
    for (index, (op, [a, b])) in (0u64..).zip(list) {
        match width {
            Width::Bits64 => put(
                domain,
                at + index * 64,
                &MulticallEntry { op: *op, result: UNTOUCHED.into(), args: [*a, *b, 0, 0, 0, 0] },
            ),
            Width::Bits32 => {
                let narrow = |word: u64| u32::try_from(word).unwrap();
                let args = [narrow(*a), narrow(*b), 0, 0, 0, 0];
                let entry = MulticallEntry32 { op: narrow(*op), result: UNTOUCHED, args };
                put(domain, at + index * 32, &entry);
            }
        }
    }
}

fn results(domain: &Domain, width: Width, at: u64, count: u64) -> Vec<i64> {
    let one = |index| match width {
        Width::Bits64 => get::<MulticallEntry>(domain, at + index * 64).result.cast_signed(),
        Width::Bits32 => {
            get::<MulticallEntry32>(domain, at + index * 32).result.cast_signed().into()
        }
    };
    (0..count).map(one).collect()
}

#[test]
fn each_call_gets_its_own_result() {
    for width in WIDTHS {
        let (domain, ..) = domain(1);
        let list = [
            (HYPERVISOR_XEN_VERSION, [0, 0]),
            (HYPERVISOR_XEN_VERSION, [7, ARG]),
            (HYPERVISOR_MULTICALL, [ARG, 1]),
            (4095, [0, 0]),
            (HYPERVISOR_XEN_VERSION, [8, 0xa000]),
        ];
        put_list(&domain, width, ARG, &list);
        assert_eq!(call(&domain, width, HYPERVISOR_MULTICALL, &[ARG, 5]), Ok(0));
        assert_eq!(results(&domain, width, ARG, 5), [0x4_0011, -22, -22, -38, 0], "{width:?}");
        assert_eq!(get::<[u8; 16]>(&domain, 0xa000), *b"0123456789abcdef");
        // The count is a u32.
        assert_eq!(call(&domain, width, HYPERVISOR_MULTICALL, &[NOWHERE, 1 << 32]), Ok(0));
    }
}

#[test]
fn a_fault_ends_the_list() {
    for width in WIDTHS {
        let (domain, ..) = domain(1);
        let size = if width == Width::Bits64 { 64 } else { 32 };
        let at = RAM_SIZE as u64 - 2 * size;
        put_list(&domain, width, at, &[(HYPERVISOR_XEN_VERSION, [0, 0]); 2]);
        assert_eq!(call(&domain, width, HYPERVISOR_MULTICALL, &[at, 3]), Err(Errno::EFAULT));
        assert_eq!(results(&domain, width, at, 2), [0x4_0011, 0x4_0011]);
        assert_eq!(call(&domain, width, HYPERVISOR_MULTICALL, &[NOWHERE, 1]), Err(Errno::EFAULT));
        let top = u64::MAX - 10;
        assert_eq!(call(&domain, width, HYPERVISOR_MULTICALL, &[top, 1]), Err(Errno::EFAULT));
    }
}

#[test]
fn waiting_comes_after_the_list() {
    for width in WIDTHS {
        let (domain, ..) = domain(1);
        let list =
            [(HYPERVISOR_SCHED_OP, [SCHEDOP_YIELD.into(), 0]), (HYPERVISOR_XEN_VERSION, [0, 0])];
        put_list(&domain, width, ARG, &list);
        let ended = outcome(&domain, width, HYPERVISOR_MULTICALL, &[ARG, 2]);
        assert_eq!(ended, Outcome::Yield);
        assert_eq!(results(&domain, width, ARG, 2), [0, 0x4_0011]);
    }
}

#[test]
fn a_shutdown_ends_the_list() {
    for width in WIDTHS {
        let (domain, ..) = domain(1);
        put(&domain, 0xa000, &SHUTDOWN_POWEROFF);
        let list = [
            (HYPERVISOR_SCHED_OP, [SCHEDOP_SHUTDOWN.into(), 0xa000]),
            (HYPERVISOR_XEN_VERSION, [0, 0]),
        ];
        put_list(&domain, width, ARG, &list);
        let ended = outcome(&domain, width, HYPERVISOR_MULTICALL, &[ARG, 2]);
        assert_eq!(ended, Outcome::Shutdown(SHUTDOWN_POWEROFF));
        assert_eq!(results(&domain, width, ARG, 2)[1], i64::from(UNTOUCHED));
    }
}

#[test]
fn the_work_of_all_calls_is_bounded_together() {
    let (domain, ..) = domain(1);
    // Empty grant-table lists cost nothing; entries of the list itself do.
    let mut call = crate::xen::test_platform::FakeVcpu::new(0);
    let mut context = Call::new(&domain, &mut call, Width::Bits64);
    assert_eq!(context.spend_many(WORK.into()), Ok(()));
    assert_eq!(context.spend(), Err(Errno::E2BIG));
    put_list(&domain, Width::Bits64, ARG, &[(HYPERVISOR_XEN_VERSION, [0, 0])]);
    assert_eq!(op(&mut context, ARG, 1), Err(Errno::E2BIG));
    assert_eq!(results(&domain, Width::Bits64, ARG, 1), [i64::from(UNTOUCHED)]);
}
