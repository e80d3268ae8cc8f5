//! A two-copy latch: its readers never wait for its writer, wherever that was
//! interrupted. For an NMI handler that needs the time while the code that it
//! interrupted was about to change it.
//!
//! The sequence number is even while copy 0 is to be read, odd while copy 1 is:
//! the writer always changes the other one. A reader loses only when the number
//! moved while it read, which an interrupted writer can not do.

use core::array;

use crate::Refusal;
use crate::sequence::StoreWord;

/// `N` words, twice.
#[derive(Debug)]
pub struct Latch<W, const N: usize> {
    sequence: W,
    copies: [[W; N]; 2],
}

impl<W: StoreWord, const N: usize> Latch<W, N> {
    /// A latch of words that `word` makes; they should be 0.
    pub fn new(mut word: impl FnMut() -> W) -> Self {
        Self { sequence: word(), copies: array::from_fn(|_| array::from_fn(|_| word())) }
    }

    /// Replaces what readers see. One writer at a time: see
    /// [`RealTime`](crate::RealTime) for one way to see to that.
    pub fn write(&self, words: &[u32; N]) {
        self.write_after(self.sequence.load(), words);
    }

    /// [`Latch::write`], told the sequence number: loads nothing, so that a
    /// model check sees every order.
    pub fn write_after(&self, sequence: u32, words: &[u32; N]) {
        let sequence = sequence & !1;
        let [even, odd] = &self.copies;
        for (step, copy) in [(1, even), (2, odd)] {
            // L1. From here on readers take the other copy, whose words came
            // first: the fence at the end of the step before.
            self.sequence.store(sequence.wrapping_add(step));
            // L2. Nobody sees L3 without L1. Partner: L6.
            W::release_fence();
            // L3. The copy that nobody is sent to.
            for (word, value) in copy.iter().zip(words) {
                word.store(*value);
            }
            // L4. Nobody is sent to this copy without L3. Partner: L5.
            W::release_fence();
        }
    }

    /// What was written last.
    ///
    /// # Errors
    /// [`Refusal::Busy`] when writers finished a step during each of `tries`
    /// reads; one try is enough inside of what interrupted the writer.
    pub fn read(&self, tries: u32) -> Result<[u32; N], Refusal> {
        let [even, odd] = &self.copies;
        for _ in 0..tries {
            let before = self.sequence.load();
            // L5. Sequence before data. Partner: L4.
            W::acquire_fence();
            let copy = if before & 1 == 0 { even } else { odd };
            let words = copy.each_ref().map(W::load);
            // L6. Data before sequence again. Partner: L2.
            W::acquire_fence();
            if self.sequence.load() == before {
                return Ok(words);
            }
            core::hint::spin_loop();
        }
        Err(Refusal::Busy { tries })
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;
    use core::sync::atomic::AtomicU32;
    use std::rc::Rc;
    use std::vec::Vec;

    use super::*;
    use crate::sequence::Word;

    #[test]
    fn what_was_written_is_read() {
        let latch = Latch::<_, 3>::new(|| AtomicU32::new(0));
        assert_eq!(latch.read(1), Ok([0; 3]));
        for n in 1..5 {
            latch.write(&[n, n + 1, n + 2]);
            assert_eq!(latch.read(1), Ok([n, n + 1, n + 2]));
        }
    }

    type Hook = Rc<Cell<Option<Rc<dyn Fn()>>>>;

    /// A word whose every store calls a hook first: an NMI at that place.
    struct Interrupted(Cell<u32>, Hook);

    impl Word for Interrupted {
        fn load(&self) -> u32 {
            self.0.get()
        }
        fn acquire_fence() {}
    }

    impl StoreWord for Interrupted {
        fn store(&self, value: u32) {
            if let Some(hook) = self.1.take() {
                hook();
                self.1.set(Some(hook));
            }
            self.0.set(value);
        }
        fn release_fence() {}
    }

    #[test]
    fn a_reader_that_interrupts_the_writer_is_served_at_once() {
        let hook = Hook::default();
        let made = Rc::clone(&hook);
        let latch = Rc::new(Latch::<_, 2>::new(move || Interrupted(Cell::new(0), made.clone())));
        latch.write(&[1, 1]);
        let seen = Rc::new(Cell::new(Vec::new()));
        let (reader, list) = (Rc::clone(&latch), Rc::clone(&seen));
        hook.set(Some(Rc::new(move || {
            let mut words = list.take();
            words.push(reader.read(1).expect("one try is enough"));
            list.set(words);
        })));
        latch.write(&[2, 2]);
        let seen = seen.take();
        // Two sequence numbers and two copies of two words.
        assert_eq!(seen, [[1, 1], [1, 1], [1, 1], [1, 1], [2, 2], [2, 2]]);
    }
}
