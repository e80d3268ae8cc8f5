//! `vcpu_runstate_info`: how a vCPU spent its time.
//!
//! Layout: [`VcpuRunstateInfo`], 48 bytes, and [`VcpuRunstateInfo32`], 44
//! bytes, without the padding after the state.

use core::mem::offset_of;
use core::sync::atomic::AtomicU32;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Address, GuestAddress};
use xen_abi::vcpu::{VcpuRunstateInfo, VcpuRunstateInfo32};

use super::memory::{GuestWords, READ_TRIES, WORD, guest_words};
use super::protocol::{EntryTime, halves, read_flagged, write_flagged};
use super::{GuestRam, PageError, Width};

const WHAT: &str = "vcpu_runstate_info";
const PAGE: u64 = 4096;
/// state, and four times of two words.
const DATA: usize = 9;

/// What a runstate area says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Runstate {
    /// `RUNSTATE_*`: 0 running, 1 runnable, 2 blocked, 3 offline.
    pub state: u32,
    /// System time at which this state began, ns; bit 63 is not part of it.
    pub state_entry_time_ns: u64,
    /// Time spent in each of the four states, ns.
    pub time_ns: [u64; 4],
}

/// Where a guest wants its runstate: in one page, or in two that need not be
/// adjacent, since the guest names a *virtual* address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunstateArea {
    layout: Width,
    gpa: GuestAddress,
    words_in_first: usize,
    second: Option<GuestAddress>,
}

impl RunstateArea {
    /// An area at `gpa`. Where it crosses its page, `next_page` is the
    /// guest-physical address of the page that holds the rest; otherwise
    /// `next_page` is not looked at.
    ///
    /// # Errors
    /// [`PageError::Misaligned`] below 4-byte alignment (of `next_page`: below
    /// a page), [`PageError::CrossesPage`] without the `next_page` it needs.
    pub fn new(
        layout: Width,
        gpa: GuestAddress,
        next_page: Option<GuestAddress>,
    ) -> Result<Self, PageError> {
        let raw = gpa.raw_value();
        if !raw.is_multiple_of(4) {
            return Err(PageError::Misaligned { what: WHAT, gpa: raw });
        }
        let room = usize::try_from((PAGE - raw % PAGE) / 4).unwrap_or(usize::MAX);
        let words = Self::words(layout);
        if room >= words {
            return Ok(Self { layout, gpa, words_in_first: words, second: None });
        }
        let second = next_page.ok_or(PageError::CrossesPage { what: WHAT, gpa: raw })?;
        if !second.raw_value().is_multiple_of(PAGE) {
            return Err(PageError::Misaligned { what: WHAT, gpa: second.raw_value() });
        }
        Ok(Self { layout, gpa, words_in_first: room, second: Some(second) })
    }

    /// Bytes in a runstate area of that layout.
    #[must_use]
    pub const fn size(layout: Width) -> usize {
        Self::words(layout) * WORD
    }

    /// The layout.
    #[must_use]
    pub const fn layout(&self) -> Width {
        self.layout
    }

    /// Guest-physical address of the first byte.
    #[must_use]
    pub const fn gpa(&self) -> GuestAddress {
        self.gpa
    }

    /// Guest-physical address of the page that holds the rest, for an area
    /// that crosses its page.
    #[must_use]
    pub const fn next_page(&self) -> Option<GuestAddress> {
        self.second
    }

    const fn words(layout: Width) -> usize {
        match layout {
            Width::Bits64 => size_of::<VcpuRunstateInfo>() / WORD,
            Width::Bits32 => size_of::<VcpuRunstateInfo32>() / WORD,
        }
    }

    /// Index of the entry time's low half; the four times follow the entry time.
    const fn entry_word(&self) -> usize {
        match self.layout {
            Width::Bits64 => offset_of!(VcpuRunstateInfo, state_entry_time) / WORD,
            Width::Bits32 => offset_of!(VcpuRunstateInfo32, state_entry_time) / WORD,
        }
    }

