//! The service on a host that follows a script, turn by turn.

mod scaled;
mod this_host;

use std::sync::{Arc, Mutex, MutexGuard};

use vm_memory::GuestAddress;
use xen_abi::vmclock::{
    VMCLOCK_LEAP_PRE_POS, VMCLOCK_STATUS_SYNCHRONIZED, VMCLOCK_STATUS_UNKNOWN,
    VMCLOCK_STATUS_UNRELIABLE,
};

use super::engine::{Cause, ClockedGuest, Counts, Engine};
use super::*;
use crate::clock::tai::{HostReading, LeapKind, wallclock};
use crate::clock::{SystemTimeLine, TscFrequency, WallclockEpoch};
use crate::host::SourceKind;
use crate::host::simulated::{Event, SimulatedHost, SleepingTsc};
use crate::kvm::UtcLine;
use crate::pages::{GuestRam, read_vmclock};

const PAGE: GuestAddress = GuestAddress(0x1000);
const KHZ: u64 = 2_500_000;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const OFFSET: u64 = 1_000_000;

/// A host that both the service's source and its guest look at.
#[derive(Clone)]
struct Host(Arc<Mutex<SimulatedHost>>);

impl Host {
    fn new(utc_sec: i64, script: &[(u64, Event)]) -> Self {
        let frequency = TscFrequency::from_khz(KHZ).unwrap();
        Self(Arc::new(Mutex::new(SimulatedHost::new(frequency, utc_sec, script))))
    }

    fn lock(&self) -> MutexGuard<'_, SimulatedHost> {
        self.0.lock().unwrap()
    }
}

impl PairSource for Host {
    fn kind(&self) -> SourceKind {
        SourceKind::Simulated
    }

    fn read(&mut self) -> Result<HostReading, PairError> {
        Ok(self.lock().reading(2, 0))
    }
}

/// A source that fails while it is told to.
struct Failing(Host, Arc<Mutex<bool>>);

impl PairSource for Failing {
    fn kind(&self) -> SourceKind {
        SourceKind::KvmClock
    }

    fn read(&mut self) -> Result<HostReading, PairError> {
        if *self.1.lock().unwrap() { Err(PairError::NoAtomicPair) } else { self.0.read() }
    }
}

struct Guest {
    host: Host,
    line: SystemTimeLine,
    follows: Mutex<Option<UtcLine>>,
    wallclock: Mutex<Option<WallclockEpoch>>,
    notified: Mutex<u64>,
    /// What the hardware makes of the host's TSC; its offset is the next.
    scaling: TscScaling,
    /// Added to the host's TSC, scaled; `None` while it is not known.
    offset: Mutex<Option<u64>>,
}

impl Guest {
    fn new(host: &Host, scaling: TscScaling) -> Self {
        let frequency = TscFrequency::from_khz(KHZ).unwrap();
        let frequency = scaling.guest_frequency(frequency).unwrap();
        Self {
            host: host.clone(),
            scaling,
            line: SystemTimeLine::new(frequency, OFFSET, 0).unwrap(),
            follows: Mutex::new(None),
            wallclock: Mutex::new(None),
            notified: Mutex::new(0),
            offset: Mutex::new(Some(OFFSET)),
        }
    }

    fn now(&self) -> u64 {
        self.guest_tsc(self.host_tsc())
    }

    /// What the guest takes for UTC, less the host's, ns.
    fn wallclock_error_ns(&self) -> i128 {
        let epoch = self.wallclock.lock().unwrap().unwrap();
        let reads = i128::try_from(epoch.utc_ns(self.line.system_time_ns(self.now()))).unwrap();
        reads - self.host.lock().utc().ns_floor()
    }
}

impl ClockedGuest for Guest {
    fn host_tsc(&self) -> u64 {
        self.host.lock().host_tsc()
    }

    fn guest_tsc(&self, host_tsc: u64) -> u64 {
        let offset = self.offset.lock().unwrap().unwrap_or(OFFSET);
        self.scaling.with_offset(offset).guest_tsc(host_tsc)
    }

    fn lose_counter(&self) {
        *self.offset.lock().unwrap() = None;
    }

    fn counter_offset(&self) -> Option<u64> {
        *self.offset.lock().unwrap()
    }

    fn system_line(&self) -> SystemTimeLine {
        self.line
    }

    fn follow(&self, utc: Option<UtcLine>) {
        *self.follows.lock().unwrap() = utc;
    }

    fn wallclock(&self) -> Option<WallclockEpoch> {
        *self.wallclock.lock().unwrap()
    }

