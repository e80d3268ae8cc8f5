//! From a file to a machine that is ready to go on.
//!
//! The order: the file into memory, which takes longest; then the VM with its
//! TSC where it goes on, before anything else of it; the hypervisor; interrupt
//! controllers; vCPUs, TSC deadlines last; Xen's timers.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::{GuestAddress, GuestRegionMmap};
use xen_abi::cpuid::XEN_CPUID_FIRST_LEAF;

use super::clock_service::ClockService;
use super::config::{Console, MachineError, host};
use super::control::{Control, Facts};
use super::devices::PortDevices;
use super::exit::ExitLatch;
use super::load::{check_cpus, make_memory};
use super::machine::{Consoles, Machine, clock_service, platform, random_uuid, serial_line, stubs};
use super::memory::PAGE_SIZE;
use super::migrate::ram_slots;
use super::pause::Pause;
use super::power::PowerState;
use super::quiesce::Quiesce;
use super::save::{MachineState, SerialSection, VcpuSection, VmClockSection};
use super::suspend::SuspendGate;
use super::vcpu::Shared;
use crate::clock::tai::Tai;
use crate::clock::{FrequencyError, TscFrequency};
use crate::host::{Bracketed, PairError, PairSource, TimeSource};
use crate::kvm::{
    Capabilities, ClockMode, HypercallMode, IrqchipState, KvmFeature, PlatformState, RestoredTsc,
    XenVm, XenVmConfig, check_xsave, guest_cpuid, share_registers,
};
use crate::pages::{GuestRam, GuestRamHandle};
use crate::state::{
    FrequencyPlan, HostNow, RestoredTime, Section, StateError, StateReader, StoppedClock, Tag,
    TimeError, TimePolicy, read_pages, tag,
};
use crate::xen::{
    Clock, Domain, DomainState, MAX_VCPUS, RenewError, Resumed, XenstoreState, cpuid,
};

/// Who is told that the guest was restored, after everything of it is there and
/// before it runs: devices that tell the guest.
pub type OnRestored = Arc<dyn Fn(&RestoredTime, &Arc<Domain>) + Send + Sync>;

/// Which guest goes on, and how.
#[derive(Clone)]
pub struct RestoreConfig {
    /// The file.
    pub path: PathBuf,
    /// How its clocks get over the time between.
    pub time: TimePolicy,
    /// KVM's device.
    pub kvm_device: PathBuf,
    /// Does as if KVM lacked these.
    pub without: Vec<KvmFeature>,
    /// The console that is shown; `None` for the one that was.
    pub console: Option<Console>,
    /// Whether standard input is typed into it.
    pub input: bool,
    /// Who is told.
    pub on_restored: Vec<OnRestored>,
}

/// Why this host's clock can not be read.
#[derive(Debug, thiserror::Error)]
pub enum HostTimeError {
    /// The TSC's frequency is none.
    #[error(transparent)]
    Frequency(#[from] FrequencyError),
    /// The clock.
    #[error(transparent)]
    Pair(#[from] PairError),
}

/// Readings taken for one pair.
const BRACKETS: u32 = 20;

/// This host's TSC and TAI now. `host_khz` only weighs how long a reading took.
pub(super) fn host_now(host_khz: u32) -> Result<HostNow, HostTimeError> {
    let frequency = TscFrequency::from_khz(u64::from(host_khz))?;
    let reading = Bracketed::new(frequency, BRACKETS).read()?;
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Ok(HostNow {
        host_tsc: reading.host_tsc,
        tai: reading.tai,
        tai_known: reading.sync.tai_offset.is_known(),
        pair_error_ns: reading.error_ns,
        host_error_ns: reading.sync.maxerror_ns,
        boot_id: boot_id.trim().to_owned(),
    })
}

/// A saved guest, read whole: its memory, and everything else of it.
pub struct SavedGuest {
    machine: MachineState,
    ram: GuestRam,
    /// Regions that it began with.
    ram_regions: usize,
    domain: DomainState,
    vcpus: Vec<VcpuSection>,
    irqchip: IrqchipState,
    platform: PlatformState,
    serial: SerialSection,
    vmclock: Option<VmClockSection>,
    store: Option<XenstoreState>,
    clock: StoppedClock,
}

impl std::fmt::Debug for SavedGuest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SavedGuest").field("machine", &self.machine).finish_non_exhaustive()
    }
}

/// A section that there is once.
struct Once<T>(Tag, Option<T>);

