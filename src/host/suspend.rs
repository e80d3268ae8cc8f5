//! Notices that the host slept: CLOCK_BOOTTIME runs away from CLOCK_MONOTONIC.

#![expect(unsafe_code, reason = "clock_gettime takes a raw pointer")]

use std::time::Duration;

/// What two readings of one moment may differ by, beside the bracket's width.
const SLACK_NS: i128 = 1_000_000;

/// Remembers how long the host had slept when it was last asked.
#[derive(Debug)]
pub struct SuspendWatch {
    slept_ns: i128,
}

impl SuspendWatch {
    /// Watches from now on.
    #[must_use]
    pub fn new() -> Self {
        Self { slept_ns: slept().0 }
    }

    /// How long the host slept since the last call, if it did for more than a
    /// millisecond.
    pub fn slept(&mut self) -> Option<Duration> {
        self.took(slept())
    }

    fn took(&mut self, (slept_ns, width_ns): (i128, i128)) -> Option<Duration> {
        let more_ns = slept_ns - self.slept_ns;
        if more_ns <= SLACK_NS + width_ns {
            return None;
        }
        self.slept_ns = slept_ns;
        Some(Duration::from_nanos(u64::try_from(more_ns).unwrap_or(u64::MAX)))
    }
}

impl Default for SuspendWatch {
    fn default() -> Self {
        Self::new()
    }
}

/// All the host's sleep since it booted, and how far that may be off, ns: a
/// narrow bracket, or the narrowest of a few.
fn slept() -> (i128, i128) {
    let mut best = bracket();
    for _ in 0..10 {
        if best.1 <= SLACK_NS / 20 {
            break;
        }
        best = std::cmp::min_by_key(best, bracket(), |(_, width_ns)| *width_ns);
    }
    best
}

fn bracket() -> (i128, i128) {
    let before = clock_ns(libc::CLOCK_MONOTONIC);
    let boottime = clock_ns(libc::CLOCK_BOOTTIME);
    let after = clock_ns(libc::CLOCK_MONOTONIC);
    (boottime - after, after - before)
}

pub(super) fn clock_ns(clock: libc::clockid_t) -> i128 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec that the call writes, and lives across it.
    let ret = unsafe { libc::clock_gettime(clock, &raw mut now) };
    debug_assert_eq!(ret, 0, "these clocks always exist");
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_is_awake_did_not_sleep() {
        let mut watch = SuspendWatch::new();
        assert_eq!(watch.slept(), None);
    }

    #[test]
    fn each_sleep_is_told_once() {
        let mut watch = SuspendWatch { slept_ns: 5 };
        assert_eq!(watch.took((1_000_005, 0)), None);
        assert_eq!(watch.took((2_000_006, 1_000_001)), None, "a slow reading is no sleep");
        assert_eq!(watch.took((3_000_000_005, 0)), Some(Duration::from_secs(3)));
        assert_eq!(watch.took((3_000_000_009, 0)), None);
    }
}
