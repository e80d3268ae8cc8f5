//! Memory map, placing of pages and the balloon's accounts, in both widths.

use xen_abi::hypercall::HYPERVISOR_MEMORY_OP;
use xen_abi::memory::*;
use xen_abi::xen::DOMID_SELF;
use zerocopy::IntoBytes;

use super::*;
use crate::pages::Width;
use crate::xen::test_calls::{ARG, NOWHERE, WIDTHS, call, full_config, full_domain};
use crate::xen::test_platform::{HIGH_RAM, RAM_SIZE, domain, domain_with, get, put};

/// Pages of RAM in the full configuration.
const PAGES: u64 = 256 + 16;
const OWN: u16 = 7;

fn ask(domain: &Domain, width: Width, cmd: u32, arg: u64) -> Reply {
    call(domain, width, HYPERVISOR_MEMORY_OP, &[cmd.into(), arg])
}

/// Words as `unsigned long` of the width.
fn put_longs(domain: &Domain, width: Width, at: u64, words: &[u64]) {
    for (index, word) in (0u64..).zip(words) {
        match width {
            Width::Bits64 => put(domain, at + index * 8, word),
            Width::Bits32 => put(domain, at + index * 4, &u32::try_from(*word).unwrap()),
        }
    }
}

fn put_map(domain: &Domain, width: Width, nr_entries: u32, buffer: u64) {
    match width {
        Width::Bits64 => put(domain, ARG, &MemoryMap { nr_entries, buffer, ..Default::default() }),
        Width::Bits32 => {
            put(domain, ARG, &MemoryMap32 { nr_entries, buffer: buffer.try_into().unwrap() });
        }
    }
}

#[test]
fn memory_map_fills_the_room_there_is() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        let entries = [
            E820Entry { addr: 0, size: 1 << 20, type_: 1 },
            E820Entry { addr: 1 << 20, size: 0x1000, type_: 2 },
            E820Entry { addr: HIGH_RAM, size: 0x1_0000, type_: 1 },
        ];
        for (room, written) in [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3), (u32::MAX, 3)] {
            put(&domain, 0xa000, &[0xee_u8; 80]);
            put_map(&domain, width, room, 0xa000);
            assert_eq!(ask(&domain, width, XENMEM_MEMORY_MAP, ARG), Ok(0), "room {room}");
            assert_eq!(get::<u32>(&domain, ARG), written, "room {room}");
            let bytes: [u8; 80] = get(&domain, 0xa000);
            let filled = written as usize * 20;
            assert_eq!(bytes[..filled], entries.as_bytes()[..filled], "room {room}");
            assert!(bytes[filled..].iter().all(|&byte| byte == 0xee), "room {room}");
        }
        assert_eq!(ask(&domain, width, XENMEM_MEMORY_MAP, NOWHERE), Err(Errno::EFAULT));
        put_map(&domain, width, 3, NOWHERE);
        assert_eq!(ask(&domain, width, XENMEM_MEMORY_MAP, ARG), Err(Errno::EFAULT));
        // Entries end where RAM does.
        put_map(&domain, width, 3, RAM_SIZE as u64 - 30);
        assert_eq!(ask(&domain, width, XENMEM_MEMORY_MAP, ARG), Err(Errno::EFAULT));
        // A continuation of it does not exist.
        assert_eq!(ask(&domain, width, XENMEM_MEMORY_MAP | 1 << 6, ARG), Err(Errno::ENOSYS));
    }
}

#[test]
fn memory_map_of_a_machine_without_one() {
    for width in WIDTHS {
        let (domain, ..) = domain(1);
        put_map(&domain, width, 3, 0xa000);
        assert_eq!(ask(&domain, width, XENMEM_MEMORY_MAP, ARG), Err(Errno::ENOSYS));
    }
}

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

