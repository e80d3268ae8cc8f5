//! A migration as others see it: how far it is, and how they end it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{MigrateError, Phase, Progress};

/// A migration that others look at.
#[derive(Debug, Default)]
pub struct Migration {
    progress: Mutex<Progress>,
    cancelled: AtomicBool,
    taken_back: AtomicBool,
    /// The guest ended under it.
    ended: AtomicBool,
    /// Its end was told.
    told: AtomicBool,
}

impl Migration {
    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Begins one, unless one is under way or through.
    ///
    /// # Errors
    /// [`MigrateError::Busy`].
    pub fn begin(&self) -> Result<(), MigrateError> {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(progress.phase, Phase::Copying | Phase::Stopped | Phase::Unknown | Phase::Done)
        {
            return Err(MigrateError::Busy);
        }
        *progress = Progress { phase: Phase::Copying, ..Progress::default() };
        self.cancelled.store(false, Ordering::SeqCst);
        self.taken_back.store(false, Ordering::SeqCst);
        self.told.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// It did not begin, or the guest has not moved.
    pub(in crate::vmm) fn failed(&self, error: &MigrateError) {
        self.change(|progress| {
            if matches!(error, MigrateError::Ended) {
                self.ended.store(true, Ordering::SeqCst);
            }
            (progress.phase, progress.error) = (Phase::Failed, Some(error.to_string()));
        });
    }

    /// How far it is, for somebody who asked for it and waits for its end.
    pub fn tell(&self) -> Progress {
        let progress = self.progress();
        if matches!(progress.phase, Phase::Done | Phase::Failed) {
            self.told.store(true, Ordering::SeqCst);
        }
        progress
    }

    /// The guest ended, and its machine has stopped. Whether that ended a migration.
    pub fn guest_ended(&self) -> bool {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        // A vCPU does not end before it is known who has the guest.
        if matches!(progress.phase, Phase::Copying | Phase::Stopped) {
            let error = MigrateError::Ended.to_string();
            (progress.phase, progress.error) = (Phase::Failed, Some(error));
            self.ended.store(true, Ordering::SeqCst);
        }
        self.ended.load(Ordering::SeqCst)
    }

    /// Waits until its end was told to somebody: whoever began it waits for that.
    pub fn wait_told(&self, within: Duration) {
        let began = Instant::now();
        while self.progress().phase != Phase::None
            && !self.told.load(Ordering::SeqCst)
            && began.elapsed() < within
        {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it while memory is copied; later it is too late.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
    }

    /// While it is not known whether the guest runs at the destination: it goes on
    /// here. Whoever says so knows that it does not run there, and never will.
    ///
    /// # Errors
    /// [`MigrateError::Known`] at any other time.
    pub fn take_back(&self) -> Result<(), MigrateError> {
        if self.progress().phase != Phase::Unknown {
            return Err(MigrateError::Known);
        }
        self.taken_back.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// It is not known where the guest is; whether somebody takes it back.
    pub(super) fn is_unknown(&self) -> bool {
        self.change(|progress| progress.phase = Phase::Unknown);
        self.taken_back.load(Ordering::SeqCst)
    }

    pub(super) fn check(&self) -> Result<(), MigrateError> {
        if self.cancelled.load(Ordering::SeqCst) { Err(MigrateError::Cancelled) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_ends_ends_what_is_under_way_and_nothing_else() {
        let migration = Migration::default();
        assert!(!migration.guest_ended());
        assert_eq!(migration.progress().phase, Phase::None);
        for (phase, ends) in [
            (Phase::Copying, true),
            (Phase::Stopped, true),
            (Phase::Unknown, false),
            (Phase::Done, false),
            (Phase::Failed, false),
        ] {
            let migration = Migration::default();
            migration.begin().unwrap();
            migration.change(|progress| progress.phase = phase);
            assert_eq!(migration.guest_ended(), ends, "{phase:?}");
            let after = migration.progress();
            assert_eq!(after.phase, if ends { Phase::Failed } else { phase });
            assert_eq!(after.error.is_some(), ends, "{phase:?}");
        }
        // The migrating thread was faster.
        let migration = Migration::default();
        migration.begin().unwrap();
        migration.failed(&MigrateError::Ended);
        assert!(migration.guest_ended());
    }

    #[test]
    fn the_end_of_the_last_one_is_waited_for_until_it_is_told() {
        let migration = Migration::default();
        let waits = |migration: &Migration| {
            let began = Instant::now();
            migration.wait_told(Duration::from_millis(20));
            began.elapsed() >= Duration::from_millis(20)
        };
        assert!(!waits(&migration), "nobody asked for one");
        for _ in 0..2 {
            migration.begin().unwrap();
            migration.tell();
            assert!(waits(&migration), "it had not ended when that was told");
            migration.cancel();
            assert!(matches!(migration.check(), Err(MigrateError::Cancelled)));
            migration.failed(&MigrateError::Cancelled);
            assert!(waits(&migration));
            migration.tell();
            assert!(!waits(&migration));
            assert!(!migration.guest_ended());
        }
    }
}
