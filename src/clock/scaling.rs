//! What the hardware makes of the host TSC for a guest.
//!
//! `guest = ((host × ratio) >> frac) + offset`, modulo 2^64, where `ratio` has
//! 48 fractional bits on Intel (TSC multiplier, SDM vol. 3C "TSC scaling") and
//! 32 on AMD (TSC ratio MSR, APM vol. 2 "TSC Ratio MSR").

use super::{FrequencyError, TscFrequency};

/// Fractional bits of the multiplier on Intel.
pub const FRAC_BITS_INTEL: u8 = 48;
/// Fractional bits of the multiplier on AMD.
pub const FRAC_BITS_AMD: u8 = 32;

/// Hardware TSC scaling and offset of one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TscScaling {
    ratio: u64,
    frac_bits: u8,
    offset: u64,
}

/// A point of guest TSC against host TSC through which the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TscStart {
    /// At this host TSC it is that guest TSC.
    At {
        /// Host TSC.
        host_tsc: u64,
        /// Guest TSC then.
        guest_tsc: u64,
    },
    /// Whenever it is set, it is that guest TSC.
    WhenSet {
        /// Guest TSC.
        guest_tsc: u64,
    },
}

/// Why a scaling was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScalingError {
    /// The multiplier has no place for that ratio of frequencies.
    #[error(
        "no {frac_bits}-bit TSC multiplier makes {guest_khz} kHz of {host_khz} kHz; \
         choose a guest frequency nearer to the host's"
    )]
    Ratio {
        /// The guest frequency asked for, kHz.
        guest_khz: u32,
        /// The host frequency, kHz.
        host_khz: u32,
        /// Fractional bits of the multiplier.
        frac_bits: u8,
    },
    /// A multiplier of 0, or one whose point lies outside of the word.
    #[error("TSC multiplier {ratio}/2^{frac_bits} cannot run a clock (ratio above 0, bits to 63)")]
    NoClock {
        /// The multiplier, in units of 2^-frac_bits.
        ratio: u64,
        /// Fractional bits of the multiplier.
        frac_bits: u8,
    },
}

impl TscScaling {
    /// The multiplier as read from the hardware or from KVM, and the offset in
    /// guest ticks modulo 2^64 (KVM_VCPU_TSC_OFFSET).
    ///
    /// # Errors
    /// [`ScalingError::NoClock`].
    pub fn new(ratio: u64, frac_bits: u8, offset: u64) -> Result<Self, ScalingError> {
        if ratio == 0 || frac_bits > 63 {
            return Err(ScalingError::NoClock { ratio, frac_bits });
        }
        Ok(Self { ratio, frac_bits, offset })
    }

    /// No scaling, only the offset.
    #[must_use]
    pub const fn unscaled(offset: u64) -> Self {
        Self { ratio: 1 << FRAC_BITS_AMD, frac_bits: FRAC_BITS_AMD, offset }
    }

    /// The same multiplier with another offset.
    #[must_use]
    pub const fn with_offset(self, offset: u64) -> Self {
        Self { offset, ..self }
    }

    /// The multiplier that KVM chooses for a requested frequency:
    /// `⌊2^frac × guest / host⌋`, refused where the hardware has no room for
    /// it (64 bits on Intel, 40 on AMD).
    ///
    /// # Errors
    /// [`ScalingError::Ratio`], with a host frequency of 0 as well.
    pub fn for_khz(
        guest_khz: u32,
        host_khz: u32,
        frac_bits: u8,
        offset: u64,
    ) -> Result<Self, ScalingError> {
        let refused = ScalingError::Ratio { guest_khz, host_khz, frac_bits };
        let most = if frac_bits == FRAC_BITS_AMD { (1 << 40) - 1 } else { u64::MAX };
        let ratio = ratio(frac_bits, guest_khz, host_khz).ok_or(refused)?;
        if ratio >= most {
            return Err(refused);
        }
        Self::new(ratio, frac_bits, offset).map_err(|_| refused)
    }

    /// The multiplier, in units of 2^-frac_bits.
    #[must_use]
    pub const fn ratio(&self) -> u64 {
        self.ratio
    }

    /// Fractional bits of the multiplier.
    #[must_use]
    pub const fn frac_bits(&self) -> u8 {
        self.frac_bits
    }

    /// Guest ticks added after scaling, modulo 2^64.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// What a guest reads when the host's TSC is `host_tsc`. Wraps modulo
    /// 2^64, as the hardware does.
    #[must_use]
    pub fn guest_tsc(&self, host_tsc: u64) -> u64 {
        scale_ticks(host_tsc, self.ratio, self.frac_bits).wrapping_add(self.offset)
    }

    /// The first host TSC at which a guest reads `guest_tsc`, or the next tick
    /// where scaling up skips that one. `None` when no 64-bit host TSC does.
    ///
    /// A guest TSC below the offset is taken as one after the guest's wrap.
    #[must_use]
    pub fn host_tsc_at(&self, guest_tsc: u64) -> Option<u64> {
        let scaled = u128::from(guest_tsc.wrapping_sub(self.offset)) << self.frac_bits;
        u64::try_from(scaled.div_ceil(u128::from(self.ratio))).ok()
    }

    /// The exact frequency that the guest sees.
    ///
    /// # Errors
    /// As for [`TscFrequency::scaled`].
    pub fn guest_frequency(&self, host: TscFrequency) -> Result<TscFrequency, FrequencyError> {
        host.scaled(self.ratio, self.frac_bits)
    }

