//! The machine: everything wired together, from files to the guest's end.

use std::io::Write;
use std::sync::Arc;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::GuestAddress;
use xen_abi::cpuid::XEN_CPUID_FIRST_LEAF;

use super::boot::{PVH_MSRS, pvh_regs, pvh_sregs};
use super::clock_service::ClockService;
use super::config::{Console, MachineConfig, MachineError, host};
use super::control::{Control, Facts};
use super::devices::PortDevices;
use super::exit::{ExitLatch, ExitReason};
use super::input::{self, RawTerminal};
use super::load::{Loaded, check_cpus, load, make_memory, rewrite_hypercalls};
use super::memory::{CONSOLE_PFN, PAGE_SIZE, XENSTORE_PFN};
use super::migrate::{RamSlot, ram_slots};
use super::output::ConsoleWriter;
use super::parts::{Assembly, Consoles, clock_service, platform, random_uuid, serial_line, stubs};
use super::pause::Pause;
use super::power::PowerState;
use super::quiesce::Quiesce;
use super::save::Savable;
use super::suspend::{SuspendGate, Suspender};
use super::vcpu::{self, Shared};
use crate::clock::SystemTimeLine;
use crate::host::read_realtime;
use crate::kvm::{
    Capabilities, ClockMode, GuardedReport, GuestTsc, HypercallMode, KvmClock, XenVm, XenVmConfig,
    guest_cpuid, share_registers,
};
use crate::pages::GuestRamHandle;
use crate::xen::{Clock, Domain, DomainConfig, MAX_VCPUS, cpuid};

/// What the store calls the guest.
const GUEST_NAME: &str = "guest";

/// What is known of a machine after its end.
#[derive(Clone, Debug)]
pub struct MachineReport {
    /// Why it ended.
    pub exit: ExitReason,
    /// The guest's clock: guest TSC to system time.
    pub line: SystemTimeLine,
    /// Host TSC to guest TSC.
    pub guest_tsc: GuestTsc,
    /// What the guest would take for UTC, by its wallclock page and system time,
    /// less the host's UTC, in nanoseconds; `None` if it mapped no page.
    pub wallclock_error_ns: Option<i128>,
    /// Clock pages written again after their first time, by us.
    pub clock_page_rewrites: u64,
    /// What KVM did to the pages it owned.
    pub guarded: GuardedReport,
    /// How hypercalls arrived.
    pub hypercalls: HypercallMode,
    /// VMCALL and VMMCALL instructions of the kernel that were made port output.
    pub rewritten_sites: usize,
}

/// A machine that is ready to run.
pub struct Machine {
    shared: Arc<Shared>,
    control: Arc<Control>,
    vcpus: Vec<VcpuFd>,
    /// How each vCPU's thread stood, if the guest was saved before.
    saved: Option<Vec<PowerState>>,
    clock: Arc<KvmClock>,
    slots: Arc<[RamSlot]>,
    clock_service: Arc<ClockService>,
    vmclock: bool,
    kvm: Arc<Kvm>,
    tsc_khz: u32,
    memory: u64,
    hypercalls: HypercallMode,
    serves_all_events: bool,
    rewritten_sites: usize,
    input: bool,
    console: Console,
    writers: Vec<ConsoleWriter>,
}

