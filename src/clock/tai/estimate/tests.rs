//! The estimator on hosts of known truth, one change at a time. Whole histories
//! are in `host::simulated`.

use super::*;
use crate::clock::tai::{HostSync, KnownRate};
use proptest::prelude::*;

const KHZ: u64 = 2_500_000;
/// 10 ms of ticks.
const TICK: u64 = KHZ * 10;

fn config() -> EstimatorConfig {
    EstimatorConfig::linux(TscFrequency::from_khz(KHZ).unwrap())
}

/// A host whose clock is a line of its own.
fn truth(ppb: i64) -> TaiLine {
    let rate = (1_000_000_000 + ppb).unsigned_abs();
    let period = CounterPeriod::of_frequency(TscFrequency::from_khz(KHZ).unwrap());
    let period = period.times(rate, 1_000_000_000).unwrap();
    TaiLine::new(0, Tai::new(1_800_000_000, 0), period, TaiErrors::default())
}

/// The reading at `tsc`: off by `noise_ns`, which is within the error stated.
fn reading(truth: &TaiLine, tsc: u64, noise_ns: i64) -> HostReading {
    let noise = Tai::from_ns(noise_ns.into()).unwrap().units();
    HostReading {
        host_tsc: tsc,
        tai: truth.at(tsc).saturating_add(noise),
        error_ns: 100,
        steering: Steering::NOMINAL,
        rate: None,
        sync: HostSync { synchronized: true, maxerror_ns: 1_000, ..HostSync::default() },
    }
}

/// `TaiEstimator` after a second of readings every 10 ms, with its last counter.
fn settled(truth: &TaiLine) -> (TaiEstimator, u64) {
    let mut estimator = TaiEstimator::new(config());
    for n in 0..=100 {
        let noise = [90, -90, 10, 0, -40][usize::try_from(n % 5).unwrap()];
        let seen = estimator.observe(&reading(truth, n * TICK, noise));
        let expected = if n == 0 { Observation::Started } else { Observation::Continued };
        assert_eq!(seen, expected, "reading {n}");
    }
    (estimator, 100 * TICK)
}

#[test]
fn several_pairs_are_better_than_one() {
    let truth = truth(30_000);
    let (estimator, now) = settled(&truth);
    let line = estimator.line().unwrap();
    let off = line.at(now).distance_ns(truth.at(now));
    assert!(line.errors().pair_est_ns < 30, "{line:?}");
    assert!(off <= line.errors().pair_est_ns.into(), "{off} ns");
    // 200 ns in a second are 200 ppb at the most.
    assert!(line.errors().rate_est_attos < 210_000_000_000, "{line:?}");
    assert!(line.period().distance_attos(truth.period()) <= line.errors().rate_est_attos);
    assert_eq!(line.errors().host_ns, 1_000);
    // 1 000 ppm of steering and 500 hidden, and the estimate.
    let steering = line.errors().rate_attos - line.errors().rate_est_attos;
    assert_eq!(steering, 1_500 * PPM);
}

#[test]
fn a_step_is_one_that_breaks_the_bound() {
    let truth = truth(0);
    let (estimator, now) = settled(&truth);
    let then = now + TICK;
    let bound = i64::try_from(estimator.line().unwrap().own_bound_ns(then)).unwrap();
    assert!((15_000..16_000).contains(&bound), "10 ms at 1 500 ppm: {bound}");
    let step = |by| {
        let mut estimator = estimator;
        let seen = estimator.observe(&reading(&truth, then, by));
        (seen, estimator.line().unwrap().at(then))
    };
    for by in [bound - 200, 200 - bound] {
        assert_eq!(step(by).0, Observation::RateChanged, "{by} ns");
    }
    for by in [bound + 400, -bound - 400, 1_000_000_000, -1_000_000_000, i64::MAX, i64::MIN] {
        let (seen, at) = step(by);
        let Observation::Stepped { by_ns } = seen else { panic!("{by} ns: {seen:?}") };
        assert!((by_ns - i128::from(by)).abs() <= 60, "{by} ns told as {by_ns}");
        assert_eq!(at, reading(&truth, then, by).tai, "the line starts anew there");
    }
}

#[test]
fn a_counter_that_went_back() {
    let truth = truth(0);
    let (mut estimator, now) = settled(&truth);
    let mut early = reading(&truth, 5, 0);
    early.tai = truth.at(now + TICK);
    let ticks = 5 - i64::try_from(now).unwrap();
    assert_eq!(estimator.observe(&early), Observation::CounterJumped { ticks });
    assert_eq!(estimator.line().unwrap().base(), 5);
    assert!(Observation::CounterJumped { ticks }.is_disruption());
}

