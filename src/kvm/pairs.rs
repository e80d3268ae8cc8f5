//! KVM's own pairs of UTC and host TSC.

use std::sync::Arc;

use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME};
use kvm_ioctls::VmFd;

use crate::host::{AtomicPair, KvmPairs, PairSource};

/// Pairs of KVM_GET_CLOCK. It gives none while the VM's masterclock is off: the
/// host's clocksource is not the TSC, or no vCPU has run yet.
pub fn kvm_pairs(vm: Arc<VmFd>) -> impl PairSource {
    KvmPairs(move || {
        let read =
            vm.get_clock().map_err(|error| std::io::Error::from_raw_os_error(error.errno()))?;
        let both = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
        Ok((read.flags & both == both)
            .then_some(AtomicPair { utc_ns: read.realtime, host_tsc: read.host_tsc }))
    })
}
