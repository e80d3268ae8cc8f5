//! What a hypercall costs: round trips of XENVER_get_features, which is served
//! in user space, and beside it the floor, an OUT to a port that nobody serves.
//! Both in TSC cycles: the median and the 99th percentile.
//!
//! Parameters: `n=N` round trips (default and most 10 000), `port=P` (default
//! 0x510). Runs under QEMU's Xen mode too.

#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "the sample buffer")]

use core::cell::UnsafeCell;

use guests::cpu::{cpuid, guest_tsc, load_fence, outb};
use guests::report::{Hex, Version};
use guests::rt::Exit;
use guests::start_info::Machine;
use guests::{entry, hypercall, report};
use xen_abi::cpuid::{XEN_CPUID_LEAF_TIME, XEN_CPUID_LEAF_VERSION};
use xen_abi::hypercall::HYPERVISOR_XEN_VERSION;
use xen_abi::version::{FeatureInfo, XENVER_GET_FEATURES};

entry!(main);

const MAX_SAMPLES: usize = 10_000;
const WARM_UP: usize = 500;
/// QEMU answers reads of its firmware configuration here and ignores bytes
/// written; our own machine has nothing here.
const UNUSED_PORT: u64 = 0x510;

struct Samples(UnsafeCell<[u64; MAX_SAMPLES]>);
// SAFETY: only the boot CPU runs.
unsafe impl Sync for Samples {}
static SAMPLES: Samples = Samples(UnsafeCell::new([0; MAX_SAMPLES]));

fn main(machine: &Machine) -> Exit {
    let base = hypercall::base_leaf().unwrap_or(0);
    let [version, ..] = cpuid(base + XEN_CPUID_LEAF_VERSION, 0);
    let [_, _, tsc_khz, _] = cpuid(base + XEN_CPUID_LEAF_TIME, 0);
    let wanted = machine.number("n", MAX_SAMPLES as u64).clamp(100, MAX_SAMPLES as u64);
    let count = usize::try_from(wanted).unwrap_or(MAX_SAMPLES);
    let port = u16::try_from(machine.number("port", UNUSED_PORT)).unwrap_or(0x510);
    // SAFETY: the only reference, on the only CPU.
    let samples = unsafe { &mut (&mut *SAMPLES.0.get())[..count] };

    let mut features = FeatureInfo { submap_idx: 0, submap: 0 };
    let answer = hypercall::call(HYPERVISOR_XEN_VERSION, XENVER_GET_FEATURES, &mut features);
    if answer != 0 {
        report!("error XENVER_get_features"; answer = answer);
        return Exit::Crash;
    }
    let call = measure(samples, || {
        hypercall::call(HYPERVISOR_XEN_VERSION, XENVER_GET_FEATURES, &mut features);
    });
    let out = measure(samples, || outb(port, 0));
    let nothing = measure(samples, || {});
    report!("hypercall";
        median_cycles = call.median, p99_cycles = call.p99, min_cycles = call.min,
        out_median = out.median, out_p99 = out.p99, out_min = out.min,
        empty_median = nothing.median, n = count, port = Hex(port.into()), tsc_khz = tsc_khz,
        xen = Version(version >> 16, version & 0xffff), features = Hex(features.submap.into()));
    Exit::PowerOff
}

struct Cost {
    median: u64,
    p99: u64,
    min: u64,
}

fn measure(samples: &mut [u64], mut work: impl FnMut()) -> Cost {
    for _ in 0..WARM_UP {
        work();
    }
    for sample in samples.iter_mut() {
        let start = guest_tsc();
        load_fence();
        work();
        *sample = guest_tsc().wrapping_sub(start);
    }
    samples.sort_unstable();
    let at = |index: usize| samples.get(index).copied().unwrap_or(0);
    Cost { median: at(samples.len() / 2), p99: at(samples.len() * 99 / 100), min: at(0) }
}
