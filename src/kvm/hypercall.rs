//! How hypercalls arrive: KVM_EXIT_XEN, or port I/O from our own stubs.

#![expect(unsafe_code, reason = "kvm_run holds its exits in a union")]

use std::arch::x86_64::__cpuid;

use kvm_bindings::{KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, kvm_regs, kvm_run, kvm_sregs};
use kvm_ioctls::{SyncReg, VcpuFd};
use vm_memory::GuestAddress;
use vmm_sys_util::errno::Error;

use super::HypercallMode;
use super::page_walk::Paging;
use crate::pages::{GuestRam, Width};
use crate::xen::{CallingVcpu, Hypercall, StubKind};

const KVM_EXIT_XEN: u32 = 34;
const KVM_EXIT_XEN_HCALL: u32 = 1;
const PAGE_OFFSET: u64 = 0xfff;
const CR0_PE: u64 = 1;
const EFER_LMA: u64 = 1 << 10;

/// A vCPU that stands at a hypercall.
pub struct VcpuAccess {
    id: u32,
    paging: Paging,
    /// The last page and where it lies. Arguments lie together, and the vCPU
    /// stands still for this one hypercall, so it holds.
    last: Option<(u64, u64)>,
}

impl VcpuAccess {
    /// vCPU `id`, which translates as `paging` says.
    pub fn new(id: u32, paging: Paging) -> Self {
        Self { id, paging, last: None }
    }
}

impl CallingVcpu for VcpuAccess {
    fn id(&self) -> u32 {
        self.id
    }

    fn translate(&mut self, memory: &GuestRam, linear: u64) -> Option<GuestAddress> {
        let (page, offset) = (linear & !PAGE_OFFSET, linear & PAGE_OFFSET);
        let frame = match self.last {
            Some((last, frame)) if last == page => frame,
            _ => self.paging.translate(memory, page)?.0,
        };
        self.last = Some((page, frame));
        Some(GuestAddress(frame | offset))
    }
}

/// The stub that a KVM with Xen support intercepts: the instruction of this
/// host's kind of virtualization.
pub fn intercepted_stub() -> StubKind {
    // EBX of leaf 0: "Auth"enticAMD, "Hygo"nGenuine.
    match &__cpuid(0).ebx.to_le_bytes() {
        b"Auth" | b"Hygo" => StubKind::Vmmcall,
        _ => StubKind::Vmcall,
    }
}

/// Has KVM put a vCPU's registers into `kvm_run` at each exit, as far as it can
/// (`can` is [`Capabilities::sync_regs`](super::Capabilities)). An ioctl for
/// them takes as long as the rest of a hypercall.
pub fn share_registers(vcpu: &mut VcpuFd, hypercalls: HypercallMode, can: u32) {
    if can & KVM_SYNC_X86_SREGS != 0 {
        vcpu.set_sync_valid_reg(SyncReg::SystemRegister);
    }
    if hypercalls == HypercallMode::PortIo && can & KVM_SYNC_X86_REGS != 0 {
        vcpu.set_sync_valid_reg(SyncReg::Register);
    }
}

fn is_shared(vcpu: &mut VcpuFd, which: u32) -> bool {
    vcpu.get_kvm_run().kvm_valid_regs & u64::from(which) != 0
}

fn system_registers(vcpu: &mut VcpuFd) -> Result<kvm_sregs, Error> {
    if is_shared(vcpu, KVM_SYNC_X86_SREGS) {
        return Ok(vcpu.sync_regs_mut().sregs);
    }
    vcpu.get_sregs()
}

/// How a vCPU translates addresses, after an exit.
///
/// # Errors
/// Where KVM can not give the registers.
pub fn paging(vcpu: &mut VcpuFd) -> Result<Paging, Error> {
    let of = |sregs: &kvm_sregs| Paging {
        cr0: sregs.cr0,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
    };
    // Where they lie: the whole structure is some 300 bytes to copy.
    if is_shared(vcpu, KVM_SYNC_X86_SREGS) {
        return Ok(of(&vcpu.sync_regs_mut().sregs));
    }
    vcpu.get_sregs().map(|sregs| of(&sregs))
}

