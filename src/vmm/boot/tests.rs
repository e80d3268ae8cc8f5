//! The entry state against the rules of the PVH ABI.

use super::*;
use kvm_bindings::kvm_sregs;

#[test]
fn entry_registers_follow_the_pvh_abi() {
    let regs = pvh_regs(0x100_0000, 0x380_0000);
    assert_eq!((regs.rip, regs.rbx), (0x100_0000, 0x380_0000));
    // VM (17), IF (9) and TF (8) are clear, and so are the other registers.
    assert_eq!((regs.rflags, regs.rsp, regs.rax, regs.rsi), (2, 0, 0, 0));
}

#[test]
fn entry_system_registers_follow_the_pvh_abi() {
    let current = kvm_sregs {
        apic_base: 0xfee0_0900,
        cr3: 5,
        cr4: 5,
        efer: 0x500,
        interrupt_bitmap: [1, 2, 3, 4],
        ..kvm_sregs::default()
    };
    let sregs = pvh_sregs(&current);
    assert_eq!(sregs.cr0 & !(1 << 4), 1, "protected mode, no paging");
    assert_eq!((sregs.cr3, sregs.cr4, sregs.efer), (0, 0, 0));
    assert_eq!(sregs.apic_base, 0xfee0_0900);
    assert_eq!(sregs.interrupt_bitmap, [1, 2, 3, 4]);
    for segment in [sregs.cs, sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs] {
        assert_eq!((segment.base, segment.limit), (0, 0xffff_ffff));
        assert_eq!(
            (segment.db, segment.s, segment.present, segment.dpl, segment.l),
            (1, 1, 1, 0, 0)
        );
    }
    assert_eq!((sregs.cs.type_, sregs.ds.type_), (0xb, 0x3));
    assert_eq!((sregs.tr.type_, sregs.tr.limit, sregs.tr.s, sregs.tr.present), (0xb, 0x67, 0, 1));
}
