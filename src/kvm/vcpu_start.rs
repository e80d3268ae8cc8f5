//! The start state of `VCPUOP_initialise` as KVM's registers.

use core::arch::x86_64::{__cpuid, __cpuid_count};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno::Error;

use crate::xen::{StartLimits, StartSegment, VcpuStart};

const CR0_PG: u64 = 1 << 31;
const EFER_LMA: u64 = 1 << 10;
const EFER_NX: u64 = 1 << 11;
const EFER_FFXSR: u64 = 1 << 14;

/// The control register bits of this host's CPU that a guest may have: a guest
/// has the CPUID features that KVM supports, which are the CPU's.
pub(super) fn limits() -> StartLimits {
    let most_leaf = __cpuid(0).eax;
    let leaf_1 = __cpuid(1);
    let has_leaf_7 = most_leaf >= 7;
    // Where there is no leaf 7 this answers with the highest that there is.
    let leaf_7 = __cpuid_count(7, 0);
    let extended = __cpuid(0x8000_0001);
    let bit = |register: u32, number: u32| register >> number & 1 != 0;
    // (bit in CR4, whether the CPU has it).
    let optional = [
        (11, has_leaf_7 && bit(leaf_7.ecx, 2)),  // UMIP
        (16, has_leaf_7 && bit(leaf_7.ebx, 0)),  // FSGSBASE
        (17, bit(leaf_1.ecx, 17)),               // PCIDE
        (18, bit(leaf_1.ecx, 26)),               // OSXSAVE
        (20, has_leaf_7 && bit(leaf_7.ebx, 7)),  // SMEP
        (21, has_leaf_7 && bit(leaf_7.ebx, 20)), // SMAP
        (22, has_leaf_7 && bit(leaf_7.ecx, 3)),  // PKE
        // CET: KVM only lately lets a guest have it.
        (23, false),
    ];
    let cr4 = optional
        .into_iter()
        .filter(|&(_, has)| !has)
        .fold(StartLimits::MOST.cr4, |cr4, (number, _)| cr4 & !(1 << number));
    let optional = [(EFER_NX, bit(extended.edx, 20)), (EFER_FFXSR, bit(extended.edx, 25))];
    let efer = optional
        .into_iter()
        .filter(|&(_, has)| !has)
        .fold(StartLimits::MOST.efer, |efer, (mask, _)| efer & !mask);
    StartLimits { cr4, efer }
}

/// Gives a vCPU the registers to start with, on its own thread.
///
/// # Errors
/// Where no CPU has such a state: KVM refuses it.
pub fn set_start(vcpu: &VcpuFd, start: &VcpuStart) -> Result<(), Error> {
    let current = vcpu.get_sregs()?;
    vcpu.set_sregs(&system_registers(&current, start))?;
    vcpu.set_regs(&registers(start))
}

fn registers(start: &VcpuStart) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi] = start.registers;
    kvm_regs {
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        rip: start.rip,
        rflags: start.rflags,
        ..kvm_regs::default()
    }
}

/// `current` is what a vCPU has after INIT: what the start state leaves out
/// stays. That includes the local APIC's base.
fn system_registers(current: &kvm_sregs, start: &VcpuStart) -> kvm_sregs {
    // Long mode is active only with paging; Xen's EFER says it before.
    let inactive = if start.cr0 & CR0_PG == 0 { EFER_LMA } else { 0 };
    kvm_sregs {
        cs: segment(&start.cs),
        ds: segment(&start.ds),
        es: segment(&start.es),
        ss: segment(&start.ss),
        tr: segment(&start.tr),
        cr0: start.cr0,
        cr3: start.cr3,
        cr4: start.cr4,
        efer: start.efer & !inactive,
        ..*current
    }
}

fn segment(from: &StartSegment) -> kvm_segment {
    let [low, high] = from.attributes.to_le_bytes();
    kvm_segment {
        base: from.base,
        // KVM counts bytes whatever the granularity.
        limit: from.last_byte(),
        selector: 0,
        type_: low & 15,
        s: low >> 4 & 1,
        dpl: low >> 5 & 3,
        present: low >> 7,
        avl: high & 1,
        l: high >> 1 & 1,
        db: high >> 2 & 1,
        g: high >> 3 & 1,
        unusable: u8::from(from.attributes == 0),
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_some_of_xens() {
        let limits = limits();
        assert_eq!(limits.cr4 & !StartLimits::MOST.cr4, 0);
        assert_eq!(limits.efer & !StartLimits::MOST.efer, 0);
        // Every x86-64 CPU: PAE, OSFXSR; SCE, LME, LMA.
        assert_eq!(limits.cr4 & 0x220, 0x220);
        assert_eq!(limits.efer & 0x501, 0x501);
    }

    #[test]
    fn segments_and_long_mode() {
        let cs = StartSegment { base: 0, limit: u32::MAX, attributes: 0xa9b };
        let start = VcpuStart {
            rip: 5,
            registers: [1, 2, 3, 4, 5, 6, 7, 8],
            cs,
            cr0: CR0_PG | 1,
            efer: 0xd01,
            ..VcpuStart::default()
        };
        let current = kvm_sregs { apic_base: 0xfee0_0900, cr2: 9, ..kvm_sregs::default() };
        let sregs = system_registers(&current, &start);
        assert_eq!((sregs.cs.type_, sregs.cs.s, sregs.cs.present, sregs.cs.dpl), (11, 1, 1, 0));
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.g, sregs.cs.avl), (1, 0, 1, 0));
        assert_eq!((sregs.cs.limit, sregs.cs.unusable), (u32::MAX, 0));
        assert_eq!(sregs.ds.unusable, 1);
        assert_eq!((sregs.efer, sregs.apic_base, sregs.cr2), (0xd01, 0xfee0_0900, 9));
        let unpaged = system_registers(&current, &VcpuStart { cr0: 1, ..start });
        assert_eq!(unpaged.efer, 0x901);
        let regs = registers(&start);
        assert_eq!((regs.rax, regs.rcx, regs.rdx, regs.rbx), (1, 2, 3, 4));
        assert_eq!((regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.rip), (5, 6, 7, 8, 5));
    }
}
