//! The registers that a PVH guest's first vCPU is entered with: 32-bit
//! protected mode, flat segments, no paging, EBX = start info (Xen's
//! `docs/misc/pvh.pandoc`, "x86/HVM direct boot ABI").

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

/// MSRs that a PVH guest expects to be set, as (index, value):
/// IA32_MTRR_DEF_TYPE with MTRRs enabled and write-back as the default type,
/// without which Linux up to 6.1 turns its page attribute table off.
pub const PVH_MSRS: &[(u32, u64)] = &[(0x2ff, 1 << 11 | 6)];

/// CR0: protection enabled; ET is fixed to 1.
const CR0: u64 = 1 << 0 | 1 << 4;
/// Segment type: code, execute and read, accessed.
const CODE: u8 = 0xb;
/// Segment type: data, read and write, accessed.
const DATA: u8 = 0x3;
/// Segment type: busy 32-bit TSS.
const TSS: u8 = 0xb;

/// System registers. `current` is what KVM_GET_SREGS gave: the APIC base and
/// the interrupt bitmap are kept.
pub fn pvh_sregs(current: &kvm_sregs) -> kvm_sregs {
    let data = flat(0x10, DATA);
    kvm_sregs {
        cs: flat(0x8, CODE),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: kvm_segment { limit: 0x67, g: 0, db: 0, s: 0, ..flat(0x18, TSS) },
        ldt: kvm_segment { unusable: 1, ..kvm_segment::default() },
        gdt: kvm_dtable::default(),
        idt: kvm_dtable::default(),
        cr0: CR0,
        cr2: 0,
        cr3: 0,
        cr4: 0,
        efer: 0,
        ..*current
    }
}

/// General registers: EIP = `entry`, EBX = `start_info`, EFLAGS with only its
/// fixed bit, the rest 0.
pub fn pvh_regs(entry: u32, start_info: u32) -> kvm_regs {
    kvm_regs { rip: entry.into(), rbx: start_info.into(), rflags: 1 << 1, ..kvm_regs::default() }
}

/// A 32-bit segment of all 4 GiB, privilege level 0.
fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..kvm_segment::default()
    }
}
