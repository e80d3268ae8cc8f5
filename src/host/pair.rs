//! Pairs of host TSC and CLOCK_TAI, whatever they come from.

use std::io;

use super::kernel_clock::{KernelClock, read_kernel_clock};
use crate::clock::tai::{HostReading, Tai, TaiOffset};

/// Something that pairs the host's TSC with TAI.
pub trait PairSource: Send {
    /// What it is.
    fn kind(&self) -> SourceKind;

    /// One reading, now.
    ///
    /// # Errors
    /// [`PairError`]; a later try may succeed.
    fn read(&mut self) -> Result<HostReading, PairError>;
}

/// Where pairs come from, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceKind {
    /// KVM_GET_CLOCK: the kernel's own conversion of one TSC reading.
    KvmClock,
    /// A PTP device of the host, over another source's pairs.
    Ptp,
    /// The VMClock of a host that is itself a guest.
    VmClock,
    /// CLOCK_TAI between two readings of the TSC.
    Bracketed,
    /// No real host.
    Simulated,
}

impl core::fmt::Display for SourceKind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::KvmClock => "KVM_GET_CLOCK",
            Self::Ptp => "PTP device",
            Self::VmClock => "the host's VMClock",
            Self::Bracketed => "clock_gettime between two RDTSC",
            Self::Simulated => "simulation",
        })
    }
}

/// Why there is no pair.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// A call failed.
    #[error("cannot read {what}: {error}")]
    Io {
        /// The device or call.
        what: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// KVM gives no atomic pair: the host's clocksource is not the TSC, or no
    /// vCPU has run yet.
    #[error("KVM_GET_CLOCK has no realtime with its host TSC; is the host's clocksource tsc?")]
    NoAtomicPair,
    /// The host's clock moved during every try.
    #[error("the host's clock was set during each of {tries} readings; try again")]
    Moving {
        /// Readings tried.
        tries: u32,
    },
    /// The host's clock is beyond what TAI can count.
    #[error("the host's clock says {utc_ns} ns since 1970, which is no time; set it")]
    NoTime {
        /// What it said.
        utc_ns: i128,
    },
    /// A device is not what it should be.
    #[error("{device} is no usable clock: {why}")]
    Unusable {
        /// Its path.
        device: String,
        /// What is wrong with it.
        why: String,
    },
}

impl PairError {
    pub(super) fn io(what: impl Into<String>, error: io::Error) -> Self {
        Self::Io { what: what.into(), error }
    }
}

/// How often a reading is tried around a clock that is being set.
pub(super) const TRIES: u32 = 8;

/// A raw pair with UTC or TAI, before the kernel's state is added.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawPair {
    pub host_tsc: u64,
    /// In ns; UTC where `is_utc`.
    pub ns: i128,
    pub is_utc: bool,
    pub error_ns: u64,
}

/// Takes `read` between two readings of the kernel's clock that agree.
///
/// Linux moves UTC and the TAI offset together at a leap second, so equal
/// offsets on both sides and a UTC between theirs tell which 23:59:59 it is;
/// TAI itself is never ambiguous.
pub(super) fn with_kernel_clock(
    mut read: impl FnMut() -> Result<RawPair, PairError>,
) -> Result<HostReading, PairError> {
    let clock = || read_kernel_clock().map_err(|error| PairError::io("adjtimex", error));
    let mut before = clock()?;
    for _ in 0..TRIES {
        let pair = read()?;
        let after = clock()?;
        if let Some(reading) = combine(before, pair, after)? {
            return Ok(reading);
        }
        before = after;
    }
    Err(PairError::Moving { tries: TRIES })
}