impl Machine {
    /// Makes a machine that prints its console to `sink`.
    ///
    /// # Errors
    /// One line of what is wrong, with the value and the remedy. Nothing is
    /// left behind.
    pub fn new(config: &MachineConfig, sink: Box<dyn Write + Send>) -> Result<Self, MachineError> {
        // What needs no KVM is checked first: its errors are the same everywhere.
        check_cpus(config.cpus, MAX_VCPUS)?;
        let (layout, ram) = make_memory(config.memory)?;
        tracing::debug!("guest memory is mapped");
        let boot = load(&ram, &layout, config)?;
        tracing::debug!("the kernel is loaded");
        let (kvm, caps) = Capabilities::probe(&config.kvm_device)?;
        let caps = config.without.iter().copied().fold(caps, Capabilities::without);
        check_cpus(config.cpus, caps.max_vcpus.min(MAX_VCPUS))?;
        let hypercalls = match config.hypercalls {
            Some(mode) => caps.check_hypercalls(mode).map(|()| mode)?,
            None => caps.pick_hypercalls()?,
        };
        if config.clock == ClockMode::Guarded {
            caps.check_guarded()?;
        }
        let rewritten_sites = match hypercalls {
            HypercallMode::KvmXen => 0,
            HypercallMode::PortIo => rewrite_hypercalls(&ram, &boot, &config.kernel)?,
        };
        let mut vm = XenVm::new(&kvm, &caps, &ram, XenVmConfig { vcpus: config.cpus, hypercalls })?;
        tracing::debug!("the VM is made");
        let slots = ram_slots(&ram);
        let memory = GuestRamHandle::new(ram);

        let (consoles, writers) = Consoles::start(sink, config.console)?;
        // KVM never sees hypercalls by port I/O, so it has nothing to deliver.
        let serves_all_events =
            hypercalls == HypercallMode::PortIo || config.fifo_events == Some(true);
        let platform = platform(
            &vm,
            &memory,
            layout.regions().len(),
            (caps, config.clock, serves_all_events),
            &consoles,
        );
        let domain_config = domain_config(config, &vm, &boot);
        let domain = Arc::new(Domain::new(
            domain_config.clone(),
            memory.clone(),
            Arc::clone(&vm.clock) as Arc<dyn Clock>,
            Arc::clone(&platform) as Arc<dyn crate::xen::Platform>,
        )?);
        domain.attach_console().map_err(|errno| MachineError::Host {
            what: "the console's event channel",
            error: std::io::Error::from_raw_os_error(errno.0),
        })?;
        domain.attach_xenstore(GUEST_NAME).map_err(|errno| MachineError::Host {
            what: "the store",
            error: std::io::Error::from_raw_os_error(errno.0),
        })?;
        set_up_vcpus(&kvm, &vm, &domain_config, &boot)?;
        vm.vcpus.iter_mut().for_each(|fd| share_registers(fd, hypercalls, caps.sync_regs));

        let line = serial_line(&vm)?;
        let devices =
            PortDevices::new(line, consoles.to(Console::Serial), consoles.to(Console::Hvc));
        platform.guarded().before_run(&vm.vm);
        let id = config.vmclock.then(random_uuid);
        let clock_service =
            clock_service(id, &config.time_source, &vm, &domain, &platform, memory)?;
        platform.start(&domain).map_err(host("the timer thread"))?;
        tracing::debug!("ready to run");
        Ok(Self::assemble(Assembly {
            tsc_khz: vm.tsc_khz,
            vm,
            kvm,
            domain,
            platform,
            devices,
            clock_service,
            vmclock: config.vmclock,
            slots,
            saved: None,
            memory: config.memory,
            hypercalls,
            serves_all_events,
            rewritten_sites,
            input: config.input,
            console: config.console,
            writers,
        }))
    }

    /// Puts the parts of a new machine, or of a restored one, together.
    pub(super) fn assemble(parts: Assembly) -> Self {
        let XenVm { vm, vcpus, clock, .. } = parts.vm;
        let DomainConfig { vcpus: cpus, xen_version, .. } = *parts.domain.config();
        let shared = Arc::new(Shared {
            domain: parts.domain,
            platform: parts.platform,
            vm,
            stubs: stubs(parts.hypercalls),
            devices: parts.devices,
            exit: ExitLatch::default(),
            pause: Arc::new(Pause::new(cpus)),
            suspend: SuspendGate::default(),
            quiesce: Quiesce::new(cpus),
        });
        let facts = Facts {
            vcpus: cpus,
            memory_bytes: parts.memory,
            hypercalls: parts.hypercalls,
            xen_version,
        };
        let control = Control::new(Arc::clone(&shared), Arc::clone(&clock), facts);
        let clocks = Arc::clone(&parts.clock_service);
        control.set_clock_reader(Box::new(move || clocks.metrics()));
        Self {
            shared,
            control: Arc::new(control),
            vcpus,
            saved: parts.saved,
            clock,
            slots: parts.slots,
            clock_service: parts.clock_service,
            vmclock: parts.vmclock,
            kvm: Arc::new(parts.kvm),
            tsc_khz: parts.tsc_khz,
            memory: parts.memory,
            hypercalls: parts.hypercalls,
            serves_all_events: parts.serves_all_events,
            rewritten_sites: parts.rewritten_sites,
            input: parts.input,
            console: parts.console,
            writers: parts.writers,
        }
    }

