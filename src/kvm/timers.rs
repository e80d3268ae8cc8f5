//! One thread that serves the timers of all vCPUs, in system time.
//!
//! The deadlines lie in an ordered set, and one kernel timer is set to the
//! earliest. Whoever sets an earlier one moves that kernel timer himself, so
//! that the thread is woken only when something may be due: setting a timer,
//! which a guest does a thousand times a second, costs no switch of threads.

#![expect(unsafe_code, reason = "timerfd has no wrapper in the standard library")]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use crate::xen::Clock;

#[derive(Debug)]
struct State {
    /// The deadline of each vCPU.
    by_vcpu: Vec<Option<u64>>,
    /// The same, as (deadline, vCPU).
    in_order: BTreeSet<(u64, u32)>,
    /// The deadline that the kernel's timer is set for, not after it.
    armed_for_ns: Option<u64>,
    stopped: bool,
    /// Nobody is due.
    held: bool,
}

impl State {
    fn earliest(&self) -> Option<u64> {
        self.in_order.first().map(|&(deadline_ns, _)| deadline_ns)
    }

    fn set(&mut self, vcpu: u32, deadline_ns: Option<u64>) {
        let slot = usize::try_from(vcpu).ok().and_then(|index| self.by_vcpu.get_mut(index));
        let Some(slot) = slot else { return };
        if let Some(before_ns) = std::mem::replace(slot, deadline_ns) {
            self.in_order.remove(&(before_ns, vcpu));
        }
        if let Some(deadline_ns) = deadline_ns {
            self.in_order.insert((deadline_ns, vcpu));
        }
    }

    /// Takes out whoever is due.
    fn take_due(&mut self, now_ns: u64, due: &mut Vec<u32>) {
        while let Some(&(deadline_ns, vcpu)) = self.in_order.first()
            && deadline_ns <= now_ns
        {
            self.set(vcpu, None);
            due.push(vcpu);
        }
    }
}

/// The deadlines, shared between vCPU threads and the timer thread.
pub(super) struct Timers {
    state: Mutex<State>,
    /// Set when the thread starts.
    alarm: OnceLock<Alarm>,
    /// Held while what is due is delivered.
    delivering: Mutex<()>,
    clock: Arc<dyn Clock>,
}

impl Timers {
    /// For `vcpus` vCPUs, whose deadlines are in `clock`'s system time.
    pub(super) fn new(vcpus: usize, clock: Arc<dyn Clock>) -> Self {
        let state = State {
            by_vcpu: vec![None; vcpus],
            in_order: BTreeSet::new(),
            armed_for_ns: None,
            stopped: false,
            held: false,
        };
        Self { state: Mutex::new(state), alarm: OnceLock::new(), delivering: Mutex::new(()), clock }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets, moves or cancels a vCPU's deadline.
    pub(super) fn set(&self, vcpu: u32, deadline_ns: Option<u64>) {
        let mut state = self.lock();
        state.set(vcpu, deadline_ns);
        // A later earliest needs nothing: the thread finds nothing due, and
        // sets the alarm anew.
        if let Some(earliest_ns) = state.earliest()
            && state.armed_for_ns.is_none_or(|armed_ns| earliest_ns < armed_ns)
        {
            self.arm(&mut state, earliest_ns);
        }
    }

    /// Sets the kernel's timer. Under the lock, so that the last is the right one.
    fn arm(&self, state: &mut State, deadline_ns: u64) {
        let Some(alarm) = self.alarm.get() else { return };
        state.armed_for_ns = Some(deadline_ns);
        let remaining_ns = deadline_ns.saturating_sub(self.clock.system_time_ns());
        alarm.ring_after(nap_ns(remaining_ns));
    }

    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        if let Some(alarm) = self.alarm.get() {
            alarm.ring_after(0);
        }
    }

