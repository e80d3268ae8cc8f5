//! The metrics in Prometheus's text format. Times are seconds, as decimal
//! fractions of exact nanoseconds.

use std::fmt::{Display, Write as _};

use crate::vmm::clock_metrics::ClockMetrics;
use crate::vmm::control::{MachineState, Status};

/// Version 0.0.4 of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Nanoseconds that print as seconds.
struct Seconds(i128);

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let ns = self.0.unsigned_abs();
        write!(f, "{sign}{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
    }
}

/// All metrics of one machine.
pub fn text(status: &Status, clock: &ClockMetrics) -> String {
    let mut text = Text(String::new());
    text.sample("info", "gauge", "What this machine is; always 1.", &labels(status, clock), 1);
    let paused = u8::from(status.state == MachineState::Paused);
    text.gauge("paused", "1 while the machine is paused.", paused);
    let suspended = u8::from(status.state == MachineState::Suspended);
    text.gauge("suspended", "1 while the guest is suspended.", suspended);
    text.gauge("vcpus", "vCPUs of the guest.", status.vcpus);
    text.gauge("vcpus_online", "vCPUs that are up.", status.vcpus_online);
    text.gauge("memory_bytes", "Memory of the guest.", status.memory_bytes);
    text.seconds_gauge("uptime_seconds", "Since the machine was made.", status.uptime_ns);

    text.seconds_gauge(
        "clock_system_time_seconds",
        "The guest's system time, by the published line.",
        clock.system_time_ns,
    );
    text.seconds_gauge(
        "clock_offset_seconds",
        "Guest's TAI less the host's CLOCK_TAI.",
        clock.offset_ns,
    );
    text.seconds_gauge(
        "clock_reading_error_seconds",
        "Half-width with which the host's TAI was read.",
        clock.reading_error_ns,
    );
    text.seconds_gauge(
        "clock_bound_seconds",
        "Published error bound, the host's own error included.",
        clock.bound_ns,
    );
    text.seconds_gauge(
        "clock_own_bound_seconds",
        "The part of the bound against the host's clock alone.",
        clock.own_bound_ns,
    );
    text.seconds_gauge(
        "clock_host_maxerror_seconds",
        "The host's distance from true time, as it states it.",
        clock.host_maxerror_ns,
    );
    text.seconds_gauge("clock_page_age_seconds", "Age of the published page.", clock.page_age_ns);
    text.gauge("clock_rate_ppb", "Published rate, in 10^-9 off nominal.", clock.rate_ppb);
    text.seconds_gauge(
        "clock_longest_step_to_page_seconds",
        "Longest time from a step's notice to the new page.",
        clock.longest_step_to_page_ns,
    );
    if let Some(error_ns) = clock.wallclock_error_ns {
        text.seconds_gauge(
            "wallclock_error_seconds",
            "Xen wallclock less the host's UTC, at the last reading.",
            error_ns,
        );
    }
    text.seconds_gauge(
        "kvm_clock_largest_jump_seconds",
        "Largest jump of KVM's own clock.",
        clock.largest_kvm_clock_jump_ns,
    );
    for (name, help, value) in [
        ("clock_page_updates_total", "VMClock pages published.", clock.page_updates),
        ("clock_readings_total", "Readings of the host taken.", clock.readings),
        ("clock_missed_readings_total", "Readings that failed.", clock.missed_readings),
        ("clock_host_steps_total", "Steps of the host's clock noticed.", clock.host_steps),
        ("clock_disruptions_total", "Disruptions told to the guest.", clock.disruptions),
        ("wallclock_updates_total", "Wallclock pages written.", clock.wallclock_updates),
        (
            "vcpu_clock_page_rewrites_total",
            "vCPU clock pages written again after their first time.",
            clock.clock_page_rewrites,
        ),
        ("kvm_clock_jumps_total", "Jumps of KVM's own clock.", clock.kvm_clock_jumps),
    ] {
        text.sample(name, "counter", help, "", value);
    }
    text.0
}

fn labels(status: &Status, clock: &ClockMetrics) -> String {
    let escape =
        |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let pairs = [
        ("version", status.version.as_str()),
        ("xen_version", &status.xen_version),
        ("clock_mode", &status.clock_mode),
        ("hypercall_mode", &status.hypercall_mode),
        ("clock_source", &clock.source),
        ("clock_status", &clock.clock_status),
    ];
    let pairs = pairs.map(|(name, value)| format!("{name}=\"{}\"", escape(value)));
    format!("{{{}}}", pairs.join(","))
}

struct Text(String);

impl Text {
    fn sample(&mut self, name: &str, kind: &str, help: &str, labels: &str, value: impl Display) {
        // Writing to a string does not fail.
        let _ = writeln!(
            self.0,
            "# HELP kvm_xen_{name} {help}\n# TYPE kvm_xen_{name} {kind}\nkvm_xen_{name}{labels} {value}"
        );
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.sample(name, "gauge", help, "", value);
    }

    fn seconds_gauge(&mut self, name: &str, help: &str, ns: impl Into<i128>) {
        self.gauge(name, help, Seconds(ns.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format() {
        let status = Status { vcpus: 2, memory_bytes: 1 << 29, ..Status::default() };
        let clock = ClockMetrics {
            source: "a \"quoted\\\nname".to_owned(),
            offset_ns: -1_000_000_123,
            bound_ns: 42,
            rate_ppb: -500_000,
            page_updates: u64::MAX,
            wallclock_error_ns: Some(-7),
            ..ClockMetrics::default()
        };
        let text = text(&status, &clock);
        for line in [
            "kvm_xen_clock_offset_seconds -1.000000123",
            "kvm_xen_clock_bound_seconds 0.000000042",
            "kvm_xen_clock_rate_ppb -500000",
            "kvm_xen_clock_page_updates_total 18446744073709551615",
            "kvm_xen_wallclock_error_seconds -0.000000007",
            "# TYPE kvm_xen_clock_page_updates_total counter",
            "# TYPE kvm_xen_clock_bound_seconds gauge",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(text.contains(r#"clock_source="a \"quoted\\\nname""#), "{text}");
        // HELP, TYPE, sample: each name once, in this order.
        let lines: Vec<&str> = text.lines().collect();
        let mut names = std::collections::HashSet::new();
        for group in lines.chunks(3) {
            let name = group[2].split([' ', '{']).next().unwrap();
            assert!(group[0].starts_with(&format!("# HELP {name} ")), "{group:?}");
            assert!(group[1].starts_with(&format!("# TYPE {name} ")), "{group:?}");
            assert!(names.insert(name), "{name} twice");
            assert_eq!(group[1].ends_with("counter"), name.ends_with("_total"), "{name}");
        }
        let none = ClockMetrics::default();
        assert!(!super::text(&status, &none).contains("wallclock_error"));
    }
}
