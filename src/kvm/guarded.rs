//! Guarded mode: KVM owns the clock pages, because only KVM can inject the
//! VM-wide callback vector, and does so only for a vCPU whose VCPU_INFO it
//! knows. Here its pages are registered, watched, and held against the line.
//!
//! What else KVM serves then is handed over in `offload.rs`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO,
    KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, kvm_xen_hvm_attr, kvm_xen_hvm_attr__bindgen_ty_1,
    kvm_xen_vcpu_attr, kvm_xen_vcpu_attr__bindgen_ty_1,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Address, GuestAddress};
use xen_abi::errno::Errno;

use super::ioctls::{attribute_type, xen_hvm_set_attr, xen_vcpu_set_attr};
use super::{ClockMode, KvmClock, approach};
use crate::clock::SystemTimeLine;
use crate::pages::{GuestRam, TimeInfo, read_time};
use crate::xen::{Clock, PageOwner, VcpuArea};

/// A GPA that takes a registration back (`KVM_XEN_INVALID_GPA`).
const NOWHERE: u64 = u64::MAX;
/// `time` in `struct vcpu_info`, the same in both layouts.
const TIME_IN_VCPU_INFO: u64 = 32;
/// A page further than this from the line is brought back, where KVM says how far its
/// clock stands from it: one ns is a rounding.
const EXACT_NS: u64 = approach::EXACT_NS.unsigned_abs();
/// What was left of a disturbance may grow to this before it counts as another.
const CORRECT_BEYOND_NS: u64 = 1_000;
/// Where KVM does not say, its masterclock being off, each vCPU's page is another line
/// that drifts with the host's clock. A page so far behind is brought on, to within a
/// bracket of CLOCK_REALTIME. One that is ahead stays: a guest would see time go back.
const INEXACT_NS: u64 = 20_000;
/// How often that is tried for one disturbance.
const MOST_TRIES: u32 = 8;

/// What KVM's clock pages have been doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuardedReport {
    /// Whether KVM owns the pages.
    pub active: bool,
    /// How often KVM changed a page's content after its first.
    pub rewrites: u64,
    /// The furthest that any page stood from the line, in nanoseconds.
    pub max_deviation_ns: u64,
    /// How far the pages stand from the line now, in nanoseconds.
    pub deviation_ns: u64,
    /// How often KVM's clock moved by a ns or more against the line, by its pages.
    pub jumps: u64,
    /// The largest of those moves, in nanoseconds.
    pub largest_jump_ns: u64,
    /// How often KVM's clock was set back onto the line.
    pub corrections: u64,
}

/// The work of bringing KVM's clock back, over several tries.
#[derive(Clone, Copy, Debug, Default)]
struct Correction {
    tries: u32,
    /// What is to be aimed at, ahead of the line, to hit it.
    ahead_ns: i64,
    /// KVM's masterclock is off for no reason any more: its clock is to be set.
    revive: bool,
    /// How often that was tried in vain.
    revived: u32,
    /// How far from the line the last disturbance was left, after all tries.
    left_ns: u64,
    /// The snapshot that was corrected: every vCPU's page shows it once.
    corrected: Option<(u64, u64)>,
}

#[derive(Debug, Default)]
struct VcpuPages {
    info: Option<GuestAddress>,
    time: Option<GuestAddress>,
    /// Registrations that wait for this vCPU's own thread: another thread would
    /// block on KVM's vCPU mutex for as long as the guest runs.
    pending: Vec<VcpuArea>,
    seen: Option<TimeInfo>,
}

#[derive(Debug)]
struct State {
    vcpus: Vec<VcpuPages>,
    report: GuardedReport,
    correction: Correction,
    standing: Standing,
}

/// How far the latest page stood from the line, in ns, ahead or behind, and its TSC:
/// another vCPU may show an earlier one after it.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    off_ns: i64,
    at: u64,
}

/// The watch over KVM's pages; idle while the pages are ours.
#[derive(Debug)]
pub struct Guarded {
    clock: Arc<KvmClock>,
    /// Whether there is anything to watch, so that owned mode pays for a load
    /// and not for a lock at each exit. Follows `State::report.active`.
    active: AtomicBool,
    state: Mutex<State>,
}

