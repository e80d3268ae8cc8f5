//! The cells of a check: on which machines a kernel is run.
//!
//! A covering set rather than the full product: each setting alone against the
//! base cell, then the pairs in which one setting changes what the other does:
//! everything that is done for each vCPU with 4 of them and with 1, each way in
//! which upcalls come with each way in which events are kept, each writer of the
//! clock pages with a guest that does not look at them.

use std::fmt;

use crate::kvm::{Capabilities, ClockMode, HypercallMode};

/// Who writes the clock pages in a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// kvm-xen.
    Owned,
    /// KVM, watched.
    Guarded,
}

/// One machine. Its name says where it differs from [`Cell::BASE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// vCPUs.
    pub cpus: u32,
    /// Who writes the clock pages.
    pub clock: Clock,
    /// How hypercalls arrive.
    pub hypercalls: HypercallMode,
    /// Whether vCPUs are offered upcall vectors of their own.
    pub upcall_vector: bool,
    /// Whether the FIFO event channels are offered.
    pub fifo: bool,
    /// Whether the kernel is told `nopvspin`.
    pub nopvspin: bool,
    /// Whether the kernel is told `clocksource=tsc`.
    pub tsc: bool,
}

impl Cell {
    /// What a Linux of today gets.
    pub const BASE: Self = Self {
        cpus: 2,
        clock: Clock::Owned,
        hypercalls: HypercallMode::KvmXen,
        upcall_vector: true,
        fifo: true,
        nopvspin: false,
        tsc: false,
    };

    /// The settings by name and value, for people and reports.
    pub fn settings(&self) -> [(&'static str, String); 7] {
        let on = |on| (if on { "on" } else { "off" }).to_owned();
        [
            ("cpus", self.cpus.to_string()),
            ("clock", if self.clock == Clock::Owned { "owned" } else { "guarded" }.to_owned()),
            ("hypercalls", self.hypercalls.to_string()),
            ("upcall-vector", on(self.upcall_vector)),
            ("event-channels", if self.fifo { "fifo" } else { "2-level" }.to_owned()),
            ("nopvspin", on(self.nopvspin)),
            ("clocksource", self.clocksource().to_owned()),
        ]
    }

    /// The clocksource that the kernel should take.
    pub const fn clocksource(&self) -> &'static str {
        if self.tsc { "tsc" } else { "xen" }
    }

    /// What the kernel's command line needs for this cell. Without
    /// `tsc=reliable` Linux trusts the TSCs of several CPUs only where CPUID
    /// calls them invariant.
    pub fn cmdline(&self) -> String {
        let mut words = Vec::new();
        if self.nopvspin {
            words.push("nopvspin");
        }
        if self.tsc {
            words.push("clocksource=tsc tsc=reliable");
        }
        words.join(" ")
    }

    /// Why there is no such machine; `None` if there is.
    fn nonsense(&self) -> Option<&'static str> {
        match (self.clock, self.hypercalls) {
            (Clock::Guarded, HypercallMode::PortIo) => {
                Some("only CONFIG_KVM_XEN, which port I/O does without, lets KVM write clock pages")
            }
            _ => None,
        }
    }

    /// Why this host can not run it; `None` if it can.
    pub fn lacking(&self, caps: &Capabilities) -> Option<String> {
        if self.cpus > caps.max_vcpus {
            return Some(format!("this KVM has {} vCPUs at the most", caps.max_vcpus));
        }
        let hypercalls = caps.check_hypercalls(self.hypercalls);
        let clock = match self.clock {
            Clock::Owned if self.upcall_vector => Ok(()),
            Clock::Owned => caps.callback_delivery(ClockMode::Owned).map(drop),
            Clock::Guarded => caps.check_guarded(),
        };
        hypercalls.and(clock).err().map(|error| error.to_string())
    }
}

