//! The laboratory: KVM's three clocks and ours over days and years.
//!
//! Closed forms at the moments asked for, no simulation of ticks: years take as
//! long as seconds. Everything is an error against the exact rate of the host's
//! TSC, or against UTC for the wallclocks; positive is fast.
//!
//! ```
//! use kvm_xen::clock::lab::{Scenario, Scaling};
//! let report = Scenario::new(3_000_000, 2_500_000, Scaling::Intel).run()?;
//! assert_eq!((report.b.ppb, report.ours.ppb), (400, 0));
//! assert_eq!(report.b.worst_ns / 100_000, 345); // 34.55 ms in a day
//! # Ok::<(), kvm_xen::clock::lab::LabError>(())
//! ```

use super::kvm_models::{KvmClocks, ModelError, linux_clocksource_rate};
use super::scaling::{FRAC_BITS_AMD, FRAC_BITS_INTEL};
use super::tai::CounterPeriod;
use super::wide::mul_div;
use super::{FrequencyError, LineError, NANOS_PER_SEC, SystemTimeLine, TscFrequency};

/// Hardware TSC scaling of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scaling {
    /// 48 fractional bits.
    Intel,
    /// 32 fractional bits.
    Amd,
    /// None: the guest has the host's frequency.
    None,
}

/// A stretch of NTP's work on the host: its clock runs `ppb` fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NtpStretch {
    /// How long, s of the exact rate.
    pub seconds: u64,
    /// Rate of UTC against the TSC, 10^-9. Positive: the host's clock is fast.
    pub ppb: i32,
    /// A step at the end of it, ns.
    pub step_ns: i64,
}

/// What is to be computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Host TSC, kHz.
    pub host_khz: u32,
    /// Guest TSC asked for, kHz. Not looked at without scaling.
    pub guest_khz: u32,
    /// Hardware.
    pub scaling: Scaling,
    /// The time looked at, s.
    pub seconds: u64,
    /// Points of each series, one at least.
    pub points: u32,
    /// A masterclock update of KVM's every so many seconds.
    pub update_every: Option<u64>,
    /// Whether CLOCK_MONOTONIC_RAW runs at the rate of Linux's clocksource, or
    /// at the exact one.
    pub linux_raw: bool,
    /// What NTP does, one stretch after the other; afterwards nothing.
    pub ntp: Vec<NtpStretch>,
    /// Our wallclock is rewritten when off by more than this, ns.
    pub wallclock_bound_ns: u64,
    /// How often that is looked at, ns.
    pub wallclock_look_ns: u64,
}

/// Why a scenario was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabError {
    /// KVM's clocks.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The guest's frequency.
    #[error(transparent)]
    Frequency(#[from] FrequencyError),
    /// Our line.
    #[error(transparent)]
    Line(#[from] LineError),
    /// A TSC wraps before.
    #[error(
        "{seconds} s are more than a TSC of {khz} kHz counts in 64 bits; look at a shorter time"
    )]
    TooLong {
        /// The time asked for, s.
        seconds: u64,
        /// The faster of the TSCs, kHz.
        khz: u32,
    },
    /// No points.
    #[error("a series of 0 points shows nothing; ask for 1 at least")]
    NoPoints,
}

/// The errors of one clock.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Track {
    /// (s, ns of error).
    pub points: Vec<(u64, i128)>,
    /// The largest magnitude at those points, and just before each jump, ns.
    pub worst_ns: u128,
    /// Drift between jumps in 10^-9, rounded to the nearest.
    pub ppb: i64,
    /// Times at which the clock jumped.
    pub jumps: u64,
    /// The jump of largest magnitude, ns; negative for backwards.
    pub worst_jump_ns: i128,
}

/// What the laboratory found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Definition A: CLOCK_MONOTONIC_RAW.
    pub a: Track,
    /// Definition B: what KVM's guests read. It jumps onto A at each update.
    pub b: Track,
    /// Definition C.
    pub c: Track,
    /// Our page: the line as a guest computes it, of 32 bits.
    pub ours: Track,
    /// Our line to 64 bits, as the VMClock states it.
    pub ours_tai: Track,
    /// UTC by KVM's wallclock, written once, and B.
    pub wallclock_kvm: Track,
    /// UTC by our wallclock. A rewrite is a jump.
    pub wallclock_ours: Track,
}

