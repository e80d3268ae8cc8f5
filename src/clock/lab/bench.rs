//! The clocks of one scenario, each as its error at a moment.

use super::{LabError, Scaling, Scenario, Updates};
use crate::clock::kvm_models::{KvmClocks, linux_clocksource_rate};
use crate::clock::scaling::{FRAC_BITS_AMD, FRAC_BITS_INTEL};
use crate::clock::tai::CounterPeriod;
use crate::clock::wide::mul_div;
use crate::clock::{NANOS_PER_SEC, SystemTimeLine, TscFrequency};

/// The clocks of one scenario.
pub(super) struct Bench<'a> {
    scenario: &'a Scenario,
    clocks: KvmClocks,
    host_hz: u64,
    guest: TscFrequency,
    line: SystemTimeLine,
    khz_line: SystemTimeLine,
    /// Of [`Updates::At`]: sorted, each once, within the time.
    updates_at: Vec<u64>,
    period: CounterPeriod,
}

impl<'a> Bench<'a> {
    pub(super) fn new(scenario: &'a Scenario) -> Result<Self, LabError> {
        if scenario.points == 0 {
            return Err(LabError::NoPoints);
        }
        let (guest_khz, frac_bits) = match scenario.scaling {
            Scaling::Intel => (scenario.guest_khz, FRAC_BITS_INTEL),
            Scaling::Amd => (scenario.guest_khz, FRAC_BITS_AMD),
            Scaling::None => (scenario.host_khz, FRAC_BITS_AMD),
        };
        let mut clocks = KvmClocks::new(scenario.host_khz, guest_khz, frac_bits)?;
        if scenario.linux_raw
            && let Some(raw) = linux_clocksource_rate(scenario.host_khz)
        {
            clocks = clocks.with_raw(raw);
        }
        let khz = scenario.host_khz.max(guest_khz);
        // One kHz more for what the multiplier rounds.
        if scenario.seconds.checked_mul((u64::from(khz) + 1) * 1_000).is_none() {
            return Err(LabError::TooLong { seconds: scenario.seconds, khz });
        }
        let mut updates_at = match &scenario.updates {
            Updates::At(times) => times.clone(),
            Updates::Never | Updates::Every(_) => Vec::new(),
        };
        updates_at.retain(|at| (1..=scenario.seconds).contains(at));
        updates_at.sort_unstable();
        updates_at.dedup();
        let guest = clocks.scaling().guest_frequency(clocks.host_frequency())?;
        Ok(Self {
            scenario,
            clocks,
            host_hz: u64::from(scenario.host_khz) * 1_000,
            guest,
            line: SystemTimeLine::new(guest, 0, 0)?,
            khz_line: SystemTimeLine::new_keeping_linux_khz(guest, 0, 0)?,
            updates_at,
            period: CounterPeriod::of_frequency(guest),
        })
    }

    const fn ticks(&self, seconds: u64) -> u64 {
        // `new` saw that it fits.
        self.host_hz.wrapping_mul(seconds)
    }

    pub(super) fn a(&self, at: u64) -> i128 {
        self.clocks.a_error_ns(self.ticks(at))
    }

    pub(super) fn c(&self, at: u64) -> i128 {
        self.clocks.c_error_ns(self.ticks(at))
    }

    /// B since a start at 0, without an update.
    pub(super) fn b_free(&self, at: u64) -> i128 {
        self.clocks.b_error_ns(0, self.ticks(at))
    }

    /// B, after the update if there is one at `at`.
    pub(super) fn b(&self, at: u64) -> i128 {
        self.b_from(self.last_update(at), at)
    }

    /// B at `at` when the last update was at `update`.
    fn b_from(&self, update: u64, at: u64) -> i128 {
        self.a(update) + self.clocks.b_error_ns(self.ticks(update), self.ticks(at - update))
    }

    /// B as it comes to an update at `at`.
    pub(super) fn b_before_update(&self, at: u64) -> i128 {
        self.b_from(at.checked_sub(1).map_or(0, |before| self.last_update(before)), at)
    }

