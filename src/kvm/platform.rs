//! The machine's side of the emulated hypervisor, over KVM: interrupts as MSIs,
//! timers in user space, pages by memory slots.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_bindings::kvm_msi;
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;
use xen_abi::errno::Errno;

use super::callback::CallbackVector;
use super::callback_gsi::CallbackGsi;
use super::guarded::Guarded;
use super::offload::Offload;
use super::timers::Timers;
use super::{
    CallbackDelivery, Capabilities, ClockMode, GuestTsc, KvmClock, ProbeError, VcpuKicker,
    vcpu_start,
};
use crate::pages::GuestRam;
use crate::xen::{CallbackVia, Clock, Domain, PageOwner, Platform, StartLimits, VcpuArea};

const MSI_ADDRESS: u32 = 0xfee0_0000;
/// A vCPU that waits looks so often for events that KVM delivered by itself.
const LOOK_EVERY_NS: u64 = 1_000_000;
/// Delivery mode NMI in a message's data.
const DELIVER_NMI: u32 = 4 << 8;

/// Where console output goes.
pub type ConsoleSink = Box<dyn Fn(&[u8]) + Send + Sync>;

/// Gives guest-physical space that has no RAM behind it a page; see
/// [`Platform::back_page`].
pub type PageBacker = Box<dyn Fn(GuestAddress) -> Result<(), Errno> + Send + Sync>;

/// Takes back the memory of pages that the guest gave up; see
/// [`Platform::release_pages`].
pub type PageReleaser = Box<dyn Fn(GuestAddress, u64) + Send + Sync>;

/// What the machine around a [`KvmPlatform`] does for its guest.
pub struct MachineServices {
    /// Takes console output.
    pub console: ConsoleSink,
    /// Puts memory behind pages beyond RAM.
    pub backer: PageBacker,
    /// Takes back the memory of pages that the guest gave up.
    pub releaser: PageReleaser,
}

/// What a machine holds back for its vCPUs, outside of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformState {
    /// For each vCPU the vector that its local APIC has not taken yet, or 0.
    pub untaken: Vec<u8>,
    /// For each vCPU the vector that it takes without an end of interrupt, or 0.
    pub callback: Vec<u8>,
}

/// Why a vCPU can not enter the guest.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// KVM refused the address of a page.
    #[error("vCPU {vcpu}: KVM took no clock page: {error}")]
    ClockPage {
        /// The vCPU.
        vcpu: u32,
        /// What KVM said.
        error: vmm_sys_util::errno::Error,
    },
    /// KVM refused the callback vector's settings.
    #[error("vCPU {vcpu}: KVM took no synthetic interrupt for the callback vector: {error}")]
    Callback {
        /// The vCPU.
        vcpu: u32,
        /// What KVM said.
        error: vmm_sys_util::errno::Error,
    },
    /// The guest asked for a callback that this KVM can not deliver. It would
    /// wait for events that never come.
    #[error(transparent)]
    NoCallback(ProbeError),
}

/// [`Platform`] over one KVM VM.
pub struct KvmPlatform {
    vm: Arc<VmFd>,
    clock: Arc<KvmClock>,
    kickers: Vec<VcpuKicker>,
    timers: Arc<Timers>,
    timer_thread: Mutex<Option<JoinHandle<()>>>,
    guarded: Guarded,
    callback_gsi: CallbackGsi,
    domain: OnceLock<Weak<Domain>>,
    caps: Capabilities,
    mode: ClockMode,
    callback: CallbackVector,
    /// The guest was refused its callback vector: nobody enters any more.
    refused: AtomicBool,
    offload: Offload,
    /// For each vCPU the vector that its local APIC did not take, or 0.
    untaken: Vec<AtomicU8>,
    services: MachineServices,
}

