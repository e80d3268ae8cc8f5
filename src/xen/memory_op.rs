//! `memory_op`: the guest's memory map and the layout of its memory
//! (`memory.h`). The amounts are in [`reservation`].

use xen_abi::errno::Errno;
use xen_abi::memory::{
    AddToPhysmap, AddToPhysmap32, AddToPhysmapBatch, AddToPhysmapBatch32, E820Entry, MemoryMap,
    MemoryMap32, RemoveFromPhysmap, RemoveFromPhysmap32, XENMAPSPACE_DEV_MMIO,
    XENMAPSPACE_GMFN_FOREIGN, XENMAPSPACE_GMFN_RANGE, XENMAPSPACE_GRANT_TABLE,
    XENMAPSPACE_SHARED_INFO, XENMEM_ADD_TO_PHYSMAP, XENMEM_ADD_TO_PHYSMAP_BATCH,
    XENMEM_CURRENT_RESERVATION, XENMEM_DECREASE_RESERVATION, XENMEM_INCREASE_RESERVATION,
    XENMEM_MAXIMUM_GPFN, XENMEM_MAXIMUM_RAM_PAGE, XENMEM_MAXIMUM_RESERVATION, XENMEM_MEMORY_MAP,
    XENMEM_POPULATE_PHYSMAP, XENMEM_REMOVE_FROM_PHYSMAP,
};

use super::physmap::Special;
use super::{Call, Domain, Reply, domid, memory_refused, reservation, shared_info};

/// Bits 5:0 of the command are the operation, the rest is how much of it an
/// interrupted call has already done. We finish each call at once, so a guest
/// that passes anything there asks for what Xen checks as its own continuation.
const CMD_BITS: u32 = 6;
/// A 32-bit guest's all-ones frame is widened with zeroes and is none.
const INVALID_GFN: u64 = u64::MAX;

/// Serves `cmd`, an `unsigned long`, with its argument at `arg`.
pub(super) fn op(call: &mut Call, cmd: u64, arg: u64) -> Reply {
    let start = cmd >> CMD_BITS;
    let Ok(sub_op) = u32::try_from(cmd & ((1 << CMD_BITS) - 1)) else { return Err(Errno::ENOSYS) };
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
        return add_range(&request, start);
    }
    add_one(call, request.space, request.idx, request.gpfn)?;
    Ok(0)
}

/// Moving ordinary pages about fails at the first one, so an empty range is all
/// that succeeds.
fn add_range(request: &AddToPhysmap, start: u64) -> Reply {
    let size = u64::from(request.size);
    if size < start {
        return Err(Errno::EILSEQ);
    }
    if request.gpfn.checked_add(size).is_none() || request.idx.checked_add(size).is_none() {
        return Err(Errno::EOVERFLOW);
    }
    if size == start { Ok(0) } else { Err(Errno::EINVAL) }
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

/// Places one page of the hypervisor's at `gfn`.
fn add_one(call: &mut Call, space: u32, idx: u64, gfn: u64) -> Result<(), Errno> {
    let domain = call.domain;
    match space {
        XENMAPSPACE_SHARED_INFO if idx == 0 => {
            domain.back(gfn)?;
            // What lies there lets go first, with its contents.
            displace(domain, gfn, Special::SharedInfo);
            shared_info::place(domain, call.vcpu, gfn)
        }
        XENMAPSPACE_GRANT_TABLE => {
            // An `unsigned int`; the bit for status frames means nothing to a
            // table of version 1 but an index out of range.
            let idx = u32::try_from(idx & u64::from(u32::MAX)).map_err(|_| Errno::EINVAL)?;
            domain.grants.check_frame(idx)?;
            let gpa = domain.back(gfn)?;
            displace(domain, gfn, Special::GrantFrame(idx));
            domain.grants.place(&domain.memory(), idx, gpa)
        }
        // Only the hardware domain maps other domains' memory.
        XENMAPSPACE_GMFN_FOREIGN => Err(Errno::EPERM),
        // Ordinary pages do not move: guest memory is fixed. Also unknown spaces,
        // and device memory, which x86 has not got.
        _ => Err(Errno::EINVAL),
    }
}

/// Accounts for a page of the hypervisor's at `gfn`; one that it covers lets go.
fn displace(domain: &Domain, gfn: u64, special: Special) {
    match domain.physmap.place(gfn, special) {
        Some(covered) if covered != special => let_go(domain, covered),
        _ => {}
    }
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
    take_out(call.domain, gfn)?;
    Ok(0)
}

/// Empties the frame `gfn`.
///
/// # Errors
/// `ENOENT` where there is nothing.
pub(super) fn take_out(domain: &Domain, gfn: u64) -> Result<(), Errno> {
    if let Some(special) = domain.physmap.remove(gfn)? {
        let_go(domain, special);
    }
    Ok(())
}

fn let_go(domain: &Domain, special: Special) {
    match special {
        // Covered by a grant frame, it goes on under it, to the guest's own harm.
        Special::SharedInfo => {}
        Special::GrantFrame(idx) => domain.grants.displace(&domain.memory(), idx),
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
