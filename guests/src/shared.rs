//! The pages that a guest shares with Xen, and the calls that place them.
//!
//! Each is a page of the guest's own image: `shared_info`, and per CPU one page
//! with its `vcpu_info` and its secondary time area. Xen writes to them at any
//! time, so they are read field by field, volatile.

#![expect(unsafe_code, reason = "memory that the hypervisor writes")]

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::AtomicU64;

use xen_abi::arch_x86::{SharedInfo, VcpuInfo, VcpuTimeInfo};
use xen_abi::cpuid::{XEN_CPUID_LEAF_HVM, XEN_HVM_CPUID_VCPU_ID_PRESENT};
use xen_abi::hypercall::{HYPERVISOR_MEMORY_OP, HYPERVISOR_VCPU_OP};
use xen_abi::memory::{AddToPhysmap, XENMAPSPACE_SHARED_INFO, XENMEM_ADD_TO_PHYSMAP};
use xen_abi::vcpu::{
    VCPUOP_REGISTER_VCPU_INFO, VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, VcpuRegisterTimeMemoryArea,
    VcpuRegisterVcpuInfo,
};
use xen_abi::xen::DOMID_SELF;

use crate::cpu::{cpuid, load_fence};
use crate::hypercall;
use crate::smp::MAX_CPUS;

const PAGE_SHIFT: u32 = 12;
/// Where in a CPU's page its `vcpu_info` lies; not 0, so that the offset counts.
const VCPU_INFO_OFFSET: u32 = 0x100;
const TIME_AREA_OFFSET: u32 = 0x800;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);
// SAFETY: written by Xen, read through volatile or atomic accesses only.
unsafe impl Sync for Page {}

static SHARED_INFO: Page = Page(UnsafeCell::new([0; 4096]));
static PER_CPU: [Page; MAX_CPUS] = [const { Page(UnsafeCell::new([0; 4096])) }; MAX_CPUS];

/// Asks Xen to put `shared_info` in place of this guest's page for it.
/// Returns Xen's answer.
pub fn map_shared_info() -> i64 {
    let mut map = AddToPhysmap {
        domid: DOMID_SELF,
        space: XENMAPSPACE_SHARED_INFO,
        gpfn: SHARED_INFO.0.get() as u64 >> PAGE_SHIFT,
        ..Default::default()
    };
    hypercall::call(HYPERVISOR_MEMORY_OP, XENMEM_ADD_TO_PHYSMAP, &mut map)
}

/// Xen's number of the CPU that runs this: from CPUID where Xen says so, else
/// its place in the MADT.
#[must_use]
pub fn vcpu_id(cpu: usize) -> u32 {
    let base = hypercall::base_leaf().unwrap_or(0);
    let [features, id, ..] = cpuid(base + XEN_CPUID_LEAF_HVM, 0);
    if features & XEN_HVM_CPUID_VCPU_ID_PRESENT != 0 {
        id
    } else {
        u32::try_from(cpu).unwrap_or(u32::MAX)
    }
}

/// Xen's number of a CPU by its place in the MADT, for calls about others.
#[must_use]
pub fn vcpu_id_of(cpu: usize) -> u32 {
    u32::try_from(cpu).unwrap_or(u32::MAX)
}

/// Registers the `vcpu_info` of the CPU that runs this. Returns Xen's answer.
pub fn register_vcpu_info(cpu: usize) -> i64 {
    register_vcpu_info_of(cpu, vcpu_id(cpu))
}

/// Registers the page of a CPU as the `vcpu_info` of `vcpu`, which may be
/// another one that is down. Returns Xen's answer.
pub fn register_vcpu_info_of(cpu: usize, vcpu: u32) -> i64 {
    let mut register = VcpuRegisterVcpuInfo {
        mfn: page(cpu) as u64 >> PAGE_SHIFT,
        offset: VCPU_INFO_OFFSET,
        rsvd: 0,
    };
    vcpu_op_on(VCPUOP_REGISTER_VCPU_INFO, vcpu, &mut register)
}

