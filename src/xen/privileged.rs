//! Hypercalls of control domains and device models: an ordinary guest finds
//! them in the table and is turned away, in the order in which Xen looks.

use xen_abi::errno::Errno;
use xen_abi::xen::DOMID_SELF;

use super::{Call, Reply, domid};

/// `XEN_SYSCTL_INTERFACE_VERSION` and `XEN_DOMCTL_INTERFACE_VERSION` of 4.17.
const CTL_INTERFACE: u32 = 0x15;
/// `XENPF_INTERFACE_VERSION`.
const PLATFORM_INTERFACE: u32 = 0x0300_0001;
/// `XEN_DOMCTL_shadow_op`.
const DOMCTL_SHADOW_OP: u32 = 10;
/// Sizes of the argument structures; a fault anywhere in them comes first.
const SYSCTL_SIZE: usize = 136;
const DOMCTL_SIZE: usize = 144;
const PLATFORM_OP_SIZE: usize = 136;
/// `struct xen_dm_op_buf`, at most this many per call.
const DM_OP_BUFS: u64 = 2;
/// `MMU_UPDATE_PREEMPTED`, a flag in the count.
const MMU_UPDATE_PREEMPTED: u64 = 0x8000_0000;

/// `platform_op`: wants its interface version, then privilege.
pub(super) fn platform_op(call: &mut Call, arg: u64) -> Reply {
    let head = head::<PLATFORM_OP_SIZE>(call, arg)?;
    Err(if head.version == PLATFORM_INTERFACE { Errno::EPERM } else { Errno::EACCES })
}

/// `sysctl`.
pub(super) fn sysctl(call: &mut Call, arg: u64) -> Reply {
    let head = head::<SYSCTL_SIZE>(call, arg)?;
    Err(if head.version == CTL_INTERFACE { Errno::EPERM } else { Errno::EACCES })
}

/// `domctl`.
pub(super) fn domctl(call: &mut Call, arg: u64) -> Reply {
    let head = head::<DOMCTL_SIZE>(call, arg)?;
    Err(if head.version == CTL_INTERFACE { Errno::EPERM } else { Errno::EACCES })
}

/// `__HYPERVISOR_arch_1`, the continuation of a shadow domctl.
pub(super) fn paging_domctl_cont(call: &mut Call, arg: u64) -> Reply {
    let head = head::<DOMCTL_SIZE>(call, arg)?;
    if head.version != CTL_INTERFACE || head.cmd != DOMCTL_SHADOW_OP {
        return Err(Errno::EOPNOTSUPP);
    }
    Err(Errno::EPERM)
}

/// `dm_op`: device models drive other domains, never their own.
pub(super) fn dm_op(call: &mut Call, domid: u64, nr_bufs: u64, bufs: u64) -> Reply {
    if nr_bufs > DM_OP_BUFS {
        return Err(Errno::E2BIG);
    }
    let size = if call.is_64bit() { size_of::<[u64; 2]>() } else { size_of::<[u32; 2]>() };
    let mut at = bufs;
    for _ in 0..nr_bufs {
        let mut descriptor = [0u8; 16];
        call.read_bytes(at, &mut descriptor[..size])?;
        at = at.wrapping_add(size as u64);
    }
    let bytes = domid.to_le_bytes();
    remote(call, u16::from_le_bytes([bytes[0], bytes[1]]))?;
    Err(Errno::EPERM)
}

/// The look-up of a domain other than the caller, by number: `DOMID_SELF` is
/// none. `Ok` is the caller's own number.
fn remote(call: &Call, domid: u16) -> Result<(), Errno> {
    if domid == DOMID_SELF { Err(Errno::ESRCH) } else { domid::own(&call.domain.config, domid) }
}

/// `mmuext_op`: page tables of PV guests, which this one is not.
pub(super) fn mmuext_op(call: &mut Call, ops: u64, count: u64, foreign: u64) -> Reply {
    if count == MMU_UPDATE_PREEMPTED && ops == 0 {
        // The end of a continuation, which hands back its argument, an int.
        let bytes = foreign.to_le_bytes();
        return Ok(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).into());
    }
    let domid = u16::try_from(foreign).map_err(|_| Errno::ESRCH)?;
    if domid == DOMID_SELF {
        return Err(Errno::EINVAL);
    }
    Err(remote(call, domid).map_or_else(|error| error, |()| Errno::ESRCH))
}

struct Head {
    cmd: u32,
    version: u32,
}

/// Reads a whole argument structure, of which `cmd` and the interface version
/// are the first two words.
fn head<const SIZE: usize>(call: &mut Call, arg: u64) -> Result<Head, Errno> {
    let mut bytes = [0u8; SIZE];
    call.read_bytes(arg, &mut bytes)?;
    let word =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Ok(Head { cmd: word(0), version: word(4) })
}