#[test]
fn refused_operations() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        put(&domain, ARG, &[0u64; 16]);
        let hidden = [
            XENMEM_MACHINE_MEMORY_MAP,
            XENMEM_MACHPHYS_MAPPING,
            XENMEM_MACHPHYS_MFN_LIST,
            XENMEM_MACHPHYS_COMPAT_MFN_LIST,
            XENMEM_PAGING_OP,
            XENMEM_SHARING_OP,
            XENMEM_RESERVED_DEVICE_MEMORY_MAP,
            8,
            29,
            63,
        ];
        for cmd in hidden {
            assert_eq!(ask(&domain, width, cmd, ARG), Err(Errno::ENOSYS), "{cmd}");
        }
        // All zero: domain 0 is asked for.
        let of_domain_0 = [
            (XENMEM_EXCHANGE, Ok(0)), // of nothing
            (XENMEM_CLAIM_PAGES, Err(Errno::EPERM)),
            (XENMEM_GET_VNUMAINFO, Err(Errno::EPERM)),
            (XENMEM_SET_MEMORY_MAP, Err(Errno::EPERM)),
            (XENMEM_SET_POD_TARGET, Err(Errno::EPERM)),
            (XENMEM_GET_POD_TARGET, Err(Errno::EPERM)),
            (XENMEM_ACCESS_OP, Err(Errno::EPERM)),
            (XENMEM_ACQUIRE_RESOURCE, Err(Errno::EACCES)),
            (XENMEM_GET_SHARING_FREED_PAGES, Ok(0)),
            (XENMEM_GET_SHARING_SHARED_PAGES, Ok(0)),
        ];
        for (cmd, expected) in of_domain_0 {
            assert_eq!(ask(&domain, width, cmd, ARG), expected, "{cmd}");
        }
        let reading = [
            XENMEM_EXCHANGE,
            XENMEM_CLAIM_PAGES,
            XENMEM_GET_VNUMAINFO,
            XENMEM_SET_MEMORY_MAP,
            XENMEM_SET_POD_TARGET,
            XENMEM_GET_POD_TARGET,
        ];
        for cmd in reading {
            assert_eq!(ask(&domain, width, cmd, NOWHERE), Err(Errno::EFAULT), "{cmd}");
        }
        put(&domain, ARG, &VnumaTopologyInfo { domid: DOMID_SELF, ..Default::default() });
        assert_eq!(ask(&domain, width, XENMEM_GET_VNUMAINFO, ARG), Err(Errno::EOPNOTSUPP));
        put(&domain, ARG, &VnumaTopologyInfo { pad: 1, ..Default::default() });
        assert_eq!(ask(&domain, width, XENMEM_GET_VNUMAINFO, ARG), Err(Errno::EINVAL));
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
        assert_eq!(adjust(&domain, width, XENMEM_INCREASE_RESERVATION, &frames(&[32])), 0);
        let on_demand = Request { flags: XENMEMF_POPULATE_ON_DEMAND, ..frames(&[32]) };
        assert_eq!(adjust(&domain, width, DECREASE, &frames(&[32])), 1);
        assert_eq!(adjust(&domain, width, POPULATE, &on_demand), 0);
        let below_4_gib = Request { flags: 32, ..frames(&[32]) };
        assert_eq!(adjust(&domain, width, POPULATE, &below_4_gib), 1);
        assert_eq!(domain.physmap.pages(), PAGES);
    }
}

#[test]
fn one_call_ends_before_the_longest_list() {
    let (domain, ..) = full_domain();
    // 67 million extents, the first of which are good.
    put_longs(&domain, Width::Bits64, 0xa000, &[32, 33, u64::MAX]);
    put_reservation(&domain, Width::Bits64, (1 << 26) - 1, &frames(&[]));
    assert_eq!(ask(&domain, Width::Bits64, DECREASE, ARG), Ok(2));
}