    fn rewrite_wallclock(&self) {
        let Some(UtcLine { tai, offset, lead_ticks }) = *self.follows.lock().unwrap() else {
            return;
        };
        let at = self.now().wrapping_add(lead_ticks);
        *self.wallclock.lock().unwrap() = wallclock::epoch_at(&tai, offset, &self.line, at).ok();
    }

    fn notify(&self) {
        *self.notified.lock().unwrap() += 1;
    }

    fn notify_generation(&self) {}
}

struct Bench {
    host: Host,
    guest: Guest,
    engine: Engine,
    memory: GuestRamHandle,
}

impl Bench {
    fn new(script: &[(u64, Event)]) -> Self {
        Self::at(1_800_000_000, script)
    }

    fn at(utc_sec: i64, script: &[(u64, Event)]) -> Self {
        let host = Host::new(utc_sec, script);
        let source = Box::new(host.clone());
        Self::from(host, source, None)
    }

    fn from(host: Host, source: Box<dyn PairSource>, second: Option<Box<dyn PairSource>>) -> Self {
        Self::scaled(host, source, second, TscScaling::unscaled(OFFSET))
    }

    fn scaled(
        host: Host,
        source: Box<dyn PairSource>,
        second: Option<Box<dyn PairSource>>,
        scaling: TscScaling,
    ) -> Self {
        let frequency = TscFrequency::from_khz(KHZ).unwrap();
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let memory = GuestRamHandle::new(memory);
        let place = VmClockPlace {
            memory: memory.clone(),
            gpa: PAGE,
            generation_gpa: GuestAddress(0x2000),
            generation_id: [7; 16],
        };
        let page = new_page(place, TimeType::Tai);
        let feed = TaiFeed::new(
            EstimatorConfig::linux(frequency),
            scaling,
            ClockSettings::default().limit_ns,
        );
        let guest = Guest::new(&host, scaling);
        let mut engine = Engine::new(ClockSettings::default(), feed, Some(page), source, second);
        engine.refresh(&guest, Cause::Due);
        Self { host, guest, engine, memory }
    }

    /// Lets time pass, with every turn when it is due, and `look` before each.
    fn run(&mut self, ns: u64, mut look: impl FnMut(&Self)) {
        let ticks = ns * KHZ / 1_000_000;
        let start = self.host.lock().elapsed_ticks();
        loop {
            let passed = self.host.lock().elapsed_ticks() - start;
            let due = self.engine.ticks_to_turn(self.guest.host_tsc()).max(1);
            if passed + due > ticks {
                self.host.lock().advance(ticks - passed);
                look(self);
                return;
            }
            self.host.lock().advance(due);
            look(self);
            self.engine.turn(&self.guest);
        }
    }

    fn page(&self) -> xen_abi::vmclock::VmclockAbi {
        use vm_memory::GuestAddressSpace as _;
        read_vmclock(&self.memory.memory(), PAGE).unwrap()
    }

    fn line(&self) -> crate::clock::tai::TaiLine {
        self.engine.published().update.line.unwrap()
    }

    /// The page against the host's truth, and its own bound, ns.
    fn error_and_bound_ns(&self) -> (u128, u64) {
        let now = self.guest.now();
        let line = self.line();
        (line.at(now).distance_ns(self.host.lock().tai()), line.own_bound_ns(now))
    }
}

#[test]
fn pages_follow_from_the_bound_and_hold_it() {
    let ppm = 65_536;
    let mut bench = Bench::new(&[
        (2 * SECOND, Event::Frequency(500 * ppm)),
        (3 * SECOND, Event::Frequency(-500 * ppm)),
        (4 * SECOND, Event::Slew { ppb: 500_000, ns: 1_000_000_000 }),
        (6 * SECOND, Event::Frequency(17 * ppm)),
    ]);
    bench.run(10 * SECOND, |bench| {
        let (error, bound) = bench.error_and_bound_ns();
        assert!(error <= u128::from(bound), "{error} {bound}");
        assert!(bound < 102_000, "{bound}");
    });
    let Counts { readings, page_updates, disruptions, .. } = bench.engine.counts();
    // 100 µs of growth at 1 500 to 2 000 ppm: 50 to 66 ms.
    assert!((150..=210).contains(&readings), "{readings}");
    assert_eq!((page_updates, disruptions), (readings, 0));
    assert_eq!(*bench.guest.notified.lock().unwrap(), 0);
    assert_eq!(bench.page().clock_status, VMCLOCK_STATUS_SYNCHRONIZED);
}

