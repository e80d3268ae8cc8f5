//! What a program in the guest read of its own clocks, held against the host's CLOCK_TAI.
//!
//! A line `KVMXEN reading name=… tsc=… tai_ns=… error_ns=…` is one such reading. In peace
//! the host's clock between two samples is a straight line.

use std::collections::BTreeMap;

use crate::windows::Taken;

/// What the guest's page may be off beside the reading's own error.
const WITHIN_NS: u64 = 2_000;

/// One reading of the guest's.
pub struct Reading {
    name: String,
    guest_tsc: u64,
    tai_ns: i64,
    error_ns: u64,
}

impl Reading {
    /// Out of a line of the guest's console.
    pub fn parse(line: &str) -> Option<Self> {
        let words = line.split_once("KVMXEN reading ")?.1;
        let word = |name: &str| {
            words.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        Some(Self {
            name: word("name")?.to_owned(),
            guest_tsc: word("tsc")?.parse().ok()?,
            tai_ns: word("tai_ns")?.parse().ok()?,
            error_ns: word("error_ns")?.parse().ok()?,
        })
    }
}

/// Whether each reading of a device is within its error, and 2 us, of the host's clock.
pub fn hold(readings: &[Reading], samples: &[Taken]) -> bool {
    let mut found = BTreeMap::<&str, Vec<(i64, u64)>>::new();
    for reading in readings {
        if let Some(host_ns) = host_tai_ns(samples, reading.guest_tsc) {
            let offset = reading.tai_ns.saturating_sub(host_ns);
            found.entry(&reading.name).or_default().push((offset, reading.error_ns));
        }
    }
    let mut holds = true;
    for (name, offsets) in &found {
        let most = offsets.iter().map(|(offset, _)| offset.unsigned_abs()).max().unwrap_or(0);
        let widest = offsets.iter().map(|(_, error)| *error).max().unwrap_or(0);
        let outside =
            offsets.iter().filter(|(offset, error)| offset.unsigned_abs() > error + WITHIN_NS);
        let outside = outside.count();
        println!(
            "truth source={name} readings={} most-ns={most} error-most-ns={widest} \
             outside={outside}",
            offsets.len(),
        );
        // The guest's own kernel follows nobody.
        if outside > 0 && name.contains(':') {
            println!("FAIL: {name} in the guest is not the host's clock");
            holds = false;
        }
    }
    holds
}

/// The host's CLOCK_TAI at a guest's TSC, between the two samples around it.
fn host_tai_ns(samples: &[Taken], guest_tsc: u64) -> Option<i64> {
    let at = samples.partition_point(|taken| taken.sample.guest_tsc <= guest_tsc);
    let before = samples.get(at.checked_sub(1)?)?.sample;
    let after = samples.get(at)?.sample;
    let ticks = i128::from(after.guest_tsc - before.guest_tsc);
    let ns = i128::from(after.host_tai_ns - before.host_tai_ns);
    let gone = i128::from(guest_tsc - before.guest_tsc);
    Some(before.host_tai_ns + i64::try_from(ns * gone / ticks.max(1)).ok()?)
}
