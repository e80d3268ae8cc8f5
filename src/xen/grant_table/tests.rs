//! `grant_table_op` of a domain that has no back ends, in both widths.

mod backend;
mod version2;

use vm_memory::{Bytes, GuestAddress};
use xen_abi::errno::Errno;
use xen_abi::grant_table::*;
use xen_abi::hypercall::HYPERVISOR_GRANT_TABLE_OP;
use xen_abi::xen::DOMID_SELF;

use crate::pages::Width;
use crate::xen::physmap::Special;
use crate::xen::test_calls::{ARG, NOWHERE, WIDTHS, call, full_domain};
use crate::xen::test_platform::{RAM_SIZE, get, put};
use crate::xen::{Domain, Reply};

const OWN: u16 = 7;

fn ask(domain: &Domain, width: Width, cmd: u32, arg: u64, count: u64) -> Reply {
    call(domain, width, HYPERVISOR_GRANT_TABLE_OP, &[cmd.into(), arg, count])
}

/// Lets the guest choose its table's version.
fn put_version(domain: &Domain, version: u32) {
    put(domain, ARG, &version);
    assert_eq!(ask(domain, Width::Bits64, GNTTABOP_SET_VERSION, ARG, 1), Ok(0));
}

#[test]
fn hidden_operations_and_bad_counts() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        let hidden = [
            GNTTABOP_DUMP_TABLE,
            GNTTABOP_TRANSFER,
            GNTTABOP_UNMAP_AND_REPLACE,
            GNTTABOP_GET_STATUS_FRAMES,
            GNTTABOP_CACHE_FLUSH,
            13,
            u32::MAX,
            1 << 12, // map, of which some is done
        ];
        for cmd in hidden {
            assert_eq!(ask(&domain, width, cmd, NOWHERE, 1), Err(Errno::ENOSYS), "{cmd}");
        }
        let all = [
            GNTTABOP_MAP_GRANT_REF,
            GNTTABOP_UNMAP_GRANT_REF,
            GNTTABOP_SETUP_TABLE,
            GNTTABOP_COPY,
            GNTTABOP_QUERY_SIZE,
            GNTTABOP_SET_VERSION,
            GNTTABOP_GET_VERSION,
            GNTTABOP_SWAP_GRANT_REF,
        ];
        for cmd in all {
            let most = u64::from(u32::MAX);
            assert_eq!(ask(&domain, width, cmd, ARG, most), Err(Errno::EINVAL), "{cmd}");
            assert_eq!(ask(&domain, width, cmd, ARG, 1 << 31), Err(Errno::EINVAL), "{cmd}");
            assert_eq!(ask(&domain, width, cmd, NOWHERE, 1), Err(Errno::EFAULT), "{cmd}");
            // Where the structure's status lies past the end of RAM.
            let edge = RAM_SIZE as u64 - 2;
            assert_eq!(ask(&domain, width, cmd, edge, 1), Err(Errno::EFAULT), "{cmd}");
        }
        let lists = [
            GNTTABOP_MAP_GRANT_REF,
            GNTTABOP_UNMAP_GRANT_REF,
            GNTTABOP_COPY,
            GNTTABOP_SWAP_GRANT_REF,
        ];
        for cmd in lists {
            assert_eq!(ask(&domain, width, cmd, NOWHERE, 0), Ok(0), "{cmd}");
        }
    }
}

#[test]
fn sizes() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        let query = |dom, count| {
            put(&domain, ARG, &GnttabQuerySize { dom, status: 99, ..Default::default() });
            let result = ask(&domain, width, GNTTABOP_QUERY_SIZE, ARG, count);
            let answer: GnttabQuerySize = get(&domain, ARG);
            (result, answer.nr_frames, answer.max_nr_frames, answer.status)
        };
        assert_eq!(query(DOMID_SELF, 1), (Ok(0), 1, 64, GNTST_OKAY));
        assert_eq!(query(OWN, 1), (Ok(0), 1, 64, GNTST_OKAY));
        assert_eq!(query(0, 1), (Ok(0), 0, 0, GNTST_PERMISSION_DENIED));
        assert_eq!(query(3, 1), (Ok(0), 0, 0, GNTST_BAD_DOMAIN));
        assert_eq!(query(OWN, 0).0, Err(Errno::EINVAL));
        assert_eq!(query(OWN, 2).0, Err(Errno::EINVAL));
    }
}

fn put_setup(domain: &Domain, width: Width, dom: u16, nr_frames: u32, frame_list: u64) {
    match width {
        Width::Bits64 => {
            let request =
                GnttabSetupTable { dom, nr_frames, frame_list, status: 99, ..Default::default() };
            put(domain, ARG, &request);
        }
        Width::Bits32 => {
            let request = GnttabSetupTable32 {
                dom,
                nr_frames,
                frame_list: frame_list.try_into().unwrap(),
                status: 99,
                ..Default::default()
            };
            put(domain, ARG, &request);
        }
    }
}

