//! The reader crate against the writers of `src/pages`: a guest that reads a
//! page while it is written takes a whole one, and the counter belongs to it;
//! and the reader's own latch, read by one CPU while another writes it.
//!
//! As in `loom_pages`, each protocol is also run with one of the writer's fences
//! taken out, and the model has to object.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --profile loom --no-default-features --test loom_reader`.
#![cfg(loom)]

use std::cell::Cell;

use guest_clock::handover;
use guest_clock::latch::Latch;
use guest_clock::sequence::{self, StoreWord};
use kvm_xen::pages::protocol::{self, write_and_go, write_versioned};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering, fence};
use loom::thread;

/// A word whose writer leaves out release fence number `SKIP` of each
/// publication, counted from 1. With 0 it leaves out none.
struct Modelled<const SKIP: u32>(AtomicU32);

std::thread_local! {
    /// Release fences of the present publication. Only the one writer counts;
    /// loom runs all threads of one model on one thread of the system.
    static FENCES: Cell<u32> = const { Cell::new(0) };
}

impl<const SKIP: u32> Modelled<SKIP> {
    fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    fn counted_release_fence() {
        FENCES.set(FENCES.get() + 1);
        if FENCES.get() != SKIP {
            fence(Ordering::Release);
        }
    }
}

impl<const SKIP: u32> sequence::Word for Modelled<SKIP> {
    fn load(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    fn acquire_fence() {
        fence(Ordering::Acquire);
    }
}

impl<const SKIP: u32> StoreWord for Modelled<SKIP> {
    fn store(&self, value: u32) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn release_fence() {
        Self::counted_release_fence();
    }
}

impl<const SKIP: u32> protocol::Word for Modelled<SKIP> {
    fn load(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    fn store(&self, value: u32) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn release_fence() {
        Self::counted_release_fence();
    }

    fn acquire_fence() {
        fence(Ordering::Acquire);
    }
}

/// Publication `n` holds `n` in both words, from counter value `n` on: the
/// counter, here a word of its own that the writer advances first, is never
/// behind the line that it is applied to.
fn check_page<const SKIP: u32>() {
    loom::model(|| {
        let page: Arc<[Modelled<SKIP>; 3]> = Arc::new(std::array::from_fn(|_| Modelled::new()));
        let counter = Arc::new(AtomicU32::new(0));
        let (written, advanced) = (Arc::clone(&page), Arc::clone(&counter));
        let writer = thread::spawn(move || {
            for n in 1..=2 {
                FENCES.set(0);
                advanced.store(n, Ordering::Release);
                let [version, data @ ..] = written.each_ref();
                write_versioned(version, 2 * n - 2, data, [n, n]);
            }
        });
        let read = || {
            let [version, data @ ..] = page.each_ref();
            let counter = || u64::from(counter.load(Ordering::Acquire));
            let quiet = sequence::read(version, data, &counter, 1).ok()?;
            let [first, second] = quiet.words;
            assert_eq!(first, second, "torn at version {}", quiet.sequence);
            assert_eq!(quiet.sequence, 2 * first, "torn: a version without its data");
            assert!(quiet.counter >= u64::from(first), "the counter was read before the line");
            Some(first)
        };
        let _ = read();
        writer.join().unwrap();
        assert_eq!(read(), Some(2), "a quiet page is read at once");
    });
}

#[test]
fn the_reader_against_the_page_writer() {
    check_page::<0>();
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_fence_after_odd_the_model_objects() {
    check_page::<1>();
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_fence_before_even_the_model_objects() {
    check_page::<2>();
}

/// Words of a handover page as `docs/handover.md` lays them out.
const GO: usize = 4;
const SEQUENCE: usize = 5;
const COUNT: usize = 8;
const DELTA: usize = 12;

/// A record and its `go`, against the guest's vCPU that waits for it: once it may
/// go, it reads that record, whole, and at the first try.
fn check_handover<const SKIP: u32>() {
    loom::model(|| {
        FENCES.set(0);
        let page: Arc<[Modelled<SKIP>; handover::WORDS]> =
            Arc::new(std::array::from_fn(|_| Modelled::new()));
        let shared = Arc::clone(&page);
        let host = thread::spawn(move || {
            let data = [&shared[COUNT], &shared[DELTA]];
            write_and_go((&shared[SEQUENCE], 0), data, [7, 7], (&shared[GO], 3));
        });
        if handover::may_go(&page, 3) {
            let record = handover::record(&*page, 1);
            let record =
                record.unwrap_or_else(|_| panic!("torn: gone, and the record is not there"));
            assert_eq!((record.move_count, record.tsc_delta), (7, 7), "torn: another record");
        }
        host.join().unwrap();
        assert!(handover::may_go(&page, 3));
    });
}

#[test]
fn the_handovers_record_is_there_before_go() {
    check_handover::<0>();
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_fence_before_go_the_model_objects() {
    check_handover::<3>();
}

/// One update of a latch, whose reader runs on another CPU.
fn check_latch<const SKIP: u32>() {
    loom::model(|| {
        FENCES.set(0);
        let latch = Arc::new(Latch::<Modelled<SKIP>, 2>::new(Modelled::new));
        let shared = Arc::clone(&latch);
        let writer = thread::spawn(move || shared.write_after(0, &[1, 1]));
        let read = || {
            let [first, second] = latch.read(1).ok()?;
            assert_eq!(first, second, "torn");
            Some(first)
        };
        let _ = read();
        writer.join().unwrap();
        assert_eq!(read(), Some(1), "what was written is read");
    });
}

#[test]
fn the_latch() {
    check_latch::<0>();
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_fence_after_the_first_number_the_latch_is_torn() {
    check_latch::<1>();
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_fence_before_the_second_number_the_latch_is_torn() {
    check_latch::<2>();
}
