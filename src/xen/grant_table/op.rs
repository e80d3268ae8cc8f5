//! `grant_table_op` for a domain whose back ends are in this process: it grants,
//! and nobody but itself has granted it anything.

use std::mem::offset_of;

use vm_memory::{Bytes, GuestAddress};
use xen_abi::errno::Errno;
use xen_abi::grant_table::{
    GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GNTMAP_APPLICATION_MAP, GNTMAP_CONTAINS_PTE,
    GNTMAP_DEVICE_MAP, GNTMAP_HOST_MAP, GNTST_BAD_COPY_ARG, GNTST_BAD_DOMAIN, GNTST_BAD_GNTREF,
    GNTST_BAD_HANDLE, GNTST_BAD_PAGE, GNTST_BAD_VIRT_ADDR, GNTST_EAGAIN, GNTST_GENERAL_ERROR,
    GNTST_OKAY, GNTST_PERMISSION_DENIED, GNTTABOP_COPY, GNTTABOP_GET_VERSION,
    GNTTABOP_MAP_GRANT_REF, GNTTABOP_QUERY_SIZE, GNTTABOP_SET_VERSION, GNTTABOP_SETUP_TABLE,
    GNTTABOP_SWAP_GRANT_REF, GNTTABOP_UNMAP_GRANT_REF, GnttabCopy, GnttabCopy32, GnttabCopyPtr,
    GnttabGetVersion, GnttabMapGrantRef, GnttabQuerySize, GnttabSetVersion, GnttabSetupTable,
    GnttabSetupTable32, GnttabSwapGrantRef, GnttabUnmapGrantRef,
};
use xen_abi::xen::DOMID_SELF;

use super::frames::PAGE_SIZE;
use super::protocol::Use;
use super::table::{Part, WHOLE};
use super::{GrantAccess, MAX_FRAMES};
use crate::xen::physmap::Freed;
use crate::xen::{Call, Domain, Reply, domid};

/// Grants of another domain, of which every table has at least this many.
const OTHER_ENTRIES: u32 = 512;

/// Serves `cmd` for the `count` structures at `arg`, all of them unsigned ints.
pub(in crate::xen) fn op(call: &mut Call, cmd: u64, arg: u64, count: u64) -> Reply {
    let Ok(cmd) = u32::try_from(cmd) else { return Err(Errno::ENOSYS) };
    let handler = match cmd {
        GNTTABOP_QUERY_SIZE => query_size,
        GNTTABOP_SETUP_TABLE => setup_table,
        GNTTABOP_SET_VERSION => set_version,
        GNTTABOP_GET_VERSION => get_version,
        GNTTABOP_COPY => copy,
        GNTTABOP_MAP_GRANT_REF => map,
        GNTTABOP_UNMAP_GRANT_REF => unmap,
        GNTTABOP_SWAP_GRANT_REF => swap,
        // The others Xen keeps from HVM guests.
        _ => return Err(Errno::ENOSYS),
    };
    if i32::try_from(count).is_err() {
        return Err(Errno::EINVAL);
    }
    handler(call, arg, count)?;
    Ok(0)
}

fn query_size(call: &mut Call, arg: u64, count: u64) -> Result<(), Errno> {
    only_one(count)?;
    let mut request: GnttabQuerySize = call.read(arg)?;
    request.status = domain_status(call, request.dom);
    if request.status == GNTST_OKAY {
        request.nr_frames = call.domain.grants.frames();
        request.max_nr_frames = MAX_FRAMES;
    }
    call.write(arg, &request)
}

fn setup_table(call: &mut Call, arg: u64, count: u64) -> Result<(), Errno> {
    if count == 0 && !call.is_64bit() {
        return Ok(()); // the 32-bit entry loops over the count
    }
    only_one(count)?;
    let (request, status_at) = if call.is_64bit() {
        let request: GnttabSetupTable = call.read(arg)?;
        (request, offset_of!(GnttabSetupTable, status))
    } else {
        let request: GnttabSetupTable32 = call.read(arg)?;
        let wide = GnttabSetupTable {
            dom: request.dom,
            nr_frames: request.nr_frames,
            frame_list: request.frame_list.into(),
            ..Default::default()
        };
        (wide, offset_of!(GnttabSetupTable32, status))
    };
    let mut status = domain_status(call, request.dom);
    if status == GNTST_OKAY && request.nr_frames > MAX_FRAMES {
        status = GNTST_GENERAL_ERROR;
    }
    if status == GNTST_OKAY {
        let gfns = call.domain.grants.list(request.nr_frames);
        for (index, gfn) in (0u64..).zip(gfns) {
            if call.write_ulong(request.frame_list, index, gfn).is_err() {
                status = GNTST_BAD_VIRT_ADDR;
            }
        }
    }
    call.write(arg.wrapping_add(status_at as u64), &status)
}

