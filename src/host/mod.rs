//! Reads this host's clocks. The arithmetic is in [`clock`](crate::clock).
//!
//! - [`choose()`]: the best [`PairSource`] of this host, and why no better one.
//! - [`KvmPairs`], [`PtpPairs`], [`HostVmClock`], [`Bracketed`]: the sources.
//! - [`StepWatch`], [`OffsetWatch`]: the host's clock was set. [`SuspendWatch`]: the
//!   host slept.
//! - [`simulated`]: a host that follows a script.

mod choose;
mod host_vmclock;
mod kernel_clock;
mod leap_table;
mod offset_watch;
mod pair;
mod ptp;
pub mod simulated;
mod sources;
mod step_watch;
mod suspend;
mod time_source;
mod tsc;
mod wallclock;

pub use choose::{Candidates, Chosen, choose};
pub use host_vmclock::{HostVmClock, VMCLOCK_DEVICE};
pub use kernel_clock::{KernelClock, read_kernel_clock};
pub use leap_table::{LEAP_TABLE, TableOffset, table_offset};
pub use offset_watch::OffsetWatch;
pub use pair::{PairError, PairSource, SourceKind, WithOffset};
pub use ptp::PtpPairs;
pub use sources::{AtomicPair, Bracketed, KvmPairs};
pub use step_watch::StepWatch;
pub use suspend::SuspendWatch;
pub use time_source::{NoTimeSource, TimeSource};
pub use tsc::host_tsc;
pub use wallclock::{RealtimePair, read_realtime};
