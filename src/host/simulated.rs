//! A host whose clocks follow a script: for tests, and for the laboratory.
//!
//! Behaves as Linux does: the TSC and CLOCK_MONOTONIC_RAW run at one rate,
//! CLOCK_TAI and CLOCK_MONOTONIC at the steered one; a leap second moves UTC and
//! TAI − UTC, never TAI; `maxerror` grows by 500 ppm while nobody corrects it.
//! It knows the truth, so that a line can be held against it.

use crate::clock::tai::{
    CounterPeriod, HostLeap, HostReading, HostSync, LeapKind, LeapSecond, Steering, Tai, TaiOffset,
};
use crate::clock::{NANOS_PER_SEC, TscFrequency};

use super::pair::{PairError, PairSource, SourceKind};

/// Something that happens to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// `adjtimex` with ADJ_FREQUENCY: ppm in units of 2^-16.
    Frequency(i64),
    /// `adjtime`: the clock runs by `ppb` faster for `ns`, and `adjtimex` does
    /// not show it.
    Slew {
        /// Parts in 10^9, positive for faster.
        ppb: i64,
        /// For how long, ns.
        ns: u64,
    },
    /// The clock is set forward or back, ns.
    Step(i64),
    /// A leap second is ordered for the end of the UTC day.
    OrderLeap(LeapKind),
    /// The order is taken back, or the memory of a leap second that was.
    ClearLeap,
    /// Somebody corrects the clock: this is its largest error, ns.
    Sync(u64),
    /// STA_UNSYNC.
    LoseSync,
    /// The host sleeps for ns: TAI goes on, CLOCK_MONOTONIC does not.
    Suspend {
        /// How long, ns.
        ns: u64,
        /// What its TSC does meanwhile.
        tsc: SleepingTsc,
    },
}

/// What a TSC does while its host sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SleepingTsc {
    /// It counts on.
    Runs,
    /// It stands still.
    Stops,
    /// It starts again at 0.
    Resets,
}

/// The host. [`advance`](Self::advance) makes time pass.
#[derive(Clone, Debug)]
pub struct SimulatedHost {
    raw: CounterPeriod,
    /// Ticks since the start, slept ones not counted: what the script goes by.
    elapsed: u64,
    /// TSC less `elapsed`.
    tsc_ahead: u64,
    /// The present piece: from here on at one rate.
    from: u64,
    tai: Tai,
    period: CounterPeriod,
    freq: i64,
    slew_ppb: i64,
    slew_until: Option<u64>,
    /// TAI less CLOCK_MONOTONIC, in units of 2^-64 s: what steps and sleep add.
    monotonic_behind: i128,
    synced_at: u64,
    sync: HostSync,
    leap: Option<LeapSecond>,
    /// By elapsed ticks; the next one last.
    script: Vec<(u64, Event)>,
}

/// USER_HZ ticks of nominal length.
const NOMINAL_TICK: i64 = 10_000;

impl SimulatedHost {
    /// A synchronised host at UTC `utc_sec`, TAI 37 s ahead, its TSC at 0. The
    /// script's times are ns of CLOCK_MONOTONIC_RAW from now on; it may come in
    /// any order.
    #[must_use]
    pub fn new(frequency: TscFrequency, utc_sec: i64, script: &[(u64, Event)]) -> Self {
        let raw = CounterPeriod::of_frequency(frequency);
        let ticks =
            |ns: u64| raw.ticks_to_reach((u128::from(ns) << 64) / u128::from(NANOS_PER_SEC));
        let mut script: Vec<_> = script.iter().map(|(at, event)| (ticks(*at), *event)).collect();
        script.sort_by_key(|(at, _)| *at);
        script.reverse();
        let tai_offset = TaiOffset::Known(37);
        Self {
            raw,
            elapsed: 0,
            tsc_ahead: 0,
            from: 0,
            tai: Tai::new(utc_sec.saturating_add(37), 0),
            period: raw,
            freq: 0,
            slew_ppb: 0,
            slew_until: None,
            monotonic_behind: Tai::new(utc_sec.saturating_add(37), 0).units(),
            synced_at: 0,
            sync: HostSync { synchronized: true, tai_offset, ..HostSync::default() },
            leap: None,
            script,
        }
    }

