//! `sched_op`: giving up the CPU, polling event channels, shutting down.

mod snapshot;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use xen_abi::errno::Errno;
use xen_abi::sched::{
    SCHEDOP_BLOCK, SCHEDOP_PIN_OVERRIDE, SCHEDOP_POLL, SCHEDOP_REMOTE_SHUTDOWN, SCHEDOP_SHUTDOWN,
    SCHEDOP_SHUTDOWN_CODE, SCHEDOP_WATCHDOG, SCHEDOP_YIELD, SHUTDOWN_WATCHDOG, SchedPoll,
    SchedPoll32, SchedRemoteShutdown, SchedShutdown, SchedWatchdog,
};

pub use snapshot::SchedState;

use super::domain::{Domain, lock};
use super::vcpu::Vcpu;
use super::{Call, Outcome, RunState};
use crate::pages::Width;

/// Xen's "fairly arbitrary" bound on the ports of one poll.
const MAX_POLL_PORTS: u32 = 128;
/// How long a blocked vCPU sleeps before it looks for itself: interrupts that
/// its LAPIC raises alone do not come through here. A guest must expect to
/// come back from `SCHEDOP_block` without an event.
const BLOCK_RECHECK_NS: u64 = 4_000_000;
/// `NR_DOMAIN_WATCHDOG_TIMERS`.
const WATCHDOGS: usize = 2;

/// `sched_op`.
///
/// # Errors
/// `ENOSYS` for an unknown command, otherwise as each command states.
pub(super) fn op(call: &mut Call<'_>, cmd: u64, arg: u64) -> Result<Outcome, Errno> {
    let outcome = serve(call, cmd, arg);
    if let (Ok(Outcome::Wait { .. }), Some(state)) = (&outcome, call.domain.vcpu(call.vcpu)) {
        call.domain.enter_runstate(call.vcpu, RunState::Blocked);
        // `before_entry` makes it running again.
        state.blocked.store(true, Ordering::Relaxed);
    }
    outcome
}

fn serve(call: &mut Call<'_>, cmd: u64, arg: u64) -> Result<Outcome, Errno> {
    let done = Ok(Outcome::Return(0));
    match u32::try_from(cmd).map_err(|_| Errno::ENOSYS)? {
        SCHEDOP_YIELD => Ok(Outcome::Yield),
        SCHEDOP_BLOCK => Ok(block(call)),
        SCHEDOP_SHUTDOWN => {
            let args: SchedShutdown = call.read(arg)?;
            Ok(Outcome::Shutdown(call.domain.shut_down(reason(args.reason))))
        }
        SCHEDOP_SHUTDOWN_CODE => {
            let args: SchedShutdown = call.read(arg)?;
            call.domain.shutdown.set_code(reason(args.reason));
            done
        }
        SCHEDOP_POLL => poll(call, arg),
        SCHEDOP_REMOTE_SHUTDOWN => {
            let args: SchedRemoteShutdown = call.read(arg)?;
            // Domains 0 and the caller's own exist, but only a device model or
            // domain 0 may shut another one down.
            let known = args.domain_id == 0 || args.domain_id == call.domain.config.domain_id;
            Err(if known { Errno::EPERM } else { Errno::ESRCH })
        }
        SCHEDOP_WATCHDOG => {
            let args: SchedWatchdog = call.read(arg)?;
            let now_ns = call.domain.clock.system_time_ns();
            let reply = lock(&call.domain.watchdogs).set(args.id, args.timeout, now_ns)?;
            call.domain.change_timers(0, |_| {});
            Ok(Outcome::Return(reply))
        }
        // For the hardware domain only; Xen looks at that before the argument.
        SCHEDOP_PIN_OVERRIDE => Err(Errno::EPERM),
        _ => Err(Errno::ENOSYS),
    }
}

/// Xen keeps 8 bits of the reason.
fn reason(value: u32) -> u32 {
    value & 0xff
}

/// What a vCPU in [`Outcome::Wait`] waits for, packed into one word so that
/// whoever ends the wait does it once: 0 is not waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// Any upcall of its own.
    Block,
    /// Its upcall, or any event of the domain.
    AnyPort,
    /// Its upcall, or an event on this port.
    Port(u32),
}

impl Waiting {
    const fn pack(self) -> u64 {
        match self {
            Self::Block => 1 << 32,
            Self::AnyPort => 2 << 32,
            Self::Port(port) => 3 << 32 | port as u64,
        }
    }
}

fn block(call: &Call<'_>) -> Outcome {
    let Some(state) = call.domain.vcpu(call.vcpu) else { return Outcome::Return(0) };
    state.waiting.store(Waiting::Block.pack(), Ordering::SeqCst);
    // Looked at after the store: an event that came before it is seen here, a
    // later one sees the store (`raise`, `end_wait`).
    if call.domain.upcall_pending(call.vcpu) {
        call.domain.stop_waiting(call.vcpu);
        return Outcome::Return(0);
    }
    let now_ns = call.domain.clock.system_time_ns();
    Outcome::Wait { deadline_ns: Some(now_ns.saturating_add(BLOCK_RECHECK_NS)) }
}

