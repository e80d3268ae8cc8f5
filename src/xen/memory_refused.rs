//! The operations of `memory_op` that an ordinary HVM guest does not get, each
//! with the error that Xen 4.17 gives it and the checks that come before.

use xen_abi::errno::Errno;
use xen_abi::memory::{
    ForeignMemoryMap, ForeignMemoryMap32, MemoryExchange, MemoryExchange32, MemoryReservation,
    MemoryReservation32, PodTarget, PodTarget32, VnumaTopologyInfo, XENMEM_ACCESS_OP,
    XENMEM_ACQUIRE_RESOURCE, XENMEM_CLAIM_PAGES, XENMEM_EXCHANGE, XENMEM_GET_POD_TARGET,
    XENMEM_GET_SHARING_FREED_PAGES, XENMEM_GET_SHARING_SHARED_PAGES, XENMEM_GET_VNUMAINFO,
    XENMEM_SET_MEMORY_MAP, XENMEM_SET_POD_TARGET,
};

use super::memory_op::none_done;
use super::{Call, Reply, domid};

/// Entries that `XENMEM_set_memory_map` takes at most (`E820MAX`).
const E820_MAX: u32 = 1024;

pub(super) fn op(call: &mut Call, sub_op: u32, start: u64, arg: u64) -> Reply {
    match sub_op {
        XENMEM_EXCHANGE => exchange(call, start, arg),
        XENMEM_CLAIM_PAGES => claim_pages(call, start, arg),
        XENMEM_GET_VNUMAINFO => vnuma(call, start, arg),
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

/// Swapping pages for others serves PV guests that need contiguous memory.
fn exchange(call: &mut Call, start: u64, arg: u64) -> Reply {
    none_done(start)?;
    let (exchanged, wanted, domid) = if call.is_64bit() {
        let request: MemoryExchange = call.read(arg)?;
        (request.nr_exchanged, request.in_.nr_extents, request.in_.domid)
    } else {
        let request: MemoryExchange32 = call.read(arg)?;
        (request.nr_exchanged.into(), request.in_.nr_extents.into(), request.in_.domid)
    };
    if exchanged > wanted {
        return Err(Errno::EINVAL);
    }
    if exchanged == wanted {
        return Ok(0);
    }
    domid::own(&call.domain.config, domid)?;
    // There is no other page to give.
    Err(Errno::ENOMEM)
}

fn claim_pages(call: &mut Call, start: u64, arg: u64) -> Reply {
    none_done(start)?;
    let (extents, order, flags, domid) = if call.is_64bit() {
        let request: MemoryReservation = call.read(arg)?;
        (request.extent_start, request.extent_order, request.mem_flags, request.domid)
    } else {
        let request: MemoryReservation32 = call.read(arg)?;
        (request.extent_start.into(), request.extent_order, request.mem_flags, request.domid)
    };
    // By number only: `DOMID_SELF` is no domain here.
    let known = domid == call.domain.config.domain_id || domid == 0;
    if extents != 0 || order != 0 || flags != 0 || !known {
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
