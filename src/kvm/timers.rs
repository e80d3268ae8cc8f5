//! One thread that serves the timers of all vCPUs, in system time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::KvmClock;
use crate::xen::Clock;

#[derive(Debug)]
struct State {
    deadlines_ns: Vec<Option<u64>>,
    stopped: bool,
}

impl State {
    fn earliest(&self) -> Option<u64> {
        self.deadlines_ns.iter().flatten().min().copied()
    }
}

/// The deadlines, shared between vCPU threads and the timer thread.
#[derive(Debug)]
pub(super) struct Timers {
    state: Mutex<State>,
    changed: Condvar,
}

impl Timers {
    pub(super) fn new(vcpus: usize) -> Self {
        Self {
            state: Mutex::new(State { deadlines_ns: vec![None; vcpus], stopped: false }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets, moves or cancels a vCPU's deadline.
    pub(super) fn set(&self, vcpu: u32, deadline_ns: Option<u64>) {
        let mut state = self.lock();
        let before = state.earliest();
        if let Some(slot) = usize::try_from(vcpu).ok().and_then(|i| state.deadlines_ns.get_mut(i)) {
            *slot = deadline_ns;
        }
        // A later earliest needs no wake-up: the thread finds nothing due and
        // sleeps again.
        let sooner = match (state.earliest(), before) {
            (Some(now), Some(before)) => now < before,
            (Some(_), None) => true,
            (None, _) => false,
        };
        drop(state);
        if sooner {
            self.changed.notify_one();
        }
    }

    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_one();
    }

    /// Starts the thread; `expired` is called outside all locks, once for each
    /// vCPU whose deadline has come, not before it.
    pub(super) fn spawn(
        self: &Arc<Self>,
        clock: Arc<KvmClock>,
        expired: impl Fn(u32) + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let timers = Arc::clone(self);
        std::thread::Builder::new().name("timers".to_owned()).spawn(move || {
            // The default slack of 50 us would be the largest part of the lateness.
            if vmm_timer_slack().is_err() {
                tracing::debug!("timer slack stays at its default");
            }
            let mut due = Vec::new();
            while timers.wait_for_due(&*clock, &mut due) {
                due.drain(..).for_each(&expired);
            }
        })
    }

    /// Waits until a deadline has passed and collects those vCPUs into `due`;
    /// `false` once stopped.
    fn wait_for_due(&self, clock: &dyn Clock, due: &mut Vec<u32>) -> bool {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return false;
            }
            let Some(earliest) = state.earliest() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let now = clock.system_time_ns();
            if now >= earliest {
                for (vcpu, slot) in (0u32..).zip(state.deadlines_ns.iter_mut()) {
                    if slot.is_some_and(|deadline| deadline <= now) {
                        *slot = None;
                        due.push(vcpu);
                    }
                }
                return true;
            }
            let (next, _) = self
                .changed
                .wait_timeout(state, nap(earliest - now))
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
        }
    }
}

/// How long to sleep on the host's clock for this much system time. NTP slews
/// the host's clock by up to 500 ppm, so a long way is walked in steps that
/// each stop short of it: 10 s is 9.99 s, then 9.9 ms, then the rest.
fn nap(remaining_ns: u64) -> Duration {
    const EXACT_BELOW_NS: u64 = 1_000_000;
    let nap = if remaining_ns < EXACT_BELOW_NS {
        remaining_ns
    } else {
        remaining_ns - remaining_ns / 1_024
    };
    // An hour at most, so that no arithmetic of the host's overflows.
    Duration::from_nanos(nap.min(3_600_000_000_000))
}

#[expect(unsafe_code, reason = "prctl is a raw system call")]
fn vmm_timer_slack() -> Result<(), std::io::Error> {
    // SAFETY: PR_SET_TIMERSLACK takes one integer and touches no memory.
    match unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1u64) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naps_stop_short_of_long_deadlines() {
        assert_eq!(nap(999_999), Duration::from_nanos(999_999));
        assert!(nap(10_000_000_000) < Duration::from_nanos(10_000_000_000 / 10_005 * 10_000));
        assert_eq!(nap(u64::MAX), Duration::from_secs(3_600));
    }

    #[test]
    fn the_earliest_counts() {
        let timers = Timers::new(3);
        timers.set(1, Some(20));
        timers.set(2, Some(10));
        timers.set(7, Some(1));
        assert_eq!(timers.lock().earliest(), Some(10));
        timers.set(2, None);
        assert_eq!(timers.lock().earliest(), Some(20));
    }
}
