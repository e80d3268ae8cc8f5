//! How long the clocks are watched: a time, or until somebody has seen enough.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The watches look this often whether it is over, and they end this much apart.
const SLICE: Duration = Duration::from_millis(50);

/// A term that watches share.
#[derive(Debug)]
pub struct Term {
    /// The longest, of CLOCK_MONOTONIC.
    pub limit: Duration,
    enough: AtomicBool,
}

impl Term {
    /// So long, unless it is ended before.
    pub const fn new(limit: Duration) -> Self {
        Self { limit, enough: AtomicBool::new(false) }
    }

    /// Ends it.
    #[cfg(feature = "vmclock")]
    pub fn end(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }

    /// Whether it is over, for who began at `start`.
    pub fn is_over(&self, start: Instant) -> bool {
        self.enough.load(Ordering::Relaxed) || start.elapsed() >= self.limit
    }

    /// Sleeps for `time`, or until it is ended.
    pub fn sleep(&self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time && !self.enough.load(Ordering::Relaxed) {
            thread::sleep(SLICE.min(time));
        }
    }
}
