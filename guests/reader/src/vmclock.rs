//! VMClock: from counter to real time, with the error that the host vouches for.
//!
//! Layout and meaning of the fields: the VMClock 1.1 specification, as in
//! Linux's `include/uapi/linux/vmclock-abi.h`.

use core::mem::offset_of;

use xen_abi::vmclock::{
    VMCLOCK_COUNTER_X86_TSC, VMCLOCK_FLAG_PERIOD_ESTERROR_VALID,
    VMCLOCK_FLAG_PERIOD_MAXERROR_VALID, VMCLOCK_FLAG_TAI_OFFSET_VALID,
    VMCLOCK_FLAG_TIME_ESTERROR_VALID, VMCLOCK_FLAG_TIME_MAXERROR_VALID,
    VMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT, VMCLOCK_MAGIC, VMCLOCK_STATUS_INITIALIZING,
    VMCLOCK_STATUS_UNRELIABLE, VMCLOCK_TIME_TAI, VMCLOCK_TIME_UTC, VMCLOCK_VERSION, VmclockAbi,
};
use zerocopy::transmute;

use crate::sequence::{self, Counter, Quiet, Word};
use crate::{Refusal, ticks_since};

/// 32-bit words of the structure at the start of the page.
pub const WORDS: usize = size_of::<VmclockAbi>() / 4;
pub(crate) const SEQUENCE: usize = offset_of!(VmclockAbi, seq_count) / 4;
pub(crate) const MARKER: usize = offset_of!(VmclockAbi, disruption_marker) / 4;

const NANOS_PER_SEC: u128 = 1_000_000_000;

/// What the page's seconds count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeType {
    /// UTC: ambiguous during a leap second.
    Utc,
    /// TAI: never ambiguous.
    Tai,
}

/// An error that grows with the line's age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ErrorTerm {
    at_start_ns: u64,
    /// In the unit of the line's period, per tick.
    per_tick: u64,
}

/// The published line from counter to real time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// `counter_value`: the counter at which the stated time holds.
    pub start: u64,
    /// Time at `start` since 1970-01-01 00:00:00 of `time_type`, in 2^-64 s.
    pub time: u128,
    /// Duration of a tick in 2^-(64 + `period_shift`) s.
    pub period: u64,
    /// See `period`.
    pub period_shift: u8,
    /// What the seconds count.
    pub time_type: TimeType,
    /// UTC − TAI in seconds, where the host knows it.
    pub tai_offset_sec: Option<i16>,
    /// `VMCLOCK_LEAP_*`.
    pub leap_indicator: u8,
    /// `VMCLOCK_SMEARING_*`.
    pub smearing_hint: u8,
    /// `VMCLOCK_STATUS_*`.
    pub status: u8,
    /// Another value than last time: the counter was disrupted.
    pub disruption_marker: u64,
    /// Another value than last time: this is another copy of the machine.
    pub generation: Option<u64>,
    max_error: Option<ErrorTerm>,
    est_error: Option<ErrorTerm>,
}

/// Real time with its error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// Whole seconds since 1970-01-01 00:00:00 of the line's time type.
    pub seconds: u64,
    /// The rest, in 2^-64 s.
    pub frac_sec: u64,
    /// True time lies within this many ns of it, by the host's own bound;
    /// `None` where the host states none. `u64::MAX` is "more than that".
    pub max_error_ns: Option<u64>,
    /// The error that the host expects, ns.
    pub est_error_ns: Option<u64>,
}

impl Time {
    /// Whole nanoseconds since 1970-01-01 00:00:00 of the line's time type.
    #[must_use]
    pub fn nanos(&self) -> u128 {
        u128::from(self.seconds) * NANOS_PER_SEC
            + ((u128::from(self.frac_sec) * NANOS_PER_SEC) >> 64)
    }

    /// The earliest and latest ns that the host's bound allows.
    #[must_use]
    pub fn interval_ns(&self) -> Option<(u128, u128)> {
        let error = u128::from(self.max_error_ns?);
        let ns = self.nanos();
        Some((ns.saturating_sub(error), ns + error))
    }
}

impl Line {
    /// The line holds for `start ≤ counter < start + max_delta`: there, the
    /// seconds stay within 64 bits.
    #[must_use]
    pub fn max_delta(&self) -> u64 {
        let room = u128::MAX - self.time;
        let shift = u32::from(self.period_shift);
        // The greatest product that, shifted, still fits.
        let product = match room.checked_add(1) {
            None => u128::MAX,
            Some(next) if shift >= 128 || next.leading_zeros() < shift => u128::MAX,
            Some(next) => (next << shift).wrapping_sub(1),
        };
        let ticks = product.checked_div(u128::from(self.period)).unwrap_or(u128::MAX);
        u64::try_from(ticks).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// Real time at `counter`.
    ///
    /// # Errors
    /// [`Refusal::Before`] and [`Refusal::Beyond`] outside of the line.
    pub fn at(&self, counter: u64) -> Result<Time, Refusal> {
        let max_delta = self.max_delta();
        let ticks = ticks_since(self.start, max_delta, counter)?;
        let elapsed = (u128::from(ticks) * u128::from(self.period))
            .checked_shr(u32::from(self.period_shift))
            .unwrap_or(0);
        let beyond = Refusal::Beyond { start: self.start, max_delta, counter };
        let time = self.time.checked_add(elapsed).ok_or(beyond)?;
        let error = |term: ErrorTerm| term.after(ticks, self.period_shift);
        Ok(Time {
            seconds: upper(time),
            frac_sec: lower(time),
            max_error_ns: self.max_error.map(error),
            est_error_ns: self.est_error.map(error),
        })
    }
}

impl ErrorTerm {
    /// ns after `ticks`, rounded up.
    fn after(self, ticks: u64, shift: u8) -> u64 {
        let product = u128::from(ticks) * u128::from(self.per_tick);
        // Each half has at most 64 + 30 bits; the product of both would not fit.
        let low = u128::from(lower(product)) * NANOS_PER_SEC;
        let scaled = u128::from(upper(product)) * NANOS_PER_SEC + (low >> 64);
        let grown = scaled.checked_shr(u32::from(shift)).unwrap_or(0);
        let rounded_up = grown + u128::from(product != 0);
        u64::try_from(rounded_up).unwrap_or(u64::MAX).saturating_add(self.at_start_ns)
    }
}

fn upper(value: u128) -> u64 {
    u64::try_from(value >> 64).unwrap_or(u64::MAX)
}

fn lower(value: u128) -> u64 {
    u64::try_from(value & u128::from(u64::MAX)).unwrap_or(u64::MAX)
}

impl TryFrom<VmclockAbi> for Line {
    type Error = Refusal;

