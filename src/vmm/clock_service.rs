//! Keeps a running guest's clocks right: its VMClock page and its wallclock.
//!
//! A thread of its own takes a reading of the host when the bound of the line
//! has grown by what is allowed, writes the wallclock when it is off by more
//! than its bound, and is woken when the host's clock is set. The kernel may say so
//! late, so every 4 ms it also looks whether the clock stands where it stood. No vCPU
//! is stopped for any of it: a page is written, and a guest that wants to know gets
//! an interrupt when something else than the line moved on.
//!
//! Locks: `sampler` → `engine` → the domain's. Nobody sleeps holding `engine`.

mod engine;
mod guest;
mod metrics;
mod sample;
#[cfg(test)]
mod tests;
mod wait;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

pub use engine::ClockSettings;
use engine::{Cause, ClockedGuest, Engine, Page};
pub use guest::{Bells, MachineGuest};
pub use sample::{ClockSample, SampleCounts, SampleError};
use sample::{PageAt, Sampler};

use crate::clock::scaling::TscScaling;
use crate::clock::tai::{EstimatorConfig, TaiOffset};
use crate::host::{
    Bracketed, Candidates, HostVmClock, OffsetWatch, PairError, PairSource, PtpPairs, StepWatch,
    SuspendWatch, TimeSource, WithOffset, choose,
};
use crate::kvm::KvmClock;
use crate::pages::{GuestRamHandle, PageError};
use crate::vmclock::{Notice, Seen, TaiFeed, TimeType, VmClock, VmClockConfig};
use crate::xen::Clock as _;