    /// Runs the guest to its end.
    ///
    /// # Errors
    /// Where a thread can not be made; the guest then has not run.
    pub fn run(self) -> Result<MachineReport, MachineError> {
        self.clock_service.start().map_err(host("the clock thread"))?;
        self.control.set_savable(self.savable());
        let mut threads = Vec::new();
        let mut saved = self.saved.unwrap_or_default().into_iter();
        for (id, fd) in (0u32..).zip(self.vcpus) {
            let shared = Arc::clone(&self.shared);
            let saved = saved.next();
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{id}"))
                .spawn(move || vcpu::run(id, fd, saved, &shared));
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    self.shared.end(ExitReason::Failed(error.to_string()));
                    threads.into_iter().for_each(|thread| drop(thread.join()));
                    self.clock_service.stop();
                    return Err(host("a vCPU thread")(error));
                }
            }
        }
        let terminal = self.input.then(RawTerminal::enter);
        if let Some(terminal) = &terminal {
            let raw = terminal.is_raw();
            if let Err(error) = input::spawn(&self.shared, self.console, raw) {
                tracing::warn!(%error, "nothing can be typed into the guest");
            }
        }
        let exit = self.shared.exit.wait();
        for thread in threads {
            // A vCPU that had just gone back into the guest may have missed the
            // first kick's flag; the thread's own check ends it all the same.
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
        self.clock_service.stop();
        self.shared.platform.stop();
        self.writers.into_iter().for_each(ConsoleWriter::finish);
        Ok(MachineReport {
            exit,
            line: self.clock.line(),
            guest_tsc: self.clock.tsc(),
            wallclock_error_ns: wallclock_error(&self.shared.domain, &self.clock),
            clock_page_rewrites: self.shared.domain.clock_page_rewrites(),
            guarded: self.shared.platform.guarded().report(),
            hypercalls: self.hypercalls,
            rewritten_sites: self.rewritten_sites,
        })
    }

    /// VMCALL and VMMCALL instructions of the kernel that were made port output.
    pub fn rewritten_sites(&self) -> usize {
        self.rewritten_sites
    }

    /// What saves this machine while it runs, on another thread.
    pub fn savable(&self) -> Savable {
        Savable {
            shared: Arc::clone(&self.shared),
            clock: Arc::clone(&self.clock),
            clock_service: Arc::clone(&self.clock_service),
            vmclock: self.vmclock,
            kvm: Arc::clone(&self.kvm),
            tsc_khz: self.tsc_khz,
            memory: self.memory,
            hypercalls: self.hypercalls,
            rewritten_sites: self.rewritten_sites,
            serves_all_events: self.serves_all_events,
            console: self.console,
            slots: Arc::clone(&self.slots),
        }
    }

    /// What can be asked of the machine while it runs, from any thread.
    pub fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    /// The guest's clocks, for whoever watches them while it runs.
    pub fn clock_service(&self) -> Arc<ClockService> {
        Arc::clone(&self.clock_service)
    }

    /// Suspends and resumes the guest while it runs. From now on a guest that
    /// suspends itself stands still, and the machine with it.
    pub fn suspender(&self) -> Suspender {
        Suspender::new(&self.shared)
    }

    /// The guest, for whoever watches it while it runs.
    pub fn domain(&self) -> Arc<Domain> {
        Arc::clone(&self.shared.domain)
    }
}

/// Reads the wallclock page as the guest would, and compares it with the host.
pub(super) fn wallclock_error(domain: &Domain, clock: &KvmClock) -> Option<i128> {
    let epoch = domain.wallclock_page()?;
    let host = read_realtime();
    let system_time_ns = clock.line().system_time_ns(clock.tsc().from_host(host.host_tsc));
    Some(i128::try_from(epoch.utc_ns(system_time_ns)).ok()? - host.utc_ns)
}

fn domain_config(config: &MachineConfig, vm: &XenVm, boot: &Loaded) -> DomainConfig {
    DomainConfig {
        vcpus: config.cpus,
        domain_id: 1,
        uuid: random_uuid(),
        xen_version: config.xen_version,
        memory_map: boot.memory_map.clone(),
        fifo_events: config.fifo_events.unwrap_or(true),
        upcall_vector: config.upcall_vector.unwrap_or(config.clock != ClockMode::Guarded),
        host_tsc_khz: vm.tsc_khz,
        console_page: Some(GuestAddress(CONSOLE_PFN * PAGE_SIZE)),
        store_page: Some(GuestAddress(XENSTORE_PFN * PAGE_SIZE)),
        incarnation: 1,
    }
}

/// CPUID, registers and MSRs of every vCPU. The others wait for INIT and SIPI.
fn set_up_vcpus(
    kvm: &Kvm,
    vm: &XenVm,
    config: &DomainConfig,
    boot: &Loaded,
) -> Result<(), MachineError> {
    let count = config.vcpus;
    for (id, fd) in (0u32..).zip(&vm.vcpus) {
        let failed = |what| move |error| MachineError::Vcpu { what, vcpu: id, error };
        let xen = cpuid::leaves(
            config,
            &vm.clock.line(),
            id,
            XEN_CPUID_FIRST_LEAF,
            vm.clock.tsc().offset(),
        );
        let leaves = guest_cpuid(kvm, id, count, &xen).map_err(failed("reading CPUID"))?;
        fd.set_cpuid2(&leaves).map_err(failed("setting CPUID"))?;
        let entries: Vec<kvm_msr_entry> = PVH_MSRS
            .iter()
            .map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() })
            .collect();
        // A software KVM may know none of these; Linux only loses page attributes.
        if let Ok(msrs) = Msrs::from_entries(&entries) {
            fd.set_msrs(&msrs).map_err(failed("setting MSRs"))?;
        }
        if id == 0 {
            let sregs = fd.get_sregs().map_err(failed("reading registers"))?;
            fd.set_sregs(&pvh_sregs(&sregs)).map_err(failed("setting system registers"))?;
            fd.set_regs(&pvh_regs(boot.entry, boot.start_info))
                .map_err(failed("setting registers"))?;
        }
    }
    Ok(())
}
