//! Seconds per tick in the form in which VMClock states them.

use crate::clock::TscFrequency;
use crate::clock::scaling::TscScaling;
use crate::clock::wide::mul_div;

/// A counter's period: `frac × 2^-(64 + shift)` s.
///
/// Always with the top bit of `frac` set: 64 significant bits, 2^-64 of the
/// rate in each step, which is 1.7 ns in a thousand years. `shift` is 19 (1 MHz)
/// to 36 (100 GHz).
///
/// ```
/// use kvm_xen::clock::{TscFrequency, tai::CounterPeriod};
/// let period = CounterPeriod::of_frequency(TscFrequency::from_khz(4_000_000)?);
/// // 2^-64 × 2^-31 × frac = 0.25 ns
/// assert_eq!((period.frac(), period.shift()), (9_903_520_314_283_042_199, 31));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CounterPeriod {
    frac: u64,
    shift: u8,
}

/// Why a period was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeriodError {
    /// Not the period of 1 MHz to 100 GHz.
    #[error(
        "a counter period of {frac} × 2^-(64+{shift}) s is not one of 1 MHz to 100 GHz; \
         check the counter's unit"
    )]
    OutOfRange {
        /// In units of 2^-(64 + shift) s.
        frac: u64,
        /// See there.
        shift: u8,
    },
    /// Time or ticks that give no rate.
    #[error("{units} × 2^-64 s in {ticks} ticks is no rate; measure over a longer time")]
    NoRate {
        /// Time in units of 2^-64 s.
        units: i128,
        /// Ticks in that time.
        ticks: u64,
    },
}

/// 10 µs to 10^-11 s, with a factor of 2 around 1 MHz to 100 GHz.
const SHIFTS: core::ops::RangeInclusive<u8> = 18..=37;

impl CounterPeriod {
    /// `frac × 2^-(64 + shift)` s, in any scale that names the period exactly.
    ///
    /// # Errors
    /// [`PeriodError::OutOfRange`].
    pub fn new(frac: u64, shift: u8) -> Result<Self, PeriodError> {
        let refused = PeriodError::OutOfRange { frac, shift };
        let room = frac.checked_ilog2().map(|top| 63 - top).ok_or(refused)?;
        let shift = u8::try_from(u32::from(shift) + room).map_err(|_| refused)?;
        if !SHIFTS.contains(&shift) {
            return Err(refused);
        }
        Ok(Self { frac: frac << room, shift })
    }

    /// The period of an exact frequency, rounded down by less than 2^-63 of it.
    #[must_use]
    pub fn of_frequency(frequency: TscFrequency) -> Self {
        // den < 2^52 needs all of its 192-bit product with 2^(64 + shift).
        SHIFTS
            .rev()
            .find_map(|shift| {
                let one = 1u128 << (64 + u32::from(shift)); // at most 2^101
                let (frac, _) = mul_div(frequency.den(), one, frequency.num())?;
                Some(Self { frac: u64::try_from(frac).ok()?, shift })
            })
            // Not reached: 1 MHz to 100 GHz have a shift. The slowest in its place.
            .unwrap_or(Self { frac: 1 << 63, shift: *SHIFTS.start() })
    }

    /// The period at which `ticks` take `units` of 2^-64 s, rounded down.
    ///
    /// # Errors
    /// [`PeriodError::NoRate`] for a time that is not positive or no ticks,
    /// [`PeriodError::OutOfRange`] for a rate that no TSC has.
    pub fn measured(units: i128, ticks: u64) -> Result<Self, PeriodError> {
        let no_rate = PeriodError::NoRate { units, ticks };
        let time = u128::try_from(units).ok().filter(|time| *time != 0).ok_or(no_rate)?;
        if ticks == 0 {
            return Err(no_rate);
        }
        Self::quotient(time, ticks.into(), 0).ok_or(no_rate)
    }

