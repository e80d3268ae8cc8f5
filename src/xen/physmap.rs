//! The guest's pages: which frames hold memory, which the guest gave back, and
//! where the hypervisor's own pages lie among them.
//!
//! A page given back keeps its address in this process and loses its memory
//! ([`Platform::release_pages`](super::Platform::release_pages)). Xen would
//! leave nothing there, and reads would be all ones; here they are zero, and a
//! guest that writes there takes the memory back, at most what it once had.

mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_memory::{GuestAddress, GuestMemoryBackend};
use xen_abi::errno::Errno;
use xen_abi::memory::E820_RAM;

pub use snapshot::PhysmapState;

use super::{Domain, DomainConfig};

const PAGE_SHIFT: u32 = 12;
const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// Frames that one block of the bitmap covers: 128 MiB of guest memory in 4 KiB.
const BLOCK_FRAMES: u64 = 1 << 15;
const BLOCK_WORDS: usize = (BLOCK_FRAMES / 64) as usize;

/// A page of the hypervisor's that the guest placed in its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    /// `shared_info`.
    SharedInfo,
    /// A frame of the grant table.
    GrantFrame(u32),
    /// A frame of the grants' status words, of a table of version 2.
    StatusFrame(u32),
}

/// What placing a page of the hypervisor's changed besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Displaced {
    /// Another page of the hypervisor's was there, and is nowhere now.
    pub covered: Option<Special>,
    /// It came from this frame, which is empty now.
    pub left: Option<u64>,
}

/// Accounts of guest memory in frames of 4 KiB.
#[derive(Debug)]
pub(super) struct Physmap {
    /// RAM of the memory map as half-open ranges of frames, ascending.
    ram: Vec<(u64, u64)>,
    /// Frames of `ram`, the domain's limit.
    max_pages: u64,
    state: Mutex<State>,
    /// One change of the layout at a time: between the accounts and the memory
    /// itself nobody else may come.
    changing: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    holes: Holes,
    hole_count: u64,
    /// Populated frames outside `ram`. With `unplaced` they never exceed
    /// `hole_count`.
    extra: BTreeSet<u64>,
    /// Pages of the domain's that have no frame.
    unplaced: u64,
    special: BTreeMap<u64, Special>,
}

impl Physmap {
    /// All RAM of the memory map is present.
    #[must_use]
    pub(super) fn new(config: &DomainConfig) -> Self {
        let mut ram: Vec<_> = config
            .memory_map
            .iter()
            .filter(|entry| entry.kind == E820_RAM)
            .map(|entry| {
                let end = entry.addr.saturating_add(entry.size);
                (entry.addr.div_ceil(PAGE_SIZE as u64), end >> PAGE_SHIFT)
            })
            .filter(|(first, end)| first < end)
            .collect();
        ram.sort_unstable();
        let max_pages = ram.iter().map(|(first, end)| end - first).sum();
        Self { ram, max_pages, state: Mutex::default(), changing: Mutex::default() }
    }

    /// Keeps all others from changing the layout meanwhile. The outermost lock:
    /// take it with no other held.
    pub(super) fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pages that the domain holds now.
    pub(super) fn pages(&self) -> u64 {
        let state = self.lock();
        self.pages_of(&state)
    }

    /// Pages that the domain may hold.
    pub(super) fn max_pages(&self) -> u64 {
        self.max_pages
    }

    /// The highest frame with anything in it.
    pub(super) fn highest_gfn(&self) -> u64 {
        let state = self.lock();
        let ram = self.ram.last().map_or(0, |(_, end)| end - 1);
        let extra = state.extra.last().copied().unwrap_or(0);
        let special = state.special.last_key_value().map_or(0, |(gfn, _)| *gfn);
        ram.max(extra).max(special)
    }

