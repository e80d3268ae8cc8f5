//! `hvm_op` and the access rules of HVM parameters, in both widths.

use xen_abi::hvm_params::*;
use xen_abi::hypercall::HYPERVISOR_HVM_OP;
use xen_abi::xen::DOMID_SELF;

use super::*;
use crate::pages::Width;
use crate::xen::test_calls::{ARG, NOWHERE, WIDTHS, call, full_domain};
use crate::xen::test_platform::{get, put};
use crate::xen::{CallbackVia, Domain};

const OWN: u16 = 7;

fn ask(domain: &Domain, width: Width, cmd: u32, arg: u64) -> Reply {
    call(domain, width, HYPERVISOR_HVM_OP, &[cmd.into(), arg])
}

fn set(domain: &Domain, width: Width, index: u32, value: u64) -> Reply {
    put(domain, ARG, &HvmParam { domid: DOMID_SELF, pad: 0, index, value });
    ask(domain, width, HVMOP_SET_PARAM, ARG)
}

fn read(domain: &Domain, width: Width, index: u32) -> Result<u64, Errno> {
    put(domain, ARG, &HvmParam { domid: DOMID_SELF, pad: 0, index, value: 0xbad });
    let result = ask(domain, width, HVMOP_GET_PARAM, ARG);
    let value = get::<HvmParam>(domain, ARG).value;
    match result {
        Ok(0) => Ok(value),
        Ok(other) => panic!("returned {other}"),
        Err(error) => {
            assert_eq!(value, 0xbad, "written in spite of {error}");
            Err(error)
        }
    }
}

/// An index, whether the guest may set it, what it reads at boot.
type Access = (u32, Result<i64, Errno>, Result<u64, Errno>);

