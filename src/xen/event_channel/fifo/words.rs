//! Where event words, heads and `ready` are in guest memory.

use std::sync::atomic::Ordering;

use xen_abi::event_channel::EvtchnFifoControlBlock;

use super::super::super::atomic::{and_u32, compare_exchange_u32, load_u32, or_u32, store_u32};
use super::queue::Word;
use super::{Fifo, NONE, WORDS_PER_PAGE};
use crate::pages::GuestRam;

const READY: u64 = std::mem::offset_of!(EvtchnFifoControlBlock, ready) as u64;
const HEAD: u64 = std::mem::offset_of!(EvtchnFifoControlBlock, head) as u64;

/// A word of guest memory; a page that the guest gave away reads as 0.
#[derive(Clone, Copy)]
pub(super) struct RamWord<'a> {
    memory: &'a GuestRam,
    gpa: u64,
}

impl Word for RamWord<'_> {
    fn load(&self) -> u32 {
        load_u32(self.memory, self.gpa)
    }

    fn store(&self, value: u32) {
        store_u32(self.memory, self.gpa, value);
    }

    fn fetch_or(&self, bits: u32) -> u32 {
        or_u32(self.memory, self.gpa, bits)
    }

    fn fetch_and(&self, bits: u32) -> u32 {
        and_u32(self.memory, self.gpa, bits)
    }

    fn compare_exchange(&self, old: u32, new: u32) -> u32 {
        compare_exchange_u32(self.memory, self.gpa, old, new)
    }
}

/// The control block of a vCPU, by its address.
#[derive(Clone, Copy)]
pub(super) struct ControlBlock(u64);

impl ControlBlock {
    pub(super) fn head(self, memory: &GuestRam, priority: u8) -> RamWord<'_> {
        RamWord { memory, gpa: self.0 + HEAD + u64::from(priority) * 4 }
    }

    pub(super) fn ready(self, memory: &GuestRam) -> RamWord<'_> {
        RamWord { memory, gpa: self.0 + READY }
    }
}

impl Fifo {
    /// The event word of `port`, `None` where its page was not given.
    pub(super) fn word<'a>(&self, memory: &'a GuestRam, port: u32) -> Option<RamWord<'a>> {
        let page = port / WORDS_PER_PAGE;
        // SeqCst: partner of the store in `expand_array`, after the page's own.
        if page >= self.pages.load(Ordering::SeqCst) {
            return None;
        }
        let slot = usize::try_from(page).ok().and_then(|page| self.array.get(page))?;
        let page_gpa = slot.load(Ordering::Relaxed);
        Some(RamWord { memory, gpa: page_gpa + u64::from(port % WORDS_PER_PAGE) * 4 })
    }

    /// As before the first page was given, for a test to race on it again.
    #[cfg(test)]
    pub(in super::super) fn forget_pages(&self) {
        self.pages.store(0, Ordering::SeqCst);
    }

    pub(super) fn control_block(&self, vcpu: u32) -> Option<ControlBlock> {
        let slot = usize::try_from(vcpu).ok().and_then(|vcpu| self.control.get(vcpu))?;
        let gpa = slot.load(Ordering::SeqCst);
        (gpa != NONE).then_some(ControlBlock(gpa))
    }
}
