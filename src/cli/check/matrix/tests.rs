use std::collections::BTreeSet;

use super::*;

fn names(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| entry.cell.to_string()).collect()
}

fn caps(xen: u32, max_vcpus: u32) -> Capabilities {
    Capabilities {
        xen,
        tsc_scaling: false,
        vm_tsc_khz: true,
        user_space_msr: true,
        synic: true,
        sync_regs: 0,
        recommended_vcpus: 1,
        max_vcpus,
    }
}

#[test]
fn every_cell_has_a_name_of_its_own() {
    for all in [false, true] {
        let names = names(&matrix(all));
        let unique: BTreeSet<&String> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
    }
    assert_eq!(matrix(true).len(), 3 * 2_usize.pow(6));
}

#[test]
fn the_covering_set_has_every_value_of_every_setting() {
    let value = |entry: &Entry| entry.cell.settings();
    let sensible = |all| {
        let runs = matrix(all).into_iter().filter(|entry| entry.excluded.is_none());
        runs.flat_map(|entry| value(&entry)).collect::<BTreeSet<_>>()
    };
    assert_eq!(sensible(false), sensible(true));
    let full = names(&matrix(true));
    assert!(names(&matrix(false)).iter().all(|name| full.contains(name)));
    assert_eq!(matrix(false)[0].cell, Cell::BASE);
}

#[test]
fn names_say_what_differs() {
    assert_eq!(Cell::BASE.to_string(), "base");
    let cell = Cell { cpus: 1, clock: Clock::Guarded, upcall_vector: false, ..Cell::BASE };
    assert_eq!(cell.to_string(), "1-vcpu+guarded+vm-vector");
    let cell = Cell { cpus: 4, fifo: false, nopvspin: true, tsc: true, ..Cell::BASE };
    assert_eq!(cell.to_string(), "4-vcpus+2-level+nopvspin+tsc");
    assert_eq!(cell.cmdline(), "nopvspin clocksource=tsc tsc=reliable");
    assert_eq!(Cell::BASE.cmdline(), "");
}

#[test]
fn what_makes_no_sense_says_why() {
    for entry in matrix(true) {
        let cell = entry.cell;
        let guarded = cell.clock == Clock::Guarded;
        let port_io = cell.hypercalls == HypercallMode::PortIo;
        let expected = guarded && port_io;
        assert_eq!(entry.excluded.is_some(), expected, "{cell}");
    }
}

#[test]
fn a_host_may_lack_what_a_cell_needs() {
    let guarded = Cell { clock: Clock::Guarded, ..Cell::BASE };
    let port_io = Cell { hypercalls: HypercallMode::PortIo, ..Cell::BASE };
    for cell in [Cell::BASE, guarded, port_io] {
        assert_eq!(cell.lacking(&caps(0x1ff, 4)), None);
    }
    assert!(Cell::BASE.lacking(&caps(0, 4)).unwrap().contains("CONFIG_KVM_XEN"));
    assert!(guarded.lacking(&caps(0x3, 4)).unwrap().contains("--clock guarded"));
    assert_eq!(port_io.lacking(&caps(0, 4)), None);
    let wide = Cell { cpus: 4, ..Cell::BASE };
    assert!(wide.lacking(&caps(0x1ff, 2)).unwrap().contains("2 vCPUs"));
}

#[test]
fn patterns() {
    for (pattern, name, expected) in [
        ("base", "base", true),
        ("base", "base2", false),
        ("*", "base", true),
        ("", "base", false),
        ("*tsc", "4-vcpus+tsc", true),
        ("*tsc", "tsc", true),
        ("*tsc", "tsc+more", false),
        ("?-vcpu*", "1-vcpu", true),
        ("?-vcpu*", "4-vcpus+guarded", true),
        ("*guarded*vector*", "4-vcpus+guarded+vm-vector", true),
        ("**g**", "guarded", true),
        ("?", "", false),
    ] {
        assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
    }
}