    fn pieces<'a>(
        &self,
        mem: &'a GuestRam,
    ) -> Result<Pieces<'a, impl BitmapSlice + use<'a>>, PageError> {
        let first = guest_words(mem, WHAT, self.gpa, self.words_in_first)?;
        let rest = Self::words(self.layout) - self.words_in_first;
        let second = match self.second {
            Some(gpa) => Some(guest_words(mem, WHAT, gpa, rest)?),
            None => None,
        };
        Ok(Pieces { area: *self, first, second })
    }
}

/// The area's words, in one piece or two.
struct Pieces<'a, B> {
    area: RunstateArea,
    first: GuestWords<'a, B>,
    second: Option<GuestWords<'a, B>>,
}

impl<B: BitmapSlice> Pieces<'_, B> {
    fn word(&self, index: usize) -> Result<&AtomicU32, PageError> {
        match (&self.second, index.checked_sub(self.area.words_in_first)) {
            (Some(second), Some(index)) => second.word(index),
            _ => self.first.word(index),
        }
    }

    fn entry_time(&self) -> Result<EntryTime<&AtomicU32>, PageError> {
        let index = self.area.entry_word();
        Ok(EntryTime { low: self.word(index)?, high: self.word(index + 1)? })
    }

    /// The state, then the four times.
    fn data(&self) -> Result<[&AtomicU32; DATA], PageError> {
        let times = self.area.entry_word() + 2;
        let mut words = [self.word(0)?; DATA];
        for (word, index) in words.iter_mut().skip(1).zip(times..) {
            *word = self.word(index)?;
        }
        Ok(words)
    }

    fn mark_dirty(&self) {
        self.first.mark_dirty(0, self.area.words_in_first);
        if let Some(second) = &self.second {
            second.mark_dirty(0, RunstateArea::words(self.area.layout) - self.area.words_in_first);
        }
    }
}

/// Publishes a runstate. `update_flag`: whether the guest enabled
/// `VMASST_TYPE_runstate_update_flag`.
///
/// The caller is the area's only writer, and `state_entry_time_ns` differs
/// from the last one published whenever anything else does.
///
/// # Errors
/// [`PageError::Unmapped`] where a piece is not in guest RAM; nothing is
/// written then.
pub fn publish_runstate(
    mem: &GuestRam,
    area: &RunstateArea,
    runstate: &Runstate,
    update_flag: bool,
) -> Result<(), PageError> {
    let pieces = area.pieces(mem)?;
    let [running, runnable, blocked, offline] = runstate.time_ns.map(halves);
    let values = [
        runstate.state,
        running[0],
        running[1],
        runnable[0],
        runnable[1],
        blocked[0],
        blocked[1],
        offline[0],
        offline[1],
    ];
    let (entry, data) = (pieces.entry_time()?, pieces.data()?);
    write_flagged(entry, data, runstate.state_entry_time_ns, values, update_flag);
    pieces.mark_dirty();
    Ok(())
}

/// Reads a runstate as a guest does, whoever wrote it.
///
/// # Errors
/// [`PageError::Unmapped`], [`PageError::Unstable`].
pub fn read_runstate(mem: &GuestRam, area: &RunstateArea) -> Result<Runstate, PageError> {
    let pieces = area.pieces(mem)?;
    let read = read_flagged(pieces.entry_time()?, pieces.data()?, READ_TRIES);
    let gpa = area.gpa.raw_value();
    let unstable = PageError::Unstable { what: WHAT, gpa, tries: READ_TRIES };
    let (state_entry_time_ns, [state, a, b, c, d, e, f, g, h]) = read.ok_or(unstable)?;
    let time_ns =
        [[a, b], [c, d], [e, f], [g, h]].map(|[low, high]| u64::from(high) << 32 | u64::from(low));
    Ok(Runstate { state, state_entry_time_ns, time_ns })
}

#[cfg(test)]
mod tests;