impl KvmPlatform {
    /// A platform for `vcpus` vCPUs, numbered as their local APICs are.
    pub fn new(
        vm: Arc<VmFd>,
        clock: Arc<KvmClock>,
        vcpus: u32,
        caps: Capabilities,
        mode: ClockMode,
        services: MachineServices,
    ) -> Self {
        let count = usize::try_from(vcpus).unwrap_or(usize::MAX);
        let timers = Timers::new(count, Arc::clone(&clock) as Arc<dyn Clock>);
        let offload = Offload::new(&vm, count);
        if mode == ClockMode::Guarded {
            offload.activate(&vm);
        }
        Self {
            guarded: Guarded::new(mode, Arc::clone(&clock), count),
            offload,
            callback_gsi: CallbackGsi::new(Arc::clone(&vm)),
            domain: OnceLock::new(),
            vm,
            clock,
            caps,
            mode,
            callback: CallbackVector::new(count),
            refused: AtomicBool::new(false),
            kickers: (0..vcpus).map(|_| VcpuKicker::default()).collect(),
            timers: Arc::new(timers),
            timer_thread: Mutex::new(None),
            untaken: (0..vcpus).map(|_| AtomicU8::new(0)).collect(),
            services,
        }
    }

    /// Leaves nothing of event delivery and timers to KVM, which knows the 2-level
    /// bitmaps alone: the guest may have FIFO event channels in guarded mode too.
    #[must_use]
    pub fn serving_all_events(mut self) -> Self {
        self.offload.give_up();
        self
    }

    /// Starts the services of `domain`: timers, and the callback GSI's.
    ///
    /// # Errors
    /// Where no timer or thread can be made.
    pub fn start(&self, domain: &Arc<Domain>) -> std::io::Result<()> {
        let domain: Weak<Domain> = Arc::downgrade(domain);
        self.callback_gsi.follow(Weak::clone(&domain));
        // Started once.
        let _ = self.domain.set(Weak::clone(&domain));
        let thread = self.timers.spawn(move |vcpu| {
            if let Some(domain) = domain.upgrade() {
                domain.timer_expired(vcpu);
            }
        })?;
        *self.timer_thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Stops the services and waits for the timers' thread.
    pub fn stop(&self) {
        self.callback_gsi.stop();
        self.timers.stop();
        let thread = self.timer_thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the timer thread panicked");
        }
    }

    /// Lets no timer expire until [`KvmPlatform::release_timers`], and waits for
    /// one that is just being delivered.
    pub fn hold_timers(&self) {
        self.timers.hold();
    }

    /// Lets timers expire again, those first that are due meanwhile.
    pub fn release_timers(&self) {
        self.timers.release();
    }

    /// What is held back for the vCPUs, none of which runs.
    pub fn snapshot(&self) -> PlatformState {
        PlatformState {
            untaken: self.untaken.iter().map(|vector| vector.load(Ordering::SeqCst)).collect(),
            callback: self.callback.snapshot(),
        }
    }

    /// Takes it over, after the domain is restored; `false` where it is that of
    /// another number of vCPUs.
    #[must_use]
    pub fn restore(&self, from: &PlatformState) -> bool {
        for (vector, saved) in self.untaken.iter().zip(&from.untaken) {
            vector.store(*saved, Ordering::SeqCst);
        }
        self.untaken.len() == from.untaken.len() && self.callback.restore(&from.callback)
    }

    /// System time now, of the guest's clock.
    pub fn system_time_ns(&self) -> u64 {
        self.clock.system_time_ns()
    }

    /// The bell of a vCPU.
    pub fn kicker(&self, vcpu: u32) -> Option<&VcpuKicker> {
        self.kickers.get(usize::try_from(vcpu).ok()?)
    }

    /// What KVM's ownership of the clock pages needs and found.
    pub fn guarded(&self) -> &Guarded {
        &self.guarded
    }

    /// Calls a vCPU out if KVM's clock has moved, so that it is brought back. For a
    /// guest that never comes out by itself; one call of KVM where pages are KVM's.
    pub fn check_guarded(&self, memory: &GuestRam) {
        if let Some(vcpu) = self.guarded.moved(&self.vm, memory)
            && let Some(kicker) = self.kicker(vcpu)
        {
            kicker.kick();
        }
    }

