//! How much memory the domain holds: the operations of a balloon
//! (`memory.h`, `struct xen_memory_reservation`).

use xen_abi::errno::Errno;
use xen_abi::memory::{
    MemoryDomain, MemoryReservation, MemoryReservation32, XENMEM_CURRENT_RESERVATION,
    XENMEM_DECREASE_RESERVATION, XENMEM_MAXIMUM_RESERVATION, XENMEM_POPULATE_PHYSMAP,
    XENMEMF_POPULATE_ON_DEMAND,
};

use super::memory_op::{returned, take_out};
use super::memory_refused::widened;
use super::physmap::Freed;
use super::{Call, Domain, Reply, domid};

/// The largest extent of an ordinary domain: 2 MiB.
pub(super) const MAX_ORDER: u32 = 9;
/// A count that Xen could not carry through a continuation (`UINT_MAX >> 6`).
const MAX_EXTENTS: u64 = (u32::MAX >> 6) as u64;
/// `XENMEMF_get_address_bits`, and the bits of a page offset, which no limit may
/// fall short of.
const ADDRESS_BITS_MASK: u32 = 0xff;
const PAGE_SHIFT: u32 = 12;

/// Gives pages back or asks for them, and answers with how many extents of the
/// list were done. That is also the answer to a bad argument: these operations
/// never return an error.
pub(super) fn adjust(call: &mut Call, sub_op: u32, start: u64, arg: u64) -> Reply {
    let done = match request(call, start, arg) {
        Some(request) => run(call, sub_op, start, &request),
        None => start,
    };
    Ok(returned(done))
}

/// The current or the maximal number of pages, or the last frame.
pub(super) fn amount(call: &mut Call, sub_op: u32, arg: u64) -> Reply {
    let request: MemoryDomain = call.read(arg)?;
    domid::own(&call.domain.config, request.domid)?;
    let physmap = &call.domain.physmap;
    Ok(returned(match sub_op {
        XENMEM_CURRENT_RESERVATION => physmap.pages(),
        XENMEM_MAXIMUM_RESERVATION => physmap.max_pages(),
        _ => physmap.highest_gfn(),
    }))
}

/// The request, where Xen would act on it at all.
fn request(call: &mut Call, start: u64, arg: u64) -> Option<MemoryReservation> {
    let request = if call.is_64bit() {
        call.read::<MemoryReservation>(arg).ok()?
    } else {
        widened(&call.read::<MemoryReservation32>(arg).ok()?)
    };
    let address_bits = request.mem_flags & ADDRESS_BITS_MASK;
    let usable = request.nr_extents <= MAX_EXTENTS
        && start < request.nr_extents
        && (address_bits == 0 || address_bits > PAGE_SHIFT)
        && request.extent_order <= MAX_ORDER;
    domid::own(&call.domain.config, request.domid).ok()?;
    usable.then_some(request)
}

/// Works through the list and answers with the extents done. It may stop early,
/// at what cannot be done or where one hypercall's work ends; a balloon then
/// tries again.
fn run(call: &mut Call, sub_op: u32, start: u64, request: &MemoryReservation) -> u64 {
    let domain = call.domain;
    let _changing = domain.physmap.changing();
    let mut freed = Freed::new(domain);
    for extent in start..request.nr_extents {
        let pages = 1u64 << request.extent_order;
        let done = call.spend_many(pages).and_then(|()| match sub_op {
            XENMEM_DECREASE_RESERVATION => {
                let gfn = call.read_ulong(request.extent_start, extent)?;
                decrease(domain, &mut freed, gfn, pages)
            }
            XENMEM_POPULATE_PHYSMAP => {
                let gfn = call.read_ulong(request.extent_start, extent)?;
                if request.mem_flags & XENMEMF_POPULATE_ON_DEMAND != 0 {
                    // Not for oneself.
                    return Err(Errno::EPERM);
                }
                populate(domain, gfn, pages)
            }
            // Pages without a frame: a translated guest has no use for them.
            _ => domain.physmap.add_unplaced(pages),
        });
        if done.is_err() {
            return extent;
        }
    }
    request.nr_extents
}

/// Xen's extents of several pages may be done in part, too.
fn decrease(domain: &Domain, freed: &mut Freed, gfn: u64, pages: u64) -> Result<(), Errno> {
    let end = gfn.checked_add(pages).ok_or(Errno::EINVAL)?;
    (gfn..end).try_for_each(|gfn| take_out(domain, freed, gfn))
}

/// An extent is given whole or not at all.
fn populate(domain: &Domain, gfn: u64, pages: u64) -> Result<(), Errno> {
    let end = gfn.checked_add(pages).ok_or(Errno::EINVAL)?;
    for at in gfn..end {
        let given = domain.back(at).and_then(|_| domain.physmap.populate(at));
        if let Err(error) = given {
            for undone in gfn..at {
                let _ = domain.physmap.remove(undone);
            }
            return Err(error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
