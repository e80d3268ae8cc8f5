//! Watchdogs and a shutdown's code outside of the guest.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::super::domain::lock;
use super::super::snapshot::RestoreError;
use super::{Domain, WATCHDOGS, Watchdogs};

/// What `sched_op` keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedState {
    /// Deadlines of the watchdogs, system time in ns.
    pub watchdogs_ns: Vec<Option<u64>>,
    /// The code of `SCHEDOP_shutdown_code`.
    pub shutdown_code: Option<u32>,
    /// It is down: the reason, and since when.
    #[serde(default)]
    pub down: Option<DownState>,
}

/// A domain that has shut down, or suspended itself. The answer of the call is
/// in its vCPU's registers: 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownState {
    /// `SHUTDOWN_*`.
    pub reason: u32,
    /// System time, ns.
    pub since_ns: u64,
}

impl Domain {
    pub(in crate::xen) fn snapshot_sched(&self) -> SchedState {
        SchedState {
            watchdogs_ns: lock(&self.watchdogs).0.to_vec(),
            shutdown_code: *lock(&self.shutdown.code),
            down: self.shutdown.reason().map(|reason| {
                let since_ns = self.shutdown.since_ns.load(Ordering::SeqCst);
                DownState { reason, since_ns }
            }),
        }
    }

    pub(in crate::xen) fn restore_sched(&self, from: &SchedState) -> Result<(), RestoreError> {
        let count = from.watchdogs_ns.len() as u64;
        let watchdogs = <[_; WATCHDOGS]>::try_from(from.watchdogs_ns.as_slice());
        let wrong = RestoreError::Value { what: "number of watchdogs", value: count };
        *lock(&self.watchdogs) = Watchdogs(watchdogs.map_err(|_| wrong)?);
        *lock(&self.shutdown.code) = from.shutdown_code;
        if let Some(down) = from.down {
            self.shutdown.since_ns.store(down.since_ns, Ordering::SeqCst);
            self.shutdown.down.store(down.reason, Ordering::SeqCst);
        }
        Ok(())
    }
}
