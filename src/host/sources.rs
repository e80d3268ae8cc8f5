//! The sources of pairs that a kernel gives to anybody.

#![expect(unsafe_code, reason = "clock_gettime takes a raw pointer")]

use std::io;

use super::host_tsc;
use super::pair::{PairError, PairSource, RawPair, SourceKind, with_kernel_clock};
use crate::clock::TscFrequency;
use crate::clock::tai::HostReading;

/// UTC and the host TSC of one moment, by the kernel's own conversion:
/// KVM_GET_CLOCK with KVM_CLOCK_REALTIME and KVM_CLOCK_HOST_TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtomicPair {
    /// The field `realtime`: UTC, ns since 1970.
    pub utc_ns: u64,
    /// The field `host_tsc`.
    pub host_tsc: u64,
}

/// Pairs of KVM_GET_CLOCK. The ioctl is `src/kvm`'s: give it as a closure that
/// answers `None` where the flags are not set.
pub struct KvmPairs<F>(pub F);

/// KVM rounds UTC down to a ns, and the conversion to one more.
const KVM_ERROR_NS: u64 = 2;

impl<F: FnMut() -> io::Result<Option<AtomicPair>> + Send> PairSource for KvmPairs<F> {
    fn kind(&self) -> SourceKind {
        SourceKind::KvmClock
    }

    fn read(&mut self) -> Result<HostReading, PairError> {
        with_kernel_clock(|| {
            let pair = (self.0)().map_err(|error| PairError::io("KVM_GET_CLOCK", error))?;
            let pair = pair.ok_or(PairError::NoAtomicPair)?;
            Ok(RawPair {
                host_tsc: pair.host_tsc,
                ns: pair.utc_ns.into(),
                is_utc: true,
                error_ns: KVM_ERROR_NS,
            })
        })
    }
}

/// CLOCK_TAI between two readings of the TSC.
pub struct Bracketed {
    frequency: TscFrequency,
    brackets: u32,
}

impl Bracketed {
    /// Takes the narrowest of `brackets` (at least one). `frequency` turns the
    /// width of the bracket into ns; 1000 ppm are added for what it may be off.
    #[must_use]
    pub fn new(frequency: TscFrequency, brackets: u32) -> Self {
        Self { frequency, brackets: brackets.max(1) }
    }

    fn bracket(&self) -> Result<RawPair, PairError> {
        let before = host_tsc();
        let ns = clock_ns(libc::CLOCK_TAI)?;
        let width = host_tsc().wrapping_sub(before);
        // The middle, and half of the width: one tick and one ns of rounding.
        let half_ns = self.frequency.nanos_floor(width.div_ceil(2));
        let error_ns = half_ns + half_ns / 1_000 + 2;
        Ok(RawPair {
            host_tsc: before.wrapping_add(width / 2),
            ns,
            is_utc: false,
            error_ns: u64::try_from(error_ns).unwrap_or(u64::MAX),
        })
    }
}

impl PairSource for Bracketed {
    fn kind(&self) -> SourceKind {
        SourceKind::Bracketed
    }

    fn read(&mut self) -> Result<HostReading, PairError> {
        with_kernel_clock(|| {
            let mut best = self.bracket()?;
            for _ in 1..self.brackets {
                let next = self.bracket()?;
                if next.error_ns < best.error_ns {
                    best = next;
                }
            }
            Ok(best)
        })
    }
}

fn clock_ns(clock: libc::clockid_t) -> Result<i128, PairError> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec that the call writes, and lives across it.
    let ret = unsafe { libc::clock_gettime(clock, &raw mut now) };
    if ret != 0 {
        return Err(PairError::io("CLOCK_TAI", io::Error::last_os_error()));
    }
    Ok(i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This machine's own, near enough: a slower one only widens the error.
    fn frequency() -> TscFrequency {
        TscFrequency::from_khz(1_000_000).unwrap()
    }

    #[test]
    fn this_host_gives_brackets() {
        let mut source = Bracketed::new(frequency(), 10);
        let first = source.read().unwrap();
        let second = source.read().unwrap();
        assert!(second.host_tsc > first.host_tsc);
        assert!(second.tai >= first.tai);
        assert!(first.error_ns < 10_000_000, "{first:?}");
    }

    #[test]
    fn kvm_without_the_flags_says_so() {
        let error = KvmPairs(|| Ok(None)).read().unwrap_err();
        assert!(matches!(error, PairError::NoAtomicPair));
        let error = KvmPairs(|| Err(io::Error::from_raw_os_error(libc::EBADF))).read().unwrap_err();
        assert!(error.to_string().starts_with("cannot read KVM_GET_CLOCK: "));
    }

    #[test]
    fn kvm_pairs_that_do_not_fit_the_kernels_clock_are_refused() {
        let error =
            KvmPairs(|| Ok(Some(AtomicPair { utc_ns: 1, host_tsc: 1 }))).read().unwrap_err();
        assert!(matches!(error, PairError::Moving { tries: 8 }));
    }
}
