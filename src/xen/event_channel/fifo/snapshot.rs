//! The FIFO ABI outside of the guest: where its pages are, and what Xen's side
//! remembers of the queues.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::super::super::domain::lock;
use super::super::super::snapshot::RestoreError;
use super::{ARRAY_PAGES, Fifo, NONE};

/// The state of the FIFO ABI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FifoState {
    /// Guest-physical address of each vCPU's control block.
    pub control: Vec<Option<u64>>,
    /// Guest-physical address of each page of event words.
    pub array: Vec<u64>,
    /// The tails of queues that have one: number of the queue, port.
    pub tails: Vec<(u32, u32)>,
    /// Ports that were on a queue other than the first, or wait for their page:
    /// port, last queue, waits.
    pub ports: Vec<(u32, u32, bool)>,
}

impl Fifo {
    pub(in super::super) fn snapshot(&self, valid: u32) -> FifoState {
        let address = |gpa: u64| (gpa != NONE).then_some(gpa);
        let pages = usize::try_from(self.pages.load(Ordering::SeqCst)).unwrap_or(0);
        let tail = |(number, queue): (u32, &std::sync::Mutex<super::Queue>)| {
            let tail = lock(queue).tail;
            (tail != 0).then_some((number, tail))
        };
        let port = |port: u32| {
            let state = self.ports.get(port)?;
            let last = state.last_queue.load(Ordering::SeqCst);
            let waiting = state.waiting.load(Ordering::SeqCst);
            (last != 0 || waiting).then_some((port, last, waiting))
        };
        FifoState {
            control: self.control.iter().map(|gpa| address(gpa.load(Ordering::SeqCst))).collect(),
            array: self.array.iter().take(pages).map(|gpa| gpa.load(Ordering::SeqCst)).collect(),
            tails: (0u32..).zip(&self.queues).filter_map(tail).collect(),
            ports: (0..valid).filter_map(port).collect(),
        }
    }

    pub(in super::super) fn restore(vcpus: u32, from: &FifoState) -> Result<Self, RestoreError> {
        let wrong = |what, value: u32| RestoreError::Value { what, value: value.into() };
        let fifo = Self::new(vcpus);
        let pages = u32::try_from(from.array.len()).unwrap_or(u32::MAX);
        if from.control.len() != fifo.control.len() {
            return Err(RestoreError::Value { what: "number of control blocks", value: 0 });
        }
        if pages > ARRAY_PAGES {
            return Err(wrong("pages of event words", pages));
        }
        for (slot, gpa) in fifo.control.iter().zip(&from.control) {
            slot.store(gpa.unwrap_or(NONE), Ordering::SeqCst);
        }
        for (slot, gpa) in fifo.array.iter().zip(&from.array) {
            slot.store(*gpa, Ordering::SeqCst);
        }
        fifo.pages.store(pages, Ordering::SeqCst);
        for &(number, tail) in &from.tails {
            let queue = usize::try_from(number).ok().and_then(|number| fifo.queues.get(number));
            lock(queue.ok_or_else(|| wrong("queue", number))?).tail = tail;
        }
        for &(port, last, waiting) in &from.ports {
            let state = fifo.ports.make(port).ok_or_else(|| wrong("port", port))?;
            if usize::try_from(last).is_ok_and(|last| last >= fifo.queues.len()) {
                return Err(wrong("queue", last));
            }
            state.last_queue.store(last, Ordering::SeqCst);
            state.waiting.store(waiting, Ordering::SeqCst);
        }
        Ok(fifo)
    }
}
