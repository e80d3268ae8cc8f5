//! Runstate: how long each vCPU was running, runnable, blocked, offline.
//!
//! An account in system time. The four sums and the time in the current state
//! add up to the time since the domain was made, to the nanosecond.

mod snapshot;

use std::sync::atomic::Ordering;

use xen_abi::errno::Errno;
use xen_abi::vcpu::{VcpuRunstateInfo, VcpuRunstateInfo32};
use xen_abi::xen::VMASST_TYPE_RUNSTATE_UPDATE_FLAG;

pub use snapshot::RunstateState;

use super::domain::{Domain, lock};
use crate::pages::{self, RunstateArea};

/// `RUNSTATE_*` of `vcpu.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RunState {
    /// In the guest, or in a hypercall of it.
    Running = 0,
    /// Would run, but another thread has the CPU: stolen time.
    Runnable = 1,
    /// Waits for an event or interrupt.
    Blocked = 2,
    /// Neither runs nor waits to run.
    Offline = 3,
}

/// Time in which a vCPU's thread did not run, since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// It wanted to run, and another thread had the CPU: stolen time.
    pub runnable_ns: u64,
    /// It slept, in HLT for instance.
    pub blocked_ns: u64,
}

/// The account of one vCPU and the area where the guest reads it.
#[derive(Debug)]
pub(super) struct Runstate {
    state: RunState,
    entry_ns: u64,
    time_ns: [u64; 4],
    area: Option<Area>,
}

#[derive(Debug)]
struct Area {
    at: RunstateArea,
    /// Registered by physical address: the update flag is always used.
    physical: bool,
}

impl Runstate {
    /// Offline, as Xen makes a vCPU.
    pub(super) fn new(now_ns: u64) -> Self {
        Self { state: RunState::Offline, entry_ns: now_ns, time_ns: [0; 4], area: None }
    }

    /// Enters `state` at `now_ns`; a clock that stands still or was read
    /// earlier by another thread adds nothing.
    pub(super) fn enter(&mut self, state: RunState, now_ns: u64) {
        let elapsed_ns = now_ns.saturating_sub(self.entry_ns);
        self.enter_after(elapsed_ns, now_ns);
        self.state = state;
    }

    pub(super) fn is_offline(&self) -> bool {
        self.state == RunState::Offline
    }

    /// Divides the time since the last change and counts on from `now_ns` in
    /// the same state; whether anything is different from what was counted.
    fn account(&mut self, spent: Spent, now_ns: u64) -> bool {
        let elapsed_ns = now_ns.saturating_sub(self.entry_ns);
        let mut rest_ns = elapsed_ns;
        let mut give = |sum: RunState, want_ns: u64| {
            let part_ns = want_ns.min(rest_ns);
            rest_ns -= part_ns;
            let sum = &mut self.time_ns[sum as usize];
            *sum = sum.saturating_add(part_ns);
        };
        match self.state {
            RunState::Running => {
                give(RunState::Runnable, spent.runnable_ns);
                give(RunState::Blocked, spent.blocked_ns);
            }
            // The CPU was not given at once when the wait was over.
            RunState::Blocked => give(RunState::Runnable, spent.runnable_ns),
            RunState::Runnable | RunState::Offline => {}
        }
        if rest_ns == elapsed_ns {
            return false;
        }
        self.enter_after(rest_ns, now_ns);
        true
    }

    fn enter_after(&mut self, rest_ns: u64, now_ns: u64) {
        let sum = &mut self.time_ns[self.state as usize];
        *sum = sum.saturating_add(rest_ns);
        self.entry_ns = self.entry_ns.max(now_ns);
    }

    /// The account as the guest's area shows it: the current state counts from
    /// `state_entry_time` on.
    pub(super) fn info(&self) -> VcpuRunstateInfo {
        VcpuRunstateInfo {
            state: self.state as u32,
            state_entry_time: self.entry_ns,
            time: self.time_ns,
            ..Default::default()
        }
    }

    /// The account up to `now_ns`, as `VCPUOP_get_runstate_info` gives it.
    pub(super) fn info_until(&self, now_ns: u64) -> VcpuRunstateInfo {
        let mut info = self.info();
        let sum = &mut info.time[self.state as usize];
        *sum = sum.saturating_add(now_ns.saturating_sub(self.entry_ns));
        info
    }
}