/// Registers the secondary time area of the CPU that runs this. Returns Xen's
/// answer.
pub fn register_time_area(cpu: usize) -> i64 {
    let mut register =
        VcpuRegisterTimeMemoryArea { addr: page(cpu) as u64 + u64::from(TIME_AREA_OFFSET) };
    vcpu_op(VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, cpu, &mut register)
}

/// A `vcpu_op` on the CPU that runs this. Returns Xen's answer.
pub fn vcpu_op<T: zerocopy::FromBytes + zerocopy::IntoBytes>(
    operation: u32,
    cpu: usize,
    argument: &mut T,
) -> i64 {
    vcpu_op_on(operation, vcpu_id(cpu), argument)
}

/// A `vcpu_op` on any vCPU. Returns Xen's answer.
pub fn vcpu_op_on<T: zerocopy::FromBytes + zerocopy::IntoBytes>(
    operation: u32,
    vcpu: u32,
    argument: &mut T,
) -> i64 {
    let address = core::ptr::from_mut(argument) as u64;
    let arguments = [u64::from(operation), u64::from(vcpu), address, 0, 0, 0];
    // SAFETY: Xen writes at most the structure, borrowed for the call, and
    // later the areas it names, which lie in pages that are Xen's to write.
    unsafe { hypercall::raw(HYPERVISOR_VCPU_OP, arguments) }
}

/// The clock in the registered `vcpu_info` of a CPU.
#[must_use]
pub fn time_info(cpu: usize) -> *const VcpuTimeInfo {
    page(cpu)
        .wrapping_add(VCPU_INFO_OFFSET as usize + offset_of!(VcpuInfo, time))
        .cast::<VcpuTimeInfo>()
}

/// The clock in the secondary time area of a CPU.
#[must_use]
pub fn time_area(cpu: usize) -> *const VcpuTimeInfo {
    page(cpu).wrapping_add(TIME_AREA_OFFSET as usize).cast::<VcpuTimeInfo>()
}

/// The registered `vcpu_info` of a CPU.
#[must_use]
pub fn vcpu_info(cpu: usize) -> *mut VcpuInfo {
    page(cpu).wrapping_add(VCPU_INFO_OFFSET as usize).cast::<VcpuInfo>()
}

/// One 64-bit word of `shared_info`, `offset` bytes into it (a multiple of 8
/// below 4096), for atomic access.
#[must_use]
pub fn shared_word(offset: usize) -> &'static AtomicU64 {
    let address = SHARED_INFO.0.get().cast::<u8>().wrapping_add(offset & 0xff8);
    // SAFETY: inside the static page, aligned, and only ever accessed by atomic
    // or volatile means, here as in the hypervisor.
    unsafe { AtomicU64::from_ptr(address.cast::<u64>()) }
}

/// UTC at system time 0, as the shared page gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wallclock {
    /// Counts two for each update.
    pub version: u32,
    /// Seconds since 1970.
    pub seconds: u64,
    /// Below 10^9.
    pub nanoseconds: u32,
}

/// Reads the wallclock under its version protocol.
#[must_use]
pub fn wallclock() -> Wallclock {
    let at = |offset: usize| {
        let address = SHARED_INFO.0.get().cast::<u8>().wrapping_add(offset).cast::<u32>();
        // SAFETY: a field of `shared_info`, inside the static page and aligned.
        unsafe { address.read_volatile() }
    };
    loop {
        let version = at(offset_of!(SharedInfo, wc_version));
        load_fence();
        let low = at(offset_of!(SharedInfo, wc_sec));
        let high = at(offset_of!(SharedInfo, wc_sec_hi));
        let nanoseconds = at(offset_of!(SharedInfo, wc_nsec));
        load_fence();
        if version & 1 == 0 && version == at(offset_of!(SharedInfo, wc_version)) {
            let seconds = u64::from(high) << 32 | u64::from(low);
            return Wallclock { version, seconds, nanoseconds };
        }
        core::hint::spin_loop();
    }
}

fn page(cpu: usize) -> *mut u8 {
    // A CPU beyond the array does not exist; `smp` starts at most as many.
    PER_CPU.get(cpu).map_or(core::ptr::null_mut(), |page| page.0.get().cast())
}