    /// Serves what waits for `vcpu`, on its own thread, before it enters.
    ///
    /// # Errors
    /// What the guest can not do without: its clock, its events.
    pub fn before_entry(&self, vcpu: u32, fd: &VcpuFd) -> Result<(), EntryError> {
        if self.refused.load(Ordering::Relaxed)
            && let Err(error) = self.caps.callback_delivery(self.mode)
        {
            return Err(EntryError::NoCallback(error));
        }
        if self.clock.is_offset_lost() {
            // One offset holds for all: KVM moves them together.
            match GuestTsc::of_scaled_vcpu(fd, vcpu, self.clock.tsc().scaling()) {
                Ok(tsc) => self.clock.found_offset(tsc),
                Err(error) => tracing::warn!(%error, "the guest's TSC is still not known"),
            }
        }
        self.callback
            .before_entry(vcpu, fd)
            .map_err(|error| EntryError::Callback { vcpu, error })?;
        if let Some(untaken) = self.untaken(vcpu)
            && untaken.load(Ordering::SeqCst) != 0
        {
            let vector = untaken.swap(0, Ordering::SeqCst);
            self.send(vcpu, vector);
        }
        let moved = self
            .guarded
            .before_entry(vcpu, fd)
            .map_err(|error| EntryError::ClockPage { vcpu, error })?;
        if moved && let Some(domain) = self.domain.get().and_then(Weak::upgrade) {
            domain.vcpu_info_moved(vcpu);
        }
        if let Some(vector) = self.offload.before_entry(vcpu, fd) {
            self.send(vcpu, vector);
        }
        Ok(())
    }

    fn choose_callback(&self, vector: u8) {
        if self.callback.choose(vector) {
            self.kickers.iter().for_each(VcpuKicker::kick);
        }
    }

    fn untaken(&self, vcpu: u32) -> Option<&AtomicU8> {
        self.untaken.get(usize::try_from(vcpu).ok()?)
    }

    /// Keeps `vector` for `vcpu`'s next entry.
    fn keep(&self, vcpu: u32, vector: u8) {
        if let Some(untaken) = self.untaken(vcpu) {
            untaken.store(vector, Ordering::SeqCst);
        }
    }

    /// Sends `vector` to `vcpu`'s local APIC, or keeps it for the next entry.
    fn send(&self, vcpu: u32, vector: u8) {
        let msi = kvm_msi { data: u32::from(vector), ..message_to(vcpu) };
        // Xen's virtual APIC takes a vector even while the guest has it switched
        // off, KVM's drops it: Linux registers its vcpu_info, which makes an
        // upcall pending, long before it switches its APIC on.
        match self.vm.signal_msi(msi) {
            Ok(1..) => {}
            Ok(_) => self.keep(vcpu, vector),
            Err(error) => {
                tracing::debug!(vcpu, vector, %error, "an upcall could not be raised");
                self.keep(vcpu, vector);
            }
        }
    }

    /// Waits on `vcpu`'s own thread until it is woken, for whatever reason, or
    /// `deadline_ns` of system time has come; `false` if it has.
    pub fn wait(&self, vcpu: u32, deadline_ns: Option<u64>) -> bool {
        // KVM wakes nobody who waits here.
        let now_ns = self.clock.system_time_ns();
        let look_at_ns = now_ns.saturating_add(LOOK_EVERY_NS);
        if self.offload.is_active() && deadline_ns.is_none_or(|at| at > look_at_ns) {
            if let Some(kicker) = self.kicker(vcpu) {
                kicker.wait(Some(Duration::from_nanos(LOOK_EVERY_NS)));
            }
            return true;
        }
        let timeout = match deadline_ns.map(|at| at.saturating_sub(now_ns)) {
            Some(0) => return false,
            left => left.map(Duration::from_nanos),
        };
        if let Some(kicker) = self.kicker(vcpu) {
            kicker.wait(timeout);
        }
        true
    }
}

/// A message to the local APIC of `vcpu`: physical destination.
fn message_to(vcpu: u32) -> kvm_msi {
    kvm_msi {
        // Destination IDs of 8 bits; wider ones need the extended format.
        address_lo: MSI_ADDRESS | (vcpu & 0xff) << 12,
        address_hi: vcpu & 0xffff_ff00,
        ..Default::default()
    }
}

impl Platform for KvmPlatform {
    fn raise_vector(&self, vcpu: u32, vector: u8) {
        if self.callback.is_free(vcpu, vector) {
            self.send(vcpu, vector);
        } else {
            self.keep(vcpu, vector);
            self.kick(vcpu);
        }
    }