    /// This period × `numerator / denominator`, rounded down.
    ///
    /// # Errors
    /// [`PeriodError`] where the result is none.
    pub fn times(self, numerator: u64, denominator: u64) -> Result<Self, PeriodError> {
        let refused = PeriodError::OutOfRange { frac: self.frac, shift: self.shift };
        let product = u128::from(self.frac) * u128::from(numerator);
        if denominator == 0 || product == 0 {
            return Err(refused);
        }
        Self::quotient(product, denominator.into(), self.shift).ok_or(refused)
    }

    /// The period of a guest TSC that the hardware makes of this host TSC.
    ///
    /// # Errors
    /// [`PeriodError::OutOfRange`] where the guest's TSC is beyond the range.
    pub fn through(self, scaling: &TscScaling) -> Result<Self, PeriodError> {
        // 2^frac_bits <= 2^63.
        self.times(1 << scaling.frac_bits(), scaling.ratio())
    }

    /// `⌊time / ticks⌋` with 64 significant bits, where `time` counts units of
    /// 2^-(64 + shift) s.
    fn quotient(time: u128, ticks: u128, shift: u8) -> Option<Self> {
        // Bits to the left until the quotient has exactly 64: one of two.
        let bits = |value: u128| i32::try_from(u128::BITS - value.leading_zeros()).unwrap_or(0);
        let guess = 64 + bits(ticks) - bits(time);
        [guess, guess - 1].into_iter().find_map(|left| {
            // 64 + bits(ticks) bits, at most 128: nothing is lost to the left.
            let frac = match u32::try_from(left) {
                Ok(left) => (time << left) / ticks,
                Err(_) => (time >> left.unsigned_abs()) / ticks,
            };
            let frac = u64::try_from(frac).ok().filter(|frac| frac >> 63 == 1)?;
            let shift = u8::try_from(i32::from(shift) + left).ok()?;
            SHIFTS.contains(&shift).then_some(Self { frac, shift })
        })
    }

    /// In units of 2^-(64 + shift) s: VMClock's `counter_period_frac_sec`.
    #[must_use]
    pub const fn frac(self) -> u64 {
        self.frac
    }

    /// VMClock's `counter_period_shift`.
    #[must_use]
    pub const fn shift(self) -> u8 {
        self.shift
    }

    /// Time of `ticks` in units of 2^-64 s, rounded down. Below 2^110.
    #[must_use]
    pub fn units_in(self, ticks: u64) -> u128 {
        (u128::from(ticks) * u128::from(self.frac)) >> self.shift
    }

    /// The fewest ticks that take `units` of 2^-64 s or more; saturates.
    #[must_use]
    pub fn ticks_to_reach(self, units: u128) -> u64 {
        if units.leading_zeros() < u32::from(self.shift) {
            return u64::MAX;
        }
        let scaled = units << self.shift;
        u64::try_from(scaled.div_ceil(u128::from(self.frac))).unwrap_or(u64::MAX)
    }

    /// A relative error (10^-18) of this rate in the unit of [`frac`](Self::frac),
    /// rounded up; saturates.
    #[must_use]
    pub fn rate_units(self, attoseconds_per_second: u64) -> u64 {
        let product = u128::from(self.frac) * u128::from(attoseconds_per_second);
        u64::try_from(product.div_ceil(ATTOS_PER_SEC.into())).unwrap_or(u64::MAX)
    }

    /// `|self − other|` relative to `other` in 10^-18, rounded up; saturates.
    #[must_use]
    pub fn distance_attos(self, other: Self) -> u64 {
        let shift = self.shift.max(other.shift);
        let scaled = |period: Self| {
            // A difference of 64 or more in the shift is none that two clocks have.
            u128::from(period.frac) << u32::from(shift - period.shift).min(63)
        };
        let (a, b) = (scaled(self), scaled(other));
        let Ok(difference) = u64::try_from(a.abs_diff(b)) else { return u64::MAX };
        mul_div(difference, ATTOS_PER_SEC.into(), b)
            .and_then(|(floor, rest)| u64::try_from(floor).ok()?.checked_add(u64::from(rest != 0)))
            .unwrap_or(u64::MAX)
    }
}

/// Attoseconds in a second: the unit of relative errors.
pub(crate) const ATTOS_PER_SEC: u64 = 1_000_000_000_000_000_000;

#[cfg(test)]
mod tests;
