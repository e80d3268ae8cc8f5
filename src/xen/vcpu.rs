//! What the domain keeps for each vCPU, and its clock pages.

mod snapshot;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use vm_memory::GuestAddress;
use xen_abi::arch_x86::{VCPU_INFO_TIME_OFFSET, XEN_PVCLOCK_TSC_STABLE_BIT};
use xen_abi::errno::Errno;

pub use snapshot::VcpuState;

use super::domain::{Domain, lock, read};
use super::runstate::Runstate;
use super::timer::Timers;
use super::vcpu_start::VcpuStart;
use super::{PageOwner, VcpuArea};
use crate::pages::{self, TimeInfo};

/// VIRQs of one vCPU; `NR_VIRQS` of `xen.h`.
pub(super) const NR_VIRQS: usize = 24;

/// The state of one vCPU.
pub(super) struct Vcpu {
    /// Vector of `HVMOP_set_evtchn_upcall_vector`, 0 for none.
    pub upcall_vector: AtomicU8,
    /// The port of each VIRQ, 0 for none.
    pub virqs: [AtomicU32; NR_VIRQS],
    /// What it waits for, as `sched::Waiting` packs it; 0 when it runs.
    pub waiting: AtomicU64,
    /// Its bit in `Domain::pollers` is set. Its own thread's only.
    pub polling: AtomicBool,
    /// Its runstate is `Blocked` by a wait of its own. Its own thread's only.
    pub blocked: AtomicBool,
    /// An upcall was raised since its last entry.
    pub upcall_raised: AtomicBool,
    /// Work to do before its next entry.
    pub requests: AtomicU32,
    /// It has had its start state: vCPU 0, or any that ran.
    pub initialised: AtomicBool,
    /// `VCPUOP_is_up`. Its thread looks here before it enters.
    pub up: AtomicBool,
    /// The state of `VCPUOP_initialise`, until its thread takes it.
    pub start: Mutex<Option<Box<VcpuStart>>>,
    pub areas: Mutex<ClockAreas>,
    pub runstate: Mutex<Runstate>,
    pub timers: Mutex<Timers>,
}

/// The two structures of a vCPU that hold its clock. Their lock makes whoever
/// publishes the single writer that the version protocol asks for.
#[derive(Debug, Default)]
pub(super) struct ClockAreas {
    /// `vcpu_info`, wherever `Layout` says that it is.
    pub info: ClockArea,
    /// The secondary area, placed by the guest.
    pub time: ClockArea,
}

#[derive(Debug, Default)]
pub(super) struct ClockArea {
    /// Where the time fields are published; `None` until placed.
    pub time_at: Option<u64>,
    /// The machine publishes there, not we.
    pub foreign: bool,
    /// It was published since it was placed.
    pub published: bool,
}

impl Vcpu {
    pub(super) fn new(id: u32, now_ns: u64) -> Self {
        Self {
            upcall_vector: AtomicU8::new(0),
            virqs: Default::default(),
            waiting: AtomicU64::new(0),
            polling: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            upcall_raised: AtomicBool::new(false),
            requests: AtomicU32::new(0),
            initialised: AtomicBool::new(id == 0),
            up: AtomicBool::new(id == 0),
            start: Mutex::new(None),
            areas: Mutex::new(ClockAreas::default()),
            runstate: Mutex::new(Runstate::new(now_ns)),
            timers: Mutex::new(Timers::default()),
        }
    }
}

impl ClockArea {
    fn place(&mut self, owner: PageOwner, time_at: Option<u64>) {
        *self = Self { time_at, foreign: owner == PageOwner::Kvm, published: false };
    }
}

impl Domain {
    /// Tells the machine where `vcpu`'s `vcpu_info` lies now, and fills in its
    /// time. Call it without `layout` held.
    pub(super) fn vcpu_info_placed(&self, vcpu: u32, gpa: u64) -> Result<(), Errno> {
        let Some(state) = self.vcpu(vcpu) else { return Err(Errno::ENOENT) };
        self.info_placed(&mut lock(&state.areas), vcpu, gpa)
    }

