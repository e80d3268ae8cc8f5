//! Each check of `VCPUOP_initialise`: a good state, and the state with one
//! thing wrong.

use zerocopy::IntoBytes;

use super::*;

/// A PVH guest's entry state: flat 32-bit segments, no paging.
pub(in crate::xen) fn good_32bit() -> VcpuHvmX86_32 {
    VcpuHvmX86_32 {
        eax: 1,
        edi: 8,
        eip: 0x10_0000,
        eflags: 0x202,
        cr0: 0x11,
        cs_limit: u32::MAX,
        ds_limit: u32::MAX,
        ss_limit: u32::MAX,
        es_limit: u32::MAX,
        tr_limit: 0x67,
        cs_ar: 0xc9a,
        ds_ar: 0xc92,
        ss_ar: 0xc93,
        es_ar: 0,
        tr_ar: 0x89,
        ..Default::default()
    }
}

fn good_64bit() -> VcpuHvmX86_64 {
    VcpuHvmX86_64 {
        rax: 1,
        rdi: 8,
        rip: 0xffff_8000_0000_0000,
        rflags: u64::MAX,
        cr0: 0x8000_0011,
        cr3: 0x1000,
        cr4: 0x620,
        efer: 0x901,
        ..Default::default()
    }
}

pub(in crate::xen) fn context_32bit(regs: &VcpuHvmX86_32) -> VcpuHvmContext {
    let mut context = VcpuHvmContext { mode: VCPU_HVM_MODE_32B, ..Default::default() };
    context.cpu_regs.copy_from_slice(regs.as_bytes());
    context
}

fn context_64bit(regs: &VcpuHvmX86_64) -> VcpuHvmContext {
    let mut context = VcpuHvmContext { mode: VCPU_HVM_MODE_64B, ..Default::default() };
    context.cpu_regs[..112].copy_from_slice(regs.as_bytes());
    // What lies behind the 64-bit registers is not looked at.
    context.cpu_regs[112..].fill(0xff);
    context
}

fn start(context: &VcpuHvmContext) -> Result<VcpuStart, Errno> {
    VcpuStart::new(context, StartLimits::MOST)
}

#[test]
fn a_32bit_start() {
    let start = start(&context_32bit(&good_32bit())).unwrap();
    assert_eq!(start.registers, [1, 0, 0, 0, 0, 0, 0, 8]);
    assert_eq!((start.rip, start.rflags, start.cr0), (0x10_0000, 0x202, 0x11));
    assert_eq!(start.cs.attributes, 0xc9b, "accessed");
    assert_eq!(start.ds.attributes, 0xc93);
    assert_eq!(start.es.attributes, 0, "a null segment stays one");
    assert_eq!(start.tr.attributes, 0x8b, "busy");
    assert_eq!(start.tr.limit, 0x67);
}

#[test]
fn a_64bit_start() {
    let start = start(&context_64bit(&good_64bit())).unwrap();
    assert_eq!(start.registers, [1, 0, 0, 0, 0, 0, 0, 8]);
    assert_eq!(start.rip, 0xffff_8000_0000_0000);
    assert_eq!(start.rflags, 0x3f_7fd7);
    assert_eq!(start.efer, 0xd01, "long mode is active where it is enabled");
    assert_eq!((start.cs.attributes, start.ss.attributes), (0xa9b, 0xc93));
    assert_eq!((start.tr.attributes, start.tr.limit), (0x8b, 0x67));
}

#[test]
fn mode_and_padding() {
    let good = context_32bit(&good_32bit());
    assert_eq!(start(&VcpuHvmContext { pad: 1, ..good }), Err(Errno::EINVAL));
    for mode in [2, u32::MAX] {
        assert_eq!(start(&VcpuHvmContext { mode, ..good }), Err(Errno::EINVAL), "mode {mode}");
    }
}

