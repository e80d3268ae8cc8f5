//! Stopping all vCPUs where their registers can be read: outside of KVM_RUN,
//! the last exit completed, in no hypercall.
//!
//! KVM finishes an exit (port input, an MSR, a hypercall's answer) on the next
//! KVM_RUN; until then the registers are those of before it. So a vCPU's thread
//! that is asked to stop goes in once more with `immediate_exit` set, which
//! finishes and executes nothing, until it comes out with nothing but that.
//!
//! A stopped thread stays here and does what it is asked on its own vCPU.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

/// What a stopped thread is asked to do with its vCPU, of type `V`.
pub type Job<V> = Arc<dyn Fn(u32, &mut V) + Send + Sync>;

/// The vCPUs did not all stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotStopped {
    /// In the time that they were given.
    #[error("{stopped} of {of} vCPUs stopped within {} s; the guest goes on", .within.as_secs())]
    Late {
        /// Those that did.
        stopped: u32,
        /// All.
        of: u32,
        /// The time.
        within: Duration,
    },
    /// The guest ended first.
    #[error("the guest has ended")]
    Ended,
}

struct State<V> {
    /// Threads that run vCPUs.
    alive: u32,
    stopped: u32,
    job: Option<Job<V>>,
    /// Jobs given out so far.
    round: u64,
    /// Threads that have not finished the last job.
    working: u32,
}

/// Where the vCPUs' threads of a machine stop.
pub struct Quiesce<V> {
    wanted: AtomicBool,
    vcpus: u32,
    state: Mutex<State<V>>,
    changed: Condvar,
    /// Held shared by whoever changes the guest from outside of a vCPU.
    outside: RwLock<()>,
}

impl<V> Quiesce<V> {
    /// For `vcpus` vCPUs, whose threads are yet to begin.
    pub fn new(vcpus: u32) -> Self {
        let state = State { alive: vcpus, stopped: 0, job: None, round: 0, working: 0 };
        Self {
            wanted: AtomicBool::new(false),
            vcpus,
            state: Mutex::new(state),
            changed: Condvar::new(),
            outside: RwLock::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<V>>) -> MutexGuard<'a, State<V>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether vCPUs are to stop. A thread looks here before it enters the guest
    /// and while it waits in a hypercall, and is kicked for it.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Stays here, on the thread of vCPU `id` that has completed its last exit,
    /// until the guest goes on.
    pub fn park(&self, id: u32, vcpu: &mut V) {
        let mut state = self.lock();
        state.stopped += 1;
        self.changed.notify_all();
        let mut done = state.round;
        while self.is_wanted() {
            if state.round != done {
                done = state.round;
                if let Some(job) = state.job.clone() {
                    drop(state);
                    job(id, vcpu);
                    state = self.lock();
                }
                state.working -= 1;
                self.changed.notify_all();
                continue;
            }
            state = self.wait(state);
        }
        state.stopped -= 1;
        self.changed.notify_all();
    }

    /// The thread of a vCPU has ended.
    pub fn leave(&self) {
        self.lock().alive -= 1;
        self.changed.notify_all();
    }

    /// Held while something outside of the vCPUs changes the guest, such as a
    /// key that is typed. It waits while the guest is stopped.
    pub fn from_outside(&self) -> RwLockReadGuard<'_, ()> {
        self.outside.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops all vCPUs, which `kick` calls out of the guest and of waits, does
    /// `work`, and lets them go on. `work` gets a way to have each thread do
    /// something with its vCPU.
    ///
    /// # Errors
    /// [`NotStopped`]: nothing was done.
    pub fn stopped<T>(
        &self,
        within: Duration,
        kick: impl Fn(),
        work: impl FnOnce(&dyn Fn(Job<V>)) -> T,
    ) -> Result<T, NotStopped> {
        let _outside = self.outside.write().unwrap_or_else(PoisonError::into_inner);
        let result = self.stop(within, &kick).map(|()| work(&|job| self.on_each(job)));
        let mut state = self.lock();
        // Under the lock: nobody is between looking at it and waiting.
        self.wanted.store(false, Ordering::SeqCst);
        self.changed.notify_all();
        // All gone on, so that the next stop counts its own.
        while state.stopped > 0 {
            state = self.wait(state);
        }
        state.job = None;
        result
    }

    fn stop(&self, within: Duration, kick: &impl Fn()) -> Result<(), NotStopped> {
        let until = Instant::now() + within;
        self.wanted.store(true, Ordering::SeqCst);
        kick();
        let mut state = self.lock();
        loop {
            if state.alive < self.vcpus {
                return Err(NotStopped::Ended);
            }
            if state.stopped == self.vcpus {
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NotStopped::Late { stopped: state.stopped, of: self.vcpus, within });
            }
            let (next, _) =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            state = next;
        }
    }

