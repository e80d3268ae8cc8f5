//! One vCPU's thread: into the guest, out again, and what each exit wants.

use std::sync::Arc;

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use xen_abi::sched::{
    SHUTDOWN_CRASH, SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT, SHUTDOWN_SUSPEND, SHUTDOWN_WATCHDOG,
};

use super::devices::{PortDevices, PortEffect};
use super::exit::{ExitLatch, ExitReason};
use super::pause::Pause;
use super::power::{Power, PowerState};
use super::quiesce::Quiesce;
use super::suspend::SuspendGate;
use crate::kvm::{
    HYPERCALL_MSR, HypercallExit, KvmPlatform, PortIoStub, RunMeter, VcpuAccess, accept_msr,
    paging, width,
};
use crate::pages::Width;
use crate::xen::{Domain, Hypercall, HypercallStubs, Outcome, Resumed, Spent};

/// The port that hypercall page stubs write to where KVM does not intercept, or
/// would answer by itself.
/// Nothing of a PC answers there.
pub const HYPERCALL_PORT: u8 = 0xe4;

/// What all vCPU threads of a machine share.
pub struct Shared {
    /// The guest.
    pub domain: Arc<Domain>,
    /// Its machine.
    pub platform: Arc<KvmPlatform>,
    /// The VM.
    pub vm: Arc<VmFd>,
    /// What the stubs of the hypercall page execute.
    pub stubs: HypercallStubs,
    /// Devices behind ports.
    pub devices: PortDevices,
    /// How the machine ends.
    pub exit: ExitLatch,
    /// Where vCPUs stand while somebody holds the machine.
    pub pause: Arc<Pause>,
    /// Where it stands still while the guest is suspended.
    pub suspend: SuspendGate,
    /// Where the vCPUs' threads stop to be saved.
    pub quiesce: Quiesce<VcpuParts>,
}

/// A vCPU on its thread.
pub struct VcpuParts {
    /// KVM's.
    pub fd: VcpuFd,
    /// Whether it runs.
    pub(super) power: Power,
}

impl Shared {
    /// Ends the machine and calls every vCPU out of the guest.
    pub fn end(&self, reason: ExitReason) {
        self.exit.end(reason);
        self.pause.end();
        self.kick_all();
    }

    /// Calls every vCPU out of the guest, or of its wait.
    pub fn kick_all(&self) {
        (0..).map_while(|vcpu| self.platform.kicker(vcpu)).for_each(|kicker| kicker.kick());
        self.pause.nudge();
        self.suspend.nudge();
    }
}

/// Why a vCPU came out, with what must outlive the borrow of its exit.
enum Event {
    Nothing,
    /// It was called out, and KVM has finished what it came out for before.
    Called,
    Hypercall(Hypercall, Arrival),
    HypercallPage(u64),
    End(ExitReason),
}

#[derive(Clone, Copy)]
enum Arrival {
    KvmXen,
    PortIo,
}

/// Runs vCPU `id` on the calling thread until the machine ends. `saved` is how it
/// stood when it was saved, if it was.
pub fn run(id: u32, fd: VcpuFd, saved: Option<PowerState>, shared: &Shared) {
    run_to_end(id, fd, saved, shared);
    shared.quiesce.leave();
}

