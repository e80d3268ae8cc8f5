//! From the moment at which a guest's time stopped to the TSC at which it goes
//! on. Pure: readings in, one number out; nobody reads a clock here.
//!
//! The line from guest TSC to system time is not touched by any of it, but where a
//! guest that suspended itself finds another frequency ([`FrequencyPlan::Advertised`]).
//! What a policy chooses is the guest TSC:
//!
//! | policy | guest TSC when it goes on |
//! | --- | --- |
//! | freeze | as it stopped |
//! | advance, same host and boot | as if it had never stopped: the host's TSC counted the gap |
//! | advance, elsewhere | stopped + Δ(TAI) × frequency, rounded down |
//!
//! Worked example, 2 GHz: stopped at 10^12 ticks; 2.5 s of TAI later, elsewhere,
//! it goes on at 10^12 + 5 × 10^9, known to the sum of both pairs' errors.

use serde::{Deserialize, Serialize};

use crate::clock::scaling::{FRAC_BITS_AMD, FRAC_BITS_INTEL, ScalingError, TscScaling, TscStart};
use crate::clock::tai::Tai;
use crate::clock::{FrequencyError, LineError, SystemTimeLine, TscFrequency};

/// The longest jump that a guest's own arithmetic survives, in ticks: 800 s at
/// 1 GHz. Older Linux multiplies the cycles since its last tick, by about 2^24
/// ns per cycle at 1 GHz, in 64 bits, and falls behind for good beyond.
pub const MAX_JUMP_TICKS: u64 = 800_000_000_000;
/// What KVM takes for the same frequency: `tsc_tolerance_ppm`.
const TOLERANCE_PPM: u64 = 250;

/// How a guest's clocks get over the time in which it did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimePolicy {
    /// Every clock reads as if nothing had happened.
    Advance,
    /// TSC and system time go on from where they stopped.
    Freeze,
    /// The guest suspended itself, and is told how long it was away.
    Inject,
}

/// A guest's clock when it stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoppedClock {
    /// Frequency of the line in Hz, reduced.
    pub frequency_num: u128,
    /// Its denominator.
    pub frequency_den: u64,
    /// `tsc_timestamp` of the published line.
    pub base_tsc: u64,
    /// `system_time` of the published line, ns.
    pub base_system_time_ns: u64,
    /// `tsc_to_system_mul`.
    pub mul: u32,
    /// `tsc_shift`.
    pub shift: i8,
    /// The guest TSC's frequency as KVM states it, kHz.
    pub tsc_khz: u32,
    /// Guest TSC after the last instruction.
    pub guest_tsc: u64,
    /// Host TSC of the pair.
    pub host_tsc: u64,
    /// Guest TSC of the pair.
    pub pair_guest_tsc: u64,
    /// TAI of the pair, units of 2^-64 s.
    pub tai: i128,
    /// Whether the host knew TAI − UTC; if not, `tai` is its UTC.
    pub tai_known: bool,
    /// How far the pair may be off, ns.
    pub pair_error_ns: u64,
    /// How far the host's clock may be from TAI, ns, as far as it knew.
    pub host_error_ns: u64,
    /// This boot of the host: `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// The guest suspended itself before it was stopped.
    pub suspended: bool,
    /// `incarnation` of CPUID leaf 3: 1, and 1 more for each move. From format
    /// version 2 on; a state of version 1 has never been moved.
    #[serde(default = "first_incarnation")]
    pub incarnation: u32,
}

fn first_incarnation() -> u32 {
    1
}

/// The host on which the guest goes on, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostNow {
    /// Host TSC of the pair.
    pub host_tsc: u64,
    /// TAI of the pair.
    pub tai: Tai,
    /// As [`StoppedClock::tai_known`].
    pub tai_known: bool,
    /// As [`StoppedClock::pair_error_ns`].
    pub pair_error_ns: u64,
    /// As [`StoppedClock::host_error_ns`].
    pub host_error_ns: u64,
    /// As [`StoppedClock::boot_id`].
    pub boot_id: String,
}

