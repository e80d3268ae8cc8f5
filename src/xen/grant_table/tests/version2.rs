//! Tables of version 2: status frames, entries of 16 bytes, and the way back.

use xen_abi::errno::Errno;
use xen_abi::grant_table::*;
use xen_abi::memory::{
    AddToPhysmap, XENMAPIDX_GRANT_TABLE_STATUS, XENMAPSPACE_GRANT_TABLE, XENMEM_ADD_TO_PHYSMAP,
};
use xen_abi::xen::DOMID_SELF;

use super::{Special, ask, put_version};
use crate::pages::Width;
use crate::xen::memory_op::tests::ask as memory_op;
use crate::xen::test_calls::{ARG, WIDTHS, full_domain};
use crate::xen::test_platform::{get, put};
use crate::xen::{Domain, Reply};

const STATUS: u64 = XENMAPIDX_GRANT_TABLE_STATUS;

fn place(domain: &Domain, idx: u64, gpfn: u64) -> Reply {
    let space = XENMAPSPACE_GRANT_TABLE;
    put(domain, ARG, &AddToPhysmap { domid: DOMID_SELF, size: 0, space, idx, gpfn });
    memory_op(domain, Width::Bits64, XENMEM_ADD_TO_PHYSMAP, ARG)
}

#[test]
fn status_frames() {
    let (domain, ..) = full_domain();
    assert_eq!(place(&domain, STATUS, 0x20), Err(Errno::EINVAL), "of version 1");
    put_version(&domain, 2);
    // (index, frames of entries there are afterwards)
    let table = [
        (STATUS, Ok(0), 1),
        (8, Ok(0), 9),
        (STATUS | 1, Ok(0), 9),
        (STATUS | 2, Ok(0), 24),
        (STATUS | 7, Ok(0), 64),
        (STATUS | 8, Err(Errno::EINVAL), 64),
        (STATUS | 0x7fff_ffff, Err(Errno::EINVAL), 64),
        (64, Err(Errno::EINVAL), 64),
    ];
    for (idx, expected, frames) in table {
        assert_eq!(place(&domain, idx, 0x20), expected, "{idx:#x}");
        assert_eq!(domain.grants.frames(), frames, "{idx:#x}");
    }
    // The way back takes the status frames out of guest memory.
    assert_eq!(place(&domain, STATUS | 3, 0x20), Ok(0));
    assert_eq!(place(&domain, STATUS, 0x21), Ok(0));
    assert_eq!(place(&domain, 0, 0x22), Ok(0));
    assert_eq!(domain.physmap.special(0x20), Some(Special::StatusFrame(3)));
    put_version(&domain, 1);
    let present = [0x20, 0x21, 0x22].map(|gfn| domain.physmap.is_present(gfn));
    assert_eq!(present, [false, false, true]);
    assert_eq!(place(&domain, STATUS, 0x20), Err(Errno::EINVAL));
}

#[test]
fn reserved_entries_are_carried_over_and_others_are_not() {
    let (domain, ..) = full_domain();
    assert_eq!(place(&domain, 0, 0x20), Ok(0));
    let at = 0x20_000;
    put(&domain, at + 7 * 8, &GrantEntryV1 { flags: 1 | GTF_READONLY, domid: 5, frame: 0x77 });
    put(&domain, at + 8 * 8, &GrantEntryV1 { flags: 1, domid: 5, frame: 0x88 });
    put_version(&domain, 2);
    let full = |flags, domid, frame| GrantEntryV2FullPage {
        hdr: GrantEntryHeader { flags, domid },
        pad0: 0,
        frame,
    };
    let entry = |reference: u64| get::<GrantEntryV2FullPage>(&domain, at + reference * 16);
    assert_eq!(entry(0), full(1, 0, 4), "the console's");
    assert_eq!(entry(7), full(1 | GTF_READONLY, 5, 0x77));
    assert_eq!(entry(8), full(0, 0, 0));
    assert_eq!(get::<[u64; 256]>(&domain, at + 2048), [0; 256]);

    // What does not fit into version 1 keeps it from coming back.
    let set = || {
        put(&domain, ARG, &1u32);
        (ask(&domain, Width::Bits64, GNTTABOP_SET_VERSION, ARG, 1), get::<u32>(&domain, ARG))
    };
    for entry in [full(1, 5, 1 << 32), full(GTF_TRANSITIVE, 5, 1)] {
        put(&domain, at + 7 * 16, &entry);
        assert_eq!(set(), (Err(Errno::ERANGE), 2), "{entry:?}");
    }
    put(&domain, at + 7 * 16, &full(GTF_ACCEPT_TRANSFER, 5, 1 << 32));
    put(&domain, at + 8 * 16, &full(1, 5, 1 << 32));
    assert_eq!(set(), (Ok(0), 1));
    let entry = |reference: u64| get::<GrantEntryV1>(&domain, at + reference * 8);
    assert_eq!(entry(0), GrantEntryV1 { flags: 1, domid: 0, frame: 4 });
    assert_eq!(entry(7), GrantEntryV1::default());
    assert_eq!(entry(16), GrantEntryV1::default());
}

#[test]
fn entries_are_swapped_with_their_status() {
    for width in WIDTHS {
        let (domain, ..) = full_domain();
        put_version(&domain, 2);
        assert_eq!(place(&domain, 0, 0x20), Ok(0));
        assert_eq!(place(&domain, STATUS, 0x21), Ok(0));
        put(&domain, 0x20_000 + 8 * 16, &[1u32, 2, 3, 4]);
        put(&domain, 0x21_000 + 8 * 2, &[0x18_u16, 0x08, 0]);
        let swap = |ref_a, ref_b| {
            put(&domain, ARG, &GnttabSwapGrantRef { ref_a, ref_b, ..Default::default() });
            assert_eq!(ask(&domain, width, GNTTABOP_SWAP_GRANT_REF, ARG, 1), Ok(0));
            get::<GnttabSwapGrantRef>(&domain, ARG).status
        };
        assert_eq!(swap(8, 255), GNTST_OKAY);
        assert_eq!(swap(8, 256), GNTST_BAD_GNTREF, "256 entries to a frame");
        assert_eq!(get::<[u32; 4]>(&domain, 0x20_000 + 255 * 16), [1, 2, 3, 4]);
        assert_eq!(get::<[u32; 4]>(&domain, 0x20_000 + 8 * 16), [0; 4]);
        assert_eq!(get::<[u16; 3]>(&domain, 0x21_000 + 8 * 2), [0, 0x08, 0]);
        assert_eq!(get::<u16>(&domain, 0x21_000 + 255 * 2), 0x18);
        // One that is in use stays where it is.
        let hdr = GrantEntryHeader { flags: GTF_PERMIT_ACCESS, domid: 3 };
        let entry = GrantEntryV2FullPage { hdr, pad0: 0, frame: 0x30 };
        put(&domain, 0x20_000 + 8 * 16, &entry);
        let page = domain.map_grant(3, 8, crate::xen::GrantAccess::Read).unwrap();
        assert_eq!([swap(8, 9), swap(9, 8), swap(8, 8)], [GNTST_EAGAIN, GNTST_EAGAIN, GNTST_OKAY]);
        drop(page);
        assert_eq!(swap(8, 9), GNTST_OKAY);
    }
}
