//! What can be asked of a running machine, from any thread: its state, its
//! clocks, to stand still and to go on.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::clock_metrics::ClockMetrics;
use super::exit::ExitReason;
use super::handover::HandoverMode;
use super::machine::wallclock_error;
use super::migrate::migration::Migration;
use super::migrate::send::migrate;
use super::migrate::{MigrateError, MovePlace, Progress};
use super::pause::{Hold, NotStopped};
use super::save::{Savable, SaveError, SaveReport};
use super::suspend::{SuspendError, Suspender};
use super::vcpu::Shared;
use crate::host::host_tsc;
use crate::kvm::{HypercallMode, KvmClock};
use crate::xen::{Clock, RenewError, Resumed};

/// How long vCPUs may take to stop. A vCPU is in user space for less than a
/// millisecond, but its thread may wait for a CPU of the host.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// How long a guest may take to suspend itself: its own time-out for tasks to
/// freeze is 20 s.
const SUSPEND_WITHIN: Duration = Duration::from_secs(30);

/// Gives a machine's clock metrics, as they are now.
pub type ClockReader = Box<dyn Fn() -> ClockMetrics + Send + Sync>;

/// Whether the guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// Its vCPUs run, or may.
    #[default]
    Running,
    /// They stand until somebody resumes the machine.
    Paused,
    /// The guest suspended itself, and stands until somebody resumes it.
    Suspended,
}

/// A machine at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether the guest runs.
    pub state: MachineState,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// vCPUs that are up.
    pub vcpus_online: u32,
    /// Guest memory, bytes.
    pub memory_bytes: u64,
    /// Who writes the clock pages now: `owned` (we) or `guarded` (KVM).
    pub clock_mode: String,
    /// How hypercalls arrive, as `--hypercalls` takes it.
    pub hypercall_mode: String,
    /// The Xen version that the guest sees.
    pub xen_version: String,
    /// Since the machine was made, ns of CLOCK_MONOTONIC.
    pub uptime_ns: u64,
    /// Of this program.
    pub version: String,
}

/// What of a machine does not change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub vcpus: u32,
    pub memory_bytes: u64,
    pub hypercalls: HypercallMode,
    pub xen_version: (u16, u16),
}

/// The handle. Its machine's threads do not wait for it.
pub struct Control {
    shared: Arc<Shared>,
    clock: Arc<KvmClock>,
    facts: Facts,
    begun: Instant,
    clock_reader: OnceLock<ClockReader>,
    /// The hold of [`pause`](Self::pause), beside those of others.
    paused: Mutex<Option<Hold>>,
    suspender: OnceLock<Suspender>,
    /// What saves and moves the machine, once it runs.
    savable: OnceLock<Savable>,
    migration: Arc<Migration>,
}

