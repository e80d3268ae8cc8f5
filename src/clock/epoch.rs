//! UTC at system time 0, as Xen's wallclock states it.

use super::NANOS_PER_SEC;

/// UTC at the moment when system time was 0: Xen's `wc_sec_hi:wc_sec` and
/// `wc_nsec`. A guest adds its system time to get UTC now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WallclockEpoch {
    /// Seconds since 1970-01-01 00:00:00 UTC, leap seconds not counted.
    pub sec: u64,
    /// Nanoseconds, 0 to 999 999 999.
    pub nsec: u32,
}

/// Why an epoch was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EpochError {
    /// UTC less system time lies before 1970, which `wc_sec` cannot say.
    #[error(
        "UTC {utc_ns} ns less system time {system_time_ns} ns lies before 1970; \
         set the host's clock"
    )]
    Before1970 {
        /// UTC now, ns since 1970.
        utc_ns: i128,
        /// System time now, ns.
        system_time_ns: u64,
    },
    /// The seconds need more than 64 bits.
    #[error("UTC {utc_ns} ns needs more than 64 bits of seconds; set the host's clock")]
    TooLate {
        /// UTC now, ns since 1970.
        utc_ns: i128,
    },
}

/// UTC at system time 0, given both clocks at one moment.
///
/// `utc_ns` counts ns since 1970 in UTC (so it steps at a leap second);
/// `system_time_ns` is what the guest's line says at the same moment.
///
/// # Errors
/// [`EpochError`] where the epoch lies before 1970 or beyond 2^64 s.
pub fn wallclock_epoch(utc_ns: i128, system_time_ns: u64) -> Result<WallclockEpoch, EpochError> {
    let before = EpochError::Before1970 { utc_ns, system_time_ns };
    let epoch = utc_ns.checked_sub(i128::from(system_time_ns)).ok_or(before)?;
    let epoch = u128::try_from(epoch).map_err(|_| before)?;
    let second = u128::from(NANOS_PER_SEC);
    let sec = u64::try_from(epoch / second).map_err(|_| EpochError::TooLate { utc_ns })?;
    let nsec = u32::try_from(epoch % second).map_err(|_| EpochError::TooLate { utc_ns })?;
    Ok(WallclockEpoch { sec, nsec })
}

impl WallclockEpoch {
    /// Xen's `wc_sec`: the low 32 bits of the seconds.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the high half goes to wc_sec_hi")]
    pub const fn wc_sec(self) -> u32 {
        self.sec as u32
    }

    /// Xen's `wc_sec_hi`: the high 32 bits of the seconds.
    #[must_use]
    pub const fn wc_sec_hi(self) -> u32 {
        (self.sec >> 32) as u32
    }

    /// UTC in ns since 1970 when the guest's system time is `system_time_ns`.
    #[must_use]
    pub fn utc_ns(self, system_time_ns: u64) -> u128 {
        u128::from(self.sec) * u128::from(NANOS_PER_SEC)
            + u128::from(self.nsec)
            + u128::from(system_time_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries() {
        let second = i128::from(NANOS_PER_SEC);
        let epoch = |sec, nsec| Ok(WallclockEpoch { sec, nsec });
        assert_eq!(wallclock_epoch(0, 0), epoch(0, 0));
        assert_eq!(wallclock_epoch(second, 1), epoch(0, 999_999_999));
        assert_eq!(wallclock_epoch(second, 0), epoch(1, 0));
        assert!(matches!(wallclock_epoch(0, 1), Err(EpochError::Before1970 { .. })));
        assert!(matches!(wallclock_epoch(-1, 0), Err(EpochError::Before1970 { .. })));
        assert!(matches!(wallclock_epoch(i128::MIN, 1), Err(EpochError::Before1970 { .. })));
        assert!(matches!(wallclock_epoch(i128::MAX, 0), Err(EpochError::TooLate { .. })));
        let last = (1i128 << 64) * second - 1;
        assert_eq!(wallclock_epoch(last, 0), epoch(u64::MAX, 999_999_999));
        assert!(wallclock_epoch(last + 1, 0).is_err());
    }

    #[test]
    fn seconds_split_past_2106() {
        let sec = (3u64 << 32) + 5;
        let epoch = WallclockEpoch { sec, nsec: 7 };
        assert_eq!((epoch.wc_sec_hi(), epoch.wc_sec()), (3, 5));
    }

    #[test]
    fn utc_comes_back() {
        for (utc_ns, system_time_ns) in [(1_780_000_000_123_456_789, 42), (u64::MAX.into(), 1)] {
            let epoch = wallclock_epoch(utc_ns, system_time_ns).unwrap();
            assert_eq!(i128::try_from(epoch.utc_ns(system_time_ns)), Ok(utc_ns));
        }
    }
}