impl<T: serde::de::DeserializeOwned> Once<T> {
    fn take(&mut self, section: &Section) -> Result<(), StateError> {
        if self.1.is_some() || section.index != 0 {
            return Err(StateError::Misplaced { tag: self.0, index: section.index });
        }
        self.1 = Some(section.value()?);
        Ok(())
    }

    fn get(self) -> Result<T, StateError> {
        self.1.ok_or(StateError::Missing { tag: self.0 })
    }
}

impl SavedGuest {
    /// Opens and reads a file.
    ///
    /// # Errors
    /// [`StateError`], or what memory the host has not got.
    pub fn open(path: &Path) -> Result<Self, MachineError> {
        let open = |error| StateError::Open { path: path.to_owned(), error };
        let file = File::open(path).map_err(open)?;
        Self::read(BufReader::with_capacity(1 << 20, file))
    }

    /// Reads a stream to its end.
    ///
    /// # Errors
    /// As [`SavedGuest::open`].
    pub fn read(from: impl Read) -> Result<Self, MachineError> {
        let mut reader = StateReader::new(from)?;
        let saved = Self::read_from(&mut reader)?;
        reader.finish()?;
        Ok(saved)
    }

    /// Reads the sections of a stream that may go on after its end.
    pub(super) fn read_from(reader: &mut StateReader<impl Read>) -> Result<Self, MachineError> {
        let first = reader.next_section()?.ok_or(StateError::Missing { tag: tag::MACHINE })?;
        if first.tag != tag::MACHINE {
            return Err(StateError::Missing { tag: tag::MACHINE }.into());
        }
        let machine: MachineState = first.value()?;
        check_cpus(machine.cpus, MAX_VCPUS)?;
        let (ram, ram_regions) = memory_of(&machine)?;
        let mut domain = Once(tag::DOMAIN, None);
        let mut irqchip = Once(tag::IRQCHIP, None);
        let mut platform = Once(tag::PLATFORM, None);
        let mut serial = Once(tag::SERIAL, None);
        let mut vmclock = Once(tag::VMCLOCK, None);
        let mut store = Once(tag::XENSTORE, None);
        let mut clock = Once(tag::CLOCK, None);
        let mut vcpus = Vec::new();
        while let Some(section) = reader.next_section()? {
            match section.tag {
                tag::PAGES => read_pages(&section, &ram)?,
                tag::DOMAIN => domain.take(&section)?,
                tag::IRQCHIP => irqchip.take(&section)?,
                tag::PLATFORM => platform.take(&section)?,
                tag::SERIAL => serial.take(&section)?,
                tag::VMCLOCK => vmclock.take(&section)?,
                tag::XENSTORE => store.take(&section)?,
                tag::CLOCK => clock.take(&section)?,
                tag::VCPU if section.index as usize == vcpus.len() => vcpus.push(section.value()?),
                tag::VCPU | tag::MACHINE => {
                    let (tag, index) = (section.tag, section.index);
                    return Err(StateError::Misplaced { tag, index }.into());
                }
                tag if tag.is_critical() => return Err(StateError::Unknown { tag }.into()),
                tag => tracing::debug!(%tag, "a section that is not known is left out"),
            }
        }
        if vcpus.len() != machine.cpus as usize {
            return Err(StateError::Missing { tag: tag::VCPU }.into());
        }
        let domain: DomainState = domain.get()?;
        if domain.config.vcpus != machine.cpus {
            let why = format!("it has {} vCPUs, the machine {}", domain.config.vcpus, machine.cpus);
            return Err(StateError::Contents { tag: tag::DOMAIN, why }.into());
        }
        Ok(Self {
            machine,
            ram,
            ram_regions,
            domain,
            vcpus,
            irqchip: irqchip.get()?,
            platform: platform.get()?,
            serial: serial.get()?,
            vmclock: vmclock.1,
            store: store.1,
            clock: clock.get()?,
        })
    }

    /// What the machine is made of.
    pub fn machine(&self) -> &MachineState {
        &self.machine
    }

    /// The emulated hypervisor.
    pub fn domain(&self) -> &DomainState {
        &self.domain
    }

    /// The clock at which it stopped.
    pub fn clock(&self) -> &StoppedClock {
        &self.clock
    }
}

