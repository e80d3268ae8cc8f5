//! From a stream of readings to the host's line.
//!
//! The kernel's clock is piecewise linear in the TSC: within one piece its rate
//! is constant, and `adjtimex` says when and by how much a piece's rate differs
//! from the last one's (but not what a pending offset adds). So:
//!
//! - *The base* is where the new pair and the projection of the old line agree:
//!   the middle of what both allow. Its estimated error is half of that; its
//!   maximum error rests on the new pair alone.
//! - *The rate* is the kernel's, carried over from piece to piece by the exact
//!   ratio of its steering, or measured from pairs of one piece where that has
//!   the smaller error. Its maximum error is what the kernel can be made to do
//!   before the next reading.
//! - *A step* is a reading that breaks the line's own published bound. Whoever
//!   trusted the page was deceived, so it is told as a disruption.

use super::reading::{HostReading, Steering};
use super::{CounterPeriod, Tai, TaiErrors, TaiLine};
use crate::clock::TscFrequency;

const PPM: u64 = 1_000_000_000_000;

/// What the estimator assumes of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EstimatorConfig {
    /// The host TSC's frequency as somebody stated it: the rate until two pairs
    /// have measured it.
    pub nominal: TscFrequency,
    /// How far the true rate may be from that, 10^-18.
    pub nominal_error_attos: u64,
    /// How far the host's clock may be steered from its unsteered rate between
    /// two readings, 10^-18.
    pub steering_limit_attos: u64,
    /// What of it `adjtimex` does not show (a pending offset), 10^-18.
    pub hidden_limit_attos: u64,
    /// How fast the host's own maximum error grows, 10^-18.
    pub host_rate_attos: u64,
    /// The longest time over which one rate is measured, ns; at least half of it
    /// is used once there is so much.
    pub baseline_ns: u64,
}

impl EstimatorConfig {
    /// Linux's limits: ±500 ppm of frequency and 500 ppm of `adjtime` slew, and
    /// 500 ppm of dispersion (MAXFREQ, MAX_TICKADJ of `kernel/time/ntp.c`).
    ///
    /// `timex.tick`, and an `ADJ_OFFSET` of more than 2 ms with a short time
    /// constant, go beyond them: the line's bound then breaks, and
    /// [`Observation::Stepped`] says so.
    #[must_use]
    pub const fn linux(nominal: TscFrequency) -> Self {
        Self {
            nominal,
            nominal_error_attos: 1_000 * PPM,
            steering_limit_attos: 1_000 * PPM,
            hidden_limit_attos: 500 * PPM,
            host_rate_attos: 500 * PPM,
            baseline_ns: 64_000_000_000,
        }
    }
}

/// What a reading changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    /// The first reading.
    Started,
    /// The line goes on.
    Continued,
    /// The rate changed, within what the bound allows.
    RateChanged,
    /// The host's clock is not where the line's bound says: it was stepped, or
    /// the host slept. Tell the guest of a disruption.
    Stepped {
        /// How far it moved, ns, positive for forwards. Saturates.
        by_ns: i128,
    },
    /// The counter went back: another machine, or a host that slept and reset
    /// it. Tell the guest of a disruption.
    CounterJumped {
        /// Ticks from the last reading to this one, negative.
        ticks: i64,
    },
}

impl Observation {
    /// True where what was published had broken its promise.
    #[must_use]
    pub const fn is_disruption(self) -> bool {
        matches!(self, Self::Stepped { .. } | Self::CounterJumped { .. })
    }
}

/// The host's line, kept up to date by readings.
#[derive(Clone, Copy, Debug)]
pub struct TaiEstimator {
    config: EstimatorConfig,
    state: Option<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    line: TaiLine,
    steering: Steering,
    /// The pairs of one piece: the window from `first` is measured, and from
    /// `middle` on once it is too long.
    first: Pair,
    middle: Pair,
    last: Pair,
}

#[derive(Clone, Copy, Debug)]
struct Pair {
    tsc: u64,
    tai: Tai,
    error_ns: u64,
}

/// A rate and its estimated error.
type Rate = (CounterPeriod, u64);

