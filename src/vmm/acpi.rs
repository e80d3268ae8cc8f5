//! The ACPI tables of a PVH guest.
//!
//! Hardware-reduced, as a Xen PVH domain's: no PM1 block, no SCI, no FACS, no
//! PIC and no PIT that a kernel would want to test. Linux then skips its timer
//! check through the IOAPIC (which panics without a PIT), powers off through
//! the sleep control register and reboots through the reset register. COM1 is
//! told by the DSDT, so that its interrupt goes to IOAPIC pin 4, edge, high:
//! no ISA override is needed. This works alike with the whole interrupt
//! controller in KVM and with a split one.
//!
//! Tables follow ACPI 6.5; the RSDP lies at [`ACPI_START`], the rest after it.

use crate::vmm::memory::{ACPI_SIZE, ACPI_START, GuestRam, IOAPIC_ADDR, LAPIC_ADDR};
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Name, Package, Path, ResourceTemplate};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::byteorder::{LE, U16, U32};
use zerocopy::{Immutable, IntoBytes};

/// Port of the reset register, one byte.
pub const RESET_PORT: u16 = 0xcf9;
/// The byte that resets the machine there.
pub const RESET_VALUE: u8 = 0x06;
/// Port of the sleep control register, one byte (ACPI 6.5, 4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// Port of the sleep status register, one byte. It may read as 0; a write of
/// bit 7 (WAK_STS) clears that bit.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// What the guest writes to [`SLEEP_CONTROL_PORT`] to power off: SLP_EN (bit 5)
/// and the sleep type of `\_S5` (bits 2 to 4).
pub const SLEEP_POWER_OFF: u8 = 1 << 5 | S5_TYPE << 2;
/// First port of COM1.
pub const COM1_PORT: u16 = 0x3f8;
/// IOAPIC pin of COM1, edge triggered, active high.
pub const COM1_GSI: u32 = 4;
/// Identity of the IOAPIC: what KVM's own gives.
pub const IOAPIC_ID: u8 = 0;
/// The most CPUs that have a name in the DSDT.
pub const MAX_CPUS: u32 = 0x1000;

const S5_TYPE: u8 = 5;
const OEM_ID: [u8; 6] = *b"KVMXEN";
const OEM_TABLE_ID: [u8; 8] = *b"KVMXENPV";
const OEM_REVISION: u32 = 1;
/// FADT IAPC_BOOT_ARCH: no VGA, no CMOS clock. Bit 1 clear says no 8042.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
/// xAPIC identities end at 254; from 255 on a CPU needs an x2APIC entry.
const FIRST_X2APIC_ID: u32 = 255;
/// Tables start on multiples of this.
const ALIGN: usize = 64;

/// What the tables describe.
#[derive(Clone, Copy)]
pub struct AcpiConfig<'a> {
    /// vCPUs, with APIC identities from 0 on.
    pub cpus: u32,
    /// More devices: each piece of AML goes into the DSDT at its root, so a
    /// name in it is absolute, such as `_SB_.VCLK`.
    pub devices: &'a [&'a dyn Aml],
}