    fn raise_callback(&self, vcpu: u32, vector: u8) {
        if self.guarded.is_active() {
            // KVM looks at evtchn_upcall_pending on its way into the guest.
            self.kick(vcpu);
        } else if self.callback.is_armed(vcpu, vector) {
            self.send(vcpu, vector);
        } else {
            self.keep(vcpu, vector);
            self.kick(vcpu);
        }
    }

    fn set_gsi(&self, gsi: u32, asserted: bool) {
        self.callback_gsi.set(gsi, asserted);
    }

    fn wake(&self, vcpu: u32) {
        if let Some(kicker) = self.kicker(vcpu) {
            kicker.wake();
        }
    }

    fn kick(&self, vcpu: u32) {
        if let Some(kicker) = self.kicker(vcpu) {
            kicker.kick();
        }
    }

    fn set_timer(&self, vcpu: u32, deadline_ns: Option<u64>) {
        self.timers.set(vcpu, deadline_ns);
    }

    fn area_placed(
        &self,
        vcpu: u32,
        area: VcpuArea,
        gpa: Option<GuestAddress>,
    ) -> Result<PageOwner, Errno> {
        let owner = self.guarded.area_placed(vcpu, area, gpa);
        if owner == PageOwner::Kvm {
            self.kick(vcpu);
        }
        Ok(owner)
    }

    fn shared_info_placed(&self, gpa: Option<GuestAddress>, long_mode: bool) -> Result<(), Errno> {
        self.offload.shared_info_placed(&self.vm, gpa, long_mode);
        Ok(())
    }

    fn ipi_port(&self, port: u32, vcpu: Option<u32>) {
        self.offload.ipi_port(&self.vm, port, vcpu);
    }

    fn timer_port(&self, vcpu: u32, port: u32) {
        if self.offload.timer_port(vcpu, port) {
            self.kick(vcpu);
        }
    }

    fn delivers_events(&self) -> bool {
        self.offload.is_active()
    }

    fn upcall_vector(&self, vcpu: u32, vector: u8) {
        if self.offload.upcall_vector(vcpu, vector) {
            self.kick(vcpu);
        }
    }

    fn leave_two_levels(&self) -> Result<(), Errno> {
        self.offload.leave_two_levels()
    }

    fn callback_via(&self, via: CallbackVia) -> Result<(), Errno> {
        self.callback_gsi.choose(via);
        let vector = match via {
            CallbackVia::Vector(vector) => vector,
            CallbackVia::None | CallbackVia::Gsi(_) | CallbackVia::PciIntx(_) => 0,
        };
        match self.caps.callback_delivery(self.mode) {
            _ if vector == 0 && !self.guarded.is_active() => self.choose_callback(0),
            _ if vector == 0 => {}
            Ok(CallbackDelivery::Owned) => self.choose_callback(vector),
            Ok(CallbackDelivery::Guarded) => {
                let moved = self.guarded.callback_vector(&self.vm, vector)?;
                moved.into_iter().for_each(|vcpu| self.kick(vcpu));
                self.offload.activate(&self.vm).into_iter().for_each(|vcpu| self.kick(vcpu));
            }
            Err(_) => {
                self.refused.store(true, Ordering::Relaxed);
                return Err(Errno::EINVAL);
            }
        }
        Ok(())
    }

    fn back_page(&self, gpa: GuestAddress) -> Result<(), Errno> {
        (self.services.backer)(gpa)
    }

    fn release_pages(&self, start: GuestAddress, pages: u64) {
        (self.services.releaser)(start, pages);
    }

    fn start_limits(&self) -> StartLimits {
        vcpu_start::limits()
    }

    fn raise_nmi(&self, vcpu: u32) -> Result<(), Errno> {
        // KVM_NMI would wait for the vCPU to come out; a message does not.
        let msi = kvm_msi { data: DELIVER_NMI, ..message_to(vcpu) };
        self.vm.signal_msi(msi).map(drop).map_err(|_| Errno::ENOSYS)
    }

    fn console_output(&self, bytes: &[u8]) {
        (self.services.console)(bytes);
    }
}
