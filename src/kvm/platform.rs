//! The machine's side of the emulated hypervisor, over KVM: interrupts as MSIs,
//! timers in user space, pages by memory slots.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_bindings::kvm_msi;
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::GuestAddress;
use xen_abi::errno::Errno;

use super::guarded::Guarded;
use super::offload::Offload;
use super::timers::Timers;
use super::{ClockMode, KvmClock, VcpuKicker};
use crate::xen::{CallbackVia, Clock, Domain, PageOwner, Platform, VcpuArea};

const MSI_ADDRESS: u32 = 0xfee0_0000;

/// Where console output goes.
pub type ConsoleSink = Box<dyn Fn(&[u8]) + Send + Sync>;

/// Gives guest-physical space that has no RAM behind it a page; see
/// [`Platform::back_page`].
pub type PageBacker = Box<dyn Fn(GuestAddress) -> Result<(), Errno> + Send + Sync>;

/// [`Platform`] over one KVM VM.
pub struct KvmPlatform {
    vm: Arc<VmFd>,
    clock: Arc<KvmClock>,
    kickers: Vec<VcpuKicker>,
    timers: Arc<Timers>,
    timer_thread: Mutex<Option<JoinHandle<()>>>,
    guarded: Guarded,
    offload: Offload,
    /// For each vCPU the vector that its local APIC did not take, or 0.
    untaken: Vec<AtomicU8>,
    console: ConsoleSink,
    backer: PageBacker,
}

impl KvmPlatform {
    /// A platform for `vcpus` vCPUs, numbered as their local APICs are.
    pub fn new(
        vm: Arc<VmFd>,
        clock: Arc<KvmClock>,
        vcpus: u32,
        mode: ClockMode,
        console: ConsoleSink,
        backer: PageBacker,
    ) -> Self {
        let count = usize::try_from(vcpus).unwrap_or(usize::MAX);
        let offload = Offload::new(&vm, count);
        if mode == ClockMode::Guarded {
            offload.activate(&vm);
        }
        Self {
            guarded: Guarded::new(mode, Arc::clone(&clock), count),
            offload,
            vm,
            clock,
            kickers: (0..vcpus).map(|_| VcpuKicker::default()).collect(),
            timers: Arc::new(Timers::new(count)),
            timer_thread: Mutex::new(None),
            untaken: (0..vcpus).map(|_| AtomicU8::new(0)).collect(),
            console,
            backer,
        }
    }

    /// Starts the timer service for `domain`.
    ///
    /// # Errors
    /// Where no thread can be made.
    pub fn start(&self, domain: &Arc<Domain>) -> std::io::Result<()> {
        let domain: Weak<Domain> = Arc::downgrade(domain);
        let thread = self.timers.spawn(Arc::clone(&self.clock), move |vcpu| {
            if let Some(domain) = domain.upgrade() {
                domain.timer_expired(vcpu);
            }
        })?;
        *self.timer_thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Stops the timer service and waits for its thread.
    pub fn stop(&self) {
        self.timers.stop();
        let thread = self.timer_thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the timer thread panicked");
        }
    }

    /// The bell of a vCPU.
    pub fn kicker(&self, vcpu: u32) -> Option<&VcpuKicker> {
        self.kickers.get(usize::try_from(vcpu).ok()?)
    }

    /// What KVM's ownership of the clock pages needs and found.
    pub fn guarded(&self) -> &Guarded {
        &self.guarded
    }

    /// Serves what waits for `vcpu`, on its own thread, before it enters.
    ///
    /// # Errors
    /// KVM's refusal of an address; the guest then has no clock there.
    pub fn before_entry(&self, vcpu: u32, fd: &VcpuFd) -> Result<(), vmm_sys_util::errno::Error> {
        if let Some(untaken) = usize::try_from(vcpu).ok().and_then(|index| self.untaken.get(index))
            && untaken.load(Ordering::Relaxed) != 0
        {
            let vector = untaken.swap(0, Ordering::Relaxed);
            self.raise_vector(vcpu, vector);
        }
        self.guarded.before_entry(vcpu, fd)?;
        if let Some(vector) = self.offload.before_entry(vcpu, fd) {
            self.raise_vector(vcpu, vector);
        }
        Ok(())
    }

    /// Waits on `vcpu`'s own thread until it is woken, for whatever reason, or
    /// `deadline_ns` of system time has come; `false` if it has.
    pub fn wait(&self, vcpu: u32, deadline_ns: Option<u64>) -> bool {
        let timeout = match deadline_ns.map(|at| at.saturating_sub(self.clock.system_time_ns())) {
            Some(0) => return false,
            left => left.map(Duration::from_nanos),
        };
        if let Some(kicker) = self.kicker(vcpu) {
            kicker.wait(timeout);
        }
        true
    }
}

impl Platform for KvmPlatform {
    fn raise_vector(&self, vcpu: u32, vector: u8) {
        // Destination IDs of 8 bits; wider ones need the extended format.
        let msi = kvm_msi {
            address_lo: MSI_ADDRESS | (vcpu & 0xff) << 12,
            address_hi: vcpu & 0xffff_ff00,
            data: u32::from(vector),
            ..Default::default()
        };
        // Xen's virtual APIC takes a vector even while the guest has it switched
        // off, KVM's drops it: Linux registers its vcpu_info, which makes an
        // upcall pending, long before it switches its APIC on.
        match self.vm.signal_msi(msi) {
            Ok(1..) => {}
            Ok(_) => {
                let slot = usize::try_from(vcpu).ok().and_then(|index| self.untaken.get(index));
                if let Some(untaken) = slot {
                    untaken.store(vector, Ordering::Relaxed);
                }
            }
            Err(error) => tracing::debug!(vcpu, vector, %error, "an upcall could not be raised"),
        }
    }

    fn raise_callback(&self, vcpu: u32, _vector: u8) {
        // KVM looks at evtchn_upcall_pending on its way into the guest.
        self.kick(vcpu);
    }

    fn set_gsi(&self, gsi: u32, asserted: bool) {
        if let Err(error) = self.vm.set_irq_line(gsi, asserted) {
            tracing::debug!(gsi, asserted, %error, "an interrupt line could not be set");
        }
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

    fn shared_info_placed(&self, gpa: GuestAddress, long_mode: bool) -> Result<(), Errno> {
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

    fn upcall_vector(&self, vcpu: u32, vector: u8) {
        if self.offload.upcall_vector(vcpu, vector) {
            self.kick(vcpu);
        }
    }

    fn leave_two_levels(&self) -> Result<(), Errno> {
        self.offload.leave_two_levels()
    }

    fn callback_via(&self, via: CallbackVia) -> Result<(), Errno> {
        match via {
            CallbackVia::Vector(vector) => {
                let moved = self.guarded.callback_vector(&self.vm, vector)?;
                moved.into_iter().for_each(|vcpu| self.kick(vcpu));
                self.offload.activate(&self.vm).into_iter().for_each(|vcpu| self.kick(vcpu));
                Ok(())
            }
            CallbackVia::None | CallbackVia::Gsi(_) | CallbackVia::PciIntx(_) => Ok(()),
        }
    }

    fn back_page(&self, gpa: GuestAddress) -> Result<(), Errno> {
        (self.backer)(gpa)
    }

    fn set_vcpu_up(&self, _vcpu: u32, _up: bool) -> Result<(), Errno> {
        // vCPUs come up by INIT-SIPI through their local APICs.
        Err(Errno::ENOSYS)
    }

    fn console_output(&self, bytes: &[u8]) {
        (self.console)(bytes);
    }
}
