//! The local APIC: by MSR (x2APIC) where CPUID offers it, else by memory.

#![expect(unsafe_code, reason = "APIC registers")]

use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu::{cpuid, rdmsr, wrmsr};

const MSR_APIC_BASE: u32 = 0x1b;
const APIC_ENABLE: u64 = 1 << 11;
const APIC_X2: u64 = 1 << 10;
const X2APIC_MSRS: u32 = 0x800;
const MMIO: usize = 0xfee0_0000;

const ID: u32 = 0x20;
const EOI: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const COMMAND: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const SPURIOUS_VECTOR: u32 = 0xff;
const SOFTWARE_ENABLE: u32 = 1 << 8;
const DELIVERY_PENDING: u32 = 1 << 12;
const MAX_POLLS: u32 = 1_000_000;

static BY_MSR: AtomicBool = AtomicBool::new(false);

/// Enables this CPU's APIC; every CPU does it for itself.
pub fn enable() {
    let x2 = cpuid(1, 0)[2] & 1 << 21 != 0;
    BY_MSR.store(x2, Ordering::Relaxed);
    let base = rdmsr(MSR_APIC_BASE) | APIC_ENABLE;
    // SAFETY: keeps the base address and turns the APIC on. xAPIC must be on
    // before x2APIC may be.
    unsafe { wrmsr(MSR_APIC_BASE, base) };
    if x2 {
        // SAFETY: as above, and CPUID offers x2APIC.
        unsafe { wrmsr(MSR_APIC_BASE, base | APIC_X2) };
    }
    write(SPURIOUS, SOFTWARE_ENABLE | SPURIOUS_VECTOR);
}

/// This CPU's APIC id.
#[must_use]
pub fn id() -> u32 {
    if by_msr() { read(ID) } else { read(ID) >> 24 }
}

/// Tells the APIC that the interrupt in service is done.
pub fn end_of_interrupt() {
    write(EOI, 0);
}

/// Sends an interrupt command (vector, delivery mode, level) to one APIC.
pub fn send(apic_id: u32, command: u32) {
    if by_msr() {
        // SAFETY: an interrupt to another CPU; its handlers are ours.
        unsafe {
            wrmsr(X2APIC_MSRS + COMMAND / 16, u64::from(apic_id) << 32 | u64::from(command));
        }
    } else {
        write(COMMAND_HIGH, apic_id << 24);
        write(COMMAND, command);
        for _ in 0..MAX_POLLS {
            if read(COMMAND) & DELIVERY_PENDING == 0 {
                break;
            }
        }
    }
}

fn by_msr() -> bool {
    BY_MSR.load(Ordering::Relaxed)
}

fn read(register: u32) -> u32 {
    if by_msr() {
        (rdmsr(X2APIC_MSRS + register / 16) & 0xffff_ffff) as u32
    } else {
        // SAFETY: the page tables map the APIC's page one to one, uncached.
        unsafe { core::ptr::without_provenance::<u32>(MMIO + register as usize).read_volatile() }
    }
}

fn write(register: u32, value: u32) {
    if by_msr() {
        // SAFETY: APIC registers do not touch memory.
        unsafe { wrmsr(X2APIC_MSRS + register / 16, u64::from(value)) };
    } else {
        let address = core::ptr::without_provenance_mut::<u32>(MMIO + register as usize);
        // SAFETY: as in `read`.
        unsafe { address.write_volatile(value) };
    }
}
