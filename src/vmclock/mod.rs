//! The VMClock device: a guest's TSC to TAI, with error bounds, in one page.
//!
//! VMClock 1.1 (Linux `include/uapi/linux/vmclock-abi.h`). [`VmClock`] turns a
//! guest's line and the host's state into the page, says how far to trust it
//! ([`ClockStatus`]), and when the guest should be notified. Beside it the
//! generation counter, in that page and as the older VMGENID device. [`TaiFeed`]
//! makes the updates of one guest's page out of readings of the host.
//!
//! With the feature `vmm`, [`acpi`] describes both to a guest.

#[cfg(feature = "vmm")]
pub mod acpi;
mod feed;
mod page;
mod status;

pub use feed::{Fed, TaiFeed};
pub use page::{Notice, Seen, TimeType, Update, VmClock, VmClockConfig};
pub use status::{ClockStatus, clock_status};
