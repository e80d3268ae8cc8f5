//! `kvm-xen clock watch`: a running guest's clocks, every second.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use super::ClockError;
use super::args::WatchArgs;
use super::units::show_ns;
use crate::cli::client::{Client, ClientError};
use crate::cli::table::Table;
use crate::vmm::clock_metrics::ClockMetrics;
use crate::vmm::control::{MachineState, Status};

const EVERY: Duration = Duration::from_secs(1);

pub fn watch(args: &WatchArgs) -> Result<ExitCode, ClockError> {
    let mut client = Client::connect(&args.socket)?;
    let terminal = std::io::stdout().is_terminal();
    let begin = Instant::now();
    let mut lines = 0;
    for turn in 0u32.. {
        let next = EVERY.saturating_mul(turn);
        if args.seconds.is_some_and(|seconds| next >= Duration::from_secs(seconds)) {
            break;
        }
        thread::sleep(next.saturating_sub(begin.elapsed()));
        let (status, clock) = match ask(&mut client) {
            Ok(found) => found,
            Err(ClientError::Gone { .. }) if turn > 0 => {
                crate::cli::complain("the machine has ended");
                break;
            }
            Err(error) => return Err(error.into()),
        };
        if terminal {
            let table = table(&status, &clock).to_string();
            // Up over the last table, and each line cleared to its end.
            let up = if lines > 0 { format!("\x1b[{lines}A") } else { String::new() };
            crate::cli::say(format_args!("{up}{}\x1b[J", table.replace('\n', "\x1b[K\n")));
            lines = table.lines().count();
        } else {
            crate::cli::say(line(&status, &clock));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(client: &mut Client) -> Result<(Status, ClockMetrics), ClientError> {
    Ok((client.get("/v1/status")?, client.get("/v1/clock")?))
}

fn state(status: &Status) -> &'static str {
    match status.state {
        MachineState::Running => "running",
        MachineState::Paused => "paused",
        MachineState::Suspended => "suspended",
    }
}

fn table(status: &Status, clock: &ClockMetrics) -> Table {
    let mut table = Table::default();
    table.tell("machine", format_args!("{}, clock pages {}", state(status), status.clock_mode));
    table.tell("source", format_args!("{}, {}", clock.source, clock.clock_status));
    let ns = |value: u64| show_ns(value.into());
    table.tell("guest's system time", ns(clock.system_time_ns));
    table.tell(
        "guest TAI from host TAI",
        format_args!(
            "{} (read to {})",
            show_ns(clock.offset_ns.into()),
            ns(clock.reading_error_ns)
        ),
    );
    table.tell(
        "published bound",
        format_args!(
            "{}, {} of it ours, host's maxerror {}",
            ns(clock.bound_ns),
            ns(clock.own_bound_ns),
            ns(clock.host_maxerror_ns)
        ),
    );
    table.tell("rate", format_args!("{:+} ppb", clock.rate_ppb));
    table.tell(
        "page updates",
        format_args!("{}, the last {} ago", clock.page_updates, ns(clock.page_age_ns)),
    );
    table.tell(
        "host readings",
        format_args!("{}, {} missed", clock.readings, clock.missed_readings),
    );
    table.tell(
        "steps of the host's clock",
        format_args!(
            "{}, to the new page {} at most",
            clock.host_steps,
            ns(clock.longest_step_to_page_ns)
        ),
    );
    table.tell("disruptions told", clock.disruptions);
    let wallclock = clock.wallclock_error_ns.map_or("no page".to_owned(), |ns| show_ns(ns.into()));
    table.tell(
        "wallclock from host UTC",
        format_args!("{wallclock}, {} updates", clock.wallclock_updates),
    );
    table.tell("vCPU clock pages rewritten", clock.clock_page_rewrites);
    if status.clock_mode == "guarded" {
        table.tell(
            "jumps of KVM's clock",
            format_args!(
                "{}, {} at most",
                clock.kvm_clock_jumps,
                ns(clock.largest_kvm_clock_jump_ns)
            ),
        );
    }
    table
}

/// The same for a file or a pipe: one line, `key=value`, ns.
fn line(status: &Status, clock: &ClockMetrics) -> String {
    let mut line = format!(
        "state={} status={} system_time_ns={} offset_ns={} reading_error_ns={} bound_ns={} \
         own_bound_ns={} rate_ppb={} page_age_ns={} page_updates={} host_steps={} disruptions={}",
        state(status),
        clock.clock_status.replace(' ', "-"),
        clock.system_time_ns,
        clock.offset_ns,
        clock.reading_error_ns,
        clock.bound_ns,
        clock.own_bound_ns,
        clock.rate_ppb,
        clock.page_age_ns,
        clock.page_updates,
        clock.host_steps,
        clock.disruptions
    );
    if let Some(error_ns) = clock.wallclock_error_ns {
        let _ = write!(line, " wallclock_error_ns={error_ns}");
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_and_a_table_has_all() {
        let status = Status { clock_mode: "guarded".to_owned(), ..Status::default() };
        let clock = ClockMetrics {
            clock_status: "free running".to_owned(),
            offset_ns: -42,
            bound_ns: 1_500,
            wallclock_error_ns: Some(-3),
            ..ClockMetrics::default()
        };
        let line = line(&status, &clock);
        assert_eq!(line.lines().count(), 1);
        for part in
            ["state=running", "status=free-running", "offset_ns=-42", "wallclock_error_ns=-3\n"]
        {
            assert!(line.contains(part), "{line}");
        }
        let table = table(&status, &clock).to_string();
        for part in ["-42 ns", "1.500 µs", "+0 ppb", "jumps of KVM's clock"] {
            assert!(table.contains(part), "{table}");
        }
    }
}
