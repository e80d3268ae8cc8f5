//! The only room that calls KVM: what it offers, the order in which a Xen VM
//! is made so that its clock is never disturbed, how hypercalls arrive and how
//! upcalls leave.

pub mod ioctls;

mod approach;
mod callback;
mod callback_gsi;
mod clock;
mod cpuid;
mod guarded;
mod hypercall;
mod irqchip_state;
mod kick;
mod offload;
mod page_walk;
mod pairs;
mod platform;
mod prime;
mod probe;
mod release;
mod run_meter;
mod timers;
mod vcpu_start;
mod vcpu_state;
mod vm;

pub use clock::{GuestTsc, KvmClock, OffsetError, UtcLine};
pub use cpuid::guest_cpuid;
pub use guarded::{Guarded, GuardedReport};
pub use hypercall::{
    HypercallExit, PortIoStub, VcpuAccess, accept_msr, intercepted_stub, paging, share_registers,
    width,
};
pub use irqchip_state::IrqchipState;
pub use kick::VcpuKicker;
pub use page_walk::Paging;
pub use pairs::kvm_pairs;
pub use platform::{
    ConsoleSink, EntryError, KvmPlatform, MachineServices, PageBacker, PageReleaser, PlatformState,
};
pub use prime::serve_requests;
pub use probe::{
    CallbackDelivery, Capabilities, ClockMode, HypercallMode, KVM_DEVICE, KvmFeature, ProbeError,
};
pub use release::release_pages;
pub use run_meter::RunMeter;
pub use vcpu_start::set_start;
pub use vcpu_state::{VcpuRegisters, VcpuStateError, check_xsave, saved_msrs};
pub use vm::{HYPERCALL_MSR, RestoredTsc, XenVm, XenVmConfig, XenVmError, add_memory};
