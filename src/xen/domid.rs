//! Which domain a domain number means, and what this guest may do to it.

use xen_abi::errno::Errno;
use xen_abi::xen::DOMID_SELF;

use super::DomainConfig;

/// The control domain. It exists on every Xen, so a guest that names it learns
/// that it may not touch it, not that it is absent.
const DOMAIN_0: u16 = 0;

/// Whether `domid` is the caller itself, by name or by number.
///
/// # Errors
/// `EPERM` for the control domain, `ESRCH` for all others.
pub(super) fn own(config: &DomainConfig, domid: u16) -> Result<(), Errno> {
    if domid == DOMID_SELF || domid == config.domain_id {
        return Ok(());
    }
    Err(if domid == DOMAIN_0 { Errno::EPERM } else { Errno::ESRCH })
}
