//! The reader's side of a page with a sequence number: pvclock's `version`,
//! VMClock's `seq_count`. Odd means an update under way; the same even number
//! before and after means that what lies between was read whole.

use core::sync::atomic::{AtomicU32, Ordering, fence};

use crate::Refusal;

/// One naturally aligned little-endian 32-bit word that the host may write at
/// any moment.
pub trait Word {
    /// Relaxed atomic load, in native byte order.
    fn load(&self) -> u32;
    /// Acquire fence: loads before it are done before loads after it.
    fn acquire_fence();
}

/// A word of the guest's own, for [`latch`](crate::latch).
pub trait StoreWord: Word {
    /// Relaxed atomic store, in native byte order.
    fn store(&self, value: u32);
    /// Release fence: stores before it are seen before stores after it.
    fn release_fence();
}

impl Word for AtomicU32 {
    fn load(&self) -> u32 {
        u32::from_le(AtomicU32::load(self, Ordering::Relaxed))
    }

    fn acquire_fence() {
        fence(Ordering::Acquire);
    }
}

impl<W: Word> Word for &W {
    fn load(&self) -> u32 {
        W::load(self)
    }

    fn acquire_fence() {
        W::acquire_fence();
    }
}

impl StoreWord for AtomicU32 {
    fn store(&self, value: u32) {
        AtomicU32::store(self, value.to_le(), Ordering::Relaxed);
    }

    fn release_fence() {
        fence(Ordering::Release);
    }
}

/// The counter that the pages map to time: the TSC.
pub trait Counter {
    /// Reads it, after all earlier loads and before all later ones: `LFENCE;
    /// RDTSC`, where a plain RDTSC could run ahead of the page's version.
    fn read(&self) -> u64;
}

impl<F: Fn() -> u64> Counter for F {
    fn read(&self) -> u64 {
        self()
    }
}

/// What was read in one quiet moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet<const N: usize> {
    /// The even sequence number.
    pub sequence: u32,
    /// The words, all of one update.
    pub words: [u32; N],
    /// The counter, read while that update was the current one.
    pub counter: u64,
    /// Reads thrown away before this one.
    pub retries: u32,
}

/// Reads `data` and the counter under the sequence number in `sequence`.
///
/// The counter is read inside the protocol: outside, an update between the two
/// would put it before the line's start, or apply an old line to it.
///
/// # Errors
/// [`Refusal::Busy`] when none of `tries` reads was quiet.
pub fn read<W: Word, const N: usize>(
    sequence: &W,
    data: [&W; N],
    counter: &impl Counter,
    tries: u32,
) -> Result<Quiet<N>, Refusal> {
    for retries in 0..tries {
        let before = sequence.load();
        if before & 1 == 0 {
            // Sequence before data. Partner: the writer's fence between the data
            // and the even number.
            W::acquire_fence();
            let words = data.map(Word::load);
            let counter = counter.read();
            // Data before sequence again. Partner: the writer's fence between
            // the odd number and the data.
            W::acquire_fence();
            if sequence.load() == before {
                return Ok(Quiet { sequence: before, words, counter, retries });
            }
        }
        core::hint::spin_loop();
    }
    Err(Refusal::Busy { tries })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_is_busy_and_even_is_read() {
        let words = [7, 1, 2].map(AtomicU32::new);
        let [sequence, data @ ..] = words.each_ref();
        assert_eq!(read(sequence, data, &|| 5, 3), Err(Refusal::Busy { tries: 3 }));
        StoreWord::store(sequence, 8);
        let quiet = Quiet { sequence: 8, words: [1, 2], counter: 5, retries: 0 };
        assert_eq!(read(sequence, data, &|| 5, 3), Ok(quiet));
    }

    #[test]
    fn an_update_during_the_read_is_read_again() {
        let words = [2, 1].map(AtomicU32::new);
        let [sequence, data] = words.each_ref();
        // The counter is read between data and the second sequence number.
        let updates = core::cell::Cell::new(0);
        let counter = || {
            if updates.replace(1) == 0 {
                StoreWord::store(sequence, 4);
                StoreWord::store(data, 9);
            }
            77
        };
        let quiet = Quiet { sequence: 4, words: [9], counter: 77, retries: 1 };
        assert_eq!(read(sequence, [data], &counter, 3), Ok(quiet));
    }
}
