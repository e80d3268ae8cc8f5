//! The VM-wide callback vector without KVM's `vcpu_info`.
//!
//! Xen hands that vector to a vCPU past its local APIC: the guest's handler
//! sends no end of interrupt. A plain interrupt would stay in service for ever
//! and hold back all others. Hyper-V has interrupts of the same kind, and KVM
//! serves them whatever else a guest is told: a vector that a synthetic
//! interrupt source names with AutoEOI set enters no in-service register.
//!
//! ```text
//! SCONTROL.enable, SINT0 = vector | AutoEOI     once, by KVM_SET_MSRS
//! MSI of that vector ──► IRR ──► the guest's handler, nothing in service
//! ```
//!
//! Where Xen's way differs: the task priority and what is in service hold this
//! vector back, and a local APIC that is switched off does not take it. The MSRs
//! stay hidden from the guest, whose CPUID does not show Hyper-V. While it is
//! in use KVM does without APICv and AVIC.
//!
//! Source: Hyper-V TLFS, "Virtual Interrupt Controller"; Linux
//! `arch/x86/kvm/hyperv.c` and `kvm_get_apic_interrupt` in `lapic.c`.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use kvm_bindings::{KVM_CAP_HYPERV_SYNIC2, Msrs, kvm_enable_cap, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno::Error;

const HV_X64_MSR_SCONTROL: u32 = 0x4000_0080;
const HV_X64_MSR_SINT0: u32 = 0x4000_0090;
const SCONTROL_ENABLE: u64 = 1;
const SINT_MASKED: u64 = 1 << 16;
const SINT_AUTO_EOI: u64 = 1 << 17;

/// One vCPU's part.
#[derive(Debug, Default)]
struct Line {
    /// The vector that is to need no end of interrupt, 0 for none.
    wanted: AtomicU8,
    /// The one that needs none now. Written by the vCPU's own thread.
    armed: AtomicU8,
    /// The vCPU has been given synthetic interrupts. Its own thread's only.
    enabled: AtomicBool,
}

/// Which vector each vCPU takes without an end of interrupt.
#[derive(Debug)]
pub(super) struct CallbackVector {
    lines: Vec<Line>,
}

impl CallbackVector {
    pub(super) fn new(vcpus: usize) -> Self {
        Self { lines: std::iter::repeat_with(Line::default).take(vcpus).collect() }
    }

    fn line(&self, vcpu: u32) -> Option<&Line> {
        self.lines.get(usize::try_from(vcpu).ok()?)
    }

    /// The vector that each vCPU is to take as the callback.
    pub(super) fn snapshot(&self) -> Vec<u8> {
        self.lines.iter().map(|line| line.wanted.load(Ordering::SeqCst)).collect()
    }

    /// Each vCPU is armed on its way into the guest.
    pub(super) fn restore(&self, from: &[u8]) -> bool {
        for (line, wanted) in self.lines.iter().zip(from) {
            line.wanted.store(*wanted, Ordering::SeqCst);
        }
        self.lines.len() == from.len()
    }

    /// The guest chose its callback for all vCPUs: a vector, or 0 for another
    /// way. `true` if a vCPU has to pass [`CallbackVector::before_entry`] for it.
    pub(super) fn choose(&self, vector: u8) -> bool {
        self.lines.iter().fold(false, |changed, line| {
            changed | (line.wanted.swap(vector, Ordering::SeqCst) != vector)
        })
    }

    /// Whether `vcpu` takes `vector` as the callback now. If not it will, once
    /// it has passed [`CallbackVector::before_entry`].
    pub(super) fn is_armed(&self, vcpu: u32, vector: u8) -> bool {
        self.line(vcpu).is_some_and(|line| {
            line.wanted.store(vector, Ordering::SeqCst);
            line.armed.load(Ordering::SeqCst) == vector
        })
    }

    /// Whether `vcpu` takes `vector` as an interrupt that the guest ends. If
    /// not, as in a guest that goes over to per-vCPU vectors with the same
    /// number, it will, once it has passed [`CallbackVector::before_entry`].
    pub(super) fn is_free(&self, vcpu: u32, vector: u8) -> bool {
        self.line(vcpu).is_none_or(|line| {
            // Fails where another is wanted, and then that stays.
            let _ = line.wanted.compare_exchange(vector, 0, Ordering::SeqCst, Ordering::SeqCst);
            line.armed.load(Ordering::SeqCst) != vector
        })
    }

    /// Brings the vCPU to what is wanted, on its own thread.
    ///
    /// # Errors
    /// KVM's refusal; the vCPU then must not run, it would lose its events.
    pub(super) fn before_entry(&self, vcpu: u32, fd: &VcpuFd) -> Result<(), Error> {
        let Some(line) = self.line(vcpu) else { return Ok(()) };
        let wanted = line.wanted.load(Ordering::SeqCst);
        if wanted == line.armed.load(Ordering::Relaxed) {
            return Ok(());
        }
        if !line.enabled.swap(true, Ordering::Relaxed) {
            // The second kind of the capability leaves guest memory alone.
            let cap = kvm_enable_cap { cap: KVM_CAP_HYPERV_SYNIC2, ..Default::default() };
            fd.enable_cap(&cap)?;
            set_msr(fd, HV_X64_MSR_SCONTROL, SCONTROL_ENABLE)?;
        }
        let source = if wanted == 0 { SINT_MASKED } else { u64::from(wanted) | SINT_AUTO_EOI };
        set_msr(fd, HV_X64_MSR_SINT0, source)?;
        line.armed.store(wanted, Ordering::SeqCst);
        tracing::debug!(vcpu, vector = wanted, "the callback vector needs no end of interrupt");
        Ok(())
    }
}

fn set_msr(fd: &VcpuFd, index: u32, data: u64) -> Result<(), Error> {
    let entry = kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[entry]).map_err(|_| Error::new(libc::E2BIG))?;
    match fd.set_msrs(&msrs)? {
        1 => Ok(()),
        // KVM says how many it set, not why it stopped.
        _ => Err(Error::new(libc::EINVAL)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_raised_only_in_the_way_that_it_is_armed() {
        let callback = CallbackVector::new(2);
        assert!(callback.is_free(0, 0xf3) && !callback.is_armed(7, 0xf3) && callback.is_free(7, 1));
        assert!(callback.choose(0xf3) && !callback.choose(0xf3));
        assert!(!callback.is_armed(0, 0xf3), "not before its own thread has armed it");
        callback.lines[0].armed.store(0xf3, Ordering::SeqCst);
        assert!(callback.is_armed(0, 0xf3) && !callback.is_armed(1, 0xf3));
        assert!(callback.is_free(0, 0x40), "another vector");
        assert_eq!(callback.lines[0].wanted.load(Ordering::SeqCst), 0xf3);
        assert!(!callback.is_free(0, 0xf3), "armed until its own thread has passed");
        assert_eq!(callback.lines[0].wanted.load(Ordering::SeqCst), 0);
        assert!(callback.choose(0), "vCPU 1 is to be told");
        assert_eq!(callback.lines[1].wanted.load(Ordering::SeqCst), 0);
    }
}
