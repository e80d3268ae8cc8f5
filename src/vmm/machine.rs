//! The machine: everything wired together, from files to the guest's end.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;
use xen_abi::cpuid::XEN_CPUID_FIRST_LEAF;
use xen_abi::errno::Errno;

use super::acpi::{self, AcpiConfig};
use super::boot::{BootConfig, BootError, PVH_MSRS, prepare_boot, pvh_regs, pvh_sregs};
use super::devices::PortDevices;
use super::exit::{ExitLatch, ExitReason};
use super::hypercall_sites::{self, NotInMemory};
use super::input::{self, RawTerminal};
use super::loader::{FileSource, KernelCode, LoadedKernel, ModuleSource};
use super::memory::{self, CONSOLE_PFN, MemoryError, MemoryLayout, MemoryOptions, PAGE_SIZE};
use super::output::{ConsoleOutput, ConsoleWriter};
use super::vcpu::{self, HYPERCALL_PORT, Shared};
use crate::clock::SystemTimeLine;
use crate::host::read_realtime;
use crate::kvm::{
    Capabilities, ClockMode, GuardedReport, GuestTsc, HypercallMode, KvmClock, KvmFeature,
    KvmPlatform, MachineServices, PageBacker, PageReleaser, ProbeError, XenVm, XenVmConfig,
    XenVmError, add_memory, guest_cpuid, intercepted_stub, release_pages, share_registers,
};
use crate::pages::{GuestRam, GuestRamHandle};
use crate::xen::{
    Clock, Domain, DomainConfig, DomainError, MAX_VCPUS, MemoryMapEntry, StubKind, cpuid,
};

/// What a machine boots.
#[derive(Clone, Debug)]
pub enum Kernel {
    /// A file.
    File(PathBuf),
    /// A guest that is built in.
    Embedded(&'static [u8]),
}

/// Where the initial ramdisk comes from.
#[derive(Clone, Debug)]
pub enum Initrd {
    /// A file.
    File(PathBuf),
    /// One that is here already.
    Bytes(Arc<[u8]>),
}

impl Initrd {
    fn source(&self) -> FileSource<'_> {
        match self {
            Self::File(path) => FileSource::Path(path),
            Self::Bytes(bytes) => FileSource::Bytes(bytes),
        }
    }
}

/// Which console the caller's terminal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// ttyS0.
    Serial,
    /// hvc0.
    Hvc,
    /// Neither: output is dropped.
    None,
}

/// A machine's parts and settings.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// The kernel.
    pub kernel: Kernel,
    /// Its initial ramdisk.
    pub initrd: Option<Initrd>,
    /// Further modules with their command lines.
    pub modules: Vec<(PathBuf, String)>,
    /// The kernel's command line.
    pub cmdline: String,
    /// RAM in bytes.
    pub memory: u64,
    /// vCPUs.
    pub cpus: u32,
    /// Who writes the clock pages.
    pub clock: ClockMode,
    /// Whether guests are offered upcall vectors of their vCPUs' own; `None` for
    /// all but those whose pages are KVM's from the start.
    pub upcall_vector: Option<bool>,
    /// Whether guests are offered FIFO event channels; `None` where KVM does not
    /// deliver events by itself, in the 2-level bitmaps.
    pub fifo_events: Option<bool>,
    /// How hypercalls arrive; `None` takes what works.
    pub hypercalls: Option<HypercallMode>,
    /// Does as if KVM lacked these.
    pub without: Vec<KvmFeature>,
    /// KVM's device.
    pub kvm_device: PathBuf,
    /// The Xen version shown, major and minor.
    pub xen_version: (u16, u16),
    /// The console that is printed and typed into.
    pub console: Console,
    /// Whether standard input is typed into that console.
    pub input: bool,
}

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM does not offer what is needed.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, modules, command line or tables.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The VM.
    #[error(transparent)]
    Vm(#[from] XenVmError),
    /// The emulated hypervisor.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// The kernel's code.
    #[error(transparent)]
    Sites(#[from] NotInMemory),
    /// A kernel whose hypercalls port I/O can not serve.
    #[error(
        "kernel {kernel}: no VMCALL or VMMCALL was found in it and it has no hypercall page, so \
         --hypercalls port-io can not serve it: use a host with CONFIG_KVM_XEN=y, or the kernel's \
         vmlinux with its section table"
    )]
    NoHypercalls {
        /// Its file name.
        kernel: String,
    },
    /// The number of vCPUs.
    #[error("{cpus} vCPUs: a guest here has 1 to {most}; give --cpus a number in between")]
    Cpus {
        /// Asked for.
        cpus: u32,
        /// The most.
        most: u32,
    },
    /// A call for one vCPU failed.
    #[error("{what} for vCPU {vcpu} failed: {error}")]
    Vcpu {
        /// What was done.
        what: &'static str,
        /// The vCPU.
        vcpu: u32,
        /// What KVM said.
        error: vmm_sys_util::errno::Error,
    },
    /// Something of the host.
    #[error("{what}: {error}")]
    Host {
        /// What was done.
        what: &'static str,
        /// What the host said.
        error: std::io::Error,
    },
}

