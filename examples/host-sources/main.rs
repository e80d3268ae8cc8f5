//! Reads the sources of time that a host has, by the code that serves guests, and holds
//! them against each other. Run it where the host is itself a guest: there are a VMClock
//! and a PTP device then.
//!
//! ```console
//! # host-sources [clocksource=NAME] [tai=S] [readings=N] [print=N] SOURCE...
//! ```
//!
//! `SOURCE` as of `kvm-xen run --time-source`. `clocksource=` and `tai=` change this
//! machine's kernel first. One line for each source, with the errors that it states and
//! what a guest's line becomes by it, and one for each two of them; `print` readings of each
//! are written out. Those that show one clock have to agree within their errors: the devices
//! among themselves, and the kernel's clock by whatever it is read. Fails where two do not,
//! a source is refused, or looks stepped.

mod kernel;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use kvm_xen::clock::TscFrequency;
use kvm_xen::clock::scaling::TscScaling;
use kvm_xen::clock::tai::{CounterPeriod, EstimatorConfig, HostReading, Observation, Tai};
use kvm_xen::host::{Candidates, Chosen, SourceKind, TimeSource, choose, host_tsc};
use kvm_xen::vmclock::TaiFeed;

const PAUSE: Duration = Duration::from_millis(3);
const CALIBRATE: Duration = Duration::from_millis(200);
/// Each reading is rounded to a ns, and so is a page that was renewed between two.
const ROUNDING_NS: u64 = 3;

