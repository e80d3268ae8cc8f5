//! What an update of clock pages costs the host: medians of many, in ns.
//!
//! ```console
//! $ cargo run --release --example page-cost
//! ```
//!
//! A VM has one VMClock page and one wallclock, whatever the number of its vCPUs;
//! each vCPU has a time page of its own, written by its own thread when asked.

use std::time::{Duration, Instant};

use kvm_xen::clock::scaling::TscScaling;
use kvm_xen::clock::tai::EstimatorConfig;
use kvm_xen::clock::{TscFrequency, WallclockEpoch};
use kvm_xen::host::{Bracketed, OffsetWatch, PairSource, host_tsc};
use kvm_xen::pages::{GuestRam, TimeInfo, Width, publish_time, publish_wallclock};
use kvm_xen::vmclock::{TaiFeed, TimeType, VmClock, VmClockConfig};
use vm_memory::GuestAddress;

const ROUNDS: u32 = 2_001;
/// As the clock service looks.
const LOOK_EVERY: Duration = Duration::from_millis(4);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let memory = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
    let frequency = TscFrequency::from_khz(2_500_000)?;
    for vcpus in [1u32, 8, 64] {
        let ns = median(|round| {
            for vcpu in 0..vcpus {
                let page = TimeInfo {
                    tsc_timestamp: round.into(),
                    system_time: host_tsc(),
                    mul: 1 << 31,
                    shift: 0,
                    flags: 1,
                };
                // 64 bytes apart, as `vcpu_info` is.
                let gpa = GuestAddress(0x1_0000 + u64::from(vcpu) * 64);
                publish_time(&memory, gpa, &page)?;
            }
            Ok(())
        })?;
        let each = ns / u64::from(vcpus);
        println!("time pages of {vcpus:2} vCPUs: {ns} ns, {each} ns each");
    }
    let ns = median(|round| {
        let epoch = WallclockEpoch { sec: 1_800_000_000, nsec: round };
        publish_wallclock(&memory, GuestAddress(0x2000), Width::Bits64, epoch)?;
        Ok(())
    })?;
    println!("wallclock: {ns} ns");

    let mut source = Bracketed::new(frequency, 1);
    let mut feed =
        TaiFeed::new(EstimatorConfig::linux(frequency), TscScaling::unscaled(0), 1_000_000);
    let config = VmClockConfig {
        gpa: GuestAddress(0x1000),
        time_type: TimeType::Tai,
        smearing: kvm_xen::clock::tai::smear::Smear::Strict,
        notifies: true,
    };
    let mut clock = VmClock::new(config, 1, 1);
    let readings: Vec<_> = (0..ROUNDS).map(|_| source.read()).collect::<Result<_, _>>()?;
    let mut next = readings.iter();
    let ns = median(|_| {
        if let Some(reading) = next.next() {
            let fed = feed.observe(reading);
            clock.publish(&memory, &fed.update)?;
        }
        Ok(())
    })?;
    println!("VMClock: line and page, {ns} ns");
    let ns = median(|_| source.read().map(drop).map_err(Into::into))?;
    println!("a reading of the host, one bracket and two adjtimex: {ns} ns");
    let mut watch = OffsetWatch::new();
    let ns = median(|_| {
        core::hint::black_box(watch.moved());
        Ok(())
    })?;
    println!("a look whether the host's clock was moved: {ns} ns");
    // With its waking up, which is more: all that the thread is charged for.
    let looks = 500u32;
    let began = own_cpu_time()?;
    for _ in 0..looks {
        std::thread::sleep(LOOK_EVERY);
        core::hint::black_box(watch.moved());
    }
    let each = (own_cpu_time()? - began) / looks;
    println!("the same after a sleep of {LOOK_EVERY:?}, CPU time: {} ns", each.as_nanos());
    Ok(())
}

/// The calling thread's CPU time, of the scheduler's own account.
fn own_cpu_time() -> Result<Duration, Box<dyn std::error::Error>> {
    let account = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let ns = account.split_whitespace().next().ok_or("no account of CPU time")?;
    Ok(Duration::from_nanos(ns.parse()?))
}

type Done = Result<(), Box<dyn std::error::Error>>;

fn median(mut round: impl FnMut(u32) -> Done) -> Result<u64, Box<dyn std::error::Error>> {
    let mut took = Vec::new();
    for n in 0..ROUNDS {
        let began = Instant::now();
        round(n)?;
        took.push(u64::try_from(began.elapsed().as_nanos())?);
    }
    took.sort_unstable();
    Ok(took.get(took.len() / 2).copied().unwrap_or(0))
}
