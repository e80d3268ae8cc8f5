//! The emulated hypervisor: what a Xen guest sees of Xen.
//!
//! Plain state machines over guest memory. Interrupts, timers and vCPU threads
//! are a [`Platform`], the time is a [`Clock`]; neither is KVM, so everything
//! here runs in a test without a VM. A guest's arguments are hostile: each is
//! read once, checked, and answered with the error number that Xen returns.

mod atomic;
mod call;
mod domain;
mod event_channel;
mod platform;
mod runstate;
mod sched;
mod shared_info;
#[cfg(test)]
mod test_platform;
mod timer;
mod upcall;
mod vcpu;
mod vcpu_op;

pub use call::{Call, Hypercall, Outcome, Reply};
pub use domain::{Domain, DomainConfig, DomainError, MemoryMapEntry};
pub use platform::{CallbackVia, CallingVcpu, Clock, PageOwner, Platform, VcpuArea};
pub use runstate::RunState;
