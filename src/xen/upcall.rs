//! How a vCPU learns of its events: the upcall.
//!
//! Xen's order of preference: the vCPU's own vector, then the VM-wide callback
//! vector, then a GSI whose level follows vCPU 0's `evtchn_upcall_pending`.

use std::sync::atomic::Ordering;

use xen_abi::errno::Errno;

use super::CallbackVia;
use super::atomic::{load_u32, or_u32};
use super::domain::{Domain, read};
use super::shared_info::At;

/// Vectors below this belong to the CPU's exceptions.
const FIRST_VECTOR: u8 = 0x10;
/// `evtchn_upcall_pending`, the first byte of `vcpu_info`, within its word.
const UPCALL_PENDING: u32 = 1;

/// Decodes `HVM_PARAM_CALLBACK_IRQ`: the type in bits 63..56, as
/// `hvm/params.h` states it.
pub(super) fn decode(value: u64) -> CallbackVia {
    let [low, ..] = value.to_le_bytes();
    match value >> 56 {
        0 if low == 0 => CallbackVia::None,
        0 => CallbackVia::Gsi(u32::from(low)),
        1 => CallbackVia::PciIntx(value & 0x00ff_ffff_ffff_ffff),
        2 => CallbackVia::Vector(low),
        _ => CallbackVia::None,
    }
}

/// `HVM_PARAM_CALLBACK_IRQ` was set.
///
/// # Errors
/// `EINVAL` where the machine has no such way.
pub(super) fn set_callback_via(domain: &Domain, value: u64) -> Result<(), Errno> {
    domain.platform.callback_via(decode(value))?;
    let old = decode(domain.callback_via.swap(value, Ordering::SeqCst));
    if let CallbackVia::Gsi(gsi) = old
        && domain.gsi_asserted.swap(false, Ordering::SeqCst)
    {
        domain.platform.set_gsi(gsi, false);
    }
    // Events that came before there was a way to say so.
    for vcpu in domain.vcpu_ids() {
        domain.raise_if_pending(vcpu);
    }
    Ok(())
}

/// `HVMOP_set_evtchn_upcall_vector`.
///
/// # Errors
/// `EINVAL` for a vector below 0x10, `ENOENT` for a vCPU that is not there.
pub(super) fn set_vector(domain: &Domain, vcpu: u32, vector: u8) -> Result<(), Errno> {
    if vector < FIRST_VECTOR {
        return Err(Errno::EINVAL);
    }
    let state = domain.vcpu(vcpu).ok_or(Errno::ENOENT)?;
    state.upcall_vector.store(vector, Ordering::SeqCst);
    domain.platform.upcall_vector(vcpu, vector);
    domain.raise_if_pending(vcpu);
    Ok(())
}

impl Domain {
    /// Sets `evtchn_upcall_pending` of the `vcpu_info` at `info` and, if it
    /// was clear, says so to the caller, who calls [`Domain::raise`] once it
    /// has let go of its locks.
    pub(super) fn mark_upcall(info: At<'_>) -> bool {
        // `evtchn_upcall_mask` is not looked at: it is for PV guests only.
        or_u32(info.memory, info.gpa, UPCALL_PENDING) & 0xff == 0
    }

    /// Interrupts `vcpu`, whose upcall is pending.
    pub(super) fn raise(&self, vcpu: u32) {
        let Some(state) = self.vcpu(vcpu) else { return };
        state.upcall_raised.store(true, Ordering::SeqCst);
        match state.upcall_vector.load(Ordering::SeqCst) {
            0 => match decode(self.callback_via.load(Ordering::SeqCst)) {
                CallbackVia::Vector(vector) => self.platform.raise_callback(vcpu, vector),
                CallbackVia::Gsi(_) if vcpu == 0 => self.update_callback_gsi(),
                CallbackVia::Gsi(_) | CallbackVia::PciIntx(_) | CallbackVia::None => {}
            },
            vector => self.platform.raise_vector(vcpu, vector),
        }
        self.end_wait(vcpu);
    }

    /// Brings the callback GSI to the level of vCPU 0's pending flag.
    pub(super) fn update_callback_gsi(&self) {
        let CallbackVia::Gsi(gsi) = decode(self.callback_via.load(Ordering::SeqCst)) else {
            return;
        };
        let level = self.upcall_pending(0);
        if self.gsi_asserted.swap(level, Ordering::SeqCst) != level {
            self.platform.set_gsi(gsi, level);
            // Set between our reading and the level going down: its raise saw
            // the line still up. Looking again makes one of us see the other.
            if !level && self.upcall_pending(0) {
                self.gsi_asserted.store(true, Ordering::SeqCst);
                self.platform.set_gsi(gsi, true);
            }
        }
    }

    /// The guest has ended the interrupt of the callback GSI, and its interrupt
    /// controller has let go of the line. Asserts it again if there are events
    /// that the guest has not seen.
    ///
    /// The machine calls this where it takes the line down itself at the guest's
    /// end of interrupt, which it should: a level that is still up then is an
    /// interrupt at once, and again, until somebody looks at the pending flag.
    pub fn callback_gsi_ended(&self) {
        self.gsi_asserted.store(false, Ordering::SeqCst);
        self.update_callback_gsi();
    }

    /// `evtchn_upcall_pending` of `vcpu`.
    pub(super) fn upcall_pending(&self, vcpu: u32) -> bool {
        let memory = self.memory();
        let layout = read(&self.layout);
        layout
            .vcpu_info(vcpu, &memory, &self.private)
            .is_some_and(|info| load_u32(info.memory, info.gpa) & 0xff != 0)
    }

    pub(super) fn raise_if_pending(&self, vcpu: u32) {
        if self.upcall_pending(vcpu) {
            self.raise(vcpu);
        }
    }
}

#[cfg(test)]
mod tests;