/// The layout of a 32-bit caller.
pub(super) fn narrow(info: &VcpuRunstateInfo) -> VcpuRunstateInfo32 {
    VcpuRunstateInfo32 {
        state: info.state,
        state_entry_time: info.state_entry_time,
        time: info.time,
    }
}

impl Domain {
    /// `vcpu` enters a runstate now; called by its own thread.
    ///
    /// A vCPU is running from [`Domain::vcpu_started`] on, offline while it is
    /// down and blocked while it is in [`Outcome::Wait`](super::Outcome::Wait)
    /// without this: a machine calls it where it knows more.
    pub fn enter_runstate(&self, vcpu: u32, state: RunState) {
        let Some(target) = self.vcpu(vcpu) else { return };
        let now_ns = self.clock.system_time_ns();
        let mut runstate = lock(&target.runstate);
        runstate.enter(state, now_ns);
        self.publish_runstate(&runstate);
    }

    /// Says what became of the time since `vcpu` entered its runstate, or since
    /// the last such call: how much of it its thread did not run, and why. Of a
    /// vCPU that is offline this says nothing. Called by its own thread, now
    /// and then: the guest sees stolen time only after it.
    pub fn account_runstate(&self, vcpu: u32, spent: Spent) {
        let Some(target) = self.vcpu(vcpu) else { return };
        let now_ns = self.clock.system_time_ns();
        let mut runstate = lock(&target.runstate);
        if runstate.account(spent, now_ns) {
            self.publish_runstate(&runstate);
        }
    }

    /// The account of `vcpu` up to now: ns running, runnable, blocked, offline.
    pub fn runstate_times_ns(&self, vcpu: u32) -> Option<[u64; 4]> {
        let now_ns = self.clock.system_time_ns();
        Some(lock(&self.vcpu(vcpu)?.runstate).info_until(now_ns).time)
    }

    /// An account that begins now, with no area.
    pub(super) fn renew_runstate(&self, vcpu: u32) {
        let Some(target) = self.vcpu(vcpu) else { return };
        *lock(&target.runstate) = Runstate::new(self.clock.system_time_ns());
    }

    /// `VCPUOP_register_runstate_*`: places the area, `None` removes it.
    pub(super) fn place_runstate(
        &self,
        vcpu: u32,
        area: Option<(RunstateArea, bool)>,
    ) -> Result<(), Errno> {
        let target = self.vcpu(vcpu).ok_or(Errno::ENOENT)?;
        let mut runstate = lock(&target.runstate);
        runstate.area = area.map(|(at, physical)| Area { at, physical });
        self.publish_runstate(&runstate);
        Ok(())
    }

