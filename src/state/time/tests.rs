use super::*;

const SECOND: i128 = 1 << 64;

fn stopped() -> StoppedClock {
    StoppedClock {
        frequency_num: 2_000_000_000,
        frequency_den: 1,
        base_tsc: 500,
        base_system_time_ns: 0,
        mul: 1 << 31,
        shift: 0,
        tsc_khz: 2_000_000,
        guest_tsc: 1_000_000,
        host_tsc: 7_000_000_000,
        pair_guest_tsc: 1_000_100,
        tai: 1000 * SECOND,
        tai_known: true,
        pair_error_ns: 30,
        host_error_ns: 400,
        boot_id: "one".to_owned(),
        suspended: false,
        incarnation: 4,
    }
}

fn now(boot_id: &str, host_tsc: u64, seconds: i128) -> HostNow {
    HostNow {
        host_tsc,
        tai: Tai::from_units((1000 + seconds) * SECOND),
        tai_known: true,
        pair_error_ns: 20,
        host_error_ns: 500,
        boot_id: boot_id.to_owned(),
    }
}

#[test]
fn the_line_is_as_it_was() {
    let line = stopped().line().unwrap();
    assert_eq!((line.base_tsc(), line.mul(), line.shift()), (500, 1 << 31, 0));
    assert_eq!(line.frequency().khz_floor(), 2_000_000);
    assert!(StoppedClock { mul: 0, ..stopped() }.line().is_err());
    assert!(StoppedClock { frequency_den: 0, ..stopped() }.line().is_err());
    assert!(StoppedClock { frequency_num: u128::MAX, ..stopped() }.line().is_err());
}

#[test]
fn freeze_goes_on_where_it_stopped() {
    for (boot, seconds) in [("one", 3), ("two", 10_000_000), ("two", -5)] {
        let restored = stopped().restart(TimePolicy::Freeze, &now(boot, 1, seconds)).unwrap();
        assert_eq!(restored.start, TscStart::WhenSet { guest_tsc: 1_000_000 });
        assert_eq!((restored.bridge, restored.error_ns), (Bridge::None, 0));
        assert_eq!(restored.away_ns, seconds * 1_000_000_000);
        assert_eq!(restored.incarnation, 5);
    }
}

#[test]
fn advance_on_the_same_boot_keeps_the_offset() {
    // 3 s, and the host's clock steered by 20 ppm meanwhile: the TSC counts.
    let now = now("one", 7_000_000_000 + 6_000_120_000, 3);
    let restored = stopped().restart(TimePolicy::Advance, &now).unwrap();
    let start = TscStart::At { host_tsc: 7_000_000_000, guest_tsc: 1_000_100 };
    assert_eq!((restored.start, restored.bridge), (start, Bridge::HostTsc));
    assert_eq!(restored.error_ns, 0);
}

#[test]
fn advance_elsewhere_goes_by_tai() {
    let restored = stopped().restart(TimePolicy::Advance, &now("two", 99, 3)).unwrap();
    let start = TscStart::At { host_tsc: 99, guest_tsc: 1_000_100 + 6_000_000_000 };
    assert_eq!((restored.start, restored.bridge), (start, Bridge::Tai));
    assert_eq!(restored.error_ns, 30 + 20 + 400 + 500 + 2);
    // A TSC that stood still or began anew over a sleep of the host's.
    for host_tsc in [7_000_000_000, 5, 7_000_000_000 + 9_000_000_000] {
        let restored = stopped().restart(TimePolicy::Advance, &now("one", host_tsc, 3)).unwrap();
        assert_eq!(restored.bridge, Bridge::Tai, "{host_tsc}");
    }
}

#[test]
fn advance_refuses_what_the_guest_does_not_survive() {
    let most = stopped().restart(TimePolicy::Advance, &now("two", 9, 400)).unwrap();
    assert_eq!(most.away_ns, 400_000_000_000);
    let error = stopped().restart(TimePolicy::Advance, &now("two", 9, 401)).unwrap_err();
    assert_eq!(error, TimeError::TooFar { away_s: 401, most_s: 400, khz: 2_000_000 });
    assert!(error.to_string().contains("--time inject"), "{error}");
    let same = now("one", 7_000_000_000 + 802_000_000_000, 401);
    assert!(matches!(stopped().restart(TimePolicy::Advance, &same), Err(TimeError::TooFar { .. })));
    let far = now("two", 9, i128::from(i64::MAX) - 2000);
    assert!(matches!(stopped().restart(TimePolicy::Advance, &far), Err(TimeError::TooFar { .. })));
}

#[test]
fn advance_refuses_a_clock_that_cannot_tell() {
    let error = stopped().restart(TimePolicy::Advance, &now("two", 9, -1)).unwrap_err();
    assert_eq!(error, TimeError::Behind { behind_ns: 1_000_000_000 });
    let unknown = HostNow { tai_known: false, ..now("two", 9, 3) };
    let error = stopped().restart(TimePolicy::Advance, &unknown).unwrap_err();
    assert_eq!(error, TimeError::TaiUnknown { who: "this" });
    let saved = StoppedClock { tai_known: false, ..stopped() };
    let error = saved.restart(TimePolicy::Advance, &now("two", 9, 3)).unwrap_err();
    assert_eq!(error, TimeError::TaiUnknown { who: "the saving" });
    // Neither knows: UTC to UTC is as good.
    assert!(saved.restart(TimePolicy::Advance, &unknown).is_ok());
}

