//! `vcpu_time_info`: the clock page itself.
//!
//! Layout: [`VcpuTimeInfo`], 32 bytes, the same for both widths. Word 1 and the
//! top half of word 7 are padding.

use core::mem::offset_of;

use vm_memory::{Address, GuestAddress};
use xen_abi::arch_x86::{VcpuTimeInfo, XEN_PVCLOCK_GUEST_STOPPED, XEN_PVCLOCK_TSC_STABLE_BIT};

use super::memory::{READ_TRIES, WORD, guest_words};
use super::protocol::{Word, halves, publish_versioned, read_versioned};
use super::{GuestRam, PageError};
use crate::clock::SystemTimeLine;

/// Bytes in a `vcpu_time_info`.
pub const TIME_INFO_SIZE: usize = size_of::<VcpuTimeInfo>();

/// Flag: every vCPU's page gives the same time for the same TSC
/// (`XEN_PVCLOCK_TSC_STABLE_BIT`).
pub const PVCLOCK_TSC_STABLE: u8 = XEN_PVCLOCK_TSC_STABLE_BIT;
/// Flag: the guest was paused by its host (`XEN_PVCLOCK_GUEST_STOPPED`).
pub const PVCLOCK_GUEST_STOPPED: u8 = XEN_PVCLOCK_GUEST_STOPPED;

const WHAT: &str = "vcpu_time_info";
const WORDS: usize = TIME_INFO_SIZE / WORD;
const VERSION: usize = offset_of!(VcpuTimeInfo, version) / WORD;
const TSC: usize = offset_of!(VcpuTimeInfo, tsc_timestamp) / WORD;
const TIME: usize = offset_of!(VcpuTimeInfo, system_time) / WORD;
const MUL: usize = offset_of!(VcpuTimeInfo, tsc_to_system_mul) / WORD;
/// Shift and flags share one word.
const SHIFT: usize = offset_of!(VcpuTimeInfo, tsc_shift) / WORD;
const DATA: [usize; 6] = [TSC, TSC + 1, TIME, TIME + 1, MUL, SHIFT];
const _: () = assert!(offset_of!(VcpuTimeInfo, flags) == SHIFT * WORD + 1);

/// What a clock page says, less its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct TimeInfo {
    /// Guest TSC at which `system_time` holds.
    pub tsc_timestamp: u64,
    /// System time at `tsc_timestamp`, ns.
    pub system_time: u64,
    /// `tsc_to_system_mul`: ns per shifted tick in units of 2^-32.
    pub mul: u32,
    /// `tsc_shift`.
    pub shift: i8,
    /// `PVCLOCK_*`.
    pub flags: u8,
}

/// Whether a publication changed the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Published {
    /// The page was written and its version moved on.
    Rewritten,
    /// The page already said so; nothing was written.
    Unchanged,
}

impl Published {
    /// True for [`Published::Rewritten`].
    #[must_use]
    pub const fn is_rewritten(self) -> bool {
        matches!(self, Self::Rewritten)
    }

    pub(super) const fn from_written(written: bool) -> Self {
        if written { Self::Rewritten } else { Self::Unchanged }
    }
}

impl TimeInfo {
    /// The page of a line.
    #[must_use]
    pub const fn from_line(line: &SystemTimeLine, flags: u8) -> Self {
        Self {
            tsc_timestamp: line.base_tsc(),
            system_time: line.base_system_time_ns(),
            mul: line.mul(),
            shift: line.shift(),
            flags,
        }
    }

    fn to_words(self) -> [u32; 6] {
        let [tsc_low, tsc_high] = halves(self.tsc_timestamp);
        let [time_low, time_high] = halves(self.system_time);
        let [shift] = self.shift.to_le_bytes();
        let tail = u32::from_le_bytes([shift, self.flags, 0, 0]);
        [tsc_low, tsc_high, time_low, time_high, self.mul, tail]
    }

    fn from_words(words: [u32; 6]) -> Self {
        let [tsc_low, tsc_high, time_low, time_high, mul, tail] = words;
        let [shift, flags, _, _] = tail.to_le_bytes();
        Self {
            tsc_timestamp: u64::from(tsc_high) << 32 | u64::from(tsc_low),
            system_time: u64::from(time_high) << 32 | u64::from(time_low),
            mul,
            shift: i8::from_le_bytes([shift]),
            flags,
        }
    }
}

/// Publishes a clock page at `gpa`, under the version protocol.
///
/// A page that already says so is left alone, so that rewrites can be counted
/// and a guest is never made to read twice for nothing. The caller is the
/// page's only writer.
///
/// # Errors
/// [`PageError::Misaligned`] below 4-byte alignment, [`PageError::Unmapped`]
/// where the 32 bytes are not inside one region of guest RAM.
pub fn publish_time(
    mem: &GuestRam,
    gpa: GuestAddress,
    info: &TimeInfo,
) -> Result<Published, PageError> {
    let words = guest_words(mem, WHAT, gpa, WORDS)?;
    let written = publish_versioned(words.word(VERSION)?, words.at(DATA)?, info.to_words());
    if written {
        words.mark_dirty(0, WORDS);
    }
    Ok(Published::from_written(written))
}

/// Reads a clock page as a guest does, whoever wrote it.
///
/// # Errors
/// As [`publish_time`], and [`PageError::Unstable`] when an update was under
/// way at every one of a thousand reads.
pub fn read_time(mem: &GuestRam, gpa: GuestAddress) -> Result<TimeInfo, PageError> {
    let words = guest_words(mem, WHAT, gpa, WORDS)?;
    let read = read_versioned(words.word(VERSION)?, words.at(DATA)?, READ_TRIES);
    let (_, values) =
        read.ok_or(PageError::Unstable { what: WHAT, gpa: gpa.raw_value(), tries: READ_TRIES })?;
    Ok(TimeInfo::from_words(values))
}

/// The page's version: moves on by 2 with every rewrite, by anyone.
///
/// # Errors
/// As [`publish_time`].
pub fn read_time_version(mem: &GuestRam, gpa: GuestAddress) -> Result<u32, PageError> {
    Ok(Word::load(guest_words(mem, WHAT, gpa, WORDS)?.word(VERSION)?))
}

#[cfg(test)]
mod tests;