/// Why the guest was not saved.
#[derive(Debug, thiserror::Error)]
pub enum ControlSaveError {
    /// Its vCPUs do not run yet.
    #[error("cannot save: the machine does not run yet, try again")]
    TooEarly,
    /// It goes on.
    #[error(transparent)]
    Save(#[from] SaveError),
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl Control {
    pub(super) fn new(shared: Arc<Shared>, clock: Arc<KvmClock>, facts: Facts) -> Self {
        let begun = Instant::now();
        let (clock_reader, paused) = (OnceLock::new(), Mutex::default());
        let (suspender, savable, migration) = (OnceLock::new(), OnceLock::new(), Arc::default());
        Self { shared, clock, facts, begun, clock_reader, paused, suspender, savable, migration }
    }

    /// What suspends and resumes the guest. From the first call on a guest that
    /// suspends itself stands still; without one that ends the machine.
    pub fn suspender(&self) -> &Suspender {
        self.suspender.get_or_init(|| Suspender::new(&self.shared))
    }

    /// Has the guest suspend itself, and waits until it did. One that is
    /// suspended stays so.
    ///
    /// # Errors
    /// [`SuspendError`]; after a timeout it may still do it.
    pub fn suspend(&self) -> Result<(), SuspendError> {
        let suspender = self.suspender();
        if suspender.is_suspended() {
            return Ok(());
        }
        suspender.request_suspend()?;
        suspender.wait_suspended(SUSPEND_WITHIN)
    }

    /// Lets the guest go on, paused or suspended. `how` is for one that is
    /// suspended.
    ///
    /// # Errors
    /// [`SuspendError`] where its pages can not be made anew.
    pub fn go_on(&self, how: Resumed) -> Result<(), SuspendError> {
        self.resume();
        match self.suspender().resume(how) {
            // Another one was faster, or there was nothing to do.
            Err(SuspendError::Guest(RenewError::NotSuspended)) => Ok(()),
            result => result,
        }
    }

    /// Saves the guest to `path`, whole or not at all, as it is: paused,
    /// suspended or running. It then goes on being so, or the machine ends.
    ///
    /// # Errors
    /// [`ControlSaveError`]: the guest goes on, and the old file is there.
    pub fn save(
        &self,
        path: &Path,
        handover: HandoverMode,
        go_on: bool,
    ) -> Result<SaveReport, ControlSaveError> {
        let savable = self.savable.get().ok_or(ControlSaveError::TooEarly)?;
        let end = || {
            if !go_on {
                self.shared.end(ExitReason::Saved);
            }
        };
        Ok(savable.save(path, handover, end)?)
    }

    /// Says who knows the clocks best; only the first call counts. Without it
    /// [`clock_metrics`](Self::clock_metrics) tells what the machine itself knows.
    pub fn set_clock_reader(&self, reader: ClockReader) {
        if self.clock_reader.set(reader).is_err() {
            tracing::debug!("the clock's reader is set already");
        }
    }

    /// The machine now.
    pub fn status(&self) -> Status {
        let domain = &self.shared.domain;
        let online = (0..self.facts.vcpus).filter(|&vcpu| domain.is_vcpu_up(vcpu)).count();
        let guarded = self.shared.platform.guarded().is_active();
        let (major, minor) = self.facts.xen_version;
        let suspended = self.suspender.get().is_some_and(Suspender::is_suspended);
        Status {
            state: match (self.shared.pause.is_held(), suspended) {
                (true, _) => MachineState::Paused,
                (false, true) => MachineState::Suspended,
                (false, false) => MachineState::Running,
            },
            vcpus: self.facts.vcpus,
            vcpus_online: u32::try_from(online).unwrap_or(u32::MAX),
            memory_bytes: self.facts.memory_bytes,
            clock_mode: if guarded { "guarded" } else { "owned" }.to_owned(),
            hypercall_mode: self.facts.hypercalls.to_string(),
            xen_version: format!("{major}.{minor}"),
            uptime_ns: u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// The guest's clocks now. Runs on while the machine is paused.
    pub fn clock_metrics(&self) -> ClockMetrics {
        if let Some(reader) = self.clock_reader.get() {
            return reader();
        }
        let host_tsc = host_tsc();
        let guest_tsc = self.clock.tsc().from_host(host_tsc);
        let guarded = self.shared.platform.guarded().report();
        ClockMetrics {
            source: "none".to_owned(),
            clock_status: "unknown".to_owned(),
            host_tsc,
            guest_tsc,
            system_time_ns: self.clock.line().system_time_ns(guest_tsc),
            wallclock_error_ns: wallclock_error(&self.shared.domain, &self.clock)
                .map(|error| i64::try_from(error).unwrap_or(i64::MAX)),
            clock_page_rewrites: self.shared.domain.clock_page_rewrites(),
            kvm_clock_jumps: guarded.jumps,
            largest_kvm_clock_jump_ns: guarded.largest_jump_ns,
            ..ClockMetrics::default()
        }
    }

    /// Stops all vCPUs: when this is back none is in KVM_RUN, and none goes in
    /// while the [`Hold`] lives. For whoever saves or moves the machine.
    ///
    /// # Errors
    /// [`NotStopped`] when one does not come out in time; all run on then.
    pub fn hold(&self, within: Duration) -> Result<Hold, NotStopped> {
        self.shared.pause.hold(within, || self.shared.kick_all())
    }

    /// Stops all vCPUs until [`resume`](Self::resume). Twice is as once.
    ///
    /// # Errors
    /// As for [`hold`](Self::hold).
    pub fn pause(&self) -> Result<(), NotStopped> {
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        if paused.is_none() {
            *paused = Some(self.hold(STOP_WITHIN)?);
        }
        Ok(())
    }

    /// Makes it possible to move the machine; only the first call counts.
    pub fn set_savable(&self, savable: Savable) {
        if self.savable.set(savable).is_err() {
            tracing::debug!("the machine can be moved already");
        }
    }

    /// The last migration that was asked for here.
    pub fn migration(&self) -> &Migration {
        &self.migration
    }

    fn begin_to_migrate(&self) -> Result<(), MigrateError> {
        if self.shared.pause.is_held() {
            return Err(MigrateError::Paused);
        }
        self.migration.begin()
    }

    fn go_on_migrating(
        &self,
        to: &MovePlace,
        handover: HandoverMode,
    ) -> Result<Progress, MigrateError> {
        let Some(savable) = self.savable.get() else {
            self.migration.failed(&MigrateError::Early);
            return Err(MigrateError::Early);
        };
        let end = || self.shared.end(ExitReason::Migrated);
        migrate(savable, to, &self.migration, handover, end)
    }

    /// Moves the guest to `to`, and ends the machine when it runs there.
    ///
    /// # Errors
    /// [`MigrateError`]: it runs here.
    pub fn migrate_and_wait(
        &self,
        to: &MovePlace,
        handover: HandoverMode,
    ) -> Result<Progress, MigrateError> {
        self.begin_to_migrate()?;
        self.go_on_migrating(to, handover)
    }

    /// Begins to move the guest to `to`, and ends the machine when it runs there.
    ///
    /// # Errors
    /// [`MigrateError`], where it does not begin. What comes of it is in
    /// [`migration`](Self::migration).
    pub fn migrate(
        self: &Arc<Self>,
        to: MovePlace,
        handover: HandoverMode,
    ) -> Result<(), MigrateError> {
        self.begin_to_migrate()?;
        let control = Arc::clone(self);
        let work = move || match control.go_on_migrating(&to, handover) {
            // Whoever ran the machine says so.
            Ok(_) | Err(MigrateError::Ended) => {}
            Err(error) => tracing::warn!("{error}"),
        };
        let spawned = thread::Builder::new().name("migrate".to_owned()).spawn(work);
        if let Err(error) = spawned {
            let error = MigrateError::Thread(error);
            self.migration.failed(&error);
            return Err(error);
        }
        Ok(())
    }

    /// Lets the vCPUs go on, unless somebody else holds them. No pause, no effect.
    pub fn resume(&self) {
        drop(self.paused.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
