//! Pairs of host TSC and CLOCK_REALTIME.

#![expect(unsafe_code, reason = "clock_gettime takes a raw pointer")]

use super::host_tsc;

/// One reading of CLOCK_REALTIME between two readings of the TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealtimePair {
    /// Host TSC half way between the two readings.
    pub host_tsc: u64,
    /// UTC in nanoseconds since 1970, without leap seconds, as Linux counts it.
    pub utc_ns: i128,
    /// Half of the bracket, in TSC ticks: how far `host_tsc` may be off.
    pub error_tsc: u64,
}

/// Reads the pair with the narrowest bracket of several.
pub fn read_realtime() -> RealtimePair {
    // Ten are enough to find one that no interrupt fell into.
    (0..10)
        .map(|_| {
            let before = host_tsc();
            let utc_ns = realtime_ns();
            let width = host_tsc().wrapping_sub(before);
            let error_tsc = width.div_ceil(2);
            RealtimePair { host_tsc: before.wrapping_add(width / 2), utc_ns, error_tsc }
        })
        .min_by_key(|pair| pair.error_tsc)
        .unwrap_or(RealtimePair { host_tsc: 0, utc_ns: 0, error_tsc: u64::MAX })
}

fn realtime_ns() -> i128 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec that the call writes, and lives across it.
    let ret = unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now) };
    debug_assert_eq!(ret, 0, "CLOCK_REALTIME always exists");
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_advance_together() {
        let first = read_realtime();
        let second = read_realtime();
        assert!(second.host_tsc > first.host_tsc);
        assert!(second.utc_ns >= first.utc_ns);
        assert!(first.error_tsc < u64::MAX);
    }
}