/// A source that gave readings.
struct Source {
    name: String,
    chosen: Chosen,
    readings: Vec<Option<HostReading>>,
    failed: u32,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_ansi(false).without_time().init();
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("KVMXEN source-error {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, Box<dyn std::error::Error>> {
    let (mut rounds, mut print) = (200u32, 0usize);
    let mut wanted = Vec::<TimeSource>::new();
    for word in std::env::args().skip(1) {
        match word.split_once('=') {
            Some(("clocksource", name)) => kernel::set_clocksource(name)?,
            Some(("tai", seconds)) => kernel::set_tai_offset(seconds.parse()?)?,
            Some(("readings", number)) => rounds = number.parse()?,
            Some(("print", number)) => print = number.parse()?,
            _ => wanted.push(word.parse()?),
        }
    }
    let frequency = calibrated()?;
    println!(
        "KVMXEN sources clocksource={} tsc_khz={} rounds={rounds}",
        kernel::clocksource(),
        frequency.khz_floor(),
    );
    let mut good = true;
    let mut sources = Vec::new();
    for wanted in &wanted {
        let name = wanted.to_string();
        match choose(Candidates { wanted, frequency, kvm: None, leap_table: true }) {
            Ok(chosen) => sources.push(Source { name, chosen, readings: Vec::new(), failed: 0 }),
            Err(error) => {
                println!("KVMXEN source name={name} refused: {error}");
                good = false;
            }
        }
    }
    for _ in 0..rounds {
        for source in &mut sources {
            let reading = source.chosen.source.read();
            if let Err(error) = &reading {
                if source.failed == 0 {
                    println!("KVMXEN source name={} failed: {error}", source.name);
                }
                source.failed += 1;
            }
            source.readings.push(reading.ok());
        }
        std::thread::sleep(PAUSE);
    }
    for source in &sources {
        good &= tell(source) && follow(source, frequency);
    }
    for (n, first) in sources.iter().enumerate() {
        for second in sources.iter().skip(n + 1) {
            good &= tell_both(first, second, frequency);
        }
    }
    for source in &sources {
        for reading in source.readings.iter().rev().flatten().take(print) {
            println!(
                "KVMXEN reading name={} tsc={} tai_ns={} error_ns={}",
                source.name,
                reading.host_tsc,
                reading.tai.ns_floor(),
                reading.error_ns,
            );
        }
    }
    Ok(good)
}

/// What a source gave.
fn tell(source: &Source) -> bool {
    let mut errors: Vec<u64> = source.readings.iter().flatten().map(|one| one.error_ns).collect();
    errors.sort_unstable();
    let of = |percent| percentile(&errors, percent).unwrap_or(u64::MAX);
    let last = source.readings.iter().rev().flatten().next();
    let rejected = source.chosen.rejected.len();
    println!(
        "KVMXEN source name={} kind={} readings={} failed={} rejected={rejected} \
         error_least={} error_median={} error_p99={} error_max={} synchronized={} maxerror_ns={} \
         tai_utc={} own_rate={}",
        source.name,
        source.chosen.source.kind().to_string().replace(' ', "-"),
        errors.len(),
        source.failed,
        of(0),
        of(50),
        of(99),
        of(100),
        last.map_or(0, |last| u8::from(last.sync.synchronized)),
        last.map_or(0, |last| last.sync.maxerror_ns),
        last.map_or(0, |last| last.sync.tai_offset.seconds()),
        last.map_or(0, |last| u8::from(last.rate.is_some())),
    );
    source.failed == 0 && !errors.is_empty()
}

/// The line that a guest would get by it: no reading is a step.
fn follow(source: &Source, frequency: TscFrequency) -> bool {
    let config = EstimatorConfig::linux(frequency);
    let mut feed = TaiFeed::new(config, TscScaling::unscaled(0), 1_000_000);
    let (mut steps, mut status) = (0, None);
    for reading in source.readings.iter().flatten() {
        let fed = feed.observe(reading);
        let stepped = matches!(
            fed.observation,
            Observation::Stepped { .. } | Observation::CounterJumped { .. }
        );
        steps += u32::from(stepped);
        status = Some(fed.update.status);
    }
    let last = source.readings.iter().rev().flatten().next();
    let own = feed.host_line().zip(last).map(|(line, last)| line.own_bound_ns(last.host_tsc));
    println!(
        "KVMXEN line name={} steps={steps} own_bound_ns={} status={}",
        source.name,
        own.unwrap_or(u64::MAX),
        status.map_or_else(String::new, |status| status.to_string().replace(' ', "-")),
    );
    steps == 0
}

/// How far two sources are from each other: the second's readings at the first's TSC.
fn tell_both(first: &Source, second: &Source, frequency: TscFrequency) -> bool {
    let mut distances = Vec::new();
    let mut beyond = 0;
    let pairs = first.readings.iter().zip(&second.readings);
    for (one, other) in pairs.filter_map(|(one, other)| (*one).zip(*other)) {
        let period = [one, other].iter().find_map(|reading| reading.rate);
        let period = period.map_or(CounterPeriod::of_frequency(frequency), |rate| rate.period);
        let ns = other.tai.since(one.tai) - between(period, one.host_tsc, other.host_tsc);
        let ns = Tai::from_units(ns).ns_floor();
        let allowed = one.error_ns.saturating_add(other.error_ns).saturating_add(ROUNDING_NS);
        beyond += u32::from(ns.unsigned_abs() > u128::from(allowed));
        distances.push(ns);
    }
    distances.sort_unstable();
    let at = |percent| percentile(&distances, percent).unwrap_or(0);
    let is_device = |source: &Source| {
        matches!(source.chosen.source.kind(), SourceKind::Ptp | SourceKind::VmClock)
    };
    let same = is_device(first) == is_device(second);
    println!(
        "KVMXEN both first={} second={} pairs={} same={} least_ns={} median_ns={} most_ns={} \
         beyond={beyond}",
        first.name,
        second.name,
        distances.len(),
        u8::from(same),
        at(0),
        at(50),
        at(100),
    );
    !same || beyond == 0
}

/// Of numbers in rising order.
fn percentile<T: Copy>(sorted: &[T], percent: usize) -> Option<T> {
    sorted.get(sorted.len().saturating_sub(1) * percent / 100).copied()
}

/// The time from one TSC to another, in units of 2^-64 s, negative backwards.
fn between(period: CounterPeriod, from: u64, to: u64) -> i128 {
    let units = |ticks| i128::try_from(period.units_in(ticks)).unwrap_or(i128::MAX);
    let ticks = to.wrapping_sub(from).cast_signed();
    if ticks < 0 { -units(ticks.unsigned_abs()) } else { units(ticks.unsigned_abs()) }
}

/// This machine's TSC frequency, near enough for the width of a bracket.
fn calibrated() -> Result<TscFrequency, Box<dyn std::error::Error>> {
    let (began, from) = (Instant::now(), host_tsc());
    std::thread::sleep(CALIBRATE);
    let (took, to) = (began.elapsed(), host_tsc());
    let ticks = u128::from(to.wrapping_sub(from)) * 1_000_000_000 / took.as_nanos().max(1);
    Ok(TscFrequency::from_hz(u64::try_from(ticks)?)?)
}
