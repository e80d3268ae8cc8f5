//! A machine for tests: it records what the domain asks of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use xen_abi::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::domain::lock;
use super::{
    Call, CallbackVia, CallingVcpu, Clock, Domain, DomainConfig, PageOwner, Platform, VcpuArea,
};
use crate::clock::{SystemTimeLine, TscFrequency, WallclockEpoch};
use crate::pages::{GuestRam, GuestRamHandle, Width};

/// RAM of a test domain: from address 0, and once more after a hole.
pub(super) const RAM_SIZE: usize = 1 << 20;
/// Where the second piece of RAM is, `HIGH_RAM_SIZE` long.
pub(super) const HIGH_RAM: u64 = 16 << 20;
pub(super) const HIGH_RAM_SIZE: usize = 64 << 10;

/// What the domain asked of the machine.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// `raise_vector`: (vCPU, vector).
    pub vectors: Vec<(u32, u8)>,
    /// `raise_callback`: (vCPU, vector).
    pub callbacks: Vec<(u32, u8)>,
    /// `set_gsi`: (GSI, level).
    pub gsis: Vec<(u32, bool)>,
    pub woken: Vec<u32>,
    pub kicked: Vec<u32>,
    /// The deadline last asked for, by vCPU.
    pub timers: BTreeMap<u32, Option<u64>>,
    pub areas: Vec<(u32, VcpuArea, Option<GuestAddress>)>,
    pub shared_info: Vec<(Option<GuestAddress>, bool)>,
    pub via: Option<CallbackVia>,
    pub backed: Vec<GuestAddress>,
    /// `release_pages`: (first frame, pages).
    pub released: Vec<(u64, u64)>,
    pub nmis: Vec<u32>,
    pub console: Vec<u8>,
}

/// A machine that does nothing but remember.
pub(super) struct FakePlatform {
    pub asked: Mutex<Asked>,
    /// Answers `area_placed` with KVM as the owner.
    pub kvm_owns: AtomicBool,
    /// Refuses all that it may: `area_placed`, `shared_info_placed` and
    /// `callback_via` with `EINVAL`, `leave_two_levels`, `raise_nmi`.
    pub refuses: AtomicBool,
    /// Says that it delivers events by itself.
    pub delivers: AtomicBool,
}

impl FakePlatform {
    fn refusal(&self) -> Result<(), Errno> {
        self.refusal_as(Errno::EINVAL)
    }

    fn refusal_as(&self, errno: Errno) -> Result<(), Errno> {
        if self.refuses.load(Ordering::SeqCst) { Err(errno) } else { Ok(()) }
    }

    /// What was asked since the last call.
    pub fn take(&self) -> Asked {
        std::mem::take(&mut *lock(&self.asked))
    }

    pub fn timer_ns(&self, vcpu: u32) -> Option<u64> {
        lock(&self.asked).timers.get(&vcpu).copied().flatten()
    }
}

impl Platform for FakePlatform {
    fn raise_vector(&self, vcpu: u32, vector: u8) {
        lock(&self.asked).vectors.push((vcpu, vector));
    }

    fn raise_callback(&self, vcpu: u32, vector: u8) {
        lock(&self.asked).callbacks.push((vcpu, vector));
    }

    fn set_gsi(&self, gsi: u32, asserted: bool) {
        lock(&self.asked).gsis.push((gsi, asserted));
    }

    fn wake(&self, vcpu: u32) {
        lock(&self.asked).woken.push(vcpu);
    }

    fn kick(&self, vcpu: u32) {
        lock(&self.asked).kicked.push(vcpu);
    }

    fn set_timer(&self, vcpu: u32, deadline_ns: Option<u64>) {
        lock(&self.asked).timers.insert(vcpu, deadline_ns);
    }

    fn area_placed(
        &self,
        vcpu: u32,
        area: VcpuArea,
        gpa: Option<GuestAddress>,
    ) -> Result<PageOwner, Errno> {
        self.refusal()?;
        lock(&self.asked).areas.push((vcpu, area, gpa));
        let kvm_owns = self.kvm_owns.load(Ordering::SeqCst);
        Ok(if kvm_owns { PageOwner::Kvm } else { PageOwner::Us })
    }

