//! What the laboratory prints and writes.

use super::*;
use crate::cli::args::{Cli, Command};
use crate::cli::clock::args::ClockCommand;
use clap::Parser;

fn machines(more: &[&str]) -> Vec<Machine> {
    let line = ["kvm-xen", "clock", "lab"].iter().chain(more);
    let Command::Clock(clock) = Cli::parse_from(line).command else { panic!("not clock") };
    let ClockCommand::Lab(args) = clock.command else { panic!("not lab") };
    let scenarios = scenarios(&args).unwrap();
    // The simulated hour takes its time without optimisation, and has its own test.
    scenarios
        .into_iter()
        .map(|scenario| Machine {
            report: scenario.run().unwrap(),
            scenario,
            slewed: Slewed { worst_ns: 901, write_once_ns: -1_800_000_000, rewrites: 3_600_000 },
        })
        .collect()
}

#[test]
fn the_table_has_the_known_numbers() {
    let text = table(&machines(&[]));
    let row = |name: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("B:"), "B: what KVM's guests read 400 34.555 ms 34.555 ms 0 0 ns");
    assert_eq!(row("ours: the exact"), "ours: the exact line 0 0 ns 0 ns 0 0 ns");
    assert!(row("ours: its page").contains("bits 0 5.029 µs 5.029 µs 0 0 ns"), "{text}");
    assert!(text.contains("written once (KVM, QEMU): -1.800 s"), "{text}");
    assert!(text.contains("ours: at most 901 ns, 3600000 rewrites"), "{text}");
}

#[test]
fn options_become_scenarios() {
    let found = machines(&[
        "--host-khz",
        "3000000,2000000",
        "--guest-khz",
        "2500000,2600000",
        "--scaling",
        "amd",
        "--duration",
        "2h",
        "--updates-at",
        "1h,90m",
        "--ntp",
        "1h:1ppm,1h:-20ppb:+5ms",
        "--raw",
        "linux",
        "--points",
        "4",
    ]);
    assert_eq!(found.len(), 4);
    let first = &found[0];
    assert_eq!(first.title(), "host 3000000 kHz, guest 2500000 kHz, scaled by 32 bits (AMD)");
    assert_eq!(
        first.history(),
        "2 hours, 2 masterclock updates, CLOCK_MONOTONIC_RAW as Linux rounds it; NTP +1000 ppb \
         for 1 hour; NTP -20 ppb for 1 hour, then a step of 5.000 ms"
    );
    assert_eq!(first.report.b.jumps, 2);
    // A guest that is not scaled has one frequency.
    assert_eq!(machines(&["--scaling", "none", "--guest-khz", "1,2,3"]).len(), 1);
}

#[test]
fn the_csv_has_all_series() {
    let found = machines(&["--points", "2", "--updates-every", "12h"]);
    let text = csv::series(&found);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.len(), 1 + 5); // the start, and two rows for each update
    assert!(lines.iter().all(|line| line.len() == 11), "{text}");
    assert_eq!((lines[0][2], lines[0][4]), ("seconds", "b_ns"));
    assert_eq!((lines[2][2], lines[3][2], lines[3][4]), ("43200", "43200", "0"));
    assert!(lines[2][4].starts_with("1727"), "{text}");
}

#[test]
fn the_report_needs_nothing_else() {
    let text = html::report(&machines(&["--updates-every", "1h", "--ntp", "1h:+500ppm"]));
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "//"] {
        assert!(!text.contains(outside), "{outside}");
    }
    assert_eq!(text.matches("<svg").count(), text.matches("</svg>").count());
    assert_eq!(text.matches("role=\"img\"").count(), 3);
    for part in ["color-scheme:light dark", "34.555 ms", "-1.440 ms", ">24<", "-1.800 s"] {
        assert!(text.contains(part), "{part}");
    }
}
