//! The system-time line: guest TSC to Xen system time, fixed at creation.
//!
//! The line has two readings of one guest TSC. The *published* one is what a
//! guest computes from `tsc_to_system_mul` and `tsc_shift`; the *exact* one
//! follows the rational frequency. `error_bounds` says how far apart they are.

use super::pvclock::{linux_tsc_khz, nearest_mul_shift};
use super::{TscFrequency, pvclock_scale_delta};

/// Guest TSC to Xen system time, for the life of a guest.
///
/// Every field is fixed at creation: the same guest TSC gives the same
/// nanosecond on every vCPU and after every restore. System time counts ns
/// since the guest's start; it stands still where the guest TSC stands still.
///
/// # Range
/// Elapsed ticks are taken modulo 2^64, as the guest takes them: a TSC that
/// wrapped past 0 still works, and a TSC before the base reads as one nearly
/// 2^64 ticks after it. The arithmetic holds for [`max_elapsed_ticks`] from
/// the base; beyond, [`system_time_ns`] goes on to give what a guest would
/// compute (wrapped), and the checked methods refuse.
///
/// ```
/// use kvm_xen::clock::{SystemTimeLine, TscFrequency};
/// let line = SystemTimeLine::new(TscFrequency::from_khz(2_500_000)?, 1_000, 0)?;
/// assert_eq!((line.mul(), line.shift()), (3_435_973_837, -1));
/// let day = 1_000 + 86_400 * 2_500_000_000;
/// assert_eq!(line.exact_system_time_ns(day), 86_400_000_000_000);
/// assert_eq!(line.rounding_error_ns(day), 5_029); // 58 parts in 10^12
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// [`max_elapsed_ticks`]: Self::max_elapsed_ticks
/// [`system_time_ns`]: Self::system_time_ns
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SystemTimeLine {
    frequency: TscFrequency,
    base_tsc: u64,
    base_system_time_ns: u64,
    mul: u32,
    shift: i8,
}

/// Why a line or one of its answers was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// A published pair that no guest could use.
    #[error(
        "published mul {mul} and shift {shift} make no clock (mul above 0, shift from -31 to 31)"
    )]
    NoClock {
        /// `tsc_to_system_mul`.
        mul: u32,
        /// `tsc_shift`.
        shift: i8,
    },
    /// A published pair at less than half or more than twice the exact rate.
    #[error(
        "published mul {mul} and shift {shift} are more than a factor of 2 from {frequency} Hz; \
         check that the guest's TSC frequency was set before the page was read"
    )]
    RateTooFar {
        /// `tsc_to_system_mul`.
        mul: u32,
        /// `tsc_shift`.
        shift: i8,
        /// The frequency that it should fit.
        frequency: TscFrequency,
    },
    /// No guest TSC reaches that system time before the arithmetic overflows.
    #[error(
        "system time {system_time_ns} ns is beyond the clock's last, {last_ns} ns; \
         treat the deadline as never"
    )]
    Beyond {
        /// The system time asked for.
        system_time_ns: u64,
        /// The last system time that the line reaches.
        last_ns: u64,
    },
}

impl SystemTimeLine {
    /// The line through (`base_tsc`, `base_system_time_ns`) with the published
    /// rate nearest to `frequency`: at most 2^-32 (0.23 ppb) from it.
    ///
    /// # Errors
    /// None for any frequency that [`TscFrequency`] admits; the same checks
    /// run as for [`with_published`](Self::with_published).
    pub fn new(
        frequency: TscFrequency,
        base_tsc: u64,
        base_system_time_ns: u64,
    ) -> Result<Self, LineError> {
        let (mul, shift) = nearest_mul_shift(frequency);
        Self::with_published(frequency, base_tsc, base_system_time_ns, mul, shift)
    }