    /// The frequency of the host's TSC under a guest that sees `guest`, in whole Hz, as near
    /// as the two tell; exactly `guest` where nothing is scaled.
    ///
    /// # Errors
    /// As for the constructors of [`TscFrequency`].
    pub fn host_frequency(&self, guest: TscFrequency) -> Result<TscFrequency, FrequencyError> {
        if self.ratio == 1 << self.frac_bits {
            return Ok(guest);
        }
        // At most 10^11 Hz, below 2^37, by 63 bits.
        let guest_hz = guest.num() / u128::from(guest.den());
        let hz = (guest_hz << self.frac_bits) / u128::from(self.ratio);
        TscFrequency::from_hz(u64::try_from(hz).unwrap_or(u64::MAX))
    }
}

/// `⌊2^frac_bits × guest_khz / host_khz⌋`; `None` for a host of 0 kHz or a
/// result beyond 64 bits. The multiplier KVM computes, so that user space can
/// know it although no call returns it.
#[must_use]
pub fn ratio(frac_bits: u8, guest_khz: u32, host_khz: u32) -> Option<u64> {
    let one = 1u128.checked_shl(frac_bits.into()).filter(|one| *one <= 1 << 63)?;
    let scaled = one * u128::from(guest_khz);
    u64::try_from(scaled.checked_div(host_khz.into())?).ok()
}

/// `(ticks × ratio) >> frac_bits`, modulo 2^64; `frac_bits` at most 63.
#[must_use]
pub fn scale_ticks(ticks: u64, ratio: u64, frac_bits: u8) -> u64 {
    let product = u128::from(ticks) * u128::from(ratio);
    let scaled = product >> frac_bits.min(63);
    #[expect(clippy::cast_possible_truncation, reason = "the hardware keeps 64 bits")]
    let kept = scaled as u64;
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn kvm_ratios() {
        assert_eq!(ratio(48, 3_000_000, 3_000_000), Some(1 << 48));
        assert_eq!(ratio(32, 2_500_000, 3_000_000), Some(3_579_139_413));
        assert_eq!(ratio(48, 2_500_000, 3_000_000), Some(234_562_480_592_213));
        assert_eq!(ratio(48, 1, 0), None);
        assert_eq!(ratio(64, 1, 1), None);
        assert_eq!(ratio(63, u32::MAX, 1), None);
    }

    #[test]
    fn the_hosts_frequency_comes_back() {
        for (guest, host, bits) in [(2_500_000, 3_000_000, 48), (4_000_000, 1_900_123, 32)] {
            let scaling = TscScaling::for_khz(guest, host, bits, 7).unwrap();
            let host = TscFrequency::from_khz(host.into()).unwrap();
            let back = scaling.host_frequency(scaling.guest_frequency(host).unwrap()).unwrap();
            let hz = back.num().abs_diff(host.num());
            assert!(hz <= 2 && back.den() == 1, "{back:?}");
        }
        let third = TscFrequency::from_ratio(10_000_000_000, 3).unwrap();
        assert_eq!(TscScaling::unscaled(9).host_frequency(third), Ok(third));
        let steep = TscScaling::new(1, 48, 0).unwrap();
        assert!(steep.host_frequency(third).is_err());
    }

    #[test]
    fn hardware_limits() {
        assert!(TscScaling::for_khz(256_000, 1_000, FRAC_BITS_AMD, 0).is_err());
        assert!(TscScaling::for_khz(255_000, 1_000, FRAC_BITS_AMD, 0).is_ok());
        assert!(TscScaling::for_khz(0, 1_000, FRAC_BITS_INTEL, 0).is_err());
        assert!(TscScaling::for_khz(1_000, 0, FRAC_BITS_INTEL, 0).is_err());
        assert!(TscScaling::new(0, 48, 0).is_err());
        assert!(TscScaling::new(1, 64, 0).is_err());
    }

    #[test]
    fn boundaries() {
        let plain = TscScaling::unscaled(0);
        for tsc in [0, 1, u64::MAX - 1, u64::MAX] {
            assert_eq!(plain.guest_tsc(tsc), tsc);
            assert_eq!(plain.host_tsc_at(tsc), Some(tsc));
        }
        let offset = TscScaling::unscaled(u64::MAX); // minus one
        assert_eq!(offset.guest_tsc(0), u64::MAX);
        assert_eq!(offset.guest_tsc(1), 0);
        let half = TscScaling::new(1 << 47, 48, 0).unwrap();
        assert_eq!(half.guest_tsc(u64::MAX), u64::MAX >> 1);
        assert_eq!(half.host_tsc_at(u64::MAX), None);
    }

    proptest! {
        #[test]
        fn inverse(guest_khz in 100_000u32..8_000_000, host_khz in 100_000u32..8_000_000,
                   intel: bool, offset: u64, host_tsc in 0u64..1 << 62) {
            let frac_bits = if intel { FRAC_BITS_INTEL } else { FRAC_BITS_AMD };
            let scaling = TscScaling::for_khz(guest_khz, host_khz, frac_bits, offset).unwrap();
            let scaled = (u128::from(host_tsc) * u128::from(scaling.ratio())) >> frac_bits;
            prop_assume!(scaled >> 64 == 0);
            let guest_tsc = scaling.guest_tsc(host_tsc);
            let first = scaling.host_tsc_at(guest_tsc).unwrap();
            prop_assert!(first <= host_tsc);
            prop_assert_eq!(scaling.guest_tsc(first), guest_tsc);
            if let Some(before) = first.checked_sub(1) {
                prop_assert_ne!(scaling.guest_tsc(before), guest_tsc);
            }
        }
    }
}
