//! From a running machine to a file, and what is in each section.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vm_superio::serial::SerialState;

use super::clock_service::ClockService;
use super::config::Console;
use super::handover::{Asked, Handover, HandoverMode, NoHandover};
use super::migrate::RamSlot;
use super::power::PowerState;
use super::quiesce::{Job, NotStopped};
use super::restore::{HostTimeError, host_now};
use super::vcpu::{Shared, VcpuParts};
use crate::clock::TscFrequency;
use crate::host::host_tsc;
use crate::kvm::{
    HypercallMode, IrqchipState, KvmClock, VcpuRegisters, VcpuStateError, check_xsave, saved_msrs,
    serve_requests,
};
use crate::state::{AtomicFile, StateError, StateWriter, StoppedClock, tag, write_memory};
use crate::vmclock::Seen;
use crate::xen::{Clock, DomainState, RestoreError};

/// How long the vCPUs have to stop. A guest that prints to a console that nobody
/// reads may be held up.
pub(super) const STOP_WITHIN: Duration = Duration::from_secs(10);

/// The machine: the first section, `MACH`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// The program that saved it, for people.
    pub program: String,
    /// RAM in bytes.
    pub memory: u64,
    /// vCPUs.
    pub cpus: u32,
    /// Regions of guest memory: address and bytes.
    pub regions: Vec<(u64, u64)>,
    /// Hypercalls arrive by port I/O.
    pub port_io: bool,
    /// Instructions of the kernel that were rewritten for that.
    pub rewritten_sites: u64,
    /// `Machine`'s choice of event delivery: all of it is served here.
    pub serves_all_events: bool,
    /// 0 serial, 1 hvc, 2 none.
    pub console: u8,
    /// It has a VMClock and a VM generation device.
    #[serde(default)]
    pub vmclock: bool,
}

/// The VMClock device: section `VMCL`, where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmClockSection {
    /// The disruption marker of the page.
    pub disruption_marker: u64,
    /// The generation counter of the page.
    pub generation: u64,
    /// What its moves so far add to the bound, ns.
    #[serde(default)]
    pub moves_error_ns: u64,
}

impl From<Seen> for VmClockSection {
    fn from(Seen { disruption_marker, generation, moves_error_ns }: Seen) -> Self {
        Self { disruption_marker, generation, moves_error_ns }
    }
}

impl From<VmClockSection> for Seen {
    fn from(section: VmClockSection) -> Self {
        let VmClockSection { disruption_marker, generation, moves_error_ns } = section;
        Self { disruption_marker, generation, moves_error_ns }
    }
}

/// A vCPU: section `VCPU` of its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuSection {
    /// KVM's side.
    pub registers: VcpuRegisters,
    /// Its thread lets it run.
    pub running: bool,
    /// `KVM_MP_STATE_*` in which it went down.
    pub stopped_in: u32,
    /// The domain knows of the INIT that it stands at.
    #[serde(default)]
    pub init_told: bool,
}

/// The serial port: section `UART`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialSection {
    /// Registers: divisor low and high, interrupt enable and identification,
    /// line control and status, modem control and status, scratch.
    pub registers: [u8; 9],
    /// Typed and not read yet.
    pub input: Vec<u8>,
}