    /// The TSC now.
    #[must_use]
    pub const fn host_tsc(&self) -> u64 {
        self.elapsed.wrapping_add(self.tsc_ahead)
    }

    /// Ticks since the start, without those that passed in sleep.
    #[must_use]
    pub const fn elapsed_ticks(&self) -> u64 {
        self.elapsed
    }

    /// CLOCK_TAI now, exactly.
    #[must_use]
    pub fn tai(&self) -> Tai {
        self.tai_at(self.elapsed)
    }

    /// UTC now: TAI less the offset.
    #[must_use]
    pub fn utc(&self) -> Tai {
        self.tai().saturating_add_sec(-i64::from(self.sync.tai_offset.seconds()))
    }

    /// CLOCK_MONOTONIC now, ns from the start.
    #[must_use]
    pub fn monotonic_ns(&self) -> i128 {
        self.tai().saturating_add(-self.monotonic_behind).ns_floor()
    }

    /// CLOCK_MONOTONIC_RAW now, ns from the start.
    #[must_use]
    pub fn raw_ns(&self) -> i128 {
        Tai::from_units(i128::try_from(self.raw.units_in(self.elapsed)).unwrap_or(i128::MAX))
            .ns_floor()
    }

    /// What `adjtimex` says now.
    #[must_use]
    pub fn sync(&self) -> HostSync {
        // 500 ppm since the last correction.
        let since = self.raw.units_in(self.elapsed - self.synced_at) / 2_000;
        let grown_ns = (since * u128::from(NANOS_PER_SEC)) >> 64;
        let grown_ns = u64::try_from(grown_ns).unwrap_or(u64::MAX);
        HostSync { maxerror_ns: self.sync.maxerror_ns.saturating_add(grown_ns), ..self.sync }
    }

    /// A reading now, off by `noise_ns`, which the caller keeps within
    /// `error_ns`.
    #[must_use]
    pub fn reading(&self, error_ns: u64, noise_ns: i64) -> HostReading {
        let noise = Tai::from_ns(noise_ns.into()).map_or(0, Tai::units);
        HostReading {
            host_tsc: self.host_tsc(),
            tai: self.tai().saturating_add(noise),
            error_ns,
            steering: Steering::from_timex(self.freq, NOMINAL_TICK),
            rate: None,
            sync: self.sync(),
        }
    }

    /// Lets `ticks` pass and everything happen that falls into them.
    pub fn advance(&mut self, ticks: u64) {
        let end = self.elapsed.saturating_add(ticks);
        loop {
            let script = self.script.last().map(|(at, _)| *at);
            let leap = self.leap_edge();
            let next = [script, self.slew_until, leap].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            let next = next.max(self.elapsed);
            self.pass_to(next);
            if self.slew_until == Some(next) {
                self.slew_until = None;
                self.slew_ppb = 0;
            }
            if leap == Some(next) {
                self.cross_leap();
            }
            if script == Some(next)
                && let Some((_, event)) = self.script.pop()
            {
                self.happen(event);
            }
            self.period = self.steered();
        }
        self.elapsed = end;
    }

    fn tai_at(&self, elapsed: u64) -> Tai {
        let units = self.period.units_in(elapsed.saturating_sub(self.from));
        self.tai.saturating_add(i128::try_from(units).unwrap_or(i128::MAX))
    }

    /// Begins a new piece at `elapsed`.
    fn pass_to(&mut self, elapsed: u64) {
        self.tai = self.tai_at(elapsed);
        self.from = elapsed;
        self.elapsed = elapsed;
    }