#[test]
fn each_bad_32bit_state() {
    type Change = fn(&mut VcpuHvmX86_32);
    let cases: &[(&str, Change)] = &[
        ("pad1", |r| r.pad1 = 1),
        ("pad2[0]", |r| r.pad2[0] = 1),
        ("pad2[1]", |r| r.pad2[1] = 1),
        ("pad2[2]", |r| r.pad2[2] = 1),
        ("bits 12-15 of cs", |r| r.cs_ar |= 0x1000),
        ("bits 12-15 of ds", |r| r.ds_ar |= 0x8000),
        ("null cs", |r| r.cs_ar = 0),
        ("null ss", |r| r.ss_ar = 0),
        ("null tr", |r| r.tr_ar = 0),
        ("system segment as cs", |r| r.cs_ar = 0xc8b),
        ("system segment as ds", |r| r.ds_ar = 0xc83),
        ("system segment as ss", |r| r.ss_ar = 0xc83),
        ("system segment as es", |r| r.es_ar = 0xc83),
        ("data segment as tr", |r| r.tr_ar = 0x93),
        ("code segment as tr", |r| r.tr_ar = 0x9b),
        ("16-bit task as tr", |r| r.tr_ar = 0x81),
        ("interrupt gate as tr", |r| r.tr_ar = 0x8e),
        ("cs not present", |r| r.cs_ar = 0xc1b),
        ("ds not present", |r| r.ds_ar = 0xc13),
        ("ss not present", |r| r.ss_ar = 0xc13),
        ("es not present", |r| r.es_ar = 0xc13),
        ("tr not present", |r| r.tr_ar = 0x0b),
        ("data segment as cs", |r| r.cs_ar = 0xc93),
        ("code segment as ss", |r| r.ss_ar = 0xc9b),
        ("read-only ss", |r| r.ss_ar = 0xc91),
        ("execute-only ds", |r| r.ds_ar = 0xc99),
        ("execute-only es", |r| r.es_ar = 0xc99),
        ("eip behind a limit in bytes", |r| {
            r.cs_ar = 0x49b;
            r.cs_limit = 0xf_ffff;
        }),
        ("eip behind a limit in pages", |r| {
            r.cs_limit = 0xf;
            r.eip = 0x1_0000;
        }),
        ("ss of another ring", |r| r.ss_ar = 0xcf3),
        ("ds above cs", |r| r.ds_ar = 0xcb3),
        ("es above cs", |r| r.es_ar = 0xcf3),
        ("LMA without LME", |r| r.efer = EFER_LMA),
        ("CR4.VMXE", |r| r.cr4 = 1 << 13),
        ("CR4 bit 31", |r| r.cr4 = 1 << 31),
        ("EFER.SVME", |r| r.efer = 1 << 12),
        ("EFER bit 63", |r| r.efer = 1 << 63),
    ];
    for (what, change) in cases {
        let mut regs = good_32bit();
        change(&mut regs);
        assert_eq!(start(&context_32bit(&regs)), Err(Errno::EINVAL), "{what}");
    }
}

#[test]
fn odd_32bit_states_that_xen_takes() {
    type Change = fn(&mut VcpuHvmX86_32);
    let cases: &[(&str, Change)] = &[
        ("null ds", |r| r.ds_ar = 0),
        ("readable code as ds", |r| r.ds_ar = 0xc9b),
        ("read-only ds", |r| r.ds_ar = 0xc91),
        ("busy tr", |r| r.tr_ar = 0x8b),
        ("eip at the limit in bytes", |r| {
            r.cs_ar = 0x49b;
            r.cs_limit = 0x10_0000;
        }),
        ("eip at the limit in pages", |r| {
            r.cs_limit = 0xf;
            r.eip = 0xffff;
        }),
        ("all in ring 3", |r| (r.cs_ar, r.ss_ar, r.ds_ar) = (0xcfb, 0xcf3, 0xcf3)),
        ("LMA and LME", |r| r.efer = EFER_LMA | EFER_LME),
        ("CR0 with paging but no protection", |r| r.cr0 = 1 << 31),
        ("every CR4 bit that there is", |r| r.cr4 = 0x00f7_0fff),
    ];
    for (what, change) in cases {
        let mut regs = good_32bit();
        change(&mut regs);
        assert!(start(&context_32bit(&regs)).is_ok(), "{what}");
    }
}

#[test]
fn each_bad_64bit_state() {
    type Change = fn(&mut VcpuHvmX86_64);
    let cases: &[(&str, Change)] = &[
        ("first address that is not canonical", |r| r.rip = 0x0000_8000_0000_0000),
        ("last address that is not canonical", |r| r.rip = 0xffff_7fff_ffff_ffff),
        ("no paging", |r| r.cr0 = 0x11),
        ("no PAE", |r| r.cr4 = 0x600),
        ("no LME", |r| r.efer = 0x401),
        ("CR4.LA57", |r| r.cr4 |= 1 << 12),
        ("CR4 bit 32", |r| r.cr4 |= 1 << 32),
        ("EFER.SVME", |r| r.efer |= 1 << 12),
    ];
    for (what, change) in cases {
        let mut regs = good_64bit();
        change(&mut regs);
        assert_eq!(start(&context_64bit(&regs)), Err(Errno::EINVAL), "{what}");
    }
    for rip in [0, 0x0000_7fff_ffff_ffff, 0xffff_8000_0000_0000, u64::MAX] {
        let regs = VcpuHvmX86_64 { rip, ..good_64bit() };
        assert!(start(&context_64bit(&regs)).is_ok(), "RIP {rip:#x}");
    }
}

#[test]
fn the_machine_narrows_the_limits() {
    let context = context_64bit(&good_64bit());
    let without_nx = StartLimits { efer: 0x501, ..StartLimits::MOST };
    assert_eq!(VcpuStart::new(&context, without_nx), Err(Errno::EINVAL));
    let without_sse = StartLimits { cr4: 0x20, ..StartLimits::MOST };
    assert_eq!(VcpuStart::new(&context, without_sse), Err(Errno::EINVAL));
}
