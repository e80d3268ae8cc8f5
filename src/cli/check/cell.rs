//! One cell, in a process of its own: runs the guest and tells, line by line, what
//! it printed and how its machine ended.

use std::io::Write;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use super::CheckError;
use super::record::{End, Strayed, line_to_json};
use crate::cli::args::CheckCellArgs;
use crate::cli::evidence::{Report, agreement, realtime_error, samples};
use crate::cli::run::{CliError, machine_config};
use crate::host::{RealtimePair, read_realtime};
use crate::vmm::config::{Initrd, Kernel, MachineConfig};
use crate::vmm::exit::ExitReason;
use crate::vmm::initrd;
use crate::vmm::machine::{Machine, MachineReport};

/// A report of the guest, and what the host's clocks said when it arrived.
type Heard = (Report, RealtimePair);

/// Passes the guest's console on, line by line.
#[derive(Clone, Default)]
struct Listener {
    heard: Arc<Mutex<Vec<Heard>>>,
    line: Vec<u8>,
}

impl Listener {
    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if let Some(report) = Report::parse(text) {
            let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.push((report, read_realtime()));
        }
        crate::cli::say(format_args!("{}\n", line_to_json(text)));
    }
}

impl Write for Listener {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        /// What a guest prints without an end is cut here.
        const LONGEST_LINE: usize = 8192;
        for byte in bytes {
            if *byte == b'\n' || self.line.len() >= LONGEST_LINE {
                self.end_line();
            }
            if *byte != b'\n' {
                self.line.push(*byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.end_line();
        }
    }
}

/// The machine of a cell.
///
/// # Errors
/// A value or a file that is none.
pub fn config(args: &CheckCellArgs) -> Result<MachineConfig, CliError> {
    let mut config = machine_config(&args.machine, Kernel::File(args.kernel.clone()))?;
    let user = match &args.initrd {
        Some(path) => {
            std::fs::read(path).map_err(|error| CheckError::Initrd { path: path.clone(), error })?
        }
        None => Vec::new(),
    };
    let initrd = initrd::with_agent(&user).ok_or(CheckError::NoAgent)?;
    config.initrd = Some(Initrd::Bytes(initrd.into()));
    config.console = args.console.into();
    config.cmdline.clone_from(&args.cmdline);
    Ok(config)
}

/// Runs it.
///
/// # Errors
/// Where no machine could be made.
pub fn run(args: &CheckCellArgs) -> Result<ExitCode, CliError> {
    let config = config(args)?;
    let listener = Listener::default();
    let heard = Arc::clone(&listener.heard);
    let report = Machine::new(&config, Box::new(listener))?.run()?;
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    crate::cli::say(format_args!("{}\n", end(&report, &heard).to_json()));
    Ok(ExitCode::SUCCESS)
}

fn end(report: &MachineReport, heard: &[Heard]) -> End {
    // What does not fit is far beyond every bound.
    let narrow =
        |value: i128| i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX });
    let samples = samples(heard.iter().map(|(report, _)| report));
    let realtime = heard
        .iter()
        .find(|(said, _)| said.topic == "realtime")
        .and_then(|(said, pair)| realtime_error(&report.line, report.guest_tsc, said, pair));
    End {
        powered_off: report.exit == ExitReason::Poweroff,
        text: report.exit.to_string(),
        guarded: report.guarded.active,
        rewrites: report.clock_page_rewrites,
        deviation_ns: report.guarded.deviation_ns,
        wallclock_error_ns: report.wallclock_error_ns.map(narrow),
        agreement: agreement(&report.line, &samples).map(|found| Strayed {
            samples: found.samples as u64,
            strayed_ns: found.strayed_ns,
            resolution_ns: found.resolution_ns,
        }),
        realtime_error_ns: realtime.map(|(error_ns, _)| narrow(error_ns)),
    }
}
