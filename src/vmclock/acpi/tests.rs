//! The AML, byte by byte where a driver looks.

use super::*;

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

fn has(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn the_vmclock_has_both_names_and_one_page() {
    let aml = bytes(&VmClockAml { gpa: 0x1_2345_6000 });
    assert!(has(&aml, b"_HID\x0dAMZNC10C\0"));
    assert!(has(&aml, b"_CID\x0dVMCLOCK\0"));
    // QWord address space: memory, fixed, read-only, cacheable; 0, first, last, 0, length.
    let mut resource = vec![0x8a, 43, 0, 0, 0x0c, 2];
    for value in [0, 0x1_2345_6000u64, 0x1_2345_6fff, 0, 0x1000] {
        resource.extend_from_slice(&value.to_le_bytes());
    }
    assert!(has(&aml, &resource), "{aml:x?}");
    // Below 4 GiB: a fixed piece of 32 bits, read-only.
    let aml = bytes(&VmClockAml { gpa: 0xdead_0000 });
    let mut resource = vec![0x86, 9, 0, 0];
    for value in [0xdead_0000u32, 0x1000] {
        resource.extend_from_slice(&value.to_le_bytes());
    }
    assert!(has(&aml, &resource), "{aml:x?}");
    // The last page of the 4 GiB still fits.
    assert!(has(&bytes(&VmClockAml { gpa: 0xffff_f000 }), &[0x86, 9, 0, 0]));
}

#[test]
fn an_address_at_the_end_is_no_panic() {
    let _ = bytes(&VmClockAml { gpa: u64::MAX });
    let _ = bytes(&GenerationAml { gpa: u64::MAX });
}

#[test]
fn the_generation_device_states_its_address_in_halves() {
    let aml = bytes(&GenerationAml { gpa: 0x1_2345_6040 });
    assert!(has(&aml, b"_CID\x0dVM_Gen_Counter\0"));
    assert!(has(&aml, b"ADDR\x12"));
    // DWORD low, and the high half as the constant One.
    assert!(has(&aml, &[2, 0x0c, 0x40, 0x60, 0x45, 0x23, 0x01]), "{aml:x?}");
}

#[test]
fn an_event_notifies_its_device_by_absolute_name() {
    let aml = bytes(&EventAml { vmclock_gsi: 5, generation_gsi: Some(6) });
    assert!(has(&aml, b"_HID\x0dACPI0013\0"));
    // Extended interrupt: consumer, edge, high, exclusive; one each.
    for gsi in [5, 6] {
        assert!(has(&aml, &[0x89, 6, 0, 0x03, 1, gsi, 0, 0, 0]), "{aml:x?}");
    }
    // Method _EVT, one argument, serialized.
    assert!(has(&aml, b"_EVT\x09"));
    assert!(has(&aml, b"\x86\\\x2e_SB_VCLK\x0a\x80"));
    assert!(has(&aml, b"\x86\\\x2e_SB_VGEN\x0a\x80"));
    let alone = bytes(&EventAml { vmclock_gsi: 5, generation_gsi: None });
    assert!(!has(&alone, b"VGEN"));
}

/// For a look with `iasl -d`: the three devices as a DSDT.
#[test]
fn a_disassembler_reads_it() {
    use acpi_tables::sdt::Sdt;
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, *b"KVMXEN", *b"KVMXENPV", 1);
    dsdt.append_slice(&bytes(&VmClockAml { gpa: 0xdead_0000 }));
    dsdt.append_slice(&bytes(&GenerationAml { gpa: 0xdead_1000 }));
    dsdt.append_slice(&bytes(&EventAml { vmclock_gsi: 5, generation_gsi: Some(6) }));
    let Some(path) = std::env::var_os("KVM_XEN_DUMP_DSDT") else {
        assert_eq!(dsdt.as_slice().iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        return;
    };
    std::fs::write(path, dsdt.as_slice()).unwrap();
}