fn put_add(domain: &Domain, width: Width, request: AddToPhysmap) {
    match width {
        Width::Bits64 => put(domain, ARG, &request),
        Width::Bits32 => put(
            domain,
            ARG,
            &AddToPhysmap32 {
                domid: request.domid,
                size: request.size,
                space: request.space,
                idx: u32::try_from(request.idx & u64::from(u32::MAX)).unwrap(),
                gpfn: u32::try_from(request.gpfn & u64::from(u32::MAX)).unwrap(),
            },
        ),
    }
}

fn add(domid: u16, space: u32, idx: u64, gpfn: u64) -> AddToPhysmap {
    AddToPhysmap { domid, size: 0, space, idx, gpfn }
}

#[test]
fn placing_a_page() {
    let (info, grant) = (XENMAPSPACE_SHARED_INFO, XENMAPSPACE_GRANT_TABLE);
    for width in WIDTHS {
        let (domain, platform, _) = full_domain();
        let table = [
            (add(DOMID_SELF, info, 0, 0x20), Ok(0)),
            (add(OWN, info, 0, 0x21), Ok(0)),
            (add(0, info, 0, 0x22), Err(Errno::EPERM)),
            (add(9, info, 0, 0x22), Err(Errno::ESRCH)),
            (add(DOMID_SELF, info, 1, 0x22), Err(Errno::EINVAL)),
            (add(DOMID_SELF, info, 0, u64::MAX), Err(Errno::EINVAL)),
            (add(DOMID_SELF, info, 0, 0x8_0000), Err(Errno::EINVAL)),
            (add(DOMID_SELF, grant, 0, 0x23), Ok(0)),
            (add(DOMID_SELF, grant, 63, 0x24), Ok(0)),
            (add(DOMID_SELF, grant, 64, 0x25), Err(Errno::EINVAL)),
            (add(DOMID_SELF, grant, 0x8000_0000, 0x25), Err(Errno::EINVAL)),
            (add(DOMID_SELF, grant, 0xffff_ffff, 0x25), Err(Errno::EINVAL)),
            (add(DOMID_SELF, XENMAPSPACE_GMFN, 0x30, 0x25), Err(Errno::EINVAL)),
            (add(DOMID_SELF, XENMAPSPACE_GMFN_FOREIGN, 0, 0x25), Err(Errno::ENOSYS)),
            (add(9, XENMAPSPACE_GMFN_FOREIGN, 0, 0x25), Err(Errno::ENOSYS)),
            (add(DOMID_SELF, XENMAPSPACE_DEV_MMIO, 0, 0x25), Err(Errno::EACCES)),
            (add(9, XENMAPSPACE_DEV_MMIO, 0, 0x25), Err(Errno::ESRCH)),
            (add(DOMID_SELF, 6, 0, 0x25), Err(Errno::EINVAL)),
            (add(DOMID_SELF, XENMAPSPACE_GMFN_RANGE, 0, 0x25), Ok(0)), // of nothing
        ];
        for (request, expected) in table {
            put_add(&domain, width, request);
            let got = ask(&domain, width, XENMEM_ADD_TO_PHYSMAP, ARG);
            assert_eq!(got, expected, "{request:x?} {width:?}");
        }
        assert_eq!(ask(&domain, width, XENMEM_ADD_TO_PHYSMAP, NOWHERE), Err(Errno::EFAULT));
        let continued = XENMEM_ADD_TO_PHYSMAP | 1 << 22;
        assert_eq!(ask(&domain, width, continued, ARG), Err(Errno::EDOM));
        // The machine was asked for the page that is not RAM, and for no other.
        assert!(platform.take().backed.iter().all(|gpa| gpa.0 >> 12 >= 0x8_0000));
        // Four frames of RAM lie under pages of the hypervisor's, or did.
        assert_eq!(domain.physmap.pages(), PAGES - 4);
    }
}