/// The memory that a machine had: as it began, and the pages that were put
/// beyond it since.
fn memory_of(machine: &MachineState) -> Result<(GuestRam, usize), MachineError> {
    let (layout, mut ram) = make_memory(machine.memory)?;
    let first: Vec<_> = layout.regions().into_iter().map(|(at, len)| (at.0, len as u64)).collect();
    let refused = |why: String| StateError::Contents { tag: tag::MACHINE, why };
    if let Some((at, _)) = first.iter().find(|region| !machine.regions.contains(region)) {
        return Err(refused(format!("it has no memory at {at:#x}")).into());
    }
    for (at, len) in machine.regions.iter().filter(|region| !first.contains(region)) {
        let page = *len == PAGE_SIZE && at % PAGE_SIZE == 0;
        let size = usize::try_from(PAGE_SIZE).ok().filter(|_| page);
        let region =
            size.and_then(|size| GuestRegionMmap::from_range(GuestAddress(*at), size, None).ok());
        let grown = region.and_then(|region| ram.insert_region(Arc::new(region)).ok());
        ram = grown.ok_or_else(|| refused(format!("no memory can be at {at:#x}+{len:#x}")))?;
    }
    Ok((ram, first.len()))
}

impl Machine {
    /// Makes the machine of a saved guest, ready to go on, and says how its time
    /// does.
    ///
    /// # Errors
    /// One line of what is wrong; nothing is left behind, and the file is as it
    /// was.
    pub fn restore(
        config: &RestoreConfig,
        sink: Box<dyn Write + Send>,
    ) -> Result<(Self, RestoredTime), MachineError> {
        let saved = SavedGuest::open(&config.path)?;
        tracing::debug!("the saved guest is read");
        Self::go_on(saved, config, sink)
    }

