#![no_std]
#![forbid(unsafe_code)]
//! Reads the clocks that a hypervisor publishes, from inside the guest.
//!
//! Two pages: the pvclock page (`vcpu_time_info`) of Xen and KVM gives system
//! time, VMClock gives real time with its error. Both are lines from a counter
//! (the TSC) to time, valid from [`start`](vmclock::Line::start) for
//! [`max_delta`](vmclock::Line::max_delta) ticks: beyond, the arithmetic would
//! overflow, and this crate refuses instead of returning a wrapped time.
//!
//! - [`pvclock::read`] and [`vmclock::read`] take one consistent reading or say
//!   why there is none. They retry a bounded number of times and never spin on
//!   a host that died in the middle of an update.
//! - [`RealTime`] adds what most users want around VMClock: the last good line
//!   is kept in a two-copy [`latch`], so that a reader in an interrupt or NMI
//!   handler is served too, a busy page is bridged with the error bound growing
//!   by the line's own rate, and each disruption is told once.
//!
//! The caller maps the page and hands it over as words: nothing here is unsafe.
//! An `AtomicU32` array over the mapped page serves ([`Word`]); so does a model
//! checker's atomic, with which the protocols are checked against their writer.
//!
//! ```
//! use core::sync::atomic::AtomicU32;
//! use guest_clock::{Counter, pvclock};
//!
//! struct Tsc;
//! impl Counter for Tsc {
//!     fn read(&self) -> u64 {
//!         3_000_000_000 // a guest executes LFENCE and RDTSC
//!     }
//! }
//!
//! // version 2, tsc_timestamp 0, system_time 0, mul 2^31 at shift 0: 2 GHz.
//! let page = [2, 0, 0, 0, 0, 0, 1 << 31, 0].map(AtomicU32::new);
//! let reading = pvclock::read(&page, &Tsc, 100).expect("a quiet page");
//! assert_eq!(reading.system_time_ns, 1_500_000_000);
//! ```

#[cfg(test)]
extern crate std;

pub mod handover;
pub mod latch;
pub mod pvclock;
pub mod real_time;
pub mod sequence;
pub mod vmclock;

pub use real_time::{Disruption, Now, RealTime, Source};
pub use sequence::{Counter, StoreWord, Word};

/// Why a page gave no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The host was updating the page at every try.
    Busy {
        /// Tries made.
        tries: u32,
    },
    /// The counter lies before the line's start: it was read before the page
    /// was updated, or the update holds for the future.
    Before {
        /// First counter value that the line holds for.
        start: u64,
        /// The counter's value.
        counter: u64,
    },
    /// So far after the start that the line's arithmetic would overflow.
    Beyond {
        /// First counter value that the line holds for.
        start: u64,
        /// The line holds below `start + max_delta`.
        max_delta: u64,
        /// The counter's value.
        counter: u64,
    },
    /// The page does not begin with "VCLK": it is no VMClock page.
    Magic(u32),
    /// A VMClock of a version that this crate does not know.
    Version(u16),
    /// A VMClock page shorter than its own structure, in bytes.
    Size(u32),
    /// The VMClock page names no TSC (`VMCLOCK_COUNTER_*`): disruptions are
    /// told, time is not.
    NoCounter(u8),
    /// A time type that is ambiguous or unknown (`VMCLOCK_TIME_*`).
    TimeType(u8),
    /// The host says that its clock is not to be relied on
    /// (`VMCLOCK_STATUS_*`).
    Status(u8),
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Busy { tries } => {
                write!(f, "the page was being updated at each of {tries} reads")
            }
            Self::Before { start, counter } => {
                write!(f, "counter {counter:#x} is before the line's start {start:#x}")
            }
            Self::Beyond { start, max_delta, counter } => write!(
                f,
                "counter {counter:#x} is {max_delta:#x} ticks or more after the line's start {start:#x}"
            ),
            Self::Magic(magic) => write!(f, "magic {magic:#x}: not a VMClock page"),
            Self::Version(version) => write!(f, "VMClock version {version} is not known"),
            Self::Size(size) => write!(f, "a VMClock of {size} bytes is too short"),
            Self::NoCounter(id) => write!(f, "the VMClock page maps no TSC (counter id {id:#x})"),
            Self::TimeType(kind) => write!(f, "VMClock time type {kind} is not usable"),
            Self::Status(status) => write!(f, "the host's clock is not usable (status {status})"),
        }
    }
}

impl core::error::Error for Refusal {}

/// The range check that both pages share: ticks since `start`.
fn ticks_since(start: u64, max_delta: u64, counter: u64) -> Result<u64, Refusal> {
    let ticks = counter.checked_sub(start).ok_or(Refusal::Before { start, counter })?;
    if ticks < max_delta { Ok(ticks) } else { Err(Refusal::Beyond { start, max_delta, counter }) }
}
