//! From a hypercall's number to its handler: Xen 4.17's table for HVM guests.

mod unknown;

use xen_abi::errno::Errno;
use xen_abi::hypercall::{
    HYPERVISOR_ARCH_1, HYPERVISOR_ARCH_7, HYPERVISOR_CONSOLE_IO, HYPERVISOR_DM_OP,
    HYPERVISOR_DOMCTL, HYPERVISOR_EVENT_CHANNEL_OP, HYPERVISOR_GRANT_TABLE_OP, HYPERVISOR_HVM_OP,
    HYPERVISOR_HYPFS_OP, HYPERVISOR_MEMORY_OP, HYPERVISOR_MMUEXT_OP, HYPERVISOR_MULTICALL,
    HYPERVISOR_PHYSDEV_OP, HYPERVISOR_PLATFORM_OP, HYPERVISOR_SCHED_OP, HYPERVISOR_SET_TIMER_OP,
    HYPERVISOR_SYSCTL, HYPERVISOR_VCPU_OP, HYPERVISOR_VM_ASSIST, HYPERVISOR_XEN_VERSION,
    HYPERVISOR_XENPMU_OP,
};

use super::{
    Call, CallingVcpu, Domain, Hypercall, Outcome, Reply, console_io, event_channel, grant_table,
    handover, hvm_op, memory_op, multicall, physdev, privileged, sched, timer, vcpu_op, version,
    vm_assist,
};
use crate::pages::Width;

pub(super) use unknown::UnknownCalls;

impl Domain {
    /// Serves a hypercall of `vcpu`, on that vCPU's thread.
    ///
    /// The answer for RAX, or for the waiting that the vCPU asked for, is the
    /// [`Outcome`]. Calls from outside ring 0 get `EPERM`, numbers that HVM
    /// guests do not have `ENOSYS`. Of a 32-bit caller only the low halves of
    /// the registers count.
    pub fn hypercall(&self, vcpu: &mut dyn CallingVcpu, call: &Hypercall) -> Outcome {
        if call.cpl != 0 {
            return Outcome::Return(Errno::EPERM.to_return());
        }
        let mut context = Call::new(self, vcpu, call.width);
        match call.width {
            Width::Bits64 => serve(&mut context, call.number, &call.args),
            Width::Bits32 => serve(&mut context, low(call.number), &call.args.map(low)),
        }
    }
}

/// Carries out one hypercall whose registers have their width.
pub(super) fn serve(call: &mut Call, number: u64, args: &[u64; 6]) -> Outcome {
    let outcome = match number {
        HYPERVISOR_SCHED_OP => sched::op(call, low(args[0]), args[1]),
        HYPERVISOR_MULTICALL => multicall::op(call, args[0], low(args[1])),
        _ => value(call, number, args).map(Outcome::Return),
    };
    let outcome = outcome.unwrap_or_else(|error| {
        if error == Errno::ENOSYS {
            call.domain.unknown_calls.tell(number, args[0]);
        }
        Outcome::Return(error.to_return())
    });
    tracing::trace!(vcpu = call.vcpu, number, ?args, ?outcome, "hypercall");
    outcome
}

/// The hypercalls that only answer. Arguments are cut to the type that Xen's
/// handler gives them; those left whole are `unsigned long` or pointers.
fn value(call: &mut Call, number: u64, &[a, b, c, d, ..]: &[u64; 6]) -> Reply {
    match number {
        HYPERVISOR_EVENT_CHANNEL_OP => event_channel::op(call, low(a), b),
        HYPERVISOR_VCPU_OP => vcpu_op::op(call, low(a), low(b), c),
        HYPERVISOR_SET_TIMER_OP => {
            let deadline = if call.is_64bit() { a } else { low(b) << 32 | low(a) };
            timer::set_timer_op(call, deadline)
        }
        HYPERVISOR_XEN_VERSION => version::op(call, low(a), b),
        HYPERVISOR_HVM_OP => hvm_op::op(call, a, b),
        HYPERVISOR_MEMORY_OP => memory_op::op(call, a, b),
        HYPERVISOR_GRANT_TABLE_OP => grant_table::op(call, low(a), b, low(c)),
        HYPERVISOR_PHYSDEV_OP => physdev::op(call, low(a), b),
        HYPERVISOR_CONSOLE_IO => console_io::op(call, low(a), low(b), c),
        HYPERVISOR_VM_ASSIST => vm_assist::op(call, low(a), low(b)),
        HYPERVISOR_MMUEXT_OP => privileged::mmuext_op(call, a, low(b), low(d)),
        HYPERVISOR_DM_OP => privileged::dm_op(call, a, low(b), c),
        HYPERVISOR_PLATFORM_OP => privileged::platform_op(call, a),
        HYPERVISOR_SYSCTL => privileged::sysctl(call, a),
        HYPERVISOR_DOMCTL => privileged::domctl(call, a),
        HYPERVISOR_ARCH_1 => privileged::paging_domctl_cont(call, a),
        // Nothing in Xen: the handover, which CPUID tells of.
        HYPERVISOR_ARCH_7 => handover::op(call, low(a), b, low(c)),
        HYPERVISOR_HYPFS_OP => Err(Errno::EPERM),
        // PMU virtualization serves guests without a LAPIC.
        HYPERVISOR_XENPMU_OP => Err(Errno::EOPNOTSUPP),
        // Not in the table, or there without anything behind it (xsm_op, argo).
        _ => Err(Errno::ENOSYS),
    }
}

/// The low half: what is left of a register in an `int`, or in 32-bit mode.
fn low(register: u64) -> u64 {
    register & u64::from(u32::MAX)
}

#[cfg(test)]
mod tests;
