//! A counter's line to TAI, and its errors.

use super::instant::{ns_to_units_ceil, units_to_ns_ceil};
use super::period::ATTOS_PER_SEC;
use super::{CounterPeriod, PeriodError, Tai};
use crate::clock::scaling::TscScaling;

/// A counter to TAI: `time + (counter − base) × period`.
///
/// # Range
/// A reader ([`guest_reads`](Self::guest_reads)) takes the elapsed ticks modulo
/// 2^64 and needs 128 bits for the product, which then never overflows: 73
/// years at 8 GHz, after which the counter itself has come round. A counter
/// value before the base reads as one nearly 2^64 ticks after it.
/// [`at`](Self::at) takes the elapsed ticks as signed instead, from −2^63 on.
/// The sum is held at the ends of [`Tai`], 292 thousand million years away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaiLine {
    base: u64,
    time: Tai,
    period: CounterPeriod,
    errors: TaiErrors,
}

/// The error terms of a line, each kind apart.
///
/// `*_ns` hold at the base, `*_attos` grow from there: 10^-18 of the time that
/// passed, 10^12 for each ppm. The bound of a term is its sum with its growth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct TaiErrors {
    /// The pair: how far the base may be from the host's clock.
    pub pair_ns: u64,
    /// The same, as estimated from several pairs.
    pub pair_est_ns: u64,
    /// The rate against what the host's may become before the next line:
    /// steering of the host's clock included.
    pub rate_attos: u64,
    /// The rate against the host's present one, as estimated.
    pub rate_est_attos: u64,
    /// The host's own clock against true time: what it states as its maximum.
    pub host_ns: u64,
    /// The host's own estimate.
    pub host_est_ns: u64,
    /// How fast the host's own maximum grows while nobody corrects it.
    pub host_rate_attos: u64,
}

impl TaiErrors {
    /// Against the host's clock after `elapsed_ns`, ns. Saturates.
    #[must_use]
    pub fn own_bound_ns(&self, elapsed_ns: u128) -> u64 {
        self.pair_ns.saturating_add(growth_ns(elapsed_ns, self.rate_attos))
    }

    /// Against true time after `elapsed_ns`, ns. Saturates.
    #[must_use]
    pub fn bound_ns(&self, elapsed_ns: u128) -> u64 {
        let rate = self.rate_attos.saturating_add(self.host_rate_attos);
        let base = self.pair_ns.saturating_add(self.host_ns);
        base.saturating_add(growth_ns(elapsed_ns, rate))
    }
}

/// `⌈elapsed × attos / 10^18⌉`; saturates.
fn growth_ns(elapsed_ns: u128, attos: u64) -> u64 {
    elapsed_ns
        .checked_mul(attos.into())
        .and_then(|product| u64::try_from(product.div_ceil(ATTOS_PER_SEC.into())).ok())
        .unwrap_or(u64::MAX)
}

/// Why a line or its answer was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaiLineError {
    /// The guest's rate is none.
    #[error(transparent)]
    Period(#[from] PeriodError),
    /// A scheduled change that lies behind its line's base.
    #[error("counter value {at:#x} lies before the line's base {base:#x}; schedule a later one")]
    BeforeBase {
        /// Where the change was to be.
        at: u64,
        /// The line's base.
        base: u64,
    },
}

impl TaiLine {
    /// The line through (`base`, `time`).
    #[must_use]
    pub const fn new(base: u64, time: Tai, period: CounterPeriod, errors: TaiErrors) -> Self {
        Self { base, time, period, errors }
    }

    /// Counter value at the base.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// TAI at the base.
    #[must_use]
    pub const fn time(&self) -> Tai {
        self.time
    }

    /// The counter's period.
    #[must_use]
    pub const fn period(&self) -> CounterPeriod {
        self.period
    }

    /// The error terms.
    #[must_use]
    pub const fn errors(&self) -> TaiErrors {
        self.errors
    }

    /// The same line with other error terms.
    #[must_use]
    pub const fn with_errors(mut self, errors: TaiErrors) -> Self {
        self.errors = errors;
        self
    }

