//! The handover: a guest is asked to gather its vCPUs before it is moved, says
//! when it has, and is let go with a record of how far its clocks moved. The
//! whole protocol is in `docs/handover.md`.
//!
//! ```text
//!            ask               READY              moved, or stays
//!   idle ──────────► asked ──────────► gathered ────────────────► going
//!    ▲                 │                                            │
//!    └─────────────────┴──── withdrawn; DONE declines      DONE ────┘
//! ```
//!
//! From asked to idle again `VCPUOP_send_nmi` is held back. One lock covers the
//! state and all writes to the page; only the platform's NMIs are raised under it.

mod snapshot;
#[cfg(test)]
mod tests;

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use vm_memory::GuestAddress;
use xen_abi::errno::Errno;
use xen_abi::handover::{
    HANDOVER_DONE, HANDOVER_FLAG_GATHERED, HANDOVER_FLAG_MOVED, HANDOVER_READY, HANDOVER_REGISTER,
    HANDOVER_UNREGISTER, HANDOVER_VERSION, HANDOVER_VIRQ,
};

pub use snapshot::{HandoverPhase, HandoverState};

use super::domain::{Domain, lock};
use super::{Call, Reply};
use crate::pages::{HandoverRecord, HandoverWords, PageError};

/// What the domain keeps of handovers.
#[derive(Debug, Default)]
pub(super) struct Handover {
    state: Mutex<State>,
    /// The guest answered.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    page: Option<GuestAddress>,
    /// Of the page, as it was written last.
    sequence: u32,
    /// The last one that was given out; they are never 0.
    ticket: u32,
    phase: HandoverPhase,
    /// vCPUs whose NMI is held back, by their number.
    held_nmis: u128,
}

/// How the guest answered, so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandoverAnswer {
    /// All its vCPUs are gathered.
    Ready,
    /// It declined, or gave up its page.
    Declined,
    /// Not at all.
    Late,
}

/// Why the guest can not be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandoverError {
    /// It has no page for it.
    #[error("the guest has not registered for a handover")]
    NotRegistered,
    /// It would not hear of it.
    #[error("the guest registered for a handover, and has not bound VIRQ {HANDOVER_VIRQ}")]
    NotBound,
    /// It has not said that the last one is done.
    #[error("the guest has not finished the handover before this one")]
    Unfinished,
    /// Its page is gone.
    #[error("the guest's handover page is no memory: {0}")]
    Page(#[from] PageError),
}

/// `HYPERVISOR_arch_7`: `HANDOVER_*`, arguments in registers alone.
///
/// # Errors
/// `ENOSYS` for an unknown command, otherwise as each command states.
pub(super) fn op(call: &mut Call<'_>, cmd: u64, arg: u64, version: u64) -> Reply {
    let domain = call.domain;
    let ticket = || u32::try_from(arg).map_err(|_| Errno::ENOENT);
    match u32::try_from(cmd).map_err(|_| Errno::ENOSYS)? {
        HANDOVER_REGISTER => domain.handover_register(arg, version),
        HANDOVER_UNREGISTER => domain.handover_unregister(),
        HANDOVER_READY => domain.handover_ready(ticket()?),
        HANDOVER_DONE => domain.handover_done(ticket()?),
        _ => Err(Errno::ENOSYS),
    }
    .map(|()| 0)
}

impl Domain {
    /// `HANDOVER_register`: `EOPNOTSUPP` another version, `EBUSY` during a
    /// handover, `EFAULT` where the frame is no memory.
    fn handover_register(&self, frame: u64, version: u64) -> Result<(), Errno> {
        if version != u64::from(HANDOVER_VERSION) {
            return Err(Errno::EOPNOTSUPP);
        }
        let gpa = frame.checked_mul(4096).map(GuestAddress).ok_or(Errno::EFAULT)?;
        let mut state = lock(&self.handover.state);
        if state.phase != HandoverPhase::Idle {
            return Err(Errno::EBUSY);
        }
        let memory = self.memory();
        let first = HandoverRecord { move_count: self.move_count(), ..HandoverRecord::default() };
        let page = HandoverWords { memory: &memory, gpa };
        page.begin(&first).map_err(|_| Errno::EFAULT)?;
        (state.page, state.sequence) = (Some(gpa), 0);
        Ok(())
    }