#[rustfmt::skip]
const ACCESS: [Access; 39] = [
    (HVM_PARAM_CALLBACK_IRQ, Ok(0), Ok(0)),
    (HVM_PARAM_STORE_PFN, Err(Errno::EPERM), Ok(0)),
    (HVM_PARAM_STORE_EVTCHN, Ok(0), Ok(0)),
    (3, Err(Errno::EPERM), Err(Errno::EPERM)),
    (HVM_PARAM_PAE_ENABLED, Err(Errno::EINVAL), Err(Errno::EINVAL)),
    (HVM_PARAM_IOREQ_PFN, Err(Errno::EPERM), Err(Errno::EPERM)),
    (HVM_PARAM_BUFIOREQ_PFN, Err(Errno::EPERM), Err(Errno::EPERM)),
    (7, Err(Errno::EPERM), Err(Errno::EPERM)),
    (8, Err(Errno::EPERM), Err(Errno::EPERM)),
    (HVM_PARAM_VIRIDIAN, Err(Errno::EPERM), Err(Errno::EPERM)),
    (HVM_PARAM_TIMER_MODE, Err(Errno::EPERM), Err(Errno::EPERM)),
    (HVM_PARAM_HPET_ENABLED, Err(Errno::EPERM), Err(Errno::EPERM)),
    (HVM_PARAM_IDENT_PT, Err(Errno::EPERM), Err(Errno::EPERM)),
    (HVM_PARAM_DM_DOMAIN, Err(Errno::EINVAL), Err(Errno::EINVAL)),
    (HVM_PARAM_ACPI_S_STATE, Err(Errno::EPERM), Err(Errno::EPERM)),
    (HVM_PARAM_VM86_TSS, Ok(0), Ok(0)),
    (HVM_PARAM_VPT_ALIGN, Err(Errno::EPERM), Err(Errno::EPERM)),
    (HVM_PARAM_CONSOLE_PFN, Err(Errno::EPERM), Ok(4)),
    (HVM_PARAM_CONSOLE_EVTCHN, Ok(0), Ok(0)),
    (HVM_PARAM_ACPI_IOPORTS_LOCATION, Err(Errno::ENODEV), Ok(0)),
    (HVM_PARAM_MEMORY_EVENT_CR0, Err(Errno::EINVAL), Err(Errno::EINVAL)),
    (HVM_PARAM_MEMORY_EVENT_CR3, Err(Errno::EINVAL), Err(Errno::EINVAL)),
    (HVM_PARAM_MEMORY_EVENT_CR4, Err(Errno::EINVAL), Err(Errno::EINVAL)),
    (HVM_PARAM_MEMORY_EVENT_INT3, Err(Errno::EINVAL), Err(Errno::EINVAL)),
    (HVM_PARAM_NESTEDHVM, Err(Errno::EINVAL), Err(Errno::EINVAL)),
    (HVM_PARAM_MEMORY_EVENT_SINGLE_STEP, Err(Errno::EINVAL), Err(Errno::EINVAL)),
    (HVM_PARAM_BUFIOREQ_EVTCHN, Err(Errno::EINVAL), Err(Errno::EINVAL)),
    (HVM_PARAM_PAGING_RING_PFN, Err(Errno::EPERM), Err(Errno::EPERM)),
    (HVM_PARAM_MONITOR_RING_PFN, Err(Errno::EPERM), Err(Errno::EPERM)),
    (HVM_PARAM_SHARING_RING_PFN, Err(Errno::EPERM), Err(Errno::EPERM)),
    (HVM_PARAM_MEMORY_EVENT_MSR, Err(Errno::EINVAL), Err(Errno::EINVAL)),
    (HVM_PARAM_TRIPLE_FAULT_REASON, Err(Errno::EPERM), Err(Errno::EPERM)),
    (HVM_PARAM_IOREQ_SERVER_PFN, Err(Errno::EPERM), Err(Errno::EPERM)),
    (HVM_PARAM_NR_IOREQ_SERVER_PAGES, Err(Errno::EPERM), Err(Errno::EPERM)),
    (HVM_PARAM_VM_GENERATION_ID_ADDR, Ok(0), Ok(0)),
    (HVM_PARAM_ALTP2M, Err(Errno::EPERM), Ok(0)),
    (HVM_PARAM_X87_FIP_WIDTH, Ok(0), Ok(0)),
    (HVM_PARAM_VM86_TSS_SIZED, Err(Errno::EINVAL), Ok(0)), // of size 0
    (HVM_PARAM_MCA_CAP, Err(Errno::EPERM), Err(Errno::EPERM)),
];

#[test]
fn access_to_every_parameter() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        for (row, (index, may_set, at_boot)) in (0u32..).zip(ACCESS) {
            assert_eq!(index, row);
            assert_eq!(read(&domain, width, index), at_boot, "{index}");
            assert_eq!(set(&domain, width, index, 0), may_set, "{index}");
        }
        for index in [39, 40, 1 << 31, u32::MAX] {
            assert_eq!(read(&domain, width, index), Err(Errno::EINVAL), "{index}");
            assert_eq!(set(&domain, width, index, 0), Err(Errno::EINVAL), "{index}");
        }
    }
}

#[test]
fn whose_parameters() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        let domids = [
            (DOMID_SELF, Ok(0)),
            (OWN, Ok(0)),
            (0, Err(Errno::EPERM)),
            (8, Err(Errno::ESRCH)),
            (0x7ff4, Err(Errno::ESRCH)),
        ];
        for cmd in [HVMOP_SET_PARAM, HVMOP_GET_PARAM] {
            for (domid, expected) in domids {
                let index = HVM_PARAM_STORE_EVTCHN;
                put(&domain, ARG, &HvmParam { domid, pad: 0, index, value: 5 });
                assert_eq!(ask(&domain, width, cmd, ARG), expected, "{cmd} of {domid}");
                // The index is judged first.
                put(&domain, ARG, &HvmParam { domid, pad: 0, index: 39, value: 5 });
                assert_eq!(ask(&domain, width, cmd, ARG), Err(Errno::EINVAL), "{cmd} of {domid}");
            }
            assert_eq!(ask(&domain, width, cmd, NOWHERE), Err(Errno::EFAULT));
        }
    }
}