impl Scenario {
    /// A day with 100 points, no update, exact CLOCK_MONOTONIC_RAW, no NTP, a
    /// wallclock to 1 µs.
    #[must_use]
    pub const fn new(host_khz: u32, guest_khz: u32, scaling: Scaling) -> Self {
        Self {
            host_khz,
            guest_khz,
            scaling,
            seconds: 86_400,
            points: 100,
            update_every: None,
            linux_raw: false,
            ntp: Vec::new(),
            wallclock_bound_ns: 500,
            wallclock_look_ns: 1_000_000,
        }
    }

    /// Computes everything.
    ///
    /// # Errors
    /// [`LabError`] for frequencies that no machine has, or a time after which
    /// a TSC wraps (58 years at 10 GHz).
    pub fn run(&self) -> Result<Report, LabError> {
        let bench = Bench::new(self)?;
        let mut report = Report {
            a: self.track(|at| bench.a(at)),
            b: self.track(|at| bench.b(at)),
            c: self.track(|at| bench.c(at)),
            ours: self.track(|at| bench.ours(at)),
            ours_tai: self.track(|at| bench.ours_tai(at)),
            wallclock_kvm: self.track(|at| bench.wallclock_kvm(at)),
            wallclock_ours: self.track(|at| bench.wallclock_ours(at)),
        };
        self.jumps(&bench, &mut report);
        // Drift: over the longest stretch without a jump.
        let stretch = self.update_every.unwrap_or(self.seconds).min(self.seconds);
        for (track, error) in [
            (&mut report.a, bench.a(self.seconds)),
            (&mut report.c, bench.c(self.seconds)),
            (&mut report.ours, bench.ours(self.seconds)),
            (&mut report.ours_tai, bench.ours_tai(self.seconds)),
            (&mut report.wallclock_kvm, bench.wallclock_kvm(self.seconds)),
        ] {
            track.ppb = ppb(error, self.seconds);
        }
        report.b.ppb = ppb(bench.b_free(stretch), stretch);
        self.rewrites(&bench, &mut report.wallclock_ours);
        Ok(report)
    }

    fn track(&self, error: impl Fn(u64) -> i128) -> Track {
        let points = u128::from(self.points);
        let at = |n| u64::try_from(u128::from(self.seconds) * n / points).unwrap_or(self.seconds);
        let points: Vec<_> = (0..=points).map(at).map(|at| (at, error(at))).collect();
        let worst_ns = points.iter().map(|(_, error)| error.unsigned_abs()).max().unwrap_or(0);
        Track { points, worst_ns, ..Track::default() }
    }

    /// B's jumps: at the first update and the last, between which they change
    /// by what A's and B's rounding differ.
    fn jumps(&self, bench: &Bench<'_>, report: &mut Report) {
        let Some(every) = self.update_every.filter(|every| (1..=self.seconds).contains(every))
        else {
            return;
        };
        let count = self.seconds / every;
        for at in [every, count * every] {
            let before = bench.b_before_update(at);
            let jump = bench.a(at) - before;
            for (track, more) in [(&mut report.b, 0), (&mut report.wallclock_kvm, bench.utc(at))] {
                track.jumps = count;
                track.worst_ns = track.worst_ns.max((before - more).unsigned_abs());
                if jump.unsigned_abs() > track.worst_jump_ns.unsigned_abs() {
                    track.worst_jump_ns = jump;
                }
            }
        }
    }

    /// How often our wallclock was rewritten, and its largest error: the bound,
    /// and what comes up until somebody looks.
    fn rewrites(&self, bench: &Bench<'_>, track: &mut Track) {
        let (mut from, mut rewrites, mut worst, mut jump) = (0, 0u128, 0u128, 0i128);
        let own = bench.ours(self.seconds);
        let mut stretches = self.ntp.clone();
        let told: u64 = stretches.iter().fold(0, |sum, s| sum.saturating_add(s.seconds));
        let rest = self.seconds.saturating_sub(told);
        stretches.push(NtpStretch { seconds: rest, ppb: 0, step_ns: 0 });
        for stretch in stretches {
            let seconds = stretch.seconds.min(self.seconds - from);
            let utc = i128::from(seconds) * i128::from(stretch.ppb);
            let page = own * i128::from(seconds) / i128::from(self.seconds.max(1));
            let moved = (page - utc).unsigned_abs();
            let look = moved * u128::from(self.wallclock_look_ns)
                / (u128::from(seconds.max(1)) * u128::from(NANOS_PER_SEC));
            let reach = u128::from(self.wallclock_bound_ns) + look + 1;
            rewrites += moved / reach;
            worst = worst.max(moved.min(reach));
            if moved >= reach {
                jump = jump.max(i128::try_from(reach).unwrap_or(i128::MAX));
            }
            from += seconds;
            if stretch.step_ns != 0 && from <= self.seconds && seconds == stretch.seconds {
                rewrites += 1;
                if i128::from(stretch.step_ns).abs() > jump.abs() {
                    jump = stretch.step_ns.into();
                }
            }
        }
        track.jumps = u64::try_from(rewrites).unwrap_or(u64::MAX);
        track.worst_jump_ns = jump;
        track.worst_ns = track.worst_ns.max(worst);
    }
}