    fn on_each(&self, job: Job<V>) {
        let mut state = self.lock();
        state.job = Some(job);
        state.round += 1;
        state.working = self.vcpus;
        self.changed.notify_all();
        while state.working > 0 {
            state = self.wait(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// "vCPUs" that count, and what they counted while they were stopped.
    #[test]
    fn nobody_runs_while_all_are_stopped() {
        let quiesce = Quiesce::<u64>::new(4);
        let counts: Vec<AtomicU64> = (0..4).map(|_| AtomicU64::new(0)).collect();
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            for (id, count) in (0u32..).zip(&counts) {
                let (quiesce, ended) = (&quiesce, &ended);
                scope.spawn(move || {
                    let mut vcpu = u64::from(id) * 100;
                    while !ended.load(Ordering::SeqCst) {
                        count.fetch_add(1, Ordering::SeqCst);
                        if quiesce.is_wanted() {
                            quiesce.park(id, &mut vcpu);
                        }
                    }
                    quiesce.leave();
                });
            }
            for round in 1..=50 {
                let seen = Arc::new(Mutex::new(Vec::new()));
                let look = || counts.iter().map(|c| c.load(Ordering::SeqCst)).collect::<Vec<_>>();
                let stopped = quiesce.stopped(
                    SOON,
                    || {},
                    |on_each| {
                        let before = look();
                        for _ in 0..2 {
                            let seen = Arc::clone(&seen);
                            on_each(Arc::new(move |id, vcpu: &mut u64| {
                                *vcpu += 1;
                                seen.lock().unwrap().push((id, *vcpu));
                            }));
                        }
                        (before, look())
                    },
                );
                let (before, after) = stopped.unwrap();
                assert_eq!(before, after);
                let mut seen = seen.lock().unwrap().clone();
                seen.sort_unstable();
                let each = |id: u64| [id * 100 + 2 * round - 1, id * 100 + 2 * round];
                let expected: Vec<_> =
                    (0..4u32).flat_map(|id| each(id.into()).map(|value| (id, value))).collect();
                assert_eq!(seen, expected);
            }
            ended.store(true, Ordering::SeqCst);
        });
        assert_eq!(quiesce.stopped(SOON, || {}, |_| ()), Err(NotStopped::Ended));
    }

    #[test]
    fn one_that_does_not_stop_is_not_waited_for_for_ever() {
        let quiesce = Quiesce::<()>::new(2);
        let runs = std::sync::Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                runs.wait();
                while !quiesce.is_wanted() {
                    thread::yield_now();
                }
                quiesce.park(0, &mut ());
            });
            // The thread sees in time that it is wanted, however busy the host: the
            // kick waits for it.
            let within = Duration::from_secs(2);
            let kick = || {
                runs.wait();
            };
            let late = quiesce.stopped(within, kick, |_| ()).unwrap_err();
            assert_eq!(late, NotStopped::Late { stopped: 1, of: 2, within });
        });
        assert!(!quiesce.is_wanted());
    }
}
