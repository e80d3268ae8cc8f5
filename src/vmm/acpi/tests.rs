//! The tables as a guest walks them: from the RSDP, by address and checksum.

use super::*;
use crate::vmm::memory::{MemoryLayout, MemoryOptions};
use acpi_tables::aml::Name;

const NONE: &[&dyn Aml] = &[];

fn config(cpus: u32) -> AcpiConfig<'static> {
    AcpiConfig { cpus, devices: NONE }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
}

/// The table at a guest address, its length and checksum checked.
fn table(blob: &[u8], address: u64) -> &[u8] {
    let at = usize::try_from(address - ACPI_START).unwrap();
    let length = u32_at(blob, at + 4) as usize;
    let table = &blob[at..at + length];
    assert_eq!(sum(table), 0, "checksum of {:?}", &table[..4]);
    table
}

/// FADT, MADT and DSDT, found as a guest finds them.
fn walk(blob: &[u8]) -> (&[u8], &[u8], &[u8]) {
    assert_eq!(&blob[..8], b"RSD PTR ");
    assert_eq!((sum(&blob[..20]), sum(&blob[..36])), (0, 0));
    let xsdt = table(blob, u64_at(blob, 24));
    assert_eq!((&xsdt[..4], xsdt.len()), (&b"XSDT"[..], 36 + 2 * 8));
    let (fadt, madt) = (table(blob, u64_at(xsdt, 36)), table(blob, u64_at(xsdt, 44)));
    assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
    let dsdt = table(blob, u64_at(fadt, 140));
    assert_eq!(&dsdt[..4], b"DSDT");
    (fadt, madt, dsdt)
}

/// The MADT's entries: kind and bytes.
fn entries(madt: &[u8]) -> Vec<&[u8]> {
    let mut rest = &madt[44..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (entry, tail) = rest.split_at(usize::from(rest[1]));
        found.push(entry);
        rest = tail;
    }
    found
}

#[test]
fn fadt_is_hardware_reduced_and_can_reset_and_power_off() {
    let blob = tables(&config(1), ACPI_START).unwrap();
    let (fadt, ..) = walk(&blob);
    assert_eq!(fadt.len(), 276, "ACPI 6");
    assert_eq!(u32_at(fadt, 112) & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
    let gas = |at| (fadt[at], fadt[at + 1], u64_at(fadt, at + 4));
    assert_eq!((gas(116), fadt[128]), ((1, 8, 0xcf9), 6), "reset register and value");
    assert_eq!((gas(244), gas(256)), ((1, 8, 0x600), (1, 8, 0x601)), "sleep registers");
    assert_eq!(SLEEP_POWER_OFF, 0x34);
}

#[test]
fn madt_has_every_cpu_and_the_ioapic() {
    for cpus in [1, 2, 254, 255, 256, 300] {
        let blob = tables(&config(cpus), ACPI_START).unwrap();
        let (_, madt, _) = walk(&blob);
        assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (LAPIC_ADDR, 0), "no PIC");
        let mut expected = 0;
        let mut ioapics = 0;
        for entry in entries(madt) {
            let id = match (entry[0], entry.len()) {
                (0, 8) => {
                    assert!(expected < 255, "255 is the broadcast identity");
                    assert_eq!(u32_at(entry, 4), 1, "enabled");
                    assert_eq!(entry[2], entry[3]);
                    u32::from(entry[3])
                }
                (9, 16) => {
                    assert!(expected >= 255);
                    assert_eq!(u32_at(entry, 8), 1, "enabled");
                    assert_eq!(u32_at(entry, 4), u32_at(entry, 12));
                    u32_at(entry, 4)
                }
                (1, 12) => {
                    assert_eq!((u32_at(entry, 4), u32_at(entry, 8)), (IOAPIC_ADDR, 0));
                    ioapics += 1;
                    continue;
                }
                other => panic!("unexpected MADT entry {other:?}"),
            };
            assert_eq!(id, expected);
            expected += 1;
        }
        assert_eq!((expected, ioapics), (cpus, 1));
    }
}

#[test]
fn dsdt_takes_more_devices() {
    let plain = tables(&config(1), ACPI_START).unwrap();
    let name = Name::new("XYZW".into(), &7u8);
    let devices: [&dyn Aml; 1] = [&name];
    let blob = tables(&AcpiConfig { cpus: 1, devices: &devices }, ACPI_START).unwrap();
    let (_, _, dsdt) = walk(&blob);
    assert!(dsdt.windows(4).any(|w| w == b"XYZW"));
    assert!(dsdt.windows(4).any(|w| w == b"COM1"));
    assert!(!walk(&plain).2.windows(4).any(|w| w == b"XYZW"));
}

#[test]
fn number_of_cpus_is_bounded() {
    assert!(matches!(tables(&config(0), ACPI_START), Err(AcpiError::Cpus(0))));
    assert!(matches!(tables(&config(u32::MAX), ACPI_START), Err(AcpiError::Cpus(u32::MAX))));
    let many = tables(&config(1024), ACPI_START).unwrap();
    assert_eq!(entries(walk(&many).1).len(), 1025);
    let error = tables(&config(MAX_CPUS), ACPI_START).unwrap_err().to_string();
    assert!(error.contains("4096 vCPUs") && !error.contains('\n'), "{error}");
}

#[test]
fn written_where_the_rsdp_is_looked_for() {
    let layout = MemoryLayout::new(2 << 20).unwrap();
    let ram = layout.create(MemoryOptions::default()).unwrap();
    assert_eq!(build(&ram, &config(1)).unwrap(), 0xe_0000);
    let mut signature = [0; 8];
    ram.read_slice(&mut signature, GuestAddress(0xe_0000)).unwrap();
    assert_eq!(&signature, b"RSD PTR ");
}

#[test]
fn a_vmclock_is_in_the_dsdt_where_it_is_wanted() {
    use crate::vmm::vmclock_device::{GENERATION_GPA, VMCLOCK_GPA, aml};
    let holds = |present, bytes: &[u8]| {
        let config = AcpiConfig { cpus: 1, devices: aml(present) };
        let blob = tables(&config, ACPI_START).unwrap();
        let (_, _, dsdt) = walk(&blob);
        dsdt.windows(bytes.len()).any(|window| window == bytes)
    };
    let gpa = |address: vm_memory::GuestAddress| u32::try_from(address.0).unwrap().to_le_bytes();
    for device in [&b"AMZNC10C"[..], b"VMCLOCK", b"VMGENCTR", b"ACPI0013", b"_EVT"] {
        assert!(holds(true, device) && !holds(false, device), "{device:?}");
    }
    assert!(holds(true, &gpa(VMCLOCK_GPA)) && holds(true, &gpa(GENERATION_GPA)));
}
