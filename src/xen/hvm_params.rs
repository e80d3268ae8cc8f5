//! HVM parameters: numbered values between toolstack, hypervisor and guest
//! (`hvm/params.h`), with the access rules of Xen 4.17.

use std::sync::atomic::{AtomicU64, Ordering};

use xen_abi::errno::Errno;
use xen_abi::hvm_params::{
    HVM_NR_PARAMS, HVM_PARAM_ACPI_IOPORTS_LOCATION, HVM_PARAM_ALTP2M, HVM_PARAM_BUFIOREQ_EVTCHN,
    HVM_PARAM_CALLBACK_IRQ, HVM_PARAM_CONSOLE_EVTCHN, HVM_PARAM_CONSOLE_PFN, HVM_PARAM_DM_DOMAIN,
    HVM_PARAM_MEMORY_EVENT_CR0, HVM_PARAM_MEMORY_EVENT_CR3, HVM_PARAM_MEMORY_EVENT_CR4,
    HVM_PARAM_MEMORY_EVENT_INT3, HVM_PARAM_MEMORY_EVENT_MSR, HVM_PARAM_MEMORY_EVENT_SINGLE_STEP,
    HVM_PARAM_NESTEDHVM, HVM_PARAM_PAE_ENABLED, HVM_PARAM_STORE_EVTCHN, HVM_PARAM_STORE_PFN,
    HVM_PARAM_VM_GENERATION_ID_ADDR, HVM_PARAM_VM86_TSS, HVM_PARAM_VM86_TSS_SIZED,
    HVM_PARAM_X87_FIP_WIDTH,
};

use super::{Domain, DomainConfig, shared_info, upcall};
use crate::pages::Width;

const COUNT: usize = HVM_NR_PARAMS as usize;
const PAGE_SHIFT: u32 = 12;

/// Bytes of a 32-bit TSS, the smallest that `HVM_PARAM_VM86_TSS_SIZED` takes.
const TSS_SIZE: u64 = 104;
/// The largest useful TSS: 256 bits of interrupt redirection, 64 Kibit of I/O
/// permission and the closing byte. Larger sizes are cut to it.
const TSS_SIZE_MAX: u64 = TSS_SIZE + 32 + 8192 + 1;
/// The size that `HVM_PARAM_VM86_TSS` implies.
const TSS_SIZE_OLD: u64 = 128;

/// The domain's parameters. A parameter of 0 is unset.
#[derive(Debug)]
pub struct HvmParams {
    values: [AtomicU64; COUNT],
}

impl HvmParams {
    /// Parameters as a toolstack leaves them at boot: the console's page where
    /// there is one, and the store's.
    #[must_use]
    pub fn new(config: &DomainConfig) -> Self {
        let params = Self { values: [const { AtomicU64::new(0) }; COUNT] };
        if let Some(page) = config.console_page {
            params.set(HVM_PARAM_CONSOLE_PFN, page.0 >> PAGE_SHIFT);
        }
        if let Some(page) = config.store_page {
            params.set(HVM_PARAM_STORE_PFN, page.0 >> PAGE_SHIFT);
        }
        params
    }

    /// A parameter as the toolstack reads it; 0 beyond `HVM_NR_PARAMS`.
    #[must_use]
    pub fn get(&self, index: u32) -> u64 {
        self.slot(index).map_or(0, |slot| slot.load(Ordering::Acquire))
    }

    /// Sets a parameter as the toolstack may; ignored beyond `HVM_NR_PARAMS`.
    pub fn set(&self, index: u32, value: u64) {
        if let Some(slot) = self.slot(index) {
            slot.store(value, Ordering::Release);
        }
    }

    fn slot(&self, index: u32) -> Option<&AtomicU64> {
        self.values.get(usize::try_from(index).ok()?)
    }

