//! Calls to the hypervisor through its hypercall page
//! (`public/arch-x86/xen-x86_64.h`): number × 32 into the page, arguments in
//! RDI, RSI, RDX, R10, R8 and R9, the answer in RAX.

#![expect(unsafe_code, reason = "calls code that the hypervisor wrote")]

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use xen_abi::cpuid::{
    XEN_CPUID_LEAF_HYPERCALL, XEN_CPUID_SIGNATURE_EBX, XEN_CPUID_SIGNATURE_ECX,
    XEN_CPUID_SIGNATURE_EDX,
};
use xen_abi::hypercall::HYPERCALL_STUB_SIZE;
use zerocopy::{FromBytes, IntoBytes};

use crate::cpu::{cpuid, wrmsr};

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);
// SAFETY: written by the hypervisor alone, before the first call.
unsafe impl Sync for Page {}

static PAGE: Page = Page(UnsafeCell::new([0; 4096]));
static BASE_LEAF: AtomicU32 = AtomicU32::new(0);

/// Looks for Xen in CPUID and lets it fill the hypercall page.
/// Returns the first of its leaves, or `None` on another hypervisor.
pub fn init() -> Option<u32> {
    let base = (0x4000_0000..0x4001_0000_u32).step_by(0x100).find(|&leaf| {
        let [_, ebx, ecx, edx] = cpuid(leaf, 0);
        [ebx, ecx, edx]
            == [XEN_CPUID_SIGNATURE_EBX, XEN_CPUID_SIGNATURE_ECX, XEN_CPUID_SIGNATURE_EDX]
    })?;
    let [pages, msr, ..] = cpuid(base + XEN_CPUID_LEAF_HYPERCALL, 0);
    if pages == 0 {
        return None;
    }
    // SAFETY: the hypervisor writes one page of stubs over this one, which holds
    // nothing else.
    unsafe { wrmsr(msr, PAGE.0.get() as u64) };
    BASE_LEAF.store(base, Ordering::Release);
    Some(base)
}

/// The first of Xen's CPUID leaves, or `None` where [`init`] found none.
#[must_use]
pub fn base_leaf() -> Option<u32> {
    match BASE_LEAF.load(Ordering::Acquire) {
        0 => None,
        leaf => Some(leaf),
    }
}

/// Makes hypercall `number` (0 to 127), and returns what Xen answers: 0 or
/// positive, or an error number negated.
///
/// # Safety
/// [`init`] found Xen, and the arguments ask it to write only to memory that
/// Rust code leaves to it.
#[inline]
pub unsafe fn raw(number: u64, args: [u64; 6]) -> i64 {
    let stub = PAGE.0.get() as u64 + (number & 127) * HYPERCALL_STUB_SIZE as u64;
    let result: i64;
    // SAFETY: the page holds a stub for every number and the stub returns. The
    // CALL may push: without `nostack` the compiler keeps its red zone away.
    unsafe {
        asm!(
            "call {stub}",
            stub = in(reg) stub,
            inout("rdi") args[0] => _,
            inout("rsi") args[1] => _,
            inout("rdx") args[2] => _,
            inout("r10") args[3] => _,
            inout("r8") args[4] => _,
            inout("r9") args[5] => _,
            lateout("rax") result,
            clobber_abi("C"),
        );
    }
    result
}

/// A hypercall of the common form: sub-operation and a structure, which Xen may
/// write back to.
pub fn call<T: FromBytes + IntoBytes>(number: u64, operation: u32, argument: &mut T) -> i64 {
    let address = core::ptr::from_mut(argument) as u64;
    // SAFETY: Xen writes at most the structure, which is borrowed for the call
    // and takes any bytes. Structures that name further memory name pages that
    // this crate gives to Xen for good.
    unsafe { raw(number, [u64::from(operation), address, 0, 0, 0, 0]) }
}

/// A hypercall whose arguments are numbers alone.
pub fn call_plain(number: u64, arguments: [u64; 3]) -> i64 {
    let [a, b, c] = arguments;
    // SAFETY: no argument is an address.
    unsafe { raw(number, [a, b, c, 0, 0, 0]) }
}