/// What counted the time between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bridge {
    /// Nothing: time stood still.
    None,
    /// The host's TSC, of the same boot: exact.
    HostTsc,
    /// TAI of two readings.
    Tai,
}

/// How time went on. What is told to whoever tells the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoredTime {
    /// By which policy.
    pub policy: TimePolicy,
    /// Where the TSC goes on.
    pub start: TscStart,
    /// What counted the gap.
    pub bridge: Bridge,
    /// How long the guest was away by the host's clocks, ns, as far as they
    /// tell; negative where the host's clock was set back.
    pub away_ns: i128,
    /// How far the guest's clock may be from where it would have been, ns; 0 for
    /// the same boot and for freeze.
    pub error_ns: u64,
    /// The part of it that is not the two hosts' distance from true time, ns: what
    /// their readings and the arithmetic may be off.
    pub own_error_ns: u64,
    /// The guest's incarnation from now on.
    pub incarnation: u32,
}

/// Why time can not go on as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// `inject` without the guest's cooperation.
    #[error(
        "--time inject: the guest had not suspended itself when it was saved, so nothing in it \
         asks how long it was away; take --time advance or freeze, or suspend it first"
    )]
    NotSuspended,
    /// The jump is more than the guest survives.
    #[error(
        "--time advance: the guest was away for {away_s} s, and its clocksource stands a jump of \
         {most_s} s at {khz} kHz; take --time freeze, or suspend the guest before it is saved and \
         take --time inject"
    )]
    TooFar {
        /// Seconds away.
        away_s: u64,
        /// The most.
        most_s: u64,
        /// The guest's frequency.
        khz: u32,
    },
    /// The host's clock is behind the moment of saving.
    #[error(
        "--time advance: this host's clock is {behind_ns} ns behind the moment at which the guest \
         was saved; set it, or take --time freeze"
    )]
    Behind {
        /// By how much.
        behind_ns: u128,
    },
    /// Only one of the hosts knows TAI.
    #[error(
        "--time advance: {who} host does not know TAI - UTC, the other does; set it (adjtimex, or \
         chrony's leapsectz), or take --time freeze"
    )]
    TaiUnknown {
        /// Which.
        who: &'static str,
    },
    /// The host's TSC has another frequency.
    #[error(
        "the guest's TSC runs at {guest_khz} kHz, this host's at {host_khz} kHz, {ppm} ppm from \
         it: more than {TOLERANCE_PPM} ppm, and this host cannot scale a TSC; restore it on a host \
         of its frequency, or on one with TSC scaling, or suspend it before it is saved and take \
         --time inject"
    )]
    Frequency {
        /// The guest's.
        guest_khz: u32,
        /// The host's.
        host_khz: u32,
        /// How far apart, rounded up.
        ppm: u64,
    },
    /// No multiplier of this host's makes that frequency.
    #[error(transparent)]
    Scaling(#[from] ScalingError),
    /// What was saved is no clock.
    #[error("the saved clock is none: {0}")]
    Line(#[from] LineError),
    /// What was saved is no frequency.
    #[error("the saved clock is none: {0}")]
    SavedFrequency(#[from] FrequencyError),
}

/// How a host makes a guest's frequency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrequencyPlan {
    /// It is the host's, to this many parts in 10^9 (as stated: both sides round
    /// to kHz). KVM does not scale within 250 ppm.
    Host {
        /// Host less guest, 10^-9 of the guest's.
        off_ppb: i64,
    },
    /// The hardware scales; the offset is yet to be set.
    Scaled(TscScaling),
    /// It is the host's, however far that is from what it was. The guest suspended
    /// itself, so that it sets its clocks up anew and finds the other frequency there.
    Advertised,
}

impl FrequencyPlan {
    /// How `host_khz` becomes `guest_khz`. `scaling` are the fractional bits of
    /// this host's multiplier, `None` where it has none; `anew`, that the guest sets
    /// its clocks up anew.
    ///
    /// # Errors
    /// [`TimeError::Frequency`], [`TimeError::Scaling`].
    pub fn new(
        guest_khz: u32,
        host_khz: u32,
        scaling: Option<u8>,
        anew: bool,
    ) -> Result<Self, TimeError> {
        let apart = u64::from(guest_khz.abs_diff(host_khz));
        let guest = u64::from(guest_khz.max(1));
        // As KVM computes its limits, in whole kHz.
        if apart <= guest * TOLERANCE_PPM / 1_000_000 {
            let ppb = i64::try_from(apart * 1_000_000_000 / guest).unwrap_or(i64::MAX);
            let off_ppb = if host_khz < guest_khz { -ppb } else { ppb };
            return Ok(Self::Host { off_ppb });
        }
        match scaling {
            Some(bits) => Ok(Self::Scaled(TscScaling::for_khz(guest_khz, host_khz, bits, 0)?)),
            None if anew => Ok(Self::Advertised),
            None => {
                let ppm = (apart * 1_000_000).div_ceil(guest);
                Err(TimeError::Frequency { guest_khz, host_khz, ppm })
            }
        }
    }

    /// Fractional bits of the multiplier on a host of this CPUID vendor.
    #[must_use]
    pub fn frac_bits(amd: bool) -> u8 {
        if amd { FRAC_BITS_AMD } else { FRAC_BITS_INTEL }
    }

    /// The TSC of the guest, its offset 0.
    #[must_use]
    pub fn scaling(&self) -> TscScaling {
        match self {
            Self::Host { .. } | Self::Advertised => TscScaling::unscaled(0),
            Self::Scaled(scaling) => *scaling,
        }
    }
}

impl StoppedClock {
    /// The line, the same as before.
    ///
    /// # Errors
    /// [`TimeError::Line`], [`TimeError::SavedFrequency`] for what no guest has.
    pub fn line(&self) -> Result<SystemTimeLine, TimeError> {
        let frequency = self.frequency()?;
        let (tsc, ns) = (self.base_tsc, self.base_system_time_ns);
        Ok(SystemTimeLine::with_published(frequency, tsc, ns, self.mul, self.shift)?)
    }

    /// System time when the guest stopped, ns.
    ///
    /// # Errors
    /// As [`line`](Self::line).
    pub fn system_time_ns(&self) -> Result<u64, TimeError> {
        Ok(self.line()?.system_time_ns(self.guest_tsc))
    }

    /// The line for a TSC that goes on at `khz`: from where the last one came to, as
    /// fast as that.
    ///
    /// # Errors
    /// As [`line`](Self::line); [`TimeError::Line`] where `khz` makes none.
    pub fn line_at(&self, khz: u32) -> Result<SystemTimeLine, TimeError> {
        let frequency = TscFrequency::from_khz(u64::from(khz))?;
        let stopped_ns = self.system_time_ns()?;
        Ok(SystemTimeLine::new_keeping_linux_khz(frequency, self.guest_tsc, stopped_ns)?)
    }

    /// The line's frequency, exact.
    ///
    /// # Errors
    /// [`TimeError::SavedFrequency`].
    pub fn frequency(&self) -> Result<TscFrequency, TimeError> {
        let num = u64::try_from(self.frequency_num).map_err(|_| FrequencyError::OutOfRange {
            num: self.frequency_num,
            den: self.frequency_den.into(),
        })?;
        Ok(TscFrequency::from_ratio(num, self.frequency_den)?)
    }

    /// Where the guest's TSC goes on.
    ///
    /// # Errors
    /// [`TimeError`]: the policy can not be kept.
    pub fn restart(&self, policy: TimePolicy, now: &HostNow) -> Result<RestoredTime, TimeError> {
        let frequency = self.frequency()?;
        let away_units = now.tai.since(Tai::from_units(self.tai));
        let away = |units: i128| Tai::from_units(units).ns_floor();
        let restored = |start, bridge, hosts_error_ns: u64, own_error_ns: u64| RestoredTime {
            policy,
            start,
            bridge,
            away_ns: away(away_units),
            error_ns: own_error_ns.saturating_add(hosts_error_ns),
            own_error_ns,
            incarnation: self.incarnation.saturating_add(1),
        };
        match policy {
            TimePolicy::Inject if !self.suspended => Err(TimeError::NotSuspended),
            TimePolicy::Freeze | TimePolicy::Inject => {
                let start = TscStart::WhenSet { guest_tsc: self.guest_tsc };
                Ok(restored(start, Bridge::None, 0, 0))
            }
            TimePolicy::Advance => {
                if let Some(ticks) = self.same_boot_ticks(now, frequency, away_units) {
                    self.check_jump(ticks)?;
                    // Through the pair of the stop: the offset is what it was.
                    let (host_tsc, guest_tsc) = (self.host_tsc, self.pair_guest_tsc);
                    let start = TscStart::At { host_tsc, guest_tsc };
                    return Ok(restored(start, Bridge::HostTsc, 0, 0));
                }
                match (self.tai_known, now.tai_known) {
                    (false, true) => return Err(TimeError::TaiUnknown { who: "the saving" }),
                    (true, false) => return Err(TimeError::TaiUnknown { who: "this" }),
                    _ => {}
                }
                let ticks = ticks_of(frequency, away_units)
                    .ok_or(TimeError::Behind { behind_ns: away(away_units).unsigned_abs() })?;
                let ticks = u64::try_from(ticks).unwrap_or(u64::MAX);
                self.check_jump(ticks)?;
                let guest_tsc = self.pair_guest_tsc.wrapping_add(ticks);
                let start = TscStart::At { host_tsc: now.host_tsc, guest_tsc };
                let pairs = self.pair_error_ns.saturating_add(now.pair_error_ns);
                let hosts = self.host_error_ns.saturating_add(now.host_error_ns);
                // Two ticks of rounding, at least 1 ns.
                let rounding = u64::try_from(frequency.nanos_floor(2)).unwrap_or(0) + 1;
                Ok(restored(start, Bridge::Tai, hosts, pairs.saturating_add(rounding)))
            }
        }
    }

    /// Ticks that this host's TSC counted since the stop, if it is the same one
    /// that still counts: the same boot, ahead, and no further from TAI than
    /// clocks that are steered go. A TSC that a sleep of the host set back, or
    /// that stood still over one, is found by that.
    fn same_boot_ticks(
        &self,
        now: &HostNow,
        frequency: TscFrequency,
        away_units: i128,
    ) -> Option<u64> {
        if self.boot_id.is_empty() || self.boot_id != now.boot_id {
            return None;
        }
        let ticks = now.host_tsc.checked_sub(self.host_tsc)?;
        let by_tai = ticks_of(frequency, away_units)?;
        let apart = by_tai.abs_diff(u128::from(ticks));
        // 1000 ppm, a millisecond, and what the pairs may be off.
        let slack = u128::from(ticks) / 1000 + u128::from(self.tsc_khz);
        (apart <= slack).then_some(ticks)
    }

    fn check_jump(&self, ticks: u64) -> Result<(), TimeError> {
        if ticks <= MAX_JUMP_TICKS {
            return Ok(());
        }
        let hertz = u64::from(self.tsc_khz.max(1)) * 1000;
        let (away_s, most_s) = (ticks / hertz, MAX_JUMP_TICKS / hertz);
        Err(TimeError::TooFar { away_s, most_s, khz: self.tsc_khz })
    }
}

/// Ticks in `units` of 2^-64 s, rounded down, at most one too few; `None` for a
/// negative time.
fn ticks_of(frequency: TscFrequency, units: i128) -> Option<u128> {
    let units = u128::try_from(units).ok()?;
    let (seconds, fraction) = (units >> 64, units & u128::from(u64::MAX));
    let den = u128::from(frequency.den());
    // Whole Hz below 2^37, the rest below den ≤ 2^52.
    let (hertz, rest) = (frequency.num() / den, frequency.num() % den);
    let whole = seconds.checked_mul(hertz)?.checked_add((fraction * hertz) >> 64)?;
    // seconds below 2^64, so the product is below 2^116 + 2^116.
    let part = seconds.checked_mul(rest)? + ((fraction * rest) >> 64);
    whole.checked_add(part / den)
}

#[cfg(test)]
mod tests;