/// The width that a vCPU runs in, after an exit.
///
/// # Errors
/// Where KVM can not give the registers.
pub fn width(vcpu: &mut VcpuFd) -> Result<Width, Error> {
    system_registers(vcpu).map(|sregs| width_of(&sregs))
}

fn width_of(sregs: &kvm_sregs) -> Width {
    let long_mode = sregs.efer & EFER_LMA != 0 && sregs.cs.l != 0;
    if long_mode { Width::Bits64 } else { Width::Bits32 }
}

/// Lets the MSR write of this exit succeed, after it was marked as failing.
pub fn accept_msr(run: &mut kvm_run) {
    run.__bindgen_anon_1.msr.error = 0;
}

/// KVM_EXIT_XEN in a vCPU's `kvm_run`.
pub struct HypercallExit;

impl HypercallExit {
    /// The exit reason that `kvm-ioctls` reports as unsupported.
    pub const REASON: u32 = KVM_EXIT_XEN;

    /// The hypercall of this exit; `None` if it is none.
    pub fn read(run: &kvm_run) -> Option<Hypercall> {
        if run.exit_reason != KVM_EXIT_XEN {
            return None;
        }
        // SAFETY: KVM filled this member of the union, as exit_reason says.
        let exit = unsafe { run.__bindgen_anon_1.xen };
        if exit.type_ != KVM_EXIT_XEN_HCALL {
            return None;
        }
        // SAFETY: `hcall` is the union's only member, and type_ says it is set.
        let hcall = unsafe { exit.u.hcall };
        Some(Hypercall {
            number: hcall.input,
            args: hcall.params,
            width: if hcall.longmode != 0 { Width::Bits64 } else { Width::Bits32 },
            // Values above 3 do not exist; any that is not 0 is refused.
            cpl: u8::try_from(hcall.cpl).unwrap_or(u8::MAX),
        })
    }

    /// Sets what the guest finds in RAX.
    pub fn set_result(run: &mut kvm_run, value: i64) {
        run.__bindgen_anon_1.xen.u.hcall.result = value.cast_unsigned();
    }
}

/// A hypercall made by the port I/O stub of our hypercall page.
pub struct PortIoStub;

impl PortIoStub {
    /// Reads number and arguments from the vCPU's registers.
    ///
    /// # Errors
    /// Where KVM can not give the registers.
    pub fn read(vcpu: &mut VcpuFd) -> Result<Hypercall, Error> {
        let regs = Self::registers(vcpu)?;
        let sregs = system_registers(vcpu)?;
        let width = width_of(&sregs);
        let args = match width {
            Width::Bits64 => [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9],
            Width::Bits32 => [regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp],
        };
        // In real mode there are no rings; it is 0.
        let cpl = if sregs.cr0 & CR0_PE == 0 { 0 } else { sregs.ss.dpl };
        Ok(Hypercall { number: regs.rax & 0xffff_ffff, args, width, cpl })
    }

    fn registers(vcpu: &mut VcpuFd) -> Result<kvm_regs, Error> {
        if is_shared(vcpu, KVM_SYNC_X86_REGS) {
            return Ok(vcpu.sync_regs_mut().regs);
        }
        vcpu.get_regs()
    }

    /// Sets RAX. The instruction pointer stays: KVM steps over the OUT itself.
    ///
    /// # Errors
    /// Where KVM can not take the registers.
    pub fn set_result(vcpu: &mut VcpuFd, value: i64) -> Result<(), Error> {
        if is_shared(vcpu, KVM_SYNC_X86_REGS) {
            vcpu.sync_regs_mut().regs.rax = value.cast_unsigned();
            vcpu.set_sync_dirty_reg(SyncReg::Register);
            return Ok(());
        }
        let mut regs = vcpu.get_regs()?;
        regs.rax = value.cast_unsigned();
        vcpu.set_regs(&regs)
    }
}