fn run_to_end(id: u32, mut fd: VcpuFd, saved: Option<PowerState>, shared: &Shared) {
    let Some(kicker) = shared.platform.kicker(id) else { return };
    if let Err(error) = kicker.enter(&mut fd) {
        shared.end(ExitReason::Failed(format!("vCPU {id}: no signal handler: {error}")));
        return;
    }
    let power = match saved {
        Some(state) => Power::restored(id, state),
        None => Power::new(id, shared),
    };
    let mut vcpu = VcpuParts { fd, power };
    let mut meter = RunMeter::of_this_thread(shared.platform.system_time_ns());
    shared.pause.enter();
    let mut settled = true;
    // It called SCHEDOP_shutdown to suspend, and stands behind that.
    let mut suspended_here = false;
    while !shared.exit.is_ending() {
        if shared.pause.is_held() {
            if settled {
                account(id, shared, &mut meter, true);
                let wanted = || shared.quiesce.is_wanted();
                let stayed = shared.pause.pass(wanted, || {
                    account_pause(id, &vcpu.fd, shared, &mut meter);
                    shared.quiesce.park(id, &mut vcpu);
                });
                if stayed {
                    account_pause(id, &vcpu.fd, shared, &mut meter);
                }
                continue;
            }
            // KVM finishes the last exit on the way in, and comes out at once.
            vcpu.fd.set_kvm_immediate_exit(1);
        }
        shared.domain.before_entry(id);
        let mut suspending = false;
        // Set by what no hypercall of this vCPU did: a watchdog, the last down.
        if let Some(reason) = shared.domain.shutdown_reason() {
            suspending = reason == SHUTDOWN_SUSPEND && shared.suspend.is_attended();
            if !suspending {
                shared.end(reason_of(reason));
                break;
            }
            if settled {
                let how = shared.suspend.park(id, &mut vcpu, shared);
                // Time that stood still was neither stolen nor slept.
                let _ = meter.since_last(shared.platform.system_time_ns(), true);
                if std::mem::take(&mut suspended_here)
                    && let Some(how) = how
                    && let Err(error) = PortIoStub::set_result(&mut vcpu.fd, how.answer())
                {
                    let why = format!("vCPU {id}: setting RAX: {error}");
                    shared.end(ExitReason::Failed(why));
                }
                continue;
            }
        }
        if let Err(error) = vcpu.power.before_entry(&mut vcpu.fd, shared) {
            let how = format!("vCPU {id}: KVM refuses its start state: {error}");
            shared.end(ExitReason::Crash(how));
            break;
        }
        let stopping = shared.quiesce.is_wanted();
        if stopping || suspending {
            // Completes the last exit, and executes nothing.
            vcpu.fd.set_kvm_immediate_exit(1);
        } else if let Err(error) = shared.platform.before_entry(id, &vcpu.fd) {
            shared.end(ExitReason::Failed(error.to_string()));
            break;
        }
        let event = enter(id, &mut vcpu.fd, shared);
        settled = matches!(event, Event::Called);
        if stopping || suspending {
            vcpu.fd.set_kvm_immediate_exit(0);
        }
        if let Err(error) = vcpu.power.after_exit(&vcpu.fd, shared) {
            shared.end(ExitReason::Failed(format!("vCPU {id}: KVM_GET_MP_STATE: {error}")));
        }
        account(id, shared, &mut meter, false);
        if shared.platform.guarded().is_active() {
            let guarded = shared.platform.guarded();
            if guarded.after_exit(id, &shared.domain.memory(), &shared.vm) {
                // The epoch was that of the line before.
                shared.domain.refresh_wallclock();
            }
        }
        match event {
            Event::Called if stopping => park(id, &mut vcpu, shared, &mut meter),
            Event::Nothing | Event::Called => {}
            Event::Hypercall(call, arrival) => {
                match hypercall(id, &mut vcpu.fd, shared, &call, arrival) {
                    Served::AtOnce => {}
                    Served::Slept => account(id, shared, &mut meter, true),
                    Served::Suspended => suspended_here = true,
                }
            }
            Event::HypercallPage(value) => match width(&mut vcpu.fd) {
                Ok(width) => {
                    if shared.domain.write_hypercall_msr(value, width, shared.stubs).is_ok() {
                        accept_msr(vcpu.fd.get_kvm_run());
                    }
                }
                Err(error) => shared.end(ExitReason::Failed(format!("vCPU {id}: {error}"))),
            },
            Event::End(reason) => shared.end(located(reason, &vcpu.fd)),
        }
    }
    shared.pause.leave();
    kicker.leave();
}

