//! Hypercalls as a guest makes them, for tests: by number, in either width.

use std::sync::Arc;

use xen_abi::errno::Errno;

use super::test_platform::{FakeClock, domain_with};
use super::test_platform::{FakePlatform, FakeVcpu, HIGH_RAM, HIGH_RAM_SIZE, RAM_SIZE, config};
use super::{Domain, DomainConfig, Hypercall, MemoryMapEntry, Outcome};
use crate::pages::Width;

pub(super) const WIDTHS: [Width; 2] = [Width::Bits64, Width::Bits32];
/// A page of RAM for arguments, and a linear address where nothing is.
pub(super) const ARG: u64 = 0x8000;
pub(super) const NOWHERE: u64 = 0x9000_0000;

/// The configuration of a domain that knows its RAM and has a console page.
pub(super) fn full_config() -> DomainConfig {
    let entry = |addr, size: usize, kind| MemoryMapEntry { addr, size: size as u64, kind };
    DomainConfig {
        memory_map: vec![
            entry(0, RAM_SIZE, 1),
            entry(RAM_SIZE as u64, 0x1000, 2),
            entry(HIGH_RAM, HIGH_RAM_SIZE, 1),
        ],
        console_page: Some(vm_memory::GuestAddress(0x4000)),
        store_page: None,
        ..config(2)
    }
}

/// A domain of 2 vCPUs with [`full_config`].
pub(super) fn full_domain() -> (Arc<Domain>, Arc<FakePlatform>, Arc<FakeClock>) {
    domain_with(full_config())
}

/// What a hypercall of vCPU 0 in ring 0 comes to.
pub(super) fn outcome(domain: &Domain, width: Width, number: u64, args: &[u64]) -> Outcome {
    let mut registers = [0; 6];
    registers[..args.len()].copy_from_slice(args);
    let call = Hypercall { number, args: registers, width, cpl: 0 };
    domain.hypercall(&mut FakeVcpu::new(0), &call)
}

/// The value that a hypercall returns, errors as such.
pub(super) fn call(domain: &Domain, width: Width, number: u64, args: &[u64]) -> Result<i64, Errno> {
    match outcome(domain, width, number, args) {
        Outcome::Return(value) => Errno::from_return(value).map_or(Ok(value), Err),
        other => panic!("hypercall {number} ended in {other:?}"),
    }
}
