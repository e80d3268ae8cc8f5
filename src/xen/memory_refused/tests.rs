//! What Xen checks before it turns an HVM guest away, in both widths.

use xen_abi::memory::*;
use xen_abi::xen::DOMID_SELF;

use super::*;
use crate::pages::Width;
use crate::xen::Domain;
use crate::xen::memory_op::tests::{ask, put_longs};
use crate::xen::test_calls::{ARG, NOWHERE, WIDTHS, full_domain};
use crate::xen::test_platform::{get, put};

const OWN: u16 = 7;
const LIST: u64 = 0xa000;

fn side(extent_start: u64, nr_extents: u64, extent_order: u32) -> MemoryReservation {
    MemoryReservation {
        extent_start,
        nr_extents,
        extent_order,
        domid: DOMID_SELF,
        ..Default::default()
    }
}

fn narrow(side: &MemoryReservation) -> MemoryReservation32 {
    let low = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap();
    MemoryReservation32 {
        extent_start: low(side.extent_start),
        nr_extents: low(side.nr_extents),
        extent_order: side.extent_order,
        mem_flags: side.mem_flags,
        domid: side.domid,
        ..Default::default()
    }
}

fn put_exchange(domain: &Domain, width: Width, request: &MemoryExchange) {
    match width {
        Width::Bits64 => put(domain, ARG, request),
        Width::Bits32 => put(
            domain,
            ARG,
            &MemoryExchange32 {
                in_: narrow(&request.in_),
                out: narrow(&request.out),
                nr_exchanged: request.nr_exchanged.try_into().unwrap(),
            },
        ),
    }
}

#[test]
fn exchanges() {
    let of = |domid| MemoryReservation { domid, ..side(LIST, 2, 0) };
    // (in, out, exchanged before, the answer)
    let table = [
        (side(LIST, 2, 0), side(LIST, 2, 0), 0, Err(Errno::EOPNOTSUPP)),
        (side(LIST, 2, 0), side(LIST, 1, 1), 0, Err(Errno::EOPNOTSUPP)),
        (side(LIST, 1, 1), side(LIST, 2, 0), 0, Err(Errno::EOPNOTSUPP)),
        (of(OWN), of(OWN), 0, Err(Errno::EOPNOTSUPP)),
        (side(LIST, 2, 0), side(LIST, 2, 0), 1, Err(Errno::EINVAL)), // frame 0x100
        (side(LIST, 2, 0), side(LIST, 2, 0), 2, Ok(0)),
        (side(LIST, 0, 0), side(LIST, 0, 0), 0, Ok(0)),
        (side(LIST, 2, 0), side(LIST, 2, 0), 3, Err(Errno::EINVAL)),
        (side(LIST, 2, 0), side(LIST, 3, 0), 0, Err(Errno::EINVAL)),
        (side(LIST, 2, 10), side(LIST, 2, 10), 0, Err(Errno::EPERM)),
        (side(LIST, 1, 9), side(LIST, 1, 32), 0, Err(Errno::EPERM)),
        (side(NOWHERE, 2, 0), side(LIST, 2, 0), 0, Err(Errno::EFAULT)),
        (of(DOMID_SELF), of(OWN), 0, Err(Errno::EINVAL)),
        (of(0), of(0), 0, Err(Errno::EPERM)),
        (of(9), of(9), 0, Err(Errno::ESRCH)),
    ];
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        put_longs(&domain, width, LIST, &[0x30, 0x100]);
        for (row, (in_, out, nr_exchanged, expected)) in table.into_iter().enumerate() {
            put_exchange(&domain, width, &MemoryExchange { in_, out, nr_exchanged });
            let got = ask(&domain, width, XENMEM_EXCHANGE, ARG);
            assert_eq!(got, expected, "row {row} {width:?}");
        }
        assert_eq!(ask(&domain, width, XENMEM_EXCHANGE | 1 << 6, ARG), Err(Errno::EINVAL));
    }
    let (domain, ..) = full_domain();
    let huge = side(LIST, u64::MAX, 9);
    put(&domain, ARG, &MemoryExchange { in_: huge, out: huge, nr_exchanged: 0 });
    assert_eq!(ask(&domain, Width::Bits64, XENMEM_EXCHANGE, ARG), Err(Errno::EINVAL));
}

