//! A guest that reads a clock page while it is written never takes a mix of
//! old and new for the truth.
//!
//! Model check of `src/pages/protocol.rs` itself, with loom's atomics for guest
//! memory and a reader written as Linux writes it. Each protocol is also run
//! with one of its fences taken out: the model has to object, or its silence
//! about the whole protocol would mean nothing.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --profile loom --no-default-features --test loom_pages`.
//!
//! Two limits of loom 0.7 that shaped this file. It treats SeqCst as AcqRel:
//! neither protocol uses SeqCst. And it remembers only the last access of each
//! word when it decides what else to try, so a writer that loads a word before
//! storing to it hides the reader's earlier load: 5 outcomes were tried where
//! there are 21, and a missing fence went unseen. Hence the writers under test
//! load nothing.
#![cfg(loom)]

use std::cell::Cell;

use kvm_xen::pages::protocol::{
    EntryTime, RUNSTATE_UPDATE_HI, Word, may_go, read_flagged, read_versioned, write_and_go,
    write_flagged, write_versioned,
};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering, fence};
use loom::thread;

/// A word of guest memory whose writer leaves out release fence number `SKIP`
/// of each publication, counted from 1. With 0 it leaves out none.
struct Modelled<const SKIP: u32>(AtomicU32);

std::thread_local! {
    /// Release fences of the present publication. Only the one writer counts;
    /// loom runs all threads of one model on one thread of the system.
    static FENCES: Cell<u32> = const { Cell::new(0) };
}

impl<const SKIP: u32> Word for Modelled<SKIP> {
    fn load(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    fn store(&self, value: u32) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn release_fence() {
        FENCES.set(FENCES.get() + 1);
        if FENCES.get() != SKIP {
            fence(Ordering::Release);
        }
    }

    fn acquire_fence() {
        fence(Ordering::Acquire);
    }
}

/// Any page: a version or the entry time's halves, and two words of data.
struct Page<const SKIP: u32> {
    head: [Modelled<SKIP>; 2],
    data: [Modelled<SKIP>; 2],
}

impl<const SKIP: u32> Page<SKIP> {
    fn new() -> Arc<Self> {
        let word = || Modelled(AtomicU32::new(0));
        Arc::new(Self { head: [word(), word()], data: [word(), word()] })
    }

    fn data(&self) -> [&Modelled<SKIP>; 2] {
        self.data.each_ref()
    }

