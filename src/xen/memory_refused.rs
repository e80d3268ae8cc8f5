//! The operations of `memory_op` that an ordinary HVM guest does not get, each
//! with the error that Xen 4.17 gives it and the checks that come before.

use std::mem::offset_of;

use xen_abi::errno::Errno;
use xen_abi::memory::{
    ForeignMemoryMap, ForeignMemoryMap32, MemoryExchange, MemoryExchange32, MemoryReservation,
    MemoryReservation32, PodTarget, PodTarget32, ReservedDeviceMemoryMap,
    ReservedDeviceMemoryMap32, VnumaTopologyInfo, XENMEM_ACCESS_OP, XENMEM_ACQUIRE_RESOURCE,
    XENMEM_CLAIM_PAGES, XENMEM_EXCHANGE, XENMEM_GET_POD_TARGET, XENMEM_GET_SHARING_FREED_PAGES,
    XENMEM_GET_SHARING_SHARED_PAGES, XENMEM_GET_VNUMAINFO, XENMEM_RDM_ALL,
    XENMEM_RESERVED_DEVICE_MEMORY_MAP, XENMEM_SET_MEMORY_MAP, XENMEM_SET_POD_TARGET,
};

use super::memory_op::none_done;
use super::reservation::MAX_ORDER;
use super::{Call, Reply, domid};

/// Entries that `XENMEM_set_memory_map` takes at most (`E820MAX`).
const E820_MAX: u32 = 1024;

pub(super) fn op(call: &mut Call, sub_op: u32, start: u64, arg: u64) -> Reply {
    match sub_op {
        XENMEM_EXCHANGE => exchange(call, start, arg),
        XENMEM_CLAIM_PAGES => claim_pages(call, start, arg),
        XENMEM_GET_VNUMAINFO => vnuma(call, start, arg),
        XENMEM_RESERVED_DEVICE_MEMORY_MAP => reserved_device_memory(call, start, arg),
        // Both begin by looking up a domain other than the caller.
        XENMEM_ACCESS_OP => Err(Errno::EPERM),
        // HVM guests cannot map foreign resources.
        XENMEM_ACQUIRE_RESOURCE => Err(Errno::EACCES),
        // These know no continuation: with one they are unknown numbers.
        _ if start != 0 => Err(Errno::ENOSYS),
        XENMEM_SET_MEMORY_MAP => set_memory_map(call, arg),
        XENMEM_SET_POD_TARGET | XENMEM_GET_POD_TARGET => pod_target(call, arg),
        XENMEM_GET_SHARING_FREED_PAGES | XENMEM_GET_SHARING_SHARED_PAGES => Ok(0),
        // The machine's own map and its tables of frames are hidden from HVM
        // guests altogether, paging and sharing are not built in.
        _ => Err(Errno::ENOSYS),
    }
}

/// Swapping pages for others serves PV guests. Of an HVM guest Xen checks all
/// and then takes no page.
fn exchange(call: &mut Call, start: u64, arg: u64) -> Reply {
    none_done(start)?;
    let request = if call.is_64bit() {
        call.read::<MemoryExchange>(arg)?
    } else {
        let request: MemoryExchange32 = call.read(arg)?;
        MemoryExchange {
            in_: widened(&request.in_),
            out: widened(&request.out),
            nr_exchanged: request.nr_exchanged.into(),
        }
    };
    let MemoryExchange { in_, out, nr_exchanged } = request;
    if in_.extent_order.max(out.extent_order) > MAX_ORDER {
        return Err(Errno::EPERM);
    }
    let fits = |side: &MemoryReservation| side.nr_extents <= u64::MAX >> side.extent_order;
    if nr_exchanged > in_.nr_extents
        || in_.domid != out.domid
        || !fits(&in_)
        || !fits(&out)
        || in_.nr_extents << in_.extent_order != out.nr_extents << out.extent_order
    {
        return Err(Errno::EINVAL);
    }
    domid::own(&call.domain.config, in_.domid)?;
    // An extent of the larger order is a chunk of the smaller ones.
    let chunk = out.extent_order.saturating_sub(in_.extent_order);
    let done = nr_exchanged >> chunk;
    if done == in_.nr_extents >> chunk {
        return Ok(0);
    }
    let gfn = call.read_ulong(in_.extent_start, done << chunk)?;
    Err(if call.domain.physmap.is_present(gfn) { Errno::EOPNOTSUPP } else { Errno::EINVAL })
}

/// A 32-bit guest's reservation in the 64-bit layout.
pub(super) fn widened(request: &MemoryReservation32) -> MemoryReservation {
    MemoryReservation {
        extent_start: request.extent_start.into(),
        nr_extents: request.nr_extents.into(),
        extent_order: request.extent_order,
        mem_flags: request.mem_flags,
        domid: request.domid,
        ..Default::default()
    }
}

/// Regions that devices of the host need: there are no such devices. A guest
/// that asks learns that none was left out.
fn reserved_device_memory(call: &mut Call, start: u64, arg: u64) -> Reply {
    none_done(start)?;
    let flags = if call.is_64bit() {
        call.read::<ReservedDeviceMemoryMap>(arg)?.flags
    } else {
        call.read::<ReservedDeviceMemoryMap32>(arg)?.flags
    };
    if flags & !XENMEM_RDM_ALL != 0 {
        return Err(Errno::EINVAL);
    }
    // At the same place in both layouts.
    let at = arg.wrapping_add(offset_of!(ReservedDeviceMemoryMap, nr_entries) as u64);
    call.write(at, &0u32)?;
    Ok(0)
}

fn claim_pages(call: &mut Call, start: u64, arg: u64) -> Reply {
    none_done(start)?;
    let request = if call.is_64bit() {
        call.read::<MemoryReservation>(arg)?
    } else {
        widened(&call.read::<MemoryReservation32>(arg)?)
    };
    let MemoryReservation { extent_start, extent_order, mem_flags, domid, .. } = request;
    // By number only: `DOMID_SELF` is no domain here.
    let known = domid == call.domain.config.domain_id || domid == 0;
    if extent_start != 0 || extent_order != 0 || mem_flags != 0 || !known {
        return Err(Errno::EINVAL);
    }
    Err(Errno::EPERM)
}

fn vnuma(call: &mut Call, start: u64, arg: u64) -> Reply {
    none_done(start)?;
    let request: VnumaTopologyInfo = call.read(arg)?;
    if request.pad != 0 {
        return Err(Errno::EINVAL);
    }
    domid::own(&call.domain.config, request.domid)?;
    Err(Errno::EOPNOTSUPP)
}

/// Xen lets a guest replace its own map. Ours is what the machine was built to,
/// and a toolstack that passes it on never runs inside the guest.
fn set_memory_map(call: &mut Call, arg: u64) -> Reply {
    let (entries, domid) = if call.is_64bit() {
        let request: ForeignMemoryMap = call.read(arg)?;
        (request.map.nr_entries, request.domid)
    } else {
        let request: ForeignMemoryMap32 = call.read(arg)?;
        (request.map.nr_entries, request.domid)
    };
    if entries > E820_MAX {
        return Err(Errno::EINVAL);
    }
    domid::own(&call.domain.config, domid)?;
    Err(Errno::EPERM)
}

fn pod_target(call: &mut Call, arg: u64) -> Reply {
    let domid = if call.is_64bit() {
        call.read::<PodTarget>(arg)?.domid
    } else {
        call.read::<PodTarget32>(arg)?.domid
    };
    domid::own(&call.domain.config, domid)?;
    Err(Errno::EPERM)
}

#[cfg(test)]
mod tests;
