//! The memory map and the placing of pages, in both widths.

use xen_abi::hypercall::HYPERVISOR_MEMORY_OP;
use xen_abi::memory::*;
use xen_abi::xen::DOMID_SELF;
use zerocopy::IntoBytes;

use super::*;
use crate::pages::Width;
use crate::xen::VcpuArea;
use crate::xen::test_calls::{ARG, NOWHERE, WIDTHS, call, full_domain};
use crate::xen::test_platform::{HIGH_RAM, RAM_SIZE, domain, get, put};

/// Pages of RAM in the full configuration.
pub(in crate::xen) const PAGES: u64 = 256 + 16;
const OWN: u16 = 7;

pub(in crate::xen) fn ask(domain: &Domain, width: Width, cmd: u32, arg: u64) -> Reply {
    call(domain, width, HYPERVISOR_MEMORY_OP, &[cmd.into(), arg])
}

/// Words as `unsigned long` of the width.
pub(in crate::xen) fn put_longs(domain: &Domain, width: Width, at: u64, words: &[u64]) {
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
            8,
            29,
            63,
        ];
        for cmd in hidden {
            assert_eq!(ask(&domain, width, cmd, ARG), Err(Errno::ENOSYS), "{cmd}");
        }
        // All zero: domain 0 is asked for.
        let of_domain_0 = [
            (XENMEM_EXCHANGE, Err(Errno::EPERM)),
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
            (add(DOMID_SELF, XENMAPSPACE_GMFN, 0x100, 0x25), Err(Errno::EINVAL)),
            (add(DOMID_SELF, XENMAPSPACE_GMFN, 0x30, 0x8_0000), Err(Errno::EINVAL)),
            (add(0, XENMAPSPACE_GMFN, 0x30, 0x25), Err(Errno::EPERM)),
            (add(9, XENMAPSPACE_GMFN, 0x30, 0x25), Err(Errno::ESRCH)),
            (add(DOMID_SELF, XENMAPSPACE_GMFN, 0x30, 0x30), Ok(0)),
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
        put(&domain, 0x30_ff8, &0x3030_u64);
        put(&domain, 0x31_000, &0x3131_u64);
        put_add(&domain, width, range(2, 0x30, 0x40));
        assert_eq!(ask(&domain, width, cmd | 2 << 6, ARG), Ok(0));
        assert_eq!(ask(&domain, width, cmd | 3 << 6, ARG), Err(Errno::EILSEQ));
        assert_eq!(ask(&domain, width, cmd, ARG), Ok(0));
        assert_eq!(get::<[u64; 2]>(&domain, 0x40_ff8), [0x3030, 0x3131]);
        assert_eq!(domain.physmap.pages(), PAGES - 2);
        assert_eq!(
            [0x30, 0x31, 0x40].map(|gfn| domain.physmap.is_present(gfn)),
            [false, false, true]
        );
        // Both are gone from there; and what is done before an error stays done.
        assert_eq!(ask(&domain, width, cmd, ARG), Err(Errno::EINVAL));
        put_add(&domain, width, range(3, 0x40, 0x30));
        assert_eq!(ask(&domain, width, cmd | 1 << 6, ARG), Ok(0));
        assert_eq!(get::<u64>(&domain, 0x31_000), 0x3131);
        put_add(&domain, width, range(2, 0xff, 0x50));
        assert_eq!(ask(&domain, width, cmd, ARG), Err(Errno::EINVAL), "0x100 is not RAM");
        assert!(!domain.physmap.is_present(0xff));
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
fn shared_info_taken_out_drops_its_frame() {
    let (domain, platform, _) = full_domain();
    let width = Width::Bits64;
    let place = |space, idx, gpfn| {
        put_add(&domain, width, add(DOMID_SELF, space, idx, gpfn));
        assert_eq!(ask(&domain, width, XENMEM_ADD_TO_PHYSMAP, ARG), Ok(0));
    };
    let remove = || {
        let request = RemoveFromPhysmap { domid: DOMID_SELF, gpfn: 0x20, ..Default::default() };
        put(&domain, ARG, &request);
        ask(&domain, width, XENMEM_REMOVE_FROM_PHYSMAP, ARG)
    };
    place(XENMAPSPACE_SHARED_INFO, 0, 0x20);
    domain.set_pending(9, 0);
    let _ = platform.take();
    assert_eq!(remove(), Ok(0));
    assert_eq!(remove(), Err(Errno::ENOENT));
    let asked = platform.take();
    assert_eq!(asked.released, [(0x20, 1)]);
    assert_eq!(asked.areas, [0, 1].map(|vcpu| (vcpu, VcpuArea::VcpuInfo, None)));
    assert_eq!(domain.shared_info_address(), None);
    assert_eq!(domain.time_page_address(0), None);
    assert_eq!(domain.physmap.populate(0x20), Ok(()), "an ordinary frame again");
    // Nothing of Xen's is written there any more; the guest's own may be.
    put(&domain, 0x20_000, &[0xee_u8; 4096]);
    domain.set_pending(10, 1);
    domain.refresh_wallclock();
    domain.publish_clock_pages(0);
    assert_eq!(get::<[u8; 4096]>(&domain, 0x20_000), [0xee; 4096]);
    // Events of before and of between are there when it is mapped again.
    place(XENMAPSPACE_SHARED_INFO, 0, 0x21);
    let page: xen_abi::arch_x86::SharedInfo = get(&domain, 0x21_000);
    assert_eq!(page.evtchn_pending[0], 1 << 9 | 1 << 10);
    assert_ne!(page.vcpu_info[1].time.tsc_to_system_mul, 0);
    assert_ne!(page.wc_sec, 0);
    // Covered by a grant frame it lets go, too, and before it is overwritten.
    place(XENMAPSPACE_GRANT_TABLE, 0, 0x21);
    assert_eq!(domain.shared_info_address(), None);
    domain.set_pending(11, 0);
    assert_eq!(get::<[u32; 4]>(&domain, 0x21_000), [1, 4, 0, 0], "grants, untouched");
    place(XENMAPSPACE_SHARED_INFO, 0, 0x22);
    let page: xen_abi::arch_x86::SharedInfo = get(&domain, 0x22_000);
    assert_eq!(page.evtchn_pending[0], 0b111 << 9);
}

#[test]
fn frames_that_are_left_go_back_to_the_host() {
    let (domain, platform, _) = full_domain();
    let place = |space, idx, gpfn| {
        put_add(&domain, Width::Bits64, add(DOMID_SELF, space, idx, gpfn));
        assert_eq!(ask(&domain, Width::Bits64, XENMEM_ADD_TO_PHYSMAP, ARG), Ok(0));
        platform.take().released
    };
    assert_eq!(place(XENMAPSPACE_SHARED_INFO, 0, 0x20), []);
    assert_eq!(place(XENMAPSPACE_SHARED_INFO, 0, 0x20), [], "where it is");
    assert_eq!(place(XENMAPSPACE_SHARED_INFO, 0, 0x21), [(0x20, 1)]);
    assert_eq!(place(XENMAPSPACE_GRANT_TABLE, 0, 0x22), []);
    assert_eq!(place(XENMAPSPACE_GRANT_TABLE, 0, 0x23), [(0x22, 1)]);
    assert_eq!(place(XENMAPSPACE_GMFN, 0x30, 0x31), [(0x30, 1)]);
    // A page of Xen's moves by its frame, too, and keeps being what it is.
    assert_eq!(place(XENMAPSPACE_GMFN, 0x23, 0x24), [(0x23, 1)]);
    assert_eq!(get::<[u32; 2]>(&domain, 0x24_000), [1, 4]);
    assert_eq!(domain.physmap.special(0x24), Some(Special::GrantFrame(0)));
}
