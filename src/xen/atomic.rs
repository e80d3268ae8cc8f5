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
    ($or:ident, $load:ident, $int:ty, $atomic:ty) => {
        /// Sets bits, returns the word before.
        pub(super) fn $or(memory: &GuestRam, gpa: u64, bits: $int) -> $int {
            let Ok(slice) = memory.get_slice(GuestAddress(gpa), size_of::<$int>()) else {
                return 0;
            };
            let Ok(word) = slice.get_atomic_ref::<$atomic>(0) else { return 0 };
            let before = word.fetch_or(bits, Ordering::SeqCst);
            // After the store: a migration that reads the page before this
            // mark will read it again.
            slice.bitmap().mark_dirty(0, size_of::<$int>());
            before
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

word!(or_u64, load_u64, u64, AtomicU64);
word!(or_u32, load_u32, u32, AtomicU32);

/// Keeps only the bits of `mask`, returns the word before.
pub(super) fn and_u64(memory: &GuestRam, gpa: u64, mask: u64) -> u64 {
    let Ok(slice) = memory.get_slice(GuestAddress(gpa), size_of::<u64>()) else { return 0 };
    let Ok(word) = slice.get_atomic_ref::<AtomicU64>(0) else { return 0 };
    let before = word.fetch_and(mask, Ordering::SeqCst);
    slice.bitmap().mark_dirty(0, size_of::<u64>());
    before
}
