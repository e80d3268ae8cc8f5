//! The machine: everything wired together, from files to the guest's end.

use std::io::{Read, Write};
use std::sync::Arc;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;
use xen_abi::cpuid::XEN_CPUID_FIRST_LEAF;
use xen_abi::errno::Errno;

use super::acpi;
use super::boot::{PVH_MSRS, pvh_regs, pvh_sregs};
use super::config::{Console, MachineConfig, MachineError, host};
use super::devices::PortDevices;
use super::exit::{ExitLatch, ExitReason};
use super::input::{self, RawTerminal};
use super::load::{Loaded, check_cpus, load, make_memory, rewrite_hypercalls};
use super::memory::{CONSOLE_PFN, PAGE_SIZE};
use super::output::{ConsoleOutput, ConsoleWriter};
use super::vcpu::{self, Shared};
use crate::clock::SystemTimeLine;
use crate::host::read_realtime;
use crate::kvm::{
    Capabilities, ClockMode, GuardedReport, GuestTsc, HypercallMode, KvmClock, KvmPlatform,
    MachineServices, PageBacker, PageReleaser, XenVm, XenVmConfig, add_memory, guest_cpuid,
    intercepted_stub, release_pages, share_registers,
};
use crate::pages::GuestRamHandle;
use crate::xen::{Clock, Domain, DomainConfig, HypercallStubs, MAX_VCPUS, StubKind, cpuid};

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
    vcpus: Vec<VcpuFd>,
    clock: Arc<KvmClock>,
    hypercalls: HypercallMode,
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
        let memory = GuestRamHandle::new(ram);

        let (output, writer) = ConsoleOutput::start(sink).map_err(host("a console thread"))?;
        let (dropped, drop_writer) =
            ConsoleOutput::start(Box::new(std::io::sink())).map_err(host("a console thread"))?;
        let to = |console: Console| {
            if config.console == console { output.clone() } else { dropped.clone() }
        };
        let hvc = to(Console::Hvc);
        let platform = KvmPlatform::new(
            Arc::clone(&vm.vm),
            Arc::clone(&vm.clock),
            config.cpus,
            caps,
            config.clock,
            MachineServices {
                console: Box::new(move |bytes| hvc.push(bytes)),
                backer: page_backer(Arc::clone(&vm.vm), memory.clone()),
                releaser: page_releaser(memory.clone()),
            },
        );
        // KVM never sees hypercalls by port I/O, so it has nothing to deliver.
        let platform = Arc::new(match (hypercalls, config.fifo_events) {
            (HypercallMode::PortIo, _) | (_, Some(true)) => platform.serving_all_events(),
            _ => platform,
        });
        let domain_config = domain_config(config, &vm, &boot);
        let domain = Arc::new(Domain::new(
            domain_config.clone(),
            memory,
            Arc::clone(&vm.clock) as Arc<dyn Clock>,
            Arc::clone(&platform) as Arc<dyn crate::xen::Platform>,
        )?);
        domain.attach_console().map_err(|errno| MachineError::Host {
            what: "the console's event channel",
            error: std::io::Error::from_raw_os_error(errno.0),
        })?;
        set_up_vcpus(&kvm, &vm, &domain_config, &boot)?;
        vm.vcpus.iter_mut().for_each(|fd| share_registers(fd, hypercalls, caps.sync_regs));

        let line = EventFd::new(libc::EFD_NONBLOCK).map_err(host("an eventfd"))?;
        vm.vm.register_irqfd(&line, acpi::COM1_GSI).map_err(|error| {
            host("the serial port's interrupt")(std::io::Error::from_raw_os_error(error.errno()))
        })?;
        let devices = PortDevices::new(line, to(Console::Serial), to(Console::Hvc));
        platform.guarded().before_run(&vm.vm);
        platform.start(&domain).map_err(host("the timer thread"))?;
        let XenVm { vm, vcpus, clock, .. } = vm;
        let by_port = StubKind::PortIo(vcpu::HYPERCALL_PORT);
        let stubs = match hypercalls {
            HypercallMode::KvmXen => {
                HypercallStubs { general: intercepted_stub(), sched_op: by_port }
            }
            HypercallMode::PortIo => by_port.into(),
        };
        tracing::debug!("ready to run");
        let exit = ExitLatch::default();
        Ok(Self {
            shared: Arc::new(Shared { domain, platform, vm, stubs, devices, exit }),
            vcpus,
            clock,
            hypercalls,
            rewritten_sites,
            input: config.input,
            console: config.console,
            writers: vec![writer, drop_writer],
        })
    }

    /// Runs the guest to its end.
    ///
    /// # Errors
    /// Where a thread can not be made; the guest then has not run.
    pub fn run(self) -> Result<MachineReport, MachineError> {
        let mut threads = Vec::new();
        for (id, fd) in (0u32..).zip(self.vcpus) {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{id}"))
                .spawn(move || vcpu::run(id, fd, &shared));
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    self.shared.end(ExitReason::Failed(error.to_string()));
                    threads.into_iter().for_each(|thread| drop(thread.join()));
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

    /// The guest, for whoever watches it while it runs.
    pub fn domain(&self) -> Arc<Domain> {
        Arc::clone(&self.shared.domain)
    }
}

/// Reads the wallclock page as the guest would, and compares it with the host.
fn wallclock_error(domain: &Domain, clock: &KvmClock) -> Option<i128> {
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
        incarnation: 1,
    }
}

/// A version 4 UUID; all zeroes where the host has no randomness.
fn random_uuid() -> [u8; 16] {
    let mut uuid = [0; 16];
    let filled =
        std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut uuid));
    if let Err(error) = filled {
        tracing::warn!(%error, "the guest's UUID is all zeroes");
    }
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
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

/// Gives what the guest does not need any more back to the host.
fn page_releaser(memory: GuestRamHandle) -> PageReleaser {
    Box::new(move |start, pages| release_pages(&memory.memory(), start, pages))
}

/// Backs single pages beyond RAM, each with a region and a slot of its own.
fn page_backer(vm: Arc<VmFd>, memory: GuestRamHandle) -> PageBacker {
    /// Grant frames, status frames and shared_info, with room to spare.
    const MOST_PAGES: usize = 256;
    /// No machine here has memory beyond this, and every guest can address it.
    const END: u64 = 1 << 40;
    let ram_regions = memory.memory().num_regions();
    Box::new(move |gpa| {
        let page = GuestAddress(gpa.raw_value() & !(PAGE_SIZE - 1));
        let lock = memory.lock().map_err(|_| Errno::ENOMEM)?;
        let now = memory.memory();
        let slot = now.num_regions();
        if page.raw_value() >= END || now.address_in_range(page) {
            return Err(Errno::EINVAL);
        }
        if slot >= ram_regions + MOST_PAGES {
            return Err(Errno::ENOMEM);
        }
        let size = usize::try_from(PAGE_SIZE).map_err(|_| Errno::ENOMEM)?;
        let region = GuestRegionMmap::from_range(page, size, None).map_err(|_| Errno::ENOMEM)?;
        let region = Arc::new(region);
        let grown = now.insert_region(Arc::clone(&region)).map_err(|_| Errno::EINVAL)?;
        let slot = u32::try_from(slot).map_err(|_| Errno::ENOMEM)?;
        add_memory(&vm, slot, &region).map_err(|error| {
            tracing::debug!(%error, "a page of the guest could not be backed");
            Errno::EINVAL
        })?;
        lock.replace(grown);
        Ok(())
    })
}