fn set_version(call: &mut Call, arg: u64, _count: u64) -> Result<(), Errno> {
    let request: GnttabSetVersion = call.read(arg)?;
    let domain = call.domain;
    let changed = {
        let _changing = domain.physmap.changing();
        let mut freed = Freed::new(domain);
        domain.grants.set_version(&domain.memory(), request.version).map(|left| {
            for gfn in left {
                if domain.physmap.remove(gfn).is_ok() {
                    freed.add(gfn);
                }
            }
        })
    };
    call.write(arg, &GnttabSetVersion { version: domain.grants.version() })?;
    changed
}

fn get_version(call: &mut Call, arg: u64, _count: u64) -> Result<(), Errno> {
    let request: GnttabGetVersion = call.read(arg)?;
    let domain = call.domain;
    domid::own(&domain.config, request.dom)?;
    let at = arg.wrapping_add(offset_of!(GnttabGetVersion, version) as u64);
    call.write(at, &domain.grants.version())
}

fn map(call: &mut Call, arg: u64, count: u64) -> Result<(), Errno> {
    each::<GnttabMapGrantRef>(
        call,
        arg,
        count,
        offset_of!(GnttabMapGrantRef, status),
        |call, at| {
            let request: GnttabMapGrantRef = call.read(at)?;
            Ok(map_status(call, &request))
        },
    )
}

fn map_status(call: &Call, request: &GnttabMapGrantRef) -> i16 {
    const NOT_FOR_HVM: u32 = GNTMAP_DEVICE_MAP | GNTMAP_APPLICATION_MAP | GNTMAP_CONTAINS_PTE;
    if request.flags & (GNTMAP_DEVICE_MAP | GNTMAP_HOST_MAP) == 0 {
        return GNTST_BAD_GNTREF;
    }
    if request.flags & NOT_FOR_HVM != 0 {
        return GNTST_GENERAL_ERROR;
    }
    // By number only: `DOMID_SELF` is no domain here.
    if request.dom == DOMID_SELF {
        return GNTST_BAD_DOMAIN;
    }
    grant_status(call, request.dom, request.ref_)
}

fn unmap(call: &mut Call, arg: u64, count: u64) -> Result<(), Errno> {
    each::<GnttabUnmapGrantRef>(
        call,
        arg,
        count,
        offset_of!(GnttabUnmapGrantRef, status),
        |call, at| {
            // Nothing was ever mapped, so that no handle is good.
            call.read::<GnttabUnmapGrantRef>(at)?;
            Ok(GNTST_BAD_HANDLE)
        },
    )
}

fn swap(call: &mut Call, arg: u64, count: u64) -> Result<(), Errno> {
    each::<GnttabSwapGrantRef>(
        call,
        arg,
        count,
        offset_of!(GnttabSwapGrantRef, status),
        |call, at| {
            let request: GnttabSwapGrantRef = call.read(at)?;
            let domain = call.domain;
            let mut table = domain.grants.lock();
            let [a, b] = [request.ref_a, request.ref_b];
            if a.max(b) >= table.entries() {
                return Ok(GNTST_BAD_GNTREF);
            }
            if a == b {
                return Ok(GNTST_OKAY);
            }
            if table.pins.is_pinned(a) || table.pins.is_pinned(b) {
                return Ok(GNTST_EAGAIN);
            }
            table.swap(&domain.memory(), a, b);
            Ok(GNTST_OKAY)
        },
    )
}

fn copy(call: &mut Call, arg: u64, count: u64) -> Result<(), Errno> {
    if call.is_64bit() {
        return each::<GnttabCopy>(call, arg, count, offset_of!(GnttabCopy, status), |call, at| {
            let request = call.read(at)?;
            Ok(copy_status(call, &request))
        });
    }
    each::<GnttabCopy32>(call, arg, count, offset_of!(GnttabCopy32, status), |call, at| {
        let request: GnttabCopy32 = call.read(at)?;
        let wide = |p: xen_abi::grant_table::GnttabCopyPtr32| GnttabCopyPtr {
            u: p.u.into(),
            domid: p.domid,
            offset: p.offset,
            ..Default::default()
        };
        let request = GnttabCopy {
            source: wide(request.source),
            dest: wide(request.dest),
            len: request.len,
            flags: request.flags,
            ..Default::default()
        };
        Ok(copy_status(call, &request))
    })
}

