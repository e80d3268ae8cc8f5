//! The handover from the guest's side: finding it, its hypercalls, its page. The
//! protocol is in `docs/handover.md`; the page's words are read by `guest_clock`.

#![expect(unsafe_code, reason = "a page that the hypervisor writes")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_clock::handover::WORDS;
use xen_abi::handover::{
    HANDOVER_DONE, HANDOVER_READY, HANDOVER_REGISTER, HANDOVER_UNREGISTER, HANDOVER_VERSION,
    XEN_CPUID_EXT_LEAF_HANDOVER, XEN_CPUID_EXT_OFFSET, XEN_CPUID_EXT_SIGNATURE_EBX,
    XEN_CPUID_EXT_SIGNATURE_ECX, XEN_CPUID_EXT_SIGNATURE_EDX,
};

use crate::cpu::cpuid;
use crate::hypercall;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);
// SAFETY: written by the hypervisor, read by atomic loads only.
unsafe impl Sync for Page {}

static PAGE: Page = Page(UnsafeCell::new([0; 4096]));
static HYPERCALL: AtomicU64 = AtomicU64::new(0);

/// Looks for the handover in CPUID: the VIRQ by which it asks.
#[must_use]
pub fn find() -> Option<u32> {
    let base = hypercall::base_leaf()? + XEN_CPUID_EXT_OFFSET;
    let [most, ebx, ecx, edx] = cpuid(base, 0);
    let signature =
        [XEN_CPUID_EXT_SIGNATURE_EBX, XEN_CPUID_EXT_SIGNATURE_ECX, XEN_CPUID_EXT_SIGNATURE_EDX];
    if [ebx, ecx, edx] != signature || most < base + XEN_CPUID_EXT_LEAF_HANDOVER {
        return None;
    }
    let [version, number, virq, _] = cpuid(base + XEN_CPUID_EXT_LEAF_HANDOVER, 0);
    HYPERCALL.store(u64::from(number), Ordering::Release);
    (version >= HANDOVER_VERSION).then_some(virq)
}

fn call(operation: u32, argument: u64, version: u32) -> i64 {
    let number = HYPERCALL.load(Ordering::Acquire);
    hypercall::call_plain(number, [u64::from(operation), argument, u64::from(version)])
}

/// Registers the page, for good. Returns the answer.
pub fn register() -> i64 {
    call(HANDOVER_REGISTER, PAGE.0.get() as u64 >> 12, HANDOVER_VERSION)
}

/// Gives the page up. Returns the answer.
pub fn unregister() -> i64 {
    call(HANDOVER_UNREGISTER, 0, 0)
}

/// Says that all vCPUs are gathered. Returns the answer; after 0 the caller waits.
#[must_use]
pub fn ready(ticket: u32) -> i64 {
    call(HANDOVER_READY, u64::from(ticket), 0)
}

/// Says that they run again, or declines. Returns the answer.
pub fn done(ticket: u32) -> i64 {
    call(HANDOVER_DONE, u64::from(ticket), 0)
}

/// The words of the page.
#[must_use]
pub fn page() -> &'static [AtomicU32; WORDS] {
    let words = PAGE.0.get().cast::<[AtomicU32; WORDS]>();
    // SAFETY: the page is static, aligned and longer; nobody accesses it but by
    // atomic means, here as in the hypervisor.
    unsafe { &*words }
}
