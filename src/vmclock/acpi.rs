//! How a guest finds the devices: AML for the DSDT.
//!
//! The machine's ACPI is hardware-reduced: no SCI and no GPE block. A
//! notification is an interrupt of the Generic Event Device (ACPI 6.5, 5.6.9),
//! whose `_EVT` method says which device it is for. Linux has it built in.
//!
//! Names are absolute, as `vmm::acpi::AcpiConfig::devices` wants them.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, Device, Equal, If, Interrupt, Memory32Fixed, Method,
    Name, Notify, Package, Path, ResourceTemplate,
};
use acpi_tables::{Aml, AmlSink};

use crate::pages::VMCLOCK_PAGE_SIZE;

/// The value of a notification (ACPI 6.5, 5.6.6: device specific).
const NOTIFY_CHANGED: u8 = 0x80;
const VMCLOCK_PATH: &str = "_SB_.VCLK";
const GENERATION_PATH: &str = "_SB_.VGEN";
/// [`VMCLOCK_PAGE_SIZE`] as a resource states it.
const VMCLOCK_PAGE_SIZE_32: u32 = 4096;
const _: () = assert!(VMCLOCK_PAGE_SIZE == VMCLOCK_PAGE_SIZE_32 as usize);
/// Present, enabled, shown, functioning.
const STATUS_PRESENT: u8 = 0xf;

/// The VMClock device: a page at a guest-physical address.
///
/// Linux's driver knows it by `_HID` or `_CID` and wants exactly one resource,
/// memory, of 4096 bytes for `/dev/vmclock0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmClockAml {
    /// Where the page lies.
    pub gpa: u64,
}

impl Aml for VmClockAml {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let hid = Name::new("_HID".into(), &"AMZNC10C");
        let cid = Name::new("_CID".into(), &"VMCLOCK");
        let ddn = Name::new("_DDN".into(), &"VMCLOCK");
        let uid = Name::new("_UID".into(), &0u8);
        let status = Name::new("_STA".into(), &STATUS_PRESENT);
        // A fixed piece of memory that the device itself uses; beyond 4 GiB only
        // an address space can say where it is.
        let size = VMCLOCK_PAGE_SIZE as u64;
        let last = self.gpa.saturating_add(size - 1);
        let low = u32::try_from(self.gpa).ok().filter(|_| u32::try_from(last).is_ok());
        let memory: Box<dyn Aml> = match low {
            Some(gpa) => Box::new(Memory32Fixed::new(false, gpa, VMCLOCK_PAGE_SIZE_32)),
            None => Box::new(AddressSpace::<u64>::new_memory(
                AddressSpaceCacheable::Cacheable,
                false,
                self.gpa,
                last,
                None,
            )),
        };
        let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![memory.as_ref()]));
        let children: Vec<&dyn Aml> = vec![&hid, &cid, &ddn, &uid, &status, &crs];
        Device::new(VMCLOCK_PATH.into(), children).to_aml_bytes(sink);
    }
}

/// The VM generation device: 16 bytes at a guest-physical address, 8-byte
/// aligned, in memory that the guest does not use otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationAml {
    /// Where the identifier lies.
    pub gpa: u64,
}

impl Aml for GenerationAml {
    #[expect(clippy::cast_possible_truncation, reason = "the package holds both halves")]
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let hid = Name::new("_HID".into(), &"VMGENCTR");
        let cid = Name::new("_CID".into(), &"VM_Gen_Counter");
        let ddn = Name::new("_DDN".into(), &"VM_Gen_Counter");
        let uid = Name::new("_UID".into(), &0u8);
        let status = Name::new("_STA".into(), &STATUS_PRESENT);
        let (low, high) = (self.gpa as u32, (self.gpa >> 32) as u32);
        let address = Name::new("ADDR".into(), &Package::new(vec![&low, &high]));
        let children: Vec<&dyn Aml> = vec![&hid, &cid, &ddn, &uid, &status, &address];
        Device::new(GENERATION_PATH.into(), children).to_aml_bytes(sink);
    }
}

/// The Generic Event Device that carries their notifications: one edge of
/// `vmclock_gsi` notifies the VMClock, one of `generation_gsi` the generation
/// device. They may not be shared with another device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventAml {
    /// Interrupt of the VMClock.
    pub vmclock_gsi: u32,
    /// Interrupt of the VM generation device, where there is one.
    pub generation_gsi: Option<u32>,
}

impl Aml for EventAml {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let hid = Name::new("_HID".into(), &"ACPI0013");
        let uid = Name::new("_UID".into(), &0u8);
        let interrupt = |gsi| Interrupt::new(true, true, false, false, gsi);
        let (clock, generation) = (self.vmclock_gsi, self.generation_gsi);
        let clock_interrupt = interrupt(clock);
        let generation_interrupt = generation.map(interrupt);
        let mut interrupts: Vec<&dyn Aml> = vec![&clock_interrupt];
        interrupts.extend(generation_interrupt.as_ref().map(|one| one as &dyn Aml));
        let crs = Name::new("_CRS".into(), &ResourceTemplate::new(interrupts));

        // From the root: a name of two parts is not looked for upwards.
        let clock_path = Path::new(&format!("\\{VMCLOCK_PATH}"));
        let notify_clock = Notify::new(&clock_path, &NOTIFY_CHANGED);
        let is_clock = Equal::new(&Arg(0), &clock);
        let if_clock = If::new(&is_clock, vec![&notify_clock]);
        let generation_path = Path::new(&format!("\\{GENERATION_PATH}"));
        let notify_generation = Notify::new(&generation_path, &NOTIFY_CHANGED);
        let generation_number = generation.unwrap_or(0);
        let is_generation = Equal::new(&Arg(0), &generation_number);
        let if_generation = If::new(&is_generation, vec![&notify_generation]);
        let mut body: Vec<&dyn Aml> = vec![&if_clock];
        if generation.is_some() {
            body.push(&if_generation);
        }
        let event = Method::new("_EVT".into(), 1, true, body);
        Device::new("_SB_.GED_".into(), vec![&hid, &uid, &crs, &event]).to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests;
