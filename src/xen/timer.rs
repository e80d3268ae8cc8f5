//! The timers of a vCPU: one singleshot, one periodic, both by `VIRQ_TIMER`.
//!
//! Pure arithmetic on system time; the machine is asked for one deadline, the
//! earlier of the two. A periodic timer keeps its phase: after a stall it
//! delivers once, and the next tick is on the old grid, so that it does not
//! drift with every late delivery as adding the period to "now" would.

use xen_abi::xen::VIRQ_TIMER;

use super::domain::{Domain, lock};
use super::{Call, Reply};

/// Xen's shortest period, 1 ms.
pub(super) const MIN_PERIOD_NS: u64 = 1_000_000;
/// Xen's longest period, `STIME_DELTA_MAX`: 2^62 - 1 ns.
pub(super) const MAX_PERIOD_NS: u64 = u64::MAX >> 2;
/// `set_timer_op` takes deadlines further off than this, about 13 days, for
/// arithmetic of the guest that wrapped.
const FAR_NS: u64 = 1 << 50;
/// What it then waits instead.
const FAR_SUBSTITUTE_NS: u64 = 100_000_000;
/// Xen's system time is signed: from here on a deadline is negative, so past.
const FIRST_NEGATIVE: u64 = 1 << 63;

/// The timers of one vCPU. Times are system time, ns.
#[derive(Debug, Default)]
pub(super) struct Timers {
    singleshot_ns: Option<u64>,
    /// 0 when stopped.
    period_ns: u64,
    /// The last tick, delivered or skipped, of the periodic timer.
    last_tick_ns: u64,
}

impl Timers {
    /// Sets the singleshot timer; a deadline that is negative as a signed
    /// number is past, as in Xen.
    pub(super) fn set_singleshot(&mut self, deadline_ns: u64) {
        let past = deadline_ns >= FIRST_NEGATIVE;
        self.singleshot_ns = Some(if past { 0 } else { deadline_ns });
    }

    pub(super) fn stop_singleshot(&mut self) {
        self.singleshot_ns = None;
    }

    /// Starts the periodic timer, 0 stops it. The first tick is one period
    /// after the last one ever delivered, so at once where that is past.
    pub(super) fn set_periodic(&mut self, period_ns: u64, now_ns: u64) {
        self.period_ns = period_ns;
        if period_ns != 0 && now_ns.saturating_sub(self.last_tick_ns) >= period_ns {
            // Due now; the grid starts here.
            self.last_tick_ns = now_ns - period_ns;
        }
    }

    /// Takes what is due at `now_ns`; whether `VIRQ_TIMER` is to be raised.
    pub(super) fn expire(&mut self, now_ns: u64) -> bool {
        let mut due = false;
        if self.singleshot_ns.is_some_and(|deadline_ns| deadline_ns <= now_ns) {
            self.singleshot_ns = None;
            due = true;
        }
        let elapsed_ns = now_ns.saturating_sub(self.last_tick_ns);
        if self.period_ns != 0 && elapsed_ns >= self.period_ns {
            // By division, not tick by tick: a vCPU may stall for years.
            self.last_tick_ns += elapsed_ns - elapsed_ns % self.period_ns;
            due = true;
        }
        due
    }

    /// The next moment at which something is due.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        let tick_ns = match self.period_ns {
            0 => None,
            period_ns => Some(self.last_tick_ns.saturating_add(period_ns)),
        };
        self.singleshot_ns.into_iter().chain(tick_ns).min()
    }
}

/// `set_timer_op`: sets the caller's singleshot timer to an absolute system
/// time, 0 stops it. Never fails.
pub(super) fn set_timer_op(call: &mut Call<'_>, deadline: u64) -> Reply {
    let now_ns = call.domain.clock.system_time_ns();
    let wrapped = deadline >= FIRST_NEGATIVE || deadline.saturating_sub(now_ns) >= FAR_NS;
    call.domain.change_timers(call.vcpu, |timers| match deadline {
        0 => timers.stop_singleshot(),
        _ if wrapped => timers.set_singleshot(now_ns.saturating_add(FAR_SUBSTITUTE_NS)),
        _ => timers.set_singleshot(deadline),
    });
    Ok(0)
}

impl Domain {
    /// The machine's timer for `vcpu` reached its deadline. From any thread;
    /// too early or once too often does no harm.
    pub fn timer_expired(&self, vcpu: u32) {
        self.change_timers(vcpu, |_| {});
        if vcpu == 0 {
            self.expire_watchdogs();
        }
    }

    /// Changes the timers of `vcpu`, delivers what is due and asks the machine
    /// for the next deadline.
    pub(super) fn change_timers(&self, vcpu: u32, change: impl FnOnce(&mut Timers)) {
        let Some(state) = self.vcpu(vcpu) else { return };
        let due = {
            let mut timers = lock(&state.timers);
            change(&mut timers);
            let due = timers.expire(self.clock.system_time_ns());
            // Domain watchdogs have no vCPU; they ride on vCPU 0's deadline.
            let watchdog_ns = if vcpu == 0 { lock(&self.watchdogs).deadline_ns() } else { None };
            let deadline_ns = timers.deadline_ns().into_iter().chain(watchdog_ns).min();
            // Under the lock, so that deadlines reach the machine in order.
            self.platform.set_timer(vcpu, deadline_ns);
            due
        };
        if due {
            self.send_virq(vcpu, VIRQ_TIMER);
        }
    }
}