/// Copies between two pages of the guest's, each named by frame or by a grant
/// that the guest made out to itself. Both domains are looked up before either
/// page is used, as in Xen.
fn copy_status(call: &Call, request: &GnttabCopy) -> i16 {
    let source_by_grant = request.flags & GNTCOPY_SOURCE_GREF != 0;
    let dest_by_grant = request.flags & GNTCOPY_DEST_GREF != 0;
    for (end, by_grant) in [(&request.source, source_by_grant), (&request.dest, dest_by_grant)] {
        if end.domid != DOMID_SELF && !by_grant {
            return GNTST_PERMISSION_DENIED;
        }
        if domid::own(&call.domain.config, end.domid) == Err(Errno::ESRCH) {
            return GNTST_BAD_DOMAIN;
        }
    }
    let source = match Claim::new(call, &request.source, source_by_grant, GrantAccess::Read) {
        Ok(claim) => claim,
        Err(status) => return status,
    };
    let dest = match Claim::new(call, &request.dest, dest_by_grant, GrantAccess::ReadWrite) {
        Ok(claim) => claim,
        Err(status) => return status,
    };
    let len = usize::from(request.len);
    let ends = [(&request.source, &source), (&request.dest, &dest)];
    if ends.iter().any(|(end, _)| usize::from(end.offset) + len > PAGE_SIZE) {
        return GNTST_BAD_COPY_ARG;
    }
    if ends.iter().any(|(end, claim)| !claim.covers(end.offset, len)) {
        return GNTST_GENERAL_ERROR;
    }
    let memory = call.domain.memory();
    let mut page = [0; PAGE_SIZE];
    let bytes = &mut page[..len];
    let copied = memory
        .read_slice(bytes, source.address(request.source.offset))
        .and_then(|()| memory.write_slice(bytes, dest.address(request.dest.offset)));
    if copied.is_ok() { GNTST_OKAY } else { GNTST_BAD_PAGE }
}

/// One page of a copy; a grant is in use for as long as this lives.
struct Claim<'a> {
    domain: &'a Domain,
    part: Part,
    grant: Option<(u32, GrantAccess)>,
}

impl<'a> Claim<'a> {
    /// # Errors
    /// `GNTST_*`.
    fn new(
        call: &Call<'a>,
        end: &GnttabCopyPtr,
        by_grant: bool,
        access: GrantAccess,
    ) -> Result<Self, i16> {
        let domain = call.domain;
        if !by_grant {
            if !domain.physmap.is_present(end.u) {
                return Err(GNTST_BAD_PAGE);
            }
            let part = Part { gfn: end.u, start: 0, len: WHOLE, sub_page: false };
            return Ok(Self { domain, part, grant: None });
        }
        let reference = u32::try_from(end.u & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        if domid::own(&domain.config, end.domid).is_err() {
            return Err(grant_status(call, end.domid, reference));
        }
        let user = domain.config.domain_id;
        let part = domain.acquire_grant(user, reference, access, Use::Copy);
        let part = part.map_err(super::GrantError::status)?;
        Ok(Self { domain, part, grant: Some((reference, access)) })
    }

    fn covers(&self, offset: u16, len: usize) -> bool {
        let [offset, start, granted] = [offset, self.part.start, self.part.len].map(usize::from);
        offset >= start && offset + len <= start + granted
    }

    fn address(&self, offset: u16) -> GuestAddress {
        GuestAddress(self.part.gfn.wrapping_mul(PAGE_SIZE as u64) + u64::from(offset))
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some((reference, access)) = self.grant {
            self.domain.grants.release(&self.domain.memory(), reference, access);
        }
    }
}

/// What comes of using a grant that is not made out to this domain, or of mapping
/// one's own, which would want the same memory in two places.
fn grant_status(call: &Call, dom: u16, reference: u32) -> i16 {
    let entries = match domid::own(&call.domain.config, dom) {
        Ok(()) => call.domain.grants.entries(),
        Err(Errno::EPERM) => OTHER_ENTRIES,
        Err(_) => return GNTST_BAD_DOMAIN,
    };
    if reference < entries { GNTST_GENERAL_ERROR } else { GNTST_BAD_GNTREF }
}

fn domain_status(call: &Call, dom: u16) -> i16 {
    match domid::own(&call.domain.config, dom) {
        Ok(()) => GNTST_OKAY,
        Err(Errno::EPERM) => GNTST_PERMISSION_DENIED,
        Err(_) => GNTST_BAD_DOMAIN,
    }
}

fn only_one(count: u64) -> Result<(), Errno> {
    if count == 1 { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Works through an array of `T`, each with its own status field at `status_at`.
fn each<T>(
    call: &mut Call,
    arg: u64,
    count: u64,
    status_at: usize,
    mut one: impl FnMut(&mut Call, u64) -> Result<i16, Errno>,
) -> Result<(), Errno> {
    let mut at = arg;
    for _ in 0..count {
        call.spend()?;
        let status = one(call, at)?;
        call.write(at.wrapping_add(status_at as u64), &status)?;
        at = at.wrapping_add(size_of::<T>() as u64);
    }
    Ok(())
}
