//! A queue of the FIFO ABI: event words linked into a list that Xen appends to
//! and the guest takes from, without a lock between the two.
//!
//! Generic over [`Word`]: guest memory in service, loom's atomics in the model
//! check (`tests/loom_events.rs`), which compiles this same file.
//!
//! What the two share is decided in one word at a time:
//! - PENDING, MASKED and LINKED of a port lie in its word, so whoever changes
//!   one of them sees the others as they are.
//! - An event is appended by storing its number into the link of the last one,
//!   if that is still LINKED; else the guest has taken it, the queue is empty,
//!   and the number goes to the head. The guest unlinks and reads the link in
//!   one exchange, so it is either seen there or told through the head.

use xen_abi::event_channel::{
    EVTCHN_FIFO_BUSY, EVTCHN_FIFO_LINK_MASK, EVTCHN_FIFO_LINKED, EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_PENDING,
};

pub const PENDING: u32 = 1 << EVTCHN_FIFO_PENDING;
pub const MASKED: u32 = 1 << EVTCHN_FIFO_MASKED;
pub const LINKED: u32 = 1 << EVTCHN_FIFO_LINKED;
/// Set while Xen links: the guest does not unmask a word that has it.
pub const BUSY: u32 = 1 << EVTCHN_FIFO_BUSY;

/// How often an exchange is tried while the word is BUSY. A guest that keeps to
/// the protocol can disturb it four times: mask, clear PENDING, unlink, and the
/// unmasking that had begun.
const LINK_TRIES: u32 = 4;

/// A 32-bit word that the guest changes at any time.
pub trait Word {
    /// The word now.
    fn load(&self) -> u32;
    /// Replaces the word.
    fn store(&self, value: u32);
    /// Sets bits, returns the word before.
    fn fetch_or(&self, bits: u32) -> u32;
    /// Keeps only these bits, returns the word before.
    fn fetch_and(&self, bits: u32) -> u32;
    /// Replaces the word if it is `old`; returns what it was.
    fn compare_exchange(&self, old: u32, new: u32) -> u32;
}

/// Xen's side of a queue. The head is in the guest's control block.
#[derive(Debug, Default)]
pub struct Queue {
    /// The port that was appended last, 0 for none since it was moved away.
    pub tail: u32,
}

/// Takes `port` for the caller to append if nobody else is to: it is neither
/// masked nor linked already. If not, the unmasking or whoever takes the port
/// off its queue finds it pending.
pub fn claim(word: &impl Word) -> bool {
    word.load() & MASKED == 0 && word.fetch_or(LINKED) & LINKED == 0
}

impl Queue {
    /// Appends `port`, which the caller has claimed and which is on no other
    /// queue. Whether it became the head: then the guest must be told.
    pub fn append<W: Word>(
        &mut self,
        port: u32,
        word: impl Fn(u32) -> Option<W>,
        head: &W,
    ) -> bool {
        // The tail itself is back: it was taken off, so the queue is empty,
        // although its word is LINKED again by the claim.
        let tail = if self.tail == port { 0 } else { self.tail };
        let linked = tail != 0 && word(tail).is_some_and(|tail| link(&tail, port));
        if !linked {
            head.store(port);
        }
        self.tail = port;
        !linked
    }
}

/// Sets the link of `word` if it is LINKED; false if the guest has unlinked it.
fn link<W: Word>(word: &W, port: u32) -> bool {
    let mut seen = word.load();
    match try_link(word, &mut seen, port) {
        Tried::Linked => return true,
        Tried::Unlinked => return false,
        Tried::Changed => {}
    }
    word.fetch_or(BUSY);
    seen = word.load();
    for _ in 0..LINK_TRIES {
        match try_link(word, &mut seen, port) {
            Tried::Linked => return true,
            Tried::Unlinked => {
                word.fetch_and(!BUSY);
                return false;
            }
            Tried::Changed => {}
        }
    }
    word.fetch_and(!BUSY);
    // The guest breaks the protocol, and loses this event by it. To call it
    // linked is what Xen does: the head is the guest's own business now.
    true
}

enum Tried {
    Linked,
    Unlinked,
    Changed,
}

fn try_link(word: &impl Word, seen: &mut u32, port: u32) -> Tried {
    let old = *seen;
    if old & LINKED == 0 {
        return Tried::Unlinked;
    }
    *seen = word.compare_exchange(old, old & !(BUSY | EVTCHN_FIFO_LINK_MASK) | port);
    if *seen == old { Tried::Linked } else { Tried::Changed }
}
