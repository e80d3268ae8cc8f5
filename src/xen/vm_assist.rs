//! `vm_assist`: per-domain modes. Of all of them an HVM guest may switch one,
//! the update flag of runstate areas (`xen.h`, `VMASST_*`).

use std::sync::atomic::Ordering;

use xen_abi::errno::Errno;
use xen_abi::xen::{VMASST_CMD_DISABLE, VMASST_CMD_ENABLE, VMASST_TYPE_RUNSTATE_UPDATE_FLAG};

use super::{Call, Reply};

const VALID: u64 = 1 << VMASST_TYPE_RUNSTATE_UPDATE_FLAG;

/// Switches an assist. As in Xen the type is judged before the command.
pub(super) fn op(call: &mut Call, cmd: u64, kind: u64) -> Reply {
    let bit = u32::try_from(kind).ok().and_then(|kind| 1u64.checked_shl(kind));
    let bit = bit.filter(|bit| bit & VALID != 0).ok_or(Errno::EINVAL)?;
    let flags = &call.domain.vm_assist;
    match u32::try_from(cmd) {
        Ok(VMASST_CMD_ENABLE) => flags.fetch_or(bit, Ordering::AcqRel),
        Ok(VMASST_CMD_DISABLE) => flags.fetch_and(!bit, Ordering::AcqRel),
        _ => return Err(Errno::ENOSYS),
    };
    Ok(0)
}