    fn try_from(page: VmclockAbi) -> Result<Self, Refusal> {
        let usize_of = u32::try_from(size_of::<VmclockAbi>()).unwrap_or(u32::MAX);
        let flag = |flag: u64| page.flags & flag != 0;
        let error = |valid: u64, at_start_ns, per_tick| {
            (page.flags & valid == valid).then_some(ErrorTerm { at_start_ns, per_tick })
        };
        match page {
            VmclockAbi { magic, .. } if magic != VMCLOCK_MAGIC => {
                return Err(Refusal::Magic(magic));
            }
            VmclockAbi { version, .. } if version != VMCLOCK_VERSION => {
                return Err(Refusal::Version(version));
            }
            VmclockAbi { size, .. } if size < usize_of => return Err(Refusal::Size(size)),
            VmclockAbi { counter_id, .. } if counter_id != VMCLOCK_COUNTER_X86_TSC => {
                return Err(Refusal::NoCounter(counter_id));
            }
            VmclockAbi {
                clock_status: status @ (VMCLOCK_STATUS_UNRELIABLE | VMCLOCK_STATUS_INITIALIZING),
                ..
            } => return Err(Refusal::Status(status)),
            _ => {}
        }
        let time_type = match page.time_type {
            VMCLOCK_TIME_UTC => TimeType::Utc,
            VMCLOCK_TIME_TAI => TimeType::Tai,
            other => return Err(Refusal::TimeType(other)),
        };
        Ok(Self {
            start: page.counter_value,
            time: u128::from(page.time_sec) << 64 | u128::from(page.time_frac_sec),
            period: page.counter_period_frac_sec,
            period_shift: page.counter_period_shift,
            time_type,
            tai_offset_sec: flag(VMCLOCK_FLAG_TAI_OFFSET_VALID).then_some(page.tai_offset_sec),
            leap_indicator: page.leap_indicator,
            smearing_hint: page.leap_second_smearing_hint,
            status: page.clock_status,
            disruption_marker: page.disruption_marker,
            generation: flag(VMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT)
                .then_some(page.vm_generation_counter),
            max_error: error(
                VMCLOCK_FLAG_TIME_MAXERROR_VALID | VMCLOCK_FLAG_PERIOD_MAXERROR_VALID,
                page.time_maxerror_nanosec,
                page.counter_period_maxerror_rate_frac_sec,
            ),
            est_error: error(
                VMCLOCK_FLAG_TIME_ESTERROR_VALID | VMCLOCK_FLAG_PERIOD_ESTERROR_VALID,
                page.time_esterror_nanosec,
                page.counter_period_esterror_rate_frac_sec,
            ),
        })
    }
}

/// One consistent reading of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Real time at `counter`.
    pub time: Time,
    /// The counter, read while `line` was the published one.
    pub counter: u64,
    /// What the page said.
    pub line: Line,
    /// `seq_count`, even.
    pub sequence: u32,
}

/// Reads a page and the counter: the real time now.
///
/// # Errors
/// [`Refusal`]: a page that is no VMClock or maps no TSC, an unreliable host
/// clock, no quiet moment in `tries`, a counter outside of the line.
pub fn read<W: Word>(
    page: &[W; WORDS],
    counter: &impl Counter,
    tries: u32,
) -> Result<Reading, Refusal> {
    evaluate(read_words(page, counter, tries)?)
}

pub(crate) fn read_words<W: Word>(
    page: &[W; WORDS],
    counter: &impl Counter,
    tries: u32,
) -> Result<Quiet<WORDS>, Refusal> {
    sequence::read(&page[SEQUENCE], page.each_ref(), counter, tries)
}

pub(crate) fn evaluate(quiet: Quiet<WORDS>) -> Result<Reading, Refusal> {
    let line = decode(quiet.words)?;
    let time = line.at(quiet.counter)?;
    Ok(Reading { time, counter: quiet.counter, line, sequence: quiet.sequence })
}

pub(crate) fn decode(words: [u32; WORDS]) -> Result<Line, Refusal> {
    let page: VmclockAbi = transmute!(words.map(u32::to_le_bytes));
    Line::try_from(page)
}

#[cfg(test)]
pub(crate) mod tests;
