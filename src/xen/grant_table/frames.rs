//! A frame of the table: a page in guest memory, or kept here while it is
//! nowhere; and single words in it, which the guest changes at the same time.

use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};
use xen_abi::errno::Errno;

use crate::pages::GuestRam;

pub(super) const PAGE_SIZE: usize = 4096;
const WORD: usize = size_of::<u32>();

/// One page of entries or of status words.
#[derive(Debug)]
pub(super) enum Frame {
    /// In guest memory at this address.
    Placed(GuestAddress),
    /// Nowhere: its contents, `None` while it is all zero.
    Detached(Option<Box<[u8; PAGE_SIZE]>>),
}

impl Frame {
    pub(super) const EMPTY: Self = Self::Detached(None);

    /// Works on the aligned word at byte `at`, atomically where the guest can
    /// reach it. `None` where its memory is gone.
    fn word<T>(
        &mut self,
        memory: &GuestRam,
        at: usize,
        work: impl FnOnce(&AtomicU32) -> T,
    ) -> Option<T> {
        match self {
            Self::Placed(gpa) => {
                let gpa = GuestAddress(gpa.0 + at as u64);
                let slice = memory.get_slice(gpa, WORD).ok()?;
                let done = work(slice.get_atomic_ref(0).ok()?);
                slice.bitmap().mark_dirty(0, WORD);
                Some(done)
            }
            Self::Detached(contents) => {
                let page = contents.get_or_insert_with(|| Box::new([0; PAGE_SIZE]));
                let bytes: &mut [u8; WORD] = page.get_mut(at..at + WORD)?.try_into().ok()?;
                let word = AtomicU32::new(u32::from_le_bytes(*bytes));
                let done = work(&word);
                *bytes = word.into_inner().to_le_bytes();
                Some(done)
            }
        }
    }

    pub(super) fn load(&mut self, memory: &GuestRam, at: usize) -> u32 {
        if let Self::Detached(None) = self {
            return 0;
        }
        self.word(memory, at, |word| word.load(Ordering::SeqCst)).unwrap_or(0)
    }

    pub(super) fn store(&mut self, memory: &GuestRam, at: usize, value: u32) {
        self.word(memory, at, |word| word.store(value, Ordering::SeqCst));
    }

    pub(super) fn set(&mut self, memory: &GuestRam, at: usize, bits: u32) {
        self.word(memory, at, |word| word.fetch_or(bits, Ordering::SeqCst));
    }

    pub(super) fn clear(&mut self, memory: &GuestRam, at: usize, bits: u32) {
        self.word(memory, at, |word| word.fetch_and(!bits, Ordering::SeqCst));
    }

    /// Puts `new` where `old` is; `Err` is what the guest made of it.
    pub(super) fn exchange(
        &mut self,
        memory: &GuestRam,
        at: usize,
        old: u32,
        new: u32,
    ) -> Result<u32, u32> {
        let order = Ordering::SeqCst;
        self.word(memory, at, |word| word.compare_exchange(old, new, order, order))
            .unwrap_or(Err(0))
    }

    /// Moves into guest memory, with its contents.
    ///
    /// # Errors
    /// `EFAULT` where there is no memory.
    pub(super) fn place(&mut self, memory: &GuestRam, gpa: GuestAddress) -> Result<(), Errno> {
        let contents = self.take(memory);
        let zero = [0; PAGE_SIZE];
        let bytes = contents.as_deref().unwrap_or(&zero);
        let placed = memory.write_slice(bytes, gpa).map_err(|_| Errno::EFAULT);
        *self = if placed.is_ok() { Self::Placed(gpa) } else { Self::Detached(contents) };
        placed
    }

    /// Leaves guest memory; the contents are kept.
    pub(super) fn detach(&mut self, memory: &GuestRam) {
        *self = Self::Detached(self.take(memory));
    }

    /// Makes it all zero, wherever it is.
    pub(super) fn zero(&mut self, memory: &GuestRam) {
        match self {
            Self::Placed(gpa) => {
                if memory.write_slice(&[0; PAGE_SIZE], *gpa).is_err() {
                    *self = Self::EMPTY;
                }
            }
            Self::Detached(contents) => *contents = None,
        }
    }

    /// The guest frame where it is, all ones for nowhere.
    pub(super) fn gfn(&self) -> u64 {
        match self {
            Self::Placed(gpa) => gpa.0 >> 12,
            Self::Detached(_) => u64::MAX,
        }
    }

    /// The contents, `None` where they are all zero or cannot be read.
    fn take(&mut self, memory: &GuestRam) -> Option<Box<[u8; PAGE_SIZE]>> {
        match self {
            Self::Detached(contents) => contents.take(),
            Self::Placed(gpa) => {
                let mut page = Box::new([0; PAGE_SIZE]);
                memory.read_slice(page.as_mut_slice(), *gpa).ok()?;
                Some(page)
            }
        }
    }
}
