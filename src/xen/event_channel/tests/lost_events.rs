//! A guest on one thread, senders on others: no event may be lost.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileMemory};

use super::super::super::test_platform::race;
use super::super::super::upcall::set_vector;
use super::*;

const PAGE: u64 = 0x5000;
const SENDS: u64 = 20_000;

/// Runs `work` on a word of guest memory, as the guest's own instructions do.
fn word<T>(domain: &Domain, gpa: u64, work: impl FnOnce(&AtomicU64) -> T) -> T {
    let memory = domain.memory();
    let slice = memory.get_slice(GuestAddress(gpa), 8).unwrap();
    work(slice.get_atomic_ref(0).unwrap())
}

/// The guest's upcall handler: the exchanges of a 2-level consumer, each level
/// cleared before the next is looked at. Calls `handle` with each port.
fn upcall(domain: &Domain, mut handle: impl FnMut(u32)) {
    loop {
        word(domain, PAGE, |info| info.fetch_and(!0xff, Ordering::SeqCst));
        let mut selector = word(domain, PAGE + 8, |sel| sel.swap(0, Ordering::SeqCst));
        while selector != 0 {
            let index = selector.trailing_zeros();
            selector &= selector - 1;
            let offset = u64::from(index) * 8;
            let mask = word(domain, PAGE + 0xa00 + offset, |mask| mask.load(Ordering::SeqCst));
            let at = PAGE + 0x800 + offset;
            let mut pending = word(domain, at, |word| word.load(Ordering::SeqCst)) & !mask;
            while pending != 0 {
                let bit = pending.trailing_zeros();
                pending &= pending - 1;
                word(domain, at, |word| word.fetch_and(!(1 << bit), Ordering::SeqCst));
                handle(index * 64 + bit);
            }
        }
        if word(domain, PAGE, |info| info.load(Ordering::SeqCst)) & 0xff == 0 {
            return;
        }
    }
}

#[test]
fn none_between_two_senders_and_a_masking_guest() {
    let (domain, platform, _) = domain(1);
    shared_info::place(&domain, 0, PAGE >> 12, Width::Bits64).unwrap();
    set_vector(&domain, 0, 0xf3).unwrap();
    let ports: Vec<u32> = (0..70).map(|_| bind_ipi(&domain, 0).unwrap()).collect();
    // In different words, so that selector and pending words both are raced on.
    let (low, high) = (ports[0], ports[69]);
    let sent = [AtomicU64::new(0), AtomicU64::new(0)];
    let done = AtomicBool::new(false);
    let mut seen = [0u64; 2];
    std::thread::scope(|scope| {
        let senders: Vec<_> = [low, high]
            .into_iter()
            .zip(&sent)
            .map(|(port, sent)| {
                let domain = &domain;
                scope.spawn(move || {
                    for _ in 0..SENDS {
                        sent.fetch_add(1, Ordering::SeqCst);
                        domain.set_pending(port, 0);
                    }
                })
            })
            .collect();
        let done = &done;
        scope.spawn(move || {
            for sender in senders {
                sender.join().unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        let mut masked_turn = 0u32;
        let mut finished_at: Option<Instant> = None;
        loop {
            // Read before looking for interrupts: after it none will come.
            let last_look = done.load(Ordering::SeqCst);
            if !platform.take().vectors.is_empty() {
                upcall(&domain, |port| {
                    let index = usize::from(port == high);
                    seen[index] = sent[index].load(Ordering::SeqCst);
                });
            }
            // Now and then as Linux does with an event in progress.
            masked_turn = masked_turn.wrapping_add(1);
            if masked_turn.is_multiple_of(7) {
                let bit = 1u64 << (low % 64);
                word(&domain, PAGE + 0xa00, |mask| mask.fetch_or(bit, Ordering::SeqCst));
                domain.unmask(low);
            }
            if last_look {
                if seen == [SENDS; 2] {
                    break;
                }
                let since = finished_at.get_or_insert_with(Instant::now);
                let late = since.elapsed() > Duration::from_millis(200);
                assert!(!late, "{SENDS} sent to each port, seen {seen:?}: an event was lost");
            }
            std::thread::yield_now();
        }
    });
}

/// An event races with the unmasking of its port: one of the two must tell.
#[test]
fn none_between_raising_and_unmasking() {
    let (domain, platform, _) = domain(1);
    shared_info::place(&domain, 0, PAGE >> 12, Width::Bits64).unwrap();
    set_vector(&domain, 0, 0xf3).unwrap();
    let port = bind_ipi(&domain, 0).unwrap();
    let bit = 1u64 << port;
    put(&domain, PAGE + 0xa00, &bit);
    let by_unmasking = Cell::new(0);
    race(
        10_000,
        61,
        || {
            domain.unmask(port);
            by_unmasking.set(by_unmasking.get() + u32::from(domain.upcall_pending(0)));
        },
        || domain.set_pending(port, 0),
        |round| {
            assert_eq!(platform.take().vectors, [(0, 0xf3)], "round {round}");
            assert_eq!(get::<u64>(&domain, PAGE + 8), 1, "round {round}: selector");
            put(&domain, PAGE, &[0u64; 2]);
            put(&domain, PAGE + 0x800, &0u64);
            put(&domain, PAGE + 0xa00, &bit);
        },
    );
    println!("told by the unmasking thread in {} of 10000 rounds", by_unmasking.get());
}
