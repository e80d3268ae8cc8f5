//! The amounts of memory and the balloon's accounts, in both widths.

use xen_abi::memory::*;
use xen_abi::xen::DOMID_SELF;

use super::*;
use crate::pages::Width;
use crate::xen::memory_op::tests::{PAGES, ask, put_longs};
use crate::xen::test_calls::{ARG, NOWHERE, WIDTHS, full_config, full_domain};
use crate::xen::test_platform::{HIGH_RAM, domain_with, put};

const OWN: u16 = 7;

#[test]
fn amounts() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        let pages = i64::try_from(PAGES).unwrap();
        let last = i64::try_from((HIGH_RAM >> 12) + 15).unwrap();
        let amounts = [
            (XENMEM_CURRENT_RESERVATION, pages),
            (XENMEM_MAXIMUM_RESERVATION, pages),
            (XENMEM_MAXIMUM_GPFN, last),
        ];
        for (cmd, amount) in amounts {
            let domids = [
                (DOMID_SELF, Ok(amount)),
                (OWN, Ok(amount)),
                (0, Err(Errno::EPERM)),
                (8, Err(Errno::ESRCH)),
                (u16::MAX, Err(Errno::ESRCH)),
            ];
            for (domid, expected) in domids {
                put(&domain, ARG, &MemoryDomain { domid });
                assert_eq!(ask(&domain, width, cmd, ARG), expected, "{cmd} of {domid}");
            }
            assert_eq!(ask(&domain, width, cmd, NOWHERE), Err(Errno::EFAULT), "{cmd}");
            assert_eq!(ask(&domain, width, cmd | 1 << 6, ARG), Err(Errno::EINVAL), "{cmd}");
        }
        assert_eq!(ask(&domain, width, XENMEM_MAXIMUM_RAM_PAGE, 0), Ok(last + 1));
        assert_eq!(ask(&domain, width, XENMEM_MAXIMUM_RAM_PAGE | 1 << 6, 0), Err(Errno::EINVAL));
    }
}

struct Request {
    extents: Vec<u64>,
    order: u32,
    flags: u32,
    domid: u16,
}

fn frames(extents: &[u64]) -> Request {
    Request { extents: extents.to_vec(), order: 0, flags: 0, domid: DOMID_SELF }
}

/// Asks for a change and answers with the extents done.
fn adjust(domain: &Domain, width: Width, cmd: u32, request: &Request) -> i64 {
    put_longs(domain, width, 0xa000, &request.extents);
    let nr_extents = request.extents.len();
    put_reservation(domain, width, nr_extents as u64, request);
    ask(domain, width, cmd, ARG).expect("never an error")
}

fn put_reservation(domain: &Domain, width: Width, nr_extents: u64, request: &Request) {
    let wide = MemoryReservation {
        extent_start: 0xa000,
        nr_extents,
        extent_order: request.order,
        mem_flags: request.flags,
        domid: request.domid,
        ..Default::default()
    };
    match width {
        Width::Bits64 => put(domain, ARG, &wide),
        Width::Bits32 => put(
            domain,
            ARG,
            &MemoryReservation32 {
                extent_start: 0xa000,
                nr_extents: nr_extents.try_into().unwrap(),
                extent_order: wide.extent_order,
                mem_flags: wide.mem_flags,
                domid: wide.domid,
                ..Default::default()
            },
        ),
    }
}

const DECREASE: u32 = XENMEM_DECREASE_RESERVATION;
const POPULATE: u32 = XENMEM_POPULATE_PHYSMAP;

#[test]
fn a_balloon_inflates_and_deflates() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        assert_eq!(adjust(&domain, width, DECREASE, &frames(&[32, 33, 0x1000])), 3);
        assert_eq!(domain.physmap.pages(), PAGES - 3);
        // Given back twice, or never had: the list ends there.
        assert_eq!(adjust(&domain, width, DECREASE, &frames(&[34, 33, 35])), 1);
        assert_eq!(adjust(&domain, width, DECREASE, &frames(&[0x8_0000])), 0);
        assert_eq!(adjust(&domain, width, DECREASE, &frames(&[256])), 0, "reserved, not RAM");
        assert_eq!(domain.physmap.pages(), PAGES - 4);

        assert_eq!(adjust(&domain, width, POPULATE, &frames(&[33, 0x1000])), 2);
        assert_eq!(adjust(&domain, width, POPULATE, &frames(&[32, 32, 34])), 1, "taken");
        assert_eq!(adjust(&domain, width, POPULATE, &frames(&[34])), 1);
        assert_eq!(domain.physmap.pages(), PAGES);
        // At the limit there is no more, wherever it is to go.
        assert_eq!(adjust(&domain, width, POPULATE, &frames(&[256])), 0);
        assert_eq!(adjust(&domain, width, DECREASE, &frames(&[40])), 1);
        assert_eq!(adjust(&domain, width, POPULATE, &frames(&[0x9_0000])), 0, "not backed");
        assert_eq!(domain.physmap.pages(), PAGES - 1);
    }
}