/// The reading, or `None` where the clock was set in between.
fn combine(
    before: KernelClock,
    pair: RawPair,
    after: KernelClock,
) -> Result<Option<HostReading>, PairError> {
    let sync = after.sync;
    let offset_ns = i128::from(sync.tai_offset.seconds()) * 1_000_000_000;
    let tai_ns = if pair.is_utc { pair.ns.saturating_add(offset_ns) } else { pair.ns };
    let utc_ns = tai_ns.saturating_sub(offset_ns);
    let still = before.sync.tai_offset == sync.tai_offset
        && before.sync.leap == sync.leap
        && before.steering == after.steering;
    // adjtimex may count whole µs.
    let between = (before.utc_ns - 1_000..=after.utc_ns + 1_000).contains(&utc_ns);
    if !(still && between) {
        return Ok(None);
    }
    let tai = Tai::from_ns(tai_ns).ok_or(PairError::NoTime { utc_ns })?;
    Ok(Some(HostReading {
        host_tsc: pair.host_tsc,
        tai,
        error_ns: pair.error_ns,
        steering: after.steering,
        rate: None,
        sync,
    }))
}

/// A source whose host never learned TAI − UTC, filled in from a table.
pub struct WithOffset<S> {
    /// The source.
    pub inner: S,
    /// TAI − UTC, s, where the kernel counts none.
    pub offset: i16,
}

impl<S: PairSource> PairSource for WithOffset<S> {
    fn kind(&self) -> SourceKind {
        self.inner.kind()
    }

    fn read(&mut self) -> Result<HostReading, PairError> {
        let mut reading = self.inner.read()?;
        if !reading.sync.tai_offset.is_known() {
            reading.sync.tai_offset = TaiOffset::Known(self.offset);
            reading.tai = reading.tai.saturating_add_sec(self.offset.into());
        }
        Ok(reading)
    }
}

impl<S: PairSource + ?Sized> PairSource for Box<S> {
    fn kind(&self) -> SourceKind {
        (**self).kind()
    }

    fn read(&mut self) -> Result<HostReading, PairError> {
        (**self).read()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::tai::{HostLeap, HostSync, Steering};

    fn clock(utc_ns: i128, offset: i16, leap: HostLeap) -> KernelClock {
        let sync = HostSync { leap, tai_offset: TaiOffset::Known(offset), ..HostSync::default() };
        KernelClock { utc_ns, steering: Steering::NOMINAL, slewing: false, sync }
    }

    fn utc(ns: i128) -> RawPair {
        RawPair { host_tsc: 9, ns, is_utc: true, error_ns: 3 }
    }

    const NOW: i128 = 1_800_000_000_000_000_000;

    #[test]
    fn utc_becomes_tai() {
        let (a, b) = (clock(NOW, 37, HostLeap::None), clock(NOW + 9_000, 37, HostLeap::None));
        let reading = combine(a, utc(NOW + 5_000), b).unwrap().unwrap();
        assert_eq!(reading.tai.ns_floor(), NOW + 37_000_005_000 - 1); // rounded down to 2^-64 s
        assert_eq!((reading.host_tsc, reading.error_ns), (9, 3));
    }

    #[test]
    fn a_clock_that_moves_in_between_is_read_again() {
        let none = HostLeap::None;
        for (a, b) in [
            // A leap second: 38 counts, UTC went back.
            (clock(NOW, 37, HostLeap::Insert), clock(NOW - 999_990_000, 38, HostLeap::InProgress)),
            // A step of a second, either way.
            (clock(NOW - 2_000_000_000, 37, none), clock(NOW - 1_000_000_000, 37, none)),
            (clock(NOW + 1_000_000_000, 37, none), clock(NOW + 1_000_010_000, 37, none)),
            (clock(NOW, 36, none), clock(NOW + 9_000, 37, none)),
        ] {
            assert!(combine(a, utc(NOW + 5_000), b).unwrap().is_none());
        }
    }

    #[test]
    fn clocks_beyond_time_are_refused() {
        let far = i128::MAX / 4;
        let (a, b) = (clock(far, 37, HostLeap::None), clock(far + 9, 37, HostLeap::None));
        assert!(matches!(combine(a, utc(far + 5), b), Err(PairError::NoTime { .. })));
    }
}