impl TaiEstimator {
    /// Before the first reading.
    #[must_use]
    pub const fn new(config: EstimatorConfig) -> Self {
        Self { config, state: None }
    }

    /// The host's line: TSC to its CLOCK_TAI. `None` before the first reading.
    #[must_use]
    pub fn line(&self) -> Option<TaiLine> {
        self.state.map(|state| state.line)
    }

    /// Forgets everything: another host, or a clocksource that was lost.
    pub fn reset(&mut self) {
        self.state = None;
    }

    /// Takes a reading. Readings come in the order of their counter values.
    pub fn observe(&mut self, reading: &HostReading) -> Observation {
        let pair = Pair { tsc: reading.host_tsc, tai: reading.tai, error_ns: reading.error_ns };
        let Some(mut state) = self.state else {
            let rate = self.first_rate(reading);
            self.state = Some(self.restart(reading, pair, rate));
            return Observation::Started;
        };
        let carried = self.carried_rate(&state, reading);
        let ticks = ticks_between(state.last, pair);
        if ticks < 0 {
            self.state = Some(self.restart(reading, pair, carried));
            return Observation::CounterJumped { ticks };
        }
        let predicted = state.line.at(pair.tsc);
        let off = pair.tai.since(predicted);
        let off_ns = pair.tai.distance_ns(predicted);
        let own = state.line.own_bound_ns(pair.tsc).saturating_add(pair.error_ns);
        if off_ns > own.into() {
            self.state = Some(self.restart(reading, pair, carried));
            let by_ns = i128::try_from(off_ns).unwrap_or(i128::MAX);
            return Observation::Stepped { by_ns: if off < 0 { -by_ns } else { by_ns } };
        }
        let projected = estimated_error_ns(&state.line, pair.tsc);
        let steered = reading.steering != state.steering;
        if steered || off_ns > u128::from(projected.saturating_add(pair.error_ns)) {
            // Somewhere since the last pair the rate changed: a new piece.
            let rate = if steered { carried } else { changed_rate(&state, pair) };
            self.state = Some(self.restart(reading, pair, rate));
            return Observation::RateChanged;
        }
        let rate = match reading.rate {
            Some(known) => (known.period, known.error_attos),
            None => state.better_rate(pair, carried),
        };
        state.slide(pair, self.config.baseline_ns);
        state.line = self.meet(reading, predicted, projected, rate);
        self.state = Some(state);
        Observation::Continued
    }

    /// The line where the projection of the old and the new pair agree.
    fn meet(
        &self,
        reading: &HostReading,
        predicted: Tai,
        projected_ns: u64,
        rate: Rate,
    ) -> TaiLine {
        let reach = |ns| i128::try_from(super::instant::ns_to_units_ceil(ns)).unwrap_or(i128::MAX);
        let low = predicted.saturating_add(-reach(projected_ns));
        let high = predicted.saturating_add(reach(projected_ns));
        let low = low.max(reading.tai.saturating_add(-reach(reading.error_ns)));
        let high = high.min(reading.tai.saturating_add(reach(reading.error_ns)));
        // The caller saw that they overlap; a rounding apart they may touch.
        let time = low.saturating_add(high.since(low) / 2);
        let est = u64::try_from(time.distance_ns(low)).unwrap_or(u64::MAX);
        let max = u64::try_from(time.distance_ns(reading.tai)).unwrap_or(u64::MAX);
        self.line_of(reading, time, max.saturating_add(reading.error_ns), est, rate)
    }

    fn restart(&self, reading: &HostReading, pair: Pair, rate: Rate) -> State {
        let line = self.line_of(reading, pair.tai, pair.error_ns, pair.error_ns, rate);
        State { line, steering: reading.steering, first: pair, middle: pair, last: pair }
    }