/// Why the tables could not be built.
#[derive(Debug, Error)]
pub enum AcpiError {
    /// No CPU, or more than names.
    #[error("{0} vCPUs: ACPI can describe 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// They do not fit below 1 MiB.
    #[error("ACPI tables of {size} bytes for {cpus} vCPUs exceed {ACPI_SIZE}: use fewer vCPUs")]
    TooLarge {
        /// Bytes of all tables.
        size: usize,
        /// vCPUs asked for.
        cpus: u32,
    },
    /// Guest memory refused the write.
    #[error("cannot write the ACPI tables: {0}; give the guest at least 1M of memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Writes the tables into guest memory. Returns the RSDP's physical address.
pub fn build(ram: &GuestRam, config: &AcpiConfig<'_>) -> Result<u64, AcpiError> {
    let blob = tables(config, ACPI_START)?;
    ram.write_slice(&blob, GuestAddress(ACPI_START))?;
    Ok(ACPI_START)
}

/// All tables as they lie from `base` on, the RSDP first.
fn tables(config: &AcpiConfig<'_>, base: u64) -> Result<Vec<u8>, AcpiError> {
    if !(1..=MAX_CPUS).contains(&config.cpus) {
        return Err(AcpiError::Cpus(config.cpus));
    }
    let mut blob = vec![0; Rsdp::len()];
    let dsdt = append(&mut blob, base, &dsdt(config));
    let fadt = append(&mut blob, base, &fadt(dsdt));
    let madt = append(&mut blob, base, &madt(config.cpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(&mut blob, base, &bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM_ID, xsdt));
    blob[..rsdp.len()].copy_from_slice(&rsdp);
    if blob.len() as u64 > ACPI_SIZE {
        return Err(AcpiError::TooLarge { size: blob.len(), cpus: config.cpus });
    }
    Ok(blob)
}

/// Appends a table at the next aligned place and returns its address.
fn append(blob: &mut Vec<u8>, base: u64, table: &[u8]) -> u64 {
    blob.resize(blob.len().next_multiple_of(ALIGN), 0);
    let address = base + blob.len() as u64;
    blob.extend_from_slice(table);
    address
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let port =
        |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // Fixed buttons would need the PM1 block that this machine lacks.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .dsdt_64(dsdt);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(SLEEP_STATUS_PORT);
    bytes_of(&fadt.finalize())
}

fn madt(cpus: u32) -> Vec<u8> {
    let lapic = LocalInterruptController::Address(LAPIC_ADDR);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, lapic);
    for id in 0..cpus {
        match u8::try_from(id) {
            Ok(id8) if id < FIRST_X2APIC_ID => {
                madt.add_structure(ProcessorLocalApic::new(id8, id8, EnabledStatus::Enabled));
            }
            _ => madt.add_structure(LocalX2Apic::new(id)),
        }
    }
    madt.add_structure(IoApic::new(IOAPIC_ID, IOAPIC_ADDR, 0));
    bytes_of(&madt)
}

/// MADT entry of a CPU whose APIC identity needs more than 8 bits (ACPI 6.5,
/// 5.2.12.12).
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct LocalX2Apic {
    kind: u8,
    length: u8,
    reserved: U16<LE>,
    x2apic_id: U32<LE>,
    flags: U32<LE>,
    processor_uid: U32<LE>,
}

impl LocalX2Apic {
    fn new(id: u32) -> Self {
        Self {
            kind: 9,
            length: 16,
            reserved: 0.into(),
            x2apic_id: id.into(),
            flags: 1.into(),
            processor_uid: id.into(),
        }
    }
}

impl Aml for LocalX2Apic {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.as_bytes());
    }
}

fn dsdt(config: &AcpiConfig<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    let s5_type = S5_TYPE;
    Name::new("_S5_".into(), &Package::new(vec![&s5_type, &0u8, &0u8, &0u8]))
        .to_aml_bytes(&mut body);
    for id in 0..config.cpus {
        cpu(id, &mut body);
    }
    com1(&mut body);
    for device in config.devices {
        device.to_aml_bytes(&mut body);
    }
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&body);
    dsdt.as_slice().to_vec()
}

/// `_UID` ties the device to the CPU's MADT entry.
fn cpu(id: u32, body: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &"ACPI0007");
    let uid = Name::new("_UID".into(), &id);
    Device::new(Path::new(&format!("_SB_.C{id:03X}")), vec![&hid, &uid]).to_aml_bytes(body);
}

fn com1(body: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let uid = Name::new("_UID".into(), &0u8);
    let interrupt = Interrupt::new(true, true, false, false, COM1_GSI);
    let ports = IO::new(COM1_PORT, COM1_PORT, 1, 8);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt, &ports]));
    Device::new("_SB_.COM1".into(), vec![&hid, &uid, &crs]).to_aml_bytes(body);
}

#[cfg(test)]
mod tests;
