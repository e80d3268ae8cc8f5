//! No event is lost between senders and a guest of the FIFO ABI.
//!
//! Model check of `src/xen/event_channel/fifo/queue.rs` itself, with loom's
//! atomics for the words in guest memory and a guest that takes events as Linux
//! does. The lock of a queue is loom's mutex. Each step of the writer that holds
//! the two together is also left out once: the model has to object.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --profile loom --no-default-features --test loom_events`.
//!
//! Loom takes SeqCst for AcqRel. That is enough here: what decides lies in one
//! word each time, or goes from a word that was written before another one.
#![cfg(loom)]

#[path = "../src/xen/event_channel/fifo/queue.rs"]
#[expect(dead_code, reason = "each model uses a part of it")]
mod queue;

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use queue::{BUSY, LINKED, MASKED, PENDING, Queue, Word, claim};
use xen_abi::event_channel::EVTCHN_FIFO_LINK_MASK;

/// A word of guest memory.
struct Modelled(AtomicU32);

impl Word for &Modelled {
    fn load(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    fn store(&self, value: u32) {
        self.0.store(value, Ordering::SeqCst);
    }

    fn fetch_or(&self, bits: u32) -> u32 {
        self.0.fetch_or(bits, Ordering::SeqCst)
    }

    fn fetch_and(&self, bits: u32) -> u32 {
        self.0.fetch_and(bits, Ordering::SeqCst)
    }

    fn compare_exchange(&self, old: u32, new: u32) -> u32 {
        match self.0.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(was) | Err(was) => was,
        }
    }
}

/// What the model's Xen does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Says that the queue is not empty before the head is there.
    ReadyFirst,
    /// Never looks whether the tail was taken: always links to it.
    TrustsTail,
    /// Links an event without setting LINKED: others may link it too.
    NoClaim,
}

/// One queue of one vCPU with ports 1 and 2.
struct Model {
    words: [Modelled; 3],
    head: Modelled,
    ready: Modelled,
    queue: Mutex<Queue>,
}

impl Model {
    fn new() -> Arc<Self> {
        let word = || Modelled(AtomicU32::new(0));
        Arc::new(Self {
            words: [word(), word(), word()],
            head: word(),
            ready: word(),
            queue: Mutex::new(Queue::default()),
        })
    }

    fn word(&self, port: u32) -> &Modelled {
        &self.words[port as usize]
    }

    /// Raises an event, as `Fifo::set_pending` does under the queue's lock.
    fn raise(&self, port: u32, fault: Fault) {
        let became_head = {
            let mut queue = self.queue.lock().unwrap();
            let word = self.word(port);
            (&word).fetch_or(PENDING);
            let claimed = match fault {
                Fault::NoClaim => (&word).load() & (MASKED | LINKED) == 0,
                _ => claim(&word),
            };
            if fault == Fault::ReadyFirst {
                (&&self.ready).fetch_or(1);
            }
            let tail = queue.tail;
            if fault == Fault::TrustsTail && claimed && tail != 0 && tail != port {
                (&self.word(tail)).fetch_or(port);
                queue.tail = port;
                false
            } else {
                claimed && queue.append(port, |tail| Some(self.word(tail)), &&self.head)
            }
        };
        if became_head {
            (&&self.ready).fetch_or(1);
        }
    }
}

/// The guest's side of the queue.
#[derive(Default)]
struct Guest {
    head: u32,
    /// Events taken of each port.
    taken: [u32; 3],
}

impl Guest {
    /// An upcall. Linux has no bound here; the model's lists are short, and one
    /// that goes in a circle is a failure.
    fn upcall(&mut self, model: &Model) {
        let mut ready = model.ready.0.swap(0, Ordering::SeqCst);
        let mut steps = 0;
        while ready != 0 {
            steps += 1;
            assert!(steps < 20, "the queue goes in a circle");
            if self.head == 0 {
                self.head = model.head.0.load(Ordering::SeqCst);
            }
            let port = self.head;
            assert_ne!(port, 0, "told of a queue without a head");
            let keep = !(LINKED | EVTCHN_FIFO_LINK_MASK);
            let was = model.word(port).0.fetch_and(keep, Ordering::SeqCst);
            assert_ne!(was & LINKED, 0, "port {port} is on no queue");
            self.head = was & EVTCHN_FIFO_LINK_MASK;
            if self.head == 0 {
                ready = 0;
            }
            if model.word(port).0.load(Ordering::SeqCst) & (PENDING | MASKED) == PENDING {
                model.word(port).0.fetch_and(!PENDING, Ordering::SeqCst);
                self.taken[port as usize] += 1;
            }
            ready |= model.ready.0.swap(0, Ordering::SeqCst);
        }
    }

