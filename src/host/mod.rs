//! Reads this host's clocks. Nothing here computes; the arithmetic is in
//! [`clock`](crate::clock).

mod tsc;
mod wallclock;

pub use tsc::host_tsc;
pub use wallclock::{RealtimePair, read_realtime};