/// The clocks of one scenario.
struct Bench<'a> {
    scenario: &'a Scenario,
    clocks: KvmClocks,
    host_hz: u64,
    guest: TscFrequency,
    line: SystemTimeLine,
    period: CounterPeriod,
}

impl<'a> Bench<'a> {
    fn new(scenario: &'a Scenario) -> Result<Self, LabError> {
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
        let guest = clocks.scaling().guest_frequency(clocks.host_frequency())?;
        Ok(Self {
            scenario,
            clocks,
            host_hz: u64::from(scenario.host_khz) * 1_000,
            guest,
            line: SystemTimeLine::new(guest, 0, 0)?,
            period: CounterPeriod::of_frequency(guest),
        })
    }

    const fn ticks(&self, seconds: u64) -> u64 {
        // `new` saw that it fits.
        self.host_hz.wrapping_mul(seconds)
    }

    fn a(&self, at: u64) -> i128 {
        self.clocks.a_error_ns(self.ticks(at))
    }

    fn c(&self, at: u64) -> i128 {
        self.clocks.c_error_ns(self.ticks(at))
    }

    /// B since a start at 0, without an update.
    fn b_free(&self, at: u64) -> i128 {
        self.clocks.b_error_ns(0, self.ticks(at))
    }

    fn b(&self, at: u64) -> i128 {
        let update =
            self.scenario.update_every.map_or(0, |every| at - at.checked_rem(every).unwrap_or(at));
        self.b_from(update, at)
    }

    /// B at `at` when the last update was at `update`.
    fn b_from(&self, update: u64, at: u64) -> i128 {
        self.a(update) + self.clocks.b_error_ns(self.ticks(update), self.ticks(at - update))
    }

    fn b_before_update(&self, at: u64) -> i128 {
        let every = self.scenario.update_every.unwrap_or(at);
        self.b_from(at.saturating_sub(every), at)
    }

    /// Our page against the exact rate of the guest's TSC.
    fn ours(&self, at: u64) -> i128 {
        self.line.rounding_error_ns(self.clocks.scaling().guest_tsc(self.ticks(at)))
    }

    /// The same of 64 bits: whole ns.
    fn ours_tai(&self, at: u64) -> i128 {
        let ticks = self.clocks.scaling().guest_tsc(self.ticks(at));
        let units = self.period.units_in(ticks);
        // Below 2^116; the quotient has no more bits than the time.
        let exact = mul_div(ticks, u128::from(self.guest.den()) << 64, self.guest.num());
        let exact = exact.map_or(units, |(floor, _)| floor);
        let ns = (exact.abs_diff(units) * u128::from(NANOS_PER_SEC)) >> 64;
        -i128::try_from(ns).unwrap_or(i128::MAX)
    }

    /// UTC less the exact rate at `at`, ns.
    fn utc(&self, at: u64) -> i128 {
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

    fn wallclock_kvm(&self, at: u64) -> i128 {
        self.b(at) - self.utc(at)
    }

    /// What is left of the drift since the last rewrite.
    fn wallclock_ours(&self, at: u64) -> i128 {
        let drift = self.ours(at) - self.utc(at);
        let reach = i128::from(self.scenario.wallclock_bound_ns) + 1;
        drift % reach
    }
}

/// `error / seconds` in 10^-9, rounded to the nearest.
fn ppb(error_ns: i128, seconds: u64) -> i64 {
    let seconds = i128::from(seconds.max(1));
    let half = seconds / 2 * error_ns.signum();
    i64::try_from((error_ns + half) / seconds).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