#[test]
fn setting_up() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        domain
            .grants
            .place(&domain.memory(), Special::GrantFrame(1), GuestAddress(0x2_0000))
            .unwrap();
        let setup = |dom, nr_frames, frame_list, count| {
            put_setup(&domain, width, dom, nr_frames, frame_list);
            let result = ask(&domain, width, GNTTABOP_SETUP_TABLE, ARG, count);
            (result, get::<i16>(&domain, ARG + 8))
        };
        assert_eq!(setup(DOMID_SELF, 3, 0xa000, 1), (Ok(0), GNTST_OKAY));
        match width {
            Width::Bits64 => {
                assert_eq!(get::<[u64; 4]>(&domain, 0xa000), [u64::MAX, 0x20, u64::MAX, 0]);
            }
            Width::Bits32 => {
                assert_eq!(get::<[u32; 4]>(&domain, 0xa000), [u32::MAX, 0x20, u32::MAX, 0]);
            }
        }
        assert_eq!(domain.grants.frames(), 3);
        assert_eq!(setup(OWN, 64, 0xa000, 1), (Ok(0), GNTST_OKAY));
        assert_eq!(domain.grants.frames(), 64);
        assert_eq!(setup(OWN, 65, 0xa000, 1), (Ok(0), GNTST_GENERAL_ERROR));
        assert_eq!(setup(OWN, u32::MAX, 0xa000, 1), (Ok(0), GNTST_GENERAL_ERROR));
        assert_eq!(setup(0, 1, 0xa000, 1), (Ok(0), GNTST_PERMISSION_DENIED));
        assert_eq!(setup(3, 1, 0xa000, 1), (Ok(0), GNTST_BAD_DOMAIN));
        assert_eq!(setup(OWN, 1, NOWHERE, 1), (Ok(0), GNTST_BAD_VIRT_ADDR));
        assert_eq!(setup(OWN, 0, NOWHERE, 1), (Ok(0), GNTST_OKAY));
        assert_eq!(setup(OWN, 1, 0xa000, 2).0, Err(Errno::EINVAL));
        let none = if width == Width::Bits64 { Err(Errno::EINVAL) } else { Ok(0) };
        assert_eq!(setup(OWN, 1, 0xa000, 0), (none, 99));
    }
}

#[test]
fn versions() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        let table = [
            (1, Ok(0), 1),
            (0, Err(Errno::EINVAL), 1),
            (2, Ok(0), 2),
            (2, Ok(0), 2),
            (3, Err(Errno::EINVAL), 2),
            (u32::MAX, Err(Errno::EINVAL), 2),
            (1, Ok(0), 1),
        ];
        for (version, expected, left) in table {
            put(&domain, ARG, &version);
            let got = ask(&domain, width, GNTTABOP_SET_VERSION, ARG, 1);
            assert_eq!((got, get::<u32>(&domain, ARG)), (expected, left), "version {version}");
        }
        let table = [
            (DOMID_SELF, Ok(0), 1),
            (OWN, Ok(0), 1),
            (0, Err(Errno::EPERM), 99),
            (3, Err(Errno::ESRCH), 99),
        ];
        for (dom, expected, version) in table {
            put(&domain, ARG, &GnttabGetVersion { dom, pad: 0, version: 99 });
            let got = ask(&domain, width, GNTTABOP_GET_VERSION, ARG, 1);
            let answer: GnttabGetVersion = get(&domain, ARG);
            assert_eq!((got, answer.version), (expected, version), "of {dom}");
        }
    }
}