    /// As [`new`](Self::new), but rounds `mul` down where that alone lets
    /// Linux read the TSC frequency back in kHz.
    ///
    /// Linux takes `⌊10^6 × 2^32 / mul⌋ << -shift` for the exact TSC frequency
    /// of its own TSC clocksource. At 3 GHz the nearest `mul` is rounded up
    /// and Linux reads 2 999 998 kHz (667 ppb off); one unit less costs the
    /// page 0.12 ppb more and Linux reads 3 000 000 kHz. At most
    /// 1.5 × 2^-31 (0.70 ppb) from `frequency`.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn new_keeping_linux_khz(
        frequency: TscFrequency,
        base_tsc: u64,
        base_system_time_ns: u64,
    ) -> Result<Self, LineError> {
        let nearest = nearest_mul_shift(frequency);
        // One unit of all 32 bits, also where an even multiplier was halved.
        let halvings = i8::try_from(nearest.0.leading_zeros()).unwrap_or(0);
        let lower = ((nearest.0 << halvings).saturating_sub(1), nearest.1 - halvings);
        let distance = |(mul, shift)| {
            linux_tsc_khz(mul, shift).map_or(u64::MAX, |khz| khz.abs_diff(frequency.khz_floor()))
        };
        let (mul, shift) = if distance(lower) < distance(nearest) { lower } else { nearest };
        Self::with_published(frequency, base_tsc, base_system_time_ns, mul, shift)
    }

    /// The line that somebody else published, KVM for instance, held against
    /// the exact `frequency`.
    ///
    /// # Errors
    /// [`LineError::NoClock`] for `mul` 0 or a shift beyond ±31,
    /// [`LineError::RateTooFar`] when the rate is not within a factor of 2.
    pub fn with_published(
        frequency: TscFrequency,
        base_tsc: u64,
        base_system_time_ns: u64,
        mul: u32,
        shift: i8,
    ) -> Result<Self, LineError> {
        if mul == 0 || !(-31..=31).contains(&shift) {
            return Err(LineError::NoClock { mul, shift });
        }
        let line = Self { frequency, base_tsc, base_system_time_ns, mul, shift };
        match line.rate_terms() {
            Some((published, exact)) if published.abs_diff(exact) <= published.min(exact) => {
                Ok(line)
            }
            _ => Err(LineError::RateTooFar { mul, shift, frequency }),
        }
    }

    /// The exact frequency of the guest TSC.
    #[must_use]
    pub const fn frequency(&self) -> TscFrequency {
        self.frequency
    }

    /// Guest TSC at the base: the page's `tsc_timestamp`.
    #[must_use]
    pub const fn base_tsc(&self) -> u64 {
        self.base_tsc
    }

    /// System time at the base in ns: the page's `system_time`.
    #[must_use]
    pub const fn base_system_time_ns(&self) -> u64 {
        self.base_system_time_ns
    }

    /// The page's `tsc_to_system_mul`: ns per shifted tick in units of 2^-32.
    #[must_use]
    pub const fn mul(&self) -> u32 {
        self.mul
    }

    /// The page's `tsc_shift`: left where positive, right where negative.
    #[must_use]
    pub const fn shift(&self) -> i8 {
        self.shift
    }

    /// Guest ticks since the base, modulo 2^64.
    #[must_use]
    pub const fn elapsed_ticks(&self, guest_tsc: u64) -> u64 {
        // Wrapping as in the guest: a TSC is a counter modulo 2^64.
        guest_tsc.wrapping_sub(self.base_tsc)
    }

    /// System time in ns that a guest computes from the published fields.
    ///
    /// Bit for bit Linux's `__pvclock_read_cycles`, overflow included: both
    /// the elapsed ticks and the sum wrap modulo 2^64.
    #[must_use]
    pub fn system_time_ns(&self, guest_tsc: u64) -> u64 {
        let elapsed_ns = pvclock_scale_delta(self.elapsed_ticks(guest_tsc), self.mul, self.shift);
        self.base_system_time_ns.wrapping_add(elapsed_ns)
    }

    /// As [`system_time_ns`](Self::system_time_ns), `None` where the guest's
    /// arithmetic overflows (and for most TSC values before the base).
    #[must_use]
    pub fn checked_system_time_ns(&self, guest_tsc: u64) -> Option<u64> {
        let inside = self.elapsed_ticks(guest_tsc) <= self.max_elapsed_ticks();
        inside.then(|| self.system_time_ns(guest_tsc))
    }

    /// System time in ns by the exact frequency, rounded down. Never
    /// overflows: below 2^75 for any TSC.
    #[must_use]
    pub fn exact_system_time_ns(&self, guest_tsc: u64) -> u128 {
        let elapsed_ns = self.frequency.nanos_floor(self.elapsed_ticks(guest_tsc));
        u128::from(self.base_system_time_ns) + elapsed_ns
    }

    /// The smallest guest TSC, counted from the base, at which a guest reads
    /// `system_time_ns` or later: when a timer for that deadline is due.
    ///
    /// A deadline at or before the base gives the base. The result wraps past
    /// 2^64 where the TSC itself does.
    ///
    /// # Errors
    /// [`LineError::Beyond`] when the guest's arithmetic overflows first.
    pub fn guest_tsc_at(&self, system_time_ns: u64) -> Result<u64, LineError> {
        let elapsed_ns = u128::from(system_time_ns.saturating_sub(self.base_system_time_ns));
        match self.ticks_to_reach(elapsed_ns) {
            Some(ticks) if ticks <= self.max_elapsed_ticks() => {
                Ok(self.base_tsc.wrapping_add(ticks))
            }
            _ => Err(LineError::Beyond {
                system_time_ns,
                last_ns: self.base_system_time_ns.saturating_add(self.validity_ns()),
            }),
        }
    }

    /// The most ticks after the base for which nothing in the guest's
    /// arithmetic overflows. `u64::MAX` for every TSC above 1 GHz that starts
    /// near system time 0: 73 years at 8 GHz, where the TSC itself wraps.
    #[must_use]
    pub fn max_elapsed_ticks(&self) -> u64 {
        let limit = u64::MAX >> self.shift.max(0);
        // The sum overflows from 2^64 ns on.
        let room_ns = (1u128 << 64) - u128::from(self.base_system_time_ns);
        match self.ticks_to_reach(room_ns) {
            Some(overflowing) => limit.min(overflowing - 1), // room is at least 1 ns: not 0
            None => limit,
        }
    }

    /// How long after the base the guest's arithmetic holds, in ns.
    #[must_use]
    pub fn validity_ns(&self) -> u64 {
        pvclock_scale_delta(self.max_elapsed_ticks(), self.mul, self.shift)
    }

    /// The fewest ticks that the published arithmetic turns into `elapsed_ns`
    /// (at most 2^64) or more; `None` when no 64-bit count does.
    fn ticks_to_reach(&self, elapsed_ns: u128) -> Option<u64> {
        // ⌊shifted × mul / 2^32⌋ >= ns  ⟺  shifted >= ⌈ns × 2^32 / mul⌉
        let shifted = (elapsed_ns << 32).div_ceil(u128::from(self.mul)); // <= 2^96
        let distance = u32::from(self.shift.unsigned_abs()); // <= 31
        let ticks = if self.shift < 0 {
            shifted << distance // ⌊t / 2^k⌋ >= x  ⟺  t >= x × 2^k
        } else {
            shifted.div_ceil(1 << distance)
        };
        u64::try_from(ticks).ok().filter(|ticks| *ticks <= u64::MAX >> self.shift.max(0))
    }

    /// Published and exact rate over a common denominator, as integers:
    /// `mul × 2^shift / 2^32` against `10^9 × den / num` ns per tick. `None`
    /// when 128 bits do not hold them, which the constructor never lets be.
    pub(super) fn rate_terms(&self) -> Option<(u128, u128)> {
        let left = u32::from(self.shift.max(0).unsigned_abs());
        let right = u32::from(self.shift.min(0).unsigned_abs());
        let published = shl(u128::from(self.mul) * self.frequency.num(), left)?; // < 2^121 << left
        let nanos = u128::from(super::NANOS_PER_SEC);
        let exact = shl(nanos * u128::from(self.frequency.den()), 32 + right)?;
        Some((published, exact))
    }
}

/// `value << distance`, `None` when a bit would be lost.
pub(super) fn shl(value: u128, distance: u32) -> Option<u128> {
    (value.leading_zeros() >= distance).then(|| value.checked_shl(distance).unwrap_or(0))
}

#[cfg(test)]
mod tests;
