//! A guest of the FIFO ABI on one thread, written as Linux takes events
//! (`drivers/xen/events/events_fifo.c`), senders on others: no event may be lost.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileMemory};

use super::super::super::upcall::set_vector;
use super::fifo::{ARRAY, CONTROL, fifo_domain, set_priority};
use super::*;

const SENDS: u64 = 20_000;
const PENDING: u32 = 1 << EVTCHN_FIFO_PENDING;
const MASKED: u32 = 1 << EVTCHN_FIFO_MASKED;
const LINKED: u32 = 1 << EVTCHN_FIFO_LINKED;
const BUSY: u32 = 1 << EVTCHN_FIFO_BUSY;
const PAGE: u64 = 0x5000;

fn word<T>(domain: &Domain, gpa: u64, work: impl FnOnce(&AtomicU32) -> T) -> T {
    let memory = domain.memory();
    let slice = memory.get_slice(GuestAddress(gpa), 4).unwrap();
    work(slice.get_atomic_ref(0).unwrap())
}

fn event<T>(domain: &Domain, port: u32, work: impl FnOnce(&AtomicU32) -> T) -> T {
    word(domain, ARRAY + u64::from(port) * 4, work)
}

/// What a guest keeps for a vCPU: the head of each queue as it went on.
#[derive(Default)]
struct Heads([u32; 16]);

impl Heads {
    /// The upcall of `vcpu`; calls `handle` with each port that is pending.
    fn upcall(&mut self, domain: &Domain, vcpu: u32, mut handle: impl FnMut(u32)) {
        let block = CONTROL + u64::from(vcpu) * 128;
        word(domain, PAGE + u64::from(vcpu) * 64, |flag| flag.fetch_and(!0xff, Ordering::SeqCst));
        let mut ready = word(domain, block, |word| word.swap(0, Ordering::SeqCst));
        while ready != 0 {
            let queue = ready.trailing_zeros();
            self.take_one(domain, block, queue, &mut ready, &mut handle);
            ready |= word(domain, block, |word| word.swap(0, Ordering::SeqCst));
        }
    }

    fn take_one(
        &mut self,
        domain: &Domain,
        block: u64,
        queue: u32,
        ready: &mut u32,
        handle: &mut impl FnMut(u32),
    ) {
        let head = &mut self.0[queue as usize];
        if *head == 0 {
            let at = block + 8 + u64::from(queue) * 4;
            *head = word(domain, at, |head| head.load(Ordering::SeqCst));
        }
        let port = *head;
        let keep = !(LINKED | EVTCHN_FIFO_LINK_MASK);
        let was = event(domain, port, |word| word.fetch_and(keep, Ordering::SeqCst));
        *head = was & EVTCHN_FIFO_LINK_MASK;
        if *head == 0 {
            *ready &= !(1 << queue);
        }
        let now = event(domain, port, |word| word.load(Ordering::SeqCst));
        if now & (PENDING | MASKED) == PENDING {
            event(domain, port, |word| word.fetch_and(!PENDING, Ordering::SeqCst));
            handle(port);
        }
    }
}

/// Unmasks without a hypercall where that may be done: not while the event is
/// pending or Xen is at the word.
fn unmask(domain: &Domain, port: u32) {
    let mut old = event(domain, port, |word| word.load(Ordering::SeqCst)) & !BUSY;
    loop {
        if old & PENDING != 0 {
            domain.unmask(port);
            return;
        }
        let done = event(domain, port, |word| {
            word.compare_exchange(old, old & !MASKED, Ordering::SeqCst, Ordering::SeqCst)
        });
        match done {
            Ok(_) => return,
            Err(now) => old = now & !BUSY,
        }
    }
}

