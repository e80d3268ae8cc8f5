//! Hypercalls and operations that are not there: each is told of once.

use std::collections::BTreeSet;
use std::sync::Mutex;

use xen_abi::hypercall::{
    HYPERVISOR_CONSOLE_IO, HYPERVISOR_EVENT_CHANNEL_OP, HYPERVISOR_GRANT_TABLE_OP,
    HYPERVISOR_HVM_OP, HYPERVISOR_MEMORY_OP, HYPERVISOR_PHYSDEV_OP, HYPERVISOR_SCHED_OP,
    HYPERVISOR_VCPU_OP, HYPERVISOR_VM_ASSIST, HYPERVISOR_XEN_VERSION,
};

use super::super::domain::lock;
use super::super::memory_op::sub_op;
use super::low;

/// Refusals that are told apart; a guest that makes up more is not listened to.
const MOST: usize = 256;

/// The hypercalls, and operations of hypercalls, that were answered with
/// `ENOSYS`. The lock is taken by such calls only, and for a look into the set.
#[derive(Debug, Default)]
pub(in crate::xen) struct UnknownCalls(Mutex<BTreeSet<(u64, Option<u64>)>>);

impl UnknownCalls {
    /// Tells of a hypercall that was answered with `ENOSYS`, unless it was told
    /// of before. `first_arg` is what its first register held.
    pub(super) fn tell(&self, number: u64, first_arg: u64) {
        let operation = operation(number, first_arg);
        let told = {
            let mut seen = lock(&self.0);
            if seen.len() >= MOST || !seen.insert((number, operation)) {
                return;
            }
            seen.len()
        };
        match operation {
            Some(operation) => {
                tracing::debug!(number, operation, "hypercall operation answered with ENOSYS")
            }
            None => tracing::debug!(number, "hypercall that HVM guests do not have"),
        }
        if told == MOST {
            tracing::debug!(told, "no more unknown hypercalls are told of");
        }
    }
}

/// What a hypercall's first argument says to do, as its handler takes it; `None`
/// for one that does but one thing.
fn operation(number: u64, first_arg: u64) -> Option<u64> {
    match number {
        HYPERVISOR_MEMORY_OP => Some(sub_op(first_arg)),
        HYPERVISOR_HVM_OP => Some(first_arg),
        HYPERVISOR_EVENT_CHANNEL_OP
        | HYPERVISOR_VCPU_OP
        | HYPERVISOR_SCHED_OP
        | HYPERVISOR_XEN_VERSION
        | HYPERVISOR_GRANT_TABLE_OP
        | HYPERVISOR_PHYSDEV_OP
        | HYPERVISOR_CONSOLE_IO
        | HYPERVISOR_VM_ASSIST => Some(low(first_arg)),
        _ => None,
    }
}
