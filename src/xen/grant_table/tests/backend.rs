//! Back ends in this process: what an entry allows, what the guest sees of its
//! use, and both at once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileMemory};
use xen_abi::grant_table::*;

use super::{Special, ask, put_version};
use crate::pages::Width;
use crate::xen::domain::lock;
use crate::xen::grant_table::{GrantAccess, GrantError};
use crate::xen::test_calls::full_domain;
use crate::xen::test_platform::{get, put, race};
use crate::xen::{Domain, MappedGrant};

use GrantAccess::{Read, ReadWrite};

/// Where the table's frame and its status frame are.
const TABLE: u64 = 0x20_000;
const STATUS: u64 = 0x22_000;
/// The back end's domain.
const BACK: u16 = 3;
const GFN: u32 = 0x30;

fn domain(version: u32) -> Arc<Domain> {
    let (domain, ..) = full_domain();
    put_version(&domain, version);
    let memory = domain.memory();
    domain.grants.place(&memory, Special::GrantFrame(0), GuestAddress(TABLE)).unwrap();
    if version == 2 {
        domain.grants.place(&memory, Special::StatusFrame(0), GuestAddress(STATUS)).unwrap();
    }
    domain
}

/// Grants frame `gfn` by entry `reference`, as a guest does.
fn grant(domain: &Domain, version: u32, reference: u32, flags: u16, domid: u16, gfn: u32) {
    let header = GrantEntryHeader { flags, domid };
    match version {
        1 => {
            let entry = GrantEntryV1 { flags, domid, frame: gfn };
            put(domain, TABLE + u64::from(reference) * 8, &entry);
        }
        _ => {
            let entry = GrantEntryV2FullPage { hdr: header, pad0: 0, frame: gfn.into() };
            put(domain, TABLE + u64::from(reference) * 16, &entry);
        }
    }
}

/// The flags of use that the guest finds.
fn in_use(domain: &Domain, version: u32, reference: u32) -> u16 {
    let flags: u16 = match version {
        1 => get(domain, TABLE + u64::from(reference) * 8),
        _ => get(domain, STATUS + u64::from(reference) * 2),
    };
    flags & (GTF_READING | GTF_WRITING)
}

fn outcome(mapped: Result<MappedGrant, GrantError>) -> i16 {
    mapped.map_or_else(GrantError::status, |_| GNTST_OKAY)
}

#[test]
fn what_an_entry_allows() {
    let (permit, refused) = (GTF_PERMIT_ACCESS, GNTST_GENERAL_ERROR);
    // (flags, domain, frame, to read, to write, to copy from)
    let table = [
        (permit, BACK, GFN, 0, 0, 0),
        (permit | GTF_READONLY, BACK, GFN, 0, refused, 0),
        (permit, 4, GFN, refused, refused, refused),
        (permit, 0, GFN, refused, refused, refused),
        (GTF_INVALID, BACK, GFN, refused, refused, refused),
        (GTF_ACCEPT_TRANSFER, BACK, GFN, refused, refused, refused),
        (GTF_TRANSITIVE, BACK, GFN, refused, refused, refused),
        (permit | GTF_SUB_PAGE, BACK, GFN, refused, refused, 0),
        (permit, BACK, 0x100, GNTST_BAD_PAGE, GNTST_BAD_PAGE, GNTST_BAD_PAGE),
        (permit, BACK, u32::MAX, GNTST_BAD_PAGE, GNTST_BAD_PAGE, GNTST_BAD_PAGE),
    ];
    for version in [1, 2] {
        let domain = domain(version);
        for (flags, domid, gfn, read, write, copy) in table {
            grant(&domain, version, 9, flags, domid, gfn);
            let row = format!("version {version} {flags:#x} {domid} {gfn:#x}");
            assert_eq!(outcome(domain.map_grant(BACK, 9, Read)), read, "{row}");
            assert_eq!(outcome(domain.map_grant(BACK, 9, ReadWrite)), write, "{row}");
            let copied = domain.copy_from_grant(BACK, 9, 0, &mut []);
            assert_eq!(copied.map_or_else(GrantError::status, |()| 0), copy, "{row}");
            // Nothing is left behind by what was refused, or is over.
            assert_eq!(in_use(&domain, version, 9), 0, "{row}");
        }
        let entries = if version == 1 { 512 } else { 256 };
        for reference in [entries, u32::MAX] {
            let error = domain.map_grant(BACK, reference, Read).err();
            assert_eq!(error, Some(GrantError::Reference { reference }), "version {version}");
            assert_eq!(error.map(GrantError::status), Some(GNTST_BAD_GNTREF));
        }
    }
}