#[test]
fn nothing_can_be_mapped() {
    let host = GNTMAP_HOST_MAP;
    let table = [
        (host, OWN, 0, GNTST_GENERAL_ERROR),
        (host | GNTMAP_READONLY, OWN, 511, GNTST_GENERAL_ERROR),
        (host, OWN, 512, GNTST_BAD_GNTREF),
        (host, 0, 9, GNTST_GENERAL_ERROR),
        (host, 0, u32::MAX, GNTST_BAD_GNTREF),
        (host, DOMID_SELF, 0, GNTST_BAD_DOMAIN),
        (host, 3, 0, GNTST_BAD_DOMAIN),
        (0, OWN, 0, GNTST_BAD_GNTREF),
        (GNTMAP_READONLY, OWN, 0, GNTST_BAD_GNTREF),
        (GNTMAP_DEVICE_MAP, OWN, 0, GNTST_GENERAL_ERROR),
        (host | GNTMAP_CONTAINS_PTE, 3, 0, GNTST_GENERAL_ERROR),
        (host | GNTMAP_APPLICATION_MAP, OWN, 0, GNTST_GENERAL_ERROR),
    ];
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        // All of them at once: each structure gets its own status.
        for (at, (flags, dom, ref_, _)) in (ARG..).step_by(32).zip(table) {
            let request = GnttabMapGrantRef {
                host_addr: 0x2_0000,
                flags,
                ref_,
                dom,
                status: 99,
                handle: 42,
                dev_bus_addr: 43,
            };
            put(&domain, at, &request);
        }
        let count = table.len() as u64;
        assert_eq!(ask(&domain, width, GNTTABOP_MAP_GRANT_REF, ARG, count), Ok(0));
        for (at, (row, (.., status))) in (ARG..).step_by(32).zip(table.iter().enumerate()) {
            let answer: GnttabMapGrantRef = get(&domain, at);
            assert_eq!(answer.status, *status, "row {row}");
            assert_eq!((answer.handle, answer.dev_bus_addr), (42, 43), "row {row}");
        }
        for handle in [0, 1, u32::MAX] {
            put(&domain, ARG, &GnttabUnmapGrantRef { handle, ..Default::default() });
            assert_eq!(ask(&domain, width, GNTTABOP_UNMAP_GRANT_REF, ARG, 1), Ok(0));
            assert_eq!(get::<GnttabUnmapGrantRef>(&domain, ARG).status, GNTST_BAD_HANDLE);
        }
    }
}

#[test]
fn lists_that_run_off_stop_there() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        let at = RAM_SIZE as u64 - 24;
        put(&domain, at, &GnttabUnmapGrantRef::default());
        assert_eq!(
            ask(&domain, width, GNTTABOP_UNMAP_GRANT_REF, at, 0x7fff_ffff),
            Err(Errno::EFAULT)
        );
        assert_eq!(get::<GnttabUnmapGrantRef>(&domain, at).status, GNTST_BAD_HANDLE);
    }
}

fn put_copy(domain: &Domain, width: Width, request: &GnttabCopy) {
    let narrow = |end: GnttabCopyPtr| GnttabCopyPtr32 {
        u: end.u.try_into().unwrap(),
        domid: end.domid,
        offset: end.offset,
    };
    match width {
        Width::Bits64 => put(domain, ARG, request),
        Width::Bits32 => put(
            domain,
            ARG,
            &GnttabCopy32 {
                source: narrow(request.source),
                dest: narrow(request.dest),
                len: request.len,
                flags: request.flags,
                status: request.status,
                ..Default::default()
            },
        ),
    }
}

