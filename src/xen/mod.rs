//! The emulated hypervisor: what a Xen guest sees of Xen.
//!
//! Plain state machines over guest memory. Interrupts, timers and vCPU threads
//! are a [`Platform`], the time is a [`Clock`]; neither is KVM, so everything
//! here runs in a test without a VM. A guest's arguments are hostile: each is
//! read once, checked, and answered with the error number that Xen returns.

mod call;
mod platform;

pub use call::{Call, Hypercall, Outcome, Reply};
pub use platform::{CallbackVia, CallingVcpu, Clock, PageOwner, Platform, VcpuArea};
