//! The TAI line: a counter of 64 bits to International Atomic Time.
//!
//! TAI counts SI seconds from 1970-01-01 00:00:00 TAI and knows no leap
//! seconds, so that the line is continuous where UTC repeats a second.
//!
//! - [`Tai`]: a moment, in units of 2^-64 s.
//! - [`CounterPeriod`]: seconds per tick, as VMClock states them.
//! - [`TaiLine`]: the line, and its errors, each kind apart.
//! - [`TaiEstimator`]: from readings of a host to its line.
//! - [`LeapTracker`], [`smear`]: leap seconds as the host tells of them.
//! - [`wallclock`]: Xen's wallclock out of this line and the system-time line.

mod estimate;
mod instant;
pub(crate) mod leap;
mod line;
mod period;
mod reading;
pub mod smear;
pub mod wallclock;

pub use estimate::{EstimatorConfig, Observation, TaiEstimator};
pub use instant::Tai;
pub use leap::{LeapIndicator, LeapKind, LeapSecond, LeapTracker};
pub use line::{ScheduledLine, TaiErrors, TaiLine, TaiLineError};
pub use period::{CounterPeriod, PeriodError};
pub use reading::{HostLeap, HostReading, HostSync, KnownRate, Steering, TaiOffset};