#[test]
fn values_that_parameters_take() {
    let tss = |size: u64, at: u64| size << 32 | at;
    let (old, sized) = (HVM_PARAM_VM86_TSS, HVM_PARAM_VM86_TSS_SIZED);
    let bad = Err(Errno::EINVAL);
    // (set, to, answer, then read, as)
    let table = [
        (HVM_PARAM_STORE_EVTCHN, u64::MAX, Ok(0), HVM_PARAM_STORE_EVTCHN, u64::MAX),
        (HVM_PARAM_VM_GENERATION_ID_ADDR, 0xf000, Ok(0), HVM_PARAM_VM_GENERATION_ID_ADDR, 0xf000),
        (HVM_PARAM_X87_FIP_WIDTH, 8, Ok(0), HVM_PARAM_X87_FIP_WIDTH, 8),
        (HVM_PARAM_X87_FIP_WIDTH, 5, bad, HVM_PARAM_X87_FIP_WIDTH, 8),
        (HVM_PARAM_X87_FIP_WIDTH, 1 << 32 | 4, bad, HVM_PARAM_X87_FIP_WIDTH, 8),
        (old, 0xfeff_f000, Ok(0), sized, tss(128, 0xfeff_f000)),
        (old, 1 << 32, bad, old, 0xfeff_f000),
        (old, 0, Ok(0), sized, 0),
        (sized, tss(103, 0x1000), bad, sized, 0),
        (sized, tss(104, 0x1000), Ok(0), sized, tss(104, 0x1000)),
        (sized, tss(8329, 0x1000), Ok(0), sized, tss(8329, 0x1000)),
        (sized, tss(8330, 0x1000), Ok(0), sized, tss(8329, 0x1000)),
        (sized, u64::MAX, Ok(0), sized, tss(8329, 0xffff_ffff)),
    ];
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        for (row, (index, value, expected, then, reads)) in table.into_iter().enumerate() {
            assert_eq!(set(&domain, width, index, value), expected, "row {row}");
            assert_eq!(read(&domain, width, then), Ok(reads), "row {row}");
        }
    }
}

