//! Atomic operations on single words that the guest shares with us.
//!
//! Every operation is `SeqCst`, as Xen's bit operations are on x86: the event
//! protocol needs a store and a later load of another word in order, which
//! acquire and release alone do not give. Where no RAM lies behind an address
//! the operation does nothing and reads as 0: a guest that gave the page away
//! has lost its events, not our process.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileMemory};

use crate::pages::GuestRam;

macro_rules! word {
    ($or:ident, $and:ident, $load:ident, $int:ty, $atomic:ty) => {
        /// Sets bits, returns the word before.
        pub(super) fn $or(memory: &GuestRam, gpa: u64, bits: $int) -> $int {
            change(memory, gpa, |word: &$atomic| word.fetch_or(bits, Ordering::SeqCst))
        }

        /// Keeps only the bits of `mask`, returns the word before.
        pub(super) fn $and(memory: &GuestRam, gpa: u64, mask: $int) -> $int {
            change(memory, gpa, |word: &$atomic| word.fetch_and(mask, Ordering::SeqCst))
        }

        /// Reads the word.
        pub(super) fn $load(memory: &GuestRam, gpa: u64) -> $int {
            let Ok(slice) = memory.get_slice(GuestAddress(gpa), size_of::<$int>()) else {
                return 0;
            };
            slice.get_atomic_ref::<$atomic>(0).map_or(0, |word| word.load(Ordering::SeqCst))
        }
    };
}

word!(or_u64, and_u64, load_u64, u64, AtomicU64);
word!(or_u32, and_u32, load_u32, u32, AtomicU32);

/// Replaces the word.
pub(super) fn store_u32(memory: &GuestRam, gpa: u64, value: u32) {
    change(memory, gpa, |word: &AtomicU32| word.store(value, Ordering::SeqCst));
}

/// Replaces the word if it is `old`; returns what it was.
pub(super) fn compare_exchange_u32(memory: &GuestRam, gpa: u64, old: u32, new: u32) -> u32 {
    change(memory, gpa, |word: &AtomicU32| {
        let (Ok(was) | Err(was)) =
            word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst);
        was
    })
}

fn change<A: vm_memory::AtomicInteger, T: Default>(
    memory: &GuestRam,
    gpa: u64,
    work: impl FnOnce(&A) -> T,
) -> T {
    let Ok(slice) = memory.get_slice(GuestAddress(gpa), size_of::<A>()) else {
        return T::default();
    };
    let Ok(word) = slice.get_atomic_ref::<A>(0) else { return T::default() };
    let result = work(word);
    // After the store: a migration that reads the page before this mark will
    // read it again.
    slice.bitmap().mark_dirty(0, size_of::<A>());
    result
}
