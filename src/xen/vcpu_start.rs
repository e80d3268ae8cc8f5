//! The state that `VCPUOP_initialise` starts a vCPU in: `struct
//! vcpu_hvm_context` of `public/hvm/hvm_vcpu.h`, checked as Xen 4.17 checks it.
//!
//! Xen answers `EINVAL` for every refusal. What it does not look at (CR0, CR3,
//! reserved bits of CR3) it leaves to the CPU, and so do we: a state that no CPU
//! enters ends the domain.

use serde::{Deserialize, Serialize};
use xen_abi::errno::Errno;
use xen_abi::hvm_vcpu::{
    VCPU_HVM_MODE_32B, VCPU_HVM_MODE_64B, VcpuHvmContext, VcpuHvmX86_32, VcpuHvmX86_64,
};
use zerocopy::FromBytes;

const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Flags that a guest may set; the others read as 0.
const RFLAGS: u64 = 0x003f_7fd5;
/// The flag that always reads as 1.
const RFLAGS_FIXED: u64 = 1 << 1;

/// Segment attributes: present.
const AR_P: u16 = 1 << 7;
/// Segment attributes: code or data, not a system segment.
const AR_S: u16 = 1 << 4;
/// Segment attributes: limit in pages.
const AR_G: u16 = 1 << 11;
/// Bits of the type: code; readable (of code) or writable (of data).
const TYPE_CODE: u16 = 8;
const TYPE_WRITE: u16 = 2;
/// A busy 32-bit task state segment, which is what a 64-bit one is called too.
const TYPE_TSS_BUSY: u16 = 11;

/// A segment register. Its selector is 0, as Xen leaves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartSegment {
    /// Base address.
    pub base: u64,
    /// Limit as in the descriptor: in pages where the granularity bit is set.
    pub limit: u32,
    /// Descriptor bits 40-47 in bits 0-7, bits 52-55 in bits 8-11; 0 for a
    /// segment that can not be used.
    pub attributes: u16,
}

impl StartSegment {
    /// Bits 0 to 3 of the attributes.
    #[must_use]
    pub const fn type_(&self) -> u16 {
        self.attributes & 15
    }

    /// Whether the attributes have the present bit.
    #[must_use]
    pub const fn is_present(&self) -> bool {
        self.attributes & AR_P != 0
    }

    /// Privilege level, 0 to 3.
    #[must_use]
    pub const fn dpl(&self) -> u16 {
        self.attributes >> 5 & 3
    }

    /// The offset of the last byte.
    #[must_use]
    pub const fn last_byte(&self) -> u32 {
        if self.attributes & AR_G != 0 { self.limit << 12 | 0xfff } else { self.limit }
    }
}

/// The registers that a vCPU starts with, checked. What is not named here is as
/// after INIT: FS, GS, LDT, GDT, IDT, FPU, debug registers, local APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStart {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI.
    pub registers: [u64; 8],
    /// RIP.
    pub rip: u64,
    /// RFLAGS, its fixed bit set.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER as the guest gave it, with LMA wherever LME is.
    pub efer: u64,
    /// Code segment.
    pub cs: StartSegment,
    /// Data segment.
    pub ds: StartSegment,
    /// Stack segment.
    pub ss: StartSegment,
    /// Extra segment.
    pub es: StartSegment,
    /// Task register.
    pub tr: StartSegment,
}

/// The control register bits that a guest's CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartLimits {
    /// Bits that may be set in CR4.
    pub cr4: u64,
    /// Bits that may be set in EFER, LME and LMA among them.
    pub efer: u64,
}

impl StartLimits {
    /// All that Xen 4.17 lets a guest without nested virtualization set, on a
    /// CPU that has it all. CR4 but VMXE, SMXE and LA57; SCE, LME, LMA, NXE and
    /// FFXSR of EFER.
    pub const MOST: Self = Self { cr4: 0x00f7_0fff, efer: 0x4d01 };
}

impl VcpuStart {
    /// Checks what the guest wants.
    ///
    /// # Errors
    /// `EINVAL`, as Xen, for every state that it refuses.
    pub fn new(context: &VcpuHvmContext, limits: StartLimits) -> Result<Self, Errno> {
        if context.pad != 0 {
            return Err(Errno::EINVAL);
        }
        let mut start = match context.mode {
            VCPU_HVM_MODE_32B => {
                let regs = VcpuHvmX86_32::read_from_prefix(&context.cpu_regs);
                Self::from_32bit(&regs.map_err(|_| Errno::EINVAL)?.0)?
            }
            VCPU_HVM_MODE_64B => {
                let regs = VcpuHvmX86_64::read_from_prefix(&context.cpu_regs);
                Self::from_64bit(&regs.map_err(|_| Errno::EINVAL)?.0)?
            }
            _ => return Err(Errno::EINVAL),
        };
        start.rflags = start.rflags & RFLAGS | RFLAGS_FIXED;
        if start.efer & EFER_LME != 0 {
            start.efer |= EFER_LMA;
        }
        let known = start.cr4 & !limits.cr4 == 0 && start.efer & !limits.efer == 0;
        known.then_some(start).ok_or(Errno::EINVAL)
    }

