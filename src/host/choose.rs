//! Which source of pairs this host has: the best that gives one.

use std::path::Path;

use super::host_vmclock::{HostVmClock, VMCLOCK_DEVICE};
use super::leap_table::{LEAP_TABLE, TableOffset, table_offset};
use super::pair::{PairError, PairSource, SourceKind, WithOffset};
use super::ptp::{PtpPairs, PtpTimescale};
use super::sources::Bracketed;
use crate::clock::TscFrequency;

/// A source that gave a pair, and why each better one did not.
pub struct Chosen {
    /// The source.
    pub source: Box<dyn PairSource>,
    /// Better ones that failed, best first.
    pub rejected: Vec<(SourceKind, PairError)>,
    /// TAI − UTC out of the table of leap seconds, where the kernel has none and
    /// the table is not out of date.
    pub table_offset: Option<TableOffset>,
}

/// What may be tried beside `clock_gettime`.
pub struct Candidates<'a> {
    /// The host TSC's frequency, for the width of a bracket.
    pub frequency: TscFrequency,
    /// KVM_GET_CLOCK, as [`KvmPairs`](super::KvmPairs).
    pub kvm: Option<Box<dyn PairSource>>,
    /// A PTP device that the user named: it then comes first.
    pub ptp: Option<(&'a Path, PtpTimescale)>,
    /// Whether the host's own VMClock is to be asked before CLOCK_TAI. Its line
    /// may differ from the host's clock.
    pub vmclock: bool,
    /// Whether an offset that the kernel lacks is taken from the table of leap
    /// seconds. Guests then see TAI, where this host's CLOCK_TAI shows UTC.
    pub leap_table: bool,
}

/// Brackets taken for one pair.
const BRACKETS: u32 = 10;

/// Tries the candidates, best first, with one reading each.
///
/// # Errors
/// A named PTP device that is none, or else CLOCK_TAI's own error: nothing on
/// this host gives the time.
pub fn choose(candidates: Candidates<'_>) -> Result<Chosen, PairError> {
    let mut rejected = Vec::new();
    let mut tried = Vec::<Box<dyn PairSource>>::new();
    tried.extend(candidates.kvm);
    if candidates.vmclock {
        match HostVmClock::open(Path::new(VMCLOCK_DEVICE)) {
            Ok(device) => tried.push(Box::new(device)),
            Err(error) => rejected.push((SourceKind::VmClock, error)),
        }
    }
    tried.push(Box::new(Bracketed::new(candidates.frequency, BRACKETS)));
    let mut best = None;
    let mut last_error = PairError::NoAtomicPair;
    for mut source in tried {
        match source.read() {
            Ok(reading) => {
                best = Some((source, reading));
                break;
            }
            Err(error) => rejected.push((source.kind(), error)),
        }
    }
    let Some((mut source, reading)) = best else {
        if let Some((_, error)) = rejected.pop() {
            last_error = error;
        }
        return Err(last_error);
    };
    // A VMClock that was not there says nothing about a better one that was.
    rejected.retain(|(kind, _)| *kind < source.kind());
    rejected.sort_by_key(|(kind, _)| *kind);
    if let Some((path, timescale)) = candidates.ptp {
        source = Box::new(PtpPairs::open(path, timescale, source)?);
    }
    let known = reading.sync.tai_offset.is_known();
    let table_offset = (candidates.leap_table && !known)
        .then(|| std::fs::read_to_string(LEAP_TABLE).ok())
        .flatten()
        .and_then(|text| table_offset(&text, reading.tai.sec()))
        // What came after its end it can not know.
        .filter(|found| found.valid);
    if let Some(found) = table_offset {
        source = Box::new(WithOffset { inner: source, offset: found.offset });
    }
    Ok(Chosen { source, rejected, table_offset })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::KvmPairs;

    fn candidates(kvm: Option<Box<dyn PairSource>>) -> Candidates<'static> {
        let frequency = TscFrequency::from_khz(1_000_000).unwrap();
        Candidates { frequency, kvm, ptp: None, vmclock: false, leap_table: false }
    }

    #[test]
    fn the_next_best_is_taken_and_the_reason_kept() {
        let mut chosen = choose(candidates(Some(Box::new(KvmPairs(|| Ok(None)))))).unwrap();
        assert_eq!(chosen.source.kind(), SourceKind::Bracketed);
        let [(SourceKind::KvmClock, PairError::NoAtomicPair)] = chosen.rejected.as_slice() else {
            panic!("{:?}", chosen.rejected);
        };
        assert!(chosen.source.read().is_ok());
    }

    #[test]
    fn a_ptp_device_that_was_named_has_to_be_one() {
        let mut wrong = candidates(None);
        wrong.ptp = Some((Path::new("/dev/null"), PtpTimescale::Tai));
        assert!(matches!(choose(wrong), Err(PairError::Unusable { .. })));
    }
}