#[test]
fn copying() {
    let end = |u, domid, offset| GnttabCopyPtr { u, domid, offset, ..Default::default() };
    let frame = |gfn, offset| end(gfn, DOMID_SELF, offset);
    let (src, dst) = (GNTCOPY_SOURCE_GREF, GNTCOPY_DEST_GREF);
    let table = [
        (frame(0x20, 0), frame(0x21, 0), 4096, 0, GNTST_OKAY),
        (frame(0x20, 4095), frame(0x21, 0), 1, 0, GNTST_OKAY),
        (frame(0x20, 4096), frame(0x21, 0), 0, 0, GNTST_OKAY),
        (frame(0x20, 4095), frame(0x21, 0), 2, 0, GNTST_BAD_COPY_ARG),
        (frame(0x20, 0), frame(0x21, 1), 4096, 0, GNTST_BAD_COPY_ARG),
        (frame(0x20, u16::MAX), frame(0x21, 0), u16::MAX, 0, GNTST_BAD_COPY_ARG),
        (frame(0x8_0000, 0), frame(0x21, 0), 8, 0, GNTST_BAD_PAGE),
        (frame(0x20, 0), frame(0xffff_ffff, 0), 8, 0, GNTST_BAD_PAGE),
        (frame(0x20, 0), frame(0x100, 0), 8, 0, GNTST_BAD_PAGE),
        (end(0x20, OWN, 0), frame(0x21, 0), 8, 0, GNTST_PERMISSION_DENIED),
        (frame(0x20, 0), end(0x21, 0, 0), 8, 0, GNTST_PERMISSION_DENIED),
        (end(0, OWN, 0), frame(0x21, 0), 8, src, GNTST_GENERAL_ERROR),
        (end(512, OWN, 0), frame(0x21, 0), 8, src, GNTST_BAD_GNTREF),
        (frame(0x20, 0), end(3, 0, 0), 8, dst, GNTST_GENERAL_ERROR),
        (frame(0x20, 0), end(3, 5, 0), 8, dst, GNTST_BAD_DOMAIN),
        (frame(0x8_0000, 0), end(3, 0, 0), 8, dst, GNTST_BAD_PAGE),
        // By grants to itself: 8 of the source, 9 read-only, 10 of the target.
        (end(8, OWN, 0), frame(0x21, 0), 4096, src, GNTST_OKAY),
        (end(8, DOMID_SELF, 7), end(10, OWN, 0), 9, src | dst, GNTST_OKAY),
        (end(9, OWN, 0), frame(0x21, 0), 8, src, GNTST_OKAY),
        (frame(0x20, 0), end(9, OWN, 0), 8, dst, GNTST_GENERAL_ERROR),
        (frame(0x20, 0), end(10, OWN, 1), 4096, dst, GNTST_BAD_COPY_ARG),
        (end(11, OWN, 0), frame(0x21, 0), 8, src, GNTST_BAD_PAGE),
        (end(12, OWN, 0), frame(0x21, 0), 8, src, GNTST_GENERAL_ERROR),
    ];
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        let memory = domain.memory();
        domain.grants.place(&memory, Special::GrantFrame(0), GuestAddress(0x2_2000)).unwrap();
        let grants = [
            (8, 1, OWN, 0x20),
            (9, 5, OWN, 0x20),
            (10, 1, OWN, 0x21),
            (11, 1, OWN, 0x100),
            (12, 1, 3, 0x20),
        ];
        for (reference, flags, domid, frame) in grants {
            put(&domain, 0x2_2000 + reference * 8, &GrantEntryV1 { flags, domid, frame });
        }
        for (row, (source, dest, len, flags, status)) in table.into_iter().enumerate() {
            let text: Vec<u8> = (0..4096u32).map(|i| i.to_le_bytes()[0] ^ 0x5a).collect();
            memory.write_slice(&text, GuestAddress(0x2_0000)).unwrap();
            memory.write_slice(&[0; 4096], GuestAddress(0x2_1000)).unwrap();
            let request = GnttabCopy { source, dest, len, flags, status: 99, ..Default::default() };
            put_copy(&domain, width, &request);
            assert_eq!(ask(&domain, width, GNTTABOP_COPY, ARG, 1), Ok(0), "row {row}");
            let at = if width == Width::Bits64 { 36 } else { 20 };
            assert_eq!(get::<i16>(&domain, ARG + at), status, "row {row} {width:?}");
            let mut copied = [0; 4096];
            memory.read_slice(&mut copied, GuestAddress(0x2_1000)).unwrap();
            let len = if status == GNTST_OKAY { usize::from(len) } else { 0 };
            let from = usize::from(source.offset).min(4096);
            assert_eq!(copied[..len], text[from..][..len], "row {row}");
            assert!(copied[len..].iter().all(|&byte| byte == 0), "row {row}");
            for (reference, flags, ..) in grants {
                assert_eq!(get::<u16>(&domain, 0x2_2000 + reference * 8), flags, "row {row}");
            }
        }
    }
}

#[test]
fn swapping_entries() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        let memory = domain.memory();
        domain.grants.place(&memory, Special::GrantFrame(0), GuestAddress(0x2_0000)).unwrap();
        // Frame 1 is nowhere, but its entries are.
        domain.grants.list(2);
        let swap = |ref_a, ref_b| {
            put(&domain, ARG, &GnttabSwapGrantRef { ref_a, ref_b, ..Default::default() });
            assert_eq!(ask(&domain, width, GNTTABOP_SWAP_GRANT_REF, ARG, 1), Ok(0));
            get::<GnttabSwapGrantRef>(&domain, ARG).status
        };
        let entry = |reference: u64| get::<[u32; 2]>(&domain, 0x2_0000 + reference * 8);
        put(&domain, 0x2_0000 + 8 * 8, &[1u32, 0x88]);
        put(&domain, 0x2_0000 + 9 * 8, &[1u32, 0x99]);
        assert_eq!(swap(8, 9), GNTST_OKAY);
        assert_eq!((entry(8), entry(9)), ([1, 0x99], [1, 0x88]));
        assert_eq!(swap(9, 9), GNTST_OKAY);
        assert_eq!(entry(9), [1, 0x88]);
        assert_eq!(swap(9, 512), GNTST_OKAY);
        assert_eq!(entry(9), [0, 0]);
        assert_eq!(swap(9, 1024), GNTST_BAD_GNTREF);
        assert_eq!(swap(u32::MAX, 9), GNTST_BAD_GNTREF);
        domain.grants.place(&memory, Special::GrantFrame(1), GuestAddress(0x2_1000)).unwrap();
        assert_eq!(get::<[u32; 2]>(&domain, 0x2_1000), [1, 0x88]);
    }
}
