//! The arithmetic of time: pure functions from readings to lines, no I/O.
//!
//! Everything is an integer. A frequency is an exact rational, a product is
//! held in 128 bits, and where the guest's own arithmetic rounds, the rounding
//! is reproduced bit for bit and its error is stated beside it.
//!
//! - [`TscFrequency`]: how fast a TSC counts, as an exact rational of Hz.
//! - [`SystemTimeLine`]: guest TSC to Xen system time, fixed at creation.
//! - [`WallclockEpoch`]: UTC at system time 0, as Xen's wallclock states it.
//! - [`scaling`]: what the hardware makes of the host TSC for a guest.
//! - [`kvm_models`]: KVM's three clocks, and how far each is from the line.
//! - [`tai`]: guest TSC to TAI, with error bounds, from readings of the host.
//! - [`lab`]: KVM's clocks and ours over days and years.

mod epoch;
mod error_bounds;
mod frequency;
pub mod kvm_models;
pub mod lab;
mod line;
mod pvclock;
pub mod scaling;
pub mod tai;
mod wide;

pub use epoch::{EpochError, WallclockEpoch, wallclock_epoch};
pub use error_bounds::RateError;
pub use frequency::{FrequencyError, TscFrequency};
pub use line::{LineError, SystemTimeLine};
pub use pvclock::{linux_tsc_khz, pvclock_scale_delta};

/// Nanoseconds in a second.
pub const NANOS_PER_SEC: u64 = 1_000_000_000;
