//! What KVM does by itself where it owns the clock pages: it delivers IPIs
//! between vCPUs and runs their singleshot timers, without an exit to us.
//!
//! It then has to know where `shared_info` lies, in which layout, the ports and
//! each vCPU's vector. Setting the first two is a masterclock update each (up
//! to Linux 7.2), so they are set when the guest maps the page, which it does
//! before its other vCPUs run. `KVM_XEN_HVM_CONFIG_EVTCHN_SEND` stays unset: KVM
//! needs it for neither, and with it would serve SCHEDOP_poll, wrongly.
//!
//! KVM's timer takes the deadline by the page that it publishes since Linux 6.9
//! (`kvm_xen_start_timer` in `arch/x86/kvm/xen.c`), before by another clock;
//! and since 6.9 keeps an upcall for a local APIC that is off. Before, all
//! stays here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_XEN_ATTR_TYPE_EVTCHN, KVM_XEN_ATTR_TYPE_LONG_MODE, KVM_XEN_ATTR_TYPE_SHARED_INFO,
    KVM_XEN_EVTCHN_DEASSIGN, KVM_XEN_HVM_CONFIG_EVTCHN_SEND, KVM_XEN_VCPU_ATTR_TYPE_TIMER,
    KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, kvm_xen_hvm_attr,
    kvm_xen_hvm_attr__bindgen_ty_1 as VmU,
    kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_1 as SharedInfoU,
    kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_2 as EvtchnU,
    kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_2__bindgen_ty_1 as DeliverU,
    kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_2__bindgen_ty_1__bindgen_ty_1 as DeliverPort,
    kvm_xen_vcpu_attr, kvm_xen_vcpu_attr__bindgen_ty_1 as VcpuU,
    kvm_xen_vcpu_attr__bindgen_ty_1__bindgen_ty_2 as TimerU,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use vm_memory::{Address, GuestAddress};
use xen_abi::errno::Errno;
use xen_abi::event_channel::EVTCHNSTAT_IPI;

use super::ioctls::{attribute_type, xen_hvm_set_attr, xen_vcpu_set_attr};

/// `KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL`.
const TWO_LEVELS: u32 = u32::MAX;
/// `KVM_XEN_INVALID_GFN`.
const NOWHERE: u64 = u64::MAX;
/// Taking one back waits for all of KVM's readers, so a guest does not get any
/// number: Linux has five for each vCPU. More are served here.
const IPIS_PER_VCPU: usize = 8;
/// The first release whose timers go by the published page.
const EXACT_TIMERS_SINCE: (u32, u32) = (6, 9);

#[derive(Debug, Default)]
struct VcpuWork {
    timer_port: u32,
    /// The one that KVM knows. To set it again would stop a running timer.
    set_timer_port: u32,
    vector: u8,
}

#[derive(Debug)]
struct State {
    active: bool,
    two_levels: bool,
    /// Where `shared_info` lies, `None` for nowhere, and whether 64-bit.
    shared_info: (Option<GuestAddress>, bool),
    /// IPI ports and their vCPUs.
    ipis: BTreeMap<u32, u32>,
    vcpus: Vec<VcpuWork>,
}

/// What was, or would be, handed to KVM.
#[derive(Debug)]
pub(super) struct Offload {
    able: bool,
    /// `State::active`, for who must not take the lock.
    delivering: AtomicBool,
    /// Whether a vCPU has something to set on its own thread: another thread
    /// would block on KVM's vCPU mutex for as long as the guest runs.
    waiting: Vec<AtomicBool>,
    state: Mutex<State>,
}