    fn info_placed(&self, areas: &mut ClockAreas, vcpu: u32, gpa: u64) -> Result<(), Errno> {
        let at = Some(GuestAddress(gpa));
        let owner = self.platform.area_placed(vcpu, VcpuArea::VcpuInfo, at)?;
        areas.info.place(owner, Some(gpa.wrapping_add(VCPU_INFO_TIME_OFFSET as u64)));
        self.publish_area(&mut areas.info);
        Ok(())
    }

    /// The same for a `vcpu_info` that lies in `shared_info`, if it still does.
    pub(super) fn default_info_placed(&self, vcpu: u32) -> Result<(), Errno> {
        let Some(state) = self.vcpu(vcpu) else { return Ok(()) };
        let mut areas = lock(&state.areas);
        let Some(gpa) = read(&self.layout).at_default(vcpu) else { return Ok(()) };
        self.info_placed(&mut areas, vcpu, gpa)
    }

    /// The `vcpu_info` of `vcpu` in `shared_info` goes away with that page.
    pub(super) fn default_info_leaves(&self, vcpu: u32) {
        let Some(state) = self.vcpu(vcpu) else { return };
        let mut areas = lock(&state.areas);
        if read(&self.layout).at_default(vcpu).is_none() {
            return;
        }
        let owner = self.platform.area_placed(vcpu, VcpuArea::VcpuInfo, None);
        areas.info.place(owner.unwrap_or(PageOwner::Us), None);
    }

    /// No structure of `vcpu` holds a clock any more.
    pub(super) fn forget_areas(&self, vcpu: u32) {
        let Some(state) = self.vcpu(vcpu) else { return };
        let mut areas = lock(&state.areas);
        for area in [VcpuArea::VcpuInfo, VcpuArea::TimeInfo] {
            if let Err(errno) = self.platform.area_placed(vcpu, area, None) {
                tracing::debug!(vcpu, %errno, "the machine holds on to a clock page");
            }
        }
        *areas = ClockAreas::default();
    }

    /// Places or removes `vcpu`'s secondary time area.
    pub(super) fn time_area_placed(&self, vcpu: u32, gpa: Option<u64>) -> Result<(), Errno> {
        let Some(state) = self.vcpu(vcpu) else { return Err(Errno::ENOENT) };
        let mut areas = lock(&state.areas);
        let at = gpa.map(GuestAddress);
        let owner = self.platform.area_placed(vcpu, VcpuArea::TimeInfo, at)?;
        areas.time.place(owner, gpa);
        self.publish_area(&mut areas.time);
        Ok(())
    }

    /// Publishes the clock of `vcpu` again where we own it.
    pub(super) fn publish_clock_pages(&self, vcpu: u32) {
        let Some(state) = self.vcpu(vcpu) else { return };
        let mut areas = lock(&state.areas);
        let ClockAreas { info, time } = &mut *areas;
        self.publish_area(info);
        self.publish_area(time);
    }

    fn publish_area(&self, area: &mut ClockArea) {
        let (Some(gpa), false) = (area.time_at, area.foreign) else { return };
        // Shared with placing: a page that is being copied is not written.
        let _layout = read(&self.layout);
        let line = self.clock.line();
        // The line's own base, not the time now: whoever reads computes the
        // same nanosecond from the same TSC before and after a rewrite.
        let info = TimeInfo {
            tsc_timestamp: line.base_tsc(),
            system_time: line.base_system_time_ns(),
            mul: line.mul(),
            shift: line.shift(),
            flags: XEN_PVCLOCK_TSC_STABLE_BIT,
        };
        match pages::publish_time(&self.memory(), GuestAddress(gpa), &info) {
            Ok(published) => {
                let again = std::mem::replace(&mut area.published, true);
                if again && published.is_rewritten() {
                    self.clock_page_rewrites.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(error) => tracing::debug!(%error, "a clock page can not be written any more"),
        }
    }

    /// Where `vcpu` reads its clock: the time in its `vcpu_info`, whoever
    /// publishes it. `None` before the guest has mapped `shared_info`.
    pub fn time_page_address(&self, vcpu: u32) -> Option<GuestAddress> {
        lock(&self.vcpu(vcpu)?.areas).info.time_at.map(GuestAddress)
    }

    /// Where the secondary time area of `vcpu` lies, if the guest placed one.
    pub fn time_area_address(&self, vcpu: u32) -> Option<GuestAddress> {
        lock(&self.vcpu(vcpu)?.areas).time.time_at.map(GuestAddress)
    }
}
