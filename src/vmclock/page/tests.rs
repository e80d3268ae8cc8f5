//! The page as a guest reads it.

use super::*;
use crate::clock::TscFrequency;
use crate::clock::tai::{CounterPeriod, Tai, TaiErrors};
use crate::pages::read_vmclock;

const GPA: GuestAddress = GuestAddress(0x3000);

fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap()
}

fn config(time_type: TimeType) -> VmClockConfig {
    VmClockConfig { gpa: GPA, time_type, smearing: Smear::NoonLinear, notifies: true }
}

fn line(sec: i64) -> TaiLine {
    let errors = TaiErrors {
        pair_ns: 20,
        pair_est_ns: 5,
        rate_attos: 1_500_000_000_000_000,
        rate_est_attos: 10_000_000_000,
        host_ns: 3_000_000,
        host_est_ns: 40_000,
        host_rate_attos: 500_000_000_000_000,
    };
    let period = CounterPeriod::of_frequency(TscFrequency::from_khz(2_500_000).unwrap());
    TaiLine::new(77_000, Tai::new(sec, 1 << 62), period, errors)
}

fn update() -> Update {
    Update {
        line: Some(line(1_800_000_037)),
        status: ClockStatus::Synchronized,
        tai_offset: TaiOffset::Known(37),
        leap: LeapIndicator::BeforePositive,
        notice: Notice::Soon,
    }
}

#[test]
fn every_field_of_a_tai_page() {
    let page = VmClock::new(config(TimeType::Tai), 9, 4).page(&update());
    let period = line(0).period();
    assert_eq!((page.magic, page.size, page.version), (0x4b4c_4356, 4096, 1));
    assert_eq!((page.counter_id, page.time_type, page.clock_status), (1, 1, 2));
    assert_eq!((page.disruption_marker, page.vm_generation_counter), (9, 4));
    assert_eq!(page.flags, 0b11_0111_1011); // all but IMMINENT and MONOTONIC
    assert_eq!((page.leap_second_smearing_hint, page.leap_indicator), (1, 1));
    assert_eq!(page.tai_offset_sec, -37);
    assert_eq!(
        (page.counter_value, page.time_sec, page.time_frac_sec),
        (77_000, 1_800_000_037, 1 << 62)
    );
    assert_eq!(
        (page.counter_period_frac_sec, page.counter_period_shift),
        (period.frac(), period.shift())
    );
    assert_eq!((page.time_esterror_nanosec, page.time_maxerror_nanosec), (40_005, 3_000_020));
    // 2 000 ppm and 10 ppb of the period.
    let ratio = page.counter_period_frac_sec / page.counter_period_maxerror_rate_frac_sec;
    assert_eq!(ratio, 499);
    let ratio = page.counter_period_frac_sec / page.counter_period_esterror_rate_frac_sec;
    assert_eq!(ratio, 99_999_999);
}

#[test]
fn a_utc_page_says_the_same_moment() {
    let page = VmClock::new(config(TimeType::Utc), 0, 0).page(&update());
    assert_eq!((page.time_type, page.time_sec), (0, 1_800_000_000));
    assert_eq!(TimeType::for_host(TaiOffset::Unknown), TimeType::Utc);
    assert_eq!(TimeType::for_host(TaiOffset::Known(37)), TimeType::Tai);
    let unknown = Update { tai_offset: TaiOffset::Unknown, ..update() };
    let page = VmClock::new(config(TimeType::Utc), 0, 0).page(&unknown);
    assert_eq!((page.flags & 1, page.tai_offset_sec), (0, 0));
}

#[test]
fn nothing_is_claimed_without_a_line() {
    let page = VmClock::new(config(TimeType::Tai), 0, 0).page(&Update::default());
    assert_eq!(page.clock_status, abi::VMCLOCK_STATUS_UNRELIABLE);
    assert_eq!(page.flags & 0b111_1000, 0);
    assert_eq!((page.counter_period_frac_sec, page.time_sec), (0, 0));
}

#[test]
fn hosts_before_1970_are_unreliable() {
    for sec in [-1, i64::MIN] {
        let update = Update { line: Some(line(sec)), ..update() };
        let page = VmClock::new(config(TimeType::Tai), 0, 0).page(&update);
        assert_eq!(page.clock_status, abi::VMCLOCK_STATUS_UNRELIABLE);
        assert_eq!(page.flags & 0b111_1000, 0);
    }
}

#[test]
fn a_guest_is_notified_of_news_and_not_of_each_line() {
    let mem = ram();
    let mut clock = VmClock::new(config(TimeType::Tai), 0, 0);
    assert_eq!(clock.publish(&mem, &update()), Ok(false), "the first page is no news");
    let moved = Update { line: Some(line(1_800_000_038)), ..update() };
    assert_eq!(clock.publish(&mem, &moved), Ok(false));
    assert_eq!(read_vmclock(&mem, GPA).unwrap().seq_count, 4);
    let news: [fn(&mut VmClock, &mut Update); 5] = [
        |clock, _| clock.disrupt(),
        |clock, _| clock.new_generation(),
        |_, update| update.status = ClockStatus::Unknown,
        |_, update| update.leap = LeapIndicator::During,
        |_, update| update.tai_offset = TaiOffset::Known(38),
    ];
    let mut update = moved;
    for (n, change) in news.into_iter().enumerate() {
        change(&mut clock, &mut update);
        assert_eq!(clock.publish(&mem, &update), Ok(true), "{n}");
        assert_eq!(clock.publish(&mem, &update), Ok(false), "{n}");
    }
    let page = read_vmclock(&mem, GPA).unwrap();
    assert_eq!((page.disruption_marker, page.vm_generation_counter), (2, 1));
    let seen = Seen { disruption_marker: 2, generation: 1, moves_error_ns: 0 };
    assert_eq!(clock.seen(), seen);
}

#[test]
fn a_move_is_a_disruption_and_widens_the_bound_for_good() {
    let mem = ram();
    let before = Seen { disruption_marker: 7, generation: 3, moves_error_ns: 20 };
    let mut clock = VmClock::new(config(TimeType::Tai), 1, 1);
    let narrow = clock.page(&update());
    assert_eq!(clock.publish(&mem, &update()), Ok(false));
    clock.go_on(before, 300);
    assert_eq!(clock.publish(&mem, &update()), Ok(true), "told");
    let page = read_vmclock(&mem, GPA).unwrap();
    assert_eq!((page.disruption_marker, page.vm_generation_counter), (8, 3));
    assert_eq!(page.time_maxerror_nanosec, narrow.time_maxerror_nanosec + 320);
    assert_eq!(page.time_esterror_nanosec, narrow.time_esterror_nanosec + 320);
    let seen = Seen { disruption_marker: 8, generation: 3, moves_error_ns: 320 };
    assert_eq!(clock.seen(), seen);
    clock.go_on(Seen { moves_error_ns: u64::MAX, ..seen }, 1);
    assert_eq!(clock.page(&update()).time_maxerror_nanosec, u64::MAX);
}

#[test]
fn a_silent_device_never_notifies() {
    let mem = ram();
    let silent = VmClockConfig { notifies: false, ..config(TimeType::Tai) };
    let mut clock = VmClock::new(silent, 0, 0);
    clock.publish(&mem, &update()).unwrap();
    clock.disrupt();
    assert_eq!(clock.publish(&mem, &update()), Ok(false));
    assert_eq!(read_vmclock(&mem, GPA).unwrap().flags & abi::VMCLOCK_FLAG_NOTIFICATION_PRESENT, 0);
}