    /// `HANDOVER_unregister`: `ENOENT` where nothing is registered. During a
    /// handover it declines, or breaks it off.
    fn handover_unregister(&self) -> Result<(), Errno> {
        let mut state = lock(&self.handover.state);
        state.page.take().ok_or(Errno::ENOENT)?;
        self.handover_idle(&mut state);
        Ok(())
    }

    /// `HANDOVER_ready`: `EEXIST` where that was said before, `ENOENT` where
    /// nobody asks for it, or not any more.
    fn handover_ready(&self, ticket: u32) -> Result<(), Errno> {
        let mut state = lock(&self.handover.state);
        match state.phase {
            HandoverPhase::Asked if ticket == state.ticket => {
                state.phase = HandoverPhase::Gathered;
                self.handover.changed.notify_all();
                Ok(())
            }
            HandoverPhase::Gathered | HandoverPhase::Going if ticket == state.ticket => {
                Err(Errno::EEXIST)
            }
            _ => Err(Errno::ENOENT),
        }
    }

    /// `HANDOVER_done`: `EBUSY` before `go`, `ENOENT` for a ticket that is not
    /// under way.
    fn handover_done(&self, ticket: u32) -> Result<(), Errno> {
        let mut state = lock(&self.handover.state);
        if ticket != state.ticket {
            return Err(Errno::ENOENT);
        }
        match state.phase {
            HandoverPhase::Idle => Err(Errno::ENOENT),
            HandoverPhase::Gathered => Err(Errno::EBUSY),
            HandoverPhase::Asked => {
                self.handover_clear_request(&state);
                self.handover_idle(&mut state);
                Ok(())
            }
            HandoverPhase::Going => {
                self.handover_idle(&mut state);
                Ok(())
            }
        }
    }

    /// Asks the guest to gather its vCPUs; the ticket of the request. Call
    /// [`handover_answer`](Self::handover_answer) for what it says.
    ///
    /// # Errors
    /// [`HandoverError`]: it was not asked, or can not answer.
    pub fn handover_ask(&self) -> Result<u32, HandoverError> {
        let ticket = {
            let mut state = lock(&self.handover.state);
            let gpa = state.page.ok_or(HandoverError::NotRegistered)?;
            if state.phase != HandoverPhase::Idle {
                return Err(HandoverError::Unfinished);
            }
            let ticket = state.ticket.wrapping_add(1).max(1);
            // A1. Before the event, whose atomic operations order it.
            HandoverWords { memory: &self.memory(), gpa }.request(ticket)?;
            (state.ticket, state.phase) = (ticket, HandoverPhase::Asked);
            ticket
        };
        // A2. Without the lock: it takes those of event channels.
        if self.raise_virq(0, HANDOVER_VIRQ) {
            return Ok(ticket);
        }
        let _ = self.handover_withdraw(ticket);
        Err(HandoverError::NotBound)
    }

