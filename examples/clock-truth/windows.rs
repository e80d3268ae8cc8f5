//! The windows between a step of the host's clock and the page that knows it.
//!
//! *Sampled*: from the last sample that was right to the first that is right again, so
//! longer than the window by up to two pauses between samples, and by what kept those.
//! *Measured*: from just before the call that stepped the clock, where the command told of
//! it (`before_tsc=… after_tsc=…`), to when the page was written; else, as at a leap second,
//! from the last sample that was right. Both in ticks of the host's TSC.

use kvm_xen::vmm::clock_service::ClockSample;

/// A sample, and when it was begun and done.
#[derive(Clone, Copy)]
pub struct Taken {
    pub began: u64,
    pub done: u64,
    /// When its page was written, if that is known.
    pub page_at: Option<u64>,
    pub sample: ClockSample,
}

/// A call that stepped the clock: some time between the two.
#[derive(Clone, Copy)]
pub struct Step {
    pub before: u64,
    pub after: u64,
}

impl Step {
    /// Out of a line of the command's output.
    pub fn parse(line: &str) -> Option<Self> {
        let word = |name: &str| {
            let mut words = line.split_whitespace();
            words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?.parse().ok()
        };
        Some(Self { before: word("before_tsc")?, after: word("after_tsc")? })
    }
}

/// A window.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub from: u64,
    pub to: u64,
}

impl Window {
    /// How long it was.
    pub const fn ticks(self) -> u64 {
        self.to.saturating_sub(self.from)
    }
}

/// The windows as samples show them. One without an end lasts to the last sample.
pub fn sampled(taken: &[Taken]) -> Vec<Window> {
    edges(taken)
        .map(|(before, within, after)| Window {
            from: before.map_or(within.began, |taken| taken.began),
            to: after.map_or(taken.last().map_or(within.done, |last| last.done), |one| one.done),
        })
        .collect()
}

/// The windows as they were.
pub fn measured(taken: &[Taken], steps: &[Step]) -> Vec<Window> {
    let mut found: Vec<Window> = steps
        .iter()
        .enumerate()
        .filter_map(|(n, step)| of_step(taken, *step, &steps[n + 1..]))
        .collect();
    // What nobody announced.
    for (before, within, after) in edges(taken) {
        let from = before.map_or(within.began, |taken| taken.sample.host_tsc);
        let end = after.or(taken.last()).unwrap_or(within);
        let told = steps.iter().any(|step| step.before < end.done && step.after > from);
        if !told {
            let to = end.page_at.filter(|at| *at > from).unwrap_or(end.done);
            found.push(Window { from, to });
        }
    }
    found
}

/// `None` where the page stayed right.
fn of_step(taken: &[Taken], step: Step, later: &[Step]) -> Option<Window> {
    let from = step.before;
    let begun = taken.partition_point(|taken| taken.sample.host_tsc <= step.after);
    let Some(right) = taken[begun..].iter().find(|taken| !taken.sample.in_step_window) else {
        return taken.last().map(|last| Window { from, to: last.done });
    };
    match right.page_at {
        Some(at) if at > from => Some(Window { from, to: at }),
        // Renewed since: its end at the latest.
        None => Some(Window { from, to: right.done }),
        // The old page is right: a later step undid this one.
        Some(_) => {
            let undone = later.iter().find(|later| later.before < right.done)?;
            Some(Window { from, to: undone.after })
        }
    }
}

/// For each run of samples in a window: the last right one before it, the first of the
/// run, the first right one after it.
fn edges(taken: &[Taken]) -> impl Iterator<Item = (Option<&Taken>, &Taken, Option<&Taken>)> {
    let wrong = |taken: &Taken| taken.sample.in_step_window;
    taken.iter().enumerate().filter_map(move |(n, within)| {
        let before = n.checked_sub(1).and_then(|before| taken.get(before));
        if !wrong(within) || before.is_some_and(wrong) {
            return None;
        }
        Some((before, within, taken[n..].iter().find(|taken| !wrong(taken))))
    })
}