/// Stands still until the guest goes on; the time is stolen from it.
fn park(id: u32, vcpu: &mut VcpuParts, shared: &Shared, meter: &mut RunMeter) {
    let before_ns = shared.platform.system_time_ns();
    account(id, shared, meter, true);
    shared.quiesce.park(id, vcpu);
    let now_ns = shared.platform.system_time_ns();
    let runnable_ns = now_ns.saturating_sub(before_ns);
    shared.domain.account_runstate(id, Spent { runnable_ns, blocked_ns: 0 });
    *meter = RunMeter::of_this_thread(now_ns);
}

/// Tells the domain what became of the time since the last call. After a wait
/// this is told at once, while the vCPU still counts as blocked.
fn account(id: u32, shared: &Shared, meter: &mut RunMeter, waited: bool) {
    if let Some(spent) = meter.since_last(shared.platform.system_time_ns(), waited) {
        shared.domain.account_runstate(id, spent);
    }
}

/// Tells the domain that the vCPU stood: stolen time, or sleep if it halted.
fn account_pause(id: u32, fd: &VcpuFd, shared: &Shared, meter: &mut RunMeter) {
    let Some(spent) = meter.since_last(shared.platform.system_time_ns(), true) else { return };
    let halted = fd.get_mp_state().is_ok_and(|state| state.mp_state == KVM_MP_STATE_HALTED);
    let spent = match halted {
        true => spent,
        false => Spent { runnable_ns: spent.runnable_ns + spent.blocked_ns, blocked_ns: 0 },
    };
    shared.domain.account_runstate(id, spent);
}

/// Adds to a crash where the guest stood.
fn located(reason: ExitReason, fd: &VcpuFd) -> ExitReason {
    match (reason, fd.get_regs()) {
        (ExitReason::Crash(how), Ok(regs)) => {
            ExitReason::Crash(format!("{how} at RIP {:#x}", regs.rip))
        }
        (reason, _) => reason,
    }
}

fn enter(id: u32, fd: &mut VcpuFd, shared: &Shared) -> Event {
    let crash = |how: &str| Event::End(ExitReason::Crash(format!("{how} on vCPU {id}")));
    match fd.run() {
        Ok(VcpuExit::Unsupported(HypercallExit::REASON)) => {
            match HypercallExit::read(fd.get_kvm_run()) {
                Some(call) => Event::Hypercall(call, Arrival::KvmXen),
                None => Event::Nothing,
            }
        }
        Ok(VcpuExit::IoOut(port, _)) if port == u16::from(HYPERCALL_PORT) => {
            match PortIoStub::read(fd) {
                Ok(call) => Event::Hypercall(call, Arrival::PortIo),
                Err(error) => failed(id, "reading its registers", error),
            }
        }
        Ok(VcpuExit::IoOut(port, data)) => match shared.devices.write(port, data) {
            PortEffect::None => Event::Nothing,
            PortEffect::Poweroff => Event::End(ExitReason::Poweroff),
            PortEffect::Reset => Event::End(ExitReason::Reboot),
        },
        Ok(VcpuExit::IoIn(port, data)) => {
            shared.devices.read(port, data);
            Event::Nothing
        }
        Ok(VcpuExit::MmioRead(_, data)) => {
            data.fill(0xff);
            Event::Nothing
        }
        Ok(VcpuExit::X86Wrmsr(exit)) => {
            // No other MSR comes here; a refused write is a #GP, as on hardware.
            *exit.error = 1;
            match exit.index {
                HYPERCALL_MSR => Event::HypercallPage(exit.data),
                _ => Event::Nothing,
            }
        }
        Ok(VcpuExit::X86Rdmsr(exit)) => {
            *exit.error = 1;
            Event::Nothing
        }
        Ok(VcpuExit::Intr) => Event::Called,
        Ok(VcpuExit::MmioWrite(..) | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => Event::Nothing,
        Ok(VcpuExit::Shutdown) => crash("triple fault"),
        Ok(VcpuExit::SystemEvent(kind, _)) => match kind {
            KVM_SYSTEM_EVENT_SHUTDOWN => Event::End(ExitReason::Poweroff),
            KVM_SYSTEM_EVENT_RESET => Event::End(ExitReason::Reboot),
            KVM_SYSTEM_EVENT_CRASH => crash("crash reported to KVM"),
            kind => crash(&format!("system event {kind}")),
        },
        Ok(VcpuExit::InternalError) => crash("KVM could not emulate an instruction"),
        Ok(VcpuExit::FailEntry(reason, _)) => {
            crash(&format!("entry failed with hardware reason {reason:#x}"))
        }
        Ok(other) => {
            let how = format!("unexpected exit {other:?}");
            crash(&how)
        }
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
            fd.set_kvm_immediate_exit(0);
            Event::Called
        }
        Err(error) => failed(id, "KVM_RUN", error),
    }
}

