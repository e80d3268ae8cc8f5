//! How hypercalls arrive: KVM_EXIT_XEN, or port I/O from our own stubs.

#![expect(unsafe_code, reason = "kvm_run holds its exits in a union")]

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vm_memory::GuestAddress;

use crate::pages::Width;
use crate::xen::{CallingVcpu, Hypercall};

const KVM_EXIT_XEN: u32 = 34;
const KVM_EXIT_XEN_HCALL: u32 = 1;
const PAGE_MASK: u64 = 0xfff;
const CR0_PG: u64 = 1 << 31;
const EFER_LMA: u64 = 1 << 10;

/// A vCPU that stands at a hypercall.
pub struct VcpuAccess<'a> {
    id: u32,
    fd: &'a VcpuFd,
    /// The last page translated: arguments lie together, and a translation is
    /// an ioctl. It holds for this one hypercall, during which the vCPU stands.
    last: Option<(u64, u64)>,
}

impl<'a> VcpuAccess<'a> {
    /// vCPU `id` of this file, for one hypercall.
    pub fn new(id: u32, fd: &'a VcpuFd) -> Self {
        Self { id, fd, last: None }
    }
}

impl CallingVcpu for VcpuAccess<'_> {
    fn id(&self) -> u32 {
        self.id
    }

    fn translate(&mut self, linear: u64) -> Option<GuestAddress> {
        let (page, offset) = (linear & !PAGE_MASK, linear & PAGE_MASK);
        if let Some((last, gpa)) = self.last
            && last == page
        {
            return Some(GuestAddress(gpa | offset));
        }
        let found = self.fd.translate_gva(page).ok()?;
        // KVM reports an unmapped address as valid = 0 or as all ones.
        if found.valid == 0 || found.physical_address == u64::MAX {
            return None;
        }
        self.last = Some((page, found.physical_address));
        Some(GuestAddress(found.physical_address | offset))
    }
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
    pub fn read(vcpu: &VcpuFd) -> Result<Hypercall, vmm_sys_util::errno::Error> {
        let regs = vcpu.get_regs()?;
        let sregs = vcpu.get_sregs()?;
        let long_mode = sregs.efer & EFER_LMA != 0 && sregs.cs.l != 0;
        let (width, args) = if long_mode {
            (Width::Bits64, [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9])
        } else {
            (Width::Bits32, [regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp])
        };
        // Without paging there are no rings that Xen would know; ring 0 it is.
        let cpl = if sregs.cr0 & CR0_PG == 0 { 0 } else { sregs.ss.dpl };
        Ok(Hypercall { number: regs.rax & 0xffff_ffff, args, width, cpl })
    }

    /// Sets RAX. The instruction pointer stays: KVM steps over the OUT itself.
    ///
    /// # Errors
    /// Where KVM can not take the registers.
    pub fn set_result(vcpu: &VcpuFd, value: i64) -> Result<(), vmm_sys_util::errno::Error> {
        let mut regs = vcpu.get_regs()?;
        regs.rax = value.cast_unsigned();
        vcpu.set_regs(&regs)
    }
}
