//! Whether a clock update of one vCPU delays the others.
//!
//! ```console
//! # update-delay GUEST CPUS UPDATES_PER_SECOND SECONDS
//! ```
//!
//! Runs the bare-metal guest `delays`, all of whose CPUs read their clocks in a loop, and
//! asks for updates of vCPU 0's clock, of all vCPUs' clocks as KVM's masterclock does, and
//! of none, in turn, 50 ms each. The guest says how long its CPUs were away from their
//! loops in each third; the last lines are ratios to the third without updates.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kvm_xen::host::host_tsc;
use kvm_xen::vmm::config::{Kernel, MachineConfig};
use kvm_xen::vmm::machine::Machine;

const PHASE_NS: u128 = 50_000_000;

/// The guest's console.
#[derive(Clone, Default)]
struct Listener {
    text: Arc<Mutex<Vec<u8>>>,
    spins: Arc<AtomicBool>,
}

impl Write for Listener {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::io::stdout().write_all(bytes)?;
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.extend_from_slice(bytes);
        if text.windows(12).any(|part| part == b"KVMXEN start") {
            self.spins.store(true, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("update-delay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [guest, cpus, rate, seconds] = words.as_slice() else {
        return Err("usage: update-delay GUEST CPUS UPDATES_PER_SECOND SECONDS".into());
    };
    let pause = Duration::from_secs(1) / rate.parse::<u32>()?.max(1);
    let config = MachineConfig {
        cmdline: format!("seconds={} phase_ms={}", seconds.parse::<u32>()?, PHASE_NS / 1_000_000),
        memory: 16 << 20,
        cpus: cpus.parse()?,
        ..MachineConfig::new(Kernel::File(guest.into()))
    };
    let listener = Listener::default();
    let (text, spins) = (Arc::clone(&listener.text), Arc::clone(&listener.spins));
    let machine = Machine::new(&config, Box::new(listener))?;
    let (domain, service) = (machine.domain(), machine.clock_service());
    let ended = Arc::new(AtomicBool::new(false));
    let updater = std::thread::spawn({
        let (domain, ended) = (Arc::clone(&domain), Arc::clone(&ended));
        move || {
            let began = service.metrics();
            let khz = u128::from(domain.config().host_tsc_khz.max(1));
            let mut updates = 0u64;
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(pause);
                if !spins.load(Ordering::Relaxed) {
                    continue;
                }
                let ticks = host_tsc().wrapping_sub(began.host_tsc);
                let ns = u128::from(began.system_time_ns) + u128::from(ticks) * 1_000_000 / khz;
                let vcpus = match ns / PHASE_NS % 3 {
                    0 => 0,
                    1 => 1,
                    _ => domain.config().vcpus,
                };
                (0..vcpus).for_each(|vcpu| domain.request_clock_update(vcpu));
                updates += u64::from(vcpus == 1);
            }
            updates
        }
    });
    let report = machine.run()?;
    ended.store(true, Ordering::Relaxed);
    let updates = updater.join().map_err(|_| "the updater ended badly")?;
    println!("the guest ended: {}; updates of vCPU 0 alone: {updates}", report.exit);
    let text = text.lock().unwrap_or_else(PoisonError::into_inner);
    ratios(&String::from_utf8_lossy(&text));
    Ok(())
}

/// Each number of the guest's, against the same without updates, in percent.
fn ratios(text: &str) {
    let mut without = BTreeMap::<String, u64>::new();
    for line in text.lines().filter_map(|line| line.split_once("KVMXEN away who=")) {
        let mut words = line.1.split_whitespace();
        let who = words.next().unwrap_or_default();
        let updates = words.next().and_then(|word| word.strip_prefix("updates="));
        let numbers = words.filter_map(|word| {
            let (name, number) = word.split_once('=')?;
            Some((name, number.parse::<u64>().ok()?))
        });
        let mut said = format!("ratio who={who} updates={}", updates.unwrap_or_default());
        for (name, number) in numbers {
            let key = format!("{who} {name}");
            if updates == Some("none") {
                without.insert(key, number);
            } else if let Some(base) = without.get(&key) {
                said +=
                    &format!(" {name}={}%", u128::from(number) * 100 / u128::from(*base.max(&1)));
            }
        }
        if updates != Some("none") {
            println!("{said}");
        }
    }
}
