//! A guest that suspends itself: all its vCPU threads stand still here until
//! somebody lets them go on.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::vcpu::{Shared, VcpuParts};
use crate::xen::{RenewError, Resumed, ShutdownRequest};

/// Where vCPU threads wait while the guest is suspended.
#[derive(Debug, Default)]
pub struct SuspendGate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Somebody is there to resume the guest. If not, suspending ends it.
    attended: bool,
    /// vCPU threads that stand still.
    parked: u32,
    /// How often the guest was resumed.
    resumed: u64,
    how: Option<Resumed>,
}

impl SuspendGate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody will resume a guest that suspends.
    pub fn is_attended(&self) -> bool {
        self.lock().attended
    }

    /// Keeps the thread of `vcpu`, which has completed its last exit, here until
    /// the guest is resumed, or the machine ends. How it was resumed. What is
    /// wanted of a vCPU that is to be saved is done meanwhile.
    pub fn park(&self, id: u32, vcpu: &mut VcpuParts, shared: &Shared) -> Option<Resumed> {
        shared.domain.vcpu_suspended(id);
        // Out of the guest: as good as held.
        shared.pause.leave();
        let mut state = self.lock();
        let before = state.resumed;
        state.parked += 1;
        self.changed.notify_all();
        while state.resumed == before && !shared.exit.is_ending() {
            if shared.quiesce.is_wanted() {
                drop(state);
                shared.quiesce.park(id, vcpu);
                state = self.lock();
                continue;
            }
            state = self.wait(state, None);
        }
        state.parked -= 1;
        let how = state.how.filter(|_| state.resumed != before);
        drop(state);
        shared.pause.enter();
        shared.domain.vcpu_resumed(id);
        how
    }

    /// Has those who wait look whether the machine ends, or something is wanted
    /// of them.
    pub fn nudge(&self) {
        // Taken once, so that no thread is between its look and its sleep.
        drop(self.lock());
        self.changed.notify_all();
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        timeout: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        match timeout {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                let waited = self.changed.wait_timeout(state, timeout);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }
}

fn stands_still(shared: &Shared, state: &State) -> bool {
    shared.domain.is_suspended() && state.parked == shared.domain.config().vcpus
}

/// Why a guest did not suspend or resume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuspendError {
    /// The machine is paused.
    #[error("the machine is paused, so the guest can not suspend itself: resume it first")]
    Paused,
    /// The guest can not be asked, or can not go on.
    #[error(transparent)]
    Guest(#[from] RenewError),
    /// It did not do it in time.
    #[error("the guest did not suspend within {0:?}: its log says why, or it needs longer")]
    Timeout(Duration),
    /// It ended.
    #[error("the guest ended")]
    Ended,
}

/// Suspends and resumes the guest of a machine that runs. While one of these
/// was made for a machine, a guest that suspends stands still; without, that
/// ends the machine.
#[derive(Clone)]
pub struct Suspender {
    shared: Arc<Shared>,
}

impl Suspender {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        shared.suspend.lock().attended = true;
        Self { shared: Arc::clone(shared) }
    }

    /// Asks the guest to suspend itself; see `Domain::request_shutdown`.
    ///
    /// # Errors
    /// [`SuspendError::Guest`] where the guest can not be asked,
    /// [`SuspendError::Paused`] where it could not follow.
    pub fn request_suspend(&self) -> Result<(), SuspendError> {
        if self.shared.pause.is_held() {
            return Err(SuspendError::Paused);
        }
        let _outside = self.shared.quiesce.from_outside();
        Ok(self.shared.domain.request_shutdown(ShutdownRequest::Suspend)?)
    }

    /// Whether the guest has said that it can suspend itself, and has no request
    /// to take before.
    pub fn may_be_asked(&self) -> bool {
        let domain = &self.shared.domain;
        domain.store_read("control/feature-suspend").is_ok_and(|value| value == b"1")
            && domain.store_read("control/shutdown").is_ok_and(|value| value.is_empty())
    }

    /// Whether the agent in the guest has written so into the store.
    pub fn agent_is_ready(&self) -> bool {
        self.shared.domain.store_read("data/agent").is_ok_and(|value| value == b"ready")
    }

    /// Whether the guest suspended itself and all its vCPUs stand still.
    pub fn is_suspended(&self) -> bool {
        stands_still(&self.shared, &self.shared.suspend.lock())
    }

    /// Waits until the guest is suspended.
    ///
    /// # Errors
    /// [`SuspendError::Timeout`]; it may still suspend later.
    pub fn wait_suspended(&self, timeout: Duration) -> Result<(), SuspendError> {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.suspend.lock();
        while !stands_still(&self.shared, &state) {
            if self.shared.exit.is_ending() {
                return Err(SuspendError::Ended);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(SuspendError::Timeout(timeout));
            }
            state = self.shared.suspend.wait(state, Some(left));
        }
        Ok(())
    }

    /// Lets a suspended guest go on.
    ///
    /// # Errors
    /// [`SuspendError::Guest`] where it is not suspended: nothing has changed.
    pub fn resume(&self, how: Resumed) -> Result<(), SuspendError> {
        // Nobody saves the guest meanwhile.
        let _outside = self.shared.quiesce.from_outside();
        let gate = &self.shared.suspend;
        let mut state = gate.lock();
        if !stands_still(&self.shared, &state) {
            return Err(RenewError::NotSuspended.into());
        }
        self.shared.domain.resume(how)?;
        state.how = Some(how);
        state.resumed += 1;
        gate.changed.notify_all();
        Ok(())
    }

    /// System time now, of the guest's clock, in nanoseconds.
    pub fn system_time_ns(&self) -> u64 {
        self.shared.platform.system_time_ns()
    }
}
