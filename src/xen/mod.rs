//! The emulated hypervisor: what a Xen guest sees of Xen.
//!
//! Plain state machines over guest memory. Interrupts, timers and vCPU threads
//! are a [`Platform`], the time is a [`Clock`]; neither is KVM, so everything
//! here runs in a test without a VM. A guest's arguments are hostile: each is
//! read once, checked, and answered with the error number that Xen returns.

mod atomic;
mod call;
mod console;
mod console_io;
pub mod cpuid;
mod dispatch;
mod domain;
mod domid;
mod event_channel;
mod grant_table;
mod handover;
mod hvm_op;
mod hvm_params;
pub mod hypercall_page;
mod memory_op;
mod memory_refused;
mod multicall;
mod physdev;
mod physmap;
mod platform;
mod privileged;
mod reservation;
mod resume;
mod runstate;
mod sched;
mod shared_info;
mod snapshot;
#[cfg(test)]
mod test_calls;
#[cfg(test)]
mod test_platform;
mod timer;
mod upcall;
mod vcpu;
mod vcpu_op;
mod vcpu_power;
mod vcpu_start;
mod version;
mod vm_assist;
mod xenstore;

pub use call::{Call, Hypercall, Outcome, Reply};
pub use console::Console;
pub use cpuid::CpuidEntry;
pub use domain::{Domain, DomainConfig, DomainError, MAX_VCPUS, MemoryMapEntry};
pub use grant_table::{GrantAccess, GrantError, GrantTable, MappedGrant};
pub use handover::{HandoverAnswer, HandoverError, HandoverPhase, HandoverState};
pub use hvm_params::HvmParams;
pub use hypercall_page::{HypercallStubs, StubKind};
pub use platform::{CallbackVia, CallingVcpu, Clock, PageOwner, Platform, VcpuArea};
pub use resume::{RenewError, Resumed, ShutdownRequest};
pub use runstate::{RunState, Spent};
pub use snapshot::{Bytes, ConfigState, DomainState, RestoreError};
pub use vcpu_start::{StartLimits, StartSegment, VcpuStart};
pub use xenstore::{
    StoreChangeState, StoreNodeState, StorePerm, StoreStateError, StoreTouchedState,
    StoreTransactionState, StoreWatchState, Xenstore, XenstoreState,
};