impl Offload {
    /// Nothing is handed over until [`Offload::activate`].
    pub(super) fn new(vm: &VmFd, vcpus: usize) -> Self {
        let flags = u32::try_from(vm.check_extension_int(Cap::XenHvm)).unwrap_or(0);
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            able: flags & KVM_XEN_HVM_CONFIG_EVTCHN_SEND != 0
                && version(&release) >= Some(EXACT_TIMERS_SINCE),
            delivering: AtomicBool::new(false),
            waiting: std::iter::repeat_with(AtomicBool::default).take(vcpus).collect(),
            state: Mutex::new(State {
                active: false,
                two_levels: true,
                shared_info: (None, true),
                ipis: BTreeMap::new(),
                vcpus: std::iter::repeat_with(VcpuWork::default).take(vcpus).collect(),
            }),
        }
    }

    /// Hands nothing over, ever. For a machine that has not started.
    pub(super) fn give_up(&mut self) {
        self.able = false;
        self.lock().active = false;
        self.delivering.store(false, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// KVM owns the pages from now on: hands over what the guest has set so far.
    /// Returns the vCPUs that have something to set.
    pub(super) fn activate(&self, vm: &VmFd) -> Vec<u32> {
        let mut state = self.lock();
        if !self.able || !state.two_levels || std::mem::replace(&mut state.active, true) {
            return Vec::new();
        }
        self.delivering.store(true, Ordering::Relaxed);
        if let (Some(_), _) = state.shared_info {
            set_shared_info(vm, state.shared_info);
        }
        state.ipis.iter().for_each(|(&port, &vcpu)| assign(vm, port, vcpu));
        self.waiting.iter().for_each(|waiting| waiting.store(true, Ordering::Relaxed));
        (0u32..).zip(&self.waiting).map(|(vcpu, _)| vcpu).collect()
    }

    /// Whether KVM delivers events by itself.
    pub(super) fn is_active(&self) -> bool {
        self.delivering.load(Ordering::Relaxed)
    }

    /// `shared_info` lies at `gpa` now, or nowhere.
    pub(super) fn shared_info_placed(&self, vm: &VmFd, gpa: Option<GuestAddress>, long_mode: bool) {
        let mut state = self.lock();
        let was = std::mem::replace(&mut state.shared_info, (gpa, long_mode));
        // Each setting is a masterclock update.
        if state.active && was != state.shared_info && (was.0.is_some() || gpa.is_some()) {
            set_shared_info(vm, state.shared_info);
        }
    }

    /// The guest bound `port` as an IPI of `vcpu`, or closed it.
    pub(super) fn ipi_port(&self, vm: &VmFd, port: u32, vcpu: Option<u32>) {
        let mut state = self.lock();
        match vcpu {
            Some(vcpu) if state.ipis.len() < state.vcpus.len().saturating_mul(IPIS_PER_VCPU) => {
                state.ipis.insert(port, vcpu);
                if state.active {
                    assign(vm, port, vcpu);
                }
            }
            Some(_) => {}
            None => {
                if state.ipis.remove(&port).is_some() && state.active {
                    let (deliver, flags) = (DeliverPort::default(), KVM_XEN_EVTCHN_DEASSIGN);
                    set_evtchn(vm, port, flags, deliver);
                }
            }
        }
    }

    /// `VIRQ_TIMER` of `vcpu` comes by `port`, 0 for none. Whether that vCPU is
    /// to be kicked.
    pub(super) fn timer_port(&self, vcpu: u32, port: u32) -> bool {
        self.change(vcpu, |work| work.timer_port = port)
    }

    /// Upcalls of `vcpu` come by `vector`. Whether that vCPU is to be kicked.
    pub(super) fn upcall_vector(&self, vcpu: u32, vector: u8) -> bool {
        self.change(vcpu, |work| work.vector = vector)
    }

    fn change(&self, vcpu: u32, change: impl FnOnce(&mut VcpuWork)) -> bool {
        let mut state = self.lock();
        let State { vcpus, active, .. } = &mut *state;
        let Ok(index) = usize::try_from(vcpu) else { return false };
        let (Some(work), Some(waiting)) = (vcpus.get_mut(index), self.waiting.get(index)) else {
            return false;
        };
        change(work);
        if *active {
            waiting.store(true, Ordering::Release);
        }
        *active
    }

    /// The guest wants FIFO event channels, which KVM does not know.
    ///
    /// # Errors
    /// `EOPNOTSUPP` once KVM delivers events: the guest stays with 2 levels.
    pub(super) fn leave_two_levels(&self) -> Result<(), Errno> {
        let mut state = self.lock();
        if state.active {
            return Err(Errno::EOPNOTSUPP);
        }
        state.two_levels = false;
        Ok(())
    }

    /// Sets what waits for `vcpu`, on its own thread. A vector is returned that
    /// has to be raised once: what KVM delivered before it knew it raised none.
    pub(super) fn before_entry(&self, vcpu: u32, fd: &VcpuFd) -> Option<u8> {
        let index = usize::try_from(vcpu).ok()?;
        let waiting = self.waiting.get(index)?;
        // Acquire: partner of the Release in `change`.
        if !waiting.load(Ordering::Relaxed) || !waiting.swap(false, Ordering::Acquire) {
            return None;
        }
        let mut state = self.lock();
        let work = state.vcpus.get_mut(index)?;
        // KVM takes it from the vCPU's index, before that is set: 0 for all.
        set_vcpu(fd, vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, VcpuU { vcpu_id: vcpu });
        if work.set_timer_port != work.timer_port {
            work.set_timer_port = work.timer_port;
            let timer = TimerU { port: work.timer_port, priority: TWO_LEVELS, expires_ns: 0 };
            set_vcpu(fd, vcpu, KVM_XEN_VCPU_ATTR_TYPE_TIMER, VcpuU { timer });
        }
        let vector = VcpuU { vector: work.vector };
        set_vcpu(fd, vcpu, KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, vector);
        Some(work.vector).filter(|&vector| vector != 0)
    }
}

/// Major and minor number of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn set_shared_info(vm: &VmFd, (gpa, long_mode): (Option<GuestAddress>, bool)) {
    // The layout first: setting the page then writes its wallclock, which ours
    // replaces, where it belongs.
    set_vm(vm, KVM_XEN_ATTR_TYPE_LONG_MODE, VmU { long_mode: long_mode.into() });
    let gfn = gpa.map_or(NOWHERE, |gpa| gpa.raw_value() >> 12);
    let shared_info = SharedInfoU { gfn };
    set_vm(vm, KVM_XEN_ATTR_TYPE_SHARED_INFO, VmU { shared_info });
}

