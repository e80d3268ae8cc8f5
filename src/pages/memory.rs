//! Guest memory as this room sees it: words of 32 bits, checked once.

use core::sync::atomic::{AtomicU32, Ordering, fence};

use vm_memory::bitmap::{AtomicBitmap, BitmapSlice};
use vm_memory::{
    Address, GuestAddress, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap, VolatileMemory,
    VolatileSlice,
};

use super::protocol::Word;

/// The guest's RAM, with a dirty bit for every page.
pub type GuestRam = GuestMemoryMmap<AtomicBitmap>;

/// A shared, replaceable handle on the guest's RAM.
pub type GuestRamHandle = GuestMemoryAtomic<GuestRam>;

/// Which layout of a structure the guest uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// The layouts of `arch-x86/xen-x86_32.h`.
    Bits32,
    /// The layouts of `arch-x86/xen-x86_64.h`.
    Bits64,
}

/// Why a clock page could not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// The structure does not start on a 4-byte boundary.
    #[error("{what} at guest address {gpa:#x} is not 4-byte aligned")]
    Misaligned {
        /// Name of the structure.
        what: &'static str,
        /// Guest-physical address.
        gpa: u64,
    },
    /// The structure is not wholly inside one piece of guest RAM.
    #[error("{what} at guest address {gpa:#x}, {len} bytes, is not in guest RAM")]
    Unmapped {
        /// Name of the structure.
        what: &'static str,
        /// Guest-physical address.
        gpa: u64,
        /// Bytes that have to be there.
        len: usize,
    },
    /// The structure crosses a page and the second page was not given.
    #[error("{what} at guest address {gpa:#x} crosses a page; its second page is needed")]
    CrossesPage {
        /// Name of the structure.
        what: &'static str,
        /// Guest-physical address of its start.
        gpa: u64,
    },
    /// A reader found an update under way at every try.
    #[error("{what} at guest address {gpa:#x} was being updated at each of {tries} reads")]
    Unstable {
        /// Name of the structure.
        what: &'static str,
        /// Guest-physical address.
        gpa: u64,
        /// Reads tried.
        tries: u32,
    },
}

/// Bytes in a [`Word`].
pub(super) const WORD: usize = size_of::<u32>();

/// How often a reader tries. An update takes some ten stores: a writer that is
/// still at it after this many reads is gone or hostile.
pub(super) const READ_TRIES: u32 = 1000;

impl Word for AtomicU32 {
    fn load(&self) -> u32 {
        Self::load(self, Ordering::Relaxed)
    }

    fn store(&self, value: u32) {
        Self::store(self, value, Ordering::Relaxed);
    }

    fn release_fence() {
        fence(Ordering::Release);
    }

    fn acquire_fence() {
        fence(Ordering::Acquire);
    }
}

/// A checked run of words in guest RAM.
pub(super) struct GuestWords<'a, B> {
    what: &'static str,
    gpa: GuestAddress,
    slice: VolatileSlice<'a, B>,
}

/// Checks `count` words at `gpa`: aligned, and inside one region.
pub(super) fn guest_words<'a>(
    mem: &'a GuestRam,
    what: &'static str,
    gpa: GuestAddress,
    count: usize,
) -> Result<GuestWords<'a, impl BitmapSlice + use<'a>>, PageError> {
    if !gpa.raw_value().is_multiple_of(4) {
        return Err(PageError::Misaligned { what, gpa: gpa.raw_value() });
    }
    let len = count * WORD; // callers pass at most a shared_info
    let slice = mem.get_slice(gpa, len).map_err(|_| PageError::Unmapped {
        what,
        gpa: gpa.raw_value(),
        len,
    })?;
    Ok(GuestWords { what, gpa, slice })
}

impl<B: BitmapSlice> GuestWords<'_, B> {
    /// The words with these indices.
    pub(super) fn at<const N: usize>(
        &self,
        indices: [usize; N],
    ) -> Result<[&AtomicU32; N], PageError> {
        let mut words = [self.word(0)?; N];
        for (word, index) in words.iter_mut().zip(indices) {
            *word = self.word(index)?;
        }
        Ok(words)
    }

    /// One word. Fails only where host memory is laid out less aligned than
    /// the guest's, since length and guest alignment were checked before.
    pub(super) fn word(&self, index: usize) -> Result<&AtomicU32, PageError> {
        let gpa = self.gpa.raw_value();
        self.slice
            .get_atomic_ref(index * WORD)
            .map_err(|_| PageError::Misaligned { what: self.what, gpa })
    }

    /// Marks these bytes dirty. Call it after the stores: a migration that
    /// collects the dirty bits in between then copies the page once more.
    pub(super) fn mark_dirty(&self, first_word: usize, words: usize) {
        self.slice.bitmap().mark_dirty(first_word * WORD, words * WORD);
    }
}