#[test]
fn the_guest_sees_each_use_until_it_is_over() {
    for version in [1, 2] {
        let domain = domain(version);
        grant(&domain, version, 9, GTF_PERMIT_ACCESS, BACK, GFN);
        let used = || in_use(&domain, version, 9);
        let map = |access| domain.map_grant(BACK, 9, access).unwrap();
        let first = map(Read);
        assert_eq!(used(), GTF_READING);
        let writer = map(ReadWrite);
        assert_eq!(used(), GTF_READING | GTF_WRITING);
        let second = map(Read);
        drop(writer);
        assert_eq!(used(), GTF_READING, "the writer is gone");
        // While it is in use, nobody but its user gets it, whatever it says now.
        grant(&domain, version, 9, GTF_INVALID, 4, 0);
        if version == 1 {
            put(&domain, TABLE + 9 * 8, &GTF_READING);
        }
        assert_eq!(outcome(domain.map_grant(4, 9, Read)), GNTST_GENERAL_ERROR);
        assert_eq!(first.address(), GuestAddress(u64::from(GFN) << 12));
        drop(first);
        assert_eq!(used(), GTF_READING);
        drop(second);
        assert_eq!(used(), 0);
        assert_eq!(outcome(domain.map_grant(BACK, 9, Read)), GNTST_GENERAL_ERROR);
    }
}

#[test]
fn bytes_of_a_mapped_page() {
    let domain = domain(1);
    grant(&domain, 1, 9, GTF_PERMIT_ACCESS, BACK, GFN);
    let page = domain.map_grant(BACK, 9, ReadWrite).unwrap();
    assert_eq!(page.write(4094, &[1, 2]), Ok(()));
    let mut bytes = [0; 3];
    assert_eq!(page.read(4093, &mut bytes), Ok(()));
    assert_eq!(bytes, [0, 1, 2]);
    for (offset, len) in [(4095, 2), (4096, 1), (usize::MAX, 1), (0, 4097)] {
        let beyond = GrantError::Range { reference: 9, start: 0, end: 4096, offset, len };
        assert_eq!(page.write(offset, &vec![0; len]), Err(beyond));
        assert_eq!(page.read(offset, &mut vec![0; len]), Err(beyond));
    }
    let reader = domain.map_grant(BACK, 9, Read).unwrap();
    assert_eq!(reader.write(0, &[1]), Err(GrantError::Refused { reference: 9 }));
}

#[test]
fn parts_of_pages_are_copied_and_no_more() {
    let domain = domain(2);
    // (first byte, length, offset of the copy, its length, whether it may be)
    let table = [
        (100, 50, 100, 50, true),
        (100, 50, 120, 10, true),
        (100, 50, 99, 2, false),
        (100, 50, 149, 2, false),
        (0, 4096, 0, 4096, true),
        (4000, u16::MAX, 4000, 96, true),
        (4000, u16::MAX, 4000, 97, false),
        (u16::MAX, u16::MAX, 65535, 1, false),
        (100, 0, 100, 0, true),
        (100, 0, 100, 1, false),
    ];
    for (page_off, length, offset, len, good) in table {
        let flags = GTF_PERMIT_ACCESS | GTF_SUB_PAGE;
        let hdr = GrantEntryHeader { flags, domid: BACK };
        let entry = GrantEntryV2SubPage { hdr, page_off, length, frame: GFN.into() };
        put(&domain, TABLE + 9 * 16, &entry);
        let text = vec![0x5a; len];
        let wrote = domain.copy_to_grant(BACK, 9, offset, &text);
        let mut back = vec![0; len];
        let read = domain.copy_from_grant(BACK, 9, offset, &mut back);
        assert_eq!((wrote.is_ok(), read.is_ok()), (good, good), "{entry:?} {offset} {len}");
        if good {
            assert_eq!(back, text, "{entry:?}");
        }
        assert_eq!(in_use(&domain, 2, 9), 0);
    }
}

#[test]
fn a_page_in_use_outlives_its_frame() {
    let (domain, platform, _) = full_domain();
    domain.grants.place(&domain.memory(), Special::GrantFrame(0), GuestAddress(TABLE)).unwrap();
    grant(&domain, 1, 9, GTF_PERMIT_ACCESS, BACK, GFN);
    put(&domain, u64::from(GFN) << 12, &0x5a5a_u64);
    let page = domain.map_grant(BACK, 9, Read).unwrap();
    let remove = |gfn| {
        use xen_abi::memory::{RemoveFromPhysmap, XENMEM_REMOVE_FROM_PHYSMAP};
        let request = RemoveFromPhysmap { domid: 7, gpfn: gfn, ..Default::default() };
        put(&domain, crate::xen::test_calls::ARG, &request);
        let arg = crate::xen::test_calls::ARG;
        let cmd = XENMEM_REMOVE_FROM_PHYSMAP;
        crate::xen::memory_op::tests::ask(&domain, Width::Bits64, cmd, arg).unwrap();
        platform.take().released
    };
    assert_eq!(remove(GFN.into()), []);
    let mut bytes = [0; 8];
    assert_eq!(page.read(0, &mut bytes), Ok(()));
    assert_eq!(u64::from_le_bytes(bytes), 0x5a5a);
    drop(page);
    assert_eq!(remove(0x31), [(0x31, 1)]);
    assert_eq!(outcome(domain.map_grant(BACK, 9, Read)), GNTST_BAD_PAGE);
}