fn poll(call: &mut Call<'_>, arg: u64) -> Result<Outcome, Errno> {
    let (ports_at, nr_ports, timeout) = match call.width {
        Width::Bits64 => {
            let args: SchedPoll = call.read(arg)?;
            (args.ports, args.nr_ports, args.timeout)
        }
        Width::Bits32 => {
            let args: SchedPoll32 = call.read(arg)?;
            (u64::from(args.ports), args.nr_ports, args.timeout)
        }
    };
    if nr_ports > MAX_POLL_PORTS {
        return Err(Errno::EINVAL);
    }
    let domain = call.domain;
    let state = domain.vcpu(call.vcpu).ok_or(Errno::ENOENT)?;
    domain.set_polling(call.vcpu, Waiting::AnyPort);
    let mut ready = state.upcall_raised.load(Ordering::SeqCst);
    let mut last = 0;
    for index in 0..u64::from(nr_ports) {
        if ready {
            break;
        }
        let port = ports_at
            .checked_add(index * 4)
            .ok_or(Errno::EFAULT)
            .and_then(|at| call.read::<u32>(at))
            .and_then(|port| domain.events.is_bound(port).then_some(port).ok_or(Errno::EINVAL));
        match port {
            Ok(port) => {
                last = port;
                ready = domain.event_pending(port);
            }
            Err(errno) => {
                domain.stop_waiting(call.vcpu);
                return Err(errno);
            }
        }
    }
    // Absolute, in system time; 0 waits for ever, a negative one is past.
    let past = timeout != 0 && (timeout >= 1 << 63 || timeout <= domain.clock.system_time_ns());
    if ready || past {
        domain.stop_waiting(call.vcpu);
        return Ok(Outcome::Return(0));
    }
    if nr_ports == 1 {
        // From any port to just this one, unless it has ended meanwhile.
        let any = Waiting::AnyPort.pack();
        let only = Waiting::Port(last).pack();
        let _ = state.waiting.compare_exchange(any, only, Ordering::SeqCst, Ordering::SeqCst);
    }
    Ok(Outcome::Wait { deadline_ns: (timeout != 0).then_some(timeout) })
}

impl Domain {
    /// Whether `vcpu` still waits as [`Outcome::Wait`] said. The machine asks
    /// this under the lock that its `Platform::wake` takes, before it sleeps:
    /// an event between the outcome and the sleep is then not lost.
    pub fn still_waiting(&self, vcpu: u32) -> bool {
        let waits_for = |state: &Vcpu| state.waiting.load(Ordering::SeqCst);
        let Some(state) = self.vcpu(vcpu).filter(|state| waits_for(state) != 0) else {
            return false;
        };
        if self.platform.delivers_events() {
            let waiting = waits_for(state);
            let came = self.upcall_pending(vcpu)
                || match u32::try_from(waiting & u64::from(u32::MAX)) {
                    Ok(port) if waiting == Waiting::Port(port).pack() => self.event_pending(port),
                    _ => waiting == Waiting::AnyPort.pack() && self.any_event_pending(),
                };
            if came {
                self.stop_waiting(vcpu);
            }
            return !came;
        }
        true
    }

