//! The only room that calls KVM: what it offers, the order in which a Xen VM
//! is made so that its clock is never disturbed, how hypercalls arrive and how
//! upcalls leave.

pub mod ioctls;

mod clock;
mod cpuid;
mod guarded;
mod hypercall;
mod kick;
mod offload;
mod page_walk;
mod platform;
mod prime;
mod probe;
mod timers;
mod vm;

pub use clock::{GuestTsc, KvmClock, OffsetError};
pub use cpuid::guest_cpuid;
pub use guarded::{Guarded, GuardedReport};
pub use hypercall::{
    HypercallExit, PortIoStub, VcpuAccess, accept_msr, paging, share_registers, width,
};
pub use kick::VcpuKicker;
pub use page_walk::Paging;
pub use platform::{ConsoleSink, KvmPlatform, PageBacker};
pub use probe::{Capabilities, ClockMode, HypercallMode, KVM_DEVICE, ProbeError};
pub use vm::{HYPERCALL_MSR, XenVm, XenVmConfig, XenVmError, add_memory};