    /// Whether `gfn` holds memory or a page of the hypervisor's.
    pub(super) fn is_present(&self, gfn: u64) -> bool {
        let state = self.lock();
        state.special.contains_key(&gfn) || self.holds(&state, gfn)
    }

    /// The page of the hypervisor's at `gfn`, if one is there.
    pub(super) fn special(&self, gfn: u64) -> Option<Special> {
        self.lock().special.get(&gfn).copied()
    }

    /// Takes what `gfn` holds out of the guest's memory. A page of the
    /// hypervisor's is handed back, for its owner to let go of it.
    ///
    /// # Errors
    /// `ENOENT` where there is nothing.
    pub(super) fn remove(&self, gfn: u64) -> Result<Option<Special>, Errno> {
        let mut state = self.lock();
        if let Some(special) = state.special.remove(&gfn) {
            return Ok(Some(special));
        }
        if !self.holds(&state, gfn) {
            return Err(Errno::ENOENT);
        }
        self.free(&mut state, gfn);
        Ok(None)
    }

    /// The frames that hold pages of the hypervisor's.
    pub(super) fn specials(&self) -> Vec<u64> {
        self.lock().special.keys().copied().collect()
    }

    /// Gives the domain a page at `gfn`, which must be empty and backed.
    ///
    /// # Errors
    /// `ENOMEM` where the domain holds all that it may, or the frame is taken:
    /// Xen would put a second page over the first, which we have not got.
    pub(super) fn populate(&self, gfn: u64) -> Result<(), Errno> {
        let mut state = self.lock();
        if self.pages_of(&state) >= self.max_pages
            || state.special.contains_key(&gfn)
            || self.holds(&state, gfn)
        {
            return Err(Errno::ENOMEM);
        }
        self.fill(&mut state, gfn);
        Ok(())
    }

    /// Gives the domain `pages` more that have no frame.
    ///
    /// # Errors
    /// `ENOMEM` where the domain may not hold as many.
    pub(super) fn add_unplaced(&self, pages: u64) -> Result<(), Errno> {
        let mut state = self.lock();
        if self.pages_of(&state).saturating_add(pages) > self.max_pages {
            return Err(Errno::ENOMEM);
        }
        state.unplaced += pages;
        Ok(())
    }

    /// Records that `special` is now at `gfn`: the frame's memory, if any, is
    /// freed, and the place where `special` was before stays empty.
    pub(super) fn place(&self, gfn: u64, special: Special) -> Displaced {
        let mut state = self.lock();
        let before = state.special.iter().find(|(_, other)| **other == special);
        let left = before.map(|(from, _)| *from).filter(|from| *from != gfn);
        if let Some(from) = left {
            state.special.remove(&from);
        }
        if self.holds(&state, gfn) {
            self.free(&mut state, gfn);
        }
        let covered = state.special.insert(gfn, special).filter(|other| *other != special);
        Displaced { covered, left }
    }

    /// Moves the memory of frame `from` to `to`, another frame, freeing what
    /// was there. The page of the hypervisor's that it covers is handed back.
    ///
    /// # Errors
    /// `EINVAL` where `from` holds no memory.
    pub(super) fn move_page(&self, from: u64, to: u64) -> Result<Option<Special>, Errno> {
        let mut state = self.lock();
        if state.special.contains_key(&from) || !self.holds(&state, from) {
            return Err(Errno::EINVAL);
        }
        self.free(&mut state, from);
        let covered = state.special.remove(&to);
        if !self.holds(&state, to) {
            self.fill(&mut state, to);
        }
        Ok(covered)
    }

    /// `gfn` is empty before.
    fn fill(&self, state: &mut State, gfn: u64) {
        if self.in_ram(gfn) {
            state.holes.clear(gfn);
            state.hole_count -= 1;
        } else {
            state.extra.insert(gfn);
        }
    }

    /// `gfn` holds memory before.
    fn free(&self, state: &mut State, gfn: u64) {
        if self.in_ram(gfn) {
            state.holes.set(gfn);
            state.hole_count += 1;
        } else {
            state.extra.remove(&gfn);
        }
    }

