//! `kvm-xen clock verify`: was every sample within the bound that the guest was
//! told?

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use super::ClockError;
use super::args::VerifyArgs;
use super::spread::Spread;
use super::units::show_ns;
use crate::cli::client::{Client, ClientError};
use crate::cli::table::Table;
use crate::vmm::clock_metrics::ClockMetrics;

/// A step of the host's clock excuses samples for so long, ns of host TAI less
/// the step: until the guest's page is new, which takes milliseconds.
const STEP_WINDOW: Duration = Duration::from_secs(1);

/// What became of the samples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Samples taken.
    pub samples: u64,
    /// Within the published bound, as far as the reading can tell.
    pub within: u64,
    /// Outside of it with no step of the host's clock to explain it.
    pub outside: u64,
    /// Between a step of the host's clock and the page that knows it.
    pub in_step_windows: u64,
    /// The guest was told no bound, or not to trust it.
    pub unpublished: u64,
    /// The distances of the samples within, ns.
    pub distances_ns: Spread,
    /// The largest distance of one outside, ns.
    pub largest_outside_ns: u64,
    /// The largest and smallest bound.
    pub bounds_ns: Option<(u64, u64)>,
    /// The smallest part of it that is against the host's clock alone.
    pub least_own_bound_ns: Option<u64>,
    /// The longest time from the first sample of a step window to the first one
    /// after it.
    pub longest_window: Duration,
}

impl Verdict {
    /// Whether something was judged, and all of it was within.
    pub fn holds(&self) -> bool {
        self.within > 0 && self.outside == 0
    }
}

/// Judges samples as they come.
#[derive(Debug, Default)]
pub struct Judge {
    verdict: Verdict,
    /// Steps that were known at the last sample that was within.
    steps: Option<u64>,
    /// Samples that wait for the reason of their error: how many, and since when.
    waiting: Option<(u64, Duration)>,
}

impl Judge {
    /// One more sample, taken at `at` since the beginning.
    pub fn sample(&mut self, at: Duration, sample: &ClockMetrics) {
        let verdict = &mut self.verdict;
        verdict.samples += 1;
        // Whoever has no page reads no time; an unreliable one is refused.
        if sample.page_updates == 0 || sample.clock_status == "unreliable" {
            verdict.unpublished += 1;
            return;
        }
        let (low, high) = verdict.bounds_ns.unwrap_or((sample.bound_ns, sample.bound_ns));
        verdict.bounds_ns = Some((low.min(sample.bound_ns), high.max(sample.bound_ns)));
        let own = verdict.least_own_bound_ns.unwrap_or(u64::MAX);
        verdict.least_own_bound_ns = Some(own.min(sample.own_bound_ns));
        let distance = sample.offset_ns.unsigned_abs();
        // Each of the two times is rounded to a ns.
        let allowed = sample.bound_ns.saturating_add(sample.reading_error_ns).saturating_add(1);
        if distance > allowed {
            verdict.largest_outside_ns = verdict.largest_outside_ns.max(distance);
            self.waiting.get_or_insert((0, at)).0 += 1;
            tracing::debug!(?at, steps_before = ?self.steps, ?sample, "outside of the bound");
            return;
        }
        verdict.within += 1;
        verdict.distances_ns.add(distance);
        let steps = sample.host_steps;
        let stepped = self.steps.replace(steps).is_some_and(|before| steps > before);
        self.settle(at, stepped);
    }

    /// Whether the last samples wait for their reason.
    fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// The last samples outside have their reason, or none.
    fn settle(&mut self, at: Duration, stepped: bool) {
        let Some((count, since)) = self.waiting.take() else { return };
        let window = at.saturating_sub(since);
        if stepped && window <= STEP_WINDOW {
            self.verdict.in_step_windows += count;
            self.verdict.longest_window = self.verdict.longest_window.max(window);
        } else {
            self.verdict.outside += count;
        }
    }

    /// Ends it.
    pub fn verdict(mut self) -> Verdict {
        self.settle(Duration::MAX, false);
        self.verdict
    }
}

