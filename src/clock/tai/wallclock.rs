//! Xen's wallclock out of the TAI line and the system-time line.
//!
//! A guest adds its system time to the wallclock's epoch and has UTC. The
//! epoch is UTC less system time at one moment, both by the very lines that the
//! guest reads: what the page's 32-bit multiplier drops from system time is in
//! it, and the sum is UTC.

use super::{TaiLine, TaiOffset};
use crate::clock::{EpochError, SystemTimeLine, WallclockEpoch, wallclock_epoch};

/// The epoch with which a guest reads UTC at `guest_tsc`: TAI by `tai`, less
/// `offset` (TAI − UTC), less system time.
///
/// An unknown offset counts as 0, and the line then carries UTC.
///
/// # Errors
/// [`EpochError`] where the epoch lies before 1970 or beyond 2^64 s.
pub fn epoch_at(
    tai: &TaiLine,
    offset: TaiOffset,
    system: &SystemTimeLine,
    guest_tsc: u64,
) -> Result<WallclockEpoch, EpochError> {
    let utc = tai.at(guest_tsc).saturating_add_sec(-i64::from(offset.seconds()));
    wallclock_epoch(utc.ns_floor(), system.system_time_ns(guest_tsc))
}

/// What a guest with `published` reads too much at `guest_tsc`, ns. Saturates.
#[must_use]
pub fn error_ns(
    published: WallclockEpoch,
    tai: &TaiLine,
    offset: TaiOffset,
    system: &SystemTimeLine,
    guest_tsc: u64,
) -> i128 {
    let utc = tai.at(guest_tsc).saturating_add_sec(-i64::from(offset.seconds()));
    let reads = published.utc_ns(system.system_time_ns(guest_tsc)); // below 2^95
    i128::try_from(reads).unwrap_or(i128::MAX).saturating_sub(utc.ns_floor())
}

/// True when `published` is off by more than `bound_ns` at `guest_tsc`: it is
/// time to write [`epoch_at`].
#[must_use]
pub fn needs_rewrite(
    published: WallclockEpoch,
    tai: &TaiLine,
    offset: TaiOffset,
    system: &SystemTimeLine,
    guest_tsc: u64,
    bound_ns: u64,
) -> bool {
    error_ns(published, tai, offset, system, guest_tsc).unsigned_abs() > u128::from(bound_ns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TscFrequency;
    use crate::clock::tai::{CounterPeriod, Tai, TaiErrors};

    const OFFSET: TaiOffset = TaiOffset::Known(37);

    fn lines(sec: i64) -> (TaiLine, SystemTimeLine) {
        let frequency = TscFrequency::from_khz(2_500_000).unwrap();
        let period = CounterPeriod::of_frequency(frequency);
        let system = SystemTimeLine::new(frequency, 500, 0).unwrap();
        (TaiLine::new(500, Tai::new(sec, 0), period, TaiErrors::default()), system)
    }

    #[test]
    fn utc_comes_out_of_both_lines() {
        let (tai, system) = lines(1_800_000_037);
        let epoch = epoch_at(&tai, OFFSET, &system, 500).unwrap();
        assert_eq!(epoch, WallclockEpoch { sec: 1_800_000_000, nsec: 0 });
        // A day later the page's rounding has made 5029 ns, and the epoch follows.
        let day = 500 + 86_400 * 2_500_000_000;
        assert_eq!(error_ns(epoch, &tai, OFFSET, &system, day), 5_030);
        assert!(needs_rewrite(epoch, &tai, OFFSET, &system, day, 5_029));
        assert!(!needs_rewrite(epoch, &tai, OFFSET, &system, day, 5_030));
        let epoch = epoch_at(&tai, OFFSET, &system, day).unwrap();
        assert_eq!(epoch, WallclockEpoch { sec: 1_799_999_999, nsec: 999_994_970 });
        assert_eq!(error_ns(epoch, &tai, OFFSET, &system, day), 0);
    }

    #[test]
    fn a_leap_second_moves_utc_alone() {
        let (tai, system) = lines(1_800_000_037);
        let epoch = epoch_at(&tai, OFFSET, &system, 500).unwrap();
        assert_eq!(error_ns(epoch, &tai, TaiOffset::Known(38), &system, 500), 1_000_000_000);
        assert_eq!(error_ns(epoch, &tai, TaiOffset::Unknown, &system, 500), -37_000_000_000);
    }

    #[test]
    fn a_host_clock_that_jumps_a_century_is_refused_or_followed() {
        let century = 3_155_760_000;
        for (sec, fits) in [
            (1_800_000_037 + century, true),
            (1_800_000_037 - century, false),
            (i64::MAX, true),
            (i64::MIN, false),
        ] {
            let (tai, system) = lines(sec);
            assert_eq!(epoch_at(&tai, OFFSET, &system, 500).is_ok(), fits, "{sec}");
            let _ = error_ns(WallclockEpoch { sec: u64::MAX, nsec: 0 }, &tai, OFFSET, &system, 499);
        }
    }
}
