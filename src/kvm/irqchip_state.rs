//! The interrupt controllers outside of the vCPUs: both PICs and the IOAPIC.
//! There is no PIT.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno::Error;

use crate::xen::Bytes;

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// `kvm_irqchip` of each: master PIC, slave PIC, IOAPIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IrqchipState {
    /// In that order.
    pub chips: Vec<Bytes>,
}

impl IrqchipState {
    /// Of a VM of which no vCPU runs.
    ///
    /// # Errors
    /// KVM's own.
    pub fn read(vm: &VmFd) -> Result<Self, Error> {
        let read = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip)?;
            Ok::<_, Error>(Bytes::of(&chip))
        };
        Ok(Self { chips: CHIPS.into_iter().map(read).collect::<Result<_, _>>()? })
    }

    /// Of a VM of which no vCPU has run.
    ///
    /// # Errors
    /// KVM's own, `EINVAL` for what is no state of these chips.
    pub fn write(&self, vm: &VmFd) -> Result<(), Error> {
        for (bytes, chip_id) in self.chips.iter().zip(CHIPS) {
            let chip: Option<kvm_irqchip> = bytes.get();
            let chip = chip.filter(|chip| chip.chip_id == chip_id);
            vm.set_irqchip(&chip.ok_or(Error::new(libc::EINVAL))?)?;
        }
        if self.chips.len() == CHIPS.len() { Ok(()) } else { Err(Error::new(libc::EINVAL)) }
    }
}