/// The guest's word at `gpa`, as a vCPU works on it.
fn with_word<T>(domain: &Domain, gpa: u64, work: impl FnOnce(&AtomicU32) -> T) -> T {
    let memory = domain.memory();
    let slice = memory.get_slice(GuestAddress(gpa), 4).unwrap();
    work(slice.get_atomic_ref(0).unwrap())
}

/// A guest that ends a grant of version 1: an exchange of the flags, which fails
/// while they say that it is in use.
fn end_v1(domain: &Domain) -> bool {
    let idle = u32::from(GTF_PERMIT_ACCESS) | u32::from(BACK) << 16;
    with_word(domain, TABLE + 9 * 8, |word| {
        word.compare_exchange(idle, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    })
}

/// The same of version 2: the entry is cleared, then the status looked at.
fn end_v2(domain: &Domain) -> bool {
    with_word(domain, TABLE + 9 * 16, |word| word.store(0, Ordering::SeqCst));
    let status = with_word(domain, STATUS + 16, |word| word.load(Ordering::SeqCst));
    (status >> 16) & u32::from(GTF_READING | GTF_WRITING) == 0
}

#[test]
fn a_grant_is_never_both_ended_and_mapped() {
    for (version, end) in [(1, end_v1 as fn(&Domain) -> bool), (2, end_v2)] {
        let domain = domain(version);
        let ended = AtomicU32::new(0);
        let mapped = Mutex::new(None);
        let map = || *lock(&mapped) = domain.map_grant(BACK, 9, ReadWrite).ok();
        let end = || ended.store(end(&domain).into(), Ordering::SeqCst);
        // How often the guest won, and how often the back end.
        let won = [AtomicU32::new(0), AtomicU32::new(0)];
        let check = |round| {
            let mapped = lock(&mapped).take();
            let ended = ended.load(Ordering::SeqCst) == 1;
            assert!(!(mapped.is_some() && ended), "version {version}, round {round}");
            won[0].fetch_add(ended.into(), Ordering::Relaxed);
            won[1].fetch_add(mapped.is_some().into(), Ordering::Relaxed);
            drop(mapped);
            assert_eq!(in_use(&domain, version, 9), 0, "round {round}");
            grant(&domain, version, 9, GTF_PERMIT_ACCESS, BACK, GFN);
        };
        grant(&domain, version, 9, GTF_PERMIT_ACCESS, BACK, GFN);
        // On a loaded machine the one that starts always comes first.
        race(2000, 60, map, end, check);
        race(2000, 60, end, map, check);
        let won = won.map(AtomicU32::into_inner);
        assert!(won.iter().all(|won| *won > 0), "version {version}: {won:?}");
    }
}

#[test]
fn versions_change_only_while_nothing_is_in_use() {
    for version in [1, 2] {
        let domain = domain(version);
        let other = 3 - version;
        grant(&domain, version, 9, GTF_PERMIT_ACCESS, BACK, GFN);
        // A reserved entry may be in use, and its use is carried over.
        grant(&domain, version, 1, GTF_PERMIT_ACCESS, BACK, GFN);
        let store = domain.map_grant(BACK, 1, ReadWrite).unwrap();
        let page = domain.map_grant(BACK, 9, Read).unwrap();
        let set = |version: u32| {
            put(&domain, crate::xen::test_calls::ARG, &version);
            let arg = crate::xen::test_calls::ARG;
            ask(&domain, Width::Bits64, GNTTABOP_SET_VERSION, arg, 1)
        };
        assert_eq!(set(other), Err(xen_abi::errno::Errno::EBUSY));
        drop(page);
        assert_eq!(set(other), Ok(0));
        if other == 2 {
            let place = domain.grants.place(
                &domain.memory(),
                Special::StatusFrame(0),
                GuestAddress(STATUS),
            );
            place.unwrap();
        }
        assert_eq!(in_use(&domain, other, 1), GTF_READING | GTF_WRITING);
        drop(store);
        assert_eq!(in_use(&domain, other, 1), 0);
        assert_eq!(outcome(domain.map_grant(BACK, 1, Read)), GNTST_OKAY);
        assert_eq!(outcome(domain.map_grant(BACK, 9, Read)), GNTST_GENERAL_ERROR);
    }
}