#[test]
fn extents_are_whole() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        let of_4 = |extents: &[u64]| Request { order: 2, ..frames(extents) };
        assert_eq!(adjust(&domain, width, DECREASE, &of_4(&[40, 48])), 2);
        assert_eq!(domain.physmap.pages(), PAGES - 8);
        // 51 is a hole, 52 is not: nothing of the extent is given.
        assert_eq!(adjust(&domain, width, POPULATE, &of_4(&[50])), 0);
        assert_eq!(domain.physmap.pages(), PAGES - 8);
        assert_eq!(adjust(&domain, width, POPULATE, &of_4(&[48, 40])), 2);
        assert_eq!(domain.physmap.pages(), PAGES);
        let largest = Request { order: 9, ..frames(&[0]) };
        assert_eq!(adjust(&domain, width, DECREASE, &largest), 0, "ends past RAM");
        let (domain, ..) = full_domain();
        let too_large = Request { order: 10, ..frames(&[0]) };
        assert_eq!(adjust(&domain, width, DECREASE, &too_large), 0);
        assert_eq!(domain.physmap.pages(), PAGES);
    }
}

#[test]
fn bad_reservations_change_nothing() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        let table = [
            Request { domid: 0, ..frames(&[32]) },
            Request { domid: 8, ..frames(&[32]) },
            Request { flags: 12, ..frames(&[32]) }, // of 4 KiB there is nothing
            Request { order: 32, ..frames(&[32]) },
            Request { order: u32::MAX, ..frames(&[32]) },
            frames(&[]),
        ];
        for (row, request) in table.iter().enumerate() {
            for cmd in [XENMEM_INCREASE_RESERVATION, DECREASE, POPULATE] {
                assert_eq!(adjust(&domain, width, cmd, request), 0, "row {row}, {cmd}");
            }
        }
        for cmd in [XENMEM_INCREASE_RESERVATION, DECREASE, POPULATE] {
            assert_eq!(ask(&domain, width, cmd, NOWHERE), Ok(0));
            // Too many to be counted through a continuation.
            put_reservation(&domain, width, 1 << 26, &frames(&[]));
            assert_eq!(ask(&domain, width, cmd, ARG), Ok(0));
            // Beginning past the end answers with the beginning.
            put_reservation(&domain, width, 2, &frames(&[]));
            assert_eq!(ask(&domain, width, cmd | 5 << 6, ARG), Ok(5));
        }
        let on_demand = Request { flags: XENMEMF_POPULATE_ON_DEMAND, ..frames(&[32]) };
        assert_eq!(adjust(&domain, width, DECREASE, &frames(&[32])), 1);
        assert_eq!(adjust(&domain, width, POPULATE, &on_demand), 0);
        let below_4_gib = Request { flags: 32, ..frames(&[32]) };
        assert_eq!(adjust(&domain, width, POPULATE, &below_4_gib), 1);
        assert_eq!(domain.physmap.pages(), PAGES);
    }
}

#[test]
fn pages_without_a_frame_count() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        let increase = |order| {
            let request = Request { order, ..frames(&[0, 0, 0]) };
            adjust(&domain, width, XENMEM_INCREASE_RESERVATION, &request)
        };
        assert_eq!(increase(0), 0, "at the limit");
        assert_eq!(adjust(&domain, width, DECREASE, &frames(&[32, 33, 34, 35, 36])), 5);
        assert_eq!(increase(1), 2);
        assert_eq!(domain.physmap.pages(), PAGES - 1);
        assert_eq!(adjust(&domain, width, POPULATE, &frames(&[32, 33])), 1);
    }
}

#[test]
fn memory_given_back_goes_to_the_host_in_runs() {
    let (domain, platform, _) = full_domain();
    let width = Width::Bits64;
    let released = |request| {
        let _ = adjust(&domain, width, DECREASE, &request);
        platform.take().released
    };
    let list = [32, 33, 34, 50, 49, 48, 60, 0x1000];
    assert_eq!(released(frames(&list)), [(32, 3), (48, 3), (60, 1), (0x1000, 1)]);
    assert_eq!(released(frames(&[40, 32, 41])), [(40, 1)], "the list ends at a hole");
    assert_eq!(released(Request { order: 2, ..frames(&[68, 72]) }), [(68, 8)]);
    // What was done of an extent before its hole is gone, as with Xen.
    assert_eq!(released(Request { order: 2, ..frames(&[58]) }), [(58, 2)]);
    assert_eq!(adjust(&domain, width, POPULATE, &frames(&[32])), 1);
    assert_eq!(platform.take().released, []);
}

#[test]
fn one_call_ends_before_the_longest_list() {
    let (domain, ..) = full_domain();
    // 67 million extents, the first of which are good.
    put_longs(&domain, Width::Bits64, 0xa000, &[32, 33, u64::MAX]);
    put_reservation(&domain, Width::Bits64, (1 << 26) - 1, &frames(&[]));
    assert_eq!(ask(&domain, Width::Bits64, DECREASE, ARG), Ok(2));
}

#[test]
fn odd_memory_maps_are_counted_in_whole_pages() {
    let entry = |addr, size, kind| crate::xen::MemoryMapEntry { addr, size, kind };
    let config = crate::xen::DomainConfig {
        memory_map: vec![
            entry(0x10_0000, 0x1800, 1), // one page and a half
            entry(0x800, 0x2000, 1),     // one page between two halves
            entry(0x20_0000, 0, 1),
            entry(u64::MAX - 0x1fff, u64::MAX, 1),
            entry(0x30_0000, 0x10_0000, 2),
        ],
        ..full_config()
    };
    let (domain, ..) = domain_with(config);
    assert_eq!(domain.physmap.pages(), 3);
    for (gfn, present) in [(0, false), (1, true), (2, false), (0x100, true), (0x101, false)] {
        assert_eq!(domain.physmap.is_present(gfn), present, "{gfn:#x}");
    }
}
