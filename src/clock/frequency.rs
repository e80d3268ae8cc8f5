//! How fast a TSC counts, as an exact rational of Hz.

use core::fmt;
use core::num::NonZeroU64;

use super::wide::gcd;

/// The slowest frequency taken, 1 MHz.
const MIN_HZ: u128 = 1_000_000;
/// The fastest frequency taken, 100 GHz.
const MAX_HZ: u128 = 100_000_000_000;
/// The largest reduced denominator. Leaves room for a host frequency of
/// sixteenths of a Hz under Intel's 2^48 scaling, and keeps every product of
/// the clock below 128 bits: the numerator stays below 2^52 × 10^11 < 2^89.
const MAX_DENOMINATOR: u128 = 1 << 52;

/// Exact frequency of a TSC: `num / den` Hz, reduced, from 1 MHz to 100 GHz.
///
/// No constructor rounds. A hardware-scaled guest runs at
/// `host × ratio / 2^frac` Hz, which is hardly ever whole: the numerator is
/// wider than 64 bits for that reason.
///
/// ```
/// use kvm_xen::clock::TscFrequency;
/// let host = TscFrequency::from_khz(3_000_000)?;
/// // Intel's ratio for a 2.5 GHz guest, cut to 48 fractional bits.
/// let guest = host.scaled((1u64 << 48) / 6 * 5, 48)?;
/// assert_eq!(guest.khz_floor(), 2_499_999);
/// # Ok::<(), kvm_xen::clock::FrequencyError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TscFrequency {
    num: u128,
    den: NonZeroU64,
}

/// Why a frequency was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrequencyError {
    /// Not from 1 MHz to 100 GHz.
    #[error("TSC frequency {num}/{den} Hz is not from 1 MHz to 100 GHz; check its unit")]
    OutOfRange {
        /// Numerator, Hz.
        num: u128,
        /// Denominator.
        den: u128,
    },
    /// A denominator of 0.
    #[error("TSC frequency {num}/0 Hz has no value; pass a denominator above 0")]
    ZeroDenominator {
        /// Numerator, Hz.
        num: u64,
    },
    /// The reduced denominator is above 2^52.
    #[error(
        "TSC frequency {num}/{den} Hz is finer than 2^-52 Hz; \
         give the host frequency in whole Hz or sixteenths"
    )]
    TooFine {
        /// Numerator, Hz.
        num: u128,
        /// Denominator.
        den: u128,
    },
    /// Scaling left the range of the arithmetic.
    #[error(
        "TSC frequency {host} Hz cannot be scaled by {ratio}/2^{frac_bits}; \
         use the ratio that the hardware reports (48 fractional bits on Intel, 32 on AMD)"
    )]
    Scaling {
        /// The frequency that was to be scaled.
        host: TscFrequency,
        /// The multiplier, in units of 2^-frac_bits.
        ratio: u64,
        /// Fractional bits of `ratio`.
        frac_bits: u8,
    },
}

impl TscFrequency {
    /// `khz` × 1000 Hz.
    ///
    /// # Errors
    /// [`FrequencyError::OutOfRange`].
    pub fn from_khz(khz: u64) -> Result<Self, FrequencyError> {
        Self::reduced(u128::from(khz) * 1000, 1)
    }

    /// `hz` Hz.
    ///
    /// # Errors
    /// [`FrequencyError::OutOfRange`].
    pub fn from_hz(hz: u64) -> Result<Self, FrequencyError> {
        Self::reduced(u128::from(hz), 1)
    }

    /// `num / den` Hz, for instance a crystal times CPUID leaf 0x15's ratio.
    ///
    /// # Errors
    /// [`FrequencyError::ZeroDenominator`], [`FrequencyError::OutOfRange`].
    pub fn from_ratio(num: u64, den: u64) -> Result<Self, FrequencyError> {
        if den == 0 {
            return Err(FrequencyError::ZeroDenominator { num });
        }
        Self::reduced(u128::from(num), u128::from(den))
    }

    /// What a guest sees of `host` through hardware TSC scaling:
    /// `host × ratio / 2^frac_bits`, exactly.
    ///
    /// # Errors
    /// [`FrequencyError::Scaling`] when `frac_bits` is above 63 or a product
    /// overflows, otherwise as for the other constructors.
    pub fn scaled(self, ratio: u64, frac_bits: u8) -> Result<Self, FrequencyError> {
        let refused = FrequencyError::Scaling { host: self, ratio, frac_bits };
        if frac_bits > 63 {
            return Err(refused);
        }
        // 2^frac first loses its common twos with the ratio: without that a
        // long ratio such as 5 << 46 would not fit.
        let twos = ratio.trailing_zeros().min(u32::from(frac_bits));
        let num = self.num.checked_mul(u128::from(ratio >> twos)).ok_or(refused)?;
        let den = u128::from(self.den.get()) << (u32::from(frac_bits) - twos);
        Self::reduced(num, den)
    }

