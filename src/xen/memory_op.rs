//! `memory_op`: the guest's memory map and the layout of its memory
//! (`memory.h`). The amounts are in [`reservation`].

use vm_memory::Bytes;
use xen_abi::errno::Errno;
use xen_abi::memory::{
    AddToPhysmap, AddToPhysmap32, AddToPhysmapBatch, AddToPhysmapBatch32, E820Entry, MemoryMap,
    MemoryMap32, RemoveFromPhysmap, RemoveFromPhysmap32, XENMAPIDX_GRANT_TABLE_STATUS,
    XENMAPSPACE_DEV_MMIO, XENMAPSPACE_GMFN, XENMAPSPACE_GMFN_FOREIGN, XENMAPSPACE_GMFN_RANGE,
    XENMAPSPACE_GRANT_TABLE, XENMAPSPACE_SHARED_INFO, XENMEM_ADD_TO_PHYSMAP,
    XENMEM_ADD_TO_PHYSMAP_BATCH, XENMEM_CURRENT_RESERVATION, XENMEM_DECREASE_RESERVATION,
    XENMEM_INCREASE_RESERVATION, XENMEM_MAXIMUM_GPFN, XENMEM_MAXIMUM_RAM_PAGE,
    XENMEM_MAXIMUM_RESERVATION, XENMEM_MEMORY_MAP, XENMEM_POPULATE_PHYSMAP,
    XENMEM_REMOVE_FROM_PHYSMAP,
};

use super::physmap::{Freed, Special};
use super::{Call, Domain, Reply, domid, memory_refused, reservation, shared_info};

/// Bits 5:0 of the command are the operation, the rest is how much of it an
/// interrupted call has already done. We finish each call at once, so a guest
/// that passes anything there asks for what Xen checks as its own continuation.
const CMD_BITS: u32 = 6;
const PAGE_SIZE: usize = 4096;
/// A 32-bit guest's all-ones frame is widened with zeroes and is none.
const INVALID_GFN: u64 = u64::MAX;

/// The operation that `cmd` names.
pub(super) fn sub_op(cmd: u64) -> u64 {
    cmd & ((1 << CMD_BITS) - 1)
}

/// Serves `cmd`, an `unsigned long`, with its argument at `arg`.
pub(super) fn op(call: &mut Call, cmd: u64, arg: u64) -> Reply {
    let start = cmd >> CMD_BITS;
    let Ok(sub_op) = u32::try_from(sub_op(cmd)) else { return Err(Errno::ENOSYS) };
    match sub_op {
        XENMEM_INCREASE_RESERVATION | XENMEM_DECREASE_RESERVATION | XENMEM_POPULATE_PHYSMAP => {
            reservation::adjust(call, sub_op, start, arg)
        }
        XENMEM_CURRENT_RESERVATION | XENMEM_MAXIMUM_RESERVATION | XENMEM_MAXIMUM_GPFN => {
            none_done(start)?;
            reservation::amount(call, sub_op, arg)
        }
        XENMEM_MAXIMUM_RAM_PAGE => {
            none_done(start)?;
            // Xen tells the host's last frame; the guest's own is all we show.
            Ok(returned(call.domain.physmap.highest_gfn() + 1))
        }
        XENMEM_ADD_TO_PHYSMAP => add(call, start, arg),
        XENMEM_ADD_TO_PHYSMAP_BATCH => add_batch(call, start, arg),
        XENMEM_REMOVE_FROM_PHYSMAP => {
            none_done(start)?;
            remove(call, arg)
        }
        // Answered only as a bare command, like all of Xen's per-architecture ones.
        XENMEM_MEMORY_MAP if start == 0 => memory_map(call, arg),
        _ => memory_refused::op(call, sub_op, start, arg),
    }
}

/// # Errors
/// `EINVAL` where a continuation is claimed that does not exist.
pub(super) fn none_done(start: u64) -> Result<(), Errno> {
    if start == 0 { Ok(()) } else { Err(Errno::EINVAL) }
}

