//! The laboratory against the known numbers, and over ten thousand machines.

use super::*;
use proptest::prelude::*;

const YEAR: u64 = 31_557_600;

#[test]
fn four_hundred_ppb_and_none() {
    for scaling in [Scaling::Intel, Scaling::Amd] {
        let report = Scenario::new(3_000_000, 2_500_000, scaling).run().unwrap();
        assert_eq!((report.b.ppb, report.b.jumps), (400, 0), "{scaling:?}");
        assert_eq!((report.ours.ppb, report.ours.jumps), (0, 0));
        assert_eq!((report.ours_tai.ppb, report.ours_tai.worst_ns), (0, 0));
        assert!(report.ours.worst_ns < 10_000, "{} ns in a day", report.ours.worst_ns);
    }
    let report = Scenario::new(3_000_000, 2_500_000, Scaling::Intel).run().unwrap();
    assert_eq!(report.b.worst_ns, 34_555_233);
    assert_eq!(report.b.points.len(), 101);
    assert_eq!(report.b.points[100], (86_400, 34_555_233));
}

#[test]
fn updates_make_jumps_out_of_drift() {
    let mut scenario = Scenario::new(3_000_000, 2_500_000, Scaling::Intel);
    scenario.updates = Updates::Every(3_600);
    let report = scenario.run().unwrap();
    assert_eq!((report.b.jumps, report.b.ppb), (24, 400));
    assert!(
        (-1_439_810..=-1_439_790).contains(&report.b.worst_jump_ns),
        "{}",
        report.b.worst_jump_ns
    );
    assert_eq!(report.b.worst_ns, report.b.worst_jump_ns.unsigned_abs());
    assert_eq!((report.ours.jumps, report.ours.worst_jump_ns), (0, 0));
}

#[test]
fn updates_at_chosen_times() {
    let mut scenario = Scenario::new(3_000_000, 2_500_000, Scaling::Intel);
    scenario.points = 2;
    // Out of order, one twice, one at the start, one after the end.
    scenario.updates = Updates::At(vec![40_000, 10_000, 40_000, 0, 90_000]);
    let report = scenario.run().unwrap();
    assert_eq!((report.b.jumps, report.b.ppb), (2, 400));
    // 30 000 s and 46 400 s of 400 ppb.
    assert_eq!(report.b.worst_jump_ns / 1_000, -11_998);
    assert_eq!(report.b.worst_ns / 1_000, 18_557);
    let seconds: Vec<_> = report.b.points.iter().map(|(at, _)| *at).collect();
    assert_eq!(seconds, [0, 40_000, 40_000, 43_200, 86_400]);
    assert_eq!(report.b.points[2].1, 0);
    assert!(report.b.points[1].1 > 11_000_000);
    scenario.updates = Updates::At(Vec::new());
    assert_eq!(scenario.run().unwrap().b.worst_ns, 34_555_233);
}

#[test]
fn a_point_at_an_update_is_one_before_and_one_after() {
    let mut scenario = Scenario::new(3_000_000, 2_500_000, Scaling::Intel);
    (scenario.points, scenario.updates) = (2, Updates::Every(43_200));
    let points = scenario.run().unwrap().b.points;
    let seconds: Vec<_> = points.iter().map(|(at, _)| *at).collect();
    assert_eq!(seconds, [0, 43_200, 43_200, 86_400, 86_400]);
    assert!(points[1].1 > 17_000_000 && points[2].1 == 0);
}

#[test]
fn unscaled_guests_drift_by_the_clocksource() {
    let mut scenario = Scenario::new(3_000_000, 1, Scaling::None);
    scenario.linux_raw = true;
    scenario.updates = Updates::Every(86_400);
    let report = scenario.run().unwrap();
    assert_eq!((report.a.ppb, report.b.ppb, report.c.ppb), (-60, 0, 0));
    assert_eq!(report.b.worst_jump_ns, -5_129_725);
}

#[test]
fn an_hour_of_slew() {
    let mut scenario = Scenario::new(2_500_000, 2_500_000, Scaling::None);
    scenario.seconds = 3_600;
    scenario.ntp = vec![NtpStretch { seconds: 3_600, ppb: 500_000, step_ns: 0 }];
    let report = scenario.run().unwrap();
    assert_eq!(report.wallclock_kvm.worst_ns / 1_000_000, 1_800);
    assert_eq!(report.wallclock_kvm.ppb, -500_000);
    assert!(report.wallclock_ours.worst_ns <= 1_001, "{}", report.wallclock_ours.worst_ns);
    assert!(report.wallclock_ours.jumps > 1_000_000);
}

#[test]
fn steps_and_stretches_add_up() {
    let mut scenario = Scenario::new(2_000_000, 1, Scaling::None);
    scenario.seconds = 100;
    scenario.ntp = vec![
        NtpStretch { seconds: 10, ppb: 1_000, step_ns: 0 },
        NtpStretch { seconds: 10, ppb: -1_000, step_ns: 5_000_000 },
    ];
    let report = scenario.run().unwrap();
    let at = |second: usize| report.wallclock_kvm.points[second].1;
    assert_eq!(
        (at(5), at(10), at(19), at(20), at(100)),
        (-5_000, -10_000, -1_000, -5_000_000, -5_000_000)
    );
    assert_eq!(report.wallclock_ours.worst_jump_ns, 5_000_000);
}

#[test]
fn what_no_machine_does_is_refused() {
    let mut scenario = Scenario::new(3_000_000, 2_500_000, Scaling::Intel);
    scenario.points = 0;
    assert_eq!(scenario.run(), Err(LabError::NoPoints));
    scenario.points = 1;
    scenario.seconds = 6_148_914_692;
    assert!(matches!(scenario.run(), Err(LabError::TooLong { khz: 3_000_000, .. })));
    scenario.seconds = 100 * YEAR;
    assert!(scenario.run().is_ok());
    assert!(matches!(Scenario::new(0, 1, Scaling::Amd).run(), Err(LabError::Model(_))));
    let mut still = Scenario::new(3_000_000, 2_500_000, Scaling::Intel);
    (still.seconds, still.updates) = (0, Updates::Every(0));
    assert!(still.run().is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]
    /// Nothing drifts and nothing jumps, on any pair of frequencies, over years
    /// and any number of masterclock updates.
    #[test]
    fn ours_is_nought(host_khz in 500_000u32..6_000_000, guest_khz in 500_000u32..6_000_000,
                      width in 0u8..3, years in 1u64..20, every in 1u64..1_000_000, linux_raw: bool) {
        let scaling = [Scaling::Intel, Scaling::Amd, Scaling::None][usize::from(width)];
        let scenario = Scenario {
            seconds: years * YEAR,
            points: 3,
            updates: Updates::Every(every),
            linux_raw,
            ..Scenario::new(host_khz, guest_khz, scaling)
        };
        let report = scenario.run().unwrap();
        prop_assert_eq!((report.ours.ppb, report.ours.jumps, report.ours.worst_jump_ns), (0, 0, 0));
        prop_assert_eq!((report.ours_tai.ppb, report.ours_tai.worst_ns, report.ours_tai.jumps), (0, 0, 0));
    }
}