    fn from_32bit(regs: &VcpuHvmX86_32) -> Result<Self, Errno> {
        if regs.pad1 != 0 || regs.pad2 != [0; 3] {
            return Err(Errno::EINVAL);
        }
        let segment =
            |base: u32, limit, attributes| StartSegment { base: base.into(), limit, attributes };
        let cs = check(segment(regs.cs_base, regs.cs_limit, regs.cs_ar), Kind::Code)?;
        let ds = check(segment(regs.ds_base, regs.ds_limit, regs.ds_ar), Kind::Data)?;
        let ss = check(segment(regs.ss_base, regs.ss_limit, regs.ss_ar), Kind::Stack)?;
        let es = check(segment(regs.es_base, regs.es_limit, regs.es_ar), Kind::Data)?;
        let tr = check(segment(regs.tr_base, regs.tr_limit, regs.tr_ar), Kind::Task)?;
        let above = |data: &StartSegment| data.is_present() && data.dpl() > cs.dpl();
        if regs.eip > cs.last_byte()
            || ss.dpl() != cs.dpl()
            || above(&ds)
            || above(&es)
            || regs.efer & EFER_LMA != 0 && regs.efer & EFER_LME == 0
        {
            return Err(Errno::EINVAL);
        }
        let registers =
            [regs.eax, regs.ecx, regs.edx, regs.ebx, regs.esp, regs.ebp, regs.esi, regs.edi];
        Ok(Self {
            registers: registers.map(u64::from),
            rip: regs.eip.into(),
            rflags: regs.eflags.into(),
            cr0: regs.cr0.into(),
            cr3: regs.cr3.into(),
            cr4: regs.cr4.into(),
            efer: regs.efer,
            cs,
            ds,
            ss,
            es,
            tr,
        })
    }

    fn from_64bit(regs: &VcpuHvmX86_64) -> Result<Self, Errno> {
        if !is_canonical(regs.rip)
            || regs.cr0 & CR0_PG == 0
            || regs.cr4 & CR4_PAE == 0
            || regs.efer & EFER_LME == 0
        {
            return Err(Errno::EINVAL);
        }
        let flat = |attributes| StartSegment { base: 0, limit: u32::MAX, attributes };
        Ok(Self {
            registers: [
                regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi,
            ],
            rip: regs.rip,
            rflags: regs.rflags,
            cr0: regs.cr0,
            cr3: regs.cr3,
            cr4: regs.cr4,
            efer: regs.efer,
            cs: flat(0xa9b),
            ds: flat(0xc93),
            ss: flat(0xc93),
            es: flat(0xc93),
            tr: StartSegment { base: 0, limit: 0x67, attributes: 0x8b },
        })
    }
}

/// Bits 63 to 47 are all the same.
fn is_canonical(address: u64) -> bool {
    matches!(address >> 47, 0 | 0x1_ffff)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Stack,
    Data,
    Task,
}

/// A segment as the CPU would have loaded it: accessed (busy, of a task) where
/// it is present.
fn check(segment: StartSegment, kind: Kind) -> Result<StartSegment, Errno> {
    let touched = match (segment.is_present(), kind) {
        (false, _) => 0,
        (true, Kind::Task) => 2,
        (true, _) => 1,
    };
    let segment = StartSegment { attributes: segment.attributes | touched, ..segment };
    let attributes = segment.attributes;
    if attributes == 0 && kind == Kind::Data {
        return Ok(segment);
    }
    let (code, write) = (attributes & TYPE_CODE != 0, attributes & TYPE_WRITE != 0);
    let fits = match kind {
        Kind::Code => code,
        Kind::Stack => !code && write,
        Kind::Data => !code || write,
        Kind::Task => segment.type_() == TYPE_TSS_BUSY,
    };
    let system = attributes & AR_S == 0;
    let good =
        attributes & 0xf000 == 0 && system == (kind == Kind::Task) && segment.is_present() && fits;
    good.then_some(segment).ok_or(Errno::EINVAL)
}

#[cfg(test)]
pub(super) mod tests;