#[test]
fn ranges() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        let range = |size, idx, gpfn| AddToPhysmap {
            size,
            ..add(DOMID_SELF, XENMAPSPACE_GMFN_RANGE, idx, gpfn)
        };
        let cmd = XENMEM_ADD_TO_PHYSMAP;
        put_add(&domain, width, range(2, 0x30, 0x40));
        assert_eq!(ask(&domain, width, cmd, ARG), Err(Errno::EINVAL));
        assert_eq!(ask(&domain, width, cmd | 2 << 6, ARG), Ok(0));
        assert_eq!(ask(&domain, width, cmd | 3 << 6, ARG), Err(Errno::EILSEQ));
    }
    let (domain, ..) = full_domain();
    let range =
        AddToPhysmap { size: 2, ..add(DOMID_SELF, XENMAPSPACE_GMFN_RANGE, u64::MAX - 1, 0x40) };
    put_add(&domain, Width::Bits64, range);
    let got = ask(&domain, Width::Bits64, XENMEM_ADD_TO_PHYSMAP, ARG);
    assert_eq!(got, Err(Errno::EOVERFLOW));
}

#[test]
fn placing_in_batches() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        let put_batch = |domid, space, size, errs: u64| {
            let (idxs, gpfns) = (0xa000, 0xb000);
            match width {
                Width::Bits64 => {
                    let request = AddToPhysmapBatch {
                        domid,
                        space,
                        size,
                        foreign_domid: 0,
                        idxs,
                        gpfns,
                        errs,
                    };
                    put(&domain, ARG, &request);
                }
                Width::Bits32 => {
                    let request = AddToPhysmapBatch32 {
                        domid,
                        space,
                        size,
                        foreign_domid: 0,
                        idxs: 0xa000,
                        gpfns: 0xb000,
                        errs: errs.try_into().unwrap(),
                    };
                    put(&domain, ARG, &request);
                }
            }
        };
        let spaces = [
            XENMAPSPACE_GRANT_TABLE,
            XENMAPSPACE_GMFN_FOREIGN,
            XENMAPSPACE_GMFN_RANGE,
            XENMAPSPACE_DEV_MMIO,
        ];
        let [grant, foreign, range, mmio] = spaces.map(|space| u16::try_from(space).unwrap());
        let cmd = XENMEM_ADD_TO_PHYSMAP_BATCH;
        put_longs(&domain, width, 0xa000, &[0, 64, 1]);
        put_longs(&domain, width, 0xb000, &[0x20, 0x21, 0x22]);

        put_batch(DOMID_SELF, grant, 3, 0xc000);
        assert_eq!(ask(&domain, width, cmd, ARG), Ok(0));
        assert_eq!(get::<[i32; 3]>(&domain, 0xc000), [0, -22, 0]);
        assert_eq!(domain.grants.frames(), 2);

        put_batch(DOMID_SELF, foreign, 3, 0xc000);
        assert_eq!(ask(&domain, width, cmd, ARG), Ok(0));
        assert_eq!(get::<[i32; 3]>(&domain, 0xc000), [-1, -1, -1]);

        let table = [
            (DOMID_SELF, range, 3, 0xc000, cmd, Err(Errno::EOPNOTSUPP)),
            (DOMID_SELF, mmio, 3, 0xc000, cmd, Err(Errno::EACCES)),
            (0, grant, 3, 0xc000, cmd, Err(Errno::EPERM)),
            (9, grant, 3, 0xc000, cmd, Err(Errno::ESRCH)),
            (DOMID_SELF, grant, 3, NOWHERE, cmd, Err(Errno::EFAULT)),
            (DOMID_SELF, grant, 0, NOWHERE, cmd, Ok(0)),
            (DOMID_SELF, grant, 3, 0xc000, cmd | 3 << 6, Err(Errno::EILSEQ)),
            (DOMID_SELF, grant, 3, 0xc000, cmd | 4 << 6, Err(Errno::EILSEQ)),
            (DOMID_SELF, grant, 3, 0xc000, cmd | 1 << 22, Err(Errno::EDOM)),
        ];
        for (domid, space, size, errs, cmd, expected) in table {
            put_batch(domid, space, size, errs);
            let got = ask(&domain, width, cmd, ARG);
            assert_eq!(got, expected, "{domid} {space} {size} {errs:x} {cmd:x}");
        }
        assert_eq!(ask(&domain, width, cmd, NOWHERE), Err(Errno::EFAULT));
    }
}