#[test]
fn the_callback_takes_effect() {
    for width in WIDTHS {
        let (domain, platform, _) = full_domain();
        let value = 2 << 56 | 0xf3;
        assert_eq!(set(&domain, width, HVM_PARAM_CALLBACK_IRQ, value), Ok(0));
        assert_eq!(platform.take().via, Some(CallbackVia::Vector(0xf3)));
        assert_eq!(read(&domain, width, HVM_PARAM_CALLBACK_IRQ), Ok(value));
        assert_eq!(crate::xen::domain::read(&domain.layout).width, width);
        // What the machine refuses is not kept.
        platform.refuses.store(true, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(set(&domain, width, HVM_PARAM_CALLBACK_IRQ, 9), Err(Errno::EINVAL));
        assert_eq!(read(&domain, width, HVM_PARAM_CALLBACK_IRQ), Ok(value));
    }
}

#[test]
fn other_operations() {
    for width in WIDTHS {
        let (domain, _, clock) = full_domain();
        clock.set_ns(0x1_2345_6789);
        assert_eq!(ask(&domain, width, HVMOP_GET_TIME, ARG), Ok(0));
        assert_eq!(get::<u64>(&domain, ARG), 0x1_2345_6789);

        let vectors = [
            (0, 0x10, Ok(0)),
            (1, 0xff, Ok(0)),
            (1, 0x0f, Err(Errno::EINVAL)),
            (2, 0xf3, Err(Errno::ENOENT)),
            (2, 0, Err(Errno::EINVAL)),
            (u32::MAX, 0xf3, Err(Errno::ENOENT)),
        ];
        for (vcpu, vector, expected) in vectors {
            put(&domain, ARG, &HvmEvtchnUpcallVector { vcpu, vector, _pad: [9; 3] });
            let got = ask(&domain, width, HVMOP_SET_EVTCHN_UPCALL_VECTOR, ARG);
            assert_eq!(got, expected, "vCPU {vcpu} vector {vector:#x}");
        }

        for (pfn, kind) in [(0, 0), (0xff, 0), (0x100, 2), (0x1000, 0), (u64::MAX, 2)] {
            let request = HvmGetMemType { domid: DOMID_SELF, mem_type: 99, pad: [0; 2], pfn };
            put(&domain, ARG, &request);
            assert_eq!(ask(&domain, width, HVMOP_GET_MEM_TYPE, ARG), Ok(0));
            assert_eq!(get::<HvmGetMemType>(&domain, ARG).mem_type, kind, "{pfn:#x}");
        }
        put(&domain, ARG, &HvmGetMemType { domid: 8, ..Default::default() });
        assert_eq!(ask(&domain, width, HVMOP_GET_MEM_TYPE, ARG), Err(Errno::ESRCH));

        let dying = [
            (DOMID_SELF, Errno::EINVAL),
            (OWN, Errno::EINVAL),
            (0, Errno::EOPNOTSUPP),
            (8, Errno::ESRCH),
        ];
        for (domid, expected) in dying {
            put(&domain, ARG, &HvmPagetableDying { domid, ..Default::default() });
            assert_eq!(ask(&domain, width, HVMOP_PAGETABLE_DYING, ARG), Err(expected), "{domid}");
        }

        let traces =
            [(0xfff, 28, Ok(0)), (0, 29, Err(Errno::EINVAL)), (0x1000, 0, Err(Errno::EINVAL))];
        for (event, extra_bytes, expected) in traces {
            put(&domain, ARG, &HvmXentrace { event, extra_bytes, extra: [0; 28] });
            assert_eq!(ask(&domain, width, HVMOP_XENTRACE, ARG), expected, "{event:#x}");
        }

        let table = [
            (HVMOP_FLUSH_TLBS, 0, Err(Errno::ENOSYS)),
            (HVMOP_FLUSH_TLBS, ARG, Err(Errno::EINVAL)),
            (HVMOP_GUEST_REQUEST_VM_EVENT, 0, Ok(0)),
            (HVMOP_GUEST_REQUEST_VM_EVENT, ARG, Err(Errno::EINVAL)),
            (HVMOP_ALTP2M, ARG, Err(Errno::EOPNOTSUPP)),
            (HVMOP_ALTP2M, NOWHERE, Err(Errno::EOPNOTSUPP)),
            (2, ARG, Err(Errno::ENOSYS)),
            (8, ARG, Err(Errno::ENOSYS)),
            (26, ARG, Err(Errno::ENOSYS)),
            (u32::MAX, ARG, Err(Errno::ENOSYS)),
            (HVMOP_GET_TIME, NOWHERE, Err(Errno::EFAULT)),
            (HVMOP_SET_EVTCHN_UPCALL_VECTOR, NOWHERE, Err(Errno::EFAULT)),
            (HVMOP_GET_MEM_TYPE, NOWHERE, Err(Errno::EFAULT)),
            (HVMOP_PAGETABLE_DYING, NOWHERE, Err(Errno::EFAULT)),
            (HVMOP_XENTRACE, NOWHERE, Err(Errno::EFAULT)),
        ];
        for (cmd, arg, expected) in table {
            assert_eq!(ask(&domain, width, cmd, arg), expected, "{cmd} {arg:#x}");
        }
        // The operation is an unsigned long.
        let high = 1 << 32 | u64::from(HVMOP_GET_TIME);
        let expected = if width == Width::Bits64 { Err(Errno::ENOSYS) } else { Ok(0) };
        assert_eq!(call(&domain, width, HYPERVISOR_HVM_OP, &[high, ARG]), expected);
    }
}