/// Ports of three kinds of trouble: on one queue together, alone on a queue,
/// moved between vCPUs and priorities all the time.
#[test]
fn none_between_senders_and_a_guest_that_masks_and_moves() {
    let (domain, platform) = fifo_domain(2);
    shared_info::place(&domain, 0, PAGE >> 12, Width::Bits64).unwrap();
    (0..2).for_each(|vcpu| set_vector(&domain, vcpu, 0xf3).unwrap());
    let ports: Vec<u32> = (0..5).map(|pirq| bind_pirq(&domain, pirq).unwrap()).collect();
    set_priority(&domain, ports[2], 0).unwrap();
    let sent = [const { AtomicU64::new(0) }; 5];
    let done = AtomicBool::new(false);
    let mut seen = [0u64; 5];
    let mut upcalls = 0u64;
    std::thread::scope(|scope| {
        let senders: Vec<_> = [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 4, 0, 3, 2]]
            .into_iter()
            .map(|order| {
                let (domain, sent) = (&domain, &sent);
                scope.spawn(move || {
                    for _ in 0..SENDS {
                        for index in order {
                            sent[index].fetch_add(1, Ordering::SeqCst);
                            domain.raise_pirq(u32::try_from(index).unwrap());
                        }
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
        let mut heads = [Heads::default(), Heads::default()];
        let mut turn = 0u32;
        let mut finished_at: Option<Instant> = None;
        loop {
            // Read before looking for interrupts: after it none will come.
            let last_look = done.load(Ordering::SeqCst);
            let mut told = platform.take().vectors;
            told.dedup();
            for (vcpu, _) in told {
                upcalls += 1;
                heads[vcpu as usize].upcall(&domain, vcpu, |port| {
                    let index = ports.iter().position(|&other| other == port).unwrap();
                    seen[index] = sent[index].load(Ordering::SeqCst);
                });
            }
            turn = turn.wrapping_add(1);
            if turn.is_multiple_of(5) {
                let port = ports[(turn % 3) as usize];
                event(&domain, port, |word| word.fetch_or(MASKED, Ordering::SeqCst));
                unmask(&domain, port);
            }
            if turn.is_multiple_of(7) {
                let port = ports[3];
                event(&domain, port, |word| word.fetch_or(MASKED, Ordering::SeqCst));
                bind_vcpu(&domain, port, turn % 2).unwrap();
                unmask(&domain, port);
                set_priority(&domain, ports[4], turn % 16).unwrap();
            }
            if last_look {
                if seen == [3 * SENDS; 5] {
                    break;
                }
                let since = finished_at.get_or_insert_with(Instant::now);
                let late = since.elapsed() > Duration::from_secs(2);
                assert!(!late, "{} sent to each port, seen {seen:?}: lost", 3 * SENDS);
            }
            std::thread::yield_now();
        }
    });
    let raised = domain.events_delivered();
    assert!(upcalls <= raised, "{upcalls} upcalls for {raised} events");
    println!("{raised} events of {} sends, {upcalls} upcalls", 15 * SENDS);
}

/// The array grows under a sender: its event is raised by one of the two.
#[test]
fn none_while_the_array_grows() {
    let (domain, ..) = domain(1);
    super::fifo::init_control(&domain, 0, CONTROL).unwrap();
    while bind_ipi(&domain, 0).unwrap() < 1025 {}
    let reset = |domain: &Domain| {
        let layout = read(&domain.layout);
        layout.fifo.as_ref().unwrap().forget_pages();
    };
    super::super::super::test_platform::race(
        3000,
        61,
        || {
            super::fifo::expand_array(&domain, ARRAY).unwrap();
        },
        || {
            domain.raise_channel(1, domain.events.ports.get(1));
        },
        |round| {
            let word: u32 = get(&domain, ARRAY + 4);
            assert_eq!(word, PENDING | LINKED, "round {round}");
            put(&domain, ARRAY + 4, &0u32);
            put(&domain, CONTROL, &EvtchnFifoControlBlock::default());
            reset(&domain);
        },
    );
}

/// The guest turns to the FIFO ABI while events come: each is found either in
/// the old bitmap or on the way to its word.
#[test]
fn none_while_the_guest_changes_the_abi() {
    let (domain, ..) = domain(1);
    let port = bind_ipi(&domain, 0).unwrap();
    let reset = EvtchnReset { dom: DOMID_SELF };
    super::super::super::test_platform::race(
        1000,
        61,
        || {
            super::fifo::init_control(&domain, 0, CONTROL).unwrap();
        },
        || domain.raise_channel(port, Channel::new(0, State::Ipi)),
        |round| {
            super::fifo::expand_array(&domain, ARRAY).unwrap();
            let word: u32 = get(&domain, ARRAY + 4);
            assert_eq!(word, PENDING | LINKED, "round {round}");
            run(&domain, EVTCHNOP_RESET, reset).unwrap();
            assert_eq!(bind_ipi(&domain, 0), Ok(port));
            put(&domain, ARRAY + 4, &0u32);
        },
    );
}