/// A count as a return value.
pub(super) fn returned(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The memory map, as many entries as the guest has room for.
fn memory_map(call: &mut Call, arg: u64) -> Reply {
    let (room, buffer) = if call.is_64bit() {
        let map: MemoryMap = call.read(arg)?;
        (map.nr_entries, map.buffer)
    } else {
        let map: MemoryMap32 = call.read(arg)?;
        (map.nr_entries, map.buffer.into())
    };
    let domain = call.domain;
    if domain.config.memory_map.is_empty() {
        return Err(Errno::ENOSYS);
    }
    let mut at = buffer;
    let mut written = 0u32;
    for entry in domain.config.memory_map.iter().take(usize::try_from(room).unwrap_or(usize::MAX)) {
        let entry = E820Entry { addr: entry.addr, size: entry.size, type_: entry.kind };
        call.write(at, &entry)?;
        at = at.wrapping_add(size_of::<E820Entry>() as u64);
        written += 1;
    }
    // `nr_entries` is the first field of both layouts.
    call.write(arg, &written)?;
    Ok(0)
}

fn add(call: &mut Call, start: u64, arg: u64) -> Reply {
    if start > u16::MAX.into() {
        return Err(Errno::EDOM);
    }
    let request = if call.is_64bit() {
        call.read::<AddToPhysmap>(arg)?
    } else {
        let request: AddToPhysmap32 = call.read(arg)?;
        AddToPhysmap {
            domid: request.domid,
            size: request.size,
            space: request.space,
            idx: request.idx.into(),
            gpfn: request.gpfn.into(),
        }
    };
    if request.space == XENMAPSPACE_GMFN_FOREIGN {
        return Err(Errno::ENOSYS);
    }
    own_physmap(call, request.domid, request.space)?;
    if request.gpfn == INVALID_GFN {
        return Err(Errno::EINVAL);
    }
    if request.space == XENMAPSPACE_GMFN_RANGE {
        return add_range(call, &request, start);
    }
    add_one(call, request.space, request.idx, request.gpfn)?;
    Ok(0)
}

/// Moves a range of pages, one by one, as far as this call's work goes.
fn add_range(call: &mut Call, request: &AddToPhysmap, start: u64) -> Reply {
    let size = u64::from(request.size);
    if size < start {
        return Err(Errno::EILSEQ);
    }
    if request.gpfn.checked_add(size).is_none() || request.idx.checked_add(size).is_none() {
        return Err(Errno::EOVERFLOW);
    }
    for page in start..size {
        call.spend()?;
        add_one(call, XENMAPSPACE_GMFN, request.idx + page, request.gpfn + page)?;
    }
    Ok(0)
}

fn add_batch(call: &mut Call, start: u64, arg: u64) -> Reply {
    if start > u16::MAX.into() {
        return Err(Errno::EDOM);
    }
    let request = if call.is_64bit() {
        call.read::<AddToPhysmapBatch>(arg)?
    } else {
        let request: AddToPhysmapBatch32 = call.read(arg)?;
        AddToPhysmapBatch {
            domid: request.domid,
            space: request.space,
            size: request.size,
            foreign_domid: request.foreign_domid,
            idxs: request.idxs.into(),
            gpfns: request.gpfns.into(),
            errs: request.errs.into(),
        }
    };
    let space = u32::from(request.space);
    if space == XENMAPSPACE_GMFN_RANGE {
        return Err(Errno::EOPNOTSUPP);
    }
    own_physmap(call, request.domid, space)?;
    let size = u64::from(request.size);
    if size < start || (size == start && start > 0) {
        return Err(Errno::EILSEQ);
    }
    for extent in start..size {
        call.spend()?;
        let idx = call.read_ulong(request.idxs, extent)?;
        let gfn = call.read_ulong(request.gpfns, extent)?;
        if gfn == INVALID_GFN {
            return Err(Errno::EINVAL);
        }
        let error = match add_one(call, space, idx, gfn) {
            Ok(()) => 0i32,
            Err(error) => -error.0,
        };
        call.write(request.errs.wrapping_add(extent * 4), &error)?;
    }
    Ok(0)
}

/// Places one page at `gfn`.
fn add_one(call: &mut Call, space: u32, idx: u64, gfn: u64) -> Result<(), Errno> {
    let domain = call.domain;
    let _changing = domain.physmap.changing();
    match space {
        XENMAPSPACE_SHARED_INFO if idx == 0 => place(call, gfn, Special::SharedInfo),
        XENMAPSPACE_GRANT_TABLE => {
            // An `unsigned int` to the table.
            let status = idx & XENMAPIDX_GRANT_TABLE_STATUS != 0 && domain.grants.version() == 2;
            let bits = if status { !XENMAPIDX_GRANT_TABLE_STATUS } else { u64::MAX };
            let idx = idx & bits & u64::from(u32::MAX);
            let idx = u32::try_from(idx).map_err(|_| Errno::EINVAL)?;
            let special = if status { Special::StatusFrame(idx) } else { Special::GrantFrame(idx) };
            domain.grants.check_frame(special)?;
            place(call, gfn, special)
        }
        XENMAPSPACE_GMFN => move_page(call, idx, gfn),
        // Only the hardware domain maps other domains' memory.
        XENMAPSPACE_GMFN_FOREIGN => Err(Errno::EPERM),
        // Also unknown spaces, and device memory, which x86 has not got.
        _ => Err(Errno::EINVAL),
    }
}

/// Places a page of the hypervisor's at `gfn`, from wherever it was.
fn place(call: &Call, gfn: u64, special: Special) -> Result<(), Errno> {
    let domain = call.domain;
    let gpa = domain.back(gfn)?;
    let displaced = domain.physmap.place(gfn, special);
    // What lay there lets go first, with its contents.
    if let Some(covered) = displaced.covered {
        let_go(domain, covered);
    }
    match special {
        Special::SharedInfo => shared_info::place(domain, call.vcpu, gfn)?,
        frame => domain.grants.place(&domain.memory(), frame, gpa)?,
    }
    if let Some(left) = displaced.left {
        Freed::new(domain).add(left);
    }
    Ok(())
}

/// Moves what is at `from` to `to`. Xen changes the tables that translate, here
/// the contents go over: a guest that writes to `from` meanwhile loses that, as
/// it would a moment later.
fn move_page(call: &Call, from: u64, to: u64) -> Result<(), Errno> {
    let domain = call.domain;
    if let Some(special) = domain.physmap.special(from) {
        return place(call, to, special);
    }
    if !domain.physmap.is_present(from) {
        return Err(Errno::EINVAL);
    }
    if from == to {
        return Ok(());
    }
    let [source, target] = [domain.back(from)?, domain.back(to)?];
    if let Some(covered) = domain.physmap.move_page(from, to)? {
        let_go(domain, covered);
    }
    let memory = domain.memory();
    let mut page = [0; PAGE_SIZE];
    let copied =
        memory.read_slice(&mut page, source).and_then(|()| memory.write_slice(&page, target));
    Freed::new(domain).add(from);
    copied.map_err(|_| Errno::EINVAL)
}

fn remove(call: &mut Call, arg: u64) -> Reply {
    let (domid, gfn) = if call.is_64bit() {
        let request: RemoveFromPhysmap = call.read(arg)?;
        (request.domid, request.gpfn)
    } else {
        let request: RemoveFromPhysmap32 = call.read(arg)?;
        (request.domid, request.gpfn.into())
    };
    domid::own(&call.domain.config, domid)?;
    let domain = call.domain;
    let _changing = domain.physmap.changing();
    take_out(domain, &mut Freed::new(domain), gfn)?;
    Ok(0)
}

/// Empties the frame `gfn`; its memory goes to `freed`.
///
/// # Errors
/// `ENOENT` where there is nothing.
pub(super) fn take_out(domain: &Domain, freed: &mut Freed, gfn: u64) -> Result<(), Errno> {
    if let Some(special) = domain.physmap.remove(gfn)? {
        let_go(domain, special);
    }
    freed.add(gfn);
    Ok(())
}

/// A page of the hypervisor's leaves guest memory. Its contents are kept, and
/// the frame is not written any more.
fn let_go(domain: &Domain, special: Special) {
    match special {
        Special::SharedInfo => shared_info::unmap(domain),
        frame => domain.grants.displace(&domain.memory(), frame),
    }
}

fn own_physmap(call: &Call, domid: u16, space: u32) -> Result<(), Errno> {
    // Another domain's number is looked up first, its privilege judged last.
    match domid::own(&call.domain.config, domid) {
        Err(Errno::ESRCH) => Err(Errno::ESRCH),
        _ if space == XENMAPSPACE_DEV_MMIO => Err(Errno::EACCES),
        verdict => verdict,
    }
}

#[cfg(test)]
pub(super) mod tests;