    /// Raw rate × (steering + slew), exactly as the parts are.
    fn steered(&self) -> CounterPeriod {
        const BILLION: u64 = 1_000_000_000;
        let slewed = BILLION.saturating_add_signed(self.slew_ppb);
        // Steering::ONE is 65.536 × 10^9: the sum of both over a common unit.
        let parts = Steering::from_timex(self.freq, NOMINAL_TICK).parts();
        let slew = i64::try_from(slewed).unwrap_or(0) - 1_000_000_000;
        let parts = (parts * 1_000).saturating_add_signed(slew.saturating_mul(65_536));
        self.raw.times(parts, Steering::ONE * 1_000).unwrap_or(self.raw)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Frequency(freq) => self.freq = freq,
            Event::Slew { ppb, ns } => {
                let units = (u128::from(ns) << 64) / u128::from(NANOS_PER_SEC);
                self.slew_ppb = ppb;
                self.slew_until = Some(self.elapsed.saturating_add(self.raw.ticks_to_reach(units)));
            }
            Event::Step(ns) => self.jump(Tai::from_ns(ns.into()).map_or(0, Tai::units)),
            Event::OrderLeap(kind) => {
                let utc = self.utc().sec();
                self.leap = Some(LeapSecond {
                    kind,
                    utc_midnight: (utc.div_euclid(86_400) + 1) * 86_400,
                    offset_before: self.sync.tai_offset.seconds(),
                });
                self.sync.leap = match kind {
                    LeapKind::Positive => HostLeap::Insert,
                    LeapKind::Negative => HostLeap::Delete,
                };
            }
            Event::ClearLeap => {
                self.leap = None;
                self.sync.leap = HostLeap::None;
            }
            Event::Sync(maxerror_ns) => {
                self.sync.synchronized = true;
                self.sync.maxerror_ns = maxerror_ns;
                self.sync.esterror_ns = maxerror_ns / 2;
                self.synced_at = self.elapsed;
            }
            Event::LoseSync => {
                self.sync.synchronized = false;
                self.sync.maxerror_ns = 16_000_000_000;
                self.synced_at = self.elapsed;
            }
            Event::Suspend { ns, tsc } => {
                let units = (u128::from(ns) << 64) / u128::from(NANOS_PER_SEC);
                self.jump(i128::try_from(units).unwrap_or(i128::MAX));
                self.tsc_ahead = match tsc {
                    SleepingTsc::Runs => {
                        self.tsc_ahead.wrapping_add(self.raw.ticks_to_reach(units))
                    }
                    SleepingTsc::Stops => self.tsc_ahead,
                    SleepingTsc::Resets => 0u64.wrapping_sub(self.elapsed),
                };
            }
        }
    }

    /// TAI moves, CLOCK_MONOTONIC does not.
    fn jump(&mut self, units: i128) {
        self.tai = self.tai.saturating_add(units);
        self.monotonic_behind = self.monotonic_behind.saturating_add(units);
    }

    /// Elapsed ticks at which 23:59:60 begins, or ends.
    fn leap_edge(&self) -> Option<u64> {
        let leap = self.leap?;
        let edge = match self.sync.leap {
            HostLeap::Insert | HostLeap::Delete => leap.tai_start(),
            HostLeap::InProgress => leap.tai_midnight(),
            HostLeap::None | HostLeap::Over => return None,
        };
        let ahead = u128::try_from(edge.since(self.tai).max(0)).unwrap_or(0);
        Some(self.from.saturating_add(self.period.ticks_to_reach(ahead)))
    }

    fn cross_leap(&mut self) {
        let Some(leap) = self.leap else { return };
        self.sync.tai_offset = TaiOffset::Known(leap.offset_after());
        self.sync.leap = match (self.sync.leap, leap.kind) {
            (HostLeap::Insert, LeapKind::Positive) => HostLeap::InProgress,
            _ => HostLeap::Over,
        };
    }
}

/// The simulation as a source: each reading lets `step` ticks pass first.
#[derive(Clone, Debug)]
pub struct SimulatedSource {
    /// The host.
    pub host: SimulatedHost,
    /// Ticks between two readings.
    pub step: u64,
    /// Error of each reading, ns.
    pub error_ns: u64,
}

impl PairSource for SimulatedSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Simulated
    }

    fn read(&mut self) -> Result<HostReading, PairError> {
        self.host.advance(self.step);
        Ok(self.host.reading(self.error_ns, 0))
    }
}

#[cfg(test)]
mod tests;