#[test]
fn claims() {
    let claim = |domid| MemoryReservation { domid, nr_extents: 5, ..Default::default() };
    let table = [
        (claim(OWN), Errno::EPERM),
        (claim(0), Errno::EPERM),
        (claim(9), Errno::EINVAL),
        (claim(DOMID_SELF), Errno::EINVAL),
        (MemoryReservation { extent_start: LIST, ..claim(OWN) }, Errno::EINVAL),
        (MemoryReservation { extent_order: 1, ..claim(OWN) }, Errno::EINVAL),
        (MemoryReservation { mem_flags: 1, ..claim(OWN) }, Errno::EINVAL),
    ];
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        for (row, (request, expected)) in table.into_iter().enumerate() {
            match width {
                Width::Bits64 => put(&domain, ARG, &request),
                Width::Bits32 => put(&domain, ARG, &narrow(&request)),
            }
            let got = ask(&domain, width, XENMEM_CLAIM_PAGES, ARG);
            assert_eq!(got, Err(expected), "row {row} {width:?}");
        }
        assert_eq!(ask(&domain, width, XENMEM_CLAIM_PAGES | 1 << 6, ARG), Err(Errno::EINVAL));
    }
}

#[test]
fn maps_and_targets() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        let put_map = |domid, nr_entries| match width {
            Width::Bits64 => {
                let map = MemoryMap { nr_entries, ..Default::default() };
                put(&domain, ARG, &ForeignMemoryMap { domid, map, ..Default::default() });
            }
            Width::Bits32 => {
                let map = MemoryMap32 { nr_entries, ..Default::default() };
                put(&domain, ARG, &ForeignMemoryMap32 { domid, map, ..Default::default() });
            }
        };
        let table = [
            (DOMID_SELF, 1024, Errno::EPERM),
            (OWN, 0, Errno::EPERM),
            (OWN, 1025, Errno::EINVAL),
            (9, 1, Errno::ESRCH),
            (9, 1025, Errno::EINVAL),
        ];
        for (domid, entries, expected) in table {
            put_map(domid, entries);
            let got = ask(&domain, width, XENMEM_SET_MEMORY_MAP, ARG);
            assert_eq!(got, Err(expected), "{domid} {entries} {width:?}");
        }
        for (domid, expected) in [(OWN, Errno::EPERM), (0, Errno::EPERM), (9, Errno::ESRCH)] {
            match width {
                Width::Bits64 => put(&domain, ARG, &PodTarget { domid, ..Default::default() }),
                Width::Bits32 => put(&domain, ARG, &PodTarget32 { domid, ..Default::default() }),
            }
            for cmd in [XENMEM_SET_POD_TARGET, XENMEM_GET_POD_TARGET] {
                assert_eq!(ask(&domain, width, cmd, ARG), Err(expected), "{cmd} {domid}");
                assert_eq!(ask(&domain, width, cmd | 1 << 6, ARG), Err(Errno::ENOSYS));
            }
        }
    }
}

#[test]
fn no_devices_reserve_memory() {
    let cmd = XENMEM_RESERVED_DEVICE_MEMORY_MAP;
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        for (flags, expected, entries) in [
            (0, Ok(0), 0),
            (XENMEM_RDM_ALL, Ok(0), 0),
            (2, Err(Errno::EINVAL), 5),
            (u32::MAX, Err(Errno::EINVAL), 5),
        ] {
            match width {
                Width::Bits64 => {
                    let request =
                        ReservedDeviceMemoryMap { flags, nr_entries: 5, ..Default::default() };
                    put(&domain, ARG, &request);
                }
                Width::Bits32 => {
                    let request =
                        ReservedDeviceMemoryMap32 { flags, nr_entries: 5, ..Default::default() };
                    put(&domain, ARG, &request);
                }
            }
            assert_eq!(ask(&domain, width, cmd, ARG), expected, "{flags}");
            assert_eq!(get::<[u32; 2]>(&domain, ARG), [flags, entries], "{flags}");
        }
        assert_eq!(ask(&domain, width, cmd, NOWHERE), Err(Errno::EFAULT));
        assert_eq!(ask(&domain, width, cmd | 1 << 6, ARG), Err(Errno::EINVAL));
    }
}