#[test]
fn a_step_is_a_disruption_and_a_notification() {
    let century = i64::try_from(3_155_760_000 * SECOND).unwrap();
    for by in [1_000_000_000, -1_000_000_000, century, -century / 2] {
        let mut bench = Bench::new(&[(SECOND, Event::Step(by))]);
        let marker = bench.page().disruption_marker;
        bench.run(SECOND + 1_000, |_| ());
        bench.engine.refresh(&bench.guest, Cause::Set);
        assert_ne!(bench.page().disruption_marker, marker);
        let counts = bench.engine.counts();
        assert_eq!((counts.host_steps, counts.disruptions), (1, 1), "{by}");
        assert_eq!(*bench.guest.notified.lock().unwrap(), 1);
        let (error, bound) = bench.error_and_bound_ns();
        assert!(error <= u128::from(bound), "{by}: {error} {bound}");
    }
}

#[test]
fn a_clock_that_was_set_to_the_same_is_no_disruption() {
    let mut bench = Bench::new(&[]);
    bench.run(SECOND, |_| ());
    assert!(!bench.engine.refresh(&bench.guest, Cause::Set));
    assert_eq!((bench.engine.counts().disruptions, *bench.guest.notified.lock().unwrap()), (0, 0));
}

#[test]
fn lost_sync_is_told_within_a_turn() {
    let mut bench = Bench::new(&[(SECOND, Event::LoseSync), (2 * SECOND, Event::Sync(5_000))]);
    bench.run(SECOND + 70 * MS, |_| ());
    assert_eq!(bench.page().clock_status, VMCLOCK_STATUS_UNKNOWN);
    assert!(bench.page().time_maxerror_nanosec >= 16_000_000_000);
    assert_eq!(*bench.guest.notified.lock().unwrap(), 1);
    bench.run(SECOND, |_| ());
    assert_eq!(bench.page().clock_status, VMCLOCK_STATUS_SYNCHRONIZED);
    assert!(bench.page().time_maxerror_nanosec < 100_000);
    assert_eq!(*bench.guest.notified.lock().unwrap(), 2);
}

#[test]
fn a_leap_second_moves_the_wallclock_and_not_the_line() {
    // 5 s before midnight.
    let mut bench =
        Bench::at(86_400 * 20_000 - 5, &[(SECOND, Event::OrderLeap(LeapKind::Positive))]);
    bench.guest.rewrite_wallclock();
    bench.run(2 * SECOND, |_| ());
    assert_eq!(bench.page().leap_indicator, VMCLOCK_LEAP_PRE_POS);
    assert_eq!(bench.page().tai_offset_sec, -37);
    bench.run(10 * SECOND, |_| ());
    assert_eq!(bench.page().tai_offset_sec, -38);
    assert_eq!(bench.engine.counts().disruptions, 0);
    let (error, bound) = bench.error_and_bound_ns();
    assert!(error <= u128::from(bound));
    assert!(bench.guest.wallclock_error_ns().unsigned_abs() <= 1_010);
}

#[test]
fn an_hour_of_slew_leaves_the_wallclock_within_a_microsecond() {
    let mut bench = Bench::new(&[(0, Event::Slew { ppb: 500_000, ns: 3_700 * SECOND })]);
    bench.guest.rewrite_wallclock();
    let once = bench.guest.wallclock().unwrap();
    // The line has to learn the rate first.
    bench.run(5 * SECOND, |_| ());
    let mut worst = 0;
    bench.run(3_600 * SECOND, |bench| {
        worst = bench.guest.wallclock_error_ns().unsigned_abs().max(worst);
    });
    println!("{worst} ns at the most");
    assert!(worst <= 1_000, "{worst} ns");
    // What a page that was written once says by then.
    let now = bench.guest.line.system_time_ns(bench.guest.now());
    let utc_ns = bench.host.lock().utc().ns_floor();
    let behind_ns = utc_ns - i128::try_from(once.utc_ns(now)).unwrap();
    assert!((1_800_000_000..1_810_000_000).contains(&behind_ns), "{behind_ns}");
}

#[test]
fn a_source_that_fails_is_stood_in_for() {
    let host = Host::new(1_800_000_000, &[]);
    let fails = Arc::new(Mutex::new(true));
    let failing = |host: &Host| Box::new(Failing(host.clone(), Arc::clone(&fails)));
    let first = failing(&host);
    let mut bench = Bench::from(host.clone(), first, Some(Box::new(host.clone())));
    assert_eq!(bench.engine.source(), SourceKind::Simulated);
    assert_eq!(bench.engine.counts().missed_readings, 1);
    *fails.lock().unwrap() = false;
    bench.run(SECOND, |_| ());
    assert_eq!(bench.engine.source(), SourceKind::KvmClock);
    // With nothing else: free running, and then unreliable; never silent.
    let mut bench = Bench::from(host.clone(), failing(&host), None);
    *fails.lock().unwrap() = true;
    bench.run(200 * MS, |_| ());
    assert!(bench.engine.counts().missed_readings > 10, "tried again soon");
    bench.run(SECOND, |_| ());
    assert_eq!(bench.page().clock_status, VMCLOCK_STATUS_UNRELIABLE);
}