    /// The last update at or before `at`; the start counts as one.
    pub(super) fn last_update(&self, at: u64) -> u64 {
        match &self.scenario.updates {
            Updates::Never => 0,
            Updates::Every(every) => at - at.checked_rem(*every).unwrap_or(at),
            Updates::At(_) => {
                let after = self.updates_at.partition_point(|update| *update <= at);
                after.checked_sub(1).map_or(0, |last| self.updates_at[last])
            }
        }
    }

    /// How many updates there are, and those whose jumps are looked at.
    pub(super) fn updates(&self) -> (u64, Vec<u64>) {
        match &self.scenario.updates {
            Updates::Every(every) if (1..=self.scenario.seconds).contains(every) => {
                let count = self.scenario.seconds / every;
                (count, vec![*every, count * every])
            }
            Updates::Never | Updates::Every(_) => (0, Vec::new()),
            Updates::At(_) => {
                (u64::try_from(self.updates_at.len()).unwrap_or(u64::MAX), self.updates_at.clone())
            }
        }
    }

    /// The longest time between two updates, s.
    pub(super) fn longest_stretch(&self) -> u64 {
        let seconds = self.scenario.seconds;
        match &self.scenario.updates {
            Updates::Never | Updates::Every(0) => seconds,
            Updates::Every(every) => seconds.min(*every),
            Updates::At(_) => {
                let ends = self.updates_at.iter().copied().chain([seconds]);
                let mut last = 0;
                ends.map(|end| end - std::mem::replace(&mut last, end)).max().unwrap_or(seconds)
            }
        }
    }

    /// Our page against the exact rate of the guest's TSC.
    pub(super) fn ours(&self, at: u64) -> i128 {
        self.line.rounding_error_ns(self.clocks.scaling().guest_tsc(self.ticks(at)))
    }

    /// The same with the multiplier that lets Linux read the true kHz.
    pub(super) fn ours_khz(&self, at: u64) -> i128 {
        self.khz_line.rounding_error_ns(self.clocks.scaling().guest_tsc(self.ticks(at)))
    }

    /// The same of 64 bits: whole ns.
    pub(super) fn ours_tai(&self, at: u64) -> i128 {
        let ticks = self.clocks.scaling().guest_tsc(self.ticks(at));
        let units = self.period.units_in(ticks);
        // Below 2^116; the quotient has no more bits than the time.
        let exact = mul_div(ticks, u128::from(self.guest.den()) << 64, self.guest.num());
        let exact = exact.map_or(units, |(floor, _)| floor);
        let ns = (exact.abs_diff(units) * u128::from(NANOS_PER_SEC)) >> 64;
        -i128::try_from(ns).unwrap_or(i128::MAX)
    }

    /// UTC less the exact rate at `at`, ns.
    pub(super) fn utc(&self, at: u64) -> i128 {
        let mut left = at;
        let mut sum = 0;
        for stretch in &self.scenario.ntp {
            let seconds = stretch.seconds.min(left);
            left -= seconds;
            sum += i128::from(seconds) * i128::from(stretch.ppb);
            if seconds < stretch.seconds {
                break;
            }
            sum += i128::from(stretch.step_ns);
        }
        sum
    }

    /// What is left of the drift since the last rewrite.
    pub(super) fn wallclock_ours(&self, at: u64) -> i128 {
        let drift = self.ours(at) - self.utc(at);
        let reach = i128::from(self.scenario.wallclock_bound_ns) + 1;
        drift % reach
    }
}

/// `error / seconds` in 10^-9, rounded to the nearest.
pub(super) fn ppb(error_ns: i128, seconds: u64) -> i64 {
    let seconds = i128::from(seconds.max(1));
    let half = seconds / 2 * error_ns.signum();
    i64::try_from((error_ns + half) / seconds).unwrap_or(i64::MAX)
}

/// `error` a day, rounded to the nearest.
pub(super) fn per_day(error_ns: i128, seconds: u64) -> i128 {
    let seconds = i128::from(seconds.max(1));
    (error_ns * 86_400 + seconds / 2 * error_ns.signum()) / seconds
}