    fn set_polling(&self, vcpu: u32, waiting: Waiting) {
        if let Some(state) = self.vcpu(vcpu) {
            state.waiting.store(waiting.pack(), Ordering::SeqCst);
            state.polling.store(true, Ordering::Relaxed);
            // Then the ports are looked at. Partner: `wake_pollers`, which
            // looks here after it set a port pending.
            let (word, bit) = poller_bit(vcpu);
            self.pollers[word].fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// Ends the wait of `vcpu` from its own thread.
    pub(super) fn stop_waiting(&self, vcpu: u32) {
        let Some(state) = self.vcpu(vcpu) else { return };
        if state.polling.swap(false, Ordering::Relaxed) {
            let (word, bit) = poller_bit(vcpu);
            self.pollers[word].fetch_and(!bit, Ordering::SeqCst);
        }
        state.waiting.store(0, Ordering::SeqCst);
    }

    /// Ends the wait of `vcpu` from any thread, whatever it waits for. Its bit
    /// in `pollers` stays until its own thread goes on: cleared from here, it
    /// could be the bit of its next poll.
    pub(super) fn end_wait(&self, vcpu: u32) {
        if let Some(state) = self.vcpu(vcpu)
            && state.waiting.load(Ordering::SeqCst) != 0
            && state.waiting.swap(0, Ordering::SeqCst) != 0
        {
            self.platform.wake(vcpu);
        }
    }

    /// Ends the waits of vCPUs that poll `port`, which was just set pending.
    pub(super) fn wake_pollers(&self, port: u32) {
        for (word, base) in self.pollers.iter().zip([0, 64]) {
            let mut bits = word.load(Ordering::SeqCst);
            while bits != 0 {
                let vcpu = base + bits.trailing_zeros();
                bits &= bits - 1;
                let Some(state) = self.vcpu(vcpu) else { continue };
                let waiting = state.waiting.load(Ordering::SeqCst);
                let wanted =
                    waiting == Waiting::AnyPort.pack() || waiting == Waiting::Port(port).pack();
                if wanted {
                    self.end_wait(vcpu);
                }
            }
        }
    }

    /// Shuts the domain down, unless it is already; what counts is the first
    /// reason, or the code that the guest announced. Returns that.
    pub(super) fn shut_down(&self, reason: u32) -> u32 {
        let reason = self.shutdown.begin(reason, self.clock.system_time_ns());
        for vcpu in self.vcpu_ids() {
            self.end_wait(vcpu);
            self.platform.kick(vcpu);
        }
        reason
    }

    /// The `SHUTDOWN_*` reason once the domain has shut down. Every vCPU is
    /// kicked when it does; its loop looks here before it enters the guest.
    pub fn shutdown_reason(&self) -> Option<u32> {
        self.shutdown.reason()
    }

    pub(super) fn expire_watchdogs(&self) {
        let now_ns = self.clock.system_time_ns();
        if lock(&self.watchdogs).expire(now_ns) && self.shutdown_reason().is_none() {
            tracing::warn!(domain = self.config.domain_id, "the guest's watchdog fired");
            self.shut_down(SHUTDOWN_WATCHDOG);
        }
    }
}

fn poller_bit(vcpu: u32) -> (usize, u64) {
    (usize::from(vcpu >= 64), 1 << (vcpu % 64))
}

/// Whether and why the domain is down.
#[derive(Debug)]
pub(super) struct Shutdown {
    /// The code of `SCHEDOP_shutdown_code`, or the reason of the shutdown.
    code: Mutex<Option<u32>>,
    /// The reason once it is down, else [`RUNNING`].
    down: AtomicU32,
    /// System time of that.
    pub(super) since_ns: AtomicU64,
}

const RUNNING: u32 = u32::MAX;

impl Shutdown {
    pub(super) fn new() -> Self {
        let (down, since_ns) = (AtomicU32::new(RUNNING), AtomicU64::new(0));
        Self { code: Mutex::new(None), down, since_ns }
    }

    fn set_code(&self, reason: u32) {
        lock(&self.code).get_or_insert(reason);
    }

    fn begin(&self, reason: u32, now_ns: u64) -> u32 {
        let code = *lock(&self.code).get_or_insert(reason);
        if self.reason().is_none() {
            self.since_ns.store(now_ns, Ordering::SeqCst);
        }
        // SeqCst: seen by every vCPU that the kick after it reaches.
        self.down.store(code, Ordering::SeqCst);
        code
    }

    /// The domain is up again.
    pub(super) fn end(&self) {
        *lock(&self.code) = None;
        self.down.store(RUNNING, Ordering::SeqCst);
    }

    fn reason(&self) -> Option<u32> {
        Some(self.down.load(Ordering::SeqCst)).filter(|&reason| reason != RUNNING)
    }
}

/// The domain's watchdog timers: deadlines in system time.
#[derive(Debug, Default)]
pub(super) struct Watchdogs([Option<u64>; WATCHDOGS]);

impl Watchdogs {
    /// `SCHEDOP_watchdog`: id 0 takes a free one and answers its number from 1;
    /// a timeout of 0 seconds frees the one named.
    fn set(&mut self, id: u32, timeout_s: u32, now_ns: u64) -> Result<i64, Errno> {
        let deadline_ns = now_ns.saturating_add(u64::from(timeout_s) * 1_000_000_000);
        if id == 0 {
            let free = self.0.iter().position(Option::is_none).ok_or(Errno::ENOSPC)?;
            self.0[free] = Some(deadline_ns);
            return i64::try_from(free + 1).map_err(|_| Errno::ENOSPC);
        }
        let slot = usize::try_from(id - 1).ok().and_then(|index| self.0.get_mut(index));
        match slot {
            Some(slot @ Some(_)) => {
                *slot = (timeout_s != 0).then_some(deadline_ns);
                Ok(0)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    pub(super) fn deadline_ns(&self) -> Option<u64> {
        self.0.iter().flatten().copied().min()
    }

    /// Whether one is due; it is not armed again, its slot stays taken.
    fn expire(&mut self, now_ns: u64) -> bool {
        let mut due = false;
        for slot in self.0.iter_mut().flatten().filter(|deadline_ns| **deadline_ns <= now_ns) {
            *slot = u64::MAX;
            due = true;
        }
        due
    }
}

#[cfg(test)]
mod tests;