    /// Waits for the guest's answer to `ticket` for at most `within`.
    pub fn handover_answer(&self, ticket: u32, within: Duration) -> HandoverAnswer {
        let until = Instant::now() + within;
        let mut state = lock(&self.handover.state);
        loop {
            match state.phase {
                _ if state.ticket != ticket => return HandoverAnswer::Declined,
                HandoverPhase::Gathered => return HandoverAnswer::Ready,
                HandoverPhase::Idle | HandoverPhase::Going => return HandoverAnswer::Declined,
                HandoverPhase::Asked => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return HandoverAnswer::Late;
            }
            let waited = self.handover.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    /// Nobody waits for the guest's answer any more; what it was, if it came
    /// before this.
    pub fn handover_withdraw(&self, ticket: u32) -> HandoverAnswer {
        let mut state = lock(&self.handover.state);
        match state.phase {
            HandoverPhase::Gathered if state.ticket == ticket => HandoverAnswer::Ready,
            HandoverPhase::Asked if state.ticket == ticket => {
                self.handover_clear_request(&state);
                self.handover_idle(&mut state);
                HandoverAnswer::Late
            }
            _ => HandoverAnswer::Declined,
        }
    }

    /// The gathered guest was not moved after all: lets it go. Nothing happens
    /// where it is not gathered.
    pub fn handover_stays(&self) {
        let mut state = lock(&self.handover.state);
        if state.phase == HandoverPhase::Gathered {
            let record = HandoverRecord { move_count: self.move_count(), ..Default::default() };
            self.handover_publish(&mut state, record);
        }
    }

    /// The guest was moved or restored, and runs next: tells how far its clocks
    /// moved, and lets it go if it is gathered. `record` has all but the number of
    /// moves, and of its flags those of time.
    pub fn handover_moved(&self, record: HandoverRecord) {
        let mut state = lock(&self.handover.state);
        if state.phase == HandoverPhase::Asked {
            // Nobody here waits for it.
            self.handover_clear_request(&state);
            self.handover_idle(&mut state);
        }
        let flags = record.flags | HANDOVER_FLAG_MOVED;
        let record = HandoverRecord { flags, move_count: self.move_count(), ..record };
        self.handover_publish(&mut state, record);
    }

    /// Where the guest stands, and with which ticket; `None` where it has not
    /// registered.
    pub fn handover_phase(&self) -> Option<(HandoverPhase, u32)> {
        let state = lock(&self.handover.state);
        state.page.map(|_| (state.phase, state.ticket))
    }

    /// Moves and restores so far.
    fn move_count(&self) -> u64 {
        u64::from(self.config.incarnation.saturating_sub(1))
    }

    /// Writes the record. Who is gathered goes; on a page that is gone nobody
    /// can be told.
    fn handover_publish(&self, state: &mut State, mut record: HandoverRecord) {
        let Some(gpa) = state.page else { return };
        let gathered = state.phase == HandoverPhase::Gathered;
        if gathered {
            record.flags |= HANDOVER_FLAG_GATHERED;
            state.phase = HandoverPhase::Going;
            self.handover_clear_request(state);
        }
        let memory = self.memory();
        let page = HandoverWords { memory: &memory, gpa };
        match page.publish(&record, state.sequence, gathered.then_some(state.ticket)) {
            Ok(sequence) => state.sequence = sequence,
            Err(error) => tracing::warn!(%error, "the guest is not told that it moved"),
        }
    }

    fn handover_clear_request(&self, state: &State) {
        let Some(gpa) = state.page else { return };
        if let Err(error) = (HandoverWords { memory: &self.memory(), gpa }).request(0) {
            tracing::debug!(%error, "the handover's request stays in the page");
        }
    }

    /// The end of a handover, one way or the other: held NMIs are raised.
    fn handover_idle(&self, state: &mut State) {
        state.phase = HandoverPhase::Idle;
        self.handover.changed.notify_all();
        let held = std::mem::take(&mut state.held_nmis);
        for vcpu in self.vcpu_ids().filter(|vcpu| held & bit(*vcpu) != 0) {
            if let Err(errno) = self.platform.raise_nmi(vcpu) {
                tracing::debug!(vcpu, %errno, "an NMI that was held back is lost");
            }
        }
    }

    /// `VCPUOP_send_nmi`: at once, or after a handover; several in one are one,
    /// as an NMI that is latched.
    ///
    /// # Errors
    /// `ENOSYS` where the machine can not.
    pub(super) fn send_nmi(&self, vcpu: u32) -> Result<(), Errno> {
        let mut state = lock(&self.handover.state);
        if state.phase == HandoverPhase::Idle {
            return self.platform.raise_nmi(vcpu);
        }
        state.held_nmis |= bit(vcpu);
        Ok(())
    }

    /// The guest goes on in a domain made anew: nothing is registered.
    pub(super) fn renew_handover(&self) {
        let mut state = lock(&self.handover.state);
        state.page = None;
        state.held_nmis = 0;
        self.handover_idle(&mut state);
    }
}

const _: () = assert!(HANDOVER_VIRQ < xen_abi::xen::NR_VIRQS);

/// vCPUs are at most 128.
fn bit(vcpu: u32) -> u128 {
    1u128.checked_shl(vcpu).unwrap_or(0)
}
