//! The FIFO ABI: 131 072 ports, 16 priorities, one queue for each priority of
//! each vCPU.
//!
//! Each port has an event word in an array that the guest gives page by page;
//! each vCPU a control block with the heads of its queues and a word that says
//! which of them became non-empty. As in Xen's `event_fifo.c`: PENDING is set
//! and the event linked under the locks of its queue and, after it moved, of
//! the queue that it was on last.

mod control;
mod queue;
mod snapshot;
mod words;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use xen_abi::event_channel::EVTCHN_FIFO_MAX_QUEUES;

use super::super::domain::lock;
use super::ports::{Channel, Table};
use crate::pages::GuestRam;
use queue::{LINKED, MASKED, PENDING, Queue, Word, claim};

pub use snapshot::FifoState;

pub(super) use control::{expand_array, init_control, set_priority};

/// Event words in a page of the array.
const WORDS_PER_PAGE: u32 = 1024;
/// Pages of the whole array.
const ARRAY_PAGES: u32 = 128;
/// How often a port may change queues under the feet of one raise. Each change
/// is another raise that came through, so it takes a guest that moves a port
/// about all the time; it loses the event.
const QUEUE_TRIES: u32 = 16;
/// No address: the page was not given.
const NONE: u64 = u64::MAX;

/// What the FIFO ABI keeps for a port.
#[derive(Debug, Default)]
struct PortState {
    /// The number of the queue that it was linked on last. Changed under the
    /// locks of that queue and the new one.
    last_queue: AtomicU32,
    /// It is pending, but its page of the array is missing.
    waiting: AtomicBool,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::xen) struct Raised {
    /// It was not pending before.
    pub newly: bool,
    /// The vCPU has to be told.
    pub tell: bool,
}

/// The state of the FIFO ABI, there from the first `EVTCHNOP_init_control` on.
#[derive(Debug)]
pub(in crate::xen) struct Fifo {
    /// Address of each vCPU's control block.
    control: Box<[AtomicU64]>,
    /// Address of each page of the event array.
    array: Box<[AtomicU64]>,
    /// How many of these pages there are. Changed under `EventChannels::change`.
    pages: AtomicU32,
    /// Queue `priority` of vCPU `n` is number `16 n + priority`.
    queues: Box<[Mutex<Queue>]>,
    ports: Table<PortState>,
}

impl Fifo {
    fn new(vcpus: u32) -> Self {
        let queues = vcpus * EVTCHN_FIFO_MAX_QUEUES;
        Self {
            control: (0..vcpus).map(|_| AtomicU64::new(NONE)).collect(),
            array: (0..ARRAY_PAGES).map(|_| AtomicU64::new(NONE)).collect(),
            pages: AtomicU32::new(0),
            queues: (0..queues).map(|_| Mutex::default()).collect(),
            ports: Table::new(),
        }
    }

    /// Sets `port` pending and puts it on the queue of `channel`.
    pub(super) fn set_pending(&self, memory: &GuestRam, port: u32, channel: Channel) -> Raised {
        let Some(state) = self.ports.make(port) else { return Raised::default() };
        let word = match self.word(memory, port) {
            Some(word) => word,
            None => {
                let newly = !state.waiting.swap(true, Ordering::SeqCst);
                // Partner: `expand_array`, which adds the page and then looks
                // who waits. Whoever takes the flag raises the event.
                let came = self.word(memory, port);
                match came.filter(|_| state.waiting.swap(false, Ordering::SeqCst)) {
                    Some(word) => word,
                    None => return Raised { newly, tell: false },
                }
            }
        };
        let number = channel.vcpu * EVTCHN_FIFO_MAX_QUEUES + u32::from(channel.priority);
        let locked = self.lock_queues(state, number);
        // Under the locks: who sees it pending finds it on the queue too.
        let newly = word.fetch_or(PENDING) & PENDING == 0;
        let Some((mut queue, last)) = locked else {
            tracing::debug!(port, "an event is lost: its port moves all the time");
            return Raised { newly, tell: false };
        };
        let Some(block) = self.control_block(channel.vcpu) else {
            // The guest may not unmask a port of a vCPU that has none yet.
            return Raised { newly, tell: false };
        };
        let mut became_head = false;
        if claim(&word) {
            if let Some(mut last) = last {
                // It was the tail there: taken off, that queue is empty.
                if last.tail == port {
                    last.tail = 0;
                }
                state.last_queue.store(number, Ordering::SeqCst);
            }
            let head = block.head(memory, channel.priority);
            became_head = queue.append(port, |tail| self.word(memory, tail), &head);
        }
        drop(queue);
        let ready = 1 << u32::from(channel.priority);
        let tell = became_head && block.ready(memory).fetch_or(ready) & ready == 0;
        Raised { newly, tell }
    }

    /// Locks queue `number`, and the one that the port was on last if that is
    /// another; `None` if the port keeps moving.
    fn lock_queues(
        &self,
        state: &PortState,
        number: u32,
    ) -> Option<(MutexGuard<'_, Queue>, Option<MutexGuard<'_, Queue>>)> {
        let queue = |number: u32| {
            usize::try_from(number).ok().and_then(|index| self.queues.get(index)).map(lock)
        };
        for _ in 0..QUEUE_TRIES {
            let last_number = state.last_queue.load(Ordering::SeqCst);
            // The lower number first, wherever two are held.
            let locked = match number.cmp(&last_number) {
                std::cmp::Ordering::Equal => (queue(number)?, None),
                std::cmp::Ordering::Less => {
                    let new = queue(number)?;
                    (new, Some(queue(last_number)?))
                }
                std::cmp::Ordering::Greater => {
                    let last = queue(last_number)?;
                    (queue(number)?, Some(last))
                }
            };
            if state.last_queue.load(Ordering::SeqCst) == last_number {
                return Some(locked);
            }
        }
        None
    }

    /// Clears the mask of `port` and raises it if it is pending.
    pub(super) fn unmask(&self, memory: &GuestRam, port: u32, channel: Channel) -> Raised {
        let Some(word) = self.word(memory, port) else { return Raised::default() };
        if word.fetch_and(!MASKED) & PENDING == 0 {
            return Raised::default();
        }
        self.set_pending(memory, port, channel)
    }

    /// Clears PENDING only: the guest takes the port off its queue and finds
    /// that there is nothing to do.
    pub(super) fn clear_pending(&self, memory: &GuestRam, port: u32) {
        if let Some(state) = self.ports.get(port) {
            state.waiting.store(false, Ordering::SeqCst);
        }
        if let Some(word) = self.word(memory, port) {
            word.fetch_and(!PENDING);
        }
    }

    pub(super) fn is_pending(&self, memory: &GuestRam, port: u32) -> bool {
        self.word(memory, port).is_some_and(|word| word.load() & PENDING != 0)
    }

    /// Whether `port` is still on a queue, so that it can not be bound again.
    pub(super) fn is_busy(&self, memory: &GuestRam, port: u32) -> bool {
        self.word(memory, port).is_some_and(|word| word.load() & LINKED != 0)
    }
}