impl fmt::Display for Cell {
    /// Such as `base` or `4-vcpus+guarded`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = Self::BASE;
        let mut parts = Vec::new();
        let cpus = format!("{}-vcpu{}", self.cpus, if self.cpus == 1 { "" } else { "s" });
        for (differs, name) in [
            (self.cpus != base.cpus, cpus.as_str()),
            (self.clock != base.clock, "guarded"),
            (self.hypercalls != base.hypercalls, "port-io"),
            (self.upcall_vector != base.upcall_vector, "vm-vector"),
            (self.fifo != base.fifo, "2-level"),
            (self.nopvspin != base.nopvspin, "nopvspin"),
            (self.tsc != base.tsc, "tsc"),
        ] {
            if differs {
                parts.push(name);
            }
        }
        f.write_str(&if parts.is_empty() { "base".to_owned() } else { parts.join("+") })
    }
}

/// A cell of the plan, or why it is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The cell.
    pub cell: Cell,
    /// Why it makes no sense; it is listed and never run.
    pub excluded: Option<&'static str>,
}

/// The covering set, or with `all` the full product.
pub fn matrix(all: bool) -> Vec<Entry> {
    let cells = if all { product() } else { covering() };
    cells.into_iter().map(|cell| Entry { cell, excluded: cell.nonsense() }).collect()
}

fn covering() -> Vec<Cell> {
    let base = Cell::BASE;
    let guarded = Cell { clock: Clock::Guarded, ..base };
    let vm_vector = Cell { upcall_vector: false, ..guarded };
    let port_io = Cell { hypercalls: HypercallMode::PortIo, ..base };
    vec![
        base,
        Cell { cpus: 1, ..base },
        Cell { cpus: 4, ..base },
        guarded,
        port_io,
        Cell { upcall_vector: false, ..base },
        Cell { cpus: 4, upcall_vector: false, ..base },
        Cell { fifo: false, ..base },
        Cell { nopvspin: true, ..base },
        Cell { tsc: true, ..base },
        vm_vector,
        Cell { cpus: 1, ..vm_vector },
        Cell { cpus: 4, ..vm_vector },
        Cell { fifo: false, ..guarded },
        Cell { cpus: 4, fifo: false, ..guarded },
        Cell { fifo: false, ..vm_vector },
        Cell { tsc: true, ..vm_vector },
        Cell { clock: Clock::Guarded, ..port_io },
        Cell { cpus: 1, ..port_io },
        Cell { cpus: 4, ..port_io },
        Cell { upcall_vector: false, ..port_io },
        Cell { fifo: false, ..port_io },
        Cell { cpus: 4, fifo: false, ..base },
        Cell { cpus: 4, nopvspin: true, ..base },
        Cell { cpus: 4, tsc: true, ..base },
    ]
}

fn product() -> Vec<Cell> {
    let mut cells = vec![Cell::BASE];
    let mut spread = |change: &dyn Fn(Cell) -> Vec<Cell>| {
        cells = cells.iter().flat_map(|cell| change(*cell)).collect();
    };
    spread(&|cell| [2, 1, 4].map(|cpus| Cell { cpus, ..cell }).to_vec());
    spread(&|cell| vec![cell, Cell { clock: Clock::Guarded, ..cell }]);
    spread(&|cell| vec![cell, Cell { hypercalls: HypercallMode::PortIo, ..cell }]);
    spread(&|cell| vec![cell, Cell { upcall_vector: false, ..cell }]);
    spread(&|cell| vec![cell, Cell { fifo: false, ..cell }]);
    spread(&|cell| vec![cell, Cell { nopvspin: true, ..cell }]);
    spread(&|cell| vec![cell, Cell { tsc: true, ..cell }]);
    cells
}

/// Whether `name` is what `pattern` says, with `*` for any text and `?` for any
/// one character.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    // Which beginnings of the name the pattern so far can stand for.
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    for symbol in pattern {
        let mut next = vec![false; name.len() + 1];
        for at in 0..=name.len() {
            next[at] = match symbol {
                '*' => reached[at] || (at > 0 && next[at - 1]),
                '?' => at > 0 && reached[at - 1],
                other => at > 0 && reached[at - 1] && name[at - 1] == other,
            };
        }
        reached = next;
    }
    reached[name.len()]
}

#[cfg(test)]
mod tests;
