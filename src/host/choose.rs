//! Which source of pairs this host has: the best that gives one.

use super::host_vmclock::HostVmClock;
use super::leap_table::{LEAP_TABLE, TableOffset, table_offset};
use super::pair::{PairError, PairSource, SourceKind, WithOffset};
use super::ptp::PtpPairs;
use super::sources::Bracketed;
use super::time_source::TimeSource;
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

/// What may be tried.
pub struct Candidates<'a> {
    /// What the user asked for. A device is used only where it was named: its time may
    /// differ from the host's clock, or be nobody's.
    pub wanted: &'a TimeSource,
    /// The host TSC's frequency, for the width of a bracket.
    pub frequency: TscFrequency,
    /// KVM_GET_CLOCK, as [`KvmPairs`](super::KvmPairs).
    pub kvm: Option<Box<dyn PairSource>>,
    /// Whether an offset that the kernel lacks is taken from the table of leap
    /// seconds. Guests then see TAI, where this host's CLOCK_TAI shows UTC.
    pub leap_table: bool,
}

/// Brackets taken for one pair.
const BRACKETS: u32 = 10;

/// Tries the candidates, best first, with one reading each.
///
/// # Errors
/// What was named and is not there, or else CLOCK_TAI's own error: nothing on this
/// host gives the time.
pub fn choose(candidates: Candidates<'_>) -> Result<Chosen, PairError> {
    let Candidates { wanted, frequency, kvm, leap_table } = candidates;
    let bracketed = || Box::new(Bracketed::new(frequency, BRACKETS)) as Box<dyn PairSource>;
    let mut rejected = Vec::new();
    let mut tried = Vec::<Box<dyn PairSource>>::new();
    match wanted {
        TimeSource::Kvm => tried.extend(kvm),
        TimeSource::Clock => tried.push(bracketed()),
        TimeSource::VmClock(path) => tried.push(Box::new(HostVmClock::open(path)?)),
        TimeSource::Auto | TimeSource::Ptp(_) => {
            tried.extend(kvm);
            tried.push(bracketed());
        }
    }
    let mut best = None;
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
        return Err(rejected.pop().map_or(PairError::NoAtomicPair, |(_, error)| error));
    };
    let known = reading.sync.tai_offset.is_known();
    let table_offset = (leap_table && !known)
        .then(|| std::fs::read_to_string(LEAP_TABLE).ok())
        .flatten()
        .and_then(|text| table_offset(&text, reading.tai.sec()))
        // What came after its end it can not know.
        .filter(|found| found.valid);
    if let Some(found) = table_offset {
        source = Box::new(WithOffset { inner: source, offset: found.offset });
    }
    // Last: a device of TAI needs to be told from one of UTC.
    if let TimeSource::Ptp(path) = wanted {
        source = Box::new(PtpPairs::open(path, source)?);
    }
    Ok(Chosen { source, rejected, table_offset })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::KvmPairs;

    fn candidates(wanted: &TimeSource, kvm: Option<Box<dyn PairSource>>) -> Candidates<'_> {
        let frequency = TscFrequency::from_khz(1_000_000).unwrap();
        Candidates { wanted, frequency, kvm, leap_table: false }
    }

    fn no_kvm() -> Option<Box<dyn PairSource>> {
        Some(Box::new(KvmPairs(|| Ok(None))))
    }

    #[test]
    fn the_next_best_is_taken_and_the_reason_kept() {
        let mut chosen = choose(candidates(&TimeSource::Auto, no_kvm())).unwrap();
        assert_eq!(chosen.source.kind(), SourceKind::Bracketed);
        let [(SourceKind::KvmClock, PairError::NoAtomicPair)] = chosen.rejected.as_slice() else {
            panic!("{:?}", chosen.rejected);
        };
        assert!(chosen.source.read().is_ok());
    }

    #[test]
    fn what_was_named_has_to_be_there() {
        let error = |name: &str| {
            let wanted = name.parse().unwrap();
            choose(candidates(&wanted, no_kvm())).err().unwrap().to_string()
        };
        assert!(error("kvm").starts_with("KVM_GET_CLOCK has no realtime"), "{}", error("kvm"));
        for name in [
            "ptp:/dev/null",
            "vmclock:/dev/zero",
            "vmclock:/dev/null",
            "ptp:/nonexistent",
            "ptp:/",
            "vmclock:/",
            "vmclock:/nonexistent",
        ] {
            let (_, path) = name.split_once(':').unwrap();
            assert!(error(name).contains(path), "{}", error(name));
        }
        let chosen = choose(candidates(&TimeSource::Clock, no_kvm())).unwrap();
        assert_eq!((chosen.source.kind(), chosen.rejected.len()), (SourceKind::Bracketed, 0));
    }
}
