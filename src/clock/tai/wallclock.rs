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

/// Whole ticks of one second, over which the drift of an epoch is looked at.
pub(crate) fn second_ticks(system: &SystemTimeLine) -> u64 {
    let frequency = system.frequency();
    u64::try_from(frequency.num() / u128::from(frequency.den())).unwrap_or(u64::MAX)
}

/// How much more a guest with a fixed epoch reads too much after a second, ns:
/// the rate of the system-time line less that of the TAI line.
fn drift_ns_per_sec(tai: &TaiLine, system: &SystemTimeLine, guest_tsc: u64) -> i128 {
    let error = |tsc| error_ns(WallclockEpoch::default(), tai, TaiOffset::Unknown, system, tsc);
    error(guest_tsc.wrapping_add(second_ticks(system))).saturating_sub(error(guest_tsc))
}

/// Ticks from `guest_tsc` until `published` is off by more than `bound_ns`, on
/// these lines; 0 where it is already, `u64::MAX` where the lines run alike.
#[must_use]
pub fn ticks_to_rewrite(
    published: WallclockEpoch,
    tai: &TaiLine,
    offset: TaiOffset,
    system: &SystemTimeLine,
    guest_tsc: u64,
    bound_ns: u64,
) -> u64 {
    let error = error_ns(published, tai, offset, system, guest_tsc);
    let drift = drift_ns_per_sec(tai, system, guest_tsc);
    if error.unsigned_abs() > u128::from(bound_ns) {
        return 0;
    }
    let room = i128::from(bound_ns) - if drift < 0 { -error } else { error };
    ticks_of(room.unsigned_abs(), drift, system)
}

/// How many ticks ahead of now [`epoch_at`] is to be taken, so that the epoch is
/// off by half of `bound_ns` one way now, and holds twice as long. A second at
/// the most.
#[must_use]
pub fn lead_ticks(tai: &TaiLine, system: &SystemTimeLine, guest_tsc: u64, bound_ns: u64) -> u64 {
    let drift = drift_ns_per_sec(tai, system, guest_tsc);
    ticks_of(u128::from(bound_ns / 2), drift, system).min(second_ticks(system))
}

/// Ticks in which a drift makes `room_ns`.
fn ticks_of(room_ns: u128, drift_ns_per_sec: i128, system: &SystemTimeLine) -> u64 {
    // A bound has 64 bits, a second's ticks at most 37.
    (room_ns * u128::from(second_ticks(system)))
        .checked_div(drift_ns_per_sec.unsigned_abs())
        .and_then(|ticks| u64::try_from(ticks).ok())
        .unwrap_or(u64::MAX)
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

    #[test]
    fn a_slewed_host_needs_a_rewrite_every_other_bound() {
        let (tai, system) = lines(1_800_000_037);
        // UTC runs 500 ppm faster than system time: 1 000 ns in 2 ms.
        let period = tai.period().times(1_000_500, 1_000_000).unwrap();
        let fast = TaiLine::new(tai.base(), tai.time(), period, TaiErrors::default());
        let lead = lead_ticks(&fast, &system, 500, 1_000);
        assert!((2_499_000..=2_501_000).contains(&lead), "1 ms: {lead}");
        let epoch = epoch_at(&fast, OFFSET, &system, 500 + lead).unwrap();
        assert!((499..=501).contains(&error_ns(epoch, &fast, OFFSET, &system, 500)));
        let due = ticks_to_rewrite(epoch, &fast, OFFSET, &system, 500, 1_000);
        assert!((7_490_000..=7_510_000).contains(&due), "3 ms: {due}");
        assert!(!needs_rewrite(epoch, &fast, OFFSET, &system, 500 + due - 10_000, 1_000));
        assert!(needs_rewrite(epoch, &fast, OFFSET, &system, 500 + due + 10_000, 1_000));
        // 58 ps a second at 2.5 GHz, below a ns: never, and a second ahead.
        assert!(lead_ticks(&tai, &system, 500, 1_000) <= 2_500_000_000);
        assert_eq!(ticks_to_rewrite(epoch, &tai, TaiOffset::Unknown, &system, 500, 1_000), 0);
    }
}