    /// As [`Machine::restore`], with a guest that was read already; the path is
    /// not looked at.
    ///
    /// # Errors
    /// As [`Machine::restore`].
    pub fn go_on(
        saved: SavedGuest,
        config: &RestoreConfig,
        sink: Box<dyn Write + Send>,
    ) -> Result<(Self, RestoredTime), MachineError> {
        let (kvm, caps) = Capabilities::probe(&config.kvm_device)?;
        let caps = config.without.iter().copied().fold(caps, Capabilities::without);
        check_cpus(saved.machine.cpus, caps.max_vcpus.min(MAX_VCPUS))?;
        let port_io = saved.machine.port_io;
        let hypercalls = if port_io { HypercallMode::PortIo } else { HypercallMode::KvmXen };
        caps.check_hypercalls(hypercalls)?;
        let host_khz = host_khz(&kvm)?;
        let (tsc, time) = restored_tsc(&saved.clock, config.time, &caps, host_khz)?;
        let vm_config = XenVmConfig { vcpus: saved.machine.cpus, hypercalls };
        let mut vm = XenVm::restored(&kvm, &caps, &saved.ram, vm_config, &tsc)?;
        check_xsave(&vm.vm)?;
        let slots = ram_slots(&saved.ram);
        let memory = GuestRamHandle::new(saved.ram);
        let guest_memory = memory.clone();
        let shown = config.console.unwrap_or(match saved.machine.console {
            0 => Console::Serial,
            1 => Console::Hvc,
            _ => Console::None,
        });
        let (consoles, writers) = Consoles::start(sink, shown)?;
        let serves_all = saved.machine.serves_all_events;
        // Nobody else may come to own its clock pages.
        let how = (caps, ClockMode::Owned, serves_all);
        let platform = platform(&vm, &memory, saved.ram_regions, how, &consoles);
        let domain_config = saved.domain.config.config(host_khz, time.incarnation);
        let domain = Arc::new(Domain::restore(
            domain_config,
            memory,
            Arc::clone(&vm.clock) as Arc<dyn Clock>,
            Arc::clone(&platform) as Arc<dyn crate::xen::Platform>,
            &saved.domain,
        )?);
        if !platform.restore(&saved.platform) {
            let why = "it is that of another number of vCPUs".to_owned();
            return Err(StateError::Contents { tag: tag::PLATFORM, why }.into());
        }
        let failed = |what| {
            move |error: vmm_sys_util::errno::Error| {
                host(what)(std::io::Error::from_raw_os_error(error.errno()))
            }
        };
        saved.irqchip.write(&vm.vm).map_err(failed("setting the interrupt controllers"))?;
        restore_vcpus(&kvm, &vm, &domain, &saved.vcpus)?;
        vm.vcpus.iter_mut().for_each(|fd| share_registers(fd, hypercalls, caps.sync_regs));
        let line = serial_line(&vm)?;
        let (serial, hvc) = (consoles.to(Console::Serial), consoles.to(Console::Hvc));
        let devices = PortDevices::restored(line, serial, hvc, saved.serial)?;
        let vmclock = saved.machine.vmclock;
        let clock_service =
            clock_service(vmclock, &TimeSource::Auto, &vm, &domain, &platform, guest_memory)?;
        if let Some(before) = saved.vmclock {
            go_beyond(&clock_service, before)?;
        }
        platform.start(&domain).map_err(host("the timer thread"))?;
        domain.reattach_console()?;
        if let Some(store) = &saved.store {
            domain.reattach_xenstore(store)?;
        }
        // After the TSC and the local APICs, to which they are delivered.
        match domain.suspended_since_ns() {
            Some(since_ns) => {
                let now_ns = || vm.clock.system_time_ns();
                go_on_anew(&domain, &saved.clock, since_ns, host_khz, now_ns)?;
            }
            // What the guest's clock shows since the stop it did not run: all of the gap
            // with advance, what the restore itself took with freeze.
            None => {
                domain.go_on(vm.clock.system_time_ns().saturating_sub(stopped_ns(&saved.clock)?));
            }
        }
        for tell in &config.on_restored {
            tell(&time, &domain);
        }
        let XenVm { vm, vcpus, clock, .. } = vm;
        let since_stop_ns = clock.system_time_ns().saturating_sub(stopped_ns(&saved.clock)?);
        tracing::info!(
            since_stop_ns,
            away_ns = %time.away_ns, bridge = ?time.bridge, error_ns = time.error_ns,
            incarnation = time.incarnation, tsc_offset = clock.tsc().offset(),
            "the guest goes on"
        );
        let power = |vcpu: &VcpuSection| PowerState {
            running: vcpu.running,
            stopped_in: vcpu.stopped_in,
            init_told: vcpu.init_told,
        };
        let exit = ExitLatch::default();
        let quiesce = Quiesce::new(saved.machine.cpus);
        let stubs = stubs(hypercalls);
        let pause = Arc::new(Pause::new(saved.machine.cpus));
        let suspend = SuspendGate::default();
        let shared = Arc::new(Shared {
            domain,
            platform,
            vm,
            stubs,
            devices,
            exit,
            pause,
            suspend,
            quiesce,
        });
        let facts = Facts {
            vcpus: saved.machine.cpus,
            memory_bytes: saved.machine.memory,
            hypercalls,
            xen_version: saved.domain.config.xen_version,
        };
        let control = Control::new(Arc::clone(&shared), Arc::clone(&clock), facts);
        let clocks = Arc::clone(&clock_service);
        control.set_clock_reader(Box::new(move || clocks.metrics()));
        let control = Arc::new(control);
        let machine = Self {
            shared,
            control,
            clock_service,
            vmclock,
            vcpus,
            saved: Some(saved.vcpus.iter().map(power).collect()),
            clock,
            slots,
            kvm: Arc::new(kvm),
            tsc_khz: saved.clock.tsc_khz,
            memory: saved.machine.memory,
            hypercalls,
            serves_all_events: serves_all,
            rewritten_sites: usize::try_from(saved.machine.rewritten_sites).unwrap_or(0),
            input: config.input,
            console: shown,
            writers,
        };
        Ok((machine, time))
    }
}

/// The node in which a guest that suspended itself finds for how long it did not
/// run, ns by the hosts' clocks, as a decimal number.
pub const GAP_NODE: &str = "data/kvm-xen/gap_ns";

