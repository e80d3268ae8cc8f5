//! Notices by reading that the host's clock was set: CLOCK_TAI and CLOCK_REALTIME
//! run at CLOCK_MONOTONIC's rate, whatever steers them, and only a step, a changed
//! TAI offset, a leap second or a sleep moves them against it.
//!
//! Needs nothing of the kernel but the vDSO: it sees what a [`StepWatch`] is told
//! later, or never.
//!
//! [`StepWatch`]: super::StepWatch

use super::suspend::clock_ns;

/// Any two readings of the same moment may differ by this: each clock is rounded
/// down to a ns.
const ROUNDING_NS: i128 = 2;
/// Brackets taken where the first is wide.
const TRIES: u32 = 5;
/// A bracket that nothing fell into, ns.
const NARROW_NS: i128 = 2_000;

/// Remembers how far the host's clocks stood ahead of CLOCK_MONOTONIC.
#[derive(Debug)]
pub struct OffsetWatch(Offsets);

/// CLOCK_TAI and CLOCK_REALTIME less CLOCK_MONOTONIC, ns: each lies at most
/// `width_ns` above what stands here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offsets {
    tai_ns: i128,
    utc_ns: i128,
    width_ns: i128,
}

impl OffsetWatch {
    /// Watches from now on.
    #[must_use]
    pub fn new() -> Self {
        Self(offsets())
    }

    /// Whether the host's clock was moved since the last call: by more than the
    /// narrowest of a few brackets shows, which is some 100 ns where a CPU of this
    /// machine reads its own TSC. Four readings by the vDSO, and no call.
    pub fn moved(&mut self) -> bool {
        self.took(offsets())
    }

    fn took(&mut self, now: Offsets) -> bool {
        let moved = |before: i128, before_width: i128, after: i128| {
            after > before + before_width + ROUNDING_NS
                || before > after + now.width_ns + ROUNDING_NS
        };
        let known = self.0;
        if moved(known.tai_ns, known.width_ns, now.tai_ns)
            || moved(known.utc_ns, known.width_ns, now.utc_ns)
        {
            self.0 = now;
            return true;
        }
        if now.width_ns < known.width_ns {
            self.0 = now;
        }
        false
    }
}

impl Default for OffsetWatch {
    fn default() -> Self {
        Self::new()
    }
}

/// A narrow bracket, or the narrowest of a few.
fn offsets() -> Offsets {
    let mut best = bracket();
    for _ in 1..TRIES {
        if best.width_ns <= NARROW_NS {
            break;
        }
        best = std::cmp::min_by_key(best, bracket(), |offsets| offsets.width_ns);
    }
    best
}

fn bracket() -> Offsets {
    let before = clock_ns(libc::CLOCK_MONOTONIC);
    let tai = clock_ns(libc::CLOCK_TAI);
    let utc = clock_ns(libc::CLOCK_REALTIME);
    let after = clock_ns(libc::CLOCK_MONOTONIC);
    Offsets { tai_ns: tai - after, utc_ns: utc - after, width_ns: after - before }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(tai_ns: i128, utc_ns: i128, width_ns: i128) -> Offsets {
        Offsets { tai_ns, utc_ns, width_ns }
    }

    #[test]
    fn a_quiet_clock_does_not_move() {
        let mut watch = OffsetWatch::new();
        for _ in 0..10_000 {
            assert!(!watch.moved());
        }
    }

    #[test]
    fn each_move_is_told_once_and_a_slow_reading_is_none() {
        let mut watch = OffsetWatch(at(1_000, 500, 100));
        // Within both brackets and a ns of rounding each.
        assert!(!watch.took(at(1_102, 602, 100)));
        assert!(!watch.took(at(898, 398, 100)));
        // A preempted reading: the truth is somewhere in it.
        assert!(!watch.took(at(-900_000, -900_500, 1_000_000)));
        // Steps of either clock, either way: a leap second moves UTC alone, a new
        // TAI offset CLOCK_TAI alone.
        for (tai, utc) in [
            (1_203, 703),
            (1_000, 500),
            (1_000, 1_000_000_500),
            (1_000, 500),
            (37_000_001_000, 500),
            (1_000, 500),
        ] {
            assert!(watch.took(at(tai, utc, 100)), "{tai} {utc}");
            assert!(!watch.took(at(tai, utc, 100)));
        }
        // And a century.
        assert!(watch.took(at(3_155_760_000_000_000_000, 500, 100)));
    }

    #[test]
    fn a_wide_memory_gets_narrower() {
        let mut watch = OffsetWatch(at(0, 0, 1_000_000));
        assert!(!watch.took(at(500_000, 500_000, 50)));
        assert!(watch.took(at(500_200, 500_200, 50)), "200 ns are seen then");
    }
}