    fn line_of(&self, reading: &HostReading, time: Tai, max: u64, est: u64, rate: Rate) -> TaiLine {
        let (period, rate_est_attos) = rate;
        // From where it is steered now, hidden part included, to the far limit.
        let change = (self.config.steering_limit_attos)
            .saturating_add(self.config.hidden_limit_attos)
            .saturating_add(reading.steering.distance_attos());
        let errors = TaiErrors {
            pair_ns: max,
            pair_est_ns: est,
            rate_attos: rate_est_attos.saturating_add(change),
            rate_est_attos,
            host_ns: reading.sync.maxerror_ns,
            host_est_ns: reading.sync.esterror_ns,
            host_rate_attos: self.config.host_rate_attos,
        };
        TaiLine::new(reading.host_tsc, time, period, errors)
    }

    fn first_rate(&self, reading: &HostReading) -> Rate {
        if let Some(known) = reading.rate {
            return (known.period, known.error_attos);
        }
        let nominal = CounterPeriod::of_frequency(self.config.nominal);
        let steered = nominal.times(reading.steering.parts(), Steering::ONE).unwrap_or(nominal);
        (steered, self.config.nominal_error_attos)
    }

    /// The old rate under the new steering.
    fn carried_rate(&self, state: &State, reading: &HostReading) -> Rate {
        if let Some(known) = reading.rate {
            return (known.period, known.error_attos);
        }
        let old = state.line.period();
        let period = old.times(reading.steering.parts(), state.steering.parts()).unwrap_or(old);
        // 2^-62 of rounding in each change.
        let est = state.line.errors().rate_est_attos.saturating_add(1);
        (period, if period == old { est - 1 } else { est.min(self.config.nominal_error_attos) })
    }
}

impl State {
    /// The carried rate, or the one measured since `first` where that is better.
    fn better_rate(&self, pair: Pair, carried: Rate) -> Rate {
        match measured(self.first, pair) {
            // Two statements that contradict each other: the pairs are facts.
            Some(fresh) if fresh.1 <= carried.1 => fresh,
            Some(fresh)
                if fresh.0.distance_attos(carried.0) > fresh.1.saturating_add(carried.1) =>
            {
                fresh
            }
            _ => carried,
        }
    }

    fn slide(&mut self, pair: Pair, baseline_ns: u64) {
        let longer = |from: Pair, ns: u64| pair.tai.distance_ns(from.tai) >= u128::from(ns);
        if longer(self.first, baseline_ns) {
            self.first = self.middle;
        }
        if longer(self.middle, baseline_ns / 2) {
            self.middle = pair;
        }
        self.last = pair;
    }
}

fn ticks_between(from: Pair, to: Pair) -> i64 {
    // The nearer way round, as `TaiLine::elapsed_ticks`.
    to.tsc.wrapping_sub(from.tsc).cast_signed()
}

/// The rate between two pairs and what their errors make of it.
fn measured(from: Pair, to: Pair) -> Option<Rate> {
    let ticks = u64::try_from(ticks_between(from, to)).ok()?;
    let units = to.tai.since(from.tai);
    let period = CounterPeriod::measured(units, ticks).ok()?;
    let elapsed_ns = to.tai.distance_ns(from.tai).saturating_sub(1);
    let noise_ns = u128::from(from.error_ns) + u128::from(to.error_ns) + 1;
    let attos = (noise_ns * 1_000_000_000_000_000_000).checked_div(elapsed_ns)?;
    Some((period, u64::try_from(attos).unwrap_or(u64::MAX).saturating_add(2)))
}

/// After a change that nobody announced: the mean rate since the last pair. The
/// rate now may lie as far beyond it again as it lies from the old one.
fn changed_rate(state: &State, pair: Pair) -> Rate {
    let old = (state.line.period(), state.line.errors().rate_est_attos);
    match measured(state.last, pair) {
        Some((period, noise)) => {
            let moved = period.distance_attos(old.0);
            (period, noise.saturating_add(moved).saturating_add(old.1))
        }
        None => old,
    }
}

/// The estimated distance of `line` from the host's clock at `counter`, ns.
fn estimated_error_ns(line: &TaiLine, counter: u64) -> u64 {
    let errors = line.errors();
    let estimate = TaiErrors {
        pair_ns: errors.pair_est_ns,
        rate_attos: errors.rate_est_attos,
        ..TaiErrors::default()
    };
    estimate.own_bound_ns(line.age_ns(counter))
}

#[cfg(test)]
mod tests;