    fn entry(&self) -> EntryTime<&Modelled<SKIP>> {
        EntryTime { low: &self.head[0], high: &self.head[1] }
    }
}

/// Publication number `n` puts `n` into every word of data.
fn publish_version<const SKIP: u32>(page: &Page<SKIP>, n: u32) {
    FENCES.set(0);
    write_versioned(&page.head[0], 2 * (n - 1), page.data(), [n, n]);
}

/// Linux `arch/x86/include/asm/pvclock.h`, begin and retry, once: the reader
/// masks the odd bit off the first version and compares with the second.
fn linux_version_read<const SKIP: u32>(page: &Page<SKIP>) -> Option<(u32, [u32; 2])> {
    let version = page.head[0].load() & !1;
    fence(Ordering::Acquire);
    let data = page.data().map(Word::load);
    fence(Ordering::Acquire);
    (page.head[0].load() == version).then_some((version, data))
}

fn check_version<const SKIP: u32>(
    read: fn(&Page<SKIP>) -> Option<(u32, [u32; 2])>,
    publish: fn(&Page<SKIP>, u32),
) {
    loom::model(move || {
        let page = Page::<SKIP>::new();
        let shared = Arc::clone(&page);
        let writer = thread::spawn(move || (1..=2).for_each(|n| publish(&shared, n)));
        if let Some((version, data)) = read(&page) {
            assert_eq!(data, [version / 2; 2], "torn: version {version}");
        }
        writer.join().unwrap();
        assert_eq!(read(&page), Some((4, [2, 2])), "a quiet page is read at once");
    });
}

#[test]
fn version_protocol_against_linux() {
    check_version::<0>(linux_version_read, publish_version);
}

#[test]
fn version_protocol_against_our_reader() {
    check_version::<0>(|page| read_versioned(&page.head[0], page.data(), 1), publish_version);
}

/// Who waits for `go` sees what was published before it.
fn check_go<const SKIP: u32>() {
    loom::model(|| {
        let page = Page::<SKIP>::new();
        let shared = Arc::clone(&page);
        let writer = thread::spawn(move || {
            FENCES.set(0);
            write_and_go((&shared.head[0], 0), shared.data(), [1, 1], (&shared.head[1], 5));
        });
        if may_go(&page.head[1], 5) {
            let read = read_versioned(&page.head[0], page.data(), 1);
            assert_eq!(read, Some((2, [1, 1])), "torn: gone before its record");
        }
        writer.join().unwrap();
        assert!(may_go(&page.head[1], 5));
    });
}

#[test]
fn go_comes_after_its_record() {
    check_go::<0>();
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_fence_before_go_the_model_objects() {
    check_go::<3>();
}

/// A program that mapped the VMClock page and reads it as its header asks: waits
/// for an even count, reads, compares.
fn vmclock_mapped_read<const SKIP: u32>(page: &Page<SKIP>) -> Option<(u32, [u32; 2])> {
    let seq = page.head[0].load();
    if seq & 1 == 1 {
        return None;
    }
    fence(Ordering::Acquire);
    let data = page.data().map(Word::load);
    fence(Ordering::Acquire);
    (page.head[0].load() == seq).then_some((seq, data))
}

/// The sequence count of a VMClock page is written as a version is, and the
/// kernel's `vmclock_get_crosststamp` reads as `linux_version_read` does.
#[test]
fn vmclock_sequence_against_a_mapped_page() {
    check_version::<0>(vmclock_mapped_read, publish_version);
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_fence_before_even_a_mapped_page_is_torn() {
    check_version::<2>(vmclock_mapped_read, publish_version);
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_fence_after_odd_the_model_objects() {
    check_version::<1>(linux_version_read, publish_version);
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_fence_before_even_the_model_objects() {
    check_version::<2>(linux_version_read, publish_version);
}

/// The mistake of a published clock crate: Release on the odd marker itself
/// holds back what came before it, not the data that follows.
#[test]
#[should_panic(expected = "torn")]
fn a_release_store_is_no_fence_and_the_model_objects() {
    check_version::<0>(linux_version_read, |page, n| {
        let version = &page.head[0].0;
        version.store(2 * n - 1, Ordering::Release);
        page.data().iter().for_each(|word| word.store(n));
        version.store(2 * n, Ordering::Release);
    });
}

/// Publication `n` has entry time n × (2^32 + 1) (or n × 2^32) ns.
fn publish_runstate<const SKIP: u32>(page: &Page<SKIP>, n: u32, both_halves: bool, flag: bool) {
    FENCES.set(0);
    let low = if both_halves { n } else { 0 };
    let entry_time_ns = u64::from(n) << 32 | u64::from(low);
    write_flagged(page.entry(), page.data(), entry_time_ns, [n, n], flag);
}

/// Linux `drivers/xen/time.c` on 32-bit, once: each entry time is read high,
/// low, high. The fences in between stand for x86, which loads in order.
fn linux_runstate_read_32<const SKIP: u32>(page: &Page<SKIP>) -> Option<(u64, [u32; 2])> {
    let entry_time = || {
        let high = page.head[1].load();
        fence(Ordering::Acquire);
        let low = page.head[0].load();
        fence(Ordering::Acquire);
        (page.head[1].load() == high).then_some(u64::from(high) << 32 | u64::from(low))
    };
    let before = entry_time()?;
    fence(Ordering::Acquire);
    let data = page.data().map(Word::load);
    fence(Ordering::Acquire);
    let quiet = before & (u64::from(RUNSTATE_UPDATE_HI) << 32) == 0;
    (quiet && entry_time()? == before).then_some((before, data))
}

/// The same on 64-bit, where the entry time is one load. The model has no
/// accesses of two sizes, so here the times differ in their high half alone.
fn linux_runstate_read_64<const SKIP: u32>(page: &Page<SKIP>) -> Option<(u64, [u32; 2])> {
    let before = page.head[1].load();
    fence(Ordering::Acquire);
    let data = page.data().map(Word::load);
    fence(Ordering::Acquire);
    let quiet = before & RUNSTATE_UPDATE_HI == 0;
    (quiet && page.head[1].load() == before).then_some((u64::from(before) << 32, data))
}

fn check_runstate<const SKIP: u32>(
    read: fn(&Page<SKIP>) -> Option<(u64, [u32; 2])>,
    both_halves: bool,
    flag: bool,
) {
    // A 32-bit reader loads up to eight times: two updates would take minutes.
    let updates = if both_halves { 1 } else { 2 };
    loom::model(move || {
        let page = Page::<SKIP>::new();
        let shared = Arc::clone(&page);
        let writer = thread::spawn(move || {
            (1..=updates).for_each(|n| publish_runstate(&shared, n, both_halves, flag));
        });
        let whole = |(entry_time_ns, data): (u64, [u32; 2])| {
            let n = u32::try_from(entry_time_ns >> 32).unwrap();
            let low = if both_halves { n } else { 0 };
            assert_eq!(entry_time_ns & 0xffff_ffff, u64::from(low), "torn entry time");
            assert_eq!(data, [n; 2], "torn: entry time {entry_time_ns:#x}");
            n
        };
        let _ = read(&page).map(whole);
        writer.join().unwrap();
        assert_eq!(read(&page).map(whole), Some(updates), "a quiet area is read at once");
    });
}

#[test]
fn runstate_protocol_against_linux_64() {
    check_runstate::<0>(linux_runstate_read_64, false, true);
}

#[test]
fn runstate_protocol_against_linux_32() {
    check_runstate::<0>(linux_runstate_read_32, true, true);
}

#[test]
fn runstate_protocol_against_our_reader() {
    check_runstate::<0>(|page| read_flagged(page.entry(), page.data(), 1), true, true);
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_fence_after_the_flag_the_model_objects() {
    check_runstate::<1>(linux_runstate_read_64, false, true);
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_fence_before_the_flag_goes_the_model_objects() {
    check_runstate::<2>(linux_runstate_read_64, false, true);
}

#[test]
#[should_panic(expected = "torn")]
fn without_the_flag_the_model_objects() {
    check_runstate::<0>(linux_runstate_read_32, true, false);
}