    fn holds(&self, state: &State, gfn: u64) -> bool {
        if self.in_ram(gfn) { !state.holes.get(gfn) } else { state.extra.contains(&gfn) }
    }

    fn in_ram(&self, gfn: u64) -> bool {
        let next = self.ram.partition_point(|(first, _)| *first <= gfn);
        next.checked_sub(1).and_then(|at| self.ram.get(at)).is_some_and(|(_, end)| gfn < *end)
    }

    fn pages_of(&self, state: &State) -> u64 {
        (self.max_pages - state.hole_count)
            .saturating_add(state.extra.len() as u64)
            .saturating_add(state.unplaced)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sparse bitmap of frames: blocks come into being with their first hole, so
/// that its size follows the guest's RAM, not its addresses.
#[derive(Debug, Default)]
struct Holes(BTreeMap<u64, Box<[u64; BLOCK_WORDS]>>);

impl Holes {
    fn get(&self, gfn: u64) -> bool {
        let (block, word, bit) = Self::split(gfn);
        self.0.get(&block).is_some_and(|block| block[word] & bit != 0)
    }

    fn set(&mut self, gfn: u64) {
        let (block, word, bit) = Self::split(gfn);
        self.0.entry(block).or_insert_with(|| Box::new([0; BLOCK_WORDS]))[word] |= bit;
    }

    fn clear(&mut self, gfn: u64) {
        let (block, word, bit) = Self::split(gfn);
        if let Some(block) = self.0.get_mut(&block) {
            block[word] &= !bit;
        }
    }

    fn split(gfn: u64) -> (u64, usize, u64) {
        let word = (gfn % BLOCK_FRAMES / 64) as usize;
        (gfn / BLOCK_FRAMES, word, 1 << (gfn % 64))
    }
}

/// Frames whose memory is no longer needed, gathered into runs: the host is told
/// when it is dropped, while [`Physmap::changing`] is still held.
pub(super) struct Freed<'a> {
    domain: &'a Domain,
    first: u64,
    pages: u64,
}

impl<'a> Freed<'a> {
    pub(super) fn new(domain: &'a Domain) -> Self {
        Self { domain, first: 0, pages: 0 }
    }

    /// Adds a frame. Balloons pass them rising, falling or in no order.
    pub(super) fn add(&mut self, gfn: u64) {
        if self.domain.grants.is_mapped(gfn) {
            // A back end still works on it: Xen, too, frees it after the last.
            return;
        }
        if self.pages > 0 && self.first + self.pages == gfn {
            self.pages += 1;
        } else if self.pages > 0 && gfn + 1 == self.first {
            self.first = gfn;
            self.pages += 1;
        } else {
            self.tell();
            (self.first, self.pages) = (gfn, 1);
        }
    }

    fn tell(&mut self) {
        if self.pages > 0 {
            let start = GuestAddress(self.first << PAGE_SHIFT);
            self.domain.platform.release_pages(start, self.pages);
        }
    }
}

impl Drop for Freed<'_> {
    fn drop(&mut self) {
        self.tell();
    }
}

impl Domain {
    /// The address of frame `gfn`, backed by memory: the guest's RAM, or a page
    /// that the machine provides there.
    ///
    /// # Errors
    /// `EINVAL` beyond the machine's addresses, `ENOMEM` beyond its bound.
    pub(super) fn back(&self, gfn: u64) -> Result<GuestAddress, Errno> {
        let base = gfn.checked_mul(PAGE_SIZE as u64).ok_or(Errno::EINVAL)?;
        let gpa = GuestAddress(base);
        if !self.memory().check_range(gpa, PAGE_SIZE) {
            self.platform.back_page(gpa)?;
        }
        Ok(gpa)
    }
}

#[cfg(test)]
mod tests;