fn failed(id: u32, what: &str, error: vmm_sys_util::errno::Error) -> Event {
    Event::End(ExitReason::Failed(format!("vCPU {id}: {what}: {error}")))
}

/// What became of a hypercall.
enum Served {
    AtOnce,
    /// The thread slept in it.
    Slept,
    /// The guest suspended itself by it. It has the answer of one that goes on
    /// anew; who resumes it may give it another one.
    Suspended,
}

/// Serves a hypercall.
fn hypercall(
    id: u32,
    fd: &mut VcpuFd,
    shared: &Shared,
    call: &Hypercall,
    arrival: Arrival,
) -> Served {
    let mut served = Served::AtOnce;
    let paging = match paging(fd) {
        Ok(paging) => paging,
        Err(error) => {
            shared.end(ExitReason::Failed(format!("vCPU {id}: reading its registers: {error}")));
            return served;
        }
    };
    let outcome = shared.domain.hypercall(&mut VcpuAccess::new(id, paging), call);
    let value = match outcome {
        Outcome::Return(value) => value,
        Outcome::Yield => {
            std::thread::yield_now();
            0
        }
        Outcome::Wait { deadline_ns } => {
            served = Served::Slept;
            while shared.domain.still_waiting(id)
                && !shared.exit.is_ending()
                && !shared.pause.is_held()
                && !shared.quiesce.is_wanted()
            {
                if !shared.platform.wait(id, deadline_ns) {
                    break;
                }
            }
            0
        }
        Outcome::Shutdown(SHUTDOWN_SUSPEND) if shared.suspend.is_attended() => {
            served = Served::Suspended;
            Resumed::Anew.answer()
        }
        Outcome::Shutdown(reason) => {
            shared.end(reason_of(reason));
            0
        }
    };
    // A 32-bit caller finds its answer in EAX; the upper half is not its own.
    let value = match call.width {
        Width::Bits64 => value,
        Width::Bits32 => value & 0xffff_ffff,
    };
    match arrival {
        Arrival::KvmXen => HypercallExit::set_result(fd.get_kvm_run(), value),
        Arrival::PortIo => {
            if let Err(error) = PortIoStub::set_result(fd, value) {
                shared.end(ExitReason::Failed(format!("vCPU {id}: setting RAX: {error}")));
            }
        }
    }
    served
}

fn reason_of(shutdown: u32) -> ExitReason {
    match shutdown {
        SHUTDOWN_POWEROFF => ExitReason::Poweroff,
        SHUTDOWN_REBOOT => ExitReason::Reboot,
        SHUTDOWN_SUSPEND => ExitReason::Suspend,
        SHUTDOWN_CRASH => ExitReason::Crash("SHUTDOWN_crash".to_owned()),
        SHUTDOWN_WATCHDOG => ExitReason::Crash("SHUTDOWN_watchdog".to_owned()),
        other => ExitReason::Crash(format!("shutdown reason {other}")),
    }
}