/// Why a guest's clocks can not be kept.
#[derive(Debug, thiserror::Error)]
pub enum ClockServiceError {
    /// The host gives no time at all.
    #[error("no time of this host for its guest: {0}")]
    Host(#[from] PairError),
    /// The guest's TSC is scaled from no frequency that a host has.
    #[error("no frequency of this host's TSC follows from its guest's: {0}")]
    Frequency(#[from] crate::clock::FrequencyError),
    /// A descriptor could not be made.
    #[error("{what}: {error}")]
    Io {
        /// What was wanted.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// Where a guest's VMClock and its generation identifier lie.
#[derive(Clone, Debug)]
pub struct VmClockPlace {
    /// Guest memory.
    pub memory: GuestRamHandle,
    /// The VMClock page.
    pub gpa: GuestAddress,
    /// 16 bytes for the VM generation device.
    pub generation_gpa: GuestAddress,
    /// The generation identifier.
    pub generation_id: [u8; 16],
}

/// The service of one machine. Once started it runs until [`stop`](Self::stop).
pub struct ClockService {
    engine: Mutex<Engine>,
    sampler: Mutex<Sampler>,
    page: Option<PageAt>,
    guest: Box<dyn ClockedGuest>,
    watch: StepWatch,
    stop: EventFd,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Of the host's TSC.
    frequency: crate::clock::TscFrequency,
    guarded: Option<GuardedCounts>,
}

/// What KVM's own clock did: jumps seen, and the largest of them, ns.
type GuardedCounts = Box<dyn Fn() -> (u64, u64, u64) + Send + Sync>;

/// When a page was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedAt {
    /// The host's TSC right after it was.
    pub host_tsc: u64,
    /// The page's counter value: the guest's TSC.
    pub base: u64,
}

/// Brackets for one sample.
const BRACKETS: u32 = 10;

/// How often the host's clock is looked at for a step that the kernel has not told of.
const LOOK_EVERY: Duration = Duration::from_millis(4);

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> ClockServiceError {
    move |error| ClockServiceError::Io { what, error }
}

impl ClockService {
    /// Chooses the best source of this host, or the `wanted` one, takes the first reading, and
    /// publishes the first pages. Nothing runs yet.
    ///
    /// # Errors
    /// Where the host gives no time or what was wanted is not there, or no descriptors.
    pub fn new(
        settings: ClockSettings,
        clock: &Arc<KvmClock>,
        guest: MachineGuest,
        wanted: &TimeSource,
        kvm_pairs: Option<Box<dyn PairSource>>,
        place: Option<VmClockPlace>,
    ) -> Result<Self, ClockServiceError> {
        // Of the host's TSC, which a guest from elsewhere may see scaled.
        let scaling = clock.tsc().scaling();
        let frequency = scaling.host_frequency(clock.line().frequency())?;
        let chosen = choose(Candidates { wanted, frequency, kvm: kvm_pairs, leap_table: true })?;
        for (kind, error) in &chosen.rejected {
            tracing::info!(%kind, %error, "a better source of time is not there");
        }
        let offset = chosen.table_offset.map(|found| found.offset);
        let mut source = chosen.source;
        let known = offset.is_some()
            || source.read().is_ok_and(|reading| reading.sync.tai_offset.is_known());
        tracing::info!(source = %source.kind(), offset_known = known, "the guest's clock follows");
        let bracketed = || -> Box<dyn PairSource> {
            let inner = Bracketed::new(frequency, BRACKETS);
            match offset {
                Some(offset) => Box::new(WithOffset { inner, offset }),
                None => Box::new(inner),
            }
        };
        // What stands in for the source, and what its pages are held against, show the
        // same clock: there would be a step between them otherwise.
        let another = || -> Result<Box<dyn PairSource>, PairError> {
            Ok(match wanted {
                TimeSource::Ptp(path) => Box::new(PtpPairs::open(path, bracketed())?),
                TimeSource::VmClock(path) => Box::new(HostVmClock::open(path)?),
                TimeSource::Auto | TimeSource::Kvm | TimeSource::Clock => bracketed(),
            })
        };
        let (second, truth) = (Some(another()?), another()?);
        let parts = Parts {
            source,
            second,
            truth,
            offset: if known { TaiOffset::Known(0) } else { TaiOffset::Unknown },
            config: EstimatorConfig::linux(frequency),
            scaling,
        };
        Self::from_parts(settings, Box::new(guest), parts, place)
    }

    fn from_parts(
        settings: ClockSettings,
        guest: Box<dyn ClockedGuest>,
        parts: Parts,
        place: Option<VmClockPlace>,
    ) -> Result<Self, ClockServiceError> {
        let feed = TaiFeed::new(parts.config, parts.scaling, settings.limit_ns);
        let page_at =
            place.as_ref().map(|place| PageAt { memory: place.memory.clone(), gpa: place.gpa });
        let page = place.map(|place| new_page(place, TimeType::for_host(parts.offset)));
        let mut engine = Engine::new(settings, feed, page, parts.source, parts.second);
        engine.refresh(guest.as_ref(), Cause::Due);
        let watch = || StepWatch::new().map_err(io_error("a watch over the host's clock"));
        Ok(Self {
            engine: Mutex::new(engine),
            sampler: Mutex::new(Sampler::new(parts.truth, watch()?)),
            page: page_at,
            guest,
            watch: watch()?,
            stop: EventFd::new(libc::EFD_NONBLOCK).map_err(io_error("an eventfd"))?,
            thread: Mutex::new(None),
            frequency: parts.config.nominal,
            guarded: None,
        })
    }

    /// Tells the metrics what KVM's own clock does in guarded mode: rewrites of
    /// pages, jumps, and the largest jump in ns.
    #[must_use]
    pub fn with_guarded(
        mut self,
        counts: impl Fn() -> (u64, u64, u64) + Send + Sync + 'static,
    ) -> Self {
        self.guarded = Some(Box::new(counts));
        self
    }

    /// Starts the thread. Only the first call does.
    ///
    /// # Errors
    /// Where no thread can be made.
    pub fn start(self: &Arc<Self>) -> io::Result<()> {
        let mut thread = self.thread();
        if thread.is_none() {
            let service = Arc::clone(self);
            let run = move || service.run();
            *thread = Some(std::thread::Builder::new().name("clock".to_owned()).spawn(run)?);
        }
        Ok(())
    }

    /// Stops the thread and waits for it.
    pub fn stop(&self) {
        // A full counter is readable too.
        let _ = self.stop.write(1);
        if self.thread().take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the clock thread panicked");
        }
    }

    /// One comparison of the guest's page with the host's CLOCK_TAI, which is read
    /// by itself, not through the source of the page.
    ///
    /// # Errors
    /// [`SampleError`]: no page, or none that gives the time.
    pub fn sample(&self) -> Result<ClockSample, SampleError> {
        let page = self.page.as_ref().ok_or(SampleError::NoPage)?;
        let own_bound = |start, counter| {
            let line = self.engine().published().update.line?;
            (line.base() == start).then(|| line.own_bound_ns(counter))
        };
        self.sampler().sample(page, |host_tsc| self.guest.guest_tsc(host_tsc), own_bound)
    }

    /// When the page that the guest has now was written; `None` without a page, or while
    /// it gives no time.
    pub fn published_at(&self) -> Option<PublishedAt> {
        let engine = self.engine();
        engine.page()?;
        let published = engine.published();
        let base = published.update.line?.base();
        Some(PublishedAt { host_tsc: published.host_tsc, base })
    }

    /// What all samples so far have shown.
    pub fn sample_counts(&self) -> SampleCounts {
        self.sampler().counts
    }

    /// Announces maintenance to the guest, now.
    pub fn set_notice(&self, notice: Notice) {
        let mut engine = self.engine();
        engine.set_notice(notice);
        engine.refresh(self.guest.as_ref(), Cause::Due);
    }

    /// Publishes nothing while `work` is done: no page is half written.
    pub fn while_still<T>(&self, work: impl FnOnce() -> T) -> T {
        let _engine = self.engine();
        work()
    }

    /// Tells the guest that its counter was disrupted, now.
    pub fn disrupt(&self) {
        let mut engine = self.engine();
        engine.disrupt();
        engine.refresh(self.guest.as_ref(), Cause::Due);
    }

    /// Tells the guest, which has `seen` that much of its clock, that it was moved: a
    /// disruption, and `error_ns` more of bound for good. Where it is another copy of
    /// itself now, `id` is its new generation identifier.
    ///
    /// # Errors
    /// [`PageError`] where the identifier's memory is none.
    pub fn go_on(&self, seen: Seen, error_ns: u64, id: Option<[u8; 16]>) -> Result<(), PageError> {
        self.engine().go_on(self.guest.as_ref(), seen, error_ns, id)
    }

    /// Publishes everything again by a new reading, now.
    pub fn refresh(&self) {
        self.engine().refresh(self.guest.as_ref(), Cause::Due);
    }

    /// What the guest has seen of its VMClock, to be saved with it.
    pub fn seen(&self) -> Option<Seen> {
        self.engine().page().map(|page| page.clock.seen())
    }

    fn run(&self) {
        wait::prefer_this_thread();
        let mut suspend = SuspendWatch::new();
        let mut offsets = OffsetWatch::new();
        let mut told = false;
        loop {
            let descriptors: [&dyn AsRawFd; 2] = [&self.stop, &self.watch];
            // The alarm is armed again behind the page. What it told of meanwhile is lost,
            // so the clock is looked at once more before anything is waited for.
            let most = if told { Duration::ZERO } else { self.until_turn().min(LOOK_EVERY) };
            if std::mem::take(&mut told) {
                let _ = self.watch.was_set();
            }
            told = match wait::wait(descriptors, most) {
                Ok([true, _]) => return,
                Ok([_, set]) => set,
                Err(error) => {
                    tracing::error!(%error, "the clock service ends");
                    return;
                }
            };
            let noticed = Instant::now();
            // A sleep moves the clocks against CLOCK_MONOTONIC too.
            if !(offsets.moved() || told) {
                self.engine().turn(self.guest.as_ref());
                continue;
            }
            let cause = match suspend.slept() {
                Some(slept) => {
                    tracing::info!(?slept, "the host slept");
                    Cause::Slept
                }
                None => Cause::Set,
            };
            let mut engine = self.engine();
            if engine.refresh(self.guest.as_ref(), cause) {
                engine.step_took(u64::try_from(noticed.elapsed().as_nanos()).unwrap_or(u64::MAX));
            }
        }
    }

    /// Until something is due.
    fn until_turn(&self) -> Duration {
        let ticks = self.engine().ticks_to_turn(self.guest.host_tsc());
        let ns = u64::try_from(self.frequency.nanos_floor(ticks)).unwrap_or(u64::MAX);
        Duration::from_nanos(ns)
    }

    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sampler(&self) -> MutexGuard<'_, Sampler> {
        self.sampler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn thread(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a service is made of: of this host, or of a simulated one.
struct Parts {
    source: Box<dyn PairSource>,
    second: Option<Box<dyn PairSource>>,
    truth: Box<dyn PairSource>,
    offset: TaiOffset,
    config: EstimatorConfig,
    scaling: TscScaling,
}

fn new_page(place: VmClockPlace, time_type: TimeType) -> Page {
    use vm_memory::GuestAddressSpace as _;
    let config = VmClockConfig {
        gpa: place.gpa,
        time_type,
        smearing: crate::clock::tai::smear::Smear::default(),
        notifies: true,
    };
    let memory = place.memory.memory();
    let written =
        crate::pages::publish_generation_id(&memory, place.generation_gpa, place.generation_id);
    if let Err(error) = written {
        tracing::error!(%error, "the generation identifier is not written");
    }
    // Any numbers do for a new guest.
    let clock = VmClock::new(config, 1, 1);
    Page { clock, memory: place.memory, generation_gpa: place.generation_gpa }
}
