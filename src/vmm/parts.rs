//! What a new machine and a restored one are made of alike.

use std::io::{Read, Write};
use std::sync::Arc;

use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{Address, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;
use xen_abi::errno::Errno;

use super::acpi;
use super::clock_service::{ClockService, ClockSettings, MachineGuest, VmClockPlace};
use super::config::{Console, MachineError, host};
use super::devices::PortDevices;
use super::memory::PAGE_SIZE;
use super::migrate::RamSlot;
use super::output::{ConsoleOutput, ConsoleWriter};
use super::power::PowerState;
use super::vcpu;
use super::vmclock_device::{self, GENERATION_GPA, VMCLOCK_GPA};
use crate::host::TimeSource;
use crate::kvm::{
    Capabilities, ClockMode, HypercallMode, KvmPlatform, MachineServices, PageBacker, PageReleaser,
    XenVm, add_memory, intercepted_stub, kvm_pairs, release_pages,
};
use crate::pages::GuestRamHandle;
use crate::xen::{Domain, HypercallStubs, StubKind};

/// What [`Machine`](super::machine::Machine) is put together of.
pub(super) struct Assembly {
    pub vm: XenVm,
    pub kvm: Kvm,
    pub domain: Arc<Domain>,
    pub platform: Arc<KvmPlatform>,
    pub devices: PortDevices,
    pub clock_service: Arc<ClockService>,
    pub vmclock: bool,
    pub slots: Arc<[RamSlot]>,
    /// How each vCPU's thread stood, if the guest was saved before.
    pub saved: Option<Vec<PowerState>>,
    /// The guest's frequency.
    pub tsc_khz: u32,
    /// RAM in bytes.
    pub memory: u64,
    pub hypercalls: HypercallMode,
    pub serves_all_events: bool,
    pub rewritten_sites: usize,
    pub input: bool,
    pub console: Console,
    pub writers: Vec<ConsoleWriter>,
}

/// Where the guest's consoles print to: the one that is shown, and nowhere.
pub(super) struct Consoles {
    shown: Console,
    output: ConsoleOutput,
    dropped: ConsoleOutput,
}

impl Consoles {
    pub(super) fn start(
        sink: Box<dyn Write + Send>,
        shown: Console,
    ) -> Result<(Self, Vec<ConsoleWriter>), MachineError> {
        let (output, writer) = ConsoleOutput::start(sink).map_err(host("a console thread"))?;
        let (dropped, drop_writer) =
            ConsoleOutput::start(Box::new(std::io::sink())).map_err(host("a console thread"))?;
        Ok((Self { shown, output, dropped }, vec![writer, drop_writer]))
    }

    pub(super) fn to(&self, console: Console) -> ConsoleOutput {
        if self.shown == console { self.output.clone() } else { self.dropped.clone() }
    }
}

/// The machine's side of the emulated hypervisor. `ram_regions` are those that
/// the guest began with.
pub(super) fn platform(
    vm: &XenVm,
    memory: &GuestRamHandle,
    ram_regions: usize,
    (caps, clock, serves_all_events): (Capabilities, ClockMode, bool),
    consoles: &Consoles,
) -> Arc<KvmPlatform> {
    let hvc = consoles.to(Console::Hvc);
    let services = MachineServices {
        console: Box::new(move |bytes| hvc.push(bytes)),
        backer: page_backer(Arc::clone(&vm.vm), memory.clone(), ram_regions),
        releaser: page_releaser(memory.clone()),
    };
    let vcpus = u32::try_from(vm.vcpus.len()).unwrap_or(0);
    let (kvm, time) = (Arc::clone(&vm.vm), Arc::clone(&vm.clock));
    let platform = KvmPlatform::new(kvm, time, vcpus, caps, clock, services);
    Arc::new(if serves_all_events { platform.serving_all_events() } else { platform })
}

/// What interrupts the guest for its serial port.
pub(super) fn serial_line(vm: &XenVm) -> Result<EventFd, MachineError> {
    let line = EventFd::new(libc::EFD_NONBLOCK).map_err(host("an eventfd"))?;
    vm.vm.register_irqfd(&line, acpi::COM1_GSI).map_err(|error| {
        host("the serial port's interrupt")(std::io::Error::from_raw_os_error(error.errno()))
    })?;
    Ok(line)
}

/// What the stubs of the hypercall page execute.
pub(super) fn stubs(hypercalls: HypercallMode) -> HypercallStubs {
    let by_port = StubKind::PortIo(vcpu::HYPERCALL_PORT);
    match hypercalls {
        HypercallMode::KvmXen => HypercallStubs { general: intercepted_stub(), sched_op: by_port },
        HypercallMode::PortIo => by_port.into(),
    }
}

/// What keeps the guest's clocks. A guest with a VMClock gives its generation
/// identifier, and has its page published.
pub(super) fn clock_service(
    generation_id: Option<[u8; 16]>,
    time_source: &TimeSource,
    vm: &XenVm,
    domain: &Arc<Domain>,
    platform: &Arc<KvmPlatform>,
    memory: GuestRamHandle,
) -> Result<Arc<ClockService>, MachineError> {
    let bells = if generation_id.is_some() {
        Some(vmclock_device::connect(&vm.vm).map_err(host("the VMClock's interrupts"))?)
    } else {
        None
    };
    let place = generation_id.map(|generation_id| VmClockPlace {
        memory,
        gpa: VMCLOCK_GPA,
        generation_gpa: GENERATION_GPA,
        generation_id,
    });
    let platform = Arc::downgrade(platform);
    let guest = MachineGuest {
        domain: Arc::clone(domain),
        clock: Arc::clone(&vm.clock),
        platform: platform.clone(),
        bells,
    };
    let pairs = kvm_pairs(Arc::clone(&vm.vm));
    let service = ClockService::new(
        ClockSettings::default(),
        &vm.clock,
        guest,
        time_source,
        Some(Box::new(pairs)),
        place,
    )?;
    Ok(Arc::new(service.with_guarded(move || {
        platform.upgrade().map_or((0, 0, 0), |platform| {
            let report = platform.guarded().report();
            (report.rewrites, report.jumps, report.largest_jump_ns)
        })
    })))
}

/// A version 4 UUID; all zeroes where the host has no randomness.
pub(super) fn random_uuid() -> [u8; 16] {
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

/// Gives what the guest does not need any more back to the host.
fn page_releaser(memory: GuestRamHandle) -> PageReleaser {
    Box::new(move |start, pages| release_pages(&memory.memory(), start, pages))
}

/// Backs single pages beyond RAM, each with a region and a slot of its own.
fn page_backer(vm: Arc<VmFd>, memory: GuestRamHandle, ram_regions: usize) -> PageBacker {
    /// Grant frames, status frames and shared_info, with room to spare.
    const MOST_PAGES: usize = 256;
    /// No machine here has memory beyond this, and every guest can address it.
    const END: u64 = 1 << 40;
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