    /// TAI at a counter value, rounded down to 2^-64 s. `counter` may lie
    /// before the base, by less than 2^63 ticks.
    #[must_use]
    pub fn at(&self, counter: u64) -> Tai {
        self.time.saturating_add(self.elapsed_units(counter))
    }

    /// Elapsed time from the base in units of 2^-64 s, negative before it.
    fn elapsed_units(&self, counter: u64) -> i128 {
        let ticks = self.elapsed_ticks(counter);
        let units = self.period.units_in(ticks.unsigned_abs());
        let units = i128::try_from(units).unwrap_or(i128::MAX); // below 2^110
        if ticks < 0 { -units } else { units }
    }

    /// What a guest computes, bit for bit as Linux's `ptp_vmclock` does:
    /// seconds and 2^-64 s. Elapsed ticks and seconds wrap modulo 2^64.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the guest keeps 64 bits of each")]
    #[expect(clippy::cast_sign_loss, reason = "the page's seconds are the same 64 bits")]
    pub const fn guest_reads(&self, counter: u64) -> (u64, u64) {
        let delta = counter.wrapping_sub(self.base) as u128;
        let units = (delta * self.period.frac() as u128) >> self.period.shift();
        let units = units + self.time.frac() as u128; // the shift is above 0: no carry
        let sec = (self.time.sec() as u64).wrapping_add((units >> 64) as u64);
        (sec, units as u64)
    }

    /// Ticks from the base to `counter`, the nearer way round.
    #[must_use]
    #[expect(clippy::cast_possible_wrap, reason = "a counter modulo 2^64: the nearer way round")]
    pub const fn elapsed_ticks(&self, counter: u64) -> i64 {
        counter.wrapping_sub(self.base) as i64
    }

    /// Time from the base to `counter`, either way, in ns, rounded up.
    #[must_use]
    pub fn age_ns(&self, counter: u64) -> u128 {
        let ticks = self.elapsed_ticks(counter).unsigned_abs();
        units_to_ns_ceil(self.period.units_in(ticks).saturating_add(1))
    }

    /// How far [`at`](Self::at) may be from the host's clock, ns.
    #[must_use]
    pub fn own_bound_ns(&self, counter: u64) -> u64 {
        self.errors.own_bound_ns(self.age_ns(counter))
    }

    /// How far [`at`](Self::at) may be from true TAI, ns: the host's own
    /// distance included.
    #[must_use]
    pub fn bound_ns(&self, counter: u64) -> u64 {
        self.errors.bound_ns(self.age_ns(counter))
    }

    /// True when a new line is due: at `counter` the bound against the host's
    /// clock exceeds `bound_ns`.
    #[must_use]
    pub fn needs_refresh(&self, counter: u64, bound_ns: u64) -> bool {
        self.own_bound_ns(counter) > bound_ns
    }

    /// Ticks from the base for which the bound against the host's clock stays
    /// within `bound_ns`; `None` when it does not at the base.
    #[must_use]
    pub fn ticks_within(&self, bound_ns: u64) -> Option<u64> {
        let room_ns = u128::from(bound_ns.checked_sub(self.errors.pair_ns)?);
        let Some(time_ns) =
            (room_ns * u128::from(ATTOS_PER_SEC)).checked_div(self.errors.rate_attos.into())
        else {
            return Some(u64::MAX >> 1);
        };
        let Ok(time_ns) = u64::try_from(time_ns) else { return Some(u64::MAX >> 1) };
        // Two ns less, for `age_ns` rounds up; and one tick, for it reaches.
        let units = ns_to_units_ceil(time_ns.saturating_sub(2));
        Some(self.period.ticks_to_reach(units).saturating_sub(1).min(u64::MAX >> 1))
    }