    fn shared_info_placed(&self, gpa: Option<GuestAddress>, long_mode: bool) -> Result<(), Errno> {
        self.refusal()?;
        lock(&self.asked).shared_info.push((gpa, long_mode));
        Ok(())
    }

    fn leave_two_levels(&self) -> Result<(), Errno> {
        self.refusal_as(Errno::EOPNOTSUPP)
    }

    fn callback_via(&self, via: CallbackVia) -> Result<(), Errno> {
        self.refusal()?;
        lock(&self.asked).via = Some(via);
        Ok(())
    }

    /// Accepts the request for the log but adds no RAM.
    fn back_page(&self, gpa: GuestAddress) -> Result<(), Errno> {
        lock(&self.asked).backed.push(gpa);
        Err(Errno::EINVAL)
    }

    fn release_pages(&self, start: GuestAddress, pages: u64) {
        lock(&self.asked).released.push((start.0 >> 12, pages));
    }

    fn delivers_events(&self) -> bool {
        self.delivers.load(Ordering::SeqCst)
    }

    fn raise_nmi(&self, vcpu: u32) -> Result<(), Errno> {
        self.refusal_as(Errno::ENOSYS)?;
        lock(&self.asked).nmis.push(vcpu);
        Ok(())
    }

    fn console_output(&self, bytes: &[u8]) {
        lock(&self.asked).console.extend_from_slice(bytes);
    }
}

/// A clock that goes as the test sets it. A TSC of 1 GHz: 1 tick is 1 ns.
pub(super) struct FakeClock {
    tsc: AtomicU64,
    line: SystemTimeLine,
    pub epoch: Mutex<WallclockEpoch>,
}

impl FakeClock {
    fn new() -> Self {
        let frequency = TscFrequency::from_hz(1_000_000_000).expect("1 GHz");
        Self {
            tsc: AtomicU64::new(0),
            line: SystemTimeLine::new(frequency, 0, 0).expect("a line at 1 GHz"),
            epoch: Mutex::new(WallclockEpoch { sec: 1_700_000_000, nsec: 5 }),
        }
    }

    /// Sets the guest TSC to where system time is `now_ns`.
    pub fn set_ns(&self, now_ns: u64) {
        self.tsc.store(now_ns, Ordering::SeqCst);
    }
}

impl Clock for FakeClock {
    fn guest_tsc(&self) -> u64 {
        self.tsc.load(Ordering::SeqCst)
    }

    fn line(&self) -> SystemTimeLine {
        self.line
    }

    fn wallclock_epoch(&self) -> WallclockEpoch {
        *lock(&self.epoch)
    }
}

/// A vCPU whose linear addresses are physical ones, but for holes.
#[derive(Debug, Default)]
pub(super) struct FakeVcpu {
    pub id: u32,
    /// Pages (addresses >> 12) that are not mapped.
    pub holes: Vec<u64>,
    /// Pages mapped elsewhere: from, to.
    pub moved: Vec<(u64, u64)>,
}

impl FakeVcpu {
    pub fn new(id: u32) -> Self {
        Self { id, ..Self::default() }
    }
}

impl CallingVcpu for FakeVcpu {
    fn id(&self) -> u32 {
        self.id
    }

    fn translate(&mut self, _memory: &GuestRam, linear: u64) -> Option<GuestAddress> {
        let page = linear >> 12;
        if self.holes.contains(&page) {
            return None;
        }
        let to = self.moved.iter().find(|(from, _)| *from == page).map_or(page, |(_, to)| *to);
        Some(GuestAddress(to << 12 | linear & 0xfff))
    }
}

/// The configuration of a test domain.
pub(super) fn config(vcpus: u32) -> DomainConfig {
    DomainConfig {
        vcpus,
        domain_id: 7,
        uuid: *b"0123456789abcdef",
        xen_version: (4, 17),
        memory_map: Vec::new(),
        fifo_events: true,
        upcall_vector: true,
        host_tsc_khz: 1_000_000,
        console_page: None,
        store_page: None,
        incarnation: 1,
    }
}

/// A domain on a fake machine, its system time at 0.
pub(super) fn domain(vcpus: u32) -> (Arc<Domain>, Arc<FakePlatform>, Arc<FakeClock>) {
    domain_with(config(vcpus))
}

