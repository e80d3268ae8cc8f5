//! Watchdogs and a shutdown's code outside of the guest.

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
}

impl Domain {
    pub(in crate::xen) fn snapshot_sched(&self) -> SchedState {
        SchedState {
            watchdogs_ns: lock(&self.watchdogs).0.to_vec(),
            shutdown_code: *lock(&self.shutdown.code),
        }
    }

    pub(in crate::xen) fn restore_sched(&self, from: &SchedState) -> Result<(), RestoreError> {
        let count = from.watchdogs_ns.len() as u64;
        let watchdogs = <[_; WATCHDOGS]>::try_from(from.watchdogs_ns.as_slice());
        let wrong = RestoreError::Value { what: "number of watchdogs", value: count };
        *lock(&self.watchdogs) = Watchdogs(watchdogs.map_err(|_| wrong)?);
        *lock(&self.shutdown.code) = from.shutdown_code;
        Ok(())
    }
}