    fn publish_runstate(&self, runstate: &Runstate) {
        let Some(area) = &runstate.area else { return };
        let assist = self.vm_assist.load(Ordering::Relaxed);
        let update_flag = area.physical || assist >> VMASST_TYPE_RUNSTATE_UPDATE_FLAG & 1 != 0;
        let info = pages::Runstate {
            state: runstate.state as u32,
            state_entry_time_ns: runstate.entry_ns,
            time_ns: runstate.time_ns,
        };
        if let Err(error) = pages::publish_runstate(&self.memory(), &area.at, &info, update_flag) {
            tracing::debug!(%error, "a runstate area can not be written any more");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::test_platform::domain;
    use super::*;

    fn state(number: u8) -> RunState {
        match number {
            0 => RunState::Running,
            1 => RunState::Runnable,
            2 => RunState::Blocked,
            _ => RunState::Offline,
        }
    }

    proptest! {
        #[test]
        fn sums_are_the_time_that_passed(
            start_ns in 0u64..1 << 62,
            steps in proptest::collection::vec((0u8..4, 0u64..1 << 40), 0..50),
        ) {
            let mut account = Runstate::new(start_ns);
            let mut naive = [0u64; 4];
            let (mut now_ns, mut current) = (start_ns, 3);
            for (next, elapsed_ns) in steps {
                now_ns += elapsed_ns;
                naive[current] += elapsed_ns;
                current = usize::from(next);
                account.enter(state(next), now_ns);
                let info = account.info();
                prop_assert_eq!(info.time, naive);
                prop_assert_eq!(info.state, u32::from(next));
                prop_assert_eq!(info.state_entry_time, now_ns);
                prop_assert_eq!(info.time.iter().sum::<u64>(), now_ns - start_ns);
            }
            let later_ns = now_ns + 12_345;
            let until = account.info_until(later_ns);
            prop_assert_eq!(until.time.iter().sum::<u64>(), later_ns - start_ns);
        }

        #[test]
        fn sums_stay_the_time_that_passed_however_it_is_divided(
            steps in proptest::collection::vec(
                (0u8..4, 0u64..1 << 40, 0u64..1 << 41, 0u64..1 << 41), 0..50),
        ) {
            let (mut account, mut now_ns) = (Runstate::new(0), 0);
            for (next, elapsed_ns, runnable_ns, blocked_ns) in steps {
                account.enter(state(next), now_ns);
                now_ns += elapsed_ns;
                let before = account.info_until(now_ns);
                account.account(Spent { runnable_ns, blocked_ns }, now_ns);
                let after = account.info_until(now_ns);
                prop_assert_eq!(after.time.iter().sum::<u64>(), now_ns);
                prop_assert_eq!(after.time[3], before.time[3], "offline is not ours to divide");
            }
        }
    }

    #[test]
    fn time_that_the_thread_did_not_run() {
        let spent = |runnable_ns, blocked_ns| Spent { runnable_ns, blocked_ns };
        let mut account = Runstate::new(0);
        account.enter(RunState::Running, 100);
        assert!(account.account(spent(30, 20), 200));
        assert_eq!(account.info().time, [50, 30, 20, 100]);
        assert_eq!((account.info().state, account.info().state_entry_time), (0, 200));
        assert!(!account.account(spent(0, 0), 250), "nothing to tell");
        assert_eq!(account.info().state_entry_time, 200);
        // More than there was: the other clock runs at another rate.
        assert!(account.account(spent(70, 90), 300));
        assert_eq!(account.info().time, [50, 100, 50, 100]);
        account.enter(RunState::Blocked, 400);
        assert!(account.account(spent(10, 500), 1000), "woken, and late on the CPU");
        assert_eq!(account.info().time, [150, 110, 640, 100]);
        account.enter(RunState::Offline, 1000);
        assert!(!account.account(spent(10, 10), 1100));
        assert_eq!(account.info_until(1100).time, [150, 110, 640, 200]);
    }

    #[test]
    fn a_clock_read_late_takes_nothing_back() {
        let mut account = Runstate::new(1000);
        account.enter(RunState::Running, 900);
        assert_eq!(account.info().state_entry_time, 1000);
        account.enter(RunState::Blocked, 1500);
        assert_eq!(account.info().time, [500, 0, 0, 0]);
        assert_eq!(account.info_until(1400).time, [500, 0, 0, 0]);
    }

    #[test]
    fn the_area_follows_the_account_across_pages() {
        let (domain, _, clock) = domain(1);
        // 24 bytes before the end of page 5; the rest lies in page 9.
        let first = vm_memory::GuestAddress(0x5fe8);
        let second = vm_memory::GuestAddress(0x9000);
        let area = RunstateArea::new(pages::Width::Bits64, first, Some(second)).unwrap();
        domain.place_runstate(0, Some((area, false))).unwrap();
        clock.set_ns(100);
        domain.enter_runstate(0, RunState::Running);
        clock.set_ns(350);
        domain.enter_runstate(0, RunState::Blocked);
        let read = pages::read_runstate(&domain.memory(), &area).unwrap();
        assert_eq!((read.state, read.state_entry_time_ns), (2, 350));
        assert_eq!(read.time_ns, [250, 0, 0, 100]);
        // time[1..] is what crossed the page.
        assert_eq!(super::super::test_platform::get::<u64>(&domain, 0x9000 + 16), 100);
        domain.place_runstate(0, None).unwrap();
        clock.set_ns(400);
        domain.enter_runstate(0, RunState::Running);
        assert_eq!(pages::read_runstate(&domain.memory(), &area).unwrap().state, 2);
        assert_eq!(domain.runstate_times_ns(0), Some([250, 0, 50, 100]));
        assert_eq!(domain.runstate_times_ns(1), None);
    }
}
