//! What the emulated hypervisor needs of the machine around it, as traits, so
//! that every state machine in this room runs in a test without a VM.

use vm_memory::GuestAddress;
use xen_abi::errno::Errno;

use super::StartLimits;
use crate::clock::{SystemTimeLine, WallclockEpoch};
use crate::pages::GuestRam;

/// The domain's clocks. All methods may be called from any thread.
pub trait Clock: Send + Sync {
    /// The guest's TSC now, in guest TSC ticks. The same on every vCPU.
    fn guest_tsc(&self) -> u64;

    /// The line from guest TSC to system time. It holds for the guest's life.
    fn line(&self) -> SystemTimeLine;

    /// UTC at system time 0, as the wallclock of `shared_info` states it.
    fn wallclock_epoch(&self) -> WallclockEpoch;

    /// Nanoseconds of system time now, exactly what the guest would compute.
    fn system_time_ns(&self) -> u64 {
        self.line().system_time_ns(self.guest_tsc())
    }
}

/// A structure that the guest shares with the hypervisor, one per vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VcpuArea {
    /// `struct vcpu_info`, with its time at byte 32 (64-bit) or 32 (32-bit).
    VcpuInfo,
    /// The secondary `vcpu_time_info`, which Linux maps into its vDSO.
    TimeInfo,
}

/// Who writes the time fields of an area from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageOwner {
    /// This library, through `pages`: the clock is exactly our line.
    Us,
    /// KVM (guarded mode); the machine watches what it writes.
    Kvm,
}

/// How the guest asked for its VM-wide event upcall (`HVM_PARAM_CALLBACK_IRQ`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallbackVia {
    /// None: only per-vCPU upcall vectors, or polling.
    None,
    /// A global system interrupt, level triggered.
    Gsi(u32),
    /// A PCI function's INTx line; we have no PCI bus, so it is only recorded.
    PciIntx(u64),
    /// A vector injected into vCPUs past their LAPIC.
    Vector(u8),
}

/// The machine: interrupts, timers, guest-physical space and vCPU threads.
///
/// Implementations must not call back into the domain from these methods: they
/// may be called while a domain lock is held.
pub trait Platform: Send + Sync {
    /// Raises `vector` at `vcpu`'s LAPIC: fixed delivery, edge triggered.
    fn raise_vector(&self, vcpu: u32, vector: u8);

    /// Delivers the VM-wide callback vector to `vcpu` past its LAPIC.
    /// `evtchn_upcall_pending` of its `vcpu_info` is already set.
    fn raise_callback(&self, vcpu: u32, vector: u8);

    /// Sets the level of a global system interrupt. Where the machine can, it
    /// takes the level down itself at the guest's end of interrupt, before it
    /// raises another, and calls `Domain::callback_gsi_ended`, from a thread
    /// that holds nothing.
    fn set_gsi(&self, gsi: u32, asserted: bool);

    /// Wakes `vcpu` out of [`Outcome::Wait`](super::Outcome::Wait), if it waits.
    fn wake(&self, vcpu: u32);

    /// Makes `vcpu`'s thread leave the guest and call `Domain::before_entry`.
    fn kick(&self, vcpu: u32);

    /// Asks for `Domain::timer_expired(vcpu)` once system time has reached
    /// `deadline_ns`, not before. Replaces the vCPU's earlier deadline; `None`
    /// cancels it.
    fn set_timer(&self, vcpu: u32, deadline_ns: Option<u64>);

    /// The guest placed, moved (`Some`) or removed (`None`) a per-vCPU area.
    ///
    /// # Errors
    /// What the guest is to be told, where the machine can not serve it there.
    fn area_placed(
        &self,
        vcpu: u32,
        area: VcpuArea,
        gpa: Option<GuestAddress>,
    ) -> Result<PageOwner, Errno>;

    /// The guest mapped `shared_info` at `gpa`, took it out (`None`), or changed
    /// its width, which `long_mode` is. The contents are in place; the wallclock
    /// is written after.
    ///
    /// # Errors
    /// As [`Platform::area_placed`].
    fn shared_info_placed(&self, gpa: Option<GuestAddress>, long_mode: bool) -> Result<(), Errno>;

    /// The guest bound `port` as an IPI of `vcpu`, or closed it (`None`). The
    /// machine may deliver what is sent to it by itself, in the 2-level bitmaps.
    fn ipi_port(&self, port: u32, vcpu: Option<u32>) {
        let _ = (port, vcpu);
    }

    /// `VIRQ_TIMER` of `vcpu` comes by `port` from now on, 0 for none. The
    /// machine may serve that vCPU's singleshot timer by itself.
    fn timer_port(&self, vcpu: u32, port: u32) {
        let _ = (vcpu, port);
    }

    /// Whether the machine delivers some events by itself. It must then wake a
    /// waiting vCPU every now and then, which looks for them.
    fn delivers_events(&self) -> bool {
        false
    }

    /// Upcalls of `vcpu` come by `vector` from now on.
    fn upcall_vector(&self, vcpu: u32, vector: u8) {
        let _ = (vcpu, vector);
    }

    /// The guest wants FIFO event channels in place of the 2-level bitmaps.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the machine delivers events by itself, in the latter.
    fn leave_two_levels(&self) -> Result<(), Errno> {
        Ok(())
    }

    /// The guest chose its VM-wide callback.
    ///
    /// # Errors
    /// `EINVAL` where the machine has no such way to interrupt a guest.
    fn callback_via(&self, via: CallbackVia) -> Result<(), Errno>;

    /// Backs one page of guest-physical space that has no RAM behind it, for
    /// the guest to place a hypervisor page there.
    ///
    /// # Errors
    /// `EINVAL` beyond the machine's address space, `ENOMEM` beyond its bound.
    fn back_page(&self, gpa: GuestAddress) -> Result<(), Errno>;

    /// The guest gave up `pages` whole pages from `start` on: their memory may
    /// go back to the host. They must read as zero from now on, also when the
    /// guest asks for them again, for which there is no call.
    fn release_pages(&self, start: GuestAddress, pages: u64);

    /// The control register bits that the guest's CPUs have, for
    /// `VCPUOP_initialise`.
    fn start_limits(&self) -> StartLimits {
        StartLimits::MOST
    }

    /// Raises a non-maskable interrupt at `vcpu`, for `VCPUOP_send_nmi`.
    ///
    /// # Errors
    /// `ENOSYS` where the machine can not.
    fn raise_nmi(&self, vcpu: u32) -> Result<(), Errno> {
        let _ = vcpu;
        Err(Errno::ENOSYS)
    }

    /// Console output: PV console ring, `console_io` and debug writes.
    fn console_output(&self, bytes: &[u8]);
}

/// What a hypercall needs of the vCPU that made it.
pub trait CallingVcpu {
    /// The vCPU's number, its index in `vcpu_info[]`.
    fn id(&self) -> u32;

    /// Translates a linear address by the vCPU's current page tables, which lie
    /// in `memory`; `None` where nothing is mapped.
    fn translate(&mut self, memory: &GuestRam, linear: u64) -> Option<GuestAddress>;
}