    /// The same line for a guest whose TSC the hardware makes of this counter.
    ///
    /// The base becomes the guest tick at or before this one, and its time the
    /// moment of that tick, by the exact ratio. A guest that reads a tick reads
    /// it up to one tick late: that, and 2^-62 of the rate, is added to the
    /// errors.
    ///
    /// # Errors
    /// [`TaiLineError::Period`] where the guest's rate is out of range.
    pub fn through(&self, scaling: &TscScaling) -> Result<Self, TaiLineError> {
        let period = self.period.through(scaling)?;
        let mask = (1u64 << scaling.frac_bits()) - 1; // frac_bits is at most 63
        #[expect(clippy::cast_possible_truncation, reason = "only the low bits are wanted")]
        let product = (u128::from(self.base) * u128::from(scaling.ratio())) as u64;
        // The base lies `rest / 2^frac_bits` of a guest tick after the guest's.
        let rest = u128::from(product & mask) * u128::from(period.frac());
        let late = rest >> (u32::from(period.shift()) + u32::from(scaling.frac_bits())).min(127);
        let late = i128::try_from(late).unwrap_or(0); // below 2^46: one guest tick
        let tick_ns = u64::try_from(units_to_ns_ceil(period.units_in(1) + 1)).unwrap_or(u64::MAX);
        let mut errors = self.errors;
        errors.pair_ns = errors.pair_ns.saturating_add(tick_ns);
        errors.pair_est_ns = errors.pair_est_ns.saturating_add(tick_ns);
        errors.rate_attos = errors.rate_attos.saturating_add(1);
        errors.rate_est_attos = errors.rate_est_attos.saturating_add(1);
        let time = self.time.saturating_add(-late);
        Ok(Self { base: scaling.guest_tsc(self.base), time, period, errors })
    }

    /// The line from `at` on at another rate, continuous there. The errors at
    /// `at` are this line's; from there on the rate's are the new ones.
    ///
    /// # Errors
    /// [`TaiLineError::BeforeBase`].
    pub fn bent(
        &self,
        at: u64,
        period: CounterPeriod,
        rate_attos: u64,
        rate_est_attos: u64,
    ) -> Result<Self, TaiLineError> {
        if self.elapsed_ticks(at) < 0 {
            return Err(TaiLineError::BeforeBase { at, base: self.base });
        }
        let age = self.age_ns(at);
        let old = self.errors;
        let errors = TaiErrors {
            pair_ns: old.own_bound_ns(age),
            pair_est_ns: old.pair_est_ns.saturating_add(growth_ns(age, old.rate_est_attos)),
            rate_attos,
            rate_est_attos,
            host_ns: old.host_ns.saturating_add(growth_ns(age, old.host_rate_attos)),
            ..old
        };
        Ok(Self { base: at, time: self.at(at), period, errors })
    }
}

/// A line, and the one that takes over at a counter value still to come.
///
/// A page holds one line, and a reader before its base would compute with
/// ticks modulo 2^64: the next line is published at its base, not before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduledLine {
    now: TaiLine,
    next: Option<TaiLine>,
}

impl ScheduledLine {
    /// No change ahead.
    #[must_use]
    pub const fn new(line: TaiLine) -> Self {
        Self { now: line, next: None }
    }

    /// At counter value `at` the rate changes (a host that will be steered, a
    /// migration with a known frequency). Replaces a change that was planned.
    ///
    /// # Errors
    /// [`TaiLineError::BeforeBase`].
    pub fn schedule(
        &mut self,
        at: u64,
        period: CounterPeriod,
        rate_attos: u64,
    ) -> Result<(), TaiLineError> {
        let est = self.now.errors.rate_est_attos;
        self.next = Some(self.now.bent(at, period, rate_attos, est)?);
        Ok(())
    }

    /// Counter value of the planned change.
    #[must_use]
    pub fn due(&self) -> Option<u64> {
        self.next.map(|next| next.base)
    }

    /// The line in force at `counter`.
    #[must_use]
    pub fn at(&self, counter: u64) -> TaiLine {
        match self.next {
            Some(next) if next.elapsed_ticks(counter) >= 0 => next,
            _ => self.now,
        }
    }

    /// Takes the planned line over once its base has come. True then: publish.
    pub fn advance(&mut self, counter: u64) -> bool {
        let line = self.at(counter);
        let changed = self.next == Some(line);
        if changed {
            *self = Self::new(line);
        }
        changed
    }
}

#[cfg(test)]
mod tests;
