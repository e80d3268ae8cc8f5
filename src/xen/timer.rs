//! The timers of a vCPU: one singleshot, one periodic, both by `VIRQ_TIMER`.
//!
//! Pure arithmetic on system time; the machine is asked for one deadline, the
//! earlier of the two. A periodic timer keeps its phase: after a stall it
//! delivers once, and the next tick is on the old grid, so that it does not
//! drift with every late delivery as adding the period to "now" would.

mod snapshot;

use xen_abi::xen::VIRQ_TIMER;

pub use snapshot::TimersState;

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
            self.raise_virq(vcpu, VIRQ_TIMER);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::test_platform::{domain, with_call};
    use super::*;

    #[test]
    fn singleshot_boundaries() {
        let cases = [
            // (deadline, now, due now, next deadline)
            (100, 99, false, Some(100)),
            (100, 100, true, None),
            (100, 101, true, None),
            (0, 0, true, None),
            (FIRST_NEGATIVE - 1, 5, false, Some(FIRST_NEGATIVE - 1)),
            (FIRST_NEGATIVE, 5, true, None),
            (u64::MAX, 5, true, None),
        ];
        for (deadline_ns, now_ns, due, next) in cases {
            let mut timers = Timers::default();
            timers.set_singleshot(deadline_ns);
            assert_eq!(timers.expire(now_ns), due, "{deadline_ns} at {now_ns}");
            assert_eq!(timers.deadline_ns(), next, "{deadline_ns} at {now_ns}");
            assert!(!timers.expire(now_ns), "once only");
        }
    }

    #[test]
    fn a_stalled_periodic_timer_ticks_once_and_keeps_its_grid() {
        let mut timers = Timers::default();
        timers.set_periodic(1000, 5000);
        assert!(timers.expire(5000), "long since the last tick: at once");
        assert_eq!(timers.deadline_ns(), Some(6000));
        assert!(!timers.expire(5999));
        assert!(timers.expire(9500));
        assert_eq!(timers.deadline_ns(), Some(10_000));
        // 200 years on, in no more time than one tick.
        assert!(timers.expire(6_311_390_400_000_000_123));
        assert_eq!(timers.deadline_ns(), Some(6_311_390_400_000_001_000));
        timers.set_periodic(0, 0);
        assert_eq!(timers.deadline_ns(), None);
    }

    #[test]
    fn the_longest_period_does_not_overflow() {
        let mut timers = Timers::default();
        timers.set_periodic(MAX_PERIOD_NS, u64::MAX);
        assert!(timers.expire(u64::MAX));
        assert_eq!(timers.deadline_ns(), Some(u64::MAX));
    }

    #[test]
    fn set_timer_op_takes_wrapped_deadlines_for_soon() {
        let (domain, platform, clock) = domain(1);
        clock.set_ns(1000);
        let soon = Some(1000 + FAR_SUBSTITUTE_NS);
        let cases = [
            (0, None),
            (2000, Some(2000)),
            (1000 + FAR_NS - 1, Some(1000 + FAR_NS - 1)),
            (1000 + FAR_NS, soon),
            (FIRST_NEGATIVE - 1, soon),
            (FIRST_NEGATIVE, soon),
            (u64::MAX, soon),
            (1000, None), // due: delivered at once
            (1, None),
        ];
        for (deadline_ns, armed) in cases {
            assert_eq!(with_call(&domain, 0, |call| set_timer_op(call, deadline_ns)), Ok(0));
            assert_eq!(platform.timer_ns(0), armed, "deadline {deadline_ns}");
        }
    }

    #[test]
    fn an_early_or_repeated_expiry_only_arms_again() {
        let (domain, platform, clock) = domain(2);
        with_call(&domain, 1, |call| set_timer_op(call, 500)).unwrap();
        clock.set_ns(499);
        platform.take();
        domain.timer_expired(1);
        assert_eq!(platform.timer_ns(1), Some(500));
        clock.set_ns(500);
        domain.timer_expired(1);
        domain.timer_expired(1);
        assert_eq!(platform.timer_ns(1), None);
        domain.timer_expired(7);
    }

    /// The same timers, tick by tick.
    #[derive(Default)]
    struct Naive {
        singleshot_ns: Option<u64>,
        period_ns: u64,
        last_ns: u64,
    }

    impl Naive {
        fn expire(&mut self, now_ns: u64) -> bool {
            let shot = self.singleshot_ns.is_some_and(|deadline| now_ns >= deadline);
            if shot {
                self.singleshot_ns = None;
            }
            let mut ticked = false;
            while self.period_ns != 0 && self.last_ns + self.period_ns <= now_ns {
                self.last_ns += self.period_ns;
                ticked = true;
            }
            shot || ticked
        }

        fn next_ns(&self) -> Option<u64> {
            let tick = (self.period_ns != 0).then(|| self.last_ns + self.period_ns);
            match (self.singleshot_ns, tick) {
                (Some(shot), Some(tick)) => Some(shot.min(tick)),
                (shot, tick) => shot.or(tick),
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Shot(u64),
        StopShot,
        Period(u64),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..5000).prop_map(Step::Shot),
            Just(Step::StopShot),
            prop_oneof![Just(0), 1u64..700].prop_map(Step::Period),
            (0u64..3000).prop_map(Step::Pass),
        ]
    }

    proptest! {
        #[test]
        fn as_a_naive_timer(steps in proptest::collection::vec(step(), 1..60)) {
            let (mut timers, mut naive, mut now_ns) = (Timers::default(), Naive::default(), 0);
            for step in steps {
                match step {
                    Step::Shot(deadline_ns) => {
                        timers.set_singleshot(deadline_ns);
                        naive.singleshot_ns = Some(deadline_ns);
                    }
                    Step::StopShot => {
                        timers.stop_singleshot();
                        naive.singleshot_ns = None;
                    }
                    Step::Period(period_ns) => {
                        timers.set_periodic(period_ns, now_ns);
                        naive.period_ns = period_ns;
                        if period_ns != 0 && now_ns - naive.last_ns >= period_ns {
                            naive.last_ns = now_ns - period_ns;
                        }
                    }
                    Step::Pass(elapsed_ns) => now_ns += elapsed_ns,
                }
                prop_assert_eq!(timers.expire(now_ns), naive.expire(now_ns));
                prop_assert_eq!(timers.deadline_ns(), naive.next_ns());
                prop_assert!(timers.deadline_ns().is_none_or(|next_ns| next_ns > now_ns));
            }
        }
    }
}