    /// Linux's unmask: by itself, or, where the event is pending, by hypercall.
    fn unmask(model: &Model, port: u32) {
        let word = model.word(port);
        let mut old = word.0.load(Ordering::SeqCst) & !BUSY;
        for _ in 0..8 {
            if old & PENDING != 0 {
                if word.0.fetch_and(!MASKED, Ordering::SeqCst) & PENDING != 0 {
                    model.raise(port, Fault::None);
                }
                return;
            }
            let new = old & !MASKED;
            match word.0.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return,
                Err(now) => old = now & !BUSY,
            }
        }
        panic!("Xen keeps the word busy");
    }

    /// At rest: takes what is left, and nothing may be pending behind its back.
    fn finish(&mut self, model: &Model, ports: &[u32]) {
        self.upcall(model);
        for &port in ports {
            let word = model.word(port).0.load(Ordering::SeqCst);
            assert_eq!(word, 0, "port {port}: lost, or left on a queue");
            assert!(self.taken[port as usize] > 0, "port {port} never came");
        }
    }
}

/// Loom's exploration, with so many preemptions of each run.
fn check(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

/// Two senders, each to its own port on the same queue, while the guest takes.
fn two_senders(fault: Fault) {
    check(move || {
        let model = Model::new();
        let senders: Vec<_> = [1, 2]
            .into_iter()
            .map(|port| {
                let model = Arc::clone(&model);
                thread::spawn(move || model.raise(port, fault))
            })
            .collect();
        let mut guest = Guest::default();
        guest.upcall(&model);
        for sender in senders {
            sender.join().unwrap();
        }
        guest.finish(&model, &[1, 2]);
    });
}

#[test]
fn two_senders_on_one_queue() {
    two_senders(Fault::None);
}

#[test]
#[should_panic(expected = "")]
fn a_ready_bit_before_its_head_is_found() {
    two_senders(Fault::ReadyFirst);
}

#[test]
#[should_panic(expected = "")]
fn a_tail_that_was_taken_is_found() {
    two_senders(Fault::TrustsTail);
}

/// The same port from two sides: once on the queue is enough, and once it is.
fn one_port(fault: Fault) {
    check(move || {
        let model = Model::new();
        let sender = {
            let model = Arc::clone(&model);
            thread::spawn(move || {
                model.raise(1, fault);
                model.raise(2, fault);
                model.raise(1, fault);
            })
        };
        let mut guest = Guest::default();
        guest.upcall(&model);
        sender.join().unwrap();
        guest.finish(&model, &[1, 2]);
    });
}

#[test]
fn the_same_port_again() {
    one_port(Fault::None);
}

#[test]
#[should_panic(expected = "")]
fn an_event_that_nobody_claims_is_found() {
    one_port(Fault::NoClaim);
}

/// A guest that masks and unmasks the tail while another event is linked to it.
#[test]
fn masking_the_tail() {
    check(|| {
        let model = Model::new();
        model.raise(1, Fault::None);
        let sender = {
            let model = Arc::clone(&model);
            thread::spawn(move || model.raise(2, Fault::None))
        };
        let mut guest = Guest::default();
        model.word(1).0.fetch_or(MASKED, Ordering::SeqCst);
        Guest::unmask(&model, 1);
        guest.upcall(&model);
        sender.join().unwrap();
        guest.finish(&model, &[1, 2]);
    });
}

/// An event comes while its port is being unmasked: one of the two tells.
#[test]
fn unmasking_and_raising() {
    check(|| {
        let model = Model::new();
        model.word(1).0.store(MASKED, Ordering::SeqCst);
        let sender = {
            let model = Arc::clone(&model);
            thread::spawn(move || model.raise(1, Fault::None))
        };
        Guest::unmask(&model, 1);
        let mut guest = Guest::default();
        guest.upcall(&model);
        sender.join().unwrap();
        guest.finish(&model, &[1]);
    });
}
