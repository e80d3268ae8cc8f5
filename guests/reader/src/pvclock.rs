//! The pvclock page of Xen and KVM: `vcpu_time_info`, from counter to system
//! time in nanoseconds since the guest's start.
//!
//! Layout and arithmetic: Xen's public `xen.h`.

use xen_abi::arch_x86::VcpuTimeInfo;
use zerocopy::transmute;

use crate::sequence::{self, Counter, Word};
use crate::{Refusal, ticks_since};

/// 32-bit words in the page.
pub const WORDS: usize = size_of::<VcpuTimeInfo>() / 4;

/// The published line from counter to system time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Line {
    /// `tsc_timestamp`: the counter at which `system_time_ns` holds.
    pub start: u64,
    /// `system_time`: ns at `start`.
    pub system_time_ns: u64,
    /// `tsc_to_system_mul`: ns per shifted tick, times 2^32.
    pub mul: u32,
    /// `tsc_shift`: left shift of ticks before the product; right where negative.
    pub shift: i8,
    /// `XEN_PVCLOCK_*`.
    pub flags: u8,
}

/// One consistent reading of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// System time at `counter`, ns.
    pub system_time_ns: u64,
    /// The counter, read while `line` was the published one.
    pub counter: u64,
    /// What the page said.
    pub line: Line,
    /// The page's version, even. Moves on with each rewrite.
    pub version: u32,
    /// Reads thrown away before this one.
    pub retries: u32,
}

impl Line {
    /// The line holds for `start ≤ counter < start + max_delta`: there, no bit
    /// is shifted out and system time stays below 2^64 ns (584 years).
    #[must_use]
    pub fn max_delta(&self) -> u64 {
        let distance = u32::from(self.shift.unsigned_abs());
        // Left of this, the shift loses bits. None at all at a distance of 64.
        let by_shift =
            if self.shift <= 0 { u64::MAX } else { u64::MAX.checked_shr(distance).unwrap_or(0) };
        // The most shifted ticks whose ns still fit above the base.
        let room = (u128::from(u64::MAX - self.system_time_ns) << 32) | 0xffff_ffff;
        let Some(shifted) = room.checked_div(u128::from(self.mul)) else { return by_shift };
        let by_product = if self.shift < 0 {
            // Ticks that share one shifted value all count.
            shifted.checked_add(1).and_then(|next| next.checked_shl(distance)).map_or(0, |n| n - 1)
        } else {
            shifted.checked_shr(distance).unwrap_or(0)
        };
        let by_product = u64::try_from(by_product).unwrap_or(u64::MAX);
        by_shift.min(by_product).saturating_add(1)
    }

    /// System time at `counter`, ns, rounded down as the protocol does.
    ///
    /// # Errors
    /// [`Refusal::Before`] and [`Refusal::Beyond`] outside of the line.
    pub fn at(&self, counter: u64) -> Result<u64, Refusal> {
        let ticks = ticks_since(self.start, self.max_delta(), counter)?;
        let distance = u32::from(self.shift.unsigned_abs());
        let shifted =
            if self.shift < 0 { ticks.checked_shr(distance) } else { ticks.checked_shl(distance) };
        let product = u128::from(shifted.unwrap_or(0)) * u128::from(self.mul);
        let ns = u64::try_from(product >> 32).unwrap_or(u64::MAX);
        Ok(self.system_time_ns.saturating_add(ns))
    }
}

impl From<VcpuTimeInfo> for Line {
    fn from(info: VcpuTimeInfo) -> Self {
        Self {
            start: info.tsc_timestamp,
            system_time_ns: info.system_time,
            mul: info.tsc_to_system_mul,
            shift: info.tsc_shift,
            flags: info.flags,
        }
    }
}

