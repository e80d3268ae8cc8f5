//! KVM's three clocks as pure functions, and how far each is from the line.
//!
//! KVM has three definitions of one clock, all through the same point
//! (`master_cycle_now`, `master_kernel_ns`) at a masterclock update:
//!
//! - **A**, [`KvmClocks::a_elapsed_ns`]: the host's CLOCK_MONOTONIC_RAW plus
//!   `kvmclock_offset`. Runs at the rate of the host clocksource's mult/shift.
//! - **B**, [`KvmClocks::b_elapsed_ns`]: the guest TSC scaled by the published
//!   mul/shift. What guests read while masterclock is on.
//! - **C**, [`KvmClocks::c_elapsed_ns`]: the host TSC scaled to ns directly
//!   (`__get_kvmclock`, the wallclock epoch). A mistake of KVM's.
//!
//! Worked example: host 3 000 000 kHz, guest 2 500 000 kHz, Intel. The ratio
//! ⌊2^48 × 5/6⌋ falls short of 5/6 by 1/2^48 part, KVM computes the guest's
//! frequency back as ⌊2 499 999.999…⌋ = 2 499 999 kHz and publishes the rate
//! for that: B is 400 ppb fast, 34.56 ms a day. At the next masterclock update
//! guests see the clock jump back by as much, onto A.
//!
//! Source: Linux `arch/x86/kvm/x86.c` (`kvm_get_time_scale`,
//! `kvm_guest_time_update`, `__get_kvmclock`, `set_tsc_khz`) and
//! `kernel/time/clocksource.c` (`clocks_calc_mult_shift`).

use super::scaling::{ScalingError, TscScaling, scale_ticks};
use super::{FrequencyError, NANOS_PER_SEC, TscFrequency, pvclock_scale_delta};

/// The rate of the host's CLOCK_MONOTONIC_RAW: ns = ticks × mult / 2^shift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClocksourceRate {
    /// Nanoseconds per tick in units of 2^-shift.
    pub mult: u32,
    /// 0 to 32.
    pub shift: u8,
}

/// One host and guest on KVM, as far as its clocks go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvmClocks {
    host_khz: u32,
    scaling: TscScaling,
    host: TscFrequency,
    raw: Option<ClocksourceRate>,
    published: (u32, i8),
    direct: (u32, i8),
}