impl From<SerialState> for SerialSection {
    fn from(state: SerialState) -> Self {
        Self {
            registers: [
                state.baud_divisor_low,
                state.baud_divisor_high,
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
            input: state.in_buffer,
        }
    }
}

impl From<SerialSection> for SerialState {
    fn from(section: SerialSection) -> Self {
        let [low, high, enable, identification, line, status, modem, modem_status, scratch] =
            section.registers;
        Self {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control: line,
            line_status: status,
            modem_control: modem,
            modem_status,
            scratch,
            in_buffer: section.input,
        }
    }
}

/// Why a machine could not be saved. It goes on.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The vCPUs.
    #[error("cannot save: {0}")]
    Stop(#[from] NotStopped),
    /// The file.
    #[error("cannot save: {0}")]
    State(#[from] StateError),
    /// The emulated hypervisor.
    #[error("cannot save: {0}")]
    Domain(#[from] RestoreError),
    /// A vCPU.
    #[error("cannot save: {0}")]
    Vcpu(#[from] VcpuStateError),
    /// KVM.
    #[error("cannot save: {call} failed: {error}")]
    Call {
        /// The call.
        call: &'static str,
        /// What KVM said.
        error: vmm_sys_util::errno::Error,
    },
    /// The host's clock.
    #[error("cannot save: {0}")]
    Time(#[from] HostTimeError),
    /// A handover was demanded.
    #[error("cannot save: {0}")]
    Handover(#[from] NoHandover),
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaveReport {
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of it that are not guest memory.
    pub beyond_memory: u64,
    /// Pages of guest memory that were not zero.
    pub pages: u64,
    /// How long the guest stood still.
    pub stopped_for: Duration,
    /// Guest TSC after the last instruction.
    pub guest_tsc: u64,
    /// Whether the guest gathered its vCPUs for it.
    pub handover: Handover,
}

/// What of a machine does not change, for its saving.
pub struct Savable {
    /// What its threads share.
    pub shared: Arc<Shared>,
    /// Its clock.
    pub clock: Arc<KvmClock>,
    /// What publishes its clock.
    pub clock_service: Arc<ClockService>,
    /// It has a VMClock and a VM generation device.
    pub vmclock: bool,
    /// Its KVM, for the list of MSRs.
    pub kvm: Arc<kvm_ioctls::Kvm>,
    /// The guest's frequency, kHz.
    pub tsc_khz: u32,
    /// RAM in bytes.
    pub memory: u64,
    /// How hypercalls arrive.
    pub hypercalls: HypercallMode,
    /// Instructions of the kernel that were rewritten.
    pub rewritten_sites: usize,
    /// All events are served here.
    pub serves_all_events: bool,
    /// Which console is shown.
    pub console: Console,
    /// KVM's slots of the memory that it began with.
    pub slots: Arc<[RamSlot]>,
}

/// What is small of a machine, read while it stands still.
pub(super) struct Small {
    domain: DomainState,
    irqchip: IrqchipState,
    vmclock: Option<VmClockSection>,
    pub(super) stopped: StoppedClock,
}

impl Savable {
    /// Asks the guest for a handover as `handover` says, stops it, writes it to
    /// `path` whole or not at all, and then does `and_then` before it goes on:
    /// nothing, or end it.
    ///
    /// # Errors
    /// [`SaveError`]: what was at `path` is as it was, and the guest goes on.
    pub fn save(
        &self,
        path: &Path,
        handover: HandoverMode,
        and_then: impl FnOnce(),
    ) -> Result<SaveReport, SaveError> {
        // What can go wrong before the guest is stopped does.
        let file = AtomicFile::create(path)?;
        check_xsave(&self.shared.vm)?;
        let indices = saved_msrs(&self.kvm).map_err(call("KVM_GET_MSR_INDEX_LIST"))?;
        let asked = Asked::ask(&self.shared, handover)?;
        let quiesce = &self.shared.quiesce;
        let kick = || self.shared.kick_all();
        let saved = quiesce.stopped(STOP_WITHIN, kick, |on_each| {
            let began = asked.since.unwrap_or_else(Instant::now);
            self.shared.platform.hold_timers();
            let sections = self.vcpus(on_each, &indices);
            let vmclock = self.clock_service.seen().map(VmClockSection::from);
            let saved = sections.and_then(|vcpus| {
                self.clock_service.while_still(|| self.write(file, &vcpus, vmclock, began))
            });
            if saved.is_ok() {
                and_then();
            }
            self.shared.platform.release_timers();
            saved
        });
        // A gathered guest that goes on here is let go now.
        Ok(SaveReport { handover: asked.outcome, ..saved?? })
    }

    /// Has each vCPU's thread read its vCPU.
    pub(super) fn vcpus(
        &self,
        on_each: &dyn Fn(Job<VcpuParts>),
        indices: &[u32],
    ) -> Result<Vec<VcpuSection>, SaveError> {
        // A timer of a local APIC that expired while its vCPU stood still is kept
        // by KVM where nobody can read it, until the vCPU goes in.
        on_each(Arc::new(|id, vcpu: &mut VcpuParts| {
            if let Err(error) = serve_requests(&mut vcpu.fd) {
                tracing::debug!(vcpu = id, %error, "a pending local APIC timer may be lost");
            }
        }));
        let read = Arc::new(Mutex::new(Vec::new()));
        let (to, indices) = (Arc::clone(&read), indices.to_vec());
        on_each(Arc::new(move |id, vcpu: &mut VcpuParts| {
            let registers = VcpuRegisters::read(&vcpu.fd, id, &indices);
            let PowerState { running, stopped_in, init_told } = vcpu.power.snapshot();
            let section = registers.map(|registers| VcpuSection {
                registers,
                running,
                stopped_in,
                init_told,
            });
            to.lock().unwrap_or_else(PoisonError::into_inner).push((id, section));
        }));
        let mut read = std::mem::take(&mut *read.lock().unwrap_or_else(PoisonError::into_inner));
        read.sort_by_key(|(id, _)| *id);
        read.into_iter().map(|(_, section)| section.map_err(SaveError::from)).collect()
    }

    /// Everything, in the order of a stream: the machine, its memory, then what
    /// is small, the clock last.
    fn write(
        &self,
        file: AtomicFile,
        vcpus: &[VcpuSection],
        vmclock: Option<VmClockSection>,
        began: Instant,
    ) -> Result<SaveReport, SaveError> {
        let small = self.small(vmclock)?;
        let memory = self.shared.domain.memory();
        let mut writer = StateWriter::new(BufWriter::with_capacity(1 << 20, file))?;
        writer.value(tag::MACHINE, 0, &self.machine(&memory))?;
        let pages = write_memory(&mut writer, &memory)?;
        self.write_small(&mut writer, vcpus, &small)?;
        let (mut buffered, bytes, page_bytes) = writer.finish()?;
        let flushed = buffered.flush().and_then(|()| buffered.into_inner().map_err(Into::into));
        let what = "writing the state";
        flushed.map_err(|error| StateError::Io { what, error })?.commit()?;
        Ok(SaveReport {
            bytes,
            beyond_memory: bytes - page_bytes,
            pages,
            stopped_for: began.elapsed(),
            guest_tsc: small.stopped.guest_tsc,
            handover: Handover::Off,
        })
    }

    /// What is read of a machine that stands still, beside memory and vCPUs.
    pub(super) fn small(&self, vmclock: Option<VmClockSection>) -> Result<Small, SaveError> {
        let stopped = self.stopped_clock()?;
        let domain = self.shared.domain.snapshot()?;
        let irqchip = IrqchipState::read(&self.shared.vm).map_err(call("KVM_GET_IRQCHIP"))?;
        Ok(Small { domain, irqchip, vmclock, stopped })
    }

    /// Everything but the machine and its memory, the clock last.
    pub(super) fn write_small<W: Write>(
        &self,
        writer: &mut StateWriter<W>,
        vcpus: &[VcpuSection],
        small: &Small,
    ) -> Result<(), SaveError> {
        writer.value(tag::DOMAIN, 0, &small.domain)?;
        for (id, vcpu) in (0u32..).zip(vcpus) {
            writer.value(tag::VCPU, id, vcpu)?;
        }
        writer.value(tag::IRQCHIP, 0, &small.irqchip)?;
        writer.value(tag::PLATFORM, 0, &self.shared.platform.snapshot())?;
        writer.value(tag::SERIAL, 0, &self.shared.devices.snapshot())?;
        if self.shared.domain.config().store_page.is_some() {
            writer.value(tag::XENSTORE, 0, &self.shared.domain.xenstore_state())?;
        }
        // One who does not know it would leave a gathered guest waiting for ever.
        if let Some(handover) = self.shared.domain.snapshot_handover() {
            writer.value(tag::HANDOVER, 0, &handover)?;
        }
        if let Some(vmclock) = &small.vmclock {
            writer.value(tag::VMCLOCK, 0, vmclock)?;
        }
        writer.value(tag::CLOCK, 0, &small.stopped)?;
        Ok(())
    }

    pub(super) fn machine(&self, memory: &crate::pages::GuestRam) -> MachineState {
        MachineState {
            program: concat!("kvm-xen ", env!("CARGO_PKG_VERSION")).to_owned(),
            memory: self.memory,
            cpus: self.shared.domain.config().vcpus,
            regions: memory
                .iter()
                .map(|region| (region.start_addr().raw_value(), region.len()))
                .collect(),
            port_io: self.hypercalls == HypercallMode::PortIo,
            rewritten_sites: self.rewritten_sites as u64,
            serves_all_events: self.serves_all_events,
            console: match self.console {
                Console::Serial => 0,
                Console::Hvc => 1,
                Console::None => 2,
            },
            vmclock: self.vmclock,
        }
    }

    /// The moment: no vCPU executes anything any more.
    fn stopped_clock(&self) -> Result<StoppedClock, SaveError> {
        let guest_tsc = self.clock.tsc().from_host(host_tsc());
        let line = self.clock.line();
        let frequency: TscFrequency = line.frequency();
        let now = host_now(self.tsc_khz)?;
        Ok(StoppedClock {
            frequency_num: frequency.num(),
            frequency_den: frequency.den(),
            base_tsc: line.base_tsc(),
            base_system_time_ns: line.base_system_time_ns(),
            mul: line.mul(),
            shift: line.shift(),
            tsc_khz: self.tsc_khz,
            guest_tsc,
            host_tsc: now.host_tsc,
            pair_guest_tsc: self.clock.tsc().from_host(now.host_tsc),
            tai: now.tai.units(),
            tai_known: now.tai_known,
            pair_error_ns: now.pair_error_ns,
            host_error_ns: now.host_error_ns,
            boot_id: now.boot_id,
            suspended: self.shared.domain.is_suspended(),
            incarnation: self.shared.domain.config().incarnation,
        })
    }
}

pub(super) fn call(call: &'static str) -> impl FnOnce(vmm_sys_util::errno::Error) -> SaveError {
    move |error| SaveError::Call { call, error }
}