#[test]
fn inject_needs_the_guest() {
    let error = stopped().restart(TimePolicy::Inject, &now("one", 9, 3)).unwrap_err();
    assert_eq!(error, TimeError::NotSuspended);
    let saved = StoppedClock { suspended: true, ..stopped() };
    let restored = saved.restart(TimePolicy::Inject, &now("one", 9, 3)).unwrap();
    assert_eq!(restored.start, TscStart::WhenSet { guest_tsc: 1_000_000 });
}

#[test]
fn frequencies() {
    let plan = |guest, host, bits| FrequencyPlan::new(guest, host, bits, false);
    assert_eq!(plan(2_000_000, 2_000_000, None), Ok(FrequencyPlan::Host { off_ppb: 0 }));
    assert_eq!(plan(2_000_000, 2_000_500, None), Ok(FrequencyPlan::Host { off_ppb: 250_000 }));
    assert_eq!(plan(2_000_000, 1_999_500, None), Ok(FrequencyPlan::Host { off_ppb: -250_000 }));
    let error = plan(2_000_000, 2_000_501, None).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("2000000 kHz") && text.contains("2000501 kHz"), "{text}");
    assert!(text.contains("251 ppm"), "{text}");
    for bits in [FRAC_BITS_AMD, FRAC_BITS_INTEL] {
        let scaled = plan(2_500_000, 3_000_000, Some(bits)).unwrap().scaling();
        let second = scaled.guest_tsc(3_000_000_000);
        assert!(second.abs_diff(2_500_000_000) <= 1, "{second}");
        assert_eq!(scaled.frac_bits(), bits);
    }
    assert!(plan(4_000_000_000, 1_000, Some(FRAC_BITS_AMD)).is_err());
    assert!(plan(0, 0, None).is_ok() && plan(0, 1, None).is_err());
    // One that sets its clocks up anew is told, but only where nothing else goes.
    let anew = |guest, host, bits| FrequencyPlan::new(guest, host, bits, true);
    assert_eq!(anew(2_000_000, 2_500_000, None), Ok(FrequencyPlan::Advertised));
    assert_eq!(anew(2_000_000, 2_000_500, None), Ok(FrequencyPlan::Host { off_ppb: 250_000 }));
    let scaled = anew(2_500_000, 3_000_000, Some(FRAC_BITS_AMD)).unwrap();
    assert!(matches!(scaled, FrequencyPlan::Scaled(_)), "{scaled:?}");
}

#[test]
fn the_line_of_another_frequency_begins_where_the_last_one_came_to() {
    for khz in [100_000, 1_999_000, 2_000_000, 2_445_412, 8_000_000] {
        let stopped = stopped();
        let (was, line) = (stopped.line().unwrap(), stopped.line_at(khz).unwrap());
        let at = stopped.guest_tsc;
        assert_eq!(line.system_time_ns(at), was.system_time_ns(at), "{khz}");
        // A second of that TSC, to 0.7 ppb and a rounding.
        let second = line.system_time_ns(at + u64::from(khz) * 1000) - line.system_time_ns(at);
        assert!(second.abs_diff(1_000_000_000) <= 2, "{khz}: {second}");
    }
    assert!(stopped().line_at(0).is_err());
}

#[test]
fn ticks_against_wide_arithmetic() {
    use num_bigint::BigUint;
    for (num, den) in [(2_000_000_000u64, 1u64), (2_599_999_999_999, 1000), (10_000_000_001, 3)] {
        let frequency = TscFrequency::from_ratio(num, den).unwrap();
        for units in [0, 1, SECOND - 1, SECOND, 399 * SECOND + 12_345, 1 << 100, (1 << 118) + 77] {
            let exact = (BigUint::from(u128::try_from(units).unwrap()) * frequency.num()
                / BigUint::from(frequency.den()))
                >> 64u32;
            let ticks = BigUint::from(ticks_of(frequency, units).unwrap());
            assert!(ticks <= exact && exact - ticks <= BigUint::from(1u8), "{num}/{den} {units}");
        }
    }
    assert_eq!(ticks_of(TscFrequency::from_khz(1_000_000).unwrap(), -1), None);
}

#[test]
fn a_state_without_an_incarnation_was_never_moved() {
    let mut cbor = Vec::new();
    ciborium::into_writer(&stopped(), &mut cbor).unwrap();
    assert_eq!(ciborium::from_reader::<StoppedClock, _>(&cbor[..]).unwrap(), stopped());
    let value: ciborium::Value = ciborium::from_reader(&cbor[..]).unwrap();
    let mut fields = value.into_map().unwrap();
    fields.retain(|(name, _)| name.as_text() != Some("incarnation"));
    let old: StoppedClock = ciborium::Value::Map(fields).deserialized().unwrap();
    assert_eq!(old, StoppedClock { incarnation: 1, ..stopped() });
}
