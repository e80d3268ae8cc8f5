//! Where the VMClock and the VM generation device are in this machine: memory,
//! interrupts, ACPI.

use std::io;

use acpi_tables::Aml;
use kvm_ioctls::VmFd;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::clock_service::Bells;
use super::memory::{DEVICE_PAGES_START, PAGE_SIZE};
use crate::vmclock::acpi::{EventAml, GenerationAml, VmClockAml};

/// The VMClock page: the first of the reserved pages for devices.
pub const VMCLOCK_GPA: GuestAddress = GuestAddress(DEVICE_PAGES_START);
/// The generation identifier, 16 bytes: in a page of its own, the second.
pub const GENERATION_GPA: GuestAddress = GuestAddress(DEVICE_PAGES_START + PAGE_SIZE);
/// IOAPIC pin of the VMClock's notification. Beyond the 16 of ISA, so that no
/// kernel gives it a meaning.
pub const VMCLOCK_GSI: u32 = 20;
/// IOAPIC pin of the generation device's notification.
pub const GENERATION_GSI: u32 = 21;

const VMCLOCK: VmClockAml = VmClockAml { gpa: VMCLOCK_GPA.0 };
const GENERATION: GenerationAml = GenerationAml { gpa: GENERATION_GPA.0 };
const EVENTS: EventAml =
    EventAml { vmclock_gsi: VMCLOCK_GSI, generation_gsi: Some(GENERATION_GSI) };

/// What the DSDT says of them; nothing without `--vmclock`.
pub fn aml(present: bool) -> &'static [&'static dyn Aml] {
    if present { &[&VMCLOCK, &GENERATION, &EVENTS] } else { &[] }
}

/// Connects both interrupts: an edge for each write to the descriptor.
///
/// # Errors
/// What KVM or the system says.
pub fn connect(vm: &VmFd) -> io::Result<Bells> {
    let bell = |gsi| {
        let bell = EventFd::new(libc::EFD_NONBLOCK)?;
        vm.register_irqfd(&bell, gsi)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        Ok::<_, io::Error>(bell)
    };
    Ok(Bells { vmclock: bell(VMCLOCK_GSI)?, generation: bell(GENERATION_GSI)? })
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;
    use crate::vmm::memory::{DEVICE_PAGES, MemoryLayout};
    use xen_abi::memory::E820_RESERVED;

    #[test]
    fn both_pages_are_reserved_and_backed_and_no_ram() {
        let layout = MemoryLayout::new(256 << 20).unwrap();
        let pages_end = DEVICE_PAGES_START + DEVICE_PAGES * PAGE_SIZE;
        for GuestAddress(gpa) in [VMCLOCK_GPA, GENERATION_GPA] {
            assert!(
                (DEVICE_PAGES_START..pages_end).contains(&gpa) && gpa.is_multiple_of(PAGE_SIZE)
            );
            let map = layout.memory_map();
            let entry = map.iter().find(|entry| (entry.addr..entry.end()).contains(&gpa));
            assert_eq!(entry.map(|entry| entry.kind), Some(E820_RESERVED));
            let backed = |(start, size): &(GuestAddress, usize)| {
                (start.0..start.0 + *size as u64).contains(&gpa)
            };
            assert!(layout.regions().iter().any(backed));
        }
    }
}