#[test]
fn a_step_that_nothing_tells_of_is_unreliable_until_something_does() {
    let far = i64::try_from(SECOND).unwrap();
    let host = Host::new(1_800_000_000, &[(SECOND, Event::Step(far))]);
    let fails = Arc::new(Mutex::new(false));
    let source = Box::new(Failing(host.clone(), Arc::clone(&fails)));
    let mut bench = Bench::from(host, source, None);
    bench.run(SECOND + 1_000, |_| ());
    *fails.lock().unwrap() = true;
    bench.engine.refresh(&bench.guest, Cause::Set);
    assert_eq!(bench.page().clock_status, VMCLOCK_STATUS_UNRELIABLE);
    // The old line does not come back with the next turn.
    bench.run(20 * MS, |_| ());
    assert_eq!(bench.page().clock_status, VMCLOCK_STATUS_UNRELIABLE);
    assert!(bench.engine.published().update.line.is_none());
    *fails.lock().unwrap() = false;
    bench.run(20 * MS, |_| ());
    assert_eq!(bench.page().clock_status, VMCLOCK_STATUS_SYNCHRONIZED);
    assert_eq!((bench.engine.counts().host_steps, bench.engine.counts().disruptions), (1, 1));
    let (error, bound) = bench.error_and_bound_ns();
    assert!(error <= u128::from(bound));
}

#[test]
fn a_host_that_slept_is_a_disruption() {
    let asleep = Event::Suspend { ns: 60 * SECOND, tsc: SleepingTsc::Runs };
    let mut bench = Bench::new(&[(SECOND, asleep)]);
    bench.run(SECOND + 1_000, |_| ());
    // The TSC ran on: the line holds, but whoever measured by it was asleep.
    assert!(bench.engine.refresh(&bench.guest, Cause::Slept));
    assert!(bench.engine.counts().disruptions >= 1);

    let asleep = Event::Suspend { ns: 60 * SECOND, tsc: SleepingTsc::Resets };
    let mut bench = Bench::new(&[(SECOND, asleep)]);
    bench.run(SECOND + 1_000, |_| ());
    bench.engine.refresh(&bench.guest, Cause::Slept);
    // The guest's TSC is not known any more, and the page says so.
    assert_eq!(bench.page().clock_status, VMCLOCK_STATUS_UNRELIABLE);
    assert!(bench.guest.follows.lock().unwrap().is_none());
    bench.run(SECOND, |_| ());
    assert_eq!(bench.page().clock_status, VMCLOCK_STATUS_UNRELIABLE, "nobody has looked");

    // A vCPU read its offset again: KVM let the guest's TSC run on.
    *bench.guest.offset.lock().unwrap() = Some(77 * OFFSET);
    let (marker, notified) =
        (bench.page().disruption_marker, *bench.guest.notified.lock().unwrap());
    bench.run(10 * MS, |_| ());
    assert_eq!(bench.page().clock_status, VMCLOCK_STATUS_SYNCHRONIZED, "at most 5 ms later");
    assert_ne!(bench.page().disruption_marker, marker);
    assert!(*bench.guest.notified.lock().unwrap() > notified);
    assert!(bench.guest.follows.lock().unwrap().is_some());
    bench.run(SECOND, |bench| {
        let (error, bound) = bench.error_and_bound_ns();
        assert!(error <= u128::from(bound), "{error} {bound}");
    });
}

#[test]
fn another_copy_is_told() {
    use vm_memory::{Bytes as _, GuestAddressSpace as _};
    let mut bench = Bench::new(&[]);
    let before = bench.page();
    let id = |bench: &Bench| -> [u8; 16] {
        bench.memory.memory().read_obj(GuestAddress(0x2000)).unwrap()
    };
    let (first, seen) =
        (id(&bench), Seen { disruption_marker: 70, generation: 7, moves_error_ns: 5 });
    bench.engine.go_on(&bench.guest, seen, 10, None).unwrap();
    let moved = bench.page();
    assert_eq!((moved.disruption_marker, moved.vm_generation_counter), (71, 7));
    assert_eq!(moved.time_maxerror_nanosec, before.time_maxerror_nanosec + 15);
    assert_eq!(id(&bench), first, "the same guest, elsewhere");
    bench.engine.go_on(&bench.guest, seen, 0, Some([9; 16])).unwrap();
    let copied = bench.page();
    assert!(copied.disruption_marker > 70);
    assert_eq!(copied.vm_generation_counter, 8);
    assert_eq!(id(&bench), [9; 16], "another copy");
}
