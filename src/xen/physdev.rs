//! `physdev_op`: physical interrupts and PCI. A guest without pirqs
//! (`XENFEAT_hvm_pirqs` clear) has none of it.

use xen_abi::errno::Errno;

use super::{Call, Reply};

/// Answers every command as Xen answers a domain that has no pirqs and is not
/// the hardware domain: the argument is not even looked at.
pub(super) fn op(_call: &mut Call, _cmd: u64, _arg: u64) -> Reply {
    Err(Errno::ENOSYS)
}
