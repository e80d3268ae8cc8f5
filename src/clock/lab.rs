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

mod bench;

use super::kvm_models::ModelError;
use super::{FrequencyError, LineError, NANOS_PER_SEC};
use bench::{Bench, per_day, ppb};

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

/// When KVM's masterclock is updated.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Updates {
    /// Not after the start.
    #[default]
    Never,
    /// Every so many seconds; 0 is never.
    Every(u64),
    /// At these moments, s. In any order; 0 and what comes after the end do not
    /// count.
    At(Vec<u64>),
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
    /// Masterclock updates of KVM's.
    pub updates: Updates,
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
    /// (s, ns of error). Before a masterclock update and after it are two points
    /// of one second.
    pub points: Vec<(u64, i128)>,
    /// The largest magnitude at those points, and just before each jump, ns.
    pub worst_ns: u128,
    /// Drift between jumps in 10^-9, rounded to the nearest.
    pub ppb: i64,
    /// The same in ns a day, rounded to the nearest.
    pub per_day_ns: i128,
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
    /// The same with the multiplier that lets Linux read the true kHz.
    pub ours_khz: Track,
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
            updates: Updates::Never,
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
        let moments = self.moments(&bench);
        let track = |error: &dyn Fn(u64) -> i128| track(&moments, |at, _| error(at));
        // B as it was when an update came, and as it is from then on.
        let b = |at, before| if before { bench.b_before_update(at) } else { bench.b(at) };
        let mut report = Report {
            a: track(&|at| bench.a(at)),
            b: self::track(&moments, b),
            c: track(&|at| bench.c(at)),
            ours: track(&|at| bench.ours(at)),
            ours_khz: track(&|at| bench.ours_khz(at)),
            ours_tai: track(&|at| bench.ours_tai(at)),
            wallclock_kvm: self::track(&moments, |at, before| b(at, before) - bench.utc(at)),
            wallclock_ours: track(&|at| bench.wallclock_ours(at)),
        };
        Self::jumps(&bench, &mut report);
        // Drift: over the longest stretch without a jump.
        let stretch = bench.longest_stretch();
        let end = self.seconds;
        for (track, error, seconds) in [
            (&mut report.a, bench.a(end), end),
            (&mut report.b, bench.b_free(stretch), stretch),
            (&mut report.c, bench.c(end), end),
            (&mut report.ours, bench.ours(end), end),
            (&mut report.ours_khz, bench.ours_khz(end), end),
            (&mut report.ours_tai, bench.ours_tai(end), end),
            (&mut report.wallclock_kvm, bench.b(end) - bench.utc(end), end),
        ] {
            track.ppb = ppb(error, seconds);
            track.per_day_ns = per_day(error, seconds);
        }
        self.rewrites(&bench, &mut report.wallclock_ours);
        Ok(report)
    }

    /// The moments of the series, and before them, marked, the last update of
    /// KVM's in each interval: so the range of its clock is seen even where
    /// there are more updates than points.
    fn moments(&self, bench: &Bench<'_>) -> Vec<(u64, bool)> {
        let points = u128::from(self.points);
        let at = |n| u64::try_from(u128::from(self.seconds) * n / points).unwrap_or(self.seconds);
        let mut moments: Vec<(u64, bool)> = Vec::new();
        for at in (0..=points).map(at) {
            let update = bench.last_update(at);
            if update > moments.last().map_or(0, |(last, _)| *last) {
                moments.extend([(update, true), (update, false)]);
            }
            if moments.last() != Some(&(at, false)) || update != at {
                moments.push((at, false));
            }
        }
        moments
    }

    /// B's jumps. Where they come at an interval only the first and the last are
    /// looked at, between which they change by what A's and B's rounding differ.
    fn jumps(bench: &Bench<'_>, report: &mut Report) {
        let (count, looked_at) = bench.updates();
        for at in looked_at {
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

fn track(moments: &[(u64, bool)], error: impl Fn(u64, bool) -> i128) -> Track {
    let points: Vec<_> = moments.iter().map(|&(at, before)| (at, error(at, before))).collect();
    let worst_ns = points.iter().map(|(_, error)| error.unsigned_abs()).max().unwrap_or(0);
    Track { points, worst_ns, ..Track::default() }
}

#[cfg(test)]
mod tests;
