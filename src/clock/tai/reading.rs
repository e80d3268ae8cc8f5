//! What a host says of its clocks at one moment, as plain values.

use super::{CounterPeriod, Tai};

/// One reading of a host: a pair, and what the kernel says of its clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostReading {
    /// Host TSC of the pair.
    pub host_tsc: u64,
    /// The host's CLOCK_TAI (or its UTC, where the offset is unknown) then.
    pub tai: Tai,
    /// How far `tai` may be from CLOCK_TAI at `host_tsc`, ns.
    pub error_ns: u64,
    /// How the kernel steers its clock.
    pub steering: Steering,
    /// The rate, where the source states one (a VMClock does).
    pub rate: Option<KnownRate>,
    /// Synchronisation and leap seconds.
    pub sync: HostSync,
}

/// A rate that a source states, with its error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownRate {
    /// Of the host's counter.
    pub period: CounterPeriod,
    /// How far the true rate may be from it, 10^-18.
    pub error_attos: u64,
}

/// The kernel's own statement of the rate of its clock against its
/// clocksource: `tick / nominal tick + freq`, in units of 2^-16 × 10^-6.
///
/// Exact, as `adjtimex` counts: `freq` has 16 fractional bits of ppm, and a
/// `tick` of 10 000 µs is nominal (USER_HZ is 100). What the kernel adds for a
/// pending offset (`ADJ_OFFSET`, `adjtime`) is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Steering {
    parts: u64,
}

impl Steering {
    /// Parts of the nominal rate.
    pub const ONE: u64 = 65_536_000_000;
    /// An unsteered clock.
    pub const NOMINAL: Self = Self { parts: Self::ONE };

    /// From `timex.freq` (ppm in units of 2^-16) and `timex.tick` (µs). Beyond
    /// what the kernel admits (±500 ppm, 9 000 to 11 000 µs) the nearest that
    /// it does.
    #[must_use]
    pub fn from_timex(freq: i64, tick: i64) -> Self {
        const PER_TICK: u64 = 6_553_600; // 100 ppm
        const MAX_FREQ: i64 = 500 << 16;
        let tick = u64::try_from(tick.clamp(9_000, 11_000)).unwrap_or(10_000);
        let freq = freq.clamp(-MAX_FREQ, MAX_FREQ);
        Self { parts: (tick * PER_TICK).saturating_add_signed(freq) }
    }

    /// The rate in units of 1/[`ONE`](Self::ONE).
    #[must_use]
    pub const fn parts(self) -> u64 {
        self.parts
    }

    /// How far from nominal, 10^-18.
    #[must_use]
    pub const fn distance_attos(self) -> u64 {
        // At most 10 % + 500 ppm: 2^-16 ppm is 15 258 789.0625 × 10^-18.
        let parts = self.parts.abs_diff(Self::ONE) as u128 * 152_587_890_625;
        #[expect(clippy::cast_possible_truncation, reason = "at most 1.005 × 10^17")]
        let attos = parts.div_ceil(10_000) as u64;
        attos
    }
}

impl Default for Steering {
    fn default() -> Self {
        Self::NOMINAL
    }
}

/// How far the host's own clock is from true time, as far as it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct HostSync {
    /// STA_UNSYNC is clear.
    pub synchronized: bool,
    /// `timex.maxerror`, ns. The kernel lets it grow by 500 ppm.
    pub maxerror_ns: u64,
    /// `timex.esterror`, ns.
    pub esterror_ns: u64,
    /// Leap second ahead or under way.
    pub leap: HostLeap,
    /// TAI − UTC.
    pub tai_offset: TaiOffset,
}

/// The kernel's leap-second state (`timex` status and return value).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum HostLeap {
    /// TIME_OK.
    #[default]
    None,
    /// TIME_INS: a second will be inserted at the end of this UTC day.
    Insert,
    /// TIME_DEL: a second will be left out at the end of this UTC day.
    Delete,
    /// TIME_OOP: 23:59:60 is under way.
    InProgress,
    /// TIME_WAIT: it has been.
    Over,
}

/// TAI − UTC in seconds, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum TaiOffset {
    /// Nobody told the kernel: it counts 0, which it never was.
    #[default]
    Unknown,
    /// What the kernel counts, or a table of leap seconds says.
    Known(i16),
}

impl TaiOffset {
    /// From `timex.tai`: 0 means that nobody ever set it. UTC began with 10 s.
    #[must_use]
    pub fn from_timex(tai: i32) -> Self {
        match i16::try_from(tai) {
            Ok(0) | Err(_) => Self::Unknown,
            Ok(seconds) => Self::Known(seconds),
        }
    }

    /// Seconds, 0 where unknown.
    #[must_use]
    pub const fn seconds(self) -> i16 {
        match self {
            Self::Unknown => 0,
            Self::Known(seconds) => seconds,
        }
    }

    /// True for [`TaiOffset::Known`].
    #[must_use]
    pub const fn is_known(self) -> bool {
        matches!(self, Self::Known(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steering_is_exact() {
        let table = [
            (0, 10_000, Steering::ONE, 0),
            (500 << 16, 10_000, 65_568_768_000, 500_000_000_000_000),
            (-500 << 16, 10_000, 65_503_232_000, 500_000_000_000_000),
            (1, 10_000, Steering::ONE + 1, 15_258_790),
            (0, 10_001, Steering::ONE + 6_553_600, 100_000_000_000_000),
            (i64::MAX, i64::MAX, 72_122_368_000, 100_500_000_000_000_000),
            (i64::MIN, i64::MIN, 58_949_632_000, 100_500_000_000_000_000),
        ];
        for (freq, tick, parts, attos) in table {
            let steering = Steering::from_timex(freq, tick);
            assert_eq!(
                (steering.parts(), steering.distance_attos()),
                (parts, attos),
                "{freq} {tick}"
            );
        }
    }

    #[test]
    fn an_offset_of_nought_is_none() {
        assert_eq!(TaiOffset::from_timex(0), TaiOffset::Unknown);
        assert_eq!(TaiOffset::from_timex(37), TaiOffset::Known(37));
        assert_eq!(TaiOffset::from_timex(i32::MAX), TaiOffset::Unknown);
        assert_eq!(TaiOffset::Unknown.seconds(), 0);
    }
}