pub fn verify(args: &VerifyArgs) -> Result<ExitCode, ClockError> {
    let mut client = Client::connect(&args.socket)?;
    let mut judge = Judge::default();
    let begin = Instant::now();
    let interval = Duration::from_millis(args.interval);
    let mut ended = false;
    for turn in 0u32.. {
        let next = interval.saturating_mul(turn);
        // A step at the very end is waited for too.
        let more = if judge.is_waiting() { STEP_WINDOW } else { Duration::ZERO };
        if next > Duration::from_secs(args.seconds) + more {
            break;
        }
        thread::sleep(next.saturating_sub(begin.elapsed()));
        match client.get("/v1/clock") {
            Ok(sample) => judge.sample(begin.elapsed(), &sample),
            // A guest that powers off ends the samples, not their truth.
            Err(ClientError::Gone { .. }) if turn > 0 => {
                ended = true;
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let verdict = judge.verdict();
    crate::cli::say(table(&verdict, ended));
    Ok(if verdict.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(verdict: &Verdict, ended: bool) -> Table {
    let mut table = Table::default();
    let end = if ended { "; the machine has ended" } else { "" };
    table.check("samples", format!("{}{end}", verdict.samples), verdict.samples > 0);
    table.check("within the published bound", verdict.within, verdict.within > 0);
    let outside = if verdict.outside > 0 {
        format!("{}, by up to {}", verdict.outside, show_ns(verdict.largest_outside_ns.into()))
    } else {
        "0".to_owned()
    };
    table.check("outside", outside, verdict.outside == 0);
    let windows = if verdict.in_step_windows > 0 {
        format!(
            "{}, the longest window {}",
            verdict.in_step_windows,
            show_ns(i128::try_from(verdict.longest_window.as_nanos()).unwrap_or(i128::MAX))
        )
    } else {
        "0".to_owned()
    };
    table.tell("between a step and the new page", windows);
    if verdict.unpublished > 0 {
        table.tell("no bound published", verdict.unpublished);
    }
    if let Some((low, high)) = verdict.bounds_ns {
        let spread = &verdict.distances_ns;
        let at = |percent| show_ns(spread.percentile(percent).into());
        let largest = show_ns(spread.largest().into());
        table.tell(
            "offset from host TAI",
            format!("half within {}, 99 % within {}, largest {largest}", at(50), at(99)),
        );
        table.tell("bound", format!("{} to {}", show_ns(low.into()), show_ns(high.into())));
    }
    if let Some(own) = verdict.least_own_bound_ns {
        table.tell("beyond the host's own error", format!("at least {}", show_ns(own.into())));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(offset_ns: i64, host_steps: u64) -> ClockMetrics {
        ClockMetrics {
            offset_ns,
            host_steps,
            bound_ns: 1_000,
            reading_error_ns: 20,
            page_updates: 1,
            clock_status: "synchronized".to_owned(),
            ..ClockMetrics::default()
        }
    }

    fn judged(samples: &[(u64, ClockMetrics)]) -> Verdict {
        let mut judge = Judge::default();
        for (ms, sample) in samples {
            judge.sample(Duration::from_millis(*ms), sample);
        }
        judge.verdict()
    }

    #[test]
    fn the_bound_and_the_readings_error() {
        let found = judged(&[(0, sample(1_021, 0)), (1, sample(-1_021, 0)), (2, sample(0, 0))]);
        assert!(found.holds());
        assert_eq!(
            (found.within, found.distances_ns.largest(), found.bounds_ns),
            (3, 1_021, Some((1_000, 1_000)))
        );
        let found = judged(&[(0, sample(0, 0)), (1, sample(-1_022, 0)), (2, sample(0, 0))]);
        assert!(!found.holds());
        assert_eq!((found.within, found.outside, found.largest_outside_ns), (2, 1, 1_022));
        assert!(!judged(&[(0, sample(i64::MIN, 0))]).holds());
    }

    #[test]
    fn a_step_excuses_what_comes_before_the_new_page() {
        let far = 1_000_000_000;
        let found = judged(&[
            (0, sample(0, 3)),
            (10, sample(far, 3)), // nobody has noticed
            (20, sample(far, 4)), // noticed, no page yet
            (30, sample(5, 4)),
        ]);
        assert!(found.holds());
        assert_eq!((found.within, found.in_step_windows, found.outside), (2, 2, 0));
        assert_eq!(found.longest_window, Duration::from_millis(20));
        // A step that came long before, or a window without an end, excuses nothing.
        let old = [(0, sample(0, 4)), (10, sample(far, 4)), (20, sample(0, 4))];
        assert_eq!(judged(&old).outside, 1);
        let endless = [(0, sample(0, 3)), (10, sample(far, 4)), (900, sample(far, 4))];
        assert_eq!(judged(&endless).outside, 2);
        let slow = [(0, sample(0, 3)), (10, sample(far, 4)), (1_100, sample(0, 4))];
        assert_eq!(judged(&slow).outside, 1);
    }

    #[test]
    fn what_was_not_published_is_not_judged() {
        let none = ClockMetrics { page_updates: 0, ..sample(0, 0) };
        let unreliable = ClockMetrics { clock_status: "unreliable".to_owned(), ..sample(0, 0) };
        let found = judged(&[(0, none), (1, unreliable)]);
        assert_eq!((found.unpublished, found.within, found.outside), (2, 0, 0));
        assert!(!found.holds());
        assert!(!judged(&[]).holds());
        assert!(table(&found, true).to_string().contains("no bound published"));
    }
}
