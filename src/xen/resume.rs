//! Shutting a guest down by its own will, and going on after it suspended.
//!
//! A guest that suspends stands in `SCHEDOP_shutdown`, its other vCPUs in a loop
//! with interrupts off. What that call answers says what it finds: 1, all is as
//! it was; 0, it goes on in a domain that was just made, in which nothing of the
//! hypervisor's is where it was. The console and the store have their first
//! ports there, and everything else the guest makes again.

use std::sync::atomic::Ordering;

use xen_abi::errno::Errno;
use xen_abi::hvm_params::HVM_PARAM_CALLBACK_IRQ;
use xen_abi::sched::SHUTDOWN_SUSPEND;

use super::domain::{Domain, lock};
use super::physmap::Freed;
use super::sched::Watchdogs;
use super::timer::Timers;
use super::{CallbackVia, RunState, memory_op, shared_info, upcall};

/// What a toolstack asks of a guest by `control/shutdown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownRequest {
    /// Freeze, and call `SCHEDOP_shutdown` with `SHUTDOWN_suspend`.
    Suspend,
    /// Shut down in order, and power off.
    Poweroff,
    /// Shut down in order, and reboot.
    Reboot,
}

impl ShutdownRequest {
    /// The word in the store.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Suspend => "suspend",
            Self::Poweroff => "poweroff",
            Self::Reboot => "reboot",
        }
    }
}

/// How a guest that suspended goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumed {
    /// As if it had not suspended: its call answers 1, and all is as it was.
    Cancelled,
    /// In a new domain: its call answers 0, and it makes everything again.
    Anew,
}

impl Resumed {
    /// What `SCHEDOP_shutdown` answers.
    pub const fn answer(self) -> i64 {
        match self {
            Self::Cancelled => 1,
            Self::Anew => 0,
        }
    }
}

/// Why something can not be asked of the guest, or it can not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenewError {
    /// The guest has not said that it follows the request.
    #[error(
        "the guest has not said that it can {0}: it has no driver for it, or has not come so far"
    )]
    NotOffered(&'static str),
    /// A request before is still to be taken.
    #[error("the guest has not taken the request before this one: wait, or reset it")]
    Busy,
    /// It is not suspended.
    #[error("the guest is not suspended")]
    NotSuspended,
    /// Its pages could not be made anew.
    #[error("the guest's pages could not be made anew: {0:?}")]
    Pages(Errno),
}

impl Domain {
    /// Asks the guest to shut itself down, by `control/shutdown`. It may take
    /// long, or never do it.
    ///
    /// # Errors
    /// [`RenewError::NotOffered`] where the guest has not written 1 to the
    /// request's `control/feature-` node, as Linux does once it listens;
    /// [`RenewError::Busy`] where it has not taken the last one.
    pub fn request_shutdown(&self, request: ShutdownRequest) -> Result<(), RenewError> {
        let word = request.word();
        let offered = self.store_read(&format!("control/feature-{word}"));
        if offered.as_deref() != Ok(b"1") {
            return Err(RenewError::NotOffered(word));
        }
        if self.store_read("control/shutdown").is_ok_and(|last| !last.is_empty()) {
            return Err(RenewError::Busy);
        }
        self.store_write("control/shutdown", word.as_bytes())
            .map_err(|_| RenewError::NotOffered(word))
    }

    /// Whether the guest suspended itself and stands still.
    pub fn is_suspended(&self) -> bool {
        self.shutdown_reason() == Some(SHUTDOWN_SUSPEND)
    }

    /// System time, ns, at which the guest suspended itself, where it stands still.
    pub fn suspended_since_ns(&self) -> Option<u64> {
        self.is_suspended().then(|| self.shutdown.since_ns.load(Ordering::SeqCst))
    }

    /// `vcpu` stands still since the guest suspended; its thread says so.
    pub fn vcpu_suspended(&self, vcpu: u32) {
        if self.is_vcpu_up(vcpu) {
            self.enter_runstate(vcpu, RunState::Offline);
        }
    }

    /// `vcpu` goes on; its thread says so, after [`Domain::resume`].
    pub fn vcpu_resumed(&self, vcpu: u32) {
        if self.is_vcpu_up(vcpu) {
            self.enter_runstate(vcpu, RunState::Running);
        }
    }

    /// Makes a suspended guest ready to go on. No vCPU runs yet; the one that
    /// suspended is then to find [`Resumed::answer`] as its call's answer.
    ///
    /// # Errors
    /// [`RenewError::NotSuspended`]; [`RenewError::Pages`] where the store's
    /// page is no memory, and the guest can only be ended.
    pub fn resume(&self, how: Resumed) -> Result<(), RenewError> {
        if !self.is_suspended() {
            return Err(RenewError::NotSuspended);
        }
        match how {
            // UTC has moved on, and the host may have set its clock.
            Resumed::Cancelled => self.refresh_wallclock(),
            Resumed::Anew => self.renew().map_err(RenewError::Pages)?,
        }
        self.shutdown.end();
        Ok(())
    }

    fn renew(&self) -> Result<(), Errno> {
        for vcpu in self.vcpu_ids() {
            self.change_timers(vcpu, |timers| *timers = Timers::default());
        }
        *lock(&self.watchdogs) = Watchdogs::default();
        self.change_timers(0, |_| {});
        self.renew_ports();
        // Before the pages, into which the flag is read.
        self.renew_callback();
        {
            let _changing = self.physmap.changing();
            let mut freed = Freed::new(self);
            for gfn in self.physmap.specials() {
                // It is there: nobody else changes the layout.
                let _ = memory_op::take_out(self, &mut freed, gfn);
            }
        }
        self.grants.renew(&self.config);
        shared_info::renew(self);
        for vcpu in self.vcpu_ids() {
            self.stop_waiting(vcpu);
            self.renew_runstate(vcpu);
        }
        self.renew_handover();
        self.renew_console();
        self.renew_xenstore()
    }

    /// No way to interrupt the guest, as before it chose one.
    fn renew_callback(&self) {
        for vcpu in self.vcpu_ids() {
            let Some(state) = self.vcpu(vcpu) else { continue };
            state.upcall_vector.store(0, Ordering::SeqCst);
            state.upcall_raised.store(false, Ordering::SeqCst);
            self.platform.upcall_vector(vcpu, 0);
        }
        let old = upcall::decode(self.callback_via.swap(0, Ordering::SeqCst));
        if let CallbackVia::Gsi(gsi) = old
            && self.gsi_asserted.swap(false, Ordering::SeqCst)
        {
            self.platform.set_gsi(gsi, false);
        }
        if let Err(errno) = self.platform.callback_via(CallbackVia::None) {
            tracing::debug!(%errno, "the machine keeps the callback");
        }
        self.params.set(HVM_PARAM_CALLBACK_IRQ, 0);
    }
}

#[cfg(test)]
mod tests;