/// Reads a page and the counter: the system time now.
///
/// # Errors
/// [`Refusal::Busy`] when no try out of `tries` was quiet, [`Refusal::Before`]
/// and [`Refusal::Beyond`] where the line does not hold for the counter.
pub fn read<W: Word>(
    page: &[W; WORDS],
    counter: &impl Counter,
    tries: u32,
) -> Result<Reading, Refusal> {
    let [version, ..] = page;
    let quiet = sequence::read(version, page.each_ref(), counter, tries)?;
    let info: VcpuTimeInfo = transmute!(quiet.words.map(u32::to_le_bytes));
    let line = Line::from(info);
    Ok(Reading {
        system_time_ns: line.at(quiet.counter)?,
        counter: quiet.counter,
        line,
        version: quiet.sequence,
        retries: quiet.retries,
    })
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn line(start: u64, system_time_ns: u64, mul: u32, shift: i8) -> Line {
        Line { start, system_time_ns, mul, shift, flags: 0 }
    }

    #[test]
    fn outside_of_the_line_there_is_no_time() {
        let two_ghz = line(1000, 5, 1 << 31, 0);
        assert_eq!(two_ghz.at(999), Err(Refusal::Before { start: 1000, counter: 999 }));
        assert_eq!(two_ghz.at(1000), Ok(5));
        assert_eq!(two_ghz.at(3000), Ok(1005));
        // A tick of 2^-32 ns: the counter ends before the line does.
        assert_eq!(line(0, 0, 1, 0).at(u64::MAX - 1), Ok((1 << 32) - 1));
    }

    #[test]
    fn the_last_value_before_the_overflow() {
        let table = [
            line(0, 0, 1 << 31, 1),
            line(0, 0, 1 << 31, 63),
            line(0, u64::MAX, 1 << 31, 0),
            line(0, u64::MAX - 1, 1 << 31, 0),
            line(0, u64::MAX - 7, u32::MAX, -1),
            line(0, 1 << 63, u32::MAX, 2),
            line(0, 0, 1 << 31, 64),
            line(0, 0, 1 << 31, i8::MAX),
            line(0, 0, 0, 0),
        ];
        for line in table {
            let max_delta = line.max_delta();
            assert!(line.at(max_delta - 1).is_ok(), "{line:?} {max_delta:#x}");
            assert!(line.at(max_delta).is_err(), "{line:?} {max_delta:#x}");
        }
        assert_eq!(line(0, 0, 1 << 31, 1).max_delta(), 1 << 63);
        assert_eq!(line(0, u64::MAX, 1 << 31, 0).max_delta(), 2);
    }

    /// The exact value, in integers of any size; `None` once it leaves 64 bits.
    fn oracle(line: &Line, ticks: u64) -> Option<u64> {
        let mut bits: Vec<bool> = (0..64).map(|bit| ticks >> bit & 1 == 1).collect();
        if line.shift < 0 {
            bits.drain(..usize::from(line.shift.unsigned_abs()).min(64));
        } else {
            bits.splice(..0, (0..line.shift).map(|_| false));
            if bits.iter().skip(64).any(|&bit| bit) {
                return None;
            }
        }
        let shifted = bits.iter().take(64).rev().fold(0u128, |sum, &bit| sum * 2 + u128::from(bit));
        let ns = shifted * u128::from(line.mul) / (1 << 32);
        u64::try_from(u128::from(line.system_time_ns) + ns).ok()
    }

    proptest! {
        #[test]
        fn the_exact_value_or_a_refusal(
            system_time_ns in prop_oneof![0..u64::MAX / 2, u64::MAX - 1000..=u64::MAX],
            mul in any::<u32>(), shift in -70i8..70, ticks in any::<u64>(), less in 0u32..64,
        ) {
            let line = line(0, system_time_ns, mul, shift);
            let ticks = ticks >> less;
            match line.at(ticks) {
                Ok(ns) => prop_assert_eq!(Some(ns), oracle(&line, ticks)),
                Err(_) => prop_assert!(ticks >= line.max_delta()),
            }
        }

        #[test]
        fn nothing_is_refused_that_fits(mul in 1u32.., shift in -8i8..12, ticks in any::<u64>()) {
            let line = line(0, 0, mul, shift);
            prop_assert_eq!(line.at(ticks).ok(), oracle(&line, ticks).filter(|_| ticks < u64::MAX));
        }
    }
}
