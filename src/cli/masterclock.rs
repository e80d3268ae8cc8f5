//! Counts KVM's masterclock updates by its tracepoint, in a trace instance of
//! our own, so that nobody else's tracing is disturbed.

use std::fs;
use std::io;
use std::path::PathBuf;

const TRACING: &str = "/sys/kernel/tracing";
const EVENT: &str = "events/kvm/kvm_update_master_clock/enable";

/// Counts `kvm:kvm_update_master_clock`, of all VMs of this host, while it lives.
#[derive(Debug)]
pub struct MasterclockCounter {
    instance: PathBuf,
}

impl MasterclockCounter {
    /// Starts counting.
    ///
    /// # Errors
    /// Where tracefs is not mounted, not ours, or KVM has no such tracepoint.
    pub fn start() -> io::Result<Self> {
        let instance =
            PathBuf::from(TRACING).join(format!("instances/kvm-xen-{}", std::process::id()));
        fs::create_dir(&instance)?;
        let counter = Self { instance };
        fs::write(counter.instance.join(EVENT), "1")?;
        Ok(counter)
    }

    /// Updates since the start.
    ///
    /// # Errors
    /// Where the trace can not be read.
    pub fn count(&self) -> io::Result<usize> {
        let trace = fs::read_to_string(self.instance.join("trace"))?;
        Ok(trace.lines().filter(|line| line.contains("kvm_update_master_clock")).count())
    }
}

impl Drop for MasterclockCounter {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.instance) {
            tracing::debug!(%error, "the trace instance stays behind");
        }
    }
}