fn host(what: &'static str) -> impl FnOnce(std::io::Error) -> MachineError {
    move |error| MachineError::Host { what, error }
}

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
        let stubs = match hypercalls {
            HypercallMode::KvmXen => intercepted_stub(),
            HypercallMode::PortIo => StubKind::PortIo(vcpu::HYPERCALL_PORT),
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

fn check_cpus(cpus: u32, most: u32) -> Result<(), MachineError> {
    if (1..=most).contains(&cpus) {
        return Ok(());
    }
    Err(MachineError::Cpus { cpus, most })
}

fn make_memory(size: u64) -> Result<(MemoryLayout, GuestRam), MachineError> {
    let layout = match memory::host_memory() {
        Some(host) => MemoryLayout::for_host(size, host)?,
        None => MemoryLayout::new(size)?,
    };
    let ram = layout.create(MemoryOptions::default())?;
    Ok((layout, ram))
}

/// What is left to do with a loaded guest.
struct Loaded {
    entry: u32,
    start_info: u32,
    memory_map: Vec<MemoryMapEntry>,
    code: KernelCode,
    /// It makes its hypercalls by VMCALL and VMMCALL, or none at all.
    needs_sites: bool,
}

fn load(
    ram: &GuestRam,
    layout: &MemoryLayout,
    config: &MachineConfig,
) -> Result<Loaded, MachineError> {
    let modules: Vec<ModuleSource<'_>> = config
        .modules
        .iter()
        .map(|(path, cmdline)| ModuleSource { source: FileSource::Path(path), cmdline })
        .collect();
    let kernel = match &config.kernel {
        Kernel::File(path) => FileSource::Path(path),
        Kernel::Embedded(bytes) => FileSource::Bytes(bytes),
    };
    let boot = BootConfig {
        kernel,
        initrd: config.initrd.as_ref().map(Initrd::source),
        modules: &modules,
        cmdline: &config.cmdline,
        acpi: AcpiConfig { cpus: config.cpus, devices: &[] },
    };
    let boot = prepare_boot(ram, layout, &boot)?;
    let LoadedKernel { notes, code, .. } = boot.kernel;
    // Other guests say nothing of how they make theirs.
    let needs_sites = notes.guest_os.as_deref() == Some("linux") && !notes.hypercall_page;
    Ok(Loaded {
        entry: boot.entry,
        start_info: boot.start_info,
        memory_map: boot.memory_map,
        code,
        needs_sites,
    })
}

/// Makes the kernel's direct hypercalls port output. Returns how many it has.
fn rewrite_hypercalls(
    ram: &GuestRam,
    boot: &Loaded,
    kernel: &Kernel,
) -> Result<usize, MachineError> {
    let began = Instant::now();
    let done = hypercall_sites::rewrite(ram, &boot.code, HYPERCALL_PORT)?;
    tracing::debug!(sites = done.sites, unsure = done.unsure, took = ?began.elapsed(),
        "direct hypercalls are port output now");
    if done.sites == 0 && boot.needs_sites {
        let kernel = match kernel {
            Kernel::File(path) => path.display().to_string(),
            Kernel::Embedded(_) => "(built in)".to_owned(),
        };
        return Err(MachineError::NoHypercalls { kernel });
    }
    Ok(done.sites)
}

/// Loads what `config` boots into memory that is then thrown away: whether it is
/// a kernel, and fits, is known before anything runs.
///
/// # Errors
/// As [`Machine::new`], as far as files and memory are concerned.
pub fn check_boot(config: &MachineConfig) -> Result<(), MachineError> {
    let (layout, ram) = make_memory(config.memory)?;
    load(&ram, &layout, config).map(drop)
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
