//! Timers outside of the guest. Deadlines are system time, so they hold
//! wherever the guest goes on.

use serde::{Deserialize, Serialize};

use super::Timers;

/// The timers of a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimersState {
    /// The singleshot timer's deadline, system time in ns.
    pub singleshot_ns: Option<u64>,
    /// The periodic timer's period in ns, 0 when stopped.
    pub period_ns: u64,
    /// Its last tick: its phase.
    pub last_tick_ns: u64,
}

impl Timers {
    pub(in crate::xen) fn snapshot(&self) -> TimersState {
        let Self { singleshot_ns, period_ns, last_tick_ns } = *self;
        TimersState { singleshot_ns, period_ns, last_tick_ns }
    }

    pub(in crate::xen) fn restore(state: &TimersState) -> Self {
        let TimersState { singleshot_ns, period_ns, last_tick_ns } = *state;
        Self { singleshot_ns, period_ns, last_tick_ns }
    }
}