/// A guest that suspended itself goes on in a domain made anew, and is told how
/// long that was. The answer of its call, 0, is in its registers.
fn go_on_anew(
    domain: &Domain,
    clock: &StoppedClock,
    since_ns: u64,
    host_khz: u32,
    system_time_ns: impl Fn() -> u64,
) -> Result<(), MachineError> {
    let now = host_now(host_khz)?;
    let counted_ns = i128::from(system_time_ns().saturating_sub(stopped_ns(clock)?));
    let before_ns = i128::from(stopped_ns(clock)?.saturating_sub(since_ns));
    let away_ns = Tai::from_units(now.tai.since(Tai::from_units(clock.tai))).ns_floor();
    let gap_ns = before_ns.saturating_add(away_ns).max(0);
    if clock.tai_known == now.tai_known {
        if let Err(errno) = domain.store_write(GAP_NODE, gap_ns.to_string().as_bytes()) {
            tracing::warn!(%errno, "the guest is not told how long it was suspended");
        }
    } else {
        tracing::warn!("one host does not know TAI - UTC: the guest is not told of the gap");
    }
    let failed = |error: RenewError| {
        host("the suspended guest's going on")(std::io::Error::other(error.to_string()))
    };
    domain.resume(Resumed::Anew).map_err(failed)?;
    (0..domain.config().vcpus).for_each(|vcpu| domain.vcpu_resumed(vcpu));
    // What the guest's TSC did not count of the gap.
    let stood_ns = away_ns.saturating_sub(counted_ns);
    tracing::info!(%gap_ns, %stood_ns, "the guest was suspended, and goes on anew");
    Ok(())
}

/// Brings disruption marker and generation beyond what the guest has seen: it is
/// another copy of itself, on a counter that was moved.
fn go_beyond(service: &ClockService, before: VmClockSection) -> Result<(), MachineError> {
    /// A guest has seen fewer restores and migrations than this.
    const MOST: u32 = 1 << 16;
    for _ in 0..MOST {
        service.new_generation(random_uuid()).map_err(|error| {
            host("the VM generation's page")(std::io::Error::other(error.to_string()))
        })?;
        let beyond = service.markers().is_none_or(|(marker, generation)| {
            marker > before.disruption_marker && generation > before.generation
        });
        if beyond {
            break;
        }
    }
    Ok(())
}

/// The frequency that this host gives its guests, kHz.
fn host_khz(kvm: &Kvm) -> Result<u32, MachineError> {
    let failed = |error: vmm_sys_util::errno::Error| {
        host("reading the TSC's frequency")(std::io::Error::from_raw_os_error(error.errno()))
    };
    let vm = kvm.create_vm().map_err(failed)?;
    let vcpu: VcpuFd = vm.create_vcpu(0).map_err(failed)?;
    vcpu.get_tsc_khz().map_err(failed)
}

/// How the guest's TSC and clock go on here.
fn restored_tsc(
    clock: &StoppedClock,
    policy: TimePolicy,
    caps: &Capabilities,
    host_khz: u32,
) -> Result<(RestoredTsc, RestoredTime), MachineError> {
    let bits = caps.tsc_scaling.then(|| {
        let vendor = std::arch::x86_64::__cpuid(0).ebx.to_le_bytes();
        FrequencyPlan::frac_bits(matches!(&vendor, b"Auth" | b"Hygo"))
    });
    let plan = FrequencyPlan::new(clock.tsc_khz, host_khz, bits)?;
    if let FrequencyPlan::Host { off_ppb } = plan
        && off_ppb != 0
    {
        tracing::warn!(
            guest_khz = clock.tsc_khz,
            host_khz,
            off_ppb,
            "the guest's TSC runs at this host's frequency, near its own"
        );
    }
    let time = clock.restart(policy, &host_now(host_khz)?)?;
    let khz = matches!(plan, FrequencyPlan::Scaled(_)).then_some(clock.tsc_khz);
    let tsc = RestoredTsc { khz, scaling: plan.scaling(), start: time.start, line: clock.line()? };
    Ok((tsc, time))
}

/// System time when the guest stopped.
fn stopped_ns(clock: &StoppedClock) -> Result<u64, TimeError> {
    Ok(clock.line()?.system_time_ns(clock.guest_tsc))
}

/// CPUID, with what Xen says of the new place, then registers.
fn restore_vcpus(
    kvm: &Kvm,
    vm: &XenVm,
    domain: &Domain,
    saved: &[VcpuSection],
) -> Result<(), MachineError> {
    let (config, count) = (domain.config(), domain.config().vcpus);
    let (line, offset) = (vm.clock.line(), vm.clock.tsc().offset());
    for ((id, fd), section) in (0u32..).zip(&vm.vcpus).zip(saved) {
        let xen = cpuid::leaves(config, &line, id, XEN_CPUID_FIRST_LEAF, offset);
        let failed = |error| MachineError::Vcpu { what: "reading CPUID", vcpu: id, error };
        let leaves = guest_cpuid(kvm, id, count, &xen).map_err(failed)?;
        section.registers.set_cpuid(fd, id, &leaves)?;
        section.registers.write(fd, id)?;
    }
    Ok(())
}
