//! How a machine's life ends, and how all its threads learn of it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Why the machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest powered off.
    Poweroff,
    /// The guest rebooted; this machine does not start again by itself.
    Reboot,
    /// The guest suspended itself.
    Suspend,
    /// The guest crashed, or hit a triple fault.
    Crash(String),
    /// The machine itself failed.
    Failed(String),
    /// Somebody told the machine to stop.
    Stopped,
    /// The guest was saved, and goes on elsewhere.
    Saved,
    /// It goes on in another process.
    Migrated,
}

impl ExitReason {
    /// The process's exit status for this end.
    pub fn status(&self) -> u8 {
        match self {
            Self::Poweroff | Self::Reboot | Self::Saved | Self::Migrated => 0,
            Self::Crash(_) => 3,
            Self::Suspend | Self::Failed(_) | Self::Stopped => 1,
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poweroff => f.write_str("the guest powered off"),
            Self::Reboot => f.write_str("the guest rebooted"),
            Self::Suspend => f.write_str("the guest suspended itself"),
            Self::Crash(how) => write!(f, "the guest crashed: {how}"),
            Self::Failed(how) => write!(f, "the machine failed: {how}"),
            Self::Stopped => f.write_str("stopped"),
            Self::Saved => f.write_str("the guest was saved"),
            Self::Migrated => f.write_str("the guest runs elsewhere"),
        }
    }
}

/// The first reason wins; everyone else stops for it.
#[derive(Debug, Default)]
pub struct ExitLatch {
    stopping: AtomicBool,
    reason: Mutex<Option<ExitReason>>,
    set: Condvar,
}

impl ExitLatch {
    /// Ends the machine; later reasons are dropped.
    pub fn end(&self, reason: ExitReason) {
        let mut slot = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(reason);
        // Release: a thread that sees the flag may look for the reason.
        // Partner: the Acquire load in `is_ending`.
        self.stopping.store(true, Ordering::Release);
        self.set.notify_all();
    }

    /// Whether the machine is ending.
    pub fn is_ending(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Waits for the end.
    pub fn wait(&self) -> ExitReason {
        let mut slot = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(reason) = &*slot {
                return reason.clone();
            }
            slot = self.set.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_wins() {
        let latch = ExitLatch::default();
        assert!(!latch.is_ending());
        latch.end(ExitReason::Crash("first".to_owned()));
        latch.end(ExitReason::Poweroff);
        assert!(latch.is_ending());
        assert_eq!(latch.wait(), ExitReason::Crash("first".to_owned()));
    }

    #[test]
    fn statuses_are_those_of_the_documentation() {
        assert_eq!(ExitReason::Poweroff.status(), 0);
        assert_eq!(ExitReason::Reboot.status(), 0);
        assert_eq!(ExitReason::Saved.status(), 0);
        assert_eq!(ExitReason::Migrated.status(), 0);
        assert_eq!(ExitReason::Crash(String::new()).status(), 3);
        assert_eq!(ExitReason::Failed(String::new()).status(), 1);
    }
}
