//! Runstate: how long each vCPU was running, runnable, blocked, offline.
//!
//! An account in system time. The four sums and the time in the current state
//! add up to the time since the domain was made, to the nanosecond.

use std::sync::atomic::Ordering;

use xen_abi::errno::Errno;
use xen_abi::vcpu::{VcpuRunstateInfo, VcpuRunstateInfo32};
use xen_abi::xen::VMASST_TYPE_RUNSTATE_UPDATE_FLAG;

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
        let sum = &mut self.time_ns[self.state as usize];
        *sum = sum.saturating_add(elapsed_ns);
        self.entry_ns = self.entry_ns.max(now_ns);
        self.state = state;
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
    /// `vcpu` enters a runstate now; called by its own thread. Reaching
    /// [`RunState::Running`] also makes the vCPU up.
    ///
    /// A vCPU is running from its first `vcpu_op` on and blocked while it is in
    /// [`Outcome::Wait`](super::Outcome::Wait) without this: a machine calls it
    /// where it knows more, of halted vCPUs or of stolen time.
    pub fn enter_runstate(&self, vcpu: u32, state: RunState) {
        let Some(target) = self.vcpu(vcpu) else { return };
        if state == RunState::Running {
            target.initialised.store(true, Ordering::Relaxed);
            target.up.store(true, Ordering::Relaxed);
        }
        let now_ns = self.clock.system_time_ns();
        let mut runstate = lock(&target.runstate);
        runstate.enter(state, now_ns);
        self.publish_runstate(&runstate);
    }

    /// `vcpu` made a call, so it is up and runs, however it was started:
    /// secondary vCPUs come by INIT and SIPI through a LAPIC that is not ours.
    pub(super) fn seen_running(&self, vcpu: u32) {
        let Some(target) = self.vcpu(vcpu) else { return };
        let offline = lock(&target.runstate).state == RunState::Offline;
        if offline || !target.up.load(Ordering::Relaxed) {
            self.enter_runstate(vcpu, RunState::Running);
        }
    }

    /// The account of `vcpu` up to now: ns running, runnable, blocked, offline.
    pub fn runstate_times_ns(&self, vcpu: u32) -> Option<[u64; 4]> {
        let now_ns = self.clock.system_time_ns();
        Some(lock(&self.vcpu(vcpu)?.runstate).info_until(now_ns).time)
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