    fn reduced(num: u128, den: u128) -> Result<Self, FrequencyError> {
        let divisor = gcd(num, den).max(1);
        let (num, den) = (num / divisor, den / divisor);
        // Range first: a frequency that fails it may also have a long denominator.
        let whole = num / den.max(1);
        if !(MIN_HZ..=MAX_HZ).contains(&whole) || (whole == MAX_HZ && num % den != 0) {
            return Err(FrequencyError::OutOfRange { num, den });
        }
        let narrow = u64::try_from(den).ok().and_then(NonZeroU64::new);
        match narrow {
            Some(narrow) if den <= MAX_DENOMINATOR => Ok(Self { num, den: narrow }),
            _ => Err(FrequencyError::TooFine { num, den }),
        }
    }

    /// Numerator of the reduced frequency in Hz; below 2^89, never 0.
    #[must_use]
    pub const fn num(self) -> u128 {
        self.num
    }

    /// Denominator of the reduced frequency in Hz; at most 2^52.
    #[must_use]
    pub const fn den(self) -> u64 {
        self.den.get()
    }

    /// Whole kHz, rounded down: what KVM and CPUID leaves can say.
    /// Not for arithmetic on time: up to 1 kHz is lost.
    #[must_use]
    pub fn khz_floor(self) -> u64 {
        // At most 10^8 by the range of the type.
        u64::try_from(self.num / (u128::from(self.den()) * 1000)).unwrap_or(u64::MAX)
    }

    /// Nanoseconds in `ticks`, rounded down, exactly. Below 2^75: holds for
    /// every count of 64 bits.
    #[must_use]
    pub fn nanos_floor(self, ticks: u64) -> u128 {
        // Whole seconds first: ticks × den × 10^9 in one go could need 146 bits.
        let scaled = u128::from(ticks) * u128::from(self.den()); // < 2^116
        let seconds = scaled / self.num;
        let rest = scaled % self.num; // < 2^89
        let nanos = u128::from(super::NANOS_PER_SEC);
        seconds * nanos + rest * nanos / self.num
    }
}

impl fmt::Display for TscFrequency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.den() {
            1 => write!(f, "{}", self.num),
            den => write!(f, "{}/{den}", self.num),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_is_closed_at_both_ends() {
        assert!(TscFrequency::from_hz(1_000_000).is_ok());
        assert!(TscFrequency::from_hz(999_999).is_err());
        assert!(TscFrequency::from_hz(100_000_000_000).is_ok());
        assert!(TscFrequency::from_hz(100_000_000_001).is_err());
        assert!(TscFrequency::from_khz(0).is_err());
        assert!(TscFrequency::from_khz(u64::MAX).is_err());
        assert!(TscFrequency::from_ratio(300_000_000_001, 3).is_err());
        assert!(TscFrequency::from_ratio(2_999_999, 3).is_err());
    }

    #[test]
    fn zero_denominator_is_named() {
        let error = TscFrequency::from_ratio(5, 0).unwrap_err();
        assert_eq!(error, FrequencyError::ZeroDenominator { num: 5 });
        assert!(error.to_string().contains("5/0"));
    }

    #[test]
    fn equal_frequencies_compare_equal() {
        let a = TscFrequency::from_khz(2_400_000).unwrap();
        let b = TscFrequency::from_ratio(4_800_000_000, 2).unwrap();
        assert_eq!(a, b);
        assert_eq!(a.scaled(1 << 48, 48).unwrap(), a);
        assert_eq!(a.scaled(1 << 32, 32).unwrap(), a);
    }

    #[test]
    fn scaled_keeps_what_khz_would_lose() {
        let host = TscFrequency::from_khz(3_000_000).unwrap();
        let ratio = (1u64 << 48) * 5 / 6;
        let guest = host.scaled(ratio, 48).unwrap();
        assert_eq!(guest.khz_floor(), 2_499_999);
        // 2^48 × 5/6 falls short by 1/3 unit: 3×10^9 / 3 / 2^48 Hz are missing.
        let short = 2_500_000_000 * u128::from(guest.den()) - guest.num();
        assert_eq!(short * (1 << 48) / u128::from(guest.den()), 1_000_000_000);
    }

    #[test]
    fn scaled_refuses_what_it_cannot_hold() {
        let host = TscFrequency::from_ratio(10_000_000_001, 3).unwrap();
        assert!(host.scaled((1 << 48) + 1, 48).is_ok());
        assert!(matches!(host.scaled(1, 64), Err(FrequencyError::Scaling { .. })));
        assert!(matches!(host.scaled(0, 48), Err(FrequencyError::OutOfRange { .. })));
        assert!(matches!(host.scaled(u64::MAX, 63), Err(FrequencyError::TooFine { .. })));
        let fine = TscFrequency::from_ratio((1 << 60) - 1, (1 << 30) - 3).unwrap();
        assert!(matches!(fine.scaled((1 << 48) - 1, 48), Err(FrequencyError::TooFine { .. })));
    }

    #[test]
    fn nanos_at_the_ends() {
        let slow = TscFrequency::from_hz(1_000_000).unwrap();
        assert_eq!(slow.nanos_floor(u64::MAX), u128::from(u64::MAX) * 1000);
        let fast = TscFrequency::from_hz(100_000_000_000).unwrap();
        assert_eq!(fast.nanos_floor(99), 0);
        assert_eq!(fast.nanos_floor(100), 1);
    }
}
