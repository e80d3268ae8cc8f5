//! The service on the machine that runs the test.

use super::*;

/// The whole service on this machine's own clock: thread, samples, metrics, end.
#[test]
fn the_service_runs_on_this_host() {
    struct Here(SystemTimeLine);
    impl ClockedGuest for Here {
        fn host_tsc(&self) -> u64 {
            crate::host::host_tsc()
        }
        fn guest_tsc(&self, host_tsc: u64) -> u64 {
            host_tsc
        }
        fn lose_counter(&self) {}
        fn counter_offset(&self) -> Option<u64> {
            None
        }
        fn system_line(&self) -> SystemTimeLine {
            self.0
        }
        fn follow(&self, _utc: Option<UtcLine>) {}
        fn wallclock(&self) -> Option<WallclockEpoch> {
            None
        }
        fn rewrite_wallclock(&self) {}
        fn notify(&self) {}
        fn notify_generation(&self) {}
    }
    let frequency = this_tsc();
    let memory = GuestRam::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
    let place = VmClockPlace {
        memory: GuestRamHandle::new(memory),
        gpa: PAGE,
        generation_gpa: GuestAddress(0x2000),
        generation_id: [1; 16],
    };
    let source = || Box::new(Bracketed::new(frequency, 10));
    let parts = Parts {
        source: source(),
        second: None,
        truth: source(),
        offset: TaiOffset::Known(37),
        config: EstimatorConfig::linux(frequency),
        scaling: TscScaling::unscaled(0),
    };
    let guest = Box::new(Here(SystemTimeLine::new(frequency, 0, 0).unwrap()));
    let service = Arc::new(
        ClockService::from_parts(ClockSettings::default(), guest, parts, Some(place)).unwrap(),
    );
    service.start().unwrap();
    service.start().unwrap();
    for _ in 0..50 {
        let sample = service.sample().unwrap();
        assert!(sample.within, "{sample:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let metrics = service.metrics();
    assert!(metrics.readings >= 2 && metrics.page_updates >= 2, "{metrics:?}");
    assert!(metrics.own_bound_ns > 0 && metrics.bound_ns >= metrics.own_bound_ns, "{metrics:?}");
    assert_eq!(metrics.source, SourceKind::Bracketed.to_string());
    service.stop();
    service.stop();
    assert_eq!(service.sample_counts().broken, 0);
}

/// This machine's TSC within 1000 ppm: the estimator measures the rest.
fn this_tsc() -> TscFrequency {
    let reading = || Bracketed::new(TscFrequency::from_khz(1_000_000).unwrap(), 10).read().unwrap();
    let first = reading();
    std::thread::sleep(Duration::from_millis(100));
    let second = reading();
    let ns = u64::try_from(second.tai.ns_floor() - first.tai.ns_floor()).unwrap();
    let ticks = second.host_tsc - first.host_tsc;
    TscFrequency::from_khz(ticks * 1_000_000 / ns).unwrap()
}