#[test]
fn grant_frames_keep_their_contents_wherever_they_go() {
    let (domain, ..) = full_domain();
    let place = |space, idx, gpfn| {
        put_add(&domain, Width::Bits64, add(DOMID_SELF, space, idx, gpfn));
        ask(&domain, Width::Bits64, XENMEM_ADD_TO_PHYSMAP, ARG)
    };
    let grant = XENMAPSPACE_GRANT_TABLE;
    put(&domain, 0x20_000, &[0xee_u8; 4096]);
    put(&domain, 0x21_000, &[0xee_u8; 4096]);
    assert_eq!(place(grant, 0, 0x20), Ok(0));
    // The console's entry: permit_access, domain 0, its frame. No old memory.
    assert_eq!(get::<[u32; 3]>(&domain, 0x20_000), [1, 4, 0]);
    put(&domain, 0x20_100, &0x1234_5678_u32);
    assert_eq!(place(grant, 0, 0x21), Ok(0));
    assert_eq!(get::<u32>(&domain, 0x21_100), 0x1234_5678);
    assert!(!domain.physmap.is_present(0x20), "a moved page leaves a hole");
    // Covered by another page of Xen's, then placed again.
    assert_eq!(place(XENMAPSPACE_SHARED_INFO, 0, 0x21), Ok(0));
    assert_eq!(place(grant, 0, 0x22), Ok(0));
    assert_eq!(get::<u32>(&domain, 0x22_100), 0x1234_5678);
    // Taken out, then placed again.
    put(&domain, ARG, &RemoveFromPhysmap { domid: DOMID_SELF, gpfn: 0x22, ..Default::default() });
    assert_eq!(ask(&domain, Width::Bits64, XENMEM_REMOVE_FROM_PHYSMAP, ARG), Ok(0));
    put(&domain, 0x22_000, &[0xee_u8; 4096]);
    assert_eq!(place(grant, 0, 0x22), Ok(0));
    assert_eq!(get::<u32>(&domain, 0x22_100), 0x1234_5678);
}

#[test]
fn removing() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        let remove = |domid, gpfn: u64| {
            match width {
                Width::Bits64 => {
                    put(&domain, ARG, &RemoveFromPhysmap { domid, gpfn, ..Default::default() });
                }
                Width::Bits32 => {
                    let gpfn = u32::try_from(gpfn).unwrap();
                    put(&domain, ARG, &RemoveFromPhysmap32 { domid, gpfn, ..Default::default() });
                }
            }
            ask(&domain, width, XENMEM_REMOVE_FROM_PHYSMAP, ARG)
        };
        assert_eq!(remove(DOMID_SELF, 0x30), Ok(0));
        assert_eq!(remove(DOMID_SELF, 0x30), Err(Errno::ENOENT));
        assert_eq!(remove(OWN, 0x31), Ok(0));
        assert_eq!(remove(DOMID_SELF, 0xffff_ffff), Err(Errno::ENOENT));
        assert_eq!(remove(0, 0x32), Err(Errno::EPERM));
        assert_eq!(remove(9, 0x32), Err(Errno::ESRCH));
        let cmd = XENMEM_REMOVE_FROM_PHYSMAP;
        assert_eq!(ask(&domain, width, cmd, NOWHERE), Err(Errno::EFAULT));
        assert_eq!(ask(&domain, width, cmd | 1 << 6, ARG), Err(Errno::EINVAL));
    }
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
