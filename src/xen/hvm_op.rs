//! `hvm_op`: parameters, upcall vectors and odds and ends of HVM guests
//! (`hvm/hvm_op.h`).

use std::mem::offset_of;

use xen_abi::errno::Errno;
use xen_abi::hvm_op::{
    HVMMEM_MMIO_DM, HVMMEM_RAM_RW, HVMOP_ALTP2M, HVMOP_FLUSH_TLBS, HVMOP_GET_MEM_TYPE,
    HVMOP_GET_PARAM, HVMOP_GET_TIME, HVMOP_GUEST_REQUEST_VM_EVENT, HVMOP_PAGETABLE_DYING,
    HVMOP_SET_EVTCHN_UPCALL_VECTOR, HVMOP_SET_PARAM, HVMOP_XENTRACE, HvmEvtchnUpcallVector,
    HvmGetMemType, HvmGetTime, HvmPagetableDying, HvmParam, HvmXentrace,
};
use xen_abi::hvm_params::{HVM_NR_PARAMS, HVM_PARAM_CALLBACK_IRQ};

use super::{Call, Reply, domid, hvm_params, upcall};

/// What a new callback counts as, in steps of a long operation: the machine may
/// have to set up an interrupt line.
const CALLBACK_WORK: u64 = 64;
/// A guest's trace event has 12 bits.
const TRACE_EVENT_MASK: u16 = 0xfff;

/// Serves `cmd`, an `unsigned long`, with its argument at `arg`.
pub(super) fn op(call: &mut Call, cmd: u64, arg: u64) -> Reply {
    let Ok(cmd) = u32::try_from(cmd) else { return Err(Errno::ENOSYS) };
    match cmd {
        HVMOP_SET_PARAM => set_param(call, arg),
        HVMOP_GET_PARAM => get_param(call, arg),
        HVMOP_SET_EVTCHN_UPCALL_VECTOR => {
            let request: HvmEvtchnUpcallVector = call.read(arg)?;
            upcall::set_vector(call.domain, request.vcpu, request.vector)?;
            Ok(0)
        }
        HVMOP_GET_TIME => {
            let now = call.domain.clock.system_time_ns();
            call.write(arg, &HvmGetTime { now })?;
            Ok(0)
        }
        HVMOP_GET_MEM_TYPE => get_mem_type(call, arg),
        // Nothing here can flush another vCPU's TLB, and to say so is safer than
        // to claim it was done: the guest then sends its own IPIs.
        HVMOP_FLUSH_TLBS => Err(if arg == 0 { Errno::ENOSYS } else { Errno::EINVAL }),
        HVMOP_PAGETABLE_DYING => {
            let request: HvmPagetableDying = call.read(arg)?;
            // A hint for shadow page tables; with nested paging Xen says EINVAL.
            Err(match domid::own(&call.domain.config, request.domid) {
                Ok(()) => Errno::EINVAL,
                Err(Errno::EPERM) => Errno::EOPNOTSUPP,
                Err(error) => error,
            })
        }
        HVMOP_XENTRACE => {
            let request: HvmXentrace = call.read(arg)?;
            if usize::from(request.extra_bytes) > request.extra.len()
                || request.event & !TRACE_EVENT_MASK != 0
            {
                return Err(Errno::EINVAL);
            }
            tracing::trace!(vcpu = call.vcpu, event = request.event, "guest trace event");
            Ok(0)
        }
        // Nobody listens.
        HVMOP_GUEST_REQUEST_VM_EVENT => {
            if arg == 0 {
                Ok(0)
            } else {
                Err(Errno::EINVAL)
            }
        }
        HVMOP_ALTP2M => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::ENOSYS),
    }
}

fn set_param(call: &mut Call, arg: u64) -> Reply {
    let request: HvmParam = call.read(arg)?;
    check(call, &request)?;
    if request.index == HVM_PARAM_CALLBACK_IRQ {
        call.spend_many(CALLBACK_WORK)?;
    }
    hvm_params::write(call.domain, call.width, request.index, request.value)?;
    Ok(0)
}

fn get_param(call: &mut Call, arg: u64) -> Reply {
    let request: HvmParam = call.read(arg)?;
    check(call, &request)?;
    let value = call.domain.params.read(request.index)?;
    call.write(arg.wrapping_add(offset_of!(HvmParam, value) as u64), &value)?;
    Ok(0)
}

/// The index is judged before the domain.
fn check(call: &Call, request: &HvmParam) -> Result<(), Errno> {
    if request.index >= HVM_NR_PARAMS {
        return Err(Errno::EINVAL);
    }
    domid::own(&call.domain.config, request.domid)
}

fn get_mem_type(call: &mut Call, arg: u64) -> Reply {
    let request: HvmGetMemType = call.read(arg)?;
    domid::own(&call.domain.config, request.domid)?;
    let present = call.domain.physmap.is_present(request.pfn);
    let kind = if present { HVMMEM_RAM_RW } else { HVMMEM_MMIO_DM };
    call.write(arg.wrapping_add(offset_of!(HvmGetMemType, mem_type) as u64), &kind)?;
    Ok(0)
}

#[cfg(test)]
mod tests;
