//! The machine's guest, as the service sees it.

use std::sync::{Arc, Weak};

use vmm_sys_util::eventfd::EventFd;

use super::engine::ClockedGuest;
use crate::clock::{SystemTimeLine, WallclockEpoch};
use crate::host::host_tsc;
use crate::kvm::{KvmClock, KvmPlatform, UtcLine};
use crate::xen::{Clock as _, Domain};

/// The interrupts of the two devices: descriptors that raise an edge.
#[derive(Debug)]
pub struct Bells {
    /// The VMClock's.
    pub vmclock: EventFd,
    /// The VM generation device's.
    pub generation: EventFd,
}

/// A guest of this machine.
pub struct MachineGuest {
    /// Its Xen.
    pub domain: Arc<Domain>,
    /// Its clock.
    pub clock: Arc<KvmClock>,
    /// Its KVM.
    pub platform: Weak<KvmPlatform>,
    /// Its interrupts, where it has the devices.
    pub bells: Option<Bells>,
}

impl ClockedGuest for MachineGuest {
    fn host_tsc(&self) -> u64 {
        host_tsc()
    }

    fn guest_tsc(&self, host_tsc: u64) -> u64 {
        self.clock.tsc().from_host(host_tsc)
    }

    fn lose_counter(&self) {
        self.clock.lose_offset();
        self.request_clock_updates();
    }

    fn counter_offset(&self) -> Option<u64> {
        (!self.clock.is_offset_lost()).then(|| self.clock.tsc().offset())
    }

    fn system_line(&self) -> SystemTimeLine {
        self.clock.line()
    }

    fn follow(&self, utc: Option<UtcLine>) {
        self.clock.follow(utc);
    }

    fn wallclock(&self) -> Option<WallclockEpoch> {
        self.domain.wallclock_page()
    }

    fn rewrite_wallclock(&self) {
        self.domain.refresh_wallclock();
    }

    fn request_clock_updates(&self) {
        (0..self.domain.config().vcpus).for_each(|vcpu| self.domain.request_clock_update(vcpu));
    }

    fn check_kvm_clock(&self) {
        if let Some(platform) = self.platform.upgrade() {
            platform.check_guarded(&self.domain.memory());
        }
    }

    fn clock_page_rewrites(&self) -> u64 {
        self.domain.clock_page_rewrites()
    }

    fn notify(&self) {
        ring(self.bells.as_ref().map(|bells| &bells.vmclock));
    }

    fn notify_generation(&self) {
        ring(self.bells.as_ref().map(|bells| &bells.generation));
    }
}

fn ring(bell: Option<&EventFd>) {
    // A full counter is an interrupt that is on its way.
    let _ = bell.map(|bell| bell.write(1));
}