    /// Starts the thread; `expired` is called outside all locks, once for each
    /// vCPU whose deadline has come, not before it.
    ///
    /// # Errors
    /// Where the host has no kernel timer or thread left.
    pub(super) fn spawn(
        self: &Arc<Self>,
        expired: impl Fn(u32) + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let alarm = Alarm::new()?;
        // Once at once: it looks at what was set before there was an alarm.
        alarm.ring_after(0);
        self.alarm.set(alarm).map_err(|_| io::ErrorKind::AlreadyExists)?;
        let timers = Arc::clone(self);
        std::thread::Builder::new().name("timers".to_owned()).spawn(move || {
            if !run_before_others() {
                tracing::debug!("timers wait their turn behind busy vCPUs: no CAP_SYS_NICE");
            }
            let mut due = Vec::new();
            while timers.wait() {
                let _delivering = timers.delivering();
                timers.take_due(&mut due);
                due.drain(..).for_each(&expired);
            }
        })
    }

    /// Waits for the alarm; `false` once stopped.
    fn wait(&self) -> bool {
        if let Some(alarm) = self.alarm.get() {
            alarm.wait();
        }
        !self.lock().stopped
    }

    /// Collects the vCPUs whose deadline has passed into `due`, maybe none.
    fn take_due(&self, due: &mut Vec<u32>) {
        let mut state = self.lock();
        state.armed_for_ns = None;
        if state.held {
            return;
        }
        state.take_due(self.clock.system_time_ns(), due);
        if let Some(earliest_ns) = state.earliest() {
            self.arm(&mut state, earliest_ns);
        }
    }

    fn delivering(&self) -> MutexGuard<'_, ()> {
        self.delivering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody is due from now on, nor is anybody still being served.
    pub(super) fn hold(&self) {
        self.lock().held = true;
        drop(self.delivering());
    }

    /// Ends [`Timers::hold`].
    pub(super) fn release(&self) {
        self.lock().held = false;
        if let Some(alarm) = self.alarm.get() {
            alarm.ring_after(0);
        }
    }
}

/// How long to sleep on the host's clock for this much system time. NTP slews
/// the host's clock by up to 500 ppm, so a long way is walked in steps that
/// each stop short of it: 10 s is 9.99 s, then 9.9 ms, then the rest.
fn nap_ns(remaining_ns: u64) -> u64 {
    const EXACT_BELOW_NS: u64 = 1_000_000;
    let nap_ns = if remaining_ns < EXACT_BELOW_NS {
        remaining_ns
    } else {
        remaining_ns - remaining_ns / 1_024
    };
    // An hour at most, so that no arithmetic of the host's overflows.
    nap_ns.min(3_600_000_000_000)
}

/// Lets the calling thread run as soon as it can: where busy vCPUs have all
/// CPUs, it would otherwise wait for one of them to use up its slice. Takes a
/// right that only root has; whether it was given.
fn run_before_others() -> bool {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is the calling thread; reads one structure.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) == 0 }
}

/// A timer of the kernel's, `CLOCK_MONOTONIC`. It has no slack, unlike a wait
/// with a timeout.
#[derive(Debug)]
struct Alarm(File);

