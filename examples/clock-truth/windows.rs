//! The windows between a step of the host's clock and the page that knows it.

use std::time::{Duration, Instant};

use kvm_xen::vmm::clock_service::ClockSample;

use crate::late::Late;

/// A sample, and when it was begun and done.
#[derive(Clone, Copy)]
pub struct Taken {
    pub began: Instant,
    pub done: Instant,
    pub sample: ClockSample,
}

/// From the beginning of the last sample that was right before a step to the end of the
/// first that was right after it: no shorter than the window, and longer by up to two
/// pauses between samples.
#[derive(Clone, Copy)]
pub struct Window {
    from: Instant,
    to: Instant,
    late: Duration,
}

impl Window {
    /// How long it was at most.
    pub fn length(&self) -> Duration {
        self.to - self.from
    }

    /// The same without what the machine was late meanwhile.
    pub fn beside_lateness(&self) -> Duration {
        self.length().saturating_sub(self.late)
    }
}

/// All windows of these samples, which are in order. One without an end lasts to the last.
pub fn windows(taken: &[Taken], late: &Late) -> Vec<Window> {
    let mut found = Vec::new();
    let mut right: Option<Instant> = None;
    let mut open: Option<(Instant, Instant)> = None;
    for Taken { began, done, sample } in taken {
        if sample.in_step_window {
            let from = open.map_or(right.unwrap_or(*began), |(from, _)| from);
            open = Some((from, *done));
            continue;
        }
        found.extend(open.take().map(|(from, _)| (from, *done)));
        right = Some(*began);
    }
    found.extend(open);
    let window = |(from, to)| Window { from, to, late: late.within(from, to) };
    found.into_iter().map(window).collect()
}