    /// What the guest reads.
    ///
    /// # Errors
    /// `EINVAL` for indices out of range and abandoned ones, `EPERM` for those
    /// between toolstack and hypervisor.
    pub(super) fn read(&self, index: u32) -> Result<u64, Errno> {
        match index {
            HVM_PARAM_VM86_TSS => Ok(self.get(HVM_PARAM_VM86_TSS_SIZED) & u64::from(u32::MAX)),
            HVM_PARAM_STORE_PFN | HVM_PARAM_CONSOLE_PFN | HVM_PARAM_ALTP2M => Ok(self.get(index)),
            _ => guest_may_write(index).map(|()| self.get(index)),
        }
    }
}

impl Domain {
    /// The domain's HVM parameters, to be set up before the guest runs.
    pub fn hvm_params(&self) -> &HvmParams {
        &self.params
    }
}

/// Sets a parameter for the guest and lets it take effect.
///
/// # Errors
/// As [`HvmParams::read`], and `EINVAL` or what the parameter's use demands.
pub(super) fn write(domain: &Domain, width: Width, index: u32, value: u64) -> Result<(), Errno> {
    guest_may_write(index)?;
    let (index, value) = match index {
        HVM_PARAM_CALLBACK_IRQ => {
            upcall::set_callback_via(domain, value)?;
            shared_info::latch_width(domain, width);
            (index, value)
        }
        // There is no PM timer to move.
        HVM_PARAM_ACPI_IOPORTS_LOCATION => return Err(Errno::ENODEV),
        HVM_PARAM_X87_FIP_WIDTH if !matches!(value, 0 | 4 | 8) => return Err(Errno::EINVAL),
        // Xen crashes the domain for a bad TSS. The value is of no use here (no
        // emulated real mode), so an error is enough.
        HVM_PARAM_VM86_TSS if value > u64::from(u32::MAX) => return Err(Errno::EINVAL),
        HVM_PARAM_VM86_TSS if value == 0 => (HVM_PARAM_VM86_TSS_SIZED, 0),
        HVM_PARAM_VM86_TSS => (HVM_PARAM_VM86_TSS_SIZED, value | TSS_SIZE_OLD << 32),
        HVM_PARAM_VM86_TSS_SIZED if value >> 32 < TSS_SIZE => return Err(Errno::EINVAL),
        HVM_PARAM_VM86_TSS_SIZED => {
            let size = (value >> 32).min(TSS_SIZE_MAX);
            (index, value & u64::from(u32::MAX) | size << 32)
        }
        _ => (index, value),
    };
    domain.params.set(index, value);
    Ok(())
}

/// The guest's own parameters. All others it may at most read.
fn guest_may_write(index: u32) -> Result<(), Errno> {
    match index {
        HVM_PARAM_CALLBACK_IRQ
        | HVM_PARAM_VM86_TSS
        | HVM_PARAM_VM86_TSS_SIZED
        | HVM_PARAM_ACPI_IOPORTS_LOCATION
        | HVM_PARAM_VM_GENERATION_ID_ADDR
        | HVM_PARAM_STORE_EVTCHN
        | HVM_PARAM_CONSOLE_EVTCHN
        | HVM_PARAM_X87_FIP_WIDTH => Ok(()),
        // Abandoned.
        HVM_PARAM_PAE_ENABLED
        | HVM_PARAM_DM_DOMAIN
        | HVM_PARAM_MEMORY_EVENT_CR0
        | HVM_PARAM_MEMORY_EVENT_CR3
        | HVM_PARAM_MEMORY_EVENT_CR4
        | HVM_PARAM_MEMORY_EVENT_INT3
        | HVM_PARAM_NESTEDHVM
        | HVM_PARAM_MEMORY_EVENT_SINGLE_STEP
        | HVM_PARAM_BUFIOREQ_EVTCHN
        | HVM_PARAM_MEMORY_EVENT_MSR => Err(Errno::EINVAL),
        HVM_NR_PARAMS.. => Err(Errno::EINVAL),
        _ => Err(Errno::EPERM),
    }
}
