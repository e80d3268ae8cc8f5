//! How near KVM_SET_CLOCK brings KVM's clock to a given line: each call takes a new
//! snapshot of the host's clock, at a moment that user space does not know.
//!
//! ```console
//! $ cargo run --release --example set-kvm-clock [-- CALLS]
//! ```
//!
//! `plain` sets what the line says just before the call. `realtime` sets what it said
//! at a moment of KVM_GET_CLOCK, and lets KVM add the time since then. Both less their
//! own median, by which a caller corrects the next call; then how many calls it takes
//! until one lies within 1 ns.

#![expect(unsafe_code, reason = "KVM is given this program's memory")]

use std::time::Instant;

use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, kvm_clock_data, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VmFd};

#[repr(align(4096))]
struct Page([u8; 4096]);

/// ns at a TSC: through one point, at a whole number of kHz.
struct Line {
    tsc: u64,
    ns: u64,
    khz: u64,
}

impl Line {
    fn at(&self, tsc: u64) -> u64 {
        let ns = u128::from(tsc.wrapping_sub(self.tsc)) * 1_000_000 / u128::from(self.khz);
        self.ns + u64::try_from(ns).expect("less than 500 years")
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let calls = std::env::args().nth(1).map_or(Ok(2_000), |text| text.parse::<usize>())?;
    let vm = Kvm::new()?.create_vm()?;
    let mut page = Box::new(Page([0xf4; 4096])); // HLT
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0xffff_f000,
        memory_size: 4096,
        userspace_addr: page.0.as_mut_ptr() as u64,
    };
    // SAFETY: the page outlives the VM's only vCPU, and nobody else looks at it.
    unsafe { vm.set_user_memory_region(region)? };
    let mut vcpu = vm.create_vcpu(0)?;
    // KVM states no pair before a vCPU has run.
    vcpu.run()?;
    let read = vm.get_clock()?;
    if read.flags & KVM_CLOCK_HOST_TSC == 0 || read.flags & KVM_CLOCK_REALTIME == 0 {
        return Err("this KVM states no pair of its clock and the host's TSC".into());
    }
    let line = Line { tsc: read.host_tsc, ns: read.clock, khz: vcpu.get_tsc_khz()?.into() };
    println!("host TSC {} kHz, {calls} calls each", line.khz);
    for (name, set) in [("plain", plain as Set), ("realtime", realtime)] {
        let mut off = Vec::new();
        for _ in 0..calls {
            off.push(set_and_read(&vm, &line, 0, set)?);
        }
        tell(name, off.clone());
        off.sort_unstable();
        let lag = -off[off.len() / 2];
        until_exact(name, &vm, &line, lag, calls, set)?;
    }
    drop(page);
    Ok(())
}

type Set = fn(&VmFd, &Line, i64) -> Result<(), kvm_ioctls::Error>;

fn plain(vm: &VmFd, line: &Line, ahead_ns: i64) -> Result<(), kvm_ioctls::Error> {
    let clock = line.at(kvm_xen::host::host_tsc()).saturating_add_signed(ahead_ns);
    vm.set_clock(&kvm_clock_data { clock, ..Default::default() })
}

fn realtime(vm: &VmFd, line: &Line, ahead_ns: i64) -> Result<(), kvm_ioctls::Error> {
    let then = vm.get_clock()?;
    let clock = line.at(then.host_tsc).saturating_add_signed(ahead_ns);
    let flags = KVM_CLOCK_REALTIME;
    vm.set_clock(&kvm_clock_data { clock, flags, realtime: then.realtime, ..Default::default() })
}

/// KVM's clock less the line, after it was set.
fn set_and_read(vm: &VmFd, line: &Line, ahead_ns: i64, set: Set) -> Result<i64, kvm_ioctls::Error> {
    set(vm, line, ahead_ns)?;
    let read = vm.get_clock()?;
    Ok(read.clock.wrapping_sub(line.at(read.host_tsc)).cast_signed())
}

fn tell(name: &str, mut off: Vec<i64>) {
    off.sort_unstable();
    let at = |per_mille: usize| off[(off.len() - 1) * per_mille / 1_000];
    let median = at(500);
    let within = |ns: u64| off.iter().filter(|off| off.abs_diff(median) <= ns).count();
    println!(
        "{name}: median {median} ns; least {}, 1 % {}, 25 % {}, 75 % {}, 99 % {}, most {}; \
         of {} within 1 ns of the median {}, 10 ns {}, 100 ns {}, 1 us {}",
        at(0),
        at(10),
        at(250),
        at(750),
        at(990),
        at(1_000),
        off.len(),
        within(1),
        within(10),
        within(100),
        within(1_000),
    );
}

/// How many calls, and how long, until the clock is within 1 ns, a hundred times.
fn until_exact(
    name: &str,
    vm: &VmFd,
    line: &Line,
    lag: i64,
    calls: usize,
    set: Set,
) -> Result<(), kvm_ioctls::Error> {
    let mut tries = Vec::new();
    let began = Instant::now();
    for _ in 0..100 {
        let mut count = 0;
        while count < calls {
            count += 1;
            if set_and_read(vm, line, lag, set)?.unsigned_abs() <= 1 {
                break;
            }
        }
        tries.push(count);
    }
    let each = began.elapsed() / u32::try_from(tries.iter().sum::<usize>()).unwrap_or(u32::MAX);
    tries.sort_unstable();
    println!(
        "{name}: calls until within 1 ns: median {}, 90 % {}, most {} (given up at {calls}); {each:?} each",
        tries[50], tries[90], tries[99],
    );
    Ok(())
}
