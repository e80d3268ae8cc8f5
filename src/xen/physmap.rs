//! The guest's pages: which frames hold memory, which the guest gave back, and
//! where the hypervisor's own pages lie among them.
//!
//! Guest memory itself is fixed: a page given back keeps its backing, and only
//! the accounts change. So do Xen's answers, which are all that a balloon sees.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_memory::{GuestAddress, GuestMemoryBackend};
use xen_abi::errno::Errno;
use xen_abi::memory::E820_RAM;

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
}

/// Accounts of guest memory in frames of 4 KiB.
#[derive(Debug)]
pub(super) struct Physmap {
    /// RAM of the memory map as half-open ranges of frames, ascending.
    ram: Vec<(u64, u64)>,
    /// Frames of `ram`, the domain's limit.
    max_pages: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    holes: Holes,
    hole_count: u64,
    /// Populated frames outside `ram`; together with `hole_count` they never
    /// exceed the limit.
    extra: BTreeSet<u64>,
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
        Self { ram, max_pages, state: Mutex::default() }
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

    /// Takes what `gfn` holds out of the guest's memory. A page of the
    /// hypervisor's is handed back, for its owner to let go of it.
    ///
    /// `shared_info` stays: Xen would go on writing to a page of its own, but
    /// ours is this frame, and nothing else may come to lie there before
    /// `shared_info` has moved on.
    ///
    /// # Errors
    /// `ENOENT` where there is nothing.
    pub(super) fn remove(&self, gfn: u64) -> Result<Option<Special>, Errno> {
        let mut state = self.lock();
        match state.special.get(&gfn) {
            Some(Special::SharedInfo) => return Ok(None),
            Some(Special::GrantFrame(_)) => return Ok(state.special.remove(&gfn)),
            None => {}
        }
        if !self.holds(&state, gfn) {
            return Err(Errno::ENOENT);
        }
        self.free(&mut state, gfn);
        Ok(None)
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
        if self.in_ram(gfn) {
            state.holes.clear(gfn);
            state.hole_count -= 1;
        } else {
            state.extra.insert(gfn);
        }
        Ok(())
    }

    /// Records that `special` is now at `gfn`: the frame's memory, if any, is
    /// freed, and the place where `special` was before stays empty. Answers with
    /// another page of the hypervisor's that was at `gfn`, which is nowhere now.
    pub(super) fn place(&self, gfn: u64, special: Special) -> Option<Special> {
        let mut state = self.lock();
        state.special.retain(|_, other| *other != special);
        if self.holds(&state, gfn) {
            self.free(&mut state, gfn);
        }
        state.special.insert(gfn, special)
    }

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
        (self.max_pages - state.hole_count).saturating_add(state.extra.len() as u64)
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
