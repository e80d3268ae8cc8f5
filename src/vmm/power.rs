//! A vCPU's thread as the domain wants it: down in KVM's "uninitialized" state,
//! in which KVM_RUN sleeps until INIT and SIPI or a kick, or up.

use std::time::Duration;

use kvm_bindings::{
    KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, kvm_mp_state,
};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno::Error;

use super::vcpu::Shared;
use crate::kvm::{HypercallExit, set_start};
use crate::xen::RunState;

/// KVM_RUN of a vCPU that is down comes back at once while an interrupt is
/// pending there, which nobody takes: then this long between two tries.
const RETRY: Duration = Duration::from_millis(5);

/// How a vCPU's thread stood when it was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerState {
    /// It let the vCPU run.
    pub running: bool,
    /// `KVM_MP_STATE_*` in which the vCPU went down.
    pub stopped_in: u32,
    /// The domain knows of the INIT that the vCPU stands at.
    pub init_told: bool,
}

/// Whether one vCPU runs, kept by its thread.
#[derive(Debug)]
pub(super) struct Power {
    id: u32,
    running: bool,
    /// KVM's state in which the vCPU went down.
    stopped_in: kvm_mp_state,
    /// The domain knows of the INIT that the vCPU stands at.
    init_told: bool,
}

impl Power {
    /// Of a vCPU before its first entry: the first runs, the others wait.
    pub(super) fn new(id: u32, shared: &Shared) -> Self {
        let running = shared.domain.is_vcpu_up(id);
        if running {
            shared.domain.vcpu_started(id);
        }
        Self { id, running, stopped_in: state(KVM_MP_STATE_RUNNABLE), init_told: false }
    }

    /// Of a vCPU that was saved; KVM's state of it is restored.
    pub(super) fn restored(id: u32, from: PowerState) -> Self {
        let stopped_in = state(from.stopped_in);
        Self { id, running: from.running, stopped_in, init_told: from.init_told }
    }

    pub(super) fn snapshot(&self) -> PowerState {
        PowerState {
            running: self.running,
            stopped_in: self.stopped_in.mp_state,
            init_told: self.init_told,
        }
    }

    /// Follows `VCPUOP_up` and `_down`.
    ///
    /// # Errors
    /// Where KVM refuses the state: that of `VCPUOP_initialise` may be one that
    /// no CPU has.
    pub(super) fn before_entry(&mut self, vcpu: &mut VcpuFd, shared: &Shared) -> Result<(), Error> {
        match (self.running, shared.domain.is_vcpu_up(self.id)) {
            (false, true) => self.rise(vcpu, shared),
            (true, false) => self.sink(vcpu, shared),
            (true, true) | (false, false) => Ok(()),
        }
    }

    fn rise(&mut self, vcpu: &VcpuFd, shared: &Shared) -> Result<(), Error> {
        match shared.domain.take_vcpu_start(self.id) {
            Some(start) => {
                set_start(vcpu, &start)?;
                vcpu.set_mp_state(state(KVM_MP_STATE_RUNNABLE))?;
            }
            None => vcpu.set_mp_state(self.stopped_in)?,
        }
        self.running = true;
        shared.domain.enter_runstate(self.id, RunState::Running);
        Ok(())
    }

    fn sink(&mut self, vcpu: &mut VcpuFd, shared: &Shared) -> Result<(), Error> {
        finish_exit(vcpu)?;
        self.stopped_in = vcpu.get_mp_state()?;
        vcpu.set_mp_state(state(KVM_MP_STATE_UNINITIALIZED))?;
        self.running = false;
        shared.domain.enter_runstate(self.id, RunState::Offline);
        Ok(())
    }

    /// Sees whether INIT or SIPI brought the vCPU out, if it was down.
    ///
    /// # Errors
    /// Where KVM does not tell.
    pub(super) fn after_exit(&mut self, vcpu: &VcpuFd, shared: &Shared) -> Result<(), Error> {
        if self.running {
            return Ok(());
        }
        match vcpu.get_mp_state()?.mp_state {
            // It waits for INIT, or was called for another reason.
            KVM_MP_STATE_UNINITIALIZED => {
                if let Some(kicker) = shared.platform.kicker(self.id) {
                    kicker.wait(Some(RETRY));
                }
            }
            // The next KVM_RUN sleeps until SIPI, and goes straight on. What came
            // out meanwhile is no second INIT.
            KVM_MP_STATE_INIT_RECEIVED => {
                if !std::mem::replace(&mut self.init_told, true) {
                    shared.domain.vcpu_reset(self.id);
                }
                return Ok(());
            }
            _ => {
                self.running = true;
                shared.domain.vcpu_started(self.id);
            }
        }
        self.init_told = false;
        Ok(())
    }
}

fn state(mp_state: u32) -> kvm_mp_state {
    kvm_mp_state { mp_state }
}

/// Has KVM take the answer of the hypercall that the vCPU stands at, which it
/// otherwise does on the way into the guest.
fn finish_exit(vcpu: &mut VcpuFd) -> Result<(), Error> {
    if vcpu.get_kvm_run().kvm_dirty_regs != 0 {
        let regs = vcpu.sync_regs_mut().regs;
        vcpu.set_regs(&regs)?;
        vcpu.get_kvm_run().kvm_dirty_regs = 0;
    }
    if vcpu.get_kvm_run().exit_reason == HypercallExit::REASON {
        vcpu.set_kvm_immediate_exit(1);
        // EINTR: that is all it is to do.
        let came_out = vcpu.run().map(drop);
        // The flag stays: it may be a kick's as well, and the next KVM_RUN, which
        // returns at once, has the thread look again at what that was for.
        match came_out {
            Err(error) if error.errno() != libc::EINTR => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
