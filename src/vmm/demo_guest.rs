//! The guest that is built in: `guests/src/bin/clock.rs`, which `build.rs`
//! compiled beside this crate.

/// A bare-metal PVH ELF that reads every clock on all vCPUs and reports on the
/// serial port. Takes `seconds=N` on its command line. Empty where the crate was
/// built without the sources of the guests.
pub static CLOCK: &[u8] = include_bytes!(concat!(env!("KVM_XEN_GUESTS"), "/clock"));