impl Alarm {
    fn new() -> io::Result<Self> {
        // SAFETY: takes two numbers and touches no memory.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else's.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Rings once, after this long, at most an hour; forgets what was set before.
    fn ring_after(&self, ns: u64) {
        // 0 would switch it off.
        let ns = libc::c_long::try_from(ns.max(1)).unwrap_or(libc::c_long::MAX);
        let spec = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec { tv_sec: ns / 1_000_000_000, tv_nsec: ns % 1_000_000_000 },
        };
        // SAFETY: reads one valid structure; the old setting is not asked for.
        let set = unsafe {
            libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const spec, ptr::null_mut())
        };
        if set != 0 {
            tracing::error!(error = %io::Error::last_os_error(), "a timer could not be set");
        }
    }

    /// Waits until it has rung.
    fn wait(&self) {
        let mut rung = [0u8; 8];
        // A signal may end it early: the caller looks at the time anyway.
        let _ = (&self.0).read(&mut rung);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::mpsc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::clock::{SystemTimeLine, TscFrequency, WallclockEpoch};

    /// System time is the host's, from when this was made.
    struct HostClock(std::time::Instant, SystemTimeLine);

    impl HostClock {
        fn new() -> Self {
            let line = SystemTimeLine::new(TscFrequency::from_hz(1_000_000_000).unwrap(), 0, 0);
            Self(std::time::Instant::now(), line.unwrap())
        }
    }

    impl Clock for HostClock {
        fn guest_tsc(&self) -> u64 {
            u64::try_from(self.0.elapsed().as_nanos()).unwrap()
        }

        fn line(&self) -> SystemTimeLine {
            self.1
        }

        fn wallclock_epoch(&self) -> WallclockEpoch {
            WallclockEpoch { sec: 0, nsec: 0 }
        }
    }

    #[test]
    fn naps_stop_short_of_long_deadlines() {
        assert_eq!(nap_ns(999_999), 999_999);
        assert!(nap_ns(10_000_000_000) < 10_000_000_000 / 10_005 * 10_000);
        assert_eq!(nap_ns(u64::MAX), 3_600_000_000_000);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, Option<u64>),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u32..5, proptest::option::of(0u64..1000)).prop_map(|(id, at)| Step::Set(id, at)),
            (0u64..300).prop_map(Step::Pass),
        ]
    }

    proptest! {
        #[test]
        fn as_a_list_that_is_searched(steps in proptest::collection::vec(step(), 0..80)) {
            let mut state = State {
                by_vcpu: vec![None; 4],
                in_order: BTreeSet::new(),
                armed_for_ns: None,
                stopped: false,
                held: false,
            };
            let (mut naive, mut now_ns) = (BTreeMap::new(), 0);
            for step in steps {
                match step {
                    Step::Set(vcpu, at) => {
                        state.set(vcpu, at);
                        match at {
                            // There is no vCPU 4.
                            Some(at) if vcpu < 4 => drop(naive.insert(vcpu, at)),
                            _ => drop(naive.remove(&vcpu)),
                        }
                    }
                    Step::Pass(elapsed_ns) => now_ns += elapsed_ns,
                }
                let mut due = Vec::new();
                state.take_due(now_ns, &mut due);
                due.sort_unstable();
                let expected: Vec<u32> =
                    naive.iter().filter(|(_, at)| **at <= now_ns).map(|(id, _)| *id).collect();
                naive.retain(|_, at| *at > now_ns);
                prop_assert_eq!(due, expected);
                prop_assert_eq!(state.earliest(), naive.values().min().copied());
            }
        }
    }

    /// 128 vCPUs: each comes once, none early, a moved one at its new time, a
    /// cancelled one never.
    #[test]
    fn all_are_served_by_one_thread() {
        let clock = Arc::new(HostClock::new());
        let timers = Arc::new(Timers::new(128, clock.clone()));
        let (sender, receiver) = mpsc::channel();
        let at = Arc::clone(&clock);
        let thread =
            timers.spawn(move |vcpu| sender.send((vcpu, at.system_time_ns())).unwrap()).unwrap();
        let start_ns = clock.system_time_ns();
        let deadline_ns = |vcpu: u32| start_ns + 20_000_000 + u64::from(vcpu * 37 % 128) * 100_000;
        for vcpu in 0..128 {
            // First far off, then moved; the last of all to the past.
            timers.set(vcpu, Some(u64::MAX));
            timers.set(vcpu, Some(deadline_ns(vcpu)));
        }
        timers.set(77, None);
        timers.set(127, Some(0));
        let mut late_ns = Vec::new();
        let mut seen = BTreeSet::new();
        for _ in 0..127 {
            let (vcpu, came_ns) = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
            assert!(seen.insert(vcpu), "vCPU {vcpu} twice");
            let due_ns = if vcpu == 127 { 0 } else { deadline_ns(vcpu) };
            assert!(came_ns >= due_ns, "vCPU {vcpu} came {} ns early", due_ns - came_ns);
            late_ns.push(came_ns - due_ns.max(start_ns));
        }
        assert!(!seen.contains(&77));
        assert!(receiver.recv_timeout(Duration::from_millis(5)).is_err(), "nothing more");
        late_ns.sort_unstable();
        println!("late by {} ns in the middle, {} at most", late_ns[63], late_ns[126]);
        timers.stop();
        thread.join().unwrap();
    }
}