#[test]
fn the_same_reading_twice() {
    let truth = truth(0);
    let (mut estimator, now) = settled(&truth);
    let before = estimator.line().unwrap();
    assert_eq!(estimator.observe(&reading(&truth, now, -40)), Observation::Continued);
    assert_eq!(estimator.line().unwrap().period(), before.period());
}

#[test]
fn steering_is_followed_at_once() {
    let old = truth(0);
    let (mut estimator, now) = settled(&old);
    // +100 ppm from `now` on, and adjtimex says so.
    let faster = old.bent(now, old.period().times(1_000_100, 1_000_000).unwrap(), 0, 0).unwrap();
    let mut changed = reading(&faster, now + TICK, 0);
    changed.steering = Steering::from_timex(100 << 16, 10_000);
    assert_eq!(estimator.observe(&changed), Observation::RateChanged);
    let line = estimator.line().unwrap();
    assert!(line.period().distance_attos(faster.period()) <= line.errors().rate_est_attos);
    assert!(line.errors().rate_est_attos < 210_000_000_000, "the estimate is carried over");
    assert_eq!(line.errors().rate_attos - line.errors().rate_est_attos, 1_600 * PPM);
}

#[test]
fn a_slew_that_nobody_announced_is_seen_and_measured() {
    let old = truth(0);
    let (mut estimator, now) = settled(&old);
    let slewed = old.bent(now, old.period().times(1_000_500, 1_000_000).unwrap(), 0, 0).unwrap();
    assert_eq!(estimator.observe(&reading(&slewed, now + TICK, 0)), Observation::RateChanged);
    for n in 2..100 {
        assert_eq!(
            estimator.observe(&reading(&slewed, now + n * TICK, 0)),
            Observation::Continued,
            "{n}"
        );
    }
    let line = estimator.line().unwrap();
    assert!(line.period().distance_attos(slewed.period()) <= line.errors().rate_est_attos);
    assert!(line.errors().rate_est_attos < 250_000_000_000);
}

#[test]
fn a_source_that_knows_its_rate_is_believed() {
    let truth = truth(12_345);
    let mut estimator = TaiEstimator::new(config());
    let known = KnownRate { period: truth.period(), error_attos: 77 };
    let mut first = reading(&truth, 0, 0);
    first.rate = Some(known);
    estimator.observe(&first);
    let line = estimator.line().unwrap();
    assert_eq!((line.period(), line.errors().rate_est_attos), (truth.period(), 77));
}

#[test]
fn reset_starts_again() {
    let (mut estimator, now) = settled(&truth(0));
    estimator.reset();
    assert_eq!(estimator.line(), None);
    assert_eq!(estimator.observe(&reading(&truth(0), now, 0)), Observation::Started);
}

#[test]
fn hosts_at_the_ends_of_time_do_no_harm() {
    let mut estimator = TaiEstimator::new(config());
    for (tsc, units) in [(0, i128::MAX), (1, i128::MIN), (u64::MAX >> 1, 0), (u64::MAX, i128::MAX)]
    {
        let mut extreme = reading(&truth(0), tsc, 0);
        extreme.tai = Tai::from_units(units);
        extreme.error_ns = u64::MAX;
        let _ = estimator.observe(&extreme);
        let _ = estimator.line().unwrap().bound_ns(tsc);
    }
}

proptest! {
    /// Whatever noise the pairs have within their stated error, the line is
    /// within its own bounds of the truth, the estimated ones as well.
    #[test]
    fn bounds_hold_on_a_steady_host(ppb in -450_000i64..450_000,
                                    noise in prop::collection::vec(-100i64..=100, 2..200),
                                    gap in TICK / 10..TICK * 100) {
        let truth = truth(ppb);
        let mut estimator = TaiEstimator::new(config());
        let mut tsc = 0;
        for noise in noise {
            estimator.observe(&reading(&truth, tsc, noise));
            let line = estimator.line().unwrap();
            for later in [tsc, tsc + gap / 2, tsc + gap] {
                let off = line.at(later).distance_ns(truth.at(later));
                prop_assert!(off <= line.own_bound_ns(later).into());
                prop_assert!(off <= u128::from(estimated_error_ns(&line, later)) + 1);
            }
            tsc += gap;
        }
    }
}