/// The same, configured otherwise.
pub(super) fn domain_with(
    config: DomainConfig,
) -> (Arc<Domain>, Arc<FakePlatform>, Arc<FakeClock>) {
    let ranges = [(GuestAddress(0), RAM_SIZE), (GuestAddress(HIGH_RAM), HIGH_RAM_SIZE)];
    domain_over(config, GuestRam::from_ranges(&ranges).expect("RAM for a test"))
}

/// The same over memory of the test's own.
pub(super) fn domain_over(
    config: DomainConfig,
    ram: GuestRam,
) -> (Arc<Domain>, Arc<FakePlatform>, Arc<FakeClock>) {
    let platform = Arc::new(FakePlatform {
        asked: Mutex::new(Asked::default()),
        kvm_owns: AtomicBool::new(false),
        refuses: AtomicBool::new(false),
        delivers: AtomicBool::new(false),
    });
    let clock = Arc::new(FakeClock::new());
    let memory = GuestRamHandle::new(ram);
    let domain = Domain::new(config, memory, clock.clone(), platform.clone()).expect("a domain");
    (Arc::new(domain), platform, clock)
}

/// Calls with vCPU `id` in the 64-bit layout, every page mapped.
pub(super) fn with_call<T>(domain: &Domain, id: u32, work: impl FnOnce(&mut Call<'_>) -> T) -> T {
    with_width(domain, id, Width::Bits64, work)
}

/// Calls with vCPU `id` in `width`.
pub(super) fn with_width<T>(
    domain: &Domain,
    id: u32,
    width: Width,
    work: impl FnOnce(&mut Call<'_>) -> T,
) -> T {
    let mut vcpu = FakeVcpu::new(id);
    work(&mut Call::new(domain, &mut vcpu, width))
}

/// Runs `here` and `there` against each other, `rounds` times, and after each
/// round `check` while both are at rest. Both start together but for up to
/// `spread` spins, which differ from round to round.
pub(super) fn race(
    rounds: u32,
    spread: u32,
    mut here: impl FnMut(),
    there: impl Fn() + Sync,
    mut check: impl FnMut(u32),
) {
    /// Lets the other thread run out when an assertion failed on this one.
    struct Release<'a>(&'a AtomicU32);
    impl Drop for Release<'_> {
        fn drop(&mut self) {
            self.0.store(u32::MAX, Ordering::SeqCst);
        }
    }
    let started = AtomicU32::new(0);
    let finished = AtomicU32::new(0);
    let wait_for = |counter: &AtomicU32, round: u32| {
        let mut spins = 0u32;
        while counter.load(Ordering::SeqCst) < round {
            spins += 1;
            // The other thread may need this very CPU.
            if spins.is_multiple_of(2000) {
                std::thread::yield_now();
            }
        }
    };
    let delay = |spins: u32| (0..spins).for_each(|_| std::hint::spin_loop());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=rounds {
                wait_for(&started, round);
                delay(round.wrapping_mul(7919) % spread);
                there();
                finished.store(round, Ordering::SeqCst);
            }
        });
        let _release = Release(&started);
        for round in 1..=rounds {
            started.store(round, Ordering::SeqCst);
            delay(round.wrapping_mul(104_729) % spread);
            here();
            wait_for(&finished, round);
            check(round);
        }
    });
}

/// Puts a structure into guest memory.
pub(super) fn put<T: IntoBytes + Immutable + ?Sized>(domain: &Domain, gpa: u64, value: &T) {
    let written = domain.memory().write_slice(value.as_bytes(), GuestAddress(gpa));
    written.expect("test RAM");
}

/// Reads a structure from guest memory.
pub(super) fn get<T: FromBytes + IntoBytes>(domain: &Domain, gpa: u64) -> T {
    let mut value = T::new_zeroed();
    let read = domain.memory().read_slice(value.as_mut_bytes(), GuestAddress(gpa));
    read.expect("test RAM");
    value
}

/// Whether the page at `gpa` is marked dirty.
pub(super) fn is_dirty(domain: &Domain, gpa: u64) -> bool {
    use vm_memory::GuestMemoryRegion;
    use vm_memory::bitmap::Bitmap;
    let memory = domain.memory();
    let (region, offset) = memory.to_region_addr(GuestAddress(gpa)).expect("test RAM");
    let offset = usize::try_from(offset.0).expect("offset");
    region.bitmap().dirty_at(offset)
}
