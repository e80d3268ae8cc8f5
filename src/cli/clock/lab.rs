//! `kvm-xen clock lab`: KVM's clocks and ours over days and years.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::args::{LabArgs, RawArg};
use super::slew::{Slew, SlewError, Slewed};
use super::units::{show_ns, show_seconds};
use super::{ClockError, csv, html};
use crate::clock::kvm_models::KvmClocks;
use crate::clock::lab::{LabError, Report, Scaling, Scenario, Track, Updates};
use crate::clock::scaling::{FRAC_BITS_AMD, FRAC_BITS_INTEL};

/// The most machines in one run.
const MOST_MACHINES: usize = 64;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum LabCommandError {
    /// The laboratory.
    #[error("host {host_khz} kHz, guest {guest_khz} kHz: {error}")]
    Lab {
        /// Host TSC.
        host_khz: u32,
        /// Guest TSC.
        guest_khz: u32,
        /// What is wrong with them.
        error: LabError,
    },
    /// The wallclock.
    #[error(transparent)]
    Slew(#[from] SlewError),
    /// Too many pairs.
    #[error("{0} pairs of host and guest; give {MOST_MACHINES} at most")]
    TooMany(usize),
    /// A report.
    #[error("{option} {path}: {error}")]
    File {
        /// Which one.
        option: &'static str,
        /// Its file.
        path: PathBuf,
        /// What the host said.
        error: std::io::Error,
    },
}

/// One host and guest, and what was found.
pub struct Machine {
    /// What was computed.
    pub scenario: Scenario,
    /// The clocks.
    pub report: Report,
    /// The wallclock, run for an hour.
    pub slewed: Slewed,
}

/// An hour of NTP's largest steering, a look at the host every millisecond: at
/// 500 ppm that adds 500 ns to the bound.
const SLEW_SECONDS: u64 = 3_600;
const SLEW_PPM: i64 = 500;
const SLEW_LOOK_US: u64 = 1_000;
const SLEW_BOUND_NS: u64 = 400;

impl Machine {
    fn new(scenario: Scenario) -> Result<Self, LabCommandError> {
        let (host_khz, guest_khz) = (scenario.host_khz, scenario.guest_khz);
        let wrong = |error| LabCommandError::Lab { host_khz, guest_khz, error };
        let report = scenario.run().map_err(wrong)?;
        let (guest_khz, frac_bits) = match scenario.scaling {
            Scaling::Intel => (guest_khz, FRAC_BITS_INTEL),
            Scaling::Amd => (guest_khz, FRAC_BITS_AMD),
            Scaling::None => (host_khz, FRAC_BITS_AMD),
        };
        let clocks = KvmClocks::new(host_khz, guest_khz, frac_bits)
            .map_err(|error| wrong(LabError::Model(error)))?;
        let slewed = Slew {
            host_khz,
            scaling: clocks.scaling(),
            seconds: SLEW_SECONDS,
            ppm: SLEW_PPM,
            look_us: SLEW_LOOK_US,
            bound_ns: SLEW_BOUND_NS,
        }
        .run()?;
        Ok(Self { scenario, report, slewed })
    }

    /// The clocks by name, in the order of the table.
    pub fn tracks(&self) -> [(&'static str, &Track); 6] {
        let report = &self.report;
        [
            ("A: CLOCK_MONOTONIC_RAW", &report.a),
            ("B: what KVM's guests read", &report.b),
            ("C: KVM_GET_CLOCK", &report.c),
            ("ours: the exact line", &report.ours_tai),
            ("ours: its page of 32 bits", &report.ours),
            ("ours: page keeping Linux's kHz", &report.ours_khz),
        ]
    }

    /// The wallclocks by name.
    pub fn wallclocks(&self) -> [(&'static str, &Track); 2] {
        [
            ("written once (KVM, QEMU)", &self.report.wallclock_kvm),
            ("ours", &self.report.wallclock_ours),
        ]
    }

    /// One line of what was computed.
    pub fn title(&self) -> String {
        let scenario = &self.scenario;
        let scaling = match scenario.scaling {
            Scaling::Intel => "scaled by 48 bits (Intel)",
            Scaling::Amd => "scaled by 32 bits (AMD)",
            Scaling::None => "not scaled",
        };
        let guest = match scenario.scaling {
            Scaling::None => scenario.host_khz,
            Scaling::Intel | Scaling::Amd => scenario.guest_khz,
        };
        format!("host {} kHz, guest {guest} kHz, {scaling}", scenario.host_khz)
    }

    /// One line of what happened.
    pub fn history(&self) -> String {
        let scenario = &self.scenario;
        let mut text = show_seconds(scenario.seconds);
        match &scenario.updates {
            Updates::Never => text.push_str(", no masterclock update"),
            Updates::Every(every) => {
                let _ = write!(text, ", a masterclock update every {}", show_seconds(*every));
            }
            Updates::At(_) => {
                let _ = write!(text, ", {} masterclock updates", self.report.b.jumps);
            }
        }
        if scenario.linux_raw {
            text.push_str(", CLOCK_MONOTONIC_RAW as Linux rounds it");
        }
        for stretch in &scenario.ntp {
            let _ =
                write!(text, "; NTP {:+} ppb for {}", stretch.ppb, show_seconds(stretch.seconds));
            if stretch.step_ns != 0 {
                let _ = write!(text, ", then a step of {}", show_ns(stretch.step_ns.into()));
            }
        }
        text
    }

    /// The hour of slew, in words.
    pub fn slew_rows(&self) -> [(String, String); 2] {
        [
            ("written once (KVM, QEMU)".to_owned(), show_ns(self.slewed.write_once_ns)),
            (
                "ours".to_owned(),
                format!(
                    "at most {}, {} rewrites",
                    show_ns(i128::try_from(self.slewed.worst_ns).unwrap_or(i128::MAX)),
                    self.slewed.rewrites
                ),
            ),
        ]
    }
}

/// The columns after a clock's name.
pub const COLUMNS: [&str; 5] = ["ppb", "a day", "worst", "jumps", "largest jump"];

/// A clock's cells under [`COLUMNS`].
pub fn cells(track: &Track) -> [String; 5] {
    let worst = i128::try_from(track.worst_ns).unwrap_or(i128::MAX);
    [
        track.ppb.to_string(),
        show_ns(track.per_day_ns),
        show_ns(worst),
        track.jumps.to_string(),
        show_ns(track.worst_jump_ns),
    ]
}

/// Those of a wallclock, which drifts from UTC, not by a rate of its own.
pub fn wallclock_cells(track: &Track) -> [String; 5] {
    let mut cells = cells(track);
    (cells[0], cells[1]) = (String::new(), String::new());
    cells
}

pub fn lab(args: &LabArgs) -> Result<ExitCode, ClockError> {
    let scenarios = scenarios(args)?;
    // Before anything is computed, which may take long.
    for (option, path) in [("--html", &args.html), ("--csv", &args.csv)] {
        if let Some(path) = path {
            check_writable(option, path)?;
        }
    }
    let machines = scenarios.into_iter().map(Machine::new).collect::<Result<Vec<_>, _>>()?;
    crate::cli::say(table(&machines));
    if let Some(path) = &args.html {
        write("--html", path, &html::report(&machines))?;
    }
    if let Some(path) = &args.csv {
        write("--csv", path, &csv::series(&machines))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a file can be written there; leaves everything as it was.
fn check_writable(option: &'static str, path: &Path) -> Result<(), LabCommandError> {
    let existed = path.exists();
    let opened = std::fs::File::options().append(true).create(true).open(path);
    if opened.is_ok() && !existed {
        // What is made for good comes later.
        let _ = std::fs::remove_file(path);
    }
    opened.map(drop).map_err(|error| LabCommandError::File { option, path: path.to_owned(), error })
}

fn write(option: &'static str, path: &Path, text: &str) -> Result<(), LabCommandError> {
    std::fs::write(path, text).map_err(|error| LabCommandError::File {
        option,
        path: path.to_owned(),
        error,
    })
}

fn scenarios(args: &LabArgs) -> Result<Vec<Scenario>, LabCommandError> {
    let scaling = args.scaling.into();
    // Without scaling each host has one guest, at its own frequency.
    let guests: &[u32] = match scaling {
        Scaling::None => &args.guest_khz[..args.guest_khz.len().min(1)],
        Scaling::Intel | Scaling::Amd => &args.guest_khz,
    };
    let pairs = args.host_khz.len() * guests.len();
    if pairs > MOST_MACHINES {
        return Err(LabCommandError::TooMany(pairs));
    }
    let updates = match (args.updates_every, args.updates_at.as_slice()) {
        (Some(every), _) => Updates::Every(every),
        (None, []) => Updates::Never,
        (None, times) => Updates::At(times.to_vec()),
    };
    let scenario = |host_khz, guest_khz| Scenario {
        seconds: args.duration.unwrap_or(args.days),
        points: args.points,
        updates: updates.clone(),
        linux_raw: args.raw == RawArg::Linux,
        ntp: args.ntp.clone().unwrap_or_default().0,
        ..Scenario::new(host_khz, guest_khz, scaling)
    };
    Ok(args
        .host_khz
        .iter()
        .flat_map(|&host| guests.iter().map(move |&guest| (host, guest)))
        .map(|(host, guest)| scenario(host, guest))
        .collect())
}

/// All machines, for a terminal.
fn table(machines: &[Machine]) -> String {
    let mut text = String::new();
    for machine in machines {
        let _ = writeln!(text, "{}\n{}\n", machine.title(), machine.history());
        let mut rows = vec![row("system time", COLUMNS.map(str::to_owned))];
        rows.extend(machine.tracks().map(|(name, track)| row(name, cells(track))));
        let wallclocks = machine.wallclocks();
        rows.push(row("wallclock from UTC", Default::default()));
        rows.extend(
            wallclocks.map(|(name, track)| row(&format!("  {name}"), wallclock_cells(track))),
        );
        rows.push(row(
            &format!("wallclock after {} of {SLEW_PPM} ppm, simulated", show_seconds(SLEW_SECONDS)),
            Default::default(),
        ));
        align(&mut text, &rows);
        for (name, value) in machine.slew_rows() {
            let _ = writeln!(text, "    {name}: {value}");
        }
        text.push('\n');
    }
    text
}

fn row(name: &str, cells: [String; 5]) -> Vec<String> {
    std::iter::once(name.to_owned()).chain(cells).collect()
}

/// Names to the left, numbers to the right.
fn align(text: &mut String, rows: &[Vec<String>]) {
    // A row of a name alone is a heading, and may run over the others' cells.
    let widest = |column: usize| {
        let rows = rows.iter().filter(|row| row.iter().skip(1).any(|cell| !cell.is_empty()));
        rows.map(|row| row[column].chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..=COLUMNS.len()).map(widest).collect();
    for row in rows {
        let mut line = format!("  {:<width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            let _ = write!(line, "  {cell:>width$}");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

#[cfg(test)]
mod tests;
