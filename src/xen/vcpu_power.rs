//! vCPUs up and down: `VCPUOP_initialise`, `_up`, `_down`, and what the
//! machine's vCPU threads need to know of it.
//!
//! A vCPU is started by these calls or by INIT and SIPI through its local APIC,
//! as the guest likes; only its own thread can tell the latter. That thread asks
//! before each entry whether the vCPU is up, and is kicked when that changes.

use std::sync::atomic::Ordering;

use xen_abi::errno::Errno;
use xen_abi::hvm_vcpu::VcpuHvmContext;
use xen_abi::sched::SHUTDOWN_POWEROFF;

use super::domain::{Domain, lock, read};
use super::{Call, Reply, RunState, VcpuStart};

/// `VCPUOP_initialise`.
///
/// # Errors
/// `EINVAL` for a vCPU without a `vcpu_info` (32 and up, until registered) and
/// for a state that Xen refuses, `EFAULT`, `EEXIST` if it has a state already.
pub(super) fn initialise(call: &mut Call<'_>, vcpu: u32, arg: u64) -> Reply {
    let domain = call.domain;
    let state = domain.vcpu(vcpu).ok_or(Errno::ENOENT)?;
    let has_info = {
        let memory = domain.memory();
        read(&domain.layout).vcpu_info(vcpu, &memory, &domain.private).is_some()
    };
    if !has_info {
        return Err(Errno::EINVAL);
    }
    let context: VcpuHvmContext = call.read(arg)?;
    let mut slot = lock(&state.start);
    if state.initialised.load(Ordering::SeqCst) {
        return Err(Errno::EEXIST);
    }
    let start = VcpuStart::new(&context, domain.platform.start_limits())?;
    *slot = Some(Box::new(start));
    state.initialised.store(true, Ordering::SeqCst);
    Ok(0)
}

/// `VCPUOP_up`: `EINVAL` for a vCPU that was never initialised.
pub(super) fn up(domain: &Domain, vcpu: u32) -> Reply {
    let state = domain.vcpu(vcpu).ok_or(Errno::ENOENT)?;
    if !state.initialised.load(Ordering::SeqCst) {
        return Err(Errno::EINVAL);
    }
    // SeqCst: whoever the kick reaches sees it.
    if !state.up.swap(true, Ordering::SeqCst) {
        domain.platform.kick(vcpu);
    }
    Ok(0)
}

/// `VCPUOP_down`. The last vCPU that goes down takes the domain with it.
pub(super) fn down(domain: &Domain, vcpu: u32) -> Reply {
    let state = domain.vcpu(vcpu).ok_or(Errno::ENOENT)?;
    // First down, then the look at the others: of two vCPUs that go down at the
    // same time at least one sees that nobody is left.
    let was_up = state.up.swap(false, Ordering::SeqCst);
    let others_up = domain
        .vcpu_ids()
        .filter(|&other| other != vcpu)
        .filter_map(|other| domain.vcpu(other))
        .any(|other| other.up.load(Ordering::SeqCst));
    if !others_up {
        domain.shut_down(SHUTDOWN_POWEROFF);
    } else if was_up {
        domain.end_wait(vcpu);
        domain.platform.kick(vcpu);
    }
    Ok(0)
}

impl Domain {
    /// Whether `vcpu` is to run. Its thread looks before each entry; where the
    /// answer is no, it says so by `RunState::Offline` and waits for a kick, or
    /// for INIT and SIPI.
    pub fn is_vcpu_up(&self, vcpu: u32) -> bool {
        self.vcpu(vcpu).is_some_and(|state| state.up.load(Ordering::SeqCst))
    }

    /// The registers that `vcpu` is to start with, once: its thread looks when
    /// it finds the vCPU up that was not. `None` goes on where it stopped.
    pub fn take_vcpu_start(&self, vcpu: u32) -> Option<VcpuStart> {
        lock(&self.vcpu(vcpu)?.start).take().map(|start| *start)
    }

    /// `vcpu` runs from now on, started by INIT and SIPI; called by its thread.
    pub fn vcpu_started(&self, vcpu: u32) {
        let Some(state) = self.vcpu(vcpu) else { return };
        {
            // A start state that was not yet used is void.
            let mut slot = lock(&state.start);
            *slot = None;
            state.initialised.store(true, Ordering::SeqCst);
        }
        state.up.store(true, Ordering::SeqCst);
        self.enter_runstate(vcpu, RunState::Running);
    }

    /// `vcpu`, which is down, was sent an INIT: it is as new, and may be given
    /// a start state again. Called by its thread.
    pub fn vcpu_reset(&self, vcpu: u32) {
        let Some(state) = self.vcpu(vcpu) else { return };
        let mut slot = lock(&state.start);
        if !state.up.load(Ordering::SeqCst) {
            *slot = None;
            state.initialised.store(false, Ordering::SeqCst);
        }
    }

    /// `vcpu` made a call, so it runs, however it came up: a machine that can
    /// not tell SIPIs is believed by this.
    pub(super) fn seen_running(&self, vcpu: u32) {
        let Some(state) = self.vcpu(vcpu) else { return };
        let unseen = !state.initialised.load(Ordering::Relaxed)
            || state.up.load(Ordering::Relaxed) && lock(&state.runstate).is_offline();
        if unseen {
            self.vcpu_started(vcpu);
        }
    }
}

#[cfg(test)]
mod tests;
