//! The leaves as real Xen 4.17 shows them, register for register.

use super::*;
use crate::clock::TscFrequency;
use crate::xen::test_platform::config;

fn line(khz: u64) -> SystemTimeLine {
    SystemTimeLine::new(TscFrequency::from_khz(khz).unwrap(), 0, 0).unwrap()
}

/// The registers of a leaf, as a CPU answers from a table.
fn ask(table: &[CpuidEntry], function: u32, index: u32) -> Option<[u32; 4]> {
    let found = table.iter().find(|entry| {
        entry.function == function && (!entry.significant_index || entry.index == index)
    })?;
    Some([found.eax, found.ebx, found.ecx, found.edx])
}

#[test]
fn leaves_of_a_2_ghz_domain() {
    let config = DomainConfig { host_tsc_khz: 2_000_123, ..config(4) };
    let table = leaves(&config, &line(2_000_000), 3, 0x4000_0000, 0xfedc_ba98_7654_3210);
    let name = u32::from_le_bytes;
    let text = [name(*b"XenV"), name(*b"MMXe"), name(*b"nVMM")];
    let expected = [
        (0, 0, [0x4000_0005, text[0], text[1], text[2]]),
        (1, 0, [0x0004_0011, 0, 0, 0]),
        (2, 0, [1, 0x4000_0000, 0, 0]),
        (3, 0, [0b110, 0, 2_000_000, 1]),
        (3, 1, [0x7654_3210, 0xfedc_ba98, 1 << 31, 0]),
        (3, 2, [2_000_123, 0, 0, 0]),
        (4, 0, [0b101_1100, 3, 7, 0]),
        (5, 0, [0, 0, 0, 0]),
        (0x100, 0, [0x4000_0101, name(*b"kvm-"), name(*b"xen-"), name(*b"ext\0")]),
        (0x101, 0, [1, 55, 23, 0]),
    ];
    assert_eq!(table.len(), expected.len());
    for (leaf, index, registers) in expected {
        let got = ask(&table, 0x4000_0000 + leaf, index);
        assert_eq!(got, Some(registers), "leaf {leaf}/{index}");
    }
    // What has one subleaf only says nothing to the others.
    for (leaf, index) in [(3, 3), (4, 1), (5, 1)] {
        assert_eq!(ask(&table, 0x4000_0000 + leaf, index), None, "leaf {leaf}/{index}");
    }
}

#[test]
fn a_negative_shift_fills_the_register() {
    let table = leaves(&config(1), &line(2_500_000), 0, 0x4000_0000, 0);
    let scale = ask(&table, 0x4000_0003, 1);
    assert_eq!(scale, Some([0, 0, 3_435_973_837, u32::MAX])); // shift -1
}

#[test]
fn the_base_moves_everything() {
    let table = leaves(&config(1), &line(1_000_000), 0, 0x4000_0100, 0);
    assert!(table.iter().all(|entry| {
        let ours = 0x4000_0200..=0x4000_0201;
        (0x4000_0100..=0x4000_0105).contains(&entry.function) || ours.contains(&entry.function)
    }));
    assert_eq!(ask(&table, 0x4000_0100, 0).unwrap()[0], 0x4000_0105);
    assert_eq!(ask(&table, 0x4000_0102, 0).unwrap()[1], 0x4000_0200);
}

#[test]
fn upcall_vectors_are_offered_as_configured() {
    for (upcall_vector, features) in [(true, 0b101_1100), (false, 0b001_1100)] {
        let config = DomainConfig { upcall_vector, ..config(1) };
        let table = leaves(&config, &line(1_000_000), 0, 0x4000_0000, 0);
        // Never bit 5, the 15-bit destination ids.
        assert_eq!(ask(&table, 0x4000_0004, 0).unwrap()[0], features);
    }
}