/// Why a model was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// The host's or the guest's frequency is out of range.
    #[error(transparent)]
    Frequency(#[from] FrequencyError),
    /// The hardware cannot scale so far.
    #[error(transparent)]
    Scaling(#[from] ScalingError),
}

impl KvmClocks {
    /// A guest that asked for `guest_khz` on a host whose TSC runs at exactly
    /// `host_khz`; `frac_bits` 48 on Intel, 32 on AMD. Equal frequencies are
    /// not scaled. KVM's tolerance of 250 ppm is not applied: give `host_khz`
    /// twice for a request that it would not scale.
    ///
    /// A runs at the exact rate until [`with_raw`](Self::with_raw) says how
    /// the host's clocksource rounds.
    ///
    /// # Errors
    /// [`ModelError`] for frequencies that no TSC or no multiplier has.
    pub fn new(host_khz: u32, guest_khz: u32, frac_bits: u8) -> Result<Self, ModelError> {
        let host = TscFrequency::from_khz(host_khz.into())?;
        TscFrequency::from_khz(guest_khz.into())?;
        let scaling = if guest_khz == host_khz {
            TscScaling::unscaled(0)
        } else {
            TscScaling::for_khz(guest_khz, host_khz, frac_bits, 0)?
        };
        let effective = effective_guest_khz(host_khz, scaling.ratio(), scaling.frac_bits());
        Ok(Self {
            host_khz,
            scaling,
            host,
            raw: None,
            published: kvm_get_time_scale(NANOS_PER_SEC, effective * 1000),
            direct: kvm_get_time_scale(NANOS_PER_SEC, u64::from(host_khz) * 1000),
        })
    }

    /// The same with A at the rate of the host's clocksource.
    #[must_use]
    pub const fn with_raw(mut self, raw: ClocksourceRate) -> Self {
        self.raw = Some(raw);
        self
    }

    /// The guest frequency that KVM computes back from its multiplier, kHz.
    #[must_use]
    pub fn effective_guest_khz(&self) -> u64 {
        effective_guest_khz(self.host_khz, self.scaling.ratio(), self.scaling.frac_bits())
    }

    /// The mul and shift that KVM publishes to the guest.
    #[must_use]
    pub const fn published(&self) -> (u32, i8) {
        self.published
    }

    /// What the hardware makes of the host TSC.
    #[must_use]
    pub const fn scaling(&self) -> TscScaling {
        self.scaling
    }

    /// The host TSC's frequency.
    #[must_use]
    pub const fn host_frequency(&self) -> TscFrequency {
        self.host
    }

    /// The exact time in `host_ticks`, ns, rounded down: what all three
    /// definitions mean to say.
    #[must_use]
    pub fn exact_elapsed_ns(&self, host_ticks: u64) -> u128 {
        self.host.nanos_floor(host_ticks)
    }

    /// A: ns of CLOCK_MONOTONIC_RAW in `host_ticks`. Timekeeping accumulates
    /// without loss, hence one product over the whole time.
    #[must_use]
    pub fn a_elapsed_ns(&self, host_ticks: u64) -> u128 {
        match self.raw {
            None => self.exact_elapsed_ns(host_ticks),
            Some(raw) => (u128::from(host_ticks) * u128::from(raw.mult)) >> raw.shift.min(32),
        }
    }

    /// B: ns that the guest's clock advanced in the `host_ticks` since
    /// `master_host_tsc`. Wraps as the guest's arithmetic does.
    #[must_use]
    pub fn b_elapsed_ns(&self, master_host_tsc: u64, host_ticks: u64) -> u128 {
        let base = self.scaling.guest_tsc(master_host_tsc);
        let now = self.scaling.guest_tsc(master_host_tsc.wrapping_add(host_ticks));
        let (mul, shift) = self.published;
        pvclock_scale_delta(now.wrapping_sub(base), mul, shift).into()
    }

    /// C: ns in `host_ticks` by the host's own mul and shift.
    #[must_use]
    pub fn c_elapsed_ns(&self, host_ticks: u64) -> u128 {
        let (mul, shift) = self.direct;
        pvclock_scale_delta(host_ticks, mul, shift).into()
    }

    /// A less the exact line after `host_ticks`, ns.
    #[must_use]
    pub fn a_error_ns(&self, host_ticks: u64) -> i128 {
        difference(self.a_elapsed_ns(host_ticks), self.exact_elapsed_ns(host_ticks))
    }

    /// B less the exact line, `host_ticks` after `master_host_tsc`, ns.
    #[must_use]
    pub fn b_error_ns(&self, master_host_tsc: u64, host_ticks: u64) -> i128 {
        let b = self.b_elapsed_ns(master_host_tsc, host_ticks);
        difference(b, self.exact_elapsed_ns(host_ticks))
    }

    /// C less the exact line after `host_ticks`, ns.
    #[must_use]
    pub fn c_error_ns(&self, host_ticks: u64) -> i128 {
        difference(self.c_elapsed_ns(host_ticks), self.exact_elapsed_ns(host_ticks))
    }

    /// How far a guest's clock jumps when a masterclock update, `host_ticks`
    /// after the last one, puts B back onto A: A − B, negative for backwards.
    #[must_use]
    pub fn jump_at_update_ns(&self, master_host_tsc: u64, host_ticks: u64) -> i128 {
        let b = self.b_elapsed_ns(master_host_tsc, host_ticks);
        difference(self.a_elapsed_ns(host_ticks), b)
    }

    /// Host ticks in `seconds`; wraps beyond 64 bits.
    #[must_use]
    pub const fn host_ticks_in(&self, seconds: u32) -> u64 {
        // 32 + 32 + 10 bits can exceed 64: only beyond 58 years at 10 GHz.
        (self.host_khz as u64 * 1000).wrapping_mul(seconds as u64)
    }
}

fn difference(a: u128, b: u128) -> i128 {
    // Each is below 2^97.
    i128::try_from(a).unwrap_or(i128::MAX) - i128::try_from(b).unwrap_or(i128::MAX)
}

/// The guest frequency that KVM computes back from its own multiplier:
/// `⌊host_khz × ratio / 2^frac⌋` kHz. One kHz short for most ratios.
#[must_use]
pub fn effective_guest_khz(host_khz: u32, ratio: u64, frac_bits: u8) -> u64 {
    scale_ticks(host_khz.into(), ratio, frac_bits)
}

/// KVM's own choice of (mul, shift) to scale `base_hz` ticks to `scaled_hz`.
///
/// Differs from the nearest choice in three ways: the quotient is rounded
/// down, low bits of the frequency are shifted out on the way, and the shift
/// is never given back. A `base_hz` of 0 gives (0, 0).
#[must_use]
pub fn kvm_get_time_scale(scaled_hz: u64, base_hz: u64) -> (u32, i8) {
    let fits_word = |value: u64| value >> 32 == 0;
    let (mut scaled, mut ticks) = (scaled_hz, base_hz);
    let mut shift = 0i8;
    if ticks == 0 || scaled == 0 {
        return (0, 0);
    }
    // Halve the ticks until they are below twice the target and fit in 32 bits.
    while ticks > scaled.saturating_mul(2) || !fits_word(ticks) {
        ticks >>= 1;
        shift -= 1;
    }
    // Double them (or halve the target) until the quotient is below one.
    while ticks <= scaled || !fits_word(scaled) {
        if !fits_word(scaled) || ticks >> 31 != 0 {
            scaled >>= 1;
        } else {
            ticks <<= 1;
        }
        shift += 1;
    }
    // Below 2^32, because scaled < ticks.
    (u32::try_from((scaled << 32) / ticks).unwrap_or(u32::MAX), shift)
}

/// Linux's choice of mult and shift for a TSC clocksource of `khz`: the most
/// bits for which ten minutes of ticks times mult stay below 2^64. That leaves
/// `mult` 23 bits at 3 GHz, and CLOCK_MONOTONIC_RAW is 60 ppb slow there.
/// `None` for 0 kHz.
#[must_use]
pub fn linux_clocksource_rate(khz: u32) -> Option<ClocksourceRate> {
    const MAX_SECONDS: u64 = 600;
    const KHZ_PER_SEC: u64 = 1_000_000; // ns per ms
    let from = u64::from(khz);
    if from == 0 {
        return None;
    }
    let beyond_word = (MAX_SECONDS * 1000 * from) >> 32;
    let room = 32u32.saturating_sub(u64::BITS - beyond_word.leading_zeros());
    (1..=32u8).rev().find_map(|shift| {
        let mult = ((KHZ_PER_SEC << shift) + from / 2) / from;
        let fits = mult >> room == 0;
        u32::try_from(mult).ok().filter(|_| fits).map(|mult| ClocksourceRate { mult, shift })
    })
}

#[cfg(test)]
mod tests;