fn assign(vm: &VmFd, port: u32, vcpu: u32) {
    set_evtchn(vm, port, 0, DeliverPort { port, vcpu, priority: TWO_LEVELS });
}

fn set_evtchn(vm: &VmFd, send_port: u32, flags: u32, port: DeliverPort) {
    let deliver = DeliverU { port };
    let evtchn = EvtchnU { send_port, type_: EVTCHNSTAT_IPI, flags, deliver };
    set_vm(vm, KVM_XEN_ATTR_TYPE_EVTCHN, VmU { evtchn });
}

// A refusal of any of these leaves the work to us: KVM then exits for it.

fn set_vm(vm: &VmFd, kind: u32, u: VmU) {
    let attr = kvm_xen_hvm_attr { type_: attribute_type(kind), pad: [0; 3], u };
    if let Err(error) = xen_hvm_set_attr(vm, &attr) {
        tracing::debug!(kind, %error, "KVM takes no Xen attribute of the VM");
    }
}

fn set_vcpu(fd: &VcpuFd, vcpu: u32, kind: u32, u: VcpuU) {
    let attr = kvm_xen_vcpu_attr { type_: attribute_type(kind), pad: [0; 3], u };
    if let Err(error) = xen_vcpu_set_attr(fd, &attr) {
        tracing::debug!(vcpu, kind, %error, "KVM takes no Xen attribute of the vCPU");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases() {
        let cases = [
            ("6.12.63+deb13-cloud-amd64\n", Some((6, 12))),
            ("6.9", Some((6, 9))),
            ("6.9-rc1", Some((6, 9))),
            ("7.2.1", Some((7, 2))),
            ("6", None),
            ("", None),
            ("linux", None),
        ];
        for (release, found) in cases {
            assert_eq!(version(release), found, "{release}");
        }
        assert!(version("6.8.12") < Some(EXACT_TIMERS_SINCE));
        assert!(version("10.0") >= Some(EXACT_TIMERS_SINCE));
        assert!(None < Some(EXACT_TIMERS_SINCE));
    }
}
