//! The library without the small machine around it: a VM of one vCPU, a guest
//! of a few instructions, and its clock.
//!
//! ```console
//! $ cargo run --example embed --no-default-features
//! ```
//!
//! Needs a /dev/kvm, with KVM_XEN or without. `docs/embedding.md` walks through
//! it. A real machine adds a loader, devices, and a thread for each vCPU.

mod guest;

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use kvm_ioctls::{VcpuExit, VcpuFd};
use kvm_xen::clock::SystemTimeLine;
use kvm_xen::kvm::{
    Capabilities, ClockMode, HYPERCALL_MSR, HypercallExit, KVM_DEVICE, KvmPlatform,
    MachineServices, PortIoStub, VcpuAccess, XenVm, XenVmConfig, guest_cpuid, paging,
    release_pages, share_registers,
};
use kvm_xen::pages::{GuestRamHandle, read_time};
use kvm_xen::xen::{
    Clock, Domain, DomainConfig, MemoryMapEntry, Outcome, Platform, StubKind, cpuid,
};
use vm_memory::{GuestAddress, GuestAddressSpace};
use xen_abi::errno::Errno;

/// Any port that no device of the machine answers on.
const HYPERCALL_PORT: u8 = 0xe4;

fn main() -> Result<(), Box<dyn Error>> {
    let (kvm, caps) = Capabilities::probe(Path::new(KVM_DEVICE))?;
    let hypercalls = caps.pick_hypercalls()?;
    println!("hypercalls arrive by {hypercalls}");

    // Memory first, then the VM over it: XenVm::new keeps the order of KVM
    // calls that leaves the clock alone.
    let ram = guest::memory()?;
    let XenVm { memory, vm, mut vcpus, clock, tsc_khz } =
        XenVm::new(&kvm, &caps, &ram, XenVmConfig { vcpus: 1, hypercalls })?;
    let memory = GuestRamHandle::new(memory);

    // The emulated hypervisor, and the KVM under it.
    let config = DomainConfig {
        vcpus: 1,
        domain_id: 1,
        uuid: [0; 16],
        xen_version: (4, 17),
        memory_map: vec![MemoryMapEntry { addr: 0, size: guest::RAM, kind: 1 }],
        fifo_events: true,
        upcall_vector: true,
        host_tsc_khz: tsc_khz,
        console_page: None,
        store_page: None,
        incarnation: 1,
    };
    let given_back = memory.clone();
    let platform = Arc::new(KvmPlatform::new(
        vm,
        Arc::clone(&clock),
        config.vcpus,
        caps,
        ClockMode::Owned,
        MachineServices {
            console: Box::new(|bytes| print!("{}", String::from_utf8_lossy(bytes))),
            backer: Box::new(|_| Err(Errno::EINVAL)),
            releaser: Box::new(move |start, pages| {
                release_pages(&given_back.memory(), start, pages)
            }),
        },
    ));
    let domain = Arc::new(Domain::new(
        config.clone(),
        memory.clone(),
        Arc::clone(&clock) as _,
        Arc::clone(&platform) as Arc<dyn Platform>,
    )?);
    platform.start(&domain)?;

    let mut vcpu = vcpus.remove(0);
    share_registers(&mut vcpu, hypercalls, caps.sync_regs);
    let leaves = cpuid::leaves(&config, &clock.line(), 0, 0x4000_0000, clock.tsc().offset());
    vcpu.set_cpuid2(&guest_cpuid(&kvm, 0, config.vcpus, &leaves)?)?;
    guest::enter(&vcpu)?;
    let said = run(&mut vcpu, &domain, &platform)?;
    platform.stop();

    let tsc = u64::from(said[2]) << 32 | u64::from(said[1]);
    let page = read_time(&memory.memory(), GuestAddress(guest::SHARED_INFO + 32))?;
    let published = SystemTimeLine::with_published(
        clock.line().frequency(),
        page.tsc_timestamp,
        page.system_time,
        page.mul,
        page.shift,
    )?;
    println!("XENMEM_add_to_physmap returned {}", said[0].cast_signed());
    println!("the guest read its TSC as      {tsc}");
    println!("by its page that is            {} ns", published.system_time_ns(tsc));
    println!("by our line                    {} ns", clock.line().system_time_ns(tsc));
    println!("published less exact           {} ns", clock.line().rounding_error_ns(tsc));
    Ok(())
}

/// What a vCPU thread does. Returns what the guest wrote to its ports.
fn run(
    fd: &mut VcpuFd,
    domain: &Domain,
    platform: &KvmPlatform,
) -> Result<[u32; 3], Box<dyn Error>> {
    let mut said = [0; 3];
    let kicker = platform.kicker(0).ok_or("no vCPU 0")?;
    kicker.enter(fd)?;
    loop {
        domain.before_entry(0);
        platform.before_entry(0, fd)?;
        let (call, intercepted) = match fd.run() {
            Ok(VcpuExit::Unsupported(HypercallExit::REASON)) => {
                (HypercallExit::read(fd.get_kvm_run()).ok_or("no hypercall")?, true)
            }
            Ok(VcpuExit::IoOut(port, _)) if port == u16::from(HYPERCALL_PORT) => {
                (PortIoStub::read(fd)?, false)
            }
            Ok(VcpuExit::IoOut(port @ 0xe0..=0xe2, data)) => {
                said[usize::from(port - 0xe0)] = u32::from_ne_bytes(data.try_into()?);
                continue;
            }
            Ok(VcpuExit::X86Wrmsr(exit)) if exit.index == HYPERCALL_MSR => {
                let page = GuestAddress(exit.data & !0xfff);
                let installed =
                    domain.install_hypercall_page(page, StubKind::PortIo(HYPERCALL_PORT).into());
                *exit.error = u8::from(installed.is_err());
                continue;
            }
            Ok(VcpuExit::Intr) => continue,
            Ok(other) => return Err(format!("unexpected exit {other:?}").into()),
            Err(error) if error.errno() == libc::EINTR => {
                fd.set_kvm_immediate_exit(0);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let mut access = VcpuAccess::new(0, paging(fd)?);
        let value = match domain.hypercall(&mut access, &call) {
            Outcome::Return(value) => value,
            // A machine yields, or waits by `KvmPlatform::wait`, here.
            Outcome::Yield | Outcome::Wait { .. } => 0,
            Outcome::Shutdown(_) => break,
        };
        match intercepted {
            true => HypercallExit::set_result(fd.get_kvm_run(), value & 0xffff_ffff),
            false => PortIoStub::set_result(fd, value & 0xffff_ffff)?,
        }
    }
    kicker.leave();
    Ok(said)
}
