//! From a file to a machine that is ready to go on.
//!
//! The order: the file into memory, which takes longest; then the VM with its
//! TSC where it goes on, before anything else of it; the hypervisor; interrupt
//! controllers; vCPUs, TSC deadlines last; Xen's timers.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::{Bytes, GuestAddressSpace};
use xen_abi::cpuid::XEN_CPUID_FIRST_LEAF;

use super::config::{Console, MachineError, host};
use super::devices::PortDevices;
use super::handover;
use super::load::check_cpus;
use super::machine::Machine;
use super::migrate::ram_slots;
use super::parts::{Assembly, Consoles, clock_service, platform, random_uuid, serial_line};
use super::power::PowerState;
use super::save::VcpuSection;
use super::saved_guest::SavedGuest;
use super::vmclock_device::GENERATION_GPA;
use crate::clock::tai::Tai;
use crate::clock::{FrequencyError, TscFrequency};
use crate::host::{Bracketed, PairError, PairSource, TimeSource};
use crate::kvm::{
    Capabilities, ClockMode, HypercallMode, KvmFeature, RestoredTsc, XenVm, XenVmConfig,
    check_xsave, guest_cpuid, share_registers,
};
use crate::pages::GuestRamHandle;
use crate::state::{
    FrequencyPlan, HostNow, RestoredTime, StateError, StoppedClock, TimePolicy, tag,
};
use crate::xen::{Clock, Domain, MAX_VCPUS, RenewError, Resumed, cpuid};

/// Who is told that the guest was restored, after everything of it is there and
/// before it runs: devices that tell the guest.
pub type OnRestored = Arc<dyn Fn(&RestoredTime, &Arc<Domain>) + Send + Sync>;

/// Where a guest comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// From a file, which may be restored again: another copy of the guest.
    Restored,
    /// From a process that runs it no more: the same guest.
    Migrated,
}

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
        Self::go_on(saved, Arrival::Restored, config, sink)
    }

    /// As [`Machine::restore`], with a guest that was read already; the path is
    /// not looked at.
    ///
    /// # Errors
    /// As [`Machine::restore`].
    pub fn go_on(
        saved: SavedGuest,
        arrival: Arrival,
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
        let (tsc, time, tsc_khz) = restored_tsc(&saved.clock, config.time, &caps, host_khz)?;
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
        if let Some(handover) = &saved.handover {
            domain.restore_handover(handover)?;
        }
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
        let new_id = (arrival == Arrival::Restored).then(random_uuid);
        let id = new_id.unwrap_or_else(|| generation_id(&guest_memory));
        let id = vmclock.then_some(id);
        let clock_service =
            clock_service(id, &TimeSource::Auto, &vm, &domain, &platform, guest_memory)?;
        if let Some(seen) = saved.vmclock {
            clock_service.go_on(seen.into(), time.own_error_ns, new_id).map_err(|error| {
                host("the VM generation's page")(std::io::Error::other(error.to_string()))
            })?;
        }
        platform.start(&domain).map_err(host("the timer thread"))?;
        domain.reattach_console()?;
        if let Some(store) = &saved.store {
            domain.reattach_xenstore(store)?;
        }
        let stopped_ns = saved.clock.system_time_ns()?;
        // After the TSC and the local APICs, to which they are delivered.
        match domain.suspended_since_ns() {
            Some(since_ns) => {
                let now_ns = || vm.clock.system_time_ns();
                go_on_anew(&domain, &saved.clock, since_ns, host_khz, now_ns)?;
            }
            // What the guest's clock shows since the stop it did not run: all of the gap
            // with advance, what the restore itself took with freeze.
            None => domain.go_on(vm.clock.system_time_ns().saturating_sub(stopped_ns)),
        }
        for tell in &config.on_restored {
            tell(&time, &domain);
        }
        // Last: who is let go by it finds everything right.
        handover::tell(&domain, &vm.clock, &saved.clock, &time, host_khz)?;
        let since_stop_ns = vm.clock.system_time_ns().saturating_sub(stopped_ns);
        tracing::info!(
            since_stop_ns,
            away_ns = %time.away_ns, bridge = ?time.bridge, error_ns = time.error_ns,
            incarnation = time.incarnation, tsc_offset = vm.clock.tsc().offset(),
            "the guest goes on"
        );
        let power = |vcpu: &VcpuSection| PowerState {
            running: vcpu.running,
            stopped_in: vcpu.stopped_in,
            init_told: vcpu.init_told,
        };
        let machine = Self::assemble(Assembly {
            vm,
            kvm,
            domain,
            platform,
            devices,
            clock_service,
            vmclock,
            slots,
            saved: Some(saved.vcpus.iter().map(power).collect()),
            tsc_khz,
            memory: saved.machine.memory,
            hypercalls,
            serves_all_events: serves_all,
            rewritten_sites: usize::try_from(saved.machine.rewritten_sites).unwrap_or(0),
            input: config.input,
            console: shown,
            writers,
        });
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
    let stopped_ns = clock.system_time_ns()?;
    let counted_ns = i128::from(system_time_ns().saturating_sub(stopped_ns));
    let before_ns = i128::from(stopped_ns.saturating_sub(since_ns));
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

/// The generation identifier that a guest came with.
fn generation_id(memory: &GuestRamHandle) -> [u8; 16] {
    // Its memory was made with this page, and is saved whole.
    memory.memory().read_obj(GENERATION_GPA).unwrap_or_default()
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

/// How the guest's TSC and clock go on here, and the TSC's frequency in kHz.
fn restored_tsc(
    clock: &StoppedClock,
    policy: TimePolicy,
    caps: &Capabilities,
    host_khz: u32,
) -> Result<(RestoredTsc, RestoredTime, u32), MachineError> {
    let bits = caps.tsc_scaling.then(|| {
        let vendor = std::arch::x86_64::__cpuid(0).ebx.to_le_bytes();
        FrequencyPlan::frac_bits(matches!(&vendor, b"Auth" | b"Hygo"))
    });
    let anew = policy == TimePolicy::Inject && clock.suspended;
    let plan = FrequencyPlan::new(clock.tsc_khz, host_khz, bits, anew)?;
    let guest_khz = clock.tsc_khz;
    if let FrequencyPlan::Host { off_ppb } = plan
        && off_ppb != 0
    {
        tracing::warn!(
            guest_khz,
            host_khz,
            off_ppb,
            "the guest's TSC runs at this host's frequency, near its own"
        );
    }
    let (line, tsc_khz) = if plan == FrequencyPlan::Advertised {
        tracing::warn!(
            guest_khz,
            host_khz,
            "the guest's TSC runs at this host's frequency from now on, and it is told so"
        );
        (clock.line_at(host_khz)?, host_khz)
    } else {
        (clock.line()?, guest_khz)
    };
    let time = clock.restart(policy, &host_now(host_khz)?)?;
    let khz = matches!(plan, FrequencyPlan::Scaled(_)).then_some(guest_khz);
    let tsc = RestoredTsc { khz, scaling: plan.scaling(), start: time.start, line };
    Ok((tsc, time, tsc_khz))
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
