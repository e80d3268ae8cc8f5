//! What no VMM can be faster than: KVM_RUN from an OUT of the guest to the next, by a
//! program that does nothing else, of a vCPU that has nothing else.
//!
//! ```console
//! # exit-floor
//! KVMXEN floor median_cycles=… p99_cycles=… min_cycles=… n=10000
//! ```
//!
//! In host TSC cycles, around the system call. One page of code in real mode: no local
//! APIC, no Xen, no page tables to walk.

#![expect(unsafe_code, reason = "KVM takes the guest's memory by address")]

use std::process::ExitCode;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use kvm_xen::host::host_tsc;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const ROUND_TRIPS: usize = 10_000;
const WARM_UP: usize = 500;
const SIZE: usize = 0x2000;
const CODE_GPA: u64 = 0x1000;
/// `1: out %al, $0x10; jmp 1b`
const CODE: [u8; 4] = [0xe6, 0x10, 0xeb, 0xfc];

fn main() -> ExitCode {
    match measure() {
        Ok(mut samples) => {
            samples.sort_unstable();
            let at = |index: usize| samples[index];
            println!(
                "KVMXEN floor median_cycles={} p99_cycles={} min_cycles={} n={ROUND_TRIPS}",
                at(ROUND_TRIPS / 2),
                at(ROUND_TRIPS * 99 / 100),
                at(0),
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("exit-floor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<Vec<u64>, Box<dyn std::error::Error>> {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), SIZE)])?;
    memory.write_slice(&CODE, GuestAddress(CODE_GPA))?;
    let vm = Kvm::new()?.create_vm()?;
    let region = kvm_userspace_memory_region {
        memory_size: SIZE as u64,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        ..Default::default()
    };
    // SAFETY: the memory is mapped for as long as the VM lives: declared before it.
    unsafe { vm.set_user_memory_region(region) }?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rflags) = (CODE_GPA, 2);
    vcpu.set_regs(&regs)?;

    let mut samples = Vec::with_capacity(ROUND_TRIPS);
    for number in 0..WARM_UP + ROUND_TRIPS {
        let before = host_tsc();
        let exit = vcpu.run()?;
        let cycles = host_tsc().wrapping_sub(before);
        if !matches!(exit, VcpuExit::IoOut(..)) {
            return Err(format!("not an OUT: {exit:?}").into());
        }
        if number >= WARM_UP {
            samples.push(cycles);
        }
    }
    Ok(samples)
}