impl Guarded {
    pub(super) fn new(mode: ClockMode, clock: Arc<KvmClock>, vcpus: usize) -> Self {
        let active = mode == ClockMode::Guarded;
        let report = GuardedReport { active, ..GuardedReport::default() };
        let vcpus = std::iter::repeat_with(VcpuPages::default).take(vcpus).collect();
        Self {
            clock,
            active: active.into(),
            state: Mutex::new(State {
                vcpus,
                report,
                correction: Correction::default(),
                standing: Standing::default(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has been seen so far.
    pub fn report(&self) -> GuardedReport {
        self.lock().report
    }

    /// Whether KVM owns the pages.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    pub(super) fn area_placed(
        &self,
        vcpu: u32,
        area: VcpuArea,
        gpa: Option<GuestAddress>,
    ) -> PageOwner {
        let mut state = self.lock();
        let active = state.report.active;
        if let Some(pages) = pages_of(&mut state.vcpus, vcpu) {
            match area {
                VcpuArea::VcpuInfo => pages.info = gpa,
                VcpuArea::TimeInfo => pages.time = gpa,
            }
            if active {
                if area == VcpuArea::VcpuInfo {
                    pages.seen = None;
                }
                // The vCPU may stand in a poll for long, and another name it again.
                if !pages.pending.contains(&area) {
                    pages.pending.push(area);
                }
            }
        }
        if active { PageOwner::Kvm } else { PageOwner::Us }
    }

    /// Lets KVM inject the VM-wide vector; in `auto` this hands the pages over.
    /// Returns the vCPUs that have something to register.
    pub(super) fn callback_vector(&self, vm: &VmFd, vector: u8) -> Result<Vec<u32>, Errno> {
        let attr = kvm_xen_hvm_attr {
            type_: attribute_type(KVM_XEN_ATTR_TYPE_UPCALL_VECTOR),
            pad: [0; 3],
            u: kvm_xen_hvm_attr__bindgen_ty_1 { vector },
        };
        xen_hvm_set_attr(vm, &attr).map_err(|error| {
            tracing::debug!(vector, %error, "KVM refused the VM-wide callback vector");
            Errno::EINVAL
        })?;
        let mut state = self.lock();
        if state.report.active {
            return Ok(Vec::new());
        }
        state.report.active = true;
        // Relaxed: the lock orders what it guards; a vCPU that sees the flag
        // late is kicked for what waits for it.
        self.active.store(true, Ordering::Relaxed);
        // KVM's clock counts from another moment than our line; the guest has
        // read ours already.
        self.align(vm, &mut state);
        let mut moved = Vec::new();
        for (vcpu, pages) in (0u32..).zip(state.vcpus.iter_mut()) {
            let placed = [(pages.info, VcpuArea::VcpuInfo), (pages.time, VcpuArea::TimeInfo)];
            pages.pending.extend(placed.iter().filter(|(at, _)| at.is_some()).map(|(_, a)| *a));
            if !pages.pending.is_empty() {
                moved.push(vcpu);
            }
        }
        Ok(moved)
    }

    /// Sets KVM's clock onto the line while no guest reads it yet.
    fn align(&self, vm: &VmFd, state: &mut State) {
        let off_ns = approach::approach(vm, &self.clock, &mut state.correction.ahead_ns);
        tracing::debug!(off_ns, "KVM's clock is set onto the line");
    }

    /// Registers what waits for this vCPU, on its own thread, before it enters.
    /// Whether its `vcpu_info` was among it: events that KVM delivered meanwhile
    /// are in the old one.
    ///
    /// # Errors
    /// KVM's refusal of an address; the guest then has no clock there.
    pub(super) fn before_entry(
        &self,
        vcpu: u32,
        fd: &VcpuFd,
    ) -> Result<bool, vmm_sys_util::errno::Error> {
        if !self.is_active() {
            return Ok(false);
        }
        let mut state = self.lock();
        let Some(pages) = pages_of(&mut state.vcpus, vcpu) else { return Ok(false) };
        let moved = pages.pending.contains(&VcpuArea::VcpuInfo);
        for area in std::mem::take(&mut pages.pending) {
            let (kind, at) = match area {
                VcpuArea::VcpuInfo => (KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, pages.info),
                VcpuArea::TimeInfo => (KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, pages.time),
            };
            let gpa = at.map_or(NOWHERE, |at| at.raw_value());
            let attr = kvm_xen_vcpu_attr {
                type_: attribute_type(kind),
                pad: [0; 3],
                u: kvm_xen_vcpu_attr__bindgen_ty_1 { gpa },
            };
            xen_vcpu_set_attr(fd, &attr)?;
        }
        Ok(moved)
    }

    /// Brings KVM's clock onto the line before the guest runs, if KVM is to own
    /// the pages from the start.
    pub fn before_run(&self, vm: &VmFd) {
        if self.is_active() {
            self.align(vm, &mut self.lock());
        }
    }

    /// The vCPU that is to be called out, if it does not come out by itself, because
    /// KVM's clock moved since a page of it was last looked at; or because KVM's
    /// masterclock is off for no reason any more: to set the clock switches it on again.
    pub fn moved(&self, vm: &VmFd, memory: &GuestRam) -> Option<u32> {
        if !self.is_active() {
            return None;
        }
        let off_ns = approach::off_line_ns(vm, &self.clock);
        let mut state = self.lock();
        if let Some(off_ns) = off_ns {
            state.correction.revived = 0;
            // Either is rounded by a ns.
            return (state.standing.off_ns.abs_diff(off_ns) > 2 * EXACT_NS).then_some(0);
        }
        if state.correction.revived < MOST_TRIES && approach::host_keeps_time_by_tsc() {
            state.correction.revive = true;
            return Some(0);
        }
        let line = self.clock.line();
        let behind = |pages: &VcpuPages| {
            pages.page(memory).is_some_and(|page| {
                let off_ns = ahead_ns(&page, &line);
                off_ns < 0 && off_ns.unsigned_abs() > INEXACT_NS && pages.seen != Some(page)
            })
        };
        (0u32..).zip(&state.vcpus).find(|(_, pages)| behind(pages)).map(|(vcpu, _)| vcpu)
    }

    /// Reads what KVM published for this vCPU and holds it against the line.
    /// The first page becomes the line, `true` is returned for it, and from then
    /// on it must not move.
    pub fn after_exit(&self, vcpu: u32, memory: &GuestRam, vm: &VmFd) -> bool {
        let mut state = self.lock();
        if std::mem::take(&mut state.correction.revive) {
            state.correction.revived += 1;
            tracing::info!("the host keeps time by its TSC again: setting KVM's clock");
            approach::set_once(vm, &self.clock, 0);
            approach::approach_if_stated(vm, &self.clock, &mut state.correction.ahead_ns);
        }
        let State { vcpus, report, correction, standing } = &mut *state;
        let Some(found) = pages_of(vcpus, vcpu).and_then(|pages| changed(pages, memory)) else {
            return false;
        };
        report.rewrites += u64::from(!found.first);
        let found = found.page;
        let published = SystemTimeLine::with_published(
            self.clock.line().frequency(),
            found.tsc_timestamp,
            found.system_time,
            found.mul,
            found.shift,
        );
        let Ok(published) = published else {
            tracing::debug!(vcpu, ?found, "KVM published a line that is none");
            return false;
        };
        let (line, adopted) = self.clock.adopt(published);
        report.saw(standing, ahead_ns(&found, &line), found.tsc_timestamp);
        if report.deviation_ns <= EXACT_NS {
            correction.tries = 0;
            return adopted;
        }
        let snapshot = Some((found.tsc_timestamp, found.system_time));
        if correction.corrected == snapshot {
            return adopted;
        }
        let exact = approach::off_line_ns(vm, &self.clock).is_some();
        if !correction.wants(report.deviation_ns, standing.off_ns < 0, exact) {
            return adopted;
        }
        tracing::info!(vcpu, deviation_ns = report.deviation_ns, exact, "KVM's clock is off");
        correction.corrected = snapshot;
        correction.tries += 1;
        report.corrections += 1;
        if exact {
            let off_ns = approach::approach(vm, &self.clock, &mut correction.ahead_ns);
            tracing::info!(off_ns, "KVM's clock is set onto the line");
        } else {
            approach::set_once(vm, &self.clock, 0);
        }
        adopted
    }
}

impl Correction {
    /// Whether a page so far from the line, behind it or ahead, is to be corrected.
    fn wants(&mut self, off_ns: u64, behind: bool, exact: bool) -> bool {
        if !exact {
            if !behind || off_ns <= INEXACT_NS {
                self.tries = 0;
                return false;
            }
            return self.tries < MOST_TRIES;
        }
        // What was left of the last disturbance stays, a new one does not.
        if off_ns > CORRECT_BEYOND_NS.max(self.left_ns.saturating_mul(2)) {
            self.tries = 0;
        }
        if self.tries >= MOST_TRIES {
            self.left_ns = off_ns;
        }
        self.tries < MOST_TRIES
    }
}

impl GuardedReport {
    /// Takes a page into account that stands so far ahead of the line at its TSC.
    fn saw(&mut self, standing: &mut Standing, now_ns: i64, guest_tsc: u64) {
        self.deviation_ns = now_ns.unsigned_abs();
        self.max_deviation_ns = self.max_deviation_ns.max(self.deviation_ns);
        if guest_tsc < standing.at {
            return;
        }
        // Pages of one line, at different places of it, are rounded by up to a ns.
        let jump_ns = now_ns.abs_diff(standing.off_ns);
        if jump_ns > 1 {
            self.jumps += 1;
            self.largest_jump_ns = self.largest_jump_ns.max(jump_ns);
        }
        *standing = Standing { off_ns: now_ns, at: guest_tsc };
    }
}

struct Changed {
    page: TimeInfo,
    first: bool,
}

impl VcpuPages {
    /// What KVM published here; `None` before it did, when the multiplier is 0.
    fn page(&self, memory: &GuestRam) -> Option<TimeInfo> {
        let at = self.info?.checked_add(TIME_IN_VCPU_INFO)?;
        read_time(memory, at).ok().filter(|page| page.mul != 0)
    }
}

/// How far a page stands ahead of the line, at its own TSC, ns.
fn ahead_ns(page: &TimeInfo, line: &SystemTimeLine) -> i64 {
    page.system_time.wrapping_sub(line.system_time_ns(page.tsc_timestamp)).cast_signed()
}

/// A vCPU's page, if it is not what it was.
fn changed(pages: &mut VcpuPages, memory: &GuestRam) -> Option<Changed> {
    let page = pages.page(memory)?;
    if pages.seen == Some(page) {
        return None;
    }
    let first = pages.seen.replace(page).is_none();
    Some(Changed { page, first })
}

fn pages_of(vcpus: &mut [VcpuPages], vcpu: u32) -> Option<&mut VcpuPages> {
    vcpus.get_mut(usize::try_from(vcpu).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_counted_once_whichever_vcpu_shows_it() {
        let mut report = GuardedReport::default();
        let mut standing = Standing::default();
        let mut saw = |page_ns: i64, line_ns: i64, tsc| {
            report.saw(&mut standing, page_ns - line_ns, tsc);
            (report.jumps, report.largest_jump_ns, report.deviation_ns, report.max_deviation_ns)
        };
        assert_eq!(saw(1_000, 1_000, 10), (0, 0, 0, 0));
        // Rounding is none, either way.
        assert_eq!(saw(2_001, 2_000, 20), (0, 0, 1, 1));
        assert_eq!(saw(3_000, 3_000, 30), (0, 0, 0, 1));
        // Two ns are one; the other vCPU shows the same page.
        assert_eq!(saw(4_002, 4_000, 40), (1, 2, 2, 2));
        assert_eq!(saw(4_002, 4_000, 40), (1, 2, 2, 2));
        // A vCPU that still shows the page before it.
        assert_eq!(saw(3_000, 3_000, 30), (1, 2, 0, 2));
        assert_eq!(saw(4_002, 4_000, 40), (1, 2, 2, 2));
        // Far, and the correction of it: two more, the largest is kept.
        assert_eq!(saw(1_005_002, 5_000, 50), (2, 1_000_000, 1_000_002, 1_000_002));
        assert_eq!(saw(6_000, 6_000, 60), (3, 1_000_002, 0, 1_000_002));
        // Back as well as on.
        assert_eq!(saw(6_500, 7_000, 70), (4, 1_000_002, 500, 1_000_002));
    }

    #[test]
    fn without_pairs_a_clock_is_only_brought_on() {
        let mut correction = Correction::default();
        // Ahead stays, however far: to set it back would be the guest's step back.
        assert!(!correction.wants(1_000_000_000, false, false));
        assert!(!correction.wants(INEXACT_NS, true, false));
        for _ in 0..MOST_TRIES {
            assert!(correction.wants(INEXACT_NS + 1, true, false));
            correction.tries += 1;
        }
        assert!(!correction.wants(INEXACT_NS + 1, true, false), "not for ever");
        // Near enough once, and the next is another disturbance.
        assert!(!correction.wants(5, true, false));
        assert!(correction.wants(INEXACT_NS + 1, true, false));
    }

    #[test]
    fn with_pairs_it_is_brought_back_either_way() {
        let mut correction = Correction::default();
        assert!(correction.wants(2, false, true));
        assert!(correction.wants(2, true, true));
        correction.tries = MOST_TRIES;
        assert!(!correction.wants(700, false, true), "what is left stays");
        assert!(!correction.wants(700, true, true));
        assert!(correction.wants(1_401, true, true), "another disturbance");
    }
}
