//! Stopping the vCPUs for a while, and knowing that they stand.
//!
//! A vCPU thread looks here before each entry. Where somebody holds the machine
//! it stays here, out of KVM_RUN and with no hypercall under way, until the last
//! hold is gone. [`Pause::hold`] comes back when all vCPUs have come here, or
//! gives up after a bounded time and lets them go on. Holds are counted: a save
//! within a pause does not end the pause; the threads that stay here do what it
//! asks of their vCPUs.
//!
//! The guest's clock runs on. Its TSC counts, system time with it; a timer that
//! comes due makes its event pending, and the guest sees it after the pause,
//! late. The time is stolen by the guest's account, of a vCPU that halted it slept.
//!
//! Why a vCPU can not slip by: `hold` sets the flag and then kicks, each kick
//! under the lock of that vCPU's bell. A thread that had looked at the flag
//! before gets the signal, which sets `immediate_exit`, so that its KVM_RUN
//! comes out at once; one that begins later takes that lock first, and sees the
//! flag.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The vCPUs did not all stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{running} of {vcpus} vCPUs did not stop within {} ms; they run on, try again",
    waited.as_millis()
)]
pub struct NotStopped {
    /// Still inside.
    pub running: u32,
    /// Of so many.
    pub vcpus: u32,
    /// After this time.
    pub waited: Duration,
}

#[derive(Debug)]
struct State {
    holds: u32,
    /// vCPUs whose threads may be in KVM_RUN.
    inside: u32,
    /// The machine ends: nobody is kept any more.
    ended: bool,
}

/// Where the vCPU threads of one machine wait.
#[derive(Debug)]
pub struct Pause {
    /// Whether there are holds: the look of the fast path.
    held: AtomicBool,
    vcpus: u32,
    state: Mutex<State>,
    changed: Condvar,
}

impl Pause {
    /// For a machine of `vcpus`, none of which runs yet.
    #[must_use]
    pub const fn new(vcpus: u32) -> Self {
        Self {
            held: AtomicBool::new(false),
            vcpus,
            state: Mutex::new(State { holds: 0, inside: 0, ended: false }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody holds the machine. A vCPU that waits in a hypercall ends
    /// its wait then, as if woken: guests know that this may happen for nothing,
    /// and Xen does the same to a vCPU that it saves.
    #[must_use]
    pub fn is_held(&self) -> bool {
        // Partner: the Release store in `hold`. A stale look is found out by the
        // kick that follows that store.
        self.held.load(Ordering::Acquire)
    }

    /// The calling vCPU thread begins; [`leave`](Self::leave) is its end.
    pub fn enter(&self) {
        self.lock().inside += 1;
    }

    /// The calling vCPU thread is about to enter the guest: stays here while
    /// somebody holds the machine. `true` if it stayed. When `wanted` says so after
    /// a [`nudge`](Self::nudge), it does `serve` and stays on.
    pub fn pass(&self, wanted: impl Fn() -> bool, mut serve: impl FnMut()) -> bool {
        if !self.is_held() {
            return false;
        }
        let mut state = self.lock();
        if state.holds == 0 || state.ended {
            return false;
        }
        state.inside -= 1;
        self.changed.notify_all();
        while state.holds > 0 && !state.ended {
            if wanted() {
                drop(state);
                serve();
                state = self.lock();
                continue;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.inside += 1;
        true
    }

    /// The calling vCPU thread runs its vCPU no more.
    pub fn leave(&self) {
        self.lock().inside -= 1;
        self.changed.notify_all();
    }

    /// Has those who stay look at what else is wanted of them.
    pub fn nudge(&self) {
        // Taken once, so that no thread is between its look and its sleep.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// The machine ends: lets everybody go.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Stops all vCPUs. When this is back, none is in KVM_RUN, and none goes in
    /// while the [`Hold`] lives. `kick` calls each vCPU out, also one that waits
    /// in a hypercall.
    ///
    /// # Errors
    /// [`NotStopped`] when some are still inside after `within`; this hold is
    /// then gone.
    pub fn hold(self: &Arc<Self>, within: Duration, kick: impl Fn()) -> Result<Hold, NotStopped> {
        let begin = Instant::now();
        {
            let mut state = self.lock();
            state.holds += 1;
            // Partner: the Acquire load in `is_held`.
            self.held.store(true, Ordering::Release);
        }
        let hold = Hold { pause: Arc::clone(self) };
        kick();
        let mut state = self.lock();
        while state.inside > 0 {
            let Some(left) = within.checked_sub(begin.elapsed()) else {
                let running = state.inside;
                drop(state);
                drop(hold);
                return Err(NotStopped { running, vcpus: self.vcpus, waited: within });
            };
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        Ok(hold)
    }
}

/// All vCPUs stand while this lives.
#[derive(Debug)]
pub struct Hold {
    pause: Arc<Pause>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.pause.lock();
        state.holds -= 1;
        if state.holds == 0 {
            self.pause.held.store(false, Ordering::Release);
        }
        self.pause.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
